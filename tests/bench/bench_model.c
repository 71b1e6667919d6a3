/* bench_model.c - a whole model beside what this machine can do: tokens a second at batch 1 as a share of reading the weights
 * that a token touches, and of a prefill of 512 and of 32 sequences as a share of the multiply-add peak. Through the engine
 * (scheduler, attention, experts, sampler), without HTTP. For checkpoints of tools/synthetic.
 *
 *     bench_model [--threads N] [--dot] DIR...       (DIR's name has bf16, fp8 or int8 in it)
 *
 * --dot: activations in bfloat16. One line per checkpoint and case; medians of several runs. */
#include "base/clock.h"
#include "base/rng.h"
#include "engine/core.h"
#include "yardstick.h"
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { RUNS = 5, ATTEMPTS = 4 * RUNS, PROMPT = 512, DECODED = 32, PARALLEL = 32 };

struct subject {
        struct compute *compute;
        struct model *model;
        struct engine *engine;
        size_t expert_bytes, head_bytes, embedding_bytes;
};

enum format { BF16, FP8, INT8 };

static enum format format_of(const char *name) {
        return strstr(name, "int8") ? INT8 : strstr(name, "fp8") ? FP8 : BF16;
}

/* ---- what a token costs --------------------------------------------------------------------------------------------------- */

/* Multiply-adds of one row through all linear layers but the head, counted as two operations each. */
static double operations_of_row(const struct model_config *c) {
        double mla = (double)c->heads * (c->nope + c->rope) * c->hidden + (double)(c->kv_rank + c->rope) * c->hidden +
                     (double)c->heads * (c->nope + c->v) * c->kv_rank + (double)c->hidden * c->heads * c->v;
        double dense = 3.0 * c->dense_width * c->hidden,
               moe =
                   3.0 * c->expert_width * c->hidden * (c->top_k + c->shared_experts) + (double)c->experts * c->hidden,
               total = 0;

        for (uint32_t i = 0; i < c->layers; i++)
                total += mla + (model_layer_is_moe(c, i) ? moe : dense);
        return 2 * total;
}

/* Bytes of weights that one decoded token reads: a byte or two for every weight of the layers it goes through (kv_b stays in
 * bfloat16 where Ascend's W8A8 leaves it), and the head's, which are bfloat16 in all formats. */
static double bytes_of_token(const struct model_config *c, enum format format) {
        double linear = operations_of_row(c) / 2, kv_b = (double)c->layers * c->heads * (c->nope + c->v) * c->kv_rank;

        return linear * (format == BF16 ? 2 : 1) + (format == INT8 ? kv_b : 0) + 2.0 * c->vocab * c->hidden;
}

/* The same when every expert is wanted by somebody. */
static double bytes_of_batch(const struct model_config *c, enum format format) {
        double others = 0;

        for (uint32_t i = 0; i < c->layers; i++)
                if (model_layer_is_moe(c, i))
                        others += 3.0 * c->expert_width * c->hidden * (c->experts - c->top_k);
        return bytes_of_token(c, format) + others * (format == BF16 ? 2 : 1);
}

/* ---- runs ----------------------------------------------------------------------------------------------------------------- */

static void submit(struct subject *s, const uint32_t *prompt, uint32_t count, uint32_t tokens) {
        struct engine_request q = {.prompt = prompt,
            .prompt_count = count,
            .sampling = {.top_p = 1,
                .repetition_penalty = 1,
                .logprobs = -1,
                .prompt_logprobs = -1,
                .max_tokens = tokens,
                .ignore_eos = true},
            .arrival_ns = clock_mono_ns()};
        engine_id id;

        if (engine_submit(s->engine, &q, &id) < 0)
                die("engine_submit", NULL);
}

static void step(struct subject *s) {
        if (!engine_step(s->engine))
                die("a step that did nothing", NULL);
        engine_outputs_free(s->engine, engine_take(s->engine));
}

static void fill(uint32_t *prompt, uint32_t count, uint64_t seed, uint32_t vocab) {
        struct rng r;

        rng_seed(&r, seed);
        for (uint32_t i = 0; i < count; i++)
                prompt[i] = (uint32_t)rng_below(&r, vocab);
}

static double seconds_of_prefill(struct subject *s, uint64_t seed) {
        uint32_t prompt[PROMPT];
        uint64_t begun;

        fill(prompt, PROMPT, seed, model_config(s->model)->vocab);
        submit(s, prompt, PROMPT, 1);
        begun = clock_mono_ns();
        step(s);
        return (double)(clock_mono_ns() - begun) * 1e-9;
}

/* Of one step with that many sequences, whose prompts are short. */
static double seconds_of_step(struct subject *s, uint32_t sequences, uint64_t seed) {
        uint32_t prompt[8];
        uint64_t begun;

        for (uint32_t i = 0; i < sequences; i++) {
                fill(prompt, 8, seed * 1000 + i, model_config(s->model)->vocab);
                submit(s, prompt, 8, DECODED + 1);
        }
        step(s); /* the prompts */
        begun = clock_mono_ns();
        for (uint32_t i = 0; i < DECODED; i++)
                step(s);
        return (double)(clock_mono_ns() - begun) * 1e-9 / DECODED;
}

static int by_value(const void *a, const void *b) {
        double x = *(const double *)a, y = *(const double *)b;

        return (x > y) - (x < y);
}

static double median(double *v) {
        qsort(v, RUNS, sizeof(*v), by_value);
        return v[RUNS / 2];
}

/* The yardstick's time for that much, now: the least of a few runs, of which one that takes less than a millisecond may have
 * waited longer for a worker to wake. */
static double limit(const struct yardstick *y, double work) {
        const uint64_t first = clock_mono_ns();
        double least = HUGE_VAL;

        for (int i = 0; i < 3 || clock_mono_ns() - first < 20 * NS_PER_MS; i++) {
                uint64_t begun = clock_mono_ns();
                double seconds;

                y->run(y->context);
                seconds = (double)(clock_mono_ns() - begun) * 1e-9;
                least = seconds < least ? seconds : least;
        }
        return work * least / y->work;
}

static void print_row(const char *name, const char *what, double *seconds, double *shares, double tokens) {
        printf("| %s | %s | %.1f | %.0f %% |\n", name, what, tokens / median(seconds), 100 * median(shares));
        fflush(stdout);
}

/* A round of a case: the time of one step, and the least that the machine as it is now could have taken. */
struct round {
        double seconds, least;
};

struct situation {
        struct subject *s;
        const struct machine *m;
        enum format format;
        enum peak peak;
};

static struct round decode_one(const struct situation *t, uint64_t seed) {
        struct round r = {.seconds = seconds_of_step(t->s, 1, seed)};

        r.least = limit(&t->m->read, bytes_of_token(model_config(t->s->model), t->format));
        return r;
}

static struct round prefill(const struct situation *t, uint64_t seed) {
        const struct model_config *c = model_config(t->s->model);
        struct round r = {.seconds = seconds_of_prefill(t->s, seed)};

        r.least = limit(&t->m->peak[t->peak], PROMPT * operations_of_row(c) + 2.0 * c->vocab * c->hidden);
        return r;
}

static struct round decode_many(const struct situation *t, uint64_t seed) {
        const struct model_config *c = model_config(t->s->model);
        struct round r = {.seconds = seconds_of_step(t->s, PARALLEL, seed)};
        /* 32 tokens that go to 6 of 64 experts each leave hardly one aside: all weights are read. */
        double read = limit(&t->m->read, bytes_of_batch(c, t->format));
        double compute = limit(&t->m->peak[t->peak], PARALLEL * (operations_of_row(c) + 2.0 * c->vocab * c->hidden));

        r.least = read > compute ? read : compute;
        return r;
}

/* Medians of RUNS rounds; those in which somebody else had our cores are run again, up to a bound. */
static void run_case(const struct situation *t, const char *name, const char *what, double tokens,
    struct round (*round)(const struct situation *t, uint64_t seed)) {
        double seconds[RUNS], shares[RUNS];
        int got = 0;

        for (int i = 0; i < ATTEMPTS && got < RUNS; i++) {
                double cpu = cpu_seconds(), begun = (double)clock_mono_ns() * 1e-9;
                struct round r = round(t, 2 + (uint64_t)i);
                bool alone = cpu_seconds() - cpu > 0.9 * t->m->threads * ((double)clock_mono_ns() * 1e-9 - begun);

                if (!alone && ATTEMPTS - i > RUNS - got)
                        continue;
                seconds[got] = r.seconds;
                shares[got++] = r.least / r.seconds;
        }
        print_row(name, what, seconds, shares, tokens);
}

static void run_cases(struct subject *s, const struct machine *m, const char *name, bool dot) {
        enum format format = format_of(name);
        const struct situation t = {s, m, format, format == INT8 ? PEAK_INT8 : dot ? PEAK_BF16 : PEAK_F32};

        seconds_of_step(s, 1, 1); /* pages and caches */
        run_case(&t, name, "decode, 1 sequence, of reading", 1, decode_one);
        run_case(&t, name, "prefill of 512, of the peak", PROMPT, prefill);
        run_case(&t, name, "decode, 32 sequences, of the slower limit", PARALLEL, decode_many);
}

/* ---- the checkpoint -------------------------------------------------------------------------------------------------------- */

static void open_subject(struct subject *s, struct compute *compute, const char *dir) {
        struct model_options o = {.dir = dir, .compute = compute};
        struct engine_options g = {.compute = compute,
            .max_model_len = 1024,
            .max_seqs = PARALLEL,
            .max_batched_tokens = PROMPT,
            .chunked_prefill = true,
            .block_tokens = 64,
            .kv_blocks = 64 * PARALLEL / 4,
            .kv_type = KV_F32};
        struct error e;

        *s = (struct subject){.compute = compute};
        if (model_load(&o, &s->model, &e) < 0)
                die(dir, &e);
        g.model = s->model;
        if (engine_new(&g, &s->engine, &e) < 0)
                die(dir, &e);
}

int main(int argc, char **argv) {
        struct compute_options c = {.isa = ISA_BEST, .threads = 2, .spin_us = 50};
        struct machine m = {0};
        struct error e;
        int at = 1;

        setvbuf(stdout, NULL, _IOLBF, 0);
        for (; at < argc && argv[at][0] == '-'; at++)
                if (!strcmp(argv[at], "--threads") && at + 1 < argc)
                        c.threads = (unsigned)atoi(argv[++at]);
                else if (!strcmp(argv[at], "--dot"))
                        c.activation = ACTIVATION_BF16;
                else
                        return 2;
        if (compute_new(&c, &m.c, &e) < 0)
                die("compute_new", &e);
        m.threads = c.threads;
        measure_machine(&m, "not used");
        printf("\n| checkpoint | case | tokens/s | of the limit |\n|---|---|---|---|\n");
        for (; at < argc; at++) {
                struct subject s;
                const char *name = strrchr(argv[at], '/') ? strrchr(argv[at], '/') + 1 : argv[at];

                open_subject(&s, m.c, argv[at]);
                run_cases(&s, &m, name, c.activation == ACTIVATION_BF16);
                engine_free(s.engine);
                model_free(s.model);
        }
        compute_free(m.c);
        return 0;
}
