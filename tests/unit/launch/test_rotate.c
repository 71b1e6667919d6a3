/* test_rotate.c - log files stay bounded and whole. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "base/file.h"
#include "launch/rotate.h"
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

static char dir[] = "/tmp/baton-test-rotate-XXXXXX";

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

static size_t read_all(const char *name, unsigned number, struct buf *out) {
        char path[128];
        size_t before = out->len;

        snprintf(path, sizeof(path), number ? "%s/%s.log.%u" : "%s/%s.log", dir, name, number);
        file_read_whole(path, 1 << 20, out, NULL);
        return out->len - before;
}

static void lines_are_never_cut_and_none_is_lost_but_the_oldest(void **state) {
        struct rotate r;
        struct buf kept = {0}, written = {0};
        char path[128], line[64];

        (void)state;
        snprintf(path, sizeof(path), "%s/a.log", dir);
        assert_int_equal(rotate_open(&r, path, 100, 3, NULL), 0);
        for (int i = 0; i < 200; i++) {
                int n = snprintf(line, sizeof(line), "line %d of many\n", i);

                buf_append(&written, line, (size_t)n);
                rotate_write(&r, slice_of(line, (size_t)n));
        }
        rotate_close(&r);
        for (unsigned i = 3; i-- > 0;) {
                size_t n = read_all("a", i, &kept);

                assert_true(n > 0 && n <= 100);
                assert_int_equal(kept.ptr[kept.len - 1], '\n');
        }
        assert_true(slice_ends(buf_slice(&written), buf_slice(&kept)));
        assert_int_equal(kept.len > 200, 1);
        assert_int_equal(read_all("a", 3, &kept), 0);
        buf_free(&kept);
        buf_free(&written);
}

static void a_big_write_is_spread_over_files(void **state) {
        struct rotate r;
        struct buf big = {0}, kept = {0};
        char path[128];

        (void)state;
        for (int i = 0; i < 30; i++)
                buf_printf(&big, "%09d\n", i);
        snprintf(path, sizeof(path), "%s/b.log", dir);
        assert_int_equal(rotate_open(&r, path, 100, 5, NULL), 0);
        rotate_write(&r, buf_slice(&big));
        rotate_close(&r);
        for (unsigned i = 5; i-- > 0;)
                read_all("b", i, &kept);
        assert_true(slice_eq(buf_slice(&big), buf_slice(&kept)));
        buf_free(&big);
        buf_free(&kept);
}

static void a_line_longer_than_a_file_is_cut_not_refused(void **state) {
        struct rotate r;
        struct buf big = {0}, kept = {0};
        char path[128];

        (void)state;
        for (int i = 0; i < 250; i++)
                buf_add_char(&big, 'x');
        snprintf(path, sizeof(path), "%s/c.log", dir);
        assert_int_equal(rotate_open(&r, path, 100, 5, NULL), 0);
        rotate_write(&r, buf_slice(&big));
        rotate_close(&r);
        for (unsigned i = 5; i-- > 0;)
                read_all("c", i, &kept);
        assert_true(slice_eq(buf_slice(&big), buf_slice(&kept)));
        buf_free(&big);
        buf_free(&kept);
}

/* Something else stands in the way of the older file, or the current one is gone: the size holds, writing goes on. */
static void a_file_that_cannot_be_moved_is_begun_anew(void **state) {
        struct rotate r;
        struct buf got = {0};
        char path[128], in_the_way[128];

        (void)state;
        snprintf(path, sizeof(path), "%s/e.log", dir);
        snprintf(in_the_way, sizeof(in_the_way), "%s/e.log.1", dir);
        assert_int_equal(mkdir(in_the_way, 0700), 0);
        assert_int_equal(rotate_open(&r, path, 10, 2, NULL), 0);
        rotate_write(&r, SLICE_LIT("one\ntwo\nthree\nfour\n"));
        assert_int_equal(read_all("e", 0, &got), 5);
        assert_string_equal(buf_cstr(&got), "four\n");
        assert_int_equal(unlink(path), 0);
        assert_int_equal(rmdir(in_the_way), 0);
        rotate_write(&r, SLICE_LIT("five\nsix\nseven\n"));
        rotate_close(&r);
        buf_reset(&got);
        assert_true(read_all("e", 0, &got) <= 10);
        buf_free(&got);
}

static void writing_goes_on_in_an_existing_file(void **state) {
        struct rotate r;
        struct buf kept = {0};
        char path[128];

        (void)state;
        snprintf(path, sizeof(path), "%s/d.log", dir);
        for (int i = 0; i < 2; i++) {
                assert_int_equal(rotate_open(&r, path, 100, 1, NULL), 0);
                rotate_write(&r, SLICE_LIT("again\n"));
                rotate_close(&r);
        }
        assert_int_equal(read_all("d", 0, &kept), 12);
        buf_free(&kept);
        assert_true(rotate_open(&r, "/nonexistent/x.log", 100, 1, NULL) < 0);
}

int main(void) {
        const struct CMUnitTest tests[] = {
            cmocka_unit_test(lines_are_never_cut_and_none_is_lost_but_the_oldest),
            cmocka_unit_test(a_big_write_is_spread_over_files),
            cmocka_unit_test(a_line_longer_than_a_file_is_cut_not_refused),
            cmocka_unit_test(a_file_that_cannot_be_moved_is_begun_anew),
            cmocka_unit_test(writing_goes_on_in_an_existing_file),
        };

        return cmocka_run_group_tests_name("rotate", tests, make_dir, drop_dir);
}
