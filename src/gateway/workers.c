/* workers.c - membership as vllm-router has it: /add_worker, /remove_worker, /list_workers, and /workers. The same instances
 * as at /instances, by URL; with --intra-node-data-parallel-size one URL stands for all of its ranks. */
#include "base/json.h"
#include "gateway/core.h"
#include <errno.h>
#include <stdlib.h>

static void respond_json(struct http_exchange *x, int status, struct buf *body) {
        struct http_field type = {SLICE_LIT("Content-Type"), SLICE_LIT("application/json")};

        http_respond(x, status, (struct http_fields){&type, 1}, buf_slice(body));
        buf_free(body);
}

/* ---- what is asked for ------------------------------------------------------------------------------------------------ */

static int hex_digit(char c) {
        return c >= '0' && c <= '9' ? c - '0' : (c | 32) >= 'a' && (c | 32) <= 'f' ? (c | 32) - 'a' + 10 : -1;
}

/* Percent-decoded in `arena`; what is no escape stands for itself. */
static struct slice decode(struct arena *arena, struct slice text) {
        char *out = arena_alloc(arena, text.len + 1);
        size_t n = 0;

        for (size_t i = 0; out && i < text.len; i++) {
                int high = text.ptr[i] == '%' && i + 2 < text.len ? hex_digit(text.ptr[i + 1]) : -1;
                int low = high >= 0 ? hex_digit(text.ptr[i + 2]) : -1;

                out[n++] = low >= 0 ? (char)(high << 4 | low) : text.ptr[i];
                i += low >= 0 ? 2 : 0;
        }
        return out ? slice_of(out, n) : SLICE_NONE;
}

/* A parameter of the query, decoded; SLICE_NONE when it is not there. */
static struct slice query_value(struct arena *arena, struct slice query, const char *name) {
        for (struct slice part; slice_split(&query, '&', &part);) {
                size_t equals = slice_find(part, '=', 0);

                if (slice_is(slice_sub(part, 0, equals), name))
                        return decode(arena, slice_sub(part, equals + 1, part.len));
        }
        return SLICE_NONE;
}

struct worker {
        struct slice url, type; /* type: "regular", "prefill", "decode"; empty: not said */
        uint16_t bootstrap_port;
};

/* Started without instances: the first one tells whether all are whole engines. Not while a request waits for one. */
static void decide(struct gateway *g, const struct worker *w) {
        bool whole = w->type.len == 0 || slice_is(w->type, "regular");

        if (g->options.connector_open && g->request_count == 0 &&
            pool_count(g->pool, ROLE_PREFILL) + pool_count(g->pool, ROLE_DECODE) == 0)
                g->connector = connector_find(whole ? "plain" : "pull");
}

/* Which role is meant. Whole engines have one; where there are two, it must be said. */
static int find_role(const struct gateway *g, const struct worker *w, bool *ret_prefill, struct error *e) {
        bool split = g->connector->order != ORDER_ONE;

        if (split ? slice_is(w->type, "prefill") || slice_is(w->type, "decode")
                  : w->type.len == 0 || slice_is(w->type, "regular")) {
                *ret_prefill = slice_is(w->type, "prefill");
                return 0;
        }
        return error_set(e, -EINVAL,
            split ? "prefill and decode are kept apart here: worker_type is to be prefill or decode"
                  : "these are whole engines: worker_type is to be regular, or left out");
}

/* Change all ranks behind the URL. */
static int change(struct gateway *g, const struct worker *w, enum change what, bool prefill, struct error *e) {
        struct gateway_member m;
        unsigned ranks;
        int r = gateway_member_parse(w->url, &m, e);

        if (r < 0)
                return r;
        m.prefill = prefill;
        m.bootstrap_port = w->bootstrap_port;
        ranks = m.dp_rank < 0 ? gateway_ranks_of(&g->options, prefill) : 0;
        if (ranks == 0)
                r = gateway_change_member(g, &m, what, e);
        for (unsigned rank = 0; r == 0 && rank < ranks; rank++) {
                m.dp_rank = (int)rank;
                r = gateway_change_member(g, &m, what, e);
        }
        gateway_member_free(&m);
        return r;
}

static int add(struct gateway *g, const struct worker *w, struct error *e) {
        bool prefill = false;
        int r;

        decide(g, w);
        r = find_role(g, w, &prefill, e);
        return r < 0 ? r : change(g, w, CHANGE_ADD, prefill, e);
}

/* Out of the role that is said, or of whichever it is in. */
static int drop(struct gateway *g, const struct worker *w, struct error *e) {
        bool prefill = false;
        int r;

        if (w->type.len > 0) {
                r = find_role(g, w, &prefill, e);
                return r < 0 ? r : change(g, w, CHANGE_REMOVE, prefill, e);
        }
        r = change(g, w, CHANGE_REMOVE, false, e);
        return r == -ENOENT ? change(g, w, CHANGE_REMOVE, true, e) : r;
}

static int status_of(int r) {
        return r == 0 ? 200 : r == -ENOENT ? 404 : r == -ENOMEM ? 500 : 400;
}

/* ---- by query ----------------------------------------------------------------------------------------------------------- */

static void respond_text(struct http_exchange *x, int r, const char *done, struct slice url, const struct error *e) {
        struct http_field type = {SLICE_LIT("Content-Type"), SLICE_LIT("text/plain; charset=utf-8")};
        struct buf text = {0};

        if (r < 0)
                buf_add_str(&text, error_text(e, r));
        else
                buf_printf(&text, "%s: %.*s", done, SLICE_ARG(url));
        http_respond(x, status_of(r), (struct http_fields){&type, 1}, buf_slice(&text));
        buf_free(&text);
}

static struct worker from_query(struct arena *arena, const struct http_exchange *x) {
        struct slice query = http_exchange_request(x)->query;

        return (struct worker){
            .url = query_value(arena, query, "url"), .type = query_value(arena, query, "worker_type")};
}

void workers_add(struct gateway *g, struct http_exchange *x) {
        struct arena arena = {0};
        struct error e = {0};
        struct worker w = from_query(&arena, x);

        respond_text(x, add(g, &w, &e), "Successfully added worker", w.url, &e);
        arena_free(&arena);
}

void workers_remove(struct gateway *g, struct http_exchange *x) {
        struct arena arena = {0};
        struct error e = {0};
        struct worker w = from_query(&arena, x);

        respond_text(x, drop(g, &w, &e), "Successfully removed worker", w.url, &e);
        arena_free(&arena);
}

/* ---- lists ------------------------------------------------------------------------------------------------------------ */

/* As vllm-router names it: with the scheme, and the rank where there is one. */
static void write_url(struct json_writer *w, const struct instance *i) {
        struct buf url = {0};

        if (!slice_starts(slice_str(i->key), SLICE_LIT("https://")))
                buf_add_str(&url, "http://");
        buf_add_str(&url, i->key);
        json_string(w, buf_slice(&url));
        buf_free(&url);
}

static const char *type_of(const struct gateway *g, const struct instance *i) {
        return g->connector->order == ORDER_ONE ? "regular" : pool_role_name(i->role);
}

static void write_worker(const struct gateway *g, struct json_writer *w, const struct instance *i) {
        json_open(w, '{');
        json_key(w, "url");
        write_url(w, i);
        json_key(w, "model_id");
        json_str(w, "unknown");
        json_key(w, "worker_type");
        json_str(w, type_of(g, i));
        json_key(w, "is_healthy");
        json_bool(w, i->state == INSTANCE_HEALTHY);
        json_key(w, "load");
        json_u64(w, i->requests);
        json_key(w, "connection_mode");
        json_str(w, "Http");
        if (i->role == ROLE_PREFILL) {
                json_key(w, "bootstrap_port");
                if (i->bootstrap_port > 0)
                        json_u64(w, i->bootstrap_port);
                else
                        json_null(w);
        }
        json_close(w, '}');
}

/* The next instance that is not leaving, from *role and *index on. NULL: no more. */
static const struct instance *next_worker(const struct gateway *g, int *role, size_t *index) {
        for (; *role < ROLE_COUNT; (*role)++, *index = 0)
                while (*index < pool_count(g->pool, (enum role) * role)) {
                        const struct instance *i = pool_at(g->pool, (enum role) * role, (*index)++);

                        if (i->state != INSTANCE_LEAVING)
                                return i;
                }
        return NULL;
}

void workers_list(struct gateway *g, struct http_exchange *x) {
        struct buf b = {0};
        struct json_writer w = {.out = &b};
        const struct instance *i;
        size_t index = 0;
        int role = 0;

        json_open(&w, '{');
        json_key(&w, "urls");
        json_open(&w, '[');
        while ((i = next_worker(g, &role, &index)))
                write_url(&w, i);
        json_close(&w, ']');
        json_close(&w, '}');
        respond_json(x, 200, &b);
}

void workers_get(struct gateway *g, struct http_exchange *x) {
        struct buf b = {0};
        struct json_writer w = {.out = &b};
        const struct instance *i;
        size_t index = 0, total = 0, prefill = 0;
        int role = 0;
        bool whole = g->connector->order == ORDER_ONE;

        json_open(&w, '{');
        json_key(&w, "workers");
        json_open(&w, '[');
        while ((i = next_worker(g, &role, &index))) {
                write_worker(g, &w, i);
                total++;
                prefill += i->role == ROLE_PREFILL;
        }
        json_close(&w, ']');
        json_key(&w, "total");
        json_u64(&w, total);
        json_key(&w, "stats");
        json_open(&w, '{');
        json_key(&w, "prefill_count");
        json_u64(&w, prefill);
        json_key(&w, "decode_count");
        json_u64(&w, whole ? 0 : total - prefill);
        json_key(&w, "regular_count");
        json_u64(&w, whole ? total : 0);
        json_close(&w, '}');
        json_close(&w, '}');
        respond_json(x, 200, &b);
}

/* ---- one, by path or body --------------------------------------------------------------------------------------------- */

static void respond_change(struct http_exchange *x, int r, const char *done, struct slice url, const struct error *e) {
        struct buf b = {0}, message = {0};
        struct json_writer w = {.out = &b};

        json_open(&w, '{');
        if (r < 0) {
                json_key(&w, "error");
                json_str(&w, error_text(e, r));
                json_key(&w, "code");
                json_str(&w, r == -ENOENT ? "WORKER_NOT_FOUND" : "BAD_REQUEST");
        } else {
                buf_printf(&message, "%s: %.*s", done, SLICE_ARG(url));
                json_key(&w, "success");
                json_bool(&w, true);
                json_key(&w, "message");
                json_string(&w, buf_slice(&message));
        }
        json_close(&w, '}');
        respond_json(x, status_of(r), &b);
        buf_free(&message);
}

static void on_worker(struct http_exchange *x, struct slice body, void *user) {
        struct gateway *g = user;
        struct error e = {0};
        yyjson_doc *doc = NULL;
        struct worker w = {0};
        yyjson_val *root;
        int r = json_parse(body, &doc, &e);

        if (r == 0) {
                root = yyjson_doc_get_root(doc);
                w = (struct worker){.url = json_get_slice(root, "url"),
                    .type = json_get_slice(root, "worker_type"),
                    .bootstrap_port = (uint16_t)json_get_i64(root, "bootstrap_port", 0)};
                r = add(g, &w, &e);
        }
        respond_change(x, r, "Successfully added worker", w.url, &e);
        yyjson_doc_free(doc);
}

void workers_post(struct gateway *g, struct http_exchange *x) {
        static const struct http_exchange_callbacks none;

        http_exchange_watch(x, &none, g);
        http_exchange_collect(x, on_worker);
}

static struct slice url_of_path(struct arena *arena, const struct http_exchange *x) {
        struct slice path = http_exchange_request(x)->path;

        return decode(arena, slice_sub(path, strlen("/workers/"), path.len));
}

void workers_get_one(struct gateway *g, struct http_exchange *x) {
        struct arena arena = {0};
        struct slice url = url_of_path(&arena, x), key = url;
        const struct instance *i;
        struct buf b = {0};
        struct json_writer w = {.out = &b};
        struct error e = {0};
        size_t index = 0;
        int role = 0;

        if (slice_starts(key, SLICE_LIT("http://")))
                key = slice_sub(key, strlen("http://"), key.len);
        while ((i = next_worker(g, &role, &index)) && !slice_is(key, i->key))
                ;
        if (i) {
                write_worker(g, &w, i);
                respond_json(x, 200, &b);
        } else {
                respond_change(x, error_set(&e, -ENOENT, "%.*s is not among the workers", SLICE_ARG(url)), "", url, &e);
        }
        arena_free(&arena);
}

void workers_delete(struct gateway *g, struct http_exchange *x) {
        struct arena arena = {0};
        struct error e = {0};
        struct worker w = {.url = url_of_path(&arena, x)};

        respond_change(x, drop(g, &w, &e), "Successfully removed worker", w.url, &e);
        arena_free(&arena);
}
