/* api.c - routes, keys, and the endpoints that answer at once. */
#include "base/clock.h"
#include "base/rng.h"
#include "engine/api_internal.h"
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

/* ---- answers ---------------------------------------------------------------------------------------------------------------- */

void api_respond(struct api *a, struct http_exchange *x, int status, const char *type, struct slice body) {
        struct http_field fields[2] = {{SLICE_LIT("Content-Type"), slice_str(type)}};
        size_t count = type ? 1 : 0;
        struct slice id = http_field_value(http_exchange_request(x)->fields, "X-Request-Id");

        if (a->options.request_id_headers && id.len)
                fields[count++] = (struct http_field){SLICE_LIT("X-Request-Id"), id};
        a->http_requests[status / 100 % 6]++;
        http_respond(x, status, (struct http_fields){fields, count}, body);
}

void api_fail(struct api *a, struct http_exchange *x, const struct openai_error *err) {
        struct buf b = {0};

        openai_write_error(&b, err);
        api_respond(a, x, err->status, "application/json", buf_slice(&b));
        buf_free(&b);
}

static void respond_buf(struct api *a, struct http_exchange *x, struct buf *b) {
        if (buf_ok(b))
                api_respond(a, x, 200, "application/json", buf_slice(b));
        else
                api_respond(a, x, 500, NULL, SLICE_NONE);
        buf_free(b);
}

/* ---- GET -------------------------------------------------------------------------------------------------------------------- */

static bool healthy(const struct api *a) {
        struct engine_load load;

        engine_load(a->options.engine, &load);
        return load.healthy && !a->draining;
}

static void get_health(struct api *a, struct http_exchange *x) {
        api_respond(a, x, healthy(a) ? 200 : 503, NULL, SLICE_NONE);
}

static void get_version(struct api *a, struct http_exchange *x) {
        api_respond(a, x, 200, "application/json", SLICE_LIT("{\"version\":\"" BATON_VERSION "\"}"));
}

static void get_load(struct api *a, struct http_exchange *x) {
        struct buf b = {0};

        buf_printf(&b, "{\"server_load\":%zu}", a->in_flight);
        respond_buf(a, x, &b);
}

static void write_permission(struct json_writer *w, int64_t created) {
        char id[40] = "modelperm-";

        rng_hex(id + 10, 8);
        json_key(w, "permission");
        json_open(w, '[');
        json_open(w, '{');
        json_key(w, "id");
        json_str(w, id);
        json_key(w, "object");
        json_str(w, "model_permission");
        json_key(w, "created");
        json_i64(w, created);
        json_key(w, "allow_create_engine");
        json_bool(w, false);
        json_key(w, "allow_sampling");
        json_bool(w, true);
        json_key(w, "allow_logprobs");
        json_bool(w, true);
        json_key(w, "allow_search_indices");
        json_bool(w, false);
        json_key(w, "allow_view");
        json_bool(w, true);
        json_key(w, "allow_fine_tuning");
        json_bool(w, false);
        json_key(w, "organization");
        json_str(w, "*");
        json_key(w, "group");
        json_null(w);
        json_key(w, "is_blocking");
        json_bool(w, false);
        json_close(w, '}');
        json_close(w, ']');
}

static void get_models(struct api *a, struct http_exchange *x) {
        struct buf b = {0};
        struct json_writer w = {.out = &b};
        int64_t created = (int64_t)(clock_wall_ns() / NS_PER_S);

        json_open(&w, '{');
        json_key(&w, "object");
        json_str(&w, "list");
        json_key(&w, "data");
        json_open(&w, '[');
        for (size_t i = 0; i < a->options.served_count; i++) {
                json_open(&w, '{');
                json_key(&w, "id");
                json_str(&w, a->options.served_names[i]);
                json_key(&w, "object");
                json_str(&w, "model");
                json_key(&w, "created");
                json_i64(&w, created);
                json_key(&w, "owned_by");
                json_str(&w, "vllm");
                json_key(&w, "root");
                json_str(&w, a->options.model_path);
                json_key(&w, "parent");
                json_null(&w);
                json_key(&w, "max_model_len");
                json_u64(&w, a->options.defaults.max_model_len);
                write_permission(&w, created);
                json_close(&w, '}');
        }
        json_close(&w, ']');
        json_close(&w, '}');
        respond_buf(a, x, &b);
}

static void get_metrics(struct api *a, struct http_exchange *x) {
        static const char *const classes[] = {"", "1xx", "2xx", "3xx", "4xx", "5xx"};
        struct buf b = {0}, labels = {0};

        metrics_label(&labels, "engine", SLICE_LIT("0"));
        metrics_label(&labels, "model_name", slice_str(a->options.served_names[0]));
        engine_metrics(a->options.engine, buf_cstr(&labels), &b);
        metrics_describe(&b, "http_requests_total", METRIC_COUNTER, "Total number of requests by status.");
        for (int i = 2; i < 6; i++) {
                buf_reset(&labels);
                metrics_label(&labels, "status", slice_str(classes[i]));
                metrics_sample(&b, "http_requests_total", buf_cstr(&labels), (double)a->http_requests[i]);
        }
        if (buf_ok(&b))
                api_respond(a, x, 200, "text/plain; version=0.0.4; charset=utf-8", buf_slice(&b));
        else
                api_respond(a, x, 500, NULL, SLICE_NONE);
        buf_free(&b);
        buf_free(&labels);
}

/* ---- POST -------------------------------------------------------------------------------------------------------------------- */

static void post_completions(struct api *a, struct http_exchange *x, struct slice body) {
        api_generate(a, x, OPENAI_COMPLETION, body);
}

static void post_chat(struct api *a, struct http_exchange *x, struct slice body) {
        api_generate(a, x, OPENAI_CHAT, body);
}

/* The document of a small request, after the checks that all share. NULL: refused. */
static yyjson_doc *parse_small(struct api *a, struct http_exchange *x, struct slice body) {
        struct openai_error err;
        struct error e = {0};
        yyjson_doc *doc = NULL;
        struct slice model;

        if (json_parse(body, &doc, &e) < 0 || !yyjson_is_obj(yyjson_doc_get_root(doc))) {
                openai_fail(&err, 400, "Bad Request", "body",
                    "1 validation error:\n  {'type': 'json_invalid', 'loc': 'body', 'msg': 'JSON decode error', 'ctx': "
                    "{'error': '%.300s'}}",
                    e.text);
                api_fail(a, x, &err);
                yyjson_doc_free(doc);
                return NULL;
        }
        model = json_get_slice(yyjson_doc_get_root(doc), "model");
        for (size_t i = 0; model.len; i++) {
                if (i == a->options.served_count) {
                        openai_fail(&err, 404, "NotFoundError", "model",
                            "The model `%.*s` does not exist. Valid aliases: %s.", SLICE_ARG(slice_sub(model, 0, 200)),
                            a->options.served_names[0]);
                        api_fail(a, x, &err);
                        yyjson_doc_free(doc);
                        return NULL;
                }
                if (slice_is(model, a->options.served_names[i]))
                        break;
        }
        return doc;
}

static int tokenize_chat(
    struct api *a, struct http_exchange *x, struct slice body, struct token_list *ret_list, struct openai_error *err) {
        struct openai_request r;
        struct buf text = {0};
        struct error e = {0};
        int result = openai_parse(OPENAI_CHAT, body, &a->options.defaults, http_exchange_arena(x), &r, err);

        if (result < 0)
                return result;
        if (chat_render(&a->options.chat, a->options.tokenizer, &r, &text, &e) < 0)
                result = openai_fail(err, 400, "BadRequestError", NULL, "%s", e.text);
        else
                result = tokenizer_encode(
                    a->options.tokenizer, buf_slice(&text), TOKENIZE_PLAIN, http_exchange_arena(x), ret_list);
        buf_free(&text);
        openai_request_done(&r);
        return result;
}

static void write_tokens(struct api *a, struct http_exchange *x, const struct token_list *list, bool strings) {
        struct buf b = {0};
        struct json_writer w = {.out = &b};

        json_open(&w, '{');
        json_key(&w, "count");
        json_u64(&w, list->count);
        json_key(&w, "max_model_len");
        json_u64(&w, a->options.defaults.max_model_len);
        json_key(&w, "tokens");
        json_open(&w, '[');
        for (size_t i = 0; i < list->count; i++)
                json_u64(&w, list->ids[i]);
        json_close(&w, ']');
        json_key(&w, "token_strs");
        if (strings) {
                json_open(&w, '[');
                for (size_t i = 0; i < list->count; i++)
                        json_string(&w, tokenizer_entry(a->options.tokenizer, list->ids[i]));
                json_close(&w, ']');
        } else
                json_null(&w);
        json_close(&w, '}');
        respond_buf(a, x, &b);
}

static void post_tokenize(struct api *a, struct http_exchange *x, struct slice body) {
        yyjson_doc *doc = parse_small(a, x, body);
        yyjson_val *root = yyjson_doc_get_root(doc), *prompt = json_get(root, "prompt");
        struct openai_error err;
        struct token_list list;
        int r;

        if (!doc)
                return;
        if (yyjson_is_arr(json_get(root, "messages")))
                r = tokenize_chat(a, x, body, &list, &err);
        else if (yyjson_is_str(prompt)) {
                r = tokenizer_encode(a->options.tokenizer, json_slice(prompt),
                    json_get_bool(root, "add_special_tokens", true) ? TOKENIZE_ADD_SPECIAL : TOKENIZE_PLAIN,
                    http_exchange_arena(x), &list);
                if (r < 0)
                        openai_fail(
                            &err, 400, "BadRequestError", NULL, "the text cannot be tokenized: %s", strerror(-r));
        } else
                r = openai_fail(&err, 400, "Bad Request", "body.prompt",
                    "2 validation errors:\n  {'type': 'missing', 'loc': 'body.prompt', 'msg': 'Field required', "
                    "'input': '<dict of %zu items>'}\n"
                    "  {'type': 'missing', 'loc': 'body.messages', 'msg': 'Field required', 'input': '<dict of %zu "
                    "items>'}",
                    yyjson_obj_size(root), yyjson_obj_size(root));
        if (r < 0)
                api_fail(a, x, &err);
        else
                write_tokens(a, x, &list, json_get_bool(root, "return_token_strs", false));
        yyjson_doc_free(doc);
}

static void post_detokenize(struct api *a, struct http_exchange *x, struct slice body) {
        yyjson_doc *doc = parse_small(a, x, body);
        yyjson_val *tokens = json_get(yyjson_doc_get_root(doc), "tokens"), *item;
        struct buf ids = {0}, text = {0}, b = {0};
        struct json_writer w = {.out = &b};
        struct openai_error err;
        size_t i, n;

        if (!doc)
                return;
        if (!yyjson_is_arr(tokens)) {
                openai_fail(&err, 400, "Bad Request", "body.tokens",
                    "1 validation error:\n  {'type': 'missing', 'loc': 'body.tokens', 'msg': 'Field required', "
                    "'input': '<dict of %zu items>'}",
                    yyjson_obj_size(yyjson_doc_get_root(doc)));
                api_fail(a, x, &err);
                yyjson_doc_free(doc);
                return;
        }
        yyjson_arr_foreach(tokens, i, n, item) {
                int64_t id;
                uint32_t kept = json_to_i64(item, &id) == 0 && id >= 0 && id < UINT32_MAX ? (uint32_t)id : UINT32_MAX;

                buf_append(&ids, &kept, sizeof(kept));
        }
        tokenizer_decode(a->options.tokenizer, (const uint32_t *)ids.ptr, ids.len / sizeof(uint32_t), false, &text);
        json_open(&w, '{');
        json_key(&w, "prompt");
        json_string(&w, buf_slice(&text));
        json_close(&w, '}');
        respond_buf(a, x, &b);
        buf_free(&ids);
        buf_free(&text);
        yyjson_doc_free(doc);
}

static void post_reset(struct api *a, struct http_exchange *x, struct slice body) {
        (void)body;
        if (engine_reset_prefix_cache(a->options.engine))
                api_respond(a, x, 200, NULL, SLICE_NONE);
        else
                api_respond(a, x, 503, "application/json", SLICE_LIT("{\"error\":\"some cached blocks are in use\"}"));
}

static void post_ping(struct api *a, struct http_exchange *x, struct slice body) {
        (void)body;
        get_health(a, x);
}

/* ---- routes ------------------------------------------------------------------------------------------------------------------ */

struct route {
        const char *path;
        void (*get)(struct api *a, struct http_exchange *x);
        void (*post)(struct api *a, struct http_exchange *x, struct slice body);
        bool json; /* the body must be declared as JSON */
};

static const struct route routes[] = {
    {"/v1/completions", NULL, post_completions, true},
    {"/v1/chat/completions", NULL, post_chat, true},
    {"/v1/models", get_models, NULL, false},
    {"/tokenize", NULL, post_tokenize, true},
    {"/detokenize", NULL, post_detokenize, true},
    {"/health", get_health, NULL, false},
    {"/ping", get_health, post_ping, false},
    {"/version", get_version, NULL, false},
    {"/metrics", get_metrics, NULL, false},
    {"/load", get_load, NULL, false},
    {"/reset_prefix_cache", NULL, post_reset, false},
};

static const struct route *find_route(struct slice path) {
        for (size_t i = 0; i < sizeof(routes) / sizeof(*routes); i++)
                if (slice_is(path, routes[i].path))
                        return &routes[i];
        return NULL;
}

/* "Bearer KEY", the scheme in any case; the key is compared without telling by time how far it was right. */
static bool key_is_right(const struct api *a, const struct http_request_head *head) {
        struct slice given = http_field_value(head->fields, "Authorization"), key = slice_str(a->options.api_key),
                     scheme;
        unsigned char difference = 0;

        if (!slice_split(&given, ' ', &scheme) || !slice_is_icase(scheme, "bearer"))
                return false;
        given = slice_trim(given);
        if (given.len != key.len)
                return false;
        for (size_t i = 0; i < key.len; i++)
                difference |= (unsigned char)(given.ptr[i] ^ key.ptr[i]);
        return difference == 0;
}

static void redirect(struct api *a, struct http_exchange *x, struct slice path) {
        struct http_field fields[1];
        struct slice host = http_field_value(http_exchange_request(x)->fields, "Host");
        const char *to = arena_printf(http_exchange_arena(x), "http://%.*s%.*s", SLICE_ARG(host), SLICE_ARG(path));

        fields[0] = (struct http_field){SLICE_LIT("Location"), slice_str(to)};
        a->http_requests[3]++;
        http_respond(x, 307, (struct http_fields){fields, 1}, SLICE_NONE);
}

static void on_body(struct http_exchange *x, struct slice body, void *user) {
        struct api *a = user;
        const struct route *route = find_route(http_exchange_request(x)->path);

        route->post(a, x, body);
}

static bool declares_json(const struct http_request_head *head) {
        struct slice type = http_field_value(head->fields, "Content-Type"), main_part;

        return slice_split(&type, ';', &main_part) && slice_is_icase(slice_trim(main_part), "application/json");
}

void api_request(void *api, struct http_exchange *x) {
        static const struct http_exchange_callbacks none = {0};
        struct api *a = api;
        const struct http_request_head *head = http_exchange_request(x);
        const struct route *route = find_route(head->path);
        struct openai_error err;

        if (a->options.api_key && slice_starts(head->path, SLICE_LIT("/v1/")) && !key_is_right(a, head)) {
                api_respond(a, x, 401, "application/json", SLICE_LIT("{\"error\":\"Unauthorized\"}"));
                return;
        }
        if (!route && head->path.len > 1 && slice_ends(head->path, SLICE_LIT("/")) &&
            find_route(slice_sub(head->path, 0, head->path.len - 1))) {
                redirect(a, x, slice_sub(head->path, 0, head->path.len - 1));
                return;
        }
        if (!route) {
                api_respond(a, x, 404, "application/json", SLICE_LIT("{\"detail\":\"Not Found\"}"));
                return;
        }
        if (head->method == HTTP_METHOD_GET && route->get) {
                route->get(a, x);
                return;
        }
        if (head->method != HTTP_METHOD_POST || !route->post) {
                api_respond(a, x, 405, "application/json", SLICE_LIT("{\"detail\":\"Method Not Allowed\"}"));
                return;
        }
        if (route->json && !declares_json(head)) {
                openai_fail(&err, 400, "Bad Request", NULL,
                    "1 validation error:\n  Unsupported Media Type: Only 'application/json' is allowed");
                api_fail(a, x, &err);
                return;
        }
        http_exchange_watch(x, &none, a);
        http_exchange_collect(x, on_body);
}

/* ---- outputs ------------------------------------------------------------------------------------------------------------------ */

static void on_wake(uv_async_t *async) {
        struct api *a = async->data;
        struct engine_output *list = engine_take(a->options.engine);

        for (struct engine_output *o = list; o; o = o->next) {
                struct child *c = o->user;

                api_output(c->request, c, o);
        }
        engine_outputs_free(a->options.engine, list);
}

void api_wake(void *api) {
        uv_async_send(&((struct api *)api)->wake);
}

/* ---- making --------------------------------------------------------------------------------------------------------------------- */

int api_new(uv_loop_t *loop, const struct api_options *options, struct api **ret_api, struct error *e) {
        struct api *a = calloc(1, sizeof(*a));
        int r;

        if (!a)
                return error_set(e, -ENOMEM, "out of memory");
        a->options = *options;
        r = uv_async_init(loop, &a->wake, on_wake);
        if (r < 0) {
                free(a);
                return error_set(e, r, "cannot make an event handle: %s", uv_strerror(r));
        }
        a->wake.data = a;
        *ret_api = a;
        return 0;
}

void api_set_engine(struct api *a, struct engine *engine) {
        a->options.engine = engine;
}

static void on_handle_closed(uv_handle_t *handle) {
        struct api *a = handle->data;

        a->on_closed(a->closed_context);
}

void api_close(struct api *a, void (*on_closed)(void *context), void *context) {
        a->on_closed = on_closed;
        a->closed_context = context;
        uv_close((uv_handle_t *)&a->wake, on_handle_closed);
}

void api_free(struct api *a) {
        free(a);
}

size_t api_in_flight(const struct api *a) {
        return a->in_flight;
}

void api_begin_drain(struct api *a) {
        a->draining = true;
}
