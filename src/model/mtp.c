/* mtp.c - the multi-token-prediction module: a layer of its own that guesses the token after the next.
 *
 * At position p it sees the main model's hidden state there (after the final norm) and the token that follows. The first
 * position has no embedding (vLLM's rule). Fed its own output it guesses further. */
#include "model/core.h"
#include <assert.h>

static int make_input(struct stepping *s, const float *hidden) {
        struct model *m = s->m;
        const size_t n = m->config.hidden;
        int r = stepping_embed(s, &m->mtp.embed, s->h);

        if (r < 0)
                return r;
        for (size_t i = 0; i < s->rows; i++)
                if (s->positions[i] == 0)
                        memset(s->h + i * n, 0, n * sizeof(float));
        stepping_norm(s, &m->mtp.enorm, s->h, n, s->pair, 2 * n);
        stepping_norm(s, &m->mtp.hnorm, hidden, n, s->pair + n, 2 * n);
        linear_run(m->options.compute, &m->mtp.eh, s->pair, 2 * n, s->rows, s->x, n);
        stepping_round(s, s->x, n, s->rows, n);
        return 0;
}

int model_draft(struct model *m, struct kv_cache *kv, const struct model_step *step, const float *hidden, float *logits,
    float *hidden_out) {
        const size_t n = m->config.hidden;
        struct stepping s;
        int r;

        assert(m->layer_count > m->config.layers);
        r = stepping_begin(&s, m, step, true);
        if (r == 0)
                r = make_input(&s, hidden);
        if (r == 0)
                r = stepping_layer(&s, kv, m->config.layers);
        if (r < 0)
                return r;
        if (!hidden_out)
                hidden_out = s.h;
        stepping_norm(&s, &m->mtp.head_norm, s.x, n, hidden_out, n);
        return stepping_logits(&s, &m->mtp.head, hidden_out, logits);
}
