/* Workers: regions and steps, with and without spinning. */
#include "kernels/workers.h"
#include <sched.h>
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

/* Two nodes of three and two cores, as os_cpus() gives them. */
static const struct os_cpu two_nodes[] = {{0, 0}, {1, 0}, {8, 0}, {4, 1}, {5, 1}};

static void check_cpus(unsigned groups, unsigned group, const unsigned *wanted, size_t count) {
        unsigned numbers[5];

        assert_int_equal(workers_cpus_of(two_nodes, 5, groups, group, numbers), count);
        assert_memory_equal(numbers, wanted, count * sizeof(*numbers));
}

static void groups_take_the_cores_of_their_nodes(void **state) {
        static const unsigned first[] = {0, 1, 8}, second[] = {4, 5}, all[] = {0, 1, 8, 4, 5};
        static const struct os_cpu one_node[] = {{0, 3}, {1, 3}};
        unsigned numbers[5];

        check_cpus(1, 0, all, 5);
        check_cpus(2, 0, first, 3);
        check_cpus(2, 1, second, 2);
        check_cpus(3, 0, first, 3); /* nodes are shared by neighbours */
        check_cpus(3, 1, first, 3);
        check_cpus(3, 2, second, 2);
        check_cpus(4, 1, first, 3);
        check_cpus(4, 2, second, 2);
        assert_int_equal(workers_cpus_of(one_node, 2, 2, 0, numbers), 0);
        assert_int_equal(workers_cpus_of(NULL, 0, 2, 0, numbers), 0);
}

struct places {
        struct workers *all;
        cpu_set_t seen[4];
};

static void note_place(void *context, unsigned worker, unsigned workers) {
        struct places *p = context;

        assert_int_equal(sched_getaffinity(0, sizeof(p->seen[worker]), &p->seen[worker]), 0);
}

/* A real core, said to be of one node, and the others of another. */
static void workers_of_a_group_stay_on_its_node(void **state) {
        struct places p = {.all = new_workers(4, 0)};
        struct os_cpu cpus[4096];
        size_t count = os_cpus(cpus, 4096);
        cpu_set_t before, after;

        if (count < 2) {
                workers_free(p.all);
                skip();
        }
        for (size_t i = 0; i < count; i++)
                cpus[i].node = i > 0;
        assert_int_equal(sched_getaffinity(0, sizeof(before), &before), 0);
        workers_divide(p.all, 2, cpus, count);
        assert_true(workers_are_bound(p.all));
        workers_bind(p.all);
        workers_run(p.all, note_place, &p);
        workers_unbind(p.all);
        assert_int_equal(sched_getaffinity(0, sizeof(after), &after), 0);
        assert_true(CPU_EQUAL(&before, &after));
        for (unsigned w = 0; w < 4; w++) {
                assert_int_equal(workers_group_of(p.all, w), w / 2);
                assert_int_equal(CPU_COUNT(&p.seen[w]), w < 2 ? 1 : count - 1);
                assert_int_equal(CPU_ISSET(cpus[0].number, &p.seen[w]) != 0, w < 2);
        }
        workers_free(p.all);
}

static void without_nodes_nobody_is_bound(void **state) {
        struct places p = {.all = new_workers(3, 0)};
        struct os_cpu cpus[4096];
        size_t count = os_cpus(cpus, 4096);
        cpu_set_t before;

        for (size_t i = 0; i < count; i++)
                cpus[i].node = 0;
        assert_int_equal(sched_getaffinity(0, sizeof(before), &before), 0);
        workers_divide(p.all, 3, cpus, count);
        assert_false(workers_are_bound(p.all));
        workers_bind(p.all);
        workers_run(p.all, note_place, &p);
        for (unsigned w = 0; w < 3; w++)
                assert_true(CPU_EQUAL(&before, &p.seen[w]));
        workers_free(p.all);
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
            cmocka_unit_test(groups_take_the_cores_of_their_nodes),
            cmocka_unit_test(workers_of_a_group_stay_on_its_node),
            cmocka_unit_test(without_nodes_nobody_is_bound),
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
