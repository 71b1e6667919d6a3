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

int fields_of_client(const struct gateway *g, struct http_fields from, const char *const *without,
    struct http_fields more, struct arena *arena, struct http_fields *ret_fields) {
        size_t n;
        struct http_field *items = copy(from, without, g->key_fields.count + more.count, arena, &n);

        if (!items)
                return -ENOMEM;
        if (g->key_fields.count > 0 && !http_field_find((struct http_fields){items, n}, "authorization"))
                items[n++] = g->key_fields.items[0];
        for (size_t i = 0; i < more.count; i++)
                items[n++] = more.items[i];
        *ret_fields = (struct http_fields){items, n};
        return 0;
}

/* ---- trace context --------------------------------------------------------------------------------------------------- */

/* `len` hex digits in lower case at `at`; with `some` not all of them zero. */
static bool is_hex(struct slice s, size_t at, size_t len, bool some) {
        bool any = false;

        for (size_t i = at; i < at + len; i++) {
                char c = s.ptr[i];

                if (!((c >= '0' && c <= '9') || (c >= 'a' && c <= 'f')))
                        return false;
                any |= c != '0';
        }
        return any || !some;
}

/* version "-" trace-id "-" parent-id "-" flags; a later version may have more behind a further dash. */
static bool is_traceparent(struct slice v) {
        if (v.len < 55 || v.ptr[2] != '-' || v.ptr[35] != '-' || v.ptr[52] != '-')
                return false;
        if (!is_hex(v, 0, 2, false) || !is_hex(v, 3, 32, true) || !is_hex(v, 36, 16, true) || !is_hex(v, 53, 2, false))
                return false;
        if (!memcmp(v.ptr, "ff", 2))
                return false;
        return v.len == 55 || (memcmp(v.ptr, "00", 2) && v.ptr[55] == '-');
}

struct slice fields_trace(struct http_fields fields) {
        const struct http_field *found = NULL;

        for (size_t i = 0; i < fields.count; i++) {
                if (!slice_is_icase(fields.items[i].name, "traceparent"))
                        continue;
                if (found)
                        return SLICE_NONE;
                found = &fields.items[i];
        }
        return found && is_traceparent(found->value) ? found->value : SLICE_NONE;
}
