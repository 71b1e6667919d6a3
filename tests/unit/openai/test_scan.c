/* test_scan.c - laws of the byte-range scanner and of edits. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>

#include "base/json.h"
#include "base/rng.h"
#include "openai/openai.h"

static const char *const objects[] = {
    "{}",
    " { } ",
    "{\"a\":1}",
    "{\"a\" : 1 , \"b\":[1, 2,{\"c\":[]}],\"\\u0061\":\"x\\\"y\"}",
    "{\"prompt\":\"caf\\u00e9 \xe4\xbd\xa0 \\ud83d\\ude00\",\"n\":-0.5e+3,\"t\":true,\"f\":false,\"z\":null}\n",
    "{\"a\":{},\"b\":[],\"c\":[[]],\"d\":\"\",\"e\":0}",
    "{\"long\":\"0123456789abcdef0123456789abcdef\\n0123456789abcdef\\\\0123\",\"x\":[\"]\",\"}\",{\"k\":\"{\"}]}",
};
#define OBJECTS (sizeof(objects) / sizeof(*objects))

static const char *const broken[] = {"", " ", "[1]", "1", "{", "{\"a\"}", "{\"a\":}", "{\"a\":1,}", "{,}", "{\"a\":1}}",
    "{\"a\":1} x", "{\"a\":01}", "{\"a\":1.}", "{\"a\":.5}", "{\"a\":+1}", "{\"a\":NaN}", "{\"a\":\"\\x\"}",
    "{\"a\":\"\\u12g4\"}", "{\"a\":\"\n\"}", "{\"a\":[1 2]}", "{\"a\":[1}]", "{\"a\":tru}", "{a:1}", "{'a':1}",
    "{\"a\":1 \"b\":2}", "{\"a\":[,1]}", "{\"a\":[1,]}", "{\"a\":{\"b\"}}", "\xef\xbb\xbf{}", "{\"a\":\"\\"};

static int scan(const char *text, struct openai_member *m, size_t *n) {
        size_t at;

        return openai_scan(slice_str(text), m, OPENAI_MEMBERS_MAX, n, &at);
}

static void what_a_parser_reads_is_what_the_scan_finds(void **state) {
        for (size_t i = 0; i < OBJECTS; i++) {
                struct openai_member m[OPENAI_MEMBERS_MAX];
                yyjson_doc *doc = yyjson_read(objects[i], strlen(objects[i]), 0);
                size_t n, k = 0, index, max;
                yyjson_val *key, *value;

                assert_int_equal(scan(objects[i], m, &n), 0);
                assert_non_null(doc);
                assert_int_equal(n, yyjson_obj_size(yyjson_doc_get_root(doc)));
                yyjson_obj_foreach(yyjson_doc_get_root(doc), index, max, key, value) {
                        yyjson_doc *one = yyjson_read(m[k].value.ptr, m[k].value.len, 0);

                        assert_true(openai_key_is(m[k].key, yyjson_get_str(key)));
                        assert_non_null(one);
                        assert_true(yyjson_equals(yyjson_doc_get_root(one), value));
                        yyjson_doc_free(one);
                        k++;
                }
                yyjson_doc_free(doc);
        }
}

static void what_is_not_an_object_is_refused(void **state) {
        for (size_t i = 0; i < sizeof(broken) / sizeof(*broken); i++) {
                struct openai_member m[OPENAI_MEMBERS_MAX];
                size_t n = 77;

                assert_int_equal(scan(broken[i], m, &n), -EINVAL);
                assert_int_equal(n, 77);
        }
}

static void depth_and_members_have_a_bound(void **state) {
        struct openai_member m[2];
        struct buf b = {0};
        size_t n, at;

        buf_add_str(&b, "{\"a\":");
        for (int i = 0; i < JSON_DEPTH_MAX + 1; i++)
                buf_add_char(&b, '[');
        assert_int_equal(openai_scan(buf_slice(&b), m, 2, &n, &at), -E2BIG);
        assert_int_equal(openai_scan(slice_str("{\"a\":1,\"b\":2,\"c\":3}"), m, 2, &n, &at), -E2BIG);
        buf_free(&b);
}

static void a_key_written_with_escapes_is_known(void **state) {
        assert_true(openai_key_is(slice_str("kv\\u005ftransfer_params"), "kv_transfer_params"));
        assert_true(openai_key_is(slice_str("\\u006e"), "n"));
        assert_false(openai_key_is(slice_str("kv_transfer_param"), "kv_transfer_params"));
        assert_false(openai_key_is(slice_str("\\u006f"), "n"));
}

static void items_of_an_array_come_one_by_one(void **state) {
        static const char *const want[] = {"1", "\"a,]\"", "[2, 3]", "{\"x\":[]}"};
        struct slice rest = slice_str("[ 1,\"a,]\" , [2, 3],{\"x\":[]} ]"), item;
        size_t n = 0;

        while (openai_next_item(&rest, &item))
                assert_true(slice_is(item, want[n++]));
        assert_int_equal(n, 4);
        rest = slice_str("[ ]");
        assert_false(openai_next_item(&rest, &item));
        assert_int_equal(openai_count_items(SLICE_LIT("[ 1,\"a,]\" , [2, 3],{\"x\":[]} ]")), 4);
        assert_int_equal(openai_count_items(SLICE_LIT("[]")), 0);
        assert_int_equal(openai_count_items(SLICE_NONE), 0);
}

static void unescaping_gives_the_text(void **state) {
        struct buf b = {0};

        openai_unescape(&b, slice_str("a\\n\\u00e9\\ud83d\\ude00\\ud83d\\/\\\"\xe4\xbd\xa0"));
        assert_true(slice_is(buf_slice(&b), "a\n\xc3\xa9\xf0\x9f\x98\x80\xef\xbf\xbd/\"\xe4\xbd\xa0"));
        assert_int_equal(openai_length(slice_str("a\\n\\u00e9\\ud83d\\ude00\\/\\\"\xe4\xbd\xa0")), 7);
        buf_free(&b);
}

/* ---- edits ---------------------------------------------------------------------------------------------------------- */

static void edited(const char *text, const struct openai_edit *edits, size_t count, struct buf *ret_text) {
        struct openai_member m[OPENAI_MEMBERS_MAX];
        struct arena a = {0};
        struct slice *parts;
        size_t n, part_count, bytes;

        assert_int_equal(scan(text, m, &n), 0);
        assert_int_equal(openai_edit(slice_str(text), m, n, edits, count, &a, &parts, &part_count, &bytes), 0);
        for (size_t i = 0; i < part_count; i++)
                buf_add(ret_text, parts[i]);
        assert_int_equal(ret_text->len, bytes);
        arena_free(&a);
}

static void assert_edited(const char *text, struct openai_edit edit, const char *want) {
        struct buf b = {0};

        edited(text, &edit, 1, &b);
        assert_string_equal(buf_cstr(&b), want);
        buf_free(&b);
}

static void no_edits_leave_every_byte(void **state) {
        for (size_t i = 0; i < OBJECTS; i++) {
                struct buf b = {0};

                edited(objects[i], NULL, 0, &b);
                assert_true(slice_is(buf_slice(&b), objects[i]));
                buf_free(&b);
        }
}

static void an_edit_touches_its_member_alone(void **state) {
        struct openai_edit set = {"b", SLICE_LIT("9")}, drop = {"b", SLICE_NONE};

        assert_edited("{\"a\": 1.50 , \"b\":2 ,\"c\":3 }", set, "{\"a\": 1.50 , \"b\":9 ,\"c\":3 }");
        assert_edited("{\"a\": 1.50 , \"b\":2 ,\"c\":3 }", drop, "{\"a\": 1.50,\"c\":3 }");
        assert_edited("{\"b\":2 }", drop, "{ }");
        assert_edited("{ \"b\":2,\"c\":1}", drop, "{ \"c\":1}");
        assert_edited("{\"a\":1,\"b\":2}", drop, "{\"a\":1}");
        assert_edited("{}", set, "{\"b\":9}");
        assert_edited("{\"a\":1} ", set, "{\"a\":1,\"b\":9} ");
        assert_edited("{\"a\":1}", drop, "{\"a\":1}");
}

static void a_doubled_member_is_set_once_and_never_survives(void **state) {
        struct openai_edit set = {"b", SLICE_LIT("9")}, drop = {"b", SLICE_NONE};

        assert_edited("{\"b\":1,\"a\":0,\"\\u0062\":2,\"b\":3}", set, "{\"a\":0,\"b\":9}");
        assert_edited("{\"b\":1,\"a\":0,\"\\u0062\":2,\"b\":3}", drop, "{\"a\":0}");
}

/* Whatever the edits: the result is JSON, has exactly what was asked for, and everything else as it was. */
static void edits_give_what_a_tree_would_give(void **state) {
        static const char *const keys[] = {"a", "b", "c", "d", "e", "prompt", "n", "t", "new", "x"};
        struct rng rng;

        rng_seed(&rng, 7);
        for (int round = 0; round < 3000; round++) {
                const char *text = objects[rng_below(&rng, OBJECTS)];
                struct openai_edit edits[3];
                size_t count = rng_below(&rng, 4), from = rng_below(&rng, 7);
                struct buf b = {0};
                struct openai_member before[OPENAI_MEMBERS_MAX], after[OPENAI_MEMBERS_MAX];
                size_t n, m, at;

                for (size_t i = 0; i < count; i++)
                        edits[i] =
                            (struct openai_edit){keys[from + i], rng_below(&rng, 2) ? SLICE_LIT("[1]") : SLICE_NONE};
                edited(text, edits, count, &b);
                assert_int_equal(scan(text, before, &n), 0);
                assert_int_equal(openai_scan(buf_slice(&b), after, OPENAI_MEMBERS_MAX, &m, &at), 0);
                for (size_t k = 0; k < sizeof(keys) / sizeof(*keys); k++) {
                        struct slice want = openai_find(before, n, keys[k]);

                        for (size_t i = 0; i < count; i++)
                                if (!strcmp(edits[i].key, keys[k]))
                                        want = edits[i].value;
                        assert_true(slice_eq(openai_find(after, m, keys[k]), want));
                }
                buf_free(&b);
        }
}

int main(void) {
        const struct CMUnitTest tests[] = {
            cmocka_unit_test(what_a_parser_reads_is_what_the_scan_finds),
            cmocka_unit_test(what_is_not_an_object_is_refused),
            cmocka_unit_test(depth_and_members_have_a_bound),
            cmocka_unit_test(a_key_written_with_escapes_is_known),
            cmocka_unit_test(items_of_an_array_come_one_by_one),
            cmocka_unit_test(unescaping_gives_the_text),
            cmocka_unit_test(no_edits_leave_every_byte),
            cmocka_unit_test(an_edit_touches_its_member_alone),
            cmocka_unit_test(a_doubled_member_is_set_once_and_never_survives),
            cmocka_unit_test(edits_give_what_a_tree_would_give),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
