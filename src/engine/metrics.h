/* metrics.h - the engine's counters under vLLM's names (private to engine/).
 *
 * Written by the engine thread (rejections: the front), read by any: behind one lock that is held for copies only. */
#pragma once
#include "base/metrics.h"
#include "comm/group.h"
#include "engine/request.h"
#include <pthread.h>

enum engine_histogram {
        H_PROMPT_TOKENS,
        H_GENERATION_TOKENS,
        H_ITERATION_TOKENS,
        H_MAX_GENERATION_TOKENS,
        H_PARAMS_N,
        H_PARAMS_MAX_TOKENS,
        H_TTFT,
        H_ITL,
        H_TPOT,
        H_E2E,
        H_QUEUE,
        H_INFERENCE,
        H_PREFILL,
        H_DECODE,
        H_PREEMPTIONS,
        H_KV_COMPUTED,
        H_FETCH_TIME,
        H_FETCH_BYTES,
        H_COUNT
};

struct engine_figures {
        uint32_t running, waiting, deferred;
        double kv_usage;
        uint64_t prefix_queries, prefix_hits, preemptions;
        uint64_t external_queries, external_hits; /* tokens asked of and got from another engine's cache */
        uint64_t prompt_tokens, prompt_cached, prompt_external, generation_tokens;
        uint64_t fetches_failed, leases_expired;
        uint64_t finished[FINISH_RECOMPUTED + 1];
        uint64_t rejected;
        uint64_t drafts, draft_tokens, accepted_tokens, accepted_at[8];
};

/* What does not change, for vllm:cache_config_info. */
struct engine_cache_facts {
        uint32_t block_tokens, blocks, max_model_len, draft_tokens;
        const char *dtype;
        bool prefix_caching;
        bool transfers; /* KV to or from other engines */
};

struct engine_metrics {
        pthread_mutex_t lock;
        struct engine_figures figures;
        struct engine_cache_facts facts;
        struct histogram histograms[H_COUNT];
        double *bounds; /* owned: 1-2-5 up to max_model_len */
};

int metrics_init(struct engine_metrics *m, const struct engine_cache_facts *facts); /* 0 or -ENOMEM */
void metrics_free(struct engine_metrics *m);

/* A request got `tokens` > 0 new ones at `now`, verifying `drafts`. Sets its first and last token times. */
void metrics_tokens(struct engine_metrics *m, struct request *q, uint32_t tokens, uint32_t drafts, uint64_t now);
/* A request has ended: everything that is known only then. */
void metrics_finished(struct engine_metrics *m, const struct request *q, enum finish_reason reason, uint64_t now);
void metrics_rejected(struct engine_metrics *m);
void metrics_fetch_begun(struct engine_metrics *m, uint32_t tokens);
void metrics_fetched(struct engine_metrics *m, const struct comm_event *event, uint32_t tokens);
void metrics_pushed(struct engine_metrics *m, const struct comm_event *event);
void metrics_released(struct engine_metrics *m, int result); /* of a lease, as COMM_RELEASED */
/* The scheduler's state after a step. */
void metrics_step(struct engine_metrics *m, const struct scheduler *s);

/* Of the group that shares experts, under names of our own: vLLM has none. Any thread. */
void metrics_write_group(struct group *g, const char *labels, struct buf *out);
void metrics_write(struct engine_metrics *m, const char *labels, struct buf *out);
