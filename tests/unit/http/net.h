/* net.h - a loop with a deadline, plain peers over libuv streams, and a small application, for tests of server and client.
 *
 * Peers know nothing of http/: they send bytes and gather what comes. Nothing here sleeps: UNTIL() turns the loop until a
 * condition holds, and fails the test when it does not within a time that only a hang reaches. */
#pragma once
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "base/buf.h"
#include "http/http.h"
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

#define HANG_MS 30000

struct net {
        uv_loop_t loop;
        uv_timer_t guard;
        uint64_t turns;
        bool hung;
};

static inline void net_on_hang(uv_timer_t *guard) {
        struct net *n = guard->data;

        n->hung = true;
}

static inline void net_open(struct net *n) {
        *n = (struct net){0};
        assert_int_equal(uv_loop_init(&n->loop), 0);
        uv_timer_init(&n->loop, &n->guard);
        n->guard.data = n;
}

static inline void net_turn(struct net *n, const char *wanted) {
        uv_timer_start(&n->guard, net_on_hang, HANG_MS, 0);
        uv_run(&n->loop, UV_RUN_ONCE);
        n->turns++;
        if (n->hung)
                fail_msg("did not come about: %s", wanted);
}

#define UNTIL(net, condition)                                                                                          \
        do {                                                                                                           \
                while (!(condition))                                                                                   \
                        net_turn((net), #condition);                                                                   \
        } while (0)

/* Everything is closed: the loop must run out, which shows that nothing was forgotten. */
static inline void net_close(struct net *n) {
        uv_close((uv_handle_t *)&n->guard, NULL);
        uv_run(&n->loop, UV_RUN_DEFAULT);
        assert_int_equal(uv_loop_close(&n->loop), 0);
}

/* ---- peers ---------------------------------------------------------------------------------------------------- */

struct peer {
        union {
                uv_stream_t stream;
                uv_tcp_t tcp;
                uv_pipe_t pipe;
        };
        uv_connect_t connect;
        struct buf in;
        bool connected, eof, closed, reading;
        int error; /* of connect, read or write */
        size_t sent;
};

static inline void peer_on_alloc(uv_handle_t *handle, size_t suggested, uv_buf_t *ret_buf) {
        static char bytes[65536];

        *ret_buf = uv_buf_init(bytes, sizeof(bytes));
}

static inline void peer_on_read(uv_stream_t *stream, ssize_t n, const uv_buf_t *bytes) {
        struct peer *p = stream->data;

        if (n > 0)
                buf_append(&p->in, bytes->base, (size_t)n);
        else if (n == UV_EOF)
                p->eof = true;
        else if (n < 0)
                p->error = (int)n;
}

static inline void peer_read(struct peer *p) {
        p->reading = true;
        uv_read_start(&p->stream, peer_on_alloc, peer_on_read);
}

static inline void peer_stop_reading(struct peer *p) {
        p->reading = false;
        uv_read_stop(&p->stream);
}

static inline void peer_on_connect(uv_connect_t *request, int status) {
        struct peer *p = request->data;

        p->connected = status == 0;
        p->error = status;
        if (p->connected)
                peer_read(p);
}

static inline struct peer *peer_new(void) {
        struct peer *p = calloc(1, sizeof(*p));

        assert_non_null(p);
        return p;
}

static inline struct peer *peer_connect(struct net *n, uint16_t port) {
        struct peer *p = peer_new();
        struct sockaddr_in address;

        uv_ip4_addr("127.0.0.1", port, &address);
        uv_tcp_init(&n->loop, &p->tcp);
        p->stream.data = p->connect.data = p;
        assert_int_equal(uv_tcp_connect(&p->connect, &p->tcp, (struct sockaddr *)&address, peer_on_connect), 0);
        UNTIL(n, p->connected || p->error);
        assert_int_equal(p->error, 0);
        return p;
}

static inline void peer_on_written(uv_write_t *request, int status) {
        struct peer *p = request->data;

        if (status < 0 && status != UV_ECANCELED)
                p->error = status;
        free(request);
}

static inline void peer_send(struct peer *p, struct slice s) {
        uv_write_t *request = malloc(sizeof(*request) + s.len);
        uv_buf_t bytes = uv_buf_init((char *)(request + 1), (unsigned)s.len);

        memcpy(request + 1, s.ptr, s.len);
        request->data = p;
        p->sent += s.len;
        assert_int_equal(uv_write(request, &p->stream, &bytes, 1, peer_on_written), 0);
}

static inline void peer_say(struct peer *p, const char *text) {
        peer_send(p, slice_str(text));
}

static inline bool peer_got(const struct peer *p, const char *text) {
        return slice_find_slice(buf_slice(&p->in), slice_str(text), 0) < p->in.len;
}

static inline size_t peer_count(const struct peer *p, const char *text) {
        size_t count = 0;

        for (size_t at = 0; (at = slice_find_slice(buf_slice(&p->in), slice_str(text), at)) < p->in.len; at++)
                count++;
        return count;
}

static inline bool peer_ended(const struct peer *p) {
        return p->eof || p->error;
}

static inline void peer_on_closed(uv_handle_t *handle) {
        struct peer *p = handle->data;

        p->closed = true;
}

/* The way to leave: FIN, or RST. */
static inline void peer_leave(struct net *n, struct peer *p, bool reset) {
        if (reset)
                uv_tcp_close_reset(&p->tcp, peer_on_closed);
        else
                uv_close((uv_handle_t *)&p->stream, peer_on_closed);
        UNTIL(n, p->closed);
        buf_free(&p->in);
        free(p);
}

/* ---- a listener of plain peers -------------------------------------------------------------------------------- */

#define BACKEND_PEERS 16

struct backend {
        uv_tcp_t tcp;
        struct peer *peers[BACKEND_PEERS];
        size_t count;
        uint16_t port;
        bool closed;
};

static inline void backend_on_connection(uv_stream_t *stream, int status) {
        struct backend *b = stream->data;
        struct peer *p = peer_new();

        assert_true(b->count < BACKEND_PEERS);
        uv_tcp_init(stream->loop, &p->tcp);
        p->stream.data = p;
        assert_int_equal(uv_accept(stream, &p->stream), 0);
        peer_read(p);
        b->peers[b->count++] = p;
}

static inline void backend_open(struct net *n, struct backend *b) {
        struct sockaddr_in address;
        int len = sizeof(address);

        *b = (struct backend){0};
        uv_ip4_addr("127.0.0.1", 0, &address);
        uv_tcp_init(&n->loop, &b->tcp);
        b->tcp.data = b;
        assert_int_equal(uv_tcp_bind(&b->tcp, (struct sockaddr *)&address, 0), 0);
        assert_int_equal(uv_listen((uv_stream_t *)&b->tcp, 16, backend_on_connection), 0);
        uv_tcp_getsockname(&b->tcp, (struct sockaddr *)&address, &len);
        b->port = ntohs(address.sin_port);
}

static inline void backend_on_closed(uv_handle_t *handle) {
        struct backend *b = handle->data;

        b->closed = true;
}

static inline void backend_close(struct net *n, struct backend *b) {
        uv_close((uv_handle_t *)&b->tcp, backend_on_closed);
        UNTIL(n, b->closed);
        for (size_t i = 0; i < b->count; i++)
                if (b->peers[i])
                        peer_leave(n, b->peers[i], false);
}

/* The peer at the other end of connection `i` leaves. */
static inline void backend_drop(struct net *n, struct backend *b, size_t i, bool reset) {
        peer_leave(n, b->peers[i], reset);
        b->peers[i] = NULL;
}

/* ---- an application on the server ----------------------------------------------------------------------------- */

struct app {
        struct net *net;
        struct http_server *server;
        uint16_t port;
        unsigned requests, ended;
        int last_end;            /* enum http_end */
        struct http_exchange *x; /* of /park and /stream, until its end */
        struct buf body;         /* of /park */
        unsigned body_ends, writables;
        bool drained, want_body;
        const char *peer;
};

static inline void app_on_end(struct http_exchange *x, enum http_end end, void *user) {
        struct app *a = user;

        a->ended++;
        a->last_end = (int)end;
        if (a->x == x)
                a->x = NULL;
        /* The request is still readable here. */
        assert_true(http_exchange_request(x)->target.len > 0);
        assert_true(http_send(x, NULL, 0) < 0);
}

static inline void app_on_body(struct http_exchange *x, struct slice data, void *user) {
        struct app *a = user;

        buf_add(&a->body, data);
}

static inline void app_on_body_end(struct http_exchange *x, void *user) {
        struct app *a = user;

        a->body_ends++;
}

static inline void app_on_writable(struct http_exchange *x, void *user) {
        struct app *a = user;

        a->writables++;
}

/* As a handler should: what cannot be answered, for want of memory, is aborted. */
static inline void app_answer(struct http_exchange *x, int status, struct http_fields fields, struct slice body) {
        if (http_respond(x, status, fields, body) < 0)
                http_exchange_abort(x);
}

static inline void app_on_all(struct http_exchange *x, struct slice body, void *user) {
        struct http_field type = {SLICE_LIT("Content-Type"), SLICE_LIT("text/plain")};

        app_answer(x, 200, (struct http_fields){&type, 1}, body);
}

/* /hello answers at once; /echo gathers the body and sends it back; /park leaves everything to the test; /ignore parks
 * without an interest in the body. */
static inline void app_on_request(void *context, struct http_exchange *x) {
        struct app *a = context;
        struct slice path = http_exchange_request(x)->path;
        struct http_exchange_callbacks callbacks = {.on_end = app_on_end, .on_writable = app_on_writable};

        a->requests++;
        if (slice_is(path, "/park")) {
                callbacks.on_body = app_on_body;
                callbacks.on_body_end = app_on_body_end;
        }
        if (slice_is(path, "/park") || slice_is(path, "/ignore"))
                a->x = x;
        http_exchange_watch(x, &callbacks, a);
        if (slice_is(path, "/hello"))
                app_answer(x, 200, (struct http_fields){0}, SLICE_LIT("hello"));
        else if (slice_is(path, "/echo"))
                http_exchange_collect(x, app_on_all);
        else if (slice_is(path, "/peer"))
                app_answer(x, 200, (struct http_fields){0}, slice_str(http_exchange_peer(x)));
        else if (!a->x)
                app_answer(x, 404, (struct http_fields){0}, SLICE_LIT("nothing here"));
}

static inline void app_open(struct app *a, struct net *n, struct http_server_options options, const char *host) {
        struct http_listen at = {.host = host};
        struct error e = {0};

        *a = (struct app){.net = n, .last_end = -1};
        options.on_request = app_on_request;
        options.context = a;
        assert_int_equal(http_server_new(&n->loop, &options, &a->server, &e), 0);
        if (http_server_listen(a->server, &at, &a->port, &e) < 0)
                fail_msg("%s", e.text);
}

static inline void app_on_drained(void *context) {
        struct app *a = context;

        a->drained = true;
}

static inline void app_close(struct app *a) {
        http_server_drain(a->server, 0, app_on_drained, a);
        UNTIL(a->net, a->drained);
        http_server_free(a->server);
        buf_free(&a->body);
}

/* A memory of `len` bytes 'x', made once. */
static inline struct slice many(size_t len) {
        static char *bytes;
        static size_t size;

        if (len > size) {
                free(bytes);
                bytes = malloc(len);
                memset(bytes, 'x', len);
                size = len;
        }
        return slice_of(bytes, len);
}
