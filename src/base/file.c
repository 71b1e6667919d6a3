/* file.c - see file.h. */
#include "base/file.h"
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#define READ_BYTES (64u << 10)

/* Append one piece. Returns how many bytes came, 0 at the end. */
static ssize_t read_piece(int fd, struct buf *out) {
        char *to = buf_reserve(out, READ_BYTES);
        ssize_t n;

        if (!to)
                return -ENOMEM;
        do
                n = read(fd, to, READ_BYTES);
        while (n < 0 && errno == EINTR);
        if (n < 0)
                return -errno;
        buf_commit(out, (size_t)n);
        return n;
}

int file_read_fd(int fd, size_t max_bytes, struct buf *out) {
        size_t before = out->len;
        ssize_t n;

        do {
                n = read_piece(fd, out);
                if (out->len - before > max_bytes)
                        n = -EFBIG;
        } while (n > 0);
        if (n < 0 && buf_ok(out))
                out->len = before;
        return (int)n;
}

int file_read_whole(const char *path, size_t max_bytes, struct buf *out, struct error *e) {
        int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY), r;

        if (fd < 0) {
                r = -errno;
                return error_set(e, r, "cannot read %s: %s", path, strerror(-r));
        }
        r = file_read_fd(fd, max_bytes, out);
        close(fd);
        if (r == -EFBIG)
                return error_set(e, r, "%s is larger than %zu bytes", path, max_bytes);
        return r < 0 ? error_set(e, r, "cannot read %s: %s", path, r == -ENOMEM ? "out of memory" : strerror(-r)) : 0;
}

int file_write_fd(int fd, struct slice bytes) {
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
