/* balance.c - EPLB: which experts get replicas, and which gpus (here: ranks) hold what, by the load that was measured.
 *
 * The way is the published one: whole routing groups go to nodes, within a node the experts with most load for each replica get
 * the replicas, and these go to the node's gpus, heaviest first, always to the lightest that has room. Loads are float and ties go
 * to the first, as there: the same loads give the same tables. */
#include "model/placement.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>

struct item {
        float load;
        uint32_t number;
};

/* Memory of one run, all of it. */
struct scratch {
        struct item *items;       /* [replicas], of what is packed at the moment */
        float *bin_load;          /* [gpus or nodes] */
        uint32_t *bin_count;      /* [gpus or nodes] */
        float *load;              /* [groups or experts or replicas] */
        uint32_t *bin, *place;    /* [replicas]: of each item, its bin and its place in it */
        uint32_t *sorted;         /* [experts]: experts by node, group by group */
        uint32_t *replica_of;     /* [replicas of a node]: of an expert, counted within the node */
        uint32_t *count;          /* [experts of a node] */
        uint32_t *expert_of, *of; /* [replicas], [experts]: the results */
};

static void scratch_free(struct scratch *s) {
        free(s->items);
        free(s->bin_load);
        free(s->bin_count);
        free(s->load);
        free(s->bin);
        free(s->place);
        free(s->sorted);
        free(s->replica_of);
        free(s->count);
        free(s->expert_of);
        free(s->of);
}

static int scratch_new(const struct balance_shape *b, struct scratch *s) {
        uint32_t most = b->replicas > b->groups ? b->replicas : b->groups;

        *s = (struct scratch){.items = calloc(most, sizeof(*s->items)),
            .bin_load = calloc(b->gpus, sizeof(*s->bin_load)),
            .bin_count = calloc(b->gpus, sizeof(*s->bin_count)),
            .load = calloc(most, sizeof(*s->load)),
            .bin = calloc(most, sizeof(*s->bin)),
            .place = calloc(most, sizeof(*s->place)),
            .sorted = calloc(b->experts, sizeof(*s->sorted)),
            .replica_of = calloc(b->replicas, sizeof(*s->replica_of)),
            .count = calloc(b->experts, sizeof(*s->count)),
            .expert_of = calloc(b->replicas, sizeof(*s->expert_of)),
            .of = calloc(b->experts, sizeof(*s->of))};
        return s->items && s->bin_load && s->bin_count && s->load && s->bin && s->place && s->sorted && s->replica_of &&
                       s->count && s->expert_of && s->of
                   ? 0
                   : -ENOMEM;
}

static int heavier(const void *a, const void *b) {
        const struct item *x = a, *y = b;

        if (x->load != y->load)
                return x->load > y->load ? -1 : 1;
        return x->number < y->number ? -1 : 1;
}

/* s->load [n] into `bins` bins of equally many: s->bin and s->place. */
static void pack(struct scratch *s, uint32_t n, uint32_t bins) {
        const uint32_t room = n / bins;

        for (uint32_t i = 0; i < n; i++) {
                s->items[i] = (struct item){s->load[i], i};
                s->bin[i] = i;
                s->place[i] = 0;
        }
        if (room == 1)
                return;
        qsort(s->items, n, sizeof(*s->items), heavier);
        memset(s->bin_load, 0, bins * sizeof(*s->bin_load));
        memset(s->bin_count, 0, bins * sizeof(*s->bin_count));
        for (uint32_t i = 0; i < n; i++) {
                uint32_t at = UINT32_MAX;

                for (uint32_t k = 0; k < bins; k++)
                        if (s->bin_count[k] < room && (at == UINT32_MAX || s->bin_load[k] < s->bin_load[at]))
                                at = k;
                s->bin[s->items[i].number] = at;
                s->place[s->items[i].number] = s->bin_count[at]++;
                s->bin_load[at] += s->items[i].load;
        }
}

/* Experts [experts] by their load: one replica each, and each further one to whom has most load for each. */
static void replicate(struct scratch *s, const float *load, uint32_t experts, uint32_t replicas) {
        for (uint32_t e = 0; e < experts; e++) {
                s->replica_of[e] = e;
                s->count[e] = 1;
        }
        for (uint32_t i = experts; i < replicas; i++) {
                uint32_t at = 0;

                for (uint32_t e = 1; e < experts; e++)
                        if (load[e] / (float)s->count[e] > load[at] / (float)s->count[at])
                                at = e;
                s->replica_of[i] = at;
                s->count[at]++;
        }
}

/* Groups to nodes: s->sorted lists the experts node by node. */
static void sort_groups(
    struct scratch *s, const struct balance_shape *b, uint32_t groups, uint32_t nodes, const float *load) {
        const uint32_t each = b->experts / groups, room = groups / nodes;

        for (uint32_t g = 0; g < groups; g++) {
                s->load[g] = 0;
                for (uint32_t i = 0; i < each; i++)
                        s->load[g] += load[g * each + i];
        }
        pack(s, groups, nodes);
        for (uint32_t g = 0; g < groups; g++)
                for (uint32_t i = 0; i < each; i++)
                        s->sorted[(s->bin[g] * room + s->place[g]) * each + i] = g * each + i;
}

static void balance_node(
    struct scratch *s, const struct balance_shape *b, uint32_t node, uint32_t nodes, const float *load) {
        const uint32_t experts = b->experts / nodes, replicas = b->replicas / nodes, gpus = b->gpus / nodes,
                       room = replicas / gpus;
        const uint32_t *mine = s->sorted + (size_t)node * experts;

        for (uint32_t i = 0; i < experts; i++)
                s->load[i] = load[mine[i]];
        replicate(s, s->load, experts, replicas);
        for (uint32_t i = 0; i < experts; i++)
                s->of[mine[i]] = s->count[i];
        for (uint32_t i = replicas; i-- > 0;) /* from behind: the first `experts` are still wanted */
                s->load[i] = s->load[s->replica_of[i]] / (float)s->count[s->replica_of[i]];
        pack(s, replicas, gpus);
        for (uint32_t i = 0; i < replicas; i++)
                s->expert_of[node * replicas + s->bin[i] * room + s->place[i]] = mine[s->replica_of[i]];
}

static bool divides(const struct balance_shape *b) {
        return b->experts && b->gpus && b->groups && b->nodes && b->replicas >= b->experts &&
               b->replicas % b->gpus == 0 &&
               (b->groups % b->nodes || (b->experts % b->groups == 0 && b->gpus % b->nodes == 0));
}

int balance_experts(
    const struct balance_shape *shape, const float *load, uint32_t *ret_expert_of, uint32_t *ret_count) {
        bool whole = shape->nodes == 0 || shape->groups % shape->nodes != 0;
        uint32_t nodes = whole ? 1 : shape->nodes, groups = whole ? 1 : shape->groups;
        struct scratch s;
        int r;

        if (!divides(shape))
                return -EINVAL;
        r = scratch_new(shape, &s);
        if (r == 0) {
                sort_groups(&s, shape, groups, nodes, load);
                for (uint32_t node = 0; node < nodes; node++)
                        balance_node(&s, shape, node, nodes, load);
                memcpy(ret_expert_of, s.expert_of, shape->replicas * sizeof(*ret_expert_of));
                if (ret_count)
                        memcpy(ret_count, s.of, shape->experts * sizeof(*ret_count));
        }
        scratch_free(&s);
        return r;
}

/* ---- keeping ------------------------------------------------------------------------------------------------------------ */

/* How many of the experts in `a` are in `b`, of `n` each. */
static uint32_t in_common(const uint32_t *a, const uint32_t *b, uint32_t n) {
        uint32_t same = 0;

        for (uint32_t i = 0; i < n; i++)
                for (uint32_t k = 0; k < n; k++)
                        if (a[i] == b[k]) {
                                same++;
                                break;
                        }
        return same;
}

/* The gpus of a node: again and again the new run that has most in common with what a gpu holds goes to that gpu. */
static void keep_node(
    const uint32_t *now, uint32_t *expert_of, uint32_t *kept, bool *given, bool *taken, uint32_t gpus, uint32_t room) {
        memset(given, 0, gpus * sizeof(*given));
        memset(taken, 0, gpus * sizeof(*taken));
        for (uint32_t n = 0; n < gpus; n++) {
                uint32_t from = 0, to = 0, most = 0;
                bool any = false;

                for (uint32_t i = 0; i < gpus; i++)
                        for (uint32_t k = 0; k < gpus; k++) {
                                uint32_t same;

                                if (given[i] || taken[k])
                                        continue;
                                same = in_common(expert_of + i * room, now + k * room, room);
                                if (!any || same > most) {
                                        any = true;
                                        most = same;
                                        from = i;
                                        to = k;
                                }
                        }
                given[from] = taken[to] = true;
                memcpy(kept + to * room, expert_of + from * room, room * sizeof(*kept));
        }
        memcpy(expert_of, kept, (size_t)gpus * room * sizeof(*kept));
}

int balance_keep(const struct balance_shape *shape, const uint32_t *now, uint32_t *expert_of) {
        uint32_t nodes = shape->groups % shape->nodes ? 1 : shape->nodes, gpus = shape->gpus / nodes,
                 each = shape->replicas / nodes;
        uint32_t *kept = calloc(each, sizeof(*kept));
        bool *given = calloc(2 * (size_t)gpus, sizeof(*given));
        int r = kept && given ? 0 : -ENOMEM;

        for (uint32_t node = 0; r == 0 && node < nodes; node++)
                keep_node(now + node * each, expert_of + node * each, kept, given, given + gpus, gpus, each / gpus);
        free(kept);
        free(given);
        return r;
}
