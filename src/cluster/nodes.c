/* nodes.c - the machines behind a plan: addresses, devices, and what must hold of them. */
#include "cluster/planner.h"
#include <arpa/inet.h>
#include <stdlib.h>

enum platform node_platform(const struct cluster *c, const struct cluster_node *n) {
        return n->platform >= 0 ? (enum platform)n->platform : c->platform;
}

int64_t platform_devices(enum platform p) {
        static const int64_t counts[] = {[PLATFORM_CPU] = -1,
            [PLATFORM_ASCEND_A2] = 8,
            [PLATFORM_ASCEND_A3] = 16,
            [PLATFORM_ASCEND_A5] = 8,
            [PLATFORM_CUDA] = 8};

        return counts[p];
}

int64_t node_devices(const struct cluster *c, const struct cluster_node *n) {
        return n->devices >= 0 ? n->devices : platform_devices(node_platform(c, n));
}

static int compare_ips(const void *a, const void *b, void *nodes) {
        const struct cluster_node *n = nodes;
        const struct cluster_node *x = &n[*(const uint32_t *)a], *y = &n[*(const uint32_t *)b];
        int order = slice_cmp(x->ip, y->ip);

        if (order == 0)
                order = x->first_device < y->first_device ? -1 : x->first_device > y->first_device;
        return order;
}

static int64_t last_device(const struct cluster *c, const struct cluster_node *n) {
        return n->first_device + node_devices(c, n) - 1;
}

/* `n` follows at the same address on `widest`, the node before it that reaches furthest. */
static void check_shared_devices(struct planner *p, const struct cluster_node *n, const struct cluster_node *widest) {
        const struct cluster *c = p->c;
        struct finding *f;

        if (node_devices(c, n) < 1 || n->first_device > last_device(c, widest))
                return;
        f = planner_find(p, SEVERITY_ERROR, "D05", n->devices_at.line ? n->devices_at : n->at,
            "%.*s and %.*s (line %u) are one machine (%.*s) and share its device %lld", SLICE_ARG(n->name),
            SLICE_ARG(widest->name), widest->at.line, SLICE_ARG(n->ip), (long long)n->first_device);
        finding_cure(p->findings, f, "give each its own, such as `devices: 0-7` and `devices: 8-15`");
}

void nodes_number(struct planner *p) {
        const struct cluster *c = p->c;
        size_t count = c->node_count;
        uint32_t *order = arena_array(p->arena, count + 1, sizeof(*order));
        const struct cluster_node *widest = NULL; /* of those with ranks at this address so far */

        p->host_of = arena_array(p->arena, count + 1, sizeof(*p->host_of));
        p->host_use = arena_array(p->arena, count + 1, sizeof(*p->host_use));
        if (!order || !p->host_of || !p->host_use) {
                p->failed = true;
                return;
        }
        for (size_t i = 0; i < count; i++)
                order[i] = (uint32_t)i;
        qsort_r(order, count, sizeof(*order), compare_ips, (void *)c->nodes);
        for (size_t i = 0; i < count; i++) {
                const struct cluster_node *n = &c->nodes[order[i]];

                if (i && !slice_eq(n->ip, c->nodes[order[i - 1]].ip)) {
                        p->hosts++;
                        widest = NULL;
                }
                p->host_of[order[i]] = p->hosts;
                if (!p->group_of[order[i]])
                        continue;
                if (widest)
                        check_shared_devices(p, n, widest);
                if (!widest || last_device(c, n) > last_device(c, widest))
                        widest = n;
        }
        p->hosts++;
}

/* Each node carries one group; several names may stand for one address. */
void nodes_group(struct planner *p) {
        p->group_of = arena_array(p->arena, p->c->node_count + 1, sizeof(*p->group_of));
        if (!p->group_of) {
                p->failed = true;
                return;
        }
        for (int role = 0; role < 2; role++)
                for (size_t g = 0; g < p->c->roles[role].group_count; g++) {
                        const struct cluster_group *group = &p->c->roles[role].groups[g];

                        for (size_t i = 0; i < group->count; i++) {
                                uint32_t node = group->nodes[i];

                                if (p->group_of[node]) {
                                        struct finding *f = findings_add(p->findings, SEVERITY_ERROR, "D02", group->at,
                                            "node %.*s is in this group and in the one of line %u",
                                            SLICE_ARG(p->c->nodes[node].name), p->group_of[node]->at.line);

                                        finding_cure(p->findings, f,
                                            "give each group nodes of its own (two names may have one ip)");
                                } else
                                        p->group_of[node] = group;
                        }
                }
}

static bool is_address(struct slice ip) {
        char text[64];
        unsigned char out[16];

        if (ip.len >= sizeof(text))
                return false;
        memcpy(text, ip.ptr, ip.len);
        text[ip.len] = 0;
        return inet_pton(AF_INET, text, out) == 1 || inet_pton(AF_INET6, text, out) == 1;
}

bool ip_is_local_only(struct slice ip) {
        return slice_starts(ip, SLICE_LIT("127.")) || slice_is(ip, "::1") || slice_is(ip, "localhost") ||
               slice_is(ip, "0.0.0.0") || slice_is(ip, "::");
}

static void check_node(struct planner *p, const struct cluster_node *n) {
        const struct cluster *c = p->c;
        int64_t has = platform_devices(node_platform(c, n));
        struct finding *f;

        if (p->remote && ip_is_local_only(n->ip)) {
                f = planner_find(p, SEVERITY_ERROR, "N01", n->ip_at,
                    "%.*s is not an address at which the other nodes reach %.*s", SLICE_ARG(n->ip), SLICE_ARG(n->name));
                finding_cure(p->findings, f, "the address of its nic, as `ip addr` shows it");
        }
        if (c->engine.kind == ENGINE_VLLM_ASCEND && !is_address(n->ip)) {
                f = planner_find(p, SEVERITY_ERROR, "N02", n->ip_at, "`%.*s` is not an IP address", SLICE_ARG(n->ip));
                finding_cure(p->findings, f, "the address that the name stands for: HCCL_IF_IP takes no names");
        }
        if (c->engine.kind == ENGINE_VLLM_ASCEND && n->nic.len == 0) {
                f = planner_find(p, SEVERITY_ERROR, "N03", n->at, "%.*s has no `nic`", SLICE_ARG(n->name));
                finding_cure(p->findings, f, "nic: the interface that has %.*s (`ip -br addr`)", SLICE_ARG(n->ip));
        }
        if (node_platform(c, n) != c->platform) {
                f = planner_find(p, SEVERITY_ERROR, "N05", n->platform_at,
                    "%.*s is %s, the others are %s: ranks of one deployment do not mix them", SLICE_ARG(n->name),
                    platform_name(node_platform(c, n)), platform_name(c->platform));
                finding_cure(p->findings, f, "one cluster file for each kind of machine");
        }
        if (has >= 0 && n->devices >= 0 && n->first_device + n->devices > has) {
                f = planner_find(p, SEVERITY_WARNING, "D06", n->devices_at,
                    "%.*s has device %lld, %s machines have %lld", SLICE_ARG(n->name),
                    (long long)(n->first_device + n->devices - 1), platform_name(node_platform(c, n)), (long long)has);
                finding_cure(p->findings, f, "devices: at most %lld", (long long)has);
        }
        if (c->engine.kind == ENGINE_VLLM_ASCEND && p->version < VERSION(0, 10, 0) && n->first_device > 0) {
                f = planner_find(p, SEVERITY_ERROR, "D07", n->devices_at,
                    "%.*s begins at device %lld, vllm-ascend before 0.10 counts its devices from 0", SLICE_ARG(n->name),
                    (long long)n->first_device);
                finding_cure(p->findings, f, "a machine of its own for each group, or a newer engine");
        }
}

static void check_platform(struct planner *p) {
        const struct cluster *c = p->c;
        bool ascend = platform_is_ascend(c->platform);
        struct finding *f;

        if (c->engine.kind == ENGINE_VLLM_ASCEND && !ascend) {
                f = planner_find(p, SEVERITY_ERROR, "M13", c->engine.kind_at, "vllm-ascend does not run on platform %s",
                    platform_name(c->platform));
                finding_cure(p->findings, f, "platform: ascend-a2, ascend-a3 or ascend-a5");
        } else if (c->engine.kind == ENGINE_VLLM && ascend) {
                f = planner_find(p, SEVERITY_ERROR, "M13", c->engine.kind_at, "vllm does not run on platform %s",
                    platform_name(c->platform));
                finding_cure(p->findings, f, "engine: {kind: vllm-ascend}");
        }
}

void nodes_check(struct planner *p) {
        const struct cluster *c = p->c;

        check_platform(p);
        for (size_t i = 0; i < c->node_count; i++)
                p->remote |= p->group_of[i] && !ip_is_local_only(c->nodes[i].ip);
        for (size_t i = 0; i < c->node_count; i++)
                if (p->group_of[i])
                        check_node(p, &c->nodes[i]);
}
