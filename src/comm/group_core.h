/* group_core.h - the inside of a struct group (private to comm/). */
#pragma once
#include "comm/group.h"
#include "comm/links.h"

struct group {
        struct group_options options;
        int listener; /* rank 0: the group's address; others: for their peers */
        uint16_t port;
        bool formed;
        uint64_t epoch, step;
        int *links;                /* [size], -1: none; own: -1 */
        struct buf facts;          /* "name=value\n" each, as ranks send them */
        struct link_job *jobs;     /* [size] */
        struct step_message *said; /* [size], of the step at hand */
        uint32_t most_rows;        /* that were agreed on */
        char why[256];             /* it broke; "" */
        uint64_t told;             /* ms, when a person was last told that it is not complete */

        /* dispatch.c */
        struct model *model;
        struct compute *compute;
        struct dispatch *dispatch; /* its buffers; NULL before the first layer */
};

/* What a rank says at the beginning of a step. */
struct step_message {
        uint64_t epoch, step;
        uint32_t rows, work;
};

/* Exchange on g->jobs. A failure breaks the group. */
int group_exchange(struct group *g, bool once);
void dispatch_free(struct dispatch *d);
