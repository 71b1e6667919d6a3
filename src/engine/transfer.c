/* transfer.c - KV from and for other engines (comm.h), as the engine thread sees it.
 *
 * A finished prompt's blocks are held until comm says that the lease has ended, those of one that is pushed until comm says that
 * nothing is read any more; the blocks that a fetch or another engine's push fills, until comm says that nothing is written any
 * more. So a request may end at any moment, and no block is taken for something else while another process reads or writes
 * it. */
#include "base/clock.h"
#include "base/rng.h"
#include "engine/core.h"
#include <errno.h>
#include <stdlib.h>

static void on_moved(void *engine) {
        struct engine *g = engine;

        pthread_mutex_lock(&g->mailbox.lock);
        g->mailbox.moved = true;
        wake_engine(g);
        pthread_mutex_unlock(&g->mailbox.lock);
}

int transfer_new(struct engine *g, struct error *e) {
        const struct engine_transfer *t = g->options.transfer;
        struct comm_options o = {.facts = g->facts, .fact_count = 2, .log = g->options.log, .wake = on_moved};

        o.pool = (struct kv_pool){.base = g->kv.memory,
            .row_bytes = g->kv.block_bytes / g->kv.layers / g->kv.block_tokens,
            .layers = g->kv.layers,
            .block_tokens = g->kv.block_tokens,
            .blocks = g->kv.blocks};
        if (model_cache_digest(g->config, g->digest) < 0)
                return error_set(e, -ENOMEM, "out of memory");
        g->facts[0] = (struct comm_fact){"model", g->digest};
        g->facts[1] = (struct comm_fact){"kv_type", g->kv.type == KV_F32 ? "float32" : "bfloat16"};
        o.engine_id = t->engine_id;
        o.host = (t->pushes ? t->consumes : t->produces) ? t->host : NULL;
        o.port = t->port;
        o.way = t->way;
        o.checksum = t->checksum;
        o.lease_ms = t->lease_ms;
        o.wake_context = g;
        return comm_new(&o, &g->comm, e);
}

/* ---- consumer --------------------------------------------------------------------------------------------------------- */

static void begin_push(struct engine *g, struct request *q);

int transfer_announce(struct engine *g, struct request *q, const struct engine_remote *remote) {
        struct sequence *s = &q->sequence;
        int r = comm_announce(g->comm, &remote->source, (void *)(uintptr_t)q->id, &q->fetch);

        if (r < 0)
                return r;
        /* The last token's row gives the first logits: it is computed here. All logits of the prompt are nowhere else. */
        s->external = s->all_prompt_rows ? 0 : s->prompt - 1;
        return 0;
}

void transfer_expect(struct request *q) {
        struct sequence *s = &q->sequence;

        s->external = s->all_prompt_rows ? 0 : s->prompt - 1;
}

/* Lease the blocks out and say so, for somebody to be asked to write them. 0 or -ENOMEM. */
static int begin_receipt(struct engine *g, struct request *q) {
        const struct sequence *s = &q->sequence;
        uint32_t count = (s->prompt + g->options.block_tokens - 1) / g->options.block_tokens;
        struct engine_expected *x = malloc(sizeof(*x) + count * sizeof(*x->blocks));
        struct output *o = output_new(q, 0, 0);
        int r = -ENOMEM;

        if (x && o) {
                *x = (struct engine_expected){.cached = s->computed, .tokens = s->prompt, .block_count = count};
                rng_hex(x->id, 16);
                memcpy(x->blocks, s->table.ids, count * sizeof(*x->blocks));
                r = comm_expect(g->comm, slice_str(x->id), s->table.ids, s->table.count, s->computed, s->external,
                    (void *)(uintptr_t)q->id, &q->receipt);
        }
        if (r < 0) {
                output_free(o);
                free(x);
                return r;
        }
        blocks_hold(g->blocks, s->table.ids, s->table.count);
        o->expected = x;
        o->public.expected = x;
        tell_output(g, q, o);
        return 0;
}

/* Its KV does not come. */
static void do_without(struct engine *g, struct request *q) {
        if (g->options.transfer->recompute)
                scheduler_fetched(&g->scheduler, &q->sequence, false);
        else
                end_request(g, q, FINISH_ERROR,
                    g->options.transfer->pushes ? "the KV of the prompt did not come"
                                                : "the KV of the prompt could not be fetched");
}

static void begin_fetch(struct engine *g, struct request *q) {
        const struct sequence *s = &q->sequence;

        metrics_fetch_begun(&g->metrics, s->external - s->computed);
        if (q->expects) {
                if (begin_receipt(g, q) < 0) {
                        do_without(g, q);
                        on_moved(g); /* there is something to compute */
                }
                return;
        }
        blocks_hold(g->blocks, s->table.ids, s->table.count);
        comm_fetch(q->fetch, s->table.ids, s->table.count, s->computed, s->external);
        q->fetch_started = true;
}

void transfer_begin(struct engine *g) {
        const struct scheduler *s = &g->scheduler;

        for (size_t i = 0; i < s->fetch_count; i++)
                begin_fetch(g, request_of(s->fetches[i]));
        for (size_t i = 0; i < s->plan_count; i++) {
                struct request *q = request_of(s->plan[i].sequence);

                if (q->fetch && !q->fetch_started) { /* all that it could fetch was found here */
                        comm_fetch(q->fetch, NULL, 0, q->sequence.prompt, q->sequence.prompt);
                        q->fetch_started = true;
                }
                if (q->push && !q->push_begun)
                        begin_push(g, q);
        }
}

void transfer_forget(struct engine *g, struct request *q) {
        if (q->fetch)
                comm_drop(q->fetch);
        if (q->receipt)
                comm_refuse(q->receipt);
        if (q->push)
                comm_push_drop(q->push);
        q->fetch = NULL;
        q->receipt = NULL;
        q->push = NULL;
}

void transfer_unexpect(struct engine *g, engine_id id) {
        struct request *q = find_request(g, id);

        if (q && q->receipt)
                comm_refuse(q->receipt);
}

/* What was to come here has, or has not: fetched, or pushed. */
static void take_fetched(struct engine *g, const struct comm_event *event) {
        struct request *q = find_request(g, (engine_id)(uintptr_t)event->user);
        bool fetches = q && q->sequence.state == SEQUENCE_FETCHING, arrived = event->result == 0;

        blocks_drop(g->blocks, event->blocks, event->block_count);
        metrics_fetched(&g->metrics, event, fetches ? q->sequence.external - q->sequence.computed : 0);
        if (q) {
                q->fetch = NULL;
                q->receipt = NULL;
        }
        if (event->result < 0 && event->result != -ECANCELED)
                log_warn(g->options.log, "the KV of a prompt %s: %s%s",
                    event->kind == COMM_RECEIVED ? "did not come" : "could not be fetched", event->text,
                    !fetches                         ? ""
                    : g->options.transfer->recompute ? "; it is computed here"
                                                     : "; the request is ended");
        if (!fetches)
                return;
        if (arrived) {
                q->fetched_bytes = event->bytes;
                q->fetch_ns = event->ns;
                scheduler_fetched(&g->scheduler, &q->sequence, true);
        } else
                do_without(g, q);
}

/* ---- producer --------------------------------------------------------------------------------------------------------- */

bool transfer_keeps(const struct engine *g, const struct request *q, enum finish_reason finish) {
        return q->keep && g->comm && !g->options.transfer->pushes &&
               (finish == FINISH_LENGTH || finish == FINISH_STOP) &&
               q->sequence.computed >= q->sequence.prompt; /* it may have been preempted when a stop string was found */
}

void transfer_keep(struct engine *g, const struct request *q, struct output *o) {
        const struct sequence *s = &q->sequence;
        uint32_t count = (s->prompt + g->options.block_tokens - 1) / g->options.block_tokens;
        struct engine_kept *kept = malloc(sizeof(*kept) + count * sizeof(*kept->blocks));

        if (!kept)
                return;
        *kept = (struct engine_kept){.tokens = s->prompt, .block_count = count};
        rng_hex(kept->id, 16);
        memcpy(kept->blocks, s->table.ids, count * sizeof(*kept->blocks));
        blocks_hold(g->blocks, kept->blocks, count);
        if (comm_export(g->comm, slice_str(kept->id), kept->blocks, count, s->prompt, NULL) < 0) {
                blocks_drop(g->blocks, kept->blocks, count);
                free(kept);
                return;
        }
        g->kept++;
        o->kept = kept;
        o->public.kept = kept;
}

int transfer_push(struct engine *g, struct request *q, const struct engine_remote *remote) {
        struct sequence *s = &q->sequence;
        int r;

        if (q->params.max_tokens != 1 || remote->cached + 1 >= s->prompt)
                return -EINVAL;
        r = comm_push(g->comm, &remote->source, remote->cached, s->prompt - 1, (void *)(uintptr_t)q->id, &q->push);
        if (r < 0)
                return r;
        q->push_first = remote->cached;
        q->push_end = s->prompt - 1; /* the last row is computed where it is decoded */
        s->pinned = true;
        return 0;
}

void transfer_admit(struct request *q) {
        if (q->push)
                comm_push_open(q->push);
}

/* Rows of one layer, as far as they are to go. */
static void push_rows(const struct request *q, uint32_t layer, uint32_t first, uint32_t end) {
        if (first < q->push_first)
                first = q->push_first;
        if (end > q->push_end)
                end = q->push_end;
        if (first < end)
                comm_push_rows(q->push, layer, first, end);
}

/* It has its blocks, all of them; what was found in them goes at once. */
static void begin_push(struct engine *g, struct request *q) {
        const struct sequence *s = &q->sequence;

        q->push_begun = true;
        if (comm_push_blocks(q->push, s->table.ids, s->table.count) < 0) {
                comm_push_drop(q->push); /* which ends the request, once its step is over */
                q->push_end = 0;
                return;
        }
        g->kept++;
        blocks_hold(g->blocks, s->table.ids, s->table.count);
        for (uint32_t layer = 0; layer < g->kv.layers; layer++)
                push_rows(q, layer, 0, s->computed);
}

bool transfer_pushes(const struct engine *g) {
        for (size_t i = 0; i < g->job_count; i++)
                if (g->jobs[i].request && g->jobs[i].request->push)
                        return true;
        return false;
}

void transfer_rows(void *engine, uint32_t layer) {
        const struct engine *g = engine;
        /* The draft module's layer, where nobody drafts, is nobody's: it goes with the last one. */
        uint32_t end = layer + 1 == g->config->layers && !g->options.draft_tokens ? g->kv.layers : layer + 1;

        for (size_t i = 0; i < g->job_count; i++) {
                const struct request *q = g->jobs[i].request;
                const struct model_span *span = &g->spans[i];

                for (uint32_t l = layer; q && q->push && l < end; l++)
                        push_rows(q, l, span->first, span->first + span->rows);
        }
}

bool transfer_lingers(struct engine *g, struct request *q, struct output *o) {
        enum finish_reason finish = o->public.finish;

        if (!q->push || (finish != FINISH_LENGTH && finish != FINISH_STOP) || q->sequence.computed < q->sequence.prompt)
                return false;
        q->pending = o;
        scheduler_remove(&g->scheduler, &q->sequence);
        return true;
}

static void take_pushed(struct engine *g, const struct comm_event *event) {
        struct request *q = find_request(g, (engine_id)(uintptr_t)event->user);

        if (event->block_count) {
                blocks_drop(g->blocks, event->blocks, event->block_count);
                g->kept--;
        }
        metrics_pushed(&g->metrics, event);
        if (event->result < 0 && event->result != -ECANCELED)
                log_warn(g->options.log, "the KV of a prompt could not be pushed: %s", event->text);
        if (!q)
                return;
        q->push = NULL;
        if (event->result < 0) {
                end_request(g, q, FINISH_ERROR, "the KV of the prompt could not be pushed to its decoder");
                return;
        }
        q->fetched_bytes = event->bytes;
        q->fetch_ns = event->ns;
        if (q->pending)
                end_lingering(g, q);
}

static void take_released(struct engine *g, const struct comm_event *event) {
        blocks_drop(g->blocks, event->blocks, event->block_count);
        g->kept--;
        metrics_released(&g->metrics, event->result);
        if (event->result == -ETIMEDOUT)
                log_warn(g->options.log, "the KV of a prompt was not fetched within its lease, and is freed");
}

/* ---- both -------------------------------------------------------------------------------------------------------------- */

bool transfer_take(struct engine *g) {
        struct comm_event *list;
        bool any;

        if (!g->comm)
                return false;
        pthread_mutex_lock(&g->mailbox.lock);
        g->mailbox.moved = false;
        pthread_mutex_unlock(&g->mailbox.lock);
        list = comm_take(g->comm);
        any = list != NULL;
        while (list) {
                struct comm_event *next = list->next;

                switch (list->kind) {
                case COMM_FETCHED:
                case COMM_RECEIVED:
                        take_fetched(g, list);
                        break;
                case COMM_RELEASED:
                        take_released(g, list);
                        break;
                case COMM_PUSHED:
                        take_pushed(g, list);
                        break;
                }
                comm_event_free(list);
                list = next;
        }
        return any;
}
