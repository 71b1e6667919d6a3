/* utf8.h - UTF-8 as the Unicode standard cuts it: whole characters, and U+FFFD for each maximal broken part (what Rust's
 * from_utf8_lossy and Python's "replace" do). Does not allocate, except into a buf. */
#pragma once
#include "base/buf.h"

enum utf8_kind {
        UTF8_WHOLE, /* a character */
        UTF8_SHORT, /* the bytes end within a character that is right so far */
        UTF8_BROKEN /* no character begins like this: as many bytes as one U+FFFD stands for */
};

/* What s begins with, and how many bytes that is (at least 1). s is not empty. */
enum utf8_kind utf8_next(struct slice s, size_t *ret_bytes);
/* How many bytes from the front are whole characters. */
size_t utf8_valid_prefix(struct slice s);
/* The code point of the whole character that s begins with. */
uint32_t utf8_code_point(struct slice s);
/* Append s; broken parts, and at the end a short one, become U+FFFD. */
void utf8_add_lossy(struct buf *out, struct slice s);
