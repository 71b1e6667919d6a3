/* serve_options.c - the flags of `vllm serve`: those that mean something on a CPU, and those that are known and mean nothing
 * here (named once in a warning). Anything else is refused with the nearest name. */
#include "base/json.h"
#include "cli/serve.h"
#include <errno.h>
#include <stdlib.h>

#define AT(member) offsetof(struct serve_options, member)

static const struct option options[] = {
    {"host", 0, OPTION_STRING, AT(host), "ADDRESS", "listen on this address (0.0.0.0)"},
    {"port", 0, OPTION_INT, AT(port), "N", "listen on this port (8000)", .min = 0, .max = 65535},
    {"uds", 0, OPTION_STRING, AT(uds), "PATH", "listen on a unix socket instead"},
    {"api-key", 0, OPTION_LIST, AT(api_key), "KEY",
        "clients must send it as Authorization: Bearer for /v1 (also VLLM_API_KEY)"},
    {"ssl-certfile", 0, OPTION_STRING, AT(tls_cert), "PATH", "serve TLS with this certificate (PEM)"},
    {"ssl-keyfile", 0, OPTION_STRING, AT(tls_key), "PATH", "and this key"},
    {"ssl-ca-certs", 0, OPTION_STRING, AT(tls_ca), "PATH", "require client certificates signed by this"},
    {"ssl-cert-reqs", 0, OPTION_INT, AT(tls_cert_reqs), "0|2", NULL, .min = 0, .max = 2},
    {"ssl-ciphers", 0, OPTION_STRING, AT(tls_ciphers), "LIST", NULL},
    {"config", 0, OPTION_STRING, AT(config_file), "PATH", NULL},
    {"model", 0, OPTION_STRING, AT(model), "PATH", "the model folder, when not the first argument"},
    {"served-model-name", 0, OPTION_LIST, AT(served_names), "NAME",
        "names clients may use; the first is told (the folder's path)"},
    {"dtype", 0, OPTION_STRING, AT(dtype), NULL, "how activations are kept (float32; auto is float32)",
        .choices = "auto|float32|float|bfloat16"},
    {"quantization", 'q', OPTION_STRING, AT(quantization), NULL,
        "weight format (found by itself; ascend wants its description file)", .choices = "ascend|fp8"},
    {"w8a8-mix", 0, OPTION_STRING, AT(w8a8_mix), NULL,
        "how W8A8_MIX layers scale activations (auto: static on a kv_consumer, else dynamic)",
        .choices = "auto|static|dynamic"},
    {"max-model-len", 0, OPTION_SIZE, AT(max_model_len), "N", "tokens of prompt and answer at most (the model's own)",
        .min = -1, .max = 1 << 24},
    {"max-num-seqs", 0, OPTION_INT, AT(max_num_seqs), "N", "sequences in one step at most (128)", .min = 1,
        .max = 65536},
    {"max-num-batched-tokens", 0, OPTION_SIZE, AT(max_num_batched_tokens), "N", "tokens in one step at most (2048)",
        .min = 1, .max = 1 << 20},
    {"max-num-queued-reqs", 0, OPTION_INT, AT(max_queued), "N",
        "sequences here at once, beyond --max-num-seqs, from which on answers are 503 (10000)", .min = 1,
        .max = 1 << 24},
    {"long-prefill-token-threshold", 0, OPTION_INT, AT(long_prefill), "N",
        "tokens of one prompt in a step at most (0: no limit)", .min = 0, .max = 1 << 24},
    {"enable-chunked-prefill", 0, OPTION_FLAG, AT(chunked_prefill), NULL,
        "split long prompts over steps (on; --no-… for off)"},
    {"enable-prefix-caching", 0, OPTION_FLAG, AT(prefix_caching), NULL,
        "reuse the KV of common prompt beginnings (on; --no-… for off)"},
    {"scheduling-policy", 0, OPTION_STRING, AT(policy), NULL, "order of waiting requests (fcfs)",
        .choices = "fcfs|priority"},
    {"block-size", 0, OPTION_INT, AT(block_size), "N", "tokens of a KV block (64)", .min = 1, .max = 4096},
    {"kv-cache-dtype", 0, OPTION_STRING, AT(kv_dtype), NULL, "how latents are kept (as --dtype)",
        .choices = "auto|float32|bfloat16"},
    {"kv-cache-memory-bytes", 0, OPTION_SIZE, AT(kv_bytes), "N", "memory of the KV cache", .min = 0, .max = INT64_MAX},
    {"num-gpu-blocks-override", 0, OPTION_INT, AT(kv_blocks), "N", "blocks of the KV cache", .min = 1,
        .max = INT32_MAX},
    {"kv-cache-blocks", 0, OPTION_INT, AT(kv_blocks), "N", NULL, .min = 1, .max = INT32_MAX},
    {"gpu-memory-utilization", 0, OPTION_DOUBLE, AT(memory_share), "0..1",
        "share of the memory left after the weights for the KV cache (0.5)"},
    {"max-logprobs", 0, OPTION_INT, AT(max_logprobs), "N", "log-probabilities a request may ask for (20; -1: all)",
        .min = -1, .max = 1 << 24},
    {"seed", 0, OPTION_INT, AT(seed), "N", "of sampling where the request has none (random)"},
    {"generation-config", 0, OPTION_STRING, AT(generation_config), "auto|vllm|PATH",
        "defaults of sampling: the model's, vLLM's own, or those of another folder"},
    {"chat-format", 0, OPTION_STRING, AT(chat_format), "NAME",
        "deepseek-v2, deepseek-v3, deepseek-r1 or deepseek-v3.1, instead of the one of the tokenizer's template"},
    {"chat-template", 0, OPTION_STRING, AT(chat_template), "PATH",
        "the template whose format it is, instead of the tokenizer's: it is recognised, not run"},
    {"tokenizer", 0, OPTION_STRING, AT(tokenizer), "PATH", "the folder with tokenizer and template (the model's)"},
    {"reasoning-parser", 0, OPTION_STRING, AT(reasoning_parser), "NAME", "deepseek_r1 or deepseek_v3"},
    {"enable-auto-tool-choice", 0, OPTION_FLAG, AT(auto_tools), NULL,
        "let the model call tools; needs --tool-call-parser"},
    {"tool-call-parser", 0, OPTION_STRING, AT(tool_parser), "NAME", "deepseek_v3 or deepseek_v31"},
    {"speculative-config", 0, OPTION_STRING, AT(speculative), "JSON",
        "draft with the model's MTP module: {\"num_speculative_tokens\":1,\"method\":\"deepseek_mtp\"}"},
    {"additional-config", 0, OPTION_STRING, AT(additional), "JSON",
        "vllm-ascend's: scheduler and graph sizes count, the rest is named (docs/switches.md)"},
    {"compilation-config", 0, OPTION_STRING, AT(compilation), "JSON",
        "cudagraph_capture_sizes: numbers of sequences whose steps are run once before the first request"},
    {"cudagraph-capture-sizes", 0, OPTION_LIST, AT(capture_sizes), "N", "the same"},
    {"enforce-eager", 0, OPTION_FLAG, AT(enforce_eager), NULL, "run none before"},
    {"enable-prompt-tokens-details", 0, OPTION_FLAG, AT(prompt_details), NULL, "tell cached tokens in usage"},
    {"enable-request-id-headers", 0, OPTION_FLAG, AT(id_headers), NULL, "echo X-Request-Id"},
    {"enable-force-include-usage", 0, OPTION_FLAG, AT(force_usage), NULL, "usage at the end of every stream"},
    {"return-tokens-as-token-ids", 0, OPTION_FLAG, AT(tokens_as_ids), NULL,
        "log-probabilities name tokens by their ids in every answer"},
    {"response-role", 0, OPTION_STRING, AT(response_role), "ROLE", "who speaks in answers (assistant)"},
    {"default-chat-template-kwargs", 0, OPTION_STRING, AT(template_kwargs), "JSON",
        "where a request is silent: {\"thinking\":true}"},
    {"override-generation-config", 0, OPTION_STRING, AT(override_generation), "JSON",
        "over the model's sampling defaults: {\"temperature\":0.6}"},
    {"allowed-origins", 0, OPTION_STRING, AT(origins), "JSON",
        "other sites whose pages may call (none): [\"https://example.org\"], [\"*\"]"},
    {"allow-credentials", 0, OPTION_FLAG, AT(allow_credentials), NULL, "and may send their users' credentials"},
    {"shutdown-timeout", 0, OPTION_INT, AT(drain_seconds), "SECONDS", "for streams in flight after SIGTERM (30)",
        .min = 0, .max = 86400},
    {"threads", 0, OPTION_INT, AT(threads), "N", "threads that compute (one per usable core)", .min = 1, .max = 1024},
    {"isa", 0, OPTION_STRING, AT(isa), NULL, "instruction set (the best there is)",
        .choices = "auto|scalar|avx2|avx512|avx512_bf16"},
    {"log-level", 0, OPTION_STRING, AT(log_level), "LEVEL", "debug, info, warning or error (info)"},
    {"uvicorn-log-level", 0, OPTION_STRING, AT(log_level), "LEVEL", NULL},
    {"tensor-parallel-size", 0, OPTION_INT, AT(tensor_parallel), "N",
        "groups of threads, each with its share of every layer", .min = 1, .max = 1024},
    {"data-parallel-size", 0, OPTION_INT, AT(data_parallel), "N", "ranks of this model, each a process of its own (1)",
        .min = 1, .max = 65536},
    {"data-parallel-rank", 0, OPTION_INT, AT(dp_rank), "N", "which one this is", .min = 0, .max = 65535},
    {"data-parallel-address", 0, OPTION_STRING, AT(dp_address), "HOST", "of rank 0 (127.0.0.1)"},
    {"data-parallel-rpc-port", 0, OPTION_INT, AT(dp_port), "PORT", "of rank 0 (29550)", .min = 1, .max = 65535},
    {"enable-expert-parallel", 0, OPTION_FLAG, AT(expert_parallel), NULL,
        "each rank holds its share of the experts; they step together"},
    {"expert-placement-strategy", 0, OPTION_STRING, AT(expert_placement), NULL,
        "which experts a rank begins with: runs of them (linear), or dealt out", .choices = "linear|round_robin"},
    {"enable-eplb", 0, OPTION_FLAG, AT(eplb), NULL, "experts have replicas and follow the load while serving"},
    {"eplb-config", 0, OPTION_STRING, AT(eplb_config), "JSON",
        "{\"num_redundant_experts\":0,\"window_size\":1000,\"step_interval\":3000,\"log_balancedness\":false}"},
    {"num-redundant-experts", 0, OPTION_INT, AT(redundant_experts), "N", NULL, .min = 0, .max = 65535},
    {"eplb-window-size", 0, OPTION_INT, AT(eplb_window), "STEPS", NULL, .min = 1, .max = 1000000},
    {"eplb-step-interval", 0, OPTION_INT, AT(eplb_interval), "STEPS", NULL, .min = 0, .max = INT32_MAX},
    {"eplb-log-balancedness", 0, OPTION_FLAG, AT(eplb_tell), NULL, NULL},
    {"all2all-dtype", 0, OPTION_STRING, AT(all2all_dtype), NULL, "how tokens travel to experts (auto: no bit is lost)",
        .choices = "auto|float32|bfloat16|int8"},
    {"distributed-timeout-seconds", 0, OPTION_INT, AT(dp_silence), "SECONDS", "a rank that says nothing is lost (30)",
        .min = 1, .max = 86400},
    {"pipeline-parallel-size", 0, OPTION_INT, AT(pipeline_parallel), "N", NULL, .min = 1, .max = 1024},
    {"kv-transfer-config", 0, OPTION_STRING, AT(kv_transfer), "JSON", NULL},
    {"kv-events-config", 0, OPTION_STRING, AT(kv_events), "JSON",
        "publish what the prefix cache holds (enable_kv_cache_events, endpoint, replay_endpoint, topic, buffer_steps)"},
};

static const char *const without_effect[] = {
    "aggregate-engine-logging",
    "api-server-count",
    "disable-log-stats",
    "enable-log-requests",
    "fail-on-environ-validation",
    "gdn-prefill-backend",
    "grpc",
    "headless",
    "kda-decode-backend",
    "kda-prefill-backend",
    "allowed-headers",
    "allowed-methods",
    "anthropic-disabled-thinking-effort",
    "chat-template-content-format",
    "cohere-format",
    "cohere-is-reasoning-model",
    "data-parallel-supervisor-port",
    "disable-access-log-for-endpoints",
    "disable-fastapi-docs",
    "disable-uvicorn-access-log",
    "dp-supervisor-probe-failure-threshold",
    "dp-supervisor-probe-interval-s",
    "dp-supervisor-probe-timeout-s",
    "enable-flash-late-interaction",
    "enable-log-deltas",
    "enable-log-outputs",
    "enable-offline-docs",
    "enable-per-request-metrics",
    "enable-scale-out",
    "enable-server-load-tracking",
    "enable-ssl-refresh",
    "enable-tokenizer-info-endpoint",
    "exclude-tools-when-tool-choice-none",
    "fingerprint-mode",
    "fingerprint-value",
    "grpc-port",
    "h11-max-header-count",
    "h11-max-incomplete-event-size",
    "log-error-stack",
    "max-log-len",
    "middleware",
    "root-path",
    "sse-keep-alive-interval",
    "tokens-only",
    "tool-parser-plugin",
    "tool-server",
    "tool-strict-level",
    "trust-request-chat-template",
    "trust-request-mm-kwargs",
    "allow-deprecated-quantization",
    "allowed-local-media-path",
    "allowed-media-domains",
    "code-revision",
    "config-format",
    "convert",
    "disable-cascade-attn",
    "disable-sliding-window",
    "enable-cumem-allocator",
    "enable-nccl-comm-suspend",
    "enable-prompt-embeds",
    "enable-return-routed-experts",
    "enable-sleep-mode",
    "enable-trace-replay",
    "hf-config-path",
    "hf-overrides",
    "hf-token",
    "io-processor-plugin",
    "logits-processors",
    "logprobs-mode",
    "model-class-overrides",
    "model-impl",
    "pooler-config",
    "quantization-config",
    "renderer-num-workers",
    "return-sampling-mask",
    "revision",
    "runner",
    "skip-tokenizer-init",
    "sleep-mode-offload-cudagraph",
    "sleep-preserve-parameter-names",
    "tokenizer-mode",
    "tokenizer-revision",
    "trust-remote-code",
    "use-fp64-gumbel",
    "download-dir",
    "ignore-patterns",
    "load-format",
    "model-loader-extra-config",
    "pt-load-map-location",
    "safetensors-load-strategy",
    "safetensors-prefetch-block-size",
    "safetensors-prefetch-num-threads",
    "use-tqdm-on-load",
    "attention-backend",
    "enable-mamba-cache-stochastic-rounding",
    "mamba-backend",
    "mamba-cache-philox-rounds",
    "mamba-ssu-algorithm",
    "reasoning-parser-plugin",
    "all2all-backend",
    "cp-kv-cache-interleave-size",
    "cpu-distributed-timeout-seconds",
    "data-parallel-backend",
    "data-parallel-external-lb",
    "data-parallel-hybrid-lb",
    "data-parallel-multi-port-external-lb",
    "data-parallel-size-local",
    "data-parallel-start-rank",
    "dbo-decode-token-threshold",
    "dbo-prefill-token-threshold",
    "dcp-comm-backend",
    "dcp-kv-cache-interleave-size",
    "dcp-q-replicate",
    "decode-context-parallel-size",
    "device-ids",
    "disable-custom-all-reduce",
    "disable-nccl-for-dp-synchronization",
    "distributed-executor-backend",
    "dp-sync-interval",
    "elastic-ep-max-dp-size",
    "enable-batch-sharded-sampling",
    "enable-dbo",
    "enable-elastic-ep",
    "enable-ep-weight-filter",
    "enable-fault-tolerance",
    "enable-hc-sp",
    "enable-shm-tensor-arena",
    "fault-tolerance-config",
    "master-addr",
    "master-port",
    "max-parallel-loading-workers",
    "nnodes",
    "node-rank",
    "numa-bind",
    "numa-bind-cpus",
    "numa-bind-nodes",
    "prefill-context-parallel-size",
    "ray-workers-use-nsight",
    "ubatch-size",
    "worker-cls",
    "worker-extension-cls",
    "enable-mamba-shared-prefix-checkpoint",
    "kv-cache-dtype-skip-layers",
    "kv-offloading-backend",
    "kv-offloading-size",
    "kv-sharing-fast-prefill",
    "mamba-block-size",
    "mamba-cache-dtype",
    "mamba-cache-mode",
    "mamba-ssm-cache-dtype",
    "prefix-cache-retention-interval",
    "prefix-caching-hash-algo",
    "prefix-match-unit",
    "replayssm-buffer-len",
    "swa-bounded-replay",
    "use-replayssm",
    "cpu-offload-gb",
    "cpu-offload-params",
    "offload-backend",
    "offload-group-size",
    "offload-num-in-group",
    "offload-params",
    "offload-prefetch-step",
    "enable-mm-embeds",
    "interleave-mm-strings",
    "language-model-only",
    "limit-mm-per-prompt",
    "media-io-kwargs",
    "mm-device-do-normalize",
    "mm-encoder-attn-backend",
    "mm-encoder-attn-dtype",
    "mm-encoder-fp8-scale-path",
    "mm-encoder-fp8-scale-save-margin",
    "mm-encoder-fp8-scale-save-path",
    "mm-encoder-only",
    "mm-encoder-tp-mode",
    "mm-hasher-algorithm",
    "mm-ipc-gpu-memory-gb",
    "mm-processor-cache-gb",
    "mm-processor-cache-type",
    "mm-processor-device",
    "mm-processor-kwargs",
    "mm-shm-cache-max-object-size-mb",
    "mm-tensor-ipc",
    "skip-mm-profiling",
    "video-pruning-method",
    "video-pruning-rate",
    "default-mm-loras",
    "enable-mixed-moe-lora-format",
    "enable-moe-shared-loras",
    "enable-tower-connector-lora",
    "fully-sharded-loras",
    "lora-dtype",
    "lora-target-modules",
    "max-cpu-loras",
    "max-lora-cls-labels",
    "max-lora-rank",
    "max-loras",
    "specialize-active-lora",
    "log-config-file",
    "logging-config",
    "collect-detailed-traces",
    "cudagraph-metrics",
    "custom-histogram-buckets",
    "enable-layerwise-nvtx-tracing",
    "enable-logging-iteration-details",
    "enable-mfu-metrics",
    "jit-monitor-mode",
    "jit-monitor-verbose",
    "kv-cache-metrics",
    "kv-cache-metrics-sample",
    "otlp-traces-endpoint",
    "per-request-spec-decode-metrics",
    "show-hidden-metrics-for-version",
    "async-scheduling",
    "disable-chunked-mm-input",
    "disable-hybrid-kv-cache-manager",
    "long-prefill-token-threshold-adaptive",
    "max-num-active-seqs",
    "max-num-queued-tokens",
    "max-num-scheduled-tokens",
    "prefill-schedule-interval",
    "scheduler-cls",
    "scheduler-reserve-full-isl",
    "stream-interval",
    "watermark",
    "max-cudagraph-capture-size",
    "enable-flashinfer-autotune",
    "ir-op-priority",
    "linear-backend",
    "moe-backend",
    "sparse-indexer-topk-backend",
    "attention-config",
    "aux-output-config",
    "diffusion-config",
    "ec-manager-config",
    "ec-transfer-config",
    "engram-config",
    "kernel-config",
    "optimization-level",
    "performance-mode",
    "profiler-config",
    "reasoning-config",
    "spec-method",
    "spec-model",
    "spec-tokens",
    "structured-outputs-config",
    "watermark-config",
    "weight-transfer-config",
};

#define MEANT   (sizeof(options) / sizeof(*options))
#define IGNORED (sizeof(without_effect) / sizeof(*without_effect))

int serve_options_parse(int argc, char **argv, struct serve_options *o, struct options_result *ret_result,
    struct buf *ret_help, struct error *e) {
        struct option *all = calloc(MEANT + IGNORED, sizeof(*all));
        struct option_set set = {"baton serve MODEL [options]",
            "Serves a DeepSeek V2 or V3 checkpoint (a Hugging Face folder) over the OpenAI API on CPUs. Flags are "
            "those of `vllm "
            "serve`; those without a meaning on a CPU are accepted and named once.",
            all, MEANT + IGNORED, 1};
        int r;

        if (!all)
                return error_set(e, -ENOMEM, "out of memory");
        memcpy(all, options, sizeof(options));
        for (size_t i = 0; i < IGNORED; i++)
                all[MEANT + i] = (struct option){.name = without_effect[i], .kind = OPTION_IGNORED};
        r = options_parse(&set, argc, argv, o, ret_result, e);
        if (r == 0 && ret_result->help)
                options_help(&set, ret_help);
        free(all);
        return r;
}

/* {"num_speculative_tokens":N,"method":"deepseek_mtp"} */
int serve_read_speculative(const char *json, uint32_t *ret_tokens, struct error *e) {
        yyjson_doc *doc;
        struct slice method;
        int64_t tokens;
        int r = json_parse(slice_str(json), &doc, e);

        if (r < 0)
                return error_prefix(e, r, "--speculative-config");
        method = json_get_slice(yyjson_doc_get_root(doc), "method");
        tokens = json_get_i64(yyjson_doc_get_root(doc), "num_speculative_tokens", 0);
        if (method.len && !slice_is(method, "deepseek_mtp") && !slice_is(method, "mtp"))
                r = error_set(e, -EINVAL,
                    "--speculative-config: method `%.*s` is not known; this engine drafts with deepseek_mtp",
                    SLICE_ARG(slice_sub(method, 0, 60)));
        else if (tokens < 1 || tokens > 8)
                r = error_set(e, -EINVAL, "--speculative-config: num_speculative_tokens must be 1..8");
        else
                *ret_tokens = (uint32_t)tokens;
        yyjson_doc_free(doc);
        return r;
}

/* ---- sampling defaults ------------------------------------------------------------------------------------------------ */

/* do_sample false without a temperature means greedy, as transformers has it. */
static void read_sampling(yyjson_val *root, struct openai_defaults *d) {
        if (yyjson_is_false(json_get(root, "do_sample")))
                d->temperature = 0;
        d->temperature = (float)json_get_double(root, "temperature", d->temperature);
        d->top_p = (float)json_get_double(root, "top_p", d->top_p);
        d->min_p = (float)json_get_double(root, "min_p", d->min_p);
        d->top_k = (int32_t)json_get_i64(root, "top_k", d->top_k);
        d->repetition_penalty = (float)json_get_double(root, "repetition_penalty", d->repetition_penalty);
}

int serve_read_generation(const char *dir, struct openai_defaults *d, struct error *e) {
        struct buf path = {0};
        yyjson_doc *doc = NULL;
        int r;

        buf_printf(&path, "%s/generation_config.json", dir);
        r = json_parse_file(buf_cstr(&path), 1 << 20, &doc, e);
        if (r == 0)
                read_sampling(yyjson_doc_get_root(doc), d);
        yyjson_doc_free(doc);
        buf_free(&path);
        return r;
}

static int parse_object(const char *option, const char *text, yyjson_doc **ret_doc, struct error *e) {
        int r = json_parse(slice_str(text), ret_doc, e);

        if (r < 0)
                return error_prefix(e, r, "--%s", option);
        if (yyjson_is_obj(yyjson_doc_get_root(*ret_doc)))
                return 0;
        yyjson_doc_free(*ret_doc);
        return error_set(e, -EINVAL, "--%s: not a JSON object: %.100s", option, text);
}

int serve_read_overrides(
    const char *generation, const char *template_kwargs, struct openai_defaults *d, struct error *e) {
        yyjson_doc *doc;
        yyjson_val *thinking;
        int r = 0;

        if (generation) {
                r = parse_object("override-generation-config", generation, &doc, e);
                if (r < 0)
                        return r;
                read_sampling(yyjson_doc_get_root(doc), d);
                yyjson_doc_free(doc);
        }
        if (template_kwargs) {
                r = parse_object("default-chat-template-kwargs", template_kwargs, &doc, e);
                if (r < 0)
                        return r;
                thinking = json_get(yyjson_doc_get_root(doc), "thinking");
                if (yyjson_is_bool(thinking))
                        d->thinking = yyjson_get_bool(thinking);
                yyjson_doc_free(doc);
        }
        return 0;
}

/* ---- origins -------------------------------------------------------------------------------------------------------------- */

static int add_origin(struct arena *arena, struct option_list *list, struct slice text) {
        const char **grown = realloc(list->items, (list->count + 1) * sizeof(*grown));

        if (!grown)
                return -ENOMEM;
        list->items = grown;
        grown[list->count] = arena_copy(arena, text).ptr;
        return grown[list->count++] ? 0 : -ENOMEM;
}

int serve_read_origins(const char *text, struct arena *arena, struct option_list *ret_origins, struct error *e) {
        yyjson_doc *doc;
        yyjson_val *root;
        int r;

        if (*text != '[') {
                r = add_origin(arena, ret_origins, slice_str(text));
                return r < 0 ? error_set(e, r, "out of memory") : 0;
        }
        r = json_parse(slice_str(text), &doc, e);
        if (r < 0)
                return error_prefix(e, r, "--allowed-origins");
        root = yyjson_doc_get_root(doc);
        for (size_t i = 0; r == 0 && i < yyjson_arr_size(root); i++) {
                struct slice origin = json_slice(yyjson_arr_get(root, i));

                r = origin.ptr ? add_origin(arena, ret_origins, origin)
                               : error_set(e, -EINVAL, "--allowed-origins: not a list of strings: %.100s", text);
        }
        yyjson_doc_free(doc);
        return r;
}
