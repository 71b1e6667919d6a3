/* test_os.c - the machine, files, ports and child processes. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "os/os.h"
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

static char dir[] = "/tmp/baton-test-os-XXXXXX";

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

static void the_machine_has_a_size(void **state) {
        unsigned cpus[1024];
        char text[256], boot[40];

        (void)state;
        assert_true(os_cpu_count() >= 1);
        assert_true(os_cpu_list(cpus, 1024) >= os_cpu_count());
        assert_true(os_memory_total() >= os_memory_available());
        assert_true(os_memory_available() > 1 << 20);
        os_cpu_model(text, sizeof(text));
        assert_true(text[0]);
        os_boot_id(boot);
        assert_int_equal(strlen(boot), 36);
        assert_true(os_raise_file_limit() > 0);
}

static void files_are_replaced_whole(void **state) {
        char path[64];
        struct buf b = {0};
        struct error e = {0};
        struct stat st;

        (void)state;
        snprintf(path, sizeof(path), "%s/a/b/c", dir);
        assert_int_equal(os_make_dirs(path, 0700, &e), 0);
        assert_int_equal(os_make_dirs(path, 0700, &e), 0);
        snprintf(path, sizeof(path), "%s/a/b/c/f", dir);
        assert_int_equal(os_write_file_atomic(path, SLICE_LIT("one"), 0600, &e), 0);
        assert_int_equal(os_write_file_atomic(path, SLICE_LIT("two!"), 0640, &e), 0);
        assert_int_equal(os_read_file(path, 100, &b, &e), 0);
        assert_true(slice_is(buf_slice(&b), "two!"));
        assert_int_equal(os_read_file(path, 3, &b, &e), -EFBIG);
        assert_int_equal(b.len, 4);
        assert_int_equal(stat(path, &st), 0);
        assert_int_equal(st.st_mode & 0777, 0640);
        snprintf(path, sizeof(path), "%s/a/b/c/f/g", dir);
        assert_int_equal(os_make_dirs(path, 0700, &e), -ENOTDIR);
        assert_non_null(strstr(e.text, "a file is in the way"));
        assert_int_equal(os_read_file("/nonexistent", 10, &b, &e), -ENOENT);
        assert_non_null(strstr(e.text, "/nonexistent"));
        buf_free(&b);
}

static void a_full_disk_leaves_the_old_file(void **state) {
        struct error e = {0};

        (void)state;
        /* /dev/full cannot be renamed over, but a directory that cannot be written shows the same promise. */
        assert_true(os_write_file_atomic("/proc/no-such", SLICE_LIT("x"), 0600, &e) < 0);
        assert_non_null(strstr(e.text, "/proc/no-such"));
        {
                int fd = open("/dev/full", O_WRONLY);

                assert_int_equal(os_write_all(fd, SLICE_LIT("x")), -ENOSPC);
                close(fd);
        }
}

static void hosts_and_ports_are_split(void **state) {
        static const struct {
                const char *text, *host;
                int port;
        } cases[] = {{"a:1", "a", 1}, {"127.0.0.1:65535", "127.0.0.1", 65535}, {"[::1]:80", "::1", 80},
            {":80", NULL, 0}, {"a:", NULL, 0}, {"a", NULL, 0}, {"::1:80", NULL, 0}, {"[::1]80", NULL, 0},
            {"[::1", NULL, 0}, {"a:0", NULL, 0}, {"a:65536", NULL, 0}, {"a:999999999999", NULL, 0}, {"a:-1", NULL, 0},
            {"", NULL, 0}};

        (void)state;
        for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
                struct slice host;
                uint16_t port;
                int r = os_parse_host_port(slice_str(cases[i].text), &host, &port);

                assert_int_equal(r, cases[i].host ? 0 : -EINVAL);
                if (r == 0) {
                        assert_true(slice_is(host, cases[i].host));
                        assert_int_equal(port, cases[i].port);
                }
        }
}

static void a_taken_port_is_seen(void **state) {
        struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
        socklen_t len = sizeof(a);
        int fd = socket(AF_INET, SOCK_STREAM, 0);

        (void)state;
        assert_int_equal(bind(fd, (struct sockaddr *)&a, len), 0);
        assert_int_equal(listen(fd, 1), 0);
        assert_int_equal(getsockname(fd, (struct sockaddr *)&a, &len), 0);
        assert_int_equal(os_check_bind("127.0.0.1", ntohs(a.sin_port)), -EADDRINUSE);
        close(fd);
        assert_int_equal(os_check_bind("127.0.0.1", ntohs(a.sin_port)), 0);
        assert_true(os_check_bind("192.0.2.1", 80) < 0);
}

static void read_pipe(int fd, char *text, size_t size) {
        size_t n = 0;
        ssize_t got;

        while (n < size - 1 && (got = read(fd, text + n, size - 1 - n)) > 0)
                n += (size_t)got;
        text[n] = 0;
}

static void a_child_gets_its_argv_env_and_nothing_else(void **state) {
        static const char *const argv[] = {"sh", "-c",
            "echo $1-$BATON_A-${BATON_B:-none}; ls /proc/self/fd | tr '\\n' ' '; echo; exit 3", "sh", "it's \"x\"",
            NULL};
        static const char *const env[] = {"BATON_A=1 2", "BATON_B", NULL};
        struct os_child_options o = {
            .argv = argv, .env = env, .stdin_fd = -1, .stderr_fd = -1, .own_group = true, .death_signal = SIGKILL};
        struct os_child child;
        struct os_child_exit ended;
        struct error e = {0};
        struct pollfd p;
        char text[512], word[64];
        int fds[2], leaked = open("/dev/null", O_RDONLY);

        (void)state;
        setenv("BATON_A", "old", 1);
        setenv("BATON_B", "set", 1);
        assert_int_equal(pipe(fds), 0);
        o.stdout_fd = fds[1];
        assert_int_equal(os_child_start(&o, &child, &e), 0);
        close(fds[1]);
        read_pipe(fds[0], text, sizeof(text));
        close(fds[0]);
        close(leaked);
        assert_non_null(strstr(text, "it's \"x\"-1 2-none\n"));
        assert_non_null(strstr(text, "0 1 2 3 \n")); /* 3 is ls's own directory */
        p = (struct pollfd){child.pidfd, POLLIN, 0};
        assert_int_equal(poll(&p, 1, 10000), 1);
        assert_int_equal(os_child_reap(&child, false, &ended), 0);
        assert_false(ended.signaled);
        assert_int_equal(ended.code, 3);
        os_child_exit_text(&ended, word, sizeof(word));
        assert_string_equal(word, "exit status 3");
        assert_int_equal(os_child_signal(&child, SIGTERM), -ESRCH);
}

static void a_program_that_cannot_run_is_named(void **state) {
        static const char *const argv[] = {"/no/such/program", NULL};
        struct os_child_options o = {.argv = argv, .stdin_fd = -1, .stdout_fd = -1, .stderr_fd = -1};
        struct os_child child;
        struct error e = {0};

        (void)state;
        assert_int_equal(os_child_start(&o, &child, &e), -ENOENT);
        assert_non_null(strstr(e.text, "/no/such/program"));
        assert_int_equal(waitpid(-1, NULL, WNOHANG), -1); /* nothing is left to reap */
}

static void a_group_dies_with_its_children(void **state) {
        static const char *const argv[] = {"sh", "-c", "sleep 1000 & echo $!; wait", NULL};
        struct os_child_options o = {.argv = argv, .stdin_fd = -1, .stderr_fd = -1, .own_group = true};
        struct os_child child;
        struct os_child_exit ended;
        struct error e = {0};
        char text[64], word[64];
        int fds[2];
        uint64_t ticks;

        (void)state;
        assert_int_equal(pipe(fds), 0);
        o.stdout_fd = fds[1];
        assert_int_equal(os_child_start(&o, &child, &e), 0);
        close(fds[1]);
        assert_true(read(fds[0], text, sizeof(text)) > 0);
        assert_int_equal(os_child_reap(&child, false, &ended), -EAGAIN);
        assert_int_equal(os_process_start_time(child.pid, &ticks), 0);
        assert_true(ticks > 0);
        assert_int_equal(os_child_kill_group(&child, SIGKILL), 0);
        assert_int_equal(os_child_reap(&child, true, &ended), 0);
        assert_true(ended.signaled);
        os_child_exit_text(&ended, word, sizeof(word));
        assert_string_equal(word, "killed by SIGKILL");
        /* The grandchild held the pipe's other end: its end of file tells that it has gone too. */
        assert_int_equal(read(fds[0], text, sizeof(text)), 0);
        close(fds[0]);
}

int main(void) {
        const struct CMUnitTest tests[] = {
            cmocka_unit_test(the_machine_has_a_size),
            cmocka_unit_test(files_are_replaced_whole),
            cmocka_unit_test(a_full_disk_leaves_the_old_file),
            cmocka_unit_test(hosts_and_ports_are_split),
            cmocka_unit_test(a_taken_port_is_seen),
            cmocka_unit_test(a_child_gets_its_argv_env_and_nothing_else),
            cmocka_unit_test(a_program_that_cannot_run_is_named),
            cmocka_unit_test(a_group_dies_with_its_children),
        };

        return cmocka_run_group_tests_name("os", tests, make_dir, drop_dir);
}
