/* internal.h - what a loaded model is made of (private to model/). */
#pragma once
#include "base/hash.h"
#include "model/model.h"
#include "model/safetensors.h"

/* Routed experts of a layer, at most: the largest released models have 384. Bounds arrays on the stack. */
#define MODEL_EXPERTS_MAX 1024u

struct norm {
        const float *weight, *bias; /* bias: Ascend's smoothed checkpoints, else NULL */
};

struct layer {
        struct norm input, post, q_a_norm, kv_a_norm;
        struct linear q_a, q_b; /* without q_lora: q_b is q_proj, q_a is unused */
        struct linear kv_a, kv_b, o;
        struct head_linear absorb, expand; /* the halves of kv_b */
        bool moe;
        struct mlp dense; /* or the shared experts of a MoE layer */
        bool has_shared;
        struct linear gate;
        const float *gate_bias; /* NULL: none */
        struct mlp *experts;    /* [experts]; width 0: not held here */
};

struct mtp {
        bool present;
        struct norm enorm, hnorm, head_norm;
        struct linear eh_proj, head;
        struct weight_source embed;
        struct layer layer;
};

/* Memory of a step, grown to the largest seen. Rows in all. */
struct workspace {
        size_t rows;
        void *memory; /* one block for all below */
        float *x, *h, *q_a, *q, *kv, *attended, *mlp, *router, *expert_weights, *routed, *absorbed_q, *latents, *z;
        uint32_t *positions, *expert_ids, *slots, *expert_rows;
};

struct model {
        struct model_config config;
        struct model_shard shard;
        struct compute *compute;
        uint32_t heads; /* held here */
        void *memory;   /* packed weights and norms */
        size_t bytes, mapped;
        struct checkpoint *checkpoint; /* stays mapped: the embedding is read from it */
        struct weight_source embed;
        struct layer *layers; /* config.layers */
        struct norm final_norm;
        struct linear head;
        struct mtp mtp;
        float *rope; /* [max_positions][rope] */
        struct experts_interface experts;
        struct reduce_interface reduce;
        struct workspace work;
        char digest[33];
};

/* config.c: cos and sin for every position and pair, NULL when memory is out. */
float *rope_table_new(const struct model_config *c, uint32_t positions);

/* gate.c: the experts of one token, best first, and their weights. `logits` is [experts] and is overwritten. */
void gate_choose(const struct model_config *c, float *logits, const float *bias, uint32_t *ret_ids, float *ret_weights);

/* load.c */
int model_load_weights(struct model *m, const struct model_options *o, struct error *e);

/* moe.c */
int moe_forward(struct model *m, uint32_t index, const struct layer *l, size_t rows, float *x);

/* forward.c: make room for a step. */
int workspace_reserve(struct model *m, size_t rows);
