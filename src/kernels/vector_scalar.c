/* vector_scalar.c - the table in plain C. */
#include "kernels/simd_scalar.h"
#define BLOCK_ROWS      4
#define BLOCK_ROWS_INT8 4
#define FEW_ROWS        2
#define FEW_ROWS_PAIRED 2
#include "kernels/vector.h"

const struct kernel_table kernels_scalar = {TABLE_COMMON};
