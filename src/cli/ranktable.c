/* ranktable.c - `baton ranktable`: the table of all NPUs, from a cluster file or with gen_ranktable.sh's flags. */
#include "base/file.h"
#include "base/hash.h"
#include "cli/npus.h"
#include "os/os.h"
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct ranktable_options {
        const char *output, *format, *role, *node, *remote_baton, *local_ids, *nic;
        struct option_list merge, ips;
        int64_t npus_per_node, prefill, decode;
        bool quiet;
};

#define OPT(name, kind, field, value, help)                                                                            \
        { name, 0, kind, offsetof(struct ranktable_options, field), value, help }
static const struct option ranktable_table[] = {
    OPT("output", OPTION_STRING, output, "PATH", "where to write; default ./ranktable.json, `-`: stdout"),
    {"format", 0, OPTION_STRING, offsetof(struct ranktable_options, format), NULL,
        "page: what LLMDataDist's connector reads; hccl-1.0, hccl-1.2: HCCL's RANK_TABLE_FILE",
        .choices = "page|hccl-1.0|hccl-1.2"},
    {"role", 0, OPTION_STRING, offsetof(struct ranktable_options, role), NULL, "only the NPUs of a role (HCCL tables)",
        .choices = "all|prefill|decode"},
    OPT("node", OPTION_STRING, node, "NAME", "ask this machine only, as node NAME, and write that node's part"),
    OPT("merge", OPTION_LIST, merge, "PART", "ask nobody: make the table of the parts that --node wrote on each node"),
    OPT("remote-baton", OPTION_STRING, remote_baton, "PATH", "where baton is on other nodes; default: in the PATH"),
    {"quiet", 'q', OPTION_FLAG, offsetof(struct ranktable_options, quiet), NULL, "no progress on stderr"},
    OPT("ips", OPTION_LIST, ips, "IP", "instead of FILE: the nodes, prefill first (gen_ranktable.sh)"),
    OPT("npus-per-node", OPTION_INT, npus_per_node, "N", "how many NPUs each of --ips should have"),
    OPT("prefill-device-cnt", OPTION_INT, prefill, "N", "the first N NPUs prefill"),
    OPT("decode-device-cnt", OPTION_INT, decode, "N", "the next N NPUs decode"),
    OPT("network-card-name", OPTION_STRING, nic, "IF", "taken as gen_ranktable.sh has it; nothing is gathered over it"),
    OPT("local-device-ids", OPTION_STRING, local_ids, "IDS", "only these NPUs of every node, in this order: 0,1,4"),
    OPT("ranktable-path", OPTION_STRING, output, "PATH", NULL),
};
static const struct option_set ranktable_set = {
    "baton ranktable FILE [options] | baton ranktable --ips IP… --prefill-device-cnt P --decode-device-cnt D",
    "Asks every NPU for its address and ids (this node's here, others' over ssh) and writes the ranktable. Double, "
    "missing or "
    "foreign addresses and ids refuse it. The file is always made anew and replaced as a whole. Where ssh does not "
    "reach: "
    "--node on each node, then --merge. Exit code 0: written; 1: refused; 2: wrong use; 3: a node or tool gave no "
    "answer.",
    ranktable_table, sizeof(ranktable_table) / sizeof(*ranktable_table), 1};

struct ranktable_run {
        struct ranktable_options o;
        struct arena arena;
        struct cluster *cluster; /* NULL with --ips */
        struct facts facts;
        struct verify_findings findings;
        struct error e;
};

static int wrong_use(const char *text) {
        fprintf(stderr, "baton ranktable: %s\n", text);
        return EXIT_USAGE;
}

/* ---- the nodes -------------------------------------------------------------------------------------------------------- */

static int nodes_of_ips(struct ranktable_run *run) {
        const struct option_list *ips = &run->o.ips;
        int64_t per_node = run->o.npus_per_node;
        bool own = false;

        if (run->o.prefill < 1 || run->o.decode < 1)
                return wrong_use("--ips wants --prefill-device-cnt and --decode-device-cnt, both at least 1");
        if (per_node > 0 && !run->o.local_ids && run->o.prefill + run->o.decode > per_node * (int64_t)ips->count) {
                fprintf(stderr,
                    "baton ranktable: %lld prefill and %lld decode NPUs are asked for, %zu nodes of %lld have %lld\n",
                    (long long)run->o.prefill, (long long)run->o.decode, ips->count, (long long)per_node,
                    (long long)per_node * (long long)ips->count);
                return EXIT_USAGE;
        }
        run->facts = (struct facts){.platform = PLATFORM_ASCEND_A3, .node_count = ips->count};
        run->facts.nodes = arena_array(&run->arena, ips->count, sizeof(*run->facts.nodes));
        if (!run->facts.nodes)
                return cli_fail(-ENOMEM, &run->e);
        for (size_t i = 0; i < ips->count; i++) {
                struct slice ip = slice_str(ips->items[i]);

                for (size_t k = 0; k < i; k++)
                        if (slice_eq(run->facts.nodes[k].ip, ip)) {
                                fprintf(stderr, "baton ranktable: --ips has %s twice\n", ips->items[i]);
                                return EXIT_USAGE;
                        }
                run->facts.nodes[i] =
                    (struct node_facts){.name = ip, .ip = ip, .expected = per_node > 0 ? per_node : -1};
                own |= cli_is_own_address(ip);
        }
        if (!own && !run->o.merge.count)
                return wrong_use(
                    "no address of this machine is in --ips: run it on one of the nodes, or correct the list "
                    "(`hostname -I` tells this machine's)");
        return -1;
}

/* The page's generator has no word for the platform: the first node that tells its own gives it. */
static void settle_platform(struct ranktable_run *run) {
        for (size_t i = 0; i < run->facts.node_count && !run->cluster; i++)
                if (run->facts.nodes[i].platform_known) {
                        run->facts.platform = run->facts.nodes[i].platform;
                        return;
                }
}

static int choose_local(struct ranktable_run *run) {
        uint32_t ids[64];
        size_t count = 0;
        struct slice list = slice_str(run->o.local_ids), one;
        uint64_t id;
        int r;

        if (!run->o.local_ids)
                return -1;
        while (slice_split(&list, ',', &one)) {
                if (slice_to_u64(slice_trim(one), &id) < 0 || id > 1023 || count == 64)
                        return wrong_use("--local-device-ids takes numbers with commas between: 0,1,4");
                for (size_t i = 0; i < count; i++)
                        if (ids[i] == id)
                                return wrong_use("--local-device-ids has a number twice");
                ids[count++] = (uint32_t)id;
        }
        r = facts_choose(&run->facts, ids, count, &run->arena, &run->e);
        return r < 0 ? cli_fail(r, &run->e) : -1;
}

/* ---- asking, or reading parts ----------------------------------------------------------------------------------------- */

static int ask_nodes(struct ranktable_run *run) {
        struct agents *agents = NULL;
        struct progress progress = cli_npu_progress(run->o.quiet);
        struct asker asker;
        int r = cli_npu_agents(run->cluster, &run->facts, run->o.remote_baton, &run->arena, &agents);

        if (r == 0) {
                asker = agents_asker(agents);
                r = collect(&run->facts, TOPICS_RANKTABLE, &asker, &progress, &run->arena);
        }
        cli_npu_progress_end(run->o.quiet);
        agents_free(agents);
        return r < 0 ? cli_fail(r, &run->e) : -1;
}

#define PART_MAX (1u << 20)

static int read_parts(struct ranktable_run *run) {
        for (size_t i = 0; i < run->o.merge.count; i++) {
                struct buf b = {0};
                int r = file_read_whole(run->o.merge.items[i], PART_MAX, &b, &run->e);

                if (r == 0 && (r = part_read(&run->facts, buf_slice(&b), &run->arena, &run->e)) < 0)
                        error_prefix(&run->e, r, "%s", run->o.merge.items[i]);
                buf_free(&b);
                if (r < 0)
                        return cli_fail(r, &run->e);
        }
        for (size_t i = 0; i < run->facts.node_count; i++)
                if (!run->facts.nodes[i].from_part) {
                        fprintf(stderr, "baton ranktable: no part of node %.*s is given\n",
                            SLICE_ARG(run->facts.nodes[i].name));
                        return EXIT_USAGE;
                }
        return -1;
}

/* ---- judging ----------------------------------------------------------------------------------------------------------- */

/* What refuses the table is an error here, all else a warning: the table is right without it. */
static int say_findings(struct ranktable_run *run) {
        struct verify_findings said = run->findings;
        struct buf b = {0};
        bool refused = false;
        int code;

        for (size_t i = 0; i < said.count; i++) {
                bool grave = ranktable_refuses(&said.items[i]);

                said.items[i].severity = grave ? SEVERITY_ERROR : SEVERITY_WARNING;
                refused |= grave;
        }
        if (!said.count)
                return -1;
        code = verify_exit_code(&said);
        verify_write_text(&run->facts, &said, cli_color(STDERR_FILENO), &b);
        fflush(stderr);
        file_write_fd(STDERR_FILENO, buf_slice(&b));
        buf_free(&b);
        if (!refused)
                return -1;
        fputs("baton ranktable: nothing is written\n", stderr);
        return code;
}

/* ---- writing ----------------------------------------------------------------------------------------------------------- */

static int write_file(struct ranktable_run *run, const char *path, struct slice text, const char *what) {
        struct buf before = {0};
        const char *slash, *state = "new";
        int r = 0;

        if (!strcmp(path, "-")) {
                struct buf b = {0};

                buf_add(&b, text);
                return cli_print(&b, EXIT_FINE);
        }
        slash = strrchr(path, '/');
        if (slash && slash > path) {
                const char *folder = arena_copy(&run->arena, slice_of(path, (size_t)(slash - path))).ptr;

                r = folder ? os_make_dirs(folder, 0755, &run->e) : -ENOMEM;
        }
        if (r == 0 && file_read_whole(path, 64u << 20, &before, NULL) == 0)
                state = slice_eq(buf_slice(&before), text) ? "as it was" : "it was different before";
        buf_free(&before);
        if (r == 0)
                r = os_write_file_atomic(path, text, 0644, &run->e);
        if (r < 0)
                return cli_fail(r, &run->e);
        fprintf(stderr, "wrote %s: %s, hash %016llx (%s)\n", path, what, (unsigned long long)hash64(text, 0), state);
        return EXIT_FINE;
}

static size_t only_role(struct ranktable_share *shares, size_t count, const char *role) {
        size_t kept = 0;

        for (size_t i = 0; i < count; i++)
                if (!strcmp(role, "all") || !strcmp(role, role_name(shares[i].role)))
                        shares[kept++] = shares[i];
        return kept;
}

static int make_table(struct ranktable_run *run) {
        enum ranktable_format format = !strcmp(run->o.format, "page")       ? RANKTABLE_PAGE
                                       : !strcmp(run->o.format, "hccl-1.0") ? RANKTABLE_HCCL10
                                                                            : RANKTABLE_HCCL12;
        struct ranktable_share *shares;
        size_t count, npus[2] = {0};
        struct buf b = {0};
        int r, code;

        if (run->cluster)
                r = ranktable_shares(run->cluster, &run->facts, &run->arena, &shares, &count, &run->e);
        else
                r = ranktable_shares_by_count(&run->facts, (uint64_t)run->o.prefill, (uint64_t)run->o.decode,
                    &run->arena, &shares, &count, &run->findings, &run->e);
        if (r < 0)
                return cli_fail(r, &run->e);
        code = say_findings(run);
        if (code >= 0)
                return code;
        count = only_role(shares, count, run->o.role);
        for (size_t i = 0; i < count; i++)
                npus[shares[i].role] += shares[i].count;
        r = ranktable_write(&run->facts, shares, count, format, &b, &run->e);
        if (r < 0)
                code = cli_fail(r, &run->e);
        else
                code = write_file(run, run->o.output ? run->o.output : "ranktable.json", buf_slice(&b),
                    arena_printf(&run->arena, "%zu prefill and %zu decode NPUs of %zu nodes", npus[ROLE_PREFILL],
                        npus[ROLE_DECODE], run->facts.node_count));
        buf_free(&b);
        return code;
}

static int make_part(struct ranktable_run *run) {
        const char *path = run->o.output;
        struct buf b = {0};
        int code = say_findings(run);

        if (code >= 0)
                return code;
        if (!path)
                path = arena_printf(&run->arena, "ranktable-%s.part", run->o.node);
        part_write(&run->facts, 0, &b);
        code = path ? write_file(run, path, buf_slice(&b), "the part of this node") : EXIT_UNKNOWN;
        buf_free(&b);
        return code;
}

/* With --node the facts are this one node's. */
static int keep_node(struct ranktable_run *run) {
        struct facts *f = &run->facts;

        for (size_t i = 0; i < f->node_count; i++)
                if (slice_is(f->nodes[i].name, run->o.node)) {
                        f->nodes[0] = f->nodes[i];
                        f->node_count = 1;
                        return -1;
                }
        fprintf(stderr, "baton ranktable: no node %s is here\n", run->o.node);
        return EXIT_USAGE;
}

static int run_ranktable(struct ranktable_run *run, const char *path) {
        int r;

        if ((path != NULL) == (run->o.ips.count > 0))
                return wrong_use("either a cluster file or --ips, please; --help tells more");
        if (run->o.node && run->o.merge.count)
                return wrong_use("--node writes a part, --merge reads parts: one after the other");
        r = path ? cli_npu_cluster(path, &run->arena, &run->cluster, &run->facts) : nodes_of_ips(run);
        if (r < 0 && run->o.node)
                r = keep_node(run);
        if (r < 0)
                r = run->o.merge.count ? read_parts(run) : ask_nodes(run);
        if (r >= 0)
                return r;
        settle_platform(run);
        r = choose_local(run);
        if (r >= 0)
                return r;
        run->findings.arena = &run->arena;
        r = judge(&run->facts, &run->findings);
        if (r < 0)
                return cli_fail(r, &run->e);
        return run->o.node ? make_part(run) : make_table(run);
}

int cmd_ranktable(int argc, char **argv) {
        struct ranktable_run run = {.o = {.format = "page", .role = "all"}};
        struct options_result parsed;
        int r = cli_options(&ranktable_set, argc, argv, &run.o, &parsed);

        if (r < 0) {
                r = run_ranktable(&run, parsed.count_positional ? parsed.positional[0] : NULL);
                options_result_free(&parsed);
        }
        options_list_free(&run.o.merge);
        options_list_free(&run.o.ips);
        arena_free(&run.arena);
        return r;
}
