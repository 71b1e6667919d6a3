/* test_causes.c - the telling line of what a process wrote, and what is known of it. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "launch/launch.h"

static void the_line_that_tells_is_found(void **state) {
        static const struct {
                const char *words, *line;
                bool known;
        } cases[] = {
            {"", "", false},
            {"\n \n", "", false},
            {"loading\ndone\n", "done", false},
            /* An exception tells more than what follows from it, wherever it stands. */
            {"INFO a\nTraceback (most recent call last):\n  File x\nKeyError: 'rope'\nRuntimeError: Engine core "
             "initialization failed. See root cause above.\n[rank0] destroying\n",
                "KeyError: 'rope'", false},
            /* The last of equal ones: earlier ones were tried again. */
            {"ValueError: a\nretrying\nValueError: b\nbye\n", "ValueError: b", false},
            {"RuntimeError: Engine core initialization failed. See root cause above.\n",
                "RuntimeError: Engine core initialization failed. See root cause above.", false},
            {"usage: vllm\nvllm: error: unrecognized arguments: --block\n",
                "vllm: error: unrecognized arguments: --block", true},
            {"OSError: [Errno 98] Address already in use\nRuntimeError: late\n",
                "OSError: [Errno 98] Address already in use", true},
            {"RuntimeError: NPU out of memory. Tried to allocate 2.00 GiB\r\nValueError: x\n",
                "RuntimeError: NPU out of memory. Tried to allocate 2.00 GiB", true},
            /* A cause before what only follows from it. */
            {"Address already in use\nValueError: KV transfer 'prefill' config has a conflicting data parallel size. "
             "Expected 1, but got 2\n",
                "ValueError: KV transfer 'prefill' config has a conflicting data parallel size. Expected 1, but got 2",
                true},
            {"baton: cannot open /m/config.json: No such file or directory\n",
                "baton: cannot open /m/config.json: No such file or directory", true},
        };

        (void)state;
        for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
                struct launch_cause c = launch_explain(slice_str(cases[i].words));

                assert_int_equal(c.line.len, strlen(cases[i].line));
                assert_memory_equal(c.line.ptr ? c.line.ptr : "", cases[i].line, c.line.len);
                assert_int_equal(c.cause != NULL, cases[i].known);
                assert_int_equal(c.cure != NULL, cases[i].known);
        }
}

static void a_line_is_bounded(void **state) {
        char words[4000];

        (void)state;
        memset(words, 'x', sizeof(words));
        assert_int_equal(launch_explain(slice_of(words, sizeof(words))).line.len, LAUNCH_LINE_MAX);
}

int main(void) {
        const struct CMUnitTest tests[] = {
            cmocka_unit_test(the_line_that_tells_is_found),
            cmocka_unit_test(a_line_is_bounded),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
