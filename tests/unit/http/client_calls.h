/* client_calls.h - a call of the client whose callbacks are written down. */
#pragma once
#include "net.h"

struct record {
        struct http_call *call; /* NULL after its end */
        int status;
        int64_t length;
        struct buf body, why, fields;
        unsigned connected, heads, writables, ends;
        bool reused, inside; /* within http_call_start() */
        int failure;         /* enum http_failure, -1 before the end */
        bool pause_at_head, pause_at_body, abort_at_head, abort_at_body;
        struct http_client *again; /* start another call from on_end */
        struct http_endpoint to;
        struct record *next;
};

static inline void record_free(struct record *r) {
        buf_free(&r->body);
        buf_free(&r->why);
        buf_free(&r->fields);
}

static void on_call_connected(struct http_call *call, bool reused, void *user) {
        struct record *r = user;

        assert_false(r->inside);
        r->connected++;
        r->reused = reused;
}

static void on_call_head(struct http_call *call, const struct http_response_head *head, void *user) {
        struct record *r = user;

        assert_false(r->inside);
        r->heads++;
        r->status = head->status;
        r->length = head->content_length;
        for (size_t i = 0; i < head->fields.count; i++)
                buf_printf(&r->fields, "%.*s=%.*s;", SLICE_ARG(head->fields.items[i].name),
                    SLICE_ARG(head->fields.items[i].value));
        if (r->pause_at_head)
                http_call_pause(call);
        if (r->abort_at_head)
                http_call_abort(call);
}

static void on_call_body(struct http_call *call, struct slice data, void *user) {
        struct record *r = user;

        buf_add(&r->body, data);
        if (r->pause_at_body)
                http_call_pause(call);
        if (r->abort_at_body)
                http_call_abort(call);
}

static void on_call_writable(struct http_call *call, void *user) {
        struct record *r = user;

        r->writables++;
}

static void call_begin(struct http_client *c, struct record *r, struct http_endpoint to, struct http_request request);

static void on_call_end(struct http_call *call, enum http_failure failure, const char *why, void *user) {
        struct record *r = user;

        assert_false(r->inside);
        assert_ptr_equal(call, r->call);
        r->ends++;
        r->failure = (int)failure;
        r->call = NULL;
        buf_add_str(&r->why, why);
        buf_cstr(&r->why);
        if (r->again)
                call_begin(r->again, r->next, r->to, (struct http_request){.target = SLICE_LIT("/hello")});
}

static const struct http_call_callbacks record_callbacks = {
    .on_connected = on_call_connected,
    .on_head = on_call_head,
    .on_body = on_call_body,
    .on_writable = on_call_writable,
    .on_end = on_call_end,
};

/* Start a call; `r` may carry wishes, its results are begun anew. */
static void call_begin(struct http_client *c, struct record *r, struct http_endpoint to, struct http_request request) {
        r->failure = -1;
        r->inside = true;
        assert_int_equal(http_call_start(c, &to, &request, &record_callbacks, r, &r->call), 0);
        r->inside = false;
}

static inline struct http_endpoint endpoint_of(struct arena *arena, const char *format, unsigned port) {
        struct http_endpoint to;
        struct error e = {0};
        char text[256];

        snprintf(text, sizeof(text), format, port);
        if (http_endpoint_parse(arena, slice_str(text), &to, NULL, &e) < 0)
                fail_msg("%s", e.text);
        return to;
}

static void on_client_closed(void *context) {
        *(bool *)context = true;
}

static void client_close(struct net *n, struct http_client *c) {
        bool closed = false;

        http_client_close(c, on_client_closed, &closed);
        assert_false(closed);
        UNTIL(n, closed);
        http_client_free(c);
}
