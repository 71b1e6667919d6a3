/* test_plans.c - what plans say: golden ones for documented deployments, the argv that vLLM-Ascend's own launchers make, and
 * laws that hold for every valid cluster.
 *
 * Golden plans lie in tests/data/cluster/plans; with BATON_GOLDEN=write they are written anew. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "base/file.h"
#include "base/json.h"
#include "base/rng.h"
#include "cluster/cluster.h"
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>
#include <yaml.h>

struct outcome {
        struct arena arena;
        struct findings findings;
        struct cluster *cluster;
        struct plan *plan;
};

static void plan_text(struct slice text, struct outcome *o) {
        *o = (struct outcome){0};
        o->findings.arena = &o->arena;
        if (cluster_parse("f.yaml", text, &o->arena, &o->cluster, &o->findings) == 0)
                plan_make(o->cluster, "baton", &o->arena, &o->plan, &o->findings);
}

static void expect_clean(struct slice text, const struct outcome *o) {
        struct buf b = {0};

        if (o->plan && o->findings.count == 0)
                return;
        findings_write_text(&o->findings, "f.yaml", false, &b);
        print_error("%.*s\n%s", SLICE_ARG(text), buf_cstr(&b));
        buf_free(&b);
        fail();
}

static const char *data_path(const char *folder, const char *name, const char *ending) {
        static char path[4096];

        snprintf(path, sizeof(path), "%s/%s/%s%s", getenv("BATON_SOURCE"), folder, name, ending);
        return path;
}

/* ---- golden plans ------------------------------------------------------------------------------------------------------ */

static void show_rank(const struct plan *p, const struct plan_rank *r, struct buf *out) {
        buf_printf(out, "%.*s %s group %u dp %u/%u devices %u-%u %.*s kv %u\n", SLICE_ARG(r->name), role_name(r->role),
            r->group, r->dp_rank, r->dp_size, r->first_device, r->first_device + r->device_count - 1, SLICE_ARG(r->url),
            r->kv_port);
        (void)p;
        for (size_t i = 0; r->env[i]; i++)
                buf_printf(out, "    %s%s\n", strchr(r->env[i], '=') ? "" : "unset ", r->env[i]);
        for (size_t i = 0; r->argv[i]; i++) {
                bool joins = i > 3 && r->argv[i][0] != '-'; /* a value stands beside its option */

                buf_printf(out, "%s%s", i == 0 ? "    " : joins || i < 3 ? " " : "\n        ", r->argv[i]);
        }
        buf_add_char(out, '\n');
}

/* First and last rank of each role. */
static void show_plan(const struct plan *p, struct buf *out) {
        for (size_t i = 0; i < p->rank_count; i++) {
                const struct plan_rank *r = &p->ranks[i];
                bool first = i == 0 || p->ranks[i - 1].role != r->role,
                     last = i + 1 == p->rank_count || p->ranks[i + 1].role != r->role;

                if (first || last)
                        show_rank(p, r, out);
        }
        buf_add_str(out, "gateway");
        for (size_t i = 2; p->gateway_argv && p->gateway_argv[i]; i++)
                buf_printf(out, " %s", p->gateway_argv[i]);
        buf_add_char(out, '\n');
}

static void expect_golden(const char *name, struct buf *shown) {
        const char *path = data_path("tests/data/cluster/plans", name, ".txt"), *mode = getenv("BATON_GOLDEN");
        struct buf golden = {0};
        struct error e = {0};

        if (mode && !strcmp(mode, "write")) {
                int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);

                assert_true(fd >= 0);
                assert_int_equal(file_write_fd(fd, buf_slice(shown)), 0);
                close(fd);
        }
        if (file_read_whole(path, 1 << 20, &golden, &e) < 0)
                fail_msg("%s", e.text);
        if (!slice_eq(buf_slice(&golden), buf_slice(shown)))
                fail_msg("%s differs from what is planned now:\n%s", path, buf_cstr(shown));
        buf_free(&golden);
}

static void documented_deployments_are_planned_as_ever(void **state) {
        const struct init_recipe *recipe;

        (void)state;
        for (size_t i = 0; (recipe = init_recipe(i)); i++) {
                struct init_options o = {.recipe = recipe->name};
                struct buf file = {0}, shown = {0};
                struct outcome planned;

                assert_int_equal(init_write(&o, &file, NULL), 0);
                plan_text(buf_slice(&file), &planned);
                expect_clean(buf_slice(&file), &planned);
                show_plan(planned.plan, &shown);
                expect_golden(recipe->name, &shown);
                arena_free(&planned.arena);
                buf_free(&file);
                buf_free(&shown);
        }
}

static void the_examples_are_clean_and_planned_as_ever(void **state) {
        static const char *const names[] = {"large-ep-0.9.1", "large-ep", "vllm", "local"};

        (void)state;
        for (size_t i = 0; i < sizeof(names) / sizeof(*names); i++) {
                struct buf file = {0}, shown = {0};
                struct outcome planned;
                char golden[64];

                assert_int_equal(file_read_whole(data_path("examples", names[i], ".yaml"), 1 << 20, &file, NULL), 0);
                plan_text(buf_slice(&file), &planned);
                expect_clean(buf_slice(&file), &planned);
                show_plan(planned.plan, &shown);
                snprintf(golden, sizeof(golden), "example-%s", names[i]);
                expect_golden(golden, &shown);
                arena_free(&planned.arena);
                buf_free(&file);
                buf_free(&shown);
        }
}

/* ---- vLLM-Ascend's launchers --------------------------------------------------------------------------------------------- */

struct launch {
        bool program; /* launch_dp_program.py */
        int64_t dp, tp, local, start, dp_port, port;
        char address[64];
};

static void take_number(yyjson_val *v, int64_t *ret) {
        if (yyjson_is_str(v))
                slice_to_i64(json_slice(v), ret);
        else
                json_to_i64(v, ret);
}

static void take_launch(yyjson_val *c, struct launch *l) {
        yyjson_val *args = json_get(c, "args"), *variables = json_get(c, "variables");
        struct slice address = json_get_slice(variables, "dp_ip");

        *l = (struct launch){.program = variables != NULL, .tp = 1, .local = -1, .port = 9000};
        for (size_t i = 0; i + 1 < yyjson_arr_size(args); i += 2) {
                struct slice name = json_slice(yyjson_arr_get(args, i));
                yyjson_val *value = yyjson_arr_get(args, i + 1);

                if (slice_is(name, "--dp-address"))
                        address = json_slice(value);
                else
                        take_number(value, slice_is(name, "--dp-size")         ? &l->dp
                                           : slice_is(name, "--tp-size")       ? &l->tp
                                           : slice_is(name, "--dp-size-local") ? &l->local
                                           : slice_is(name, "--dp-rank-start") ? &l->start
                                           : slice_is(name, "--dp-rpc-port")   ? &l->dp_port
                                                                               : &l->port);
        }
        take_number(json_get(variables, "dp_size"), &l->dp);
        take_number(json_get(variables, "dp_size_local"), &l->local);
        take_number(json_get(variables, "dp_rank_start"), &l->start);
        take_number(json_get(variables, "dp_port"), &l->dp_port);
        take_number(json_get(variables, "engine_port"), &l->port);
        if (l->local < 0)
                l->local = l->dp;
        snprintf(l->address, sizeof(l->address), "%.*s", SLICE_ARG(address));
}

static void write_launch(const struct launch *l, struct buf *out) {
        buf_printf(out,
            "model: {path: m}\nengine: {kind: template, template: ./run_dp_template.sh, launcher: %s}\n"
            "platform: ascend-a3\nnodes:\n",
            l->program ? "launch_dp_program" : "launch_online_dp");
        for (int64_t n = 0; n < l->dp / l->local; n++)
                if (n == 0)
                        buf_printf(out, "  n0: {ip: \"%s\"}\n", l->address);
                else
                        buf_printf(out, "  n%lld: {ip: 198.51.100.%lld}\n", (long long)n, (long long)n);
        buf_printf(out, "decode: {dp: %lld, tp: %lld, api_port: %lld, dp_port: %lld, groups: [[", (long long)l->dp,
            (long long)l->tp, (long long)l->port, (long long)l->dp_port);
        for (int64_t n = 0; n < l->dp / l->local; n++)
                buf_printf(out, "%sn%lld", n ? ", " : "", (long long)n);
        buf_add_str(out, "]]}\n");
}

static void expect_calls(yyjson_val *calls, const struct launch *l, const struct plan *p) {
        size_t next = 0;

        for (size_t i = 0; i < p->rank_count; i++) {
                const struct plan_rank *r = &p->ranks[i];
                yyjson_val *call;

                if (r->dp_rank < l->start || r->dp_rank >= l->start + l->local)
                        continue;
                call = yyjson_arr_get(calls, next++);
                assert_string_equal(r->argv[0], "bash");
                for (size_t k = 0; k < yyjson_arr_size(call); k++)
                        assert_true(slice_is(json_slice(yyjson_arr_get(call, k)), r->argv[k + 1]));
                assert_null(r->argv[yyjson_arr_size(call) + 1]);
        }
        assert_int_equal(next, yyjson_arr_size(calls));
}

/* launch.json holds what launch_online_dp.py and 0.9.1's launch_dp_program.py called their template with. What they start
 * though it cannot work is refused here. */
static void templates_are_called_as_the_launchers_do(void **state) {
        static const struct {
                const char *name, *code;
        } refused[] = {{"too-many-devices", "D03"}, {"port-overflow", "P02"}};
        yyjson_doc *doc = NULL;
        yyjson_val *c;
        yyjson_arr_iter iter;
        size_t compared = 0;

        (void)state;
        assert_int_equal(json_parse_file(data_path("tests/data/cluster", "launch", ".json"), 1 << 20, &doc, NULL), 0);
        iter = yyjson_arr_iter_with(yyjson_doc_get_root(doc));
        while ((c = yyjson_arr_iter_next(&iter))) {
                struct slice name = json_get_slice(c, "case");
                const char *code = NULL;
                struct buf file = {0};
                struct outcome o;
                struct launch l;

                take_launch(c, &l);
                /* A group whose ranks go past its end cannot be written down. */
                if (yyjson_arr_size(json_get(c, "template_calls")) == 0 || l.start + l.local > l.dp)
                        continue;
                for (size_t i = 0; i < sizeof(refused) / sizeof(*refused); i++)
                        if (slice_is(name, refused[i].name))
                                code = refused[i].code;
                write_launch(&l, &file);
                plan_text(buf_slice(&file), &o);
                if (code) {
                        assert_int_equal(o.findings.count, 1);
                        assert_string_equal(o.findings.items[0].code, code);
                } else {
                        expect_clean(buf_slice(&file), &o);
                        expect_calls(json_get(c, "template_calls"), &l, o.plan);
                        compared++;
                }
                arena_free(&o.arena);
                buf_free(&file);
        }
        assert_int_equal(compared, 13);
        yyjson_doc_free(doc);
}

/* ---- exports (what they start is tested in tests/e2e/test_plan.py) --------------------------------------------------------- */

static void export_of(const struct plan *p, enum export_format format, struct arena *arena, struct buf *out) {
        const struct export_file *files;
        struct error e = {0};
        size_t count;

        if (plan_export(p, format, NULL, arena, &files, &count, &e) < 0)
                fail_msg("%s", e.text);
        for (size_t i = 0; i < count; i++)
                buf_add(out, files[i].text);
}

/* Whatever a plan holds, its manifest is YAML, a document for each node's script, each group and the gateway. */
static void manifests_are_yaml(void **state) {
        static const char *const values[] = {
            "it's", "a: b", "# no", "\\\"x\\\"", "\\n\\n  - x\\n---\\nkind: Pod", "{{ x }}"};

        (void)state;
        for (size_t i = 0; i < sizeof(values) / sizeof(*values); i++) {
                struct buf file = {0}, manifest = {0};
                struct outcome o;
                yaml_parser_t parser;
                yaml_document_t document;
                size_t documents = 0;
                bool more = true;

                buf_printf(&file,
                    "model: {path: \"/m%s\"}\nengine: {kind: vllm, env: {X: \"%s\"}}\nnodes: {A_b: {ip: 10.0.0.1}, c: "
                    "{ip: "
                    "10.0.0.2}}\nprefill: {groups: [[A_b]]}\ndecode: {groups: [[c]]}\ngateway: {node: c, args: "
                    "{api-key: "
                    "\"%s\"}}\n",
                    values[i], values[i], values[i]);
                plan_text(buf_slice(&file), &o);
                expect_clean(buf_slice(&file), &o);
                export_of(o.plan, EXPORT_K8S, &o.arena, &manifest);
                assert_true(yaml_parser_initialize(&parser));
                yaml_parser_set_input_string(&parser, (const unsigned char *)manifest.ptr, manifest.len);
                while (more) {
                        if (!yaml_parser_load(&parser, &document))
                                fail_msg("%s\n%s", parser.problem, buf_cstr(&manifest));
                        more = yaml_document_get_root_node(&document) != NULL;
                        documents += more;
                        yaml_document_delete(&document);
                }
                assert_int_equal(documents, 5);
                yaml_parser_delete(&parser);
                arena_free(&o.arena);
                buf_free(&file);
                buf_free(&manifest);
        }
}

static void manifests_refuse_what_yaml_cannot_hold(void **state) {
        static const char text[] =
            "model: {path: m}\nengine: {kind: vllm, env: {X: \"\\a\"}}\nnodes: {a: {ip: 10.0.0.1}}\n"
            "decode: {groups: [[a]]}\n";
        const struct export_file *files;
        struct error e = {0};
        struct outcome o;
        size_t count;

        (void)state;
        plan_text(SLICE_LIT(text), &o);
        expect_clean(SLICE_LIT(text), &o);
        assert_int_equal(plan_export(o.plan, EXPORT_K8S, NULL, &o.arena, &files, &count, &e), -EINVAL);
        assert_non_null(strstr(e.text, "a.0"));
        assert_int_equal(plan_export(o.plan, EXPORT_SHELL, NULL, &o.arena, &files, &count, &e), 0);
        arena_free(&o.arena);
}

/* ---- settings ----------------------------------------------------------------------------------------------------------- */

static const char *value_of(const struct plan_rank *r, const char *option) {
        for (size_t i = 0; r->argv[i]; i++)
                if (!strcmp(r->argv[i], option))
                        return r->argv[i + 1];
        return NULL;
}

static bool has_env(const struct plan_rank *r, const char *entry) {
        for (size_t i = 0; r->env[i]; i++)
                if (!strcmp(r->env[i], entry))
                        return true;
        return false;
}

static void roles_groups_nodes_and_ranks_set_what_they_like(void **state) {
        static const char text[] =
            "model: {path: m}\nengine: {kind: vllm, args: {gpu-memory-utilization: 0.5, block-size: 64}, env: {A: 1, "
            "a_b: 7}}\n"
            "platform: cuda\n"
            "nodes: {a: {ip: 10.0.0.1}, b: {ip: 10.0.0.2, args: {gpu-memory-utilization: 0.7}}}\n"
            "decode:\n  dp: 2\n  args: {gpu-memory-utilization: 0.6, kv-transfer-config: null}\n  env: {A: 2}\n"
            "  groups: [{nodes: [a], api_port: 7000, env: {A: 3, A_B: 8}}, {nodes: [b], dp_port: 14000}]\n"
            "  ranks: {b.1: {args: {gpu-memory-utilization: 0.8}, env: {A: null}}}\n";
        struct outcome o;

        (void)state;
        plan_text(SLICE_LIT(text), &o);
        expect_clean(SLICE_LIT(text), &o);
        assert_string_equal(value_of(&o.plan->ranks[0], "--gpu-memory-utilization"), "0.6");
        assert_string_equal(value_of(&o.plan->ranks[2], "--gpu-memory-utilization"), "0.7");
        assert_string_equal(value_of(&o.plan->ranks[3], "--gpu-memory-utilization"), "0.8");
        assert_string_equal(value_of(&o.plan->ranks[3], "--block-size"), "64");
        assert_true(has_env(&o.plan->ranks[1], "A=3"));
        assert_true(has_env(&o.plan->ranks[1], "a_b=7") && has_env(&o.plan->ranks[1], "A_B=8"));
        assert_true(has_env(&o.plan->ranks[2], "A=2"));
        assert_true(has_env(&o.plan->ranks[3], "A"));
        assert_true(slice_is(o.plan->ranks[1].url, "http://10.0.0.1:7001"));
        assert_true(slice_is(o.plan->ranks[2].url, "http://10.0.0.2:9500"));
        assert_string_equal(value_of(&o.plan->ranks[2], "--data-parallel-rpc-port"), "14000");
        arena_free(&o.arena);
}

/* Decode-first engines ask the gateway for their prefill, at an address that reaches it. */
static void gateways_are_told_the_connector_and_where_they_are(void **state) {
        static const char text[] =
            "model: {path: m}\nengine: {kind: vllm-ascend, connector: MooncakeLayerwiseConnector}\nplatform: "
            "ascend-a3\n"
            "nodes: {a: {ip: 10.0.0.1, nic: e}, b: {ip: 10.0.0.2, nic: e}}\n"
            "prefill: {groups: [[a]], dp: 2, tp: 8}\ndecode: {groups: [[b]], dp: 16}\ngateway: {node: b, port: 81}\n";
        struct plan_rank gateway = {0};
        struct outcome o;

        (void)state;
        plan_text(SLICE_LIT(text), &o);
        expect_clean(SLICE_LIT(text), &o);
        gateway.argv = o.plan->gateway_argv;
        assert_string_equal(value_of(&gateway, "--connector"), "MooncakeLayerwiseConnector");
        assert_string_equal(value_of(&gateway, "--metaserver-url"), "http://10.0.0.2:81/v1/metaserver");
        assert_false(plan_on_one_machine(o.plan));
        arena_free(&o.arena);
}

/* Each rank has two ports of its own; engines add their DP rank to what they are told; the gateway is told where they are. */
static void ranks_publish_kv_events_and_the_gateway_follows(void **state) {
        static const char text[] =
            "model: {path: /m}\nengine: {kind: vllm-ascend}\nplatform: ascend-a3\n"
            "nodes: {a: {ip: 10.0.0.1, nic: e}, b: {ip: 10.0.0.2, nic: e}, c: {ip: 10.0.0.3, nic: e}}\n"
            "prefill: {groups: [[a, b]], dp: 4, tp: 8, events_port: 5557}\ndecode: {groups: [[c]], dp: 16}\n"
            "gateway: {node: a, policy: prefix_aware}\n";
        static const char *const told[] = {"5557", "5558", "5555", "5556"}; /* ranks 0..3, two on each node */
        static const char *const rows[] = {"a.0=tcp://10.0.0.1:5557,tcp://10.0.0.1:5558",
            "a.1=tcp://10.0.0.1:5559,tcp://10.0.0.1:5560", "b.0=tcp://10.0.0.2:5557,tcp://10.0.0.2:5558",
            "b.1=tcp://10.0.0.2:5559,tcp://10.0.0.2:5560"};
        struct plan_rank gateway = {0};
        const char *const *argv;
        struct outcome o;

        (void)state;
        plan_text(SLICE_LIT(text), &o);
        expect_clean(SLICE_LIT(text), &o);
        for (int i = 0; i < 4; i++) {
                char endpoint[64];

                snprintf(endpoint, sizeof(endpoint), "\"endpoint\":\"tcp://*:%s\"", told[i]);
                assert_non_null(strstr(value_of(&o.plan->ranks[i], "--kv-events-config"), endpoint));
        }
        assert_null(value_of(&o.plan->ranks[4], "--kv-events-config"));
        gateway.argv = o.plan->gateway_argv;
        assert_string_equal(value_of(&gateway, "--tokenizer"), "/m");
        for (argv = gateway.argv; *argv && strcmp(*argv, "--kv-events"); argv++)
                ;
        for (int i = 0; i < 4; i++)
                assert_string_equal(argv[1 + i], rows[i]);
        assert_null(argv[5]);
        arena_free(&o.arena);
}

/* A mapping is merged into what is derived, quoted text takes its place. */
static void objects_are_merged_and_texts_replace(void **state) {
        static const char text[] =
            "model: {path: m}\nengine: {kind: vllm, args: {additional-config: {a: 1, b: {c: 2, d: 3}}}}\n"
            "nodes: {a: {ip: 10.0.0.1}, b: {ip: 10.0.0.2}}\n"
            "prefill: {groups: [[a]], args: {additional-config: {b: {c: null, e: 4}}}}\n"
            "decode: {groups: [[b]], args: {additional-config: '{\"z\": 1}'}}\n";
        struct outcome o;

        (void)state;
        plan_text(SLICE_LIT(text), &o);
        expect_clean(SLICE_LIT(text), &o);
        assert_string_equal(value_of(&o.plan->ranks[0], "--additional-config"), "{\"a\":1,\"b\":{\"d\":3,\"e\":4}}");
        assert_string_equal(value_of(&o.plan->ranks[1], "--additional-config"), "{\"z\": 1}");
        arena_free(&o.arena);
}

/* ---- laws ---------------------------------------------------------------------------------------------------------------- */

/* A random cluster that breaks no rule: machines of 16 devices, cut into nodes, dealt out to groups of both roles. */
struct world {
        const char *engine;
        unsigned machines, cuts; /* nodes of a machine */
        unsigned nodes, prefill_nodes, group_nodes[2], tp[2], dp[2];
        unsigned span; /* KV ports of a rank as the engine takes them */
};

static const char *const engines[] = {"{kind: vllm-ascend, version: 0.9.1, ranktable: /r.json}", "{kind: vllm-ascend}",
    "{kind: vllm-ascend, connector: MooncakeLayerwiseConnector}", "{kind: vllm}", "{kind: template, template: ./t.sh}"};

static void draw_world(struct rng *rng, struct world *w) {
        *w = (struct world){.engine = engines[rng_below(rng, sizeof(engines) / sizeof(*engines))]};
        w->machines = 2 + (unsigned)rng_below(rng, 8);
        w->cuts = strstr(w->engine, "0.9.1") ? 1 : 1u << rng_below(rng, 3);
        w->nodes = w->machines * w->cuts;
        w->prefill_nodes = 1 + (unsigned)rng_below(rng, w->nodes - 1);
        w->tp[ROLE_PREFILL] = 1u << rng_below(rng, 3);
        w->tp[ROLE_DECODE] = 1u << rng_below(rng, 3);
        if (w->tp[ROLE_DECODE] > w->tp[ROLE_PREFILL])
                w->tp[ROLE_DECODE] = w->tp[ROLE_PREFILL];
        for (int role = 0; role < 2; role++) {
                unsigned nodes = role == ROLE_PREFILL ? w->prefill_nodes : w->nodes - w->prefill_nodes;
                unsigned per_node = 1 + (unsigned)rng_below(rng, 16 / w->cuts / w->tp[role]);

                do
                        w->group_nodes[role] = 1 + (unsigned)rng_below(rng, nodes);
                while (nodes % w->group_nodes[role]);
                w->dp[role] = per_node * w->group_nodes[role];
        }
}

static void write_world(const struct world *w, struct buf *out) {
        buf_printf(out, "model: {path: m}\nengine: %s\nplatform: %s\nnodes:\n", w->engine,
            strstr(w->engine, "vllm}") ? "cuda" : "ascend-a3");
        for (unsigned i = 0; i < w->nodes; i++) {
                unsigned each = 16 / w->cuts, first = i % w->cuts * each;

                buf_printf(out, "  n%u: {ip: 10.0.0.%u, nic: e, devices: %u-%u}\n", i, i / w->cuts + 1, first,
                    first + each - 1);
        }
        for (int role = 0; role < 2; role++) {
                unsigned from = role == ROLE_PREFILL ? 0 : w->prefill_nodes,
                         to = role == ROLE_PREFILL ? w->prefill_nodes : w->nodes;

                buf_printf(out, "%s: {dp: %u, tp: %u, api_port: %d, dp_port: %d, kv_port: %d, groups: [",
                    role_name((enum role)role), w->dp[role], w->tp[role], role ? 8000 : 7000, role ? 14000 : 13000,
                    role ? 50000 : 40000);
                for (unsigned i = from; i < to; i++)
                        buf_printf(out, "%s%sn%u%s", i > from ? ", " : "", (i - from) % w->group_nodes[role] ? "" : "[",
                            i, (i - from) % w->group_nodes[role] == w->group_nodes[role] - 1 ? "]" : "");
                buf_add_str(out, "]}\n");
        }
        buf_add_str(out, "gateway: {node: n0, port: 9999}\n");
}

/* One bit per port and device of a machine; taking one twice fails. */
struct machine {
        unsigned char ports[65536 / 8];
        unsigned devices;
};

static void take_ports(struct machine *m, uint32_t first, uint32_t count) {
        for (uint32_t port = first; port < first + count; port++) {
                assert_true(port > 0 && port < 65536);
                assert_false(m->ports[port / 8] >> port % 8 & 1);
                m->ports[port / 8] |= (unsigned char)(1u << port % 8);
        }
}

/* What the engines bind, reckoned from what they are told and not from the plan's own notes. */
static void take_kv_ports(struct machine *m, const struct plan_rank *r, const char *engine) {
        if (strstr(engine, "0.9.1"))
                take_ports(m, r->kv_base + r->local * r->tp_size, r->tp_size);
        else if (strstr(engine, "vllm-ascend"))
                take_ports(m, r->kv_base + r->dp_rank * r->tp_size, r->tp_size);
        else if (strstr(engine, "vllm"))
                take_ports(m, r->kv_base + r->dp_rank, 1);
}

/* What engines bind is in the plan's list of ports to be tried; where versions bind differently the list has both. */
static void expect_listed(const struct outcome *o, const struct machine *machines, unsigned count) {
        struct machine *listed = calloc(count, sizeof(*listed));

        assert_non_null(listed);
        for (size_t i = 0; i < o->plan->port_count; i++) {
                const struct plan_port *p = &o->plan->ports[i];
                uint64_t last;

                assert_int_equal(slice_to_u64(slice_sub(p->ip, sizeof("10.0.0.") - 1, p->ip.len), &last), 0);
                take_ports(&listed[last - 1], p->first, p->count);
        }
        for (unsigned m = 0; m < count; m++)
                for (size_t i = 0; i < sizeof(listed[m].ports); i++)
                        assert_int_equal(machines[m].ports[i] & ~listed[m].ports[i], 0);
        free(listed);
}

static void random_clusters_never_clash(void **state) {
        struct rng rng;

        (void)state;
        rng_seed(&rng, 11);
        for (int round = 0; round < 300; round++) {
                struct machine *machines;
                unsigned char *seen; /* by dp rank, for the group that is being passed */
                struct buf file = {0};
                struct world w;
                struct outcome o;

                draw_world(&rng, &w);
                write_world(&w, &file);
                plan_text(buf_slice(&file), &o);
                if (!o.plan)
                        expect_clean(buf_slice(&file), &o);
                machines = calloc(w.machines, sizeof(*machines));
                seen = calloc(1, 1024);
                assert_true(machines && seen);
                take_ports(&machines[0], 9999, 1);
                for (size_t i = 0; i < o.plan->rank_count; i++) {
                        const struct plan_rank *r = &o.plan->ranks[i];
                        struct machine *m = &machines[r->node / w.cuts];
                        unsigned mask = ((1u << r->device_count) - 1) << r->first_device;

                        take_ports(m, r->api_port, 1);
                        take_kv_ports(m, r, w.engine);
                        if (r->dp_rank == 0) {
                                memset(seen, 0, 1024);
                                if (r->dp_size > 1)
                                        take_ports(m, r->dp_port, 1);
                        }
                        assert_int_equal(m->devices & mask, 0);
                        assert_true(r->first_device + r->device_count <= 16);
                        m->devices |= mask;
                        assert_true(r->dp_rank < r->dp_size && !seen[r->dp_rank]);
                        seen[r->dp_rank] = 1;
                }
                for (int role = 0; role < 2; role++)
                        assert_true(o.plan->rank_count ==
                                    (size_t)w.dp[0] * (w.prefill_nodes / w.group_nodes[0]) +
                                        (size_t)w.dp[1] * ((w.nodes - w.prefill_nodes) / w.group_nodes[1]));
                expect_listed(&o, machines, w.machines);
                free(machines);
                free(seen);
                arena_free(&o.arena);
                buf_free(&file);
        }
}

/* Whatever topology init is asked for, what it writes is a file without errors. */
static void what_init_writes_passes_the_check(void **state) {
        static const char *const platforms[] = {"cpu", "ascend-a2", "ascend-a3", "ascend-a5", "cuda"},
                                 *const versions[] = {NULL, "0.9.1", "0.11.0", "0.17.0"};
        struct rng rng;

        (void)state;
        rng_seed(&rng, 5);
        for (int round = 0; round < 200; round++) {
                struct init_options o = {.platform = platforms[rng_below(&rng, 5)],
                    .version = versions[rng_below(&rng, 4)],
                    .whole = rng_below(&rng, 4) == 0};
                struct buf file = {0};
                struct outcome planned;

                for (int role = 0; role < 2; role++) {
                        int64_t groups = 1 + (int64_t)rng_below(&rng, 4);

                        o.roles[role].group_nodes = 1 + (int64_t)rng_below(&rng, 4);
                        o.roles[role].nodes = groups * o.roles[role].group_nodes;
                }
                assert_int_equal(init_write(&o, &file, NULL), 0);
                plan_text(buf_slice(&file), &planned);
                expect_clean(buf_slice(&file), &planned);
                arena_free(&planned.arena);
                buf_free(&file);
        }
}

static void init_quotes_what_it_is_given(void **state) {
        struct init_options o = {.model = "/m: #1\"", .served_name = "true", .nic = "e: {}", .platform = "cuda"};
        struct buf file = {0};
        struct outcome planned;

        (void)state;
        assert_int_equal(init_write(&o, &file, NULL), 0);
        plan_text(buf_slice(&file), &planned);
        expect_clean(buf_slice(&file), &planned);
        assert_true(slice_is(planned.cluster->model.path, "/m: #1\""));
        assert_true(slice_is(planned.cluster->model.served_name, "true"));
        assert_true(slice_is(planned.cluster->nodes[0].nic, "e: {}"));
        arena_free(&planned.arena);
        buf_free(&file);
}

static void init_explains_what_it_cannot_do(void **state) {
        struct init_options no_recipe = {.recipe = "r9"}, odd = {.roles = {{.nodes = 3, .group_nodes = 2}}};
        struct error e = {0};
        struct buf file = {0};

        (void)state;
        assert_int_equal(init_write(&no_recipe, &file, &e), -EINVAL);
        assert_non_null(strstr(e.text, "r9"));
        assert_int_equal(init_write(&odd, &file, &e), -EINVAL);
        assert_non_null(strstr(e.text, "do not divide"));
        assert_int_equal(file.len, 0);
}

int main(void) {
        const struct CMUnitTest tests[] = {
            cmocka_unit_test(documented_deployments_are_planned_as_ever),
            cmocka_unit_test(the_examples_are_clean_and_planned_as_ever),
            cmocka_unit_test(templates_are_called_as_the_launchers_do),
            cmocka_unit_test(manifests_are_yaml),
            cmocka_unit_test(manifests_refuse_what_yaml_cannot_hold),
            cmocka_unit_test(roles_groups_nodes_and_ranks_set_what_they_like),
            cmocka_unit_test(gateways_are_told_the_connector_and_where_they_are),
            cmocka_unit_test(ranks_publish_kv_events_and_the_gateway_follows),
            cmocka_unit_test(objects_are_merged_and_texts_replace),
            cmocka_unit_test(random_clusters_never_clash),
            cmocka_unit_test(what_init_writes_passes_the_check),
            cmocka_unit_test(init_quotes_what_it_is_given),
            cmocka_unit_test(init_explains_what_it_cannot_do),
        };

        return cmocka_run_group_tests_name("plans", tests, NULL, NULL);
}
