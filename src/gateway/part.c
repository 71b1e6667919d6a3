/* part.c - the life of one choice: prefill leg, hand-off, decode leg, relay; and what is owed when it breaks or the
 * client leaves. One table says what each event does in each state; an action returns the state that follows. */
#include "base/clock.h"
#include "base/hash.h"
#include "base/rng.h"
#include "gateway/core.h"
#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

/* Pauses before instances that have all failed are tried again: from the larger of this and --retry-delay on, doubling. */
#define PAUSE_MIN (20 * NS_PER_MS)
#define PAUSE_MAX (2 * NS_PER_S)
/* After so many doublings a pause is longer than a probe that was asked for just now takes to be sent and answered. */
#define ROUNDS_FOR_A_PROBE 3
/* For a prefill answer that has begun to arrive when the client leaves. */
#define LET_PREFILL_MS 5000
/* For the one token of a settling decode leg. */
#define SETTLE_MS 30000

typedef enum part_state (*action)(struct part *p);

static enum part_state begin(struct part *p);
static enum part_state start_prefill(struct part *p);
static enum part_state answer_call(struct part *p);
static enum part_state pushed(struct part *p);
static enum part_state retry_push(struct part *p);
static enum part_state leave_both(struct part *p);
static enum part_state cut_both(struct part *p);
static enum part_state let_fetch(struct part *p);
static enum part_state retry_prefill(struct part *p);
static enum part_state refuse_prefill(struct part *p);
static enum part_state leave_prefill(struct part *p);
static enum part_state take_prefill(struct part *p);
static enum part_state start_decode(struct part *p);
static enum part_state begin_relay(struct part *p);
static enum part_state retry_decode(struct part *p);
static enum part_state refuse_decode(struct part *p);
static enum part_state leave_decode(struct part *p);
static enum part_state go_on_elsewhere(struct part *p);
static enum part_state finish(struct part *p);
static enum part_state waited_too_long(struct part *p);
static enum part_state cut_prefill(struct part *p);
static enum part_state cut_decode(struct part *p);
static enum part_state settle(struct part *p);
static enum part_state settle_again(struct part *p);
static enum part_state settled(struct part *p);
static enum part_state strand(struct part *p);
static enum part_state end(struct part *p);

/* An event without an action changes nothing. */
static const action table[PART_STATES][PART_EVENTS] = {
    [PART_IDLE] =
        {
            [PART_TRY] = begin,
            [PART_STOP] = end,
        },
    [PART_NEED_PREFILL] =
        {
            [PART_TRY] = begin,
            [PART_WAITED_TOO_LONG] = waited_too_long,
            [PART_STOP] = end,
        },
    [PART_PREFILL] =
        {
            [PART_PREFILLED] = take_prefill,
            [PART_PREFILL_FAILED] = retry_prefill,
            [PART_PREFILL_REFUSED] = refuse_prefill,
            [PART_STOP] = leave_prefill,
        },
    [PART_NEED_DECODE] =
        {
            [PART_TRY] = start_decode,
            [PART_WAITED_TOO_LONG] = waited_too_long,
            [PART_STOP] = settle,
        },
    [PART_RESERVE] =
        {
            [PART_ASKED] = answer_call,
            [PART_DECODE_BEGAN] = begin_relay, /* it needed no prefill */
            [PART_DECODED] = finish,
            [PART_DECODE_FAILED] = retry_decode,
            [PART_DECODE_REFUSED] = refuse_decode,
            [PART_STOP] = cut_decode,
        },
    [PART_NEED_PUSH] =
        {
            [PART_TRY] = start_prefill,
            [PART_WAITED_TOO_LONG] = waited_too_long,
            [PART_DECODE_BEGAN] = begin_relay,
            [PART_DECODED] = finish,
            [PART_DECODE_FAILED] = retry_decode,
            [PART_DECODE_REFUSED] = refuse_decode,
            [PART_STOP] = cut_decode,
        },
    [PART_BOTH] =
        {
            [PART_PREFILLED] = pushed,
            [PART_PREFILL_FAILED] = retry_push,
            [PART_PREFILL_REFUSED] = refuse_prefill,
            [PART_DECODE_BEGAN] = begin_relay,
            [PART_DECODED] = finish,
            [PART_DECODE_FAILED] = retry_decode,
            [PART_DECODE_REFUSED] = refuse_decode,
            [PART_STOP] = leave_both,
        },
    [PART_CLEAR] =
        {
            [PART_CLEARED] = begin,
            [PART_STOP] = end,
        },
    [PART_DECODE] =
        {
            [PART_DECODE_BEGAN] = begin_relay,
            [PART_DECODED] = finish,
            [PART_DECODE_FAILED] = retry_decode,
            [PART_DECODE_REFUSED] = refuse_decode,
            [PART_STOP] = leave_decode,
        },
    [PART_RELAY] =
        {
            [PART_DECODED] = finish,
            [PART_DECODE_FAILED] = go_on_elsewhere,
            [PART_DECODE_REFUSED] = go_on_elsewhere,
            [PART_STOP] = cut_decode,
        },
    [PART_LET_PREFILL] =
        {
            [PART_PREFILLED] = settle,
            [PART_PREFILL_FAILED] = end,
            [PART_PREFILL_REFUSED] = end,
            [PART_GRACE_OVER] = cut_prefill,
        },
    [PART_LET_BOTH] =
        {
            [PART_PREFILLED] = let_fetch,
            [PART_PREFILL_FAILED] = cut_both,
            [PART_PREFILL_REFUSED] = cut_both,
            [PART_DECODE_BEGAN] = cut_both,
            [PART_DECODED] = cut_both,
            [PART_DECODE_FAILED] = cut_both,
            [PART_DECODE_REFUSED] = cut_both,
            [PART_GRACE_OVER] = cut_both,
        },
    [PART_LET_FETCH] =
        {
            [PART_DECODE_BEGAN] = cut_decode,
            [PART_DECODED] = end,
            [PART_DECODE_FAILED] = settle_again,
            [PART_DECODE_REFUSED] = settle_again,
            [PART_GRACE_OVER] = cut_decode,
        },
    [PART_NEED_SETTLE] =
        {
            [PART_TRY] = settle,
            [PART_WAITED_TOO_LONG] = strand,
        },
    [PART_SETTLE] =
        {
            [PART_DECODED] = settled,
            [PART_DECODE_FAILED] = settle_again,
            [PART_DECODE_REFUSED] = strand,
        },
};

const char *part_state_name(enum part_state s) {
        static const char *const names[PART_STATES] = {
            [PART_IDLE] = "idle",
            [PART_NEED_PREFILL] = "need_prefill",
            [PART_PREFILL] = "prefill",
            [PART_NEED_DECODE] = "need_decode",
            [PART_RESERVE] = "reserve",
            [PART_NEED_PUSH] = "need_push",
            [PART_BOTH] = "both",
            [PART_CLEAR] = "clear",
            [PART_DECODE] = "decode",
            [PART_RELAY] = "relay",
            [PART_LET_PREFILL] = "let_prefill",
            [PART_LET_BOTH] = "let_both",
            [PART_LET_FETCH] = "let_fetch",
            [PART_NEED_SETTLE] = "need_settle",
            [PART_SETTLE] = "settle",
            [PART_END] = "end",
        };

        return names[s];
}

static struct gateway *gateway_of(const struct part *p) {
        return p->request->g;
}

static uint64_t now_of(const struct part *p) {
        return gateway_now(gateway_of(p));
}

static uint64_t from_seconds(double s) {
        return (uint64_t)(s * (double)NS_PER_S);
}

static unsigned ms_from_seconds(double s) {
        return s <= 0 ? 0 : s < 0.001 ? 1 : (unsigned)(s * 1000);
}

/* ---- waiting -------------------------------------------------------------------------------------------------------- */

static bool is_need(enum part_state s) {
        return s == PART_NEED_PREFILL || s == PART_NEED_PUSH || s == PART_NEED_DECODE || s == PART_NEED_SETTLE;
}

static bool is_let(enum part_state s) {
        return s == PART_LET_PREFILL || s == PART_LET_BOTH || s == PART_LET_FETCH;
}

/* The decoder may ask for its prefill, or has. */
static bool may_ask(enum part_state s) {
        return s == PART_RESERVE || s == PART_NEED_PUSH || s == PART_BOTH;
}

static enum role waits_for(enum part_state s) {
        return s == PART_NEED_PREFILL || s == PART_NEED_PUSH || s == PART_LET_PREFILL ? ROLE_PREFILL : ROLE_DECODE;
}

/* Into the list of its state, behind those that wait already; or out of all. */
static void set_waiting(struct part *p, bool waits) {
        struct gateway *g = gateway_of(p);

        if (p->is_waiting) {
                list_remove(&p->waiting);
                g->waiting_count--;
        }
        p->is_waiting = waits;
        if (waits) {
                list_push_back(&g->waiting[waits_for(p->state)], &p->waiting);
                g->waiting_count++;
        }
}

uint64_t part_due(const struct part *p) {
        return is_let(p->state) || p->due < p->deadline ? p->due : p->deadline;
}

static void enter(struct part *p, enum part_state next) {
        enum part_state before = p->state;
        uint64_t now = now_of(p);

        if (is_need(before) && !is_need(next))
                p->waited += now - p->wait_begun;
        if (!is_need(before) && is_need(next))
                p->wait_begun = now;
        p->state = next;
        if (next != before || !p->is_waiting)
                set_waiting(p, is_need(next) || is_let(next));
        if (p->is_waiting)
                gateway_wake_at(gateway_of(p), part_due(p));
        if (!may_ask(next))
                list_remove(&p->asking);
        if (next == PART_END && before != PART_END) {
                pool_give_back(&p->held);
                request_part_over(p->request, p);
        }
}

void part_step(struct part *p, enum part_event event) {
        action a = table[p->state][event];

        if (a)
                enter(p, a(p));
}

void part_tick(struct part *p, uint64_t now) {
        if (is_let(p->state)) {
                if (now >= p->due)
                        part_step(p, PART_GRACE_OVER);
        } else if (now >= p->deadline) {
                part_step(p, PART_WAITED_TOO_LONG);
        } else if (now >= p->due) {
                part_step(p, PART_TRY);
        }
}

/* ---- choosing an instance ------------------------------------------------------------------------------------------- */

static void avoid(struct part *p, const struct leg *l) {
        if (p->avoid_count < PART_AVOID_MAX)
                p->avoid[p->avoid_count++] = l->instance_id;
}

/* How long an instance is waited for counts from the last leg that reached one. */
static void begin_waiting(struct part *p) {
        if (p->deadline == 0)
                p->deadline = now_of(p) + from_seconds(gateway_of(p)->options.queue_timeout);
}

/* A leg has reached an instance: waiting starts anew. */
static void reached(struct part *p) {
        p->deadline = 0;
        p->rounds = 0;
}

/* NULL: none now; the part waits for p->due. */
static struct instance *pick(struct part *p, enum role role) {
        struct gateway *g = gateway_of(p);
        struct policy_facts facts = {.avoid = p->avoid,
            .avoid_count = p->avoid_count,
            .tokens = p->prompt_tokens,
            .session = p->request->session};
        struct instance *i;
        uint64_t pause;

        begin_waiting(p);
        p->due = UINT64_MAX; /* until the pool changes */
        if (g->freed[role])  /* there is room, for those that have waited for it */
                return NULL;
        i = pool_pick(g->pool, role, &facts, &p->prompt);
        if (i)
                return i;
        if (p->avoid_count > 0) {
                /* Each has failed this request: once more from the start, after a pause. */
                pause = from_seconds(g->options.retry_delay);
                if (pause < PAUSE_MIN)
                        pause = PAUSE_MIN;
                for (unsigned k = 0; k < p->rounds && pause < PAUSE_MAX; k++)
                        pause *= 2;
                p->rounds++;
                p->avoid_count = 0;
                p->due = now_of(p) + pause;
        }
        return NULL;
}

/* ---- starting legs -------------------------------------------------------------------------------------------------- */

static enum connector_order order_of(const struct part *p) {
        return gateway_of(p)->connector->order;
}

/* What of the prompt the instance has to compute; from now on it has the prompt in its cache. */
static uint64_t tokens_to_compute(struct part *p, struct instance *i) {
        uint64_t warm = pool_note_prompt(i, &p->prompt);

        return warm < p->prompt_tokens ? p->prompt_tokens - warm : 1;
}

/* A fresh id for each attempt, the same on both legs of it. Who knows the one that engines find each other by could take
 * the place of one: it has 128 random bits. */
static int next_request_id(struct part *p) {
        struct request *r = p->request;
        struct slice secret = SLICE_NONE;
        const char *text;

        if (order_of(p) == ORDER_DECODE_FIRST || order_of(p) == ORDER_TOGETHER) {
                secret = request_random_id(r);
                text = secret.ptr ? arena_printf(&r->arena, "%.*s-%.*s", SLICE_ARG(r->id), SLICE_ARG(secret)) : NULL;
        } else if (r->part_count > 1)
                text = p->serial ? arena_printf(&r->arena, "%.*s-%u-%u", SLICE_ARG(r->id), p->index, p->serial)
                                 : arena_printf(&r->arena, "%.*s-%u", SLICE_ARG(r->id), p->index);
        else
                text = p->serial ? arena_printf(&r->arena, "%.*s-r%u", SLICE_ARG(r->id), p->serial) : r->id.ptr;
        p->serial++;
        if (!text)
                return -ENOMEM;
        p->request_id = text == r->id.ptr ? r->id : slice_str(text);
        return 0;
}

static int make_fields(struct part *p, struct leg *l, const struct instance *i, struct http_fields *ret_fields) {
        const struct request *r = p->request;
        struct http_field *items = arena_array(&p->request->arena, r->fields.count + 3, sizeof(*items));
        size_t n = 0;

        if (!items)
                return -ENOMEM;
        for (size_t k = 0; k < r->fields.count; k++)
                if (i->dp_rank < 0 || !slice_is_icase(r->fields.items[k].name, "x-data-parallel-rank"))
                        items[n++] = r->fields.items[k];
        items[n++] = (struct http_field){SLICE_LIT("Content-Type"), SLICE_LIT("application/json")};
        items[n++] = (struct http_field){SLICE_LIT("X-Request-Id"), p->request_id};
        if (i->dp_rank >= 0) {
                const char *rank = arena_printf(&p->request->arena, "%d", i->dp_rank);

                if (!rank)
                        return -ENOMEM;
                items[n++] = (struct http_field){SLICE_LIT("X-data-parallel-rank"), slice_str(rank)};
        }
        *ret_fields = (struct http_fields){items, n};
        return 0;
}

static enum part_state cut_both(struct part *p) {
        leg_stop(&p->prefill, LEG_ABORTED);
        leg_stop(&p->decode, LEG_ABORTED);
        return PART_END;
}

/* The client gets an error; as request_part_failed(). */
static enum part_state fail(struct part *p, int status, const char *type, const char *message) {
        request_part_failed(p->request, p, status, type, message);
        return cut_both(p);
}

static enum part_state out_of_memory(struct part *p) {
        return fail(p, 500, "InternalServerError", "the gateway is out of memory");
}

static void drop_handoff(struct part *p) {
        p->handoff = (struct handoff){0};
        p->handoff_used = false;
        pool_give_back(&p->held);
}

/* Start the prefill leg on an instance. 0 or -ENOMEM. */
static int send_prefill(struct part *p, struct instance *i) {
        struct gateway *g = gateway_of(p);
        struct leg *l = &p->prefill;
        struct leg_request request = {.path = p->path, .only_once = order_of(p) != ORDER_PREFILL_FIRST};
        unsigned timeout = ms_from_seconds(g->options.prefill_timeout);
        int r;

        drop_handoff(p);
        p->source.max_model_len = i->max_model_len;
        request.tokens = tokens_to_compute(p, i);
        request.deadlines = (struct http_deadlines){.connect_ms = ms_from_seconds(g->options.connect_timeout),
            .head_ms = timeout,
            .idle_ms = timeout,
            .total_ms = timeout};
        r = make_fields(p, l, i, &request.fields);
        if (r == 0)
                r = connector_prefill_body(g->connector, &p->source, &p->request->arena, &request.body);
        if (r == 0)
                r = leg_start(l, i, &request);
        return r;
}

/* Of a push: under the id of the decode leg. */
static enum part_state start_prefill(struct part *p) {
        bool pushes = order_of(p) == ORDER_DECODE_FIRST;
        struct instance *i = pick(p, ROLE_PREFILL);

        if (!i)
                return pushes ? PART_NEED_PUSH : PART_NEED_PREFILL;
        if ((!pushes && next_request_id(p) < 0) || send_prefill(p, i) < 0)
                return out_of_memory(p);
        return pushes ? PART_BOTH : PART_PREFILL;
}

static bool params_are_fresh(const struct part *p) {
        return now_of(p) - p->handoff_at <= from_seconds(gateway_of(p)->options.params_max_age);
}

static struct http_deadlines decode_deadlines(const struct part *p, enum decode_purpose purpose) {
        const struct gateway_options *o = &gateway_of(p)->options;
        struct http_deadlines d = {.connect_ms = ms_from_seconds(o->connect_timeout)};

        if (purpose == DECODE_SETTLE)
                d.total_ms = SETTLE_MS;
        /* The head of a stream comes at once, its first event when the engine has got so far; gaps between events are
         * watched by the gateway's timer (gateway.c). A whole answer has one long silence. */
        d.head_ms =
            p->request->facts.stream ? ms_from_seconds(o->first_byte_timeout) : ms_from_seconds(o->request_timeout);
        d.idle_ms = d.head_ms;
        return d;
}

/* Start the decode leg on an instance. 0 or -ENOMEM. */
static int send_decode(struct part *p, struct instance *i, enum decode_purpose purpose) {
        struct gateway *g = gateway_of(p);
        struct leg *l = &p->decode;
        struct leg_request request = {
            .path = p->path,
            .tokens = tokens_to_compute(p, i) + (purpose == DECODE_ANSWER ? p->request->facts.output_tokens : 1),
            .deadlines = decode_deadlines(p, purpose),
            .only_once = p->handoff.params.ptr || order_of(p) == ORDER_DECODE_FIRST || order_of(p) == ORDER_TOGETHER,
        };
        int r = 0;

        p->recomputed = false;
        p->source.max_model_len = i->max_model_len;
        if (!p->request_id.ptr || order_of(p) == ORDER_ONE || order_of(p) == ORDER_DECODE_FIRST)
                r = next_request_id(p);
        if (r == 0)
                r = make_fields(p, l, i, &request.fields);
        if (r == 0)
                r = connector_decode_body(g->connector, &p->source, &p->handoff, purpose,
                    purpose == DECODE_ANSWER && p->relay.track, &p->request->arena, &request.body);
        if (r == 0)
                r = leg_start(l, i, &request);
        return r;
}

static bool needs_prefill(const struct part *p) {
        return order_of(p) == ORDER_PREFILL_FIRST && !p->handoff.params.ptr && !p->bare;
}

static struct list *asking_bucket(struct gateway *g, struct slice request_id) {
        return &g->asking[hash64(request_id, 0) % ASKING_BUCKETS];
}

static bool renew_splitter(struct part *p) {
        if (p->sse)
                sse_free(p->sse);
        p->sse = sse_new();
        return p->sse != NULL;
}

/* Where the legs meet: the prefiller's bootstrap server. */
static int arrange_meeting(struct part *p, const struct instance *i) {
        const struct http_endpoint *at = i->endpoint;
        struct meeting *m = &p->source.meeting;
        const char *host = arena_printf(
            &p->request->arena, slice_find(at->host, ':', 0) < at->host.len ? "[%.*s]" : "%.*s", SLICE_ARG(at->host));

        if (!host || next_request_id(p) < 0)
                return -ENOMEM;
        m->host = slice_str(host);
        m->port = gateway_bootstrap_port(i);
        m->dp_rank = i->dp_rank;
        m->request_id = p->request_id;
        m->engine_id = arena_copy(&p->request->arena, slice_str(i->engine_id ? i->engine_id : ""));
        rng_secure(&m->room, sizeof(m->room));
        m->room >>= 11; /* 53 bits */
        return m->engine_id.ptr ? 0 : -ENOMEM;
}

static enum part_state start_both(struct part *p) {
        struct instance *prefiller = pick(p, ROLE_PREFILL), *decoder;

        if (!prefiller)
                return PART_NEED_PREFILL;
        decoder = pick(p, ROLE_DECODE);
        if (!decoder)
                return PART_NEED_DECODE;
        if (arrange_meeting(p, prefiller) < 0 || !renew_splitter(p) || send_prefill(p, prefiller) < 0 ||
            send_decode(p, decoder, DECODE_ANSWER) < 0)
                return out_of_memory(p);
        return PART_BOTH;
}

static enum part_state start_decode(struct part *p) {
        struct gateway *g = gateway_of(p);
        struct instance *i;

        if (order_of(p) == ORDER_TOGETHER)
                return start_both(p);
        if (p->handoff.params.ptr && !params_are_fresh(p)) {
                stats_count(&g->stats, COUNT_PARAMS_EXPIRED, 1);
                stats_count(&g->stats, COUNT_STRANDED, 1);
                drop_handoff(p);
        }
        if (needs_prefill(p))
                return start_prefill(p);
        i = pick(p, ROLE_DECODE);
        if (!i)
                return PART_NEED_DECODE;
        if (!renew_splitter(p) || send_decode(p, i, DECODE_ANSWER) < 0)
                return out_of_memory(p);
        if (order_of(p) != ORDER_DECODE_FIRST)
                return PART_DECODE;
        list_remove(&p->asking); /* of the attempt before */
        list_push_back(asking_bucket(g, p->request_id), &p->asking);
        return PART_RESERVE;
}

/* The next attempt. What is left of the one before goes first: a leg is one call at a time. */
static enum part_state begin(struct part *p) {
        if (!leg_in_flight(&p->prefill) && !leg_in_flight(&p->decode))
                return start_decode(p);
        cut_both(p);
        return PART_CLEAR;
}

/* ---- a leg that failed --------------------------------------------------------------------------------------------- */

/* The status and words for a leg that failed without an answer of its own. */
static enum part_state give_up(struct part *p, const struct leg *l) {
        char message[512];
        int status = 502;

        if (p->last_end == LEG_TIMEOUT)
                status = 504;
        else if (p->last_end == LEG_UNSENT)
                status = 503;
        snprintf(message, sizeof(message), "the %s leg failed on %s: %s", pool_role_name(l->role),
            l->name ? l->name : "?", l->why[0] ? l->why : leg_end_name(p->last_end));
        return fail(p, status, status == 504 ? "GatewayTimeout" : "BadGateway", message);
}

/* Count a failed leg. False: no more attempts. An instance that could not be reached has seen nothing: others are tried
 * for as long as an instance is waited for, connecting included. */
static bool may_retry(struct part *p, const struct leg *l) {
        struct gateway *g = gateway_of(p);

        avoid(p, l);
        if (p->last_end == LEG_UNSENT) {
                if (now_of(p) >= p->deadline)
                        return false;
        } else {
                reached(p);
                if (++p->tries[l->role] >= (unsigned)g->options.max_retries)
                        return false;
        }
        p->request->retries++;
        stats_count(&g->stats, COUNT_RETRIES, 1);
        return true;
}

/* ---- push ----------------------------------------------------------------------------------------------------------- */

static struct part *find_asking(struct gateway *g, struct slice request_id) {
        list_for_each (at, asking_bucket(g, request_id)) {
                struct part *p = list_item(at, struct part, asking);

                if (slice_eq(p->request_id, request_id))
                        return p;
        }
        return NULL;
}

int part_ask(struct gateway *g, struct slice request_id, struct slice asked) {
        struct part *p = find_asking(g, request_id);

        if (!p)
                return -ENOENT;
        if (p->state != PART_RESERVE)
                return 0;
        p->source.meeting.asked = arena_copy(&p->request->arena, asked);
        if (!p->source.meeting.asked.ptr)
                return -ENOMEM;
        part_step(p, PART_ASKED);
        return 0;
}

static enum part_state answer_call(struct part *p) {
        reached(p);
        return start_prefill(p);
}

/* The prefiller has written everything: what is left is the decoder's work. */
static enum part_state pushed(struct part *p) {
        reached(p);
        p->tries[ROLE_PREFILL] = 0;
        p->answer_status = 0;
        return PART_DECODE;
}

/* Of a push, one that could not be reached or was too busy has written nothing: another may, into the same blocks. Else the
 * decoder waits for what will never come, and both begin anew. */
static enum part_state retry_push(struct part *p) {
        bool untouched = p->last_end == LEG_UNSENT || p->last_end == LEG_OVERLOADED;

        if (!may_retry(p, &p->prefill))
                return give_up(p, &p->prefill);
        if (untouched && order_of(p) == ORDER_DECODE_FIRST)
                return start_prefill(p);
        relay_restart(&p->relay, p->relay.reframe); /* events without text may be held */
        return begin(p);
}

void part_tick_reserve(struct part *p, uint64_t now) {
        double limit = gateway_of(p)->options.first_byte_timeout;

        if (p->state != PART_RESERVE || limit <= 0 || now - p->decode.times.begun < from_seconds(limit))
                return;
        leg_say(&p->decode, "the decoder did not ask for the prompt's prefill within %g s", limit);
        leg_stop(&p->decode, LEG_TIMEOUT);
}

/* The client has left with both legs under way. A short prompt's are let come to where nobody holds anything for the
 * other; a long one's are cut. */
static enum part_state leave_both(struct part *p) {
        p->due = p->prefill.times.begun + from_seconds(gateway_of(p)->options.abandon_grace);
        return p->due <= now_of(p) ? cut_both(p) : PART_LET_BOTH;
}

static enum part_state let_fetch(struct part *p) {
        p->due = now_of(p) + from_seconds(gateway_of(p)->options.abandon_grace);
        return PART_LET_FETCH;
}

/* ---- prefill leg ---------------------------------------------------------------------------------------------------- */

static enum part_state take_prefill(struct part *p) {
        reached(p);
        p->tries[ROLE_PREFILL] = 0;
        p->answer_status = 0;
        return start_decode(p);
}

static enum part_state retry_prefill(struct part *p) {
        drop_handoff(p);
        if (!may_retry(p, &p->prefill))
                return give_up(p, &p->prefill);
        return start_prefill(p);
}

static enum part_state refuse_prefill(struct part *p) {
        drop_handoff(p);
        return fail(p, p->answer_status, NULL, NULL);
}

/* The client has left. The prefiller may have committed its KV just now, its answer may be on the way: a leg is given
 * the time that a short prompt takes, and then settled; a long one is cut. */
static enum part_state leave_prefill(struct part *p) {
        const struct leg *l = &p->prefill;
        uint64_t now = now_of(p), grace = l->times.begun + from_seconds(gateway_of(p)->options.abandon_grace);

        p->due = l->times.head ? now + LET_PREFILL_MS * NS_PER_MS : grace;
        if (p->due <= now)
                return cut_prefill(p);
        return PART_LET_PREFILL;
}

static enum part_state cut_prefill(struct part *p) {
        leg_stop(&p->prefill, LEG_ABORTED);
        return PART_END;
}

/* ---- decode leg ----------------------------------------------------------------------------------------------------- */

/* The decoder has fetched the KV: the prefiller has let go of it. */
static void fetched(struct part *p) {
        p->handoff_used = true;
        pool_give_back(&p->held);
}

static enum part_state begin_relay(struct part *p) {
        if (p->handoff.params.ptr)
                stats_time(&gateway_of(p)->stats, TIME_HANDOFF, p->decode.times.first - p->decode.times.begun);
        fetched(p);
        reached(p);
        p->avoid_count = 0;
        p->tries[ROLE_DECODE] = 0;
        if (!request_begin_stream(p->request, p))
                return cut_decode(p);
        return PART_RELAY;
}

/* Of a prefiller that was called together with a decoder which has not taken its leg in: where they were to meet nobody
 * else comes. */
static void leave_behind(struct part *p) {
        if (order_of(p) == ORDER_TOGETHER && (p->state == PART_DECODE || p->state == PART_LET_FETCH))
                strand(p);
}

/* KV that will not be used for the answer: a part of its own frees it. */
static void settle_aside(struct part *p) {
        struct request *r = p->request;
        struct part *s;

        leave_behind(p);
        if (!p->handoff.params.ptr)
                return;
        s = params_are_fresh(p) ? ARENA_NEW(&r->arena, struct part) : NULL;
        if (!s) {
                strand(p);
                return;
        }
        part_init(s, r, p->index);
        s->settler = true;
        s->source = p->source;
        s->path = p->path;
        s->prompt_tokens = p->prompt_tokens;
        s->handoff = p->handoff;
        s->handoff_at = p->handoff_at;
        s->request_id = p->request_id;
        s->held = p->held;
        s->state = PART_NEED_SETTLE;
        s->wait_begun = now_of(p);
        memcpy(s->avoid, p->avoid, sizeof(p->avoid));
        s->avoid_count = p->avoid_count;
        p->held = (struct load){0};
        p->handoff = (struct handoff){0};
        list_push_back(&r->settlers, &s->link);
        part_step(s, PART_TRY);
}

/* A decoder that could not meet its prefiller: it may have been sent to an engine that is another one by now. Which of the
 * two is at fault nobody can tell, so that the next attempt is without either, and with what a fresh probe says. */
static void doubt_prefiller(struct part *p) {
        avoid(p, &p->prefill);
        pool_look_again(gateway_of(p)->pool, ROLE_PREFILL, p->prefill.instance_id, now_of(p));
        p->rounds = ROUNDS_FOR_A_PROBE;
}

static enum part_state retry_decode(struct part *p) {
        bool unsent = p->last_end == LEG_UNSENT, overloaded = p->last_end == LEG_OVERLOADED, recomputed = p->recomputed;

        p->recomputed = false;
        if (recomputed) {
                stats_count(&gateway_of(p)->stats, COUNT_RECOMPUTED, 1);
                if (++p->continuations > (unsigned)gateway_of(p)->options.max_continuations)
                        return give_up(p, &p->decode);
                reached(p);
                avoid(p, &p->decode);
        } else if (!may_retry(p, &p->decode)) {
                if (unsent || overloaded)
                        settle_aside(p);
                return give_up(p, &p->decode);
        }
        /* Params may be used once. A decoder that could not be reached has not seen them, one that was too busy has not
         * taken the request in: for the next one they are as good. */
        if (!unsent && !overloaded)
                drop_handoff(p);
        else
                leave_behind(p);
        if (!unsent && !overloaded && !recomputed && order_of(p) == ORDER_TOGETHER)
                doubt_prefiller(p);
        relay_restart(&p->relay, p->relay.reframe); /* events without text may be held */
        return begin(p);
}

static enum part_state refuse_decode(struct part *p) {
        settle_aside(p);
        return fail(p, p->answer_status, NULL, NULL);
}

/* The client has left while the decoder may not have taken the request in: a leg that is cut now would leave the KV to
 * the prefiller's lease, so it has until its first byte, or a moment from its start. */
static enum part_state leave_decode(struct part *p) {
        uint64_t now = now_of(p);

        if (!p->handoff.params.ptr && order_of(p) != ORDER_TOGETHER)
                return cut_decode(p);
        p->due = p->decode.times.begun + from_seconds(gateway_of(p)->options.abandon_grace);
        if (p->due <= now)
                return cut_decode(p);
        return PART_LET_FETCH;
}

static enum part_state cut_decode(struct part *p) {
        leg_stop(&p->decode, LEG_ABORTED);
        return PART_END;
}

static enum part_state finish(struct part *p) {
        fetched(p);
        request_part_done(p->request, p);
        return PART_END;
}

/* ---- a stream that was cut ------------------------------------------------------------------------------------------ */

static enum part_state end_cut(struct part *p, const char *why) {
        char message[768];

        snprintf(message, sizeof(message), "the stream from %s was cut (%s) and could not be continued: %s",
            p->decode.name ? p->decode.name : "?", p->decode.why[0] ? p->decode.why : leg_end_name(p->last_end), why);
        return fail(p, 502, "BadGateway", message);
}

/* Everything of the choice is out: what is missing is the closing. */
static enum part_state close_up(struct part *p, bool at_length) {
        struct request *r = p->request;

        if (at_length)
                relay_end_at_length(&p->relay, &r->pending);
        else
                relay_end_usage(&p->relay, p->handoff_tokens, &r->pending);
        request_send_pending(r);
        return finish(p);
}

/* Go on with the exact tokens on another pair of instances. */
static enum part_state go_on_elsewhere(struct part *p) {
        struct request *r = p->request;
        struct gateway *g = r->g;
        const char *obstacle = relay_obstacle(&p->relay);
        bool from_start = p->relay.ids_sent == 0;
        int64_t limit;

        if (p->recomputed)
                stats_count(&g->stats, COUNT_RECOMPUTED, 1);
        avoid(p, &p->decode);
        if (p->relay.finished)
                return close_up(p, false);
        if (obstacle)
                return end_cut(p, obstacle);
        limit = continuation_limit(&r->facts, &p->relay, p->source.max_model_len);
        if (!from_start && limit < 0)
                return end_cut(p, "the model's length is not known");
        if (!from_start && limit <= p->relay.ids_sent)
                return close_up(p, true);
        if (++p->continuations > (unsigned)g->options.max_continuations)
                return end_cut(p, "it was continued too often");
        if (!from_start) {
                if (!p->source.edits)
                        p->source.edits = ARENA_NEW(&r->arena, struct edits);
                if (!p->source.edits ||
                    continuation_edits(&r->facts, &p->relay, limit - p->relay.ids_sent, &r->arena, p->source.edits) < 0)
                        return out_of_memory(p);
                p->path = "/v1/completions";
        }
        relay_restart(&p->relay, !from_start && r->facts.api == API_CHAT);
        stats_count(&g->stats, COUNT_CONTINUED, 1);
        r->continued++;
        p->moved = true;
        drop_handoff(p);
        p->bare = false;
        reached(p);
        return begin(p);
}

/* ---- settling ------------------------------------------------------------------------------------------------------- */

static enum part_state settle(struct part *p) {
        struct instance *i;

        if (!p->handoff.params.ptr || p->handoff_used)
                return PART_END;
        if (!params_are_fresh(p))
                return strand(p);
        i = pick(p, ROLE_DECODE);
        if (!i)
                return PART_NEED_SETTLE;
        return send_decode(p, i, DECODE_SETTLE) == 0 ? PART_SETTLE : strand(p);
}

static enum part_state settle_again(struct part *p) {
        avoid(p, &p->decode);
        /* Only one that has not seen the params leaves them unused. */
        if (p->last_end != LEG_UNSENT && p->last_end != LEG_OVERLOADED && p->state == PART_SETTLE)
                return strand(p);
        if (p->last_end != LEG_UNSENT && p->last_end != LEG_OVERLOADED && p->last_end != LEG_REFUSED)
                return PART_END;
        leave_behind(p);
        return settle(p);
}

static enum part_state settled(struct part *p) {
        fetched(p);
        stats_count(&gateway_of(p)->stats, COUNT_SETTLED, 1);
        return PART_END;
}

static enum part_state strand(struct part *p) {
        stats_count(&gateway_of(p)->stats, COUNT_STRANDED, 1);
        log_warn(gateway_of(p)->log, "request %.*s: KV on %s is left to its lease", SLICE_ARG(p->request_id),
            p->prefill.name ? p->prefill.name : "a prefiller");
        return PART_END;
}

static enum part_state end(struct part *p) {
        return PART_END;
}

static enum part_state waited_too_long(struct part *p) {
        struct gateway *g = gateway_of(p);
        enum role role = waits_for(p->state);
        char message[256];

        stats_count(&g->stats, COUNT_QUEUE_TIMEOUTS, 1);
        settle_aside(p);
        if (p->answer_status == 429 || p->answer_status == 503)
                return fail(p, p->answer_status, NULL, NULL);
        snprintf(message, sizeof(message),
            "no %s instance could take the request within %g s (%zu of %zu can be chosen)", pool_role_name(role),
            g->options.queue_timeout, pool_routable(g->pool, role), pool_count(g->pool, role));
        return fail(p, 503, "ServiceUnavailable", message);
}

/* ---- life ----------------------------------------------------------------------------------------------------------- */

void part_init(struct part *p, struct request *r, uint32_t index) {
        *p = (struct part){
            .request = r, .index = index, .completion_tokens = -1, .prompt_counted = -1, .handoff_tokens = -1};
        list_init(&p->waiting);
        list_init(&p->asking);
        list_init(&p->link);
        leg_init(&p->prefill, p, ROLE_PREFILL);
        leg_init(&p->decode, p, ROLE_DECODE);
        relay_init(&p->relay, &r->facts);
        p->relay.index = index;
}

void part_free(struct part *p) {
        assert(part_is_over(p) && !p->is_waiting);
        pool_give_back(&p->held);
        relay_free(&p->relay);
        sse_free(p->sse);
        leg_free(&p->prefill);
        leg_free(&p->decode);
        buf_free(&p->answer);
}
