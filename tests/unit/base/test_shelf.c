/* test_shelf.c - the small ones of base: errors, lists, clock, random numbers, hashes. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "base/clock.h"
#include "base/error.h"
#include "base/hash.h"
#include "base/list.h"
#include "base/rng.h"
#include <errno.h>
#include <string.h>

/* ---- errors --------------------------------------------------------------------------------------------------------- */

static void an_error_keeps_code_and_words(void **state) {
        struct error e = {0};

        assert_int_equal(error_set(&e, -EINVAL, "no %s in %d", "key", 3), -EINVAL);
        assert_string_equal(e.text, "no key in 3");
        assert_string_equal(error_text(&e, -EINVAL), "no key in 3");
        assert_int_equal(error_prefix(&e, -EIO, "file %s", "x"), -EIO);
        assert_string_equal(e.text, "file x: no key in 3");
        assert_int_equal(error_set(&e, -EIO, "again: %s", e.text), -EIO); /* its own text as an argument */
        assert_string_equal(e.text, "again: file x: no key in 3");
}

static void an_error_without_words_is_the_systems(void **state) {
        struct error e = {0};

        assert_string_equal(error_text(&e, -ENOENT), strerror(ENOENT));
        assert_string_equal(error_text(NULL, ENOENT), strerror(ENOENT));
        error_prefix(&e, -ENOENT, "x");
        assert_string_equal(e.text + 3, strerror(ENOENT));
        assert_int_equal(error_set(NULL, -EIO, "nobody %s", "asks"), -EIO);
        assert_int_equal(error_prefix(NULL, -EIO, "nobody asks"), -EIO);
}

static void a_long_error_is_cut(void **state) {
        char words[3000];
        struct error e = {0};

        memset(words, 'w', sizeof(words) - 1);
        words[sizeof(words) - 1] = 0;
        error_set(&e, -EIO, "%s", words);
        assert_int_equal(strlen(e.text), sizeof(e.text) - 1);
        error_prefix(&e, -EIO, "%s", words);
        assert_true(strlen(e.text) < sizeof(e.text));
        assert_non_null(strstr(e.text, ": www")); /* both have their share */
}

/* ---- lists ---------------------------------------------------------------------------------------------------------- */

struct item {
        int before;
        struct list link;
        int id;
};

static void a_list_keeps_its_order(void **state) {
        struct item items[50];
        struct list head;
        struct list *first;
        int expected = 0;

        list_init(&head);
        assert_true(list_empty(&head));
        assert_null(list_pop_front(&head));
        for (int i = 25; i < 50; i++) {
                items[i].id = i;
                list_push_back(&head, &items[i].link);
        }
        for (int i = 24; i >= 0; i--) {
                items[i].id = i;
                list_push_front(&head, &items[i].link);
        }
        list_for_each (at, &head)
                assert_int_equal(list_item(at, struct item, link)->id, expected++);
        assert_int_equal(expected, 50);
        list_for_each (at, &head)
                if (list_item(at, struct item, link)->id % 2)
                        list_remove(at); /* inside the loop */
        for (int i = 0; i < 50; i += 2) {
                first = list_pop_front(&head);
                assert_int_equal(list_item(first, struct item, link)->id, i);
                list_remove(first); /* of one that is in no list: nothing */
        }
        assert_true(list_empty(&head));
}

/* ---- the clock ------------------------------------------------------------------------------------------------------ */

static void time_is_written_in_utc_with_milliseconds(void **state) {
        char text[CLOCK_TEXT_MAX];

        clock_text(0, text);
        assert_string_equal(text, "1970-01-01T00:00:00.000Z");
        clock_text(1764000000ull * NS_PER_S + 123456789, text);
        assert_string_equal(text, "2025-11-24T16:00:00.123Z");
        clock_text(UINT64_MAX, text);
        assert_string_equal(text, "2554-07-21T23:34:33.709Z");
}

static void the_clock_does_not_go_back(void **state) {
        uint64_t last = clock_mono_ns();

        for (int i = 0; i < 1000; i++) {
                uint64_t now = clock_mono_ns();

                assert_true(now >= last);
                last = now;
        }
        assert_true(clock_wall_ns() > 1700000000ull * NS_PER_S);
}

/* ---- random numbers ------------------------------------------------------------------------------------------------- */

/* The first numbers of the authors' own C code from state {1, 2, 3, 4}. */
static void the_generator_is_xoshiro256starstar(void **state) {
        static const uint64_t want[] = {11520, 0, 1509978240, 1215971899390074240u, 1216172134540287360u};
        struct rng r = {{1, 2, 3, 4}};

        for (size_t i = 0; i < sizeof(want) / sizeof(*want); i++)
                assert_true(rng_u64(&r) == want[i]);
}

/* splitmix64 from seed 0, as published with it. */
static void the_seed_is_spread_by_splitmix64(void **state) {
        static const uint64_t want[] = {
            0xe220a8397b1dcdafu, 0x6e789e6aa1b965f4u, 0x06c45d188009454fu, 0xf88bb8a8724c81ecu};
        struct rng r;

        rng_seed(&r, 0);
        assert_memory_equal(r.s, want, sizeof(want));
}

static void numbers_below_a_bound_are_even(void **state) {
        static const uint64_t bounds[] = {1, 2, 3, 7, 10, 1000};
        struct rng r;

        rng_seed(&r, 1);
        for (size_t b = 0; b < sizeof(bounds) / sizeof(*bounds); b++) {
                unsigned seen[1000] = {0};
                double expected = 100000.0 / (double)bounds[b], chi2 = 0;

                for (int i = 0; i < 100000; i++) {
                        uint64_t x = rng_below(&r, bounds[b]);

                        assert_true(x < bounds[b]);
                        seen[x]++;
                }
                for (size_t i = 0; i < bounds[b]; i++)
                        chi2 += (seen[i] - expected) * (seen[i] - expected) / expected;
                /* Five standard deviations of chi² above its mean; the seed is fixed, so this never changes. */
                assert_true(chi2 <= (double)(bounds[b] - 1) + 5 * __builtin_sqrt(2.0 * (double)bounds[b]));
        }
        for (int i = 0; i < 1000; i++)
                assert_true(rng_below(&r, (1ull << 63) + 1) <= 1ull << 63);
        assert_true(rng_below(&r, UINT64_MAX) < UINT64_MAX);
}

static void units_lie_in_the_half_open_interval(void **state) {
        struct rng r;
        double sum = 0;

        rng_seed(&r, 2);
        for (int i = 0; i < 100000; i++) {
                double x = rng_unit(&r);

                assert_true(x >= 0 && x < 1);
                sum += x;
        }
        assert_true(sum > 49500 && sum < 50500);
        r = (struct rng){{0, UINT64_MAX, 0, 0}};
        assert_true(rng_unit(&r) < 1);
}

static void hex_has_two_digits_a_byte(void **state) {
        char text[402], other[402];

        for (size_t n = 0; n <= 200; n++) {
                memset(text, '!', sizeof(text));
                rng_hex(text, n);
                assert_int_equal(strlen(text), 2 * n);
                assert_int_equal(strspn(text, "0123456789abcdef"), 2 * n);
                assert_int_equal(text[2 * n + 1], '!');
        }
        rng_hex(other, 200);
        assert_string_not_equal(text, other);
}

/* ---- hashes --------------------------------------------------------------------------------------------------------- */

/* The values that xxHash's own sanity check gives for no bytes. */
static void hashes_are_xxh3(void **state) {
        struct hash128 none = hash128(SLICE_NONE, 0), empty = hash128(SLICE_LIT(""), 0);

        assert_true(hash64(SLICE_NONE, 0) == 0x2d06800538d394c2u);
        assert_true(none.lo == 0x6001c324468d497fu && none.hi == 0x99aa06d3014798d8u);
        assert_true(hash128_eq(none, empty));
}

static void hashes_depend_on_every_byte_and_the_seed(void **state) {
        char bytes[600];
        struct rng r;

        rng_seed(&r, 3);
        for (size_t len = 1; len <= sizeof(bytes); len += 7) {
                uint64_t whole;

                for (size_t i = 0; i < len; i++)
                        bytes[i] = (char)rng_u64(&r);
                whole = hash64(slice_of(bytes, len), 1);
                assert_true(whole == hash64(slice_of(bytes, len), 1));
                assert_true(whole != hash64(slice_of(bytes, len), 2));
                assert_true(whole != hash64(slice_of(bytes, len - 1), 1));
                for (size_t i = 0; i < len; i++) {
                        bytes[i] ^= 1;
                        assert_true(whole != hash64(slice_of(bytes, len), 1));
                        bytes[i] ^= 1;
                }
        }
        assert_true(hash_seed() != hash_seed());
}

int main(void) {
        const struct CMUnitTest tests[] = {
            cmocka_unit_test(an_error_keeps_code_and_words),
            cmocka_unit_test(an_error_without_words_is_the_systems),
            cmocka_unit_test(a_long_error_is_cut),
            cmocka_unit_test(a_list_keeps_its_order),
            cmocka_unit_test(time_is_written_in_utc_with_milliseconds),
            cmocka_unit_test(the_clock_does_not_go_back),
            cmocka_unit_test(the_generator_is_xoshiro256starstar),
            cmocka_unit_test(the_seed_is_spread_by_splitmix64),
            cmocka_unit_test(numbers_below_a_bound_are_even),
            cmocka_unit_test(units_lie_in_the_half_open_interval),
            cmocka_unit_test(hex_has_two_digits_a_byte),
            cmocka_unit_test(hashes_are_xxh3),
            cmocka_unit_test(hashes_depend_on_every_byte_and_the_seed),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
