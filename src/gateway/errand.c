/* errand.c - exchanges that are answered by calls of call.c: passed to one instance as they are (models, tokenising), or
 * sent to every instance (resets). */
#include "base/json.h"
#include "gateway/core.h"
#include <assert.h>
#include <errno.h>
#include <stdlib.h>

/* A list of models, a text to tokenise, a cache to clear: none takes long. */
#define TIMEOUT_MS 30000
#define TRIES_MAX  8

/* Lives until the exchange has ended and no call is under way. */
struct errand {
        struct gateway *g;
        struct http_exchange *x; /* NULL: ended */
        struct arena arena;
        struct buf body, failed; /* `failed`: JSON strings of instances */
        struct call_request request;
        size_t open; /* calls under way */
        bool full;   /* its body found no room: it is refused already */
        uint32_t avoid[TRIES_MAX];
        size_t avoid_count;
};

static void release(struct errand *e) {
        if (e->x || e->open > 0)
                return;
        gateway_drop_body(e->g, &e->body);
        buf_free(&e->failed);
        arena_free(&e->arena);
        free(e);
}

static void on_end(struct http_exchange *x, enum http_end end, void *user) {
        struct errand *e = user;

        e->x = NULL;
        release(e);
}

static void on_body(struct http_exchange *x, struct slice data, void *user) {
        struct errand *e = user;

        if (e->full || gateway_keep_body(e->g, &e->body, data))
                return;
        e->full = true;
        gateway_drop_body(e->g, &e->body);
        gateway_respond_full(x);
}

static int read_head(struct errand *e, const struct http_request_head *head) {
        static const char *const for_us[] = {"host", "content-length", "expect", NULL};

        e->request = (struct call_request){.method = head->method == HTTP_METHOD_HEAD ? HTTP_METHOD_GET : head->method,
            .target = arena_copy(&e->arena, head->target).ptr,
            .timeout_ms = TIMEOUT_MS};
        if (!e->request.target)
                return -ENOMEM;
        return fields_of_client(e->g, head->fields, for_us, (struct http_fields){0}, &e->arena, &e->request.fields);
}

/* Gather the body, then call `run` (an on_body_end). */
static void errand_new(struct gateway *g, struct http_exchange *x, void (*run)(struct http_exchange *x, void *user)) {
        const struct http_exchange_callbacks callbacks = {.on_body = on_body, .on_body_end = run, .on_end = on_end};
        struct errand *e = calloc(1, sizeof(*e));

        if (e)
                e->g = g;
        if (!e || read_head(e, http_exchange_request(x)) < 0) {
                if (e)
                        release(e);
                gateway_respond_error(x, 500, "InternalServerError", "the gateway is out of memory");
                return;
        }
        e->x = x;
        http_exchange_watch(x, &callbacks, e);
}

/* ---- to one ----------------------------------------------------------------------------------------------------------- */

static void try_one(struct errand *e);

static void on_answer(void *context, int status, struct http_fields fields, struct slice body, const char *why) {
        struct errand *e = context;

        e->open--;
        if (e->x) {
                if (status > 0 && status < 500)
                        http_respond(e->x, status, fields, body);
                else
                        try_one(e);
        }
        release(e);
}

static void try_one(struct errand *e) {
        struct policy_facts facts = {.avoid = e->avoid, .no_leg = true};
        struct instance *i = NULL;

        e->request.body = buf_slice(&e->body);
        while (e->avoid_count < TRIES_MAX) {
                facts.avoid_count = e->avoid_count;
                i = pool_pick(e->g->pool, ROLE_DECODE, &facts, NULL);
                if (!i)
                        i = pool_pick(e->g->pool, ROLE_PREFILL, &facts, NULL);
                if (!i)
                        break;
                e->avoid[e->avoid_count++] = i->id;
                if (call_start(e->g, i, &e->request, on_answer, e)) {
                        e->open++;
                        return;
                }
        }
        gateway_respond_error(e->x, 503, "ServiceUnavailable", "no instance answers");
}

static void run_forward(struct http_exchange *x, void *user) {
        struct errand *e = user;

        if (!e->full)
                try_one(e);
}

void errand_forward(struct gateway *g, struct http_exchange *x) {
        errand_new(g, x, run_forward);
}

/* ---- to all ----------------------------------------------------------------------------------------------------------- */

/* One of the calls of a broadcast: whose it is. */
struct stop {
        struct errand *errand;
        const char *key;
};

static void note_failure(struct errand *e, const char *key) {
        if (e->failed.len > 0)
                buf_add_char(&e->failed, ',');
        json_add_string(&e->failed, slice_str(key));
}

static void respond_broadcast(struct errand *e) {
        struct http_field type = {SLICE_LIT("Content-Type"), SLICE_LIT("application/json")};
        struct buf body = {0};

        if (e->failed.len > 0) {
                buf_add_str(&body, "{\"failed\":[");
                buf_add(&body, buf_slice(&e->failed));
                buf_add_str(&body, "]}");
        } else {
                buf_add_str(&body, "{\"status\":\"ok\"}");
        }
        http_respond(e->x, e->failed.len > 0 ? 500 : 200, (struct http_fields){&type, 1}, buf_slice(&body));
        buf_free(&body);
}

static void on_stop(void *context, int status, struct http_fields fields, struct slice body, const char *why) {
        struct stop *s = context;
        struct errand *e = s->errand;

        if (status < 200 || status >= 300)
                note_failure(e, s->key);
        if (--e->open == 0 && e->x)
                respond_broadcast(e);
        release(e);
}

static void run_broadcast(struct http_exchange *x, void *user) {
        struct errand *e = user;

        if (e->full)
                return;
        e->request.body = buf_slice(&e->body);
        for (int role = 0; role < ROLE_COUNT; role++)
                for (size_t k = 0; k < pool_count(e->g->pool, (enum role)role); k++) {
                        struct instance *i = pool_at(e->g->pool, (enum role)role, k);
                        struct stop *s = ARENA_NEW(&e->arena, struct stop);
                        const char *key = arena_copy(&e->arena, slice_str(i->key)).ptr;

                        if (i->state == INSTANCE_LEAVING)
                                continue;
                        if (s && key)
                                *s = (struct stop){e, key};
                        if (s && key && call_start(e->g, i, &e->request, on_stop, s))
                                e->open++;
                        else
                                note_failure(e, i->key);
                }
        if (e->open == 0)
                respond_broadcast(e);
}

void errand_broadcast(struct gateway *g, struct http_exchange *x) {
        errand_new(g, x, run_broadcast);
}
