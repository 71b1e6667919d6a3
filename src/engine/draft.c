/* draft.c - proposing tokens with the multi-token-prediction module (engine.h draft_tokens, vLLM's deepseek_mtp).
 *
 * The module runs over the very rows that the step has verified, with each row's hidden state and the token that follows
 * it, so that its own layer of the cache has every position. The last row's best token is the first draft; for further ones
 * the module is fed its own output, one row per sequence. Drafts are ordinary rows of the next step.
 *
 * The module runs draft_tokens times after every step, if with no rows: its experts may be shared with other engines. */
#include "engine/core.h"

/* The last computed row's follower is the last known token: a draft can be made of it. So it is after every token that came
 * out, and where a chunk of the prompt ends just before its last token. */
static bool decodes(const struct sequence *s) {
        return s->computed + 1 == s->count;
}

/* No more drafts than tokens that may still come beside the one that is sure. */
static bool wants_draft(const struct request *q) {
        return q->sequence.count + q->sequence.drafts + 1 < q->max_count;
}

/* The rows that were verified, of sequences that go on: hidden states move together in place. */
static void gather_rows(struct engine *g, struct model_step *step) {
        size_t width = g->config->hidden, from = 0, kept = 0;

        for (size_t i = 0; i < g->job_count; i++) {
                const struct job *j = &g->jobs[i];
                uint32_t computed_rows = g->spans[i].rows; /* as they lie in hidden */

                if (j->request) {
                        const struct sequence *s = &j->request->sequence;

                        memmove(
                            g->hidden + step->rows * width, g->hidden + from * width, j->rows * width * sizeof(float));
                        memcpy(g->tokens + step->rows, s->tokens + j->first + 1, j->rows * sizeof(*g->tokens));
                        g->spans[kept] = (struct model_span){.blocks = s->table.ids,
                            .first = j->first,
                            .rows = j->rows,
                            .naive = naive_rows(s->prompt, j->first, j->rows)};
                        step->rows += j->rows;
                        if (decodes(s))
                                g->logit_rows[step->logit_count++] = (uint32_t)step->rows - 1;
                        g->jobs[kept++] = *j;
                }
                from += computed_rows;
        }
        g->job_count = step->span_count = kept;
}

/* One further row per decoding sequence: the draft just made at the next position, with the module's own hidden state. The
 * last rows of the pass before are in logit_rows. */
static void gather_next(struct engine *g, struct model_step *step) {
        size_t width = g->config->hidden, n = 0;

        for (size_t i = 0; i < g->job_count; i++) {
                const struct sequence *s = &g->jobs[i].request->sequence;
                uint32_t next = s->count - 1 + s->drafts;

                if (!decodes(s))
                        continue;
                memcpy(g->hidden + n * width, g->draft_hidden + g->logit_rows[n] * width, width * sizeof(float));
                /* A sequence that wants no further draft goes along with its last token: its row is written again. */
                g->tokens[n] = s->tokens[next];
                g->spans[n++] = (struct model_span){.blocks = s->table.ids, .first = next - 1, .rows = 1};
        }
        for (size_t i = 0; i < n; i++)
                g->logit_rows[i] = (uint32_t)i;
        step->rows = step->span_count = step->logit_count = n;
}

static uint32_t best(const float *x, uint32_t n) {
        uint32_t at = 0;

        for (uint32_t i = 1; i < n; i++)
                if (x[i] > x[at])
                        at = i;
        return at;
}

/* Append each decoding sequence's best token as a draft. */
static void add_drafts(struct engine *g) {
        const float *row = g->logits;

        for (size_t i = 0; i < g->job_count; i++) {
                struct sequence *s = &g->jobs[i].request->sequence;

                if (!decodes(s))
                        continue;
                if (wants_draft(g->jobs[i].request))
                        s->tokens[s->count + s->drafts++] = best(row, g->config->vocab);
                row += g->config->vocab;
        }
}

int draft_step(struct engine *g) {
        struct model_step step = {.tokens = g->tokens, .spans = g->spans, .logit_rows = g->logit_rows};

        for (uint32_t k = 0; k < g->options.draft_tokens; k++) {
                int r;

                if (k == 0)
                        gather_rows(g, &step);
                else
                        gather_next(g, &step);
                r = reserve_logits(g, step.logit_count);
                if (r < 0)
                        return r;
                if (k == 0 && transfer_pushes(g)) { /* what later passes write is no prompt's */
                        step.on_rows = transfer_rows;
                        step.rows_context = g;
                } else
                        step.on_rows = NULL;
                r = model_draft(g->options.model, &g->kv, &step, g->hidden, g->logits, g->draft_hidden);
                if (r < 0)
                        return r;
                add_drafts(g);
        }
        return 0;
}
