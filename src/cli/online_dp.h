/* online_dp.h - `baton up` with the flags of vLLM-Ascend's launch_online_dp.py in the place of a cluster file. */
#pragma once
#include "cli/cli.h"

/* Its flags, with its defaults. */
struct online_dp {
        int64_t dp_size, tp_size, dp_size_local, dp_rank_start, dp_rpc_port, vllm_start_port; /* dp_size 0: not given */
        const char *dp_address;
};
#define ONLINE_DP_DEFAULTS                                                                                             \
        { .tp_size = 1, .dp_size_local = -1, .dp_rpc_port = 12345, .vllm_start_port = 9000 }

/* Rows for a command's table. */
#define ONLINE_DP_OPTION(NAME, FIELD, BASE)                                                                            \
        { NAME, 0, OPTION_INT, (BASE) + offsetof(struct online_dp, FIELD), "N", NULL }
#define ONLINE_DP_OPTIONS(BASE)                                                                                        \
        {"dp-size", 0, OPTION_INT, (BASE) + offsetof(struct online_dp, dp_size), "N",                                  \
            "in the place of FILE: starts this node's ranks of ./run_dp_template.sh as launch_online_dp.py does, "     \
            "with its "                                                                                                \
            "flags (--tp-size, --dp-size-local, --dp-rank-start, --dp-address, --dp-rpc-port, --vllm-start-port)"},    \
            ONLINE_DP_OPTION("tp-size", tp_size, BASE), ONLINE_DP_OPTION("dp-size-local", dp_size_local, BASE),        \
            ONLINE_DP_OPTION("dp-rank-start", dp_rank_start, BASE),                                                    \
            ONLINE_DP_OPTION("dp-rpc-port", dp_rpc_port, BASE),                                                        \
            ONLINE_DP_OPTION("vllm-start-port", vllm_start_port, BASE), {                                              \
                "dp-address", 0, OPTION_STRING, (BASE) + offsetof(struct online_dp, dp_address), "ADDRESS", NULL       \
        }

/* Write the cluster file that means the same, so that status, logs and down have one. Returns -1 with its path and the name of
 * this node in it, or an exit code after having said why. The texts live in `arena`. */
int online_dp_file(const struct online_dp *o, struct arena *arena, const char **ret_path, const char **ret_node);
