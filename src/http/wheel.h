/* wheel.h - deadlines for tens of thousands of connections: a hierarchical timing wheel in milliseconds.
 *
 * Deadlines of an HTTP server are set often, pushed later at nearly every read, and hardly ever run out. So pushing a
 * deadline later is one store; the timer is moved only when its old time comes. Setting and stopping are O(1). Knows
 * no clock: the loop passes the time in. Private to http/. */
#pragma once
#include "base/list.h"
#include <stdint.h>

#define WHEEL_NEVER  UINT64_MAX
#define WHEEL_LEVELS 4
#define WHEEL_SLOTS                                                                                                    \
        64 /* one bit each in wheel.occupied; 64^4 ms are 4.6 hours, longer deadlines are re-set on the way */

struct wheel_timer {
        struct list link;
        uint64_t at;    /* when it is due, or WHEEL_NEVER */
        uint64_t armed; /* when it will be looked at; <= at. Meaningful while linked */
        void (*fire)(struct wheel_timer *t);
};

struct wheel {
        uint64_t now;
        uint64_t occupied[WHEEL_LEVELS]; /* a set bit may be stale, a clear one never is */
        struct list slots[WHEEL_LEVELS][WHEEL_SLOTS];
};

void wheel_init(struct wheel *w, uint64_t now);
void wheel_timer_init(struct wheel_timer *t, void (*fire)(struct wheel_timer *t));
/* `now` is the loop's time. Returns true when wheel_next() may have become earlier. */
bool wheel_set(struct wheel *w, struct wheel_timer *t, uint64_t at, uint64_t now);
void wheel_stop(struct wheel_timer *t);
/* When wheel_advance() wants to be called, at the latest; WHEEL_NEVER when nothing is set. */
uint64_t wheel_next(const struct wheel *w);
/* Fire what is due. Callbacks may set, stop and free any timer. */
void wheel_advance(struct wheel *w, uint64_t now);
