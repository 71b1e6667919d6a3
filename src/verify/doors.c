/* doors.c - ports held open and tried: whether what the plan lists can be bound here and reached from there. */
#include "base/file.h"
#include "base/json.h"
#include "os/os.h"
#include "verify/agent.h"
#include <arpa/inet.h>
#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

/* So many connections are begun at once: enough to be quick, too few for a firewall to take them for an attack. */
#define TRIED_AT_ONCE 32

union address {
        struct sockaddr any;
        struct sockaddr_in v4;
        struct sockaddr_in6 v6;
};

static bool parse_address_of(const char *ip, union address *ret) {
        *ret = (union address){0};
        if (inet_pton(AF_INET, ip, &ret->v4.sin_addr) == 1)
                ret->any.sa_family = AF_INET;
        else if (inet_pton(AF_INET6, ip, &ret->v6.sin6_addr) == 1)
                ret->any.sa_family = AF_INET6;
        else
                return false;
        return true;
}

/* Engines listen on all addresses; on a loopback one only that is theirs. */
static void widen(union address *a) {
        if (a->any.sa_family == AF_INET && (ntohl(a->v4.sin_addr.s_addr) >> 24) != 127)
                a->v4.sin_addr.s_addr = htonl(INADDR_ANY);
        else if (a->any.sa_family == AF_INET6 && !IN6_IS_ADDR_LOOPBACK(&a->v6.sin6_addr))
                a->v6.sin6_addr = in6addr_any;
}

static socklen_t with_port(union address *a, uint16_t port) {
        if (a->any.sa_family == AF_INET) {
                a->v4.sin_port = htons(port);
                return sizeof(a->v4);
        }
        a->v6.sin6_port = htons(port);
        return sizeof(a->v6);
}

struct door {
        uint16_t port;
        int error; /* 0: open */
        int fd;
        unsigned long inode; /* of who holds it, 0: not known */
        char holder[64];
};

static int parse_spec(const char *spec, struct door *doors, size_t *ret_count) {
        struct slice rest = slice_str(spec), run, first;
        size_t n = 0;

        while (slice_split(&rest, ',', &run)) {
                uint64_t from, to;

                slice_split(&run, '-', &first);
                if (slice_to_u64(first, &from) < 0)
                        return -EINVAL;
                to = from;
                if (run.ptr && slice_to_u64(run, &to) < 0)
                        return -EINVAL;
                if (!from || from > to || to > 65535 || n + (to - from) >= DOORS_MAX)
                        return -EINVAL;
                for (; from <= to; from++)
                        doors[n++] = (struct door){.port = (uint16_t)from, .fd = -1};
        }
        *ret_count = n;
        return n ? 0 : -EINVAL;
}

/* ---- who holds a port ------------------------------------------------------------------------------------------------- */

#define SOCKET_TABLE_MAX (32u << 20)
#define STATE_LISTEN     0x0A

/* Inodes of listening sockets on the ports that could not be opened. */
static void find_inodes(const char *table, struct door *doors, size_t count) {
        struct buf text = {0};
        struct slice rest, line;

        if (file_read_whole(table, SOCKET_TABLE_MAX, &text, NULL) < 0)
                goto out;
        buf_cstr(&text);
        rest = buf_slice(&text);
        while (slice_split(&rest, '\n', &line)) {
                unsigned port, state;
                unsigned long inode;
                char copy[256];

                snprintf(copy, sizeof(copy), "%.*s", SLICE_ARG(line));
                if (sscanf(copy, " %*u: %*[0-9A-Fa-f]:%x %*[0-9A-Fa-f]:%*x %x %*s %*s %*s %*u %*d %lu", &port, &state,
                        &inode) != 3 ||
                    state != STATE_LISTEN)
                        continue;
                for (size_t i = 0; i < count; i++)
                        if (doors[i].error == EADDRINUSE && doors[i].port == port)
                                doors[i].inode = inode;
        }
out:
        buf_free(&text);
}

static void name_holder(struct door *doors, size_t count, const char *pid, unsigned long inode) {
        struct buf name = {0};
        char path[64];

        for (size_t i = 0; i < count; i++) {
                if (!inode || doors[i].inode != inode || doors[i].holder[0])
                        continue;
                snprintf(path, sizeof(path), "/proc/%.12s/comm", pid);
                if (!name.len && file_read_whole(path, 64, &name, NULL) < 0)
                        break;
                snprintf(doors[i].holder, sizeof(doors[i].holder), "%.*s (pid %.12s)",
                    SLICE_ARG(slice_trim(buf_slice(&name))), pid);
        }
        buf_free(&name);
}

/* The processes whose descriptors we may see: all of them as root, else our own. */
static void find_holders(struct door *doors, size_t count) {
        DIR *all;
        struct dirent *process, *one;

        find_inodes("/proc/net/tcp", doors, count);
        find_inodes("/proc/net/tcp6", doors, count);
        all = opendir("/proc");
        while (all && (process = readdir(all))) {
                char path[300], target[64];
                DIR *fds;

                if (!isdigit((unsigned char)process->d_name[0]))
                        continue;
                snprintf(path, sizeof(path), "/proc/%s/fd", process->d_name);
                fds = opendir(path);
                while (fds && (one = readdir(fds))) {
                        unsigned long inode;
                        ssize_t n = readlinkat(dirfd(fds), one->d_name, target, sizeof(target) - 1);

                        target[n > 0 ? n : 0] = 0;
                        if (sscanf(target, "socket:[%lu]", &inode) == 1)
                                name_holder(doors, count, process->d_name, inode);
                }
                if (fds)
                        closedir(fds);
        }
        if (all)
                closedir(all);
}

/* ---- opening ---------------------------------------------------------------------------------------------------------- */

static void write_doors(const struct door *doors, size_t count, struct buf *out) {
        struct json_writer w = {.out = out};

        json_open(&w, '{');
        json_key(&w, "ports");
        json_open(&w, '[');
        for (size_t i = 0; i < count; i++) {
                json_open(&w, '{');
                json_key(&w, "port");
                json_u64(&w, doors[i].port);
                json_key(&w, "error");
                json_str(&w, doors[i].error ? strerrorname_np(doors[i].error) : NULL);
                if (doors[i].holder[0]) {
                        json_key(&w, "holder");
                        json_str(&w, doors[i].holder);
                }
                json_close(&w, '}');
        }
        json_close(&w, ']');
        json_close(&w, '}');
}

static int listen_on(union address *a, uint16_t port, int *ret_fd) {
        int one = 1, fd = socket(a->any.sa_family, SOCK_STREAM | SOCK_CLOEXEC, 0);

        if (fd < 0)
                return errno;
        /* As a server would: connections of a former one in TIME_WAIT do not count. */
        setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
        if (bind(fd, &a->any, with_port(a, port)) < 0 || listen(fd, 2 * DOOR_VISITS_MAX) < 0) {
                int error = errno;

                close(fd);
                return error;
        }
        *ret_fd = fd;
        return 0;
}

int doors_open(struct doors *d, const char *ip, const char *spec, struct buf *out) {
        struct door *doors = calloc(DOORS_MAX, sizeof(*doors));
        union address a;
        size_t count, in_use = 0;
        int r = !doors ? -ENOMEM : parse_address_of(ip, &a) ? parse_spec(spec, doors, &count) : -EINVAL;

        if (r < 0)
                goto out;
        doors_shut(d);
        d->fds = calloc(count, sizeof(*d->fds));
        if (!d->fds) {
                r = -ENOMEM;
                goto out;
        }
        os_raise_file_limit();
        widen(&a);
        for (size_t i = 0; i < count; i++) {
                doors[i].error = listen_on(&a, doors[i].port, &d->fds[d->count]);
                d->count += doors[i].error == 0;
                in_use += doors[i].error == EADDRINUSE;
        }
        if (in_use)
                find_holders(doors, count);
        write_doors(doors, count, out);
out:
        free(doors);
        return r;
}

void doors_shut(struct doors *d) {
        for (size_t i = 0; i < d->count; i++)
                close(d->fds[i]);
        free(d->fds);
        *d = (struct doors){0};
}

/* ---- trying ----------------------------------------------------------------------------------------------------------- */

static void begin_try(struct door *door, union address *a) {
        door->fd = socket(a->any.sa_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
        if (door->fd < 0)
                door->error = errno;
        else if (connect(door->fd, &a->any, with_port(a, door->port)) < 0)
                door->error = errno; /* EINPROGRESS: not yet known */
}

static void end_try(struct door *door) {
        socklen_t size = sizeof(door->error);

        if (getsockopt(door->fd, SOL_SOCKET, SO_ERROR, &door->error, &size) < 0)
                door->error = errno;
}

static void try_some(struct door *doors, size_t count, union address *a) {
        struct pollfd fds[TRIED_AT_ONCE];
        uint64_t until = now_ms() + DOOR_DEADLINE_MS, now;
        size_t waiting;

        for (size_t i = 0; i < count; i++)
                begin_try(&doors[i], a);
        do {
                now = now_ms();
                waiting = 0;
                for (size_t i = 0; i < count; i++) {
                        bool open = doors[i].error == EINPROGRESS;

                        fds[i] = (struct pollfd){open ? doors[i].fd : -1, POLLOUT, 0};
                        waiting += open;
                }
                if (!waiting || now >= until || poll(fds, count, (int)(until - now)) < 0)
                        break;
                for (size_t i = 0; i < count; i++)
                        if (fds[i].revents)
                                end_try(&doors[i]);
        } while (true);
        for (size_t i = 0; i < count; i++) {
                if (doors[i].error == EINPROGRESS)
                        doors[i].error = ETIMEDOUT;
                if (doors[i].fd >= 0)
                        close(doors[i].fd);
        }
}

int doors_try(const char *ip, const char *spec, struct buf *out) {
        struct door *doors = calloc(DOORS_MAX, sizeof(*doors));
        union address a;
        size_t count;
        int r = !doors ? -ENOMEM : parse_address_of(ip, &a) ? parse_spec(spec, doors, &count) : -EINVAL;

        for (size_t i = 0; r == 0 && i < count; i += TRIED_AT_ONCE)
                try_some(doors + i, count - i < TRIED_AT_ONCE ? count - i : TRIED_AT_ONCE, &a);
        if (r == 0)
                write_doors(doors, count, out);
        free(doors);
        return r;
}
