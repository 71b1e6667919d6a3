/* draft.c - proposing tokens with the multi-token-prediction module (engine.h draft_tokens, vLLM's deepseek_mtp).
 *
 * The module runs over the very rows that the step has verified, with each row's hidden state and the token that follows
 * it, so that its own layer of the cache has every position. The last row's best token is the first draft; for further ones
 * the module is fed its own output, one row per sequence. Drafts are ordinary rows of the next step. */
#include "engine/core.h"
#include <assert.h>

/* Sequences that go on, and where their last row of the draft step is. */
static size_t gather_rows(struct engine *g, struct model_step *step) {
        size_t width = g->config->hidden, from = 0, kept = 0;

        for (size_t i = 0; i < g->scheduler.plan_count; i++) {
                const struct scheduled *p = &g->scheduler.plan[i];
                uint32_t computed_rows = g->spans[i].rows; /* as they lie in hidden */
                struct sequence *q = p->sequence;

                if (q) {
                        /* plan[i].rows was cut to the verified ones; the row after the last known token has no follower. */
                        memmove(
                            g->hidden + step->rows * width, g->hidden + from * width, p->rows * width * sizeof(float));
                        for (uint32_t k = 0; k < p->rows; k++)
                                g->tokens[step->rows + k] = q->tokens[p->first + k + 1];
                        g->spans[kept] = (struct model_span){.blocks = q->table.ids,
                            .first = p->first,
                            .rows = p->rows,
                            .naive = naive_rows(q->prompt, p->first, p->rows)};
                        step->rows += p->rows;
                        g->scheduler.plan[kept] = *p;
                        if (q->computed + 1 == q->count)
                                g->logit_rows[step->logit_count++] = (uint32_t)step->rows - 1;
                        kept++;
                }
                from += computed_rows;
        }
        g->scheduler.plan_count = kept;
        return kept;
}

static uint32_t best(const float *x, uint32_t n) {
        uint32_t at = 0;

        for (uint32_t i = 1; i < n; i++)
                if (x[i] > x[at])
                        at = i;
        return at;
}

static bool decodes(const struct sequence *q) {
        return q->computed + 1 == q->count;
}

/* No more drafts than tokens that may still come beside the one that is sure. */
static bool wants_draft(const struct sequence *q) {
        return decodes(q) && q->count + q->drafts + 1 < q->max_count;
}

/* Append each sequence's best token as a draft. Rows of logits are in the order of the decoding sequences. */
static void add_drafts(struct engine *g) {
        const float *row = g->logits;

        for (size_t i = 0; i < g->scheduler.plan_count; i++) {
                struct sequence *q = g->scheduler.plan[i].sequence;

                if (!decodes(q))
                        continue;
                if (wants_draft(q)) {
                        q->tokens[q->count + q->drafts] = best(row, g->config->vocab);
                        q->drafts++;
                }
                row += g->config->vocab;
        }
}

/* One further row per decoding sequence: the draft just made at the next position, with the module's own hidden state. */
static void gather_next(struct engine *g, struct model_step *step, const uint32_t *last_rows) {
        size_t width = g->config->hidden, n = 0;

        step->rows = step->span_count = step->logit_count = 0;
        for (size_t i = 0; i < g->scheduler.plan_count; i++) {
                struct sequence *q = g->scheduler.plan[i].sequence;

                if (!decodes(q))
                        continue;
                memcpy(g->hidden + n * width, g->draft_hidden + last_rows[n] * width, width * sizeof(float));
                /* A sequence that wants no further draft goes along with its last token: its row is written again later. */
                g->tokens[n] = q->tokens[q->count - 1 + q->drafts];
                g->spans[n] = (struct model_span){.blocks = q->table.ids, .first = q->count - 2 + q->drafts, .rows = 1};
                n++;
        }
        for (size_t i = 0; i < n; i++)
                g->logit_rows[i] = (uint32_t)i;
        step->rows = step->span_count = step->logit_count = n;
}

int draft_step(struct engine *g) {
        struct model_step step = {.tokens = g->tokens, .spans = g->spans, .logit_rows = g->logit_rows};
        int r;

        step.span_count = gather_rows(g, &step);
        if (step.span_count == 0)
                return 0;
        for (uint32_t k = 0; k < g->options.draft_tokens; k++) {
                if (k)
                        gather_next(g, &step, g->logit_rows);
                if (step.rows == 0)
                        return 0;
                assert(step.logit_count <= g->logits_capacity || step.logit_count <= step.span_count);
                r = model_draft(g->options.model, &g->kv, &step, g->hidden, g->logits, g->draft_hidden);
                if (r < 0)
                        return r;
                add_drafts(g);
                if (step.logit_count == 0)
                        return 0;
        }
        return 0;
}
