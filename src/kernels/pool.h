/* pool.h - the worker threads of one struct compute: a region run by all, barriers inside it.
 *
 * Waiting spins for a budget and then sleeps in the kernel, so that a busy step costs no system calls and an idle engine
 * no CPU. With a budget of 0 nobody spins: right where cores are shared with other work. */
#pragma once
#include "base/error.h"
#include <stdalign.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

/* More threads than this on one compute is a mistake, not a machine. */
#define POOL_THREADS_MAX 1024

struct pool;

/* `threads` counts the caller (0: one per usable core). Returns 0, -EINVAL, -ENOMEM or what pthread_create said. */
int pool_new(unsigned threads, bool pin, unsigned spin_us, struct pool **ret_pool, struct error *e);
void pool_free(struct pool *p); /* NULL is fine; no region may be running */
unsigned pool_threads(const struct pool *p);

/* Run task(context, worker, workers) on every thread, the caller being worker 0. Returns when all have returned; what
 * they wrote is visible to the caller. */
void pool_run(struct pool *p, void (*task)(void *context, unsigned worker, unsigned workers), void *context);
/* Inside a region: wait until every worker is here. */
void pool_barrier(struct pool *p);
