/* stats.h - what the gateway counts, and how it is written for Prometheus. Label sets are bounded: roles, ends, states,
 * status codes, and instances (bounded by POOL_INSTANCES_MAX); nothing that a client sends becomes a label. */
#pragma once
#include "base/buf.h"
#include "base/metrics.h"
#include "gateway/pool.h"

const char *leg_end_name(enum leg_end e);

enum counter {
        COUNT_RETRIES,    /* legs started again elsewhere before the client saw a byte */
        COUNT_CONTINUED,  /* streams that went on elsewhere */
        COUNT_RECOMPUTED, /* of them, because the decoder gave the request up */
        COUNT_CUT,        /* streams that ended with an error event */
        COUNT_CLIENTS_GONE,
        COUNT_SETTLED,        /* decode legs issued only to free a prefiller's KV, and answered */
        COUNT_STRANDED,       /* KV left to a prefiller's lease */
        COUNT_WITHOUT_PARAMS, /* prefill answers without usable kv_transfer_params */
        COUNT_PARAMS_EXPIRED, /* prefilled again because the params were too old */
        COUNT_QUEUE_TIMEOUTS,
        COUNT_SENT_AWAY,
        COUNT_PROMPT_TOKENS,
        COUNT_CACHED_TOKENS,
        COUNT_COMPLETION_TOKENS,
        COUNT_EVENTS, /* SSE events relayed */
        COUNTERS,
};

enum timing {
        TIME_REQUEST, /* head read to answer ended */
        TIME_TTFT,    /* to the first token's event, or the whole answer */
        TIME_TPOT,    /* per token after the first */
        TIME_QUEUE,   /* waiting for instances */
        TIME_PREFILL, /* prefill leg */
        TIME_HANDOFF, /* a stream's decode leg from its start to its first byte: KV fetch and first step */
        TIME_ITL,     /* between reads of a stream that is being relayed: a step, mostly */
        TIMINGS,
};

struct stats {
        uint64_t codes[600]; /* answers by status */
        uint64_t counters[COUNTERS];
        uint64_t legs[ROLE_COUNT][LEG_ENDS];
        struct histogram times[TIMINGS];
};

int stats_init(struct stats *s); /* 0 or -ENOMEM */
void stats_free(struct stats *s);
static inline void stats_count(struct stats *s, enum counter c, uint64_t n) {
        s->counters[c] += n;
}
void stats_time(struct stats *s, enum timing t, uint64_t ns);

/* Gauges of the moment, beside what the pool knows. */
struct stats_now {
        uint64_t requests, streams, waiting, waiting_for[ROLE_COUNT], connections, body_bytes;
        bool ready, draining;
};
void stats_write(const struct stats *s, const struct pool *p, const struct stats_now *now, struct buf *out);
