/* nodes.h - what `up`, `down`, `status`, `logs` and `restart` share: the nodes of a cluster file, and asking them.
 *
 * When all ranks are for one machine there is one supervisor and one "node", of no name, asked here. Otherwise each node that
 * has a rank or the gateway has a supervisor of its own, and is asked over ssh, or here when its address is this machine's.
 * With --node it is that node alone, asked here. */
#pragma once
#include "base/json.h"
#include "cli/cli.h"
#include "cluster/cluster.h"
#include "launch/launch.h"
#include "launch/remote.h"

struct nodes_options {
        const char *node, *remote_baton;
};
/* Rows for a command's table: OFFSET is that of its struct nodes_options. */
#define NODES_OPTIONS(OFFSET)                                                                                          \
        {"node", 0, OPTION_STRING, (OFFSET) + offsetof(struct nodes_options, node), "NAME",                            \
            "this machine is that node, and only it is meant"},                                                        \
        {                                                                                                              \
                "remote-baton", 0, OPTION_STRING, (OFFSET) + offsetof(struct nodes_options, remote_baton), "PATH",     \
                    "where baton is on nodes reached over ssh; default: supervise.baton, else in the PATH"             \
        }

struct nodes {
        const char *path; /* as the user wrote it */
        struct cli_plan plan;
        struct remote_target *targets;
        uint32_t *index; /* of each target in cluster.nodes */
        size_t count;
        bool single; /* one supervisor for all of the file */
        struct remote_options options;
        struct remote *remote;
        struct remote_call *calls; /* one a target, for nodes_ask_all */
        int interrupt_fd;          /* readable on SIGINT, SIGTERM, SIGHUP, which are blocked from nodes_open on; -1 */
};

/* Read and plan FILE and find its nodes. Nothing is started or asked yet. Returns -1 to go on, or the exit code after having
 * said why. Free with nodes_close in any case. */
int nodes_of_file(const char *path, const struct nodes_options *o, struct nodes *ret_nodes);
/* A descriptor that is readable on SIGINT, SIGTERM and SIGHUP, which are blocked from now on. */
int nodes_block_signals(void);
/* Connect to all and tell them the file. Those that are lost are in remote_trouble(). -1, or an exit code: nothing can be asked
 * (the reason is said), or the user has interrupted it (EXIT_NOT_FINE, silently). */
int nodes_open(struct nodes *n);
void nodes_close(struct nodes *n);

size_t nodes_lost(const struct nodes *n);
void nodes_say_lost(const struct nodes *n); /* each with cause and cure, to stderr */
/* "d0: " in front of what is said of a node; "" where there is only one. */
const char *nodes_prefix(const struct nodes *n, size_t node);

/* Put one request to `node`, or to every node with yes[i] (NULL: to all). Answers stand in n->calls[i].answer until the next
 * call, empty where there is none. Returns 0 or remote_ask's. */
int nodes_ask(struct nodes *n, size_t node, struct slice request, unsigned timeout_ms);
int nodes_ask_all(struct nodes *n, const bool *yes, struct slice request, unsigned timeout_ms);
/* The answer parsed: NULL when there is none, it is no JSON, or it is an error, which is then in *e (with *ret_code, when not
 * NULL, its errno). Free the document. */
yyjson_doc *nodes_answer(const struct nodes *n, size_t node, int *ret_code, struct error *e);
/* The target a process lives on, by its name ("d0.3", "gateway"); n->count: none. */
size_t nodes_of_process(const struct nodes *n, struct slice name);
/* Wait so long, or until a signal of interrupt_fd: then true. */
bool nodes_pause(const struct nodes *n, unsigned ms);
