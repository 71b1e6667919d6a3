/* Experts with replicas that move after the load, and groups that go on without a rank: the text of one process, bit for bit, before,
 * while and after. */
#include "group_rig.h"

enum { ASKED = 6 }; /* of the load's requests */

static struct group_figures figures(const struct rank *r) {
        struct group_figures f;

        group_tell(r->engine->group, &f);
        return f;
}

static uint64_t ends_at(void) {
        return clock_mono_ns() + HANG_S * NS_PER_S;
}

static void nap(void) {
        struct timespec moment = deadline(5);

        pthread_mutex_lock(&lock);
        pthread_cond_timedwait(&woken, &lock, &moment);
        pthread_mutex_unlock(&lock);
}

static void wait_ranks(const struct rank *r, uint32_t ranks, uint64_t after_epoch) {
        uint64_t until = ends_at();

        while (figures(r).present != ranks || figures(r).epoch <= after_epoch || !healthy(r)) {
                if (clock_mono_ns() > until)
                        fail_msg("rank %u does not see %u ranks", r->group.rank, ranks);
                nap();
        }
}

struct scene {
        struct load load;
        struct rank ranks[RANKS_MAX];
        struct answer answers[REQUESTS];
        uint32_t at[REQUESTS];
        struct shape shape;
        uint16_t port;
};

/* What one process says, and a group. */
static struct scene *scene_open(const struct shape *shape) {
        struct scene *s = calloc(1, sizeof(*s));
        struct rank alone = {0};

        assert_non_null(s);
        s->shape = *shape;
        s->port = free_port();
        rank_open(&alone, shape->checkpoint, 0, 1, 0, shape->drafts);
        make_load(&s->load, model_config(alone.model)->vocab);
        for (size_t i = 0; i < ASKED; i++) {
                s->load.lengths[i] = 1 + s->load.lengths[i] / 3;
                if (i % 3 == 0) /* all tokens to the same few experts */
                        for (uint32_t k = 0; k < s->load.lengths[i]; k++)
                                s->load.prompts[i][k] = 7;
                s->load.sampling[i].max_tokens = 8 + 2 * (int64_t)i;
                submit(
                    alone.engine, s->load.prompts[i], s->load.lengths[i], &s->load.sampling[i], &s->load.expected[i]);
        }
        wait_ends(&alone, s->at, s->load.expected, ASKED);
        rank_close(&alone);
        for (uint32_t i = 0; i < shape->size; i++)
                rank_open_as(&s->ranks[i], shape, i, s->port);
        for (uint32_t i = 0; i < shape->size; i++)
                wait_health(&s->ranks[i], true);
        return s;
}

static void scene_close(struct scene *s) {
        for (uint32_t i = 0; i < s->shape.size; i++)
                rank_close(&s->ranks[i]);
        free(s);
}

/* All requests, one rank after the other; or those of `only`. */
static void ask_all(struct scene *s, uint32_t but) {
        uint32_t rank = 0;

        for (size_t i = 0; i < ASKED; i++, rank++) {
                rank %= s->shape.size;
                if (rank == but)
                        rank = (rank + 1) % s->shape.size;
                s->at[i] = rank;
                submit(s->ranks[rank].engine, s->load.prompts[i], s->load.lengths[i], &s->load.sampling[i],
                    &s->answers[i]);
        }
}

static void expect_all(struct scene *s, const char *when) {
        wait_ends(s->ranks, s->at, s->answers, ASKED);
        for (size_t i = 0; i < ASKED; i++)
                assert_same_answer(&s->answers[i], &s->load.expected[i], when, i);
}

enum { NOBODY = UINT32_MAX };

/* ---- tests -------------------------------------------------------------------------------------------------------------- */

static void any_placement_says_what_one_process_says(void **state) {
        static const struct shape shapes[] = {
            {"v3-f32", 2, 0, 4, PLACEMENT_LINEAR, true},
            {"v3-bf16", 3, 0, 3, PLACEMENT_ROUND_ROBIN, true},
            {"v2-group", 3, 0, 0, PLACEMENT_ROUND_ROBIN, false},
            {"v3-w8a8", 4, 0, 4, PLACEMENT_LINEAR, true},
            {"v3-fp8", 4, 2, 2, PLACEMENT_ROUND_ROBIN, true},
        };

        for (size_t i = 0; i < sizeof(shapes) / sizeof(*shapes); i++) {
                struct scene *s = scene_open(&shapes[i]);

                ask_all(s, NOBODY);
                expect_all(s, shapes[i].checkpoint);
                ask_all(s, (uint32_t)i % shapes[i].size); /* one without work */
                expect_all(s, shapes[i].checkpoint);
                scene_close(s);
        }
}

/* Rebalances one after the other while requests come and go on all ranks but the last, asked for at any rank. */
static void experts_move_while_text_stays(void **state) {
        static const struct shape shapes[] = {
            {"v3-f32", 2, 2, 2, PLACEMENT_LINEAR, true}, {"v3-fp8", 3, 0, 3, PLACEMENT_ROUND_ROBIN, true}};

        for (size_t i = 0; i < sizeof(shapes) / sizeof(*shapes); i++) {
                struct scene *s = scene_open(&shapes[i]);
                uint32_t size = shapes[i].size;
                size_t bytes[RANKS_MAX];
                uint64_t moved = 0, until = ends_at();

                for (uint32_t k = 0; k < size; k++)
                        bytes[k] = model_bytes(s->ranks[k].model);
                for (uint32_t round = 0; round < 3; round++) {
                        ask_all(s, round == 1 ? size - 1 : NOBODY);
                        while (figures(&s->ranks[0]).rebalances <= round) {
                                int r = engine_rebalance_experts(s->ranks[round % size].engine);

                                assert_true(r == 0 || r == -EALREADY);
                                for (uint32_t k = 0; k < size; k++)
                                        take_outputs(s->ranks[k].engine);
                                if (clock_mono_ns() > until)
                                        fail_msg("a rebalance does not end");
                                nap();
                        }
                        expect_all(s, "while experts move");
                }
                for (uint32_t k = 0; k < size; k++) {
                        struct group_figures f = figures(&s->ranks[k]);

                        moved += f.experts_moved;
                        assert_true(f.pairs > 0);
                        assert_true(f.balancedness > 0 && f.balancedness <= 1);
                        assert_true(model_bytes(s->ranks[k].model) <= bytes[k]);
                }
                assert_true(moved > 0);
                scene_close(s);
        }
}

/* Nobody has work: the layers switch all the same, and then all sleep. */
static void idle_ranks_rebalance_too(void **state) {
        struct scene *s = scene_open(&(struct shape){"v3-f32", 2, 0, 2, PLACEMENT_LINEAR, true});
        uint64_t until = ends_at(), before;

        ask_all(s, 1);
        expect_all(s, "before");
        before = figures(&s->ranks[1]).rebalances;
        assert_int_equal(engine_rebalance_experts(s->ranks[1].engine), 0);
        for (uint32_t k = 0; k < 2; k++)
                while (figures(&s->ranks[k]).rebalances == before)
                        if (clock_mono_ns() > until)
                                fail_msg("rank %u does not end its rebalance", k);
                        else
                                nap();
        assert_true(figures(&s->ranks[0]).experts_moved + figures(&s->ranks[1]).experts_moved > 0);
        ask_all(s, NOBODY);
        expect_all(s, "after");
        scene_close(s);
}

static void the_interval_rebalances_by_itself(void **state) {
        struct scene *s = scene_open(&(struct shape){"v3-f32", 2, 0, 2, PLACEMENT_LINEAR, true, 10});
        uint64_t until = ends_at();

        ask_all(s, NOBODY);
        expect_all(s, "with an interval");
        ask_all(s, NOBODY);
        expect_all(s, "with an interval");
        while (figures(&s->ranks[0]).rebalances == 0) /* it may outlast the requests that it began with */
                if (clock_mono_ns() > until)
                        fail_msg("no rebalance comes by itself");
                else
                        nap();
        scene_close(s);
}

/* The spread must be worth it: a balanced group says so and stays as it is. */
static void a_rank_that_does_not_balance_refuses(void **state) {
        struct scene *s = scene_open(&(struct shape){"v3-f32", 2, 0, 0, PLACEMENT_LINEAR, false});

        assert_int_equal(engine_rebalance_experts(s->ranks[0].engine), -ENOTSUP);
        scene_close(s);
}

/* Ranks go in turn while all others have requests: these end as if nothing had been, the group is there without it,
 * and with it again when it comes back, again without losing a request. */
static void the_others_go_on_without_a_rank(void **state) {
        static const struct shape shapes[] = {{"v3-f32", 2, 0, 12, PLACEMENT_LINEAR, true}, /* a group of one remains */
            {"v3-f32", 4, 2, 4, PLACEMENT_ROUND_ROBIN, true}};

        for (size_t i = 0; i < sizeof(shapes) / sizeof(*shapes); i++) {
                struct scene *s = scene_open(&shapes[i]);
                uint32_t size = shapes[i].size;

                for (uint32_t gone = 1; gone < size; gone += 2) {
                        uint64_t epoch = figures(&s->ranks[0]).epoch;

                        ask_all(s, gone);
                        if (gone == 1) /* with experts on their way */
                                engine_rebalance_experts(s->ranks[0].engine);
                        rank_close(&s->ranks[gone]);
                        for (uint32_t k = 0; k < size; k++)
                                if (k != gone)
                                        wait_ranks(&s->ranks[k], size - 1, epoch);
                        expect_all(s, "without a rank");
                        ask_all(s, gone);
                        epoch = figures(&s->ranks[0]).epoch;
                        rank_open_as(&s->ranks[gone], &s->shape, gone, s->port);
                        for (uint32_t k = 0; k < size; k++)
                                wait_ranks(&s->ranks[k], size, epoch);
                        expect_all(s, "while it comes back");
                        ask_all(s, NOBODY);
                        expect_all(s, "with it again");
                }
                scene_close(s);
        }
}

static void too_few_slots_end_what_was_under_way(void **state) {
        struct scene *s = scene_open(&(struct shape){"v3-f32", 2, 0, 4, PLACEMENT_LINEAR, true});
        struct sampling_params p = plain_sampling();
        uint32_t prompt[2] = {5, 6};

        p.max_tokens = 240;
        submit(s->ranks[0].engine, prompt, 2, &p, &s->answers[0]);
        rank_close(&s->ranks[1]);
        wait_health(&s->ranks[0], false);
        s->at[0] = 0;
        wait_ends(s->ranks, s->at, s->answers, 1);
        rank_open_as(&s->ranks[1], &s->shape, 1, s->port);
        wait_health(&s->ranks[0], true);
        ask_all(s, NOBODY);
        expect_all(s, "when it is back");
        scene_close(s);
}

int main(void) {
        const struct CMUnitTest tests[] = {
            cmocka_unit_test(any_placement_says_what_one_process_says),
            cmocka_unit_test(experts_move_while_text_stays),
            cmocka_unit_test(idle_ranks_rebalance_too),
            cmocka_unit_test(the_interval_rebalances_by_itself),
            cmocka_unit_test(a_rank_that_does_not_balance_refuses),
            cmocka_unit_test(the_others_go_on_without_a_rank),
            cmocka_unit_test(too_few_slots_end_what_was_under_way),
        };

        return cmocka_run_group_tests(tests, set_up, NULL);
}
