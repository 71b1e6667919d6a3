/* server.c - listeners, accepting, draining. What happens on a connection is in exchange.c. */
#include "http/server.h"
#include <assert.h>
#include <errno.h>
#include <netdb.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

/* Defaults of struct http_limits.
 * head: nginx takes 4 x 8 KiB, uvicorn 64 KiB; API clients send 1 to 2 KiB, proxies in front add cookies and tokens.
 * fields: HAProxy's 101. body: a chat with a few pictures as base64 comes to some MB; a 128k-token prompt to 600 KB.
 * idle: above the 60 s and 50 s of common clients and load balancers, so that they close first. head, body, stall: long
 * beside any honest network, short beside what an attacker needs. write marks: a burst of a few hundred stream events,
 * and a quarter of it, so that a reader is told to go on before the socket runs dry. */
static const struct http_limits defaults = {
    .head_bytes = 32u << 10,
    .head_fields = 100,
    .body_bytes = 64u << 20,
    .pipeline_bytes = 16u << 10,
    .head_ms = 10000,
    .body_idle_ms = 30000,
    .idle_ms = 75000,
    .stall_ms = 60000,
    .write_high = 256u << 10,
    .write_low = 64u << 10,
};

/* Connections accepted per wake-up of a listener before others get their turn. */
#define ACCEPTS_PER_EVENT 64
/* Descriptors have run out, in this process or in the system: look again after this, or when a connection closes. */
#define ACCEPT_RETRY_MS 100
/* A server at its limit pauses again with each connection that leaves: it says so at most this often. */
#define ACCEPT_WARN_MS 1000

static void on_listener(uv_poll_t *poll, int status, int events);

static void on_accept_timer(struct wheel_timer *timer);
static void on_drain_deadline(struct wheel_timer *timer);
static void on_drained_task(struct http_task *task);

#define OR_DEFAULT(member)                                                                                             \
        do {                                                                                                           \
                if (!l->member)                                                                                        \
                        l->member = defaults.member;                                                                   \
        } while (0)

static void fill_limits(struct http_limits *l) {
        struct rlimit files;

        OR_DEFAULT(head_bytes);
        OR_DEFAULT(head_fields);
        OR_DEFAULT(body_bytes);
        OR_DEFAULT(pipeline_bytes);
        OR_DEFAULT(head_ms);
        OR_DEFAULT(body_idle_ms);
        OR_DEFAULT(idle_ms);
        OR_DEFAULT(stall_ms);
        OR_DEFAULT(write_high);
        OR_DEFAULT(write_low);
        if (l->write_low > l->write_high)
                l->write_low = l->write_high;
        /* A sixteenth of the descriptors stays for listeners, logs and the process's own calls. */
        if (!l->connections && getrlimit(RLIMIT_NOFILE, &files) == 0 && files.rlim_cur != RLIM_INFINITY)
                l->connections = files.rlim_cur - files.rlim_cur / 16;
        if (!l->connections)
                l->connections = SIZE_MAX;
}

int http_server_new(
    uv_loop_t *loop, const struct http_server_options *options, struct http_server **ret_server, struct error *e) {
        struct http_server *s = calloc(1, sizeof(*s));
        bool tls = options->tls.cert || options->tls.key || options->tls.client_ca;
        int r;

        assert(options->on_request);
        if (!s)
                return -ENOMEM;
        s->options = *options;
        fill_limits(&s->options.limits);
        s->parser_limits = (struct http_parser_limits){.head_bytes = s->options.limits.head_bytes,
            .head_fields = s->options.limits.head_fields,
            .body_bytes = s->options.limits.body_bytes};
        list_init(&s->listeners);
        list_init(&s->exchanges);
        list_init(&s->spare);
        wheel_timer_init(&s->accept_timer, on_accept_timer);
        wheel_timer_init(&s->drain_timer, on_drain_deadline);
        http_task_init(&s->drained_task, on_drained_task);
        r = http_io_init(&s->io, loop, tls);
        if (r < 0)
                goto fail;
        if (tls) {
                r = http_tls_context_server(&options->tls, &s->tls, e);
                if (r < 0)
                        goto fail_io;
        }
        *ret_server = s;
        return 0;
fail_io:
        http_io_free(&s->io);
fail:
        free(s);
        return r;
}

size_t http_server_connections(const struct http_server *s) {
        return s->connections;
}

bool http_server_is_draining(const struct http_server *s) {
        return s->draining;
}

/* ---- listening ------------------------------------------------------------------------------------------------ */

static int bind_unix(const char *path, int *ret_fd, struct error *e) {
        struct sockaddr_un address = {.sun_family = AF_UNIX};
        int fd, probe, r;

        if (!*path || strlen(path) >= sizeof(address.sun_path))
                return error_set(e, -EINVAL, "listen on unix:%s: the path must have 1 to %zu bytes", path,
                    sizeof(address.sun_path) - 1);
        memcpy(address.sun_path, path, strlen(path));
        fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
        if (fd < 0)
                return error_set(e, -errno, "listen on unix:%s: %s", path, strerror(errno));
        r = bind(fd, (struct sockaddr *)&address, sizeof(address)) < 0 ? -errno : 0;
        if (r == -EADDRINUSE) {
                /* A file that nobody listens on was left behind by a process that died. */
                probe = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
                if (probe >= 0 && connect(probe, (struct sockaddr *)&address, sizeof(address)) < 0 &&
                    errno == ECONNREFUSED && unlink(path) == 0)
                        r = bind(fd, (struct sockaddr *)&address, sizeof(address)) < 0 ? -errno : 0;
                if (probe >= 0)
                        close(probe);
        }
        if (r < 0) {
                close(fd);
                return error_set(e, r, "listen on unix:%s: %s", path,
                    r == -EADDRINUSE ? "another process listens there, or it is no socket" : strerror(-r));
        }
        *ret_fd = fd;
        return 0;
}

static int bind_address(const struct addrinfo *a, bool reuse_port) {
        int fd = socket(a->ai_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0), on = 1, off = 0, r;

        if (fd < 0)
                return -errno;
        setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
        /* "::" takes IPv4 too, whatever net.ipv6.bindv6only says. */
        if (a->ai_family == AF_INET6)
                setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &off, sizeof(off));
        if ((reuse_port && setsockopt(fd, SOL_SOCKET, SO_REUSEPORT, &on, sizeof(on)) < 0) ||
            bind(fd, a->ai_addr, a->ai_addrlen) < 0) {
                r = -errno;
                close(fd);
                return r;
        }
        return fd;
}

/* Listening happens once, at the start: the blocking resolver is fine. */
static int bind_tcp(const struct http_listen *at, int *ret_fd, struct error *e) {
        struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_PASSIVE | AI_NUMERICSERV}, *found;
        char port[8];
        int fd = -EADDRNOTAVAIL, r;

        snprintf(port, sizeof(port), "%u", at->port);
        r = getaddrinfo(at->host && *at->host ? at->host : "::", port, &hints, &found);
        if (r != 0)
                return error_set(e, -EINVAL, "listen on %s:%u: %s", at->host, at->port, gai_strerror(r));
        for (const struct addrinfo *a = found; a && fd < 0; a = a->ai_next)
                fd = bind_address(a, at->reuse_port);
        freeaddrinfo(found);
        if (fd < 0)
                return error_set(e, fd, "listen on %s:%u: %s", at->host ? at->host : "", at->port, strerror(-fd));
        *ret_fd = fd;
        return 0;
}

static uint16_t bound_port(int fd) {
        union {
                struct sockaddr any;
                struct sockaddr_in v4;
                struct sockaddr_in6 v6;
                struct sockaddr_storage room;
        } address = {0};
        socklen_t len = sizeof(address);

        getsockname(fd, &address.any, &len);
        return address.any.sa_family == AF_INET    ? ntohs(address.v4.sin_port)
               : address.any.sa_family == AF_INET6 ? ntohs(address.v6.sin6_port)
                                                   : 0;
}

int http_server_listen(struct http_server *s, const struct http_listen *at, uint16_t *ret_port, struct error *e) {
        bool is_unix = at->host && strncmp(at->host, "unix:", 5) == 0;
        struct http_listener *l = calloc(1, sizeof(*l));
        struct stat file;
        int r;

        if (!l)
                return -ENOMEM;
        r = is_unix ? bind_unix(at->host + 5, &l->fd, e) : bind_tcp(at, &l->fd, e);
        if (r < 0)
                goto fail;
        if (listen(l->fd, SOMAXCONN) < 0) {
                r = error_set(e, -errno, "listen on %s: %s", at->host, strerror(errno));
                goto fail_fd;
        }
        r = uv_poll_init(s->io.loop, &l->poll, l->fd);
        if (r < 0)
                goto fail_fd;
        /* From here on nothing fails, and there are handles to close: a server that is not drained has none. */
        http_io_start(&s->io);
        if (is_unix && stat(at->host + 5, &file) == 0) {
                memcpy(l->path, at->host + 5, strlen(at->host + 5));
                l->device = file.st_dev;
                l->inode = file.st_ino;
        }
        l->is_unix = is_unix;
        l->server = s;
        l->poll.data = l;
        list_push_back(&s->listeners, &l->link);
        uv_poll_start(&l->poll, UV_READABLE, on_listener);
        if (ret_port)
                *ret_port = bound_port(l->fd);
        return 0;
fail_fd:
        close(l->fd);
        if (is_unix)
                unlink(at->host + 5);
fail:
        free(l);
        return r;
}

static void check_drained(struct http_server *s);

static void on_listener_closed(uv_handle_t *handle) {
        struct http_listener *l = handle->data;
        struct http_server *s = l->server;

        free(l);
        s->open_handles--;
        check_drained(s);
}

static void close_listener(struct http_listener *l) {
        struct stat file;

        list_remove(&l->link);
        l->server->open_handles++;
        uv_close((uv_handle_t *)&l->poll, on_listener_closed);
        close(l->fd);
        /* Not the file of a successor that listens there already. */
        if (l->path[0] && stat(l->path, &file) == 0 && file.st_dev == l->device && file.st_ino == l->inode)
                unlink(l->path);
}

/* ---- accepting ------------------------------------------------------------------------------------------------ */

static void pause_accepting(struct http_server *s, const char *why) {
        uint64_t now = http_io_now(&s->io);

        if (s->accept_paused)
                return;
        s->accept_paused = true;
        if (now >= s->warn_at) {
                log_warn(s->options.log, "accepting pauses at %zu connections: %s", s->connections, why);
                s->warn_at = now + ACCEPT_WARN_MS;
        }
        list_for_each (at, &s->listeners) {
                uv_poll_stop(&list_item(at, struct http_listener, link)->poll);
        }
}

static void resume_accepting(struct http_server *s) {
        if (!s->accept_paused || s->draining || s->connections >= s->options.limits.connections)
                return;
        s->accept_paused = false;
        list_for_each (at, &s->listeners) {
                uv_poll_start(&list_item(at, struct http_listener, link)->poll, UV_READABLE, on_listener);
        }
}

static void on_accept_timer(struct wheel_timer *timer) {
        resume_accepting(list_item(timer, struct http_server, accept_timer));
}

static struct http_exchange *new_exchange(struct http_server *s) {
        struct list *link = list_pop_front(&s->spare);

        if (!link)
                return malloc(sizeof(struct http_exchange));
        s->count_spare--;
        return list_item(link, struct http_exchange, link);
}

static void free_exchange(struct http_server *s, struct http_exchange *x) {
        if (s->count_spare >= HTTP_SPARE_EXCHANGES || s->draining) {
                free(x);
                return;
        }
        list_push_front(&s->spare, &x->link);
        s->count_spare++;
}

static void open_connection(struct http_server *s, int fd, const struct sockaddr *peer) {
        struct http_exchange *x = new_exchange(s);
        int on = 1, r = -ENOMEM;

        if (peer->sa_family != AF_UNIX)
                setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
        if (!x) {
                close(fd);
        } else {
                r = http_exchange_open(s, x, fd, peer);
                if (r < 0)
                        free_exchange(s, x);
        }
        if (r < 0) {
                log_warn(s->options.log, "a connection is dropped: %s", strerror(-r));
                return;
        }
        list_push_back(&s->exchanges, &x->link);
        s->connections++;
}

static void on_listener(uv_poll_t *poll, int status, int events) {
        struct http_listener *l = poll->data;
        struct http_server *s = l->server;

        for (int i = 0; i < ACCEPTS_PER_EVENT && !s->accept_paused; i++) {
                union {
                        struct sockaddr any;
                        struct sockaddr_storage room;
                } peer = {0};
                socklen_t len = sizeof(peer);
                int fd;

                if (s->connections >= s->options.limits.connections) {
                        pause_accepting(s, "the limit is reached");
                        return;
                }
                fd = accept4(l->fd, &peer.any, &len, SOCK_NONBLOCK | SOCK_CLOEXEC);
                if (fd >= 0) {
                        if (l->is_unix)
                                peer.any.sa_family = AF_UNIX;
                        open_connection(s, fd, &peer.any);
                        continue;
                }
                /* The connection that was accepted has failed meanwhile (accept(2) lists the errors): the next one. */
                if (errno == EINTR || errno == ECONNABORTED || errno == EPROTO || errno == ENETDOWN ||
                    errno == EHOSTUNREACH || errno == ENETUNREACH || errno == EHOSTDOWN || errno == ENONET)
                        continue;
                if (errno != EAGAIN && errno != EWOULDBLOCK) {
                        /* EMFILE, ENFILE, ENOBUFS, ENOMEM: the listener stays readable; polling it would spin. */
                        pause_accepting(s, strerror(errno));
                        http_io_deadline(&s->io, &s->accept_timer, http_io_now(&s->io) + ACCEPT_RETRY_MS);
                }
                return;
        }
}

void http_server_forget(struct http_exchange *x) {
        struct http_server *s = x->server;

        list_remove(&x->link);
        s->connections--;
        free_exchange(s, x);
        resume_accepting(s);
        check_drained(s);
}

/* ---- draining ------------------------------------------------------------------------------------------------- */

static void on_io_closed(struct http_io *io) {
        struct http_server *s = list_item(io, struct http_server, io);

        s->drained = true;
        if (s->on_drained)
                s->on_drained(s->drained_context);
}

static void on_drained_task(struct http_task *task) {
        struct http_server *s = list_item(task, struct http_server, drained_task);

        wheel_stop(&s->drain_timer);
        wheel_stop(&s->accept_timer);
        http_io_close(&s->io, on_io_closed);
}

static void check_drained(struct http_server *s) {
        if (s->draining && s->connections == 0 && s->open_handles == 0)
                http_io_defer(&s->io, &s->drained_task);
}

static void on_drain_deadline(struct wheel_timer *timer) {
        struct http_server *s = list_item(timer, struct http_server, drain_timer);

        if (s->connections)
                log_warn(s->options.log, "%zu connections did not finish before the deadline", s->connections);
        list_for_each (at, &s->exchanges) {
                http_exchange_break(list_item(at, struct http_exchange, link));
        }
}

void http_server_drain(struct http_server *s, unsigned deadline_ms, void (*on_drained)(void *context), void *context) {
        assert(!s->draining);
        http_io_start(&s->io);
        s->draining = true;
        s->on_drained = on_drained;
        s->drained_context = context;
        list_for_each (at, &s->listeners) {
                close_listener(list_item(at, struct http_listener, link));
        }
        list_for_each (at, &s->exchanges) {
                http_exchange_close_if_idle(list_item(at, struct http_exchange, link));
        }
        http_io_deadline(&s->io, &s->drain_timer, http_io_now(&s->io) + deadline_ms);
        check_drained(s);
}

void http_server_free(struct http_server *s) {
        struct list *link;

        if (!s)
                return;
        assert(s->drained || !s->io.started);
        while ((link = list_pop_front(&s->spare)))
                free(list_item(link, struct http_exchange, link));
        http_tls_context_free(s->tls);
        http_io_free(&s->io);
        free(s);
}
