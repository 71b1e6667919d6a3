/* bytelevel.c - see bytelevel.h. */
#include "text/bytelevel.h"

/* Bytes that print stand for themselves; the other 68 took the code points from 256 on, in their order. */
#define BYTES_THAT_PRINT(x)                                                                                            \
        (((x) >= 0x21 && (x) <= 0x7e) || ((x) >= 0xa1 && (x) <= 0xac) || ((x) >= 0xae && (x) <= 0xff))

static int byte_of(uint32_t code_point) {
        if (code_point < 0x100)
                return BYTES_THAT_PRINT(code_point) ? (int)code_point : -1;
        code_point -= 0x100;
        if (code_point <= 0x20)
                return (int)code_point;
        if (code_point <= 0x20 + 34) /* 7F..A0 */
                return (int)(code_point - 0x21 + 0x7f);
        return code_point == 67 ? 0xad : -1;
}

ptrdiff_t bytelevel_bytes(struct slice entry, char *ret_bytes) {
        size_t n = 0, i = 0;

        while (i < entry.len) {
                unsigned char c = (unsigned char)entry.ptr[i++];
                uint32_t code_point = c;
                int byte;

                if (c >= 0x80) {
                        /* All characters of the alphabet are below U+0800: two bytes. */
                        if (c < 0xc2 || c > 0xdf || i == entry.len)
                                return -1;
                        code_point = (c & 0x1fu) << 6 | ((unsigned char)entry.ptr[i++] & 0x3fu);
                }
                byte = byte_of(code_point);
                if (byte < 0)
                        return -1;
                ret_bytes[n++] = (char)byte;
        }
        return (ptrdiff_t)n;
}
