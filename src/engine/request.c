/* request.c - see request.h. */
#include "engine/request.h"
#include <errno.h>
#include <stdlib.h>

/* ---- taking in what was submitted ------------------------------------------------------------------------------------------ */

static int copy_tokens(struct request *q, const struct engine_request *from, const struct request_limits *limits) {
        struct sequence *s = &q->sequence;
        uint64_t room = (uint64_t)from->prompt_count + from->sampling.max_tokens;

        if (room > limits->max_model_len)
                room = limits->max_model_len;
        q->max_count = (uint32_t)room;
        s->tokens = malloc((room + limits->lookahead) * sizeof(*s->tokens));
        if (!s->tokens)
                return -ENOMEM;
        memcpy(s->tokens, from->prompt, from->prompt_count * sizeof(*s->tokens));
        s->prompt = s->count = from->prompt_count;
        s->priority = from->priority;
        s->all_prompt_rows = from->sampling.prompt_logprobs >= 0;
        s->salt = from->cache_salt;
        return block_table_reserve(&s->table, limits->block_tokens, room + limits->lookahead);
}

static bool is_possible(const struct engine_request *r, const struct request_limits *limits) {
        if (r->prompt_count < 1 || r->prompt_count >= limits->max_model_len || r->sampling.max_tokens < 1)
                return false;
        for (uint32_t i = 0; i < r->prompt_count; i++)
                if (r->prompt[i] >= limits->vocab)
                        return false;
        return true;
}

int sequence_new(const struct engine_request *from, const struct request_limits *limits, engine_id id,
    struct request **ret_request) {
        struct request *q;
        int r;

        if (!is_possible(from, limits))
                return -EINVAL;
        q = calloc(1, sizeof(*q));
        if (!q)
                return -ENOMEM;
        q->id = id;
        q->user = from->user;
        q->arrival_ns = from->arrival_ns;
        q->params_n = from->params_n;
        q->keep = from->keep;
        q->expects = from->expect;
        q->params = from->sampling;
        q->sampler = (struct sampler_state){
            .params = &q->params, .bad_sequences = from->bad_sequences, .eos = from->eos, .eos_count = from->eos_count};
        r = copy_tokens(q, from, limits);
        if (r == 0)
                r = sampler_init(&q->sampler, q->sequence.tokens, q->sequence.prompt, limits->seed);
        if (r == 0) {
                q->last = output_new(q, 0, 0);
                r = q->last ? 0 : -ENOMEM;
        }
        if (r < 0) {
                request_free(q);
                return r;
        }
        *ret_request = q;
        return 0;
}

void request_free(struct request *q) {
        if (!q)
                return;
        block_table_free(&q->sequence.table);
        free(q->sequence.tokens);
        sampler_done(&q->sampler);
        free(q->report);
        output_free(q->last);
        output_free(q->pending);
        free(q);
}

/* ---- the end --------------------------------------------------------------------------------------------------------------- */

const char *finish_reason_name(enum finish_reason reason) {
        static const char *const names[] = {[FINISH_NONE] = NULL,
            [FINISH_STOP] = "stop",
            [FINISH_LENGTH] = "length",
            [FINISH_ABORT] = "abort",
            [FINISH_ERROR] = "error",
            [FINISH_RECOMPUTED] = "recomputed"};

        return names[reason];
}

enum finish_reason request_check_end(const struct request *q, int64_t *ret_stop_id) {
        const struct sequence *s = &q->sequence;
        uint32_t last = s->tokens[s->count - 1];

        if (s->count - s->prompt >= q->params.min_tokens) {
                /* The first is the model's own end; further ones of generation_config.json count as stop tokens. */
                for (uint32_t i = 0; i < q->sampler.eos_count && !q->params.ignore_eos; i++)
                        if (q->sampler.eos[i] == last) {
                                *ret_stop_id = i == 0 ? -1 : (int64_t)last;
                                return FINISH_STOP;
                        }
                for (uint32_t i = 0; i < q->params.stop_id_count; i++)
                        if (q->params.stop_ids[i] == last) {
                                *ret_stop_id = last;
                                return FINISH_STOP;
                        }
        }
        return s->count >= q->max_count ? FINISH_LENGTH : FINISH_NONE;
}

/* ---- outputs --------------------------------------------------------------------------------------------------------------- */

struct output *output_new(const struct request *q, uint32_t tokens, uint32_t top) {
        size_t bytes =
            sizeof(struct output) + tokens * (sizeof(struct engine_token) + top * sizeof(struct openai_logprob));
        struct output *o = calloc(1, bytes);
        struct openai_logprob *at;

        if (!o)
                return NULL;
        at = (struct openai_logprob *)&o->tokens[tokens];
        for (uint32_t i = 0; top && i < tokens; i++, at += top)
                o->tokens[i].top = at;
        o->public = (struct engine_output){.id = q->id, .user = q->user, .tokens = o->tokens, .stop_id = -1};
        return o;
}

void output_free(struct output *o) {
        if (!o)
                return;
        free(o->report);
        free(o->kept);
        free(o->expected);
        free(o);
}

struct output *output_last(struct request *q, enum finish_reason finish, const char *error) {
        struct output *o = q->pending ? q->pending : q->last; /* what was to be told is told no more */

        if (!q->pending)
                q->last = NULL;
        q->pending = NULL;
        o->public.token_count = 0;
        o->public.finish = finish;
        o->public.error = error;
        return o;
}

struct engine_token *report_new(uint32_t count, uint32_t top) {
        struct engine_token *tokens = calloc(count, sizeof(*tokens) + top * sizeof(struct openai_logprob));
        struct openai_logprob *at = (struct openai_logprob *)(tokens + count);

        for (uint32_t i = 0; tokens && top && i < count; i++, at += top)
                tokens[i].top = at;
        return tokens;
}
