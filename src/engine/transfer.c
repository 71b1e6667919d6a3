/* transfer.c - KV from and for other engines (comm.h), as the engine thread sees it.
 *
 * A finished prompt's blocks are held until comm says that the lease has ended; the blocks that a fetch fills, until comm says
 * that nothing is written any more. So a request may end at any moment, and no block is taken for something else while
 * another process reads or writes it. */
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
        o.host = t->produces ? t->host : NULL;
        o.port = t->port;
        o.way = t->way;
        o.checksum = t->checksum;
        o.lease_ms = t->lease_ms;
        o.wake_context = g;
        return comm_new(&o, &g->comm, e);
}

/* ---- consumer --------------------------------------------------------------------------------------------------------- */

int transfer_announce(struct engine *g, struct request *q, const struct engine_remote *remote) {
        struct sequence *s = &q->sequence;
        int r = comm_announce(g->comm, &remote->source, (void *)(uintptr_t)q->id, &q->fetch);

        if (r < 0)
                return r;
        /* The last token's row gives the first logits: it is computed here. All logits of the prompt are nowhere else. */
        s->external = s->all_prompt_rows ? 0 : s->prompt - 1;
        return 0;
}

static void begin_fetch(struct engine *g, struct request *q) {
        const struct sequence *s = &q->sequence;

        blocks_hold(g->blocks, s->table.ids, s->table.count);
        comm_fetch(q->fetch, s->table.ids, s->table.count, s->computed, s->external);
        q->fetch_started = true;
        metrics_fetch_begun(&g->metrics, s->external - s->computed);
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
        }
}

void transfer_forget(struct engine *g, struct request *q) {
        if (q->fetch)
                comm_drop(q->fetch);
        q->fetch = NULL;
}

static void take_fetched(struct engine *g, const struct comm_event *event) {
        struct request *q = find_request(g, (engine_id)(uintptr_t)event->user);
        bool fetches = q && q->sequence.state == SEQUENCE_FETCHING, arrived = event->result == 0;

        blocks_drop(g->blocks, event->blocks, event->block_count);
        metrics_fetched(&g->metrics, event, fetches ? q->sequence.external - q->sequence.computed : 0);
        if (q)
                q->fetch = NULL;
        if (event->result < 0 && event->result != -ECANCELED)
                log_warn(g->options.log, "the KV of a prompt could not be fetched: %s%s", event->text,
                    !fetches                         ? ""
                    : g->options.transfer->recompute ? "; it is computed here"
                                                     : "; the request is ended");
        if (!fetches)
                return;
        if (arrived) {
                q->fetched_bytes = event->bytes;
                q->fetch_ns = event->ns;
        }
        if (arrived || g->options.transfer->recompute)
                scheduler_fetched(&g->scheduler, &q->sequence, arrived);
        else
                end_request(g, q, FINISH_ERROR, "the KV of the prompt could not be fetched");
}

/* ---- producer --------------------------------------------------------------------------------------------------------- */

bool transfer_keeps(const struct engine *g, const struct request *q, enum finish_reason finish) {
        return q->keep && g->comm && (finish == FINISH_LENGTH || finish == FINISH_STOP) &&
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

                if (list->kind == COMM_FETCHED)
                        take_fetched(g, list);
                else
                        take_released(g, list);
                comm_event_free(list);
                list = next;
        }
        return any;
}
