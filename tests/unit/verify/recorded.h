/* recorded.h - an asker that answers from tests/data/ascend: whole clusters, with a fault on top. */
#pragma once
#include "base/json.h"
#include "verify/verify.h"

struct recorded;
/* `cluster` is a folder of tests/data/ascend/clusters, `fault` a file of faults without .json, or NULL. Asserts that it can be
 * read. `changes`: JSON text of more overrides ([{"node","recordings"}]), or NULL. */
struct recorded *recorded_open(const char *cluster, const char *fault, const char *changes);
void recorded_rewind(struct recorded *r); /* as if nothing had been asked */
void recorded_close(struct recorded *r);
struct asker recorded_asker(struct recorded *r);
yyjson_val *recorded_cluster(struct recorded *r); /* cluster.json */
yyjson_val *recorded_fault(struct recorded *r);   /* the fault's file, or NULL */
/* Nodes, addresses and platform as a cluster file would say them. The strings are the recording's. */
void recorded_facts(struct recorded *r, struct arena *arena, struct facts *ret_facts);
/* Collect everything of the NPUs, pings too, and judge it. */
void recorded_judge(
    struct recorded *r, struct arena *arena, struct facts *ret_facts, struct verify_findings *ret_findings);
const char *recorded_path(struct arena *arena, const char *below); /* of tests/data/ascend */
