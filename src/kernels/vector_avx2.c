/* vector_avx2.c - the table for AVX2 with FMA and F16C.
 *
 * int8 goes through products of int16 pairs, which are exact: the byte products of AVX2 saturate. */
#include "kernels/simd_avx2.h"
#define BLOCK_ROWS      3 /* 3 x 32 sums fill twelve of sixteen registers */
#define BLOCK_ROWS_INT8 2 /* a product and an addition need one register more than a fused one */
#define FEW_ROWS        2
#define FEW_ROWS_PAIRED 2
#include "kernels/vector.h"

const struct kernel_table kernels_avx2 = {TABLE_COMMON};
