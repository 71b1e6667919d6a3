/* added.h - tokens that are found in the text before it is cut into pieces: the leftmost, of those the longest.
 *
 * Constant after added_finish(). */
#pragma once
#include "base/slice.h"

/* The released files' longest have 31 bytes. A text that keeps almost matching costs this much per byte at worst. */
#define ADDED_BYTES_MAX 256u

enum {
        ADDED_LSTRIP = 1, /* takes the white space before it along */
        ADDED_RSTRIP = 2,
        ADDED_SINGLE_WORD = 4, /* only between characters that belong to no word */
};

struct added_token {
        struct slice text; /* borrowed */
        uint32_t id, flags;
};

/* Zeroed: empty. */
struct added_set {
        struct added_token *tokens; /* sorted by text after added_finish() */
        size_t count, capacity;
        bool starts[256]; /* first bytes */
};

int added_add(struct added_set *set, struct slice text, uint32_t id, uint32_t flags); /* 0 or -ENOMEM */
void added_finish(struct added_set *set); /* sort, and keep one of equal texts */
void added_free(struct added_set *set);
/* The first match at or after `from`; returns the token and where it begins, or NULL. */
const struct added_token *added_next(const struct added_set *set, struct slice text, size_t from, size_t *ret_at);
/* The token of exactly this text, or NULL. */
const struct added_token *added_find(const struct added_set *set, struct slice text);
