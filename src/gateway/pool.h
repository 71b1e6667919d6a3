/* pool.h - the instances behind the gateway: who is there, who may be chosen, and how much work each has.
 *
 * Pure: time comes in as an argument, probing is done by health.c, which asks what is due and reports what it saw. One
 * thread owns a pool.
 *
 * An instance is JOINING until a probe succeeds, then HEALTHY. A sign of trouble makes it SUSPECT: chosen only when no
 * healthy one may take the leg, and probed at once. Probes decide: HEALTHY again, or EJECTED, from where two good
 * probes in a row bring it back. One that has come, or come back, has no load and would be given all that comes, with its
 * caches cold: its load counts for up to ten times as much at first (slow_start). Overload (429, 503 on a request) is not
 * trouble: the instance stands back for a moment and stays healthy. No more than half of a role are ejected for being
 * slow: when most are, it is the load or the network, and shutting them out would give it all to the last ones. They are
 * ejected when their processes are gone.
 *
 * Load is counted in tokens that stand for work, of our own legs and of what an instance's metrics say that others have
 * with it: struct load is taken once and given back once, whatever the way out; giving back again does nothing. */
#pragma once
#include "base/error.h"
#include "base/rng.h"
#include "base/slice.h"
#include "events/events.h"
#include "gateway/kv_index.h"
#include "gateway/policy.h"
#include "gateway/prefix.h"

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
        uint32_t life;  /* grows when it is ejected: what it had in its caches is not counted on any more */
        uint32_t place; /* a hash of its key */
        enum role role;
        int dp_rank;             /* sent as X-data-parallel-rank; -1: none */
        uint16_t bootstrap_port; /* see struct gateway_member */
        const char *name;        /* for people: the given name, or the key */
        const char *key;         /* "host:port" or "host:port@rank": unique within the role */
        void *endpoint;          /* of the pool's user, see pool_options.make_endpoint */
        char *engine_id;         /* told by its bootstrap server: owned, NULL: not known */
        enum instance_state state;
        uint64_t busy_until; /* stands back until then */
        uint64_t next_probe; /* UINT64_MAX while a probe is under way */
        unsigned streak[HEALTH_EVENTS], backoff;
        bool added_later; /* by the admin routes: dropped when it never answers (join_tries) */
        unsigned join_failures;
        int64_t max_model_len; /* from /v1/models, see pool_learn_length(); 0: not known */
        /* Work: legs in flight, their tokens, and tokens of KV that wait at a prefiller to be fetched. */
        uint32_t requests;
        uint64_t tokens, held_tokens, held_requests;
        /* What others have with it, as far as its metrics say (pool_report_load); old news are no news. */
        uint64_t foreign_requests, foreign_until, next_scrape;
        double kv_usage; /* likewise of its memory, 0..1 */
        /* It came, or came back, at `risen_at` and has a share of 1 to 10 tenths of the load that others have. */
        uint64_t risen_at;
        unsigned share_tenths;
        uint64_t picks, failures;          /* totals */
        uint64_t ended[LEG_ENDS], done_ns; /* legs, and the time of those that were done */
        uint64_t first_count, first_ns;    /* streams that began, from the leg's start to the first byte */
        size_t slot;                       /* in its role's table, SIZE_MAX when not to be chosen */
        unsigned tier;
        uint64_t last_pick;
        /* What it says of its cache, where it is followed (the pool's user sets `events`). */
        struct subscription *events; /* NULL: it is not */
        enum follow_state events_state;
        struct kv_holder kv;
        unsigned references; /* loads and probes that point here */
        struct pool *pool;
};

struct pool_options {
        uint64_t probe_interval;                 /* of healthy ones, ns; 0: 5 s */
        uint64_t join_interval;                  /* of joining ones, ns; 0: 0.5 s */
        unsigned join_tries;                     /* failed probes after which one added later is dropped; 0: never */
        uint32_t cap;                            /* most legs per instance; 0: any number */
        const struct policy *policy[ROLE_COUNT]; /* NULL: least_load */
        uint64_t slow_start; /* ns in which one that has come (back) grows to its full share; 0: it has that at once */
        size_t prefix_bytes; /* of each role's index of prompts, where its policy wants one */
        size_t kv_bytes;     /* likewise of each role's index of KV events; 0: none */
        uint64_t seed;       /* of the random policies and of jitter */
        /* Called after every change of state, and with INSTANCE_LEAVING just before the instance is freed (`gone`). */
        void (*on_change)(void *context, struct instance *i, enum instance_state before, bool gone);
        void *context;
};

int pool_new(const struct pool_options *options, struct pool **ret_pool); /* 0 or -ENOMEM */
void *pool_user(const struct pool *p);                                    /* the options' context */
void pool_free(struct pool *p);                                           /* no load may be out; NULL is fine */

/* Add an instance; it is JOINING and due for a probe at once. `key` and `name` (NULL: the key) are copied;
 * `endpoint` is given over with free() at the end. Adding one that is leaving takes it back in.
 * Returns 0, -EEXIST, -ENOSPC (POOL_INSTANCES_MAX) or -ENOMEM; on failure `endpoint` stays the caller's. */
struct instance_spec {
        enum role role;
        const char *key, *name;
        int dp_rank;
        uint16_t bootstrap_port;
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

/* The instance says how many tokens its model takes; 0: it does not. */
void pool_learn_length(struct instance *i, int64_t max_model_len);
/* More than so many tokens no instance of the role takes; 0: not known, for one has not said. */
int64_t pool_longest(const struct pool *p, enum role role);

/* Choose by the role's policy among those that may be chosen: the healthy first, then the suspect and the busy. The facts'
 * `warm` is found here, from `prompt`. NULL: none. */
struct instance *pool_pick(
    struct pool *p, enum role role, const struct policy_facts *facts, const struct prompt *prompt);
/* The instance is given this prompt. Returns how many of its tokens are in the instance's cache already, as far as is known
 * (0 where the policy does not want to know). */
uint64_t pool_note_prompt(struct instance *i, const struct prompt *prompt);
bool pool_wants_prompts(const struct pool *p); /* some role's policy does: prompts are to have keys */
/* What an instance's KV events say. While they are complete (FOLLOW_LIVE) they are what is known of its cache, with what it
 * was given in the last seconds and may not have told yet; else that and what it was given ever. */
bool pool_wants_events(const struct pool *p, enum role role);
void pool_note_event(struct instance *i, const struct event *e);
void pool_forget_events(struct instance *i);
bool pool_knows_blocks(const struct pool *p); /* some instance has told of blocks: prompts' tokens are wanted */
/* Fill in the prompt's blocks; their keys live in `arena`. 0 or -ENOMEM. */
int pool_find_blocks(const struct pool *p, const struct kv_prompt *tokens, struct arena *arena, struct prompt *prompt);
const struct kv_index *pool_kv_index(const struct pool *p, enum role role); /* NULL: there is none */
void pool_forget_prompts(struct pool *p);                                   /* all caches were cleared */
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

/* What a request that others have with an instance comes to, in tokens: nobody says. */
#define POOL_FOREIGN_TOKENS 1024
/* Its metrics say that it works on so many requests, of which `own` are at most ours: the others are load too, until `until`. */
void pool_report_load(struct instance *i, uint64_t requests, uint64_t own, double kv_usage, uint64_t until);

/* What was seen of an instance; may change its state. Nothing when it is leaving. */
void pool_report(struct instance *i, enum health_event what, uint64_t now);
/* What is known of it may be old, who knows: probe it at once. Nothing happens when it is not there any more. */
void pool_look_again(struct pool *p, enum role role, uint32_t id, uint64_t now);
/* It answered 429 or 503: prefer others until then. */
void pool_stand_back(struct instance *i, uint64_t until);

/* The next instance whose probe is due, marked as being probed and referenced; NULL: none now. After the probe call
 * pool_probe_done with what was seen: it may free the instance, which may be leaving or be given up now (join_tries). */
struct instance *pool_take_probe(struct pool *p, uint64_t now);
void pool_probe_done(struct instance *i, enum health_event what, uint64_t now);
/* What time alone changes: bring back those whose stand-back is over, forget what was said of their load long ago, let the
 * shares of new ones grow. */
void pool_tick(struct pool *p, uint64_t now);
