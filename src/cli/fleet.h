/* fleet.h - what is done with the supervisors of many nodes: started in order, watched, stopped in order. */
#pragma once
#include "cli/nodes.h"

/* The processes of all nodes at one moment; valid until `arena` is freed. */
struct fleet_look {
        struct arena arena;
        struct launch_status *nodes; /* as many as targets; count 0 where a supervisor did not answer */
        bool *up;                    /* by target: a supervisor runs there */
};
/* Ask the nodes with yes[i] (NULL: all). 0, -EINTR, -ETIMEDOUT, -ENOMEM; free in any case. */
int fleet_look(struct nodes *n, const bool *yes, struct fleet_look *ret_look);
void fleet_look_free(struct fleet_look *look);
/* NULL: no such process is known now. */
const struct process_status *fleet_process(const struct nodes *n, const struct fleet_look *look, struct slice name);

/* Stop the supervisors of the nodes with yes[i] (NULL: all) in order: the gateway, nodes of decode ranks, the others. Nodes
 * that are lost or not up are passed over; what goes wrong is said. *ret_ended, which may be NULL: how many were up. Returns
 * an exit code. */
int fleet_stop(struct nodes *n, const bool *yes, size_t *ret_ended);

struct fleet_up_options {
        bool quiet, keep; /* keep: what runs stays when something fails */
};
/* Start the supervisors of all nodes and watch their processes come up. Either all are ready (-1), or everything that was
 * started is stopped again (but with `keep`), the reason is said, and an exit code returned. */
int fleet_up(struct nodes *n, const struct fleet_up_options *o);

/* Say of a process that failed what it said last, and why. */
void fleet_explain(const struct process_status *p);
