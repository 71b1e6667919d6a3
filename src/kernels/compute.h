/* compute.h - what a struct compute is inside kernels/. */
#pragma once
#include "kernels/kernels.h"
#include "kernels/table.h"
#include "kernels/workers.h"

/* Long inputs are cut to fit here: large enough that a piece keeps all caches and workers busy, small enough to be
 * nobody's memory problem. Address space only, until it is touched. */
#define SCRATCH_SHARED_BYTES ((size_t)128 << 20)
#define SCRATCH_WORKER_BYTES ((size_t)2 << 20)

struct compute {
        struct workers *workers;
        const struct kernel_table *table;
        enum isa isa;
        enum activation activation;
        size_t cache_bytes; /* of a core's second level */
        char *scratch;      /* the shared part, then one part per worker */
        size_t used;        /* of the shared part */
};

/* Take from the shared part; 64-byte aligned, not cleared. The caller has cut its work to fit (asserted). */
void *scratch_take(struct compute *c, size_t bytes);
static inline void scratch_reset(struct compute *c) {
        c->used = 0;
}
/* Thread groups: panel `p` of a weight is packed by, and read first of all by, the group whose share it lies in. Where a share
 * begins: at an even panel, since an MLP's gate and up are pairs. group == groups: the end. */
static inline size_t group_panel(size_t panels, size_t group, size_t groups) {
        return group == groups ? panels : panels / 2 * group / groups * 2;
}
static inline size_t scratch_left(const struct compute *c) {
        return SCRATCH_SHARED_BYTES - c->used;
}
static inline void *scratch_worker(const struct compute *c, unsigned worker) {
        return c->scratch + SCRATCH_SHARED_BYTES + worker * SCRATCH_WORKER_BYTES;
}
