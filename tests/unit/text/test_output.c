/* test_output.c - reasoning and tool calls are found in generated text, whatever the cut. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>

#include "base/rng.h"
#include "text/text.h"

#define BEGIN                "<｜tool▁calls▁begin｜>"
#define END                  "<｜tool▁calls▁end｜>"
#define CALL                 "<｜tool▁call▁begin｜>"
#define DONE                 "<｜tool▁call▁end｜>"
#define SEP                  "<｜tool▁sep｜>"
#define V3(name, arguments)  CALL "function" SEP name "\n```json\n" arguments "\n```" DONE
#define V31(name, arguments) CALL name SEP arguments DONE

/* What comes out is written as one text: R(…) reasoning, C(…) content, N<index>(…) a name, A<index>(…) arguments. */
static void add_piece(struct buf *log, struct output_piece p, enum output_part *last, unsigned *last_index) {
        static const char letters[] = {
            [OUTPUT_REASONING] = 'R', [OUTPUT_CONTENT] = 'C', [OUTPUT_TOOL_NAME] = 'N', [OUTPUT_TOOL_ARGUMENTS] = 'A'};
        bool tool = p.part == OUTPUT_TOOL_NAME || p.part == OUTPUT_TOOL_ARGUMENTS;

        assert_true(p.text.len > 0);
        if (log->len && *last == p.part && *last_index == p.tool_index && p.part != OUTPUT_TOOL_NAME)
                log->len--;
        else {
                buf_add_char(log, letters[p.part]);
                if (tool)
                        buf_printf(log, "%u", p.tool_index);
                buf_add_char(log, '(');
        }
        buf_add(log, p.text);
        buf_add_char(log, ')');
        *last = p.part;
        *last_index = p.tool_index;
}

struct cuts {
        size_t step; /* bytes; 0: random */
        struct rng *rng;
};

static void run(const struct output_parser_options *options, struct slice text, struct cuts cuts, struct buf *log) {
        struct output_parser *p = output_parser_new(options);
        enum output_part last = OUTPUT_CONTENT;
        unsigned last_index = 0;
        bool ended = false;

        assert_non_null(p);
        buf_reset(log);
        while (!ended) {
                size_t n = cuts.step                ? cuts.step
                           : rng_below(cuts.rng, 3) ? rng_below(cuts.rng, 4)
                                                    : rng_below(cuts.rng, 60);
                struct slice piece = slice_take(&text, n);
                struct output_piece out;
                int r;

                ended = text.len == 0;
                assert_int_equal(output_parser_feed(p, piece, ended), 0);
                while ((r = output_parser_next(p, &out)) == 1)
                        add_piece(log, out, &last, &last_index);
                assert_int_equal(r, 0);
        }
        output_parser_free(p);
}

static const struct output_parser_options plain = {0}, r1 = {.reasoning = REASONING_DEEPSEEK_R1},
                                          r1_closed = {.reasoning = REASONING_DEEPSEEK_R1,
                                              .prompt = CHAT_REASONING_CLOSED},
                                          v3_silent = {.reasoning = REASONING_DEEPSEEK_V3},
                                          v3_thinking = {.reasoning = REASONING_DEEPSEEK_V3,
                                              .thinking = true,
                                              .prompt = CHAT_REASONING_OPEN},
                                          tools_v3 = {.tools = TOOLS_DEEPSEEK_V3},
                                          tools_v31 = {.tools = TOOLS_DEEPSEEK_V31},
                                          both = {.reasoning = REASONING_DEEPSEEK_R1, .tools = TOOLS_DEEPSEEK_V31};

static const struct {
        const struct output_parser_options *options;
        const char *text, *out;
} cases[] = {
    {&plain, "", ""},
    {&plain, "<think>a</think>b" BEGIN V31("f", "{}") END, "C(<think>a</think>b" BEGIN V31("f", "{}") END ")"},
    {&r1, "", ""},
    {&r1, "a", "R(a)"},
    {&r1, "a</think>b", "R(a)C(b)"},
    {&r1, "<think>a</think>\n\nb", "R(a)C(\n\nb)"},
    {&r1, "<think>\na\n</think>b</think>c", "R(\na\n)C(b</think>c)"},
    {&r1, "</think>b", "C(b)"},
    {&r1, "a</think>", "R(a)"},
    {&r1, "a<think>b</think>c", "R(a<think>b)C(c)"},
    {&r1, "<thin", "R(<thin)"},
    {&r1, "a</thin", "R(a</thin)"},
    {&r1, "a</thinx</think>", "R(a</thinx)"},
    {&r1, "a<</think>b", "R(a<)C(b)"},
    {&r1_closed, "a</think>b", "C(a</think>b)"},
    {&v3_silent, "<think>a</think>b", "C(<think>a</think>b)"},
    {&v3_thinking, "a</think>b", "R(a)C(b)"},
    {&tools_v3, "no tools", "C(no tools)"},
    {&tools_v3, BEGIN V3("f", "{\"a\": 1}") END, "N0(f)A0({\"a\": 1})"},
    {&tools_v3, "Let me see.\n" BEGIN V3("f", "{}") "\n" V3("g", "{\"x\":\n2}") END,
        "C(Let me see.\n)N0(f)A0({})N1(g)A1({\"x\":\n2})"},
    {&tools_v3, BEGIN V3("f", "{\"code\": \"\n```\n\"}") END, "N0(f)A0({\"code\": \"\n```\n\"})"},
    {&tools_v3, BEGIN CALL "function" SEP "f\n```json\n{}" DONE END, "N0(f)A0({})"},
    {&tools_v3, BEGIN CALL "function" SEP "f\n```json\n{}\n```", "N0(f)A0({})"},
    {&tools_v3, BEGIN CALL "function" SEP "f\n```json\n{}\n``", "N0(f)A0({}\n``)"},
    {&tools_v3, BEGIN CALL "function" SEP "f\n```json\n{\"a", "N0(f)A0({\"a)"},
    {&tools_v3, BEGIN CALL "function" SEP "f\n```json\n", "N0(f)"},
    {&tools_v3, BEGIN CALL "function" SEP "f\n```js", "C(" BEGIN CALL "function" SEP "f\n```js)"},
    {&tools_v3, BEGIN CALL "function" SEP "f {}" DONE END, "C(" BEGIN CALL "function" SEP "f {}" DONE END ")"},
    {&tools_v3, BEGIN V31("f", "{}") END, "C(" BEGIN V31("f", "{}") END ")"},
    {&tools_v31, BEGIN V31("f", "{\"a\": 1}") END, "N0(f)A0({\"a\": 1})"},
    {&tools_v31, BEGIN V31("f", "") END, "N0(f)"},
    {&tools_v31, BEGIN V31("f", "{}") V31("g", "[]") END, "N0(f)A0({})N1(g)A1([])"},
    {&tools_v31, "a" BEGIN "\n" V31("f", "{}") "\n\n" V31("g", "1") "\n" END "\n", "C(a)N0(f)A0({})N1(g)A1(1)"},
    {&tools_v31, BEGIN V31("f", "{}") END " more", "N0(f)A0({})C(more)"},
    {&tools_v31, BEGIN V31("f", "{}") END BEGIN V31("g", "{}") END, "N0(f)A0({})N1(g)A1({})"},
    {&tools_v31, BEGIN V31("f", "{}"), "N0(f)A0({})"},
    {&tools_v31, BEGIN V31("f", "{}") "\n", "N0(f)A0({})"},
    {&tools_v31, BEGIN V31("f", "{}") "<｜tool▁ca", "N0(f)A0({})C(<｜tool▁ca)"},
    {&tools_v31, BEGIN V31("f", "{}") "oops " V31("g", "{}") END, "N0(f)A0({})C(oops " V31("g", "{}") END ")"},
    {&tools_v31, BEGIN CALL "f" SEP "{}" END "x", "N0(f)A0({})C(x)"},
    {&tools_v31, BEGIN CALL "f" SEP "{\"a\": \"<｜tool▁cal", "N0(f)A0({\"a\": \"<｜tool▁cal)"},
    {&tools_v31, BEGIN END, "C(" BEGIN END ")"},
    {&tools_v31, BEGIN, "C(" BEGIN ")"},
    {&tools_v31, BEGIN "f", "C(" BEGIN "f)"},
    {&tools_v31, BEGIN CALL, "C(" BEGIN CALL ")"},
    {&tools_v31, BEGIN CALL "f", "C(" BEGIN CALL "f)"},
    {&tools_v31, BEGIN CALL SEP "{}" DONE END, "C(" BEGIN CALL SEP "{}" DONE END ")"},
    {&tools_v31, BEGIN CALL "f\ng" SEP "{}" DONE END, "C(" BEGIN CALL "f\ng" SEP "{}" DONE END ")"},
    {&tools_v31, BEGIN CALL "a<b" SEP "{}" DONE END, "C(" BEGIN CALL "a<b" SEP "{}" DONE END ")"},
    {&tools_v31, BEGIN "x" BEGIN V31("f", "{}") END, "C(" BEGIN "x)N0(f)A0({})"},
    {&tools_v31, V31("f", "{}"), "C(" V31("f", "{}") ")"},
    {&tools_v31, "<｜tool▁calls▁begin", "C(<｜tool▁calls▁begin)"},
    {&both, "hm</think>" BEGIN V31("f", "{}") END, "R(hm)N0(f)A0({})"},
    {&both, "hm " BEGIN V31("f", "{}") END, "R(hm " BEGIN V31("f", "{}") END ")"},
    {&both, "hm</think>ok\n\n" BEGIN V31("f", "{}") END, "R(hm)C(ok\n\n)N0(f)A0({})"},
};
#define CASES (sizeof(cases) / sizeof(*cases))

static void parts_are_found(void **state) {
        struct buf log = {0};

        for (size_t i = 0; i < CASES; i++) {
                run(cases[i].options, slice_str(cases[i].text), (struct cuts){.step = SIZE_MAX}, &log);
                if (strcmp(buf_cstr(&log), cases[i].out) != 0)
                        fail_msg("%s\n  gives %s\n  not   %s", cases[i].text, buf_cstr(&log), cases[i].out);
        }
        buf_free(&log);
}

static void any_cut_gives_the_same_parts(void **state) {
        struct buf log = {0};
        struct rng rng;

        rng_seed(&rng, 4);
        for (size_t i = 0; i < CASES; i++)
                for (int n = 0; n < 60; n++) {
                        run(cases[i].options, slice_str(cases[i].text),
                            (struct cuts){(size_t)(n < 40 ? n + 1 : 0), &rng}, &log);
                        if (strcmp(buf_cstr(&log), cases[i].out) != 0)
                                fail_msg("%s\n  gives %s\n  not   %s", cases[i].text, buf_cstr(&log), cases[i].out);
                }
        buf_free(&log);
}

/* Texts made of markers and their parts, in every order. */
static void any_mixture_gives_the_same_parts_at_any_cut(void **state) {
        static const char *const bits[] = {BEGIN, END, CALL, DONE, SEP, "<think>", "</think>", "\n```json\n", "\n```",
            "\n", " ", "f", "{}", "<", "<｜tool▁ca", "</thi", "``", "function" SEP, V3("f", "{}"), V31("g", "[]"), "中",
            BEGIN CALL "h" SEP, BEGIN CALL "function" SEP "h\n```json\n",
            "                                                                                                    "};
        struct buf text = {0}, whole = {0}, cut = {0};
        struct rng rng;

        rng_seed(&rng, 5);
        for (int n = 0; n < 20000; n++) {
                struct output_parser_options o = {.reasoning = (enum reasoning_parser)rng_below(&rng, 3),
                    .tools = (enum tool_parser)rng_below(&rng, 3),
                    .prompt = (enum chat_reasoning)rng_below(&rng, 3),
                    .thinking = rng_below(&rng, 2)};

                buf_reset(&text);
                for (size_t k = rng_below(&rng, n % 100 ? 12 : 60); k > 0; k--)
                        buf_add_str(&text, bits[rng_below(&rng, sizeof(bits) / sizeof(*bits))]);
                run(&o, buf_slice(&text), (struct cuts){.step = SIZE_MAX}, &whole);
                run(&o, buf_slice(&text), (struct cuts){0, &rng}, &cut);
                if (!slice_eq(buf_slice(&whole), buf_slice(&cut)))
                        fail_msg("%s\n  gives %s\n  or    %s", buf_cstr(&text), buf_cstr(&whole), buf_cstr(&cut));
                run(&o, buf_slice(&text), (struct cuts){.step = 1}, &cut);
                if (!slice_eq(buf_slice(&whole), buf_slice(&cut)))
                        fail_msg("%s\n  gives %s\n  or    %s", buf_cstr(&text), buf_cstr(&whole), buf_cstr(&cut));
        }
        buf_free(&text);
        buf_free(&whole);
        buf_free(&cut);
}

/* A name that never ends is not waited for, at any cut: head and white space are bounded. */
static void what_is_too_long_for_a_call_is_content_at_any_cut(void **state) {
        struct buf text = {0}, whole = {0}, cut = {0};
        struct rng rng;

        rng_seed(&rng, 6);
        for (size_t length = 900; length < 1200; length++) {
                static const char fills[] = {'n', ' '};
                char fill = fills[length % 2];

                buf_reset(&text);
                buf_add_str(&text, length % 3 ? BEGIN V31("f", "{}") : BEGIN);
                for (size_t i = 0; i < length; i++) {
                        if (i == length / 2 && fill == 'n')
                                buf_add_str(&text, CALL);
                        if (i >= length / 2 || fill == ' ')
                                buf_add_char(&text, fill);
                        else
                                buf_add_char(&text, '\n');
                }
                if (length % 5 == 0)
                        buf_add_str(&text, fill == 'n' ? SEP "{}" DONE END : END);
                else if (length % 5 == 1)
                        buf_add_str(&text, V31("g", "{}") END "x");
                run(&tools_v31, buf_slice(&text), (struct cuts){.step = SIZE_MAX}, &whole);
                for (int n = 0; n < 3; n++) {
                        run(&tools_v31, buf_slice(&text),
                            (struct cuts){(size_t)(n == 0   ? 1
                                                   : n == 1 ? 7
                                                            : 0),
                                &rng},
                            &cut);
                        if (!slice_eq(buf_slice(&whole), buf_slice(&cut)))
                                fail_msg("%zu: %s\n  gives %s\n  or    %s", length, buf_cstr(&text), buf_cstr(&whole),
                                    buf_cstr(&cut));
                }
        }
        buf_free(&text);
        buf_free(&whole);
        buf_free(&cut);
}

static void arguments_go_out_as_they_come(void **state) {
        struct output_parser *p = output_parser_new(&tools_v31);
        struct output_piece out;

        assert_int_equal(output_parser_feed(p, SLICE_LIT(BEGIN CALL "f" SEP), false), 0);
        assert_int_equal(output_parser_next(p, &out), 1);
        assert_int_equal(out.part, OUTPUT_TOOL_NAME);
        assert_int_equal(output_parser_next(p, &out), 0);
        for (int i = 0; i < 100; i++) {
                assert_int_equal(output_parser_feed(p, SLICE_LIT("{\"a\":"), false), 0);
                assert_int_equal(output_parser_next(p, &out), 1);
                assert_int_equal(out.part, OUTPUT_TOOL_ARGUMENTS);
                assert_true(slice_is(out.text, "{\"a\":"));
                assert_int_equal(output_parser_next(p, &out), 0);
        }
        output_parser_free(p);
}

static void parsers_are_known_by_vllms_names(void **state) {
        enum reasoning_parser reasoning;
        enum tool_parser tools;
        struct error e = {0};

        assert_int_equal(reasoning_parser_parse(SLICE_LIT("deepseek_r1"), &reasoning, &e), 0);
        assert_int_equal(reasoning, REASONING_DEEPSEEK_R1);
        assert_int_equal(reasoning_parser_parse(SLICE_LIT("deepseek_v3"), &reasoning, &e), 0);
        assert_int_equal(reasoning, REASONING_DEEPSEEK_V3);
        assert_int_equal(tool_parser_parse(SLICE_LIT("deepseek_v3"), &tools, &e), 0);
        assert_int_equal(tools, TOOLS_DEEPSEEK_V3);
        assert_int_equal(tool_parser_parse(SLICE_LIT("deepseek_v31"), &tools, &e), 0);
        assert_int_equal(tools, TOOLS_DEEPSEEK_V31);
        assert_int_equal(reasoning_parser_parse(SLICE_LIT("qwen3"), &reasoning, &e), -EINVAL);
        assert_int_equal(tool_parser_parse(SLICE_LIT("hermes"), &tools, &e), -EINVAL);
        assert_non_null(strstr(e.text, "deepseek_v31"));
}

int main(void) {
        const struct CMUnitTest tests[] = {
            cmocka_unit_test(parts_are_found),
            cmocka_unit_test(any_cut_gives_the_same_parts),
            cmocka_unit_test(any_mixture_gives_the_same_parts_at_any_cut),
            cmocka_unit_test(what_is_too_long_for_a_call_is_content_at_any_cut),
            cmocka_unit_test(arguments_go_out_as_they_come),
            cmocka_unit_test(parsers_are_known_by_vllms_names),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
