/* api_logprobs.c - tokens beside their likelihoods, named by the text they stand for. */
#include "engine/api_call.h"
#include <errno.h>

void api_names_free(struct api_names *n) {
        buf_free(&n->bytes);
        buf_free(&n->ends);
        buf_free(&n->tokens);
}

/* Room for so many things of that size, and nothing else. NULL when memory is out. */
static void *room_for(struct buf *b, size_t count, size_t size) {
        buf_reset(b);
        return buf_reserve(b, count * size);
}

/* A token's own text; where its bytes are a part of a character, what they make of the bytes before them: nothing yet, or the
 * whole character. */
static void add_text(struct buf *bytes, const struct detokenizer *context, uint32_t id) {
        struct slice own = tokenizer_bytes(context->tokenizer, id);
        struct detokenizer alone, joined = *context;
        bool whole;

        detokenizer_init(&alone, context->tokenizer, false);
        whole = own.len == 0 || ((unsigned char)*own.ptr & 0xc0) != 0x80;
        if (whole) {
                size_t before = bytes->len;

                detokenizer_push(&alone, id, bytes);
                if (alone.held) {
                        bytes->len = before;
                        whole = false;
                }
        }
        if (!whole)
                detokenizer_push(&joined, id, bytes);
}

/* Describe a token with at most `top` alternatives, and call `tell` with it. */
static int describe(struct api_choice *c, const struct engine_token *token, bool known, size_t top,
    void (*tell)(struct api_choice *c, const struct openai_token_logprobs *t)) {
        size_t best_count = known ? token->top_count : 0, begin = 0;
        size_t *ends = room_for(&c->names.ends, best_count + 1, sizeof(*ends));
        struct openai_token_text *texts = room_for(&c->names.tokens, best_count + 1, sizeof(*texts));
        struct openai_token_logprobs told = {.known = known, .best_count = best_count, .top = top};
        struct buf *bytes = &c->names.bytes;

        if (!ends || !texts)
                return -ENOMEM;
        buf_reset(bytes);
        for (size_t i = 0; i <= best_count; i++) {
                add_text(bytes, &c->context, i ? token->top[i - 1].id : token->id);
                ends[i] = bytes->len;
        }
        if (!buf_ok(bytes))
                return -ENOMEM;
        for (size_t i = 0; i <= best_count; i++) { /* now that the bytes move no more */
                struct slice text = slice_of(bytes->ptr ? bytes->ptr + begin : "", ends[i] - begin);
                const struct openai_logprob *of = i ? &token->top[i - 1] : NULL;

                texts[i] = of ? (struct openai_token_text){of->id, of->logprob, of->rank, text}
                              : (struct openai_token_text){token->id, token->logprob, token->rank, text};
                begin = ends[i];
        }
        told.taken = texts[0];
        told.best = texts + 1;
        tell(c, &told);
        return 0;
}

/* What follows is seen in the light of this token. */
static int advance(struct api_choice *c, uint32_t id) {
        struct buf *unused = &c->names.bytes;

        buf_reset(unused);
        detokenizer_push(&c->context, id, unused);
        return buf_ok(unused) ? 0 : -ENOMEM;
}

static void tell_sampled(struct api_choice *c, const struct openai_token_logprobs *t) {
        openai_logprobs_add(&c->logprobs, t);
}

int api_logprobs_token(struct api_choice *c, const struct engine_token *token) {
        int r = describe(c, token, true, (size_t)c->call->prepared.request.sampling.logprobs, tell_sampled);

        return r < 0 ? r : advance(c, token->id);
}

static void tell_prompt(struct api_choice *c, const struct openai_token_logprobs *t) {
        const struct openai_request *r = &c->call->prepared.request;

        buf_add_char(&c->prompt_logprobs, c->prompt_logprobs.len ? ',' : '[');
        openai_write_prompt_logprobs(&c->prompt_logprobs, t);
        /* Echoed: the prompt's tokens come first in `logprobs` too. */
        if (c->call->kind == OPENAI_COMPLETION && r->echo && r->sampling.logprobs >= 0) {
                struct openai_token_logprobs shown = *t;

                shown.top = (size_t)r->sampling.logprobs;
                openai_logprobs_add(&c->logprobs, &shown);
        }
}

int api_logprobs_prompt(struct api_choice *c, const struct engine_output *output) {
        int r = 0;

        if (output->prompt_token_count == 0)
                return 0;
        for (uint32_t i = 0; r == 0 && i < output->prompt_token_count; i++) {
                r = describe(c, &output->prompt_tokens[i], i > 0, 0, tell_prompt);
                if (r == 0)
                        r = advance(c, output->prompt_tokens[i].id);
        }
        buf_add_char(&c->prompt_logprobs, ']');
        if (!buf_ok(&c->prompt_logprobs))
                r = -ENOMEM;
        return r;
}
