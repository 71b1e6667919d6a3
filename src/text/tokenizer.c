/* tokenizer.c - use a loaded tokenizer: what it knows, encoding and decoding. */
#include "text/tokenizer.h"
#include "text/utf8.h"
#include <assert.h>
#include <errno.h>
#include <stdlib.h>

/* ---- what it knows -------------------------------------------------------------------------------------------------- */

uint32_t tokenizer_size(const struct tokenizer *t) {
        return t->vocab.size;
}

uint32_t tokenizer_longest(const struct tokenizer *t) {
        return t->vocab.longest;
}

int64_t tokenizer_bos(const struct tokenizer *t) {
        return t->bos;
}

int64_t tokenizer_eos(const struct tokenizer *t) {
        return t->eos;
}

bool tokenizer_is_special(const struct tokenizer *t, uint32_t id) {
        return vocab_flags(&t->vocab, id) & TOKEN_SPECIAL;
}

int64_t tokenizer_find(const struct tokenizer *t, struct slice token) {
        const struct added_token *added = added_find(&t->exact, token);
        int64_t id;

        if (!added)
                added = added_find(&t->normalized, token);
        if (added)
                return added->id;
        id = vocab_find(&t->vocab, token, VOCAB_NAME);
        return id >= 0 ? id : vocab_find(&t->vocab, token, VOCAB_BYTES);
}

struct slice tokenizer_bytes(const struct tokenizer *t, uint32_t id) {
        return vocab_bytes(&t->vocab, id);
}

struct slice tokenizer_entry(const struct tokenizer *t, uint32_t id) {
        return vocab_entry(&t->vocab, id);
}

/* ---- encoding ------------------------------------------------------------------------------------------------------- */

struct encoder {
        const struct tokenizer *t;
        struct split_run run;
        struct bpe_scratch scratch;
        struct id_list ids;
};

static int encode_piece(void *context, struct slice piece) {
        struct encoder *enc = context;

        return bpe_encode(&enc->t->bpe, &enc->scratch, piece, &enc->ids);
}

static bool is_white_space(uint32_t c) {
        return (c >= 0x09 && c <= 0x0d) || c == 0x20 || c == 0x85 || c == 0xa0 || c == 0x1680 ||
               (c >= 0x2000 && c <= 0x200a) || c == 0x2028 || c == 0x2029 || c == 0x202f || c == 0x205f || c == 0x3000;
}

static size_t character_before(struct slice text, size_t at) {
        do
                at--;
        while (at > 0 && ((unsigned char)text.ptr[at] & 0xc0) == 0x80);
        return at;
}

/* Where the white space that ends at `at` begins, not before `from`. */
static size_t space_before(struct slice text, size_t from, size_t at) {
        while (at > from) {
                size_t before = character_before(text, at);

                if (!is_white_space(utf8_code_point(slice_sub(text, before, at))))
                        break;
                at = before;
        }
        return at;
}

static size_t space_after(struct slice text, size_t at) {
        size_t bytes;

        while (at < text.len && is_white_space(utf8_code_point(slice_sub(text, at, text.len)))) {
                utf8_next(slice_sub(text, at, text.len), &bytes);
                at += bytes;
        }
        return at;
}

static int is_word_character(struct encoder *enc, struct slice character) {
        size_t start, end;

        return split_search(&enc->run, enc->t->word_character, character, 0, &start, &end);
}

/* 1: no letter stands on either side of [at, end). */
static int stands_alone(struct encoder *enc, struct slice text, size_t at, size_t end) {
        size_t bytes;
        int r;

        if (at > 0) {
                r = is_word_character(enc, slice_sub(text, character_before(text, at), at));
                if (r != 0)
                        return r < 0 ? r : 0;
        }
        if (end < text.len) {
                utf8_next(slice_sub(text, end, text.len), &bytes);
                r = is_word_character(enc, slice_sub(text, end, end + bytes));
                if (r != 0)
                        return r < 0 ? r : 0;
        }
        return 1;
}

static int encode_plain(struct encoder *enc, struct slice text) {
        return splitter_split(&enc->t->splitter, &enc->run, text, encode_piece, enc);
}

/* Cut at the added tokens of `set`; what is between them goes to `between`. */
static int encode_added(struct encoder *enc, const struct added_set *set, struct slice text,
    int (*between)(struct encoder *, struct slice)) {
        size_t done = 0, search = 0, at;
        const struct added_token *token;
        int r = 0;

        while ((token = added_next(set, text, search, &at))) {
                size_t end = at + token->text.len;

                search = end;
                if (token->flags & ADDED_SINGLE_WORD) {
                        r = stands_alone(enc, text, at, end);
                        if (r < 0)
                                return r;
                        if (r == 0)
                                continue;
                }
                if (token->flags & ADDED_LSTRIP)
                        at = space_before(text, done, at);
                if (token->flags & ADDED_RSTRIP)
                        end = space_after(text, end);
                r = at > done ? between(enc, slice_sub(text, done, at)) : 0;
                if (r == 0)
                        r = id_list_add(&enc->ids, token->id);
                if (r < 0)
                        return r;
                if (end > done)
                        done = end;
        }
        return done < text.len ? between(enc, slice_sub(text, done, text.len)) : 0;
}

static int encode_normalized(struct encoder *enc, struct slice text) {
        return encode_added(enc, &enc->t->normalized, text, encode_plain);
}

static int encode_affix(struct encoder *enc, const struct affix *affix) {
        int r = 0;

        for (unsigned i = 0; r == 0 && i < affix->count; i++)
                r = id_list_add(&enc->ids, affix->ids[i]);
        return r;
}

static int encode_all(struct encoder *enc, struct slice text, enum tokenize_mode mode) {
        int r = 0;

        if (mode == TOKENIZE_ADD_SPECIAL)
                r = encode_affix(enc, &enc->t->prefix);
        if (r == 0)
                r = encode_added(enc, &enc->t->exact, text, encode_normalized);
        if (r == 0 && mode == TOKENIZE_ADD_SPECIAL)
                r = encode_affix(enc, &enc->t->suffix);
        return r;
}

int tokenizer_encode(const struct tokenizer *t, struct slice text, enum tokenize_mode mode, struct arena *arena,
    struct token_list *ret_list) {
        struct encoder enc = {.t = t};
        struct buf fixed = {0};
        uint32_t *ids;
        int r;

        if (text.len > TOKENIZER_TEXT_MAX)
                return -E2BIG;
        if (utf8_valid_prefix(text) < text.len) {
                utf8_add_lossy(&fixed, text);
                text = buf_slice(&fixed);
        }
        r = buf_ok(&fixed) ? split_run_init(&enc.run) : -ENOMEM;
        if (r == 0)
                r = encode_all(&enc, text, mode);
        if (r == 0) {
                ids = arena_array(arena, enc.ids.count, sizeof(*ids));
                if (ids) {
                        if (enc.ids.count)
                                memcpy(ids, enc.ids.ids, enc.ids.count * sizeof(*ids));
                        *ret_list = (struct token_list){ids, enc.ids.count};
                } else
                        r = -ENOMEM;
        }
        free(enc.ids.ids);
        bpe_scratch_free(&enc.scratch);
        split_run_free(&enc.run);
        buf_free(&fixed);
        return r;
}

/* ---- decoding ------------------------------------------------------------------------------------------------------- */

void tokenizer_decode(
    const struct tokenizer *t, const uint32_t *ids, size_t count, bool skip_special, struct buf *out) {
        struct detokenizer d;

        detokenizer_init(&d, t, skip_special);
        for (size_t i = 0; i < count; i++)
                detokenizer_push(&d, ids[i], out);
        detokenizer_flush(&d, out);
}

void detokenizer_init(struct detokenizer *d, const struct tokenizer *t, bool skip_special) {
        *d = (struct detokenizer){.tokenizer = t, .skip_special = skip_special};
}

/* Bring the held bytes and as many of the token's as it takes to a decision, one byte at a time. */
static void complete_held(struct detokenizer *d, struct slice *bytes, struct buf *out) {
        while (d->held > 0 && bytes->len > 0) {
                size_t n;

                d->hold[d->held++] = *slice_take(bytes, 1).ptr;
                switch (utf8_next(slice_of(d->hold, d->held), &n)) {
                case UTF8_SHORT:
                        continue;
                case UTF8_WHOLE:
                        buf_append(out, d->hold, d->held);
                        break;
                case UTF8_BROKEN:
                        /* The last byte is what broke it: it may begin something of its own. */
                        assert(n == d->held - 1u);
                        buf_add(out, SLICE_LIT("\xef\xbf\xbd"));
                        bytes->ptr--;
                        bytes->len++;
                        break;
                }
                d->held = 0;
        }
}

void detokenizer_push(struct detokenizer *d, uint32_t id, struct buf *out) {
        struct slice bytes = tokenizer_bytes(d->tokenizer, id);

        if (d->skip_special && tokenizer_is_special(d->tokenizer, id))
                return;
        complete_held(d, &bytes, out);
        while (bytes.len > 0) {
                size_t n = utf8_valid_prefix(bytes);

                buf_add(out, slice_take(&bytes, n));
                if (bytes.len == 0)
                        return;
                if (utf8_next(bytes, &n) == UTF8_SHORT) {
                        memcpy(d->hold, bytes.ptr, bytes.len);
                        d->held = (unsigned)bytes.len;
                        return;
                }
                buf_add(out, SLICE_LIT("\xef\xbf\xbd"));
                slice_take(&bytes, n);
        }
}

void detokenizer_flush(struct detokenizer *d, struct buf *out) {
        if (d->held > 0)
                buf_add(out, SLICE_LIT("\xef\xbf\xbd"));
        d->held = 0;
}
