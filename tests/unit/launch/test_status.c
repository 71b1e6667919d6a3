/* test_status.c - what commands read of the supervisor: its answers, the last words of a process, its paths. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "launch/launch.h"
#include "os/os.h"
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

static char dir[] = "/tmp/baton-test-status-XXXXXX";

static int make_dir(void **state) {
        (void)state;
        return mkdtemp(dir) ? 0 : -1;
}

static int drop_dir(void **state) {
        char command[128];

        (void)state;
        snprintf(command, sizeof(command), "rm -rf %s", dir);
        return system(command);
}

static void the_last_lines_are_found(void **state) {
        static const struct {
                const char *text;
                unsigned lines;
                const char *last;
        } cases[] = {{"a\nb\nc\n", 2, "b\nc\n"}, {"a\nb\nc", 2, "b\nc"}, {"a\nb\n", 5, "a\nb\n"}, {"", 3, ""},
            {"x", 1, "x"}, {"\n\n\n", 1, "\n"}, {"a\n\nb\n", 2, "\nb\n"}};
        struct launch_paths paths = {0};
        char path[400];

        (void)state;
        snprintf(paths.logs, sizeof(paths.logs), "%s", dir);
        snprintf(path, sizeof(path), "%s/d0.0.log", dir);
        for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
                struct buf b = {0};

                assert_int_equal(os_write_file_atomic(path, slice_str(cases[i].text), 0600, NULL), 0);
                assert_int_equal(launch_last_words(&paths, SLICE_LIT("d0.0"), cases[i].lines, &b), 0);
                assert_string_equal(buf_cstr(&b), cases[i].last);
                buf_free(&b);
        }
        assert_int_equal(launch_last_words(&paths, SLICE_LIT("none"), 1, &(struct buf){0}), -ENOENT);
}

static void an_answer_is_read_field_by_field(void **state) {
        struct arena arena = {0};
        struct launch_status s;
        struct error e = {0};

        (void)state;
        assert_int_equal(
            launch_status_parse(
                SLICE_LIT("{\"pid\":7,\"digest\":\"ab\",\"stopping\":true,\"processes\":[{\"name\":\"d0.0\",\"role\":"
                          "\"decode\",\"url\":\"u\",\"state\":\"back-off\",\"pid\":null,\"restarts\":3,\"since_ms\":5,"
                          "\"ready_ms\":null,\"retry_ms\":40,\"last_exit\":\"killed by SIGKILL\"}]}"),
                &arena, &s, &e),
            0);
        assert_int_equal(s.count, 1);
        assert_true(s.stopping);
        assert_int_equal(s.processes[0].state, PROCESS_BACKOFF);
        assert_int_equal(s.processes[0].pid, -1);
        assert_int_equal(s.processes[0].retry_ms, 40);
        assert_true(slice_is(s.processes[0].last_exit, "killed by SIGKILL"));
        assert_int_equal(launch_status_parse(SLICE_LIT("{"), &arena, &s, &e), -EINVAL);
        arena_free(&arena);
}

static void state_directories_are_private_and_ours(void **state) {
        struct cluster c = {.file = "x.yaml"};
        struct launch_paths p;
        struct error e = {0};
        struct stat st;
        char sub[128], link_path[160], long_name[300];

        (void)state;
        snprintf(sub, sizeof(sub), "%s/state", dir);
        c.supervise.state_dir = slice_str(sub);
        assert_int_equal(launch_paths(&c, SLICE_NONE, true, &p, &e), 0);
        assert_int_equal(stat(p.logs, &st), 0);
        assert_int_equal(chmod(sub, 0755), 0);
        assert_int_equal(launch_paths(&c, SLICE_NONE, true, &p, &e), 0);
        assert_int_equal(stat(sub, &st), 0);
        assert_int_equal(st.st_mode & 0777, 0700);
        /* A link that somebody put there leads elsewhere. */
        snprintf(link_path, sizeof(link_path), "%s/link", dir);
        assert_int_equal(symlink(sub, link_path), 0);
        c.supervise.state_dir = slice_str(link_path);
        assert_int_equal(launch_paths(&c, SLICE_NONE, true, &p, &e), -EPERM);
        memset(long_name, 'a', sizeof(long_name) - 1);
        long_name[0] = '/';
        long_name[sizeof(long_name) - 1] = 0;
        c.supervise.state_dir = slice_str(long_name);
        assert_int_equal(launch_paths(&c, SLICE_NONE, false, &p, &e), -ENAMETOOLONG);
}

int main(void) {
        const struct CMUnitTest tests[] = {
            cmocka_unit_test(the_last_lines_are_found),
            cmocka_unit_test(an_answer_is_read_field_by_field),
            cmocka_unit_test(state_directories_are_private_and_ours),
        };

        return cmocka_run_group_tests_name("status", tests, make_dir, drop_dir);
}
