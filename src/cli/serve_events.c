/* serve_events.c - --kv-events-config in vLLM's JSON shape. */
#include "base/json.h"
#include "cli/serve.h"
#include <errno.h>

/* vLLM's. */
#define BUFFER_STEPS  10000
#define QUEUE_STEPS   100000
#define ENDPOINT      "tcp://*:5557"
#define STEPS_AT_MOST 1000000

static int read_steps(yyjson_val *root, const char *name, int64_t otherwise, uint32_t *ret_steps, struct error *e) {
        int64_t n = otherwise;
        yyjson_val *v = json_get(root, name);

        if (v && !yyjson_is_null(v) && (json_to_i64(v, &n) < 0 || n < 1 || n > STEPS_AT_MOST))
                return error_set(e, -EINVAL, "%s must be a number of steps, 1 to %d", name, STEPS_AT_MOST);
        *ret_steps = (uint32_t)n;
        return 0;
}

/* All of this machine's addresses, where the host is `*`: what ZeroMQ calls so, too. */
static int read_endpoint(struct slice text, const char *otherwise, const char *name, unsigned rank, struct arena *arena,
    const char **ret_endpoint, struct error *e) {
        const char *given = text.len ? arena_copy(arena, text).ptr : otherwise;
        int r;

        if (!given) {
                *ret_endpoint = NULL;
                return text.len ? error_set(e, -ENOMEM, "out of memory") : 0;
        }
        r = events_endpoint(arena, given, "*", rank, ret_endpoint, e);
        return r < 0 ? error_prefix(e, r, "%s", name) : 0;
}

static int check_publisher(yyjson_val *root, struct error *e) {
        struct slice publisher = json_get_slice(root, "publisher");

        if (publisher.len == 0 || slice_is(publisher, "zmq") || slice_is(publisher, "null"))
                return 0;
        return error_set(
            e, -EINVAL, "publisher is `%.*s`; it must be zmq or null", SLICE_ARG(slice_sub(publisher, 0, 80)));
}

static int read_all(
    yyjson_val *root, unsigned rank, struct arena *arena, struct publisher_options *o, struct error *e) {
        int r = check_publisher(root, e);

        if (r == 0)
                r = read_endpoint(json_get_slice(root, "endpoint"), ENDPOINT, "endpoint", rank, arena, &o->endpoint, e);
        if (r == 0)
                r = read_endpoint(
                    json_get_slice(root, "replay_endpoint"), NULL, "replay_endpoint", rank, arena, &o->replay, e);
        if (r == 0)
                r = read_steps(root, "buffer_steps", BUFFER_STEPS, &o->buffer_steps, e);
        if (r == 0)
                r = read_steps(root, "max_queue_size", QUEUE_STEPS, &o->queue_steps, e);
        if (r < 0)
                return r;
        o->topic = arena_copy(arena, json_get_slice(root, "topic")).ptr;
        return o->topic ? 0 : error_set(e, -ENOMEM, "out of memory");
}

int serve_read_events(
    const char *json, unsigned rank, struct arena *arena, struct publisher_options *ret_options, struct error *e) {
        struct publisher_options o = {0};
        bool wanted = false;
        yyjson_doc *doc;
        yyjson_val *root;
        int r = json_parse(slice_str(json), &doc, e);

        if (r < 0)
                return error_prefix(e, r, "--kv-events-config");
        root = yyjson_doc_get_root(doc);
        if (!yyjson_is_obj(root))
                r = error_set(e, -EINVAL, "not a JSON object: %.100s", json);
        else
                r = read_all(root, rank, arena, &o, e);
        wanted = json_get_bool(root, "enable_kv_cache_events", false) &&
                 !slice_is(json_get_slice(root, "publisher"), "null");
        yyjson_doc_free(doc);
        if (r < 0)
                return error_prefix(e, r, "--kv-events-config");
        *ret_options = o;
        return wanted;
}
