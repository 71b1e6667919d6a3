/* prefix.h - which instances have seen the beginning of a prompt: a bounded index of hashed prompt blocks.
 *
 * A prompt's text is cut at fixed places (prefix_end); each cut has a key, a hash of all the text before it. Whoever is
 * given a prompt is noted under its keys at once: what it will have in its cache is predicted, not reported, so that a
 * burst of siblings finds it there. Blocks grow by an eighth of what lies before them: the longest prompt has few, and a
 * match is known to within that eighth.
 *
 * The index has a fixed size; what was used longest ago leaves first. The keys of a prompt are used from the last to the
 * first, so that no cut outlives the cuts before it. That makes the longest match a binary search.
 *
 * Pure, and one thread's. */
#pragma once
#include "base/slice.h"

/* Enough for a prompt of 4 MB; what lies behind is not looked at. */
#define PREFIX_KEYS_MAX 96

/* A prompt as the index sees it. A zeroed one has no keys and is found nowhere. */
struct prompt {
        const uint64_t *keys;
        size_t key_count;
        size_t bytes;    /* of the whole text */
        uint64_t tokens; /* likewise, estimated; counted where there are blocks */
        /* Keys of its whole blocks as each role's KV events have them (kv_index.h); none where they are not known. */
        const uint64_t *blocks[2];
        size_t block_count[2];
};

/* Where the block `index` ends, in bytes of text. */
size_t prefix_end(size_t index);
/* The keys of a text's whole blocks, at most PREFIX_KEYS_MAX. Texts under different seeds (models, tools: what stands
 * before the prompt) share none. */
size_t prefix_keys(struct slice text, uint64_t seed, uint64_t *ret_keys);
/* Of a prompt's tokens, those before the end of its first `count` blocks. */
uint64_t prefix_tokens(const struct prompt *p, size_t count);

/* An instance, in one of its lives: a new life has an empty cache. */
struct prefix_holder {
        uint32_t id, life;
};

struct prefix_index;

/* Of about `bytes` (at least some KB are taken). 0 or -ENOMEM. */
int prefix_index_new(size_t bytes, struct prefix_index **ret_index);
void prefix_index_free(struct prefix_index *x); /* NULL is fine */
void prefix_index_clear(struct prefix_index *x);
size_t prefix_index_count(const struct prefix_index *x); /* keys held */
size_t prefix_index_limit(const struct prefix_index *x); /* at most so many */

/* Who has the beginning of a prompt, the longest first; each holder once. Holders that are no more are among them. */
#define PREFIX_HITS_MAX 8
struct prefix_hit {
        struct prefix_holder holder;
        size_t count; /* blocks */
};
size_t prefix_match(const struct prefix_index *x, const uint64_t *keys, size_t count, struct prefix_hit *ret_hits);

/* `holder` is given this prompt. Returns how many blocks of it that holder had before. */
size_t prefix_note(struct prefix_index *x, const uint64_t *keys, size_t count, struct prefix_holder holder);
