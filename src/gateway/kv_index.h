/* kv_index.h - which instances have a prompt's blocks in their caches, as their KV events say (src/events): exact where the
 * events are complete.
 *
 * A block goes by a key of ours, a hash of all tokens up to its end and of what else it depends on; what an engine calls it is
 * kept beside that, because it names blocks so when it removes them. Each (instance, block) is one entry of a table of fixed
 * size. When that is full, further blocks are not taken in, and counted: less is known then, nothing wrong.
 *
 * An engine that forgets a block has forgotten what follows it before (it frees a sequence from its end), so that the longest
 * match is found by bisection.
 *
 * Pure, and one thread's. */
#pragma once
#include "base/arena.h"
#include "events/events.h"

struct kv_index;

/* An instance as the index sees it; zeroed but for `id` (not 0) it has nothing. Has to be cleared before it goes. */
struct kv_holder {
        uint32_t id;
        uint32_t first, count; /* its entries */
        uint32_t block_tokens; /* of its blocks; 0: none has come */
};

/* Of about `bytes`. 0 or -ENOMEM. `seed` is random: nobody can choose tokens whose keys collide. */
int kv_index_new(size_t bytes, uint64_t seed, struct kv_index **ret_index);
void kv_index_free(struct kv_index *x); /* NULL is fine */
size_t kv_index_count(const struct kv_index *x);
size_t kv_index_limit(const struct kv_index *x);
/* Blocks that were not taken in: for want of room; because they follow one that is not known. */
uint64_t kv_index_dropped(const struct kv_index *x);
uint64_t kv_index_orphans(const struct kv_index *x);
/* Tokens of a block: that of the first instance that said one, while any block is held. 0: none is known. Blocks of another
 * size are not taken in. */
uint32_t kv_index_block_tokens(const struct kv_index *x);

void kv_index_apply(struct kv_index *x, struct kv_holder *h, const struct event *e);
void kv_index_clear(struct kv_index *x, struct kv_holder *h);

/* The keys of a prompt's whole blocks, but for the last token, which an engine computes in any case. `model` as the request
 * names it, which may be an adapter's; `salt` its cache_salt, empty: none. They live in `arena`. 0 or -ENOMEM. */
struct kv_prompt {
        const uint32_t *tokens;
        size_t count;
        struct slice model, salt;
};
int kv_index_keys(const struct kv_index *x, const struct kv_prompt *prompt, struct arena *arena,
    const uint64_t **ret_keys, size_t *ret_count);

/* Who has the beginning of a prompt: those with the longest first, each once, with the number of its blocks (at least; exactly
 * that while no more than KV_HITS_MAX instances share a block). */
#define KV_HITS_MAX 64
struct kv_hit {
        uint32_t id;
        size_t count;
};
size_t kv_index_match(const struct kv_index *x, const uint64_t *keys, size_t count, struct kv_hit *ret_hits);
/* Of one alone, without looking at the others: how many of the blocks it has. */
size_t kv_index_depth(const struct kv_index *x, const struct kv_holder *h, const uint64_t *keys, size_t count);
