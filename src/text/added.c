/* added.c - see added.h. */
#include "text/added.h"
#include <errno.h>
#include <stdlib.h>

int added_add(struct added_set *set, struct slice text, uint32_t id, uint32_t flags) {
        if (set->count == set->capacity) {
                size_t capacity = set->capacity ? set->capacity * 2 : 64;
                struct added_token *grown = realloc(set->tokens, capacity * sizeof(*grown));

                if (!grown)
                        return -ENOMEM;
                set->tokens = grown;
                set->capacity = capacity;
        }
        set->tokens[set->count++] = (struct added_token){text, id, flags};
        return 0;
}

void added_free(struct added_set *set) {
        free(set->tokens);
        *set = (struct added_set){0};
}

static int by_text(const void *a, const void *b) {
        return slice_cmp(((const struct added_token *)a)->text, ((const struct added_token *)b)->text);
}

void added_finish(struct added_set *set) {
        size_t kept = 0;

        if (set->count)
                qsort(set->tokens, set->count, sizeof(*set->tokens), by_text);
        for (size_t i = 0; i < set->count; i++) {
                set->starts[(unsigned char)set->tokens[i].text.ptr[0]] = true;
                if (i == 0 || !slice_eq(set->tokens[i].text, set->tokens[kept - 1].text))
                        set->tokens[kept++] = set->tokens[i];
        }
        set->count = kept;
}

/* First index in [low, high) whose byte at `depth` is at least `byte`. */
static size_t bound(const struct added_set *set, size_t low, size_t high, size_t depth, unsigned byte) {
        while (low < high) {
                size_t middle = low + (high - low) / 2;

                if ((unsigned char)set->tokens[middle].text.ptr[depth] < byte)
                        low = middle + 1;
                else
                        high = middle;
        }
        return low;
}

/* The longest token that `text` begins with: all tokens that share a beginning stand together, so each byte of the text
 * narrows a range, of which a token that ends here is the first. */
static const struct added_token *longest_at(const struct added_set *set, struct slice text) {
        const struct added_token *best = NULL;
        size_t low = 0, high = set->count;

        for (size_t depth = 0; low < high; depth++) {
                unsigned byte;

                if (set->tokens[low].text.len == depth)
                        best = &set->tokens[low++];
                if (depth == text.len)
                        break;
                byte = (unsigned char)text.ptr[depth];
                low = bound(set, low, high, depth, byte);
                high = bound(set, low, high, depth, byte + 1);
        }
        return best;
}

const struct added_token *added_next(const struct added_set *set, struct slice text, size_t from, size_t *ret_at) {
        if (set->count == 0)
                return NULL;
        for (size_t i = from; i < text.len; i++) {
                const struct added_token *found;

                if (!set->starts[(unsigned char)text.ptr[i]])
                        continue;
                found = longest_at(set, slice_sub(text, i, text.len));
                if (found) {
                        *ret_at = i;
                        return found;
                }
        }
        return NULL;
}

const struct added_token *added_find(const struct added_set *set, struct slice text) {
        const struct added_token key = {.text = text};

        return set->count ? bsearch(&key, set->tokens, set->count, sizeof(key), by_text) : NULL;
}
