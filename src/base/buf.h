/* buf.h - a growing byte buffer with one sticky error.
 *
 * Appending after memory ran out does nothing, so that a writer of many pieces checks once at the end (buf_ok). A zeroed
 * struct buf is an empty buffer. Not thread-safe. */
#pragma once
#include "base/slice.h"
#include <stdarg.h>

struct buf {
        char *ptr; /* owned; NULL while cap is 0 */
        size_t len, cap;
        bool failed; /* memory was out once: contents are a prefix of what was asked for */
};

void buf_free(struct buf *b); /* leaves an empty buffer; NULL is fine */

static inline bool buf_ok(const struct buf *b) {
        return !b->failed;
}
static inline struct slice buf_slice(const struct buf *b) {
        return (struct slice){b->ptr, b->len};
}

/* Forget the contents and the error, keep the memory. */
void buf_reset(struct buf *b);
/* Room for `more` bytes beyond len. Returns where they go, or NULL (and sets failed). Count them with buf_commit. */
char *buf_reserve(struct buf *b, size_t more);
void buf_commit(struct buf *b, size_t written);

/* What is appended may not lie in b itself: growing moves it. */
void buf_append(struct buf *b, const void *ptr, size_t len);
void buf_add(struct buf *b, struct slice s);
void buf_add_str(struct buf *b, const char *text);
void buf_add_char(struct buf *b, char c);
void buf_printf(struct buf *b, const char *format, ...) __attribute__((format(printf, 2, 3)));
void buf_vprintf(struct buf *b, const char *format, va_list args);
void buf_add_u64(struct buf *b, uint64_t value);
void buf_add_i64(struct buf *b, int64_t value);
/* A decimal of the fewest digits that reads back as the same double; JSON syntax, always with '.' or 'e' so that it stays
 * a float. NaN and infinities are written as null. */
void buf_add_double(struct buf *b, double value);

/* Drop the first `n` bytes (n <= len) by moving the rest to the front. */
void buf_consume(struct buf *b, size_t n);
/* NUL-terminate without counting the NUL. Returns the text, or "" when memory is out. */
const char *buf_cstr(struct buf *b);
