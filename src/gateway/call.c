/* call.c - small calls to instances: probes, models, resets, and routes that are passed through as they are. */
#include "gateway/core.h"
#include <errno.h>
#include <stdlib.h>

/* Lists of models, token ids of a long prompt. */
#define ANSWER_MAX (16u << 20)

struct call {
        struct list link; /* in gateway.calls */
        struct http_call *http;
        struct arena arena;
        struct slice body_part;
        struct buf answer;
        int status;
        bool too_long;
        struct http_fields fields;
        call_done done;
        void *context;
};

static void on_head(struct http_call *http, const struct http_response_head *head, void *user) {
        struct call *c = user;

        c->status = head->status;
        if (fields_of_answer(head->fields, &c->arena, &c->fields) < 0)
                http_call_abort(http);
}

static void on_body(struct http_call *http, struct slice data, void *user) {
        struct call *c = user;

        if (c->answer.len + data.len > ANSWER_MAX) {
                c->too_long = true;
                http_call_abort(http);
                return;
        }
        buf_add(&c->answer, data);
}

static void on_end(struct http_call *http, enum http_failure failure, const char *why, void *user) {
        struct call *c = user;
        bool good = failure == HTTP_OK && buf_ok(&c->answer);

        list_remove(&c->link);
        if (!why)
                why = failure == HTTP_OK ? "out of memory" : http_failure_text(failure);
        if (c->too_long)
                why = "the answer is too long";
        c->done(c->context, good ? c->status : 0, c->fields, buf_slice(&c->answer), good ? NULL : why);
        buf_free(&c->answer);
        arena_free(&c->arena);
        free(c);
}

/* The instance, or another port of its host. 0, -ENOMEM. */
static int endpoint_of(
    struct call *c, const struct instance *i, const struct call_request *request, struct http_endpoint *ret_endpoint) {
        const struct http_endpoint *own = i->endpoint;
        const char *url;

        *ret_endpoint = *own;
        if (request->port == 0)
                return 0;
        url = arena_printf(&c->arena,
            slice_find(own->host, ':', 0) < own->host.len ? "http://[%.*s]:%u" : "http://%.*s:%u", SLICE_ARG(own->host),
            request->port);
        return url ? http_endpoint_parse(&c->arena, slice_str(url), ret_endpoint, NULL, NULL) : -ENOMEM;
}

struct call *call_start(
    struct gateway *g, const struct instance *i, const struct call_request *request, call_done done, void *context) {
        static const struct http_call_callbacks callbacks = {.on_head = on_head, .on_body = on_body, .on_end = on_end};
        struct call *c = calloc(1, sizeof(*c));
        struct http_endpoint to;
        struct http_request http = {.method = request->method,
            .target = slice_str(request->target),
            .fields = request->fields,
            .deadlines = {.connect_ms = request->timeout_ms, .total_ms = request->timeout_ms},
            .retry_stale = true};

        if (!c)
                return NULL;
        c->done = done;
        c->context = context;
        c->body_part = arena_copy(&c->arena, request->body);
        if (request->body.len > 0) {
                http.body = &c->body_part;
                http.body_parts = 1;
        }
        if (!c->body_part.ptr || endpoint_of(c, i, request, &to) < 0 ||
            http_call_start(g->client, &to, &http, &callbacks, c, &c->http) < 0) {
                arena_free(&c->arena);
                free(c);
                return NULL;
        }
        list_push_back(&g->calls, &c->link);
        return c;
}

void call_abort_all(struct gateway *g) {
        list_for_each (at, &g->calls) {
                http_call_abort(list_item(at, struct call, link)->http);
        }
}
