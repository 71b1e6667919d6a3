/* workers.c - workers that wait on a 32-bit word: spinning first, then in futex(2). */
#include "kernels/workers.h"
#include "base/clock.h"
#include "os/os.h"
#include <assert.h>
#include <errno.h>
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

/* A word that only grows, and who sleeps on it. On lines of their own: spinners read `value` all the time. */
struct gate {
        alignas(64) _Atomic uint32_t value;
        _Atomic uint32_t sleepers;
};

/* The state of the current region in one word, so that joining and closing exclude each other: its number in the upper
 * half, then whether it is closed, then how many workers have joined. */
#define REGION_CLOSED    ((uint64_t)1 << 31)
#define REGION_JOINED    (REGION_CLOSED - 1)
#define REGION_NUMBER(s) ((uint32_t)((s) >> 32))

struct workers {
        struct gate start; /* value: number of the newest region */
        struct gate left;  /* value: grows when the last of a closed region's workers leaves */
        struct gate steps; /* value: number of steps finished */
        alignas(64) _Atomic uint64_t region;
        alignas(64) _Atomic uint32_t gone; /* workers that have left the current region */
        workers_task *task;
        void *context;
        _Atomic bool stop;
        unsigned threads, spin_us, started;
        unsigned groups;
        cpu_set_t *all, *mine; /* the cores of all groups and of group 0; NULL: not bound */
        size_t set_bytes;
        struct worker {
                struct workers *all;
                unsigned index;
                pthread_t thread;
        } * each; /* [threads]; entry 0, the caller, has no thread */
};

static inline void relax(void) {
#if defined(__x86_64__)
        __builtin_ia32_pause();
#endif
}

/* Wait until the value is no longer `old`. */
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

/* ---- workers ----------------------------------------------------------------------------------------------------- */

/* Join the region if it is still open. */
static bool region_join(struct workers *p, uint32_t number) {
        uint64_t s = atomic_load(&p->region);

        while (REGION_NUMBER(s) == number && !(s & REGION_CLOSED))
                if (atomic_compare_exchange_weak(&p->region, &s, s + 1))
                        return true;
        return false;
}

static void region_leave(struct workers *p) {
        uint32_t gone = atomic_fetch_add(&p->gone, 1) + 1;
        uint64_t s = atomic_load(&p->region);

        if (s & REGION_CLOSED && gone == (s & REGION_JOINED))
                gate_open(&p->left);
}

static void *worker_main(void *arg) {
        struct worker *w = arg;
        struct workers *p = w->all;
        uint32_t seen = 0;

        for (;;) {
                gate_wait(&p->start, seen, p->spin_us);
                seen = atomic_load(&p->start.value); /* before `stop`: who sees the last value sees that it is set */
                if (atomic_load(&p->stop))
                        return NULL;
                if (region_join(p, seen)) {
                        p->task(p->context, w->index, p->threads);
                        region_leave(p);
                }
        }
}

/* Returns 0 or what pthread_create said; p->started counts those that run. */
static int start_workers(struct workers *p) {
        sigset_t every, before;
        int r = 0;

        /* Signals are for the threads that know what to do with them. */
        sigfillset(&every);
        pthread_sigmask(SIG_SETMASK, &every, &before);
        for (p->started = 1; p->started < p->threads; p->started++) {
                struct worker *w = &p->each[p->started];
                char name[16];

                w->all = p;
                w->index = p->started;
                r = pthread_create(&w->thread, NULL, worker_main, w);
                if (r != 0)
                        break;
                snprintf(name, sizeof(name), "compute/%u", w->index % 10000);
                (void)pthread_setname_np(w->thread, name);
        }
        pthread_sigmask(SIG_SETMASK, &before, NULL);
        return -r;
}

int workers_new(unsigned threads, unsigned spin_us, struct workers **ret_workers, struct error *e) {
        struct workers *p;
        int r;

        if (threads == 0)
                threads = os_cpu_count();
        if (threads > WORKERS_MAX)
                return error_set(e, -EINVAL, "%u compute threads are more than %d", threads, WORKERS_MAX);

        p = aligned_alloc(64, sizeof(*p));
        if (!p)
                return error_set(e, -ENOMEM, "no memory for the workers");
        memset(p, 0, sizeof(*p));
        p->threads = threads;
        p->groups = 1;
        p->spin_us = spin_us;
        p->region = REGION_CLOSED;
        p->each = calloc(threads, sizeof(*p->each));
        if (!p->each) {
                free(p);
                return error_set(e, -ENOMEM, "no memory for the workers");
        }
        r = start_workers(p);
        if (r < 0) {
                error_set(e, r, "cannot start compute thread %u of %u: %s", p->started + 1, threads, strerror(-r));
                workers_free(p);
                return r;
        }
        *ret_workers = p;
        return 0;
}

void workers_free(struct workers *p) {
        if (!p)
                return;
        atomic_store(&p->stop, true);
        gate_open(&p->start);
        for (unsigned i = 1; i < p->started; i++)
                pthread_join(p->each[i].thread, NULL);
        free(p->each);
        free(p->all);
        free(p->mine);
        free(p);
}

unsigned workers_count(const struct workers *p) {
        return p->threads;
}

/* ---- groups ------------------------------------------------------------------------------------------------------ */

unsigned workers_groups(const struct workers *p) {
        return p->groups;
}

unsigned workers_group_of(const struct workers *p, unsigned worker) {
        return (unsigned)((size_t)worker * p->groups / p->threads);
}

size_t workers_cpus_of(
    const struct os_cpu *cpus, size_t count, unsigned groups, unsigned group, unsigned *ret_numbers) {
        size_t nodes = 0, at = 0, n = 0, first, end;

        for (size_t i = 0; i < count; i++)
                nodes += i == 0 || cpus[i].node != cpus[i - 1].node;
        if (nodes < 2)
                return 0;
        first = group * nodes / groups;
        end = (group + 1) * nodes / groups;
        if (end == first)
                end++;
        for (size_t i = 0; i < count; i++) {
                at += i > 0 && cpus[i].node != cpus[i - 1].node;
                if (at >= first && at < end)
                        ret_numbers[n++] = cpus[i].number;
        }
        return n;
}

/* A set of cores that may have numbers beyond CPU_SETSIZE. */
static cpu_set_t *set_of(const unsigned *numbers, size_t count, size_t bytes) {
        cpu_set_t *set = calloc(1, bytes);

        for (size_t i = 0; set && i < count; i++)
                CPU_SET_S(numbers[i], bytes, set);
        return set;
}

static void bind_group(struct workers *p, unsigned group, const struct os_cpu *cpus, size_t count, unsigned *numbers) {
        size_t n = workers_cpus_of(cpus, count, p->groups, group, numbers);
        cpu_set_t *set = n ? set_of(numbers, n, p->set_bytes) : NULL;

        for (unsigned w = 1; set && w < p->threads; w++)
                if (workers_group_of(p, w) == group) /* where it is refused they run anywhere, only slower */
                        (void)pthread_setaffinity_np(p->each[w].thread, p->set_bytes, set);
        if (group == 0)
                p->mine = set;
        else
                free(set);
}

void workers_divide(struct workers *p, unsigned groups, const struct os_cpu *cpus, size_t count) {
        unsigned *numbers = calloc(count ? count : 1, sizeof(*numbers)), most = 0;

        assert(groups >= 1 && groups <= p->threads && groups <= WORKER_GROUPS_MAX);
        p->groups = groups;
        for (size_t i = 0; numbers && i < count; i++) {
                numbers[i] = cpus[i].number;
                most = numbers[i] > most ? numbers[i] : most;
        }
        p->set_bytes = CPU_ALLOC_SIZE(most + 1);
        if (numbers && groups > 1)
                p->all = set_of(numbers, count, p->set_bytes);
        for (unsigned g = 0; p->all && g < groups; g++)
                bind_group(p, g, cpus, count, numbers);
        free(numbers);
}

bool workers_are_bound(const struct workers *p) {
        return p->mine != NULL;
}

void workers_bind(const struct workers *p) {
        if (p->mine)
                (void)pthread_setaffinity_np(pthread_self(), p->set_bytes, p->mine);
}

void workers_unbind(const struct workers *p) {
        if (p->mine)
                (void)pthread_setaffinity_np(pthread_self(), p->set_bytes, p->all);
}

/* ---- regions ----------------------------------------------------------------------------------------------------- */

static void region_open(struct workers *p, workers_task *task, void *context) {
        uint32_t number = atomic_load(&p->start.value) + 1;

        p->task = task;
        p->context = context;
        atomic_store(&p->gone, 0);
        atomic_store(&p->region, (uint64_t)number << 32);
        gate_open(&p->start);
}

/* Nobody joins any more; wait for those who did. */
static void region_close(struct workers *p) {
        uint32_t left = atomic_load(&p->left.value);
        uint64_t s = atomic_fetch_or(&p->region, REGION_CLOSED);

        /* Whoever leaves last after the closing opens the gate; who left before it has been counted. */
        while (atomic_load(&p->gone) != (s & REGION_JOINED)) {
                gate_wait(&p->left, left, p->spin_us);
                left = atomic_load(&p->left.value);
        }
}

void workers_share(struct workers *p, workers_task *task, void *context) {
        if (p->threads == 1) {
                task(context, 0, 1);
                return;
        }
        region_open(p, task, context);
        task(context, 0, p->threads);
        region_close(p);
}

struct everyone {
        struct workers *workers;
        workers_task *task;
        void *context;
        struct step arrivals;
};

static void everyone_task(void *context, unsigned worker, unsigned workers) {
        struct everyone *all = context;

        all->task(all->context, worker, workers);
        step_done(all->workers, &all->arrivals);
        if (worker == 0)
                step_wait(all->workers, &all->arrivals);
}

void workers_run(struct workers *p, workers_task *task, void *context) {
        struct everyone all = {.workers = p, .task = task, .context = context};

        step_begin(&all.arrivals, p->threads);
        workers_share(p, everyone_task, &all);
}

/* ---- steps ------------------------------------------------------------------------------------------------------- */

void step_begin(struct step *s, size_t total) {
        atomic_store_explicit(&s->next, 0, memory_order_relaxed);
        atomic_store_explicit(&s->done, 0, memory_order_relaxed);
        s->total = total;
}

void step_done(struct workers *p, struct step *s) {
        if (atomic_fetch_add(&s->done, 1) + 1 == s->total)
                gate_open(&p->steps);
}

void step_wait(struct workers *p, struct step *s) {
        for (;;) {
                uint32_t finished = atomic_load(&p->steps.value);

                if (atomic_load(&s->done) >= s->total)
                        return;
                gate_wait(&p->steps, finished, p->spin_us);
        }
}
