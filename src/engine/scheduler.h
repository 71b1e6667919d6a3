/* scheduler.h - which sequences compute how many tokens in the next step (private to engine/).
 *
 * vLLM's V1 rules: RUNNING sequences first, in order, then WAITING ones, within one budget of tokens. A running sequence
 * takes its next token (and its drafts), or the next chunk of its prompt; when no KV block is free the last running sequence
 * (or the one of worst priority) is preempted: its blocks are freed, its tokens kept, and it waits in front to be computed
 * again. Nothing is admitted in a step that preempted. With chunked prefill off a prompt is taken whole or not at all.
 * Nothing is reserved for tokens to come.
 *
 * A sequence whose prompt's KV can be had from another engine (`external`) is admitted to FETCHING: it holds blocks for its
 * whole prompt and counts as running, takes no budget, and is not preempted. Nor is a `pinned` one, whose rows another process
 * reads while they are computed: it is admitted with all blocks that it will need. What was fetched is lost with its first
 * preemption, like everything computed: then it is computed here, or, with give_up_preempted, the sequence is left to the
 * caller, who sends it back to where it came from.
 *
 * Pure: no I/O, no clock, no model. A step costs as much as there are running sequences and admissions (times a logarithm
 * where it preempts), however many wait. One thread. */
#pragma once
#include "engine/blocks.h"

enum sequence_state { SEQUENCE_IDLE /* in no queue */, SEQUENCE_WAITING, SEQUENCE_FETCHING, SEQUENCE_RUNNING };

/* One request as the scheduler sees it. Owned by the caller, who appends tokens between steps. Zeroed, then prompt, tokens,
 * count, salt, priority and a reserved table are set. */
struct sequence {
        enum sequence_state state;
        int32_t priority;  /* lower is better */
        uint64_t order;    /* of arrival */
        uint32_t *tokens;  /* prompt, then output, then drafts */
        uint32_t prompt;   /* tokens of the prompt, at least 1 */
        uint32_t count;    /* prompt + output */
        uint32_t drafts;   /* proposed after them, to be verified in the next step */
        uint32_t computed; /* positions whose KV is in the cache */
        uint32_t cached;   /* of the prompt, found at its first admission */
        uint32_t external; /* of the prompt, from its first token on, that can be fetched; 0: none */
        uint32_t preemptions;
        bool pinned;   /* it is computed once, in one place: it never needs a block beyond its prompt's */
        bool admitted; /* was scheduled once: preemption does not make it new */
        bool
            all_prompt_rows; /* the logits of every prompt row are wanted: no prefix is looked up, and chunks are small */
        struct slice salt;
        struct block_table table;
        size_t queue_at; /* in running or in the waiting heap */
        size_t plan_at;  /* in the plan of this step, or NOT_PLANNED */
};
#define NOT_PLANNED SIZE_MAX

/* Rows in one step of sequences with all_prompt_rows: each means the logits of a whole vocabulary, half a megabyte. */
#define ALL_ROWS_PER_STEP 256u

struct scheduler_options {
        uint32_t max_seqs, max_batched_tokens, long_prefill_tokens /* 0: off */, max_model_len;
        bool chunked_prefill;
        bool prefill_first; /* vLLM-Ascend's old scheduler: whole prompts first, decodes only in steps without one */
        bool by_priority;
        bool give_up_preempted; /* vLLM-Ascend's recompute scheduler, for sequences that were fetched */
        uint32_t lookahead; /* slots kept beyond a sequence's rows for drafts; with drafts the last block of a prefix is
                             * computed again: the draft module needs hidden states to start from */
};

struct scheduled {
        struct sequence *sequence;
        uint32_t first, rows; /* positions to compute */
};

struct scheduler {
        struct scheduler_options options;
        struct blocks *blocks;
        struct sequence **running; /* in order of admission; NULL where one ended since the last plan */
        size_t running_slots, running_count;
        struct sequence **waiting; /* heap by (priority, order) */
        size_t waiting_count, waiting_capacity;
        struct sequence **victims; /* running sequences that may yet be preempted in this step, the first to go last */
        size_t victim_count;
        struct scheduled *plan; /* of the current step */
        size_t plan_count;
        struct sequence **fetches; /* admitted to FETCHING by the last plan */
        size_t fetch_count;
        struct sequence **given_up; /* preempted by the last plan, and in no queue any more */
        size_t given_up_count;
        uint32_t plan_rows;
        uint32_t all_rows_left; /* of ALL_ROWS_PER_STEP */
        uint64_t next_order;
        uint64_t preemptions, prefix_queries, prefix_hits; /* counters for metrics; the latter two in tokens */
};

/* 0 or -ENOMEM. */
int scheduler_init(struct scheduler *s, const struct scheduler_options *options, struct blocks *blocks);
void scheduler_free(struct scheduler *s); /* nothing may be queued */

/* Queue a new sequence. 0 or -ENOMEM. */
int scheduler_add(struct scheduler *s, struct sequence *q);
/* Take a sequence out of whatever queue it is in and free its blocks. Not between scheduler_plan() and the use of its plan,
 * unless the plan's entry is dropped as well. */
void scheduler_remove(struct scheduler *s, struct sequence *q);

/* Compose the next step into plan, plan_count, plan_rows; none when nothing can be done. Drafts that do not fit the step are
 * given up. A sequence that could not even run alone must not be added. Sequences in fetches want positions
 * [computed, external) from outside; those in given_up are the caller's again. */
void scheduler_plan(struct scheduler *s);
/* A fetching sequence goes on. `arrived`: positions up to `external` are in its blocks; else it computes them itself. */
void scheduler_fetched(struct scheduler *s, struct sequence *q, bool arrived);
/* Rows of that plan were computed: count them and register full blocks. Fewer than planned when drafts were rejected. */
void scheduler_advance(struct scheduler *s, struct sequence *q, uint32_t rows);
