/* pieces.h - the order in which rows of the cache travel, as pieces of memory (private to comm/).
 *
 * Tokens [first, end) are cut into groups of `group` tokens at multiples of it; a group goes layer by layer. When `group` is
 * the pool's block size, a whole block is one piece of memory. Both sides walk their own pool in the order that the reader's
 * block size gives, so that the same bytes meet whatever the other's is. What is pushed goes by rows of one layer, token
 * after token. */
#pragma once
#include "comm/comm.h"
#include <sys/uio.h>

struct pieces {
        const struct kv_pool *pool; /* base may be an address in another process */
        const uint32_t *blocks;     /* table: block of token t is blocks[t / block_tokens - skipped] */
        uint32_t skipped;
        uint32_t group, end;
        uint32_t layer_first, layer_end;
        uint32_t group_first; /* of the group at hand */
        uint32_t layer, token;
        struct iovec rest; /* what pieces_take() has left of a piece */
};

/* first < end, group > 0. */
void pieces_init(
    struct pieces *p, const struct kv_pool *pool, const uint32_t *blocks, uint32_t first, uint32_t end, uint32_t group);
/* Tokens [first, end) of one layer. The table begins with the block of token `first`, or, with skipped 0, of token 0. */
void pieces_init_rows(struct pieces *p, const struct kv_pool *pool, const uint32_t *blocks, uint32_t skipped,
    uint32_t layer, uint32_t first, uint32_t end);
/* The next piece, as long as memory goes on without a gap, but of `most` bytes at most; len 0 at the end. */
struct iovec pieces_take(struct pieces *p, size_t most);
/* The next pieces: at most `room`, of `most` bytes together. Returns how many, 0 at the end. */
size_t pieces_gather(struct pieces *p, size_t most, struct iovec *ret_pieces, size_t room, size_t *ret_bytes);
bool pieces_ended(const struct pieces *p); /* nothing is left to take */
/* All bytes of tokens [first, end). */
size_t pieces_bytes(const struct kv_pool *pool, uint32_t first, uint32_t end);
