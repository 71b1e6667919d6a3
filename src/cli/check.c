/* check.c - `baton check`, `baton plan`, `baton explain`: what a cluster file says, before anything starts. */
#include "cli/cli.h"
#include "cluster/cluster.h"
#include "verify/verify.h"
#include <stdio.h>
#include <unistd.h>

struct check_options {
        const char *format;
};

static const struct option check_table[] = {
    {"format", 0, OPTION_STRING, offsetof(struct check_options, format), NULL, "how to print findings",
        .choices = "text|json"},
};
static const struct option_set check_set = {"baton check FILE [--format text|json]",
    "Reads a cluster file and reports everything that is wrong with it, each with its place, cause and cure. Exit code "
    "0: no "
    "error; 1: errors; 2: the file cannot be read.",
    check_table, 1, 1};

int cmd_check(int argc, char **argv) {
        struct check_options o = {.format = "text"};
        struct options_result parsed;
        struct arena arena = {0};
        struct findings findings = {.arena = &arena};
        struct cluster *c;
        struct plan *plan;
        struct error e = {0};
        struct buf b = {0};
        const char *path;
        int r = cli_file_options(&check_set, argc, argv, &o, &parsed);

        if (r >= 0)
                return r;
        path = parsed.positional[0];
        options_result_free(&parsed); /* the path is argv's */
        r = cluster_read(path, &arena, &c, &findings, &e);
        if (r == 0)
                r = plan_make(c, "baton", &arena, &plan, &findings);
        findings_sort(&findings);
        if (r < 0 && !findings_count(&findings, SEVERITY_ERROR))
                r = cli_fail(r, &e);
        else {
                r = findings_count(&findings, SEVERITY_ERROR) ? EXIT_NOT_FINE : EXIT_FINE;
                if (!strcmp(o.format, "json"))
                        findings_write_json(&findings, path, &b);
                else if (findings.count)
                        findings_write_text(&findings, path, cli_color(STDOUT_FILENO), &b);
                else
                        buf_printf(&b, "%s: no findings\n", path);
                r = cli_print(&b, r);
        }
        arena_free(&arena);
        return r;
}

static const struct option plan_table[] = {
    {"format", 0, OPTION_STRING, offsetof(struct check_options, format), NULL, "how to print the plan",
        .choices = "table|json"},
};
static const struct option_set plan_set = {"baton plan FILE [--format table|json]",
    "Shows what follows from a cluster file: every rank with its node, ports and URL; --format json has the "
    "environment and "
    "argv of every process too.",
    plan_table, 1, 1};

int cmd_plan(int argc, char **argv) {
        struct check_options o = {.format = "table"};
        struct options_result parsed;
        struct cli_plan p;
        struct buf b = {0};
        int r = cli_file_options(&plan_set, argc, argv, &o, &parsed);

        if (r >= 0)
                return r;
        r = cli_plan_read(parsed.positional[0], &p);
        if (r < 0) {
                if (!strcmp(o.format, "json"))
                        plan_write_json(p.plan, &b);
                else
                        plan_write_table(p.plan, &b);
                r = cli_print(&b, EXIT_FINE);
        }
        cli_plan_free(&p);
        options_result_free(&parsed);
        return r;
}

static const struct option_set explain_set = {"baton explain [CODE]",
    "Prints the rule behind a finding's code and why it holds; without a code, all of them.", NULL, 0, 1};

int cmd_explain(int argc, char **argv) {
        struct options_result parsed;
        const struct rule *rule;
        size_t count;
        int r = cli_options(&explain_set, argc, argv, NULL, &parsed);

        if (r >= 0)
                return r;
        r = EXIT_FINE;
        if (parsed.count_positional) {
                rule = rule_find(slice_str(parsed.positional[0]));
                if (!rule)
                        rule = verify_rule_find(slice_str(parsed.positional[0]));
                if (rule)
                        printf("%s  %s\n    %s\n", rule->code, rule->title, rule->why);
                else {
                        fprintf(stderr, "baton explain: no rule has the code `%s`; `baton explain` lists them\n",
                            parsed.positional[0]);
                        r = EXIT_USAGE;
                }
        } else {
                rule = rule_list(&count);
                for (size_t i = 0; i < count; i++)
                        printf("%s  %s\n", rule[i].code, rule[i].title);
                for (size_t i = 0; (rule = verify_rule_at(i)); i++)
                        printf("%s  %s\n", rule->code, rule->title);
        }
        options_result_free(&parsed);
        return r;
}
