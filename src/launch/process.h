/* process.h - one supervised process: what it is, what it does, when it is looked at next (private to launch/). */
#pragma once
#include "http/http.h"
#include "launch/launch.h"
#include "launch/rotate.h"
#include "os/os.h"
#include <uv.h>

/* A rank that stayed ready so long begins a new count of restarts when it ends. */
#define STEADY_NS     (60ull * 1000000000)
#define BACKOFF_FIRST (500ull * 1000000)
#define BACKOFF_MAX   (30ull * 1000000000)
/* Probes while starting, once ready; and how long one may take. */
#define PROBE_STARTING_NS (50ull * 1000000)
#define PROBE_READY_NS    (1000ull * 1000000)
#define PROBE_TIMEOUT_MS  2000u
/* So many probes in a row must fail before a ready process is called silent: one lost to a long step is none. */
#define PROBES_SILENT 3u

struct supervisor;
struct peer;

struct process {
        struct supervisor *supervisor;
        const char *name;
        const char *role; /* "prefill", "decode", "gateway" */
        struct slice url;
        struct http_endpoint endpoint;
        /* Ranks of one number live and die together: one alone waits for the others for ever; 0: by itself. */
        uint32_t world;
        const char *const *argv, *const *env;

        enum process_state state;
        struct os_child child; /* pidfd -1: none */
        uv_poll_t *exit_poll;  /* heap: closed asynchronously */
        uv_pipe_t *output;
        struct rotate log;
        struct http_call *probe;
        int probe_status;
        bool restart_wanted; /* stopping, to be started again at once */
        bool world_lost; /* stopping, or waiting, because another of its world has ended: to be started again with it */
        unsigned failed_probes, restarts, restarts_in_row;
        uint64_t since_ns, ready_ns, started_ns; /* of this state; 0: never ready in this life; of this life */
        uint64_t ready_by_ns;                    /* STARTING: ended when it is not ready then */
        uint64_t next_ns;   /* BACKOFF: start again; STARTING, READY: next probe; STOPPING: SIGKILL */
        char last_exit[64]; /* "exit status 1"; empty: never ended */
        uint64_t start_ticks;
        uint64_t log_at; /* size of its log when this life began */
};

/* Starts the process; on failure the reason is in last_exit and the state is BACKOFF when the machine was short of
 * something, else FAILED. */
void process_start(struct process *p, uint64_t now);
/* SIGTERM to it, SIGKILL to its whole group when `grace_ns` are over (in process_tick). No effect on one that does not run, but that a
 * start which was due is not made. */
void process_stop(struct process *p, uint64_t grace_ns, uint64_t now);
/* What is due at `now`: a start, a probe, a kill. */
void process_tick(struct process *p, uint64_t now);
bool process_runs(const struct process *p);    /* has a child */
bool process_settled(const struct process *p); /* READY or FAILED */

/* The supervisor's side. */
struct supervisor {
        const struct supervisor_options *options;
        uv_loop_t loop;
        uv_timer_t tick;
        uv_signal_t on_term, on_int;
        struct http_server *server;
        struct http_client *client;
        struct process *processes;
        size_t count;
        struct peer *peers;
        size_t peer_count;
        struct arena arena;
        bool stopping;
        uint64_t started_ns;
        int lock_fd;
};
/* Whether a process that is to be tried again may start now: not before all of its world have ended and are due. */
bool supervisor_world_is_due(const struct supervisor *s, const struct process *p, uint64_t now);
/* One of a world has ended by itself, here (`gone`) or on another node (NULL): the others are stopped, and start again with
 * it. World 0: nobody. */
void supervisor_world_lost(struct supervisor *s, uint32_t world, const struct process *gone, uint64_t now);
/* The number of a rank's world in a plan; 0: it is on its own. */
uint32_t process_world(const struct plan *plan, const struct plan_rank *rank);
/* A child was started or has ended: write the journal that the next supervisor clears up by. */
void supervisor_children_changed(struct supervisor *s);
