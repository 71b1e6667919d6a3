/* restart.c - `baton restart`: one rank, the gateway, or a DP group over all of its nodes while the gateway drains it. */
#include "base/clock.h"
#include "cli/fleet.h"
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#define CALL_MS  15000u
#define PAUSE_MS 200u

struct restart_options {
        struct nodes_options nodes;
};
static const struct option restart_table[] = {NODES_OPTIONS(offsetof(struct restart_options, nodes))};
static const struct option_set restart_set = {"baton restart FILE NAME",
    "Stops one rank (or `gateway`) in order and starts it again. `prefill:0` or `decode:0` is a whole group: "
    "the gateway sends it nothing new, what it works on ends, all of its ranks stop, rank 0 starts first, and "
    "the gateway takes it in again. A rank that cannot come back without its group (vLLM's data parallelism) "
    "restarts with it.",
    restart_table, sizeof(restart_table) / sizeof(*restart_table), 2};

/* Some ranks that restart together: a view of the plan, in order of their dp rank. */
struct group {
        const struct plan_rank *ranks;
        size_t count;
};

static int refuse(const char *path, const char *name) {
        fprintf(stderr, "baton restart: no rank or group is named `%s`; `baton plan %s` lists them\n", name, path);
        return EXIT_USAGE;
}

static struct group group_of(const struct plan *p, enum role role, uint32_t index) {
        struct group g = {0};

        for (size_t i = 0; i < p->rank_count; i++)
                if (p->ranks[i].role == role && p->ranks[i].group == index) {
                        if (!g.count)
                                g.ranks = &p->ranks[i];
                        g.count++;
                }
        return g;
}

/* NAME as a group, "decode:1", or as a rank that restarts with its group. Count 0: neither. */
static struct group find_group(const struct plan *p, struct slice name) {
        struct slice rest = name, role;
        uint64_t index;

        slice_split(&rest, ':', &role);
        if (rest.ptr && slice_to_u64(rest, &index) == 0 && index <= UINT32_MAX) {
                if (slice_is(role, "prefill"))
                        return group_of(p, ROLE_PREFILL, (uint32_t)index);
                if (slice_is(role, "decode"))
                        return group_of(p, ROLE_DECODE, (uint32_t)index);
        }
        for (size_t i = 0; i < p->rank_count; i++)
                if (slice_eq(p->ranks[i].name, name) && plan_rank_needs_world(p, &p->ranks[i]))
                        return group_of(p, p->ranks[i].role, p->ranks[i].group);
        return (struct group){0};
}

/* ---- one process ------------------------------------------------------------------------------------------------------- */

/* Ask the node of a process to do something with it. 0, or an errno with a text. */
static int do_process(struct nodes *n, const char *verb, struct slice name, struct error *e) {
        size_t at = nodes_of_process(n, name);
        struct buf request = {0};
        yyjson_doc *doc;
        int r = 0;

        buf_printf(&request, "{\"op\":\"%s\",\"name\":\"%.*s\"}", verb, SLICE_ARG(name)); /* names are plain, see Y03 */
        nodes_ask(n, at, buf_slice(&request), CALL_MS);
        buf_free(&request);
        doc = nodes_answer(n, at, &r, e);
        yyjson_doc_free(doc);
        return doc ? 0 : r;
}

static int restart_one(struct nodes *n, struct slice name) {
        struct error e = {0};
        int r = do_process(n, "restart", name, &e);

        if (r == 0)
                return EXIT_FINE;
        if (nodes_lost(n)) {
                nodes_say_lost(n);
                return EXIT_UNKNOWN;
        }
        return cli_fail(r, &e);
}

/* ---- the gateway's part ------------------------------------------------------------------------------------------------ */

/* Ask the gateway; its answer's body is appended. The status, or a negative errno: there is none, or it is not up. */
static int ask_gateway(struct nodes *n, const char *path, struct slice body, struct buf *ret_answer, struct error *e) {
        size_t at = nodes_of_process(n, SLICE_LIT("gateway"));
        struct buf request = {0};
        struct json_writer w = {.out = &request};
        yyjson_doc *doc;
        int r = -ENOENT;

        if (at == n->count)
                return error_set(e, -ENOENT, "the cluster file has no gateway");
        json_open(&w, '{');
        json_key(&w, "op");
        json_str(&w, "gateway");
        json_key(&w, "path");
        json_str(&w, path);
        json_key(&w, "body");
        if (body.ptr)
                json_string(&w, body);
        else
                json_null(&w);
        json_close(&w, '}');
        nodes_ask(n, at, buf_slice(&request), CALL_MS);
        buf_free(&request);
        doc = nodes_answer(n, at, &r, e);
        if (doc) {
                r = (int)json_get_i64(yyjson_doc_get_root(doc), "status", -EIO);
                buf_add(ret_answer, json_get_slice(yyjson_doc_get_root(doc), "answer"));
                yyjson_doc_free(doc);
        }
        return r;
}

/* Tell the gateway that the group comes or goes. Those that are gone already are no fault. */
static int change_members(struct nodes *n, const struct group *g, const char *path, struct error *e) {
        bool whole = !n->plan.cluster->roles[ROLE_PREFILL].present;
        int status = 0;

        for (size_t i = 0; i < g->count; i++) {
                struct buf body = {0}, answer = {0};

                buf_printf(&body, "{\"type\":\"%s\",\"instances\":\"%.*s=%.*s\"}",
                    whole ? "decode" : role_name(g->ranks[i].role), SLICE_ARG(g->ranks[i].name),
                    SLICE_ARG(g->ranks[i].url));
                status = ask_gateway(n, path, buf_slice(&body), &answer, e);
                if (status >= 400 && status != 404)
                        error_set(e, -EIO, "%.*s", SLICE_ARG(slice_sub(buf_slice(&answer), 0, 300)));
                buf_free(&body);
                buf_free(&answer);
                if (status < 0 || (status >= 400 && status != 404))
                        return status < 0 ? status : -EIO;
        }
        return 0;
}

/* How many of the group the gateway still has: those that leave are on its list until their last request has ended. */
static int count_members(struct nodes *n, const struct group *g) {
        struct buf answer = {0};
        int status = ask_gateway(n, "/instances", SLICE_NONE, &answer, NULL), left = 0;

        for (size_t i = 0; status == 200 && i < g->count; i++) {
                struct buf key = {0};

                buf_printf(&key, "\"%.*s\"", SLICE_ARG(g->ranks[i].name));
                left += slice_find_slice(buf_slice(&answer), buf_slice(&key), 0) < answer.len;
                buf_free(&key);
        }
        buf_free(&answer);
        return left;
}

static uint64_t grace_end(const struct nodes *n) {
        return clock_mono_ns() + ((uint64_t)n->plan.cluster->supervise.stop_seconds + 5) * NS_PER_S;
}

/* True: the gateway has let go of the group, and must be given it back. */
static bool drain(struct nodes *n, const struct group *g) {
        uint64_t end = grace_end(n);
        struct error e = {0};
        int left;

        if (change_members(n, g, "/instances/remove", &e) < 0) {
                fprintf(stderr, "  the gateway is not asked to let go of it: %s\n", e.text);
                return false;
        }
        while ((left = count_members(n, g)) > 0 && clock_mono_ns() < end)
                if (nodes_pause(n, PAUSE_MS))
                        break;
        if (left > 0)
                fprintf(stderr, "  %d rank%s still had requests after %lld s\n", left, left == 1 ? "" : "s",
                    (long long)n->plan.cluster->supervise.stop_seconds);
        else
                fprintf(stderr, "  drained\n");
        return true;
}

/* ---- the group --------------------------------------------------------------------------------------------------------- */

static int all_do(struct nodes *n, const struct group *g, const char *verb) {
        for (size_t i = 0; i < g->count; i++) {
                struct error e = {0};
                int r = do_process(n, verb, g->ranks[i].name, &e);

                if (r < 0) {
                        fprintf(stderr, "baton restart: %.*s: %s\n", SLICE_ARG(g->ranks[i].name), e.text);
                        return EXIT_UNKNOWN;
                }
        }
        return -1;
}

/* Wait until all ranks of the group are in the state. -1, or an exit code with the reason said. */
static int await(struct nodes *n, const struct group *g, enum process_state wanted, uint64_t end) {
        for (;;) {
                struct fleet_look look;
                size_t there = 0;
                int r = fleet_look(n, NULL, &look), code = -1;

                for (size_t i = 0; i < g->count; i++) {
                        const struct process_status *p = fleet_process(n, &look, g->ranks[i].name);

                        there += p && p->state == wanted;
                        if (p && p->state == PROCESS_FAILED && wanted != PROCESS_STOPPED && code < 0) {
                                fprintf(stderr, "  %.*s failed: %.*s\n", SLICE_ARG(p->name), SLICE_ARG(p->last_exit));
                                fleet_explain(p);
                                code = EXIT_NOT_FINE;
                        }
                }
                fleet_look_free(&look);
                if (code >= 0)
                        return code;
                if (there == g->count)
                        return -1;
                if (r == -EINTR || nodes_pause(n, PAUSE_MS)) {
                        fprintf(stderr, "interrupted: the group is not whole; the same command again goes on\n");
                        return EXIT_NOT_FINE;
                }
                if (r < 0 || nodes_lost(n)) {
                        nodes_say_lost(n);
                        return EXIT_UNKNOWN;
                }
                if (end && clock_mono_ns() > end) {
                        fprintf(stderr, "baton restart: not all of the group have stopped\n");
                        return EXIT_UNKNOWN;
                }
        }
}

static int restart_group(struct nodes *n, const struct group *g) {
        const struct group first = {g->ranks, 1}, others = {g->ranks + 1, g->count - 1};
        struct error e = {0};
        bool drained;
        int r;

        fprintf(stderr, "restarting %s group %u: %zu rank%s\n", role_name(g->ranks->role), g->ranks->group, g->count,
            g->count == 1 ? "" : "s");
        drained = drain(n, g);
        r = all_do(n, g, "halt");
        if (r < 0)
                r = await(n, g, PROCESS_STOPPED, grace_end(n));
        if (r < 0)
                r = all_do(n, &first, "start");
        if (r < 0)
                r = all_do(n, &others, "start");
        if (r < 0) {
                fprintf(stderr, "  stopped, and starting\n");
                r = await(n, g, PROCESS_READY, 0); /* ends: a rank that is not ready in time has failed */
        }
        if (r >= 0)
                return r;
        if (drained && change_members(n, g, "/instances/add", &e) < 0) {
                fprintf(stderr, "baton restart: the gateway does not take it in again: %s\n", e.text);
                return EXIT_NOT_FINE;
        }
        fprintf(stderr, "  ready\n");
        return EXIT_FINE;
}

int cmd_restart(int argc, char **argv) {
        struct restart_options o = {0};
        struct options_result parsed;
        struct nodes n;
        struct group g;
        struct slice name;
        int r = cli_file_options(&restart_set, argc, argv, &o, &parsed);

        if (r >= 0)
                return r;
        if (parsed.count_positional < 2) {
                fprintf(stderr, "baton restart: which rank? usage: %s\n", restart_set.usage);
                options_result_free(&parsed);
                return EXIT_USAGE;
        }
        name = slice_str(parsed.positional[1]);
        r = nodes_of_file(parsed.positional[0], &o.nodes, &n);
        if (r < 0) {
                g = find_group(n.plan.plan, name);
                if (!g.count && nodes_of_process(&n, name) == n.count)
                        r = refuse(parsed.positional[0], parsed.positional[1]);
        }
        if (r < 0)
                r = nodes_open(&n);
        if (r < 0)
                r = g.count ? restart_group(&n, &g) : restart_one(&n, name);
        nodes_close(&n);
        options_result_free(&parsed);
        return r;
}
