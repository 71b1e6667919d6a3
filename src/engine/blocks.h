/* blocks.h - KV blocks: who holds which, and which prefixes they remember (private to engine/).
 *
 * A block holds block_tokens positions of all layers. Sequences hold blocks through a table; a block shared by a prefix has
 * several holders. A full block is registered under the hash of everything up to its end, and stays findable after its last
 * holder let go, until it is taken for something else: the free list is in order of release, tails of a sequence first, so
 * the least recently used prefix ends goes first (vLLM v1/core/kv_cache_utils).
 *
 * Prefixes of strangers must not meet by a chosen collision: the chain of 128-bit hashes starts from a random seed that
 * never leaves the process, and a hit also compares the block's own tokens. Pure: no I/O, no clock. One thread. */
#pragma once
#include "base/hash.h"
#include "base/slice.h"

struct blocks;

#define BLOCK_NONE UINT32_MAX

/* The blocks of one sequence. A zeroed table is empty. */
struct block_table {
        uint32_t *ids;
        size_t count, capacity;
        struct hash128 *hashes; /* of the first `hashed` blocks' chains */
        size_t hashed, hashes_capacity;
        size_t registered; /* blocks whose registration was tried */
};

/* NULL when memory is out. */
struct blocks *blocks_new(uint32_t count, uint32_t block_tokens, bool caching, uint64_t seed);
void blocks_free(struct blocks *b); /* NULL is fine */

/* Hold the longest registered prefix of tokens[0..count), whole blocks only and never the last token (its logits are
 * needed), in an empty table. Returns the number of tokens found, a multiple of block_tokens, or -ENOMEM. `salt` keeps
 * tenants apart: prefixes are shared only under equal salts. */
int64_t blocks_find(struct blocks *b, struct block_table *t, const uint32_t *tokens, size_t count, struct slice salt);
/* Hold enough blocks for `tokens` positions. 0, -ENOSPC (nothing changed), -ENOMEM. */
int blocks_grow(struct blocks *b, struct block_table *t, size_t tokens);
/* The first `computed` positions are in the cache now: register the blocks they fill. */
void blocks_register(
    struct blocks *b, struct block_table *t, const uint32_t *tokens, size_t computed, struct slice salt);
/* Let go of everything; the table is empty (its memory stays for reuse). */
void blocks_release(struct blocks *b, struct block_table *t);
void block_table_free(struct block_table *t); /* after blocks_release */

uint32_t blocks_total(const struct blocks *b);
uint32_t blocks_available(const struct blocks *b); /* unheld, remembered or not */
/* Held blocks as a share of all, 0..1. */
double blocks_usage(const struct blocks *b);
/* Forget all prefixes. False, and nothing is forgotten, while any block is held. */
bool blocks_forget(struct blocks *b);
/* Counts how often a block was taken for new contents: a reader that compares it before and after knows that it read the
 * same contents. */
uint32_t blocks_generation(const struct blocks *b, uint32_t id);
/* Hold single blocks beyond their sequence's life (a transfer still reads them), and let go again. */
void blocks_hold(struct blocks *b, const uint32_t *ids, size_t count);
void blocks_drop(struct blocks *b, const uint32_t *ids, size_t count);
