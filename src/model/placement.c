/* placement.c - see placement.h. */
#include "model/placement.h"
#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

const char *placement_strategy_name(enum placement_strategy strategy) {
        return strategy == PLACEMENT_LINEAR ? "linear" : "round_robin";
}

uint32_t placement_first(const struct placement *p, uint32_t rank) {
        uint32_t more = p->slots % p->ranks;

        return p->slots / p->ranks * rank + (rank < more ? rank : more);
}

uint32_t *placement_row(const struct placement *p, uint32_t layer) {
        return p->expert_of + (size_t)layer * p->slots;
}

static int allocate(const struct placement *shape, struct placement *ret_placement) {
        struct placement p = *shape;

        p.expert_of = calloc((size_t)p.layers * p.slots, sizeof(*p.expert_of));
        p.holders = calloc((size_t)p.layers * p.slots, sizeof(*p.holders));
        p.first = calloc((size_t)p.layers * (p.experts + 1), sizeof(*p.first));
        if (!p.expert_of || !p.holders || !p.first) {
                placement_free(&p);
                return -ENOMEM;
        }
        *ret_placement = p;
        return 0;
}

/* The rank that the i-th of the experts and their replicas is dealt to. Where experts divide by ranks the deal begins one rank
 * later in every round, or replicas would meet. */
static uint32_t dealt_to(const struct placement *p, uint32_t i) {
        return p->experts % p->ranks ? i % p->ranks : (i % p->experts + i / p->experts) % p->ranks;
}

static void deal(const struct placement *p, uint32_t *row) {
        for (uint32_t rank = 0, slot = 0; rank < p->ranks; rank++)
                for (uint32_t i = 0; i < p->slots; i++)
                        if (dealt_to(p, i) == rank)
                                row[slot++] = i % p->experts;
}

int placement_new(uint32_t layers, uint32_t experts, uint32_t redundant, uint32_t ranks,
    enum placement_strategy strategy, struct placement *ret_placement) {
        struct placement p = {
            .layers = layers, .experts = experts, .slots = experts + redundant, .ranks = ranks, .strategy = strategy};
        int r;

        if (ranks == 0 || experts == 0 || ranks > experts || (redundant && p.slots % ranks) ||
            (uint64_t)redundant > (uint64_t)experts * (ranks - 1))
                return -EINVAL;
        r = allocate(&p, &p);
        if (r < 0)
                return r;
        for (uint32_t layer = 0; layer < layers; layer++) {
                uint32_t *row = placement_row(&p, layer);

                if (strategy == PLACEMENT_ROUND_ROBIN)
                        deal(&p, row);
                else
                        for (uint32_t i = 0; i < p.slots; i++)
                                row[i] = i % experts;
                placement_index(&p, layer);
        }
        *ret_placement = p;
        return 0;
}

int placement_copy(const struct placement *from, struct placement *ret_copy) {
        struct placement p;
        int r = allocate(from, &p);

        if (r < 0)
                return r;
        memcpy(p.expert_of, from->expert_of, (size_t)p.layers * p.slots * sizeof(*p.expert_of));
        memcpy(p.holders, from->holders, (size_t)p.layers * p.slots * sizeof(*p.holders));
        memcpy(p.first, from->first, (size_t)p.layers * (p.experts + 1) * sizeof(*p.first));
        *ret_copy = p;
        return 0;
}

void placement_free(struct placement *p) {
        free(p->expert_of);
        free(p->holders);
        free(p->first);
        *p = (struct placement){0};
}

/* ---- who holds what ----------------------------------------------------------------------------------------------------- */

/* Calls for every expert of every rank once: slots of one rank that hold the same count as one. */
static bool seen_before(const struct placement *p, const uint32_t *row, uint32_t rank, uint32_t slot) {
        for (uint32_t i = placement_first(p, rank); i < slot; i++)
                if (row[i] == row[slot])
                        return true;
        return false;
}

/* A counting sort of the slots by expert; ranks come in ascending order. */
void placement_index(struct placement *p, uint32_t layer) {
        const uint32_t *row = placement_row(p, layer);
        uint32_t *first = p->first + (size_t)layer * (p->experts + 1), *holders = p->holders + (size_t)layer * p->slots;

        memset(first, 0, (p->experts + 1) * sizeof(*first));
        for (uint32_t rank = 0; rank < p->ranks; rank++)
                for (uint32_t i = placement_first(p, rank); i < placement_first(p, rank + 1); i++)
                        if (row[i] != SLOT_EMPTY && !seen_before(p, row, rank, i))
                                first[row[i] + 1]++;
        for (uint32_t e = 0; e < p->experts; e++)
                first[e + 1] += first[e];
        for (uint32_t rank = 0; rank < p->ranks; rank++)
                for (uint32_t i = placement_first(p, rank); i < placement_first(p, rank + 1); i++)
                        if (row[i] != SLOT_EMPTY && !seen_before(p, row, rank, i))
                                holders[first[row[i]]++] = rank;
        memmove(first + 1, first, p->experts * sizeof(*first));
        first[0] = 0;
}

uint32_t placement_holders(const struct placement *p, uint32_t layer, uint32_t expert, const uint32_t **ret_holders) {
        const uint32_t *first = p->first + (size_t)layer * (p->experts + 1);

        *ret_holders = p->holders + (size_t)layer * p->slots + first[expert];
        return first[expert + 1] - first[expert];
}

uint32_t placement_choose(const struct placement *p, uint32_t layer, uint32_t expert, uint32_t rank, uint32_t token) {
        const uint32_t *holders;
        uint32_t n = placement_holders(p, layer, expert, &holders);

        assert(n > 0);
        for (uint32_t i = 0; i < n; i++)
                if (holders[i] == rank)
                        return rank;
        return holders[(rank + token) % n];
}

/* ---- when ranks are missing --------------------------------------------------------------------------------------------- */

bool placement_suffices(const struct placement *p, uint32_t ranks) {
        return (uint64_t)ranks * (p->slots / p->ranks) >= p->experts;
}

/* The slot that can best be spared: an empty one, else of the expert with most replicas. SLOT_EMPTY: none. */
static uint32_t spare_slot(const struct placement *p, const uint32_t *row, const bool *present, const uint32_t *count) {
        uint32_t best = SLOT_EMPTY, most = 1;

        for (uint32_t rank = 0; rank < p->ranks; rank++)
                for (uint32_t i = placement_first(p, rank); present[rank] && i < placement_first(p, rank + 1); i++) {
                        if (row[i] == SLOT_EMPTY)
                                return i;
                        if (count[row[i]] > most) {
                                most = count[row[i]];
                                best = i;
                        }
                }
        return best;
}

static int complete_layer(struct placement *p, uint32_t layer, const bool *present, uint32_t *count) {
        uint32_t *row = placement_row(p, layer);

        memset(count, 0, p->experts * sizeof(*count));
        for (uint32_t rank = 0; rank < p->ranks; rank++)
                for (uint32_t i = placement_first(p, rank); i < placement_first(p, rank + 1); i++) {
                        if (!present[rank])
                                row[i] = SLOT_EMPTY;
                        else if (row[i] != SLOT_EMPTY)
                                count[row[i]]++;
                }
        for (uint32_t e = 0; e < p->experts; e++) {
                uint32_t slot;

                if (count[e])
                        continue;
                slot = spare_slot(p, row, present, count);
                if (slot == SLOT_EMPTY)
                        return -ENOSPC;
                if (row[slot] != SLOT_EMPTY)
                        count[row[slot]]--;
                row[slot] = e;
                count[e] = 1;
        }
        placement_index(p, layer);
        return 0;
}

int placement_complete(struct placement *p, const bool *present) {
        uint32_t *count = calloc(p->experts, sizeof(*count));
        int r = count ? 0 : -ENOMEM;

        for (uint32_t layer = 0; r == 0 && layer < p->layers; layer++)
                r = complete_layer(p, layer, present, count);
        free(count);
        return r;
}
