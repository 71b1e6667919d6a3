/* gate.c - which experts a token goes to: softmax greedy (V2-Lite), softmax within the best groups (V2), and sigmoid with a
 * correction bias that counts for the choice alone (V3, "noaux_tc"). Excluded experts are -inf, ties go to the lower id. */
#include "model/internal.h"
#include <math.h>

static void softmax(float *x, uint32_t n) {
        float best = x[0];
        double sum = 0;

        for (uint32_t i = 1; i < n; i++)
                best = x[i] > best ? x[i] : best;
        for (uint32_t i = 0; i < n; i++) {
                x[i] = expf(x[i] - best);
                sum += x[i];
        }
        for (uint32_t i = 0; i < n; i++)
                x[i] = (float)(x[i] / sum);
}

/* A group's score: its best (V2), or the sum of its two best (V3). */
static float group_score(const float *choice, uint32_t n, bool best_two) {
        float first = -INFINITY, second = -INFINITY;

        for (uint32_t i = 0; i < n; i++) {
                if (choice[i] > first) {
                        second = first;
                        first = choice[i];
                } else if (choice[i] > second)
                        second = choice[i];
        }
        return best_two ? first + second : first;
}

/* Set the experts of all but the best groups to -inf. */
static void limit_groups(const struct model_config *c, float *choice, bool best_two) {
        uint32_t size = c->experts / c->groups;
        float scores[MODEL_EXPERTS_MAX];
        bool kept[MODEL_EXPERTS_MAX];

        for (uint32_t g = 0; g < c->groups; g++) {
                scores[g] = group_score(choice + g * size, size, best_two);
                kept[g] = false;
        }
        for (uint32_t n = 0; n < c->top_groups; n++) {
                uint32_t best = UINT32_MAX;

                for (uint32_t g = 0; g < c->groups; g++)
                        if (!kept[g] && (best == UINT32_MAX || scores[g] > scores[best]))
                                best = g;
                kept[best] = true;
        }
        for (uint32_t g = 0; g < c->groups; g++)
                for (uint32_t i = 0; i < size && !kept[g]; i++)
                        choice[g * size + i] = -INFINITY;
}

static void take_best(const struct model_config *c, float *choice, uint32_t *ret_ids) {
        for (uint32_t k = 0; k < c->top_k; k++) {
                uint32_t best = 0;

                for (uint32_t i = 1; i < c->experts; i++)
                        if (choice[i] > choice[best])
                                best = i;
                ret_ids[k] = best;
                choice[best] = -INFINITY;
        }
}

void gate_choose(
    const struct model_config *c, float *logits, const float *bias, uint32_t *ret_ids, float *ret_weights) {
        float choice[MODEL_EXPERTS_MAX];
        float sum = 0;

        if (c->gate == GATE_SIGMOID_NOAUX)
                for (uint32_t i = 0; i < c->experts; i++)
                        logits[i] = 1 / (1 + expf(-logits[i]));
        else
                softmax(logits, c->experts);
        for (uint32_t i = 0; i < c->experts; i++)
                choice[i] = logits[i] + (bias ? bias[i] : 0);
        if (c->groups > 1 && c->gate != GATE_SOFTMAX_GREEDY)
                limit_groups(c, choice, c->gate == GATE_SIGMOID_NOAUX);
        take_best(c, choice, ret_ids);
        for (uint32_t k = 0; k < c->top_k; k++) {
                ret_weights[k] = logits[ret_ids[k]];
                sum += ret_weights[k];
        }
        for (uint32_t k = 0; k < c->top_k; k++) {
                if (c->norm_topk && c->top_k > 1)
                        ret_weights[k] /= sum + 1e-20f;
                /* V2's gate normalises or scales, V3's does both. */
                if (c->gate == GATE_SIGMOID_NOAUX || !(c->norm_topk && c->top_k > 1))
                        ret_weights[k] *= c->routed_scale;
        }
}
