/* receive.c - the consumer's side of a push: blocks that another rank is to write.
 *
 * The writer says which rows are there; this side puts them into the blocks that it leased out for the id, either out of the
 * writer's memory or off the connection. Nobody else writes here: a lease that has ended is not written to, whatever its writer
 * still sends, and what a writer may name are tokens and layers of its own lease. A receipt ends once: receipt_end(). */
#include "base/clock.h"
#include "comm/core.h"
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

void receipt_free(struct comm_receipt *x) {
        free(x);
}

/* Its connection goes with it, unless that has been told all. */
static void receipt_end(struct comm_receipt *x, int result, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

static void receipt_end(struct comm_receipt *x, int result, const char *format, ...) {
        struct reader *r = x->writer;
        va_list args;

        va_start(args, format);
        vsnprintf(x->text, sizeof(x->text), format, args);
        va_end(args);
        x->writer = NULL;
        list_remove(&x->link);
        x->event.ns = clock_mono_ns() - x->begun_ns;
        if (r) {
                r->receipt = NULL;
                reader_close(r, UV_EOF);
        }
        comm_tell(x->comm, &x->event, result, x->text);
}

void receipt_asked(struct comm_receipt *x, bool drop) {
        struct reader *writer = x->writer;
        struct comm *c = x->comm;

        if (!x->begun) {
                x->begun = true;
                x->expires = comm_now(c) + c->options.lease_ms;
                list_push_back(&c->receipts, &x->link);
                comm_need_ticks(c);
        }
        if (!drop)
                return;
        if (writer) { /* so that it need not take this for a failure */
                reader_refuse(writer, x->tag, -ECANCELED, "it is wanted no more");
                if (writer->closing) /* that ended it */
                        return;
        }
        receipt_end(x, -ECANCELED, "it was given up");
}

void receipt_cut(struct comm_receipt *x, int error) {
        x->writer = NULL;
        receipt_end(x, error == UV_EOF ? -ECONNRESET : error,
            "the prefiller ended the connection before all was here%s%s", error == UV_EOF ? "" : ": ",
            error == UV_EOF ? "" : uv_strerror(error));
}

bool receipts_tick(struct comm *c, uint64_t now) {
        list_for_each (at, &c->receipts) {
                struct comm_receipt *x = list_item(at, struct comm_receipt, link);

                if (now < x->expires)
                        continue;
                if (x->writer)
                        receipt_end(x, -ETIMEDOUT, "the prefiller gave no sign for %u ms", c->options.silence_ms);
                else
                        receipt_end(x, -ETIMEDOUT, "no prefiller came within %u ms", c->options.lease_ms);
        }
        return !list_empty(&c->receipts);
}

void receipts_close(struct comm *c) {
        while (!list_empty(&c->receipts))
                receipt_end(list_item(c->receipts.next, struct comm_receipt, link), -ECANCELED, "the engine stops");
}

/* ---- rows --------------------------------------------------------------------------------------------------------------- */

static void rows_done(struct comm_receipt *x, uint32_t layer, uint32_t first, uint32_t end) {
        x->done[layer] = end;
        x->event.bytes += (uint64_t)(end - first) * x->comm->pool.row_bytes;
}

/* Out of the writer's memory, at once: it is one turn's work. */
static int copy_rows(struct comm_receipt *x, const struct wire_message *m) {
        uint32_t table[WIRE_ROWS_MAX], skipped = m->first / x->there.block_tokens;
        struct pieces there;
        int r;

        if (m->table_count != (m->end - 1) / x->there.block_tokens - skipped + 1)
                return -EPROTO;
        for (uint32_t i = 0; i < m->table_count; i++) {
                table[i] = wire_block(m, i);
                if (table[i] >= x->there.blocks)
                        return -EPROTO;
        }
        pieces_init_rows(&there, &x->there, table, skipped, m->layer, m->first, m->end);
        while ((r = direct_copy(x->pid, &x->here, &there)) > 0)
                ;
        if (r == 0)
                rows_done(x, m->layer, m->first, m->end);
        return r;
}

/* Every token of a layer once, in order: then it is known when all is here. */
static int take_rows(struct comm_receipt *x, const struct wire_message *m) {
        const struct kv_pool *pool = &x->comm->pool;

        if (x->closing || m->layer >= pool->layers || m->first >= m->end || m->end > x->end ||
            m->end - m->first > WIRE_ROWS_MAX || m->first != x->done[m->layer])
                return -EPROTO;
        pieces_init_rows(&x->here, pool, x->blocks, 0, m->layer, m->first, m->end);
        if (x->pid)
                return copy_rows(x, m);
        if (m->table_count)
                return -EPROTO;
        x->left = (uint64_t)(m->end - m->first) * pool->row_bytes;
        x->window = (struct iovec){0};
        rows_done(x, m->layer, m->first, m->end);
        return 0;
}

struct iovec receipt_window(struct reader *r) {
        struct comm_receipt *x = r->receipt;

        if (!x || !x->left)
                return (struct iovec){0};
        if (!x->window.iov_len)
                x->window = pieces_take(&x->here, TURN_BYTES);
        return x->window;
}

void receipt_pass(struct reader *r, size_t bytes) {
        struct comm_receipt *x = r->receipt;

        x->window.iov_base = (char *)x->window.iov_base + bytes;
        x->window.iov_len -= bytes;
        x->left -= bytes;
        x->expires = comm_now(x->comm) + x->comm->options.silence_ms;
}

/* ---- what the writer says ------------------------------------------------------------------------------------------------ */

static struct comm_receipt *find_receipt(struct comm *c, struct slice id) {
        list_for_each (at, &c->receipts) {
                struct comm_receipt *x = list_item(at, struct comm_receipt, link);

                if (slice_eq(slice_of(x->id, x->id_bytes), id))
                        return x;
        }
        return NULL;
}

/* By the shortest way that this side can prove. */
static void choose_way(struct comm_receipt *x, const struct reader *r, const struct wire_message *m) {
        const struct comm *c = x->comm;

        if (!r->same_host || c->options.way != COMM_WAY_BEST || m->block_tokens == 0 || !direct_proves(m))
                return;
        x->pid = m->pid;
        x->there = (struct kv_pool){.base = (char *)(uintptr_t)m->base,
            .row_bytes = c->pool.row_bytes,
            .layers = c->pool.layers,
            .block_tokens = m->block_tokens,
            .blocks = m->blocks};
}

void receipt_open(struct reader *r, const struct wire_message *m) {
        struct wire_message ready = {.kind = WIRE_READY, .tag = m->tag, .checksum_wanted = r->comm->options.checksum};
        struct comm *c = r->comm;
        struct comm_receipt *x;

        comm_take_asked(c);
        x = r->receipt ? NULL : find_receipt(c, m->lease);
        if (!x) {
                reader_refuse(r, m->tag, -ENOENT, "it is not waited for (any more)");
        } else if (x->writer) {
                reader_refuse(r, m->tag, -EBUSY, "somebody writes it already: what is waited for is taken once");
        } else if (m->first != x->first || m->end != x->end) {
                reader_refuse(r, m->tag, -ERANGE, "it waits for other tokens");
        } else {
                x->writer = r;
                x->tag = m->tag;
                x->expires = comm_now(c) + c->options.silence_ms;
                choose_way(x, r, m);
                r->receipt = x;
                ready.direct = x->pid != 0;
                log_debug(
                    c->options.log, "KV is pushed here %s", x->pid ? "out of the prefiller's memory" : "over TCP");
                reader_send(r, &ready);
        }
}

/* All is said to be sent: is it here, and what was sent? Whether it was the prompt's to the end, the writer knows. */
static int complete(struct comm_receipt *x, const struct wire_message *m) {
        const struct comm *c = x->comm;
        struct pieces all;

        if (x->closing)
                return -EPROTO;
        for (uint32_t i = 0; i < c->pool.layers; i++)
                if (x->done[i] != x->end)
                        return -EPROTO;
        pieces_init(&all, &c->pool, x->blocks, x->first, x->end, c->pool.block_tokens);
        if (c->options.checksum && comm_checksum(all) != m->checksum)
                return -EBADMSG;
        x->closing = true;
        reader_send(x->writer, &(struct wire_message){.kind = WIRE_CLOSE, .tag = x->tag});
        return 0;
}

void receipt_take(struct reader *r, const struct wire_message *m) {
        struct comm_receipt *x = r->receipt;
        int result = 0;

        x->expires = comm_now(x->comm) + x->comm->options.silence_ms;
        switch (m->kind) {
        case WIRE_BEAT:
                break;
        case WIRE_ROWS:
                result = take_rows(x, m);
                break;
        case WIRE_COMPLETE:
                result = complete(x, m);
                break;
        case WIRE_CLOSED:
                if (!x->closing)
                        result = -EPROTO;
                else if (m->valid)
                        receipt_end(x, 0, "%s", "");
                else
                        receipt_end(x, -ESTALE, "the prefiller let go of it while it was written");
                break;
        default:
                result = -EPROTO;
        }
        if (result < 0)
                receipt_end(x, result, "%s",
                    result == -EPROTO    ? "the prefiller does not speak this protocol"
                    : result == -EBADMSG ? "the checksum of the KV is wrong"
                                         : strerror(-result));
}
