/* moves.c - the load of experts, and experts that move after it (EPLB) while the group serves.
 *
 *     all ranks                                                         at a step whose beginning somebody's message says
 *       loads of the window ──> rank 0 ──> the new placement ──> all      REBALANCE
 *       layer by layer: each fetches what it lacks, beside its steps
 *       all switch the layer                                              READY, everybody's
 *
 * Messages of a step reach all ranks or end the epoch, so all switch at the same step; where an epoch ends in between, ranks may
 * have switched or not, and say what they hold when they join the next one (members.c). One layer's new experts at a time are in
 * memory beside those of the slots. */
#include "base/json.h"
#include "comm/group_core.h"
#include <errno.h>
#include <stdatomic.h>
#include <stdlib.h>

/* The window moves on by such a part of itself. */
#define BUCKETS 16u
/* A layer is left as it is unless the most loaded rank would have so much less. */
#define WORTH 0.95

enum pack_state { PACKING, PACKED, NOT_PACKED };

struct moves {
        /* Tokens of this rank for each expert, of the window and of its parts. Counters are the engine thread's to write; others
         * look at them. */
        _Atomic uint32_t *load; /* [layers][experts] */
        uint32_t *buckets;      /* [BUCKETS][layers][experts] */
        uint32_t bucket, steps_in_bucket, bucket_steps;
        uint32_t steps; /* since the last rebalance */
        _Atomic uint64_t pairs;

        _Atomic bool wanted, under_way;
        bool moving; /* to `target` */
        bool said;   /* the others know that this layer is ready here */
        uint32_t layer;
        uint32_t came; /* experts to this rank */
        struct placement target;
        _Atomic uint64_t rebalances, moved;

        /* The thread that packs a layer: written by it until `state` says so. */
        pthread_t thread;
        bool running;
        _Atomic bool stop;
        _Atomic int state;
        struct expert_batch *batch;
        struct error error;
};

static size_t counters(const struct group *g) {
        return (size_t)g->placement.layers * g->placement.experts;
}

int moves_new(struct group *g) {
        struct moves *v = calloc(1, sizeof(*v));
        uint32_t window = g->options.window_steps ? g->options.window_steps : GROUP_WINDOW_STEPS;
        size_t n = counters(g) ? counters(g) : 1;

        g->moves = v;
        if (!v)
                return -ENOMEM;
        v->bucket_steps = (window + BUCKETS - 1) / BUCKETS;
        v->load = calloc(n, sizeof(*v->load));
        v->buckets = calloc(BUCKETS * n, sizeof(*v->buckets));
        return v->load && v->buckets ? 0 : -ENOMEM;
}

void moves_free(struct group *g) {
        struct moves *v = g->moves;

        if (!v)
                return;
        moves_stop(g);
        free(v->load);
        free(v->buckets);
        free(v);
}

/* ---- counting ------------------------------------------------------------------------------------------------------------ */

static void count(_Atomic uint32_t *at, uint32_t more) {
        atomic_store_explicit(at, atomic_load_explicit(at, memory_order_relaxed) + more, memory_order_relaxed);
}

void moves_count(struct group *g, uint32_t layer, const uint32_t *ids, size_t n) {
        struct moves *v = g->moves;
        size_t row = (size_t)layer * g->placement.experts;
        uint32_t *bucket = v->buckets + v->bucket * counters(g) + row;

        for (size_t i = 0; i < n; i++) {
                bucket[ids[i]]++;
                count(&v->load[row + ids[i]], 1);
        }
}

void moves_computed(struct group *g, size_t pairs) {
        atomic_fetch_add_explicit(&g->moves->pairs, pairs, memory_order_relaxed);
}

/* A step goes by; the oldest part of the window does, too, now and then. */
static void move_window(struct group *g) {
        struct moves *v = g->moves;
        size_t n = counters(g);

        v->steps++;
        if (++v->steps_in_bucket < v->bucket_steps)
                return;
        v->steps_in_bucket = 0;
        v->bucket = (v->bucket + 1) % BUCKETS;
        for (size_t i = 0; i < n; i++) {
                count(&v->load[i], -v->buckets[v->bucket * n + i]);
                v->buckets[v->bucket * n + i] = 0;
        }
}

/* ---- what is to be where ------------------------------------------------------------------------------------------------- */

static double heaviest(const struct placement *p, uint32_t layer, const uint32_t *row, const float *load,
    const bool *there, uint32_t *copies, double *ret_mean) {
        double most = 0, all = 0;
        uint32_t ranks = 0;

        memset(copies, 0, p->experts * sizeof(*copies));
        for (uint32_t i = 0; i < p->slots; i++)
                if (row[i] != SLOT_EMPTY)
                        copies[row[i]]++;
        for (uint32_t rank = 0; rank < p->ranks; rank++) {
                double sum = 0;

                for (uint32_t i = placement_first(p, rank); there[rank] && i < placement_first(p, rank + 1); i++)
                        if (row[i] != SLOT_EMPTY)
                                sum += load[row[i]] / copies[row[i]];
                ranks += there[rank];
                all += sum;
                most = sum > most ? sum : most;
        }
        *ret_mean = ranks ? all / ranks : 0;
        return most;
}

/* Slots of those who are there, as one run, and back. */
static void gather_slots(const struct group *g, const uint32_t *row, uint32_t *run) {
        const struct placement *p = &g->placement;

        for (uint32_t rank = 0, n = 0; rank < p->ranks; rank++)
                for (uint32_t i = placement_first(p, rank); g->present[rank] && i < placement_first(p, rank + 1); i++)
                        run[n++] = row[i];
}

static void scatter_slots(const struct group *g, const uint32_t *run, uint32_t *row) {
        const struct placement *p = &g->placement;

        for (uint32_t rank = 0, n = 0; rank < p->ranks; rank++)
                for (uint32_t i = placement_first(p, rank); g->present[rank] && i < placement_first(p, rank + 1); i++)
                        row[i] = run[n++];
}

/* Loads of ranks over all layers: the mean, and the largest as it is and as it will be. */
struct outlook {
        double mean, now, then;
};

/* One layer of the target, which is as it was so far. */
static int plan_layer(struct group *g, struct placement *target, uint32_t layer, const float *load, uint32_t *scratch,
    struct outlook *o) {
        const struct placement *p = &g->placement;
        struct balance_shape shape = {.experts = p->experts,
            .replicas = p->slots / p->ranks * g->present_count,
            .groups = model_config(g->model)->groups ? model_config(g->model)->groups : 1,
            .nodes = g->present_count == p->ranks ? g->nodes : 1,
            .gpus = g->present_count};
        uint32_t *now = scratch, *next = scratch + p->slots, *row = placement_row(target, layer);
        double mean, before = heaviest(p, layer, row, load, g->present, scratch, &mean), after;
        int r;

        if (before == 0)
                return 0;
        if (p->experts % shape.groups || shape.gpus % shape.nodes)
                shape.groups = shape.nodes = 1;
        gather_slots(g, row, now);
        r = balance_experts(&shape, load, next, NULL);
        if (r == 0)
                r = balance_keep(&shape, now, next);
        if (r < 0)
                return r;
        scatter_slots(g, next, row);
        after = heaviest(p, layer, row, load, g->present, next, &mean);
        if (after > WORTH * before) {
                scatter_slots(g, now, row);
                after = before;
        }
        o->mean += mean;
        o->now += before;
        o->then += after;
        return 0;
}

/* Rank 0: the loads of all in `loads`, one rank after the other. */
static int plan(struct group *g, const uint32_t *loads, struct placement *target) {
        const struct placement *p = &g->placement;
        float *load = calloc(p->experts, sizeof(*load));
        uint32_t *scratch = calloc(2 * (size_t)p->slots + p->experts, sizeof(*scratch));
        struct outlook o = {0};
        int r = load && scratch ? 0 : -ENOMEM;

        for (uint32_t layer = 0; r == 0 && layer < p->layers; layer++) {
                for (uint32_t e = 0; e < p->experts; e++) {
                        uint64_t sum = 0;

                        for (uint32_t rank = 0; rank < p->ranks; rank++)
                                if (g->present[rank])
                                        sum += loads[rank * counters(g) + (size_t)layer * p->experts + e];
                        load[e] = (float)sum;
                }
                r = plan_layer(g, target, layer, load, scratch, &o);
        }
        if (r == 0 && g->options.tell_balance && o.now > 0)
                log_info(g->options.log, "balancedness of the ranks' loads: %.3f, expected after the rebalance: %.3f",
                    o.mean / o.now, o.mean / o.then);
        free(load);
        free(scratch);
        return r;
}

/* ---- telling one another --------------------------------------------------------------------------------------------------- */

/* Everybody's load to rank 0. On rank 0 `loads` has room for all. */
static int exchange_loads(struct group *g, uint32_t *loads) {
        uint32_t *own = loads + (g->options.rank == 0 ? 0 : g->options.rank * counters(g));

        for (size_t i = 0; i < counters(g); i++)
                own[i] = atomic_load_explicit(&g->moves->load[i], memory_order_relaxed);
        group_clear_jobs(g);
        for (uint32_t i = 0; i < g->options.size; i++)
                if (g->options.rank == 0) {
                        g->jobs[i].in = (char *)(loads + i * counters(g));
                        g->jobs[i].in_bytes = counters(g) * sizeof(*loads);
                } else if (i == 0) {
                        g->jobs[i].out = (const char *)own;
                        g->jobs[i].out_bytes = counters(g) * sizeof(*loads);
                }
        return group_exchange(g, false);
}

/* Rank 0's placement to everybody. */
static int exchange_target(struct group *g, struct placement *target) {
        size_t bytes = (size_t)target->layers * target->slots * sizeof(*target->expert_of);

        group_clear_jobs(g);
        for (uint32_t i = 0; i < g->options.size; i++)
                if (g->options.rank == 0) {
                        g->jobs[i].out = (const char *)target->expert_of;
                        g->jobs[i].out_bytes = bytes;
                } else if (i == 0) {
                        g->jobs[i].in = (char *)target->expert_of;
                        g->jobs[i].in_bytes = bytes;
                }
        return group_exchange(g, false);
}

static int agree_on_target(struct group *g, struct placement *ret_target) {
        struct placement target = {0}, checked = {0};
        uint32_t *loads = calloc((size_t)g->options.size * counters(g), sizeof(*loads));
        int r = loads ? placement_copy(&g->placement, &target) : -ENOMEM;

        if (r == 0)
                r = exchange_loads(g, loads);
        if (r == 0 && g->options.rank == 0)
                r = plan(g, loads, &target);
        if (r == 0)
                r = exchange_target(g, &target);
        if (r == 0)
                r = members_take_placement(g,
                    slice_of(target.expert_of, (size_t)target.layers * target.slots * sizeof(*target.expert_of)),
                    &checked);
        free(loads);
        placement_free(&target);
        if (r < 0) {
                group_break(g, r == -EPROTO ? "rank 0's new placement leaves experts out" : "out of memory");
                return r;
        }
        *ret_target = checked;
        return 0;
}

/* ---- layer by layer -------------------------------------------------------------------------------------------------------- */

static const uint32_t *own_slots(const struct group *g, const struct placement *p, uint32_t *ret_count) {
        uint32_t first = placement_first(p, g->options.rank);

        *ret_count = placement_first(p, g->options.rank + 1) - first;
        return placement_row(p, g->moves->layer) + first;
}

static void *pack_layer(void *context) {
        struct group *g = context;
        struct moves *v = g->moves;
        uint32_t n;
        const uint32_t *experts = own_slots(g, &v->target, &n);
        int r = model_fetch_experts(g->model, v->layer, experts, n, &v->stop, &v->batch, &v->error);

        atomic_store(&v->state, r == 0 ? PACKED : NOT_PACKED);
        if (g->options.wake)
                g->options.wake(g->options.wake_context);
        return NULL;
}

/* Wait for the thread that packs, which may have been told to stop. */
static void join_packer(struct moves *v) {
        if (v->running)
                pthread_join(v->thread, NULL);
        v->running = false;
}

void moves_stop(struct group *g) {
        struct moves *v = g->moves;

        if (!v || !v->moving)
                return;
        atomic_store(&v->stop, true);
        join_packer(v);
        expert_batch_free(v->batch);
        v->batch = NULL;
        placement_free(&v->target);
        v->moving = false;
        atomic_store(&v->under_way, false);
}

static bool layer_moves(const struct group *g, uint32_t layer) {
        return memcmp(placement_row(&g->moves->target, layer), placement_row(&g->placement, layer),
                   g->placement.slots * sizeof(uint32_t)) != 0;
}

/* Begin with the next layer that changes anywhere, at v->layer or after it. */
static void next_layer(struct group *g) {
        struct moves *v = g->moves;

        while (v->layer < g->placement.layers && !layer_moves(g, v->layer))
                v->layer++;
        v->said = false;
        if (v->layer == g->placement.layers) {
                log_info(g->options.log, "rank %u: experts are rebalanced, %u came here", g->options.rank, v->came);
                atomic_fetch_add(&v->rebalances, 1);
                moves_stop(g);
                return;
        }
        atomic_store(&v->state, PACKING);
        atomic_store(&v->stop, false);
        v->running = pthread_create(&v->thread, NULL, pack_layer, g) == 0;
        if (!v->running) {
                error_set(&v->error, -EAGAIN, "no thread to pack experts");
                atomic_store(&v->state, NOT_PACKED);
        }
}

static int begin(struct group *g) {
        struct moves *v = g->moves;
        int r = agree_on_target(g, &v->target);

        v->steps = 0;
        atomic_store(&v->wanted, false);
        if (r < 0)
                return r;
        v->moving = true;
        atomic_store(&v->under_way, true);
        v->layer = v->came = 0;
        next_layer(g);
        return 0;
}

static void switch_layer(struct group *g) {
        struct moves *v = g->moves;
        uint32_t n, came = 0, slots = g->placement.slots;
        const uint32_t *experts = own_slots(g, &v->target, &n);

        join_packer(v);
        for (uint32_t i = 0; i < n; i++)
                came += experts[i] != SLOT_EMPTY && !model_expert(g->model, v->layer, experts[i]);
        v->came += came;
        atomic_fetch_add(&v->moved, came);
        model_adopt_experts(g->model, v->layer, experts, n, v->batch);
        v->batch = NULL;
        pthread_mutex_lock(&g->shown);
        memcpy(placement_row(&g->placement, v->layer), placement_row(&v->target, v->layer), slots * sizeof(uint32_t));
        placement_index(&g->placement, v->layer);
        pthread_mutex_unlock(&g->shown);
        v->layer++;
        next_layer(g);
}

static void give_up(struct group *g, bool here) {
        struct moves *v = g->moves;

        if (here)
                log_error(g->options.log, "rank %u cannot take experts: %s", g->options.rank, v->error.text);
        log_warn(g->options.log, "rank %u: experts stay where they are from layer %u on", g->options.rank, v->layer);
        moves_stop(g);
}

/* ---- in steps -------------------------------------------------------------------------------------------------------------- */

uint32_t moves_say(struct group *g) {
        struct moves *v = g->moves;
        int state = v->moving ? atomic_load(&v->state) : PACKING;
        uint32_t flags = 0;

        if (!g->options.balance)
                return 0;
        if (g->options.rank == 0 && g->options.interval_steps && v->steps >= g->options.interval_steps && !v->moving)
                atomic_store(&v->wanted, true);
        if (!v->moving && atomic_load(&v->wanted))
                flags |= SAY_REBALANCE;
        if (state == PACKED) {
                flags |= SAY_READY;
                v->said = true;
        }
        return state == NOT_PACKED ? flags | SAY_GIVE_UP : flags;
}

bool moves_has_word(const struct group *g) {
        const struct moves *v = g->moves;

        if (!g->options.balance)
                return false;
        return v->moving ? atomic_load(&v->state) != PACKING && !v->said : atomic_load(&v->wanted);
}

int moves_at_step(struct group *g, uint32_t any, uint32_t all) {
        struct moves *v = g->moves;

        if (any & SAY_WORK)
                move_window(g);
        if (any & SAY_GIVE_UP && v->moving)
                give_up(g, atomic_load(&v->state) == NOT_PACKED);
        else if (all & SAY_READY)
                switch_layer(g);
        else if (any & SAY_REBALANCE && !v->moving)
                return begin(g);
        return 0;
}

int group_rebalance(struct group *g) {
        if (!g->options.balance)
                return -ENOTSUP;
        if (atomic_load(&g->moves->under_way) || atomic_exchange(&g->moves->wanted, true))
                return -EALREADY;
        if (g->options.wake)
                g->options.wake(g->options.wake_context);
        return 0;
}

/* ---- looking in ------------------------------------------------------------------------------------------------------------ */

static void read_load(const struct group *g, uint32_t layer, float *load) {
        for (uint32_t e = 0; e < g->placement.experts; e++)
                load[e] = (float)atomic_load_explicit(
                    &g->moves->load[(size_t)layer * g->placement.experts + e], memory_order_relaxed);
}

/* Over all layers: the means over the largest loads. `shown` is held. */
static double balancedness(struct group *g) {
        const struct placement *p = &g->placement;
        float *load = calloc(p->experts + 1, sizeof(*load));
        uint32_t *copies = calloc(p->experts + 1, sizeof(*copies));
        double most = 0, mean = 0, one;

        for (uint32_t layer = 0; load && copies && layer < p->layers; layer++) {
                read_load(g, layer, load);
                most += heaviest(p, layer, placement_row(p, layer), load, g->present, copies, &one);
                mean += one;
        }
        free(load);
        free(copies);
        return most > 0 ? mean / most : 1;
}

void group_tell(struct group *g, struct group_figures *ret_figures) {
        struct moves *v = g->moves;

        pthread_mutex_lock(&g->shown);
        *ret_figures = (struct group_figures){.epoch = g->shown_epoch,
            .size = g->options.size,
            .present = g->present_count,
            .rebalances = atomic_load(&v->rebalances),
            .experts_moved = atomic_load(&v->moved),
            .pairs = atomic_load_explicit(&v->pairs, memory_order_relaxed),
            .experts = g->placement.experts,
            .balance = g->options.balance,
            .moving = atomic_load(&v->under_way),
            .balancedness = balancedness(g)};
        pthread_mutex_unlock(&g->shown);
}

void group_expert_tokens(struct group *g, uint64_t *tokens) {
        for (uint32_t e = 0; e < g->placement.experts; e++)
                tokens[e] = 0;
        for (size_t i = 0; i < counters(g); i++)
                tokens[i % g->placement.experts] += atomic_load_explicit(&g->moves->load[i], memory_order_relaxed);
}

static void describe_layer(struct group *g, uint32_t layer, struct json_writer *w) {
        const struct placement *p = &g->placement;
        const uint32_t *row = placement_row(p, layer);

        json_open(w, '{');
        json_key(w, "layer");
        json_u64(w, layer);
        json_key(w, "experts");
        json_open(w, '[');
        for (uint32_t rank = 0; rank < p->ranks; rank++) {
                json_open(w, '[');
                for (uint32_t i = placement_first(p, rank); i < placement_first(p, rank + 1); i++)
                        if (row[i] != SLOT_EMPTY)
                                json_u64(w, row[i]);
                json_close(w, ']');
        }
        json_close(w, ']');
        json_key(w, "tokens");
        json_open(w, '[');
        for (uint32_t e = 0; e < p->experts; e++)
                json_u64(
                    w, atomic_load_explicit(&g->moves->load[(size_t)layer * p->experts + e], memory_order_relaxed));
        json_close(w, ']');
        json_close(w, '}');
}

void group_describe(struct group *g, struct buf *out) {
        struct json_writer w = {.out = out};

        pthread_mutex_lock(&g->shown);
        json_open(&w, '{');
        json_key(&w, "epoch");
        json_u64(&w, g->shown_epoch);
        json_key(&w, "rank");
        json_u64(&w, g->options.rank);
        json_key(&w, "ranks");
        json_open(&w, '[');
        for (uint32_t i = 0; i < g->options.size; i++)
                if (g->present[i])
                        json_u64(&w, i);
        json_close(&w, ']');
        json_key(&w, "rebalances");
        json_u64(&w, atomic_load(&g->moves->rebalances));
        json_key(&w, "layers");
        json_open(&w, '[');
        for (uint32_t layer = 0; g->model && layer < g->placement.layers; layer++)
                if (model_layer_is_moe(model_config(g->model), layer))
                        describe_layer(g, layer, &w);
        json_close(&w, ']');
        json_close(&w, '}');
        pthread_mutex_unlock(&g->shown);
}
