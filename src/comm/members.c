/* members.c - who is in a group, and which experts each holds: what is said when ranks join, the placement that comes out of it,
 * and going on without those who stay away. */
#include "comm/group_core.h"
#include <errno.h>
#include <stdlib.h>

/* After a break all come back at once, but for those who are gone. A rank whose link alone had broken gets so long. */
#define GRACE_MS 1000u
/* What was under way waits so long for the next epoch: the grace, and two introductions. */
#define HOLD_MS 11000u

/* ---- life -------------------------------------------------------------------------------------------------------------- */

int members_new(struct group *g) {
        const struct placement *p = g->options.placement;

        g->door = g->guest = -1;
        g->nodes = 1;
        pthread_mutex_init(&g->shown, NULL);
        g->present = calloc(g->options.size, sizeof(*g->present));
        g->come = calloc(g->options.size, sizeof(*g->come));
        if (!g->present || !g->come)
                return -ENOMEM;
        return p ? placement_copy(p, &g->placement) : 0;
}

void members_free(struct group *g) {
        for (uint32_t i = 0; g->come && i < g->options.size; i++)
                buf_free(&g->come[i].holds);
        free(g->come);
        free(g->present);
        placement_free(&g->placement);
        pthread_mutex_destroy(&g->shown);
}

/* ---- what is said ------------------------------------------------------------------------------------------------------ */

static uint32_t slots_of(const struct placement *p, uint32_t rank) {
        return p->layers ? placement_first(p, rank + 1) - placement_first(p, rank) : 0;
}

int members_say_holds(const struct group *g, struct buf *body) {
        const struct placement *p = &g->placement;
        uint32_t rank = g->options.rank, count = slots_of(p, rank);

        for (uint32_t layer = 0; layer < p->layers; layer++)
                buf_add(body, slice_of(placement_row(p, layer) + placement_first(p, rank), count * sizeof(uint32_t)));
        return buf_ok(body) ? 0 : -ENOMEM;
}

static bool are_experts(const struct placement *p, struct slice body) {
        for (size_t i = 0; i < body.len / sizeof(uint32_t); i++) {
                uint32_t expert;

                memcpy(&expert, body.ptr + i * sizeof(expert), sizeof(expert));
                if (expert != SLOT_EMPTY && expert >= p->experts)
                        return false;
        }
        return true;
}

bool members_are_holds(const struct group *g, uint32_t rank, struct slice body) {
        const struct placement *p = &g->placement;

        return body.len == (size_t)p->layers * slots_of(p, rank) * sizeof(uint32_t) && are_experts(p, body);
}

static bool is_whole(const struct placement *p) {
        const uint32_t *holders;

        for (uint32_t layer = 0; layer < p->layers; layer++)
                for (uint32_t e = 0; e < p->experts; e++)
                        if (placement_holders(p, layer, e, &holders) == 0)
                                return false;
        return true;
}

int members_take_placement(const struct group *g, struct slice body, struct placement *ret_next) {
        const struct placement *p = &g->placement;
        struct placement next = {0};
        int r;

        if (body.len != (size_t)p->layers * p->slots * sizeof(uint32_t) || !are_experts(p, body))
                return -EPROTO;
        r = p->layers ? placement_copy(p, &next) : 0;
        if (r < 0)
                return r;
        if (body.len)
                memcpy(next.expert_of, body.ptr, body.len);
        for (uint32_t layer = 0; layer < next.layers; layer++)
                placement_index(&next, layer);
        if (!is_whole(&next)) {
                placement_free(&next);
                return -EPROTO;
        }
        *ret_next = next;
        return 0;
}

int members_compose(const struct group *g, const bool *there, struct placement *ret_next) {
        const struct placement *p = &g->placement;
        struct placement next = {0};
        int r = p->layers ? placement_copy(p, &next) : 0;

        if (r < 0)
                return r;
        for (uint32_t rank = 0; rank < g->options.size && p->layers; rank++) {
                uint32_t first = placement_first(p, rank), count = slots_of(p, rank);

                for (uint32_t layer = 0; there[rank] && rank != g->options.rank && layer < p->layers; layer++)
                        memcpy(placement_row(&next, layer) + first,
                            buf_slice(&g->come[rank].holds).ptr + (size_t)layer * count * sizeof(uint32_t),
                            count * sizeof(uint32_t));
        }
        if (p->layers)
                r = placement_complete(&next, there);
        if (r < 0)
                placement_free(&next);
        else
                *ret_next = next;
        return r;
}

/* ---- a new epoch --------------------------------------------------------------------------------------------------------- */

static bool same_slots(const struct placement *a, const struct placement *b, uint32_t layer, uint32_t rank) {
        uint32_t first = placement_first(a, rank);

        return memcmp(placement_row(a, layer) + first, placement_row(b, layer) + first,
                   slots_of(a, rank) * sizeof(uint32_t)) == 0;
}

static void copy_slots(struct placement *to, const struct placement *from, uint32_t layer, uint32_t rank) {
        uint32_t first = placement_first(to, rank);

        memcpy(placement_row(to, layer) + first, placement_row(from, layer) + first,
            slots_of(to, rank) * sizeof(uint32_t));
}

/* This rank's slots of one layer, in the model and then in the placement. */
static int settle_layer(struct group *g, const struct placement *next, uint32_t layer, struct error *e) {
        uint32_t rank = g->options.rank, count = slots_of(next, rank);
        const uint32_t *experts = placement_row(next, layer) + placement_first(next, rank);
        struct expert_batch *batch = NULL;
        int r = 0;

        if (g->model && model_layer_is_moe(model_config(g->model), layer)) {
                if (!g->options.balance)
                        return error_set(e, -ENOTSUP, "experts were to move, which needs --enable-eplb");
                r = model_fetch_experts(g->model, layer, experts, count, NULL, &batch, e);
                if (r == 0)
                        model_adopt_experts(g->model, layer, experts, count, batch);
        }
        if (r < 0)
                return r;
        pthread_mutex_lock(&g->shown);
        copy_slots(&g->placement, next, layer, rank);
        pthread_mutex_unlock(&g->shown);
        return 0;
}

static uint32_t count_there(const struct group *g, const bool *there) {
        uint32_t n = 0;

        for (uint32_t i = 0; i < g->options.size; i++)
                n += there[i];
        return n;
}

int members_settle(
    struct group *g, const struct placement *next, const bool *there, void (*busy)(struct group *g), struct error *e) {
        struct placement *p = &g->placement;

        for (uint32_t layer = 0; layer < p->layers; layer++)
                if (!same_slots(p, next, layer, g->options.rank)) {
                        int r = settle_layer(g, next, layer, e);

                        if (r < 0)
                                return r;
                        busy(g);
                }
        pthread_mutex_lock(&g->shown);
        for (uint32_t layer = 0; layer < p->layers; layer++) {
                memcpy(placement_row(p, layer), placement_row(next, layer), p->slots * sizeof(uint32_t));
                placement_index(p, layer);
        }
        memmove(g->present, there, g->options.size * sizeof(*there));
        g->present_count = count_there(g, there);
        pthread_mutex_unlock(&g->shown);
        return 0;
}

/* ---- an epoch that ends ------------------------------------------------------------------------------------------------- */

static bool suffice(const struct group *g, uint32_t ranks) {
        return g->placement.layers && g->options.balance && placement_suffices(&g->placement, ranks);
}

void members_part(struct group *g, bool orderly) {
        g->broken_at = links_now();
        g->hold_until = orderly || suffice(g, g->present_count - 1) ? g->broken_at + HOLD_MS : 0;
}

bool group_holds(const struct group *g) {
        return links_now() < g->hold_until;
}

bool members_may_begin(const struct group *g, uint64_t now) {
        uint32_t there = 1;
        bool expected = true, all = true;

        for (uint32_t i = 1; i < g->options.size; i++) {
                there += g->links[i] >= 0;
                all &= g->links[i] >= 0;
                expected &= g->links[i] >= 0 || !g->present[i];
        }
        if (all)
                return true;
        return g->present_count && suffice(g, there) && (expected || now >= g->broken_at + GRACE_MS);
}
