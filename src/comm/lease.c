/* lease.c - the producer's side: leases; and the connections from other ranks, those who read them and those who push
 * (receive.c).
 *
 * A lease is found by its name until somebody reads it; from then on it belongs to that connection, which closes it. It
 * ends once: lease_end(). */
#include "base/hash.h"
#include "comm/core.h"
#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

/* ---- leases ------------------------------------------------------------------------------------------------------------ */

static struct lease **find_lease(struct comm *c, struct slice id) {
        struct lease **at = &c->by_id[hash64(id, 0) % LEASE_BUCKETS];

        while (*at && !slice_eq(slice_of((*at)->id, (*at)->id_bytes), id))
                at = &(*at)->next_in_bucket;
        return at;
}

void lease_begin(struct comm *c, struct lease *l) {
        struct lease **bucket = &c->by_id[hash64(slice_of(l->id, l->id_bytes), 0) % LEASE_BUCKETS];

        l->expires = comm_now(c) + c->options.lease_ms;
        l->next_in_bucket = *bucket;
        *bucket = l;
        list_push_back(&c->leases, &l->link);
        comm_need_ticks(c);
}

/* The one end of a lease: its blocks go back. */
static void lease_end(struct comm *c, struct lease *l, int result, const char *text) {
        struct lease **at = find_lease(c, slice_of(l->id, l->id_bytes));

        while (*at != l) /* names are unguessable, and so never equal; but a caller might repeat one */
                at = &(*at)->next_in_bucket;
        *at = l->next_in_bucket;
        list_remove(&l->link);
        list_remove(&l->reader_link);
        comm_tell(c, &l->event, result, text);
}

bool leases_tick(struct comm *c, uint64_t now) {
        bool waits = false;

        list_for_each (at, &c->leases) {
                struct lease *l = list_item(at, struct lease, link);

                if (now < l->expires)
                        continue;
                if (l->reader && l->reader->writing) {
                        /* It does not take what it asked for: only the end of the connection ends the sending. All of the
                         * connection's leases end with it, so the list is walked again next time. */
                        reader_close(l->reader, -ETIMEDOUT);
                        return true;
                }
                lease_end(c, l, -ETIMEDOUT, "nobody fetched it in time");
        }
        list_for_each (at, &c->readers) {
                struct reader *r = list_item(at, struct reader, link);

                if (!r->greeted && now >= r->greet_by)
                        reader_close(r, -ETIMEDOUT);
                waits |= !r->greeted;
        }
        return waits || !list_empty(&c->leases);
}

void leases_withdraw(struct comm *c, struct slice names) {
        while (names.len) {
                struct slice name = slice_take(&names, slice_find(names, '\0', 0));
                struct lease *l = *find_lease(c, name);

                slice_take(&names, 1);
                if (l && !l->reader)
                        lease_end(c, l, -ECANCELED, "it was given up");
        }
}

/* ---- sending ----------------------------------------------------------------------------------------------------------- */

void reader_send(struct reader *r, const struct wire_message *m) {
        int error = comm_send((uv_stream_t *)&r->tcp, m);

        if (error < 0)
                reader_close(r, error);
        else if (!r->writing && uv_stream_get_write_queue_size((uv_stream_t *)&r->tcp) > UNREAD_MAX)
                reader_close(r, -ENOBUFS);
}

void reader_refuse(struct reader *r, uint64_t tag, int error, const char *text) {
        struct wire_message m = {.kind = WIRE_REFUSED, .tag = tag, .error = (uint32_t)-error, .text = slice_str(text)};

        reader_send(r, &m);
}

static void send_next(struct reader *r);

static void on_payload_written(uv_write_t *write, int status) {
        struct reader *r = write->data;

        r->writing = false;
        if (r->closing)
                return;
        if (status < 0)
                reader_close(r, status);
        else
                send_next(r);
}

/* A turn of the payload under way. False: it is all out. */
static bool send_payload(struct reader *r, struct lease *l) {
        uv_buf_t out[TURN_PIECES];
        unsigned n = comm_turn(&r->pieces, out);
        int error;

        if (n == 0)
                return false;
        l->expires = comm_now(r->comm) + r->comm->options.lease_ms;
        r->write.data = r;
        error = uv_write(&r->write, (uv_stream_t *)&r->tcp, out, n, on_payload_written);
        r->writing = error == 0;
        if (error < 0)
                reader_close(r, error);
        return true;
}

static void begin_payload(struct reader *r, struct lease *l) {
        struct comm *c = r->comm;
        struct wire_message m = {.kind = WIRE_DATA, .tag = l->tag, .payload = pieces_bytes(&c->pool, l->first, l->end)};

        pieces_init(&r->pieces, &c->pool, l->blocks, l->first, l->end, l->group);
        if (l->checksum_wanted)
                m.checksum = comm_checksum(r->pieces);
        reader_send(r, &m);
}

/* Go on with the first of the queue, whose payload may be under way. */
static void send_next(struct reader *r) {
        while (!r->closing && !r->writing && !list_empty(&r->queue)) {
                struct lease *l = list_item(r->queue.next, struct lease, reader_link);

                if (!r->pieces.pool) {
                        begin_payload(r, l);
                        if (r->closing)
                                return;
                }
                if (send_payload(r, l))
                        return;
                r->pieces.pool = NULL;
                list_remove(&l->reader_link);
                list_push_back(&r->reading, &l->reader_link);
        }
}

static void tell_blocks(struct reader *r, struct lease *l) {
        struct wire_message m = {.kind = WIRE_BLOCKS,
            .tag = l->tag,
            .table = slice_of(l->blocks, l->event.block_count * sizeof(*l->blocks)),
            .table_count = (uint32_t)l->event.block_count};

        if (l->checksum_wanted) {
                struct pieces p;

                pieces_init(&p, &r->comm->pool, l->blocks, l->first, l->end, l->group);
                m.checksum = comm_checksum(p);
        }
        list_push_back(&r->reading, &l->reader_link);
        reader_send(r, &m);
}

/* ---- what readers say -------------------------------------------------------------------------------------------------- */

static void greet(struct reader *r, const struct wire_message *m) {
        struct comm *c = r->comm;
        char layers[16], row_bytes[16];
        const char *own_facts[] = {layers, row_bytes};
        struct wire_message welcome = {.kind = WIRE_WELCOME};

        if (m->version != WIRE_VERSION) {
                reader_refuse(r, 0, -EPROTONOSUPPORT, "the prefiller speaks another version of the protocol");
                return;
        }
        snprintf(layers, sizeof(layers), "%u", c->pool.layers);
        snprintf(row_bytes, sizeof(row_bytes), "%zu", c->pool.row_bytes);
        comm_introduce(c, &welcome, own_facts);
        if (c->ucx) {
                welcome.ucx_address = ucx_address(c->ucx);
                welcome.ucx_key = ucx_key(c->ucx);
        }
        comm_tell_memory(c, r->same_host, &welcome);
        r->greeted = true;
        reader_send(r, &welcome);
}

static void answer_fetch(struct reader *r, const struct wire_message *m) {
        struct comm *c = r->comm;
        struct lease *l;

        comm_take_asked(c);
        l = *find_lease(c, m->lease);
        if (!l)
                reader_refuse(r, m->tag, -ENOENT, "the lease has ended (expired, used or given up) or never was");
        else if (l->reader)
                reader_refuse(r, m->tag, -EBUSY, "the lease is being read already: it serves one fetch");
        else if (m->first >= m->end || m->end > l->tokens || m->group == 0)
                reader_refuse(r, m->tag, -ERANGE, "the lease does not have these tokens");
        else {
                l->reader = r;
                l->tag = m->tag;
                l->first = m->first;
                l->end = m->end;
                l->group = m->group;
                l->checksum_wanted = m->checksum_wanted;
                l->expires = comm_now(c) + c->options.lease_ms;
                if (m->direct) {
                        tell_blocks(r, l);
                } else {
                        list_push_back(&r->queue, &l->reader_link);
                        send_next(r);
                }
        }
}

/* The lease that was sent or told under this tag, NULL: there is none. */
static struct lease *find_read(struct reader *r, uint64_t tag) {
        struct lease *l;

        list_for_each (at, &r->reading) {
                l = list_item(at, struct lease, reader_link);
                if (l->tag == tag)
                        return l;
        }
        /* The end of a payload may be answered before libuv has told that it was written. Only when the kernel has all of it,
         * though: a reader that closes earlier would be sent what others write into the blocks. */
        if (!r->writing || !pieces_ended(&r->pieces) || uv_stream_get_write_queue_size((uv_stream_t *)&r->tcp) > 0)
                return NULL;
        l = list_item(r->queue.next, struct lease, reader_link);
        if (l->tag != tag)
                return NULL;
        r->pieces.pool = NULL;
        return l;
}

static void answer_close(struct reader *r, uint64_t tag) {
        struct lease *l = find_read(r, tag);
        struct wire_message closed = {.kind = WIRE_CLOSED, .tag = tag, .valid = l != NULL};

        if (l)
                lease_end(r->comm, l, 0, "");
        reader_send(r, &closed);
}

/* A lease that is read is kept by its own connection only. */
static void keep_alive(struct reader *r, struct slice id) {
        struct lease *l;

        comm_take_asked(r->comm);
        l = *find_lease(r->comm, id);
        if (l && (!l->reader || l->reader == r))
                l->expires = comm_now(r->comm) + r->comm->options.lease_ms;
}

static void release(struct reader *r, struct slice id) {
        struct lease *l;

        comm_take_asked(r->comm);
        l = *find_lease(r->comm, id);
        if (l && !l->reader)
                lease_end(r->comm, l, -ECANCELED, "its decoder does not want it");
}

static void take_message(struct reader *r, const struct wire_message *m) {
        if (!r->greeted && m->kind != WIRE_HELLO) {
                reader_close(r, -EPROTO);
                return;
        }
        if (r->receipt) {
                receipt_take(r, m);
                return;
        }
        switch (m->kind) {
        case WIRE_HELLO:
                greet(r, m);
                break;
        case WIRE_BEAT:
                keep_alive(r, m->lease);
                break;
        case WIRE_RELEASE:
                release(r, m->lease);
                break;
        case WIRE_FETCH:
                answer_fetch(r, m);
                break;
        case WIRE_CLOSE:
                answer_close(r, m->tag);
                break;
        case WIRE_PUSH:
                receipt_open(r, m);
                break;
        default:
                reader_close(r, -EPROTO);
        }
}

/* ---- connections ------------------------------------------------------------------------------------------------------- */

static void on_reader_closed(uv_handle_t *handle) {
        struct reader *r = handle->data;

        buf_free(&r->in);
        list_remove(&r->link);
        r->comm->reader_count--;
        free(r);
}

/* The leases it was reading end: nobody else has a right to them. They go back when nothing is written from them any more,
 * which is when libuv has given the write up: at once, with the handle. */
void reader_close(struct reader *r, int error) {
        struct list *lists[] = {&r->queue, &r->reading};
        struct comm_receipt *writes = r->receipt;

        if (r->closing)
                return;
        r->closing = true;
        if (error != UV_EOF && error != UV_ECONNRESET)
                log_warn(r->comm->options.log, "a connection for KV is closed: %s", uv_strerror(error));
        uv_close((uv_handle_t *)&r->tcp, on_reader_closed);
        r->receipt = NULL;
        if (writes)
                receipt_cut(writes, error);
        for (size_t i = 0; i < 2; i++)
                while (!list_empty(lists[i]))
                        lease_end(r->comm, list_item(lists[i]->next, struct lease, reader_link), -ECONNRESET,
                            "the decoder that read it is gone");
}

static void on_alloc(uv_handle_t *handle, size_t suggested, uv_buf_t *ret_buf) {
        struct reader *r = handle->data;
        struct iovec window = receipt_window(r);
        char *room;

        if (window.iov_len) { /* in is empty then: what is pushed goes straight to its place */
                *ret_buf = uv_buf_init(window.iov_base, (unsigned)window.iov_len);
                return;
        }
        room = buf_reserve(&r->in, WIRE_REQUEST_MAX);
        *ret_buf = uv_buf_init(room, room ? WIRE_REQUEST_MAX : 0);
}

/* What is pushed and was read together with messages. Returns its bytes. */
static size_t take_payload(struct reader *r, struct slice in) {
        size_t taken = 0;
        struct iovec window;

        while (taken < in.len && (window = receipt_window(r)).iov_len) {
                size_t bytes = in.len - taken < window.iov_len ? in.len - taken : window.iov_len;

                memcpy(window.iov_base, in.ptr + taken, bytes);
                receipt_pass(r, bytes);
                taken += bytes;
        }
        return taken;
}

static void on_read(uv_stream_t *stream, ssize_t bytes, const uv_buf_t *unused) {
        struct reader *r = stream->data;
        size_t used = 0;

        if (bytes < 0) {
                reader_close(r, (int)bytes);
                return;
        }
        if (receipt_window(r).iov_len) {
                receipt_pass(r, (size_t)bytes);
                return;
        }
        buf_commit(&r->in, (size_t)bytes);
        while (!r->closing) {
                struct wire_message m;
                int n;

                used += take_payload(r, slice_sub(buf_slice(&r->in), used, r->in.len));
                n = wire_read(slice_sub(buf_slice(&r->in), used, r->in.len), WIRE_REQUEST_MAX, &m);
                if (n < 0)
                        reader_close(r, n);
                if (n <= 0)
                        break;
                take_message(r, &m);
                used += (size_t)n;
        }
        buf_consume(&r->in, used);
}

static void on_connection(uv_stream_t *listener, int status) {
        struct comm *c = listener->data;
        struct reader *r;
        int error;

        if (status < 0)
                return;
        r = calloc(1, sizeof(*r));
        if (!r)
                return; /* it stays in the queue of the kernel until the next one comes */
        r->comm = c;
        r->tcp.data = r;
        list_init(&r->queue);
        list_init(&r->reading);
        r->greet_by = comm_now(c) + c->options.silence_ms;
        uv_tcp_init(&c->loop, &r->tcp);
        list_push_back(&c->readers, &r->link);
        c->reader_count++;
        error = uv_accept(listener, (uv_stream_t *)&r->tcp);
        if (error == 0 && c->reader_count > READERS_MAX)
                error = UV_EMFILE;
        if (error == 0)
                error = uv_read_start((uv_stream_t *)&r->tcp, on_alloc, on_read);
        if (error < 0) {
                reader_close(r, error);
                return;
        }
        uv_tcp_nodelay(&r->tcp, 1);
        uv_tcp_keepalive(&r->tcp, 1, 15);
        r->same_host = comm_has_one_host(&r->tcp);
        comm_need_ticks(c);
}

int leases_listen(struct comm *c, struct error *e) {
        const char *host = c->options.host;
        struct sockaddr_storage at;
        int bytes = sizeof(at), r;

        if (uv_ip4_addr(host, c->options.port, (struct sockaddr_in *)&at) < 0 &&
            uv_ip6_addr(host, c->options.port, (struct sockaddr_in6 *)&at) < 0)
                return error_set(e, -EINVAL, "the address for KV transfers is no IP address: %s", host);
        uv_tcp_init(&c->loop, &c->listener);
        c->has_listener = true;
        r = uv_tcp_bind(&c->listener, (struct sockaddr *)&at, 0);
        if (r == 0)
                r = uv_listen((uv_stream_t *)&c->listener, 1024, on_connection);
        if (r == 0)
                r = uv_tcp_getsockname(&c->listener, (struct sockaddr *)&at, &bytes);
        if (r < 0)
                return error_set(
                    e, r, "cannot listen for KV transfers on %s port %u: %s", host, c->options.port, uv_strerror(r));
        c->port = ntohs(
            at.ss_family == AF_INET6 ? ((struct sockaddr_in6 *)&at)->sin6_port : ((struct sockaddr_in *)&at)->sin_port);
        return 0;
}

void readers_close(struct comm *c) {
        list_for_each (at, &c->readers)
                reader_close(list_item(at, struct reader, link), UV_EOF);
}
