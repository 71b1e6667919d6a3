/* request.h - one request inside the engine, and what is told about it (private to engine/). */
#pragma once
#include "engine/sampler.h"
#include "engine/scheduler.h"

/* Owned by the engine thread once it was submitted; a worker of the compute has it while it samples. */
struct request {
        struct sequence sequence; /* first: the scheduler gives this back */
        engine_id id;
        void *user;
        struct sampling_params params; /* its lists, the sampler's and the salt are the front's */
        struct sampler_state sampler;
        uint32_t max_count; /* prompt + max_tokens, within the model length */
        uint32_t params_n;
        bool keep;                /* its KV, when it ends well */
        struct comm_fetch *fetch; /* under way, or announced; NULL: none. Comm's until COMM_FETCHED */
        bool fetch_started;
        bool expects;                 /* its KV is to be written by another engine */
        struct comm_receipt *receipt; /* meanwhile; NULL: none. Comm's until COMM_RECEIVED */
        struct comm_push *push; /* its KV goes to another engine; NULL: not (any more). Comm's until COMM_PUSHED */
        uint32_t push_first, push_end;
        bool push_begun;
        struct output *pending; /* its end, told when all is pushed */
        uint64_t fetched_bytes, fetch_ns;
        struct engine_token *report; /* about the prompt, while it is computed; see report_new() */
        struct output *last;         /* kept from the start, so that an end can be told when memory is out */
        uint64_t arrival_ns, queued_ns, scheduled_ns, first_token_ns, last_token_ns;
        struct request *next_in_bucket; /* the engine's index by id */
};

static inline struct request *request_of(struct sequence *s) {
        return (struct request *)s;
}

/* What was submitted (engine.h says which of it is borrowed), within a model length and a vocabulary. 0, -EINVAL (an id that
 * the vocabulary does not have, a prompt that leaves no room), -ENOMEM. */
struct request_limits {
        uint32_t max_model_len, vocab, block_tokens, lookahead;
        uint64_t seed; /* for a request that brings none */
};
int sequence_new(
    const struct engine_request *from, const struct request_limits *limits, engine_id id, struct request **ret_request);
void request_free(struct request *q); /* holds no blocks; NULL is fine */

/* The reason to end after the newest token, in vLLM's order. *ret_stop_id is set for a stop token. */
enum finish_reason request_check_end(const struct request *q, int64_t *ret_stop_id);

/* ---- outputs ----------------------------------------------------------------------------------------------------------- */

/* What the front sees is the first member. */
struct output {
        struct engine_output public;
        struct engine_token *report;      /* owned: public.prompt_tokens */
        struct engine_kept *kept;         /* owned: public.kept */
        struct engine_expected *expected; /* owned: public.expected */
        struct engine_token tokens[];
};

/* An output with room for `tokens` tokens of `top` alternatives each, whose places are set. NULL when memory is out. */
struct output *output_new(const struct request *q, uint32_t tokens, uint32_t top);
void output_free(struct output *o); /* NULL is fine */
/* The end of a request, from what was kept for it. Once per request. `error` is static text or NULL. */
struct output *output_last(struct request *q, enum finish_reason finish, const char *error);

/* Tokens of a prompt of `count` with `top` alternatives each. One free() releases it. NULL when memory is out. */
struct engine_token *report_new(uint32_t count, uint32_t top);
