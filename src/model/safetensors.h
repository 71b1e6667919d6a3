/* safetensors.h - the tensors of a checkpoint folder, mapped and checked (private to model/).
 *
 * Format: u64 little-endian header length n, n bytes of JSON {name: {"dtype","shape","data_offsets":[begin,end]}}, then raw
 * data that the offsets count from. Everything is hostile until checked: a tensor handed out lies inside its file and has as
 * many bytes as its shape and dtype say. */
#pragma once
#include "base/error.h"
#include "base/slice.h"

enum dtype { DTYPE_F64, DTYPE_F32, DTYPE_F16, DTYPE_BF16, DTYPE_FP8, DTYPE_I64, DTYPE_I32, DTYPE_I8, DTYPE_OTHER };
const char *dtype_name(enum dtype d);
size_t dtype_bytes(enum dtype d);

#define TENSOR_DIMS 4

struct tensor {
        const char *name;
        const char *file; /* for messages */
        enum dtype dtype;
        uint32_t dims;
        uint64_t shape[TENSOR_DIMS];
        const void *data;
        size_t bytes;
};

struct checkpoint; /* owns mappings and names */

/* The folder's safetensors: by an index if there is one (`prefix` such as "quant_model_weight" or "model" prefers one of
 * several), else all *.safetensors files. -ENOENT, -EINVAL, -ENOMEM with a text that names file and tensor. */
int checkpoint_open(const char *dir, const char *prefix, struct checkpoint **ret_checkpoint, struct error *e);
void checkpoint_close(struct checkpoint *c);                                        /* NULL is fine */
const struct tensor *checkpoint_find(const struct checkpoint *c, const char *name); /* NULL: none */
/* All tensors, sorted by name. */
const struct tensor *checkpoint_tensors(const struct checkpoint *c, size_t *ret_count);
/* The pages of a tensor will not be read again soon. */
void checkpoint_forget(const struct tensor *t);

/* One file's bytes in memory: for tests and the fuzzer. The list is allocated with names in it; free with free(). */
int safetensors_parse(
    const char *file, struct slice bytes, struct tensor **ret_tensors, size_t *ret_count, struct error *e);
