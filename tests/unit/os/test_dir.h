/* test_dir.h - a directory for one test program, removed at its end. */
#pragma once
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "os/os.h"
#include <ftw.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

static char test_dir[] = "/tmp/baton-test-XXXXXX";

static inline int test_dir_make(void **state) {
        return mkdtemp(test_dir) ? 0 : -1;
}

static inline int test_dir_drop_one(const char *path, const struct stat *st, int kind, struct FTW *at) {
        return remove(path);
}

static inline int test_dir_drop(void **state) {
        return nftw(test_dir, test_dir_drop_one, 16, FTW_DEPTH | FTW_PHYS);
}

/* "TEST_DIR/NAME"; valid until the next call but one. */
static inline const char *test_path(const char *name) {
        static char paths[2][512];
        static unsigned next;
        char *path = paths[next++ % 2];

        snprintf(path, sizeof(paths[0]), "%s/%s", test_dir, name);
        return path;
}
