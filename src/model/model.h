/* model.h - a DeepSeek V2/V3 checkpoint in memory, and its forward pass over a paged latent cache.
 *
 * model_load() reads a Hugging Face folder (config.json, safetensors with or without index) by mmap, packs what this
 * rank needs for the kernels, and refuses everything that does not fit with one clear message. A step is a flat ragged
 * batch: rows of tokens with a span per sequence; prefill and decode differ only in which attention form a span takes.
 * One thread uses a model at a time. */
#pragma once
#include "kernels/kernels.h"
#include "model/placement.h"
#include <signal.h>

/* ---- configuration (config.json) -------------------------------------------------------------------------------- */

enum gate_kind { GATE_SOFTMAX_GREEDY, GATE_SOFTMAX_GROUPS, GATE_SIGMOID_NOAUX };

struct model_config {
        char architecture[64];
        bool is_v3;
        uint32_t vocab, hidden, layers, heads;
        uint32_t q_lora; /* 0: direct q_proj */
        uint32_t kv_rank, nope, rope, v;
        uint32_t dense_width, expert_width;
        uint32_t dense_layers; /* first_k_dense_replace */
        uint32_t moe_freq;
        uint32_t experts, shared_experts, top_k, groups, top_groups;
        enum gate_kind gate;
        bool norm_topk;
        float routed_scale, eps, softmax_scale;
        uint32_t max_positions;
        uint32_t mtp_layers; /* num_nextn_predict_layers */
        struct {
                bool yarn;
                double theta, factor, beta_fast, beta_slow, mscale, mscale_all_dim;
                uint32_t original;
        } rope_scaling;
        int64_t bos, eos[8]; /* -1: none */
        uint32_t eos_count;
        bool fp8;
        uint32_t fp8_block_n, fp8_block_k;
        bool tied; /* lm_head is the embedding */
};

/* Read and check DIR/config.json (and eos ids of generation_config.json). -ENOENT, -EINVAL with a text. */
int model_config_read(const char *dir, struct model_config *ret_config, struct error *e);
bool model_layer_is_moe(const struct model_config *c, uint32_t layer);

/* ---- loading ---------------------------------------------------------------------------------------------------- */

struct model; /* owns its packed weights */

/* The part of the model that this process holds, and its partners in a step. All zero: everything, no partner.
 * With ep_size > 1 this rank holds whole experts, those of its slots, and model_set_experts() must give an interface that reaches
 * all; its sums are complete on every rank. With
 * tp_size > 1 model_set_reduce() is needed; without expert parallelism the routed experts are cut by columns too. */
struct model_shard {
        uint32_t tp_rank, tp_size;         /* heads, MLP columns, vocabulary */
        uint32_t ep_rank, ep_size;         /* routed experts; 0 means 1 */
        const struct placement *placement; /* over ep_size ranks, read while loading; NULL: linear */
};

/* Runs the routed experts of one MoE layer, wherever they live. x and out are [tokens][hidden], ids and weights
 * [tokens][top_k]; for each k in the order of `ids`: out[t] = out[t] + weights[t][k] * expert ids[t][k] (x[t]), product and
 * sum rounded separately, so that every implementation gives the same bits.
 * The local implementation is built in; expert parallelism (comm/) gives another. 0 or a negative errno that ends the
 * step. `overlap` (may be NULL) is work that does not depend on the result, to be done while data is in flight. */
struct experts_interface {
        int (*run)(void *context, uint32_t layer, const float *x, const uint32_t *ids, const float *weights,
            size_t tokens, float *out, void (*overlap)(void *overlap_context), void *overlap_context);
        void *context;
};
/* Sums partial results over the tensor-parallel ranks in rank order, so that all ranks get the same bits. Never called
 * with count 0. */
struct reduce_interface {
        int (*all_reduce)(void *context, float *data, size_t count);
        void *context;
};

struct model_options {
        const char *dir;
        struct compute *compute; /* borrowed for the model's life */
        struct model_shard shard;
        bool load_mtp;
        bool movable_experts;     /* keep the checkpoint mapped, for model_fetch_experts() */
        const char *quantization; /* "fp8" or "ascend": refuse a folder that is not; NULL: by what the folder holds */
        bool static_quantization; /* W8A8_MIX layers: static (engines that only decode) instead of dynamic */
};

/* Returns 0, or with a text -ENOENT, -EINVAL (file, shape, dtype, architecture), -ENOMEM (says how much is missing). */
int model_load(const struct model_options *options, struct model **ret_model, struct error *e);
void model_free(struct model *m);
/* mtp_layers is how many were loaded: 0 or 1. */
const struct model_config *model_config(const struct model *m);
uint32_t model_layers(const struct model *m); /* main ones, then MTP's when loaded */
size_t model_bytes(const struct model *m);    /* packed weights held */
/* 128-bit digest as 32 hex digits: of what config.json says about the arithmetic, of every tensor's name, type and shape,
 * and of the norms' contents, which tell fine-tunes apart. Equal on equal checkpoints, however they are cut into files. */
const char *model_digest(const struct model *m);
/* 32 hex digits of what the rows of a KV cache depend on but for the weights themselves: equal for the same model in any
 * format. 0 or -ENOMEM. */
int model_cache_digest(const struct model_config *config, char ret_digest[33]);
void model_set_experts(struct model *m, const struct experts_interface *experts); /* NULL: the local ones */
void model_set_reduce(struct model *m, const struct reduce_interface *reduce);
const struct mlp *model_expert(struct model *m, uint32_t layer, uint32_t expert); /* NULL: not held here */
/* Do all routed experts of the layer, wherever they live, take_int8_rows() (kernels.h)? */
bool model_experts_take_int8(const struct model *m, uint32_t layer);

/* ---- moving experts --------------------------------------------------------------------------------------------- */

/* Experts of one layer, packed and not yet in use. */
struct expert_batch;
/* Read and pack those of `experts` [count] (SLOT_EMPTY: none) that the layer does not hold, with movable_experts. May run beside
 * steps, on one thread at a time, as long as nothing is adopted meanwhile; `stop` (set by any thread: -ECANCELED soon) may be NULL. *ret_batch
 * is NULL when nothing is lacking. 0, or with a text what model_load() returns. */
int model_fetch_experts(struct model *m, uint32_t layer, const uint32_t *experts, uint32_t count,
    const _Atomic bool *stop, struct expert_batch **ret_batch, struct error *e);
/* From now on the layer holds `experts` and nothing else; what they lack is in the batch (taken over; may be NULL). The memory of
 * others is given back at once. Between steps. */
void model_adopt_experts(
    struct model *m, uint32_t layer, const uint32_t *experts, uint32_t count, struct expert_batch *batch);
void expert_batch_free(struct expert_batch *batch); /* one that was not adopted; NULL is fine */

/* ---- the cache -------------------------------------------------------------------------------------------------- */

/* One region, block-major: [block][layer][token][kv_rank + rope], so that a block of all layers is one contiguous run
 * (one read for a KV transfer). Layers are the main ones, then MTP's when loaded. */
struct kv_cache {
        void *memory; /* owned; 2 MiB aligned */
        size_t bytes;
        enum kv_type type;
        uint32_t blocks, block_tokens, layers, width, rank;
        size_t block_bytes;
};
size_t kv_cache_block_bytes(const struct model *m, enum kv_type type, uint32_t block_tokens);
int kv_cache_new(const struct model *m, enum kv_type type, uint32_t block_tokens, uint32_t blocks,
    struct kv_cache *ret_cache, struct error *e);
void kv_cache_free(struct kv_cache *kv);
struct kv_layer kv_cache_layer(const struct kv_cache *kv, uint32_t layer);

/* ---- a step ----------------------------------------------------------------------------------------------------- */

/* Consecutive rows of one sequence. Rows [0, naive) take the naive form, the rest the absorbed one. Which is which must
 * be a function of position and prompt alone (see engine/), so that chunking, hits and preemption change no bit. */
struct model_span {
        const uint32_t *blocks; /* block table that covers position first + rows - 1 */
        uint32_t first;         /* position of the span's first row */
        uint32_t rows, naive;
};

struct model_step {
        const uint32_t *tokens; /* [rows], < vocab */
        size_t rows;
        const struct model_span *spans; /* their rows in order make up the step */
        size_t span_count;
        const uint32_t *logit_rows; /* ascending rows whose logits are wanted */
        size_t logit_count;
        /* Called for each layer once the step's rows of it are in the cache, where they stay as they are; NULL: nobody asks. */
        void (*on_rows)(void *context, uint32_t layer);
        void *rows_context;
};

/* Run the step: writes the cache at the spans' positions, and logits[i] (vocab floats) for logit_rows[i]. hidden (may be
 * NULL) receives the hidden state after the final norm of every row, [rows][hidden].
 * Returns 0, -ENOMEM, or what experts/reduce returned. A step with 0 rows takes part in the collectives only. */
int model_forward(struct model *m, struct kv_cache *kv, const struct model_step *step, float *logits, float *hidden);

/* The multi-token-prediction module over the same spans: row r uses hidden[r] (as model_forward gave it, or this
 * function's own hidden_out for a further draft) and tokens[r], the token that follows row r's position. Writes its own
 * layer of the cache. */
int model_draft(struct model *m, struct kv_cache *kv, const struct model_step *step, const float *hidden, float *logits,
    float *hidden_out);

/* ---- making quantised checkpoints ------------------------------------------------------------------------------- */

enum quantize_format {
        QUANTIZE_W8A8_DYNAMIC, /* Ascend int8, activations scaled per token */
        QUANTIZE_W8A8_STATIC,  /* the same, but attention's projections take one scale and offset out of calibration */
        QUANTIZE_W8A8_MIX,     /* attention's projections both ways: the engine's role chooses (static_quantization) */
        QUANTIZE_FP8,          /* e4m3 under one scale per block of 128 x 128, as DeepSeek-V3 is released */
};

struct quantize_prompt {
        const uint32_t *tokens; /* < vocab */
        size_t count;           /* beyond 2048, or the model's own limit, they are left out */
};

struct quantize_options {
        const char *from, *to; /* folders; `to` must not be there yet */
        enum quantize_format format;
        struct compute *compute;
        const struct quantize_prompt *prompts; /* for QUANTIZE_W8A8_STATIC and _MIX: what the ranges are taken from */
        size_t prompt_count;
        void (*progress)(void *context, const char *doing, size_t done, size_t all); /* may be NULL */
        void *context;
        const volatile sig_atomic_t *stop; /* not 0: end soon with -ECANCELED; may be NULL */
};

/* Write a quantised copy of an f32, f16 or bf16 checkpoint (W8A8: of an fp8 one, too): linear layers of attention (W8A8: but
 * kv_b_proj, whose values the absorbed form needs), MLPs and experts, those of the MTP module included (W8A8: never
 * statically); all else as it is. Files that are no weights come along, config.json says what the weights are now.
 *
 * A file of the old checkpoint becomes a file of the new one, 128 rows at a time: memory holds those, and with
 * prompts, before, one layer of the model and the hidden states of all prompts. All is written to a folder
 * `to`.partial that is renamed at the end, and removed on failure.
 * Returns 0, or with a text -EEXIST (`to`, or the partial folder of another run), -EINVAL (what cannot be quantised), -ENOSPC, -ECANCELED,
 * what model_load() returns, or why a file cannot be written. */
int model_quantize(const struct quantize_options *options, struct error *e);
