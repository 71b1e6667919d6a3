/* The life of requests and of the engine: ends, aborts, errors, drains, figures; and the thread between them. */
#include "base/json.h"
#include "model/core.h"
#include "rig.h"
#include <stdatomic.h>

static struct rig rig;
static const uint32_t prompt[40] = {3, 50, 60, 70, 80, 90, 100, 110, 120, 130, 140, 150, 160, 170, 180, 190, 200, 210,
    220, 230, 240, 250, 260, 270, 280, 290, 300, 310, 320, 330, 340, 350, 360, 370, 380, 390, 400, 410, 420, 430};

static int set_up(void **state) {
        rig = rig_new("v3-f32", 1, true);
        return 0;
}

static int tear_down(void **state) {
        rig_free(&rig);
        return 0;
}

static struct answer run_one(const struct engine_options *o, uint32_t count, const struct sampling_params *p) {
        struct engine *g = engine_of(o);
        struct answer a;

        submit(g, prompt, count, p, &a);
        run_to_end(g);
        assert_at_rest(g);
        engine_free(g);
        return a;
}

/* ---- ends ---------------------------------------------------------------------------------------------------------------------- */

static void max_tokens_and_the_model_length_end_with_length(void **state) {
        struct engine_options o = rig_options(&rig);
        struct sampling_params p = plain_sampling();
        struct answer a;

        p.max_tokens = 1;
        a = run_one(&o, 10, &p);
        assert_int_equal(a.count, 1);
        assert_int_equal(a.finish, FINISH_LENGTH);
        o.max_model_len = 40;
        p.max_tokens = 1000;
        for (o.draft_tokens = 0; o.draft_tokens < 3; o.draft_tokens++) {
                a = run_one(&o, 10, &p);
                assert_int_equal(a.count, 30);
                assert_int_equal(a.finish, FINISH_LENGTH);
                a = run_one(&o, 39, &p);
                assert_int_equal(a.count, 1);
        }
}

static void stop_tokens_end_where_they_come_and_are_told(void **state) {
        struct engine_options o = rig_options(&rig);
        struct sampling_params p = plain_sampling();
        struct answer all, a;
        uint32_t stop;

        all = run_one(&o, 10, &p);
        assert_int_equal(all.count, 16);
        stop = all.tokens[5];
        for (uint32_t i = 0; i < 5; i++)
                assert_int_not_equal(all.tokens[i], stop);
        p.stop_ids = &stop;
        p.stop_id_count = 1;
        for (o.draft_tokens = 0; o.draft_tokens < 4; o.draft_tokens++) { /* inside accepted drafts, too */
                a = run_one(&o, 10, &p);
                assert_int_equal(a.count, 6);
                assert_int_equal(a.finish, FINISH_STOP);
                assert_int_equal(a.stop_id, stop);
        }
        o.draft_tokens = 0;
        p.min_tokens = 8;
        a = run_one(&o, 10, &p); /* it is masked until then, so the text is another */
        assert_true(a.count >= 8);
        for (uint32_t i = 0; i < 7; i++)
                assert_int_not_equal(a.tokens[i], stop);
}

static void eos_ends_without_a_stop_token_and_further_ones_with_theirs(void **state) {
        struct engine_options o = rig_options(&rig);
        struct sampling_params p = plain_sampling();
        struct answer all = run_one(&o, 10, &p);

        for (int which = 0; which < 2; which++)
                for (int ignore = 0; ignore < 2; ignore++) {
                        struct engine *g = engine_of(&o);
                        int64_t eos[2] = {-1, -1};
                        struct engine_request q = {
                            .prompt = prompt, .prompt_count = 10, .sampling = p, .eos = eos, .eos_count = 2};
                        struct answer a = {.count = 0};
                        engine_id id;

                        eos[which] = all.tokens[5];
                        q.sampling.ignore_eos = ignore;
                        q.user = &a;
                        assert_int_equal(engine_submit(g, &q, &id), 0);
                        run_to_end(g);
                        assert_int_equal(a.count, ignore ? 16 : 6);
                        assert_int_equal(a.finish, ignore ? FINISH_LENGTH : FINISH_STOP);
                        assert_int_equal(a.stop_id, which && !ignore ? (int64_t)all.tokens[5] : -1);
                        engine_free(g);
                }
}

static void what_cannot_be_is_refused(void **state) {
        struct engine_options o = rig_options(&rig);
        struct sampling_params p = plain_sampling();
        struct engine_request q = {.prompt = prompt, .prompt_count = 4, .sampling = p};
        uint32_t beyond[] = {1, model_config(rig.model)->vocab}, *long_prompt;
        struct engine *g;
        engine_id id = 7;

        o.max_seqs = 2;
        o.max_waiting = 3;
        g = engine_of(&o);
        q.prompt_count = 0;
        assert_int_equal(engine_submit(g, &q, &id), -EINVAL);
        q.prompt = beyond;
        q.prompt_count = 2;
        assert_int_equal(engine_submit(g, &q, &id), -EINVAL);
        long_prompt = calloc(256, sizeof(*long_prompt));
        q.prompt = long_prompt;
        q.prompt_count = 256;
        assert_int_equal(engine_submit(g, &q, &id), -EINVAL);
        q.sampling.max_tokens = 0;
        q.prompt_count = 1;
        assert_int_equal(engine_submit(g, &q, &id), -EINVAL);
        q.sampling.max_tokens = 1;
        for (int i = 0; i < 5; i++)
                assert_int_equal(engine_submit(g, &q, &id), 0);
        assert_int_equal(engine_submit(g, &q, &id), -EAGAIN);
        assert_int_equal(id, 5);
        engine_free(g); /* with everything still queued */
        free(long_prompt);
}

static void impossible_options_are_refused_with_a_word(void **state) {
        const struct engine_options fine = rig_options(&rig);
        struct engine_options wrong[6];
        struct engine *g = NULL;

        for (size_t i = 0; i < 6; i++)
                wrong[i] = fine;
        wrong[0].kv_blocks = 15; /* 240 positions for 256 */
        wrong[1].max_seqs = 0;
        wrong[2].chunked_prefill = false;
        wrong[2].max_batched_tokens = 255;
        wrong[3].max_batched_tokens = 15;
        wrong[4].draft_tokens = DRAFTS_MAX + 1;
        wrong[5].prefill_first = true;
        for (size_t i = 0; i < 6; i++) {
                struct error e = {{0}};

                assert_int_equal(engine_new(&wrong[i], &g, &e), -EINVAL);
                assert_true(strlen(e.text) > 10);
                assert_null(g);
        }
}

static void memory_for_the_cache_is_used_as_far_as_it_is_of_use(void **state) {
        struct engine_options o = rig_options(&rig);
        size_t block = kv_cache_block_bytes(rig.model, KV_F32, 16);
        struct engine *g;

        o.kv_blocks = 0;
        o.kv_bytes = 100 * block + 1;
        g = engine_of(&o);
        assert_int_equal(engine_kv_blocks(g), 100);
        engine_free(g);
        o.kv_bytes = 100000 * block;
        g = engine_of(&o);
        assert_int_equal(engine_kv_blocks(g), 4 * 16 * 16); /* four times all sequences at full length */
        engine_free(g);
}

/* And what is prepared leaves no trace in what is answered. */
static void a_prepared_step_takes_no_memory_later(void **state) {
        struct answer answers[2][16];
        struct sampling_params p = plain_sampling();

        for (int prepared = 0; prepared < 2; prepared++) {
                struct rig r = rig_new("v3-f32", 1, true);
                struct engine_options o = rig_options(&r);
                size_t work, experts, logits;
                struct engine *g;

                o.draft_tokens = 1;
                g = engine_of(&o);
                if (prepared)
                        assert_int_equal(engine_prepare(g, 16), 0);
                work = r.model->work.bytes;
                experts = r.model->experts_work.bytes;
                logits = g->logits_capacity;
                for (uint32_t i = 0; i < 16; i++)
                        submit(g, &i, 1, &p, &answers[prepared][i]);
                run_to_end(g);
                assert_int_equal(prepared, r.model->work.bytes == work);
                assert_int_equal(prepared, r.model->experts_work.bytes == experts);
                assert_int_equal(prepared, g->logits_capacity == logits);
                assert_int_equal(engine_prepare(g, 0), -ERANGE);
                assert_int_equal(engine_prepare(g, 17), -ERANGE); /* max_seqs */
                assert_at_rest(g);
                engine_free(g);
                rig_free(&r);
        }
        for (size_t i = 0; i < 16; i++)
                assert_same_answer(&answers[1][i], &answers[0][i], "prepared", i);
}

/* 2,048 sequences may share the lists of one API request. */
static void what_is_long_in_a_request_is_not_copied(void **state) {
        static const uint32_t ids[] = {5, 6}, bad[] = {1, 5, 0};
        static const struct openai_bias bias[] = {{7, 1}};
        static const int64_t eos[] = {1};
        struct engine_options o = rig_options(&rig);
        struct sampling_params p = plain_sampling();
        struct engine_request q = {.prompt = prompt,
            .prompt_count = 4,
            .sampling = p,
            .bad_sequences = bad,
            .eos = eos,
            .eos_count = 1,
            .cache_salt = SLICE_LIT("salt")};
        struct engine *g = engine_of(&o);
        const struct request *inside;
        engine_id id;

        q.sampling.stop_ids = q.sampling.allowed_ids = ids;
        q.sampling.stop_id_count = q.sampling.allowed_count = 2;
        q.sampling.bias = bias;
        q.sampling.bias_count = 1;
        assert_int_equal(engine_submit(g, &q, &id), 0);
        inside = g->mailbox.first->request;
        assert_ptr_equal(inside->params.stop_ids, ids);
        assert_ptr_equal(inside->params.allowed_ids, ids);
        assert_ptr_equal(inside->params.bias, bias);
        assert_ptr_equal(inside->sampler.bad_sequences, bad);
        assert_ptr_equal(inside->sampler.eos, eos);
        assert_ptr_equal(inside->sequence.salt.ptr, q.cache_salt.ptr);
        assert_ptr_not_equal(inside->sequence.tokens, prompt); /* it grows */
        engine_free(g);
}

/* ---- aborts ---------------------------------------------------------------------------------------------------------------------- */

/* In the mailbox, waiting, in the middle of the prompt, decoding, preempted, ended. */
static void an_abort_in_any_state_ends_it_and_leaks_nothing(void **state) {
        for (unsigned steps = 0; steps < 40; steps++) {
                struct engine_options o = rig_options(&rig);
                struct sampling_params p = plain_sampling();
                struct answer a[4];
                engine_id ids[4];
                struct engine *g;

                o.max_seqs = 3;
                o.max_batched_tokens = 16;
                o.block_tokens = 4;
                o.kv_blocks = 66;
                o.max_model_len = 80;
                o.draft_tokens = steps % 3;
                p.max_tokens = 30;
                p.prompt_logprobs = steps % 2 ? 1 : -1;
                g = engine_of(&o);
                for (int i = 0; i < 4; i++)
                        ids[i] = submit(g, prompt, 40, &p, &a[i]);
                for (unsigned i = 0; i < steps; i++) {
                        engine_step(g);
                        take_outputs(g);
                }
                for (int i = 0; i < 4; i++) {
                        uint32_t before = a[i].count;
                        bool ended = a[i].finish != FINISH_NONE;
                        enum finish_reason reason = i % 2 ? FINISH_STOP : FINISH_ABORT;

                        engine_abort(g, ids[i], reason);
                        engine_step(g);
                        take_outputs(g);
                        if (ended)
                                continue;
                        assert_int_equal(a[i].finish, reason);
                        assert_int_equal(a[i].count, before);  /* at the step border: nothing more is computed */
                        engine_abort(g, ids[i], FINISH_ABORT); /* a second time is nothing */
                }
                run_to_end(g);
                assert_at_rest(g);
                engine_free(g);
        }
}

static void unknown_ids_are_ignored(void **state) {
        struct engine_options o = rig_options(&rig);
        struct engine *g = engine_of(&o);

        engine_abort(g, 1, FINISH_ABORT);
        engine_abort(g, 0, FINISH_ABORT);
        engine_abort(g, UINT64_MAX, FINISH_ABORT);
        assert_true(engine_step(g)); /* there was something to look at, */
        assert_null(engine_take(g)); /* but nothing to tell */
        assert_false(engine_step(g));
        assert_at_rest(g);
        engine_free(g);
}

/* ---- errors ---------------------------------------------------------------------------------------------------------------------- */

static int broken_experts(void *context, uint32_t layer, const float *x, const uint32_t *ids, const float *weights,
    size_t tokens, float *out, void (*overlap)(void *), void *overlap_context) {
        return -ECONNRESET;
}

static void a_step_that_fails_ends_its_requests_and_no_others(void **state) {
        static const struct experts_interface broken = {broken_experts, NULL};
        struct engine_options o = rig_options(&rig);
        struct sampling_params p = plain_sampling();
        struct answer a[3];
        struct engine *g;

        o.max_seqs = 2;
        g = engine_of(&o);
        for (int i = 0; i < 3; i++)
                submit(g, prompt, 10, &p, &a[i]);
        assert_true(engine_step(g));
        model_set_experts(rig.model, &broken);
        assert_true(engine_step(g));
        model_set_experts(rig.model, NULL);
        take_outputs(g);
        for (int i = 0; i < 2; i++) {
                assert_int_equal(a[i].finish, FINISH_ERROR);
                assert_int_equal(a[i].count, 1);
                assert_non_null(a[i].error);
        }
        assert_int_equal(a[2].finish, FINISH_NONE);
        run_to_end(g);
        assert_int_equal(a[2].finish, FINISH_LENGTH);
        assert_int_equal(a[2].count, 16);
        assert_at_rest(g);
        engine_free(g);
}

static void a_request_that_forbids_everything_ends_alone(void **state) {
        static const uint32_t allowed[] = {5}, bad[] = {1, 5, 0};
        struct engine_options o = rig_options(&rig);
        struct sampling_params p = plain_sampling();
        struct engine_request q = {.prompt = prompt, .prompt_count = 10, .sampling = p, .bad_sequences = bad};
        struct answer a = {.count = 0}, other;
        struct engine *g = engine_of(&o);
        engine_id id;

        q.sampling.allowed_ids = allowed;
        q.sampling.allowed_count = 1;
        q.user = &a;
        assert_int_equal(engine_submit(g, &q, &id), 0);
        submit(g, prompt, 10, &p, &other);
        run_to_end(g);
        assert_int_equal(a.finish, FINISH_ERROR);
        assert_non_null(a.error);
        assert_int_equal(a.count, 0);
        assert_int_equal(other.finish, FINISH_LENGTH);
        assert_at_rest(g);
        engine_free(g);
}

/* ---- what is told ----------------------------------------------------------------------------------------------------------------- */

static void log_probabilities_of_a_prompt_are_those_of_its_tokens_when_chosen(void **state) {
        struct engine_options o = rig_options(&rig);
        struct sampling_params p = plain_sampling();
        struct answer text, report;
        uint32_t both[26];
        struct engine *g = engine_of(&o);

        /* The rows differ in form, so not in every bit. */
        p.logprobs = 0;
        submit(g, prompt, 10, &p, &text);
        run_to_end(g);
        memcpy(both, prompt, 10 * sizeof(*both));
        memcpy(both + 10, text.tokens, 16 * sizeof(*both));
        p.prompt_logprobs = 0;
        p.max_tokens = 1;
        submit(g, both, 26, &p, &report);
        run_to_end(g);
        assert_int_equal(report.prompt_count, 26);
        for (uint32_t i = 0; i < 16; i++)
                assert_true(fabsf(report.prompt_logprobs[10 + i] - text.logprobs[i]) < 1e-4f);
        engine_free(g);
}

static void every_step_makes_an_output(void **state) {
        struct engine_options o = rig_options(&rig);
        struct sampling_params p = plain_sampling();

        assert_int_equal(run_one(&o, 10, &p).outputs, 16);
}

/* ---- figures ---------------------------------------------------------------------------------------------------------------------- */

static double sample(const struct buf *text, const char *name) {
        size_t at = slice_find_slice(buf_slice(text), slice_str(name), 0);
        double value = NAN;

        if (at < text->len)
                sscanf(text->ptr + at + strlen(name), " %lf", &value);
        return value;
}

static void figures_add_up(void **state) {
        struct engine_options o = rig_options(&rig);
        struct sampling_params p = plain_sampling();
        struct answer a[5];
        struct buf text = {0};
        struct engine *g;

        o.prefix_caching = true;
        o.max_waiting = 1;
        o.max_seqs = 5;
        o.draft_tokens = 1;
        g = engine_of(&o);
        for (int i = 0; i < 5; i++) {
                submit(g, prompt, 40, &p, &a[i]);
                if (i == 0)
                        run_to_end(g);
                engine_abort(g, 3, FINISH_ABORT);
        }
        run_to_end(g);
        engine_metrics(g, "model_name=\"m\",engine=\"0\"", &text);
        buf_add_char(&text, 0);
        assert_true(buf_ok(&text));
#define SAMPLE(name) sample(&text, name "{model_name=\"m\",engine=\"0\"}")
        assert_true(SAMPLE("\nvllm:num_requests_running") == 0);
        assert_true(SAMPLE("\nvllm:num_requests_waiting") == 0);
        assert_true(SAMPLE("\nvllm:kv_cache_usage_perc") == 0);
        assert_true(SAMPLE("\nvllm:prompt_tokens_total") == 4 * 40);
        assert_true(SAMPLE("\nvllm:generation_tokens_total") == 4 * 16);
        assert_true(SAMPLE("\nvllm:prefix_cache_queries_total") == 4 * 40);
        assert_true(SAMPLE("\nvllm:prefix_cache_hits_total") == 3 * 16); /* two blocks match, the last is left out */
        assert_true(SAMPLE("\nvllm:e2e_request_latency_seconds_count") == 5);
        assert_true(SAMPLE("\nvllm:time_to_first_token_seconds_count") == 4);
        assert_true(
            SAMPLE("\nvllm:spec_decode_num_accepted_tokens_total") <= SAMPLE("\nvllm:spec_decode_num_drafts_total"));
        assert_true(sample(&text,
                        "\nvllm:request_success_total{model_name=\"m\",engine=\"0\",finished_reason=\"length\"}") == 4);
        assert_true(sample(&text,
                        "\nvllm:request_success_total{model_name=\"m\",engine=\"0\",finished_reason=\"abort\"}") == 1);
#undef SAMPLE
        assert_at_rest(g);
        buf_free(&text);
        engine_free(g);
}

static bool is_known(yyjson_val *names, struct slice name, struct slice type) {
        size_t i, n;
        yyjson_val *v;

        yyjson_arr_foreach(names, i, n, v) if (slice_eq(json_get_slice(v, "name"), name)) return slice_eq(
            json_get_slice(v, "type"), type);
        return false;
}

/* Every metric is one of vLLM's, of its type; and what is missing is what metrics.c says is left out. */
static void metrics_have_the_names_of_vllm(void **state) {
        struct engine_options o = rig_options(&rig);
        struct engine *g = engine_of(&o);
        struct buf text = {0};
        struct slice rest, line;
        struct error e = {{0}};
        yyjson_doc *doc;
        char path[4096];
        unsigned known = 0, wanted = 0;
        size_t i, n;
        yyjson_val *names, *v;

        snprintf(path, sizeof(path), "%s/tests/data/engine/metric-names.json", getenv("BATON_SOURCE"));
        assert_int_equal(json_parse_file(path, 1 << 20, &doc, &e), 0);
        names = yyjson_doc_get_root(doc);
        engine_metrics(g, "", &text);
        rest = buf_slice(&text);
        while (slice_split(&rest, '\n', &line)) {
                struct slice name;

                if (!slice_starts(line, SLICE_LIT("# TYPE ")))
                        continue;
                line = slice_sub(line, 7, line.len);
                assert_true(slice_split(&line, ' ', &name));
                if (!is_known(names, name, line))
                        fail_msg("%.*s is not vLLM's", SLICE_ARG(name));
                known++;
        }
        yyjson_arr_foreach(names, i, n, v) {
                struct slice name = json_get_slice(v, "name");

                wanted += slice_starts(name, SLICE_LIT("vllm:")) && !json_get_bool(v, "pd_only", false) &&
                          !slice_starts(name, SLICE_LIT("vllm:estimated_")) &&
                          !slice_starts(name, SLICE_LIT("vllm:mm_"));
        }
        assert_int_equal(known, wanted);
        yyjson_doc_free(doc);
        buf_free(&text);
        engine_free(g);
}

/* ---- the thread -------------------------------------------------------------------------------------------------------------------- */

/* The front of these tests sleeps on a condition until it is woken. */
struct front {
        pthread_mutex_t lock;
        pthread_cond_t woken;
        bool news;
};

static void wake(void *context) {
        struct front *f = context;

        pthread_mutex_lock(&f->lock);
        f->news = true;
        pthread_cond_signal(&f->woken);
        pthread_mutex_unlock(&f->lock);
}

static void await_news(struct front *f) {
        pthread_mutex_lock(&f->lock);
        while (!f->news)
                pthread_cond_wait(&f->woken, &f->lock);
        f->news = false;
        pthread_mutex_unlock(&f->lock);
}

static struct engine *started(struct engine_options *o, struct front *f) {
        struct engine *g;

        *f = (struct front){.lock = PTHREAD_MUTEX_INITIALIZER, .woken = PTHREAD_COND_INITIALIZER};
        o->wake = wake;
        o->wake_context = f;
        g = engine_of(o);
        assert_int_equal(engine_start(g), 0);
        return g;
}

static void a_front_gets_every_answer_while_it_submits_aborts_and_looks(void **state) {
        enum { COUNT = 60 };
        struct engine_options o = rig_options(&rig);
        struct sampling_params p = plain_sampling();
        struct answer *answers = calloc(COUNT, sizeof(*answers)), alone;
        struct buf text = {0};
        struct front f;
        struct rng r;
        struct engine *g;
        unsigned ended = 0;

        o.max_seqs = 6;
        o.max_batched_tokens = 64;
        o.prefix_caching = true;
        o.block_tokens = 4;
        o.kv_blocks = 70;
        o.draft_tokens = 1;
        p.max_tokens = 8;
        alone = run_one(&o, 12, &p);
        g = started(&o, &f);
        rng_seed(&r, 9);
        for (unsigned i = 0; i < COUNT; i++) {
                engine_id id = submit(g, prompt, 12, &p, &answers[i]);
                struct engine_load load;

                if (i % 7 == 3)
                        engine_abort(g, id, FINISH_ABORT);
                if (i % 13 == 0) {
                        buf_reset(&text);
                        engine_metrics(g, "", &text);
                        engine_load(g, &load);
                        assert_true(load.healthy);
                }
                if (i % 17 == 16)
                        assert_int_equal(engine_reset_prefix_cache(g, NULL), 0); /* answers that nobody takes */
                if (i % 5 == 4)
                        take_outputs(g);
        }
        for (;;) {
                ended = 0;
                take_outputs(g);
                for (unsigned i = 0; i < COUNT; i++)
                        ended += answers[i].finish != FINISH_NONE;
                if (ended == COUNT)
                        break;
                await_news(&f);
        }
        for (unsigned i = 0; i < COUNT; i++) {
                if (i % 7 != 3)
                        assert_int_equal(answers[i].finish, FINISH_LENGTH);
                assert_memory_equal(answers[i].tokens, alone.tokens, answers[i].count * sizeof(uint32_t));
        }
        engine_stop(g, 60000);
        take_outputs(g);
        assert_at_rest(g);
        buf_free(&text);
        engine_free(g);
        free(answers);
}

static void stopping_lets_requests_end_and_takes_no_new_ones(void **state) {
        struct engine_options o = rig_options(&rig);
        struct sampling_params p = plain_sampling();
        struct engine_request q = {.prompt = prompt, .prompt_count = 4, .sampling = p};
        struct engine_load load;
        struct answer a[5];
        struct front f;
        struct engine *g = started(&o, &f);
        engine_id id;

        for (int i = 0; i < 5; i++)
                submit(g, prompt, 10, &p, &a[i]);
        engine_stop(g, 600000);
        take_outputs(g);
        for (int i = 0; i < 5; i++) {
                assert_int_equal(a[i].finish, FINISH_LENGTH);
                assert_int_equal(a[i].count, 16);
        }
        assert_int_equal(engine_submit(g, &q, &id), -ESHUTDOWN);
        engine_abort(g, 1, FINISH_ABORT);
        engine_load(g, &load);
        assert_false(load.healthy);
        assert_int_equal(engine_reset_prefix_cache(g, NULL), -ESHUTDOWN);
        assert_at_rest(g);
        engine_free(g);
}

static void stopping_without_patience_aborts(void **state) {
        struct engine_options o = rig_options(&rig);
        struct sampling_params p = plain_sampling();
        struct answer a[8];
        struct front f;
        struct engine *g;

        p.max_tokens = 240;
        o.max_seqs = 4;
        g = started(&o, &f);
        for (int i = 0; i < 8; i++)
                submit(g, prompt, 10, &p, &a[i]);
        engine_stop(g, 0);
        take_outputs(g);
        for (int i = 0; i < 8; i++)
                assert_true(a[i].finish == FINISH_ABORT || a[i].count == 240);
        assert_at_rest(g);
        engine_free(g);
}

static void an_idle_engine_stops_at_once_and_one_that_never_ran_can_be_freed(void **state) {
        struct engine_options o = rig_options(&rig);
        struct front f;
        struct engine *g = started(&o, &f);

        engine_stop(g, 600000);
        engine_stop(g, 600000);
        engine_free(g);
        engine_free(engine_of(&o));
        engine_free(NULL);
}

static bool reset_cache(struct engine *g, struct front *f) {
        struct engine_reset *reset;
        bool done;

        assert_int_equal(engine_reset_prefix_cache(g, f), 0);
        while (!(reset = engine_take_resets(g)))
                await_news(f);
        assert_ptr_equal(reset->user, f);
        assert_null(reset->next);
        done = reset->done;
        free(reset);
        return done;
}

static void a_reset_forgets_prefixes_when_nothing_uses_them(void **state) {
        struct engine_options o = rig_options(&rig);
        struct sampling_params p = plain_sampling();
        struct answer a;
        struct front f;
        struct engine *g;

        o.prefix_caching = true;
        p.max_tokens = 1;
        g = started(&o, &f);
        for (int round = 0; round < 3; round++) {
                submit(g, prompt, 40, &p, &a);
                while (a.finish == FINISH_NONE) {
                        await_news(&f);
                        take_outputs(g);
                }
                assert_int_equal(a.cached, round == 1 ? 32 : 0);
                if (round == 1)
                        assert_true(reset_cache(g, &f));
        }
        engine_stop(g, 600000);
        engine_free(g);
}

int main(void) {
        const struct CMUnitTest tests[] = {
            cmocka_unit_test(max_tokens_and_the_model_length_end_with_length),
            cmocka_unit_test(stop_tokens_end_where_they_come_and_are_told),
            cmocka_unit_test(eos_ends_without_a_stop_token_and_further_ones_with_theirs),
            cmocka_unit_test(what_cannot_be_is_refused),
            cmocka_unit_test(impossible_options_are_refused_with_a_word),
            cmocka_unit_test(memory_for_the_cache_is_used_as_far_as_it_is_of_use),
            cmocka_unit_test(a_prepared_step_takes_no_memory_later),
            cmocka_unit_test(what_is_long_in_a_request_is_not_copied),
            cmocka_unit_test(an_abort_in_any_state_ends_it_and_leaks_nothing),
            cmocka_unit_test(unknown_ids_are_ignored),
            cmocka_unit_test(a_step_that_fails_ends_its_requests_and_no_others),
            cmocka_unit_test(a_request_that_forbids_everything_ends_alone),
            cmocka_unit_test(log_probabilities_of_a_prompt_are_those_of_its_tokens_when_chosen),
            cmocka_unit_test(every_step_makes_an_output),
            cmocka_unit_test(figures_add_up),
            cmocka_unit_test(metrics_have_the_names_of_vllm),
            cmocka_unit_test(a_front_gets_every_answer_while_it_submits_aborts_and_looks),
            cmocka_unit_test(stopping_lets_requests_end_and_takes_no_new_ones),
            cmocka_unit_test(stopping_without_patience_aborts),
            cmocka_unit_test(an_idle_engine_stops_at_once_and_one_that_never_ran_can_be_freed),
            cmocka_unit_test(a_reset_forgets_prefixes_when_nothing_uses_them),
        };

        return cmocka_run_group_tests(tests, set_up, tear_down);
}
