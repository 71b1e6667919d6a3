/* http.h - HTTP/1.1 for gateway, engine and bench: a server, a pooled client, and the codec that both stand on.
 *
 * The codec (http/codec.h, http/sse.h) is sans-I/O: bytes in, events out. Server and client run it on libuv loops, one
 * loop per thread; every object belongs to the thread of its loop and is touched by no other. Time limits, size limits
 * and their answers are named in struct http_limits, the reason for each default in server.c.
 *
 * Rules that hold everywhere (RFC 9112 unless said):
 *  - Every message is re-framed: what goes out has our own Content-Length or chunked coding, never the peer's bytes.
 *    Hop-by-hop fields (RFC 9110 7.6.1) do not pass; http_field_is_hop_by_hop() tells.
 *  - One request is in flight per connection. Pipelined bytes wait (at most http_limits.pipeline_bytes; then the
 *    connection is closed after the current answer).
 *  - While a request is being worked on the peer is always read, so that FIN and RST are seen at once in every state.
 *  - Every exchange and every call ends in exactly one final callback, whatever happened. */
#pragma once
#include "base/arena.h"
#include "base/buf.h"
#include "base/error.h"
#include "base/log.h"
#include "base/slice.h"
#include <uv.h>

/* ---- heads ---------------------------------------------------------------------------------------------------- */

struct http_field {
        struct slice name, value; /* value without surrounding white space */
};

struct http_fields {
        const struct http_field *items;
        size_t count;
};

/* The first field of that name in any case, or NULL. */
const struct http_field *http_field_find(struct http_fields fields, const char *name);
/* Its value, or SLICE_NONE. */
struct slice http_field_value(struct http_fields fields, const char *name);
/* Does Authorization say "Bearer KEY" (the scheme in any case, one space)? The time it takes does not tell how much of the
 * key is right. */
bool http_bearer_is(struct http_fields fields, const char *key);
/* Connection, Keep-Alive, Proxy-*, TE, Trailer, Transfer-Encoding, Upgrade, and those that Connection names. */
bool http_field_is_hop_by_hop(struct http_fields fields, struct slice name);
/* A valid field value: no CR, LF, NUL or other control character but tab (RFC 9110 5.5). */
bool http_value_is_safe(struct slice value);

enum http_method {
        HTTP_METHOD_GET,
        HTTP_METHOD_HEAD,
        HTTP_METHOD_POST,
        HTTP_METHOD_PUT,
        HTTP_METHOD_DELETE,
        HTTP_METHOD_OPTIONS,
        HTTP_METHOD_PATCH,
        HTTP_METHOD_OTHER, /* known to the parser, meant for nobody here: answer 405 or 501 */
};

#define HTTP_LENGTH_NONE    (-1) /* no body */
#define HTTP_LENGTH_CHUNKED (-2) /* a body of unknown length */

struct http_request_head {
        enum http_method method;
        struct slice method_text;
        struct slice target;      /* as sent, origin form (absolute form is reduced to it) */
        struct slice path, query; /* the target's parts; no percent-decoding is done */
        struct http_fields fields;
        int64_t content_length; /* or HTTP_LENGTH_* */
        bool http10;
};

struct http_response_head {
        int status;
        struct http_fields fields;
        int64_t content_length; /* or HTTP_LENGTH_* */
};

/* ---- limits --------------------------------------------------------------------------------------------------- */

/* 0 in a member takes the default named in server.c, which also says why it is so. */
struct http_limits {
        size_t head_bytes;     /* request line and fields: 32 KiB, then 431 (414 when the target alone is longer) */
        size_t head_fields;    /* 100, then 431 */
        size_t body_bytes;     /* 64 MiB, then 413; at once when Content-Length says so */
        size_t pipeline_bytes; /* 16 KiB */
        size_t connections;    /* 0: as many as the process's descriptors allow; beyond it accept pauses */
        unsigned head_ms;      /* from the first byte of a head to its end, total, not idle: 10 s, then 408 and close */
        unsigned body_idle_ms; /* for each 4 KiB of a body that is due, or the rest of it: 30 s, then 408 and close */
        unsigned idle_ms;      /* a kept-alive connection without request: 75 s, then close */
        unsigned stall_ms;     /* a client that takes no byte of what is queued: 60 s, then the exchange is aborted */
        size_t write_high, write_low; /* queued bytes at which a writer is told to stop, and to go on: 256 and 64 KiB */
};

/* ---- server --------------------------------------------------------------------------------------------------- */

struct http_server;
struct http_exchange; /* one request and its answer */

struct http_tls_files {
        const char *cert, *key; /* PEM; both or neither */
        const char *client_ca;  /* require client certificates signed by this; needs both */
};

struct http_server_options {
        struct http_limits limits;
        struct http_tls_files tls;
        const struct log *log;
        /* The head is complete; the body follows in callbacks. Called once per exchange; must either answer at once or
         * set callbacks with http_exchange_watch(). */
        void (*on_request)(void *context, struct http_exchange *x);
        void *context;
};

/* A server without listeners on `loop`. Returns 0, -ENOMEM, or -EINVAL with a text (TLS files). */
int http_server_new(
    uv_loop_t *loop, const struct http_server_options *options, struct http_server **ret_server, struct error *e);

/* Listen on host:port ("::" and "0.0.0.0" are fine, port 0 picks one) or on "unix:PATH" (a stale socket file is
 * replaced, a live one is -EADDRINUSE). May be called several times. The text names address and reason.
 * reuse_port: several loops listen on one address. */
struct http_listen {
        const char *host;
        uint16_t port;
        bool reuse_port;
};
int http_server_listen(struct http_server *s, const struct http_listen *at, uint16_t *ret_port, struct error *e);

/* Stop accepting, answer what is in flight with Connection: close, close idle connections. `on_drained` is called once
 * when the last connection is gone, or after `deadline_ms`, when those left are aborted (their exchanges end with
 * HTTP_END_ABORTED first). The server is still to be freed. */
void http_server_drain(struct http_server *s, unsigned deadline_ms, void (*on_drained)(void *context), void *context);
/* Only after drain has called back, or before anything listened. */
void http_server_free(struct http_server *s);
size_t http_server_connections(const struct http_server *s);

enum http_end {
        HTTP_END_DONE,        /* the answer was written out completely */
        HTTP_END_CLIENT_GONE, /* FIN, RST or a TLS close before that */
        HTTP_END_STALLED,     /* a deadline of struct http_limits ran out */
        HTTP_END_BAD_BODY,    /* the request body broke framing or a limit; a status was sent when still possible */
        HTTP_END_ABORTED,     /* http_exchange_abort() or a drain past its deadline */
};

struct http_exchange_callbacks {
        void (*on_body)(struct http_exchange *x, struct slice data, void *user); /* data valid during the call */
        void (*on_body_end)(struct http_exchange *x, void *user);
        void (*on_writable)(struct http_exchange *x, void *user); /* below write_low after http_send said 1 */
        void (*on_end)(struct http_exchange *x, enum http_end end, void *user); /* once; x is gone after it */
};

const struct http_request_head *http_exchange_request(const struct http_exchange *x); /* valid until on_end returns */
/* Peer address as text, such as "127.0.0.1:4711" or "unix". */
const char *http_exchange_peer(const struct http_exchange *x);
uv_loop_t *http_exchange_loop(const struct http_exchange *x);

/* Set the callbacks (copied; members may be NULL). Without an on_body the body is read and dropped. */
void http_exchange_watch(struct http_exchange *x, const struct http_exchange_callbacks *callbacks, void *user);
/* Gather the whole body (bounded by limits.body_bytes) and hand it over once, also an empty one; valid until on_end returns.
 * Replaces on_body and on_body_end. */
void http_exchange_collect(
    struct http_exchange *x, void (*on_all)(struct http_exchange *x, struct slice body, void *user));
/* From on_all on: the gathered body becomes the caller's, who frees it with buf_free(). The exchange has none then, so that a
 * body that is read by somebody else, or no more needed, is not kept until the answer's end. */
struct buf http_exchange_take_body(struct http_exchange *x);
/* Stop and go on reading the request body (back-pressure). FIN and RST are still seen while paused. */
void http_exchange_pause(struct http_exchange *x);
void http_exchange_resume(struct http_exchange *x);

/* A whole answer at once. Content-Length is set here; `fields` are the others (Content-Type …). Body and fields are
 * copied if they cannot be written at once. HEAD gets the head alone. -EPIPE when the client has gone (on_end follows
 * or was called), -EALREADY when an answer was begun, -EINVAL for an unsafe field. */
int http_respond(struct http_exchange *x, int status, struct http_fields fields, struct slice body);
/* An answer in pieces: the head is held back until the first http_send() or http_finish(), and goes out in one write
 * with it. content_length is a number or HTTP_LENGTH_CHUNKED (an HTTP/1.0 client gets it until close). */
int http_begin(struct http_exchange *x, int status, struct http_fields fields, int64_t content_length);
/* Queue bytes. Returns 0, 1 (queued, but above write_high: wait for on_writable), or as http_respond. */
int http_send(struct http_exchange *x, const struct slice *parts, size_t count);
int http_finish(struct http_exchange *x);
/* Close without finishing the answer; the client sees a truncated message. on_end follows. */
void http_exchange_abort(struct http_exchange *x);

/* ---- client --------------------------------------------------------------------------------------------------- */

struct http_client; /* a pool of connections to any number of endpoints, for one loop */
struct http_call;   /* one request to an endpoint and its answer */

/* Where to connect. Compare by value of `key`. */
struct http_endpoint {
        struct slice key;  /* canonical: "http://[::1]:8000", "https://host:443", "unix:/run/x.sock" */
        struct slice host; /* without brackets; the path for unix */
        uint16_t port;
        bool tls, is_unix;
};
/* Parse "http://host:port", "https://…", "host:port" (http), "unix:PATH"; a path after the authority is given out in
 * *ret_path (may be NULL). Everything lives in `arena`. Returns 0 or -EINVAL with a text. */
int http_endpoint_parse(struct arena *arena, struct slice text, struct http_endpoint *ret_endpoint,
    struct slice *ret_path, struct error *e);

struct http_client_options {
        size_t idle_per_endpoint; /* kept-alive connections, 0: 64 */
        unsigned idle_ms;         /* closed after so long unused, 0: 50 s (below uvicorn's and our 75 s) */
        size_t head_bytes;        /* of an answer, 0: 64 KiB */
        bool tls_verify_off;
        const char *tls_ca; /* PEM file, NULL: the system's */
        const struct log *log;
};
int http_client_new(
    uv_loop_t *loop, const struct http_client_options *options, struct http_client **ret_client, struct error *e);
/* Abort what is in flight (final callbacks are called), close all connections, then call back. */
void http_client_close(struct http_client *c, void (*on_closed)(void *context), void *context);
void http_client_free(struct http_client *c); /* only after on_closed */

enum http_failure {
        HTTP_OK,               /* the whole answer is here */
        HTTP_FAIL_RESOLVE,     /* name not found */
        HTTP_FAIL_CONNECT,     /* refused, unreachable, TLS, or connect_ms ran out */
        HTTP_FAIL_SEND,        /* reset while sending, before any byte of the answer */
        HTTP_FAIL_NO_RESPONSE, /* closed before any byte of the answer */
        HTTP_FAIL_TIMEOUT,     /* a deadline of the call ran out */
        HTTP_FAIL_PROTOCOL,    /* the answer is not HTTP, or breaks a limit */
        HTTP_FAIL_TRUNCATED,   /* closed or reset in the middle of the answer */
        HTTP_FAIL_ABORTED,     /* http_call_abort() */
};
const char *http_failure_text(enum http_failure f);

struct http_call_callbacks {
        void (*on_connected)(struct http_call *call, bool reused, void *user);                      /* optional */
        void (*on_head)(struct http_call *call, const struct http_response_head *head, void *user); /* never a 1xx */
        void (*on_body)(struct http_call *call, struct slice data, void *user); /* data valid during the call */
        void (*on_writable)(struct http_call *call, void *user);                /* for streamed request bodies */
        /* Once, always, never from inside http_call_start(). `why` is a text for people ("connect to d0:9000:
         * connection refused"). The call is gone when it returns. */
        void (*on_end)(struct http_call *call, enum http_failure failure, const char *why, void *user);
};

struct http_request {
        enum http_method method;
        struct slice target;       /* "/v1/completions?x=1" */
        struct http_fields fields; /* without Host, Content-Length, Transfer-Encoding, Connection: set here */
        const struct slice *body;  /* parts, sent in order; borrowed until on_end */
        size_t body_parts;
        bool streamed; /* more body follows by http_call_send()/http_call_send_end(): chunked coding */
        struct http_deadlines {
                unsigned connect_ms, /* 0: 5 s */
                    head_ms,         /* from the request written out to the answer's head, and between pieces of the
                                      * request while it is being written; 0: none */
                    idle_ms,         /* between bytes of the answer's body; 0: none */
                    total_ms;        /* 0: none */
        } deadlines;
        /* A kept-alive connection may have been closed by the peer just as it was taken: when it dies before any byte of
         * the answer, the request is sent once more on a fresh connection, if the body is not streamed. This is safe
         * for requests that may run twice; false switches it off for those that may not. */
        bool retry_stale;
};

/* Start a call. Everything in `request` but the bytes of the body parts is copied. Returns 0 and the call, -ENOMEM, -EINVAL
 * (method, target or a field; TLS cannot be set up: logged), -ESHUTDOWN (after http_client_close). */
int http_call_start(struct http_client *c, const struct http_endpoint *to, const struct http_request *request,
    const struct http_call_callbacks *callbacks, void *user, struct http_call **ret_call);
int http_call_send(struct http_call *call, const struct slice *parts, size_t count); /* as http_send */
int http_call_send_end(struct http_call *call);
/* Stop and go on reading the answer. A reset is still noticed while paused, at the latest on resume. */
void http_call_pause(struct http_call *call);
void http_call_resume(struct http_call *call);
/* Close the connection under the call at once; the peer sees the disconnect. on_end follows (HTTP_FAIL_ABORTED), not
 * from inside this function. */
void http_call_abort(struct http_call *call);
