/* quantize.h - the parts of making a quantised checkpoint (private to model/). */
#pragma once
#include "model/core.h"
#include "model/safetensors.h"

/* 0, or -ECANCELED with a text: somebody wants an end (quantize.c). */
int quantize_go_on(const struct quantize_options *o, struct error *e);

/* ---- values (quantize_values.c) ------------------------------------------------------------------------------------- */

/* Rows are quantised in slabs of so many, the rows of an fp8 block. */
#define QUANTIZE_BLOCK 128u

/* One slab of a weight of up to `columns` columns. */
struct slab {
        struct compute *compute;
        size_t columns;
        float *values;                /* [QUANTIZE_BLOCK][columns] */
        unsigned char *codes;         /* the same as int8, fp8 or bf16: contiguous rows */
        float scales[QUANTIZE_BLOCK]; /* int8: of each row */
        int32_t sums[QUANTIZE_BLOCK]; /* int8: of each row's codes */
        float *block_scales;          /* fp8: of each block */
};
int slab_init(struct slab *s, struct compute *compute, size_t columns); /* 0 or -ENOMEM */
void slab_free(struct slab *s);

/* Rows [first, first + rows) of `source`, at most a slab of them, into s->codes. 0, or -EDOM where a weight is no number.
 *   int8  scale = max|row| / 127, code = round(value / scale); a row of zeros has the scale 1
 *   fp8   scale = max|block| / 448, code = e4m3(value / scale); a block of zeros has the scale 1
 *   bf16  the nearest */
int slab_to_int8(struct slab *s, const struct weight_source *source, size_t first, size_t rows);
int slab_to_fp8(struct slab *s, const struct weight_source *source, size_t first, size_t rows);
int slab_to_bf16(struct slab *s, const struct weight_source *source, size_t first, size_t rows);

/* ---- ranges of activations (calibrate.c) ---------------------------------------------------------------------------- */

/* What enters the projections of a layer's attention. */
enum range_place { RANGE_HIDDEN /* of q_a_proj or q_proj, and kv_a_proj */, RANGE_Q_B, RANGE_O, RANGE_PLACES };
struct range {
        float low, high; /* 0 lies between them */
};
struct layer_ranges {
        struct range at[RANGE_PLACES];
};

/* Run the prompts through the model, one layer in memory at a time. *ret_ranges has an item for each main layer; the
 * caller frees it. */
int calibrate(const struct quantize_options *options, struct layer_ranges **ret_ranges, struct error *e);

/* The int8 of a range: code = clamp(round(x / scale + offset), -128, 127) has all 256 codes in it, and 0 exactly. */
struct input_scale {
        float scale, offset;
};
struct input_scale input_scale_of(struct range range);

/* ---- the new checkpoint's files (quantize_files.c) ------------------------------------------------------------------ */

/* A tensor that will be in a file. */
struct new_tensor {
        struct slice name; /* borrowed */
        enum dtype dtype;
        unsigned rank;
        uint64_t shape[2];
        const char *kind; /* of Ascend's description */
        uint64_t begin;   /* in the file: given by new_file_open() */
};

uint64_t new_tensor_bytes(const struct new_tensor *t);

/* The folder being written. */
struct new_folder {
        char *path, *partial;    /* what it will be called, and is until then */
        const char *stem;        /* of the names of files with tensors */
        size_t file_count;       /* there will be */
        uint64_t bytes;          /* of tensors so far */
        struct buf index, kinds; /* members of the weight map and of the description so far */
};

/* Make `to`.partial. -EEXIST, or why it cannot be made, with a text; *f is then as zeroed. */
int new_folder_open(struct new_folder *f, const char *to, const char *stem, size_t file_count, struct error *e);
/* -ENOSPC with a text when the file system has not so much left. */
int new_folder_check_space(struct new_folder *f, uint64_t bytes, struct error *e);
/* Copy the files of `from` that are neither tensors nor their index nor config.json. Folders stay behind. */
int new_folder_copy_rest(struct new_folder *f, const char *from, struct error *e);
int new_folder_write(struct new_folder *f, const char *name, struct slice text, struct error *e);
int new_folder_write_index(struct new_folder *f, struct error *e);
/* quant_model_description.json: `type` is the quantisation as a whole. */
int new_folder_write_description(struct new_folder *f, const char *type, struct error *e);
/* Give the folder its name. */
int new_folder_finish(struct new_folder *f, struct error *e);
void new_folder_close(struct new_folder *f); /* removes what is not finished; zeroed is fine */

/* A file with tensors, of which the header is written and all data is zero. */
struct new_file {
        char *path;
        int fd;
};
/* File `number` (from 0) with these tensors. Data is laid out by falling size of its elements, so that all lies aligned. */
int new_file_open(struct new_folder *f, size_t number, struct new_tensor *tensors, size_t count,
    struct new_file *ret_file, struct error *e);
int new_file_write(struct new_file *file, uint64_t at, const void *data, size_t bytes, struct error *e);
/* Close it; `r` is what came before: below 0, that is returned, and nothing is asked of the disk. */
int new_file_close(struct new_file *file, int r, struct error *e);
