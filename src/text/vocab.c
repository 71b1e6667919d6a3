/* vocab.c - see vocab.h. */
#include "text/vocab.h"
#include "base/hash.h"
#include "text/bytelevel.h"
#include <errno.h>
#include <stdlib.h>

void vocab_free(struct vocab *v) {
        free(v->tokens);
        free(v->slots);
        buf_free(&v->text);
        *v = (struct vocab){0};
}

static uint64_t hash_of(const struct vocab *v, struct slice key, enum vocab_kind kind) {
        return hash64(key, v->seed + kind);
}

static enum vocab_kind kind_of(const struct vocab_token *t) {
        return t->flags & TOKEN_IS_NAME ? VOCAB_NAME : VOCAB_BYTES;
}

static struct slice key_of(const struct vocab *v, uint32_t id) {
        return kind_of(&v->tokens[id]) == VOCAB_NAME ? vocab_entry(v, id) : vocab_bytes(v, id);
}

/* The slot that holds `key`, or the empty one where it belongs. */
static uint64_t *slot_of(const struct vocab *v, struct slice key, enum vocab_kind kind, uint64_t hash) {
        for (size_t i = hash & v->mask;; i = (i + 1) & v->mask) {
                uint64_t slot = v->slots[i];
                uint32_t id = (uint32_t)slot - 1;

                if (slot == 0)
                        return &v->slots[i];
                if (slot >> 32 == hash >> 32 && kind_of(&v->tokens[id]) == kind && slice_eq(key_of(v, id), key))
                        return &v->slots[i];
        }
}

int64_t vocab_find(const struct vocab *v, struct slice key, enum vocab_kind kind) {
        if (v->count == 0)
                return -1;
        return (int64_t)(uint32_t)*slot_of(v, key, kind, hash_of(v, key, kind)) - 1;
}

static void put(struct vocab *v, uint32_t id) {
        struct slice key = key_of(v, id);
        enum vocab_kind kind = kind_of(&v->tokens[id]);
        uint64_t hash = hash_of(v, key, kind);

        *slot_of(v, key, kind, hash) = hash >> 32 << 32 | (id + 1);
}

/* Room for one more, at most half full. */
static int grow_slots(struct vocab *v) {
        size_t slots = v->slots ? (v->mask + 1) * 2 : 1024;
        uint64_t *grown;

        if (v->slots && v->count < (v->mask + 1) / 2)
                return 0;
        grown = calloc(slots, sizeof(*grown));
        if (!grown)
                return -ENOMEM;
        free(v->slots);
        v->slots = grown;
        v->mask = slots - 1;
        for (uint32_t id = 0; id < v->size; id++)
                if (v->tokens[id].flags & TOKEN_PRESENT)
                        put(v, id);
        return 0;
}

static int grow_tokens(struct vocab *v, uint32_t id) {
        uint32_t capacity = v->capacity ? v->capacity : 1024;
        struct vocab_token *grown;

        while (capacity <= id)
                capacity *= 2;
        if (capacity > v->capacity) {
                grown = realloc(v->tokens, capacity * sizeof(*grown));
                if (!grown)
                        return -ENOMEM;
                v->tokens = grown;
                v->capacity = capacity;
        }
        if (id >= v->size) {
                memset(v->tokens + v->size, 0, (id + 1 - v->size) * sizeof(*v->tokens));
                v->size = id + 1;
        }
        return 0;
}

/* The text of a new token, behind all others. */
static int add_text(struct vocab *v, struct slice entry, struct vocab_token *t) {
        ptrdiff_t n;
        char *to;

        if (v->text.len + 2 * entry.len > UINT32_MAX)
                return -ENOMEM;
        t->entry_at = (uint32_t)v->text.len;
        t->entry_len = (uint32_t)entry.len;
        buf_add(&v->text, entry);
        to = buf_reserve(&v->text, entry.len);
        if (!to)
                return -ENOMEM;
        n = bytelevel_bytes(entry, to);
        if (n < 0) {
                t->flags |= TOKEN_IS_NAME;
                t->bytes_at = t->entry_at;
                t->bytes_len = t->entry_len;
        } else {
                t->bytes_at = (uint32_t)v->text.len;
                t->bytes_len = (uint32_t)n;
                buf_commit(&v->text, (size_t)n);
        }
        return 0;
}

int vocab_add(struct vocab *v, uint32_t id, struct slice entry, uint32_t flags) {
        struct vocab_token t = {.flags = flags | TOKEN_PRESENT};
        int64_t taken;
        int r;

        if (id >= VOCAB_IDS_MAX)
                return -ERANGE;
        if (vocab_flags(v, id) & TOKEN_PRESENT) {
                if (!slice_eq(vocab_entry(v, id), entry))
                        return -EEXIST;
                v->tokens[id].flags |= flags;
                return 0;
        }
        r = grow_slots(v);
        if (r == 0)
                r = grow_tokens(v, id);
        if (r == 0)
                r = add_text(v, entry, &t);
        if (r < 0)
                return r;
        v->tokens[id] = t;
        taken = vocab_find(v, key_of(v, id), kind_of(&t));
        if (taken >= 0) {
                v->tokens[id].flags = 0;
                return -EEXIST;
        }
        put(v, id);
        v->count++;
        if (t.bytes_len > v->longest)
                v->longest = t.bytes_len;
        return 0;
}
