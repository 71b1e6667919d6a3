/* simd_avx512.h - sixteen lanes as one AVX-512 register; see simd_scalar.h for what each function is. */
#pragma once
#include "kernels/kernels.h"
#include <immintrin.h>

#define INLINE static inline __attribute__((always_inline))
#define LANES  16

typedef __m512 vf;
typedef __m512i vi;

#define FP8_FACTOR 1.0f

INLINE __mmask16 first_lanes(size_t n) {
        return (__mmask16)((1u << n) - 1);
}
INLINE vf vf_set(float x) {
        return _mm512_set1_ps(x);
}
INLINE vf vf_load(const float *p) {
        return _mm512_loadu_ps(p);
}
INLINE void vf_store(float *p, vf a) {
        _mm512_storeu_ps(p, a);
}
INLINE vf vf_load_part(const float *p, size_t n) {
        return _mm512_maskz_loadu_ps(first_lanes(n), p);
}
INLINE void vf_store_part(float *p, vf a, size_t n) {
        _mm512_mask_storeu_ps(p, first_lanes(n), a);
}
INLINE vf vf_add(vf a, vf b) {
        return _mm512_add_ps(a, b);
}
INLINE vf vf_sub(vf a, vf b) {
        return _mm512_sub_ps(a, b);
}
INLINE vf vf_mul(vf a, vf b) {
        return _mm512_mul_ps(a, b);
}
INLINE vf vf_div(vf a, vf b) {
        return _mm512_div_ps(a, b);
}
INLINE vf vf_fma(vf a, vf b, vf c) {
        return _mm512_fmadd_ps(a, b, c);
}
INLINE vf vf_max(vf a, vf b) {
        return _mm512_max_ps(a, b);
}
INLINE vf vf_min(vf a, vf b) {
        return _mm512_min_ps(a, b);
}
INLINE vf vf_abs(vf a) {
        return _mm512_abs_ps(a);
}
INLINE vf vf_round(vf a) {
        return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
INLINE vf vf_power_of_2(vf n) {
        __m512i bits = _mm512_slli_epi32(_mm512_add_epi32(_mm512_cvtps_epi32(n), _mm512_set1_epi32(127)), 23);
        return _mm512_castsi512_ps(_mm512_maskz_mov_epi32(_mm512_cmp_ps_mask(n, n, _CMP_ORD_Q), bits));
}
INLINE vf vf_zero_below(vf a, vf x, vf least) {
        return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x, least, _CMP_NLT_UQ), a);
}
INLINE vf vf_keep_below(vf a, int32_t at, const int32_t *limit, float otherwise) {
        __mmask16 keep = _mm512_cmpgt_epi32_mask(_mm512_loadu_si512(limit), _mm512_set1_epi32(at));
        return _mm512_mask_mov_ps(_mm512_set1_ps(otherwise), keep, a);
}
INLINE vf vf_from_vi(vi a) {
        return _mm512_cvtepi32_ps(a);
}
INLINE vi vi_add(vi a, vi b) {
        return _mm512_add_epi32(a, b);
}
INLINE void vf_to_i16(vf a, int16_t *p) {
        _mm256_storeu_si256((__m256i *)p, _mm512_cvtsepi32_epi16(_mm512_cvtps_epi32(a)));
}
INLINE vi vi_load(const int32_t *p) {
        return _mm512_loadu_si512(p);
}
INLINE void vi_store(int32_t *p, vi a) {
        _mm512_storeu_si512(p, a);
}
INLINE vi vi_set(int32_t x) {
        return _mm512_set1_epi32(x);
}
INLINE vi vi_dot_pairs(vi sum, vi x, vi w) {
        return _mm512_add_epi32(sum, _mm512_madd_epi16(x, w));
}
INLINE void vi_int8_quads(const void *p, vi *ret_first, vi *ret_second) {
        const __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
        __m512i a = _mm512_cvtepi8_epi16(_mm256_loadu_si256(p));
        __m512i b = _mm512_cvtepi8_epi16(_mm256_loadu_si256((const __m256i *)p + 1));
        *ret_first = _mm512_permutex2var_epi32(a, even, b);
        *ret_second = _mm512_permutex2var_epi32(a, _mm512_add_epi32(even, _mm512_set1_epi32(1)), b);
}
INLINE vf vf_f16(const void *p) {
        return _mm512_cvtph_ps(_mm256_loadu_si256(p));
}
INLINE vf vf_bf16(const uint16_t *p) {
        __m512i w = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)p));
        return _mm512_castsi512_ps(_mm512_slli_epi32(w, 16));
}
/* Not vcvtneps2bf16, which flushes what is subnormal in f32 to zero. */
INLINE void vf_to_bf16(vf a, uint16_t *p) {
        __m512i bits = _mm512_castps_si512(a), high = _mm512_srli_epi32(bits, 16);
        __m512i odd = _mm512_and_si512(high, _mm512_set1_epi32(1));
        __m512i rounded =
            _mm512_srli_epi32(_mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd), 16);
        __m512i quiet = _mm512_or_si512(high, _mm512_set1_epi32(0x40));
        __m512i words = _mm512_mask_mov_epi32(rounded, _mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q), quiet);
        _mm256_storeu_si256((__m256i *)p, _mm512_cvtepi32_epi16(words));
}
INLINE void split_bf16_pair(__m512i w, vf *ret_first, vf *ret_second) {
        *ret_first = _mm512_castsi512_ps(_mm512_slli_epi32(w, 16));
        *ret_second = _mm512_castsi512_ps(_mm512_and_si512(w, _mm512_set1_epi32((int)0xffff0000)));
}
INLINE void vf_bf16_pair(const void *p, vf *ret_first, vf *ret_second) {
        split_bf16_pair(_mm512_loadu_si512(p), ret_first, ret_second);
}

#if defined(__AVX512VBMI__)
/* The bf16 of each non-negative e4m3 code, by halves: every e4m3 value is a bf16. */
// clang-format off
static const uint8_t fp8_high[128] __attribute__((aligned(64))) = {
    0x00, 0x3b, 0x3b, 0x3b, 0x3c, 0x3c, 0x3c, 0x3c, 0x3c, 0x3c, 0x3c, 0x3c, 0x3c, 0x3c, 0x3c, 0x3c,
    0x3d, 0x3d, 0x3d, 0x3d, 0x3d, 0x3d, 0x3d, 0x3d, 0x3d, 0x3d, 0x3d, 0x3d, 0x3d, 0x3d, 0x3d, 0x3d,
    0x3e, 0x3e, 0x3e, 0x3e, 0x3e, 0x3e, 0x3e, 0x3e, 0x3e, 0x3e, 0x3e, 0x3e, 0x3e, 0x3e, 0x3e, 0x3e,
    0x3f, 0x3f, 0x3f, 0x3f, 0x3f, 0x3f, 0x3f, 0x3f, 0x3f, 0x3f, 0x3f, 0x3f, 0x3f, 0x3f, 0x3f, 0x3f,
    0x40, 0x40, 0x40, 0x40, 0x40, 0x40, 0x40, 0x40, 0x40, 0x40, 0x40, 0x40, 0x40, 0x40, 0x40, 0x40,
    0x41, 0x41, 0x41, 0x41, 0x41, 0x41, 0x41, 0x41, 0x41, 0x41, 0x41, 0x41, 0x41, 0x41, 0x41, 0x41,
    0x42, 0x42, 0x42, 0x42, 0x42, 0x42, 0x42, 0x42, 0x42, 0x42, 0x42, 0x42, 0x42, 0x42, 0x42, 0x42,
    0x43, 0x43, 0x43, 0x43, 0x43, 0x43, 0x43, 0x43, 0x43, 0x43, 0x43, 0x43, 0x43, 0x43, 0x43, 0x7f,
};
static const uint8_t fp8_low[128] __attribute__((aligned(64))) = {
    0x00, 0x00, 0x80, 0xc0, 0x00, 0x20, 0x40, 0x60, 0x80, 0x90, 0xa0, 0xb0, 0xc0, 0xd0, 0xe0, 0xf0,
    0x00, 0x10, 0x20, 0x30, 0x40, 0x50, 0x60, 0x70, 0x80, 0x90, 0xa0, 0xb0, 0xc0, 0xd0, 0xe0, 0xf0,
    0x00, 0x10, 0x20, 0x30, 0x40, 0x50, 0x60, 0x70, 0x80, 0x90, 0xa0, 0xb0, 0xc0, 0xd0, 0xe0, 0xf0,
    0x00, 0x10, 0x20, 0x30, 0x40, 0x50, 0x60, 0x70, 0x80, 0x90, 0xa0, 0xb0, 0xc0, 0xd0, 0xe0, 0xf0,
    0x00, 0x10, 0x20, 0x30, 0x40, 0x50, 0x60, 0x70, 0x80, 0x90, 0xa0, 0xb0, 0xc0, 0xd0, 0xe0, 0xf0,
    0x00, 0x10, 0x20, 0x30, 0x40, 0x50, 0x60, 0x70, 0x80, 0x90, 0xa0, 0xb0, 0xc0, 0xd0, 0xe0, 0xf0,
    0x00, 0x10, 0x20, 0x30, 0x40, 0x50, 0x60, 0x70, 0x80, 0x90, 0xa0, 0xb0, 0xc0, 0xd0, 0xe0, 0xf0,
    0x00, 0x10, 0x20, 0x30, 0x40, 0x50, 0x60, 0x70, 0x80, 0x90, 0xa0, 0xb0, 0xc0, 0xd0, 0xe0, 0xc0,
};
// clang-format on

INLINE void fp8_to_bf16(const void *p, __m512i ret_pairs[2]) { /* 32 lanes of two */
        const __m512i spread = _mm512_setr_epi64(0, 4, 1, 5, 2, 6, 3, 7);
        __m512i code = _mm512_permutexvar_epi64(spread, _mm512_loadu_si512(p));
        __m512i high = _mm512_permutex2var_epi8(_mm512_load_si512(fp8_high), code, _mm512_load_si512(fp8_high + 64));
        __m512i low = _mm512_permutex2var_epi8(_mm512_load_si512(fp8_low), code, _mm512_load_si512(fp8_low + 64));
        high = _mm512_ternarylogic_epi32(high, code, _mm512_set1_epi8((char)0x80), 0xf8); /* high | (code & 0x80) */
        ret_pairs[0] = _mm512_unpacklo_epi8(low, high);
        ret_pairs[1] = _mm512_unpackhi_epi8(low, high);
}
#else
INLINE __m512i fp8_to_bf16_half(__m256i codes) {
        const __m512i tiny = _mm512_castsi128_si512(
            _mm_setr_epi16(0, 0x3b00, 0x3b80, 0x3bc0, 0x3c00, 0x3c20, 0x3c40, 0x3c60)); /* m * 2^-9 */
        __m512i w = _mm512_cvtepi8_epi16(codes);
        __m512i magnitude = _mm512_add_epi16(
            _mm512_and_si512(_mm512_slli_epi16(w, 4), _mm512_set1_epi16(0x07f0)), _mm512_set1_epi16(120 << 7));
        __mmask32 subnormal = _mm512_testn_epi16_mask(w, _mm512_set1_epi16(0x78));
        magnitude = _mm512_mask_permutexvar_epi16(magnitude, subnormal, w, tiny);
        return _mm512_ternarylogic_epi32(magnitude, w, _mm512_set1_epi16((short)0x8000), 0xf8);
}
INLINE void fp8_to_bf16(const void *p, __m512i ret_pairs[2]) {
        ret_pairs[0] = fp8_to_bf16_half(_mm256_loadu_si256(p));
        ret_pairs[1] = fp8_to_bf16_half(_mm256_loadu_si256((const __m256i *)p + 1));
}
#endif
INLINE void vf_fp8_pair(const void *p, vf ret_first[2], vf ret_second[2]) {
        __m512i pairs[2];
        fp8_to_bf16(p, pairs);
        split_bf16_pair(pairs[0], &ret_first[0], &ret_second[0]);
        split_bf16_pair(pairs[1], &ret_first[1], &ret_second[1]);
}
INLINE void simd_prefetch(const void *p) {
        _mm_prefetch(p, _MM_HINT_T0);
}
