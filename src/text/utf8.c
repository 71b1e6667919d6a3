/* utf8.c - see utf8.h. */
#include "text/utf8.h"
#include <assert.h>

/* The Unicode standard, table 3-7: which second byte may follow a first one; all later ones are 80..BF. */
struct lead {
        unsigned char length, low, high;
};

static struct lead lead_of(unsigned char c) {
        if (c < 0x80)
                return (struct lead){1, 0, 0};
        if (c >= 0xc2 && c <= 0xdf)
                return (struct lead){2, 0x80, 0xbf};
        if (c >= 0xe0 && c <= 0xef)
                return (struct lead){3, c == 0xe0 ? 0xa0 : 0x80, c == 0xed ? 0x9f : 0xbf};
        if (c >= 0xf0 && c <= 0xf4)
                return (struct lead){4, c == 0xf0 ? 0x90 : 0x80, c == 0xf4 ? 0x8f : 0xbf};
        return (struct lead){0, 0, 0};
}

enum utf8_kind utf8_next(struct slice s, size_t *ret_bytes) {
        struct lead lead;

        assert(s.len > 0);
        lead = lead_of((unsigned char)s.ptr[0]);
        if (lead.length == 0) {
                *ret_bytes = 1;
                return UTF8_BROKEN;
        }
        for (size_t i = 1; i < lead.length; i++) {
                unsigned char c;

                if (i == s.len) {
                        *ret_bytes = i;
                        return UTF8_SHORT;
                }
                c = (unsigned char)s.ptr[i];
                if (c < (i == 1 ? lead.low : 0x80) || c > (i == 1 ? lead.high : 0xbf)) {
                        *ret_bytes = i;
                        return UTF8_BROKEN;
                }
        }
        *ret_bytes = lead.length;
        return UTF8_WHOLE;
}

static size_t ascii_prefix(struct slice s) {
        size_t i = 0;

        while (i + 8 <= s.len) {
                uint64_t word;

                memcpy(&word, s.ptr + i, 8);
                if (word & 0x8080808080808080u)
                        break;
                i += 8;
        }
        while (i < s.len && (unsigned char)s.ptr[i] < 0x80)
                i++;
        return i;
}

size_t utf8_valid_prefix(struct slice s) {
        size_t at = 0;

        for (;;) {
                size_t bytes;

                at += ascii_prefix(slice_sub(s, at, s.len));
                if (at == s.len || utf8_next(slice_sub(s, at, s.len), &bytes) != UTF8_WHOLE)
                        return at;
                at += bytes;
        }
}

uint32_t utf8_code_point(struct slice s) {
        const unsigned char *p = (const unsigned char *)s.ptr;

        switch (lead_of(p[0]).length) {
        case 2:
                return (p[0] & 0x1fu) << 6 | (p[1] & 0x3fu);
        case 3:
                return (p[0] & 0x0fu) << 12 | (p[1] & 0x3fu) << 6 | (p[2] & 0x3fu);
        case 4:
                return (p[0] & 0x07u) << 18 | (p[1] & 0x3fu) << 12 | (p[2] & 0x3fu) << 6 | (p[3] & 0x3fu);
        default:
                return p[0];
        }
}

void utf8_add_lossy(struct buf *out, struct slice s) {
        for (;;) {
                size_t bytes = utf8_valid_prefix(s);

                buf_add(out, slice_take(&s, bytes));
                if (s.len == 0)
                        return;
                utf8_next(s, &bytes);
                slice_take(&s, bytes);
                buf_add(out, SLICE_LIT("\xef\xbf\xbd"));
        }
}
