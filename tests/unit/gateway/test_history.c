/* test_history.c - laws of the last minutes in figures. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "gateway/history.h"
#include <math.h>

static struct stats stats;
static struct history history;

static int set_up(void **state) {
        return stats_init(&stats) < 0 || history_init(&history, &stats) < 0;
}

static int tear_down(void **state) {
        history_free(&history);
        stats_free(&stats);
        return 0;
}

static void sample(double seconds) {
        const struct stats_now now = {.requests = 3, .streams = 2, .waiting = 1};

        history_sample(&history, &stats, &now, (uint64_t)(seconds * (double)NS_PER_S));
}

static void a_point_says_what_came_since_the_one_before(void **state) {
        const struct history_point *p;

        stats.codes[200] = 1000; /* before anybody looked */
        sample(10);
        assert_int_equal(history.count, 0);
        stats.codes[200] += 6;
        stats.codes[502] += 2;
        stats_count(&stats, COUNT_CUT, 2);
        stats_count(&stats, COUNT_EVENTS, 100);
        sample(12);
        sample(16);
        assert_int_equal(history.count, 2);
        p = history_at(&history, 0);
        assert_true(p->requests == 4 && p->errors == 2 && p->events == 50);
        assert_true(p->running == 3 && p->streams == 2 && p->waiting == 1);
        p = history_at(&history, 1);
        assert_true(p->requests == 0 && p->errors == 0 && p->events == 0 && isnan(p->ttft_p50));
}

static void quantiles_are_those_of_the_new_values_alone(void **state) {
        stats_time(&stats, TIME_TTFT, 100 * NS_PER_S);
        sample(2);
        for (int i = 0; i < 99; i++)
                stats_time(&stats, TIME_TTFT, 3 * NS_PER_MS);
        stats_time(&stats, TIME_TTFT, 2 * NS_PER_S);
        sample(4);
        /* Within the bucket that holds them: 2.5 to 5 ms, 1 to 2.5 s. */
        assert_true(history_at(&history, 0)->ttft_p50 > 0.0025 && history_at(&history, 0)->ttft_p50 <= 0.005);
        assert_true(history_at(&history, 0)->ttft_p99 <= 0.005);
        stats_time(&stats, TIME_TTFT, 2 * NS_PER_S);
        stats_time(&stats, TIME_ITL, 3600 * NS_PER_S);
        sample(6);
        assert_true(history_at(&history, 1)->ttft_p50 > 1 && history_at(&history, 1)->ttft_p99 <= 2.5);
        assert_true(history_at(&history, 1)->itl_p99 == 5); /* the last bound */
}

static void the_oldest_points_go(void **state) {
        for (int i = 1; i <= 2 * HISTORY_POINTS + 7; i++) {
                stats_count(&stats, COUNT_EVENTS, (uint64_t)i);
                sample(i);
        }
        assert_int_equal(history.count, HISTORY_POINTS);
        for (size_t i = 0; i < HISTORY_POINTS; i++)
                assert_true(history_at(&history, i)->events == (double)(HISTORY_POINTS + 8 + i));
}

int main(void) {
        const struct CMUnitTest tests[] = {
            cmocka_unit_test_setup_teardown(a_point_says_what_came_since_the_one_before, set_up, tear_down),
            cmocka_unit_test_setup_teardown(quantiles_are_those_of_the_new_values_alone, set_up, tear_down),
            cmocka_unit_test_setup_teardown(the_oldest_points_go, set_up, tear_down),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
