/* pool.h - the instances behind the gateway: who is there, who may be chosen, and how much work each has.
 *
 * Pure: time comes in as an argument, probing is done by health.c, which asks what is due and reports what it saw. One
 * thread owns a pool.
 *
 * An instance is JOINING until a probe succeeds, then HEALTHY. A sign of trouble makes it SUSPECT: chosen only when no
 * healthy one may take the leg, and probed at once. Probes decide: HEALTHY again, or EJECTED, from where two good
 * probes in a row bring it back. Overload (429, 503 on a request) is not trouble: the instance stands back for a moment
 * and stays healthy. The last instance of a role that can still be chosen is never ejected for being slow, because a
 * slow answer is better than none; it is ejected when its process is gone.
 *
 * Load is counted in tokens that stand for work: struct load is taken once and given back once, whatever the way out;
 * giving back again does nothing. */
#pragma once
#include "base/error.h"
#include "base/rng.h"
#include "base/slice.h"
#include "gateway/policy.h"

/* Membership comes from the operator, but over HTTP too: a bound against a runaway script. */
#define POOL_INSTANCES_MAX 65536

enum role { ROLE_PREFILL, ROLE_DECODE, ROLE_COUNT };
const char *pool_role_name(enum role r); /* "prefill", "decode" */

enum instance_state {
        INSTANCE_JOINING,
        INSTANCE_HEALTHY,
        INSTANCE_SUSPECT,
        INSTANCE_EJECTED,
        INSTANCE_LEAVING, /* takes no more legs, goes when the last one ends */
        INSTANCE_STATES,
};
const char *instance_state_name(enum instance_state s);

enum health_event {
        HEALTH_PROBE_OK,
        HEALTH_PROBE_SLOW, /* no answer in time, or a strange one */
        HEALTH_PROBE_DEAD, /* connection refused, or 503 on /health: the engine says that it is dead */
        HEALTH_LEG_OK,     /* an answer below 500 was completed */
        HEALTH_LEG_BROKEN, /* could not connect, reset, cut, no HTTP */
        HEALTH_LEG_ERROR,  /* 500 and above, but not overload */
        HEALTH_EVENTS,
};

enum leg_end { /* how a leg at an instance ended */
        LEG_DONE,
        LEG_REFUSED,    /* 4xx: the request's own fault */
        LEG_OVERLOADED, /* 429, 503 */
        LEG_ERROR,      /* other 5xx, or what makes no sense */
        LEG_UNSENT,     /* could not connect: the instance has not seen the request */
        LEG_BROKEN,     /* reset, cut, not HTTP */
        LEG_TIMEOUT,
        LEG_ABORTED, /* by us */
        LEG_ENDS,
};

struct pool;

struct instance {
        uint32_t id;
        enum role role;
        int dp_rank;      /* sent as X-data-parallel-rank; -1: none */
        const char *name; /* for people: the given name, or the key */
        const char *key;  /* "host:port" or "host:port@rank": unique within the role */
        void *endpoint;   /* of the pool's user, see pool_options.make_endpoint */
        enum instance_state state;
        uint64_t busy_until; /* stands back until then */
        uint64_t next_probe; /* UINT64_MAX while a probe is under way */
        unsigned streak[HEALTH_EVENTS], backoff;
        bool added_later; /* by the admin routes: dropped when it never answers (join_tries) */
        unsigned join_failures;
        int64_t max_model_len; /* from /v1/models; 0: not known */
        /* Work: legs in flight, their tokens, and tokens of KV that wait at a prefiller to be fetched. */
        uint32_t requests;
        uint64_t tokens, held_tokens, held_requests;
        uint64_t picks, failures;          /* totals */
        uint64_t ended[LEG_ENDS], done_ns; /* legs, and the time of those that were done */
        uint64_t first_count, first_ns;    /* streams that began, from the leg's start to the first byte */
        size_t slot;                       /* in its role's table, SIZE_MAX when not to be chosen */
        unsigned tier;
        uint64_t last_pick;
        unsigned references; /* loads and probes that point here */
        struct pool *pool;
};

struct pool_options {
        uint64_t probe_interval;                 /* of healthy ones, ns; 0: 5 s */
        uint64_t join_interval;                  /* of joining ones, ns; 0: 0.5 s */
        unsigned join_tries;                     /* failed probes after which one added later is dropped; 0: never */
        uint32_t cap;                            /* most legs per instance; 0: any number */
        const struct policy *policy[ROLE_COUNT]; /* NULL: least_load */
        uint64_t seed;                           /* of the random policies and of jitter */
        /* Called after every change of state, and with INSTANCE_LEAVING just before the instance is freed (`gone`). */
        void (*on_change)(void *context, struct instance *i, enum instance_state before, bool gone);
        void *context;
};

int pool_new(const struct pool_options *options, struct pool **ret_pool); /* 0 or -ENOMEM */
void pool_free(struct pool *p);                                           /* no load may be out; NULL is fine */

/* Add an instance; it is JOINING and due for a probe at once. `key` and `name` (NULL: the key) are copied;
 * `endpoint` is given over with free() at the end. Adding one that is leaving takes it back in.
 * Returns 0, -EEXIST, -ENOSPC (POOL_INSTANCES_MAX) or -ENOMEM; on failure `endpoint` stays the caller's. */
struct instance_spec {
        enum role role;
        const char *key, *name;
        int dp_rank;
        void *endpoint;
        bool added_later;
};
int pool_add(struct pool *p, const struct instance_spec *spec, uint64_t now, struct instance **ret_instance);
/* Let it finish its legs and go; freed at once when it has none. */
void pool_remove(struct pool *p, struct instance *i);
struct instance *pool_find(struct pool *p, enum role role, struct slice key); /* NULL: none */

size_t pool_count(const struct pool *p, enum role role);
struct instance *pool_at(const struct pool *p, enum role role, size_t index); /* in order of joining */
size_t pool_routable(const struct pool *p, enum role role);                   /* healthy and suspect */
size_t pool_in_state(const struct pool *p, enum role role, enum instance_state s);

/* Choose by the role's policy among those that may be chosen: the healthy first, then the suspect and the busy.
 * NULL: none. */
struct instance *pool_pick(struct pool *p, enum role role, const struct policy_facts *facts);
bool pool_has_room(const struct pool *p, enum role role); /* whether there is one for a leg that avoids none */

enum load_kind {
        LOAD_LEG,  /* a leg in flight */
        LOAD_HELD, /* KV that a prefiller keeps for a decoder to fetch */
};
struct load {
        struct instance *at; /* NULL: nothing is out */
        enum load_kind kind;
        uint64_t tokens;
};
/* KV that waits costs a prefiller memory but no time: it counts 3/10 of a token being computed (the weight that the
 * example proxy uses). */
#define POOL_HELD_WEIGHT_TENTHS 3
void pool_take(struct instance *i, enum load_kind kind, uint64_t tokens, struct load *ret_load);
/* Twice is harmless. Frees the instance when it was leaving and this was the last that pointed to it. */
void pool_give_back(struct load *l);

/* What was seen of an instance; may change its state. Nothing when it is leaving. */
void pool_report(struct instance *i, enum health_event what, uint64_t now);
/* It answered 429 or 503: prefer others until then. */
void pool_stand_back(struct instance *i, uint64_t until);

/* The next instance whose probe is due, marked as being probed and referenced; NULL: none now. After the probe call
 * pool_probe_done with what was seen: it may free the instance, which may be leaving or be given up now (join_tries). */
struct instance *pool_take_probe(struct pool *p, uint64_t now);
void pool_probe_done(struct instance *i, enum health_event what, uint64_t now);
/* Bring back those whose stand-back is over. */
void pool_tick(struct pool *p, uint64_t now);
