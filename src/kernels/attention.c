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

/* The part of what is coming that is fetched while block i of `blocks` is computed. */
static void fetch_part(const struct upcoming *u, struct operands *o, size_t i, size_t blocks) {
        const size_t from = i * u->count / blocks, to = (i + 1) * u->count / blocks;

        o->next = o->b;
        o->ahead = 0;
        if (from == to)
                return;
        /* Rows of one cache block lie together, and so do most of the few that are asked for here. */
        o->next = (const char *)u->kv->base + kv_row(u->kv, u->blocks, u->first + from) * kv_type_bytes(u->kv->type);
        o->ahead = ceil_div((to - from) * u->kv->width * kv_type_bytes(u->kv->type), o->k);
}

/* A product with any number of rows, in blocks of nearly equal size. */
static void gemm_rows(const struct tile *t, struct operands o, size_t rows, const struct upcoming *u, float *c) {
        const size_t blocks = ceil_div(rows, t->table->block_rows);
        const float *a = o.a;

        o.ldo = t->lanes;

        for (size_t i = 0, row = 0, end; i < blocks; i++, row = end) {
                end = (i + 1) * rows / blocks;
                o.a = a + row * o.row_step;
                o.rows = (unsigned)(end - row);
                fetch_part(u, &o, i, blocks);
                o.c = o.out = c + row * t->lanes;
                t->table->gemm(&o, t->lanes);
        }
}

void tile_scores(const struct tile *t, const float *keys, size_t key_stride, const float *q, size_t width) {
        struct operands o = {.a = keys, .step = 1, .row_step = key_stride, .b = q, .k = width};

        gemm_rows(t, o, t->positions, &t->upcoming, t->scores);
}

void tile_values(const struct tile *t, const float *values, size_t value_stride, size_t count) {
        const struct operands o = {.a = values, .step = value_stride, .row_step = 1, .b = t->scores, .k = t->positions};
        const struct upcoming nothing = {.count = 0};
        float keep[PANEL];
        bool all = true;

        t->table->softmax(t->scores, t->positions, t->lanes, t->scale, t->visible, t->max, t->sum, keep);
        for (unsigned i = 0; i < t->lanes; i++)
                all &= keep[i] == 1;
        if (!all)
                t->table->scale_rows(t->out, count, t->lanes, keep);
        gemm_rows(t, o, count, &nothing, t->out);
}

/* ---- absorbed ---------------------------------------------------------------------------------------------------- */

/* Consecutive lanes of one span: lane = query * heads + head. Groups of 32 or at last 16 lanes. */
struct lane_block {
        const struct attention_span *span;
        size_t first, lanes;
        size_t segments;
        float *q;     /* [group][width][lanes] */
        float *parts; /* [segments][part_floats] */
        size_t first_task, first_group;
};

struct absorbed {
        struct compute *c;
        const struct kv_layer *kv;
        unsigned heads;
        float scale;
        size_t ldq, ldo;
        struct lane_block *blocks;
        size_t count;
        size_t tasks, groups;                /* of all blocks */
        struct step queries, segments, ends; /* transpose queries; segments; merge and finish groups */
};

static size_t padded_lanes(size_t lanes) {
        return ceil_div(lanes, 16) * 16;
}

static unsigned group_lanes(const struct lane_block *b, size_t group) {
        return b->lanes - group * PANEL > 16 ? PANEL : 16;
}

static size_t group_count(const struct lane_block *b) {
        return ceil_div(b->lanes, PANEL);
}

/* The result of one group over one segment: O[rank][lanes], max[lanes], sum[lanes]. */
static size_t part_floats(const struct absorbed *a, size_t lanes) {
        return (a->kv->rank + 2) * padded_lanes(lanes);
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
        alignas(64) float latents[TILE_POSITIONS * KV_WIDTH_MAX];
};
static_assert(sizeof(struct absorbed_bench) <= SCRATCH_WORKER_BYTES, "the widest latents fit");

static void transpose_queries(const struct absorbed *a, const struct lane_block *b, size_t group) {
        const size_t width = a->kv->width;
        const unsigned lanes = group_lanes(b, group);
        float *to = b->q + group * PANEL * width;

        for (unsigned i = 0; i < lanes; i++) {
                size_t lane = group * PANEL + i, index = b->first + lane;
                const float *q = b->span->q + index / a->heads * a->ldq + index % a->heads * width;

                for (size_t w = 0; w < width; w++)
                        to[w * lanes + i] = lane < b->lanes ? q[w] : 0;
        }
}

static void absorbed_tile(const struct absorbed *a, const struct lane_block *b, size_t segment, size_t group,
    struct tile t, size_t at, const float *latents) {
        const struct kv_layer *kv = a->kv;
        float *part = part_at(a, b, segment, group);
        int32_t visible[PANEL];

        t.lanes = group_lanes(b, group);
        t.visible = visible;
        t.out = part;
        t.max = part + kv->rank * t.lanes;
        t.sum = t.max + t.lanes;
        for (unsigned i = 0; i < t.lanes; i++) {
                size_t lane = group * PANEL + i;

                visible[i] = (int32_t)t.positions; /* of lanes that are none */
                if (lane < b->lanes)
                        visible[i] = (int32_t)((int64_t)lane_position(a, b, lane) + 1 - (int64_t)at);
        }
        memset(t.scores, 0, t.positions * t.lanes * sizeof(float));
        tile_scores(&t, latents, kv->width, b->q + group * PANEL * kv->width, kv->width);
        tile_values(&t, latents, kv->width, kv->rank);
}

static void absorbed_segment(
    const struct absorbed *a, const struct lane_block *b, size_t segment, struct absorbed_bench *bench) {
        const struct kv_layer *kv = a->kv;
        const size_t first = segment * SEGMENT_POSITIONS, seen = lane_position(a, b, b->lanes - 1) + 1;
        const size_t end = first + SEGMENT_POSITIONS < seen ? first + SEGMENT_POSITIONS : seen;

        for (size_t g = 0; g < group_count(b); g++) {
                const unsigned lanes = group_lanes(b, g);
                float *part = part_at(a, b, segment, g);

                memset(part, 0, part_floats(a, lanes) * sizeof(float));
                for (unsigned i = 0; i < lanes; i++)
                        part[kv->rank * lanes + i] = -INFINITY;
        }
        for (size_t at = first, next; at < end; at = next) {
                const float *latents = bench->latents;
                struct tile t = {.table = a->c->table, .scale = a->scale, .scores = bench->scores};

                next = at + TILE_POSITIONS < end ? at + TILE_POSITIONS : end;
                t.positions = next - at;
                if (kv->type == KV_F32 && at % kv->block_tokens + t.positions <= kv->block_tokens)
                        latents = (const float *)kv->base + kv_row(kv, b->span->blocks, at);
                else
                        kv_read_rows(a->c, kv, b->span->blocks, at, t.positions, bench->latents);
                for (size_t g = 0; g < group_count(b); g++) {
                        t.upcoming = (struct upcoming){kv, b->span->blocks, next,
                            g > 0                         ? 0
                            : end - next < TILE_POSITIONS ? end - next
                                                          : TILE_POSITIONS};
                        absorbed_tile(a, b, segment, g, t, at, latents);
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

/* The blocks that a group or a task of the flat lists belongs to. */
static const struct lane_block *block_of_group(const struct absorbed *a, size_t group) {
        return &a->blocks[entry_of(&a->blocks->first_group, sizeof(*a->blocks), a->count, group)];
}

static const struct lane_block *block_of_task(const struct absorbed *a, size_t task) {
        return &a->blocks[entry_of(&a->blocks->first_task, sizeof(*a->blocks), a->count, task)];
}

static void absorbed_task(void *context, unsigned worker, unsigned workers) {
        struct absorbed *a = context;
        struct workers *all = a->c->workers;
        const struct lane_block *b;

        for (size_t i; step_take(&a->queries, &i); step_done(all, &a->queries)) {
                b = block_of_group(a, i);
                transpose_queries(a, b, i - b->first_group);
        }
        step_wait(all, &a->queries);
        for (size_t i; step_take(&a->segments, &i); step_done(all, &a->segments)) {
                b = block_of_task(a, i);
                absorbed_segment(a, b, i - b->first_task, scratch_worker(a->c, worker));
        }
        step_wait(all, &a->segments);
        for (size_t i; step_take(&a->ends, &i);) {
                b = block_of_group(a, i);
                absorbed_merge(a, b, i - b->first_group);
        }
}

/* Take lanes [lane, ...) of a span as the next block. Returns how many, 0 when the scratch left holds none. */
static size_t add_block(struct absorbed *a, const struct attention_span *span, size_t lane) {
        struct lane_block *b = &a->blocks[a->count];
        const size_t all = span->count * a->heads;
        size_t part_bytes, q_bytes;

        *b = (struct lane_block){.span = span, .first = lane, .first_task = a->tasks, .first_group = a->groups};
        b->lanes = all - lane < BLOCK_LANES ? all - lane : BLOCK_LANES;
        for (;; b->lanes = PANEL) {
                b->segments = ceil_div(lane_position(a, b, b->lanes - 1) + 1, SEGMENT_POSITIONS);
                part_bytes = b->segments * part_floats(a, b->lanes) * sizeof(float);
                q_bytes = padded_lanes(b->lanes) * a->kv->width * sizeof(float);
                if (part_bytes + q_bytes + 128 <= scratch_left(a->c))
                        break;
                /* A context of a hundred thousand positions: fewer lanes at once, if that was all the scratch. */
                if (a->count > 0 || b->lanes <= PANEL)
                        return 0;
        }
        b->q = scratch_take(a->c, q_bytes);
        b->parts = scratch_take(a->c, part_bytes);
        a->count++;
        a->tasks += b->segments;
        a->groups += group_count(b);
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
                a.count = a.tasks = a.groups = 0;
                while (span < count && a.count < most) {
                        size_t took;

                        if (lane == spans[span].count * heads) {
                                span++;
                                lane = 0;
                                continue;
                        }
                        took = add_block(&a, &spans[span], lane);
                        if (took == 0)
                                break;
                        lane += took;
                }
                if (a.count == 0) {
                        assert(span == count); /* else a context beyond the scratch: kernels.h says how long */
                        return;
                }
                step_begin(&a.queries, a.groups);
                step_begin(&a.segments, a.tasks);
                step_begin(&a.ends, a.groups);
                workers_share(c->workers, absorbed_task, &a);
        }
}
