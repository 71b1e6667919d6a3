/* serve.c - `baton serve`: the embedded engine behind vLLM's HTTP API. */
#include "cli/serve.h"
#include "base/clock.h"
#include "base/hash.h"
#include "cli/cli.h"
#include "engine/api.h"
#include "os/os.h"
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

struct serve {
        struct serve_options o;
        struct log log;
        uv_loop_t loop;
        struct compute *compute;
        struct model_config config; /* as the folder has it */
        struct model *model;
        struct tokenizer *tokenizer;
        struct engine *engine;
        struct api *api;
        struct http_server *server;
        uv_signal_t on_term, on_int;
        bool loop_made, draining;
        const char *dir;
        const char *default_name;
        struct api_options api_options;
        struct arena arena; /* of texts made from options */
        struct option_list origins;
        const char *environment_key;
        char fingerprint[64];
        uint32_t drafts, length;
        struct serve_switches switches;
        struct engine_transfer transfer;
        struct api_transfer api_transfer;
        struct engine_group group;
        struct publisher_options events;
        bool publishes;
        struct publisher *publisher;
        struct placement placement; /* of the group's experts at the start */
};

static const struct serve_options defaults = {.host = "0.0.0.0", /* as vLLM */
    .port = 8000,
    .dtype = "auto",
    .policy = "fcfs",
    .kv_dtype = "auto",
    .all2all_dtype = "auto",
    .isa = "auto",
    .w8a8_mix = "auto",
    .max_model_len = -1,
    .max_num_seqs = 128,
    .max_num_batched_tokens = 2048,
    .max_queued = 10000,
    .block_size = 64,
    .memory_share = 0.5,
    .max_logprobs = 20,
    .seed = INT64_MIN,
    .drain_seconds = 30,
    .tls_cert_reqs = -1,
    .tensor_parallel = 1,
    .data_parallel = -1,
    .dp_rank = -1,
    .dp_port = -1,
    .redundant_experts = -1,
    .eplb_window = -1,
    .eplb_interval = -1,
    .pipeline_parallel = 1,
    .chunked_prefill = true,
    .prefix_caching = true};

/* ---- checks before anything is loaded ------------------------------------------------------------------------------------ */

static int check_tls(const struct serve_options *o, struct error *e) {
        if ((o->tls_cert != NULL) != (o->tls_key != NULL))
                return error_set(e, -EINVAL, "--ssl-certfile and --ssl-keyfile go together");
        if (o->tls_ca && !o->tls_cert)
                return error_set(e, -EINVAL,
                    "--ssl-ca-certs asks clients for certificates: it needs --ssl-certfile and --ssl-keyfile");
        if (o->tls_cert_reqs >= 0 && o->tls_cert_reqs != (o->tls_ca ? 2 : 0))
                return error_set(e, -EINVAL,
                    "--ssl-cert-reqs %lld: client certificates are required (2) with --ssl-ca-certs, and not asked for "
                    "(0) "
                    "without",
                    (long long)o->tls_cert_reqs);
        if (o->tls_ciphers)
                return error_set(
                    e, -EINVAL, "--ssl-ciphers: OpenSSL's own choice cannot be changed here; leave it out");
        return 0;
}

static int check_options(struct serve *s, struct error *e) {
        const struct serve_options *o = &s->o;
        int r = check_tls(o, e);

        if (r < 0)
                return r;

        if (o->pipeline_parallel > 1)
                return error_set(e, -EINVAL,
                    "--pipeline-parallel-size must be 1: this engine does not spread layers over processes (ranks "
                    "share "
                    "experts: --data-parallel-size with --enable-expert-parallel)");
        if (o->threads && o->threads < o->tensor_parallel)
                return error_set(e, -EINVAL,
                    "--tensor-parallel-size %lld with --threads %lld: each tensor-parallel rank is a group of threads "
                    "and needs one at least",
                    (long long)o->tensor_parallel, (long long)o->threads);
        if (o->config_file)
                return error_set(
                    e, -EINVAL, "--config: files of options are not read; give what is in %s here", o->config_file);
        if (o->chat_format && o->chat_template)
                return error_set(e, -EINVAL, "--chat-format and --chat-template say the same: leave one out");
        if (o->memory_share <= 0 || o->memory_share > 1)
                return error_set(e, -EINVAL, "--gpu-memory-utilization must lie in (0, 1]");
        if (!o->uds && os_check_bind(o->host, (uint16_t)o->port) == -EADDRINUSE)
                return error_set(e, -EADDRINUSE,
                    "port %lld is in use by another program (`ss -ltnp 'sport = :%lld'` tells which); choose another "
                    "with --port",
                    (long long)o->port, (long long)o->port);
        return 0;
}

static void name_words(const struct log *log, enum log_level level, const char *what, const struct buf *words) {
        if (words->len)
                log_write(log, level, "%s: %.*s", what, SLICE_ARG(buf_slice(words)));
}

static int read_switches(struct serve *s, struct error *e) {
        struct serve_switches *w = &s->switches;
        struct buf environment = {0};
        int r = serve_read_switches(&s->o, w, e);

        if (r < 0)
                return r;
        serve_name_environment(&environment);
        name_words(&s->log, LOG_INFO, "asked for, and always so here", &w->always);
        name_words(&s->log, LOG_WARN, "cannot be switched off here", &w->stays);
        name_words(&s->log, LOG_WARN, "known, without effect on a CPU", &w->unused);
        name_words(&s->log, LOG_WARN, "variables without effect on a CPU", &environment);
        buf_free(&environment);
        s->transfer.give_up_preempted = w->recompute;
        if (w->recompute && !s->transfer.consumes)
                log_warn(&s->log,
                    "--additional-config: recompute_scheduler_enable is without effect on an engine that takes no KV "
                    "(kv_consumer)");
        return 0;
}

static int read_transfer(struct serve *s, struct error *e) {
        struct engine_transfer *t = &s->transfer;
        int r = serve_read_transfer(s->o.kv_transfer, s->o.host, &s->arena, t, e);

        if (r < 0)
                return r;
        if ((t->pushes ? t->consumes : t->produces) && os_check_bind(t->host, t->port) == -EADDRINUSE)
                return error_set(e, -EADDRINUSE,
                    "--kv-transfer-config: port %u of %s is in use by another program (`ss -ltnp 'sport = :%u'` tells "
                    "which); choose another kv_port",
                    t->port, t->host, t->port);
        s->api_transfer = (struct api_transfer){.produces = t->produces,
            .consumes = t->consumes,
            .pushes = t->pushes,
            .recompute = t->recompute,
            .engine_id = t->engine_id,
            .host = t->host,
            .block_tokens = (uint32_t)s->o.block_size};
        s->api_options.transfer = &s->api_transfer;
        return 0;
}

static int read_configs(struct serve *s, struct error *e) {
        int r = 0;

        r = serve_read_parallel(&s->o, &s->group, e);
        if (r == 0 && s->group.size > 1 && !s->o.expert_parallel)
                log_info(&s->log,
                    "rank %u of %u: without --enable-expert-parallel each holds all experts, and none needs the "
                    "others",
                    s->group.rank, s->group.size);
        if (r == 0 && s->o.speculative)
                r = serve_read_speculative(s->o.speculative, &s->drafts, e);
        if (r == 0 && s->o.kv_transfer)
                r = read_transfer(s, e);
        if (r == 0 && s->o.kv_events) {
                r = serve_read_events(s->o.kv_events, s->group.rank, &s->arena, &s->events, e);
                s->publishes = r > 0;
                r = r > 0 ? 0 : r;
        }
        return r < 0 ? r : read_switches(s, e);
}

/* ---- the model -------------------------------------------------------------------------------------------------------------- */

static int make_compute(struct serve *s, struct error *e) {
        static const struct {
                const char *name;
                enum isa isa;
        } sets[] = {{"auto", ISA_BEST}, {"scalar", ISA_SCALAR}, {"avx2", ISA_AVX2}, {"avx512", ISA_AVX512},
            {"avx512_bf16", ISA_AVX512_BF16}};
        struct compute_options c = {.threads = (unsigned)(s->o.threads ? s->o.threads : os_cpu_count()),
            .spin_us = 50,
            .groups = (unsigned)s->o.tensor_parallel,
            .activation = !strcmp(s->o.dtype, "bfloat16") ? ACTIVATION_BF16 : ACTIVATION_F32};

        for (size_t i = 0; i < sizeof(sets) / sizeof(*sets); i++)
                if (!strcmp(s->o.isa, sets[i].name))
                        c.isa = sets[i].isa;
        if (s->config.heads % c.groups)
                return error_set(e, -EINVAL,
                    "--tensor-parallel-size %u: the model's %u attention heads do not divide by it", c.groups,
                    s->config.heads);
        if (c.threads < c.groups)
                c.threads = c.groups;
        return compute_new(&c, &s->compute, e);
}

/* W8A8_MIX: an engine that only decodes is static, as vLLM-Ascend has it. */
static bool is_static(const struct serve *s) {
        if (strcmp(s->o.w8a8_mix, "auto") != 0)
                return strcmp(s->o.w8a8_mix, "static") == 0;
        return s->transfer.consumes && !s->transfer.produces;
}

static bool shares_experts(const struct serve *s) {
        return s->o.expert_parallel && s->group.size > 1;
}

static int load_model(struct serve *s, struct error *e) {
        struct model_options m = {.dir = s->dir,
            .load_mtp = s->drafts > 0,
            .quantization = s->o.quantization,
            .static_quantization = is_static(s)};
        uint64_t begun = clock_mono_ns();
        int r = make_compute(s, e);

        m.compute = s->compute;
        if (r == 0 && s->o.tensor_parallel > 1)
                log_info(&s->log, "tensor parallel: %u groups of threads share every layer%s",
                    compute_groups(s->compute),
                    compute_is_bound(s->compute) ? ", each on a memory node of its own"
                                                 : "; the machine has one memory node, none is bound to cores");
        if (shares_experts(s)) {
                m.shard.ep_rank = s->group.rank;
                m.shard.ep_size = s->group.size;
                m.shard.placement = s->group.placement;
                m.movable_experts = s->group.balance;
        }
        if (r < 0)
                return r;
        compute_bind(s->compute); /* memory is of the node whose thread first writes to it */
        r = model_load(&m, &s->model, e);
        compute_unbind(s->compute);
        if (r < 0)
                return r;
        log_info(&s->log, "loaded %s: %s, %u layers, %.1f MiB of weights in %.1f s; %s, %u threads", s->dir,
            s->config.architecture, s->config.layers, (double)model_bytes(s->model) / (1 << 20),
            (double)(clock_mono_ns() - begun) / NS_PER_S, isa_name(compute_isa(s->compute)),
            compute_threads(s->compute));
        snprintf(s->fingerprint, sizeof(s->fingerprint), "baton-" BATON_VERSION "-%.8s", model_digest(s->model));
        return 0;
}

static int choose_chat(struct serve *s, const char *dir, struct error *e) {
        struct chat_format *chat = &s->api_options.chat;
        struct error why = {0};

        if (s->o.chat_format)
                return chat_format_parse(slice_str(s->o.chat_format), chat, e);
        if (s->o.chat_template) {
                int r = chat_format_named(s->o.chat_template, chat, e);

                return r < 0 ? error_prefix(e, r, "--chat-template") : 0;
        }
        if (chat_format_detect(dir, chat, &why) < 0) {
                chat->family = CHAT_NONE;
                log_warn(&s->log, "no chat: %s; --chat-format names one", error_text(&why, -EINVAL));
        }
        return 0;
}

static int load_text(struct serve *s, struct error *e) {
        struct api_options *a = &s->api_options;
        const char *dir = s->o.tokenizer ? s->o.tokenizer : s->dir;
        int r = tokenizer_load(dir, &s->tokenizer, e);

        if (r < 0)
                return r;
        if (tokenizer_size(s->tokenizer) > s->config.vocab)
                log_warn(&s->log,
                    "the tokenizer of %s has ids up to %u, the model knows %u: prompts with one beyond are refused",
                    dir, tokenizer_size(s->tokenizer) - 1, s->config.vocab);
        r = choose_chat(s, dir, e);
        if (r == 0 && s->o.reasoning_parser)
                r = reasoning_parser_parse(slice_str(s->o.reasoning_parser), &a->reasoning, e);
        if (r == 0 && s->o.tool_parser)
                r = tool_parser_parse(slice_str(s->o.tool_parser), &a->tools, e);
        return r;
}

/* ---- the engine ------------------------------------------------------------------------------------------------------------- */

static int choose_length(struct serve *s, struct error *e) {
        uint32_t own = s->config.max_positions;

        if (s->o.max_model_len > own)
                return error_set(e, -EINVAL, "--max-model-len %lld is more than the model's max_position_embeddings %u",
                    (long long)s->o.max_model_len, own);
        s->length = s->o.max_model_len > 0 ? (uint32_t)s->o.max_model_len : own;
        return 0;
}

/* What an NPU would capture as graphs: steps of given sizes. */
static void prepare_steps(struct serve *s) {
        const struct serve_switches *w = &s->switches;
        struct buf done = {0}, not_done = {0};
        uint64_t begun = clock_mono_ns();

        for (size_t i = 0; !w->eager && i < w->size_count; i++) {
                struct buf *words = engine_prepare(s->engine, w->sizes[i]) == 0 ? &done : &not_done;

                buf_printf(words, "%s%u", words->len ? ", " : "", w->sizes[i]);
        }
        if (done.len)
                log_info(&s->log, "prepared steps of %s sequences in %.1f ms", buf_cstr(&done),
                    (double)(clock_mono_ns() - begun) / NS_PER_MS);
        if (not_done.len)
                log_warn(&s->log, "steps of %s sequences are not prepared: %s", buf_cstr(&not_done),
                    shares_experts(s) ? "ranks that share experts step together"
                                      : "--max-num-seqs and --max-num-batched-tokens do not allow them");
        buf_free(&done);
        buf_free(&not_done);
}

static int make_publisher(struct serve *s, struct error *e) {
        int r;

        if (!s->publishes)
                return 0;
        if (!s->o.prefix_caching)
                log_warn(&s->log, "--kv-events-config: there is no prefix cache to tell of (--enable-prefix-caching)");
        s->events.log = &s->log;
        r = publisher_new(&s->events, &s->publisher, e);
        if (r < 0)
                return error_prefix(e, r, "--kv-events-config");
        log_info(&s->log, "KV events at %s%s%s", s->events.endpoint,
            s->events.replay ? ", replays at " : ", no replays", s->events.replay ? s->events.replay : "");
        return 0;
}

static int make_engine(struct serve *s, struct error *e) {
        bool bf16 =
            !strcmp(s->o.kv_dtype, "bfloat16") || (!strcmp(s->o.kv_dtype, "auto") && !strcmp(s->o.dtype, "bfloat16"));
        uint64_t available = os_memory_available();
        struct engine_options g = {.model = s->model,
            .compute = s->compute,
            .max_model_len = s->length,
            .max_seqs = (uint32_t)s->o.max_num_seqs,
            .max_batched_tokens = (uint32_t)s->o.max_num_batched_tokens,
            .long_prefill_tokens = (uint32_t)s->switches.long_prefill,
            .chunked_prefill = s->switches.chunked_prefill,
            .prefix_caching = s->o.prefix_caching,
            .prefill_first = s->switches.prefill_first,
            .policy = !strcmp(s->o.policy, "priority") ? SCHEDULE_PRIORITY : SCHEDULE_FCFS,
            .block_tokens = (uint32_t)s->o.block_size,
            .kv_blocks = (uint32_t)s->o.kv_blocks,
            .kv_bytes = s->o.kv_bytes ? (size_t)s->o.kv_bytes : (size_t)((double)available * s->o.memory_share),
            .kv_type = bf16 ? KV_BF16 : KV_F32,
            .max_waiting = (uint32_t)s->o.max_queued,
            .seed = s->o.seed == INT64_MIN ? (int64_t)hash_seed() : s->o.seed,
            .draft_tokens = s->drafts,
            .transfer = s->o.kv_transfer ? &s->transfer : NULL,
            .group = shares_experts(s) ? &s->group : NULL,
            .publisher = s->publisher,
            .publisher_rank = s->group.rank,
            .log = &s->log,
            .wake = api_wake,
            .wake_context = s->api};
        int r;

        if (g.max_batched_tokens < g.max_seqs)
                g.max_seqs = g.max_batched_tokens;
        r = engine_new(&g, &s->engine, e);
        if (r == 0) {
                api_set_engine(s->api, s->engine);
                log_info(&s->log, "KV cache: %u blocks of %u tokens, %s", engine_kv_blocks(s->engine), g.block_tokens,
                    bf16 ? "bfloat16" : "float32");
                if (engine_transfer_port(s->engine))
                        log_info(&s->log, "KV %s other engines at %s port %u", s->transfer.pushes ? "from" : "for",
                            s->transfer.host, engine_transfer_port(s->engine));
                prepare_steps(s);
                r = engine_start(s->engine);
                if (r < 0)
                        error_set(e, r, "cannot start the engine's thread: %s", strerror(-r));
        }
        return r;
}

/* --api-key, else VLLM_API_KEY, as vLLM has it. */
static void choose_keys(struct serve *s) {
        struct api_options *a = &s->api_options;

        a->api_keys = s->o.api_key.items;
        a->api_key_count = s->o.api_key.count;
        s->environment_key = getenv("VLLM_API_KEY");
        if (a->api_key_count == 0 && s->environment_key && *s->environment_key) {
                a->api_keys = &s->environment_key;
                a->api_key_count = 1;
        }
}

/* --generation-config: the model's own, where it has one; none; or another folder's. */
static int read_generation(struct serve *s, struct error *e) {
        const char *from = s->o.generation_config;
        int r;

        if (from && !strcmp(from, "vllm"))
                return 0;
        if (from && strcmp(from, "auto"))
                return serve_read_generation(from, &s->api_options.defaults, e);
        r = serve_read_generation(s->dir, &s->api_options.defaults, e);
        return r == -ENOENT ? 0 : r;
}

static int fill_api_options(struct serve *s, struct error *e) {
        struct api_options *a = &s->api_options;
        const struct model_config *c = &s->config;
        int r;

        a->served_names = s->o.served_names.count ? s->o.served_names.items : &s->default_name;
        a->served_count = s->o.served_names.count ? s->o.served_names.count : 1;
        a->tokenizer = s->tokenizer;
        a->defaults = (struct openai_defaults){.temperature = 1,
            .top_p = 1,
            .repetition_penalty = 1,
            .vocab = c->vocab,
            .max_model_len = s->length,
            .max_logprobs = (int32_t)s->o.max_logprobs,
            .thinking = -1,
            .return_tokens_as_ids = s->o.tokens_as_ids,
            .auto_tools = s->o.auto_tools,
            .tool_parser = a->tools != TOOLS_NONE,
            .model = slice_str(a->served_names[0])};
        r = read_generation(s, e);
        if (r == 0)
                r = serve_read_overrides(s->o.override_generation, s->o.template_kwargs, &a->defaults, e);
        if (r == 0 && s->o.origins)
                r = serve_read_origins(s->o.origins, &s->arena, &s->origins, e);
        a->eos = c->eos;
        a->eos_count = c->eos_count;
        a->model_path = s->dir;
        a->fingerprint = s->fingerprint; /* of the weights: load_model() */
        choose_keys(s);
        a->allowed_origins = s->origins.items;
        a->allowed_origin_count = s->origins.count;
        a->allow_credentials = s->o.allow_credentials;
        a->response_role = s->o.response_role;
        a->prompt_tokens_details = s->o.prompt_details;
        a->request_id_headers = s->o.id_headers;
        a->tls = s->o.tls_cert != NULL;
        a->force_usage = s->o.force_usage;
        a->log = &s->log;
        return r;
}

/* ---- serving ---------------------------------------------------------------------------------------------------------------- */

static void nothing(void *context) {
        (void)context;
}

static void on_drained(void *context) {
        struct serve *s = context;

        api_close(s->api, nothing, NULL);
}

static void on_signal(uv_signal_t *signal, int number) {
        struct serve *s = signal->data;

        if (s->draining)
                return;
        s->draining = true;
        log_info(&s->log, "%s: finishing %zu requests, then ending", number == SIGTERM ? "SIGTERM" : "interrupted",
            api_in_flight(s->api));
        api_begin_drain(s->api);
        uv_close((uv_handle_t *)&s->on_term, NULL);
        uv_close((uv_handle_t *)&s->on_int, NULL);
        http_server_drain(s->server, (unsigned)s->o.drain_seconds * 1000, on_drained, s);
}

static int make_server(struct serve *s, struct error *e) {
        struct http_server_options options = {.on_request = api_request,
            .context = s->api,
            .tls = {s->o.tls_cert, s->o.tls_key, s->o.tls_ca},
            .log = &s->log};

        return http_server_new(&s->loop, &options, &s->server, e);
}

static int listen_for_requests(struct serve *s, struct error *e) {
        struct http_listen at = {.host = s->o.host, .port = (uint16_t)s->o.port};
        char address[256];
        uint16_t port = 0;
        int r;

        if (s->o.uds) {
                snprintf(address, sizeof(address), "unix:%s", s->o.uds);
                at.host = address;
        }
        r = http_server_listen(s->server, &at, &port, e);
        if (r == 0 && s->o.uds)
                log_info(&s->log, "serving %s on %s", s->api_options.served_names[0], address);
        else if (r == 0)
                log_info(&s->log, "serving %s on %s://%s:%u", s->api_options.served_names[0],
                    s->o.tls_cert ? "https" : "http", at.host, port);
        return r;
}

/* All that can be found wrong without the weights, which may take minutes to load. */
static int check_all(struct serve *s, struct error *e) {
        int r = check_options(s, e);

        if (r == 0)
                r = read_configs(s, e);
        if (r == 0)
                r = model_config_read(s->dir, &s->config, e);
        if (r == 0)
                r = choose_length(s, e);
        if (r == 0)
                r = serve_read_experts(
                    &s->o, &s->config, s->config.layers + (s->drafts > 0), &s->group, &s->placement, e);
        if (r == 0)
                r = load_text(s, e);
        return r == 0 ? fill_api_options(s, e) : r;
}

static int start(struct serve *s, struct error *e) {
        int r = api_new(&s->loop, &s->api_options, &s->api, e);

        if (r == 0)
                r = make_server(s, e);
        if (r == 0)
                r = load_model(s, e);
        if (r == 0)
                r = make_publisher(s, e);
        if (r == 0)
                r = make_engine(s, e);
        return r == 0 ? listen_for_requests(s, e) : r;
}

static int run(struct serve *s, struct error *e) {
        int r = check_all(s, e);

        if (r < 0)
                return r;
        r = uv_loop_init(&s->loop);
        if (r < 0)
                return error_set(e, r, "cannot make an event loop: %s", uv_strerror(r));
        s->loop_made = true;
        r = start(s, e);
        if (r < 0) {
                if (s->api)
                        api_close(s->api, nothing, NULL);
                if (s->server)
                        http_server_drain(s->server, 0, nothing, NULL);
                uv_run(&s->loop, UV_RUN_DEFAULT);
                return r;
        }
        uv_signal_init(&s->loop, &s->on_term);
        uv_signal_init(&s->loop, &s->on_int);
        s->on_term.data = s->on_int.data = s;
        uv_signal_start(&s->on_term, on_signal, SIGTERM);
        uv_signal_start(&s->on_int, on_signal, SIGINT);
        uv_run(&s->loop, UV_RUN_DEFAULT);
        return 0;
}

static void tear_down(struct serve *s) {
        if (s->engine)
                engine_stop(s->engine, s->transfer.produces ? (unsigned)s->o.drain_seconds * 1000 : 1000);
        if (s->server)
                http_server_free(s->server);
        if (s->loop_made)
                uv_loop_close(&s->loop);
        api_free(s->api);
        engine_free(s->engine);
        publisher_free(s->publisher);
        placement_free(&s->placement);
        tokenizer_free(s->tokenizer);
        model_free(s->model);
        compute_free(s->compute);
        options_list_free(&s->origins);
        serve_switches_free(&s->switches);
        arena_free(&s->arena);
}

static void warn_ignored(const struct serve *s, const struct options_result *r) {
        struct buf names = {0};

        for (size_t i = 0; i < r->count_ignored; i++)
                buf_printf(&names, "%s--%s", i ? ", " : "", r->ignored[i]);
        if (names.len)
                log_warn(&s->log, "known, without effect on a CPU: %s", buf_cstr(&names));
        buf_free(&names);
}

int cmd_serve(int argc, char **argv) {
        struct serve s = {.o = defaults};
        struct options_result parsed = {0};
        struct buf help = {0};
        struct error e = {0};
        enum log_level level = LOG_INFO;
        int r = serve_options_parse(argc, argv, &s.o, &parsed, &help, &e);

        if (r == 0 && parsed.help) {
                options_result_free(&parsed);
                return cli_print(&help, EXIT_FINE);
        }
        if (r == 0 && s.o.log_level)
                r = log_level_parse(slice_str(s.o.log_level), &level) < 0
                        ? error_set(&e, -EINVAL, "--log-level: `%s` is no level", s.o.log_level)
                        : 0;
        if (r == 0) {
                s.log = log_to_fd(STDERR_FILENO, level, "engine");
                s.dir = s.default_name = parsed.count_positional ? parsed.positional[0] : s.o.model;
                warn_ignored(&s, &parsed);
                os_raise_file_limit();
                r = s.dir ? run(&s, &e)
                          : error_set(&e, -EINVAL, "which model folder? usage: baton serve MODEL [options]");
                tear_down(&s);
        }
        if (r < 0) {
                fprintf(stderr, "baton serve: %s\n", error_text(&e, r));
                r = r == -ENOMEM ? EXIT_NOT_FINE : EXIT_USAGE;
        }
        options_list_free(&s.o.api_key);
        options_list_free(&s.o.served_names);
        options_list_free(&s.o.capture_sizes);
        options_result_free(&parsed);
        return r;
}
