/* queue.c - see queue.h. */
#include "gateway/queue.h"
#include <assert.h>
#include <errno.h>
#include <stdlib.h>

/* Flows whose requests were all let in are kept for their debt, but not for as many tenants as somebody may invent. */
#define FLOWS_KEPT 1024

struct queue_flow {
        struct list link, entries;
        int64_t priority;
        uint64_t tenant, turn; /* when its next one is due, in virtual time */
        size_t count;
};

void queue_init(struct queue *q, size_t limit) {
        *q = (struct queue){.limit = limit};
        list_init(&q->flows);
}

static void drop_flow(struct queue *q, struct queue_flow *f) {
        list_remove(&f->link);
        q->flow_count--;
        free(f);
}

void queue_free(struct queue *q) {
        assert(q->count == 0);
        list_for_each (at, &q->flows) {
                drop_flow(q, list_item(at, struct queue_flow, link));
        }
}

static struct queue_flow *find_flow(struct queue *q, const struct queue_who *who) {
        list_for_each (at, &q->flows) {
                struct queue_flow *f = list_item(at, struct queue_flow, link);

                if (f->tenant == who->tenant && f->priority == who->priority)
                        return f;
        }
        return NULL;
}

/* Forget flows that owe nothing, or any that is empty while there are too many. */
static void forget_flows(struct queue *q) {
        list_for_each (at, &q->flows) {
                struct queue_flow *f = list_item(at, struct queue_flow, link);

                if (f->count == 0 && (f->turn <= q->turn || q->flow_count > FLOWS_KEPT))
                        drop_flow(q, f);
        }
}

static struct queue_flow *new_flow(struct queue *q, const struct queue_who *who) {
        struct queue_flow *f = calloc(1, sizeof(*f));

        if (!f)
                return NULL;
        f->priority = who->priority;
        f->tenant = who->tenant;
        list_init(&f->entries);
        list_push_back(&q->flows, &f->link);
        q->flow_count++;
        return f;
}

/* The flow that is to give up a place: the least urgent, of those the one with most waiting. */
static struct queue_flow *longest_flow(struct queue *q) {
        struct queue_flow *worst = NULL;

        list_for_each (at, &q->flows) {
                struct queue_flow *f = list_item(at, struct queue_flow, link);

                if (f->count > 0 && (!worst || f->priority > worst->priority ||
                                        (f->priority == worst->priority && f->count > worst->count)))
                        worst = f;
        }
        return worst;
}

/* Who makes room for one more of `who`, whose tenant has `waiting` already. NULL: nobody. */
static struct queue_entry *to_drop(struct queue *q, const struct queue_who *who, size_t waiting) {
        struct queue_flow *worst = longest_flow(q);

        if (!worst || worst->priority < who->priority ||
            (worst->priority == who->priority && worst->count <= waiting + 1))
                return NULL;
        return list_item(worst->entries.prev, struct queue_entry, link);
}

int queue_add(struct queue *q, const struct queue_who *who, struct queue_entry *e, struct queue_entry **ret_dropped) {
        struct queue_entry *dropped = NULL;
        struct queue_flow *f;

        assert(!e->flow);
        forget_flows(q);
        f = find_flow(q, who);
        if (q->count >= q->limit) {
                dropped = to_drop(q, who, f ? f->count : 0);
                if (!dropped)
                        return -ENOBUFS;
        }
        if (!f)
                f = new_flow(q, who);
        if (!f)
                return -ENOMEM;
        /* Who has not waited lately begins now: what was not used is not saved up. */
        if (f->count == 0 && f->turn < q->turn)
                f->turn = q->turn;
        e->flow = f;
        e->work = who->work;
        list_push_back(&f->entries, &e->link);
        f->count++;
        q->count++;
        if (dropped)
                queue_remove(q, dropped);
        *ret_dropped = dropped;
        return 0;
}

void queue_remove(struct queue *q, struct queue_entry *e) {
        struct queue_flow *f = e->flow;

        if (!f)
                return;
        e->flow = NULL;
        list_remove(&e->link);
        f->count--;
        if (--q->count > 0)
                return;
        /* Nobody waits: there is nothing to share, and all debts are off. */
        list_for_each (at, &q->flows) {
                drop_flow(q, list_item(at, struct queue_flow, link));
        }
}

struct queue_entry *queue_take(struct queue *q) {
        struct queue_flow *best = NULL;
        struct queue_entry *e;

        list_for_each (at, &q->flows) {
                struct queue_flow *f = list_item(at, struct queue_flow, link);

                if (f->count > 0 &&
                    (!best || f->priority < best->priority || (f->priority == best->priority && f->turn < best->turn)))
                        best = f;
        }
        if (!best)
                return NULL;
        e = list_item(best->entries.next, struct queue_entry, link);
        if (best->turn > q->turn)
                q->turn = best->turn;
        best->turn += e->work;
        queue_remove(q, e);
        return e;
}
