/* metrics.c - see metrics.h. Names, kinds and buckets are vLLM 0.32's, so that its dashboards and routers work unchanged.
 *
 * Left out: estimates of floating point operations and bytes of a GPU, the multi-modal cache, and the "_created" gauges that
 * Python's client library adds. */
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
static const double n_bounds[] = {1, 2, 5, 10, 20};
static const double fetch_bounds[] = {0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.2, 0.3, 0.5, 0.75, 1, 5};
static const double bytes_bounds[] = {
    2048, 8192, 32768, 131072, 524288, 2097152, 8388608, 33554432, 134217728, 536870912, 2147483648, 8589934592};
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
    [H_PARAMS_N] = {"vllm:request_params_n", "Histogram of the n request parameter.", FIXED(n_bounds)},
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
    [H_FETCH_TIME] = {"vllm:nixl_xfer_time_seconds", "Histogram of the duration of KV transfers from other engines.",
        FIXED(fetch_bounds)},
    [H_FETCH_BYTES] = {"vllm:nixl_bytes_transferred", "Histogram of bytes of KV transfers from other engines.",
        FIXED(bytes_bounds)},
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

int metrics_init(struct engine_metrics *m, const struct engine_cache_facts *facts) {
        size_t count = 0;

        *m = (struct engine_metrics){.facts = *facts};
        pthread_mutex_init(&m->lock, NULL);
        m->bounds = make_125(facts->max_model_len, &count);
        if (!m->bounds)
                return -ENOMEM;
        for (int i = 0; i < H_COUNT; i++)
                if (histogram_init(&m->histograms[i], histograms[i].bounds ? histograms[i].bounds : m->bounds,
                        histograms[i].bounds ? histograms[i].count : count) < 0)
                        return -ENOMEM;
        return 0;
}

void metrics_free(struct engine_metrics *m) {
        for (int i = 0; i < H_COUNT; i++)
                histogram_free(&m->histograms[i]);
        free(m->bounds);
        m->bounds = NULL;
        pthread_mutex_destroy(&m->lock);
}

static double seconds(uint64_t from, uint64_t to) {
        return from && to > from ? (double)(to - from) / NS_PER_S : 0;
}

/* Of the prompt, what came from another engine. */
static uint32_t external_tokens(const struct sequence *s) {
        return s->external > s->cached ? s->external - s->cached : 0;
}

void metrics_tokens(struct engine_metrics *m, struct request *q, uint32_t tokens, uint32_t drafts, uint64_t now) {
        struct engine_figures *f = &m->figures;

        pthread_mutex_lock(&m->lock);
        f->generation_tokens += tokens;
        if (!q->first_token_ns) {
                q->first_token_ns = now;
                f->prompt_tokens += q->sequence.prompt;
                f->prompt_cached += q->sequence.cached;
                f->prompt_external += external_tokens(&q->sequence);
                histogram_add(&m->histograms[H_TTFT], seconds(q->arrival_ns, now));
        } else
                histogram_add(&m->histograms[H_ITL], seconds(q->last_token_ns, now));
        q->last_token_ns = now;
        if (drafts) {
                f->drafts++;
                f->draft_tokens += drafts;
                f->accepted_tokens += tokens - 1;
                for (uint32_t i = 0; i + 1 < tokens; i++)
                        f->accepted_at[i]++;
        }
        pthread_mutex_unlock(&m->lock);
}

void metrics_finished(struct engine_metrics *m, const struct request *q, enum finish_reason reason, uint64_t now) {
        const struct sequence *s = &q->sequence;
        uint32_t outputs = s->count - s->prompt;

        pthread_mutex_lock(&m->lock);
        m->figures.finished[reason]++;
        histogram_add(&m->histograms[H_E2E], seconds(q->arrival_ns, now));
        histogram_add(&m->histograms[H_PROMPT_TOKENS], s->prompt);
        histogram_add(&m->histograms[H_GENERATION_TOKENS], outputs);
        histogram_add(&m->histograms[H_MAX_GENERATION_TOKENS], outputs);
        histogram_add(&m->histograms[H_PARAMS_MAX_TOKENS], q->params.max_tokens);
        histogram_add(&m->histograms[H_PREEMPTIONS], s->preemptions);
        if (q->params_n)
                histogram_add(&m->histograms[H_PARAMS_N], q->params_n);
        if (q->scheduled_ns) {
                histogram_add(&m->histograms[H_QUEUE], seconds(q->queued_ns, q->scheduled_ns));
                histogram_add(&m->histograms[H_INFERENCE], seconds(q->scheduled_ns, q->last_token_ns));
                histogram_add(&m->histograms[H_PREFILL], seconds(q->scheduled_ns, q->first_token_ns));
                histogram_add(&m->histograms[H_DECODE], seconds(q->first_token_ns, q->last_token_ns));
                histogram_add(&m->histograms[H_KV_COMPUTED], s->prompt - s->cached - external_tokens(s));
        }
        if (outputs > 1)
                histogram_add(&m->histograms[H_TPOT], seconds(q->first_token_ns, q->last_token_ns) / (outputs - 1));
        pthread_mutex_unlock(&m->lock);
}

void metrics_rejected(struct engine_metrics *m) {
        pthread_mutex_lock(&m->lock);
        m->figures.rejected++;
        pthread_mutex_unlock(&m->lock);
}

void metrics_fetch_begun(struct engine_metrics *m, uint32_t tokens) {
        pthread_mutex_lock(&m->lock);
        m->figures.external_queries += tokens;
        pthread_mutex_unlock(&m->lock);
}

void metrics_fetched(struct engine_metrics *m, const struct comm_event *event, uint32_t tokens) {
        pthread_mutex_lock(&m->lock);
        if (event->result == 0 && event->bytes) {
                m->figures.external_hits += tokens;
                histogram_add(&m->histograms[H_FETCH_TIME], (double)event->ns / NS_PER_S);
                histogram_add(&m->histograms[H_FETCH_BYTES], (double)event->bytes);
        } else if (event->result < 0 && event->result != -ECANCELED)
                m->figures.fetches_failed++;
        pthread_mutex_unlock(&m->lock);
}

void metrics_pushed(struct engine_metrics *m, const struct comm_event *event) {
        metrics_fetched(m, event, 0);
}

void metrics_released(struct engine_metrics *m, int result) {
        pthread_mutex_lock(&m->lock);
        m->figures.leases_expired += result == -ETIMEDOUT;
        pthread_mutex_unlock(&m->lock);
}

void metrics_step(struct engine_metrics *m, const struct scheduler *s) {
        struct engine_figures *f = &m->figures;

        pthread_mutex_lock(&m->lock);
        f->running = (uint32_t)s->running_count;
        f->waiting = (uint32_t)s->waiting_count;
        f->kv_usage = blocks_usage(s->blocks);
        f->prefix_queries = s->prefix_queries;
        f->prefix_hits = s->prefix_hits;
        f->preemptions = s->preemptions;
        if (s->plan_rows)
                histogram_add(&m->histograms[H_ITERATION_TOKENS], s->plan_rows);
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

/* One sample with a label more. */
static void sample_with(
    struct buf *out, const char *name, const char *labels, const char *key, const char *value, double v) {
        struct buf all = {0};

        buf_add_str(&all, labels);
        metrics_label(&all, key, slice_str(value));
        buf_add_char(&all, 0);
        if (buf_ok(&all))
                metrics_sample(out, name, all.ptr, v);
        else
                out->failed = true;
        buf_free(&all);
}

static void write_cache_config(const struct engine_cache_facts *c, const char *labels, struct buf *out) {
        const char *caching = c->prefix_caching ? "True" : "False";
        struct buf all = {0};

        buf_printf(&all,
            "%s%sblock_size=\"%u\",cache_dtype=\"%s\",enable_prefix_caching=\"%s\",num_cpu_blocks=\"0\","
            "num_gpu_blocks=\"%u\",kv_cache_size_tokens=\"%llu\"",
            labels, *labels ? "," : "", c->block_tokens, c->dtype, caching, c->blocks,
            (unsigned long long)c->blocks * c->block_tokens);
        metrics_describe(out, "vllm:cache_config_info", METRIC_GAUGE, "Information of the LLMEngine CacheConfig");
        if (buf_ok(&all))
                metrics_sample(out, "vllm:cache_config_info", all.ptr, 1);
        else
                out->failed = true;
        buf_free(&all);
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
        metrics_describe(out, "vllm:prompt_tokens_cached_by_source_total", METRIC_COUNTER,
            "Prefix-cache hit tokens by the cache tier that supplied them.");
        sample_with(
            out, "vllm:prompt_tokens_cached_by_source_total", labels, "source", "device", (double)f->prefix_hits);
        sample_with(
            out, "vllm:prompt_tokens_cached_by_source_total", labels, "source", "p2p", (double)f->external_hits);
        counter(out, "vllm:generation_tokens_total", labels, "Number of generation tokens processed.",
            (double)f->generation_tokens);
        metrics_describe(
            out, "vllm:request_success_total", METRIC_COUNTER, "Count of successfully processed requests.");
        for (int i = FINISH_STOP; i <= FINISH_RECOMPUTED; i++)
                sample_with(out, "vllm:request_success_total", labels, "finished_reason",
                    finish_reason_name((enum finish_reason)i), (double)f->finished[i]);
        metrics_describe(out, "vllm:admission_rejections_total", METRIC_COUNTER,
            "Number of admission attempts rejected by a queue limit, by reason.");
        sample_with(
            out, "vllm:admission_rejections_total", labels, "reason", "max_num_queued_reqs", (double)f->rejected);
}

static void write_transfers(const struct engine_figures *f, const char *labels, struct buf *out) {
        counter(out, "vllm:nixl_num_failed_transfers_total", labels,
            "Number of failed KV transfers from other engines, or pushed to them.", (double)f->fetches_failed);
        counter(out, "vllm:nixl_num_kv_expired_reqs_total", labels,
            "Number of requests whose KV was kept for another engine and not fetched in time.",
            (double)f->leases_expired);
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

/* The figures as they are now. 0 or -ENOMEM; free the copy in any case. */
static int copy_figures(struct engine_metrics *m, struct engine_metrics *ret_copy) {
        *ret_copy = (struct engine_metrics){.facts = m->facts};
        for (int i = 0; i < H_COUNT; i++)
                if (histogram_init(&ret_copy->histograms[i], m->histograms[i].bounds, m->histograms[i].count_bounds) <
                    0)
                        return -ENOMEM;
        pthread_mutex_lock(&m->lock);
        ret_copy->figures = m->figures;
        for (int i = 0; i < H_COUNT; i++)
                histogram_copy(&ret_copy->histograms[i], &m->histograms[i]);
        pthread_mutex_unlock(&m->lock);
        return 0;
}

void metrics_write(struct engine_metrics *m, const char *labels, struct buf *out) {
        struct engine_metrics now;

        if (copy_figures(m, &now) == 0) {
                write_gauges(&now.figures, labels, out);
                write_counters(&now.figures, labels, out);
                if (now.facts.transfers)
                        write_transfers(&now.figures, labels, out);
                if (now.facts.draft_tokens)
                        write_speculative(&now.figures, labels, now.facts.draft_tokens, out);
                for (int i = 0; i < H_COUNT; i++) {
                        if (!now.facts.transfers && (i == H_FETCH_TIME || i == H_FETCH_BYTES))
                                continue;
                        metrics_describe(out, histograms[i].name, METRIC_HISTOGRAM, histograms[i].help);
                        metrics_histogram(out, histograms[i].name, labels, &now.histograms[i]);
                }
                write_cache_config(&now.facts, labels, out);
        } else
                out->failed = true;
        for (int i = 0; i < H_COUNT; i++)
                histogram_free(&now.histograms[i]);
}
