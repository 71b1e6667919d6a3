/* forward.c - the forward pass: written once for every weight format, over a flat ragged batch. */
#include "model/internal.h"
#include <errno.h>
#include <stdlib.h>
#include <sys/mman.h>

/* ---- memory of a step ---------------------------------------------------------------------------------------------------------- */

int workspace_reserve(struct model *m, size_t rows) {
        const struct model_config *c = &m->config;
        struct workspace *w = &m->work;
        size_t heads = m->heads, k = c->experts ? c->top_k : 1, experts = c->experts ? c->experts : 1, d = c->hidden;
        size_t width = c->kv_rank + c->rope;
        const struct {
                void **at;
                size_t elements;
        } parts[] = {{(void **)&w->x, d}, {(void **)&w->h, d}, {(void **)&w->q_a, c->q_lora ? c->q_lora : 1},
            {(void **)&w->q, heads * (c->nope + c->rope)}, {(void **)&w->kv, width},
            {(void **)&w->attended, heads * c->v}, {(void **)&w->mlp, d}, {(void **)&w->router, experts},
            {(void **)&w->expert_weights, k}, {(void **)&w->routed, k * d},
            {(void **)&w->absorbed_q, heads * (width + c->nope + c->rope)},
            {(void **)&w->latents, heads * (c->kv_rank + c->v)}, {(void **)&w->z, 2 * d}, {(void **)&w->positions, 1},
            {(void **)&w->expert_ids, k}, {(void **)&w->slots, k}, {(void **)&w->expert_rows, k}};
        size_t bytes = 0;
        char *memory;

        if (rows <= w->rows)
                return 0;
        rows = (rows + 15) / 16 * 16;
        for (size_t i = 0; i < sizeof(parts) / sizeof(*parts); i++)
                bytes += (rows * parts[i].elements * 4 + 63) / 64 * 64;
        memory = aligned_alloc(64, (bytes + 63) / 64 * 64);
        if (!memory)
                return -ENOMEM;
        free(w->memory);
        w->memory = memory;
        w->rows = rows;
        for (size_t i = 0; i < sizeof(parts) / sizeof(*parts); i++) {
                *parts[i].at = memory;
                memory += (rows * parts[i].elements * 4 + 63) / 64 * 64;
        }
        return 0;
}

static void round_if_bf16(struct model *m, float *x, size_t rows, size_t n) {
        if (compute_activation(m->compute) == ACTIVATION_BF16)
                round_bf16(m->compute, x, n, rows, n);
}

static void norm_rows(struct model *m, const struct norm *n, const float *x, size_t ldx, size_t rows, size_t width,
    float *y, size_t ldy) {
        rmsnorm(m->compute, x, ldx, n->weight, n->bias, m->config.eps, rows, width, y, ldy);
}

static int reduce(struct model *m, float *x, size_t count) {
        return m->shard.tp_size > 1 ? m->reduce.all_reduce(m->reduce.context, x, count) : 0;
}

/* ---- attention ----------------------------------------------------------------------------------------------------------------- */

/* The rows that take the naive form: straight from q to the heads' outputs. */
static void attend_naive(
    struct model *m, const struct layer *l, const struct kv_layer *kv, const struct model_step *s) {
        const struct model_config *c = &m->config;
        struct attention_dims dims = {m->heads, c->nope, c->rope, c->v};
        struct attention_span spans[64];
        size_t ldq = (size_t)m->heads * (c->nope + c->rope), ldo = (size_t)m->heads * c->v, row = 0, n = 0;

        for (size_t i = 0; i < s->span_count; i++) {
                const struct model_span *p = &s->spans[i];

                if (p->naive)
                        spans[n++] = (struct attention_span){
                            p->blocks, p->first, p->naive, m->work.q + row * ldq, m->work.attended + row * ldo};
                row += p->rows;
                if (n == 64 || (n && i + 1 == s->span_count)) {
                        attention_naive(m->compute, kv, &l->kv_b, &dims, c->softmax_scale, spans, n, ldq, ldo);
                        n = 0;
                }
        }
}

/* The other rows, gathered: q's halves through W_UK into the latent space, attention over latents, out through W_UV. */
static void attend_absorbed(
    struct model *m, const struct layer *l, const struct kv_layer *kv, const struct model_step *s) {
        const struct model_config *c = &m->config;
        struct workspace *w = &m->work;
        uint32_t heads = m->heads;
        size_t q_head = c->nope + c->rope, width = c->kv_rank + c->rope, ldq = heads * q_head, lda = heads * width;
        size_t ldu = (size_t)heads * c->kv_rank, ldo = (size_t)heads * c->v, row = 0, n = 0, count = 0;
        float *gathered = w->absorbed_q, *absorbed = gathered + w->rows * ldq;
        float *latents = w->latents, *expanded = latents + w->rows * ldu;
        struct attention_span *spans = malloc((s->span_count + 1) * sizeof(*spans));

        if (!spans)
                abort(); /* a few KB: nothing sensible can go on */
        for (size_t i = 0; i < s->span_count; i++) {
                const struct model_span *p = &s->spans[i];
                size_t rows = p->rows - p->naive;

                if (rows) {
                        memcpy(gathered + n * ldq, w->q + (row + p->naive) * ldq, rows * ldq * sizeof(float));
                        spans[count++] = (struct attention_span){
                            p->blocks, p->first + p->naive, rows, absorbed + n * lda, latents + n * ldu};
                        n += rows;
                }
                row += p->rows;
        }
        if (n) {
                head_linear_run(m->compute, &l->absorb, gathered, ldq, q_head, n, absorbed, lda, width);
                for (size_t t = 0; t < n; t++)
                        for (uint32_t h = 0; h < heads; h++)
                                memcpy(absorbed + t * lda + h * width + c->kv_rank,
                                    gathered + t * ldq + h * q_head + c->nope, c->rope * sizeof(float));
                attention_absorbed(m->compute, kv, heads, c->softmax_scale, spans, count, lda, ldu);
                head_linear_run(m->compute, &l->expand, latents, ldu, c->kv_rank, n, expanded, ldo, c->v);
        }
        row = n = 0;
        for (size_t i = 0; i < s->span_count; i++) {
                size_t rows = s->spans[i].rows - s->spans[i].naive;

                memcpy(w->attended + (row + s->spans[i].naive) * ldo, expanded + n * ldo, rows * ldo * sizeof(float));
                n += rows;
                row += s->spans[i].rows;
        }
        free(spans);
}

static int attention(struct model *m, uint32_t index, const struct layer *l, struct kv_cache *cache,
    const struct model_step *s, float *x) {
        const struct model_config *c = &m->config;
        struct workspace *w = &m->work;
        struct kv_layer kv = kv_cache_layer(cache, index);
        size_t rows = s->rows, d = c->hidden, q_head = c->nope + c->rope, ldq = m->heads * q_head,
               width = c->kv_rank + c->rope;
        size_t row = 0;
        int r;

        norm_rows(m, &l->input, x, d, rows, d, w->h, d);
        round_if_bf16(m, w->h, rows, d);
        if (c->q_lora) {
                struct linear_call calls[] = {{&l->q_a, w->q_a, c->q_lora}, {&l->kv_a, w->kv, width}};

                linear_run_many(m->compute, calls, 2, w->h, d, rows);
                round_if_bf16(m, w->q_a, rows, c->q_lora);
                norm_rows(m, &l->q_a_norm, w->q_a, c->q_lora, rows, c->q_lora, w->q_a, c->q_lora);
                round_if_bf16(m, w->q_a, rows, c->q_lora);
                linear_run(m->compute, &l->q_b, w->q_a, c->q_lora, rows, w->q, ldq);
        } else {
                struct linear_call calls[] = {{&l->q_b, w->q, ldq}, {&l->kv_a, w->kv, width}};

                linear_run_many(m->compute, calls, 2, w->h, d, rows);
        }
        rope(m->compute, m->rope, c->rope / 2, w->positions, rows, w->q + c->nope, ldq, m->heads, q_head);
        round_if_bf16(m, w->q, rows, ldq);
        round_if_bf16(m, w->kv, rows, width);
        norm_rows(m, &l->kv_a_norm, w->kv, width, rows, c->kv_rank, w->kv, width);
        rope(m->compute, m->rope, c->rope / 2, w->positions, rows, w->kv + c->kv_rank, width, 1, c->rope);
        round_if_bf16(m, w->kv, rows, width);
        for (size_t i = 0; i < s->span_count; i++) {
                kv_write(m->compute, &kv, s->spans[i].blocks, s->spans[i].first, w->kv + row * width, width,
                    s->spans[i].rows);
                row += s->spans[i].rows;
        }
        attend_naive(m, l, &kv, s);
        attend_absorbed(m, l, &kv, s);
        round_if_bf16(m, w->attended, rows, (size_t)m->heads * c->v);
        linear_run(m->compute, &l->o, w->attended, (size_t)m->heads * c->v, rows, w->z, d);
        r = reduce(m, w->z, rows * d);
        if (r < 0)
                return r;
        round_if_bf16(m, w->z, rows, d);
        add_rows(m->compute, w->z, d, rows, d, x, d);
        round_if_bf16(m, x, rows, d);
        return 0;
}

static int run_layer(struct model *m, uint32_t index, const struct layer *l, struct kv_cache *cache,
    const struct model_step *s, float *x) {
        size_t rows = s->rows, d = m->config.hidden;
        int r = attention(m, index, l, cache, s, x);

        if (r < 0)
                return r;
        norm_rows(m, &l->post, x, d, rows, d, m->work.h, d);
        round_if_bf16(m, m->work.h, rows, d);
        if (l->moe)
                r = moe_forward(m, index, l, rows, x);
        else {
                mlp_run(m->compute, &l->dense, m->work.h, d, rows, m->work.z, d);
                r = reduce(m, m->work.z, rows * d);
                if (r == 0) {
                        round_if_bf16(m, m->work.z, rows, d);
                        add_rows(m->compute, m->work.z, d, rows, d, x, d);
                }
        }
        if (r == 0)
                round_if_bf16(m, x, rows, d);
        return r;
}

/* ---- a step -------------------------------------------------------------------------------------------------------------------- */

static void fill_positions(struct model *m, const struct model_step *s) {
        size_t row = 0;

        for (size_t i = 0; i < s->span_count; i++)
                for (uint32_t k = 0; k < s->spans[i].rows; k++)
                        m->work.positions[row++] = s->spans[i].first + k;
}

/* Gather the wanted rows and run the head over them. */
static void run_head(
    struct model *m, const struct linear *head, const struct model_step *s, const float *hidden, float *logits) {
        size_t d = m->config.hidden;
        float *gathered = m->work.z; /* as many rows as the step has */

        for (size_t i = 0; i < s->logit_count; i++)
                memcpy(gathered + i * d, hidden + s->logit_rows[i] * d, d * sizeof(float));
        linear_run(m->compute, head, gathered, d, s->logit_count, logits, m->config.vocab);
}

int model_forward(struct model *m, struct kv_cache *kv, const struct model_step *s, float *logits, float *hidden) {
        size_t d = m->config.hidden;
        float *x;
        int r = workspace_reserve(m, s->rows ? s->rows : 1);

        if (r < 0)
                return r;
        x = m->work.x;
        fill_positions(m, s);
        for (size_t i = 0; i < s->rows; i++)
                weight_row(&m->embed, s->tokens[i], x + i * d);
        round_if_bf16(m, x, s->rows, d);
        for (uint32_t i = 0; i < m->config.layers; i++) {
                r = run_layer(m, i, &m->layers[i], kv, s, x);
                if (r < 0)
                        return r;
        }
        norm_rows(m, &m->final_norm, x, d, s->rows, d, m->work.h, d);
        round_if_bf16(m, m->work.h, s->rows, d);
        if (hidden)
                memcpy(hidden, m->work.h, s->rows * d * sizeof(float));
        run_head(m, &m->head, s, m->work.h, logits);
        return 0;
}

int model_draft(struct model *m, struct kv_cache *kv, const struct model_step *s, const float *hidden, float *logits,
    float *hidden_out) {
        size_t d = m->config.hidden;
        const struct mtp *t = &m->mtp;
        float *pair;
        int r = workspace_reserve(m, s->rows ? s->rows : 1);

        if (r < 0)
                return r;
        pair = m->work.z;
        fill_positions(m, s);
        for (size_t i = 0; i < s->rows; i++) {
                /* vLLM zeroes the embedding at position 0: nothing comes before it there. */
                if (m->work.positions[i] == 0)
                        memset(pair + 2 * i * d, 0, d * sizeof(float));
                else
                        weight_row(&t->embed, s->tokens[i], pair + 2 * i * d);
        }
        norm_rows(m, &t->enorm, pair, 2 * d, s->rows, d, pair, 2 * d);
        norm_rows(m, &t->hnorm, hidden, d, s->rows, d, pair + d, 2 * d);
        round_if_bf16(m, pair, s->rows, 2 * d);
        linear_run(m->compute, &t->eh_proj, pair, 2 * d, s->rows, m->work.x, d);
        round_if_bf16(m, m->work.x, s->rows, d);
        r = run_layer(m, m->config.layers, &t->layer, kv, s, m->work.x);
        if (r < 0)
                return r;
        norm_rows(m, &t->head_norm, m->work.x, d, s->rows, d, m->work.h, d);
        round_if_bf16(m, m->work.h, s->rows, d);
        if (hidden_out)
                memcpy(hidden_out, m->work.h, s->rows * d * sizeof(float));
        run_head(m, &t->head, s, m->work.h, logits);
        return 0;
}

/* ---- making one ------------------------------------------------------------------------------------------------------------------ */

static int check_shard(const struct model_config *c, const struct model_shard *s, struct error *e) {
        if (s->tp_rank >= s->tp_size || c->heads % s->tp_size)
                return error_set(e, -EINVAL, "tensor-parallel size %u does not divide the model's %u attention heads",
                    s->tp_size, c->heads);
        if (s->ep_size > 1 && (s->ep_rank >= s->ep_size || s->ep_size > c->experts))
                return error_set(e, -EINVAL, "expert-parallel rank %u of %u does not fit %u experts", s->ep_rank,
                    s->ep_size, c->experts);
        return 0;
}

int model_load(const struct model_options *options, struct model **ret_model, struct error *e) {
        struct model *m = calloc(1, sizeof(*m));
        int r;

        if (!m)
                return error_set(e, -ENOMEM, "out of memory");
        m->compute = options->compute;
        m->shard = options->shard;
        if (m->shard.tp_size == 0)
                m->shard.tp_size = 1;
        model_set_experts(m, NULL);
        r = model_config_read(options->dir, &m->config, e);
        if (r == 0)
                r = check_shard(&m->config, &m->shard, e);
        if (r == 0 && options->load_mtp && m->config.mtp_layers == 0)
                r = error_set(e, -EINVAL,
                    "%s: config.json has no num_nextn_predict_layers, there is no module to draft with", options->dir);
        if (r == 0) {
                m->heads = m->config.heads / m->shard.tp_size;
                r = model_load_weights(m, options, e);
        }
        if (r == 0) {
                m->rope = rope_table_new(&m->config, m->config.max_positions);
                if (!m->rope)
                        r = error_set(e, -ENOMEM, "out of memory");
        }
        if (r < 0) {
                model_free(m);
                return r;
        }
        *ret_model = m;
        return 0;
}

void model_free(struct model *m) {
        if (!m)
                return;
        for (uint32_t i = 0; m->layers && i < m->config.layers; i++)
                free(m->layers[i].experts);
        free(m->mtp.layer.experts);
        free(m->layers);
        free(m->rope);
        free(m->work.memory);
        if (m->memory)
                munmap(m->memory, m->mapped);
        checkpoint_close(m->checkpoint);
        free(m);
}

const struct model_config *model_config(const struct model *m) {
        return &m->config;
}

size_t model_bytes(const struct model *m) {
        return m->bytes;
}

const char *model_digest(const struct model *m) {
        return m->digest;
}

void model_set_reduce(struct model *m, const struct reduce_interface *reduce_by) {
        m->reduce = *reduce_by;
}

/* ---- the cache -------------------------------------------------------------------------------------------------------------------- */

static uint32_t cache_layers(const struct model *m) {
        return m->config.layers + m->mtp.present;
}

size_t kv_cache_block_bytes(const struct model *m, enum kv_type type, uint32_t block_tokens) {
        return (size_t)cache_layers(m) * block_tokens * (m->config.kv_rank + m->config.rope) * kv_type_bytes(type);
}

int kv_cache_new(const struct model *m, enum kv_type type, uint32_t block_tokens, uint32_t blocks,
    struct kv_cache *ret_cache, struct error *e) {
        struct kv_cache kv = {.type = type,
            .blocks = blocks,
            .block_tokens = block_tokens,
            .layers = cache_layers(m),
            .width = m->config.kv_rank + m->config.rope,
            .rank = m->config.kv_rank,
            .block_bytes = kv_cache_block_bytes(m, type, block_tokens)};

        if (__builtin_mul_overflow(kv.block_bytes, (size_t)blocks, &kv.bytes))
                return error_set(e, -ENOMEM, "a KV cache of %u blocks is beyond any memory", blocks);
        kv.memory = mmap(NULL, kv.bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (kv.memory == MAP_FAILED)
                return error_set(
                    e, -ENOMEM, "cannot get %.1f GiB of memory for the KV cache", (double)kv.bytes / (1ull << 30));
        madvise(kv.memory, kv.bytes, MADV_HUGEPAGE);
        *ret_cache = kv;
        return 0;
}

void kv_cache_free(struct kv_cache *kv) {
        if (kv->memory)
                munmap(kv->memory, kv->bytes);
        *kv = (struct kv_cache){0};
}

struct kv_layer kv_cache_layer(const struct kv_cache *kv, uint32_t layer) {
        size_t per_layer = (size_t)kv->block_tokens * kv->width;

        return (struct kv_layer){.type = kv->type,
            .base = (char *)kv->memory + layer * per_layer * kv_type_bytes(kv->type),
            .block_stride = kv->layers * per_layer,
            .block_tokens = kv->block_tokens,
            .width = kv->width,
            .rank = kv->rank};
}
