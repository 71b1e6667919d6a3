/* fuzz_cluster.c - any bytes as a cluster file: findings or a plan, never a crash; what is planned passes the
 * check alone too, and is written in every format. */
#include "cluster/cluster.h"
#include <errno.h>
#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void export_all(const struct plan *plan, struct arena *arena) {
        const struct export_file *files;
        size_t count;

        for (int format = EXPORT_SHELL; format <= EXPORT_SLURM; format++)
                plan_export(plan, (enum export_format)format, NULL, arena, &files, &count, NULL);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
        struct arena arena = {.limit = 64u << 20};
        struct findings findings = {.arena = &arena};
        struct cluster *c = NULL;
        struct plan *plan = NULL;
        struct buf out = {0};

        if (cluster_parse("fuzz.yaml", slice_of(data, size), &arena, &c, &findings) == 0 &&
            plan_make(c, "baton", &arena, &plan, &findings) == 0) {
                plan_write_table(plan, &out);
                plan_write_json(plan, &out);
                export_all(plan, &arena);
                if (plan_check(c, &arena, &findings) == -EINVAL)
                        abort();
        }
        findings_sort(&findings);
        findings_write_text(&findings, "fuzz.yaml", false, &out);
        findings_write_json(&findings, "fuzz.yaml", &out);
        buf_free(&out);
        arena_free(&arena);
        return 0;
}
