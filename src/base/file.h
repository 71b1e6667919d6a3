/* file.h - whole files and all of a descriptor, in and out. What else is asked of the file system is in os/. */
#pragma once
#include "base/buf.h"
#include "base/error.h"

/* Append a whole file to `out`. -EFBIG beyond max_bytes. e names the file. On errors `out` holds what it held, unless memory
 * ran out (-ENOMEM, and `out` has failed). */
int file_read_whole(const char *path, size_t max_bytes, struct buf *out, struct error *e);
/* The same of a descriptor, up to its end. */
int file_read_fd(int fd, size_t max_bytes, struct buf *out);
int file_write_fd(int fd, struct slice bytes); /* the whole of it, or an error */
