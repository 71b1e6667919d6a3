/* vector_avx512_bf16.c - the table for AVX-512 with BF16, VNNI and VBMI (Zen 4, Sapphire Rapids and later). */
#include "kernels/simd_avx512.h"
#define BLOCK_ROWS      12
#define FEW_ROWS        6
#define FEW_ROWS_PAIRED 4
#define BLOCK_ROWS_INT8 12
#define INT8_AS_BYTES

/* Values in [-128, 127], rounded to integers, plus 128. */
INLINE void vf_to_u8(vf a, uint8_t *p) {
        __m512i n = _mm512_add_epi32(_mm512_cvtps_epi32(a), _mm512_set1_epi32(128));
        _mm_storeu_si128((__m128i *)p, _mm512_cvtepi32_epi8(n));
}

INLINE vi vi_dot(vi sum, vi x, vi w) {
        return _mm512_dpbusd_epi32(sum, x, w);
}

#include "kernels/vector.h"

INLINE vf dot(vf sum, uint32_t x, __m512i w) {
        return _mm512_dpbf16_ps(sum, (__m512bh)_mm512_set1_epi32((int)x), (__m512bh)w);
}

INLINE void bf16_block(const struct operands *operands, const unsigned rows, const bool scaled) {
        const struct operands o = *operands;
        const uint32_t *a = o.a, *b = o.b;
        const float *c = o.c;
        float *out = o.out;
        vf sum[BLOCK_ROWS][2];

#pragma GCC unroll 16
        for (unsigned r = 0; r < rows; r++) {
                sum[r][0] = scaled ? vf_set(0) : sum_begin(c, r * PANEL);
                sum[r][1] = scaled ? vf_set(0) : sum_begin(c, r * PANEL + LANES);
        }
        for (size_t i = 0; i < o.k; i++) {
                __m512i w0 = _mm512_loadu_si512(b + i * PANEL), w1 = _mm512_loadu_si512(b + i * PANEL + LANES);

                prefetch_next(&o, i, 2);
#pragma GCC unroll 16
                for (unsigned r = 0; r < rows; r++) {
                        uint32_t x = a[i * rows + r];

                        sum[r][0] = dot(sum[r][0], x, w0);
                        sum[r][1] = dot(sum[r][1], x, w1);
                }
        }
        if (scaled) {
                vf scale[2];

                load_scale(o.scale, o.lane_scales, scale);
#pragma GCC unroll 16
                for (unsigned r = 0; r < rows; r++) {
                        sum[r][0] = vf_fma(sum[r][0], scale[0], sum_begin(c, r * PANEL));
                        sum[r][1] = vf_fma(sum[r][1], scale[1], sum_begin(c, r * PANEL + LANES));
                }
        }
#pragma GCC unroll 16
        for (unsigned r = 0; r < rows; r++) {
                vf_store(out + r * o.ldo, sum[r][0]);
                vf_store(out + r * o.ldo + LANES, sum[r][1]);
        }
}

static void gemm_bf16(const struct operands *o) {
#define BF16_BLOCK(n)  bf16_block(o, n, false)
#define BF16_SCALED(n) bf16_block(o, n, true)
        if (o->scale) {
                ROWS_SWITCH(o->rows, BF16_SCALED)
        } else {
                ROWS_SWITCH(o->rows, BF16_BLOCK)
        }
}

INLINE void dot_panels(
    enum weight_type type, const unsigned panels, const unsigned rows, const struct few_operands *o) {
        const size_t k = o->k, ahead = o->ahead, bytes = panel_offset(type, 2);
        const char *panel[2] = {o->panel[0], o->panel[1]};
        const uint32_t *x = o->x;
        FEW_SUMS;

        few_begin(type, panels, rows, o, sum);
        for (size_t i = 0; i < k; i++)
#pragma GCC unroll 2
                for (unsigned p = 0; p < panels; p++) {
                        const char *at = panel[p] + i * bytes;
                        __m512i w[2];

                        prefetch_at(at + ahead, bytes);
                        if (type == WEIGHT_FP8) {
                                fp8_to_bf16(at, w);
                        } else {
                                w[0] = _mm512_loadu_si512(at);
                                w[1] = _mm512_loadu_si512(at + LANES * 4);
                        }
#pragma GCC unroll 8
                        for (unsigned r = 0; r < rows; r++) {
                                sum[p][r][0] = dot(sum[p][r][0], x[i * rows + r], w[0]);
                                sum[p][r][1] = dot(sum[p][r][1], x[i * rows + r], w[1]);
                        }
                }
        few_end(type, panels, rows, o, sum);
}

static void dot_bf16(const struct few_operands *o) {
        FEW_SWITCH(dot_panels, WEIGHT_BF16)
}

static void dot_fp8(const struct few_operands *o) {
        FEW_SWITCH(dot_panels, WEIGHT_FP8)
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

const struct kernel_table kernels_avx512_bf16 = {
    TABLE_COMMON,
    .gemm_bf16 = gemm_bf16,
    .few_bf16 = {[WEIGHT_BF16] = dot_bf16, [WEIGHT_FP8] = dot_fp8},
    .expand_fp8_bf16 = expand_fp8_bf16,
    .row_to_bf16 = row_to_bf16,
};
