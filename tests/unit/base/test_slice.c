/* test_slice.c - views of bytes: parts, searches, order, numbers. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "base/buf.h"
#include "base/rng.h"
#include "base/slice.h"
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#define ROUNDS 20000

/* Random text of few letters, so that repeats and matches are common. Valid until the next call. */
static struct slice some_text(struct rng *r, size_t max_len, const char *letters) {
        static char text[256];
        size_t len = rng_below(r, max_len + 1);

        for (size_t i = 0; i < len; i++)
                text[i] = letters[rng_below(r, strlen(letters))];
        return slice_of(text, len);
}

static void the_parts_of_a_list_joined_are_the_list(void **state) {
        struct rng r;

        rng_seed(&r, 1);
        for (int i = 0; i < ROUNDS; i++) {
                struct slice whole = some_text(&r, 20, "ab,,"), rest = whole, part;
                struct buf joined = {0};
                size_t parts = 0, commas = 0;

                while (slice_split(&rest, ',', &part)) {
                        if (parts++)
                                buf_add_char(&joined, ',');
                        buf_add(&joined, part);
                }
                for (size_t j = 0; j < whole.len; j++)
                        commas += whole.ptr[j] == ',';
                assert_int_equal(parts, commas + 1);
                assert_true(slice_eq(buf_slice(&joined), whole));
                buf_free(&joined);
        }
}

static void a_search_finds_the_first_place(void **state) {
        struct rng r;

        rng_seed(&r, 2);
        for (int i = 0; i < ROUNDS; i++) {
                char hay[24], needle[4];
                struct slice s = some_text(&r, sizeof(hay), "ab"), n;
                size_t from, want;

                memcpy(hay, s.ptr, s.len);
                s.ptr = hay;
                n = some_text(&r, sizeof(needle), "ab");
                memcpy(needle, n.ptr, n.len);
                n.ptr = needle;
                from = rng_below(&r, s.len + 3);
                for (want = from; want + n.len <= s.len && memcmp(hay + want, needle, n.len) != 0; want++)
                        ;
                if (want + n.len > s.len)
                        want = s.len;
                assert_int_equal(slice_find_slice(s, n, from), want);
                if (n.len == 1)
                        assert_int_equal(slice_find(s, needle[0], from), want);
        }
}

static void pieces_taken_off_add_up_to_the_whole(void **state) {
        struct rng r;

        rng_seed(&r, 3);
        for (int i = 0; i < ROUNDS; i++) {
                struct slice whole = some_text(&r, 40, "abc"), rest = whole;
                size_t at = 0;

                while (rest.len) {
                        size_t n = rng_below(&r, 8);
                        struct slice piece = slice_take(&rest, n);

                        assert_ptr_equal(piece.ptr, whole.ptr + at);
                        at += piece.len;
                        assert_true(piece.len == n || rest.len == 0);
                }
                assert_int_equal(at, whole.len);
        }
}

static void a_part_never_leaves_its_slice(void **state) {
        struct slice s = SLICE_LIT("abcdef");
        static const size_t ends[] = {0, 1, 5, 6, 7, SIZE_MAX};

        for (size_t i = 0; i < sizeof(ends) / sizeof(*ends); i++)
                for (size_t j = 0; j < sizeof(ends) / sizeof(*ends); j++) {
                        struct slice part = slice_sub(s, ends[i], ends[j]);

                        assert_true(part.ptr >= s.ptr && part.ptr + part.len <= s.ptr + s.len);
                        if (ends[i] <= ends[j] && ends[j] <= s.len)
                                assert_int_equal(part.len, ends[j] - ends[i]);
                }
}

static void case_is_ignored_for_ascii_letters_only(void **state) {
        for (int i = 0; i < 256; i++)
                for (int j = 0; j < 256; j++) {
                        char a = (char)i, b = (char)j;
                        bool letters = (i | 32) >= 'a' && (i | 32) <= 'z';
                        bool same = i == j || (letters && (i ^ j) == 32);

                        assert_int_equal(slice_eq_icase(slice_of(&a, 1), slice_of(&b, 1)), same);
                }
        assert_true(slice_is_icase(SLICE_LIT("Content-LENGTH"), "content-length"));
        assert_false(slice_is_icase(SLICE_LIT("content-length"), "content-lengt"));
        assert_true(slice_is_name(SLICE_LIT("Least-load_X"), "least_LOAD-x"));
        assert_true(slice_is_name(SLICE_NONE, ""));
        assert_false(slice_is_name(SLICE_LIT("least-load"), "least-loa"));
        assert_false(slice_is_name(SLICE_LIT("least-loa"), "least-load"));
}

static int sign(int x) {
        return (x > 0) - (x < 0);
}

static void order_is_total_and_agrees_with_equality(void **state) {
        struct rng r;

        rng_seed(&r, 4);
        for (int i = 0; i < ROUNDS; i++) {
                char one[8], two[8];
                struct slice a = some_text(&r, sizeof(one), "a\xff"), b;

                memcpy(one, a.ptr, a.len);
                a.ptr = one;
                b = some_text(&r, sizeof(two), "a\xff");
                memcpy(two, b.ptr, b.len);
                b.ptr = two;
                assert_int_equal(sign(slice_cmp(a, b)), -sign(slice_cmp(b, a)));
                assert_int_equal(slice_cmp(a, b) == 0, slice_eq(a, b));
                if (slice_starts(b, a) && a.len < b.len)
                        assert_true(slice_cmp(a, b) < 0);
        }
        assert_true(slice_cmp(SLICE_LIT("a"), SLICE_LIT("\xff")) < 0); /* bytes are unsigned */
}

static void beginnings_and_ends_are_seen(void **state) {
        struct rng r;

        rng_seed(&r, 5);
        for (int i = 0; i < ROUNDS; i++) {
                struct slice s = some_text(&r, 10, "ab");
                size_t at = rng_below(&r, s.len + 1);

                assert_true(slice_starts(s, slice_sub(s, 0, at)));
                assert_true(slice_ends(s, slice_sub(s, at, s.len)));
        }
        assert_false(slice_starts(SLICE_LIT("ab"), SLICE_LIT("abc")));
        assert_false(slice_ends(SLICE_LIT("bc"), SLICE_LIT("abc")));
        assert_false(slice_ends(SLICE_LIT("abc"), SLICE_LIT("ab")));
}

static void characters_are_counted_not_bytes(void **state) {
        assert_int_equal(slice_characters(SLICE_NONE), 0);
        assert_int_equal(slice_characters(SLICE_LIT("a\n")), 2);
        assert_int_equal(slice_characters(SLICE_LIT("é｜𝄞")), 3);
}

static void trimming_leaves_what_is_inside(void **state) {
        assert_true(slice_is(slice_trim(SLICE_LIT(" \t\r\n a b\n ")), "a b"));
        assert_true(slice_is(slice_trim(SLICE_LIT("\va\f")), "\va\f"));
        assert_int_equal(slice_trim(SLICE_LIT(" \n ")).len, 0);
}

static void no_bytes_at_all_are_fine_everywhere(void **state) {
        struct slice none = SLICE_NONE, part = SLICE_LIT("kept");
        char *copy;

        assert_true(slice_eq(none, SLICE_LIT("")));
        assert_true(slice_is(none, NULL));
        assert_true(slice_eq_icase(none, none));
        assert_true(slice_starts(none, none));
        assert_true(slice_ends(none, none));
        assert_int_equal(slice_cmp(none, SLICE_LIT("")), 0);
        assert_int_equal(slice_find(none, 'a', 0), 0);
        assert_int_equal(slice_find_slice(none, none, 0), 0);
        assert_int_equal(slice_sub(none, 0, 5).len, 0);
        assert_int_equal(slice_take(&none, 5).len, 0);
        assert_int_equal(slice_trim(none).len, 0);
        assert_false(slice_split(&none, ',', &part));
        assert_true(slice_is(part, "kept"));
        copy = slice_dup(none);
        assert_string_equal(copy, "");
        free(copy);
}

static void integers_read_back_as_printed(void **state) {
        struct rng r;

        rng_seed(&r, 6);
        for (int i = 0; i < ROUNDS; i++) {
                uint64_t u = rng_u64(&r) >> rng_below(&r, 64), u_read;
                int64_t s = (int64_t)rng_u64(&r) >> rng_below(&r, 64), s_read;
                char text[32];

                snprintf(text, sizeof(text), "%llu", (unsigned long long)u);
                assert_int_equal(slice_to_u64(slice_str(text), &u_read), 0);
                assert_true(u == u_read);
                snprintf(text, sizeof(text), "%lld", (long long)s);
                assert_int_equal(slice_to_i64(slice_str(text), &s_read), 0);
                assert_true(s == s_read);
        }
}

static void integers_have_borders(void **state) {
        static const struct {
                const char *text;
                int r_unsigned, r_signed;
        } cases[] = {{"18446744073709551615", 0, -ERANGE}, {"18446744073709551616", -ERANGE, -ERANGE},
            {"99999999999999999999999999", -ERANGE, -ERANGE}, {"9223372036854775807", 0, 0},
            {"9223372036854775808", 0, -ERANGE}, {"-9223372036854775808", -EINVAL, 0},
            {"-9223372036854775809", -EINVAL, -ERANGE}, {"", -EINVAL, -EINVAL}, {"-", -EINVAL, -EINVAL},
            {"--1", -EINVAL, -EINVAL}, {"+1", -EINVAL, -EINVAL}, {" 1", -EINVAL, -EINVAL}, {"1 ", -EINVAL, -EINVAL},
            {"0x1", -EINVAL, -EINVAL}, {"1e3", -EINVAL, -EINVAL}, {"1.0", -EINVAL, -EINVAL},
            {"99999999999999999999x", -EINVAL, -EINVAL}, {"0000000000000000000000000001", 0, 0}};

        for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
                uint64_t u = 7;
                int64_t s = 7;

                assert_int_equal(slice_to_u64(slice_str(cases[i].text), &u), cases[i].r_unsigned);
                assert_int_equal(slice_to_i64(slice_str(cases[i].text), &s), cases[i].r_signed);
                assert_true(cases[i].r_unsigned == 0 || u == 7); /* untouched on failure */
                assert_true(cases[i].r_signed == 0 || s == 7);
        }
        assert_int_equal(slice_to_u64(slice_of("12", 1), &(uint64_t){0}), 0); /* no NUL is looked for */
}

static void decimals_read_as_in_json(void **state) {
        static const char *const good[] = {"0", "-0", "1", "1.5", "-1.5e3", "1E+2", "1e-2", "0.1", "007", "5e-324",
            "1e-400", "179769313486231570000000000000000000000", "1.7976931348623157e308"};
        static const char *const bad[] = {"", "-", "+1", ".", "1.", ".5", "-.5", "1e", "1e+", "1.e1", "e1", "inf",
            "-inf", "nan", "0x10", "1p3", " 1", "1 ", "1,5", "1_000", "--1", "1-1", "1\0"};
        double value;
        char digits[500];

        for (size_t i = 0; i < sizeof(good) / sizeof(*good); i++) {
                assert_int_equal(slice_to_double(slice_str(good[i]), &value), 0);
                assert_true(value == strtod(good[i], NULL));
        }
        value = 7;
        for (size_t i = 0; i < sizeof(bad) / sizeof(*bad); i++) {
                size_t len = i + 1 == sizeof(bad) / sizeof(*bad) ? 2 : strlen(bad[i]);

                assert_int_equal(slice_to_double(slice_of(bad[i], len), &value), -EINVAL);
                assert_true(value == 7);
        }
        assert_int_equal(slice_to_double(SLICE_LIT("1e309"), &value), -ERANGE);
        assert_int_equal(slice_to_double(SLICE_LIT("-1e309"), &value), -ERANGE);
        memset(digits, '1', sizeof(digits));
        assert_int_equal(slice_to_double(slice_of(digits, sizeof(digits)), &value), -EINVAL);
        assert_true(value == 7);
}

static void a_copy_ends_in_nul(void **state) {
        char *copy = slice_dup(slice_of("ab\0cdef", 5));

        assert_memory_equal(copy, "ab\0cd", 6);
        free(copy);
}

int main(void) {
        const struct CMUnitTest tests[] = {
            cmocka_unit_test(the_parts_of_a_list_joined_are_the_list),
            cmocka_unit_test(a_search_finds_the_first_place),
            cmocka_unit_test(pieces_taken_off_add_up_to_the_whole),
            cmocka_unit_test(a_part_never_leaves_its_slice),
            cmocka_unit_test(case_is_ignored_for_ascii_letters_only),
            cmocka_unit_test(order_is_total_and_agrees_with_equality),
            cmocka_unit_test(beginnings_and_ends_are_seen),
            cmocka_unit_test(characters_are_counted_not_bytes),
            cmocka_unit_test(trimming_leaves_what_is_inside),
            cmocka_unit_test(no_bytes_at_all_are_fine_everywhere),
            cmocka_unit_test(integers_read_back_as_printed),
            cmocka_unit_test(integers_have_borders),
            cmocka_unit_test(decimals_read_as_in_json),
            cmocka_unit_test(a_copy_ends_in_nul),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
