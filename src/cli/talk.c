/* talk.c - see talk.h. */
#include "cli/talk.h"
#include "base/clock.h"
#include "base/file.h"
#include "base/json.h"
#include "http/fetch.h"
#include "http/http.h"
#include "http/sse.h"
#include "os/os.h"
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <unistd.h>

/* Without a byte of the answer: a long prompt on a slow machine says nothing for minutes. */
#define TIMEOUT_MS     300000u
#define READY_SECONDS  3600
#define ERROR_BODY_MAX 65536u

struct talk {
        uv_loop_t loop;
        struct http_client *client;
        struct arena arena;
        struct http_endpoint endpoint;
        const char *authorization; /* the field's value, or NULL */
        /* What would end this program comes through here, so that a server of our own and its directory are cleared
         * away first. */
        int signals;
        sigset_t mask_before;
        bool ending; /* one came that means more than the answer on its way */
        /* a server of our own */
        struct os_child server;
        char dir[64];
};

/* ---- signals ----------------------------------------------------------------------------------------------------------- */

static int take_signals(struct talk *t, struct error *e) {
        sigset_t mask;

        sigemptyset(&mask);
        sigaddset(&mask, SIGINT);
        sigaddset(&mask, SIGTERM);
        sigaddset(&mask, SIGHUP);
        t->signals = signalfd(-1, &mask, SFD_NONBLOCK | SFD_CLOEXEC);
        if (t->signals < 0)
                return error_set(e, -errno, "cannot take signals: %s", strerror(errno));
        sigprocmask(SIG_BLOCK, &mask, &t->mask_before);
        return 0;
}

static void give_back_signals(struct talk *t) {
        if (t->signals < 0)
                return;
        close(t->signals);
        sigprocmask(SIG_SETMASK, &t->mask_before, NULL);
}

/* Whether a signal has come. */
static bool interrupted(struct talk *t) {
        struct signalfd_siginfo info;
        bool any = t->ending;

        while (read(t->signals, &info, sizeof(info)) == sizeof(info)) {
                any = true;
                t->ending |= info.ssi_signo != SIGINT;
        }
        return any;
}

/* Wait until `fd` can be read. 1, 0 after timeout_ms, or -ECANCELED for a signal. */
static int wait_for(struct talk *t, int fd, int timeout_ms) {
        struct pollfd p[2] = {{t->signals, POLLIN, 0}, {fd, POLLIN, 0}};
        int n;

        do {
                if (interrupted(t))
                        return -ECANCELED;
                n = poll(p, 2, timeout_ms);
        } while ((n < 0 && errno == EINTR) || (n > 0 && p[0].revents));
        return n < 0 ? -errno : n;
}

int talk_wait(struct talk *t, int fd) {
        int r = wait_for(t, fd, -1);

        return r < 0 ? r : 0;
}

/* ---- a server for a folder --------------------------------------------------------------------------------------------- */

static bool is_folder(const char *where) {
        struct stat st;

        return stat(where, &st) == 0 && S_ISDIR(st.st_mode);
}

static int explain_server(struct talk *t, struct error *e) {
        struct os_child_exit ended;
        char path[96];
        struct buf words = {0};
        int r;

        os_child_reap(&t->server, true, &ended);
        snprintf(path, sizeof(path), "%s/log", t->dir);
        file_read_whole(path, 1 << 20, &words, NULL);
        r = error_set(e, -EINVAL, "the model cannot be served:\n%.*s", SLICE_ARG(slice_trim(buf_slice(&words))));
        buf_free(&words);
        return r;
}

static int wait_ready(struct talk *t, const char *address, struct error *e) {
        struct http_client_options options = {0};
        struct http_fetcher *fetcher;
        uint64_t end = clock_mono_ns() + READY_SECONDS * NS_PER_S;
        int r = http_fetcher_new(&options, &fetcher, e);

        if (r < 0)
                return r;
        while (r == 0) {
                struct http_fetched fetched;
                struct buf body = {0};
                bool ready =
                    http_fetch_url(fetcher, address, "/health", SLICE_NONE, NULL, 2000, &body, &fetched, NULL) == 0 &&
                    fetched.status == 200;

                buf_free(&body);
                if (ready)
                        break;
                r = wait_for(t, t->server.pidfd, 20);
                if (r > 0)
                        r = explain_server(t, e);
                else if (r < 0)
                        error_set(e, r, "interrupted before the model was ready");
                else if (clock_mono_ns() > end)
                        r = error_set(e, -ETIMEDOUT, "the model is not ready after %d s", READY_SECONDS);
        }
        http_fetcher_free(fetcher);
        return r;
}

/* NULL when memory is out. */
static const char *const *server_argv(struct talk *t, const struct talk_options *o, const char *path) {
        const char *const own[] = {cli_self(&t->arena), "serve", o->where, "--uds", path};
        size_t n = sizeof(own) / sizeof(*own), count = 0;
        const char **argv;

        while (o->serve_args && o->serve_args[count])
                count++;
        argv = arena_array(&t->arena, n + count + 1, sizeof(*argv));
        if (!argv)
                return NULL;
        memcpy(argv, own, sizeof(own));
        for (size_t i = 0; i < count; i++)
                argv[n + i] = o->serve_args[i];
        return argv;
}

static int start_server(struct talk *t, const struct talk_options *o, char *ret_address, size_t size, struct error *e) {
        struct os_child_options child = {.stdin_fd = -1, .own_group = true, .death_signal = SIGKILL};
        char path[96], log[96];
        int fd, r;

        snprintf(t->dir, sizeof(t->dir), "/tmp/baton-talk-XXXXXX");
        if (!mkdtemp(t->dir)) {
                t->dir[0] = 0;
                return error_set(e, -errno, "cannot make a directory in /tmp: %s", strerror(errno));
        }
        snprintf(path, sizeof(path), "%s/sock", t->dir);
        snprintf(log, sizeof(log), "%s/log", t->dir);
        snprintf(ret_address, size, "unix:%s", path);
        child.argv = server_argv(t, o, path);
        if (!child.argv)
                return error_set(e, -ENOMEM, "out of memory");
        fd = open(log, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
        if (fd < 0)
                return error_set(e, -errno, "cannot write %s: %s", log, strerror(errno));
        child.stdout_fd = child.stderr_fd = fd;
        r = os_child_start(&child, &t->server, e);
        close(fd);
        if (r < 0) {
                t->server.pidfd = -1;
                return r;
        }
        return wait_ready(t, ret_address, e);
}

static void end_server(struct talk *t) {
        static const char *const files[] = {"sock", "log"};
        struct os_child_exit ended;
        char path[96];

        if (t->server.pidfd >= 0) {
                struct pollfd p = {t->server.pidfd, POLLIN, 0};

                os_child_signal(&t->server, SIGTERM);
                if (poll(&p, 1, 10000) <= 0)
                        os_child_kill_group(&t->server, SIGKILL);
                os_child_reap(&t->server, true, &ended);
        }
        if (!t->dir[0])
                return;
        for (size_t i = 0; i < 2; i++) {
                snprintf(path, sizeof(path), "%s/%s", t->dir, files[i]);
                unlink(path);
        }
        rmdir(t->dir);
}

/* ---- opening ----------------------------------------------------------------------------------------------------------- */

static void nothing(void *context) {
        (void)context;
}

int talk_open(const struct talk_options *o, struct talk **ret_talk, struct error *e) {
        struct http_client_options client = {0};
        struct talk *t = calloc(1, sizeof(*t));
        char address[128];
        const char *where = o->where;
        int r;

        if (!t)
                return error_set(e, -ENOMEM, "out of memory");
        t->server.pidfd = t->signals = -1;
        r = uv_loop_init(&t->loop);
        if (r < 0) {
                free(t);
                return error_set(e, r, "cannot make an event loop: %s", uv_strerror(r));
        }
        r = http_client_new(&t->loop, &client, &t->client, e);
        if (r == 0 && o->api_key) {
                t->authorization = arena_printf(&t->arena, "Bearer %s", o->api_key);
                r = t->authorization ? 0 : error_set(e, -ENOMEM, "out of memory");
        }
        if (r == 0)
                r = take_signals(t, e);
        if (r == 0 && is_folder(where)) {
                r = start_server(t, o, address, sizeof(address), e);
                where = address;
        } else if (r == 0 && strncmp(where, "http://", 7) && strncmp(where, "https://", 8) &&
                   strncmp(where, "unix:", 5))
                r = error_set(
                    e, -ENOENT, "%s is neither a model folder nor an URL (http://…, https://…, unix:PATH)", where);
        if (r == 0)
                r = http_endpoint_parse(&t->arena, slice_str(where), &t->endpoint, NULL, e);
        if (r < 0) {
                talk_close(t);
                return r;
        }
        *ret_talk = t;
        return 0;
}

void talk_close(struct talk *t) {
        if (!t)
                return;
        if (t->client)
                http_client_close(t->client, nothing, NULL);
        uv_run(&t->loop, UV_RUN_DEFAULT);
        http_client_free(t->client);
        uv_loop_close(&t->loop);
        end_server(t);
        give_back_signals(t);
        arena_free(&t->arena);
        free(t);
}

/* ---- one stream -------------------------------------------------------------------------------------------------------- */

struct streaming {
        struct talk *t;
        struct talk_result *out;
        struct error *e;
        void (*on_part)(void *context, enum talk_part part, struct slice text);
        void *context;
        struct sse *sse;
        struct buf error_body;
        uint64_t begun, first, last;
        int status, result;
        bool ended, done_seen, interrupted;
        struct http_call *call;
};

static void say(struct streaming *s, enum talk_part part, struct slice text) {
        if (text.len == 0)
                return;
        buf_add(part == TALK_REASONING ? &s->out->reasoning : &s->out->text, text);
        if (s->on_part)
                s->on_part(s->context, part, text);
}

static void take_usage(struct streaming *s, yyjson_val *usage) {
        if (!yyjson_is_obj(usage))
                return;
        s->out->prompt_tokens = json_get_i64(usage, "prompt_tokens", -1);
        s->out->tokens = json_get_i64(usage, "completion_tokens", -1);
        s->out->cached_tokens =
            json_get_i64(json_get(usage, "prompt_tokens_details"), "cached_tokens", s->out->cached_tokens);
}

static void take_tools(struct streaming *s, yyjson_val *calls) {
        yyjson_val *call;
        size_t i, n;

        yyjson_arr_foreach(calls, i, n, call) {
                yyjson_val *function = json_get(call, "function");

                say(s, TALK_TOOL, json_get_slice(function, "name"));
                say(s, TALK_TOOL, json_get_slice(function, "arguments"));
        }
}

static void take_choice(struct streaming *s, yyjson_val *choice) {
        yyjson_val *delta = json_get(choice, "delta");

        say(s, TALK_TEXT, json_get_slice(choice, "text"));
        say(s, TALK_REASONING, json_get_slice(delta, "reasoning"));
        say(s, TALK_TEXT, json_get_slice(delta, "content"));
        take_tools(s, json_get(delta, "tool_calls"));
}

static struct slice error_message(yyjson_val *root) {
        yyjson_val *error = json_get(root, "error");
        struct slice text = json_get_slice(error, "message");

        if (!text.len)
                text = json_slice(error);
        return text.len ? text : json_get_slice(root, "detail");
}

/* What the gateway tells beside the stream, since it was asked to: a comment. */
static void take_note(struct streaming *s, struct slice event) {
        struct slice note = slice_trim(event);
        size_t used = strlen(s->out->route);

        if (slice_starts(note, SLICE_LIT(": continued on ")))
                snprintf(s->out->route + used, sizeof(s->out->route) - used, ", %.*s",
                    SLICE_ARG(slice_sub(note, 2, note.len)));
}

static void take_event(struct streaming *s, struct slice event) {
        char *scratch = malloc(event.len + 1);
        struct slice data = scratch ? sse_data(event, scratch) : SLICE_NONE;
        yyjson_doc *doc = NULL;
        yyjson_val *root;

        if (slice_is(slice_trim(data), "[DONE]"))
                s->done_seen = true;
        else if (data.len && json_parse(data, &doc, NULL) == 0) {
                root = yyjson_doc_get_root(doc);
                if (json_get(root, "error"))
                        s->result = error_set(
                            s->e, -EPROTO, "the server ended the stream: %.*s", SLICE_ARG(error_message(root)));
                if (yyjson_arr_size(json_get(root, "choices"))) {
                        s->last = clock_mono_ns();
                        if (!s->first)
                                s->first = s->last;
                }
                take_choice(s, yyjson_arr_get(json_get(root, "choices"), 0));
                take_usage(s, json_get(root, "usage"));
                yyjson_doc_free(doc);
        } else if (!data.ptr)
                take_note(s, event);
        free(scratch);
}

static void read_route(struct talk_result *out, struct http_fields fields) {
        struct slice prefill = http_field_value(fields, "X-Baton-Prefill"),
                     decode = http_field_value(fields, "X-Baton-Decode"), kv = http_field_value(fields, "X-Baton-KV");
        char text[64];
        unsigned long long bytes;

        if (decode.len)
                snprintf(out->route, sizeof(out->route), "%.*s%s%.*s", SLICE_ARG(slice_sub(prefill, 0, 100)),
                    prefill.len ? " → " : "", SLICE_ARG(slice_sub(decode, 0, 100)));
        snprintf(text, sizeof(text), "%.*s", SLICE_ARG(slice_sub(kv, 0, sizeof(text) - 1)));
        if (sscanf(text, "bytes=%llu, ms=%lf", &bytes, &out->kv_ms) == 2)
                out->kv_bytes = bytes;
}

static void on_head(struct http_call *call, const struct http_response_head *head, void *user) {
        struct streaming *s = user;

        (void)call;
        s->status = head->status;
        read_route(s->out, head->fields);
}

static void on_body(struct http_call *call, struct slice data, void *user) {
        struct streaming *s = user;
        struct slice event;
        int r;

        if (s->status != 200) {
                if (s->error_body.len + data.len <= ERROR_BODY_MAX)
                        buf_add(&s->error_body, data);
                return;
        }
        while ((r = sse_next(s->sse, &data, &event)) == 1)
                take_event(s, event);
        if (r < 0) {
                s->result = error_set(s->e, r, "the server sent an event that is too long");
                http_call_abort(call);
        }
}

static void explain_status(struct streaming *s) {
        yyjson_doc *doc = NULL;
        struct slice text = buf_slice(&s->error_body);

        if (json_parse(text, &doc, NULL) == 0 && error_message(yyjson_doc_get_root(doc)).len)
                text = error_message(yyjson_doc_get_root(doc));
        s->result = error_set(s->e, s->status >= 500 ? -EIO : -EINVAL, "the server answers %d: %.*s", s->status,
            SLICE_ARG(slice_sub(text, 0, 800)));
        if (doc)
                yyjson_doc_free(doc);
}

static void on_end(struct http_call *call, enum http_failure failure, const char *why, void *user) {
        struct streaming *s = user;

        (void)call;
        s->ended = true;
        s->call = NULL;
        if (s->interrupted)
                s->result = -ECANCELED;
        else if (s->result == 0 && failure != HTTP_OK)
                s->result = error_set(s->e, failure == HTTP_FAIL_TIMEOUT ? -ETIMEDOUT : -EPIPE, "%s", why);
        else if (s->result == 0 && s->status != 200)
                explain_status(s);
        else if (s->result == 0 && !s->done_seen)
                s->result = error_set(s->e, -EPIPE, "the stream ended without [DONE]");
}

static void on_signal(uv_poll_t *poll, int status, int events) {
        struct streaming *s = poll->data;

        (void)status;
        (void)events;
        s->interrupted |= interrupted(s->t);
        if (s->interrupted && s->call)
                http_call_abort(s->call);
}

static int run_stream(struct streaming *s, const char *path, struct slice body) {
        static const struct http_call_callbacks callbacks = {.on_head = on_head, .on_body = on_body, .on_end = on_end};
        struct http_field fields[3] = {{SLICE_LIT("Content-Type"), SLICE_LIT("application/json")}};
        struct http_request request = {.method = HTTP_METHOD_POST,
            .target = slice_str(path),
            .fields = {fields, 1},
            .body = &body,
            .body_parts = 1,
            .deadlines = {.head_ms = TIMEOUT_MS, .idle_ms = TIMEOUT_MS},
            .retry_stale = true};
        int r;

        fields[request.fields.count++] = (struct http_field){SLICE_LIT("X-Baton-Notes"), SLICE_LIT("1")};
        if (s->t->authorization)
                fields[request.fields.count++] =
                    (struct http_field){SLICE_LIT("Authorization"), slice_str(s->t->authorization)};
        uv_update_time(&s->t->loop);
        s->begun = clock_mono_ns();
        r = http_call_start(s->t->client, &s->t->endpoint, &request, &callbacks, s, &s->call);
        if (r < 0)
                return error_set(s->e, r, "cannot start a request: %s", strerror(-r));
        while (!s->ended && uv_run(&s->t->loop, UV_RUN_ONCE))
                ;
        return s->result;
}

static void closed(uv_handle_t *handle) {
        *(bool *)handle->data = true;
}

int talk_stream(struct talk *t, const char *path, struct slice body,
    void (*on_part)(void *context, enum talk_part part, struct slice text), void *context,
    struct talk_result *ret_result, struct error *e) {
        struct talk_result out = {.prompt_tokens = -1, .tokens = -1, .cached_tokens = -1};
        struct streaming s = {.t = t, .out = &out, .e = e, .on_part = on_part, .context = context, .sse = sse_new()};
        uv_poll_t signals;
        bool handle_closed = false;
        int r;

        if (!s.sse)
                return error_set(e, -ENOMEM, "out of memory");
        r = uv_poll_init(&t->loop, &signals, t->signals);
        if (r < 0) {
                sse_free(s.sse);
                return error_set(e, r, "cannot watch for signals: %s", uv_strerror(r));
        }
        signals.data = &s;
        uv_poll_start(&signals, UV_READABLE, on_signal);
        r = run_stream(&s, path, body);
        signals.data = &handle_closed;
        uv_close((uv_handle_t *)&signals, closed);
        while (!handle_closed)
                uv_run(&t->loop, UV_RUN_NOWAIT);
        if (s.first) {
                out.ttft_ms = (double)(s.first - s.begun) / NS_PER_MS;
                if (out.tokens > 1)
                        out.gap_ms = (double)(s.last - s.first) / NS_PER_MS / (double)(out.tokens - 1);
        }
        out.total_ms = (double)(clock_mono_ns() - s.begun) / NS_PER_MS;
        sse_free(s.sse);
        buf_free(&s.error_body);
        *ret_result = out;
        return r;
}

void talk_result_free(struct talk_result *r) {
        buf_free(&r->text);
        buf_free(&r->reasoning);
}
