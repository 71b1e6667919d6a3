/* slice.c - see slice.h. */
#include "base/slice.h"
#include <errno.h>
#include <math.h>
#include <stdlib.h>

static char lower(char c) {
        return c >= 'A' && c <= 'Z' ? (char)(c + 32) : c;
}

bool slice_eq_icase(struct slice a, struct slice b) {
        if (a.len != b.len)
                return false;
        for (size_t i = 0; i < a.len; i++)
                if (lower(a.ptr[i]) != lower(b.ptr[i]))
                        return false;
        return true;
}

bool slice_is_icase(struct slice a, const char *text) {
        return slice_eq_icase(a, slice_str(text));
}

static char fold_name(char c) {
        if (c >= 'A' && c <= 'Z')
                return (char)(c - 'A' + 'a');
        return c == '-' ? '_' : c;
}

bool slice_is_name(struct slice a, const char *name) {
        size_t i = 0;

        while (i < a.len && name[i] && fold_name(a.ptr[i]) == fold_name(name[i]))
                i++;
        return i == a.len && !name[i];
}

bool slice_starts(struct slice s, struct slice prefix) {
        return s.len >= prefix.len && slice_eq(slice_of(s.ptr, prefix.len), prefix);
}

bool slice_ends(struct slice s, struct slice suffix) {
        return s.len >= suffix.len && slice_eq(slice_sub(s, s.len - suffix.len, s.len), suffix);
}

int slice_cmp(struct slice a, struct slice b) {
        size_t common = a.len < b.len ? a.len : b.len;
        int order = common ? memcmp(a.ptr, b.ptr, common) : 0;

        if (order)
                return order;
        return a.len < b.len ? -1 : a.len > b.len;
}

size_t slice_find(struct slice s, char byte, size_t from) {
        const char *at;

        if (from >= s.len)
                return s.len;
        at = memchr(s.ptr + from, byte, s.len - from);
        return at ? (size_t)(at - s.ptr) : s.len;
}

size_t slice_find_slice(struct slice s, struct slice needle, size_t from) {
        const char *at;

        if (from > s.len)
                return s.len;
        if (needle.len == 0)
                return from;
        if (from == s.len)
                return s.len;
        at = memmem(s.ptr + from, s.len - from, needle.ptr, needle.len);
        return at ? (size_t)(at - s.ptr) : s.len;
}

struct slice slice_sub(struct slice s, size_t from, size_t to) {
        if (to > s.len)
                to = s.len;
        if (from > to)
                from = to;
        return s.ptr ? slice_of(s.ptr + from, to - from) : SLICE_NONE;
}

struct slice slice_take(struct slice *s, size_t n) {
        struct slice front = slice_sub(*s, 0, n);

        *s = slice_sub(*s, n, s->len);
        return front;
}

bool slice_split(struct slice *s, char sep, struct slice *ret_part) {
        size_t at;

        if (!s->ptr)
                return false;
        at = slice_find(*s, sep, 0);
        *ret_part = slice_sub(*s, 0, at);
        *s = at < s->len ? slice_sub(*s, at + 1, s->len) : SLICE_NONE;
        return true;
}

static bool is_space(char c) {
        return c == ' ' || c == '\t' || c == '\r' || c == '\n';
}

struct slice slice_trim(struct slice s) {
        while (s.len && is_space(s.ptr[0]))
                s.ptr++, s.len--;
        while (s.len && is_space(s.ptr[s.len - 1]))
                s.len--;
        return s;
}

size_t slice_characters(struct slice s) {
        size_t n = 0;

        for (size_t i = 0; i < s.len; i++)
                n += ((unsigned char)s.ptr[i] & 0xc0) != 0x80;
        return n;
}

int slice_to_u64(struct slice s, uint64_t *ret_value) {
        uint64_t value = 0;

        if (s.len == 0)
                return -EINVAL;
        for (size_t i = 0; i < s.len; i++)
                if (s.ptr[i] < '0' || s.ptr[i] > '9')
                        return -EINVAL;
        for (size_t i = 0; i < s.len; i++)
                if (__builtin_mul_overflow(value, 10, &value) ||
                    __builtin_add_overflow(value, (uint64_t)(s.ptr[i] - '0'), &value))
                        return -ERANGE;
        *ret_value = value;
        return 0;
}

int slice_to_i64(struct slice s, int64_t *ret_value) {
        bool negative = s.len && s.ptr[0] == '-';
        uint64_t magnitude;
        int r = slice_to_u64(negative ? slice_sub(s, 1, s.len) : s, &magnitude);

        if (r < 0)
                return r;
        if (magnitude > (uint64_t)INT64_MAX + negative)
                return -ERANGE;
        *ret_value = negative ? (int64_t)(0 - magnitude) : (int64_t)magnitude;
        return 0;
}

/* Numbers longer than this are no numbers anybody meant. */
#define NUMBER_MAX 400

int slice_to_double(struct slice s, double *ret_value) {
        char text[NUMBER_MAX + 1], *end;
        size_t i = 0, digits = 0;
        double value;

        if (s.len == 0 || s.len > NUMBER_MAX)
                return -EINVAL;
        if (s.ptr[i] == '-')
                i++;
        for (; i < s.len && s.ptr[i] >= '0' && s.ptr[i] <= '9'; i++)
                digits++;
        if (digits && i < s.len && s.ptr[i] == '.')
                for (i++, digits = 0; i < s.len && s.ptr[i] >= '0' && s.ptr[i] <= '9'; i++)
                        digits++;
        if (digits && i < s.len && (s.ptr[i] == 'e' || s.ptr[i] == 'E')) {
                i++;
                if (i < s.len && (s.ptr[i] == '+' || s.ptr[i] == '-'))
                        i++;
                for (digits = 0; i < s.len && s.ptr[i] >= '0' && s.ptr[i] <= '9'; i++)
                        digits++;
        }
        if (!digits || i != s.len)
                return -EINVAL;
        memcpy(text, s.ptr, s.len);
        text[s.len] = 0;
        /* baton never calls setlocale(), so the decimal point is '.' */
        value = strtod(text, &end);
        if (*end)
                return -EINVAL;
        if (isinf(value))
                return -ERANGE;
        *ret_value = value;
        return 0;
}

char *slice_dup(struct slice s) {
        char *copy = malloc(s.len + 1);

        if (!copy)
                return NULL;
        if (s.len)
                memcpy(copy, s.ptr, s.len);
        copy[s.len] = 0;
        return copy;
}
