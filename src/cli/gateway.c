/* gateway.c - `baton gateway`: the proxy as a process. SIGTERM and SIGINT drain it, a second one ends it at once. With a
 * cluster file, SIGHUP and a change of the file make its ranks the instances anew. */
#include "gateway/gateway.h"
#include "cli/cli.h"
#include "cluster/cluster.h"
#include "os/os.h"
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* The command line as it was given. */
struct words {
        int argc;
        char **argv;
        const char *file; /* the cluster file among them, or NULL */
};

struct run {
        struct gateway *gateway;
        const struct log *log;
        const struct words *words;
        uv_signal_t signals[3];
        bool draining;
        /* The cluster file, as it was when it was read. */
        uv_fs_event_t watch;
        uv_timer_t settled;
        struct stat seen;
};

static void on_drained(void *context) {
        struct run *run = context;

        for (int i = 0; i < 3; i++)
                uv_close((uv_handle_t *)&run->signals[i], NULL);
        uv_close((uv_handle_t *)&run->watch, NULL);
        uv_close((uv_handle_t *)&run->settled, NULL);
}

static void drain(struct run *run) {
        gateway_drain(run->gateway, on_drained, run);
        run->draining = true;
}

static void on_signal(uv_signal_t *handle, int signal) {
        struct run *run = handle->data;

        log_info(run->log, "%s: %s", signal == SIGINT ? "SIGINT" : "SIGTERM",
            run->draining ? "ending at once" : "no new requests; those in flight end first (again: at once)");
        drain(run);
}

/* ---- the cluster file -------------------------------------------------------------------------------------------------- */

/* `baton gateway FILE …`: the options that the cluster file's plan has for its gateway, then those given. Returns -1 to go
 * on, or the exit code. */
static int take_cluster_file(const struct words *words, struct cli_plan *plan, int *ret_argc, char ***ret_argv) {
        const char *const *planned;
        int planned_count = 0, r;
        char **all;

        r = cli_plan_read(words->file, plan);
        if (r >= 0)
                return r;
        planned = plan->plan->gateway_argv;
        if (!planned) {
                fprintf(stderr, "baton: %s has no gateway; add one, such as `gateway: {port: 8000}`\n", words->file);
                return EXIT_USAGE;
        }
        while (planned[planned_count])
                planned_count++;
        all = arena_array(&plan->arena, (size_t)(planned_count + words->argc), sizeof(*all));
        if (!all)
                return EXIT_UNKNOWN;
        /* planned[0] is the program; planned[1], "gateway", stands where argv[0] did. */
        for (int i = 1; i < planned_count; i++)
                all[i - 1] = (char *)planned[i];
        for (int i = 2; i < words->argc; i++)
                all[planned_count - 1 + i - 2] = words->argv[i];
        *ret_argc = planned_count - 1 + words->argc - 2;
        *ret_argv = all;
        return -1;
}

/* What is wrong with the file is on stderr; the instances stay as they are. */
static void reload(struct run *run) {
        struct gateway_options options;
        struct cli_plan plan = {0};
        struct error e = {0};
        char **argv = NULL;
        int argc = 0, r;

        if (stat(run->words->file, &run->seen) < 0 || take_cluster_file(run->words, &plan, &argc, &argv) >= 0) {
                log_error(run->log, "%s cannot be used: the instances stay as they are", run->words->file);
                cli_plan_free(&plan);
                return;
        }
        gateway_options_default(&options);
        r = gateway_options_parse(argc, argv, &options, &e);
        if (r == 0)
                r = gateway_set_members(run->gateway, options.members, options.member_count, &e);
        if (r < 0)
                log_error(run->log, "%s: %s: the instances stay as they are", run->words->file, error_text(&e, r));
        else
                log_info(run->log, "%s: %zu instances (other options hold from the start on)", run->words->file,
                    options.member_count);
        gateway_options_free(&options);
        cli_plan_free(&plan);
}

static void on_hangup(uv_signal_t *handle, int signal) {
        struct run *run = handle->data;

        if (!run->words->file)
                log_info(run->log, "SIGHUP: there is no cluster file to read again");
        else if (!run->draining)
                reload(run);
}

static void on_settled(uv_timer_t *timer) {
        struct run *run = timer->data;
        struct stat now;

        if (run->draining || stat(run->words->file, &now) < 0)
                return;
        if (now.st_mtim.tv_sec != run->seen.st_mtim.tv_sec || now.st_mtim.tv_nsec != run->seen.st_mtim.tv_nsec ||
            now.st_ino != run->seen.st_ino || now.st_size != run->seen.st_size)
                reload(run);
}

/* A file may be written in several goes. */
#define SETTLE_MS 200

static void on_directory(uv_fs_event_t *handle, const char *name, int events, int status) {
        struct run *run = handle->data;

        uv_timer_start(&run->settled, on_settled, SETTLE_MS, 0);
}

/* Its directory, because editors and config maps put another file in its place. */
static void watch(struct run *run) {
        const char *file = run->words->file, *slash = file ? strrchr(file, '/') : NULL;
        char directory[4096];
        int r;

        if (!file || stat(file, &run->seen) < 0)
                return;
        snprintf(directory, sizeof(directory), "%.*s", slash ? (int)(slash - file + 1) : 1, slash ? file : ".");
        r = uv_fs_event_start(&run->watch, on_directory, directory, 0);
        if (r < 0)
                log_warn(run->log, "%s cannot be watched (%s): SIGHUP reads it again", file, uv_strerror(r));
}

/* ---- the process ---------------------------------------------------------------------------------------------------------- */

/* Can only this machine reach it? */
static bool is_local(const char *host) {
        return !strncmp(host, "127.", 4) || !strcmp(host, "::1") || !strcmp(host, "localhost") ||
               !strncmp(host, "unix:", 5);
}

static void announce(const struct gateway_options *o, const struct log *log, uint16_t port) {
        size_t prefill = 0;

        for (size_t i = 0; i < o->member_count; i++)
                prefill += o->members[i].prefill;
        log_info(log, "listening on %s:%u, connector %s, %zu prefill and %zu decode instances", o->host, port,
            o->connector, prefill, o->member_count - prefill);
        if (o->admin_port < 0 && !o->admin_key && !is_local(o->host))
                log_warn(log,
                    "the admin routes are open to whoever reaches %s:%u, who may then send requests anywhere; "
                    "close them with --admin-key, or give them a listener of their own with --admin-port",
                    o->host, port);
        if (o->admin_port >= 0 && !o->admin_key && o->admin_host && !is_local(o->admin_host))
                log_warn(log,
                    "the admin routes are open to whoever reaches %s:%lld, who may then send requests anywhere; "
                    "close them with --admin-key",
                    o->admin_host, (long long)o->admin_port);
}

static int run_gateway(struct gateway_options *options, const struct words *words) {
        static const struct {
                int number;
                uv_signal_cb run;
        } signals[] = {{SIGTERM, on_signal}, {SIGINT, on_signal}, {SIGHUP, on_hangup}};
        struct run run = {.log = options->log, .words = words};
        struct error e = {0};
        uv_loop_t loop;
        uint16_t port;
        int r, started;

        r = uv_loop_init(&loop);
        if (r < 0)
                return cli_fail(error_set(&e, -EMFILE, "event loop: %s", uv_strerror(r)), &e);
        r = gateway_new(&loop, options, &run.gateway, &e);
        if (r < 0) {
                uv_loop_close(&loop);
                return cli_fail(r, &e);
        }
        for (int i = 0; i < 3; i++) {
                uv_signal_init(&loop, &run.signals[i]);
                run.signals[i].data = &run;
                uv_signal_start(&run.signals[i], signals[i].run, signals[i].number);
        }
        uv_fs_event_init(&loop, &run.watch);
        uv_timer_init(&loop, &run.settled);
        run.watch.data = run.settled.data = &run;
        watch(&run);
        started = gateway_start(run.gateway, &port, &e);
        if (started == 0)
                announce(options, options->log, port);
        else
                drain(&run);
        uv_run(&loop, UV_RUN_DEFAULT);
        gateway_free(run.gateway);
        uv_loop_close(&loop);
        return started == 0 ? EXIT_FINE : cli_fail(started, &e);
}

/* A gateway holds two descriptors for each request and one for each idle connection. */
#define FILES_WANTED 65536

static void warn_ignored(const struct gateway_options *o, const struct log *log) {
        struct buf names = {0};

        for (size_t i = 0; i < o->ignored.count; i++)
                buf_printf(&names, "%s--%s", i ? ", " : "", o->ignored.items[i]);
        if (names.len > 0)
                log_warn(log, "known, without effect here (docs/gateway.md says why): %s", buf_cstr(&names));
        buf_free(&names);
}

static int run_with_options(int argc, char **argv, const struct words *words) {
        struct gateway_options options;
        struct error e = {0};
        struct buf help = {0};
        struct log log;
        enum log_level level;
        uint64_t files;
        int r;

        gateway_options_default(&options);
        r = gateway_options_parse(argc, argv, &options, &e);
        if (r == 1) {
                gateway_options_help(&help);
                gateway_options_free(&options);
                return cli_print(&help, EXIT_FINE);
        }
        if (r == 0 && log_level_parse(slice_str(options.log_level), &level) < 0)
                r = error_set(
                    &e, -EINVAL, "--log-level: `%s` is none of debug, info, warning, error", options.log_level);
        if (r < 0) {
                gateway_options_free(&options);
                return cli_fail(r, &e);
        }
        log = log_to_fd(STDERR_FILENO, level, "gateway");
        options.log = &log;
        warn_ignored(&options, &log);
        files = os_raise_file_limit();
        if (files < FILES_WANTED)
                log_warn(&log, "at most %llu open files: enough for about %llu requests at once (ulimit -n)",
                    (unsigned long long)files, (unsigned long long)files / 3);
        if (options.member_count == 0)
                log_warn(
                    &log, "no instances yet: name them with --prefill and --decode, or add them at /instances/add");
        r = run_gateway(&options, words);
        gateway_options_free(&options);
        return r;
}

int cmd_gateway(int argc, char **argv) {
        const struct words words = {argc, argv, argc > 1 && argv[1][0] != '-' ? argv[1] : NULL};
        struct cli_plan plan = {0};
        int r = -1;

        if (words.file)
                r = take_cluster_file(&words, &plan, &argc, &argv);
        if (r < 0)
                r = run_with_options(argc, argv, &words);
        cli_plan_free(&plan);
        return r;
}
