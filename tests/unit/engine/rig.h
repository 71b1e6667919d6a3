/* rig.h - what the engine tests share: a small checkpoint, an engine over it, and answers to compare. */
#pragma once
#include "base/clock.h"
#include "base/rng.h"
#include "engine/core.h"
#include <errno.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum { ANSWER_MAX = 260 };

/* All that was told about one request. */
struct answer {
        uint32_t tokens[ANSWER_MAX], ranks[ANSWER_MAX], count;
        float logprobs[ANSWER_MAX];
        struct openai_logprob tops[ANSWER_MAX][3];
        float prompt_logprobs[ANSWER_MAX];
        uint32_t prompt_count, cached, outputs;
        enum finish_reason finish;
        int64_t stop_id;
        const char *error;
        struct { /* what waits for a prefiller */
                char id[33];
                uint32_t cached, tokens;
        } expected;
};

/* A model that all tests of a file use one after the other. */
struct rig {
        struct compute *compute;
        struct model *model;
};

static inline struct rig rig_new_as(const char *checkpoint, unsigned threads, bool mtp, enum activation activation) {
        struct rig r = {0};
        struct error e = {{0}};
        struct compute_options c = {.isa = ISA_BEST, .threads = threads, .activation = activation};
        struct model_options m = {.load_mtp = mtp};
        char dir[4096];
        int code = compute_new(&c, &r.compute, &e);

        if (code < 0)
                fail_msg("compute_new: %s", error_text(&e, code));
        assert_non_null(getenv("BATON_SOURCE"));
        snprintf(dir, sizeof(dir), "%s/tests/data/model/%s", getenv("BATON_SOURCE"), checkpoint);
        m.dir = dir;
        m.compute = r.compute;
        code = model_load(&m, &r.model, &e);
        if (code < 0)
                fail_msg("model_load: %s", error_text(&e, code));
        return r;
}

static inline struct rig rig_new(const char *checkpoint, unsigned threads, bool mtp) {
        return rig_new_as(checkpoint, threads, mtp, ACTIVATION_F32);
}

static inline void rig_free(struct rig *r) {
        model_free(r->model);
        compute_free(r->compute);
}

static inline struct engine_options rig_options(const struct rig *r) {
        return (struct engine_options){.model = r->model,
            .compute = r->compute,
            .max_model_len = 256,
            .max_seqs = 16,
            .max_batched_tokens = 512,
            .chunked_prefill = true,
            .block_tokens = 16,
            .kv_blocks = 512,
            .kv_type = KV_F32};
}

static inline struct engine *engine_of(const struct engine_options *o) {
        struct engine *g = NULL;
        struct error e = {{0}};
        int code = engine_new(o, &g, &e);

        if (code < 0)
                fail_msg("engine_new: %s", error_text(&e, code));
        return g;
}

static inline struct sampling_params plain_sampling(void) {
        return (struct sampling_params){.temperature = 0,
            .top_p = 1,
            .repetition_penalty = 1,
            .logprobs = -1,
            .prompt_logprobs = -1,
            .max_tokens = 16,
            .ignore_eos = true};
}

static inline engine_id submit(
    struct engine *g, const uint32_t *prompt, uint32_t count, const struct sampling_params *p, struct answer *a) {
        static const int64_t eos[] = {1};
        struct engine_request q = {.prompt = prompt,
            .prompt_count = count,
            .sampling = *p,
            .eos = eos,
            .eos_count = 1,
            .arrival_ns = clock_mono_ns(),
            .user = a};
        engine_id id = 0;

        memset(a, 0, sizeof(*a));
        assert_int_equal(engine_submit(g, &q, &id), 0);
        return id;
}

static inline void note_output(const struct engine_output *o) {
        struct answer *a = o->user;

        assert_int_equal(a->finish, FINISH_NONE); /* nothing comes after the end */
        if (o->expected) {
                assert_int_equal(o->token_count, 0);
                assert_int_equal(a->expected.id[0], 0); /* once */
                memcpy(a->expected.id, o->expected->id, sizeof(a->expected.id));
                a->expected.cached = o->expected->cached;
                a->expected.tokens = o->expected->tokens;
                return;
        }
        assert_true(o->token_count > 0 || o->finish != FINISH_NONE);
        for (uint32_t i = 0; i < o->token_count; i++) {
                const struct engine_token *t = &o->tokens[i];

                assert_true(a->count < ANSWER_MAX);
                a->tokens[a->count] = t->id;
                a->ranks[a->count] = t->rank;
                a->logprobs[a->count] = t->logprob;
                for (uint32_t k = 0; k < t->top_count && k < 3; k++)
                        a->tops[a->count][k] = t->top[k];
                a->count++;
        }
        if (o->prompt_token_count) {
                assert_int_equal(a->prompt_count, 0); /* once */
                a->prompt_count = o->prompt_token_count;
                for (uint32_t i = 1; i < o->prompt_token_count; i++)
                        a->prompt_logprobs[i] = o->prompt_tokens[i].logprob;
        }
        a->outputs++;
        a->finish = o->finish;
        a->stop_id = o->stop_id;
        a->error = o->error;
        a->cached = o->cached_tokens;
}

static inline void take_outputs(struct engine *g) {
        struct engine_output *list = engine_take(g);

        for (const struct engine_output *o = list; o; o = o->next)
                note_output(o);
        engine_outputs_free(g, list);
}

/* Without a thread: steps until nothing is left. */
static inline void run_to_end(struct engine *g) {
        while (engine_step(g))
                take_outputs(g);
        take_outputs(g);
}

/* Nothing runs, waits or is held, and nothing was lost on the way. */
static inline void assert_at_rest(struct engine *g) {
        struct engine_load load;

        engine_load(g, &load);
        assert_int_equal(load.running, 0);
        assert_int_equal(load.waiting, 0);
        assert_true(load.kv_usage == 0);
        assert_int_equal(blocks_available(g->blocks), blocks_total(g->blocks));
        assert_int_equal(g->mailbox.queued, 0);
        for (size_t i = 0; i < ID_BUCKETS; i++)
                assert_null(g->by_id[i]);
}

/* Bit for bit, whatever the number of outputs and what was found in the cache. */
static inline void assert_same_answer(const struct answer *a, const struct answer *b, const char *what, size_t number) {
        if (a->count != b->count || a->finish != b->finish || a->stop_id != b->stop_id)
                fail_msg("%s, request %zu: %u tokens and end %d instead of %u and %d", what, number, a->count,
                    a->finish, b->count, b->finish);
        for (uint32_t i = 0; i < a->count; i++)
                if (a->tokens[i] != b->tokens[i] || memcmp(&a->logprobs[i], &b->logprobs[i], sizeof(float)) ||
                    a->ranks[i] != b->ranks[i] || memcmp(a->tops[i], b->tops[i], sizeof(a->tops[i])))
                        fail_msg("%s, request %zu: token %u is %u (%.9g) instead of %u (%.9g)", what, number, i,
                            a->tokens[i], a->logprobs[i], b->tokens[i], b->logprobs[i]);
        assert_int_equal(a->prompt_count, b->prompt_count);
        assert_memory_equal(a->prompt_logprobs, b->prompt_logprobs, sizeof(a->prompt_logprobs));
}
