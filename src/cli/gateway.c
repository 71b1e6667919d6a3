/* gateway.c - `baton gateway`: the proxy as a process. SIGTERM and SIGINT drain it, a second one ends it at once. */
#include "gateway/gateway.h"
#include "cli/cli.h"
#include "cluster/cluster.h"
#include "os/os.h"
#include <errno.h>
#include <stdio.h>
#include <unistd.h>

struct run {
        struct gateway *gateway;
        const struct log *log;
        uv_signal_t signals[2];
        bool draining;
};

static void on_drained(void *context) {
        struct run *run = context;

        for (int i = 0; i < 2; i++)
                uv_close((uv_handle_t *)&run->signals[i], NULL);
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
        if (!o->admin_key && !is_local(o->host))
                log_warn(log,
                    "the admin routes are open to whoever reaches %s:%u, who may then send requests anywhere; "
                    "close them with --admin-key",
                    o->host, port);
}

static int run_gateway(struct gateway_options *options) {
        struct run run = {.log = options->log};
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
        for (int i = 0; i < 2; i++) {
                uv_signal_init(&loop, &run.signals[i]);
                run.signals[i].data = &run;
                uv_signal_start(&run.signals[i], on_signal, i == 0 ? SIGTERM : SIGINT);
        }
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

/* `baton gateway FILE …`: the options that the cluster file's plan has for its gateway, then those given. Returns -1 to go
 * on, or the exit code. */
static int take_cluster_file(int argc, char **argv, struct cli_plan *plan, int *ret_argc, char ***ret_argv) {
        const char *const *planned;
        int planned_count = 0, r;
        char **all;

        r = cli_plan_read(argv[1], plan);
        if (r >= 0)
                return r;
        planned = plan->plan->gateway_argv;
        if (!planned) {
                fprintf(stderr, "baton: %s has no gateway; add one, such as `gateway: {port: 8000}`\n", argv[1]);
                return EXIT_USAGE;
        }
        while (planned[planned_count])
                planned_count++;
        all = arena_array(&plan->arena, (size_t)(planned_count + argc), sizeof(*all));
        if (!all)
                return EXIT_UNKNOWN;
        /* planned[0] is the program; planned[1], "gateway", stands where argv[0] did. */
        for (int i = 1; i < planned_count; i++)
                all[i - 1] = (char *)planned[i];
        for (int i = 2; i < argc; i++)
                all[planned_count - 1 + i - 2] = argv[i];
        *ret_argc = planned_count - 1 + argc - 2;
        *ret_argv = all;
        return -1;
}

static int run_with_options(int argc, char **argv) {
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
        files = os_raise_file_limit();
        if (files < FILES_WANTED)
                log_warn(&log, "at most %llu open files: enough for about %llu requests at once (ulimit -n)",
                    (unsigned long long)files, (unsigned long long)files / 3);
        if (options.member_count == 0)
                log_warn(
                    &log, "no instances yet: name them with --prefill and --decode, or add them at /instances/add");
        r = run_gateway(&options);
        gateway_options_free(&options);
        return r;
}

int cmd_gateway(int argc, char **argv) {
        struct cli_plan plan = {0};
        int r = -1;

        if (argc > 1 && argv[1][0] != '-')
                r = take_cluster_file(argc, argv, &plan, &argc, &argv);
        if (r < 0)
                r = run_with_options(argc, argv);
        cli_plan_free(&plan);
        return r;
}
