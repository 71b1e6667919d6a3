/* remote.h - the nodes of a cluster, asked from one place.
 *
 * Each node is asked through `baton node`: started here for this machine, through the system's ssh for others. Nothing that
 * depends on a cluster file ever stands in a command line over there, where a shell would read it: the remote command is two
 * fixed words, and what is asked goes over its standard input as data.
 *
 * Per destination there is one ssh master (its control socket in a private directory that dies with `struct remote`); the
 * user's ssh_config holds. Nodes are connected to when they are first asked, side by side. A node that is lost stays lost, with
 * the reason; the others go on. One thread. */
#pragma once
#include "base/arena.h"
#include "base/buf.h"
#include "base/error.h"

struct remote_target {
        const char *name; /* of the node */
        const char *ssh;  /* destination for ssh(1); NULL: this machine */
};
struct remote_options {
        const char *self;   /* this program, for this machine */
        const char *binary; /* this program on the others; only what os_ssh_plain_word() takes */
        const struct remote_target *targets;
        size_t count;
};

/* Why a node cannot be asked. */
struct remote_trouble {
        const char *kind; /* os_ssh_trouble's, or "missing", "version", "node" */
        char cause[1500], cure[400];
};

struct remote;
/* Options and targets are borrowed until remote_free(). Nothing is started yet. 0, or a negative errno with a text. */
int remote_new(const struct remote_options *options, struct remote **ret_remote, struct error *e);
void remote_free(struct remote *r); /* ends the connections; what runs over there stays. NULL is fine */

/* One request to one node.
 *
 * A request is a JSON object with "op"; the node keeps nothing but what "open" told it:
 *   {"op":"open","file":PATH,"directory":PATH,"node":NAME or null,"text":TEXT}
 *       the cluster file that all else is about, by its real path over here and its contents; before everything else
 *   {"op":"up"}             starts the supervisor of the node, in a session of its own
 *   {"op":"status","load":BOOL}  {"up":BOOL,"status":{… as GET /status …},"load":{NAME:{"running":…,"waiting":…,"kv":…,
 *                           "version":…}}}; load and version are those of ranks that answer
 *   {"op":"stop"}           {"was_up":BOOL}, when the supervisor has ended
 *   {"op":"restart"|"halt"|"start","name":NAME}
 *   {"op":"logs","wait_ms":N,"of":[{"name":NAME,"lines":N} or {"name":NAME,"at":OFFSET}]}
 *                           {"logs":[{"name":NAME,"at":OFFSET or -1,"text":TEXT}]}: the last lines, or what came after;
 *                           with wait_ms it waits so long for something to come
 *   {"op":"gateway","path":PATH,"body":TEXT or null}  {"status":N,"answer":TEXT} of the gateway that lives there; POST with a
 *                           body, else GET; the admin key of the cluster file is used
 * An answer is a JSON object; one with "error" (a text) and "code" (a negative errno) tells that it was not done. */
struct remote_call {
        size_t node;          /* index into the targets */
        struct slice request; /* one line */
        struct buf answer;    /* empty when there is none: see remote_trouble(), or no time was left; buf_free() it */
};
/* Put the requests, at most one a node, and wait for the answers, `timeout_ms` at most (connecting has a time of its own).
 * Returns 0 when none is waited for any more, -EINTR when `interrupt_fd` (-1: none) became readable, -ETIMEDOUT, -ENOMEM. An
 * answer that comes later is dropped, and a request of a later call is read by the node when it is done with this one. */
int remote_ask(struct remote *r, struct remote_call *calls, size_t count, unsigned timeout_ms, int interrupt_fd);
/* NULL: the node was not lost. */
const struct remote_trouble *remote_trouble(const struct remote *r, size_t node);
/* For people: "node: cause" and the cure below it. */
void remote_write_trouble(const struct remote *r, size_t node, struct buf *out);

/* What a node says first: {"baton":VERSION}, one line. */
#define REMOTE_LINE_MAX (16u << 20) /* a cluster file of 4 MiB, as JSON; status of 1,024 ranks is 0.5 MiB */
