/* vector_avx512.c - the table for AVX-512 F, BW, DQ, VL. */
#include "kernels/simd_avx512.h"
#define BLOCK_ROWS      12 /* 12 x 32 sums, two weights and room for broadcasts in 32 registers */
#define BLOCK_ROWS_INT8 12
#define FEW_ROWS        6
#define FEW_ROWS_PAIRED 4
#include "kernels/vector.h"

const struct kernel_table kernels_avx512 = {TABLE_COMMON};
