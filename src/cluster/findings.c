/* findings.c - collecting what is wrong and writing it for people and programs; the rules behind the codes. */
#include "base/json.h"
#include "cluster/cluster.h"
#include <stdlib.h>

struct finding *findings_add(
    struct findings *f, enum severity severity, const char *code, struct place at, const char *format, ...) {
        va_list args;
        struct buf text = {0};
        struct finding *item;

        if (f->count >= FINDINGS_MAX)
                return NULL;
        if (f->count == f->capacity) {
                size_t capacity = f->capacity ? f->capacity * 2 : 16;
                struct finding *grown = arena_array(f->arena, capacity, sizeof(*grown));

                if (!grown) {
                        f->failed = true;
                        return NULL;
                }
                if (f->count)
                        memcpy(grown, f->items, f->count * sizeof(*grown));
                f->items = grown;
                f->capacity = capacity;
        }
        va_start(args, format);
        buf_vprintf(&text, format, args);
        va_end(args);
        item = &f->items[f->count++];
        *item = (struct finding){.severity = severity, .code = code, .at = at};
        if (f->count == FINDINGS_MAX) {
                item->severity = SEVERITY_ERROR;
                item->code = "Y09";
                item->cause = "more findings than are worth listing: mend the first ones, then check again";
        } else
                item->cause = arena_copy(f->arena, buf_slice(&text)).ptr;
        if (!item->cause || !buf_ok(&text)) {
                item->cause = "out of memory";
                f->failed = true;
        }
        buf_free(&text);
        return item;
}

void finding_cure(struct findings *f, struct finding *of, const char *format, ...) {
        va_list args;
        struct buf text = {0};

        if (!of)
                return;
        va_start(args, format);
        buf_vprintf(&text, format, args);
        va_end(args);
        of->cure = arena_copy(f->arena, buf_slice(&text)).ptr;
        buf_free(&text);
}

size_t findings_count(const struct findings *f, enum severity severity) {
        size_t n = 0;

        for (size_t i = 0; i < f->count; i++)
                n += f->items[i].severity == severity;
        return n;
}

static int compare(const void *pa, const void *pb) {
        const struct finding *a = pa, *b = pb;

        if (a->at.line != b->at.line)
                return a->at.line < b->at.line ? -1 : 1;
        if (a->at.column != b->at.column)
                return a->at.column < b->at.column ? -1 : 1;
        return strcmp(a->code, b->code);
}

void findings_sort(struct findings *f) {
        if (f->count)
                qsort(f->items, f->count, sizeof(*f->items), compare);
}

static void write_indented(struct buf *out, const char *text) {
        struct slice rest = slice_str(text), line;

        while (slice_split(&rest, '\n', &line))
                buf_printf(out, "    %.*s\n", SLICE_ARG(line));
}

void findings_write_text(const struct findings *f, const char *file, bool color, struct buf *out) {
        static const char *const words[] = {"warning", "error"}, *const colors[] = {"\033[33m", "\033[31m"};
        size_t errors = findings_count(f, SEVERITY_ERROR), warnings = findings_count(f, SEVERITY_WARNING);

        for (size_t i = 0; i < f->count; i++) {
                const struct finding *item = &f->items[i];
                struct slice rest = slice_str(item->cause), first;

                slice_split(&rest, '\n', &first);
                buf_printf(out, "%s:", file);
                if (item->at.line)
                        buf_printf(out, "%u:%u:", item->at.line, item->at.column);
                buf_printf(out, " %s%s%s %s: %.*s\n", color ? colors[item->severity] : "", words[item->severity],
                    color ? "\033[0m" : "", item->code, SLICE_ARG(first));
                if (rest.ptr)
                        write_indented(out, rest.ptr);
                if (item->cure)
                        buf_printf(out, "    cure: %s\n", item->cure);
        }
        if (f->count)
                buf_printf(out, "%zu error%s, %zu warning%s\n", errors, errors == 1 ? "" : "s", warnings,
                    warnings == 1 ? "" : "s");
}

void findings_write_json(const struct findings *f, const char *file, struct buf *out) {
        struct json_writer w = {.out = out};

        json_open(&w, '{');
        json_key(&w, "file");
        json_str(&w, file);
        json_key(&w, "errors");
        json_u64(&w, findings_count(f, SEVERITY_ERROR));
        json_key(&w, "warnings");
        json_u64(&w, findings_count(f, SEVERITY_WARNING));
        json_key(&w, "findings");
        json_open(&w, '[');
        for (size_t i = 0; i < f->count; i++) {
                const struct finding *item = &f->items[i];

                json_open(&w, '{');
                json_key(&w, "severity");
                json_str(&w, item->severity == SEVERITY_ERROR ? "error" : "warning");
                json_key(&w, "code");
                json_str(&w, item->code);
                json_key(&w, "line");
                json_u64(&w, item->at.line);
                json_key(&w, "column");
                json_u64(&w, item->at.column);
                json_key(&w, "cause");
                json_str(&w, item->cause);
                json_key(&w, "cure");
                json_str(&w, item->cure);
                json_close(&w, '}');
        }
        json_close(&w, ']');
        json_close(&w, '}');
        buf_add_char(out, '\n');
}

static const struct rule rules[] = {
    {"Y01", "the file is YAML", "Indentation with tabs and a missing space after a colon are the usual causes."},
    {"Y02", "every key is known", "A key that nobody reads is a setting that silently does nothing."},
    {"Y03", "no key stands twice", "Readers disagree on which of the two counts."},
    {"Y04", "every value has the kind its key wants", "A list where a name belongs is a slip of the pen."},
    {"Y05", "every value lies in its range", "Ports are 1..65535, sizes at least 1, choices one of those named."},
    {"Y06", "nothing that is needed is missing", "There is no sound default for it."},
    {"Y07", "names are unique and well formed",
        "Node names become parts of rank names (d0.3), file names and messages: letters, digits, '-' and '_'."},
    {"Y08", "what is referred to exists", "Groups and the gateway name nodes of the `nodes` mapping."},
    {"Y09", "the list of findings is bounded", "Beyond 500 the file is something else than a cluster file."},
    {"N01", "a node's ip is one that the others reach",
        "Every rank is told the addresses of its peers: 127.0.0.1 or 0.0.0.0 in a plan over several machines makes "
        "them call themselves."},
    {"N02", "a node's ip is an address", "HCCL_IF_IP, which vLLM-Ascend sets from it, takes no host names."},
    {"N03", "an Ascend node names its nic",
        "GLOO_SOCKET_IFNAME, TP_SOCKET_IFNAME and HCCL_SOCKET_IFNAME must be the interface that has the node's ip; on "
        "a host with several the libraries guess wrongly."},
    {"N04", "addresses and interfaces in env are the node's own",
        "HCCL_IF_IP must be an address of the interface, and vLLM's own idea of its address (VLLM_HOST_IP) the one "
        "that the ranktable and the peers have: they follow from `nodes`."},
    {"N05", "all nodes are of one kind of machine",
        "Prefill and decode of different SoC generations (A2 and A3) have different KV layouts and interconnects."},
    {"N06", "no proxy variable is set for a rank",
        "http_proxy sends health checks, metadata and the rendezvous between ranks through the proxy. The plan unsets "
        "them."},
    {"D01", "a group's ranks divide over its nodes",
        "Each node of a group carries dp / (number of nodes) ranks; the launcher gives every node the same count, so "
        "that the ranks of a group are 0 to dp - 1, each once."},
    {"D02", "a node belongs to one group",
        "Two groups on one accelerator node fight for its devices and ports. Several nodes may share an address "
        "instead, each with devices of its own (`devices: 0-7`)."},
    {"D03", "a node has devices for its ranks",
        "Every rank takes tp x pp x pcp devices: local ranks times that must not exceed them."},
    {"D04", "prefill tp is a multiple of decode tp",
        "A decode rank pulls the latent KV cache from one prefill TP rank: P_tp >= D_tp and P_tp % D_tp == 0; the "
        "connectors raise ValueError otherwise."},
    {"D05", "nodes at one address have devices of their own",
        "Two names for one machine (the same ip) are two sets of its devices: `devices: 0-7` and `devices: 8-15`."},
    {"D06", "a node's devices exist",
        "A2 and A5 machines have 8 NPUs, A3 machines 16 (8 cards of two chips), numbered from 0."},
    {"D07", "vllm-ascend before 0.10 begins at device 0",
        "Its engine patch sets ASCEND_RT_VISIBLE_DEVICES to local rank x tp and onwards, whatever was set before."},
    {"D08", "pipeline and prefill context parallelism are not combined",
        "The Mooncake connectors' side-channel ports count one of them only: pp > 1 and pcp > 1 together are refused."},
    {"D09", "layer-wise connectors know no decode context split",
        "MooncakeLayerwiseConnector and SfaRemoteD2HConnector take pcp on prefill only."},
    {"D10", "decode context parallelism is on for both sides or neither",
        "Models with sparse attention lay KV out by it: a decoder that is split otherwise than the prefiller reads "
        "wrong blocks."},
    {"D11", "what the plan derives is not set by hand",
        "Ranks, sizes and ports follow from dp, tp, groups and the *_port keys, and every peer is told the derived "
        "value: another one in `args` makes a group that waits for a rank which never comes."},
    {"D12", "a rank of the embedded engine is one process",
        "Its ranks share experts (dp), not layers or positions: pp and pcp are 1. tp is the work of its threads."},
    {"P01", "no port is used twice at one address",
        "The second process to bind it fails, often minutes into the start. KV side channels count: a rank of a group "
        "listens on kv_port + dp rank x tp and tp - 1 more, its dp rank being the one within the whole group."},
    {"P02", "every port lies in 1..65535", "Ports of later ranks are counted up from the first."},
    {"P03", "fixed ports stay out of the ephemeral range",
        "Linux hands out 32768..60999 to outgoing connections (net.ipv4.ip_local_port_range): a rank's port may be "
        "taken by chance. Reserve it (net.ipv4.ip_local_reserved_ports) or choose another."},
    {"P05", "HCCL's own ports stay free",
        "Every process group listens on 60000..60015 of the host (HCCL_IF_BASE_PORT)."},
    {"P06", "torch.distributed's port stays free",
        "vLLM takes 29500 on the first rank of a group unless it is told another."},
    {"P07", "fixed ports stay out of Mooncake's random range",
        "Mooncake draws its data ports from 20000 to 20000 + 1000 x NPUs per node: 20000..27999 on 8-NPU machines, "
        "20000..35999 on those of 16. Documented examples with kv_port 30000 on 16-NPU machines lie inside."},
    {"M01", "the drafts are few enough", "num_speculative_tokens beyond 8 costs more steps than it saves."},
    {"M02", "the engine kind has what it needs", "A template engine runs a script: `template` names it."},
    {"M03", "JSON inside options is JSON",
        "An option such as --kv-transfer-config is parsed minutes into the start; a comma too many (`\"kv_port\": "
        "\"20001\",}`, as one page has it) ends it there."},
    {"M04", "prefill drafts one token with MTP",
        "The prefiller only fills the MTP layer's cache: num_speculative_tokens is 1 there and 1 or more on decode."},
    {"M05", "a decode step has room for all its sequences",
        "Each running sequence takes 1 + num_speculative_tokens tokens of a step: max-num-batched-tokens must be at "
        "least max-num-seqs times that."},
    {"M06", "drafts agree where the method wants it",
        "Hybrid (Mamba) models and DSpark keep state per draft: equal numbers on both sides, and at least 5 for "
        "DSpark."},
    {"M07", "torchair's graphs are for the sequences there are",
        "graph_batch_sizes of torchair_graph_config should be max-num-seqs: other batches run padded or without a "
        "graph."},
    {"M08", "one special scheduler at a time",
        "The balance scheduler together with the recompute scheduler on decode hangs."},
    {"M09", "only decode recomputes",
        "recompute_scheduler_enable ends a request that has no room with `recomputed`; on prefill there is nothing to "
        "continue from."},
    {"M10", "the ranks of a group agree",
        "Model, lengths, quantization, speculation, seed and HCCL switches are one world's: ranks that differ wait for "
        "each other for ever or compute nonsense."},
    {"M11", "HCCL_NPU_SOCKET_PORT_RANGE is set on all cards or on none",
        "A card with a range and one without do not find each other."},
    {"M12", "options reach the engine",
        "A template's script is called with seven arguments, and has its options inside."},
    {"M13", "the engine runs on the platform",
        "vllm-ascend needs Ascend NPUs, vllm GPUs or CPUs. `platform` is cpu unless it is set."},
    {"K01", "the sizes told to the connector are the real ones",
        "\"KV transfer 'prefill' config has a conflicting data parallel size\": the engine compares "
        "kv_connector_extra_config with its own. A dense model, for which vLLM ignores data parallelism, needs dp 1."},
    {"K02", "every engine has an id of its own",
        "Decoders know prefillers by engine_id: `Conflict engine id` where two have the same. Left out, it is random."},
    {"K03", "the gateway calls in the connector's order",
        "Layer-wise connectors want decode called first, all others prefill; the wrong gateway answers 500."},
    {"K04", "prefill produces and decode consumes",
        "kv_role is kv_producer under prefill and kv_consumer under decode, or kv_both."},
    {"K05", "block sizes of both sides fit", "Blocks are copied whole: equal sizes, or one that divides the other."},
    {"K06", "the engine knows the connector",
        "Connectors come and go with versions: LLMDataDist until vllm-ascend 0.11, Mooncake from 0.11 on; NIXL for "
        "vllm."},
    {"K07", "LLMDataDist has its ranktable",
        "DISAGGREGATED_PREFILL_RANK_TABLE_PATH must name a file that is the same on all nodes."},
    {"K08", "both sides' sizes are told to the connector",
        "kv_connector_extra_config carries `prefill` and `decode`, the same pair on both sides."},
    {"R01", "the engine's version still reads what is set",
        "An option that nobody reads does nothing, silently. The cure names what took its place."},
};

const struct rule *rule_list(size_t *ret_count) {
        *ret_count = sizeof(rules) / sizeof(*rules);
        return rules;
}

const struct rule *rule_find(struct slice code) {
        for (size_t i = 0; i < sizeof(rules) / sizeof(*rules); i++)
                if (slice_is_icase(code, rules[i].code))
                        return &rules[i];
        return NULL;
}
