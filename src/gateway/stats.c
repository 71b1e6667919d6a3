/* stats.c - see stats.h. */
#include "gateway/stats.h"
#include "base/clock.h"
#include <stdio.h>

static const double seconds[] = {
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 60, 180, 600};
static const double seconds_fine[] = {
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.25, 0.5, 1, 5};

static const struct {
        const char *name, *help;
        const double *bounds;
        size_t count;
} timings[TIMINGS] = {
#define SECONDS seconds, sizeof(seconds) / sizeof(*seconds)
    [TIME_REQUEST] = {"baton_gateway_request_duration_seconds", "From a request's head to the end of its answer",
        SECONDS},
    [TIME_TTFT] = {"baton_gateway_ttft_seconds", "From a request's head to its first token", SECONDS},
    [TIME_TPOT] = {"baton_gateway_tpot_seconds", "Per token after the first", seconds_fine,
        sizeof(seconds_fine) / sizeof(*seconds_fine)},
    [TIME_QUEUE] = {"baton_gateway_queue_seconds", "Waiting for an instance", SECONDS},
    [TIME_PREFILL] = {"baton_gateway_prefill_seconds", "Prefill legs", SECONDS},
    [TIME_HANDOFF] = {"baton_gateway_handoff_seconds", "From the start of a stream's decode leg to its first byte",
        SECONDS},
    [TIME_ITL] = {"baton_gateway_itl_seconds", "Between reads of a stream that is being relayed", seconds_fine,
        sizeof(seconds_fine) / sizeof(*seconds_fine)},
#undef SECONDS
};

static const struct {
        const char *name, *help;
} counters[COUNTERS] = {
    [COUNT_RETRIES] = {"baton_gateway_retries_total", "Legs started again elsewhere before the client saw a byte"},
    [COUNT_CONTINUED] = {"baton_gateway_continuations_total", "Streams that went on elsewhere with their exact tokens"},
    [COUNT_RECOMPUTED] = {"baton_gateway_recomputed_total", "Streams that a decoder gave up for want of memory"},
    [COUNT_CUT] = {"baton_gateway_streams_cut_total", "Streams that ended with an error event"},
    [COUNT_CLIENTS_GONE] = {"baton_gateway_clients_gone_total", "Clients that left before their answer ended"},
    [COUNT_SETTLED] = {"baton_gateway_settled_total", "Decode legs issued only to free a prefiller's KV"},
    [COUNT_STRANDED] = {"baton_gateway_stranded_total", "KV that was left to a prefiller's lease"},
    [COUNT_WITHOUT_PARAMS] = {"baton_gateway_prefill_without_params_total",
        "Prefill answers without usable kv_transfer_params"},
    [COUNT_PARAMS_EXPIRED] = {"baton_gateway_params_expired_total",
        "Prompts prefilled again because the kv_transfer_params were too old"},
    [COUNT_QUEUE_TIMEOUTS] = {"baton_gateway_queue_timeouts_total",
        "Requests that waited too long to be let in or for an instance"},
    [COUNT_SENT_AWAY] = {"baton_gateway_sent_away_total", "Requests answered 429 because the queue was full"},
    [COUNT_PROMPT_TOKENS] = {"baton_gateway_prompt_tokens_total", "Prompt tokens, as the engines counted them"},
    [COUNT_CACHED_TOKENS] = {"baton_gateway_cached_tokens_total", "Of them, found in prefillers' prefix caches"},
    [COUNT_COMPLETION_TOKENS] = {"baton_gateway_completion_tokens_total", "Tokens of answers"},
    [COUNT_EVENTS] = {"baton_gateway_events_total", "SSE events read from decoders"},
};

const char *leg_end_name(enum leg_end e) {
        static const char *const names[LEG_ENDS] = {
            "done", "refused", "overloaded", "error", "unsent", "broken", "timeout", "aborted"};

        return names[e];
}

int stats_init(struct stats *s) {
        *s = (struct stats){0};
        for (int t = 0; t < TIMINGS; t++) {
                int r = histogram_init(&s->times[t], timings[t].bounds, timings[t].count);

                if (r < 0) {
                        stats_free(s);
                        return r;
                }
        }
        return 0;
}

void stats_free(struct stats *s) {
        for (int t = 0; t < TIMINGS; t++)
                histogram_free(&s->times[t]);
}

void stats_time(struct stats *s, enum timing t, uint64_t ns) {
        histogram_add(&s->times[t], (double)ns / (double)NS_PER_S);
}

static void gauge(struct buf *out, const char *name, const char *help, double value) {
        metrics_describe(out, name, METRIC_GAUGE, help);
        metrics_sample(out, name, "", value);
}

static void write_counts(const struct stats *s, struct buf *out) {
        char labels[96];

        metrics_describe(out, "baton_gateway_requests_total", METRIC_COUNTER, "Answers by status");
        for (int code = 0; code < 600; code++) {
                if (s->codes[code] == 0)
                        continue;
                snprintf(labels, sizeof(labels), "code=\"%d\"", code);
                metrics_sample(out, "baton_gateway_requests_total", labels, (double)s->codes[code]);
        }
        metrics_describe(out, "baton_gateway_legs_total", METRIC_COUNTER, "Legs by role and end");
        for (int role = 0; role < ROLE_COUNT; role++)
                for (int end = 0; end < LEG_ENDS; end++) {
                        snprintf(labels, sizeof(labels), "role=\"%s\",end=\"%s\"", pool_role_name((enum role)role),
                            leg_end_name((enum leg_end)end));
                        metrics_sample(out, "baton_gateway_legs_total", labels, (double)s->legs[role][end]);
                }
        for (int c = 0; c < COUNTERS; c++) {
                metrics_describe(out, counters[c].name, METRIC_COUNTER, counters[c].help);
                metrics_sample(out, counters[c].name, "", (double)s->counters[c]);
        }
        for (int t = 0; t < TIMINGS; t++) {
                metrics_describe(out, timings[t].name, METRIC_HISTOGRAM, timings[t].help);
                metrics_histogram(out, timings[t].name, "", &s->times[t]);
        }
}

enum instance_gauge {
        GAUGE_STATE,
        GAUGE_REQUESTS,
        GAUGE_TOKENS,
        GAUGE_HELD_REQUESTS,
        GAUGE_HELD_TOKENS,
        GAUGE_PICKS,
        GAUGE_FAILURES,
        GAUGE_DONE_SECONDS,
        GAUGE_FIRSTS,
        GAUGE_FIRST_SECONDS,
        INSTANCE_GAUGES
};

static const struct {
        const char *name, *help;
        enum metric_type type;
} instance_gauges[INSTANCE_GAUGES] = {
    [GAUGE_STATE] = {"baton_gateway_instance_up", "1: healthy, 0.5: suspect, 0: not to be chosen", METRIC_GAUGE},
    [GAUGE_REQUESTS] = {"baton_gateway_instance_requests", "Legs in flight", METRIC_GAUGE},
    [GAUGE_TOKENS] = {"baton_gateway_instance_tokens", "Their tokens, estimated", METRIC_GAUGE},
    [GAUGE_HELD_REQUESTS] = {"baton_gateway_instance_held_requests", "Prompts whose KV waits to be fetched",
        METRIC_GAUGE},
    [GAUGE_HELD_TOKENS] = {"baton_gateway_instance_held_tokens", "Their tokens, estimated", METRIC_GAUGE},
    [GAUGE_PICKS] = {"baton_gateway_instance_picks_total", "Legs given to it", METRIC_COUNTER},
    [GAUGE_FAILURES] = {"baton_gateway_instance_failures_total", "Signs of trouble seen", METRIC_COUNTER},
    [GAUGE_DONE_SECONDS] = {"baton_gateway_instance_done_seconds_total", "Time of the legs that ended as done",
        METRIC_COUNTER},
    [GAUGE_FIRSTS] = {"baton_gateway_instance_streams_begun_total", "Legs whose stream began", METRIC_COUNTER},
    [GAUGE_FIRST_SECONDS] = {"baton_gateway_instance_first_byte_seconds_total",
        "Of them, from the leg's start to its first byte", METRIC_COUNTER},
};

static double instance_value(const struct instance *i, enum instance_gauge g) {
        switch (g) {
        case GAUGE_STATE:
                return i->state == INSTANCE_HEALTHY ? 1 : i->state == INSTANCE_SUSPECT ? 0.5 : 0;
        case GAUGE_REQUESTS:
                return i->requests;
        case GAUGE_TOKENS:
                return (double)i->tokens;
        case GAUGE_HELD_REQUESTS:
                return (double)i->held_requests;
        case GAUGE_HELD_TOKENS:
                return (double)i->held_tokens;
        case GAUGE_PICKS:
                return (double)i->picks;
        case GAUGE_DONE_SECONDS:
                return (double)i->done_ns / (double)NS_PER_S;
        case GAUGE_FIRSTS:
                return (double)i->first_count;
        case GAUGE_FIRST_SECONDS:
                return (double)i->first_ns / (double)NS_PER_S;
        default:
                return (double)i->failures;
        }
}

static void label_instance(struct buf *labels, const struct instance *i) {
        buf_reset(labels);
        metrics_label(labels, "role", slice_str(pool_role_name(i->role)));
        metrics_label(labels, "instance", slice_str(i->name));
}

/* Ends that have not happened are left out: most instances know one or two of the eight. */
static void write_instance_legs(const struct pool *p, struct buf *out) {
        static const char name[] = "baton_gateway_instance_legs_total";
        struct buf labels = {0};

        metrics_describe(out, name, METRIC_COUNTER, "Legs by instance and end");
        for (int role = 0; role < ROLE_COUNT; role++)
                for (size_t k = 0; k < pool_count(p, (enum role)role); k++) {
                        const struct instance *i = pool_at(p, (enum role)role, k);

                        for (int end = 0; end < LEG_ENDS; end++) {
                                if (i->ended[end] == 0)
                                        continue;
                                label_instance(&labels, i);
                                metrics_label(&labels, "end", slice_str(leg_end_name((enum leg_end)end)));
                                metrics_sample(out, name, buf_cstr(&labels), (double)i->ended[end]);
                        }
                }
        buf_free(&labels);
}

static void write_instances(const struct pool *p, struct buf *out) {
        struct buf labels = {0};
        char text[64];

        metrics_describe(out, "baton_gateway_instances", METRIC_GAUGE, "Instances by role and state");
        for (int role = 0; role < ROLE_COUNT; role++)
                for (int state = 0; state < INSTANCE_STATES; state++) {
                        snprintf(text, sizeof(text), "role=\"%s\",state=\"%s\"", pool_role_name((enum role)role),
                            instance_state_name((enum instance_state)state));
                        metrics_sample(out, "baton_gateway_instances", text,
                            (double)pool_in_state(p, (enum role)role, (enum instance_state)state));
                }
        for (int g = 0; g < INSTANCE_GAUGES; g++) {
                metrics_describe(out, instance_gauges[g].name, instance_gauges[g].type, instance_gauges[g].help);
                for (int role = 0; role < ROLE_COUNT; role++)
                        for (size_t k = 0; k < pool_count(p, (enum role)role); k++) {
                                const struct instance *i = pool_at(p, (enum role)role, k);

                                label_instance(&labels, i);
                                metrics_sample(out, instance_gauges[g].name, buf_cstr(&labels),
                                    instance_value(i, (enum instance_gauge)g));
                        }
        }
        buf_free(&labels);
}

enum events_gauge {
        EVENTS_UP,
        EVENTS_BLOCKS,
        EVENTS_BATCHES,
        EVENTS_GAPS,
        EVENTS_REPLAYS,
        EVENTS_RESTARTS,
        EVENTS_BAD,
        EVENTS_GAUGES
};

static const struct {
        const char *name, *help;
        enum metric_type type;
} events_gauges[EVENTS_GAUGES] = {
    [EVENTS_UP] = {"baton_gateway_kv_events_up",
        "1: all of its cache is known from its events, 0.5: what came after some time, 0: it is guessed", METRIC_GAUGE},
    [EVENTS_BLOCKS] = {"baton_gateway_kv_blocks", "Blocks it is known to have", METRIC_GAUGE},
    [EVENTS_BATCHES] = {"baton_gateway_kv_event_batches_total", "Batches of KV events taken in", METRIC_COUNTER},
    [EVENTS_GAPS] = {"baton_gateway_kv_event_gaps_total", "Times that batches were missing", METRIC_COUNTER},
    [EVENTS_REPLAYS] = {"baton_gateway_kv_event_replays_total", "Times that batches were asked for again",
        METRIC_COUNTER},
    [EVENTS_RESTARTS] = {"baton_gateway_kv_event_restarts_total", "Times that its publisher began anew",
        METRIC_COUNTER},
    [EVENTS_BAD] = {"baton_gateway_kv_events_bad_total", "Messages that could not be understood", METRIC_COUNTER},
};

static double events_value(const struct instance *i, enum events_gauge g) {
        struct subscription_totals t = subscription_totals(i->events);
        const double values[EVENTS_GAUGES] = {
            [EVENTS_UP] = i->events_state == FOLLOW_LIVE      ? 1
                          : i->events_state == FOLLOW_PARTIAL ? 0.5
                                                              : 0,
            [EVENTS_BLOCKS] = i->kv.count,
            [EVENTS_BATCHES] = (double)t.batches,
            [EVENTS_GAPS] = (double)t.gaps,
            [EVENTS_REPLAYS] = (double)t.replays,
            [EVENTS_RESTARTS] = (double)t.restarts,
            [EVENTS_BAD] = (double)t.bad,
        };

        return values[g];
}

/* Of instances whose KV events are followed, if any are. */
static void write_kv_events(const struct pool *p, struct buf *out) {
        struct buf labels = {0};
        char role_label[32];

        for (int g = 0; g < EVENTS_GAUGES; g++) {
                bool any = false;

                for (int role = 0; role < ROLE_COUNT; role++)
                        for (size_t k = 0; k < pool_count(p, (enum role)role); k++) {
                                const struct instance *i = pool_at(p, (enum role)role, k);

                                if (!i->events)
                                        continue;
                                if (!any)
                                        metrics_describe(
                                            out, events_gauges[g].name, events_gauges[g].type, events_gauges[g].help);
                                any = true;
                                label_instance(&labels, i);
                                metrics_sample(out, events_gauges[g].name, buf_cstr(&labels),
                                    events_value(i, (enum events_gauge)g));
                        }
        }
        for (int dropped = 0; dropped < 2; dropped++)
                for (int role = 0, any = 0; role < ROLE_COUNT; role++) {
                        const struct kv_index *x = pool_kv_index(p, (enum role)role);
                        const char *name =
                            dropped ? "baton_gateway_kv_index_dropped_total" : "baton_gateway_kv_index_blocks";

                        if (!x)
                                continue;
                        if (!any++)
                                metrics_describe(out, name, dropped ? METRIC_COUNTER : METRIC_GAUGE,
                                    dropped ? "Blocks that found no room (--kv-index-size)"
                                            : "Blocks of all instances, each counted where it is");
                        snprintf(role_label, sizeof(role_label), "role=\"%s\"", pool_role_name((enum role)role));
                        metrics_sample(
                            out, name, role_label, (double)(dropped ? kv_index_dropped(x) : kv_index_count(x)));
                }
        buf_free(&labels);
}

void stats_write(const struct stats *s, const struct pool *p, const struct stats_now *now, struct buf *out) {
        gauge(out, "baton_gateway_ready", "1 when each role has an instance that may be chosen", now->ready);
        gauge(out, "baton_gateway_draining", "1 while shutting down", now->draining);
        gauge(out, "baton_gateway_requests_running", "Requests in flight", (double)now->requests);
        gauge(out, "baton_gateway_streams", "Of them, answers that are being streamed", (double)now->streams);
        gauge(out, "baton_gateway_requests_waiting", "Of them, waiting for an instance", (double)now->waiting);
        metrics_describe(out, "baton_gateway_waiting", METRIC_GAUGE, "The same by the role that is waited for");
        for (int role = 0; role < ROLE_COUNT; role++) {
                char label[32];

                snprintf(label, sizeof(label), "role=\"%s\"", pool_role_name((enum role)role));
                metrics_sample(out, "baton_gateway_waiting", label, (double)now->waiting_for[role]);
        }
        gauge(out, "baton_gateway_connections", "Client connections", (double)now->connections);
        gauge(out, "baton_gateway_body_bytes", "Held of what clients have sent", (double)now->body_bytes);
        write_instances(p, out);
        write_instance_legs(p, out);
        write_kv_events(p, out);
        write_counts(s, out);
}
