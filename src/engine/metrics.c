/* metrics.c - see metrics.h. Names, kinds and buckets are vLLM 0.32's, so that its dashboards and routers work unchanged. */
#include "engine/metrics.h"
#include "base/clock.h"
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

static const double ttft_bounds[] = {
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80, 160, 640, 2560};
static const double itl_bounds[] = {
    0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80};
static const double request_bounds[] = {
    0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960, 1920, 7680};
static const double iteration_bounds[] = {1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384};
static const double preemption_bounds[] = {1, 2, 3, 4, 5, 10, 20};

#define FIXED(a) a, sizeof(a) / sizeof(*(a))

static const struct {
        const char *name, *help;
        const double *bounds; /* NULL: 1-2-5 up to max_model_len */
        size_t count;
} histograms[H_COUNT] = {
    [H_PROMPT_TOKENS] = {"vllm:request_prompt_tokens", "Number of prefill tokens processed.", NULL, 0},
    [H_GENERATION_TOKENS] = {"vllm:request_generation_tokens", "Number of generation tokens processed.", NULL, 0},
    [H_ITERATION_TOKENS] = {"vllm:iteration_tokens_total", "Histogram of number of tokens per engine_step.",
        FIXED(iteration_bounds)},
    [H_MAX_GENERATION_TOKENS] = {"vllm:request_max_num_generation_tokens",
        "Histogram of maximum number of requested generation tokens.", NULL, 0},
    [H_PARAMS_MAX_TOKENS] = {"vllm:request_params_max_tokens", "Histogram of the max_tokens request parameter.", NULL,
        0},
    [H_TTFT] = {"vllm:time_to_first_token_seconds", "Histogram of time to first token in seconds.", FIXED(ttft_bounds)},
    [H_ITL] = {"vllm:inter_token_latency_seconds", "Histogram of inter-token latency in seconds.", FIXED(itl_bounds)},
    [H_TPOT] = {"vllm:request_time_per_output_token_seconds", "Histogram of time_per_output_token_seconds per request.",
        FIXED(itl_bounds)},
    [H_E2E] = {"vllm:e2e_request_latency_seconds", "Histogram of e2e request latency in seconds.",
        FIXED(request_bounds)},
    [H_QUEUE] = {"vllm:request_queue_time_seconds", "Histogram of time spent in WAITING phase for request.",
        FIXED(request_bounds)},
    [H_INFERENCE] = {"vllm:request_inference_time_seconds", "Histogram of time spent in RUNNING phase for request.",
        FIXED(request_bounds)},
    [H_PREFILL] = {"vllm:request_prefill_time_seconds", "Histogram of time spent in PREFILL phase for request.",
        FIXED(request_bounds)},
    [H_DECODE] = {"vllm:request_decode_time_seconds", "Histogram of time spent in DECODE phase for request.",
        FIXED(request_bounds)},
    [H_PREEMPTIONS] = {"vllm:request_num_preemptions", "Histogram of the number of times a request was preempted.",
        FIXED(preemption_bounds)},
    [H_KV_COMPUTED] = {"vllm:request_prefill_kv_computed_tokens",
        "Histogram of new KV tokens computed during prefill (excluding cached tokens).", NULL, 0},
};

/* 1, 2, 5, 10, 20, 50 … not above `max`. */
static double *make_125(uint32_t max, size_t *ret_count) {
        static const double steps[] = {1, 2, 5};
        double *bounds = malloc(40 * sizeof(*bounds)), scale = 1;
        size_t n = 0;

        for (; bounds && n < 40; scale *= 10)
                for (size_t i = 0; i < 3; i++) {
                        if (steps[i] * scale > max || n == 40) {
                                *ret_count = n;
                                return bounds;
                        }
                        bounds[n++] = steps[i] * scale;
                }
        return bounds;
}

int metrics_init(struct engine_metrics *m, uint32_t max_model_len) {
        size_t count = 0;

        *m = (struct engine_metrics){0};
        pthread_mutex_init(&m->lock, NULL);
        m->bounds = make_125(max_model_len, &count);
        if (!m->bounds)
                goto fail;
        for (int i = 0; i < H_COUNT; i++)
                if (histogram_init(&m->histograms[i], histograms[i].bounds ? histograms[i].bounds : m->bounds,
                        histograms[i].bounds ? histograms[i].count : count) < 0)
                        goto fail;
        return 0;
fail:
        metrics_free(m);
        return -ENOMEM;
}

void metrics_free(struct engine_metrics *m) {
        for (int i = 0; i < H_COUNT; i++)
                histogram_free(&m->histograms[i]);
        free(m->bounds);
        m->bounds = NULL;
        pthread_mutex_destroy(&m->lock);
}

void metrics_observe(struct engine_metrics *m, enum engine_histogram h, double value) {
        pthread_mutex_lock(&m->lock);
        histogram_add(&m->histograms[h], value);
        pthread_mutex_unlock(&m->lock);
}

static double seconds(uint64_t from, uint64_t to) {
        return from && to > from ? (double)(to - from) / NS_PER_S : 0;
}

void metrics_finished(struct engine_metrics *m, const struct sequence *q, enum finish_reason reason, uint64_t now) {
        uint32_t outputs = q->count - q->prompt;

        pthread_mutex_lock(&m->lock);
        m->figures.finished[reason]++;
        histogram_add(&m->histograms[H_E2E], seconds(q->arrival_ns, now));
        histogram_add(&m->histograms[H_PROMPT_TOKENS], q->prompt);
        histogram_add(&m->histograms[H_GENERATION_TOKENS], outputs);
        histogram_add(&m->histograms[H_MAX_GENERATION_TOKENS], outputs);
        histogram_add(&m->histograms[H_PARAMS_MAX_TOKENS], q->params.max_tokens);
        histogram_add(&m->histograms[H_PREEMPTIONS], q->preemptions);
        if (q->scheduled_ns) {
                histogram_add(&m->histograms[H_QUEUE], seconds(q->queued_ns, q->scheduled_ns));
                histogram_add(&m->histograms[H_INFERENCE], seconds(q->scheduled_ns, q->last_token_ns));
                histogram_add(&m->histograms[H_PREFILL], seconds(q->scheduled_ns, q->first_token_ns));
                histogram_add(&m->histograms[H_DECODE], seconds(q->first_token_ns, q->last_token_ns));
                histogram_add(&m->histograms[H_KV_COMPUTED], q->prompt - q->cached);
        }
        if (outputs > 1)
                histogram_add(&m->histograms[H_TPOT], seconds(q->first_token_ns, q->last_token_ns) / (outputs - 1));
        pthread_mutex_unlock(&m->lock);
}

/* ---- writing ------------------------------------------------------------------------------------------------------------ */

static void counter(struct buf *out, const char *name, const char *labels, const char *help, double value) {
        metrics_describe(out, name, METRIC_COUNTER, help);
        metrics_sample(out, name, labels, value);
}

static void gauge(struct buf *out, const char *name, const char *labels, const char *help, double value) {
        metrics_describe(out, name, METRIC_GAUGE, help);
        metrics_sample(out, name, labels, value);
}

static void sample_with(
    struct buf *out, const char *name, const char *labels, const char *key, const char *value, double v) {
        char all[1024];

        snprintf(all, sizeof(all), "%s%s%s=\"%s\"", labels, *labels ? "," : "", key, value);
        metrics_sample(out, name, all, v);
}

static void write_gauges(const struct engine_figures *f, const char *labels, struct buf *out) {
        gauge(out, "vllm:num_requests_running", labels, "Number of requests in model execution batches.", f->running);
        gauge(out, "vllm:num_requests_waiting", labels, "Number of requests waiting to be processed.",
            f->waiting + f->deferred);
        metrics_describe(
            out, "vllm:num_requests_waiting_by_reason", METRIC_GAUGE, "Number of waiting requests by reason.");
        sample_with(out, "vllm:num_requests_waiting_by_reason", labels, "reason", "capacity", f->waiting);
        sample_with(out, "vllm:num_requests_waiting_by_reason", labels, "reason", "deferred", f->deferred);
        metrics_describe(
            out, "vllm:engine_sleep_state", METRIC_GAUGE, "Engine sleep state; this engine is always awake.");
        sample_with(out, "vllm:engine_sleep_state", labels, "sleep_state", "awake", 1);
        sample_with(out, "vllm:engine_sleep_state", labels, "sleep_state", "weights_offloaded", 0);
        sample_with(out, "vllm:engine_sleep_state", labels, "sleep_state", "discard_all", 0);
        gauge(out, "vllm:kv_cache_usage_perc", labels, "KV-cache usage. 1 means 100 percent usage.", f->kv_usage);
}

static void write_counters(const struct engine_figures *f, const char *labels, struct buf *out) {
        static const char *const reasons[] = {
            [FINISH_STOP] = "stop", [FINISH_LENGTH] = "length", [FINISH_ABORT] = "abort", [FINISH_ERROR] = "error"};

        counter(out, "vllm:prefix_cache_queries_total", labels,
            "Prefix cache queries, in terms of number of queried tokens.", (double)f->prefix_queries);
        counter(out, "vllm:prefix_cache_hits_total", labels, "Prefix cache hits, in terms of number of cached tokens.",
            (double)f->prefix_hits);
        counter(out, "vllm:external_prefix_cache_queries_total", labels,
            "External prefix cache queries from KV connector, in terms of number of queried tokens.",
            (double)f->external_queries);
        counter(out, "vllm:external_prefix_cache_hits_total", labels,
            "External prefix cache hits from KV connector, in terms of number of cached tokens.",
            (double)f->external_hits);
        counter(out, "vllm:num_preemptions_total", labels, "Cumulative number of preemption from the engine.",
            (double)f->preemptions);
        counter(
            out, "vllm:prompt_tokens_total", labels, "Number of prefill tokens processed.", (double)f->prompt_tokens);
        metrics_describe(
            out, "vllm:prompt_tokens_by_source_total", METRIC_COUNTER, "Number of prompt tokens by source.");
        sample_with(out, "vllm:prompt_tokens_by_source_total", labels, "source", "local_compute",
            (double)(f->prompt_tokens - f->prompt_cached - f->prompt_external));
        sample_with(
            out, "vllm:prompt_tokens_by_source_total", labels, "source", "local_cache_hit", (double)f->prompt_cached);
        sample_with(out, "vllm:prompt_tokens_by_source_total", labels, "source", "external_kv_transfer",
            (double)f->prompt_external);
        counter(out, "vllm:prompt_tokens_cached_total", labels, "Number of cached prompt tokens (local + external).",
            (double)(f->prompt_cached + f->prompt_external));
        counter(out, "vllm:generation_tokens_total", labels, "Number of generation tokens processed.",
            (double)f->generation_tokens);
        metrics_describe(
            out, "vllm:request_success_total", METRIC_COUNTER, "Count of successfully processed requests.");
        for (int i = FINISH_STOP; i <= FINISH_ERROR; i++)
                sample_with(
                    out, "vllm:request_success_total", labels, "finished_reason", reasons[i], (double)f->finished[i]);
        metrics_describe(out, "vllm:admission_rejections_total", METRIC_COUNTER,
            "Number of admission attempts rejected by a queue limit, by reason.");
        sample_with(
            out, "vllm:admission_rejections_total", labels, "reason", "max_num_queued_reqs", (double)f->rejected);
}

static void write_speculative(
    const struct engine_figures *f, const char *labels, uint32_t draft_tokens, struct buf *out) {
        counter(out, "vllm:spec_decode_num_drafts_total", labels, "Number of spec decoding drafts.", (double)f->drafts);
        counter(
            out, "vllm:spec_decode_num_draft_tokens_total", labels, "Number of draft tokens.", (double)f->draft_tokens);
        counter(out, "vllm:spec_decode_num_accepted_tokens_total", labels, "Number of accepted tokens.",
            (double)f->accepted_tokens);
        metrics_describe(out, "vllm:spec_decode_num_accepted_tokens_per_pos_total", METRIC_COUNTER,
            "Accepted tokens per draft position.");
        for (uint32_t i = 0; i < draft_tokens && i < 8; i++) {
                char position[12];

                snprintf(position, sizeof(position), "%u", i);
                sample_with(out, "vllm:spec_decode_num_accepted_tokens_per_pos_total", labels, "position", position,
                    (double)f->accepted_at[i]);
        }
}

void metrics_write(
    struct engine_metrics *m, const char *labels, bool speculative, uint32_t draft_tokens, struct buf *out) {
        pthread_mutex_lock(&m->lock);
        write_gauges(&m->figures, labels, out);
        write_counters(&m->figures, labels, out);
        if (speculative)
                write_speculative(&m->figures, labels, draft_tokens, out);
        for (int i = 0; i < H_COUNT; i++) {
                metrics_describe(out, histograms[i].name, METRIC_HISTOGRAM, histograms[i].help);
                metrics_histogram(out, histograms[i].name, labels, &m->histograms[i]);
        }
        pthread_mutex_unlock(&m->lock);
}
