/* experts.c - the routed experts that live in this process. */
#include "model/core.h"
#include <errno.h>

/* Outputs of all chosen experts are kept until they are summed; more tokens than fit are done in pieces. */
#define OUTPUT_BYTES ((size_t)256 << 20)
/* Below so many floats summing is cheaper than waking the workers. */
#define SUM_ALONE 32768
/* A worker sums so many columns of a token at once. */
#define SUM_COLUMNS 2048

struct piece {
        const struct model *m;
        const float *weights; /* [tokens][top_k] */
        size_t tokens;
        uint32_t *first;           /* [experts + 1]: where each expert's rows begin */
        uint32_t *rows;            /* [tokens * top_k]: token of each output row, grouped by expert */
        uint32_t *slots;           /* [tokens * top_k]: output row of a token's k-th expert */
        struct expert_call *calls; /* [experts] */
        float *outputs;            /* [tokens * top_k][hidden] */
        float *out;                /* [tokens][hidden] */
        _Atomic size_t next;       /* part of the sums that nobody has taken yet */
};

static void take_memory(struct piece *p, struct workspace *w, size_t tokens) {
        const struct model_config *c = &p->m->config;
        const size_t n = tokens * c->top_k;

        p->first = workspace_take(w, c->experts + 1, sizeof(*p->first));
        p->rows = workspace_take(w, n, sizeof(*p->rows));
        p->slots = workspace_take(w, n, sizeof(*p->slots));
        p->calls = workspace_take(w, c->experts, sizeof(*p->calls));
        p->outputs = workspace_take(w, n * c->hidden, sizeof(*p->outputs));
}

/* A counting sort of (token, k) by expert. */
static void group_by_expert(struct piece *p, const uint32_t *ids) {
        const struct model_config *c = &p->m->config;
        const size_t n = p->tokens * c->top_k;

        memset(p->first, 0, (c->experts + 1) * sizeof(*p->first));
        for (size_t i = 0; i < n; i++)
                p->first[ids[i] + 1]++;
        for (uint32_t e = 0; e < c->experts; e++)
                p->first[e + 1] += p->first[e];
        for (size_t i = 0; i < n; i++) {
                uint32_t at = p->first[ids[i]]++;

                p->rows[at] = (uint32_t)(i / c->top_k);
                p->slots[i] = at;
        }
        memmove(p->first + 1, p->first, c->experts * sizeof(*p->first));
        p->first[0] = 0;
}

static size_t make_calls(struct piece *p, const struct mlp *experts) {
        const struct model_config *c = &p->m->config;
        size_t count = 0;

        for (uint32_t e = 0; e < c->experts; e++)
                if (p->first[e + 1] > p->first[e])
                        p->calls[count++] = (struct expert_call){.expert = &experts[e],
                            .rows = p->rows + p->first[e],
                            .m = p->first[e + 1] - p->first[e],
                            .y = p->outputs + (size_t)p->first[e] * c->hidden};
        return count;
}

static void sum_part(const struct piece *p, size_t token, size_t from, size_t to) {
        const struct model_config *c = &p->m->config;
        float *out = p->out + token * c->hidden;

        for (size_t i = token * c->top_k; i < (token + 1) * c->top_k; i++) {
                const float *y = p->outputs + (size_t)p->slots[i] * c->hidden, weight = p->weights[i];

                for (size_t j = from; j < to; j++)
                        out[j] += weight * y[j];
        }
}

static void sum_task(void *context, unsigned worker, unsigned workers) {
        struct piece *p = context;
        const size_t hidden = p->m->config.hidden, parts = (hidden + SUM_COLUMNS - 1) / SUM_COLUMNS;

        for (size_t i; (i = atomic_fetch_add_explicit(&p->next, 1, memory_order_relaxed)) < p->tokens * parts;) {
                const size_t from = i % parts * SUM_COLUMNS;

                sum_part(p, i / parts, from, hidden - from < SUM_COLUMNS ? hidden : from + SUM_COLUMNS);
        }
}

static void run_piece(struct piece *p, const struct mlp *experts, const float *x, const uint32_t *ids) {
        struct compute *compute = p->m->options.compute;
        const struct model_config *c = &p->m->config;
        size_t count;

        group_by_expert(p, ids);
        count = make_calls(p, experts);
        experts_run(compute, p->calls, count, x, c->hidden, c->hidden);
        atomic_store_explicit(&p->next, 0, memory_order_relaxed);
        if (p->tokens * c->top_k * c->hidden < SUM_ALONE)
                sum_task(p, 0, 1);
        else
                compute_share(compute, sum_task, p);
}

int experts_run_here(void *context, uint32_t layer, const float *x, const uint32_t *ids, const float *weights,
    size_t tokens, float *out, void (*overlap)(void *overlap_context), void *overlap_context) {
        struct model *m = context;
        const struct model_config *c = &m->config;
        const size_t fit = OUTPUT_BYTES / ((size_t)c->top_k * c->hidden * sizeof(float));
        const size_t most = fit == 0 ? 1 : fit < tokens ? fit : tokens;
        struct piece p = {.m = m};

        if (overlap)
                overlap(overlap_context);
        workspace_measure(&m->experts_work);
        take_memory(&p, &m->experts_work, most);
        if (workspace_begin(&m->experts_work) < 0)
                return -ENOMEM;
        take_memory(&p, &m->experts_work, most);
        for (size_t t = 0; t < tokens; t += p.tokens) {
                p.tokens = tokens - t < most ? tokens - t : most;
                p.weights = weights + t * c->top_k;
                p.out = out + t * c->hidden;
                run_piece(&p, m->layers[layer].experts, x + t * c->hidden, ids + t * c->top_k);
        }
        return 0;
}

const struct mlp *model_expert(struct model *m, uint32_t layer, uint32_t expert) {
        const struct layer *l = &m->layers[layer];

        return l->moe && l->experts[expert].width ? &l->experts[expert] : NULL;
}

bool model_experts_take_int8(const struct model *m, uint32_t layer) {
        return m->layers[layer].experts_take_int8;
}
