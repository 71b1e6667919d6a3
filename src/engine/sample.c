/* sample.c - tokens out of a step's logits.
 *
 * A row of logits is a vocabulary of floats: sampling thirty-two of them one after the other would take as long as a layer
 * of the model. Requests know nothing of one another here, so each is a job that any worker of the compute may take; what
 * touches shared state (blocks, metrics, outputs) happens afterwards on the engine thread. */
#include "engine/core.h"
#include <errno.h>
#include <stdatomic.h>
#include <stdlib.h>

/* Below so many floats waking workers costs more than it saves. */
#define WORTH_SHARING 65536u

/* The alternatives have their place in the output already; the header only shows them as const. */
static struct openai_logprob *places(const struct engine_token *t) {
        return (struct openai_logprob *)(uintptr_t)t->top;
}

static uint32_t alternatives(int32_t wanted, uint32_t vocab) {
        return wanted < 0 ? 0 : (uint32_t)wanted < vocab ? (uint32_t)wanted : vocab;
}

static void describe(struct engine_token *t, uint32_t id, const float *logits, uint32_t vocab, int32_t wanted) {
        t->id = id;
        if (wanted < 0)
                return;
        t->top_count = alternatives(wanted, vocab);
        sampler_logprobs(logits, vocab, id, t->top_count, &t->logprob, &t->rank, places(t));
}

/* All rows have logits then, not just those from the last known token on. */
static bool wants_report(const struct job *j) {
        return j->request->sequence.all_prompt_rows && j->first < j->request->sequence.prompt;
}

/* Rows inside the prompt of a request that wants to know about them: row i speaks about token i + 1. */
static bool report_prompt(struct request *q, const struct job *j, uint32_t vocab) {
        const struct sequence *s = &q->sequence;

        if (!q->report)
                q->report = report_new(s->prompt, alternatives(q->params.prompt_logprobs, vocab));
        if (!q->report)
                return false;
        q->report[0].id = s->tokens[0]; /* nothing speaks about the first */
        for (uint32_t i = 0; i < j->rows && j->first + i + 1 < s->prompt; i++)
                describe(&q->report[j->first + i + 1], s->tokens[j->first + i + 1], j->logits + (size_t)i * vocab,
                    vocab, q->params.prompt_logprobs);
        return true;
}

static const char *reason_of(int r) {
        switch (r) {
        case -EDOM:
                return "the model's output is not a number";
        case -ENODATA:
                return "the request forbids every token";
        default:
                return "out of memory";
        }
}

/* Sample until a draft turns out wrong, or one more token than there are drafts. The draw for a position does not know of
 * drafts (sampler.h), so the text is the one that would have come without them. */
static void take_tokens(struct request *q, struct job *j, struct sampler_scratch *scratch) {
        struct sequence *s = &q->sequence;
        struct engine_output *o = &j->output->public;
        const float *row = j->logits + (wants_report(j) ? (size_t)(j->rows - 1 - j->drafts) * scratch->vocab : 0);
        bool go_on = true;

        for (; go_on && o->token_count <= j->drafts; row += scratch->vocab) {
                uint32_t token, draft = o->token_count < j->drafts ? s->tokens[s->count] : UINT32_MAX;
                int r = sampler_next(&q->sampler, scratch, row, s->tokens, s->count, s->count - s->prompt, &token);

                if (r == 0)
                        r = sampler_count(&q->sampler, token);
                if (r < 0) {
                        o->finish = FINISH_ERROR;
                        o->error = reason_of(r);
                        return;
                }
                s->tokens[s->count++] = token;
                describe(&j->output->tokens[o->token_count++], token, row, scratch->vocab, q->params.logprobs);
                o->finish = request_check_end(q, &o->stop_id);
                go_on = o->finish == FINISH_NONE && token == draft;
        }
}

static void run_job(struct job *j, struct sampler_scratch *scratch) {
        struct request *q = j->request;
        struct sequence *s = &q->sequence;

        if (!j->logits)
                return;
        if (wants_report(j) && !report_prompt(q, j, scratch->vocab)) {
                j->output = output_last(q, FINISH_ERROR, reason_of(-ENOMEM));
                return;
        }
        if (!j->ends)
                return;
        j->output = output_new(q, j->drafts + 1, alternatives(q->params.logprobs, scratch->vocab));
        if (!j->output) {
                j->output = output_last(q, FINISH_ERROR, reason_of(-ENOMEM));
                return;
        }
        take_tokens(q, j, scratch);
        s->drafts = 0;
        if (q->report) {
                j->output->report = q->report;
                j->output->public.prompt_tokens = q->report;
                j->output->public.prompt_token_count = s->prompt;
                q->report = NULL;
                s->all_prompt_rows = false; /* told: computed again after a preemption, it is a sequence like others */
        }
}

struct work {
        struct engine *engine;
        _Atomic size_t next;
};

static void run_jobs(void *context, unsigned worker, unsigned workers) {
        struct work *w = context;
        size_t i;

        while ((i = atomic_fetch_add_explicit(&w->next, 1, memory_order_relaxed)) < w->engine->job_count)
                run_job(&w->engine->jobs[i], &w->engine->scratch[worker]);
}

void sample_step(struct engine *g) {
        struct work w = {.engine = g};

        if (g->job_count < 2 || g->job_count * g->config->vocab < WORTH_SHARING)
                run_jobs(&w, 0, 1);
        else
                compute_share(g->options.compute, run_jobs, &w);
}
