/* cli.h - what the commands share. One file per command; main.c has the table.
 *
 * Results go to stdout, progress and messages to stderr. Exit codes: 0 fine, 1 the thing asked about is not fine, 2 wrong
 * use or bad input, 3 could not find out (timeout, no permission). */
#pragma once
#include "base/arena.h"
#include "base/buf.h"
#include "base/error.h"
#include "base/log.h"
#include "base/options.h"

enum { EXIT_FINE = 0, EXIT_NOT_FINE = 1, EXIT_USAGE = 2, EXIT_UNKNOWN = 3 };

struct cli_command {
        const char *name;
        const char *summary;               /* one line; NULL: not listed (internal) */
        int (*run)(int argc, char **argv); /* argv[0] is the command's name */
};

int cmd_chat(int argc, char **argv);
int cmd_check(int argc, char **argv);
int cmd_complete(int argc, char **argv);
int cmd_down(int argc, char **argv);
int cmd_explain(int argc, char **argv);
int cmd_gateway(int argc, char **argv);
int cmd_init(int argc, char **argv);
int cmd_logs(int argc, char **argv);
int cmd_node(int argc, char **argv);
int cmd_plan(int argc, char **argv);
int cmd_quantize(int argc, char **argv);
int cmd_ranktable(int argc, char **argv);
int cmd_restart(int argc, char **argv);
int cmd_serve(int argc, char **argv);
int cmd_status(int argc, char **argv);
int cmd_supervise(int argc, char **argv);
int cmd_top(int argc, char **argv);
int cmd_up(int argc, char **argv);
int cmd_verify(int argc, char **argv);
int cmd_warmup(int argc, char **argv);

/* Parse options as options_parse does. Returns -1 to go on, else the exit code to end with: --help was printed (0), or
 * wrong use was explained (2). On -1 the caller frees *ret_result. */
int cli_options(const struct option_set *set, int argc, char **argv, void *target, struct options_result *ret_result);
/* The same for a command about a cluster file: on -1 ret_result->positional[0] is its path. */
int cli_file_options(
    const struct option_set *set, int argc, char **argv, void *target, struct options_result *ret_result);
/* "baton: …" on stderr; returns the exit code that fits a negative errno. */
int cli_fail(int code, const struct error *e);
/* Write to stdout whole; a closed pipe or full disk gives EXIT_UNKNOWN. Frees the buffer. */
int cli_print(struct buf *b, int exit_code);
bool cli_color(int fd); /* a terminal, and NO_COLOR is not set */
/* This program's own path, for starting itself. */
const char *cli_self(struct arena *arena);
/* Messages to stderr, from level `warn` on. */
struct log cli_log(const char *component);

/* ---- cluster files -------------------------------------------------------------------------------------------------- */

struct cluster;
struct plan;
struct findings;

/* A cluster file read, checked and planned, with findings printed to stderr as they are for people. */
struct cli_plan {
        struct arena arena;
        struct cluster *cluster;
        struct plan *plan;
};
/* Returns -1 to go on, or the exit code. Free with cli_plan_free in any case. */
int cli_plan_read(const char *path, struct cli_plan *ret_plan);
/* The same with the name by which others start baton: "baton", which they find in their PATH. */
int cli_plan_read_as(const char *path, const char *program, struct cli_plan *ret_plan);
/* Findings to stderr, sorted, as they are for people; none print nothing. */
void cli_say_findings(struct findings *findings, const char *path);
void cli_plan_free(struct cli_plan *p);
