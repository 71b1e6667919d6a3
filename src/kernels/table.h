/* table.h - what one instruction set offers: the inner loops, each run by one thread.
 *
 * Tiles are [rows][32] floats (or int32), contiguous. `lanes` is 16 or 32 where it is an argument. Every function gives
 * the same bits in every table, except those on bf16 pairs. */
#pragma once
#include "kernels/kernels.h"

/* A block of rows of activations and the weights they meet, both in 32-bit words: a float, two bf16 or four int8. */
struct operands {
        const void *a; /* word k of row r at a[k * step + r * row_step]; of pairs and quads at a[k * rows + r] */
        size_t step, row_step;
        const void *b; /* [k][lanes] words */
        size_t k;
        unsigned rows;
        const void *c; /* the sums begin at c[rows][lanes], or at 0 when it is NULL */
        void *out;     /* and go to out[r * ldo + lane] */
        size_t ldo;
        const float *scale; /* fp8: one, or with lane_scales 32; NULL for all else */
        bool lane_scales;
        const struct int8_ends *ends; /* int8, else NULL */
        const char *next; /* meanwhile `ahead` bytes per k are asked for from here on: the weights of later calls */
        size_t ahead;
};

/* What int8 sums begin at when there is no c, and how they become floats when they are complete: (sum + bias) * row_scale
 * * scale, in this order; bias and row_scale may be NULL. */
struct int8_ends {
        const int32_t *begin;           /* [32] */
        bool complete;                  /* with this call: `out` takes floats, else int32 */
        const int32_t *bias;            /* [32] */
        const float *row_scale, *scale; /* [rows], [32] */
};

/* Few rows of activations and one or two panels, whose weights are decoded on their way from memory. */
struct few_operands {
        const void *x; /* [k][rows] floats, or words of two bf16 */
        unsigned rows;
        const void *panel[2]; /* [1] may be NULL, and is with more than few_rows_paired rows */
        size_t k;
        size_t ahead;          /* meanwhile the weights so many bytes on are asked for */
        const float *scale[2]; /* as above, by panel */
        bool lane_scales;
        float *c[2]; /* [rows][32] */
};

/* Sums are chained from c to out: a[r][k] b[k][lane] is added for ascending k, fused. With a scale the chain begins at 0, and
 * scale * sum is added to c at its end, fused: such a call spans the columns of one fp8 scale. */
struct kernel_table {
        unsigned block_rows;      /* rows that one gemm call takes at most */
        unsigned block_rows_int8; /* the same of gemm_int8 */
        unsigned few_rows;        /* rows that few and few_bf16 take at most: more gain by decoding first */
        unsigned
            few_rows_paired; /* rows that they take at most with two panels at once: more do not fit the registers */

        void (*gemm)(const struct operands *o, unsigned lanes);
        void (*few[WEIGHT_FP8 + 1])(const struct few_operands *o);
        /* b[k][32] = the panel's weights as floats, fp8 in the unit that gemm expects of them. NULL for f32. */
        void (*expand[WEIGHT_FP8 + 1])(const void *panel, size_t k, float *b);

        /* Dot products of bf16 pairs; NULL where the CPU has none. */
        void (*gemm_bf16)(const struct operands *o);
        void (*few_bf16[WEIGHT_FP8 + 1])(const struct few_operands *o);
        void (*expand_fp8_bf16)(const void *panel, size_t pairs, uint32_t *b);

        /* int8 weights, exact sums. Activations are words of two int16, and weights are expanded to such words first (or
         * taken from the panel for one row, row_int8); or, where expand_int8 is NULL, words of four unsigned bytes: the
         * activations plus 128, their sums beginning at -128 times the sum of the weights. */
        void (*gemm_int8)(const struct operands *o);
        void (*row_int8)(const struct operands *o);
        void (*expand_int8)(const void *panel, size_t words, uint32_t *b);

        /* A row of activations in the form that products want, padded with zeros: bf16 to a pair, int8 to four. */
        void (*row_to_bf16)(const float *x, size_t k, uint16_t *ret_row);
        float (*row_largest)(const float *x, size_t k); /* max |x| */
        void (*row_to_int8)(const float *x, size_t k, float scale, void *ret_row);
        void (*row_to_int8_static)(const float *x, size_t k, float scale_inv, float offset, void *ret_row);
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
#endif
