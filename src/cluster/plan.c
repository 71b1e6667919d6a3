/* plan.c - from the cluster file to ranks and their devices, ports and commands. */
#include "base/hash.h"
#include "base/json.h"
#include "cluster/planner.h"
#include <errno.h>
#include <stdlib.h>

/* `cause` NULL: any. */
static bool is_told(const struct findings *f, const char *code, struct place at, const char *cause) {
        for (size_t i = 0; i < f->count; i++)
                if (!strcmp(f->items[i].code, code) && f->items[i].at.line == at.line &&
                    f->items[i].at.column == at.column && (!cause || !strcmp(f->items[i].cause, cause)))
                        return true;
        return false;
}

struct finding *planner_find(
    struct planner *p, enum severity severity, const char *code, struct place at, const char *format, ...) {
        struct buf text = {0};
        struct finding *item;
        va_list args;

        if (is_told(p->findings, code, at, NULL))
                return NULL;
        va_start(args, format);
        buf_vprintf(&text, format, args);
        va_end(args);
        item = findings_add(p->findings, severity, code, at, "%s", buf_cstr(&text));
        buf_free(&text);
        return item;
}

struct finding *planner_find_each(
    struct planner *p, enum severity severity, const char *code, struct place at, const char *format, ...) {
        struct buf text = {0};
        struct finding *item = NULL;
        va_list args;

        va_start(args, format);
        buf_vprintf(&text, format, args);
        va_end(args);
        if (!is_told(p->findings, code, at, buf_cstr(&text)))
                item = findings_add(p->findings, severity, code, at, "%s", buf_cstr(&text));
        buf_free(&text);
        return item;
}

struct slice planner_format(struct planner *p, const char *format, ...) {
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

const char *planner_json(struct planner *p, struct slice text) {
        struct buf b = {0};
        const char *json;

        json_add_string(&b, text);
        json = arena_copy(p->arena, buf_slice(&b)).ptr;
        if (!json || !buf_ok(&b))
                p->failed = true;
        buf_free(&b);
        return json ? json : "\"\"";
}

const char *planner_cstr(struct planner *p, struct slice s) {
        const char *text = arena_copy(p->arena, s).ptr;

        if (!text)
                p->failed = true;
        return text ? text : "";
}

/* ---- sizes ---------------------------------------------------------------------------------------------------------------- */

static struct place place_or(struct place at, struct place otherwise) {
        return at.line ? at : otherwise;
}

static void check_tensor_parallel(struct planner *p) {
        const struct cluster_role *prefill = &p->c->roles[ROLE_PREFILL], *decode = &p->c->roles[ROLE_DECODE];
        struct place at = place_or(decode->tp_at, decode->at);
        struct finding *f = NULL;

        if (!prefill->present)
                return;
        if (prefill->tp < decode->tp)
                f = planner_find(p, SEVERITY_ERROR, "D04", at, "decode.tp %lld is larger than prefill.tp %lld",
                    (long long)decode->tp, (long long)prefill->tp);
        else if (prefill->tp % decode->tp)
                f = planner_find(p, SEVERITY_ERROR, "D04", at, "prefill.tp %lld is no multiple of decode.tp %lld",
                    (long long)prefill->tp, (long long)decode->tp);
        finding_cure(p->findings, f, "decode.tp: a divisor of %lld", (long long)prefill->tp);
}

static void check_role(struct planner *p, const struct cluster_role *role) {
        const char *name = role_name(role->role);
        struct finding *f;

        if (role_width(role) > DEVICES_MAX) {
                f = planner_find(p, SEVERITY_ERROR, "D03", place_or(role->tp_at, place_or(role->pp_at, role->pcp_at)),
                    "a rank of %s would have %lld devices", name, (long long)role_width(role));
                finding_cure(p->findings, f, "tp x pp x pcp: at most %d", DEVICES_MAX);
        }
        if (role->pp > 1 && role->pcp > 1) {
                f = planner_find(p, SEVERITY_ERROR, "D08", role->pcp_at, "%s.pp is %lld and %s.pcp is %lld", name,
                    (long long)role->pp, name, (long long)role->pcp);
                finding_cure(p->findings, f, "keep one of them at 1");
        }
        if (role->role == ROLE_DECODE && role->pcp > 1 && p->connector && p->connector->order == LEGS_DECODE_FIRST) {
                f = planner_find(p, SEVERITY_ERROR, "D09", role->pcp_at, "decode.pcp is %lld, which %s does not know",
                    (long long)role->pcp, p->connector->name);
                finding_cure(p->findings, f, "decode.pcp: 1");
        }
        if (p->c->engine.kind == ENGINE_EMBEDDED && (role->pp > 1 || role->pcp > 1)) {
                f = planner_find(p, SEVERITY_ERROR, "D12", place_or(role->pp_at, role->pcp_at),
                    "a rank of the embedded engine is one process: %s.pp and pcp must be 1", name);
                finding_cure(p->findings, f, "more ranks instead: `dp` shares the experts between them");
        }
}

/* ---- ranks -------------------------------------------------------------------------------------------------------------- */

static struct slice url_of(struct planner *p, struct slice ip, uint32_t port) {
        bool v6 = slice_find(ip, ':', 0) < ip.len;

        return planner_format(p, "http://%s%.*s%s:%u", v6 ? "[" : "", SLICE_ARG(ip), v6 ? "]" : "", port);
}

/* What a group's ranks have in common. */
struct layout {
        const struct cluster_role *role;
        const struct cluster_group *group;
        uint32_t index, per_node;
        int64_t dp_port, kv_base; /* kv_base: of spans that count by group */
        struct place api_at, kv_at;
};

static int64_t kv_first(const struct planner *p, const struct cluster_role *role) {
        return role->kv_port >= 0 ? role->kv_port : p->connector->kv_ports[role->role];
}

/* Fill in where a rank listens for peers, and note the ports. `ordinal` counts ranks at its host that share a base. */
static void plan_kv_port(
    struct planner *p, const struct layout *l, struct plan_rank *rank, uint32_t ordinal, bool first_here) {
        int64_t width = role_width(l->role), base = l->group->kv_port >= 0 ? l->group->kv_port : kv_first(p, l->role);
        uint32_t index = (uint32_t)(rank - p->ranks), host = p->host_of[rank->node];
        int64_t port, count = width;

        switch (p->connector->span) {
        case SPAN_ONE:
                port = base + ordinal;
                base = port;
                count = 1;
                break;
        case SPAN_LOCAL:
                port = base + ordinal * width;
                base = port - rank->local * width;
                break;
        case SPAN_GLOBAL:
                base = l->kv_base;
                port = base + rank->dp_rank * width;
                break;
        case SPAN_GROUP:
                base = l->kv_base;
                port = base;
                count = rank->dp_size * width;
                break;
        default:
                return;
        }
        rank->kv_base = (uint32_t)base;
        rank->kv_port = (uint32_t)port;
        if (p->connector->span != SPAN_GROUP || first_here)
                ports_use(p, PORT_KV, rank->role, index, host, port, count, l->kv_at);
}

/* Two for each rank of the role at an address: events, and their replays. */
static void plan_events_port(
    struct planner *p, const struct cluster_role *role, struct plan_rank *rank, uint32_t host) {
        int64_t port = role->events_port + 2 * (int64_t)p->host_use[host].events[role->role]++;

        if (port <= rank->dp_rank) { /* the engine is told what is left of it without its rank */
                planner_find(p, SEVERITY_ERROR, "P02", role->events_port_at,
                    "the KV event port of %.*s, %lld, is not beyond its DP rank, which engines add to it",
                    SLICE_ARG(rank->name), (long long)port);
                return;
        }
        rank->events_port = (uint32_t)port;
        ports_use(p, PORT_EVENTS, role->role, (uint32_t)(rank - p->ranks), host, port, 2, role->events_port_at);
}

static void plan_rank(struct planner *p, const struct layout *l, uint32_t node, uint32_t local, uint32_t dp_rank) {
        const struct cluster *c = p->c;
        const struct cluster_role *role = l->role;
        uint32_t host = p->host_of[node], index = (uint32_t)p->rank_count++;
        struct host_use *use = &p->host_use[host];
        struct plan_rank *rank = &p->ranks[index];
        uint32_t group_id = l->index * 2 + (uint32_t)role->role + 1, in_group, ordinal = use->ranks[role->role];
        int64_t api;

        if (use->group_seen != group_id) {
                use->group_seen = group_id;
                use->in_group = 0;
        }
        in_group = use->in_group++;
        if (l->group->api_port < 0 || l->group->kv_port < 0)
                use->ranks[role->role]++;
        api = l->group->api_port >= 0 ? l->group->api_port + in_group : role->api_port + ordinal;
        *rank = (struct plan_rank){
            .name = planner_format(p, "%.*s.%u", SLICE_ARG(c->nodes[node].name), local),
            .role = role->role,
            .node = node,
            .group = l->index,
            .local = local,
            .local_count = l->per_node,
            .dp_rank = dp_rank,
            .dp_size = (uint32_t)role->dp,
            .tp_size = (uint32_t)role->tp,
            .api_port = (uint16_t)api,
            .dp_port = (uint32_t)l->dp_port,
            .dp_address = c->nodes[l->group->nodes[0]].ip,
            .first_device = (uint32_t)(c->nodes[node].first_device + local * role_width(role)),
            .device_count = (uint32_t)role_width(role),
        };
        rank->url = url_of(p, c->nodes[node].ip, (uint32_t)api);
        ports_use(p, PORT_API, role->role, index, host, api, 1, l->api_at);
        if (role->events_port > 0)
                plan_events_port(p, role, rank, host);
        if (p->connector)
                plan_kv_port(p, l, rank, l->group->kv_port >= 0 ? in_group : ordinal, in_group == 0);
}

/* Groups of a role that meet at an address get spans one after the other. */
static int64_t group_kv_base(struct planner *p, const struct cluster_role *role, const struct cluster_group *group) {
        uint32_t earlier = 0;

        if (group->kv_port >= 0)
                return group->kv_port;
        for (size_t n = 0; n < group->count; n++) {
                uint32_t here = p->host_use[p->host_of[group->nodes[n]]].groups[role->role];

                earlier = here > earlier ? here : earlier;
        }
        for (size_t n = 0; n < group->count; n++)
                p->host_use[p->host_of[group->nodes[n]]].groups[role->role] = earlier + 1;
        return kv_first(p, role) + earlier * role->dp * role_width(role);
}

static bool group_fits(struct planner *p, const struct layout *l) {
        const struct cluster_role *role = l->role;
        int64_t width = role_width(role);

        for (size_t n = 0; n < l->group->count; n++) {
                const struct cluster_node *node = &p->c->nodes[l->group->nodes[n]];
                int64_t devices = node_devices(p->c, node);
                struct finding *f;

                if (devices < 0 || l->per_node * width <= devices)
                        continue;
                f = planner_find(p, SEVERITY_ERROR, "D03", place_or(role->dp_at, l->group->at),
                    "%.*s has %lld devices, but %u rank%s of %lld need %lld", SLICE_ARG(node->name), (long long)devices,
                    l->per_node, l->per_node == 1 ? "" : "s", (long long)width, (long long)(l->per_node * width));
                if (devices >= width)
                        finding_cure(p->findings, f, "%s.dp: %lld, or more nodes in the group", role_name(role->role),
                            (long long)(devices / width * (int64_t)l->group->count));
                else
                        finding_cure(p->findings, f, "%s.tp: at most %lld", role_name(role->role), (long long)devices);
                return false;
        }
        return true;
}

static void plan_group(struct planner *p, const struct cluster_role *role, uint32_t index) {
        const struct cluster_group *group = &role->groups[index];
        struct layout l = {.role = role,
            .group = group,
            .index = index,
            .per_node = (uint32_t)(role->dp / (int64_t)group->count),
            .api_at = place_or(group->api_port_at, place_or(role->api_port_at, role->at)),
            .kv_at = place_or(group->kv_port_at, place_or(role->kv_port_at, role->at))};
        uint32_t master = p->host_of[group->nodes[0]], dp_rank = 0;

        if (role->dp % (int64_t)group->count || l.per_node == 0) {
                struct finding *f = planner_find(p, SEVERITY_ERROR, "D01", group->at,
                    "%s.dp is %lld, which does not divide over the %zu nodes of this group", role_name(role->role),
                    (long long)role->dp, group->count);

                finding_cure(p->findings, f, "dp: a multiple of %zu", group->count);
                return;
        }
        if (role_width(role) > DEVICES_MAX || !group_fits(p, &l))
                return;
        l.dp_port = group->dp_port >= 0 ? group->dp_port : role->dp_port + p->host_use[master].masters[role->role]++;
        if (role->dp > 1)
                ports_use(p, PORT_DP, role->role, index, master, l.dp_port, 1,
                    place_or(group->dp_port_at, place_or(role->dp_port_at, role->at)));
        if (p->connector)
                l.kv_base = group_kv_base(p, role, group);
        for (size_t n = 0; n < group->count; n++)
                for (uint32_t local = 0; local < l.per_node; local++)
                        plan_rank(p, &l, group->nodes[n], local, dp_rank++);
}

static size_t count_ranks(const struct cluster *c) {
        size_t n = 0;

        for (int role = 0; role < 2; role++)
                n += c->roles[role].group_count * (size_t)c->roles[role].dp;
        return n;
}

/* ---- settings of single ranks ------------------------------------------------------------------------------------------- */

static int compare_rank_names(const void *a, const void *b, void *ranks) {
        const struct plan_rank *r = ranks;

        return slice_cmp(r[*(const uint32_t *)a].name, r[*(const uint32_t *)b].name);
}

/* Hand every `ranks:` entry to the rank it names. */
static void find_rank_settings(struct planner *p) {
        uint32_t *order;

        if (p->c->roles[0].rank_count + p->c->roles[1].rank_count == 0)
                return;
        order = arena_array(p->arena, p->rank_count + 1, sizeof(*order));
        p->rank_settings = arena_array(p->arena, p->rank_count + 1, sizeof(*p->rank_settings));
        if (!order || !p->rank_settings) {
                p->failed = true;
                return;
        }
        for (size_t i = 0; i < p->rank_count; i++)
                order[i] = (uint32_t)i;
        qsort_r(order, p->rank_count, sizeof(*order), compare_rank_names, p->ranks);
        for (int role = 0; role < 2; role++)
                for (size_t i = 0; i < p->c->roles[role].rank_count; i++) {
                        const struct cluster_rank *own = &p->c->roles[role].ranks[i];
                        size_t low = 0, high = p->rank_count;

                        while (low < high) {
                                size_t middle = (low + high) / 2;

                                if (slice_cmp(p->ranks[order[middle]].name, own->name) < 0)
                                        low = middle + 1;
                                else
                                        high = middle;
                        }
                        if (low < p->rank_count && slice_eq(p->ranks[order[low]].name, own->name) &&
                            p->ranks[order[low]].role == (enum role)role)
                                p->rank_settings[order[low]] = own;
                        else {
                                struct finding *f = planner_find(p, SEVERITY_ERROR, "Y08", own->at,
                                    "%s has no rank `%.*s`", role_name((enum role)role), SLICE_ARG(own->name));

                                finding_cure(
                                    p->findings, f, "node and local rank, such as d0.3; `baton plan` lists them");
                        }
                }
}

/* ---- commands ----------------------------------------------------------------------------------------------------------- */

static void make_commands(struct planner *p) {
        for (size_t i = 0; i < p->rank_count; i++) {
                struct plan_rank *rank = &p->ranks[i];
                struct rank_command command;

                profile_command(p, rank, &command);
                rank->argv = profile_argv(p, rank, &command);
                rank->env = command_env(&command.env);
                if (!rank->argv || !rank->env)
                        p->failed = true;
        }
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

/* Where the gateway follows ranks' KV events. */
static void list_events(struct planner *p, const char **argv, size_t *n) {
        bool any = false;

        for (size_t i = 0; i < p->rank_count; i++) {
                const struct plan_rank *r = &p->ranks[i];
                struct slice ip = p->c->nodes[r->node].ip;
                bool v6 = slice_find(ip, ':', 0) < ip.len;

                if (r->events_port == 0)
                        continue;
                if (!any)
                        argv[(*n)++] = "--kv-events";
                any = true;
                argv[(*n)++] = arena_printf(p->arena,
                    v6 ? "%.*s=tcp://[%.*s]:%u,tcp://[%.*s]:%u" : "%.*s=tcp://%.*s:%u,tcp://%.*s:%u",
                    SLICE_ARG(r->name), SLICE_ARG(ip), r->events_port, SLICE_ARG(ip), r->events_port + 1);
                if (!argv[*n - 1])
                        p->failed = true;
        }
}

/* A gateway pulls unless told otherwise, which is what most connectors want. */
static const char *gateway_connector(const struct planner *p) {
        if (p->c->gateway.connector.len)
                return p->c->gateway.connector.ptr;
        return p->connector && p->connector->order != LEGS_PREFILL_FIRST ? p->connector->name : NULL;
}

static void make_gateway_command(struct planner *p, struct plan *plan) {
        const struct cluster *c = p->c;
        struct command options = {.arena = p->arena};
        const char *head[] = {p->program, "gateway", NULL};
        const char *const *first;
        const char **argv;
        size_t n = 0;

        command_set(&options, "host", "%.*s", SLICE_ARG(c->gateway.host));
        command_set(&options, "port", "%lld", (long long)c->gateway.port);
        if (gateway_connector(p))
                command_set(&options, "connector", "%s", gateway_connector(p));
        if (p->connector && p->connector->order == LEGS_DECODE_FIRST)
                command_set(&options, "metaserver-url", "%.*s/v1/metaserver", SLICE_ARG(plan->gateway_url));
        if (c->gateway.policy.len)
                command_set(&options, "policy", "%.*s", SLICE_ARG(c->gateway.policy));
        if (c->gateway.prefill_policy.len)
                command_set(&options, "prefill-policy", "%.*s", SLICE_ARG(c->gateway.prefill_policy));
        if (c->gateway.decode_policy.len)
                command_set(&options, "decode-policy", "%.*s", SLICE_ARG(c->gateway.decode_policy));
        /* Texts are matched by their tokens. */
        if (c->roles[ROLE_PREFILL].events_port > 0 || c->roles[ROLE_DECODE].events_port > 0)
                command_set(&options, "tokenizer", "%.*s", SLICE_ARG(c->model.path));
        command_apply(&options, &c->gateway.args);
        first = command_argv(&options, head);
        argv = arena_array(p->arena, 3 * p->rank_count + 2 * options.count + 5, sizeof(*argv));
        if (!first || !argv) {
                p->failed = true;
                return;
        }
        for (; first[n]; n++)
                argv[n] = first[n];
        list_endpoints(p, ROLE_PREFILL, argv, &n);
        list_endpoints(p, ROLE_DECODE, argv, &n);
        list_events(p, argv, &n);
        argv[n] = NULL;
        plan->gateway_argv = argv;
}

bool plan_on_one_machine(const struct plan *p) {
        const struct cluster *c = p->cluster;
        struct slice ip = p->rank_count ? c->nodes[p->ranks[0].node].ip : SLICE_NONE;
        bool same = true, local = true;

        for (size_t i = 0; i < p->rank_count; i++) {
                same &= slice_eq(c->nodes[p->ranks[i].node].ip, ip);
                local &= ip_is_local_only(c->nodes[p->ranks[i].node].ip);
        }
        return same || local;
}

bool plan_rank_needs_world(const struct plan *p, const struct plan_rank *r) {
        return r->dp_size > 1 && p->cluster->engine.kind != ENGINE_EMBEDDED;
}

struct plan plan_of_node(const struct plan *p, uint32_t node) {
        struct plan part = *p;
        size_t first = 0, end;

        while (first < p->rank_count && p->ranks[first].node != node)
                first++;
        for (end = first; end < p->rank_count && p->ranks[end].node == node;)
                end++;
        part.ranks = p->ranks + first;
        part.rank_count = end - first;
        if (p->cluster->gateway.node != node)
                part.gateway_argv = NULL;
        return part;
}

int64_t cluster_find_node(const struct cluster *c, struct slice name) {
        for (size_t i = 0; i < c->node_count; i++)
                if (slice_eq(c->nodes[i].name, name))
                        return (int64_t)i;
        return -1;
}

/* ---- the plan ----------------------------------------------------------------------------------------------------------- */

static uint64_t digest_strings(const char *const *list, uint64_t seed) {
        for (; list && *list; list++)
                seed = hash64(slice_of(*list, strlen(*list) + 1), seed);
        return hash64(SLICE_LIT("."), seed);
}

static uint64_t digest_of(const struct plan *plan) {
        uint64_t digest = digest_strings(plan->gateway_argv, 0);

        for (size_t i = 0; i < plan->rank_count; i++) {
                const struct plan_rank *r = &plan->ranks[i];

                digest = hash64(r->name, digest);
                digest = hash64(r->url, digest);
                digest = digest_strings(r->argv, digest);
                digest = digest_strings(r->env, digest);
        }
        return digest;
}

static void find_connector(struct planner *p) {
        const struct cluster *c = p->c;

        if (!planner_disaggregated(p) || c->engine.kind == ENGINE_TEMPLATE)
                return;
        p->connector = connector_of(c->engine.kind, p->version, c->engine.connector);
        if (!p->connector) {
                struct finding *f = planner_find(p, SEVERITY_ERROR, "K06", c->engine.connector_at,
                    "%s%s%.*s knows no connector `%.*s`", engine_kind_name(c->engine.kind),
                    c->engine.version.len ? " " : "", SLICE_ARG(c->engine.version), SLICE_ARG(c->engine.connector));

                finding_cure(p->findings, f, "one of %s", connector_list(p->arena, c->engine.kind, p->version));
        } else if (p->connector->ranktable && c->engine.ranktable.len == 0 && c->engine.kind == ENGINE_VLLM_ASCEND) {
                struct finding *f = planner_find(p, SEVERITY_ERROR, "K07", c->engine.at,
                    "%s reads a ranktable, and `engine.ranktable` does not say where it lies", p->connector->name);

                finding_cure(
                    p->findings, f, "ranktable: /path/ranktable.json, the same on every node (`baton ranktable`)");
        }
}

/* Engine, version and connector: what all else is read by. Returns whether the rest can be planned. */
static bool plan_engine(struct planner *p) {
        const struct cluster *c = p->c;
        struct finding *f;

        if (version_parse(c->engine.version, &p->version) < 0) {
                f = planner_find(p, SEVERITY_ERROR, "Y05", c->engine.version_at, "`engine.version` is `%.*s`",
                    SLICE_ARG(c->engine.version));
                finding_cure(p->findings, f, "such as \"0.9.1\"; without it, the newest");
                return false;
        }
        if (c->engine.kind == ENGINE_TEMPLATE && c->engine.template_path.len == 0) {
                f = planner_find(p, SEVERITY_ERROR, "M02", c->engine.kind_at, "`engine.template` is missing");
                finding_cure(p->findings, f, "template: ./run_dp_template.sh");
                return false;
        }
        find_connector(p);
        return true;
}

/* Lay out ranks and check everything. Returns 0, -EINVAL or -ENOMEM. */
static int lay_out(struct planner *p) {
        const struct cluster *c = p->c;
        size_t ranks = count_ranks(c);

        if (!p->findings->arena)
                p->findings->arena = p->arena;
        if (ranks > CLUSTER_RANKS_MAX) {
                findings_add(p->findings, SEVERITY_ERROR, "Y05", c->roles[ROLE_DECODE].at,
                    "%zu ranks, at most %u are supported", ranks, CLUSTER_RANKS_MAX);
                return -EINVAL;
        }
        if (!plan_engine(p))
                return p->findings->failed ? -ENOMEM : -EINVAL;
        p->ranks = arena_array(p->arena, ranks + 1, sizeof(*p->ranks));
        ports_init(p, ranks);
        nodes_group(p);
        if (!p->failed)
                nodes_number(p);
        if (!p->ranks || p->failed)
                return -ENOMEM;
        nodes_check(p);
        check_tensor_parallel(p);
        for (int role = 0; role < 2; role++) {
                if (c->roles[role].present)
                        check_role(p, &c->roles[role]);
                for (size_t g = 0; g < c->roles[role].group_count; g++)
                        plan_group(p, &c->roles[role], (uint32_t)g);
        }
        if (c->gateway.present && c->gateway.node >= 0)
                ports_use(p, PORT_GATEWAY, ROLE_PREFILL, 0, p->host_of[c->gateway.node], c->gateway.port, 1,
                    place_or(c->gateway.port_at, c->gateway.at));
        if (!p->failed)
                find_rank_settings(p);
        if (!p->failed)
                ports_check(p);
        if (!p->failed)
                rules_check(p);
        if (p->failed || p->findings->failed)
                return -ENOMEM;
        return findings_count(p->findings, SEVERITY_ERROR) ? -EINVAL : 0;
}

int plan_check(const struct cluster *c, struct arena *arena, struct findings *findings) {
        struct planner p = {.c = c, .program = "baton", .arena = arena, .findings = findings};

        return lay_out(&p);
}

int plan_make(const struct cluster *c, const char *program, struct arena *arena, struct plan **ret_plan,
    struct findings *findings) {
        struct planner p = {.c = c, .program = program, .arena = arena, .findings = findings};
        struct plan *plan = ARENA_NEW(arena, struct plan);
        int r = plan ? lay_out(&p) : -ENOMEM;

        if (r < 0)
                return r;
        make_commands(&p);
        *plan = (struct plan){.cluster = c, .ranks = p.ranks, .rank_count = p.rank_count};
        plan->connector = p.connector ? p.connector->name : NULL;
        ports_list(&p, plan);
        if (c->gateway.present && c->gateway.node >= 0) {
                plan->gateway_url = url_of(&p, c->nodes[c->gateway.node].ip, (uint32_t)c->gateway.port);
                make_gateway_command(&p, plan);
        }
        if (p.failed)
                return -ENOMEM;
        plan->digest = digest_of(plan);
        *ret_plan = plan;
        return 0;
}
