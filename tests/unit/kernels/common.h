/* common.h - what the kernel tests share: computes of every instruction set, random weights, a plain product. */
#pragma once
#include "base/rng.h"
#include "kernels/kernels.h"
#include <errno.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static inline struct compute *new_compute(enum isa isa, unsigned threads, enum activation activation) {
        struct compute_options o = {.isa = isa, .threads = threads, .activation = activation};
        struct compute *c = NULL;
        struct error e = {{0}};
        int r = compute_new(&o, &c, &e);

        if (r < 0)
                fail_msg("compute_new: %s", error_text(&e, r));
        return c;
}

/* The best instruction set of this machine; tests run all up to it. */
static inline enum isa best(void) {
        struct compute *c = new_compute(ISA_BEST, 1, ACTIVATION_F32);
        enum isa isa = compute_isa(c);

        compute_free(c);
        return isa;
}

static inline void *alloc(size_t bytes) {
        void *p = aligned_alloc(64, (bytes + 127) / 64 * 64);

        assert_non_null(p);
        memset(p, 0xa5, (bytes + 127) / 64 * 64);
        return p;
}

static inline float normal(struct rng *r) { /* about N(0, 1) */
        double sum = 0;

        for (int i = 0; i < 6; i++)
                sum += rng_unit(r) - 0.5;
        return (float)(sum * 1.4142);
}

static inline float *random_floats(struct rng *r, size_t n) {
        float *x = alloc(n * sizeof(float));

        for (size_t i = 0; i < n; i++)
                x[i] = normal(r);
        return x;
}

/* A weight with everything it borrows. */
struct weight {
        struct weight_source s;
        void *data, *scale, *bias;
};

static inline void free_weight(struct weight *w) {
        free(w->data);
        free(w->scale);
        free(w->bias);
}

/* fp8 blocks are 128 x 128, cut out of a larger grid at (first_row, first_col). */
static inline struct weight random_weight(
    struct rng *r, enum weight_type type, size_t n, size_t k, size_t first_row, size_t first_col) {
        struct weight w = {.s = {.type = type, .n = n, .k = k, .row_stride = k + 3}};
        const size_t count = n * w.s.row_stride;

        switch (type) {
        case WEIGHT_F32:
                w.data = random_floats(r, count);
                break;
        case WEIGHT_F16:
                w.data = alloc(count * 2);
                for (size_t i = 0; i < count; i++)
                        ((uint16_t *)w.data)[i] = (uint16_t)(rng_u64(r) & 0xbfff); /* all but the largest, inf, NaN */
                break;
        case WEIGHT_BF16:
                w.data = alloc(count * 2);
                for (size_t i = 0; i < count; i++)
                        ((uint16_t *)w.data)[i] = float_to_bf16(normal(r));
                break;
        case WEIGHT_FP8:
                w.data = alloc(count);
                for (size_t i = 0; i < count; i++)
                        do
                                ((uint8_t *)w.data)[i] = (uint8_t)rng_u64(r);
                        while ((((uint8_t *)w.data)[i] & 0x7f) == 0x7f);
                w.s.block_n = w.s.block_k = 128;
                w.s.first_row = first_row;
                w.s.first_col = first_col;
                w.s.scale_stride = (first_col + k) / 128 + 2;
                w.scale = random_floats(r, ((first_row + n) / 128 + 1) * w.s.scale_stride);
                break;
        case WEIGHT_INT8_DYNAMIC:
        case WEIGHT_INT8_STATIC:
                w.data = alloc(count);
                for (size_t i = 0; i < count; i++)
                        ((int8_t *)w.data)[i] = (int8_t)rng_u64(r); /* -128 too */
                w.scale = random_floats(r, n);
                w.bias = alloc(n * sizeof(int32_t));
                for (size_t i = 0; i < n; i++)
                        ((int32_t *)w.bias)[i] = (int32_t)rng_below(r, 100000) - 50000;
                w.s.input_scale_inv = 25.25f;
                w.s.input_offset = 7;
                break;
        }
        w.s.data = w.data;
        w.s.scale = w.s.row_scale = w.s.deq_scale = w.scale;
        w.s.quant_bias = w.bias;
        return w;
}

struct packed {
        struct linear l;
        void *memory;
};

static inline struct packed pack(struct compute *c, const struct weight_source *s) {
        struct packed p = {.memory = alloc(linear_bytes(s))};
        struct error e = {{0}};
        int r = linear_pack(c, s, p.memory, &p.l, &e);

        if (r < 0)
                fail_msg("linear_pack: %s", error_text(&e, r));
        return p;
}

static inline int8_t quantise(float x) {
        float v = rintf(x);

        return (int8_t)(v < -128 ? -128 : v > 127 ? 127 : v);
}

/* The codes under one scale are summed first, then scaled. */
static inline float plain_fp8_sum(const struct weight_source *s, bool rounded, const float *x, size_t r) {
        const uint8_t *codes = (const uint8_t *)s->data + r * s->row_stride;
        const float *scales = s->scale + (s->first_row + r) / s->block_n * s->scale_stride;
        float y = 0, sum = 0;

        for (size_t i = 0; i < s->k; i++) {
                float xi = rounded ? bf16_to_float(float_to_bf16(x[i])) : x[i];
                size_t column = s->first_col + i;

                sum = fmaf(xi, fp8_e4m3_to_float(codes[i]), sum);
                if (i + 1 < s->k && (column + 1) % s->block_k != 0)
                        continue;
                y = fmaf(sum, scales[column / s->block_k], y);
                sum = 0;
        }
        return y;
}

/* y[n] of one row, from the checkpoint's bytes and the formulas alone. */
static inline void plain_product(const struct weight_source *s, bool rounded, const float *x, float *y) {
        float *row = alloc(s->k * sizeof(float)), largest = 0, scale;

        for (size_t i = 0; i < s->k; i++)
                largest = fmaxf(largest, fabsf(x[i]));
        scale = largest / 127;
        for (size_t r = 0; r < s->n; r++) {
                if (s->type == WEIGHT_INT8_DYNAMIC || s->type == WEIGHT_INT8_STATIC) {
                        const int8_t *w = (const int8_t *)s->data + r * s->row_stride;
                        int32_t sum = 0;

                        for (size_t i = 0; i < s->k; i++) {
                                float q = s->type == WEIGHT_INT8_STATIC ? x[i] * s->input_scale_inv + s->input_offset
                                          : scale > 0                   ? x[i] / scale
                                                                        : 0;

                                sum += quantise(q) * w[i];
                        }
                        if (s->type == WEIGHT_INT8_STATIC)
                                y[r] = (float)(sum + (s->quant_bias ? s->quant_bias[r] : 0)) * s->deq_scale[r];
                        else
                                y[r] = (float)sum * scale * s->row_scale[r];
                        continue;
                }
                weight_row(s, r, row);
                y[r] = 0;
                if (s->type == WEIGHT_FP8) {
                        y[r] = plain_fp8_sum(s, rounded, x, r);
                        continue;
                }
                for (size_t i = 0; i < s->k; i++)
                        y[r] = fmaf(rounded ? bf16_to_float(float_to_bf16(x[i])) : x[i], row[i], y[r]);
        }
        free(row);
}

static inline void same_floats(const float *a, const float *b, size_t n) {
        for (size_t i = 0; i < n; i++)
                if (memcmp(&a[i], &b[i], sizeof(float)) != 0)
                        fail_msg("element %zu of %zu: %.9g is not %.9g", i, n, (double)a[i], (double)b[i]);
}

static inline void near_floats(const float *a, const float *b, size_t n, double tolerance) {
        double scale = 0;

        for (size_t i = 0; i < n; i++)
                scale = fmax(scale, fabs((double)b[i]));
        for (size_t i = 0; i < n; i++)
                if (!(fabs((double)a[i] - (double)b[i]) <= tolerance * scale))
                        fail_msg("element %zu of %zu: %.9g is not near %.9g (largest %g)", i, n, (double)a[i],
                            (double)b[i], scale);
}
