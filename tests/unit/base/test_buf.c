/* test_buf.c - a growing buffer: any way of filling it gives the same bytes, and out of memory is said once, at the end. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "base/buf.h"
#include "base/json.h"
#include "base/rng.h"
#include "failmalloc.h"
#include <errno.h>
#include <float.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

static void any_cut_of_the_appends_gives_the_same_bytes(void **state) {
        char text[3000];
        struct rng r;

        rng_seed(&r, 1);
        for (size_t i = 0; i < sizeof(text); i++)
                text[i] = (char)rng_u64(&r);
        for (int round = 0; round < 200; round++) {
                struct buf b = {0};

                for (size_t at = 0, n; at < sizeof(text); at += n) {
                        n = 1 + rng_below(&r, 1 + (uint64_t)round * 2);
                        if (n > sizeof(text) - at)
                                n = sizeof(text) - at;
                        switch (rng_below(&r, 4)) {
                        case 0:
                                n = 1;
                                buf_add_char(&b, text[at]);
                                break;
                        case 1: {
                                char *to = buf_reserve(&b, n + rng_below(&r, 100));

                                assert_non_null(to);
                                memcpy(to, text + at, n);
                                buf_commit(&b, n);
                                break;
                        }
                        case 2:
                                buf_add(&b, slice_of(text + at, n));
                                break;
                        default:
                                buf_append(&b, text + at, n);
                        }
                }
                assert_true(buf_ok(&b));
                assert_int_equal(b.len, sizeof(text));
                assert_memory_equal(b.ptr, text, sizeof(text));
                buf_free(&b);
        }
}

static void formats_of_any_length_come_whole(void **state) {
        char text[600];

        memset(text, 'x', sizeof(text));
        for (int len = 0; len < (int)sizeof(text); len++) {
                struct buf b = {0};

                buf_add_char(&b, '<');
                buf_printf(&b, "%.*s>%d", len, text, 42);
                assert_true(buf_ok(&b));
                assert_int_equal(b.len, len + 4);
                assert_memory_equal(b.ptr + 1, text, (size_t)len);
                assert_memory_equal(b.ptr + 1 + len, ">42", 3);
                buf_free(&b);
        }
}

static void integers_print_as_printf_prints_them(void **state) {
        static const uint64_t special[] = {0, 9, 10, 99, 100, INT64_MAX, (uint64_t)INT64_MAX + 1, UINT64_MAX};
        struct rng r;

        rng_seed(&r, 2);
        for (size_t i = 0; i < 10000; i++) {
                uint64_t u = i < sizeof(special) / sizeof(*special) ? special[i] : rng_u64(&r) >> rng_below(&r, 64);
                struct buf b = {0};
                char text[64];

                snprintf(text, sizeof(text), "%llu %lld", (unsigned long long)u, (long long)u);
                buf_add_u64(&b, u);
                buf_add_char(&b, ' ');
                buf_add_i64(&b, (int64_t)u);
                assert_string_equal(buf_cstr(&b), text);
                buf_free(&b);
        }
}

static void read_back(double value) {
        struct buf b = {0};
        yyjson_doc *doc;
        double read;

        buf_add_double(&b, value);
        assert_int_equal(slice_to_double(buf_slice(&b), &read), 0);
        assert_memory_equal(&read, &value, sizeof(value)); /* bits, so that -0.0 counts */
        assert_int_equal(json_parse(buf_slice(&b), &doc, NULL), 0);
        assert_true(yyjson_is_real(yyjson_doc_get_root(doc))); /* a float stays a float */
        read = yyjson_get_real(yyjson_doc_get_root(doc));
        assert_memory_equal(&read, &value, sizeof(value));
        yyjson_doc_free(doc);
        buf_free(&b);
}

static void doubles_read_back_bit_by_bit(void **state) {
        static const double special[] = {0.0, -0.0, 1.0, -1.0, 0.1, 1.0 / 3, 1e15, 1e16, 1e17, 1e21, 1e22, 1e23,
            123456789012345680.0, DBL_MAX, -DBL_MAX, DBL_MIN, DBL_TRUE_MIN, DBL_EPSILON, 9007199254740993.0, 5e-324,
            2.2250738585072011e-308};
        struct rng r;

        for (size_t i = 0; i < sizeof(special) / sizeof(*special); i++)
                read_back(special[i]);
        for (int e = -1074; e < 1024; e++)
                read_back(ldexp(1, e));
        rng_seed(&r, 3);
        for (int i = 0; i < 50000; i++) {
                uint64_t bits = rng_u64(&r);
                double value;

                memcpy(&value, &bits, sizeof(value));
                if (isfinite(value))
                        read_back(value);
                read_back((double)(float)rng_unit(&r)); /* logprobs and probabilities are floats made wide */
                read_back((double)rng_below(&r, 100000) / 1000);
        }
}

static void doubles_have_no_digit_too_many(void **state) {
        static const struct {
                double value;
                const char *text;
        } cases[] = {{0, "0.0"}, {-0.0, "-0.0"}, {1, "1.0"}, {0.1, "0.1"}, {-2.5, "-2.5"}, {100000, "100000.0"},
            {1e22, "1e+22"}, {5e-324, "5e-324"}, {0.3, "0.3"}, {0.1 + 0.2, "0.30000000000000004"}};
        struct buf b = {0};

        for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
                buf_reset(&b);
                buf_add_double(&b, cases[i].value);
                assert_string_equal(buf_cstr(&b), cases[i].text);
        }
        buf_reset(&b);
        buf_add_double(&b, NAN);
        buf_add_double(&b, INFINITY);
        buf_add_double(&b, -INFINITY);
        assert_string_equal(buf_cstr(&b), "nullnullnull"); /* JSON has no word for them */
        buf_free(&b);
}

static void consuming_keeps_the_rest(void **state) {
        struct buf b = {0};
        struct rng r;
        unsigned char next_in = 0, next_out = 0;

        rng_seed(&r, 4);
        for (int i = 0; i < 5000; i++) {
                size_t n = rng_below(&r, 50);

                while (n--)
                        buf_add_char(&b, (char)next_in++);
                n = rng_below(&r, b.len + 1);
                for (size_t j = 0; j < n; j++)
                        assert_int_equal((unsigned char)b.ptr[j], next_out++);
                buf_consume(&b, n);
        }
        buf_free(&b);
}

static void a_freed_buffer_is_empty_again(void **state) {
        struct buf b = {0};

        buf_add_str(&b, "abc");
        assert_string_equal(buf_cstr(&b), "abc");
        assert_int_equal(b.len, 3); /* the NUL is not counted */
        buf_free(&b);
        assert_null(b.ptr);
        buf_add_str(&b, "more");
        assert_string_equal(buf_cstr(&b), "more");
        buf_free(&b);
        buf_free(&b);
        buf_free(NULL);
}

static void out_of_memory_leaves_a_prefix_and_says_so(void **state) {
        struct buf whole = {0};
        long n = 0;

        for (int i = 0; i < 500; i++)
                buf_printf(&whole, "%d,%s;", i, "some text");
        do {
                struct buf b = {0};

                failmalloc_from(n++, 0);
                for (int i = 0; i < 500; i++) {
                        buf_add_i64(&b, i);
                        buf_add_char(&b, ',');
                        buf_printf(&b, "%s;", "some text"); /* memory is back by now, yet the rest must not be taken */
                }
                failmalloc_off();
                assert_int_equal(buf_ok(&b), !failmalloc_failed());
                assert_true(slice_starts(buf_slice(&whole), buf_slice(&b)));
                if (failmalloc_failed()) {
                        assert_null(buf_reserve(&b, 1));
                        assert_string_equal(buf_cstr(&b), "");
                        buf_reset(&b);
                        buf_add_str(&b, "works again");
                        assert_true(slice_is(buf_slice(&b), "works again"));
                } else
                        assert_int_equal(b.len, whole.len);
                buf_free(&b);
        } while (failmalloc_failed());
        assert_true(n > 5);
        buf_free(&whole);
}

static void sizes_beyond_memory_are_refused(void **state) {
        static const size_t sizes[] = {SIZE_MAX, SIZE_MAX - 1, PTRDIFF_MAX, (size_t)PTRDIFF_MAX + 1};

        for (size_t i = 0; i < sizeof(sizes) / sizeof(*sizes); i++) {
                struct buf b = {0};

                buf_add_str(&b, "ab");
                assert_null(buf_reserve(&b, sizes[i]));
                assert_false(buf_ok(&b));
                assert_int_equal(b.len, 2);
                buf_free(&b);
        }
}

int main(void) {
        const struct CMUnitTest tests[] = {
            cmocka_unit_test(any_cut_of_the_appends_gives_the_same_bytes),
            cmocka_unit_test(formats_of_any_length_come_whole),
            cmocka_unit_test(integers_print_as_printf_prints_them),
            cmocka_unit_test(doubles_read_back_bit_by_bit),
            cmocka_unit_test(doubles_have_no_digit_too_many),
            cmocka_unit_test(consuming_keeps_the_rest),
            cmocka_unit_test(a_freed_buffer_is_empty_again),
            cmocka_unit_test(out_of_memory_leaves_a_prefix_and_says_so),
            cmocka_unit_test(sizes_beyond_memory_are_refused),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
