/* rotate.c - see rotate.h. */
#include "launch/rotate.h"
#include "base/file.h"
#include <assert.h>
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

        assert(max_size > 0);
        *r = (struct rotate){.fd = -1, .max_size = max_size, .files = files ? files : 1};
        if ((size_t)snprintf(r->path, sizeof(r->path), "%s", path) >= sizeof(r->path) - 12)
                return error_set(e, -ENAMETOOLONG, "log file name too long: %.100s…", path);
        result = open_current(r);
        return result < 0 ? error_set(e, result, "cannot write %s: %s", path, strerror(-result)) : 0;
}

/* Each file one number up, over the oldest. 0, or -errno when the current one is where it was. */
static int renumber(struct rotate *r) {
        char from[528], to[528];
        int result = -ENOENT;

        for (unsigned i = r->files - 1; i > 0; i--) {
                if (i == 1)
                        snprintf(from, sizeof(from), "%s", r->path);
                else
                        snprintf(from, sizeof(from), "%s.%u", r->path, i - 1);
                snprintf(to, sizeof(to), "%s.%u", r->path, i);
                result = rename(from, to) < 0 ? -errno : 0; /* of older ones a missing one is no matter */
        }
        return result;
}

/* To an empty file: a new one, or this one without what it holds when it cannot be moved away. False: neither. */
static bool move_on(struct rotate *r) {
        if (r->files > 1 && renumber(r) == 0) {
                close(r->fd);
                return open_current(r) == 0;
        }
        if (ftruncate(r->fd, 0) < 0)
                return false;
        r->size = 0;
        return true;
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
                if (bytes.len && !move_on(r))
                        return;
        }
}

void rotate_close(struct rotate *r) {
        if (r->fd >= 0)
                close(r->fd);
        r->fd = -1;
}
