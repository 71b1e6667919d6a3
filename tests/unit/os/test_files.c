/* test_files.c - whole files in and out, directories, ports. */
#include "base/file.h"
#include "test_dir.h"
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>

static void a_file_reads_back_as_written(void **state) {
        static const size_t sizes[] = {0, 1, 65535, 65536, 65537, 300000};

        for (size_t i = 0; i < sizeof(sizes) / sizeof(*sizes); i++) {
                char *bytes = malloc(sizes[i] + 1);
                struct buf read = {0};
                struct error e = {0};

                for (size_t j = 0; j < sizes[i]; j++)
                        bytes[j] = (char)(j * 7 + (j >> 8));
                assert_int_equal(os_write_file_atomic(test_path("f"), slice_of(bytes, sizes[i]), 0600, &e), 0);
                buf_add_str(&read, "before");
                assert_int_equal(file_read_whole(test_path("f"), sizes[i], &read, &e), 0);
                assert_int_equal(read.len, 6 + sizes[i]);
                assert_memory_equal(read.ptr + 6, bytes, sizes[i]);
                if (sizes[i]) {
                        assert_int_equal(file_read_whole(test_path("f"), sizes[i] - 1, &read, &e), -EFBIG);
                        assert_int_equal(read.len, 6 + sizes[i]); /* nothing of it is kept */
                        assert_non_null(strstr(e.text, test_path("f")));
                }
                buf_free(&read);
                free(bytes);
        }
}

static void a_file_that_cannot_be_read_is_named(void **state) {
        struct buf b = {0};
        struct error e = {0};

        assert_int_equal(file_read_whole("/nonexistent", 10, &b, &e), -ENOENT);
        assert_string_equal(e.text, "cannot read /nonexistent: No such file or directory");
        assert_int_equal(file_read_whole(test_dir, 10, &b, &e), -EISDIR);
        assert_non_null(strstr(e.text, test_dir));
        assert_int_equal(file_read_whole("/dev/zero", 100, &b, &e), -EFBIG); /* no end, but a bound */
        assert_int_equal(b.len, 0);
        buf_free(&b);
}

static unsigned files_in(const char *path) {
        DIR *dir = opendir(path);
        struct dirent *entry;
        unsigned count = 0;

        assert_non_null(dir);
        while ((entry = readdir(dir)))
                count += strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0;
        closedir(dir);
        return count;
}

static void a_file_is_replaced_whole_with_its_mode(void **state) {
        const mode_t before = umask(077);
        struct buf b = {0};
        struct error e = {0};
        struct stat st;
        ino_t first;

        assert_int_equal(os_make_dirs(test_path("whole"), 0700, &e), 0);
        assert_int_equal(os_write_file_atomic(test_path("whole/f"), SLICE_LIT("one, longer"), 0600, &e), 0);
        assert_int_equal(stat(test_path("whole/f"), &st), 0);
        first = st.st_ino;
        assert_int_equal(os_write_file_atomic(test_path("whole/f"), SLICE_LIT("two!"), 0644, &e), 0);
        assert_int_equal(stat(test_path("whole/f"), &st), 0);
        assert_true(st.st_ino != first); /* a new file took the name; the old one was never half written */
        assert_int_equal(st.st_mode & 07777, 0644);
        assert_int_equal(file_read_whole(test_path("whole/f"), 100, &b, &e), 0);
        assert_true(slice_is(buf_slice(&b), "two!"));
        assert_int_equal(files_in(test_path("whole")), 1);
        buf_free(&b);
        umask(before);
}

static void a_write_that_fails_leaves_nothing(void **state) {
        struct error e = {0};

        assert_int_equal(os_make_dirs(test_path("left/f/inside"), 0700, &e), 0);
        assert_int_equal(os_write_file_atomic(test_path("left/f"), SLICE_LIT("x"), 0600, &e), -EISDIR);
        assert_non_null(strstr(e.text, test_path("left/f")));
        assert_int_equal(files_in(test_path("left")), 1);
        assert_int_equal(os_write_file_atomic(test_path("no/dir/f"), SLICE_LIT("x"), 0600, &e), -ENOENT);
        {
                char name[5000];

                memset(name, 'x', sizeof(name) - 1);
                name[sizeof(name) - 1] = 0;
                assert_int_equal(os_write_file_atomic(name, SLICE_LIT("x"), 0600, &e), -ENAMETOOLONG);
        }
        {
                int fd = open("/dev/full", O_WRONLY | O_CLOEXEC);

                assert_int_equal(file_write_fd(fd, SLICE_LIT("x")), -ENOSPC);
                assert_int_equal(file_write_fd(fd, SLICE_NONE), 0);
                close(fd);
                assert_int_equal(file_write_fd(-1, SLICE_LIT("x")), -EBADF);
        }
}

static void directories_are_made_on_the_way(void **state) {
        struct error e = {0};
        struct stat st;

        assert_int_equal(os_make_dirs(test_path("a//b/c/"), 0750, &e), 0);
        assert_int_equal(os_make_dirs(test_path("a/b/c"), 0700, &e), 0); /* again: nothing to do */
        assert_int_equal(stat(test_path("a/b/c"), &st), 0);
        assert_true(S_ISDIR(st.st_mode));
        assert_int_equal(symlink("b", test_path("a/link")), 0);
        assert_int_equal(os_make_dirs(test_path("a/link/d"), 0700, &e), 0);
        assert_int_equal(stat(test_path("a/b/d"), &st), 0);
        assert_int_equal(os_write_file_atomic(test_path("a/file"), SLICE_NONE, 0600, &e), 0);
        assert_int_equal(os_make_dirs(test_path("a/file/x"), 0700, &e), -ENOTDIR);
        assert_non_null(strstr(e.text, "a file is in the way"));
        assert_true(os_make_dirs("", 0700, &e) < 0);
        assert_int_equal(os_make_dirs("/", 0700, &e), 0);
        assert_true(os_make_dirs("/proc/no/such", 0700, &e) < 0);
        assert_non_null(strstr(e.text, "/proc/no"));
}

static void a_taken_port_is_seen(void **state) {
        struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
        socklen_t len = sizeof(a);
        int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
        uint16_t port;

        assert_int_equal(bind(fd, (struct sockaddr *)&a, len), 0);
        assert_int_equal(listen(fd, 1), 0);
        assert_int_equal(getsockname(fd, (struct sockaddr *)&a, &len), 0);
        port = ntohs(a.sin_port);
        assert_int_equal(os_check_bind("127.0.0.1", port), -EADDRINUSE);
        assert_int_equal(os_check_bind(NULL, port), -EADDRINUSE); /* on one address is taken for all */
        assert_int_equal(os_check_bind("", port), -EADDRINUSE);
        close(fd);
        assert_int_equal(os_check_bind("127.0.0.1", port), 0);
        assert_int_equal(os_check_bind("192.0.2.1", port), -EADDRNOTAVAIL); /* TEST-NET-1 is nobody's */
        assert_int_equal(os_check_bind("no host at all", port), -EADDRNOTAVAIL);
}

/* What the linker calls in place of socket(). */
int __real_socket(int family, int type, int protocol);
int __wrap_socket(int family, int type, int protocol);
static int absent_family = -1;

int __wrap_socket(int family, int type, int protocol) {
        if (family != absent_family)
                return __real_socket(family, type, protocol);
        errno = EAFNOSUPPORT;
        return -1;
}

static void a_family_that_the_machine_does_not_have_is_passed_over(void **state) {
        struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
        socklen_t len = sizeof(a);
        int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

        assert_int_equal(bind(fd, (struct sockaddr *)&a, len), 0);
        assert_int_equal(getsockname(fd, (struct sockaddr *)&a, &len), 0);
        close(fd);
        absent_family = AF_INET6;
        assert_int_equal(os_check_bind(NULL, ntohs(a.sin_port)), 0);
        assert_int_equal(os_check_bind("::1", ntohs(a.sin_port)), -EAFNOSUPPORT);
        absent_family = -1;
}

int main(void) {
        const struct CMUnitTest tests[] = {
            cmocka_unit_test(a_file_reads_back_as_written),
            cmocka_unit_test(a_file_that_cannot_be_read_is_named),
            cmocka_unit_test(a_file_is_replaced_whole_with_its_mode),
            cmocka_unit_test(a_write_that_fails_leaves_nothing),
            cmocka_unit_test(directories_are_made_on_the_way),
            cmocka_unit_test(a_taken_port_is_seen),
            cmocka_unit_test(a_family_that_the_machine_does_not_have_is_passed_over),
        };

        return cmocka_run_group_tests(tests, test_dir_make, test_dir_drop);
}
