/* check.c - `baton check`, `baton plan`, `baton explain`: what a cluster file says, before anything starts. */
#include "cli/cli.h"
#include "cluster/cluster.h"
#include "os/os.h"
#include "verify/verify.h"
#include <errno.h>
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
                r = plan_check(c, &arena, &findings);
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

struct plan_options {
        const char *format, *node, *image, *output;
};

static const struct option plan_table[] = {
    {"format", 0, OPTION_STRING, offsetof(struct plan_options, format), NULL, "how to show the plan",
        .choices = "table|json|shell|systemd|docker|k8s|slurm"},
    {"node", 0, OPTION_STRING, offsetof(struct plan_options, node), "NAME",
        "only this node's files (shell, systemd, docker)"},
    {"image", 0, OPTION_STRING, offsetof(struct plan_options, image), "NAME", "of the containers (docker, k8s)"},
    {"output", 'o', OPTION_STRING, offsetof(struct plan_options, output), "FOLDER",
        "write files there instead of to standard output"},
};
static const struct option_set plan_set = {"baton plan FILE [--format FORMAT] [--node NAME] [-o FOLDER]",
    "Shows what follows from a cluster file: every rank with its node, devices, ports and URL; as json with the "
    "environment "
    "and argv of every process too. The other formats are for launchers other than baton's: a script per node that "
    "stands "
    "alone, systemd units, docker run lines, a manifest of LeaderWorkerSets, a Slurm batch script.",
    plan_table, sizeof(plan_table) / sizeof(*plan_table), 1};

static const char *const export_names[] = {[EXPORT_SHELL] = "shell",
    [EXPORT_SYSTEMD] = "systemd",
    [EXPORT_DOCKER] = "docker",
    [EXPORT_K8S] = "k8s",
    [EXPORT_SLURM] = "slurm"};
#define EXPORT_COUNT (sizeof(export_names) / sizeof(*export_names))

static size_t find_export(const char *name) {
        size_t i = 0;

        while (i < EXPORT_COUNT && strcmp(export_names[i], name))
                i++;
        return i;
}

/* Write one file below `folder`, made if need be. */
static int write_export(struct arena *arena, const char *folder, const struct export_file *f, struct error *e) {
        char *path = arena_printf(arena, "%s/%s", folder, f->name);
        char *slash = path ? strrchr(path, '/') : NULL;
        int r;

        if (!slash)
                return -ENOMEM;
        *slash = 0;
        r = os_make_dirs(path, 0755, e);
        *slash = '/';
        return r < 0 ? r : os_write_file_atomic(path, f->text, f->executable ? 0755 : 0644, e);
}

/* One file goes to standard output as it is; of several each gets a line with its name in front. */
static int export_plan(struct cli_plan *p, enum export_format format, const struct plan_options *o) {
        const struct export_file *files;
        struct error e = {0};
        struct buf b = {0};
        size_t count, wanted = 0, shown = 0;
        int r = plan_export(p->plan, format, o->image, &p->arena, &files, &count, &e);

        for (size_t i = 0; r == 0 && i < count; i++)
                wanted += !o->node || slice_is(files[i].node, o->node);
        if (r == 0 && !wanted)
                r = error_set(&e, -EINVAL, "nothing is planned for a node named `%.60s`", o->node);
        for (size_t i = 0; r == 0 && i < count; i++) {
                if (o->node && !slice_is(files[i].node, o->node))
                        continue;
                if (o->output)
                        r = write_export(&p->arena, o->output, &files[i], &e);
                else {
                        if (wanted > 1)
                                buf_printf(&b, "%s# ---- %s\n", shown++ ? "\n" : "", files[i].name);
                        buf_add(&b, files[i].text);
                }
        }
        if (r < 0) {
                buf_free(&b);
                return cli_fail(r, &e);
        }
        if (o->output)
                fprintf(stderr, "%zu file%s written to %s\n", wanted, wanted == 1 ? "" : "s", o->output);
        return cli_print(&b, EXIT_FINE);
}

int cmd_plan(int argc, char **argv) {
        struct plan_options o = {.format = "table"};
        struct options_result parsed;
        struct cli_plan p;
        struct buf b = {0};
        size_t format;
        int r = cli_file_options(&plan_set, argc, argv, &o, &parsed);

        if (r >= 0)
                return r;
        format = find_export(o.format);
        r = format < EXPORT_COUNT ? cli_plan_read_as(parsed.positional[0], "baton", &p)
                                  : cli_plan_read(parsed.positional[0], &p);
        if (r < 0 && format < EXPORT_COUNT)
                r = export_plan(&p, (enum export_format)format, &o);
        else if (r < 0) {
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
