/* sampler.c - see sampler.h. */
#include "engine/sampler.h"
#include "base/hash.h"
#include <assert.h>
#include <errno.h>
#include <math.h>
#include <stdlib.h>

#define GREEDY_BELOW 1e-5f

/* Nothing so far below the best can come out: even 2^20 tokens at e^-60 together weigh less than 2^-53 of the best, the
 * resolution of a draw. */
#define NEGLIGIBLE -60.0f

int sampler_scratch_init(struct sampler_scratch *s, uint32_t vocab) {
        *s = (struct sampler_scratch){.vocab = vocab};
        s->work = malloc(vocab * sizeof(*s->work));
        s->ids = malloc(vocab * sizeof(*s->ids));
        s->weights = malloc(vocab * sizeof(*s->weights));
        s->select = malloc(vocab * sizeof(*s->select));
        if (s->work && s->ids && s->weights && s->select)
                return 0;
        sampler_scratch_free(s);
        return -ENOMEM;
}

void sampler_scratch_free(struct sampler_scratch *s) {
        free(s->work);
        free(s->ids);
        free(s->weights);
        free(s->select);
        *s = (struct sampler_scratch){0};
}

/* ---- what penalties look at: distinct ids, however large the vocabulary ---------------------------------------------------- */

struct seen_token {
        uint32_t id;
        bool used, in_prompt;
        uint32_t count; /* in the output */
};

static struct seen_token *find_seen(const struct sampler_state *s, uint32_t id) {
        uint32_t mask = s->seen_capacity - 1, at = (id * 0x9e3779b1u) & mask;

        while (s->seen[at].used && s->seen[at].id != id)
                at = (at + 1) & mask;
        return &s->seen[at];
}

static int grow_seen(struct sampler_state *s) {
        struct sampler_state bigger = {.seen_capacity = s->seen_capacity ? 2 * s->seen_capacity : 64};

        bigger.seen = calloc(bigger.seen_capacity, sizeof(*bigger.seen));
        if (!bigger.seen)
                return -ENOMEM;
        for (uint32_t i = 0; i < s->seen_capacity; i++)
                if (s->seen[i].used)
                        *find_seen(&bigger, s->seen[i].id) = s->seen[i];
        free(s->seen);
        s->seen = bigger.seen;
        s->seen_capacity = bigger.seen_capacity;
        return 0;
}

static struct seen_token *add_seen(struct sampler_state *s, uint32_t id) {
        struct seen_token *t;

        if (2 * (s->seen_count + 1) > s->seen_capacity && grow_seen(s) < 0)
                return NULL;
        t = find_seen(s, id);
        if (!t->used) {
                *t = (struct seen_token){.id = id, .used = true};
                s->seen_count++;
        }
        return t;
}

static bool has_penalties(const struct sampling_params *p) {
        return p->repetition_penalty != 1 || p->frequency_penalty != 0 || p->presence_penalty != 0;
}

int sampler_init(struct sampler_state *s, const uint32_t *prompt, uint32_t prompt_count, uint64_t seed) {
        s->seed = s->params->has_seed ? (uint64_t)s->params->seed : seed;
        s->seen = NULL;
        s->seen_count = s->seen_capacity = 0;
        if (!has_penalties(s->params))
                return 0;
        if (grow_seen(s) < 0)
                return -ENOMEM;
        /* Only the repetition penalty looks at the prompt. */
        for (uint32_t i = 0; i < prompt_count && s->params->repetition_penalty != 1; i++) {
                struct seen_token *t = add_seen(s, prompt[i]);

                if (!t) {
                        sampler_done(s);
                        return -ENOMEM;
                }
                t->in_prompt = true;
        }
        return 0;
}

void sampler_done(struct sampler_state *s) {
        free(s->seen);
        s->seen = NULL;
        s->seen_count = s->seen_capacity = 0;
}

int sampler_count(struct sampler_state *s, uint32_t id) {
        struct seen_token *t;

        if (!s->seen)
                return 0;
        t = add_seen(s, id);
        if (!t)
                return -ENOMEM;
        t->count++;
        return 0;
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

        for (uint32_t i = 0; i < s->seen_capacity; i++) {
                const struct seen_token *t = &s->seen[i];
                float *x = &work[t->id];

                if (!t->used || t->id >= vocab)
                        continue;
                if (p->repetition_penalty != 1)
                        *x = *x > 0 ? *x / p->repetition_penalty : *x * p->repetition_penalty;
                if (t->count)
                        *x -= p->frequency_penalty * (float)t->count + p->presence_penalty;
        }
}

/* The logits as the request wants them: `logits` itself when it changes nothing, else scratch->work. */
static const float *adjust(const struct sampler_state *s, struct sampler_scratch *scratch, const float *logits,
    const uint32_t *tokens, size_t count, size_t outputs) {
        const struct sampling_params *p = s->params;
        bool forbid = outputs < p->min_tokens && (s->eos_count || p->stop_id_count);

        if (!p->allowed_ids && !s->bad_sequences && !forbid && !p->bias_count && !s->seen_count)
                return logits;
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
        penalise(s, scratch->work, scratch->vocab);
        return scratch->work;
}

/* The likeliest, lowest id first among equals. A row that is no numbers is told by its first value being none. */
static int find_best(const float *x, uint32_t n, uint32_t *ret_best) {
        uint32_t best = 0;

        for (uint32_t i = 1; i < n; i++)
                if (x[i] > x[best])
                        best = i;
        if (isnan(x[best]) || x[best] == INFINITY)
                return -EDOM;
        if (x[best] == -INFINITY)
                return -ENODATA;
        *ret_best = best;
        return 0;
}

/* ---- filters ----------------------------------------------------------------------------------------------------------- */

/* Order x[low..high) as: greater than the pivot, equal, less. */
static void partition(float *x, size_t low, size_t high, float pivot, size_t *ret_greater, size_t *ret_less) {
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
        *ret_greater = greater;
        *ret_less = less;
}

/* The k-th largest of x[0..n), 1 <= k <= n. Reorders x. */
static float kth_largest(float *x, size_t n, size_t k) {
        size_t low = 0, high = n, greater, less;

        for (;;) {
                float pivot = x[low + (high - low) / 2];

                partition(x, low, high, pivot, &greater, &less);
                if (k <= greater)
                        high = greater;
                else if (k <= less)
                        return pivot;
                else
                        low = less;
        }
}

/* The smallest weight among the largest of x[0..n) that together reach `wanted`, and how many of exactly that weight are
 * needed (0: all of x). Selection instead of a sort: a flat distribution over 129,280 tokens costs no more than a few
 * passes. Reorders x. */
static float weight_at_mass(float *x, size_t n, double wanted, size_t *ret_needed) {
        size_t low = 0, high = n, greater, less;
        double before = 0; /* mass of what is larger than x[low..high) */

        while (low < high) {
                float pivot = x[low + (high - low) / 2];
                double larger = 0, equal;

                partition(x, low, high, pivot, &greater, &less);
                for (size_t i = low; i < greater; i++)
                        larger += x[i];
                equal = (double)pivot * (double)(less - greater);
                if (before + larger >= wanted && greater > low)
                        high = greater;
                else if (before + larger + equal >= wanted) {
                        size_t needed = (size_t)ceil((wanted - before - larger) / pivot);

                        *ret_needed = needed < 1 ? 1 : needed > less - greater ? less - greater : needed;
                        return pivot;
                } else {
                        before += larger + equal;
                        low = less;
                }
        }
        *ret_needed = 0;
        return 0;
}

/* Ids whose logit may come out: all but the negligible, at most the k best (and their equals). */
static uint32_t list_candidates(
    struct sampler_scratch *s, const float *x, float best, const struct sampling_params *p) {
        float cut = best + NEGLIGIBLE * p->temperature;
        uint32_t n = 0;

        if (p->top_k > 0 && (uint32_t)p->top_k < s->vocab) {
                float kth;

                memcpy(s->select, x, s->vocab * sizeof(*x));
                kth = kth_largest(s->select, s->vocab, (uint32_t)p->top_k);
                if (kth > cut)
                        cut = kth;
        }
        for (uint32_t i = 0; i < s->vocab; i++)
                if (x[i] >= cut && x[i] > -INFINITY)
                        s->ids[n++] = i;
        return n;
}

static uint32_t keep_top_p(struct sampler_scratch *s, uint32_t count, double total, double top_p) {
        size_t needed;
        uint32_t kept = 0;
        float cut;

        memcpy(s->select, s->weights, count * sizeof(*s->weights));
        cut = weight_at_mass(s->select, count, total * top_p, &needed);
        if (needed == 0)
                return count;
        for (uint32_t i = 0; i < count; i++) {
                if (s->weights[i] < cut || (s->weights[i] == cut && needed == 0))
                        continue;
                needed -= s->weights[i] == cut;
                s->ids[kept] = s->ids[i];
                s->weights[kept++] = s->weights[i];
        }
        return kept;
}

/* min_p, then top_p over the candidates. Top_k came first here, last there: both keep the best so many, so that the smaller
 * set wins in either order, and it spares the exponentials. */
static void weigh(struct sampler_scratch *s, const float *x, float best, const struct sampling_params *p,
    struct distribution *ret_distribution) {
        uint32_t listed = list_candidates(s, x, best, p), n = 0;
        double total = 0;

        for (uint32_t i = 0; i < listed; i++) {
                float weight = expf((x[s->ids[i]] - best) / p->temperature);

                if (weight < p->min_p)
                        continue;
                s->ids[n] = s->ids[i];
                s->weights[n++] = weight;
                total += weight;
        }
        if (p->top_p < 1) {
                n = keep_top_p(s, n, total, p->top_p);
                total = 0;
                for (uint32_t i = 0; i < n; i++)
                        total += s->weights[i];
        }
        *ret_distribution = (struct distribution){s->ids, s->weights, n, total};
}

int sampler_distribution(const struct sampler_state *s, struct sampler_scratch *scratch, const float *logits,
    const uint32_t *tokens, size_t count, size_t outputs, struct distribution *ret_distribution) {
        const float *x = adjust(s, scratch, logits, tokens, count, outputs);
        uint32_t best;
        int r = find_best(x, scratch->vocab, &best);

        if (r < 0)
                return r;
        if (s->params->temperature >= GREEDY_BELOW)
                weigh(scratch, x, x[best], s->params, ret_distribution);
        else {
                scratch->ids[0] = best;
                scratch->weights[0] = 1;
                *ret_distribution = (struct distribution){scratch->ids, scratch->weights, 1, 1};
        }
        return 0;
}

/* ---- draws ------------------------------------------------------------------------------------------------------------- */

uint32_t distribution_draw(const struct distribution *d, double unit) {
        double sum = 0, wanted = unit * d->total;
        uint32_t last = 0;

        assert(d->count > 0);
        for (uint32_t i = 0; i < d->count; i++) {
                sum += d->weights[i];
                if (wanted < sum)
                        return d->ids[i];
                if (d->weights[i] > 0)
                        last = i;
        }
        return d->ids[last]; /* unit * total was rounded up to total */
}

static double draw_unit(uint64_t seed, uint64_t position) {
        uint64_t both[2] = {seed, position};

        return (double)(hash64(slice_of(both, sizeof(both)), 0) >> 11) * 0x1p-53;
}

int sampler_next(const struct sampler_state *s, struct sampler_scratch *scratch, const float *logits,
    const uint32_t *tokens, size_t count, size_t outputs, uint32_t *ret_token) {
        struct distribution d;
        int r;

        if (s->params->temperature < GREEDY_BELOW)
                return find_best(adjust(s, scratch, logits, tokens, count, outputs), scratch->vocab, ret_token);
        r = sampler_distribution(s, scratch, logits, tokens, count, outputs, &d);
        if (r == 0)
                *ret_token = distribution_draw(&d, draw_unit(s->seed, count));
        return r;
}

/* ---- log-probabilities ------------------------------------------------------------------------------------------------- */

/* Worse: less likely, or as likely with a higher id. */
static bool is_worse(const struct openai_logprob *a, const struct openai_logprob *b) {
        return a->logprob < b->logprob || (a->logprob == b->logprob && a->id > b->id);
}

/* top[0..n) is a heap with the worst at its root; the item at `at` may be better than its children. */
static void sift_down(struct openai_logprob *top, uint32_t n, uint32_t at) {
        struct openai_logprob item = top[at];

        for (;;) {
                uint32_t child = 2 * at + 1;

                if (child >= n)
                        break;
                if (child + 1 < n && is_worse(&top[child + 1], &top[child]))
                        child++;
                if (!is_worse(&top[child], &item))
                        break;
                top[at] = top[child];
                at = child;
        }
        top[at] = item;
}

/* The `n` best of the row, best first: a heap of the best so far, so that asking for the whole vocabulary is no more than a
 * sort. */
static void find_top(const float *logits, uint32_t vocab, struct openai_logprob *top, uint32_t n) {
        for (uint32_t i = 0; i < n; i++)
                top[i] = (struct openai_logprob){.id = i, .logprob = logits[i]};
        for (uint32_t i = n / 2; i-- > 0;)
                sift_down(top, n, i);
        for (uint32_t i = n; n && i < vocab; i++)
                if (logits[i] > top[0].logprob) {
                        top[0] = (struct openai_logprob){.id = i, .logprob = logits[i]};
                        sift_down(top, n, 0);
                }
        for (uint32_t left = n; left > 1;) {
                struct openai_logprob worst = top[0];

                top[0] = top[--left];
                top[left] = worst;
                sift_down(top, left, 0);
        }
}

void sampler_logprobs(const float *logits, uint32_t vocab, uint32_t id, uint32_t top, float *ret_logprob,
    uint32_t *ret_rank, struct openai_logprob *ret_top) {
        float best = -INFINITY;
        double sum = 0, norm;
        uint32_t rank = 0;

        for (uint32_t i = 0; i < vocab; i++)
                best = logits[i] > best ? logits[i] : best;
        for (uint32_t i = 0; i < vocab; i++) {
                sum += expf(logits[i] - best);
                rank += logits[i] >= logits[id];
        }
        norm = best + log(sum);
        *ret_logprob = (float)(logits[id] - norm);
        *ret_rank = rank;
        if (top > vocab)
                top = vocab;
        find_top(logits, vocab, ret_top, top);
        for (uint32_t i = 0; i < top; i++) {
                ret_top[i].logprob = (float)(ret_top[i].logprob - norm);
                ret_top[i].rank = i + 1;
        }
}
