/* export.h - what the formats of exported plans share (private to cluster/). */
#pragma once
#include "cluster/planner.h"

struct exporter {
        const struct plan *plan;
        const struct cluster *c;
        struct arena *arena;
        const char *image;
        const uint32_t *first_rank; /* by node; UINT32_MAX: no rank there */
        struct export_file *files;
        size_t count;
        bool failed;
};

/* How many ranks a node has, from first_rank on; they stand in a row. */
size_t export_ranks(const struct exporter *x, uint32_t node, const struct plan_rank **ret_first);
bool export_has_gateway(const struct exporter *x, uint32_t node);
bool export_has_work(const struct exporter *x, uint32_t node); /* ranks or the gateway */

/* Take the text of `b` as a file's, and empty it. */
void export_add(struct exporter *x, const char *name, struct slice node, struct buf *b, bool executable);

/* One word of a shell command. */
void export_shell_word(struct buf *out, const char *word);
/* " env -u NAME NAME=value PROGRAM ARGUMENT…" */
void export_shell_command(struct buf *out, const char *const *env, const char *const *argv);
/* Bash that starts everything of a node, writes logs to $logs, and when one process ends stops the others and exits with its
 * status: a rank that is alone waits for its group for ever. */
enum export_body { BODY_ALL, BODY_RANKS }; /* with or without the gateway */
void export_node_body(const struct exporter *x, uint32_t node, enum export_body what, struct buf *out);
/* "p0.0: prefill group 0, dp rank 0 of 2, devices 0-7, http://…" */
void export_describe(const struct exporter *x, const struct plan_rank *r, struct buf *out);

void export_shell(struct exporter *x);
void export_systemd(struct exporter *x);
void export_docker(struct exporter *x);
void export_k8s(struct exporter *x);
void export_slurm(struct exporter *x);
