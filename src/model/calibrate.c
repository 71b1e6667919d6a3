/* calibrate.c - what range activations have: prompts go through the model layer by layer.
 *
 * All prompts pass a layer before the next one is read, so that a model larger than memory is read once, whatever the
 * prompts. What stays between layers is the residual stream. */
#include "model/quantize.h"
#include <errno.h>
#include <math.h>
#include <stdlib.h>

/* Positions of a prompt that count: further ones tell little that is new, and a step over them takes memory. */
#define PROMPT_MAX   2048u
#define BLOCK_TOKENS 64u

struct calibration {
        const struct quantize_options *options;
        struct model_walk *walk;
        struct model *m;
        struct kv_cache kv; /* of one prompt after the other */
        uint32_t *blocks;
        float *residual; /* [all rows][hidden] */
        struct layer_ranges *ranges;
};

static uint32_t rows_of(const struct calibration *c, const struct quantize_prompt *p) {
        uint32_t most = c->m->config.max_positions < PROMPT_MAX ? c->m->config.max_positions : PROMPT_MAX;

        return p->count < most ? (uint32_t)p->count : most;
}

/* ---- ranges --------------------------------------------------------------------------------------------------------- */

/* False: a value is no number. */
static bool widen(struct range *range, const float *x, size_t n) {
        float sum = 0;

        for (size_t i = 0; i < n; i++) {
                range->low = fminf(range->low, x[i]);
                range->high = fmaxf(range->high, x[i]);
                sum += x[i] * 0;
        }
        return sum == 0;
}

struct input_scale input_scale_of(struct range range) {
        struct input_scale s = {.scale = (range.high - range.low) / 255};

        if (!(s.scale > 0))
                return (struct input_scale){.scale = 1};
        s.offset = fminf(fmaxf(rintf(-128 - range.low / s.scale), -128), 127);
        return s;
}

/* ---- a prompt through a layer --------------------------------------------------------------------------------------- */

/* One layer over one prompt's rows of the residual stream, in place. */
static int run_prompt(struct calibration *c, uint32_t layer, const struct quantize_prompt *p, float *residual) {
        const struct model_config *config = &c->m->config;
        const uint32_t rows = rows_of(c, p);
        const struct model_span span = {.blocks = c->blocks, .rows = rows, .naive = rows};
        const struct model_step step = {.tokens = p->tokens, .rows = rows, .spans = &span, .span_count = 1};
        struct range *at = c->ranges[layer].at;
        struct stepping s;
        int r = stepping_begin(&s, c->m, &step, false);

        if (r < 0)
                return r;
        if (layer == 0)
                r = stepping_embed(&s, &c->m->embed, s.x);
        else
                memcpy(s.x, residual, (size_t)rows * config->hidden * sizeof(*residual));
        if (r < 0)
                return r;
        /* The layer leaves what entered q_b and o where it was; its first norm is overwritten by the second. */
        stepping_norm(&s, &c->m->layers[layer].input_norm, s.x, config->hidden, s.h, config->hidden);
        if (!widen(&at[RANGE_HIDDEN], s.h, (size_t)rows * config->hidden))
                return -EDOM;
        r = stepping_layer(&s, &c->kv, layer);
        if (r < 0)
                return r;
        memcpy(residual, s.x, (size_t)rows * config->hidden * sizeof(*residual));
        return widen(&at[RANGE_Q_B], s.q_a, (size_t)rows * config->q_lora) &&
                       widen(&at[RANGE_O], s.attended, (size_t)rows * config->heads * config->v)
                   ? 0
                   : -EDOM;
}

static int run_layer(struct calibration *c, uint32_t layer, struct error *e) {
        const struct quantize_options *o = c->options;
        float *residual = c->residual;
        int r = model_walk_layer(c->walk, layer);

        for (size_t i = 0; r == 0 && i < o->prompt_count; i++) {
                r = quantize_go_on(o, e);
                if (r < 0)
                        return r;
                r = run_prompt(c, layer, &o->prompts[i], residual);
                if (r == -EDOM)
                        error_set(e, -EINVAL, "calibration: prompt %zu is no number after layer %u", i + 1, layer);
                else if (r < 0)
                        error_set(e, r, "calibration: out of memory for prompt %zu", i + 1);
                residual += (size_t)rows_of(c, &o->prompts[i]) * c->m->config.hidden;
        }
        if (r == 0 && o->progress)
                o->progress(o->context, "calibrated layer", layer + 1, c->m->config.layers);
        return r == -EDOM ? -EINVAL : r;
}

/* ---- the whole ------------------------------------------------------------------------------------------------------ */

static int check_prompts(const struct calibration *c, size_t *ret_rows, uint32_t *ret_longest, struct error *e) {
        const struct quantize_options *o = c->options;
        size_t rows = 0;
        uint32_t longest = 0;

        for (size_t i = 0; i < o->prompt_count; i++) {
                uint32_t n = rows_of(c, &o->prompts[i]);

                for (uint32_t k = 0; k < n; k++)
                        if (o->prompts[i].tokens[k] >= c->m->config.vocab)
                                return error_set(e, -EINVAL, "calibration: prompt %zu has token %u, the model knows %u",
                                    i + 1, o->prompts[i].tokens[k], c->m->config.vocab);
                rows += n;
                longest = n > longest ? n : longest;
        }
        if (rows == 0)
                return error_set(e, -EINVAL, "the ranges of static activations are taken from prompts: there is none");
        *ret_rows = rows;
        *ret_longest = longest;
        return 0;
}

static int make_room(struct calibration *c, struct error *e) {
        size_t rows = 0;
        uint32_t longest = 0, blocks;
        int r = check_prompts(c, &rows, &longest, e);

        if (r < 0)
                return r;
        blocks = (longest + BLOCK_TOKENS - 1) / BLOCK_TOKENS;
        c->residual = reallocarray(NULL, rows * c->m->config.hidden, sizeof(*c->residual));
        c->blocks = reallocarray(NULL, blocks, sizeof(*c->blocks));
        c->ranges = calloc(c->m->config.layers, sizeof(*c->ranges));
        if (!c->residual || !c->blocks || !c->ranges)
                return error_set(e, -ENOMEM, "calibration: out of memory for %zu tokens; take fewer prompts", rows);
        for (uint32_t i = 0; i < blocks; i++)
                c->blocks[i] = i;
        return kv_cache_new(c->m, KV_F32, BLOCK_TOKENS, blocks, &c->kv, e);
}

int calibrate(const struct quantize_options *options, struct layer_ranges **ret_ranges, struct error *e) {
        const struct model_options m = {.dir = options->from, .compute = options->compute};
        struct calibration c = {.options = options};
        int r = model_walk_open(&m, &c.walk, &c.m, e);

        if (r < 0)
                return r;
        r = make_room(&c, e);
        for (uint32_t i = 0; r == 0 && i < c.m->config.layers; i++)
                r = run_layer(&c, i, e);
        if (r == 0) {
                *ret_ranges = c.ranges;
                c.ranges = NULL;
        }
        kv_cache_free(&c.kv);
        free(c.residual);
        free(c.blocks);
        free(c.ranges);
        model_walk_close(c.walk);
        return r;
}
