/* test_sse.c - the event splitter: whole events, in any cut, with nothing lost or added. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "base/buf.h"
#include "base/rng.h"
#include "http/sse.h"
#include <errno.h>
#include <stdlib.h>

/* Feed `stream` cut into a first piece and steps; events are written as <event> with their data as {data}, what is held
 * at the end as a count. */
static void split(struct buf *out, struct slice stream, size_t first, size_t step) {
        struct sse *s = sse_new();
        size_t at = 0;
        int r = 0;

        assert_non_null(s);
        while (at < stream.len && r >= 0) {
                struct slice in = slice_sub(stream, at, at + (at == 0 && first ? first : step)), event;
                char *copy = malloc(in.len);

                memcpy(copy, in.ptr, in.len);
                at += in.len;
                in.ptr = copy;
                while ((r = sse_next(s, &in, &event)) > 0) {
                        char *scratch = malloc(event.len);
                        struct slice data = sse_data(event, scratch);

                        buf_printf(out, "<%.*s>", SLICE_ARG(event));
                        if (data.ptr)
                                buf_printf(out, "{%.*s}", SLICE_ARG(data));
                        free(scratch);
                }
                assert_true(r < 0 || in.len == 0);
                free(copy);
        }
        buf_printf(out, " held %zu", r < 0 ? (size_t)-r : sse_held(s));
        sse_free(s);
}

static void expect_split(const char *stream, const char *expected) {
        struct slice s = slice_str(stream);

        for (size_t first = 0; first < s.len; first++) {
                for (size_t step = 1; step <= s.len; step += s.len > 2 ? s.len - 1 : 1) {
                        struct buf out = {0};

                        split(&out, s, first, step);
                        if (strcmp(buf_cstr(&out), expected) != 0)
                                fail_msg("cut at %zu, then %zu: %s\nnot %s", first, step, buf_cstr(&out), expected);
                        buf_free(&out);
                }
        }
}

static void events_are_split_at_blank_lines_of_every_kind(void **state) {
        expect_split("data: a\n\ndata: b\n\n", "<data: a\n\n>{a}<data: b\n\n>{b} held 0");
        expect_split("data: a\r\n\r\ndata: b\r\n\r\n", "<data: a\r\n\r\n>{a}<data: b\r\n\r\n>{b} held 0");
        expect_split("data: a\r\rdata: b\r\r", "<data: a\r\r>{a}<data: b\r\r>{b} held 0");
        /* Mixed ends: a blank line that ends in a bare CR; a CRLF after LF. */
        expect_split("data: a\n\rdata: b\n\r\nx\n\n", "<data: a\n\r>{a}<data: b\n\r>{b}<\nx\n\n> held 0");
        expect_split("data: a\r\n\rdata: b\n\n", "<data: a\r\n\r>{a}<data: b\n\n>{b} held 0");
        /* Blank lines before an event belong to it. */
        expect_split("\n\r\n\rdata: a\n\n", "<\n\r\n\rdata: a\n\n>{a} held 0");
        expect_split("\n\n\n", " held 0");
        expect_split(": ping\n\n", "<: ping\n\n> held 0");
}

static void what_has_begun_and_not_ended_is_held(void **state) {
        expect_split("data: a\n\ndata: b", "<data: a\n\n>{a} held 7");
        expect_split("data: a\n", " held 8");
        expect_split("data: a\r\n\r", " held 10");
        expect_split("x", " held 1");
}

static void data_lines_are_joined_and_one_space_dropped(void **state) {
        expect_split(
            "data:a\ndata:  b\ndata\ndata:\nid: 7\n\n", "<data:a\ndata:  b\ndata\ndata:\nid: 7\n\n>{a\n b\n\n} held 0");
        expect_split("event: x\ndata: [DONE]\n\n", "<event: x\ndata: [DONE]\n\n>{[DONE]} held 0");
        expect_split("database: x\nDATA: y\n data: z\n\n", "<database: x\nDATA: y\n data: z\n\n> held 0");
        expect_split("data\n\n", "<data\n\n>{} held 0");
        expect_split("\xef\xbb\xbf"
                     "data: bom\n\n",
            "<\xef\xbb\xbf"
            "data: bom\n\n>{bom} held 0");
        expect_split("data: a\rdata: b\r\ndata: c\n\n", "<data: a\rdata: b\r\ndata: c\n\n>{a\nb\nc} held 0");
}

/* Streams of line ends and letters by chance: every cut agrees, and all events together are the stream. */
static void any_cut_gives_the_same_events_and_nothing_is_lost(void **state) {
        struct rng rng;

        rng_seed(&rng, 7);
        for (int round = 0; round < 300; round++) {
                char stream[40];
                size_t len = 1 + rng_below(&rng, sizeof(stream));
                struct buf whole = {0}, joined = {0};
                struct slice in, event;
                struct sse *s = sse_new();

                for (size_t i = 0; i < len; i++)
                        stream[i] = "\n\r\n\rab:"[rng_below(&rng, 7)];
                split(&whole, slice_of(stream, len), 0, len);
                buf_cstr(&whole);
                for (size_t first = 0; first < len; first++) {
                        struct buf cut = {0};

                        split(&cut, slice_of(stream, len), first, 1 + rng_below(&rng, 3));
                        assert_string_equal(buf_cstr(&cut), whole.ptr);
                        buf_free(&cut);
                }
                in = slice_of(stream, len);
                while (sse_next(s, &in, &event) > 0)
                        buf_add(&joined, event);
                assert_true(slice_starts(slice_of(stream, len), buf_slice(&joined)));
                if (sse_held(s))
                        assert_int_equal(joined.len + sse_held(s), len);
                sse_free(s);
                buf_free(&joined);
                buf_free(&whole);
        }
}

static void an_event_within_one_feed_is_a_view(void **state) {
        struct slice in = SLICE_LIT("data: a\n\ndata: b\n\n"), all = in, event;
        struct sse *s = sse_new();

        assert_int_equal(sse_next(s, &in, &event), 1);
        assert_ptr_equal(event.ptr, all.ptr);
        assert_int_equal(sse_next(s, &in, &event), 1);
        assert_ptr_equal(event.ptr, all.ptr + 9);
        assert_int_equal(sse_next(s, &in, &event), 0);
        assert_ptr_equal(event.ptr, all.ptr + 9);
        sse_free(s);
        sse_free(NULL);
}

static void an_event_beyond_the_limit_ends_the_stream_in_any_cut(void **state) {
        size_t size = SSE_EVENT_MAX + 1;
        char *bytes = malloc(size);

        for (int over = 0; over < 2; over++) {
                size_t steps[] = {size, 65536, 1000003};

                memset(bytes, 'x', size);
                memcpy(bytes + size - 3 + over, "\n\n", 2);
                for (size_t i = 0; i < 3; i++) {
                        struct sse *s = sse_new();
                        struct slice all = slice_of(bytes, size - 1 + over), event = SLICE_NONE;
                        int r = 0;

                        while (r == 0 && all.len) {
                                struct slice in = slice_take(&all, steps[i]);

                                r = sse_next(s, &in, &event);
                        }
                        assert_int_equal(r, over ? -EMSGSIZE : 1);
                        assert_int_equal(event.len, over ? 0 : SSE_EVENT_MAX);
                        all = SLICE_LIT("x");
                        if (over)
                                assert_int_equal(sse_next(s, &all, &event), -EMSGSIZE);
                        sse_free(s);
                }
        }
        free(bytes);
}

int main(void) {
        const struct CMUnitTest tests[] = {
            cmocka_unit_test(events_are_split_at_blank_lines_of_every_kind),
            cmocka_unit_test(what_has_begun_and_not_ended_is_held),
            cmocka_unit_test(data_lines_are_joined_and_one_space_dropped),
            cmocka_unit_test(any_cut_gives_the_same_events_and_nothing_is_lost),
            cmocka_unit_test(an_event_within_one_feed_is_a_view),
            cmocka_unit_test(an_event_beyond_the_limit_ends_the_stream_in_any_cut),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
