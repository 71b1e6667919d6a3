/* What drafts of the MTP module bring: how many are accepted, how many tokens a sequence gets from a step, and tokens per
 * second beside the same engine without drafts, for one sequence and for sixteen at a time.
 *
 *   bench_drafts [MODEL]     a folder with an MTP layer and eval/greedy.jsonl (models/baton-tiny); BENCH_ROUNDS (3) */
#include "base/clock.h"
#include "base/file.h"
#include "base/json.h"
#include "engine/core.h"
#include <stdio.h>
#include <stdlib.h>

enum { PROMPTS_MAX = 256, DRAFTS = 4, ROUNDS_MAX = 15, TOKENS = 96 };

struct bench {
        struct compute *compute;
        struct model *model;
        uint32_t *prompts[PROMPTS_MAX], lengths[PROMPTS_MAX], count;
};

static void must(int r, const struct error *e) {
        if (r < 0) {
                fprintf(stderr, "bench_drafts: %s\n", error_text(e, r));
                exit(1);
        }
}

static void read_prompts(struct bench *b, const char *dir) {
        struct buf path = {0}, file = {0};
        struct slice rest, line;
        struct error e = {{0}};

        buf_printf(&path, "%s/eval/greedy.jsonl", dir);
        must(file_read_whole(buf_cstr(&path), 64 << 20, &file, &e), &e);
        rest = buf_slice(&file);
        while (b->count < PROMPTS_MAX && slice_split(&rest, '\n', &line) && line.len) {
                yyjson_doc *doc;
                yyjson_val *ids, *id;
                size_t i, n;

                must(json_parse(line, &doc, &e), &e);
                ids = json_get(yyjson_doc_get_root(doc), "prompt_ids");
                b->prompts[b->count] = calloc(yyjson_arr_size(ids) + 1, sizeof(uint32_t));
                yyjson_arr_foreach(ids, i, n, id) b->prompts[b->count][i] = (uint32_t)yyjson_get_uint(id);
                b->lengths[b->count++] = (uint32_t)yyjson_arr_size(ids);
                yyjson_doc_free(doc);
        }
        buf_free(&file);
        buf_free(&path);
}

struct result {
        double seconds;
        uint64_t tokens, steps, drafts, accepted; /* steps: of those that verified drafts */
};

/* All prompts, `width` at a time, answered greedily. */
static struct result run(const struct bench *b, uint32_t drafts, uint32_t width) {
        struct engine_options o = {.model = b->model,
            .compute = b->compute,
            .max_model_len = 1024,
            .max_seqs = width,
            .max_batched_tokens = 2048,
            .chunked_prefill = true,
            .block_tokens = 64,
            .kv_blocks = 1024,
            .draft_tokens = drafts,
            .max_waiting = PROMPTS_MAX};
        const struct engine_figures *f;
        struct engine *g = NULL;
        struct error e = {{0}};
        struct result r;
        uint64_t begin;

        must(engine_new(&o, &g, &e), &e);
        for (uint32_t i = 0; i < b->count; i++) {
                const struct engine_request q = {.prompt = b->prompts[i],
                    .prompt_count = b->lengths[i],
                    .sampling = {.top_p = 1,
                        .repetition_penalty = 1,
                        .logprobs = -1,
                        .prompt_logprobs = -1,
                        .max_tokens = TOKENS},
                    .eos = model_config(b->model)->eos,
                    .eos_count = model_config(b->model)->eos_count,
                    .arrival_ns = clock_mono_ns()};
                engine_id id;

                must(engine_submit(g, &q, &id), NULL);
        }
        begin = clock_mono_ns();
        while (engine_step(g))
                engine_outputs_free(g, engine_take(g));
        engine_outputs_free(g, engine_take(g));
        f = &g->metrics.figures;
        r = (struct result){.seconds = (double)(clock_mono_ns() - begin) / NS_PER_S,
            .tokens = f->generation_tokens,
            .steps = f->drafts,
            .drafts = f->draft_tokens,
            .accepted = f->accepted_tokens};
        engine_free(g);
        return r;
}

static int compare_doubles(const void *a, const void *b) {
        double x = *(const double *)a, y = *(const double *)b;

        return (x > y) - (x < y);
}

static void measure(const struct bench *b, uint32_t width, size_t rounds) {
        double speeds[DRAFTS + 1][ROUNDS_MAX], plain = 0;
        struct result last[DRAFTS + 1];

        for (size_t round = 0; round < rounds; round++)
                for (uint32_t k = 0; k <= DRAFTS; k++) {
                        last[k] = run(b, k, width);
                        speeds[k][round] = (double)last[k].tokens / last[k].seconds;
                }
        for (uint32_t k = 0; k <= DRAFTS; k++) {
                double speed;

                qsort(speeds[k], rounds, sizeof(double), compare_doubles);
                speed = speeds[k][rounds / 2];
                plain = k == 0 ? speed : plain;
                printf("%9u %7u %10.1f %12.2f %10.0f %7.2f\n", width, k,
                    last[k].drafts ? 100 * (double)last[k].accepted / (double)last[k].drafts : 0,
                    last[k].steps ? 1 + (double)last[k].accepted / (double)last[k].steps : 1, speed, speed / plain);
        }
}

int main(int argc, char **argv) {
        const char *dir = argc > 1 ? argv[1] : "models/baton-tiny", *asked = getenv("BENCH_ROUNDS");
        long rounds = asked ? strtol(asked, NULL, 10) : 3;
        struct compute_options c = {.isa = ISA_BEST, .spin_us = 50};
        struct bench b = {0};
        struct model_options m = {.dir = dir, .load_mtp = true};
        struct error e = {{0}};

        rounds = rounds < 1 ? 1 : rounds > ROUNDS_MAX ? ROUNDS_MAX : rounds;
        must(compute_new(&c, &b.compute, &e), &e);
        m.compute = b.compute;
        must(model_load(&m, &b.model, &e), &e);
        read_prompts(&b, dir);
        printf("%s, %u prompts, greedy, at most %d tokens; %s, %u threads; medians of %ld rounds\n", dir, b.count,
            TOKENS, isa_name(compute_isa(b.compute)), compute_threads(b.compute), rounds);
        printf("%9s %7s %10s %12s %10s %7s\n", "sequences", "drafts", "accepted %", "tokens/step", "tokens/s", "ratio");
        measure(&b, 1, (size_t)rounds);
        measure(&b, 16, (size_t)rounds);
        for (uint32_t i = 0; i < b.count; i++)
                free(b.prompts[i]);
        model_free(b.model);
        compute_free(b.compute);
        return 0;
}
