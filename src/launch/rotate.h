/* rotate.h - a log file of bounded size, with numbered older ones beside it (private to launch/). */
#pragma once
#include "base/error.h"
#include "base/slice.h"

struct rotate {
        char path[512];
        int fd;
        uint64_t size, max_size;
        unsigned files; /* including the current one */
};

/* Append to PATH, at most max_size (not 0) bytes before it is moved on to PATH.1. 0 or a negative errno with a text. */
int rotate_open(struct rotate *r, const char *path, uint64_t max_size, unsigned files, struct error *e);
/* Write bytes, moving on to a new file between lines where possible. A full disk loses the bytes, never the process:
 * writing goes on when there is room again. A file that cannot be moved is begun anew: the size holds all the same. */
void rotate_write(struct rotate *r, struct slice bytes);
void rotate_close(struct rotate *r);
