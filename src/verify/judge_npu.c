/* judge_npu.c - each NPU by itself: health, addresses, link, module, counters. */
#include "verify/judge.h"
#include <stdio.h>

static void judge_health(struct judge *j, uint32_t node, uint32_t npu) {
        const struct npu_facts *p = &j->facts->nodes[node].npus[npu];
        struct slice out = p->answers[TOPIC_HEALTH].out, health, code, text;
        enum severity severity;

        if (!usable(j, node, npu, TOPIC_HEALTH))
                return;
        if (parse_value(out, "Health Status", &health) < 0 && parse_value(out, "Health", &health) < 0) {
                say_garbage(j, node, npu, TOPIC_HEALTH);
                return;
        }
        if (slice_is(health, "OK"))
                return;
        if (parse_value(out, "Error Code", &code) < 0)
                code = SLICE_LIT("NA");
        if (parse_value(out, "Error Information", &text) < 0)
                text = SLICE_LIT("");
        severity = slice_is(health, "Warning") || slice_is_icase(health, "UNKNOWN") ? SEVERITY_WARNING : SEVERITY_ERROR;
        cure(j,
            say(j, severity, CHECK_NPU_HEALTH, node, p->device, "the driver reports %.*s, error code %.*s %.*s",
                SLICE_ARG(health), SLICE_ARG(code), SLICE_ARG(text)),
            "look the code up in the vendor's fault list; npu-smi set -t reset -i %u -c %u clears what is not hardware",
            p->card, p->chip);
}

static void judge_link(struct judge *j, uint32_t node, uint32_t npu) {
        const struct npu_facts *p = &j->facts->nodes[node].npus[npu];
        struct slice value;
        size_t ports;

        if (j->facts->platform == PLATFORM_ASCEND_A5) {
                if (!usable(j, node, npu, TOPIC_LINK))
                        return;
                if (parse_ports(p->answers[TOPIC_LINK].out, &ports, &value) < 0)
                        say_garbage(j, node, npu, TOPIC_LINK);
                else if (value.len)
                        cure(j,
                            say(j, SEVERITY_ERROR, CHECK_LINK, node, p->device, "a port's link is not UP: %.*s",
                                SLICE_ARG(value)),
                            "check cable, module and switch port");
                return;
        }
        if (!topic_value(j, node, npu, TOPIC_LINK, "link status", &value) || slice_is(value, "UP"))
                return;
        if (!slice_is(value, "DOWN")) {
                say_garbage(j, node, npu, TOPIC_LINK);
                return;
        }
        j->marks[node].npus[npu].link_down = true;
        if (j->facts->platform == PLATFORM_ASCEND_A3)
                cure(j,
                    say(j, SEVERITY_WARNING, CHECK_LINK, node, p->device,
                        "the RoCE link is DOWN; data goes over HCCS, and hccs_ping decides"),
                    "nothing, where the RoCE plane is not used; else check cable, module and switch port");
        else
                cure(j, say(j, SEVERITY_ERROR, CHECK_LINK, node, p->device, "the RoCE link is DOWN"),
                    "check cable, module (hccn_tool -i %u -optical -g) and switch port", p->device);
}

static bool net_health_is_bad(struct slice value) {
        static const char *const bad[] = {"Socket fail", "Receive timeout", "Unreachable", "Time exceeded", "Fault",
            "Thread error", "Detect ip set", "Unknown"};

        for (size_t i = 0; i < sizeof(bad) / sizeof(*bad); i++)
                if (slice_starts(value, slice_str(bad[i])))
                        return true;
        return false;
}

static void judge_netdetect(struct judge *j, uint32_t node, uint32_t npu) {
        const struct npu_facts *p = &j->facts->nodes[node].npus[npu];
        struct slice out = p->answers[TOPIC_NETDETECT].out, value;
        uint32_t address;

        if (!usable(j, node, npu, TOPIC_NETDETECT))
                return;
        if (parse_value(out, "netdetect address", &value) < 0 && parse_value(out, "netdetect addr", &value) < 0)
                say_garbage(j, node, npu, TOPIC_NETDETECT);
        else if (parse_ipv4(value, &address) < 0 || address == 0) {
                j->marks[node].npus[npu].no_netdetect = true;
                cure(j,
                    say(j, SEVERITY_WARNING, CHECK_NETDETECT, node, p->device,
                        "the netdetect address is %.*s: net_health has nothing to probe", SLICE_ARG(value)),
                    "hccn_tool -i %u -netdetect -s address GATEWAY, and netdetect_%u in /etc/hccn.conf", p->device,
                    p->device);
        }
}

static void judge_net_health(struct judge *j, uint32_t node, uint32_t npu) {
        const struct npu_facts *p = &j->facts->nodes[node].npus[npu];
        struct slice value;

        if (!topic_value(j, node, npu, TOPIC_NET_HEALTH, "net health status", &value) || slice_is(value, "Success"))
                return;
        if (slice_is(value, "Init"))
                cure(j,
                    say(j, SEVERITY_WARNING, CHECK_NET_HEALTH, node, p->device,
                        "net health is Init: nothing has been probed yet"),
                    "set a netdetect address that answers, normally the gateway");
        else if (net_health_is_bad(value))
                cure(j,
                    say(j, roce_severity(j->facts), CHECK_NET_HEALTH, node, p->device, "net health is %.*s",
                        SLICE_ARG(value)),
                    "the netdetect address (hccn_tool -i %u -netdetect -g) does not answer: check it, the gateway and "
                    "the switch port's VLAN",
                    p->device);
        else
                say_garbage(j, node, npu, TOPIC_NET_HEALTH);
}

static void judge_ip(struct judge *j, uint32_t node, uint32_t npu) {
        const struct npu_facts *p = &j->facts->nodes[node].npus[npu];
        const struct answer *a = &p->answers[TOPIC_IP];
        struct npu_address address;
        struct slice said, text;
        enum trouble trouble = answer_trouble(a, &said);

        if (!(p->asked >> TOPIC_IP & 1) || p->ip.known)
                return;
        if (trouble == TROUBLE_NONE && parse_address(a->out, "ipaddr", "netmask", &address, &text) < 0 && text.len)
                cure(j,
                    say(j, roce_severity(j->facts), CHECK_IP, node, p->device,
                        "the RoCE address (ip) is %.*s, which is no IPv4 address to use", SLICE_ARG(text)),
                    "hccn_tool -i %u -ip -s address A.B.C.D netmask M.M.M.M", p->device);
        else if (trouble == TROUBLE_NOT_PRESET || trouble == TROUBLE_EMPTY) {
                if (j->facts->platform == PLATFORM_ASCEND_A3)
                        return; /* the RoCE plane may be unused */
                cure(j,
                    say(j, SEVERITY_ERROR, CHECK_IP, node, p->device, "no RoCE address (ip) is set%s%.*s",
                        said.len ? ": " : "; the tool says nothing", SLICE_ARG(said)),
                    "hccn_tool -i %u -ip -s address A.B.C.D netmask M.M.M.M, and address_%u in /etc/hccn.conf",
                    p->device, p->device);
        } else if (trouble == TROUBLE_NONE)
                say_garbage(j, node, npu, TOPIC_IP);
        else
                say_trouble(j, node, npu, TOPIC_IP, trouble, said);
}

static void judge_vnic(struct judge *j, uint32_t node, uint32_t npu) {
        const struct npu_facts *p = &j->facts->nodes[node].npus[npu];
        struct slice status, text;
        struct npu_address address;

        if (j->facts->platform == PLATFORM_ASCEND_A2 ||
            !topic_value(j, node, npu, TOPIC_VNIC, "vnic link status", &status))
                return;
        if (!slice_is(status, "UP"))
                cure(j, say(j, SEVERITY_ERROR, CHECK_VNIC, node, p->device, "the vnic link is %.*s", SLICE_ARG(status)),
                    "the HCCS side of this NPU is down: npu-smi info -t health -i %u -c %u; reset it, else see the "
                    "vendor",
                    p->card, p->chip);
        else if (parse_address(p->answers[TOPIC_VNIC].out, "vnic ipaddr", "vnic netmask", &address, &text) < 0)
                cure(j,
                    say(j, SEVERITY_ERROR, CHECK_VNIC, node, p->device, "the vnic address is %.*s",
                        SLICE_ARG(text.len ? text : SLICE_LIT("missing"))),
                    "the super pod manager gives it: see that this server is registered with it, then reboot");
}

static void judge_spod(struct judge *j, uint32_t node, uint32_t npu) {
        const struct npu_facts *p = &j->facts->nodes[node].npus[npu];

        if (j->facts->platform == PLATFORM_ASCEND_A2 || !usable(j, node, npu, TOPIC_SPOD))
                return;
        if (!p->spod.known || (!p->spod.has_sdid && j->facts->platform == PLATFORM_ASCEND_A3))
                say_garbage(j, node, npu, TOPIC_SPOD);
}

/* The file against the device. Where neither has an address there is nothing to compare. */
static void judge_conf(struct judge *j, uint32_t node, uint32_t npu) {
        const struct node_facts *n = &j->facts->nodes[node];
        const struct npu_facts *p = &n->npus[npu];
        char key[32];
        struct slice value;

        snprintf(key, sizeof(key), "address_%u", p->device);
        if (!p->ip.known || n->conf.state != ANSWER_GIVEN || n->conf.status)
                return;
        if (parse_conf(n->conf.out, key, &value) < 0)
                cure(j,
                    say(j, SEVERITY_ERROR, CHECK_HCCN_CONF, node, p->device, "/etc/hccn.conf has no %s, the NPU has %s",
                        key, p->ip.text),
                    "add %s=%s to /etc/hccn.conf", key, p->ip.text);
        else if (!slice_is(value, p->ip.text))
                cure(j,
                    say(j, SEVERITY_ERROR, CHECK_HCCN_CONF, node, p->device,
                        "/etc/hccn.conf says %s=%.*s, the NPU has %s: under the address of the file it is unreachable",
                        key, SLICE_ARG(value), p->ip.text),
                    "correct %s in /etc/hccn.conf, or: hccn_tool -i %u -ip -s address %.*s netmask …", key, p->device,
                    SLICE_ARG(value));
}

static void judge_conf_file(struct judge *j, uint32_t node) {
        const struct node_facts *n = &j->facts->nodes[node];
        bool used = false;

        for (size_t i = 0; i < n->npu_count; i++)
                used |= n->npus[i].ip.known;
        if (!used || n->from_part || (n->conf.state == ANSWER_GIVEN && n->conf.status == 0))
                return;
        cure(j,
            say(j, SEVERITY_ERROR, CHECK_HCCN_CONF, node, -1, "/etc/hccn.conf %s%.*s",
                n->conf.state == ANSWER_NO_TOOL ? "is not there" : "cannot be read: ", SLICE_ARG(n->conf.err)),
            "mount it into the container (-v /etc/hccn.conf:/etc/hccn.conf), or write it with hccn_tool -i N -ip -s …");
}

static void say_optical(struct judge *j, uint32_t node, uint32_t npu, enum severity severity, struct slice said) {
        cure(j,
            say(j, severity, CHECK_OPTICAL, node, j->facts->nodes[node].npus[npu].device, "optical: %.*s",
                SLICE_ARG(said)),
            "clean or reseat module and fibre, else replace the module");
}

/* "1.0189 mW" */
static bool milliwatts(struct slice value, double *ret_mw) {
        struct slice number;

        return slice_ends(value, SLICE_LIT(" mW")) && slice_split(&value, ' ', &number) &&
               slice_to_double(number, ret_mw) == 0;
}

static void judge_light(struct judge *j, uint32_t node, uint32_t npu, const char *way, const char *thresholds) {
        const struct npu_facts *p = &j->facts->nodes[node].npus[npu];
        struct slice out = p->answers[TOPIC_OPTICAL].out, value, limit;
        enum severity severity = roce_severity(j->facts);
        char key[32];
        double power, low, high;

        snprintf(key, sizeof(key), "%s Low Thres", thresholds);
        if (parse_value(out, key, &limit) < 0 || !milliwatts(limit, &low))
                return;
        for (unsigned lane = 0; lane < 8; lane++) {
                snprintf(key, sizeof(key), "%s Power%u", way, lane);
                if (parse_value(out, key, &value) < 0 || !milliwatts(value, &power) || power >= low)
                        continue;
                cure(j,
                    say(j, severity, CHECK_OPTICAL, node, p->device, "optical: %s is %.*s, below the threshold %.*s",
                        key, SLICE_ARG(value), SLICE_ARG(limit)),
                    "clean or reseat module and fibre, else replace the module");
        }
        snprintf(key, sizeof(key), "%s High Thres", thresholds);
        if (parse_value(out, key, &limit) < 0 || !milliwatts(limit, &high))
                return;
        for (unsigned lane = 0; lane < 8; lane++) {
                snprintf(key, sizeof(key), "%s Power%u", way, lane);
                if (parse_value(out, key, &value) == 0 && milliwatts(value, &power) && power > high)
                        say(j, SEVERITY_WARNING, CHECK_OPTICAL, node, p->device,
                            "optical: %s is %.*s, above the threshold %.*s", key, SLICE_ARG(value), SLICE_ARG(limit));
        }
}

static void judge_optical(struct judge *j, uint32_t node, uint32_t npu) {
        static const char *const flags[] = {"Tx Los Flag", "Rx Los Flag", "Tx LoL Flag", "Rx LoL Flag"};
        const struct npu_facts *p = &j->facts->nodes[node].npus[npu];
        const struct answer *a = &p->answers[TOPIC_OPTICAL];
        enum severity severity = roce_severity(j->facts);
        struct slice said, value;

        if (!(p->asked >> TOPIC_OPTICAL & 1))
                return;
        switch (answer_trouble(a, &said)) {
        case TROUBLE_NONE:
                break;
        case TROUBLE_NOT_PRESENT:
                say_optical(j, node, npu, severity, said);
                return;
        case TROUBLE_STARTING:
                say_optical(j, node, npu, SEVERITY_WARNING, said);
                return;
        case TROUBLE_UNSUPPORTED: /* a copper cable has no such values */
                return;
        default:
                usable(j, node, npu, TOPIC_OPTICAL);
                return;
        }
        if (parse_value(a->out, "present", &value) < 0) {
                say_garbage(j, node, npu, TOPIC_OPTICAL);
                return;
        }
        if (!slice_is(value, "present")) {
                say_optical(j, node, npu, severity, SLICE_LIT("the module is not present"));
                return;
        }
        for (size_t i = 0; i < sizeof(flags) / sizeof(*flags); i++)
                if (parse_value(a->out, flags[i], &value) == 0 && slice_starts(value, SLICE_LIT("0x")) &&
                    !slice_is(value, "0x0")) {
                        cure(j,
                            say(j, severity, CHECK_OPTICAL, node, p->device, "optical: %s is %.*s", flags[i],
                                SLICE_ARG(value)),
                            "no light or no lock: check fibre, module and the switch's side");
                        return;
                }
        judge_light(j, node, npu, "Rx", "RxPower");
        judge_light(j, node, npu, "Tx", "TxPower");
        if (parse_value(a->out, "Rx Los Flag", &value) < 0)
                cure(j,
                    say(j, SEVERITY_WARNING, CHECK_OPTICAL, node, p->device,
                        "`%s` does not tell whether there is light (Rx Los Flag)",
                        question_text(j->facts, p, TOPIC_OPTICAL, j->arena)),
                    "run it by hand; a driver and a tool of different versions do this");
}

/* "eth3" is an NPU's own name of its port; a switch says 400GE1/1/5:1 and its like. */
static bool is_npu_port(const struct lldp *l) {
        return slice_is(l->system, "davinci") || (slice_starts(l->port, SLICE_LIT("eth")) && l->port.len > 3 &&
                                                     l->port.ptr[3] >= '0' && l->port.ptr[3] <= '9');
}

static void judge_lldp(struct judge *j, uint32_t node, uint32_t npu) {
        const struct npu_facts *p = &j->facts->nodes[node].npus[npu];
        struct slice said;
        struct lldp l;

        if (!(p->asked >> TOPIC_LLDP & 1))
                return;
        if (answer_trouble(&p->answers[TOPIC_LLDP], &said) == TROUBLE_EMPTY)
                cure(j,
                    say(j, roce_severity(j->facts), CHECK_LLDP, node, p->device,
                        "no lldp neighbour: nothing is heard of "
                        "a switch at this port"),
                    "check the cable, and that the switch sends LLDP");
        else if (!usable(j, node, npu, TOPIC_LLDP))
                return;
        else if (parse_lldp(p->answers[TOPIC_LLDP].out, &l) < 0)
                say_garbage(j, node, npu, TOPIC_LLDP);
        else if (is_npu_port(&l))
                cure(j,
                    say(j, roce_severity(j->facts), CHECK_LLDP, node, p->device,
                        "the neighbour is another NPU (port %.*s), not a switch: cabled back to back",
                        SLICE_ARG(l.port)),
                    "cable it to its switch port");
        else if (!l.system.len)
                cure(j,
                    say(j, SEVERITY_WARNING, CHECK_LLDP, node, p->device,
                        "lldp tells port %.*s but no System Name: whose port it is, is not known", SLICE_ARG(l.port)),
                    "let the switch send its name over LLDP");
}

/* A link that went down twice within a day flaps; once is somebody's work at the rack. */
#define FLAP_HOURS 24
#define FLAP_DOWNS 2

static void judge_link_stat(struct judge *j, uint32_t node, uint32_t npu) {
        const struct npu_facts *p = &j->facts->nodes[node].npus[npu];
        unsigned downs;

        if (!usable(j, node, npu, TOPIC_LINK_STAT))
                return;
        if (parse_link_stat(p->answers[TOPIC_LINK_STAT].out, FLAP_HOURS, &downs) < 0)
                say_garbage(j, node, npu, TOPIC_LINK_STAT);
        else if (downs >= FLAP_DOWNS)
                cure(j,
                    say(j, SEVERITY_WARNING, CHECK_LINK_STAT, node, p->device, "the link went down %u times in %u h",
                        downs, FLAP_HOURS),
                    "check cable and module: hccn_tool -i %u -optical -g", p->device);
}

static bool is_error_counter(struct slice name) {
        static const char *const words[] = {"_bad_", "err", "out_of_order", "unexpected_ack", "new_pkt_rty"};

        for (size_t i = 0; i < sizeof(words) / sizeof(*words); i++)
                if (slice_find_slice(name, slice_str(words[i]), 0) < name.len)
                        return true;
        return false;
}

static void judge_stat(struct judge *j, uint32_t node, uint32_t npu) {
        const struct npu_facts *p = &j->facts->nodes[node].npus[npu];
        struct slice before = p->answers[TOPIC_STAT].out, after, name, other;
        struct buf grown = {0};
        uint64_t first, second;

        if (!usable(j, node, npu, TOPIC_STAT) || !usable(j, node, npu, TOPIC_STAT_LATER))
                return;
        if (!parse_counter(&before, &name, &first)) {
                say_garbage(j, node, npu, TOPIC_STAT);
                return;
        }
        do {
                if (!is_error_counter(name))
                        continue;
                after = p->answers[TOPIC_STAT_LATER].out;
                while (parse_counter(&after, &other, &second))
                        if (slice_eq(name, other) && second > first)
                                buf_printf(&grown, "%s%.*s +%llu", grown.len ? ", " : "", SLICE_ARG(name),
                                    (unsigned long long)(second - first));
        } while (parse_counter(&before, &name, &first));
        if (grown.len)
                cure(j,
                    say(j, SEVERITY_WARNING, CHECK_STAT, node, p->device, "error counters grow: %s", buf_cstr(&grown)),
                    "check cable, module and switch port");
        buf_free(&grown);
}

static void judge_tls_answer(struct judge *j, uint32_t node, uint32_t npu) {
        unsigned on;

        if (usable(j, node, npu, TOPIC_TLS) &&
            parse_tls(j->facts->nodes[node].npus[npu].answers[TOPIC_TLS].out, &on) < 0)
                say_garbage(j, node, npu, TOPIC_TLS);
}

static void judge_speed_answer(struct judge *j, uint32_t node, uint32_t npu) {
        const struct npu_facts *p = &j->facts->nodes[node].npus[npu];
        struct slice value;

        if (!topic_value(j, node, npu, TOPIC_SPEED, "Speed", &value))
                return;
        if (slice_starts(value, SLICE_LIT("Unknown")))
                cure(j, say(j, roce_severity(j->facts), CHECK_SPEED, node, p->device, "the port's speed is Unknown"),
                    "the port has not agreed on a speed with the switch: check module and switch port");
        else if (!slice_ends(value, SLICE_LIT("Mb/s")))
                say_garbage(j, node, npu, TOPIC_SPEED);
}

void judge_npus(struct judge *j, uint32_t node) {
        const struct node_facts *n = &j->facts->nodes[node];
        /* Called for every NPU in this order: a cause comes before what follows from it. */
        static void (*const always[])(struct judge *, uint32_t, uint32_t) = {
            judge_health, judge_link, judge_ip, judge_vnic, judge_spod, judge_conf, judge_tls_answer};
        static void (*const with_link[])(struct judge *, uint32_t, uint32_t) = {
            judge_netdetect, judge_optical, judge_lldp, judge_link_stat, judge_speed_answer, judge_stat};

        for (uint32_t i = 0; i < n->npu_count && !n->from_part; i++) {
                struct npu_marks *marks = &j->marks[node].npus[i];

                for (size_t k = 0; k < sizeof(always) / sizeof(*always); k++)
                        always[k](j, node, i);
                for (size_t k = 0; k < sizeof(with_link) / sizeof(*with_link) && !marks->link_down; k++)
                        with_link[k](j, node, i);
                if (!marks->link_down && !marks->no_netdetect)
                        judge_net_health(j, node, i);
        }
        judge_conf_file(j, node);
}
