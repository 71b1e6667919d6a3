/* queue.h - who is let in next: requests that wait because the gateway or its instances are full.
 *
 * The more urgent first; among equals the tenants share what there is by the work of their requests, not by their number
 * (start-time fair queueing: Goyal, Vin, Cheng), and each tenant's own come in order. The queue is bounded: when it is
 * full, a newcomer takes the place of the last one of whoever has most waiting, if that is less urgent or more than the
 * newcomer's tenant has.
 *
 * Pure; entries belong to the caller. */
#pragma once
#include "base/list.h"
#include <stdint.h>

struct queue_flow;

struct queue_entry {
        struct list link;
        struct queue_flow *flow; /* NULL: it does not wait */
        uint64_t work;
};

struct queue {
        struct list flows; /* one for each tenant and priority that waits or has waited since the queue was empty */
        size_t flow_count, count, limit;
        uint64_t turn; /* virtual time: the turn of the last that was let in */
};

void queue_init(struct queue *q, size_t limit);
void queue_free(struct queue *q); /* nobody may wait */

struct queue_who {
        int64_t priority; /* the smallest is served first, as in vLLM */
        uint64_t tenant;
        uint64_t work; /* in tokens, for the shares */
};
/* Let it wait. Returns 0, with the one that lost its place in *ret_dropped (NULL: none did); -ENOBUFS when there is no place
 * for it; -ENOMEM. */
int queue_add(struct queue *q, const struct queue_who *who, struct queue_entry *e, struct queue_entry **ret_dropped);
/* The next one, which does not wait any more; NULL: nobody waits. */
struct queue_entry *queue_take(struct queue *q);
/* It waits no more; nothing when it did not. */
void queue_remove(struct queue *q, struct queue_entry *e);
