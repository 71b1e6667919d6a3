/* test_gate.c - which experts a token goes to, by hand-made scores. */
#include "fixture.h"
#include "model/core.h"

static void choose(
    const struct model_config *c, const float *bias, const float *logits, uint32_t *ids, float *weights) {
        float scratch[64];

        assert_true(gate_scratch_floats(c) <= 64);
        gate_select(c, bias, logits, scratch, ids, weights);
}

static void same_ids(const uint32_t *ids, const uint32_t *want, size_t n) {
        for (size_t i = 0; i < n; i++)
                if (ids[i] != want[i])
                        fail_msg("choice %zu is expert %u, not %u", i, ids[i], want[i]);
}

static void near(float x, double y) {
        if (!(fabs((double)x - y) <= 1e-6 * fabs(y)))
                fail_msg("%.9g is not %.9g", (double)x, y);
}

static double sigmoid_of(double x) {
        return 1 / (1 + exp(-x));
}

static void v2_lite_takes_the_best_of_the_softmax(void **state) {
        const struct model_config c = {.experts = 4, .top_k = 2, .groups = 1, .top_groups = 1, .routed_scale = 3};
        const float logits[] = {0, 2, -1, 1};
        const double sum = exp(0) + exp(2) + exp(-1) + exp(1);
        uint32_t ids[2];
        float weights[2];

        choose(&c, NULL, logits, ids, weights);
        same_ids(ids, (const uint32_t[]){1, 3}, 2);
        near(weights[0], 3 * exp(2) / sum);
        near(weights[1], 3 * exp(1) / sum);
}

/* V2 normalises or scales, V3 does both. */
static void normalising_and_scaling_are_as_the_family_has_it(void **state) {
        struct model_config c = {
            .experts = 4, .top_k = 2, .groups = 1, .top_groups = 1, .routed_scale = 3, .norm_topk = true};
        const float logits[] = {0, 2, -1, 1}, none[4] = {0};
        uint32_t ids[2];
        float weights[2];

        choose(&c, NULL, logits, ids, weights);
        near(weights[0] + weights[1], 1);
        c.is_v3 = true;
        c.gate = GATE_SIGMOID_NOAUX;
        choose(&c, none, logits, ids, weights);
        near(weights[0] + weights[1], 3);
        near(weights[0] / weights[1], sigmoid_of(2) / sigmoid_of(1));
        c.norm_topk = false;
        choose(&c, none, logits, ids, weights);
        near(weights[0], 3 * sigmoid_of(2));
}

static void v2_groups_count_by_their_best_v3_groups_by_their_two_best(void **state) {
        struct model_config c = {
            .experts = 6, .top_k = 2, .groups = 3, .top_groups = 1, .routed_scale = 1, .gate = GATE_SOFTMAX_GROUPS};
        const float logits[] = {3, -9, 2, 2, 1, 1}, none[6] = {0};
        uint32_t ids[2];
        float weights[2];

        choose(&c, NULL, logits, ids, weights);
        same_ids(ids, (const uint32_t[]){0, 1}, 2);
        c.gate = GATE_SIGMOID_NOAUX;
        c.is_v3 = true;
        choose(&c, none, logits, ids, weights);
        same_ids(ids, (const uint32_t[]){2, 3}, 2);
}

/* All biased scores of the best group are negative: an excluded expert must not win as 0. */
static void excluded_experts_are_minus_infinity(void **state) {
        const struct model_config c = {.experts = 4,
            .top_k = 2,
            .groups = 2,
            .top_groups = 1,
            .routed_scale = 1,
            .gate = GATE_SIGMOID_NOAUX,
            .is_v3 = true};
        const float logits[] = {0, 0, 0, 0}, bias[] = {-3, -3, -2, -2};
        uint32_t ids[2];
        float weights[2];

        choose(&c, bias, logits, ids, weights);
        same_ids(ids, (const uint32_t[]){2, 3}, 2);
}

static void the_bias_chooses_and_does_not_weigh(void **state) {
        const struct model_config c = {.experts = 3,
            .top_k = 2,
            .groups = 1,
            .top_groups = 1,
            .routed_scale = 1,
            .gate = GATE_SIGMOID_NOAUX,
            .is_v3 = true};
        const float logits[] = {1, 0, -1}, bias[] = {0, 0, 5};
        uint32_t ids[2];
        float weights[2];

        choose(&c, bias, logits, ids, weights);
        same_ids(ids, (const uint32_t[]){2, 0}, 2);
        near(weights[0], sigmoid_of(-1));
}

static void ties_go_to_the_lowest_index(void **state) {
        struct model_config c = {
            .experts = 8, .top_k = 4, .groups = 4, .top_groups = 2, .routed_scale = 1, .gate = GATE_SOFTMAX_GROUPS};
        const float logits[8] = {0};
        uint32_t ids[4];
        float weights[4];

        choose(&c, NULL, logits, ids, weights);
        same_ids(ids, (const uint32_t[]){0, 1, 2, 3}, 4);
}

/* Weights that overflowed, or a damaged file: garbage, but no access outside. */
static void no_logits_lead_outside_the_experts(void **state) {
        static const float values[] = {NAN, INFINITY, -INFINITY, 0, -NAN, 1e38f, -1e38f};
        const enum gate_kind kinds[] = {GATE_SOFTMAX_GREEDY, GATE_SOFTMAX_GROUPS, GATE_SIGMOID_NOAUX};

        for (int kind = 0; kind < 3; kind++)
                for (uint32_t seed = 0; seed < 2000; seed++) {
                        const struct model_config c = {.experts = 8,
                            .top_k = 4,
                            .groups = kind ? 4 : 1,
                            .top_groups = kind ? 2 : 1,
                            .routed_scale = 1,
                            .norm_topk = true,
                            .gate = kinds[kind],
                            .is_v3 = kind == 2};
                        float logits[8], weights[4];
                        uint32_t ids[4], mix = seed * 2654435761u;

                        for (int i = 0; i < 8; i++, mix = mix * 1664525 + 1013904223)
                                logits[i] = values[(mix >> 20) % 7];
                        choose(&c, kind == 2 ? logits : NULL, logits, ids, weights);
                        for (int i = 0; i < 4; i++)
                                assert_true(ids[i] < 8);
                }
}

int main(void) {
        const struct CMUnitTest tests[] = {
            cmocka_unit_test(v2_lite_takes_the_best_of_the_softmax),
            cmocka_unit_test(normalising_and_scaling_are_as_the_family_has_it),
            cmocka_unit_test(v2_groups_count_by_their_best_v3_groups_by_their_two_best),
            cmocka_unit_test(excluded_experts_are_minus_infinity),
            cmocka_unit_test(the_bias_chooses_and_does_not_weigh),
            cmocka_unit_test(ties_go_to_the_lowest_index),
            cmocka_unit_test(no_logits_lead_outside_the_experts),
        };

        return cmocka_run_group_tests_name("gate", tests, NULL, NULL);
}
