/* pool.c - see pool.h.
 *
 * Per role there is one table of policy entries with those that may be chosen: first the healthy (tier 0), then the
 * suspect and the busy (tier 1), so that a policy walks or draws from a dense array. An instance knows its slot. */
#include "gateway/pool.h"
#include "base/clock.h"
#include "base/hash.h"
#include <assert.h>
#include <errno.h>
#include <stdlib.h>

#define NO_SLOT SIZE_MAX

/* An instance that is given a prompt tells of its blocks when they are computed: until then, or for one to two of these spans,
 * it counts as having them. Memory for some thousand prompts. */
#define RECENT_SPAN  (5 * NS_PER_S)
#define RECENT_BYTES (4u << 20)

/* How soon to look again. A suspect is probed fast because requests wait on the answer; an ejected one with growing
 * pauses, so that a dead host costs nothing, but never so rarely that a restart is noticed late. */
#define PROBE_SUSPECT     (200 * NS_PER_MS)
#define PROBE_EJECTED_MIN (250 * NS_PER_MS)
#define PROBE_EJECTED_MAX (4 * NS_PER_S)

struct table {
        struct policy_entry *entries;
        struct instance **at;       /* same index as entries */
        size_t count, healthy;      /* [0, healthy) is tier 0 */
        struct instance **all;      /* their ids grow: they stand in the order in which they came */
        uint32_t *ids;              /* of `all` */
        size_t all_count, capacity; /* of all four arrays */
        struct policy_state state;
        bool any_risen;
        uint64_t first_risen_at;
        int64_t longest;             /* max_model_len that was ever said */
        bool some_unknown;           /* one has said none */
        struct prefix_index *prefix; /* NULL: the policy does not want one */
        /* With KV events: what they say, and what was given to those that are followed in this span of time and the one
         * before. */
        struct kv_index *kv; /* NULL: no events */
        struct prefix_index *recent[2];
        uint64_t recent_until;
};

struct pool {
        struct pool_options options;
        struct table tables[ROLE_COUNT];
        struct rng rng;
        uint32_t next_id;
};

const char *pool_role_name(enum role r) {
        return r == ROLE_PREFILL ? "prefill" : "decode";
}

const char *instance_state_name(enum instance_state s) {
        static const char *const names[INSTANCE_STATES] = {"joining", "healthy", "suspect", "ejected", "leaving"};

        return names[s];
}

/* ---- the state machine -------------------------------------------------------------------------------------------- */

/* In state `from`, `times` events `on` in a row lead to `to`. Whatever is not listed changes nothing. */
static const struct rule {
        enum instance_state from;
        enum health_event on;
        unsigned times;
        enum instance_state to;
} rules[] = {
    {INSTANCE_JOINING, HEALTH_PROBE_OK, 1, INSTANCE_HEALTHY},
    {INSTANCE_HEALTHY, HEALTH_PROBE_SLOW, 1, INSTANCE_SUSPECT},
    {INSTANCE_HEALTHY, HEALTH_PROBE_DEAD, 1, INSTANCE_SUSPECT},
    {INSTANCE_HEALTHY, HEALTH_LEG_BROKEN, 1, INSTANCE_SUSPECT},
    /* A single 500 is often the request's own fault or the other leg's; three in a row ask for a probe. */
    {INSTANCE_HEALTHY, HEALTH_LEG_ERROR, 3, INSTANCE_SUSPECT},
    {INSTANCE_SUSPECT, HEALTH_PROBE_OK, 1, INSTANCE_HEALTHY},
    {INSTANCE_SUSPECT, HEALTH_LEG_OK, 1, INSTANCE_HEALTHY},
    {INSTANCE_SUSPECT, HEALTH_PROBE_SLOW, 2, INSTANCE_EJECTED},
    {INSTANCE_SUSPECT, HEALTH_PROBE_DEAD, 1, INSTANCE_EJECTED},
    {INSTANCE_SUSPECT, HEALTH_LEG_BROKEN, 4, INSTANCE_EJECTED},
    {INSTANCE_EJECTED, HEALTH_PROBE_OK, 2, INSTANCE_HEALTHY},
};

static bool is_good(enum health_event e) {
        return e == HEALTH_PROBE_OK || e == HEALTH_LEG_OK;
}

static const struct rule *find_rule(const struct instance *i, enum health_event what) {
        for (size_t k = 0; k < sizeof(rules) / sizeof(*rules); k++)
                if (rules[k].from == i->state && rules[k].on == what && i->streak[what] >= rules[k].times)
                        return &rules[k];
        return NULL;
}

/* ---- the table of those that may be chosen ------------------------------------------------------------------------ */

static struct table *table_of(struct instance *i) {
        return &i->pool->tables[i->role];
}

static uint64_t load_of(const struct instance *i) {
        uint64_t load =
            i->tokens + i->held_tokens * POOL_HELD_WEIGHT_TENTHS / 10 + i->foreign_requests * POOL_FOREIGN_TOKENS;

        return load * 10 / i->share_tenths;
}

static void slot_write(struct table *t, size_t slot, struct instance *i) {
        t->at[slot] = i;
        t->entries[slot] = (struct policy_entry){
            .tokens = load_of(i),
            .last_pick = i->last_pick,
            .requests = i->requests,
            .cap = i->pool->options.cap,
            .id = i->id,
            .place = i->place,
        };
        i->slot = slot;
}

/* Take it out by moving the last of its tier into its place, and the last of the other tier into the hole after that. */
static void table_remove(struct instance *i) {
        struct table *t = table_of(i);
        size_t hole = i->slot;

        if (hole == NO_SLOT)
                return;
        if (i->tier == 0) {
                if (hole != t->healthy - 1)
                        slot_write(t, hole, t->at[t->healthy - 1]);
                hole = --t->healthy;
        }
        if (hole != t->count - 1)
                slot_write(t, hole, t->at[t->count - 1]);
        t->count--;
        i->slot = NO_SLOT;
}

static void table_insert(struct instance *i, unsigned tier) {
        struct table *t = table_of(i);

        assert(i->slot == NO_SLOT && t->count < t->capacity);
        i->tier = tier;
        if (tier == 0) {
                if (t->healthy < t->count)
                        slot_write(t, t->count, t->at[t->healthy]);
                slot_write(t, t->healthy++, i);
        } else {
                slot_write(t, t->count, i);
        }
        t->count++;
}

/* Put the instance where its state wants it. */
static void place(struct instance *i) {
        bool chosen = i->state == INSTANCE_HEALTHY || i->state == INSTANCE_SUSPECT;
        unsigned tier = i->state == INSTANCE_SUSPECT || i->busy_until > 0;

        if (i->slot != NO_SLOT && (!chosen || tier != i->tier))
                table_remove(i);
        if (i->slot == NO_SLOT && chosen)
                table_insert(i, tier);
}

static void refresh(struct instance *i) {
        struct table *t = table_of(i);

        if (i->slot == NO_SLOT)
                return;
        t->entries[i->slot].tokens = load_of(i);
        t->entries[i->slot].requests = i->requests;
}

/* ---- life ----------------------------------------------------------------------------------------------------------- */

static int make_indexes(struct pool *p, struct table *t) {
        int r = prefix_index_new(p->options.prefix_bytes, &t->prefix);

        if (r == 0 && p->options.kv_bytes > 0)
                r = kv_index_new(p->options.kv_bytes, p->options.seed, &t->kv);
        for (int k = 0; r == 0 && t->kv && k < 2; k++)
                r = prefix_index_new(RECENT_BYTES, &t->recent[k]);
        return r;
}

int pool_new(const struct pool_options *options, struct pool **ret_pool) {
        struct pool *p = calloc(1, sizeof(*p));

        if (!p)
                return -ENOMEM;
        p->options = *options;
        if (p->options.probe_interval == 0)
                p->options.probe_interval = 5 * NS_PER_S;
        if (p->options.join_interval == 0)
                p->options.join_interval = NS_PER_S / 2;
        rng_seed(&p->rng, options->seed);
        for (int r = 0; r < ROLE_COUNT; r++) {
                rng_seed(&p->tables[r].state.rng, options->seed + 1 + (uint64_t)r);
                if (!p->options.policy[r])
                        p->options.policy[r] = &policy_table[0];
                if (p->options.policy[r]->wants_warm && make_indexes(p, &p->tables[r]) < 0) {
                        pool_free(p);
                        return -ENOMEM;
                }
        }
        *ret_pool = p;
        return 0;
}

void *pool_user(const struct pool *p) {
        return p->options.context;
}

static void instance_free(struct instance *i) {
        free((char *)i->key);
        free((char *)i->name);
        free(i->endpoint);
        free(i->engine_id);
        free(i);
}

void pool_free(struct pool *p) {
        if (!p)
                return;
        for (int r = 0; r < ROLE_COUNT; r++) {
                struct table *t = &p->tables[r];

                for (size_t k = 0; k < t->all_count; k++)
                        instance_free(t->all[k]);
                free(t->all);
                free(t->ids);
                free(t->at);
                free(t->entries);
                prefix_index_free(t->prefix);
                prefix_index_free(t->recent[0]);
                prefix_index_free(t->recent[1]);
                kv_index_free(t->kv);
        }
        free(p);
}

static int grow(struct table *t) {
        size_t capacity = t->capacity ? t->capacity * 2 : 16;
        struct instance **all, **at;
        struct policy_entry *entries;
        uint32_t *ids;

        if (t->all_count < t->capacity)
                return 0;
        if (t->all_count >= POOL_INSTANCES_MAX)
                return -ENOSPC;
        all = realloc(t->all, capacity * sizeof(*all));
        if (!all)
                return -ENOMEM;
        t->all = all;
        ids = realloc(t->ids, capacity * sizeof(*ids));
        if (!ids)
                return -ENOMEM;
        t->ids = ids;
        at = realloc(t->at, capacity * sizeof(*at));
        if (!at)
                return -ENOMEM;
        t->at = at;
        entries = realloc(t->entries, capacity * sizeof(*entries));
        if (!entries)
                return -ENOMEM;
        t->entries = entries;
        t->capacity = capacity;
        return 0;
}

static void set_state(struct instance *i, enum instance_state s) {
        enum instance_state before = i->state;

        i->state = s;
        i->life += s == INSTANCE_EJECTED;
        i->backoff = 0;
        memset(i->streak, 0, sizeof(i->streak));
        place(i);
        if (i->pool->options.on_change)
                i->pool->options.on_change(i->pool->options.context, i, before, false);
}

int pool_add(struct pool *p, const struct instance_spec *spec, uint64_t now, struct instance **ret_instance) {
        struct table *t = &p->tables[spec->role];
        struct instance *i = pool_find(p, spec->role, slice_str(spec->key));
        int r;

        if (i && i->state != INSTANCE_LEAVING)
                return -EEXIST;
        if (i) {
                free(spec->endpoint);
                i->next_probe = i->next_probe == UINT64_MAX ? UINT64_MAX : now;
                i->join_failures = 0;
                i->added_later = spec->added_later;
                set_state(i, INSTANCE_JOINING);
                *ret_instance = i;
                return 0;
        }
        r = grow(t);
        if (r < 0)
                return r;
        i = calloc(1, sizeof(*i));
        if (!i)
                return -ENOMEM;
        i->key = slice_dup(slice_str(spec->key));
        i->name = slice_dup(slice_str(spec->name ? spec->name : spec->key));
        if (!i->key || !i->name) {
                instance_free(i);
                return -ENOMEM;
        }
        i->id = ++p->next_id;
        i->role = spec->role;
        i->dp_rank = spec->dp_rank;
        i->endpoint = spec->endpoint;
        i->bootstrap_port = spec->bootstrap_port;
        i->added_later = spec->added_later;
        i->state = INSTANCE_JOINING;
        i->next_probe = now;
        i->slot = NO_SLOT;
        i->share_tenths = 10;
        i->place = (uint32_t)hash64(slice_str(i->key), 0);
        i->pool = p;
        i->kv.id = i->id;
        t->ids[t->all_count] = i->id;
        t->all[t->all_count++] = i;
        *ret_instance = i;
        return 0;
}

/* Free a leaving instance once nothing points to it. */
static void leave_if_idle(struct instance *i) {
        struct pool *p = i->pool;
        struct table *t = table_of(i);

        if (i->state != INSTANCE_LEAVING || i->references > 0)
                return;
        for (size_t k = 0; k < t->all_count; k++)
                if (t->all[k] == i) {
                        memmove(t->all + k, t->all + k + 1, (t->all_count - k - 1) * sizeof(*t->all));
                        memmove(t->ids + k, t->ids + k + 1, (t->all_count - k - 1) * sizeof(*t->ids));
                        t->all_count--;
                        break;
                }
        pool_forget_events(i);
        if (p->options.on_change)
                p->options.on_change(p->options.context, i, INSTANCE_LEAVING, true);
        instance_free(i);
}

void pool_remove(struct pool *p, struct instance *i) {
        assert(i->pool == p);
        if (i->state != INSTANCE_LEAVING)
                set_state(i, INSTANCE_LEAVING);
        leave_if_idle(i);
}

struct instance *pool_find(struct pool *p, enum role role, struct slice key) {
        const struct table *t = &p->tables[role];

        for (size_t k = 0; k < t->all_count; k++)
                if (slice_is(key, t->all[k]->key))
                        return t->all[k];
        return NULL;
}

size_t pool_count(const struct pool *p, enum role role) {
        return p->tables[role].all_count;
}

struct instance *pool_at(const struct pool *p, enum role role, size_t index) {
        return p->tables[role].all[index];
}

size_t pool_routable(const struct pool *p, enum role role) {
        return p->tables[role].count;
}

size_t pool_in_state(const struct pool *p, enum role role, enum instance_state s) {
        const struct table *t = &p->tables[role];
        size_t n = 0;

        for (size_t k = 0; k < t->all_count; k++)
                n += t->all[k]->state == s;
        return n;
}

void pool_learn_length(struct instance *i, int64_t max_model_len) {
        struct table *t = table_of(i);

        i->max_model_len = max_model_len;
        if (max_model_len <= 0)
                t->some_unknown = true;
        else if (max_model_len > t->longest)
                t->longest = max_model_len;
}

int64_t pool_longest(const struct pool *p, enum role role) {
        return p->tables[role].some_unknown ? 0 : p->tables[role].longest;
}

/* ---- choosing and load ---------------------------------------------------------------------------------------------- */

/* NULL: it is no more. */
static struct instance *find_id(const struct table *t, uint32_t id) {
        size_t low = 0, high = t->all_count;

        while (low < high) {
                size_t middle = low + (high - low) / 2;

                if (t->ids[middle] < id)
                        low = middle + 1;
                else
                        high = middle;
        }
        return low < t->all_count && t->ids[low] == id ? t->all[low] : NULL;
}

/* Engines cache whole blocks, of 64 tokens or so: a beginning that is shorter, such as the framing that all messages have
 * in common, saves nothing, unless it is a good part of a short prompt. */
#define WARM_TOKENS_MIN 64

static bool is_worth_it(uint64_t tokens, const struct prompt *prompt) {
        return tokens >= WARM_TOKENS_MIN || tokens * 4 >= prompt->tokens;
}

#define WARM_MAX (KV_HITS_MAX + 3 * PREFIX_HITS_MAX)

struct warm {
        struct policy_warm items[WARM_MAX]; /* by slot */
        size_t count;
};

/* More of what is known of an instance: the larger figure holds. Nothing when it may not be chosen. */
static void add_warm(struct warm *w, const struct instance *i, uint64_t tokens, const struct prompt *prompt) {
        if (!i || i->slot == NO_SLOT || !is_worth_it(tokens, prompt))
                return;
        for (size_t k = 0; k < w->count; k++)
                if (w->items[k].at == i->slot) {
                        if (w->items[k].tokens < tokens)
                                w->items[k].tokens = tokens;
                        return;
                }
        if (w->count < WARM_MAX)
                w->items[w->count++] = (struct policy_warm){i->slot, tokens};
}

/* What was predicted; of those whose events are complete (`live`), or of all others. */
static void add_predicted(
    struct warm *w, const struct table *t, const struct prefix_index *x, const struct prompt *prompt, bool live) {
        struct prefix_hit hits[PREFIX_HITS_MAX];
        size_t found = prefix_match(x, prompt->keys, prompt->key_count, hits);
        uint64_t tokens = 0;

        for (size_t k = 0; k < found; k++) {
                const struct instance *i = find_id(t, hits[k].holder.id);

                if (k == 0 || hits[k].count != hits[k - 1].count)
                        tokens = prefix_tokens(prompt, hits[k].count);
                if (i && i->life == hits[k].holder.life && (i->events_state == FOLLOW_LIVE) == live)
                        add_warm(w, i, tokens, prompt);
        }
}

/* What they told themselves. */
static void add_told(struct warm *w, const struct table *t, enum role role, const struct prompt *prompt) {
        struct kv_hit hits[KV_HITS_MAX];
        size_t found = kv_index_match(t->kv, prompt->blocks[role], prompt->block_count[role], hits);

        for (size_t k = 0; k < found; k++) {
                const struct instance *i = find_id(t, hits[k].id);

                if (i && i->events_state >= FOLLOW_PARTIAL)
                        add_warm(w, i, hits[k].count * kv_index_block_tokens(t->kv), prompt);
        }
}

/* Who of the table has the beginning of the prompt. */
static void find_warm(const struct table *t, enum role role, const struct prompt *prompt, struct warm *ret_warm) {
        ret_warm->count = 0;
        add_predicted(ret_warm, t, t->prefix, prompt, false);
        if (!t->kv)
                return;
        add_told(ret_warm, t, role, prompt);
        add_predicted(ret_warm, t, t->recent[0], prompt, true);
        add_predicted(ret_warm, t, t->recent[1], prompt, true);
}

/* Pick among the slots [from, to). */
static size_t pick_among(
    struct pool *p, enum role role, size_t from, size_t to, const struct policy_facts *facts, const struct warm *warm) {
        struct table *t = &p->tables[role];
        struct policy_warm inside[WARM_MAX];
        struct policy_facts here = *facts;
        size_t at;

        here.warm = inside;
        here.warm_count = 0;
        for (size_t k = 0; k < warm->count; k++)
                if (warm->items[k].at >= from && warm->items[k].at < to)
                        inside[here.warm_count++] =
                            (struct policy_warm){warm->items[k].at - from, warm->items[k].tokens};
        at = policy_pick(p->options.policy[role], t->entries + from, to - from, &here, &t->state);
        return at == POLICY_NONE ? POLICY_NONE : at + from;
}

struct instance *pool_pick(
    struct pool *p, enum role role, const struct policy_facts *facts, const struct prompt *prompt) {
        struct table *t = &p->tables[role];
        struct warm warm;
        size_t at;

        warm.count = 0;
        if (t->prefix && prompt)
                find_warm(t, role, prompt, &warm);
        at = pick_among(p, role, 0, t->healthy, facts, &warm);
        if (at == POLICY_NONE)
                at = pick_among(p, role, t->healthy, t->count, facts, &warm);
        if (at == POLICY_NONE)
                return NULL;
        t->at[at]->last_pick = t->entries[at].last_pick;
        t->at[at]->picks += !facts->no_leg;
        return t->at[at];
}

/* Of the prompt's tokens, those that are in the instance's cache as it tells itself. */
static uint64_t told_tokens(const struct instance *i, const struct table *t, const struct prompt *prompt) {
        if (!t->kv || i->events_state < FOLLOW_PARTIAL)
                return 0;
        return kv_index_depth(t->kv, &i->kv, prompt->blocks[i->role], prompt->block_count[i->role]) *
               kv_index_block_tokens(t->kv);
}

static uint64_t note(struct prefix_index *x, const struct instance *i, const struct prompt *prompt) {
        return prefix_tokens(
            prompt, prefix_note(x, prompt->keys, prompt->key_count, (struct prefix_holder){i->id, i->life}));
}

uint64_t pool_note_prompt(struct instance *i, const struct prompt *prompt) {
        struct table *t = table_of(i);
        uint64_t told, had;

        if (!t->prefix || prompt->key_count == 0)
                return 0;
        told = told_tokens(i, t, prompt);
        had = note(t->prefix, i, prompt);
        if (i->events_state == FOLLOW_LIVE)
                had = note(t->recent[0], i, prompt);
        return told > had ? told : had;
}

bool pool_wants_events(const struct pool *p, enum role role) {
        return p->tables[role].kv != NULL;
}

const struct kv_index *pool_kv_index(const struct pool *p, enum role role) {
        return p->tables[role].kv;
}

void pool_note_event(struct instance *i, const struct event *e) {
        if (table_of(i)->kv)
                kv_index_apply(table_of(i)->kv, &i->kv, e);
}

void pool_forget_events(struct instance *i) {
        if (table_of(i)->kv)
                kv_index_clear(table_of(i)->kv, &i->kv);
}

bool pool_knows_blocks(const struct pool *p) {
        for (int r = 0; r < ROLE_COUNT; r++)
                if (p->tables[r].kv && kv_index_count(p->tables[r].kv) > 0)
                        return true;
        return false;
}

int pool_find_blocks(const struct pool *p, const struct kv_prompt *tokens, struct arena *arena, struct prompt *prompt) {
        int r = 0;

        for (int role = 0; r == 0 && role < ROLE_COUNT; role++)
                if (p->tables[role].kv)
                        r = kv_index_keys(
                            p->tables[role].kv, tokens, arena, &prompt->blocks[role], &prompt->block_count[role]);
        return r;
}

bool pool_wants_prompts(const struct pool *p) {
        return p->tables[ROLE_PREFILL].prefix || p->tables[ROLE_DECODE].prefix;
}

void pool_forget_prompts(struct pool *p) {
        for (int r = 0; r < ROLE_COUNT; r++)
                if (p->tables[r].prefix) {
                        prefix_index_clear(p->tables[r].prefix);
                        if (p->tables[r].kv) {
                                prefix_index_clear(p->tables[r].recent[0]);
                                prefix_index_clear(p->tables[r].recent[1]);
                        }
                }
}

bool pool_has_room(const struct pool *p, enum role role) {
        const struct table *t = &p->tables[role];
        const struct policy_facts any = {0};

        for (size_t k = 0; k < t->count; k++)
                if (policy_may_take(&t->entries[k], &any))
                        return true;
        return false;
}

void pool_take(struct instance *i, enum load_kind kind, uint64_t tokens, struct load *ret_load) {
        assert(!ret_load->at);
        *ret_load = (struct load){.at = i, .kind = kind, .tokens = tokens};
        i->references++;
        if (kind == LOAD_LEG) {
                i->requests++;
                i->tokens += tokens;
        } else {
                i->held_requests++;
                i->held_tokens += tokens;
        }
        refresh(i);
}

void pool_give_back(struct load *l) {
        struct instance *i = l->at;

        if (!i)
                return;
        l->at = NULL;
        if (l->kind == LOAD_LEG) {
                assert(i->requests > 0 && i->tokens >= l->tokens);
                i->requests--;
                i->tokens -= l->tokens;
        } else {
                assert(i->held_requests > 0 && i->held_tokens >= l->tokens);
                i->held_requests--;
                i->held_tokens -= l->tokens;
        }
        i->references--;
        refresh(i);
        leave_if_idle(i);
}

void pool_report_load(struct instance *i, uint64_t requests, uint64_t own, double kv_usage, uint64_t until) {
        i->foreign_requests = requests > own ? requests - own : 0;
        i->foreign_until = until;
        i->kv_usage = kv_usage;
        refresh(i);
}

/* ---- health --------------------------------------------------------------------------------------------------------- */

/* A tenth more or less, so that many gateways and instances do not probe in step. */
static uint64_t jitter(struct pool *p, uint64_t ns) {
        return ns - ns / 10 + rng_below(&p->rng, ns / 5 + 1);
}

static void plan_probe(struct instance *i, uint64_t now) {
        struct pool *p = i->pool;
        uint64_t wait = p->options.probe_interval;

        switch (i->state) {
        case INSTANCE_JOINING:
                wait = p->options.join_interval;
                break;
        case INSTANCE_SUSPECT:
                wait = PROBE_SUSPECT;
                break;
        case INSTANCE_EJECTED:
                wait = PROBE_EJECTED_MIN;
                /* The second good probe in a row decides: no need to wait for it long. */
                for (unsigned k = 0; i->streak[HEALTH_PROBE_OK] == 0 && k < i->backoff && wait < PROBE_EJECTED_MAX; k++)
                        wait *= 2;
                i->backoff++;
                break;
        default:
                break;
        }
        i->next_probe = now + jitter(p, wait);
}

/* Without it, could fewer than half of those of its role that have ever answered be chosen? */
static bool is_needed(const struct instance *i) {
        size_t routable = pool_routable(i->pool, i->role);
        size_t known = routable + pool_in_state(i->pool, i->role, INSTANCE_EJECTED);

        return i->slot != NO_SLOT && (routable - 1) * 2 < known;
}

static void grow_share(struct instance *i, uint64_t now) {
        uint64_t window = i->pool->options.slow_start, age = now - i->risen_at;

        i->share_tenths = age >= window ? 10 : 1 + (unsigned)(age * 9 / window);
        refresh(i);
}

/* It may be chosen from now on. While the whole role is new, nobody has more than it has. */
static void rise(struct instance *i, uint64_t now) {
        struct table *t = table_of(i);

        if (!t->any_risen) {
                t->any_risen = true;
                t->first_risen_at = now;
        }
        if (now - t->first_risen_at < i->pool->options.slow_start)
                return;
        i->risen_at = now;
        grow_share(i, now);
}

/* Returns whether the state changed. */
static bool apply(struct instance *i, enum health_event what, uint64_t now) {
        const struct rule *rule;

        for (int e = 0; e < HEALTH_EVENTS; e++)
                if (is_good((enum health_event)e) != is_good(what))
                        i->streak[e] = 0;
        i->streak[what]++;
        if (!is_good(what))
                i->failures++;
        rule = find_rule(i, what);
        if (!rule)
                return false;
        if (rule->to == INSTANCE_EJECTED && what != HEALTH_PROBE_DEAD && is_needed(i))
                return false;
        set_state(i, rule->to);
        if (rule->to == INSTANCE_HEALTHY && rule->from != INSTANCE_SUSPECT)
                rise(i, now);
        return true;
}

void pool_report(struct instance *i, enum health_event what, uint64_t now) {
        if (i->state == INSTANCE_LEAVING)
                return;
        if (!apply(i, what, now))
                return;
        /* A probe that runs was sent before this was known; its result still counts. Else look at once. */
        if (i->next_probe != UINT64_MAX)
                i->next_probe = i->state == INSTANCE_SUSPECT ? now : i->next_probe;
}

void pool_look_again(struct pool *p, enum role role, uint32_t id, uint64_t now) {
        const struct table *t = &p->tables[role];

        for (size_t k = 0; k < t->all_count; k++)
                if (t->ids[k] == id && t->all[k]->next_probe != UINT64_MAX)
                        t->all[k]->next_probe = now;
}

void pool_stand_back(struct instance *i, uint64_t until) {
        if (until <= i->busy_until)
                return;
        i->busy_until = until;
        place(i);
}

struct instance *pool_take_probe(struct pool *p, uint64_t now) {
        for (int r = 0; r < ROLE_COUNT; r++)
                for (size_t k = 0; k < p->tables[r].all_count; k++) {
                        struct instance *i = p->tables[r].all[k];

                        if (i->state == INSTANCE_LEAVING || i->next_probe > now)
                                continue;
                        i->next_probe = UINT64_MAX;
                        i->references++;
                        return i;
                }
        return NULL;
}

void pool_probe_done(struct instance *i, enum health_event what, uint64_t now) {
        struct pool *p = i->pool;

        i->references--;
        i->next_probe = now;
        if (i->state == INSTANCE_LEAVING) {
                leave_if_idle(i);
                return;
        }
        if (i->state == INSTANCE_JOINING && !is_good(what) && i->added_later && p->options.join_tries > 0 &&
            ++i->join_failures >= p->options.join_tries) {
                pool_remove(p, i);
                return;
        }
        apply(i, what, now);
        plan_probe(i, now);
}

static void tick_recent(struct table *t, uint64_t now) {
        struct prefix_index *old = t->recent[1];

        if (!t->kv || now < t->recent_until)
                return;
        t->recent_until = now + RECENT_SPAN;
        if (prefix_index_count(t->recent[0]) == 0 && prefix_index_count(old) == 0)
                return;
        t->recent[1] = t->recent[0];
        t->recent[0] = old;
        prefix_index_clear(old);
}

void pool_tick(struct pool *p, uint64_t now) {
        for (int r = 0; r < ROLE_COUNT; r++)
                tick_recent(&p->tables[r], now);
        for (int r = 0; r < ROLE_COUNT; r++)
                for (size_t k = 0; k < p->tables[r].all_count; k++) {
                        struct instance *i = p->tables[r].all[k];

                        if (i->foreign_until > 0 && i->foreign_until <= now)
                                pool_report_load(i, 0, 0, 0, 0);
                        if (i->share_tenths < 10)
                                grow_share(i, now);
                        if (i->busy_until == 0 || i->busy_until > now)
                                continue;
                        i->busy_until = 0;
                        place(i);
                }
}
