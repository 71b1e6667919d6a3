/* moving.c - experts that come and go while the model runs: read from the mapped checkpoint and packed beside the steps, put in
 * place between two of them. Memory holds the experts of the slots and, while a batch is under way, one layer's new ones. */
#include "model/load.h"
#include "model/memory.h"
#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

struct moving {
        struct loader loader;
        struct compute *compute; /* one thread of its own: the model's is busy with steps */
};

struct expert_batch {
        struct region region;
        uint32_t live, count; /* experts in use; that were fetched */
        struct {
                uint32_t expert;
                struct mlp mlp;
                struct held held;
        } experts[];
};

int moving_keep(struct loader *l) {
        struct model *m = l->m;
        struct compute_options o = {
            .isa = compute_isa(m->options.compute), .threads = 1, .activation = compute_activation(m->options.compute)};
        int r;

        m->moving = calloc(1, sizeof(*m->moving));
        if (!m->moving) {
                weights_close(&l->w);
                return error_set(l->e, -ENOMEM, "out of memory");
        }
        m->moving->loader = *l;
        r = compute_new(&o, &m->moving->compute, l->e);
        m->moving->loader.compute = m->moving->compute;
        return r;
}

void moving_free(struct model *m) {
        struct moving *v = m->moving;

        if (!v)
                return;
        for (uint32_t i = 0; i < m->layer_count; i++)
                for (uint32_t e = 0; m->layers[i].moe && e < m->config.experts; e++) {
                        struct expert_batch *b = m->layers[i].held[e].batch;

                        if (b && --b->live == 0)
                                expert_batch_free(b);
                }
        weights_close(&v->loader.w);
        compute_free(v->compute);
        free(v);
}

/* ---- fetching ----------------------------------------------------------------------------------------------------------- */

static bool is_listed(const struct expert_batch *b, uint32_t expert) {
        for (uint32_t i = 0; i < b->count; i++)
                if (b->experts[i].expert == expert)
                        return true;
        return false;
}

/* Once measuring, once packing. */
static int fetch_all(struct loader *l, struct expert_batch *b, const _Atomic bool *stop) {
        int r = 0;

        b->region.used = 0;
        for (uint32_t i = 0; r == 0 && i < b->count; i++)
                r = stop && *stop ? -ECANCELED
                                  : loader_expert(l, b->experts[i].expert, &b->experts[i].mlp, &b->experts[i].held);
        return r;
}

int model_fetch_experts(struct model *m, uint32_t layer, const uint32_t *experts, uint32_t count,
    const _Atomic bool *stop, struct expert_batch **ret_batch, struct error *e) {
        struct loader *l = &m->moving->loader;
        struct expert_batch *b = calloc(1, sizeof(*b) + count * sizeof(*b->experts));
        int r = 0;

        if (!b)
                return error_set(e, -ENOMEM, "out of memory");
        for (uint32_t i = 0; i < count; i++)
                if (experts[i] != SLOT_EMPTY && !m->layers[layer].held[experts[i]].bytes && !is_listed(b, experts[i]))
                        b->experts[b->count++].expert = experts[i];
        if (b->count == 0) {
                free(b);
                *ret_batch = NULL;
                return 0;
        }
        l->e = e;
        l->to = &b->region;
        loader_layer(l, layer);
        l->w.measuring = true;
        r = fetch_all(l, b, stop);
        if (r == 0) {
                b->region.bytes = b->region.used;
                r = memory_map("experts that are to move here", b->region.bytes, &b->region.memory, e);
        }
        l->w.measuring = false;
        if (r == 0)
                r = fetch_all(l, b, stop);
        if (r < 0) {
                expert_batch_free(b);
                return r;
        }
        *ret_batch = b;
        return 0;
}

void expert_batch_free(struct expert_batch *b) {
        if (!b)
                return;
        memory_unmap(b->region.memory, b->region.bytes);
        free(b);
}

/* ---- adopting ----------------------------------------------------------------------------------------------------------- */

/* Whole pages go back to the system; neighbours may share the first and the last. */
static void give_back(const struct held *h) {
        const uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE),
                        begin = ((uintptr_t)h->memory + page - 1) / page * page,
                        end = ((uintptr_t)h->memory + h->bytes) / page * page;

        if (end > begin)
                (void)madvise((void *)begin, end - begin, MADV_DONTNEED);
}

static void release(struct model *m, struct layer *l, uint32_t expert) {
        struct held *h = &l->held[expert];

        if (h->batch)
                m->batch_bytes -= h->bytes;
        else
                m->released += h->bytes;
        if (h->batch && --h->batch->live == 0)
                expert_batch_free(h->batch);
        else
                give_back(h);
        *h = (struct held){0};
        l->experts[expert] = (struct mlp){0};
}

static bool wanted(uint32_t expert, const uint32_t *experts, uint32_t count) {
        for (uint32_t i = 0; i < count; i++)
                if (experts[i] == expert)
                        return true;
        return false;
}

void model_adopt_experts(
    struct model *m, uint32_t layer, const uint32_t *experts, uint32_t count, struct expert_batch *batch) {
        struct layer *l = &m->layers[layer];

        if (!l->moe)
                return;
        for (uint32_t e = 0; e < m->config.experts; e++)
                if (l->held[e].bytes && !wanted(e, experts, count))
                        release(m, l, e);
        for (uint32_t i = 0; batch && i < batch->count; i++) {
                uint32_t e = batch->experts[i].expert;

                assert(!l->held[e].bytes && wanted(e, experts, count));
                l->experts[e] = batch->experts[i].mlp;
                l->held[e] = batch->experts[i].held;
                l->held[e].batch = batch;
                batch->live++;
                m->batch_bytes += l->held[e].bytes;
        }
}
