/* admission.c - who may begin: at most --max-concurrent-requests at once, and with --instance-cap no more than there is room
 * for where requests begin; the others wait in the queue, or are sent away.
 *
 * A request is counted from its admission until everything of it has ended, legs for nobody included. */
#include "base/clock.h"
#include "base/hash.h"
#include "gateway/core.h"
#include <stdio.h>

/* What a client is told at most to wait before it tries again. */
#define RETRY_AFTER_MAX 60
/* Priorities beyond these are these: the order of what waits needs no more. */
#define PRIORITY_MAX 1000

static uint64_t timeout_ns(const struct gateway *g) {
        return (uint64_t)(g->options.queue_timeout * (double)NS_PER_S);
}

static bool is_full(const struct gateway *g) {
        return g->options.max_concurrent > 0 && g->admission.admitted >= (uint64_t)g->options.max_concurrent;
}

/* Could a request begin at once? Where nobody can be chosen at all, it waits as a part that needs an instance (part.c), so
 * that it is told so when none comes. */
static bool has_room(struct gateway *g) {
        enum role first = gateway_first_role(g);

        if (is_full(g))
                return false;
        if (g->options.instance_cap == 0 || pool_routable(g->pool, first) == 0)
                return true;
        return !gateway_first_in_need(g, first) && pool_has_room(g->pool, first);
}

static void admit(struct request *r) {
        r->admitted = true;
        r->g->admission.admitted++;
        request_start(r);
}

/* Out of the queue, whether it is in or not. */
static void leave_queue(struct request *r) {
        struct gateway *g = r->g;

        if (r->queued_at == 0)
                return;
        queue_remove(&g->admission.queue, &r->place);
        list_remove(&r->arrival);
        g->waiting_count--;
        r->queued = gateway_now(g) - r->queued_at;
        r->queued_at = 0;
}

/* As long as the last one that was let in had waited: what is in front of a newcomer now. */
static unsigned retry_after(const struct gateway *g) {
        uint64_t s = (g->admission.last_wait + NS_PER_S - 1) / NS_PER_S;

        return s < 1 ? 1 : s > RETRY_AFTER_MAX ? RETRY_AFTER_MAX : (unsigned)s;
}

static void send_away(struct request *r) {
        struct openai_error e;

        stats_count(&r->g->stats, COUNT_SENT_AWAY, 1);
        openai_fail(&e, 429, "RateLimitError", NULL, "the gateway is busy: %zu requests wait already",
            r->g->admission.queue.count);
        request_refuse(r, &e, retry_after(r->g));
}

static void give_up_waiting(struct request *r) {
        struct gateway *g = r->g;
        enum role first = gateway_first_role(g);
        struct openai_error e;

        stats_count(&g->stats, COUNT_QUEUE_TIMEOUTS, 1);
        if (is_full(g))
                openai_fail(&e, 408, "RequestTimeout", NULL, "the gateway was busy for %g s (%llu requests at once)",
                    g->options.queue_timeout, (unsigned long long)g->admission.admitted);
        else
                openai_fail(&e, 503, "ServiceUnavailable", NULL,
                    "no %s instance could take the request within %g s (%zu of %zu can be chosen)",
                    pool_role_name(first), g->options.queue_timeout, pool_routable(g->pool, first),
                    pool_count(g->pool, first));
        request_refuse(r, &e, retry_after(g));
}

static struct queue_who who_is(const struct request *r) {
        const struct facts *f = &r->facts;

        return (struct queue_who){.priority = r->priority,
            .tenant = r->tenant,
            .work = f->prompt_tokens + f->output_tokens * f->prompt_count * f->n};
}

static void join_queue(struct request *r) {
        struct gateway *g = r->g;
        struct queue_who who = who_is(r);
        struct queue_entry *dropped;

        if (queue_add(&g->admission.queue, &who, &r->place, &dropped) < 0) {
                send_away(r);
                return;
        }
        r->queued_at = gateway_now(g);
        list_push_back(&g->admission.arrivals, &r->arrival);
        g->waiting_count++;
        gateway_wake_at(g, r->queued_at + timeout_ns(g));
        if (dropped) {
                struct request *loser = list_item(dropped, struct request, place);

                leave_queue(loser);
                send_away(loser);
                request_settle(loser);
        }
}

void admission_read(struct request *r, struct http_fields fields) {
        const struct gateway_options *o = &r->g->options;
        struct slice priority = o->priority_header ? http_field_value(fields, o->priority_header) : SLICE_NONE;
        struct slice tenant = o->tenant_header ? http_field_value(fields, o->tenant_header) : SLICE_NONE;
        int64_t value;

        r->tenant = hash64(tenant, r->g->admission.seed);
        if (priority.len == 0 || facts_integer(priority, &value) < 0)
                return;
        r->priority = value > PRIORITY_MAX ? PRIORITY_MAX : value < -PRIORITY_MAX ? -PRIORITY_MAX : value;
}

void admission_enter(struct request *r) {
        struct gateway *g = r->g;

        /* Those that wait go before those that come. */
        if (g->admission.queue.count == 0 && has_room(g))
                admit(r);
        else
                join_queue(r);
}

void admission_leave(struct request *r) {
        leave_queue(r);
        if (!r->admitted)
                return;
        r->admitted = false;
        r->g->admission.admitted--;
        gateway_wake_admission(r->g);
}

void admission_tick(struct gateway *g, uint64_t now) {
        while (!list_empty(&g->admission.arrivals)) {
                struct request *r = list_item(g->admission.arrivals.next, struct request, arrival);
                uint64_t due = r->queued_at + timeout_ns(g);

                if (due > now) {
                        gateway_wake_at(g, due);
                        break;
                }
                leave_queue(r);
                give_up_waiting(r);
                request_settle(r);
        }
        while (g->admission.queue.count > 0 && has_room(g)) {
                struct request *r = list_item(queue_take(&g->admission.queue), struct request, place);

                leave_queue(r);
                g->admission.last_wait = r->queued;
                admit(r);
                request_settle(r);
        }
}
