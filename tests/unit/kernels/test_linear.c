/* Linear layers: every format, instruction set, number of rows and threads against the plain product. */
#include "common.h"

static const size_t shapes[][2] = {{1, 1}, {31, 7}, {32, 64}, {33, 129}, {70, 258}, {130, 40}, {257, 515}};
#define COUNT(a) (sizeof(a) / sizeof((a)[0]))

static void check_against_plain(enum isa isa, enum weight_type type, size_t n, size_t k, size_t m) {
        struct rng r;
        struct compute *c = new_compute(isa, 1, ACTIVATION_F32);
        struct weight w;
        struct packed p;
        float *x, *y, *expected;

        rng_seed(&r, n * 1000 + k);
        w = random_weight(&r, type, n, k, 40, 66);
        p = pack(c, &w.s);
        x = random_floats(&r, m * (k + 5));
        y = alloc(m * (n + 2) * sizeof(float));
        expected = alloc(n * sizeof(float));
        linear_run(c, &p.l, x, k + 5, m, y, n + 2);
        for (size_t i = 0; i < m; i++) {
                plain_product(&w.s, false, x + i * (k + 5), expected);
                same_floats(y + i * (n + 2), expected, n);
        }
        free(x);
        free(y);
        free(expected);
        free(p.memory);
        free_weight(&w);
        compute_free(c);
}

static void every_isa_gives_the_bits_of_a_plain_fused_sum(void **state) {
        for (enum isa isa = ISA_SCALAR; isa <= best(); isa++)
                for (enum weight_type type = WEIGHT_F32; type <= WEIGHT_INT8_STATIC; type++)
                        for (size_t s = 0; s < COUNT(shapes); s++)
                                for (size_t m = 1; m <= 27; m += 13)
                                        check_against_plain(isa, type, shapes[s][0], shapes[s][1], m);
}

static void rows_do_not_know_their_neighbours(void **state) {
        const size_t n = 330, k = 140, most = 63; /* panels enough for two at a time */

        for (enum isa isa = ISA_SCALAR; isa <= best(); isa++)
                for (enum activation a = ACTIVATION_F32; a <= ACTIVATION_BF16; a++)
                        for (enum weight_type type = WEIGHT_F32; type <= WEIGHT_INT8_STATIC; type++) {
                                struct compute *c = new_compute(isa, 1, a);
                                struct rng r;
                                struct weight w;
                                struct packed p;
                                float *x, *single, *y;

                                rng_seed(&r, type);
                                w = random_weight(&r, type, n, k, 0, 0);
                                p = pack(c, &w.s);
                                x = random_floats(&r, most * k);
                                single = alloc(most * n * sizeof(float));
                                y = alloc(most * n * sizeof(float));
                                for (size_t i = 0; i < most; i++)
                                        linear_run(c, &p.l, x + i * k, k, 1, single + i * n, n);
                                for (size_t m = 2; m <= most; m += m < 26 ? 1 : 37) {
                                        linear_run(c, &p.l, x, k, m, y, n);
                                        same_floats(y, single, m * n);
                                }
                                free(x);
                                free(single);
                                free(y);
                                free(p.memory);
                                free_weight(&w);
                                compute_free(c);
                        }
}

static void threads_change_no_bit(void **state) {
        const size_t n = 700, k = 200, m = 40;
        static const unsigned threads[] = {2, 3, 5};

        for (enum weight_type type = WEIGHT_F32; type <= WEIGHT_INT8_STATIC; type++) {
                struct compute *one = new_compute(ISA_BEST, 1, ACTIVATION_BF16);
                struct rng r;
                struct weight w;
                struct packed p;
                float *x, *y, *expected;

                rng_seed(&r, 5 + type);
                w = random_weight(&r, type, n, k, 0, 0);
                p = pack(one, &w.s);
                x = random_floats(&r, m * k);
                y = alloc(m * n * sizeof(float));
                expected = alloc(m * n * sizeof(float));
                for (size_t rows = 1; rows <= m; rows += 39) {
                        linear_run(one, &p.l, x, k, rows, expected, n);
                        for (size_t t = 0; t < COUNT(threads); t++) {
                                struct compute *c = new_compute(ISA_BEST, threads[t], ACTIVATION_BF16);
                                struct packed q = pack(c, &w.s);

                                assert_memory_equal(p.memory, q.memory, linear_bytes(&w.s));
                                linear_run(c, &q.l, x, k, rows, y, n);
                                same_floats(y, expected, rows * n);
                                free(q.memory);
                                compute_free(c);
                        }
                }
                free(x);
                free(y);
                free(expected);
                free(p.memory);
                free_weight(&w);
                compute_free(one);
        }
}

static void bf16_dot_products_are_close_to_rounded_inputs(void **state) {
        const size_t n = 96, k = 517;

        for (enum isa isa = ISA_SCALAR; isa <= best(); isa++)
                for (enum weight_type type = WEIGHT_F32; type <= WEIGHT_FP8; type++) {
                        struct compute *c = new_compute(isa, 1, ACTIVATION_BF16);
                        struct rng r;
                        struct weight w;
                        struct packed p;
                        float *x, *y, *expected;

                        rng_seed(&r, 11);
                        w = random_weight(&r, type, n, k, 70, 30);
                        p = pack(c, &w.s);
                        x = random_floats(&r, k);
                        y = alloc(n * sizeof(float));
                        expected = alloc(n * sizeof(float));
                        linear_run(c, &p.l, x, k, 1, y, n);
                        plain_product(&w.s, true, x, expected);
                        if (isa < ISA_AVX512_BF16)
                                same_floats(y, expected, n);
                        else
                                near_floats(y, expected, n, 1e-5);
                        free(x);
                        free(y);
                        free(expected);
                        free(p.memory);
                        free_weight(&w);
                        compute_free(c);
                }
}

static void every_fp8_code_is_decoded(void **state) {
        /* Row c holds code c in every place; times one-hot rows it must come out as its value, wherever it lies. */
        const size_t k = 6;
        uint8_t data[256 * 6];
        float scale = 1, x[36] = {0}, y[6 * 256];

        for (size_t i = 0; i < sizeof(data); i++)
                data[i] = (i / k & 0x7f) == 0x7f ? 0 : (uint8_t)(i / k);
        for (size_t i = 0; i < k; i++)
                x[i * k + i] = 1;
        for (enum isa isa = ISA_SCALAR; isa <= best(); isa++)
                for (enum activation a = ACTIVATION_F32; a <= ACTIVATION_BF16; a++) {
                        struct compute *c = new_compute(isa, 1, a);
                        struct weight_source s = {.type = WEIGHT_FP8,
                            .n = 256,
                            .k = k,
                            .data = data,
                            .row_stride = k,
                            .scale = &scale,
                            .scale_stride = 1,
                            .block_n = 256,
                            .block_k = 128};
                        struct packed p = pack(c, &s);

                        for (size_t m = 1; m <= k; m += k - 1) {
                                linear_run(c, &p.l, x, k, m, y, 256);
                                for (size_t i = 0; i < m * 256; i++)
                                        assert_true(y[i] == fp8_e4m3_to_float(data[i % 256 * k]));
                        }
                        free(p.memory);
                        compute_free(c);
                }
}

static void many_layers_over_the_same_rows_are_each_alone(void **state) {
        struct compute *c = new_compute(ISA_BEST, 3, ACTIVATION_F32);
        const size_t k = 260, m = 30;
        struct weight w[7];
        struct packed p[7];
        struct linear_call calls[7];
        float *y[7], *alone, *x;
        struct rng r;

        rng_seed(&r, 3);
        x = random_floats(&r, m * k);
        for (size_t i = 0; i < 7; i++) {
                size_t n = 40 + 50 * i;

                w[i] = random_weight(&r, i < 6 ? (enum weight_type)i : WEIGHT_INT8_STATIC, n, k, 0, 0);
                if (i == 6)
                        w[i].s.input_offset = -3; /* its own quantisation of the same rows */
                p[i] = pack(c, &w[i].s);
                y[i] = alloc(m * n * sizeof(float));
                calls[i] = (struct linear_call){&p[i].l, y[i], n};
        }
        linear_run_many(c, calls, 7, x, k, m);
        for (size_t i = 0; i < 7; i++) {
                size_t n = w[i].s.n;

                alone = alloc(m * n * sizeof(float));
                linear_run(c, &p[i].l, x, k, m, alone, n);
                same_floats(y[i], alone, m * n);
                free(alone);
                free(y[i]);
                free(p[i].memory);
                free_weight(&w[i]);
        }
        free(x);
        compute_free(c);
}

static void no_rows_write_nothing(void **state) {
        struct compute *c = new_compute(ISA_BEST, 2, ACTIVATION_F32);
        struct rng r;
        struct weight w;
        struct packed p;
        float y = 17;

        rng_seed(&r, 1);
        w = random_weight(&r, WEIGHT_BF16, 10, 10, 0, 0);
        p = pack(c, &w.s);
        linear_run(c, &p.l, NULL, 10, 0, &y, 10);
        assert_true(y == 17);
        free(p.memory);
        free_weight(&w);
        compute_free(c);
}

static void more_rows_than_the_scratch_holds_are_cut(void **state) {
        /* 16,384 columns as floats are 64 KiB per row; 128 MiB of scratch hold 2,047. */
        struct compute *c = new_compute(ISA_BEST, 2, ACTIVATION_F32);
        const size_t n = 3, k = 16384, m = 2100;
        struct rng r;
        struct weight w;
        struct packed p;
        float *x = alloc(m * k * sizeof(float)), *y = alloc(m * n * sizeof(float)), one[3];

        rng_seed(&r, 1);
        w = random_weight(&r, WEIGHT_BF16, n, k, 0, 0);
        p = pack(c, &w.s);
        for (size_t i = 0; i < m * k; i++)
                x[i] = (float)(i * 2654435761u >> 8 & 0xff) - 100;
        linear_run(c, &p.l, x, k, m, y, n);
        for (size_t i = 0; i < m; i += 2099) {
                linear_run(c, &p.l, x + i * k, k, 1, one, n);
                same_floats(y + i * n, one, n);
        }
        free(x);
        free(y);
        free(p.memory);
        free_weight(&w);
        compute_free(c);
}

static void refuse(const struct weight_source *s, const char *word) {
        struct compute *c = new_compute(ISA_BEST, 2, ACTIVATION_F32);
        char *memory = alloc(8 << 20);
        struct linear l = {.n = 99};
        struct error e = {{0}};

        assert_true(linear_bytes(s) < 8 << 20); /* asked first, before anything is checked */
        assert_int_equal(linear_pack(c, s, memory, &l, &e), -EINVAL);
        assert_int_equal(l.n, 99);
        if (!strstr(e.text, word))
                fail_msg("'%s' lacks '%s'", e.text, word);
        free(memory);
        compute_free(c);
}

static void weights_may_lie_at_any_address(void **state) {
        for (enum weight_type type = WEIGHT_F32; type <= WEIGHT_INT8_STATIC; type++) {
                struct compute *c = new_compute(ISA_BEST, 1, ACTIVATION_F32);
                const size_t n = 34, k = 51, bytes = n * (k + 3) * 4;
                struct rng r;
                struct weight w;
                struct packed p, q;
                char *odd = alloc(bytes + 1);

                rng_seed(&r, type);
                w = random_weight(&r, type, n, k, 0, 0);
                p = pack(c, &w.s);
                memcpy(odd + 1, w.data, n * (k + 3) * (type == WEIGHT_F32 ? 4 : type <= WEIGHT_BF16 ? 2 : 1));
                w.s.data = odd + 1;
                q = pack(c, &w.s);
                assert_memory_equal(p.memory, q.memory, linear_bytes(&w.s));
                if (type != WEIGHT_INT8_STATIC) {
                        float row[51];

                        weight_row(&w.s, n - 1, row);
                }
                free(p.memory);
                free(q.memory);
                free(odd);
                free_weight(&w);
                compute_free(c);
        }
}

static void damaged_and_impossible_weights_are_refused(void **state) {
        static const uint8_t nan_at_the_end[4] = {1, 2, 3, 0xff};
        static const float fine = 1, infinite = INFINITY;
        struct weight_source s = {.type = WEIGHT_FP8,
            .n = 2,
            .k = 2,
            .row_stride = 2,
            .data = nan_at_the_end,
            .scale = &fine,
            .scale_stride = 1,
            .block_n = 128,
            .block_k = 128};

        refuse(&s, "row 1 of an fp8 weight holds a NaN");
        s.n = 1;
        s.scale = &infinite;
        refuse(&s, "row 0 of an fp8 weight has a scale beyond");
        s.scale = &fine;
        s.first_col = 3;
        refuse(&s, "odd column 3");
        s.first_col = 0;
        s.block_k = 0;
        refuse(&s, "blocks");
        s.block_k = 512;
        refuse(&s, "512 columns");
        s.block_k = 128;
        s.block_n = 0;
        refuse(&s, "blocks");
        s.type = WEIGHT_INT8_DYNAMIC;
        s.k = 131072;
        refuse(&s, "int8");
        s.k = 0;
        refuse(&s, "columns");
}

int main(void) {
        const struct CMUnitTest tests[] = {
            cmocka_unit_test(every_isa_gives_the_bits_of_a_plain_fused_sum),
            cmocka_unit_test(rows_do_not_know_their_neighbours),
            cmocka_unit_test(threads_change_no_bit),
            cmocka_unit_test(bf16_dot_products_are_close_to_rounded_inputs),
            cmocka_unit_test(every_fp8_code_is_decoded),
            cmocka_unit_test(many_layers_over_the_same_rows_are_each_alone),
            cmocka_unit_test(no_rows_write_nothing),
            cmocka_unit_test(more_rows_than_the_scratch_holds_are_cut),
            cmocka_unit_test(weights_may_lie_at_any_address),
            cmocka_unit_test(damaged_and_impossible_weights_are_refused),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
