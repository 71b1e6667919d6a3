/* launch.h - starting, watching and ending the processes of a plan on this machine, and warming them up.
 *
 * One supervisor process per cluster file and machine owns the ranks and the gateway: it starts them as children that die
 * with it, keeps their output in rotated files, asks /health of each, starts again what ended, and stops them in order. It
 * is reached over a unix socket in its state directory (plain HTTP, one path per verb), which is all that `baton up`,
 * `down`, `status` and `logs` do. A lock in that directory makes it the only one; a journal of what it started lets the
 * next one clear what a killed one left.
 *
 * State directory: supervise.state_dir of the cluster file, else $XDG_RUNTIME_DIR/baton/HASH, else /tmp/baton-UID/HASH,
 * HASH being of the file's real path. A supervisor of one node alone has NODE below state_dir or /tmp/baton-UID/HASH (what
 * $XDG_RUNTIME_DIR names ends with the session, and a supervisor started over ssh must not). Inside: lock, control.sock,
 * journal.json, supervisor.log, logs/NAME.log[.N].
 *
 * Of several machines each has a supervisor of its own, for its node; remote.h reaches them. */
#pragma once
#include "base/log.h"
#include "cluster/cluster.h"

/* ---- state directory ------------------------------------------------------------------------------------------------ */

struct launch_paths {
        char dir[256], lock[300], socket[300], journal[300], supervisor_log[300], logs[300], copy[300];
};

/* Work out the paths of the supervisor of `node` (empty: of all of the file's ranks); with `create`, make the directories
 * (0700) and check that they are this user's. */
int launch_paths(
    const struct cluster *c, struct slice node, bool create, struct launch_paths *ret_paths, struct error *e);

/* So long an ordered stop may take: gateway, decode and prefill ranks one after the other, each with its own grace. */
unsigned launch_stop_ms(const struct cluster *c);

/* ---- the supervisor ------------------------------------------------------------------------------------------------- */

enum process_state {
        PROCESS_WAITING,  /* its turn has not come */
        PROCESS_STARTING, /* runs, does not answer /health yet */
        PROCESS_READY,
        PROCESS_SILENT,  /* was ready, does not answer now */
        PROCESS_BACKOFF, /* ended, will be started again */
        PROCESS_FAILED,  /* given up: see its last words */
        PROCESS_STOPPING,
        PROCESS_STOPPED,
};
const char *process_state_name(enum process_state s);

struct supervisor_options {
        const struct plan *plan;  /* what it starts */
        const struct plan *whole; /* of which `plan` is one node's part, see plan_of_node(); NULL: none */
        const struct launch_paths *paths;
        const struct log *log;
};

/* Run until told to stop (control socket, SIGTERM or SIGINT) and everything has ended. Returns 0, or with a text
 * -EALREADY (another one holds the lock), -EADDRINUSE (a planned port is taken: nothing was started), -ENOMEM, … */
int supervisor_run(const struct supervisor_options *options, struct error *e);

/* ---- talking to it -------------------------------------------------------------------------------------------------- */

/* One exchange with the supervisor, waiting at most `timeout_ms`. Appends the JSON answer. -ENOENT or -ECONNREFUSED when
 * none runs, -ETIMEDOUT, -EPROTO (an error answer; e has its text). Paths:
 *   GET  /status          {"pid":…,"file":…,"digest":…,"since_s":…,"stopping":…,"processes":[…]}
 *   POST /stop            begins an ordered stop
 *   POST /restart/NAME    stops and starts one process; one whose turn has not come goes on waiting
 *   POST /halt/NAME       stops one process, which then stays so
 *   POST /start/NAME      starts one that is stopped, given up or waits to be tried again */
int launch_call(const struct launch_paths *paths, const char *method, const char *path, unsigned timeout_ms,
    struct buf *ret_answer, struct error *e);

/* A process as /status tells it. */
struct process_status {
        struct slice name, role, url, last_exit;
        struct slice said, cause,
            cure; /* of one that has ended and does not run: its telling line; cause and cure are empty
                                           where the line is not known */
        enum process_state state;
        int64_t pid, restarts, since_ms, ready_ms,
            retry_ms; /* ready_ms: from start to ready, -1; retry_ms: until the next try */
};
struct launch_status {
        int64_t pid;
        bool stopping;
        struct slice digest;
        struct process_status *processes;
        size_t count;
};
int launch_status_parse(struct slice json, struct arena *arena, struct launch_status *ret_status, struct error *e);

/* The last lines (at most `lines`, 64 KiB) that a process wrote. */
int launch_last_words(const struct launch_paths *paths, struct slice name, unsigned lines, struct buf *out);
/* What it wrote from byte `from` of its log on, 64 KiB from the end at most. */
int launch_words_since(const struct launch_paths *paths, struct slice name, uint64_t from, struct buf *out);

/* The line that tells most of why a process ended, and what is known of such lines. Pure; `line` is a view of `words`. */
#define LAUNCH_LINE_MAX 500
struct launch_cause {
        struct slice line;        /* empty: it said nothing */
        const char *cause, *cure; /* NULL: not a known one */
};
struct launch_cause launch_explain(struct slice words);

/* ---- a node's end ---------------------------------------------------------------------------------------------------- */

/* What `baton node` does: read requests from `in` (remote.h), one JSON object a line, answer each on `out` in one line, until
 * `in` ends. `self` is this program, which supervisors are started with. Returns 0 or the error of reading or writing. */
int launch_node(int in, int out, const char *self);

/* ---- warm-up -------------------------------------------------------------------------------------------------------- */

struct warmup_options {
        const char *const *prefill, *const *decode; /* URLs; with no prefill, decode ranks are warmed on their own */
        size_t prefill_count, decode_count;
        const char *model;     /* served name, NULL: the server's own */
        unsigned max_prompt;   /* longest prompt in tokens to try */
        unsigned max_rounds;   /* 0: 10 */
        double steady_percent; /* a round's TTFT within so much of the median of the last three, 0: 10 */
        unsigned request_ms;   /* deadline of one request, 0: 120 s */
        const char *api_key;
        const struct log *log;
        void (*progress)(void *context, const char *line); /* NULL: silent */
        void *context;
};
struct warmup_report {
        unsigned prefills, pairs_done, pairs, rounds;
        bool steady;
        double ttft_ms, spread_percent; /* of the last round */
};
/* Blocks. 0, or the first failure with a text that names rank, pair and reason. Every pair is closed: a prefill that was
 * made is always followed by its decode leg, so that no KV is left behind. */
int launch_warmup(const struct warmup_options *options, struct warmup_report *ret_report, struct error *e);
