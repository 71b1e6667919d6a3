/* test_wheel.c - deadlines fire in their millisecond, once, and not before; against a plain list of times. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "base/rng.h"
#include "http/wheel.h"

#define TIMERS 200

struct probe {
        struct wheel_timer timer;
        uint64_t fired_at, wanted;
        unsigned fired;
};

static struct wheel wheel;
static uint64_t now;
static struct probe *victim; /* stopped by the next that fires */

static void on_fire(struct wheel_timer *t) {
        struct probe *p = list_item(t, struct probe, timer);

        p->fired++;
        p->fired_at = now;
        if (victim) {
                wheel_stop(&victim->timer);
                victim = NULL;
        }
}

/* Go to `to`, stopping wherever the wheel asks for it, as a loop would. */
static void go_to(uint64_t to) {
        while (now < to) {
                uint64_t next = wheel_next(&wheel);

                assert_true(next > now);
                now = next < to ? next : to;
                wheel_advance(&wheel, now);
        }
}

static void start(struct probe *p) {
        *p = (struct probe){0};
        wheel_timer_init(&p->timer, on_fire);
}

static void a_deadline_fires_in_its_millisecond_at_any_distance(void **state) {
        static const uint64_t distances[] = {
            1, 2, 63, 64, 65, 4095, 4096, 4097, 262143, 262144, 16777215, 16777216, 100000000};

        for (uint64_t begin = 0; begin < 200; begin += 37) {
                for (size_t i = 0; i < sizeof(distances) / sizeof(distances[0]); i++) {
                        struct probe p;

                        start(&p);
                        now = begin;
                        wheel_init(&wheel, now);
                        wheel_set(&wheel, &p.timer, begin + distances[i], now);
                        go_to(begin + distances[i] - 1);
                        assert_int_equal(p.fired, 0);
                        go_to(begin + distances[i]);
                        assert_int_equal(p.fired, 1);
                        go_to(begin + distances[i] + 100000);
                        assert_int_equal(p.fired, 1);
                        assert_true(wheel_next(&wheel) == WHEEL_NEVER);
                }
        }
}

static void a_deadline_in_the_past_fires_at_the_next_step(void **state) {
        struct probe p;

        start(&p);
        now = 1000;
        wheel_init(&wheel, now);
        wheel_set(&wheel, &p.timer, 10, now);
        assert_int_equal(wheel_next(&wheel), 1001);
        go_to(1001);
        assert_int_equal(p.fired, 1);
}

static void pushing_later_moves_nothing_until_the_old_time_comes(void **state) {
        struct probe p;

        start(&p);
        now = 0;
        wheel_init(&wheel, now);
        assert_true(wheel_set(&wheel, &p.timer, 100, now));
        assert_false(wheel_set(&wheel, &p.timer, 200, now));
        assert_false(wheel_set(&wheel, &p.timer, WHEEL_NEVER, now));
        assert_false(wheel_set(&wheel, &p.timer, 150, now));
        go_to(149);
        assert_int_equal(p.fired, 0);
        go_to(150);
        assert_int_equal(p.fired, 1);
        assert_true(wheel_set(&wheel, &p.timer, 300, now));
        assert_true(wheel_set(&wheel, &p.timer, 200, now));
        go_to(200);
        assert_int_equal(p.fired, 2);
        wheel_set(&wheel, &p.timer, 300, now);
        wheel_set(&wheel, &p.timer, WHEEL_NEVER, now);
        go_to(1000);
        assert_int_equal(p.fired, 2);
        assert_true(wheel_next(&wheel) == WHEEL_NEVER);
}

static void a_timer_may_be_stopped_by_another_that_fires_with_it(void **state) {
        struct probe p[3];

        now = 0;
        wheel_init(&wheel, now);
        for (int i = 0; i < 3; i++) {
                start(&p[i]);
                wheel_set(&wheel, &p[i].timer, 50, now);
        }
        victim = &p[2];
        go_to(50);
        assert_int_equal(p[0].fired + p[1].fired, 2);
        assert_int_equal(p[2].fired, 0);
}

static void an_idle_wheel_catches_up_with_the_time(void **state) {
        struct probe p;

        start(&p);
        wheel_init(&wheel, 5);
        now = 1u << 30;
        wheel_set(&wheel, &p.timer, now + 10, now);
        assert_int_equal(wheel_next(&wheel), now + 10);
        go_to(now + 10);
        assert_int_equal(p.fired, 1);
}

static void random_sets_and_stops_agree_with_a_list_of_times(void **state) {
        static struct probe p[TIMERS];
        struct rng rng;

        rng_seed(&rng, 11);
        now = 123456;
        wheel_init(&wheel, now);
        for (int i = 0; i < TIMERS; i++) {
                start(&p[i]);
                p[i].wanted = WHEEL_NEVER;
        }
        for (int step = 0; step < 20000; step++) {
                struct probe *one = &p[rng_below(&rng, TIMERS)];
                uint64_t span = 1ull << rng_below(&rng, 20);

                if (rng_below(&rng, 4) == 0) {
                        wheel_stop(&one->timer);
                        one->wanted = WHEEL_NEVER;
                } else {
                        one->wanted = now + 1 + rng_below(&rng, span);
                        wheel_set(&wheel, &one->timer, one->wanted, now);
                }
                one->fired = 0;
                go_to(now + rng_below(&rng, 50));
                for (int i = 0; i < TIMERS; i++) {
                        bool due = p[i].wanted <= now;

                        assert_int_equal(p[i].fired, due);
                        if (due) {
                                assert_int_equal(p[i].fired_at, p[i].wanted);
                                p[i].wanted = WHEEL_NEVER;
                                p[i].fired = 0;
                        }
                }
        }
}

int main(void) {
        const struct CMUnitTest tests[] = {
            cmocka_unit_test(a_deadline_fires_in_its_millisecond_at_any_distance),
            cmocka_unit_test(a_deadline_in_the_past_fires_at_the_next_step),
            cmocka_unit_test(pushing_later_moves_nothing_until_the_old_time_comes),
            cmocka_unit_test(a_timer_may_be_stopped_by_another_that_fires_with_it),
            cmocka_unit_test(an_idle_wheel_catches_up_with_the_time),
            cmocka_unit_test(random_sets_and_stops_agree_with_a_list_of_times),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
