/* fleet.c - supervisors of many nodes: started in order, watched, stopped in order; see fleet.h. */
#include "cli/fleet.h"
#include "base/clock.h"
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#define LOOK_MS  15000u
#define UP_MS    30000u
#define CALL_MS  15000u
#define PAUSE_MS 100

/* ---- looking ------------------------------------------------------------------------------------------------------------ */

int fleet_look(struct nodes *n, const bool *yes, struct fleet_look *ret_look) {
        struct fleet_look *look = ret_look;
        int r;

        *look = (struct fleet_look){0};
        look->nodes = arena_array(&look->arena, n->count, sizeof(*look->nodes));
        look->up = arena_array(&look->arena, n->count, sizeof(*look->up));
        if (!look->nodes || !look->up)
                return -ENOMEM;
        r = nodes_ask_all(n, yes, SLICE_LIT("{\"op\":\"status\"}"), LOOK_MS);
        for (size_t i = 0; i < n->count; i++) {
                yyjson_doc *doc = nodes_answer(n, i, NULL, NULL);
                struct buf status = {0};

                look->up[i] = json_get_bool(yyjson_doc_get_root(doc), "up", false);
                if (look->up[i]) {
                        json_add_value(&status, json_get(yyjson_doc_get_root(doc), "status"));
                        launch_status_parse(buf_slice(&status), &look->arena, &look->nodes[i], NULL);
                        buf_free(&status);
                }
                yyjson_doc_free(doc);
        }
        return r;
}

void fleet_look_free(struct fleet_look *look) {
        arena_free(&look->arena);
}

const struct process_status *fleet_process(const struct nodes *n, const struct fleet_look *look, struct slice name) {
        for (size_t i = 0; look->nodes && i < n->count; i++) /* NULL: there was no memory to look */
                for (size_t k = 0; k < look->nodes[i].count; k++)
                        if (slice_eq(look->nodes[i].processes[k].name, name))
                                return &look->nodes[i].processes[k];
        return NULL;
}

void fleet_explain(const struct process_status *p) {
        if (p->said.len)
                fprintf(stderr, "      %.*s\n", SLICE_ARG(p->said));
        if (p->cause.len)
                fprintf(stderr, "      that is: %.*s\n      cure: %.*s\n", SLICE_ARG(p->cause), SLICE_ARG(p->cure));
}

/* ---- stopping ----------------------------------------------------------------------------------------------------------- */

/* In which order supervisors are stopped and started. A node has ranks of one role, or none. */
static bool has_role(const struct nodes *n, size_t i, enum role role) {
        struct plan part = plan_of_node(n->plan.plan, n->index[i]);

        return part.rank_count && part.ranks[0].role == role;
}

/* The gateway first, while everything behind it still works: it ends what it has begun. */
static void stop_gateway(struct nodes *n, const bool *yes) {
        size_t at = nodes_of_process(n, SLICE_LIT("gateway"));
        uint64_t end = clock_mono_ns() + ((uint64_t)n->plan.cluster->supervise.stop_seconds + 5) * NS_PER_S;
        bool *only = arena_array(&n->plan.arena, n->count, sizeof(*only)), stopped = false;

        if (!only || at == n->count || (yes && !yes[at]) || remote_trouble(n->remote, at))
                return;
        only[at] = true;
        nodes_ask(n, at, SLICE_LIT("{\"op\":\"halt\",\"name\":\"gateway\"}"), CALL_MS);
        while (!stopped && clock_mono_ns() < end) {
                struct fleet_look look;
                const struct process_status *p;

                if (fleet_look(n, only, &look) < 0)
                        stopped = true;
                p = fleet_process(n, &look, SLICE_LIT("gateway"));
                stopped |= !p || p->state == PROCESS_STOPPED;
                fleet_look_free(&look);
                if (!stopped)
                        nodes_pause(n, PAUSE_MS);
        }
}

static int stop_some(struct nodes *n, const bool *which, size_t *ended) {
        int code = EXIT_FINE;

        nodes_ask_all(n, which, SLICE_LIT("{\"op\":\"stop\"}"), launch_stop_ms(n->plan.cluster) + 10000);
        for (size_t i = 0; i < n->count; i++) {
                struct error e = {0};
                yyjson_doc *doc;

                if (!which[i] || remote_trouble(n->remote, i))
                        continue;
                doc = nodes_answer(n, i, NULL, &e);
                if (doc)
                        *ended += json_get_bool(yyjson_doc_get_root(doc), "was_up", false);
                else {
                        fprintf(stderr, "%s%s\n", nodes_prefix(n, i), e.text);
                        code = EXIT_UNKNOWN;
                }
                yyjson_doc_free(doc);
        }
        return code;
}

int fleet_stop(struct nodes *n, const bool *yes, size_t *ret_ended) {
        bool *which = arena_array(&n->plan.arena, n->count, sizeof(*which));
        int fd = n->interrupt_fd, code = EXIT_FINE;
        size_t ended = 0;

        if (!which)
                return EXIT_UNKNOWN;
        n->interrupt_fd = -1; /* it is bounded, and half of it helps nobody */
        if (n->single) {
                which[0] = true;
                code = stop_some(n, which, &ended);
        } else {
                stop_gateway(n, yes);
                for (int stage = 0; stage < 2; stage++) {
                        bool any = false;

                        for (size_t i = 0; i < n->count; i++) {
                                which[i] = (!yes || yes[i]) && has_role(n, i, ROLE_DECODE) == (stage == 0);
                                any |= which[i];
                        }
                        if (any && stop_some(n, which, &ended) != EXIT_FINE)
                                code = EXIT_UNKNOWN;
                }
        }
        n->interrupt_fd = fd;
        if (ret_ended)
                *ret_ended = ended;
        return code;
}

/* ---- starting ----------------------------------------------------------------------------------------------------------- */

struct rise {
        struct nodes *n;
        const struct fleet_up_options *o;
        bool *started;     /* by target: asked to start */
        bool *said;        /* by rank of the plan, the gateway last: told that it is ready */
        int64_t *restarts; /* likewise: told of so many */
};

/* Rank 0 of a group binds what the others connect to, so nodes with one come first, and the very first of them alone: of two
 * `up` at once the one that comes second ends there, before it has started anything. */
static int wave_of(const struct nodes *n, size_t i) {
        struct plan part = plan_of_node(n->plan.plan, n->index[i]);

        if (n->index[i] == n->plan.plan->ranks[0].node)
                return 0;
        return part.rank_count && part.ranks[0].dp_rank == 0 ? 1 : 2;
}

/* Returns -1 to go on. */
static int start_wave(struct rise *rise, int wave) {
        struct nodes *n = rise->n;
        bool *which = arena_array(&n->plan.arena, n->count, sizeof(*which)), any = false;
        int code = -1, asked, r;

        for (size_t i = 0; which && i < n->count; i++) {
                which[i] = wave_of(n, i) == wave;
                any |= which[i];
        }
        if (!any)
                return which ? -1 : EXIT_UNKNOWN;
        asked = nodes_ask_all(n, which, SLICE_LIT("{\"op\":\"up\"}"), UP_MS);
        for (size_t i = 0; i < n->count; i++) {
                struct error e = {0};
                yyjson_doc *doc = which[i] ? nodes_answer(n, i, &r, &e) : NULL;

                if (!which[i])
                        continue;
                /* One that refused has started nothing of ours; of one that did not answer nobody knows. */
                rise->started[i] = doc || !n->calls[i].answer.len;
                if (!doc && n->calls[i].answer.len) {
                        fprintf(stderr, "%s%s\n", nodes_prefix(n, i), e.text);
                        code = r == -EALREADY || r == -EINVAL ? EXIT_USAGE : EXIT_NOT_FINE;
                } else if (!doc && code < 0)
                        code = asked == -EINTR ? EXIT_NOT_FINE : EXIT_UNKNOWN;
                yyjson_doc_free(doc);
        }
        return code;
}

static void say_process(struct rise *rise, size_t index, const struct process_status *p) {
        if (p->state == PROCESS_READY && !rise->said[index]) {
                rise->said[index] = true;
                if (!rise->o->quiet)
                        fprintf(stderr, "  %-10.*s ready %.1f s\n", SLICE_ARG(p->name), (double)p->ready_ms / 1000);
        } else if (p->state == PROCESS_BACKOFF && rise->restarts[index] != p->restarts + 1) {
                rise->restarts[index] = p->restarts + 1;
                if (!rise->o->quiet) {
                        fprintf(
                            stderr, "  %-10.*s %.*s; it is tried again\n", SLICE_ARG(p->name), SLICE_ARG(p->last_exit));
                        fleet_explain(p);
                }
        } else if (p->state == PROCESS_FAILED) {
                fprintf(stderr, "  %.*s failed: %.*s\n", SLICE_ARG(p->name), SLICE_ARG(p->last_exit));
                fleet_explain(p);
                fprintf(stderr, "      more: baton logs %s %.*s\n", rise->n->path, SLICE_ARG(p->name));
        }
}

/* One look at all. -1: not all are ready yet; EXIT_FINE: they are. */
static int watch_once(struct rise *rise) {
        struct nodes *n = rise->n;
        const struct plan *plan = n->plan.plan;
        struct fleet_look look;
        bool all = true, failed = false;
        int r = fleet_look(n, NULL, &look), code = -1;

        for (size_t i = 0; i <= plan->rank_count; i++) {
                struct slice name = i < plan->rank_count ? plan->ranks[i].name : SLICE_LIT("gateway");
                size_t node = nodes_of_process(n, name);
                const struct process_status *p = fleet_process(n, &look, name);

                if (node == n->count)
                        continue; /* no gateway */
                all &= p && p->state == PROCESS_READY;
                failed |= p && p->state == PROCESS_FAILED;
                if (p)
                        say_process(rise, i, p);
        }
        for (size_t i = 0; r == 0 && i < n->count; i++)
                if (!look.up[i] && !remote_trouble(n->remote, i)) {
                        fprintf(stderr, "%sits supervisor has ended\n", nodes_prefix(n, i));
                        code = EXIT_NOT_FINE;
                }
        fleet_look_free(&look);
        if (r == -EINTR || failed)
                return EXIT_NOT_FINE;
        if (r < 0 || nodes_lost(n))
                return EXIT_UNKNOWN;
        return code < 0 && all ? EXIT_FINE : code;
}

static bool is_interrupted(const struct nodes *n) {
        return nodes_pause(n, 0);
}

static int raise_all(struct rise *rise) {
        int code = -1;

        for (int wave = 0; code < 0 && wave < 3; wave++)
                code = start_wave(rise, wave);
        while (code < 0) {
                code = watch_once(rise);
                if (code < 0 && nodes_pause(rise->n, 2 * PAUSE_MS))
                        code = EXIT_NOT_FINE;
        }
        return code == EXIT_FINE ? -1 : code;
}

/* Nobody is started where somebody cannot be, or already runs. */
static int check_before(struct nodes *n) {
        struct fleet_look look;
        int r, code = -1;

        if (nodes_lost(n)) {
                nodes_say_lost(n);
                fprintf(stderr, "nothing was started\n");
                return EXIT_UNKNOWN;
        }
        r = fleet_look(n, NULL, &look);
        for (size_t i = 0; i < n->count; i++)
                if (look.up && look.up[i] && code < 0) {
                        fprintf(stderr,
                            "baton up: %s is up already on %s: `baton status %s` shows it, `baton down %s` ends it\n",
                            n->path, n->targets[i].name, n->path, n->path);
                        code = EXIT_USAGE;
                }
        fleet_look_free(&look);
        if (code < 0 && r < 0) {
                nodes_say_lost(n);
                code = r == -EINTR ? EXIT_NOT_FINE : EXIT_UNKNOWN;
        }
        return code;
}

static void say_what_stays(const struct rise *rise) {
        fprintf(stderr, "what was started is kept: `baton status %s` shows it, `baton down %s` ends it\n",
            rise->n->path, rise->n->path);
}

int fleet_up(struct nodes *n, const struct fleet_up_options *o) {
        struct arena *arena = &n->plan.arena;
        size_t processes = n->plan.plan->rank_count + 1;
        struct rise rise = {n, o, arena_array(arena, n->count, sizeof(bool)),
            arena_array(arena, processes, sizeof(bool)), arena_array(arena, processes, sizeof(int64_t))};
        bool any = false;
        int code;

        if (!rise.started || !rise.said || !rise.restarts)
                return EXIT_UNKNOWN;
        code = check_before(n);
        if (code >= 0)
                return code;
        code = raise_all(&rise);
        if (code < 0)
                return -1;
        if (nodes_lost(n))
                nodes_say_lost(n);
        for (size_t i = 0; i < n->count; i++)
                any |= rise.started[i];
        if (!any)
                fprintf(stderr, "nothing was started\n");
        else if (o->keep && !is_interrupted(n))
                say_what_stays(&rise);
        else {
                fprintf(stderr, is_interrupted(n) ? "stopping\n" : "stopping what was started\n");
                if (fleet_stop(n, rise.started, NULL) != EXIT_FINE)
                        code = EXIT_UNKNOWN;
                for (size_t i = 0; i < n->count; i++)
                        if (rise.started[i] && remote_trouble(n->remote, i))
                                fprintf(stderr,
                                    "%swhat was started there may still run: `baton down %s` when it can be "
                                    "reached again\n",
                                    nodes_prefix(n, i), n->path);
        }
        return code;
}
