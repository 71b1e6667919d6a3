/* workers.h - the worker threads of one struct compute, and work that whoever is there takes piece by piece.
 *
 * A shared region is open to the workers but waits for none: those that are awake in time join, and the caller only waits
 * for what has been taken. So an overcommitted machine, whose scheduler keeps a worker from its core, costs that worker's
 * help and no more. Waiting spins for a budget and then sleeps in the kernel: a busy step costs no system calls and an
 * idle engine no CPU. */
#pragma once
#include "base/error.h"
#include <stdalign.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

/* More threads than this on one compute is a mistake, not a machine. */
#define WORKERS_MAX 1024

struct workers;

typedef void workers_task(void *context, unsigned worker, unsigned workers);

/* `threads` counts the caller (0: os_cpu_count()). Returns 0, -EINVAL, -ENOMEM or what pthread_create said. */
int workers_new(unsigned threads, unsigned spin_us, struct workers **ret_workers, struct error *e);
void workers_free(struct workers *p); /* NULL is fine; no region may be running */
unsigned workers_count(const struct workers *p);

/* Run the task on the caller, as worker 0, and on the workers that come before the caller is through with it. Returns
 * when all that came have returned; what they wrote is visible to the caller. */
void workers_share(struct workers *p, workers_task *task, void *context);
/* The same, waiting for every worker to come. */
void workers_run(struct workers *p, workers_task *task, void *context);

/* A number of tasks inside a region. Begun by the caller before the region. */
struct step {
        _Atomic size_t next; /* not taken yet */
        _Atomic size_t done;
        size_t total;
};

void step_begin(struct step *s, size_t total);
/* Take the next task. False when none is left. */
static inline bool step_take(struct step *s, size_t *ret_task) {
        *ret_task = atomic_fetch_add_explicit(&s->next, 1, memory_order_relaxed);
        return *ret_task < s->total;
}
/* A task that was taken is finished. */
void step_done(struct workers *p, struct step *s);
/* Wait until all tasks of the step are finished; what they wrote is visible. */
void step_wait(struct workers *p, struct step *s);
