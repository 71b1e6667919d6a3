/* retired.c - options of vLLM-Ascend that a version no longer reads, and what took their place.
 *
 * The table follows the project's own history of changes; a row is told only from its version on, and only for what the
 * file says: what the plan derives fits the version. */
#include "base/json.h"
#include "cluster/planner.h"

enum retired_kind {
        RETIRED_ENV,
        RETIRED_ADDITIONAL, /* a member of additional-config */
        RETIRED_KV,         /* a member of kv-transfer-config */
        RETIRED_METHOD,     /* speculative-config's method */
};

static const struct retired {
        enum retired_kind kind;
        const char *name;
        uint32_t since;
        const char *cure;
} retired[] = {
    {RETIRED_KV, "kv_connector_module_path", VERSION(0, 12, 0), "leave it out: connectors are registered by name"},
    {RETIRED_KV, "kv_buffer_device", VERSION(0, 12, 0), "leave it out"},
    {RETIRED_KV, "kv_parallel_size", VERSION(0, 12, 0), "leave it out"},
    {RETIRED_KV, "kv_rank", VERSION(0, 12, 0), "leave it out"},
    {RETIRED_ADDITIONAL, "torchair_graph_config", VERSION(0, 12, 0),
        "compilation-config: {cudagraph_mode: FULL_DECODE_ONLY, cudagraph_capture_sizes: […]}, and "
        "multistream_overlap_shared_expert: true for enable_multistream_moe"},
    {RETIRED_ADDITIONAL, "ascend_scheduler_config", VERSION(0, 12, 0),
        "leave it out: vLLM's scheduler; recompute_scheduler_enable: true under decode"},
    {RETIRED_ADDITIONAL, "enable_weight_nz_layout", VERSION(0, 12, 0), "weight_nz_mode: 1 (which is the default)"},
    {RETIRED_ADDITIONAL, "enable_prefill_optimizations", VERSION(0, 12, 0),
        "enable_shared_expert_dp: true, or enable_dsa_cp: true for sparse attention"},
    {RETIRED_METHOD, "deepseek_mtp", VERSION(0, 12, 0), "method: mtp"},
    {RETIRED_ENV, "HCCL_BUFFER_SIZE", 0, "HCCL_BUFFSIZE"},
    {RETIRED_ENV, "VLLM_DP_SIZE", VERSION(0, 10, 0), "leave it out: --data-parallel-size, from `dp`"},
    {RETIRED_ENV, "VLLM_DP_RANK", VERSION(0, 10, 0), "leave it out: --data-parallel-rank, from `groups`"},
    {RETIRED_ENV, "VLLM_DP_RANK_LOCAL", VERSION(0, 10, 0), "leave it out: --data-parallel-rank, from `groups`"},
    {RETIRED_ENV, "VLLM_DP_SIZE_LOCAL", VERSION(0, 10, 0), "leave it out: it follows from `groups`"},
    {RETIRED_ENV, "VLLM_DP_MASTER_IP", VERSION(0, 10, 0), "leave it out: --data-parallel-address, from `groups`"},
    {RETIRED_ENV, "VLLM_DP_MASTER_PORT", VERSION(0, 10, 0), "leave it out: --data-parallel-rpc-port, from `dp_port`"},
    {RETIRED_ENV, "VLLM_ASCEND_EXTERNAL_DP_LB_ENABLED", VERSION(0, 10, 0),
        "leave it out: --data-parallel-rank says it"},
    {RETIRED_ENV, "VLLM_USE_V1", VERSION(0, 11, 0), "leave it out: V1 is the only engine"},
    {RETIRED_ENV, "VLLM_LLMDD_RPC_PORT", VERSION(0, 10, 1),
        "`kv_port`, from which the plan sets what this version reads"},
    {RETIRED_ENV, "VLLM_ASCEND_LLMDD_RPC_PORT", VERSION(0, 12, 0), "`kv_port`: LLMDataDist is gone"},
    {RETIRED_ENV, "DISAGGREGATED_PREFILL_RANK_TABLE_PATH", VERSION(0, 12, 0),
        "leave it out: Mooncake connectors read no ranktable"},
    {RETIRED_ENV, "VLLM_ASCEND_ENABLE_MLAPO", VERSION(0, 23, 0), "additional-config: {enable_mlapo: true}"},
    {RETIRED_ENV, "VLLM_ASCEND_ENABLE_NZ", VERSION(0, 23, 0), "additional-config: {weight_nz_mode: 1}"},
    {RETIRED_ENV, "VLLM_ASCEND_ENABLE_FUSED_MC2", VERSION(0, 23, 0), "additional-config: {enable_fused_mc2: true}"},
    {RETIRED_ENV, "VLLM_ASCEND_BALANCE_SCHEDULING", VERSION(0, 23, 0),
        "additional-config: {scheduler_config: {enable_balance_scheduling: true}}"},
};

/* Whether the option `name`, written by the user at *ret_at, is a JSON object with this member. */
static bool has_member(const struct command *c, const char *name, const char *member, struct place *ret_at) {
        const struct command_entry *e = command_find(c, name);
        yyjson_doc *doc = NULL;
        bool has;

        if (!e || e->at.line == 0 || json_parse(e->value, &doc, NULL) < 0)
                return false;
        has = json_get(yyjson_doc_get_root(doc), member) != NULL;
        yyjson_doc_free(doc);
        *ret_at = e->at;
        return has;
}

static bool is_written(
    const struct rank_command *command, const struct planner *p, const struct retired *r, struct place *ret_at) {
        const struct command_entry *e;

        switch (r->kind) {
        case RETIRED_ENV:
                e = command_find(&command->env, r->name);
                if (e)
                        *ret_at = e->at;
                return e && e->at.line;
        case RETIRED_ADDITIONAL:
                return has_member(&command->argv, "additional-config", r->name, ret_at);
        case RETIRED_KV:
                return has_member(&command->argv, "kv-transfer-config", r->name, ret_at);
        default:
                *ret_at = p->c->model.at;
                return slice_is(p->c->model.speculative_method, r->name);
        }
}

void retired_check(struct planner *p, const struct rank_command *command) {
        for (size_t i = 0; i < sizeof(retired) / sizeof(*retired); i++) {
                const struct retired *r = &retired[i];
                struct place at;

                if (p->version < r->since || !is_written(command, p, r, &at))
                        continue;
                finding_cure(p->findings,
                    planner_find_each(p, SEVERITY_WARNING, "R01", at, "vllm-ascend %s no longer reads `%s`",
                        p->c->engine.version.len ? p->c->engine.version.ptr : "of today", r->name),
                    "%s", r->cure);
        }
}
