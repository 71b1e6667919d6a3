/* test_scrape.c - engines' metrics, of several versions and ranks. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "gateway/scrape.h"
#include <errno.h>

static void assert_load(const char *text, int dp_rank, uint64_t requests, double kv) {
        struct scraped_load l;

        assert_int_equal(scrape_load(slice_str(text), dp_rank, &l), 0);
        assert_int_equal(l.requests, requests);
        assert_true(l.kv_usage == kv);
}

static void running_and_waiting_are_counted_of_one_rank_or_all(void **state) {
        static const char text[] = "# HELP vllm:num_requests_running Number of requests in model execution batches.\n"
                                   "# TYPE vllm:num_requests_running gauge\n"
                                   "vllm:num_requests_running{engine=\"0\",model_name=\"a{b}\"} 3.0\n"
                                   "vllm:num_requests_running{engine=\"1\",model_name=\"a{b}\"} 5.0\n"
                                   "vllm:num_requests_waiting{engine=\"0\",model_name=\"a{b}\"} 2.0\n"
                                   "vllm:num_requests_waiting{engine=\"1\",model_name=\"a{b}\"} 0.0 1700000000000\n"
                                   "vllm:num_requests_waiting_by_reason{engine=\"1\",reason=\"x\"} 7.0\n"
                                   "vllm:kv_cache_usage_perc{engine=\"0\"} 0.25\n"
                                   "vllm:kv_cache_usage_perc{engine=\"1\"} 0.5\n";
        struct scraped_load l;

        assert_load(text, 0, 5, 0.25);
        assert_load(text, 1, 5, 0.5);
        assert_load(text, -1, 10, 0.5);
        assert_int_equal(scrape_load(slice_str(text), 11, &l), -ENODATA);
}

static void old_and_short_forms_are_read(void **state) {
        assert_load("vllm:num_requests_running 2\r\nvllm:gpu_cache_usage_perc{model_name=\"m\"} 0.125", 3, 2, 0.125);
        assert_load("vllm:num_requests_waiting{model_name=\"m\"} 4\n", -1, 4, 0);
}

static void what_says_nothing_is_told_so(void **state) {
        static const char *const texts[] = {"", "x", "vllm:", "vllm:num_requests_running", "vllm:num_requests_running{",
            "vllm:num_requests_running{} ", "vllm:num_requests_running nan", "vllm:num_requests_running inf",
            "vllm:num_requests_running 1e300", "sglang:num_running_reqs 3\n"};

        for (size_t i = 0; i < sizeof(texts) / sizeof(*texts); i++) {
                struct scraped_load l = {.requests = 77};
                int r = scrape_load(slice_str(texts[i]), -1, &l);

                if (r == 0)
                        assert_int_equal(l.requests, 0);
                else
                        assert_int_equal(l.requests, 77);
        }
}

int main(void) {
        const struct CMUnitTest tests[] = {
            cmocka_unit_test(running_and_waiting_are_counted_of_one_rank_or_all),
            cmocka_unit_test(old_and_short_forms_are_read),
            cmocka_unit_test(what_says_nothing_is_told_so),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
