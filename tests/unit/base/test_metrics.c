/* test_metrics.c - histograms count right, and the text is what Prometheus reads. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "base/metrics.h"
#include "base/rng.h"
#include "failmalloc.h"
#include <errno.h>
#include <math.h>
#include <stdlib.h>

static const double bounds[] = {-1, 0, 0.005, 0.5, 1, 2, 1000};
#define BOUNDS (sizeof(bounds) / sizeof(*bounds))

static void a_value_falls_into_the_first_bucket_that_holds_it(void **state) {
        struct histogram h;
        uint64_t want[BOUNDS + 1] = {0}, total = 0;
        struct rng r;

        assert_int_equal(histogram_init(&h, bounds, BOUNDS), 0);
        rng_seed(&r, 1);
        for (int i = 0; i < 10000; i++) {
                double value = i % 3 ? rng_unit(&r) * 4 - 2 : bounds[rng_below(&r, BOUNDS)]; /* bounds are inclusive */
                size_t at = 0;

                while (at < BOUNDS && value > bounds[at])
                        at++;
                want[at]++;
                total++;
                histogram_add(&h, value);
        }
        histogram_add(&h, NAN);
        assert_memory_equal(h.counts, want, sizeof(want));
        assert_true(h.total == total);
        assert_true(isfinite(h.sum));
        histogram_add(&h, INFINITY);
        assert_true(h.counts[BOUNDS] == want[BOUNDS] + 1);
        histogram_free(&h);
        histogram_free(&h);
}

static void a_copy_stays_as_it_was(void **state) {
        struct histogram h, copy;
        struct buf before = {0}, after = {0};

        assert_int_equal(histogram_init(&h, bounds, BOUNDS), 0);
        assert_int_equal(histogram_init(&copy, bounds, BOUNDS), 0);
        for (size_t i = 0; i < BOUNDS; i++)
                histogram_add(&h, bounds[i] + 0.1);
        metrics_histogram(&before, "h", "", &h);
        histogram_copy(&copy, &h);
        histogram_add(&h, 0);
        metrics_histogram(&after, "h", "", &copy);
        assert_true(slice_eq(buf_slice(&before), buf_slice(&after)));
        buf_free(&before);
        buf_free(&after);
        histogram_free(&h);
        histogram_free(&copy);
}

static void a_histogram_without_bounds_still_counts(void **state) {
        struct histogram h;
        struct buf b = {0};

        assert_int_equal(histogram_init(&h, NULL, 0), 0);
        histogram_add(&h, 2.5);
        metrics_histogram(&b, "h", "", &h);
        assert_string_equal(buf_cstr(&b), "h_bucket{le=\"+Inf\"} 1.0\nh_sum 2.5\nh_count 1.0\n");
        histogram_free(&h);
        buf_free(&b);
}

static void the_text_is_what_prometheus_reads(void **state) {
        static const double two[] = {0.1, 1};
        struct histogram h;
        struct buf b = {0}, labels = {0};

        assert_int_equal(histogram_init(&h, two, 2), 0);
        histogram_add(&h, 0.1);
        histogram_add(&h, 0.5);
        histogram_add(&h, 7);
        metrics_describe(&b, "x_total", METRIC_COUNTER, "Things.");
        metrics_sample(&b, "x_total", "", 3);
        metrics_label(&labels, "engine", SLICE_LIT("0"));
        metrics_sample(&b, "x_total", buf_cstr(&labels), 1e300);
        metrics_describe(&b, "h", METRIC_HISTOGRAM, "Seconds.");
        metrics_histogram(&b, "h", buf_cstr(&labels), &h);
        metrics_describe(&b, "g", METRIC_GAUGE, "Level.");
        metrics_sample(&b, "g", "", NAN);
        metrics_sample(&b, "g", "", INFINITY);
        metrics_sample(&b, "g", "", -INFINITY);
        assert_string_equal(buf_cstr(&b), "# HELP x_total Things.\n# TYPE x_total counter\n"
                                          "x_total 3.0\nx_total{engine=\"0\"} 1e+300\n"
                                          "# HELP h Seconds.\n# TYPE h histogram\n"
                                          "h_bucket{engine=\"0\",le=\"0.1\"} 1.0\n"
                                          "h_bucket{engine=\"0\",le=\"1.0\"} 2.0\n"
                                          "h_bucket{engine=\"0\",le=\"+Inf\"} 3.0\n"
                                          "h_sum{engine=\"0\"} 7.6\nh_count{engine=\"0\"} 3.0\n"
                                          "# HELP g Level.\n# TYPE g gauge\ng NaN\ng +Inf\ng -Inf\n");
        histogram_free(&h);
        buf_free(&b);
        buf_free(&labels);
}

static void label_values_are_escaped(void **state) {
        struct buf labels = {0};

        metrics_label(&labels, "a", SLICE_LIT("say \"hi\"\\\n{}"));
        metrics_label(&labels, "b", SLICE_NONE);
        assert_string_equal(buf_cstr(&labels), "a=\"say \\\"hi\\\"\\\\\\n{}\",b=\"\"");
        buf_free(&labels);
}

static void out_of_memory_is_said(void **state) {
        struct histogram h;

        failmalloc_from(0, 0);
        {
                int r = histogram_init(&h, bounds, BOUNDS);

                failmalloc_off();
                assert_int_equal(r, -ENOMEM);
        }
}

int main(void) {
        const struct CMUnitTest tests[] = {
            cmocka_unit_test(a_value_falls_into_the_first_bucket_that_holds_it),
            cmocka_unit_test(a_copy_stays_as_it_was),
            cmocka_unit_test(a_histogram_without_bounds_still_counts),
            cmocka_unit_test(the_text_is_what_prometheus_reads),
            cmocka_unit_test(label_values_are_escaped),
            cmocka_unit_test(out_of_memory_is_said),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
