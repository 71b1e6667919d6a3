/* rotate.c - see rotate.h. */
#include "launch/rotate.h"
#include "base/file.h"
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

static int open_current(struct rotate *r) {
        struct stat st;

        r->fd = open(r->path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC | O_NOFOLLOW, 0600);
        if (r->fd < 0)
                return -errno;
        r->size = fstat(r->fd, &st) == 0 ? (uint64_t)st.st_size : 0;
        return 0;
}

int rotate_open(struct rotate *r, const char *path, uint64_t max_size, unsigned files, struct error *e) {
        int result;

        *r = (struct rotate){.fd = -1, .max_size = max_size, .files = files ? files : 1};
        if ((size_t)snprintf(r->path, sizeof(r->path), "%s", path) >= sizeof(r->path) - 12)
                return error_set(e, -ENAMETOOLONG, "log file name too long: %.100s…", path);
        result = open_current(r);
        return result < 0 ? error_set(e, result, "cannot write %s: %s", path, strerror(-result)) : 0;
}

static void move_on(struct rotate *r) {
        char from[528], to[528];

        close(r->fd);
        for (unsigned i = r->files - 1; i > 0; i--) {
                if (i == 1)
                        snprintf(from, sizeof(from), "%s", r->path);
                else
                        snprintf(from, sizeof(from), "%s.%u", r->path, i - 1);
                snprintf(to, sizeof(to), "%s.%u", r->path, i);
                rename(from, to); /* a missing one is no matter */
        }
        if (r->files == 1)
                unlink(r->path);
        open_current(r);
}

void rotate_write(struct rotate *r, struct slice bytes) {
        if (r->fd < 0 && open_current(r) < 0)
                return;
        while (bytes.len) {
                struct slice part = bytes;

                if (r->size + bytes.len > r->max_size) {
                        size_t room = r->max_size > r->size ? (size_t)(r->max_size - r->size) : 0;
                        const char *line = room ? memrchr(bytes.ptr, '\n', room < bytes.len ? room : bytes.len) : NULL;

                        /* What fits up to the end of a line; a line longer than a file is cut. */
                        part = slice_sub(bytes, 0, line ? (size_t)(line - bytes.ptr) + 1 : r->size ? 0 : room);
                }
                if (file_write_fd(r->fd, part) < 0)
                        return;
                r->size += part.len;
                slice_take(&bytes, part.len);
                if (bytes.len)
                        move_on(r);
                if (r->fd < 0)
                        return;
        }
}

void rotate_close(struct rotate *r) {
        if (r->fd >= 0)
                close(r->fd);
        r->fd = -1;
}
