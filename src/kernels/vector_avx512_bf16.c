/* vector_avx512_bf16.c - the table for AVX-512 with BF16, VNNI and VBMI (Zen 4, Sapphire Rapids and later). */
#include "kernels/simd_avx512.h"
#define BLOCK_ROWS 12
#include "kernels/vector.h"

INLINE vf dot(vf sum, uint32_t x, __m512i w) {
        return _mm512_dpbf16_ps(sum, (__m512bh)_mm512_set1_epi32((int)x), (__m512bh)w);
}

INLINE void bf16_block(const uint32_t *a, size_t step, size_t row_step, const uint32_t *b, size_t pairs,
    const float *scale, bool lane_scales, float *c, const unsigned rows) {
        vf sum[BLOCK_ROWS][2];

#pragma GCC unroll 16
        for (unsigned r = 0; r < rows; r++) {
                sum[r][0] = scale ? vf_set(0) : vf_load(c + r * PANEL);
                sum[r][1] = scale ? vf_set(0) : vf_load(c + r * PANEL + LANES);
        }
        for (size_t i = 0; i < pairs; i++) {
                __m512i w0 = _mm512_loadu_si512(b + i * PANEL), w1 = _mm512_loadu_si512(b + i * PANEL + LANES);

                prefetch_ahead(b + i * PANEL, PANEL * 4);

#pragma GCC unroll 16
                for (unsigned r = 0; r < rows; r++) {
                        uint32_t x = a[i * step + r * row_step];

                        sum[r][0] = dot(sum[r][0], x, w0);
                        sum[r][1] = dot(sum[r][1], x, w1);
                }
        }
        if (scale) {
                vf factor[2];

                load_scale(WEIGHT_FP8, scale, lane_scales, factor);
#pragma GCC unroll 16
                for (unsigned r = 0; r < rows; r++) {
                        sum[r][0] = vf_fma(sum[r][0], factor[0], vf_load(c + r * PANEL));
                        sum[r][1] = vf_fma(sum[r][1], factor[1], vf_load(c + r * PANEL + LANES));
                }
        }
#pragma GCC unroll 16
        for (unsigned r = 0; r < rows; r++) {
                vf_store(c + r * PANEL, sum[r][0]);
                vf_store(c + r * PANEL + LANES, sum[r][1]);
        }
}

static void gemm_bf16(const uint32_t *a, size_t step, size_t row_step, const uint32_t *b, size_t pairs, unsigned rows,
    const float *scale, bool lane_scales, float *c) {
#define BF16_BLOCK(n)   bf16_block(a, step, row_step, b, pairs, NULL, false, c, n)
#define SCALED_BLOCK(n) bf16_block(a, step, row_step, b, pairs, scale, lane_scales, c, n)
        if (scale) {
                ROWS_SWITCH(rows, SCALED_BLOCK)
        } else {
                ROWS_SWITCH(rows, BF16_BLOCK)
        }
}

INLINE void bf16_panels(bool fp8, const unsigned panels, const uint32_t *x, const void *panel0, const void *panel1,
    size_t pairs, const float *scale0, const float *scale1, bool lane_scales, float *c0, float *c1) {
        const char *panel[2] = {panel0, panel1};
        const float *scale[2] = {scale0, scale1};
        float *c[2] = {c0, c1};
        vf sum[2][2];

#pragma GCC unroll 2
        for (unsigned p = 0; p < panels; p++)
                for (unsigned half = 0; half < 2; half++)
                        sum[p][half] = fp8 ? vf_set(0) : vf_load(c[p] + half * LANES);
        for (size_t i = 0; i < pairs; i++)
#pragma GCC unroll 2
                for (unsigned p = 0; p < panels; p++) {
                        __m512i w[2];

                        prefetch_ahead(panel[p] + i * PANEL * (fp8 ? 2 : 4), PANEL * (fp8 ? 2 : 4));
                        if (fp8) {
                                fp8_to_bf16(panel[p] + i * PANEL * 2, w);
                        } else {
                                w[0] = _mm512_loadu_si512(panel[p] + i * PANEL * 4);
                                w[1] = _mm512_loadu_si512(panel[p] + i * PANEL * 4 + LANES * 4);
                        }
                        sum[p][0] = dot(sum[p][0], x[i], w[0]);
                        sum[p][1] = dot(sum[p][1], x[i], w[1]);
                }
#pragma GCC unroll 2
        for (unsigned p = 0; p < panels; p++) {
                if (fp8) {
                        vf factor[2];

                        load_scale(WEIGHT_FP8, scale[p], lane_scales, factor);
                        sum[p][0] = vf_fma(sum[p][0], factor[0], vf_load(c[p]));
                        sum[p][1] = vf_fma(sum[p][1], factor[1], vf_load(c[p] + LANES));
                }
                vf_store(c[p], sum[p][0]);
                vf_store(c[p] + LANES, sum[p][1]);
        }
}

static void gemv_bf16_pairs(
    const uint32_t *x, const void *panel0, const void *panel1, size_t pairs, float *c0, float *c1) {
        if (panel1)
                bf16_panels(false, 2, x, panel0, panel1, pairs, NULL, NULL, false, c0, c1);
        else
                bf16_panels(false, 1, x, panel0, NULL, pairs, NULL, NULL, false, c0, NULL);
}

static void gemv_bf16_fp8(const uint32_t *x, const void *panel0, const void *panel1, size_t pairs, const float *scale0,
    const float *scale1, bool lane_scales, float *c0, float *c1) {
        if (panel1)
                bf16_panels(true, 2, x, panel0, panel1, pairs, scale0, scale1, lane_scales, c0, c1);
        else
                bf16_panels(true, 1, x, panel0, NULL, pairs, scale0, NULL, lane_scales, c0, NULL);
}

static void expand_fp8_bf16(const void *panel, size_t pairs, uint32_t *b) {
        for (size_t i = 0; i < pairs; i++) {
                __m512i w[2];

                prefetch_ahead((const char *)panel + i * PANEL * 2, PANEL * 2);
                fp8_to_bf16((const char *)panel + i * PANEL * 2, w);
                _mm512_storeu_si512(b + i * PANEL, w[0]);
                _mm512_storeu_si512(b + i * PANEL + LANES, w[1]);
        }
}

INLINE void int8_block(
    const uint32_t *a, size_t step, size_t row_step, const char *b, size_t quads, int32_t *c, const unsigned rows) {
        __m512i sum[BLOCK_ROWS][2];

#pragma GCC unroll 16
        for (unsigned r = 0; r < rows; r++) {
                sum[r][0] = _mm512_loadu_si512(c + r * PANEL);
                sum[r][1] = _mm512_loadu_si512(c + r * PANEL + LANES);
        }
        for (size_t q = 0; q < quads; q++) {
                __m512i w0 = _mm512_loadu_si512(b + q * PANEL * 4),
                        w1 = _mm512_loadu_si512(b + q * PANEL * 4 + LANES * 4);

                prefetch_ahead(b + q * PANEL * 4, PANEL * 4);

#pragma GCC unroll 16
                for (unsigned r = 0; r < rows; r++) {
                        __m512i x = _mm512_set1_epi32((int)a[q * step + r * row_step]);

                        sum[r][0] = _mm512_dpbusd_epi32(sum[r][0], x, w0);
                        sum[r][1] = _mm512_dpbusd_epi32(sum[r][1], x, w1);
                }
        }
#pragma GCC unroll 16
        for (unsigned r = 0; r < rows; r++) {
                _mm512_storeu_si512(c + r * PANEL, sum[r][0]);
                _mm512_storeu_si512(c + r * PANEL + LANES, sum[r][1]);
        }
}

static void gemm_int8(
    const uint32_t *a, size_t step, size_t row_step, const void *b, size_t quads, unsigned rows, int32_t *c) {
#define INT8_BLOCK(n) int8_block(a, step, row_step, b, quads, c, n)
        ROWS_SWITCH(rows, INT8_BLOCK)
}

const struct kernel_table kernels_avx512_bf16 = {
    TABLE_COMMON,
    .gemm_bf16 = gemm_bf16,
    .gemv_bf16 = gemv_bf16_pairs,
    .gemv_bf16_fp8 = gemv_bf16_fp8,
    .expand_fp8_bf16 = expand_fp8_bf16,
    .row_to_bf16 = row_to_bf16,
    .block_rows_int8 = BLOCK_ROWS,
    .unsigned_activations = true,
    .gemm_int8 = gemm_int8,
};
