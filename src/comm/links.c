/* links.c - see links.h. */
#include "comm/links.h"
#include "base/clock.h"
#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

/* Of the messages that form a group: facts and addresses of ranks. */
#define MESSAGE_MAX (1u << 20)
/* What may be under way to a peer while we compute: a layer's tokens. */
#define SOCKET_BYTES (4 << 20)
#define JOBS_MAX     1024u
/* A host that is gone while nobody has work is noticed all the same, within 11 seconds. */
#define KEEPALIVE_IDLE_S     5
#define KEEPALIVE_INTERVAL_S 2
#define KEEPALIVE_COUNT      3

uint64_t links_now(void) {
        return clock_mono_ns() / NS_PER_MS;
}

static int wait_for(int fd, short events, uint64_t until) {
        for (;;) {
                uint64_t now = links_now();
                struct pollfd p = {fd, events, 0};
                int n = poll(&p, 1, now >= until ? 0 : (int)(until - now < 1000000 ? until - now : 1000000));

                if (n > 0)
                        return 0;
                if (n < 0 && errno != EINTR)
                        return -errno;
                if (n == 0 && links_now() >= until)
                        return -ETIMEDOUT;
        }
}

static void tune(int fd) {
        const int yes = 1, bytes = SOCKET_BYTES, idle = KEEPALIVE_IDLE_S, interval = KEEPALIVE_INTERVAL_S,
                  count = KEEPALIVE_COUNT;

        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof(yes));
        setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &yes, sizeof(yes));
        setsockopt(fd, IPPROTO_TCP, TCP_KEEPIDLE, &idle, sizeof(idle));
        setsockopt(fd, IPPROTO_TCP, TCP_KEEPINTVL, &interval, sizeof(interval));
        setsockopt(fd, IPPROTO_TCP, TCP_KEEPCNT, &count, sizeof(count));
        setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &bytes, sizeof(bytes));
}

static int resolve(const char *host, uint16_t port, int flags, struct addrinfo **ret_list) {
        struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = flags};
        char text[8];

        snprintf(text, sizeof(text), "%u", port);
        return getaddrinfo(host, text, &hints, ret_list) == 0 ? 0 : -EADDRNOTAVAIL;
}

static uint16_t port_of(int fd) {
        struct sockaddr_storage at = {0};
        socklen_t bytes = sizeof(at);

        if (getsockname(fd, (struct sockaddr *)&at, &bytes) < 0)
                return 0;
        return ntohs(
            at.ss_family == AF_INET6 ? ((struct sockaddr_in6 *)&at)->sin6_port : ((struct sockaddr_in *)&at)->sin_port);
}

int links_listen(const char *host, uint16_t port, uint16_t *ret_port) {
        const int yes = 1;
        struct addrinfo *list;
        int r = resolve(host, port, AI_PASSIVE, &list), fd = -1;

        if (r < 0)
                return r;
        fd = socket(list->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
        r = fd < 0 ? -errno : 0;
        if (r == 0 && (setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof(yes)) < 0 ||
                          bind(fd, list->ai_addr, list->ai_addrlen) < 0 || listen(fd, 1024) < 0))
                r = -errno;
        freeaddrinfo(list);
        if (r < 0) {
                if (fd >= 0)
                        close(fd);
                return r;
        }
        *ret_port = port_of(fd);
        return fd;
}

static int connect_to(const struct addrinfo *a, uint64_t until) {
        int fd = socket(a->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0), r = 0, error = 0;
        socklen_t bytes = sizeof(error);

        if (fd < 0)
                return -errno;
        if (connect(fd, a->ai_addr, a->ai_addrlen) < 0)
                r = -errno;
        if (r == -EINPROGRESS) {
                r = wait_for(fd, POLLOUT, until);
                if (r == 0)
                        r = getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &bytes) < 0 ? -errno : -error;
        }
        if (r < 0) {
                close(fd);
                return r;
        }
        tune(fd);
        return fd;
}

int links_connect(const char *host, uint16_t port, uint64_t until) {
        struct addrinfo *list;
        int r = resolve(host, port, 0, &list);

        if (r < 0)
                return r;
        r = -EADDRNOTAVAIL;
        for (const struct addrinfo *a = list; a && r < 0; a = a->ai_next)
                r = connect_to(a, until);
        freeaddrinfo(list);
        return r;
}

int links_accept(int listener) {
        int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);

        if (fd < 0)
                return -errno;
        tune(fd);
        return fd;
}

static int name_of(const struct sockaddr_storage *at, socklen_t bytes, char ret_host[64]) {
        return getnameinfo((const struct sockaddr *)at, bytes, ret_host, 64, NULL, 0, NI_NUMERICHOST) == 0 ? 0
                                                                                                           : -EINVAL;
}

int links_peer(int fd, char ret_host[64]) {
        struct sockaddr_storage at = {0};
        socklen_t bytes = sizeof(at);

        return getpeername(fd, (struct sockaddr *)&at, &bytes) < 0 ? -errno : name_of(&at, bytes, ret_host);
}

int links_own(int fd, char ret_host[64]) {
        struct sockaddr_storage at = {0};
        socklen_t bytes = sizeof(at);

        return getsockname(fd, (struct sockaddr *)&at, &bytes) < 0 ? -errno : name_of(&at, bytes, ret_host);
}

/* ---- all of it, by a deadline ------------------------------------------------------------------------------------------ */

static int move_all(int fd, char *at, size_t bytes, bool sends, uint64_t until) {
        while (bytes) {
                ssize_t n = sends ? send(fd, at, bytes, MSG_NOSIGNAL) : recv(fd, at, bytes, 0);

                if (n == 0 && !sends)
                        return -ECONNRESET;
                if (n < 0 && errno != EAGAIN && errno != EINTR)
                        return -errno;
                if (n < 0) {
                        int r = wait_for(fd, sends ? POLLOUT : POLLIN, until);

                        if (r < 0)
                                return r;
                        continue;
                }
                at += n;
                bytes -= (size_t)n;
        }
        return 0;
}

int links_send(int fd, uint32_t kind, struct slice body, uint64_t until) {
        uint32_t head[2] = {(uint32_t)body.len, kind};
        int r = move_all(fd, (char *)head, sizeof(head), true, until);

        return r == 0 ? move_all(fd, (char *)(uintptr_t)body.ptr, body.len, true, until) : r;
}

int links_receive(int fd, uint32_t *ret_kind, struct buf *body, uint64_t until) {
        uint32_t head[2];
        int r = move_all(fd, (char *)head, sizeof(head), false, until);
        char *to;

        if (r < 0)
                return r;
        if (head[0] > MESSAGE_MAX)
                return -EPROTO;
        buf_reset(body);
        to = buf_reserve(body, head[0] + 1);
        if (!to)
                return -ENOMEM;
        r = move_all(fd, to, head[0], false, until);
        if (r < 0)
                return r;
        buf_commit(body, head[0]);
        *ret_kind = head[1];
        return 0;
}

/* ---- many at once ------------------------------------------------------------------------------------------------------ */

static bool is_done(const struct link_job *j) {
        return j->fd < 0 || (j->out_bytes == 0 && j->in_bytes == 0);
}

/* One send: bytes that left, 0 when none can, or a negative errno. */
static ssize_t send_some(const struct link_job *j) {
        struct iovec pieces[2] = {
            {(char *)(uintptr_t)j->out, j->out_bytes}, {(char *)(uintptr_t)j->more, j->more_bytes}};
        struct msghdr message = {.msg_iov = pieces, .msg_iovlen = j->more_bytes ? 2 : 1};
        ssize_t n = j->near ? near_write(j->near, j->fd, j->out, j->out_bytes) : sendmsg(j->fd, &message, MSG_NOSIGNAL);

        if (n >= 0 || j->near)
                return n;
        return errno == EAGAIN || errno == EINTR ? 0 : -errno;
}

static ssize_t receive_some(const struct link_job *j) {
        ssize_t n = j->near ? near_read(j->near, j->fd, j->in, j->in_bytes) : recv(j->fd, j->in, j->in_bytes, 0);

        if (j->near || n > 0)
                return n;
        if (n == 0)
                return -ECONNRESET;
        return errno == EAGAIN || errno == EINTR ? 0 : -errno;
}

static void pass_out(struct link_job *j, size_t bytes) {
        size_t first = bytes < j->out_bytes ? bytes : j->out_bytes;

        j->out += first;
        j->out_bytes -= first;
        if (j->out_bytes > 0)
                return;
        j->out = j->more + (bytes - first);
        j->out_bytes = j->more_bytes - (bytes - first);
        j->more_bytes = 0;
}

/* What goes without waiting. Bytes moved, or a negative errno. */
static ssize_t move_some(struct link_job *j) {
        ssize_t moved = 0, n = 0;

        while (j->out_bytes && (n = send_some(j)) > 0) {
                pass_out(j, (size_t)n);
                moved += n;
        }
        while (n >= 0 && j->in_bytes && (n = receive_some(j)) > 0) {
                j->in += n;
                j->in_bytes -= (size_t)n;
                moved += n;
                while (j->in_bytes == 0 && j->arrived)
                        j->arrived(j);
        }
        return n < 0 ? n : moved;
}

/* All jobs of one exchange, and what the last look at them gave. */
struct exchange {
        struct link_job *jobs;
        size_t count;
        struct inbox *inbox;
        uint64_t until;
        bool moved, done;
        size_t at; /* the job that failed */
};

static int look(struct exchange *x) {
        x->moved = false;
        x->done = true;
        for (size_t i = 0; i < x->count; i++) {
                ssize_t moved = x->jobs[i].fd < 0 ? 0 : move_some(&x->jobs[i]);

                if (moved < 0) {
                        x->at = i;
                        return (int)moved;
                }
                x->moved |= moved > 0;
                x->done &= is_done(&x->jobs[i]);
        }
        return 0;
}

/* Near links are listened to even when nothing is awaited on them: whichever peer makes a change first sends the only byte. */
static size_t list_waiting(const struct exchange *x, struct pollfd *p) {
        size_t n = 0;

        for (size_t i = 0; i < x->count; i++) {
                const struct link_job *j = &x->jobs[i];

                if (j->fd < 0 || j->gone)
                        continue;
                if (j->near)
                        p[n++] = (struct pollfd){j->fd, POLLIN, 0};
                else if (!is_done(j))
                        p[n++] = (struct pollfd){
                            j->fd, (short)((j->out_bytes ? POLLOUT : 0) | (j->in_bytes ? POLLIN : 0)), 0};
        }
        return n;
}

static size_t first_waiting(const struct exchange *x) {
        for (size_t i = 0; i < x->count; i++)
                if (!is_done(&x->jobs[i]))
                        return i;
        return 0;
}

/* Near peers' sockets have ended. All that they wrote before is there to be read; if that was all, they are missed the next time:
 * one may be through with what the others still say to each other. */
static int take_last_words(struct exchange *x) {
        int r = look(x);

        for (size_t i = 0; r == 0 && i < x->count; i++)
                if (x->jobs[i].gone && !is_done(&x->jobs[i])) {
                        x->at = i;
                        r = -ECONNRESET;
                }
        return r;
}

static int sleep_for(struct exchange *x) {
        struct pollfd p[JOBS_MAX];
        size_t n = list_waiting(x, p);
        bool gone = false;
        uint64_t now = links_now();

        if (poll(p, n, now < x->until ? (int)(x->until - now) : 0) < 0)
                return errno == EINTR ? 0 : -errno;
        for (size_t i = 0, at = 0; i < x->count && at < n; i++) {
                if (x->jobs[i].fd != p[at].fd)
                        continue;
                if (p[at++].revents && x->jobs[i].near && near_drain(x->jobs[i].fd) < 0)
                        gone = x->jobs[i].gone = true;
        }
        return gone ? take_last_words(x) : 0;
}

/* Nothing moves just now. Look for a while, letting others have the core; then sleep. */
static int await_change(struct exchange *x) {
        uint64_t end;
        int r = 0;

        if (!x->inbox)
                return sleep_for(x);
        end = clock_mono_ns() + inbox_spin_us(x->inbox) * NS_PER_US;
        while (r == 0 && !x->moved && clock_mono_ns() < end) {
                sched_yield();
                r = look(x);
        }
        if (r < 0 || x->moved)
                return r;
        inbox_doze(x->inbox);
        r = look(x); /* what changes from here on is told */
        if (r == 0 && !x->moved)
                r = sleep_for(x);
        inbox_rouse(x->inbox);
        return r;
}

int links_exchange(
    struct link_job *jobs, size_t count, struct inbox *inbox, unsigned silence_ms, bool once, size_t *ret_at) {
        struct exchange x = {.jobs = jobs, .count = count, .inbox = inbox, .until = links_now() + silence_ms};
        int r = look(&x);

        while (r == 0 && !x.done && !once) {
                if (!x.moved && links_now() >= x.until) {
                        x.at = first_waiting(&x);
                        r = -ETIMEDOUT;
                        break;
                }
                r = x.moved ? 0 : await_change(&x);
                if (x.moved)
                        x.until = links_now() + silence_ms;
                if (r == 0)
                        r = look(&x);
        }
        *ret_at = x.at;
        return r;
}

bool links_near_calls(const struct near_link *near, int fd) {
        return near_has_bytes(near) || near_drain(fd) < 0 || near_has_bytes(near);
}
