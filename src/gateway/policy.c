/* policy.c - see policy.h. */
#include "gateway/policy.h"
#include "base/slice.h"
#include <assert.h>

bool policy_may_take(const struct policy_entry *e, const struct policy_facts *facts) {
        if (!facts->no_leg && e->cap > 0 && e->requests >= e->cap)
                return false;
        for (size_t i = 0; i < facts->avoid_count; i++)
                if (facts->avoid[i] == e->id)
                        return false;
        return true;
}

/* The one with less work; among equals the one that was chosen longer ago, so that ties rotate instead of piling up
 * on the first of the list. */
static bool is_better(const struct policy_entry *a, const struct policy_entry *b) {
        if (a->tokens != b->tokens)
                return a->tokens < b->tokens;
        return a->last_pick < b->last_pick;
}

static size_t pick_least_load(
    const struct policy_entry *entries, size_t count, const struct policy_facts *facts, struct policy_state *state) {
        size_t best = POLICY_NONE;

        for (size_t i = 0; i < count; i++) {
                if (best != POLICY_NONE && !is_better(&entries[i], &entries[best]))
                        continue;
                if (policy_may_take(&entries[i], facts))
                        best = i;
        }
        return best;
}

/* The one whose turn was longest ago. Unlike a running index this stays fair while instances come, go and fail. */
static size_t pick_round_robin(
    const struct policy_entry *entries, size_t count, const struct policy_facts *facts, struct policy_state *state) {
        size_t best = POLICY_NONE;

        for (size_t i = 0; i < count; i++) {
                if (best != POLICY_NONE && entries[i].last_pick >= entries[best].last_pick)
                        continue;
                if (policy_may_take(&entries[i], facts))
                        best = i;
        }
        return best;
}

/* The first that may take a leg, from a random place on. */
static size_t any_from(
    size_t start, const struct policy_entry *entries, size_t count, const struct policy_facts *facts) {
        for (size_t i = 0; i < count; i++) {
                size_t at = start + i < count ? start + i : start + i - count;

                if (policy_may_take(&entries[at], facts))
                        return at;
        }
        return POLICY_NONE;
}

/* How often to draw again when the drawn one may not take the leg, before walking on from there: with one instance in
 * two avoided, 16 draws fail together once in 65,536 picks, so that the walk's favour for neighbours does not show. */
#define DRAWS 16

static size_t draw(
    const struct policy_entry *entries, size_t count, const struct policy_facts *facts, struct policy_state *state) {
        for (int i = 0; i < DRAWS; i++) {
                size_t at = rng_below(&state->rng, count);

                if (policy_may_take(&entries[at], facts))
                        return at;
        }
        return any_from(rng_below(&state->rng, count), entries, count, facts);
}

static size_t pick_random(
    const struct policy_entry *entries, size_t count, const struct policy_facts *facts, struct policy_state *state) {
        return count == 0 ? POLICY_NONE : draw(entries, count, facts, state);
}

/* The better of two drawn at random: nearly as even as the least loaded, without walking them all. */
static size_t pick_power_of_two(
    const struct policy_entry *entries, size_t count, const struct policy_facts *facts, struct policy_state *state) {
        size_t a, b;

        if (count == 0)
                return POLICY_NONE;
        a = draw(entries, count, facts, state);
        if (a == POLICY_NONE || count == 1)
                return a;
        /* The second among the others: two different ones, or the choice would often be none. */
        b = rng_below(&state->rng, count - 1);
        if (b >= a)
                b++;
        return policy_may_take(&entries[b], facts) && is_better(&entries[b], &entries[a]) ? b : a;
}

const struct policy policy_table[] = {
    {"least_load", pick_least_load},
    {"round_robin", pick_round_robin},
    {"random", pick_random},
    {"power_of_two", pick_power_of_two},
    {NULL, NULL},
};

const struct policy *policy_find(const char *name) {
        for (const struct policy *p = policy_table; p->name; p++)
                if (slice_is_name(slice_str(p->name), name))
                        return p;
        return NULL;
}

size_t policy_pick(const struct policy *p, struct policy_entry *entries, size_t count, const struct policy_facts *facts,
    struct policy_state *state) {
        size_t at = p->pick(entries, count, facts, state);

        if (at == POLICY_NONE)
                return at;
        assert(at < count && policy_may_take(&entries[at], facts));
        if (!facts->no_leg)
                entries[at].last_pick = ++state->turn;
        return at;
}
