/* sampler.h - from logits to a token, in vLLM's order (private to engine/).
 *
 * Order (vLLM v1/sample/sampler.py): raw log-probabilities are taken first; then allowed ids, bad words, min_tokens,
 * logit_bias, penalties (repetition, frequency, presence); temperature below 1e-5 means the likeliest token, else logits are
 * divided by it; then min_p, top_k (ties at the cut stay), top_p (the best always stays); then one draw.
 *
 * The draw for the token at position p of a sequence is a function of (seed, p) and the distribution alone, and walks the
 * candidates by ascending id. So a seeded request gives the same text whatever else runs, after preemption, and when
 * another engine continues it; and drafts can be verified by drawing as if there were none: the token that the target draws
 * equals a draft d with the target's own P(d), and is distributed as the target without d when it differs, which is what
 * speculative sampling asks for. Text with drafts is text without.
 *
 * Pure. A state belongs to one sequence, a scratch to one thread at a time. */
#pragma once
#include "engine/engine.h"

struct seen_token; /* an id that penalties look at */

/* What sampling one sequence needs to remember. */
struct sampler_state {
        const struct sampling_params *params;
        const uint32_t *bad_sequences; /* as in struct engine_request */
        const int64_t *eos;
        uint32_t eos_count;
        uint64_t seed;
        struct seen_token *seen; /* hash table of the distinct ids so far; only with penalties */
        uint32_t seen_count, seen_capacity;
};

/* Buffers for sampling one row, [vocab] each. */
struct sampler_scratch {
        uint32_t vocab;
        float *work;    /* logits as changed by the request */
        uint32_t *ids;  /* candidates, ascending */
        float *weights; /* exp((logit - best) / temperature) of each */
        float *select;  /* for selecting; one more */
};

int sampler_scratch_init(struct sampler_scratch *s, uint32_t vocab); /* 0 or -ENOMEM */
void sampler_scratch_free(struct sampler_scratch *s);

/* The members above `seed` are set; `seed` is used when the request has none of its own. 0 or -ENOMEM. */
int sampler_init(struct sampler_state *s, const uint32_t *prompt, uint32_t prompt_count, uint64_t seed);
void sampler_done(struct sampler_state *s);
/* A token became part of the output: penalties count it. 0 or -ENOMEM. */
int sampler_count(struct sampler_state *s, uint32_t id);

/* What a token is drawn from after every filter: an id's probability is its weight / total. Points into the scratch,
 * valid until its next use. */
struct distribution {
        const uint32_t *ids; /* ascending */
        const float *weights;
        uint32_t count;
        double total;
};
/* `tokens` is prompt and output so far, `outputs` how many of them are output. Returns 0, or -EDOM when the logits are no
 * numbers, -ENODATA when the request forbids every token. */
int sampler_distribution(const struct sampler_state *s, struct sampler_scratch *scratch, const float *logits,
    const uint32_t *tokens, size_t count, size_t outputs, struct distribution *ret_distribution);
/* `unit` in [0, 1). */
uint32_t distribution_draw(const struct distribution *d, double unit);

/* The next token: one draw from that distribution, with a short way when only the likeliest can come out. */
int sampler_next(const struct sampler_state *s, struct sampler_scratch *scratch, const float *logits,
    const uint32_t *tokens, size_t count, size_t outputs, uint32_t *ret_token);

/* Log-probability of `id` under softmax(logits), its rank (how many are at least as likely, as vLLM counts), and the `top`
 * best into ret_top (best first, ties by lower id), at most `vocab`. */
void sampler_logprobs(const float *logits, uint32_t vocab, uint32_t id, uint32_t top, float *ret_logprob,
    uint32_t *ret_rank, struct openai_logprob *ret_top);
