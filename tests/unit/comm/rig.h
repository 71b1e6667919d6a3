/* rig.h - what the tests of transfers share: a comm over memory of its own, and what it has told. */
#pragma once
#include "base/rng.h"
#include "comm/comm.h"
#include <arpa/inet.h>
#include <errno.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#define LAYERS 3u
#define ROW    40u
#define BLOCKS 64u
#define HANG_S 30

/* ---- one side ---------------------------------------------------------------------------------------------------------- */

struct side {
        struct comm *comm;
        struct kv_pool pool;
        struct comm_fact facts[1];
        pthread_mutex_t lock;
        pthread_cond_t woken;
        unsigned wakes;
        struct comm_event *events; /* taken, not yet looked at */
};

static inline void on_wake(void *context) {
        struct side *s = context;

        pthread_mutex_lock(&s->lock);
        s->wakes++;
        pthread_cond_signal(&s->woken);
        pthread_mutex_unlock(&s->lock);
}

static inline struct comm_options side_options(struct side *s, const char *engine, uint32_t block_tokens) {
        *s = (struct side){.lock = PTHREAD_MUTEX_INITIALIZER, .woken = PTHREAD_COND_INITIALIZER};
        s->pool = (struct kv_pool){.row_bytes = ROW, .layers = LAYERS, .block_tokens = block_tokens, .blocks = BLOCKS};
        s->pool.base = calloc(BLOCKS, (size_t)LAYERS * block_tokens * ROW);
        assert_non_null(s->pool.base);
        s->facts[0] = (struct comm_fact){"kv_type", "float32"};
        return (struct comm_options){.pool = s->pool,
            .engine_id = engine,
            .facts = s->facts,
            .fact_count = 1,
            .wake = on_wake,
            .wake_context = s};
}

static inline void side_open(struct side *s, const struct comm_options *o) {
        struct error e = {0};

        if (comm_new(o, &s->comm, &e) < 0)
                fail_msg("%s", e.text);
}

static inline void side_close(struct side *s) {
        comm_free(s->comm);
        assert_null(s->events);
        free(s->pool.base);
}

/* The next event; fails the test when none comes. */
static inline struct comm_event *next_event(struct side *s) {
        struct timespec until;
        struct comm_event *e;

        clock_gettime(CLOCK_REALTIME, &until);
        until.tv_sec += HANG_S;
        pthread_mutex_lock(&s->lock);
        while (!s->events) {
                unsigned wakes = s->wakes;

                pthread_mutex_unlock(&s->lock);
                s->events = comm_take(s->comm);
                pthread_mutex_lock(&s->lock);
                while (!s->events && wakes == s->wakes)
                        if (pthread_cond_timedwait(&s->woken, &s->lock, &until) == ETIMEDOUT)
                                fail_msg("no event came");
        }
        e = s->events;
        s->events = e->next;
        pthread_mutex_unlock(&s->lock);
        return e;
}

static inline char *row(const struct kv_pool *p, const uint32_t *blocks, uint32_t token, uint32_t layer) {
        return p->base + (((size_t)blocks[token / p->block_tokens] * p->layers + layer) * p->block_tokens +
                             token % p->block_tokens) *
                             ROW;
}

static inline void table_of(uint32_t *blocks, struct rng *r) {
        for (uint32_t i = 0; i < BLOCKS; i++) {
                uint32_t other = (uint32_t)rng_below(r, i + 1);

                blocks[i] = blocks[other];
                blocks[other] = i;
        }
}

static inline void fill(struct side *s, struct rng *r) {
        for (size_t i = 0; i < (size_t)BLOCKS * LAYERS * s->pool.block_tokens * ROW; i++)
                s->pool.base[i] = (char)rng_u64(r);
}

/* Tokens [first, end) are equal, and nothing else of d was written. */
static inline void assert_moved(const struct side *p, const uint32_t *from, const struct side *d, const uint32_t *to,
    uint32_t first, uint32_t end) {
        const char zeros[ROW] = {0};

        for (uint32_t t = 0; t < BLOCKS * d->pool.block_tokens; t++)
                for (uint32_t l = 0; l < LAYERS; l++)
                        assert_memory_equal(
                            row(&d->pool, to, t, l), t >= first && t < end ? row(&p->pool, from, t, l) : zeros, ROW);
}
