/* test_faults.c - whole recorded clusters, judged: every single fault is named with its place and cause, and nothing else
 * is; what is well or only looks odd has no finding that is worse. */
#include "recorded.h"
#include <dirent.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <strings.h>

#include <cmocka.h>

static void print_findings(const char *what, const struct facts *facts, const struct verify_findings *f) {
        struct buf b = {0};

        verify_write_json(facts, f, &b);
        print_message("%s: %s\n", what, buf_cstr(&b));
        buf_free(&b);
}

static void healthy_clusters_have_no_findings(void **state) {
        static const char *const clusters[] = {"a2-4node", "a3-4node", "a5-2node"};

        for (size_t i = 0; i < 3; i++) {
                struct recorded *r = recorded_open(clusters[i], NULL, NULL);
                struct arena arena = {0};
                struct facts facts;
                struct verify_findings f;

                recorded_judge(r, &arena, &facts, &f);
                if (f.count)
                        print_findings(clusters[i], &facts, &f);
                assert_int_equal(f.count, 0);
                arena_free(&arena);
                recorded_close(r);
        }
}

static int rank(struct slice severity) {
        return slice_is(severity, "FAIL") ? 2 : slice_is(severity, "WARN") ? 1 : 0;
}

static int rank_of(const struct verify_finding *f) {
        return f->severity == SEVERITY_ERROR ? 2 : 1;
}

static bool is_accepted(yyjson_val *expected, int got) {
        size_t i, n;
        yyjson_val *one;

        if (rank(json_get_slice(expected, "severity")) == got)
                return true;
        yyjson_arr_foreach(yyjson_obj_get(expected, "accept"), i, n, one) {
                if (rank(json_slice(one)) == got)
                        return true;
        }
        return false;
}

static bool has_word(const struct facts *facts, const struct verify_finding *f, struct slice word) {
        struct slice parts[] = {
            slice_str(f->cause), slice_str(f->cure), slice_str(f->check), facts->nodes[f->node].name};

        for (size_t p = 0; p < sizeof(parts) / sizeof(*parts); p++)
                for (size_t i = 0; i + word.len <= parts[p].len; i++)
                        if (slice_eq_icase(slice_sub(parts[p], i, i + word.len), word))
                                return true;
        return false;
}

static bool is_expected(const struct facts *facts, const struct verify_finding *f, yyjson_val *expected) {
        yyjson_val *device = yyjson_obj_get(expected, "device"), *word;
        size_t i, n;

        if (f->node < 0 || !slice_eq(facts->nodes[f->node].name, json_get_slice(expected, "node")) ||
            !slice_is(json_get_slice(expected, "check"), f->check) || !is_accepted(expected, rank_of(f)))
                return false;
        if (f->device != (yyjson_is_null(device) ? -1 : yyjson_get_int(device)))
                return false;
        if (yyjson_obj_get(expected, "peer_node") &&
            (f->peer_node < 0 || f->peer_device != json_get_i64(expected, "peer_device", -2) ||
                !slice_eq(facts->nodes[f->peer_node].name, json_get_slice(expected, "peer_node"))))
                return false;
        yyjson_arr_foreach(yyjson_obj_get(expected, "cause_words"), i, n, word) {
                if (!has_word(facts, f, json_slice(word)))
                        return false;
        }
        return f->cure && *f->cure;
}

/* Exactly the expected finding, or none where all is well. */
static bool fault_is_told(const char *fault) {
        struct arena arena = {0};
        yyjson_doc *doc;
        char *cluster;
        struct recorded *r;
        struct facts facts;
        struct verify_findings f;
        yyjson_val *expected;
        bool good;

        assert_int_equal(
            json_parse_file(recorded_path(&arena, arena_printf(&arena, "faults/%s.json", fault)), 8u << 20, &doc, NULL),
            0);
        cluster = slice_dup(json_get_slice(yyjson_doc_get_root(doc), "base_cluster"));
        yyjson_doc_free(doc);
        r = recorded_open(cluster, fault, NULL);
        recorded_judge(r, &arena, &facts, &f);
        expected = yyjson_obj_get(recorded_fault(r), "expected");
        if (f.count == 0)
                good = is_accepted(expected, 0);
        else
                good = f.count == 1 && is_expected(&facts, &f.items[0], expected);
        if (!good)
                print_findings(fault, &facts, &f);
        free(cluster);
        arena_free(&arena);
        recorded_close(r);
        return good;
}

static int compare_names(const void *a, const void *b) {
        return strcmp(*(char *const *)a, *(char *const *)b);
}

static void every_fault_is_told_alone_with_place_and_cause(void **state) {
        struct arena arena = {0};
        DIR *dir = opendir(recorded_path(&arena, "faults"));
        char *names[256];
        size_t n = 0, bad = 0;

        assert_non_null(dir);
        for (struct dirent *d; (d = readdir(dir)) && n < 256;)
                if (strlen(d->d_name) > 5 && !strcmp(d->d_name + strlen(d->d_name) - 5, ".json"))
                        names[n++] = slice_dup(slice_of(d->d_name, strlen(d->d_name) - 5));
        closedir(dir);
        qsort(names, n, sizeof(*names), compare_names);
        assert_int_equal(n, 73);
        for (size_t i = 0; i < n; i++) {
                bad += !fault_is_told(names[i]);
                free(names[i]);
        }
        arena_free(&arena);
        assert_int_equal(bad, 0);
}

int main(void) {
        const struct CMUnitTest tests[] = {
            cmocka_unit_test(healthy_clusters_have_no_findings),
            cmocka_unit_test(every_fault_is_told_alone_with_place_and_cause),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
