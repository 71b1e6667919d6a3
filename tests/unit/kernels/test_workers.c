/* Workers: regions and steps, with and without spinning. */
#include "kernels/workers.h"
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
        struct workers *all;
        unsigned seen[5]; /* not atomic: each worker has its own */
};

static struct workers *new_workers(unsigned threads, unsigned spin) {
        struct workers *p = NULL;
        struct error e;

        assert_int_equal(workers_new(threads, spin, &p, &e), 0);
        assert_int_equal(workers_count(p), threads);
        return p;
}

static void count_workers(void *context, unsigned worker, unsigned workers) {
        struct tally *t = context;

        assert_int_equal(workers, workers_count(t->all));
        t->seen[worker]++;
}

static void every_worker_runs_each_region_once(void **state) {
        for (size_t i = 0; i < 4; i++)
                for (size_t s = 0; s < 2; s++) {
                        struct tally t = {.all = new_workers(counts[i], spins[s])};

                        for (unsigned n = 1; n <= 500; n++) {
                                workers_run(t.all, count_workers, &t);
                                for (unsigned w = 0; w < counts[i]; w++)
                                        assert_int_equal(t.seen[w], n);
                        }
                        workers_free(t.all);
                }
}

enum { STEPS = 50, TASKS = 7 };

struct chain {
        struct workers *all;
        struct step steps[STEPS];
        unsigned written[STEPS][TASKS]; /* not atomic: a task is one thread's */
        _Atomic unsigned wrong;
};

/* Every task of a step adds up what all tasks of the step before it wrote. */
static void run_chain(void *context, unsigned worker, unsigned workers) {
        struct chain *c = context;

        for (unsigned s = 0; s < STEPS; s++) {
                for (size_t i; step_take(&c->steps[s], &i); step_done(c->all, &c->steps[s])) {
                        unsigned sum = 0;

                        for (unsigned j = 0; s > 0 && j < TASKS; j++)
                                sum += c->written[s - 1][j];
                        c->wrong += sum != (s > 0 ? TASKS * s : 0);
                        c->written[s][i] = s + 1;
                }
                step_wait(c->all, &c->steps[s]);
        }
}

static void what_a_step_wrote_is_read_after_it(void **state) {
        for (size_t i = 0; i < 4; i++)
                for (size_t s = 0; s < 2; s++) {
                        struct chain c = {.all = new_workers(counts[i], spins[s])};

                        for (unsigned n = 0; n < 20; n++) {
                                for (unsigned j = 0; j < STEPS; j++)
                                        step_begin(&c.steps[j], TASKS);
                                memset(c.written, 0, sizeof(c.written));
                                workers_share(c.all, run_chain, &c);
                                assert_int_equal(c.wrong, 0);
                                for (unsigned j = 0; j < STEPS; j++)
                                        for (unsigned k = 0; k < TASKS; k++)
                                                assert_int_equal(c.written[j][k], j + 1);
                        }
                        workers_free(c.all);
                }
}

struct tasks {
        struct step step;
        unsigned done[1000];
};

static void take_tasks(void *context, unsigned worker, unsigned workers) {
        struct tasks *t = context;

        for (size_t i; step_take(&t->step, &i);)
                t->done[i]++;
}

/* Regions that are over before most workers have woken: whoever comes late must find the door closed. */
static void each_task_is_done_once_however_late_workers_come(void **state) {
        for (size_t i = 0; i < 4; i++)
                for (size_t s = 0; s < 2; s++) {
                        struct workers *p = new_workers(counts[i], spins[s]);
                        struct tasks t = {0};

                        for (unsigned n = 1; n <= 2000; n++) {
                                step_begin(&t.step, n % 2 ? 1 : 1000);
                                memset(t.done, 0, sizeof(t.done));
                                workers_share(p, take_tasks, &t);
                                for (unsigned j = 0; j < 1000; j++)
                                        if (t.done[j] != (j < t.step.total))
                                                fail_msg("task %u done %u times", j, t.done[j]);
                        }
                        workers_free(p);
                }
}

static void an_empty_step_is_finished(void **state) {
        struct workers *p = new_workers(3, 0);
        struct step s;
        size_t task;

        step_begin(&s, 0);
        assert_false(step_take(&s, &task));
        step_wait(p, &s);
        workers_free(p);
}

static void workers_that_never_ran_end(void **state) {
        for (size_t i = 0; i < 4; i++)
                workers_free(new_workers(counts[i], 0));
        workers_free(NULL);
}

static void nothing(void *context, unsigned worker, unsigned workers) {}

/* The end comes while workers are still waking for the region before it. */
static void workers_end_however_late_they_woke(void **state) {
        for (int i = 0; i < 2000; i++) {
                struct workers *p = new_workers(5, 0);

                workers_share(p, nothing, NULL);
                workers_free(p);
        }
}

static void too_many_threads_are_refused(void **state) {
        struct workers *p = NULL;
        struct error e = {{0}};

        assert_true(workers_new(WORKERS_MAX + 1, 0, &p, &e) < 0);
        assert_null(p);
        assert_non_null(strstr(e.text, "1025"));
}

static void zero_threads_means_every_usable_core(void **state) {
        struct workers *p = NULL;
        struct error e;

        assert_int_equal(workers_new(0, 0, &p, &e), 0);
        assert_true(workers_count(p) >= 1);
        workers_free(p);
}

int main(void) {
        const struct CMUnitTest tests[] = {
            cmocka_unit_test(every_worker_runs_each_region_once),
            cmocka_unit_test(what_a_step_wrote_is_read_after_it),
            cmocka_unit_test(each_task_is_done_once_however_late_workers_come),
            cmocka_unit_test(an_empty_step_is_finished),
            cmocka_unit_test(workers_that_never_ran_end),
            cmocka_unit_test(workers_end_however_late_they_woke),
            cmocka_unit_test(too_many_threads_are_refused),
            cmocka_unit_test(zero_threads_means_every_usable_core),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
