/* moe.c - the mixture of experts of one layer: gate, routed experts wherever they live, shared experts.
 *
 * The sum of a token runs over its experts in the gate's order, then the shared experts are added: the same bits for any
 * batch, any number of threads and any number of ranks. */
#include "model/internal.h"
#include <errno.h>

/* ---- local experts ---------------------------------------------------------------------------------------------------------- */

struct combine {
        const float *outputs, *weights;
        const uint32_t *slots;
        float *out;
        size_t tokens, hidden;
        uint32_t top_k;
};

static void combine_rows(void *context, unsigned worker, unsigned workers) {
        const struct combine *c = context;
        size_t begin = c->tokens * worker / workers, end = c->tokens * (worker + 1) / workers;

        for (size_t t = begin; t < end; t++)
                for (uint32_t k = 0; k < c->top_k; k++) {
                        const float *from = c->outputs + c->slots[t * c->top_k + k] * c->hidden;
                        float *to = c->out + t * c->hidden, weight = c->weights[t * c->top_k + k];

                        for (size_t i = 0; i < c->hidden; i++)
                                to[i] += weight * from[i];
                }
}

/* All experts are held here: sort (token, choice) by expert, run each over its rows, add up per token. */
static int run_local(void *context, uint32_t layer, const float *x, const uint32_t *ids, const float *weights,
    size_t tokens, float *out, void (*overlap)(void *), void *overlap_context) {
        struct model *m = context;
        const struct model_config *c = &m->config;
        const struct layer *l = layer < c->layers ? &m->layers[layer] : &m->mtp.layer;
        struct workspace *w = &m->work;
        uint32_t begin[MODEL_EXPERTS_MAX + 1], used = 0;
        struct expert_call calls[MODEL_EXPERTS_MAX];
        struct combine sum = {w->routed, weights, w->slots, out, tokens, c->hidden, c->top_k};

        if (overlap)
                overlap(overlap_context);
        memset(begin, 0, (c->experts + 1) * sizeof(*begin));
        for (size_t i = 0; i < tokens * c->top_k; i++)
                begin[ids[i] + 1]++;
        for (uint32_t e = 0; e < c->experts; e++)
                begin[e + 1] += begin[e];
        for (uint32_t e = 0; e < c->experts; e++)
                if (begin[e + 1] > begin[e])
                        calls[used++] = (struct expert_call){.expert = &l->experts[e],
                            .rows = w->expert_rows + begin[e],
                            .m = begin[e + 1] - begin[e],
                            .y = w->routed + (size_t)begin[e] * c->hidden};
        for (size_t i = 0; i < tokens * c->top_k; i++) {
                uint32_t slot = begin[ids[i]]++;

                w->slots[i] = slot;
                w->expert_rows[slot] = (uint32_t)(i / c->top_k);
        }
        experts_run(m->compute, calls, used, x, c->hidden, c->hidden);
        compute_run(m->compute, combine_rows, &sum);
        return 0;
}

void model_local_experts(struct model *m, uint32_t layer, const struct expert_call *calls, size_t count, const float *x,
    size_t ldx, size_t ldy) {
        (void)layer;
        experts_run(m->compute, calls, count, x, ldx, ldy);
}

const struct mlp *model_expert(struct model *m, uint32_t layer, uint32_t expert) {
        const struct layer *l = layer < m->config.layers ? &m->layers[layer] : &m->mtp.layer;

        return l->moe && expert < m->config.experts && l->experts[expert].width ? &l->experts[expert] : NULL;
}

void model_set_experts(struct model *m, const struct experts_interface *experts) {
        m->experts = experts ? *experts : (struct experts_interface){.run = run_local, .context = m};
}

/* ---- the layer ------------------------------------------------------------------------------------------------------------------ */

struct shared {
        struct model *m;
        const struct layer *l;
        size_t rows;
};

static void run_shared(void *context) {
        struct shared *s = context;
        size_t d = s->m->config.hidden;

        if (s->l->has_shared && s->rows)
                mlp_run(s->m->compute, &s->l->dense, s->m->work.h, d, s->rows, s->m->work.mlp, d);
}

static void round_if_bf16(struct model *m, float *x, size_t rows, size_t n) {
        if (compute_activation(m->compute) == ACTIVATION_BF16)
                round_bf16(m->compute, x, n, rows, n);
}

/* x += MoE(h) for the normed rows in work.h. */
int moe_forward(struct model *m, uint32_t index, const struct layer *l, size_t rows, float *x) {
        const struct model_config *c = &m->config;
        struct workspace *w = &m->work;
        struct shared shared = {m, l, rows};
        int r;

        linear_run(m->compute, &l->gate, w->h, c->hidden, rows, w->router, c->experts);
        for (size_t t = 0; t < rows; t++)
                gate_choose(c, w->router + t * c->experts, l->gate_bias, w->expert_ids + t * c->top_k,
                    w->expert_weights + t * c->top_k);
        memset(w->z, 0, rows * c->hidden * sizeof(float));
        r = m->experts.run(
            m->experts.context, index, w->h, w->expert_ids, w->expert_weights, rows, w->z, run_shared, &shared);
        if (r < 0)
                return r;
        if (l->has_shared) {
                if (m->shard.tp_size > 1) {
                        r = m->reduce.all_reduce(m->reduce.context, w->mlp, rows * c->hidden);
                        if (r < 0)
                                return r;
                }
                add_rows(m->compute, w->mlp, c->hidden, rows, c->hidden, w->z, c->hidden);
        }
        round_if_bf16(m, w->z, rows, c->hidden);
        add_rows(m->compute, w->z, c->hidden, rows, c->hidden, x, c->hidden);
        return 0;
}
