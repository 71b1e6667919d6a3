/* test_policy.c - laws that every policy keeps, and what each is for. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "gateway/policy.h"
#include <stdlib.h>

#define N 24

static void fill(struct policy_entry *e, size_t n, struct rng *rng) {
        for (size_t i = 0; i < n; i++)
                e[i] = (struct policy_entry){.tokens = rng_below(rng, 50),
                    .last_pick = rng_below(rng, 100),
                    .requests = (uint32_t)rng_below(rng, 4),
                    .cap = (uint32_t)rng_below(rng, 4),
                    .id = (uint32_t)i + 1};
}

/* Over random pools: what is picked may be picked, and nothing is picked only when nothing may. */
static void a_pick_is_allowed_and_there_whenever_one_is(void **state) {
        struct rng rng;

        rng_seed(&rng, 1);
        for (const struct policy *p = policy_table; p->name; p++)
                for (int round = 0; round < 5000; round++) {
                        struct policy_entry e[N];
                        size_t n = rng_below(&rng, N + 1), avoid_count = rng_below(&rng, 6), at;
                        uint32_t avoid[6];
                        struct policy_facts facts = {.avoid = avoid, .avoid_count = avoid_count};
                        struct policy_state s = {.turn = 100};
                        bool any = false;

                        rng_seed(&s.rng, (uint64_t)round);
                        fill(e, n, &rng);
                        for (size_t i = 0; i < avoid_count; i++)
                                avoid[i] = (uint32_t)rng_below(&rng, N) + 1;
                        for (size_t i = 0; i < n; i++)
                                any |= policy_may_take(&e[i], &facts);
                        at = policy_pick(p, e, n, &facts, &s);
                        assert_int_equal(at != POLICY_NONE, any);
                        if (!any)
                                continue;
                        assert_true(at < n);
                        assert_int_equal(e[at].last_pick, 101);
                }
}

static void the_least_loaded_is_chosen(void **state) {
        struct rng rng;

        rng_seed(&rng, 2);
        for (int round = 0; round < 2000; round++) {
                struct policy_entry e[N];
                struct policy_facts facts = {0};
                struct policy_state s = {0};
                size_t at;

                fill(e, N, &rng);
                at = policy_pick(policy_find("least_load"), e, N, &facts, &s);
                for (size_t i = 0; at != POLICY_NONE && i < N; i++)
                        if (policy_may_take(&e[i], &facts) && i != at)
                                assert_true(e[at].tokens <= e[i].tokens);
        }
}

/* Equal instances are taken in turn: none twice before each was taken once. */
static void ties_rotate(void **state) {
        static const char *const names[] = {"least_load", "round_robin"};

        for (size_t k = 0; k < 2; k++) {
                struct policy_entry e[N] = {0};
                struct policy_facts facts = {0};
                struct policy_state s = {0};
                int seen[N] = {0};

                for (size_t i = 0; i < N; i++)
                        e[i].id = (uint32_t)i + 1;
                for (int turn = 0; turn < 3 * N; turn++) {
                        size_t at = policy_pick(policy_find(names[k]), e, N, &facts, &s);

                        assert_int_equal(seen[at]++, turn / N);
                }
        }
}

/* Round robin stays fair when one cannot take its turn: it is the next once it can. */
static void a_missed_turn_is_made_up_for(void **state) {
        struct policy_entry e[3] = {{.id = 1}, {.id = 2}, {.id = 3}};
        uint32_t avoid[] = {1};
        struct policy_facts none = {0}, without = {.avoid = avoid, .avoid_count = 1};
        struct policy_state s = {0};
        const struct policy *p = policy_find("round-robin");

        for (int i = 0; i < 4; i++)
                assert_int_not_equal(policy_pick(p, e, 3, &without, &s), 0);
        assert_int_equal(policy_pick(p, e, 3, &none, &s), 0);
}

static void random_and_two_choices_reach_everybody_evenly(void **state) {
        static const char *const names[] = {"random", "power_of_two"};

        for (size_t k = 0; k < 2; k++) {
                struct policy_entry e[N] = {0};
                struct policy_facts facts = {0};
                struct policy_state s = {0};
                int seen[N] = {0};

                rng_seed(&s.rng, 3);
                for (size_t i = 0; i < N; i++)
                        e[i].id = (uint32_t)i + 1;
                for (int turn = 0; turn < 1000 * N; turn++) {
                        size_t at = policy_pick(policy_find(names[k]), e, N, &facts, &s);

                        seen[at]++;
                        e[at].tokens++;
                }
                for (size_t i = 0; i < N; i++)
                        assert_in_range(seen[i], 800, 1200);
        }
}

/* With work that stays, two choices keep the fullest near the mean; a single draw does not. */
static void two_choices_level_the_load(void **state) {
        uint64_t worst[2] = {0};

        for (int k = 0; k < 2; k++) {
                struct policy_entry e[N] = {0};
                struct policy_facts facts = {0};
                struct policy_state s = {0};

                rng_seed(&s.rng, 4);
                for (size_t i = 0; i < N; i++)
                        e[i].id = (uint32_t)i + 1;
                for (int turn = 0; turn < 100 * N; turn++)
                        e[policy_pick(policy_find(k ? "power_of_two" : "random"), e, N, &facts, &s)].tokens++;
                for (size_t i = 0; i < N; i++)
                        if (e[i].tokens > worst[k])
                                worst[k] = e[i].tokens;
        }
        assert_true(worst[1] <= 104);
        assert_true(worst[0] > worst[1]);
}

/* A small call goes to full ones too, and the legs behind it take their turns as if it had not been. */
static void a_call_that_is_no_leg_uses_up_nothing(void **state) {
        for (const struct policy *p = policy_table; p->name; p++) {
                struct policy_entry e[2] = {{.id = 1, .requests = 1, .cap = 1}, {.id = 2, .requests = 1, .cap = 1}};
                struct policy_facts leg = {0}, call = {.no_leg = true};
                struct policy_state s = {0};

                rng_seed(&s.rng, 5);
                assert_int_equal(policy_pick(p, e, 2, &leg, &s), POLICY_NONE);
                assert_int_not_equal(policy_pick(p, e, 2, &call, &s), POLICY_NONE);
                assert_int_equal(s.turn + e[0].last_pick + e[1].last_pick, 0);
        }
}

static void names_are_known_in_both_spellings(void **state) {
        assert_ptr_equal(policy_find("least-load"), policy_find("least_load"));
        assert_null(policy_find("least"));
        assert_null(policy_find("least_loads"));
        assert_null(policy_find(""));
}

int main(void) {
        const struct CMUnitTest tests[] = {
            cmocka_unit_test(a_pick_is_allowed_and_there_whenever_one_is),
            cmocka_unit_test(the_least_loaded_is_chosen),
            cmocka_unit_test(ties_rotate),
            cmocka_unit_test(a_missed_turn_is_made_up_for),
            cmocka_unit_test(random_and_two_choices_reach_everybody_evenly),
            cmocka_unit_test(two_choices_level_the_load),
            cmocka_unit_test(a_call_that_is_no_leg_uses_up_nothing),
            cmocka_unit_test(names_are_known_in_both_spellings),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
