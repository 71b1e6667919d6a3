/* engine.h - the embedded engine: scheduler, KV blocks with prefix cache, sampler, and the thread that runs steps; and the
 * HTTP API in front of it (engine/api.h) with vLLM's endpoints.
 *
 * Threads: one engine thread owns scheduler, blocks and model, kernels run on the compute's workers; the front (an event
 * loop) submits and aborts from its own thread and takes outputs from a queue after being woken. What decides (scheduler,
 * blocks, sampler) does no I/O and reads no clock: time is an argument. */
#pragma once
#include "base/log.h"
#include "base/metrics.h"
#include "comm/comm.h"
#include "comm/group.h"
#include "events/events.h"
#include "model/model.h"
#include "openai/openai.h"

struct engine;

/* KV from or for other engines: --kv-transfer-config. Texts are borrowed for the engine's life. */
struct engine_transfer {
        bool produces, consumes;
        bool pushes; /* the order: who produces writes into the blocks of who consumes; else the latter fetches */
        const char *engine_id;
        const char *host; /* numeric, to listen on: who produces, or with `pushes` who consumes */
        uint16_t port;
        bool recompute; /* consumes: KV that does not come is computed here; else it fails the request */
        bool
            give_up_preempted; /* consumes: FINISH_RECOMPUTED instead of preemption (vLLM-Ascend's recompute scheduler) */
        enum comm_way way;
        bool checksum;     /* as in comm.h */
        unsigned lease_ms; /* 0: comm.h's */
};

/* Ranks that share the experts (model_shard.ep_rank, ep_size). */
struct engine_group {
        uint32_t rank, size;
        const char *host; /* of rank 0 */
        uint16_t port;
        unsigned silence_ms;               /* 0: group.h's */
        const struct placement *placement; /* what the model was loaded with; NULL: linear */
        bool balance;                      /* as in group.h, these */
        uint32_t window_steps, interval_steps;
        bool tell_balance;
        enum group_payload payload;
        bool sockets_only;
};

struct engine_options {
        struct model *model;     /* borrowed */
        struct compute *compute; /* borrowed; used by the engine thread alone from engine_start() on */
        uint32_t max_model_len;
        uint32_t max_seqs;            /* --max-num-seqs */
        uint32_t max_batched_tokens;  /* --max-num-batched-tokens */
        uint32_t long_prefill_tokens; /* --long-prefill-token-threshold, 0: off */
        bool chunked_prefill, prefix_caching;
        bool
            share_outputs; /* prefixes may hold what was output: as vLLM, less exact (engine/blocks.h, PREFIX_SHARED) */
        bool prefill_first; /* whole prompts before decodes: vLLM-Ascend's old scheduler; chunked_prefill is off then */
        enum { SCHEDULE_FCFS, SCHEDULE_PRIORITY } policy;
        uint32_t block_tokens;
        uint32_t kv_blocks; /* 0: what kv_bytes holds */
        size_t kv_bytes;
        enum kv_type kv_type;
        uint32_t max_waiting; /* submit fails with -EAGAIN beyond; 0: 10,000 */
        int64_t seed;
        uint32_t draft_tokens;                  /* num_speculative_tokens, 0: off */
        const struct engine_transfer *transfer; /* NULL: none; borrowed */
        const struct engine_group *group;       /* NULL: this rank has all experts; borrowed */
        struct publisher *publisher; /* of KV events: told what the prefix cache holds. NULL: nobody; borrowed */
        int64_t publisher_rank;      /* data-parallel, as events say it; -1: not */
        const struct log *log;
        /* Called on the engine thread whenever engine_take() has something new; must not block (uv_async_send). */
        void (*wake)(void *context);
        void *wake_context;
};

/* Returns 0, -ENOMEM, or -EINVAL with a text (a request of max_model_len does not fit in the KV cache …). */
int engine_new(const struct engine_options *options, struct engine **ret_engine, struct error *e);
/* Between the two: run a step as `sequences` decoding ones would have, drafts included, so that memory is taken and touched
 * before the first request. 0, -ERANGE (0, or more than max_seqs or max_batched_tokens allow), -ENOTSUP (ranks of a group step
 * together), -ENOMEM. */
int engine_prepare(struct engine *g, uint32_t sequences);
int engine_start(struct engine *g);
/* Refuse new work; requests in flight run to their end, or are aborted when `deadline_ms` is over. Blocks. */
void engine_stop(struct engine *g, unsigned deadline_ms);
void engine_free(struct engine *g); /* after engine_stop, or never started */

/* ---- requests ------------------------------------------------------------------------------------------------------- */

enum finish_reason {
        FINISH_NONE,
        FINISH_STOP,
        FINISH_LENGTH,
        FINISH_ABORT,
        FINISH_ERROR,
        FINISH_RECOMPUTED /* out of blocks: the rest is to be asked for anew, prefill first */
};

/* Where the KV of a prompt is; or, with `pushes`, where it is to go: rows from `cached` on. */
struct engine_remote {
        struct comm_source source; /* copied by engine_submit() */
        uint32_t tokens;           /* so many were computed there; 0: not known */
        uint32_t cached;           /* pushes: so many are there already */
};
const char *finish_reason_name(enum finish_reason reason); /* as vLLM counts it; FINISH_NONE: NULL */

/* One sequence (n > 1 is n requests that share a prompt).
 *
 * The prompt is copied. All other lists (of sampling, bad_sequences, eos, cache_salt) may be long and are shared by the
 * sequences of one API request: they are borrowed, and must stay as they are until the last output of the request (the one
 * with a `finish`) was taken, or until engine_free(). */
struct engine_request {
        const uint32_t *prompt;
        uint32_t prompt_count;           /* 1 .. max_model_len - 1 */
        struct sampling_params sampling; /* strings are not used here; max_tokens is at least 1 */
        const uint32_t *bad_sequences;   /* bad_words as ids: count, ids…, count, ids… ending in 0; NULL: none */
        const int64_t *eos;
        uint32_t eos_count;
        struct slice cache_salt;
        const struct engine_remote *remote; /* with transfer.consumes: fetch the prompt's KV; NULL: compute it */
        bool keep; /* with transfer.produces: keep the prompt's KV for another engine when it ends by length or stop */
        bool expect; /* with consumes and pushes: lease out blocks for the prompt's KV, and tell (engine_expected) */
        const struct engine_remote *push; /* with produces and pushes, max_tokens 1: write the prompt's KV there */
        int32_t priority;                 /* lower is served first under SCHEDULE_PRIORITY */
        uint64_t arrival_ns;              /* clock_mono_ns() when the HTTP request came in */
        uint32_t
            params_n; /* n of the API request, in one of its sequences for vllm:request_params_n; 0 in the others */
        void *user;   /* given back with every output */
};

typedef uint64_t engine_id; /* never reused in a process; 0 is none */

/* From any one front thread. Returns 0 and the id, -EAGAIN (queue full), -ESHUTDOWN (stopping), -ENOTCONN (ranks of its group are missing), -ENOMEM, -EINVAL (ids beyond
 * the vocabulary, a prompt that leaves no room for a token, a remote that cannot be one). */
int engine_submit(struct engine *g, const struct engine_request *request, engine_id *ret_id);
/* Ask for an end at the next step border: FINISH_ABORT when nobody wants more, FINISH_STOP when the front has found a stop
 * string. The final output still comes, with this reason. Ids that are unknown or have ended are ignored. */
void engine_abort(struct engine *g, engine_id id, enum finish_reason reason);

/* One token as it was sampled. */
struct engine_token {
        uint32_t id;
        float logprob;                    /* of the raw distribution; valid when logprobs were asked for */
        uint32_t rank;                    /* how many tokens were at least as likely, itself included */
        const struct openai_logprob *top; /* the best `top_count`, best first; NULL when none were asked for */
        uint32_t top_count;
};

/* The prompt's KV as it is kept for another engine. */
struct engine_kept {
        char id[33]; /* of the lease: nobody can guess it */
        uint32_t tokens, block_count;
        uint32_t blocks[];
};

/* Blocks that wait for a prompt's KV: who knows the id may write it, once. */
struct engine_expected {
        char id[33];     /* nobody can guess it */
        uint32_t cached; /* tokens that are there already */
        uint32_t tokens; /* of the prompt */
        uint32_t block_count;
        uint32_t blocks[];
};

struct engine_output {
        engine_id id;
        void *user;
        const struct engine_token *tokens; /* new since the last output; may be none */
        uint32_t token_count;
        enum finish_reason finish; /* FINISH_NONE: more follows */
        int64_t stop_id;           /* FINISH_STOP: the stop token that ended it, -1 for EOS (eos[0]) */
        const char *error;         /* FINISH_ERROR: text for people, else NULL */
        uint32_t cached_tokens;    /* of the prompt, found in the prefix cache */
        /* Of the prompt's KV from another engine, or pushed to one: in what time since it was asked for, or since the last of it
         * was computed. 0: none. */
        uint64_t fetched_bytes, fetch_ns;
        const struct engine_expected *expected; /* an output without tokens: KV is waited for. NULL in others */
        const struct engine_kept *kept;         /* with the end: the KV that is kept, NULL: none */
        const struct engine_token
            *prompt_tokens; /* with prompt_logprobs, once, with the first token; of the first only the
                                                   * id is set */
        uint32_t prompt_token_count;
        struct engine_output *next; /* in the list of engine_take */
};

/* All outputs since the last call, oldest first, or NULL. Free with engine_outputs_free(). Front thread. What is not taken
 * is bounded by the max_tokens of the requests that were accepted. */
struct engine_output *engine_take(struct engine *g);
void engine_outputs_free(struct engine *g, struct engine_output *list);

/* ---- looking in ------------------------------------------------------------------------------------------------------ */

struct engine_load {
        uint32_t running, waiting;
        double kv_usage; /* 0..1 */
        bool healthy;    /* the engine thread runs, and its group is complete */
};
void engine_load(const struct engine *g, struct engine_load *ret_load); /* any thread */
/* vLLM's metrics in the Prometheus text format, `labels` such as model_name="x",engine="0". Any thread. */
void engine_metrics(struct engine *g, const char *labels, struct buf *out);

/* As group_rebalance(); -ENOTSUP without a group, too. Any thread. */
int engine_rebalance_experts(struct engine *g);
/* As group_describe(). False: there is no group. Any thread. */
bool engine_describe_experts(struct engine *g, struct buf *out);

/* What has become of an engine_reset_prefix_cache(). */
struct engine_reset {
        void *user;
        bool done; /* false: some cached blocks are in use, all were kept */
        struct engine_reset *next;
};
/* Drop all cached prefixes at the next step border, unless some are in use. Front thread. 0: the answer comes from
 * engine_take_resets() after a wake; -ENOMEM, -ESHUTDOWN (stopping): none comes. */
int engine_reset_prefix_cache(struct engine *g, void *user);
/* The answers since the last call, oldest first, or NULL. free() each. Front thread. */
struct engine_reset *engine_take_resets(struct engine *g);
uint32_t engine_kv_blocks(const struct engine *g);
/* Nobody is going to write what this request waits for: it is computed here, or the request fails. As engine_abort(). */
void engine_unexpect(struct engine *g, engine_id id);
/* What was kept is not going to be fetched. Any thread. */
void engine_release(struct engine *g, const char *kept_id);
uint16_t engine_transfer_port(const struct engine *g); /* where KV can be fetched, or pushed to; 0: nowhere */
