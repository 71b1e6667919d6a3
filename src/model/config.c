/* config.c - config.json of DeepSeek V2 and V3 checkpoints: read, checked, and turned into what the forward pass uses. */
#include "base/json.h"
#include "model/internal.h"
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

/* A config.json is a few KB, its largest relatives (with quantisation lists) some MB. */
#define CONFIG_MAX (16u << 20)
/* Sizes beyond these are no model of this family but a broken or hostile file; they keep every product in 64 bits. */
#define DIM_MAX    (1u << 20)
#define LAYERS_MAX 1024u

struct reading {
        yyjson_val *root;
        const char *path;
        struct error *e;
        int result; /* the first failure */
};

static void bad(struct reading *r, const char *key, const char *what) {
        if (r->result == 0)
                r->result = error_set(r->e, -EINVAL, "%s: `%s` %s", r->path, key, what);
}

/* An integer member within [min, max]; absent or null gives `otherwise`, or an error when that is negative. */
static uint32_t number(struct reading *r, const char *key, int64_t min, int64_t max, int64_t otherwise) {
        yyjson_val *v = json_get(r->root, key);
        int64_t value;
        char text[96];

        if (!v || yyjson_is_null(v)) {
                if (otherwise < 0)
                        bad(r, key, "is missing");
                return otherwise < 0 ? 0 : (uint32_t)otherwise;
        }
        if (json_to_i64(v, &value) < 0)
                bad(r, key, "is not a whole number");
        else if (value < min || value > max) {
                snprintf(text, sizeof(text), "is %lld, it must lie in %lld..%lld", (long long)value, (long long)min,
                    (long long)max);
                bad(r, key, text);
        } else
                return (uint32_t)value;
        return 0;
}

static double real(struct reading *r, yyjson_val *object, const char *key, double otherwise) {
        yyjson_val *v = json_get(object, key);
        double value;

        if (!v || yyjson_is_null(v))
                return otherwise;
        if (json_to_double(v, &value) < 0 || !isfinite(value)) {
                bad(r, key, "is not a number");
                return otherwise;
        }
        return value;
}

static void read_architecture(struct reading *r, struct model_config *c) {
        struct slice name = json_slice(yyjson_arr_get_first(json_get(r->root, "architectures")));
        char text[160];

        snprintf(c->architecture, sizeof(c->architecture), "%.*s",
            SLICE_ARG(slice_sub(name, 0, sizeof(c->architecture) - 1)));
        c->is_v3 = slice_is(name, "DeepseekV3ForCausalLM");
        if (c->is_v3 || slice_is(name, "DeepseekV2ForCausalLM"))
                return;
        snprintf(text, sizeof(text), "is `%s`; supported are DeepseekV2ForCausalLM and DeepseekV3ForCausalLM",
            c->architecture[0] ? c->architecture : "missing");
        bad(r, "architectures", text);
}

static void read_gate(struct reading *r, struct model_config *c) {
        struct slice method = json_get_slice(r->root, "topk_method"), scoring = json_get_slice(r->root, "scoring_func");

        c->experts = number(r, "n_routed_experts", 0, MODEL_EXPERTS_MAX, 0);
        if (c->experts == 0)
                return;
        c->shared_experts = number(r, "n_shared_experts", 0, 64, 0);
        c->top_k = number(r, "num_experts_per_tok", 1, c->experts, -1);
        c->expert_width = number(r, "moe_intermediate_size", 1, DIM_MAX, -1);
        c->groups = number(r, "n_group", 1, c->experts, 1);
        c->top_groups = number(r, "topk_group", 1, c->groups ? c->groups : 1, 1);
        c->norm_topk = json_get_bool(r->root, "norm_topk_prob", c->is_v3);
        c->routed_scale = (float)real(r, r->root, "routed_scaling_factor", 1);
        if (c->is_v3 || slice_is(method, "noaux_tc"))
                c->gate = GATE_SIGMOID_NOAUX;
        else if (slice_is(method, "group_limited_greedy"))
                c->gate = GATE_SOFTMAX_GROUPS;
        else if (!method.len || slice_is(method, "greedy"))
                c->gate = GATE_SOFTMAX_GREEDY;
        else
                bad(r, "topk_method", "must be greedy, group_limited_greedy or noaux_tc");
        if (scoring.len && !slice_is(scoring, c->gate == GATE_SIGMOID_NOAUX ? "sigmoid" : "softmax"))
                bad(r, "scoring_func", c->gate == GATE_SIGMOID_NOAUX ? "must be sigmoid" : "must be softmax");
        if (c->groups && c->experts % c->groups)
                bad(r, "n_group", "does not divide n_routed_experts");
        else if (c->gate == GATE_SIGMOID_NOAUX && c->groups > 1 && c->experts / c->groups < 2)
                bad(r, "n_group", "leaves fewer than two experts in a group");
        else if (c->groups && c->gate != GATE_SOFTMAX_GREEDY && c->top_k > c->experts / c->groups * c->top_groups)
                bad(r, "num_experts_per_tok", "is more than the chosen groups hold");
}

/* rope_scaling (with `type` or `rope_type`) beside rope_theta, or newer transformers' rope_parameters with both inside. */
static void read_rope(struct reading *r, struct model_config *c) {
        yyjson_val *scaling = json_get(r->root, "rope_scaling"), *parameters = json_get(r->root, "rope_parameters");
        struct slice type;

        if (yyjson_is_obj(parameters))
                scaling = parameters;
        c->rope_scaling.theta = real(r, r->root, "rope_theta", 10000);
        c->rope_scaling.theta = real(r, scaling, "rope_theta", c->rope_scaling.theta);
        if (c->rope_scaling.theta <= 1)
                bad(r, "rope_theta", "must be larger than 1");
        type = json_get_slice(scaling, "rope_type");
        if (!type.len)
                type = json_get_slice(scaling, "type");
        if (!yyjson_is_obj(scaling) || slice_is(type, "default") || !type.len)
                return;
        if (!slice_is(type, "yarn")) {
                bad(r, "rope_scaling.type", "must be yarn");
                return;
        }
        c->rope_scaling.yarn = true;
        c->rope_scaling.factor = real(r, scaling, "factor", 1);
        c->rope_scaling.beta_fast = real(r, scaling, "beta_fast", 32);
        c->rope_scaling.beta_slow = real(r, scaling, "beta_slow", 1);
        c->rope_scaling.mscale = real(r, scaling, "mscale", 1);
        c->rope_scaling.mscale_all_dim = real(r, scaling, "mscale_all_dim", 0);
        c->rope_scaling.original = (uint32_t)real(r, scaling, "original_max_position_embeddings", 4096);
        if (c->rope_scaling.factor <= 0)
                bad(r, "rope_scaling.factor", "must be positive");
        if (c->rope_scaling.original < 1)
                bad(r, "rope_scaling.original_max_position_embeddings", "must be positive");
}

static void read_quantization(struct reading *r, struct model_config *c) {
        yyjson_val *q = json_get(r->root, "quantization_config"), *block;
        struct slice method = json_get_slice(q, "quant_method");
        int64_t n, k;

        if (!yyjson_is_obj(q))
                return;
        if (!slice_is(method, "fp8")) {
                bad(r, "quantization_config.quant_method",
                    "must be fp8 (Ascend W8A8 checkpoints come without this member)");
                return;
        }
        block = json_get(q, "weight_block_size");
        if (json_to_i64(yyjson_arr_get(block, 0), &n) < 0 || json_to_i64(yyjson_arr_get(block, 1), &k) < 0 || n < 1 ||
            k < 2 || n > 4096 || k > 512 || k % 2) {
                bad(r, "quantization_config.weight_block_size", "must be two sizes such as [128, 128]");
                return;
        }
        c->fp8 = true;
        c->fp8_block_n = (uint32_t)n;
        c->fp8_block_k = (uint32_t)k;
}

static void add_eos(struct model_config *c, yyjson_val *v) {
        int64_t id;

        if (json_to_i64(v, &id) < 0 || id < 0 || c->eos_count == 8)
                return;
        for (uint32_t i = 0; i < c->eos_count; i++)
                if (c->eos[i] == id)
                        return;
        c->eos[c->eos_count++] = id;
}

static void add_eos_ids(struct model_config *c, yyjson_val *v) {
        size_t i, n;
        yyjson_val *item;

        if (yyjson_is_arr(v)) {
                yyjson_arr_foreach(v, i, n, item) add_eos(c, item);
        } else
                add_eos(c, v);
}

static void read_dimensions(struct reading *r, struct model_config *c) {
        c->vocab = number(r, "vocab_size", 1, 1 << 24, -1);
        c->hidden = number(r, "hidden_size", 1, DIM_MAX, -1);
        c->layers = number(r, "num_hidden_layers", 1, LAYERS_MAX, -1);
        c->heads = number(r, "num_attention_heads", 1, 4096, -1);
        c->q_lora = number(r, "q_lora_rank", 0, DIM_MAX, 0);
        c->kv_rank = number(r, "kv_lora_rank", 1, DIM_MAX, -1);
        c->nope = number(r, "qk_nope_head_dim", 1, 65536, -1);
        c->rope = number(r, "qk_rope_head_dim", 2, 65536, -1);
        c->v = number(r, "v_head_dim", 1, 65536, -1);
        c->dense_width = number(r, "intermediate_size", 1, DIM_MAX, -1);
        c->dense_layers = number(r, "first_k_dense_replace", 0, LAYERS_MAX, 0);
        c->moe_freq = number(r, "moe_layer_freq", 1, LAYERS_MAX, 1);
        c->max_positions = number(r, "max_position_embeddings", 1, 1 << 24, -1);
        c->mtp_layers = number(r, "num_nextn_predict_layers", 0, 16, 0);
        c->eps = (float)real(r, r->root, "rms_norm_eps", 1e-6);
        if (c->rope % 2)
                bad(r, "qk_rope_head_dim", "must be even");
        if (json_get_bool(r->root, "attention_bias", false))
                bad(r, "attention_bias", "is true; biases in attention are not supported");
        if (json_get_slice(r->root, "hidden_act").len && !slice_is(json_get_slice(r->root, "hidden_act"), "silu"))
                bad(r, "hidden_act", "must be silu");
}

static double yarn_mscale(double factor, double mscale) {
        return factor <= 1 ? 1 : 0.1 * mscale * log(factor) + 1;
}

int model_config_read(const char *dir, struct model_config *ret_config, struct error *e) {
        struct model_config c = {.bos = -1};
        char path[4096];
        struct reading r = {.path = path, .e = e};
        yyjson_doc *doc;
        double m;
        int result;

        snprintf(path, sizeof(path), "%s/config.json", dir);
        result = json_parse_file(path, CONFIG_MAX, &doc, e);
        if (result < 0)
                return result;
        r.root = yyjson_doc_get_root(doc);
        if (!yyjson_is_obj(r.root))
                bad(&r, "config.json", "is not a JSON object");
        read_architecture(&r, &c);
        read_dimensions(&r, &c);
        read_gate(&r, &c);
        read_rope(&r, &c);
        read_quantization(&r, &c);
        if (json_to_i64(json_get(r.root, "bos_token_id"), &c.bos) < 0)
                c.bos = -1;
        add_eos_ids(&c, json_get(r.root, "eos_token_id"));
        yyjson_doc_free(doc);
        if (r.result < 0)
                return r.result;
        if (c.experts == 0) /* every layer is dense */
                c.dense_layers = LAYERS_MAX + 16;
        m = c.rope_scaling.yarn && c.rope_scaling.mscale_all_dim != 0
                ? yarn_mscale(c.rope_scaling.factor, c.rope_scaling.mscale_all_dim)
                : 1;
        c.softmax_scale = (float)(m * m / sqrt((double)c.nope + c.rope));
        snprintf(path, sizeof(path), "%s/generation_config.json", dir);
        if (json_parse_file(path, CONFIG_MAX, &doc, NULL) == 0) {
                add_eos_ids(&c, json_get(yyjson_doc_get_root(doc), "eos_token_id"));
                yyjson_doc_free(doc);
        }
        *ret_config = c;
        return 0;
}

bool model_layer_is_moe(const struct model_config *c, uint32_t layer) {
        return c->experts && layer >= c->dense_layers && layer % c->moe_freq == 0;
}

/* ---- rope tables -------------------------------------------------------------------------------------------------------- */

/* Dimension at which `rotations` full turns fit into the original length. */
static double correction(const struct model_config *c, double rotations) {
        return c->rope * log(c->rope_scaling.original / (rotations * 2 * M_PI)) / (2 * log(c->rope_scaling.theta));
}

float *rope_table_new(const struct model_config *c, uint32_t positions) {
        uint32_t pairs = c->rope / 2;
        float *table = malloc((size_t)positions * c->rope * sizeof(*table));
        double low = 0, high = 0, scale = 1;

        if (!table)
                return NULL;
        if (c->rope_scaling.yarn) {
                low = fmax(floor(correction(c, c->rope_scaling.beta_fast)), 0);
                high = fmin(ceil(correction(c, c->rope_scaling.beta_slow)), c->rope - 1);
                if (low == high)
                        high += 0.001;
                scale = yarn_mscale(c->rope_scaling.factor, c->rope_scaling.mscale);
                if (c->rope_scaling.mscale_all_dim != 0)
                        scale /= yarn_mscale(c->rope_scaling.factor, c->rope_scaling.mscale_all_dim);
        }
        for (uint32_t j = 0; j < pairs; j++) {
                double frequency = pow(c->rope_scaling.theta, -2.0 * j / c->rope);

                if (c->rope_scaling.yarn) {
                        double ramp = fmin(fmax((j - low) / (high - low), 0), 1);

                        frequency = frequency / c->rope_scaling.factor * ramp + frequency * (1 - ramp);
                }
                for (uint32_t p = 0; p < positions; p++) {
                        table[((size_t)p * pairs + j) * 2] = (float)(cos(p * frequency) * scale);
                        table[((size_t)p * pairs + j) * 2 + 1] = (float)(sin(p * frequency) * scale);
                }
        }
        return table;
}
