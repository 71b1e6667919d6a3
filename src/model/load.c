/* load.c - from a folder to packed weights.
 *
 * One walk over the model's tensors is made twice: first measuring, which checks names, types and shapes and adds up the
 * memory, then packing. Between them the memory is taken, all at once. */
#include "model/load.h"
#include "model/memory.h"
#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

static void *take(struct loader *l, size_t bytes) {
        struct region *to = l->to;
        char *at = (char *)to->memory + to->used;

        to->used += (bytes + 63) / 64 * 64;
        if (l->w.measuring)
                return NULL;
        assert(to->used <= to->bytes);
        return at;
}

/* ---- kinds of weights ----------------------------------------------------------------------------------------------- */

static int load_linear(struct loader *l, const char *name, struct cut cut, struct linear *to) {
        struct compute *c = l->compute;
        struct weight_source s;
        void *memory;
        int r = weights_source(&l->w, name, &cut, &s, l->e);

        if (r < 0)
                return r;
        memory = take(l, linear_bytes(&s));
        if (!l->w.measuring) {
                r = linear_pack(c, &s, memory, to, l->e);
                if (r < 0)
                        error_prefix(l->e, r, "layer %s", name);
        }
        weights_done(&l->w, name);
        return r;
}

static int load_part(struct loader *l, const char *name, struct cut cut, struct linear *to) {
        char full[192];

        snprintf(full, sizeof(full), "%s%s", l->prefix, name);
        return load_linear(l, full, cut, to);
}

/* An MLP of `width` of which this rank takes [first, first + count). */
static int load_mlp(struct loader *l, const char *name, size_t width, size_t first, size_t count, struct mlp *to) {
        static const char *const names[] = {"gate_proj", "up_proj", "down_proj"};
        const size_t hidden = l->m->config.hidden;
        const struct cut across = cut_rows(width, hidden, first, count), along = cut_cols(hidden, width, first, count);
        struct compute *c = l->compute;
        struct weight_source s[3];
        char full[3][192];
        void *memory;
        int r = 0;

        for (int i = 0; i < 3 && r == 0; i++) {
                snprintf(full[i], sizeof(full[i]), "%s%s.%s", l->prefix, name, names[i]);
                r = weights_source(&l->w, full[i], i < 2 ? &across : &along, &s[i], l->e);
        }
        if (r < 0)
                return r;
        memory = take(l, mlp_bytes(&s[0], &s[1], &s[2]));
        if (!l->w.measuring) {
                r = mlp_pack(c, &s[0], &s[1], &s[2], memory, to, l->e);
                if (r < 0)
                        error_prefix(l->e, r, "layer %s%s", l->prefix, name);
        }
        for (int i = 0; i < 3; i++)
                weights_done(&l->w, full[i]);
        return r;
}

static int load_floats(struct loader *l, const char *name, size_t n, const float **to) {
        float *memory = take(l, n * sizeof(float));
        int r = weights_vector(&l->w, name, n, memory, l->e);

        *to = memory;
        return r;
}

/* NAME.weight, or NAME.module.weight where an export has the smoothed one there; with a bias when there is one. */
static int load_norm(struct loader *l, const char *name, uint32_t width, struct norm *to) {
        char weight[192], bias[192];
        int r;

        snprintf(weight, sizeof(weight), "%s%s.module.weight", l->prefix, name);
        if (!weights_has(&l->w, weight))
                snprintf(weight, sizeof(weight), "%s%s.weight", l->prefix, name);
        snprintf(bias, sizeof(bias), "%s%s.module.bias", l->prefix, name);
        if (!weights_has(&l->w, bias))
                snprintf(bias, sizeof(bias), "%s%s.bias", l->prefix, name);
        to->width = width;
        r = load_floats(l, weight, width, &to->weight);
        if (r == 0 && weights_has(&l->w, bias))
                r = load_floats(l, bias, width, &to->bias);
        return r;
}

/* What this rank has of the vocabulary, in the embedding and in the head. */
static struct cut vocab_cut(const struct model *m) {
        return cut_rows(m->config.vocab, m->config.hidden, m->vocab_first, m->vocab_rows);
}

/* Embeddings are looked up row by row: kept as they lie in the file. */
static int load_embedding(struct loader *l, const char *name, struct weight_source *to) {
        struct model *m = l->m;
        const struct cut cut = vocab_cut(m);
        struct weight_source s;
        size_t bytes;
        void *memory;
        int r = weights_source(&l->w, name, &cut, &s, l->e);

        if (r < 0)
                return r;
        if (s.type != WEIGHT_F32 && s.type != WEIGHT_F16 && s.type != WEIGHT_BF16)
                return error_set(l->e, -EINVAL, "%s.weight is quantised; embeddings may be f32, f16 or bf16", name);
        bytes = s.n * s.k * (s.type == WEIGHT_F32 ? 4 : 2);
        memory = take(l, bytes);
        if (!l->w.measuring) {
                memcpy(memory, s.data, bytes);
                s.data = memory;
                *to = s;
        }
        weights_done(&l->w, name);
        return 0;
}

/* ---- attention ------------------------------------------------------------------------------------------------------ */

/* The source as floats, in malloc'd memory. */
static float *dequantise(const struct weight_source *s) {
        float *rows = reallocarray(NULL, s->n * s->k, sizeof(*rows));

        for (size_t i = 0; rows && i < s->n; i++)
                weight_row(s, i, rows + i * s->k);
        return rows;
}

/* Where kv_b's three packed forms go. */
struct kv_b_memory {
        void *naive, *absorb, *expand;
        enum weight_type type; /* of the halves */
};

static int pack_kv_b(struct loader *l, struct layer *to, struct weight_source *s, const struct kv_b_memory *at) {
        const struct model *m = l->m;
        const struct model_config *c = &m->config;
        const size_t rank = c->kv_rank, head = (size_t)(c->nope + c->v) * rank;
        struct compute *compute = l->compute;
        float *rows = dequantise(s);
        int r;

        if (!rows)
                return error_set(l->e, -ENOMEM, "out of memory while reading weights");
        if (s->type == WEIGHT_INT8_DYNAMIC)
                *s = (struct weight_source){.type = WEIGHT_F32, .n = s->n, .k = s->k, .data = rows, .row_stride = s->k};
        r = linear_pack(compute, s, at->naive, &to->kv_b, l->e);
        if (r == 0)
                r = head_linear_pack(
                    compute, at->type, rows, head, 1, rank, m->heads, rank, c->nope, at->absorb, &to->absorb, l->e);
        if (r == 0)
                r = head_linear_pack(compute, at->type, rows + c->nope * rank, head, rank, 1, m->heads, c->v, rank,
                    at->expand, &to->expand, l->e);
        free(rows);
        return r;
}

/* Three times: as it is for the naive form, and its two halves for the absorbed one. int8 is expanded: the halves need its
 * values, and both forms must compute with the same ones. */
static int load_kv_b(struct loader *l, struct layer *to) {
        const struct model *m = l->m;
        const struct model_config *c = &m->config;
        const size_t head = c->nope + c->v;
        const struct cut cut =
            cut_rows(c->heads * head, c->kv_rank, m->options.shard.tp_rank * m->heads * head, m->heads * head);
        struct weight_source s, sized;
        struct kv_b_memory at;
        char name[192];
        int r;

        snprintf(name, sizeof(name), "%sself_attn.kv_b_proj", l->prefix);
        r = weights_source(&l->w, name, &cut, &s, l->e);
        if (r < 0)
                return r;
        if (s.type == WEIGHT_INT8_STATIC)
                return error_set(l->e, -EINVAL, "layer %s is statically quantised, which attention cannot use", name);
        at.type = s.type == WEIGHT_BF16 ? WEIGHT_BF16 : WEIGHT_F32;
        sized = s;
        if (s.type == WEIGHT_INT8_DYNAMIC)
                sized.type = WEIGHT_F32;
        at.naive = take(l, linear_bytes(&sized));
        at.absorb = take(l, head_linear_bytes(at.type, m->heads, c->kv_rank, c->nope));
        at.expand = take(l, head_linear_bytes(at.type, m->heads, c->v, c->kv_rank));
        if (!l->w.measuring) {
                r = pack_kv_b(l, to, &s, &at);
                if (r < 0)
                        error_prefix(l->e, r, "layer %s", name);
        }
        weights_done(&l->w, name);
        return r;
}

static int load_attention(struct loader *l, struct layer *to) {
        const struct model *m = l->m;
        const struct model_config *c = &m->config;
        const size_t head = c->nope + c->rope, first = m->options.shard.tp_rank * m->heads;
        int r = load_norm(l, "input_layernorm", c->hidden, &to->input_norm);

        if (r == 0 && c->q_lora) {
                r = load_part(l, "self_attn.q_a_proj", cut_none(c->q_lora, c->hidden), &to->q_a);
                if (r == 0)
                        r = load_norm(l, "self_attn.q_a_layernorm", c->q_lora, &to->q_norm);
        }
        if (r == 0)
                r = load_part(l, c->q_lora ? "self_attn.q_b_proj" : "self_attn.q_proj",
                    cut_rows(c->heads * head, c->q_lora ? c->q_lora : c->hidden, first * head, m->heads * head),
                    &to->q);
        if (r == 0)
                r = load_part(l, "self_attn.kv_a_proj_with_mqa", cut_none(c->kv_rank + c->rope, c->hidden), &to->kv_a);
        if (r == 0)
                r = load_norm(l, "self_attn.kv_a_layernorm", c->kv_rank, &to->kv_norm);
        if (r == 0)
                r = load_kv_b(l, to);
        if (r == 0)
                r = load_part(l, "self_attn.o_proj",
                    cut_cols(c->hidden, (size_t)c->heads * c->v, first * c->v, (size_t)m->heads * c->v), &to->o);
        return r;
}

/* ---- feed-forward --------------------------------------------------------------------------------------------------- */

/* Cut over the tensor-parallel ranks. */
static int load_cut_mlp(struct loader *l, const char *name, size_t width, bool cut, struct mlp *to) {
        const struct model_shard *shard = &l->m->options.shard;
        const size_t size = cut ? shard->tp_size : 1, rank = cut ? shard->tp_rank : 0;

        if (width % size)
                return error_set(l->e, -EINVAL,
                    "%s%s has a width of %zu, which does not divide by %zu tensor-parallel ranks", l->prefix, name,
                    width, size);
        return load_mlp(l, name, width, width / size * rank, width / size, to);
}

int loader_expert(struct loader *l, uint32_t expert, struct mlp *to, struct held *ret_held) {
        const struct model *m = l->m;
        size_t used = l->to->used;
        char name[64];
        int r;

        snprintf(name, sizeof(name), "mlp.experts.%u", expert);
        r = load_cut_mlp(l, name, m->config.expert_width, m->experts_cut, to);
        if (r == 0)
                *ret_held = (struct held){.memory = (char *)l->to->memory + used, .bytes = l->to->used - used};
        return r;
}

void loader_layer(struct loader *l, uint32_t number) {
        snprintf(l->prefix, sizeof(l->prefix), "model.layers.%u.", number);
}

/* Ranks must agree on it, so all experts count, not those held here. */
static int check_experts_input(struct loader *l, struct layer *to) {
        char name[192];
        int r = 0;

        to->experts_take_int8 = true;
        for (uint32_t i = 0; r == 0 && to->experts_take_int8 && i < l->m->config.experts; i++) {
                enum ascend_kind kind = ASCEND_FLOAT;

                snprintf(name, sizeof(name), "%smlp.experts.%u.gate_proj", l->prefix, i);
                if (weights_find(&l->w, name, ".weight"))
                        r = ascend_kind_of(&l->w, name, &kind, l->e);
                to->experts_take_int8 = kind == ASCEND_DYNAMIC || (kind == ASCEND_MIX && !l->w.static_quantization);
        }
        return r;
}

static int load_experts(struct loader *l, struct layer *to) {
        const struct model *m = l->m;
        const struct model_config *c = &m->config;
        char name[192];
        int r = load_part(l, "mlp.gate", cut_none(c->experts, c->hidden), &to->gate);

        if (r == 0 && c->gate == GATE_SIGMOID_NOAUX) {
                snprintf(name, sizeof(name), "%smlp.gate.e_score_correction_bias", l->prefix);
                r = load_floats(l, name, c->experts, &to->gate_bias);
        }
        to->has_shared = c->shared_experts > 0;
        if (r == 0 && to->has_shared)
                r = load_cut_mlp(
                    l, "mlp.shared_experts", (size_t)c->shared_experts * c->expert_width, true, &to->dense);
        if (r == 0)
                r = check_experts_input(l, to);
        for (uint32_t i = 0; r == 0 && i < m->own_count; i++) {
                uint32_t expert = m->own[(size_t)(to - m->layers) * m->own_count + i];

                if (expert != SLOT_EMPTY && !to->held[expert].bytes)
                        r = loader_expert(l, expert, &to->experts[expert], &to->held[expert]);
        }
        for (uint32_t i = 0; l->w.measuring && i < c->experts; i++)
                to->held[i].bytes = 0;
        return r;
}

static int load_layer(struct loader *l, uint32_t number) {
        struct layer *to = &l->m->layers[number];
        const struct model_config *c = &l->m->config;
        int r;

        loader_layer(l, number);
        r = load_attention(l, to);
        if (r == 0)
                r = load_norm(l, "post_attention_layernorm", c->hidden, &to->post_norm);
        if (r < 0)
                return r;
        return to->moe ? load_experts(l, to) : load_cut_mlp(l, "mlp", c->dense_width, true, &to->dense);
}

/* ---- everything ----------------------------------------------------------------------------------------------------- */

static const char *head_name(const struct model *m) {
        return m->config.tied ? "model.embed_tokens" : "lm_head";
}

/* Whether the module has a weight of its own: it is there and differs from the main model's. */
static bool is_own(struct loader *l, const char *name, const char *main) {
        const struct cut cut = vocab_cut(l->m);
        bool own = weights_find(&l->w, name, ".weight") && !weights_same(&l->w, name, main, &cut);

        weights_done(&l->w, name);
        weights_done(&l->w, main);
        return own;
}

/* Embedding and head of the module are copies of the main ones, or left out as such. */
static int load_mtp(struct loader *l) {
        struct model *m = l->m;
        const uint32_t hidden = m->config.hidden, layer = m->config.layers;
        const struct cut cut = vocab_cut(m);
        char embed[64], head[64];
        int r = load_layer(l, layer);

        snprintf(embed, sizeof(embed), "model.layers.%u.embed_tokens", layer);
        snprintf(head, sizeof(head), "model.layers.%u.shared_head.head", layer);
        if (l->w.measuring) {
                l->own_embed = is_own(l, embed, "model.embed_tokens");
                l->own_head = is_own(l, head, head_name(m));
        }
        if (r == 0)
                r = load_norm(l, "enorm", hidden, &m->mtp.enorm);
        if (r == 0)
                r = load_norm(l, "hnorm", hidden, &m->mtp.hnorm);
        if (r == 0)
                r = load_norm(l, "shared_head.norm", hidden, &m->mtp.head_norm);
        if (r == 0)
                r = load_part(l, "eh_proj", cut_none(hidden, 2 * (size_t)hidden), &m->mtp.eh);
        if (r == 0 && l->own_embed)
                r = load_embedding(l, embed, &m->mtp.embed);
        if (r == 0 && l->own_head)
                r = load_linear(l, head, cut, &m->mtp.head);
        if (!l->own_embed)
                m->mtp.embed = m->embed;
        if (!l->own_head)
                m->mtp.head = m->head;
        return r;
}

static int load_all(struct loader *l) {
        struct model *m = l->m;
        int r = load_embedding(l, "model.embed_tokens", &m->embed);

        for (uint32_t i = 0; r == 0 && i < m->config.layers; i++)
                r = load_layer(l, i);
        l->prefix[0] = 0;
        if (r == 0)
                r = load_norm(l, "model.norm", m->config.hidden, &m->final_norm);
        if (r == 0)
                r = load_linear(l, head_name(m), vocab_cut(m), &m->head);
        return r == 0 && m->layer_count > m->config.layers ? load_mtp(l) : r;
}

/* What this rank holds. */
static int divide(struct model *m, struct error *e) {
        struct model_shard *s = &m->options.shard;
        const struct model_config *c = &m->config;
        uint32_t rows;

        if (s->tp_size == 0)
                s->tp_size = 1;
        if (s->ep_size == 0)
                s->ep_size = 1;
        if (s->tp_rank >= s->tp_size || s->ep_rank >= s->ep_size)
                return error_set(e, -EINVAL, "tensor-parallel rank %u of %u, expert-parallel rank %u of %u", s->tp_rank,
                    s->tp_size, s->ep_rank, s->ep_size);
        if (c->heads % s->tp_size)
                return error_set(e, -EINVAL, "num_attention_heads %u does not divide by %u tensor-parallel ranks",
                    c->heads, s->tp_size);
        m->heads = c->heads / s->tp_size;
        rows = (c->vocab + s->tp_size - 1) / s->tp_size;
        m->vocab_first = rows * s->tp_rank;
        if (m->vocab_first >= c->vocab)
                return error_set(e, -EINVAL, "vocab_size %u leaves nothing for tensor-parallel rank %u of %u", c->vocab,
                    s->tp_rank, s->tp_size);
        m->vocab_rows = rows < c->vocab - m->vocab_first ? rows : c->vocab - m->vocab_first;
        m->experts_cut = s->ep_size == 1 && s->tp_size > 1;
        return 0;
}

/* The experts of this rank, layer by layer. */
static int choose_experts(struct model *m, struct error *e) {
        const struct model_shard *s = &m->options.shard;
        const struct model_config *c = &m->config;
        const struct placement *p = s->placement;
        struct placement plain = {0};
        uint32_t first;

        if (!p && c->experts) {
                int r = placement_new(m->layer_count, c->experts, 0, s->ep_size, PLACEMENT_LINEAR, &plain);

                if (r == -EINVAL)
                        return error_set(e, r, "%u expert-parallel ranks for %u experts", s->ep_size, c->experts);
                if (r < 0)
                        return error_set(e, r, "out of memory for the model's tables");
                p = &plain;
        }
        if (!p)
                return 0;
        assert(p->ranks == s->ep_size && p->experts == c->experts && p->layers >= m->layer_count);
        first = placement_first(p, s->ep_rank);
        m->own_count = placement_first(p, s->ep_rank + 1) - first;
        m->own = arena_array(&m->arena, (size_t)m->layer_count * m->own_count, sizeof(*m->own));
        for (uint32_t i = 0; m->own && i < m->layer_count; i++)
                memcpy(m->own + (size_t)i * m->own_count, placement_row(p, i) + first, m->own_count * sizeof(*m->own));
        placement_free(&plain);
        return m->own ? 0 : error_set(e, -ENOMEM, "out of memory for the model's tables");
}

static int make_layers(struct model *m, struct error *e) {
        const struct model_config *c = &m->config;

        m->layer_count = c->layers + (c->mtp_layers > 0);
        m->layers = arena_array(&m->arena, m->layer_count, sizeof(*m->layers));
        m->rope_table = arena_array(&m->arena, (size_t)c->max_positions * c->rope, sizeof(float));
        if (!m->layers || !m->rope_table)
                return error_set(e, -ENOMEM, "out of memory for the model's tables");
        for (uint32_t i = 0; i < m->layer_count; i++) {
                struct layer *l = &m->layers[i];

                l->moe = model_layer_is_moe(c, i);
                if (!l->moe)
                        continue;
                l->experts = arena_array(&m->arena, c->experts, sizeof(*l->experts));
                l->held = arena_array(&m->arena, c->experts, sizeof(*l->held));
                if (!l->experts || !l->held)
                        return error_set(e, -ENOMEM, "out of memory for the model's tables");
        }
        rope_fill_table(c, m->rope_table);
        return 0;
}

static int measure_and_pack(struct loader *l) {
        struct model *m = l->m;
        int r;

        l->w.measuring = true;
        r = load_all(l);
        if (r < 0)
                return r;
        m->region.bytes = m->region.used;
        r = memory_map("the model's weights", m->region.bytes, &m->region.memory, l->e);
        if (r < 0)
                return r;
        l->w.measuring = false;
        m->region.used = 0;
        r = load_all(l);
        assert(r < 0 || m->region.used == m->region.bytes);
        return r;
}

/* The folder opened and an empty model made for it; what there is of both is the caller's to close also on failure. */
static int loader_open(struct loader *l, const struct model_options *options) {
        struct model *m = calloc(1, sizeof(*m));
        int r;

        l->m = m;
        if (!m)
                return error_set(l->e, -ENOMEM, "out of memory");
        l->to = &m->region;
        l->compute = options->compute;
        m->options = *options;
        model_set_experts(m, NULL);
        r = model_config_read(options->dir, &m->config, l->e);
        if (r < 0)
                return r;
        if (options->load_mtp && m->config.mtp_layers == 0)
                return error_set(
                    l->e, -EINVAL, "%s has no multi-token-prediction module (num_nextn_predict_layers)", options->dir);
        m->config.mtp_layers = options->load_mtp ? 1 : 0;
        r = divide(m, l->e);
        if (r == 0)
                r = make_layers(m, l->e);
        if (r == 0)
                r = choose_experts(m, l->e);
        return r < 0 ? r : weights_open(options, &m->config, &l->w, l->e);
}

int model_load(const struct model_options *options, struct model **ret_model, struct error *e) {
        struct loader l = {.e = e};
        int r = loader_open(&l, options);

        if (r == 0)
                r = measure_and_pack(&l);
        if (r == 0)
                r = digest_make(&l.m->config, &l.w, l.m->digest, e);
        if (r == 0 && options->movable_experts)
                r = moving_keep(&l);
        else
                weights_close(&l.w);
        if (r == 0)
                *ret_model = l.m;
        else
                model_free(l.m);
        return r;
}

int model_check(const struct model_options *options, struct error *e) {
        struct loader l = {.e = e};
        int r = loader_open(&l, options);

        l.w.measuring = true;
        if (r == 0)
                r = load_all(&l);
        weights_close(&l.w);
        model_free(l.m);
        return r;
}

/* ---- layer by layer ------------------------------------------------------------------------------------------------- */

struct model_walk {
        struct loader l;
        size_t kept; /* bytes of what stays: the embedding */
};

/* The memory of the embedding and of the largest layer. */
static int measure_walk(struct model_walk *w) {
        struct model *m = w->l.m;
        int r;

        w->l.w.measuring = true;
        r = load_embedding(&w->l, "model.embed_tokens", &m->embed);
        w->kept = m->region.used;
        for (uint32_t i = 0; r == 0 && i < m->config.layers; i++) {
                m->region.used = w->kept;
                r = load_layer(&w->l, i);
                m->region.bytes = m->region.used > m->region.bytes ? m->region.used : m->region.bytes;
        }
        return r < 0 ? r : memory_map("a layer of the model", m->region.bytes, &m->region.memory, w->l.e);
}

int model_walk_open(
    const struct model_options *options, struct model_walk **ret_walk, struct model **ret_model, struct error *e) {
        struct model_walk *w = calloc(1, sizeof(*w));
        int r;

        if (!w)
                return error_set(e, -ENOMEM, "out of memory");
        w->l.e = e;
        r = loader_open(&w->l, options);
        if (r == 0)
                r = measure_walk(w);
        w->l.w.measuring = false;
        if (r == 0) {
                w->l.m->region.used = 0;
                r = load_embedding(&w->l, "model.embed_tokens", &w->l.m->embed);
        }
        if (r < 0) {
                model_walk_close(w);
                return r;
        }
        *ret_walk = w;
        *ret_model = w->l.m;
        return 0;
}

int model_walk_layer(struct model_walk *w, uint32_t layer) {
        w->l.m->region.used = w->kept;
        return load_layer(&w->l, layer);
}

void model_walk_close(struct model_walk *w) {
        if (!w)
                return;
        weights_close(&w->l.w);
        model_free(w->l.m);
        free(w);
}

void model_free(struct model *m) {
        if (!m)
                return;
        workspace_free(&m->work);
        workspace_free(&m->experts_work);
        moving_free(m);
        memory_unmap(m->region.memory, m->region.bytes);
        arena_free(&m->arena);
        free(m);
}

const struct model_config *model_config(const struct model *m) {
        return &m->config;
}

uint32_t model_layers(const struct model *m) {
        return m->layer_count;
}

size_t model_bytes(const struct model *m) {
        return m->region.bytes - m->released + m->batch_bytes;
}

const char *model_digest(const struct model *m) {
        return m->digest;
}

void model_set_experts(struct model *m, const struct experts_interface *experts) {
        m->experts = experts ? *experts : (struct experts_interface){experts_run_here, m};
}

void model_set_reduce(struct model *m, const struct reduce_interface *reduce) {
        m->reduce = *reduce;
}
