/* test_chat.c - prompts are printed as the models' own templates print them (recorded, and made by transformers), and the
 * format is recognised by the template's text. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>

#include "text/python_json.h"
#include "text_data.h"

static struct tokenizer *with_ends(const char *bos, const char *eos) {
        struct arena a = {0};
        const char *json = arena_printf(&a,
            "{\"pre_tokenizer\":{\"type\":\"ByteLevel\"},\"model\":{\"vocab\":{\"a\":0},\"merges\":[]},\"added_"
            "tokens\":"
            "[{\"id\":1,\"content\":\"%s\",\"special\":true},{\"id\":2,\"content\":\"%s\",\"special\":true}]}",
            bos, eos);
        const char *config = arena_printf(&a, "{\"bos_token\":\"%s\",\"eos_token\":\"%s\"}", bos, eos);
        struct tokenizer *t;

        assert_int_equal(tokenizer_parse(slice_str(json), slice_str(config), &t, NULL), 0);
        arena_free(&a);
        return t;
}

/* The format that the template called `name` is recognised as. */
static struct chat_format format_of(struct slice name) {
        struct arena a = {0};
        struct slice rest = read_data(&a, "templates.jsonl");
        struct chat_format f = {0};
        yyjson_doc *doc;

        while ((doc = next_line(&rest))) {
                if (slice_eq(json_get_slice(yyjson_doc_get_root(doc), "name"), name) &&
                    !chat_format_of(json_get_slice(yyjson_doc_get_root(doc), "template"), &f))
                        fail_msg("%.*s is not recognised", SLICE_ARG(name));
                yyjson_doc_free(doc);
        }
        assert_int_not_equal(f.family, CHAT_NONE);
        arena_free(&a);
        return f;
}

static int render_body(
    const struct chat_format *f, const struct tokenizer *t, struct slice body, struct buf *out, struct error *e) {
        const struct openai_defaults defaults = {.vocab = 1000,
            .max_model_len = 1000,
            .temperature = 1,
            .top_p = 1,
            .repetition_penalty = 1,
            .auto_tools = true,
            .tool_parser = true};
        struct openai_error err = {0};
        struct openai_request r;
        struct arena arena = {0};
        int result;

        if (openai_parse(OPENAI_CHAT, body, &defaults, &arena, &r, &err) < 0)
                fail_msg("%.*s: %s", SLICE_ARG(body), err.message);
        result = chat_render(f, t, &r, out, e);
        openai_request_done(&r);
        arena_free(&arena);
        return result;
}

static void assert_renders(
    struct slice name, const struct chat_format *f, const struct tokenizer *t, struct slice body, struct slice prompt) {
        struct buf out = {0};
        struct error e = {0};

        if (render_body(f, t, body, &out, &e) < 0)
                fail_msg("%.*s: %.*s: %s", SLICE_ARG(name), SLICE_ARG(body), e.text);
        if (!slice_eq(buf_slice(&out), prompt))
                fail_msg("%.*s: %.*s\n  gives    %.*s\n  not      %.*s", SLICE_ARG(name), SLICE_ARG(body),
                    SLICE_ARG(buf_slice(&out)), SLICE_ARG(prompt));
        buf_free(&out);
}

static void recorded_prompts_are_printed_exactly(void **state) {
        struct tokenizer *t = with_ends("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>");
        struct arena a = {0};
        struct slice rest = read_data(&a, "rendered.jsonl");
        struct buf body = {0};
        yyjson_doc *doc;
        size_t count = 0;

        while ((doc = next_line(&rest))) {
                yyjson_val *line = yyjson_doc_get_root(doc), *options = json_get(line, "options");
                struct chat_format f = format_of(json_get_slice(line, "model"));

                buf_reset(&body);
                buf_add_str(&body, "{\"messages\":");
                json_add_value(&body, json_get(line, "messages"));
                buf_printf(&body, ",\"add_generation_prompt\":%s,\"continue_final_message\":%s",
                    json_get_bool(options, "add_generation_prompt", true) ? "true" : "false",
                    json_get_bool(options, "continue_final_message", false) ? "true" : "false");
                if (json_get(options, "thinking"))
                        buf_printf(&body, ",\"chat_template_kwargs\":{\"thinking\":%s}",
                            json_get_bool(options, "thinking", false) ? "true" : "false");
                if (json_get(options, "tools")) {
                        buf_add_str(&body, ",\"tools\":");
                        json_add_value(&body, json_get(options, "tools"));
                }
                buf_add_char(&body, '}');
                assert_renders(json_get_slice(line, "model"), &f, t, buf_slice(&body), json_get_slice(line, "prompt"));
                yyjson_doc_free(doc);
                count++;
        }
        assert_true(count >= 92);
        buf_free(&body);
        arena_free(&a);
        tokenizer_free(t);
}

static void every_template_prints_what_transformers_prints(void **state) {
        struct tokenizer *release = with_ends("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>");
        struct tokenizer *roles = with_ends("<bos>", "<eos>");
        struct arena a = {0};
        struct slice rest = read_data(&a, "chat.jsonl");
        yyjson_doc *doc;

        while ((doc = next_line(&rest))) {
                yyjson_val *line = yyjson_doc_get_root(doc);
                struct slice name = json_get_slice(line, "format");
                struct chat_format f = format_of(name);
                struct buf body = {0};

                json_add_value(&body, json_get(line, "request"));
                assert_renders(name, &f, f.family == CHAT_ROLES ? roles : release, buf_slice(&body),
                    json_get_slice(line, "prompt"));
                buf_free(&body);
                yyjson_doc_free(doc);
        }
        arena_free(&a);
        tokenizer_free(release);
        tokenizer_free(roles);
}

static void names_and_templates_agree(void **state) {
        static const char *const names[] = {"deepseek-v2", "deepseek-v3", "deepseek-r1", "deepseek-v3.1"};
        struct chat_format by_name, by_template;
        struct error e = {0};

        for (size_t i = 0; i < 4; i++) {
                assert_int_equal(chat_format_parse(slice_str(names[i]), &by_name, NULL), 0);
                by_template = format_of(slice_str(names[i]));
                by_template.cuts_thinking = false; /* R1 always does */
                assert_memory_equal(&by_name, &by_template, sizeof(by_name));
        }
        assert_int_equal(chat_format_parse(SLICE_LIT("deepsek-3.1"), &by_name, &e), -EINVAL);
        assert_non_null(strstr(e.text, "did you mean 'deepseek-v3.1'"));
        assert_int_equal(chat_format_parse(SLICE_NONE, &by_name, &e), -EINVAL);
}

static void a_folder_tells_its_format(void **state) {
        struct arena a = {0};
        struct chat_format f;
        struct error e = {0};

        assert_int_equal(
            chat_format_detect(arena_printf(&a, "%s/models/baton-tiny", getenv("BATON_SOURCE")), &f, &e), 0);
        assert_int_equal(f.family, CHAT_V31);
        assert_int_equal(f.tools, CHAT_TOOLS_SHORT);
        assert_int_equal(chat_format_detect("/nonexistent", &f, &e), -ENOENT);
        assert_int_equal(
            chat_format_detect(arena_printf(&a, "%s/tests/data/text/tokenizer", getenv("BATON_SOURCE")), &f, &e),
            -ENOENT);
        assert_false(chat_format_of(SLICE_LIT("{% for m in messages %}<|im_start|>{{ m.role }}{% endfor %}"), &f));
        assert_false(chat_format_of(SLICE_NONE, &f));
        arena_free(&a);
}

static void tools_are_listed_where_the_format_says_so(void **state) {
        static const char body[] =
            "{\"messages\":[{\"role\":\"system\",\"content\":\"S\"},{\"role\":\"user\",\"content\":\"U\"}],\"tools\":[{"
            "\"type\":"
            "\"function\",\"function\":{\"name\":\"f\",\"description\":\"D\",\"parameters\":{\"a\":[1,\"b\"]}}},"
            "{\"type\":\"function\",\"function\":{\"name\":\"g\"}}]}";
        struct tokenizer *t = with_ends("<s>", "</s>");
        struct chat_format f;

        assert_int_equal(chat_format_parse(SLICE_LIT("deepseek-v3.1-tools"), &f, NULL), 0);
        assert_renders(SLICE_LIT("card"), &f, t, slice_str(body),
            SLICE_LIT("<s>S\n\n## Tools\nYou have access to the following tools:\n\n### f\nDescription: "
                      "D\n\nParameters: {\"a\": [1, \"b\"]}\n\n"
                      "### g\nDescription: \n\nParameters: {}\n\nIMPORTANT: ALWAYS adhere to this exact format for "
                      "tool use:\n"
                      "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>tool_call_name<｜tool▁sep｜>tool_call_arguments<"
                      "｜tool▁call▁end｜>"
                      "{{additional_tool_calls}}<｜tool▁calls▁end｜>\n\nWhere:\n\n"
                      "- `tool_call_name` must be an exact match to one of the available tools\n"
                      "- `tool_call_arguments` must be valid JSON that strictly follows the tool's Parameters Schema\n"
                      "- For multiple tool calls, chain them directly without separators or spaces\n"
                      "<｜User｜>U<｜Assistant｜></think>"));
        assert_int_equal(chat_format_parse(SLICE_LIT("deepseek-v3.1"), &f, NULL), 0);
        assert_renders(SLICE_LIT("plain"), &f, t, slice_str(body), SLICE_LIT("<s>S<｜User｜>U<｜Assistant｜></think>"));
        tokenizer_free(t);
}

static void a_final_message_that_is_not_printed_cannot_be_continued(void **state) {
        struct tokenizer *t = with_ends("<s>", "</s>");
        struct chat_format f;
        struct buf out = {0};
        struct error e = {0};

        assert_int_equal(chat_format_parse(SLICE_LIT("deepseek-v2"), &f, NULL), 0);
        assert_int_equal(
            render_body(&f, t,
                SLICE_LIT(
                    "{\"messages\":[{\"role\":\"user\",\"content\":\"a\"},{\"role\":\"tool\",\"tool_call_id\":\"x\","
                    "\"content\":\"b\"}],\"add_generation_prompt\":false,\"continue_final_message\":true}"),
                &out, &e),
            -EINVAL);
        assert_non_null(strstr(e.text, "continue_final_message"));
        buf_free(&out);
        tokenizer_free(t);
}

static void prompts_tell_whether_reasoning_is_open(void **state) {
        assert_int_equal(chat_prompt_reasoning(SLICE_LIT("a<think>")), CHAT_REASONING_OPEN);
        assert_int_equal(chat_prompt_reasoning(SLICE_LIT("a<think>\n")), CHAT_REASONING_OPEN);
        assert_int_equal(chat_prompt_reasoning(SLICE_LIT("<think>a</think>")), CHAT_REASONING_CLOSED);
        assert_int_equal(chat_prompt_reasoning(SLICE_LIT("<think>a")), CHAT_REASONING_UNSAID);
        assert_int_equal(chat_prompt_reasoning(SLICE_NONE), CHAT_REASONING_UNSAID);
}

static void json_is_printed_as_python_prints_it(void **state) {
        static const struct {
                const char *json, *python;
        } cases[] = {{"[]", "[]"}, {"{}", "{}"},
            {"[1,{\"a\":null,\"b\":[true,false]}]", "[1, {\"a\": null, \"b\": [true, false]}]"}, {"1.0", "1.0"},
            {"-0.0", "-0.0"}, {"0.1", "0.1"}, {"1e15", "1000000000000000.0"}, {"1e16", "1e+16"},
            {"123456789012345680.0", "1.2345678901234568e+17"}, {"1e22", "1e+22"}, {"0.0001", "0.0001"},
            {"0.00001", "1e-05"}, {"1.5e-7", "1.5e-07"}, {"5e-324", "5e-324"},
            {"1.7976931348623157e308", "1.7976931348623157e+308"}, {"0.30000000000000004", "0.30000000000000004"},
            {"100.25", "100.25"}, {"0.00123", "0.00123"}, {"18446744073709551615", "18446744073709551615"},
            {"-9223372036854775808", "-9223372036854775808"},
            {"\"\\u0001\\n\\t\\r\\b\\f\\\\\\/\\\"\\u007f\\u00e9\"", "\"\\u0001\\n\\t\\r\\b\\f\\\\/\\\"\x7f\xc3\xa9\""}};

        for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
                struct buf out = {0};
                yyjson_doc *doc;

                assert_int_equal(json_parse(slice_str(cases[i].json), &doc, NULL), 0);
                python_json_add(&out, yyjson_doc_get_root(doc));
                assert_string_equal(buf_cstr(&out), cases[i].python);
                yyjson_doc_free(doc);
                buf_free(&out);
        }
}

int main(void) {
        const struct CMUnitTest tests[] = {
            cmocka_unit_test(recorded_prompts_are_printed_exactly),
            cmocka_unit_test(every_template_prints_what_transformers_prints),
            cmocka_unit_test(names_and_templates_agree),
            cmocka_unit_test(a_folder_tells_its_format),
            cmocka_unit_test(tools_are_listed_where_the_format_says_so),
            cmocka_unit_test(a_final_message_that_is_not_printed_cannot_be_continued),
            cmocka_unit_test(prompts_tell_whether_reasoning_is_open),
            cmocka_unit_test(json_is_printed_as_python_prints_it),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
