/* part_leg.c - what the legs of a part say: events for its state machine (part.c), bytes for the client. */
#include "gateway/core.h"
#include <errno.h>

static struct gateway *gateway_of(const struct part *p) {
        return p->request->g;
}

/* ---- what legs say -------------------------------------------------------------------------------------------------- */

/* Keep an instance's whole answer: the client may get it. */
static void keep_answer(struct part *p, struct leg *l) {
        struct buf before = p->answer;

        p->answer = l->body;
        l->body = before;
        p->answer_fields = l->fields;
        p->answer_status = l->status;
}

static void end_prefill(struct part *p, struct leg *l, enum leg_end end) {
        struct gateway *g = gateway_of(p);
        struct error e = {0};
        int r;

        if (end == LEG_DONE) {
                stats_time(&g->stats, TIME_PREFILL, l->times.ended - l->times.begun);
                r = g->connector->take(buf_slice(&l->body), &p->request->arena, &p->handoff, &e);
                if (r == 0) {
                        p->handoff_at = l->times.ended;
                        p->handoff_used = false;
                        p->handoff_tokens = p->continuations ? p->handoff_tokens : p->handoff.prompt_tokens;
                        p->relay.cached_tokens = p->continuations ? p->relay.cached_tokens : p->handoff.cached_tokens;
                        part_step(p, PART_PREFILLED);
                        return;
                }
                pool_give_back(&p->held);
                p->last_end = LEG_ERROR;
                leg_say(l, "%s", e.text);
                stats_count(&g->stats, COUNT_WITHOUT_PARAMS, 1);
                log_warn(g->log, "request %.*s: prefill on %s: %s", SLICE_ARG(p->request_id), l->name, e.text);
                if (r == -ENODATA && g->options.prefill_on_decode && p->state == PART_PREFILL) {
                        p->bare = true;
                        part_step(p, PART_PREFILLED);
                        return;
                }
                if (p->state == PART_PREFILL || p->state == PART_BOTH)
                        p->answer_status = 0;
                part_step(p, PART_PREFILL_FAILED);
                return;
        }
        /* Of a prefill whose decoder has begun to answer, the client hears nothing. */
        if (p->state == PART_PREFILL || p->state == PART_BOTH) {
                p->answer_status = 0;
                if (l->status >= 400 && end != LEG_BROKEN)
                        keep_answer(p, l);
        }
        part_step(p, end == LEG_REFUSED ? PART_PREFILL_REFUSED : PART_PREFILL_FAILED);
}

enum leg_end part_leg_judge(struct leg *l) {
        struct part *p = l->part;

        /* A prefill answer is judged by what it commits; of a leg for nobody nothing is read. */
        if (l->role == ROLE_PREFILL || (!part_is_decoding(p) && p->state != PART_RELAY))
                return LEG_DONE;
        if (l->event_stream) {
                /* Complete framing without [DONE]: fine when the choice has its end. */
                if (p->relay.done || p->relay.finished)
                        return LEG_DONE;
                leg_say(l, "the stream ended without a finish_reason");
                return LEG_BROKEN;
        }
        if (whole_read(buf_slice(&l->body), &p->whole) == 0)
                return LEG_DONE;
        leg_say(l, l->body.len ? "the answer is not a JSON object" : "the answer is empty");
        return LEG_ERROR;
}

static void end_decode(struct part *p, struct leg *l, enum leg_end end) {
        bool whole = end == LEG_DONE && !l->event_stream && part_is_decoding(p);

        if (whole && whole_is_recomputed(&p->whole))
                p->recomputed = true;
        else if (whole || (l->status >= 400 && end != LEG_BROKEN))
                keep_answer(p, l);
        else
                p->answer_status = 0;
        if (end == LEG_REFUSED)
                part_step(p, PART_DECODE_REFUSED);
        else
                part_step(p, end == LEG_DONE && !p->recomputed ? PART_DECODED : PART_DECODE_FAILED);
}

void part_leg_end(struct leg *l, enum leg_end end) {
        struct part *p = l->part;
        struct request *r = p->request;

        if (p->state == PART_CLEAR) {
                pool_give_back(&p->held);
                part_step(p, PART_CLEARED);
                request_settle(r);
                return;
        }
        if (p->state != PART_END)
                p->last_end = end;
        if (l == &p->prefill) {
                end_prefill(p, l, end);
                /* Committed for nobody, for the part had ended; or fetched already. */
                if (p->state == PART_END || p->state == PART_RELAY)
                        pool_give_back(&p->held);
        } else {
                end_decode(p, l, end);
        }
        request_settle(r);
}

/* ---- the stream ----------------------------------------------------------------------------------------------------- */

/* What the stream says ends its leg. */
static void fail_inside(struct leg *l, enum leg_end end, const char *why) {
        leg_say(l, "%s", why);
        leg_stop(l, end);
}

/* Before the events from `at` on, which are the first of a leg that continues: where, for a client that asked. */
static void note_move(struct part *p, size_t at) {
        struct buf *out = &p->request->pending, events = {0};

        if (!p->moved)
                return;
        p->moved = false;
        if (!p->request->wants_notes)
                return;
        buf_add(&events, slice_sub(buf_slice(out), at, out->len));
        out->len = at;
        buf_printf(out, ": continued on %s after %u tokens\n\n", p->decode.name, p->relay.ids_before);
        buf_add(out, buf_slice(&events));
        out->failed |= events.failed;
        buf_free(&events);
}

/* `before`: how much of r->pending was there before this leg added to it. */
static void pass_on(struct part *p, size_t before) {
        struct request *r = p->request;

        if (r->pending.len == before) {
                if (before == 0)
                        request_flush(r); /* gives the buffer back */
                return;
        }
        if (part_is_decoding(p)) {
                note_move(p, before);
                part_step(p, PART_DECODE_BEGAN);
        }
        if (p->state == PART_RELAY)
                request_send_pending(r);
        else
                r->pending.len = before;
}

void part_pause(struct part *p) {
        if (p->state != PART_RELAY || !p->decode.call)
                return;
        p->client_is_slow = true;
        http_call_pause(p->decode.call);
}

void part_resume(struct part *p) {
        if (!p->client_is_slow)
                return;
        p->client_is_slow = false;
        p->decode.last_byte = gateway_now(gateway_of(p));
        if (p->decode.call)
                http_call_resume(p->decode.call);
}

void part_leg_data(struct leg *l, struct slice data) {
        struct part *p = l->part;
        struct gateway *g = gateway_of(p);
        struct buf *out = &p->request->pending;
        size_t before = out->len;
        struct slice event;
        int r = 0;

        if (p->state == PART_LET_FETCH || p->state == PART_LET_BOTH) {
                part_step(p, PART_DECODE_BEGAN);
                return;
        }
        if ((!part_is_decoding(p) && p->state != PART_RELAY) || l->stopped_as != LEG_DONE)
                return;
        request_take_buffer(p->request);
        while (l->stopped_as == LEG_DONE && !p->relay.done && (r = sse_next(p->sse, &data, &event)) == 1) {
                stats_count(&g->stats, COUNT_EVENTS, 1);
                switch (relay_event(&p->relay, event, out)) {
                case RELAY_MORE:
                case RELAY_DONE:
                        break;
                case RELAY_RECOMPUTED:
                        p->recomputed = true;
                        fail_inside(l, LEG_ABORTED, "the decoder gave the request up for want of memory");
                        break;
                case RELAY_ERROR:
                        leg_say(l, "the engine sent %.*s", SLICE_ARG(slice_trim(buf_slice(&p->relay.error))));
                        leg_stop(l, LEG_ERROR);
                        break;
                case RELAY_NO_MEMORY:
                        fail_inside(l, LEG_ABORTED, "the gateway is out of memory");
                        break;
                }
        }
        if (r < 0)
                fail_inside(l, LEG_ERROR, "an event is too long");
        if (p->relay.done && !p->relay.any_sent)
                fail_inside(l, LEG_ERROR, "the stream ended without an answer");
        pass_on(p, before);
        if (p->relay.done && l->stopped_as == LEG_DONE) {
                part_step(p, PART_DECODED);
                /* The last bytes may have been too much for the client. What is left of the leg is framing: it does not
                 * wait for a client that may never take anything again. */
                part_resume(p);
        }
}
