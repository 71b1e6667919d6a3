/* fetch.c - see fetch.h. */
#include "http/fetch.h"
#include "base/clock.h"
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

struct http_fetcher {
        uv_loop_t loop;
        struct http_client *client;
};

struct exchange {
        struct buf *body;
        size_t max_body;
        struct http_fetched *out;
        struct error *e;
        uint64_t begun;
        int result;
        bool done;
};

static void nothing(void *context) {
        (void)context;
}

int http_fetcher_new(const struct http_client_options *options, struct http_fetcher **ret_fetcher, struct error *e) {
        struct http_fetcher *f = calloc(1, sizeof(*f));
        int r;

        if (!f)
                return error_set(e, -ENOMEM, "out of memory");
        r = uv_loop_init(&f->loop);
        if (r < 0) {
                free(f);
                return error_set(e, r, "cannot make an event loop: %s", uv_strerror(r));
        }
        r = http_client_new(&f->loop, options, &f->client, e);
        if (r < 0) {
                uv_run(&f->loop, UV_RUN_DEFAULT);
                uv_loop_close(&f->loop);
                free(f);
                return r;
        }
        *ret_fetcher = f;
        return 0;
}

void http_fetcher_free(struct http_fetcher *f) {
        if (!f)
                return;
        http_client_close(f->client, nothing, NULL);
        uv_run(&f->loop, UV_RUN_DEFAULT);
        http_client_free(f->client);
        uv_loop_close(&f->loop);
        free(f);
}

static void on_head(struct http_call *call, const struct http_response_head *head, void *user) {
        struct exchange *x = user;
        struct slice id = http_field_value(head->fields, "X-Request-Id");

        (void)call;
        x->out->status = head->status;
        x->out->head_ns = clock_mono_ns() - x->begun;
        snprintf(x->out->id, sizeof(x->out->id), "%.*s", SLICE_ARG(slice_sub(id, 0, sizeof(x->out->id) - 1)));
}

static void on_body(struct http_call *call, struct slice data, void *user) {
        struct exchange *x = user;

        if (!x->out->body_ns)
                x->out->body_ns = clock_mono_ns() - x->begun;
        if (x->result < 0)
                return;
        if (x->body->len + data.len > x->max_body) {
                x->result = error_set(x->e, -EFBIG, "the answer is longer than %zu bytes", x->max_body);
                http_call_abort(call);
        } else
                buf_add(x->body, data);
}

static void on_end(struct http_call *call, enum http_failure failure, const char *why, void *user) {
        static const int codes[] = {[HTTP_OK] = 0,
            [HTTP_FAIL_RESOLVE] = -ECONNREFUSED,
            [HTTP_FAIL_CONNECT] = -ECONNREFUSED,
            [HTTP_FAIL_SEND] = -EPIPE,
            [HTTP_FAIL_NO_RESPONSE] = -EPIPE,
            [HTTP_FAIL_TIMEOUT] = -ETIMEDOUT,
            [HTTP_FAIL_PROTOCOL] = -EPROTO,
            [HTTP_FAIL_TRUNCATED] = -EPIPE,
            [HTTP_FAIL_ABORTED] = -ECANCELED};
        struct exchange *x = user;

        (void)call;
        x->done = true;
        x->out->failure = failure;
        x->out->end_ns = clock_mono_ns() - x->begun;
        if (x->result == 0 && failure != HTTP_OK)
                x->result = error_set(x->e, codes[failure], "%s", why && *why ? why : http_failure_text(failure));
}

int http_fetch(struct http_fetcher *f, const struct http_endpoint *to, const struct http_request *request,
    size_t max_body, struct buf *body, struct http_fetched *ret_fetched, struct error *e) {
        static const struct http_call_callbacks callbacks = {.on_head = on_head, .on_body = on_body, .on_end = on_end};
        struct http_fetched out = {0};
        struct exchange x = {.body = body, .max_body = max_body, .out = &out, .e = e, .begun = clock_mono_ns()};
        struct http_call *call;
        int r;

        uv_update_time(&f->loop); /* it stood still since the last exchange: deadlines must not count from then */
        r = http_call_start(f->client, to, request, &callbacks, &x, &call);
        if (r < 0)
                return error_set(e, r, "cannot call %.*s: %s", SLICE_ARG(to->key), strerror(-r));
        while (!x.done && uv_run(&f->loop, UV_RUN_ONCE))
                ;
        *ret_fetched = out;
        if (x.result == 0 && !buf_ok(body))
                x.result = error_set(e, -ENOMEM, "out of memory");
        return x.result;
}

#define ANSWER_MAX (64u << 20)

int http_fetch_url(struct http_fetcher *f, const char *url, const char *target, struct slice json, const char *api_key,
    unsigned timeout_ms, struct buf *body, struct http_fetched *ret_fetched, struct error *e) {
        struct arena arena = {0};
        struct http_endpoint to;
        struct slice path = SLICE_NONE;
        struct http_field fields[2];
        struct http_request request = {.method = json.ptr ? HTTP_METHOD_POST : HTTP_METHOD_GET,
            .fields = {fields, 0},
            .deadlines = {.connect_ms = timeout_ms, .total_ms = timeout_ms},
            .retry_stale = true};
        const char *authorization = NULL;
        int r = http_endpoint_parse(&arena, slice_str(url), &to, &path, e);

        if (r == 0 && api_key) {
                authorization = arena_printf(&arena, "Bearer %s", api_key);
                r = authorization ? 0 : error_set(e, -ENOMEM, "out of memory");
        }
        if (r == 0) {
                request.target = target ? slice_str(target) : path.len ? path : SLICE_LIT("/");
                if (json.ptr) {
                        fields[request.fields.count++] =
                            (struct http_field){SLICE_LIT("Content-Type"), SLICE_LIT("application/json")};
                        request.body = &json;
                        request.body_parts = 1;
                }
                if (authorization)
                        fields[request.fields.count++] =
                            (struct http_field){SLICE_LIT("Authorization"), slice_str(authorization)};
                r = http_fetch(f, &to, &request, ANSWER_MAX, body, ret_fetched, e);
        }
        arena_free(&arena);
        return r;
}
