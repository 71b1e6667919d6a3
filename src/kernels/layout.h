/* layout.h - how a packed weight lies in memory, the same for every instruction set.
 *
 * 32 output rows make a panel; a panel is one contiguous run, K-major, so that a product streams memory from front to
 * back and each of the 32 sums is one chain over ascending k. Several neighbouring k of one output lie together where
 * the kernels read them as one 32-bit lane (fp8: 16-bit):
 *
 *   f32        [k][32]            bf16   [k/2][32][2]     int8   [k/4][32][4]
 *   f16        [k][32]            fp8    [k/2][32][2]
 *
 * K is padded with zeros to a full group, N with zero rows to a full panel. An MLP's gate and up alternate panel by
 * panel. fp8 scales: one per panel and run of columns between block borders, or 32 when a panel crosses a border of
 * block rows. int8: per output its scale, its bias and -128 times the sum of its weights (what a kernel that reads
 * activations as unsigned must begin with). */
#pragma once
#include "kernels/kernels.h"

#define PANEL 32

/* Sums of int8 products stay exact in 32 bits up to here: k * 128 * 128 < 2^31. */
#define INT8_K_MAX 131071

/* How far ahead of the sums weights are asked for: the hardware's own prefetch stops at each 4 KiB page. */
#define PREFETCH_BYTES 4096

/* The columns under one fp8 scale are decoded into a buffer at once; released models have 128. */
#define FP8_BLOCK_K_MAX 256

static inline size_t ceil_div(size_t n, size_t by) {
        return (n + by - 1) / by;
}

static inline size_t align64(size_t bytes) {
        return (bytes + 63) & ~(size_t)63;
}

static inline bool is_int8(enum weight_type type) {
        return type == WEIGHT_INT8_DYNAMIC || type == WEIGHT_INT8_STATIC;
}

/* Which of `count` entries number i belongs to: the last whose first number is at most i. The numbers lie `stride` bytes
 * apart, ascending from `first` on. */
static inline size_t entry_of(const size_t *first, size_t stride, size_t count, size_t i) {
        size_t low = 0, high = count;

        while (high - low > 1) {
                size_t middle = (low + high) / 2;

                if (*(const size_t *)((const char *)first + middle * stride) <= i)
                        low = middle;
                else
                        high = middle;
        }
        return low;
}

/* Bytes of one panel from its start to column k, which is a multiple of the group (or the end). */
static inline size_t panel_offset(enum weight_type type, size_t k) {
        switch (type) {
        case WEIGHT_F32:
                return PANEL * 4 * k;
        case WEIGHT_F16:
                return PANEL * 2 * k;
        case WEIGHT_BF16:
                return PANEL * 4 * ceil_div(k, 2);
        case WEIGHT_FP8:
                return PANEL * 2 * ceil_div(k, 2);
        case WEIGHT_INT8_DYNAMIC:
        case WEIGHT_INT8_STATIC:
                return PANEL * 4 * ceil_div(k, 4);
        }
        return 0;
}

static inline const void *linear_panel(const struct linear *l, size_t panel, size_t k) {
        return (const char *)l->packed + panel * panel_offset(l->type, l->k) + panel_offset(l->type, k);
}

/* fp8: number of column runs with one scale, the run that column k lies in, and where that run ends. */
static inline size_t linear_runs(const struct linear *l) {
        return l->k <= l->first_run ? 1 : 1 + ceil_div(l->k - l->first_run, l->block_k);
}

static inline size_t linear_run_of(const struct linear *l, size_t k) {
        return k < l->first_run ? 0 : 1 + (k - l->first_run) / l->block_k;
}

static inline size_t linear_run_end(const struct linear *l, size_t run) {
        size_t end = l->first_run + run * l->block_k;

        return end < l->k ? end : l->k;
}

static inline const float *linear_scales(const struct linear *l, size_t panel, size_t run) {
        return l->scales + (panel * linear_runs(l) + run) * (l->lane_scales ? PANEL : 1);
}
