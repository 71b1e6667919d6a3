/* Prefill on one engine, decode on another: the text of one engine, bit for bit, and nothing is left behind, whoever fails or
 * leaves. Two engines of this process, stepped by the test; between them real sockets. */
#include "pair_laws.h"

/* ---- requests ---------------------------------------------------------------------------------------------------------- */

struct handed {
        struct answer answer;
        char id[33];
        uint32_t tokens;
};

static void prefill(struct pair *t, const uint32_t *prompt, uint32_t count, const struct sampling_params *p,
    struct handed *ret_handed) {
        struct sampling_params once = *p;
        struct engine_request q;

        once.max_tokens = 1;
        once.logprobs = once.prompt_logprobs = -1;
        q = request_for(prompt, count, &once, &ret_handed->answer);
        q.keep = true;
        submit_to(t->p, &q);
        ret_handed->id[0] = '\0';
        while (engine_step(t->p)) {
                struct engine_output *list = engine_take(t->p);

                for (struct engine_output *o = list; o; o = o->next)
                        if (o->kept) {
                                memcpy(ret_handed->id, o->kept->id, sizeof(ret_handed->id));
                                ret_handed->tokens = o->kept->tokens;
                                assert_int_equal(o->kept->block_count,
                                    (count + t->p_options.block_tokens - 1) / t->p_options.block_tokens);
                        }
                engine_outputs_free(t->p, list);
        }
        assert_int_equal(strlen(ret_handed->id), 32);
        assert_int_equal(ret_handed->tokens, count);
}

static struct engine_remote remote_of(const struct pair *t, const struct handed *h) {
        return (struct engine_remote){.source = {.host = SLICE_LIT("127.0.0.1"),
                                          .port = engine_transfer_port(t->p),
                                          .engine_id = SLICE_LIT("p"),
                                          .id = slice_str(h->id)},
            .tokens = h->tokens};
}

static engine_id submit_decode(struct pair *t, const struct engine_remote *remote, const uint32_t *prompt,
    uint32_t count, const struct sampling_params *p, struct answer *a) {
        struct engine_request q = request_for(prompt, count, p, a);

        q.remote = remote;
        return submit_to(t->d, &q);
}

static void hand_over(struct pair *t, const uint32_t *prompt, uint32_t count, const struct sampling_params *p,
    struct answer *ret_answer) {
        struct handed h;
        struct engine_remote remote;

        prefill(t, prompt, count, p, &h);
        remote = remote_of(t, &h);
        submit_decode(t, &remote, prompt, count, p, ret_answer);
        run_fetching(t->d);
}

/* ---- equality ---------------------------------------------------------------------------------------------------------- */

static void a_handed_over_text_is_one_engines(void **state) {
        struct pair t;

        pair_prepare(&t);
        check_pair(&t, 60, "out of memory of the same process");
        pair_prepare(&t);
        t.p_transfer.way = COMM_WAY_STREAM;
        t.d_transfer.checksum = true;
        check_pair(&t, 30, "over TCP");
        pair_prepare(&t);
        t.p_options.prefix_caching = t.d_options.prefix_caching = true;
        check_pair(&t, 60, "with prefixes found on both sides");
        pair_prepare(&t);
        t.p_options.prefix_caching = true;
        t.p_options.max_batched_tokens = 32;
        check_pair(&t, 30, "chunks and prefixes on the prefiller");
}

static void many_at_once_are_each_their_own(void **state) {
        enum { MANY = 40 };
        struct answer *got = calloc(MANY, sizeof(*got)), *expected = calloc(MANY, sizeof(*expected));
        struct handed *handed = calloc(MANY, sizeof(*handed));
        uint32_t(*prompts)[ANSWER_MAX] = calloc(MANY, sizeof(*prompts)), lengths[MANY];
        struct pair t;
        struct rng r;

        pair_prepare(&t);
        t.d_options.max_seqs = 5;
        t.d_options.kv_blocks = 40; /* some wait for blocks, some are preempted and computed again */
        pair_open(&t);
        rng_seed(&r, 11);
        for (unsigned i = 0; i < MANY; i++) {
                struct sampling_params p = sampling_of(i);

                p.max_tokens = 40;
                lengths[i] = 1 + (uint32_t)rng_below(&r, 150);
                make_prompt(&r, prompts[i], lengths[i], false);
                one_engine(&t.p_options, prompts[i], lengths[i], &p, &expected[i]);
                prefill(&t, prompts[i], lengths[i], &p, &handed[i]);
        }
        for (unsigned i = 0; i < MANY; i++) {
                struct sampling_params p = sampling_of(i);
                struct engine_remote remote = remote_of(&t, &handed[i]);

                p.max_tokens = 40;
                submit_decode(&t, &remote, prompts[i], lengths[i], &p, &got[i]);
        }
        for (;;) {
                run_to_end(t.d);
                if (!t.d->scheduler.running_count && !t.d->scheduler.waiting_count)
                        break;
                wait_moved(t.d);
        }
        for (unsigned i = 0; i < MANY; i++)
                assert_same_answer(&got[i], &expected[i], "many at once", i);
        assert_true(t.d->scheduler.preemptions > 0);
        pair_close(&t);
        free(got);
        free(expected);
        free(handed);
        free(prompts);
}

/* ---- less than a whole fetch ------------------------------------------------------------------------------------------- */

static void what_is_known_already_is_not_fetched(void **state) {
        uint32_t prompt[ANSWER_MAX];
        struct sampling_params p = sampling_of(0);
        struct answer a;
        struct pair t;
        struct rng r;

        rng_seed(&r, 2);
        make_prompt(&r, prompt, 100, false);
        pair_prepare(&t);
        t.d_options.prefix_caching = true;
        pair_open(&t);
        hand_over(&t, prompt, 100, &p, &a);
        assert_int_equal(t.d->metrics.figures.external_hits, 99);
        hand_over(&t, prompt, 100, &p, &a); /* 6 blocks of 16 are known */
        assert_int_equal(t.d->metrics.figures.external_hits, 99 + 3);
        hand_over(&t, prompt, 97, &p, &a); /* all but the last token is known: the lease is freed */
        assert_int_equal(t.d->metrics.figures.external_hits, 99 + 3);
        hand_over(&t, prompt, 1, &p, &a); /* nothing there is to fetch */
        assert_int_equal(t.d->metrics.figures.external_hits, 99 + 3);
        assert_int_equal(t.p->metrics.figures.leases_expired, 0);
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
        pair_prepare(&t);
        pair_open(&t);
        one_engine(&t.d_options, prompt, 60, &p, &expected);
        hand_over(&t, prompt, 60, &p, &got);
        assert_same_answer(&got, &expected, "prompt_logprobs", 0);
        assert_int_equal(t.d->metrics.figures.external_hits, 0);
        pair_close(&t);
}

static void only_a_good_end_is_kept(void **state) {
        uint32_t prompt[ANSWER_MAX];
        struct sampling_params p = sampling_of(0);
        struct engine_request q;
        struct answer a;
        struct pair t;
        struct rng r;
        engine_id id;

        rng_seed(&r, 2);
        make_prompt(&r, prompt, 60, false);
        pair_prepare(&t);
        pair_open(&t);
        q = request_for(prompt, 60, &p, &a);
        q.keep = true;
        id = submit_to(t.p, &q);
        engine_step(t.p);
        engine_abort(t.p, id, FINISH_ABORT);
        run_to_end(t.p);
        assert_int_equal(a.finish, FINISH_ABORT);
        assert_int_equal(t.p->kept, 0);
        q.keep = false;
        memset(&a, 0, sizeof(a));
        submit_to(t.p, &q);
        run_to_end(t.p);
        assert_int_equal(a.finish, FINISH_LENGTH);
        assert_int_equal(t.p->kept, 0);
        pair_close(&t);
}

/* ---- failures ---------------------------------------------------------------------------------------------------------- */

static void a_client_that_leaves_at_any_moment_leaves_nothing(void **state) {
        uint32_t prompt[ANSWER_MAX];
        struct sampling_params p = sampling_of(0);
        struct pair t;
        struct rng r;

        rng_seed(&r, 2);
        make_prompt(&r, prompt, 100, false);
        pair_prepare(&t);
        t.d_transfer.lease_ms = t.p_transfer.lease_ms = 100000; /* no lease is freed by its time */
        pair_open(&t);
        for (int moment = 0; moment < 4; moment++) {
                struct engine_remote remote;
                struct handed h;
                struct answer a;
                engine_id id;

                prefill(&t, prompt, 100, &p, &h);
                remote = remote_of(&t, &h);
                id = submit_decode(&t, &remote, prompt, 100, &p, &a);
                if (moment > 0)
                        engine_step(t.d); /* the fetch has begun */
                if (moment > 1)
                        wait_moved(t.d); /* it has ended, and nobody knows yet */
                if (moment > 2)
                        engine_step(t.d);
                engine_abort(t.d, id, FINISH_ABORT);
                run_to_end(t.d);
                assert_int_equal(a.finish, FINISH_ABORT);
                settle(&t);
        }
        assert_int_equal(t.p->metrics.figures.leases_expired, 0);
        pair_close(&t);
}

static void a_prefiller_that_is_gone_fails_the_request_or_not(void **state) {
        uint32_t prompt[ANSWER_MAX];
        struct sampling_params p = sampling_of(0);
        struct answer got, expected;
        struct engine_remote remote;
        struct handed h;
        struct pair t;
        struct rng r;

        rng_seed(&r, 2);
        make_prompt(&r, prompt, 100, false);
        for (int recompute = 0; recompute < 2; recompute++) {
                pair_prepare(&t);
                t.d_transfer.recompute = recompute;
                t.d_options.prefix_caching = true;
                pair_open(&t);
                prefill(&t, prompt, 100, &p, &h);
                remote = remote_of(&t, &h);
                engine_free(t.p);
                t.p = NULL;
                submit_decode(&t, &remote, prompt, 100, &p, &got);
                run_fetching(t.d);
                assert_int_equal(t.d->metrics.figures.fetches_failed, 1);
                if (recompute) {
                        one_engine(&t.d_options, prompt, 100, &p, &expected);
                        assert_same_answer(&got, &expected, "computed after all", 0);
                } else {
                        assert_int_equal(got.finish, FINISH_ERROR);
                        assert_non_null(strstr(got.error, "fetched"));
                        /* What did not come is not taken for a prefix. */
                        submit(t.d, prompt, 100, &p, &got);
                        run_to_end(t.d);
                        one_engine(&t.d_options, prompt, 100, &p, &expected);
                        assert_same_answer(&got, &expected, "afterwards", 0);
                }
                pair_close(&t);
        }
}

static void parameters_that_were_used_are_refused(void **state) {
        uint32_t prompt[ANSWER_MAX];
        struct sampling_params p = sampling_of(0);
        struct engine_remote remote;
        struct handed h;
        struct answer a;
        struct pair t;
        struct rng r;

        rng_seed(&r, 2);
        make_prompt(&r, prompt, 100, false);
        pair_prepare(&t);
        pair_open(&t);
        prefill(&t, prompt, 100, &p, &h);
        remote = remote_of(&t, &h);
        for (int use = 0; use < 2; use++) {
                submit_decode(&t, &remote, prompt, 100, &p, &a);
                run_fetching(t.d);
                assert_int_equal(a.finish, use ? FINISH_ERROR : FINISH_LENGTH);
        }
        pair_close(&t);
}

static void what_nobody_fetches_is_freed_when_its_lease_ends(void **state) {
        uint32_t prompt[ANSWER_MAX];
        struct sampling_params p = sampling_of(0);
        struct handed h;
        struct pair t;
        struct rng r;

        rng_seed(&r, 2);
        make_prompt(&r, prompt, 100, false);
        pair_prepare(&t);
        t.p_transfer.lease_ms = 50;
        pair_open(&t);
        prefill(&t, prompt, 100, &p, &h);
        assert_true(blocks_available(t.p->blocks) < blocks_total(t.p->blocks));
        settle(&t);
        assert_int_equal(t.p->metrics.figures.leases_expired, 1);
        pair_close(&t);
}

static void models_that_differ_do_not_share(void **state) {
        uint32_t prompt[ANSWER_MAX];
        struct sampling_params p = sampling_of(0);
        struct engine_remote remote;
        struct handed h;
        struct answer a;
        struct pair t;
        struct rng r;

        rng_seed(&r, 2);
        make_prompt(&r, prompt, 20, false);
        pair_prepare(&t);
        t.p_options.kv_type = KV_BF16;
        pair_open(&t);
        prefill(&t, prompt, 20, &p, &h);
        remote = remote_of(&t, &h);
        submit_decode(&t, &remote, prompt, 20, &p, &a);
        run_fetching(t.d);
        assert_int_equal(a.finish, FINISH_ERROR);
        engine_release(t.p, h.id);
        pair_close(&t);
}

/* ---- out of blocks ------------------------------------------------------------------------------------------------------ */

static void a_decoder_out_of_blocks_sends_back_what_was_fetched(void **state) {
        enum { MANY = 6 };
        struct answer *got = calloc(MANY, sizeof(*got));
        uint32_t prompt[ANSWER_MAX];
        unsigned back = 0;
        struct pair t;
        struct rng r;

        pair_prepare(&t);
        t.d_transfer.give_up_preempted = true;
        t.d_options.kv_blocks = 20;
        pair_open(&t);
        rng_seed(&r, 3);
        for (unsigned i = 0; i < MANY; i++) {
                struct sampling_params p = sampling_of(i);
                struct engine_remote remote;
                struct handed h;

                p.max_tokens = 100;
                make_prompt(&r, prompt, 40, false);
                prefill(&t, prompt, 40, &p, &h);
                remote = remote_of(&t, &h);
                submit_decode(&t, &remote, prompt, 40, &p, &got[i]);
        }
        for (;;) {
                run_to_end(t.d);
                if (!t.d->scheduler.running_count && !t.d->scheduler.waiting_count)
                        break;
                wait_moved(t.d);
        }
        for (unsigned i = 0; i < MANY; i++) {
                assert_true(got[i].finish == FINISH_LENGTH || got[i].finish == FINISH_RECOMPUTED);
                back += got[i].finish == FINISH_RECOMPUTED;
        }
        assert_true(back > 0 && back < MANY);
        pair_close(&t);
        free(got);
}

/* ---- ends --------------------------------------------------------------------------------------------------------------- */

static void a_prefiller_that_is_to_end_waits_for_those_who_fetch(void **state) {
        uint32_t prompt[ANSWER_MAX];
        struct sampling_params p = sampling_of(0);
        struct engine_remote remote;
        struct handed h;
        struct answer a;
        struct pair t;
        struct rng r;

        rng_seed(&r, 2);
        make_prompt(&r, prompt, 60, false);
        pair_prepare(&t);
        pair_open(&t);
        prefill(&t, prompt, 60, &p, &h);
        remote = remote_of(&t, &h);
        assert_int_equal(engine_start(t.p), 0);
        submit_decode(&t, &remote, prompt, 60, &p, &a);
        engine_step(t.d);
        engine_stop(t.p, 1000 * HANG_S);
        run_fetching(t.d);
        assert_int_equal(a.finish, FINISH_LENGTH);
        assert_int_equal(t.p->metrics.figures.leases_expired, 0);
        pair_close(&t);
}

static int set_up(void **state) {
        rig = rig_new("v3-f32", 1, true);
        order = (struct order){.prepare = pair_prepare, .hand_over = hand_over, .prompts = 20};
        return 0;
}

static int tear_down(void **state) {
        rig_free(&rig);
        return 0;
}

int main(void) {
        const struct CMUnitTest tests[] = {
            cmocka_unit_test(a_handed_over_text_is_one_engines),
            cmocka_unit_test(block_sizes_may_differ),
            cmocka_unit_test(a_cache_of_bfloat16_comes_over),
            cmocka_unit_test(every_checkpoint_comes_over),
            cmocka_unit_test(drafts_are_as_good_as_in_one_engine),
            cmocka_unit_test(many_at_once_are_each_their_own),
            cmocka_unit_test(what_is_known_already_is_not_fetched),
            cmocka_unit_test(log_probabilities_of_a_prompt_are_computed_where_they_are_told),
            cmocka_unit_test(only_a_good_end_is_kept),
            cmocka_unit_test(a_client_that_leaves_at_any_moment_leaves_nothing),
            cmocka_unit_test(a_prefiller_that_is_gone_fails_the_request_or_not),
            cmocka_unit_test(parameters_that_were_used_are_refused),
            cmocka_unit_test(what_nobody_fetches_is_freed_when_its_lease_ends),
            cmocka_unit_test(models_that_differ_do_not_share),
            cmocka_unit_test(a_decoder_out_of_blocks_sends_back_what_was_fetched),
            cmocka_unit_test(a_prefiller_that_is_to_end_waits_for_those_who_fetch),
        };

        return cmocka_run_group_tests(tests, set_up, tear_down);
}
