/* failmalloc.h - let the n-th allocation fail, for tests that memory may run out anywhere.
 *
 * Take failmalloc_dep instead of linking this by hand: it also wraps malloc, calloc and realloc at link time, so that the
 * calls of our own code pass through here and those inside shared libraries (libc, libuv, OpenSSL) do not. A law is tested
 * by failing every allocation of a scenario in turn, until a run needs no more of them than were let through:
 *
 *     long n = 0;
 *
 *     do {
 *             failmalloc_from(n++, 0);
 *             r = scenario();
 *             failmalloc_off();
 *             assert_int_equal(r, failmalloc_failed() ? -ENOMEM : 0);
 *     } while (failmalloc_failed());
 *     assert_true(n > 1);    (the scenario did allocate)
 *
 * cmocka allocates too: no assertion between failmalloc_from() and failmalloc_off(). Counts the calling thread's
 * allocations only; other threads are left alone. */
#pragma once
#include <stdbool.h>

/* The allocation after `n` more fails, and so do the `run` that follow it. Forgets what failed before. */
void failmalloc_from(long n, long run);
/* No more failures. */
void failmalloc_off(void);
/* Whether an allocation failed since failmalloc_from(). */
bool failmalloc_failed(void);
