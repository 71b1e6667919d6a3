/* conn.c - see conn.h. */
#include "http/conn.h"
#include "http/tls.h"
#include <assert.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdlib.h>
#include <unistd.h>

/* Reads per wake-up while the buffer comes back full, before other connections get their turn. */
#define READS_PER_EVENT 4
/* Chunks gathered for one write. */
#define WRITE_PARTS 16

static void on_poll(uv_poll_t *poll, int status, int events);

static void update_events(struct http_conn *c) {
        int events = 0;

        if (c->closing)
                return;
        if (c->connecting || c->out_bytes || c->want_sent)
                events |= UV_WRITABLE;
        if (c->reading && !c->connecting)
                events |= UV_READABLE;
        /* Once seen, a hang-up would wake the loop for ever. */
        if (!c->hung_up && !c->connecting)
                events |= UV_DISCONNECT;
        if (events == c->events)
                return;
        c->events = (uint8_t)events;
        if (events)
                uv_poll_start(&c->poll, events, on_poll);
        else
                uv_poll_stop(&c->poll);
}

static int conn_init(
    struct http_conn *c, struct http_io *io, const struct http_conn_ops *ops, int fd, struct http_tls *tls) {
        int r = uv_poll_init(io->loop, &c->poll, fd);

        if (r < 0) {
                http_tls_free(tls);
                close(fd);
                return r;
        }
        c->io = io;
        c->ops = ops;
        c->tls = tls;
        c->out_first = c->out_last = NULL;
        c->out_bytes = 0;
        c->fd = fd;
        c->events = 0;
        c->connecting = c->ready = c->hung_up = c->closing = c->write_broken = c->want_sent = false;
        c->reading = true;
        c->poll.data = c;
        return 0;
}

int http_conn_init(
    struct http_conn *c, struct http_io *io, const struct http_conn_ops *ops, int fd, struct http_tls *tls) {
        int r = conn_init(c, io, ops, fd, tls);

        if (r < 0)
                return r;
        c->ready = !tls;
        update_events(c);
        return 0;
}

int http_conn_connect(struct http_conn *c, struct http_io *io, const struct http_conn_ops *ops,
    const struct sockaddr *address, socklen_t address_len, struct http_tls *tls) {
        int fd = socket(address->sa_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0), on = 1, r;

        if (fd < 0) {
                r = -errno;
                http_tls_free(tls);
                return r;
        }
        /* Every write is a whole event or message: nothing is gained by waiting (Nagle). Not for unix sockets. */
        if (address->sa_family != AF_UNIX)
                setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
        if (connect(fd, address, address_len) < 0 && errno != EINPROGRESS) {
                /* EAGAIN: a unix listener's queue is full. */
                r = errno == EAGAIN ? -ECONNREFUSED : -errno;
                http_tls_free(tls);
                close(fd);
                return r;
        }
        r = conn_init(c, io, ops, fd, tls);
        if (r < 0)
                return r;
        c->connecting = true;
        update_events(c);
        return 0;
}

void http_conn_set_reading(struct http_conn *c, bool reading) {
        if (c->closing || c->reading == reading)
                return;
        c->reading = reading;
        update_events(c);
}

/* ---- writing -------------------------------------------------------------------------------------------------- */

static size_t parts_length(const struct iovec *parts, int count) {
        size_t len = 0;

        for (int i = 0; i < count; i++)
                len += parts[i].iov_len;
        return len;
}

/* One write of what the socket takes. Returns the bytes taken, 0 when it takes none now, or a negative errno. */
static ssize_t socket_write(struct http_conn *c, const struct iovec *parts, int count) {
        struct msghdr message = {.msg_iov = (struct iovec *)parts, .msg_iovlen = (size_t)count};
        ssize_t n;

        do {
                n = count == 1 ? send(c->fd, parts[0].iov_base, parts[0].iov_len, MSG_NOSIGNAL)
                               : sendmsg(c->fd, &message, MSG_NOSIGNAL);
        } while (n < 0 && errno == EINTR);
        if (n >= 0)
                return n;
        return errno == EAGAIN || errno == EWOULDBLOCK ? 0 : -errno;
}

static int enqueue(struct http_conn *c, const void *bytes, size_t len) {
        const char *from = bytes;

        while (len) {
                struct http_chunk *last = c->out_last;
                size_t room = last ? last->size - last->to : 0, take = len < room ? len : room;

                if (!take) {
                        struct http_chunk *fresh = http_io_chunk(c->io, len);

                        if (!fresh)
                                return -ENOMEM;
                        if (last)
                                last->next = fresh;
                        else
                                c->out_first = fresh;
                        c->out_last = fresh;
                        continue;
                }
                memcpy(last->data + last->to, from, take);
                last->to += (uint32_t)take;
                c->out_bytes += take;
                from += take;
                len -= take;
        }
        return 0;
}

/* Drop `len` written bytes off the front of the queue. */
static void dequeue(struct http_conn *c, size_t len) {
        c->out_bytes -= len;
        while (c->out_first) {
                struct http_chunk *first = c->out_first;
                size_t there = first->to - first->from, take = len < there ? len : there;

                first->from += (uint32_t)take;
                len -= take;
                if (first->from < first->to)
                        return;
                c->out_first = first->next;
                if (!c->out_first)
                        c->out_last = NULL;
                http_io_chunk_free(c->io, first);
        }
}

static void drop_queue(struct http_conn *c) {
        dequeue(c, c->out_bytes);
}

static int plain_write(struct http_conn *c, struct iovec *parts, int count) {
        ssize_t taken = 0;
        int r = 0;

        if (!c->out_bytes) {
                taken = socket_write(c, parts, count);
                if (taken < 0) {
                        c->write_broken = true;
                        return (int)taken;
                }
        }
        for (int i = 0; i < count && r == 0; i++) {
                size_t skip = (size_t)taken < parts[i].iov_len ? (size_t)taken : parts[i].iov_len;

                taken -= (ssize_t)skip;
                if (skip < parts[i].iov_len)
                        r = enqueue(c, (const char *)parts[i].iov_base + skip, parts[i].iov_len - skip);
        }
        if (r < 0)
                c->write_broken = true;
        update_events(c);
        return r;
}

/* Send what TLS has made of plain bytes, of the handshake, or of a shutdown. */
static int tls_flush(struct http_conn *c) {
        struct slice cipher = http_tls_pending(c->tls);
        struct iovec part = {(void *)cipher.ptr, cipher.len};
        int r;

        if (!cipher.len)
                return 0;
        r = plain_write(c, &part, 1);
        http_tls_sent(c->tls);
        return r;
}

static int tls_write(struct http_conn *c, const struct iovec *parts, int count) {
        int r = 0;

        for (int i = 0; i < count && r == 0; i++)
                if (parts[i].iov_len)
                        r = http_tls_write(c->tls, slice_of(parts[i].iov_base, parts[i].iov_len));
        if (r == 0)
                r = tls_flush(c);
        if (r < 0)
                c->write_broken = true;
        return r;
}

int http_conn_write(struct http_conn *c, struct iovec *parts, int count) {
        if (c->closing || c->write_broken)
                return -EPIPE;
        return c->tls ? tls_write(c, parts, count) : plain_write(c, parts, count);
}

ssize_t http_conn_try_write(struct http_conn *c, const struct iovec *parts, int count) {
        size_t len = parts_length(parts, count);
        ssize_t taken;

        if (c->closing || c->write_broken)
                return -EPIPE;
        if (c->out_bytes || !len)
                return 0;
        if (c->tls) {
                struct iovec part = parts[0];
                int r;

                /* A read buffer's worth at a time keeps the queue short. */
                for (int i = 1; part.iov_len == 0 && i < count; i++)
                        part = parts[i];
                if (part.iov_len > HTTP_IO_READ_BYTES)
                        part.iov_len = HTTP_IO_READ_BYTES;
                r = tls_write(c, &part, 1);
                return r < 0 ? r : (ssize_t)part.iov_len;
        }
        taken = socket_write(c, parts, count);
        if (taken < 0)
                c->write_broken = true;
        return taken;
}

void http_conn_want_sent(struct http_conn *c) {
        c->want_sent = true;
        update_events(c);
}

static void flush(struct http_conn *c) {
        struct iovec parts[WRITE_PARTS];
        int count = 0;
        ssize_t n;

        if (!c->out_bytes && c->want_sent) {
                c->want_sent = false;
                c->ops->on_sent(c);
                update_events(c);
                return;
        }
        for (struct http_chunk *k = c->out_first; k && count < WRITE_PARTS; k = k->next)
                parts[count++] = (struct iovec){k->data + k->from, k->to - k->from};
        if (count == 0)
                return;
        n = socket_write(c, parts, count);
        if (n < 0) {
                c->write_broken = true;
                drop_queue(c);
                update_events(c);
                c->ops->on_write_error(c, (int)n);
                return;
        }
        if (n == 0)
                return;
        dequeue(c, (size_t)n);
        update_events(c);
        c->ops->on_sent(c);
}

void http_conn_shutdown(struct http_conn *c) {
        if (c->closing || c->write_broken)
                return;
        if (c->tls) {
                http_tls_shutdown(c->tls);
                tls_flush(c);
        }
        shutdown(c->fd, SHUT_WR);
}

/* ---- reading -------------------------------------------------------------------------------------------------- */

static void eof(struct http_conn *c, int error) {
        c->reading = false;
        c->hung_up = true;
        update_events(c);
        c->ops->on_eof(c, error);
}

/* Cipher bytes have come. */
static void on_cipher(struct http_conn *c, struct slice cipher) {
        ssize_t n = http_tls_put(c->tls, cipher);

        if (n == 0 && !c->ready) {
                n = http_tls_handshake(c->tls);
                /* Also a failed handshake has something to say: the alert. */
                if (tls_flush(c) < 0 && n >= 0)
                        n = -EPIPE;
                if (n > 0) {
                        c->ready = true;
                        if (c->ops->on_ready)
                                c->ops->on_ready(c);
                        n = 0;
                } else if (n == 0) {
                        return;
                }
        }
        if (n < 0) {
                eof(c, (int)n);
                return;
        }
        while (!c->closing && (n = http_tls_read(c->tls, c->io->plain_buffer, HTTP_IO_READ_BYTES)) > 0)
                c->ops->on_data(c, slice_of(c->io->plain_buffer, (size_t)n));
        if (c->closing)
                return;
        tls_flush(c);
        if (n < 0)
                eof(c, n == -EPIPE ? 0 : (int)n);
}

static void read_socket(struct http_conn *c, bool to_the_end) {
        for (int i = 0; c->reading && !c->closing && i < READS_PER_EVENT; i++) {
                ssize_t n = recv(c->fd, c->io->read_buffer, HTTP_IO_READ_BYTES, 0);

                if (n > 0) {
                        struct slice data = slice_of(c->io->read_buffer, (size_t)n);

                        if (c->tls)
                                on_cipher(c, data);
                        else
                                c->ops->on_data(c, data);
                        if (n < (ssize_t)HTTP_IO_READ_BYTES && !to_the_end)
                                return;
                        continue;
                }
                if (n < 0 && errno == EINTR)
                        continue;
                if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK))
                        return;
                /* A FIN without close_notify: TLS cannot tell it from an attacker's. */
                eof(c, n < 0 ? -errno : c->tls ? -ECONNRESET : 0);
                return;
        }
}

static int socket_error(const struct http_conn *c) {
        int error = 0;
        socklen_t len = sizeof(error);

        if (getsockopt(c->fd, SOL_SOCKET, SO_ERROR, &error, &len) < 0)
                return -errno;
        return -error;
}

static void on_connected(struct http_conn *c) {
        int error = socket_error(c);

        c->connecting = false;
        if (error < 0) {
                eof(c, error);
                return;
        }
        update_events(c);
        if (c->tls) {
                int r = http_tls_handshake(c->tls);

                if (r >= 0)
                        r = tls_flush(c);
                if (r < 0)
                        eof(c, r);
                return;
        }
        c->ready = true;
        c->ops->on_ready(c);
}

static void on_poll(uv_poll_t *poll, int status, int events) {
        struct http_conn *c = poll->data;
        bool hung_up = status < 0 || (events & UV_DISCONNECT);

        /* libuv stops polling a socket in error; reading it yields what is left, then the error. */
        if (status < 0)
                c->events = 0;
        if (c->connecting) {
                on_connected(c);
                return;
        }
        if (events & UV_WRITABLE)
                flush(c);
        if (c->closing)
                return;
        if (c->reading && (hung_up || (events & UV_READABLE))) {
                read_socket(c, hung_up);
        } else if (hung_up && !c->hung_up) {
                c->hung_up = true;
                c->ops->on_hangup(c, status < 0 ? socket_error(c) : 0);
        }
        update_events(c);
}

/* ---- closing -------------------------------------------------------------------------------------------------- */

static void on_poll_closed(uv_handle_t *handle) {
        struct http_conn *c = handle->data;

        c->ops->on_closed(c);
}

void http_conn_close(struct http_conn *c) {
        if (c->closing)
                return;
        c->closing = true;
        uv_close((uv_handle_t *)&c->poll, on_poll_closed);
        close(c->fd);
        c->fd = -1;
        drop_queue(c);
        http_tls_free(c->tls);
        c->tls = NULL;
}

void http_conn_reset(struct http_conn *c) {
        struct linger linger = {.l_onoff = 1};

        if (!c->closing)
                setsockopt(c->fd, SOL_SOCKET, SO_LINGER, &linger, sizeof(linger));
        http_conn_close(c);
}

const char *http_conn_tls_error(const struct http_conn *c) {
        return c->tls ? http_tls_error_text(c->tls) : "";
}
