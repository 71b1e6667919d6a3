/* sampler.c - see sampler.h. */
#include "engine/sampler.h"
#include <assert.h>
#include <errno.h>
#include <math.h>
#include <stdlib.h>

#define GREEDY_BELOW 1e-5f

int sampler_scratch_init(struct sampler_scratch *s, uint32_t vocab) {
        *s = (struct sampler_scratch){.vocab = vocab};
        s->work = malloc(vocab * sizeof(*s->work));
        s->candidates = malloc(vocab * sizeof(*s->candidates));
        s->probabilities = malloc(vocab * sizeof(*s->probabilities));
        if (s->work && s->candidates && s->probabilities)
                return 0;
        sampler_scratch_free(s);
        return -ENOMEM;
}

void sampler_scratch_free(struct sampler_scratch *s) {
        free(s->work);
        free(s->candidates);
        free(s->probabilities);
        *s = (struct sampler_scratch){0};
}

static bool has_penalties(const struct sampling_params *p) {
        return p->repetition_penalty != 1 || p->frequency_penalty != 0 || p->presence_penalty != 0;
}

int sampler_init(struct sampler_state *s, const struct engine_request *r, uint32_t vocab, uint64_t seed) {
        const struct sampling_params *p = s->params;

        s->output_counts = NULL;
        s->in_prompt = NULL;
        rng_seed(&s->rng, p->has_seed ? (uint64_t)p->seed : seed);
        if (!has_penalties(p))
                return 0;
        s->output_counts = calloc(vocab, sizeof(*s->output_counts));
        if (!s->output_counts)
                return -ENOMEM;
        if (p->repetition_penalty == 1)
                return 0;
        s->in_prompt = calloc(vocab, sizeof(*s->in_prompt));
        if (!s->in_prompt) {
                sampler_done(s);
                return -ENOMEM;
        }
        for (uint32_t i = 0; i < r->prompt_count; i++)
                s->in_prompt[r->prompt[i]] = 1;
        return 0;
}

void sampler_done(struct sampler_state *s) {
        free(s->output_counts);
        free(s->in_prompt);
        s->output_counts = NULL;
        s->in_prompt = NULL;
}

void sampler_count(struct sampler_state *s, uint32_t id) {
        if (s->output_counts && s->output_counts[id] < UINT16_MAX)
                s->output_counts[id]++;
}

/* ---- changes of logits ------------------------------------------------------------------------------------------------- */

static void keep_allowed(const struct sampling_params *p, float *work, const float *logits, uint32_t vocab) {
        for (uint32_t i = 0; i < vocab; i++)
                work[i] = -INFINITY;
        for (uint32_t i = 0; i < p->allowed_count; i++)
                if (p->allowed_ids[i] < vocab)
                        work[p->allowed_ids[i]] = logits[p->allowed_ids[i]];
}

/* A bad sequence whose beginning has just been written must not get its last token. */
static void forbid_bad_words(
    const struct sampler_state *s, float *work, uint32_t vocab, const uint32_t *tokens, size_t count, size_t outputs) {
        for (const uint32_t *b = s->bad_sequences; b && *b; b += *b + 1) {
                size_t before = *b - 1;

                if (b[*b] < vocab && before <= outputs &&
                    memcmp(tokens + count - before, b + 1, before * sizeof(*tokens)) == 0)
                        work[b[*b]] = -INFINITY;
        }
}

static void forbid_stops(const struct sampler_state *s, float *work, uint32_t vocab) {
        for (uint32_t i = 0; i < s->eos_count; i++)
                if (s->eos[i] >= 0 && s->eos[i] < vocab)
                        work[s->eos[i]] = -INFINITY;
        for (uint32_t i = 0; i < s->params->stop_id_count; i++)
                if (s->params->stop_ids[i] < vocab)
                        work[s->params->stop_ids[i]] = -INFINITY;
}

static void penalise(const struct sampler_state *s, float *work, uint32_t vocab) {
        const struct sampling_params *p = s->params;

        for (uint32_t i = 0; i < vocab; i++) {
                uint16_t count = s->output_counts[i];

                if (p->repetition_penalty != 1 && (count || s->in_prompt[i]))
                        work[i] = work[i] > 0 ? work[i] / p->repetition_penalty : work[i] * p->repetition_penalty;
                if (count)
                        work[i] -= p->frequency_penalty * (float)count + p->presence_penalty;
        }
}

/* True when work differs from the raw logits. */
static bool adjust(const struct sampler_state *s, struct sampler_scratch *scratch, const float *logits,
    const uint32_t *tokens, size_t count, size_t outputs) {
        const struct sampling_params *p = s->params;
        bool forbid = outputs < p->min_tokens && (s->eos_count || p->stop_id_count);

        if (!p->allowed_ids && !s->bad_sequences && !forbid && !p->bias_count && !s->output_counts)
                return false;
        if (p->allowed_ids)
                keep_allowed(p, scratch->work, logits, scratch->vocab);
        else
                memcpy(scratch->work, logits, scratch->vocab * sizeof(*logits));
        forbid_bad_words(s, scratch->work, scratch->vocab, tokens, count, outputs);
        if (forbid)
                forbid_stops(s, scratch->work, scratch->vocab);
        for (uint32_t i = 0; i < p->bias_count; i++)
                if (p->bias[i].id < scratch->vocab)
                        scratch->work[p->bias[i].id] += p->bias[i].bias;
        if (s->output_counts)
                penalise(s, scratch->work, scratch->vocab);
        return true;
}

/* ---- filters ----------------------------------------------------------------------------------------------------------- */

static uint32_t argmax(const float *x, uint32_t n) {
        uint32_t best = 0;

        for (uint32_t i = 1; i < n; i++)
                if (x[i] > x[best])
                        best = i;
        return best;
}

/* The k-th largest of x[0..n) (1 <= k <= n), which is reordered: three-way selection, so that ties cost nothing. */
static float kth_largest(float *x, size_t n, size_t k) {
        size_t low = 0, high = n; /* the answer is in x[low..high) */

        for (;;) {
                float pivot = x[low + (high - low) / 2];
                size_t greater = low, at = low, less = high;

                while (at < less) {
                        float value = x[at];

                        if (value > pivot) {
                                x[at++] = x[greater];
                                x[greater++] = value;
                        } else if (value < pivot) {
                                x[at] = x[--less];
                                x[less] = value;
                        } else
                                at++;
                }
                if (k - 1 < greater)
                        high = greater;
                else if (k - 1 < less)
                        return pivot;
                else
                        low = less;
        }
}

/* Candidates are ids of `scratch->candidates` whose weights exp(logit - max) stand in `scratch->probabilities`. */
static uint32_t keep_top_k(struct sampler_scratch *scratch, const float *logits, uint32_t count, uint32_t k) {
        float *copy = (float *)scratch->probabilities;
        float cut;
        uint32_t kept = 0;

        if (k == 0 || k >= count)
                return count;
        for (uint32_t i = 0; i < count; i++)
                copy[i] = logits[scratch->candidates[i]];
        cut = kth_largest(copy, count, k);
        for (uint32_t i = 0; i < count; i++)
                if (logits[scratch->candidates[i]] >= cut)
                        scratch->candidates[kept++] = scratch->candidates[i];
        return kept;
}

struct candidate {
        double weight;
        uint32_t id;
};

static int by_weight(const void *pa, const void *pb) {
        const struct candidate *a = pa, *b = pb;

        if (a->weight != b->weight)
                return a->weight > b->weight ? -1 : 1;
        return a->id < b->id ? -1 : a->id > b->id;
}

/* Keep the smallest set of likeliest candidates whose mass reaches top_p: one stays when the mass before it is below.
 * Sorting 129,280 candidates for the few that count would cost more than the model's head, so only those above a falling
 * cut are sorted, until their mass suffices. Weights need not sum to 1. */
static uint32_t keep_top_p(struct sampler_scratch *scratch, uint32_t count, double top_p) {
        double total = 0, wanted, mass = 0;
        struct candidate *list;
        uint32_t listed = 0, kept = 0;

        for (uint32_t i = 0; i < count; i++)
                total += scratch->probabilities[i];
        wanted = total * top_p;
        list = malloc(count * sizeof(*list));
        if (!list)
                return count; /* out of memory: sampling from all is the lesser harm */
        for (double cut = 1e-2; mass < wanted; cut *= 1e-3) {
                listed = 0;
                mass = 0;
                if (cut < 1e-300)
                        cut = 0;
                for (uint32_t i = 0; i < count; i++)
                        if (scratch->probabilities[i] >= cut) {
                                list[listed++] = (struct candidate){scratch->probabilities[i], scratch->candidates[i]};
                                mass += scratch->probabilities[i];
                        }
                if (cut == 0)
                        break;
        }
        qsort(list, listed, sizeof(*list), by_weight);
        mass = 0;
        while (kept < listed && (kept == 0 || mass < wanted)) {
                mass += list[kept].weight;
                scratch->candidates[kept] = list[kept].id;
                scratch->probabilities[kept] = list[kept].weight;
                kept++;
        }
        free(list);
        return kept;
}

struct distribution sampler_distribution(const struct sampler_state *s, struct sampler_scratch *scratch,
    const float *logits, const uint32_t *tokens, size_t count, size_t outputs) {
        const struct sampling_params *p = s->params;
        const float *x = adjust(s, scratch, logits, tokens, count, outputs) ? scratch->work : logits;
        uint32_t best = argmax(x, scratch->vocab), n = 0;
        double total = 0, min_weight = p->min_p;

        if (p->temperature < GREEDY_BELOW || isinf(x[best])) {
                scratch->candidates[0] = best;
                scratch->probabilities[0] = 1;
                return (struct distribution){scratch->candidates, scratch->probabilities, 1};
        }
        for (uint32_t i = 0; i < scratch->vocab; i++)
                if (x[i] > -INFINITY &&
                    (min_weight <= 0 || exp(((double)x[i] - x[best]) / p->temperature) >= min_weight))
                        scratch->candidates[n++] = i;
        if (p->top_k > 0)
                n = keep_top_k(scratch, x, n, (uint32_t)p->top_k);
        for (uint32_t i = 0; i < n; i++)
                scratch->probabilities[i] = exp(((double)x[scratch->candidates[i]] - x[best]) / p->temperature);
        if (p->top_p < 1)
                n = keep_top_p(scratch, n, p->top_p);
        for (uint32_t i = 0; i < n; i++)
                total += scratch->probabilities[i];
        for (uint32_t i = 0; i < n; i++)
                scratch->probabilities[i] /= total;
        return (struct distribution){scratch->candidates, scratch->probabilities, n};
}

/* ---- draws ------------------------------------------------------------------------------------------------------------- */

uint32_t distribution_draw(const struct distribution *d, double unit) {
        double sum = 0;

        assert(d->count > 0);
        for (uint32_t i = 0; i < d->count; i++) {
                sum += d->probabilities[i];
                if (unit < sum)
                        return d->ids[i];
        }
        /* The probabilities sum to 1 but for rounding: the last one that can come out. */
        for (uint32_t i = d->count; i-- > 0;)
                if (d->probabilities[i] > 0)
                        return d->ids[i];
        return d->ids[0];
}

double distribution_probability(const struct distribution *d, uint32_t id) {
        for (uint32_t i = 0; i < d->count; i++)
                if (d->ids[i] == id)
                        return d->probabilities[i];
        return 0;
}

uint32_t distribution_draw_without(const struct distribution *d, uint32_t id, double unit) {
        double left = 1 - distribution_probability(d, id), sum = 0;
        uint32_t last = id;

        for (uint32_t i = 0; i < d->count; i++) {
                if (d->ids[i] == id || d->probabilities[i] <= 0)
                        continue;
                last = d->ids[i];
                sum += d->probabilities[i];
                if (unit * left < sum)
                        return last;
        }
        return last;
}

uint32_t sampler_next(struct sampler_state *s, struct sampler_scratch *scratch, const float *logits,
    const uint32_t *tokens, size_t count, size_t outputs) {
        struct distribution d;

        if (s->params->temperature < GREEDY_BELOW)
                return argmax(
                    adjust(s, scratch, logits, tokens, count, outputs) ? scratch->work : logits, scratch->vocab);
        d = sampler_distribution(s, scratch, logits, tokens, count, outputs);
        return distribution_draw(&d, rng_unit(&s->rng));
}

/* ---- log-probabilities ------------------------------------------------------------------------------------------------- */

/* Insert into a list of the best, kept best first; ties keep the lower id, which comes first. */
static uint32_t insert_top(struct openai_logprob *top, uint32_t held, uint32_t room, uint32_t id, float logit) {
        uint32_t at;

        if (held == room && !(logit > top[held - 1].logprob))
                return held;
        at = held < room ? held++ : held - 1;
        while (at > 0 && logit > top[at - 1].logprob) {
                top[at] = top[at - 1];
                at--;
        }
        top[at] = (struct openai_logprob){.id = id, .logprob = logit};
        return held;
}

void sampler_logprobs(const float *logits, uint32_t vocab, uint32_t id, uint32_t top, float *ret_logprob,
    uint32_t *ret_rank, struct openai_logprob *ret_top) {
        float best = logits[argmax(logits, vocab)];
        double sum = 0, norm;
        uint32_t rank = 1, held = 0;

        if (top > vocab)
                top = vocab;
        for (uint32_t i = 0; i < vocab; i++) {
                sum += exp((double)logits[i] - best);
                rank += logits[i] > logits[id];
                if (top)
                        held = insert_top(ret_top, held, top, i, logits[i]);
        }
        norm = best + log(sum);
        *ret_logprob = (float)(logits[id] - norm);
        *ret_rank = rank;
        for (uint32_t i = 0; i < held; i++) {
                ret_top[i].logprob = (float)(ret_top[i].logprob - norm);
                ret_top[i].rank = i + 1;
        }
}
