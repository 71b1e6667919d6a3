/* plan.c - from the cluster file to ranks, ports and commands, and the rules that must hold between them. */
#include "base/hash.h"
#include "base/json.h"
#include "cluster/command.h"
#include <errno.h>
#include <stdlib.h>

struct planner {
        const struct cluster *c;
        const char *program;
        struct arena *arena;
        struct findings *findings;
        struct plan_rank *ranks;
        size_t rank_count;
        uint32_t *host_of; /* node -> number of its address */
        uint32_t hosts;
        uint32_t (*at_host)[2];         /* host -> ranks of each role so far */
        uint32_t (*masters_at_host)[2]; /* host -> DP groups of each role mastered there so far */
        struct port_use *ports;
        size_t port_count;
        bool failed;
};

/* ---- nodes, addresses, devices ------------------------------------------------------------------------------------------ */

static int compare_ips(const void *a, const void *b, void *nodes) {
        const struct cluster_node *n = nodes;

        return slice_cmp(n[*(const uint32_t *)a].ip, n[*(const uint32_t *)b].ip);
}

static void number_hosts(struct planner *p) {
        size_t count = p->c->node_count;
        uint32_t *order = arena_array(p->arena, count + 1, sizeof(*order));

        p->host_of = arena_array(p->arena, count + 1, sizeof(*p->host_of));
        p->at_host = arena_array(p->arena, count + 1, sizeof(*p->at_host));
        p->masters_at_host = arena_array(p->arena, count + 1, sizeof(*p->masters_at_host));
        if (!order || !p->host_of || !p->at_host || !p->masters_at_host) {
                p->failed = true;
                return;
        }
        for (size_t i = 0; i < count; i++)
                order[i] = (uint32_t)i;
        qsort_r(order, count, sizeof(*order), compare_ips, (void *)p->c->nodes);
        for (size_t i = 0; i < count; i++) {
                if (i && !slice_eq(p->c->nodes[order[i]].ip, p->c->nodes[order[i - 1]].ip))
                        p->hosts++;
                p->host_of[order[i]] = p->hosts;
        }
        p->hosts++;
}

static int64_t devices_of(const struct cluster *c, const struct cluster_node *n) {
        static const int64_t by_platform[] = {[PLATFORM_CPU] = -1,
            [PLATFORM_ASCEND_A2] = 8,
            [PLATFORM_ASCEND_A3] = 16,
            [PLATFORM_ASCEND_A5] = 8,
            [PLATFORM_CUDA] = 8};

        return n->devices >= 0 ? n->devices : by_platform[c->platform];
}

/* Each node carries one group; only CPU "nodes" that are names for one address may share it. */
static void check_node_use(struct planner *p) {
        const struct cluster_group **used = arena_array(p->arena, p->c->node_count + 1, sizeof(*used));

        if (!used) {
                p->failed = true;
                return;
        }
        for (int role = 0; role < 2; role++)
                for (size_t g = 0; g < p->c->roles[role].group_count; g++) {
                        const struct cluster_group *group = &p->c->roles[role].groups[g];

                        for (size_t i = 0; i < group->count; i++) {
                                uint32_t node = group->nodes[i];

                                if (used[node]) {
                                        struct finding *f = findings_add(p->findings, SEVERITY_ERROR, "D02", group->at,
                                            "node %.*s is in this group and in the one of line %u",
                                            SLICE_ARG(p->c->nodes[node].name), used[node]->at.line);

                                        finding_cure(p->findings, f,
                                            "give each group nodes of its own (two names may have one ip)");
                                } else
                                        used[node] = group;
                        }
                }
}

/* ---- ports -------------------------------------------------------------------------------------------------------------- */

struct port_use {
        uint32_t host, port;
        const char *what; /* "API port of d0.3" */
        struct place at;
};

/* What Linux hands to outgoing connections unless told otherwise. */
#define EPHEMERAL_FIRST 32768u
#define EPHEMERAL_LAST  60999u

static void use_port(struct planner *p, uint32_t host, int64_t port, const char *what, struct place at) {
        if (!what) {
                p->failed = true;
                return;
        }
        if (port < 1 || port > 65535) {
                struct finding *f = findings_add(
                    p->findings, SEVERITY_ERROR, "P02", at, "%s would be %lld, beyond 65535", what, (long long)port);

                finding_cure(p->findings, f, "begin lower: ports of later ranks are counted up from this one");
                return;
        }
        p->ports[p->port_count++] = (struct port_use){host, (uint32_t)port, what, at};
}

static int compare_ports(const void *pa, const void *pb) {
        const struct port_use *a = pa, *b = pb;

        if (a->host != b->host)
                return a->host < b->host ? -1 : 1;
        if (a->port != b->port)
                return a->port < b->port ? -1 : 1;
        return strcmp(a->what, b->what);
}

static void check_ports(struct planner *p) {
        bool ephemeral_said = false;

        qsort(p->ports, p->port_count, sizeof(*p->ports), compare_ports);
        for (size_t i = 0; i < p->port_count; i++) {
                const struct port_use *u = &p->ports[i], *before = i ? &p->ports[i - 1] : NULL;

                if (before && before->host == u->host && before->port == u->port) {
                        struct finding *f = findings_add(p->findings, SEVERITY_ERROR, "P01", u->at,
                            "port %u is planned twice at one address: %s and %s (line %u)", u->port, u->what,
                            before->what, before->at.line);

                        finding_cure(p->findings, f, "choose port ranges that do not meet");
                }
                if (!ephemeral_said && p->c->platform != PLATFORM_CPU && u->port >= EPHEMERAL_FIRST &&
                    u->port <= EPHEMERAL_LAST) {
                        struct finding *f = findings_add(p->findings, SEVERITY_WARNING, "P03", u->at,
                            "port %u (%s) lies in %u..%u, which Linux hands out to outgoing connections", u->port,
                            u->what, EPHEMERAL_FIRST, EPHEMERAL_LAST);

                        finding_cure(p->findings, f, "sysctl net.ipv4.ip_local_reserved_ports, or a port below %u",
                            EPHEMERAL_FIRST);
                        ephemeral_said = true;
                }
        }
}

/* ---- ranks -------------------------------------------------------------------------------------------------------------- */

static struct slice format_slice(struct planner *p, const char *format, ...) __attribute__((format(printf, 2, 3)));
static struct slice format_slice(struct planner *p, const char *format, ...) {
        va_list args;
        struct buf text = {0};
        struct slice s;

        va_start(args, format);
        buf_vprintf(&text, format, args);
        va_end(args);
        s = arena_copy(p->arena, buf_slice(&text));
        if (!s.ptr || !buf_ok(&text))
                p->failed = true;
        buf_free(&text);
        return s;
}

static struct slice url_of(struct planner *p, struct slice ip, uint32_t port) {
        bool v6 = slice_find(ip, ':', 0) < ip.len;

        return format_slice(p, "http://%s%.*s%s:%u", v6 ? "[" : "", SLICE_ARG(ip), v6 ? "]" : "", port);
}

static void plan_rank(struct planner *p, const struct cluster_role *role, uint32_t group_index, uint32_t node,
    uint32_t local, uint32_t dp_rank, uint32_t dp_port) {
        const struct cluster *c = p->c;
        const struct cluster_group *group = &role->groups[group_index];
        uint32_t host = p->host_of[node], ordinal = p->at_host[host][role->role]++;
        struct plan_rank *rank = &p->ranks[p->rank_count++];
        int64_t api = role->api_port + ordinal, kv = role->kv_port + ordinal;

        *rank = (struct plan_rank){
            .name = format_slice(p, "%.*s.%u", SLICE_ARG(c->nodes[node].name), local),
            .role = role->role,
            .node = node,
            .group = group_index,
            .local = local,
            .dp_rank = dp_rank,
            .dp_size = (uint32_t)role->dp,
            .tp_size = (uint32_t)role->tp,
            .api_port = (uint16_t)api,
            .kv_port = (uint32_t)kv,
            .dp_port = dp_port,
            .dp_address = c->nodes[group->nodes[0]].ip,
            .first_device = local * (uint32_t)role->tp,
            .device_count = (uint32_t)role->tp,
        };
        rank->url = url_of(p, c->nodes[node].ip, (uint32_t)api);
        use_port(p, host, api, arena_printf(p->arena, "API port of %.*s", SLICE_ARG(rank->name)),
            role->api_port_at.line ? role->api_port_at : role->at);
        if (c->roles[ROLE_PREFILL].present && c->roles[ROLE_DECODE].present)
                use_port(p, host, kv, arena_printf(p->arena, "KV port of %.*s", SLICE_ARG(rank->name)),
                    role->kv_port_at.line ? role->kv_port_at : role->at);
}

static void plan_group(struct planner *p, const struct cluster_role *role, uint32_t index) {
        const struct cluster *c = p->c;
        const struct cluster_group *group = &role->groups[index];
        uint32_t per_node = (uint32_t)(role->dp / (int64_t)group->count), master = p->host_of[group->nodes[0]],
                 dp_rank = 0;
        int64_t dp_port = role->dp_port + p->masters_at_host[master][role->role]++;

        if (role->dp % (int64_t)group->count || per_node == 0) {
                struct finding *f = findings_add(p->findings, SEVERITY_ERROR, "D01", group->at,
                    "%s.dp is %lld, which does not divide over the %zu nodes of this group", role_name(role->role),
                    (long long)role->dp, group->count);

                finding_cure(p->findings, f, "dp: a multiple of %zu", group->count);
                return;
        }
        if (role->dp > 1)
                use_port(p, master, dp_port,
                    arena_printf(p->arena, "DP port of %s group %u", role_name(role->role), index),
                    role->dp_port_at.line ? role->dp_port_at : role->at);
        for (size_t n = 0; n < group->count; n++) {
                const struct cluster_node *node = &c->nodes[group->nodes[n]];
                int64_t devices = devices_of(c, node);

                if (devices >= 0 && (int64_t)per_node * role->tp > devices) {
                        struct finding *f =
                            findings_add(p->findings, SEVERITY_ERROR, "D03", role->dp_at.line ? role->dp_at : group->at,
                                "%.*s has %lld devices, but %u ranks of tp %lld need %lld", SLICE_ARG(node->name),
                                (long long)devices, per_node, (long long)role->tp, (long long)per_node * role->tp);

                        finding_cure(p->findings, f, "%s.dp: %lld, or more nodes in the group", role_name(role->role),
                            (long long)(devices / role->tp * (int64_t)group->count));
                        return;
                }
                for (uint32_t local = 0; local < per_node; local++)
                        plan_rank(p, role, index, group->nodes[n], local, dp_rank++, (uint32_t)dp_port);
        }
}

static size_t count_ranks(const struct cluster *c) {
        size_t n = 0;

        for (int role = 0; role < 2; role++)
                n += c->roles[role].group_count * (size_t)c->roles[role].dp;
        return n;
}

static void check_roles(struct planner *p) {
        const struct cluster_role *prefill = &p->c->roles[ROLE_PREFILL], *decode = &p->c->roles[ROLE_DECODE];

        if (prefill->present && prefill->tp < decode->tp) {
                struct finding *f =
                    findings_add(p->findings, SEVERITY_ERROR, "D04", decode->tp_at.line ? decode->tp_at : decode->at,
                        "decode.tp %lld is larger than prefill.tp %lld", (long long)decode->tp, (long long)prefill->tp);

                finding_cure(p->findings, f, "decode.tp: a divisor of %lld", (long long)prefill->tp);
        } else if (prefill->present && prefill->tp % decode->tp) {
                struct finding *f = findings_add(p->findings, SEVERITY_ERROR, "D04",
                    decode->tp_at.line ? decode->tp_at : decode->at, "prefill.tp %lld is no multiple of decode.tp %lld",
                    (long long)prefill->tp, (long long)decode->tp);

                finding_cure(p->findings, f, "decode.tp: a divisor of %lld", (long long)prefill->tp);
        }
        if (p->c->model.speculative_tokens > 8)
                findings_add(p->findings, SEVERITY_WARNING, "M01", p->c->model.at, "%lld draft tokens a step",
                    (long long)p->c->model.speculative_tokens);
}

/* ---- commands ----------------------------------------------------------------------------------------------------------- */

static const char *cstr(struct planner *p, struct slice s) {
        const char *text = arena_copy(p->arena, s).ptr;

        if (!text)
                p->failed = true;
        return text ? text : "";
}

/* The embedded engine: `baton serve` with vLLM's own flags. */
static void command_embedded(struct planner *p, struct plan_rank *rank) {
        const struct cluster *c = p->c;
        const struct cluster_role *role = &c->roles[rank->role];
        const struct cluster_node *node = &c->nodes[rank->node];
        struct command argv = {.arena = p->arena}, env = {.arena = p->arena};
        const char *head[] = {
            c->engine.binary.len ? cstr(p, c->engine.binary) : p->program, "serve", cstr(p, c->model.path), NULL};

        command_set(&argv, "host", "%.*s", SLICE_ARG(role->host));
        command_set(&argv, "port", "%u", rank->api_port);
        if (c->model.served_name.len)
                command_set(&argv, "served-model-name", "%.*s", SLICE_ARG(c->model.served_name));
        if (c->model.max_len > 0)
                command_set(&argv, "max-model-len", "%lld", (long long)c->model.max_len);
        if (c->model.dtype.len)
                command_set(&argv, "dtype", "%.*s", SLICE_ARG(c->model.dtype));
        if (c->model.quantization.len)
                command_set(&argv, "quantization", "%.*s", SLICE_ARG(c->model.quantization));
        if (c->model.speculative_tokens)
                command_set(&argv, "speculative-config", "{\"num_speculative_tokens\":%lld,\"method\":\"%.*s\"}",
                    (long long)c->model.speculative_tokens, SLICE_ARG(c->model.speculative_method));
        if (rank->tp_size > 1)
                command_set(&argv, "tensor-parallel-size", "%u", rank->tp_size);
        if (rank->dp_size > 1) {
                command_set(&argv, "data-parallel-size", "%u", rank->dp_size);
                command_set(&argv, "data-parallel-rank", "%u", rank->dp_rank);
                command_set(&argv, "data-parallel-address", "%.*s", SLICE_ARG(rank->dp_address));
                command_set(&argv, "data-parallel-rpc-port", "%u", rank->dp_port);
                command_switch(&argv, "enable-expert-parallel");
        }
        if (c->roles[ROLE_PREFILL].present)
                command_set(&argv, "kv-transfer-config",
                    "{\"kv_connector\":\"%s\",\"kv_role\":\"%s\",\"kv_port\":\"%u\","
                    "\"kv_connector_extra_config\":{\"host\":\"%.*s\"}}",
                    c->engine.connector.len ? cstr(p, c->engine.connector) : "MooncakeConnectorV1",
                    rank->role == ROLE_PREFILL ? "kv_producer" : "kv_consumer", rank->kv_port, SLICE_ARG(node->ip));
        command_apply(&argv, &c->engine.args);
        command_apply(&argv, &role->args);
        command_apply(&argv, &node->args);
        command_apply(&env, &c->engine.env);
        command_apply(&env, &role->env);
        command_apply(&env, &node->env);
        rank->argv = command_argv(&argv, head);
        rank->env = command_env(&env);
        if (!rank->argv || !rank->env)
                p->failed = true;
}

static void list_endpoints(struct planner *p, enum role role, const char **argv, size_t *n) {
        for (size_t i = 0; i < p->rank_count; i++)
                if (p->ranks[i].role == role) {
                        /* Without prefill ranks the decode ones are whole engines. */
                        argv[(*n)++] = role == ROLE_PREFILL                ? "--prefill"
                                       : p->c->roles[ROLE_PREFILL].present ? "--decode"
                                                                           : "--worker-urls";
                        argv[(*n)++] = arena_printf(
                            p->arena, "%.*s=%.*s", SLICE_ARG(p->ranks[i].name), SLICE_ARG(p->ranks[i].url));
                        if (!argv[*n - 1])
                                p->failed = true;
                }
}

static void plan_gateway(struct planner *p, struct plan *plan) {
        const struct cluster *c = p->c;
        struct command options = {.arena = p->arena};
        const char *head[] = {p->program, "gateway", NULL};
        const char *const *first;
        const char **argv;
        size_t n = 0;

        if (!c->gateway.present || c->gateway.node < 0)
                return;
        use_port(p, p->host_of[c->gateway.node], c->gateway.port, "the gateway's port",
            c->gateway.port_at.line ? c->gateway.port_at : c->gateway.at);
        plan->gateway_url = url_of(p, c->nodes[c->gateway.node].ip, (uint32_t)c->gateway.port);
        command_set(&options, "host", "%.*s", SLICE_ARG(c->gateway.host));
        command_set(&options, "port", "%lld", (long long)c->gateway.port);
        if (c->gateway.policy.len)
                command_set(&options, "policy", "%.*s", SLICE_ARG(c->gateway.policy));
        if (c->gateway.prefill_policy.len)
                command_set(&options, "prefill-policy", "%.*s", SLICE_ARG(c->gateway.prefill_policy));
        if (c->gateway.decode_policy.len)
                command_set(&options, "decode-policy", "%.*s", SLICE_ARG(c->gateway.decode_policy));
        command_apply(&options, &c->gateway.args);
        first = command_argv(&options, head);
        argv = arena_array(p->arena, 2 * p->rank_count + 2 * options.count + 4, sizeof(*argv));
        if (!first || !argv) {
                p->failed = true;
                return;
        }
        for (; first[n]; n++)
                argv[n] = first[n];
        list_endpoints(p, ROLE_PREFILL, argv, &n);
        list_endpoints(p, ROLE_DECODE, argv, &n);
        argv[n] = NULL;
        plan->gateway_argv = argv;
}

/* ---- the plan ----------------------------------------------------------------------------------------------------------- */

static uint64_t digest_of(const struct plan *plan) {
        struct buf text = {0};
        uint64_t digest;

        plan_write_json(plan, &text);
        digest = hash64(buf_slice(&text), 0);
        buf_free(&text);
        return digest;
}

int plan_make(const struct cluster *c, const char *program, struct arena *arena, struct plan **ret_plan,
    struct findings *findings) {
        struct planner p = {.c = c, .program = program, .arena = arena, .findings = findings};
        struct plan *plan = ARENA_NEW(arena, struct plan);
        size_t ranks = count_ranks(c);

        if (!findings->arena)
                findings->arena = arena;
        if (c->engine.kind != ENGINE_EMBEDDED) {
                findings_add(findings, SEVERITY_ERROR, "M02", c->engine.kind_at,
                    "this version of baton launches engine kind `embedded` only, not `%s`",
                    engine_kind_name(c->engine.kind));
                return -EINVAL;
        }
        if (ranks > CLUSTER_RANKS_MAX) {
                findings_add(findings, SEVERITY_ERROR, "Y05", c->roles[ROLE_DECODE].at,
                    "%zu ranks, at most %u are supported", ranks, CLUSTER_RANKS_MAX);
                return -EINVAL;
        }
        p.ranks = arena_array(arena, ranks + 1, sizeof(*p.ranks));
        p.ports =
            arena_array(arena, 2 * ranks + c->roles[0].group_count + c->roles[1].group_count + 2, sizeof(*p.ports));
        if (!plan || !p.ranks || !p.ports)
                return -ENOMEM;
        number_hosts(&p);
        if (p.failed)
                return -ENOMEM;
        check_node_use(&p);
        check_roles(&p);
        for (int role = 0; role < 2; role++)
                for (size_t g = 0; g < c->roles[role].group_count; g++)
                        plan_group(&p, &c->roles[role], (uint32_t)g);
        for (size_t i = 0; i < p.rank_count; i++)
                command_embedded(&p, &p.ranks[i]);
        *plan = (struct plan){.cluster = c, .ranks = p.ranks, .rank_count = p.rank_count};
        plan_gateway(&p, plan);
        check_ports(&p);
        if (p.failed || findings->failed)
                return -ENOMEM;
        if (findings_count(findings, SEVERITY_ERROR))
                return -EINVAL;
        plan->digest = digest_of(plan);
        *ret_plan = plan;
        return 0;
}

void plan_write_table(const struct plan *p, struct buf *out) {
        size_t width = 4;

        for (size_t i = 0; i < p->rank_count; i++)
                width = p->ranks[i].name.len > width ? p->ranks[i].name.len : width;
        buf_printf(out, "%-*s  role     group  dp rank  tp  devices  url\n", (int)width, "rank");
        for (size_t i = 0; i < p->rank_count; i++) {
                const struct plan_rank *r = &p->ranks[i];
                char devices[32] = "-";

                if (p->cluster->platform != PLATFORM_CPU)
                        snprintf(
                            devices, sizeof(devices), "%u-%u", r->first_device, r->first_device + r->device_count - 1);
                buf_printf(out, "%-*.*s  %-7s  %5u  %3u/%-3u  %2u  %-7s  %.*s\n", (int)width, SLICE_ARG(r->name),
                    role_name(r->role), r->group, r->dp_rank, r->dp_size, r->tp_size, devices, SLICE_ARG(r->url));
        }
        if (p->gateway_argv)
                buf_printf(out, "%-*s  gateway                              %.*s\n", (int)width, "",
                    SLICE_ARG(p->gateway_url));
}

static void write_strings(struct json_writer *w, const char *key, const char *const *list) {
        json_key(w, key);
        json_open(w, '[');
        for (; list && *list; list++)
                json_str(w, *list);
        json_close(w, ']');
}

void plan_write_json(const struct plan *p, struct buf *out) {
        struct json_writer w = {.out = out};

        json_open(&w, '{');
        json_key(&w, "ranks");
        json_open(&w, '[');
        for (size_t i = 0; i < p->rank_count; i++) {
                const struct plan_rank *r = &p->ranks[i];

                json_open(&w, '{');
                json_key(&w, "name");
                json_string(&w, r->name);
                json_key(&w, "role");
                json_str(&w, role_name(r->role));
                json_key(&w, "node");
                json_string(&w, p->cluster->nodes[r->node].name);
                json_key(&w, "group");
                json_u64(&w, r->group);
                json_key(&w, "local_rank");
                json_u64(&w, r->local);
                json_key(&w, "dp_rank");
                json_u64(&w, r->dp_rank);
                json_key(&w, "dp_size");
                json_u64(&w, r->dp_size);
                json_key(&w, "tp_size");
                json_u64(&w, r->tp_size);
                json_key(&w, "url");
                json_string(&w, r->url);
                json_key(&w, "kv_port");
                json_u64(&w, r->kv_port);
                write_strings(&w, "argv", r->argv);
                write_strings(&w, "env", r->env);
                json_close(&w, '}');
        }
        json_close(&w, ']');
        json_key(&w, "gateway");
        if (p->gateway_argv) {
                json_open(&w, '{');
                json_key(&w, "url");
                json_string(&w, p->gateway_url);
                write_strings(&w, "argv", p->gateway_argv);
                json_close(&w, '}');
        } else
                json_null(&w);
        json_close(&w, '}');
        buf_add_char(out, '\n');
}
