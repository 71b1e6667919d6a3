/* stage.h - many products at once: the engine under linear layers, experts, heads and the expansion of keys and values.
 *
 * A stage has activations (rows of floats, brought into the form that the weights want: f32, bf16 pairs, int8 quads,
 * K-major in blocks of few rows) and parts (a weight applied to one of the activations). Its work is a flat list of
 * tasks, (part, panels, rows), which workers take in order; neighbours in the list share rows, so that a worker's
 * activations stay in its cache while weights stream by. What a task computes does not depend on who runs it or on what
 * else is in the stage. */
#pragma once
#include "kernels/compute.h"
#include "kernels/layout.h"

enum form { FORM_F32, FORM_BF16, FORM_INT8_DYNAMIC, FORM_INT8_STATIC };

struct activations {
        const float *x;
        size_t ldx;
        const uint32_t *index; /* rows of x, or NULL for 0, 1, 2, ... */
        size_t rows, k;
        enum form form;
        float scale_inv, offset; /* FORM_INT8_STATIC */
        const float *scales;     /* FORM_INT8_DYNAMIC: of the rows of x, which are codes already; NULL: they are not */

        size_t units;       /* 32-bit words per row */
        size_t blocks;      /* rows are spread evenly over so many */
        size_t first_block; /* in the stage's list of all blocks */
        const void *packed; /* block after block, each [unit][rows of the block]; one f32 row is x itself */
        float *row_scale;   /* FORM_INT8_DYNAMIC: [rows] */
};

enum epilogue {
        EPILOGUE_STORE,  /* y[row][n] */
        EPILOGUE_SWIGLU, /* y[row][i] = silu(gate i) * up i, panels in pairs */
};

struct part {
        struct linear l;
        const struct activations *a;
        enum epilogue epilogue;
        float *y;
        size_t ldy;

        size_t unit_panels;   /* panels per task, without thread groups */
        size_t units, chunks; /* tasks: chunks of rows, each times units of panels; with groups units are a multiple */
        size_t first_task;
};

struct stage {
        struct activations *a;
        size_t a_count;
        struct part *parts;
        size_t part_count;

        struct step packing; /* blocks of activations, none when they are packed already */
        struct step tasks;
        struct {
                _Atomic size_t next;
                char apart[64 - sizeof(size_t)]; /* counters of different nodes */
        } shares[WORKER_GROUPS_MAX];             /* with thread groups, instead of tasks.next: each group's */
};

/* The form in which a linear wants its rows. */
enum form form_for(const struct compute *c, enum weight_type type);
/* Bytes of scratch for the packed form of `rows` rows. */
size_t activations_bytes(const struct compute *c, enum form form, size_t k, size_t rows);
/* Fill in the rest of *a from x, ldx, index, rows, k, form (and static scale), taking scratch. rows > 0. */
void activations_prepare(struct compute *c, struct activations *a);
/* Fill in the rest of a stage after a, parts are set. When the activations are few they are packed here, by the caller:
 * they must be complete. With `later` they are what an earlier stage writes. */
void stage_prepare(struct compute *c, struct stage *s, bool later);
/* Inside a region: do a share. Results are complete when step_wait(&s->tasks) returns, or the region has ended. */
void stage_work(struct compute *c, struct stage *s, unsigned worker);
/* stage_work in a region of its own. */
void stage_run(struct compute *c, struct stage *s);
