/* top.c - `baton top`: what a gateway is doing, in the terminal; the same figures as its page /ui. */
#include "base/file.h"
#include "base/json.h"
#include "cli/cli.h"
#include "cluster/cluster.h"
#include "http/fetch.h"
#include <errno.h>
#include <math.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#define TIMEOUT_MS 5000
/* Of the line that a figure's last minutes take: five minutes in steps of two seconds, five to a cell. */
#define CELLS 30
/* Lines above and below the instances. */
#define OTHER_LINES 12

struct options {
        const char *format, *admin_key;
        double interval;
        bool once;
};

static const struct option table[] = {
    {"once", 0, OPTION_FLAG, offsetof(struct options, once), NULL, "one look, then end"},
    {"interval", 'n', OPTION_DOUBLE, offsetof(struct options, interval), "SECONDS", "between looks (2)"},
    {"admin-key", 0, OPTION_STRING, offsetof(struct options, admin_key), "KEY", "the gateway's, where it has one"},
    {"format", 0, OPTION_STRING, offsetof(struct options, format), NULL, "how to print", .choices = "text|json"},
};
static const struct option_set set = {"baton top URL|FILE [--once] [--interval SECONDS]",
    "Shows what a gateway is doing: load, latency over the last five minutes, every instance. On a terminal the "
    "picture is "
    "drawn anew until Ctrl-C, else one follows the other. Exit code 0: ready; 1: not ready, or it does not answer.",
    table, sizeof(table) / sizeof(*table), 1};

/* ---- drawing ---------------------------------------------------------------------------------------------------------- */

/* From another process: control characters would drive the terminal. */
static void add_plain(struct buf *b, struct slice s, size_t width) {
        size_t cells = 0;

        for (size_t i = 0; i < s.len && cells < width; i++, cells++)
                buf_add_char(b, s.ptr[i] >= ' ' && s.ptr[i] <= '~' ? s.ptr[i] : '?');
        buf_printf(b, "%*s", (int)(width - cells), "");
}

static void add_number(struct buf *b, double v, int width) {
        char text[32];

        if (isnan(v))
                snprintf(text, sizeof(text), "-");
        else if (v >= 1e6)
                snprintf(text, sizeof(text), "%.3g M", v / 1e6);
        else if (v >= 1e4)
                snprintf(text, sizeof(text), "%.3g k", v / 1e3);
        else if (v >= 99.5 || v == floor(v))
                snprintf(text, sizeof(text), "%.0f", v);
        else
                snprintf(text, sizeof(text), "%.2g", v);
        buf_printf(b, "%*s", width, text);
}

static double value_of(yyjson_val *object, const char *key) {
        return json_get_double(object, key, NAN);
}

/* The last five minutes of one figure, the largest of each few points to a cell; blank: nothing was measured. */
static void add_line(struct buf *b, yyjson_val *history, const char *key, double step_ms) {
        static const char *const heights[] = {"▁", "▂", "▃", "▄", "▅", "▆", "▇", "█"};
        double cells[CELLS], peak = 0, cell_ms = step_ms * 5;
        yyjson_val *point;
        size_t i, n;

        for (i = 0; i < CELLS; i++)
                cells[i] = NAN;
        yyjson_arr_foreach(history, i, n, point) {
                double v = value_of(point, key), ago = value_of(point, "ago_ms");

                if (isnan(v) || !(ago >= 0 && ago < CELLS * cell_ms))
                        continue;
                size_t cell = CELLS - 1 - (size_t)(ago / cell_ms);

                cells[cell] = isnan(cells[cell]) || v > cells[cell] ? v : cells[cell];
                peak = v > peak ? v : peak;
        }
        for (i = 0; i < CELLS; i++)
                buf_add_str(b, isnan(cells[i]) ? " " : heights[peak > 0 ? (size_t)(7 * (cells[i] / peak)) : 0]);
}

static void add_rates(struct buf *b, yyjson_val *load) {
        static const struct {
                const char *label, *key, *second, *unit;
                double times;
        } rows[] = {
            {"requests/s", "requests", NULL, "", 1},
            {"errors/s", "errors", NULL, "", 1},
            {"streams", "streams", NULL, "", 1},
            {"events/s", "events", NULL, "", 1},
            {"ttft p50/p99", "ttft_p50", "ttft_p99", " ms", 1000},
            {"itl p50/p99", "itl_p50", "itl_p99", " ms", 1000},
        };
        yyjson_val *history = json_get(load, "history"), *last = yyjson_arr_get_last(history);

        for (size_t i = 0; i < sizeof(rows) / sizeof(*rows); i++) {
                buf_printf(b, "%-13s", rows[i].label);
                add_number(b, rows[i].times * value_of(last, rows[i].key), 8);
                if (rows[i].second) {
                        buf_add_str(b, " /");
                        add_number(b, rows[i].times * value_of(last, rows[i].second), 7);
                } else {
                        buf_printf(b, "%9s", "");
                }
                buf_printf(b, "%-3s  ", rows[i].unit);
                add_line(b, history, rows[i].second ? rows[i].second : rows[i].key, value_of(load, "step_ms"));
                buf_add_str(b, i == 0 ? "  last 5 min\n" : "\n");
        }
}

static const char *color_of(struct slice state) {
        return slice_is(state, "healthy") ? "\033[32m" : slice_is(state, "ejected") ? "\033[31m" : "\033[33m";
}

static void add_instance(struct buf *b, yyjson_val *i, bool color) {
        struct slice state = json_get_slice(i, "state");

        add_plain(b, json_get_slice(i, "name"), 22);
        buf_add_char(b, ' ');
        add_plain(b, json_get_slice(i, "role"), 8);
        buf_printf(b, " %s", color ? color_of(state) : "");
        add_plain(b, state, 8);
        buf_add_str(b, color ? "\033[0m" : "");
        add_number(b, value_of(i, "requests"), 7);
        add_number(b, value_of(i, "tokens"), 9);
        add_number(b, value_of(i, "held_requests"), 8);
        add_number(b, value_of(i, "done"), 9);
        add_number(b, value_of(i, "failed"), 8);
        buf_add_str(b, json_get_bool(i, "stands_back", false) ? "  stands back\n" : "\n");
}

/* `lines`: of the terminal, 0: as many as there are. */
static void add_instances(struct buf *b, yyjson_val *load, size_t lines, bool color) {
        yyjson_val *list = json_get(load, "instances"), *item;
        size_t i, n, shown = 0, room = lines > OTHER_LINES ? lines - OTHER_LINES : lines ? 1 : SIZE_MAX;
        int64_t count = json_get_i64(load, "instance_count", 0);

        buf_printf(b, "\n%-22s %-8s %-8s%7s%9s%8s%9s%8s\n", "instance", "role", "state", "legs", "tokens", "kv held",
            "done", "failed");
        yyjson_arr_foreach(list, i, n, item) {
                if (shown == room)
                        break;
                add_instance(b, item, color);
                shown++;
        }
        if (count > (int64_t)shown)
                buf_printf(b, "and %lld more\n", (long long)count - (long long)shown);
}

static void draw(struct buf *b, yyjson_val *load, const char *url, size_t lines, bool color) {
        static const char *const counts[][2] = {{"running", "in flight"}, {"streams", "streams"},
            {"waiting", "waiting"}, {"continued", "continued elsewhere"}, {"cut", "cut"}, {"stranded", "stranded"}};
        bool ready = json_get_bool(load, "ready", false), draining = json_get_bool(load, "draining", false);

        buf_printf(b, "gateway %s  %s%s%s\n", url, color ? (ready ? "\033[32m" : "\033[31m") : "",
            draining ? "draining"
            : ready  ? "ready"
                     : "not ready",
            color ? "\033[0m" : "");
        for (size_t i = 0; i < sizeof(counts) / sizeof(*counts); i++) {
                buf_add_str(b, i ? " · " : "");
                add_number(b, value_of(load, counts[i][0]), 0);
                buf_printf(b, " %s", counts[i][1]);
        }
        buf_add_str(b, "\n\n");
        add_rates(b, load);
        add_instances(b, load, lines, color);
}

/* ---- looking ---------------------------------------------------------------------------------------------------------- */

/* 0 or a negative errno with a text. */
static int ask(
    struct http_fetcher *fetcher, const char *url, const struct options *o, struct buf *json, struct error *e) {
        struct http_fetched fetched;
        int r = http_fetch_url(fetcher, url, "/debug/load", SLICE_NONE, o->admin_key, TIMEOUT_MS, json, &fetched, e);

        if (r < 0)
                return r;
        if (fetched.status == 401)
                return error_set(e, -EACCES, "%s wants its admin key (--admin-key)", url);
        if (fetched.status != 200)
                return error_set(
                    e, -EPROTO, "%s answered status %d to /debug/load: is it a baton gateway?", url, fetched.status);
        return 0;
}

static size_t terminal_lines(void) {
        struct winsize size;

        return ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) == 0 ? size.ws_row : 0;
}

/* One look. An exit code. */
static int look(struct http_fetcher *fetcher, const char *url, const struct options *o) {
        bool terminal = isatty(STDOUT_FILENO) == 1, redraw = terminal && !o->once;
        struct buf json = {0}, b = {0};
        struct error e = {0};
        yyjson_doc *doc = NULL;
        int r = ask(fetcher, url, o, &json, &e), code;

        if (r == 0)
                r = json_parse(buf_slice(&json), &doc, &e);
        if (r < 0) {
                buf_free(&json);
                return cli_fail(r, &e);
        }
        if (!strcmp(o->format, "json")) {
                buf_add(&b, buf_slice(&json));
                buf_add_char(&b, '\n');
        } else {
                buf_add_str(&b, redraw ? "\033[H\033[J" : "");
                draw(&b, yyjson_doc_get_root(doc), url, redraw ? terminal_lines() : 0, cli_color(STDOUT_FILENO));
        }
        code = json_get_bool(yyjson_doc_get_root(doc), "ready", false) ? EXIT_FINE : EXIT_NOT_FINE;
        yyjson_doc_free(doc);
        buf_free(&json);
        return cli_print(&b, code);
}

static bool is_url(const char *text) {
        return strstr(text, "://") || !strncmp(text, "unix:", 5);
}

/* The gateway's URL of a cluster file. -1 to go on, or an exit code. */
static int url_of_file(const char *path, struct cli_plan *plan, const char **ret_url) {
        int r = cli_plan_read(path, plan);

        if (r >= 0)
                return r;
        if (!plan->plan->gateway_argv) {
                fprintf(stderr, "baton top: %s has no gateway\n", path);
                return EXIT_USAGE;
        }
        *ret_url = arena_copy(&plan->arena, plan->plan->gateway_url).ptr;
        return *ret_url ? -1 : EXIT_NOT_FINE;
}

int cmd_top(int argc, char **argv) {
        struct options o = {.format = "text", .interval = 2};
        struct options_result parsed = {0};
        struct http_client_options client = {0};
        struct http_fetcher *fetcher = NULL;
        struct cli_plan plan = {0};
        struct error e = {0};
        const char *url;
        int r = cli_options(&set, argc, argv, &o, &parsed);

        if (r >= 0)
                return r;
        url = parsed.count_positional ? parsed.positional[0] : NULL;
        if (!url || !(o.interval >= 0.1 && o.interval <= 3600)) {
                fprintf(stderr, "baton top: %s; usage: %s\n",
                    url ? "--interval is 0.1 to 3600 seconds" : "which gateway", set.usage);
                r = EXIT_USAGE;
        } else if (!is_url(url)) {
                r = url_of_file(url, &plan, &url);
        }
        if (r < 0 && http_fetcher_new(&client, &fetcher, &e) < 0)
                r = cli_fail(-ENOMEM, &e);
        if (r < 0)
                do
                        r = look(fetcher, url, &o);
                while (!o.once && r != EXIT_UNKNOWN && poll(NULL, 0, (int)(o.interval * 1000)) == 0);
        http_fetcher_free(fetcher);
        cli_plan_free(&plan);
        options_result_free(&parsed);
        return r;
}
