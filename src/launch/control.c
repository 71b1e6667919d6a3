/* control.c - what the supervisor answers on its socket, and asking it from a command. */
#include "launch/control.h"
#include "base/clock.h"
#include "base/json.h"
#include "http/fetch.h"
#include <errno.h>
#include <stdio.h>
#include <unistd.h>

/* ---- the supervisor's side ------------------------------------------------------------------------------------------ */

static int64_t ms(uint64_t ns) {
        return (int64_t)(ns / NS_PER_MS);
}

/* What it said in the life that has ended. */
static void write_cause(struct json_writer *w, const struct process *p) {
        struct buf words = {0};
        struct launch_cause why = {0};

        if (launch_words_since(p->supervisor->options->paths, slice_str(p->name), p->log_at, &words) == 0)
                why = launch_explain(buf_slice(&words));
        json_key(w, "said");
        if (why.line.len)
                json_string(w, why.line);
        else
                json_null(w);
        json_key(w, "cause");
        json_str(w, why.cause);
        json_key(w, "cure");
        json_str(w, why.cure);
        buf_free(&words);
}

static void write_process(struct json_writer *w, const struct process *p, uint64_t now) {
        json_open(w, '{');
        json_key(w, "name");
        json_str(w, p->name);
        json_key(w, "role");
        json_str(w, p->role);
        json_key(w, "url");
        json_string(w, p->url);
        json_key(w, "state");
        json_str(w, process_state_name(p->state));
        json_key(w, "pid");
        if (process_runs(p))
                json_i64(w, p->child.pid);
        else
                json_null(w);
        json_key(w, "restarts");
        json_u64(w, p->restarts);
        json_key(w, "since_ms");
        json_i64(w, ms(now - p->since_ns));
        json_key(w, "ready_ms");
        if (p->ready_ns)
                json_i64(w, ms(p->ready_ns - p->started_ns));
        else
                json_null(w);
        json_key(w, "retry_ms");
        if (p->state == PROCESS_BACKOFF)
                json_i64(w, p->next_ns > now ? ms(p->next_ns - now) : 0);
        else
                json_null(w);
        json_key(w, "last_exit");
        json_str(w, p->last_exit[0] ? p->last_exit : NULL);
        if (p->state == PROCESS_FAILED || (p->state == PROCESS_BACKOFF && !p->world_lost))
                write_cause(w, p);
        json_close(w, '}');
}

static void write_status(struct supervisor *s, struct buf *out) {
        struct json_writer w = {.out = out};
        uint64_t now = clock_mono_ns();
        char digest[24];

        snprintf(digest, sizeof(digest), "%016llx", (unsigned long long)s->options->plan->digest);
        json_open(&w, '{');
        json_key(&w, "pid");
        json_i64(&w, getpid());
        json_key(&w, "file");
        json_str(&w, s->options->plan->cluster->file);
        json_key(&w, "digest");
        json_str(&w, digest);
        json_key(&w, "since_s");
        json_u64(&w, (now - s->started_ns) / NS_PER_S);
        json_key(&w, "stopping");
        json_bool(&w, s->stopping);
        json_key(&w, "processes");
        json_open(&w, '[');
        for (size_t i = 0; i < s->count; i++)
                write_process(&w, &s->processes[i], now);
        json_close(&w, ']');
        json_close(&w, '}');
}

static void answer(struct http_exchange *x, int status, struct slice body) {
        static const struct http_field type = {SLICE_LIT("Content-Type"), SLICE_LIT("application/json")};

        http_respond(x, status, (struct http_fields){&type, 1}, body);
}

/* POST /VERB/NAME: something is done with one process. */
static void post_verb(struct supervisor *s, struct http_exchange *x, struct slice path) {
        static const struct {
                const char *prefix;
                bool (*act)(struct supervisor *, struct slice);
        } verbs[] = {{"/restart/", supervisor_restart}, {"/halt/", supervisor_halt}, {"/start/", supervisor_start}};

        for (size_t i = 0; i < sizeof(verbs) / sizeof(*verbs); i++) {
                if (!slice_starts(path, slice_str(verbs[i].prefix)))
                        continue;
                if (verbs[i].act(s, slice_sub(path, strlen(verbs[i].prefix), path.len)))
                        answer(x, 200, SLICE_LIT("{}"));
                else
                        answer(x, 404,
                            SLICE_LIT("{\"error\":\"no process of that name, or everything is being stopped\"}"));
                return;
        }
        answer(x, 404, SLICE_LIT("{\"error\":\"unknown path\"}"));
}

void control_request(void *context, struct http_exchange *x) {
        struct supervisor *s = context;
        const struct http_request_head *head = http_exchange_request(x);
        struct slice path = head->path;
        struct buf b = {0};

        if (head->method == HTTP_METHOD_GET && slice_is(path, "/status")) {
                write_status(s, &b);
                answer(x, buf_ok(&b) ? 200 : 500, buf_slice(&b));
        } else if (head->method == HTTP_METHOD_POST && slice_is(path, "/stop")) {
                supervisor_begin_stop(s);
                answer(x, 200, SLICE_LIT("{}"));
        } else if (head->method == HTTP_METHOD_POST)
                post_verb(s, x, path);
        else
                answer(x, 404, SLICE_LIT("{\"error\":\"unknown path\"}"));
        buf_free(&b);
}

/* ---- a command's side ----------------------------------------------------------------------------------------------- */

int launch_call(const struct launch_paths *paths, const char *method, const char *path, unsigned timeout_ms,
    struct buf *ret_answer, struct error *e) {
        struct http_client_options options = {0};
        struct http_fetcher *fetcher;
        struct http_fetched fetched;
        struct slice body = strcmp(method, "POST") ? SLICE_NONE : SLICE_LIT("{}");
        char address[320];
        int r;

        if (access(paths->socket, F_OK) < 0)
                return error_set(e, -ENOENT, "no supervisor runs for this cluster file");
        r = http_fetcher_new(&options, &fetcher, e);
        if (r < 0)
                return r;
        snprintf(address, sizeof(address), "unix:%s", paths->socket);
        r = http_fetch_url(fetcher, address, path, body, NULL, timeout_ms, ret_answer, &fetched, e);
        http_fetcher_free(fetcher);
        if (r == -ECONNREFUSED)
                return error_set(e, r, "no supervisor runs for this cluster file");
        if (r < 0)
                return error_prefix(e, r, "the supervisor does not answer");
        if (fetched.status != 200)
                return error_set(e, -EPROTO, "the supervisor refuses: %.*s", SLICE_ARG(buf_slice(ret_answer)));
        return 0;
}
