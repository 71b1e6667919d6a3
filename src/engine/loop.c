/* loop.c - the engine thread: take commands, compose a step, run the model, sample, tell.
 *
 * One step in order: scheduler_plan() says which rows; model_forward() computes them; for every sequence whose rows reach
 * its end the sampler gives a token (or verifies drafts and gives several); ends are told and freed; draft_step() proposes
 * tokens for the next step. */
#include "base/clock.h"
#include "engine/core.h"
#include <errno.h>
#include <stdlib.h>

/* Nothing can be planned though something waits (blocks are held elsewhere): look again after so long. */
#define STARVED_NS (20 * NS_PER_MS)

/* ---- sequences by id ----------------------------------------------------------------------------------------------------- */

static struct sequence **find_by_id(struct engine *g, engine_id id) {
        struct sequence **at = &g->by_id[id % ID_BUCKETS];

        while (*at && (*at)->id != id)
                at = &(*at)->next_in_bucket;
        return at;
}

/* The one end of a sequence: tell it, count it, free everything it holds. */
static void finish(struct engine *g, struct sequence *q, const struct engine_token *tokens, uint32_t count,
    enum finish_reason reason, int64_t stop_id, const char *error) {
        struct sequence **at = find_by_id(g, q->id);

        output_post(g, q, tokens, count, reason, stop_id, error);
        metrics_finished(&g->metrics, q, reason, clock_mono_ns());
        *at = q->next_in_bucket;
        scheduler_remove(&g->scheduler, q);
        sequence_free(q);
}

/* ---- commands ------------------------------------------------------------------------------------------------------------ */

static void admit_sequence(struct engine *g, struct sequence *q) {
        struct sequence **bucket = &g->by_id[q->id % ID_BUCKETS];

        q->next_in_bucket = *bucket;
        *bucket = q;
        if (scheduler_add(&g->scheduler, q) < 0)
                finish(g, q, NULL, 0, FINISH_ERROR, -1, "out of memory");
}

static void abort_sequence(struct engine *g, engine_id id) {
        struct sequence *q = *find_by_id(g, id);

        if (q)
                finish(g, q, NULL, 0, FINISH_ABORT, -1, NULL);
}

static void abort_everything(struct engine *g, enum finish_reason reason, const char *error) {
        for (size_t i = 0; i < ID_BUCKETS; i++)
                while (g->by_id[i])
                        finish(g, g->by_id[i], NULL, 0, reason, -1, error);
}

static void reset_cache(struct engine *g) {
        bool done = blocks_forget(g->blocks);

        pthread_mutex_lock(&g->mailbox.lock);
        g->mailbox.cache_reset_done = true;
        g->mailbox.cache_was_reset = done;
        pthread_cond_signal(&g->mailbox.reply);
        pthread_mutex_unlock(&g->mailbox.lock);
}

static bool run_commands(struct engine *g) {
        struct command *list;
        bool any;

        pthread_mutex_lock(&g->mailbox.lock);
        list = g->mailbox.first;
        g->mailbox.first = g->mailbox.last = NULL;
        pthread_mutex_unlock(&g->mailbox.lock);
        any = list != NULL;
        while (list) {
                struct command *c = list;

                list = c->next;
                switch (c->kind) {
                case COMMAND_SUBMIT:
                        admit_sequence(g, c->sequence);
                        break;
                case COMMAND_ABORT:
                        abort_sequence(g, c->id);
                        break;
                case COMMAND_RESET_CACHE:
                        reset_cache(g);
                        break;
                }
                free(c);
        }
        return any;
}

/* ---- one step ------------------------------------------------------------------------------------------------------------ */

static bool reaches_end(const struct scheduled *s) {
        return s->first + s->rows == s->sequence->count + s->sequence->drafts;
}

/* Rows of `s` whose logits are wanted, from the end: with prompt log-probabilities all that predict a prompt token too. */
static uint32_t logit_rows_of(const struct scheduled *s) {
        if (s->sequence->bypass_cache && s->first < s->sequence->prompt)
                return s->rows;
        return reaches_end(s) ? s->sequence->drafts + 1 : 0;
}

static int reserve_logits(struct engine *g, size_t rows) {
        float *grown;

        if (rows <= g->logits_capacity)
                return 0;
        grown = realloc(g->logits, rows * g->config->vocab * sizeof(*grown));
        if (!grown)
                return -ENOMEM;
        g->logits = grown;
        g->logits_capacity = rows;
        return 0;
}

static int run_model(struct engine *g) {
        const struct scheduler *s = &g->scheduler;
        struct model_step step = {
            .tokens = g->tokens, .spans = g->spans, .span_count = s->plan_count, .logit_rows = g->logit_rows};
        int r;

        for (size_t i = 0; i < s->plan_count; i++) {
                const struct scheduled *p = &s->plan[i];
                uint32_t wanted = logit_rows_of(p);

                g->spans[i] = (struct model_span){.blocks = p->sequence->table.ids,
                    .first = p->first,
                    .rows = p->rows,
                    .naive = naive_rows(p->sequence->prompt, p->first, p->rows)};
                memcpy(g->tokens + step.rows, p->sequence->tokens + p->first, p->rows * sizeof(*g->tokens));
                for (uint32_t k = p->rows - wanted; k < p->rows; k++)
                        g->logit_rows[step.logit_count++] = (uint32_t)step.rows + k;
                step.rows += p->rows;
        }
        r = reserve_logits(g, step.logit_count);
        return r < 0 ? r : model_forward(g->options.model, &g->kv, &step, g->logits, g->hidden);
}

/* ---- tokens -------------------------------------------------------------------------------------------------------------- */

/* The reasons to end after a new last token, in vLLM's order. *ret_stop_id is set for a stop token. */
static enum finish_reason check_end(const struct sequence *q, int64_t *ret_stop_id) {
        uint32_t last = q->tokens[q->count - 1];

        if (q->count - q->prompt >= q->params.min_tokens) {
                for (uint32_t i = 0; i < q->eos_count && !q->params.ignore_eos; i++)
                        if (q->eos[i] == last)
                                return FINISH_STOP;
                for (uint32_t i = 0; i < q->params.stop_id_count; i++)
                        if (q->params.stop_ids[i] == last) {
                                *ret_stop_id = last;
                                return FINISH_STOP;
                        }
        }
        return q->count >= q->max_count ? FINISH_LENGTH : FINISH_NONE;
}

static void describe_token(
    struct engine *g, const struct sequence *q, const float *logits, struct engine_token *t, uint32_t at) {
        *t = (struct engine_token){.id = q->tokens[q->count - 1]};
        if (q->params.logprobs < 0)
                return;
        t->top_count =
            (uint32_t)q->params.logprobs < g->config->vocab ? (uint32_t)q->params.logprobs : g->config->vocab;
        t->top = g->tops + (size_t)at * g->config->vocab;
        sampler_logprobs(logits, g->config->vocab, t->id, t->top_count, &t->logprob, &t->rank,
            (struct openai_logprob *)(uintptr_t)t->top);
}

/* One row's logits to the next token; *ret_accepted tells whether it is the draft that stood there. */
static uint32_t choose(struct engine *g, struct sequence *q, const float *logits, bool has_draft, bool *ret_accepted) {
        uint32_t draft = q->tokens[q->count], token;
        struct distribution d;

        if (!has_draft || q->params.temperature < 1e-5f) {
                token = sampler_next(&q->sampler, &g->scratch, logits, q->tokens, q->count, q->count - q->prompt);
                *ret_accepted = has_draft && token == draft;
                return token;
        }
        /* Speculative sampling with a draft that is certain of itself: accept with the target's probability, else draw
         * from what is left. The output has exactly the target's distribution. */
        d = sampler_distribution(&q->sampler, &g->scratch, logits, q->tokens, q->count, q->count - q->prompt);
        *ret_accepted = rng_unit(&q->sampler.rng) < distribution_probability(&d, draft);
        return *ret_accepted ? draft : distribution_draw_without(&d, draft, rng_unit(&q->sampler.rng));
}

static void count_tokens(struct engine *g, struct sequence *q, uint32_t count, uint32_t drafts, uint64_t now) {
        pthread_mutex_lock(&g->metrics.lock);
        g->metrics.figures.generation_tokens += count;
        if (!q->first_token_ns) {
                q->first_token_ns = now;
                g->metrics.figures.prompt_tokens += q->prompt;
                g->metrics.figures.prompt_cached += q->cached;
                histogram_add(&g->metrics.histograms[H_TTFT], (double)(now - q->arrival_ns) / NS_PER_S);
        } else
                histogram_add(&g->metrics.histograms[H_ITL], (double)(now - q->last_token_ns) / NS_PER_S);
        if (drafts) {
                g->metrics.figures.drafts++;
                g->metrics.figures.draft_tokens += drafts;
                g->metrics.figures.accepted_tokens += count - 1;
                for (uint32_t i = 0; i + 1 < count && i < 8; i++)
                        g->metrics.figures.accepted_at[i]++;
        }
        pthread_mutex_unlock(&g->metrics.lock);
        q->last_token_ns = now;
}

/* Rows that reach the end of a sequence: sample, verifying drafts on the way. */
static void take_tokens(struct engine *g, const struct scheduled *s, const float *logits, uint64_t now) {
        struct sequence *q = s->sequence;
        uint32_t drafts = q->drafts, n = 0;
        enum finish_reason reason = FINISH_NONE;
        int64_t stop_id = -1;
        bool accepted = true;

        q->drafts = 0;
        while (accepted && n <= drafts && reason == FINISH_NONE) {
                const float *row = logits + (size_t)n * g->config->vocab;
                uint32_t token = choose(g, q, row, n < drafts, &accepted);

                q->tokens[q->count++] = token;
                sampler_count(&q->sampler, token);
                describe_token(g, q, row, &g->new_tokens[n], n);
                reason = check_end(q, &stop_id);
                n++;
        }
        /* The first row belongs to the last known token; every accepted draft's row counts too. */
        scheduler_advance(&g->scheduler, q, s->rows - drafts + n - 1);
        count_tokens(g, q, n, drafts, now);
        if (reason == FINISH_NONE)
                output_post(g, q, g->new_tokens, n, FINISH_NONE, -1, NULL);
        else
                finish(g, q, g->new_tokens, n, reason, stop_id, NULL);
}

/* Rows inside the prompt of a request that wants their log-probabilities: row i speaks about token i + 1. */
static void take_prompt_logprobs(struct engine *g, const struct scheduled *s, const float *logits) {
        struct sequence *q = s->sequence;
        uint32_t top = (uint32_t)q->params.prompt_logprobs;

        if (top > g->config->vocab)
                top = g->config->vocab;
        q->prompt_tokens[0].id = q->tokens[0];
        for (uint32_t i = s->first; i < s->first + s->rows && i + 1 < q->prompt; i++) {
                struct engine_token *t = &q->prompt_tokens[i + 1];
                struct openai_logprob *at =
                    top ? q->prompt_top + (size_t)(i + 1) * (uint32_t)q->params.prompt_logprobs : NULL;

                *t = (struct engine_token){.id = q->tokens[i + 1], .top = at, .top_count = top};
                sampler_logprobs(logits + (size_t)(i - s->first) * g->config->vocab, g->config->vocab, t->id, top,
                    &t->logprob, &t->rank, at);
        }
}

static void take_results(struct engine *g) {
        uint64_t now = clock_mono_ns();
        const float *logits = g->logits;

        for (size_t i = 0; i < g->scheduler.plan_count; i++) {
                struct scheduled s = g->scheduler.plan[i];
                uint32_t wanted = logit_rows_of(&s), last = s.sequence->drafts + 1;
                bool end = reaches_end(&s);

                if (s.sequence->bypass_cache && s.first < s.sequence->prompt)
                        take_prompt_logprobs(g, &s, logits);
                if (end) {
                        /* After this the sequence may be gone: what draft_step() asks of it is marked here. */
                        uint32_t before = s.sequence->count;
                        engine_id id = s.sequence->id;

                        take_tokens(g, &s, logits + (size_t)(wanted - last) * g->config->vocab, now);
                        if (*find_by_id(g, id)) {
                                uint32_t emitted = s.sequence->count - before;

                                g->scheduler.plan[i].rows = s.rows - (last - 1) + emitted - 1;
                        } else
                                g->scheduler.plan[i].sequence = NULL;
                } else
                        scheduler_advance(&g->scheduler, s.sequence, s.rows);
                logits += (size_t)wanted * g->config->vocab;
        }
}

/* ---- the loop ------------------------------------------------------------------------------------------------------------ */

static void note_scheduled(struct engine *g) {
        uint64_t now = clock_mono_ns();

        for (size_t i = 0; i < g->scheduler.plan_count; i++)
                if (!g->scheduler.plan[i].sequence->scheduled_ns)
                        g->scheduler.plan[i].sequence->scheduled_ns = now;
}

static void publish(struct engine *g) {
        struct engine_figures *f = &g->metrics.figures;

        pthread_mutex_lock(&g->metrics.lock);
        f->running = (uint32_t)g->scheduler.running_count;
        f->waiting = (uint32_t)g->scheduler.waiting_count;
        f->kv_usage = blocks_usage(g->blocks);
        f->prefix_queries = g->scheduler.prefix_queries;
        f->prefix_hits = g->scheduler.prefix_hits;
        f->preemptions = g->scheduler.preemptions;
        if (g->scheduler.plan_rows)
                histogram_add(&g->metrics.histograms[H_ITERATION_TOKENS], g->scheduler.plan_rows);
        pthread_mutex_unlock(&g->metrics.lock);
}

bool engine_step(struct engine *g) {
        bool commands = run_commands(g);
        int r;

        scheduler_plan(&g->scheduler);
        if (g->scheduler.plan_count == 0) {
                publish(g);
                return commands;
        }
        note_scheduled(g);
        r = run_model(g);
        if (r == 0) {
                take_results(g);
                if (g->options.draft_tokens)
                        r = draft_step(g);
        }
        if (r < 0) {
                log_error(g->options.log, "a step failed: %s; all requests are ended", strerror(-r));
                abort_everything(g, FINISH_ERROR, "the engine could not compute a step");
        }
        publish(g);
        return true;
}

static bool has_work(const struct engine *g) {
        return g->scheduler.running_count || g->scheduler.waiting_count;
}

/* Sleep until there is something to do. Returns false when the engine is to end. */
static bool wait_for_work(struct engine *g, bool idle) {
        struct mailbox *m = &g->mailbox;
        bool go_on;

        pthread_mutex_lock(&m->lock);
        if (idle && has_work(g) && !m->first && !m->abort_all) {
                struct timespec until;

                clock_gettime(CLOCK_REALTIME, &until);
                until.tv_nsec += STARVED_NS;
                if (until.tv_nsec >= 1000000000) {
                        until.tv_sec++;
                        until.tv_nsec -= 1000000000;
                }
                pthread_cond_timedwait(&m->work, &m->lock, &until);
        } else
                while (!has_work(g) && !m->first && !m->stopping && !m->abort_all)
                        pthread_cond_wait(&m->work, &m->lock);
        go_on = !(m->abort_all || (m->stopping && !has_work(g) && !m->first));
        pthread_mutex_unlock(&m->lock);
        return go_on;
}

void *engine_thread(void *engine) {
        struct engine *g = engine;
        bool idle = false;

        while (wait_for_work(g, idle)) {
                idle = !engine_step(g);
                if (g->options.wake)
                        g->options.wake(g->options.wake_context);
        }
        run_commands(g);
        abort_everything(g, FINISH_ABORT, NULL);
        publish(g);
        pthread_mutex_lock(&g->mailbox.lock);
        g->mailbox.ended = true;
        pthread_cond_broadcast(&g->mailbox.reply);
        pthread_mutex_unlock(&g->mailbox.lock);
        if (g->options.wake)
                g->options.wake(g->options.wake_context);
        return NULL;
}
