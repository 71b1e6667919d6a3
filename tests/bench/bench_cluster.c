/* What a large cluster file costs: milliseconds to read and check 1,024 nodes of 16 NPUs, every one a rank of its own, and to
 * plan every command; medians. */
#include "base/clock.h"
#include "cluster/cluster.h"
#include <stdio.h>
#include <stdlib.h>

enum { NODES = 1024, ROUNDS = 15 };

static void write_file(struct buf *out) {
        struct init_options o = {.platform = "ascend-a3"};

        for (int role = 0; role < 2; role++) {
                o.roles[role].nodes = NODES / 2;
                o.roles[role].group_nodes = 16;
                o.roles[role].tp = 1;
        }
        if (init_write(&o, out, NULL) < 0)
                abort();
}

static int compare(const void *a, const void *b) {
        double x = *(const double *)a, y = *(const double *)b;

        return x < y ? -1 : x > y;
}

static double check_ms(struct slice text) {
        struct arena arena = {0};
        struct findings findings = {.arena = &arena};
        struct cluster *c;
        uint64_t begin = clock_mono_ns();
        double ms;

        if (cluster_parse("f.yaml", text, &arena, &c, &findings) < 0 || plan_check(c, &arena, &findings) < 0)
                abort();
        ms = (double)(clock_mono_ns() - begin) / 1e6;
        arena_free(&arena);
        return ms;
}

static double plan_ms(struct slice text, size_t *ret_ranks) {
        struct arena arena = {0};
        struct findings findings = {.arena = &arena};
        struct cluster *c;
        struct plan *plan;
        uint64_t begin = clock_mono_ns();
        double ms;

        if (cluster_parse("f.yaml", text, &arena, &c, &findings) < 0 ||
            plan_make(c, "baton", &arena, &plan, &findings) < 0)
                abort();
        ms = (double)(clock_mono_ns() - begin) / 1e6;
        *ret_ranks = plan->rank_count;
        arena_free(&arena);
        return ms;
}

int main(void) {
        struct buf file = {0};
        double checks[ROUNDS], plans[ROUNDS];
        size_t ranks = 0;

        write_file(&file);
        for (int i = 0; i < ROUNDS; i++) {
                checks[i] = check_ms(buf_slice(&file));
                plans[i] = plan_ms(buf_slice(&file), &ranks);
        }
        qsort(checks, ROUNDS, sizeof(*checks), compare);
        qsort(plans, ROUNDS, sizeof(*plans), compare);
        printf(
            "%d nodes, %zu ranks: check %.1f ms, plan %.1f ms\n", NODES, ranks, checks[ROUNDS / 2], plans[ROUNDS / 2]);
        buf_free(&file);
        return 0;
}
