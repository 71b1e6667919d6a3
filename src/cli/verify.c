/* verify.c - `baton verify`: asks the machines of a cluster, NPUs through their own tools, and reports what is wrong. */
#include "base/clock.h"
#include "cli/npus.h"
#include "os/os.h"
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

/* Of "--agent-answer -- WORDS"; people give one, the file. */
#define AGENT_WORDS_MAX 4

struct verify_options {
        const char *format, *ping, *check, *report, *remote_baton;
        struct option_list nodes;
        bool agent, agent_answer, json, quiet;
};

static const struct option verify_table[] = {
    {"format", 0, OPTION_STRING, offsetof(struct verify_options, format), NULL, "how to print the report",
        .choices = "text|json"},
    {"json", 0, OPTION_FLAG, offsetof(struct verify_options, json), NULL, "the same as --format json"},
    {"report", 0, OPTION_STRING, offsetof(struct verify_options, report), "FILE",
        "write an HTML page too, with the pings as a picture"},
    {"node", 0, OPTION_LIST, offsetof(struct verify_options, nodes), "NAME", "only these nodes"},
    {"check", 0, OPTION_STRING, offsetof(struct verify_options, check), NULL,
        "NPUs, hosts (ports, clocks, limits, the model's files), or both", .choices = "all|npus|hosts"},
    {"ping", 0, OPTION_STRING, offsetof(struct verify_options, ping), NULL,
        "every NPU to every NPU of other nodes, or not at all", .choices = "all|none"},
    {"remote-baton", 0, OPTION_STRING, offsetof(struct verify_options, remote_baton), "PATH",
        "where baton is on other nodes; default: in the PATH"},
    {"quiet", 'q', OPTION_FLAG, offsetof(struct verify_options, quiet), NULL, "no progress on stderr"},
    {"agent", 0, OPTION_FLAG, offsetof(struct verify_options, agent), NULL, NULL},
    {"agent-answer", 0, OPTION_FLAG, offsetof(struct verify_options, agent_answer), NULL, NULL},
};
static const struct option_set verify_set = {"baton verify FILE [options]",
    "Asks every machine of a cluster file (this one here, others over ssh): NPUs through hccn_tool and npu-smi, with "
    "pings "
    "between all of them, and hosts by themselves, with the planned ports opened and tried from one another. Reports "
    "what is "
    "wrong with cause and cure. hccs_ping and TLS want root. Exit code 0: fine, perhaps with warnings; 1: something is "
    "broken; 3: something could not be found out.",
    verify_table, sizeof(verify_table) / sizeof(*verify_table), AGENT_WORDS_MAX};

static bool is_named(const struct option_list *names, struct slice node) {
        for (size_t i = 0; i < names->count; i++)
                if (slice_is(node, names->items[i]))
                        return true;
        return false;
}

static int keep_nodes(struct facts *facts, const struct option_list *names) {
        size_t kept = 0;

        for (size_t i = 0; i < names->count; i++) {
                size_t at = 0;

                while (at < facts->node_count && !slice_is(facts->nodes[at].name, names->items[i]))
                        at++;
                if (at == facts->node_count) {
                        fprintf(stderr, "baton verify: no node %s is used in this cluster file\n", names->items[i]);
                        return EXIT_USAGE;
                }
        }
        for (size_t i = 0; i < facts->node_count; i++)
                if (!names->count || is_named(names, facts->nodes[i].name))
                        facts->nodes[kept++] = facts->nodes[i];
        facts->node_count = kept;
        return -1;
}

/* A folder by a path that means the same elsewhere; "" when there is none (a name on a hub). */
static const char *model_folder(const struct cluster *c, struct arena *arena) {
        const char *path = arena_copy(arena, c->model.path).ptr;
        char *real;

        if (!path || *path == '/')
                return path;
        real = realpath(path, NULL);
        path = real ? arena_copy(arena, slice_str(real)).ptr : "";
        free(real);
        return path;
}

/* What each host is to carry, and which of them are asked about NPUs. */
static int prepare_hosts(
    const struct verify_options *o, const struct cluster *c, struct facts *facts, struct arena *arena) {
        struct findings findings = {.arena = arena};
        struct plan *plan = NULL;
        int r = plan_make(c, "baton", arena, &plan, &findings);

        if (r == -ENOMEM)
                return r;
        r = facts_plan_hosts(facts, c, r < 0 ? NULL : plan, arena);
        if (r < 0)
                return r;
        facts->hosts.model = model_folder(c, arena);
        for (size_t i = 0; i < facts->node_count; i++)
                facts->nodes[i].host_only |= !strcmp(o->check, "hosts");
        return facts->hosts.model ? 0 : -ENOMEM;
}

static int ask_and_judge(const struct verify_options *o, const struct cluster *c, struct facts *facts,
    struct verify_findings *findings, struct arena *arena) {
        struct agents *agents = NULL;
        struct progress progress = cli_npu_progress(o->quiet);
        struct asker asker;
        int r = cli_npu_agents(c, facts, o->remote_baton, arena, &agents);

        if (r == 0) {
                asker = agents_asker(agents);
                if (strcmp(o->check, "npus") != 0)
                        r = collect_hosts(facts, &asker, &progress, arena);
        }
        if (r == 0)
                r = collect(facts, TOPICS_ALL, &asker, &progress, arena);
        if (r == 0 && !strcmp(o->ping, "all"))
                r = collect_pings(facts, &asker, &progress, arena);
        cli_npu_progress_end(o->quiet);
        agents_free(agents);
        return r < 0 ? r : judge(facts, findings);
}

/* Before minutes of asking: whether the report has a place. */
static int check_report_place(const char *path) {
        char *copy = strdup(path), *slash = copy ? strrchr(copy, '/') : NULL;
        const char *dir = slash == copy && slash ? "/" : slash ? copy : ".";
        int r = -1;

        if (slash)
                *slash = 0;
        if (access(dir, W_OK) < 0) {
                fprintf(stderr, "baton verify: cannot write --report %s: %s: %s\n", path, dir, strerror(errno));
                r = EXIT_USAGE;
        }
        free(copy);
        return r;
}

static int write_report(const char *path, const char *title, const struct facts *facts,
    const struct verify_findings *findings, struct error *e) {
        struct buf b = {0};
        char when[CLOCK_TEXT_MAX];
        int r;

        clock_text(clock_wall_ns(), when);
        verify_write_html(facts, findings, title, when, &b);
        r = buf_ok(&b) ? os_write_file_atomic(path, buf_slice(&b), 0644, e) : -ENOMEM;
        buf_free(&b);
        return r;
}

static int verify_file(const struct verify_options *o, const char *path) {
        struct arena arena = {0};
        struct facts facts;
        struct verify_findings findings = {.arena = &arena};
        struct cluster *c;
        struct error e = {0};
        struct buf b = {0};
        bool npus_only = !strcmp(o->check, "npus");
        int r = o->report ? check_report_place(o->report) : -1;

        if (r >= 0)
                goto out;
        r = npus_only ? cli_npu_cluster(path, &arena, &c, &facts) : cli_machines(path, &arena, &c, &facts);

        if (r >= 0)
                goto out;
        if (!npus_only && (r = prepare_hosts(o, c, &facts, &arena)) < 0) {
                r = cli_fail(r, &e);
                goto out;
        }
        r = keep_nodes(&facts, &o->nodes);
        if (r >= 0)
                goto out;
        r = ask_and_judge(o, c, &facts, &findings, &arena);
        if (r < 0) {
                r = cli_fail(r, &e);
                goto out;
        }
        if (o->report && (r = write_report(o->report, path, &facts, &findings, &e)) < 0) {
                r = cli_fail(r, &e);
                goto out;
        }
        if (o->json || !strcmp(o->format, "json"))
                verify_write_json(&facts, &findings, &b);
        else
                verify_write_text(&facts, &findings, cli_color(STDOUT_FILENO), &b);
        r = cli_print(&b, verify_exit_code(&findings));
out:
        arena_free(&arena);
        return r;
}

int cmd_verify(int argc, char **argv) {
        struct verify_options o = {.format = "text", .ping = "all", .check = "all"};
        struct options_result parsed;
        int r = cli_options(&verify_set, argc, argv, &o, &parsed);

        if (r >= 0)
                goto out;
        if (o.agent_answer)
                r = host_answer(parsed.positional, parsed.count_positional, STDOUT_FILENO);
        else if (o.agent)
                r = agent_serve(STDIN_FILENO, STDOUT_FILENO) < 0 ? EXIT_UNKNOWN : EXIT_FINE;
        else if (parsed.count_positional != 1) {
                fprintf(stderr, "baton verify: which file? usage: %s\n", verify_set.usage);
                r = EXIT_USAGE;
        } else
                r = verify_file(&o, parsed.positional[0]);
        options_result_free(&parsed);
out:
        options_list_free(&o.nodes);
        return r;
}
