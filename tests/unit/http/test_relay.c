/* test_relay.c - a relay of server and client between a backend and clients that both misbehave by chance. Whatever happens:
 * every request and every call ends once, a complete answer is the right one, and nothing stays behind. */
#include "base/rng.h"
#include "net.h"

#define CONCURRENT 24
#define ROUNDS     400

struct world {
        struct net net;
        struct rng rng;
        struct http_server *backend, *relay;
        struct http_client *upstream, *driver;
        struct http_endpoint to_backend, to_relay;
        struct arena arena;
        uint16_t backend_port, relay_port;
        unsigned requests[2], request_ends[2]; /* of backend and relay */
        unsigned calls[2], call_ends[2];       /* of the relay and the driver */
        unsigned complete, broken, running;
        bool drained[2], closed[2];
};

static unsigned chance(struct world *w, unsigned bound) {
        return (unsigned)rng_below(&w->rng, bound);
}

/* ---- the backend: /SIZE is answered with so many bytes, in one of several ways, or badly ----------------------- */

struct work {
        struct world *w;
        struct http_exchange *x;
        size_t size, sent;
        bool chunked, breaks;
};

static void backend_go_on(struct work *k) {
        while (k->sent < k->size) {
                size_t len = 1 + chance(k->w, 40000), left = k->size - k->sent;
                struct slice piece = many(1 << 20);
                int r;

                if (k->breaks && k->sent > k->size / 2) {
                        http_exchange_abort(k->x);
                        return;
                }
                piece.len = len < left ? len : left;
                k->sent += piece.len;
                r = http_send(k->x, &piece, 1);
                if (r != 0)
                        return;
        }
        http_finish(k->x);
}

static void backend_on_writable(struct http_exchange *x, void *user) {
        backend_go_on(user);
}

static void backend_on_end(struct http_exchange *x, enum http_end end, void *user) {
        struct work *k = user;

        k->w->request_ends[0]++;
        free(k);
}

static void backend_on_body_end(struct http_exchange *x, void *user) {
        struct work *k = user;
        unsigned way = chance(k->w, 10);
        uint64_t size;

        assert_int_equal(slice_to_u64(slice_sub(http_exchange_request(x)->path, 1, SIZE_MAX), &size), 0);
        k->size = size;
        if (way == 0) {
                http_exchange_abort(x);
        } else if (way <= 3) {
                http_respond(x, 200, (struct http_fields){0}, slice_sub(many(1 << 20), 0, size));
        } else if (way <= 8) {
                k->breaks = way == 8;
                http_begin(x, 200, (struct http_fields){0}, way % 2 ? HTTP_LENGTH_CHUNKED : (int64_t)size);
                backend_go_on(k);
        }
        /* Else it never answers: the other side has to leave. */
}

static void backend_on_request(void *context, struct http_exchange *x) {
        static const struct http_exchange_callbacks callbacks = {
            .on_body_end = backend_on_body_end, .on_writable = backend_on_writable, .on_end = backend_on_end};
        struct work *k = calloc(1, sizeof(*k));

        *k = (struct work){.w = context, .x = x};
        k->w->requests[0]++;
        http_exchange_watch(x, &callbacks, k);
}

/* ---- the relay ------------------------------------------------------------------------------------------------ */

struct leg {
        struct world *w;
        struct http_exchange *x; /* NULL when the client has gone */
        struct http_call *call;  /* NULL when the call has ended */
        struct slice body;
};

static void leg_free(struct leg *l) {
        if (!l->x && !l->call)
                free(l);
}

static void relay_on_head(struct http_call *call, const struct http_response_head *head, void *user) {
        struct leg *l = user;

        if (l->x)
                http_begin(l->x, head->status, head->fields, head->content_length);
}

static void relay_on_body(struct http_call *call, struct slice data, void *user) {
        struct leg *l = user;

        if (l->x && http_send(l->x, &data, 1) == 1)
                http_call_pause(call);
}

static void relay_on_call_end(struct http_call *call, enum http_failure failure, const char *why, void *user) {
        struct leg *l = user;

        l->w->call_ends[0]++;
        l->call = NULL;
        if (!l->x)
                leg_free(l);
        else if (failure == HTTP_OK)
                http_finish(l->x);
        else if (http_respond(l->x, 502, (struct http_fields){0}, slice_str(why)) == -EALREADY)
                http_exchange_abort(l->x);
}

static void relay_on_writable(struct http_exchange *x, void *user) {
        struct leg *l = user;

        if (l->call)
                http_call_resume(l->call);
}

static void relay_on_end(struct http_exchange *x, enum http_end end, void *user) {
        struct leg *l = user;

        l->w->request_ends[1]++;
        l->x = NULL;
        if (l->call)
                http_call_abort(l->call);
        leg_free(l);
}

static void relay_on_all(struct http_exchange *x, struct slice body, void *user) {
        static const struct http_call_callbacks callbacks = {
            .on_head = relay_on_head, .on_body = relay_on_body, .on_end = relay_on_call_end};
        struct leg *l = user;
        struct http_request request = {.method = http_exchange_request(x)->method,
            .target = http_exchange_request(x)->target,
            .body = &l->body,
            .body_parts = 1,
            .retry_stale = true};

        l->body = body;
        /* What the request borrows dies with the exchange, and the call is aborted before that. */
        l->w->calls[0]++;
        assert_int_equal(http_call_start(l->w->upstream, &l->w->to_backend, &request, &callbacks, l, &l->call), 0);
}

static void relay_on_request(void *context, struct http_exchange *x) {
        static const struct http_exchange_callbacks callbacks = {
            .on_writable = relay_on_writable, .on_end = relay_on_end};
        struct leg *l = calloc(1, sizeof(*l));

        *l = (struct leg){.w = context, .x = x};
        l->w->requests[1]++;
        http_exchange_watch(x, &callbacks, l);
        http_exchange_collect(x, relay_on_all);
}

/* ---- the driver ----------------------------------------------------------------------------------------------- */

struct drive {
        struct world *w;
        struct http_call *call;
        size_t size, got, leave_at;
        struct slice body;
        char target[32];
        int status;
        bool pauses;
};

static void drive_on_head(struct http_call *call, const struct http_response_head *head, void *user) {
        struct drive *d = user;

        d->status = head->status;
}

static void drive_on_body(struct http_call *call, struct slice data, void *user) {
        struct drive *d = user;

        if (d->status == 200)
                assert_memory_equal(data.ptr, many(1 << 20).ptr, data.len);
        d->got += data.len;
        if (d->got > d->leave_at) {
                http_call_abort(call);
        } else if (d->pauses && chance(d->w, 4) == 0) {
                http_call_pause(call);
                http_call_resume(call);
        }
}

static void drive_on_end(struct http_call *call, enum http_failure failure, const char *why, void *user) {
        struct drive *d = user;

        d->w->call_ends[1]++;
        d->w->running--;
        if (failure == HTTP_OK && d->status == 200) {
                assert_int_equal(d->got, d->size);
                d->w->complete++;
        } else {
                d->w->broken++;
        }
        free(d);
}

static void drive_begin(struct world *w) {
        static const struct http_call_callbacks callbacks = {
            .on_head = drive_on_head, .on_body = drive_on_body, .on_end = drive_on_end};
        struct drive *d = calloc(1, sizeof(*d));
        size_t size = chance(w, 3) ? chance(w, 2000) : chance(w, 1 << 20);
        struct http_request request = {.method = chance(w, 2) ? HTTP_METHOD_POST : HTTP_METHOD_GET,
            .retry_stale = chance(w, 2),
            /* Some leave by time, in any state; those that no one answers must. */
            .deadlines = {.total_ms = 5 + chance(w, 200)}};

        *d = (struct drive){
            .w = w, .size = size, .leave_at = chance(w, 4) ? SIZE_MAX : chance(w, 1 << 19), .pauses = chance(w, 2)};
        snprintf(d->target, sizeof(d->target), "/%zu", size);
        request.target = slice_str(d->target);
        if (request.method == HTTP_METHOD_POST) {
                d->body = slice_sub(many(1 << 20), 0, chance(w, 200000));
                request.body = &d->body;
                request.body_parts = 1;
        }
        w->calls[1]++;
        w->running++;
        assert_int_equal(http_call_start(w->driver, &w->to_relay, &request, &callbacks, d, &d->call), 0);
        if (chance(w, 20) == 0)
                http_call_abort(d->call);
}

/* ---- the test ------------------------------------------------------------------------------------------------- */

static void on_flag(void *context) {
        *(bool *)context = true;
}

static struct http_endpoint endpoint(struct world *w, uint16_t port) {
        struct http_endpoint to;
        char text[32];

        snprintf(text, sizeof(text), "127.0.0.1:%u", port);
        assert_int_equal(http_endpoint_parse(&w->arena, slice_str(text), &to, NULL, NULL), 0);
        return to;
}

static void whatever_happens_everything_ends_once(void **state) {
        struct http_limits limits = {.write_high = 100000, .write_low = 20000};
        struct http_listen at = {.host = "127.0.0.1"};
        struct http_client_options client = {.idle_per_endpoint = 8};

        many(1 << 20);
        for (unsigned seed = 1; seed <= 4; seed++) {
                struct world w = {0};
                struct http_server_options backend = {
                    .limits = limits, .on_request = backend_on_request, .context = &w};
                struct http_server_options relay = {.limits = limits, .on_request = relay_on_request, .context = &w};

                rng_seed(&w.rng, seed);
                net_open(&w.net);
                assert_int_equal(http_server_new(&w.net.loop, &backend, &w.backend, NULL), 0);
                assert_int_equal(http_server_listen(w.backend, &at, &w.backend_port, NULL), 0);
                assert_int_equal(http_server_new(&w.net.loop, &relay, &w.relay, NULL), 0);
                assert_int_equal(http_server_listen(w.relay, &at, &w.relay_port, NULL), 0);
                assert_int_equal(http_client_new(&w.net.loop, &client, &w.upstream, NULL), 0);
                assert_int_equal(http_client_new(&w.net.loop, &client, &w.driver, NULL), 0);
                w.to_backend = endpoint(&w, w.backend_port);
                w.to_relay = endpoint(&w, w.relay_port);
                while (w.calls[1] < ROUNDS) {
                        while (w.running < CONCURRENT)
                                drive_begin(&w);
                        net_turn(&w.net, "the end of a call");
                }
                UNTIL(&w.net, w.running == 0);
                UNTIL(&w.net, w.requests[1] == w.request_ends[1] && w.calls[0] == w.call_ends[0]);
                UNTIL(&w.net, w.requests[0] == w.request_ends[0]);
                assert_int_equal(w.calls[1], w.call_ends[1]);
                assert_true(w.complete > ROUNDS / 10 && w.broken > ROUNDS / 10);
                http_client_close(w.driver, on_flag, &w.closed[0]);
                http_client_close(w.upstream, on_flag, &w.closed[1]);
                http_server_drain(w.relay, 1000, on_flag, &w.drained[0]);
                http_server_drain(w.backend, 1000, on_flag, &w.drained[1]);
                UNTIL(&w.net, w.closed[0] && w.closed[1] && w.drained[0] && w.drained[1]);
                http_client_free(w.driver);
                http_client_free(w.upstream);
                http_server_free(w.relay);
                http_server_free(w.backend);
                arena_free(&w.arena);
                net_close(&w.net);
        }
}

int main(void) {
        const struct CMUnitTest tests[] = {
            cmocka_unit_test(whatever_happens_everything_ends_once),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
