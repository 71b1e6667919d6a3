/* arena.h - memory that dies together.
 *
 * One arena per request, per file read, per message: allocate from it, never free single pieces, reset or free it at the
 * end. Memory is zeroed and aligned to 16 bytes. A zeroed struct arena is an empty arena. Not thread-safe. */
#pragma once
#include "base/slice.h"
#include <stdarg.h>

struct arena_chunk;

struct arena {
        struct arena_chunk *chunks;
        size_t used;  /* bytes handed out since the last reset */
        size_t limit; /* 0: none. Beyond it allocations fail as if memory were out */
};

/* NULL when memory is out or the limit is reached. Size 0 gives a unique non-NULL pointer. */
void *arena_alloc(struct arena *a, size_t size);
/* count*size with overflow check. */
void *arena_array(struct arena *a, size_t count, size_t size);
/* A copy with a NUL after it. ret.ptr is NULL when memory is out. */
struct slice arena_copy(struct arena *a, struct slice s);
char *arena_printf(struct arena *a, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* Forget all allocations. The newest chunk is kept for reuse unless it is large (over 256 KiB), so that one big request
 * does not hold its memory for the rest of a connection's life. */
void arena_reset(struct arena *a);
void arena_free(struct arena *a);

#define ARENA_NEW(arena, type) ((type *)arena_alloc((arena), sizeof(type)))
