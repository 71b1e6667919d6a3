/* Messages between ranks, and the order in which rows travel. */
#include "base/rng.h"
#include "comm/pieces.h"
#include "comm/wire.h"
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>

/* ---- messages ---------------------------------------------------------------------------------------------------------- */

static const uint32_t table[] = {7, 1, 4000000000u};

static struct wire_message sample(enum wire_kind kind) {
        struct wire_message m = {.kind = kind,
            .tag = 0x1122334455667788u,
            .version = WIRE_VERSION,
            .engine = SLICE_LIT("p0.1"),
            .block_tokens = 64,
            .blocks = 1000,
            .base = 0x7f0000000000u,
            .pid = 4711,
            .proof_at = 0x7f0000001000u,
            .proof = "0123456789abcde",
            .lease = SLICE_LIT("cmpl-1"),
            .layer = 26,
            .first = 64,
            .end = 1000,
            .group = 16,
            .direct = true,
            .checksum_wanted = true,
            .checksum = UINT64_MAX,
            .payload = 1u << 30,
            .table = {(const char *)table, sizeof(table)},
            .table_count = 3,
            .error = ENOENT,
            .text = SLICE_LIT("no such lease"),
            .valid = true};

        m.facts.names[0] = SLICE_LIT("kv_type");
        m.facts.values[0] = SLICE_LIT("bfloat16");
        m.facts.names[1] = SLICE_LIT("empty");
        m.facts.values[1] = SLICE_LIT("");
        m.facts.count = 2;
        return m;
}

static void every_message_reads_back(void **state) {
        for (int kind = WIRE_HELLO; kind <= WIRE_COMPLETE; kind++) {
                struct wire_message m = sample((enum wire_kind)kind), back;
                struct buf first = {0}, again = {0};

                wire_write(&first, &m);
                assert_true(buf_ok(&first));
                assert_int_equal(wire_read(buf_slice(&first), WIRE_ANSWER_MAX, &back), first.len);
                assert_int_equal(back.kind, kind);
                assert_true(back.tag == m.tag);
                wire_write(&again, &back); /* what was not written cannot be compared otherwise */
                assert_true(slice_eq(buf_slice(&first), buf_slice(&again)));
                if (kind == WIRE_BLOCKS || kind == WIRE_ROWS)
                        for (uint32_t i = 0; i < 3; i++)
                                assert_int_equal(wire_block(&back, i), table[i]);
                buf_free(&first);
                buf_free(&again);
        }
}

static void a_part_of_a_message_is_waited_for(void **state) {
        for (int kind = WIRE_HELLO; kind <= WIRE_COMPLETE; kind++) {
                struct wire_message m = sample((enum wire_kind)kind), back;
                struct buf b = {0};

                wire_write(&b, &m);
                for (size_t n = 0; n < b.len; n++)
                        assert_int_equal(wire_read(slice_of(b.ptr, n), WIRE_ANSWER_MAX, &back), 0);
                buf_free(&b);
        }
}

static void a_body_that_is_too_long_or_too_short_for_its_kind_is_refused(void **state) {
        for (int kind = WIRE_HELLO; kind <= WIRE_COMPLETE; kind++) {
                struct wire_message m = sample((enum wire_kind)kind), back;
                struct buf b = {0};

                wire_write(&b, &m);
                buf_add_char(&b, 'x');
                b.ptr[0]++; /* the length's lowest byte: 255 does not occur here */
                assert_int_equal(wire_read(buf_slice(&b), WIRE_ANSWER_MAX, &back), -EPROTO);
                if (b.len > WIRE_HEAD_BYTES + 1) {
                        b.ptr[0] = (char)(b.ptr[0] - 2);
                        assert_int_equal(wire_read(buf_slice(&b), WIRE_ANSWER_MAX, &back), -EPROTO);
                }
                buf_free(&b);
        }
}

static void a_body_beyond_the_limit_is_refused_before_it_comes(void **state) {
        const char head[WIRE_HEAD_BYTES] = {1, 0x40, 0, 0, WIRE_FETCH};
        struct wire_message m;

        assert_int_equal(wire_read(slice_of(head, sizeof(head)), WIRE_REQUEST_MAX, &m), -EPROTO);
}

/* ---- pieces ------------------------------------------------------------------------------------------------------------ */

#define LAYERS 3u
#define ROW    5u
#define TOKENS 40u

/* A byte that names token, layer and place in the row. */
static char content(uint32_t token, uint32_t layer, uint32_t at) {
        return (char)(token * 31 + layer * 7 + at);
}

struct store {
        struct kv_pool pool;
        uint32_t blocks[TOKENS];
};

/* All blocks of a pool in a random order, filled when `full`. */
static void store_open(struct store *s, uint32_t block_tokens, struct rng *r, bool full) {
        uint32_t n = (TOKENS + block_tokens - 1) / block_tokens;

        s->pool = (struct kv_pool){.row_bytes = ROW, .layers = LAYERS, .block_tokens = block_tokens, .blocks = n + 2};
        s->pool.base = calloc(s->pool.blocks, (size_t)LAYERS * block_tokens * ROW);
        assert_non_null(s->pool.base);
        for (uint32_t i = 0; i < n; i++) {
                uint32_t other = (uint32_t)rng_below(r, i + 1);

                s->blocks[i] = s->blocks[other];
                s->blocks[other] = i;
        }
        for (uint32_t t = 0; full && t < TOKENS; t++)
                for (uint32_t l = 0; l < LAYERS; l++)
                        for (uint32_t k = 0; k < ROW; k++)
                                s->pool.base[((s->blocks[t / block_tokens] * LAYERS + l) * block_tokens +
                                                 t % block_tokens) *
                                                 ROW +
                                             k] = content(t, l, k);
}

static void read_all(struct pieces p, size_t most, struct buf *out) {
        struct iovec piece;

        while ((piece = pieces_take(&p, most)).iov_len) {
                assert_true(piece.iov_len <= most);
                buf_append(out, piece.iov_base, piece.iov_len);
        }
        assert_true(buf_ok(out));
}

static void two_pools_of_any_block_sizes_give_the_same_bytes(void **state) {
        struct rng r;

        rng_seed(&r, 7);
        for (unsigned round = 0; round < 2000; round++) {
                uint32_t a = 1 + (uint32_t)rng_below(&r, 9), b = 1 + (uint32_t)rng_below(&r, 9);
                uint32_t first = (uint32_t)rng_below(&r, TOKENS),
                         end = first + 1 + (uint32_t)rng_below(&r, TOKENS - first);
                struct store x, y;
                struct pieces px, py;
                struct buf bx = {0}, by = {0};

                store_open(&x, a, &r, true);
                store_open(&y, b, &r, true);
                pieces_init(&px, &x.pool, x.blocks, first, end, b);
                pieces_init(&py, &y.pool, y.blocks, first, end, b);
                read_all(px, 1 + rng_below(&r, 100), &bx);
                read_all(py, 1 + rng_below(&r, 100), &by);
                assert_int_equal(bx.len, pieces_bytes(&x.pool, first, end));
                assert_true(slice_eq(buf_slice(&bx), buf_slice(&by)));
                buf_free(&bx);
                buf_free(&by);
                free(x.pool.base);
                free(y.pool.base);
        }
}

static void a_whole_block_is_one_piece(void **state) {
        struct store s;
        struct pieces p;
        struct rng r;

        rng_seed(&r, 1);
        store_open(&s, 8, &r, true);
        s.blocks[0] = 3;
        s.blocks[1] = 1; /* not its neighbour */
        pieces_init(&p, &s.pool, s.blocks, 0, 12, 8);
        assert_int_equal(pieces_take(&p, SIZE_MAX).iov_len, 8 * LAYERS * ROW);
        for (uint32_t l = 0; l < LAYERS; l++)
                assert_int_equal(pieces_take(&p, SIZE_MAX).iov_len, 4 * ROW);
        assert_int_equal(pieces_take(&p, SIZE_MAX).iov_len, 0);
        free(s.pool.base);
}

int main(void) {
        const struct CMUnitTest tests[] = {
            cmocka_unit_test(every_message_reads_back),
            cmocka_unit_test(a_part_of_a_message_is_waited_for),
            cmocka_unit_test(a_body_that_is_too_long_or_too_short_for_its_kind_is_refused),
            cmocka_unit_test(a_body_beyond_the_limit_is_refused_before_it_comes),
            cmocka_unit_test(two_pools_of_any_block_sizes_give_the_same_bytes),
            cmocka_unit_test(a_whole_block_is_one_piece),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
