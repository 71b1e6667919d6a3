/* Ranks that share experts: the text of one process, bit for bit, whoever has work; and ranks that go and come back. Each rank is an
 * engine of this process with its thread, its compute and its part of the checkpoint. */
#include "group_rig.h"

/* ---- tests -------------------------------------------------------------------------------------------------------------- */

static void two_ranks_say_what_one_says(void **state) {
        static const char *const checkpoints[] = {"v3-f32", "v2-greedy", "v2-group", "v3-fp8", "v3-w8a8"};

        for (size_t i = 0; i < sizeof(checkpoints) / sizeof(*checkpoints); i++)
                check_equality(checkpoints[i], 2, 0);
}

static void three_ranks_do_too(void **state) {
        check_equality("v3-f32", 3, 0);
}

static void drafts_go_along(void **state) {
        check_equality("v3-f32", 2, 2);
}

/* The CPU time of this process while nobody has work: as good as none. */
static void idle_ranks_sleep(void **state) {
        struct rank ranks[2] = {{0}};
        uint16_t port = free_port();
        struct timespec before, after, moment = deadline(500);

        for (uint32_t i = 0; i < 2; i++)
                rank_open(&ranks[i], "v3-f32", i, 2, port, 0);
        for (uint32_t i = 0; i < 2; i++)
                wait_health(&ranks[i], true);
        clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &before);
        pthread_mutex_lock(&lock);
        while (pthread_cond_timedwait(&woken, &lock, &moment) != ETIMEDOUT)
                ;
        pthread_mutex_unlock(&lock);
        clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &after);
        assert_true((after.tv_sec - before.tv_sec) * 1000 + (after.tv_nsec - before.tv_nsec) / 1000000 < 250);
        for (uint32_t i = 0; i < 2; i++)
                rank_close(&ranks[i]);
}

static void a_rank_that_goes_ends_the_others_requests_and_may_come_back(void **state) {
        struct rank ranks[2] = {{0}};
        struct sampling_params p = plain_sampling();
        struct answer lost, refused, again;
        uint32_t prompt[8] = {5, 6, 7, 8, 9, 10, 11, 12}, at[1];
        struct engine_request q = {.prompt = prompt, .prompt_count = 8, .sampling = p, .user = &refused};
        uint16_t port = free_port();
        engine_id id;

        for (uint32_t gone = 0; gone < 2; gone++) {
                uint32_t other = 1 - gone;

                for (uint32_t i = 0; i < 2; i++)
                        rank_open(&ranks[i], "v3-f32", i, 2, port, 0);
                for (uint32_t i = 0; i < 2; i++)
                        wait_health(&ranks[i], true);
                p.max_tokens = 240;
                submit(ranks[other].engine, prompt, 8, &p, &lost);
                rank_close(&ranks[gone]);
                wait_health(&ranks[other], false);
                at[0] = other;
                wait_ends(ranks, at, &lost, 1);
                if (lost.finish != FINISH_LENGTH) { /* it may have been quick */
                        assert_int_equal(lost.finish, FINISH_ERROR);
                        assert_non_null(strstr(lost.error ? lost.error : "", "gone"));
                }
                assert_int_equal(engine_submit(ranks[other].engine, &q, &id), -ENOTCONN);
                rank_open(&ranks[gone], "v3-f32", gone, 2, port, 0);
                for (uint32_t i = 0; i < 2; i++)
                        wait_health(&ranks[i], true);
                p.max_tokens = 10;
                submit(ranks[other].engine, prompt, 8, &p, &again);
                wait_ends(ranks, at, &again, 1);
                assert_int_equal(again.finish, FINISH_LENGTH);
                for (uint32_t i = 0; i < 2; i++)
                        rank_close(&ranks[i]);
        }
}

static void ranks_of_other_models_do_not_meet(void **state) {
        struct rank ranks[2] = {{0}};
        struct error e = {{0}};
        struct group_options o = {.rank = 1, .size = 2, .host = "127.0.0.1", .port = free_port()};
        struct comm_fact facts[] = {{"model", "another"}, {"activations", "float32"}, {"num_speculative_tokens", "0"}};
        struct group *stranger;

        rank_open(&ranks[0], "v3-f32", 0, 2, o.port, 0);
        o.facts = facts;
        o.fact_count = 3;
        assert_int_equal(group_new(&o, &stranger, &e), 0);
        assert_int_equal(group_form(stranger, 1000 * HANG_S, &e), -EPROTO);
        assert_non_null(strstr(e.text, "its model is another, rank 0's is "));
        group_free(stranger);
        o.size = 3;
        assert_int_equal(group_new(&o, &stranger, &e), 0);
        assert_int_equal(group_form(stranger, 1000 * HANG_S, &e), -EPROTO);
        assert_non_null(strstr(e.text, "3 ranks, rank 0's has 2"));
        group_free(stranger);
        rank_close(&ranks[0]);
}

int main(void) {
        const struct CMUnitTest tests[] = {
            cmocka_unit_test(two_ranks_say_what_one_says),
            cmocka_unit_test(three_ranks_do_too),
            cmocka_unit_test(drafts_go_along),
            cmocka_unit_test(idle_ranks_sleep),
            cmocka_unit_test(a_rank_that_goes_ends_the_others_requests_and_may_come_back),
            cmocka_unit_test(ranks_of_other_models_do_not_meet),
        };

        return cmocka_run_group_tests(tests, set_up, NULL);
}
