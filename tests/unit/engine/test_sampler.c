/* The sampler against distributions of an independent implementation (tests/data/engine/sampling.*), and its laws. */
#include "base/file.h"
#include "base/json.h"
#include "base/rng.h"
#include "engine/sampler.h"
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

static const struct sampling_params plain = {
    .temperature = 1, .top_p = 1, .repetition_penalty = 1, .logprobs = -1, .prompt_logprobs = -1, .max_tokens = 16};

/* ---- fixtures --------------------------------------------------------------------------------------------------------------- */

struct fixture {
        yyjson_doc *cases, *header;
        struct buf bytes;
        const char *data;
        uint32_t vocab;
        double tolerance;
};

static void load(struct fixture *f) {
        const char *root = getenv("BATON_SOURCE");
        char path[4096];
        struct error e = {{0}};
        uint64_t length;

        assert_non_null(root);
        memset(f, 0, sizeof(*f));
        snprintf(path, sizeof(path), "%s/tests/data/engine/sampling.json", root);
        assert_int_equal(json_parse_file(path, 1 << 20, &f->cases, &e), 0);
        snprintf(path, sizeof(path), "%s/tests/data/engine/sampling.safetensors", root);
        assert_int_equal(file_read_whole(path, 1 << 24, &f->bytes, &e), 0);
        memcpy(&length, f->bytes.ptr, sizeof(length));
        assert_int_equal(json_parse(slice_of(f->bytes.ptr + 8, length), &f->header, &e), 0);
        f->data = f->bytes.ptr + 8 + length;
        f->vocab = (uint32_t)json_get_i64(yyjson_doc_get_root(f->cases), "vocab", 0);
        f->tolerance = json_get_double(yyjson_doc_get_root(f->cases), "probs_abs_tolerance", 0);
        assert_true(f->vocab > 0 && f->tolerance > 0);
}

static void unload(struct fixture *f) {
        yyjson_doc_free(f->cases);
        yyjson_doc_free(f->header);
        buf_free(&f->bytes);
}

/* Tensor NAME of a case; NULL when there is none. */
static const void *tensor(const struct fixture *f, int64_t id, const char *name, size_t *ret_bytes) {
        char key[64];
        yyjson_val *offsets;
        size_t begin;

        snprintf(key, sizeof(key), "case%d.%s", (int)id, name);
        offsets = json_get(json_get(yyjson_doc_get_root(f->header), key), "data_offsets");
        if (!offsets)
                return NULL;
        begin = yyjson_get_uint(yyjson_arr_get(offsets, 0));
        if (ret_bytes)
                *ret_bytes = yyjson_get_uint(yyjson_arr_get(offsets, 1)) - begin;
        return f->data + begin;
}

/* Everything one case needs, ready to sample. */
struct setting {
        struct sampling_params params;
        struct sampler_state state;
        uint32_t tokens[512], prompt, count, allowed[64], stops[16];
        struct openai_bias bias[64];
        float *logits;
};

static void read_ids(yyjson_val *list, uint32_t *ids, uint32_t *ret_count) {
        size_t i, n;
        yyjson_val *v;

        yyjson_arr_foreach(list, i, n, v) ids[i] = (uint32_t)yyjson_get_uint(v);
        *ret_count = (uint32_t)yyjson_arr_size(list);
}

static void read_params(struct setting *s, yyjson_val *p) {
        size_t i, n;
        yyjson_val *key, *value;

        s->params = plain;
        s->params.temperature = (float)json_get_double(p, "temperature", 1);
        s->params.top_p = (float)json_get_double(p, "top_p", 1);
        s->params.min_p = (float)json_get_double(p, "min_p", 0);
        s->params.top_k = (int32_t)json_get_i64(p, "top_k", 0);
        s->params.repetition_penalty = (float)json_get_double(p, "repetition_penalty", 1);
        s->params.presence_penalty = (float)json_get_double(p, "presence_penalty", 0);
        s->params.frequency_penalty = (float)json_get_double(p, "frequency_penalty", 0);
        s->params.min_tokens = (uint32_t)json_get_i64(p, "min_tokens", 0);
        if (json_get(p, "allowed_token_ids")) {
                read_ids(json_get(p, "allowed_token_ids"), s->allowed, &s->params.allowed_count);
                s->params.allowed_ids = s->allowed;
        }
        read_ids(json_get(p, "stop_token_ids"), s->stops, &s->params.stop_id_count);
        s->params.stop_ids = s->stops;
        yyjson_obj_foreach(json_get(p, "logit_bias"), i, n, key, value) s->bias[i] =
            (struct openai_bias){(uint32_t)strtoul(yyjson_get_str(key), NULL, 10), (float)yyjson_get_num(value)};
        s->params.bias = s->bias;
        s->params.bias_count = (uint32_t)yyjson_obj_size(json_get(p, "logit_bias"));
}

static void set_up(const struct fixture *f, yyjson_val *c, struct setting *s) {
        int64_t id = json_get_i64(c, "id", -1);
        size_t bytes = 0;
        const void *at;

        memset(s, 0, sizeof(*s));
        read_params(s, json_get(c, "params"));
        at = tensor(f, id, "prompt", &bytes);
        if (at)
                memcpy(s->tokens, at, bytes);
        s->prompt = at ? (uint32_t)(bytes / 4) : 0;
        at = tensor(f, id, "output", &bytes);
        if (at)
                memcpy(s->tokens + s->prompt, at, bytes);
        s->count = s->prompt + (at ? (uint32_t)(bytes / 4) : 0);
        s->logits = malloc(f->vocab * sizeof(float)); /* aligned, unlike the file */
        memcpy(s->logits, tensor(f, id, "logits", NULL), f->vocab * sizeof(float));
        s->state.params = &s->params;
        assert_int_equal(sampler_init(&s->state, s->tokens, s->prompt, 1), 0);
        for (uint32_t i = s->prompt; i < s->count; i++)
                assert_int_equal(sampler_count(&s->state, s->tokens[i]), 0);
}

static void tear_down(struct setting *s) {
        sampler_done(&s->state);
        free(s->logits);
}

static void distribution_of(struct setting *s, struct sampler_scratch *scratch, struct distribution *d) {
        assert_int_equal(
            sampler_distribution(&s->state, scratch, s->logits, s->tokens, s->count, s->count - s->prompt, d), 0);
}

static double probability(const struct distribution *d, uint32_t id) {
        for (uint32_t i = 0; i < d->count; i++)
                if (d->ids[i] == id)
                        return d->weights[i] / d->total;
        return 0;
}

static double number(const void *doubles, size_t i) {
        double v;

        memcpy(&v, (const char *)doubles + i * sizeof(v), sizeof(v));
        return v;
}

static void every_case_has_its_distribution(void **state) {
        struct fixture f;
        struct sampler_scratch scratch;
        size_t i, n;
        yyjson_val *c;

        load(&f);
        assert_int_equal(sampler_scratch_init(&scratch, f.vocab), 0);
        yyjson_arr_foreach(json_get(yyjson_doc_get_root(f.cases), "cases"), i, n, c) {
                const void *expected = tensor(&f, json_get_i64(c, "id", -1), "probs", NULL);
                struct setting s;
                struct distribution d;

                set_up(&f, c, &s);
                distribution_of(&s, &scratch, &d);
                assert_int_equal(d.count, json_get_i64(c, "kept", -1));
                for (uint32_t v = 0; v < f.vocab; v++)
                        if (fabs(probability(&d, v) - number(expected, v)) > f.tolerance)
                                fail_msg("%s: id %u has %.9f instead of %.9f", yyjson_get_str(json_get(c, "name")), v,
                                    probability(&d, v), number(expected, v));
                for (uint32_t k = 1; k < d.count; k++)
                        assert_true(d.ids[k] > d.ids[k - 1]);
                tear_down(&s);
        }
        assert_int_equal(n, 26);
        sampler_scratch_free(&scratch);
        unload(&f);
}

/* A draft d is accepted when the draw gives d: with P(d); what comes out otherwise is P without d. */
static void drawing_accepts_drafts_as_speculative_sampling_does(void **state) {
        struct fixture f;
        struct sampler_scratch scratch;
        size_t i, n;
        yyjson_val *c;
        unsigned checked = 0;

        load(&f);
        assert_int_equal(sampler_scratch_init(&scratch, f.vocab), 0);
        yyjson_arr_foreach(json_get(yyjson_doc_get_root(f.cases), "cases"), i, n, c) {
                const void *residual = tensor(&f, json_get_i64(c, "id", -1), "residual", NULL);
                uint32_t draft = (uint32_t)json_get_i64(c, "draft", 0);
                struct setting s;
                struct distribution d;
                double accept;

                if (!residual)
                        continue;
                set_up(&f, c, &s);
                distribution_of(&s, &scratch, &d);
                accept = probability(&d, draft);
                assert_true(fabs(accept - json_get_double(c, "draft_accept_probability", -1)) < f.tolerance);
                for (uint32_t v = 0; v < f.vocab; v++)
                        if (v != draft)
                                assert_true(
                                    fabs(probability(&d, v) / (1 - accept) - number(residual, v)) < 2 * f.tolerance);
                        else
                                assert_true(number(residual, v) == 0);
                tear_down(&s);
                checked++;
        }
        assert_true(checked > 10);
        sampler_scratch_free(&scratch);
        unload(&f);
}

static void logprobs_are_of_the_raw_logits(void **state) {
        struct fixture f;
        size_t i, n;
        yyjson_val *c;

        load(&f);
        yyjson_arr_foreach(json_get(yyjson_doc_get_root(f.cases), "cases"), i, n, c) {
                const void *expected = tensor(&f, json_get_i64(c, "id", -1), "raw_logprobs", NULL);
                struct openai_logprob top[20];
                struct setting s;

                set_up(&f, c, &s);
                for (uint32_t id = 0; id < f.vocab; id++) {
                        uint32_t rank, at_least = 0;
                        float logprob;

                        sampler_logprobs(s.logits, f.vocab, id, 20, &logprob, &rank, top);
                        assert_true(fabs(logprob - number(expected, id)) < 1e-5);
                        for (uint32_t v = 0; v < f.vocab; v++)
                                at_least += s.logits[v] >= s.logits[id];
                        assert_int_equal(rank, at_least);
                }
                for (uint32_t k = 0; k < 20; k++) {
                        assert_true(fabs(top[k].logprob - number(expected, top[k].id)) < 1e-5);
                        assert_int_equal(top[k].rank, k + 1);
                        if (k)
                                assert_true(
                                    s.logits[top[k].id] < s.logits[top[k - 1].id] ||
                                    (s.logits[top[k].id] == s.logits[top[k - 1].id] && top[k].id > top[k - 1].id));
                }
                tear_down(&s);
        }
        unload(&f);
}

/* ---- laws on random rows ------------------------------------------------------------------------------------------------------ */

enum { VOCAB = 400 };

static void random_row(struct rng *r, float *x, uint32_t vocab) {
        for (uint32_t i = 0; i < vocab; i++)
                x[i] = (float)(rng_unit(r) * 12 - 6);
        for (uint32_t i = 0; i < vocab / 8; i++) /* ties */
                x[rng_below(r, vocab)] = x[rng_below(r, vocab)];
}

static int by_logit(const void *a, const void *b, void *logits) {
        float x = ((float *)logits)[*(const uint32_t *)a], y = ((float *)logits)[*(const uint32_t *)b];

        return x > y ? -1 : x < y ? 1 : *(const uint32_t *)a < *(const uint32_t *)b ? -1 : 1;
}

/* The filters as their definitions say, with a full sort. */
static uint32_t kept_by_definition(const float *x, uint32_t vocab, const struct sampling_params *p, bool *kept) {
        uint32_t *order = malloc(vocab * sizeof(*order)), n = 0, count = 0;
        double total = 0, before = 0;

        for (uint32_t i = 0; i < vocab; i++)
                order[i] = i;
        qsort_r(order, vocab, sizeof(*order), by_logit, (void *)(uintptr_t)x);
        for (n = 0; n < vocab; n++)
                if (exp(((double)x[order[n]] - x[order[0]]) / p->temperature) < p->min_p ||
                    (p->top_k > 0 && n >= (uint32_t)p->top_k && x[order[n]] < x[order[p->top_k - 1]]))
                        break;
        for (uint32_t i = 0; i < n; i++)
                total += exp(((double)x[order[i]] - x[order[0]]) / p->temperature);
        memset(kept, 0, vocab * sizeof(*kept));
        for (uint32_t i = 0; i < n && (i == 0 || p->top_p == 1 || before < p->top_p * total * (1 - 1e-9));
             i++, count++) {
                kept[order[i]] = true;
                before += exp(((double)x[order[i]] - x[order[0]]) / p->temperature);
        }
        free(order);
        return count;
}

static void selection_keeps_what_sorting_keeps(void **state) {
        struct sampler_scratch scratch;
        struct rng r;
        static float x[VOCAB];
        static bool kept[VOCAB];

        rng_seed(&r, 7);
        assert_int_equal(sampler_scratch_init(&scratch, VOCAB), 0);
        for (int round = 0; round < 2000; round++) {
                struct sampling_params p = plain;
                struct sampler_state s = {.params = &p};
                struct distribution d;
                uint32_t expected;

                random_row(&r, x, VOCAB);
                p.temperature = (float)(0.2 + rng_unit(&r) * 2);
                p.top_p = rng_below(&r, 3) ? (float)(rng_unit(&r) * 0.999) : 1;
                p.top_k = rng_below(&r, 2) ? (int32_t)rng_below(&r, VOCAB + 50) : -1;
                p.min_p = rng_below(&r, 2) ? (float)(rng_unit(&r) * 0.3) : 0;
                expected = kept_by_definition(x, VOCAB, &p, kept);
                assert_int_equal(sampler_distribution(&s, &scratch, x, NULL, 0, 0, &d), 0);
                /* A sum may fall on the cut within rounding: one candidate more or less is right then. */
                assert_true(d.count + 1 >= expected && d.count <= expected + 1);
                if (d.count == expected)
                        for (uint32_t i = 0; i < d.count; i++)
                                assert_true(kept[d.ids[i]]);
        }
        sampler_scratch_free(&scratch);
}

/* With 19 degrees of freedom chi-square exceeds 43.8 once in a thousand; the seed is fixed. */
static void draws_follow_the_distribution(void **state) {
        enum { SMALL = 20, DRAWS = 40000 };
        struct sampler_scratch scratch;
        struct rng r;
        float x[SMALL];
        uint32_t tokens[1] = {0};

        rng_seed(&r, 11);
        assert_int_equal(sampler_scratch_init(&scratch, SMALL), 0);
        for (int64_t seed = 0; seed < 5; seed++) {
                struct sampling_params p = plain;
                struct sampler_state s = {.params = &p};
                struct distribution d;
                unsigned counts[SMALL] = {0};
                double expected[SMALL], chi = 0;

                for (uint32_t i = 0; i < SMALL; i++)
                        x[i] = (float)(rng_unit(&r) * 3);
                assert_int_equal(sampler_distribution(&s, &scratch, x, tokens, 0, 0, &d), 0);
                for (uint32_t i = 0; i < SMALL; i++)
                        expected[i] = DRAWS * probability(&d, i);
                assert_int_equal(sampler_init(&s, tokens, 0, (uint64_t)seed), 0);
                for (size_t position = 0; position < DRAWS; position++) { /* one sequence, all its positions */
                        uint32_t token;

                        assert_int_equal(sampler_next(&s, &scratch, x, tokens, position, 0, &token), 0);
                        counts[token]++;
                }
                for (uint32_t i = 0; i < SMALL; i++)
                        chi += (counts[i] - expected[i]) * (counts[i] - expected[i]) / expected[i];
                assert_true(chi < 43.8);

                memset(counts, 0, sizeof(counts));
                chi = 0;
                for (uint64_t other = 0; other < DRAWS;
                     other++) { /* the first token under consecutive seeds, as n > 1 has them */
                        uint32_t token;

                        assert_int_equal(sampler_init(&s, tokens, 0, other + 1000000 * (uint64_t)seed), 0);
                        assert_int_equal(sampler_next(&s, &scratch, x, tokens, 5, 0, &token), 0);
                        counts[token]++;
                }
                for (uint32_t i = 0; i < SMALL; i++)
                        chi += (counts[i] - expected[i]) * (counts[i] - expected[i]) / expected[i];
                assert_true(chi < 43.8);
        }
        sampler_scratch_free(&scratch);
}

static void the_same_seed_and_position_draw_the_same_token(void **state) {
        struct sampler_scratch scratch;
        struct rng r;
        static float x[VOCAB];
        struct sampling_params p = plain;
        uint32_t tokens[64] = {0}, first[64], differ = 0;

        rng_seed(&r, 3);
        random_row(&r, x, VOCAB);
        assert_int_equal(sampler_scratch_init(&scratch, VOCAB), 0);
        p.has_seed = true;
        for (int64_t seed = 0; seed < 3; seed++) {
                struct sampler_state s = {.params = &p};

                p.seed = seed == 1 ? 42 : 43;
                assert_int_equal(sampler_init(&s, tokens, 0, (uint64_t)seed /* not used */), 0);
                for (size_t at = 64; at-- > 0;) { /* in any order */
                        uint32_t token;

                        assert_int_equal(sampler_next(&s, &scratch, x, tokens, at, 0, &token), 0);
                        if (seed == 0)
                                first[at] = token;
                        else if (seed == 1)
                                differ += token != first[at];
                        else
                                assert_int_equal(token, first[at]);
                }
        }
        assert_true(differ > 40);
        sampler_scratch_free(&scratch);
}

/* ---- what a request forbids ------------------------------------------------------------------------------------------------------ */

static uint32_t next(struct sampler_state *s, struct sampler_scratch *scratch, const float *x, const uint32_t *tokens,
    size_t count, size_t outputs) {
        uint32_t token = UINT32_MAX;

        assert_int_equal(sampler_next(s, scratch, x, tokens, count, outputs, &token), 0);
        return token;
}

static void bad_words_end_where_they_would_be_completed(void **state) {
        static const float x[6] = {0, 1, 2, 3, 4, 5};
        static const uint32_t bad[] = {1, 5, 2, 3, 4, 3, 1, 2, 4, 0};
        const uint32_t tokens[] = {3, 1, 2, 3};
        struct sampling_params p = plain;
        struct sampler_state s = {.params = &p, .bad_sequences = bad};
        struct sampler_scratch scratch;

        p.temperature = 0;
        assert_int_equal(sampler_scratch_init(&scratch, 6), 0);
        assert_int_equal(next(&s, &scratch, x, tokens, 3, 2), 3); /* 1 2 was written: no 4; never 5 */
        assert_int_equal(next(&s, &scratch, x, tokens, 4, 3), 3); /* 3 was written: no 4 */
        assert_int_equal(next(&s, &scratch, x, tokens, 1, 0), 4); /* 3 stands in the prompt: that does not count */
        assert_int_equal(next(&s, &scratch, x, tokens, 3, 1), 4); /* nor does 1 */
        sampler_scratch_free(&scratch);
}

static void ends_come_only_after_min_tokens(void **state) {
        static const float x[4] = {0, 1, 2, 3};
        static const uint32_t stops[] = {3};
        static const int64_t eos[] = {2, -1};
        struct sampling_params p = plain;
        struct sampler_state s = {.params = &p, .eos = eos, .eos_count = 2};
        struct sampler_scratch scratch;
        const uint32_t tokens[4] = {0};

        p.temperature = 0;
        p.min_tokens = 2;
        p.stop_ids = stops;
        p.stop_id_count = 1;
        assert_int_equal(sampler_scratch_init(&scratch, 4), 0);
        assert_int_equal(next(&s, &scratch, x, tokens, 1, 0), 1);
        assert_int_equal(next(&s, &scratch, x, tokens, 2, 1), 1);
        assert_int_equal(next(&s, &scratch, x, tokens, 3, 2), 3);
        sampler_scratch_free(&scratch);
}

static void penalties_follow_the_output_as_it_grows(void **state) {
        static const float x[4] = {1, 0.9f, 0.8f, 0.1f};
        struct sampling_params p = plain;
        struct sampler_state s = {.params = &p};
        struct sampler_scratch scratch;
        const uint32_t tokens[1] = {0};

        p.temperature = 0;
        p.presence_penalty = 0.5f;
        assert_int_equal(sampler_scratch_init(&scratch, 4), 0);
        assert_int_equal(sampler_init(&s, tokens, 1, 0), 0); /* the prompt plays no part in presence */
        for (uint32_t i = 0; i < 3; i++) {
                uint32_t token = next(&s, &scratch, x, tokens, 1, i);

                assert_int_equal(token, i);
                assert_int_equal(sampler_count(&s, token), 0);
        }
        assert_int_equal(next(&s, &scratch, x, tokens, 1, 3), 0);
        sampler_done(&s);
        sampler_scratch_free(&scratch);
}

static void many_distinct_tokens_are_all_remembered(void **state) {
        struct sampling_params p = plain;
        struct sampler_state s = {.params = &p};
        struct sampler_scratch scratch;
        struct distribution d;
        uint32_t *tokens = malloc(5000 * sizeof(*tokens));
        float *x = malloc(5001 * sizeof(*x));

        for (uint32_t i = 0; i < 5000; i++)
                tokens[i] = i;
        for (uint32_t i = 0; i < 5001; i++)
                x[i] = 1;
        p.repetition_penalty = 2;
        assert_int_equal(sampler_init(&s, tokens, 2500, 0), 0);
        for (uint32_t i = 2500; i < 5000; i++)
                assert_int_equal(sampler_count(&s, i), 0);
        assert_int_equal(sampler_scratch_init(&scratch, 5001), 0);
        assert_int_equal(sampler_distribution(&s, &scratch, x, tokens, 5000, 2500, &d), 0);
        assert_int_equal(d.count, 5001);
        for (uint32_t i = 0; i < 5000; i++)
                assert_true(d.weights[i] == d.weights[0]);
        assert_true(d.weights[5000] > 1.5f * d.weights[0]);
        sampler_done(&s);
        sampler_scratch_free(&scratch);
        free(tokens);
        free(x);
}

static void rows_without_a_choice_are_told_apart(void **state) {
        static const float all_nan[4] = {NAN, NAN, NAN, NAN}, infinite[4] = {0, INFINITY, 0, 0}, fine[4] = {0};
        static const uint32_t none[] = {9}; /* not in the vocabulary */
        struct sampling_params p = plain;
        struct sampler_state s = {.params = &p};
        struct sampler_scratch scratch;
        uint32_t token = 77;

        assert_int_equal(sampler_scratch_init(&scratch, 4), 0);
        for (int greedy = 0; greedy < 2; greedy++) {
                p.temperature = greedy ? 0 : 1;
                p.allowed_ids = NULL;
                assert_int_equal(sampler_next(&s, &scratch, all_nan, NULL, 0, 0, &token), -EDOM);
                assert_int_equal(sampler_next(&s, &scratch, infinite, NULL, 0, 0, &token), -EDOM);
                p.allowed_ids = none;
                p.allowed_count = 1;
                assert_int_equal(sampler_next(&s, &scratch, fine, NULL, 0, 0, &token), -ENODATA);
        }
        assert_int_equal(token, 77);
        sampler_scratch_free(&scratch);
}

static void the_whole_vocabulary_comes_out_sorted(void **state) {
        static float x[VOCAB];
        static struct openai_logprob top[VOCAB];
        struct rng r;
        float logprob;
        uint32_t rank;
        bool seen[VOCAB] = {false};

        rng_seed(&r, 5);
        random_row(&r, x, VOCAB);
        x[17] = -INFINITY;
        sampler_logprobs(x, VOCAB, 17, VOCAB + 5, &logprob, &rank, top);
        assert_true(isinf(logprob) && logprob < 0);
        assert_int_equal(rank, VOCAB);
        for (uint32_t i = 0; i < VOCAB; i++) {
                assert_false(seen[top[i].id]);
                seen[top[i].id] = true;
                if (i)
                        assert_true(x[top[i].id] < x[top[i - 1].id] ||
                                    (x[top[i].id] == x[top[i - 1].id] && top[i].id > top[i - 1].id));
        }
}

int main(void) {
        const struct CMUnitTest tests[] = {
            cmocka_unit_test(every_case_has_its_distribution),
            cmocka_unit_test(drawing_accepts_drafts_as_speculative_sampling_does),
            cmocka_unit_test(logprobs_are_of_the_raw_logits),
            cmocka_unit_test(selection_keeps_what_sorting_keeps),
            cmocka_unit_test(draws_follow_the_distribution),
            cmocka_unit_test(the_same_seed_and_position_draw_the_same_token),
            cmocka_unit_test(bad_words_end_where_they_would_be_completed),
            cmocka_unit_test(ends_come_only_after_min_tokens),
            cmocka_unit_test(penalties_follow_the_output_as_it_grows),
            cmocka_unit_test(many_distinct_tokens_are_all_remembered),
            cmocka_unit_test(rows_without_a_choice_are_told_apart),
            cmocka_unit_test(the_whole_vocabulary_comes_out_sorted),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
