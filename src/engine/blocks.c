/* blocks.c - see blocks.h. Everything is an index into arrays made at the start: no allocation per block. */
#include "engine/blocks.h"
#include <assert.h>
#include <errno.h>
#include <stdlib.h>

struct block {
        uint32_t holders;
        uint32_t generation;
        uint32_t prev, next; /* in the free list, while holders is 0 */
        uint32_t chained;    /* next block of its hash bucket */
        bool registered;
        struct hash128 hash;
};

struct blocks {
        uint32_t count, block_tokens, available;
        bool caching;
        uint64_t seed;
        uint32_t first, last; /* free list, oldest release first */
        uint32_t *buckets;
        uint32_t bucket_mask;
        uint32_t *tokens; /* [count][block_tokens]: contents of registered blocks */
        struct block *items;
};

struct blocks *blocks_new(uint32_t count, uint32_t block_tokens, bool caching, uint64_t seed) {
        struct blocks *b = calloc(1, sizeof(*b));
        uint32_t buckets = 16;

        assert(count > 0 && block_tokens > 0);
        if (!b)
                return NULL;
        while (buckets < count && buckets < 1u << 30)
                buckets *= 2;
        *b = (struct blocks){.count = count,
            .block_tokens = block_tokens,
            .available = count,
            .caching = caching,
            .seed = seed,
            .first = 0,
            .last = count - 1,
            .bucket_mask = buckets - 1};
        b->items = calloc(count, sizeof(*b->items));
        b->buckets = malloc(buckets * sizeof(*b->buckets));
        b->tokens = caching ? malloc((size_t)count * block_tokens * sizeof(*b->tokens)) : NULL;
        if (!b->items || !b->buckets || (caching && !b->tokens)) {
                blocks_free(b);
                return NULL;
        }
        memset(b->buckets, 0xff, buckets * sizeof(*b->buckets));
        for (uint32_t i = 0; i < count; i++) {
                b->items[i].prev = i ? i - 1 : BLOCK_NONE;
                b->items[i].next = i + 1 < count ? i + 1 : BLOCK_NONE;
                b->items[i].chained = BLOCK_NONE;
        }
        return b;
}

void blocks_free(struct blocks *b) {
        if (!b)
                return;
        free(b->items);
        free(b->buckets);
        free(b->tokens);
        free(b);
}

/* ---- free list -------------------------------------------------------------------------------------------------------- */

static void unlink_free(struct blocks *b, uint32_t id) {
        struct block *k = &b->items[id];

        if (k->prev == BLOCK_NONE)
                b->first = k->next;
        else
                b->items[k->prev].next = k->next;
        if (k->next == BLOCK_NONE)
                b->last = k->prev;
        else
                b->items[k->next].prev = k->prev;
        b->available--;
}

static void append_free(struct blocks *b, uint32_t id) {
        struct block *k = &b->items[id];

        k->prev = b->last;
        k->next = BLOCK_NONE;
        if (b->last == BLOCK_NONE)
                b->first = id;
        else
                b->items[b->last].next = id;
        b->last = id;
        b->available++;
}

static void prepend_free(struct blocks *b, uint32_t id) {
        struct block *k = &b->items[id];

        k->prev = BLOCK_NONE;
        k->next = b->first;
        if (b->first == BLOCK_NONE)
                b->last = id;
        else
                b->items[b->first].prev = id;
        b->first = id;
        b->available++;
}

static void hold_one(struct blocks *b, uint32_t id) {
        if (b->items[id].holders++ == 0)
                unlink_free(b, id);
}

/* A block that nobody can find again is worth nothing: it is taken first. */
static void drop_one(struct blocks *b, uint32_t id) {
        assert(b->items[id].holders > 0);
        if (--b->items[id].holders > 0)
                return;
        if (b->items[id].registered)
                append_free(b, id);
        else
                prepend_free(b, id);
}

/* ---- what blocks remember ---------------------------------------------------------------------------------------------- */

static struct hash128 chain_start(const struct blocks *b, struct slice salt) {
        return hash128(salt, b->seed);
}

static struct hash128 chain_next(const struct blocks *b, struct hash128 parent, const uint32_t *tokens) {
        /* The parent's hash seeds the child's: XXH3 mixes a 64-bit seed, so both halves are folded in one after the other. */
        struct slice bytes = slice_of(tokens, b->block_tokens * sizeof(*tokens));
        struct hash128 inner = hash128(bytes, parent.lo ^ b->seed);
        uint64_t both[4] = {inner.lo, inner.hi, parent.lo, parent.hi};

        return hash128(slice_of(both, sizeof(both)), b->seed);
}

static uint32_t find_block(const struct blocks *b, struct hash128 hash, const uint32_t *tokens) {
        uint32_t id = b->buckets[hash.lo & b->bucket_mask];

        while (id != BLOCK_NONE) {
                if (hash128_eq(b->items[id].hash, hash) &&
                    memcmp(b->tokens + (size_t)id * b->block_tokens, tokens, b->block_tokens * sizeof(*tokens)) == 0)
                        return id;
                id = b->items[id].chained;
        }
        return BLOCK_NONE;
}

static void forget_one(struct blocks *b, uint32_t id) {
        uint32_t *at = &b->buckets[b->items[id].hash.lo & b->bucket_mask];

        if (!b->items[id].registered)
                return;
        while (*at != id)
                at = &b->items[*at].chained;
        *at = b->items[id].chained;
        b->items[id].chained = BLOCK_NONE;
        b->items[id].registered = false;
}

static void remember(struct blocks *b, uint32_t id, struct hash128 hash, const uint32_t *tokens) {
        uint32_t *bucket = &b->buckets[hash.lo & b->bucket_mask];

        b->items[id].hash = hash;
        b->items[id].registered = true;
        b->items[id].chained = *bucket;
        *bucket = id;
        memcpy(b->tokens + (size_t)id * b->block_tokens, tokens, b->block_tokens * sizeof(*tokens));
}

/* ---- tables ------------------------------------------------------------------------------------------------------------ */

static int reserve(void **items, size_t *capacity, size_t needed, size_t size) {
        size_t grown_to = *capacity ? *capacity : 16;
        void *grown;

        if (needed <= *capacity)
                return 0;
        while (grown_to < needed)
                grown_to *= 2;
        grown = realloc(*items, grown_to * size);
        if (!grown)
                return -ENOMEM;
        *items = grown;
        *capacity = grown_to;
        return 0;
}

static int reserve_ids(struct block_table *t, size_t count) {
        return reserve((void **)&t->ids, &t->capacity, count, sizeof(*t->ids));
}

/* The chain's hashes for the first `count` whole blocks of `tokens`. */
static int extend_hashes(
    struct blocks *b, struct block_table *t, const uint32_t *tokens, size_t count, struct slice salt) {
        if (reserve((void **)&t->hashes, &t->hashes_capacity, count, sizeof(*t->hashes)) < 0)
                return -ENOMEM;
        for (; t->hashed < count; t->hashed++)
                t->hashes[t->hashed] = chain_next(b, t->hashed ? t->hashes[t->hashed - 1] : chain_start(b, salt),
                    tokens + t->hashed * b->block_tokens);
        return 0;
}

int64_t blocks_find(struct blocks *b, struct block_table *t, const uint32_t *tokens, size_t count, struct slice salt) {
        size_t most = count ? (count - 1) / b->block_tokens : 0;

        assert(t->count == 0);
        if (!b->caching || most == 0)
                return 0;
        if (reserve_ids(t, most) < 0)
                return -ENOMEM;
        for (size_t i = 0; i < most; i++) {
                uint32_t id;

                if (extend_hashes(b, t, tokens, i + 1, salt) < 0) {
                        blocks_release(b, t);
                        return -ENOMEM;
                }
                id = find_block(b, t->hashes[i], tokens + i * b->block_tokens);
                if (id == BLOCK_NONE)
                        break;
                hold_one(b, id);
                t->ids[t->count++] = id;
        }
        t->registered = t->count;
        return (int64_t)(t->count * b->block_tokens);
}

int blocks_grow(struct blocks *b, struct block_table *t, size_t tokens) {
        size_t needed = (tokens + b->block_tokens - 1) / b->block_tokens;

        if (needed <= t->count)
                return 0;
        if (needed - t->count > b->available)
                return -ENOSPC;
        if (reserve_ids(t, needed) < 0)
                return -ENOMEM;
        while (t->count < needed) {
                uint32_t id = b->first;

                forget_one(b, id);
                b->items[id].generation++;
                hold_one(b, id);
                t->ids[t->count++] = id;
        }
        return 0;
}

void blocks_register(
    struct blocks *b, struct block_table *t, const uint32_t *tokens, size_t computed, struct slice salt) {
        size_t full = computed / b->block_tokens;

        if (!b->caching || full <= t->registered)
                return;
        assert(full <= t->count);
        if (extend_hashes(b, t, tokens, full, salt) < 0)
                return; /* out of memory: these blocks are not found again, nothing else */
        for (; t->registered < full; t->registered++) {
                size_t i = t->registered;

                /* Two sequences may have computed the same prefix side by side: the first one is remembered. */
                if (find_block(b, t->hashes[i], tokens + i * b->block_tokens) == BLOCK_NONE)
                        remember(b, t->ids[i], t->hashes[i], tokens + i * b->block_tokens);
        }
}

void blocks_release(struct blocks *b, struct block_table *t) {
        while (t->count)
                drop_one(b, t->ids[--t->count]);
        t->registered = 0;
        t->hashed = 0;
}

void block_table_free(struct block_table *t) {
        assert(t->count == 0);
        free(t->ids);
        free(t->hashes);
        *t = (struct block_table){0};
}

/* ---- figures ----------------------------------------------------------------------------------------------------------- */

uint32_t blocks_total(const struct blocks *b) {
        return b->count;
}

uint32_t blocks_available(const struct blocks *b) {
        return b->available;
}

double blocks_usage(const struct blocks *b) {
        return (double)(b->count - b->available) / b->count;
}

bool blocks_forget(struct blocks *b) {
        if (b->available != b->count)
                return false;
        for (uint32_t i = 0; i < b->count; i++) {
                b->items[i].registered = false;
                b->items[i].chained = BLOCK_NONE;
        }
        memset(b->buckets, 0xff, (b->bucket_mask + 1ul) * sizeof(*b->buckets));
        return true;
}

uint32_t blocks_generation(const struct blocks *b, uint32_t id) {
        return b->items[id].generation;
}

void blocks_hold(struct blocks *b, const uint32_t *ids, size_t count) {
        for (size_t i = 0; i < count; i++)
                hold_one(b, ids[i]);
}

void blocks_drop(struct blocks *b, const uint32_t *ids, size_t count) {
        while (count)
                drop_one(b, ids[--count]);
}
