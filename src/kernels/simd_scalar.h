/* simd_scalar.h - sixteen lanes in plain C: the reference that the vector forms are tested against, and the fallback on
 * CPUs without AVX2. The same names exist in simd_avx2.h and simd_avx512.h with the same results bit for bit. */
#pragma once
#include "kernels/kernels.h"
#include <math.h>
#include <string.h>

#define INLINE       static inline __attribute__((always_inline))
#define LANES        16
#define FOR_LANES(i) for (int i = 0; i < LANES; i++)

typedef struct {
        float v[LANES];
} vf;

typedef struct {
        int32_t v[LANES];
} vi;

/* fp8 values come out multiplied by 1/FP8_FACTOR. */
#define FP8_FACTOR 1.0f

INLINE vf vf_set(float x) {
        vf r;
        FOR_LANES(i) r.v[i] = x;
        return r;
}
INLINE vf vf_load(const float *p) {
        vf r;
        memcpy(&r, p, sizeof(r));
        return r;
}
INLINE void vf_store(float *p, vf a) {
        memcpy(p, &a, sizeof(a));
}
INLINE vf vf_load_part(const float *p, size_t n) { /* n < 16 lanes, the others zero */
        vf r = vf_set(0);
        memcpy(&r, p, n * sizeof(float));
        return r;
}
INLINE void vf_store_part(float *p, vf a, size_t n) {
        memcpy(p, &a, n * sizeof(float));
}
INLINE vf vf_add(vf a, vf b) {
        FOR_LANES(i) a.v[i] += b.v[i];
        return a;
}
INLINE vf vf_sub(vf a, vf b) {
        FOR_LANES(i) a.v[i] -= b.v[i];
        return a;
}
INLINE vf vf_mul(vf a, vf b) {
        FOR_LANES(i) a.v[i] *= b.v[i];
        return a;
}
INLINE vf vf_div(vf a, vf b) {
        FOR_LANES(i) a.v[i] /= b.v[i];
        return a;
}
INLINE vf vf_fma(vf a, vf b, vf c) { /* a*b + c, rounded once */
        FOR_LANES(i) c.v[i] = fmaf(a.v[i], b.v[i], c.v[i]);
        return c;
}
INLINE vf vf_max(vf a, vf b) { /* b when either is NaN */
        FOR_LANES(i) a.v[i] = a.v[i] > b.v[i] ? a.v[i] : b.v[i];
        return a;
}
INLINE vf vf_min(vf a, vf b) { /* b when either is NaN */
        FOR_LANES(i) a.v[i] = a.v[i] < b.v[i] ? a.v[i] : b.v[i];
        return a;
}
INLINE vf vf_abs(vf a) {
        FOR_LANES(i) a.v[i] = fabsf(a.v[i]);
        return a;
}
INLINE vf vf_round(vf a) { /* to integers, halves to even */
        FOR_LANES(i) a.v[i] = rintf(a.v[i]);
        return a;
}
INLINE vf vf_power_of_2(vf n) { /* n integral in [-126, 127] */
        FOR_LANES(i) {
                uint32_t bits = n.v[i] == n.v[i] ? (uint32_t)((int32_t)n.v[i] + 127) << 23 : 0;
                memcpy(&n.v[i], &bits, sizeof(bits));
        }
        return n;
}
INLINE vf vf_zero_below(vf a, vf x, vf least) { /* a, but 0 where x < least */
        FOR_LANES(i) if (x.v[i] < least.v[i]) a.v[i] = 0;
        return a;
}
INLINE vf vf_keep_below(vf a, int32_t at, const int32_t *limit, float otherwise) { /* a where at < limit[lane] */
        FOR_LANES(i) if (at >= limit[i]) a.v[i] = otherwise;
        return a;
}
INLINE vf vf_f16(const void *p) {
        uint16_t h[LANES];
        vf r;
        memcpy(h, p, sizeof(h));
        FOR_LANES(i) r.v[i] = f16_to_float(h[i]);
        return r;
}
INLINE vf vf_bf16(const uint16_t *p) {
        vf r;
        FOR_LANES(i) r.v[i] = bf16_to_float(p[i]);
        return r;
}
INLINE void vf_to_bf16(vf a, uint16_t *p) {
        FOR_LANES(i) p[i] = float_to_bf16(a.v[i]);
}
/* 16 lanes of two bf16: the first and the second of each lane. */
INLINE void vf_bf16_pair(const void *p, vf *ret_first, vf *ret_second) {
        uint16_t h[LANES * 2];
        memcpy(h, p, sizeof(h));
        FOR_LANES(i) {
                ret_first->v[i] = bf16_to_float(h[2 * i]);
                ret_second->v[i] = bf16_to_float(h[2 * i + 1]);
        }
}
/* 32 lanes of two fp8. */
INLINE void vf_fp8_pair(const void *p, vf ret_first[2], vf ret_second[2]) {
        uint8_t h[LANES * 4];
        memcpy(h, p, sizeof(h));
        for (int half = 0; half < 2; half++)
                FOR_LANES(i) {
                        ret_first[half].v[i] = fp8_e4m3_to_float(h[half * 32 + 2 * i]);
                        ret_second[half].v[i] = fp8_e4m3_to_float(h[half * 32 + 2 * i + 1]);
                }
}
INLINE void vf_to_i16(vf a, int16_t *p) { /* values in [-128, 127], rounded to integers, halves to even */
        FOR_LANES(i) p[i] = (int16_t)rintf(a.v[i]);
}
INLINE vi vi_load(const int32_t *p) {
        vi r;
        memcpy(&r, p, sizeof(r));
        return r;
}
INLINE void vi_store(int32_t *p, vi a) {
        memcpy(p, &a, sizeof(a));
}
INLINE vi vi_set(int32_t x) {
        vi r;
        FOR_LANES(i) r.v[i] = x;
        return r;
}
INLINE vi vi_add(vi a, vi b) { /* wrapping */
        FOR_LANES(i) a.v[i] = (int32_t)((uint32_t)a.v[i] + (uint32_t)b.v[i]);
        return a;
}
INLINE vf vf_from_vi(vi a) {
        vf r;
        FOR_LANES(i) r.v[i] = (float)a.v[i];
        return r;
}
/* sum + the products of two pairs of int16 in each lane. */
INLINE vi vi_dot_pairs(vi sum, vi x, vi w) {
        int16_t a[LANES * 2], b[LANES * 2];
        memcpy(a, &x, sizeof(a));
        memcpy(b, &w, sizeof(b));
        FOR_LANES(i) sum.v[i] += a[2 * i] * b[2 * i] + a[2 * i + 1] * b[2 * i + 1];
        return sum;
}
/* 16 lanes of four int8 as the first and the second pair of int16 of each lane. */
INLINE void vi_int8_quads(const void *p, vi *ret_first, vi *ret_second) {
        const int8_t *q = p;
        int16_t pairs[2][LANES * 2];
        for (int i = 0; i < LANES * 4; i++)
                pairs[i / 2 % 2][i / 4 * 2 + i % 2] = q[i];
        memcpy(ret_first, pairs[0], sizeof(*ret_first));
        memcpy(ret_second, pairs[1], sizeof(*ret_second));
}
INLINE void simd_prefetch(const void *p) {}
