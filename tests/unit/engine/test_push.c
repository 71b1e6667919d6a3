/* The decoder leases blocks out, the prefiller writes into them while it computes: the text of one engine, bit for bit, and
 * nothing is left behind, whoever fails or leaves. */
#include "pair_laws.h"

static void push_prepare(struct pair *t) {
        pair_prepare(t);
        t->p_transfer.pushes = t->d_transfer.pushes = true;
        t->p_transfer.host = NULL;
        t->d_transfer.host = "127.0.0.1";
}

/* ---- requests ---------------------------------------------------------------------------------------------------------- */

static engine_id submit_decode(
    struct pair *t, const uint32_t *prompt, uint32_t count, const struct sampling_params *p, struct answer *a) {
        struct engine_request q = request_for(prompt, count, p, a);

        q.expect = true;
        return submit_to(t->d, &q);
}

static struct engine_remote remote_of(const struct pair *t, const struct answer *waiting) {
        return (struct engine_remote){.source = {.host = SLICE_LIT("127.0.0.1"),
                                          .port = engine_transfer_port(t->d),
                                          .engine_id = SLICE_LIT("d"),
                                          .id = slice_str(waiting->expected.id)},
            .tokens = waiting->expected.tokens,
            .cached = waiting->expected.cached};
}

static engine_id submit_prefill(
    struct pair *t, const struct engine_remote *to, const uint32_t *prompt, uint32_t count, struct answer *a) {
        struct sampling_params once = plain_sampling();
        struct engine_request q;

        once.max_tokens = 1;
        q = request_for(prompt, count, &once, a);
        q.push = to;
        return submit_to(t->p, &q);
}

/* Steps until the prefill has been answered. */
static void run_pushing(struct engine *p, const struct answer *a) {
        for (;;) {
                run_to_end(p);
                if (a->finish != FINISH_NONE)
                        return;
                wait_moved(p);
        }
}

static void hand_over(struct pair *t, const uint32_t *prompt, uint32_t count, const struct sampling_params *p,
    struct answer *ret_answer) {
        struct engine_remote to;
        struct answer a;

        submit_decode(t, prompt, count, p, ret_answer);
        run_to_end(t->d);
        if (ret_answer->expected.id[0]) {
                assert_int_equal(ret_answer->expected.tokens, count);
                to = remote_of(t, ret_answer);
                submit_prefill(t, &to, prompt, count, &a);
                run_pushing(t->p, &a);
                if (a.finish != FINISH_LENGTH)
                        fail_msg("the prefill ended with %d: %s", a.finish, a.error);
        }
        run_fetching(t->d);
}

/* ---- equality ---------------------------------------------------------------------------------------------------------- */

static void a_pushed_text_is_one_engines(void **state) {
        struct pair t;

        push_prepare(&t);
        check_pair(&t, 30, "out of memory of the same process");
        push_prepare(&t);
        t.p_transfer.way = COMM_WAY_STREAM;
        t.d_transfer.checksum = true;
        check_pair(&t, 30, "over TCP");
        push_prepare(&t);
        t.p_options.prefix_caching = t.d_options.prefix_caching = true;
        check_pair(&t, 40, "with prefixes found on both sides");
        push_prepare(&t);
        t.p_options.prefix_caching = true;
        t.p_options.max_batched_tokens = 32;
        check_pair(&t, 30, "chunks and prefixes on the prefiller");
        push_prepare(&t);
        t.p_transfer.way = COMM_WAY_STREAM;
        t.p_options.max_batched_tokens = 17;
        check_pair(&t, 30, "chunks over TCP");
}

static bool busy(const struct engine *g) {
        return g->scheduler.running_count || g->scheduler.waiting_count;
}

/* More than there is room for, on both sides: decoders wait for blocks, and are preempted; prefills wait for theirs, and never
 * are. */
static void many_at_once_are_each_their_own(void **state) {
        enum { MANY = 30 };
        struct answer *got = calloc(MANY, sizeof(*got)), *expected = calloc(MANY, sizeof(*expected));
        struct answer *prefilled = calloc(MANY, sizeof(*prefilled));
        uint32_t(*prompts)[ANSWER_MAX] = calloc(MANY, sizeof(*prompts)), lengths[MANY];
        bool asked[MANY] = {false};
        struct timespec moment = {.tv_nsec = 1000000};
        unsigned ended = 0;
        struct pair t;
        struct rng r;

        push_prepare(&t);
        t.d_options.max_seqs = 5;
        t.d_options.kv_blocks = 40;
        t.p_options.kv_blocks = 20;
        t.p_options.max_batched_tokens = 48;
        pair_open(&t);
        rng_seed(&r, 11);
        for (unsigned i = 0; i < MANY; i++) {
                struct sampling_params p = sampling_of(i);

                p.max_tokens = 40;
                lengths[i] = 2 + (uint32_t)rng_below(&r, 150);
                make_prompt(&r, prompts[i], lengths[i], false);
                one_engine(&t.d_options, prompts[i], lengths[i], &p, &expected[i]);
                submit_decode(&t, prompts[i], lengths[i], &p, &got[i]);
        }
        for (unsigned rounds = 0; ended < MANY; rounds++) {
                bool any = engine_step(t.d);

                take_outputs(t.d);
                any |= engine_step(t.p);
                take_outputs(t.p);
                ended = 0;
                for (unsigned i = 0; i < MANY; i++) {
                        ended += got[i].finish != FINISH_NONE;
                        if (got[i].expected.id[0] && !asked[i]) {
                                struct engine_remote to = remote_of(&t, &got[i]);

                                asked[i] = true;
                                submit_prefill(&t, &to, prompts[i], lengths[i], &prefilled[i]);
                        }
                }
                assert_true(rounds < HANG_S * 1000);
                if (!any)
                        nanosleep(&moment, NULL); /* what moves is comm's */
        }
        for (unsigned i = 0; i < MANY; i++)
                assert_same_answer(&got[i], &expected[i], "many at once", i);
        assert_true(t.d->scheduler.preemptions > 0);
        assert_int_equal(t.p->scheduler.preemptions, 0);
        assert_false(busy(t.p));
        pair_close(&t);
        free(got);
        free(expected);
        free(prefilled);
        free(prompts);
}

/* Requests that are not pushed make room for those that are, not the other way round. */
static void what_is_pushed_is_not_preempted(void **state) {
        struct answer *plain = calloc(4, sizeof(*plain)), waiting, prefilled;
        struct sampling_params p = sampling_of(0);
        uint32_t prompt[ANSWER_MAX];
        struct engine_remote to;
        struct pair t;
        struct rng r;

        rng_seed(&r, 12);
        push_prepare(&t);
        t.p_options.kv_blocks = 16;
        t.p_options.max_batched_tokens = 16;
        pair_open(&t);
        p.max_tokens = 60;
        make_prompt(&r, prompt, 120, false);
        for (int i = 0; i < 3; i++)
                submit(t.p, prompt + i, 26, &p, &plain[i]);
        for (int i = 0; i < 6; i++) /* they have two blocks each, and want a third before the push is computed */
                engine_step(t.p);
        submit_decode(&t, prompt, 120, &p, &waiting);
        run_to_end(t.d);
        to = remote_of(&t, &waiting);
        submit_prefill(&t, &to, prompt, 120, &prefilled);
        run_pushing(t.p, &prefilled);
        run_to_end(t.p);
        run_fetching(t.d);
        assert_true(t.p->scheduler.preemptions > 0);
        assert_int_equal(prefilled.finish, FINISH_LENGTH);
        one_engine(&t.d_options, prompt, 120, &p, &plain[3]);
        assert_same_answer(&waiting, &plain[3], "pushed among others", 0);
        for (int i = 0; i < 3; i++) {
                one_engine(&t.p_options, prompt + i, 26, &p, &plain[3]);
                assert_same_answer(&plain[i], &plain[3], "preempted for it", (size_t)i);
        }
        pair_close(&t);
        free(plain);
}

/* ---- less than a whole push -------------------------------------------------------------------------------------------- */

static void what_is_known_already_is_not_pushed(void **state) {
        static const uint32_t lengths[] = {100, 100, 97, 1}, hits[] = {99, 99 + 3, 99 + 3, 99 + 3};
        uint32_t prompt[ANSWER_MAX];
        struct sampling_params p = sampling_of(0);
        struct answer a;
        struct pair t;
        struct rng r;

        rng_seed(&r, 2);
        make_prompt(&r, prompt, 100, false);
        push_prepare(&t);
        t.d_options.prefix_caching = true;
        pair_open(&t);
        for (int i = 0; i < 4; i++) {
                hand_over(&t, prompt, lengths[i], &p, &a);
                assert_int_equal(t.d->metrics.figures.external_hits, hits[i]);
                assert_int_equal(a.expected.id[0] != 0, i < 2); /* then nothing is left to be asked for */
                if (i == 1)
                        assert_int_equal(a.expected.cached, 96);
        }
        pair_close(&t);
}

static void log_probabilities_of_a_prompt_are_computed_where_they_are_told(void **state) {
        uint32_t prompt[ANSWER_MAX];
        struct sampling_params p = sampling_of(0);
        struct answer got, expected;
        struct pair t;
        struct rng r;

        rng_seed(&r, 2);
        make_prompt(&r, prompt, 60, false);
        p.prompt_logprobs = 1;
        push_prepare(&t);
        pair_open(&t);
        one_engine(&t.d_options, prompt, 60, &p, &expected);
        hand_over(&t, prompt, 60, &p, &got);
        assert_same_answer(&got, &expected, "prompt_logprobs", 0);
        assert_int_equal(got.expected.id[0], 0);
        pair_close(&t);
}

/* ---- who leaves, and when ---------------------------------------------------------------------------------------------- */

/* At every step of both, the decoder's client or the prefiller's; the other side ends by itself. */
static void a_client_that_leaves_at_any_moment_leaves_nothing(void **state) {
        uint32_t prompt[ANSWER_MAX];
        struct sampling_params p = sampling_of(0);
        struct pair t;
        struct rng r;

        rng_seed(&r, 2);
        make_prompt(&r, prompt, 100, false);
        push_prepare(&t);
        t.p_options.max_batched_tokens = 30; /* four chunks */
        t.d_transfer.lease_ms = 300;         /* where nobody comes any more */
        pair_open(&t);
        for (int who = 0; who < 2; who++)
                for (int moment = 0; moment < 9; moment++) {
                        struct answer a, prefilled = {0};
                        struct engine_remote to;
                        engine_id id, prefill = 0;
                        bool asked = moment >= 2;

                        id = submit_decode(&t, prompt, 100, &p, &a);
                        if (moment >= 1)
                                engine_step(t.d);
                        take_outputs(t.d);
                        if (asked) {
                                to = remote_of(&t, &a);
                                prefill = submit_prefill(&t, &to, prompt, 100, &prefilled);
                        }
                        for (int i = 2; i < moment; i++) {
                                engine_step(t.p);
                                take_outputs(t.p);
                                if (moment % 2)
                                        nanosleep(&(struct timespec){.tv_nsec = 500000}, NULL);
                        }
                        if (who == 0 || !asked)
                                engine_abort(t.d, id, FINISH_ABORT);
                        else
                                engine_abort(t.p, prefill, FINISH_ABORT);
                        if (asked)
                                run_pushing(t.p, &prefilled);
                        run_fetching(t.d);
                        if (who == 0 || !asked)
                                assert_int_equal(a.finish, FINISH_ABORT);
                        else if (prefilled.finish == FINISH_ABORT)
                                assert_true(a.finish == FINISH_ERROR || a.finish == FINISH_LENGTH);
                        settle(&t);
                        assert_at_rest(t.p);
                        assert_at_rest(t.d);
                }
        pair_close(&t);
}

/* It dies when nothing, some, or all of the prompt is computed. */
static void a_prefiller_that_is_gone_fails_the_request_or_not(void **state) {
        uint32_t prompt[ANSWER_MAX];
        struct sampling_params p = sampling_of(0);
        struct answer got, expected, prefilled;
        struct pair t;
        struct rng r;

        rng_seed(&r, 2);
        make_prompt(&r, prompt, 100, false);
        for (int way = 0; way < 10; way++) {
                struct engine_remote to;

                push_prepare(&t);
                t.d_transfer.recompute = way % 2;
                t.d_transfer.lease_ms = 200;
                t.p_options.max_batched_tokens = 30;
                t.d_options.prefix_caching = true;
                pair_open(&t);
                submit_decode(&t, prompt, 100, &p, &got);
                run_to_end(t.d);
                to = remote_of(&t, &got);
                submit_prefill(&t, &to, prompt, 100, &prefilled);
                for (int i = 0; i < way / 2 && i < 3; i++)
                        engine_step(t.p);
                engine_free(t.p);
                t.p = NULL;
                run_fetching(t.d);
                assert_int_equal(t.d->metrics.figures.fetches_failed, 1);
                one_engine(&t.d_options, prompt, 100, &p, &expected);
                if (way % 2) {
                        assert_same_answer(&got, &expected, "computed after all", 0);
                } else {
                        assert_int_equal(got.finish, FINISH_ERROR);
                        assert_non_null(strstr(got.error, "did not come"));
                        /* What has come is not taken for a prefix. */
                        submit(t.d, prompt, 100, &p, &got);
                        run_to_end(t.d);
                        assert_same_answer(&got, &expected, "afterwards", 0);
                }
                pair_close(&t);
        }
}

static void a_prefill_that_nobody_will_do_is_not_waited_for(void **state) {
        uint32_t prompt[ANSWER_MAX];
        struct sampling_params p = sampling_of(0);
        struct answer got, expected;
        struct pair t;
        struct rng r;

        rng_seed(&r, 2);
        make_prompt(&r, prompt, 100, false);
        for (int recompute = 0; recompute < 2; recompute++) {
                engine_id id;

                push_prepare(&t);
                t.d_transfer.recompute = recompute;
                pair_open(&t);
                id = submit_decode(&t, prompt, 100, &p, &got);
                run_to_end(t.d);
                engine_unexpect(t.d, id);
                engine_unexpect(t.d, id + 100); /* there is none */
                run_fetching(t.d);
                if (recompute) {
                        one_engine(&t.d_options, prompt, 100, &p, &expected);
                        assert_same_answer(&got, &expected, "computed after all", 0);
                } else
                        assert_int_equal(got.finish, FINISH_ERROR);
                engine_unexpect(t.d, id);
                pair_close(&t);
        }
}

static void a_decoder_that_does_not_wait_ends_the_prefill(void **state) {
        uint32_t prompt[ANSWER_MAX];
        struct sampling_params p = sampling_of(0);
        struct answer got, prefilled;
        struct engine_remote to;
        struct pair t;
        struct rng r;

        rng_seed(&r, 2);
        make_prompt(&r, prompt, 100, false);
        push_prepare(&t);
        pair_open(&t);
        hand_over(&t, prompt, 100, &p, &got);
        to = remote_of(&t, &got); /* used */
        submit_prefill(&t, &to, prompt, 100, &prefilled);
        run_pushing(t.p, &prefilled);
        assert_int_equal(prefilled.finish, FINISH_ERROR);
        assert_non_null(strstr(prefilled.error, "decoder"));
        settle(&t);
        to.source.port = 1; /* nobody is there */
        submit_prefill(&t, &to, prompt, 100, &prefilled);
        run_pushing(t.p, &prefilled);
        assert_int_equal(prefilled.finish, FINISH_ERROR);
        assert_int_equal(t.p->metrics.figures.fetches_failed, 2);
        pair_close(&t);
}

static void models_that_differ_do_not_share(void **state) {
        uint32_t prompt[ANSWER_MAX];
        struct sampling_params p = sampling_of(0);
        struct answer got, prefilled;
        struct engine_remote to;
        struct pair t;
        struct rng r;
        engine_id id;

        rng_seed(&r, 2);
        make_prompt(&r, prompt, 20, false);
        push_prepare(&t);
        t.p_options.kv_type = KV_BF16;
        pair_open(&t);
        id = submit_decode(&t, prompt, 20, &p, &got);
        run_to_end(t.d);
        to = remote_of(&t, &got);
        submit_prefill(&t, &to, prompt, 20, &prefilled);
        run_pushing(t.p, &prefilled);
        assert_int_equal(prefilled.finish, FINISH_ERROR);
        engine_unexpect(t.d, id); /* as the gateway, which sees the prefill fail, would cut it */
        run_fetching(t.d);
        assert_int_equal(got.finish, FINISH_ERROR);
        pair_close(&t);
}

static void a_push_that_cannot_be_is_refused(void **state) {
        const uint32_t prompt[] = {7, 8, 9};
        struct sampling_params p = plain_sampling();
        struct engine_remote to = {
            .source = {.host = SLICE_LIT("127.0.0.1"), .port = 9, .engine_id = SLICE_LIT("d"), .id = SLICE_LIT("a")}};
        struct engine_request q;
        struct answer a;
        engine_id id;
        struct pair t;

        push_prepare(&t);
        pair_open(&t);
        q = request_for(prompt, 3, &p, &a); /* 16 tokens: its blocks would not be enough */
        q.push = &to;
        assert_int_equal(engine_submit(t.p, &q, &id), -EINVAL);
        q.sampling.max_tokens = 1;
        to.cached = 2; /* nothing is left */
        assert_int_equal(engine_submit(t.p, &q, &id), -EINVAL);
        to.cached = 0;
        to.source.id = SLICE_NONE;
        assert_int_equal(engine_submit(t.p, &q, &id), -EINVAL);
        pair_close(&t);
}

/* ---- ends --------------------------------------------------------------------------------------------------------------- */

static void a_prefiller_that_is_to_end_pushes_to_the_end(void **state) {
        uint32_t prompt[ANSWER_MAX];
        struct sampling_params p = sampling_of(0);
        struct answer got, expected, prefilled;
        struct engine_remote to;
        struct pair t;
        struct rng r;

        rng_seed(&r, 2);
        make_prompt(&r, prompt, 100, false);
        for (int round = 0; round < 10; round++) {
                push_prepare(&t);
                pair_open(&t);
                assert_int_equal(engine_start(t.p), 0);
                submit_decode(&t, prompt, 100, &p, &got);
                run_to_end(t.d);
                to = remote_of(&t, &got);
                submit_prefill(&t, &to, prompt, 100, &prefilled);
                engine_stop(t.p, 1000 * HANG_S);
                take_outputs(t.p);
                assert_int_equal(prefilled.finish, FINISH_LENGTH);
                run_fetching(t.d);
                one_engine(&t.d_options, prompt, 100, &p, &expected);
                assert_same_answer(&got, &expected, "with threads", (size_t)round);
                pair_close(&t);
        }
}

static int set_up(void **state) {
        rig = rig_new("v3-f32", 1, true);
        order = (struct order){.prepare = push_prepare, .hand_over = hand_over, .prompts = 17, .chunk = 50};
        return 0;
}

static int tear_down(void **state) {
        rig_free(&rig);
        return 0;
}

int main(void) {
        const struct CMUnitTest tests[] = {
            cmocka_unit_test(a_pushed_text_is_one_engines),
            cmocka_unit_test(block_sizes_may_differ),
            cmocka_unit_test(a_cache_of_bfloat16_comes_over),
            cmocka_unit_test(every_checkpoint_comes_over),
            cmocka_unit_test(drafts_are_as_good_as_in_one_engine),
            cmocka_unit_test(many_at_once_are_each_their_own),
            cmocka_unit_test(what_is_pushed_is_not_preempted),
            cmocka_unit_test(what_is_known_already_is_not_pushed),
            cmocka_unit_test(log_probabilities_of_a_prompt_are_computed_where_they_are_told),
            cmocka_unit_test(a_client_that_leaves_at_any_moment_leaves_nothing),
            cmocka_unit_test(a_prefiller_that_is_gone_fails_the_request_or_not),
            cmocka_unit_test(a_prefill_that_nobody_will_do_is_not_waited_for),
            cmocka_unit_test(a_decoder_that_does_not_wait_ends_the_prefill),
            cmocka_unit_test(models_that_differ_do_not_share),
            cmocka_unit_test(a_push_that_cannot_be_is_refused),
            cmocka_unit_test(a_prefiller_that_is_to_end_pushes_to_the_end),
        };

        return cmocka_run_group_tests(tests, set_up, tear_down);
}
