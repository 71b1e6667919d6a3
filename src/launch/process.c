/* process.c - the life of one supervised process: waiting, starting, ready, silent, backing off, failed, stopping, stopped.
 *
 * Every change of state goes through set_state(). Time is an argument; the clock is read in callbacks only. */
#include "launch/process.h"
#include "base/clock.h"
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

static const char *const state_names[] = {
    "waiting", "starting", "healthy", "silent", "back-off", "failed", "stopping", "stopped"};

const char *process_state_name(enum process_state s) {
        return state_names[s];
}

bool process_runs(const struct process *p) {
        return p->child.pidfd >= 0;
}

bool process_settled(const struct process *p) {
        return p->state == PROCESS_READY || p->state == PROCESS_FAILED;
}

static void set_state(struct process *p, enum process_state state, uint64_t now) {
        if (p->state != state) {
                log_debug(
                    p->supervisor->options->log, "%s: %s after %s", p->name, state_names[state], state_names[p->state]);
                p->state = state;
                p->since_ns = now;
        }
}

/* ---- its output ----------------------------------------------------------------------------------------------------- */

static void give_buffer(uv_handle_t *handle, size_t suggested, uv_buf_t *ret_buf) {
        static _Thread_local char buffer[65536]; /* used up before the next read */

        (void)handle;
        (void)suggested;
        *ret_buf = uv_buf_init(buffer, sizeof(buffer));
}

static void free_handle(uv_handle_t *handle) {
        free(handle);
}

static void on_output(uv_stream_t *stream, ssize_t n, const uv_buf_t *buf) {
        struct process *p = stream->data;

        if (n > 0)
                rotate_write(&p->log, slice_of(buf->base, (size_t)n));
        else if (n < 0) {
                if ((uv_stream_t *)p->output == stream)
                        p->output = NULL;
                uv_close((uv_handle_t *)stream, free_handle);
        }
}

static int watch_output(struct process *p, int fd) {
        uv_pipe_t *pipe = malloc(sizeof(*pipe));
        int r;

        if (!pipe)
                return -ENOMEM;
        r = uv_pipe_init(&p->supervisor->loop, pipe, 0);
        if (r < 0) {
                free(pipe);
                return r;
        }
        pipe->data = p;
        r = uv_pipe_open(pipe, fd);
        if (r == 0)
                r = uv_read_start((uv_stream_t *)pipe, give_buffer, on_output);
        if (r < 0) {
                uv_close((uv_handle_t *)pipe, free_handle);
                return r;
        }
        p->output = pipe;
        return 0;
}

/* ---- its end -------------------------------------------------------------------------------------------------------- */

static void stop_probe(struct process *p) {
        if (p->probe)
                http_call_abort(p->probe);
}

static void give_up(struct process *p, uint64_t now) {
        log_error(p->supervisor->options->log, "%s: %s; it is given up", p->name, p->last_exit);
        set_state(p, PROCESS_FAILED, now);
}

/* After a pause that doubles, and so often as the cluster file allows. */
static void try_again(struct process *p, uint64_t now) {
        const struct cluster *c = p->supervisor->options->plan->cluster;
        uint64_t delay = BACKOFF_FIRST;

        if (p->ready_ns && now - p->ready_ns > STEADY_NS)
                p->restarts_in_row = 0;
        if (p->restarts_in_row >= (uint64_t)c->supervise.restarts) {
                give_up(p, now);
                return;
        }
        for (unsigned i = 0; i < p->restarts_in_row && delay < BACKOFF_MAX; i++)
                delay *= 2;
        p->restarts_in_row++;
        p->next_ns = now + (delay < BACKOFF_MAX ? delay : BACKOFF_MAX);
        log_warn(p->supervisor->options->log, "%s: %s; starting it again", p->name, p->last_exit);
        set_state(p, PROCESS_BACKOFF, now);
}

/* It ended by itself. Status 2 is baton's word for wrong use or input: trying the same again cannot help. */
static void after_unwanted_exit(struct process *p, const struct os_child_exit *ended, uint64_t now) {
        if (!ended->signaled && ended->code == 2)
                give_up(p, now);
        else
                try_again(p, now);
        supervisor_world_lost(p->supervisor, p->world, p, now);
}

/* It was stopped because another of its world had ended. */
static void after_lost_world(struct process *p, uint64_t now) {
        snprintf(p->last_exit, sizeof(p->last_exit), "stopped with its group");
        p->next_ns = now;
        set_state(p, PROCESS_BACKOFF, now);
}

static void on_child_exit(uv_poll_t *poll, int status, int events) {
        struct process *p = poll->data;
        struct os_child_exit ended;
        uint64_t now = clock_mono_ns();

        (void)status;
        (void)events;
        /* Its own children go with it; as long as it is not reaped the group's number is still its own. */
        os_child_kill_group(&p->child, SIGKILL);
        uv_poll_stop(poll);
        if (os_child_reap(&p->child, false, &ended) < 0) {
                uv_poll_start(poll, UV_READABLE, on_child_exit);
                return;
        }
        uv_close((uv_handle_t *)poll, free_handle);
        p->exit_poll = NULL;
        stop_probe(p);
        os_child_exit_text(&ended, p->last_exit, sizeof(p->last_exit));
        supervisor_children_changed(p->supervisor);
        if (p->state != PROCESS_STOPPING)
                after_unwanted_exit(p, &ended, now);
        else if (p->restart_wanted && !p->supervisor->stopping) {
                p->restart_wanted = false;
                process_start(p, now);
        } else if (p->world_lost && !p->supervisor->stopping)
                after_lost_world(p, now);
        else
                set_state(p, PROCESS_STOPPED, now);
}

static int watch_exit(struct process *p) {
        uv_poll_t *poll = malloc(sizeof(*poll));
        int r;

        if (!poll)
                return -ENOMEM;
        r = uv_poll_init(&p->supervisor->loop, poll, p->child.pidfd);
        if (r < 0) {
                free(poll);
                return r;
        }
        poll->data = p;
        r = uv_poll_start(poll, UV_READABLE, on_child_exit);
        if (r < 0) {
                uv_close((uv_handle_t *)poll, free_handle);
                return r;
        }
        p->exit_poll = poll;
        return 0;
}

/* ---- its start ------------------------------------------------------------------------------------------------------ */

static int start_child(struct process *p, struct error *e) {
        struct os_child_options o = {
            .argv = p->argv, .env = p->env, .stdin_fd = -1, .own_group = true, .death_signal = SIGKILL};
        int fds[2], r;

        if (pipe2(fds, O_CLOEXEC) < 0)
                return error_set(e, -errno, "cannot make a pipe: %s", strerror(errno));
        fcntl(fds[0], F_SETFL, O_NONBLOCK);
        o.stdout_fd = o.stderr_fd = fds[1];
        r = os_child_start(&o, &p->child, e);
        close(fds[1]);
        if (r < 0) {
                p->child.pidfd = -1;
                close(fds[0]);
                return r;
        }
        r = watch_output(p, fds[0]);
        if (r == 0)
                r = watch_exit(p);
        if (r < 0) { /* out of memory: a process that cannot be watched must not run */
                struct os_child_exit ended;

                os_child_kill_group(&p->child, SIGKILL);
                os_child_reap(&p->child, true, &ended);
                return error_set(e, r, "cannot watch it: %s", strerror(-r));
        }
        os_process_start_time(p->child.pid, &p->start_ticks);
        supervisor_children_changed(p->supervisor);
        return 0;
}

/* Is the machine short of something that may be there again in a moment? */
static bool may_pass(int error) {
        return error == -EAGAIN || error == -ENOMEM || error == -EMFILE || error == -ENFILE || error == -ETXTBSY;
}

void process_start(struct process *p, uint64_t now) {
        const struct cluster *c = p->supervisor->options->plan->cluster;
        struct error e = {0};
        int r;

        if (p->state == PROCESS_BACKOFF)
                p->restarts++;
        p->ready_ns = 0;
        p->world_lost = false;
        p->failed_probes = 0;
        p->started_ns = now;
        p->ready_by_ns = now + (uint64_t)c->supervise.ready_seconds * NS_PER_S;
        p->next_ns = now + PROBE_STARTING_NS;
        p->log_at = p->log.size;
        r = start_child(p, &e);
        if (r == 0) {
                set_state(p, PROCESS_STARTING, now);
                return;
        }
        snprintf(p->last_exit, sizeof(p->last_exit), "%.60s", e.text);
        rotate_write(&p->log, slice_str(e.text));
        rotate_write(&p->log, SLICE_LIT("\n"));
        if (may_pass(r))
                try_again(p, now);
        else
                give_up(p, now);
}

void process_stop(struct process *p, uint64_t grace_ns, uint64_t now) {
        stop_probe(p);
        if (!process_runs(p)) {
                set_state(p, PROCESS_STOPPED, now);
                return;
        }
        if (p->state == PROCESS_STOPPING)
                return;
        p->next_ns = now + grace_ns;
        os_child_signal(&p->child, SIGTERM);
        set_state(p, PROCESS_STOPPING, now);
}

/* ---- its health ----------------------------------------------------------------------------------------------------- */

static void probe_result(struct process *p, bool good, uint64_t now) {
        p->next_ns = now + (p->state == PROCESS_STARTING ? PROBE_STARTING_NS : PROBE_READY_NS);
        if (good) {
                p->failed_probes = 0;
                if (!p->ready_ns)
                        p->ready_ns = now;
                if (p->state == PROCESS_STARTING || p->state == PROCESS_SILENT)
                        set_state(p, PROCESS_READY, now);
        } else if (p->state == PROCESS_READY && ++p->failed_probes >= PROBES_SILENT) {
                log_warn(p->supervisor->options->log, "%s does not answer %.*s/health", p->name, SLICE_ARG(p->url));
                set_state(p, PROCESS_SILENT, now);
        }
}

static void on_probe_head(struct http_call *call, const struct http_response_head *head, void *user) {
        (void)call;
        ((struct process *)user)->probe_status = head->status;
}

static void on_probe_end(struct http_call *call, enum http_failure failure, const char *why, void *user) {
        struct process *p = user;
        bool good = failure == HTTP_OK && p->probe_status == 200;

        (void)call;
        (void)why;
        p->probe = NULL;
        if (p->state == PROCESS_STARTING || p->state == PROCESS_READY || p->state == PROCESS_SILENT)
                probe_result(p, good, clock_mono_ns());
}

static void begin_probe(struct process *p, uint64_t now) {
        static const struct http_call_callbacks callbacks = {.on_head = on_probe_head, .on_end = on_probe_end};
        struct http_request request = {.method = HTTP_METHOD_GET,
            .target = SLICE_LIT("/health"),
            .deadlines = {.connect_ms = PROBE_TIMEOUT_MS, .total_ms = PROBE_TIMEOUT_MS},
            .retry_stale = true};

        if (http_call_start(p->supervisor->client, &p->endpoint, &request, &callbacks, p, &p->probe) < 0)
                p->next_ns = now + PROBE_READY_NS;
}

void process_tick(struct process *p, uint64_t now) {
        switch (p->state) {
        case PROCESS_STARTING:
                if (now >= p->ready_by_ns) {
                        log_error(p->supervisor->options->log, "%s is not ready after %lld s and is ended", p->name,
                            (long long)p->supervisor->options->plan->cluster->supervise.ready_seconds);
                        os_child_kill_group(&p->child, SIGKILL);
                        p->ready_by_ns = UINT64_MAX; /* its end is awaited now */
                        return;
                }
                /* fall through */
        case PROCESS_READY:
        case PROCESS_SILENT:
                if (!p->probe && now >= p->next_ns)
                        begin_probe(p, now);
                return;
        case PROCESS_BACKOFF:
                if (now >= p->next_ns && supervisor_world_is_due(p->supervisor, p, now))
                        process_start(p, now);
                return;
        case PROCESS_STOPPING:
                if (now >= p->next_ns) {
                        log_warn(p->supervisor->options->log, "%s does not stop and is killed", p->name);
                        os_child_kill_group(&p->child, SIGKILL);
                        p->next_ns = now + NS_PER_S;
                }
                return;
        default:
                return;
        }
}
