/* pool.c - workers that wait on a 32-bit word: spinning first, then in futex(2). */
#include "kernels/pool.h"
#include "base/clock.h"
#include <assert.h>
#include <errno.h>
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

/* A word that only grows, and who sleeps on it. On lines of their own: spinners read `value` all the time. */
struct gate {
        alignas(64) _Atomic uint32_t value;
        _Atomic uint32_t sleepers;
};

struct pool {
        struct gate start;                    /* value: number of regions begun */
        struct gate done;                     /* value: number of regions ended */
        struct gate phase;                    /* value: number of barriers passed */
        alignas(64) _Atomic uint32_t running; /* workers that have not finished this region */
        alignas(64) _Atomic uint32_t arrived; /* workers at the barrier */
        void (*task)(void *context, unsigned worker, unsigned workers);
        void *context;
        bool stop;
        unsigned threads, spin_us, started;
        struct worker {
                struct pool *pool;
                unsigned index;
                pthread_t thread;
        } * workers; /* [threads]; entry 0, the caller, has no thread */
};

static inline void relax(void) {
#if defined(__x86_64__)
        __builtin_ia32_pause();
#endif
}

static void gate_wait(struct gate *g, uint32_t old, unsigned spin_us) {
        if (spin_us > 0) {
                uint64_t deadline = clock_mono_ns() + spin_us * NS_PER_US;

                do {
                        /* A clock read costs as much as a few pauses; look at it rarely. */
                        for (unsigned i = 0; i < 64; i++) {
                                if (atomic_load_explicit(&g->value, memory_order_acquire) != old)
                                        return;
                                relax();
                        }
                } while (clock_mono_ns() < deadline);
        }
        /* Announced before the last look at the value: either we see the new value, or the opener sees a sleeper. */
        atomic_fetch_add(&g->sleepers, 1);
        while (atomic_load(&g->value) == old)
                syscall(SYS_futex, &g->value, FUTEX_WAIT_PRIVATE, old, NULL, NULL, 0);
        atomic_fetch_sub(&g->sleepers, 1);
}

static void gate_open(struct gate *g) {
        atomic_fetch_add(&g->value, 1);
        if (atomic_load(&g->sleepers) > 0)
                syscall(SYS_futex, &g->value, FUTEX_WAKE_PRIVATE, INT32_MAX, NULL, NULL, 0);
}

static void *worker_main(void *arg) {
        struct worker *w = arg;
        struct pool *p = w->pool;

        for (uint32_t seen = 0;; seen++) {
                gate_wait(&p->start, seen, p->spin_us);
                if (p->stop)
                        return NULL;
                p->task(p->context, w->index, p->threads);
                if (atomic_fetch_sub(&p->running, 1) == 1)
                        gate_open(&p->done);
        }
}

static void pin_to_core(pthread_t thread, const cpu_set_t *usable, unsigned nth) {
        cpu_set_t one;
        unsigned seen = 0, count = (unsigned)CPU_COUNT(usable);

        for (int cpu = 0; cpu < CPU_SETSIZE; cpu++) {
                if (!CPU_ISSET(cpu, usable) || seen++ != nth % count)
                        continue;
                CPU_ZERO(&one);
                CPU_SET(cpu, &one);
                /* A refusal (a cpuset that changed meanwhile) costs speed only. */
                (void)pthread_setaffinity_np(thread, sizeof(one), &one);
                return;
        }
}

int pool_new(unsigned threads, bool pin, unsigned spin_us, struct pool **ret_pool, struct error *e) {
        cpu_set_t usable;
        struct pool *p;
        int r;

        CPU_ZERO(&usable);
        if (sched_getaffinity(0, sizeof(usable), &usable) < 0 || CPU_COUNT(&usable) == 0)
                CPU_SET(0, &usable);
        if (threads == 0)
                threads = (unsigned)CPU_COUNT(&usable);
        if (threads > POOL_THREADS_MAX)
                return error_set(e, -EINVAL, "%u compute threads are more than %d", threads, POOL_THREADS_MAX);

        p = aligned_alloc(64, sizeof(*p));
        if (!p)
                return error_set(e, -ENOMEM, "no memory for the worker pool");
        memset(p, 0, sizeof(*p));
        p->threads = threads;
        p->spin_us = spin_us;
        p->workers = calloc(threads, sizeof(*p->workers));
        if (!p->workers) {
                free(p);
                return error_set(e, -ENOMEM, "no memory for the worker pool");
        }
        for (p->started = 1; p->started < threads; p->started++) {
                struct worker *w = &p->workers[p->started];

                w->pool = p;
                w->index = p->started;
                r = pthread_create(&w->thread, NULL, worker_main, w);
                if (r != 0) {
                        pool_free(p);
                        return error_set(
                            e, -r, "cannot start compute thread %u of %u: %s", w->index + 1, threads, strerror(r));
                }
                if (pin)
                        pin_to_core(w->thread, &usable, w->index);
        }
        *ret_pool = p;
        return 0;
}

void pool_free(struct pool *p) {
        if (!p)
                return;
        p->stop = true;
        gate_open(&p->start);
        for (unsigned i = 1; i < p->started; i++)
                pthread_join(p->workers[i].thread, NULL);
        free(p->workers);
        free(p);
}

unsigned pool_threads(const struct pool *p) {
        return p->threads;
}

void pool_run(struct pool *p, void (*task)(void *context, unsigned worker, unsigned workers), void *context) {
        uint32_t ended;

        assert(!p->stop);
        if (p->threads == 1) {
                task(context, 0, 1);
                return;
        }
        ended = atomic_load(&p->done.value);
        p->task = task;
        p->context = context;
        atomic_store(&p->running, p->threads);
        gate_open(&p->start);
        task(context, 0, p->threads);
        if (atomic_fetch_sub(&p->running, 1) == 1)
                gate_open(&p->done);
        else
                gate_wait(&p->done, ended, p->spin_us);
}

void pool_barrier(struct pool *p) {
        uint32_t phase;

        if (p->threads == 1)
                return;
        phase = atomic_load(&p->phase.value);
        if (atomic_fetch_add(&p->arrived, 1) + 1 == p->threads) {
                atomic_store(&p->arrived, 0);
                gate_open(&p->phase);
        } else {
                gate_wait(&p->phase, phase, p->spin_us);
        }
}
