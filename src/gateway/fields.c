/* fields.c - end-to-end header fields on their way through. */
#include "gateway/core.h"
#include <errno.h>

static bool is_named(struct slice name, const char *const *names) {
        for (; *names; names++)
                if (slice_is_icase(name, *names))
                        return true;
        return false;
}

/* A copy with room for `more` items. */
static struct http_field *copy(
    struct http_fields from, const char *const *without, size_t more, struct arena *arena, size_t *ret_count) {
        struct http_field *items = arena_array(arena, from.count + more, sizeof(*items));
        size_t n = 0;

        for (size_t i = 0; items && i < from.count; i++) {
                struct http_field f = from.items[i];

                if (http_field_is_hop_by_hop(from, f.name) || is_named(f.name, without))
                        continue;
                items[n] = (struct http_field){arena_copy(arena, f.name), arena_copy(arena, f.value)};
                if (!items[n].name.ptr || !items[n].value.ptr)
                        return NULL;
                n++;
        }
        *ret_count = n;
        return items;
}

int fields_of_answer(struct http_fields from, struct arena *arena, struct http_fields *ret_fields) {
        /* Our own framing sets them. */
        static const char *const ours[] = {"content-length", "date", NULL};
        size_t n;
        struct http_field *items = copy(from, ours, 0, arena, &n);

        if (!items)
                return -ENOMEM;
        *ret_fields = (struct http_fields){items, n};
        return 0;
}

int fields_of_client(const struct gateway *g, struct http_fields from, const char *const *without, struct arena *arena,
    struct http_fields *ret_fields) {
        size_t n;
        struct http_field *items = copy(from, without, g->key_fields.count, arena, &n);

        if (!items)
                return -ENOMEM;
        if (g->key_fields.count > 0 && !http_field_find((struct http_fields){items, n}, "authorization"))
                items[n++] = g->key_fields.items[0];
        *ret_fields = (struct http_fields){items, n};
        return 0;
}
