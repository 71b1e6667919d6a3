/* metaserver.c - POST /v1/metaserver: a decoder of a push connector has room for a prompt and asks for its prefill.
 *
 * Its body names the request and is passed on to a prefiller as it is (MooncakeLayerwiseConnector of vLLM-Ascend). The id
 * is the engine's name for the request: "chatcmpl-ID" or "cmpl-ID-0" for the X-Request-Id that the decode leg had, which
 * nobody can guess. The answer comes at once: what a decoder waits for is the KV, it looks at no status, and it has but a
 * few threads for such calls. Whatever becomes of the prefill, its decode leg is ended or goes on accordingly. */
#include "gateway/core.h"
#include <errno.h>

/* The X-Request-Id within an engine's name for the request; empty: not such a name. */
static struct slice id_of(struct slice name) {
        static const struct {
                struct slice before, behind;
        } shapes[] = {{SLICE_LIT("chatcmpl-"), SLICE_LIT("")}, {SLICE_LIT("cmpl-"), SLICE_LIT("-0")}};

        for (size_t i = 0; i < sizeof(shapes) / sizeof(*shapes); i++) {
                struct slice before = shapes[i].before, behind = shapes[i].behind;

                if (slice_starts(name, before) && slice_ends(name, behind))
                        return slice_sub(name, before.len, name.len - behind.len);
        }
        return SLICE_NONE;
}

static void respond_ok(struct http_exchange *x) {
        struct http_field type = {SLICE_LIT("Content-Type"), SLICE_LIT("application/json")};

        http_respond(x, 200, (struct http_fields){&type, 1}, SLICE_LIT("{\"status\":\"ok\"}"));
}

static void on_asked(struct http_exchange *x, struct slice body, void *user) {
        struct gateway *g = user;
        struct openai_member m[OPENAI_MEMBERS_MAX];
        struct slice name;
        size_t n, at;
        int r;

        if (openai_scan(body, m, OPENAI_MEMBERS_MAX, &n, &at) < 0) {
                gateway_respond_error(x, 400, "BadRequestError", "the body is not a JSON object");
                return;
        }
        name = openai_inside(openai_find(m, n, "request_id"));
        r = part_ask(g, id_of(name), body);
        if (r == 0) {
                respond_ok(x);
        } else if (r == -ENOMEM) {
                gateway_respond_error(x, 500, "InternalServerError", "the gateway is out of memory");
        } else {
                log_warn(g->log, "a decoder at %s asks for the prefill of `%.*s`, which is no request here (any more)",
                    http_exchange_peer(x), SLICE_ARG(slice_sub(name, 0, 200)));
                gateway_respond_error(x, 404, "NotFoundError", "no request of that id waits for its prefill");
        }
}

void metaserver_post(struct gateway *g, struct http_exchange *x) {
        static const struct http_exchange_callbacks none;

        http_exchange_watch(x, &none, g);
        http_exchange_collect(x, on_asked);
}
