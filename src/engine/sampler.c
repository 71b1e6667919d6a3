/* sampler.c - see sampler.h. */
#include "engine/sampler.h"
#include "base/hash.h"
#include <assert.h>
#include <errno.h>
#include <math.h>
#include <stdlib.h>

#define GREEDY_BELOW 1e-5f

/* e^-60 of the best: 2^20 tokens that are no likelier together weigh less than 2^-53 of it, the resolution of a draw. */
#define NEGLIGIBLE 8.75e-27f

int sampler_scratch_init(struct sampler_scratch *s, uint32_t vocab) {
        *s = (struct sampler_scratch){.vocab = vocab};
        s->work = malloc(vocab * sizeof(*s->work));
        s->ids = malloc(vocab * sizeof(*s->ids));
        s->weights = malloc(vocab * sizeof(*s->weights));
        s->select = malloc((vocab + 1) * sizeof(*s->select));
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

/* Four floats at once, which every 64-bit CPU has. */
typedef float floats __attribute__((vector_size(16)));
typedef int32_t ints __attribute__((vector_size(16)));
#define LANES 4u

/* e^x for x <= 0 within 2^-23; all below -87 (and NaN) as if it were -87. A row has a vocabulary of them. Range reduction by
 * ln 2 in two parts and a polynomial of degree 7, after Cephes. */
static inline floats exp_below(floats x) {
        const floats least = (floats){} - 87;
        ints small = (ints) ~(x > least);
        floats clamped = (floats)(((ints)x & ~small) | ((ints)least & small));
        floats k = (clamped * 1.44269504f + 12582912.0f) - 12582912.0f; /* rounded to whole numbers */
        floats r = (clamped - k * 0.693359375f) + k * 2.12194440e-4f, p = (floats){} + 1.9875691500e-4f;
        ints power = (__builtin_convertvector(k, ints) + 127) * (1 << 23);

        p = p * r + 1.3981999507e-3f;
        p = p * r + 8.3334519073e-3f;
        p = p * r + 4.1665795894e-2f;
        p = p * r + 1.6666665459e-1f;
        p = p * r + 5.0000001201e-1f;
        return (p * r * r + r + 1) * (floats)power;
}

static inline floats load(const float *x, size_t count) {
        floats v = {0};

        memcpy(&v, x, count * sizeof(*x));
        return v;
}

/* y[i] = e^((x[i] - best) / temperature). */
static void exp_row(const float *x, uint32_t n, float best, float temperature, float *y) {
        uint32_t i = 0;
        floats v;

        for (; i + LANES <= n; i += LANES) {
                v = exp_below((load(x + i, LANES) - best) / temperature);
                memcpy(y + i, &v, sizeof(v));
        }
        v = exp_below((load(x + i, n - i) - best) / temperature);
        memcpy(y + i, &v, (n - i) * sizeof(*y));
}

/* The sum of e^(x[i] - best). */
static double sum_exp(const float *x, uint32_t n, float best) {
        double sums[LANES] = {0};
        uint32_t i = 0;
        floats v;

        for (; i + LANES <= n; i += LANES) {
                v = exp_below(load(x + i, LANES) - best);
                for (uint32_t k = 0; k < LANES; k++)
                        sums[k] += v[k];
        }
        v = exp_below(load(x + i, n - i) - best);
        for (uint32_t k = 0; i + k < n; k++)
                sums[k] += v[k];
        return sums[0] + sums[1] + sums[2] + sums[3];
}

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

/* The smallest value among the largest of x[0..n) that together reach `wanted`, and how many of exactly that value are
 * needed (0: all of x do not reach it). Reorders x. */
static float value_at_sum(float *x, size_t n, double wanted, size_t *ret_needed) {
        size_t low = 0, high = n, greater, less;
        double before = 0; /* sum of what is larger than x[low..high) */

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

/* Selecting among 129,280 values by comparisons would mispredict every other one. So they are counted by their leading bits
 * first, in order of value, and only those that share the bucket in question are compared. */
#define BUCKETS 2048u

/* The order of floats as the order of unsigned integers. */
static inline uint32_t order_of(float x) {
        uint32_t bits;

        memcpy(&bits, &x, sizeof(bits));
        return bits >> 31 ? ~bits : bits | 1u << 31;
}

/* Values whose bucket is the given one, into `list`. */
static size_t gather_bucket(const float *x, size_t n, uint32_t bucket, unsigned shift, float *list) {
        size_t count = 0;

        for (size_t i = 0; i < n; i++) {
                list[count] = x[i];
                count += order_of(x[i]) >> shift == bucket;
        }
        return count;
}

/* The k-th largest of x[0..n), 1 <= k <= n, by way of `list` with room for n + 1. */
static float select_kth(const float *x, size_t n, size_t k, float *list) {
        uint32_t counts[BUCKETS] = {0}, bucket = BUCKETS - 1;

        for (size_t i = 0; i < n; i++)
                counts[order_of(x[i]) >> 21]++;
        while (counts[bucket] < k)
                k -= counts[bucket--];
        return kth_largest(list, gather_bucket(x, n, bucket, 21, list), k);
}

/* As value_at_sum over weights in (0, 1], by way of `list` with room for n + 1. */
static float select_at_sum(const float *x, size_t n, double wanted, float *list, size_t *ret_needed) {
        double sums[BUCKETS] = {0}, before = 0;
        uint32_t top = order_of(1) >> 19, bucket = top;

        for (size_t i = 0; i < n; i++)
                sums[top - (order_of(x[i]) >> 19)] += x[i];
        for (; bucket > top - BUCKETS + 1 && before + sums[top - bucket] < wanted; bucket--)
                before += sums[top - bucket];
        return value_at_sum(list, gather_bucket(x, n, bucket, 19, list), wanted - before, ret_needed);
}

/* The weights of all that may come out: not negligible, at least min_p, at most the k best (and their equals). Top_k comes
 * after min_p in vLLM; both keep the best so many, so that the smaller set wins in either order. */
static double list_candidates(
    struct sampler_scratch *s, const float *x, float best, const struct sampling_params *p, uint32_t *ret_count) {
        float cut = -INFINITY, least = p->min_p > NEGLIGIBLE ? p->min_p : NEGLIGIBLE;
        uint32_t n = 0;
        double total = 0;

        if (p->top_k > 0 && (uint32_t)p->top_k < s->vocab)
                cut = select_kth(x, s->vocab, (uint32_t)p->top_k, s->select);
        exp_row(x, s->vocab, best, p->temperature, s->select);
        for (uint32_t i = 0; i < s->vocab; i++) {
                if (s->select[i] < least || x[i] < cut)
                        continue;
                s->ids[n] = i;
                s->weights[n++] = s->select[i];
                total += s->select[i];
        }
        *ret_count = n;
        return total;
}

static void weigh(struct sampler_scratch *s, const float *x, float best, const struct sampling_params *p,
    struct distribution *ret_distribution) {
        uint32_t listed, kept = 0;
        double total = list_candidates(s, x, best, p, &listed);
        size_t needed = 0;
        float cut;

        *ret_distribution = (struct distribution){s->ids, s->weights, listed, total};
        if (p->top_p >= 1)
                return;
        cut = select_at_sum(s->weights, listed, total * p->top_p, s->select, &needed);
        if (needed == 0)
                return;
        total = 0;
        for (uint32_t i = 0; i < listed; i++) {
                float weight = s->weights[i];

                if (weight < cut || (weight == cut && needed == 0))
                        continue;
                needed -= weight == cut;
                s->ids[kept] = s->ids[i];
                s->weights[kept++] = weight;
                total += weight;
        }
        *ret_distribution = (struct distribution){s->ids, s->weights, kept, total};
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
        double norm;
        uint32_t rank = 0;

        for (uint32_t k = 0; k < vocab; k++) {
                best = logits[k] > best ? logits[k] : best;
                rank += logits[k] >= logits[id];
        }
        norm = best + log(sum_exp(logits, vocab, best));
        *ret_logprob = (float)(logits[id] - norm);
        *ret_rank = rank;
        if (top > vocab)
                top = vocab;
        find_top(logits, vocab, ret_top, top);
        for (uint32_t k = 0; k < top; k++) {
                ret_top[k].logprob = (float)(ret_top[k].logprob - norm);
                ret_top[k].rank = k + 1;
        }
}
