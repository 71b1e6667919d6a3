/* test_placement.c - who holds which experts: at the start, by load, and when ranks are missing. */
#include "base/json.h"
#include "base/rng.h"
#include "model/placement.h"
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum { MANY = 1024 };

static void read_numbers(yyjson_val *list, uint32_t *to, uint32_t n) {
        assert_int_equal(yyjson_arr_size(list), n);
        for (uint32_t i = 0; i < n; i++)
                to[i] = (uint32_t)yyjson_get_uint(yyjson_arr_get(list, i));
}

static void check_case(yyjson_val *c) {
        yyjson_val *weights = json_get(c, "weight");
        struct balance_shape shape = {.replicas = (uint32_t)json_get_i64(c, "num_replicas", 0),
            .groups = (uint32_t)json_get_i64(c, "num_groups", 0),
            .nodes = (uint32_t)json_get_i64(c, "num_nodes", 0),
            .gpus = (uint32_t)json_get_i64(c, "num_gpus", 0)};
        uint32_t want[MANY], got[MANY], want_count[MANY], count[MANY];
        float load[MANY];

        for (size_t layer = 0; layer < yyjson_arr_size(weights); layer++) {
                yyjson_val *row = yyjson_arr_get(weights, layer);

                shape.experts = (uint32_t)yyjson_arr_size(row);
                assert_true(shape.replicas <= MANY && shape.experts <= MANY);
                for (uint32_t e = 0; e < shape.experts; e++)
                        load[e] = (float)yyjson_get_num(yyjson_arr_get(row, e));
                assert_int_equal(balance_experts(&shape, load, got, count), 0);
                read_numbers(yyjson_arr_get(json_get(c, "phy2log"), layer), want, shape.replicas);
                read_numbers(yyjson_arr_get(json_get(c, "logcnt"), layer), want_count, shape.experts);
                assert_memory_equal(got, want, shape.replicas * sizeof(*got));
                assert_memory_equal(count, want_count, shape.experts * sizeof(*count));
        }
}

static void balance_gives_the_published_tables(void **state) {
        char path[4096];
        yyjson_doc *doc;
        struct error e = {{0}};
        yyjson_val *cases;

        snprintf(path, sizeof(path), "%s/tests/data/model/eplb.json", getenv("BATON_SOURCE"));
        if (json_parse_file(path, 1 << 20, &doc, &e) < 0)
                fail_msg("%s", e.text);
        cases = json_get(yyjson_doc_get_root(doc), "cases");
        assert_true(yyjson_arr_size(cases) >= 8);
        for (size_t i = 0; i < yyjson_arr_size(cases); i++)
                check_case(yyjson_arr_get(cases, i));
        yyjson_doc_free(doc);
}

static void shapes_that_do_not_divide_are_refused(void **state) {
        static const struct balance_shape bad[] = {
            {16, 18, 4, 2, 4}, {16, 12, 1, 1, 4}, {16, 16, 4, 2, 0}, {18, 18, 4, 2, 2}, {16, 18, 4, 2, 3}};
        float load[18] = {0};
        uint32_t row[18];

        for (size_t i = 0; i < sizeof(bad) / sizeof(*bad); i++)
                assert_int_equal(balance_experts(&bad[i], load, row, NULL), -EINVAL);
}

/* Bins of the same sizes, every expert there, the counts true. */
static void any_load_leaves_every_expert_a_replica(void **state) {
        static const struct balance_shape shapes[] = {
            {16, 16, 4, 2, 4}, {16, 24, 4, 2, 8}, {16, 18, 1, 1, 3}, {64, 72, 8, 1, 8}, {12, 14, 4, 3, 7}};
        struct rng r;

        rng_seed(&r, 3);
        for (size_t round = 0; round < 200; round++) {
                struct balance_shape s = shapes[round % (sizeof(shapes) / sizeof(*shapes))];
                uint32_t row[MANY], kept[MANY], count[MANY], seen[MANY] = {0};
                float load[MANY];

                for (uint32_t e = 0; e < s.experts; e++)
                        load[e] = round % 3 ? (float)rng_below(&r, 1000) : 0;
                if (round % 3 == 1)
                        load[rng_below(&r, s.experts)] = 1e6f;
                assert_int_equal(balance_experts(&s, load, row, count), 0);
                memcpy(kept, row, sizeof(kept));
                assert_int_equal(balance_keep(&s, row, kept), 0);
                assert_memory_equal(kept, row, s.replicas * sizeof(*row)); /* it is where it was already */
                for (uint32_t i = 0; i < s.replicas; i++)
                        seen[row[i]]++;
                assert_memory_equal(seen, count, s.experts * sizeof(*seen));
                for (uint32_t e = 0; e < s.experts; e++)
                        assert_true(seen[e] > 0);
        }
}

static void what_is_there_stays_there(void **state) {
        const struct balance_shape s = {8, 8, 1, 1, 4};
        const uint32_t now[8] = {6, 7, 4, 5, 2, 3, 0, 1}, want[8] = {7, 6, 2, 5, 4, 3, 0, 1};
        uint32_t row[8] = {0, 1, 2, 5, 4, 3, 7, 6};

        assert_int_equal(balance_keep(&s, now, row), 0);
        assert_memory_equal(row, want, sizeof(want));
}

/* ---- placement ---------------------------------------------------------------------------------------------------------- */

static void the_start_is_as_the_strategy_says(void **state) {
        static const uint32_t linear[] = {0, 1, 2, 3, 4, 5, 6, 7, 0, 1, 2, 3},
                              cards[] = {0, 4, 3, 1, 5, 0, 2, 6, 1, 3, 7, 2};
        struct placement p;

        assert_int_equal(placement_new(2, 8, 4, 4, PLACEMENT_LINEAR, &p), 0);
        assert_memory_equal(placement_row(&p, 1), linear, sizeof(linear));
        assert_int_equal(placement_first(&p, 2), 6);
        placement_free(&p);
        assert_int_equal(placement_new(1, 8, 4, 4, PLACEMENT_ROUND_ROBIN, &p), 0);
        assert_memory_equal(placement_row(&p, 0), cards, sizeof(cards));
        placement_free(&p);
        assert_int_equal(placement_new(1, 8, 0, 3, PLACEMENT_ROUND_ROBIN, &p), 0);
        assert_int_equal(placement_first(&p, 1), 3);
        assert_int_equal(placement_first(&p, 2), 6);
        assert_int_equal(placement_row(&p, 0)[3], 1);
        placement_free(&p);
        assert_int_equal(placement_new(1, 8, 0, 9, PLACEMENT_LINEAR, &p), -EINVAL);
        assert_int_equal(placement_new(1, 8, 9, 2, PLACEMENT_LINEAR, &p), -EINVAL);
}

static void replicas_lie_on_other_ranks(void **state) {
        for (int strategy = 0; strategy < 2; strategy++)
                for (uint32_t ranks = 2; ranks <= 4; ranks++)
                        for (uint32_t redundant = 1; redundant <= 16; redundant++) {
                                struct placement p;
                                const uint32_t *holders;

                                if ((16 + redundant) % ranks) {
                                        assert_int_equal(placement_new(1, 16, redundant, ranks, strategy, &p), -EINVAL);
                                        continue;
                                }
                                assert_int_equal(placement_new(1, 16, redundant, ranks, strategy, &p), 0);
                                for (uint32_t e = 0; e < 16; e++)
                                        assert_int_equal(placement_holders(&p, 0, e, &holders), e < redundant ? 2 : 1);
                                placement_free(&p);
                        }
}

static void tokens_go_to_a_holder_and_home_first(void **state) {
        struct placement p;

        assert_int_equal(placement_new(1, 8, 8, 4, PLACEMENT_LINEAR, &p), 0); /* 0-3 on ranks 0 and 2, 4-7 on 1 and 3 */
        for (uint32_t token = 0; token < 4; token++) {
                assert_int_equal(placement_choose(&p, 0, 1, 0, token), 0);
                assert_int_equal(placement_choose(&p, 0, 1, 2, token), 2);
                assert_int_equal(placement_choose(&p, 0, 1, 1, token), token % 2 ? 0 : 2);
        }
        placement_free(&p);
}

static void the_others_take_over_as_long_as_there_is_room(void **state) {
        bool present[4] = {true, false, true, true}, two[4] = {true, false, true, false};
        const uint32_t *holders;
        struct placement p;

        assert_int_equal(placement_new(2, 12, 4, 4, PLACEMENT_LINEAR, &p), 0); /* 4 slots a rank: 3 ranks do */
        assert_true(placement_suffices(&p, 3));
        assert_false(placement_suffices(&p, 2));
        assert_int_equal(placement_complete(&p, present), 0);
        for (uint32_t layer = 0; layer < 2; layer++) {
                for (uint32_t e = 0; e < 12; e++) {
                        uint32_t n = placement_holders(&p, layer, e, &holders);

                        assert_true(n > 0);
                        for (uint32_t i = 0; i < n; i++)
                                assert_true(present[holders[i]]);
                }
                for (uint32_t i = 4; i < 8; i++)
                        assert_int_equal(placement_row(&p, layer)[i], SLOT_EMPTY);
                assert_int_equal(placement_row(&p, layer)[8], 8); /* which nobody else has */
        }
        assert_int_equal(placement_complete(&p, two), -ENOSPC);
        placement_free(&p);
}

static void nothing_moves_where_nothing_is_missing(void **state) {
        bool present[4] = {true, true, false, true};
        struct placement p;
        uint32_t before[16];

        assert_int_equal(placement_new(1, 8, 8, 4, PLACEMENT_LINEAR, &p), 0);
        memcpy(before, placement_row(&p, 0), sizeof(before));
        assert_int_equal(placement_complete(&p, present), 0);
        for (uint32_t i = 0; i < 16; i++)
                assert_int_equal(placement_row(&p, 0)[i], i / 4 == 2 ? SLOT_EMPTY : before[i]);
        placement_free(&p);
}

int main(void) {
        const struct CMUnitTest tests[] = {
            cmocka_unit_test(balance_gives_the_published_tables),
            cmocka_unit_test(shapes_that_do_not_divide_are_refused),
            cmocka_unit_test(any_load_leaves_every_expert_a_replica),
            cmocka_unit_test(what_is_there_stays_there),
            cmocka_unit_test(the_start_is_as_the_strategy_says),
            cmocka_unit_test(replicas_lie_on_other_ranks),
            cmocka_unit_test(tokens_go_to_a_holder_and_home_first),
            cmocka_unit_test(the_others_take_over_as_long_as_there_is_room),
            cmocka_unit_test(nothing_moves_where_nothing_is_missing),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
