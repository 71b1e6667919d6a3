/* logs.c - `baton logs`: what ranks and the gateway wrote, over all nodes of a cluster file. */
#include "cli/nodes.h"
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#define LOGS_MS 20000u
/* A node waits so long for news before it answers that there are none. */
#define NEWS_MS 2000

struct logs_options {
        struct nodes_options nodes;
        bool follow;
        int64_t lines;
};
static const struct option logs_table[] = {
    {"follow", 'f', OPTION_FLAG, offsetof(struct logs_options, follow), NULL, "go on with new lines until Ctrl-C"},
    {"lines", 'n', OPTION_INT, offsetof(struct logs_options, lines), "N", "so many last lines of each (20)", .min = 0,
        .max = 100000},
    NODES_OPTIONS(offsetof(struct logs_options, nodes)),
};
static const struct option_set logs_set = {"baton logs FILE [RANK] [--follow] [-n N]",
    "Shows what the ranks and the gateway wrote, on all nodes, or one of them.", logs_table,
    sizeof(logs_table) / sizeof(*logs_table), 2};

struct followed {
        struct slice name;
        size_t node; /* index of the target */
        int64_t at;  /* -1: not begun */
};

static void print_lines(struct slice name, struct slice text, bool named) {
        struct slice line;

        if (text.len && text.ptr[text.len - 1] == '\n')
                text.len--;
        while (text.len && slice_split(&text, '\n', &line)) {
                if (named)
                        printf("%-10.*s ", SLICE_ARG(name));
                printf("%.*s\n", SLICE_ARG(line));
        }
        fflush(stdout);
}

/* One line that asks for all that is followed on a node. */
static void write_request(
    const struct followed *list, size_t count, size_t node, int64_t lines, int wait_ms, struct buf *out) {
        struct json_writer w = {.out = out};

        json_open(&w, '{');
        json_key(&w, "op");
        json_str(&w, "logs");
        json_key(&w, "wait_ms");
        json_i64(&w, wait_ms);
        json_key(&w, "of");
        json_open(&w, '[');
        for (size_t i = 0; i < count; i++) {
                if (list[i].node != node)
                        continue;
                json_open(&w, '{');
                json_key(&w, "name");
                json_string(&w, list[i].name);
                json_key(&w, list[i].at < 0 ? "lines" : "at");
                json_i64(&w, list[i].at < 0 ? lines : list[i].at);
                json_close(&w, '}');
        }
        json_close(&w, ']');
        json_close(&w, '}');
}

static void take(struct followed *list, size_t count, yyjson_val *logs) {
        yyjson_val *item;
        size_t k, max;

        yyjson_arr_foreach(logs, k, max, item) {
                struct slice name = json_get_slice(item, "name");

                for (size_t i = 0; i < count; i++)
                        if (slice_eq(list[i].name, name)) {
                                list[i].at = json_get_i64(item, "at", -1);
                                print_lines(name, json_get_slice(item, "text"), count > 1);
                        }
        }
}

/* Ask every node once; with `wait_ms` it answers when it has news. False: nobody is left to ask, or the user ends it. */
static bool round_of(struct nodes *n, struct followed *list, size_t count, int64_t lines, int wait_ms) {
        struct buf *requests = calloc(n->count, sizeof(*requests));
        struct remote_call *calls = calloc(n->count, sizeof(*calls));
        size_t asked = 0;
        bool interrupted = false;

        for (size_t i = 0; requests && calls && i < n->count; i++) {
                bool any = false;

                for (size_t k = 0; k < count; k++)
                        any |= list[k].node == i;
                if (!any || remote_trouble(n->remote, i))
                        continue;
                write_request(list, count, i, lines, wait_ms, &requests[asked]);
                calls[asked] = (struct remote_call){.node = i, .request = buf_slice(&requests[asked])};
                asked++;
        }
        if (asked)
                interrupted = remote_ask(n->remote, calls, asked, LOGS_MS, n->interrupt_fd) == -EINTR;
        for (size_t i = 0; i < asked; i++) {
                yyjson_doc *doc = NULL;

                if (calls[i].answer.len && json_parse(buf_slice(&calls[i].answer), &doc, NULL) == 0) {
                        take(list, count, json_get(yyjson_doc_get_root(doc), "logs"));
                        yyjson_doc_free(doc);
                }
                buf_free(&calls[i].answer);
                buf_free(&requests[i]);
        }
        free(requests);
        free(calls);
        return !interrupted && asked;
}

static int show_logs(struct nodes *n, const struct logs_options *o, struct followed *list, size_t count) {
        int r = EXIT_NOT_FINE;

        round_of(n, list, count, o->lines, 0);
        for (size_t i = 0; i < count; i++)
                if (list[i].at >= 0)
                        r = EXIT_FINE;
        while (o->follow && !ferror(stdout) && round_of(n, list, count, o->lines, NEWS_MS))
                ;
        if (nodes_lost(n)) {
                nodes_say_lost(n);
                return EXIT_UNKNOWN;
        }
        if (r == EXIT_NOT_FINE)
                fprintf(stderr, "baton logs: nothing was written yet\n");
        return r;
}

/* The processes that are meant: all of the nodes', or the one of that name. */
static size_t find_followed(const struct nodes *n, const char *only, struct followed *list) {
        const struct plan *p = n->plan.plan;
        size_t count = 0;

        for (size_t i = 0; i <= p->rank_count; i++) {
                struct slice name = i < p->rank_count ? p->ranks[i].name : SLICE_LIT("gateway");
                size_t node = nodes_of_process(n, name);

                if (node < n->count && (!only || slice_is(name, only)))
                        list[count++] = (struct followed){name, node, -1};
        }
        return count;
}

int cmd_logs(int argc, char **argv) {
        struct logs_options o = {.lines = 20};
        struct options_result parsed;
        struct followed *list = NULL;
        const char *only;
        struct nodes n;
        size_t count = 0;
        int r = cli_file_options(&logs_set, argc, argv, &o, &parsed);

        if (r >= 0)
                return r;
        only = parsed.count_positional > 1 ? parsed.positional[1] : NULL;
        r = nodes_of_file(parsed.positional[0], &o.nodes, &n);
        if (r < 0) {
                list = calloc(n.plan.plan->rank_count + 1, sizeof(*list));
                count = list ? find_followed(&n, only, list) : 0;
                if (!count) {
                        fprintf(stderr, "baton logs: no rank is named `%s`; `baton plan %s` lists them\n",
                            only ? only : "", parsed.positional[0]);
                        r = EXIT_USAGE;
                }
        }
        if (r < 0 && only) { /* only its node is asked */
                n.targets[0] = n.targets[list[0].node];
                n.index[0] = n.index[list[0].node];
                list[0].node = 0;
                n.count = n.options.count = 1;
        }
        if (r < 0)
                r = nodes_open(&n);
        if (r < 0)
                r = show_logs(&n, &o, list, count);
        free(list);
        nodes_close(&n);
        options_result_free(&parsed);
        return r;
}
