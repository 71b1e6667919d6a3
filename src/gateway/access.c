/* access.c - see access.h. */
#include "gateway/access.h"
#include "base/file.h"
#include <errno.h>
#include <fcntl.h>
#include <unistd.h>

#define FLUSH_BYTES (32u << 10)

int access_open(struct access *a, const char *path, struct error *e) {
        *a = (struct access){.fd = -1};
        if (!path)
                return 0;
        if (!strcmp(path, "-")) {
                a->fd = STDOUT_FILENO;
                return 0;
        }
        a->fd = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0640);
        if (a->fd < 0)
                return error_set(e, -errno, "access log %s: %s", path, strerror(errno));
        a->own = true;
        return 0;
}

void access_close(struct access *a) {
        access_flush(a);
        if (a->own)
                close(a->fd);
        buf_free(&a->lines);
        a->fd = -1;
        a->own = false;
}

void access_flush(struct access *a) {
        if (a->lines.len == 0)
                return;
        file_write_fd(a->fd, buf_slice(&a->lines)); /* what a full disk does not take is lost */
        buf_reset(&a->lines);
}

struct buf *access_begin(struct access *a) {
        return a->fd < 0 ? NULL : &a->lines;
}

void access_end(struct access *a) {
        buf_add_char(&a->lines, '\n');
        if (!buf_ok(&a->lines))
                buf_reset(&a->lines);
        if (a->lines.len >= FLUSH_BYTES)
                access_flush(a);
}
