/* judge_ports.c - planned ports: who holds them already, and from where they are not reached. One closed door is one finding,
 * not one per port and pair. */
#include "verify/agent.h"
#include "verify/host.h"
#include "verify/judge.h"
#include <stdlib.h>

/* A set of ports of one node, in the order of its plan. */
static bool *port_set(struct judge *j, const struct host_plan *p) {
        bool *set = arena_array(j->arena, p->port_count + 1, sizeof(*set));

        if (!set)
                j->findings->failed = true;
        return set;
}

/* "9000-9003,30000 (API port of d0.0 first)" */
static const char *ports_text(struct judge *j, const struct host_plan *p, const bool *set) {
        struct buf b = {0};
        const char *whose = NULL, *text;
        size_t count = 0;

        for (size_t i = 0; i < p->port_count; i++) {
                size_t from = i;

                if (!set[i])
                        continue;
                whose = whose ? whose : p->ports[i].whose;
                while (i + 1 < p->port_count && set[i + 1] && p->ports[i + 1].port == p->ports[i].port + 1)
                        i++;
                count += i - from + 1;
                buf_printf(&b, b.len ? ",%u" : "%u", p->ports[from].port);
                if (i > from)
                        buf_printf(&b, "-%u", p->ports[i].port);
        }
        text = arena_printf(j->arena, "port%s %s (%s%s)", count == 1 ? "" : "s", buf_cstr(&b), whose ? whose : "",
            count == 1 ? "" : " first");
        buf_free(&b);
        return text ? text : "ports";
}

/* ---- opening ---------------------------------------------------------------------------------------------------------- */

static void say_shut(struct judge *j, uint32_t node, const struct host_door *like, const bool *set, uint16_t port) {
        const char *ports = ports_text(j, &j->facts->nodes[node].plan, set);
        struct verify_finding *f;

        if (!slice_is(like->error, "EADDRINUSE")) {
                f = say(j, SEVERITY_ERROR, CHECK_PORT, node, -1, "%s cannot be listened on: %.*s", ports,
                    SLICE_ARG(like->error));
                cure(j, f,
                    slice_is(like->error, "EACCES") ? "ports below 1024 want root: choose higher ones"
                                                    : "`baton serve --port` there tells the same by hand");
        } else if (like->holder.len) {
                f = say(j, SEVERITY_ERROR, CHECK_PORT, node, -1, "%s: %.*s listens there already", ports,
                    SLICE_ARG(like->holder));
                cure(j, f,
                    "end it, or choose other ports in the cluster file. A deployment of this file that runs holds them "
                    "too: baton down");
        } else {
                f = say(j, SEVERITY_ERROR, CHECK_PORT, node, -1, "%s: another process listens there already", ports);
                cure(j, f, "`ss -ltnp sport = :%u` as root on this node names it; end it, or choose other ports", port);
        }
}

/* One finding for all ports of one reason and holder. */
static void judge_doors(struct judge *j, uint32_t node) {
        const struct node_facts *n = &j->facts->nodes[node];
        const struct host_plan *p = &n->plan;
        struct host_doors doors;
        bool *set, *told = port_set(j, p);

        if (!told || !p->port_count || n->host.facts.state == ANSWER_NO_NODE)
                return;
        if (!host_answered(&n->host.opened) || host_doors_parse(n->host.opened.out, j->arena, &doors) < 0) {
                say_host_trouble(j, node, &n->host.opened, "the planned ports");
                return;
        }
        for (size_t i = 0; i < p->port_count && i < DOORS_MAX; i++) {
                const struct host_door *door = host_door_find(&doors, p->ports[i].port);

                if (!door) {
                        say_host_trouble(j, node, &n->host.opened, "the planned ports");
                        return;
                }
                if (!door->error.len || told[i] || !(set = port_set(j, p)))
                        continue;
                for (size_t k = i; k < p->port_count; k++) {
                        const struct host_door *other = host_door_find(&doors, p->ports[k].port);

                        if (other && slice_eq(other->error, door->error) && slice_eq(other->holder, door->holder))
                                set[k] = told[k] = true;
                }
                say_shut(j, node, door, set, door->port);
        }
}

/* ---- reaching --------------------------------------------------------------------------------------------------------- */

struct visit {
        const struct host_try *try;
        struct host_doors doors;
        bool read;
        bool told; /* its source reaches nobody, which has been said */
};

static struct slice name_of(const struct judge *j, uint32_t node) {
        return j->facts->nodes[node].name;
}

static const char *reason(struct judge *j, struct slice error) {
        const char *text;

        if (slice_is(error, "ETIMEDOUT"))
                text = arena_printf(j->arena, "no answer within %.1f s", DOOR_DEADLINE_MS / 1000.0);
        else if (slice_is(error, "ECONNREFUSED"))
                text = "refused, though baton listens there";
        else if (slice_is(error, "EHOSTUNREACH") || slice_is(error, "ENETUNREACH"))
                text = "unreachable, no route or rejected on the way";
        else
                text = arena_printf(j->arena, "%.*s", SLICE_ARG(error));
        return text ? text : "out of memory";
}

/* `from` -1: any of the others. */
static void cure_reach(struct judge *j, struct verify_finding *f, uint32_t to, int64_t from, struct slice error) {
        const struct node_facts *n = &j->facts->nodes[to];
        const char *there = host_firewall_hint(&n->host, j->arena),
                   *here = from < 0 ? "" : host_firewall_hint(&j->facts->nodes[from].host, j->arena);
        struct slice at = *there ? n->name : from < 0 ? SLICE_LIT("") : name_of(j, (uint32_t)from);

        if (*there || *here)
                cure(j, f, "%s on %.*s drops or rejects packets: open the ports to the nodes, or end the firewall",
                    *there ? there : here, SLICE_ARG(at));
        else if (slice_is(error, "ETIMEDOUT"))
                cure(j, f,
                    "packets are dropped: a firewall or security group between the nodes; as root `nft list "
                    "ruleset` and `iptables -S` show a node's own");
        else if (slice_is(error, "ECONNREFUSED"))
                cure(j, f, "a firewall rejects them, or another machine has %.*s: `ip neigh` on both shows whose it is",
                    SLICE_ARG(n->ip));
        else
                cure(j, f, "`ip route get %.*s` on the other nodes; a subnet, a route or a firewall that rejects",
                    SLICE_ARG(n->ip));
}

/* A node that reaches no port of at least two others: it is the node, not its pairs. */
static void say_lonely(struct judge *j, struct visit *visits, size_t count) {
        for (uint32_t from = 0; from < j->facts->node_count; from++) {
                size_t tried = 0, lost = 0;
                const struct visit *last = NULL;
                struct verify_finding *f;

                for (size_t i = 0; i < count; i++) {
                        if (!visits[i].read || visits[i].try->from != from)
                                continue;
                        tried++;
                        lost += visits[i].doors.count_open == 0;
                        last = &visits[i];
                }
                if (tried < 2 || lost < tried)
                        continue;
                f = say(j, SEVERITY_ERROR, CHECK_REACH, from, -1, "reaches no planned port of the %zu other nodes: %s",
                    tried, reason(j, last->doors.items[0].error));
                cure_reach(j, f, from, -1, last->doors.items[0].error);
                for (size_t i = 0; i < count; i++)
                        visits[i].told |= visits[i].try->from == from;
        }
}

/* Ports of `to` that all visitors miss for one reason are the node's; what is left is the pair's. */
static void say_closed(struct judge *j, struct visit *visits, size_t count, uint32_t to) {
        const struct host_plan *p = &j->facts->nodes[to].plan;
        size_t visitors = 0;
        bool *all = port_set(j, p), *none = port_set(j, p);
        const struct visit *first = NULL;

        for (size_t i = 0; i < count; i++)
                if (visits[i].read && !visits[i].told && visits[i].try->to == to) {
                        visitors++;
                        first = first ? first : &visits[i];
                }
        if (!visitors || !all || !none)
                return;
        while (visitors > 1) {
                const struct host_door *like = NULL;
                struct verify_finding *f;
                bool *set = port_set(j, p);

                for (size_t k = 0; set && k < p->port_count; k++) {
                        const struct host_door *door = host_door_find(&first->doors, p->ports[k].port);
                        size_t same = 0;

                        if (!door || !door->error.len || all[k] || (like && !slice_eq(like->error, door->error)))
                                continue;
                        for (size_t i = 0; i < count; i++) {
                                const struct host_door *other = host_door_find(&visits[i].doors, p->ports[k].port);

                                same += visits[i].read && !visits[i].told && visits[i].try->to == to && other &&
                                        slice_eq(other->error, door->error);
                        }
                        if (same < visitors)
                                continue;
                        like = door;
                        set[k] = all[k] = true;
                }
                if (!like)
                        break;
                f = say(j, SEVERITY_ERROR, CHECK_REACH, to, -1,
                    "%s: not reached from any of the %zu nodes that tried: %s", ports_text(j, p, set), visitors,
                    reason(j, like->error));
                cure_reach(j, f, to, -1, like->error);
        }
        for (size_t i = 0; i < count; i++) {
                bool *told = visits[i].read && !visits[i].told && visits[i].try->to == to ? port_set(j, p) : NULL;

                for (size_t k = 0; told && k < p->port_count; k++) {
                        const struct host_door *door = host_door_find(&visits[i].doors, p->ports[k].port);
                        struct verify_finding *f;
                        bool *set;

                        if (!door || !door->error.len || all[k] || told[k] || !(set = port_set(j, p)))
                                continue;
                        for (size_t m = k; m < p->port_count; m++) {
                                const struct host_door *other = host_door_find(&visits[i].doors, p->ports[m].port);

                                if (other && !all[m] && slice_eq(other->error, door->error))
                                        set[m] = told[m] = true;
                        }
                        f = say(j, SEVERITY_ERROR, CHECK_REACH, to, -1, "%s: not reached from %.*s: %s",
                            ports_text(j, p, set), SLICE_ARG(name_of(j, visits[i].try->from)), reason(j, door->error));
                        peer(f, visits[i].try->from, -1);
                        cure_reach(j, f, to, visits[i].try->from, door->error);
                }
        }
}

void judge_ports(struct judge *j) {
        const struct facts *f = j->facts;
        struct visit *visits = arena_array(j->arena, f->hosts.try_count + 1, sizeof(*visits));
        struct verify_finding *v;

        if (!visits) {
                j->findings->failed = true;
                return;
        }
        if (!f->hosts.planned) {
                v = say(j, SEVERITY_ERROR, CHECK_PORT, -1, -1, "ports were not tried: the cluster file breaks rules");
                if (v)
                        v->unknown = true;
                cure(j, v, "`baton check` with this file tells which");
        }
        for (uint32_t i = 0; i < f->node_count; i++)
                judge_doors(j, i);
        for (size_t i = 0; i < f->hosts.try_count; i++) {
                const struct host_try *t = &f->hosts.tries[i];

                visits[i].try = t;
                visits[i].read =
                    host_answered(&t->answer) && host_doors_parse(t->answer.out, j->arena, &visits[i].doors) == 0;
                if (!visits[i].read)
                        say_host_trouble(j, t->from, &t->answer, "the ports of the others");
        }
        say_lonely(j, visits, f->hosts.try_count);
        for (uint32_t i = 0; i < f->node_count; i++)
                say_closed(j, visits, f->hosts.try_count, i);
}
