/* history.h - the last five minutes in figures, for people who look: one point every two seconds.
 *
 * Pure: counters and time come in as arguments. A point says what happened since the one before. */
#pragma once
#include "base/clock.h"
#include "gateway/stats.h"

#define HISTORY_STEP_NS (2 * NS_PER_S)
#define HISTORY_POINTS  150

struct history_point {
        uint64_t at; /* ns, as given */
        uint64_t running, streams, waiting;
        double requests, errors, events,
            tokens;       /* per second; errors: 5xx and streams cut, tokens: of answers that ended */
        double continued; /* per second */
        double ttft_p50, ttft_p99, itl_p50, itl_p99; /* seconds, estimated within a bucket; NaN: nothing was measured */
};

struct history {
        struct history_point points[HISTORY_POINTS];
        size_t begin, count; /* oldest, in the ring */
        /* As of the last point. */
        uint64_t at, requests, errors, events, tokens, continued;
        struct histogram ttft, itl;
};

int history_init(struct history *h, const struct stats *s); /* 0 or -ENOMEM */
void history_free(struct history *h);
/* Add a point; the first call only notes where the counters stand. */
void history_sample(struct history *h, const struct stats *s, const struct stats_now *now, uint64_t at);
/* 0 is the oldest. */
static inline const struct history_point *history_at(const struct history *h, size_t i) {
        return &h->points[(h->begin + i) % HISTORY_POINTS];
}
/* Of the values that came between two states of one histogram; NaN when there were none. Beyond the last bound it is that
 * bound. */
double history_quantile(const struct histogram *before, const struct histogram *after, double q);
