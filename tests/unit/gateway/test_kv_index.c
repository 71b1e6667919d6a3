/* test_kv_index.c - the index of KV events beside engines that are played here, its bound, and what must not meet. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "base/rng.h"
#include "gateway/kv_index.h"
#include <stdlib.h>

#define BLOCK   4
#define DEPTH   12 /* blocks of the longest prompt */
#define PROMPTS 30
#define ENGINES 7

/* Prompts that share beginnings; tokens are few, so that blocks are equal at different places, too. */
static uint32_t tokens[PROMPTS][DEPTH * BLOCK + 1];

static void make_prompts(struct rng *rng) {
        for (size_t p = 0; p < PROMPTS; p++) {
                size_t parent = p ? rng_below(rng, p) : 0, shared = p ? rng_below(rng, DEPTH * BLOCK) : 0;

                memcpy(tokens[p], tokens[parent], shared * sizeof(**tokens));
                for (size_t i = shared; i <= DEPTH * BLOCK; i++)
                        tokens[p][i] = (uint32_t)rng_below(rng, 3);
        }
}

static size_t shared_blocks(size_t a, size_t b) {
        size_t n = 0;

        while (n < DEPTH && !memcmp(tokens[a] + n * BLOCK, tokens[b] + n * BLOCK, BLOCK * sizeof(**tokens)))
                n++;
        return n;
}

/* An engine's cache: of each prompt so many blocks (others may make it more). Its names of blocks are its own. */
struct engine {
        struct kv_holder holder;
        size_t has[PROMPTS];
};

static size_t depth_in(const struct engine *e, size_t prompt) {
        size_t best = 0;

        for (size_t p = 0; p < PROMPTS; p++) {
                size_t n = shared_blocks(p, prompt);

                if (n > e->has[p])
                        n = e->has[p];
                if (n > best)
                        best = n;
        }
        return best;
}

/* The name of a block: which prompt had it first, and where; engines differ in it by a constant. */
static uint64_t name(const struct engine *e, size_t prompt, size_t block) {
        for (size_t p = 0; p <= prompt; p++)
                if (shared_blocks(p, prompt) > block)
                        return (p * DEPTH + block) * 8 + e->holder.id;
        return 0;
}

static void store(struct kv_index *x, struct engine *e, size_t prompt, size_t from, size_t to) {
        uint64_t names[DEPTH];
        struct event stored = {.kind = EVENT_STORED,
            .counts = true,
            .hashes = names,
            .hash_count = to - from,
            .tokens = tokens[prompt] + from * BLOCK,
            .token_count = (to - from) * BLOCK,
            .block_tokens = BLOCK,
            .has_parent = from > 0,
            .parent = from > 0 ? name(e, prompt, from - 1) : 0};

        for (size_t i = from; i < to; i++)
                names[i - from] = name(e, prompt, i);
        kv_index_apply(x, &e->holder, &stored);
}

static void removed(struct kv_index *x, struct engine *e, uint64_t block) {
        struct event gone = {.kind = EVENT_REMOVED, .counts = true, .hashes = &block, .hash_count = 1};

        kv_index_apply(x, &e->holder, &gone);
}

/* Take a block away that no other of the cache stands on. */
static void forget_one(struct kv_index *x, struct engine *e, size_t prompt) {
        size_t depth = e->has[prompt];

        if (depth == 0)
                return;
        for (size_t p = 0; p < PROMPTS; p++)
                if (p != prompt && e->has[p] >= depth && shared_blocks(p, prompt) >= depth)
                        return;
        removed(x, e, name(e, prompt, depth - 1));
        e->has[prompt]--;
}

static size_t keys_of(const struct kv_index *x, size_t prompt, struct arena *arena, const uint64_t **ret_keys) {
        struct kv_prompt p = {.tokens = tokens[prompt], .count = DEPTH * BLOCK + 1};
        size_t n;

        assert_int_equal(kv_index_keys(x, &p, arena, ret_keys, &n), 0);
        return n;
}

static void every_engine_is_found_with_as_many_blocks_as_it_has(void **state) {
        for (uint64_t seed = 0; seed < 20; seed++) {
                struct engine engines[ENGINES] = {0};
                struct kv_index *x;
                struct rng rng;

                rng_seed(&rng, seed);
                make_prompts(&rng);
                assert_int_equal(kv_index_new(1 << 20, seed, &x), 0);
                for (uint32_t i = 0; i < ENGINES; i++)
                        engines[i].holder.id = 1 + i;
                for (int step = 0; step < 2000; step++) {
                        struct engine *e = &engines[rng_below(&rng, ENGINES)];
                        size_t p = rng_below(&rng, PROMPTS), dice = rng_below(&rng, 100), depth = depth_in(e, p);
                        struct kv_hit hits[KV_HITS_MAX];
                        struct arena arena = {0};
                        const uint64_t *keys;
                        size_t n, found;

                        if (dice < 40 && depth < DEPTH) {
                                size_t to = depth + 1 + rng_below(&rng, DEPTH - depth);

                                store(x, e, p, depth, to);
                                e->has[p] = to;
                        } else if (dice < 90) {
                                forget_one(x, e, p);
                        } else if (dice < 91) {
                                kv_index_apply(x, &e->holder, &(struct event){.kind = EVENT_CLEARED, .counts = true});
                                memset(e->has, 0, sizeof(e->has));
                        }
                        if (kv_index_count(x) == 0)
                                continue;
                        p = rng_below(&rng, PROMPTS);
                        n = keys_of(x, p, &arena, &keys);
                        assert_int_equal(n, DEPTH);
                        found = kv_index_match(x, keys, n, hits);
                        for (size_t i = 1; i < found; i++)
                                assert_true(hits[i].count <= hits[i - 1].count);
                        for (size_t i = 0; i < ENGINES; i++) {
                                size_t expected = depth_in(&engines[i], p), k = 0;

                                while (k < found && hits[k].id != engines[i].holder.id)
                                        k++;
                                assert_int_equal(k < found ? hits[k].count : 0, expected);
                                assert_int_equal(kv_index_depth(x, &engines[i].holder, keys, n), expected);
                        }
                        arena_free(&arena);
                }
                for (size_t i = 0; i < ENGINES; i++)
                        kv_index_clear(x, &engines[i].holder);
                assert_int_equal(kv_index_count(x), 0);
                assert_int_equal(kv_index_dropped(x) + kv_index_orphans(x), 0);
                kv_index_free(x);
        }
}

static void a_full_index_takes_no_more_and_loses_nothing(void **state) {
        struct kv_holder h = {.id = 1};
        struct kv_index *x;
        size_t limit;

        assert_int_equal(kv_index_new(4096, 1, &x), 0);
        limit = kv_index_limit(x);
        assert_true(limit >= 16 && limit * 48 <= 4096);
        for (uint64_t n = 0; n < limit + 10; n++) {
                uint32_t token = (uint32_t)n;
                struct event e = {.kind = EVENT_STORED,
                    .counts = true,
                    .hashes = &n,
                    .hash_count = 1,
                    .tokens = &token,
                    .token_count = 1,
                    .block_tokens = 1};

                kv_index_apply(x, &h, &e);
        }
        assert_int_equal(kv_index_count(x), limit);
        assert_int_equal(kv_index_dropped(x), 10);
        for (uint64_t n = 0; n < limit; n++) { /* those that came first are there */
                uint32_t prompt[2] = {(uint32_t)n, 0};
                struct kv_prompt p = {.tokens = prompt, .count = 2};
                struct kv_hit hits[KV_HITS_MAX];
                struct arena arena = {0};
                const uint64_t *keys;
                size_t count;

                assert_int_equal(kv_index_keys(x, &p, &arena, &keys, &count), 0);
                assert_int_equal(kv_index_match(x, keys, count, hits), 1);
                arena_free(&arena);
        }
        kv_index_clear(x, &h);
        assert_int_equal(kv_index_count(x), 0);
        kv_index_free(x);
}

static size_t match(const struct kv_index *x, const struct kv_prompt *p) {
        struct kv_hit hits[KV_HITS_MAX];
        struct arena arena = {0};
        const uint64_t *keys;
        size_t count, n;

        assert_int_equal(kv_index_keys(x, p, &arena, &keys, &count), 0);
        n = kv_index_match(x, keys, count, hits) > 0 ? hits[0].count : 0;
        arena_free(&arena);
        return n;
}

/* Blocks under a salt, or of an adapter, are found by prompts with that alone; images by none. */
static void what_depends_on_more_than_tokens_is_kept_apart(void **state) {
        static const uint32_t text[5] = {1, 2, 3, 4, 5};
        static const uint64_t names[2] = {1, 2};
        const uint64_t salted[2] = {event_extra(SLICE_LIT("tenant")), 0},
                       image[2] = {0, event_extra(SLICE_LIT("sha256"))};
        struct event e = {.kind = EVENT_STORED,
            .counts = true,
            .hashes = names,
            .hash_count = 2,
            .tokens = text,
            .token_count = 4,
            .block_tokens = 2};
        struct kv_prompt plain = {.tokens = text, .count = 5, .model = SLICE_LIT("base")}, tenant = plain,
                         other = plain, poet = plain;
        struct {
                const uint64_t *extras;
                uint64_t adapter;
                size_t plain, tenant, other, poet;
        } cases[] = {
            {NULL, 0, 2, 0, 0, 2},
            {salted, 0, 0, 2, 0, 0},
            {image, 0, 1, 0, 0, 1},
            {NULL, event_name(SLICE_LIT("poet")), 0, 0, 0, 2},
        };

        tenant.salt = SLICE_LIT("tenant");
        other.salt = SLICE_LIT("stranger");
        poet.model = SLICE_LIT("poet");
        for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
                struct kv_holder h = {.id = 1};
                struct kv_index *x;

                assert_int_equal(kv_index_new(1 << 16, 7, &x), 0);
                e.extras = cases[i].extras;
                e.adapter = cases[i].adapter;
                kv_index_apply(x, &h, &e);
                assert_int_equal(match(x, &plain), cases[i].plain);
                assert_int_equal(match(x, &tenant), cases[i].tenant);
                assert_int_equal(match(x, &other), cases[i].other);
                assert_int_equal(match(x, &poet), cases[i].poet);
                kv_index_free(x);
        }
}

static void what_cannot_be_placed_is_counted_and_left_out(void **state) {
        static const uint32_t text[4] = {1, 2, 3, 4};
        static const uint64_t names[1] = {1}, child[1] = {2};
        struct event first = {.kind = EVENT_STORED,
            .counts = true,
            .hashes = names,
            .hash_count = 1,
            .tokens = text,
            .token_count = 2,
            .block_tokens = 2};
        struct event orphan = first, wider = first, lower = first, bare = first;
        struct kv_holder h = {.id = 1}, other = {.id = 2};
        struct kv_index *x;

        assert_int_equal(kv_index_new(1 << 16, 7, &x), 0);
        kv_index_apply(x, &h, &first);
        orphan.hashes = child;
        orphan.has_parent = true;
        orphan.parent = 99;
        wider.block_tokens = 4;
        wider.token_count = 4;
        lower.counts = false;
        bare.token_count = 0;
        bare.tokens = NULL;
        kv_index_apply(x, &h, &orphan);
        kv_index_apply(x, &other, &wider);
        kv_index_apply(x, &other, &bare);
        assert_int_equal(kv_index_orphans(x), 3);
        kv_index_apply(x, &other, &lower);
        assert_int_equal(kv_index_orphans(x), 3);
        assert_int_equal(kv_index_count(x), 1);
        assert_int_equal(kv_index_block_tokens(x), 2);
        /* A parent is looked for among the engine's own. */
        orphan.parent = 1;
        kv_index_apply(x, &other, &orphan);
        assert_int_equal(kv_index_count(x), 1);
        kv_index_apply(x, &h, &orphan);
        assert_int_equal(kv_index_count(x), 2);
        /* When the last block is gone, another size is as good. */
        kv_index_clear(x, &h);
        assert_int_equal(kv_index_block_tokens(x), 0);
        kv_index_apply(x, &other, &wider);
        assert_int_equal(kv_index_block_tokens(x), 4);
        kv_index_free(x);
}

int main(void) {
        const struct CMUnitTest tests[] = {
            cmocka_unit_test(every_engine_is_found_with_as_many_blocks_as_it_has),
            cmocka_unit_test(a_full_index_takes_no_more_and_loses_nothing),
            cmocka_unit_test(what_depends_on_more_than_tokens_is_kept_apart),
            cmocka_unit_test(what_cannot_be_placed_is_counted_and_left_out),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
