/* server.h - what server.c (listeners, accepting, draining) and exchange.c (one connection's requests) share.
 * Private to http/. */
#pragma once
#include "base/buf.h"
#include "http/codec.h"
#include "http/conn.h"
#include "http/tls.h"

/* A connection that we end while the peer may still be sending is read for a while after our FIN, so that the status is not
 * lost to the reset that unread bytes cause (RFC 9112 9.6). */
#define HTTP_LINGER_MS    2000
#define HTTP_LINGER_BYTES (8u << 20)
/* What is left of a request body is read and dropped to keep a connection, if it is at most this. */
#define HTTP_DISCARD_BYTES (64u << 10)
/* What a body has to bring within each body_idle_ms. A deadline for single bytes would let a client hold a connection for
 * months with one body. */
#define HTTP_BODY_PACE_BYTES 4096
/* Connections kept as memory for the next ones. */
#define HTTP_SPARE_EXCHANGES 256

struct http_listener {
        uv_poll_t poll;
        struct list link;
        struct http_server *server;
        int fd;
        bool is_unix;
        char path[108]; /* of a unix socket */
        uint64_t device, inode;
};

struct http_server {
        struct http_io io;
        struct http_server_options options; /* limits filled in */
        struct http_parser_limits parser_limits;
        struct http_tls_context *tls;
        struct list listeners, exchanges, spare;
        size_t connections, count_spare, open_handles;
        struct wheel_timer accept_timer, drain_timer;
        uint64_t warn_at; /* no word about pauses in accepting before this */
        struct http_task drained_task;
        void (*on_drained)(void *context);
        void *drained_context;
        bool draining, drained, accept_paused;
};

enum exchange_phase {
        PHASE_IDLE,    /* between requests */
        PHASE_HEAD,    /* a head has begun */
        PHASE_REQUEST, /* the handler has the request */
        PHASE_DISCARD, /* answered; the rest of the body is read and dropped */
        PHASE_LINGER,  /* the last answer is written or being written; input is dropped */
};

enum answer_state { ANSWER_NONE, ANSWER_BEGUN, ANSWER_DONE };

#define NOT_ENDING (-1)

/* A connection and, as only one is in flight at a time, its exchange. */
struct http_exchange {
        struct http_conn conn;
        struct http_server *server;
        struct list link;
        struct wheel_timer timer;
        struct http_task task;
        struct http_parser parser;
        struct arena arena; /* of the request in flight; returned to the loop's spares between requests */
        struct http_exchange_callbacks callbacks;
        void (*on_all)(struct http_exchange *x, struct slice body, void *user);
        void *user;
        struct buf body;       /* http_exchange_collect() */
        struct buf held;       /* input that waits: pipelined, or read when the handler paused */
        struct slice head_out; /* of http_begin(), until the first bytes go with it */
        int64_t answer_left;   /* bytes that Content-Length still promises, or HTTP_LENGTH_* */
        uint64_t read_deadline, write_deadline;
        size_t lingered, pace;
        union {
                struct sockaddr any;
                struct sockaddr_in v4;
                struct sockaddr_in6 v6;
        } peer;
        uint8_t phase, answer;
        int8_t ending; /* enum http_end, or NOT_ENDING */
        bool busy;     /* within exchange_turn(): calls of the handler leave the rest to it */
        bool keep, body_done, paused, wants_writable, continue_sent, is_head, shut, overflowed;
};

/* server.c */
void http_server_forget(struct http_exchange *x); /* closed: give the memory back */
bool http_server_is_draining(const struct http_server *s);

/* exchange.c */
/* A connection that was accepted: `fd` becomes the exchange's, also on failure. Returns 0 or a negative errno. */
int http_exchange_open(struct http_server *s, struct http_exchange *x, int fd, const struct sockaddr *peer);
/* For draining: close when nothing is in flight; end what is in flight with HTTP_END_ABORTED and close. From the loop. */
void http_exchange_close_if_idle(struct http_exchange *x);
void http_exchange_break(struct http_exchange *x);

/* exchange.c, for answer.c */
/* Write or queue; the stall deadline begins when bytes are queued. As http_conn_write(). */
int http_exchange_write(struct http_exchange *x, struct iovec *parts, int count);
/* The handler has changed something: act on it in the turn that is running, or else in the next one. */
void http_exchange_wake(struct http_exchange *x);
/* Set interest and deadline by the exchange's state, and say 100 Continue when the body is wanted. */
void http_exchange_settle(struct http_exchange *x);
bool http_exchange_wants_body(const struct http_exchange *x);
/* What is left of the body is worth reading to keep the connection. */
bool http_exchange_body_is_short(const struct http_exchange *x);
