/* What a token costs beside the model: microseconds to sample one row of DeepSeek's vocabulary on one thread, by what the
 * request asks for. Steps of many sequences share the rows among all workers. */
#include "base/clock.h"
#include "base/rng.h"
#include "engine/sampler.h"
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

enum { VOCAB = 129280, ROUNDS = 50 };

/* Time that this thread computed, so that neighbours on the machine do not count. */
static uint64_t thread_ns(void) {
        struct timespec t;

        clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
        return (uint64_t)t.tv_sec * NS_PER_S + (uint64_t)t.tv_nsec;
}

/* Logits as a language model gives them: a wide bulk, and a few that stand out. */
static float *make_logits(struct rng *r) {
        float *x = malloc(VOCAB * sizeof(*x));

        if (!x)
                abort();
        for (int i = 0; i < VOCAB; i++) {
                double sum = 0;

                for (int k = 0; k < 6; k++)
                        sum += rng_unit(r) - 0.5;
                x[i] = (float)(sum * 3);
        }
        for (int i = 0; i < 40; i++)
                x[rng_below(r, VOCAB)] += (float)(rng_unit(r) * 12);
        return x;
}

static double microseconds(const struct sampling_params *p, struct sampler_scratch *scratch, float *const logits[8]) {
        struct sampler_state s = {.params = p};
        const uint32_t tokens[4] = {1, 2, 3, 4};
        uint64_t begin;
        uint32_t token = 0;

        if (sampler_init(&s, tokens, 4, 1) < 0)
                abort();
        begin = thread_ns();
        for (size_t i = 0; i < ROUNDS; i++)
                if (sampler_next(&s, scratch, logits[i % 8], tokens, 4, 0, &token) < 0)
                        abort();
        begin = thread_ns() - begin;
        sampler_done(&s);
        return (double)begin / ROUNDS / NS_PER_US;
}

static double logprob_microseconds(uint32_t top, float *const logits[8]) {
        struct openai_logprob *list = calloc(VOCAB, sizeof(*list));
        uint64_t begin = thread_ns();

        if (!list)
                abort();
        for (size_t i = 0; i < ROUNDS; i++) {
                float logprob;
                uint32_t rank;

                sampler_logprobs(logits[i % 8], VOCAB, 17, top, &logprob, &rank, list);
        }
        free(list);
        return (double)(thread_ns() - begin) / ROUNDS / NS_PER_US;
}

int main(void) {
        const struct sampling_params plain = {.temperature = 1, .top_p = 1, .repetition_penalty = 1};
        const struct {
                const char *name;
                struct sampling_params p;
        } cases[] = {
            {"greedy", {.temperature = 0, .top_p = 1, .repetition_penalty = 1}},
            {"temperature 1", plain},
            {"temperature 0.6, top_p 0.95", {.temperature = 0.6f, .top_p = 0.95f, .repetition_penalty = 1}},
            {"temperature 3, top_p 0.95", {.temperature = 3, .top_p = 0.95f, .repetition_penalty = 1}},
            {"top_k 50", {.temperature = 1, .top_p = 1, .top_k = 50, .repetition_penalty = 1}},
            {"top_k 50, top_p 0.95", {.temperature = 1, .top_p = 0.95f, .top_k = 50, .repetition_penalty = 1}},
            {"min_p 0.05", {.temperature = 1, .top_p = 1, .min_p = 0.05f, .repetition_penalty = 1}},
            {"repetition 1.1", {.temperature = 1, .top_p = 1, .repetition_penalty = 1.1f}},
        };
        struct sampler_scratch scratch;
        float *logits[8];
        struct rng r;

        rng_seed(&r, 1);
        for (int i = 0; i < 8; i++)
                logits[i] = make_logits(&r);
        if (sampler_scratch_init(&scratch, VOCAB) < 0)
                abort();
        printf("%-32s %10s\n", "one row of 129280", "us");
        for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++)
                printf("%-32s %10.0f\n", cases[i].name, microseconds(&cases[i].p, &scratch, logits));
        printf("%-32s %10.0f\n", "logprobs 0", logprob_microseconds(0, logits));
        printf("%-32s %10.0f\n", "logprobs 20", logprob_microseconds(20, logits));
        printf("%-32s %10.0f\n", "logprobs of all", logprob_microseconds(VOCAB, logits));
        for (int i = 0; i < 8; i++)
                free(logits[i]);
        sampler_scratch_free(&scratch);
        return 0;
}
