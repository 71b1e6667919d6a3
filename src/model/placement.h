/* placement.h - which rank holds which routed experts, and how replicas follow the load. Pure: numbers in, numbers out.
 *
 * Every MoE layer has `slots`, a run of them for each rank; a slot holds one expert, and an expert may be in several slots, its
 * replicas. Layers have rows of their own, since their loads differ. Dense layers have rows, too, which nobody reads. */
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define SLOT_EMPTY UINT32_MAX

/* vLLM's --expert-placement-strategy: runs of numbers, or dealt out like cards. */
enum placement_strategy { PLACEMENT_LINEAR, PLACEMENT_ROUND_ROBIN };
const char *placement_strategy_name(enum placement_strategy strategy);

struct placement {
        uint32_t layers, experts, slots, ranks; /* slots of one layer, of all ranks */
        enum placement_strategy strategy;       /* at the start */
        uint32_t *expert_of;                    /* [layers][slots], SLOT_EMPTY: none */
        /* What placement_index() makes of it. */
        uint32_t *first;   /* [layers][experts + 1]: where the holders of an expert begin */
        uint32_t *holders; /* [layers][slots]: ranks, ascending for each expert, none twice */
};

/* The placement at the start: experts 0 to E-1, and for `redundant` more slots the same again, over the ranks; without redundant
 * ones the first ranks have one slot more where they do not divide. The second replica lies on another rank. 0, -EINVAL (more
 * ranks than experts, more replicas than every rank can hold, or slots with redundant ones that do not divide), -ENOMEM. */
int placement_new(uint32_t layers, uint32_t experts, uint32_t redundant, uint32_t ranks,
    enum placement_strategy strategy, struct placement *ret_placement);
int placement_copy(const struct placement *from, struct placement *ret_copy); /* 0 or -ENOMEM */
void placement_free(struct placement *p);                                     /* zeroed is fine */

/* The first slot of a rank; that of the rank after it is where its own end. */
uint32_t placement_first(const struct placement *p, uint32_t rank);
uint32_t *placement_row(const struct placement *p, uint32_t layer);
/* To be called when expert_of of the layer was changed. */
void placement_index(struct placement *p, uint32_t layer);
/* The ranks that hold an expert. */
uint32_t placement_holders(const struct placement *p, uint32_t layer, uint32_t expert, const uint32_t **ret_holders);
/* Where the tokens of `rank` go for an expert: to itself where it has a replica, else to the holders in turn, by the number of
 * the token. Every expert has a holder. */
uint32_t placement_choose(const struct placement *p, uint32_t layer, uint32_t expert, uint32_t rank, uint32_t token);

/* Could so many ranks hold every expert? Counts the smallest. */
bool placement_suffices(const struct placement *p, uint32_t ranks);
/* Give every expert of every layer a slot, at the cost of what is there most often, on ranks that are `present` [ranks]; the slots
 * of the others are emptied. Rows stay as they are where nothing is missing. 0, or -ENOSPC: they have too few slots. */
int placement_complete(struct placement *p, const bool *present);

/* ---- balance.c: EPLB ---------------------------------------------------------------------------------------------------- */

/* Hierarchical where groups divide by nodes: routing groups go to nodes, replicas stay in a node. Else all is one node. */
struct balance_shape {
        uint32_t experts, replicas; /* replicas: of all experts, a multiple of gpus, not fewer than experts */
        uint32_t groups, nodes, gpus;
};
/* Spread one layer's experts by their load [experts]: replicas for those with most load for each, then even loads for all gpus.
 * ret_expert_of [replicas] lists expert numbers gpu by gpu, ret_count [experts] (may be NULL) how many replicas there are. 0,
 * -EINVAL (a shape that does not divide), -ENOMEM; then nothing is written. */
int balance_experts(const struct balance_shape *shape, const float *load, uint32_t *ret_expert_of, uint32_t *ret_count);
/* The gpus of a node are alike: number what balance_experts() gave anew, so that most of it is where it was. `now` [replicas] is
 * what they hold. 0 or -ENOMEM. */
int balance_keep(const struct balance_shape *shape, const uint32_t *now, uint32_t *expert_of);
