/* warmup.c - the first requests, made by us instead of by users: kernels meet every prompt length, every P→D pair its
 * first hand-off (the first contact of a pair costs seconds on some connectors), until latency is steady.
 *
 * Requests go straight to the ranks, with the pull protocol's fields (kv_transfer_params), one after the other: what is
 * measured is the path, not the queue. */
#include "base/clock.h"
#include "base/json.h"
#include "base/rng.h"
#include "http/fetch.h"
#include "launch/launch.h"
#include "openai/openai.h"
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#define ROUNDS_DEFAULT     10u
#define STEADY_DEFAULT     10.0
#define REQUEST_MS_DEFAULT 120000u
#define DECODE_TOKENS      4
#define SHORT_PROMPT       16u /* words; the length whose TTFT is compared between rounds */

struct warmup {
        const struct warmup_options *o;
        struct http_fetcher *fetcher;
        struct warmup_report report;
        struct error *e;
        struct rng rng;
};

/* Words that no earlier request began with: a prefix cache would hide what is to be warmed up. */
static void add_prompt(struct json_writer *w, struct rng *rng, unsigned words) {
        static const char *const stock[] = {"river", "lamp", "bread", "owl", "green", "seven", "house", "wind"};
        struct buf text = {0};

        buf_printf(&text, "%llu", (unsigned long long)rng_below(rng, 1000000000));
        for (unsigned i = 1; i < words; i++)
                buf_printf(&text, " %s", stock[rng_below(rng, 8)]);
        json_string(w, buf_slice(&text));
        if (!buf_ok(&text))
                w->out->failed = true;
        buf_free(&text);
}

static void add_common(struct json_writer *w, const struct warmup *u, struct slice prompt_json, int max_tokens) {
        if (u->o->model) {
                json_key(w, "model");
                json_str(w, u->o->model);
        }
        json_key(w, "prompt");
        json_raw(w, prompt_json);
        json_key(w, "temperature");
        json_i64(w, 0);
        json_key(w, "ignore_eos");
        json_bool(w, true);
        json_key(w, "max_tokens");
        json_i64(w, max_tokens);
}

static int post(
    struct warmup *u, const char *url, struct buf *body, struct buf *answer, struct http_fetched *ret_fetched) {
        unsigned ms = u->o->request_ms ? u->o->request_ms : REQUEST_MS_DEFAULT;
        int r;

        if (!buf_ok(body))
                return error_set(u->e, -ENOMEM, "out of memory");
        r = http_fetch_url(
            u->fetcher, url, "/v1/completions", buf_slice(body), u->o->api_key, ms, answer, ret_fetched, u->e);
        if (r == 0 && ret_fetched->status != 200)
                r = error_set(u->e, -EPROTO, "answered %d: %.*s", ret_fetched->status,
                    SLICE_ARG(slice_sub(buf_slice(answer), 0, 300)));
        return r;
}

/* The object that the decode leg needs, byte for byte: it may hold numbers that no double holds. */
static int take_params(struct warmup *u, struct slice answer, struct buf *ret_params) {
        struct openai_member m[OPENAI_MEMBERS_MAX];
        struct slice params;
        size_t n;

        if (openai_scan(answer, m, OPENAI_MEMBERS_MAX, &n, NULL) < 0)
                return error_set(u->e, -EPROTO, "answered what is not a JSON object");
        params = openai_find(m, n, "kv_transfer_params");
        if (params.len == 0 || params.ptr[0] != '{')
                return error_set(
                    u->e, -EPROTO, "answered without kv_transfer_params: is it a prefill rank (kv_producer)?");
        buf_add(ret_params, params);
        return buf_ok(ret_params) ? 0 : error_set(u->e, -ENOMEM, "out of memory");
}

/* The prefill leg. Appends the kv_transfer_params of its answer. */
static int prefill(struct warmup *u, const char *url, struct slice prompt, struct buf *ret_params) {
        struct buf body = {0}, answer = {0};
        struct json_writer w = {.out = &body};
        struct http_fetched fetched;
        int r;

        json_open(&w, '{');
        add_common(&w, u, prompt, 1);
        json_key(&w, "stream");
        json_bool(&w, false);
        json_key(&w, "min_tokens");
        json_i64(&w, 1);
        json_key(&w, "kv_transfer_params");
        json_raw(&w, SLICE_LIT("{\"do_remote_decode\":true,\"do_remote_prefill\":false,\"remote_engine_id\":null,"
                               "\"remote_block_ids\":null,\"remote_host\":null,\"remote_port\":null}"));
        json_close(&w, '}');
        r = post(u, url, &body, &answer, &fetched);
        if (r == 0)
                r = take_params(u, buf_slice(&answer), ret_params);
        if (r == 0)
                u->report.prefills++;
        buf_free(&body);
        buf_free(&answer);
        return r < 0 ? error_prefix(u->e, r, "prefill on %s", url) : 0;
}

static int decode(struct warmup *u, const char *url, struct slice prompt, struct slice params, double *ret_ttft_ms) {
        struct buf body = {0}, answer = {0};
        struct json_writer w = {.out = &body};
        struct http_fetched fetched = {0};
        int r;

        json_open(&w, '{');
        add_common(&w, u, prompt, DECODE_TOKENS);
        json_key(&w, "stream");
        json_bool(&w, true);
        if (params.len) {
                json_key(&w, "kv_transfer_params");
                json_raw(&w, params);
        }
        json_close(&w, '}');
        r = post(u, url, &body, &answer, &fetched);
        /* A failure after the first byte comes as an event in a 200. */
        if (r == 0 && slice_find_slice(buf_slice(&answer), SLICE_LIT("data: {\"error\""), 0) < answer.len)
                r = error_set(
                    u->e, -EPROTO, "ended in an error: %.*s", SLICE_ARG(slice_sub(buf_slice(&answer), 0, 300)));
        *ret_ttft_ms = (double)fetched.body_ns / (double)NS_PER_MS;
        buf_free(&body);
        buf_free(&answer);
        return r < 0 ? error_prefix(u->e, r, "decode on %s", url) : 0;
}

/* One request along the whole way; TTFT is the sum of both legs. */
static int run_pair(struct warmup *u, const char *from, const char *to, unsigned words, double *ret_ttft_ms) {
        struct buf prompt = {0}, params = {0};
        struct json_writer w = {.out = &prompt};
        uint64_t begun = clock_mono_ns();
        double decode_ms = 0, prefill_ms = 0;
        int r = 0;

        add_prompt(&w, &u->rng, words);
        if (!buf_ok(&prompt))
                r = error_set(u->e, -ENOMEM, "out of memory");
        if (r == 0 && from) {
                r = prefill(u, from, buf_slice(&prompt), &params);
                prefill_ms = (double)(clock_mono_ns() - begun) / (double)NS_PER_MS;
        }
        if (r == 0)
                r = decode(u, to, buf_slice(&prompt), buf_slice(&params), &decode_ms);
        if (r == 0)
                *ret_ttft_ms = prefill_ms + decode_ms;
        buf_free(&prompt);
        buf_free(&params);
        return r;
}

static const char *prefiller(const struct warmup *u, size_t i) {
        return u->o->prefill_count ? u->o->prefill[i] : NULL;
}

static size_t prefillers(const struct warmup *u) {
        return u->o->prefill_count ? u->o->prefill_count : 1;
}

static void say(struct warmup *u, const char *format, ...) __attribute__((format(printf, 2, 3)));
static void say(struct warmup *u, const char *format, ...) {
        char line[200];
        va_list args;

        if (!u->o->progress)
                return;
        va_start(args, format);
        vsnprintf(line, sizeof(line), format, args);
        va_end(args);
        u->o->progress(u->o->context, line);
}

/* Every prefiller over a few prompt lengths, every pair once. */
static int first_contact(struct warmup *u) {
        unsigned longest = u->o->max_prompt ? u->o->max_prompt : 256;
        double ttft;
        int r;

        u->report.pairs = (unsigned)(prefillers(u) * u->o->decode_count);
        for (size_t p = 0; p < prefillers(u); p++)
                for (unsigned words = SHORT_PROMPT; words <= longest; words *= 4) {
                        r = run_pair(u, prefiller(u, p), u->o->decode[p % u->o->decode_count], words, &ttft);
                        if (r < 0)
                                return r;
                }
        for (size_t p = 0; p < prefillers(u); p++)
                for (size_t d = 0; d < u->o->decode_count; d++) {
                        r = run_pair(u, prefiller(u, p), u->o->decode[d], SHORT_PROMPT, &ttft);
                        if (r < 0)
                                return r;
                        u->report.pairs_done++;
                        say(u, "%u prefills, %u of %u P→D pairs", u->report.prefills, u->report.pairs_done,
                            u->report.pairs);
                }
        return 0;
}

static int compare(const void *a, const void *b) {
        double x = *(const double *)a, y = *(const double *)b;

        return x < y ? -1 : x > y;
}

static double median(const double *values, size_t count) {
        double sorted[64];

        memcpy(sorted, values, count * sizeof(*sorted));
        qsort(sorted, count, sizeof(*sorted), compare);
        return count % 2 ? sorted[count / 2] : (sorted[count / 2 - 1] + sorted[count / 2]) / 2;
}

/* A round visits each prefiller and each decoder at least once, in pairs that shift from round to round. */
static int round_of(struct warmup *u, unsigned number, double *ret_ttft_ms) {
        size_t count = prefillers(u) > u->o->decode_count ? prefillers(u) : u->o->decode_count;
        double values[64];
        size_t n = 0;

        for (size_t i = 0; i < count; i++) {
                double ttft;
                int r = run_pair(u, prefiller(u, i % prefillers(u)), u->o->decode[(i + number) % u->o->decode_count],
                    SHORT_PROMPT, &ttft);

                if (r < 0)
                        return r;
                values[n++ % 64] = ttft;
        }
        *ret_ttft_ms = median(values, n < 64 ? n : 64);
        return 0;
}

static int until_steady(struct warmup *u) {
        unsigned max = u->o->max_rounds ? u->o->max_rounds : ROUNDS_DEFAULT;
        double limit = u->o->steady_percent > 0 ? u->o->steady_percent : STEADY_DEFAULT, last[3];

        while (u->report.rounds < max && !u->report.steady) {
                double ttft, middle;
                size_t n;
                int r = round_of(u, u->report.rounds, &ttft);

                if (r < 0)
                        return r;
                last[u->report.rounds++ % 3] = ttft;
                n = u->report.rounds < 3 ? u->report.rounds : 3;
                middle = median(last, n);
                u->report.ttft_ms = middle;
                u->report.spread_percent = 0;
                for (size_t i = 0; i < n; i++) {
                        double off =
                            middle > 0 ? 100 * (last[i] > middle ? last[i] - middle : middle - last[i]) / middle : 0;

                        if (off > u->report.spread_percent)
                                u->report.spread_percent = off;
                }
                u->report.steady = n > 1 && u->report.spread_percent <= limit;
                say(u, "round %u: TTFT %.1f ms", u->report.rounds, ttft);
        }
        return 0;
}

int launch_warmup(const struct warmup_options *options, struct warmup_report *ret_report, struct error *e) {
        struct http_client_options client = {.log = options->log};
        struct warmup u = {.o = options, .e = e};
        int r;

        if (options->decode_count == 0)
                return error_set(e, -EINVAL, "there is no rank to warm up");
        r = http_fetcher_new(&client, &u.fetcher, e);
        if (r < 0)
                return r;
        rng_seed(&u.rng, clock_wall_ns());
        r = first_contact(&u);
        if (r == 0)
                r = until_steady(&u);
        http_fetcher_free(u.fetcher);
        if (r == 0)
                *ret_report = u.report;
        return r;
}
