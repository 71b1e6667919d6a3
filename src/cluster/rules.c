/* rules.c - what engine options mean together: one row per rule, asked of every set of layers that occurs in a plan.
 *
 * Options are looked at as the engine will get them, derived values and all layers of the file applied, so that a rule
 * holds wherever a value comes from. */
#include "base/json.h"
#include "cluster/planner.h"

/* The options of one rank, read once for all rules. */
struct option_view {
        struct planner *p;
        const struct plan_rank *rank;
        const struct cluster_role *role;
        struct rank_command command;
        yyjson_doc *additional, *kv, *speculative, *compilation; /* NULL: not given, or not an object */
};

/* What the rules compare a rank with. */
struct comparison {
        struct option_view *first[2]; /* first rank of each role; NULL until seen */
        struct option_view *group;    /* first rank of the same group */
};

/* ---- reading options --------------------------------------------------------------------------------------------------------- */

static const struct command_entry *option(const struct option_view *v, const char *name) {
        return command_find(&v->command.argv, name);
}

static const struct command_entry *variable(const struct option_view *v, const char *name) {
        return command_find(&v->command.env, name);
}

static bool option_integer(const struct option_view *v, const char *name, int64_t *ret) {
        const struct command_entry *e = option(v, name);

        return e && slice_to_i64(e->value, ret) == 0;
}

/* Where to point: at what the user wrote, or at the role that all follows from. */
static struct place at(const struct option_view *v, const struct command_entry *e) {
        return e && e->at.line ? e->at : v->role->at;
}

static struct place option_at(const struct option_view *v, const char *name) {
        return at(v, option(v, name));
}

static yyjson_doc *option_object(const struct option_view *v, const char *name) {
        const struct command_entry *e = option(v, name);
        yyjson_doc *doc = NULL;

        if (!e || json_parse(e->value, &doc, NULL) < 0)
                return NULL;
        if (!yyjson_is_obj(yyjson_doc_get_root(doc))) {
                yyjson_doc_free(doc);
                return NULL;
        }
        return doc;
}

static void view_open(struct planner *p, const struct plan_rank *rank, struct option_view *ret_view) {
        *ret_view = (struct option_view){.p = p, .rank = rank, .role = &p->c->roles[rank->role]};
        profile_command(p, rank, &ret_view->command);
        ret_view->additional = option_object(ret_view, "additional-config");
        ret_view->kv = option_object(ret_view, "kv-transfer-config");
        ret_view->speculative = option_object(ret_view, "speculative-config");
        ret_view->compilation = option_object(ret_view, "compilation-config");
}

static void view_close(struct option_view *v) {
        yyjson_doc_free(v->additional);
        yyjson_doc_free(v->kv);
        yyjson_doc_free(v->speculative);
        yyjson_doc_free(v->compilation);
        *v = (struct option_view){0};
}

static yyjson_val *root(yyjson_doc *doc) {
        return doc ? yyjson_doc_get_root(doc) : NULL;
}

static int64_t drafts(const struct option_view *v) {
        return json_get_i64(root(v->speculative), "num_speculative_tokens", 0);
}

static struct slice draft_method(const struct option_view *v) {
        return json_get_slice(root(v->speculative), "method");
}

static bool has_peer(const struct option_view *v) {
        return planner_disaggregated(v->p);
}

/* ---- the form of options -------------------------------------------------------------------------------------------------------- */

/* Options that hold JSON, and whatever begins like it. */
static bool is_json_option(const struct command_entry *e) {
        static const char *const names[] = {"additional-config", "kv-transfer-config", "speculative-config",
            "compilation-config", "kv-events-config", "hf-overrides", "eplb-config", "override-generation-config",
            "profiler-config"};
        struct slice value = slice_trim(e->value);

        if (e->kind != SETTING_VALUE && e->kind != SETTING_OBJECT)
                return false;
        for (size_t i = 0; i < sizeof(names) / sizeof(*names); i++)
                if (slice_is_name(e->name, names[i]))
                        return true;
        return value.len && value.ptr[0] == '{';
}

static void json_is_whole(struct option_view *v, const struct comparison *c) {
        (void)c;
        for (size_t i = 0; i < v->command.argv.count; i++) {
                const struct command_entry *e = &v->command.argv.items[i];
                struct error error = {0};
                yyjson_doc *doc = NULL;
                struct finding *f = NULL;

                if (!is_json_option(e))
                        continue;
                if (json_parse(e->value, &doc, &error) < 0)
                        f = planner_find(v->p, SEVERITY_ERROR, "M03", at(v, e), "`%.*s` is not JSON: %s",
                            SLICE_ARG(e->name), error.text);
                else if (!yyjson_is_obj(yyjson_doc_get_root(doc)))
                        f = planner_find(
                            v->p, SEVERITY_ERROR, "M03", at(v, e), "`%.*s` must be a JSON object", SLICE_ARG(e->name));
                finding_cure(
                    v->p->findings, f, "write it as a mapping, `%.*s: {…}`: baton makes the JSON", SLICE_ARG(e->name));
                yyjson_doc_free(doc);
        }
}

static void derived_stay_derived(struct option_view *v, const struct comparison *c) {
        (void)c;
        for (size_t i = 0; i < v->command.argv.count; i++) {
                const struct command_entry *e = &v->command.argv.items[i];
                const char *key = e->at.line ? profile_derives(v->p->c, e->name) : NULL;
                struct finding *f;

                if (!key)
                        continue;
                f = planner_find(v->p, SEVERITY_ERROR, "D11", e->at,
                    "`%.*s` differs from rank to rank, or all ranks of a group must agree on it: the plan sets it",
                    SLICE_ARG(e->name));
                finding_cure(v->p->findings, f, "`%s.%s` says it", role_name(v->rank->role), key);
        }
}

static void templates_take_no_options(struct option_view *v, const struct comparison *c) {
        (void)c;
        if (v->command.argv.count)
                finding_cure(v->p->findings,
                    planner_find(v->p, SEVERITY_WARNING, "M12", v->command.argv.items[0].at,
                        "`%.*s` goes nowhere: a template gets its seven arguments and no options",
                        SLICE_ARG(v->command.argv.items[0].name)),
                    "write it into the script; variables can be set here (`env`)");
}

/* ---- sizes of steps -------------------------------------------------------------------------------------------------------------- */

static void drafts_are_few(struct option_view *v, const struct comparison *c) {
        (void)c;
        if (drafts(v) > 8)
                planner_find(v->p, SEVERITY_WARNING, "M01",
                    option(v, "speculative-config")->at.line ? option_at(v, "speculative-config") : v->p->c->model.at,
                    "%lld draft tokens a step", (long long)drafts(v));
}

static void prefill_drafts_one(struct option_view *v, const struct comparison *c) {
        struct finding *f;

        (void)c;
        if (!has_peer(v) || !slice_ends(draft_method(v), SLICE_LIT("mtp")))
                return;
        if (v->rank->role == ROLE_PREFILL && drafts(v) != 1) {
                f = planner_find(v->p, SEVERITY_ERROR, "M04", option_at(v, "speculative-config"),
                    "prefill drafts %lld tokens with %.*s, it must draft 1", (long long)drafts(v),
                    SLICE_ARG(draft_method(v)));
                finding_cure(v->p->findings, f, "num_speculative_tokens: 1 for prefill; decode may draft more");
        }
}

static void drafts_agree(struct option_view *v, const struct comparison *c) {
        const struct option_view *prefill = c->first[ROLE_PREFILL];
        bool dspark = slice_is(draft_method(v), "dspark"), hybrid = slice_is(draft_method(v), "qwen3_next_mtp");
        struct finding *f;

        if (!has_peer(v) || (!dspark && !hybrid))
                return;
        if (dspark && drafts(v) < 5) {
                f = planner_find(v->p, SEVERITY_ERROR, "M06", option_at(v, "speculative-config"),
                    "dspark drafts %lld tokens, it takes at least 5", (long long)drafts(v));
                finding_cure(v->p->findings, f, "num_speculative_tokens: 5 on both sides");
        } else if (v->rank->role == ROLE_DECODE && prefill && drafts(prefill) != drafts(v)) {
                f = planner_find(v->p, SEVERITY_ERROR, "M06", option_at(v, "speculative-config"),
                    "decode drafts %lld tokens, prefill %lld: with %.*s they must be equal", (long long)drafts(v),
                    (long long)drafts(prefill), SLICE_ARG(draft_method(v)));
                finding_cure(v->p->findings, f, "the same num_speculative_tokens on both sides");
        }
}

static void decode_step_has_room(struct option_view *v, const struct comparison *c) {
        int64_t batched, seqs;

        (void)c;
        if (v->rank->role != ROLE_DECODE || !has_peer(v) || !option_integer(v, "max-num-batched-tokens", &batched) ||
            !option_integer(v, "max-num-seqs", &seqs) || batched >= seqs * (1 + drafts(v)))
                return;
        finding_cure(v->p->findings,
            planner_find(v->p, SEVERITY_ERROR, "M05",
                option(v, "max-num-batched-tokens")->at.line ? option_at(v, "max-num-batched-tokens")
                                                             : option_at(v, "max-num-seqs"),
                "decode steps hold %lld tokens, %lld sequences with %lld drafts need %lld", (long long)batched,
                (long long)seqs, (long long)drafts(v), (long long)(seqs * (1 + drafts(v)))),
            "max-num-batched-tokens: %lld", (long long)(seqs * (1 + drafts(v))));
}

static void torchair_batches_are_the_sequences(struct option_view *v, const struct comparison *c) {
        yyjson_val *torchair = json_get(root(v->additional), "torchair_graph_config"),
                   *sizes = json_get(torchair, "graph_batch_sizes");
        int64_t seqs, size;

        (void)c;
        if (v->p->version >= VERSION(0, 12, 0) || !json_get_bool(torchair, "enabled", false) ||
            !option_integer(v, "max-num-seqs", &seqs) || yyjson_arr_size(sizes) != 1 ||
            json_to_i64(yyjson_arr_get_first(sizes), &size) < 0 || size == seqs)
                return;
        finding_cure(v->p->findings,
            planner_find(v->p, SEVERITY_WARNING, "M07",
                option(v, "max-num-seqs")->at.line ? option_at(v, "max-num-seqs") : option_at(v, "additional-config"),
                "torchair compiles graphs for %lld sequences, max-num-seqs is %lld", (long long)size, (long long)seqs),
            "additional-config: {torchair_graph_config: {graph_batch_sizes: [%lld]}}", (long long)seqs);
}

/* ---- schedulers ------------------------------------------------------------------------------------------------------------------- */

static bool recomputes(const struct option_view *v) {
        yyjson_val *all = root(v->additional);

        return json_get_bool(all, "recompute_scheduler_enable", false) ||
               json_get_bool(json_get(all, "scheduler_config"), "recompute_scheduler_enable", false);
}

static bool balances(const struct option_view *v) {
        const struct command_entry *e = variable(v, "VLLM_ASCEND_BALANCE_SCHEDULING");

        return (e && !slice_is(e->value, "0")) ||
               json_get_bool(json_get(root(v->additional), "scheduler_config"), "enable_balance_scheduling", false);
}

static void one_scheduler(struct option_view *v, const struct comparison *c) {
        const struct command_entry *e = variable(v, "VLLM_ASCEND_BALANCE_SCHEDULING");

        (void)c;
        if (v->rank->role == ROLE_DECODE && recomputes(v) && balances(v))
                finding_cure(v->p->findings,
                    planner_find(v->p, SEVERITY_ERROR, "M08", e ? at(v, e) : option_at(v, "additional-config"),
                        "decode has the balance scheduler and the recompute scheduler: together they hang"),
                    "VLLM_ASCEND_BALANCE_SCHEDULING: null");
}

static void only_decode_recomputes(struct option_view *v, const struct comparison *c) {
        (void)c;
        if (v->rank->role == ROLE_PREFILL && recomputes(v))
                finding_cure(v->p->findings,
                    planner_find(v->p, SEVERITY_WARNING, "M09", option_at(v, "additional-config"),
                        "prefill has the recompute scheduler, which is for decode only"),
                    "recompute_scheduler_enable: true under decode.args.additional-config alone");
}

/* ---- agreement within a group --------------------------------------------------------------------------------------------------- */

static const char *const group_options[] = {"served-model-name", "max-model-len", "quantization", "dtype",
    "enable-expert-parallel", "speculative-config", "seed", "block-size", "kv-cache-dtype", "trust-remote-code"};
static const char *const group_variables[] = {"HCCL_HOST_SOCKET_PORT_RANGE", "HCCL_NPU_SOCKET_PORT_RANGE",
    "HCCL_IF_BASE_PORT", "HCCL_BUFFSIZE", "HCCL_OP_EXPANSION_MODE"};

static bool same_value(const struct command_entry *a, const struct command_entry *b) {
        return (!a && !b) || (a && b && a->kind == b->kind && slice_eq(a->value, b->value));
}

static void agree(struct option_view *v, const struct option_view *first, const struct command_entry *mine,
    const struct command_entry *theirs, const char *name) {
        if (!same_value(mine, theirs))
                finding_cure(v->p->findings,
                    planner_find(v->p, SEVERITY_ERROR, "M10", mine && mine->at.line ? mine->at : at(first, theirs),
                        "%.*s has another `%s` than %.*s of its group: `%.*s`, not `%.*s`", SLICE_ARG(v->rank->name),
                        name, SLICE_ARG(first->rank->name), SLICE_ARG(mine ? mine->value : SLICE_LIT("none")),
                        SLICE_ARG(theirs ? theirs->value : SLICE_LIT("none"))),
                    "set it under `%s` for all of its ranks", role_name(v->rank->role));
}

static void group_agrees(struct option_view *v, const struct comparison *c) {
        if (!c->group || c->group->rank == v->rank)
                return;
        for (size_t i = 0; i < sizeof(group_options) / sizeof(*group_options); i++)
                agree(v, c->group, option(v, group_options[i]), option(c->group, group_options[i]), group_options[i]);
        for (size_t i = 0; i < sizeof(group_variables) / sizeof(*group_variables); i++)
                agree(v, c->group, variable(v, group_variables[i]), variable(c->group, group_variables[i]),
                    group_variables[i]);
}

/* All NPUs must be told the same port range, or none. */
static void port_ranges_on_all(struct option_view *v, const struct comparison *c) {
        const struct option_view *prefill = c->first[ROLE_PREFILL];
        const struct command_entry *mine = variable(v, "HCCL_NPU_SOCKET_PORT_RANGE"), *theirs;

        if (!prefill || v->rank->role != ROLE_DECODE)
                return;
        theirs = variable(prefill, "HCCL_NPU_SOCKET_PORT_RANGE");
        if (!mine != !theirs)
                finding_cure(v->p->findings,
                    planner_find(v->p, SEVERITY_ERROR, "M11", mine ? at(v, mine) : at(prefill, theirs),
                        "HCCL_NPU_SOCKET_PORT_RANGE is set for %s only", mine ? "decode" : "prefill"),
                    "set it under engine.env, for all ranks");
}

/* ---- network ----------------------------------------------------------------------------------------------------------------------- */

static void addresses_are_the_nodes(struct option_view *v, const struct comparison *c) {
        static const char *const addresses[] = {"HCCL_IF_IP", "VLLM_HOST_IP", "VLLM_NIXL_SIDE_CHANNEL_HOST"},
                                 *const interfaces[] = {"GLOO_SOCKET_IFNAME", "TP_SOCKET_IFNAME", "HCCL_SOCKET_IFNAME",
                                     "NCCL_SOCKET_IFNAME"};
        const struct cluster_node *node = &v->p->c->nodes[v->rank->node];

        (void)c;
        for (size_t i = 0; i < sizeof(addresses) / sizeof(*addresses); i++) {
                const struct command_entry *e = variable(v, addresses[i]);

                if (e && e->at.line && !slice_eq(e->value, node->ip))
                        finding_cure(v->p->findings,
                            planner_find(v->p, SEVERITY_ERROR, "N04", e->at, "%s is %.*s, %.*s has the ip %.*s",
                                addresses[i], SLICE_ARG(e->value), SLICE_ARG(node->name), SLICE_ARG(node->ip)),
                            "leave it out: it follows from `nodes.%.*s.ip`", SLICE_ARG(node->name));
        }
        for (size_t i = 0; node->nic.len && i < sizeof(interfaces) / sizeof(*interfaces); i++) {
                const struct command_entry *e = variable(v, interfaces[i]);

                if (e && e->at.line && !slice_eq(e->value, node->nic))
                        finding_cure(v->p->findings,
                            planner_find(v->p, SEVERITY_ERROR, "N04", e->at, "%s is %.*s, %.*s has the nic %.*s",
                                interfaces[i], SLICE_ARG(e->value), SLICE_ARG(node->name), SLICE_ARG(node->nic)),
                            "leave it out: it follows from `nodes.%.*s.nic`", SLICE_ARG(node->name));
        }
}

static void no_proxies(struct option_view *v, const struct comparison *c) {
        static const char *const names[] = {
            "http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"};

        (void)c;
        for (size_t i = 0; i < sizeof(names) / sizeof(*names); i++) {
                const struct command_entry *e = variable(v, names[i]);

                if (e && e->value.len)
                        finding_cure(v->p->findings,
                            planner_find(v->p, SEVERITY_WARNING, "N06", at(v, e),
                                "%s is set for ranks: calls between them go through %.*s", names[i],
                                SLICE_ARG(e->value)),
                            "leave it out, and download the model before the start");
        }
}

/* ---- the hand-off ------------------------------------------------------------------------------------------------------------------- */

static struct slice kv_text(const struct option_view *v, const char *key) {
        return json_get_slice(root(v->kv), key);
}

static void sizes_are_real(struct option_view *v, const struct comparison *c) {
        static const char *const keys[] = {"dp_size", "tp_size", "pp_size"};
        yyjson_val *extra = json_get(root(v->kv), "kv_connector_extra_config");

        (void)c;
        for (int role = 0; role < 2; role++) {
                yyjson_val *block = json_get(extra, role_name((enum role)role));
                const struct cluster_role *real = &v->p->c->roles[role];
                int64_t sizes[] = {real->dp, real->tp, real->pp}, value;

                for (size_t i = 0; i < 3; i++)
                        if (json_to_i64(json_get(block, keys[i]), &value) == 0 && value != sizes[i])
                                finding_cure(v->p->findings,
                                    planner_find(v->p, SEVERITY_ERROR, "K01", option_at(v, "kv-transfer-config"),
                                        "kv_connector_extra_config.%s.%s is %lld, the plan has %lld",
                                        role_name((enum role)role), keys[i], (long long)value, (long long)sizes[i]),
                                    "leave it out: it follows from `%s`", role_name((enum role)role));
        }
        if (v->p->connector && v->p->connector->random_ports && v->kv &&
            (!json_get(extra, "prefill") || !json_get(extra, "decode")))
                finding_cure(v->p->findings,
                    planner_find(v->p, SEVERITY_ERROR, "K08", option_at(v, "kv-transfer-config"),
                        "kv_connector_extra_config lacks the sizes of `%s`",
                        json_get(extra, "prefill") ? "decode" : "prefill"),
                    "write kv-transfer-config as a mapping: it is merged into what the plan derives");
}

/* LLMDataDist is happy with ids that repeat as long as no decoder pulls from two that do; Mooncake refuses them. */
static void engine_ids_are_unique(struct option_view *v, const struct comparison *c) {
        struct slice id = kv_text(v, "engine_id");
        const struct option_view *prefill = c->first[ROLE_PREFILL];
        const struct command_entry *e = option(v, "kv-transfer-config");
        enum severity severity = v->p->connector && v->p->connector->ranktable ? SEVERITY_WARNING : SEVERITY_ERROR;
        int64_t engines = v->role->dp * (int64_t)v->role->group_count;
        struct finding *f = NULL;

        if (id.len == 0 || !e || e->at.line == 0)
                return;
        if (v->rank->role == ROLE_DECODE && prefill && slice_eq(kv_text(prefill, "engine_id"), id))
                f = planner_find(
                    v->p, severity, "K02", e->at, "engine_id `%.*s` is that of prefill, too", SLICE_ARG(id));
        else if (engines > 1 && !(v->p->rank_settings && v->p->rank_settings[v->rank - v->p->ranks]))
                f = planner_find(v->p, severity, "K02", e->at, "all %lld ranks of %s have the engine_id `%.*s`",
                    (long long)engines, role_name(v->rank->role), SLICE_ARG(id));
        finding_cure(v->p->findings, f, "leave engine_id out: every engine gets one of its own");
}

static void roles_are_kept(struct option_view *v, const struct comparison *c) {
        struct slice role = kv_text(v, "kv_role");
        const char *wants = v->rank->role == ROLE_PREFILL ? "kv_producer" : "kv_consumer";

        (void)c;
        if (role.len && !slice_is(role, wants) && !slice_is(role, "kv_both"))
                finding_cure(v->p->findings,
                    planner_find(v->p, SEVERITY_ERROR, "K04", option_at(v, "kv-transfer-config"),
                        "kv_role of %s is `%.*s`", role_name(v->rank->role), SLICE_ARG(role)),
                    "kv_role: %s", wants);
}

static int64_t block_size(const struct option_view *v) {
        int64_t size;

        return option_integer(v, "block-size", &size) ? size : 0;
}

static void block_sizes_fit(struct option_view *v, const struct comparison *c) {
        const struct option_view *prefill = c->first[ROLE_PREFILL];
        int64_t ours = block_size(v), theirs = prefill ? block_size(prefill) : 0;

        if (v->rank->role == ROLE_DECODE && ours > 0 && theirs > 0 && ours % theirs && theirs % ours)
                finding_cure(v->p->findings,
                    planner_find(v->p, SEVERITY_ERROR, "K05", option_at(v, "block-size"),
                        "decode has blocks of %lld tokens, prefill of %lld: neither divides the other", (long long)ours,
                        (long long)theirs),
                    "block-size: %lld for both", (long long)theirs);
}

static void ports_are_the_plans(struct option_view *v, const struct comparison *c) {
        const struct command_entry *e = option(v, "kv-transfer-config");
        struct slice text = kv_text(v, "kv_port");
        int64_t port = json_get_i64(root(v->kv), "kv_port", -1);

        (void)c;
        if (!v->p->connector || v->p->c->engine.kind != ENGINE_VLLM_ASCEND || !e || e->at.line == 0)
                return;
        if (text.len && slice_to_i64(text, &port) < 0)
                port = 0;
        if (port >= 0 && (uint32_t)port != v->rank->kv_base)
                finding_cure(v->p->findings,
                    planner_find(v->p, SEVERITY_ERROR, "D11", e->at,
                        "kv_port is %lld in kv-transfer-config, %u in the plan", (long long)port, v->rank->kv_base),
                    "`%s.kv_port` says it, or that of a group", role_name(v->rank->role));
}

static void decode_context_on_both(struct option_view *v, const struct comparison *c) {
        const struct option_view *prefill = c->first[ROLE_PREFILL];
        int64_t ours = 1, theirs = 1;

        if (!prefill || v->rank->role != ROLE_DECODE)
                return;
        option_integer(v, "decode-context-parallel-size", &ours);
        option_integer(prefill, "decode-context-parallel-size", &theirs);
        if ((ours > 1) != (theirs > 1))
                finding_cure(v->p->findings,
                    planner_find(v->p, SEVERITY_WARNING, "D10",
                        ours > 1 ? option_at(v, "decode-context-parallel-size")
                                 : option_at(prefill, "decode-context-parallel-size"),
                        "decode context parallelism is on for %s only", ours > 1 ? "decode" : "prefill"),
                    "on both sides or on neither, for models with sparse attention (DeepSeek-V3.2, V4)");
}

/* The gateway's own names for its connectors, and the engines'. Returns whether the order of legs is known. */
static bool gateway_order(struct slice name, enum leg_order *ret) {
        static const struct {
                const char *name;
                enum leg_order order;
        } own[] = {{"pull", LEGS_PREFILL_FIRST}, {"nixl", LEGS_PREFILL_FIRST}, {"llmdatadist", LEGS_PREFILL_FIRST},
            {"push", LEGS_DECODE_FIRST}};
        const struct connector_info *engines = connector_named(name);

        if (engines)
                *ret = engines->order;
        for (size_t i = 0; i < sizeof(own) / sizeof(*own); i++)
                if (slice_is(name, own[i].name)) {
                        *ret = own[i].order;
                        return true;
                }
        return engines != NULL;
}

static void gateway_speaks_it(struct option_view *v, const struct comparison *c) {
        struct slice name = v->p->c->gateway.connector;
        const struct connector_info *engines = connector_named(kv_text(v, "kv_connector"));
        enum leg_order order = LEGS_PREFILL_FIRST;

        (void)c;
        /* A name that only the gateway knows is its own to judge. */
        if (!engines || !has_peer(v) || !gateway_order(name, &order) || order == engines->order)
                return;
        finding_cure(v->p->findings,
            planner_find(v->p, SEVERITY_ERROR, "K03", v->p->c->gateway.connector_at,
                "the gateway would call %s first (%.*s), %s wants %s first",
                order == LEGS_PREFILL_FIRST ? "prefill" : "decode", SLICE_ARG(name), engines->name,
                engines->order == LEGS_PREFILL_FIRST ? "prefill" : "decode"),
            "leave gateway.connector out: it follows from the engine's");
}

static void retired_options(struct option_view *v, const struct comparison *c) {
        (void)c;
        retired_check(v->p, &v->command);
}

/* ---- the table ---------------------------------------------------------------------------------------------------------------------- */

#define EMBEDDED (1u << ENGINE_EMBEDDED)
#define ASCEND   (1u << ENGINE_VLLM_ASCEND)
#define VLLM     (1u << ENGINE_VLLM)
#define TEMPLATE (1u << ENGINE_TEMPLATE)
#define EVERY    (EMBEDDED | ASCEND | VLLM)
#define LAUNCHED (ASCEND | VLLM)

static const struct {
        unsigned engines; /* bits 1 << enum engine_kind */
        void (*check)(struct option_view *v, const struct comparison *c);
} option_rules[] = {
    {EVERY, json_is_whole},
    {EVERY, derived_stay_derived},
    {TEMPLATE, templates_take_no_options},
    {EVERY, drafts_are_few},
    {ASCEND, prefill_drafts_one},
    {LAUNCHED, drafts_agree},
    {LAUNCHED, decode_step_has_room},
    {ASCEND, torchair_batches_are_the_sequences},
    {ASCEND, one_scheduler},
    {ASCEND, only_decode_recomputes},
    {LAUNCHED, group_agrees},
    {ASCEND, port_ranges_on_all},
    {LAUNCHED, addresses_are_the_nodes},
    {LAUNCHED | TEMPLATE, no_proxies},
    {LAUNCHED, sizes_are_real},
    {LAUNCHED, engine_ids_are_unique},
    {LAUNCHED, roles_are_kept},
    {LAUNCHED, block_sizes_fit},
    {ASCEND, ports_are_the_plans},
    {ASCEND, decode_context_on_both},
    {LAUNCHED, gateway_speaks_it},
    {ASCEND, retired_options},
};

static bool has_settings(const struct settings *env, const struct settings *args) {
        return env->count || args->count;
}

/* Ranks whose layers are those of one that was looked at before need no second look. */
static bool layers_are_new(const struct planner *p, const struct plan_rank *rank) {
        const struct cluster_role *role = &p->c->roles[rank->role];
        const struct cluster_group *group = &role->groups[rank->group];
        const struct cluster_node *node = &p->c->nodes[rank->node];
        const struct plan_rank *before = rank > p->ranks ? rank - 1 : NULL;
        bool new_role = !before || before->role != rank->role, new_group = new_role || before->group != rank->group;

        return new_role || (new_group && has_settings(&group->env, &group->args)) ||
               (rank->local == 0 && has_settings(&node->env, &node->args)) ||
               (p->rank_settings && p->rank_settings[rank - p->ranks]);
}

static void check_view(struct option_view *v, const struct comparison *c) {
        for (size_t i = 0; i < sizeof(option_rules) / sizeof(*option_rules); i++)
                if (option_rules[i].engines & 1u << v->p->c->engine.kind)
                        option_rules[i].check(v, c);
}

void rules_check(struct planner *p) {
        struct option_view first[2] = {0}, group = {0};
        struct comparison c = {0};
        const struct plan_rank *head = p->ranks; /* first rank of the group that is being passed */

        for (size_t i = 0; i < p->rank_count && !p->failed; i++) {
                const struct plan_rank *rank = &p->ranks[i];
                struct option_view own, *v = &own;

                if (rank->group != head->group || rank->role != head->role)
                        head = rank;
                if (!layers_are_new(p, rank))
                        continue;
                view_open(p, rank, &own);
                if (!c.first[rank->role]) {
                        first[rank->role] = own;
                        c.first[rank->role] = v = &first[rank->role];
                }
                if (rank == head)
                        c.group = NULL;
                else if (!group.rank || group.rank != head) {
                        view_close(&group);
                        view_open(p, head, &group);
                }
                if (rank != head)
                        c.group = &group;
                check_view(v, &c);
                if (v == &own)
                        view_close(&own);
        }
        view_close(&first[0]);
        view_close(&first[1]);
        view_close(&group);
}
