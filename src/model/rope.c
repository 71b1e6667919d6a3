/* rope.c - rotation angles, with YaRN when the model has it.
 *
 * YaRN (arXiv 2309.00071) as DeepSeek uses it: pairs that turn often within the original context keep their frequency,
 * slow ones are slowed by `factor`, those between are mixed by a linear ramp. */
#include "model/core.h"
#include <math.h>

static double attention_scale(double factor, double mscale) {
        return factor <= 1 ? 1 : 0.1 * mscale * log(factor) + 1;
}

double rope_softmax_scale(const struct model_config *c) {
        double scale = 1 / sqrt((double)c->nope + c->rope);

        if (c->rope_scaling.yarn && c->rope_scaling.mscale_all_dim != 0) {
                double m = attention_scale(c->rope_scaling.factor, c->rope_scaling.mscale_all_dim);

                scale *= m * m;
        }
        return scale;
}

/* The (fractional) pair that makes `turns` turns within the original context. */
static double pair_of_turns(const struct model_config *c, double turns) {
        return c->rope * log(c->rope_scaling.original / (turns * 2 * M_PI)) / (2 * log(c->rope_scaling.theta));
}

static double frequency(const struct model_config *c, uint32_t pair) {
        double f = pow(c->rope_scaling.theta, -2.0 * pair / c->rope), low, high, ramp;

        if (!c->rope_scaling.yarn)
                return f;
        low = fmax(floor(pair_of_turns(c, c->rope_scaling.beta_fast)), 0);
        high = fmin(ceil(pair_of_turns(c, c->rope_scaling.beta_slow)), c->rope - 1);
        if (low == high)
                high += 0.001;
        ramp = fmin(fmax((pair - low) / (high - low), 0), 1);
        return f / c->rope_scaling.factor * ramp + f * (1 - ramp);
}

void rope_fill_table(const struct model_config *c, float *table) {
        const uint32_t pairs = c->rope / 2;
        double turns[LATENT_MAX / 2], scale = 1;

        if (c->rope_scaling.yarn)
                scale = attention_scale(c->rope_scaling.factor, c->rope_scaling.mscale) /
                        attention_scale(c->rope_scaling.factor, c->rope_scaling.mscale_all_dim);
        for (uint32_t j = 0; j < pairs; j++)
                turns[j] = frequency(c, j);
        for (size_t p = 0; p < c->max_positions; p++)
                for (uint32_t j = 0; j < pairs; j++, table += 2) {
                        table[0] = (float)(cos((double)p * turns[j]) * scale);
                        table[1] = (float)(sin((double)p * turns[j]) * scale);
                }
}
