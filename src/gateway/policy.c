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

/* Up to here the least loaded is looked for among all; beyond, two draws come near enough in a thousandth of the time. */
#define WALK_MAX 64

static size_t pick_cool(
    const struct policy_entry *entries, size_t count, const struct policy_facts *facts, struct policy_state *state) {
        return count <= WALK_MAX ? pick_least_load(entries, count, facts, state)
                                 : pick_power_of_two(entries, count, facts, state);
}

/* The one where the prompt is computed first: the work that is with it, and what of the prompt it has not in its cache.
 * So a warm one is chosen while waiting there costs less than computing the prompt elsewhere, and it is never busier than
 * the other candidate by more than the tokens it saves: a beginning that everybody shares makes no hot spot, for whoever
 * takes over for a busy one is warm from then on. */
static size_t pick_prefix_aware(
    const struct policy_entry *entries, size_t count, const struct policy_facts *facts, struct policy_state *state) {
        size_t best = pick_cool(entries, count, facts, state);
        uint64_t best_saves = 0;

        if (best == POLICY_NONE)
                return best;
        for (size_t i = 0; i < facts->warm_count; i++)
                if (facts->warm[i].at == best)
                        best_saves = facts->warm[i].tokens;
        for (size_t i = 0; i < facts->warm_count; i++) {
                const struct policy_warm *w = &facts->warm[i];

                if (entries[w->at].tokens + best_saves >= entries[best].tokens + w->tokens ||
                    !policy_may_take(&entries[w->at], facts))
                        continue;
                best = w->at;
                best_saves = w->tokens;
        }
        return best;
}

/* A finalizer of 64 bits (splitmix64): each input bit moves each output bit. */
static uint64_t mix(uint64_t x) {
        x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
        x = (x ^ x >> 27) * 0x94d049bb133111ebu;
        return x ^ x >> 31;
}

/* Each session has its own order of the instances (rendezvous hashing): when one comes or goes, only the sessions that are
 * its own move, and every gateway agrees. The first of them that is no busier than 5/4 of the mean takes the leg (Mirrokni,
 * Thorup, Zadimoghaddam: consistent hashing with bounded loads). */
static size_t pick_consistent_hash(
    const struct policy_entry *entries, size_t count, const struct policy_facts *facts, struct policy_state *state) {
        uint64_t sum = 0, takers = 0, bound, best_rank = 0;
        size_t best = POLICY_NONE;

        if (facts->session == 0)
                return pick_cool(entries, count, facts, state);
        for (size_t i = 0; i < count; i++)
                if (policy_may_take(&entries[i], facts)) {
                        sum += entries[i].tokens;
                        takers++;
                }
        bound = takers > 0 ? (sum + facts->tokens) / takers * 5 / 4 + facts->tokens : 0;
        for (size_t i = 0; i < count; i++) {
                uint64_t rank = mix(facts->session ^ (uint64_t)entries[i].place << 32 ^ entries[i].place);

                if (entries[i].tokens > bound || (best != POLICY_NONE && rank <= best_rank) ||
                    !policy_may_take(&entries[i], facts))
                        continue;
                best = i;
                best_rank = rank;
        }
        return best;
}

const struct policy policy_table[] = {
    {"least_load", pick_least_load, false},
    {"round_robin", pick_round_robin, false},
    {"random", pick_random, false},
    {"power_of_two", pick_power_of_two, false},
    {"prefix_aware", pick_prefix_aware, true},
    {"consistent_hash", pick_consistent_hash, false},
    {NULL, NULL, false},
};

const struct policy *policy_find(const char *name) {
        static const struct {
                const char *theirs, *ours;
        } others[] = {{"cache_aware", "prefix_aware"}, {"rendezvous_hash", "consistent_hash"}}; /* of vllm-router */

        for (size_t i = 0; i < sizeof(others) / sizeof(*others); i++)
                if (slice_is_name(slice_str(others[i].theirs), name))
                        name = others[i].ours;
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
