/* api_cors.c - cross-origin requests (WHATWG Fetch, 3.2) as vLLM's --allowed-origins has them: none unless named. */
#include "engine/api_call.h"

#define METHODS "DELETE, GET, HEAD, OPTIONS, PATCH, POST, PUT, QUERY"

static struct slice field(const struct api_call *call, const char *name) {
        return http_field_value(http_exchange_request(call->exchange)->fields, name);
}

static bool is_allowed(const struct api_call *call, struct slice origin, bool *ret_any) {
        const struct api_options *o = &call->api->options;
        bool allowed = false;

        *ret_any = false;
        for (size_t i = 0; i < o->allowed_origin_count; i++) {
                *ret_any |= !strcmp(o->allowed_origins[i], "*");
                allowed |= *ret_any || slice_is(origin, o->allowed_origins[i]);
        }
        return allowed;
}

/* With credentials an answer must name the origin; "*" would not do. */
static struct http_field allow_origin(const struct api_call *call, struct slice origin, bool any) {
        return (struct http_field){SLICE_LIT("Access-Control-Allow-Origin"),
            any && !call->api->options.allow_credentials ? SLICE_LIT("*") : origin};
}

static size_t add_credentials(const struct api_call *call, struct http_field *fields, size_t n) {
        if (call->api->options.allow_credentials)
                fields[n++] = (struct http_field){SLICE_LIT("Access-Control-Allow-Credentials"), SLICE_LIT("true")};
        return n;
}

size_t api_cors_fields(const struct api_call *call, struct http_field fields[API_FIELDS_MAX], size_t n) {
        struct slice origin;
        bool any;

        if (!call->exchange)
                return n;
        origin = field(call, "Origin");
        fields[n++] = (struct http_field){SLICE_LIT("Vary"), SLICE_LIT("Origin")};
        if (origin.len && http_value_is_safe(origin) && is_allowed(call, origin, &any)) {
                fields[n++] = allow_origin(call, origin, any);
                n = add_credentials(call, fields, n);
        }
        return n;
}

bool api_cors_preflight(struct api_call *call) {
        struct slice origin = field(call, "Origin"), wanted = field(call, "Access-Control-Request-Headers");
        struct http_field fields[API_FIELDS_MAX];
        size_t n = 0;
        bool any, allowed;

        if (call->method != HTTP_METHOD_OPTIONS || !origin.len || !field(call, "Access-Control-Request-Method").len)
                return false;
        if (!http_value_is_safe(origin) || !http_value_is_safe(wanted))
                return false;
        allowed = is_allowed(call, origin, &any);
        fields[n++] = (struct http_field){SLICE_LIT("Content-Type"), SLICE_LIT("text/plain; charset=utf-8")};
        fields[n++] = (struct http_field){
            SLICE_LIT("Vary"), SLICE_LIT("Origin, Access-Control-Request-Method, Access-Control-Request-Headers, "
                                         "Access-Control-Request-Private-Network")};
        fields[n++] = (struct http_field){SLICE_LIT("Access-Control-Allow-Methods"), SLICE_LIT(METHODS)};
        fields[n++] = (struct http_field){SLICE_LIT("Access-Control-Max-Age"), SLICE_LIT("600")};
        if (allowed) {
                fields[n++] = allow_origin(call, origin, any);
                n = add_credentials(call, fields, n);
        }
        if (wanted.len)
                fields[n++] = (struct http_field){SLICE_LIT("Access-Control-Allow-Headers"), wanted};
        if (call->api->options.request_id_headers && call->header_id.len)
                fields[n++] = (struct http_field){SLICE_LIT("X-Request-Id"), call->header_id};
        call->status = allowed ? 200 : 400;
        call->over = true;
        http_respond(call->exchange, call->status, (struct http_fields){fields, n},
            allowed ? SLICE_LIT("OK") : SLICE_LIT("Disallowed CORS origin"));
        return true;
}
