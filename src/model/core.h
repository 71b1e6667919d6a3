/* core.h - the inside of a struct model (private to model/). */
#pragma once
#include "base/arena.h"
#include "base/json.h"
#include "model/model.h"
#include <stdatomic.h>

/* kv_lora_rank + qk_rope_head_dim; the attention kernels' limit */
#define LATENT_MAX 4096u

struct norm {
        const float *weight, *bias; /* bias NULL: none (all but Ascend checkpoints) */
        uint32_t width;
};

struct layer {
        struct norm input_norm, q_norm, kv_norm, post_norm;
        struct linear q_a;         /* unused when q_lora is 0 */
        struct linear q;           /* q_b_proj, or q_proj; of this rank's heads */
        struct linear kv_a;        /* [rank latent | rope] */
        struct linear kv_b;        /* naive form */
        struct head_linear absorb; /* absorbed form: W_UK transposed */
        struct head_linear expand; /* and W_UV */
        struct linear o;
        bool moe;
        struct mlp dense; /* or, in a MoE layer, the shared experts as one */
        bool has_shared;
        struct linear gate;
        const float *gate_bias; /* [experts] or NULL */
        struct mlp *experts;    /* [experts]; width 0: not held here */
        struct held *held;      /* [experts]: where they lie; bytes 0: not held here */
        bool experts_take_int8; /* model_experts_take_int8() */
};

/* Packed weights, one after the other. */
struct region {
        void *memory; /* mapped */
        size_t bytes, used;
};

/* Where an expert lies: in the model's region, or in that of a batch that came later. */
struct held {
        struct expert_batch *batch; /* NULL: the model's region */
        char *memory;
        size_t bytes;
};

/* Memory taken piece by piece, 64-byte aligned, that stays for the next user. First run with measure(), then begin(). */
struct workspace {
        char *memory;
        size_t bytes, used;
        bool measuring;
};

struct model {
        struct model_config config;
        struct model_options options;
        uint32_t heads;                   /* of this rank */
        uint32_t vocab_first, vocab_rows; /* of this rank */
        uint32_t *own, own_count; /* [layers][own_count]: routed experts that this rank is loaded with, or SLOT_EMPTY */
        bool experts_cut;         /* routed experts are cut by width over the tensor-parallel ranks */
        struct arena arena;
        struct region region;         /* all packed weights that were loaded at the start */
        size_t released, batch_bytes; /* experts that have gone from it, and those that have come since */
        struct moving *moving;        /* what moving experts takes; NULL: they stay */
        struct weight_source embed;   /* of this rank's vocabulary rows */
        struct linear head;
        struct norm final_norm;
        struct layer *layers; /* main ones, then MTP's when loaded */
        uint32_t layer_count;
        struct {
                struct norm enorm, hnorm, head_norm;
                struct linear eh;
                struct weight_source embed;
                struct linear head;
        } mtp;
        float *rope_table; /* [max_positions][rope / 2][cos, sin] */
        struct experts_interface experts;
        struct reduce_interface reduce;
        struct workspace work, experts_work;
        char digest[33];
};

/* ---- config.c ------------------------------------------------------------------------------------------------------- */

/* config.json into a zeroed config. 0 or -EINVAL with a text; *c is then half done. */
int model_config_parse(yyjson_val *root, struct model_config *c, struct error *e);

/* ---- rope.c --------------------------------------------------------------------------------------------------------- */

double rope_softmax_scale(const struct model_config *c);
/* Angles in double, kept as float: at position 100,000 products in float would lose three digits. */
void rope_fill_table(const struct model_config *c, float *table);

/* ---- gate.c --------------------------------------------------------------------------------------------------------- */

/* Scratch for one row: 2*experts + groups floats. */
size_t gate_scratch_floats(const struct model_config *c);
/* One row of router logits to top_k experts, best first, and their weights. */
void gate_select(const struct model_config *c, const float *bias, const float *logits, float *scratch, uint32_t *ids,
    float *weights);

/* ---- experts.c ------------------------------------------------------------------------------------------------------ */

/* The built-in experts_interface.run; context is the model. */
int experts_run_here(void *context, uint32_t layer, const float *x, const uint32_t *ids, const float *weights,
    size_t tokens, float *out, void (*overlap)(void *overlap_context), void *overlap_context);

/* ---- load.c --------------------------------------------------------------------------------------------------------- */

/* All that model_load() finds wrong by names, types and shapes, without reading a weight. 0 or its errors. */
int model_check(const struct model_options *options, struct error *e);

/* A model of which one layer is in memory at a time, for a way through one that is larger than memory: it has its embedding
 * and, after model_walk_layer(), that layer of the main ones; no head, no final norm. The model is the walk's. Errors as
 * model_load()'s, in the `e` that was given here. */
struct model_walk;
int model_walk_open(
    const struct model_options *options, struct model_walk **ret_walk, struct model **ret_model, struct error *e);
int model_walk_layer(struct model_walk *w, uint32_t layer);
void model_walk_close(struct model_walk *w); /* NULL is fine */

/* ---- forward.c ------------------------------------------------------------------------------------------------------ */

void workspace_measure(struct workspace *w);
int workspace_begin(struct workspace *w);                             /* 0 or -ENOMEM */
void *workspace_take(struct workspace *w, size_t count, size_t size); /* NULL while measuring */
void workspace_free(struct workspace *w);

/* What a step needs while it runs: all arrays have a row per row of the step unless said otherwise. */
struct stepping {
        struct model *m;
        const struct model_step *step;
        size_t rows, absorbed; /* `absorbed` of the rows take the absorbed form */
        float *x, *h, *out;    /* [hidden]: the residual stream, what was normed, what is added */
        float *q_a, *q, *kv, *attended;
        float *gathered_q, *latent_q, *latent_out, *gathered_v; /* absorbed rows only */
        float *router, *weights, *shared, *gate_scratch;
        uint32_t *ids, *positions;
        float *head_in; /* [logit_count][hidden] */
        float *pair;    /* [2 hidden], model_draft only */
        struct attention_span *naive_spans, *absorbed_spans;
        size_t naive_count, absorbed_count;
        uint32_t layer;          /* being run */
        _Atomic size_t next_row; /* for which nobody has chosen experts yet */
};

/* Lay out the buffers in m->work and see where each row lies. Returns 0 or -ENOMEM. */
int stepping_begin(struct stepping *s, struct model *m, const struct model_step *step, bool draft);
/* Embeddings of the step's tokens into `to` [rows][hidden]. 0 or what reduce returned. */
int stepping_embed(struct stepping *s, const struct weight_source *embed, float *to);
/* x += attention, x += ffn. 0 or what experts or reduce returned. */
int stepping_layer(struct stepping *s, struct kv_cache *kv, uint32_t layer);
/* Logits of the wanted rows of `normed` [rows][hidden]. */
int stepping_logits(struct stepping *s, const struct linear *head, const float *normed, float *logits);
void stepping_norm(struct stepping *s, const struct norm *norm, const float *x, size_t ldx, float *y, size_t ldy);
/* Round to what a bf16 engine would keep; nothing with ACTIVATION_F32. */
void stepping_round(const struct stepping *s, float *x, size_t ld, size_t rows, size_t n);
