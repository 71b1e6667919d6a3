/* judge_probes.c - from thousands of pings to the few things that are wrong: an NPU that nobody reaches is one finding. */
#include "verify/grid.h"
#include "verify/judge.h"
#include <stdlib.h>

struct outcome {
        enum { PROBE_GOOD, PROBE_BAD, PROBE_DROPPED /* its cause is said elsewhere */ } kind;
        enum trouble trouble;
        struct slice said;
        struct ping ping; /* when there was no trouble */
        bool read;
};
struct side {
        size_t sent, sent_bad, reached, reached_bad;
        bool told;
};
struct probe_judge {
        struct judge *j;
        enum check check;
        struct outcome *outcomes;
        struct side **sides; /* by node and NPU */
};

static struct outcome outcome_of(struct judge *j, const struct probe *p) {
        const struct npu_marks *from = &j->marks[p->from_node].npus[p->from_npu],
                               *to = &j->marks[p->to_node].npus[p->to_npu];
        bool roce = j->facts->platform != PLATFORM_ASCEND_A3;
        struct outcome o = {.trouble = answer_trouble(&p->answer, &o.said)};

        if ((roce && (from->link_down || to->link_down)) || from->broken || to->broken || from->doubled || to->doubled)
                o.kind = PROBE_DROPPED;
        else if (o.trouble == TROUBLE_PERMISSION || o.trouble == TROUBLE_NO_NODE || o.trouble == TROUBLE_NO_TOOL)
                o.kind = PROBE_DROPPED;
        else if (o.trouble != TROUBLE_NONE)
                o.kind = PROBE_BAD;
        else {
                o.read = parse_ping(p->answer.out, &o.ping) == 0;
                o.kind = o.read && o.ping.received == o.ping.sent && !o.ping.plane.len ? PROBE_GOOD : PROBE_BAD;
        }
        return o;
}

static const struct npu_facts *from_npu(const struct facts *f, const struct probe *p) {
        return &f->nodes[p->from_node].npus[p->from_npu];
}
static const struct npu_facts *to_npu(const struct facts *f, const struct probe *p) {
        return &f->nodes[p->to_node].npus[p->to_npu];
}
static const char *address_of(const struct facts *f, const struct npu_facts *npu) {
        return f->platform == PLATFORM_ASCEND_A3 ? npu->vnic.text : npu->ip.text;
}

/* What happened to one probe, for the end of a sentence. */
static const char *outcome_text(struct probe_judge *pj, const struct outcome *o) {
        const char *text;

        if (o->trouble == TROUBLE_LATE)
                text = arena_printf(pj->j->arena, "timed out: no answer within %u s", ANSWER_DEADLINE_MS / 1000);
        else if (o->trouble == TROUBLE_EMPTY)
                text = "the tool says nothing";
        else if (o->trouble != TROUBLE_NONE)
                text = arena_printf(pj->j->arena, "%.*s", SLICE_ARG(o->said));
        else if (!o->read)
                text = "the answer is not understood";
        else if (o->ping.received != o->ping.sent)
                text = arena_printf(pj->j->arena, "%.*s of the packets lost", SLICE_ARG(o->ping.loss));
        else
                text = arena_printf(pj->j->arena, "L1 plane check result %.*s", SLICE_ARG(o->ping.plane));
        return text ? text : "out of memory";
}

static struct side *side_of(struct probe_judge *pj, uint32_t node, uint32_t npu) {
        return &pj->sides[node][npu];
}

static void count_sides(struct probe_judge *pj) {
        const struct facts *f = pj->j->facts;

        for (size_t i = 0; i < f->probe_count; i++) {
                const struct probe *p = &f->probes[i];
                struct side *from = side_of(pj, p->from_node, p->from_npu), *to = side_of(pj, p->to_node, p->to_npu);

                if (pj->outcomes[i].kind == PROBE_DROPPED)
                        continue;
                from->sent++;
                to->reached++;
                from->sent_bad += pj->outcomes[i].kind == PROBE_BAD;
                to->reached_bad += pj->outcomes[i].kind == PROBE_BAD;
        }
}

/* The NPU reaches none, or none reaches it: it is the NPU, not its pairs. */
static bool is_lost(const struct side *s) {
        return (s->sent > 1 && s->sent_bad == s->sent) || (s->reached > 1 && s->reached_bad == s->reached);
}

/* One finding for a lost NPU, with what happened to the first bad probe of it. A probe between two lost ones tells of
 * either. */
static void say_lost(struct probe_judge *pj) {
        struct judge *j = pj->j;
        const struct facts *f = j->facts;

        for (size_t i = 0; i < f->probe_count; i++) {
                const struct probe *p = &f->probes[i];
                const uint32_t ends[2][2] = {{p->from_node, p->from_npu}, {p->to_node, p->to_npu}};

                if (pj->outcomes[i].kind != PROBE_BAD)
                        continue;
                for (int e = 0; e < 2; e++) {
                        struct side *s = side_of(pj, ends[e][0], ends[e][1]);
                        const struct npu_facts *npu = &f->nodes[ends[e][0]].npus[ends[e][1]];
                        struct verify_finding *v;

                        if (!is_lost(s) || s->told)
                                continue;
                        s->told = true;
                        v = say(j, SEVERITY_ERROR, pj->check, ends[e][0], npu->device,
                            "this NPU (%s) reaches %zu of %zu NPUs of other nodes and is reached by %zu of %zu: %s",
                            address_of(f, npu), s->sent - s->sent_bad, s->sent, s->reached - s->reached_bad, s->reached,
                            outcome_text(pj, &pj->outcomes[i]));
                        if (v)
                                v->unknown = pj->outcomes[i].trouble == TROUBLE_BUSY;
                        if (pj->outcomes[i].trouble == TROUBLE_BUSY)
                                cure(j, v, "another program pings from this NPU all the time: end it and verify again");
                        else if (pj->check == CHECK_HCCS_PING)
                                cure(j, v,
                                    "npu-smi info -t health -i %u -c %u; if it is well, see the super pod's switches",
                                    npu->card, npu->chip);
                        else
                                cure(j, v, "check its address, gateway, VLAN and switch port");
                }
        }
}

static bool pair_told(struct probe_judge *pj, const struct probe *p) {
        return side_of(pj, p->from_node, p->from_npu)->told || side_of(pj, p->to_node, p->to_npu)->told;
}

static void say_pairs(struct probe_judge *pj) {
        struct judge *j = pj->j;
        const struct facts *f = j->facts;

        for (size_t i = 0; i < f->probe_count; i++) {
                const struct probe *p = &f->probes[i];
                struct verify_finding *v;

                if (pj->outcomes[i].kind != PROBE_BAD || pair_told(pj, p))
                        continue;
                v = say(j, SEVERITY_ERROR, pj->check, p->from_node, from_npu(f, p)->device,
                    "to npu %u of %.*s (%s): %s", to_npu(f, p)->device, SLICE_ARG(f->nodes[p->to_node].name),
                    address_of(f, to_npu(f, p)), outcome_text(pj, &pj->outcomes[i]));
                if (v)
                        v->unknown = pj->outcomes[i].trouble == TROUBLE_BUSY || pj->outcomes[i].trouble == TROUBLE_LATE;
                peer(v, p->to_node, to_npu(f, p)->device);
                cure(j, v,
                    pj->check == CHECK_HCCS_PING ? "one path of the super pod's switches: see the vendor with this pair"
                                                 : "check the path between the two: routes, VLAN, a lossy link");
        }
}

static int compare_doubles(const void *a, const void *b) {
        double x = *(const double *)a, y = *(const double *)b;

        return (x > y) - (x < y);
}

static void say_slow(struct probe_judge *pj) {
        struct judge *j = pj->j;
        const struct facts *f = j->facts;
        double *times = arena_array(j->arena, f->probe_count, sizeof(*times)), median;
        size_t n = 0;

        if (!times) {
                j->findings->failed = true;
                return;
        }
        for (size_t i = 0; i < f->probe_count; i++)
                if (pj->outcomes[i].kind == PROBE_GOOD)
                        times[n++] = pj->outcomes[i].ping.average_us;
        if (!n)
                return;
        qsort(times, n, sizeof(*times), compare_doubles);
        median = times[n / 2];
        for (size_t i = 0; i < f->probe_count; i++) {
                const struct probe *p = &f->probes[i];
                struct verify_finding *v;

                if (pj->outcomes[i].kind != PROBE_GOOD || pj->outcomes[i].ping.average_us <= SLOW_FACTOR * median)
                        continue;
                v = say(j, SEVERITY_WARNING, pj->check, p->from_node, from_npu(f, p)->device,
                    "to npu %u of %.*s (%s): %.1f µs, the median of all is %.1f µs", to_npu(f, p)->device,
                    SLICE_ARG(f->nodes[p->to_node].name), address_of(f, to_npu(f, p)), pj->outcomes[i].ping.average_us,
                    median);
                peer(v, p->to_node, to_npu(f, p)->device);
                cure(j, v, "verify again; if it stays, see error counters and link flaps of both");
        }
}

/* Permission and a missing tool may show in the pings alone. */
static void say_dropped(struct probe_judge *pj) {
        struct judge *j = pj->j;

        for (size_t i = 0; i < j->facts->probe_count; i++) {
                const struct probe *p = &j->facts->probes[i];
                struct verify_finding *v;

                if (pj->outcomes[i].trouble != TROUBLE_PERMISSION || j->marks[p->from_node].permission)
                        continue;
                j->marks[p->from_node].permission = true;
                v = say(j, SEVERITY_ERROR, CHECK_PERMISSION, p->from_node, -1,
                    "no permission to ping between NPUs: it must run as root; the tool says: %.*s",
                    SLICE_ARG(pj->outcomes[i].said));
                if (v)
                        v->unknown = true;
                cure(j, v, "run baton as root on this node (in a container: privileged), or log in there as root");
        }
}

void judge_probes(struct judge *j) {
        const struct facts *f = j->facts;
        struct probe_judge pj = {.j = j, .check = f->platform == PLATFORM_ASCEND_A3 ? CHECK_HCCS_PING : CHECK_PING};

        if (!f->probe_count)
                return;
        pj.outcomes = arena_array(j->arena, f->probe_count, sizeof(*pj.outcomes));
        pj.sides = arena_array(j->arena, f->node_count, sizeof(*pj.sides));
        for (size_t i = 0; pj.sides && i < f->node_count; i++)
                if (!(pj.sides[i] = arena_array(j->arena, f->nodes[i].npu_count, sizeof(**pj.sides))))
                        j->findings->failed = true;
        if (!pj.outcomes || !pj.sides || j->findings->failed) {
                j->findings->failed = true;
                return;
        }
        for (size_t i = 0; i < f->probe_count; i++)
                pj.outcomes[i] = outcome_of(j, &f->probes[i]);
        count_sides(&pj);
        say_dropped(&pj);
        say_lost(&pj);
        say_pairs(&pj);
        say_slow(&pj);
}
