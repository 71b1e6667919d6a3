/* test_tokenizer_json.c - what tokenizer.json may ask for: steps, added tokens and merges as the reference tokenizer does
 * them (vectors of tests/data/text/make_vectors.py), everything else refused with a reason. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>

#include "text_data.h"

static struct tokenizer *parse_value(yyjson_val *v) {
        struct tokenizer *t = NULL;
        struct error e = {0};
        struct buf b = {0};

        json_add_value(&b, v);
        if (tokenizer_parse(buf_slice(&b), SLICE_NONE, &t, &e) < 0)
                fail_msg("%s: %s", buf_cstr(&b), e.text);
        buf_free(&b);
        return t;
}

static int add_piece(void *context, struct slice piece) {
        struct buf *b = context;

        if (b->len > 1)
                buf_add_char(b, ',');
        json_add_string(b, piece);
        return 0;
}

/* A byte-level tokenizer without merges around a pre-tokenizer. */
static void wrap_pre_tokenizer(struct buf *b, yyjson_val *pre) {
        buf_add_str(b, "{\"added_tokens\":[],\"pre_tokenizer\":");
        json_add_value(b, pre);
        buf_add_str(b, ",\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0},\"merges\":[]}}");
}

static void check_cuts(yyjson_val *line) {
        struct buf json = {0}, expected = {0}, got = {0};
        struct tokenizer *t = NULL;
        struct error e = {0};
        struct split_run run;
        size_t i, n;
        yyjson_val *cut;

        wrap_pre_tokenizer(&json, json_get(line, "pre_tokenizer"));
        if (tokenizer_parse(buf_slice(&json), SLICE_NONE, &t, &e) < 0)
                fail_msg("%s: %s", buf_cstr(&json), e.text);
        assert_int_equal(split_run_init(&run), 0);
        yyjson_arr_foreach(json_get(line, "cuts"), i, n, cut) {
                struct slice text = json_slice(yyjson_arr_get_first(cut));

                buf_reset(&expected);
                buf_reset(&got);
                json_add_value(&expected, yyjson_arr_get_last(cut));
                buf_add_char(&got, '[');
                assert_int_equal(splitter_split(&t->splitter, &run, text, add_piece, &got), 0);
                buf_add_char(&got, ']');
                if (!slice_eq(buf_slice(&expected), buf_slice(&got)))
                        fail_msg("%s: \"%.*s\": %s instead of %s", buf_cstr(&json), SLICE_ARG(text), buf_cstr(&got),
                            buf_cstr(&expected));
        }
        split_run_free(&run);
        tokenizer_free(t);
        buf_free(&json);
        buf_free(&expected);
        buf_free(&got);
}

static void pre_tokenizers_cut_as_the_reference_does(void **state) {
        struct arena a = {0};
        struct slice rest = read_data(&a, "split.jsonl");
        yyjson_doc *doc;

        while ((doc = next_line(&rest))) {
                check_cuts(yyjson_doc_get_root(doc));
                yyjson_doc_free(doc);
        }
        arena_free(&a);
}

static void check_case(const struct tokenizer *t, struct slice name, yyjson_val *row) {
        struct arena arena = {0};
        struct token_list list = {0};
        yyjson_val *expected = json_get(row, "ids"), *v;
        struct slice text = json_get_slice(row, "text");
        struct buf plain = {0}, skipped = {0};
        size_t i, n;

        if (json_get(row, "text")) {
                assert_int_equal(tokenizer_encode(t, text, TOKENIZE_PLAIN, &arena, &list), 0);
                if (list.count != yyjson_arr_size(expected))
                        fail_msg("%.*s: \"%.*s\" gives %zu tokens", SLICE_ARG(name), SLICE_ARG(text), list.count);
        } else {
                list =
                    (struct token_list){arena_array(&arena, yyjson_arr_size(expected), 4), yyjson_arr_size(expected)};
                yyjson_arr_foreach(expected, i, n, v) list.ids[i] = (uint32_t)yyjson_get_uint(v);
        }
        yyjson_arr_foreach(expected, i, n, v) if (yyjson_get_uint(v) != list.ids[i])
            fail_msg("%.*s: \"%.*s\" token %zu is %u", SLICE_ARG(name), SLICE_ARG(text), i, list.ids[i]);
        tokenizer_decode(t, list.ids, list.count, false, &plain);
        tokenizer_decode(t, list.ids, list.count, true, &skipped);
        if (!slice_eq(buf_slice(&plain), json_get_slice(row, "decoded")) ||
            !slice_eq(buf_slice(&skipped), json_get_slice(row, "decoded_skip_special")))
                fail_msg("%.*s: \"%.*s\" decodes to \"%s\"", SLICE_ARG(name), SLICE_ARG(text), buf_cstr(&plain));
        buf_free(&plain);
        buf_free(&skipped);
        arena_free(&arena);
}

static void made_up_tokenizers_encode_as_the_reference_does(void **state) {
        struct arena a = {0};
        struct slice rest = read_data(&a, "bpe.jsonl");
        yyjson_doc *doc;

        while ((doc = next_line(&rest))) {
                yyjson_val *line = yyjson_doc_get_root(doc), *row;
                struct tokenizer *t = parse_value(json_get(line, "tokenizer"));
                size_t i, n;

                yyjson_arr_foreach(json_get(line, "cases"), i, n, row) check_case(t, json_get_slice(line, "name"), row);
                tokenizer_free(t);
                yyjson_doc_free(doc);
        }
        arena_free(&a);
}

#define BYTE_LEVEL     "\"pre_tokenizer\":{\"type\":\"ByteLevel\",\"add_prefix_space\":false,\"use_regex\":false}"
#define MODEL(members) "{" BYTE_LEVEL ",\"model\":{\"type\":\"BPE\"," members "}}"
#define STEPS(steps)   "{\"pre_tokenizer\":" steps ",\"model\":{\"vocab\":{\"a\":0},\"merges\":[]}}"
#define SPLIT(pattern) STEPS("{\"type\":\"Split\",\"behavior\":\"Isolated\",\"pattern\":{\"Regex\":\"" pattern "\"}}")
#define REST(members)  "{" BYTE_LEVEL ",\"model\":{\"vocab\":{\"a\":0},\"merges\":[]}," members "}"

static const struct {
        const char *json, *reason;
} refused[] = {
    {"", "empty"},
    {"{", "not JSON"},
    {"[]", "pre_tokenizer"},
    {"{" BYTE_LEVEL "}", "no model"},
    {"{" BYTE_LEVEL ",\"model\":{\"type\":\"Unigram\"}}", "Unigram"},
    {MODEL("\"vocab\":{\"a\":0}"), "merges"},
    {MODEL("\"vocab\":{},\"merges\":[]"), "vocab"},
    {MODEL("\"vocab\":[],\"merges\":[]"), "vocab"},
    {MODEL("\"vocab\":{\"a\":\"0\"},\"merges\":[]"), "integer"},
    {MODEL("\"vocab\":{\"a\":-1},\"merges\":[]"), "-1"},
    {MODEL("\"vocab\":{\"a\":4294967295},\"merges\":[]"), "4294967295"},
    {MODEL("\"vocab\":{\"a\":9999999999999},\"merges\":[]"), "9999999999999"},
    {MODEL("\"vocab\":{\"a\":1,\"b\":1},\"merges\":[]"), "twice"},
    {MODEL("\"vocab\":{\"a\":1,\"a\":2},\"merges\":[]"), "twice"},
    {MODEL("\"vocab\":{\"a\":0,\"b\":1},\"merges\":[\"a b\"]"), "not in model.vocab"},
    {MODEL("\"vocab\":{\"a\":0,\"aa\":1},\"merges\":[\"a\"]"), "not a pair"},
    {MODEL("\"vocab\":{\"a\":0,\"aa\":1},\"merges\":[[\"a\",\"a\",\"a\"]]"), "not a pair"},
    {MODEL("\"vocab\":{\"a\":0,\"aa\":1},\"merges\":[[\"a\",7]]"), "not a pair"},
    {MODEL("\"vocab\":{\"a\":0,\"aa\":1},\"merges\":[\" a\"]"), "not a pair"},
    {MODEL("\"vocab\":{\"a\":0,\"aa\":1},\"merges\":[\"a a a\"]"), "not in model.vocab"},
    {MODEL("\"vocab\":{\"a\":0},\"merges\":[],\"dropout\":0.1"), "dropout"},
    {MODEL("\"vocab\":{\"a\":0},\"merges\":[],\"continuing_subword_prefix\":\"##\""), "continuing_subword_prefix"},
    {MODEL("\"vocab\":{\"a\":0},\"merges\":[],\"byte_fallback\":true"), "byte_fallback"},
    {MODEL("\"vocab\":{\"a\":0},\"merges\":[],\"unk_token\":\"a\""), "unk_token"},
    {STEPS("null"), "pre_tokenizer"},
    {STEPS("{\"type\":\"Metaspace\"}"), "Metaspace"},
    {STEPS("{\"type\":\"Digits\"}"), "ByteLevel"},
    {STEPS("{\"type\":\"Sequence\",\"pretokenizers\":[{\"type\":\"ByteLevel\"},{\"type\":\"Digits\"}]}"),
        "after ByteLevel"},
    {STEPS("{\"type\":\"Split\",\"behavior\":\"Torn\",\"pattern\":{\"String\":\"a\"}}"), "Torn"},
    {STEPS("{\"type\":\"Split\",\"behavior\":\"Isolated\",\"pattern\":{}}"), "neither"},
    {SPLIT("("), "pattern"},
    {SPLIT("[a-z&&[^b]]"), "&&"},
    {SPLIT("[a[bc]]"), "class within"},
    {SPLIT("[[:graph:]]"), "named class"},
    {SPLIT("\\\\h+"), "escape"},
    {SPLIT("a\\\\Kb"), "escape"},
    {SPLIT("[\\\\W]"), "\\W"},
    {SPLIT("(?m:.)"), "option"},
    {SPLIT("(*LIMIT_MATCH=1)a"), "(*"},
    {SPLIT("a{1,2}+"), "}+"},
    {SPLIT("\\\\u12"), "\\u"},
    {SPLIT("a\\\\"), "escape"},
    {REST("\"normalizer\":{\"type\":\"NFC\"}"), "NFC"},
    {REST("\"decoder\":{\"type\":\"WordPiece\"}"), "WordPiece"},
    {REST("\"post_processor\":{\"type\":\"BertProcessing\"}"), "BertProcessing"},
    {REST("\"post_processor\":{\"type\":\"TemplateProcessing\",\"single\":[{\"SpecialToken\":{\"id\":\"<s>\"}}]}"),
        "<s>"},
    {REST("\"added_tokens\":[{\"content\":\"x\"}]"), "no id"},
    {REST("\"added_tokens\":[{\"id\":3,\"content\":\"\"}]"), "no content"},
    {REST("\"added_tokens\":[{\"id\":0,\"content\":\"x\"}]"), "twice"},
    {REST("\"added_tokens\":[{\"id\":7,\"content\":\"a\"}]"), "0 and 7"},
    {REST("\"added_tokens\":[{\"id\":7,\"content\":\"x\"},{\"id\":8,\"content\":\"x\"}]"), "7 and 8"},
    {REST("\"added_tokens\":[{\"id\":-7,\"content\":\"x\"}]"), "-7"},
};

static void what_would_encode_differently_is_refused(void **state) {
        for (size_t i = 0; i < sizeof(refused) / sizeof(*refused); i++) {
                struct tokenizer *t = NULL;
                struct error e = {0};

                if (tokenizer_parse(slice_str(refused[i].json), SLICE_NONE, &t, &e) != -EINVAL)
                        fail_msg("accepted: %s", refused[i].json);
                if (!strstr(e.text, refused[i].reason))
                        fail_msg("%s: \"%s\" does not say \"%s\"", refused[i].json, e.text, refused[i].reason);
                assert_null(t);
        }
}

static void a_pattern_that_explodes_ends_with_an_error(void **state) {
        static const char json[] = SPLIT("(a|a)*(a|a)*(a|a)*[bc]");
        struct slice text =
            SLICE_LIT("aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa");
        struct buf with_byte_level = {0};
        struct arena arena = {0};
        struct token_list list;
        struct tokenizer *t;

        buf_add_str(&with_byte_level,
            "{\"pre_tokenizer\":{\"type\":\"Sequence\",\"pretokenizers\":[{\"type\":\"Split\","
            "\"behavior\":\"Isolated\",\"pattern\":{\"Regex\":\"(a|a)*(a|a)*(a|a)*[bc]\"}},{\"type\":\"ByteLevel\"}]},"
            "\"model\":{\"vocab\":{\"a\":0},\"merges\":[]}}");
        assert_int_equal(tokenizer_parse(slice_str(json), SLICE_NONE, &t, NULL), -EINVAL);
        assert_int_equal(tokenizer_parse(buf_slice(&with_byte_level), SLICE_NONE, &t, NULL), 0);
        assert_int_equal(tokenizer_encode(t, text, TOKENIZE_PLAIN, &arena, &list), -E2BIG);
        tokenizer_free(t);
        buf_free(&with_byte_level);
        arena_free(&arena);
}

static const struct {
        const char *config, *processor; /* what stands beside the text, as ids 1 (BOS) and 2 (EOS) around 0 */
        size_t count;
        uint32_t ids[3];
} around[] = {
    {"{}", "null", 1, {0}},
    {"{\"bos_token\":\"<s>\"}", "null", 1, {0}},
    {"{\"bos_token\":\"<s>\",\"add_bos_token\":true}", "null", 2, {1, 0}},
    {"{\"bos_token\":{\"content\":\"<s>\"},\"add_bos_token\":true}", "{\"type\":\"ByteLevel\"}", 2, {1, 0}},
    {"{\"bos_token\":\"<s>\",\"tokenizer_class\":\"LlamaTokenizerFast\"}", "null", 2, {1, 0}},
    {"{\"bos_token\":\"<s>\",\"eos_token\":\"</s>\",\"add_bos_token\":true,\"add_eos_token\":true}", "null", 3,
        {1, 0, 2}},
    {"{\"add_bos_token\":true}", "null", 1, {0}},
    {"{}",
        "{\"type\":\"TemplateProcessing\",\"single\":[{\"SpecialToken\":{\"id\":\"<s>\"}},{\"Sequence\":{\"id\":\"A\"}}"
        "]}",
        2, {1, 0}},
    {"{}",
        "{\"type\":\"Sequence\",\"processors\":[{\"type\":\"ByteLevel\"},{\"type\":\"TemplateProcessing\",\"single\":[{"
        "\"Sequence\":"
        "{\"id\":\"A\"}},{\"SpecialToken\":{\"id\":\"</s>\"}}]}]}",
        2, {0, 2}},
    {"{\"bos_token\":\"<s>\",\"add_bos_token\":false,\"tokenizer_class\":\"LlamaTokenizer\"}",
        "{\"type\":\"TemplateProcessing\",\"single\":[{\"SpecialToken\":{\"id\":\"<s>\"}},{\"Sequence\":{\"id\":\"A\"}}"
        "]}",
        1, {0}},
};

static void special_tokens_stand_where_the_files_put_them(void **state) {
        for (size_t i = 0; i < sizeof(around) / sizeof(*around); i++) {
                struct arena arena = {0};
                const char *json = arena_printf(&arena,
                    "{" BYTE_LEVEL
                    ",\"post_processor\":%s,\"model\":{\"vocab\":{\"a\":0},\"merges\":[]},\"added_tokens\":"
                    "[{\"id\":1,\"content\":\"<s>\",\"special\":true},{\"id\":2,\"content\":\"</"
                    "s>\",\"special\":true}]}",
                    around[i].processor);
                struct token_list list;
                struct tokenizer *t = NULL;

                assert_int_equal(tokenizer_parse(slice_str(json), slice_str(around[i].config), &t, NULL), 0);
                assert_int_equal(tokenizer_encode(t, SLICE_LIT("a"), TOKENIZE_ADD_SPECIAL, &arena, &list), 0);
                assert_int_equal(list.count, around[i].count);
                assert_memory_equal(list.ids, around[i].ids, list.count * sizeof(*list.ids));
                assert_int_equal(tokenizer_encode(t, SLICE_LIT("a"), TOKENIZE_PLAIN, &arena, &list), 0);
                assert_int_equal(list.count, 1);
                tokenizer_free(t);
                arena_free(&arena);
        }
}

static void a_folder_without_the_file_says_so(void **state) {
        struct tokenizer *t;
        struct error e = {0};

        assert_int_equal(tokenizer_load("/nonexistent", &t, &e), -ENOENT);
        assert_non_null(strstr(e.text, "/nonexistent/tokenizer.json"));
}

int main(void) {
        const struct CMUnitTest tests[] = {
            cmocka_unit_test(pre_tokenizers_cut_as_the_reference_does),
            cmocka_unit_test(made_up_tokenizers_encode_as_the_reference_does),
            cmocka_unit_test(what_would_encode_differently_is_refused),
            cmocka_unit_test(a_pattern_that_explodes_ends_with_an_error),
            cmocka_unit_test(special_tokens_stand_where_the_files_put_them),
            cmocka_unit_test(a_folder_without_the_file_says_so),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
