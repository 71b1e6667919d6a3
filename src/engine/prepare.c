/* prepare.c - steps run before the first request, so that it finds their memory taken and their pages there. */
#include "engine/core.h"
#include <errno.h>

/* Sequences of which each decodes one token beside its drafts; they share blocks that belong to nobody yet. */
static void gather(struct engine *g, uint32_t sequences, const uint32_t *blocks, struct model_step *step) {
        const uint32_t each = 1 + g->options.draft_tokens;

        *step = (struct model_step){.tokens = g->tokens,
            .rows = (size_t)sequences * each,
            .spans = g->spans,
            .span_count = sequences,
            .logit_rows = g->logit_rows,
            .logit_count = (size_t)sequences * each};
        for (uint32_t i = 0; i < sequences; i++)
                g->spans[i] = (struct model_span){.blocks = blocks, .rows = each};
        for (uint32_t i = 0; i < step->rows; i++) {
                g->tokens[i] = 0;
                g->logit_rows[i] = i;
        }
}

static int run(struct engine *g, uint32_t sequences) {
        uint32_t blocks[1 + DRAFTS_MAX];
        struct model_step step;
        int r;

        for (uint32_t i = 0; i <= DRAFTS_MAX; i++)
                blocks[i] = i % g->kv.blocks;
        gather(g, sequences, blocks, &step);
        r = reserve_logits(g, step.logit_count);
        if (r == 0)
                r = model_forward(g->options.model, &g->kv, &step, g->logits, g->hidden);
        if (r == 0 && g->options.draft_tokens)
                r = model_draft(g->options.model, &g->kv, &step, g->hidden, g->logits, g->draft_hidden);
        return r;
}

int engine_prepare(struct engine *g, uint32_t sequences) {
        const uint64_t rows = (uint64_t)sequences * (1 + g->options.draft_tokens);

        if (sequences == 0 || sequences > g->options.max_seqs || rows > g->options.max_batched_tokens)
                return -ERANGE;
        return g->group ? -ENOTSUP : run(g, sequences);
}
