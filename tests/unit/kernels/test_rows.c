/* Operations on rows: norm, rotation, addition, the cache's writes; on every instruction set with the same bits. */
#include "common.h"

static const size_t widths[] = {1, 15, 16, 17, 64, 100, 2048};
#define COUNT(a) (sizeof(a) / sizeof((a)[0]))

static void rmsnorm_is_its_formula_with_the_same_bits_everywhere(void **state) {
        const size_t m = 3;

        for (size_t i = 0; i < COUNT(widths); i++) {
                const size_t n = widths[i];
                struct rng r;
                float *x, *w, *b, *y = alloc(m * n * sizeof(float)), *first = alloc(m * n * sizeof(float));

                rng_seed(&r, n);
                x = random_floats(&r, m * n);
                w = random_floats(&r, n);
                b = random_floats(&r, n);
                for (enum isa isa = ISA_SCALAR; isa <= best(); isa++) {
                        struct compute *c = new_compute(isa, 1, ACTIVATION_F32);

                        for (int bias = 0; bias < 2; bias++) {
                                rmsnorm(c, x, n, w, bias ? b : NULL, 1e-6f, m, n, y, n);
                                for (size_t t = 0; t < m; t++) {
                                        double squares = 0;

                                        for (size_t j = 0; j < n; j++)
                                                squares += (double)x[t * n + j] * (double)x[t * n + j];
                                        for (size_t j = 0; j < n; j++) {
                                                double v = (double)x[t * n + j] / sqrt(squares / (double)n + 1e-6) *
                                                           (double)w[j];

                                                v += bias ? (double)b[j] : 0;
                                                assert_true(fabs((double)y[t * n + j] - v) < 1e-5);
                                        }
                                }
                        }
                        if (isa == ISA_SCALAR)
                                memcpy(first, y, m * n * sizeof(float));
                        same_floats(y, first, m * n);
                        /* in place */
                        memcpy(y, x, m * n * sizeof(float));
                        rmsnorm(c, y, n, w, b, 1e-6f, m, n, y, n);
                        same_floats(y, first, m * n);
                        compute_free(c);
                }
                free(x);
                free(w);
                free(b);
                free(y);
                free(first);
        }
}

static void rope_turns_neighbouring_pairs(void **state) {
        enum { PAIRS = 5, POSITIONS = 9, M = 3, HEADS = 2, STRIDE = 13, LDX = 30 };
        float table[POSITIONS * PAIRS * 2], x[M * LDX], y[M * LDX];
        const uint32_t positions[M] = {8, 0, 3};
        struct rng r;

        rng_seed(&r, 1);
        for (size_t i = 0; i < POSITIONS * PAIRS; i++) {
                double angle = (double)(i / PAIRS) * pow(10, -(double)(i % PAIRS));

                table[2 * i] = (float)cos(angle);
                table[2 * i + 1] = (float)sin(angle);
        }
        for (size_t i = 0; i < M * LDX; i++)
                x[i] = normal(&r);
        for (enum isa isa = ISA_SCALAR; isa <= best(); isa++) {
                struct compute *c = new_compute(isa, 1, ACTIVATION_F32);

                memcpy(y, x, sizeof(x));
                rope(c, table, PAIRS, positions, M, y, LDX, HEADS, STRIDE);
                for (size_t t = 0; t < M; t++)
                        for (size_t i = 0; i < LDX; i++) {
                                size_t in_head = i % STRIDE, at = t * LDX + i;
                                const float *turn = table + (positions[t] * PAIRS + in_head / 2) * 2;

                                if (i >= HEADS * STRIDE || in_head >= 2 * PAIRS)
                                        assert_true(y[at] == x[at]); /* untouched */
                                else if (in_head % 2 == 0)
                                        assert_true(y[at] == x[at] * turn[0] - x[at + 1] * turn[1]);
                                else
                                        assert_true(y[at] == x[at - 1] * turn[1] + x[at] * turn[0]);
                        }
                compute_free(c);
        }
}

static void rows_are_added(void **state) {
        for (enum isa isa = ISA_SCALAR; isa <= best(); isa++)
                for (size_t i = 0; i < COUNT(widths); i++) {
                        const size_t n = widths[i], m = 20, ld = n + 1;
                        struct compute *c = new_compute(isa, 2, ACTIVATION_F32);
                        struct rng r;
                        float *x, *y, *sum;

                        rng_seed(&r, n);
                        x = random_floats(&r, m * ld);
                        y = random_floats(&r, m * ld);
                        sum = alloc(m * ld * sizeof(float));
                        memcpy(sum, y, m * ld * sizeof(float));
                        add_rows(c, x, ld, m, n, sum, ld);
                        for (size_t j = 0; j < m * ld; j++)
                                assert_true(sum[j] == (j % ld < n ? y[j] + x[j] : y[j]));
                        free(x);
                        free(y);
                        free(sum);
                        compute_free(c);
                }
}

static void the_cache_holds_what_was_written_where_the_blocks_say(void **state) {
        const uint32_t blocks[] = {3, 0, 2};
        const size_t width = 21, tokens = 4, stride = 100;

        for (enum isa isa = ISA_SCALAR; isa <= best(); isa++)
                for (enum kv_type type = KV_F32; type <= KV_BF16; type++) {
                        struct compute *c = new_compute(isa, 1, ACTIVATION_F32);
                        struct kv_layer kv = {.type = type,
                            .base = alloc(4 * stride * 4),
                            .block_stride = stride,
                            .block_tokens = (unsigned)tokens,
                            .width = (unsigned)width,
                            .rank = 16};
                        struct rng r;
                        float *rows;

                        rng_seed(&r, 1);
                        rows = random_floats(&r, 12 * 25);
                        kv_write(c, &kv, blocks, 0, rows, 25, 7);
                        kv_write(c, &kv, blocks, 7, rows + 7 * 25, 25, 4);
                        for (size_t p = 0; p < 11; p++)
                                for (size_t i = 0; i < width; i++) {
                                        size_t at = blocks[p / tokens] * stride + p % tokens * width + i;
                                        float v = rows[p * 25 + i];

                                        if (type == KV_F32)
                                                assert_true(((float *)kv.base)[at] == v);
                                        else
                                                assert_int_equal(((uint16_t *)kv.base)[at], float_to_bf16(v));
                                }
                        free(kv.base);
                        free(rows);
                        compute_free(c);
                }
}

static void unknown_instruction_sets_are_refused_by_name(void **state) {
        struct compute_options o = {.isa = ISA_AVX512_BF16, .threads = 1};
        struct compute *c = NULL;
        struct error e = {{0}};
        int r = compute_new(&o, &c, &e);

        if (best() == ISA_AVX512_BF16) {
                assert_int_equal(r, 0);
                assert_int_equal(compute_isa(c), ISA_AVX512_BF16);
        } else {
                assert_int_equal(r, -ENOTSUP);
                assert_non_null(strstr(e.text, "avx512-bf16"));
        }
        compute_free(c);
}

int main(void) {
        const struct CMUnitTest tests[] = {
            cmocka_unit_test(rmsnorm_is_its_formula_with_the_same_bits_everywhere),
            cmocka_unit_test(rope_turns_neighbouring_pairs),
            cmocka_unit_test(rows_are_added),
            cmocka_unit_test(the_cache_holds_what_was_written_where_the_blocks_say),
            cmocka_unit_test(unknown_instruction_sets_are_refused_by_name),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
