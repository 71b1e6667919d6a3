/* group.h - data-parallel ranks that share experts: rendezvous, agreement on steps, and the exchange of tokens with experts.
 *
 * Every rank has its own requests, KV and scheduler. A MoE layer needs all of them, so they step together: a rank with work says
 * so to the others, all run a step, those without work with no rows, and all sleep when nobody has work. Messages of a step
 * double as the wake: a rank that sleeps joins the step it is told of.
 *
 * Rank 0 listens at the group's address; the others come to it in any order, and it introduces them to one another. A link that
 * breaks, or a rank that says nothing for too long, ends the epoch: every rank comes back to rank 0, and the group is formed
 * anew when all are there. Nothing is in flight then: what a step was to give is lost, and its caller is told.
 *
 * One thread, the engine's. Every wait has a deadline. */
#pragma once
#include "comm/comm.h"
#include "model/model.h"

struct group;

struct group_options {
        uint32_t rank, size;           /* size at least 2 */
        const char *host;              /* rank 0's address, or a name */
        uint16_t port;                 /* rank 0's */
        const struct comm_fact *facts; /* what must be equal on all ranks; borrowed */
        size_t fact_count;
        unsigned silence_ms; /* a peer that is waited for is lost after it; 0: GROUP_SILENCE_MS */
        const struct log *log;
};

#define GROUP_SIZE_MAX 1024u
/* A prefill of a long prompt keeps a rank busy between two layers of experts for a while. */
#define GROUP_SILENCE_MS 30000u

/* Listens. 0, or with a text -EADDRINUSE, -EADDRNOTAVAIL, -EINVAL, -ENOMEM. */
int group_new(const struct group_options *options, struct group **ret_group, struct error *e);
void group_free(struct group *g); /* the others see it leave; NULL is fine */

/* Go on forming, for `ms` at most. 1: formed. 0: not yet, call again. -EPROTO with a text: a rank is not of this group, which a
 * person must mend; calling again tries again. */
int group_form(struct group *g, unsigned ms, struct error *e);
bool group_is_formed(const struct group *g);
uint64_t group_epoch(const struct group *g); /* how often it was formed */

/* Sleep until a peer begins a step or breaks, or `fd` is readable. Without a limit in time. */
void group_sleep(struct group *g, int fd);

/* Has a peer begun a step that this rank is not in yet, or broken? Does not wait. */
bool group_is_called(const struct group *g);
/* Begin a step together: is there work for this rank, and how many rows? 0: *ret_any tells whether any rank has work, and
 * *ret_rows the most rows of a rank. Below 0 the group is broken, with a text. */
int group_agree(struct group *g, bool work, uint32_t rows, bool *ret_any, uint32_t *ret_rows, struct error *e);
/* This rank cannot go on with its step: the others must not wait for it. */
void group_break(struct group *g, const char *why);

/* The experts of all ranks, for model_set_experts(): equal, bit for bit, to all experts in one process, however many ranks there
 * are. Between two group_agree()s each rank runs it equally often, with at most the rows that were agreed on. Returns what
 * breaks the group. */
struct experts_interface group_experts(struct group *g, struct model *m, struct compute *compute);
