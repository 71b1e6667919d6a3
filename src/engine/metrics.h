/* metrics.h - the engine's counters under vLLM's names (private to engine/). */
#pragma once
#include "engine/scheduler.h"
#include <pthread.h>

enum engine_histogram {
        H_PROMPT_TOKENS,
        H_GENERATION_TOKENS,
        H_ITERATION_TOKENS,
        H_MAX_GENERATION_TOKENS,
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
        H_COUNT
};

struct engine_figures {
        uint32_t running, waiting, deferred;
        double kv_usage;
        uint64_t prefix_queries, prefix_hits, preemptions;
        uint64_t external_queries, external_hits; /* tokens asked of and got from another engine's cache */
        uint64_t prompt_tokens, prompt_cached, prompt_external, generation_tokens;
        uint64_t finished[5]; /* by enum finish_reason */
        uint64_t rejected;
        uint64_t drafts, draft_tokens, accepted_tokens, accepted_at[8];
};

/* Written by the engine thread, read by any: behind one lock that is held for copies only. */
struct engine_metrics {
        pthread_mutex_t lock;
        struct engine_figures figures;
        struct histogram histograms[H_COUNT];
        double *bounds; /* owned: 1-2-5 up to max_model_len */
};

int metrics_init(struct engine_metrics *m, uint32_t max_model_len); /* 0 or -ENOMEM */
void metrics_free(struct engine_metrics *m);
void metrics_observe(struct engine_metrics *m, enum engine_histogram h, double value); /* takes the lock */
/* A sequence has ended: everything that is known only then. */
void metrics_finished(struct engine_metrics *m, const struct sequence *q, enum finish_reason reason, uint64_t now);
void metrics_write(
    struct engine_metrics *m, const char *labels, bool speculative, uint32_t draft_tokens, struct buf *out);
