/* test_mutations.c - what a fault's answers say is cut, thinned or written in another case: whatever is left of them, the node
 * is never found to be well. Recordings of faults, changed in bounded ways that are the same in every run. */
#include "recorded.h"
#include <ctype.h>
#include <dirent.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

enum change { CUT, DROP_LINE, UPPER, LOWER };
struct mutation {
        enum change change;
        unsigned part; /* CUT: eighths that stay; DROP_LINE: which one */
};
/* Lines of short answers are left out one by one. In a long one the line may be all there was of the fault. */
#define LINES_MAX 8

/* Answers of a cluster with a fault where they differ from those of the same cluster without it, mutated. */
struct mutant {
        struct recorded *faulty, *healthy;
        const struct mutation *mutation; /* NULL: only look */
        bool pings, counters;            /* noted: what differs */
        bool changed;
};

static struct slice mutate(struct slice text, const struct mutation *m, struct arena *arena) {
        char *copy = arena_alloc(arena, text.len + 1);
        size_t n = 0;
        unsigned line = 0;

        assert_non_null(copy);
        for (size_t i = 0; i < text.len; i++) {
                char c = text.ptr[i];

                if (m->change == CUT && i >= text.len * m->part / 8)
                        break;
                if (m->change != DROP_LINE || line != m->part)
                        copy[n++] = m->change == UPPER   ? (char)toupper((unsigned char)c)
                                    : m->change == LOWER ? (char)tolower((unsigned char)c)
                                                         : c;
                line += c == '\n';
        }
        return slice_of(copy, n);
}

static bool same(const struct answer *a, const struct answer *b) {
        return a->state == b->state && a->status == b->status && slice_eq(a->out, b->out) && slice_eq(a->err, b->err);
}

static bool is_word(const struct question *q, const char *word) {
        for (size_t i = 0; q->words[i]; i++)
                if (!strcmp(q->words[i], word))
                        return true;
        return false;
}

static void ask(
    void *context, struct batch *batches, size_t count, const struct listener *listener, struct arena *arena) {
        struct mutant *m = context;
        struct asker faulty = recorded_asker(m->faulty), healthy = recorded_asker(m->healthy);

        faulty.ask(faulty.context, batches, count, listener, arena);
        for (size_t i = 0; i < count; i++) {
                struct batch *b = &batches[i], twin = *b;

                twin.answers = arena_array(arena, b->count, sizeof(*twin.answers));
                healthy.ask(healthy.context, &twin, 1, NULL, arena);
                for (size_t k = 0; k < b->count; k++) {
                        struct answer *a = &b->answers[k];

                        if (same(a, &twin.answers[k]))
                                continue;
                        m->pings |= is_word(&b->questions[k], "-ping") || is_word(&b->questions[k], "-hccs_ping");
                        m->counters |= is_word(&b->questions[k], "-stat");
                        if (!m->mutation)
                                continue;
                        a->out = mutate(a->out, m->mutation, arena);
                        a->err = mutate(a->err, m->mutation, arena);
                        m->changed = true;
                }
        }
}

/* How many findings there are. */
static size_t run(struct mutant *m, bool pings) {
        struct asker asker = {m, ask};
        struct arena arena = {0};
        struct facts facts;
        struct verify_findings f = {.arena = &arena};
        size_t count;

        recorded_rewind(m->faulty);
        recorded_rewind(m->healthy);
        recorded_facts(m->faulty, &arena, &facts);
        assert_int_equal(collect(&facts, TOPICS_ALL, &asker, NULL, &arena), 0);
        if (pings)
                assert_int_equal(collect_pings(&facts, &asker, NULL, &arena), 0);
        assert_int_equal(judge(&facts, &f), 0);
        count = f.count;
        arena_free(&arena);
        return count;
}

/* Whether some mutation makes the fault pass for health. */
static size_t escapes(const char *cluster, const char *fault) {
        static const struct mutation others[] = {
            {CUT, 0}, {CUT, 2}, {CUT, 4}, {CUT, 6}, {CUT, 7}, {UPPER, 0}, {LOWER, 0}};
        struct mutant look = {recorded_open(cluster, fault, NULL), recorded_open(cluster, NULL, NULL)};
        size_t bad = 0, n = sizeof(others) / sizeof(*others);
        bool pings;

        run(&look, true);
        pings = look.pings || look.counters;
        for (size_t i = 0; i < n + LINES_MAX; i += pings ? 2 : 1) { /* thousands of pings take a while */
                struct mutation m = i < n ? others[i] : (struct mutation){DROP_LINE, (unsigned)(i - n)};
                struct mutant mutant = {look.faulty, look.healthy, .mutation = &m};

                if (run(&mutant, pings) == 0 && mutant.changed) {
                        print_error("%s: well after change %d %u\n", fault, m.change, m.part);
                        bad++;
                }
        }
        recorded_close(look.faulty);
        recorded_close(look.healthy);
        return bad;
}

static void no_mutation_of_a_fault_passes_for_health(void **state) {
        struct arena arena = {0};
        DIR *dir = opendir(recorded_path(&arena, "faults"));
        size_t tried = 0, bad = 0;

        (void)state;
        assert_non_null(dir);
        for (struct dirent *d; (d = readdir(dir));) {
                yyjson_doc *doc;
                yyjson_val *root;
                const char *path = recorded_path(&arena, arena_printf(&arena, "faults/%s", d->d_name));
                char *cluster, *fault;

                if (!strstr(d->d_name, ".json"))
                        continue;
                assert_int_equal(json_parse_file(path, 8u << 20, &doc, NULL), 0);
                root = yyjson_doc_get_root(doc);
                cluster = slice_dup(json_get_slice(root, "base_cluster"));
                fault = slice_dup(slice_of(d->d_name, strlen(d->d_name) - 5));
                if (slice_is(json_get_slice(yyjson_obj_get(root, "expected"), "severity"), "FAIL")) {
                        bad += escapes(cluster, fault);
                        tried++;
                }
                yyjson_doc_free(doc);
                free(cluster);
                free(fault);
        }
        closedir(dir);
        arena_free(&arena);
        assert_true(tried > 40);
        assert_int_equal(bad, 0);
}

int main(void) {
        const struct CMUnitTest tests[] = {
            cmocka_unit_test(no_mutation_of_a_fault_passes_for_health),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
