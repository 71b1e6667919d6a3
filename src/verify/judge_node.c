/* judge_node.c - a node by itself: tools, platform, which NPUs, who holds them; and what stood in the way of an answer. */
#include "verify/judge.h"

/* ---- what stood in the way of an answer ------------------------------------------------------------------------------ */

enum check check_of_topic(enum topic topic) {
        static const enum check checks[TOPIC_COUNT] = {
            [TOPIC_HEALTH] = CHECK_NPU_HEALTH,
            [TOPIC_BOARD] = CHECK_NPU_BOARD,
            [TOPIC_SPOD] = CHECK_SPOD,
            [TOPIC_LINK] = CHECK_LINK,
            [TOPIC_NET_HEALTH] = CHECK_NET_HEALTH,
            [TOPIC_NETDETECT] = CHECK_NETDETECT,
            [TOPIC_GATEWAY] = CHECK_GATEWAY,
            [TOPIC_IP] = CHECK_IP,
            [TOPIC_VNIC] = CHECK_VNIC,
            [TOPIC_TLS] = CHECK_TLS,
            [TOPIC_OPTICAL] = CHECK_OPTICAL,
            [TOPIC_LLDP] = CHECK_LLDP,
            [TOPIC_SPEED] = CHECK_SPEED,
            [TOPIC_LINK_STAT] = CHECK_LINK_STAT,
            [TOPIC_STAT] = CHECK_STAT,
            [TOPIC_STAT_LATER] = CHECK_STAT,
        };

        return checks[topic];
}

enum severity roce_severity(const struct facts *f) {
        return f->platform == PLATFORM_ASCEND_A3 ? SEVERITY_WARNING : SEVERITY_ERROR;
}

static enum severity topic_severity(const struct facts *f, enum topic topic) {
        switch (topic) {
        case TOPIC_HEALTH:
        case TOPIC_BOARD:
        case TOPIC_SPOD:
        case TOPIC_VNIC:
        case TOPIC_TLS:
                return SEVERITY_ERROR;
        case TOPIC_STAT:
        case TOPIC_STAT_LATER:
        case TOPIC_LINK_STAT:
                return SEVERITY_WARNING;
        default:
                return roce_severity(f);
        }
}

static void say_no_tool(struct judge *j, uint32_t node, const char *tool) {
        bool *said = &j->marks[node].no_tool[strcmp(tool, "hccn_tool") != 0];
        struct verify_finding *f;

        if (*said)
                return;
        *said = true;
        f = say(j, SEVERITY_ERROR, CHECK_TOOLS, node, -1, "there is no %s", tool);
        if (f)
                f->unknown = true;
        cure(j, f,
            !strcmp(tool, "hccn_tool")
                ? "install the driver, mount /usr/local/Ascend/driver into the container, or set "
                  "HCCN_TOOL_PATH to where hccn_tool is"
                : "install the driver, or mount /usr/local/bin/npu-smi into the container");
}

static void say_permission(struct judge *j, uint32_t node, const char *command, struct slice said) {
        struct verify_finding *f;

        if (j->marks[node].permission)
                return;
        j->marks[node].permission = true;
        f = say(j, SEVERITY_ERROR, CHECK_PERMISSION, node, -1,
            "no permission for `%s` and its like: it must run as root; the tool says: %.*s", command, SLICE_ARG(said));
        if (f)
                f->unknown = true;
        cure(j, f, "run baton as root on this node (in a container: privileged), or log in there as root");
}

void say_trouble(
    struct judge *j, uint32_t node, uint32_t npu, enum topic topic, enum trouble trouble, struct slice said) {
        const struct npu_facts *p = &j->facts->nodes[node].npus[npu];
        struct npu_marks *marks = &j->marks[node].npus[npu];
        const char *command = question_text(j->facts, p, topic, j->arena);
        enum severity severity = topic_severity(j->facts, topic);
        enum check check = check_of_topic(topic);
        struct verify_finding *f;

        switch (trouble) {
        case TROUBLE_NO_TOOL:
                say_no_tool(j, node, topic_rows[topic].words[0]);
                break;
        case TROUBLE_PERMISSION:
                say_permission(j, node, command, said);
                break;
        case TROUBLE_HEALTH:
                if (marks->broken)
                        break;
                marks->broken = true;
                f = say(j, SEVERITY_ERROR, CHECK_NPU_HEALTH, node, p->device,
                    "the driver's health check of this NPU fails in front of every query: %.*s", SLICE_ARG(said));
                cure(j, f, "npu-smi info -t health -i %u -c %u; npu-smi set -t reset -i %u -c %u, else see the vendor",
                    p->card, p->chip, p->card, p->chip);
                break;
        case TROUBLE_LATE:
                if (marks->late)
                        break;
                marks->late = true;
                f = say(j, SEVERITY_ERROR, check, node, p->device, "`%s` timed out: no answer within %u s", command,
                    ANSWER_DEADLINE_MS / 1000);
                if (f)
                        f->unknown = true;
                cure(j, f,
                    "the driver of this NPU may hang: look at dmesg; a reboot of the node mends what a reset does not");
                break;
        case TROUBLE_BUSY:
                f = say(j, severity, check, node, p->device, "`%s` is refused again and again: %.*s", command,
                    SLICE_ARG(said));
                if (f)
                        f->unknown = true;
                cure(j, f, "another program asks this NPU all the time: end it and verify again");
                break;
        case TROUBLE_EMPTY:
                f = say(j, severity, check, node, p->device, "`%s` says nothing: status 0 and empty output", command);
                cure(j, f, "run it by hand; a driver and a tool of different versions do this");
                break;
        default:
                f = say(j, severity, check, node, p->device, "`%s` failed: %.*s", command, SLICE_ARG(said));
                cure(j, f, "run it by hand; a driver and a tool of different versions do this");
        }
}

bool usable(struct judge *j, uint32_t node, uint32_t npu, enum topic topic) {
        const struct npu_facts *p = &j->facts->nodes[node].npus[npu];
        enum trouble trouble;
        struct slice said;

        if (!(p->asked >> topic & 1))
                return false;
        trouble = answer_trouble(&p->answers[topic], &said);
        if (trouble != TROUBLE_NONE)
                say_trouble(j, node, npu, topic, trouble, said);
        return trouble == TROUBLE_NONE;
}

/* An answer that came but is not understood. Bytes that are no text are not shown. */
void say_garbage(struct judge *j, uint32_t node, uint32_t npu, enum topic topic) {
        const struct npu_facts *p = &j->facts->nodes[node].npus[npu];
        struct slice out = slice_sub(slice_trim(p->answers[topic].out), 0, 60);
        bool text = true;

        for (size_t i = 0; i < out.len; i++)
                text &= (unsigned char)out.ptr[i] >= ' ' && (unsigned char)out.ptr[i] < 127;
        cure(j,
            say(j, topic_severity(j->facts, topic), check_of_topic(topic), node, p->device,
                "the answer to `%s` (%s) is not understood: %.*s", question_text(j->facts, p, topic, j->arena),
                check_rows[check_of_topic(topic)].name, SLICE_ARG(text ? out : SLICE_LIT("bytes that are no text"))),
            "run it by hand; a driver and a tool of different versions do this");
}

/* The value of `key` in a topic's answer, or false when there is none, which has been said then. */
bool topic_value(
    struct judge *j, uint32_t node, uint32_t npu, enum topic topic, const char *key, struct slice *ret_value) {
        if (!usable(j, node, npu, topic))
                return false;
        if (parse_value(j->facts->nodes[node].npus[npu].answers[topic].out, key, ret_value) == 0)
                return true;
        say_garbage(j, node, npu, topic);
        return false;
}

/* ---- the node -------------------------------------------------------------------------------------------------------- */

/* Trouble with one of the node's own questions; true when there was some, and it has been said. */
static bool node_trouble(
    struct judge *j, uint32_t node, const struct answer *a, enum check check, const char *command) {
        struct slice said;
        enum trouble trouble = answer_trouble(a, &said);
        struct verify_finding *f = NULL;

        switch (trouble) {
        case TROUBLE_NONE:
                return false;
        case TROUBLE_NO_NODE:
                if (j->marks[node].skip)
                        return true;
                j->marks[node].skip = j->marks[node].gone = true;
                f = say(j, SEVERITY_ERROR, CHECK_NODE, node, -1, "cannot be asked: %.*s", SLICE_ARG(said));
                cure(j, f, "the node must be reachable by ssh without a question, and have this baton in its PATH");
                break;
        case TROUBLE_NO_TOOL:
                say_no_tool(j, node, "npu-smi");
                return true;
        case TROUBLE_LATE:
                f = say(j, SEVERITY_ERROR, check, node, -1, "`%s` timed out: no answer within %u s", command,
                    ANSWER_DEADLINE_MS / 1000);
                cure(j, f, "npu-smi hangs on a sick driver: look at dmesg; a reboot mends it");
                break;
        case TROUBLE_PERMISSION:
                say_permission(j, node, command, said);
                return true;
        default:
                say(j, SEVERITY_ERROR, check, node, -1, "`%s` failed: %.*s", command, SLICE_ARG(said));
                return true;
        }
        if (f)
                f->unknown = true;
        return true;
}

static void judge_list(struct judge *j, uint32_t node) {
        const struct node_facts *n = &j->facts->nodes[node];
        struct verify_finding *f;
        struct buf missing = {0};
        int64_t first = -1;
        uint64_t total;

        if (!node_trouble(j, node, &n->list, CHECK_NPU_LIST, "npu-smi info -l") &&
            parse_number(n->list.out, "Total Count", &total) < 0)
                cure(j,
                    say(j, SEVERITY_ERROR, CHECK_NPU_LIST, node, -1,
                        "the answer to `npu-smi info -l` is not understood: it has no Total Count"),
                    "run it by hand; a driver and a tool of different versions do this");
        if (n->expected < 0 || (int64_t)n->npu_count >= n->expected)
                return;
        for (int64_t d = 0, at = 0; d < n->expected; d++) {
                if (at < (int64_t)n->npu_count && n->npus[at].device == d) {
                        at++;
                        continue;
                }
                if (first < 0)
                        first = d;
                buf_printf(&missing, "%s%lld", missing.len ? ", " : "", (long long)d);
        }
        f = say(j, SEVERITY_ERROR, CHECK_NPU_LIST, node, first, "npu-smi lists %zu of %lld NPUs; missing: %s",
            n->npu_count, (long long)n->expected, buf_cstr(&missing));
        cure(j, f, "lspci shows whether the card is on the bus; reseat or replace it, or set `devices` of this node");
        buf_free(&missing);
}

/* The processes and the memory they hold, of `npu-smi info`. */
static const struct npu_facts *npu_at(const struct node_facts *n, uint32_t card, uint32_t chip) {
        for (size_t i = 0; i < n->npu_count; i++)
                if (n->npus[i].card == card && n->npus[i].chip == chip)
                        return &n->npus[i];
        return NULL;
}

/* Idle NPUs use 3 to 5 % of their memory (3 of 64 GB). */
#define HBM_IDLE_SHARE 6

/* A card of whose processes the table tells nothing, neither one nor that there is none: it was cut, or is of another form. */
static void say_untold(struct judge *j, uint32_t node, const bool *told) {
        const struct node_facts *n = &j->facts->nodes[node];

        for (size_t i = 0; i < n->npu_count; i++) {
                if (told[i] || table_tells_none(n->table.out, n->npus[i].card))
                        continue;
                cure(j,
                    say(j, SEVERITY_WARNING, CHECK_NPU_PROCESS, node, -1,
                        "the table of `npu-smi info` tells nothing of processes on NPU %u", n->npus[i].card),
                    "look for old processes by hand");
                return;
        }
}

static void judge_processes(struct judge *j, uint32_t node) {
        const struct node_facts *n = &j->facts->nodes[node];
        struct table_reader reader = {n->table.out, 0, false};
        struct table_row row;
        uint64_t held[MAP_ROWS_MAX] = {0};
        bool told[MAP_ROWS_MAX] = {0};
        size_t chips = 0;

        if (!j->facts->table_asked || node_trouble(j, node, &n->table, CHECK_NPU_PROCESS, "npu-smi info"))
                return;
        while (parse_table(&reader, &row)) {
                const struct npu_facts *npu = npu_at(n, row.card, row.chip);
                struct verify_finding *f;

                if (!npu)
                        continue;
                if (row.kind == TABLE_CHIP) {
                        chips++;
                        if (row.hbm_used_mb > row.hbm_all_mb / HBM_IDLE_SHARE)
                                held[npu - n->npus] = row.hbm_used_mb;
                        continue;
                }
                held[npu - n->npus] = 0;
                for (size_t i = 0; i < n->npu_count; i++)
                        told[i] |= n->npus[i].card == row.card;
                f = say(j, SEVERITY_ERROR, CHECK_NPU_PROCESS, node, npu->device, "process %.*s (%.*s) holds this NPU",
                    SLICE_ARG(row.pid), SLICE_ARG(row.name));
                cure(j, f, "end it: kill %.*s on this node", SLICE_ARG(row.pid));
        }
        for (size_t i = 0; i < n->npu_count; i++)
                if (held[i])
                        cure(j,
                            say(j, SEVERITY_WARNING, CHECK_NPU_PROCESS, node, n->npus[i].device,
                                "%llu MB of HBM are in use and no process is listed", (unsigned long long)held[i]),
                            "a process of another container holds it: look for /dev/davinci%u with lsof on the host",
                            n->npus[i].device);
        if (!chips)
                cure(j,
                    say(j, SEVERITY_WARNING, CHECK_NPU_PROCESS, node, -1,
                        "the table of `npu-smi info` is not understood"),
                    "look for old processes by hand");
        else
                say_untold(j, node, told);
}

static const char *platform_word(enum platform p) {
        return p == PLATFORM_ASCEND_A2   ? "A2"
               : p == PLATFORM_ASCEND_A3 ? "A3"
               : p == PLATFORM_ASCEND_A5 ? "A5"
                                         : "other";
}

void judge_node(struct judge *j, uint32_t node) {
        const struct node_facts *n = &j->facts->nodes[node];
        struct node_marks *marks = &j->marks[node];

        if (n->platform_known && n->platform != j->facts->platform) {
                struct verify_finding *f = say(j, SEVERITY_ERROR, CHECK_PLATFORM, node, -1,
                    "this is an %s machine (%zu NPUs%s), the cluster is %s", platform_word(n->platform), n->npu_count,
                    n->platform == PLATFORM_ASCEND_A2 ? ", super pods are not supported" : "",
                    platform_word(j->facts->platform));

                cure(j, f, "one cluster file is one generation: take the node out, or correct `platform`");
                marks->skip = true;
                return;
        }
        if (n->from_part)
                return;
        if (node_trouble(j, node, &n->map, CHECK_NPU_MAP, "npu-smi info -m")) {
                marks->skip = true;
                return;
        }
        if (!n->npu_count)
                cure(j,
                    say(j, SEVERITY_ERROR, CHECK_NPU_MAP, node, -1,
                        "the answer to `npu-smi info -m` is not understood: no rows of NPU ID, Chip ID, Chip Logic ID"),
                    "run it by hand; a driver and a tool of different versions do this");
        judge_list(j, node);
        judge_processes(j, node);
}
