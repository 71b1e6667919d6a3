/* failmalloc.h - let the n-th allocation fail. The executable is linked with --wrap for malloc, calloc and realloc, so that
 * calls of our own code pass through here and those of shared libraries do not. */
#pragma once
#include <stdbool.h>
#include <stdlib.h>

void *__real_malloc(size_t size);
void *__real_calloc(size_t count, size_t size);
void *__real_realloc(void *ptr, size_t size);
void *__wrap_malloc(size_t size);
void *__wrap_calloc(size_t count, size_t size);
void *__wrap_realloc(void *ptr, size_t size);

static long fail_at = -1; /* counts down; the allocation at 0 fails, and so do `fail_run` after it. -1: off */
static long fail_run;
static bool failed_once;

/* The n-th allocation from now fails, and the `run` following ones. */
static inline void fail_from(long n, long run) {
        fail_at = n;
        fail_run = run;
        failed_once = false;
}

static inline void fail_never(void) {
        fail_at = -1;
}

static inline bool fails_now(void) {
        if (fail_at < 0)
                return false;
        if (fail_at > 0) {
                fail_at--;
                return false;
        }
        failed_once = true;
        if (fail_run-- <= 0)
                fail_at = -1;
        return true;
}

void *__wrap_malloc(size_t size) {
        return fails_now() ? NULL : __real_malloc(size);
}
void *__wrap_calloc(size_t count, size_t size) {
        return fails_now() ? NULL : __real_calloc(count, size);
}
void *__wrap_realloc(void *ptr, size_t size) {
        return fails_now() ? NULL : __real_realloc(ptr, size);
}
