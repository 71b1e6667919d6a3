/* blocks.c - see blocks.h. Everything is an index into arrays made at the start: no allocation per block. */
#include "engine/blocks.h"
#include "engine/form.h"
#include <assert.h>
#include <errno.h>
#include <stdlib.h>

struct block {
        uint32_t holders;
        uint32_t generation;
        uint32_t prev, next; /* in the free list, while holders is 0 */
        uint32_t chained;    /* next block of its hash bucket */
        bool registered;
        bool told; /* to the watch */
        struct hash128 hash;
};

struct blocks {
        uint32_t count, block_tokens, available;
        enum prefix_caching caching;
        uint8_t key[16];
        uint32_t first, last; /* free list, oldest release first */
        uint32_t *buckets;
        uint32_t bucket_mask;
        struct block *items;
        struct blocks_watch watch; /* zeroed: nobody's */
        struct link *message;      /* what is hashed for one block, with its tokens behind it */
};

/* A block's name covers the name of the one before it, the form of its rows, and its tokens. */
struct link {
        struct hash128 parent;
        uint32_t naive; /* rows, with PREFIX_EXACT; else 0 */
        uint32_t tokens[];
};

struct blocks *blocks_new(uint32_t count, uint32_t block_tokens, enum prefix_caching caching, const uint8_t key[16]) {
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
            .first = 0,
            .last = count - 1,
            .bucket_mask = buckets - 1};
        memcpy(b->key, key, sizeof(b->key));
        b->items = calloc(count, sizeof(*b->items));
        b->buckets = malloc(buckets * sizeof(*b->buckets));
        b->message = malloc(sizeof(*b->message) + block_tokens * sizeof(uint32_t));
        if (!b->items || !b->buckets || !b->message) {
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
        free(b->message);
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
        uint8_t key[16];

        /* A key of its own: no salt is ever hashed like a link. */
        memcpy(key, b->key, sizeof(key));
        key[0] ^= 1;
        return siphash128(salt, key);
}

static struct hash128 chain_next(
    const struct blocks *b, struct hash128 parent, const struct block_source *source, size_t at) {
        size_t bytes = b->block_tokens * sizeof(uint32_t);

        b->message->parent = parent;
        b->message->naive = b->caching == PREFIX_EXACT
                                ? naive_rows(source->prompt, (uint32_t)(at * b->block_tokens), b->block_tokens)
                                : 0;
        memcpy(b->message->tokens, source->tokens + at * b->block_tokens, bytes);
        return siphash128(slice_of(b->message, offsetof(struct link, tokens) + bytes), b->key);
}

static uint32_t find_block(const struct blocks *b, struct hash128 hash) {
        uint32_t id = b->buckets[hash.lo & b->bucket_mask];

        while (id != BLOCK_NONE && !hash128_eq(b->items[id].hash, hash))
                id = b->items[id].chained;
        return id;
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
        if (b->items[id].told)
                b->watch.removed(b->watch.context, b->items[id].hash);
        b->items[id].told = false;
}

static void remember(struct blocks *b, uint32_t id, struct hash128 hash) {
        uint32_t *bucket = &b->buckets[hash.lo & b->bucket_mask];

        b->items[id].hash = hash;
        b->items[id].registered = true;
        b->items[id].chained = *bucket;
        *bucket = id;
}

/* ---- tables ------------------------------------------------------------------------------------------------------------ */

int block_table_reserve(struct block_table *t, uint32_t block_tokens, size_t tokens) {
        size_t needed = (tokens + block_tokens - 1) / block_tokens;
        uint32_t *grown;

        if (needed <= t->capacity)
                return 0;
        grown = realloc(t->ids, needed * sizeof(*grown));
        if (!grown)
                return -ENOMEM;
        t->ids = grown;
        t->capacity = needed;
        return 0;
}

void block_table_free(struct block_table *t) {
        assert(t->count == 0);
        free(t->ids);
        free(t->hashes);
        *t = (struct block_table){0};
}

/* The chain's hashes for the first `count` whole blocks. */
static int extend_hashes(struct blocks *b, struct block_table *t, const struct block_source *source, size_t count) {
        if (count > t->hashes_capacity) {
                size_t capacity = t->hashes_capacity * 2 > count ? t->hashes_capacity * 2 : count;
                struct hash128 *grown = realloc(t->hashes, capacity * sizeof(*grown));

                if (!grown)
                        return -ENOMEM;
                t->hashes = grown;
                t->hashes_capacity = capacity;
        }
        for (; t->hashed < count; t->hashed++)
                t->hashes[t->hashed] = chain_next(
                    b, t->hashed ? t->hashes[t->hashed - 1] : chain_start(b, source->salt), source, t->hashed);
        return 0;
}

size_t blocks_find(
    struct blocks *b, struct block_table *t, const struct block_source *source, size_t count, size_t spare) {
        size_t most = count ? (count - 1) / b->block_tokens : 0, found = 0;

        assert(t->count == 0 && most <= t->capacity);
        if (b->caching == PREFIX_OFF)
                return 0;
        for (; found < most; found++) {
                if (extend_hashes(b, t, source, found + 1) < 0)
                        break;
                t->ids[found] = find_block(b, t->hashes[found]);
                if (t->ids[found] == BLOCK_NONE)
                        break;
        }
        found -= spare < found ? spare : found;
        for (; t->count < found; t->count++)
                hold_one(b, t->ids[t->count]);
        t->registered = t->count;
        return t->count * b->block_tokens;
}

int blocks_grow(struct blocks *b, struct block_table *t, size_t tokens) {
        size_t needed = (tokens + b->block_tokens - 1) / b->block_tokens;

        if (needed <= t->count)
                return 0;
        if (needed - t->count > b->available)
                return -ENOSPC;
        assert(needed <= t->capacity);
        while (t->count < needed) {
                uint32_t id = b->first;

                forget_one(b, id);
                b->items[id].generation++;
                hold_one(b, id);
                t->ids[t->count++] = id;
        }
        return 0;
}

/* Remember a block, unless an equal one is: two sequences may have computed the same prefix side by side. Returns whether it
 * is to be told. */
static bool register_one(struct blocks *b, const struct block_table *t, const struct block_source *source, size_t at) {
        struct block *k = &b->items[t->ids[at]];

        if (find_block(b, t->hashes[at]) != BLOCK_NONE)
                return false;
        remember(b, t->ids[at], t->hashes[at]);
        k->told = b->watch.stored &&
                  (b->caching == PREFIX_SHARED ||
                      naive_rows(source->prompt, (uint32_t)(at * b->block_tokens), b->block_tokens) == b->block_tokens);
        return k->told;
}

static void tell_stored(
    struct blocks *b, const struct block_table *t, const struct block_source *source, size_t from, size_t to) {
        if (from < to)
                b->watch.stored(b->watch.context, from ? &t->hashes[from - 1] : NULL, t->hashes + from, to - from,
                    source->tokens + from * b->block_tokens, from ? SLICE_NONE : source->salt);
}

void blocks_set_watch(struct blocks *b, const struct blocks_watch *watch) {
        b->watch = *watch;
}

void blocks_register(struct blocks *b, struct block_table *t, const struct block_source *source, size_t computed) {
        size_t full = computed / b->block_tokens, told = t->registered;

        if (b->caching == PREFIX_OFF || full <= t->registered)
                return;
        assert(full <= t->count);
        if (extend_hashes(b, t, source, full) < 0)
                return; /* out of memory: these blocks are not found again, nothing else */
        for (; t->registered < full; t->registered++) {
                if (register_one(b, t, source, t->registered))
                        continue;
                tell_stored(b, t, source, told, t->registered);
                told = t->registered + 1;
        }
        tell_stored(b, t, source, told, full);
}

void blocks_release(struct blocks *b, struct block_table *t) {
        while (t->count)
                drop_one(b, t->ids[--t->count]);
        t->registered = 0;
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
                b->items[i].registered = b->items[i].told = false;
                b->items[i].chained = BLOCK_NONE;
        }
        if (b->watch.cleared)
                b->watch.cleared(b->watch.context);
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
