/* test_tiny.c - the trained model answers as its training code says it does. */
#include "base/file.h"
#include "fixture.h"

#define ROWS_MAX 512u

struct tiny {
        struct compute *compute;
        struct model *model;
        struct kv_cache kv;
        uint32_t *blocks;
        float *logits, *hidden;
        uint32_t vocab;
};

static struct tiny tiny_open(const struct fixture_options *o) {
        struct tiny t = {.compute = fixture_compute(o)};
        char path[4096];

        snprintf(path, sizeof(path), "%s/models/baton-tiny", getenv("BATON_SOURCE"));
        t.model = fixture_model(path, t.compute, (struct model_shard){0});
        t.blocks = fixture_cache(t.model, o->kv_type, o->block_tokens, ROWS_MAX, &t.kv);
        t.vocab = model_config(t.model)->vocab;
        t.logits = calloc((size_t)ROWS_MAX * t.vocab, sizeof(float));
        t.hidden = calloc((size_t)ROWS_MAX * model_config(t.model)->hidden, sizeof(float));
        assert_true(t.logits && t.hidden);
        return t;
}

static void tiny_close(struct tiny *t) {
        kv_cache_free(&t->kv);
        model_free(t->model);
        compute_free(t->compute);
        free(t->blocks);
        free(t->logits);
        free(t->hidden);
}

static struct buf read_answers(void) {
        struct buf b = {0};
        struct error e = {{0}};
        char path[4096];

        snprintf(path, sizeof(path), "%s/models/baton-tiny/eval/greedy.jsonl", getenv("BATON_SOURCE"));
        if (file_read_whole(path, 1 << 24, &b, &e) < 0)
                fail_msg("%s", e.text);
        return b;
}

/* The ids of a member behind those that are there. */
static uint32_t add_ids(yyjson_val *list, uint32_t *tokens, uint32_t count) {
        size_t i, n;
        yyjson_val *v;

        yyjson_arr_foreach(list, i, n, v) tokens[count++] = (uint32_t)yyjson_get_uint(v);
        assert_true(n > 0 && count < ROWS_MAX);
        return count;
}

/* Prompt naively in one step, the answer token by token: every choice is the expected token. Returns how many were not. */
static uint32_t wrong_tokens(struct tiny *t, const uint32_t *tokens, uint32_t prompt, uint32_t count) {
        uint32_t wrong = 0;

        for (uint32_t done = 0, next = prompt; done + 1 < count; next = 1) {
                struct model_span span = {t->blocks, done, next, next - 1};
                const uint32_t last = next - 1;
                struct model_step step = {.tokens = tokens + done,
                    .rows = next,
                    .spans = &span,
                    .span_count = 1,
                    .logit_rows = &last,
                    .logit_count = 1};

                assert_int_equal(model_forward(t->model, &t->kv, &step, t->logits, NULL), 0);
                done += next;
                wrong += best_of(t->logits, t->vocab) != tokens[done];
        }
        return wrong;
}

/* Drafts for all positions of the answer at once. Returns how many are right. */
static uint32_t right_drafts(struct tiny *t, const uint32_t *tokens, uint32_t prompt, uint32_t count) {
        struct model_span span = {t->blocks, 0, count - 1, count - 1};
        uint32_t all[ROWS_MAX], right = 0;
        struct model_step step = {.tokens = tokens, .rows = count - 1, .spans = &span, .span_count = 1};

        assert_int_equal(model_forward(t->model, &t->kv, &step, t->logits, t->hidden), 0);
        step.tokens = tokens + 1;
        step.logit_rows = row_numbers(all, count - 1);
        step.logit_count = count - 1;
        assert_int_equal(model_draft(t->model, &t->kv, &step, t->hidden, t->logits, NULL), 0);
        for (uint32_t p = prompt - 1; p + 2 < count; p++)
                right += best_of(t->logits + (size_t)p * t->vocab, t->vocab) == tokens[p + 2];
        return right;
}

struct score {
        uint32_t answers, tokens, wrong, drafts, right;
};

static struct score run_answers(const struct fixture_options *o) {
        struct tiny t = tiny_open(o);
        struct buf file = read_answers();
        struct slice rest = buf_slice(&file), line;
        struct score score = {0};

        while (slice_split(&rest, '\n', &line)) {
                uint32_t tokens[ROWS_MAX], prompt, count;
                yyjson_doc *doc = NULL;

                if (slice_trim(line).len == 0)
                        continue;
                assert_int_equal(json_parse(line, &doc, NULL), 0);
                prompt = add_ids(json_get(yyjson_doc_get_root(doc), "prompt_ids"), tokens, 0);
                count = add_ids(json_get(yyjson_doc_get_root(doc), "output_ids"), tokens, prompt);
                yyjson_doc_free(doc);
                score.answers++;
                score.tokens += count - prompt;
                score.wrong += wrong_tokens(&t, tokens, prompt, count);
                if (count < prompt + 2)
                        continue;
                score.drafts += count - prompt - 1;
                score.right += right_drafts(&t, tokens, prompt, count);
        }
        buf_free(&file);
        tiny_close(&t);
        return score;
}

/* The smallest distance between the two best logits is 0.007 in these answers, and numeric errors are below 2e-4. */
static void greedy_answers_are_those_of_the_training_code(void **state) {
        const struct fixture_options o = {FIXTURE_DEFAULTS};
        struct score s = run_answers(&o);

        print_message("# %u answers, %u tokens, %u of %u drafts right\n", s.answers, s.tokens, s.right, s.drafts);
        assert_int_equal(s.answers, 52);
        assert_int_equal(s.wrong, 0);
        /* 95.8 % over the whole evaluation. */
        assert_true(s.right >= s.drafts * 0.93);
}

/* A trained model's choices are clear: rounding changes few of them. */
static void rounding_to_bf16_changes_few_choices(void **state) {
        const struct fixture_options o = {FIXTURE_DEFAULTS, .activation = ACTIVATION_BF16, .kv_type = KV_BF16};
        struct score s = run_answers(&o);

        print_message("# %u of %u tokens differ, %u of %u drafts right\n", s.wrong, s.tokens, s.right, s.drafts);
        assert_true(s.wrong <= s.tokens / 100);
        assert_true(s.right >= s.drafts * 0.93);
}

int main(void) {
        const struct CMUnitTest tests[] = {
            cmocka_unit_test(greedy_answers_are_those_of_the_training_code),
            cmocka_unit_test(rounding_to_bf16_changes_few_choices),
        };

        return cmocka_run_group_tests_name("tiny", tests, NULL, NULL);
}
