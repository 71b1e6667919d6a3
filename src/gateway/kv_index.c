/* kv_index.c - see kv_index.h.
 *
 * One array of entries and two chained hash tables over it: by our key (who has this block) and by instance and the engine's
 * name (which block is that). An instance's entries are linked, too. Links are indexes; 0 is none. */
#include "gateway/kv_index.h"
#include "base/hash.h"
#include <assert.h>
#include <errno.h>
#include <stdlib.h>

struct entry {
        uint64_t key, name; /* ours, the engine's */
        uint32_t holder;
        uint32_t next_key, next_name;
        uint32_t older, newer; /* of the holder's */
        uint32_t unused;
};
_Static_assert(sizeof(struct entry) == 40, "with its two chain heads an entry takes 48 bytes");

/* Adapters whose names have been seen. More are not told from the base model: their prompts find nothing. */
#define ADAPTERS_MAX 64

struct kv_index {
        struct entry *entries; /* [0] is nobody's */
        uint32_t *by_key, *by_name;
        size_t mask;
        uint32_t count, used, limit; /* `used`: entries ever taken; freed ones are in the list `free` */
        uint32_t free;
        uint32_t block_tokens;
        uint64_t seed, dropped, orphans;
        uint64_t adapters[ADAPTERS_MAX];
        size_t adapter_count;
};

int kv_index_new(size_t bytes, uint64_t seed, struct kv_index **ret_index) {
        struct kv_index *x = calloc(1, sizeof(*x));
        size_t limit = bytes / (sizeof(struct entry) + 2 * sizeof(uint32_t)), chains = 1;

        if (!x)
                return -ENOMEM;
        if (limit < 16)
                limit = 16;
        if (limit > UINT32_MAX / 2)
                limit = UINT32_MAX / 2;
        while (chains * 2 <= limit)
                chains *= 2;
        x->seed = seed;
        x->limit = (uint32_t)limit;
        x->mask = chains - 1;
        /* Not touched before it is used, as an array of prefix.c's. */
        x->entries = malloc((limit + 1) * sizeof(*x->entries));
        x->by_key = calloc(chains, sizeof(*x->by_key));
        x->by_name = calloc(chains, sizeof(*x->by_name));
        if (!x->entries || !x->by_key || !x->by_name) {
                kv_index_free(x);
                return -ENOMEM;
        }
        *ret_index = x;
        return 0;
}

void kv_index_free(struct kv_index *x) {
        if (!x)
                return;
        free(x->entries);
        free(x->by_key);
        free(x->by_name);
        free(x);
}

size_t kv_index_count(const struct kv_index *x) {
        return x->count;
}

size_t kv_index_limit(const struct kv_index *x) {
        return x->limit;
}

uint64_t kv_index_dropped(const struct kv_index *x) {
        return x->dropped;
}

uint64_t kv_index_orphans(const struct kv_index *x) {
        return x->orphans;
}

uint32_t kv_index_block_tokens(const struct kv_index *x) {
        return x->count > 0 ? x->block_tokens : 0;
}

/* ---- entries -------------------------------------------------------------------------------------------------------- */

/* Engines' names may be anything, such as small numbers. */
static size_t name_slot(const struct kv_index *x, uint32_t holder, uint64_t name) {
        uint64_t h = (name ^ holder * 0x9e3779b97f4a7c15u) * 0xff51afd7ed558ccdu;

        return (h ^ h >> 32) & x->mask;
}

static uint32_t find_name(const struct kv_index *x, uint32_t holder, uint64_t name) {
        uint32_t at = x->by_name[name_slot(x, holder, name)];

        while (at && (x->entries[at].name != name || x->entries[at].holder != holder))
                at = x->entries[at].next_name;
        return at;
}

static void unlink_from(struct kv_index *x, uint32_t *head, uint32_t at, size_t next) {
        while (*head != at)
                head = (uint32_t *)(void *)((char *)&x->entries[*head] + next);
        *head = *(uint32_t *)(void *)((char *)&x->entries[at] + next);
}

static void drop(struct kv_index *x, struct kv_holder *h, uint32_t at) {
        struct entry *e = &x->entries[at];

        unlink_from(x, &x->by_key[e->key & x->mask], at, offsetof(struct entry, next_key));
        unlink_from(x, &x->by_name[name_slot(x, e->holder, e->name)], at, offsetof(struct entry, next_name));
        if (e->newer)
                x->entries[e->newer].older = e->older;
        else
                h->first = e->older;
        if (e->older)
                x->entries[e->older].newer = e->newer;
        e->older = x->free;
        x->free = at;
        h->count--;
        x->count--;
}

static uint32_t take_entry(struct kv_index *x) {
        uint32_t at = x->free;

        if (at)
                x->free = x->entries[at].older;
        else if (x->used < x->limit)
                at = ++x->used;
        return at;
}

static void add(struct kv_index *x, struct kv_holder *h, uint64_t key, uint64_t name) {
        uint32_t at = find_name(x, h->id, name), *by_key, *by_name;

        if (at && x->entries[at].key == key)
                return;
        if (at)
                drop(x, h, at);
        at = take_entry(x);
        if (!at) {
                x->dropped++;
                return;
        }
        by_key = &x->by_key[key & x->mask];
        by_name = &x->by_name[name_slot(x, h->id, name)];
        x->entries[at] = (struct entry){
            .key = key, .name = name, .holder = h->id, .next_key = *by_key, .next_name = *by_name, .older = h->first};
        if (h->first)
                x->entries[h->first].newer = at;
        h->first = *by_key = *by_name = at;
        h->count++;
        x->count++;
}

/* ---- keys ----------------------------------------------------------------------------------------------------------- */

static uint64_t key_start(const struct kv_index *x, uint64_t adapter) {
        return x->seed ^ adapter;
}

static uint64_t key_next(uint64_t before, const uint32_t *tokens, uint32_t count, uint64_t extra) {
        return hash64(slice_of(tokens, count * sizeof(*tokens)), before ^ extra * 0x9e3779b97f4a7c15u);
}

static bool knows_adapter(const struct kv_index *x, uint64_t adapter) {
        for (size_t i = 0; i < x->adapter_count; i++)
                if (x->adapters[i] == adapter)
                        return true;
        return false;
}

int kv_index_keys(const struct kv_index *x, const struct kv_prompt *prompt, struct arena *arena,
    const uint64_t **ret_keys, size_t *ret_count) {
        uint32_t size = kv_index_block_tokens(x);
        size_t n = size && prompt->count ? (prompt->count - 1) / size : 0;
        uint64_t *keys = arena_array(arena, n, sizeof(*keys)), adapter = event_name(prompt->model), key;

        if (!keys)
                return -ENOMEM;
        key = key_start(x, knows_adapter(x, adapter) ? adapter : 0);
        for (size_t i = 0; i < n; i++)
                keys[i] = key = key_next(
                    key, prompt->tokens + i * size, size, i == 0 && prompt->salt.len ? event_extra(prompt->salt) : 0);
        *ret_keys = keys;
        *ret_count = n;
        return 0;
}

/* ---- events --------------------------------------------------------------------------------------------------------- */

static void store(struct kv_index *x, struct kv_holder *h, const struct event *e) {
        uint64_t key = key_start(x, e->adapter);

        if (x->count == 0)
                x->block_tokens = e->block_tokens;
        h->block_tokens = e->block_tokens;
        if (e->block_tokens != x->block_tokens || e->token_count == 0) {
                x->orphans += e->hash_count;
                return;
        }
        if (e->has_parent) {
                uint32_t at = find_name(x, h->id, e->parent);

                if (!at) {
                        x->orphans += e->hash_count;
                        return;
                }
                key = x->entries[at].key;
        } else if (e->adapter && !knows_adapter(x, e->adapter) && x->adapter_count < ADAPTERS_MAX) {
                x->adapters[x->adapter_count++] = e->adapter;
        }
        for (size_t i = 0; i < e->hash_count; i++) {
                key = key_next(key, e->tokens + i * e->block_tokens, e->block_tokens, e->extras ? e->extras[i] : 0);
                add(x, h, key, e->hashes[i]);
        }
}

void kv_index_apply(struct kv_index *x, struct kv_holder *h, const struct event *e) {
        assert(h->id != 0);
        if (e->kind == EVENT_CLEARED) {
                kv_index_clear(x, h);
        } else if (!e->counts) {
                return;
        } else if (e->kind == EVENT_STORED) {
                store(x, h, e);
        } else {
                for (size_t i = 0; i < e->hash_count; i++) {
                        uint32_t at = find_name(x, h->id, e->hashes[i]);

                        if (at)
                                drop(x, h, at);
                }
        }
}

void kv_index_clear(struct kv_index *x, struct kv_holder *h) {
        while (h->first)
                drop(x, h, h->first);
        assert(h->count == 0);
}

/* ---- matching ------------------------------------------------------------------------------------------------------- */

static bool any_has(const struct kv_index *x, uint64_t key) {
        uint32_t at = x->by_key[key & x->mask];

        while (at && x->entries[at].key != key)
                at = x->entries[at].next_key;
        return at != 0;
}

/* A beginning that thousands share is not looked for in all of them. */
#define WALK_MAX 256

static bool has(const struct kv_index *x, uint64_t key, uint32_t holder) {
        uint32_t at = x->by_key[key & x->mask];

        for (int walked = 0; at && walked < WALK_MAX; walked++, at = x->entries[at].next_key)
                if (x->entries[at].key == key && x->entries[at].holder == holder)
                        return true;
        return false;
}

static bool is_among(const struct kv_hit *hits, size_t n, uint32_t id) {
        for (size_t i = 0; i < n; i++)
                if (hits[i].id == id)
                        return true;
        return false;
}

/* How many blocks one has that has `low` of them, and not `high`. */
static size_t depth_of(const struct kv_index *x, const uint64_t *keys, size_t low, size_t high, uint32_t holder) {
        while (low + 1 < high) {
                size_t middle = low + (high - low) / 2;

                if (has(x, keys[middle - 1], holder))
                        low = middle;
                else
                        high = middle;
        }
        return low;
}

size_t kv_index_match(const struct kv_index *x, const uint64_t *keys, size_t count, struct kv_hit *ret_hits) {
        size_t low = 0, high = count + 1, above, n = 0;

        while (low + 1 < high) {
                size_t middle = low + (high - low) / 2;

                if (any_has(x, keys[middle - 1]))
                        low = middle;
                else
                        high = middle;
        }
        /* Those who have most; then at half of it, and so on, those who have less: how much, to the block. */
        above = low + 1;
        for (size_t depth = low; depth > 0; above = depth, depth /= 2) {
                uint32_t at = x->by_key[keys[depth - 1] & x->mask];
                size_t begin = n;

                for (; at; at = x->entries[at].next_key) {
                        const struct entry *e = &x->entries[at];

                        if (e->key != keys[depth - 1] || is_among(ret_hits, n, e->holder))
                                continue;
                        if (n == KV_HITS_MAX)
                                return n;
                        ret_hits[n].id = e->holder;
                        ret_hits[n++].count = depth_of(x, keys, depth, above, e->holder);
                }
                /* Within a level the order is that of the chain. */
                for (size_t i = begin + 1; i < n; i++)
                        for (size_t k = i; k > begin && ret_hits[k].count > ret_hits[k - 1].count; k--) {
                                struct kv_hit swap = ret_hits[k];

                                ret_hits[k] = ret_hits[k - 1];
                                ret_hits[k - 1] = swap;
                        }
        }
        return n;
}

size_t kv_index_depth(const struct kv_index *x, const struct kv_holder *h, const uint64_t *keys, size_t count) {
        return h->count ? depth_of(x, keys, 0, count + 1, h->id) : 0;
}
