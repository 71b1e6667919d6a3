/* test_prefix.c - the index of prompt beginnings beside a naive one, and its bound. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "base/rng.h"
#include "gateway/prefix.h"
#include <stdlib.h>
#include <string.h>

#define TEXT_MAX 4096

static void equal_beginnings_have_equal_keys(void **state) {
        static char a[TEXT_MAX], b[TEXT_MAX];
        uint64_t x[PREFIX_KEYS_MAX], y[PREFIX_KEYS_MAX];
        struct rng rng;

        rng_seed(&rng, 1);
        for (int round = 0; round < 500; round++) {
                size_t differ = rng_below(&rng, TEXT_MAX), n, m, same = 0;

                for (size_t i = 0; i < TEXT_MAX; i++)
                        a[i] = b[i] = (char)rng_u64(&rng);
                b[differ] ^= 1;
                n = prefix_keys(slice_of(a, TEXT_MAX - rng_below(&rng, 100)), 5, x);
                m = prefix_keys(slice_of(b, TEXT_MAX - rng_below(&rng, 100)), 5, y);
                while (same < n && same < m && x[same] == y[same])
                        same++;
                /* All blocks that end before the difference, and none behind. */
                assert_true(same == 0 || prefix_end(same - 1) <= differ);
                assert_true(same == n || same == m || prefix_end(same) > differ);
                for (size_t i = same; i < n && i < m; i++)
                        assert_int_not_equal(x[i], y[i]);
                prefix_keys(slice_of(a, TEXT_MAX), 6, y);
                assert_int_not_equal(x[0], y[0]);
        }
}

/* No text has more keys than there is room for, and what they cover is all but an eighth of it. */
static void keys_cover_all_but_an_eighth(void **state) {
        uint64_t keys[PREFIX_KEYS_MAX];
        char *text = calloc(1, 8 << 20);

        for (size_t len = 0; len <= 8u << 20; len += 1 + len / 3) {
                size_t n = prefix_keys(slice_of(text, len), 0, keys);

                assert_true(n <= PREFIX_KEYS_MAX);
                assert_true(n == 0 || prefix_end(n - 1) <= len);
                if (len >= 16 && len <= 4u << 20)
                        assert_true(prefix_end(n - 1) + prefix_end(n - 1) / 8 + 16 >= len);
        }
        free(text);
}

#define PROMPTS 40
#define HOLDERS 6

/* Beside a table of who was given what, with few prompts so that nothing is forgotten: the deepest match is the longest
 * beginning that anybody was given, and whoever is named for it was given it. */
static void a_match_is_the_longest_beginning_that_was_given(void **state) {
        static char text[PROMPTS][TEXT_MAX];
        static uint64_t keys[PROMPTS][PREFIX_KEYS_MAX];
        size_t count[PROMPTS];
        bool given[PROMPTS][HOLDERS + 1] = {0};
        struct prefix_index *x;
        struct rng rng;

        rng_seed(&rng, 2);
        assert_int_equal(prefix_index_new(1 << 20, &x), 0);
        for (size_t p = 0; p < PROMPTS; p++) {
                size_t parent = p ? rng_below(&rng, p) : 0, shared = p ? rng_below(&rng, TEXT_MAX) : 0;

                memcpy(text[p], text[parent], shared);
                for (size_t i = shared; i < TEXT_MAX; i++)
                        text[p][i] = (char)rng_u64(&rng);
                count[p] = prefix_keys(slice_of(text[p], 1 + rng_below(&rng, TEXT_MAX)), 0, keys[p]);
        }
        for (int round = 0; round < 3000; round++) {
                size_t p = rng_below(&rng, PROMPTS), want = 0, n;
                uint32_t h = 1 + (uint32_t)rng_below(&rng, HOLDERS);
                struct prefix_hit hits[PREFIX_HITS_MAX];

                for (size_t q = 0; q < PROMPTS; q++) {
                        size_t same = 0;
                        bool any = false;

                        for (int k = 1; k <= HOLDERS; k++)
                                any |= given[q][k];
                        while (any && same < count[p] && same < count[q] && keys[p][same] == keys[q][same])
                                same++;
                        want = same > want ? same : want;
                }
                n = prefix_match(x, keys[p], count[p], hits);
                assert_int_equal(n > 0 ? hits[0].count : 0, want);
                for (size_t i = 0; i < n; i++) {
                        bool had = false;

                        for (size_t q = 0; q < PROMPTS; q++)
                                had |= given[q][hits[i].holder.id] && count[q] >= hits[i].count &&
                                       keys[q][hits[i].count - 1] == keys[p][hits[i].count - 1];
                        assert_true(had);
                        for (size_t k = 0; k < i; k++)
                                assert_int_not_equal(hits[k].holder.id, hits[i].holder.id);
                }
                if (rng_below(&rng, 8) == 0) {
                        prefix_note(x, keys[p], count[p], (struct prefix_holder){h, 0});
                        given[p][h] = true;
                }
        }
        prefix_index_free(x);
}

/* However much comes, the index holds no more than its limit; the latest is there whole, and no key without those before
 * it. */
static void the_index_is_bounded_and_forgets_ends_first(void **state) {
        static char text[TEXT_MAX];
        uint64_t keys[PREFIX_KEYS_MAX];
        struct prefix_index *x;
        struct prefix_hit hits[PREFIX_HITS_MAX];
        struct rng rng;

        rng_seed(&rng, 3);
        assert_int_equal(prefix_index_new(1, &x), 0);
        for (int round = 0; round < 5000; round++) {
                size_t changed = rng_below(&rng, TEXT_MAX), n, known = 0;

                for (size_t i = changed; i < TEXT_MAX && i < changed + 64; i++)
                        text[i] = (char)rng_u64(&rng);
                n = prefix_keys(slice_of(text, 1 + rng_below(&rng, TEXT_MAX)), 0, keys);
                /* A key is there by itself, or not. */
                while (known < n && prefix_match(x, keys + known, 1, hits) > 0)
                        known++;
                for (size_t i = known; i < n; i++)
                        assert_int_equal(prefix_match(x, keys + i, 1, hits), 0);
                prefix_note(x, keys, n, (struct prefix_holder){1 + (uint32_t)rng_below(&rng, 50), 0});
                assert_true(prefix_index_count(x) <= prefix_index_limit(x));
                if (n > 0) {
                        assert_true(prefix_match(x, keys, n, hits) > 0);
                        assert_int_equal(hits[0].count, n);
                }
        }
        assert_int_equal(prefix_index_count(x), prefix_index_limit(x));
        prefix_index_clear(x);
        assert_int_equal(prefix_index_count(x), 0);
        assert_int_equal(prefix_match(x, keys, 1, hits), 0);
        prefix_index_free(x);
}

static void a_note_says_what_its_holder_had(void **state) {
        static const char text[] = "Once upon a time there was a lighthouse keeper who counted the waves, one by one.";
        uint64_t keys[PREFIX_KEYS_MAX];
        size_t n = prefix_keys(slice_str(text), 0, keys);
        struct prefix_index *x;

        assert_int_equal(prefix_index_new(1 << 16, &x), 0);
        assert_int_equal(prefix_note(x, keys, n - 2, (struct prefix_holder){1, 0}), 0);
        assert_int_equal(prefix_note(x, keys, n, (struct prefix_holder){2, 0}), 0);
        assert_int_equal(prefix_note(x, keys, n, (struct prefix_holder){1, 0}), n - 2);
        assert_int_equal(prefix_note(x, keys, n, (struct prefix_holder){1, 1}), 0); /* another life */
        assert_int_equal(prefix_note(x, keys, n, (struct prefix_holder){1, 1}), n);
        prefix_index_free(x);
}

int main(void) {
        const struct CMUnitTest tests[] = {
            cmocka_unit_test(equal_beginnings_have_equal_keys),
            cmocka_unit_test(keys_cover_all_but_an_eighth),
            cmocka_unit_test(a_match_is_the_longest_beginning_that_was_given),
            cmocka_unit_test(the_index_is_bounded_and_forgets_ends_first),
            cmocka_unit_test(a_note_says_what_its_holder_had),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
