/* weights.h - tensors of a checkpoint as sources for the kernels' packers (private to model/).
 *
 * A linear layer "X" is the tensor X.weight with whatever stands beside it: nothing (f32, f16, bf16), X.weight_scale_inv
 * (fp8), or Ascend's scales, offsets and biases, whose kind the folder's description file tells. Only the rows and columns
 * asked for are read. */
#pragma once
#include "model/model.h"
#include "model/safetensors.h"

/* Different unknown kinds that are told apart in messages. */
#define ASCEND_OTHER_KINDS_MAX 16u

struct weights {
        struct safetensors files;
        bool ascend;        /* a description file is there */
        struct names kinds; /* Ascend: tensor name -> enum ascend_kind, or beyond it of other_kinds */
        struct slice other_kinds[ASCEND_OTHER_KINDS_MAX]; /* that a description uses and no code here computes */
        uint32_t other_kind_count;
        struct arena kind_names;
        bool static_quantization;
        uint32_t block_n, block_k; /* of fp8 scales, 0: not given */
        /* Holds what sources borrow beside the mapping; reset by weights_done(). */
        struct arena scratch;
        /* Shapes, types and companions are checked, sources are good for linear_bytes() alone. */
        bool measuring;
};

/* The part of a weight [n][k] that is wanted. */
struct cut {
        size_t n, k; /* of the whole */
        size_t first_row, rows, first_col, cols;
};
static inline struct cut cut_none(size_t n, size_t k) {
        return (struct cut){n, k, 0, n, 0, k};
}
static inline struct cut cut_rows(size_t n, size_t k, size_t first, size_t count) {
        return (struct cut){n, k, first, count, 0, k};
}
static inline struct cut cut_cols(size_t n, size_t k, size_t first, size_t count) {
        return (struct cut){n, k, 0, n, first, count};
}

/* Open a model's folder. Errors as model_load()'s, with a text. */
int weights_open(const struct model_options *options, const struct model_config *config, struct weights *ret_weights,
    struct error *e);
void weights_close(struct weights *w);

bool weights_has(const struct weights *w, const char *name); /* a tensor */
/* The linear layer `name` (without ".weight"). Borrows until weights_done(). -EINVAL, -ENOENT, -ENOMEM with a text. */
int weights_source(
    struct weights *w, const char *name, const struct cut *cut, struct weight_source *ret_source, struct error *e);
/* Drop the pages that reading a tensor brought in. */
void weights_drop(const struct tensor *t);
/* Forget what the last sources borrowed, and drop the pages of X.weight that reading `name` brought in. */
void weights_done(struct weights *w, const char *name);
/* A vector of floats of any float type into `to` (NULL while measuring). */
int weights_vector(struct weights *w, const char *name, size_t n, float *to, struct error *e);
/* Whether the rows of two weights hold the same bytes. */
bool weights_same(const struct weights *w, const char *name, const char *other, const struct cut *cut);

/* model_digest()'s text (digest.c). Returns 0 or -ENOMEM. */
int digest_make(const struct model_config *config, const struct weights *w, char ret_digest[33], struct error *e);

/* ---- ascend.c ------------------------------------------------------------------------------------------------------- */

enum ascend_kind { ASCEND_FLOAT, ASCEND_STATIC, ASCEND_DYNAMIC, ASCEND_MIX };

const char *ascend_kind_name(enum ascend_kind kind); /* as the description calls it */
/* Read DIR/quant_model_description*.json when there is one. */
int ascend_open(struct weights *w, const char *dir, struct error *e);
/* What the description says of the layer `name`; ASCEND_FLOAT when it says nothing. */
int ascend_kind_of(const struct weights *w, const char *name, enum ascend_kind *ret_kind, struct error *e);
/* Complete a source whose data is X.weight's int8. */
int ascend_source(struct weights *w, const char *name, enum ascend_kind kind, const struct cut *cut,
    struct weight_source *s, struct error *e);

/* ---- shared by the two ---------------------------------------------------------------------------------------------- */

/* The tensor `name` followed by `suffix`, or NULL. */
const struct tensor *weights_find(const struct weights *w, const char *name, const char *suffix);
/* The same, or -EINVAL "NAME is missing". */
int weights_need(
    const struct weights *w, const char *name, const char *suffix, const struct tensor **ret_tensor, struct error *e);
/* Say what is wrong with a tensor: "FILE: tensor NAME …". */
int weights_blame(const struct weights *w, const struct tensor *t, struct error *e, const char *format, ...)
    __attribute__((format(printf, 4, 5)));
/* Elements [first, first + count) of an f32, f16 or bf16 tensor. -EINVAL for another type. */
int weights_floats(
    const struct weights *w, const struct tensor *t, size_t first, size_t count, float *to, struct error *e);
int weights_check_floats(const struct weights *w, const struct tensor *t, struct error *e); /* the type alone */
/* Memory until weights_done(); sets a text when there is none. */
void *weights_scratch(struct weights *w, size_t count, size_t size, struct error *e);
