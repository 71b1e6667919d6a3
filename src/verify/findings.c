/* findings.c - the checks with their rules, and the list of findings; see verify.h. */
#include "verify/judge.h"
#include <errno.h>
#include <stdlib.h>

const struct check_row check_rows[CHECK_COUNT] = {
    [CHECK_NODE] = {{"V01", "every node answers", "a node that cannot be asked is not known to be well"}, "node"},
    [CHECK_TOOLS] = {{"V02", "hccn_tool and npu-smi are there",
                         "they come with the driver; in a container /usr/local/Ascend/driver must be mounted"},
        "tools"},
    [CHECK_PERMISSION] = {{"V03", "the tools may be used",
                              "hccs_ping, tls and settings of hccn_tool want root, in a container a privileged one"},
        "permission"},
    [CHECK_PLATFORM] = {{"V04", "all nodes are of the platform that the cluster file names",
                            "A2, A3 and A5 have other links, other addresses and other entries in a ranktable"},
        "platform"},
    [CHECK_NPU_LIST] =
        {{"V05", "a node has as many NPUs as it should",
             "an NPU that has dropped off the bus takes a rank with it; npu-smi tells how many are left"},
            "npu_list"},
    [CHECK_NPU_MAP] = {{"V06", "card and chip of every NPU are known",
                           "hccn_tool wants physical ids, npu-smi cards and chips; NPU ids need not begin at 0"},
        "npu_map"},
    [CHECK_NPU_HEALTH] = {{"V07", "every NPU is healthy", "the driver's own word, with its error codes"}, "npu_health"},
    [CHECK_NPU_BOARD] =
        {{"V08", "driver versions fit and are alike",
             "dispatch and combine of large EP need driver 25.0; nodes of different versions hang late"},
            "npu_board"},
    [CHECK_NPU_PROCESS] = {{"V09", "no NPU is held by an old process",
                               "an old job's memory is missing for weights and KV cache, and its ports are bound"},
        "npu_process"},
    [CHECK_LLDP] = {{"V10", "every NPU has a switch port of its own",
                        "no neighbour, an NPU as neighbour or one port twice: a cable is wrong"},
        "lldp"},
    [CHECK_LINK] = {{"V11", "RoCE links are up", "A2 moves all data over them; A3 over HCCS"}, "link"},
    [CHECK_NET_HEALTH] = {{"V12", "the NPU reaches its netdetect address", "the driver probes it by itself"},
        "net_health"},
    [CHECK_NETDETECT] = {{"V13", "a netdetect address is set", "without one net_health stays Init and tells nothing"},
        "netdetect"},
    [CHECK_GATEWAY] = {{"V14", "NPUs in other subnets are reachable through a gateway",
                           "without one packets to them are dropped; in one subnet it is not needed"},
        "gateway"},
    [CHECK_HCCN_CONF] =
        {{"V15", "/etc/hccn.conf says what the NPUs have",
             "Mooncake and HCCL read addresses from the file, not from the device: an old one makes one "
             "NPU unreachable, and the symptom shows four layers away"},
            "hccn_conf"},
    [CHECK_IP] = {{"V16", "every NPU has a RoCE address of its own", "on A2 it is the device_ip of the ranktable"},
        "ip"},
    [CHECK_VNIC] = {{"V17", "every NPU has a vNIC address of its own (A3)", "it is the device_ip of the ranktable"},
        "vnic"},
    [CHECK_SPOD] = {{"V18", "super pod ids are consistent (A3)",
                        "SDIDs are unique in a pod, a node lies in one pod at one server index"},
        "spod"},
    [CHECK_TLS] = {{"V19", "the TLS switch is the same on all NPUs",
                       "a link with TLS at one end only is never set up, and times out minutes later"},
        "tls"},
    [CHECK_OPTICAL] = {{"V20", "optical modules are there and get light", "the most frequent fault of links"},
        "optical"},
    [CHECK_STAT] = {{"V21", "error counters do not grow", "what counts is what grew between two samples, not the past"},
        "stat"},
    [CHECK_LINK_STAT] = {{"V22", "links stay up", "a link that flaps costs seconds each time"}, "link_stat"},
    [CHECK_SPEED] = {{"V23", "all ports have one speed", "a collective is as slow as its slowest member"}, "speed"},
    [CHECK_PING] = {{"V24", "every NPU reaches every NPU of other nodes over RoCE",
                        "any pair may exchange KV or experts"},
        "ping"},
    [CHECK_HCCS_PING] = {{"V25", "every NPU reaches every NPU of other nodes over HCCS (A3)",
                             "any pair may exchange KV or experts; hccs_ping ends with status 0 even when all is lost"},
        "hccs_ping"},
    [CHECK_RANKTABLE] = {{"V26", "the ranktable's counts fit the nodes",
                             "gen_ranktable takes the first P and the next D NPUs, whatever nodes they lie on"},
        "ranktable"},
    [CHECK_HOST] = {{"V27", "a host tells about itself", "what is not told or not understood is not known to be well"},
        "host"},
    [CHECK_NIC] = {{"V28", "the planned interface is there, is up, and has the node's address",
                       "HCCL, gloo and the rendezvous of ranks take the interface by name and the node by its address"},
        "nic"},
    [CHECK_MTU] =
        {{"V29", "interfaces of all nodes have one MTU",
             "large frames into a smaller MTU are dropped: small messages pass, and the first large one hangs"},
            "mtu"},
    [CHECK_PORT] =
        {{"V30", "every planned port can be listened on",
             "an old process on a port ends the new one's start minutes later, after its weights are loaded"},
            "port"},
    [CHECK_REACH] = {{"V31", "every planned port is reached from the other nodes",
                         "a firewall shows as a rendezvous that hangs. Tried with listeners of baton's own"},
        "reach"},
    [CHECK_EPHEMERAL] = {{"V32", "planned ports lie outside of the range for outgoing connections, or are reserved",
                             "any outgoing connection of the node may hold such a port just when an engine wants it"},
        "ephemeral"},
    [CHECK_PROXY] = {{"V33", "no proxy variable catches the nodes' addresses",
                         "http_proxy sends health checks, metadata and the rendezvous between ranks through the proxy"},
        "proxy"},
    [CHECK_LIMIT] = {{"V34", "limits of open files, locked memory and processes are high enough",
                         "every client, peer and shard takes a descriptor, threads count as processes, and RDMA locks "
                         "the memory it moves"},
        "limit"},
    [CHECK_CLOCK] = {{"V35", "clocks of all nodes agree",
                         "logs and traces of several nodes are read side by side, and certificates have their hours"},
        "clock"},
    [CHECK_DISK] = {{"V36", "there is space for logs and temporary files",
                        "a full disk ends engines when they compile, and hides why in a log that is not written"},
        "disk"},
    [CHECK_SHM] = {{"V37", "/dev/shm has room",
                       "workers of a rank talk through it; a container has 64 MB unless told otherwise"},
        "shm"},
    [CHECK_MODEL] = {{"V38", "the model's files are the same on all nodes",
                         "ranks with other weights or another tokenizer answer nonsense without an error. Compared are "
                         "the hashes of small files (config, index, tokenizer) and the sizes of shards"},
        "model"},
};

const struct rule *verify_rule_find(struct slice code) {
        for (size_t i = 0; i < CHECK_COUNT; i++)
                if (slice_is(code, check_rows[i].rule.code))
                        return &check_rows[i].rule;
        return NULL;
}

const struct rule *verify_rule_at(size_t index) {
        return index < CHECK_COUNT ? &check_rows[index].rule : NULL;
}

/* ---- the list ------------------------------------------------------------------------------------------------------- */

static struct verify_finding *grow(struct verify_findings *f) {
        if (f->count == f->capacity) {
                size_t capacity = f->capacity ? 2 * f->capacity : 32;
                struct verify_finding *items = arena_array(f->arena, capacity, sizeof(*items));

                if (!items) {
                        f->failed = true;
                        return NULL;
                }
                if (f->count)
                        memcpy(items, f->items, f->count * sizeof(*items));
                f->items = items;
                f->capacity = capacity;
        }
        return &f->items[f->count++];
}

static const char *format_text(struct arena *arena, const char *format, va_list args) {
        struct buf b = {0};
        const char *text;

        buf_vprintf(&b, format, args);
        text = buf_ok(&b) ? arena_copy(arena, buf_slice(&b)).ptr : NULL;
        buf_free(&b);
        return text;
}

struct verify_finding *say(
    struct judge *j, enum severity severity, enum check check, int64_t node, int64_t device, const char *format, ...) {
        struct verify_finding *f = grow(j->findings);
        va_list args;

        if (!f)
                return NULL;
        va_start(args, format);
        *f = (struct verify_finding){.severity = severity,
            .code = check_rows[check].rule.code,
            .check = check_rows[check].name,
            .node = node,
            .device = device,
            .peer_node = -1,
            .peer_device = -1,
            .cause = format_text(j->findings->arena, format, args)};
        va_end(args);
        if (!f->cause) {
                f->cause = "out of memory";
                j->findings->failed = true;
        }
        return f;
}

void cure(struct judge *j, struct verify_finding *of, const char *format, ...) {
        va_list args;

        if (!of)
                return;
        va_start(args, format);
        of->cure = format_text(j->findings->arena, format, args);
        va_end(args);
}

void peer(struct verify_finding *of, int64_t node, int64_t device) {
        if (of) {
                of->peer_node = node;
                of->peer_device = device;
        }
}

int verify_exit_code(const struct verify_findings *f) {
        int code = 0;

        for (size_t i = 0; i < f->count; i++)
                if (f->items[i].severity == SEVERITY_ERROR) {
                        if (!f->items[i].unknown)
                                return 1;
                        code = 3;
                }
        return code;
}

/* ---- order, and many as one ----------------------------------------------------------------------------------------- */

static int compare(const void *a, const void *b) {
        const struct verify_finding *x = a, *y = b;

        if (x->node != y->node)
                return x->node < y->node ? -1 : 1;
        if (strcmp(x->code, y->code))
                return strcmp(x->code, y->code);
        if (x->severity != y->severity)
                return x->severity > y->severity ? -1 : 1;
        if (x->device != y->device)
                return x->device < y->device ? -1 : 1;
        return (x->peer_device > y->peer_device) - (x->peer_device < y->peer_device);
}

/* What all NPUs of a node have is the node's: one finding, not sixteen. Findings about pairs stay what they are. */
static size_t same_run(const struct verify_findings *f, size_t from) {
        const struct verify_finding *a = &f->items[from];
        size_t n = 1;

        while (from + n < f->count) {
                const struct verify_finding *b = &f->items[from + n];

                if (b->node != a->node || strcmp(b->code, a->code) || b->severity != a->severity ||
                    b->unknown != a->unknown || a->device < 0 || b->device == f->items[from + n - 1].device ||
                    a->peer_node >= 0 || b->peer_node >= 0)
                        break;
                n++;
        }
        return n;
}

static void merge_runs(struct judge *j) {
        struct verify_findings *f = j->findings;
        size_t kept = 0;

        for (size_t i = 0, n; i < f->count; i += n) {
                struct verify_finding first = f->items[i];
                size_t npus = first.node < 0 ? 0 : j->facts->nodes[first.node].npu_count;

                n = same_run(f, i);
                if (n > 1 && n == npus) {
                        first.cause = arena_printf(f->arena, "all %zu NPUs: %s", n, first.cause);
                        first.device = -1;
                        if (!first.cause)
                                f->failed = true;
                        f->items[kept++] = first;
                } else
                        for (size_t k = 0; k < n; k++)
                                f->items[kept++] = f->items[i + k];
        }
        f->count = kept;
}

int judge(const struct facts *facts, struct verify_findings *ret_findings) {
        struct judge j = {.facts = facts, .findings = ret_findings, .arena = ret_findings->arena};

        j.marks = arena_array(j.arena, facts->node_count, sizeof(*j.marks));
        if (!j.marks)
                return -ENOMEM;
        for (uint32_t i = 0; i < facts->node_count; i++) {
                j.marks[i].npus = arena_array(j.arena, facts->nodes[i].npu_count, sizeof(*j.marks[i].npus));
                if (!j.marks[i].npus)
                        return -ENOMEM;
                if (facts->nodes[i].host_only)
                        continue;
                judge_node(&j, i);
                if (!j.marks[i].skip)
                        judge_npus(&j, i);
        }
        judge_addresses(&j);
        judge_agreement(&j);
        judge_probes(&j);
        if (facts->hosts.asked) {
                judge_hosts(&j);
                judge_ports(&j);
        }
        if (ret_findings->count)
                qsort(ret_findings->items, ret_findings->count, sizeof(*ret_findings->items), compare);
        merge_runs(&j);
        return ret_findings->failed ? -ENOMEM : 0;
}
