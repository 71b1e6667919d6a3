/* group_core.h - the inside of a struct group (private to comm/). */
#pragma once
#include "comm/group.h"
#include "comm/links.h"
#include <pthread.h>

struct group {
        struct group_options options;
        int listener; /* rank 0: the group's address; others: for their peers */
        uint16_t port;
        bool formed;
        uint64_t epoch, step;
        int *links;                /* [size], -1: none; own: -1 */
        struct inbox *inbox;       /* of this epoch; NULL: none could be made, or nobody is near */
        struct near_link **near;   /* [size], NULL: bytes go by the socket */
        struct buf facts;          /* "name=value\n" each, as ranks send them */
        struct link_job *jobs;     /* [size] */
        struct step_message *said; /* [size], of the step at hand */
        uint32_t most_rows;        /* that were agreed on */
        char why[256];             /* it broke; "" */
        uint64_t told;             /* ms, when a person was last told that it is not complete */

        /* members.c */
        bool *present;          /* [size]: in this epoch, or in the last one; written under `shown` */
        uint32_t present_count; /* 0: it was never formed */
        uint64_t shown_epoch;   /* as `present` */
        uint64_t broken_at;     /* ms, when the last epoch ended */
        uint64_t hold_until;    /* ms: until then what was under way may wait for the next one */
        struct newcomer *come;  /* [size], rank 0's: what those have said who joined */
        int door, guest;        /* rank 0's, while formed: who has yet to speak, who is of the next epoch; -1 */
        uint32_t guest_rank;
        uint64_t door_until;
        /* Of this epoch; this rank's slots are what its model holds. Written under `shown`. */
        struct placement placement;
        uint32_t nodes;        /* rank 0's: on which the ranks lie evenly and in order; else 1 */
        pthread_mutex_t shown; /* for other threads to look */

        struct moves *moves; /* moves.c */

        /* dispatch.c */
        struct model *model;
        struct compute *compute;
        struct dispatch *dispatch; /* its buffers; NULL before the first layer */
};

/* What a rank says at the beginning of a step. */
enum {
        SAY_WORK = 1,
        SAY_READY = 2,     /* what moves to this rank is there: the layer may switch */
        SAY_GIVE_UP = 4,   /* it will not be there */
        SAY_REBALANCE = 8, /* somebody wants it */
        SAY_REFORM = 16,   /* a rank has come back: end this epoch with this step */
};
struct step_message {
        uint64_t epoch, step;
        uint32_t rows, flags;
};

/* What a rank has said of itself when it joined. */
struct newcomer {
        uint16_t port;
        char offer[NEAR_OFFER_MAX]; /* its inbox (near.h), or "" */
        struct buf holds;           /* u32 [layers][slots of the rank]: experts */
};

/* Exchange on g->jobs. A failure breaks the group. */
int group_exchange(struct group *g, bool once);
/* A job without bytes for every rank, -1 for those who are not there. */
void group_clear_jobs(struct group *g);

/* ---- group_near.c: memory instead of sockets between ranks of one host ------------------------------------------------------ */

/* Make this epoch's inbox and append "NAME=OFFER\n" to what is said to others; nothing where there is none to offer. */
void group_offer_near(struct group *g, struct buf *said, const char *name);
/* Map the inbox that a rank offers; without it, or when it is of another host, its bytes go by the socket. */
void group_open_near(struct group *g, uint32_t rank, struct slice offer);
/* All have opened what they can: keep what is open from both sides. */
void group_settle_near(struct group *g);
void group_drop_near(struct group *g);
/* Has one of them begun to write, or gone? */
bool group_near_calls(const struct group *g);

/* ---- members.c: who is there, and who holds what -------------------------------------------------------------------------- */

int members_new(struct group *g); /* 0 or -ENOMEM */
void members_free(struct group *g);
/* Experts as they go over the wire. */
int members_say_holds(const struct group *g, struct buf *body); /* this rank's; 0 or -ENOMEM */
bool members_are_holds(const struct group *g, uint32_t rank, struct slice body);
/* Rank 0: the placement of the ranks that are there, out of what they hold. 0, -ENOSPC, -ENOMEM. */
int members_compose(const struct group *g, const bool *there, struct placement *ret_next);
int members_take_placement(const struct group *g, struct slice body, struct placement *ret_next); /* -EPROTO, -ENOMEM */
/* Make it this rank's: fetch what it lacks (busy() is called now and then), then who is there. 0, or with a text an error; then
 * this rank's slots are still what its model holds. */
int members_settle(
    struct group *g, const struct placement *next, const bool *there, void (*busy)(struct group *g), struct error *e);
/* The epoch has ended, `orderly` between two steps. */
void members_part(struct group *g, bool orderly);
/* Rank 0, not formed: may a group of those begin, who are there by `now`? */
bool members_may_begin(const struct group *g, uint64_t now);

/* ---- moves.c: load, and experts that follow it ----------------------------------------------------------------------------- */

int moves_new(struct group *g); /* 0 or -ENOMEM */
void moves_free(struct group *g);
void moves_stop(struct group *g); /* the epoch has ended: what was on its way is dropped */
/* A layer's choices of this rank's tokens, and what it computed for all. */
void moves_count(struct group *g, uint32_t layer, const uint32_t *ids, size_t count);
void moves_computed(struct group *g, size_t pairs);
uint32_t moves_say(struct group *g);        /* flags for the step's message */
bool moves_has_word(const struct group *g); /* which the others have not heard */
/* Between agreeing on a step and computing it: `any` and `all` are what all said. 0, or the group is broken. */
int moves_at_step(struct group *g, uint32_t any, uint32_t all);

void dispatch_free(struct dispatch *d);
