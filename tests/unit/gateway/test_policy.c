/* test_policy.c - laws that every policy keeps, and what each is for. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "gateway/policy.h"
#include <stdlib.h>
#include <string.h>

#define N 24

static void fill(struct policy_entry *e, size_t n, struct rng *rng) {
        for (size_t i = 0; i < n; i++)
                e[i] = (struct policy_entry){.tokens = rng_below(rng, 50),
                    .last_pick = rng_below(rng, 100),
                    .requests = (uint32_t)rng_below(rng, 4),
                    .cap = (uint32_t)rng_below(rng, 4),
                    .id = (uint32_t)i + 1,
                    .place = (uint32_t)rng_u64(rng)};
}

/* Some of the entries have some of a prompt of 100 tokens; sometimes there is a session. */
#define WARM_MAX 4
static void fill_facts(struct policy_facts *f, struct policy_warm warm[WARM_MAX], size_t n, struct rng *rng) {
        f->tokens = 100;
        f->session = rng_below(rng, 2) ? rng_u64(rng) | 1 : 0;
        f->warm = warm;
        f->warm_count = n == 0 ? 0 : rng_below(rng, WARM_MAX + 1);
        for (size_t i = 0; i < f->warm_count; i++)
                warm[i] = (struct policy_warm){rng_below(rng, n), rng_below(rng, 101)};
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
                        struct policy_warm warm[WARM_MAX];
                        struct policy_state s = {.turn = 100};
                        bool any = false;

                        rng_seed(&s.rng, (uint64_t)round);
                        fill(e, n, &rng);
                        fill_facts(&facts, warm, n, &rng);
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

/* What is known is all that decides: the same again gives the same. */
static void the_same_facts_give_the_same_pick(void **state) {
        struct rng rng;

        rng_seed(&rng, 6);
        for (const struct policy *p = policy_table; p->name; p++)
                for (int round = 0; round < 1000; round++) {
                        struct policy_entry e[N], again[N];
                        struct policy_warm warm[WARM_MAX];
                        struct policy_facts facts = {0};
                        struct policy_state s = {.turn = 100}, s_again;

                        rng_seed(&s.rng, (uint64_t)round);
                        s_again = s;
                        fill(e, N, &rng);
                        fill_facts(&facts, warm, N, &rng);
                        memcpy(again, e, sizeof(e));
                        assert_int_equal(policy_pick(p, e, N, &facts, &s), policy_pick(p, again, N, &facts, &s_again));
                }
}

/* No instance that might have been chosen would have computed the prompt sooner, and a warm one is never busier than
 * another by more than the tokens that it saves. */
static void a_warm_one_is_chosen_while_it_is_the_soonest(void **state) {
        struct rng rng;

        rng_seed(&rng, 7);
        for (int round = 0; round < 5000; round++) {
                struct policy_entry e[N];
                struct policy_warm warm[WARM_MAX];
                struct policy_facts facts = {0};
                struct policy_state s = {0};
                uint64_t saves[N] = {0};
                size_t at;

                fill(e, N, &rng);
                fill_facts(&facts, warm, N, &rng);
                for (size_t i = 0; i < facts.warm_count; i++) /* each once, as the pool has it */
                        for (size_t k = 0; k < i; k++)
                                if (warm[k].at == warm[i].at)
                                        warm[i].tokens = warm[k].tokens;
                for (size_t i = 0; i < facts.warm_count; i++)
                        saves[warm[i].at] = warm[i].tokens;
                at = policy_pick(policy_find("prefix_aware"), e, N, &facts, &s);
                for (size_t i = 0; at != POLICY_NONE && i < N; i++) {
                        if (!policy_may_take(&e[i], &facts))
                                continue;
                        assert_true(e[at].tokens + saves[i] <= e[i].tokens + saves[at]);
                        assert_true(e[at].tokens <= e[i].tokens + saves[at]);
                }
        }
}

/* A prompt that everybody sends makes no hot spot: whoever takes over for a busy one is warm from then on, and the load
 * comes out even to within one prompt. */
static void a_shared_beginning_spreads_over_all(void **state) {
        struct policy_entry e[N] = {0};
        struct policy_warm warm[N];
        struct policy_facts facts = {.warm = warm, .tokens = 100};
        struct policy_state s = {0};
        uint64_t least = UINT64_MAX, most = 0;

        for (size_t i = 0; i < N; i++)
                e[i].id = (uint32_t)i + 1;
        for (int turn = 0; turn < 100 * N; turn++) {
                size_t at = policy_pick(policy_find("prefix_aware"), e, N, &facts, &s);
                bool is_warm = false;

                for (size_t i = 0; i < facts.warm_count; i++)
                        is_warm |= warm[i].at == at;
                if (!is_warm)
                        warm[facts.warm_count++] = (struct policy_warm){at, 90};
                e[at].tokens += is_warm ? 10 : 100;
        }
        for (size_t i = 0; i < N; i++) {
                least = e[i].tokens < least ? e[i].tokens : least;
                most = e[i].tokens > most ? e[i].tokens : most;
        }
        assert_true(least > 0 && most - least <= 100);
}

static size_t of_session(struct policy_entry *e, size_t n, uint64_t session) {
        const struct policy_facts facts = {.session = session, .tokens = 10};
        struct policy_state s = {0};

        return policy_pick(policy_find("consistent_hash"), e, n, &facts, &s);
}

/* A session stays where it is when another instance goes, and sessions are spread over all. */
static void only_the_sessions_of_one_that_goes_move(void **state) {
        struct policy_entry e[N] = {0};
        size_t before[1000];
        int seen[N] = {0};

        for (size_t i = 0; i < N; i++)
                e[i] = (struct policy_entry){.id = (uint32_t)i + 1, .place = (uint32_t)i * 2654435761u};
        for (uint64_t k = 0; k < 1000; k++) {
                before[k] = of_session(e, N, k + 1);
                assert_int_equal(of_session(e, N, k + 1), before[k]);
                seen[before[k]]++;
        }
        for (size_t i = 0; i < N; i++)
                assert_in_range(seen[i], 15, 80); /* about 42 each */
        for (uint64_t k = 0; k < 1000; k++)
                if (before[k] != N - 1)
                        assert_int_equal(of_session(e, N - 1, k + 1), before[k]);
}

/* However many requests a session has at once, its instance is left when it is busier than 5/4 of the mean. */
static void a_busy_session_is_no_hot_spot(void **state) {
        struct policy_entry e[N] = {0};
        uint64_t sum = 0;

        for (size_t i = 0; i < N; i++)
                e[i] = (struct policy_entry){.id = (uint32_t)i + 1, .place = (uint32_t)i * 2654435761u};
        for (int turn = 0; turn < 100 * N; turn++, sum += 10) {
                size_t at = of_session(e, N, 7);

                assert_true(e[at].tokens <= (sum + 10) / N * 5 / 4 + 10);
                e[at].tokens += 10;
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
        assert_ptr_equal(policy_find("cache-aware"), policy_find("prefix_aware"));
        assert_null(policy_find("least"));
        assert_null(policy_find("least_loads"));
        assert_null(policy_find(""));
}

int main(void) {
        const struct CMUnitTest tests[] = {
            cmocka_unit_test(a_pick_is_allowed_and_there_whenever_one_is),
            cmocka_unit_test(the_same_facts_give_the_same_pick),
            cmocka_unit_test(a_warm_one_is_chosen_while_it_is_the_soonest),
            cmocka_unit_test(a_shared_beginning_spreads_over_all),
            cmocka_unit_test(only_the_sessions_of_one_that_goes_move),
            cmocka_unit_test(a_busy_session_is_no_hot_spot),
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
