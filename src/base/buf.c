/* buf.c - see buf.h. */
#include "base/buf.h"
#include <assert.h>
#include <float.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

void buf_free(struct buf *b) {
        if (!b)
                return;
        free(b->ptr);
        *b = (struct buf){0};
}

void buf_reset(struct buf *b) {
        b->len = 0;
        b->failed = false;
}

char *buf_reserve(struct buf *b, size_t more) {
        size_t needed, cap;
        char *grown;

        if (b->failed)
                return NULL;
        if (b->cap - b->len >= more && b->ptr)
                return b->ptr + b->len;
        if (__builtin_add_overflow(b->len, more, &needed) || needed > PTRDIFF_MAX / 2) {
                b->failed = true;
                return NULL;
        }
        for (cap = b->cap ? b->cap : 64; cap < needed;)
                cap *= 2;
        grown = realloc(b->ptr, cap);
        if (!grown) {
                b->failed = true;
                return NULL;
        }
        b->ptr = grown;
        b->cap = cap;
        return b->ptr + b->len;
}

void buf_commit(struct buf *b, size_t written) {
        assert(written <= b->cap - b->len);
        b->len += written;
}

void buf_append(struct buf *b, const void *ptr, size_t len) {
        char *to = buf_reserve(b, len);

        if (!to || !len)
                return;
        memcpy(to, ptr, len);
        b->len += len;
}

void buf_add(struct buf *b, struct slice s) {
        buf_append(b, s.ptr, s.len);
}

void buf_add_str(struct buf *b, const char *text) {
        buf_append(b, text, strlen(text));
}

void buf_add_char(struct buf *b, char c) {
        buf_append(b, &c, 1);
}

void buf_vprintf(struct buf *b, const char *format, va_list args) {
        va_list again;
        char *to = buf_reserve(b, 64);
        int n;

        if (!to)
                return;
        va_copy(again, args);
        n = vsnprintf(to, b->cap - b->len, format, args);
        if (n < 0)
                b->failed = true;
        else if ((size_t)n >= b->cap - b->len) {
                to = buf_reserve(b, (size_t)n + 1);
                if (to)
                        vsnprintf(to, (size_t)n + 1, format, again);
        }
        va_end(again);
        if (!b->failed)
                b->len += (size_t)n;
}

void buf_printf(struct buf *b, const char *format, ...) {
        va_list args;

        va_start(args, format);
        buf_vprintf(b, format, args);
        va_end(args);
}

void buf_add_u64(struct buf *b, uint64_t value) {
        char text[20];
        size_t i = sizeof(text);

        do
                text[--i] = (char)('0' + value % 10);
        while (value /= 10);
        buf_append(b, text + i, sizeof(text) - i);
}

void buf_add_i64(struct buf *b, int64_t value) {
        if (value < 0)
                buf_add_char(b, '-');
        buf_add_u64(b, value < 0 ? 0 - (uint64_t)value : (uint64_t)value);
}

void buf_add_double(struct buf *b, double value) {
        char text[40];

        if (!isfinite(value)) {
                buf_add_str(b, "null");
                return;
        }
        /* 15 digits are enough for most, 17 for all. Subnormal numbers have fewer bits and may do with one. */
        for (int digits = fabs(value) < DBL_MIN ? 1 : 15; digits <= 17; digits++) {
                snprintf(text, sizeof(text), "%.*g", digits, value);
                if (strtod(text, NULL) == value)
                        break;
        }
        buf_add_str(b, text);
        if (!strpbrk(text, ".e"))
                buf_add_str(b, ".0");
}

void buf_consume(struct buf *b, size_t n) {
        assert(n <= b->len);
        if (n)
                memmove(b->ptr, b->ptr + n, b->len - n);
        b->len -= n;
}

const char *buf_cstr(struct buf *b) {
        char *to = buf_reserve(b, 1);

        if (!to)
                return "";
        *to = 0;
        return b->ptr;
}
