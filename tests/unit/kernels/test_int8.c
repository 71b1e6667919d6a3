/* int8 layers: the vectors of an independent implementation, and exactness at the extremes. */
#include "vectors.h"

static void check_rows(const double *expected, const float *y, size_t n) {
        for (size_t i = 0; i < n; i++)
                if (fabs((double)y[i] - expected[i]) > 3e-7 * fabs(expected[i]))
                        fail_msg("element %zu: %.9g is not %.9g", i, (double)y[i], expected[i]);
}

static void dynamic_layers_give_the_vectors(void **state) {
        struct vectors v = open_vectors();
        const size_t n = 24, k = 96, m = 7; /* row 4: exact ties, row 5: zeros */
        float *x = tensor(&v, "dyn.x", NULL), y[7 * 24];
        double *expected = tensor(&v, "dyn.y", NULL);
        void *w = tensor(&v, "dyn.weight", NULL), *scale = tensor(&v, "dyn.weight_scale", NULL);
        struct weight_source s = {
            .type = WEIGHT_INT8_DYNAMIC, .n = n, .k = k, .row_stride = k, .data = w, .row_scale = scale};

        for (enum isa isa = ISA_SCALAR; isa <= best(); isa++) {
                struct compute *c = new_compute(isa, 1, ACTIVATION_BF16); /* int8 layers do not round first */
                struct packed p = pack(c, &s);

                linear_run(c, &p.l, x, k, m, y, n);
                check_rows(expected, y, m * n);
                for (size_t i = 0; i < n; i++)
                        assert_true(y[5 * n + i] == 0);
                free(p.memory);
                compute_free(c);
        }
        free(x);
        free(expected);
        free(w);
        free(scale);
        close_vectors(&v);
}

static void static_layers_give_the_vectors(void **state) {
        struct vectors v = open_vectors();
        const size_t n = 24, k = 96, m = 5;

        for (int set = 0; set < 3; set++) { /* 0: exact ties; 2: offset -128 and weights of -128 */
                static const char *const names[] = {
                    "x", "y", "weight", "deq_scale", "quant_bias", "input_scale", "input_offset", "acc"};
                void *t[8];
                float y[5 * 24];
                struct weight_source s = {.type = WEIGHT_INT8_STATIC, .n = n, .k = k, .row_stride = k};

                for (size_t i = 0; i < 8; i++) {
                        char name[64];

                        snprintf(name, sizeof(name), "static%d.%s", set, names[i]);
                        t[i] = tensor(&v, name, NULL);
                }
                s.data = t[2];
                s.deq_scale = t[3];
                s.quant_bias = t[4];
                s.input_scale_inv = 1 / *(float *)t[5];
                s.input_offset = *(float *)t[6];
                for (enum isa isa = ISA_SCALAR; isa <= best(); isa++) {
                        struct compute *c = new_compute(isa, 1, ACTIVATION_F32);
                        struct packed p = pack(c, &s);

                        linear_run(c, &p.l, t[0], k, m, y, n);
                        check_rows(t[1], y, m * n);
                        free(p.memory);
                        /* Without the bias (all but the first rank of a row-parallel layer) only the sums are left. */
                        s.quant_bias = NULL;
                        p = pack(c, &s);
                        linear_run(c, &p.l, t[0], k, m, y, n);
                        for (size_t i = 0; i < m * n; i++)
                                assert_true(y[i] == (float)((int32_t *)t[7])[i] * s.deq_scale[i % n]);
                        s.quant_bias = t[4];
                        free(p.memory);
                        compute_free(c);
                }
                for (size_t i = 0; i < 8; i++)
                        free(t[i]);
        }
        close_vectors(&v);
}

/* Quotients beside the halves where rounding turns, for scales of every size: what a plain division gives. */
static void dynamic_activations_are_divided_exactly(void **state) {
        enum { K = 48, SCALES = 3000 };
        static const float sizes[] = {
            1, 0x1p-20f, 0x1p+20f, 0x1p-61f, 0x1p-59f, 0x1p+59f, 0x1p+61f, 0x1p-120f, 0x1p+110f, 0x1p-135f};
        int8_t *identity = alloc(K * K);
        float ones[K], x[K], y[K];
        struct weight_source s = {
            .type = WEIGHT_INT8_DYNAMIC, .n = K, .k = K, .row_stride = K, .data = identity, .row_scale = ones};

        memset(identity, 0, K * K);
        for (size_t i = 0; i < K; i++) {
                identity[i * K + i] = 1;
                ones[i] = 1;
        }
        for (enum isa isa = ISA_SCALAR; isa <= best(); isa++) {
                struct compute *c = new_compute(isa, 1, ACTIVATION_F32);
                struct packed p = pack(c, &s);
                struct rng r;

                rng_seed(&r, 7);
                for (size_t round = 0; round < SCALES; round++) {
                        float largest = (float)(1 + rng_unit(&r)) * sizes[round % 10], scale = largest / 127;

                        x[0] = largest;
                        for (size_t i = 1; i < K; i++) {
                                float half = (float)rng_below(&r, 127) + 0.5f;

                                x[i] = half * scale;
                                for (uint64_t steps = rng_below(&r, 3); steps > 0; steps--)
                                        x[i] = nextafterf(x[i], i % 2 ? largest : 0);
                                x[i] *= i % 4 < 2 ? 1 : -1;
                        }
                        linear_run(c, &p.l, x, K, 1, y, K);
                        for (size_t i = 0; i < K; i++)
                                if (y[i] != rintf(x[i] / scale) * scale)
                                        fail_msg("%s: %a / %a is not %a", isa_name(isa), (double)x[i], (double)scale,
                                            (double)(y[i] / scale));
                }
                free(p.memory);
                compute_free(c);
        }
        free(identity);
}

/* Extreme values on both sides: what saturates in the byte products of AVX2. */
static void sums_are_exact_at_the_extremes(void **state) {
        struct vectors v = open_vectors();
        const size_t n = 6, k = 128, m = 5;
        int8_t *x = tensor(&v, "trap.x", NULL), *w = tensor(&v, "trap.w", NULL);
        int32_t *acc = tensor(&v, "trap.acc", NULL);
        float ones[6] = {1, 1, 1, 1, 1, 1}, xf[5 * 128], y[5 * 6];
        struct weight_source s = {.type = WEIGHT_INT8_STATIC,
            .n = n,
            .k = k,
            .row_stride = k,
            .data = w,
            .deq_scale = ones,
            .input_scale_inv = 1};

        for (size_t i = 0; i < m * k; i++)
                xf[i] = x[i];
        for (enum isa isa = ISA_SCALAR; isa <= best(); isa++) {
                struct compute *c = new_compute(isa, 1, ACTIVATION_F32);
                struct packed p = pack(c, &s);

                linear_run(c, &p.l, xf, k, m, y, n);
                for (size_t i = 0; i < m * n; i++)
                        assert_true(y[i] == (float)acc[i]);
                free(p.memory);
                compute_free(c);
        }
        free(x);
        free(w);
        free(acc);
        close_vectors(&v);
}

static void the_longest_row_of_extremes_is_exact(void **state) {
        const size_t k = 131071;
        int8_t *w = alloc(2 * k);
        float *x = alloc(k * sizeof(float)), ones[2] = {1, 1}, y[2];
        struct weight_source s = {.type = WEIGHT_INT8_STATIC,
            .n = 2,
            .k = k,
            .row_stride = k,
            .data = w,
            .deq_scale = ones,
            .input_scale_inv = 1};

        memset(w, -128, k);
        memset(w + k, 127, k);
        for (size_t i = 0; i < k; i++)
                x[i] = -1000; /* clamps to -128 */
        for (enum isa isa = ISA_SCALAR; isa <= best(); isa++) {
                struct compute *c = new_compute(isa, 1, ACTIVATION_F32);
                struct packed p = pack(c, &s);

                linear_run(c, &p.l, x, k, 1, y, 2);
                assert_true(y[0] == (float)(128 * 128 * (int32_t)k));
                assert_true(y[1] == (float)(-128 * 127 * (int32_t)k));
                free(p.memory);
                compute_free(c);
        }
        free(w);
        free(x);
}

static void broken_activations_stay_within_bounds(void **state) {
        static const float broken[] = {NAN, INFINITY, -INFINITY, 1e30f, 0, 1};
        const size_t k = 6;
        int8_t w[6] = {1, 1, 1, 1, 1, 1};
        float one = 1, y;
        struct weight_source s = {.type = WEIGHT_INT8_STATIC,
            .n = 1,
            .k = k,
            .row_stride = k,
            .data = w,
            .deq_scale = &one,
            .input_scale_inv = 1};

        for (enum isa isa = ISA_SCALAR; isa <= best(); isa++) {
                struct compute *c = new_compute(isa, 1, ACTIVATION_F32);
                struct packed p = pack(c, &s);

                linear_run(c, &p.l, broken, k, 1, &y, 1);
                assert_true(y == -128 + 127 - 128 + 127 + 0 + 1); /* a NaN counts as the least value */
                free(p.memory);
                compute_free(c);
        }
}

int main(void) {
        const struct CMUnitTest tests[] = {
            cmocka_unit_test(dynamic_layers_give_the_vectors),
            cmocka_unit_test(static_layers_give_the_vectors),
            cmocka_unit_test(dynamic_activations_are_divided_exactly),
            cmocka_unit_test(sums_are_exact_at_the_extremes),
            cmocka_unit_test(the_longest_row_of_extremes_is_exact),
            cmocka_unit_test(broken_activations_stay_within_bounds),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
