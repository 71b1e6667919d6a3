/* load.c - from tensors to packed weights.
 *
 * One walk over everything this shard needs runs twice: first it adds up bytes, so that memory is asked for once and its
 * want is told before minutes of packing; then it packs into that memory and lets go of the pages read. */
#include "base/arena.h"
#include "base/json.h"
#include "model/internal.h"
#include "os/os.h"
#include <dirent.h>
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>

struct loader {
        struct model *m;
        const struct model_options *o;
        struct error *e;
        struct arena names;      /* scratch for tensor names, dies with the walk */
        yyjson_doc *description; /* quant_model_description*.json, NULL: none */
        struct description_entry *entries;
        size_t entry_count;
        char *memory; /* NULL while counting */
        size_t used;
        int result; /* the first failure; everything after it is a no-op */
};

struct description_entry {
        struct slice name, type;
};

static void fail(struct loader *l, int code) {
        if (l->result == 0)
                l->result = code;
}

/* ---- tensors ------------------------------------------------------------------------------------------------------------- */

static const struct tensor *find(struct loader *l, const char *prefix, const char *suffix) {
        char name[256];

        if (snprintf(name, sizeof(name), "%s%s", prefix, suffix) >= (int)sizeof(name))
                return NULL;
        return checkpoint_find(l->m->checkpoint, name);
}

/* A tensor that must be there with [n] or [n][k] elements (k 0: one dimension, or a second one of 1). */
static const struct tensor *need(struct loader *l, const char *prefix, const char *suffix, size_t n, size_t k) {
        const struct tensor *t = l->result == 0 ? find(l, prefix, suffix) : NULL;
        bool fits;

        if (l->result < 0)
                return NULL;
        if (!t) {
                fail(l, error_set(l->e, -EINVAL, "the checkpoint lacks tensor %s%s", prefix, suffix));
                return NULL;
        }
        fits = k ? t->dims == 2 && t->shape[0] == n && t->shape[1] == k
                 : (t->dims == 1 && t->shape[0] == n) || (t->dims == 2 && t->shape[0] == n && t->shape[1] == 1) ||
                       (t->dims == 0 && n == 1);
        if (fits)
                return t;
        if (k)
                fail(l, error_set(l->e, -EINVAL, "%s: tensor %s has shape [%llu, %llu], config.json says [%zu, %zu]",
                            t->file, t->name, (unsigned long long)(t->dims > 0 ? t->shape[0] : 0),
                            (unsigned long long)(t->dims > 1 ? t->shape[1] : 0), n, k));
        else
                fail(l, error_set(l->e, -EINVAL, "%s: tensor %s has %llu elements, %zu are wanted", t->file, t->name,
                            (unsigned long long)(t->dims > 0 ? t->shape[0] : 1), n));
        return NULL;
}

static float element(const struct tensor *t, size_t i) {
        switch (t->dtype) {
        case DTYPE_F32:
                return ((const float *)t->data)[i];
        case DTYPE_F64:
                return (float)((const double *)t->data)[i];
        case DTYPE_BF16:
                return bf16_to_float(((const uint16_t *)t->data)[i]);
        case DTYPE_F16:
                return f16_to_float(((const uint16_t *)t->data)[i]);
        default:
                return NAN;
        }
}

static bool is_float(const struct tensor *t) {
        return t->dtype == DTYPE_F32 || t->dtype == DTYPE_F64 || t->dtype == DTYPE_BF16 || t->dtype == DTYPE_F16;
}

/* ---- memory -------------------------------------------------------------------------------------------------------------- */

static void *take(struct loader *l, size_t bytes) {
        void *at = l->memory ? l->memory + l->used : NULL;

        l->used += (bytes + 63) & ~(size_t)63;
        return at;
}

static const float *take_floats(struct loader *l, const struct tensor *t, size_t from, size_t n) {
        float *to;

        if (!t)
                return NULL;
        if (!is_float(t)) {
                fail(l, error_set(l->e, -EINVAL, "%s: tensor %s is %s, a float type is wanted", t->file, t->name,
                            dtype_name(t->dtype)));
                return NULL;
        }
        to = take(l, n * sizeof(*to));
        for (size_t i = 0; to && i < n; i++)
                to[i] = element(t, from + i);
        return to;
}

/* Weight and, in Ascend's smoothed checkpoints, bias; older ones keep the smoothed pair under `.module`. */
static void take_norm(struct loader *l, const char *prefix, size_t n, struct norm *ret) {
        const char *weight = find(l, prefix, ".module.weight") ? ".module.weight" : ".weight";
        const char *bias = find(l, prefix, ".module.bias") ? ".module.bias" : find(l, prefix, ".bias") ? ".bias" : NULL;

        ret->weight = take_floats(l, need(l, prefix, weight, n, 0), 0, n);
        ret->bias = bias ? take_floats(l, need(l, prefix, bias, n, 0), 0, n) : NULL;
}

/* ---- quantised types ----------------------------------------------------------------------------------------------------- */

static int compare_entries(const void *a, const void *b) {
        return slice_cmp(((const struct description_entry *)a)->name, ((const struct description_entry *)b)->name);
}

/* quant_model_description.json, with or without a suffix: tensor name -> type. */
static int read_description(struct loader *l) {
        DIR *d = opendir(l->o->dir);
        struct dirent *entry;
        char path[4096] = "";
        yyjson_obj_iter iter;
        yyjson_val *key;

        while (d && (entry = readdir(d)))
                if (slice_starts(slice_str(entry->d_name), SLICE_LIT("quant_model_description")) &&
                    slice_ends(slice_str(entry->d_name), SLICE_LIT(".json")) &&
                    (!path[0] || strlen(entry->d_name) < 30))
                        snprintf(path, sizeof(path), "%s/%s", l->o->dir, entry->d_name);
        if (d)
                closedir(d);
        if (!path[0])
                return 0;
        fail(l, json_parse_file(path, 256u << 20, &l->description, l->e));
        if (l->result < 0)
                return l->result;
        l->entries = calloc(yyjson_obj_size(yyjson_doc_get_root(l->description)) + 1, sizeof(*l->entries));
        if (!l->entries)
                return error_set(l->e, -ENOMEM, "out of memory");
        if (yyjson_is_obj(yyjson_doc_get_root(l->description))) {
                yyjson_obj_iter_init(yyjson_doc_get_root(l->description), &iter);
                while ((key = yyjson_obj_iter_next(&iter)))
                        if (yyjson_is_str(yyjson_obj_iter_get_val(key)))
                                l->entries[l->entry_count++] = (struct description_entry){
                                    json_slice(key), json_slice(yyjson_obj_iter_get_val(key))};
        }
        qsort(l->entries, l->entry_count, sizeof(*l->entries), compare_entries);
        return 0;
}

/* What the description says of PREFIX.weight; empty: nothing. */
static struct slice described(const struct loader *l, const char *prefix) {
        char name[256];
        struct description_entry key, *found;

        snprintf(name, sizeof(name), "%s.weight", prefix);
        key.name = slice_str(name);
        found = l->entry_count ? bsearch(&key, l->entries, l->entry_count, sizeof(key), compare_entries) : NULL;
        return found ? found->type : SLICE_NONE;
}

/* Floats of [n] in scratch memory of the walk. */
static const float *scratch_floats(struct loader *l, const struct tensor *t, size_t from, size_t n) {
        float *to = t ? arena_array(&l->names, n, sizeof(*to)) : NULL;

        if (t && !to)
                fail(l, error_set(l->e, -ENOMEM, "out of memory"));
        for (size_t i = 0; to && i < n; i++)
                to[i] = element(t, from + i);
        return to;
}

static void source_dynamic(
    struct loader *l, const char *prefix, size_t n, size_t row, size_t rows, struct weight_source *s) {
        const struct tensor *scale = need(l, prefix, ".weight_scale", n, 0),
                            *offset = find(l, prefix, ".weight_offset");

        s->type = WEIGHT_INT8_DYNAMIC;
        s->row_scale = scratch_floats(l, scale, row, rows);
        for (size_t i = 0;
             offset && i < n && i < offset->bytes / (dtype_bytes(offset->dtype) ? dtype_bytes(offset->dtype) : 1); i++)
                if (is_float(offset) && element(offset, i) != 0) {
                        fail(
                            l, error_set(l->e, -EINVAL, "%s: %s is not zero: only symmetric int8 weights are supported",
                                   offset->file, offset->name));
                        return;
                }
}

/* deq_scale is f32, or an int64 whose low half holds the bits of one (checkpoints made from fp16 models). */
static const float *read_deq_scale(struct loader *l, const struct tensor *t, size_t from, size_t n) {
        float *to;

        if (!t || t->dtype != DTYPE_I64)
                return scratch_floats(l, t, from, n);
        to = arena_array(&l->names, n, sizeof(*to));
        for (size_t i = 0; to && i < n; i++) {
                uint32_t bits = (uint32_t)((const int64_t *)t->data)[from + i];

                memcpy(&to[i], &bits, sizeof(bits));
        }
        return to;
}

static void source_static(struct loader *l, const char *prefix, size_t n, size_t row, size_t rows, bool first_columns,
    struct weight_source *s) {
        const struct tensor *scale = need(l, prefix, ".input_scale", 1, 0),
                            *offset = need(l, prefix, ".input_offset", 1, 0);
        const struct tensor *bias = need(l, prefix, ".quant_bias", n, 0), *deq = need(l, prefix, ".deq_scale", n, 0);
        float inverse;

        if (l->result < 0)
                return;
        if (bias->dtype != DTYPE_I32) {
                fail(l, error_set(l->e, -EINVAL, "%s: %s is %s, I32 is wanted", bias->file, bias->name,
                            dtype_name(bias->dtype)));
                return;
        }
        s->type = WEIGHT_INT8_STATIC;
        s->deq_scale = read_deq_scale(l, deq, row, rows);
        /* Partial sums of a row-parallel layer add the bias once: on the rank that holds the first columns. */
        s->quant_bias = first_columns ? (const int32_t *)bias->data + row : NULL;
        inverse = 1 / element(scale, 0);
        s->input_scale_inv = scale->dtype == DTYPE_BF16 ? bf16_to_float(float_to_bf16(inverse)) : inverse;
        s->input_offset = offset->dtype == DTYPE_I8 ? ((const int8_t *)offset->data)[0] : element(offset, 0);
}

static void source_int8(struct loader *l, const char *prefix, size_t n, size_t row, size_t rows, bool first_columns,
    struct weight_source *s) {
        struct slice type = described(l, prefix);
        bool is_static = find(l, prefix, ".deq_scale") != NULL;

        if (slice_is(type, "W8A8_MIX"))
                is_static = l->o->static_quantization;
        else if (slice_is(type, "W8A8"))
                is_static = true;
        else if (slice_is(type, "W8A8_DYNAMIC"))
                is_static = false;
        else if (type.len) {
                fail(
                    l, error_set(l->e, -EINVAL,
                           "%s.weight has quantisation type %.*s; supported are W8A8, W8A8_DYNAMIC, W8A8_MIX and FLOAT",
                           prefix, SLICE_ARG(type)));
                return;
        }
        if (is_static)
                source_static(l, prefix, n, row, rows, first_columns, s);
        else
                source_dynamic(l, prefix, n, row, rows, s);
}

/* ---- linear layers --------------------------------------------------------------------------------------------------------- */

struct part {
        size_t row, rows, col, cols;
};

static struct part whole(size_t n, size_t k) {
        return (struct part){0, n, 0, k};
}

static void source_fp8(
    struct loader *l, const char *prefix, const struct tensor *t, struct part p, struct weight_source *s) {
        const struct model_config *c = &l->m->config;
        size_t bn = c->fp8 ? c->fp8_block_n : 128, bk = c->fp8 ? c->fp8_block_k : 128;
        size_t down = (t->shape[0] + bn - 1) / bn, across = (t->shape[1] + bk - 1) / bk;
        const struct tensor *scale = need(l, prefix, ".weight_scale_inv", down, across);

        if (!scale)
                return;
        s->type = WEIGHT_FP8;
        s->block_n = bn;
        s->block_k = bk;
        s->scale_stride = across;
        s->first_row = p.row;
        s->first_col = p.col;
        s->scale = scale->dtype == DTYPE_F32 ? scale->data
                   : is_float(scale)         ? scratch_floats(l, scale, 0, down * across)
                                             : NULL;
        if (!s->scale)
                fail(l, error_set(l->e, -EINVAL, "%s: %s is %s, a float type is wanted", scale->file, scale->name,
                            dtype_name(scale->dtype)));
}

/* PREFIX.weight [n][k], or a part of it, as the kernels take it. Returns false after a failure. */
static bool source_of(
    struct loader *l, const char *prefix, size_t n, size_t k, struct part p, struct weight_source *ret) {
        const struct tensor *t = need(l, prefix, ".weight", n, k);
        static const enum weight_type types[] = {
            [DTYPE_F32] = WEIGHT_F32, [DTYPE_F16] = WEIGHT_F16, [DTYPE_BF16] = WEIGHT_BF16};

        if (!t)
                return false;
        *ret = (struct weight_source){.n = p.rows, .k = p.cols, .row_stride = k};
        ret->data = (const char *)t->data + (p.row * k + p.col) * dtype_bytes(t->dtype);
        switch (t->dtype) {
        case DTYPE_F32:
        case DTYPE_F16:
        case DTYPE_BF16:
                ret->type = types[t->dtype];
                break;
        case DTYPE_FP8:
                source_fp8(l, prefix, t, p, ret);
                break;
        case DTYPE_I8:
                source_int8(l, prefix, n, p.row, p.rows, p.col == 0, ret);
                break;
        default:
                fail(l, error_set(l->e, -EINVAL, "%s: tensor %s is %s; F32, F16, BF16, F8_E4M3 and I8 are supported",
                            t->file, t->name, dtype_name(t->dtype)));
        }
        return l->result == 0;
}

static void forget(struct loader *l, const char *prefix) {
        const struct tensor *t = l->memory ? find(l, prefix, ".weight") : NULL;

        if (t)
                checkpoint_forget(t);
}

static void take_linear(struct loader *l, const char *prefix, size_t n, size_t k, struct part p, struct linear *ret) {
        struct weight_source s;
        void *memory;

        if (!source_of(l, prefix, n, k, p, &s))
                return;
        memory = take(l, linear_bytes(l->m->compute, &s));
        if (memory && linear_pack(l->m->compute, &s, memory, ret, l->e) < 0)
                fail(l, error_prefix(l->e, -EINVAL, "%s", prefix));
        forget(l, prefix);
        arena_reset(&l->names);
}

static void take_mlp(struct loader *l, const char *prefix, size_t width, struct part p, struct mlp *ret) {
        size_t d = l->m->config.hidden;
        struct weight_source gate, up, down;
        char name[3][256];
        void *memory;

        snprintf(name[0], sizeof(name[0]), "%s.gate_proj", prefix);
        snprintf(name[1], sizeof(name[1]), "%s.up_proj", prefix);
        snprintf(name[2], sizeof(name[2]), "%s.down_proj", prefix);
        if (!source_of(l, name[0], width, d, (struct part){p.row, p.rows, 0, d}, &gate) ||
            !source_of(l, name[1], width, d, (struct part){p.row, p.rows, 0, d}, &up) ||
            !source_of(l, name[2], d, width, (struct part){0, d, p.row, p.rows}, &down))
                return;
        if (gate.type != up.type) {
                fail(l, error_set(l->e, -EINVAL, "%s: gate_proj and up_proj are quantised differently", prefix));
                return;
        }
        memory = take(l, mlp_bytes(l->m->compute, &gate, &up, &down));
        if (memory && mlp_pack(l->m->compute, &gate, &up, &down, memory, ret, l->e) < 0)
                fail(l, error_prefix(l->e, -EINVAL, "%s", prefix));
        for (int i = 0; i < 3; i++)
                forget(l, name[i]);
        arena_reset(&l->names);
}

/* This TP rank's share of `n` things. */
static struct part share(const struct loader *l, size_t n) {
        size_t size = l->m->shard.tp_size, rank = l->m->shard.tp_rank, begin = n * rank / size;

        return (struct part){.row = begin, .rows = n * (rank + 1) / size - begin};
}

/* ---- attention ------------------------------------------------------------------------------------------------------------- */

/* kv_b's halves for the absorbed form, from the dequantised weight. */
static void take_halves(struct loader *l, const char *prefix, const struct weight_source *kv_b, struct layer *layer) {
        const struct model_config *c = &l->m->config;
        struct compute *k = l->m->compute;
        enum weight_type type = kv_b->type == WEIGHT_BF16 ? WEIGHT_BF16 : WEIGHT_F32;
        uint32_t heads = l->m->heads;
        size_t rank = c->kv_rank, stride = (size_t)(c->nope + c->v) * rank;
        void *absorb = take(l, head_linear_bytes(k, type, heads, rank, c->nope));
        void *expand = take(l, head_linear_bytes(k, type, heads, c->v, rank));
        float *rows;

        if (kv_b->type == WEIGHT_INT8_STATIC) {
                fail(l, error_set(l->e, -EINVAL,
                            "%s is statically quantised: the absorbed form needs it FLOAT or dynamic", prefix));
                return;
        }
        if (!absorb)
                return;
        rows = malloc(kv_b->n * rank * sizeof(*rows));
        if (!rows) {
                fail(l, error_set(l->e, -ENOMEM, "out of memory"));
                return;
        }
        for (size_t i = 0; i < kv_b->n; i++)
                weight_row(kv_b, i, rows + i * rank);
        if (head_linear_pack(k, type, rows, stride, 1, rank, heads, rank, c->nope, absorb, &layer->absorb, l->e) < 0 ||
            head_linear_pack(
                k, type, rows + c->nope * rank, stride, rank, 1, heads, c->v, rank, expand, &layer->expand, l->e) < 0)
                fail(l, -EINVAL);
        free(rows);
}

static void take_attention(struct loader *l, const char *prefix, struct layer *layer) {
        const struct model_config *c = &l->m->config;
        size_t d = c->hidden, q_head = c->nope + c->rope, kv_head = c->nope + c->v;
        struct part heads = share(l, c->heads), rows;
        struct weight_source kv_b;
        char name[256];

#define NAME(suffix) (snprintf(name, sizeof(name), "%s.self_attn." suffix, prefix), name)
        rows = (struct part){heads.row * q_head, heads.rows * q_head, 0, c->q_lora ? c->q_lora : d};
        if (c->q_lora) {
                take_linear(l, NAME("q_a_proj"), c->q_lora, d, whole(c->q_lora, d), &layer->q_a);
                take_norm(l, NAME("q_a_layernorm"), c->q_lora, &layer->q_a_norm);
                take_linear(l, NAME("q_b_proj"), c->heads * q_head, c->q_lora, rows, &layer->q_b);
        } else
                take_linear(l, NAME("q_proj"), c->heads * q_head, d, rows, &layer->q_b);
        take_linear(
            l, NAME("kv_a_proj_with_mqa"), c->kv_rank + c->rope, d, whole(c->kv_rank + c->rope, d), &layer->kv_a);
        take_norm(l, NAME("kv_a_layernorm"), c->kv_rank, &layer->kv_a_norm);
        rows = (struct part){heads.row * kv_head, heads.rows * kv_head, 0, c->kv_rank};
        if (source_of(l, NAME("kv_b_proj"), c->heads * kv_head, c->kv_rank, rows, &kv_b))
                take_halves(l, name, &kv_b, layer);
        take_linear(l, NAME("kv_b_proj"), c->heads * kv_head, c->kv_rank, rows, &layer->kv_b);
        take_linear(l, NAME("o_proj"), d, c->heads * (size_t)c->v,
            (struct part){0, d, heads.row * c->v, heads.rows * c->v}, &layer->o);
#undef NAME
}

/* ---- layers ---------------------------------------------------------------------------------------------------------------- */

/* Experts spread in one run per rank, the first ranks taking one more when they do not divide. */
static bool expert_is_here(const struct model *m, uint32_t expert) {
        uint32_t size = m->shard.ep_size ? m->shard.ep_size : 1, base = m->config.experts / size,
                 more = m->config.experts % size;
        uint32_t rank = m->shard.ep_rank, begin = rank * base + (rank < more ? rank : more);

        return expert >= begin && expert < begin + base + (rank < more);
}

static void take_moe(struct loader *l, const char *prefix, struct layer *layer) {
        const struct model_config *c = &l->m->config;
        char name[256];

        snprintf(name, sizeof(name), "%s.mlp.gate", prefix);
        take_linear(l, name, c->experts, c->hidden, whole(c->experts, c->hidden), &layer->gate);
        layer->gate_bias = c->gate == GATE_SIGMOID_NOAUX
                               ? take_floats(l, need(l, name, ".e_score_correction_bias", c->experts, 0), 0, c->experts)
                               : NULL;
        layer->has_shared = c->shared_experts > 0;
        if (layer->has_shared) {
                size_t width = (size_t)c->shared_experts * c->expert_width;

                snprintf(name, sizeof(name), "%s.mlp.shared_experts", prefix);
                take_mlp(l, name, width, share(l, width), &layer->dense);
        }
        if (!layer->experts)
                layer->experts = calloc(c->experts, sizeof(*layer->experts));
        if (!layer->experts) {
                fail(l, error_set(l->e, -ENOMEM, "out of memory"));
                return;
        }
        for (uint32_t i = 0; i < c->experts && l->result == 0; i++) {
                if (!expert_is_here(l->m, i))
                        continue;
                snprintf(name, sizeof(name), "%s.mlp.experts.%u", prefix, i);
                take_mlp(l, name, c->expert_width, whole(c->expert_width, 0), &layer->experts[i]);
        }
}

static void take_layer(struct loader *l, uint32_t index, struct layer *layer) {
        const struct model_config *c = &l->m->config;
        char prefix[64], name[128];

        snprintf(prefix, sizeof(prefix), "model.layers.%u", index);
        snprintf(name, sizeof(name), "%s.input_layernorm", prefix);
        take_norm(l, name, c->hidden, &layer->input);
        snprintf(name, sizeof(name), "%s.post_attention_layernorm", prefix);
        take_norm(l, name, c->hidden, &layer->post);
        take_attention(l, prefix, layer);
        layer->moe = model_layer_is_moe(c, index);
        if (layer->moe)
                take_moe(l, prefix, layer);
        else {
                snprintf(name, sizeof(name), "%s.mlp", prefix);
                take_mlp(l, name, c->dense_width, share(l, c->dense_width), &layer->dense);
        }
}

static bool same_bytes(const struct tensor *a, const struct tensor *b) {
        return a && b && a->dtype == b->dtype && a->bytes == b->bytes && memcmp(a->data, b->data, a->bytes) == 0;
}

static void take_mtp(struct loader *l, struct mtp *t) {
        const struct model_config *c = &l->m->config;
        char prefix[64], name[128];

        snprintf(prefix, sizeof(prefix), "model.layers.%u", c->layers);
#define NAME(suffix) (snprintf(name, sizeof(name), "%s" suffix, prefix), name)
        take_norm(l, NAME(".enorm"), c->hidden, &t->enorm);
        take_norm(l, NAME(".hnorm"), c->hidden, &t->hnorm);
        take_norm(l, NAME(".shared_head.norm"), c->hidden, &t->head_norm);
        take_linear(l, NAME(".eh_proj"), c->hidden, 2 * (size_t)c->hidden, whole(c->hidden, 2 * (size_t)c->hidden),
            &t->eh_proj);
        /* Copies of the main embedding and head need no second place in memory. */
        t->embed = l->m->embed;
        if (find(l, NAME(".embed_tokens"), ".weight"))
                source_of(l, name, c->vocab, c->hidden, whole(c->vocab, c->hidden), &t->embed);
        if (!find(l, NAME(".shared_head.head"), ".weight") ||
            same_bytes(find(l, name, ".weight"), find(l, "lm_head", ".weight")))
                t->head = l->m->head;
        else
                take_linear(l, name, c->vocab, c->hidden, whole(c->vocab, c->hidden), &t->head);
#undef NAME
        take_layer(l, c->layers, &t->layer);
        t->present = true;
}

static void walk(struct loader *l) {
        struct model *m = l->m;
        const struct model_config *c = &m->config;
        const char *head = find(l, "lm_head", ".weight") ? "lm_head" : "model.embed_tokens";

        if (!source_of(l, "model.embed_tokens", c->vocab, c->hidden, whole(c->vocab, c->hidden), &m->embed))
                return;
        for (uint32_t i = 0; i < c->layers && l->result == 0; i++)
                take_layer(l, i, &m->layers[i]);
        take_norm(l, "model.norm", c->hidden, &m->final_norm);
        take_linear(l, head, c->vocab, c->hidden, whole(c->vocab, c->hidden), &m->head);
        if (l->o->load_mtp && l->result == 0)
                take_mtp(l, &m->mtp);
}

/* ---- all of it --------------------------------------------------------------------------------------------------------------- */

static int get_memory(struct loader *l) {
        uint64_t available = os_memory_available();
        size_t huge = 2u << 20;

        l->m->bytes = l->used;
        l->m->mapped = (l->used + huge - 1) / huge * huge;
        if (available && l->m->mapped > available)
                return error_set(l->e, -ENOMEM,
                    "the model needs %.1f GiB of memory for its weights, %.1f GiB are available: %.1f GiB are missing",
                    (double)l->m->mapped / (1ull << 30), (double)available / (1ull << 30),
                    (double)(l->m->mapped - available) / (1ull << 30));
        l->m->memory = mmap(NULL, l->m->mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (l->m->memory == MAP_FAILED) {
                l->m->memory = NULL;
                return error_set(l->e, -ENOMEM, "cannot get %.1f GiB of memory for the weights",
                    (double)l->m->mapped / (1ull << 30));
        }
        madvise(l->m->memory, l->m->mapped, MADV_HUGEPAGE);
        return 0;
}

/* Equal on equal checkpoints: the configuration's values and every tensor's name, type and shape. */
static void make_digest(struct model *m) {
        struct buf text = {0};
        struct hash128 h;
        size_t count;
        const struct tensor *t = checkpoint_tensors(m->checkpoint, &count);

        buf_append(&text, &m->config, offsetof(struct model_config, bos));
        for (size_t i = 0; i < count; i++) {
                buf_printf(&text, "%s %d", t[i].name, t[i].dtype);
                for (uint32_t k = 0; k < t[i].dims; k++)
                        buf_printf(&text, " %llu", (unsigned long long)t[i].shape[k]);
                buf_add_char(&text, '\n');
        }
        h = hash128(buf_slice(&text), 0);
        buf_free(&text);
        snprintf(m->digest, sizeof(m->digest), "%016llx%016llx", (unsigned long long)h.hi, (unsigned long long)h.lo);
}

int model_load_weights(struct model *m, const struct model_options *o, struct error *e) {
        struct loader l = {.m = m, .o = o, .e = e};
        bool ascend = o->quantization && !strcmp(o->quantization, "ascend");
        int r = checkpoint_open(o->dir, ascend ? "quant_model_weight" : "model", &m->checkpoint, e);

        if (r < 0)
                return r;
        m->layers = calloc(m->config.layers, sizeof(*m->layers));
        r = m->layers ? read_description(&l) : error_set(e, -ENOMEM, "out of memory");
        if (r == 0 && ascend && !l.description)
                r = error_set(e, -EINVAL, "--quantization ascend: %s has no quant_model_description.json", o->dir);
        if (r == 0) {
                walk(&l);
                r = l.result;
        }
        if (r == 0)
                r = get_memory(&l);
        if (r == 0) {
                l.memory = m->memory;
                l.used = 0;
                walk(&l);
                r = l.result;
        }
        if (r == 0)
                make_digest(m);
        yyjson_doc_free(l.description);
        free(l.entries);
        arena_free(&l.names);
        return r;
}
