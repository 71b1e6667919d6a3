/* push.c - the producer's side of a push: a connection to the decoder for each prompt, and the rows that go over it.
 *
 *     NEW ──> (RESOLVING) ──> CONNECTING ──> GREETING ──> OPENING ──> WRITING ──> COMPLETING ──> ended
 *
 * Rows are told or sent in the order in which the engine names them. The blocks are read, here or by the decoder, until the push
 * has ended: push_end(), after which it is the engine's to free. Its connection may be there for a moment longer, until the
 * decoder has closed it. */
#include "base/clock.h"
#include "comm/core.h"
#include <assert.h>
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

struct writer {
        struct comm *comm;
        struct list link;       /* in comm.writers */
        struct comm_push *push; /* NULL: it has ended */
        uv_getaddrinfo_t resolve;
        uv_connect_t connect;
        uv_tcp_t tcp;
        bool resolving, open, closing; /* open: tcp is to be closed */
        struct buf in, head;           /* head: a ROWS that is not written yet */
        uint64_t heard;                /* loop time of the last sign of life, or of the beginning of a wait for one */
        uint64_t next_beat;
        bool direct, checksum_wanted; /* as the decoder wants it */
        uint32_t there_tokens;        /* of the decoder's blocks */
        uv_write_t write;
        bool writing;
        struct pieces payload; /* behind the head; pool NULL: none */
};

void push_free(struct comm_push *p) {
        buf_free(&p->added);
        buf_free(&p->rows);
        free(p->blocks);
        free(p);
}

/* ---- ends ---------------------------------------------------------------------------------------------------------------- */

static void writer_free(struct writer *w) {
        list_remove(&w->link);
        buf_free(&w->in);
        buf_free(&w->head);
        free(w);
}

static void on_closed(uv_handle_t *handle) {
        writer_free(handle->data);
}

static void writer_close(struct writer *w) {
        if (w->closing)
                return;
        w->closing = true;
        if (w->resolving)
                uv_cancel((uv_req_t *)&w->resolve); /* on_resolved() comes in any case */
        else if (w->open)
                uv_close((uv_handle_t *)&w->tcp, on_closed);
        else
                writer_free(w);
}

/* The one end of a push: its blocks go back. */
static void push_end(struct comm_push *p, int result, const char *format, ...) __attribute__((format(printf, 3, 4)));

static void push_end(struct comm_push *p, int result, const char *format, ...) {
        struct writer *w = p->writer;
        uint64_t last_ns;
        va_list args;

        assert(p->state != PUSH_ENDED);
        p->state = PUSH_ENDED;
        p->writer = NULL;
        list_remove(&p->link);
        va_start(args, format);
        vsnprintf(p->text, sizeof(p->text), format, args);
        va_end(args);
        pthread_mutex_lock(&p->comm->lock);
        last_ns = p->last_ns;
        pthread_mutex_unlock(&p->comm->lock);
        p->event.bytes = p->sent;
        p->event.ns = last_ns ? clock_mono_ns() - last_ns : 0;
        if (w) {
                w->push = NULL;
                if (result < 0) /* else the decoder closes when it has heard the last word */
                        writer_close(w);
        }
        comm_tell(p->comm, &p->event, result, p->text);
}

static void push_fail(struct comm_push *p, int error, const char *format, ...) __attribute__((format(printf, 3, 4)));

static void push_fail(struct comm_push *p, int error, const char *format, ...) {
        char text[200];
        va_list args;

        va_start(args, format);
        vsnprintf(text, sizeof(text), format, args);
        va_end(args);
        push_end(p, error, "the decoder at %.100s port %u: %s", p->host.ptr, p->port, text);
}

/* False: the push has ended with it. */
static bool tell(struct comm_push *p, const struct wire_message *m) {
        int r = comm_send((uv_stream_t *)&p->writer->tcp, m);

        if (r < 0)
                push_fail(p, r, "%s", uv_strerror(r));
        return r == 0;
}

/* ---- rows ---------------------------------------------------------------------------------------------------------------- */

static void go_on(struct comm_push *p);

static void on_rows_written(uv_write_t *write, int status) {
        struct writer *w = write->data;

        w->writing = false;
        buf_reset(&w->head);
        if (!w->push)
                return;
        if (status < 0) {
                push_fail(w->push, status, "%s", uv_strerror(status));
                return;
        }
        w->heard = comm_now(w->comm);
        go_on(w->push);
}

/* What of the rows at hand is not written yet, a turn of it. False: they are all out. True: it is being written, or the push has
 * ended with it. */
static bool write_turn(struct comm_push *p) {
        struct writer *w = p->writer;
        uv_buf_t out[TURN_PIECES + 1];
        unsigned n = 0;
        int r;

        if (w->head.len)
                out[n++] = uv_buf_init(w->head.ptr, (unsigned)w->head.len);
        if (w->payload.pool)
                n += comm_turn(&w->payload, out + n);
        if (n == 0)
                return false;
        w->write.data = w;
        r = uv_write(&w->write, (uv_stream_t *)&w->tcp, out, n, on_rows_written);
        if (r < 0) {
                push_fail(p, r, "%s", uv_strerror(r));
                return true;
        }
        w->writing = true;
        w->heard = comm_now(p->comm);
        w->next_beat = w->heard + p->comm->options.silence_ms / 3;
        return true;
}

/* The next rows become the ones at hand. False: there are none. */
static bool next_rows(struct comm_push *p) {
        const struct kv_pool *pool = &p->comm->pool;
        struct wire_message m = {.kind = WIRE_ROWS};
        struct writer *w = p->writer;
        struct rows *rows = (struct rows *)(p->rows.ptr + p->rows_at);
        uint32_t skipped;

        w->payload.pool = NULL;
        if (p->rows_at == p->rows.len) {
                buf_reset(&p->rows);
                p->rows_at = 0;
                return false;
        }
        m.layer = rows->layer;
        m.first = rows->first;
        m.end = rows->end - rows->first > WIRE_ROWS_MAX ? rows->first + WIRE_ROWS_MAX : rows->end;
        rows->first = m.end;
        if (rows->first == rows->end)
                p->rows_at += sizeof(*rows);
        skipped = m.first / pool->block_tokens;
        if (w->direct) {
                m.table_count = (m.end - 1) / pool->block_tokens - skipped + 1;
                m.table = slice_of(p->blocks + skipped, m.table_count * sizeof(*p->blocks));
        } else
                pieces_init_rows(&w->payload, pool, p->blocks, 0, m.layer, m.first, m.end);
        wire_write(&w->head, &m);
        p->sent += (uint64_t)(m.end - m.first) * pool->row_bytes;
        return true;
}

static void complete(struct comm_push *p) {
        struct wire_message m = {.kind = WIRE_COMPLETE};

        if (p->writer->checksum_wanted) {
                struct pieces all;

                pieces_init(&all, &p->comm->pool, p->blocks, p->first, p->end, p->writer->there_tokens);
                m.checksum = comm_checksum(all);
        }
        p->state = PUSH_COMPLETING;
        p->writer->heard = comm_now(p->comm);
        tell(p, &m);
}

/* Send what is there. */
static void go_on(struct comm_push *p) {
        struct writer *w = p->writer;

        if (p->state != PUSH_WRITING || w->writing)
                return;
        while (!write_turn(p)) {
                if (!next_rows(p)) {
                        if (p->sent == p->total)
                                complete(p);
                        return;
                }
                if (!buf_ok(&w->head)) {
                        push_end(p, -ENOMEM, "out of memory");
                        return;
                }
        }
}

/* ---- what the decoder says ------------------------------------------------------------------------------------------------ */

static void take_welcome(struct comm_push *p, const struct wire_message *m) {
        struct wire_message push = {.kind = WIRE_PUSH, .lease = p->id, .first = p->first, .end = p->end};
        struct writer *w = p->writer;
        char mismatch[160];

        if (m->version != WIRE_VERSION || m->block_tokens == 0) {
                push_fail(p, -EPROTO, "it does not speak this protocol");
                return;
        }
        comm_compare(p->comm, m, mismatch, sizeof(mismatch));
        if (mismatch[0]) {
                push_fail(p, -EPROTO, "it does not fit: %s", mismatch);
        } else if (!slice_eq(m->engine, p->engine_id)) {
                push_fail(p, -ESTALE, "there is now another engine, %.*s: it was restarted",
                    SLICE_ARG(slice_sub(m->engine, 0, 80)));
        } else {
                w->there_tokens = m->block_tokens;
                comm_tell_memory(p->comm, comm_has_one_host(&w->tcp), &push);
                p->state = PUSH_OPENING;
                tell(p, &push);
        }
}

static void take_message(struct comm_push *p, const struct wire_message *m) {
        static const struct wire_message closed = {.kind = WIRE_CLOSED, .valid = true};
        struct writer *w = p->writer;

        w->heard = comm_now(p->comm);
        if (m->kind == WIRE_REFUSED) {
                push_end(p, m->error && m->error < 4096 ? -(int)m->error : -EPROTO,
                    "the decoder at %.100s port %u refuses it: %.*s", p->host.ptr, p->port,
                    SLICE_ARG(slice_sub(m->text, 0, 80)));
        } else if (m->kind == WIRE_WELCOME && p->state == PUSH_GREETING) {
                take_welcome(p, m);
        } else if (m->kind == WIRE_READY && p->state == PUSH_OPENING) {
                w->direct = m->direct;
                w->checksum_wanted = m->checksum_wanted;
                p->state = PUSH_WRITING;
                go_on(p);
        } else if (m->kind == WIRE_CLOSE && p->state == PUSH_COMPLETING) {
                if (tell(p, &closed))
                        push_end(p, 0, "%s", "");
        } else {
                push_fail(p, -EPROTO, "it does not speak this protocol");
        }
}

static void on_alloc(uv_handle_t *handle, size_t suggested, uv_buf_t *ret_buf) {
        struct writer *w = handle->data;
        char *room = buf_reserve(&w->in, WIRE_REQUEST_MAX);

        *ret_buf = uv_buf_init(room, room ? WIRE_REQUEST_MAX : 0);
}

static void on_read(uv_stream_t *stream, ssize_t bytes, const uv_buf_t *unused) {
        struct writer *w = stream->data;
        size_t used = 0;

        if (bytes < 0) {
                if (w->push)
                        push_fail(w->push, (int)bytes == UV_EOF ? -ECONNRESET : (int)bytes, "%s",
                            (int)bytes == UV_EOF ? "it has closed the connection" : uv_strerror((int)bytes));
                writer_close(w);
                return;
        }
        buf_commit(&w->in, (size_t)bytes);
        while (w->push) {
                struct wire_message m;
                int n = wire_read(slice_sub(buf_slice(&w->in), used, w->in.len), WIRE_REQUEST_MAX, &m);

                if (n < 0)
                        push_fail(w->push, n, "it does not speak this protocol");
                if (n <= 0)
                        break;
                take_message(w->push, &m);
                used += (size_t)n;
        }
        buf_consume(&w->in, used);
}

/* ---- connecting ----------------------------------------------------------------------------------------------------------- */

static void on_connected(uv_connect_t *connect, int status) {
        struct writer *w = connect->data;
        struct wire_message hello = {
            .kind = WIRE_HELLO, .version = WIRE_VERSION, .engine = slice_str(w->comm->options.engine_id)};

        if (!w->push)
                return;
        if (status < 0) {
                push_fail(w->push, status, "cannot connect: %s", uv_strerror(status));
                return;
        }
        w->push->state = PUSH_GREETING;
        w->heard = comm_now(w->comm);
        uv_tcp_nodelay(&w->tcp, 1);
        uv_tcp_keepalive(&w->tcp, 1, 15);
        uv_read_start((uv_stream_t *)&w->tcp, on_alloc, on_read);
        tell(w->push, &hello);
}

static void connect_to(struct writer *w, const struct sockaddr *address) {
        int r;

        uv_tcp_init(&w->comm->loop, &w->tcp);
        w->open = true;
        w->tcp.data = w->connect.data = w;
        w->push->state = PUSH_CONNECTING;
        r = uv_tcp_connect(&w->connect, &w->tcp, address, on_connected);
        if (r < 0)
                push_fail(w->push, r, "cannot connect: %s", uv_strerror(r));
}

static void on_resolved(uv_getaddrinfo_t *resolve, int status, struct addrinfo *list) {
        struct writer *w = resolve->data;

        w->resolving = false;
        if (!w->push)
                writer_free(w);
        else if (status < 0)
                push_fail(w->push, status, "%s", uv_strerror(status));
        else
                connect_to(w, list->ai_addr);
        uv_freeaddrinfo(list);
}

static void open_writer(struct comm_push *p) {
        struct addrinfo hints = {.ai_socktype = SOCK_STREAM};
        struct writer *w = calloc(1, sizeof(*w));
        struct sockaddr_storage address;
        char port[8];
        int r;

        if (!w) {
                push_end(p, -ENOMEM, "out of memory");
                return;
        }
        w->comm = p->comm;
        w->push = p;
        w->heard = comm_now(p->comm);
        p->writer = w;
        list_push_back(&p->comm->writers, &w->link);
        if (uv_ip4_addr(p->host.ptr, p->port, (struct sockaddr_in *)&address) == 0 ||
            uv_ip6_addr(p->host.ptr, p->port, (struct sockaddr_in6 *)&address) == 0) {
                connect_to(w, (struct sockaddr *)&address);
                return;
        }
        snprintf(port, sizeof(port), "%u", p->port);
        p->state = PUSH_RESOLVING;
        w->resolve.data = w;
        r = uv_getaddrinfo(&p->comm->loop, &w->resolve, on_resolved, p->host.ptr, port, &hints);
        w->resolving = r == 0;
        if (r < 0)
                push_fail(p, r, "%s", uv_strerror(r));
}

void push_asked(struct comm_push *p, bool drop) {
        if (drop) {
                push_end(p, -ECANCELED, "it was given up");
                return;
        }
        if (!buf_ok(&p->rows)) {
                push_end(p, -ENOMEM, "out of memory");
        } else if (p->state == PUSH_NEW) {
                list_push_back(&p->comm->pushes, &p->link);
                comm_need_ticks(p->comm);
                open_writer(p);
        } else
                go_on(p);
}

/* ---- deadlines ------------------------------------------------------------------------------------------------------------ */

/* True: the decoder's turn it is, to answer or to take what is sent. */
static bool waits(const struct comm_push *p) {
        return p->state != PUSH_WRITING || p->writer->writing;
}

bool pushes_tick(struct comm *c, uint64_t now) {
        static const struct wire_message beat = {.kind = WIRE_BEAT};

        list_for_each (at, &c->pushes) {
                struct comm_push *p = list_item(at, struct comm_push, link);
                struct writer *w = p->writer;

                if (waits(p)) {
                        if (now - w->heard > c->options.silence_ms)
                                push_fail(p, -ETIMEDOUT, "no answer for %u ms", c->options.silence_ms);
                } else if (now >= w->next_beat) {
                        w->next_beat = now + c->options.silence_ms / 3;
                        tell(p, &beat);
                }
        }
        list_for_each (at, &c->writers) {
                struct writer *w = list_item(at, struct writer, link);

                if (!w->push && !w->closing && now - w->heard > c->options.silence_ms)
                        writer_close(w);
        }
        return !list_empty(&c->pushes) || !list_empty(&c->writers);
}

void pushes_close(struct comm *c) {
        while (!list_empty(&c->pushes))
                push_end(list_item(c->pushes.next, struct comm_push, link), -ECANCELED, "the engine stops");
        list_for_each (at, &c->writers)
                writer_close(list_item(at, struct writer, link));
}
