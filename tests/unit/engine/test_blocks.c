/* KV blocks and prefix cache: laws over random operations, and single cases of the rules. */
#include "base/rng.h"
#include "engine/blocks.h"
#include "engine/form.h"
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static const uint8_t key[16] = "only for a test";

static struct blocks *new_blocks(uint32_t count, uint32_t block_tokens, enum prefix_caching caching) {
        struct blocks *b = blocks_new(count, block_tokens, caching, key);

        assert_non_null(b);
        return b;
}

/* A sequence of up to 64 tokens with its table. */
struct holder {
        uint32_t tokens[64];
        uint32_t prompt, count, computed;
        unsigned salt;
        bool live;
        struct block_table table;
};

static const char *const salts[] = {"", "a", "b"};

static struct block_source source_of(const struct holder *h) {
        return (struct block_source){h->tokens, h->prompt, slice_str(salts[h->salt])};
}

static void fill(struct holder *h, uint32_t first, uint32_t count) {
        memset(h, 0, sizeof(*h));
        for (uint32_t i = 0; i < count; i++)
                h->tokens[i] = first + i;
        h->prompt = h->count = count;
        assert_int_equal(block_table_reserve(&h->table, 1, 64), 0);
}

/* Take blocks for everything, say that it is computed. */
static void compute(struct blocks *b, struct holder *h) {
        struct block_source source = source_of(h);

        assert_int_equal(blocks_grow(b, &h->table, h->count), 0);
        h->computed = h->count;
        blocks_register(b, &h->table, &source, h->count);
}

static size_t find(struct blocks *b, struct holder *h) {
        struct block_source source = source_of(h);

        return blocks_find(b, &h->table, &source, h->count, 0);
}

static void done(struct blocks *b, struct holder *h) {
        blocks_release(b, &h->table);
        block_table_free(&h->table);
}

/* ---- the model: what blocks.h promises, done the slow way ------------------------------------------------------------------ */

enum { BLOCKS = 12, HOLDERS = 5, BLOCK_TOKENS = 2 };

struct named {
        bool registered;
        unsigned salt;
        uint32_t tokens[64], naive[32], blocks; /* everything up to the end of this block */
};

struct model {
        uint32_t holders[BLOCKS], generation[BLOCKS];
        uint32_t unheld[BLOCKS], unheld_count; /* in the order in which they are taken */
        struct named names[BLOCKS];
        enum prefix_caching caching;
};

static void name_of(const struct model *m, const struct holder *h, uint32_t blocks, struct named *ret) {
        memset(ret, 0, sizeof(*ret));
        ret->registered = true;
        ret->salt = h->salt;
        ret->blocks = blocks;
        memcpy(ret->tokens, h->tokens, blocks * BLOCK_TOKENS * sizeof(uint32_t));
        for (uint32_t i = 0; i < blocks && m->caching == PREFIX_EXACT; i++)
                ret->naive[i] = naive_rows(h->prompt, i * BLOCK_TOKENS, BLOCK_TOKENS);
}

static uint32_t model_lookup(const struct model *m, const struct named *name) {
        for (uint32_t i = 0; i < BLOCKS; i++)
                if (m->names[i].registered && memcmp(&m->names[i], name, sizeof(*name)) == 0)
                        return i;
        return BLOCK_NONE;
}

static void model_hold(struct model *m, uint32_t id) {
        if (m->holders[id]++ > 0)
                return;
        for (uint32_t i = 0; i < m->unheld_count; i++)
                if (m->unheld[i] == id) {
                        m->unheld_count--;
                        memmove(&m->unheld[i], &m->unheld[i + 1], (m->unheld_count - i) * sizeof(uint32_t));
                        return;
                }
        fail_msg("block %u is not free", id);
}

static void model_drop(struct model *m, uint32_t id) {
        assert_true(m->holders[id] > 0);
        if (--m->holders[id] > 0)
                return;
        if (m->names[id].registered)
                m->unheld[m->unheld_count++] = id;
        else {
                memmove(&m->unheld[1], &m->unheld[0], m->unheld_count * sizeof(uint32_t));
                m->unheld[0] = id;
                m->unheld_count++;
        }
}

struct world {
        struct rng rng;
        struct blocks *b;
        struct model m;
        struct holder holders[HOLDERS];
        uint32_t held[4], held_count;
};

static void begin(struct world *w, struct holder *h) {
        uint32_t spare = (uint32_t)rng_below(&w->rng, 2), most, expected = 0;
        struct block_source source;
        struct named name;

        memset(h, 0, sizeof(*h));
        h->live = true;
        h->count = 1 + (uint32_t)rng_below(&w->rng, 14);
        h->prompt = 1 + (uint32_t)rng_below(&w->rng, h->count);
        h->salt = (unsigned)rng_below(&w->rng, 3);
        for (uint32_t i = 0; i < 64; i++)
                h->tokens[i] = (uint32_t)rng_below(&w->rng, 5) == 0;
        assert_int_equal(block_table_reserve(&h->table, BLOCK_TOKENS, 64), 0);
        source = source_of(h);
        h->computed = (uint32_t)blocks_find(w->b, &h->table, &source, h->count, spare);

        for (most = (h->count - 1) / BLOCK_TOKENS; expected < most && w->m.caching != PREFIX_OFF; expected++) {
                name_of(&w->m, h, expected + 1, &name);
                if (model_lookup(&w->m, &name) == BLOCK_NONE)
                        break;
        }
        expected -= spare < expected ? spare : expected;
        assert_int_equal(h->computed, expected * BLOCK_TOKENS);
        assert_int_equal(h->table.count, expected);
        for (uint32_t i = 0; i < expected; i++) {
                name_of(&w->m, h, i + 1, &name);
                assert_int_equal(h->table.ids[i], model_lookup(&w->m, &name));
                model_hold(&w->m, h->table.ids[i]);
        }
}

static void go_on(struct world *w, struct holder *h) {
        uint32_t to = h->computed + 1 + (uint32_t)rng_below(&w->rng, 5), before = (uint32_t)h->table.count, needed;
        struct block_source source = source_of(h);
        uint32_t tried = h->computed / BLOCK_TOKENS; /* their registration was tried before */
        struct named name;
        int r;

        if (to > 60)
                return;
        needed = (to + BLOCK_TOKENS - 1) / BLOCK_TOKENS;
        needed = needed > before ? needed - before : 0;
        r = blocks_grow(w->b, &h->table, to);
        if (needed > w->m.unheld_count) {
                assert_int_equal(r, -ENOSPC);
                assert_int_equal(h->table.count, before);
                return;
        }
        assert_int_equal(r, 0);
        for (uint32_t i = 0; i < needed; i++) {
                uint32_t id = w->m.unheld[0];

                assert_int_equal(h->table.ids[before + i], id);
                w->m.names[id].registered = false;
                w->m.generation[id]++;
                model_hold(&w->m, id);
        }
        h->computed = to;
        if (h->count < to)
                h->count = to;
        blocks_register(w->b, &h->table, &source, to);
        for (uint32_t i = 0; i < to / BLOCK_TOKENS && w->m.caching != PREFIX_OFF; i++) {
                if (i < tried)
                        continue;
                name_of(&w->m, h, i + 1, &name);
                if (model_lookup(&w->m, &name) == BLOCK_NONE)
                        w->m.names[h->table.ids[i]] = name;
        }
}

static void end(struct world *w, struct holder *h) {
        for (size_t i = h->table.count; i-- > 0;)
                model_drop(&w->m, h->table.ids[i]);
        blocks_release(w->b, &h->table);
        block_table_free(&h->table);
        h->live = false;
}

static void check(const struct world *w) {
        assert_int_equal(blocks_available(w->b), w->m.unheld_count);
        assert_true(blocks_usage(w->b) == (double)(BLOCKS - w->m.unheld_count) / BLOCKS);
        for (uint32_t i = 0; i < BLOCKS; i++)
                assert_int_equal(blocks_generation(w->b, i), w->m.generation[i]);
}

static void act(struct world *w) {
        struct holder *h = &w->holders[rng_below(&w->rng, HOLDERS)];

        switch (rng_below(&w->rng, 12)) {
        case 0: /* a transfer holds blocks of a sequence */
                if (h->live && h->table.count && w->held_count == 0) {
                        w->held_count = (uint32_t)(h->table.count < 4 ? h->table.count : 4);
                        memcpy(w->held, h->table.ids, w->held_count * sizeof(*w->held));
                        blocks_hold(w->b, w->held, w->held_count);
                        for (uint32_t i = 0; i < w->held_count; i++)
                                model_hold(&w->m, w->held[i]);
                }
                return;
        case 1:
                for (uint32_t i = w->held_count; i-- > 0;)
                        model_drop(&w->m, w->held[i]);
                blocks_drop(w->b, w->held, w->held_count);
                w->held_count = 0;
                return;
        case 2:
                if (w->m.unheld_count < BLOCKS)
                        assert_false(blocks_forget(w->b));
                else {
                        assert_true(blocks_forget(w->b));
                        for (uint32_t i = 0; i < BLOCKS; i++)
                                w->m.names[i].registered = false;
                }
                return;
        case 3:
        case 4:
        case 5:
                if (h->live)
                        end(w, h);
                else
                        begin(w, h);
                return;
        default:
                if (h->live)
                        go_on(w, h);
                else
                        begin(w, h);
        }
}

static void any_operations_agree_with_the_model(void **state) {
        for (uint64_t seed = 0; seed < 300; seed++) {
                struct world w = {.m.caching = (enum prefix_caching)(seed % 3)};

                rng_seed(&w.rng, seed);
                w.b = new_blocks(BLOCKS, BLOCK_TOKENS, w.m.caching);
                w.m.unheld_count = BLOCKS;
                for (uint32_t i = 0; i < BLOCKS; i++)
                        w.m.unheld[i] = i;
                for (int i = 0; i < 400; i++) {
                        act(&w);
                        check(&w);
                }
                for (int i = 0; i < HOLDERS; i++)
                        if (w.holders[i].live)
                                end(&w, &w.holders[i]);
                blocks_drop(w.b, w.held, w.held_count);
                assert_int_equal(blocks_available(w.b), BLOCKS);
                blocks_free(w.b);
        }
}

/* ---- single rules ---------------------------------------------------------------------------------------------------------- */

static void a_prefix_is_found_by_whole_blocks_and_never_to_the_last_token(void **state) {
        struct blocks *b = new_blocks(32, 4, PREFIX_SHARED);
        struct holder first, again;

        fill(&first, 100, 12);
        compute(b, &first);
        for (uint32_t count = 1; count <= 14; count++) {
                fill(&again, 100, count);
                assert_int_equal(find(b, &again), (count < 13 ? count - 1 : 12) / 4 * 4);
                done(b, &again);
        }
        done(b, &first);
        blocks_free(b);
}

static void the_last_matching_blocks_can_be_left_out(void **state) {
        struct blocks *b = new_blocks(32, 4, PREFIX_SHARED);
        struct holder first, again;
        struct block_source source;

        fill(&first, 100, 16);
        compute(b, &first);
        fill(&again, 100, 13);
        source = source_of(&again);
        assert_int_equal(blocks_find(b, &again.table, &source, 13, 1), 8);
        blocks_release(b, &again.table);
        assert_int_equal(blocks_find(b, &again.table, &source, 13, 9), 0);
        done(b, &again);
        done(b, &first);
        blocks_free(b);
}

static void other_salts_find_nothing(void **state) {
        struct blocks *b = new_blocks(32, 4, PREFIX_SHARED);
        struct holder first, again;

        fill(&first, 100, 12);
        first.salt = 1;
        compute(b, &first);
        fill(&again, 100, 12);
        for (again.salt = 0; again.salt < 3; again.salt++) {
                again.table.hashed = 0; /* hashes are kept as long as the source is the same */
                assert_int_equal(find(b, &again), again.salt == 1 ? 8 : 0);
                blocks_release(b, &again.table);
        }
        again.salt = 0;
        done(b, &again);
        done(b, &first);
        blocks_free(b);
}

static void a_change_anywhere_before_loses_the_rest(void **state) {
        struct blocks *b = new_blocks(32, 4, PREFIX_SHARED);
        struct holder first, again;

        fill(&first, 100, 16);
        compute(b, &first);
        for (uint32_t i = 0; i < 16; i++) {
                fill(&again, 100, 16);
                again.tokens[i] ^= 1;
                assert_int_equal(find(b, &again), (i < 12 ? i : 12) / 4 * 4);
                done(b, &again);
        }
        done(b, &first);
        blocks_free(b);
}

/* What was let go first is taken first, tails before heads; found again it counts as used. */
static void the_least_recently_used_tail_goes_first(void **state) {
        struct blocks *b = new_blocks(4, 2, PREFIX_SHARED);
        struct holder old, young, probe, big;

        fill(&old, 100, 4);
        compute(b, &old);
        fill(&young, 200, 4);
        compute(b, &young);
        done(b, &old);
        done(b, &young);
        fill(&probe, 100, 5);
        assert_int_equal(find(b, &probe), 4); /* old is now the more recently used */
        done(b, &probe);

        fill(&big, 300, 2);
        compute(b, &big); /* takes one block: the tail of young */
        done(b, &big);
        fill(&probe, 200, 5);
        assert_int_equal(find(b, &probe), 2);
        done(b, &probe);
        fill(&probe, 100, 5);
        assert_int_equal(find(b, &probe), 4);
        done(b, &probe);
        blocks_free(b);
}

static void blocks_without_a_name_are_taken_before_remembered_ones(void **state) {
        struct blocks *b = new_blocks(4, 2, PREFIX_SHARED);
        struct holder first, second;

        fill(&first, 100, 7); /* the fourth block is not full */
        compute(b, &first);
        blocks_release(b, &first.table);
        fill(&second, 200, 1);
        compute(b, &second);
        assert_int_equal(find(b, &first), 6);
        done(b, &first);
        done(b, &second);
        blocks_free(b);
}

static void shared_blocks_are_free_after_the_last_holder(void **state) {
        struct blocks *b = new_blocks(8, 2, PREFIX_SHARED);
        struct holder first, second;

        fill(&first, 100, 5);
        compute(b, &first);
        fill(&second, 100, 5);
        assert_int_equal(find(b, &second), 4);
        assert_int_equal(blocks_available(b), 5);
        done(b, &first);
        assert_int_equal(blocks_available(b), 6);
        done(b, &second);
        assert_int_equal(blocks_available(b), 8);
        blocks_free(b);
}

static void forgetting_waits_until_nothing_is_held(void **state) {
        struct blocks *b = new_blocks(8, 2, PREFIX_SHARED);
        struct holder h;

        fill(&h, 100, 5);
        compute(b, &h);
        assert_false(blocks_forget(b));
        blocks_release(b, &h.table);
        assert_true(blocks_forget(b));
        assert_int_equal(find(b, &h), 0);
        done(b, &h);
        blocks_free(b);
}

static void too_few_blocks_change_nothing(void **state) {
        struct blocks *b = new_blocks(4, 2, PREFIX_SHARED);
        struct holder h;

        fill(&h, 100, 2);
        compute(b, &h);
        assert_int_equal(blocks_grow(b, &h.table, 9), -ENOSPC);
        assert_int_equal(h.table.count, 1);
        assert_int_equal(blocks_available(b), 3);
        assert_int_equal(blocks_grow(b, &h.table, 8), 0);
        assert_true(blocks_usage(b) == 1.0);
        done(b, &h);
        blocks_free(b);
}

static void a_block_held_by_a_transfer_outlives_its_sequence(void **state) {
        struct blocks *b = new_blocks(2, 2, PREFIX_SHARED);
        struct holder h, other;
        uint32_t id, generation;

        fill(&h, 100, 2);
        compute(b, &h);
        id = h.table.ids[0];
        generation = blocks_generation(b, id);
        blocks_hold(b, &id, 1);
        done(b, &h);
        assert_int_equal(blocks_available(b), 1);
        fill(&other, 200, 4);
        assert_int_equal(blocks_grow(b, &other.table, 4), -ENOSPC);
        assert_int_equal(blocks_generation(b, id), generation);
        blocks_drop(b, &id, 1);
        compute(b, &other);
        assert_int_equal(blocks_generation(b, id), generation + 1);
        done(b, &other);
        blocks_free(b);
}

/* A block of output rows holds other bits than the same tokens computed as a prompt. */
static void exact_prefixes_tell_output_rows_from_prompt_rows(void **state) {
        for (enum prefix_caching caching = PREFIX_EXACT; caching <= PREFIX_SHARED; caching++) {
                struct blocks *b = new_blocks(16, 4, caching);
                struct holder first, as_prompt, resumed;

                fill(&first, 100, 12);
                first.prompt = 6; /* rows 0..4 naive, 5..11 absorbed */
                compute(b, &first);
                fill(&as_prompt, 100, 12);
                assert_int_equal(find(b, &as_prompt), caching == PREFIX_EXACT ? 4 : 8);
                fill(&resumed, 100, 12);
                resumed.prompt = 6;
                assert_int_equal(find(b, &resumed), 8);
                done(b, &first);
                done(b, &as_prompt);
                done(b, &resumed);
                blocks_free(b);
        }
}

/* What a watch was told to be there. */
struct told {
        struct {
                uint64_t name, parent;
                bool has_parent, gone;
                uint32_t tokens[4];
        } blocks[4096];
        size_t count, live;
};

static void told_stored(void *context, const struct hash128 *parent, const struct hash128 *hashes, size_t count,
    const uint32_t *tokens, struct slice salt) {
        struct told *t = context;

        for (size_t i = 0; i < count; i++) {
                assert_true(t->count < 4096);
                t->blocks[t->count].name = hashes[i].lo;
                t->blocks[t->count].has_parent = i > 0 || parent;
                t->blocks[t->count].parent = i > 0 ? hashes[i - 1].lo : parent ? parent->lo : 0;
                t->blocks[t->count].gone = false;
                memcpy(t->blocks[t->count++].tokens, tokens + 4 * i, 16);
                t->live++;
        }
}

static void told_removed(void *context, struct hash128 hash) {
        struct told *t = context;
        size_t found = 0;

        for (size_t i = 0; i < t->count; i++)
                if (!t->blocks[i].gone && t->blocks[i].name == hash.lo) {
                        t->blocks[i].gone = true;
                        found++;
                }
        assert_int_equal(found, 1); /* told once before, and not removed since */
        t->live--;
}

static void told_cleared(void *context) {
        struct told *t = context;

        t->count = t->live = 0;
}

/* By what was told alone: how many tokens of these are there? */
static size_t told_depth(const struct told *t, const uint32_t *tokens, size_t count) {
        uint64_t parent = 0;
        size_t depth = 0;

        for (bool found = true; found && depth * 4 + 4 < count;) {
                found = false;
                for (size_t i = 0; i < t->count && !found; i++)
                        if (!t->blocks[i].gone && t->blocks[i].has_parent == (depth > 0) &&
                            (depth == 0 || t->blocks[i].parent == parent) &&
                            !memcmp(t->blocks[i].tokens, tokens + 4 * depth, 16)) {
                                parent = t->blocks[i].name;
                                found = true;
                        }
                depth += found;
        }
        return depth * 4;
}

/* With few blocks and many prompts, so that some are always taken away: what was told is what a prompt finds. */
static void a_watch_knows_what_any_prompt_finds(void **state) {
        for (enum prefix_caching caching = PREFIX_EXACT; caching <= PREFIX_SHARED; caching++) {
                static struct told t;
                const struct blocks_watch watch = {told_stored, told_removed, told_cleared, &t};
                struct blocks *b = new_blocks(12, 4, caching);
                struct rng rng;
                size_t hits = 0;

                t = (struct told){0};
                blocks_set_watch(b, &watch);
                rng_seed(&rng, 5);
                for (int step = 0; step < 600; step++) {
                        struct holder h, asks;
                        uint32_t count = 1 + (uint32_t)rng_below(&rng, 40);
                        size_t found;

                        fill(&h, 100 * (uint32_t)rng_below(&rng, 3), count);
                        for (uint32_t i = count / 2; i < count; i++) /* ways part in the second half */
                                h.tokens[i] += (uint32_t)rng_below(&rng, 2);
                        asks = h;
                        asks.table = (struct block_table){0};
                        assert_int_equal(block_table_reserve(&asks.table, 1, 64), 0);
                        found = find(b, &asks);
                        assert_int_equal(found, told_depth(&t, asks.tokens, count));
                        hits += found > 0;
                        done(b, &asks);
                        /* As the engine has it: what is there is held, the rest computed; some of it is output. */
                        h.prompt = 1 + (uint32_t)rng_below(&rng, count);
                        find(b, &h);
                        compute(b, &h);
                        done(b, &h);
                        if (rng_below(&rng, 100) == 0)
                                assert_true(blocks_forget(b));
                }
                assert_true(hits > 100);
                blocks_free(b);
        }
}

static void keys_make_different_names(void **state) {
        static const uint8_t reference_key[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
        static const uint8_t message[] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
        struct hash128 empty = siphash128(slice_of(message, 0), reference_key);
        struct hash128 one = siphash128(slice_of(message, 1), reference_key);

        /* From the authors' table of vectors (vectors_sip128), bytes read as little-endian words. */
        assert_true(empty.lo == 0xe6a825ba047f81a3ull && empty.hi == 0x930255c71472f66dull);
        assert_true(one.lo == 0x44af996bd8c187daull && one.hi == 0x45fc229b11597634ull);
        assert_false(
            hash128_eq(siphash128(slice_of(message, 16), reference_key), siphash128(slice_of(message, 16), key)));
}

int main(void) {
        const struct CMUnitTest tests[] = {
            cmocka_unit_test(any_operations_agree_with_the_model),
            cmocka_unit_test(a_prefix_is_found_by_whole_blocks_and_never_to_the_last_token),
            cmocka_unit_test(the_last_matching_blocks_can_be_left_out),
            cmocka_unit_test(other_salts_find_nothing),
            cmocka_unit_test(a_change_anywhere_before_loses_the_rest),
            cmocka_unit_test(the_least_recently_used_tail_goes_first),
            cmocka_unit_test(blocks_without_a_name_are_taken_before_remembered_ones),
            cmocka_unit_test(shared_blocks_are_free_after_the_last_holder),
            cmocka_unit_test(forgetting_waits_until_nothing_is_held),
            cmocka_unit_test(too_few_blocks_change_nothing),
            cmocka_unit_test(a_block_held_by_a_transfer_outlives_its_sequence),
            cmocka_unit_test(exact_prefixes_tell_output_rows_from_prompt_rows),
            cmocka_unit_test(a_watch_knows_what_any_prompt_finds),
            cmocka_unit_test(keys_make_different_names),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
