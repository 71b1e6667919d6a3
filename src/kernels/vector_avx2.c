/* vector_avx2.c - the table for AVX2 with FMA and F16C. */
#include "kernels/simd_avx2.h"
#define BLOCK_ROWS 3 /* 3 x 32 sums fill twelve of sixteen registers */
#include "kernels/vector.h"

/* Half a panel: 16 outputs, as four registers of four outputs with two partial sums each. Both sides are widened to 16
 * bits: exact for every value (the unsigned-by-signed byte product of AVX2 saturates), at the cost of half the products
 * per instruction. */
INLINE void int8_half(
    const uint32_t *a, size_t step, size_t row_step, const char *b, size_t quads, int32_t *c, const unsigned rows) {
        __m256i sum[BLOCK_ROWS][4];

#pragma GCC unroll 4
        for (unsigned r = 0; r < rows; r++)
#pragma GCC unroll 4
                for (unsigned v = 0; v < 4; v++)
                        sum[r][v] = _mm256_setzero_si256();
        for (size_t q = 0; q < quads; q++) {
                __m256i x[BLOCK_ROWS];

#pragma GCC unroll 4
                for (unsigned r = 0; r < rows; r++)
                        x[r] = _mm256_cvtepi8_epi16(_mm_set1_epi32((int)a[q * step + r * row_step]));
#pragma GCC unroll 4
                for (unsigned v = 0; v < 4; v++) {
                        __m256i w = _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)(b + q * PANEL * 4) + v));

#pragma GCC unroll 4
                        for (unsigned r = 0; r < rows; r++)
                                sum[r][v] = _mm256_add_epi32(sum[r][v], _mm256_madd_epi16(x[r], w));
                }
        }
#pragma GCC unroll 4
        for (unsigned r = 0; r < rows; r++)
#pragma GCC unroll 2
                for (unsigned v = 0; v < 4; v += 2) {
                        __m256i *to = (__m256i *)(c + r * PANEL + v * 4);
                        __m256i both = _mm256_hadd_epi32(sum[r][v], sum[r][v + 1]);

                        both = _mm256_permute4x64_epi64(both, 0xd8);
                        _mm256_storeu_si256(to, _mm256_add_epi32(_mm256_loadu_si256(to), both));
                }
}

void gemm_int8_avx2(
    const uint32_t *a, size_t step, size_t row_step, const void *b, size_t quads, unsigned rows, int32_t *c) {
        for (unsigned half = 0; half < 2; half++) {
                const char *w = (const char *)b + half * LANES * 4;
                int32_t *to = c + half * LANES;

#define INT8_HALF(n) int8_half(a, step, row_step, w, quads, to, MIN_ROWS(n))
                ROWS_SWITCH(rows, INT8_HALF)
        }
}

const struct kernel_table kernels_avx2 = {
    TABLE_COMMON,
    .block_rows_int8 = BLOCK_ROWS,
    .gemm_int8 = gemm_int8_avx2,
};
