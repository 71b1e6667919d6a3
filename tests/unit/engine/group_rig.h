/* group_rig.h - what tests of groups share: ranks that are engines of this process, each with its thread, its compute and its part of
 * the checkpoint; requests to them, and what one process answers. */
#pragma once
#include "rig.h"
#include <arpa/inet.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define HANG_S 60
enum { RANKS_MAX = 4, REQUESTS = 12 };

/* A group as users start it. */
struct shape {
        const char *checkpoint;
        uint32_t size, drafts, redundant;
        enum placement_strategy strategy;
        bool balance;
        uint32_t interval_steps;
        enum activation activation;
        enum group_payload payload;
        bool sockets_only;
        unsigned groups; /* of threads, one each; 0: a thread */
};

struct rank {
        struct compute *compute;
        struct model *model;
        struct engine_group group;
        struct engine_options options;
        struct engine *engine;
        struct placement placement;
};

/* ---- waiting ------------------------------------------------------------------------------------------------------------ */

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t woken;

static inline void on_wake(void *context) {
        pthread_mutex_lock(&lock);
        pthread_cond_broadcast(&woken);
        pthread_mutex_unlock(&lock);
}

static inline struct timespec deadline(long ms) {
        struct timespec t;

        clock_gettime(CLOCK_MONOTONIC, &t);
        t.tv_nsec += ms % 1000 * 1000000;
        t.tv_sec += ms / 1000 + t.tv_nsec / 1000000000;
        t.tv_nsec %= 1000000000;
        return t;
}

static inline bool healthy(const struct rank *r) {
        struct engine_load load;

        engine_load(r->engine, &load);
        return load.healthy;
}

static inline void wait_health(const struct rank *r, bool wanted) {
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

static inline void wait_ends(struct rank *ranks, const uint32_t *at, struct answer *answers, size_t count) {
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

static inline uint16_t free_port(void) {
        struct sockaddr_in at = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
        socklen_t bytes = sizeof(at);
        int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

        assert_int_equal(bind(fd, (struct sockaddr *)&at, sizeof(at)), 0);
        assert_int_equal(getsockname(fd, (struct sockaddr *)&at, &bytes), 0);
        close(fd);
        return ntohs(at.sin_port);
}

static inline uint32_t layers_of(const char *dir, bool mtp, uint32_t *ret_experts) {
        struct model_config c = {0};
        struct error e = {{0}};

        if (model_config_read(dir, &c, &e) < 0)
                fail_msg("%s", e.text);
        *ret_experts = c.experts;
        return c.layers + mtp;
}

static inline void rank_open_as(struct rank *r, const struct shape *s, uint32_t rank, uint16_t port) {
        struct compute_options c = {
            .isa = ISA_BEST, .threads = s->groups ? s->groups : 1, .activation = s->activation, .groups = s->groups};
        struct model_options m = {
            .load_mtp = s->drafts > 0, .movable_experts = s->balance, .shard = {.ep_rank = rank, .ep_size = s->size}};
        uint32_t size = s->size, drafts = s->drafts, experts, layers;
        const char *checkpoint = s->checkpoint;
        struct error e = {{0}};
        char dir[4096];
        int code = compute_new(&c, &r->compute, &e);

        snprintf(dir, sizeof(dir), "%s/tests/data/model/%s", getenv("BATON_SOURCE"), checkpoint);
        m.dir = dir;
        m.compute = r->compute;
        layers = layers_of(dir, drafts > 0, &experts);
        if (size > 1) {
                assert_int_equal(placement_new(layers, experts, s->redundant, size, s->strategy, &r->placement), 0);
                m.shard.placement = &r->placement;
        }
        if (code == 0)
                code = model_load(&m, &r->model, &e);
        if (code < 0)
                fail_msg("%s", error_text(&e, code));
        r->group = (struct engine_group){.rank = rank,
            .size = size,
            .host = "127.0.0.1",
            .port = port,
            .placement = m.shard.placement,
            .balance = s->balance,
            .interval_steps = s->interval_steps,
            .payload = s->payload,
            .sockets_only = s->sockets_only};
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

static inline void rank_open(
    struct rank *r, const char *checkpoint, uint32_t rank, uint32_t size, uint16_t port, uint32_t drafts) {
        rank_open_as(r, &(struct shape){.checkpoint = checkpoint, .size = size, .drafts = drafts}, rank, port);
}

static inline void rank_close(struct rank *r) {
        engine_stop(r->engine, 0);
        engine_free(r->engine);
        model_free(r->model);
        compute_free(r->compute);
        placement_free(&r->placement);
        *r = (struct rank){0};
}

/* ---- requests ----------------------------------------------------------------------------------------------------------- */

struct load {
        uint32_t prompts[REQUESTS][ANSWER_MAX], lengths[REQUESTS];
        struct sampling_params sampling[REQUESTS];
        struct answer expected[REQUESTS];
};

static inline void make_load(struct load *l, uint32_t vocab) {
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

static inline void check_equality_as(const struct shape *shape) {
        const char *checkpoint = shape->checkpoint;
        uint32_t size = shape->size;
        struct load *l = calloc(1, sizeof(*l));
        struct answer *answers = calloc(REQUESTS, sizeof(*answers));
        struct rank ranks[RANKS_MAX] = {{0}}, alone = {0};
        uint32_t at[REQUESTS] = {0};
        uint16_t port = free_port();

        rank_open(&alone, checkpoint, 0, 1, 0, shape->drafts);
        make_load(l, model_config(alone.model)->vocab);
        for (size_t i = 0; i < REQUESTS; i++)
                submit(alone.engine, l->prompts[i], l->lengths[i], &l->sampling[i], &l->expected[i]);
        wait_ends(&alone, at, l->expected, REQUESTS);
        rank_close(&alone);
        for (uint32_t i = size; i-- > 0;) /* rank 0 last: any order will do */
                rank_open_as(&ranks[i], shape, i, port);
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

static inline void check_equality(const char *checkpoint, uint32_t size, uint32_t drafts) {
        check_equality_as(&(struct shape){.checkpoint = checkpoint, .size = size, .drafts = drafts});
}

static inline int set_up(void **state) {
        pthread_condattr_t attributes;

        pthread_condattr_init(&attributes);
        pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
        pthread_cond_init(&woken, &attributes);
        pthread_condattr_destroy(&attributes);
        return 0;
}
