/* status.c - `baton status`: every rank and the gateway, over all nodes of a cluster file. */
#include "base/file.h"
#include "cli/nodes.h"
#include <errno.h>
#include <stdio.h>
#include <unistd.h>

/* Asking a rank that hangs for its load takes a second, and a node has perhaps sixteen. */
#define STATUS_MS 40000u

struct status_options {
        struct nodes_options nodes;
        const char *format;
        bool watch;
};
static const struct option status_table[] = {
    {"format", 0, OPTION_STRING, offsetof(struct status_options, format), NULL, "how to print", .choices = "text|json"},
    {"watch", 'w', OPTION_FLAG, offsetof(struct status_options, watch), NULL, "again every second until Ctrl-C"},
    NODES_OPTIONS(offsetof(struct status_options, nodes)),
};
static const struct option_set status_set = {"baton status FILE [--watch] [--format text|json]",
    "Shows every rank and the gateway of all nodes: state, since when, load, version, last exit. Exit code 0: all "
    "healthy; "
    "1: not all, or not up; 3: a node could not be asked.",
    status_table, sizeof(status_table) / sizeof(*status_table), 1};

static void write_duration(struct buf *b, int64_t ms) {
        int64_t s = ms / 1000;

        if (s < 60)
                buf_printf(b, "%lld s", (long long)s);
        else if (s < 3600)
                buf_printf(b, "%lld min", (long long)(s / 60));
        else if (s < 86400)
                buf_printf(b, "%lld h %02lld", (long long)(s / 3600), (long long)(s / 60 % 60));
        else
                buf_printf(b, "%lld d %02lld h", (long long)(s / 86400), (long long)(s / 3600 % 24));
}

static void write_row(struct buf *b, const struct process_status *p, yyjson_val *load, bool color) {
        bool good = p->state == PROCESS_READY, bad = p->state == PROCESS_FAILED || p->state == PROCESS_SILENT;
        struct slice version = json_get_slice(load, "version");
        struct buf since = {0};

        if (slice_is(p->role, "gateway"))
                version = SLICE_LIT(BATON_VERSION); /* of all batons that were asked */
        write_duration(&since, p->since_ms);
        buf_printf(b, "%-10.*s %-8.*s %s%-9s%s %-9s ", SLICE_ARG(p->name), SLICE_ARG(p->role),
            color ? (good     ? "\033[32m"
                        : bad ? "\033[31m"
                              : "\033[33m")
                  : "",
            process_state_name(p->state), color ? "\033[0m" : "", buf_cstr(&since));
        buf_free(&since);
        if (json_get(load, "running") && json_get(load, "waiting") && json_get(load, "kv"))
                buf_printf(b, "%7.0f %7.0f  %3.0f %%", json_get_double(load, "running", 0),
                    json_get_double(load, "waiting", 0), 100 * json_get_double(load, "kv", 0));
        else
                buf_printf(b, "%7s %7s  %5s", "-", "-", "-");
        buf_printf(b, "  %-10.*s %.*s", SLICE_ARG(version.len ? version : SLICE_LIT("-")), SLICE_ARG(p->url));
        if (p->restarts)
                buf_printf(b, "  restarts %lld", (long long)p->restarts);
        if (p->last_exit.len && !good)
                buf_printf(b, "  %.*s", SLICE_ARG(p->last_exit));
        if (p->retry_ms >= 0)
                buf_printf(b, ", again in %.1f s", (double)p->retry_ms / 1000);
        buf_add_char(b, '\n');
        if (p->said.len && !good)
                buf_printf(b, "           %.*s\n", SLICE_ARG(p->said));
        if (p->cause.len && !good)
                buf_printf(b, "           %.*s; cure: %.*s\n", SLICE_ARG(p->cause), SLICE_ARG(p->cure));
}

/* What all nodes together are. */
struct picture {
        size_t up, down, lost;
        bool healthy; /* all processes of all nodes */
};

/* Its ranks, or its gateway. */
static void write_node(struct buf *b, yyjson_val *answer, bool gateway, struct picture *picture) {
        struct launch_status s = {0};
        struct arena arena = {0};
        struct buf status = {0};

        json_add_value(&status, json_get(answer, "status"));
        if (launch_status_parse(buf_slice(&status), &arena, &s, NULL) == 0)
                for (size_t i = 0; i < s.count; i++) {
                        yyjson_val *loads = json_get(answer, "load");
                        yyjson_val *load = yyjson_obj_getn(loads, s.processes[i].name.ptr, s.processes[i].name.len);

                        if (slice_is(s.processes[i].role, "gateway") != gateway)
                                continue;
                        picture->healthy &= s.processes[i].state == PROCESS_READY;
                        write_row(b, &s.processes[i], load, cli_color(STDOUT_FILENO));
                }
        buf_free(&status);
        arena_free(&arena);
}

static void write_text(
    const struct nodes *n, yyjson_doc *const *answers, bool watch, struct buf *b, struct picture *picture) {
        buf_printf(b, "%s%-10s %-8s %-9s %-9s %7s %7s  %5s  %-10s url\n", watch ? "\033[H\033[J" : "", "rank", "role",
            "state", "since", "running", "waiting", "kv", "version");
        for (size_t i = 0; i < n->count; i++)
                write_node(b, yyjson_doc_get_root(answers[i]), false, picture);
        for (size_t i = 0; i < n->count; i++)
                write_node(b, yyjson_doc_get_root(answers[i]), true, picture);
        for (size_t i = 0; i < n->count; i++)
                if (answers[i] && !json_get_bool(yyjson_doc_get_root(answers[i]), "up", false))
                        buf_printf(b, "%snot up\n", nodes_prefix(n, i));
}

static void write_trouble(struct json_writer *w, const struct remote_trouble *t) {
        json_key(w, "trouble");
        if (!t) {
                json_null(w);
                return;
        }
        json_open(w, '{');
        json_key(w, "kind");
        json_str(w, t->kind);
        json_key(w, "cause");
        json_str(w, t->cause);
        json_key(w, "cure");
        json_str(w, t->cure);
        json_close(w, '}');
}

/* Of one supervisor its own status; of several a list by node. */
static void write_json(const struct nodes *n, yyjson_doc *const *answers, struct buf *b) {
        struct json_writer w = {.out = b};

        if (n->single) {
                json_add_value(b, json_get(yyjson_doc_get_root(answers[0]), "status"));
                buf_add_char(b, '\n');
                return;
        }
        json_open(&w, '{');
        json_key(&w, "file");
        json_str(&w, n->path);
        json_key(&w, "nodes");
        json_open(&w, '[');
        for (size_t i = 0; i < n->count; i++) {
                yyjson_val *answer = yyjson_doc_get_root(answers[i]);
                static const char *const members[] = {"status", "load"};

                json_open(&w, '{');
                json_key(&w, "node");
                json_str(&w, n->targets[i].name);
                json_key(&w, "ssh");
                json_str(&w, n->targets[i].ssh);
                json_key(&w, "up");
                json_bool(&w, json_get_bool(answer, "up", false));
                write_trouble(&w, remote_trouble(n->remote, i));
                for (size_t k = 0; k < 2; k++) {
                        struct buf value = {0};

                        json_add_value(&value, json_get(answer, members[k]));
                        json_key(&w, members[k]);
                        json_raw(&w, buf_slice(&value));
                        buf_free(&value);
                }
                json_close(&w, '}');
        }
        json_close(&w, ']');
        json_close(&w, '}');
        buf_add_char(b, '\n');
}

static int judge(const struct nodes *n, const struct picture *p) {
        if (p->lost)
                return EXIT_UNKNOWN;
        return p->up == n->count && p->healthy ? EXIT_FINE : EXIT_NOT_FINE;
}

static int show_status(struct nodes *n, const struct status_options *o) {
        yyjson_doc **answers = arena_array(&n->plan.arena, n->count, sizeof(*answers));
        struct picture picture = {.healthy = true};
        bool json = !strcmp(o->format, "json");
        struct buf b = {0};
        int r = EXIT_UNKNOWN;

        if (!answers)
                return EXIT_UNKNOWN;
        if (nodes_ask_all(n, NULL, SLICE_LIT("{\"op\":\"status\",\"load\":true}"), STATUS_MS) == -EINTR)
                return EXIT_UNKNOWN;
        for (size_t i = 0; i < n->count; i++) {
                struct error e = {0};

                answers[i] = nodes_answer(n, i, NULL, &e);
                if (!answers[i]) {
                        picture.lost++;
                        if (!remote_trouble(n->remote, i))
                                fprintf(stderr, "%s%s\n", nodes_prefix(n, i), e.text);
                } else if (json_get_bool(yyjson_doc_get_root(answers[i]), "up", false))
                        picture.up++;
                else
                        picture.down++;
        }
        if (picture.down == n->count && (n->single || !json)) {
                fprintf(stderr, "%s is not up\n", n->path);
                r = EXIT_NOT_FINE;
        } else if (!n->single || answers[0]) {
                if (json) {
                        struct buf unused = {0};

                        write_text(n, answers, false, &unused, &picture);
                        buf_free(&unused);
                        write_json(n, answers, &b);
                } else
                        write_text(n, answers, o->watch, &b, &picture);
                r = cli_print(&b, judge(n, &picture));
                if (!json)
                        nodes_say_lost(n);
        }
        for (size_t i = 0; i < n->count; i++)
                yyjson_doc_free(answers[i]);
        return r;
}

int cmd_status(int argc, char **argv) {
        struct status_options o = {.format = "text"};
        struct options_result parsed;
        struct nodes n;
        int r = cli_file_options(&status_set, argc, argv, &o, &parsed);

        if (r >= 0)
                return r;
        r = nodes_of_file(parsed.positional[0], &o.nodes, &n);
        if (r < 0)
                r = nodes_open(&n);
        if (r < 0)
                do
                        r = show_status(&n, &o);
                while (o.watch && nodes_lost(&n) < n.count && !nodes_pause(&n, 1000));
        nodes_close(&n);
        options_result_free(&parsed);
        return r;
}
