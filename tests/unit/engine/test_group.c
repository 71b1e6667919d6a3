/* Ranks that share experts: the text of one process, bit for bit, whoever has work; and ranks that go and come back. Each rank is an
 * engine of this process with its thread, its compute and its part of the checkpoint. */
#include "rig.h"
#include <arpa/inet.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define HANG_S 60
enum { RANKS_MAX = 3, REQUESTS = 12 };

struct rank {
        struct compute *compute;
        struct model *model;
        struct engine_group group;
        struct engine_options options;
        struct engine *engine;
};

/* ---- waiting ------------------------------------------------------------------------------------------------------------ */

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t woken;

static void on_wake(void *context) {
        pthread_mutex_lock(&lock);
        pthread_cond_broadcast(&woken);
        pthread_mutex_unlock(&lock);
}

static struct timespec deadline(long ms) {
        struct timespec t;

        clock_gettime(CLOCK_MONOTONIC, &t);
        t.tv_nsec += ms % 1000 * 1000000;
        t.tv_sec += ms / 1000 + t.tv_nsec / 1000000000;
        t.tv_nsec %= 1000000000;
        return t;
}

static bool healthy(const struct rank *r) {
        struct engine_load load;

        engine_load(r->engine, &load);
        return load.healthy;
}

static void wait_health(const struct rank *r, bool wanted) {
        uint64_t until = clock_mono_ns() + HANG_S * NS_PER_S;

        while (healthy(r) != wanted) {
                struct timespec moment = deadline(10);

                if (clock_mono_ns() > until)
                        fail_msg("rank %u does not become %s", r->group.rank, wanted ? "healthy" : "unhealthy");
                pthread_mutex_lock(&lock); /* nobody tells of health: look now and then */
                pthread_cond_timedwait(&woken, &lock, &moment);
                pthread_mutex_unlock(&lock);
        }
}

static void wait_ends(struct rank *ranks, const uint32_t *at, struct answer *answers, size_t count) {
        uint64_t until = clock_mono_ns() + HANG_S * NS_PER_S;

        for (size_t i = 0; i < count; i++)
                while (answers[i].finish == FINISH_NONE) {
                        struct timespec moment = deadline(20);

                        take_outputs(ranks[at[i]].engine);
                        if (answers[i].finish != FINISH_NONE)
                                break;
                        if (clock_mono_ns() > until)
                                fail_msg("request %zu does not end", i);
                        pthread_mutex_lock(&lock);
                        pthread_cond_timedwait(&woken, &lock, &moment);
                        pthread_mutex_unlock(&lock);
                }
}

/* ---- ranks -------------------------------------------------------------------------------------------------------------- */

static uint16_t free_port(void) {
        struct sockaddr_in at = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
        socklen_t bytes = sizeof(at);
        int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

        assert_int_equal(bind(fd, (struct sockaddr *)&at, sizeof(at)), 0);
        assert_int_equal(getsockname(fd, (struct sockaddr *)&at, &bytes), 0);
        close(fd);
        return ntohs(at.sin_port);
}

static void rank_open(
    struct rank *r, const char *checkpoint, uint32_t rank, uint32_t size, uint16_t port, uint32_t drafts) {
        struct compute_options c = {.isa = ISA_BEST, .threads = 1};
        struct model_options m = {.load_mtp = drafts > 0, .shard = {.ep_rank = rank, .ep_size = size}};
        struct error e = {{0}};
        char dir[4096];
        int code = compute_new(&c, &r->compute, &e);

        snprintf(dir, sizeof(dir), "%s/tests/data/model/%s", getenv("BATON_SOURCE"), checkpoint);
        m.dir = dir;
        m.compute = r->compute;
        if (code == 0)
                code = model_load(&m, &r->model, &e);
        if (code < 0)
                fail_msg("%s", error_text(&e, code));
        r->group = (struct engine_group){.rank = rank, .size = size, .host = "127.0.0.1", .port = port};
        r->options = (struct engine_options){.model = r->model,
            .compute = r->compute,
            .max_model_len = 256,
            .max_seqs = 16,
            .max_batched_tokens = 64,
            .chunked_prefill = true,
            .block_tokens = 16,
            .kv_blocks = 256,
            .kv_type = KV_F32,
            .draft_tokens = drafts,
            .wake = on_wake,
            .group = size > 1 ? &r->group : NULL};
        r->engine = engine_of(&r->options);
        assert_int_equal(engine_start(r->engine), 0);
}

static void rank_close(struct rank *r) {
        engine_stop(r->engine, 0);
        engine_free(r->engine);
        model_free(r->model);
        compute_free(r->compute);
        *r = (struct rank){0};
}

/* ---- requests ----------------------------------------------------------------------------------------------------------- */

struct load {
        uint32_t prompts[REQUESTS][ANSWER_MAX], lengths[REQUESTS];
        struct sampling_params sampling[REQUESTS];
        struct answer expected[REQUESTS];
};

static void make_load(struct load *l, uint32_t vocab) {
        struct rng r;

        rng_seed(&r, 21);
        for (size_t i = 0; i < REQUESTS; i++) {
                l->lengths[i] = 1 + (uint32_t)rng_below(&r, 150);
                for (uint32_t k = 0; k < l->lengths[i]; k++)
                        l->prompts[i][k] = (uint32_t)rng_below(&r, vocab);
                l->sampling[i] = plain_sampling();
                l->sampling[i].max_tokens = 5 + (uint32_t)i;
                l->sampling[i].logprobs = 3;
                if (i % 2) {
                        l->sampling[i].temperature = 1;
                        l->sampling[i].has_seed = true;
                        l->sampling[i].seed = (int64_t)i;
                }
        }
}

static void check_equality(const char *checkpoint, uint32_t size, uint32_t drafts) {
        struct load *l = calloc(1, sizeof(*l));
        struct answer *answers = calloc(REQUESTS, sizeof(*answers));
        struct rank ranks[RANKS_MAX] = {{0}}, alone = {0};
        uint32_t at[REQUESTS] = {0};
        uint16_t port = free_port();

        rank_open(&alone, checkpoint, 0, 1, 0, drafts);
        make_load(l, model_config(alone.model)->vocab);
        for (size_t i = 0; i < REQUESTS; i++)
                submit(alone.engine, l->prompts[i], l->lengths[i], &l->sampling[i], &l->expected[i]);
        wait_ends(&alone, at, l->expected, REQUESTS);
        rank_close(&alone);
        for (uint32_t i = size; i-- > 0;) /* rank 0 last: any order will do */
                rank_open(&ranks[i], checkpoint, i, size, port, drafts);
        for (uint32_t i = 0; i < size; i++)
                wait_health(&ranks[i], true);
        for (uint32_t who = 0; who <= size; who++) { /* all on one rank, then on all of them */
                for (size_t i = 0; i < REQUESTS; i++) {
                        at[i] = who < size ? who : (uint32_t)i % size;
                        submit(ranks[at[i]].engine, l->prompts[i], l->lengths[i], &l->sampling[i], &answers[i]);
                }
                wait_ends(ranks, at, answers, REQUESTS);
                for (size_t i = 0; i < REQUESTS; i++)
                        assert_same_answer(&answers[i], &l->expected[i], checkpoint, i);
        }
        for (uint32_t i = 0; i < size; i++)
                rank_close(&ranks[i]);
        free(answers);
        free(l);
}

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

static int set_up(void **state) {
        pthread_condattr_t attributes;

        pthread_condattr_init(&attributes);
        pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
        pthread_cond_init(&woken, &attributes);
        pthread_condattr_destroy(&attributes);
        return 0;
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
