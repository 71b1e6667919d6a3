/* simd_avx2.h - sixteen lanes as two AVX2 registers; see simd_scalar.h for what each function is. */
#pragma once
#include "kernels/kernels.h"
#include <immintrin.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))
#define LANES  16

typedef struct {
        __m256 l, h;
} vf;

typedef struct {
        __m256i l, h;
} vi;

/* fp8 goes through f16, whose exponent bias is 8 larger. */
#define FP8_FACTOR 256.0f

INLINE vf vf_set(float x) {
        __m256 v = _mm256_set1_ps(x);
        return (vf){v, v};
}
INLINE vf vf_load(const float *p) {
        return (vf){_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)};
}
INLINE void vf_store(float *p, vf a) {
        _mm256_storeu_ps(p, a.l);
        _mm256_storeu_ps(p + 8, a.h);
}
INLINE vf vf_load_part(const float *p, size_t n) {
        float part[LANES] = {0};
        memcpy(part, p, n * sizeof(float));
        return vf_load(part);
}
INLINE void vf_store_part(float *p, vf a, size_t n) {
        float part[LANES];
        vf_store(part, a);
        memcpy(p, part, n * sizeof(float));
}
INLINE vf vf_add(vf a, vf b) {
        return (vf){_mm256_add_ps(a.l, b.l), _mm256_add_ps(a.h, b.h)};
}
INLINE vf vf_sub(vf a, vf b) {
        return (vf){_mm256_sub_ps(a.l, b.l), _mm256_sub_ps(a.h, b.h)};
}
INLINE vf vf_mul(vf a, vf b) {
        return (vf){_mm256_mul_ps(a.l, b.l), _mm256_mul_ps(a.h, b.h)};
}
INLINE vf vf_div(vf a, vf b) {
        return (vf){_mm256_div_ps(a.l, b.l), _mm256_div_ps(a.h, b.h)};
}
INLINE vf vf_fma(vf a, vf b, vf c) {
        return (vf){_mm256_fmadd_ps(a.l, b.l, c.l), _mm256_fmadd_ps(a.h, b.h, c.h)};
}
INLINE vf vf_max(vf a, vf b) {
        return (vf){_mm256_max_ps(a.l, b.l), _mm256_max_ps(a.h, b.h)};
}
INLINE vf vf_min(vf a, vf b) {
        return (vf){_mm256_min_ps(a.l, b.l), _mm256_min_ps(a.h, b.h)};
}
INLINE vf vf_abs(vf a) {
        __m256 sign = _mm256_set1_ps(-0.0f);
        return (vf){_mm256_andnot_ps(sign, a.l), _mm256_andnot_ps(sign, a.h)};
}
INLINE vf vf_round(vf a) {
        return (vf){_mm256_round_ps(a.l, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC),
            _mm256_round_ps(a.h, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}
INLINE __m256 half_power_of_2(__m256 n) {
        __m256i bits = _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23);
        return _mm256_and_ps(_mm256_castsi256_ps(bits), _mm256_cmp_ps(n, n, _CMP_ORD_Q));
}
INLINE vf vf_power_of_2(vf n) {
        return (vf){half_power_of_2(n.l), half_power_of_2(n.h)};
}
INLINE vf vf_zero_below(vf a, vf x, vf least) {
        return (vf){_mm256_andnot_ps(_mm256_cmp_ps(x.l, least.l, _CMP_LT_OQ), a.l),
            _mm256_andnot_ps(_mm256_cmp_ps(x.h, least.h, _CMP_LT_OQ), a.h)};
}
INLINE __m256 half_keep_below(__m256 a, int32_t at, const int32_t *limit, float otherwise) {
        __m256i keep = _mm256_cmpgt_epi32(_mm256_loadu_si256((const __m256i *)limit), _mm256_set1_epi32(at));
        return _mm256_blendv_ps(_mm256_set1_ps(otherwise), a, _mm256_castsi256_ps(keep));
}
INLINE vf vf_keep_below(vf a, int32_t at, const int32_t *limit, float otherwise) {
        return (vf){half_keep_below(a.l, at, limit, otherwise), half_keep_below(a.h, at, limit + 8, otherwise)};
}
INLINE vf vf_f16(const void *p) {
        return (vf){_mm256_cvtph_ps(_mm_loadu_si128(p)), _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p + 1))};
}
INLINE vf vf_bf16(const uint16_t *p) {
        __m256i l = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)p));
        __m256i h = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)(p + 8)));
        return (vf){_mm256_castsi256_ps(_mm256_slli_epi32(l, 16)), _mm256_castsi256_ps(_mm256_slli_epi32(h, 16))};
}
INLINE __m256i half_to_bf16(__m256 a) { /* 8 results in the low words of the lanes */
        __m256i bits = _mm256_castps_si256(a), high = _mm256_srli_epi32(bits, 16);
        __m256i odd = _mm256_and_si256(high, _mm256_set1_epi32(1));
        __m256i rounded =
            _mm256_srli_epi32(_mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff)), odd), 16);
        __m256i quiet = _mm256_or_si256(high, _mm256_set1_epi32(0x40));
        return _mm256_blendv_epi8(rounded, quiet, _mm256_castps_si256(_mm256_cmp_ps(a, a, _CMP_UNORD_Q)));
}
INLINE void vf_to_bf16(vf a, uint16_t *p) {
        __m256i words = _mm256_packus_epi32(half_to_bf16(a.l), half_to_bf16(a.h));
        _mm256_storeu_si256((__m256i *)p, _mm256_permute4x64_epi64(words, 0xd8));
}
INLINE void vf_bf16_pair(const void *p, vf *ret_first, vf *ret_second) {
        __m256i l = _mm256_loadu_si256(p), h = _mm256_loadu_si256((const __m256i *)p + 1);
        __m256i high = _mm256_set1_epi32((int)0xffff0000);
        *ret_first = (vf){_mm256_castsi256_ps(_mm256_slli_epi32(l, 16)), _mm256_castsi256_ps(_mm256_slli_epi32(h, 16))};
        *ret_second =
            (vf){_mm256_castsi256_ps(_mm256_and_si256(l, high)), _mm256_castsi256_ps(_mm256_and_si256(h, high))};
}
INLINE void quarter_fp8_pair(const void *p, __m256 *ret_first, __m256 *ret_second) { /* 8 lanes of two */
        const __m256i halves = _mm256_setr_epi8(
            0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15, 0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15);
        /* Sign extension puts the sign over the bits that the shift brings under the f16 exponent; one is cleared. */
        __m256i w = _mm256_slli_epi16(_mm256_cvtepi8_epi16(_mm_loadu_si128(p)), 7);
        w = _mm256_and_si256(w, _mm256_set1_epi16((short)0xbfff));
        w = _mm256_permute4x64_epi64(_mm256_shuffle_epi8(w, halves), 0xd8);
        *ret_first = _mm256_cvtph_ps(_mm256_castsi256_si128(w));
        *ret_second = _mm256_cvtph_ps(_mm256_extracti128_si256(w, 1));
}
INLINE void vf_fp8_pair(const void *p, vf ret_first[2], vf ret_second[2]) {
        const __m128i *q = p;
        quarter_fp8_pair(q, &ret_first[0].l, &ret_second[0].l);
        quarter_fp8_pair(q + 1, &ret_first[0].h, &ret_second[0].h);
        quarter_fp8_pair(q + 2, &ret_first[1].l, &ret_second[1].l);
        quarter_fp8_pair(q + 3, &ret_first[1].h, &ret_second[1].h);
}
INLINE void vf_to_i16(vf a, int16_t *p) {
        __m256i words = _mm256_packs_epi32(_mm256_cvtps_epi32(a.l), _mm256_cvtps_epi32(a.h));
        _mm256_storeu_si256((__m256i *)p, _mm256_permute4x64_epi64(words, 0xd8));
}
INLINE vi vi_load(const int32_t *p) {
        return (vi){_mm256_loadu_si256((const __m256i *)p), _mm256_loadu_si256((const __m256i *)(p + 8))};
}
INLINE void vi_store(int32_t *p, vi a) {
        _mm256_storeu_si256((__m256i *)p, a.l);
        _mm256_storeu_si256((__m256i *)(p + 8), a.h);
}
INLINE vi vi_set(int32_t x) {
        __m256i v = _mm256_set1_epi32(x);
        return (vi){v, v};
}
INLINE vi vi_add(vi a, vi b) {
        return (vi){_mm256_add_epi32(a.l, b.l), _mm256_add_epi32(a.h, b.h)};
}
INLINE vf vf_from_vi(vi a) {
        return (vf){_mm256_cvtepi32_ps(a.l), _mm256_cvtepi32_ps(a.h)};
}
INLINE vi vi_dot_pairs(vi sum, vi x, vi w) {
        return (vi){
            _mm256_add_epi32(sum.l, _mm256_madd_epi16(x.l, w.l)), _mm256_add_epi32(sum.h, _mm256_madd_epi16(x.h, w.h))};
}
INLINE void half_int8_quads(const __m128i *p, __m256i *ret_first, __m256i *ret_second) { /* 8 lanes */
        __m256 a = _mm256_castsi256_ps(_mm256_cvtepi8_epi16(_mm_loadu_si128(p)));
        __m256 b = _mm256_castsi256_ps(_mm256_cvtepi8_epi16(_mm_loadu_si128(p + 1)));
        *ret_first = _mm256_permute4x64_epi64(_mm256_castps_si256(_mm256_shuffle_ps(a, b, 0x88)), 0xd8);
        *ret_second = _mm256_permute4x64_epi64(_mm256_castps_si256(_mm256_shuffle_ps(a, b, 0xdd)), 0xd8);
}
INLINE void vi_int8_quads(const void *p, vi *ret_first, vi *ret_second) {
        half_int8_quads(p, &ret_first->l, &ret_second->l);
        half_int8_quads((const __m128i *)p + 2, &ret_first->h, &ret_second->h);
}
INLINE void simd_prefetch(const void *p) {
        _mm_prefetch(p, _MM_HINT_T0);
}
