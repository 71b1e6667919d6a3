/* test_chat.c - chat prompts are what the releases' own templates print, character by character. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "text/text.h"
#include "text_data.h"
#include <errno.h>
#include <unistd.h>

static const char *const models[] = {"deepseek-v2", "deepseek-v3", "deepseek-r1", "deepseek-v3.1"};
static const enum chat_family families[] = {CHAT_V2, CHAT_V3, CHAT_R1, CHAT_V31};
#define MODELS 4

/* A folder that holds nothing but the model's tokenizer_config.json. */
static void detect(int model, struct chat_format *f) {
        struct arena a = {0};
        struct error e = {0};
        char dir[] = "/tmp/baton-test-chat-XXXXXX";
        const char *path;
        int r;

        assert_non_null(mkdtemp(dir));
        path = arena_printf(&a, "%s/tokenizer_config.json", dir);
        assert_int_equal(
            symlink(data_path(&a, arena_printf(&a, "tokenizer/%s.tokenizer_config.json", models[model])), path), 0);
        r = chat_format_detect(dir, f, &e);
        unlink(path);
        rmdir(dir);
        if (r < 0)
                fail_msg("%s: %s", models[model], e.text);
        arena_free(&a);
}

static void the_family_is_told_from_the_template(void **state) {
        struct chat_format f;
        struct error e = {0};

        (void)state;
        for (int i = 0; i < MODELS; i++) {
                detect(i, &f);
                assert_int_equal(f.family, families[i]);
                assert_int_equal(chat_format_parse(slice_str(models[i]), &f, &e), 0);
                assert_int_equal(f.family, families[i]);
        }
        assert_int_equal(chat_format_parse(SLICE_LIT("llama"), &f, &e), -EINVAL);
        assert_int_equal(chat_format_detect("/nonexistent", &f, &e), -EINVAL);
}

static int model_index(struct slice name) {
        for (int i = 0; i < MODELS; i++)
                if (slice_is(name, models[i]))
                        return i;
        return -1;
}

/* The recorded line as a request of the API. */
static void make_request(yyjson_val *line, struct arena *a, struct openai_request *r) {
        yyjson_val *options = json_get(line, "options"), *key;
        struct openai_defaults defaults = {.temperature = 1,
            .top_p = 1,
            .repetition_penalty = 1,
            .vocab = 1000,
            .max_model_len = 1000,
            .max_logprobs = 20,
            .auto_tools = true,
            .tool_parser = true};
        struct openai_error err;
        struct buf body = {0};
        yyjson_obj_iter iter;

        buf_add_str(&body, "{\"messages\":");
        json_add_value(&body, json_get(line, "messages"));
        buf_add_str(&body, ",\"add_generation_prompt\":false");
        if (yyjson_is_obj(options)) {
                yyjson_obj_iter_init(options, &iter);
                while ((key = yyjson_obj_iter_next(&iter))) {
                        bool kwarg =
                            slice_is(json_slice(key), "thinking") || slice_is(json_slice(key), "enable_thinking");

                        buf_add_char(&body, ',');
                        if (kwarg)
                                buf_add_str(&body, "\"chat_template_kwargs\":{");
                        json_add_string(&body, json_slice(key));
                        buf_add_char(&body, ':');
                        json_add_value(&body, yyjson_obj_iter_get_val(key));
                        if (kwarg)
                                buf_add_char(&body, '}');
                }
        }
        buf_add_char(&body, '}');
        if (openai_parse(OPENAI_CHAT, buf_slice(&body), &defaults, a, r, &err) < 0)
                fail_msg("%s: %s", buf_cstr(&body), err.message);
        buf_free(&body);
}

static void every_recorded_talk_gives_the_recorded_prompt(void **state) {
        struct arena a = {0};
        struct slice rest = read_data(&a, "chat.jsonl");
        struct tokenizer *tokenizers[MODELS];
        struct chat_format formats[MODELS];
        yyjson_doc *doc;
        int count = 0;

        (void)state;
        for (int i = 0; i < MODELS; i++) {
                tokenizers[i] = load_recorded(models[i]);
                detect(i, &formats[i]);
        }
        while ((doc = next_line(&rest))) {
                yyjson_val *line = yyjson_doc_get_root(doc);
                int model = model_index(json_get_slice(line, "model"));
                struct arena request_arena = {0};
                struct openai_request r;
                struct buf out = {0};
                struct error e = {0};

                assert_true(model >= 0);
                make_request(line, &request_arena, &r);
                if (chat_render(&formats[model], tokenizers[model], &r, &out, &e) < 0)
                        fail_msg("%s, %s: %s", models[model], yyjson_get_str(json_get(line, "name")), e.text);
                if (!slice_eq(buf_slice(&out), json_get_slice(line, "prompt")))
                        fail_msg("%s, %s:\n  printed  %s\n  recorded %s", models[model],
                            yyjson_get_str(json_get(line, "name")), buf_cstr(&out),
                            yyjson_get_str(json_get(line, "prompt")));
                openai_request_done(&r);
                arena_free(&request_arena);
                buf_free(&out);
                yyjson_doc_free(doc);
                count++;
        }
        assert_true(count >= 90);
        for (int i = 0; i < MODELS; i++)
                tokenizer_free(tokenizers[i]);
        arena_free(&a);
}

/* ---- generated text -------------------------------------------------------------------------------------------------------------- */

#define CALLS(calls)     "<｜tool▁calls▁begin｜>" calls "<｜tool▁calls▁end｜>"
#define CALL(name, args) "<｜tool▁call▁begin｜>" name "<｜tool▁sep｜>" args "<｜tool▁call▁end｜>"
#define FENCED(name, args)                                                                                             \
        "<｜tool▁call▁begin｜>function<｜tool▁sep｜>" name "\n```json\n" args "\n```<｜tool▁call▁end｜>"

static const struct {
        enum reasoning_parser reasoning;
        enum tool_parser tools;
        bool thinking;
        const char *text, *told; /* told: R(…) C(…) N(…) A(…) run together */
} outputs[] = {
    {REASONING_NONE, TOOLS_NONE, false, "plain <think>x</think>", "C(plain <think>x</think>)"},
    {REASONING_DEEPSEEK_R1, TOOLS_NONE, false, "<think>a b</think>c", "R(a b)C(c)"},
    {REASONING_DEEPSEEK_R1, TOOLS_NONE, false, "a b</think>c", "R(a b)C(c)"},
    {REASONING_DEEPSEEK_R1, TOOLS_NONE, false, "all of it", "R(all of it)"},
    {REASONING_DEEPSEEK_R1, TOOLS_NONE, false, "<thin", "R(<thin)"},
    {REASONING_DEEPSEEK_R1, TOOLS_NONE, false, "a</thinx</think>", "R(a</thinx)"},
    {REASONING_DEEPSEEK_V3, TOOLS_NONE, false, "a</think>b", "C(a</think>b)"},
    {REASONING_DEEPSEEK_V3, TOOLS_NONE, true, "a</think>b", "R(a)C(b)"},
    {REASONING_NONE, TOOLS_DEEPSEEK_V31, false, "hi" CALLS(CALL("f", "{\"a\":1}") CALL("g", "{}")),
        "C(hi)N(f)A({\"a\":1})N(g)A({})"},
    {REASONING_NONE, TOOLS_DEEPSEEK_V31, false, CALLS(CALL("f", "{}")) "tail", "N(f)A({})"},
    {REASONING_NONE, TOOLS_DEEPSEEK_V31, false, "x<｜tool▁calls▁begin｜>never", "C(x<｜tool▁calls▁begin｜>never)"},
    {REASONING_NONE, TOOLS_DEEPSEEK_V31, false, "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>f",
        "C(<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>f)"},
    {REASONING_NONE, TOOLS_DEEPSEEK_V31, false, "a < b <｜tool", "C(a < b <｜tool)"},
    {REASONING_NONE, TOOLS_DEEPSEEK_V3, false, CALLS(FENCED("f", "{\"x\": \"```\"}") "\n" FENCED("g", "{}")),
        "N(f)A({\"x\": \"```\"})N(g)A({})"},
    {REASONING_DEEPSEEK_R1, TOOLS_DEEPSEEK_V31, false, "why</think>" CALLS(CALL("f", "{}")), "R(why)N(f)A({})"},
};

static void add_told(struct buf *told, struct output_parser *p, enum output_part *last, unsigned *last_tool) {
        static const char letters[] = "RCNA";
        struct output_piece piece;

        while (output_parser_next(p, &piece) == 1) {
                bool goes_on = told->len && piece.part == *last && piece.tool_index == *last_tool &&
                               piece.part != OUTPUT_TOOL_NAME;

                if (goes_on)
                        told->len--; /* the closing bracket */
                else
                        buf_printf(told, "%c(", letters[piece.part]);
                buf_add(told, piece.text);
                buf_add_char(told, ')');
                *last = piece.part;
                *last_tool = piece.tool_index;
        }
}

static void check_cut(size_t i, size_t step, size_t first) {
        struct output_parser_options o = {
            .reasoning = outputs[i].reasoning, .tools = outputs[i].tools, .thinking = outputs[i].thinking};
        struct output_parser *p = output_parser_new(&o);
        struct slice rest = slice_str(outputs[i].text);
        struct buf told = {0};
        enum output_part last = OUTPUT_CONTENT;
        unsigned last_tool = 0;
        bool begun = false;

        while (rest.len || !begun) {
                struct slice part = slice_take(&rest, begun || !first ? step : first);

                begun = true;
                assert_int_equal(output_parser_feed(p, part, rest.len == 0), 0);
                add_told(&told, p, &last, &last_tool);
        }
        if (strcmp(buf_cstr(&told), outputs[i].told))
                fail_msg("output %zu cut by %zu: %s, not %s", i, step, buf_cstr(&told), outputs[i].told);
        buf_free(&told);
        output_parser_free(p);
}

static void any_cut_of_generated_text_gives_the_same_parts(void **state) {
        (void)state;
        for (size_t i = 0; i < sizeof(outputs) / sizeof(*outputs); i++) {
                for (size_t step = 1; step < 12; step++)
                        check_cut(i, step, 0);
                for (size_t first = 0; first <= strlen(outputs[i].text); first++)
                        check_cut(i, 100000, first);
        }
}

int main(void) {
        const struct CMUnitTest tests[] = {
            cmocka_unit_test(the_family_is_told_from_the_template),
            cmocka_unit_test(every_recorded_talk_gives_the_recorded_prompt),
            cmocka_unit_test(any_cut_of_generated_text_gives_the_same_parts),
        };

        return cmocka_run_group_tests_name("chat", tests, NULL, NULL);
}
