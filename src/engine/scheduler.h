/* scheduler.h - which sequences compute how many tokens in the next step (private to engine/).
 *
 * vLLM's V1 rules: RUNNING sequences first, in order, then WAITING ones, within one budget of tokens. A running sequence
 * takes its next token (and its drafts), or the next chunk of its prompt; when no KV block is free the last running sequence
 * is preempted: its blocks are freed, its tokens kept, and it waits in front to be computed again. With chunked prefill off
 * a prompt is taken whole or not at all. Nothing is reserved for tokens to come.
 *
 * Pure: no I/O, no clock, no model. Work per step is proportional to the running sequences and those admitted, and to the
 * logarithm of those waiting. One thread. */
#pragma once
#include "engine/blocks.h"
#include "engine/sampler.h"

enum sequence_state {
        SEQUENCE_WAITING,
        SEQUENCE_REMOTE, /* waits for KV from another engine: holds blocks, takes no part in steps */
        SEQUENCE_RUNNING,
        SEQUENCE_DONE, /* in no queue */
};

/* A request inside the engine. The scheduler uses the first part; the rest is the engine's. */
struct sequence {
        enum sequence_state state;
        uint64_t order; /* of arrival */
        int32_t priority;
        uint32_t *tokens;  /* prompt, then output, then drafts; owned by the engine, room for all it may hold */
        uint32_t prompt;   /* tokens of the prompt */
        uint32_t count;    /* prompt + output */
        uint32_t drafts;   /* proposed after them, to be verified in the next step */
        uint32_t computed; /* positions whose KV is in the cache */
        uint32_t cached;   /* of the prompt, found at its first admission */
        bool admitted;     /* was scheduled once: preemption does not make it new */
        bool bypass_cache; /* prompt_logprobs: every prompt row must be computed */
        struct slice salt;
        struct block_table table;
        size_t heap_at; /* in the waiting heap */

        engine_id id;
        void *user;
        struct sampler_state sampler;
        struct sampling_params params;
        struct arena arena; /* of the copies that params point to */
        uint32_t max_count; /* prompt + max_tokens, within max_model_len */
        bool prompt_logprobs_told;
        int64_t eos[8];
        uint32_t eos_count;
        uint64_t arrival_ns, queued_ns, scheduled_ns, first_token_ns, last_token_ns;
        uint32_t preemptions;
        struct sequence *next_in_bucket;   /* the engine's index by id */
        struct openai_logprob *prompt_top; /* gathered while the prompt is computed */
        struct engine_token *prompt_tokens;
};

#define PROMPT_LOGPROB_ROWS 32u

struct scheduler_options {
        uint32_t max_seqs, max_batched_tokens, long_prefill_tokens, max_model_len;
        bool chunked_prefill;
        bool prefill_first; /* vLLM-Ascend's old scheduler: whole prompts first, decodes only in steps without one */
        bool by_priority;
        uint32_t lookahead; /* slots kept beyond a sequence's end for drafts */
};

struct scheduled {
        struct sequence *sequence;
        uint32_t first, rows; /* positions to compute */
};

struct scheduler {
        struct scheduler_options options;
        struct blocks *blocks;
        struct sequence **running; /* in order of admission */
        size_t running_count;
        struct sequence **waiting; /* heap by (priority, order) */
        size_t waiting_count, waiting_capacity;
        struct scheduled *plan; /* of the current step */
        size_t plan_count;
        uint32_t plan_rows;
        uint64_t next_order;
        uint64_t preemptions, prefix_queries, prefix_hits; /* counters for metrics; the latter two in tokens */
};

int scheduler_init(
    struct scheduler *s, const struct scheduler_options *options, struct blocks *blocks); /* 0 or -ENOMEM */
void scheduler_free(struct scheduler *s);                                                 /* nothing may be queued */

/* Queue a new sequence. 0 or -ENOMEM. */
int scheduler_add(struct scheduler *s, struct sequence *q);
/* Take a sequence out of whatever queue it is in, free its blocks, make it DONE. */
void scheduler_remove(struct scheduler *s, struct sequence *q);

/* Compose the next step into plan, plan_count, plan_rows; none when there is nothing to do. Sequences that could not even
 * run alone are not expected: the engine refuses them at submission. */
void scheduler_plan(struct scheduler *s);
/* Rows of that plan were computed: count them and register full blocks. `rows` may be fewer for rejected drafts. */
void scheduler_advance(struct scheduler *s, struct sequence *q, uint32_t rows);

/* Which attention form rows of a sequence take: positions before the last of the prompt the naive one, all others the
 * absorbed one. It depends on the position and the prompt alone, so that neither chunk borders, nor prefix hits, nor
 * preemption, nor a hand-off between engines (which recomputes the last prompt token) changes a bit. */
static inline uint32_t naive_rows(uint32_t prompt, uint32_t first, uint32_t rows) {
        uint32_t end = prompt - 1; /* a prompt has at least one token */

        if (first >= end)
                return 0;
        return end - first < rows ? end - first : rows;
}
