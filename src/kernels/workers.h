/* workers.h - the worker threads of one struct compute, and work that whoever is there takes piece by piece.
 *
 * A shared region is open to the workers but waits for none: those that are awake in time join, and the caller only waits
 * for what has been taken. So an overcommitted machine, whose scheduler keeps a worker from its core, costs that worker's
 * help and no more. Waiting spins for a budget and then sleeps in the kernel: a busy step costs no system calls and an
 * idle engine no CPU. */
#pragma once
#include "base/error.h"
#include "os/os.h"
#include <stdalign.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

/* More threads than this on one compute is a mistake, not a machine. */
#define WORKERS_MAX       1024
#define WORKER_GROUPS_MAX 16

struct workers;

typedef void workers_task(void *context, unsigned worker, unsigned workers);

/* `threads` counts the caller (0: os_cpu_count()). Returns 0, -EINVAL, -ENOMEM or what pthread_create said. */
int workers_new(unsigned threads, unsigned spin_us, struct workers **ret_workers, struct error *e);
void workers_free(struct workers *p); /* NULL is fine; no region may be running */
unsigned workers_count(const struct workers *p);

/* Divide the workers into groups of neighbours, as even as can be: groups <= threads, at most WORKER_GROUPS_MAX. Where `cpus` are
 * of several memory nodes each group is bound to the cores of its nodes; the caller, of group 0, binds itself with
 * workers_bind(). Before the first region. */
void workers_divide(struct workers *p, unsigned groups, const struct os_cpu *cpus, size_t count);
unsigned workers_groups(const struct workers *p);
unsigned workers_group_of(const struct workers *p, unsigned worker);
/* The calling thread runs regions from here on, or no longer. Nothing where groups are not bound. */
void workers_bind(const struct workers *p);
void workers_unbind(const struct workers *p);
bool workers_are_bound(const struct workers *p);
/* The cores of a group: those of its nodes when there are as many nodes as groups or more, else those of the node that it shares
 * with other groups. Pure; returns their count in `ret` [count], 0 when all are of one node. */
size_t workers_cpus_of(const struct os_cpu *cpus, size_t count, unsigned groups, unsigned group, unsigned *ret_numbers);

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
