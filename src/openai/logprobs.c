/* logprobs.c - log-probabilities as the two endpoints tell them. */
#include "base/hash.h"
#include "base/json.h"
#include "openai/openai.h"
#include <stdio.h>

enum { TOKENS, TOKEN_LOGPROBS, TOP_LOGPROBS, OFFSETS }; /* of a completion's struct openai_logprobs.list */

/* JSON has no infinity: vLLM writes this for it. */
#define LOWEST (-9999.0)

static void add_logprob(struct buf *b, float value) {
        buf_add_double(b, value < LOWEST || value != value ? LOWEST : (double)value);
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

/* The taken token is 0, the best ones follow. */
static const struct openai_token_text *alternative(const struct openai_token_logprobs *t, size_t i) {
        return i == 0 ? &t->taken : &t->best[i - 1];
}

/* The taken token, then the best ones without it: what a Python dict of them holds, in its order. Returns false at the
 * end. */
static bool next_alternative(
    const struct openai_token_logprobs *t, size_t *at, const struct openai_token_text **ret_token) {
        for (; *at <= t->best_count; (*at)++) {
                *ret_token = alternative(t, *at);
                if (*at == 0 || (*ret_token)->id != t->taken.id) {
                        (*at)++;
                        return true;
                }
        }
        return false;
}

/* ---- names of one object ---------------------------------------------------------------------------------------------------- */

/* Different tokens may stand for the same text (ids without any): an object has room for one of them. A request may ask for the
 * whole vocabulary, so they are looked up in a table: open addressing, 0 or an alternative's number + 1. */
static bool names_begin(struct openai_logprobs *l, const struct openai_token_logprobs *t) {
        size_t most = 1 + (t->best_count < t->top ? t->best_count : t->top), slots = 8;
        char *table;

        while (slots < 2 * most)
                slots *= 2;
        buf_reset(&l->names);
        table = buf_reserve(&l->names, slots * sizeof(uint32_t));
        if (!table)
                return false;
        memset(table, 0, slots * sizeof(uint32_t));
        buf_commit(&l->names, slots * sizeof(uint32_t));
        return true;
}

/* False: the object has it. */
static bool names_add(struct openai_logprobs *l, const struct openai_token_logprobs *t, size_t number) {
        uint32_t *slots = (uint32_t *)(void *)l->names.ptr;
        size_t mask = l->names.len / sizeof(*slots) - 1, at;
        struct slice text = alternative(t, number)->text;

        if (l->as_ids) /* no two are the same */
                return true;
        for (at = hash64(text, 0) & mask; slots[at]; at = (at + 1) & mask)
                if (slice_eq(alternative(t, slots[at] - 1)->text, text))
                        return false;
        slots[at] = (uint32_t)number + 1;
        return true;
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
        l->offset += slice_characters(name);
        json_add_string(&l->list[TOKENS], name);
        if (!t->known) {
                buf_add_str(&l->list[TOKEN_LOGPROBS], "null");
                buf_add_str(top, "null");
                return;
        }
        add_logprob(&l->list[TOKEN_LOGPROBS], t->taken.logprob);
        buf_add_char(top, '{');
        /* With `top` 0 the taken token alone, else at most one more than `top`. */
        if (!names_begin(l, t)) {
                top->failed = true;
                return;
        }
        for (size_t at = 0; next_alternative(t, &at, &token) && told <= t->top;) {
                if (!names_add(l, t, at - 1))
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
        buf_free(&l->names);
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
