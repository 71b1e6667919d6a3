/* logprobs.c - log-probabilities as the two endpoints tell them. */
#include "base/json.h"
#include "openai/openai.h"
#include <stdio.h>

enum { TOKENS, TOKEN_LOGPROBS, TOP_LOGPROBS, OFFSETS }; /* of a completion's struct openai_logprobs.list */

/* JSON has no infinity: vLLM writes this for it. */
#define LOWEST (-9999.0)

static void add_logprob(struct buf *b, float value) {
        buf_add_double(b, value < LOWEST || value != value ? LOWEST : (double)value);
}

static size_t characters(struct slice text) {
        size_t n = 0;

        for (size_t i = 0; i < text.len; i++)
                n += ((unsigned char)text.ptr[i] & 0xc0) != 0x80;
        return n;
}

/* The name a token goes by: its text, or "token_id:9" in `scratch`. */
static struct slice name_of(const struct openai_logprobs *l, const struct openai_token_text *t, char scratch[32]) {
        if (!l->as_ids)
                return t->text;
        return slice_of(scratch, (size_t)snprintf(scratch, 32, "token_id:%u", t->id));
}

static void comma(struct buf *b) {
        if (b->len)
                buf_add_char(b, ',');
}

/* The taken token, then the best ones without it: what a Python dict of them holds, in its order. Returns false at the
 * end. */
static bool next_alternative(
    const struct openai_token_logprobs *t, size_t *at, const struct openai_token_text **ret_token) {
        for (;; (*at)++) {
                size_t i = *at;

                if (i > t->best_count)
                        return false;
                *ret_token = i == 0 ? &t->taken : &t->best[i - 1];
                if (i == 0 || t->best[i - 1].id != t->taken.id) {
                        (*at)++;
                        return true;
                }
        }
}

/* Different tokens may stand for the same text (ids without any): an object has room for one of them. */
static bool told_before(const struct openai_logprobs *l, const struct openai_token_logprobs *t, size_t end,
    const struct openai_token_text *token) {
        const struct openai_token_text *other;
        char a[32], b[32];

        for (size_t at = 0; next_alternative(t, &at, &other) && at < end;)
                if (slice_eq(name_of(l, other, a), name_of(l, token, b)))
                        return true;
        return false;
}

static void add_completion(struct openai_logprobs *l, const struct openai_token_logprobs *t) {
        const struct openai_token_text *token;
        char scratch[32];
        struct slice name = name_of(l, &t->taken, scratch);
        struct buf *top = &l->list[TOP_LOGPROBS];
        size_t told = 0;

        for (int i = 0; i < 4; i++)
                comma(&l->list[i]);
        buf_add_u64(&l->list[OFFSETS], l->offset);
        l->offset += characters(name);
        json_add_string(&l->list[TOKENS], name);
        if (!t->known) {
                buf_add_str(&l->list[TOKEN_LOGPROBS], "null");
                buf_add_str(top, "null");
                return;
        }
        add_logprob(&l->list[TOKEN_LOGPROBS], t->taken.logprob);
        buf_add_char(top, '{');
        /* With `top` 0 the taken token alone, else at most one more than `top`. */
        for (size_t at = 0; next_alternative(t, &at, &token) && told <= t->top;) {
                if (told_before(l, t, at, token))
                        continue;
                if (told++)
                        buf_add_char(top, ',');
                json_add_string(top, name_of(l, token, scratch));
                buf_add_char(top, ':');
                add_logprob(top, token->logprob);
        }
        buf_add_char(top, '}');
}

static void add_chat_token(struct openai_logprobs *l, const struct openai_token_text *token) {
        struct buf *b = &l->list[0];
        char scratch[32];
        struct slice name = name_of(l, token, scratch);

        buf_add_str(b, "{\"token\":");
        json_add_string(b, name);
        buf_add_str(b, ",\"logprob\":");
        add_logprob(b, token->logprob);
        buf_add_str(b, ",\"bytes\":[");
        for (size_t i = 0; i < name.len; i++) {
                if (i)
                        buf_add_char(b, ',');
                buf_add_u64(b, (unsigned char)name.ptr[i]);
        }
        buf_add_char(b, ']');
}

static void add_chat(struct openai_logprobs *l, const struct openai_token_logprobs *t) {
        const struct openai_token_text *token;
        struct buf *b = &l->list[0];
        size_t told = 0;

        comma(b);
        add_chat_token(l, &t->taken);
        buf_add_str(b, ",\"top_logprobs\":[");
        for (size_t at = 0; told < t->top && next_alternative(t, &at, &token);) {
                if (told++)
                        buf_add_char(b, ',');
                add_chat_token(l, token);
                buf_add_char(b, '}');
        }
        buf_add_str(b, "]}");
}

void openai_logprobs_add(struct openai_logprobs *l, const struct openai_token_logprobs *t) {
        l->count++;
        if (l->kind == OPENAI_CHAT)
                add_chat(l, t);
        else
                add_completion(l, t);
}

void openai_logprobs_clear(struct openai_logprobs *l) {
        l->count = 0;
        for (int i = 0; i < 4; i++)
                l->list[i].len = 0;
}

void openai_logprobs_free(struct openai_logprobs *l) {
        for (int i = 0; i < 4; i++)
                buf_free(&l->list[i]);
}

void openai_write_prompt_logprobs(struct buf *b, const struct openai_token_logprobs *t) {
        const struct openai_token_text *token;
        size_t told = 0;

        if (!t->known) {
                buf_add_str(b, "null");
                return;
        }
        buf_add_char(b, '{');
        for (size_t at = 0; next_alternative(t, &at, &token);) {
                buf_printf(b, "%s\"%u\":{\"logprob\":", told++ ? "," : "", token->id);
                add_logprob(b, token->logprob);
                buf_printf(b, ",\"rank\":%u,\"decoded_token\":", token->rank);
                json_add_string(b, token->text);
                buf_add_char(b, '}');
        }
        buf_add_char(b, '}');
}
