/* fetch.c - the consumer's side: connections to prefillers, and what is fetched over them.
 *
 *     ANNOUNCED ──> WANTED ──> SENT ──> RECEIVING or COPYING ──> CLOSING ──> ended
 *          └──────────┴──────> LEFT (to be released) ─────────────────────────┘
 *
 * A fetch has one end, fetch_end(). What was sent goes to its end even when nobody wants it any more: an answer in mid-stream
 * cannot be called back. An error of a connection ends what needs it; a fetch that is only announced tries again when it is
 * wanted. */
#include "base/clock.h"
#include "comm/core.h"
#include <assert.h>
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

enum source_state { SOURCE_IDLE, SOURCE_RESOLVING, SOURCE_CONNECTING, SOURCE_GREETING, SOURCE_READY, SOURCE_CLOSING };

/* A connection to a prefiller. It stays for the life of the comm, connected or not. */
struct source {
        struct comm *comm;
        struct list link, fetches;
        enum source_state state;
        bool read_started;
        uv_getaddrinfo_t resolve;
        uv_connect_t connect;
        uv_tcp_t tcp;
        struct buf in;
        uint64_t heard; /* loop time of the last sign of life, or of the beginning of a wait for one */
        uint64_t next_tag;
        struct comm_fetch *receiving;
        /* of the producer's welcome */
        struct kv_pool pool; /* base in its own memory */
        enum { BY_STREAM, DIRECTLY, BY_UCX } way;
        uint64_t pid;          /* DIRECTLY */
        struct ucx_peer *peer; /* BY_UCX; freed when the connection is closed */
        char engine_id[COMM_NAME_MAX + 1];
        char mismatch[256]; /* the fact that differs; "" when all are equal */
        uint16_t port;
        char host[];
};

static void source_open(struct source *s);
static void source_fail(struct source *s, int error, const char *format, ...) __attribute__((format(printf, 3, 4)));

/* ---- fetches ----------------------------------------------------------------------------------------------------------- */

static bool needs_connection(const struct comm_fetch *f) {
        return f->state != FETCH_ANNOUNCED && f->state != FETCH_DRAINING && f->state != FETCH_ENDED;
}

static void fetch_end(struct comm_fetch *f, int result, const char *format, ...) __attribute__((format(printf, 3, 4)));

static void end_copying(struct comm_fetch *f) {
        if (f->state == FETCH_COPYING && f->source->way == DIRECTLY && --f->comm->copying == 0)
                uv_idle_stop(&f->comm->copy);
}

static void fetch_end(struct comm_fetch *f, int result, const char *format, ...) {
        struct source *s = f->source;
        va_list args;

        assert(f->state != FETCH_ENDED);
        end_copying(f);
        if (s && s->receiving == f)
                s->receiving = NULL;
        f->state = FETCH_ENDED;
        list_remove(&f->link);
        if (result == 0 && f->dropped)
                result = -ECANCELED;
        va_start(args, format);
        vsnprintf(f->text, sizeof(f->text), format, args);
        va_end(args);
        f->event.ns = clock_mono_ns() - f->begun_ns;
        comm_tell(f->comm, &f->event, result, f->text);
}

static int tell_source(struct source *s, struct wire_message *m) {
        int r = comm_send((uv_stream_t *)&s->tcp, m);

        if (r < 0)
                source_fail(s, r, "%s", uv_strerror(r));
        return r;
}

/* All is here. Only the producer knows whether it was this lease's to the end. */
static void close_fetch(struct comm_fetch *f) {
        struct wire_message m = {.kind = WIRE_CLOSE, .tag = f->tag};

        end_copying(f);
        f->state = FETCH_CLOSING;
        f->source->heard = comm_now(f->comm);
        tell_source(f->source, &m);
}

static void release(struct comm_fetch *f) {
        struct wire_message m = {.kind = WIRE_RELEASE, .lease = f->id};

        if (tell_source(f->source, &m) < 0)
                return; /* it has ended with the connection */
        fetch_end(f, f->dropped ? -ECANCELED : 0, "%s", f->dropped ? "it was given up" : "");
}

static void send_fetch(struct comm_fetch *f) {
        struct source *s = f->source;
        struct wire_message m = {.kind = WIRE_FETCH,
            .tag = ++s->next_tag,
            .lease = f->id,
            .first = f->first,
            .end = f->end,
            .group = f->comm->pool.block_tokens,
            .direct = s->way != BY_STREAM,
            .checksum_wanted = f->comm->options.checksum};

        if (s->mismatch[0]) {
                fetch_end(f, -EPROTO, "the prefiller at %s port %u does not fit: %s", s->host, s->port, s->mismatch);
        } else if (strcmp(s->engine_id, f->engine_id.ptr) != 0) {
                fetch_end(f, -ESTALE, "at %s port %u there is now another engine, %s: the prefiller was restarted",
                    s->host, s->port, s->engine_id);
        } else {
                f->tag = m.tag;
                f->state = FETCH_SENT;
                s->heard = comm_now(f->comm);
                tell_source(s, &m);
        }
}

/* Do what waited for the connection. Each fetch may end the connection, and with it others: look again after each. */
static void go_on(struct source *s) {
        bool any = true;

        while (any && s->state == SOURCE_READY) {
                any = false;
                list_for_each (at, &s->fetches) {
                        struct comm_fetch *f = list_item(at, struct comm_fetch, link);

                        if (f->state != FETCH_WANTED && f->state != FETCH_LEFT)
                                continue;
                        any = true;
                        if (f->state == FETCH_LEFT)
                                release(f);
                        else
                                send_fetch(f);
                        break;
                }
        }
}

static struct source *source_of(struct comm *c, const char *host, uint16_t port) {
        size_t bytes = strlen(host) + 1;
        struct source *s;

        list_for_each (at, &c->sources) {
                s = list_item(at, struct source, link);
                if (s->port == port && !strcmp(s->host, host))
                        return s;
        }
        s = calloc(1, sizeof(*s) + bytes);
        if (!s)
                return NULL;
        s->comm = c;
        s->port = port;
        memcpy(s->host, host, bytes);
        list_init(&s->fetches);
        list_push_back(&c->sources, &s->link);
        return s;
}

void fetch_asked(struct comm_fetch *f, bool start, bool drop) {
        struct comm *c = f->comm;

        if (!f->source) {
                f->source = source_of(c, f->host.ptr, f->port);
                f->begun_ns = clock_mono_ns();
                if (!f->source || (start && !f->blocks)) {
                        fetch_end(f, -ENOMEM, "out of memory");
                        return;
                }
                list_push_back(&f->source->fetches, &f->link);
                f->next_beat = comm_now(c) + c->options.lease_ms / 3;
                comm_need_ticks(c);
        }
        if (drop) {
                f->dropped = true;
                if (f->state == FETCH_ANNOUNCED || f->state == FETCH_WANTED)
                        f->state = FETCH_LEFT;
        } else if (start) {
                f->begun_ns = clock_mono_ns();
                f->state = f->first < f->end ? FETCH_WANTED : FETCH_LEFT;
        }
        if (f->source->state == SOURCE_IDLE)
                source_open(f->source);
        else
                go_on(f->source);
}

/* ---- copying ----------------------------------------------------------------------------------------------------------- */

static void verify_and_close(struct comm_fetch *f) {
        struct pieces all;

        pieces_init(&all, &f->comm->pool, f->blocks, f->first, f->end, f->comm->pool.block_tokens);
        if (f->comm->options.checksum && comm_checksum(all) != f->checksum) {
                source_fail(f->source, -EBADMSG, "the checksum of the KV is wrong");
                return;
        }
        f->event.bytes = pieces_bytes(&f->comm->pool, f->first, f->end);
        close_fetch(f);
}

/* A turn: one fetch's next bytes. */
static void on_copy(uv_idle_t *idle) {
        struct comm *c = idle->data;

        list_for_each (at_source, &c->sources) {
                struct source *s = list_item(at_source, struct source, link);

                list_for_each (at, &s->fetches) {
                        struct comm_fetch *f = list_item(at, struct comm_fetch, link);
                        int r;

                        if (f->state != FETCH_COPYING || s->way != DIRECTLY)
                                continue;
                        r = direct_copy(s->pid, &f->here, &f->there);
                        if (r < 0)
                                source_fail(s, r, "reading its memory: %s", strerror(-r));
                        else if (r == 0)
                                verify_and_close(f);
                        return; /* the lists may be others now; the rest is next */
                }
        }
}

/* ---- answers ----------------------------------------------------------------------------------------------------------- */

static struct comm_fetch *find_fetch(struct source *s, uint64_t tag, enum fetch_state state) {
        list_for_each (at, &s->fetches) {
                struct comm_fetch *f = list_item(at, struct comm_fetch, link);

                if (f->state == state && f->tag == tag)
                        return f;
        }
        return NULL;
}

static void on_read_end(struct ucx_read *read, int result) {
        struct comm_fetch *f = list_item(read, struct comm_fetch, read);
        char why[sizeof(f->text)];

        if (f->state == FETCH_DRAINING) {
                memcpy(why, f->text, sizeof(why));
                fetch_end(
                    f, f->event.result, "the prefiller at %s port %u: %.150s", f->source->host, f->source->port, why);
        } else if (f->state == FETCH_COPYING && result < 0) {
                source_fail(f->source, result, "reading its memory by UCX: %s", strerror(-result));
        } else if (f->state == FETCH_COPYING) {
                verify_and_close(f);
        }
}

static void begin_copying(struct comm_fetch *f, const struct wire_message *m) {
        struct source *s = f->source;
        uint64_t needed = ((uint64_t)f->end + s->pool.block_tokens - 1) / s->pool.block_tokens;
        bool fits = m->table_count >= needed;

        for (uint32_t i = 0; fits && i < m->table_count; i++)
                fits = wire_block(m, i) < s->pool.blocks;
        f->there_blocks = fits ? malloc(m->table.len + 1) : NULL;
        if (!f->there_blocks) {
                source_fail(s, fits ? -ENOMEM : -EPROTO, "%s", fits ? "out of memory" : "a block table that is none");
                return;
        }
        for (uint32_t i = 0; i < m->table_count; i++)
                f->there_blocks[i] = wire_block(m, i);
        pieces_init(&f->here, &f->comm->pool, f->blocks, f->first, f->end, f->comm->pool.block_tokens);
        pieces_init(&f->there, &s->pool, f->there_blocks, f->first, f->end, f->comm->pool.block_tokens);
        f->checksum = m->checksum;
        f->state = FETCH_COPYING;
        if (s->way == BY_UCX) {
                f->read = (struct ucx_read){.here = f->here, .there = f->there, .on_end = on_read_end, .peer = s->peer};
                ucx_read_begin(&f->read);
        } else if (f->comm->copying++ == 0)
                uv_idle_start(&f->comm->copy, on_copy);
}

static void begin_receiving(struct comm_fetch *f, const struct wire_message *m) {
        if (m->payload != pieces_bytes(&f->comm->pool, f->first, f->end)) {
                source_fail(f->source, -EPROTO, "an answer of %llu bytes to %u tokens", (unsigned long long)m->payload,
                    f->end - f->first);
                return;
        }
        pieces_init(&f->here, &f->comm->pool, f->blocks, f->first, f->end, f->comm->pool.block_tokens);
        f->window = (struct iovec){0};
        f->left = m->payload;
        f->checksum = m->checksum;
        f->state = FETCH_RECEIVING;
        f->source->receiving = f;
}

static void take_refusal(struct source *s, const struct wire_message *m) {
        struct comm_fetch *f = find_fetch(s, m->tag, FETCH_SENT);

        if (s->state == SOURCE_GREETING)
                source_fail(s, -EPROTO, "%.*s", SLICE_ARG(m->text));
        else if (f)
                fetch_end(f, m->error && m->error < 4096 ? -(int)m->error : -EPROTO, "%.*s", SLICE_ARG(m->text));
}

static void on_peer_broken(void *source, const char *why) {
        source_fail(source, -ECONNRESET, "UCX: %s", why);
}

static void choose_way(struct source *s, const struct wire_message *m) {
        const struct comm *c = s->comm;

        s->way = BY_STREAM;
        s->pid = m->pid;
        if (c->options.way == COMM_WAY_BEST && direct_proves(m)) {
                s->way = DIRECTLY;
        } else if (c->ucx && m->ucx_address.len && m->ucx_key.len && m->ucx_address.len <= UCX_BLOB_MAX &&
                   m->ucx_key.len <= UCX_BLOB_MAX) {
                if (ucx_peer_new(c->ucx, m->ucx_address, m->ucx_key, on_peer_broken, s, &s->peer) == 0)
                        s->way = BY_UCX;
                else
                        log_warn(
                            c->options.log, "KV from %s port %u comes over TCP: UCX cannot reach it", s->host, s->port);
        }
}

static void take_welcome(struct source *s, const struct wire_message *m) {
        if (s->state != SOURCE_GREETING || m->engine.len > COMM_NAME_MAX || m->block_tokens == 0 ||
            m->version != WIRE_VERSION) {
                source_fail(s, -EPROTO, "it does not speak this protocol");
                return;
        }
        snprintf(s->engine_id, sizeof(s->engine_id), "%.*s", SLICE_ARG(m->engine));
        comm_compare(s->comm, m, s->mismatch, sizeof(s->mismatch));
        s->pool = (struct kv_pool){.base = (char *)(uintptr_t)m->base,
            .row_bytes = s->comm->pool.row_bytes,
            .layers = s->comm->pool.layers,
            .block_tokens = m->block_tokens,
            .blocks = m->blocks};
        choose_way(s, m);
        s->state = SOURCE_READY;
        log_debug(s->comm->options.log, "KV from %s port %u (engine %s) comes %s", s->host, s->port, s->engine_id,
            s->way == DIRECTLY ? "out of its memory"
            : s->way == BY_UCX ? "by UCX"
                               : "over TCP");
        go_on(s);
}

static void take_message(struct source *s, const struct wire_message *m) {
        struct comm_fetch *f;

        switch (m->kind) {
        case WIRE_WELCOME:
                take_welcome(s, m);
                break;
        case WIRE_REFUSED:
                take_refusal(s, m);
                break;
        case WIRE_BLOCKS:
        case WIRE_DATA:
                f = find_fetch(s, m->tag, FETCH_SENT);
                if (!f || (m->kind == WIRE_DATA) != (s->way == BY_STREAM))
                        source_fail(s, -EPROTO, "an answer that nobody asked for");
                else if (m->kind == WIRE_BLOCKS)
                        begin_copying(f, m);
                else
                        begin_receiving(f, m);
                break;
        case WIRE_CLOSED:
                f = find_fetch(s, m->tag, FETCH_CLOSING);
                if (!f)
                        source_fail(s, -EPROTO, "an answer that nobody asked for");
                else if (m->valid)
                        fetch_end(f, 0, "%s", "");
                else
                        fetch_end(f, -ESTALE, "the lease ended while its KV was read");
                break;
        default:
                source_fail(s, -EPROTO, "it does not speak this protocol");
        }
}

/* ---- bytes ------------------------------------------------------------------------------------------------------------- */

/* Where the payload goes on. */
static struct iovec *window(struct comm_fetch *f) {
        if (!f->window.iov_len)
                f->window = pieces_take(&f->here, TURN_BYTES);
        return &f->window;
}

static void pass_window(struct source *s, size_t bytes) {
        struct comm_fetch *f = s->receiving;

        f->window.iov_base = (char *)f->window.iov_base + bytes;
        f->window.iov_len -= bytes;
        f->left -= bytes;
        if (f->left > 0)
                return;
        s->receiving = NULL;
        verify_and_close(f);
}

/* Payload that was read together with messages. */
static void take_payload(struct source *s, struct slice *in) {
        while (s->receiving && in->len) {
                struct iovec *w = window(s->receiving);
                size_t bytes = in->len < w->iov_len ? in->len : w->iov_len;

                memcpy(w->iov_base, in->ptr, bytes);
                slice_take(in, bytes);
                pass_window(s, bytes);
        }
}

static void take_bytes(struct source *s) {
        struct slice in = buf_slice(&s->in);

        while (s->state == SOURCE_GREETING || s->state == SOURCE_READY) {
                struct wire_message m;
                int n;

                take_payload(s, &in);
                n = wire_read(in, WIRE_ANSWER_MAX, &m);
                if (n < 0)
                        source_fail(s, n, "it does not speak this protocol");
                if (n <= 0)
                        break;
                slice_take(&in, (size_t)n);
                take_message(s, &m);
        }
        buf_consume(&s->in, s->in.len - in.len);
}

static void on_alloc(uv_handle_t *handle, size_t suggested, uv_buf_t *ret_buf) {
        struct source *s = handle->data;

        if (s->receiving) { /* in is empty then: the payload goes straight to its place */
                struct iovec *w = window(s->receiving);

                *ret_buf = uv_buf_init(w->iov_base, (unsigned)w->iov_len);
        } else {
                char *room = buf_reserve(&s->in, suggested);

                *ret_buf = uv_buf_init(room, room ? (unsigned)suggested : 0);
        }
}

static void on_read(uv_stream_t *stream, ssize_t bytes, const uv_buf_t *into) {
        struct source *s = stream->data;

        if (bytes < 0) {
                source_fail(s, (int)bytes, "%s", uv_strerror((int)bytes));
                return;
        }
        s->heard = comm_now(s->comm);
        if (s->receiving) {
                pass_window(s, (size_t)bytes);
                return;
        }
        buf_commit(&s->in, (size_t)bytes);
        take_bytes(s);
}

/* ---- connections ------------------------------------------------------------------------------------------------------- */

static bool anybody_needs(const struct source *s) {
        list_for_each (at, &s->fetches)
                if (needs_connection(list_item(at, struct comm_fetch, link)))
                        return true;
        return false;
}

/* Not from within UCX's callbacks. Its reads end with it. */
static void drop_peer(struct source *s) {
        if (s->peer)
                ucx_peer_free(s->peer);
        s->peer = NULL;
}

static void on_source_closed(uv_handle_t *handle) {
        struct source *s = handle->data;

        drop_peer(s);
        s->state = SOURCE_IDLE;
        buf_reset(&s->in);
        if (anybody_needs(s)) /* it came while this one was closed */
                source_open(s);
}

/* It ends when UCX has let go of its blocks. */
static void drain(struct comm_fetch *f, int error, const char *why) {
        f->state = FETCH_DRAINING;
        f->event.result = error;
        snprintf(f->text, sizeof(f->text), "%s", why);
        ucx_read_stop(&f->read);
}

/* What needs the connection ends, what is only announced waits for a new one. */
static void source_fail(struct source *s, int error, const char *format, ...) {
        enum source_state before = s->state;
        char text[200];
        va_list args;

        if (before == SOURCE_CLOSING)
                return;
        va_start(args, format);
        vsnprintf(text, sizeof(text), format, args);
        va_end(args);
        s->state = SOURCE_CLOSING;
        list_for_each (at, &s->fetches) {
                struct comm_fetch *f = list_item(at, struct comm_fetch, link);

                if (f->state == FETCH_COPYING && s->way == BY_UCX && f->read.under_way) {
                        drain(f, error, text);
                } else if (needs_connection(f))
                        fetch_end(f, error, "the prefiller at %s port %u: %s", s->host, s->port, text);
        }
        if (before == SOURCE_CONNECTING || before == SOURCE_GREETING || before == SOURCE_READY)
                uv_close((uv_handle_t *)&s->tcp, on_source_closed);
        else
                s->state = SOURCE_IDLE;
}

static void on_connected(uv_connect_t *connect, int status) {
        struct source *s = connect->data;
        struct wire_message hello = {
            .kind = WIRE_HELLO, .version = WIRE_VERSION, .engine = slice_str(s->comm->options.engine_id)};

        if (s->state != SOURCE_CONNECTING)
                return; /* it is being closed */
        if (status < 0) {
                source_fail(s, status, "cannot connect: %s", uv_strerror(status));
                return;
        }
        s->state = SOURCE_GREETING;
        s->heard = comm_now(s->comm);
        uv_tcp_nodelay(&s->tcp, 1);
        uv_tcp_keepalive(&s->tcp, 1, 15);
        if (tell_source(s, &hello) == 0)
                uv_read_start((uv_stream_t *)&s->tcp, on_alloc, on_read);
}

static void connect_to(struct source *s, const struct sockaddr *address) {
        int r;

        uv_tcp_init(&s->comm->loop, &s->tcp);
        s->tcp.data = s->connect.data = s;
        s->state = SOURCE_CONNECTING;
        r = uv_tcp_connect(&s->connect, &s->tcp, address, on_connected);
        if (r < 0)
                source_fail(s, r, "cannot connect: %s", uv_strerror(r));
}

static void on_resolved(uv_getaddrinfo_t *resolve, int status, struct addrinfo *list) {
        struct source *s = resolve->data;

        if (s->state == SOURCE_CLOSING) { /* the comm ends */
                s->state = SOURCE_IDLE;
        } else if (status < 0) {
                source_fail(s, status, "%s", uv_strerror(status));
        } else {
                connect_to(s, list->ai_addr);
        }
        uv_freeaddrinfo(list);
}

static void source_open(struct source *s) {
        struct addrinfo hints = {.ai_socktype = SOCK_STREAM};
        struct sockaddr_storage address;
        char port[8];
        int r;

        if (uv_ip4_addr(s->host, s->port, (struct sockaddr_in *)&address) == 0 ||
            uv_ip6_addr(s->host, s->port, (struct sockaddr_in6 *)&address) == 0) {
                s->heard = comm_now(s->comm);
                connect_to(s, (struct sockaddr *)&address);
                return;
        }
        snprintf(port, sizeof(port), "%u", s->port);
        s->resolve.data = s;
        s->heard = comm_now(s->comm);
        s->state = SOURCE_RESOLVING;
        r = uv_getaddrinfo(&s->comm->loop, &s->resolve, on_resolved, s->host, port, &hints);
        if (r < 0)
                source_fail(s, r, "%s", uv_strerror(r));
}

/* ---- deadlines --------------------------------------------------------------------------------------------------------- */

static bool waits_for_answer(const struct source *s) {
        if (s->state == SOURCE_CONNECTING || s->state == SOURCE_GREETING)
                return true;
        list_for_each (at, &s->fetches) {
                const struct comm_fetch *f = list_item(at, struct comm_fetch, link);

                if (f->state == FETCH_COPYING && s->way == BY_UCX)
                        return true;
                if (f->state == FETCH_SENT || f->state == FETCH_RECEIVING || f->state == FETCH_CLOSING)
                        return true;
        }
        return false;
}

/* UCX reads without a word from the producer: that it goes on is a sign of life. */
static void note_reads(struct source *s, uint64_t now) {
        list_for_each (at, &s->fetches) {
                struct comm_fetch *f = list_item(at, struct comm_fetch, link);

                if (f->state == FETCH_COPYING && f->read.ended != f->read_seen) {
                        f->read_seen = f->read.ended;
                        s->heard = now;
                }
        }
}

/* Say of what is not yet fetched that it will be. A source that was lost is tried again with the next beat. */
static void beat(struct source *s, uint64_t now) {
        list_for_each (at, &s->fetches) {
                struct comm_fetch *f = list_item(at, struct comm_fetch, link);
                struct wire_message m = {.kind = WIRE_BEAT, .lease = f->id};

                if (now < f->next_beat || (f->state != FETCH_ANNOUNCED && f->state != FETCH_COPYING))
                        continue;
                f->next_beat = now + s->comm->options.lease_ms / 3;
                if (s->state == SOURCE_IDLE)
                        source_open(s);
                else if (s->state == SOURCE_READY && tell_source(s, &m) < 0)
                        return;
        }
}

bool fetches_tick(struct comm *c, uint64_t now) {
        bool any = false;

        list_for_each (at, &c->sources) {
                struct source *s = list_item(at, struct source, link);

                note_reads(s, now);
                if (waits_for_answer(s) && now - s->heard > c->options.silence_ms)
                        source_fail(s, -ETIMEDOUT, "no answer for %u ms", c->options.silence_ms);
                beat(s, now);
                any |= !list_empty(&s->fetches);
        }
        return any;
}

static void on_gone(uv_handle_t *handle) {
        struct source *s = handle->data;

        drop_peer(s);
        s->state = SOURCE_IDLE;
}

/* The comm ends: every fetch ends, and what libuv still holds comes back before the loop does. */
void sources_close(struct comm *c) {
        list_for_each (at, &c->sources) {
                struct source *s = list_item(at, struct source, link);

                while (!list_empty(&s->fetches))
                        fetch_end(list_item(s->fetches.next, struct comm_fetch, link), -ECANCELED, "the engine stops");
                if (s->state == SOURCE_RESOLVING) {
                        s->state = SOURCE_CLOSING;
                        uv_cancel((uv_req_t *)&s->resolve);
                } else if (s->state == SOURCE_CONNECTING || s->state == SOURCE_GREETING || s->state == SOURCE_READY) {
                        s->state = SOURCE_CLOSING;
                        uv_close((uv_handle_t *)&s->tcp, on_gone);
                }
        }
}

void sources_free(struct comm *c) {
        struct list *at;

        while ((at = list_pop_front(&c->sources))) {
                struct source *s = list_item(at, struct source, link);

                buf_free(&s->in);
                free(s);
        }
}
