/* naive.c - attention with keys and values expanded from the latents: for prefill.
 *
 * A slab of queries walks over the context in chunks of tiles. Of each chunk the latents are read, expanded by kv_b into
 * keys and values per head, and used by all heads and groups of queries of the slab. */
#include "kernels/attention.h"
#include "kernels/stage.h"
#include <assert.h>
#include <math.h>
#include <string.h>

/* More positions at once gain nothing, and their keys and values leave the caches. */
#define CHUNK_POSITIONS_MAX 512
/* Latents are read by so many rows at a time. */
#define READ_POSITIONS 16

struct naive {
        struct compute *c;
        const struct kv_layer *kv;
        const struct attention_dims *dims;
        const struct attention_span *span;
        float scale;
        size_t ldq, ldo;

        /* The slab: queries [query, query + queries) of the span, in groups of 32 lanes per head. */
        size_t query, queries, groups;
        float *q;     /* [group][head][nope + rope][32] */
        float *state; /* [group][head][v + 2][32]: O, max, sum */
        bool first;   /* this chunk is the slab's first: state and q are made */

        /* The chunk. */
        size_t position, positions;
        float *latents;  /* [positions][width] */
        float *expanded; /* head h's [position][nope | v] at h * head_stride, rows position_stride apart */
        size_t head_stride, position_stride;
        struct stage expand;
        struct step read, tasks;
};

static unsigned naive_lanes(const struct naive *n, size_t group) {
        return n->queries - group * PANEL > 16 ? PANEL : 16;
}

static size_t naive_position(const struct naive *n, size_t lane) { /* of a lane of the slab */
        return n->span->first + n->query + lane;
}

static void naive_begin(const struct naive *n, size_t group, size_t head, float *q, float *state) {
        const size_t width = n->dims->nope + n->dims->rope;
        const unsigned lanes = naive_lanes(n, group);

        for (unsigned i = 0; i < lanes; i++) {
                const size_t lane = group * PANEL + i;
                const float *from = n->span->q + (n->query + lane) * n->ldq + head * width;

                for (size_t w = 0; w < width; w++)
                        q[w * lanes + i] = lane < n->queries ? from[w] : 0;
        }
        memset(state, 0, (n->dims->v + 2) * lanes * sizeof(float));
        for (unsigned i = 0; i < lanes; i++)
                state[n->dims->v * lanes + i] = -INFINITY;
}

static void naive_end(const struct naive *n, size_t group, size_t head, float *state) {
        const size_t v = n->dims->v;
        const unsigned lanes = naive_lanes(n, group);

        n->c->table->finish(state, v, lanes, state + (v + 1) * lanes);
        for (unsigned i = 0; i < lanes && group * PANEL + i < n->queries; i++) {
                float *out = n->span->out + (n->query + group * PANEL + i) * n->ldo + head * v;

                for (size_t d = 0; d < v; d++)
                        out[d] = state[d * lanes + i];
        }
}

static void naive_group(const struct naive *n, size_t group, size_t head, float *scores) {
        const struct attention_dims *d = n->dims;
        const unsigned lanes = naive_lanes(n, group);
        const size_t slot = group * d->heads + head, end = n->position + n->positions;
        const size_t last_lane = group * PANEL + lanes < n->queries ? group * PANEL + lanes : n->queries;
        const size_t last = naive_position(n, last_lane - 1);
        float *q = n->q + slot * (d->nope + d->rope) * PANEL, *state = n->state + slot * (d->v + 2) * PANEL;
        int32_t visible[PANEL];

        if (n->first)
                naive_begin(n, group, head, q, state);
        if (last < n->position)
                return;
        for (size_t at = n->position; at < end && at <= last; at += TILE_POSITIONS) {
                const size_t most = last + 1 < end ? last + 1 - at : end - at, row = at - n->position;
                const float *keys = n->expanded + head * n->head_stride + row * n->position_stride;
                struct tile t = {n->c->table, lanes, most < TILE_POSITIONS ? most : TILE_POSITIONS, n->scale, visible,
                    scores, state, state + d->v * lanes, state + (d->v + 1) * lanes, {.count = 0}};

                for (unsigned i = 0; i < lanes; i++)
                        visible[i] = (int32_t)((int64_t)naive_position(n, group * PANEL + i) + 1 - (int64_t)at);
                memset(scores, 0, t.positions * lanes * sizeof(float));
                tile_scores(&t, keys, n->position_stride, q, d->nope);
                tile_scores(
                    &t, n->latents + row * n->kv->width + n->kv->rank, n->kv->width, q + d->nope * lanes, d->rope);
                tile_values(&t, keys + d->nope, n->position_stride, d->v);
        }
        if (last < end)
                naive_end(n, group, head, state);
}

static void naive_read(const struct naive *n, size_t piece) {
        const size_t at = piece * READ_POSITIONS, left = n->positions - at;

        kv_read_rows(n->c, n->kv, n->span->blocks, n->position + at, left < READ_POSITIONS ? left : READ_POSITIONS,
            n->latents + at * n->kv->width);
}

static void naive_task(void *context, unsigned worker, unsigned workers) {
        struct naive *n = context;
        struct workers *all = n->c->workers;

        for (size_t i; step_take(&n->read, &i); step_done(all, &n->read))
                naive_read(n, i);
        step_wait(all, &n->read);
        stage_work(n->c, &n->expand, worker);
        step_wait(all, &n->expand.tasks);
        /* Heads outermost: neighbours in the list share keys and values. */
        for (size_t i; step_take(&n->tasks, &i);)
                naive_group(n, i % n->groups, i / n->groups, scratch_worker(n->c, worker));
}

/* A whole number of panels of a linear as a linear. */
static struct linear linear_slice(const struct linear *l, size_t first_panel, size_t n) {
        struct linear s = *l;

        s.n = n;
        s.panels = ceil_div(n, PANEL);
        s.packed = linear_panel(l, first_panel, 0);
        if (l->type == WEIGHT_FP8)
                s.scales = linear_scales(l, first_panel, 0);
        if (is_int8(l->type)) {
                s.scales = l->scales + first_panel * PANEL;
                s.bias = l->bias + first_panel * PANEL;
                s.sums = l->sums + first_panel * PANEL;
        }
        return s;
}

/* Where kv_b's results go: keys and values of a head together and rows a few cache lines more than a power of two apart,
 * so that a column of them does not fall on few cache sets. Heads that do not fill panels lie as kv_b has them. */
static void naive_layout(struct naive *n, const struct linear *kv_b, size_t chunk) {
        const struct attention_dims *d = n->dims;
        const size_t head = d->nope + d->v;

        if (head % PANEL == 0) {
                n->position_stride = head + 16;
                n->head_stride = chunk * n->position_stride;
        } else {
                n->position_stride = kv_b->n;
                n->head_stride = head;
        }
}

static void naive_prepare_expand(
    struct naive *n, const struct linear *kv_b, struct activations *a, struct part *parts) {
        const struct attention_dims *d = n->dims;
        const size_t head = d->nope + d->v;
        const bool sliced = head % PANEL == 0;

        *a = (struct activations){.x = n->latents,
            .ldx = n->kv->width,
            .rows = n->positions,
            .k = kv_b->k,
            .form = form_for(n->c, kv_b->type),
            .scale_inv = kv_b->input_scale_inv,
            .offset = kv_b->input_offset};
        activations_prepare(n->c, a);
        n->expand = (struct stage){.a = a, .a_count = 1, .parts = parts, .part_count = sliced ? d->heads : 1};
        for (size_t i = 0; i < n->expand.part_count; i++)
                parts[i] = (struct part){.l = sliced ? linear_slice(kv_b, i * head / PANEL, head) : *kv_b,
                    .a = a,
                    .epilogue = EPILOGUE_STORE,
                    .y = n->expanded + i * n->head_stride,
                    .ldy = n->position_stride};
        stage_prepare(n->c, &n->expand, true);
}

static void naive_span(struct naive *n, const struct linear *kv_b) {
        struct compute *c = n->c;
        const struct attention_dims *d = n->dims;
        const size_t per_query = d->heads * (d->nope + d->rope + d->v + 2) * sizeof(float);
        const size_t per_position = (kv_b->n + 16 * d->heads + n->kv->width) * sizeof(float) +
                                    activations_bytes(c, form_for(c, kv_b->type), kv_b->k, 1);
        size_t chunk = SCRATCH_SHARED_BYTES / 3 / per_position / TILE_POSITIONS * TILE_POSITIONS;
        size_t slab = SCRATCH_SHARED_BYTES / 2 / per_query / PANEL * PANEL;

        assert(chunk > 0 && slab > 0);
        if (chunk > CHUNK_POSITIONS_MAX)
                chunk = CHUNK_POSITIONS_MAX;
        for (n->query = 0; n->query < n->span->count; n->query += n->queries) {
                struct activations *a;
                struct part *parts;
                size_t end, mark;

                n->queries = n->span->count - n->query < slab ? n->span->count - n->query : slab;
                n->groups = ceil_div(n->queries, PANEL);
                naive_layout(n, kv_b, chunk);
                scratch_reset(c);
                a = scratch_take(c, sizeof(*a));
                parts = scratch_take(c, d->heads * sizeof(*parts));
                n->q = scratch_take(c, n->groups * PANEL * d->heads * (d->nope + d->rope) * sizeof(float));
                n->state = scratch_take(c, n->groups * PANEL * d->heads * (d->v + 2) * sizeof(float));
                n->latents = scratch_take(c, chunk * n->kv->width * sizeof(float));
                n->expanded = scratch_take(c, chunk * (kv_b->n + 16 * d->heads) * sizeof(float));
                mark = c->used;
                end = naive_position(n, n->queries - 1) + 1;
                for (n->position = 0; n->position < end; n->position += n->positions) {
                        c->used = mark;
                        n->first = n->position == 0;
                        n->positions = end - n->position < chunk ? end - n->position : chunk;
                        step_begin(&n->read, ceil_div(n->positions, READ_POSITIONS));
                        step_begin(&n->tasks, n->groups * d->heads);
                        naive_prepare_expand(n, kv_b, a, parts);
                        workers_share(c->workers, naive_task, n);
                }
        }
}

void attention_naive(struct compute *c, const struct kv_layer *kv, const struct linear *kv_b,
    const struct attention_dims *dims, float scale, const struct attention_span *spans, size_t count, size_t ldq,
    size_t ldo) {
        struct naive n = {.c = c, .kv = kv, .dims = dims, .scale = scale, .ldq = ldq, .ldo = ldo};

        assert(kv_b->n == (size_t)dims->heads * (dims->nope + dims->v) && kv_b->k == kv->rank);
        for (size_t i = 0; i < count; i++) {
                n.span = &spans[i];
                naive_span(&n, kv_b);
        }
}
