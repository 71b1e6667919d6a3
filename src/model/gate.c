/* gate.c - which experts a token goes to.
 *
 * Three ways: V2-Lite takes the best of a softmax; V2 first keeps the groups with the best single expert; V3 scores with a
 * sigmoid, adds a correction bias for the choice alone and ranks groups by their two best. Excluded experts count as
 * minus infinity (biased scores may be negative, so that 0 would win). Ties go to the lowest index. Exponentials are in
 * double, so that the choice near a tie does not depend on the C library. */
#include "model/core.h"
#include <math.h>
#include <string.h>

size_t gate_scratch_floats(const struct model_config *c) {
        return 2 * (size_t)c->experts + c->groups;
}

static void softmax(const float *logits, uint32_t n, float *scores) {
        double largest = -INFINITY, sum = 0;

        for (uint32_t i = 0; i < n; i++)
                largest = fmax(largest, (double)logits[i]);
        for (uint32_t i = 0; i < n; i++)
                sum += exp((double)logits[i] - largest);
        for (uint32_t i = 0; i < n; i++)
                scores[i] = (float)(exp((double)logits[i] - largest) / sum);
}

static void sigmoid(const float *logits, uint32_t n, float *scores) {
        for (uint32_t i = 0; i < n; i++)
                scores[i] = (float)(1 / (1 + exp(-(double)logits[i])));
}

/* The best one that is not marked taken (as NaN); some index even when all are NaN. */
static uint32_t take_best(float *values, uint32_t n) {
        uint32_t best = 0;

        for (uint32_t i = 1; i < n; i++)
                if (values[i] > values[best] || isnan(values[best]))
                        best = i;
        return best;
}

static float group_score(const struct model_config *c, const float *choice, uint32_t size) {
        float first = -INFINITY, second = -INFINITY;

        for (uint32_t i = 0; i < size; i++)
                if (choice[i] > first) {
                        second = first;
                        first = choice[i];
                } else if (choice[i] > second)
                        second = choice[i];
        return c->gate == GATE_SIGMOID_NOAUX ? first + second : first;
}

/* Leave only the experts of the best groups. */
static void limit_groups(const struct model_config *c, float *choice, float *group_scores) {
        const uint32_t size = c->experts / c->groups;

        for (uint32_t g = 0; g < c->groups; g++)
                group_scores[g] = group_score(c, choice + g * size, size);
        for (uint32_t kept = 0; kept < c->top_groups; kept++)
                group_scores[take_best(group_scores, c->groups)] = NAN;
        for (uint32_t g = 0; g < c->groups; g++)
                for (uint32_t i = 0; i < size && !isnan(group_scores[g]); i++)
                        choice[g * size + i] = -INFINITY;
}

void gate_select(const struct model_config *c, const float *bias, const float *logits, float *scratch, uint32_t *ids,
    float *weights) {
        float *scores = scratch, *choice = scratch + c->experts, *groups = choice + c->experts;
        float sum = 0;

        (c->gate == GATE_SIGMOID_NOAUX ? sigmoid : softmax)(logits, c->experts, scores);
        for (uint32_t i = 0; i < c->experts; i++)
                choice[i] = bias ? scores[i] + bias[i] : scores[i];
        if (c->groups > 1)
                limit_groups(c, choice, groups);
        for (uint32_t k = 0; k < c->top_k; k++) {
                ids[k] = take_best(choice, c->experts);
                choice[ids[k]] = NAN;
                weights[k] = scores[ids[k]];
                sum += weights[k];
        }
        /* V3 normalises and scales; V2 does one or the other. */
        for (uint32_t k = 0; k < c->top_k; k++) {
                if (c->norm_topk && (c->is_v3 || c->top_k > 1))
                        weights[k] /= sum + 1e-20f;
                if (c->is_v3 || !c->norm_topk || c->top_k == 1)
                        weights[k] *= c->routed_scale;
        }
}
