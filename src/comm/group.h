/* group.h - data-parallel ranks that share experts: rendezvous, agreement on steps, and the exchange of tokens with experts.
 *
 * Every rank has its own requests, KV and scheduler. A MoE layer needs all of them, so they step together: a rank with work says
 * so to the others, all run a step, those without work with no rows, and all sleep when nobody has work. Messages of a step
 * double as the wake: a rank that sleeps joins the step it is told of.
 *
 * Rank 0 listens at the group's address; the others come to it in any order, and it introduces them to one another. A link that
 * breaks, or a rank that says nothing for too long, ends the epoch: every rank comes back to rank 0, and the group is formed
 * anew when all are there, or without those who stay away when the slots of the others can hold every expert. Nothing is in flight
 * then: what a step was to give is lost, and its caller is told. A rank that comes back ends the epoch between two steps.
 *
 * Who holds what is a placement that rank 0 makes out of what each rank holds. With replicas and a checkpoint that stays mapped it
 * follows the load while steps go on: all exchange their loads at a step, rank 0 spreads the experts anew, and layer by layer
 * every rank fetches what it lacks beside its steps; at the first step at whose beginning all have it, all switch.
 *
 * What ranks say to one another goes over TCP, and between ranks of one host, once all are there, through memory (near.h).
 *
 * One thread, the engine's, but where "any thread" is said. Every wait has a deadline. */
#pragma once
#include "base/buf.h"
#include "comm/comm.h"
#include "model/model.h"

struct group;

/* How tokens travel to experts, and the experts' outputs back. */
enum group_payload {
        /* No bit is lost: int8 where all experts of a layer quantise their rows so, bfloat16 with ACTIVATION_BF16, else float32;
         * back float32. */
        GROUP_PAYLOAD_EXACT,
        GROUP_PAYLOAD_F32,
        GROUP_PAYLOAD_BF16, /* but int8 where that is exact; back bfloat16 */
        GROUP_PAYLOAD_INT8, /* whatever the experts are; back bfloat16 */
};

struct group_options {
        uint32_t rank, size;           /* size at least 2 */
        const char *host;              /* rank 0's address, or a name */
        uint16_t port;                 /* rank 0's */
        const struct comm_fact *facts; /* what must be equal on all ranks; borrowed */
        size_t fact_count;
        enum group_payload payload;        /* equal on all ranks */
        bool sockets_only;                 /* TCP between ranks of one host, too */
        unsigned silence_ms;               /* a peer that is waited for is lost after it; 0: GROUP_SILENCE_MS */
        const struct placement *placement; /* at the start, copied; what the model was loaded with */
        /* EPLB: experts may move, which needs model_options.movable_experts and as many slots on every rank. */
        bool balance;
        uint32_t window_steps;   /* loads are those of the last steps; 0: GROUP_WINDOW_STEPS */
        uint32_t interval_steps; /* rebalance so often; 0: when asked alone */
        bool tell_balance;       /* log it */
        /* Called on any thread: group_sleep() is to return. */
        void (*wake)(void *context);
        void *wake_context;
        const struct log *log;
};

#define GROUP_SIZE_MAX 1024u
/* vLLM's. */
#define GROUP_WINDOW_STEPS   1000u
#define GROUP_INTERVAL_STEPS 3000u
/* A prefill of a long prompt keeps a rank busy between two layers of experts for a while. */
#define GROUP_SILENCE_MS 30000u

/* Listens. 0, or with a text -EADDRINUSE, -EADDRNOTAVAIL, -EINVAL, -ENOMEM. */
int group_new(const struct group_options *options, struct group **ret_group, struct error *e);
void group_free(struct group *g); /* the others see it leave; NULL is fine */

/* Go on forming, for `ms` at most. 1: formed. 0: not yet, call again. -EPROTO with a text: a rank is not of this group, which a
 * person must mend; calling again tries again. */
int group_form(struct group *g, unsigned ms, struct error *e);
bool group_is_formed(const struct group *g);
/* Not formed: may what was under way wait, and its steps be computed again by the next epoch? No longer than some seconds, and
 * only where the group can go on without a rank, or has ended its epoch by itself. */
bool group_holds(const struct group *g);
uint64_t group_epoch(const struct group *g); /* how often it was formed */

/* Sleep until a peer begins a step or breaks, a rank comes back, this rank has something to say, or `fd` is readable. */
void group_sleep(struct group *g, int fd);

/* Has a peer begun a step that this rank is not in yet, or broken, or is there else something that takes a step? */
bool group_is_called(struct group *g);
/* Begin a step together: is there work for this rank, and how many rows? 0: *ret_any tells whether any rank has work, and
 * *ret_rows the most rows of a rank. Experts switch here. Below 0 the epoch has ended, with a text. */
int group_agree(struct group *g, bool work, uint32_t rows, bool *ret_any, uint32_t *ret_rows, struct error *e);
/* This rank cannot go on with its step: the others must not wait for it. */
void group_break(struct group *g, const char *why);

/* The experts of all ranks, for model_set_experts(): equal, bit for bit, to all experts in one process, however many ranks there
 * are; with a payload that rounds, equal on any number of ranks from 2 on. Between two group_agree()s each rank runs it equally
 * often, with at most the rows that were agreed on. Returns what breaks the group. */
struct experts_interface group_experts(struct group *g, struct model *m, struct compute *compute);

/* ---- looking in ----------------------------------------------------------------------------------------------------------- */

struct group_figures {
        uint64_t epoch;
        uint32_t size, present; /* ranks; of this epoch, 0: never formed */
        uint64_t rebalances;    /* that came to their end */
        uint64_t experts_moved; /* to this rank */
        uint64_t pairs;         /* token and expert, computed here for all ranks */
        uint32_t experts;
        bool balance, moving;
        /* Mean over the largest load of a rank, by the tokens of this one in the window; 1: even, or none. */
        double balancedness;
};
void group_tell(struct group *g, struct group_figures *ret_figures); /* any thread */
/* Tokens of this rank in the window that went to each expert, all layers together. Any thread. */
void group_expert_tokens(struct group *g, uint64_t *tokens);
/* All of it as JSON: ranks, and for each MoE layer what each holds and the window's load. Any thread. */
void group_describe(struct group *g, struct buf *out);
/* Rebalance from the next step on. Any thread. 0, -ENOTSUP (without `balance`), -EALREADY (one is under way). */
int group_rebalance(struct group *g);
