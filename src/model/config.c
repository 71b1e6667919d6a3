/* config.c - read and check config.json of a DeepSeek V2 or V3 checkpoint.
 *
 * Whole-number fields are rows of a table {name, where, limits}; what ties fields together is checked after it. Every
 * refusal names the file and the field. Unknown keys (training, auto_map, …) mean nothing here. */
#include "base/json.h"
#include "model/core.h"
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <unistd.h>

/* Larger than any released file by a factor of a hundred. */
#define CONFIG_BYTES_MAX ((size_t)1 << 20)

/* Limits against hostile or damaged files: far above every released model, low enough that products of two fit in 64 bits
 * with room and that nothing sized by one of them alone is large. */
#define VOCAB_MAX      (1u << 22)
#define WIDTH_MAX      (1u << 18) /* of any vector; the kernels' limit on columns */
#define LAYERS_MAX     1024u
#define HEADS_MAX      1024u
#define EXPERTS_MAX    4096u
#define HEAD_DIM_MAX   4096u
#define POSITIONS_MAX  (1u << 22)
#define ROPE_TABLE_MAX (1u << 27) /* positions times qk_rope_head_dim: half a gigabyte; V3 needs a twelfth */
/* Heads times what each has of a query, a key and a value: a tile of them fits the kernels' scratch. V3 has 40,960. */
#define HEADS_WIDTH_MAX (1u << 17)
/* Positions times kv_lora_rank + 2: the partial sums of one query over the whole context fit it. V3 has 84 million. */
#define CONTEXT_FLOATS_MAX 200000000u

struct field {
        const char *name;
        size_t offset; /* of a uint32_t in struct model_config */
        uint32_t min, max;
        bool optional;
        uint32_t otherwise; /* when absent or null */
};

#define FIELD(name, member, ...)                                                                                       \
        { name, offsetof(struct model_config, member), __VA_ARGS__ }

static const struct field fields[] = {
    FIELD("vocab_size", vocab, 1, VOCAB_MAX),
    FIELD("hidden_size", hidden, 1, WIDTH_MAX),
    FIELD("num_hidden_layers", layers, 1, LAYERS_MAX),
    FIELD("num_attention_heads", heads, 1, HEADS_MAX),
    FIELD("q_lora_rank", q_lora, 1, WIDTH_MAX, true, 0),
    FIELD("kv_lora_rank", kv_rank, 1, LATENT_MAX),
    FIELD("qk_nope_head_dim", nope, 1, HEAD_DIM_MAX),
    FIELD("qk_rope_head_dim", rope, 2, HEAD_DIM_MAX),
    FIELD("v_head_dim", v, 1, HEAD_DIM_MAX),
    FIELD("intermediate_size", dense_width, 1, WIDTH_MAX),
    FIELD("max_position_embeddings", max_positions, 1, POSITIONS_MAX),
    FIELD("n_routed_experts", experts, 1, EXPERTS_MAX, true, 0),
    FIELD("num_nextn_predict_layers", mtp_layers, 0, LAYERS_MAX, true, 0),
};

/* Needed only by models with routed experts. */
static const struct field expert_fields[] = {
    FIELD("moe_intermediate_size", expert_width, 1, WIDTH_MAX),
    FIELD("num_experts_per_tok", top_k, 1, EXPERTS_MAX),
    FIELD("n_shared_experts", shared_experts, 0, EXPERTS_MAX, true, 0),
    FIELD("first_k_dense_replace", dense_layers, 0, LAYERS_MAX, true, 0),
    FIELD("moe_layer_freq", moe_freq, 1, LAYERS_MAX, true, 1),
    FIELD("n_group", groups, 1, EXPERTS_MAX, true, 1),
    FIELD("topk_group", top_groups, 1, EXPERTS_MAX, true, 1),
};

/* The member, or NULL when it is absent or null. */
static yyjson_val *member(yyjson_val *object, const char *name) {
        yyjson_val *v = json_get(object, name);

        return yyjson_is_null(v) ? NULL : v;
}

/* Refuse a value: "NAME must be WHAT, is VALUE". */
static int refuse(struct error *e, const char *name, const char *what, yyjson_val *v) {
        struct buf text = {0};
        int r;

        if (!v)
                return error_set(e, -EINVAL, "%s is missing: it must be %s", name, what);
        json_add_value(&text, v);
        r = error_set(e, -EINVAL, "%s must be %s, is %.80s", name, what, buf_cstr(&text));
        buf_free(&text);
        return r;
}

static int read_fields(yyjson_val *root, const struct field *f, size_t count, struct model_config *c, struct error *e) {
        for (; count; f++, count--) {
                yyjson_val *v = member(root, f->name);
                uint32_t *to = (uint32_t *)((char *)c + f->offset);
                char what[64];
                int64_t n;

                if (!v && f->optional) {
                        *to = f->otherwise;
                        continue;
                }
                if (!v || json_to_i64(v, &n) < 0 || n < f->min || n > f->max) {
                        snprintf(what, sizeof(what), "a whole number from %u to %u", f->min, f->max);
                        return refuse(e, f->name, what, v);
                }
                *to = (uint32_t)n;
        }
        return 0;
}

/* Numbers that survive being kept as float, and their products too. */
#define POSITIVE_MIN 1e-15
#define POSITIVE_MAX 1e15
#define SCALE_MAX    1e3 /* mscale: 0.1 * mscale * ln(factor) + 1 is squared; released ones are at most 1 */

static int read_positive(yyjson_val *object, const char *name, double *to, struct error *e) {
        yyjson_val *v = member(object, name);
        double d;

        if (!v || json_to_double(v, &d) < 0 || !(d >= POSITIVE_MIN && d <= POSITIVE_MAX))
                return refuse(e, name, "a number above 0", v);
        *to = d;
        return 0;
}

static int read_positive_or(yyjson_val *object, const char *name, double otherwise, double *to, struct error *e) {
        if (!member(object, name)) {
                *to = otherwise;
                return 0;
        }
        return read_positive(object, name, to, e);
}

static int read_scale(yyjson_val *object, const char *name, double otherwise, double *to, struct error *e) {
        yyjson_val *v = member(object, name);
        double d = otherwise;

        if (v && (json_to_double(v, &d) < 0 || !(d >= 0 && d <= SCALE_MAX)))
                return refuse(e, name, "a number from 0 to 1000", v);
        *to = d;
        return 0;
}

static int read_bool(yyjson_val *object, const char *name, bool otherwise, bool *to, struct error *e) {
        yyjson_val *v = member(object, name);

        if (v && !yyjson_is_bool(v))
                return refuse(e, name, "true or false", v);
        *to = v ? yyjson_get_bool(v) : otherwise;
        return 0;
}

static int read_architecture(yyjson_val *root, struct model_config *c, struct error *e) {
        static const struct {
                const char *architecture, *model_type;
                bool is_v3;
        } supported[] = {
            {"DeepseekV2ForCausalLM", "deepseek_v2", false},
            {"DeepseekV3ForCausalLM", "deepseek_v3", true},
        };
        struct slice name = json_slice(yyjson_arr_get_first(member(root, "architectures")));
        struct slice type = json_get_slice(root, "model_type");

        for (size_t i = 0; i < sizeof(supported) / sizeof(*supported); i++)
                if (slice_is(name, supported[i].architecture) ||
                    (!name.ptr && slice_is(type, supported[i].model_type))) {
                        snprintf(c->architecture, sizeof(c->architecture), "%s", supported[i].architecture);
                        c->is_v3 = supported[i].is_v3;
                        return 0;
                }
        if (!name.ptr)
                name = type.ptr ? type : SLICE_LIT("(none named)");
        return error_set(e, -EINVAL, "architecture %.*s is not supported; supported are %s and %s",
            name.len > 60 ? 60 : (int)name.len, name.ptr, supported[0].architecture, supported[1].architecture);
}

/* ---- what ties fields together ------------------------------------------------------------------------------------- */

static int read_gate(yyjson_val *root, struct model_config *c, struct error *e) {
        yyjson_val *method = member(root, "topk_method"), *scoring = member(root, "scoring_func");
        struct slice m = json_slice(method), s = json_slice(scoring);
        double scale;
        int r;

        if (c->is_v3) {
                if (method && !slice_is(m, "noaux_tc"))
                        return refuse(e, "topk_method", "\"noaux_tc\" in a V3 model", method);
                if (scoring && !slice_is(s, "sigmoid"))
                        return refuse(e, "scoring_func", "\"sigmoid\" in a V3 model", scoring);
                c->gate = GATE_SIGMOID_NOAUX;
        } else {
                if (method && !slice_is(m, "greedy") && !slice_is(m, "group_limited_greedy"))
                        return refuse(e, "topk_method", "\"greedy\" or \"group_limited_greedy\" in a V2 model", method);
                if (scoring && !slice_is(s, "softmax"))
                        return refuse(e, "scoring_func", "\"softmax\" in a V2 model", scoring);
                c->gate = slice_is(m, "group_limited_greedy") ? GATE_SOFTMAX_GROUPS : GATE_SOFTMAX_GREEDY;
        }
        r = read_bool(root, "norm_topk_prob", c->is_v3, &c->norm_topk, e);
        if (r == 0)
                r = read_positive(root, "routed_scaling_factor", &scale, e);
        if (r == 0)
                c->routed_scale = (float)scale;
        return r;
}

static int read_experts(yyjson_val *root, struct model_config *c, struct error *e) {
        int r;

        if (c->experts == 0)
                return 0;
        r = read_fields(root, expert_fields, sizeof(expert_fields) / sizeof(*expert_fields), c, e);
        if (r == 0)
                r = read_gate(root, c, e);
        if (r < 0)
                return r;
        if (c->top_k > c->experts)
                return error_set(
                    e, -EINVAL, "num_experts_per_tok %u is more than n_routed_experts %u", c->top_k, c->experts);
        if (c->gate == GATE_SOFTMAX_GREEDY)
                c->groups = c->top_groups = 1;
        if (c->experts % c->groups)
                return error_set(
                    e, -EINVAL, "n_routed_experts %u do not divide into n_group %u groups", c->experts, c->groups);
        if (c->gate == GATE_SIGMOID_NOAUX && c->groups > 1 && c->experts / c->groups < 2)
                return error_set(e, -EINVAL, "n_group %u leaves fewer than two experts in a group", c->groups);
        if (c->top_groups > c->groups)
                return error_set(e, -EINVAL, "topk_group %u is more than n_group %u", c->top_groups, c->groups);
        if (c->top_k > c->experts / c->groups * c->top_groups)
                return error_set(e, -EINVAL,
                    "num_experts_per_tok %u is more than the %u experts of topk_group %u groups", c->top_k,
                    c->experts / c->groups * c->top_groups, c->top_groups);
        if ((uint64_t)c->shared_experts * c->expert_width > WIDTH_MAX)
                return error_set(e, -EINVAL, "n_shared_experts %u times moe_intermediate_size %u is more than %u",
                    c->shared_experts, c->expert_width, WIDTH_MAX);
        return 0;
}

/* rope_scaling with rope_theta beside it, or both in rope_parameters (newer transformers); the kind is "type" or
 * "rope_type". */
static int read_rope(yyjson_val *root, struct model_config *c, struct error *e) {
        yyjson_val *both = member(root, "rope_parameters"), *scaling = both ? both : member(root, "rope_scaling");
        yyjson_val *kind = member(scaling, "rope_type");
        struct field original = FIELD("original_max_position_embeddings", rope_scaling.original, 1, POSITIONS_MAX);
        int r;

        if (!kind)
                kind = member(scaling, "type");
        if (scaling && !yyjson_is_obj(scaling))
                return refuse(e, both ? "rope_parameters" : "rope_scaling", "an object", scaling);
        r = read_positive(member(both, "rope_theta") ? both : root, "rope_theta", &c->rope_scaling.theta, e);
        if (r < 0 || !scaling)
                return r;
        if (slice_is(json_slice(kind), "default"))
                return 0;
        if (!slice_is(json_slice(kind), "yarn") && !slice_is(json_slice(kind), "deepseek_yarn"))
                return refuse(e, "the type of rope_scaling", "\"yarn\" or \"default\"", kind);
        if (member(scaling, "attention_factor") || !json_get_bool(scaling, "truncate", true))
                return error_set(e, -EINVAL, "rope_scaling with attention_factor or truncate=false is not supported");
        c->rope_scaling.yarn = true;
        r = read_positive(scaling, "factor", &c->rope_scaling.factor, e);
        if (r == 0)
                r = read_positive_or(scaling, "beta_fast", 32, &c->rope_scaling.beta_fast, e);
        if (r == 0)
                r = read_positive_or(scaling, "beta_slow", 1, &c->rope_scaling.beta_slow, e);
        if (r == 0)
                r = read_scale(scaling, "mscale", 1, &c->rope_scaling.mscale, e);
        if (r == 0)
                r = read_scale(scaling, "mscale_all_dim", 0, &c->rope_scaling.mscale_all_dim, e);
        return r < 0 ? r : read_fields(scaling, &original, 1, c, e);
}

static int read_quantization(yyjson_val *root, struct model_config *c, struct error *e) {
        yyjson_val *q = member(root, "quantization_config"), *block, *format;
        struct slice method;
        int64_t n, k;

        if (!q)
                return 0;
        if (!yyjson_is_obj(q))
                return refuse(e, "quantization_config", "an object", q);
        method = json_get_slice(q, "quant_method");
        if (slice_is(method, "ascend"))
                return 0;
        if (!slice_is(method, "fp8"))
                return refuse(
                    e, "quantization_config.quant_method", "\"fp8\" or \"ascend\"", member(q, "quant_method"));
        format = member(q, "fmt");
        if (format && !slice_is(json_slice(format), "e4m3"))
                return refuse(e, "quantization_config.fmt", "\"e4m3\"", format);
        block = member(q, "weight_block_size");
        if (yyjson_arr_size(block) != 2 || json_to_i64(yyjson_arr_get(block, 0), &n) < 0 ||
            json_to_i64(yyjson_arr_get(block, 1), &k) < 0 || n < 1 || k < 1 || n > WIDTH_MAX || k > WIDTH_MAX)
                return refuse(
                    e, "quantization_config.weight_block_size", "two whole numbers such as [128, 128]", block);
        c->fp8 = true;
        c->fp8_block_n = (uint32_t)n;
        c->fp8_block_k = (uint32_t)k;
        return 0;
}

static int check_activation(yyjson_val *root, struct error *e) {
        yyjson_val *act = member(root, "hidden_act");
        bool bias = false;
        int r;

        if (act && !slice_is(json_slice(act), "silu"))
                return refuse(e, "hidden_act", "\"silu\"", act);
        r = read_bool(root, "attention_bias", false, &bias, e);
        if (r == 0 && bias)
                r = error_set(e, -EINVAL, "attention_bias is true: biases in attention are not supported");
        return r;
}

static int check_shapes(struct model_config *c, struct error *e) {
        if (c->rope % 2)
                return error_set(e, -EINVAL, "qk_rope_head_dim %u is odd; it is rotated in pairs", c->rope);
        if (c->kv_rank + c->rope > LATENT_MAX)
                return error_set(e, -EINVAL, "kv_lora_rank %u and qk_rope_head_dim %u are together more than %u",
                    c->kv_rank, c->rope, LATENT_MAX);
        if ((uint64_t)c->max_positions * c->rope > ROPE_TABLE_MAX)
                return error_set(e, -EINVAL, "max_position_embeddings %u times qk_rope_head_dim %u is more than %u",
                    c->max_positions, c->rope, ROPE_TABLE_MAX);
        if ((uint64_t)c->heads * c->v > WIDTH_MAX)
                return error_set(e, -EINVAL, "num_attention_heads %u times v_head_dim %u is more than %u", c->heads,
                    c->v, WIDTH_MAX);
        if ((uint64_t)c->heads * ((uint64_t)c->nope + c->rope + c->v) > HEADS_WIDTH_MAX)
                return error_set(e, -EINVAL,
                    "num_attention_heads %u times the %u + %u + %u of qk_nope_head_dim, qk_rope_head_dim and "
                    "v_head_dim "
                    "is more than %u",
                    c->heads, c->nope, c->rope, c->v, HEADS_WIDTH_MAX);
        if ((uint64_t)c->max_positions * (c->kv_rank + 2) > CONTEXT_FLOATS_MAX)
                return error_set(e, -EINVAL, "max_position_embeddings %u times kv_lora_rank %u is more than %u",
                    c->max_positions, c->kv_rank, CONTEXT_FLOATS_MAX);
        return 0;
}

/* ---- token ids ------------------------------------------------------------------------------------------------------ */

static bool has_eos(const struct model_config *c, int64_t id) {
        for (uint32_t i = 0; i < c->eos_count; i++)
                if (c->eos[i] == id)
                        return true;
        return false;
}

static int add_eos(yyjson_val *v, struct model_config *c, struct error *e) {
        yyjson_arr_iter list;
        yyjson_val *one = v;

        if (yyjson_arr_iter_init(v, &list))
                one = yyjson_arr_iter_next(&list);
        for (; one; one = yyjson_arr_iter_next(&list)) {
                int64_t id;

                if (json_to_i64(one, &id) < 0 || id < 0 || id >= c->vocab)
                        return refuse(e, "eos_token_id", "an id below vocab_size, or a list of them", v);
                if (has_eos(c, id))
                        continue;
                if (c->eos_count == sizeof(c->eos) / sizeof(*c->eos))
                        return error_set(
                            e, -EINVAL, "eos_token_id has more than %zu ids", sizeof(c->eos) / sizeof(*c->eos));
                c->eos[c->eos_count++] = id;
        }
        return 0;
}

static int read_ids(yyjson_val *root, struct model_config *c, struct error *e) {
        yyjson_val *bos = member(root, "bos_token_id");

        c->bos = -1;
        if (bos && (json_to_i64(bos, &c->bos) < 0 || c->bos < 0 || c->bos >= c->vocab))
                return refuse(e, "bos_token_id", "an id below vocab_size", bos);
        return add_eos(member(root, "eos_token_id"), c, e);
}

/* Its eos ids count too; the file is optional. */
static int read_generation_config(const char *dir, struct model_config *c, struct error *e) {
        yyjson_doc *doc;
        char path[4096];
        int r;

        snprintf(path, sizeof(path), "%s/generation_config.json", dir);
        if (access(path, F_OK) < 0)
                return 0;
        r = json_parse_file(path, CONFIG_BYTES_MAX, &doc, e);
        if (r < 0)
                return -EINVAL;
        r = add_eos(member(yyjson_doc_get_root(doc), "eos_token_id"), c, e);
        if (r < 0)
                error_prefix(e, r, "%s", path);
        yyjson_doc_free(doc);
        return r;
}

/* ---- the whole ------------------------------------------------------------------------------------------------------ */

int model_config_parse(yyjson_val *root, struct model_config *c, struct error *e) {
        double eps;
        int r;

        if (!yyjson_is_obj(root))
                return error_set(e, -EINVAL, "not a JSON object");
        r = read_architecture(root, c, e);
        if (r == 0)
                r = read_fields(root, fields, sizeof(fields) / sizeof(*fields), c, e);
        if (r == 0)
                r = read_positive(root, "rms_norm_eps", &eps, e);
        if (r == 0)
                r = check_activation(root, e);
        if (r == 0)
                r = check_shapes(c, e);
        if (r == 0)
                r = read_experts(root, c, e);
        if (r == 0)
                r = read_rope(root, c, e);
        if (r == 0)
                r = read_quantization(root, c, e);
        if (r == 0)
                r = read_ids(root, c, e);
        if (r == 0)
                r = read_bool(root, "tie_word_embeddings", false, &c->tied, e);
        if (r < 0)
                return r;
        c->eps = (float)eps;
        c->softmax_scale = (float)rope_softmax_scale(c);
        return 0;
}

int model_config_read(const char *dir, struct model_config *ret_config, struct error *e) {
        struct model_config c = {0};
        yyjson_doc *doc;
        char path[4096];
        int r;

        if ((size_t)snprintf(path, sizeof(path), "%s/config.json", dir) >= sizeof(path))
                return error_set(e, -EINVAL, "the path of the model folder is too long");
        r = json_parse_file(path, CONFIG_BYTES_MAX, &doc, e);
        if (r < 0)
                return r == -ENOENT || r == -ENOTDIR ? -ENOENT : r == -ENOMEM ? r : -EINVAL;
        r = model_config_parse(yyjson_doc_get_root(doc), &c, e);
        if (r < 0)
                error_prefix(e, r, "%s", path);
        yyjson_doc_free(doc);
        if (r == 0)
                r = read_generation_config(dir, &c, e);
        if (r < 0)
                return r;
        *ret_config = c;
        return 0;
}

bool model_layer_is_moe(const struct model_config *c, uint32_t layer) {
        return c->experts > 0 && layer >= c->dense_layers && layer % c->moe_freq == 0;
}
