/* msgpack.c - see msgpack.h. The format: github.com/msgpack/msgpack/blob/master/spec.md */
#include "events/msgpack.h"
#include <errno.h>

/* ---- reading -------------------------------------------------------------------------------------------------------- */

static bool take_number(struct slice *in, unsigned bytes, uint64_t *ret_number) {
        uint64_t n = 0;

        if (in->len < bytes)
                return false;
        for (unsigned i = 0; i < bytes; i++)
                n = n << 8 | (unsigned char)in->ptr[i];
        slice_take(in, bytes);
        *ret_number = n;
        return true;
}

static bool take_text(struct slice *in, uint64_t len, struct slice *ret_text) {
        if (in->len < len)
                return false;
        *ret_text = slice_take(in, (size_t)len);
        return true;
}

/* Heads of more than one byte: what kind, how many bytes of number (or length) follow the first, and what they are. */
static const struct head {
        enum mp_kind kind;
        unsigned char bytes;
        enum { AS_IT_IS, IS_SIGNED, IS_FALSE, IS_TRUE, IS_F32, IS_F64, HAS_TYPE } how;
} heads[32] = {
    /* c0 nil, c1 never used, c2 false, c3 true; c4.. bin 8, 16, 32; c7.. ext 8, 16, 32 */
    {MP_NIL, 0, AS_IT_IS},
    {MP_NIL, 255, AS_IT_IS},
    {MP_BOOL, 0, IS_FALSE},
    {MP_BOOL, 0, IS_TRUE},
    {MP_TEXT, 1, AS_IT_IS},
    {MP_TEXT, 2, AS_IT_IS},
    {MP_TEXT, 4, AS_IT_IS},
    {MP_EXT, 1, HAS_TYPE},
    {MP_EXT, 2, HAS_TYPE},
    {MP_EXT, 4, HAS_TYPE},
    /* ca float 32, cb float 64; cc.. uint 8 to 64; d0.. int 8 to 64 */
    {MP_FLOAT, 4, IS_F32},
    {MP_FLOAT, 8, IS_F64},
    {MP_INT, 1, AS_IT_IS},
    {MP_INT, 2, AS_IT_IS},
    {MP_INT, 4, AS_IT_IS},
    {MP_INT, 8, AS_IT_IS},
    {MP_INT, 1, IS_SIGNED},
    {MP_INT, 2, IS_SIGNED},
    {MP_INT, 4, IS_SIGNED},
    {MP_INT, 8, IS_SIGNED},
    /* d4.. fixext 1 to 16: their lengths are said by the head alone */
    {MP_EXT, 0, HAS_TYPE},
    {MP_EXT, 0, HAS_TYPE},
    {MP_EXT, 0, HAS_TYPE},
    {MP_EXT, 0, HAS_TYPE},
    {MP_EXT, 0, HAS_TYPE},
    /* d9.. str 8, 16, 32; dc.. array 16, 32; de.. map 16, 32 */
    {MP_TEXT, 1, AS_IT_IS},
    {MP_TEXT, 2, AS_IT_IS},
    {MP_TEXT, 4, AS_IT_IS},
    {MP_ARRAY, 2, AS_IT_IS},
    {MP_ARRAY, 4, AS_IT_IS},
    {MP_MAP, 2, AS_IT_IS},
    {MP_MAP, 4, AS_IT_IS},
};

static double real_of(uint64_t bits, bool single) {
        uint32_t low = (uint32_t)bits;
        double wide;
        float narrow;

        memcpy(&narrow, &low, sizeof(narrow));
        memcpy(&wide, &bits, sizeof(wide));
        return single ? (double)narrow : wide;
}

static void set_integer(struct mp_value *v, uint64_t n, unsigned bytes) {
        unsigned shift = 64 - 8 * bytes;
        int64_t number = (int64_t)(n << shift) >> shift;

        v->negative = number < 0;
        v->number = (uint64_t)number;
}

static int read_long(struct slice *in, unsigned char first, struct mp_value *v) {
        const struct head *h = &heads[first - 0xc0];
        uint64_t n = 0;

        if (h->bytes == 255 || !take_number(in, h->bytes, &n))
                return -EINVAL;
        v->kind = h->kind;
        v->number = n;
        if (first >= 0xd4 && first <= 0xd8)
                n = 1u << (first - 0xd4);
        if (h->how == HAS_TYPE && !take_text(in, 1, &v->text))
                return -EINVAL;
        if ((v->kind == MP_TEXT || v->kind == MP_EXT) && !take_text(in, n, &v->text))
                return -EINVAL;
        if (h->how == IS_SIGNED)
                set_integer(v, n, h->bytes);
        else if (h->how == IS_TRUE)
                v->number = 1;
        else if (v->kind == MP_FLOAT)
                v->real = real_of(n, h->how == IS_F32);
        return 0;
}

int mp_read(struct slice *in, struct mp_value *ret_value) {
        struct mp_value v = {0};
        unsigned char first;

        if (in->len == 0)
                return -EINVAL;
        first = (unsigned char)*slice_take(in, 1).ptr;
        if (first <= 0x7f || first >= 0xe0) {
                v.kind = MP_INT;
                set_integer(&v, first, 1);
        } else if (first <= 0x8f) {
                v.kind = MP_MAP;
                v.number = first & 0xf;
        } else if (first <= 0x9f) {
                v.kind = MP_ARRAY;
                v.number = first & 0xf;
        } else if (first <= 0xbf) {
                v.kind = MP_TEXT;
                if (!take_text(in, first & 0x1f, &v.text))
                        return -EINVAL;
        } else if (read_long(in, first, &v) < 0) {
                return -EINVAL;
        }
        if ((v.kind == MP_ARRAY && v.number > in->len) || (v.kind == MP_MAP && v.number > in->len / 2))
                return -EINVAL;
        *ret_value = v;
        return 0;
}

/* How many bytes a number has in all, by its first one; 0: it is none. Most values are tokens. */
static inline size_t number_bytes(unsigned char first) {
        static const unsigned char longer[16] = {/* 0xca */ 5, 9, 2, 3, 5, 9, 2, 3, 5, 9};

        if (first <= 0x7f || first >= 0xe0)
                return 1;
        return first >= 0xca && first <= 0xd3 ? longer[first - 0xca] : 0;
}

static void skip_numbers(struct slice *in, uint64_t *left) {
        const char *p = in->ptr, *end = in->ptr + in->len;
        uint64_t n = *left;

        while (n > 0 && p < end) {
                size_t bytes = number_bytes((unsigned char)*p);

                if (bytes == 0 || bytes > (size_t)(end - p))
                        break;
                p += bytes;
                n--;
        }
        in->ptr = p;
        in->len = (size_t)(end - p);
        *left = n;
}

bool mp_read_u32(struct slice *in, uint32_t *ret_number) {
        unsigned char first = in->len > 0 ? (unsigned char)in->ptr[0] : 0xc1;
        unsigned bytes = first <= 0x7f ? 0 : first == 0xcc ? 1 : first == 0xcd ? 2 : first == 0xce ? 4 : 5;
        uint32_t n = first;

        if (bytes == 5 || in->len < 1 + bytes)
                return false;
        if (bytes > 0)
                n = 0;
        for (unsigned i = 1; i <= bytes; i++)
                n = n << 8 | (unsigned char)in->ptr[i];
        in->ptr += 1 + bytes;
        in->len -= 1 + bytes;
        *ret_number = n;
        return true;
}

int mp_skip(struct slice *in, struct slice *ret_value) {
        struct slice rest = *in;
        uint64_t left[MP_DEPTH_MAX]; /* values that are to come at each depth */
        unsigned depth = 0;

        left[0] = 1;
        for (;;) {
                struct mp_value v;
                uint64_t inside;

                while (left[depth] == 0) {
                        if (depth == 0) {
                                *ret_value = slice_of(in->ptr, in->len - rest.len);
                                *in = rest;
                                return 0;
                        }
                        depth--;
                }
                skip_numbers(&rest, &left[depth]);
                if (left[depth] == 0)
                        continue;
                left[depth]--;
                if (mp_read(&rest, &v) < 0)
                        return -EINVAL;
                inside = v.kind == MP_ARRAY ? v.number : v.kind == MP_MAP ? v.number * 2 : 0;
                if (inside == 0)
                        continue;
                if (++depth == MP_DEPTH_MAX)
                        return -EINVAL;
                left[depth] = inside;
        }
}

/* ---- writing -------------------------------------------------------------------------------------------------------- */

static void write_head(struct buf *b, unsigned char first, unsigned bytes, uint64_t n) {
        char out[9];

        out[0] = (char)first;
        for (unsigned i = 0; i < bytes; i++)
                out[1 + i] = (char)(n >> 8 * (bytes - 1 - i));
        buf_append(b, out, 1 + bytes);
}

void mp_write_nil(struct buf *b) {
        buf_add_char(b, (char)0xc0);
}

void mp_write_u64(struct buf *b, uint64_t v) {
        if (v <= 0x7f)
                buf_add_char(b, (char)v);
        else if (v <= UINT8_MAX)
                write_head(b, 0xcc, 1, v);
        else if (v <= UINT16_MAX)
                write_head(b, 0xcd, 2, v);
        else if (v <= UINT32_MAX)
                write_head(b, 0xce, 4, v);
        else
                write_head(b, 0xcf, 8, v);
}

void mp_write_i64(struct buf *b, int64_t v) {
        if (v >= 0)
                mp_write_u64(b, (uint64_t)v);
        else if (v >= -32)
                buf_add_char(b, (char)v);
        else
                write_head(b, 0xd3, 8, (uint64_t)v);
}

void mp_write_double(struct buf *b, double v) {
        uint64_t bits;

        memcpy(&bits, &v, sizeof(bits));
        write_head(b, 0xcb, 8, bits);
}

void mp_write_text(struct buf *b, struct slice s) {
        if (s.len <= 31)
                buf_add_char(b, (char)(0xa0 | s.len));
        else if (s.len <= UINT8_MAX)
                write_head(b, 0xd9, 1, s.len);
        else
                write_head(b, 0xdb, 4, s.len);
        buf_add(b, s);
}

void mp_write_array(struct buf *b, uint32_t count) {
        if (count <= 15)
                buf_add_char(b, (char)(0x90 | count));
        else if (count <= UINT16_MAX)
                write_head(b, 0xdc, 2, count);
        else
                write_head(b, 0xdd, 4, count);
}
