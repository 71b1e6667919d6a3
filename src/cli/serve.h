/* serve.h - what the user asked of `baton serve`. */
#pragma once
#include "base/arena.h"
#include "base/buf.h"
#include "base/options.h"
#include "engine/engine.h"
#include "openai/openai.h"

struct serve_options {
        const char *dp_address;
        const char *host, *uds, *tls_cert, *tls_key, *tls_ca, *model, *dtype, *quantization, *policy, *kv_dtype;
        const char *generation_config, *chat_format, *reasoning_parser, *tool_parser, *speculative, *additional, *isa,
            *log_level;
        const char *kv_transfer, *kv_events, *response_role, *origins, *template_kwargs, *override_generation;
        const char *config_file, *tls_ciphers, *chat_template, *tokenizer, *w8a8_mix, *compilation, *all2all_dtype;
        struct option_list api_key, served_names, capture_sizes;
        int64_t port, max_model_len, max_num_seqs, max_num_batched_tokens, max_queued, long_prefill, block_size,
            kv_bytes, kv_blocks;
        int64_t dp_rank, dp_port, dp_silence; /* -1: not given; seconds, 0: the engine's own */
        int64_t max_logprobs, seed, drain_seconds, threads, tensor_parallel, data_parallel, pipeline_parallel;
        int64_t tls_cert_reqs; /* as Python's ssl has them: 0 none, 2 required; -1 not given */
        double memory_share;
        const char *expert_placement, *eplb_config;
        int64_t redundant_experts, eplb_window, eplb_interval; /* the older flags; -1: not given */
        bool expert_parallel, enforce_eager, eplb, eplb_tell;
        bool chunked_prefill, prefix_caching, auto_tools, prompt_details, id_headers, force_usage, tokens_as_ids,
            allow_credentials;
};

/* As options_parse; with --help the text goes to *ret_help. */
int serve_options_parse(int argc, char **argv, struct serve_options *o, struct options_result *ret_result,
    struct buf *ret_help, struct error *e);
int serve_read_speculative(const char *json, uint32_t *ret_tokens, struct error *e);
/* What the switches of vLLM-Ascend's guides mean here: --additional-config, --compilation-config, --cudagraph-capture-sizes,
 * --enforce-eager. */
#define SERVE_SIZES_MAX 64u
struct serve_switches {
        bool prefill_first; /* ascend_scheduler_config without chunked prefill: whole prompts before decodes */
        bool recompute;     /* recompute_scheduler_enable */
        bool chunked_prefill;
        int64_t long_prefill;
        bool eager;                      /* nothing is to be prepared */
        uint32_t sizes[SERVE_SIZES_MAX]; /* of batches whose steps are to be prepared */
        size_t size_count;
        /* Names for the log: of what is always so, of what cannot be switched off, of what means nothing on a CPU. */
        struct buf always, stays, unused;
};
/* *ret_switches is to be freed whatever is returned. */
int serve_read_switches(const struct serve_options *o, struct serve_switches *ret_switches, struct error *e);
void serve_switches_free(struct serve_switches *s);
/* Variables of the environment that are set and mean something to NPUs alone. */
void serve_name_environment(struct buf *out);
/* The ranks of one model; size 1: there is one. Texts are the options' and the environment's. */
int serve_read_parallel(const struct serve_options *o, struct engine_group *ret_group, struct error *e);
/* --expert-placement-strategy, --enable-eplb, --eplb-config and the flags before it: the group's part, and where experts are at the
 * start, to be freed. `layers` are the model's, drafts' included. Nothing without --enable-expert-parallel. */
int serve_read_experts(const struct serve_options *o, const struct model_config *config, uint32_t layers,
    struct engine_group *group, struct placement *ret_placement, struct error *e);
/* --kv-transfer-config. Texts live in `arena`; api_host is --host, or NULL. */
int serve_read_transfer(
    const char *json, const char *api_host, struct arena *arena, struct engine_transfer *ret_transfer, struct error *e);
/* --kv-events-config; the data-parallel rank counts the ports up. Texts live in `arena`. 1: they are to be published; 0: they are not;
 * -EINVAL with a text. */
int serve_read_events(
    const char *json, unsigned rank, struct arena *arena, struct publisher_options *ret_options, struct error *e);
/* generation_config.json of the folder. 0, or why it cannot be read (-ENOENT: there is none). */
int serve_read_generation(const char *dir, struct openai_defaults *d, struct error *e);
/* --override-generation-config, --default-chat-template-kwargs: JSON objects over what is there. */
int serve_read_overrides(
    const char *generation, const char *template_kwargs, struct openai_defaults *d, struct error *e);
/* --allowed-origins: a JSON list of strings, or one origin as it stands. The texts live in `arena`. */
int serve_read_origins(const char *text, struct arena *arena, struct option_list *ret_origins, struct error *e);
