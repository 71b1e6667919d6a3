/* core.h - the inside of a struct engine (private to engine/).
 *
 * The front (one thread) and the engine thread meet in `mailbox` only: commands in, outputs out, behind one lock that is held
 * for list operations. Everything below `engine thread` is touched by that thread alone once it runs. */
#pragma once
#include "engine/metrics.h"

struct command {
        enum { COMMAND_SUBMIT, COMMAND_ABORT, COMMAND_RESET_CACHE } kind;
        struct sequence *sequence; /* SUBMIT: handed over */
        engine_id id;              /* ABORT */
        struct command *next;
};

struct mailbox {
        pthread_mutex_t lock;
        pthread_cond_t work;  /* for the engine thread: commands, stopping */
        pthread_cond_t reply; /* for the front: cache_reset_done, ended */
        struct command *first, *last;
        struct engine_output *out_first, *out_last;
        uint32_t queued; /* submitted and not yet ended */
        bool stopping, abort_all, ended, failed;
        bool cache_reset_done, cache_was_reset;
};

#define ID_BUCKETS 4096u

struct engine {
        struct engine_options options;
        const struct model_config *config;
        struct mailbox mailbox;
        struct engine_metrics metrics;
        pthread_t thread;
        bool started;
        engine_id next_id;    /* front thread */
        engine_id *forgotten; /* front thread: ids whose outputs are dropped; owned */
        size_t forgotten_count, forgotten_capacity;

        /* engine thread */
        struct kv_cache kv;
        struct blocks *blocks;
        struct scheduler scheduler;
        struct sampler_scratch scratch;
        struct sequence *by_id[ID_BUCKETS];
        uint64_t seed;
        uint32_t *tokens, *logit_rows; /* of the step */
        struct model_span *spans;
        float *logits, *hidden, *draft_hidden;
        size_t logits_capacity;          /* rows */
        struct engine_token *new_tokens; /* of one sequence in one step */
        struct openai_logprob *tops;
};

/* loop.c */
void *engine_thread(void *engine);
/* Steps until nothing is queued; for the thread and for tests that want no thread. Returns false when nothing was done. */
bool engine_step(struct engine *g);
void sequence_free(struct sequence *q);

/* output.c: new tokens (may be none) and, unless FINISH_NONE, the end of the sequence. */
void output_post(struct engine *g, struct sequence *q, const struct engine_token *tokens, uint32_t count,
    enum finish_reason finish, int64_t stop_id, const char *error);

/* draft.c: propose tokens for the next step from the hidden states of this one. 0 or what the model returned. */
int draft_step(struct engine *g);
