/* cluster.c - the cluster file's schema as tables, and reading it. What must hold between values is in plan.c. */
#include "base/buf.h"
#include "base/file.h"
#include "cluster/tree.h"
#include <errno.h>
#include <stdlib.h>

static const char *const engine_kinds[] = {"embedded", "vllm-ascend", "vllm", "template", NULL};
static const char *const launchers[] = {"launch_online_dp", "launch_dp_program", NULL};
static const char *const platforms[] = {"cpu", "ascend-a2", "ascend-a3", "ascend-a5", "cuda", NULL};

const char *role_name(enum role r) {
        return r == ROLE_PREFILL ? "prefill" : "decode";
}

const char *engine_kind_name(enum engine_kind k) {
        return engine_kinds[k];
}

const char *platform_name(enum platform p) {
        return platforms[p];
}

#define AT(type, member) offsetof(type, member)
#define NO_PLACE         SIZE_MAX
#define PORT_MAX         65535
#define FIELD_COUNT(t)   (sizeof(t) / sizeof(*(t)))

/* ---- model, engine, supervise ----------------------------------------------------------------------------------------- */

struct speculative {
        struct slice method;
        int64_t tokens;
};
static const struct field speculative_fields[] = {
    {"method", FIELD_TEXT, AT(struct speculative, method), NO_PLACE},
    {"tokens", FIELD_INTEGER, AT(struct speculative, tokens), NO_PLACE, .required = true, .min = 0, .max = 64},
};

static void read_speculative(struct reader *r, yaml_node_t *value, void *target) {
        struct cluster *c = target;
        struct speculative s = {SLICE_NONE, 0};

        read_mapping(r, value, "model.speculative", speculative_fields, FIELD_COUNT(speculative_fields), &s);
        c->model.speculative_method = s.method;
        c->model.speculative_tokens = s.tokens;
}

static const struct field model_fields[] = {
    {"path", FIELD_TEXT, AT(struct cluster, model.path), AT(struct cluster, model.path_at), .required = true},
    {"served_name", FIELD_TEXT, AT(struct cluster, model.served_name), NO_PLACE},
    {"max_len", FIELD_INTEGER, AT(struct cluster, model.max_len), NO_PLACE, .min = 1, .max = 1 << 24},
    {"quantization", FIELD_TEXT, AT(struct cluster, model.quantization), NO_PLACE},
    {"dtype", FIELD_TEXT, AT(struct cluster, model.dtype), NO_PLACE},
    {"speculative", FIELD_CUSTOM, 0, NO_PLACE, .read = read_speculative},
};

static void read_model(struct reader *r, yaml_node_t *value, void *target) {
        read_mapping(r, value, "model", model_fields, FIELD_COUNT(model_fields), target);
}

static const struct field engine_fields[] = {
    {"kind", FIELD_CHOICE, AT(struct cluster, engine.kind), AT(struct cluster, engine.kind_at), .required = true,
        .choices = engine_kinds},
    {"version", FIELD_TEXT, AT(struct cluster, engine.version), AT(struct cluster, engine.version_at)},
    {"template", FIELD_TEXT, AT(struct cluster, engine.template_path), NO_PLACE},
    {"launcher", FIELD_CHOICE, AT(struct cluster, engine.launcher), NO_PLACE, .choices = launchers},
    {"connector", FIELD_TEXT, AT(struct cluster, engine.connector), AT(struct cluster, engine.connector_at)},
    {"binary", FIELD_TEXT, AT(struct cluster, engine.binary), NO_PLACE},
    {"ranktable", FIELD_TEXT, AT(struct cluster, engine.ranktable), NO_PLACE},
    {"env", FIELD_SETTINGS, AT(struct cluster, engine.env), NO_PLACE},
    {"args", FIELD_SETTINGS, AT(struct cluster, engine.args), NO_PLACE},
};

static void read_engine(struct reader *r, yaml_node_t *value, void *target) {
        read_mapping(r, value, "engine", engine_fields, FIELD_COUNT(engine_fields), target);
}

static const struct field supervise_fields[] = {
    {"state_dir", FIELD_TEXT, AT(struct cluster, supervise.state_dir), NO_PLACE},
    {"ready_seconds", FIELD_INTEGER, AT(struct cluster, supervise.ready_seconds), NO_PLACE, .min = 1, .max = 86400},
    {"stop_seconds", FIELD_INTEGER, AT(struct cluster, supervise.stop_seconds), NO_PLACE, .min = 0, .max = 3600},
    {"restarts", FIELD_INTEGER, AT(struct cluster, supervise.restarts), NO_PLACE, .min = 0, .max = 1000000},
    {"log_bytes", FIELD_INTEGER, AT(struct cluster, supervise.log_bytes), NO_PLACE, .min = 4096, .max = 1ll << 40},
    {"log_files", FIELD_INTEGER, AT(struct cluster, supervise.log_files), NO_PLACE, .min = 1, .max = 1000},
    {"baton", FIELD_TEXT, AT(struct cluster, supervise.baton), NO_PLACE},
};

static void read_supervise(struct reader *r, yaml_node_t *value, void *target) {
        read_mapping(r, value, "supervise", supervise_fields, FIELD_COUNT(supervise_fields), target);
}

/* ---- nodes ------------------------------------------------------------------------------------------------------------ */

/* `devices: 16`, or `devices: 8-15` for a node that shares its machine with others. */
static void read_devices(struct reader *r, yaml_node_t *value, void *target) {
        struct cluster_node *node = target;
        struct slice rest, first, last;
        int64_t from, to;

        node->devices_at = node_place(value);
        if (!expect_kind(r, value, YAML_SCALAR_NODE, "devices"))
                return;
        rest = node_text(value);
        if (slice_to_i64(rest, &to) == 0 && to >= 0 && to <= DEVICES_MAX) {
                node->devices = to;
                return;
        }
        slice_split(&rest, '-', &first);
        last = rest;
        if (slice_to_i64(first, &from) == 0 && slice_to_i64(last, &to) == 0 && from >= 0 && from <= to &&
            to < DEVICES_MAX) {
                node->first_device = from;
                node->devices = to - from + 1;
        } else
                findings_add(r->findings, SEVERITY_ERROR, "Y05", node->devices_at,
                    "`devices` is `%.*s`, it must be a number (16) or a range (8-15) of at most %d",
                    SLICE_ARG(node_text(value)), DEVICES_MAX);
}

static const struct field node_fields[] = {
    {"ip", FIELD_TEXT, AT(struct cluster_node, ip), AT(struct cluster_node, ip_at), .required = true},
    {"nic", FIELD_TEXT, AT(struct cluster_node, nic), NO_PLACE},
    {"ssh", FIELD_TEXT, AT(struct cluster_node, ssh), NO_PLACE},
    {"devices", FIELD_CUSTOM, 0, NO_PLACE, .read = read_devices},
    {"platform", FIELD_CHOICE, AT(struct cluster_node, platform), AT(struct cluster_node, platform_at),
        .choices = platforms},
    {"env", FIELD_SETTINGS, AT(struct cluster_node, env), NO_PLACE},
    {"args", FIELD_SETTINGS, AT(struct cluster_node, args), NO_PLACE},
};

static bool name_is_good(struct slice s) {
        if (s.len == 0 || s.len > 63 || s.ptr[0] == '-')
                return false;
        for (size_t i = 0; i < s.len; i++) {
                char c = s.ptr[i];

                if (!((c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '-' ||
                        c == '_'))
                        return false;
        }
        return true;
}

static int compare_names(const void *a, const void *b, void *nodes) {
        const struct cluster_node *n = nodes;

        return slice_cmp(n[*(const uint32_t *)a].name, n[*(const uint32_t *)b].name);
}

static int64_t find_node(const struct cluster *c, const uint32_t *order, struct slice name) {
        size_t low = 0, high = c->node_count;

        while (low < high) {
                size_t middle = (low + high) / 2;
                int order_of = slice_cmp(c->nodes[order[middle]].name, name);

                if (order_of == 0)
                        return order[middle];
                if (order_of < 0)
                        low = middle + 1;
                else
                        high = middle;
        }
        return -1;
}

static void read_nodes(struct reader *r, yaml_node_t *value, void *target) {
        struct cluster *c = target;
        struct cluster_node *nodes;
        size_t count;

        if (!expect_kind(r, value, YAML_MAPPING_NODE, "nodes"))
                return;
        count = (size_t)(value->data.mapping.pairs.top - value->data.mapping.pairs.start);
        if (count > CLUSTER_NODES_MAX) {
                findings_add(r->findings, SEVERITY_ERROR, "Y05", node_place(value),
                    "%zu nodes, at most %u are supported", count, CLUSTER_NODES_MAX);
                return;
        }
        nodes = arena_array(r->arena, count + 1, sizeof(*nodes));
        if (!nodes) {
                r->findings->failed = true;
                return;
        }
        for (size_t i = 0; i < count; i++) {
                yaml_node_t *key = tree_node(r->tree, value->data.mapping.pairs.start[i].key);
                char where[96];

                nodes[i].name = arena_copy(r->arena, node_text(key));
                nodes[i].at = node_place(key);
                nodes[i].devices = -1;
                nodes[i].platform = -1;
                if (!name_is_good(nodes[i].name))
                        findings_add(r->findings, SEVERITY_ERROR, "Y07", nodes[i].at,
                            "`%.*s` is no usable node name: up to 63 letters, digits, '-' and '_'",
                            SLICE_ARG(nodes[i].name));
                snprintf(where, sizeof(where), "nodes.%.*s", SLICE_ARG(slice_sub(nodes[i].name, 0, 64)));
                read_mapping(r, tree_node(r->tree, value->data.mapping.pairs.start[i].value), where, node_fields,
                    FIELD_COUNT(node_fields), &nodes[i]);
        }
        c->nodes = nodes;
        c->node_count = count;
}

/* Nodes sorted by name for look-up: 1,024 named in groups must not cost a million comparisons. */
static uint32_t *index_nodes(struct reader *r) {
        struct cluster *c = r->cluster;
        uint32_t *order = arena_array(r->arena, c->node_count + 1, sizeof(*order));

        if (!order) {
                r->findings->failed = true;
                return NULL;
        }
        for (size_t i = 0; i < c->node_count; i++)
                order[i] = (uint32_t)i;
        qsort_r(order, c->node_count, sizeof(*order), compare_names, (void *)c->nodes);
        for (size_t i = 1; i < c->node_count; i++)
                if (slice_eq(c->nodes[order[i]].name, c->nodes[order[i - 1]].name))
                        findings_add(r->findings, SEVERITY_ERROR, "Y07", c->nodes[order[i]].at,
                            "the node name `%.*s` stands twice (first in line %u)", SLICE_ARG(c->nodes[order[i]].name),
                            c->nodes[order[i - 1]].at.line);
        return order;
}

/* ---- prefill, decode, gateway ------------------------------------------------------------------------------------------ */

/* Groups and the gateway's node name nodes, which may stand later in the file: what they wrote is kept until all of the
 * file is read. */
struct pending {
        yaml_node_t *groups[2], *gateway_node;
};
struct reader_with_pending {
        struct reader r;
        struct pending pending;
};

static void keep_groups(struct reader *r, yaml_node_t *value, void *target) {
        ((struct reader_with_pending *)r)->pending.groups[((struct cluster_role *)target)->role] = value;
}

static void keep_gateway_node(struct reader *r, yaml_node_t *value, void *target) {
        ((struct reader_with_pending *)r)->pending.gateway_node = value;
}

static const struct field rank_fields[] = {
    {"env", FIELD_SETTINGS, AT(struct cluster_rank, env), NO_PLACE},
    {"args", FIELD_SETTINGS, AT(struct cluster_rank, args), NO_PLACE},
};

static void read_ranks(struct reader *r, yaml_node_t *value, void *target) {
        struct cluster_role *role = target;
        struct cluster_rank *ranks;
        size_t count;

        if (!expect_kind(r, value, YAML_MAPPING_NODE, "ranks"))
                return;
        count = (size_t)(value->data.mapping.pairs.top - value->data.mapping.pairs.start);
        ranks = arena_array(r->arena, count + 1, sizeof(*ranks));
        if (!ranks) {
                r->findings->failed = true;
                return;
        }
        for (size_t i = 0; i < count; i++) {
                yaml_node_t *key = tree_node(r->tree, value->data.mapping.pairs.start[i].key);

                ranks[i].name = arena_copy(r->arena, node_text(key));
                ranks[i].at = node_place(key);
                read_mapping(r, tree_node(r->tree, value->data.mapping.pairs.start[i].value), "ranks", rank_fields,
                    FIELD_COUNT(rank_fields), &ranks[i]);
        }
        role->ranks = ranks;
        role->rank_count = count;
}

static const struct field role_fields[] = {
    {"groups", FIELD_CUSTOM, 0, NO_PLACE, .required = true, .read = keep_groups},
    {"dp", FIELD_INTEGER, AT(struct cluster_role, dp), AT(struct cluster_role, dp_at), .min = 1, .max = 65536},
    {"tp", FIELD_INTEGER, AT(struct cluster_role, tp), AT(struct cluster_role, tp_at), .min = 1, .max = 1024},
    {"pp", FIELD_INTEGER, AT(struct cluster_role, pp), AT(struct cluster_role, pp_at), .min = 1, .max = 1024},
    {"pcp", FIELD_INTEGER, AT(struct cluster_role, pcp), AT(struct cluster_role, pcp_at), .min = 1, .max = 1024},
    {"host", FIELD_TEXT, AT(struct cluster_role, host), NO_PLACE},
    {"api_port", FIELD_INTEGER, AT(struct cluster_role, api_port), AT(struct cluster_role, api_port_at), .min = 1,
        .max = PORT_MAX},
    {"dp_port", FIELD_INTEGER, AT(struct cluster_role, dp_port), AT(struct cluster_role, dp_port_at), .min = 1,
        .max = PORT_MAX},
    {"kv_port", FIELD_INTEGER, AT(struct cluster_role, kv_port), AT(struct cluster_role, kv_port_at), .min = 1,
        .max = PORT_MAX},
    {"events_port", FIELD_INTEGER, AT(struct cluster_role, events_port), AT(struct cluster_role, events_port_at),
        .min = 1, .max = PORT_MAX},
    {"env", FIELD_SETTINGS, AT(struct cluster_role, env), NO_PLACE},
    {"args", FIELD_SETTINGS, AT(struct cluster_role, args), NO_PLACE},
    {"ranks", FIELD_CUSTOM, 0, NO_PLACE, .read = read_ranks},
};

static void read_role(struct reader *r, yaml_node_t *value, struct cluster_role *role) {
        role->present = true;
        role->at = node_place(value);
        read_mapping(r, value, role_name(role->role), role_fields, FIELD_COUNT(role_fields), role);
}

static void read_prefill(struct reader *r, yaml_node_t *value, void *target) {
        read_role(r, value, &((struct cluster *)target)->roles[ROLE_PREFILL]);
}

static void read_decode(struct reader *r, yaml_node_t *value, void *target) {
        read_role(r, value, &((struct cluster *)target)->roles[ROLE_DECODE]);
}

static const struct field gateway_fields[] = {
    {"node", FIELD_CUSTOM, 0, NO_PLACE, .read = keep_gateway_node},
    {"host", FIELD_TEXT, AT(struct cluster, gateway.host), NO_PLACE},
    {"port", FIELD_INTEGER, AT(struct cluster, gateway.port), AT(struct cluster, gateway.port_at), .min = 1,
        .max = PORT_MAX},
    {"policy", FIELD_TEXT, AT(struct cluster, gateway.policy), NO_PLACE},
    {"prefill_policy", FIELD_TEXT, AT(struct cluster, gateway.prefill_policy), NO_PLACE},
    {"decode_policy", FIELD_TEXT, AT(struct cluster, gateway.decode_policy), NO_PLACE},
    {"connector", FIELD_TEXT, AT(struct cluster, gateway.connector), AT(struct cluster, gateway.connector_at)},
    {"args", FIELD_SETTINGS, AT(struct cluster, gateway.args), NO_PLACE},
};

static void read_gateway(struct reader *r, yaml_node_t *value, void *target) {
        struct cluster *c = target;

        c->gateway.present = true;
        c->gateway.at = node_place(value);
        read_mapping(r, value, "gateway", gateway_fields, FIELD_COUNT(gateway_fields), target);
}

static int64_t resolve_node(struct reader *r, const uint32_t *order, yaml_node_t *n, const char *where) {
        int64_t found;
        struct finding *f;

        if (!expect_kind(r, n, YAML_SCALAR_NODE, where))
                return -1;
        found = find_node(r->cluster, order, node_text(n));
        if (found < 0) {
                f = findings_add(r->findings, SEVERITY_ERROR, "Y08", node_place(n), "no node is named `%.*s`",
                    SLICE_ARG(node_text(n)));
                finding_cure(r->findings, f, "add it under `nodes`, or correct the name");
        }
        return found;
}

static bool resolve_group_nodes(struct reader *r, const uint32_t *order, yaml_node_t *list, struct cluster_group *g) {
        size_t count;
        uint32_t *nodes;

        if (!expect_kind(r, list, YAML_SEQUENCE_NODE, "groups"))
                return false;
        count = (size_t)(list->data.sequence.items.top - list->data.sequence.items.start);
        if (count == 0) {
                findings_add(r->findings, SEVERITY_ERROR, "Y05", g->at, "a group needs at least one node");
                return false;
        }
        nodes = arena_array(r->arena, count, sizeof(*nodes));
        if (!nodes) {
                r->findings->failed = true;
                return false;
        }
        for (size_t i = 0; i < count; i++) {
                int64_t found =
                    resolve_node(r, order, tree_node(r->tree, list->data.sequence.items.start[i]), "groups");

                if (found < 0)
                        return false;
                nodes[i] = (uint32_t)found;
        }
        g->nodes = nodes;
        g->count = count;
        return true;
}

/* A group that says more than its nodes: {nodes: [d0, d1], kv_port: 36100, args: {…}}. */
struct written_group {
        struct cluster_group group;
        yaml_node_t *nodes;
};

static void keep_group_nodes(struct reader *r, yaml_node_t *value, void *target) {
        (void)r;
        ((struct written_group *)target)->nodes = value;
}

static const struct field group_fields[] = {
    {"nodes", FIELD_CUSTOM, 0, NO_PLACE, .required = true, .read = keep_group_nodes},
    {"api_port", FIELD_INTEGER, AT(struct cluster_group, api_port), AT(struct cluster_group, api_port_at), .min = 1,
        .max = PORT_MAX},
    {"dp_port", FIELD_INTEGER, AT(struct cluster_group, dp_port), AT(struct cluster_group, dp_port_at), .min = 1,
        .max = PORT_MAX},
    {"kv_port", FIELD_INTEGER, AT(struct cluster_group, kv_port), AT(struct cluster_group, kv_port_at), .min = 1,
        .max = PORT_MAX},
    {"env", FIELD_SETTINGS, AT(struct cluster_group, env), NO_PLACE},
    {"args", FIELD_SETTINGS, AT(struct cluster_group, args), NO_PLACE},
};

static bool resolve_group(struct reader *r, const uint32_t *order, yaml_node_t *n, struct cluster_group *g) {
        struct written_group w = {.group = {.api_port = -1, .dp_port = -1, .kv_port = -1, .at = node_place(n)}};

        if (n->type == YAML_MAPPING_NODE)
                read_mapping(r, n, "groups", group_fields, FIELD_COUNT(group_fields), &w);
        else
                w.nodes = n;
        *g = w.group;
        return w.nodes && resolve_group_nodes(r, order, w.nodes, g);
}

static void resolve_groups(struct reader *r, const uint32_t *order, yaml_node_t *n, struct cluster_role *role) {
        size_t count;
        struct cluster_group *groups;

        if (!expect_kind(r, n, YAML_SEQUENCE_NODE, "groups"))
                return;
        count = (size_t)(n->data.sequence.items.top - n->data.sequence.items.start);
        groups = arena_array(r->arena, count + 1, sizeof(*groups));
        if (!groups) {
                r->findings->failed = true;
                return;
        }
        if (count == 0)
                findings_add(
                    r->findings, SEVERITY_ERROR, "Y05", node_place(n), "`%s.groups` is empty", role_name(role->role));
        for (size_t i = 0; i < count; i++)
                if (!resolve_group(r, order, tree_node(r->tree, n->data.sequence.items.start[i]), &groups[i]))
                        return;
        role->groups = groups;
        role->group_count = count;
}

/* ---- the file ---------------------------------------------------------------------------------------------------------- */

static const struct field file_fields[] = {
    {"model", FIELD_CUSTOM, 0, AT(struct cluster, model.at), .required = true, .read = read_model},
    {"engine", FIELD_CUSTOM, 0, AT(struct cluster, engine.at), .required = true, .read = read_engine},
    {"platform", FIELD_CHOICE, AT(struct cluster, platform), NO_PLACE, .choices = platforms},
    {"nodes", FIELD_CUSTOM, 0, NO_PLACE, .required = true, .read = read_nodes},
    {"prefill", FIELD_CUSTOM, 0, NO_PLACE, .read = read_prefill},
    {"decode", FIELD_CUSTOM, 0, NO_PLACE, .required = true, .read = read_decode},
    {"gateway", FIELD_CUSTOM, 0, NO_PLACE, .read = read_gateway},
    {"supervise", FIELD_CUSTOM, 0, NO_PLACE, .read = read_supervise},
};

static void set_defaults(struct cluster *c) {
        c->model.max_len = -1;
        c->engine.launcher = -1;
        for (int role = 0; role < 2; role++) {
                c->roles[role] =
                    (struct cluster_role){.role = (enum role)role, .dp = 1, .tp = 1, .pp = 1, .pcp = 1, .kv_port = -1};
                c->roles[role].host = SLICE_LIT("0.0.0.0");
                c->roles[role].api_port = role == ROLE_PREFILL ? 9000 : 9500;
                c->roles[role].dp_port = role == ROLE_PREFILL ? 13395 : 13595;
        }
        c->gateway.host = SLICE_LIT("0.0.0.0");
        c->gateway.port = 8000;
        c->supervise.ready_seconds = 1800;
        c->supervise.stop_seconds = 30;
        c->supervise.restarts = 5;
        c->supervise.log_bytes = 64 << 20;
        c->supervise.log_files = 4;
}

int cluster_parse(
    const char *file, struct slice text, struct arena *arena, struct cluster **ret_cluster, struct findings *findings) {
        struct tree tree;
        struct reader_with_pending rp = {0};
        struct reader *r = &rp.r;
        struct cluster *c = ARENA_NEW(arena, struct cluster);
        uint32_t *order;
        int result;

        if (!findings->arena)
                findings->arena = arena;
        if (!c)
                return -ENOMEM;
        result = tree_load(&tree, text, findings);
        if (result < 0)
                return result;
        c->file = arena_copy(arena, slice_str(file)).ptr;
        set_defaults(c);
        *r = (struct reader){&tree, arena, findings, c};
        if (!tree_root(&tree)) {
                findings_add(findings, SEVERITY_ERROR, "Y06", (struct place){1, 1}, "the file is empty");
                goto out;
        }
        read_mapping(r, tree_root(&tree), "", file_fields, FIELD_COUNT(file_fields), c);
        order = index_nodes(r);
        if (!order)
                goto out;
        for (int role = 0; role < 2; role++)
                if (rp.pending.groups[role])
                        resolve_groups(r, order, rp.pending.groups[role], &c->roles[role]);
        c->gateway.node = -1;
        if (rp.pending.gateway_node)
                c->gateway.node = resolve_node(r, order, rp.pending.gateway_node, "gateway.node");
        else if (c->gateway.present) {
                struct cluster_role *first =
                    c->roles[ROLE_PREFILL].group_count ? &c->roles[ROLE_PREFILL] : &c->roles[ROLE_DECODE];

                c->gateway.node = first->group_count ? (int64_t)first->groups[0].nodes[0] : -1;
        }
out:
        tree_free(&tree);
        if (findings->failed)
                return -ENOMEM;
        if (findings_count(findings, SEVERITY_ERROR))
                return -EINVAL;
        *ret_cluster = c;
        return 0;
}

int cluster_read(
    const char *path, struct arena *arena, struct cluster **ret_cluster, struct findings *findings, struct error *e) {
        struct buf text = {0};
        int r = file_read_whole(path, CLUSTER_FILE_MAX, &text, e);

        if (r == 0)
                r = cluster_parse(path, buf_slice(&text), arena, ret_cluster, findings);
        buf_free(&text);
        return r;
}
