/* test_parse.c - request bodies are read and judged as vLLM reads and judges them. */
#include "openai/openai.h"
#include "recorded.h"
#include <errno.h>

static const struct openai_defaults defaults = {.temperature = 1,
    .top_p = 1,
    .repetition_penalty = 1,
    .vocab = 512,
    .max_model_len = 512,
    .max_logprobs = 20,
    .thinking = -1,
    .model = SLICE_LIT("tiny-v3")};

struct parsed {
        struct arena arena;
        struct openai_request r;
        struct openai_error e;
        int result;
};

static struct parsed parse(enum openai_kind kind, const char *body) {
        struct parsed p = {0};

        p.result = openai_parse(kind, slice_str(body), &defaults, &p.arena, &p.r, &p.e);
        return p;
}

static void done(struct parsed *p) {
        openai_request_done(&p->r);
        arena_free(&p->arena);
}

static void assert_refused(
    enum openai_kind kind, const char *body, const char *type, const char *param, const char *message) {
        struct parsed p = parse(kind, body);

        assert_int_equal(p.result, -EINVAL);
        assert_int_equal(p.e.status, 400);
        assert_string_equal(p.e.type, type);
        assert_string_equal(p.e.param, param);
        assert_string_equal(p.e.message, message);
        done(&p);
}

/* ---- what was recorded ---------------------------------------------------------------------------------------------- */

/* Refused here and served there: needs constrained decoding, or beam search (docs/vllm-differences.md). */
static const char *const unsupported[] = {"chat-response-format-json", "chat-structured-choice",
    "chat-structured-regex", "comp-response-format-json", "comp-beam", NULL};
/* Refused by both with other words: alternatives of Python classes that do not exist here. */
static const char *const other_words[] = {"chat-content-null", "chat-role-missing", "comp-response-format-bad", NULL};

static bool kind_of(struct slice path, enum openai_kind *ret_kind) {
        static const char *const paths[] = {"/v1/completions", "/v1/chat/completions", "/tokenize", "/detokenize"};
        struct slice plain = slice_sub(path, 0, slice_find(path, '?', 0));

        for (int i = 0; i < 4; i++)
                if (slice_is(plain, paths[i])) {
                        *ret_kind = (enum openai_kind)i;
                        return true;
                }
        return false;
}

static void assert_judged(const struct recorded *x, enum openai_kind kind) {
        struct arena arena = {0};
        struct openai_request r = {0};
        struct openai_error e = {0};
        struct buf text = {0};
        uint32_t max_tokens;
        int result = openai_parse(kind, x->body, &defaults, &arena, &r, &e);

        if (result == 0 && r.kind == OPENAI_COMPLETION && r.prompts[0].is_ids)
                result = openai_fit_tokens(&r, r.prompts[0].count, false, 512, &max_tokens, &e);
        else if (result == 0 && r.kind == OPENAI_COMPLETION) /* no tokenizer here: words are tokens */
                result = openai_fit_tokens(
                    &r, r.prompts[0].text.len > 1000 ? r.prompts[0].text.len / 4 : 5, true, 512, &max_tokens, &e);
        else if (result == 0 && r.kind == OPENAI_CHAT)
                result = openai_fit_tokens(&r, r.messages[0].content.len > 1000 ? r.messages[0].content.len / 4 : 5,
                    true, 512, &max_tokens, &e);
        if (is_one_of(x->name, unsupported)) {
                assert_int_equal(result, -EINVAL);
        } else if (x->status == 400) {
                if (result == 0)
                        fail_msg("%.*s was refused by vLLM", SLICE_ARG(x->name));
                assert_int_equal(result, -EINVAL);
                openai_write_error(&text, &e);
                if (!is_one_of(x->name, other_words) && !slice_eq(buf_slice(&text), x->response))
                        fail_msg("%.*s:\n%s\nvLLM:\n%.*s", SLICE_ARG(x->name), buf_cstr(&text), SLICE_ARG(x->response));
                assert_string_equal(
                    e.type, strstr(x->response.ptr, "\"Bad Request\"") ? "Bad Request" : "BadRequestError");
        } else if (result < 0)
                fail_msg("%.*s was accepted by vLLM (%d): %s", SLICE_ARG(x->name), (int)x->status, e.message);
        openai_request_done(&r);
        arena_free(&arena);
        buf_free(&text);
}

static void recorded_requests_are_judged_as_vllm_judged_them(void **state) {
        struct recording recording;
        struct recorded x;
        unsigned count = 0;

        (void)state;
        recording_open(&recording, "base");
        while (recording_next(&recording, &x)) {
                enum openai_kind kind;
                bool no_json =
                    is_one_of(x.name, (const char *const[]){"err-content-type-none", "err-content-type-text", NULL});

                if (slice_is(x.method, "POST") && kind_of(x.path, &kind) && !no_json) {
                        assert_judged(&x, kind);
                        count++;
                }
                yyjson_doc_free(x.document);
        }
        recording_close(&recording);
        assert_in_range(count, 180, 230);
}

/* ---- leniency ------------------------------------------------------------------------------------------------------- */

static void integers_come_in_many_dresses(void **state) {
        static const char *const forms[] = {"2", "2.0", "\"2\"", "\" 2 \"", "\"+2\"", "\"2.0\"", "2e0"};

        (void)state;
        for (size_t i = 0; i < sizeof(forms) / sizeof(*forms); i++) {
                char body[128];
                struct parsed p;

                snprintf(body, sizeof(body), "{\"prompt\":\"x\",\"max_tokens\":%s}", forms[i]);
                p = parse(OPENAI_COMPLETION, body);
                assert_int_equal(p.result, 0);
                assert_int_equal(p.r.sampling.max_tokens, 2);
                done(&p);
        }
}

static void booleans_come_in_many_dresses(void **state) {
        static const struct {
                const char *form;
                int value;
        } forms[] = {{"true", 1}, {"1", 1}, {"1.0", 1}, {"\"Yes\"", 1}, {"\"on\"", 1}, {"\"t\"", 1}, {"false", 0},
            {"0", 0}, {"\"OFF\"", 0}, {"null", 0}, {"2", -1}, {"\"maybe\"", -1}, {"[]", -1}};

        (void)state;
        for (size_t i = 0; i < sizeof(forms) / sizeof(*forms); i++) {
                char body[128];
                struct parsed p;

                snprintf(body, sizeof(body), "{\"prompt\":\"x\",\"stream\":%s}", forms[i].form);
                p = parse(OPENAI_COMPLETION, body);
                assert_int_equal(p.result, forms[i].value < 0 ? -EINVAL : 0);
                if (p.result == 0)
                        assert_int_equal(p.r.stream, forms[i].value);
                done(&p);
        }
}

static void the_last_of_a_doubled_member_counts_also_when_it_is_null(void **state) {
        struct parsed p = parse(OPENAI_COMPLETION, "{\"prompt\":\"x\",\"n\":\"two\",\"n\":1,\"seed\":1,\"seed\":null}");

        (void)state;
        assert_int_equal(p.result, 0);
        assert_int_equal(p.r.n, 1);
        assert_false(p.r.sampling.has_seed);
        done(&p);
}

static void not_a_number_is_told_from_broken_json(void **state) {
        (void)state;
        assert_refused(OPENAI_COMPLETION, "{\"prompt\":\"x\",\"top_p\":Infinity}", "BadRequestError", "top_p",
            "top_p must be in (0, 1], got inf. (parameter=top_p, value=inf)");
        assert_refused(OPENAI_COMPLETION, "{\"prompt\":\"x\",\"min_p\":-Infinity}", "BadRequestError", "",
            "min_p must be in [0, 1], got -inf.");
}

static void defaults_fill_what_the_client_leaves_open(void **state) {
        struct openai_defaults d = defaults;
        struct arena arena = {0};
        struct openai_request r;
        struct openai_error e;

        (void)state;
        d.temperature = 0.6f;
        d.top_p = 0.95f;
        d.top_k = 7;
        assert_int_equal(
            openai_parse(OPENAI_CHAT, SLICE_LIT("{\"messages\":[{\"role\":\"user\",\"content\":\"x\"}],\"top_k\":3}"),
                &d, &arena, &r, &e),
            0);
        assert_true(r.sampling.temperature == 0.6f && r.sampling.top_p == 0.95f && r.sampling.top_k == 3);
        assert_int_equal(r.n, 1);
        assert_true(r.skip_special && r.add_generation_prompt && !r.add_special && r.include_reasoning);
        assert_int_equal(r.sampling.logprobs, -1);
        assert_int_equal(r.sampling.prompt_logprobs, -1);
        assert_int_equal(r.thinking, -1);
        openai_request_done(&r);
        arena_free(&arena);
}

/* ---- members with a shape ------------------------------------------------------------------------------------------- */

static void every_sampling_member_arrives(void **state) {
        struct parsed p = parse(OPENAI_COMPLETION,
            "{\"prompt\":[\"a\",\"b\"],\"temperature\":0.5,\"top_p\":0.25,\"min_p\":0.125,\"top_k\":4,"
            "\"presence_penalty\":1,\"frequency_penalty\":-1,\"repetition_penalty\":1.5,\"seed\":-3,\"max_tokens\":9,"
            "\"min_tokens\":2,\"ignore_eos\":true,\"logprobs\":3,\"prompt_logprobs\":2,\"stop_token_ids\":[5,6],"
            "\"stop\":[\"x\",\"yy\"],\"include_stop_str_in_output\":true,\"logit_bias\":{\"7\":-200,\"8\":2.5},"
            "\"allowed_token_ids\":[1,2,3],\"bad_words\":[\"no\"],\"n\":2,\"echo\":true,\"skip_special_tokens\":false,"
            "\"return_token_ids\":true,\"priority\":-4,\"cache_salt\":\"s\",\"request_id\":\"r\",\"user\":\"u\","
            "\"truncate_prompt_tokens\":-1,\"kv_transfer_params\":{\"a\": [1, null]},\"add_special_tokens\":false}");
        const struct sampling_params *s = &p.r.sampling;

        (void)state;
        assert_int_equal(p.result, 0);
        assert_true(s->temperature == 0.5f && s->top_p == 0.25f && s->min_p == 0.125f && s->top_k == 4);
        assert_true(s->presence_penalty == 1 && s->frequency_penalty == -1 && s->repetition_penalty == 1.5f);
        assert_true(s->has_seed && s->seed == -3 && s->max_tokens == 9 && s->min_tokens == 2 && s->ignore_eos);
        assert_true(s->logprobs == 3 && s->prompt_logprobs == 2);
        assert_true(s->stop_id_count == 2 && s->stop_ids[0] == 5 && s->stop_ids[1] == 6);
        assert_true(s->stop_count == 2 && slice_is(s->stop[0], "x") && slice_is(s->stop[1], "yy") && s->include_stop);
        assert_true(s->bias_count == 2 && s->bias[0].id == 7 && s->bias[0].bias == -100 && s->bias[1].bias == 2.5f);
        assert_true(s->allowed_count == 3 && s->allowed_ids[2] == 3);
        assert_true(s->bad_word_count == 1 && slice_is(s->bad_words[0], "no"));
        assert_true(p.r.n == 2 && p.r.echo && !p.r.skip_special && !p.r.add_special && p.r.return_token_ids);
        assert_true(p.r.prompt_count == 2 && slice_is(p.r.prompts[1].text, "b"));
        assert_int_equal(p.r.priority, -4);
        assert_true(slice_is(p.r.cache_salt, "s") && slice_is(p.r.request_id, "r") && slice_is(p.r.user, "u"));
        assert_int_equal(p.r.truncate_prompt_tokens, -1);
        assert_true(slice_is(p.r.kv_transfer_params, "{\"a\":[1,null]}"));
        done(&p);
}

static void messages_keep_everything_a_template_needs(void **state) {
        struct parsed p =
            parse(OPENAI_CHAT, "{\"messages\":[{\"role\":\"system\",\"content\":\"s\"},"
                               "{\"role\":\"user\",\"content\":[{\"type\":\"text\",\"text\":\"a\"},\"b\"]},"
                               "{\"role\":\"assistant\",\"content\":null,\"reasoning_content\":\"r\",\"tool_calls\":[{"
                               "\"id\":\"c1\",\"type\":"
                               "\"function\",\"function\":{\"name\":\"f\",\"arguments\":\"{}\"}},{\"id\":\"c2\","
                               "\"function\":{\"name\":\"g\","
                               "\"arguments\":{\"x\": 1}}}]},"
                               "{\"role\":\"tool\",\"tool_call_id\":\"c1\",\"content\":\"t\"},"
                               "{\"role\":\"assistant\",\"content\":\"p\",\"prefix\":true,\"name\":\"n\"}],"
                               "\"add_generation_prompt\":false,\"continue_final_message\":true,\"chat_template_"
                               "kwargs\":{\"thinking\":true}}");
        const struct openai_message *m = p.r.messages;

        (void)state;
        assert_int_equal(p.result, 0);
        assert_int_equal(p.r.message_count, 5);
        assert_true(slice_is(m[0].role, "system") && slice_is(m[0].content, "s"));
        assert_true(slice_is(m[1].content, "a\nb"));
        assert_true(!m[2].has_content && slice_is(m[2].reasoning, "r") && m[2].tool_call_count == 2);
        assert_true(slice_is(m[2].tool_calls[0].arguments, "{}"));
        assert_true(slice_is(m[2].tool_calls[1].name, "g") && slice_is(m[2].tool_calls[1].arguments, "{\"x\":1}"));
        assert_true(slice_is(m[3].tool_call_id, "c1") && slice_is(m[3].content, "t"));
        assert_true(m[4].prefix && slice_is(m[4].name, "n") && m[4].has_content);
        assert_true(!p.r.add_generation_prompt && p.r.continue_final_message);
        assert_true(p.r.thinking == 1 && p.r.enable_thinking == -1);
        done(&p);
}

static void tools_need_a_server_that_understands_calls(void **state) {
        struct openai_defaults d = defaults;
        struct arena arena = {0};
        struct openai_request r;
        struct openai_error e;
        struct slice body =
            SLICE_LIT("{\"messages\":[{\"role\":\"user\",\"content\":\"x\"}],\"tools\":[{\"type\":\"function\","
                      "\"function\":{\"name\":\"f\"}}]}");

        (void)state;
        d.auto_tools = d.tool_parser = true;
        assert_int_equal(openai_parse(OPENAI_CHAT, body, &d, &arena, &r, &e), 0);
        assert_int_equal(r.tool_choice, TOOL_CHOICE_AUTO);
        assert_int_equal(yyjson_arr_size(r.tools), 1);
        openai_request_done(&r);
        d.auto_tools = false;
        assert_int_equal(openai_parse(OPENAI_CHAT, body, &d, &arena, &r, &e), -EINVAL);
        arena_free(&arena);
}

static void streams_may_ask_for_usage(void **state) {
        struct parsed p = parse(OPENAI_COMPLETION, "{\"prompt\":\"x\",\"stream\":true,\"stream_options\":{\"include_"
                                                   "usage\":true,\"continuous_usage_stats\":\"yes\"}}");

        (void)state;
        assert_int_equal(p.result, 0);
        assert_true(p.r.stream && p.r.include_usage && p.r.continuous_usage);
        done(&p);
}

/* ---- bounds --------------------------------------------------------------------------------------------------------- */

static void more_than_the_named_limits_is_refused(void **state) {
        struct buf b = {0};
        struct parsed p;

        (void)state;
        buf_add_str(&b, "{\"prompt\":\"x\"");
        for (int i = 0; i < OPENAI_MEMBERS_MAX; i++)
                buf_printf(&b, ",\"m%d\":0", i);
        buf_add_str(&b, "}");
        p = parse(OPENAI_COMPLETION, buf_cstr(&b));
        assert_int_equal(p.result, -EINVAL);
        done(&p);
        buf_reset(&b);
        buf_add_str(&b, "{\"prompt\":[\"x\"");
        for (int i = 0; i < OPENAI_PROMPTS_MAX; i++)
                buf_add_str(&b, ",\"x\"");
        buf_add_str(&b, "]}");
        p = parse(OPENAI_COMPLETION, buf_cstr(&b));
        assert_int_equal(p.result, -EINVAL);
        done(&p);
        buf_reset(&b);
        buf_add_str(&b, "{\"prompt\":\"x\",\"stop\":[\"x\"");
        for (int i = 0; i < OPENAI_STOPS_MAX; i++)
                buf_add_str(&b, ",\"x\"");
        buf_add_str(&b, "]}");
        p = parse(OPENAI_COMPLETION, buf_cstr(&b));
        assert_int_equal(p.result, -EINVAL);
        done(&p);
        for (int beyond = 0; beyond < 2; beyond++) {
                buf_reset(&b);
                buf_printf(&b, "{\"prompt\":\"x\",\"cache_salt\":\"%0*d\"}", OPENAI_SALT_BYTES + beyond, 1);
                p = parse(OPENAI_COMPLETION, buf_cstr(&b));
                assert_int_equal(p.result, beyond ? -EINVAL : 0);
                if (beyond)
                        assert_string_equal(p.e.param, "cache_salt");
                done(&p);
        }
        buf_free(&b);
        assert_refused(OPENAI_COMPLETION, "{\"prompt\":\"x\",\"temperature\":1,\"n\":129}", "BadRequestError", "",
            "n must be at most 128, got 129.");
        assert_refused(OPENAI_COMPLETION, "{\"prompt\":\"x\",\"max_tokens\":1e300}", "BadRequestError", "max_tokens",
            "max_tokens=9223372036854775807 cannot be greater than max_model_len=512. Please request fewer output "
            "tokens. (parameter=max_tokens, value=9223372036854775807)");
}

static void a_thousand_wrong_items_make_one_short_error(void **state) {
        struct buf b = {0};
        struct parsed p;

        (void)state;
        buf_add_str(&b, "{\"prompt\":[[\"a\"]");
        for (int i = 0; i < 1000; i++)
                buf_add_str(&b, ",[{}]");
        buf_add_str(&b, "]}");
        p = parse(OPENAI_COMPLETION, buf_cstr(&b));
        assert_int_equal(p.result, -EINVAL);
        assert_non_null(strstr(p.e.message, "1001 validation errors:"));
        assert_non_null(strstr(p.e.message, "...and 991 more errors"));
        assert_string_equal(p.e.param, "body.prompt.0.0");
        done(&p);
        buf_free(&b);
}

static void what_fits_is_what_the_prompt_leaves(void **state) {
        struct parsed p = parse(OPENAI_CHAT, "{\"messages\":[{\"role\":\"user\",\"content\":\"x\"}],\"min_tokens\":3}");
        uint32_t max = 0;

        (void)state;
        assert_int_equal(openai_fit_tokens(&p.r, 500, true, 512, &max, &p.e), 0);
        assert_int_equal(max, 12);
        assert_int_equal(openai_fit_tokens(&p.r, 509, true, 512, &max, &p.e), 0);
        assert_int_equal(max, 3);
        assert_int_equal(openai_fit_tokens(&p.r, 510, true, 512, &max, &p.e), -EINVAL);
        assert_string_equal(p.e.message, "min_tokens must be less than or equal to max_tokens=2, got 3.");
        assert_int_equal(openai_fit_tokens(&p.r, 512, true, 512, &max, &p.e), -EINVAL);
        assert_string_equal(p.e.param, "max_tokens");
        assert_int_equal(openai_fit_tokens(&p.r, 513, true, 512, &max, &p.e), -EINVAL);
        assert_string_equal(p.e.param, "input_tokens");
        done(&p);
        p = parse(OPENAI_COMPLETION, "{\"prompt\":\"x\",\"max_tokens\":0,\"echo\":true}");
        assert_true(openai_is_echo_only(&p.r));
        assert_int_equal(openai_fit_tokens(&p.r, 5, true, 512, &max, &p.e), 0);
        assert_int_equal(max, 1);
        done(&p);
}

/* ---- broken JSON, in Python's words --------------------------------------------------------------------------------- */

static void broken_json_is_told_as_python_tells_it(void **state) {
        static const struct {
                const char *body, *where, *why;
        } cases[] = {
            {"{\"a\":1", "body.6", "\"Expecting ',' delimiter\""},
            {"{\"a\":1,}", "body.7", "'Expecting property name enclosed in double quotes'"},
            {"{\"a\" 1}", "body.5", "\"Expecting ':' delimiter\""},
            {"{\"a\":[1,]}", "body.8", "'Expecting value'"},
            {"{\"a\":\"x}", "body.5", "'Unterminated string starting at'"},
            {"{\"a\":\"x\ny\"}", "body.7", "'Invalid control character at'"},
            {"{\"a\":\"\\q\"}", "body.6", "'Invalid \\escape'"},
            {"{\"a\":\"\\u12g4\"}", "body.7", "'Invalid \\uXXXX escape'"},
            {"{\"a\":1} x", "body.8", "'Extra data'"},
            {"{\"ä\":x}", "body.5", "'Expecting value'"},
            {"{\"a\":01}", "body.6", "\"Expecting ',' delimiter\""},
        };

        (void)state;
        for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
                struct parsed p = parse(OPENAI_COMPLETION, cases[i].body);

                assert_int_equal(p.result, -EINVAL);
                assert_string_equal(p.e.param, cases[i].where);
                assert_non_null(strstr(p.e.message, cases[i].why));
                done(&p);
        }
}

static void depth_has_a_bound(void **state) {
        struct buf b = {0};
        struct parsed p;

        (void)state;
        buf_add_str(&b, "{\"prompt\":");
        for (int i = 0; i < 200000; i++)
                buf_add_char(&b, '[');
        p = parse(OPENAI_COMPLETION, buf_cstr(&b));
        assert_int_equal(p.result, -EINVAL);
        assert_non_null(strstr(p.e.message, "nested deeper"));
        done(&p);
        buf_free(&b);
}

int main(void) {
        const struct CMUnitTest tests[] = {
            cmocka_unit_test(recorded_requests_are_judged_as_vllm_judged_them),
            cmocka_unit_test(integers_come_in_many_dresses),
            cmocka_unit_test(booleans_come_in_many_dresses),
            cmocka_unit_test(the_last_of_a_doubled_member_counts_also_when_it_is_null),
            cmocka_unit_test(not_a_number_is_told_from_broken_json),
            cmocka_unit_test(defaults_fill_what_the_client_leaves_open),
            cmocka_unit_test(every_sampling_member_arrives),
            cmocka_unit_test(messages_keep_everything_a_template_needs),
            cmocka_unit_test(tools_need_a_server_that_understands_calls),
            cmocka_unit_test(streams_may_ask_for_usage),
            cmocka_unit_test(more_than_the_named_limits_is_refused),
            cmocka_unit_test(a_thousand_wrong_items_make_one_short_error),
            cmocka_unit_test(what_fits_is_what_the_prompt_leaves),
            cmocka_unit_test(broken_json_is_told_as_python_tells_it),
            cmocka_unit_test(depth_has_a_bound),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
