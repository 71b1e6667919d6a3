/* slice.h - a run of bytes that somebody else owns.
 *
 * Text in baton is a slice {pointer, length}: never assumed to end in NUL, passed by value, valid as long as its owner
 * says. No function here allocates. */
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

struct slice {
        const char *ptr;
        size_t len;
};

#define SLICE_LIT(text) ((struct slice){(text), sizeof(text) - 1})
#define SLICE_NONE      ((struct slice){NULL, 0})

/* For printf: "%.*s", SLICE_ARG(s). Slices longer than INT_MAX are cut. */
#define SLICE_ARG(s) ((int)((s).len > 0x7fffffff ? 0x7fffffff : (s).len)), ((s).ptr ? (s).ptr : "")

static inline struct slice slice_of(const void *ptr, size_t len) {
        return (struct slice){ptr, len};
}

/* A view of a C string; NULL gives the empty slice. */
static inline struct slice slice_str(const char *text) {
        return (struct slice){text, text ? strlen(text) : 0};
}

static inline bool slice_eq(struct slice a, struct slice b) {
        return a.len == b.len && (a.len == 0 || (a.ptr && b.ptr && memcmp(a.ptr, b.ptr, a.len) == 0));
}

static inline bool slice_is(struct slice a, const char *text) {
        return slice_eq(a, slice_str(text));
}

/* ASCII letters compare equal in either case; the locale plays no part. */
bool slice_eq_icase(struct slice a, struct slice b);
bool slice_is_icase(struct slice a, const char *text);
/* The same, and '-' and '_' compare equal too: names that people write either way. */
bool slice_is_name(struct slice a, const char *name);

bool slice_starts(struct slice s, struct slice prefix);
bool slice_ends(struct slice s, struct slice suffix);

/* memcmp order, shorter first on a common prefix: <0, 0, >0. */
int slice_cmp(struct slice a, struct slice b);

/* Index of the first `byte` at or after `from`, or s.len when there is none. */
size_t slice_find(struct slice s, char byte, size_t from);
/* Index of the first occurrence of `needle` at or after `from`, or s.len. The empty needle is found at once. */
size_t slice_find_slice(struct slice s, struct slice needle, size_t from);

/* Bytes [from, to); both are clamped to the slice. */
struct slice slice_sub(struct slice s, size_t from, size_t to);
/* Take the first `n` bytes (clamped) off the front of *s and return them. */
struct slice slice_take(struct slice *s, size_t n);
/* Take everything before the first `sep` off *s, and drop the separator; all of it when there is none.
 * Returns false when *s was already exhausted (ptr NULL), which ends a loop over the parts of a list. */
bool slice_split(struct slice *s, char sep, struct slice *ret_part);
/* Without leading and trailing space, tab, CR and LF. */
struct slice slice_trim(struct slice s);
/* How many characters (code points) UTF-8 text has. */
size_t slice_characters(struct slice s);

/* Decimal digits only, the whole slice. Returns 0, -EINVAL (empty, other bytes) or -ERANGE. */
int slice_to_u64(struct slice s, uint64_t *ret_value);
/* As slice_to_u64 with an optional leading '-'. */
int slice_to_i64(struct slice s, int64_t *ret_value);
/* A decimal number as in JSON (leading zeros are taken), the whole slice. Returns 0, -EINVAL (also for "inf", "nan", hex) or
 * -ERANGE (beyond the largest double). */
int slice_to_double(struct slice s, double *ret_value);

/* A NUL-terminated malloc'd copy, or NULL when memory is out. A NUL inside is copied as it is. */
char *slice_dup(struct slice s);
