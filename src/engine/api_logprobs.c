/* api_logprobs.c - tokens beside their likelihoods, named by the text they stand for. */
#include "engine/api_call.h"
#include <errno.h>

/* The texts of one token and its alternatives, in one buffer; names are set when the buffer stops moving. */
struct texts {
        struct buf bytes;
        size_t *ends;
        size_t count;
};

/* A token's own text; where its bytes are a part of a character, what they make of the bytes before them: nothing yet, or the
 * whole character. */
static void add_text(struct texts *t, const struct detokenizer *context, uint32_t id) {
        struct slice own = tokenizer_bytes(context->tokenizer, id);
        struct detokenizer alone, joined = *context;
        bool whole;

        detokenizer_init(&alone, context->tokenizer, false);
        whole = own.len == 0 || ((unsigned char)*own.ptr & 0xc0) != 0x80;
        if (whole) {
                size_t before = t->bytes.len;

                detokenizer_push(&alone, id, &t->bytes);
                if (alone.held) {
                        t->bytes.len = before;
                        whole = false;
                }
        }
        if (!whole)
                detokenizer_push(&joined, id, &t->bytes);
        t->ends[t->count++] = t->bytes.len;
}

static struct slice text_at(const struct texts *t, size_t i) {
        size_t begin = i ? t->ends[i - 1] : 0;

        return slice_of(t->bytes.ptr ? t->bytes.ptr + begin : "", t->ends[i] - begin);
}

/* Describe a token with at most `top` alternatives, and call `tell` with it. */
static int describe(struct api_choice *c, const struct engine_token *token, bool known, size_t top,
    void (*tell)(struct api_choice *c, const struct openai_token_logprobs *t)) {
        size_t best_count = known ? token->top_count : 0;
        struct openai_token_text *best = NULL;
        struct openai_token_logprobs told = {.known = known, .top = top, .best_count = best_count};
        struct texts t = {0};
        struct arena scratch = {0};
        int r = 0;

        t.ends = arena_array(&scratch, best_count + 1, sizeof(*t.ends));
        best = arena_array(&scratch, best_count + 1, sizeof(*best));
        if (!t.ends || !best)
                r = -ENOMEM;
        if (r == 0) {
                add_text(&t, &c->context, token->id);
                for (size_t i = 0; i < best_count; i++)
                        add_text(&t, &c->context, token->top[i].id);
                if (!buf_ok(&t.bytes))
                        r = -ENOMEM;
        }
        if (r == 0) {
                told.taken = (struct openai_token_text){token->id, token->logprob, token->rank, text_at(&t, 0)};
                for (size_t i = 0; i < best_count; i++)
                        best[i] = (struct openai_token_text){
                            token->top[i].id, token->top[i].logprob, token->top[i].rank, text_at(&t, i + 1)};
                told.best = best;
                tell(c, &told);
        }
        buf_free(&t.bytes);
        arena_free(&scratch);
        return r;
}

/* What follows is seen in the light of this token. */
static int advance(struct api_choice *c, uint32_t id) {
        struct buf unused = {0};
        int r;

        detokenizer_push(&c->context, id, &unused);
        r = buf_ok(&unused) ? 0 : -ENOMEM;
        buf_free(&unused);
        return r;
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
