/* attention.c - a tile of attention, and the absorbed form. */
#include "kernels/attention.h"
#include <assert.h>
#include <math.h>
#include <stdalign.h>
#include <string.h>

/* A sequence's context is shared among workers in segments cut at multiples of this position; their results are merged
 * in ascending order. Part of the arithmetic: changing it changes bits. */
#define SEGMENT_POSITIONS 256
/* Lanes that use one expanded tile of latents. */
#define BLOCK_LANES 128

void kv_read_rows(const struct compute *c, const struct kv_layer *kv, const uint32_t *blocks, size_t first,
    size_t count, float *ret_rows) {
        for (size_t i = 0; i < count; i++, ret_rows += kv->width) {
                size_t at = kv_row(kv, blocks, first + i);

                if (kv->type == KV_F32)
                        memcpy(ret_rows, (const float *)kv->base + at, kv->width * sizeof(float));
                else
                        c->table->from_bf16((const uint16_t *)kv->base + at, kv->width, ret_rows);
        }
}

/* gemm over any number of rows, in blocks of nearly equal size. */
static void gemm_rows(const struct kernel_table *t, const float *a, size_t step, size_t row_step, const float *b,
    size_t k, size_t rows, unsigned lanes, float *c) {
        const size_t blocks = ceil_div(rows, t->block_rows);

        for (size_t i = 0, row = 0, end; i < blocks; i++, row = end) {
                end = (i + 1) * rows / blocks;
                t->gemm(a + row * row_step, step, row_step, b, k, (unsigned)(end - row), lanes, c + row * lanes);
        }
}

void tile_scores(const struct tile *t, const float *keys, size_t key_stride, const float *q, size_t width) {
        gemm_rows(t->table, keys, 1, key_stride, q, width, t->positions, t->lanes, t->scores);
}

void tile_values(const struct tile *t, const float *values, size_t value_stride, size_t count) {
        float keep[PANEL];
        bool all = true;

        t->table->softmax(t->scores, t->positions, t->lanes, t->scale, t->visible, t->max, t->sum, keep);
        for (unsigned i = 0; i < t->lanes; i++)
                all &= keep[i] == 1;
        if (!all)
                t->table->scale_rows(t->out, count, t->lanes, keep);
        gemm_rows(t->table, values, value_stride, 1, t->scores, t->positions, count, t->lanes, t->out);
}

/* ---- absorbed ---------------------------------------------------------------------------------------------------- */

/* Consecutive lanes of one span: lane = query * heads + head. Groups of 32 or at last 16 lanes. */
struct lane_block {
        const struct attention_span *span;
        size_t first, lanes;
        size_t segments;
        float *parts; /* [segments][part_floats] */
        size_t first_task;
};

struct absorbed {
        struct compute *c;
        const struct kv_layer *kv;
        unsigned heads;
        float scale;
        size_t ldq, ldo;
        struct lane_block *blocks;
        size_t count, task_count, merge_count;
        struct step tasks, merges;
};

static unsigned group_lanes(const struct lane_block *b, size_t group) {
        return b->lanes - group * PANEL > 16 ? PANEL : 16;
}

static size_t group_count(const struct lane_block *b) {
        return ceil_div(b->lanes, PANEL);
}

/* The result of one group over one segment: O[rank][lanes], max[lanes], sum[lanes]. */
static size_t part_floats(const struct absorbed *a, size_t lanes) {
        return (a->kv->rank + 2) * ceil_div(lanes, 16) * 16;
}

static float *part_at(const struct absorbed *a, const struct lane_block *b, size_t segment, size_t group) {
        return b->parts + segment * part_floats(a, b->lanes) + group * part_floats(a, PANEL);
}

static size_t lane_position(const struct absorbed *a, const struct lane_block *b, size_t lane) {
        return b->span->first + (b->first + lane) / a->heads;
}

/* A worker's scratch. */
struct absorbed_bench {
        alignas(64) float scores[TILE_POSITIONS * PANEL];
        alignas(64) float latents[]; /* [TILE_POSITIONS][width], then queries [lanes][width] as groups */
};
static_assert(
    sizeof(struct absorbed_bench) + (TILE_POSITIONS + PANEL) * KV_WIDTH_MAX * sizeof(float) <= SCRATCH_WORKER_BYTES,
    "the widest latents fit");

static size_t lanes_per_block(const struct kv_layer *kv) {
        size_t fit =
            (SCRATCH_WORKER_BYTES - sizeof(struct absorbed_bench)) / (kv->width * sizeof(float)) - TILE_POSITIONS;

        return fit < BLOCK_LANES ? fit / PANEL * PANEL : BLOCK_LANES;
}

/* q[group][width][lanes] */
static void transpose_queries(const struct absorbed *a, const struct lane_block *b, float *ret_q) {
        const size_t width = a->kv->width;

        for (size_t g = 0; g < group_count(b); g++) {
                const unsigned lanes = group_lanes(b, g);
                float *to = ret_q + g * PANEL * width;

                for (unsigned i = 0; i < lanes; i++) {
                        size_t lane = g * PANEL + i, index = b->first + lane;
                        const float *q = b->span->q + index / a->heads * a->ldq + index % a->heads * width;

                        for (size_t w = 0; w < width; w++)
                                to[w * lanes + i] = lane < b->lanes ? q[w] : 0;
                }
        }
}

static void absorbed_segment(
    const struct absorbed *a, const struct lane_block *b, size_t segment, struct absorbed_bench *bench) {
        const struct kv_layer *kv = a->kv;
        const size_t first = segment * SEGMENT_POSITIONS, last = lane_position(a, b, b->lanes - 1);
        float *q = bench->latents + TILE_POSITIONS * kv->width;
        int32_t visible[PANEL];

        transpose_queries(a, b, q);
        for (size_t g = 0; g < group_count(b); g++) {
                float *part = part_at(a, b, segment, g);
                const unsigned lanes = group_lanes(b, g);

                memset(part, 0, part_floats(a, lanes) * sizeof(float));
                for (unsigned i = 0; i < lanes; i++)
                        part[kv->rank * lanes + i] = -INFINITY;
        }
        for (size_t at = first; at < first + SEGMENT_POSITIONS && at <= last; at += TILE_POSITIONS) {
                const size_t positions = last + 1 - at < TILE_POSITIONS ? last + 1 - at : TILE_POSITIONS;
                const float *latents = bench->latents;

                if (kv->type == KV_F32 && at % kv->block_tokens + positions <= kv->block_tokens)
                        latents = (const float *)kv->base + kv_row(kv, b->span->blocks, at);
                else
                        kv_read_rows(a->c, kv, b->span->blocks, at, positions, bench->latents);
                for (size_t g = 0; g < group_count(b); g++) {
                        float *part = part_at(a, b, segment, g);
                        const unsigned lanes = group_lanes(b, g);
                        struct tile t = {a->c->table, lanes, positions, a->scale, visible, bench->scores, part,
                            part + kv->rank * lanes, part + (kv->rank + 1) * lanes};

                        for (unsigned i = 0; i < lanes; i++) {
                                size_t lane = g * PANEL + i;

                                visible[i] = (int32_t)positions;
                                if (lane < b->lanes)
                                        visible[i] = (int32_t)((int64_t)lane_position(a, b, lane) + 1 - (int64_t)at);
                        }
                        memset(bench->scores, 0, positions * lanes * sizeof(float));
                        tile_scores(&t, latents, kv->width, q + g * PANEL * kv->width, kv->width);
                        tile_values(&t, latents, kv->width, kv->rank);
                }
        }
}

static void absorbed_merge(const struct absorbed *a, const struct lane_block *b, size_t group) {
        const struct kernel_table *t = a->c->table;
        const size_t rank = a->kv->rank;
        const unsigned lanes = group_lanes(b, group);
        float *all = part_at(a, b, 0, group);

        for (size_t s = 1; s < b->segments; s++) {
                const float *part = part_at(a, b, s, group);

                t->merge(all, all + rank * lanes, all + (rank + 1) * lanes, part, part + rank * lanes,
                    part + (rank + 1) * lanes, rank, lanes);
        }
        t->finish(all, rank, lanes, all + (rank + 1) * lanes);
        for (unsigned i = 0; i < lanes && group * PANEL + i < b->lanes; i++) {
                size_t index = b->first + group * PANEL + i;
                float *out = b->span->out + index / a->heads * a->ldo + index % a->heads * rank;

                for (size_t r = 0; r < rank; r++)
                        out[r] = all[r * lanes + i];
        }
}

static void absorbed_task(void *context, unsigned worker, unsigned workers) {
        struct absorbed *a = context;
        struct absorbed_bench *bench = scratch_worker(a->c, worker);

        for (size_t i; step_take(&a->tasks, &i); step_done(a->c->pool, &a->tasks)) {
                const struct lane_block *b = a->blocks;

                while (i >= b->first_task + b->segments)
                        b++;
                absorbed_segment(a, b, i - b->first_task, bench);
        }
        step_wait(a->c->pool, &a->tasks);
        for (size_t i; step_take(&a->merges, &i);) {
                const struct lane_block *b = a->blocks;
                size_t group = i;

                for (; group >= group_count(b); b++)
                        group -= group_count(b);
                absorbed_merge(a, b, group);
        }
}

/* Take lanes [lane, ...) of a span as the next block. Returns how many, 0 when the scratch left holds none. */
static size_t add_block(struct absorbed *a, const struct attention_span *span, size_t lane, size_t most) {
        struct lane_block *b = &a->blocks[a->count];
        const size_t all = span->count * a->heads;
        size_t bytes;

        *b = (struct lane_block){.span = span, .first = lane, .first_task = a->task_count};
        b->lanes = all - lane < most ? all - lane : most;
        for (;; b->lanes = PANEL) {
                b->segments = ceil_div(lane_position(a, b, b->lanes - 1) + 1, SEGMENT_POSITIONS);
                bytes = b->segments * part_floats(a, b->lanes) * sizeof(float);
                if (bytes + 64 <= scratch_left(a->c))
                        break;
                /* A context of a hundred thousand positions: fewer lanes at once, if that was all the scratch. */
                if (a->count > 0 || b->lanes <= PANEL)
                        return 0;
        }
        b->parts = scratch_take(a->c, bytes);
        a->count++;
        a->task_count += b->segments;
        a->merge_count += group_count(b);
        return b->lanes;
}

void attention_absorbed(struct compute *c, const struct kv_layer *kv, unsigned heads, float scale,
    const struct attention_span *spans, size_t count, size_t ldq, size_t ldo) {
        struct absorbed a = {.c = c, .kv = kv, .heads = heads, .scale = scale, .ldq = ldq, .ldo = ldo};
        const size_t most = SCRATCH_SHARED_BYTES / 8 / sizeof(*a.blocks);
        size_t span = 0, lane = 0;

        assert(kv->width <= KV_WIDTH_MAX);
        while (span < count) {
                scratch_reset(c);
                a.blocks = scratch_take(c, most * sizeof(*a.blocks));
                a.count = a.task_count = a.merge_count = 0;
                while (span < count && a.count < most) {
                        size_t took = 0;

                        if (lane < spans[span].count * heads) {
                                took = add_block(&a, &spans[span], lane, lanes_per_block(kv));
                                if (took == 0)
                                        break;
                                lane += took;
                        } else {
                                span++;
                                lane = 0;
                        }
                }
                assert(a.count > 0 || span == count); /* a context beyond the scratch: kernels.h says how long */
                if (a.count == 0)
                        break;
                step_begin(&a.tasks, a.task_count);
                step_begin(&a.merges, a.merge_count);
                pool_share(c->pool, absorbed_task, &a);
        }
}
