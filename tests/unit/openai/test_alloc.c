/* test_alloc.c - whatever allocation fails, openai/ says so, leaks nothing and leaves results alone. */
#include "failmalloc.h"
#include "openai/openai.h"
#include "recorded.h"
#include <errno.h>
#include <limits.h>

static const struct openai_defaults defaults = {.temperature = 1,
    .top_p = 1,
    .repetition_penalty = 1,
    .vocab = 512,
    .max_model_len = 512,
    .max_logprobs = 20,
    .thinking = -1,
    .auto_tools = true,
    .tool_parser = true,
    .model = SLICE_LIT("tiny-v3")};

static const struct {
        enum openai_kind kind;
        const char *body;
} bodies[] = {
    {OPENAI_COMPLETION, "{\"prompt\":[\"a\",\"b\"],\"stop\":[\"x\"],\"logit_bias\":{\"7\":1},\"stop_token_ids\":[5],"
                        "\"bad_words\":[\"no\"],"
                        "\"allowed_token_ids\":[1],\"kv_transfer_params\":{\"a\":1}}"},
    {OPENAI_COMPLETION, "{\"prompt\":[[1,2],[3]]}"},
    {OPENAI_COMPLETION, "{\"prompt\":[\"a\",1],\"max_tokens\":\"six\"}"},
    {OPENAI_COMPLETION, "{\"prompt\":\"x\",\"temperature\":NaN}"},
    {OPENAI_CHAT, "{\"messages\":[{\"role\":\"user\",\"content\":[\"a\",\"b\"]},{\"role\":\"assistant\",\"tool_calls\":"
                  "[{\"id\":\"c\","
                  "\"function\":{\"name\":\"f\",\"arguments\":{}}}]}],\"tools\":[{\"function\":{\"name\":\"f\"}}]}"},
    {OPENAI_CHAT, "{\"messages\":[{\"content\":5},7]}"},
    {OPENAI_CHAT, "{\"messages\":[{\"role\":\"user\",\"content\":[{\"type\":\"text\",\"text\":\"a\"},"
                  "{\"type\":\"image_url\",\"image_url\":{}}]}],\"logprobs\":true,\"top_logprobs\":2,\"stop\":\"x\","
                  "\"tool_choice\":{\"type\":\"function\",\"function\":{\"name\":\"g\"}},"
                  "\"tools\":[{\"type\":\"function\",\"function\":{\"name\":\"f\",\"parameters\":{}}}]}"},
    {OPENAI_CHAT, "{\"messages\":[1,2,3,4,5,6,7,8,9,10,11,12],\"n\":\"many\",\"stop\":[1]}"},
    {OPENAI_CHAT, "{\"messages\":[],"},
    {OPENAI_COMPLETION, "{\"prompt\":\"x\",\"top_p\":7,\"temperature\":-1e300,\"seed\":99999999999999999999}"},
    {OPENAI_TOKENIZE, "{\"prompt\":\"x\"}"},
    {OPENAI_DETOKENIZE, "{\"tokens\":[1,2]}"},
};

/* Parse bodies[i] with the n-th allocation failing. */
static int parse_failing(size_t i, long n, struct openai_error *ret_err) {
        struct openai_request r = {.n = 77};
        struct arena arena = {0};
        int result;

        *ret_err = (struct openai_error){0};
        failmalloc_from(n, 0);
        result = openai_parse(bodies[i].kind, slice_str(bodies[i].body), &defaults, &arena, &r, ret_err);
        failmalloc_off();
        if (result == 0)
                openai_request_done(&r);
        else
                assert_int_equal(r.n, 77);
        arena_free(&arena);
        return result;
}

/* Half a request never passes for a whole one, and our want of memory is not told as the client's mistake. */
static void parsing_survives_every_failed_allocation(void **state) {
        (void)state;
        for (size_t i = 0; i < sizeof(bodies) / sizeof(*bodies); i++) {
                struct openai_error e, mistake;
                int r, without = parse_failing(i, LONG_MAX, &mistake);

                for (long n = 0; r = parse_failing(i, n, &e), failmalloc_failed(); n++)
                        if (r != -ENOMEM && !(r == -EINVAL && without == r && !strcmp(e.message, mistake.message)))
                                fail_msg("%s: %d (%s) with allocation %ld failing", bodies[i].body, r, e.message, n);
        }
}

static void write_everything(struct buf *b, struct openai_logprobs *l) {
        static const struct openai_answer a = {OPENAI_CHAT, SLICE_LIT("id"), SLICE_LIT("m"), SLICE_LIT("f"), 7};
        struct openai_token_logprobs t = {
            .taken = {1, -1, 1, SLICE_LIT("ä")}, .known = true, .best = &t.taken, .best_count = 1, .top = 1};
        struct openai_tool_call call = {SLICE_LIT("c"), SLICE_LIT("f"), SLICE_LIT("{}")};
        struct openai_choice choice = {.text = SLICE_LIT("x"), .logprobs = l, .finish_reason = "stop"};
        struct openai_usage usage = {.prompt = 1};
        struct openai_chunk chunk = {
            .what = OPENAI_CHUNK_DELTA, .text = SLICE_LIT("x"), .logprobs = l, .usage = &usage};
        struct openai_error error = {.status = 400, .type = "BadRequestError", .message = "why"};
        struct openai_model_card card = {SLICE_LIT("m"), SLICE_LIT("r"), 5, 512};

        openai_logprobs_add(l, &t);
        openai_write_tool_call(b, &call);
        openai_write_tool_delta(b, 0, SLICE_LIT("c"), SLICE_LIT("f"), SLICE_LIT(""));
        openai_write_prompt_logprobs(b, &t);
        openai_write_answer(b, &a, &choice, 1, &usage, SLICE_NONE);
        openai_write_chunk(b, &a, &chunk);
        openai_write_models(b, &card, 1);
        openai_write_error(b, &error);
        openai_write_error_event(b, &error);
        openai_unescape(b, SLICE_LIT("a\\u00e4\\n"));
}

/* A writer whose memory ran out anywhere, also inside the log-probabilities it was given, must not look whole. */
static void writers_never_pass_off_half_an_answer(void **state) {
        struct buf whole = {0};
        struct openai_logprobs first = {.kind = OPENAI_CHAT};

        (void)state;
        write_everything(&whole, &first);
        for (long n = 0;; n++) {
                struct openai_logprobs l = {.kind = OPENAI_CHAT};
                struct buf b = {0};

                failmalloc_from(n, 0);
                write_everything(&b, &l);
                failmalloc_off();
                if (buf_ok(&b))
                        assert_true(slice_eq(buf_slice(&b), buf_slice(&whole)));
                buf_free(&b);
                openai_logprobs_free(&l);
                if (!failmalloc_failed())
                        break;
        }
        buf_free(&whole);
        openai_logprobs_free(&first);
}

static void edits_survive_every_failed_allocation(void **state) {
        static const struct openai_edit edits[] = {{"a", SLICE_LIT("1")}, {"z", SLICE_LIT("2")}};
        struct slice text = SLICE_LIT("{\"\\u0061\":5,\"b\":6}"), *parts;
        struct openai_member members[8];
        size_t count, at, parts_count, bytes;

        (void)state;
        assert_int_equal(openai_scan(text, members, 8, &count, &at), 0);
        for (long n = 0;; n++) {
                struct arena arena = {0};
                int r;

                failmalloc_from(n, 0);
                r = openai_edit(text, members, count, edits, 2, &arena, &parts, &parts_count, &bytes);
                failmalloc_off();
                assert_int_equal(r, failmalloc_failed() ? -ENOMEM : 0);
                arena_free(&arena);
                if (!failmalloc_failed())
                        break;
        }
}

int main(void) {
        const struct CMUnitTest tests[] = {
            cmocka_unit_test(parsing_survives_every_failed_allocation),
            cmocka_unit_test(writers_never_pass_off_half_an_answer),
            cmocka_unit_test(edits_survive_every_failed_allocation),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
