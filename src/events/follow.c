/* follow.c - the sequence of one publisher: what is missing, and whether it is still the same one. See events.h. */
#include "base/hash.h"
#include "events/events.h"
#include <assert.h>

const char *follow_state_name(enum follow_state s) {
        static const char *const names[FOLLOW_STATES] = {"lost", "catching_up", "partial", "live"};

        return names[s];
}

enum follow_state follow_state(const struct follow *f) {
        if (!f->connected)
                return FOLLOW_LOST;
        if ((f->asking && !f->checking) || f->stale || !f->begun)
                return FOLLOW_CATCHING;
        return f->complete ? FOLLOW_LIVE : FOLLOW_PARTIAL;
}

static uint64_t sum(struct slice payload) {
        return hash64(payload, 0);
}

static void ask(struct follow *f, uint64_t from) {
        f->asking = f->ask = true;
        f->ask_from = from;
        f->replays += !f->checking;
}

static enum follow_verdict take(struct follow *f, uint64_t sequence, struct slice payload) {
        f->begun = true;
        f->next = sequence + 1;
        f->last_sum = sum(payload);
        return FOLLOW_APPLY;
}

/* All that is known is of another publisher, or has a hole: begin anew. */
static void forget(struct follow *f) {
        f->begun = f->complete = f->probing = f->checking = f->fruitless = f->wants = false;
        f->next = f->known_until = 0;
}

void follow_init(struct follow *f, bool can_replay) {
        *f = (struct follow){.can_replay = can_replay};
}

/* From the last one taken on, which tells whether it is still the same publisher. */
static void probe(struct follow *f) {
        f->from_start = false;
        f->probing = f->begun && f->next > 0;
        ask(f, f->probing ? f->next - 1 : 0);
}

void follow_connected(struct follow *f) {
        f->connected = true;
        f->checking = f->stale = false;
        if (f->can_replay)
                probe(f);
}

void follow_lost(struct follow *f) {
        f->connected = f->asking = f->ask = f->wants = f->checking = f->stale = false;
}

void follow_check(struct follow *f) {
        if (!f->can_replay || !f->connected || f->asking)
                return;
        f->checking = true;
        probe(f);
}

/* The first one that comes when nothing is known. */
static enum follow_verdict begin(struct follow *f, uint64_t sequence, struct slice payload) {
        f->complete = sequence == 0;
        f->fruitless = false;
        return take(f, sequence, payload);
}

enum follow_verdict follow_live(struct follow *f, uint64_t sequence, struct slice payload) {
        if (f->asking)
                return FOLLOW_DROP; /* the replay has it */
        if (f->begun && sequence < f->known_until)
                return FOLLOW_DROP;
        f->known_until = 0;
        if (f->begun && sequence == f->next) {
                f->fruitless = false;
                return take(f, sequence, payload);
        }
        if (f->begun && sequence < f->next) {
                f->restarts++;
                forget(f);
                if (f->can_replay && sequence > 0) {
                        ask(f, 0);
                        return FOLLOW_CLEAR;
                }
                begin(f, sequence, payload);
                return FOLLOW_CLEAR_APPLY;
        }
        if (!f->begun && (sequence == 0 || !f->can_replay || f->fruitless))
                return begin(f, sequence, payload);
        f->gaps += f->begun;
        if (f->can_replay && !f->fruitless) {
                f->wants = true;
                f->wanted = sequence;
                ask(f, f->begun ? f->next : 0);
                return FOLLOW_DROP;
        }
        forget(f);
        begin(f, sequence, payload);
        return FOLLOW_CLEAR_APPLY;
}

static enum follow_verdict start_over(struct follow *f) {
        f->restarts++;
        forget(f);
        f->from_start = true;
        return FOLLOW_CLEAR;
}

enum follow_verdict follow_replayed(struct follow *f, uint64_t sequence, struct slice payload) {
        if (!f->asking || f->from_start)
                return FOLLOW_DROP;
        if (f->probing) {
                f->probing = false;
                return sequence == f->next - 1 && sum(payload) == f->last_sum ? FOLLOW_DROP : start_over(f);
        }
        if (!f->begun)
                return begin(f, sequence, payload);
        if (sequence < f->next)
                return FOLLOW_DROP;
        if (sequence == f->next)
                return take(f, sequence, payload);
        forget(f);
        begin(f, sequence, payload);
        return FOLLOW_CLEAR_APPLY;
}

enum follow_verdict follow_replay_end(struct follow *f, bool answered) {
        enum follow_verdict verdict = FOLLOW_DROP;

        if (!f->asking)
                return FOLLOW_DROP;
        f->asking = false;
        if (!answered && f->checking) {
                f->checking = f->probing = f->from_start = false;
                f->stale = true;
                return FOLLOW_DROP;
        }
        f->checking = f->stale = false;
        if (f->probing && answered)
                verdict = start_over(f); /* it has not the batch that we have */
        if (!answered) {
                /* Nobody can tell what was missed. */
                forget(f);
                f->from_start = false;
                f->fruitless = true; /* the next batch is where knowledge begins */
                return FOLLOW_CLEAR;
        }
        if (f->from_start) {
                f->from_start = false;
                ask(f, 0);
                return verdict;
        }
        if (!f->begun) { /* nothing was ever published */
                f->begun = f->complete = true;
                f->next = 0;
        }
        f->fruitless = f->wanted >= f->next && f->wants;
        f->wants = false;
        f->known_until = f->next;
        return verdict;
}

void follow_cleared(struct follow *f) {
        f->complete = true;
}
