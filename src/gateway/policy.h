/* policy.h - which instance takes the next leg. Pure: (what is known of the instances, facts of the request, a small
 * state) in, an index out; no clock, no memory, no I/O. The same functions route, are tested as laws, and can drive a
 * simulation.
 *
 * Loads are in tokens (pool.h says of what). A policy never looks at the order of configuration, so that adding an instance
 * changes nothing for the others. */
#pragma once
#include "base/rng.h"
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define POLICY_NONE SIZE_MAX

/* One instance that may be chosen. 32 bytes, so that a pick among thousands walks few cache lines. */
struct policy_entry {
        uint64_t tokens;    /* work that is with it now */
        uint64_t last_pick; /* turn of the last pick (policy_state.turn), 0: never */
        uint32_t requests;  /* legs that are with it now */
        uint32_t cap;       /* most legs at once, 0: any number */
        uint32_t id;        /* what `avoid` names; unique among the entries */
        uint32_t place;     /* a hash of its address: the same in every gateway and after every start */
};

/* An entry that has the beginning of the prompt in its cache, as far as is known. */
struct policy_warm {
        size_t at;       /* index of the entry */
        uint64_t tokens; /* of the prompt, at most all of them */
};

struct policy_facts {
        const uint32_t *avoid; /* ids not to choose (those that failed this request), NULL when none */
        size_t avoid_count;
        bool no_leg;      /* a small call that is no work: caps do not hold, and nobody's turn is used up */
        uint64_t tokens;  /* of work that the leg is */
        uint64_t session; /* a hash of whom it belongs to; 0: nobody */
        const struct policy_warm *warm;
        size_t warm_count;
};

/* What a policy remembers between picks; one per role. A zeroed state with a seeded rng is fresh. */
struct policy_state {
        uint64_t turn; /* picks so far */
        struct rng rng;
};

struct policy {
        const char *name; /* as on the command line */
        /* The index of the chosen entry, or POLICY_NONE when each is avoided or at its cap. */
        size_t (*pick)(const struct policy_entry *entries, size_t count, const struct policy_facts *facts,
            struct policy_state *state);
        bool wants_warm; /* what is known of caches makes a difference */
};

/* One of POLICY_NAMES, or as vllm-router calls them: "cache_aware" for prefix_aware, "rendezvous_hash" for consistent_hash.
 * Case aside, '-' and '_' are the same. NULL: no such policy. */
const struct policy *policy_find(const char *name);
/* All of them, ended by a row without name. */
extern const struct policy policy_table[];
/* The names joined by '|', for option tables. */
#define POLICY_NAMES "least_load|round_robin|random|power_of_two|prefix_aware|consistent_hash"

/* May this entry take one more leg? */
bool policy_may_take(const struct policy_entry *e, const struct policy_facts *facts);
/* Pick and, for a leg, count the turn: state->turn grows and the entry's last_pick becomes it. Every pick goes through
 * here. */
size_t policy_pick(const struct policy *p, struct policy_entry *entries, size_t count, const struct policy_facts *facts,
    struct policy_state *state);
