/* judge_all.c - what shows only when NPUs are looked at together: doubles, subnets, what must be alike, and the pings. */
#include "verify/judge.h"
#include <stdio.h>
#include <stdlib.h>

/* One NPU and the number it is compared by. */
struct entry {
        uint64_t key, more; /* compared together */
        uint32_t node, npu;
};

static int compare_entries(const void *a, const void *b) {
        const struct entry *x = a, *y = b;

        if (x->key != y->key)
                return x->key < y->key ? -1 : 1;
        if (x->more != y->more)
                return x->more < y->more ? -1 : 1;
        if (x->node != y->node)
                return x->node < y->node ? -1 : 1;
        return (x->npu > y->npu) - (x->npu < y->npu);
}

static size_t count_npus(const struct facts *f) {
        size_t n = 0;

        for (size_t i = 0; i < f->node_count; i++)
                n += f->nodes[i].npu_count;
        return n;
}

static const struct npu_facts *npu_of(const struct judge *j, const struct entry *e) {
        return &j->facts->nodes[e->node].npus[e->npu];
}

static struct slice node_name(const struct judge *j, uint32_t node) {
        return j->facts->nodes[node].name;
}

/* Calls `each` for every usable NPU with an entry to fill, and returns the entries it took. NULL when memory is out. */
static struct entry *list_entries(struct judge *j, bool (*take)(struct judge *, struct entry *), size_t *ret_count) {
        struct entry *entries = arena_array(j->arena, count_npus(j->facts), sizeof(*entries));
        size_t n = 0;

        if (!entries) {
                j->findings->failed = true;
                *ret_count = 0;
                return NULL;
        }
        for (uint32_t i = 0; i < j->facts->node_count; i++)
                for (uint32_t k = 0; k < j->facts->nodes[i].npu_count && !j->marks[i].skip; k++) {
                        entries[n] = (struct entry){.node = i, .npu = k};
                        n += take(j, &entries[n]);
                }
        *ret_count = n;
        return entries;
}

/* ---- doubles -------------------------------------------------------------------------------------------------------- */

static bool take_ip(struct judge *j, struct entry *e) {
        e->key = npu_of(j, e)->ip.address;
        return npu_of(j, e)->ip.known;
}

static bool take_vnic(struct judge *j, struct entry *e) {
        e->key = npu_of(j, e)->vnic.address;
        return npu_of(j, e)->vnic.known;
}

static bool take_sdid(struct judge *j, struct entry *e) {
        e->key = npu_of(j, e)->spod.pod;
        e->more = npu_of(j, e)->spod.sdid;
        return npu_of(j, e)->spod.known && npu_of(j, e)->spod.has_sdid;
}

static void say_doubles(struct judge *j, bool (*take)(struct judge *, struct entry *), enum check check,
    enum severity severity, const char *what) {
        size_t n;
        struct entry *e = list_entries(j, take, &n);

        if (n)
                qsort(e, n, sizeof(*e), compare_entries);
        for (size_t i = 1; i < n; i++) {
                const struct npu_facts *a = npu_of(j, &e[i - 1]), *b = npu_of(j, &e[i]);
                struct verify_finding *f;
                char number[24];

                if (e[i].key != e[i - 1].key || e[i].more != e[i - 1].more)
                        continue;
                snprintf(number, sizeof(number), "%llu", (unsigned long long)b->spod.sdid);
                f = say(j, severity, check, e[i].node, b->device,
                    "duplicate %s %s: npu %u of %.*s and npu %u of %.*s have it", what,
                    check == CHECK_IP     ? b->ip.text
                    : check == CHECK_VNIC ? b->vnic.text
                                          : number,
                    a->device, SLICE_ARG(node_name(j, e[i - 1].node)), b->device, SLICE_ARG(node_name(j, e[i].node)));
                peer(f, e[i - 1].node, a->device);
                j->marks[e[i - 1].node].npus[e[i - 1].npu].doubled = j->marks[e[i].node].npus[e[i].npu].doubled = true;
                cure(j, f,
                    check == CHECK_IP
                        ? "give one of them an address of its own, and set it in /etc/hccn.conf"
                        : "the super pod manager hands them out: see that each server is registered once");
        }
}

/* ---- super pods ----------------------------------------------------------------------------------------------------- */

static bool take_pod(struct judge *j, struct entry *e) {
        e->key = npu_of(j, e)->spod.pod;
        return npu_of(j, e)->spod.known;
}

static bool take_server(struct judge *j, struct entry *e) {
        e->key = npu_of(j, e)->spod.server;
        return npu_of(j, e)->spod.known;
}

/* The key that most of the entries have; the smallest of them on a tie. Sorts them. */
static uint64_t most_frequent(struct entry *e, size_t n) {
        uint64_t best = 0;
        size_t best_run = 0;

        qsort(e, n, sizeof(*e), compare_entries);
        for (size_t i = 0, run = 0; i < n; i++) {
                run = i && e[i].key == e[i - 1].key ? run + 1 : 1;
                if (run > best_run) {
                        best_run = run;
                        best = e[i].key;
                }
        }
        return best;
}

static void say_odd_in_node(
    struct judge *j, bool (*take)(struct judge *, struct entry *), uint32_t node, const char *what) {
        struct entry e[MAP_ROWS_MAX];
        size_t n = 0;
        uint64_t usual;

        for (uint32_t k = 0; k < j->facts->nodes[node].npu_count && n < MAP_ROWS_MAX; k++) {
                e[n] = (struct entry){.node = node, .npu = k};
                n += take(j, &e[n]);
        }
        if (!n)
                return;
        usual = most_frequent(e, n);
        for (size_t i = 0; i < n; i++)
                if (e[i].key != usual)
                        cure(j,
                            say(j, SEVERITY_ERROR, CHECK_SPOD, node, npu_of(j, &e[i])->device,
                                "%s is %llu, the other NPUs of this node have %llu", what, (unsigned long long)e[i].key,
                                (unsigned long long)usual),
                            "the super pod manager has two registrations of this server: register it anew, then "
                            "reboot");
}

static bool take_place(struct judge *j, struct entry *e) {
        e->key = npu_of(j, e)->spod.pod;
        e->more = npu_of(j, e)->spod.server;
        return npu_of(j, e)->spod.known && e->npu == 0;
}

/* Two nodes of a pod at one server index have one set of SDIDs. */
static void say_shared_places(struct judge *j) {
        size_t n;
        struct entry *e = list_entries(j, take_place, &n);

        if (n)
                qsort(e, n, sizeof(*e), compare_entries);
        for (size_t i = 1; i < n; i++)
                if (e[i].key == e[i - 1].key && e[i].more == e[i - 1].more) {
                        struct verify_finding *f = say(j, SEVERITY_ERROR, CHECK_SPOD, e[i].node, -1,
                            "Server Index %llu of Super Pod ID %llu is %.*s too", (unsigned long long)e[i].more,
                            (unsigned long long)e[i].key, SLICE_ARG(node_name(j, e[i - 1].node)));

                        peer(f, e[i - 1].node, -1);
                        cure(j, f, "the super pod manager hands them out: see that each server is registered once");
                }
}

/* ---- gateways ------------------------------------------------------------------------------------------------------- */

static bool all_in_subnet_of(const struct judge *j, const struct npu_facts *npu) {
        const struct facts *f = j->facts;

        for (uint32_t i = 0; i < f->node_count; i++)
                for (uint32_t k = 0; k < f->nodes[i].npu_count; k++) {
                        const struct npu_address *other = &f->nodes[i].npus[k].ip;

                        if (other->known && ((other->address ^ npu->ip.address) & npu->ip.mask))
                                return false;
                }
        return true;
}

static void judge_gateway(struct judge *j, uint32_t node, uint32_t npu) {
        const struct npu_facts *p = &j->facts->nodes[node].npus[npu];
        struct slice said, value;
        enum trouble trouble = answer_trouble(&p->answers[TOPIC_GATEWAY], &said);
        bool missing = trouble == TROUBLE_NOT_PRESET || trouble == TROUBLE_EMPTY;

        if (!(p->asked >> TOPIC_GATEWAY & 1) || j->marks[node].npus[npu].link_down ||
            (j->facts->platform == PLATFORM_ASCEND_A3 && !p->ip.known))
                return;
        if (!missing) {
                if (!usable(j, node, npu, TOPIC_GATEWAY))
                        return;
                if (parse_value(p->answers[TOPIC_GATEWAY].out, "default gateway", &value) < 0)
                        cure(j,
                            say(j, roce_severity(j->facts), CHECK_GATEWAY, node, p->device,
                                "the answer about the default gateway is not understood"),
                            "run it by hand: %s", question_text(j->facts, p, TOPIC_GATEWAY, j->arena));
                return;
        }
        if (p->ip.known && p->ip.mask && !all_in_subnet_of(j, p))
                cure(j,
                    say(j, roce_severity(j->facts), CHECK_GATEWAY, node, p->device,
                        "no default gateway is set, and NPUs of other nodes lie in other subnets"),
                    "hccn_tool -i %u -gateway -s gateway A.B.C.D, and gateway_%u in /etc/hccn.conf", p->device,
                    p->device);
        else
                cure(j,
                    say(j, SEVERITY_WARNING, CHECK_GATEWAY, node, p->device,
                        "no default gateway is set; all NPUs are in one subnet, where none is needed"),
                    "hccn_tool -i %u -gateway -s gateway A.B.C.D, if there will be other subnets", p->device);
}

/* ---- switch ports --------------------------------------------------------------------------------------------------- */

struct port_entry {
        struct lldp lldp;
        uint32_t node, npu;
};

static int compare_ports(const void *a, const void *b) {
        const struct port_entry *x = a, *y = b;
        int r = slice_cmp(x->lldp.system, y->lldp.system);

        if (!r)
                r = slice_cmp(x->lldp.port, y->lldp.port);
        if (r)
                return r;
        return x->node != y->node ? (x->node < y->node ? -1 : 1) : (x->npu > y->npu) - (x->npu < y->npu);
}

static void say_shared_ports(struct judge *j) {
        const struct facts *f = j->facts;
        struct port_entry *e = arena_array(j->arena, count_npus(f), sizeof(*e));
        size_t n = 0;
        struct slice said;

        if (!e) {
                j->findings->failed = true;
                return;
        }
        for (uint32_t i = 0; i < f->node_count; i++)
                for (uint32_t k = 0; k < f->nodes[i].npu_count && !j->marks[i].skip; k++) {
                        const struct npu_facts *p = &f->nodes[i].npus[k];

                        e[n] = (struct port_entry){.node = i, .npu = k};
                        n += p->asked >> TOPIC_LLDP & 1 &&
                             answer_trouble(&p->answers[TOPIC_LLDP], &said) == TROUBLE_NONE &&
                             parse_lldp(p->answers[TOPIC_LLDP].out, &e[n].lldp) == 0;
                }
        if (n)
                qsort(e, n, sizeof(*e), compare_ports);
        for (size_t i = 1; i < n; i++) {
                const struct npu_facts *a, *b;
                struct verify_finding *v;

                if (!slice_eq(e[i].lldp.port, e[i - 1].lldp.port) ||
                    !slice_eq(e[i].lldp.system, e[i - 1].lldp.system) || !e[i].lldp.system.len)
                        continue;
                a = &f->nodes[e[i - 1].node].npus[e[i - 1].npu];
                b = &f->nodes[e[i].node].npus[e[i].npu];
                v = say(j, roce_severity(f), CHECK_LLDP, e[i - 1].node, a->device,
                    "switch port %.*s of %.*s is the neighbour of npu %u of %.*s too", SLICE_ARG(e[i].lldp.port),
                    SLICE_ARG(e[i].lldp.system), b->device, SLICE_ARG(node_name(j, e[i].node)));
                peer(v, e[i].node, b->device);
                cure(j, v, "one of the two is cabled wrongly, or the switch tells it wrongly: follow both cables");
        }
}

void judge_addresses(struct judge *j) {
        say_doubles(j, take_ip, CHECK_IP, roce_severity(j->facts), "RoCE address");
        say_doubles(j, take_vnic, CHECK_VNIC, SEVERITY_ERROR, "vnic address");
        say_doubles(j, take_sdid, CHECK_SPOD, SEVERITY_ERROR, "SDID");
        say_shared_places(j);
        say_shared_ports(j);
        for (uint32_t i = 0; i < j->facts->node_count; i++) {
                if (j->marks[i].skip)
                        continue;
                say_odd_in_node(j, take_pod, i, "Super Pod ID");
                say_odd_in_node(j, take_server, i, "Server Index");
                for (uint32_t k = 0; k < j->facts->nodes[i].npu_count; k++)
                        judge_gateway(j, i, k);
        }
}

/* ---- what must be alike --------------------------------------------------------------------------------------------- */

static bool has(const struct npu_facts *p, enum topic topic) {
        struct slice said;

        return p->asked >> topic & 1 && answer_trouble(&p->answers[topic], &said) == TROUBLE_NONE;
}

static bool take_tls(struct judge *j, struct entry *e) {
        unsigned on;

        if (!has(npu_of(j, e), TOPIC_TLS) || parse_tls(npu_of(j, e)->answers[TOPIC_TLS].out, &on) < 0)
                return false;
        e->key = on;
        return true;
}

static bool take_speed(struct judge *j, struct entry *e) {
        struct slice value, number;

        return has(npu_of(j, e), TOPIC_SPEED) && !j->marks[e->node].npus[e->npu].link_down &&
               parse_value(npu_of(j, e)->answers[TOPIC_SPEED].out, "Speed", &value) == 0 &&
               slice_split(&value, ' ', &number) && slice_to_u64(number, &e->key) == 0;
}

static void judge_tls(struct judge *j) {
        size_t n;
        struct entry *e = list_entries(j, take_tls, &n);
        uint64_t usual = n ? most_frequent(e, n) : 0;

        for (size_t i = 0; i < n; i++)
                if (e[i].key != usual)
                        cure(j,
                            say(j, SEVERITY_ERROR, CHECK_TLS, e[i].node, npu_of(j, &e[i])->device,
                                "the tls switch is %llu, most others have %llu", (unsigned long long)e[i].key,
                                (unsigned long long)usual),
                            "hccn_tool -i %u -tls -s enable %llu", npu_of(j, &e[i])->device, (unsigned long long)usual);
}

static void judge_speed(struct judge *j) {
        size_t n;
        struct entry *e = list_entries(j, take_speed, &n);
        uint64_t usual = n ? most_frequent(e, n) : 0;

        for (size_t i = 0; i < n; i++)
                if (e[i].key != usual)
                        cure(j,
                            say(j, roce_severity(j->facts), CHECK_SPEED, e[i].node, npu_of(j, &e[i])->device,
                                "the port runs at %llu Mb/s, most others at %llu", (unsigned long long)e[i].key,
                                (unsigned long long)usual),
                            "check module and switch port: they agreed on less than both can");
}

/* Versions are MAJOR.MINOR[.…]: "25.2.1", "25.0.rc1.1". */
#define DRIVER_MAJOR_MIN 25u

static bool driver_of(const struct npu_facts *p, struct slice *ret_version) {
        return has(p, TOPIC_BOARD) && parse_value(p->answers[TOPIC_BOARD].out, "Software Version", ret_version) == 0;
}

/* The version that more than half of the NPUs have (Boyer and Moore's vote); without such a majority, one of theirs. */
static struct slice usual_driver(const struct judge *j) {
        struct slice best = {0}, version;
        size_t votes = 0;

        for (uint32_t i = 0; i < j->facts->node_count; i++)
                for (uint32_t k = 0; k < j->facts->nodes[i].npu_count && !j->marks[i].skip; k++) {
                        if (!driver_of(&j->facts->nodes[i].npus[k], &version))
                                continue;
                        if (!votes)
                                best = version;
                        votes += slice_eq(best, version) ? 1 : (size_t)-1;
                }
        return best;
}

static void judge_driver(struct judge *j, uint32_t node, uint32_t npu, struct slice usual) {
        const struct npu_facts *p = &j->facts->nodes[node].npus[npu];
        struct slice version, major, rest;
        uint64_t number;

        if (!usable(j, node, npu, TOPIC_BOARD))
                return;
        if (!driver_of(p, &version)) {
                cure(j,
                    say(j, SEVERITY_WARNING, CHECK_NPU_BOARD, node, p->device, "`%s` tells no Software Version",
                        question_text(j->facts, p, TOPIC_BOARD, j->arena)),
                    "compare driver versions by hand");
                return;
        }
        rest = version;
        if (slice_split(&rest, '.', &major) && slice_to_u64(major, &number) == 0 && number < DRIVER_MAJOR_MIN)
                cure(j,
                    say(j, SEVERITY_ERROR, CHECK_NPU_BOARD, node, p->device,
                        "driver %.*s is older than 25.0, which large EP needs", SLICE_ARG(version)),
                    "install driver 25.0 or later");
        else if (!slice_eq(version, usual))
                cure(j,
                    say(j, SEVERITY_WARNING, CHECK_NPU_BOARD, node, p->device, "driver %.*s, most others have %.*s",
                        SLICE_ARG(version), SLICE_ARG(usual)),
                    "install the same driver everywhere");
}

void judge_agreement(struct judge *j) {
        struct slice usual = usual_driver(j);

        judge_tls(j);
        judge_speed(j);
        for (uint32_t i = 0; i < j->facts->node_count; i++)
                for (uint32_t k = 0; k < j->facts->nodes[i].npu_count && !j->marks[i].skip; k++)
                        if (j->facts->nodes[i].npus[k].asked >> TOPIC_BOARD & 1)
                                judge_driver(j, i, k, usual);
}
