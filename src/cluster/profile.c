/* profile.c - how each engine kind is started: its connectors, environment and options.
 *
 * vllm-ascend before 0.10 takes its place in a group from VLLM_DP_* variables and hands KV over by LLMDataDist with a
 * ranktable; later ones have vLLM's --data-parallel-* options and Mooncake connectors. The values per role are those of
 * vLLM-Ascend's large-EP pages; every one can be set otherwise in the file. */
#include "cluster/planner.h"
#include <errno.h>

/* ---- versions and connectors ------------------------------------------------------------------------------------------- */

int version_parse(struct slice text, uint32_t *ret_version) {
        uint64_t parts[3] = {0};
        struct slice part;

        if (text.len == 0) {
                *ret_version = VERSION_NEWEST;
                return 0;
        }
        if (text.ptr[0] == 'v')
                text = slice_sub(text, 1, text.len);
        for (size_t i = 0; i < 3 && slice_split(&text, '.', &part); i++) {
                size_t digits = 0;

                while (digits < part.len && part.ptr[digits] >= '0' && part.ptr[digits] <= '9')
                        digits++;
                /* What follows the number ("0rc1") may only stand in the last part. */
                if ((digits < part.len && text.ptr && i < 2) ||
                    slice_to_u64(slice_sub(part, 0, digits), &parts[i]) < 0 || parts[i] > 1023)
                        return -EINVAL;
        }
        *ret_version = VERSION(parts[0], parts[1], parts[2]);
        return 0;
}

/* The first row of a kind that fits the version is its usual connector. KV ports begin above the range that Linux hands out
 * to outgoing connections where the engine has no port of its own. */
static const struct connector_info connectors[] = {
    {"LLMDataDistCMgrConnector", ENGINE_VLLM_ASCEND, 0, VERSION(0, 11, 0), LEGS_PREFILL_FIRST, SPAN_LOCAL, {5557, 6157},
        .ranktable = true, .port_env = "LLMDD_RPC_PORT",
        .module_path = "vllm_ascend.distributed.llmdatadist_c_mgr_connector"},
    {"MooncakeConnectorV1", ENGINE_VLLM_ASCEND, VERSION(0, 11, 0), VERSION_NEWEST, LEGS_PREFILL_FIRST, SPAN_GLOBAL,
        {61000, 62000}, .random_ports = true},
    {"MooncakeHybridConnector", ENGINE_VLLM_ASCEND, VERSION(0, 11, 0), VERSION_NEWEST, LEGS_PREFILL_FIRST, SPAN_GLOBAL,
        {61000, 62000}, .random_ports = true},
    {"MooncakeLayerwiseConnector", ENGINE_VLLM_ASCEND, VERSION(0, 11, 0), VERSION_NEWEST, LEGS_DECODE_FIRST,
        SPAN_GLOBAL, {61000, 62000}, .random_ports = true},
    {"SfaRemoteD2HConnector", ENGINE_VLLM_ASCEND, VERSION(0, 12, 0), VERSION_NEWEST, LEGS_DECODE_FIRST, SPAN_GLOBAL,
        {61000, 62000}, .random_ports = true},
    {"LLMDataDistCMgrConnector", ENGINE_VLLM_ASCEND, VERSION(0, 11, 0), VERSION(0, 12, 0), LEGS_PREFILL_FIRST,
        SPAN_GLOBAL, {5557, 6157}, .ranktable = true, .port_env = "LLMDD_RPC_PORT",
        .module_path = "vllm_ascend.distributed.llmdatadist_c_mgr_connector"},
    {"NixlConnector", ENGINE_VLLM, 0, VERSION_NEWEST, LEGS_PREFILL_FIRST, SPAN_GROUP, {5600, 6200},
        .port_env = "VLLM_NIXL_SIDE_CHANNEL_PORT"},
    {"MooncakeConnectorV1", ENGINE_EMBEDDED, 0, VERSION_NEWEST, LEGS_PREFILL_FIRST, SPAN_ONE, {20100, 20600}},
    {"NixlConnector", ENGINE_EMBEDDED, 0, VERSION_NEWEST, LEGS_PREFILL_FIRST, SPAN_ONE, {20100, 20600}},
    {"MooncakeHybridConnector", ENGINE_EMBEDDED, 0, VERSION_NEWEST, LEGS_PREFILL_FIRST, SPAN_ONE, {20100, 20600}},
    {"LLMDataDistCMgrConnector", ENGINE_EMBEDDED, 0, VERSION_NEWEST, LEGS_PREFILL_FIRST, SPAN_ONE, {20100, 20600}},
    {"MooncakeLayerwiseConnector", ENGINE_EMBEDDED, 0, VERSION_NEWEST, LEGS_DECODE_FIRST, SPAN_ONE, {20100, 20600}},
    {"SfaRemoteD2HConnector", ENGINE_EMBEDDED, 0, VERSION_NEWEST, LEGS_DECODE_FIRST, SPAN_ONE, {20100, 20600}},
};
#define CONNECTOR_COUNT (sizeof(connectors) / sizeof(*connectors))

static bool connector_fits(const struct connector_info *i, enum engine_kind engine, uint32_t version) {
        return i->engine == engine && version >= i->from && (version < i->until || i->until == VERSION_NEWEST);
}

const struct connector_info *connector_of(enum engine_kind engine, uint32_t version, struct slice name) {
        for (size_t i = 0; i < CONNECTOR_COUNT; i++)
                if (connector_fits(&connectors[i], engine, version) &&
                    (name.len == 0 || slice_is(name, connectors[i].name)))
                        return &connectors[i];
        return NULL;
}

const struct connector_info *connector_named(struct slice name) {
        for (size_t i = 0; i < CONNECTOR_COUNT; i++)
                if (slice_is(name, connectors[i].name))
                        return &connectors[i];
        return NULL;
}

const char *connector_list(struct arena *arena, enum engine_kind engine, uint32_t version) {
        struct buf text = {0};
        const char *list;

        for (size_t i = 0; i < CONNECTOR_COUNT; i++)
                if (connector_fits(&connectors[i], engine, version))
                        buf_printf(&text, "%s%s", text.len ? ", " : "", connectors[i].name);
        list = arena_copy(arena, buf_slice(&text)).ptr;
        buf_free(&text);
        return list ? list : "";
}

/* ---- values per role ---------------------------------------------------------------------------------------------------- */

struct preset {
        const char *name, *value; /* value NULL: an option without one */
};

static const struct preset ascend_env[] = {
    {"OMP_PROC_BIND", "false"},
    {"OMP_NUM_THREADS", "10"},
    {"PYTORCH_NPU_ALLOC_CONF", "expandable_segments:True"},
    {"TASK_QUEUE_ENABLE", "1"},
};

/* The 0.9.1 page's "recommended optimized configuration". */
static const struct preset page_options[2][5] = {
    [ROLE_PREFILL] = {{"max-num-batched-tokens", "16384"}, {"max-num-seqs", "4"}, {"gpu-memory-utilization", "0.9"},
        {"enforce-eager", NULL},
        {"additional-config", "{\"ascend_scheduler_config\":{\"enabled\":false},"
                              "\"torchair_graph_config\":{\"enabled\":false},\"enable_weight_nz_layout\":true,"
                              "\"enable_prefill_optimizations\":true}"}},
    [ROLE_DECODE] = {{"max-num-batched-tokens", "256"}, {"max-num-seqs", "28"}, {"gpu-memory-utilization", "0.9"},
        {"additional-config", "{\"ascend_scheduler_config\":{\"enabled\":false},"
                              "\"torchair_graph_config\":{\"enabled\":true,\"enable_multistream_mla\":true,"
                              "\"enable_multistream_moe\":true,\"graph_batch_sizes\":[28],"
                              "\"enable_super_kernel\":true,\"use_cached_graph\":true},"
                              "\"enable_weight_nz_layout\":true}"}},
};

static const struct preset current_options[2][5] = {
    [ROLE_PREFILL] = {{"max-num-batched-tokens", "16384"}, {"max-num-seqs", "8"}, {"gpu-memory-utilization", "0.9"},
        {"enforce-eager", NULL}},
    [ROLE_DECODE] = {{"max-num-batched-tokens", "256"}, {"max-num-seqs", "28"}, {"gpu-memory-utilization", "0.9"},
        {"compilation-config", "{\"cudagraph_mode\":\"FULL_DECODE_ONLY\"}"}},
};

static void apply_presets(struct command *c, const struct preset *presets, size_t count) {
        for (size_t i = 0; i < count && presets[i].name; i++)
                if (presets[i].value)
                        command_set(c, presets[i].name, "%s", presets[i].value);
                else
                        command_switch(c, presets[i].name);
}

/* ---- what engines have in common ------------------------------------------------------------------------------------------ */

static bool is_mtp(struct slice method) {
        return slice_ends(method, SLICE_LIT("mtp"));
}

static void set_model(struct planner *p, const struct plan_rank *rank, struct command *argv) {
        const struct cluster *c = p->c;

        command_set(argv, "host", "%.*s", SLICE_ARG(c->roles[rank->role].host));
        command_set(argv, "port", "%u", rank->api_port);
        /* Engines count their DP rank up themselves. */
        if (rank->events_port > 0)
                command_set(argv, "kv-events-config",
                    "{\"enable_kv_cache_events\":true,\"publisher\":\"zmq\",\"endpoint\":\"tcp://*:%u\","
                    "\"replay_endpoint\":\"tcp://*:%u\"}",
                    rank->events_port - rank->dp_rank, rank->events_port + 1 - rank->dp_rank);
        if (c->model.served_name.len)
                command_set(argv, "served-model-name", "%.*s", SLICE_ARG(c->model.served_name));
        if (c->model.max_len > 0)
                command_set(argv, "max-model-len", "%lld", (long long)c->model.max_len);
        if (c->model.dtype.len)
                command_set(argv, "dtype", "%.*s", SLICE_ARG(c->model.dtype));
        if (c->model.quantization.len)
                command_set(argv, "quantization", "%.*s", SLICE_ARG(c->model.quantization));
}

/* A prefiller with an MTP layer drafts one token: it only has to fill the layer's cache. */
static void set_speculative(struct planner *p, const struct plan_rank *rank, struct command *argv, const char *usual) {
        const struct cluster *c = p->c;
        struct slice method = c->model.speculative_method.len ? c->model.speculative_method : slice_str(usual);
        long long tokens = c->model.speculative_tokens;

        if (tokens == 0)
                return;
        if (c->engine.kind == ENGINE_VLLM_ASCEND && rank->role == ROLE_PREFILL && is_mtp(method))
                tokens = 1;
        command_set(argv, "speculative-config", "{\"num_speculative_tokens\":%lld,\"method\":%s}", tokens,
            planner_json(p, method));
}

/* The rank's place in its group by vLLM's options. A group of one needs none, and a dense model would refuse them. */
static void set_data_parallel(const struct plan_rank *rank, struct command *argv) {
        if (rank->dp_size == 1)
                return;
        command_set(argv, "data-parallel-size", "%u", rank->dp_size);
        command_set(argv, "data-parallel-rank", "%u", rank->dp_rank);
        command_set(argv, "data-parallel-address", "%.*s", SLICE_ARG(rank->dp_address));
        command_set(argv, "data-parallel-rpc-port", "%u", rank->dp_port);
}

static void set_expert_parallel(const struct plan_rank *rank, struct command *argv) {
        if (rank->dp_size > 1 || rank->tp_size > 1)
                command_switch(argv, "enable-expert-parallel");
}

static void set_parallel(struct planner *p, const struct plan_rank *rank, struct command *argv) {
        const struct cluster_role *role = &p->c->roles[rank->role];

        set_data_parallel(rank, argv);
        command_set(argv, "tensor-parallel-size", "%u", rank->tp_size);
        if (role->pp > 1)
                command_set(argv, "pipeline-parallel-size", "%lld", (long long)role->pp);
        if (role->pcp > 1)
                command_set(argv, "prefill-context-parallel-size", "%lld", (long long)role->pcp);
        set_expert_parallel(rank, argv);
}

static void set_devices(struct command *env, const char *name, const struct plan_rank *rank) {
        struct buf list = {0};

        for (uint32_t i = 0; i < rank->device_count; i++)
                buf_printf(&list, "%s%u", i ? "," : "", rank->first_device + i);
        command_set(env, name, "%s", buf_cstr(&list));
        buf_free(&list);
}

/* A proxy between ranks breaks their rendezvous, health checks and KV hand-off. */
static void unset_proxies(struct command *env) {
        static const char *const names[] = {
            "http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"};

        for (size_t i = 0; i < sizeof(names) / sizeof(*names); i++)
                command_unset(env, names[i]);
}

static const char *kv_role(enum role role) {
        return role == ROLE_PREFILL ? "kv_producer" : "kv_consumer";
}

/* ---- embedded ------------------------------------------------------------------------------------------------------------- */

/* `baton serve` with vLLM's own flags. */
static void command_embedded(struct planner *p, const struct plan_rank *rank, struct rank_command *r) {
        const struct cluster *c = p->c;

        r->head[0] = c->engine.binary.len ? planner_cstr(p, c->engine.binary) : p->program;
        r->head[1] = "serve";
        r->head[2] = planner_cstr(p, c->model.path);
        set_model(p, rank, &r->argv);
        set_speculative(p, rank, &r->argv, "deepseek_mtp");
        set_data_parallel(rank, &r->argv);
        set_expert_parallel(rank, &r->argv);
        if (p->connector)
                command_set(&r->argv, "kv-transfer-config",
                    "{\"kv_connector\":\"%s\",\"kv_role\":\"%s\",\"kv_port\":\"%u\","
                    "\"kv_connector_extra_config\":{\"host\":%s}}",
                    p->connector->name, kv_role(rank->role), rank->kv_port, planner_json(p, c->nodes[rank->node].ip));
}

/* ---- vllm-ascend ---------------------------------------------------------------------------------------------------------- */

static void set_ascend_network(const struct cluster_node *node, struct command *env) {
        static const char *const interfaces[] = {"GLOO_SOCKET_IFNAME", "TP_SOCKET_IFNAME", "HCCL_SOCKET_IFNAME"};

        command_set(env, "HCCL_IF_IP", "%.*s", SLICE_ARG(node->ip));
        /* On a host with several addresses vLLM's own guess may be another one than the peers are told. */
        command_set(env, "VLLM_HOST_IP", "%.*s", SLICE_ARG(node->ip));
        for (size_t i = 0; i < sizeof(interfaces) / sizeof(*interfaces); i++)
                command_set(env, interfaces[i], "%.*s", SLICE_ARG(node->nic));
}

/* The variables by which 0.9.1 takes its place in a group; its engine patch wants all of them, and sees to the devices. */
static void set_page_parallel(const struct plan_rank *rank, struct rank_command *r) {
        if (rank->dp_size > 1) {
                command_set(&r->env, "VLLM_DP_SIZE", "%u", rank->dp_size);
                command_set(&r->env, "VLLM_DP_MASTER_IP", "%.*s", SLICE_ARG(rank->dp_address));
                command_set(&r->env, "VLLM_DP_MASTER_PORT", "%u", rank->dp_port);
                command_set(&r->env, "VLLM_DP_RANK_LOCAL", "%u", rank->local);
                command_set(&r->env, "VLLM_DP_RANK", "%u", rank->dp_rank);
                command_set(&r->env, "VLLM_DP_SIZE_LOCAL", "%u", rank->local_count);
                command_set(&r->env, "VLLM_ASCEND_EXTERNAL_DP_LB_ENABLED", "1");
        } else
                set_devices(&r->env, "ASCEND_RT_VISIBLE_DEVICES", rank);
        command_set(&r->env, "VLLM_WORKER_MULTIPROC_METHOD", "fork");
        command_set(&r->env, "VLLM_USE_V1", "1");
        command_set(&r->argv, "tensor-parallel-size", "%u", rank->tp_size);
        set_expert_parallel(rank, &r->argv);
}

static void set_llmdatadist(struct planner *p, const struct plan_rank *rank, struct rank_command *r) {
        const struct cluster *c = p->c;
        const struct connector_info *k = p->connector;

        command_set(&r->env, "DISAGGREGATED_PREFILL_RANK_TABLE_PATH", "%.*s", SLICE_ARG(c->engine.ranktable));
        command_set(&r->env, p->version < VERSION(0, 10, 1) ? "VLLM_LLMDD_RPC_PORT" : "VLLM_ASCEND_LLMDD_RPC_PORT",
            "%u", rank->kv_base);
        command_set(&r->argv, "kv-transfer-config",
            "{\"kv_connector\":\"%s\",\"kv_buffer_device\":\"npu\",\"kv_role\":\"%s\",\"kv_parallel_size\":\"1\","
            "\"kv_port\":\"%u\",\"engine_id\":\"%.*s\",\"kv_connector_module_path\":\"%s\"}",
            k->name, kv_role(rank->role), rank->kv_base, SLICE_ARG(rank->name), k->module_path);
}

static void add_sizes(struct buf *out, const char *name, const struct cluster_role *role) {
        buf_printf(out, "\"%s\":{\"dp_size\":%lld,\"tp_size\":%lld", name, (long long)role->dp, (long long)role->tp);
        if (role->pp > 1)
                buf_printf(out, ",\"pp_size\":%lld", (long long)role->pp);
        buf_add_char(out, '}');
}

static void set_mooncake(struct planner *p, const struct plan_rank *rank, struct rank_command *r) {
        struct buf sizes = {0};

        add_sizes(&sizes, "prefill", &p->c->roles[ROLE_PREFILL]);
        buf_add_char(&sizes, ',');
        add_sizes(&sizes, "decode", &p->c->roles[ROLE_DECODE]);
        command_set(&r->argv, "kv-transfer-config",
            "{\"kv_connector\":\"%s\",\"kv_role\":\"%s\",\"kv_port\":\"%u\",\"kv_connector_extra_config\":{%s}}",
            p->connector->name, kv_role(rank->role), rank->kv_base, buf_cstr(&sizes));
        buf_free(&sizes);
}

static void command_ascend(struct planner *p, const struct plan_rank *rank, struct rank_command *r) {
        const struct cluster *c = p->c;
        bool page = p->version < VERSION(0, 10, 0);

        r->head[0] = c->engine.binary.len ? planner_cstr(p, c->engine.binary) : "vllm";
        r->head[1] = "serve";
        r->head[2] = planner_cstr(p, c->model.path);
        unset_proxies(&r->env);
        set_ascend_network(&c->nodes[rank->node], &r->env);
        apply_presets(&r->env, ascend_env, sizeof(ascend_env) / sizeof(*ascend_env));
        command_set(&r->env, "HCCL_BUFFSIZE", "%d", rank->role == ROLE_PREFILL ? 256 : 1024);
        set_model(p, rank, &r->argv);
        if (page)
                set_page_parallel(rank, r);
        else {
                command_set(&r->env, "HCCL_OP_EXPANSION_MODE", "AIV");
                set_devices(&r->env, "ASCEND_RT_VISIBLE_DEVICES", rank);
                set_parallel(p, rank, &r->argv);
        }
        command_set(&r->argv, "seed", "1024"); /* ranks of a group must agree on one */
        command_switch(&r->argv, "trust-remote-code");
        set_speculative(p, rank, &r->argv, p->version < VERSION(0, 12, 0) ? "deepseek_mtp" : "mtp");
        apply_presets(&r->argv, page ? page_options[rank->role] : current_options[rank->role], 5);
        if (p->connector && p->connector->ranktable)
                set_llmdatadist(p, rank, r);
        else if (p->connector)
                set_mooncake(p, rank, r);
}

/* ---- vllm ------------------------------------------------------------------------------------------------------------------- */

static void command_vllm(struct planner *p, const struct plan_rank *rank, struct rank_command *r) {
        const struct cluster *c = p->c;
        const struct cluster_node *node = &c->nodes[rank->node];

        r->head[0] = c->engine.binary.len ? planner_cstr(p, c->engine.binary) : "vllm";
        r->head[1] = "serve";
        r->head[2] = planner_cstr(p, c->model.path);
        unset_proxies(&r->env);
        command_set(&r->env, "VLLM_HOST_IP", "%.*s", SLICE_ARG(node->ip));
        if (node->nic.len) {
                command_set(&r->env, "GLOO_SOCKET_IFNAME", "%.*s", SLICE_ARG(node->nic));
                command_set(&r->env, "NCCL_SOCKET_IFNAME", "%.*s", SLICE_ARG(node->nic));
        }
        if (node_platform(c, node) == PLATFORM_CUDA)
                set_devices(&r->env, "CUDA_VISIBLE_DEVICES", rank);
        set_model(p, rank, &r->argv);
        set_parallel(p, rank, &r->argv);
        set_speculative(p, rank, &r->argv, "mtp");
        if (p->connector) {
                command_set(&r->env, "VLLM_NIXL_SIDE_CHANNEL_HOST", "%.*s", SLICE_ARG(node->ip));
                command_set(&r->env, p->connector->port_env, "%u", rank->kv_base);
                /* Which side a rank is on follows from each request. */
                command_set(&r->argv, "kv-transfer-config", "{\"kv_connector\":\"%s\",\"kv_role\":\"kv_both\"}",
                    p->connector->name);
        }
}

/* ---- template --------------------------------------------------------------------------------------------------------------- */

static void command_template(struct planner *p, const struct plan_rank *rank, struct rank_command *r) {
        (void)p;
        (void)rank;
        unset_proxies(&r->env);
}

static const char *devices_text(struct planner *p, const struct plan_rank *rank) {
        struct command list = {.arena = p->arena};

        set_devices(&list, "devices", rank);
        p->failed |= list.failed;
        return list.count ? list.items[0].value.ptr : "";
}

/* argv of a user's script as the launchers of vLLM-Ascend's examples call it. */
static const char *const *template_argv(struct planner *p, const struct plan_rank *r) {
        const struct cluster *c = p->c;
        bool program =
            c->engine.launcher >= 0 ? c->engine.launcher == LAUNCH_DP_PROGRAM : p->version < VERSION(0, 10, 0);
        const char **argv = arena_array(p->arena, 10, sizeof(*argv));
        const char *address = planner_cstr(p, r->dp_address);
        size_t n = 0;

#define NUMBER(value) arena_printf(p->arena, "%u", (unsigned)(value))
        if (!argv) {
                p->failed = true;
                return NULL;
        }
        argv[n++] = "bash";
        argv[n++] = planner_cstr(p, c->engine.template_path);
        if (program) {
                argv[n++] = NUMBER(r->dp_size);
                argv[n++] = address;
                argv[n++] = NUMBER(r->dp_port);
                argv[n++] = NUMBER(r->local);
                argv[n++] = NUMBER(r->dp_rank);
                argv[n++] = NUMBER(r->api_port);
                argv[n++] = NUMBER(r->local_count);
        } else {
                argv[n++] = devices_text(p, r);
                argv[n++] = NUMBER(r->api_port);
                argv[n++] = NUMBER(r->dp_size);
                argv[n++] = NUMBER(r->dp_rank);
                argv[n++] = address;
                argv[n++] = NUMBER(r->dp_port);
                argv[n++] = NUMBER(r->tp_size);
        }
#undef NUMBER
        for (size_t i = 0; i < n; i++)
                if (!argv[i])
                        p->failed = true;
        argv[n] = NULL;
        return argv;
}

/* ---- layers ----------------------------------------------------------------------------------------------------------------- */

void profile_command(struct planner *p, const struct plan_rank *rank, struct rank_command *ret_command) {
        static void (*const by_kind[])(struct planner *, const struct plan_rank *, struct rank_command *) = {
            [ENGINE_EMBEDDED] = command_embedded,
            [ENGINE_VLLM_ASCEND] = command_ascend,
            [ENGINE_VLLM] = command_vllm,
            [ENGINE_TEMPLATE] = command_template,
        };
        const struct cluster *c = p->c;
        const struct cluster_role *role = &c->roles[rank->role];
        const struct cluster_group *group = &role->groups[rank->group];
        const struct cluster_node *node = &c->nodes[rank->node];
        const struct cluster_rank *own = p->rank_settings ? p->rank_settings[rank - p->ranks] : NULL;
        const struct settings *args[] = {
            &c->engine.args, &role->args, &group->args, &node->args, own ? &own->args : NULL};
        const struct settings *env[] = {&c->engine.env, &role->env, &group->env, &node->env, own ? &own->env : NULL};

        *ret_command = (struct rank_command){.argv = {.arena = p->arena}, .env = {.arena = p->arena, .exact = true}};
        by_kind[c->engine.kind](p, rank, ret_command);
        for (size_t i = 0; i < sizeof(args) / sizeof(*args); i++) {
                if (args[i])
                        command_apply(&ret_command->argv, args[i]);
                if (env[i])
                        command_apply(&ret_command->env, env[i]);
        }
        p->failed |= ret_command->argv.failed || ret_command->env.failed;
}

const char *const *profile_argv(struct planner *p, const struct plan_rank *rank, struct rank_command *command) {
        if (p->c->engine.kind == ENGINE_TEMPLATE)
                return template_argv(p, rank);
        return command_argv(&command->argv, command->head);
}

const char *profile_derives(const struct cluster *c, struct slice option) {
        static const struct {
                const char *option, *key;
        } derived[] = {
            {"host", "host"},
            {"port", "api_port"},
            {"tensor-parallel-size", "tp"},
            {"pipeline-parallel-size", "pp"},
            {"prefill-context-parallel-size", "pcp"},
            {"data-parallel-size", "dp"},
            {"data-parallel-rank", "groups"},
            {"data-parallel-start-rank", "groups"},
            {"data-parallel-size-local", "groups"},
            {"data-parallel-address", "groups"},
            {"data-parallel-rpc-port", "dp_port"},
        };

        if (slice_starts(option, SLICE_LIT("--")))
                option = slice_sub(option, 2, option.len);
        for (size_t i = 0; i < sizeof(derived) / sizeof(*derived) && c->engine.kind != ENGINE_TEMPLATE; i++)
                if (slice_is_name(option, derived[i].option))
                        return derived[i].key;
        return NULL;
}
