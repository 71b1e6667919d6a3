/* loop.c - the engine thread: take commands, compose a step, run the model, sample, tell.
 *
 * One step in order: scheduler_plan() says which rows; model_forward() computes them; sample_step() gives tokens to every
 * sequence whose rows reach its end (or verifies drafts and gives several); take_results() counts, registers and ends;
 * draft_step() proposes tokens for the next step. All that is told goes to the front at once at the end. */
#include "base/clock.h"
#include "engine/core.h"
#include <errno.h>
#include <stdlib.h>
#include <unistd.h>

/* Commands are run at least so often while ranks are missing. */
#define REGROUP_MS 100u

/* ---- telling ---------------------------------------------------------------------------------------------------------------- */

void tell_output(struct engine *g, const struct request *q, struct output *o) {
        o->public.cached_tokens = q->sequence.cached;
        o->public.fetched_bytes = q->fetched_bytes;
        o->public.fetch_ns = q->fetch_ns;
        o->public.next = NULL;
        if (g->outbox_last)
                g->outbox_last->public.next = &o->public;
        else
                g->outbox_first = o;
        g->outbox_last = o;
        g->outbox_ends += o->public.finish != FINISH_NONE;
}

/* Hand everything told since the last call to the front. */
static void send_outbox(struct engine *g) {
        struct mailbox *m = &g->mailbox;

        if (!g->outbox_first)
                return;
        pthread_mutex_lock(&m->lock);
        if (m->out_last)
                m->out_last->public.next = &g->outbox_first->public;
        else
                m->out_first = g->outbox_first;
        m->out_last = g->outbox_last;
        m->queued -= g->outbox_ends;
        pthread_mutex_unlock(&m->lock);
        g->outbox_first = g->outbox_last = NULL;
        g->outbox_ends = 0;
        if (g->options.wake)
                g->options.wake(g->options.wake_context);
}

/* ---- requests ---------------------------------------------------------------------------------------------------------------- */

struct request *find_request(struct engine *g, engine_id id) {
        struct request *q = g->by_id[id % ID_BUCKETS];

        while (q && q->id != id)
                q = q->next_in_bucket;
        return q;
}

static struct request **find_by_id(struct engine *g, engine_id id) {
        struct request **at = &g->by_id[id % ID_BUCKETS];

        while (*at && (*at)->id != id)
                at = &(*at)->next_in_bucket;
        return at;
}

/* The one end of a request, unless its KV is still to be pushed: tell it, count it, free everything it holds. */
static void finish(struct engine *g, struct request *q, struct output *o) {
        if (transfer_lingers(g, q, o))
                return;
        if (transfer_keeps(g, q, o->public.finish))
                transfer_keep(g, q, o);
        transfer_forget(g, q);
        tell_output(g, q, o);
        metrics_finished(&g->metrics, q, o->public.finish, clock_mono_ns());
        *find_by_id(g, q->id) = q->next_in_bucket;
        scheduler_remove(&g->scheduler, &q->sequence);
        request_free(q);
}

void end_request(struct engine *g, struct request *q, enum finish_reason reason, const char *error) {
        finish(g, q, output_last(q, reason, error));
}

void end_lingering(struct engine *g, struct request *q) {
        struct output *o = q->pending;

        q->pending = NULL;
        finish(g, q, o);
}

static void admit_request(struct engine *g, struct request *q) {
        struct request **bucket = &g->by_id[q->id % ID_BUCKETS];

        q->next_in_bucket = *bucket;
        *bucket = q;
        transfer_admit(q);
        if (scheduler_add(&g->scheduler, &q->sequence) < 0)
                end_request(g, q, FINISH_ERROR, "out of memory");
}

static void abort_request(struct engine *g, engine_id id, enum finish_reason reason) {
        struct request *q = find_request(g, id);

        if (q)
                end_request(g, q, reason, NULL);
}

static void abort_everything(struct engine *g) {
        for (size_t i = 0; i < ID_BUCKETS; i++)
                while (g->by_id[i])
                        end_request(g, g->by_id[i], FINISH_ABORT, NULL);
}

static void reset_cache(struct engine *g, struct engine_reset *reset) {
        struct engine_reset **end = &g->mailbox.resets;

        reset->done = blocks_forget(g->blocks);
        pthread_mutex_lock(&g->mailbox.lock);
        while (*end)
                end = &(*end)->next;
        *end = reset;
        pthread_mutex_unlock(&g->mailbox.lock);
        if (g->options.wake)
                g->options.wake(g->options.wake_context);
}

/* True when there were any. */
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
                        admit_request(g, c->request);
                        break;
                case COMMAND_ABORT:
                        abort_request(g, c->id, c->reason);
                        break;
                case COMMAND_UNEXPECT:
                        transfer_unexpect(g, c->id);
                        break;
                case COMMAND_RESET_CACHE:
                        reset_cache(g, c->reset);
                        break;
                }
                free(c);
        }
        return any;
}

/* ---- the model ---------------------------------------------------------------------------------------------------------------- */

/* Rows whose logits are wanted, from the end of the span: all of a prompt that is to be reported, those from the last known
 * token on where the span reaches the sequence's end, else none. */
static uint32_t wanted_rows(const struct job *j) {
        const struct sequence *s = &j->request->sequence;

        if (s->all_prompt_rows && j->first < s->prompt)
                return j->rows;
        return j->ends ? j->drafts + 1 : 0;
}

int reserve_logits(struct engine *g, size_t rows) {
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

/* A job for every planned sequence, and the model's step. */
static void prepare_step(struct engine *g, struct model_step *step) {
        const struct scheduler *s = &g->scheduler;

        *step = (struct model_step){
            .tokens = g->tokens, .spans = g->spans, .span_count = s->plan_count, .logit_rows = g->logit_rows};
        g->job_count = s->plan_count;
        for (size_t i = 0; i < s->plan_count; i++) {
                const struct scheduled *p = &s->plan[i];
                struct sequence *q = p->sequence;
                struct job *j = &g->jobs[i];

                *j = (struct job){.request = request_of(q),
                    .first = p->first,
                    .rows = p->rows,
                    .drafts = q->drafts,
                    .ends = p->first + p->rows == q->count + q->drafts};
                g->spans[i] = (struct model_span){.blocks = q->table.ids,
                    .first = p->first,
                    .rows = p->rows,
                    .naive = naive_rows(q->prompt, p->first, p->rows)};
                memcpy(g->tokens + step->rows, q->tokens + p->first, p->rows * sizeof(*g->tokens));
                for (uint32_t k = p->rows - wanted_rows(j); k < p->rows; k++)
                        g->logit_rows[step->logit_count++] = (uint32_t)step->rows + k;
                step->rows += p->rows;
        }
}

static int compute_step(struct engine *g) {
        struct model_step step;
        const float *logits;
        int r;

        prepare_step(g, &step);
        if (transfer_pushes(g)) {
                step.on_rows = transfer_rows;
                step.rows_context = g;
        }
        r = reserve_logits(g, step.logit_count);
        if (r == 0)
                r = model_forward(g->options.model, &g->kv, &step, g->logits, g->hidden);
        if (r < 0)
                return r;
        logits = g->logits;
        for (size_t i = 0; i < g->job_count; i++) {
                uint32_t wanted = wanted_rows(&g->jobs[i]);

                g->jobs[i].logits = wanted ? logits : NULL;
                logits += (size_t)wanted * g->config->vocab;
        }
        return 0;
}

/* ---- after the model ----------------------------------------------------------------------------------------------------------- */

/* Count rows and tokens, end what has ended. A job is cut to its verified rows, and loses its request when that ended. */
static void take_result(struct engine *g, struct job *j, uint64_t now) {
        struct request *q = j->request;
        struct engine_output *o = j->output ? &j->output->public : NULL;

        if (o && o->token_count) { /* the row of the last known token, and one for every draft that was right */
                j->rows = j->rows - j->drafts + o->token_count - 1;
                metrics_tokens(&g->metrics, q, o->token_count, j->drafts, now);
        }
        /* After an error nobody knows what the rows are worth: they are not to be found as a prefix. */
        if (!o || o->finish != FINISH_ERROR)
                scheduler_advance(&g->scheduler, &q->sequence, j->rows);
        if (!o)
                return;
        if (o->finish == FINISH_NONE) {
                tell_output(g, q, j->output);
                return;
        }
        if (g->options.draft_tokens && (q->push || transfer_keeps(g, q, o->finish))) {
                j->ending = true;
                return;
        }
        finish(g, q, j->output);
        j->request = NULL;
}

static void take_results(struct engine *g) {
        uint64_t now = clock_mono_ns();

        for (size_t i = 0; i < g->job_count; i++)
                take_result(g, &g->jobs[i], now);
}

static void end_jobs(struct engine *g) {
        for (size_t i = 0; i < g->job_count; i++)
                if (g->jobs[i].ending)
                        finish(g, g->jobs[i].request, g->jobs[i].output);
}

/* What was to be computed in this step is lost; who waits, or was not in it, is not touched. */
static void fail_step(struct engine *g, int code) {
        if (g->job_count) /* else it was a step for others */
                log_error(
                    g->options.log, "a step failed: %s; its %zu requests are ended", strerror(-code), g->job_count);
        for (size_t i = 0; i < g->job_count; i++) {
                if (g->jobs[i].ending)
                        output_free(g->jobs[i].output);
                if (g->jobs[i].request)
                        end_request(g, g->jobs[i].request, FINISH_ERROR, "the engine could not compute a step");
        }
}

/* The group broke in the middle of a step, and may go on without the rank that is gone: sequences stay as they are, and their
 * rows are computed again. Only whose rows others have or were to have of this step is told so: those that are pushed, and those
 * that had ended but for drafts. */
static void keep_step(struct engine *g) {
        for (size_t i = 0; i < g->job_count; i++) {
                const struct job *j = &g->jobs[i];

                if (j->ending)
                        output_free(j->output);
                if (j->ending || (j->request && j->request->push))
                        end_request(g, j->request, FINISH_ERROR, "a rank of the expert-parallel group is gone");
        }
}

/* They lost their blocks, and their KV came from elsewhere: there it is to be made again. */
static void end_given_up(struct engine *g) {
        for (size_t i = 0; i < g->scheduler.given_up_count; i++)
                end_request(g, request_of(g->scheduler.given_up[i]), FINISH_RECOMPUTED, NULL);
}

static void note_scheduled(struct engine *g) {
        uint64_t now = clock_mono_ns();

        for (size_t i = 0; i < g->scheduler.plan_count; i++) {
                struct request *q = request_of(g->scheduler.plan[i].sequence);

                if (!q->scheduled_ns)
                        q->scheduled_ns = now;
        }
}

/* Is there a step to be computed: here, or on another rank of the group, which then needs this one's experts? */
static bool begin_step(struct engine *g) {
        const struct scheduler *s = &g->scheduler;
        bool work = s->plan_count > 0, any = work;
        struct error e;
        uint32_t rows;

        if (!g->group)
                return work;
        if (!group_is_formed(g->group) || (!work && !group_is_called(g->group)))
                return false;
        return group_agree(g->group, work, s->plan_rows, &any, &rows, &e) == 0 &&
               any; /* broken: regroup() sees to it */
}

bool engine_step(struct engine *g) {
        bool any = run_commands(g) | transfer_take(g);
        int r = 0;

        scheduler_plan(&g->scheduler);
        end_given_up(g);
        if (g->comm) {
                transfer_begin(g);
                send_outbox(g); /* who asks for a prefill does it while this step is computed */
        }
        if (begin_step(g)) {
                any = true;
                note_scheduled(g);
                r = compute_step(g);
                if (r == 0) {
                        sample_step(g);
                        take_results(g);
                        if (g->options.draft_tokens)
                                r = draft_step(g);
                }
                if (r == 0)
                        end_jobs(g);
                else if (g->group && !group_is_formed(g->group) && group_holds(g->group))
                        keep_step(g);
                else
                        fail_step(g, r);
                if (r < 0 && g->group)
                        group_break(g->group, "a step failed here");
        }
        metrics_step(&g->metrics, &g->scheduler);
        events_flush(g);
        send_outbox(g);
        return any;
}

/* ---- the loop ------------------------------------------------------------------------------------------------------------------ */

static bool has_work(const struct engine *g) {
        return g->scheduler.running_count || g->scheduler.waiting_count;
}

enum turn { TURN_END, TURN_SLEEP, TURN_GO };

/* What is next; `stuck`: what there is cannot go on before a command, comm or another rank comes. An engine that is to end waits
 * for those who still fetch from it. The mailbox's lock is held. */
static enum turn next_turn(const struct engine *g, bool stuck) {
        const struct mailbox *m = &g->mailbox;
        bool work = has_work(g), kept = g->kept > 0;

        if (m->abort_all)
                return TURN_END;
        if (m->first || m->moved || (work && !stuck))
                return TURN_GO;
        return m->stopping && !work && !kept ? TURN_END : TURN_SLEEP;
}

/* Sleep until there is something to do. False: end. */
static bool wait_for_work(struct engine *g, bool stuck) {
        struct mailbox *m = &g->mailbox;
        uint64_t wakes;
        enum turn turn;

        pthread_mutex_lock(&m->lock);
        while ((turn = next_turn(g, stuck)) == TURN_SLEEP && !g->group)
                pthread_cond_wait(&m->work, &m->lock);
        pthread_mutex_unlock(&m->lock);
        if (turn == TURN_SLEEP && group_is_formed(g->group)) {
                group_sleep(g->group, g->wake_fd);
                if (read(g->wake_fd, &wakes, sizeof(wakes)) < 0) /* a peer it was */
                        return true;
        }
        return turn != TURN_END;
}

/* What is under way cannot go on. */
static void end_everything(struct engine *g) {
        for (size_t i = 0; i < ID_BUCKETS; i++)
                while (g->by_id[i])
                        end_request(g, g->by_id[i], FINISH_ERROR, "a rank of the expert-parallel group is gone");
}

/* Ranks are missing. For a moment all may wait for the group to be formed anew, perhaps without them; then what was under way is
 * lost, since no step can be computed, and nothing new is taken until they are back. Returns soon, so that commands are run. */
static void regroup(struct engine *g) {
        struct error e = {0};
        uint64_t now = clock_mono_ns();
        bool hold = group_holds(g->group);

        if (!hold)
                atomic_store(&g->complete, false);
        run_commands(g);
        transfer_take(g);
        if (!hold)
                end_everything(g);
        metrics_step(&g->metrics, &g->scheduler);
        events_flush(g);
        send_outbox(g);
        if (group_form(g->group, REGROUP_MS, &e) == -EPROTO && now - g->told_ns > 5 * NS_PER_S) {
                log_error(g->options.log, "the group cannot be formed: %s", e.text);
                g->told_ns = now;
        }
        if (!hold || group_is_formed(g->group))
                atomic_store(&g->complete, group_is_formed(g->group));
}

void *engine_thread(void *engine) {
        struct engine *g = engine;
        bool stuck = false;

        compute_bind(g->options.compute);
        while (wait_for_work(g, stuck)) {
                if (g->group && !group_is_formed(g->group)) {
                        regroup(g);
                        stuck = !group_is_formed(g->group); /* what was held goes on */
                } else
                        stuck = !engine_step(g);
        }
        if (g->group)
                group_break(g->group, "this rank ends");
        run_commands(g);
        abort_everything(g);
        metrics_step(&g->metrics, &g->scheduler);
        send_outbox(g);
        pthread_mutex_lock(&g->mailbox.lock);
        g->mailbox.ended = true;
        pthread_cond_broadcast(&g->mailbox.reply);
        pthread_mutex_unlock(&g->mailbox.lock);
        return NULL;
}
