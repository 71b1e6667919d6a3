/* test_cluster.c - the cluster file: every slip gets one clear finding at its place; plans never clash. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "base/rng.h"
#include "cluster/cluster.h"
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#define HEAD  "model: {path: m}\nengine: {kind: embedded}\n"
#define VLLM  "model: {path: m}\nengine: {kind: vllm}\n"
#define NODES "nodes:\n  a: {ip: 10.0.0.1}\n  b: {ip: 10.0.0.2}\n  c: {ip: 10.0.0.3}\n"

struct outcome {
        struct arena arena;
        struct findings findings;
        struct cluster *cluster;
        struct plan *plan;
        int parsed, planned;
};

static struct outcome *run(const char *text) {
        struct outcome *o = calloc(1, sizeof(*o));

        assert_non_null(o);
        o->planned = -1;
        o->parsed = cluster_parse("f.yaml", slice_str(text), &o->arena, &o->cluster, &o->findings);
        if (o->parsed == 0)
                o->planned = plan_make(o->cluster, "baton", &o->arena, &o->plan, &o->findings);
        findings_sort(&o->findings);
        return o;
}

static void done(struct outcome *o) {
        arena_free(&o->arena);
        free(o);
}

/* Every way to be wrong, with the one finding it must give. */
static const struct {
        const char *text, *code;
        uint32_t line, column;
        const char *words;
} slips[] = {
    {"model: {path: m\n", "Y01", 2, 1, "not YAML"},
    {"", "Y06", 1, 1, "empty"},
    {"[1, 2]\n", "Y04", 1, 1, "must be a mapping"},
    {HEAD NODES "decode: {groups: [[a]]}\nmodell: 3\n", "Y02", 8, 1, "did you mean `model`?"},
    {"model: {path: m, max_length: 3}\nengine: {kind: embedded}\n" NODES "decode: {groups: [[a]]}\n", "Y02", 1, 18,
        "did you mean `max_len`?"},
    {HEAD NODES "decode: {groups: [[a]], dp: 1, dp: 1}\n", "Y03", 7, 32, "twice"},
    {HEAD NODES "decode: {groups: [[a]], dp: two}\n", "Y04", 7, 29, "whole number"},
    {HEAD NODES "decode: {groups: [[a]], dp: 0}\n", "Y05", 7, 29, "must lie in 1..65536"},
    {HEAD NODES "decode: {groups: [[a]], api_port: 70000}\n", "Y05", 7, 35, "1..65535"},
    {HEAD NODES "decode: {groups: []}\n", "Y05", 7, 18, "empty"},
    {HEAD NODES "decode: {groups: [[]]}\n", "Y05", 7, 19, "at least one node"},
    {HEAD NODES "decode: {groups: [a]}\n", "Y04", 7, 19, "must be a list"},
    {HEAD NODES "decode: {groups: [[x]]}\n", "Y08", 7, 20, "no node is named `x`"},
    {HEAD NODES, "Y06", 1, 1, "`decode` is missing"},
    {"model: {}\nengine: {kind: embedded}\n" NODES "decode: {groups: [[a]]}\n", "Y06", 1, 8,
        "`path` is missing under `model`"},
    {"model: {path: m}\nengine: {kind: embeded}\n" NODES "decode: {groups: [[a]]}\n", "Y05", 2, 16,
        "did you mean `embedded`?"},
    {HEAD "nodes:\n  a: {ip: 10.0.0.1}\n  a: {ip: 10.0.0.2}\ndecode: {groups: [[a]]}\n", "Y07", 5, 3, "stands twice"},
    {HEAD "nodes:\n  a/b: {ip: 10.0.0.1}\ndecode: {groups: [[a/b]]}\n", "Y07", 4, 3, "no usable node name"},
    {HEAD "nodes:\n  a: {nic: eth0}\ndecode: {groups: [[a]]}\n", "Y06", 4, 6, "`ip` is missing under `nodes.a`"},
    {HEAD NODES "decode: {groups: [[a], [a]]}\n", "D02", 7, 24, "node a is in this group"},
    {VLLM NODES "decode: {groups: [[a, b]], dp: 3}\n", "D01", 7, 19, "does not divide"},
    {VLLM "platform: cuda\n" NODES "decode: {groups: [[a]], dp: 9}\n", "D03", 8, 29, "a has 8 devices, but 9 ranks"},
    {VLLM NODES "prefill: {groups: [[a]], tp: 2}\ndecode: {groups: [[b]], tp: 4}\n", "D04", 8, 29,
        "larger than prefill.tp"},
    {VLLM NODES "prefill: {groups: [[a]], tp: 3}\ndecode: {groups: [[b]], tp: 2}\n", "D04", 8, 29, "no multiple"},
    {VLLM NODES "decode: {groups: [[a]], dp: 3, api_port: 65534}\n", "P02", 7, 42, "API port of a.2 would be 65536"},
    {HEAD NODES "decode: {groups: [[a]], api_port: 8000}\ngateway: {node: a}\n", "P01", 8, 10, "planned twice"},
    {VLLM NODES "decode: {groups: [[a]], tp: 1024, pp: 1024}\n", "D03", 7, 29, "a rank of decode would have 1048576"},
    /* a reaches past b to c; what carries no ranks has no devices. */
    {VLLM "platform: cuda\nnodes:\n  a: {ip: 1.1.1.1, devices: 0-7}\n  b: {ip: 1.1.1.1, devices: 0}\n"
          "  c: {ip: 1.1.1.1, devices: 6-7}\n  d: {ip: 1.1.1.1}\n"
          "decode: {groups: [[a], [c]]}\ngateway: {node: d, port: 1}\n",
        "D05", 7, 29, "share its device 6"},
    {HEAD NODES "decode: {groups: [[a]]}\ngateway: {node: q}\n", "Y08", 8, 17, "no node is named `q`"},
};

static void each_slip_gets_one_finding_at_its_place(void **state) {
        (void)state;
        for (size_t i = 0; i < sizeof(slips) / sizeof(*slips); i++) {
                struct outcome *o = run(slips[i].text);

                if (o->findings.count != 1 || strcmp(o->findings.items[0].code, slips[i].code) ||
                    o->findings.items[0].at.line != slips[i].line ||
                    o->findings.items[0].at.column != slips[i].column ||
                    !strstr(o->findings.items[0].cause, slips[i].words)) {
                        struct buf text = {0};

                        findings_write_text(&o->findings, "f.yaml", false, &text);
                        print_error("slip %zu wants %s at %u:%u with \"%s\", got:\n%s", i, slips[i].code, slips[i].line,
                            slips[i].column, slips[i].words, buf_cstr(&text));
                        buf_free(&text);
                        fail();
                }
                assert_null(o->plan);
                assert_non_null(rule_find(slice_str(slips[i].code)));
                done(o);
        }
}

/* Every rule has a file that breaks it, and it alone, and one that keeps it. Only Y09 has none: 500 findings make it. */
static void each_rule_has_a_file_that_breaks_it_and_one_that_keeps_it(void **state) {
        size_t count;
        const struct rule *rules = rule_list(&count);

        (void)state;
        for (size_t i = 0; i < count; i++)
                for (int good = 0; good < 2 && strcmp(rules[i].code, "Y09"); good++) {
                        struct arena arena = {0};
                        struct findings findings = {.arena = &arena};
                        struct cluster *c = NULL;
                        struct error e = {0};
                        bool as_it_should;
                        char path[4096];

                        snprintf(path, sizeof(path), "%s/tests/data/cluster/rules/%s.%s.yaml", getenv("BATON_SOURCE"),
                            rules[i].code, good ? "good" : "bad");
                        if (cluster_read(path, &arena, &c, &findings, &e) == 0)
                                plan_check(c, &arena, &findings);
                        as_it_should = (findings.count > 0) == !good && !e.text[0];
                        for (size_t k = 0; k < findings.count; k++)
                                as_it_should &= !strcmp(findings.items[k].code, rules[i].code) &&
                                                findings.items[k].at.line > 0 &&
                                                (findings.items[k].cure || rules[i].code[0] == 'Y' ||
                                                    !strcmp(rules[i].code, "M01"));
                        if (!as_it_should) {
                                struct buf text = {0};

                                findings_write_text(&findings, path, false, &text);
                                print_error("%s %s\n%s", path, e.text, buf_cstr(&text));
                                buf_free(&text);
                                fail();
                        }
                        arena_free(&arena);
                }
}

static bool has_pair(const char *const *argv, const char *name, const char *value) {
        for (; argv[0] && argv[1]; argv++)
                if (!strcmp(argv[0], name) && !strcmp(argv[1], value))
                        return true;
        return false;
}

static void later_layers_of_settings_win(void **state) {
        struct outcome *o =
            run("model: {path: /m, max_len: 100}\n"
                "engine: {kind: embedded, args: {max-num-seqs: 4, threads: 1, seed: 3}, env: {A: 1, B: 2}}\n"
                "nodes: {a: {ip: 10.0.0.1, args: {max_num_seqs: 16, seed: null}, env: {B: 3}}}\n"
                "decode: {groups: [[a]], args: {--max-num-seqs: 8, max-model-len: 50, enforce-eager: true, "
                "async-scheduling: false, additional-config: {a: [1, x]}}}\n");
        const char *const *argv;
        size_t eager = 0, no_async = 0, seed = 0;

        (void)state;
        assert_int_equal(o->planned, 0);
        argv = o->plan->ranks[0].argv;
        assert_true(has_pair(argv, "--max-num-seqs", "16"));
        assert_true(has_pair(argv, "--max-model-len", "50"));
        assert_true(has_pair(argv, "--additional-config", "{\"a\":[1,\"x\"]}"));
        for (size_t i = 0; argv[i]; i++) {
                eager += !strcmp(argv[i], "--enforce-eager");
                no_async += !strcmp(argv[i], "--no-async-scheduling");
                seed += !strcmp(argv[i], "--seed");
        }
        assert_int_equal(eager, 1);
        assert_int_equal(no_async, 1);
        assert_int_equal(seed, 0);
        assert_string_equal(o->plan->ranks[0].env[0], "A=1");
        assert_string_equal(o->plan->ranks[0].env[1], "B=3");
        done(o);
}

static void ranks_are_numbered_over_the_nodes_of_a_group(void **state) {
        struct outcome *o =
            run(VLLM NODES "prefill: {groups: [[a]], dp: 2, tp: 2}\ndecode: {groups: [[b, c]], dp: 4}\n");
        static const char *const names[] = {"a.0", "a.1", "b.0", "b.1", "c.0", "c.1"};
        static const uint32_t dp_ranks[] = {0, 1, 0, 1, 2, 3};

        (void)state;
        assert_int_equal(o->planned, 0);
        assert_int_equal(o->plan->rank_count, 6);
        for (size_t i = 0; i < 6; i++) {
                assert_true(slice_is(o->plan->ranks[i].name, names[i]));
                assert_int_equal(o->plan->ranks[i].dp_rank, dp_ranks[i]);
        }
        assert_true(slice_is(o->plan->ranks[4].dp_address, "10.0.0.2"));
        assert_true(slice_is(o->plan->ranks[1].url, "http://10.0.0.1:9001"));
        assert_true(has_pair(o->plan->ranks[5].argv, "--data-parallel-rank", "3"));
        done(o);
}

/* Random valid clusters: every (address, port) is used once, every rank of a group appears once. */
static void random_clusters_never_clash(void **state) {
        struct rng rng;

        (void)state;
        rng_seed(&rng, 7);
        for (int round = 0; round < 200; round++) {
                struct buf text = {0};
                struct outcome *o;
                unsigned addresses = 1 + (unsigned)rng_below(&rng, 4), nodes = 2 + (unsigned)rng_below(&rng, 10);
                unsigned split = 1 + (unsigned)rng_below(&rng, nodes - 1), per = 1 + (unsigned)rng_below(&rng, 4);

                buf_add_str(&text, VLLM "nodes:\n");
                for (unsigned i = 0; i < nodes; i++)
                        buf_printf(&text, "  n%u: {ip: 10.0.0.%u}\n", i, i % addresses);
                buf_printf(&text, "prefill: {dp: %u, api_port: 9000, kv_port: 20000, dp_port: 13000, groups: [", per);
                for (unsigned i = 0; i < split; i++)
                        buf_printf(&text, "%s[n%u]", i ? ", " : "", i);
                buf_printf(&text, "]}\ndecode: {dp: %u, api_port: 10000, kv_port: 21000, dp_port: 14000, groups: [[",
                    per * (nodes - split));
                for (unsigned i = split; i < nodes; i++)
                        buf_printf(&text, "%sn%u", i > split ? ", " : "", i);
                buf_add_str(&text, "]]}\ngateway: {node: n0}\n");
                o = run(buf_cstr(&text));
                assert_int_equal(o->planned, 0);
                assert_int_equal(o->plan->rank_count, per * nodes);
                for (size_t i = 0; i < o->plan->rank_count; i++)
                        for (size_t j = i + 1; j < o->plan->rank_count; j++) {
                                assert_false(slice_eq(o->plan->ranks[i].url, o->plan->ranks[j].url));
                                assert_false(slice_eq(o->plan->ranks[i].name, o->plan->ranks[j].name));
                        }
                done(o);
                buf_free(&text);
        }
}

static void an_alias_cycle_is_an_error_not_a_hang(void **state) {
        struct outcome *o = run(HEAD "nodes: {a: {ip: 10.0.0.1}}\ndecode: {groups: [[a]], args: {x: &x [*x]}}\n");

        (void)state;
        assert_true(o->parsed < 0);
        assert_int_equal(o->findings.count, 1);
        done(o);
}

static void findings_are_bounded(void **state) {
        struct buf text = {0};
        struct outcome *o;

        (void)state;
        buf_add_str(&text, HEAD "nodes: {a: {ip: 10.0.0.1}}\ndecode: {groups: [[a]]}\n");
        for (int i = 0; i < 2000; i++)
                buf_printf(&text, "unknown%d: 1\n", i);
        o = run(buf_cstr(&text));
        assert_int_equal(o->findings.count, FINDINGS_MAX);
        done(o);
        buf_free(&text);
}

static void the_example_plans(void **state) {
        char path[4096];
        struct arena arena = {0};
        struct findings findings = {.arena = &arena};
        struct cluster *c = NULL;
        struct plan *plan = NULL;
        struct error e = {0};
        struct buf table = {0};

        (void)state;
        snprintf(path, sizeof(path), "%s/examples/local.yaml", getenv("BATON_SOURCE"));
        assert_int_equal(cluster_read(path, &arena, &c, &findings, &e), 0);
        assert_int_equal(plan_make(c, "baton", &arena, &plan, &findings), 0);
        assert_int_equal(findings.count, 0);
        assert_int_equal(plan->rank_count, 6);
        plan_write_table(plan, &table);
        assert_non_null(strstr(buf_cstr(&table), "d1.0"));
        assert_true(slice_is(plan->gateway_url, "http://127.0.0.1:8000"));
        assert_true(has_pair(plan->gateway_argv, "--decode", "d1.1=http://127.0.0.1:9203"));
        buf_free(&table);
        arena_free(&arena);
}

/* At whatever allocation memory runs out, the answer is -ENOMEM and nothing is read that is not there. */
static void memory_may_run_out_anywhere(void **state) {
        static const char text[] =
            "model: {path: m, speculative: {method: mtp, tokens: 1}}\n"
            "engine: {kind: vllm-ascend, args: {additional-config: {a: {b: 1}}}}\nplatform: ascend-a3\n"
            "nodes: {a: {ip: 10.0.0.1, nic: e}, b: {ip: 10.0.0.2, nic: e, args: {additional-config: {a: null}}}}\n"
            "prefill: {groups: [[a]], dp: 2, tp: 8, kv_port: 30000}\n"
            "decode: {groups: [[b]], dp: 3, ranks: {b.1: {env: {A: b}}}}\ngateway: {node: a}\n";
        bool done = false;

        (void)state;
        for (size_t limit = 64; !done; limit += 64) {
                struct arena arena = {.limit = limit};
                struct findings findings = {.arena = &arena};
                const struct export_file *files;
                struct cluster *c = NULL;
                struct plan *plan = NULL;
                size_t count;
                int r = cluster_parse("f.yaml", SLICE_LIT(text), &arena, &c, &findings);

                if (r == 0)
                        r = plan_make(c, "baton", &arena, &plan, &findings);
                for (int format = EXPORT_SHELL; r == 0 && format <= EXPORT_SLURM; format++)
                        r = plan_export(plan, (enum export_format)format, NULL, &arena, &files, &count, NULL);
                done = r == 0;
                if (!done)
                        assert_int_equal(r, -ENOMEM);
                arena_free(&arena);
                assert_true(limit < 1u << 20);
        }
}

static void missing_files_are_named(void **state) {
        struct arena arena = {0};
        struct findings findings = {.arena = &arena};
        struct cluster *c = NULL;
        struct error e = {0};

        (void)state;
        assert_int_equal(cluster_read("/nonexistent/c.yaml", &arena, &c, &findings, &e), -ENOENT);
        assert_non_null(strstr(e.text, "/nonexistent/c.yaml"));
        assert_int_equal(cluster_read("/tmp", &arena, &c, &findings, &e), -EISDIR);
        arena_free(&arena);
}

int main(void) {
        const struct CMUnitTest tests[] = {
            cmocka_unit_test(each_slip_gets_one_finding_at_its_place),
            cmocka_unit_test(each_rule_has_a_file_that_breaks_it_and_one_that_keeps_it),
            cmocka_unit_test(later_layers_of_settings_win),
            cmocka_unit_test(ranks_are_numbered_over_the_nodes_of_a_group),
            cmocka_unit_test(random_clusters_never_clash),
            cmocka_unit_test(an_alias_cycle_is_an_error_not_a_hang),
            cmocka_unit_test(findings_are_bounded),
            cmocka_unit_test(the_example_plans),
            cmocka_unit_test(memory_may_run_out_anywhere),
            cmocka_unit_test(missing_files_are_named),
        };

        return cmocka_run_group_tests_name("cluster", tests, NULL, NULL);
}
