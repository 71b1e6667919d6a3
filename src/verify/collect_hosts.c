/* collect_hosts.c - what is asked of hosts: about themselves, the time, and their planned ports from one another. */
#include "verify/agent.h"
#include "verify/core.h"
#include "verify/host.h"
#include <errno.h>
#include <stdlib.h>

/* The quickest of so many round trips bounds a clock. */
#define CLOCK_ROUNDS 3
/* A node whose ports all said nothing to so many others is not tried by the rest: each attempt takes seconds. */
#define DOOR_PATIENCE 3

/* ---- one question to every node ---------------------------------------------------------------------------------------- */

/* Nodes that could not be asked are not asked again: their agents are gone. */
static bool is_there(const struct node_facts *n) {
        return n->host.facts.state != ANSWER_NO_NODE;
}

static void ask_facts(struct collector *c) {
        struct facts *f = c->facts;
        struct batch *batches = arena_array(c->arena, f->node_count, sizeof(*batches));

        if (!batches) {
                c->failed = true;
                return;
        }
        for (uint32_t i = 0; i < f->node_count; i++) {
                struct batch *b = &batches[i];

                if (!batch_init(c, b, i, 2))
                        return;
                b->questions[b->count++] =
                    (struct question){{"host", "facts", f->hosts.model, f->hosts.state_dir}, LANE_OF_NODE, 0};
                if (*f->hosts.model)
                        b->questions[b->count++] =
                            (struct question){{"host", "model", f->hosts.model}, LANE_OF_NODE + 1, 0};
        }
        collector_ask(c, batches, f->node_count, "hosts");
        for (size_t i = 0; i < f->node_count; i++) {
                f->nodes[i].host.facts = batches[i].answers[0];
                if (batches[i].count > 1)
                        f->nodes[i].host.model = batches[i].answers[1];
        }
}

/* The same question to all nodes that `wants` names; NULL when there is none. */
static struct batch *batches_of(
    struct collector *c, bool (*wants)(const struct node_facts *), size_t questions, size_t *ret_count) {
        struct batch *batches = arena_array(c->arena, c->facts->node_count, sizeof(*batches));
        size_t n = 0;

        if (!batches)
                c->failed = true;
        for (uint32_t i = 0; batches && i < c->facts->node_count; i++)
                if (wants(&c->facts->nodes[i]) && batch_init(c, &batches[n], i, questions))
                        n++;
        *ret_count = n;
        return n && !c->failed ? batches : NULL;
}

static void read_clock(struct host_facts *host, const struct batch *b) {
        uint64_t there, bound = (b->back_ns - b->sent_ns) / 2;

        if (!host_answered(&b->answers[0]) || b->back_ns < b->sent_ns ||
            slice_to_u64(slice_trim(b->answers[0].out), &there) < 0 || there > INT64_MAX)
                return;
        if (host->clock_known && host->clock_bound_ns <= bound)
                return;
        host->clock_known = true;
        host->clock_bound_ns = bound;
        host->clock_ahead_ns = (int64_t)there - (int64_t)(b->sent_ns + bound);
}

static void ask_clocks(struct collector *c) {
        for (unsigned round = 0; round < CLOCK_ROUNDS && !c->failed; round++) {
                size_t n;
                struct batch *batches = batches_of(c, is_there, 1, &n);

                if (!batches)
                        return;
                for (size_t i = 0; i < n; i++) {
                        batches[i].questions[0] = (struct question){{"host", "clock"}, LANE_OF_NODE, 0};
                        batches[i].count = 1;
                }
                collector_ask(c, batches, n, "clocks");
                for (size_t i = 0; i < n; i++)
                        read_clock(&c->facts->nodes[batches[i].node].host, &batches[i]);
        }
}

/* ---- ports -------------------------------------------------------------------------------------------------------------- */

static bool has_ports(const struct node_facts *n) {
        return is_there(n) && n->plan.port_count > 0;
}

/* "9000-9015,30000" of those ports that `open` names (NULL: of all); "" of none. NULL when memory is out. */
static const char *ports_spec(struct collector *c, const struct host_plan *plan, const struct host_doors *open) {
        struct buf b = {0};
        const char *text;
        size_t taken = 0;

        for (size_t i = 0; i < plan->port_count && taken < DOORS_MAX; i++) {
                uint16_t first = plan->ports[i].port, last = first;

                if (open && !host_door_is_open(open, first))
                        continue;
                while (++taken < DOORS_MAX && i + 1 < plan->port_count && plan->ports[i + 1].port == last + 1 &&
                       (!open || host_door_is_open(open, plan->ports[i + 1].port))) {
                        last++;
                        i++;
                }
                buf_printf(&b, b.len ? ",%u" : "%u", first);
                if (last > first)
                        buf_printf(&b, "-%u", last);
        }
        text = arena_copy(c->arena, buf_slice(&b)).ptr;
        if (!text || !buf_ok(&b))
                c->failed = true;
        buf_free(&b);
        return c->failed ? NULL : text;
}

static const char *ip_of(struct collector *c, uint32_t node) {
        const char *ip = arena_copy(c->arena, c->facts->nodes[node].ip).ptr;

        if (!ip)
                c->failed = true;
        return ip;
}

static void open_ports(struct collector *c) {
        size_t n;
        struct batch *batches = batches_of(c, has_ports, 1, &n);

        if (!batches)
                return;
        for (size_t i = 0; i < n && !c->failed; i++) {
                struct batch *b = &batches[i];

                b->questions[0] = (struct question){
                    {"host", "open", ip_of(c, b->node), ports_spec(c, &c->facts->nodes[b->node].plan, NULL)},
                    LANE_OF_NODE, 0};
                b->count = 1;
        }
        if (c->failed)
                return;
        collector_ask(c, batches, n, "ports");
        for (size_t i = 0; i < n; i++)
                c->facts->nodes[batches[i].node].host.opened = batches[i].answers[0];
}

static void shut_ports(struct collector *c) {
        size_t n;
        struct batch *batches = batches_of(c, has_ports, 1, &n);

        if (!batches)
                return;
        for (size_t i = 0; i < n; i++) {
                batches[i].questions[0] = (struct question){{"host", "shut"}, LANE_OF_NODE, 0};
                batches[i].count = 1;
        }
        c->asker->ask(c->asker->context, batches, n, NULL, c->arena);
}

struct target {
        const char *spec; /* "": nothing open there */
        unsigned silent;  /* visits at which no port answered */
};

/* In one round every node tries one other, `step` further on, so that each is tried by one at a time. */
static void try_round(struct collector *c, struct target *targets, uint32_t step) {
        struct facts *f = c->facts;
        uint32_t count = (uint32_t)f->node_count;
        size_t n, first = f->hosts.try_count;
        struct batch *batches = batches_of(c, is_there, 1, &n), *asked;
        size_t used = 0;

        asked = batches ? arena_array(c->arena, n, sizeof(*asked)) : NULL;
        for (size_t i = 0; asked && i < n; i++) {
                uint32_t from = batches[i].node, to = (from + step) % count;

                if (!*targets[to].spec || targets[to].silent >= DOOR_PATIENCE)
                        continue;
                asked[used] = batches[i];
                asked[used].questions[0] =
                    (struct question){{"host", "try", ip_of(c, to), targets[to].spec}, LANE_OF_NODE, 0};
                asked[used++].count = 1;
                f->hosts.tries[f->hosts.try_count++] = (struct host_try){from, to, {0}};
        }
        if (!used || c->failed)
                return;
        collector_ask(c, asked, used, "reach");
        for (size_t i = 0; i < used; i++) {
                struct host_try *t = &f->hosts.tries[first + i];
                struct host_doors doors;

                t->answer = asked[i].answers[0];
                if (host_answered(&t->answer) && host_doors_parse(t->answer.out, c->arena, &doors) == 0 &&
                    doors.count_silent == doors.count)
                        targets[t->to].silent++;
        }
}

static void try_ports(struct collector *c) {
        struct facts *f = c->facts;
        size_t rounds = f->node_count ? f->node_count - 1 : 0;
        struct target *targets = arena_array(c->arena, f->node_count, sizeof(*targets));

        if (rounds > DOOR_VISITS_MAX)
                rounds = DOOR_VISITS_MAX;
        f->hosts.tries = arena_array(c->arena, f->node_count * rounds + 1, sizeof(*f->hosts.tries));
        if (!targets || !f->hosts.tries) {
                c->failed = true;
                return;
        }
        for (size_t i = 0; i < f->node_count; i++) {
                const struct node_facts *n = &f->nodes[i];
                struct host_doors doors;

                targets[i].spec = "";
                if (host_answered(&n->host.opened) && host_doors_parse(n->host.opened.out, c->arena, &doors) == 0)
                        targets[i].spec = ports_spec(c, &n->plan, &doors);
                if (c->failed)
                        return;
        }
        c->done = 0;
        c->all = f->node_count * rounds;
        for (uint32_t step = 1; step <= rounds && !c->failed; step++)
                try_round(c, targets, step);
}

/* ---- firewalls: asked only where ports were not reached ------------------------------------------------------------------ */

static void ask_firewalls(struct collector *c) {
        struct facts *f = c->facts;
        bool *wanted = arena_array(c->arena, f->node_count, sizeof(*wanted));
        struct batch *batches = arena_array(c->arena, f->node_count, sizeof(*batches));
        size_t n = 0;

        if (!wanted || !batches) {
                c->failed = true;
                return;
        }
        for (size_t i = 0; i < f->hosts.try_count; i++) {
                const struct host_try *t = &f->hosts.tries[i];
                struct host_doors doors;

                if (!host_answered(&t->answer) || host_doors_parse(t->answer.out, c->arena, &doors) < 0 ||
                    doors.count_open == doors.count)
                        continue;
                wanted[t->from] = wanted[t->to] = true;
        }
        for (uint32_t i = 0; i < f->node_count; i++) {
                if (!wanted[i] || !is_there(&f->nodes[i]))
                        continue;
                if (!batch_init(c, &batches[n], i, 2))
                        return;
                batches[n].questions[0] = (struct question){{"nft", "list", "ruleset"}, LANE_OF_NODE, 0};
                batches[n].questions[1] = (struct question){{"iptables", "-S"}, LANE_OF_NODE + 1, 0};
                batches[n++].count = 2;
        }
        if (!n)
                return;
        c->asker->ask(c->asker->context, batches, n, NULL, c->arena);
        for (size_t i = 0; i < n; i++) {
                struct host_facts *h = &f->nodes[batches[i].node].host;

                h->firewall_asked = true;
                h->nft = batches[i].answers[0];
                h->iptables = batches[i].answers[1];
        }
}

int collect_hosts(
    struct facts *facts, const struct asker *asker, const struct progress *progress, struct arena *arena) {
        struct collector c = {.facts = facts, .asker = asker, .progress = progress, .arena = arena};

        facts->hosts.asked = true;
        ask_facts(&c);
        if (!c.failed)
                ask_clocks(&c);
        if (!c.failed)
                open_ports(&c);
        if (!c.failed)
                try_ports(&c);
        shut_ports(&c);
        if (!c.failed)
                ask_firewalls(&c);
        return c.failed ? -ENOMEM : 0;
}

/* ---- what the plan wants of each ------------------------------------------------------------------------------------------ */

/* HCCL listens on 16 ports of every node with NPUs; a rank may have been told other ones. */
#define HCCL_PORT  60000u
#define HCCL_PORTS 16u

static size_t machine_at(const struct facts *f, struct slice ip) {
        size_t i = 0;

        while (i < f->node_count && !slice_eq(f->nodes[i].ip, ip))
                i++;
        return i;
}

static int compare_ports(const void *a, const void *b) {
        const struct host_port *x = a, *y = b;

        return (x->port > y->port) - (x->port < y->port);
}

static void sort_ports(struct host_plan *p) {
        size_t kept = 0;

        if (p->port_count)
                qsort(p->ports, p->port_count, sizeof(*p->ports), compare_ports);
        for (size_t i = 0; i < p->port_count; i++)
                if (!kept || p->ports[kept - 1].port != p->ports[i].port)
                        p->ports[kept++] = p->ports[i];
        p->port_count = kept;
}

static const char *env_value(const struct plan_rank *rank, const char *name) {
        size_t len = strlen(name);

        for (size_t i = 0; rank->env[i]; i++)
                if (!strncmp(rank->env[i], name, len) && (rank->env[i][len] == '=' || !rank->env[i][len]))
                        return rank->env[i] + len; /* "" when it is removed */
        return NULL;
}

static void plan_ranks(struct facts *f, const struct plan *plan, uint64_t *hccl) {
        for (size_t i = 0; i < plan->rank_count; i++) {
                const struct plan_rank *rank = &plan->ranks[i];
                size_t at = machine_at(f, plan->cluster->nodes[rank->node].ip);
                const char *base = env_value(rank, "HCCL_IF_BASE_PORT"), *proxy = env_value(rank, "http_proxy");

                if (at == f->node_count)
                        continue;
                f->nodes[at].plan.ranks++;
                /* An embedded rank knows no proxies. */
                f->nodes[at].plan.inherits_proxy |= !proxy && plan->cluster->engine.kind != ENGINE_EMBEDDED;
                if (!base || *base != '=' || slice_to_u64(slice_str(base + 1), &hccl[at]) < 0 || hccl[at] > 65535)
                        hccl[at] = HCCL_PORT;
        }
}

static int plan_ports(struct facts *f, const struct plan *plan, bool ascend, struct arena *arena) {
        uint64_t *hccl = arena_array(arena, f->node_count, sizeof(*hccl));
        size_t *room = arena_array(arena, f->node_count + 1, sizeof(*room));

        if (!hccl || !room)
                return -ENOMEM;
        plan_ranks(f, plan, hccl);
        for (size_t i = 0; i < plan->port_count; i++)
                room[machine_at(f, plan->ports[i].ip)] += plan->ports[i].count;
        for (size_t i = 0; i < f->node_count; i++) {
                struct host_plan *p = &f->nodes[i].plan;

                p->ports = arena_array(arena, room[i] + HCCL_PORTS, sizeof(*p->ports));
                if (!p->ports)
                        return -ENOMEM;
                for (unsigned k = 0; ascend && p->ranks && k < HCCL_PORTS && hccl[i] + k <= 65535; k++)
                        p->ports[p->port_count++] = (struct host_port){(uint16_t)(hccl[i] + k), "HCCL"};
        }
        for (size_t i = 0; i < plan->port_count; i++) {
                const struct plan_port *p = &plan->ports[i];
                size_t at = machine_at(f, p->ip);

                for (unsigned k = 0; at < f->node_count && k < p->count; k++)
                        f->nodes[at].plan.ports[f->nodes[at].plan.port_count++] =
                            (struct host_port){(uint16_t)(p->first + k), p->whose};
        }
        for (size_t i = 0; i < f->node_count; i++)
                sort_ports(&f->nodes[i].plan);
        return 0;
}

int facts_plan_hosts(struct facts *facts, const struct cluster *c, const struct plan *plan, struct arena *arena) {
        bool ascend =
            c->platform == PLATFORM_ASCEND_A2 || c->platform == PLATFORM_ASCEND_A3 || c->platform == PLATFORM_ASCEND_A5;

        if (c->gateway.present && c->gateway.node >= 0) {
                const struct cluster_node *n = &c->nodes[c->gateway.node];

                if (machine_at(facts, n->ip) == facts->node_count) {
                        struct node_facts *nodes = arena_array(arena, facts->node_count + 1, sizeof(*nodes));

                        if (!nodes)
                                return -ENOMEM;
                        memcpy(nodes, facts->nodes, facts->node_count * sizeof(*nodes));
                        nodes[facts->node_count++] =
                            (struct node_facts){.name = n->name, .ip = n->ip, .host_only = true};
                        facts->nodes = nodes;
                }
        }
        for (size_t i = 0; i < facts->node_count; i++) {
                facts->nodes[i].host_only |= !ascend;
                for (size_t k = 0; k < c->node_count; k++)
                        if (slice_eq(c->nodes[k].ip, facts->nodes[i].ip) && c->nodes[k].nic.len)
                                facts->nodes[i].plan.nic = c->nodes[k].nic;
        }
        facts->hosts.planned = plan != NULL;
        facts->hosts.state_dir = arena_copy(arena, c->supervise.state_dir).ptr;
        facts->hosts.model = ""; /* the caller's to set: whether a relative path means anything elsewhere */
        facts->hosts.log_bytes = (uint64_t)c->supervise.log_bytes * (uint64_t)c->supervise.log_files;
        if (!facts->hosts.state_dir)
                return -ENOMEM;
        return plan ? plan_ports(facts, plan, ascend, arena) : 0;
}
