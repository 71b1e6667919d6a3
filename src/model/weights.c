/* weights.c - see weights.h. */
#include "model/weights.h"
#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

/* Of any tensor name that is asked for here. */
#define NAME_MAX_BYTES 256

/* ---- finding -------------------------------------------------------------------------------------------------------- */

const struct tensor *weights_find(const struct weights *w, const char *name, const char *suffix) {
        char full[NAME_MAX_BYTES];
        int n = snprintf(full, sizeof(full), "%s%s", name, suffix);

        assert(n > 0 && (size_t)n < sizeof(full));
        return safetensors_find(&w->files, slice_of(full, (size_t)n));
}

bool weights_has(const struct weights *w, const char *name) {
        return weights_find(w, name, "") != NULL;
}

int weights_need(
    const struct weights *w, const char *name, const char *suffix, const struct tensor **ret_tensor, struct error *e) {
        const struct tensor *t = weights_find(w, name, suffix);

        if (!t)
                return error_set(e, -EINVAL, "tensor %s%s is in none of the checkpoint's files", name, suffix);
        *ret_tensor = t;
        return 0;
}

int weights_blame(const struct weights *w, const struct tensor *t, struct error *e, const char *format, ...) {
        char text[512];
        va_list args;

        va_start(args, format);
        vsnprintf(text, sizeof(text), format, args);
        va_end(args);
        return error_set(e, -EINVAL, "%s: tensor %.*s %s", w->files.files[t->file].path, SLICE_ARG(t->name), text);
}

void *weights_scratch(struct weights *w, size_t count, size_t size, struct error *e) {
        void *p = arena_array(&w->scratch, count, size);

        if (!p)
                error_set(e, -ENOMEM, "out of memory while reading weights");
        return p;
}

/* ---- values --------------------------------------------------------------------------------------------------------- */

static uint16_t load16(const unsigned char *at) {
        uint16_t v;

        memcpy(&v, at, sizeof(v));
        return v;
}

int weights_floats(
    const struct weights *w, const struct tensor *t, size_t first, size_t count, float *to, struct error *e) {
        const unsigned char *at = t->data + first * dtype_bytes(t->dtype);

        assert((first + count) * dtype_bytes(t->dtype) <= t->bytes);
        switch (t->dtype) {
        case DTYPE_F32:
                memcpy(to, at, count * sizeof(float));
                return 0;
        case DTYPE_BF16:
                for (size_t i = 0; i < count; i++)
                        to[i] = bf16_to_float(load16(at + 2 * i));
                return 0;
        case DTYPE_F16:
                for (size_t i = 0; i < count; i++)
                        to[i] = f16_to_float(load16(at + 2 * i));
                return 0;
        default:
                return weights_blame(w, t, e, "is %s; f32, f16 or bf16 is needed here", dtype_name(t->dtype));
        }
}

int weights_check_floats(const struct weights *w, const struct tensor *t, struct error *e) {
        float none;

        return weights_floats(w, t, 0, 0, &none, e);
}

int weights_vector(struct weights *w, const char *name, size_t n, float *to, struct error *e) {
        const struct tensor *t = NULL;
        int r = weights_need(w, name, "", &t, e);

        if (r < 0)
                return r;
        if (t->rank != 1 || t->shape[0] != n)
                return weights_blame(w, t, e, "has not the shape [%zu] that config.json asks for", n);
        return w->measuring ? weights_check_floats(w, t, e) : weights_floats(w, t, 0, n, to, e);
}

/* ---- linear layers -------------------------------------------------------------------------------------------------- */

static int check_matrix(const struct weights *w, const struct tensor *t, const struct cut *cut, struct error *e) {
        if (t->rank != 2)
                return weights_blame(w, t, e, "has %u dimensions, a matrix is needed", t->rank);
        if (t->shape[0] != cut->n || t->shape[1] != cut->k)
                return weights_blame(w, t, e, "has the shape [%llu, %llu]; config.json asks for [%zu, %zu]",
                    (unsigned long long)t->shape[0], (unsigned long long)t->shape[1], cut->n, cut->k);
        return 0;
}

/* Tell the kernel about the pages of a range of the mapping. */
static void advise(const unsigned char *data, size_t bytes, int advice) {
        const uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE), begin = (uintptr_t)data / page * page;

        if (bytes)
                (void)madvise((void *)begin, (uintptr_t)data + bytes - begin, advice);
}

static void place_data(
    const struct weights *w, const struct tensor *t, const struct cut *cut, struct weight_source *s) {
        const size_t size = dtype_bytes(t->dtype), first = cut->first_row * cut->k;
        const unsigned char *data = t->data + first * size;

        s->n = cut->rows;
        s->k = cut->cols;
        s->row_stride = cut->k;
        if (!w->measuring)
                advise(data, cut->rows * cut->k * size, MADV_WILLNEED);
        s->data = data + cut->first_col * size;
}

static int fp8_source(struct weights *w, const char *name, const struct tensor *t, const struct cut *cut,
    struct weight_source *s, struct error *e) {
        const struct tensor *scales = weights_find(w, name, ".weight_scale_inv");
        size_t rows, cols;
        float *to;

        if (!scales)
                return weights_blame(w, t, e, "is F8_E4M3 but has no weight_scale_inv beside it");
        if (!w->block_n)
                return weights_blame(
                    w, t, e, "is F8_E4M3 but config.json has no quantization_config.weight_block_size");
        rows = (cut->n + w->block_n - 1) / w->block_n;
        cols = (cut->k + w->block_k - 1) / w->block_k;
        if (scales->rank != 2 || scales->shape[0] != rows || scales->shape[1] != cols)
                return weights_blame(w, scales, e, "has not the shape [%zu, %zu] of the weight's blocks", rows, cols);
        *s = (struct weight_source){.type = WEIGHT_FP8,
            .scale_stride = cols,
            .block_n = w->block_n,
            .block_k = w->block_k,
            .first_row = cut->first_row,
            .first_col = cut->first_col};
        if (w->measuring)
                return weights_check_floats(w, scales, e);
        to = weights_scratch(w, rows * cols, sizeof(*to), e);
        s->scale = to;
        return to ? weights_floats(w, scales, 0, rows * cols, to, e) : -ENOMEM;
}

/* Linear layers of these models have no bias; some exports write zeros. */
static int check_no_bias(const struct weights *w, const char *name, struct error *e) {
        const struct tensor *t = weights_find(w, name, ".bias");

        for (size_t i = 0; t && !w->measuring && i < t->bytes; i++)
                if (t->data[i])
                        return weights_blame(w, t, e, "is not zero: biases of linear layers are not supported");
        return 0;
}

int weights_source(
    struct weights *w, const char *name, const struct cut *cut, struct weight_source *ret_source, struct error *e) {
        struct weight_source s = {0};
        enum ascend_kind kind = ASCEND_FLOAT;
        const struct tensor *t = NULL;
        int r = weights_need(w, name, ".weight", &t, e);

        if (r == 0)
                r = check_matrix(w, t, cut, e);
        if (r == 0)
                r = check_no_bias(w, name, e);
        if (r == 0)
                r = ascend_kind_of(w, name, &kind, e);
        if (r < 0)
                return r;
        if ((kind != ASCEND_FLOAT) != (t->dtype == DTYPE_I8))
                return weights_blame(w, t, e, "is %s, which %s", dtype_name(t->dtype),
                    !w->ascend             ? "needs a quant_model_description.json in the folder"
                    : kind == ASCEND_FLOAT ? "the quantisation description calls FLOAT"
                                           : "the quantisation description calls int8");
        switch (t->dtype) {
        case DTYPE_F32:
                s.type = WEIGHT_F32;
                break;
        case DTYPE_F16:
                s.type = WEIGHT_F16;
                break;
        case DTYPE_BF16:
                s.type = WEIGHT_BF16;
                break;
        case DTYPE_F8_E4M3:
                r = fp8_source(w, name, t, cut, &s, e);
                break;
        case DTYPE_I8:
                r = ascend_source(w, name, kind, cut, &s, e);
                break;
        default:
                return weights_blame(
                    w, t, e, "is %s; weights may be f32, f16, bf16, fp8 (e4m3) or int8", dtype_name(t->dtype));
        }
        if (r < 0)
                return r;
        place_data(w, t, cut, &s);
        *ret_source = s;
        return 0;
}

bool weights_same(const struct weights *w, const char *name, const char *other, const struct cut *cut) {
        const struct tensor *a = weights_find(w, name, ".weight"), *b = weights_find(w, other, ".weight");

        if (!a || !b || a->dtype != b->dtype || a->bytes != b->bytes || a->rank != 2 || b->rank != 2 ||
            a->shape[0] != b->shape[0] || a->shape[0] != cut->n || a->shape[1] != cut->k || a->dtype == DTYPE_I8 ||
            a->dtype == DTYPE_F8_E4M3)
                return false;
        return memcmp(a->data + cut->first_row * cut->k * dtype_bytes(a->dtype),
                   b->data + cut->first_row * cut->k * dtype_bytes(a->dtype),
                   cut->rows * cut->k * dtype_bytes(a->dtype)) == 0;
}

void weights_drop(const struct tensor *t) {
        advise(t->data, t->bytes, MADV_DONTNEED);
}

void weights_done(struct weights *w, const char *name) {
        const struct tensor *t = weights_find(w, name, ".weight");

        arena_reset(&w->scratch);
        if (t)
                weights_drop(t);
}

/* ---- the folder ----------------------------------------------------------------------------------------------------- */

static int check_quantization(
    const struct weights *w, const char *wanted, const struct model_config *config, const char *dir, struct error *e) {
        if (!wanted)
                return 0;
        if (strcmp(wanted, "ascend") == 0)
                return w->ascend ? 0
                                 : error_set(e, -EINVAL,
                                       "quantization ascend: %s holds no quant_model_description*.json", dir);
        if (strcmp(wanted, "fp8") == 0)
                return config->fp8 ? 0
                                   : error_set(e, -EINVAL,
                                         "quantization fp8: %s/config.json has no fp8 quantization_config", dir);
        return error_set(e, -EINVAL, "quantization %s is not supported; supported are ascend and fp8", wanted);
}

int weights_open(const struct model_options *options, const struct model_config *config, struct weights *ret_weights,
    struct error *e) {
        struct weights w = {.static_quantization = options->static_quantization,
            .block_n = config->fp8_block_n,
            .block_k = config->fp8_block_k};
        int r = ascend_open(&w, options->dir, e);

        if (r == 0)
                r = check_quantization(&w, options->quantization, config, options->dir, e);
        if (r == 0)
                r = safetensors_open_folder(options->dir, &w.files, e);
        if (r < 0) {
                weights_close(&w);
                return r;
        }
        *ret_weights = w;
        return 0;
}

void weights_close(struct weights *w) {
        safetensors_close(&w->files);
        names_free(&w->kinds);
        arena_free(&w->kind_names);
        arena_free(&w->scratch);
}
