/* sampler.h - from logits to a token, in vLLM's order (private to engine/).
 *
 * Order (vLLM v1/sample/sampler.py): raw log-probabilities are taken first; then allowed ids, bad words, min_tokens,
 * logit_bias, penalties (repetition, frequency, presence); temperature below 1e-5 means the likeliest token, else logits are
 * divided by it; then min_p, top_k (ties at the cut stay), top_p (the best always stays); then one draw.
 *
 * The draw walks the candidates in one fixed order with one number of the sequence's own generator, so a seeded request gives
 * the same tokens whatever else runs. Pure; one thread per scratch. */
#pragma once
#include "base/rng.h"
#include "engine/engine.h"

/* What sampling one sequence needs to remember. */
struct sampler_state {
        const struct sampling_params *params;
        const uint32_t *bad_sequences; /* as in struct engine_request */
        const int64_t *eos;
        uint32_t eos_count;
        struct rng rng;
        uint16_t *output_counts; /* [vocab], only with penalties */
        uint8_t *in_prompt;      /* [vocab], only with a repetition penalty */
};

/* Buffers for one step's sampling, shared by all sequences. */
struct sampler_scratch {
        uint32_t vocab;
        float *work;           /* [vocab] */
        uint32_t *candidates;  /* [vocab] */
        double *probabilities; /* [vocab] */
};

int sampler_scratch_init(struct sampler_scratch *s, uint32_t vocab); /* 0 or -ENOMEM */
void sampler_scratch_free(struct sampler_scratch *s);

/* `seed` is used when the request has none of its own. 0 or -ENOMEM. */
int sampler_init(struct sampler_state *s, const struct engine_request *r, uint32_t vocab, uint64_t seed);
void sampler_done(struct sampler_state *s);
/* A token became part of the output: penalties count it. */
void sampler_count(struct sampler_state *s, uint32_t id);

/* The distribution after every filter: candidates with probabilities that sum to 1, greedy: one with probability 1.
 * `tokens` is prompt and output so far, `outputs` how many of them are output (min_tokens, bad words). The result points
 * into the scratch and is valid until its next use. */
struct distribution {
        const uint32_t *ids;
        const double *probabilities;
        uint32_t count;
};
struct distribution sampler_distribution(const struct sampler_state *s, struct sampler_scratch *scratch,
    const float *logits, const uint32_t *tokens, size_t count, size_t outputs);
uint32_t distribution_draw(const struct distribution *d, double unit);
double distribution_probability(const struct distribution *d, uint32_t id);
/* Draw from the distribution without `id`, for a rejected draft; `id` itself when nothing else is left. */
uint32_t distribution_draw_without(const struct distribution *d, uint32_t id, double unit);

/* The next token: sampler_distribution and a draw, with a short way when only the likeliest can come out. */
uint32_t sampler_next(struct sampler_state *s, struct sampler_scratch *scratch, const float *logits,
    const uint32_t *tokens, size_t count, size_t outputs);

/* Log-probability of `id` under softmax(logits), its 1-based rank, and the `top` best into ret_top (best first, ties by
 * lower id). */
void sampler_logprobs(const float *logits, uint32_t vocab, uint32_t id, uint32_t top, float *ret_logprob,
    uint32_t *ret_rank, struct openai_logprob *ret_top);
