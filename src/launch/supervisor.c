/* supervisor.c - the one process that owns all others of a cluster file on this machine: order of start and stop, journal,
 * lock, control socket. */
#include "base/clock.h"
#include "base/json.h"
#include "launch/control.h"
#include "launch/peers.h"
#include "launch/process.h"
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/file.h>
#include <sys/syscall.h>
#include <unistd.h>

#define TICK_BUSY_MS 50u /* something starts or stops */
#define TICK_IDLE_MS 250u

/* ---- lock and journal ----------------------------------------------------------------------------------------------- */

static int take_lock(struct supervisor *s, struct error *e) {
        char pid[32];
        int n;

        s->lock_fd = open(s->options->paths->lock, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
        if (s->lock_fd < 0)
                return error_set(e, -errno, "cannot open %s: %s", s->options->paths->lock, strerror(errno));
        if (flock(s->lock_fd, LOCK_EX | LOCK_NB) < 0) {
                ssize_t got = pread(s->lock_fd, pid, sizeof(pid) - 1, 0);

                pid[got > 0 ? got : 0] = 0;
                return error_set(e, errno == EWOULDBLOCK ? -EALREADY : -errno,
                    "this cluster file is up already (supervisor pid %.*s): `baton status` shows it, `baton down` ends "
                    "it",
                    (int)strcspn(pid, "\n"), pid);
        }
        n = snprintf(pid, sizeof(pid), "%d\n", (int)getpid());
        if (ftruncate(s->lock_fd, 0) < 0 || pwrite(s->lock_fd, pid, (size_t)n, 0) != n)
                return error_set(e, -EIO, "cannot write %s", s->options->paths->lock);
        return 0;
}

void supervisor_children_changed(struct supervisor *s) {
        struct buf b = {0};
        struct json_writer w = {.out = &b};
        struct error e = {0};
        char boot[40];

        os_boot_id(boot);
        json_open(&w, '{');
        json_key(&w, "boot_id");
        json_str(&w, boot);
        json_key(&w, "processes");
        json_open(&w, '[');
        for (size_t i = 0; i < s->count; i++) {
                if (!process_runs(&s->processes[i]))
                        continue;
                json_open(&w, '{');
                json_key(&w, "name");
                json_str(&w, s->processes[i].name);
                json_key(&w, "pid");
                json_i64(&w, s->processes[i].child.pid);
                json_key(&w, "start_ticks");
                json_u64(&w, s->processes[i].start_ticks);
                json_close(&w, '}');
        }
        json_close(&w, ']');
        json_close(&w, '}');
        if (buf_ok(&b) && os_write_file_atomic(s->options->paths->journal, buf_slice(&b), 0600, &e) < 0)
                log_warn(s->options->log, "%s", e.text);
        buf_free(&b);
}

/* A supervisor that was killed takes its children with it (PR_SET_PDEATHSIG); what got away all the same is ended here, if
 * it is surely the process that the journal means. */
static void clear_leftovers(struct supervisor *s) {
        yyjson_doc *doc = NULL;
        yyjson_val *list, *item;
        size_t i, n;
        char boot[40];

        if (json_parse_file(s->options->paths->journal, 1 << 20, &doc, NULL) < 0)
                return;
        os_boot_id(boot);
        list = json_get(yyjson_doc_get_root(doc), "processes");
        if (slice_is(json_get_slice(yyjson_doc_get_root(doc), "boot_id"), boot)) {
                yyjson_arr_foreach(list, i, n, item) {
                        pid_t pid = (pid_t)json_get_i64(item, "pid", 0);
                        uint64_t ticks;
                        int pidfd = pid > 1 ? (int)syscall(SYS_pidfd_open, pid, 0) : -1;

                        /* The pidfd first, then the look at its start time: it cannot become another one in between. */
                        if (pidfd >= 0 && os_process_start_time(pid, &ticks) == 0 &&
                            (int64_t)ticks == json_get_i64(item, "start_ticks", -1)) {
                                log_warn(s->options->log, "ending %.*s (pid %d), left by a supervisor that was killed",
                                    SLICE_ARG(json_get_slice(item, "name")), (int)pid);
                                syscall(SYS_pidfd_send_signal, pidfd, SIGKILL, NULL, 0);
                        }
                        if (pidfd >= 0)
                                close(pidfd);
                }
        }
        yyjson_doc_free(doc);
}

/* ---- order ---------------------------------------------------------------------------------------------------------- */

static bool is_gateway(const struct process *p) {
        return !strcmp(p->role, "gateway");
}

/* The gateway follows when every rank is ready or given up and one at least is ready. Where there are none, it is alone on its
 * node and the ranks of others are its instances as they come. */
static void maybe_start_gateway(struct supervisor *s, uint64_t now) {
        bool any = s->count == 1;

        for (size_t i = 0; i < s->count; i++) {
                if (is_gateway(&s->processes[i]))
                        continue;
                if (!process_settled(&s->processes[i]))
                        return;
                any |= s->processes[i].state == PROCESS_READY;
        }
        for (size_t i = 0; any && i < s->count; i++)
                if (is_gateway(&s->processes[i]) && s->processes[i].state == PROCESS_WAITING)
                        process_start(&s->processes[i], now);
}

static uint64_t stop_grace(const struct supervisor *s) {
        return (uint64_t)s->options->plan->cluster->supervise.stop_seconds * NS_PER_S;
}

/* The gateway drains first, then decoders end their streams, then prefillers: nobody loses who it works for. */
static void continue_stop(struct supervisor *s, uint64_t now) {
        static const char *const order[] = {"gateway", "decode", "prefill"};

        for (size_t stage = 0; stage < 3; stage++) {
                bool all = true;

                for (size_t i = 0; i < s->count; i++) {
                        struct process *p = &s->processes[i];

                        if (strcmp(p->role, order[stage]))
                                continue;
                        if (p->state != PROCESS_STOPPED)
                                process_stop(p, stop_grace(s), now);
                        all &= p->state == PROCESS_STOPPED;
                }
                if (!all)
                        return;
        }
}

static bool all_stopped(const struct supervisor *s) {
        for (size_t i = 0; i < s->count; i++)
                if (s->processes[i].state != PROCESS_STOPPED)
                        return false;
        return true;
}

/* ---- the loop ------------------------------------------------------------------------------------------------------- */

static void ignore(void *context) {
        (void)context;
}

static void on_server_drained(void *context) {
        struct supervisor *s = context;

        http_client_close(s->client, ignore, s);
}

static void end_loop(struct supervisor *s) {
        uv_close((uv_handle_t *)&s->tick, NULL);
        uv_close((uv_handle_t *)&s->on_term, NULL);
        uv_close((uv_handle_t *)&s->on_int, NULL);
        if (s->server)
                http_server_drain(s->server, 500, on_server_drained, s);
        else
                http_client_close(s->client, ignore, s);
}

static void on_tick(uv_timer_t *timer) {
        struct supervisor *s = timer->data;
        uint64_t now = clock_mono_ns();
        bool busy = false;

        for (size_t i = 0; i < s->count; i++) {
                process_tick(&s->processes[i], now);
                busy |= s->processes[i].state != PROCESS_READY && s->processes[i].state != PROCESS_FAILED;
        }
        if (s->stopping) {
                continue_stop(s, now);
                if (all_stopped(s)) {
                        end_loop(s);
                        return;
                }
        } else {
                maybe_start_gateway(s, now);
                peers_tick(s, now);
        }
        uv_timer_start(timer, on_tick, busy ? TICK_BUSY_MS : TICK_IDLE_MS, 0);
}

void supervisor_begin_stop(struct supervisor *s) {
        if (s->stopping)
                return;
        log_info(s->options->log, "stopping");
        s->stopping = true;
        uv_timer_start(&s->tick, on_tick, 0, 0);
}

bool supervisor_world_is_due(const struct supervisor *s, const struct process *p, uint64_t now) {
        for (size_t i = 0; p->world && i < s->count; i++) {
                const struct process *q = &s->processes[i];

                if (q->world == p->world && (q->state == PROCESS_STOPPING || q->state == PROCESS_FAILED ||
                                                (q->state == PROCESS_BACKOFF && q->next_ns > now)))
                        return false;
        }
        return true;
}

void supervisor_world_lost(struct supervisor *s, uint32_t world, const struct process *gone, uint64_t now) {
        uint64_t grace = stop_grace(s) < PEER_STOP_NS ? stop_grace(s) : PEER_STOP_NS;

        for (size_t i = 0; world && i < s->count; i++) {
                struct process *q = &s->processes[i];

                if (q == gone || q->world != world || !process_runs(q) || q->state == PROCESS_STOPPING)
                        continue;
                log_warn(s->options->log, "%s is stopped, to start again with its group", q->name);
                q->world_lost = true;
                process_stop(q, grace, now);
        }
}

uint32_t process_world(const struct plan *plan, const struct plan_rank *rank) {
        return plan_rank_needs_world(plan, rank) ? 2 * rank->group + (uint32_t)rank->role + 1 : 0;
}

static struct process *find_process(struct supervisor *s, struct slice name) {
        for (size_t i = 0; i < s->count; i++)
                if (slice_is(name, s->processes[i].name))
                        return &s->processes[i];
        return NULL;
}

static void tick_soon(struct supervisor *s) {
        uv_timer_start(&s->tick, on_tick, 0, 0);
}

bool supervisor_restart(struct supervisor *s, struct slice name) {
        uint64_t now = clock_mono_ns();
        struct process *p = find_process(s, name);

        if (!p || s->stopping)
                return false;
        p->restarts_in_row = 0;
        if (process_runs(p)) {
                p->restart_wanted = true;
                process_stop(p, stop_grace(s), now);
        } else if (p->state != PROCESS_WAITING) /* its turn comes anyhow */
                process_start(p, now);
        tick_soon(s);
        return true;
}

bool supervisor_halt(struct supervisor *s, struct slice name) {
        struct process *p = find_process(s, name);

        if (!p || s->stopping)
                return false;
        p->restart_wanted = p->world_lost = false;
        process_stop(p, stop_grace(s), clock_mono_ns());
        tick_soon(s);
        return true;
}

bool supervisor_start(struct supervisor *s, struct slice name) {
        struct process *p = find_process(s, name);

        if (!p || s->stopping)
                return false;
        p->restarts_in_row = 0;
        if (p->state == PROCESS_STOPPING)
                p->restart_wanted = true;
        else if (!process_runs(p))
                process_start(p, clock_mono_ns());
        tick_soon(s);
        return true;
}

static void on_signal(uv_signal_t *signal, int number) {
        (void)number;
        supervisor_begin_stop(signal->data);
}

/* ---- set-up --------------------------------------------------------------------------------------------------------- */

static int check_ports(const struct plan *plan, struct error *e) {
        const struct cluster *c = plan->cluster;

        for (size_t i = 0; i < plan->rank_count; i++) {
                const struct plan_rank *r = &plan->ranks[i];
                char host[256];

                snprintf(host, sizeof(host), "%.*s", SLICE_ARG(c->roles[r->role].host));
                if (os_check_bind(host, r->api_port) == -EADDRINUSE)
                        return error_set(e, -EADDRINUSE,
                            "port %u, planned for %.*s, is in use by another program (`ss -ltnp 'sport = :%u'` tells "
                            "which); "
                            "nothing was started",
                            r->api_port, SLICE_ARG(r->name), r->api_port);
        }
        if (plan->gateway_argv) {
                char host[256];

                snprintf(host, sizeof(host), "%.*s", SLICE_ARG(c->gateway.host));
                if (os_check_bind(host, (uint16_t)c->gateway.port) == -EADDRINUSE)
                        return error_set(e, -EADDRINUSE,
                            "port %u, planned for the gateway, is in use by another program (`ss -ltnp 'sport = :%u'` "
                            "tells "
                            "which); nothing was started",
                            (unsigned)c->gateway.port, (unsigned)c->gateway.port);
        }
        return 0;
}

static int prepare_process(struct supervisor *s, struct process *p, struct slice name, const char *role,
    struct slice url, const char *const *argv, const char *const *env, struct error *e) {
        const struct cluster *c = s->options->plan->cluster;
        char path[400];
        int r;

        *p = (struct process){
            .supervisor = s, .role = role, .argv = argv, .env = env, .child = {.pidfd = -1}, .log = {.fd = -1}};
        p->name = arena_copy(&s->arena, name).ptr;
        p->url = arena_copy(&s->arena, url);
        if (!p->name || !p->url.ptr)
                return error_set(e, -ENOMEM, "out of memory");
        p->since_ns = s->started_ns;
        r = http_endpoint_parse(&s->arena, p->url, &p->endpoint, NULL, e);
        if (r < 0)
                return r;
        snprintf(path, sizeof(path), "%s/%s.log", s->options->paths->logs, p->name);
        return rotate_open(&p->log, path, (uint64_t)c->supervise.log_bytes, (unsigned)c->supervise.log_files, e);
}

static int prepare_processes(struct supervisor *s, struct error *e) {
        const struct plan *plan = s->options->plan;
        int r = 0;

        s->processes = calloc(plan->rank_count + 1, sizeof(*s->processes));
        if (!s->processes)
                return error_set(e, -ENOMEM, "out of memory");
        for (size_t i = 0; r == 0 && i < plan->rank_count; i++) {
                const struct plan_rank *rank = &plan->ranks[i];

                r = prepare_process(s, &s->processes[s->count++], rank->name, role_name(rank->role), rank->url,
                    rank->argv, rank->env, e);
                s->processes[s->count - 1].world = process_world(plan, rank);
        }
        if (r == 0 && plan->gateway_argv)
                r = prepare_process(s, &s->processes[s->count++], SLICE_LIT("gateway"), "gateway", plan->gateway_url,
                    plan->gateway_argv, NULL, e);
        return r;
}

static int open_control(struct supervisor *s, struct error *e) {
        struct http_server_options options = {.on_request = control_request, .context = s, .log = s->options->log};
        char address[320];
        struct http_listen at = {.host = address};
        int r = http_server_new(&s->loop, &options, &s->server, e);

        if (r < 0)
                return r;
        snprintf(address, sizeof(address), "unix:%s", s->options->paths->socket);
        unlink(s->options->paths->socket); /* ours: we hold the lock */
        return http_server_listen(s->server, &at, NULL, e);
}

static int init_loop(struct supervisor *s, struct error *e) {
        struct http_client_options options = {.idle_per_endpoint = 1, .log = s->options->log};
        int r = uv_loop_init(&s->loop);

        if (r < 0)
                return error_set(e, r, "cannot make an event loop: %s", strerror(-r));
        uv_timer_init(&s->loop, &s->tick);
        uv_signal_init(&s->loop, &s->on_term);
        uv_signal_init(&s->loop, &s->on_int);
        s->tick.data = s->on_term.data = s->on_int.data = s;
        r = http_client_new(&s->loop, &options, &s->client, e);
        if (r < 0) {
                uv_close((uv_handle_t *)&s->tick, NULL);
                uv_close((uv_handle_t *)&s->on_term, NULL);
                uv_close((uv_handle_t *)&s->on_int, NULL);
        }
        return r;
}

static void supervise(struct supervisor *s) {
        uint64_t now = clock_mono_ns();

        uv_signal_start(&s->on_term, on_signal, SIGTERM);
        uv_signal_start(&s->on_int, on_signal, SIGINT);
        for (size_t i = 0; i < s->count; i++)
                if (!is_gateway(&s->processes[i]))
                        process_start(&s->processes[i], now);
        uv_timer_start(&s->tick, on_tick, TICK_BUSY_MS, 0);
        uv_run(&s->loop, UV_RUN_DEFAULT);
}

int supervisor_run(const struct supervisor_options *options, struct error *e) {
        struct supervisor s = {.options = options, .lock_fd = -1, .started_ns = clock_mono_ns()};
        bool loop = false;
        int r = take_lock(&s, e);

        if (r < 0)
                goto out;
        clear_leftovers(&s);
        r = check_ports(options->plan, e);
        if (r == 0)
                r = prepare_processes(&s, e);
        if (r == 0)
                r = peers_find(&s, e);
        if (r < 0)
                goto out;
        loop = true;
        r = init_loop(&s, e);
        if (r == 0) {
                r = open_control(&s, e);
                if (r == 0)
                        supervise(&s);
                else
                        end_loop(&s);
        }
        uv_run(&s.loop, UV_RUN_DEFAULT);
out:
        if (loop) {
                http_server_free(s.server);
                http_client_free(s.client);
                uv_loop_close(&s.loop);
                unlink(options->paths->socket);
        }
        for (size_t i = 0; i < s.count; i++)
                rotate_close(&s.processes[i].log);
        free(s.processes);
        free(s.peers);
        arena_free(&s.arena);
        if (s.lock_fd >= 0)
                close(s.lock_fd);
        return r;
}
