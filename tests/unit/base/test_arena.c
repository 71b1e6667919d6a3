/* test_arena.c - memory that dies together: zeroed, aligned, apart from each other, bounded. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "base/arena.h"
#include "base/rng.h"
#include "failmalloc.h"
#include <stdio.h>
#include <stdlib.h>

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#endif

#define PIECES 400

static void allocations_are_zeroed_aligned_and_apart(void **state) {
        struct arena a = {0};
        struct rng r;

        rng_seed(&r, 1);
        for (int round = 0; round < 30; round++) {
                unsigned char *pieces[PIECES];
                size_t sizes[PIECES];

                for (int i = 0; i < PIECES; i++) {
                        sizes[i] = rng_below(&r, rng_below(&r, 20) ? 100 : 100000);
                        pieces[i] = arena_alloc(&a, sizes[i]);
                        assert_non_null(pieces[i]);
                        assert_int_equal((uintptr_t)pieces[i] % 16, 0);
                        for (size_t j = 0; j < sizes[i]; j++)
                                assert_int_equal(pieces[i][j], 0);
                        memset(pieces[i], i & 255, sizes[i]);
                }
                for (int i = 0; i < PIECES; i++) /* nobody wrote into a neighbour */
                        for (size_t j = 0; j < sizes[i]; j++)
                                assert_int_equal(pieces[i][j], i & 255);
                assert_true(a.used > 0);
                arena_reset(&a);
                assert_int_equal(a.used, 0);
        }
        arena_free(&a);
        arena_free(&a);
}

static void nothing_has_an_address_of_its_own(void **state) {
        struct arena a = {0};
        void *one = arena_alloc(&a, 0), *two = arena_alloc(&a, 0);

        assert_non_null(one);
        assert_non_null(two);
        assert_ptr_not_equal(one, two);
        arena_free(&a);
}

static void the_limit_holds(void **state) {
        struct arena a = {.limit = 1000};
        size_t total = 0;

        assert_null(arena_alloc(&a, 1001));
        while (arena_alloc(&a, 10))
                total += 10;
        assert_true(total <= 1000 && total >= 500);
        assert_true(a.used <= 1000);
        arena_reset(&a);
        assert_non_null(arena_alloc(&a, 1000 / 16 * 16));
        assert_null(arena_alloc(&a, SIZE_MAX));
        assert_null(arena_alloc(&a, SIZE_MAX - 15));
        assert_null(arena_array(&a, SIZE_MAX / 8, 16)); /* the product overflows to a small number */
        arena_free(&a);
}

static void sizes_beyond_memory_are_refused(void **state) {
        struct arena a = {0};

        assert_null(arena_alloc(&a, SIZE_MAX));
        assert_null(arena_alloc(&a, SIZE_MAX - 64));
        assert_null(arena_copy(&a, slice_of("", SIZE_MAX)).ptr);
        assert_null(arena_array(&a, 1ull << 32, 1ull << 32));
        assert_non_null(arena_array(&a, 3, sizeof(int)));
        arena_free(&a);
}

static void texts_are_copied_with_a_nul(void **state) {
        struct arena a = {0};
        char long_text[5000];
        struct slice copy;

        copy = arena_copy(&a, slice_of("a\0bcd", 3));
        assert_int_equal(copy.len, 3);
        assert_memory_equal(copy.ptr, "a\0b", 4);
        copy = arena_copy(&a, SLICE_NONE);
        assert_non_null(copy.ptr);
        assert_string_equal(copy.ptr, "");
        memset(long_text, 'x', sizeof(long_text));
        assert_int_equal(strlen(arena_printf(&a, "%.*s!", 4999, long_text)), 5000);
        assert_string_equal(arena_printf(&a, "%s", ""), "");
        arena_free(&a);
}

static void out_of_memory_fails_one_allocation_only(void **state) {
        long n = 0;

        do {
                struct arena a = {0};
                int failures = 0;

                failmalloc_from(n++, 0);
                for (int i = 0; i < 100; i++)
                        failures += !arena_alloc(&a, 1000);
                failmalloc_off();
                assert_int_equal(failures, failmalloc_failed());
                arena_free(&a);
        } while (failmalloc_failed());
        assert_true(n > 3);
}

static void what_is_forgotten_is_poisoned(void **state) {
#ifdef __SANITIZE_ADDRESS__
        struct arena a = {0};
        char *p = arena_alloc(&a, 20);

        assert_false(__asan_address_is_poisoned(p + 19));
        assert_true(__asan_address_is_poisoned(p + 20));
        arena_reset(&a);
        assert_true(__asan_address_is_poisoned(p));
        assert_ptr_equal(arena_alloc(&a, 20), p); /* the chunk is used again */
        assert_false(__asan_address_is_poisoned(p));
        arena_free(&a);
#endif
}

int main(void) {
        const struct CMUnitTest tests[] = {
            cmocka_unit_test(allocations_are_zeroed_aligned_and_apart),
            cmocka_unit_test(nothing_has_an_address_of_its_own),
            cmocka_unit_test(the_limit_holds),
            cmocka_unit_test(sizes_beyond_memory_are_refused),
            cmocka_unit_test(texts_are_copied_with_a_nul),
            cmocka_unit_test(out_of_memory_fails_one_allocation_only),
            cmocka_unit_test(what_is_forgotten_is_poisoned),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
