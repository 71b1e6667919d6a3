/* bpe.h - byte-pair encoding: the tokens of one piece of text.
 *
 * A piece starts as its bytes; of all neighbouring pairs that the file's list of merges has, the one that stands first in
 * the list is joined (the leftmost of equals), until no pair is left. Work is O(n log n) in the piece's length.
 * A struct bpe is constant after loading, but for hints that any thread may write (they say the same in all). */
#pragma once
#include "text/vocab.h"
#include <stdatomic.h>

struct bpe_merge {
        uint32_t left, right, rank, joined; /* all UINT32_MAX: empty slot */
};

struct bpe {
        const struct vocab *vocab;
        bool ignore_merges;    /* a piece that is an entry is that token, whatever its merges say */
        int64_t byte_ids[256]; /* -1: no entry for the byte, it is dropped */
        struct bpe_merge *merges;
        unsigned shift; /* 64 - log2(slots) */
        size_t mask;
        uint64_t seed;
        /* Per id: is the piece that is this entry's text encoded as this one token? */
        _Atomic uint8_t *whole;
};

/* Set up for a complete vocabulary and at most merge_count merges. 0 or -ENOMEM. */
int bpe_init(struct bpe *b, const struct vocab *vocab, size_t merge_count);
/* Join left and right (byte-level entries as bytes) at `rank`; a pair given again takes the later rank. 0, or -ENOENT when
 * a part or the whole is no entry (text over 64 KiB is none either). */
int bpe_add_merge(struct bpe *b, struct slice left, struct slice right, uint32_t rank);
void bpe_free(struct bpe *b);

struct id_list {
        uint32_t *ids;
        size_t count, capacity;
};
int id_list_add(struct id_list *list, uint32_t id); /* 0 or -ENOMEM */

/* Memory that is used again from piece to piece. Zeroed: empty. One per encoding thread. */
struct bpe_scratch {
        struct bpe_symbol *symbols;
        uint64_t *heap;
        size_t symbol_capacity, heap_capacity;
        uint64_t steps; /* heap entries handled so far: the work done for long pieces */
};
void bpe_scratch_free(struct bpe_scratch *s);

/* Append the tokens of a piece. 0 or -ENOMEM. */
int bpe_encode(const struct bpe *b, struct bpe_scratch *s, struct slice piece, struct id_list *out);
