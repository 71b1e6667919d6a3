/* up.c - `baton up`: starts the supervisor of this machine (or, through fleet.h, those of all nodes), shows the ranks come up,
 * and in the foreground stays until Ctrl-C. */
#include "base/clock.h"
#include "base/file.h"
#include "cli/fleet.h"
#include "cli/online_dp.h"
#include "os/os.h"
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#define CALL_MS 5000u
#define POLL_MS 50

/* A cluster that runs, as this command holds it. */
struct up {
        struct launch_paths paths;
        struct os_child supervisor;
        int signal_fd; /* readable on SIGINT, SIGTERM, SIGHUP, which are blocked from up_start on */
};

/* ---- the supervisor's process ----------------------------------------------------------------------------------------- */

/* Start `baton supervise FILE`, in a session of its own: neither a Ctrl-C nor the end of this terminal reaches it. In the foreground it ends
 * when this process does. */
static int start_supervisor(const char *file, const char *node, const struct launch_paths *paths, bool foreground,
    struct arena *arena, struct os_child *ret_child, struct error *e) {
        const char *argv[] = {cli_self(arena), "supervise", file, node ? "--node" : NULL, node, NULL};
        struct os_child_options o = {
            .argv = argv, .stdin_fd = -1, .own_session = true, .death_signal = foreground ? SIGTERM : 0};
        int fd = open(paths->supervisor_log, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600), r;

        if (fd < 0)
                return error_set(e, -errno, "cannot write %s: %s", paths->supervisor_log, strerror(errno));
        o.stdout_fd = o.stderr_fd = fd;
        r = os_child_start(&o, ret_child, e);
        close(fd);
        return r;
}

/* What the supervisor has said since it was started. */
static void say_its_words(const struct launch_paths *paths) {
        struct buf b = {0};

        if (file_read_whole(paths->supervisor_log, 1 << 20, &b, NULL) == 0)
                file_write_fd(STDERR_FILENO, buf_slice(&b));
        buf_free(&b);
}

/* The supervisor has ended by itself. Says how, when that was not in order, and returns the exit code: its own when it is
 * one of ours. */
static int explain_end(struct up *up) {
        struct os_child_exit ended;
        char how[64];

        os_child_reap(&up->supervisor, true, &ended);
        if (!ended.signaled && ended.code == EXIT_FINE)
                return EXIT_FINE; /* `baton down` */
        os_child_exit_text(&ended, how, sizeof(how));
        fprintf(stderr, "baton up: the supervisor ended (%s); see %s\n", how, up->paths.supervisor_log);
        return ended.signaled || ended.code > EXIT_UNKNOWN ? EXIT_NOT_FINE : ended.code;
}

/* ---- progress --------------------------------------------------------------------------------------------------------- */

static void say_starting(const struct plan *p) {
        size_t prefill = 0;

        for (size_t i = 0; i < p->rank_count; i++)
                prefill += p->ranks[i].role == ROLE_PREFILL;
        fprintf(stderr, "starting ");
        if (prefill)
                fprintf(stderr, " prefill %zu rank%s ·", prefill, prefill == 1 ? "" : "s");
        fprintf(stderr, " decode %zu rank%s", p->rank_count - prefill, p->rank_count - prefill == 1 ? "" : "s");
        if (p->gateway_argv)
                fprintf(stderr, " · gateway %.*s", SLICE_ARG(p->gateway_url));
        fprintf(stderr, "\n");
}

/* Print each process once, when it is ready. `said` has a byte per process. */
static void say_ready(const struct launch_status *s, char *said, bool quiet) {
        for (size_t i = 0; i < s->count; i++) {
                const struct process_status *p = &s->processes[i];

                if (said[i] || p->state != PROCESS_READY)
                        continue;
                said[i] = 1;
                if (!quiet)
                        fprintf(stderr, "  %-10.*s ready %.1f s\n", SLICE_ARG(p->name), (double)p->ready_ms / 1000);
        }
}

static void explain_failures(const struct launch_status *s, const struct launch_paths *paths) {
        for (size_t i = 0; i < s->count; i++) {
                const struct process_status *p = &s->processes[i];
                struct buf words = {0};
                struct slice rest, line;

                if (p->state != PROCESS_FAILED)
                        continue;
                fprintf(stderr, "  %.*s failed: %.*s\n", SLICE_ARG(p->name), SLICE_ARG(p->last_exit));
                fleet_explain(p);
                fprintf(stderr, "      its last words (%s/%.*s.log):\n", paths->logs, SLICE_ARG(p->name));
                launch_last_words(paths, p->name, 5, &words);
                for (rest = slice_trim(buf_slice(&words)); slice_split(&rest, '\n', &line);)
                        fprintf(stderr, "      %.*s\n", SLICE_ARG(line));
                buf_free(&words);
        }
}

enum arrival { ARRIVAL_ALL_READY, ARRIVAL_FAILED, ARRIVAL_INTERRUPTED, ARRIVAL_GONE };

/* Watch until every process is ready or one is given up. */
static enum arrival watch(const struct launch_paths *paths, struct os_child *supervisor, int signal_fd, bool quiet) {
        char *said = NULL;
        enum arrival arrival = ARRIVAL_GONE;

        for (;;) {
                struct pollfd fds[2] = {{supervisor->pidfd, POLLIN, 0}, {signal_fd, POLLIN, 0}};
                struct buf json = {0};
                struct arena arena = {0};
                struct launch_status s = {0};
                bool known, all = false, bad = false;

                if (poll(fds, 2, POLL_MS) > 0) {
                        arrival = fds[1].revents ? ARRIVAL_INTERRUPTED : ARRIVAL_GONE;
                        break;
                }
                known = launch_call(paths, "GET", "/status", CALL_MS, &json, NULL) == 0 &&
                        launch_status_parse(buf_slice(&json), &arena, &s, NULL) == 0;
                if (known && s.pid == supervisor->pid) { /* of two started at once, the one that has the lock answers */
                        if (!said)
                                said = calloc(s.count + 1, 1);
                        if (said)
                                say_ready(&s, said, quiet);
                        all = s.count > 0;
                        for (size_t i = 0; i < s.count; i++) {
                                all &= s.processes[i].state == PROCESS_READY;
                                bad |= s.processes[i].state == PROCESS_FAILED;
                        }
                        if (bad)
                                explain_failures(&s, paths);
                }
                arena_free(&arena);
                buf_free(&json);
                if (all || bad) {
                        arrival = bad ? ARRIVAL_FAILED : ARRIVAL_ALL_READY;
                        break;
                }
        }
        free(said);
        return arrival;
}

/* ---- the command ------------------------------------------------------------------------------------------------------ */

/* Ordered stop; returns when the supervisor has ended: `code`, or EXIT_UNKNOWN when it had to be killed (which its
 * children do not outlive). */
static int stop(struct os_child *supervisor, const struct cluster *c, int code) {
        struct pollfd fd = {supervisor->pidfd, POLLIN, 0};
        struct os_child_exit ended;

        os_child_signal(supervisor, SIGTERM);
        if (poll(&fd, 1, (int)launch_stop_ms(c)) == 0) {
                fprintf(stderr, "baton up: the supervisor does not stop and is killed\n");
                os_child_signal(supervisor, SIGKILL);
                code = EXIT_UNKNOWN;
        }
        os_child_reap(supervisor, true, &ended);
        return code;
}

/* Until the supervisor ends by itself, or a signal to us, after which it is stopped in order. Returns the exit code. */
static int stay(struct up *up, const struct cluster *c) {
        struct pollfd fds[2] = {{up->supervisor.pidfd, POLLIN, 0}, {up->signal_fd, POLLIN, 0}};

        while (poll(fds, 2, -1) < 0 && errno == EINTR)
                ;
        if (fds[1].revents) {
                fprintf(stderr, "stopping\n");
                return stop(&up->supervisor, c, EXIT_FINE);
        }
        return explain_end(up);
}

static bool runs_already(const struct launch_paths *paths) {
        struct buf answer = {0};
        bool runs = launch_call(paths, "GET", "/status", CALL_MS, &answer, NULL) == 0;

        buf_free(&answer);
        return runs;
}

struct up_options {
        struct nodes_options nodes;
        struct online_dp online_dp;
        bool foreground, quiet, keep;
};
static const struct option up_table[] = {
    {"foreground", 'f', OPTION_FLAG, offsetof(struct up_options, foreground), NULL,
        "stay, and stop everything on Ctrl-C"},
    {"keep", 0, OPTION_FLAG, offsetof(struct up_options, keep), NULL,
        "over several nodes: when something fails, what runs is kept"},
    {"quiet", 'q', OPTION_FLAG, offsetof(struct up_options, quiet), NULL, "no progress"},
    NODES_OPTIONS(offsetof(struct up_options, nodes)),
    ONLINE_DP_OPTIONS(offsetof(struct up_options, online_dp)),
};
static const struct option_set up_set = {"baton up FILE [--foreground] [--node NAME]",
    "Starts the ranks of a cluster file on all its nodes (over ssh where they are not this machine's) and its gateway, "
    "each node under a supervisor that starts again what ends. Returns when everything answers /health; a rank that "
    "cannot start stops all and is explained. With --node only what is planned for that node is started, here, as "
    "another orchestrator on each node would.",
    up_table, sizeof(up_table) / sizeof(*up_table), 1};

/* Start the supervisor of `file`, or of one node of it, and watch its processes come up. Returns -1 with *ret_up when all are
 * ready, else the exit code, everything stopped and explained. In the foreground the supervisor ends when this process does. */
static int up_start(const char *file, const struct cli_plan *p, const struct plan *part, const struct up_options *o,
    struct up *ret_up) {
        struct up up = {.signal_fd = -1};
        struct error e = {0};
        int r = launch_paths(p->cluster, slice_str(o->nodes.node), true, &up.paths, &e);

        if (r == 0 && runs_already(&up.paths)) {
                fprintf(stderr, "baton up: %s is up already: `baton status %s` shows it, `baton down %s` ends it\n",
                    file, file, file);
                return EXIT_USAGE;
        }
        if (r == 0)
                r = start_supervisor(
                    file, o->nodes.node, &up.paths, o->foreground, (struct arena *)&p->arena, &up.supervisor, &e);
        if (r < 0)
                return cli_fail(r, &e);
        up.signal_fd = nodes_block_signals();
        if (!o->quiet)
                say_starting(part);
        switch (watch(&up.paths, &up.supervisor, up.signal_fd, o->quiet)) {
        case ARRIVAL_ALL_READY:
                *ret_up = up;
                return -1;
        case ARRIVAL_GONE:
                say_its_words(&up.paths);
                r = explain_end(&up);
                close(up.signal_fd);
                return r == EXIT_FINE ? EXIT_NOT_FINE : r; /* stopped from elsewhere before it was up */
        case ARRIVAL_INTERRUPTED:
                fprintf(stderr, "stopping\n");
                break;
        case ARRIVAL_FAILED:
                fprintf(stderr, "stopping what was started\n");
                break;
        }
        r = stop(&up.supervisor, p->cluster, EXIT_NOT_FINE);
        close(up.signal_fd);
        return r;
}

/* All on this machine, or one node of it. */
static int up_here(const struct up_options *o, struct nodes *n) {
        const struct plan *whole = n->plan.plan;
        struct plan part = n->single ? *whole : plan_of_node(whole, n->index[0]);
        struct up up;
        int r = up_start(n->path, &n->plan, &part, o, &up);

        if (r >= 0)
                return r;
        r = EXIT_FINE;
        if (part.gateway_argv && !o->quiet)
                fprintf(stderr, "serving on %.*s\n", SLICE_ARG(part.gateway_url));
        if (o->foreground)
                r = stay(&up, n->plan.cluster);
        close(up.signal_fd);
        return r;
}

/* Until a signal, after which everything is stopped in order. */
static int stay_with(struct nodes *n) {
        struct pollfd fd = {n->interrupt_fd, POLLIN, 0};

        while (poll(&fd, 1, -1) < 0 && errno == EINTR)
                ;
        fprintf(stderr, "stopping\n");
        return fleet_stop(n, NULL, NULL);
}

static int up_everywhere(const struct up_options *o, struct nodes *n) {
        const struct fleet_up_options fo = {o->quiet, o->keep};
        int r = nodes_open(n);

        if (r >= 0)
                return r;
        if (!o->quiet)
                say_starting(n->plan.plan);
        r = fleet_up(n, &fo);
        if (r >= 0)
                return r;
        if (n->plan.plan->gateway_argv && !o->quiet)
                fprintf(stderr, "serving on %.*s\n", SLICE_ARG(n->plan.plan->gateway_url));
        return o->foreground ? stay_with(n) : EXIT_FINE;
}

/* FILE, or what stands in its place. -1 to go on, or an exit code. */
static int find_file(
    struct up_options *o, const struct options_result *parsed, struct arena *arena, const char **ret_path) {
        int r;

        if (parsed->count_positional) {
                *ret_path = parsed->positional[0];
                return -1;
        }
        if (!o->online_dp.dp_size) {
                fprintf(stderr, "baton up: which file? usage: %s\n", up_set.usage);
                return EXIT_USAGE;
        }
        r = online_dp_file(&o->online_dp, arena, ret_path, &o->nodes.node);
        if (r < 0 && !o->quiet)
                fprintf(stderr, "as %s says: `baton status %s --node %s` shows it, `baton down %s --node %s` ends it\n",
                    *ret_path, *ret_path, o->nodes.node, *ret_path, o->nodes.node);
        return r;
}

int cmd_up(int argc, char **argv) {
        struct up_options o = {.online_dp = ONLINE_DP_DEFAULTS};
        struct options_result parsed;
        struct nodes n = {0};
        struct arena arena = {0};
        const char *path;
        int r = cli_options(&up_set, argc, argv, &o, &parsed);

        if (r >= 0)
                return r;
        r = find_file(&o, &parsed, &arena, &path);
        if (r < 0) {
                r = nodes_of_file(path, &o.nodes, &n);
                if (r < 0)
                        r = n.single || o.nodes.node ? up_here(&o, &n) : up_everywhere(&o, &n);
                nodes_close(&n);
        }
        arena_free(&arena);
        options_result_free(&parsed);
        return r;
}
