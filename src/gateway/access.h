/* access.h - the access log: one JSON object per request, written in batches.
 *
 * Lines are gathered and written with one write(2) when 32 KiB are there or on access_flush(), which the gateway's timer
 * calls several times a second. A file that cannot be written (disk full) loses lines, never requests. */
#pragma once
#include "base/buf.h"
#include "base/error.h"

struct access {
        int fd; /* -1: off */
        bool own;
        struct buf lines;
};

/* NULL path: off; "-": standard output. 0 or a negative errno with a text. */
int access_open(struct access *a, const char *path, struct error *e);
void access_close(struct access *a);
void access_flush(struct access *a);
/* Begin a line: returns the buffer to write one JSON object into, or NULL when off. End it with access_end. */
struct buf *access_begin(struct access *a);
void access_end(struct access *a);
