/* forward.c - one step through the layers.
 *
 * A step is rows of many sequences. Everything but attention treats rows alike; attention takes them per span, in the
 * naive or the absorbed form. No result depends on what else is in the step: kernels sum in fixed orders, routed experts are
 * added best first, then the shared one. With ACTIVATION_BF16 values are rounded where a bf16 engine would store them. */
#include "model/core.h"
#include <assert.h>
#include <errno.h>
#include <stdlib.h>

/* ---- workspace ------------------------------------------------------------------------------------------------------ */

void workspace_measure(struct workspace *w) {
        w->measuring = true;
        w->used = 0;
}

int workspace_begin(struct workspace *w) {
        size_t needed = w->used;

        w->measuring = false;
        w->used = 0;
        if (needed <= w->bytes)
                return 0;
        free(w->memory);
        w->bytes = 0;
        w->memory = aligned_alloc(64, needed);
        if (!w->memory)
                return -ENOMEM;
        w->bytes = needed;
        return 0;
}

void *workspace_take(struct workspace *w, size_t count, size_t size) {
        char *at = w->memory + w->used;

        w->used += (count * size + 63) / 64 * 64;
        if (w->measuring)
                return NULL;
        assert(w->used <= w->bytes);
        return at;
}

void workspace_free(struct workspace *w) {
        free(w->memory);
        *w = (struct workspace){0};
}

/* ---- the beginning of a step ---------------------------------------------------------------------------------------- */

static size_t q_width(const struct model *m) {
        return (size_t)m->heads * (m->config.nope + m->config.rope);
}

static size_t latent_width(const struct model *m) {
        return m->config.kv_rank + m->config.rope;
}

static bool mixed(const struct stepping *s) {
        return s->absorbed < s->rows;
}

static void lay_out(struct stepping *s, bool draft) {
        struct model *m = s->m;
        const struct model_config *c = &m->config;
        struct workspace *w = &m->work;
        const size_t n = s->rows, a = s->absorbed, f = sizeof(float);

        s->positions = workspace_take(w, n, sizeof(uint32_t));
        s->naive_spans = workspace_take(w, s->step->span_count, sizeof(struct attention_span));
        s->absorbed_spans = workspace_take(w, s->step->span_count, sizeof(struct attention_span));
        s->x = workspace_take(w, n * c->hidden, f);
        s->h = workspace_take(w, n * c->hidden, f);
        s->out = workspace_take(w, n * c->hidden, f);
        s->q_a = workspace_take(w, n * c->q_lora, f);
        s->q = workspace_take(w, n * q_width(m), f);
        s->kv = workspace_take(w, n * latent_width(m), f);
        s->attended = workspace_take(w, n * m->heads * c->v, f);
        s->gathered_q = workspace_take(w, mixed(s) ? a * q_width(m) : 0, f);
        s->latent_q = workspace_take(w, a * m->heads * latent_width(m), f);
        s->latent_out = workspace_take(w, a * m->heads * c->kv_rank, f);
        s->gathered_v = workspace_take(w, mixed(s) ? a * m->heads * c->v : 0, f);
        s->router = workspace_take(w, n * c->experts, f);
        s->weights = workspace_take(w, n * c->top_k, f);
        s->ids = workspace_take(w, n * c->top_k, sizeof(uint32_t));
        s->shared = workspace_take(w, c->experts ? n * c->hidden : 0, f);
        s->gate_scratch = workspace_take(w, compute_threads(m->options.compute) * gate_scratch_floats(c), f);
        s->head_in = workspace_take(w, s->step->logit_count * c->hidden, f);
        s->pair = workspace_take(w, draft ? n * 2 * c->hidden : 0, f);
}

static void place_rows(struct stepping *s) {
        const struct model *m = s->m;
        const struct model_config *c = &m->config;
        size_t row = 0, absorbed = 0;

        for (size_t i = 0; i < s->step->span_count; i++) {
                const struct model_span *p = &s->step->spans[i];
                const size_t rest = p->rows - p->naive;

                assert(p->naive <= p->rows && p->first + p->rows <= c->max_positions);
                for (uint32_t r = 0; r < p->rows; r++)
                        s->positions[row + r] = p->first + r;
                if (p->naive)
                        s->naive_spans[s->naive_count++] = (struct attention_span){.blocks = p->blocks,
                            .first = p->first,
                            .count = p->naive,
                            .q = s->q + row * q_width(m),
                            .out = s->attended + row * m->heads * c->v};
                if (rest)
                        s->absorbed_spans[s->absorbed_count++] = (struct attention_span){.blocks = p->blocks,
                            .first = p->first + p->naive,
                            .count = rest,
                            .q = s->latent_q + absorbed * m->heads * latent_width(m),
                            .out = s->latent_out + absorbed * m->heads * c->kv_rank};
                absorbed += rest;
                row += p->rows;
        }
        assert(row == s->rows);
}

int stepping_begin(struct stepping *s, struct model *m, const struct model_step *step, bool draft) {
        *s = (struct stepping){.m = m, .step = step, .rows = step->rows};
        for (size_t i = 0; i < step->span_count; i++)
                s->absorbed += step->spans[i].rows - step->spans[i].naive;
        workspace_measure(&m->work);
        lay_out(s, draft);
        if (workspace_begin(&m->work) < 0)
                return -ENOMEM;
        lay_out(s, draft);
        place_rows(s);
        return 0;
}

/* ---- small pieces --------------------------------------------------------------------------------------------------- */

void stepping_round(const struct stepping *s, float *x, size_t ld, size_t rows, size_t n) {
        struct compute *c = s->m->options.compute;

        if (compute_activation(c) == ACTIVATION_BF16)
                round_bf16(c, x, ld, rows, n);
}

void stepping_norm(struct stepping *s, const struct norm *norm, const float *x, size_t ldx, float *y, size_t ldy) {
        rmsnorm(
            s->m->options.compute, x, ldx, norm->weight, norm->bias, s->m->config.eps, s->rows, norm->width, y, ldy);
        stepping_round(s, y, ldy, s->rows, norm->width);
}

/* Over the tensor-parallel ranks. */
static int reduce(const struct model *m, float *data, size_t count) {
        if (m->options.shard.tp_size < 2 || count == 0)
                return 0;
        return m->reduce.all_reduce(m->reduce.context, data, count);
}

int stepping_embed(struct stepping *s, const struct weight_source *embed, float *to) {
        const struct model *m = s->m;
        const size_t hidden = m->config.hidden;
        int r;

        for (size_t i = 0; i < s->rows; i++) {
                uint32_t token = s->step->tokens[i];

                assert(token < m->config.vocab);
                if (token - m->vocab_first < m->vocab_rows)
                        weight_row(embed, token - m->vocab_first, to + i * hidden);
                else
                        memset(to + i * hidden, 0, hidden * sizeof(float));
        }
        r = reduce(m, to, s->rows * hidden);
        stepping_round(s, to, hidden, s->rows, hidden);
        return r;
}

int stepping_logits(struct stepping *s, const struct linear *head, const float *normed, float *logits) {
        const struct model *m = s->m;
        const size_t hidden = m->config.hidden, count = s->step->logit_count;

        if (count == 0)
                return 0;
        for (size_t i = 0; i < count; i++)
                memcpy(s->head_in + i * hidden, normed + s->step->logit_rows[i] * hidden, hidden * sizeof(float));
        if (m->options.shard.tp_size > 1)
                memset(logits, 0, count * m->config.vocab * sizeof(float));
        linear_run(m->options.compute, head, s->head_in, hidden, count, logits + m->vocab_first, m->config.vocab);
        stepping_round(s, logits, m->config.vocab, count, m->config.vocab);
        return reduce(m, logits, count * m->config.vocab);
}

/* ---- attention ------------------------------------------------------------------------------------------------------ */

/* Queries [nope | rope] per head, rotated; latents [normed | rotated key]. */
static void make_queries_and_latents(struct stepping *s, const struct layer *l) {
        struct model *m = s->m;
        const struct model_config *c = &m->config;
        struct compute *compute = m->options.compute;
        const bool lora = c->q_lora > 0;
        const struct linear_call calls[2] = {
            {.l = &l->kv_a, .y = s->kv, .ldy = latent_width(m)},
            {.l = lora ? &l->q_a : &l->q, .y = lora ? s->q_a : s->q, .ldy = lora ? c->q_lora : q_width(m)},
        };

        linear_run_many(compute, calls, 2, s->h, c->hidden, s->rows);
        stepping_round(s, s->kv, latent_width(m), s->rows, latent_width(m));
        if (lora) {
                stepping_round(s, s->q_a, c->q_lora, s->rows, c->q_lora);
                stepping_norm(s, &l->q_norm, s->q_a, c->q_lora, s->q_a, c->q_lora);
                linear_run(compute, &l->q, s->q_a, c->q_lora, s->rows, s->q, q_width(m));
        }
        stepping_round(s, s->q, q_width(m), s->rows, q_width(m));
        stepping_norm(s, &l->kv_norm, s->kv, latent_width(m), s->kv, latent_width(m));
        rope(compute, m->rope_table, c->rope / 2, s->positions, s->rows, s->kv + c->kv_rank, latent_width(m), 1, 0);
        rope(compute, m->rope_table, c->rope / 2, s->positions, s->rows, s->q + c->nope, q_width(m), m->heads,
            c->nope + c->rope);
        stepping_round(s, s->kv, latent_width(m), s->rows, latent_width(m));
        stepping_round(s, s->q, q_width(m), s->rows, q_width(m));
}

static void write_latents(struct stepping *s, const struct kv_layer *kv) {
        const float *from = s->kv;

        for (size_t i = 0; i < s->step->span_count; i++) {
                const struct model_span *p = &s->step->spans[i];

                kv_write(s->m->options.compute, kv, p->blocks, p->first, from, kv->width, p->rows);
                from += (size_t)p->rows * kv->width;
        }
}

/* Copy the rows of the absorbed form out of `all` or back into it; both have `width` floats in a row. */
enum direction { GATHER, SCATTER };

static void move_absorbed(const struct stepping *s, float *all, float *some, size_t width, enum direction direction) {
        for (size_t i = 0; i < s->step->span_count; i++) {
                const struct model_span *p = &s->step->spans[i];
                const size_t rest = p->rows - p->naive;
                float *at = all + p->naive * width;

                if (direction == GATHER)
                        memcpy(some, at, rest * width * sizeof(float));
                else
                        memcpy(at, some, rest * width * sizeof(float));
                all += p->rows * width;
                some += rest * width;
        }
}

static void attend_absorbed(struct stepping *s, const struct layer *l, const struct kv_layer *kv) {
        struct model *m = s->m;
        const struct model_config *c = &m->config;
        struct compute *compute = m->options.compute;
        const size_t head = c->nope + c->rope, width = latent_width(m);
        float *q = mixed(s) ? s->gathered_q : s->q, *v = mixed(s) ? s->gathered_v : s->attended;

        if (mixed(s))
                move_absorbed(s, s->q, q, q_width(m), GATHER);
        head_linear_run(compute, &l->absorb, q, q_width(m), head, s->absorbed, s->latent_q, m->heads * width, width);
        for (size_t i = 0; i < s->absorbed * m->heads; i++)
                memcpy(s->latent_q + i * width + c->kv_rank, q + i * head + c->nope, c->rope * sizeof(float));
        stepping_round(s, s->latent_q, m->heads * width, s->absorbed, m->heads * width);
        attention_absorbed(compute, kv, m->heads, c->softmax_scale, s->absorbed_spans, s->absorbed_count,
            m->heads * width, (size_t)m->heads * c->kv_rank);
        stepping_round(s, s->latent_out, (size_t)m->heads * c->kv_rank, s->absorbed, (size_t)m->heads * c->kv_rank);
        head_linear_run(compute, &l->expand, s->latent_out, (size_t)m->heads * c->kv_rank, c->kv_rank, s->absorbed, v,
            (size_t)m->heads * c->v, c->v);
        if (mixed(s))
                move_absorbed(s, s->attended, v, (size_t)m->heads * c->v, SCATTER);
}

/* Add `out` to the residual stream. */
static void add_out(struct stepping *s) {
        const size_t hidden = s->m->config.hidden;

        stepping_round(s, s->out, hidden, s->rows, hidden);
        add_rows(s->m->options.compute, s->out, hidden, s->rows, hidden, s->x, hidden);
        stepping_round(s, s->x, hidden, s->rows, hidden);
}

static int attend(struct stepping *s, const struct layer *l, const struct kv_layer *kv) {
        struct model *m = s->m;
        const struct model_config *c = &m->config;
        const struct attention_dims dims = {.heads = m->heads, .nope = c->nope, .rope = c->rope, .v = c->v};
        int r;

        stepping_norm(s, &l->input_norm, s->x, c->hidden, s->h, c->hidden);
        make_queries_and_latents(s, l);
        write_latents(s, kv);
        if (s->step->on_rows)
                s->step->on_rows(s->step->rows_context, s->layer);
        if (s->naive_count)
                attention_naive(m->options.compute, kv, &l->kv_b, &dims, c->softmax_scale, s->naive_spans,
                    s->naive_count, q_width(m), (size_t)m->heads * c->v);
        if (s->absorbed_count)
                attend_absorbed(s, l, kv);
        stepping_round(s, s->attended, (size_t)m->heads * c->v, s->rows, (size_t)m->heads * c->v);
        linear_run(m->options.compute, &l->o, s->attended, (size_t)m->heads * c->v, s->rows, s->out, c->hidden);
        r = reduce(m, s->out, s->rows * c->hidden);
        if (r == 0)
                add_out(s);
        return r;
}

/* ---- feed-forward --------------------------------------------------------------------------------------------------- */

/* Below so many experts times rows choosing is cheaper than waking the workers. */
#define GATE_ALONE 4096

static void choose_task(void *context, unsigned worker, unsigned workers) {
        struct stepping *s = context;
        const struct model_config *c = &s->m->config;

        for (size_t i; (i = atomic_fetch_add_explicit(&s->next_row, 1, memory_order_relaxed)) < s->rows;)
                gate_select(c, s->m->layers[s->layer].gate_bias, s->router + i * c->experts,
                    s->gate_scratch + worker * gate_scratch_floats(c), s->ids + i * c->top_k,
                    s->weights + i * c->top_k);
}

static void choose_experts(struct stepping *s, const struct layer *l) {
        struct compute *compute = s->m->options.compute;
        const struct model_config *c = &s->m->config;

        linear_run(compute, &l->gate, s->h, c->hidden, s->rows, s->router, c->experts);
        atomic_store_explicit(&s->next_row, 0, memory_order_relaxed);
        if (s->rows * c->experts < GATE_ALONE)
                choose_task(s, 0, 1);
        else
                compute_share(compute, choose_task, s);
}

static void run_shared(void *context) {
        struct stepping *s = context;
        const struct layer *l = &s->m->layers[s->layer];
        const size_t hidden = s->m->config.hidden;

        mlp_run(s->m->options.compute, &l->dense, s->h, hidden, s->rows, s->shared, hidden);
        stepping_round(s, s->shared, hidden, s->rows, hidden);
}

static int run_experts(struct stepping *s, const struct layer *l) {
        struct model *m = s->m;
        const size_t hidden = m->config.hidden, count = s->rows * hidden;
        int r;

        choose_experts(s, l);
        memset(s->out, 0, count * sizeof(float));
        r = m->experts.run(m->experts.context, s->layer, s->h, s->ids, s->weights, s->rows, s->out,
            l->has_shared ? run_shared : NULL, s);
        if (r < 0)
                return r;
        /* Either both sums are partial ones over the tensor-parallel ranks, or the shared experts' alone. */
        if (l->has_shared && !m->experts_cut)
                r = reduce(m, s->shared, count);
        if (r < 0)
                return r;
        stepping_round(s, s->out, hidden, s->rows, hidden);
        if (l->has_shared)
                add_rows(m->options.compute, s->shared, hidden, s->rows, hidden, s->out, hidden);
        return m->experts_cut ? reduce(m, s->out, count) : 0;
}

static int feed_forward(struct stepping *s, const struct layer *l) {
        struct model *m = s->m;
        const size_t hidden = m->config.hidden;
        int r;

        stepping_norm(s, &l->post_norm, s->x, hidden, s->h, hidden);
        if (l->moe)
                r = run_experts(s, l);
        else {
                mlp_run(m->options.compute, &l->dense, s->h, hidden, s->rows, s->out, hidden);
                r = reduce(m, s->out, s->rows * hidden);
        }
        if (r == 0)
                add_out(s);
        return r;
}

/* ---- the whole ------------------------------------------------------------------------------------------------------ */

int stepping_layer(struct stepping *s, struct kv_cache *kv, uint32_t layer) {
        const struct layer *l = &s->m->layers[layer];
        const struct kv_layer latents = kv_cache_layer(kv, layer);
        int r;

        s->layer = layer;
        r = attend(s, l, &latents);
        return r < 0 ? r : feed_forward(s, l);
}

int model_forward(struct model *m, struct kv_cache *kv, const struct model_step *step, float *logits, float *hidden) {
        struct stepping s;
        int r = stepping_begin(&s, m, step, false);

        if (r < 0)
                return r;
        r = stepping_embed(&s, &m->embed, s.x);
        for (uint32_t i = 0; r == 0 && i < m->config.layers; i++)
                r = stepping_layer(&s, kv, i);
        if (r < 0)
                return r;
        if (!hidden)
                hidden = s.h;
        stepping_norm(&s, &m->final_norm, s.x, m->config.hidden, hidden, m->config.hidden);
        return stepping_logits(&s, &m->head, hidden, logits);
}
