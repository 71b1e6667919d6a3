/* output.c - what the engine thread hands to the front: one allocation per output, linked into the mailbox. */
#include "engine/core.h"
#include <stdlib.h>

/* An output with copies of tokens and their likeliest alternatives behind it in the same memory. */
static struct engine_output *make_output(const struct sequence *q, const struct engine_token *tokens, uint32_t count,
    const struct engine_token *prompt, uint32_t prompt_count, const char *error) {
        size_t tops = 0, error_size = error ? strlen(error) + 1 : 0;
        struct engine_output *o;
        struct engine_token *to;
        struct openai_logprob *top;

        for (uint32_t i = 0; i < count; i++)
                tops += tokens[i].top_count;
        for (uint32_t i = 0; i < prompt_count; i++)
                tops += prompt[i].top_count;
        o = calloc(1, sizeof(*o) + (count + (size_t)prompt_count) * sizeof(*to) + tops * sizeof(*top) + error_size);
        if (!o)
                return NULL;
        to = (struct engine_token *)(o + 1);
        top = (struct openai_logprob *)(to + count + prompt_count);
        *o = (struct engine_output){.id = q->id,
            .user = q->user,
            .tokens = to,
            .token_count = count,
            .stop_id = -1,
            .cached_tokens = q->cached,
            .prompt_tokens = prompt_count ? to + count : NULL,
            .prompt_token_count = prompt_count,
            .queued_ns = q->queued_ns,
            .scheduled_ns = q->scheduled_ns,
            .first_token_ns = q->first_token_ns,
            .last_token_ns = q->last_token_ns};
        for (uint32_t i = 0; i < count + prompt_count; i++) {
                to[i] = i < count ? tokens[i] : prompt[i - count];
                if (to[i].top_count) {
                        memcpy(top, to[i].top, to[i].top_count * sizeof(*top));
                        to[i].top = top;
                        top += to[i].top_count;
                } else
                        to[i].top = NULL;
        }
        if (error)
                o->error = memcpy(top, error, error_size);
        return o;
}

static void post(struct engine *g, struct engine_output *o, bool last) {
        struct mailbox *m = &g->mailbox;

        pthread_mutex_lock(&m->lock);
        if (m->out_last)
                m->out_last->next = o;
        else
                m->out_first = o;
        m->out_last = o;
        m->queued -= last;
        pthread_mutex_unlock(&m->lock);
}

/* Prompt log-probabilities go out once, with whatever is told first after the prompt was computed. */
static const struct engine_token *prompt_tokens_due(struct sequence *q, uint32_t *ret_count) {
        bool due = q->prompt_tokens && !q->prompt_logprobs_told && q->count > q->prompt;

        *ret_count = due ? q->prompt : 0;
        q->prompt_logprobs_told |= due;
        return due ? q->prompt_tokens : NULL;
}

void output_post(struct engine *g, struct sequence *q, const struct engine_token *tokens, uint32_t count,
    enum finish_reason finish, int64_t stop_id, const char *error) {
        uint32_t prompt_count;
        const struct engine_token *prompt = prompt_tokens_due(q, &prompt_count);
        struct engine_output *o = make_output(q, tokens, count, prompt, prompt_count, error);

        if (!o)
                abort(); /* a token or an end that is not told would leave an answer wrong or hanging */
        o->finish = finish;
        o->stop_id = stop_id;
        post(g, o, finish != FINISH_NONE);
}
