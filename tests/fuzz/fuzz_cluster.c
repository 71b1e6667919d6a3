/* fuzz_cluster.c - any bytes as a cluster file: findings or a plan, never a crash. */
#include "cluster/cluster.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
        struct arena arena = {.limit = 64u << 20};
        struct findings findings = {.arena = &arena};
        struct cluster *c = NULL;
        struct plan *plan = NULL;
        struct buf out = {0};

        if (cluster_parse("fuzz.yaml", slice_of(data, size), &arena, &c, &findings) == 0 &&
            plan_make(c, "baton", &arena, &plan, &findings) == 0)
                plan_write_json(plan, &out);
        findings_sort(&findings);
        findings_write_text(&findings, "fuzz.yaml", false, &out);
        findings_write_json(&findings, "fuzz.yaml", &out);
        buf_free(&out);
        arena_free(&arena);
        return 0;
}
