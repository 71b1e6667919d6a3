/* prefix.c - see prefix.h.
 *
 * One table of blocks, a cache line each, found by key through a chained hash table and linked into one list by last use.
 * Links are indexes; 0 is the end of a chain and the head of the list. */
#include "gateway/prefix.h"
#include "base/hash.h"
#include <assert.h>
#include <errno.h>
#include <stdlib.h>

/* Prompts that differ within their first 16 bytes share nothing worth routing by. */
#define BLOCK_MIN 16
/* Instances remembered for each block, the latest first. A beginning that all prompts share is held by thousands: any of
 * them is as good, and the load decides who comes into the list next. */
#define HOLDERS 5

struct block {
        uint64_t key;
        struct prefix_holder holders[HOLDERS]; /* id 0: none */
        uint32_t newer, older, next;
} __attribute__((aligned(64)));
_Static_assert(sizeof(struct block) == 64, "a block is one cache line");

struct prefix_index {
        struct block *blocks; /* [0] is the list's head */
        uint32_t *chains;     /* by key & mask */
        size_t mask;
        uint32_t count, limit;
};

/* ---- cutting -------------------------------------------------------------------------------------------------------- */

/* The end of the block that begins at `begin`. */
static size_t next_end(size_t begin) {
        size_t growth = begin / 8;

        return begin + (growth > BLOCK_MIN ? growth : BLOCK_MIN);
}

size_t prefix_end(size_t index) {
        size_t end = 0;

        for (size_t i = 0; i <= index; i++)
                end = next_end(end);
        return end;
}

size_t prefix_keys(struct slice text, uint64_t seed, uint64_t *ret_keys) {
        size_t n = 0, begin = 0;

        for (size_t end = next_end(0); end <= text.len && n < PREFIX_KEYS_MAX; end = next_end(begin)) {
                seed = hash64(slice_sub(text, begin, end), seed);
                ret_keys[n++] = seed;
                begin = end;
        }
        return n;
}

uint64_t prefix_tokens(const struct prompt *p, size_t count) {
        assert(count <= p->key_count);
        return count == 0 ? 0 : (uint64_t)((double)p->tokens * (double)prefix_end(count - 1) / (double)p->bytes);
}

/* ---- life ----------------------------------------------------------------------------------------------------------- */

int prefix_index_new(size_t bytes, struct prefix_index **ret_index) {
        struct prefix_index *x = calloc(1, sizeof(*x));
        size_t limit = bytes / (sizeof(struct block) + 2 * sizeof(uint32_t)), chains = 1;

        if (!x)
                return -ENOMEM;
        if (limit < 2 * PREFIX_KEYS_MAX)
                limit = 2 * PREFIX_KEYS_MAX;
        if (limit > UINT32_MAX / 2)
                limit = UINT32_MAX / 2;
        while (chains < limit)
                chains *= 2;
        /* Not touched before it is used: an index that stays small costs what it holds. */
        x->blocks = aligned_alloc(sizeof(struct block), (limit + 1) * sizeof(struct block));
        x->chains = calloc(chains, sizeof(*x->chains));
        if (!x->blocks || !x->chains) {
                prefix_index_free(x);
                return -ENOMEM;
        }
        x->mask = chains - 1;
        x->limit = (uint32_t)limit;
        x->blocks[0] = (struct block){0};
        *ret_index = x;
        return 0;
}

void prefix_index_free(struct prefix_index *x) {
        if (!x)
                return;
        free(x->blocks);
        free(x->chains);
        free(x);
}

void prefix_index_clear(struct prefix_index *x) {
        for (size_t i = 0; i <= x->mask; i++)
                x->chains[i] = 0;
        x->blocks[0] = (struct block){0};
        x->count = 0;
}

size_t prefix_index_count(const struct prefix_index *x) {
        return x->count;
}

size_t prefix_index_limit(const struct prefix_index *x) {
        return x->limit;
}

/* ---- one block ------------------------------------------------------------------------------------------------------ */

/* 0: not there. */
static uint32_t find(const struct prefix_index *x, uint64_t key) {
        uint32_t at = x->chains[key & x->mask];

        while (at && x->blocks[at].key != key)
                at = x->blocks[at].next;
        return at;
}

static void list_out(struct prefix_index *x, uint32_t at) {
        struct block *b = &x->blocks[at];

        x->blocks[b->newer].older = b->older;
        x->blocks[b->older].newer = b->newer;
}

static void list_newest(struct prefix_index *x, uint32_t at) {
        struct block *head = &x->blocks[0], *b = &x->blocks[at];

        b->newer = 0;
        b->older = head->older;
        x->blocks[head->older].newer = at;
        head->older = at;
}

static void chain_out(struct prefix_index *x, uint32_t at) {
        uint32_t *link = &x->chains[x->blocks[at].key & x->mask];

        while (*link != at)
                link = &x->blocks[*link].next;
        *link = x->blocks[at].next;
}

/* A block for a new key: a fresh one, or the one that was used longest ago. */
static uint32_t add(struct prefix_index *x, uint64_t key) {
        uint32_t at;

        if (x->count < x->limit) {
                at = ++x->count;
        } else {
                at = x->blocks[0].newer; /* the list is a ring: before the newest stands the oldest */
                list_out(x, at);
                chain_out(x, at);
        }
        x->blocks[at] = (struct block){.key = key, .next = x->chains[key & x->mask]};
        x->chains[key & x->mask] = at;
        return at;
}

/* To the front of the holders. Returns whether it was among them. */
static bool hold(struct block *b, struct prefix_holder holder) {
        int at = 0;
        bool known;

        while (at < HOLDERS - 1 && b->holders[at].id != 0 && b->holders[at].id != holder.id)
                at++;
        known = b->holders[at].id == holder.id && b->holders[at].life == holder.life;
        for (; at > 0; at--)
                b->holders[at] = b->holders[at - 1];
        b->holders[0] = holder;
        return known;
}

/* ---- prompts -------------------------------------------------------------------------------------------------------- */

/* How many of the keys are there: since none is without those before it, a binary search. */
static size_t known_keys(const struct prefix_index *x, const uint64_t *keys, size_t count) {
        size_t low = 0, high = count;

        while (low < high) {
                size_t middle = low + (high - low) / 2;

                if (find(x, keys[middle]))
                        low = middle + 1;
                else
                        high = middle;
        }
        return low;
}

static bool is_among(const struct prefix_hit *hits, size_t n, struct prefix_holder h) {
        for (size_t i = 0; i < n; i++)
                if (hits[i].holder.id == h.id && hits[i].holder.life == h.life)
                        return true;
        return false;
}

size_t prefix_match(const struct prefix_index *x, const uint64_t *keys, size_t count, struct prefix_hit *ret_hits) {
        size_t n = 0;

        /* Whoever has much is asked for first; then at half of it, and so on, those who have less and may be idle. */
        for (size_t depth = known_keys(x, keys, count); depth > 0; depth /= 2) {
                const struct block *b = &x->blocks[find(x, keys[depth - 1])];

                for (int i = 0; i < HOLDERS && b->holders[i].id != 0; i++) {
                        if (n == PREFIX_HITS_MAX)
                                return n;
                        if (!is_among(ret_hits, n, b->holders[i]))
                                ret_hits[n++] = (struct prefix_hit){b->holders[i], depth};
                }
        }
        return n;
}

size_t prefix_note(struct prefix_index *x, const uint64_t *keys, size_t count, struct prefix_holder holder) {
        size_t had = 0;

        assert(holder.id != 0 && count <= PREFIX_KEYS_MAX);
        /* Their places in memory have nothing to do with one another: ask for all before the first is needed. */
        for (size_t i = 0; i < count; i++)
                __builtin_prefetch(&x->chains[keys[i] & x->mask]);
        for (size_t i = 0; i < count; i++)
                __builtin_prefetch(&x->blocks[x->chains[keys[i] & x->mask]], 1);
        for (size_t i = count; i-- > 0;) {
                uint32_t at = find(x, keys[i]);

                if (at)
                        list_out(x, at);
                else
                        at = add(x, keys[i]);
                list_newest(x, at);
                if (hold(&x->blocks[at], holder) && had == 0)
                        had = i + 1;
        }
        return had;
}
