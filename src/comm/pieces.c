/* pieces.c - see pieces.h. */
#include "comm/pieces.h"
#include <assert.h>

void pieces_init(struct pieces *p, const struct kv_pool *pool, const uint32_t *blocks, uint32_t first, uint32_t end,
    uint32_t group) {
        assert(first < end && group > 0);
        *p = (struct pieces){.pool = pool,
            .blocks = blocks,
            .group = group,
            .end = end,
            .layer_end = pool->layers,
            .group_first = first,
            .token = first};
}

void pieces_init_rows(struct pieces *p, const struct kv_pool *pool, const uint32_t *blocks, uint32_t skipped,
    uint32_t layer, uint32_t first, uint32_t end) {
        assert(first < end && layer < pool->layers && skipped <= first / pool->block_tokens);
        *p = (struct pieces){.pool = pool,
            .blocks = blocks,
            .skipped = skipped,
            .group = UINT32_MAX, /* all of them */
            .end = end,
            .layer_first = layer,
            .layer_end = layer + 1,
            .group_first = first,
            .layer = layer,
            .token = first};
}

static uint32_t group_end(const struct pieces *p) {
        uint64_t border = ((uint64_t)p->group_first / p->group + 1) * p->group;

        return border < p->end ? (uint32_t)border : p->end;
}

/* The run of rows at hand: one layer of one block, within one group. */
static struct iovec run_at(const struct pieces *p) {
        const struct kv_pool *pool = p->pool;
        uint32_t slot = p->token % pool->block_tokens, rows = pool->block_tokens - slot, left = group_end(p) - p->token;
        uint32_t block = p->blocks[p->token / pool->block_tokens - p->skipped];
        size_t row = ((size_t)block * pool->layers + p->layer) * pool->block_tokens;

        return (struct iovec){
            pool->base + (row + slot) * pool->row_bytes, (size_t)(rows < left ? rows : left) * pool->row_bytes};
}

static void pass_run(struct pieces *p, size_t bytes) {
        p->token += (uint32_t)(bytes / p->pool->row_bytes);
        if (p->token < group_end(p))
                return;
        p->token = p->group_first;
        if (++p->layer < p->layer_end)
                return;
        p->layer = p->layer_first;
        p->token = p->group_first = group_end(p);
}

static bool at_end(const struct pieces *p) {
        return p->group_first >= p->end;
}

/* Runs that touch are one piece. */
static struct iovec next_piece(struct pieces *p, size_t most) {
        struct iovec piece = {0};

        while (!at_end(p) && piece.iov_len < most) {
                struct iovec run = run_at(p);

                if (piece.iov_len && (char *)piece.iov_base + piece.iov_len != run.iov_base)
                        break;
                if (!piece.iov_len)
                        piece.iov_base = run.iov_base;
                piece.iov_len += run.iov_len;
                pass_run(p, run.iov_len);
        }
        return piece;
}

struct iovec pieces_take(struct pieces *p, size_t most) {
        struct iovec piece = p->rest;

        assert(most > 0);
        if (!piece.iov_len)
                piece = next_piece(p, most);
        p->rest = (struct iovec){0};
        if (piece.iov_len > most) {
                p->rest = (struct iovec){(char *)piece.iov_base + most, piece.iov_len - most};
                piece.iov_len = most;
        }
        return piece;
}

size_t pieces_gather(struct pieces *p, size_t most, struct iovec *ret_pieces, size_t room, size_t *ret_bytes) {
        size_t n = 0;

        *ret_bytes = 0;
        while (n < room && *ret_bytes < most) {
                struct iovec piece = pieces_take(p, most - *ret_bytes);

                if (piece.iov_len == 0)
                        break;
                ret_pieces[n++] = piece;
                *ret_bytes += piece.iov_len;
        }
        return n;
}

bool pieces_ended(const struct pieces *p) {
        return p->rest.iov_len == 0 && at_end(p);
}

size_t pieces_bytes(const struct kv_pool *pool, uint32_t first, uint32_t end) {
        return (size_t)(end - first) * pool->layers * pool->row_bytes;
}
