/* vector_avx2.c - the table for AVX2 with FMA and F16C. */
#include "kernels/simd_avx2.h"
#define BLOCK_ROWS 3 /* 3 x 32 sums fill twelve of sixteen registers */
#define FEW_ROWS   2
#include "kernels/vector.h"

/* Half a panel: 16 outputs, as four registers of four outputs with two partial sums each. Both sides are widened to 16
 * bits: exact for every value (the unsigned-by-signed byte product of AVX2 saturates), at the cost of half the products
 * per instruction. */
INLINE void int8_half(const struct operands *operands, unsigned half, int32_t *c, const unsigned rows) {
        const struct operands o = *operands;
        const int32_t *a = o.a;
        const __m128i *b = (const __m128i *)((const int32_t *)o.b + half * LANES);
        __m256i sum[BLOCK_ROWS][4];

#pragma GCC unroll 4
        for (unsigned r = 0; r < rows; r++)
#pragma GCC unroll 4
                for (unsigned v = 0; v < 4; v++)
                        sum[r][v] = _mm256_setzero_si256();
        for (size_t i = 0; i < o.k; i++) {
                __m256i x[BLOCK_ROWS];

                if (half == 0)
                        prefetch_next(&o, i, 2);
#pragma GCC unroll 4
                for (unsigned r = 0; r < rows; r++)
                        x[r] = _mm256_cvtepi8_epi16(_mm_set1_epi32(a[i * o.step + r * o.row_step]));
#pragma GCC unroll 4
                for (unsigned v = 0; v < 4; v++) {
                        __m256i w = _mm256_cvtepi8_epi16(_mm_loadu_si128(b + i * (PANEL / 4) + v));

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

void gemm_int8_avx2(const struct operands *o, int32_t *c) {
#define INT8_LOW(n)  int8_half(o, 0, c, MIN_ROWS(n))
#define INT8_HIGH(n) int8_half(o, 1, c + LANES, MIN_ROWS(n))
        ROWS_SWITCH(o->rows, INT8_LOW)
        ROWS_SWITCH(o->rows, INT8_HIGH)
}

const struct kernel_table kernels_avx2 = {
    TABLE_COMMON,
    .block_rows_int8 = BLOCK_ROWS,
    .gemm_int8 = gemm_int8_avx2,
};
