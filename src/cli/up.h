/* up.h - a running cluster as a command holds it: for `baton up` and `baton demo`. */
#pragma once
#include "cli/cli.h"
#include "cluster/cluster.h"
#include "launch/launch.h"
#include "os/os.h"

struct up {
        struct launch_paths paths;
        struct os_child supervisor;
        int signal_fd; /* readable on SIGINT, SIGTERM, SIGHUP, which are blocked from up_start on */
};

/* Start the supervisor of `file` and watch its processes come up. Returns -1 with *ret_up when all are ready, else the exit
 * code, everything stopped and explained. `foreground`: the supervisor ends when this process does. */
int up_start(const char *file, const struct cli_plan *p, bool foreground, bool quiet, struct up *ret_up);
void up_say_starting(const struct plan *p);
/* Ordered stop; returns when the supervisor has ended. */
int up_stop(struct os_child *supervisor);
