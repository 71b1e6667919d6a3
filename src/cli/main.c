/* main.c - the baton command: finds the subcommand and hands over. */
#include "cli/cli.h"
#include "os/os.h"
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

static int cmd_help(int argc, char **argv);
static int cmd_version(int argc, char **argv);

static const struct cli_command commands[] = {
    {"serve", "serve a model on CPUs over the OpenAI API", cmd_serve},
    {"init", "write a commented cluster file for a topology", cmd_init},
    {"check", "lint a cluster file before anything starts", cmd_check},
    {"plan", "show what follows from a cluster file: ranks, ports, commands", cmd_plan},
    {"verify", "ask all NPUs and hosts whether they are well, and ping between them", cmd_verify},
    {"ranktable", "write the ranktable", cmd_ranktable},
    {"up", "start and supervise the ranks and the gateway of a cluster file", cmd_up},
    {"down", "stop them in order", cmd_down},
    {"status", "show ranks, health and load", cmd_status},
    {"logs", "show what ranks wrote", cmd_logs},
    {"restart", "stop and start a rank, a group of ranks, or the gateway", cmd_restart},
    {"gateway", "spread requests over prefill and decode instances", cmd_gateway},
    {"top", "show what a gateway is doing: load, latency, instances", cmd_top},
    {"warmup", "drive every rank and every P→D pair until latency is steady", cmd_warmup},
    {"quantize", "make an int8 (Ascend W8A8) or fp8 copy of a checkpoint", cmd_quantize},
    {"chat", "talk with a model folder or a server from the terminal", cmd_chat},
    {"complete", "continue a text", cmd_complete},
    {"explain", "the rule behind a code such as D03", cmd_explain},
    {"version", "print the version", cmd_version},
    {"help", "this list, or the help of a command", cmd_help},
    {"supervise", NULL, cmd_supervise},
    {"node", NULL, cmd_node},
};
#define COMMAND_COUNT (sizeof(commands) / sizeof(*commands))

static void list_commands(FILE *to) {
        fprintf(to,
            "usage: baton COMMAND [arguments]\n\n"
            "Serves DeepSeek-class models with prefill and decode on separate engines: checks, plans, launches and\n"
            "fronts the ranks, and serves a model itself on CPUs.\n\n");
        for (size_t i = 0; i < COMMAND_COUNT; i++)
                if (commands[i].summary)
                        fprintf(to, "  %-10s %s\n", commands[i].name, commands[i].summary);
        fprintf(to, "\n`baton COMMAND --help` tells more.\n");
}

static const struct cli_command *find_command(const char *name) {
        for (size_t i = 0; i < COMMAND_COUNT; i++)
                if (!strcmp(commands[i].name, name))
                        return &commands[i];
        return NULL;
}

static int unknown_command(const char *name) {
        const char *names[COMMAND_COUNT];
        size_t count = 0;
        const char *nearest;

        for (size_t i = 0; i < COMMAND_COUNT; i++)
                if (commands[i].summary)
                        names[count++] = commands[i].name;
        nearest = text_nearest(slice_str(name), names, count);
        fprintf(stderr, "baton: unknown command `%s`%s%s%s; `baton help` lists them\n", name,
            nearest ? ", did you mean `" : "", nearest ? nearest : "", nearest ? "`?" : "");
        return EXIT_USAGE;
}

static int cmd_help(int argc, char **argv) {
        const struct cli_command *c = argc > 1 ? find_command(argv[1]) : NULL;
        char *help_argv[] = {argc > 1 ? argv[1] : NULL, "--help", NULL};

        if (argc > 1 && !c)
                return unknown_command(argv[1]);
        if (c && c->run != cmd_help && c->run != cmd_version)
                return c->run(2, help_argv);
        list_commands(stdout);
        return EXIT_FINE;
}

static int cmd_version(int argc, char **argv) {
        (void)argc;
        (void)argv;
        printf("baton %s\n", BATON_VERSION);
        return EXIT_FINE;
}

int main(int argc, char **argv) {
        const struct cli_command *c;
        int r;

        os_ignore_sigpipe();
        if (argc < 2) {
                list_commands(stderr);
                return EXIT_USAGE;
        }
        if (!strcmp(argv[1], "--help") || !strcmp(argv[1], "-h"))
                return cmd_help(1, argv);
        if (!strcmp(argv[1], "--version") || !strcmp(argv[1], "-V"))
                return cmd_version(1, argv);
        c = find_command(argv[1]);
        if (!c)
                return unknown_command(argv[1]);
        r = c->run(argc - 1, argv + 1);
        if (fflush(stdout) != 0 && r == EXIT_FINE)
                r = EXIT_UNKNOWN;
        return r;
}
