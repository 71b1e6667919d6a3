/* files.c - files replaced whole, directories; ports that can be bound. */
#include "base/file.h"
#include "os/os.h"
#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

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
        r = file_write_fd(fd, contents);
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

int os_check_bind(const char *host, uint16_t port) {
        struct addrinfo hints = {.ai_flags = AI_PASSIVE | AI_NUMERICSERV, .ai_socktype = SOCK_STREAM}, *list, *a;
        char service[8];
        bool tried = false;
        int r = -EADDRNOTAVAIL;

        snprintf(service, sizeof(service), "%u", port);
        if (getaddrinfo(host && *host ? host : NULL, service, &hints, &list) != 0)
                return -EADDRNOTAVAIL;
        for (a = list; a; a = a->ai_next) {
                int one = 1, fd = socket(a->ai_family, a->ai_socktype | SOCK_CLOEXEC, a->ai_protocol);

                /* A family that this machine does not have: what counts are the others. */
                if (fd < 0) {
                        if (!tried)
                                r = -errno;
                        continue;
                }
                tried = true;
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
