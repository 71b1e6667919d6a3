/* vector_scalar.c - the table in plain C. */
#include "kernels/simd_scalar.h"
#define BLOCK_ROWS 4
#define FEW_ROWS   2
#include "kernels/vector.h"

static void gemm_int8(const struct operands *o, int32_t *c) {
        const int8_t *w = o->b;

        for (unsigned r = 0; r < o->rows; r++)
                for (size_t i = 0; i < o->k; i++) {
                        const int8_t *x = (const int8_t *)((const uint32_t *)o->a + i * o->step + r * o->row_step);

                        for (unsigned lane = 0; lane < PANEL; lane++)
                                for (unsigned j = 0; j < 4; j++)
                                        c[r * PANEL + lane] += x[j] * w[(i * PANEL + lane) * 4 + j];
                }
}

const struct kernel_table kernels_scalar = {
    TABLE_COMMON,
    .block_rows_int8 = BLOCK_ROWS,
    .gemm_int8 = gemm_int8,
};
