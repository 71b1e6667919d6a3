/* vocab.h - the tokens by id and by text.
 *
 * An entry of the model whose characters all stand for bytes (bytelevel.h) can be reached by merging bytes and is found by
 * them. All others (names of special tokens) are found by the entry as it is written. Either way a token stands for its
 * characters' bytes, or for its own text when one of them is outside that alphabet. Grows while a tokenizer is loaded,
 * constant after. */
#pragma once
#include "base/buf.h"

/* Ids index an array: a file may not ask for a huge one with a single entry. The largest vocabularies have 262,144. */
#define VOCAB_IDS_MAX (1u << 21)

enum vocab_kind { VOCAB_BYTES, VOCAB_NAME };

enum {
        TOKEN_PRESENT = 1,
        TOKEN_SPECIAL = 2,
        TOKEN_IS_NAME = 4, /* VOCAB_NAME; set by vocab_add where the entry asks for it */
};

struct vocab_token {
        uint32_t entry_at, entry_len; /* as the file writes it, in vocab.text */
        uint32_t bytes_at, bytes_len; /* what it stands for */
        uint32_t flags;
};

struct vocab {
        struct vocab_token *tokens; /* [size] */
        uint32_t size, capacity;
        uint32_t count;   /* of those that are present */
        uint32_t longest; /* bytes */
        struct buf text;
        uint64_t *slots; /* hash << 32 | id + 1, open addressing, a power of two of them; 0: empty */
        size_t mask;
        uint64_t seed;
};

void vocab_free(struct vocab *v);
/* 0, -ENOMEM, -ERANGE (id), -EEXIST: the id or the text is taken. The same entry under the same id again is fine. */
int vocab_add(struct vocab *v, uint32_t id, struct slice entry, uint32_t flags);
/* The id of a token by its bytes or its name, or -1. */
int64_t vocab_find(const struct vocab *v, struct slice key, enum vocab_kind kind);

/* Both empty for ids without a token. */
static inline struct slice vocab_bytes(const struct vocab *v, uint32_t id) {
        return id < v->size ? slice_of(v->text.ptr + v->tokens[id].bytes_at, v->tokens[id].bytes_len) : SLICE_NONE;
}
static inline struct slice vocab_entry(const struct vocab *v, uint32_t id) {
        return id < v->size ? slice_of(v->text.ptr + v->tokens[id].entry_at, v->tokens[id].entry_len) : SLICE_NONE;
}
static inline uint32_t vocab_flags(const struct vocab *v, uint32_t id) {
        return id < v->size ? v->tokens[id].flags : 0;
}
