/* blocks.h - KV blocks: who holds which, and which prefixes they remember (private to engine/).
 *
 * A block holds block_tokens positions of all layers. Sequences hold blocks through a table; a block shared by a prefix has
 * several holders. A full block is registered under the hash of everything up to its end, and stays findable after its last
 * holder let go, until it is taken for something else: the free list is in order of release, tails of a sequence first, so
 * the least recently used prefix ends goes first (vLLM v1/core/kv_cache_utils).
 *
 * Prefixes of strangers must not meet: the chain of hashes is 128-bit SipHash under a key that is drawn at the start and
 * never leaves the process, so nobody can choose tokens (or salts) that collide, and 2^-128 per pair is left to chance.
 *
 * Output rows and the last one of a prompt are computed in the absorbed form (form.h), the rest of a prompt in the naive
 * one. PREFIX_EXACT makes the form part of a block's name: then a hit never changes a bit of anybody's answer, and blocks
 * with absorbed rows are found again only by sequences whose prompt ends at the same place. PREFIX_SHARED leaves the form
 * out, as vLLM does: an answer that comes back as the history of a chat is not computed again, but the bits are not those
 * that computing it as a prompt would give.
 *
 * Pure: no I/O, no clock. One thread. */
#pragma once
#include "base/hash.h"
#include "base/slice.h"

struct blocks;

#define BLOCK_NONE UINT32_MAX

enum prefix_caching { PREFIX_OFF, PREFIX_EXACT, PREFIX_SHARED };

/* What a sequence's positions hold. Tokens may only be appended while a table refers to them. */
struct block_source {
        const uint32_t *tokens;
        uint32_t prompt;   /* how many of them are the prompt */
        struct slice salt; /* prefixes are shared only under equal salts */
};

/* The blocks of one sequence. A zeroed table is empty. */
struct block_table {
        uint32_t *ids;
        size_t count, capacity;
        struct hash128 *hashes; /* of the first `hashed` blocks' chains; kept when blocks are let go */
        size_t hashed, hashes_capacity;
        size_t registered; /* blocks whose registration was tried */
};

/* `key` is the secret that names are made with: random bytes, or fixed ones in tests. NULL when memory is out. */
struct blocks *blocks_new(uint32_t count, uint32_t block_tokens, enum prefix_caching caching, const uint8_t key[16]);
void blocks_free(struct blocks *b); /* NULL is fine */

/* Room for the blocks of `tokens` positions, so that blocks_find() and blocks_grow() never allocate ids. 0 or -ENOMEM. */
int block_table_reserve(struct block_table *t, uint32_t block_tokens, size_t tokens);
void block_table_free(struct block_table *t); /* after blocks_release */

/* Hold the longest registered prefix of the first `count` tokens in an empty table: whole blocks only, never the last token
 * (its logits are needed), and without the last `spare` blocks of what matches. Returns the number of tokens found, a
 * multiple of block_tokens. Out of memory for hashes, less is found. */
size_t blocks_find(
    struct blocks *b, struct block_table *t, const struct block_source *source, size_t count, size_t spare);
/* Hold enough blocks for `tokens` positions. 0, or -ENOSPC with nothing changed. */
int blocks_grow(struct blocks *b, struct block_table *t, size_t tokens);
/* The first `computed` positions are in the cache now: register the blocks they fill. */
void blocks_register(struct blocks *b, struct block_table *t, const struct block_source *source, size_t computed);
/* Let go of everything, last block first; the table is empty (memory and hashes stay for its next use). */
void blocks_release(struct blocks *b, struct block_table *t);

/* Whoever wants to know which prefixes are there. Told are those that any prompt with these tokens finds: with PREFIX_EXACT,
 * blocks of naive rows alone. Called within the functions here, which must not be called from it. */
struct blocks_watch {
        /* `count` blocks in a row are there now, with their tokens. `parent` is the one before them, NULL: they are the first. */
        void (*stored)(void *context, const struct hash128 *parent, const struct hash128 *hashes, size_t count,
            const uint32_t *tokens, struct slice salt);
        void (*removed)(void *context, struct hash128 hash);
        void (*cleared)(void *context);
        void *context;
};
void blocks_set_watch(struct blocks *b, const struct blocks_watch *watch); /* before any block is registered */

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
