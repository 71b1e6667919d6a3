/* test_codec.c - parsers and writers: what is accepted, what comes out, and that it does not depend on the cut. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "codec_log.h"

#define COUNT(table) (sizeof(table) / sizeof((table)[0]))
#define HOST         "Host: a\r\n"

/* The log of one cut, for comparison. The caller frees it. */
static struct buf log_of(enum codec_side side, struct slice bytes, size_t first, size_t step, int *ret_messages) {
        struct buf log = {0};

        *ret_messages = codec_run(&log, side, &codec_limits, bytes, first, step);
        buf_cstr(&log);
        return log;
}

static void expect_same_in_any_cut(enum codec_side side, struct slice bytes, int messages) {
        int count;
        struct buf whole = log_of(side, bytes, 0, bytes.len, &count);

        if (count != messages)
                fail_msg("%d messages, not %d: %s", count, messages, whole.ptr);
        for (size_t first = 0; first < bytes.len; first++) {
                /* In two pieces; byte by byte; in small pieces after an offset. */
                size_t steps[] = {bytes.len, 1, 7};

                for (size_t i = 0; i < 3; i++) {
                        struct buf cut = log_of(side, bytes, first, steps[i], &count);

                        if (strcmp(cut.ptr, whole.ptr) != 0)
                                fail_msg("cut at %zu, then %zu: %s\nwhole: %s", first, steps[i], cut.ptr, whole.ptr);
                        buf_free(&cut);
                }
        }
        buf_free(&whole);
}

static const struct slice request_streams[] = {
    SLICE_LIT("GET / HTTP/1.1\r\n" HOST "\r\n"
              "POST /v1/chat/completions?a=b&c HTTP/1.1\r\nhOST: x:80\r\nContent-Type:application/json  \r\n"
              "Content-Length: 11\r\nEmpty:\r\nX: \t y z\t \r\n\r\nhello world"
              "HEAD /x HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n"
              "PUT /y HTTP/1.1\r\n" HOST "Transfer-Encoding: Chunked\r\n\r\n"
              "5\r\nhello\r\n6;a=b;c=\"d e\"\r\n world\r\n0\r\nTrailer: x\r\n\r\n"
              "\r\n\r\nDELETE /z HTTP/1.1\r\n" HOST "Connection: close\r\n\r\n"),
    SLICE_LIT("POST / HTTP/1.1\r\n" HOST "Expect: 100-Continue\r\nContent-Length: 1\r\n\r\nx"
              "OPTIONS * HTTP/1.1\r\n" HOST "\r\n"
              "GET http://b.example/p?q HTTP/1.1\r\n" HOST "\r\n"
              "GET https://b.example?q HTTP/1.1\r\n" HOST "\r\n"
              "GET http://b.example HTTP/1.1\r\n" HOST "\r\n"
              "PATCH /a HTTP/1.1\r\n" HOST "Upgrade: h2c\r\nConnection: Upgrade\r\nContent-Length: 2\r\n\r\nab"
              "GET /b HTTP/1.1\r\n" HOST "Upgrade: websocket\r\nConnection: upgrade\r\n\r\n"
              "PROPFIND /c HTTP/1.1\r\n" HOST "\r\n"),
};

static const struct slice response_streams[] = {
    SLICE_LIT("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"
              "HTTP/1.1 204\r\nX: y\r\n\r\n"
              "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n"
              "HTTP/1.1 404 Not Found\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n00\r\n\r\n"
              "HTTP/1.1 304 Not Modified\r\nContent-Length: 99\r\n\r\n"
              "HTTP/1.0 200 \r\nConnection: keep-alive\r\nContent-Length: 0\r\n\r\n"
              "HTTP/1.1 200 OK\r\nX: until close\r\n\r\nall of \r\n\r\n this"),
};

static void any_cut_of_requests_gives_the_same_events(void **state) {
        static const int messages[] = {5, 8};

        for (size_t i = 0; i < COUNT(request_streams); i++)
                expect_same_in_any_cut(CODEC_REQUEST, request_streams[i], messages[i]);
}

static void any_cut_of_responses_gives_the_same_events(void **state) {
        expect_same_in_any_cut(CODEC_RESPONSE, response_streams[0], 6);
        expect_same_in_any_cut(CODEC_RESPONSE_TO_HEAD,
            SLICE_LIT(
                "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nHTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"),
            2);
}

static void events_say_what_was_sent(void **state) {
        int count;
        struct buf log = log_of(CODEC_REQUEST, request_streams[0], 0, request_streams[0].len, &count);

        assert_string_equal(log.ptr,
            "HEAD 0 GET / / ?  length -1 http10 0 keep 1 expect 0 [Host=a]\nBODY \nEND\n"
            "HEAD 2 POST /v1/chat/completions?a=b&c /v1/chat/completions ? a=b&c length 11 http10 0 keep 1 expect 0 "
            "[hOST=x:80] [Content-Type=application/json] [Content-Length=11] [Empty=] [X=y z]\nBODY hello world\nEND\n"
            "HEAD 1 HEAD /x /x ?  length -1 http10 1 keep 1 expect 0 [Connection=Keep-Alive]\nBODY \nEND\n"
            "HEAD 3 PUT /y /y ?  length -2 http10 0 keep 1 expect 0 [Host=a] [Transfer-Encoding=Chunked]\n"
            "BODY hello world\nEND\n"
            "HEAD 4 DELETE /z /z ?  length -1 http10 0 keep 0 expect 0 [Host=a] [Connection=close]\nBODY \nEND\n");
        buf_free(&log);
        log = log_of(CODEC_REQUEST, request_streams[1], 0, request_streams[1].len, &count);
        assert_non_null(strstr(log.ptr, "HEAD 2 POST / / ?  length 1 http10 0 keep 1 expect 1"));
        assert_non_null(strstr(log.ptr, "OPTIONS * * ? "));
        assert_non_null(strstr(log.ptr, "GET /p?q /p ? q "));
        assert_non_null(strstr(log.ptr, "GET /?q / ? q "));
        assert_non_null(strstr(log.ptr, "HEAD 7 PROPFIND /c "));
        buf_free(&log);
        log = log_of(CODEC_RESPONSE, response_streams[0], 0, response_streams[0].len, &count);
        assert_string_equal(log.ptr,
            "HEAD 200 length 5 keep 1 close 0 [Content-Length=5]\nBODY hello\nEND\n"
            "HEAD 204 length -1 keep 1 close 0 [X=y]\nBODY \nEND\n"
            "HEAD 404 length -2 keep 1 close 0 [Transfer-Encoding=chunked]\nBODY abc\nEND\n"
            "HEAD 304 length -1 keep 1 close 0 [Content-Length=99]\nBODY \nEND\n"
            "HEAD 200 length 0 keep 1 close 0 [Connection=keep-alive] [Content-Length=0]\n"
            "BODY \nEND\n"
            "HEAD 200 length -2 keep 0 close 1 [X=until close]\nBODY all of \r\n\r\n this\nCLOSED\n");
        buf_free(&log);
}

/* ---- limits --------------------------------------------------------------------------------------------------- */

static void expect_limit(struct buf *bytes, const struct http_parser_limits *limits, int status) {
        for (size_t step = 1; step <= bytes->len; step += step < 8 ? 1 : bytes->len / 5) {
                struct buf log = {0};
                char expected[64];
                int messages = codec_run(&log, CODEC_REQUEST, limits, buf_slice(bytes), 0, step);

                snprintf(expected, sizeof(expected), "ERROR %d status %d", -EPROTO, status);
                if (status ? !strstr(buf_cstr(&log), expected) : messages != 1)
                        fail_msg("%d wanted in steps of %zu: %s", status, step, buf_cstr(&log));
                buf_free(&log);
        }
}

static void a_head_is_bounded_in_bytes_to_the_byte(void **state) {
        struct http_parser_limits limits = codec_limits;
        struct buf b = {0};

        buf_add_str(&b, "GET /abc HTTP/1.1\r\n" HOST "X: yyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyy\r\n\r\n");
        limits.head_bytes = b.len;
        expect_limit(&b, &limits, 0);
        limits.head_bytes = b.len - 1;
        expect_limit(&b, &limits, 431);
        limits.head_bytes = 8;
        expect_limit(&b, &limits, 414);
        /* Bytes that llhttp never shows are counted as well. */
        buf_reset(&b);
        for (int i = 0; i < 100; i++)
                buf_add_str(&b, "\r\n");
        limits.head_bytes = 150;
        expect_limit(&b, &limits, 431);
        buf_reset(&b);
        buf_add_str(&b, "GET / HTTP/1.1\r\n" HOST "X:");
        for (int i = 0; i < 200; i++)
                buf_add_char(&b, ' ');
        expect_limit(&b, &limits, 431);
        buf_free(&b);
}

static void fields_are_bounded_in_number(void **state) {
        struct http_parser_limits limits = codec_limits;
        struct buf b = {0};

        buf_add_str(&b, "GET / HTTP/1.1\r\n" HOST);
        for (int i = 0; i < 99; i++)
                buf_printf(&b, "F%d: v\r\n", i);
        buf_add_str(&b, "\r\n");
        expect_limit(&b, &limits, 0);
        limits.head_fields = 99;
        expect_limit(&b, &limits, 431);
        buf_free(&b);
}

static void bodies_are_bounded_before_they_are_read(void **state) {
        struct http_parser_limits limits = codec_limits;
        struct buf b = {0};

        limits.body_bytes = 10;
        buf_add_str(&b, "POST / HTTP/1.1\r\n" HOST "Content-Length: 10\r\n\r\n0123456789");
        expect_limit(&b, &limits, 0);
        buf_reset(&b);
        buf_add_str(&b, "POST / HTTP/1.1\r\n" HOST "Content-Length: 11\r\n\r\n");
        expect_limit(&b, &limits, 413);
        buf_reset(&b);
        buf_add_str(
            &b, "POST / HTTP/1.1\r\n" HOST "Transfer-Encoding: chunked\r\n\r\n6\r\n012345\r\n4\r\n6789\r\n0\r\n\r\n");
        expect_limit(&b, &limits, 0);
        buf_reset(&b);
        buf_add_str(&b, "POST / HTTP/1.1\r\n" HOST "Transfer-Encoding: chunked\r\n\r\n6\r\n012345\r\n5\r\n");
        expect_limit(&b, &limits, 413);
        buf_free(&b);
}

static void chunk_lines_and_trailers_are_bounded(void **state) {
        struct http_parser_limits limits = codec_limits;
        struct buf b = {0};

        limits.head_bytes = 1000;
        buf_add_str(&b, "POST / HTTP/1.1\r\n" HOST "Transfer-Encoding: chunked\r\n\r\n1;a=");
        for (int i = 0; i < 2000; i++)
                buf_add_char(&b, 'b');
        buf_add_str(&b, "\r\nx\r\n0\r\n\r\n");
        expect_limit(&b, &limits, 431);
        buf_reset(&b);
        buf_add_str(&b, "POST / HTTP/1.1\r\n" HOST "Transfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n");
        for (int i = 0; i < 100; i++)
                buf_add_str(&b, "Trailer-Field: and more\r\n");
        buf_add_str(&b, "\r\n");
        expect_limit(&b, &limits, 431);
        /* Many short extensions add up. */
        buf_reset(&b);
        buf_add_str(&b, "POST / HTTP/1.1\r\n" HOST "Transfer-Encoding: chunked\r\n\r\n");
        for (int i = 0; i < 1000; i++)
                buf_add_str(&b, "1;abc=def\r\nx\r\n");
        buf_add_str(&b, "0\r\n\r\n");
        expect_limit(&b, &limits, 400);
        buf_free(&b);
}

static void informational_answers_are_bounded(void **state) {
        struct buf b = {0}, log = {0};

        for (int i = 0; i < HTTP_INFORMATIONAL_MAX; i++)
                buf_add_str(&b, "HTTP/1.1 103 Early Hints\r\n\r\n");
        buf_add_str(&b, "HTTP/1.1 204 No Content\r\n\r\n");
        assert_int_equal(codec_run(&log, CODEC_RESPONSE, &codec_limits, buf_slice(&b), 0, 5), 1);
        buf_reset(&b);
        buf_reset(&log);
        for (int i = 0; i <= HTTP_INFORMATIONAL_MAX; i++)
                buf_add_str(&b, "HTTP/1.1 103 Early Hints\r\n\r\n");
        assert_int_equal(codec_run(&log, CODEC_RESPONSE, &codec_limits, buf_slice(&b), 0, b.len), 0);
        assert_non_null(strstr(buf_cstr(&log), "too many informational answers"));
        buf_free(&b);
        buf_free(&log);
}

/* ---- writers -------------------------------------------------------------------------------------------------- */

static void what_is_written_is_read_back(void **state) {
        struct http_field fields[] = {{SLICE_LIT("Content-Type"), SLICE_LIT("text/event-stream")},
            {SLICE_LIT("X-Empty"), SLICE_LIT("")}, {SLICE_LIT("X-Utf8"), SLICE_LIT("\xc3\xa4\tb")}};
        static const int64_t lengths[] = {0, 1, 9, 10, 123456789012, INT64_MAX, HTTP_LENGTH_CHUNKED, HTTP_LENGTH_NONE};

        for (size_t i = 0; i < COUNT(lengths); i++) {
                struct http_answer a = {.status = i % 2 ? 200 : 503,
                    .fields = {fields, 3},
                    .content_length = lengths[i],
                    .connection = (enum http_connection)(i % 3),
                    .date = SLICE_LIT("Date: now\r\n")};
                char head[1024], expected[512];
                struct buf log = {0}, request = {0};
                ssize_t len = http_write_answer_head(&a, head);

                assert_true(len > 0 && (size_t)len <= http_answer_head_size(&a));
                codec_run(&log, CODEC_RESPONSE, &codec_limits, slice_of(head, (size_t)len), 0, (size_t)len);
                snprintf(expected, sizeof(expected),
                    "HEAD %d length %lld keep %d close %d [Content-Type=text/event-stream] [X-Empty=] "
                    "[X-Utf8=\xc3\xa4\tb] [Date=now]",
                    a.status, (long long)(lengths[i] == HTTP_LENGTH_NONE ? HTTP_LENGTH_CHUNKED : lengths[i]),
                    a.connection != HTTP_CONNECTION_CLOSE && lengths[i] != HTTP_LENGTH_NONE,
                    lengths[i] == HTTP_LENGTH_NONE);
                if (strncmp(buf_cstr(&log), expected, strlen(expected)) != 0)
                        fail_msg("%s\nis not %s", log.ptr, expected);
                buf_reset(&log);
                assert_int_equal(http_write_request_head(&request, SLICE_LIT("POST"), SLICE_LIT("/a?b"),
                                     SLICE_LIT("h:1"), (struct http_fields){fields, 3}, lengths[i]),
                    0);
                codec_run(&log, CODEC_REQUEST,
                    &(struct http_parser_limits){.head_bytes = 4096, .head_fields = 9, .body_bytes = UINT64_MAX},
                    buf_slice(&request), 0, request.len);
                snprintf(expected, sizeof(expected),
                    "HEAD 2 POST /a?b /a ? b length %lld http10 0 keep 1 expect 0 [Host=h:1] "
                    "[Content-Type=text/event-stream]",
                    (long long)lengths[i]);
                if (strncmp(buf_cstr(&log), expected, strlen(expected)) != 0)
                        fail_msg("%s\nis not %s", log.ptr, expected);
                buf_free(&log);
                buf_free(&request);
        }
}

static void chunk_lines_are_hex(void **state) {
        static const struct {
                uint64_t len;
                const char *line;
        } cases[] = {{0, "0\r\n"}, {1, "1\r\n"}, {15, "f\r\n"}, {16, "10\r\n"}, {0xabcdef, "abcdef\r\n"},
            {UINT64_MAX, "ffffffffffffffff\r\n"}};

        for (size_t i = 0; i < COUNT(cases); i++) {
                char line[HTTP_CHUNK_LINE_MAX];
                size_t len = http_write_chunk_line(cases[i].len, line);

                assert_true(slice_is(slice_of(line, len), cases[i].line));
        }
}

static void a_key_is_right_whole_or_not_at_all(void **state) {
        static const struct {
                const char *given;
                bool right;
        } cases[] = {{"Bearer secret", true}, {"bEARER secret", true}, {"Bearer secre", false},
            {"Bearer secrets", false}, {"Bearer secretsecret", false}, {"Bearer  secret", false}, {"Bearer ", false},
            {"Bearer", false}, {"", false}, {"secret", false}, {"Basic secret", false}};
        struct http_field field = {.name = SLICE_LIT("authorization")};

        for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
                field.value = slice_str(cases[i].given);
                assert_int_equal(http_bearer_is((struct http_fields){&field, 1}, "secret"), cases[i].right);
        }
        assert_false(http_bearer_is((struct http_fields){0}, "secret"));
}

static void hop_by_hop_fields_are_known_and_named(void **state) {
        struct http_field items[] = {{SLICE_LIT("connection"), SLICE_LIT("close, X-Hop ,")},
            {SLICE_LIT("X-Hop"), SLICE_LIT("1")}, {SLICE_LIT("X-End"), SLICE_LIT("2")}};
        struct http_fields fields = {items, 3};
        static const char *const hop[] = {"Connection", "keep-alive", "TE", "Trailer", "transfer-encoding", "Upgrade",
            "Proxy-Connection", "Proxy-Authorization", "x-hop"};
        static const char *const end[] = {"Content-Length", "X-End", "Content-Type", "Prox", "Te-x", ""};

        for (size_t i = 0; i < COUNT(hop); i++)
                assert_true(http_field_is_hop_by_hop(fields, slice_str(hop[i])));
        for (size_t i = 0; i < COUNT(end); i++)
                assert_false(http_field_is_hop_by_hop(fields, slice_str(end[i])));
        assert_ptr_equal(http_field_find(fields, "x-end"), &items[2]);
        assert_null(http_field_find(fields, "x-en"));
        assert_true(slice_is(http_field_value(fields, "X-HOP"), "1"));
        assert_null(http_field_value(fields, "none").ptr);
}

int main(void) {
        const struct CMUnitTest tests[] = {
            cmocka_unit_test(any_cut_of_requests_gives_the_same_events),
            cmocka_unit_test(any_cut_of_responses_gives_the_same_events),
            cmocka_unit_test(events_say_what_was_sent),
            cmocka_unit_test(a_head_is_bounded_in_bytes_to_the_byte),
            cmocka_unit_test(fields_are_bounded_in_number),
            cmocka_unit_test(bodies_are_bounded_before_they_are_read),
            cmocka_unit_test(chunk_lines_and_trailers_are_bounded),
            cmocka_unit_test(informational_answers_are_bounded),
            cmocka_unit_test(what_is_written_is_read_back),
            cmocka_unit_test(chunk_lines_are_hex),
            cmocka_unit_test(a_key_is_right_whole_or_not_at_all),
            cmocka_unit_test(hop_by_hop_fields_are_known_and_named),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
