/* test_child.c - child processes: what they inherit, how they end, and that none is left behind. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "os/os.h"
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#define DEADLINE_MS 30000 /* for what takes milliseconds; CI machines are shared */

/* All of what comes until the other end is closed, as text. */
static void read_to_end(int fd, char *text, size_t size) {
        size_t n = 0;

        for (;;) {
                struct pollfd p = {fd, POLLIN, 0};
                ssize_t got;

                assert_int_equal(poll(&p, 1, DEADLINE_MS), 1);
                got = read(fd, text + n, size - 1 - n);
                assert_true(got >= 0);
                if (got == 0)
                        break;
                n += (size_t)got;
        }
        text[n] = 0;
}

static void await_end(struct os_child *child, struct os_child_exit *ended) {
        struct pollfd p = {child->pidfd, POLLIN, 0};

        assert_int_equal(poll(&p, 1, DEADLINE_MS), 1);
        assert_int_equal(os_child_reap(child, false, ended), 0);
        assert_int_equal(child->pidfd, -1);
}

/* Runs argv with its standard output in `text`. */
static struct os_child_exit run(struct os_child_options o, char *text, size_t size) {
        struct os_child child;
        struct os_child_exit ended;
        struct error e = {0};
        int fds[2];

        assert_int_equal(pipe2(fds, O_CLOEXEC), 0);
        o.stdout_fd = fds[1];
        if (os_child_start(&o, &child, &e) < 0)
                fail_msg("%s", e.text);
        close(fds[1]);
        read_to_end(fds[0], text, size);
        close(fds[0]);
        await_end(&child, &ended);
        return ended;
}

static void a_child_gets_its_argv_and_env_and_no_descriptor_else(void **state) {
        static const char *const argv[] = {"sh", "-c",
            "echo $1-$BATON_A-${BATON_B:-none}-$BATON_C; ls /proc/self/fd | tr '\\n' ' '; echo; exit 3", "sh",
            "it's \"x\"", NULL};
        static const char *const env[] = {"BATON_A=1 2", "BATON_B", "BATON_C=a=b", NULL};
        struct os_child_options o = {.argv = argv, .env = env, .stdin_fd = -1, .stderr_fd = -1};
        struct os_child_exit ended;
        char text[512];
        int leaked = open("/dev/null", O_RDONLY), high = fcntl(leaked, F_DUPFD, 200); /* without close-on-exec */

        assert_true(high >= 200);
        setenv("BATON_A", "old", 1);
        setenv("BATON_B", "set", 1);
        setenv("BATON_BB", "a longer name is another", 1);
        ended = run(o, text, sizeof(text));
        assert_non_null(strstr(text, "it's \"x\"-1 2-none-a=b\n"));
        assert_non_null(strstr(text, "\n0 1 2 3 \n")); /* 3 is ls's own directory */
        assert_false(ended.signaled);
        assert_int_equal(ended.code, 3);
        close(leaked);
        close(high);
}

static void a_child_begins_with_default_signals(void **state) {
        static const char *const argv[] = {"grep", "Sig[BI]", "/proc/self/status", NULL};
        struct os_child_options o = {.argv = argv, .stdin_fd = -1, .stderr_fd = -1};
        char text[512];
        sigset_t blocked, before, after;

        os_ignore_sigpipe();
        sigemptyset(&blocked);
        sigaddset(&blocked, SIGTERM);
        sigprocmask(SIG_BLOCK, &blocked, &before);
        run(o, text, sizeof(text));
        {
                unsigned long long held = 1, ignored = 1;
                /* Signals 32 and 33 are glibc's own: no program can set them, some parents leave them ignored. */
                const unsigned long long own = 3ull << 31;

                assert_int_equal(sscanf(text, "SigBlk: %llx SigIgn: %llx", &held, &ignored), 2);
                assert_int_equal(held, 0);
                assert_int_equal(ignored & ~own, 0);
        }
        sigprocmask(SIG_SETMASK, &before, &after);
        assert_true(sigismember(&after, SIGTERM)); /* the parent's own mask is as it was */
        assert_false(sigismember(&after, SIGINT));
}

static void a_child_starts_in_its_directory(void **state) {
        static const char *const argv[] = {"pwd", NULL};
        struct os_child_options o = {.argv = argv, .directory = "/usr", .stdin_fd = -1, .stderr_fd = -1};
        struct os_child child;
        struct error e = {0};
        char text[64];

        run(o, text, sizeof(text));
        assert_string_equal(text, "/usr\n");
        o.directory = "/no/such/directory";
        o.stdout_fd = -1;
        assert_int_equal(os_child_start(&o, &child, &e), -ENOENT);
}

static void standard_descriptors_may_be_given_in_any_order(void **state) {
        static const char *const argv[] = {"sh", "-c", "read x; echo out-$x; echo err-$x >&2", NULL};
        int in[2], out[2];
        struct os_child child;
        struct os_child_exit ended;
        struct error e = {0};
        char text[64];
        pid_t pid;
        int status;

        /* In a process of its own whose 0, 1 and 2 are closed, so that the pipes take just these numbers. */
        pid = fork();
        if (pid == 0) {
                struct os_child_options o = {.argv = argv};

                close(0);
                close(1);
                close(2);
                if (pipe(in) < 0 || pipe(out) < 0 || in[0] != 0 || in[1] != 1 || out[0] != 2 || out[1] != 3)
                        _exit(10);
                o.stdin_fd = in[0];
                o.stdout_fd = o.stderr_fd = out[1];
                if (write(in[1], "word\n", 5) != 5 || os_child_start(&o, &child, &e) < 0)
                        _exit(11);
                close(out[1]);
                if (os_child_reap(&child, true, &ended) < 0 || ended.code != 0)
                        _exit(12);
                status = (int)read(out[0], text, sizeof(text));
                _exit(status == 18 && !memcmp(text, "out-word\nerr-word\n", 18) ? 0 : 13);
        }
        assert_int_equal(waitpid(pid, &status, 0), pid);
        assert_true(WIFEXITED(status));
        assert_int_equal(WEXITSTATUS(status), 0);
}

static void a_program_that_cannot_run_is_named(void **state) {
        static const struct {
                const char *name;
                int r;
        } cases[] = {{"/no/such/program", -ENOENT}, {"no-such-program-in-path", -ENOENT}, {"/etc/passwd", -EACCES},
            {"/tmp", -EACCES}};

        for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
                const char *const argv[] = {cases[i].name, NULL};
                struct os_child_options o = {
                    .argv = argv, .stdin_fd = -1, .stdout_fd = -1, .stderr_fd = -1, .own_group = true};
                struct os_child child = {.pid = -7, .pidfd = -7};
                struct error e = {0};

                assert_int_equal(os_child_start(&o, &child, &e), cases[i].r);
                assert_non_null(strstr(e.text, cases[i].name));
                assert_int_equal(child.pidfd, -7);                /* untouched */
                assert_int_equal(waitpid(-1, NULL, WNOHANG), -1); /* nothing is left to reap */
        }
}

static int open_descriptors(void) {
        int count = 0;

        for (int fd = 0; fd < 1024; fd++)
                count += fcntl(fd, F_GETFD) >= 0;
        return count;
}

static void starting_and_failing_leak_no_descriptor(void **state) {
        static const char *const good[] = {"true", NULL}, *const bad[] = {"/no/such/program", NULL};
        struct os_child_options o = {.stdin_fd = -1, .stdout_fd = -1, .stderr_fd = -1};
        struct os_child child;
        struct os_child_exit ended;
        int before = open_descriptors();

        for (int i = 0; i < 10; i++) {
                o.argv = good;
                assert_int_equal(os_child_start(&o, &child, NULL), 0);
                assert_int_equal(os_child_reap(&child, true, &ended), 0);
                assert_int_equal(ended.code, 0);
                o.argv = bad;
                assert_int_equal(os_child_start(&o, &child, NULL), -ENOENT);
        }
        assert_int_equal(open_descriptors(), before);
}

static void the_end_is_told_in_words(void **state) {
        static const struct {
                struct os_child_exit exit;
                const char *text;
        } cases[] = {{{false, 0}, "exit status 0"}, {{false, 3}, "exit status 3"},
            {{true, SIGKILL}, "killed by SIGKILL"}, {{true, SIGSEGV}, "killed by SIGSEGV"},
            {{true, 60}, "killed by signal 60"}};
        char text[64];

        for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
                os_child_exit_text(&cases[i].exit, text, sizeof(text));
                assert_string_equal(text, cases[i].text);
        }
}

static void a_signal_reaches_the_child_and_nobody_after_it(void **state) {
        static const char *const argv[] = {"sleep", "1000", NULL};
        struct os_child_options o = {.argv = argv, .stdin_fd = -1, .stdout_fd = -1, .stderr_fd = -1, .own_group = true};
        struct os_child child;
        struct os_child_exit ended;
        struct error e = {0};

        assert_int_equal(os_child_start(&o, &child, &e), 0);
        assert_int_equal(os_child_reap(&child, false, &ended), -EAGAIN);
        assert_int_equal(os_child_signal(&child, 0), 0);
        assert_int_equal(os_child_signal(&child, SIGTERM), 0);
        await_end(&child, &ended);
        assert_true(ended.signaled);
        assert_int_equal(ended.code, SIGTERM);
        assert_int_equal(os_child_signal(&child, SIGTERM), -ESRCH);
        assert_int_equal(os_child_kill_group(&child, SIGTERM), -ESRCH);
}

static void a_group_ends_with_its_children(void **state) {
        static const char *const argv[] = {"sh", "-c", "sleep 1000 & echo started; wait", NULL};
        struct os_child_options o = {.argv = argv, .stdin_fd = -1, .stderr_fd = -1, .own_group = true};
        struct os_child child;
        struct os_child_exit ended;
        struct error e = {0};
        char text[64];
        int fds[2];

        assert_int_equal(pipe2(fds, O_CLOEXEC), 0);
        o.stdout_fd = fds[1];
        assert_int_equal(os_child_start(&o, &child, &e), 0);
        close(fds[1]);
        assert_int_equal(read(fds[0], text, sizeof(text)), 8);
        assert_int_equal(getpgid(child.pid), child.pid);
        assert_int_equal(os_child_kill_group(&child, SIGKILL), 0);
        await_end(&child, &ended);
        assert_int_equal(ended.code, SIGKILL);
        read_to_end(fds[0], text, sizeof(text)); /* ends only when the grandchild's end is closed too */
        assert_string_equal(text, "");
        close(fds[0]);
}

static void a_child_does_not_outlive_its_parent(void **state) {
        static const char *const argv[] = {"sleep", "1000", NULL};
        char text[64];
        int fds[2], status;
        pid_t middle;

        assert_int_equal(pipe2(fds, O_CLOEXEC), 0);
        middle = fork();
        if (middle == 0) {
                struct os_child_options o = {.argv = argv,
                    .stdin_fd = -1,
                    .stdout_fd = fds[1],
                    .stderr_fd = -1,
                    .own_group = true,
                    .death_signal = SIGKILL};
                struct os_child child;

                _exit(os_child_start(&o, &child, NULL) < 0); /* and leaves it alone */
        }
        close(fds[1]);
        assert_int_equal(waitpid(middle, &status, 0), middle);
        assert_int_equal(status, 0);
        read_to_end(fds[0], text, sizeof(text)); /* the sleeping child held the pipe */
        close(fds[0]);
}

static void a_process_is_known_by_its_start_time(void **state) {
        static const char *const argv[] = {"sleep", "1000", NULL};
        struct os_child_options o = {.argv = argv, .stdin_fd = -1, .stdout_fd = -1, .stderr_fd = -1};
        struct os_child child;
        struct os_child_exit ended;
        uint64_t own, ticks, again;
        double uptime;
        FILE *f = fopen("/proc/uptime", "re");

        assert_int_equal(os_process_start_time(getpid(), &own), 0);
        assert_int_equal(os_child_start(&o, &child, NULL), 0);
        assert_int_equal(os_process_start_time(child.pid, &ticks), 0);
        assert_int_equal(os_process_start_time(child.pid, &again), 0);
        assert_true(ticks == again);
        assert_true(ticks >= own);
        assert_non_null(f);
        assert_int_equal(fscanf(f, "%lf", &uptime), 1);
        fclose(f);
        /* Within a minute of now: the field is that of the start, in ticks since boot. */
        assert_true((double)ticks / (double)sysconf(_SC_CLK_TCK) > uptime - 60);
        assert_true((double)ticks / (double)sysconf(_SC_CLK_TCK) < uptime + 60);
        assert_int_equal(os_child_signal(&child, SIGKILL), 0);
        assert_int_equal(os_child_reap(&child, true, &ended), 0);
        assert_int_equal(os_process_start_time(child.pid, &ticks), -ESRCH);
}

int main(void) {
        const struct CMUnitTest tests[] = {
            cmocka_unit_test(a_child_gets_its_argv_and_env_and_no_descriptor_else),
            cmocka_unit_test(a_child_begins_with_default_signals),
            cmocka_unit_test(a_child_starts_in_its_directory),
            cmocka_unit_test(standard_descriptors_may_be_given_in_any_order),
            cmocka_unit_test(a_program_that_cannot_run_is_named),
            cmocka_unit_test(starting_and_failing_leak_no_descriptor),
            cmocka_unit_test(the_end_is_told_in_words),
            cmocka_unit_test(a_signal_reaches_the_child_and_nobody_after_it),
            cmocka_unit_test(a_group_ends_with_its_children),
            cmocka_unit_test(a_child_does_not_outlive_its_parent),
            cmocka_unit_test(a_process_is_known_by_its_start_time),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
