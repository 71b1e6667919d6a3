/* serve_transfer.c - --kv-transfer-config in vLLM's JSON shape. All connectors are names of the one protocol that this engine
 * speaks, in one of two orders: prefill first (pull), or decode first (push). */
#include "base/json.h"
#include "base/rng.h"
#include "cli/serve.h"
#include <errno.h>
#include <stdlib.h>
#include <uv.h>

/* NIXL's default for its side channel. */
#define PORT_DEFAULT 5600

static const char *const pull_connectors[] = {
    "NixlConnector", "MooncakeConnectorV1", "MooncakeHybridConnector", "LLMDataDistCMgrConnector"};
static const char *const push_connectors[] = {"MooncakeLayerwiseConnector", "SfaRemoteD2HConnector"};

#define COUNT(a) (sizeof(a) / sizeof(*(a)))

static bool is_one_of(struct slice text, const char *const *names, size_t count) {
        for (size_t i = 0; i < count; i++)
                if (slice_is(text, names[i]))
                        return true;
        return false;
}

static int read_connector(struct slice name, struct engine_transfer *t, struct error *e) {
        t->pushes = is_one_of(name, push_connectors, COUNT(push_connectors));
        if (t->pushes || is_one_of(name, pull_connectors, COUNT(pull_connectors)))
                return 0;
        if (slice_is(name, "MooncakeConnector"))
                return error_set(e, -EINVAL,
                    "kv_connector MooncakeConnector calls prefiller and decoder at once, an order that this engine "
                    "does not "
                    "speak; it pulls with NixlConnector or MooncakeConnectorV1, and pushes with "
                    "MooncakeLayerwiseConnector");
        return error_set(e, -EINVAL,
            "kv_connector is `%.*s`; this engine knows NixlConnector, MooncakeConnectorV1, MooncakeHybridConnector and "
            "LLMDataDistCMgrConnector (pull), MooncakeLayerwiseConnector and SfaRemoteD2HConnector (push)",
            SLICE_ARG(slice_sub(name, 0, 80)));
}

static int read_role(struct slice role, struct engine_transfer *t, struct error *e) {
        t->produces = slice_is(role, "kv_producer") || slice_is(role, "kv_both");
        t->consumes = slice_is(role, "kv_consumer") || slice_is(role, "kv_both");
        if (t->produces || t->consumes)
                return 0;
        return error_set(e, -EINVAL, "kv_role is `%.*s`; it must be kv_producer, kv_consumer or kv_both",
            SLICE_ARG(slice_sub(role, 0, 80)));
}

/* A number, or one in a string, as the guides write it. */
static int read_port(yyjson_val *root, uint16_t *ret_port, struct error *e) {
        yyjson_val *v = json_get(root, "kv_port");
        const char *text = json_slice(v).ptr ? yyjson_get_str(v) : NULL, *environment = NULL;
        int64_t port = PORT_DEFAULT;
        char *end;

        if (!v)
                text = environment = getenv("VLLM_NIXL_SIDE_CHANNEL_PORT");
        if (text) {
                port = strtoll(text, &end, 10);
                if (end == text || *end)
                        port = -1;
        } else if (v && json_to_i64(v, &port) < 0)
                port = -1;
        if (port < 1 || port > 65535)
                return error_set(e, -EINVAL, "%s must be a port, 1 to 65535",
                    environment ? "VLLM_NIXL_SIDE_CHANNEL_PORT" : "kv_port");
        *ret_port = (uint16_t)port;
        return 0;
}

/* The first address of this machine that others may reach; this machine's own, when there is none. */
static const char *own_address(struct arena *arena) {
        uv_interface_address_t *list;
        char text[INET6_ADDRSTRLEN] = "127.0.0.1";
        int count;

        if (uv_interface_addresses(&list, &count) == 0) {
                for (int i = 0; i < count; i++)
                        if (!list[i].is_internal && list[i].address.address4.sin_family == AF_INET) {
                                uv_ip4_name(&list[i].address.address4, text, sizeof(text));
                                break;
                        }
                uv_free_interface_addresses(list, count);
        }
        return arena_copy(arena, slice_str(text)).ptr;
}

static bool is_address(const char *host) {
        struct sockaddr_in6 any;

        return uv_ip4_addr(host, 0, (struct sockaddr_in *)&any) == 0 || uv_ip6_addr(host, 0, &any) == 0;
}

/* Where decoders are told to fetch, and where this engine listens. */
static int choose_host(
    struct slice configured, const char *api_host, struct arena *arena, const char **ret_host, struct error *e) {
        const char *host = getenv("VLLM_NIXL_SIDE_CHANNEL_HOST"), *where = "VLLM_NIXL_SIDE_CHANNEL_HOST";

        if (configured.len) {
                host = arena_copy(arena, configured).ptr;
                where = "kv_connector_extra_config.host";
        }
        if (!host || !*host) {
                bool any =
                    !api_host || !strcmp(api_host, "0.0.0.0") || !strcmp(api_host, "::") || !is_address(api_host);

                host = any ? own_address(arena) : api_host;
        }
        if (!host)
                return error_set(e, -ENOMEM, "out of memory");
        if (!is_address(host))
                return error_set(e, -EINVAL, "%s is `%s`; it must be an IP address of this machine", where, host);
        *ret_host = host;
        return 0;
}

static int read_policy(struct slice policy, struct engine_transfer *t, struct error *e) {
        t->recompute = slice_is(policy, "recompute");
        if (policy.len == 0 || t->recompute || slice_is(policy, "fail"))
                return 0;
        return error_set(e, -EINVAL, "kv_load_failure_policy is `%.*s`; it must be fail or recompute",
            SLICE_ARG(slice_sub(policy, 0, 80)));
}

static int read_extra(yyjson_val *extra, struct engine_transfer *t, struct error *e) {
        struct slice transport = json_get_slice(extra, "transport");
        int64_t lease = json_get_i64(extra, "lease_seconds", 0);

        if (transport.len && !slice_is(transport, "auto") && !slice_is(transport, "tcp") && !slice_is(transport, "ucx"))
                return error_set(e, -EINVAL,
                    "kv_connector_extra_config.transport is `%.*s`; it must be auto (memory of the same machine is "
                    "read "
                    "directly, RDMA is used where there is any), tcp or ucx",
                    SLICE_ARG(slice_sub(transport, 0, 80)));
        if (lease < 0 || lease > 86400)
                return error_set(e, -EINVAL, "kv_connector_extra_config.lease_seconds must lie in 1 to 86400");
        t->way = slice_is(transport, "tcp")   ? COMM_WAY_STREAM
                 : slice_is(transport, "ucx") ? COMM_WAY_UCX
                                              : COMM_WAY_BEST;
        t->checksum = json_get_bool(extra, "checksum", false);
        t->lease_ms = (unsigned)lease * 1000;
        return 0;
}

static int read_id(struct slice id, struct arena *arena, const char **ret_id, struct error *e) {
        char fresh[33];

        if (id.len > COMM_NAME_MAX)
                return error_set(e, -EINVAL, "engine_id may have at most %u characters", COMM_NAME_MAX);
        rng_hex(fresh, 16);
        *ret_id = arena_copy(arena, id.len ? id : slice_of(fresh, 32)).ptr;
        return *ret_id ? 0 : error_set(e, -ENOMEM, "out of memory");
}

int serve_read_transfer(const char *json, const char *api_host, struct arena *arena,
    struct engine_transfer *ret_transfer, struct error *e) {
        struct engine_transfer t = {0};
        yyjson_doc *doc;
        yyjson_val *root, *extra;
        int r = json_parse(slice_str(json), &doc, e);

        if (r < 0)
                return error_prefix(e, r, "--kv-transfer-config");
        root = yyjson_doc_get_root(doc);
        extra = json_get(root, "kv_connector_extra_config");
        r = yyjson_is_obj(root) ? read_connector(json_get_slice(root, "kv_connector"), &t, e)
                                : error_set(e, -EINVAL, "not a JSON object: %.100s", json);
        if (r == 0)
                r = read_role(json_get_slice(root, "kv_role"), &t, e);
        if (r == 0)
                r = read_port(root, &t.port, e);
        if (r == 0)
                r = choose_host(json_get_slice(extra, "host"), api_host, arena, &t.host, e);
        if (r == 0)
                r = read_policy(json_get_slice(root, "kv_load_failure_policy"), &t, e);
        if (r == 0)
                r = read_extra(extra, &t, e);
        if (r == 0)
                r = read_id(json_get_slice(root, "engine_id"), arena, &t.engine_id, e);
        yyjson_doc_free(doc);
        if (r < 0)
                return error_prefix(e, r, "--kv-transfer-config");
        *ret_transfer = t;
        return 0;
}
