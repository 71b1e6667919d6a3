/* payload.c - batches of events out of and into msgpack.
 *
 * vLLM has had three encodings. First both batch and events were arrays, each event with its name in front and trailing
 * defaults left out; then events became maps with the name under "type"; then batches did, too. Each is known by what stands
 * there, so that they may be mixed. */
#include "base/hash.h"
#include "events/events.h"
#include "events/msgpack.h"
#include <errno.h>

uint64_t event_name(struct slice name) {
        uint64_t h = hash64(name, 0x6c6f7261);

        return h ? h : 1;
}

static uint64_t extend_extra(uint64_t extra, struct slice text) {
        uint64_t h = hash64(text, extra + 1);

        return h ? h : 1;
}

uint64_t event_extra(struct slice text) {
        return extend_extra(0, text);
}

/* ---- batches -------------------------------------------------------------------------------------------------------- */

/* The fields of a batch or an event, whichever way they are written: by place or by name. */
#define FIELDS_MAX 16
struct fields {
        struct slice values[FIELDS_MAX]; /* whole values; len 0: not there */
};

/* Take a value of either form apart. An array's first item after `skip` of them is field 0. */
static int read_fields(
    struct slice value, const char *const *names, size_t name_count, size_t skip, struct fields *ret_fields) {
        struct fields f = {0};
        struct mp_value head, key;
        struct slice item;

        if (mp_read(&value, &head) < 0 || (head.kind != MP_ARRAY && head.kind != MP_MAP))
                return -EINVAL;
        for (uint64_t i = 0; i < head.number; i++) {
                size_t at = head.kind == MP_ARRAY ? i - skip : name_count;

                if (head.kind == MP_MAP) {
                        struct slice before = value;

                        if (mp_read(&value, &key) < 0)
                                return -EINVAL;
                        value = before;
                        if (mp_skip(&value, &item) < 0)
                                return -EINVAL;
                        for (at = 0; at < name_count && !(key.kind == MP_TEXT && slice_is(key.text, names[at])); at++)
                                ;
                }
                if (mp_skip(&value, &item) < 0)
                        return -EINVAL;
                if ((head.kind == MP_MAP || i >= skip) && at < name_count)
                        f.values[at] = item;
                if (name_count == 1 && f.values[0].len > 0)
                        break; /* all that was asked for */
        }
        *ret_fields = f;
        return 0;
}

static bool read_value(struct slice field, struct mp_value *ret_value) {
        return field.len > 0 && mp_read(&field, ret_value) == 0;
}

int event_batch_open(struct slice payload, struct event_batch *ret_batch) {
        static const char *const names[] = {"ts", "events", "data_parallel_rank"};
        struct event_batch b = {.rank = -1};
        struct slice rest = payload, whole;
        struct mp_value v;
        struct fields f;

        if (mp_skip(&rest, &whole) < 0 || rest.len > 0 || read_fields(whole, names, 3, 0, &f) < 0)
                return -EINVAL;
        if (read_value(f.values[0], &v))
                b.time = v.kind == MP_FLOAT ? v.real : v.kind == MP_INT && !v.negative ? (double)v.number : 0;
        if (read_value(f.values[2], &v) && v.kind == MP_INT && !v.negative && v.number <= UINT32_MAX)
                b.rank = (int64_t)v.number;
        b.rest = f.values[1];
        if (b.rest.len == 0 || mp_read(&b.rest, &v) < 0 || v.kind != MP_ARRAY)
                return -EINVAL;
        b.left = (size_t)v.number;
        *ret_batch = b;
        return 0;
}

/* ---- events --------------------------------------------------------------------------------------------------------- */

/* The name of an event: an array's first item, or the value under "type". SLICE_NONE: it has none. */
static struct slice tag_of(struct slice event) {
        static const char *const type[] = {"type"};
        struct mp_value v;
        struct fields f;

        if (read_fields(event, type, 1, 0, &f) < 0 || !read_value(f.values[0], &v) || v.kind != MP_TEXT)
                return SLICE_NONE;
        return v.text;
}

/* A block's name: an integer, or bytes. */
static bool read_hash(const struct mp_value *v, uint64_t *ret_hash) {
        if (v->kind == MP_INT)
                *ret_hash = v->number;
        else if (v->kind == MP_TEXT)
                *ret_hash = hash64(v->text, 0);
        else
                return false;
        return true;
}

/* A list of numbers (or of names of blocks). */
static int read_list(struct slice field, struct arena *arena, size_t item_size, void **ret_items, size_t *ret_count) {
        struct mp_value v;
        char *items;

        *ret_items = NULL;
        *ret_count = 0;
        if (!read_value(field, &v) || v.kind == MP_NIL)
                return 0;
        if (v.kind != MP_ARRAY)
                return -EINVAL;
        if (v.number == 0)
                return 0;
        mp_read(&field, &v);
        items = arena_array(arena, (size_t)v.number, item_size);
        if (!items)
                return -ENOMEM;
        for (size_t i = 0; i < v.number; i++) {
                struct mp_value item;
                uint64_t hash;

                if (item_size == sizeof(uint32_t) && mp_read_u32(&field, (uint32_t *)(void *)items + i))
                        continue;
                if (mp_read(&field, &item) < 0)
                        return -EINVAL;
                if (item_size == sizeof(uint64_t)) {
                        if (!read_hash(&item, &hash))
                                return -EINVAL;
                        ((uint64_t *)(void *)items)[i] = hash;
                } else {
                        if (item.kind != MP_INT || item.number > UINT32_MAX)
                                return -EINVAL;
                        ((uint32_t *)(void *)items)[i] = (uint32_t)item.number;
                }
        }
        *ret_items = items;
        *ret_count = (size_t)v.number;
        return 0;
}

/* What one block depends on besides its tokens: a list of texts and other things, or nil. The adapter's name, which newer
 * versions repeat there, is left out: it is known. */
static int read_extra(struct slice *in, struct slice adapter, uint64_t *ret_extra) {
        struct slice block, item;
        struct mp_value v;
        uint64_t extra = 0, count = 1;

        if (mp_skip(in, &block) < 0 || !read_value(block, &v))
                return -EINVAL;
        if (v.kind == MP_NIL)
                count = 0;
        else if (v.kind == MP_ARRAY) {
                mp_read(&block, &v);
                count = v.number;
        }
        for (uint64_t i = 0; i < count; i++) {
                if (mp_skip(&block, &item) < 0 || !read_value(item, &v))
                        return -EINVAL;
                if (v.kind == MP_TEXT)
                        item = v.text;
                if (adapter.len == 0 || !slice_eq(item, adapter))
                        extra = extend_extra(extra, item);
        }
        *ret_extra = extra;
        return 0;
}

static int read_extras(struct slice field, struct slice adapter, struct arena *arena, struct event *e) {
        struct mp_value v;
        uint64_t *extras;

        if (!read_value(field, &v) || v.kind == MP_NIL)
                return 0;
        if (v.kind != MP_ARRAY || v.number != e->hash_count)
                return -EINVAL;
        mp_read(&field, &v);
        extras = arena_array(arena, e->hash_count, sizeof(*extras));
        if (!extras)
                return -ENOMEM;
        for (size_t i = 0; i < e->hash_count; i++)
                if (read_extra(&field, adapter, &extras[i]) < 0)
                        return -EINVAL;
        e->extras = extras;
        return 0;
}

/* The first tier, and the first group of layers. */
static bool counts(struct slice medium, struct slice group) {
        struct mp_value v;

        if (read_value(medium, &v) && v.kind == MP_TEXT && !slice_is_icase(v.text, "GPU") &&
            !slice_is_icase(v.text, "NPU") && !slice_is_icase(v.text, "HBM"))
                return false;
        return !read_value(group, &v) || v.kind != MP_INT || v.number == 0;
}

static int read_stored(struct slice event, size_t skip, struct arena *arena, struct event *e) {
        enum { HASHES, PARENT, TOKENS, BLOCK_SIZE, LORA_ID, MEDIUM, LORA_NAME, EXTRAS, GROUP, COUNT };
        static const char *const names[COUNT] = {"block_hashes", "parent_block_hash", "token_ids", "block_size",
            "lora_id", "medium", "lora_name", "extra_keys", "group_idx"};
        struct slice adapter = SLICE_NONE;
        struct mp_value v;
        struct fields f;
        void *items;
        int r = read_fields(event, names, COUNT, skip, &f);

        if (r == 0)
                r = read_list(f.values[HASHES], arena, sizeof(uint64_t), &items, &e->hash_count);
        if (r < 0)
                return r;
        e->hashes = items;
        r = read_list(f.values[TOKENS], arena, sizeof(uint32_t), &items, &e->token_count);
        if (r < 0)
                return r;
        e->tokens = items;
        if (read_value(f.values[PARENT], &v) && v.kind != MP_NIL) {
                e->has_parent = read_hash(&v, &e->parent);
                if (!e->has_parent)
                        return -EINVAL;
        }
        if (!read_value(f.values[BLOCK_SIZE], &v) || v.kind != MP_INT || v.number == 0 || v.number > UINT32_MAX)
                return -EINVAL;
        e->block_tokens = (uint32_t)v.number;
        if (e->token_count > 0 && e->token_count / e->block_tokens < e->hash_count)
                return -EINVAL;
        if (read_value(f.values[LORA_NAME], &v) && v.kind == MP_TEXT) {
                adapter = v.text;
                e->adapter = event_name(adapter);
        } else if (read_value(f.values[LORA_ID], &v) && v.kind == MP_INT)
                e->adapter = event_name(slice_of(&v.number, sizeof(v.number)));
        e->counts = counts(f.values[MEDIUM], f.values[GROUP]);
        return read_extras(f.values[EXTRAS], adapter, arena, e);
}

static int read_removed(struct slice event, size_t skip, struct arena *arena, struct event *e) {
        static const char *const names[] = {"block_hashes", "medium", "group_idx"};
        struct fields f;
        void *items;
        int r = read_fields(event, names, 3, skip, &f);

        if (r == 0)
                r = read_list(f.values[0], arena, sizeof(uint64_t), &items, &e->hash_count);
        if (r < 0)
                return r;
        e->hashes = items;
        e->counts = counts(f.values[1], f.values[2]);
        return 0;
}

int event_batch_next(struct event_batch *b, struct arena *arena, struct event *ret_event) {
        while (b->left > 0) {
                struct event e = {.counts = true};
                struct slice event, rest, tag;
                struct mp_value v;
                size_t skip;
                int r = 0;

                b->left--;
                if (mp_skip(&b->rest, &event) < 0)
                        return -EINVAL;
                rest = event;
                if (mp_read(&rest, &v) < 0)
                        return -EINVAL;
                skip = v.kind == MP_ARRAY;
                tag = tag_of(event);
                if (slice_is(tag, "BlockStored")) {
                        e.kind = EVENT_STORED;
                        r = read_stored(event, skip, arena, &e);
                } else if (slice_is(tag, "BlockRemoved")) {
                        e.kind = EVENT_REMOVED;
                        r = read_removed(event, skip, arena, &e);
                } else if (slice_is(tag, "AllBlocksCleared")) {
                        e.kind = EVENT_CLEARED;
                } else if (tag.ptr) {
                        continue; /* of a later version */
                } else {
                        r = -EINVAL;
                }
                if (r < 0) {
                        b->left = 0;
                        return r;
                }
                *ret_event = e;
                return 1;
        }
        return 0;
}

/* ---- writing -------------------------------------------------------------------------------------------------------- */

static void write_hashes(struct buf *b, const uint64_t *hashes, size_t count) {
        mp_write_array(b, (uint32_t)count);
        for (size_t i = 0; i < count; i++)
                mp_write_u64(b, hashes[i]);
}

void event_write_stored(struct event_writer *w, const struct event *e) {
        struct buf *b = &w->events;

        mp_write_array(b, e->salt.len ? 9 : 7);
        mp_write_text(b, SLICE_LIT("BlockStored"));
        write_hashes(b, e->hashes, e->hash_count);
        if (e->has_parent)
                mp_write_u64(b, e->parent);
        else
                mp_write_nil(b);
        mp_write_array(b, (uint32_t)e->token_count);
        for (size_t i = 0; i < e->token_count; i++)
                mp_write_u64(b, e->tokens[i]);
        mp_write_u64(b, e->block_tokens);
        mp_write_nil(b); /* lora_id */
        mp_write_text(b, SLICE_LIT("GPU"));
        if (e->salt.len) {
                mp_write_nil(b); /* lora_name */
                mp_write_array(b, (uint32_t)e->hash_count);
                mp_write_array(b, 1);
                mp_write_text(b, e->salt);
                for (size_t i = 1; i < e->hash_count; i++)
                        mp_write_nil(b);
        }
        w->count++;
}

void event_write_removed(struct event_writer *w, const uint64_t *hashes, size_t count) {
        mp_write_array(&w->events, 3);
        mp_write_text(&w->events, SLICE_LIT("BlockRemoved"));
        write_hashes(&w->events, hashes, count);
        mp_write_text(&w->events, SLICE_LIT("GPU"));
        w->count++;
}

void event_write_cleared(struct event_writer *w) {
        mp_write_array(&w->events, 1);
        mp_write_text(&w->events, SLICE_LIT("AllBlocksCleared"));
        w->count++;
}

void event_write_batch(struct event_writer *w, double time, int64_t rank, struct buf *out) {
        mp_write_array(out, rank >= 0 ? 3 : 2);
        mp_write_double(out, time);
        mp_write_array(out, w->count);
        buf_add(out, buf_slice(&w->events));
        if (rank >= 0)
                mp_write_i64(out, rank);
        out->failed |= w->events.failed;
        buf_reset(&w->events);
        w->count = 0;
}

void event_writer_free(struct event_writer *w) {
        buf_free(&w->events);
        w->count = 0;
}
