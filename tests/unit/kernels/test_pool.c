/* The worker pool: regions and barriers, with and without spinning. */
#include "kernels/pool.h"
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static const unsigned counts[] = {1, 2, 3, 5};
static const unsigned spins[] = {0, 50};

struct tally {
        struct pool *pool;
        unsigned seen[5];  /* not atomic: each worker has its own */
        unsigned shared;   /* written by one worker between barriers */
        unsigned wrong[5]; /* times a worker saw something else in `shared` */
};

static struct pool *new_pool(unsigned threads, unsigned spin) {
        struct pool *p = NULL;
        struct error e;

        assert_int_equal(pool_new(threads, false, spin, &p, &e), 0);
        assert_int_equal(pool_threads(p), threads);
        return p;
}

static void count_workers(void *context, unsigned worker, unsigned workers) {
        struct tally *t = context;

        assert_int_equal(workers, pool_threads(t->pool));
        t->seen[worker]++;
}

static void every_worker_runs_each_region_once(void **state) {
        for (size_t i = 0; i < 4; i++)
                for (size_t s = 0; s < 2; s++) {
                        struct tally t = {.pool = new_pool(counts[i], spins[s])};

                        for (unsigned n = 1; n <= 500; n++) {
                                pool_run(t.pool, count_workers, &t);
                                for (unsigned w = 0; w < counts[i]; w++)
                                        assert_int_equal(t.seen[w], n);
                        }
                        pool_free(t.pool);
                }
}

static void pass_a_number_around(void *context, unsigned worker, unsigned workers) {
        struct tally *t = context;

        for (unsigned round = 0; round < 200; round++) {
                if (worker == round % workers)
                        t->shared = round;
                pool_barrier(t->pool);
                t->wrong[worker] += t->shared != round;
                pool_barrier(t->pool);
        }
}

static void what_is_written_before_a_barrier_is_read_after_it(void **state) {
        for (size_t i = 0; i < 4; i++)
                for (size_t s = 0; s < 2; s++) {
                        struct tally t = {.pool = new_pool(counts[i], spins[s])};

                        pool_run(t.pool, pass_a_number_around, &t);
                        pool_run(t.pool, pass_a_number_around, &t);
                        for (unsigned w = 0; w < counts[i]; w++)
                                assert_int_equal(t.wrong[w], 0);
                        pool_free(t.pool);
                }
}

static void a_pool_that_never_ran_ends(void **state) {
        for (size_t i = 0; i < 4; i++)
                pool_free(new_pool(counts[i], 0));
        pool_free(NULL);
}

static void too_many_threads_are_refused(void **state) {
        struct pool *p = NULL;
        struct error e = {{0}};

        assert_true(pool_new(POOL_THREADS_MAX + 1, false, 0, &p, &e) < 0);
        assert_null(p);
        assert_non_null(strstr(e.text, "1025"));
}

static void zero_threads_means_every_usable_core(void **state) {
        struct pool *p = NULL;
        struct error e;

        assert_int_equal(pool_new(0, true, 0, &p, &e), 0);
        assert_true(pool_threads(p) >= 1);
        pool_free(p);
}

int main(void) {
        const struct CMUnitTest tests[] = {
            cmocka_unit_test(every_worker_runs_each_region_once),
            cmocka_unit_test(what_is_written_before_a_barrier_is_read_after_it),
            cmocka_unit_test(a_pool_that_never_ran_ends),
            cmocka_unit_test(too_many_threads_are_refused),
            cmocka_unit_test(zero_threads_means_every_usable_core),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
