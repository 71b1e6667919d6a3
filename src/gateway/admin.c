/* admin.c - every route but inference: health, metrics, membership, models, and what is passed through as it is. */
#include "base/json.h"
#include "gateway/core.h"
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

static void respond(struct http_exchange *x, int status, const char *type, struct slice body) {
        struct http_field field = {SLICE_LIT("Content-Type"), slice_str(type)};

        http_respond(x, status, (struct http_fields){&field, body.len > 0}, body);
}

static void respond_json(struct http_exchange *x, int status, struct buf *body) {
        respond(x, status, "application/json", buf_slice(body));
        buf_free(body);
}

void gateway_respond_error(struct http_exchange *x, int status, const char *type, const char *message) {
        struct openai_error e;
        struct buf body = {0};

        openai_fail(&e, status, type, NULL, "%s", message);
        openai_write_error(&body, &e);
        respond_json(x, status, &body);
}

void gateway_respond_full(struct http_exchange *x) {
        struct http_field fields[] = {
            {SLICE_LIT("Content-Type"), SLICE_LIT("application/json")}, {SLICE_LIT("Retry-After"), SLICE_LIT("1")}};
        struct openai_error e;
        struct buf body = {0};

        openai_fail(&e, 503, "ServiceUnavailable", NULL,
            "the requests in flight hold all the memory that the gateway gives them (--max-bodies-size)");
        openai_write_error(&body, &e);
        http_respond(x, 503, (struct http_fields){fields, 2}, buf_slice(&body));
        buf_free(&body);
}

/* ---- health and figures --------------------------------------------------------------------------------------------- */

static void get_health(struct gateway *g, struct http_exchange *x) {
        respond(x, 200, "text/plain", SLICE_NONE);
}

static void get_ready(struct gateway *g, struct http_exchange *x) {
        struct buf b = {0};
        struct json_writer w = {.out = &b};
        bool ready = gateway_is_ready(g);

        json_open(&w, '{');
        json_key(&w, "ready");
        json_bool(&w, ready);
        json_key(&w, "prefill");
        json_u64(&w, pool_routable(g->pool, ROLE_PREFILL));
        json_key(&w, "decode");
        json_u64(&w, pool_routable(g->pool, ROLE_DECODE));
        json_close(&w, '}');
        respond_json(x, ready ? 200 : 503, &b);
}

static void get_metrics(struct gateway *g, struct http_exchange *x) {
        struct stats_now now = gateway_measure(g);
        struct buf b = {0};

        stats_write(&g->stats, g->pool, &now, &b);
        respond(x, 200, "text/plain; version=0.0.4; charset=utf-8", buf_slice(&b));
        buf_free(&b);
}

/* As the example proxy's. */
static void get_healthcheck(struct gateway *g, struct http_exchange *x) {
        struct buf b = {0};
        struct json_writer w = {.out = &b};

        json_open(&w, '{');
        json_key(&w, "status");
        json_str(&w, "ok");
        json_key(&w, "prefill_instances");
        json_u64(&w, pool_count(g->pool, ROLE_PREFILL));
        json_key(&w, "decode_instances");
        json_u64(&w, pool_count(g->pool, ROLE_DECODE));
        json_key(&w, "request_num");
        json_u64(&w, g->request_count);
        json_close(&w, '}');
        respond_json(x, 200, &b);
}

/* What is known of its cache from its own events. */
static void write_events(struct json_writer *w, const struct instance *i) {
        struct subscription_totals t = subscription_totals(i->events);
        const struct {
                const char *name;
                uint64_t value;
        } counts[] = {{"blocks", i->kv.count}, {"block_tokens", i->kv.block_tokens}, {"batches", t.batches},
            {"gaps", t.gaps}, {"replays", t.replays}, {"restarts", t.restarts}, {"bad", t.bad}};

        json_open(w, '{');
        json_key(w, "state");
        json_str(w, follow_state_name(i->events_state));
        for (size_t k = 0; k < sizeof(counts) / sizeof(*counts); k++) {
                json_key(w, counts[k].name);
                json_u64(w, counts[k].value);
        }
        json_close(w, '}');
}

static void write_role(struct json_writer *w, const struct pool *p, enum role role) {
        json_open(w, '[');
        for (size_t k = 0; k < pool_count(p, role); k++) {
                const struct instance *i = pool_at(p, role, k);

                json_open(w, '{');
                json_key(w, "instance");
                json_str(w, i->key);
                json_key(w, "name");
                json_str(w, i->name);
                json_key(w, "state");
                json_str(w, instance_state_name(i->state));
                json_key(w, "stands_back"); /* it said that it is overloaded */
                json_bool(w, i->busy_until > 0);
                json_key(w, "requests");
                json_u64(w, i->requests);
                json_key(w, "tokens");
                json_u64(w, i->tokens);
                json_key(w, "held_requests");
                json_u64(w, i->held_requests);
                json_key(w, "foreign_requests");
                json_u64(w, i->foreign_requests);
                json_key(w, "kv_usage");
                json_double(w, i->kv_usage);
                json_key(w, "max_model_len");
                json_i64(w, i->max_model_len);
                json_key(w, "kv_events");
                if (i->events)
                        write_events(w, i);
                else
                        json_null(w);
                json_close(w, '}');
        }
        json_close(w, ']');
}

static void get_instances(struct gateway *g, struct http_exchange *x) {
        struct buf b = {0};
        struct json_writer w = {.out = &b};

        json_open(&w, '{');
        json_key(&w, "prefill");
        write_role(&w, g->pool, ROLE_PREFILL);
        json_key(&w, "decode");
        write_role(&w, g->pool, ROLE_DECODE);
        json_close(&w, '}');
        respond_json(x, 200, &b);
}

static void get_debug_requests(struct gateway *g, struct http_exchange *x) {
        struct buf b = {0};
        struct json_writer w = {.out = &b};

        debug_write_requests(g, &w);
        respond_json(x, 200, &b);
}

static void get_debug_load(struct gateway *g, struct http_exchange *x) {
        struct buf b = {0};
        struct json_writer w = {.out = &b};

        debug_write_load(g, &w);
        respond_json(x, 200, &b);
}

/* ---- membership ------------------------------------------------------------------------------------------------------ */

static void write_keys(struct json_writer *w, const struct pool *p, enum role role) {
        json_open(w, '[');
        for (size_t k = 0; k < pool_count(p, role); k++)
                if (pool_at(p, role, k)->state != INSTANCE_LEAVING)
                        json_str(w, pool_at(p, role, k)->key);
        json_close(w, ']');
}

static void respond_membership(struct gateway *g, struct http_exchange *x, const char *message) {
        struct buf b = {0};
        struct json_writer w = {.out = &b};

        json_open(&w, '{');
        json_key(&w, "message");
        json_str(&w, message);
        json_key(&w, "current_prefill_instances");
        write_keys(&w, g->pool, ROLE_PREFILL);
        json_key(&w, "current_decode_instances");
        write_keys(&w, g->pool, ROLE_DECODE);
        json_close(&w, '}');
        respond_json(x, 200, &b);
}

int gateway_change_member(struct gateway *g, const struct gateway_member *m, enum change change, struct error *e) {
        enum role role = m->prefill ? ROLE_PREFILL : ROLE_DECODE;
        struct http_endpoint endpoint;
        struct arena arena = {0};
        struct instance *i;
        const char *key;
        int r = gateway_member_key(&arena, m, &endpoint, &key, e);

        if (r < 0)
                goto out;
        i = pool_find(g->pool, role, slice_str(key));
        if (change == CHANGE_ADD) {
                r = gateway_add_member(g, m, true, e);
                r = r == -EEXIST ? 0 : r;
        } else if (i) {
                pool_remove(g->pool, i);
        } else {
                r = error_set(e, -ENOENT, "%s is not among the %s instances", key, pool_role_name(role));
        }
out:
        arena_free(&arena);
        return r;
}

static int change_one(
    struct gateway *g, bool prefill, uint16_t bootstrap_port, struct slice text, enum change change, struct error *e) {
        struct gateway_member m;
        int r = gateway_member_parse(text, &m, e);

        if (r < 0)
                return r;
        m.prefill = prefill;
        m.bootstrap_port = bootstrap_port;
        r = gateway_change_member(g, &m, change, e);
        gateway_member_free(&m);
        return r;
}

/* {"type": "prefill"|"decode", "instances": "host:port" | ["host:port", …]} */
static int change_members(struct gateway *g, yyjson_val *root, enum change change, struct error *e) {
        struct slice type = json_get_slice(root, "type");
        yyjson_val *list = json_get(root, "instances"), *item;
        bool prefill = slice_is(type, "prefill");
        int64_t port = json_get_i64(root, "bootstrap_port", 0);
        size_t at, max;
        int r = 0;

        if (!prefill && !slice_is(type, "decode"))
                return error_set(e, -EINVAL, "`type` is to be \"prefill\" or \"decode\"");
        if (port < 0 || port > 65535)
                return error_set(e, -EINVAL, "`bootstrap_port` is to be a port");
        if (yyjson_is_str(list))
                return change_one(g, prefill, (uint16_t)port, json_slice(list), change, e);
        if (!yyjson_is_arr(list) || yyjson_arr_size(list) == 0)
                return error_set(e, -EINVAL, "`instances` is to be \"host:port\" or a list of them");
        yyjson_arr_foreach(list, at, max, item) {
                if (!yyjson_is_str(item))
                        return error_set(e, -EINVAL, "`instances` has an item that is not a string");
                r = change_one(g, prefill, (uint16_t)port, json_slice(item), change, e);
                if (r < 0)
                        return r;
        }
        return r;
}

static void on_members(struct http_exchange *x, struct slice body, void *user, enum change change) {
        struct gateway *g = user;
        struct error e = {0};
        yyjson_doc *doc = NULL;
        int r = json_parse(body, &doc, &e);

        if (r == 0) {
                r = change_members(g, yyjson_doc_get_root(doc), change, &e);
                yyjson_doc_free(doc);
        }
        if (r < 0)
                gateway_respond_error(x,
                    r == -ENOENT   ? 404
                    : r == -ENOMEM ? 500
                                   : 400,
                    "BadRequestError", error_text(&e, r));
        else
                respond_membership(g, x,
                    change == CHANGE_ADD ? "added; probed now, and chosen once they answer"
                                         : "removed; requests that are with them end first");
}

static void on_add(struct http_exchange *x, struct slice body, void *user) {
        on_members(x, body, user, CHANGE_ADD);
}

static void on_remove(struct http_exchange *x, struct slice body, void *user) {
        on_members(x, body, user, CHANGE_REMOVE);
}

/* Some thousand instances in one call. These bodies are not counted among those of --max-bodies-size. */
#define MEMBERS_BODY_MAX (256 << 10)

static void collect_members(struct gateway *g, struct http_exchange *x,
    void (*on_all)(struct http_exchange *x, struct slice body, void *user)) {
        static const struct http_exchange_callbacks none;
        int64_t length = http_exchange_request(x)->content_length;

        if (length == HTTP_LENGTH_CHUNKED || length > MEMBERS_BODY_MAX) {
                gateway_respond_error(
                    x, 413, "RequestEntityTooLarge", "this route takes at most 256 KiB, and wants a Content-Length");
                return;
        }
        http_exchange_watch(x, &none, g);
        http_exchange_collect(x, on_all);
}

static void post_add(struct gateway *g, struct http_exchange *x) {
        collect_members(g, x, on_add);
}

static void post_remove(struct gateway *g, struct http_exchange *x) {
        collect_members(g, x, on_remove);
}

static void post_reset(struct gateway *g, struct http_exchange *x) {
        pool_forget_prompts(g->pool);
        errand_broadcast(g, x);
}

/* ---- routes ---------------------------------------------------------------------------------------------------------- */

static void post_chat(struct gateway *g, struct http_exchange *x) {
        request_new(g, x, API_CHAT);
}

static void post_completions(struct gateway *g, struct http_exchange *x) {
        request_new(g, x, API_COMPLETIONS);
}

/* Where a route is served when the admin routes have a listener of their own. Else all of them are served. */
enum guard {
        CLIENTS, /* at the clients' listener alone */
        OPEN,    /* at both */
        PAGE,    /* at the admin listener alone */
        ADMIN,   /* likewise, and wants the admin key, when there is one */
};

static const struct route {
        enum http_method method;
        const char *path; /* ending in '/': everything below it */
        enum guard guard;
        void (*run)(struct gateway *g, struct http_exchange *x);
} routes[] = {
    {HTTP_METHOD_POST, "/v1/chat/completions", CLIENTS, post_chat},
    {HTTP_METHOD_POST, "/v1/completions", CLIENTS, post_completions},
    {HTTP_METHOD_POST, "/v1/metaserver", CLIENTS, metaserver_post},
    {HTTP_METHOD_GET, "/health", OPEN, get_health},
    {HTTP_METHOD_GET, "/ready", OPEN, get_ready},
    {HTTP_METHOD_GET, "/liveness", OPEN, get_health}, /* the two as vllm-router calls them */
    {HTTP_METHOD_GET, "/readiness", OPEN, get_ready},
    {HTTP_METHOD_GET, "/metrics", OPEN, get_metrics},
    {HTTP_METHOD_GET, "/healthcheck", OPEN, get_healthcheck},
    {HTTP_METHOD_GET, "/ui", PAGE, get_ui}, /* what it shows is guarded */
    {HTTP_METHOD_GET, "/v1/models", CLIENTS, errand_forward},
    {HTTP_METHOD_GET, "/v1/models/", CLIENTS, errand_forward},
    {HTTP_METHOD_GET, "/version", CLIENTS, errand_forward},
    {HTTP_METHOD_POST, "/tokenize", CLIENTS, errand_forward},
    {HTTP_METHOD_POST, "/detokenize", CLIENTS, errand_forward},
    {HTTP_METHOD_GET, "/instances", ADMIN, get_instances},
    {HTTP_METHOD_GET, "/debug/requests", ADMIN, get_debug_requests},
    {HTTP_METHOD_GET, "/debug/load", ADMIN, get_debug_load},
    {HTTP_METHOD_POST, "/instances/add", ADMIN, post_add},
    {HTTP_METHOD_POST, "/instances/remove", ADMIN, post_remove},
    {HTTP_METHOD_POST, "/add_worker", ADMIN, workers_add},
    {HTTP_METHOD_POST, "/remove_worker", ADMIN, workers_remove},
    {HTTP_METHOD_GET, "/list_workers", ADMIN, workers_list},
    {HTTP_METHOD_GET, "/workers", ADMIN, workers_get},
    {HTTP_METHOD_POST, "/workers", ADMIN, workers_post},
    {HTTP_METHOD_GET, "/workers/", ADMIN, workers_get_one},
    {HTTP_METHOD_DELETE, "/workers/", ADMIN, workers_delete},
    {HTTP_METHOD_POST, "/reset_prefix_cache", ADMIN, post_reset},
};

static bool fits(const struct route *r, struct slice path) {
        size_t len = strlen(r->path);

        return r->path[len - 1] == '/' ? path.len > len && !memcmp(path.ptr, r->path, len) : slice_is(path, r->path);
}

static bool is_served(const struct route *r, enum listener at) {
        return at == LISTENER_ALL || (at == LISTENER_CLIENTS ? r->guard <= OPEN : r->guard >= OPEN);
}

void route_request(struct gateway *g, struct http_exchange *x, enum listener at) {
        const struct http_request_head *head = http_exchange_request(x);
        bool known = false;

        for (size_t i = 0; i < sizeof(routes) / sizeof(*routes); i++) {
                const struct route *r = &routes[i];

                if (!fits(r, head->path) || !is_served(r, at))
                        continue;
                known = true;
                if (r->method != head->method && !(r->method == HTTP_METHOD_GET && head->method == HTTP_METHOD_HEAD))
                        continue;
                if (r->guard == ADMIN && g->options.admin_key && !http_bearer_is(head->fields, g->options.admin_key))
                        gateway_respond_error(x, 401, "AuthenticationError", "this route wants the admin key");
                else
                        r->run(g, x);
                return;
        }
        if (known)
                respond(x, 405, "application/json", SLICE_LIT("{\"detail\":\"Method Not Allowed\"}"));
        else
                respond(x, 404, "application/json", SLICE_LIT("{\"detail\":\"Not Found\"}"));
}
