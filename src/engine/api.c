/* api.c - the API as a whole: its life, routes, keys, request ids, and how an exchange is answered and let go. */
#include "base/clock.h"
#include "base/rng.h"
#include "engine/api_call.h"
#include <assert.h>
#include <errno.h>
#include <stdlib.h>

#define GET  (1u << HTTP_METHOD_GET)
#define POST (1u << HTTP_METHOD_POST)

static void post_completions(struct api_call *call, struct slice body) {
        api_start(call, OPENAI_COMPLETION, body);
}

static void post_chat(struct api_call *call, struct slice body) {
        api_start(call, OPENAI_CHAT, body);
}

static void post_tokenize(struct api_call *call, struct slice body) {
        api_start(call, OPENAI_TOKENIZE, body);
}

static void post_detokenize(struct api_call *call, struct slice body) {
        api_start(call, OPENAI_DETOKENIZE, body);
}

const struct api_route api_routes[] = {
    {"/v1/completions", POST, true, post_completions, true},
    {"/v1/chat/completions", POST, true, post_chat, true},
    {"/v1/models", GET, false, api_get_models, true},
    {"/tokenize", POST, true, post_tokenize, true},
    {"/detokenize", POST, true, post_detokenize, true},
    {"/health", GET, false, api_get_health, false},
    {"/ping", GET | POST, false, api_get_health, false},
    {"/version", GET, false, api_get_version, false},
    {"/metrics", GET, false, api_get_metrics, false},
    {"/load", GET, false, api_get_load, false},
    {"/reset_prefix_cache", POST, false, api_post_reset, true},
    {"/rebalance_experts", POST, false, api_post_rebalance, true},
    {"/debug/experts", GET, false, api_get_experts, false},
    {"/v1/completions/render", POST, false, api_post_scale_out, true},
    {"/v1/chat/completions/render", POST, false, api_post_scale_out, true},
    {"/inference/v1/generate", POST, false, api_post_scale_out, true},
};
const size_t api_route_count = sizeof(api_routes) / sizeof(*api_routes);
_Static_assert(sizeof(api_routes) / sizeof(*api_routes) < API_ROUTES_MAX, "room for paths without a route");

/* ---- the api -------------------------------------------------------------------------------------------------------------- */

static void on_wake(uv_async_t *handle) {
        struct api *a = handle->data;

        if (!a->engine)
                return;
        api_take_outputs(a);
        api_take_resets(a);
}

int api_new(uv_loop_t *loop, const struct api_options *options, struct api **ret_api, struct error *e) {
        struct api *a = calloc(1, sizeof(*a));
        int r = a ? 0 : -ENOMEM;

        if (r == 0) {
                *a = (struct api){.options = *options, .loop = loop, .created = (int64_t)(clock_wall_ns() / NS_PER_S)};
                list_init(&a->calls);
                list_init(&a->dirty);
                r = api_figures_init(&a->figures);
        }
        if (r == 0)
                r = uv_async_init(loop, &a->wake, on_wake);
        if (r < 0) {
                if (a)
                        api_figures_free(&a->figures);
                free(a);
                return error_set(e, r, "cannot start the API: %s", strerror(-r));
        }
        a->wake.data = a;
        *ret_api = a;
        return 0;
}

void api_set_engine(struct api *a, struct engine *engine) {
        a->engine = engine;
}

void api_wake(void *api) {
        uv_async_send(&((struct api *)api)->wake);
}

void api_begin_drain(struct api *a) {
        a->draining = true;
}

size_t api_in_flight(const struct api *a) {
        return a->in_flight;
}

static void on_wake_closed(uv_handle_t *handle) {
        struct api *a = handle->data;

        if (a->on_closed)
                a->on_closed(a->closed_context);
}

static void on_client_closed(void *context) {
        struct api *a = context;

        uv_close((uv_handle_t *)&a->wake, on_wake_closed);
}

static void close_when_idle(struct api *a) {
        if (!a->closing || !list_empty(&a->calls) || a->client_closing || uv_is_closing((uv_handle_t *)&a->wake))
                return;
        a->client_closing = a->client != NULL;
        if (a->client)
                http_client_close(a->client, on_client_closed, a);
        else
                uv_close((uv_handle_t *)&a->wake, on_wake_closed);
}

void api_close(struct api *a, void (*on_closed)(void *context), void *context) {
        assert(!a->closing);
        a->closing = a->draining = true;
        a->on_closed = on_closed;
        a->closed_context = context;
        close_when_idle(a);
}

void api_free(struct api *a) {
        if (!a)
                return;
        assert(list_empty(&a->calls));
        if (a->client_closing)
                http_client_free(a->client);
        api_figures_free(&a->figures);
        free(a);
}

/* ---- calls ---------------------------------------------------------------------------------------------------------------- */

void api_call_hold(struct api_call *call) {
        call->holders++;
}

void api_call_drop(struct api_call *call) {
        struct api *a = call->api;

        assert(call->holders > 0);
        if (--call->holders > 0)
                return;
        assert(!call->exchange);
        api_choices_free(call);
        openai_request_done(&call->prepared.request);
        list_remove(&call->dirty_link);
        list_remove(&call->link);
        buf_free(&call->out);
        buf_free(&call->body);
        buf_free(&call->prepared.tokens);
        buf_free(&call->transfer);
        arena_free(&call->arena);
        free(call);
        close_when_idle(a);
}

static void count_call(struct api_call *call) {
        struct api *a = call->api;
        size_t row = call->route ? (size_t)(call->route - api_routes) : api_route_count;
        uint64_t ns = clock_mono_ns() - call->begun_ns;

        if (!call->route || call->route->counted)
                api_figures_add(&a->figures, row, call->method, call->status ? call->status : 499,
                    (double)ns / NS_PER_S, call->request_bytes, call->response_bytes);
        log_debug(a->options.log, "%s %s %d %.1f ms", http_exchange_peer(call->exchange),
            call->route ? call->route->path : "(no route)", call->status, (double)ns / NS_PER_MS);
}

static void on_end(struct http_exchange *x, enum http_end end, void *user) {
        struct api_call *call = user;

        (void)x;
        (void)end;
        count_call(call);
        api_abandon(call);
        call->exchange = NULL;
        api_call_drop(call);
}

static void on_writable(struct http_exchange *x, void *user) {
        (void)x;
        api_on_writable(user);
}

static void on_body(struct http_exchange *x, struct slice body, void *user) {
        struct api_call *call = user;

        (void)x;
        call->request_bytes = body.len;
        call->route->run(call, body);
}

/* ---- answering ------------------------------------------------------------------------------------------------------------ */

static size_t common_fields(const struct api_call *call, struct http_field fields[API_FIELDS_MAX], const char *type) {
        size_t n = 0;

        if (type)
                fields[n++] = (struct http_field){SLICE_LIT("Content-Type"), slice_str(type)};
        if (call->api->options.request_id_headers && call->header_id.len)
                fields[n++] = (struct http_field){SLICE_LIT("X-Request-Id"), call->header_id};
        if (call->fetched[0])
                fields[n++] = (struct http_field){SLICE_LIT("X-Baton-KV"), slice_str(call->fetched)};
        return n;
}

/* An answer for which there is no memory never ends by itself: its client must not wait for it. */
static void end_without_memory(struct http_exchange *x, int result) {
        if (result == -ENOMEM)
                http_exchange_abort(x);
}

static void respond(struct api_call *call, int status, struct http_field *fields, size_t count, struct slice body) {
        int r;

        if (!call->exchange)
                return;
        call->status = status;
        call->response_bytes = body.len;
        call->over = true;
        r = http_respond(call->exchange, status, (struct http_fields){fields, count}, body);
        if (r == -EINVAL) /* a field that cannot be sent */
                r = http_respond(call->exchange, 500, (struct http_fields){0}, SLICE_NONE);
        end_without_memory(call->exchange, r);
}

void api_respond(struct api_call *call, int status, const char *type, struct slice body) {
        struct http_field fields[API_FIELDS_MAX];
        size_t n = common_fields(call, fields, type);

        respond(call, status, fields, api_cors_fields(call, fields, n), body);
}

void api_respond_with(
    struct api_call *call, int status, const char *type, const char *name, struct slice value, struct slice body) {
        struct http_field fields[API_FIELDS_MAX];
        size_t n = common_fields(call, fields, type);

        fields[n++] = (struct http_field){slice_str(name), value};
        respond(call, status, fields, api_cors_fields(call, fields, n), body);
}

void api_respond_buf(struct api_call *call, struct buf *json) {
        if (buf_ok(json))
                api_respond(call, 200, "application/json", buf_slice(json));
        else
                api_refuse_text(call, 500, "InternalServerError", "out of memory");
        buf_free(json);
}

void api_refuse(struct api_call *call, const struct openai_error *error) {
        struct buf b = {0};

        openai_write_error(&b, error);
        if (!buf_ok(&b)) {
                if (call->exchange)
                        http_exchange_abort(call->exchange);
        } else if (error->status == 503)
                api_respond_with(call, 503, "application/json", "Retry-After", SLICE_LIT("1"), buf_slice(&b));
        else
                api_respond(call, error->status, "application/json", buf_slice(&b));
        buf_free(&b);
}

void api_refuse_text(struct api_call *call, int status, const char *type, const char *text) {
        struct openai_error error;

        openai_fail(&error, status, type, NULL, "%s", text);
        api_refuse(call, &error);
}

void api_begin_stream(struct api_call *call) {
        struct http_field fields[API_FIELDS_MAX];
        size_t n = common_fields(call, fields, "text/event-stream; charset=utf-8");

        int r;

        call->status = 200;
        n = api_cors_fields(call, fields, n);
        r = http_begin(call->exchange, 200, (struct http_fields){fields, n}, HTTP_LENGTH_CHUNKED);
        if (r == -EINVAL)
                r = http_begin(call->exchange, 200, (struct http_fields){0}, HTTP_LENGTH_CHUNKED);
        end_without_memory(call->exchange, r);
}

/* ---- arrival -------------------------------------------------------------------------------------------------------------- */

static const struct api_route *find_route(struct slice path) {
        for (size_t i = 0; i < api_route_count; i++)
                if (slice_is(path, api_routes[i].path))
                        return &api_routes[i];
        return NULL;
}

/* All keys are compared, whichever is right: time does not tell. */
static bool has_key(const struct api *a, struct http_fields fields) {
        bool right = false;

        for (size_t i = 0; i < a->options.api_key_count; i++)
                right |= http_bearer_is(fields, a->options.api_keys[i]);
        return right;
}

static bool check_key(struct api_call *call, const struct http_request_head *head) {
        struct http_field fields[API_FIELDS_MAX];
        size_t n;

        if (call->api->options.api_key_count == 0 || call->method == HTTP_METHOD_OPTIONS ||
            !slice_starts(head->path, SLICE_LIT("/v1/")) || has_key(call->api, head->fields))
                return true;
        n = common_fields(call, fields, "application/json"); /* vLLM's key check stands in front of its CORS rules */
        respond(call, 401, fields, n, SLICE_LIT("{\"error\":\"Unauthorized\"}"));
        return false;
}

/* What the client calls the request; where it gave no name and names are told, a fresh one. */
static struct slice read_id(struct api_call *call, struct slice given) {
        if (given.len == 0 || !http_value_is_safe(given)) {
                char fresh[33];

                if (!call->api->options.request_id_headers)
                        return SLICE_NONE;
                rng_hex(fresh, 16);
                return arena_copy(&call->arena, slice_of(fresh, 32));
        }
        return arena_copy(&call->arena, slice_sub(given, 0, REQUEST_ID_MAX));
}

/* "/v1/models/" is told to be "/v1/models". */
static bool redirect(struct api_call *call, const struct http_request_head *head) {
        struct slice path = head->path, host = http_field_value(head->fields, "Host");
        const char *to;

        if (path.len < 2 || path.ptr[path.len - 1] != '/' || !find_route(slice_sub(path, 0, path.len - 1)))
                return false;
        path.len--;
        to = arena_printf(&call->arena, "%s://%.*s%.*s%s%.*s", call->api->options.tls ? "https" : "http",
            SLICE_ARG(host), SLICE_ARG(path), head->query.len ? "?" : "", SLICE_ARG(head->query));
        if (to)
                api_respond_with(call, 307, NULL, "Location", slice_str(to), SLICE_NONE);
        else
                api_refuse_text(call, 500, "InternalServerError", "out of memory");
        return true;
}

static bool is_json(const struct http_request_head *head) {
        struct slice type = http_field_value(head->fields, "Content-Type");

        return slice_is_icase(slice_trim(slice_sub(type, 0, slice_find(type, ';', 0))), "application/json");
}

static void refuse_method(struct api_call *call) {
        bool get = call->route->methods & GET, post = call->route->methods & POST;

        api_respond_with(call, 405, "application/json", "Allow",
            slice_str(get && post ? "GET, POST"
                      : get       ? "GET"
                                  : "POST"),
            SLICE_LIT("{\"detail\":\"Method Not Allowed\"}"));
}

static void route(struct api_call *call, const struct http_request_head *head) {
        if (api_cors_preflight(call) || !check_key(call, head))
                return;
        if (!call->route) {
                if (!redirect(call, head))
                        api_respond(call, 404, "application/json", SLICE_LIT("{\"detail\":\"Not Found\"}"));
        } else if (!(call->route->methods & 1u << call->method))
                refuse_method(call);
        else if (!call->route->reads_json)
                call->route->run(call, SLICE_NONE);
        else if (!is_json(head))
                api_refuse_text(call, 400, "Bad Request",
                    "1 validation error:\n  Unsupported Media Type: Only 'application/json' is allowed");
        else
                http_exchange_collect(call->exchange, on_body);
}

void api_request(void *api, struct http_exchange *x) {
        static const struct http_exchange_callbacks callbacks = {.on_end = on_end, .on_writable = on_writable};
        const struct http_request_head *head = http_exchange_request(x);
        struct api *a = api;
        struct api_call *call = calloc(1, sizeof(*call));

        if (!call) {
                end_without_memory(x, http_respond(x, 500, (struct http_fields){0}, SLICE_NONE));
                return;
        }
        *call = (struct api_call){.api = a,
            .holders = 1,
            .exchange = x,
            .method = head->method,
            .route = find_route(head->path),
            .begun_ns = clock_mono_ns()};
        list_init(&call->dirty_link);
        list_push_back(&a->calls, &call->link);
        http_exchange_watch(x, &callbacks, call);
        call->header_id = read_id(call, http_field_value(head->fields, "X-Request-Id"));
        route(call, head);
}
