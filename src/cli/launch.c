/* launch.c - `baton down` and the two commands that others start: `supervise`, which is a supervisor, and `node`, which
 * answers for a node. */
#include "launch/launch.h"
#include "cli/fleet.h"
#include <errno.h>
#include <stdio.h>
#include <unistd.h>

/* ---- down ------------------------------------------------------------------------------------------------------------ */

struct down_options {
        struct nodes_options nodes;
};
static const struct option down_table[] = {NODES_OPTIONS(offsetof(struct down_options, nodes))};
static const struct option_set down_set = {"baton down FILE",
    "Stops the gateway, then decode, then prefill ranks, and the supervisors, on all nodes. Returns when all have "
    "ended.",
    down_table, sizeof(down_table) / sizeof(*down_table), 1};

int cmd_down(int argc, char **argv) {
        struct down_options o = {0};
        struct options_result parsed;
        struct nodes n;
        int r = cli_file_options(&down_set, argc, argv, &o, &parsed);

        if (r >= 0)
                return r;
        r = nodes_of_file(parsed.positional[0], &o.nodes, &n);
        if (r < 0)
                r = nodes_open(&n);
        if (r < 0) {
                size_t ended = 0;

                r = fleet_stop(&n, NULL, &ended);
                if (r == EXIT_FINE && !ended)
                        fprintf(stderr, "%s is not up\n", parsed.positional[0]);
                if (nodes_lost(&n)) {
                        nodes_say_lost(&n);
                        fprintf(stderr, "what runs there was left running\n");
                        r = EXIT_UNKNOWN;
                }
        }
        nodes_close(&n);
        options_result_free(&parsed);
        return r;
}

/* ---- supervise, node --------------------------------------------------------------------------------------------------- */

struct supervise_options {
        const char *node, *state_dir;
};
static const struct option supervise_table[] = {
    {"node", 0, OPTION_STRING, offsetof(struct supervise_options, node), "NAME", "only what is planned for this node"},
    {"state-dir", 0, OPTION_STRING, offsetof(struct supervise_options, state_dir), "PATH",
        "where its files are; default: as launch.h says"},
};
static const struct option_set supervise_set = {"baton supervise FILE [--node NAME]",
    "The supervisor itself, in the foreground; `baton up` starts it.", supervise_table, 2, 1};

int cmd_supervise(int argc, char **argv) {
        struct supervise_options so = {0};
        struct options_result parsed;
        struct cli_plan p;
        struct plan part;
        struct launch_paths paths;
        struct log log = log_to_fd(STDERR_FILENO, LOG_INFO, "supervisor");
        struct supervisor_options o = {.plan = &part, .paths = &paths, .log = &log};
        struct error e = {0};
        int r = cli_file_options(&supervise_set, argc, argv, &so, &parsed);

        if (r >= 0)
                return r;
        r = cli_plan_read(parsed.positional[0], &p);
        if (r < 0) {
                int64_t node = so.node ? cluster_find_node(p.cluster, slice_str(so.node)) : -1;

                part = node >= 0 ? plan_of_node(p.plan, (uint32_t)node) : *p.plan;
                o.whole = node >= 0 ? p.plan : NULL;
                if (so.state_dir)
                        p.cluster->supervise.state_dir = slice_str(so.state_dir);
                r = 0;
                if (so.node && node < 0)
                        r = error_set(&e, -EINVAL, "%s has no node `%s`", parsed.positional[0], so.node);
                if (r == 0)
                        r = launch_paths(p.cluster, so.state_dir ? SLICE_NONE : slice_str(so.node), true, &paths, &e);
                if (r == 0)
                        r = supervisor_run(&o, &e);
                r = r < 0 ? cli_fail(r, &e) : EXIT_FINE;
        }
        cli_plan_free(&p);
        options_result_free(&parsed);
        return r;
}

static const struct option_set node_set = {"baton node",
    "Answers for this node what other baton commands ask on standard input; they start it, over ssh.", NULL, 0, 0};

int cmd_node(int argc, char **argv) {
        struct options_result parsed;
        struct arena arena = {0};
        int r = cli_options(&node_set, argc, argv, NULL, &parsed);

        if (r >= 0)
                return r;
        r = launch_node(STDIN_FILENO, STDOUT_FILENO, cli_self(&arena)) < 0 ? EXIT_UNKNOWN : EXIT_FINE;
        arena_free(&arena);
        options_result_free(&parsed);
        return r;
}
