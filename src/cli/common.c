/* common.c - what the commands share; see cli.h. */
#include "base/file.h"
#include "cli/cli.h"
#include "cluster/cluster.h"
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

int cli_options(const struct option_set *set, int argc, char **argv, void *target, struct options_result *ret_result) {
        struct error e = {0};

        if (options_parse(set, argc, argv, target, ret_result, &e) < 0) {
                fprintf(stderr, "baton %s: %s\n", argv[0], e.text);
                return EXIT_USAGE;
        }
        if (ret_result->help) {
                struct buf b = {0};

                options_help(set, &b);
                options_result_free(ret_result);
                return cli_print(&b, EXIT_FINE);
        }
        return -1;
}

int cli_file_options(
    const struct option_set *set, int argc, char **argv, void *target, struct options_result *ret_result) {
        int r = cli_options(set, argc, argv, target, ret_result);

        if (r >= 0 || ret_result->count_positional)
                return r;
        options_result_free(ret_result);
        fprintf(stderr, "baton %s: which file? usage: %s\n", argv[0], set->usage);
        return EXIT_USAGE;
}

int cli_fail(int code, const struct error *e) {
        fprintf(stderr, "baton: %s\n", error_text(e, code));
        switch (-code) {
        case EINVAL:
        case ENOENT:
        case EISDIR:
        case EFBIG:
        case EALREADY:
        case EEXIST:
                return EXIT_USAGE;
        case EACCES:
        case EPERM:
        case ETIMEDOUT:
                return EXIT_UNKNOWN;
        default:
                return EXIT_NOT_FINE;
        }
}

int cli_print(struct buf *b, int exit_code) {
        fflush(stdout);
        if (!buf_ok(b) || file_write_fd(STDOUT_FILENO, buf_slice(b)) < 0)
                exit_code = EXIT_UNKNOWN;
        buf_free(b);
        return exit_code;
}

bool cli_color(int fd) {
        return isatty(fd) == 1 && !getenv("NO_COLOR");
}

const char *cli_self(struct arena *arena) {
        char path[PATH_MAX];
        ssize_t n = readlink("/proc/self/exe", path, sizeof(path) - 1);

        return n > 0 ? arena_copy(arena, slice_of(path, (size_t)n)).ptr : "baton";
}

struct log cli_log(const char *component) {
        return log_to_fd(STDERR_FILENO, LOG_WARN, component);
}

void cli_say_findings(struct findings *findings, const char *path) {
        struct buf b = {0};

        if (!findings->count)
                return;
        findings_sort(findings);
        findings_write_text(findings, path, cli_color(STDERR_FILENO), &b);
        file_write_fd(STDERR_FILENO, buf_slice(&b));
        buf_free(&b);
}

int cli_plan_read(const char *path, struct cli_plan *ret_plan) {
        struct arena arena = {0};
        int r = cli_plan_read_as(path, cli_self(&arena), ret_plan);

        arena_free(&arena);
        return r;
}

int cli_plan_read_as(const char *path, const char *program, struct cli_plan *ret_plan) {
        struct findings findings = {.arena = &ret_plan->arena};
        struct error e = {0};
        int r;

        *ret_plan = (struct cli_plan){0};
        r = cluster_read(path, &ret_plan->arena, &ret_plan->cluster, &findings, &e);
        if (r == 0) {
                program = arena_copy(&ret_plan->arena, slice_str(program)).ptr;
                r = program ? plan_make(ret_plan->cluster, program, &ret_plan->arena, &ret_plan->plan, &findings)
                            : -ENOMEM;
        }
        cli_say_findings(&findings, path);
        if (r < 0 && findings_count(&findings, SEVERITY_ERROR))
                return EXIT_USAGE;
        return r < 0 ? cli_fail(r, &e) : -1;
}

void cli_plan_free(struct cli_plan *p) {
        arena_free(&p->arena);
}
