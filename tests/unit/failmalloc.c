/* failmalloc.c - see failmalloc.h. */
#include "failmalloc.h"
#include <errno.h>
#include <stdlib.h>

/* The linker's names for the real functions, and ours in their place (ld --wrap). */
void *__real_malloc(size_t size);
void *__real_calloc(size_t count, size_t size);
void *__real_realloc(void *ptr, size_t size);
void *__wrap_malloc(size_t size);
void *__wrap_calloc(size_t count, size_t size);
void *__wrap_realloc(void *ptr, size_t size);

static _Thread_local struct {
        bool armed, failed;
        long left; /* allocations that still succeed */
        long run;  /* failures after the first */
} plan;

void failmalloc_from(long n, long run) {
        plan.armed = true;
        plan.failed = false;
        plan.left = n;
        plan.run = run;
}

void failmalloc_off(void) {
        plan.armed = false;
}

bool failmalloc_failed(void) {
        return plan.failed;
}

static bool fails_now(void) {
        if (!plan.armed)
                return false;
        if (plan.left > 0) {
                plan.left--;
                return false;
        }
        plan.failed = true;
        if (plan.run-- == 0)
                plan.armed = false;
        errno = ENOMEM;
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
