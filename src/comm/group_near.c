/* group_near.c - which ranks of a group are of one host, and share memory for what they exchange (near.h).
 *
 * Every rank's offer goes round with the addresses, through rank 0. Each opens what it can before it says READY (rank 0: before
 * GO), so after GO all know what is open from both sides. Inboxes are new with each epoch: nothing of a former one is in them. */
#include "comm/group_core.h"
#include "os/os.h"

/* As long as a wake costs, so that ranks in step need none. Not where all their threads have not a core each. */
#define SPIN_US 50

void group_drop_near(struct group *g) {
        for (uint32_t i = 0; g->near && i < g->options.size; i++) {
                near_close(g->near[i]);
                g->near[i] = NULL;
        }
        inbox_free(g->inbox);
        g->inbox = NULL;
}

void group_offer_near(struct group *g, struct buf *said, const char *name) {
        char offer[NEAR_OFFER_MAX];

        group_drop_near(g);
        if (g->options.sockets_only || inbox_new(g->options.size, &g->inbox) < 0)
                return;
        inbox_offer(g->inbox, offer);
        buf_printf(said, "%s=%s\n", name, offer);
}

void group_open_near(struct group *g, uint32_t rank, struct slice offer) {
        if (g->inbox && offer.len)
                (void)near_open(g->inbox, g->options.rank, rank, offer, &g->near[rank]);
}

void group_settle_near(struct group *g) {
        uint32_t kept = 0;

        for (uint32_t i = 0; i < g->options.size; i++) {
                if (g->near[i] && !near_is_mutual(g->near[i])) {
                        near_close(g->near[i]);
                        g->near[i] = NULL;
                }
                kept += g->near[i] != NULL;
        }
        if (kept == 0)
                group_drop_near(g);
        else if ((kept + 1) * (g->compute ? compute_threads(g->compute) : 1) <= os_cpu_count())
                inbox_set_spin(g->inbox, SPIN_US);
        log_info(g->options.log, "rank %u exchanges tokens with %u ranks through memory, with %u over TCP",
            g->options.rank, kept, g->present_count - 1 - kept);
}

bool group_near_calls(const struct group *g) {
        bool calls = false;

        for (uint32_t i = 0; i < g->options.size; i++)
                calls |= g->near[i] && links_near_calls(g->near[i], g->links[i]);
        return calls;
}
