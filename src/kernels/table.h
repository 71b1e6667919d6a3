/* table.h - what one instruction set offers: the inner loops, each run by one thread.
 *
 * Tiles are [rows][32] floats (or int32), contiguous. `lanes` is 16 or 32 where it is an argument. Every function gives
 * the same bits in every table, except those on bf16 pairs. */
#pragma once
#include "kernels/kernels.h"

/* The widest block of rows that any table's gemm takes. */
#define BLOCK_ROWS_MAX 12

struct kernel_table {
        unsigned block_rows;      /* rows that one gemm call takes at most */
        unsigned block_rows_int8; /* the same of gemm_int8 */

        /* c[r][lane] += sum over k of a[k * step + r * row_step] * b[k][lane], one fused chain per element. */
        void (*gemm)(const float *a, size_t step, size_t row_step, const float *b, size_t k, unsigned rows,
            unsigned lanes, float *c);
        /* One row against one or two panels (panel1 NULL: one) of a float type: c[lane] += ... `scale` as in expand. */
        void (*gemv[WEIGHT_FP8 + 1])(const float *x, const void *panel0, const void *panel1, size_t k,
            const float *scale0, const float *scale1, bool lane_scales, float *c0, float *c1);
        /* b[k][32] = the panel's weights as floats; fp8 times scale[0], or scale[lane]. NULL for f32. */
        void (*expand[WEIGHT_FP8 + 1])(const void *panel, size_t k, const float *scale, bool lane_scales, float *b);

        /* Dot products of bf16 pairs; NULL where the CPU has none.
         * c[r][lane] += sum over pairs, chained through c; with a scale the sum starts at 0 and is added to c scaled. */
        void (*gemm_bf16)(const uint32_t *a, size_t step, size_t row_step, const uint32_t *b, size_t pairs,
            unsigned rows, const float *scale, bool lane_scales, float *c);
        void (*gemv_bf16)(
            const uint32_t *x, const void *panel0, const void *panel1, size_t pairs, float *c0, float *c1);
        void (*gemv_bf16_fp8)(const uint32_t *x, const void *panel0, const void *panel1, size_t pairs,
            const float *scale0, const float *scale1, bool lane_scales, float *c0, float *c1);
        void (*expand_fp8_bf16)(const void *panel, size_t pairs, uint32_t *b);

        /* Quads of int8: c[r][lane] += exact sum. With `unsigned_activations` the activations carry +128 (their sign bit
         * flipped) and c begins at -128 times the sum of the weights. */
        bool unsigned_activations;
        void (*gemm_int8)(
            const uint32_t *a, size_t step, size_t row_step, const void *b, size_t quads, unsigned rows, int32_t *c);

        /* A row of activations as bf16 or int8, padded with zeros to a pair or quad. `flip` is xored into every byte. */
        void (*row_to_bf16)(const float *x, size_t k, uint16_t *ret_row);
        float (*row_largest)(const float *x, size_t k); /* max |x| */
        void (*row_to_int8)(const float *x, size_t k, float scale, uint8_t flip, uint8_t *ret_row);
        void (*row_to_int8_static)(
            const float *x, size_t k, float scale_inv, float offset, uint8_t flip, uint8_t *ret_row);
        /* out = (c + bias) * row_scale * scale; bias and row_scale may be NULL. */
        void (*int8_to_float)(const int32_t *c, unsigned rows, const int32_t *bias, const float *row_scale,
            const float *scale, float *out);
        /* out[r][i] = silu(gate[r][i]) * up[r][i] for i < width <= 32 */
        void (*swiglu)(const float *gate, const float *up, size_t rows, size_t width, float *out, size_t ldo);

        /* One tile of positions for `lanes` queries at once. s[position][lane] are raw scores and become weights
         * exp(scale*s - max); position i counts for a lane when i < visible[lane]. max and sum are carried over tiles;
         * keep[lane] is what earlier sums must be multiplied by. */
        void (*softmax)(float *s, size_t positions, unsigned lanes, float scale, const int32_t *visible, float *max,
            float *sum, float *keep);
        void (*scale_rows)(float *o, size_t rows, unsigned lanes, const float *factor); /* o[r][lane] *= factor[lane] */
        /* Fold the later part (o, max, sum) into the earlier one (into_...). */
        void (*merge)(float *into_o, float *into_max, float *into_sum, const float *o, const float *max,
            const float *sum, size_t rows, unsigned lanes);
        /* o[r][lane] / sum[lane] */
        void (*finish)(float *o, size_t rows, unsigned lanes, const float *sum);

        void (*rmsnorm)(const float *x, const float *weight, const float *bias, float eps, size_t n, float *y);
        void (*rope)(const float *turns, size_t pairs, float *x);
        void (*add)(const float *x, size_t n, float *y);
        void (*to_bf16)(const float *x, size_t n, uint16_t *y);
        void (*from_bf16)(const uint16_t *x, size_t n, float *y);
        void (*round_bf16)(float *x, size_t n);
};

extern const struct kernel_table kernels_scalar;
#if defined(__x86_64__)
extern const struct kernel_table kernels_avx2, kernels_avx512, kernels_avx512_bf16;
/* The AVX2 form, for AVX-512 CPUs without VNNI. */
void gemm_int8_avx2(
    const uint32_t *a, size_t step, size_t row_step, const void *b, size_t quads, unsigned rows, int32_t *c);
#endif
