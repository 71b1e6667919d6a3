/* warmup.c - `baton warmup`: the first requests, made before users make them. */
#include "cli/cli.h"
#include "cluster/cluster.h"
#include "launch/launch.h"
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

struct options {
        struct option_list prefill, decode;
        const char *model, *api_key;
        int64_t rounds, max_prompt, timeout;
        double steady;
        bool quiet;
};

static const struct option table[] = {
    {"prefill", 0, OPTION_LIST, offsetof(struct options, prefill), "URL", "prefill ranks, instead of a cluster file"},
    {"decode", 0, OPTION_LIST, offsetof(struct options, decode), "URL", "decode ranks, instead of a cluster file"},
    {"model", 0, OPTION_STRING, offsetof(struct options, model), "NAME", "the served model's name (the server's own)"},
    {"api-key", 0, OPTION_STRING, offsetof(struct options, api_key), "KEY", "sent as Authorization: Bearer"},
    {"max-prompt", 0, OPTION_INT, offsetof(struct options, max_prompt), "N", "words of the longest prompt tried (256)",
        .min = 16, .max = 1 << 20},
    {"rounds", 0, OPTION_INT, offsetof(struct options, rounds), "N", "rounds at most until latency is steady (10)",
        .min = 1, .max = 1000},
    {"steady", 0, OPTION_DOUBLE, offsetof(struct options, steady), "PERCENT",
        "TTFT of the last rounds lies so near their median (10)"},
    {"timeout", 0, OPTION_INT, offsetof(struct options, timeout), "SECONDS", "deadline of one request (120)", .min = 1,
        .max = 86400},
    {"quiet", 'q', OPTION_FLAG, offsetof(struct options, quiet), NULL, "no progress"},
};
static const struct option_set set = {"baton warmup FILE | --prefill URL… --decode URL…",
    "Drives every prefill rank over a few prompt lengths and every P→D pair once, then all of them until TTFT is "
    "steady, and "
    "reports. Exit code 0: steady; 1: a rank failed or latency did not settle.",
    table, sizeof(table) / sizeof(*table), 1};

static void progress(void *context, const char *line) {
        (void)context;
        if (isatty(STDERR_FILENO))
                fprintf(stderr, "\r\033[Kwarm-up   %s", line);
}

static void report_warmup(const struct warmup_report *r, FILE *to) {
        if (isatty(fileno(to)))
                fprintf(to, "\r\033[K");
        fprintf(to, "warm-up   %u prefills, %u of %u P→D pairs   %s after %u rounds (TTFT %.1f ms ± %.0f %%)\n",
            r->prefills, r->pairs_done, r->pairs, r->steady ? "steady" : "not steady", r->rounds, r->ttft_ms,
            r->spread_percent);
}

/* The ranks' URLs of a plan, in the arena. */
static int warmup_plan(const struct plan *p, struct arena *arena, struct warmup_options *w) {
        const char **prefill = arena_array(arena, p->rank_count + 1, sizeof(*prefill));
        const char **decode = arena_array(arena, p->rank_count + 1, sizeof(*decode));

        if (!prefill || !decode)
                return -1;
        for (size_t i = 0; i < p->rank_count; i++) {
                const char *url = arena_copy(arena, p->ranks[i].url).ptr;

                if (p->ranks[i].role == ROLE_PREFILL)
                        prefill[w->prefill_count++] = url;
                else
                        decode[w->decode_count++] = url;
        }
        w->prefill = prefill;
        w->decode = decode;
        return 0;
}

int cmd_warmup(int argc, char **argv) {
        struct options o = {0};
        struct options_result parsed = {0};
        struct cli_plan p = {0};
        struct warmup_report report = {0};
        struct log log = cli_log(NULL);
        struct warmup_options w = {.log = &log};
        struct error e = {0};
        int r = cli_options(&set, argc, argv, &o, &parsed);

        if (r >= 0)
                goto out;
        w.model = o.model;
        w.api_key = o.api_key;
        w.max_prompt = (unsigned)o.max_prompt;
        w.max_rounds = (unsigned)o.rounds;
        w.steady_percent = o.steady;
        w.request_ms = (unsigned)o.timeout * 1000;
        w.progress = o.quiet ? NULL : progress;
        if (parsed.count_positional) {
                r = cli_plan_read(parsed.positional[0], &p);
                if (r >= 0)
                        goto out;
                if (warmup_plan(p.plan, &p.arena, &w) < 0) {
                        r = EXIT_NOT_FINE;
                        goto out;
                }
        } else if (o.decode.count) {
                w.prefill = o.prefill.items;
                w.prefill_count = o.prefill.count;
                w.decode = o.decode.items;
                w.decode_count = o.decode.count;
        } else {
                fprintf(stderr, "baton warmup: a cluster file, or --decode URL (and --prefill URL)?\n");
                r = EXIT_USAGE;
                goto out;
        }
        r = launch_warmup(&w, &report, &e);
        if (r < 0) {
                cli_fail(r, &e);
                r = EXIT_NOT_FINE;
        } else {
                report_warmup(&report, stdout);
                r = report.steady ? EXIT_FINE : EXIT_NOT_FINE;
        }
out:
        cli_plan_free(&p);
        options_list_free(&o.prefill);
        options_list_free(&o.decode);
        options_result_free(&parsed);
        return r;
}
