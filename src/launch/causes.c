/* causes.c - the telling line of what a process wrote before it ended, and what is known of such lines.
 *
 * The texts are those of vLLM, vllm-ascend, torch, Mooncake and HCCL, as users report them. */
#include "launch/launch.h"

struct known_line {
        const char *text; /* occurs in the line */
        const char *cause, *cure;
};

/* The first row that occurs anywhere tells, so that what names a cause stands before what only follows from it. */
static const struct known_line known[] = {
    {"conflicting data parallel size",
        "kv_connector_extra_config names another dp_size than the engine runs with (a dense model ignores "
        "data parallelism)",
        "dp: 1 for a dense model; leave kv-transfer-config to the plan"},
    {"Conflict engine id", "two engines have one engine_id", "leave engine_id out: the plan gives none, or one a rank"},
    {"'device ip' is not set correctly", "/etc/hccn.conf is not there, or names no address for this NPU",
        "mount /etc/hccn.conf into the container; `baton verify` compares it with the NPUs"},
    {"Can't read the target server_id", "the ranktable names this node by another address than the engine does",
        "`baton ranktable` anew; on a host with several addresses set VLLM_HOST_IP to the node's ip"},
    {"DISAGGREGATED_PREFILL_RANK_TABLE_PATH", "the connector is told of no ranktable, or it is not there",
        "engine.ranktable: the path on the nodes; `baton ranktable` writes it"},
    {"unrecognized arguments", "this version of the engine does not know an option",
        "engine.version in the cluster file, and `baton check`"},
    {"No module named 'vllm_ascend'", "vllm-ascend is not installed for this Python",
        "engine.binary: the vllm of the environment that has it"},
    {"Unable to find address for", "the network interface of the cluster file is not on this machine",
        "nodes.NAME.nic: as `ip -br address` lists it there"},
    {"is larger than the maximum number of tokens that can be stored in KV cache",
        "one prompt of max_len does not fit into the memory left for KV",
        "a smaller model.max_len, or a larger gpu-memory-utilization"},
    {"No available memory for the cache blocks", "the weights leave no memory for KV",
        "a larger gpu-memory-utilization or tp; is another process on these devices?"},
    {"NPU out of memory", "the memory of the NPU is used up",
        "`npu-smi info`: does an older process hold it? else a smaller gpu-memory-utilization or "
        "max-num-batched-tokens"},
    {"CUDA out of memory", "the memory of the GPU is used up",
        "`nvidia-smi`: does an older process hold it? else a smaller gpu-memory-utilization or max-num-batched-tokens"},
    {"clients joined", "other ranks of the group did not come in time",
        "look at those first; then whether dp_address and dp_port can be reached from their nodes"},
    {"connectFullMesh failed", "a rank does not reach the others of its group over the host's network",
        "the same nic and subnet on all nodes, no firewall between them; `baton verify`"},
    {"HcclCommPrepare", "NPUs do not reach one another",
        "`baton verify`: links, addresses in /etc/hccn.conf, the TLS switch"},
    {"TlsStatus", "NPUs do not reach one another", "`baton verify`: the TLS switch must be the same on all NPUs"},
    {"status: 503900", "NPUs do not reach one another", "`baton verify`: links, and addresses in /etc/hccn.conf"},
    {"Too many open files", "the limit of open files is too low", "ulimit -n 65535 where baton is started"},
    {"No space left on device", "a disk or /dev/shm is full", "df -h there; in a container --shm-size"},
    {"config.json", "the model is not where the cluster file says", "model.path: the folder on this node"},
    {"Repository Not Found", "the model is not where the cluster file says, and no hub knows it either",
        "model.path: the folder on this node"},
    {"ddress already in use", "another program has the port",
        "`ss -ltnp` tells which: a rank of an earlier run, perhaps"},
    {"ermission denied", "this user may not do that", "the line names the file; the devices want their group or root"},
};

/* Lines that only say that something above went wrong. */
static const char *const hollow[] = {"Engine core initialization failed", "WorkerProc initialization failed",
    "See root cause above", "See the root cause above"};

static bool has(struct slice line, const char *text) {
        return slice_find_slice(line, slice_str(text), 0) < line.len;
}

static bool is_hollow(struct slice line) {
        for (size_t i = 0; i < sizeof(hollow) / sizeof(*hollow); i++)
                if (has(line, hollow[i]))
                        return true;
        return false;
}

/* How much a line tells by its form alone: an exception's last line, something called an error, anything. */
static unsigned weight(struct slice line) {
        if (is_hollow(line))
                return 1;
        if (has(line, "Error: ") || has(line, "Exception: "))
                return 4;
        if (has(line, "error:") || has(line, "ERROR") || has(line, "FATAL") || has(line, "fatal"))
                return 3;
        return 2;
}

struct launch_cause launch_explain(struct slice words) {
        struct launch_cause best = {0};
        size_t row = sizeof(known) / sizeof(*known);
        unsigned most = 0;
        struct slice line;

        while (slice_split(&words, '\n', &line)) {
                size_t i = 0;

                line = slice_trim(line);
                if (!line.len)
                        continue;
                while (i < row && !has(line, known[i].text))
                        i++;
                if (i < row) {
                        row = i;
                        best = (struct launch_cause){line, known[i].cause, known[i].cure};
                } else if (!best.cause && weight(line) >= most) {
                        most = weight(line);
                        best.line = line;
                }
        }
        best.line = slice_sub(best.line, 0, LAUNCH_LINE_MAX);
        return best;
}
