/* MLPs and experts: against plain products, and many at once against one by one. */
#include "common.h"

struct expert {
        struct weight gate, up, down;
        struct mlp mlp;
        void *memory;
};

static struct expert new_expert(struct compute *c, struct rng *r, enum weight_type type, size_t hidden, size_t width) {
        struct expert x = {.gate = random_weight(r, type, width, hidden, 40, 0),
            .up = random_weight(r, type, width, hidden, 0, 0),
            .down = random_weight(r, type, hidden, width, 0, 12)};
        struct error e = {{0}};
        int ret;

        x.memory = alloc(mlp_bytes(&x.gate.s, &x.up.s, &x.down.s));
        ret = mlp_pack(c, &x.gate.s, &x.up.s, &x.down.s, x.memory, &x.mlp, &e);
        if (ret < 0)
                fail_msg("mlp_pack: %s", error_text(&e, ret));
        return x;
}

static void free_expert(struct expert *x) {
        free_weight(&x->gate);
        free_weight(&x->up);
        free_weight(&x->down);
        free(x->memory);
}

static void an_mlp_is_its_three_products(void **state) {
        const size_t hidden = 70, width = 45, m = 14;

        for (enum isa isa = ISA_SCALAR; isa <= best(); isa++)
                for (enum weight_type type = WEIGHT_F32; type <= WEIGHT_INT8_STATIC; type++) {
                        struct compute *c = new_compute(isa, 1, ACTIVATION_F32);
                        struct rng r;
                        struct expert x;
                        float *in, *out, gate[45], up[45], down[70];

                        rng_seed(&r, 20 + type);
                        x = new_expert(c, &r, type, hidden, width);
                        in = random_floats(&r, m * hidden);
                        out = alloc(m * hidden * sizeof(float));
                        for (size_t i = 0; i < m * hidden; i++)
                                in[i] *= 0.01f;
                        mlp_run(c, &x.mlp, in, hidden, m, out, hidden);
                        for (size_t t = 0; t < m; t++) {
                                plain_product(&x.gate.s, false, in + t * hidden, gate);
                                plain_product(&x.up.s, false, in + t * hidden, up);
                                for (size_t i = 0; i < width; i++)
                                        gate[i] = (float)((double)gate[i] / (1 + exp(-(double)gate[i]))) * up[i];
                                plain_product(&x.down.s, false, gate, down);
                                /* An int8 down may round one activation the other way. */
                                near_floats(out + t * hidden, down, hidden, type < WEIGHT_INT8_DYNAMIC ? 1e-5 : 2e-2);
                        }
                        free(in);
                        free(out);
                        free_expert(&x);
                        compute_free(c);
                }
}

static void every_isa_gives_the_same_bits(void **state) {
        const size_t hidden = 96, width = 77, m = 9;

        for (enum weight_type type = WEIGHT_F32; type <= WEIGHT_INT8_STATIC; type++) {
                float *first = alloc(m * hidden * sizeof(float)), *out = alloc(m * hidden * sizeof(float));

                for (enum isa isa = ISA_SCALAR; isa <= best(); isa++) {
                        struct compute *c = new_compute(isa, 1, ACTIVATION_F32);
                        struct rng r;
                        struct expert x;
                        float *in;

                        rng_seed(&r, 30);
                        x = new_expert(c, &r, type, hidden, width);
                        in = random_floats(&r, m * hidden);
                        mlp_run(c, &x.mlp, in, hidden, m, isa == ISA_SCALAR ? first : out, hidden);
                        if (isa != ISA_SCALAR)
                                same_floats(out, first, m * hidden);
                        free(in);
                        free_expert(&x);
                        compute_free(c);
                }
                free(first);
                free(out);
        }
}

static void many_experts_are_each_alone(void **state) {
        enum { EXPERTS = 9, ROWS = 50 };
        const size_t hidden = 130, width = 100;
        static const size_t m[EXPERTS] = {1, 0, 1, 7, 40, 1, 12, 0, 13};
        static const unsigned threads[] = {1, 2, 3, 5};

        for (enum weight_type type = WEIGHT_F32; type <= WEIGHT_INT8_DYNAMIC; type++)
                for (enum activation a = ACTIVATION_F32; a <= ACTIVATION_BF16; a++)
                        for (size_t t = 0; t < 4; t++) {
                                struct compute *c = new_compute(ISA_BEST, threads[t], a);
                                struct expert x[EXPERTS];
                                struct expert_call calls[EXPERTS];
                                uint32_t rows[EXPERTS][ROWS];
                                struct rng r;
                                float *in, alone[130];

                                rng_seed(&r, 40);
                                in = random_floats(&r, ROWS * hidden);
                                for (size_t i = 0; i < EXPERTS; i++) {
                                        x[i] = new_expert(c, &r, type, hidden, width);
                                        for (size_t j = 0; j < m[i]; j++)
                                                rows[i][j] = (uint32_t)rng_below(&r, ROWS);
                                        calls[i] = (struct expert_call){
                                            &x[i].mlp, rows[i], m[i], alloc((m[i] + 1) * hidden * sizeof(float))};
                                }
                                experts_run(c, calls, EXPERTS, in, hidden, hidden);
                                for (size_t i = 0; i < EXPERTS; i++) {
                                        for (size_t j = 0; j < m[i]; j++) {
                                                mlp_run(
                                                    c, &x[i].mlp, in + rows[i][j] * hidden, hidden, 1, alone, hidden);
                                                same_floats(calls[i].y + j * hidden, alone, hidden);
                                        }
                                        free(calls[i].y);
                                        free_expert(&x[i]);
                                }
                                free(in);
                                compute_free(c);
                        }
}

static void a_crowd_beyond_the_scratch_is_cut(void **state) {
        struct compute *c = new_compute(ISA_BEST, 2, ACTIVATION_F32);
        const size_t hidden = 2, width = 4096, m = 5000; /* 32 KiB between up and down per row: 128 MiB hold 4,000 */
        struct rng r;
        struct expert x;
        float *in, *out, alone[2];

        rng_seed(&r, 50);
        x = new_expert(c, &r, WEIGHT_F32, hidden, width);
        in = random_floats(&r, m * hidden);
        out = alloc(m * hidden * sizeof(float));
        mlp_run(c, &x.mlp, in, hidden, m, out, hidden);
        for (size_t i = 0; i < m; i += 357) {
                mlp_run(c, &x.mlp, in + i * hidden, hidden, 1, alone, hidden);
                same_floats(out + i * hidden, alone, hidden);
        }
        free(in);
        free(out);
        free_expert(&x);
        compute_free(c);
}

static void parts_that_do_not_fit_are_refused(void **state) {
        struct compute *c = new_compute(ISA_BEST, 1, ACTIVATION_F32);
        struct rng r;
        struct weight gate, up, down;
        struct mlp p = {.width = 99};
        struct error e = {{0}};
        void *memory = alloc(1 << 16);

        rng_seed(&r, 1);
        gate = random_weight(&r, WEIGHT_BF16, 10, 20, 0, 0);
        up = random_weight(&r, WEIGHT_BF16, 11, 20, 0, 0);
        down = random_weight(&r, WEIGHT_BF16, 20, 10, 0, 0);
        assert_int_equal(mlp_pack(c, &gate.s, &up.s, &down.s, memory, &p, &e), -EINVAL);
        assert_non_null(strstr(e.text, "up 11 x 20"));
        up.s.n = 10;
        up.s.type = WEIGHT_F16;
        assert_int_equal(mlp_pack(c, &gate.s, &up.s, &down.s, memory, &p, &e), -EINVAL);
        assert_non_null(strstr(e.text, "differ"));
        assert_int_equal(p.width, 99);
        free_weight(&gate);
        free_weight(&up);
        free_weight(&down);
        free(memory);
        compute_free(c);
}

int main(void) {
        const struct CMUnitTest tests[] = {
            cmocka_unit_test(an_mlp_is_its_three_products),
            cmocka_unit_test(every_isa_gives_the_same_bits),
            cmocka_unit_test(many_experts_are_each_alone),
            cmocka_unit_test(a_crowd_beyond_the_scratch_is_cut),
            cmocka_unit_test(parts_that_do_not_fit_are_refused),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
