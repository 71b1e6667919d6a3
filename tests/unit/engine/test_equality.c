/* One text, however it is computed: chunks, batches, blocks, prefixes, preemption, threads and drafts change no bit of what
 * a request is told, log-probabilities included. And the texts are those of an independent implementation. */
#include "base/file.h"
#include "base/json.h"
#include "rig.h"

enum { REQUESTS = 14 };

struct load {
        uint32_t prompts[REQUESTS][ANSWER_MAX], lengths[REQUESTS];
        struct sampling_params sampling[REQUESTS];
        struct openai_bias bias[1];
        struct answer expected[REQUESTS];
};

static struct rig rig;
static struct load load;

static void make_load(struct load *l, uint32_t vocab) {
        static const uint32_t lengths[REQUESTS] = {1, 2, 6, 15, 16, 17, 31, 33, 47, 64, 65, 100, 128, 131};
        struct rng r;

        rng_seed(&r, 1);
        for (size_t i = 0; i < REQUESTS; i++) {
                struct sampling_params *p = &l->sampling[i];

                l->lengths[i] = lengths[i];
                for (uint32_t k = 0; k < lengths[i]; k++) /* a common beginning, then each its own */
                        l->prompts[i][k] = k < 20 && i % 3 ? 100 + k : (uint32_t)rng_below(&r, vocab);
                *p = plain_sampling();
                p->max_tokens = 20 + (uint32_t)i;
                p->logprobs = 3;
                if (i % 2) {
                        p->temperature = 1;
                        p->top_p = 0.95f;
                        p->has_seed = true;
                        p->seed = (int64_t)i;
                }
                if (i % 5 == 3) {
                        p->repetition_penalty = 1.3f;
                        p->frequency_penalty = 0.2f;
                }
                if (i % 7 == 2)
                        p->prompt_logprobs = 1;
                if (i == 4) {
                        l->bias[0] = (struct openai_bias){7, 3};
                        p->bias = l->bias;
                        p->bias_count = 1;
                }
        }
}

static void submit_all(struct engine *g, struct answer *answers) {
        for (size_t i = 0; i < REQUESTS; i++)
                submit(g, load.prompts[i], load.lengths[i], &load.sampling[i], &answers[i]);
}

static void assert_load_is_answered(const struct answer *answers, const char *what) {
        for (size_t i = 0; i < REQUESTS; i++)
                assert_same_answer(&answers[i], &load.expected[i], what, i);
}

/* Run the load on an engine, twice with a prefix cache, and compare. Returns the preemptions. */
static uint64_t check_variant(const struct engine_options *o, const char *what) {
        struct answer *answers = calloc(REQUESTS, sizeof(*answers));
        struct engine *g = engine_of(o);
        uint64_t preemptions, hits;

        for (int round = 0; round < (o->prefix_caching ? 2 : 1); round++) {
                hits = g->scheduler.prefix_hits;
                submit_all(g, answers);
                run_to_end(g);
                assert_load_is_answered(answers, what);
                assert_at_rest(g);
                if (round)
                        assert_true(g->scheduler.prefix_hits > hits);
        }
        preemptions = g->scheduler.preemptions;
        engine_free(g);
        free(answers);
        return preemptions;
}

/* What is expected of a model: one request by one, each prompt in one piece, no cache. */
static void expect(const struct rig *r, enum kv_type kv) {
        struct engine_options o = rig_options(r);
        struct engine *g;

        o.kv_type = kv;
        make_load(&load, model_config(r->model)->vocab);
        g = engine_of(&o);
        for (size_t i = 0; i < REQUESTS; i++) {
                submit(g, load.prompts[i], load.lengths[i], &load.sampling[i], &load.expected[i]);
                run_to_end(g);
                assert_int_equal(load.expected[i].count, load.sampling[i].max_tokens);
                assert_int_equal(load.expected[i].finish, FINISH_LENGTH);
        }
        engine_free(g);
}

static int set_up(void **state) {
        rig = rig_new("v3-f32", 1, true);
        expect(&rig, KV_F32);
        return 0;
}

static int tear_down(void **state) {
        rig_free(&rig);
        return 0;
}

/* ---- equalities ------------------------------------------------------------------------------------------------------------ */

static void a_batch_is_its_members(void **state) {
        struct engine_options o = rig_options(&rig);

        check_variant(&o, "all at once");
        o.max_seqs = 3;
        check_variant(&o, "three at a time");
}

static void any_chunking_is_one_shot(void **state) {
        static const uint32_t budgets[] = {16, 17, 30, 63, 64, 65, 200};
        struct engine_options o = rig_options(&rig);

        for (size_t i = 0; i < sizeof(budgets) / sizeof(*budgets); i++) {
                o.max_batched_tokens = budgets[i];
                check_variant(&o, "a small budget");
        }
        o.max_batched_tokens = 1;
        o.max_seqs = 1;
        check_variant(&o, "token by token");
        o = rig_options(&rig);
        o.long_prefill_tokens = 5;
        check_variant(&o, "a threshold");
        o.chunked_prefill = false;
        o.long_prefill_tokens = 0;
        check_variant(&o, "no chunks");
        o.prefill_first = true;
        check_variant(&o, "prefill first");
}

static void any_block_size_is_the_same(void **state) {
        static const uint32_t sizes[] = {1, 4, 7, 64, 128};
        struct engine_options o = rig_options(&rig);

        for (size_t i = 0; i < sizeof(sizes) / sizeof(*sizes); i++) {
                o.block_tokens = sizes[i];
                o.kv_blocks = 8192 / sizes[i];
                check_variant(&o, "another block size");
        }
}

static void a_prefix_hit_is_a_miss(void **state) {
        struct engine_options o = rig_options(&rig);

        o.prefix_caching = true;
        check_variant(&o, "prefix cache");
        o.block_tokens = 4;
        o.kv_blocks = 2048;
        check_variant(&o, "prefix cache of small blocks");
        o.max_batched_tokens = 33;
        check_variant(&o, "prefix cache and chunks");
}

static void preempted_is_not_preempted(void **state) {
        for (int caching = 0; caching < 2; caching++)
                for (int priority = 0; priority < 2; priority++) {
                        struct engine_options o = rig_options(&rig);

                        o.prefix_caching = caching;
                        o.policy = priority ? SCHEDULE_PRIORITY : SCHEDULE_FCFS;
                        o.block_tokens = 4;
                        o.kv_blocks = 64; /* 256 positions: one request of the greatest length */
                        assert_true(check_variant(&o, "few blocks") > 0);
                        o.max_batched_tokens = 40;
                        assert_true(check_variant(&o, "few blocks and chunks") > 0);
                }
}

static void two_threads_are_one(void **state) {
        struct rig two = rig_new("v3-f32", 2, true);
        struct engine_options o = rig_options(&two);

        check_variant(&o, "two threads");
        o.draft_tokens = 2;
        check_variant(&o, "two threads and drafts");
        rig_free(&two);
}

static void drafts_change_no_text(void **state) {
        for (uint32_t drafts = 1; drafts <= 4; drafts++) {
                struct engine_options o = rig_options(&rig);

                o.draft_tokens = drafts;
                check_variant(&o, "drafts");
                o.max_batched_tokens = 19; /* drafts that do not fit are given up */
                check_variant(&o, "drafts and chunks");
                o.prefix_caching = true;
                o.block_tokens = 4;
                o.kv_blocks = 66;
                assert_true(check_variant(&o, "drafts, chunks, prefixes, preemption") > 0);
        }
}

static void thousands_of_tokens_are_the_same_with_drafts(void **state) {
        enum { COUNT = 40 };
        struct answer *answers[3];

        for (uint32_t with = 0; with < 3; with++) {
                struct engine_options o = rig_options(&rig);
                struct engine *g;
                struct rng r;

                answers[with] = calloc(COUNT, sizeof(struct answer));
                o.draft_tokens = with;
                g = engine_of(&o);
                rng_seed(&r, 77);
                for (int i = 0; i < COUNT; i++) {
                        struct sampling_params p = plain_sampling();
                        uint32_t prompt[32], length = 1 + (uint32_t)rng_below(&r, 32);

                        for (uint32_t k = 0; k < length; k++)
                                prompt[k] = (uint32_t)rng_below(&r, 512);
                        p.max_tokens = 200;
                        p.temperature = i % 4 ? 0 : 0.8f;
                        submit(g, prompt, length, &p, &answers[with][i]);
                }
                run_to_end(g);
                if (with) { /* both ends were met often */
                        const struct engine_figures *f = &g->metrics.figures;

                        assert_true(
                            f->draft_tokens > 4000 && f->accepted_tokens > 100 && f->accepted_tokens < f->draft_tokens);
                }
                engine_free(g);
        }
        for (size_t i = 0; i < 2 * COUNT; i++)
                assert_same_answer(&answers[1 + i / COUNT][i % COUNT], &answers[0][i % COUNT], "8000 tokens", i);
        for (size_t i = 0; i < 3; i++)
                free(answers[i]);
}

/* Drafts of which none, the first, the first two, or all three are right: rows of rejected ones are computed again in
 * place, and what the module keeps of them, too. */
static void forced_drafts_change_no_text(void **state) {
        for (uint32_t right = 0; right <= 3; right++) {
                struct engine_options o = rig_options(&rig);
                struct answer a;
                struct engine *g;
                unsigned steps = 0;

                o.draft_tokens = 3;
                g = engine_of(&o);
                submit(g, load.prompts[11], load.lengths[11], &load.sampling[11], &a);
                while (engine_step(g)) {
                        struct sequence *s = g->scheduler.running_count ? g->scheduler.running[0] : NULL;

                        take_outputs(g);
                        steps++;
                        for (uint32_t k = 0; s && a.finish == FINISH_NONE && k < s->drafts; k++)
                                s->tokens[s->count + k] = load.expected[11].tokens[a.count + k] ^ (k >= right);
                }
                take_outputs(g);
                assert_same_answer(&a, &load.expected[11], "forced drafts", 11);
                assert_true(steps >= a.count / (right + 1) && steps <= a.count / (right + 1) + 4);
                assert_int_equal(g->metrics.figures.accepted_tokens == 0, !right);
                assert_at_rest(g);
                engine_free(g);
        }
}

/* What one request wrote is another one's prompt. As in vLLM the blocks are used; with exact prefixes only those whose rows
 * are computed alike, and then not a bit differs. */
static void outputs_as_prompts_are_exact_where_asked_for(void **state) {
        struct engine_options o = rig_options(&rig);
        struct sampling_params p = plain_sampling();
        struct answer first, fresh, again;
        uint32_t prompt[ANSWER_MAX], count;
        struct engine *g;

        o.block_tokens = 4;
        p.max_tokens = 40;
        p.logprobs = 3;
        memcpy(prompt, load.prompts[3], load.lengths[3] * sizeof(*prompt));
        count = load.lengths[3];
        for (int exact = 0; exact < 2; exact++) {
                o.prefix_caching = true;
                o.share_outputs = !exact;
                g = engine_of(&o);
                submit(g, load.prompts[3], load.lengths[3], &p, &first);
                run_to_end(g);
                count = load.lengths[3];
                memcpy(prompt + count, first.tokens, first.count * sizeof(*prompt));
                count += first.count;
                prompt[count++] = 77;
                submit(g, prompt, count, &p, &again);
                run_to_end(g);
                assert_int_equal(again.cached, exact ? (load.lengths[3] - 1) / 4 * 4 : (count - 2) / 4 * 4);
                engine_free(g);
                if (!exact)
                        continue;
                o.prefix_caching = false;
                g = engine_of(&o);
                submit(g, prompt, count, &p, &fresh);
                run_to_end(g);
                assert_same_answer(&again, &fresh, "an output as prompt", 0);
                engine_free(g);
        }
}

/* Every weight format, activations in bf16 as well as f32, the cache in bf16: all of it at once. Runs last, since it changes
 * what is expected. */
static void every_format_keeps_the_equalities(void **state) {
        static const struct {
                const char *checkpoint;
                enum activation activation;
                bool mtp;
        } formats[] = {{"v2-group", ACTIVATION_F32, false}, {"v2-greedy", ACTIVATION_BF16, false},
            {"v3-bf16", ACTIVATION_F32, true}, {"v3-bf16", ACTIVATION_BF16, true}, {"v3-fp8", ACTIVATION_BF16, true},
            {"v3-w8a8", ACTIVATION_F32, true}, {"v3-w8a8-int64", ACTIVATION_F32, true}};

        for (size_t i = 0; i < sizeof(formats) / sizeof(*formats); i++)
                for (enum kv_type kv = KV_F32; kv <= KV_BF16; kv++) {
                        struct rig r = rig_new_as(formats[i].checkpoint, 1, formats[i].mtp, formats[i].activation);
                        struct engine_options o = rig_options(&r);

                        expect(&r, kv);
                        o.kv_type = kv;
                        check_variant(&o, formats[i].checkpoint);
                        o.max_batched_tokens = 23;
                        o.prefix_caching = true;
                        o.block_tokens = 4;
                        o.kv_blocks = 70;
                        o.draft_tokens = formats[i].mtp ? 2 : 0;
                        assert_true(check_variant(&o, formats[i].checkpoint) > 0);
                        rig_free(&r);
                }
}

/* ---- the independent implementation ---------------------------------------------------------------------------------------------- */

struct expected {
        yyjson_doc *cases, *header;
        struct buf bytes;
        const char *data;
};

static void load_expected(const char *checkpoint, struct expected *x) {
        char path[4096];
        struct error e = {{0}};
        uint64_t length;

        memset(x, 0, sizeof(*x));
        snprintf(path, sizeof(path), "%s/tests/data/model/%s/expected/cases.json", getenv("BATON_SOURCE"), checkpoint);
        assert_int_equal(json_parse_file(path, 1 << 20, &x->cases, &e), 0);
        snprintf(path, sizeof(path), "%s/tests/data/model/%s/expected/expected.safetensors", getenv("BATON_SOURCE"),
            checkpoint);
        assert_int_equal(file_read_whole(path, 1 << 26, &x->bytes, &e), 0);
        memcpy(&length, x->bytes.ptr, sizeof(length));
        assert_int_equal(json_parse(slice_of(x->bytes.ptr + 8, length), &x->header, &e), 0);
        x->data = x->bytes.ptr + 8 + length;
}

static void free_expected(struct expected *x) {
        yyjson_doc_free(x->cases);
        yyjson_doc_free(x->header);
        buf_free(&x->bytes);
}

static uint32_t ids_of(const struct expected *x, const char *kind, int64_t id, const char *name, uint32_t *ids) {
        char key[64];
        yyjson_val *offsets;
        size_t begin, end;

        snprintf(key, sizeof(key), "%s%d.%s", kind, (int)id, name);
        offsets = json_get(json_get(yyjson_doc_get_root(x->header), key), "data_offsets");
        assert_non_null(offsets);
        begin = yyjson_get_uint(yyjson_arr_get(offsets, 0));
        end = yyjson_get_uint(yyjson_arr_get(offsets, 1));
        assert_true((end - begin) / 4 <= ANSWER_MAX);
        memcpy(ids, x->data + begin, end - begin);
        return (uint32_t)((end - begin) / 4);
}

static void greedy_texts_are_those_of_the_reference(void **state) {
        static const char *const checkpoints[] = {"v2-greedy", "v2-group", "v3-bf16", "v3-f32", "v3-fp8"};

        for (size_t k = 0; k < sizeof(checkpoints) / sizeof(*checkpoints); k++) {
                struct rig r = rig_new(checkpoints[k], 1, false);
                struct engine_options o = rig_options(&r);
                struct answer *answers = calloc(16, sizeof(*answers));
                struct engine *g = engine_of(&o);
                struct expected x;
                uint32_t prompt[ANSWER_MAX], greedy[ANSWER_MAX];
                size_t i, n;
                yyjson_val *c;

                load_expected(checkpoints[k], &x);
                yyjson_arr_foreach(json_get(yyjson_doc_get_root(x.cases), "cases"), i, n, c) {
                        struct sampling_params p = plain_sampling();

                        p.max_tokens = (uint32_t)json_get_i64(c, "greedy_len", 0);
                        submit(g, prompt, ids_of(&x, "case", (int64_t)i, "prompt", prompt), &p, &answers[i]);
                }
                run_to_end(g);
                yyjson_arr_foreach(json_get(yyjson_doc_get_root(x.cases), "cases"), i, n, c) {
                        assert_int_equal(answers[i].count, ids_of(&x, "case", (int64_t)i, "greedy", greedy));
                        assert_memory_equal(answers[i].tokens, greedy, answers[i].count * sizeof(*greedy));
                }
                engine_free(g);
                free(answers);
                free_expected(&x);
                rig_free(&r);
        }
}

/* Steps and accepted drafts are those of the reference, with one and with two drafts. */
static void drafts_are_accepted_as_in_the_reference(void **state) {
        struct expected x;
        size_t i, n;
        yyjson_val *c;

        load_expected("v3-f32", &x);
        yyjson_arr_foreach(json_get(yyjson_doc_get_root(x.cases), "mtp"), i, n, c) {
                for (uint32_t drafts = 1; drafts <= 2; drafts++) {
                        struct engine_options o = rig_options(&rig);
                        struct sampling_params p = plain_sampling();
                        uint32_t prompt[ANSWER_MAX], greedy[ANSWER_MAX], counts[ANSWER_MAX], steps = 0, reference;
                        const char *name = drafts == 1 ? "accepted_k1" : "accepted_k2";
                        struct answer a;
                        struct engine *g;

                        if (!json_get_bool(json_get(c, "accepted_same_under_noise"), drafts == 1 ? "k1" : "k2", false))
                                continue;
                        o.draft_tokens = drafts;
                        g = engine_of(&o);
                        p.max_tokens = ids_of(&x, "mtp", (int64_t)i, "greedy", greedy);
                        submit(g, prompt, ids_of(&x, "mtp", (int64_t)i, "prompt", prompt), &p, &a);
                        reference = ids_of(&x, "mtp", (int64_t)i, name, counts);
                        assert_true(engine_step(g)); /* the prompt, and the first token */
                        take_outputs(g);
                        assert_int_equal(a.count, 1);
                        while (a.finish == FINISH_NONE) {
                                uint32_t before = a.count;

                                assert_true(engine_step(g));
                                take_outputs(g);
                                assert_true(steps < reference);
                                if (a.finish == FINISH_NONE) /* the reference counts the last step whole */
                                        assert_int_equal(a.count - before, counts[steps] + 1);
                                steps++;
                        }
                        assert_int_equal(steps, reference);
                        assert_int_equal(a.count, p.max_tokens);
                        assert_memory_equal(a.tokens, greedy, a.count * sizeof(*greedy));
                        engine_free(g);
                }
        }
        assert_true(n > 0);
        free_expected(&x);
}

int main(void) {
        const struct CMUnitTest tests[] = {
            cmocka_unit_test(a_batch_is_its_members),
            cmocka_unit_test(any_chunking_is_one_shot),
            cmocka_unit_test(any_block_size_is_the_same),
            cmocka_unit_test(a_prefix_hit_is_a_miss),
            cmocka_unit_test(preempted_is_not_preempted),
            cmocka_unit_test(two_threads_are_one),
            cmocka_unit_test(drafts_change_no_text),
            cmocka_unit_test(thousands_of_tokens_are_the_same_with_drafts),
            cmocka_unit_test(forced_drafts_change_no_text),
            cmocka_unit_test(outputs_as_prompts_are_exact_where_asked_for),
            cmocka_unit_test(greedy_texts_are_those_of_the_reference),
            cmocka_unit_test(drafts_are_accepted_as_in_the_reference),
            cmocka_unit_test(every_format_keeps_the_equalities),
        };

        return cmocka_run_group_tests(tests, set_up, tear_down);
}
