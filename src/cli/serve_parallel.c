/* serve_parallel.c - the ranks of one model: vLLM's --data-parallel-* and --enable-expert-parallel, or the VLLM_DP_* variables of
 * older guides. Each rank is a process of its own with its own port (vLLM's external load balancing). */
#include "cli/serve.h"
#include <errno.h>
#include <stdlib.h>

/* vLLM's. */
#define RPC_PORT_DEFAULT 29550

/* A number from the options, or else from the environment, or else `otherwise`. */
static int choose(
    int64_t given, const char *variable, int64_t most, int64_t otherwise, int64_t *ret_value, struct error *e) {
        const char *text = getenv(variable);
        char *end;

        *ret_value = given >= 0 ? given : otherwise;
        if (given >= 0 || !text || !*text)
                return 0;
        *ret_value = strtoll(text, &end, 10);
        if (end == text || *end || *ret_value < 0 || *ret_value > most)
                return error_set(
                    e, -EINVAL, "%s is `%s`, not a number from 0 to %lld", variable, text, (long long)most);
        return 0;
}

static int check(int64_t size, int64_t rank, struct error *e) {
        if (size < 1 || size > GROUP_SIZE_MAX)
                return error_set(e, -EINVAL, "--data-parallel-size must lie in 1 to %u", GROUP_SIZE_MAX);
        if (size > 1 && rank < 0)
                return error_set(e, -EINVAL,
                    "--data-parallel-size %lld: each rank is a process of its own here: start it with "
                    "--data-parallel-rank 0 to %lld, or let `baton up` start them all",
                    (long long)size, (long long)size - 1);
        if (rank >= size)
                return error_set(e, -EINVAL, "--data-parallel-rank %lld: there are ranks 0 to %lld", (long long)rank,
                    (long long)size - 1);
        return 0;
}

static enum group_payload payload_of(const char *name) {
        return !strcmp(name, "float32")    ? GROUP_PAYLOAD_F32
               : !strcmp(name, "bfloat16") ? GROUP_PAYLOAD_BF16
               : !strcmp(name, "int8")     ? GROUP_PAYLOAD_INT8
                                           : GROUP_PAYLOAD_EXACT;
}

int serve_read_parallel(const struct serve_options *o, struct engine_group *ret_group, struct error *e) {
        const char *host = o->dp_address ? o->dp_address : getenv("VLLM_DP_MASTER_IP");
        int64_t size = 1, rank = -1, port = 0;
        int r = choose(o->data_parallel, "VLLM_DP_SIZE", GROUP_SIZE_MAX, 1, &size, e);

        if (r == 0)
                r = choose(o->dp_rank, "VLLM_DP_RANK", GROUP_SIZE_MAX, -1, &rank, e);
        if (r == 0)
                r = choose(o->dp_port, "VLLM_DP_MASTER_PORT", 65535, RPC_PORT_DEFAULT, &port, e);
        if (r == 0)
                r = check(size, rank, e);
        if (r < 0)
                return r;
        *ret_group = (struct engine_group){.rank = size > 1 ? (uint32_t)rank : 0,
            .size = (uint32_t)size,
            .host = host && *host ? host : "127.0.0.1",
            .port = (uint16_t)port,
            .silence_ms = (unsigned)o->dp_silence * 1000,
            .payload = payload_of(o->all2all_dtype)};
        return 0;
}
