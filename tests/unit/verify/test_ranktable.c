/* test_ranktable.c - the table is, byte for byte, what the real generator wrote where that was right, and refused or warned
 * of where it was not. */
#include "base/file.h"
#include "recorded.h"
#include <dirent.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

enum outcome { SAME, SAME_BUT_WARNED, REFUSED, TOO_MANY, BY_COMMAND /* shown by tests/e2e/test_verify.py */ };

/* Every folder of tests/data/ascend/ranktable. `file`: whose bytes are right, NULL: the case's own. `fault`: where case.json
 * names none. */
static const struct {
        const char *name;
        enum outcome outcome;
        const char *file, *changes;
} cases[] = {
    {"a2-4node-2p2d-v0.11.0", SAME},
    {"a2-4node-2p2d-v0.9.1", SAME},
    {"a2-4node-3p1d-v0.11.0", SAME},
    {"a2-4node-duplicate-ip-v0.9.1", REFUSED},
    {"a2-4node-ip-not-preset-v0.9.1", REFUSED},
    {"a2-4node-ipv6-v0.9.1", REFUSED, NULL,
        "[{\"node\":\"p0\",\"recordings\":[{\"argv\":[\"hccn_tool\",\"-i\",\"0\",\"-ip\",\"-g\"],\"rc\":0,"
        "\"stdout\":\"ipaddr:fd00:11:12::80\\nnetmask:64\\n\",\"stderr\":\"\"}]}]"},
    {"a2-4node-last-main", SAME, "a2-4node-2p2d-v0.9.1"},
    {"a2-4node-local-ids-per-node-fixed", SAME},
    {"a2-4node-no-chip-count-v0.9.1", SAME, "a2-4node-2p2d-v0.9.1"},
    {"a2-4node-npu-ids-from-1-v0.9.1", SAME, "a2-4node-2p2d-v0.9.1"},
    {"a3-1node-8p8d-v0.9.1", SAME},
    {"a3-4node-1p3d-v0.11.0", SAME, "a3-4node-1p3d-v0.9.1"},
    {"a3-4node-1p3d-v0.9.1", SAME},
    {"a3-4node-2p2d-v0.11.0", SAME},
    {"a3-4node-2p2d-v0.9.1", SAME},
    {"a3-4node-decode-first-v0.9.1", SAME},
    {"a3-4node-drops-v0.9.1", SAME_BUT_WARNED},
    {"a3-4node-duplicate-sdid-v0.9.1", REFUSED},
    {"a3-4node-foreign-ip-v0.9.1", BY_COMMAND},
    {"a3-4node-local-ids-fixed", SAME},
    {"a3-4node-local-ids-v0.11.0", SAME, "a3-4node-local-ids-fixed"},
    {"a3-4node-mixed-soc-v0.9.1", REFUSED},
    {"a3-4node-multi-homed-v0.9.1", SAME, "a3-4node-2p2d-v0.9.1"},
    {"a3-4node-npu-ids-from-1-v0.9.1", SAME, "a3-4node-2p2d-v0.9.1"},
    {"a3-4node-path-bare-v0.11.0", BY_COMMAND},
    {"a3-4node-path-nested-v0.11.0", BY_COMMAND},
    {"a3-4node-split-node-v0.9.1", SAME_BUT_WARNED},
    {"a3-4node-stale-file-forced-v0.9.1", SAME, "a3-4node-2p2d-v0.9.1"},
    {"a3-4node-stale-file-v0.9.1", SAME, "a3-4node-2p2d-v0.9.1"},
    {"a3-4node-too-many-v0.9.1", TOO_MANY},
    {"a3-4node-vnic-zero-v0.9.1", REFUSED},
};
#define CASE_COUNT (sizeof(cases) / sizeof(*cases))

struct run {
        struct arena arena;
        struct recorded *recorded;
        struct facts facts;
        struct verify_findings findings;
        struct error e;
        struct buf out;
};

static void run_open(struct run *r, const char *cluster, const char *fault, const char *changes) {
        struct asker asker;

        *r = (struct run){0};
        r->findings.arena = &r->arena;
        r->recorded = recorded_open(cluster, fault, changes);
        asker = recorded_asker(r->recorded);
        recorded_facts(r->recorded, &r->arena, &r->facts);
        assert_int_equal(collect(&r->facts, TOPICS_RANKTABLE, &asker, NULL, &r->arena), 0);
}

static void run_close(struct run *r) {
        buf_free(&r->out);
        recorded_close(r->recorded);
        arena_free(&r->arena);
}

/* The nodes that the script was started for, in the order of --ips. */
static void order_nodes(struct run *r, yyjson_val *argv) {
        struct node_facts *ordered = arena_array(&r->arena, r->facts.node_count, sizeof(*ordered));
        size_t i, n, count = 0;
        yyjson_val *word;
        bool ips = false;

        yyjson_arr_foreach(argv, i, n, word) {
                if (slice_starts(json_slice(word), SLICE_LIT("--")))
                        ips = slice_is(json_slice(word), "--ips");
                for (size_t k = 0; ips && k < r->facts.node_count; k++)
                        if (slice_eq(r->facts.nodes[k].ip, json_slice(word)))
                                ordered[count++] = r->facts.nodes[k];
        }
        r->facts.nodes = ordered;
        r->facts.node_count = count;
}

static struct slice option_of(yyjson_val *argv, const char *name) {
        size_t i, n;
        yyjson_val *word;

        yyjson_arr_foreach(argv, i, n, word) {
                if (slice_is(json_slice(word), name))
                        return json_slice(yyjson_arr_get(argv, i + 1));
        }
        return SLICE_NONE;
}

static void choose_local(struct run *r, yyjson_val *nodes) {
        size_t i, n;
        yyjson_val *node;

        yyjson_arr_foreach(nodes, i, n, node) {
                struct slice list = option_of(yyjson_obj_get(node, "argv"), "--local-device-ids"), one;
                struct facts alone = {.node_count = 1};
                uint32_t ids[16];
                size_t count = 0;

                if (!list.ptr)
                        continue;
                while (slice_split(&list, ',', &one)) {
                        uint64_t id = 0;

                        assert_int_equal(slice_to_u64(one, &id), 0);
                        ids[count++] = (uint32_t)id;
                }
                for (size_t k = 0; k < r->facts.node_count; k++)
                        if (slice_eq(r->facts.nodes[k].name, json_get_slice(node, "node"))) {
                                alone.nodes = &r->facts.nodes[k];
                                assert_int_equal(facts_choose(&alone, ids, count, &r->arena, &r->e), 0);
                        }
        }
}

static bool any_refuses(const struct verify_findings *f) {
        for (size_t i = 0; i < f->count; i++)
                if (ranktable_refuses(&f->items[i]))
                        return true;
        return false;
}

static struct slice read_file(struct arena *arena, const char *name) {
        struct buf b = {0};
        struct slice s;

        assert_int_equal(file_read_whole(recorded_path(arena, arena_printf(arena, "ranktable/%s/ranktable.json", name)),
                             1u << 20, &b, NULL),
            0);
        s = arena_copy(arena, buf_slice(&b));
        buf_free(&b);
        return s;
}

static void assert_bytes(struct slice got, struct slice want) {
        if (!slice_eq(got, want))
                fprintf(stderr, "--- got\n%.*s\n--- want\n%.*s\n", SLICE_ARG(got), SLICE_ARG(want));
        assert_true(slice_eq(got, want));
}

static void check_case(size_t at) {
        const char *name = cases[at].name;
        struct run r;
        struct arena arena = {0};
        yyjson_doc *doc;
        yyjson_val *root, *nodes;
        struct ranktable_share *shares;
        size_t count;
        char *cluster, *fault;
        int done;

        assert_int_equal(json_parse_file(recorded_path(&arena, arena_printf(&arena, "ranktable/%s/case.json", name)),
                             1u << 20, &doc, NULL),
            0);
        root = yyjson_doc_get_root(doc);
        nodes = yyjson_obj_get(root, "nodes");
        cluster = slice_dup(json_get_slice(root, "base_cluster"));
        fault = json_get_slice(root, "fault").ptr ? slice_dup(json_get_slice(root, "fault")) : NULL;
        run_open(&r, cluster, fault, cases[at].changes);
        order_nodes(&r, yyjson_obj_get(yyjson_arr_get(nodes, 0), "argv"));
        assert_int_equal(judge(&r.facts, &r.findings), 0);
        choose_local(&r, nodes);
        done = ranktable_shares_by_count(&r.facts, (uint64_t)json_get_i64(root, "prefill_device_cnt", 0),
            (uint64_t)json_get_i64(root, "decode_device_cnt", 0), &r.arena, &shares, &count, &r.findings, &r.e);
        if (cases[at].outcome == TOO_MANY)
                assert_int_equal(done, -22);
        else if (cases[at].outcome == REFUSED)
                assert_true(any_refuses(&r.findings));
        else {
                assert_int_equal(done, 0);
                assert_false(any_refuses(&r.findings));
                assert_int_equal(ranktable_write(&r.facts, shares, count, RANKTABLE_PAGE, &r.out, &r.e), 0);
                assert_bytes(buf_slice(&r.out), read_file(&arena, cases[at].file ? cases[at].file : name));
                if (option_of(yyjson_obj_get(yyjson_arr_get(nodes, 0), "argv"), "--local-device-ids").ptr == NULL)
                        assert_int_equal(r.findings.count > 0, cases[at].outcome == SAME_BUT_WARNED);
        }
        run_close(&r);
        free(cluster);
        free(fault);
        yyjson_doc_free(doc);
        arena_free(&arena);
}

static void every_recorded_run_of_the_generator_is_matched_or_bettered(void **state) {
        struct arena arena = {0};
        DIR *dir = opendir(recorded_path(&arena, "ranktable"));
        size_t folders = 0;

        assert_non_null(dir);
        for (struct dirent *d; (d = readdir(dir));)
                folders += d->d_name[0] != '.';
        closedir(dir);
        arena_free(&arena);
        assert_int_equal(folders, CASE_COUNT);
        for (size_t i = 0; i < CASE_COUNT; i++)
                if (cases[i].outcome != BY_COMMAND) {
                        print_message("%s\n", cases[i].name);
                        check_case(i);
                }
}

/* What nodes tell each for itself and what is told of all at once is one table. */
static void parts_of_nodes_make_the_same_table(void **state) {
        struct run r;
        struct facts merged;
        struct arena arena = {0};
        struct ranktable_share *shares;
        size_t count;

        run_open(&r, "a3-4node", NULL, NULL);
        recorded_facts(r.recorded, &arena, &merged);
        for (size_t i = 0; i < r.facts.node_count; i++) {
                struct buf part = {0};

                part_write(&r.facts, i, &part);
                assert_int_equal(part_read(&merged, buf_slice(&part), &arena, &r.e), 0);
                assert_int_equal(part_read(&merged, buf_slice(&part), &arena, &r.e), -22); /* twice */
                buf_free(&part);
        }
        assert_int_equal(judge(&merged, &r.findings), 0);
        assert_int_equal(r.findings.count, 0);
        assert_int_equal(ranktable_shares_by_count(&merged, 32, 32, &arena, &shares, &count, &r.findings, &r.e), 0);
        assert_int_equal(ranktable_write(&merged, shares, count, RANKTABLE_PAGE, &r.out, &r.e), 0);
        assert_bytes(buf_slice(&r.out), read_file(&arena, "a3-4node-2p2d-v0.9.1"));
        arena_free(&arena);
        run_close(&r);
}

static void doubles_between_parts_refuse_the_table(void **state) {
        struct run r;
        struct facts merged;
        struct arena arena = {0};

        run_open(&r, "a3-4node", "duplicate-sdid", NULL);
        recorded_facts(r.recorded, &arena, &merged);
        for (size_t i = 0; i < r.facts.node_count; i++) {
                struct buf part = {0};

                part_write(&r.facts, i, &part);
                assert_int_equal(part_read(&merged, buf_slice(&part), &arena, &r.e), 0);
                buf_free(&part);
        }
        assert_int_equal(judge(&merged, &r.findings), 0);
        assert_int_equal(r.findings.count, 1);
        assert_true(ranktable_refuses(&r.findings.items[0]));
        arena_free(&arena);
        run_close(&r);
}

static void what_is_no_part_is_refused(void **state) {
        static const char *const texts[] = {"", "{}", "[1]", "{\"baton_ranktable_part\":2}",
            "{\"baton_ranktable_part\":1,\"ip\":\"1.2.3.4\"}", "{\"baton_ranktable_part\":1,\"ip\":\"10.20.0.11\"}",
            "{\"baton_ranktable_part\":1,\"ip\":\"10.20.0.11\",\"platform\":\"ascend-a2\",\"npus\":[]}",
            "{\"baton_ranktable_part\":1,\"ip\":\"10.20.0.11\",\"platform\":\"ascend-a2\",\"npus\":[{}]}",
            "{\"baton_ranktable_part\":1,\"ip\":\"10.20.0.11\",\"platform\":\"ascend-a2\",\"npus\":[{\"device\":1},"
            "{\"device\":1}]}"};
        struct run r;

        run_open(&r, "a2-4node", NULL, NULL);
        for (size_t i = 0; i < sizeof(texts) / sizeof(*texts); i++) {
                assert_int_equal(part_read(&r.facts, slice_str(texts[i]), &r.arena, &r.e), -22);
                assert_true(r.e.text[0]);
        }
        run_close(&r);
}

static void an_npu_without_address_is_never_written(void **state) {
        struct run r;
        struct ranktable_share share = {0, 0, 8, ROLE_PREFILL};

        run_open(&r, "a2-4node", NULL, NULL);
        r.facts.nodes[0].npus[5].ip.known = false;
        assert_int_equal(ranktable_write(&r.facts, &share, 1, RANKTABLE_PAGE, &r.out, &r.e), -22);
        assert_non_null(strstr(r.e.text, "npu 5 of p0"));
        assert_int_equal(r.out.len, 0);
        run_close(&r);
}

/* The forms of HCCL's own documents. */
static void hccl_tables_have_ranks_in_order_and_pods(void **state) {
        struct run r;
        const struct ranktable_share shares[] = {{0, 0, 2, ROLE_PREFILL}, {2, 1, 1, ROLE_DECODE}};

        run_open(&r, "a2-4node", NULL, NULL);
        assert_int_equal(ranktable_write(&r.facts, shares, 2, RANKTABLE_HCCL10, &r.out, &r.e), 0);
        assert_string_equal(buf_cstr(&r.out),
            "{\n    \"status\": \"completed\",\n    \"version\": \"1.0\",\n    \"server_count\": \"2\",\n"
            "    \"server_list\": [\n        {\n            \"server_id\": \"10.20.0.11\",\n            \"device\": [\n"
            "                {\n                    \"device_id\": \"0\",\n"
            "                    \"device_ip\": \"11.12.165.80\",\n                    \"rank_id\": \"0\"\n"
            "                },\n                {\n                    \"device_id\": \"1\",\n"
            "                    \"device_ip\": \"11.12.165.81\",\n                    \"rank_id\": \"1\"\n"
            "                }\n            ]\n        },\n        {\n            \"server_id\": \"10.20.0.13\",\n"
            "            \"device\": [\n                {\n                    \"device_id\": \"1\",\n"
            "                    \"device_ip\": \"11.12.167.81\",\n                    \"rank_id\": \"2\"\n"
            "                }\n            ]\n        }\n    ]\n}");
        assert_int_equal(ranktable_write(&r.facts, shares, 2, RANKTABLE_HCCL12, &r.out, &r.e), -22);
        run_close(&r);
        run_open(&r, "a3-4node", NULL, NULL);
        assert_int_equal(ranktable_write(&r.facts, shares, 2, RANKTABLE_HCCL12, &r.out, &r.e), 0);
        assert_non_null(
            strstr(buf_cstr(&r.out), "\"super_device_id\": \"16777216\",\n                    \"rank_id\": \"0\""));
        assert_non_null(strstr(buf_cstr(&r.out),
            "    \"super_pod_list\": [\n        {\n            \"super_pod_id\": \"0\",\n            \"server_list\": "
            "[\n"
            "                {\n                    \"server_id\": \"192.0.0.1\"\n                },\n"
            "                {\n                    \"server_id\": \"192.0.0.3\"\n                }\n"
            "            ]\n        }\n    ]\n}"));
        run_close(&r);
}

int main(void) {
        const struct CMUnitTest tests[] = {
            cmocka_unit_test(every_recorded_run_of_the_generator_is_matched_or_bettered),
            cmocka_unit_test(parts_of_nodes_make_the_same_table),
            cmocka_unit_test(doubles_between_parts_refuse_the_table),
            cmocka_unit_test(what_is_no_part_is_refused),
            cmocka_unit_test(an_npu_without_address_is_never_written),
            cmocka_unit_test(hccl_tables_have_ranks_in_order_and_pods),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
