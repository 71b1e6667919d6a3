/* npus.h - what `verify` and `ranktable` share: the nodes of a cluster file, and agents on them. */
#pragma once
#include "cli/cli.h"
#include "cluster/cluster.h"
#include "verify/verify.h"

/* Read a cluster file and set up the facts of its nodes. Returns -1 to go on, or the exit code. */
int cli_machines(const char *path, struct arena *arena, struct cluster **ret_cluster, struct facts *ret_facts);
bool cli_has_npus(const struct cluster *c);
/* The same of a file whose platform has NPUs; others are refused. */
int cli_npu_cluster(const char *path, struct arena *arena, struct cluster **ret_cluster, struct facts *ret_facts);
/* Whether an IPv4 or IPv6 address is one of this machine's. */
bool cli_is_own_address(struct slice ip);
/* An agent for every node: of this machine by starting it, of others by ssh. `c` may be NULL (then ssh goes to the node's
 * address). remote_baton NULL: `baton` in the PATH over there. 0, -EINVAL when a name cannot be given to ssh, -ENOMEM; said. */
int cli_npu_agents(const struct cluster *c, const struct facts *facts, const char *remote_baton, struct arena *arena,
    struct agents **ret_agents);
struct progress cli_npu_progress(bool quiet); /* on stderr, when that is a terminal */
void cli_npu_progress_end(bool quiet);
