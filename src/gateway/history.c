/* history.c - see history.h. */
#include "gateway/history.h"
#include <math.h>

double history_quantile(const struct histogram *before, const struct histogram *after, double q) {
        double rank = q * (double)(after->total - before->total), seen = 0;

        if (after->total == before->total)
                return NAN;
        for (size_t i = 0; i < after->count_bounds; i++) {
                double n = (double)(after->counts[i] - before->counts[i]), low = i ? after->bounds[i - 1] : 0;

                if (n > 0 && seen + n >= rank)
                        return low + (after->bounds[i] - low) * (rank - seen) / n;
                seen += n;
        }
        return after->bounds[after->count_bounds - 1];
}

int history_init(struct history *h, const struct stats *s) {
        const struct histogram *ttft = &s->times[TIME_TTFT], *itl = &s->times[TIME_ITL];
        int r;

        *h = (struct history){0};
        r = histogram_init(&h->ttft, ttft->bounds, ttft->count_bounds);
        if (r == 0)
                r = histogram_init(&h->itl, itl->bounds, itl->count_bounds);
        if (r < 0)
                history_free(h);
        return r;
}

void history_free(struct history *h) {
        histogram_free(&h->ttft);
        histogram_free(&h->itl);
}

static uint64_t sum_codes(const struct stats *s, int from, int to) {
        uint64_t sum = 0;

        for (int code = from; code < to; code++)
                sum += s->codes[code];
        return sum;
}

/* Growth per second; *before becomes `now`. */
static double rate(uint64_t *before, uint64_t now, double seconds) {
        double grown = (double)(now - *before) / seconds;

        *before = now;
        return grown;
}

void history_sample(struct history *h, const struct stats *s, const struct stats_now *now, uint64_t at) {
        double seconds = h->at ? (double)(at - h->at) / (double)NS_PER_S : 1;
        struct history_point p = {.at = at, .running = now->requests, .streams = now->streams, .waiting = now->waiting};
        bool first = h->at == 0;

        p.requests = rate(&h->requests, sum_codes(s, 0, 600), seconds);
        p.errors = rate(&h->errors, sum_codes(s, 500, 600) + s->counters[COUNT_CUT], seconds);
        p.events = rate(&h->events, s->counters[COUNT_EVENTS], seconds);
        p.tokens = rate(&h->tokens, s->counters[COUNT_COMPLETION_TOKENS], seconds);
        p.continued = rate(&h->continued, s->counters[COUNT_CONTINUED], seconds);
        p.ttft_p50 = history_quantile(&h->ttft, &s->times[TIME_TTFT], 0.5);
        p.ttft_p99 = history_quantile(&h->ttft, &s->times[TIME_TTFT], 0.99);
        p.itl_p50 = history_quantile(&h->itl, &s->times[TIME_ITL], 0.5);
        p.itl_p99 = history_quantile(&h->itl, &s->times[TIME_ITL], 0.99);
        histogram_copy(&h->ttft, &s->times[TIME_TTFT]);
        histogram_copy(&h->itl, &s->times[TIME_ITL]);
        h->at = at;
        if (first)
                return;
        if (h->count == HISTORY_POINTS)
                h->begin = (h->begin + 1) % HISTORY_POINTS;
        else
                h->count++;
        h->points[(h->begin + h->count - 1) % HISTORY_POINTS] = p;
}
