/* vector_scalar.c - the table in plain C. */
#include "kernels/simd_scalar.h"
#define BLOCK_ROWS 4
#include "kernels/vector.h"

static void gemm_int8(
    const uint32_t *a, size_t step, size_t row_step, const void *b, size_t quads, unsigned rows, int32_t *c) {
        const int8_t *w = b;

        for (unsigned r = 0; r < rows; r++)
                for (size_t q = 0; q < quads; q++) {
                        int8_t x[4];

                        memcpy(x, &a[q * step + r * row_step], sizeof(x));
                        for (unsigned lane = 0; lane < PANEL; lane++)
                                for (unsigned j = 0; j < 4; j++)
                                        c[r * PANEL + lane] += x[j] * w[(q * PANEL + lane) * 4 + j];
                }
}

const struct kernel_table kernels_scalar = {
    TABLE_COMMON,
    .block_rows_int8 = BLOCK_ROWS,
    .gemm_int8 = gemm_int8,
};
