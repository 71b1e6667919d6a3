/* init.c - `baton init`: a commented cluster file for a topology. */
#include "base/file.h"
#include "cli/cli.h"
#include "cluster/cluster.h"
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

struct init_command {
        struct init_options init;
        struct option_list prefill_hosts, decode_hosts;
        const char *output;
        bool recipes, force;
};

#define AT(member) offsetof(struct init_command, member)
#define COUNT(n, at, t)                                                                                                \
        { n, 0, OPTION_INT, at, "N", t, .min = 1, .max = 65536 }

static const struct option init_table[] = {
    {"recipe", 0, OPTION_STRING, AT(init.recipe), "NAME", "begin with a documented deployment"},
    {"recipes", 0, OPTION_FLAG, AT(recipes), NULL, "list them"},
    {"platform", 0, OPTION_STRING, AT(init.platform), NULL, "the machines",
        .choices = "cpu|ascend-a2|ascend-a3|ascend-a5|cuda"},
    {"engine", 0, OPTION_STRING, AT(init.engine), NULL, "default: by platform", .choices = "embedded|vllm-ascend|vllm"},
    {"engine-version", 0, OPTION_STRING, AT(init.version), "V", "such as 0.9.1; default: the newest"},
    {"connector", 0, OPTION_STRING, AT(init.connector), "NAME", "how KV goes from prefill to decode"},
    {"ranktable", 0, OPTION_STRING, AT(init.ranktable), "PATH", "where nodes find it, if the connector reads one"},
    {"model", 0, OPTION_STRING, AT(init.model), "PATH", "the checkpoint's folder on the nodes"},
    {"served-name", 0, OPTION_STRING, AT(init.served_name), "NAME", "what clients call it"},
    {"max-len", 0, OPTION_INT, AT(init.max_len), "N", "tokens of a prompt and its answer", .min = 1, .max = 1 << 24},
    {"prefill-hosts", 0, OPTION_LIST, AT(prefill_hosts), "IP", "addresses of the prefill nodes"},
    {"decode-hosts", 0, OPTION_LIST, AT(decode_hosts), "IP", "addresses of the decode nodes"},
    COUNT("prefill-nodes", AT(init.roles[0].nodes), "how many, with made-up addresses"),
    COUNT("decode-nodes", AT(init.roles[1].nodes), "how many, with made-up addresses"),
    COUNT("prefill-group", AT(init.roles[0].group_nodes), "nodes of a prefill DP group, default 1"),
    COUNT("decode-group", AT(init.roles[1].group_nodes), "nodes of a decode DP group, default all"),
    COUNT("prefill-dp", AT(init.roles[0].dp), "ranks of a group, default: what its devices give"),
    COUNT("decode-dp", AT(init.roles[1].dp), "likewise"),
    COUNT("prefill-tp", AT(init.roles[0].tp), "devices of a rank, default 8 (cpu: 1)"),
    COUNT("decode-tp", AT(init.roles[1].tp), "devices of a rank, default 1"),
    {"whole", 0, OPTION_FLAG, AT(init.whole), NULL, "no prefill nodes: every rank does both"},
    {"nic", 0, OPTION_STRING, AT(init.nic), "NAME", "the nodes' interface, default eth0"},
    {"port", 0, OPTION_INT, AT(init.gateway_port), "N", "of the gateway, default 8000", .min = 1, .max = 65535},
    {"output", 'o', OPTION_STRING, AT(output), "FILE", "default: standard output"},
    {"force", 0, OPTION_FLAG, AT(force), NULL, "overwrite FILE"},
};
static const struct option_set init_set = {"baton init [options]",
    "Writes a commented cluster file. What it writes passes `baton check`, or it says what does not fit and writes "
    "nothing.",
    init_table, sizeof(init_table) / sizeof(*init_table), 0};

static int list_recipes(void) {
        struct buf b = {0};
        const struct init_recipe *r;

        for (size_t i = 0; (r = init_recipe(i)); i++)
                buf_printf(&b, "%-18s %s\n", r->name, r->about);
        return cli_print(&b, EXIT_FINE);
}

/* Returns -1 when the text breaks no rule, else the exit code, everything said. */
static int check(struct slice text, const char *name) {
        struct arena arena = {0};
        struct findings findings = {.arena = &arena};
        struct cluster *c;
        int r = cluster_parse(name, text, &arena, &c, &findings);

        if (r == 0)
                r = plan_check(c, &arena, &findings);
        cli_say_findings(&findings, name);
        r = r == 0 ? -1 : findings_count(&findings, SEVERITY_ERROR) ? EXIT_USAGE : cli_fail(r, NULL);
        arena_free(&arena);
        return r;
}

static int write_file(const struct init_command *o, struct buf *text) {
        struct error e = {0};
        int fd = open(o->output, O_WRONLY | O_CREAT | O_CLOEXEC | (o->force ? O_TRUNC : O_EXCL), 0644), r;

        if (fd < 0 && errno == EEXIST) {
                fprintf(stderr, "baton init: %s exists; --force overwrites it\n", o->output);
                return EXIT_USAGE;
        }
        if (fd < 0) {
                r = -errno;
                error_set(&e, r, "cannot write %s: %s", o->output, strerror(errno));
                return cli_fail(r, &e);
        }
        r = file_write_fd(fd, buf_slice(text));
        if (close(fd) < 0 && r == 0)
                r = -errno;
        if (r < 0) {
                error_set(&e, r, "cannot write %s: %s", o->output, strerror(-r));
                return cli_fail(r, &e);
        }
        fprintf(stderr, "%s written; `baton check %s`, then `baton plan %s`\n", o->output, o->output, o->output);
        return EXIT_FINE;
}

int cmd_init(int argc, char **argv) {
        struct init_command o = {0};
        struct options_result parsed;
        struct error e = {0};
        struct buf text = {0};
        int r = cli_options(&init_set, argc, argv, &o, &parsed);

        if (r >= 0)
                return r;
        if (o.recipes)
                r = list_recipes();
        else {
                o.init.roles[ROLE_PREFILL].hosts = o.prefill_hosts.items;
                o.init.roles[ROLE_PREFILL].host_count = o.prefill_hosts.count;
                o.init.roles[ROLE_DECODE].hosts = o.decode_hosts.items;
                o.init.roles[ROLE_DECODE].host_count = o.decode_hosts.count;
                r = init_write(&o.init, &text, &e);
                r = r < 0 ? cli_fail(r, &e) : check(buf_slice(&text), o.output ? o.output : "what would be written");
                if (r < 0)
                        r = o.output ? write_file(&o, &text) : cli_print(&text, EXIT_FINE);
        }
        buf_free(&text);
        options_list_free(&o.prefill_hosts);
        options_list_free(&o.decode_hosts);
        options_result_free(&parsed);
        return r;
}
