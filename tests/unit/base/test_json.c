/* test_json.c - JSON read with care, JSON written so that it reads back as the same. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "base/json.h"
#include "base/rng.h"
#include "failmalloc.h"
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

/* ---- strings -------------------------------------------------------------------------------------------------------- */

/* What a reader gets from the string that json_add_string makes of `s`. Free with buf_free. */
static struct buf through_json(struct slice s) {
        struct buf text = {0}, out = {0};
        yyjson_doc *doc;

        json_add_string(&text, s);
        for (size_t i = 0; i < text.len; i++)
                assert_true((unsigned char)text.ptr[i] >= 0x20); /* no raw control character */
        assert_int_equal(json_parse(buf_slice(&text), &doc, NULL), 0);
        assert_true(yyjson_is_str(yyjson_doc_get_root(doc)));
        buf_add(&out, json_slice(yyjson_doc_get_root(doc)));
        yyjson_doc_free(doc);
        buf_free(&text);
        return out;
}

static void every_byte_comes_through_a_string(void **state) {
        for (int c = 0; c < 256; c++) {
                char text[3] = {'a', (char)c, 'b'};
                struct buf read = through_json(slice_of(text, 3));

                if (c < 0x80)
                        assert_true(slice_eq(buf_slice(&read), slice_of(text, 3)));
                else /* no character by itself */
                        assert_true(slice_is(buf_slice(&read), "a\xef\xbf\xbd"
                                                               "b"));
                buf_free(&read);
        }
}

static size_t utf8_encode(uint32_t c, char *to) {
        if (c < 0x80)
                return to[0] = (char)c, 1;
        if (c < 0x800)
                return to[0] = (char)(0xc0 | c >> 6), to[1] = (char)(0x80 | (c & 63)), 2;
        if (c < 0x10000)
                return to[0] = (char)(0xe0 | c >> 12), to[1] = (char)(0x80 | (c >> 6 & 63)),
                       to[2] = (char)(0x80 | (c & 63)), 3;
        return to[0] = (char)(0xf0 | c >> 18), to[1] = (char)(0x80 | (c >> 12 & 63)),
               to[2] = (char)(0x80 | (c >> 6 & 63)), to[3] = (char)(0x80 | (c & 63)), 4;
}

static void every_character_comes_through_a_string(void **state) {
        for (uint32_t c = 0; c < 0x110000; c += c < 0x3000 ? 1 : 61) {
                char text[4];
                size_t len = utf8_encode(c, text);
                struct buf read = through_json(slice_of(text, len));
                bool surrogate = c >= 0xd800 && c < 0xe000;

                assert_int_equal(slice_eq(buf_slice(&read), slice_of(text, len)), !surrogate);
                buf_free(&read);
        }
}

static void no_bytes_make_a_string_that_is_not_utf8(void **state) {
        static const char *const bad[] = {"\xc0\x80", "\xc1\xbf", "\xe0\x9f\xbf", "\xf0\x8f\xbf\xbf",
            "\xf4\x90\x80\x80", "\xf5\x80\x80\x80", "\xed\xa0\x80", "\xe2\x82", "\xf0\x9f\x98", "\xc3", "\x80", "\xff",
            "\xfe\xff"};
        struct rng r;

        for (size_t i = 0; i < sizeof(bad) / sizeof(*bad); i++) {
                struct buf read = through_json(slice_str(bad[i]));

                for (size_t at = 0; at < read.len; at += 3)
                        assert_memory_equal(read.ptr + at, "\xef\xbf\xbd", 3);
                buf_free(&read);
        }
        rng_seed(&r, 1);
        for (int i = 0; i < 20000; i++) {
                char text[40];
                size_t len = rng_below(&r, sizeof(text));
                struct buf once, twice;

                for (size_t j = 0; j < len; j++)
                        text[j] = (char)(rng_below(&r, 3) ? rng_u64(&r) : "\xf0\x9f\x98\x80\"\\"[rng_below(&r, 6)]);
                once = through_json(slice_of(text, len)); /* a strict reader takes it */
                twice = through_json(buf_slice(&once));
                assert_true(slice_eq(buf_slice(&once), buf_slice(&twice)));
                buf_free(&once);
                buf_free(&twice);
        }
}

/* ---- the writer ------------------------------------------------------------------------------------------------------ */

static void write_random(struct json_writer *w, struct rng *r, int depth) {
        char text[16];
        size_t len = rng_below(r, sizeof(text));

        for (size_t i = 0; i < len; i++)
                text[i] = (char)(' ' + rng_below(r, 95));
        switch (rng_below(r, depth < 6 ? 10 : 8)) {
        case 0:
                json_null(w);
                return;
        case 1:
                json_bool(w, rng_below(r, 2));
                return;
        case 2:
                json_i64(w, -(int64_t)(rng_u64(r) >> 1) - 1);
                return;
        case 3:
                json_u64(w, rng_u64(r));
                return;
        case 4:
                json_raw(w, SLICE_LIT("{\"raw\":[1,2,{}]}"));
                return;
        case 5:
                json_str(w, rng_below(r, 2) ? "text" : NULL);
                return;
        case 6:
        case 7:
                json_string(w, slice_of(text, len));
                return;
        case 8:
                json_open(w, '[');
                for (uint64_t n = rng_below(r, 5); n; n--)
                        write_random(w, r, depth + 1);
                json_close(w, ']');
                return;
        default:
                json_open(w, '{');
                for (uint64_t n = rng_below(r, 5); n; n--) {
                        if (n & 1)
                                json_key(w, "key");
                        else
                                json_key_slice(w, slice_of(text, len));
                        write_random(w, r, depth + 1);
                }
                json_close(w, '}');
        }
}

static void what_is_written_reads_back_and_prints_as_the_same(void **state) {
        struct rng r;

        rng_seed(&r, 2);
        for (int i = 0; i < 3000; i++) {
                struct buf b = {0}, again = {0};
                struct json_writer w = {.out = &b};
                struct error e = {0};
                yyjson_doc *doc = NULL;

                write_random(&w, &r, 0);
                assert_int_equal(w.depth, 0);
                if (json_parse(buf_slice(&b), &doc, &e) < 0)
                        fail_msg("%s in %s", e.text, buf_cstr(&b));
                json_add_value(&again, yyjson_doc_get_root(doc));
                assert_true(slice_eq(buf_slice(&b), buf_slice(&again)));
                yyjson_doc_free(doc);
                buf_free(&b);
                buf_free(&again);
        }
}

static void commas_stand_between_items_only(void **state) {
        struct buf b = {0};
        struct json_writer w = {.out = &b};

        json_open(&w, '{');
        json_key(&w, "a");
        json_open(&w, '[');
        json_close(&w, ']');
        json_key(&w, "b");
        json_open(&w, '[');
        json_i64(&w, -1);
        json_double(&w, 0.5);
        json_open(&w, '{');
        json_key(&w, "");
        json_null(&w);
        json_close(&w, '}');
        json_bool(&w, true);
        json_close(&w, ']');
        json_key(&w, "n");
        json_double(&w, NAN);
        json_close(&w, '}');
        assert_string_equal(buf_cstr(&b), "{\"a\":[],\"b\":[-1,0.5,{\"\":null},true],\"n\":null}");
        buf_reset(&b);
        json_add_value(&b, NULL);
        assert_string_equal(buf_cstr(&b), "null");
        buf_free(&b);
}

static void sixty_three_levels_can_be_written(void **state) {
        struct buf b = {0};
        struct json_writer w = {.out = &b};
        yyjson_doc *doc;

        for (int i = 0; i < 63; i++) {
                json_open(&w, i & 1 ? '{' : '[');
                if (i & 1)
                        json_key(&w, "k");
        }
        json_u64(&w, UINT64_MAX);
        for (int i = 62; i >= 0; i--)
                json_close(&w, i & 1 ? '}' : ']');
        assert_int_equal(json_parse(buf_slice(&b), &doc, NULL), 0);
        yyjson_doc_free(doc);
        buf_free(&b);
}

/* ---- reading -------------------------------------------------------------------------------------------------------- */

static int parse(struct slice text, struct error *e) {
        yyjson_doc *doc = NULL;
        int r = json_parse(text, &doc, e);

        assert_int_equal(r == 0, doc != NULL);
        yyjson_doc_free(doc);
        return r;
}

static int parse_nested(unsigned depth, const char *open, const char *close) {
        struct buf b = {0};
        int r;

        for (unsigned i = 0; i < depth; i++)
                buf_add_str(&b, open);
        buf_add_str(&b, "1");
        for (unsigned i = 0; i < depth; i++)
                buf_add_str(&b, close);
        r = parse(buf_slice(&b), NULL);
        buf_free(&b);
        return r;
}

static void depth_has_a_limit_that_strings_do_not_touch(void **state) {
        struct buf b = {0};

        assert_int_equal(parse_nested(JSON_DEPTH_MAX, "[", "]"), 0);
        assert_int_equal(parse_nested(JSON_DEPTH_MAX + 1, "[", "]"), -E2BIG);
        assert_int_equal(parse_nested(JSON_DEPTH_MAX, "{\"a\":", "}"), 0);
        assert_int_equal(parse_nested(JSON_DEPTH_MAX + 1, "{\"a\":", "}"), -E2BIG);
        assert_int_equal(parse_nested(1000000, "[", ""), -E2BIG);
        buf_add_str(&b, "[\"\\\"");
        for (int i = 0; i < 1000; i++)
                buf_add_str(&b, "[{\\\\");
        buf_add_str(&b, "\"]");
        assert_int_equal(parse(buf_slice(&b), NULL), 0);
        buf_reset(&b);
        for (int i = 0; i < 1000; i++) /* wide is not deep */
                buf_add_str(&b, i ? ",[]" : "[[]");
        buf_add_str(&b, "]");
        assert_int_equal(parse(buf_slice(&b), NULL), 0);
        buf_free(&b);
}

static void what_is_no_json_is_refused_with_its_place(void **state) {
        static const struct {
                const char *text, *say;
        } cases[] = {{"", "empty"}, {"\xef\xbb\xbf", "empty"}, {" ", "byte"}, {"{} {}", "byte 3"}, {"[1,]", "byte"},
            {"{a:1}", "byte 1"}, {"{\"a\" 1}", "byte"}, {"'a'", "byte 0"}, {"01", "byte"}, {"1.", "byte"},
            {"+1", "byte"}, {"NaN", "byte 0"}, {"Infinity", "byte 0"}, {"// x\n1", "byte 0"}, {"\"\t\"", "byte 1"},
            {"\"\xff\"", "byte 1"}, {"\"\\ud800\"", "byte"}, {"\"\\x\"", "byte"}, {"tru", "byte"},
            {"\xef\xbb\xbf[1 2]", "byte 6"}, {"\"a", "byte"}};

        for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
                struct error e = {0};

                assert_int_equal(parse(slice_str(cases[i].text), &e), -EINVAL);
                if (!strstr(e.text, cases[i].say))
                        fail_msg("%s: %s", cases[i].text, e.text);
        }
        assert_int_equal(parse(slice_of("1\0", 2), NULL), -EINVAL);
        assert_int_equal(parse(SLICE_LIT("\xef\xbb\xbf {\"a\": [1, 2.5e3, \"\\u00e9\"]} \r\n"), NULL), 0);
}

static void any_bytes_parse_or_fail(void **state) {
        static const char letters[] = "[]{}\",:\\u0041 tfn01-.eE\n\xc3\xa9";
        struct rng r;

        rng_seed(&r, 3);
        for (int i = 0; i < 50000; i++) {
                size_t len = rng_below(&r, 30);
                char *text = malloc(len + 1); /* exact, for the sanitizer */
                struct error e = {0};
                int said;

                for (size_t j = 0; j < len; j++)
                        text[j] = letters[rng_below(&r, sizeof(letters) - 1)];
                said = parse(slice_of(text, len), &e);
                assert_int_equal(said == 0, e.text[0] == 0);
                free(text);
        }
}

static void numbers_become_integers_only_when_they_are(void **state) {
        static const struct {
                const char *text;
                int r;
                int64_t value;
        } cases[] = {{"0", 0, 0}, {"-1", 0, -1}, {"9223372036854775807", 0, INT64_MAX},
            {"9223372036854775808", -ERANGE, 0}, {"-9223372036854775808", 0, INT64_MIN}, {"1e3", 0, 1000},
            {"3.0", 0, 3}, {"-0.0", 0, 0}, {"3.5", -EINVAL, 0}, {"1e19", -ERANGE, 0}, {"-1e19", -ERANGE, 0},
            {"18446744073709551616", -ERANGE, 0}, {"9223372036854775807.0", -ERANGE, 0}, {"\"1\"", -EINVAL, 0},
            {"true", -EINVAL, 0}, {"null", -EINVAL, 0}, {"[1]", -EINVAL, 0}};

        for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
                yyjson_doc *doc;
                yyjson_val *v;
                int64_t value = 7;
                double d;

                assert_int_equal(json_parse(slice_str(cases[i].text), &doc, NULL), 0);
                v = yyjson_doc_get_root(doc);
                assert_int_equal(json_to_i64(v, &value), cases[i].r);
                assert_true(value == (cases[i].r ? 7 : cases[i].value));
                assert_int_equal(json_to_double(v, &d), yyjson_is_num(v) ? 0 : -EINVAL);
                if (yyjson_is_num(v))
                        assert_true(d == strtod(cases[i].text, NULL));
                yyjson_doc_free(doc);
        }
        assert_int_equal(json_to_i64(NULL, &(int64_t){0}), -EINVAL);
        assert_int_equal(json_to_double(NULL, &(double){0}), -EINVAL);
}

static void what_python_takes_is_read_only_where_asked_for(void **state) {
        struct slice text = SLICE_LIT("[NaN,Infinity,-Infinity,1.5]");
        yyjson_doc *doc;
        struct buf b = {0};

        assert_int_equal(parse(text, NULL), -EINVAL);
        assert_int_equal(json_parse_flags(text, YYJSON_READ_ALLOW_INF_AND_NAN, &doc, NULL), 0);
        for (size_t i = 0; i < 3; i++) {
                yyjson_val *v = yyjson_arr_get(yyjson_doc_get_root(doc), i);

                assert_true(json_to_i64(v, &(int64_t){0}) < 0);
        }
        json_add_value(&b, yyjson_doc_get_root(doc));
        assert_string_equal(buf_cstr(&b), "[null,null,null,1.5]");
        yyjson_doc_free(doc);
        buf_free(&b);
}

static void members_are_found_or_have_their_default(void **state) {
        struct slice text = SLICE_LIT("{\"i\":5,\"d\":0.5,\"b\":true,\"s\":\"x\",\"n\":null,\"o\":{\"p\":{\"q\":1}},"
                                      "\"i\":6,\"a\":[1],\"nul\\u0000key\":1}");
        yyjson_doc *doc;
        yyjson_val *o;

        assert_int_equal(json_parse(text, &doc, NULL), 0);
        o = yyjson_doc_get_root(doc);
        assert_int_equal(json_get_i64(o, "i", 0), 6); /* the last of duplicates */
        assert_true(json_get_double(o, "d", 0) == 0.5);
        assert_true(json_get_double(o, "i", 0) == 6);
        assert_true(json_get_bool(o, "b", false));
        assert_true(slice_is(json_get_slice(o, "s"), "x"));
        assert_int_equal(json_get_i64(json_get(json_get(o, "o"), "p"), "q", 0), 1);
        assert_int_equal(json_get_i64(json_get(json_get(o, "no"), "p"), "q", 9), 9);
        assert_null(json_get(json_get(o, "a"), "p"));
        assert_null(json_get(NULL, "p"));
        assert_null(json_get(o, "nul"));
        assert_int_equal(json_get_i64(o, "n", 9), 9);
        assert_int_equal(json_get_i64(o, "s", 9), 9);
        assert_int_equal(json_get_i64(o, "d", 9), 9);
        assert_true(json_get_double(o, "b", 0.25) == 0.25);
        assert_true(json_get_bool(o, "i", true));
        assert_null(json_get_slice(o, "i").ptr);
        assert_null(json_slice(NULL).ptr);
        yyjson_doc_free(doc);
}

static void files_are_named_in_what_went_wrong(void **state) {
        char path[] = "/tmp/baton-test-json-XXXXXX";
        int fd = mkstemp(path);
        yyjson_doc *doc = NULL;
        struct error e = {0};

        assert_int_equal(write(fd, "{\"a\":1}", 7), 7);
        assert_int_equal(json_parse_file(path, 7, &doc, &e), 0);
        yyjson_doc_free(doc);
        doc = NULL;
        assert_int_equal(json_parse_file(path, 6, &doc, &e), -EFBIG);
        assert_non_null(strstr(e.text, path));
        assert_int_equal(write(fd, "x", 1), 1);
        assert_int_equal(json_parse_file(path, 100, &doc, &e), -EINVAL);
        assert_non_null(strstr(e.text, path));
        assert_non_null(strstr(e.text, "byte 7"));
        close(fd);
        unlink(path);
        assert_int_equal(json_parse_file(path, 100, &doc, &e), -ENOENT);
        assert_non_null(strstr(e.text, path));
        assert_int_equal(json_parse_file("/tmp", 100, &doc, &e), -EISDIR);
        assert_null(doc);
}

static void out_of_memory_is_said(void **state) {
        char path[] = "/tmp/baton-test-json-XXXXXX";
        int fd = mkstemp(path), r;
        long n = 0;

        assert_int_equal(write(fd, "[1]", 3), 3);
        close(fd);
        do {
                yyjson_doc *doc = NULL;
                struct error e = {0};

                failmalloc_from(n++, 0);
                r = json_parse_file(path, 100, &doc, &e);
                failmalloc_off();
                assert_int_equal(r, failmalloc_failed() ? -ENOMEM : 0);
                assert_int_equal(e.text[0] != 0, failmalloc_failed());
                yyjson_doc_free(doc);
        } while (failmalloc_failed());
        assert_true(n > 1);
        unlink(path);
}

int main(void) {
        const struct CMUnitTest tests[] = {
            cmocka_unit_test(every_byte_comes_through_a_string),
            cmocka_unit_test(every_character_comes_through_a_string),
            cmocka_unit_test(no_bytes_make_a_string_that_is_not_utf8),
            cmocka_unit_test(what_is_written_reads_back_and_prints_as_the_same),
            cmocka_unit_test(commas_stand_between_items_only),
            cmocka_unit_test(sixty_three_levels_can_be_written),
            cmocka_unit_test(depth_has_a_limit_that_strings_do_not_touch),
            cmocka_unit_test(what_is_no_json_is_refused_with_its_place),
            cmocka_unit_test(any_bytes_parse_or_fail),
            cmocka_unit_test(numbers_become_integers_only_when_they_are),
            cmocka_unit_test(what_python_takes_is_read_only_where_asked_for),
            cmocka_unit_test(members_are_found_or_have_their_default),
            cmocka_unit_test(files_are_named_in_what_went_wrong),
            cmocka_unit_test(out_of_memory_is_said),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
