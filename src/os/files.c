/* files.c - whole files, in and out; ports that can be bound. */
#include "os/os.h"
#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

int os_read_file(const char *path, size_t max_bytes, struct buf *out, struct error *e) {
        int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY), r = 0;
        size_t before = out->len;

        if (fd < 0) {
                r = -errno;
                return error_set(e, r, "cannot read %s: %s", path, strerror(-r));
        }
        for (;;) {
                char *to = buf_reserve(out, 1 << 16);
                ssize_t n;

                if (!to) {
                        r = error_set(e, -ENOMEM, "cannot read %s: out of memory", path);
                        break;
                }
                n = read(fd, to, 1 << 16);
                if (n < 0 && errno == EINTR)
                        continue;
                if (n < 0) {
                        r = -errno;
                        error_set(e, r, "cannot read %s: %s", path, strerror(-r));
                }
                if (n <= 0)
                        break;
                buf_commit(out, (size_t)n);
                if (out->len - before > max_bytes) {
                        r = error_set(e, -EFBIG, "%s is larger than %zu bytes", path, max_bytes);
                        break;
                }
        }
        close(fd);
        if (r < 0 && buf_ok(out))
                out->len = before;
        return r;
}

int os_write_all(int fd, struct slice bytes) {
        while (bytes.len) {
                ssize_t n = write(fd, bytes.ptr, bytes.len);

                if (n < 0 && errno == EINTR)
                        continue;
                if (n < 0)
                        return -errno;
                if (n == 0)
                        return -EIO;
                slice_take(&bytes, (size_t)n);
        }
        return 0;
}

static int sync_directory_of(const char *path) {
        char dir[4096];
        char *slash;
        int fd, r;

        snprintf(dir, sizeof(dir), "%s", path);
        slash = strrchr(dir, '/');
        if (!slash)
                snprintf(dir, sizeof(dir), ".");
        else
                slash[slash == dir] = 0;
        fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        if (fd < 0)
                return -errno;
        r = fsync(fd) < 0 ? -errno : 0;
        close(fd);
        return r;
}

int os_write_file_atomic(const char *path, struct slice contents, mode_t mode, struct error *e) {
        char temporary[4096];
        int fd, r;

        if ((size_t)snprintf(temporary, sizeof(temporary), "%s.XXXXXX", path) >= sizeof(temporary))
                return error_set(e, -ENAMETOOLONG, "cannot write %s: name too long", path);
        fd = mkostemp(temporary, O_CLOEXEC);
        if (fd < 0) {
                r = -errno;
                return error_set(e, r, "cannot write %s: %s", path, strerror(-r));
        }
        r = os_write_all(fd, contents);
        if (r == 0 && (fchmod(fd, mode) < 0 || fsync(fd) < 0))
                r = -errno;
        if (close(fd) < 0 && r == 0)
                r = -errno;
        if (r == 0 && rename(temporary, path) < 0)
                r = -errno;
        if (r < 0) {
                unlink(temporary);
                return error_set(e, r, "cannot write %s: %s", path, strerror(-r));
        }
        r = sync_directory_of(path);
        return r < 0 ? error_set(e, r, "cannot sync the directory of %s: %s", path, strerror(-r)) : 0;
}

int os_make_dirs(const char *path, mode_t mode, struct error *e) {
        char part[4096];
        size_t len = strlen(path);

        if (len == 0 || len >= sizeof(part))
                return error_set(e, -ENAMETOOLONG, "cannot make directory %.100s: bad name", path);
        for (size_t i = 1; i <= len; i++) {
                struct stat st;

                if (path[i] != '/' && path[i] != 0)
                        continue;
                memcpy(part, path, i);
                part[i] = 0;
                if (mkdir(part, mode) == 0)
                        continue;
                if (errno == EEXIST && stat(part, &st) == 0 && S_ISDIR(st.st_mode))
                        continue;
                return error_set(e, errno == EEXIST ? -ENOTDIR : -errno, "cannot make directory %s: %s", part,
                    errno == EEXIST ? "a file is in the way" : strerror(errno));
        }
        return 0;
}

int os_parse_host_port(struct slice text, struct slice *ret_host, uint16_t *ret_port) {
        struct slice host, port;
        uint64_t number;
        size_t at;

        if (text.len && text.ptr[0] == '[') {
                at = slice_find(text, ']', 0);
                if (at + 1 >= text.len || text.ptr[at + 1] != ':')
                        return -EINVAL;
                host = slice_sub(text, 1, at);
                port = slice_sub(text, at + 2, text.len);
        } else {
                at = slice_find(text, ':', 0);
                if (at == text.len || slice_find(text, ':', at + 1) != text.len)
                        return -EINVAL;
                host = slice_sub(text, 0, at);
                port = slice_sub(text, at + 1, text.len);
        }
        if (host.len == 0 || port.len > 5 || slice_to_u64(port, &number) < 0 || number == 0 || number > 65535)
                return -EINVAL;
        *ret_host = host;
        *ret_port = (uint16_t)number;
        return 0;
}

int os_check_bind(const char *host, uint16_t port) {
        struct addrinfo hints = {.ai_flags = AI_PASSIVE | AI_NUMERICSERV, .ai_socktype = SOCK_STREAM}, *list, *a;
        char service[8];
        int r = -EADDRNOTAVAIL;

        snprintf(service, sizeof(service), "%u", port);
        if (getaddrinfo(host && *host ? host : NULL, service, &hints, &list) != 0)
                return -EADDRNOTAVAIL;
        for (a = list; a; a = a->ai_next) {
                int one = 1, fd = socket(a->ai_family, a->ai_socktype | SOCK_CLOEXEC, a->ai_protocol);

                if (fd < 0) {
                        r = -errno;
                        continue;
                }
                /* As a server would: connections of a former one in TIME_WAIT do not count. */
                setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
                r = bind(fd, a->ai_addr, a->ai_addrlen) < 0 || listen(fd, 1) < 0 ? -errno : 0;
                close(fd);
                if (r < 0)
                        break;
        }
        freeaddrinfo(list);
        return r;
}
