/* recipes.c - documented deployments of DeepSeek models on Ascend machines, as rows.
 *
 * Taken from vLLM-Ascend's pages (0.9.1's large-EP page, and those of the models as of August 2026). What they have in
 * common is the engine profile's and not repeated here; KV ports are the planner's, because some pages have theirs in the
 * range that Mooncake draws from; the recompute scheduler stands under decode alone. */
#include "cluster/recipes.h"

#define TIMEOUTS                                                                                                       \
        "VLLM_RPC_TIMEOUT: 3600000\nVLLM_EXECUTE_MODEL_TIMEOUT_SECONDS: 30000\nHCCL_EXEC_TIMEOUT: 204\n"               \
        "HCCL_CONNECT_TIMEOUT: 120\n"
#define BUFFER(size) "HCCL_BUFFSIZE: " #size "\n"
#define STEP(batched, seqs, fraction)                                                                                  \
        "max-num-batched-tokens: " #batched "\nmax-num-seqs: " #seqs "\ngpu-memory-utilization: " #fraction "\n"
#define RECOMPUTE "recompute_scheduler_enable: true"
#define OVERLAP   "multistream_overlap_shared_expert: true"
#define LMHEAD(n) "finegrained_tp_config: {lmhead_tensor_parallel_size: " #n "}"
#define NPUGRAPH  "ascend_compilation_config: {enable_npugraph_ex: true}"
#define V4_CACHE  "no-disable-hybrid-kv-cache-manager: true\n"

static const struct recipe recipes[] = {
    {.is = {"r1-w8a8-a3-0.9.1", "DeepSeek-R1 W8A8 on 8 A3 nodes with vllm-ascend 0.9.1, 4 prefillers and EP 64"},
        .engine = "vllm-ascend",
        .platform = "ascend-a3",
        .version = "0.9.1",
        .model = "vllm-ascend/DeepSeek-R1-W8A8",
        .served_name = "deepseek_r1",
        .max_len = 17000,
        .drafts = 1,
        .roles = {{4, 1, 2, 8, NULL, NULL}, {4, 4, 64, 1, NULL, NULL}}},
    {.is = {"r1-w8a8-a3", "DeepSeek-R1 W8A8 on 4 A3 nodes, 2 prefillers and EP 32"},
        .engine = "vllm-ascend",
        .platform = "ascend-a3",
        .model = "/models/DeepSeek-R1-W8A8",
        .served_name = "deepseek_r1",
        .max_len = 40000,
        .drafts = 1,
        .env = TIMEOUTS,
        .roles = {{2, 1, 2, 8, BUFFER(256),
                      STEP(16384, 8, 0.9) "enable-prefix-caching: false\n"
                                          "additional-config: {enable_shared_expert_dp: true}\n"},
            {2, 2, 32, 1, BUFFER(600),
                STEP(256, 40, 0.94) "additional-config: {" RECOMPUTE ", " OVERLAP ", " LMHEAD(16) "}\n"}}},
    {.is = {"v3.1-w8a8-a3", "DeepSeek-V3.1 W8A8 on 4 A3 nodes, 2 prefillers and EP 32"},
        .engine = "vllm-ascend",
        .platform = "ascend-a3",
        .model = "/models/DeepSeek-V3.1-W8A8",
        .served_name = "deepseek_v3",
        .max_len = 65536,
        .drafts = 1,
        .env = TIMEOUTS,
        .roles = {{2, 1, 2, 8, BUFFER(256), STEP(16384, 8, 0.9)},
            {2, 2, 32, 1, BUFFER(1100),
                STEP(256, 28, 0.92) "additional-config: {" RECOMPUTE ", " OVERLAP ", " LMHEAD(16) "}\n"}}},
    {.is = {"v3.1-950dt", "DeepSeek-V3.1 on 6 nodes of 950DT, one prefiller over 2 and EP 32"},
        .engine = "vllm-ascend",
        .platform = "ascend-a5",
        .model = "/models/DeepSeek-V3.1",
        .served_name = "deepseek_v3",
        .max_len = 135168,
        .drafts = 1,
        .env = TIMEOUTS "DYNAMIC_EPLB: \"true\"\n",
        .roles = {{2, 2, 4, 4, BUFFER(1024),
                      STEP(16384, 128, 0.9) "async-scheduling: true\n"
                                            "additional-config: {enable_mlapo: true}\n"
                                            "kv-transfer-config: {kv_connector_extra_config: "
                                            "{ascend_local_comm_res_path: /etc/hixlep}}\n"},
            {4, 4, 32, 1, BUFFER(1024),
                STEP(256, 96, 0.9) "additional-config: {" LMHEAD(8) "}\n"
                                                                    "kv-transfer-config: {kv_connector_extra_config: "
                                                                    "{ascend_local_comm_res_path: /etc/hixlep}}\n"}}},
    {.is = {"v3.2-w8a8-a3", "DeepSeek-V3.2 W8A8 on 4 A3 nodes, prefill over 2 and decode over 2"},
        .engine = "vllm-ascend",
        .platform = "ascend-a3",
        .model = "/models/DeepSeek-V3.2-W8A8",
        .served_name = "deepseek_v3.2",
        .max_len = 68000,
        .drafts = 2,
        .env = TIMEOUTS "ASCEND_AGGREGATE_ENABLE: 1\nASCEND_A3_ENABLE: 1\nACL_OP_INIT_MODE: 1\n"
                        "VLLM_MOONCAKE_ABORT_REQUEST_TIMEOUT: 480\n",
        .roles = {{2, 2, 2, 16, BUFFER(256), STEP(32560, 64, 0.82) "additional-config: {enable_dsa_cp: true}\n"},
            {2, 2, 8, 4, BUFFER(256),
                STEP(12, 4, 0.95) "compilation-config: {cudagraph_capture_sizes: [3, 6, 9, 12]}\n"
                                  "additional-config: {" RECOMPUTE "}\n"}}},
    {.is = {"v4-flash-w8a8-a3", "DeepSeek-V4-Flash W8A8 on 2 A3 nodes, one each"},
        .engine = "vllm-ascend",
        .platform = "ascend-a3",
        .connector = "MooncakeHybridConnector",
        .model = "/models/DeepSeek-V4-Flash-W8A8",
        .served_name = "deepseek_v4",
        .max_len = 1048576,
        .drafts = 1,
        .env = TIMEOUTS "VLLM_PREFIX_CACHE_RETENTION_INTERVAL: 4096\n"
                        "LD_PRELOAD: /usr/lib/aarch64-linux-gnu/libjemalloc.so.2\n",
        .roles = {{1, 1, 4, 4, BUFFER(2560),
                      STEP(8192, 16, 0.9) "block-size: 32\n" V4_CACHE "speculative-config: {enforce_eager: true}\n"
                                          "additional-config: {enable_shared_expert_dp: true, enable_dsa_cp: true}\n"},
            {1, 1, 16, 1, BUFFER(1024),
                STEP(120, 60, 0.9) "block-size: 32\n" V4_CACHE "additional-config: {" NPUGRAPH ", " RECOMPUTE
                                   ", " OVERLAP "}\n"}}},
    {.is = {"v4-flash-a2", "DeepSeek-V4-Flash on 8 A2 nodes, 4 prefillers and EP 32"},
        .engine = "vllm-ascend",
        .platform = "ascend-a2",
        .connector = "MooncakeHybridConnector",
        .model = "/models/DeepSeek-V4-Flash",
        .served_name = "deepseek_v4",
        .max_len = 135000,
        .drafts = 1,
        .env = TIMEOUTS,
        .roles = {{4, 1, 8, 1, BUFFER(1024), STEP(4096, 16, 0.9) "block-size: 128\n" V4_CACHE},
            {4, 4, 32, 1, BUFFER(1024),
                STEP(60, 30, 0.9) "block-size: 128\n" V4_CACHE "additional-config: {" NPUGRAPH ", " RECOMPUTE
                                  ", " OVERLAP "}\n"}}},
    {.is = {"v4-pro-w4a8-a3", "DeepSeek-V4-Pro W4A8 on 4 A3 nodes, prefill over 2 and decode over 2"},
        .engine = "vllm-ascend",
        .platform = "ascend-a3",
        .connector = "MooncakeHybridConnector",
        .model = "/models/DeepSeek-V4-Pro-W4A8",
        .served_name = "deepseek_v4",
        .max_len = 131072,
        .drafts = 1,
        .env = TIMEOUTS,
        .roles =
            {{2, 2, 2, 16, BUFFER(1024),
                 STEP(4096, 16, 0.92) V4_CACHE "additional-config: {enable_dsa_cp: true, enable_fused_mc2: true}\n"},
                {2, 2, 16, 2, BUFFER(1024) "HCCL_EXEC_TIMEOUT: 2000\nHCCL_CONNECT_TIMEOUT: 1200\n",
                    STEP(120, 60, 0.9) V4_CACHE "additional-config: {" NPUGRAPH ", " RECOMPUTE "}\n"}}},
    {.is = {"v4-pro-a2", "DeepSeek-V4-Pro on 8 A2 nodes, prefill over 4 and decode over 4"},
        .engine = "vllm-ascend",
        .platform = "ascend-a2",
        .connector = "MooncakeHybridConnector",
        .model = "/models/DeepSeek-V4-Pro",
        .served_name = "deepseek_v4",
        .max_len = 133072,
        .drafts = 1,
        .env = TIMEOUTS,
        .roles = {{4, 4, 4, 8, BUFFER(1024),
                      STEP(4096, 16, 0.9) V4_CACHE
                      "additional-config: {enable_dsa_cp: true, enable_shared_expert_dp: true}\n"},
            {4, 4, 8, 4, BUFFER(1024) "HCCL_CONNECT_TIMEOUT: 1200\n", STEP(120, 60, 0.9) V4_CACHE}}},
};
#define RECIPE_COUNT (sizeof(recipes) / sizeof(*recipes))

const struct recipe *recipe_find(const char *name) {
        for (size_t i = 0; i < RECIPE_COUNT; i++)
                if (!strcmp(recipes[i].is.name, name))
                        return &recipes[i];
        return NULL;
}

const struct init_recipe *init_recipe(size_t index) {
        return index < RECIPE_COUNT ? &recipes[index].is : NULL;
}
