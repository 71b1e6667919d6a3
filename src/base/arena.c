/* arena.c - chunks in a list, newest first; a chunk doubles the last one's size up to a bound.
 *
 * Under AddressSanitizer what is not handed out is poisoned, so that a use after arena_reset() or past an allocation's
 * rounded end is reported as it would be for malloc. */
#include "base/arena.h"
#include <stdio.h>
#include <stdlib.h>

#if !defined(__SANITIZE_ADDRESS__) && defined(__has_feature) /* clang */
#if __has_feature(address_sanitizer)
#define __SANITIZE_ADDRESS__ 1
#endif
#endif
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(ptr, size)   ((void)(ptr), (void)(size))
#define ASAN_UNPOISON_MEMORY_REGION(ptr, size) ((void)(ptr), (void)(size))
#endif

#define CHUNK_FIRST 1024u
#define CHUNK_LARGE (256u << 10)
#define ALIGNMENT   16u

struct arena_chunk {
        struct arena_chunk *older;
        size_t size, used; /* of data */
        _Alignas(16) char data[];
};

static struct arena_chunk *add_chunk(struct arena *a, size_t at_least) {
        size_t size = a->chunks ? a->chunks->size * 2 : CHUNK_FIRST;
        struct arena_chunk *c;

        if (size > CHUNK_LARGE)
                size = CHUNK_LARGE;
        if (size < at_least)
                size = at_least;
        c = malloc(sizeof(*c) + size);
        if (!c)
                return NULL;
        c->older = a->chunks;
        c->size = size;
        c->used = 0;
        ASAN_POISON_MEMORY_REGION(c->data, size);
        a->chunks = c;
        return c;
}

void *arena_alloc(struct arena *a, size_t size) {
        struct arena_chunk *c = a->chunks;
        size_t rounded = size ? (size + ALIGNMENT - 1) & ~(size_t)(ALIGNMENT - 1) : ALIGNMENT;
        void *memory;

        if (size > PTRDIFF_MAX - 4096 || (a->limit && (rounded > a->limit || a->used > a->limit - rounded)))
                return NULL;
        if (!c || c->size - c->used < rounded)
                c = add_chunk(a, rounded);
        if (!c)
                return NULL;
        memory = c->data + c->used;
        c->used += rounded;
        a->used += rounded;
        ASAN_UNPOISON_MEMORY_REGION(memory, size ? size : 1);
        return memset(memory, 0, size ? size : 1);
}

void *arena_array(struct arena *a, size_t count, size_t size) {
        size_t bytes;

        return __builtin_mul_overflow(count, size, &bytes) ? NULL : arena_alloc(a, bytes);
}

struct slice arena_copy(struct arena *a, struct slice s) {
        char *copy = s.len == SIZE_MAX ? NULL : arena_alloc(a, s.len + 1);

        if (!copy)
                return SLICE_NONE;
        if (s.len)
                memcpy(copy, s.ptr, s.len);
        return slice_of(copy, s.len);
}

char *arena_printf(struct arena *a, const char *format, ...) {
        va_list args, again;
        char *text = NULL;
        int n;

        va_start(args, format);
        va_copy(again, args);
        n = vsnprintf(NULL, 0, format, args);
        if (n >= 0)
                text = arena_alloc(a, (size_t)n + 1);
        if (text)
                vsnprintf(text, (size_t)n + 1, format, again);
        va_end(again);
        va_end(args);
        return text;
}

static void free_chunks(struct arena_chunk *c) {
        while (c) {
                struct arena_chunk *older = c->older;

                free(c);
                c = older;
        }
}

void arena_reset(struct arena *a) {
        struct arena_chunk *newest = a->chunks;

        if (newest && newest->size <= CHUNK_LARGE) {
                free_chunks(newest->older);
                newest->older = NULL;
                newest->used = 0;
                ASAN_POISON_MEMORY_REGION(newest->data, newest->size);
        } else {
                free_chunks(newest);
                a->chunks = NULL;
        }
        a->used = 0;
}

void arena_free(struct arena *a) {
        free_chunks(a->chunks);
        a->chunks = NULL;
        a->used = 0;
}
