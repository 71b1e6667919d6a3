/* pair_laws.h - what holds for a prefiller and a decoder in whichever order they meet: the text is one engine's, bit for bit. */
#pragma once
#include "pair.h"

/* What ThreadSanitizer can see is seen after a few prompts. */
#ifdef __SANITIZE_THREAD__
#define STRIDE 6u
#else
#define STRIDE 1u
#endif

/* How a test program hands prompts over; set before its tests run. */
static struct order {
        void (*prepare)(struct pair *t);
        /* A prompt prefilled there and answered here, to its end. */
        void (*hand_over)(struct pair *t, const uint32_t *prompt, uint32_t count, const struct sampling_params *p,
            struct answer *ret_answer);
        unsigned prompts; /* of the laws that vary something else */
        uint32_t chunk;   /* tokens of a step of the prefiller, for the checkpoints; 0: as it is */
} order;

/* `count` prompts of all lengths, some with a common beginning, each compared with one engine's. */
static void check_pair(struct pair *t, unsigned count, const char *what) {
        struct answer *got = calloc(1, sizeof(*got)), *expected = calloc(1, sizeof(*expected));
        uint32_t prompt[ANSWER_MAX];
        struct rng r;

        rng_seed(&r, 5);
        pair_open(t);
        for (unsigned i = 0; i < count; i += STRIDE) {
                static const uint32_t borders[] = {1, 2, 15, 16, 17, 31, 32, 33, 47, 48, 49, 63, 64, 65, 127, 128, 129};
                uint32_t length =
                    i < 17 ? borders[i] : 1 + (uint32_t)rng_below(&r, 200); /* 17: the number of borders */
                struct sampling_params p = sampling_of(i);

                make_prompt(&r, prompt, length, i % 3 == 0);
                one_engine(&t->d_options, prompt, length, &p, expected);
                order.hand_over(t, prompt, length, &p, got);
                assert_same_answer(got, expected, what, i);
        }
        assert_true(t->d->metrics.figures.external_hits > 0);
        assert_int_equal(t->d->metrics.figures.fetches_failed, 0);
        assert_int_equal(t->p->metrics.figures.fetches_failed, 0);
        pair_close(t);
        free(got);
        free(expected);
}

static void block_sizes_may_differ(void **state) {
        static const uint32_t sizes[][2] = {{16, 8}, {8, 16}, {64, 16}, {5, 7}};

        for (size_t i = 0; i < sizeof(sizes) / sizeof(*sizes); i++)
                for (int stream = 0; stream < 2; stream++) {
                        struct pair t;

                        order.prepare(&t);
                        t.p_options.block_tokens = sizes[i][0];
                        t.d_options.block_tokens = sizes[i][1];
                        t.d_options.prefix_caching = true;
                        t.d_transfer.way = stream ? COMM_WAY_STREAM : COMM_WAY_BEST;
                        check_pair(&t, order.prompts, "other block sizes");
                }
}

static void a_cache_of_bfloat16_comes_over(void **state) {
        struct pair t;

        order.prepare(&t);
        t.p_options.kv_type = t.d_options.kv_type = KV_BF16;
        check_pair(&t, 20, "bfloat16");
}

static void every_checkpoint_comes_over(void **state) {
        static const char *const names[] = {
            "v2-greedy", "v2-group", "v3-bf16", "v3-fp8", "v3-fp8-ue8m0", "v3-mscale", "v3-w8a8", "v3-w8a8-int64"};
        struct rig kept = rig;

        for (size_t i = 0; i < sizeof(names) / sizeof(*names); i++) {
                struct pair t;

                rig = rig_new(names[i], 1, false);
                order.prepare(&t);
                t.d_options.block_tokens = 8;
                if (order.chunk)
                        t.p_options.max_batched_tokens = order.chunk;
                check_pair(&t, order.prompts, names[i]);
                rig_free(&rig);
        }
        rig = kept;
}

/* The draft module's own rows travel, too: as many drafts are right as in one engine. */
static void drafts_are_as_good_as_in_one_engine(void **state) {
        uint32_t prompt[ANSWER_MAX];
        struct answer got, expected;
        uint64_t accepted, drafts;
        struct engine *single;
        struct pair t;
        struct rng r;

        order.prepare(&t);
        t.p_options.draft_tokens = t.d_options.draft_tokens = 2;
        pair_open(&t);
        t.d_options.transfer = NULL;
        single = engine_of(&t.d_options);
        rng_seed(&r, 9);
        for (unsigned i = 0; i < 24; i++) {
                uint32_t length = 1 + (uint32_t)rng_below(&r, 100);
                struct sampling_params p = sampling_of(2 * i);

                make_prompt(&r, prompt, length, false);
                submit(single, prompt, length, &p, &expected);
                run_to_end(single);
                order.hand_over(&t, prompt, length, &p, &got);
                assert_same_answer(&got, &expected, "with drafts", i);
        }
        accepted = single->metrics.figures.accepted_tokens;
        drafts = single->metrics.figures.draft_tokens;
        assert_int_equal(t.d->metrics.figures.accepted_tokens, accepted);
        assert_int_equal(t.d->metrics.figures.draft_tokens, drafts);
        engine_free(single);
        pair_close(&t);
}
