/* test_payload.c - batches of KV events: the encodings that vLLM has had (printed by msgspec from its structs, the fuzz
 * target's corpus), what we print ourselves, and what is no batch. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "base/rng.h"
#include "events/events.h"
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

static char bytes[1 << 16];

static struct slice recorded(const char *name) {
        char path[512];
        size_t n;
        FILE *f;

        snprintf(path, sizeof(path), "%s/tests/fuzz/corpus/events/%s", getenv("BATON_SOURCE"), name);
        f = fopen(path, "rb");
        assert_non_null(f);
        n = fread(bytes, 1, sizeof(bytes), f);
        fclose(f);
        return slice_of(bytes, n);
}

static void next(struct event_batch *b, struct arena *arena, enum event_kind kind, struct event *ret_event) {
        assert_int_equal(event_batch_next(b, arena, ret_event), 1);
        assert_int_equal(ret_event->kind, kind);
}

static void all_three_encodings_say_the_same(void **state) {
        static const char *const names[] = {"arrays", "maps", "all_maps"};
        uint64_t long_name = 0;

        for (int i = 0; i < 3; i++) {
                struct arena arena = {0};
                struct event_batch b;
                struct event e;

                assert_int_equal(event_batch_open(recorded(names[i]), &b), 0);
                assert_true(b.time == 1764000000.25);
                assert_int_equal(b.rank, 3);
                assert_int_equal(b.left, 5);

                next(&b, &arena, EVENT_STORED, &e);
                assert_int_equal(e.hash_count, 2);
                assert_true(e.hashes[0] == UINT64_MAX - 4 && e.hashes[1] == 7);
                assert_false(e.has_parent);
                assert_int_equal(e.block_tokens, 2);
                assert_int_equal(e.token_count, 4);
                assert_memory_equal(e.tokens, ((uint32_t[]){1, 200, 70000, 3}), 16);
                assert_true(e.counts && e.adapter == 0);
                assert_true(e.extras[0] == event_extra(SLICE_LIT("salt")) && e.extras[1] == 0);

                next(&b, &arena, EVENT_STORED, &e);
                assert_true(e.has_parent && e.parent == 7);
                assert_true(e.adapter == event_name(SLICE_LIT("poet")));
                assert_true(e.counts); /* no medium is the only one */
                assert_null(e.extras);
                assert_true(i == 0 || e.hashes[0] == long_name);
                long_name = e.hashes[0];

                next(&b, &arena, EVENT_REMOVED, &e);
                assert_false(e.counts); /* from a lower tier */
                next(&b, &arena, EVENT_REMOVED, &e);
                assert_true(e.counts && e.hash_count == 1 && e.hashes[0] == 7);
                next(&b, &arena, EVENT_CLEARED, &e);
                assert_int_equal(event_batch_next(&b, &arena, &e), 0);
                arena_free(&arena);
        }
}

static void trailing_fields_may_be_left_out(void **state) {
        struct arena arena = {0};
        struct event_batch b;
        struct event e;

        assert_int_equal(event_batch_open(recorded("oldest"), &b), 0);
        assert_int_equal(b.rank, -1);
        next(&b, &arena, EVENT_STORED, &e);
        assert_true(e.counts && e.hashes[0] == 5 && e.token_count == 2);
        next(&b, &arena, EVENT_REMOVED, &e);
        assert_true(e.counts && e.hashes[0] == 5);
        arena_free(&arena);
}

static void events_of_later_versions_are_passed_over(void **state) {
        struct arena arena = {0};
        struct event_batch b;
        struct event e;

        assert_int_equal(event_batch_open(recorded("later"), &b), 0);
        assert_int_equal(b.left, 2);
        assert_int_equal(event_batch_next(&b, &arena, &e), 0);
        arena_free(&arena);
}

/* Whatever we write is read as it was meant, for all sizes that have heads of their own. */
static void what_is_written_is_read(void **state) {
        static uint32_t tokens[70000];
        static uint64_t hashes[70000];
        struct event_writer w = {0};
        struct arena arena = {0};
        struct buf out = {0};
        struct rng rng;

        rng_seed(&rng, 1);
        for (size_t count = 0; count <= 70000; count = count < 40 ? count + 1 : count * 3) {
                struct event stored = {.hashes = hashes,
                    .hash_count = count,
                    .tokens = tokens,
                    .token_count = count,
                    .block_tokens = 1,
                    .has_parent = count % 2,
                    .parent = count,
                    .salt = SLICE_LIT("tenant")};
                struct event_batch b;
                struct event e;

                for (size_t i = 0; i < count; i++) {
                        tokens[i] = (uint32_t)rng_u64(&rng) >> rng_below(&rng, 32);
                        hashes[i] = rng_u64(&rng) >> rng_below(&rng, 64);
                }
                if (count % 3 == 0)
                        stored.salt = SLICE_NONE;
                buf_reset(&out);
                arena_reset(&arena);
                event_write_stored(&w, &stored);
                event_write_removed(&w, hashes, count);
                event_write_cleared(&w);
                event_write_batch(&w, 12.5, count % 5 ? (int64_t)count : -1, &out);
                assert_int_equal(event_batch_open(buf_slice(&out), &b), 0);
                assert_true(b.time == 12.5 && b.rank == (count % 5 ? (int64_t)count : -1));
                next(&b, &arena, EVENT_STORED, &e);
                assert_true(e.hash_count == count && e.token_count == count && e.counts);
                assert_true(e.has_parent == stored.has_parent && (!e.has_parent || e.parent == count));
                assert_true(
                    count == 0 || (!memcmp(e.tokens, tokens, 4 * count) && !memcmp(e.hashes, hashes, 8 * count)));
                if (count > 0 && stored.salt.len)
                        assert_true(
                            e.extras[0] == event_extra(stored.salt) && (count == 1 || e.extras[count - 1] == 0));
                next(&b, &arena, EVENT_REMOVED, &e);
                assert_int_equal(e.hash_count, count);
                next(&b, &arena, EVENT_CLEARED, &e);
                assert_int_equal(event_batch_next(&b, &arena, &e), 0);
        }
        event_writer_free(&w);
        arena_free(&arena);
        buf_free(&out);
}

static void opens(const char *text, size_t len, int expected) {
        struct event_batch b;

        assert_int_equal(event_batch_open(slice_of(text, len), &b), expected);
}
#define OPEN(text, expected) opens(text, sizeof(text) - 1, expected)

static void what_is_no_batch_is_refused(void **state) {
        struct event_batch b;
        struct slice whole = recorded("arrays");
        char deep[64];

        for (size_t n = 0; n < whole.len; n++) {
                char *cut = malloc(n ? n : 1); /* of its own size: a read beyond it is seen */

                memcpy(cut, whole.ptr, n);
                assert_int_equal(event_batch_open(slice_of(cut, n), &b), -EINVAL);
                free(cut);
        }
        OPEN("", -EINVAL);
        OPEN("\x92\x01\x90\x00", -EINVAL);             /* bytes behind it */
        OPEN("\x05", -EINVAL);                         /* a number */
        OPEN("\x91\x01", -EINVAL);                     /* no events */
        OPEN("\x92\x01\x05", -EINVAL);                 /* events that are a number */
        OPEN("\x92\x01\xdd\xff\xff\xff\xff", -EINVAL); /* more events than bytes */
        OPEN("\xc1", -EINVAL);
        OPEN("\x92\x01\x90", 0);
        memset(deep, 0x91, sizeof(deep));
        deep[63] = 1;
        assert_int_equal(event_batch_open(slice_of(deep, 64), &b), -EINVAL);
}

/* Well-formed msgpack, but not an event. */
static void what_is_no_event_ends_its_batch(void **state) {
        static const struct {
                const char *bytes;
                size_t len;
        } bad[] = {
#define BAD(text) {text, sizeof(text) - 1}
            BAD("\x92\x01\x91\x05"), /* a number */
            BAD("\x92\x01\x91\x90"), /* without a name */
            BAD("\x92\x01\x91\x95\xab"
                "BlockStored"
                "\x91\x01\xc0\x91\x02\x00"), /* blocks of no tokens */
            BAD("\x92\x01\x91\x95\xab"
                "BlockStored"
                "\x91\x01\xc0\x91\x02\x02"), /* fewer tokens than blocks */
            BAD("\x92\x01\x91\x95\xab"
                "BlockStored"
                "\x91\xc0\xc0\x91\x02\x01"), /* nil is no name of a block */
            BAD("\x92\x01\x91\x95\xab"
                "BlockStored"
                "\x91\x01\xc0\x91\xff\x01"), /* a token below 0 */
            BAD("\x92\x01\x91\x92\xac"
                "BlockRemoved"
                "\x05"), /* not a list */
        };

        for (size_t i = 0; i < sizeof(bad) / sizeof(*bad); i++) {
                struct arena arena = {0};
                struct event_batch b;
                struct event e;

                assert_int_equal(event_batch_open(slice_of(bad[i].bytes, bad[i].len), &b), 0);
                assert_int_equal(event_batch_next(&b, &arena, &e), -EINVAL);
                arena_free(&arena);
        }
}

static void endpoint(const char *given, const char *host, unsigned rank, const char *expected) {
        struct arena arena = {0};
        struct error e = {0};
        const char *text;
        int r = events_endpoint(&arena, given, host, rank, &text, &e);

        if (expected)
                assert_true(r == 0 && !strcmp(text, expected));
        else
                assert_true(r == -EINVAL && e.text[0]);
        arena_free(&arena);
}

static void each_rank_has_its_port(void **state) {
        endpoint("tcp://*:5557", "10.0.0.1", 0, "tcp://10.0.0.1:5557");
        endpoint("tcp://*:5557", "10.0.0.1", 3, "tcp://10.0.0.1:5560");
        endpoint("tcp://0.0.0.0:5557", "::1", 1, "tcp://[::1]:5558");
        endpoint("tcp://[::]:5557", "host", 0, "tcp://host:5557");
        endpoint("tcp://10.0.0.9:5557", "10.0.0.1", 2, "tcp://10.0.0.9:5559");
        endpoint("ipc:///run/kv", "10.0.0.1", 0, "ipc:///run/kv");
        endpoint("ipc:///run/kv", "10.0.0.1", 1, NULL);
        endpoint("tcp://*:65535", "h", 1, NULL);
        endpoint("tcp://*", "h", 0, NULL);
        endpoint("tcp://:5557", "h", 0, NULL);
        endpoint("5557", "h", 0, NULL);
        endpoint("", "h", 0, NULL);
}

int main(void) {
        const struct CMUnitTest tests[] = {
            cmocka_unit_test(all_three_encodings_say_the_same),
            cmocka_unit_test(trailing_fields_may_be_left_out),
            cmocka_unit_test(events_of_later_versions_are_passed_over),
            cmocka_unit_test(what_is_written_is_read),
            cmocka_unit_test(what_is_no_batch_is_refused),
            cmocka_unit_test(what_is_no_event_ends_its_batch),
            cmocka_unit_test(each_rank_has_its_port),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
