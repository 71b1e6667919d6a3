/* pair.h - a prefiller and a decoder of this process, stepped by the test, with real sockets between them; what the tests of both
 * orders share. */
#pragma once
#include "rig.h"
#include <time.h>

#define HANG_S 30

static struct rig rig;

/* ---- a prefiller and a decoder ----------------------------------------------------------------------------------------- */

struct pair {
        struct engine_transfer p_transfer, d_transfer;
        struct engine_options p_options, d_options;
        struct engine *p, *d;
};

static inline void pair_prepare(struct pair *t) {
        memset(t, 0, sizeof(*t));
        t->p_transfer = (struct engine_transfer){.produces = true, .engine_id = "p", .host = "127.0.0.1"};
        t->d_transfer = (struct engine_transfer){.consumes = true, .engine_id = "d"};
        t->p_options = t->d_options = rig_options(&rig);
        t->p_options.transfer = &t->p_transfer;
        t->d_options.transfer = &t->d_transfer;
}

static inline void pair_open(struct pair *t) {
        t->p = engine_of(&t->p_options);
        t->d = engine_of(&t->d_options);
}

/* Until comm has something for the engine. */
static inline void wait_moved(struct engine *g) {
        struct timespec until;

        clock_gettime(CLOCK_MONOTONIC, &until);
        until.tv_sec += HANG_S;
        pthread_mutex_lock(&g->mailbox.lock);
        while (!g->mailbox.moved)
                if (pthread_cond_timedwait(&g->mailbox.work, &g->mailbox.lock, &until) == ETIMEDOUT)
                        fail_msg("nothing came over");
        pthread_mutex_unlock(&g->mailbox.lock);
}

/* Steps until nothing runs, and whatever is fetched has come. */
static inline void run_fetching(struct engine *g) {
        for (;;) {
                run_to_end(g);
                if (!g->scheduler.running_count)
                        return;
                wait_moved(g);
        }
}

/* What is held for others has been let go, for whatever reason. */
static inline void settle(struct pair *t) {
        while (t->p && t->p->kept) {
                wait_moved(t->p);
                run_to_end(t->p);
        }
        while (t->d && blocks_available(t->d->blocks) != blocks_total(t->d->blocks)) {
                wait_moved(t->d);
                run_to_end(t->d);
        }
}

static inline void pair_close(struct pair *t) {
        settle(t);
        if (t->p)
                assert_at_rest(t->p);
        if (t->d)
                assert_at_rest(t->d);
        engine_free(t->d);
        engine_free(t->p);
}

/* ---- requests ---------------------------------------------------------------------------------------------------------- */

static inline engine_id submit_to(struct engine *g, const struct engine_request *q) {
        engine_id id = 0;

        assert_int_equal(engine_submit(g, q, &id), 0);
        return id;
}

static inline struct engine_request request_for(
    const uint32_t *prompt, uint32_t count, const struct sampling_params *p, struct answer *a) {
        memset(a, 0, sizeof(*a));
        return (struct engine_request){
            .prompt = prompt, .prompt_count = count, .sampling = *p, .arrival_ns = clock_mono_ns(), .user = a};
}

static inline void one_engine(const struct engine_options *like, const uint32_t *prompt, uint32_t count,
    const struct sampling_params *p, struct answer *ret_answer) {
        struct engine_options o = *like;
        struct engine *g;

        o.transfer = NULL;
        g = engine_of(&o);
        submit(g, prompt, count, p, ret_answer);
        run_to_end(g);
        engine_free(g);
}

static inline struct sampling_params sampling_of(unsigned i) {
        struct sampling_params p = plain_sampling();

        p.max_tokens = 6 + i % 5;
        p.logprobs = 3;
        if (i % 2) {
                p.temperature = 1;
                p.has_seed = true;
                p.seed = i;
        }
        if (i % 5 == 3)
                p.repetition_penalty = 1.3f;
        return p;
}

static inline void make_prompt(struct rng *r, uint32_t *prompt, uint32_t count, bool common) {
        for (uint32_t k = 0; k < count; k++)
                prompt[k] = common && k < 40 ? 100 + k : (uint32_t)rng_below(r, model_config(rig.model)->vocab);
}
