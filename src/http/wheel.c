/* wheel.c - see wheel.h. Level L has slots of 64^L ms. A timer lies in the lowest level that reaches it, in the slot of its
 * time; when time enters a slot of a higher level its timers are spread over the lower ones. */
#include "http/wheel.h"

#define LEVEL_BITS 6
#define SLOT_MASK  (WHEEL_SLOTS - 1)
#define REACH_MAX  ((1ull << (LEVEL_BITS * WHEEL_LEVELS)) - 1)

void wheel_init(struct wheel *w, uint64_t now) {
        w->now = now;
        for (int level = 0; level < WHEEL_LEVELS; level++) {
                w->occupied[level] = 0;
                for (int slot = 0; slot < WHEEL_SLOTS; slot++)
                        list_init(&w->slots[level][slot]);
        }
}

void wheel_timer_init(struct wheel_timer *t, void (*fire)(struct wheel_timer *t)) {
        list_init(&t->link);
        t->at = t->armed = WHEEL_NEVER;
        t->fire = fire;
}

static void insert(struct wheel *w, struct wheel_timer *t) {
        uint64_t at = t->at, delta;
        int level = 0;
        unsigned slot;

        /* The slot of the present moment has been passed. */
        if (at <= w->now)
                at = w->now + 1;
        delta = at - w->now;
        if (delta > REACH_MAX)
                at = w->now + REACH_MAX;
        while (level < WHEEL_LEVELS - 1 && delta >> (LEVEL_BITS * (level + 1)))
                level++;
        slot = (at >> (LEVEL_BITS * level)) & SLOT_MASK;
        t->armed = at;
        list_push_back(&w->slots[level][slot], &t->link);
        w->occupied[level] |= 1ull << slot;
}

static bool is_linked(const struct wheel_timer *t) {
        return !list_empty(&t->link);
}

bool wheel_set(struct wheel *w, struct wheel_timer *t, uint64_t at, uint64_t now) {
        t->at = at;
        if (is_linked(t)) {
                if (at >= t->armed)
                        return false;
                list_remove(&t->link);
        }
        if (at == WHEEL_NEVER)
                return false;
        /* An empty wheel is not advanced while time goes on. */
        if (w->now < now && wheel_next(w) == WHEEL_NEVER)
                w->now = now;
        insert(w, t);
        return true;
}

void wheel_stop(struct wheel_timer *t) {
        list_remove(&t->link);
        t->at = WHEEL_NEVER;
}

uint64_t wheel_next(const struct wheel *w) {
        uint64_t next = WHEEL_NEVER;

        for (int level = 0; level < WHEEL_LEVELS; level++) {
                uint64_t bits = w->occupied[level], first = (w->now >> (LEVEL_BITS * level)) + 1, at;
                unsigned turn = first & SLOT_MASK;

                if (!bits)
                        continue;
                bits = turn ? bits >> turn | bits << (WHEEL_SLOTS - turn) : bits;
                at = (first + (unsigned)__builtin_ctzll(bits)) << (LEVEL_BITS * level);
                if (at < next)
                        next = at;
        }
        return next;
}

static void take_slot(struct wheel *w, int level, unsigned slot, struct list *pending) {
        struct list *head = &w->slots[level][slot], *link;

        w->occupied[level] &= ~(1ull << slot);
        while ((link = list_pop_front(head)))
                list_push_back(pending, link);
}

void wheel_advance(struct wheel *w, uint64_t now) {
        struct list pending, *link;

        if (now <= w->now)
                return;
        list_init(&pending);
        for (int level = 0; level < WHEEL_LEVELS; level++) {
                uint64_t from = w->now >> (LEVEL_BITS * level), to = now >> (LEVEL_BITS * level);

                if (to - from > WHEEL_SLOTS)
                        from = to - WHEEL_SLOTS;
                while (from < to) {
                        from++;
                        if (w->occupied[level] >> (from & SLOT_MASK) & 1)
                                take_slot(w, level, from & SLOT_MASK, &pending);
                }
        }
        w->now = now;
        while ((link = list_pop_front(&pending))) {
                struct wheel_timer *t = list_item(link, struct wheel_timer, link);

                if (t->at <= now)
                        t->fire(t);
                else if (t->at != WHEEL_NEVER)
                        insert(w, t);
        }
}
