/* conn.h - one connected byte stream (TCP, unix socket, TLS over either) on a loop: reads as they come, writes at once and
 * queues what does not fit. Server and client stand on it. Private to http/.
 *
 * The socket is polled (uv_poll_t) rather than wrapped in a uv_stream_t, for three reasons: a hang-up is seen while
 * reading is paused (EPOLLRDHUP); reads go into one buffer per loop without a callback to ask for it; and nothing is
 * queued that this room does not count.
 *
 * Callbacks come from the loop only, never from inside a call to http_conn_*(). After http_conn_close() none comes but
 * on_closed, from the loop, after which the memory may go. */
#pragma once
#include "http/io.h"
#include <sys/socket.h>
#include <sys/uio.h>

struct http_conn;
struct http_tls;

struct http_conn_ops {
        void (*on_ready)(struct http_conn *c); /* connected, and the TLS handshake is done; clients only */
        void (*on_data)(struct http_conn *c, struct slice data); /* valid during the call */
        /* No more will be read: 0 for FIN (or a TLS close), else a negative errno; -EPROTO for a TLS failure, whose
         * text is in http_conn_tls_error(). */
        void (*on_eof)(struct http_conn *c, int error);
        /* The peer hung up while reading is paused; `error` as in on_eof, but unread bytes may still be there. */
        void (*on_hangup)(struct http_conn *c, int error);
        void (*on_sent)(struct http_conn *c); /* queued bytes have left; c->out_bytes says how many remain */
        void (*on_write_error)(struct http_conn *c, int error); /* queued bytes were dropped */
        void (*on_closed)(struct http_conn *c);
};

struct http_conn {
        uv_poll_t poll;
        struct http_io *io;
        const struct http_conn_ops *ops;
        struct http_tls *tls; /* NULL: plain */
        struct http_chunk *out_first, *out_last;
        size_t out_bytes;
        int fd;
        uint8_t events; /* polled for now */
        bool connecting, ready, reading, hung_up, closing, write_broken, want_sent;
};

/* Take over a connected socket (non-blocking, close-on-exec). `tls` becomes the connection's, also on failure. Reading is
 * on. Returns 0 or a negative errno; then c is untouched but for being unusable and the socket is closed. */
int http_conn_init(
    struct http_conn *c, struct http_io *io, const struct http_conn_ops *ops, int fd, struct http_tls *tls);
/* Make a socket and begin to connect; on_ready or on_eof follows. Returns 0 or a negative errno. */
int http_conn_connect(struct http_conn *c, struct http_io *io, const struct http_conn_ops *ops,
    const struct sockaddr *address, socklen_t address_len, struct http_tls *tls);

void http_conn_set_reading(struct http_conn *c, bool reading);

/* Write now what the socket takes and queue a copy of the rest. Returns 0 or a negative errno (the peer is gone, memory is
 * out); then nothing more can be written, but reading goes on. `parts` is used up. */
int http_conn_write(struct http_conn *c, struct iovec *parts, int count);
/* Write only what the socket takes now; nothing while bytes are queued. Returns how many bytes were taken, or a negative
 * errno. When it took less than all, on_sent tells when to go on. */
ssize_t http_conn_try_write(struct http_conn *c, const struct iovec *parts, int count);
/* Ask for one on_sent when the socket takes bytes again; for what http_conn_try_write() did not take. */
void http_conn_want_sent(struct http_conn *c);
/* No more will be written (FIN, TLS close_notify); the queue is empty. */
void http_conn_shutdown(struct http_conn *c);

void http_conn_close(struct http_conn *c);
/* Close so that the peer sees a reset, not an orderly end. */
void http_conn_reset(struct http_conn *c);

const char *http_conn_tls_error(const struct http_conn *c); /* "" without */
