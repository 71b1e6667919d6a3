/* Ways in which tokens travel between ranks, and threads in groups: what is said does not depend on them. Each rank is an engine of
 * this process with its threads, its compute and its part of the checkpoint. */
#include "group_rig.h"

/* What the ranks of a shape say when rank 0 has all requests. */
static struct load *answers_of(const struct shape *shape) {
        struct load *l = calloc(1, sizeof(*l));
        struct rank ranks[RANKS_MAX] = {{0}};
        uint32_t at[REQUESTS] = {0};
        uint16_t port = free_port();

        assert_non_null(l);
        for (uint32_t i = shape->size; i-- > 0;)
                rank_open_as(&ranks[i], shape, i, port);
        for (uint32_t i = 0; i < shape->size; i++)
                wait_health(&ranks[i], true);
        make_load(l, model_config(ranks[0].model)->vocab);
        for (size_t i = 0; i < REQUESTS; i++)
                submit(ranks[0].engine, l->prompts[i], l->lengths[i], &l->sampling[i], &l->expected[i]);
        wait_ends(ranks, at, l->expected, REQUESTS);
        for (uint32_t i = 0; i < shape->size; i++)
                rank_close(&ranks[i]);
        return l;
}

static bool same_bits(const struct answer *a, const struct answer *b) {
        return a->count == b->count && !memcmp(a->tokens, b->tokens, a->count * sizeof(*a->tokens)) &&
               !memcmp(a->logprobs, b->logprobs, a->count * sizeof(*a->logprobs));
}

static bool same(const struct shape *one, const struct shape *other) {
        struct load *a = answers_of(one), *b = answers_of(other);
        bool equal = true;

        for (size_t i = 0; i < REQUESTS; i++)
                equal &= same_bits(&a->expected[i], &b->expected[i]);
        free(a);
        free(b);
        return equal;
}

/* ---- tests -------------------------------------------------------------------------------------------------------------- */

static void sockets_bring_what_memory_brings(void **state) {
        assert_true(same(&(struct shape){"v3-f32", 1}, &(struct shape){"v3-f32", 2, .sockets_only = true}));
        assert_true(same(&(struct shape){"v3-w8a8", 1}, &(struct shape){"v3-w8a8", 3, .sockets_only = true}));
}

static void int8_for_experts_that_quantise_anyway_loses_nothing(void **state) {
        const struct shape one = {"v3-w8a8", 1};

        assert_true(same(&one, &(struct shape){"v3-w8a8", 3}));
        assert_true(same(&one, &(struct shape){"v3-w8a8", 2, .payload = GROUP_PAYLOAD_F32}));
        assert_true(same(&(struct shape){"v3-w8a8", 1, .activation = ACTIVATION_BF16},
            &(struct shape){"v3-w8a8", 2, .activation = ACTIVATION_BF16}));
}

static void bfloat16_for_bfloat16_activations_loses_nothing(void **state) {
        assert_true(same(&(struct shape){"v3-bf16", 1, .activation = ACTIVATION_BF16},
            &(struct shape){"v3-bf16", 2, .activation = ACTIVATION_BF16}));
        assert_true(same(&(struct shape){"v3-f32", 1, .activation = ACTIVATION_BF16},
            &(struct shape){"v3-f32", 3, .activation = ACTIVATION_BF16}));
}

static void what_is_rounded_on_the_way_does_not_depend_on_who_holds_it(void **state) {
        static const enum group_payload payloads[] = {GROUP_PAYLOAD_BF16, GROUP_PAYLOAD_INT8};

        for (size_t i = 0; i < 2; i++) {
                const struct shape two = {"v3-f32", 2, .payload = payloads[i]};

                assert_true(same(&two, &(struct shape){"v3-f32", 3, .payload = payloads[i]}));
                assert_false(same(&two, &(struct shape){"v3-f32", 1})); /* it is rounded indeed */
        }
}

/* TP 2 and TP 3, and DP 2 x TP 2. */
static void thread_groups_change_nothing(void **state) {
        static const char *const checkpoints[] = {"v3-f32", "v2-group", "v3-fp8", "v3-w8a8"};

        for (size_t i = 0; i < sizeof(checkpoints) / sizeof(*checkpoints); i++) {
                const struct shape plain = {checkpoints[i], 1};

                assert_true(same(&plain, &(struct shape){checkpoints[i], 1, .groups = 2}));
                assert_true(same(&plain, &(struct shape){checkpoints[i], 1, .groups = 3}));
                assert_true(same(&plain, &(struct shape){checkpoints[i], 2, .groups = 2}));
        }
}

int main(void) {
        const struct CMUnitTest tests[] = {
            cmocka_unit_test(sockets_bring_what_memory_brings),
            cmocka_unit_test(int8_for_experts_that_quantise_anyway_loses_nothing),
            cmocka_unit_test(bfloat16_for_bfloat16_activations_loses_nothing),
            cmocka_unit_test(what_is_rounded_on_the_way_does_not_depend_on_who_holds_it),
            cmocka_unit_test(thread_groups_change_nothing),
        };

        return cmocka_run_group_tests(tests, set_up, NULL);
}
