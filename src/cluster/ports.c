/* ports.c - every port that a plan fixes, and the ranges it should keep out of. */
#include "cluster/planner.h"
#include <stdio.h>
#include <stdlib.h>

struct port_use {
        uint32_t host, first, count;
        enum port_kind kind;
        enum role role;
        uint32_t index;
        struct place at;
};

void ports_init(struct planner *p, size_t ranks) {
        size_t groups = p->c->roles[0].group_count + p->c->roles[1].group_count;

        p->ports = arena_array(p->arena, 3 * ranks + groups + 1, sizeof(*p->ports));
        if (!p->ports)
                p->failed = true;
}

/* "API port of d0.3" */
static const char *describe(struct planner *p, enum port_kind kind, enum role role, uint32_t index, uint32_t count) {
        const char *text = NULL;

        switch (kind) {
        case PORT_API:
                text = arena_printf(p->arena, "API port of %.*s", SLICE_ARG(p->ranks[index].name));
                break;
        case PORT_KV:
                text =
                    arena_printf(p->arena, "KV port%s of %.*s", count > 1 ? "s" : "", SLICE_ARG(p->ranks[index].name));
                break;
        case PORT_EVENTS:
                text = arena_printf(p->arena, "KV event ports of %.*s", SLICE_ARG(p->ranks[index].name));
                break;
        case PORT_DP:
                text = arena_printf(p->arena, "DP port of %s group %u", role_name(role), index);
                break;
        case PORT_GATEWAY:
                text = "the gateway's port";
                break;
        }
        if (!text)
                p->failed = true;
        return text ? text : "";
}

static const char *describe_use(struct planner *p, const struct port_use *u) {
        return describe(p, u->kind, u->role, u->index, u->count);
}

void ports_use(struct planner *p, enum port_kind kind, enum role role, uint32_t index, uint32_t host, int64_t first,
    int64_t count, struct place at) {
        int64_t last = first + count - 1;

        if (first < 1 || last > 65535) {
                struct finding *f = planner_find(p, SEVERITY_ERROR, "P02", at, "%s would be %lld, beyond 65535",
                    describe(p, kind, role, index, (uint32_t)count), (long long)last);

                finding_cure(p->findings, f, "begin lower: ports of later ranks are counted up from this one");
                return;
        }
        p->ports[p->port_count++] = (struct port_use){host, (uint32_t)first, (uint32_t)count, kind, role, index, at};
}

/* ---- twice at one address ------------------------------------------------------------------------------------------------- */

static int compare_uses(const void *pa, const void *pb) {
        const struct port_use *a = pa, *b = pb;

        if (a->host != b->host)
                return a->host < b->host ? -1 : 1;
        if (a->first != b->first)
                return a->first < b->first ? -1 : 1;
        if (a->kind != b->kind)
                return a->kind < b->kind ? -1 : 1;
        if (a->role != b->role)
                return a->role < b->role ? -1 : 1;
        return a->index < b->index ? -1 : a->index > b->index;
}

static uint32_t last_of(const struct port_use *u) {
        return u->first + u->count - 1;
}

static void check_twice(struct planner *p) {
        const struct port_use *widest = NULL; /* of those so far at this host the one that reaches furthest */

        for (size_t i = 0; i < p->port_count; i++) {
                const struct port_use *u = &p->ports[i];

                if (widest && widest->host == u->host && u->first <= last_of(widest)) {
                        /* The place of the two that stands later in the file is the one to mend. */
                        const struct port_use *later = widest->at.line > u->at.line ? widest : u,
                                              *earlier = later == u ? widest : u;
                        struct finding *f = planner_find(p, SEVERITY_ERROR, "P01", later->at,
                            "port %u is planned twice at one address: %s and %s (line %u)", u->first,
                            describe_use(p, later), describe_use(p, earlier), earlier->at.line);

                        finding_cure(p->findings, f, "choose port ranges that do not meet");
                }
                if (!widest || widest->host != u->host || last_of(u) > last_of(widest))
                        widest = u;
        }
}

/* ---- ranges that belong to others ------------------------------------------------------------------------------------------ */

/* Ports from `first` to `last` are somebody else's on a node of the plan. */
struct reserved {
        const char *code;
        enum severity severity;
        uint32_t first, last;
        const char *whose;
        bool reservable; /* by sysctl */
};

/* What Linux hands to outgoing connections unless told otherwise. */
#define EPHEMERAL_FIRST 32768u
#define EPHEMERAL_LAST  60999u
/* Mooncake draws its data ports from 1,000 a device, from here on. */
#define MOONCAKE_FIRST 20000u

static bool meets(const struct port_use *u, uint32_t first, uint32_t last) {
        return u->first <= last && last_of(u) >= first;
}

/* What not to plan on the nodes of this file, the gravest first. */
static size_t reserved_ranges(struct planner *p, struct reserved ret_ranges[4]) {
        const struct cluster *c = p->c;
        long long devices = platform_devices(c->platform);
        size_t n = 0;

        if (c->platform == PLATFORM_CPU)
                return 0;
        if (platform_is_ascend(c->platform))
                ret_ranges[n++] = (struct reserved){
                    "P05", SEVERITY_ERROR, 60000, 60015, "where HCCL listens on every node (HCCL_IF_BASE_PORT)"};
        if (c->engine.kind != ENGINE_EMBEDDED)
                ret_ranges[n++] = (struct reserved){"P06", SEVERITY_WARNING, 29500, 29500,
                    "which vLLM takes for torch.distributed on the first rank of a group"};
        if (p->connector && p->connector->random_ports)
                ret_ranges[n++] = (struct reserved){"P07", SEVERITY_WARNING, MOONCAKE_FIRST,
                    MOONCAKE_FIRST + 1000 * (uint32_t)devices - 1,
                    arena_printf(p->arena, "which Mooncake uses at random on %lld-NPU nodes", devices)};
        ret_ranges[n++] = (struct reserved){"P03", SEVERITY_WARNING, EPHEMERAL_FIRST, EPHEMERAL_LAST,
            "which Linux hands out to outgoing connections", .reservable = true};
        return n;
}

/* Where `count` ports in a row are free on every node and nobody else's, from `from` on; 0: nowhere. */
static uint32_t free_span(
    const struct planner *p, const struct reserved *ranges, size_t range_count, uint32_t from, uint32_t count) {
        for (uint32_t start = 0; start != from && from + count <= 65536;) {
                start = from; /* until nothing moves it any more */
                for (size_t i = 0; i < p->port_count; i++)
                        if (meets(&p->ports[i], from, from + count - 1))
                                from = last_of(&p->ports[i]) + 1;
                for (size_t i = 0; i < range_count; i++)
                        if (ranges[i].first < from + count && from <= ranges[i].last)
                                from = ranges[i].last + 1;
        }
        return from + count <= 65536 ? from : 0;
}

static void check_reserved(struct planner *p) {
        struct reserved ranges[4];
        size_t count = reserved_ranges(p, ranges);

        for (size_t i = 0; i < p->port_count; i++) {
                const struct port_use *u = &p->ports[i];
                const struct reserved *r = ranges;
                uint32_t moved = 0;
                char range[32];
                struct finding *f;

                while (r < ranges + count && !meets(u, r->first, r->last))
                        r++;
                if (r == ranges + count)
                        continue;
                snprintf(range, sizeof(range), u->count > 1 ? "s %u..%u" : " %u", u->first, last_of(u));
                f = planner_find(p, r->severity, r->code, u->at, "port%s (%s) lie%s in %u..%u, %s", range,
                    describe_use(p, u), u->count > 1 ? "" : "s", r->first, r->last, r->whose);
                if (!f)
                        continue;
                if (u->kind == PORT_KV && !r->reservable)
                        moved = free_span(p, ranges, count, r->last + 1,
                            (uint32_t)(p->c->roles[u->role].dp * role_width(&p->c->roles[u->role])));
                if (moved)
                        finding_cure(p->findings, f, "kv_port: %u (the next span that is free on every node)", moved);
                else if (r->reservable)
                        finding_cure(p->findings, f,
                            "sysctl net.ipv4.ip_local_reserved_ports=%u-%u, or ports outside of that range", u->first,
                            last_of(u));
                else
                        finding_cure(p->findings, f, "a port outside of that range");
        }
}

void ports_check(struct planner *p) {
        qsort(p->ports, p->port_count, sizeof(*p->ports), compare_uses);
        check_twice(p);
        check_reserved(p);
}

/* ---- for those who try them ------------------------------------------------------------------------------------------------ */

void ports_list(struct planner *p, struct plan *plan) {
        struct plan_port *ports = arena_array(p->arena, p->port_count + 1, sizeof(*ports));
        struct slice *ips = arena_array(p->arena, p->hosts + 1, sizeof(*ips));

        if (!ports || !ips) {
                p->failed = true;
                return;
        }
        for (size_t i = 0; i < p->c->node_count; i++)
                ips[p->host_of[i]] = p->c->nodes[i].ip;
        for (size_t i = 0; i < p->port_count; i++) {
                const struct port_use *u = &p->ports[i];

                ports[i] = (struct plan_port){ips[u->host], (uint16_t)u->first, (uint16_t)u->count, describe_use(p, u)};
        }
        plan->ports = ports;
        plan->port_count = p->port_count;
}
