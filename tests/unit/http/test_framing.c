/* test_framing.c - what must not pass: messages on whose framing two implementations disagreed somewhere, or that RFC 9112
 * forbids. Each is refused, in any cut, before a second message could be made of it. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "codec_log.h"

struct vector {
        const char *name;
        struct slice bytes;
        int status;
};

#define V(name, status, text)                                                                                          \
        { (name), SLICE_LIT(text), (status) }
#define COUNT(table) (sizeof(table) / sizeof((table)[0]))
#define HOST         "Host: a\r\n"

static const struct vector requests[] = {
    /* Two lengths. RFC 9112 6.3. */
    V("Content-Length beside Transfer-Encoding", 400,
        "POST / HTTP/1.1\r\n" HOST "Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
    V("Transfer-Encoding beside Content-Length", 400,
        "POST / HTTP/1.1\r\n" HOST "Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n0\r\n\r\n"),
    V("two different Content-Length", 400,
        "POST / HTTP/1.1\r\n" HOST "Content-Length: 4\r\nContent-Length: 5\r\n\r\nabcde"),
    V("two equal Content-Length", 400, "POST / HTTP/1.1\r\n" HOST "Content-Length: 4\r\nContent-Length: 4\r\n\r\nabcd"),
    V("Content-Length as a list", 400, "POST / HTTP/1.1\r\n" HOST "Content-Length: 5, 5\r\n\r\nabcde"),
    V("Content-Length with a sign", 400, "POST / HTTP/1.1\r\n" HOST "Content-Length: +4\r\n\r\nabcd"),
    V("negative Content-Length", 400, "POST / HTTP/1.1\r\n" HOST "Content-Length: -4\r\n\r\nabcd"),
    V("Content-Length in hex", 400, "POST / HTTP/1.1\r\n" HOST "Content-Length: 0x4\r\n\r\nabcd"),
    V("Content-Length with a space inside", 400, "POST / HTTP/1.1\r\n" HOST "Content-Length: 4 2\r\n\r\nabcd"),
    V("Content-Length with letters", 400, "POST / HTTP/1.1\r\n" HOST "Content-Length: 4a\r\n\r\nabcd"),
    V("Content-Length of 2^64", 400, "POST / HTTP/1.1\r\n" HOST "Content-Length: 18446744073709551616\r\n\r\nabcd"),
    V("Content-Length of 2^63", 413, "POST / HTTP/1.1\r\n" HOST "Content-Length: 9223372036854775808\r\n\r\nabcd"),
    V("empty Content-Length", 400, "POST / HTTP/1.1\r\n" HOST "Content-Length: \r\n\r\nabcd"),
    /* Transfer codings. RFC 9112 6.1. */
    V("HTTP/1.0 with Transfer-Encoding", 400, "POST / HTTP/1.0\r\n" HOST "Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
    V("Transfer-Encoding twice", 400,
        "POST / HTTP/1.1\r\n" HOST "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
    V("Transfer-Encoding chunked twice in a list", 400,
        "POST / HTTP/1.1\r\n" HOST "Transfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n"),
    V("Transfer-Encoding that ends in another coding", 400,
        "POST / HTTP/1.1\r\n" HOST "Transfer-Encoding: chunked, gzip\r\n\r\n0\r\n\r\n"),
    V("Transfer-Encoding gzip, chunked", 501,
        "POST / HTTP/1.1\r\n" HOST "Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n"),
    V("Transfer-Encoding identity", 501, "POST / HTTP/1.1\r\n" HOST "Transfer-Encoding: identity\r\n\r\n"),
    V("Transfer-Encoding xchunked", 501, "POST / HTTP/1.1\r\n" HOST "Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n"),
    V("Transfer-Encoding in quotes", 501, "POST / HTTP/1.1\r\n" HOST "Transfer-Encoding: \"chunked\"\r\n\r\n0\r\n\r\n"),
    V("Transfer-Encoding with a vertical tab", 400,
        "POST / HTTP/1.1\r\n" HOST "Transfer-Encoding: \x0b"
        "chunked\r\n\r\n0\r\n\r\n"),
    V("Transfer-Encoding on a folded line", 400,
        "POST / HTTP/1.1\r\n" HOST "Transfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n"),
/* Chunks. RFC 9112 7.1. */
#define CHUNKED "POST / HTTP/1.1\r\n" HOST "Transfer-Encoding: chunked\r\n\r\n"
    V("chunk size 0x1", 400, CHUNKED "0x1\r\na\r\n0\r\n\r\n"),
    V("chunk size with a sign", 400, CHUNKED "+1\r\na\r\n0\r\n\r\n"),
    V("negative chunk size", 400, CHUNKED "-1\r\na\r\n0\r\n\r\n"),
    V("empty chunk size", 400, CHUNKED "\r\na\r\n0\r\n\r\n"),
    V("chunk size with a space before it", 400, CHUNKED " 1\r\na\r\n0\r\n\r\n"),
    V("chunk size with a space after it", 400, CHUNKED "1 \r\na\r\n0\r\n\r\n"),
    V("chunk size of 2^64", 400, CHUNKED "10000000000000000\r\na\r\n0\r\n\r\n"),
    V("chunk size beyond any limit", 413, CHUNKED "ffffffffffffffff\r\na\r\n0\r\n\r\n"),
    V("chunk size with an underscore", 400, CHUNKED "1_0\r\na\r\n0\r\n\r\n"),
    V("LF after a chunk size", 400, CHUNKED "1\na\r\n0\r\n\r\n"),
    V("LF after a chunk extension", 400, CHUNKED "1;a=b\na\r\n0\r\n\r\n"),
    V("CR within a chunk extension", 400, CHUNKED "1;a\rb\r\na\r\n0\r\n\r\n"),
    V("LF after chunk data", 400, CHUNKED "1\r\na\n0\r\n\r\n"),
    V("chunk data longer than its size", 400, CHUNKED "1\r\nab\r\n0\r\n\r\n"),
    V("LF at the end of the trailers", 400, CHUNKED "0\r\n\n"),
    V("trailer with a space before the colon", 400, CHUNKED "0\r\nA : b\r\n\r\n"),
    /* Lines. RFC 9112 2.2, 5. */
    V("CR alone within a value", 400, "GET / HTTP/1.1\r\n" HOST "A: b\rTransfer-Encoding: chunked\r\n\r\n"),
    V("CR alone ends the request line", 400, "GET / HTTP/1.1\r" HOST "\r\n"),
    V("LF alone ends the request line", 400, "GET / HTTP/1.1\n" HOST "\r\n"),
    V("LF alone ends a field", 400, "GET / HTTP/1.1\r\nHost: a\nA: b\r\n\r\n"),
    V("LF alone ends the head", 400, "GET / HTTP/1.1\r\n" HOST "\n"),
    V("a folded value", 400, "GET / HTTP/1.1\r\n" HOST "A: b\r\n c\r\n\r\n"),
    V("a value folded with a tab", 400, "GET / HTTP/1.1\r\n" HOST "A: b\r\n\tc\r\n\r\n"),
    V("a space before the first field", 400, "GET / HTTP/1.1\r\n A: b\r\n" HOST "\r\n"),
    V("a space before Content-Length", 400, "POST / HTTP/1.1\r\n" HOST " Content-Length: 5\r\n\r\nabcde"),
    V("a space before the colon", 400, "GET / HTTP/1.1\r\n" HOST "A : b\r\n\r\n"),
    V("a tab before the colon", 400, "GET / HTTP/1.1\r\n" HOST "A\t: b\r\n\r\n"),
    V("a field without a colon", 400, "GET / HTTP/1.1\r\n" HOST "A\r\n\r\n"),
    V("a field without a name", 400, "GET / HTTP/1.1\r\n" HOST ": b\r\n\r\n"),
    V("NUL in a value", 400, "GET / HTTP/1.1\r\n" HOST "A: b\0c\r\n\r\n"),
    V("NUL in a name", 400, "GET / HTTP/1.1\r\n" HOST "A\0B: c\r\n\r\n"),
    V("a control character in a value", 400, "GET / HTTP/1.1\r\n" HOST "A: b\x01\r\n\r\n"),
    V("DEL in a value", 400, "GET / HTTP/1.1\r\n" HOST "A: b\x7f\r\n\r\n"),
    V("a byte above 127 in a name", 400, "GET / HTTP/1.1\r\n" HOST "\xc3\xa4: b\r\n\r\n"),
    V("a parenthesis in a name", 400, "GET / HTTP/1.1\r\n" HOST "A(b): c\r\n\r\n"),
    /* Request lines. RFC 9112 3. */
    V("HTTP/0.9", 505, "GET /x\r\n\r\n"),
    V("HTTP/0.9 with LF", 400, "GET /x\n"),
    V("HTTP/0.9 with LF, a head and a body", 505, "GET /x\n" HOST "Content-Length: 5\r\n\r\nabcde"),
    V("HTTP/2.0", 505, "GET / HTTP/2.0\r\n" HOST "\r\n"),
    V("HTTP/1.2", 505, "GET / HTTP/1.2\r\n" HOST "\r\n"),
    V("HTTP/0.9 spelled out", 505, "GET / HTTP/0.9\r\n" HOST "\r\n"),
    V("HTTP/11", 400, "GET / HTTP/11\r\n" HOST "\r\n"),
    V("http/1.1 in lower case", 400, "GET / http/1.1\r\n" HOST "\r\n"),
    V("HTTP/1.1 with a space after it", 400, "GET / HTTP/1.1 \r\n" HOST "\r\n"),
    V("another protocol", 400, "GET / ICE/1.0\r\n" HOST "\r\n"),
    V("a tab in the request line", 400, "GET\t/ HTTP/1.1\r\n" HOST "\r\n"),
    V("two spaces after the method", 400, "GET  / HTTP/1.1\r\n" HOST "\r\n"),
    V("two spaces after the target", 400, "GET /  HTTP/1.1\r\n" HOST "\r\n"),
    V("a LF before the request line", 400, "\nGET / HTTP/1.1\r\n" HOST "\r\n"),
    V("a CR before the request line", 400, "\rGET / HTTP/1.1\r\n" HOST "\r\n"),
    V("a space before the method", 400, " GET / HTTP/1.1\r\n" HOST "\r\n"),
    V("an unknown method", 400, "GETS / HTTP/1.1\r\n" HOST "\r\n"),
    V("a method in lower case", 400, "get / HTTP/1.1\r\n" HOST "\r\n"),
    V("a space in the target", 400, "GET /a b HTTP/1.1\r\n" HOST "\r\n"),
    V("a control character in the target", 400, "GET /a\x01 HTTP/1.1\r\n" HOST "\r\n"),
    V("NUL in the target", 400, "GET /a\0b HTTP/1.1\r\n" HOST "\r\n"),
    V("a byte above 127 in the target", 400, "GET /\xc3\xa4 HTTP/1.1\r\n" HOST "\r\n"),
    V("a fragment in the target", 400, "GET /a#b HTTP/1.1\r\n" HOST "\r\n"),
    V("a target that is no path", 400, "GET a HTTP/1.1\r\n" HOST "\r\n"),
    V("* for another method than OPTIONS", 400, "GET * HTTP/1.1\r\n" HOST "\r\n"),
    V("absolute form without authority", 400, "GET http:///x HTTP/1.1\r\n" HOST "\r\n"),
    V("absolute form with user information", 400, "GET http://u@a/x HTTP/1.1\r\n" HOST "\r\n"),
    V("absolute form of another scheme", 400, "GET ftp://a/x HTTP/1.1\r\n" HOST "\r\n"),
    V("CONNECT", 501, "CONNECT a:80 HTTP/1.1\r\n" HOST "\r\n"),
    V("the preface of HTTP/2", 505, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
    V("a TLS ClientHello", 400, "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"),
    /* Host. RFC 9112 3.2. */
    V("no Host", 400, "GET / HTTP/1.1\r\nA: b\r\n\r\n"),
    V("two Host", 400, "GET / HTTP/1.1\r\n" HOST "Host: b\r\n\r\n"),
    V("two equal Host", 400, "GET / HTTP/1.1\r\n" HOST HOST "\r\n"),
    V("two Host in HTTP/1.0", 400, "GET / HTTP/1.0\r\n" HOST "Host: b\r\n\r\n"),
    V("Host with a path", 400, "GET / HTTP/1.1\r\nHost: a/b\r\n\r\n"),
    V("Host with a space", 400, "GET / HTTP/1.1\r\nHost: a b\r\n\r\n"),
    V("Host with user information", 400, "GET / HTTP/1.1\r\nHost: u@a\r\n\r\n"),
    V("Host as a list", 400, "GET / HTTP/1.1\r\nHost: a,b/c\r\n\r\n"),
    V("an expectation that nobody knows", 417, "POST / HTTP/1.1\r\n" HOST "Expect: x\r\nContent-Length: 1\r\n\r\na"),
};

static const struct vector responses[] = {
    V("Content-Length beside Transfer-Encoding", 0,
        "HTTP/1.1 200 OK\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
    V("two different Content-Length", 0, "HTTP/1.1 200 OK\r\nContent-Length: 4\r\nContent-Length: 5\r\n\r\nabcde"),
    V("HTTP/1.0 with Transfer-Encoding", 0, "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
    V("Transfer-Encoding gzip, chunked", 0, "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n"),
    V("Transfer-Encoding gzip", 0, "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\nabc"),
    V("HTTP/2.0", 0, "HTTP/2.0 200 OK\r\nContent-Length: 0\r\n\r\n"),
    V("HTTP/0.9", 0, "<html>"),
    V("HTTP/1.1 in lower case", 0, "http/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"),
    V("a status with a sign", 0, "HTTP/1.1 +20 OK\r\nContent-Length: 0\r\n\r\n"),
    V("no status", 0, "HTTP/1.1 OK\r\nContent-Length: 0\r\n\r\n"),
    V("LF alone ends a field", 0, "HTTP/1.1 200 OK\r\nA: b\nContent-Length: 0\r\n\r\n"),
    V("a space before the colon", 0, "HTTP/1.1 200 OK\r\nContent-Length : 0\r\n\r\n"),
    V("Transfer-Encoding twice", 0,
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
    V("NUL in a value", 0, "HTTP/1.1 200 OK\r\nA: b\0c\r\nContent-Length: 0\r\n\r\n"),
    V("a status of two digits", 0, "HTTP/1.1 20 OK\r\nContent-Length: 0\r\n\r\n"),
    V("a status of four digits", 0, "HTTP/1.1 2000 OK\r\nContent-Length: 0\r\n\r\n"),
    V("a status below 100", 0, "HTTP/1.1 099 OK\r\nContent-Length: 0\r\n\r\n"),
    V("a switch of protocols", 0, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\nabc"),
    V("LF alone ends the status line", 0, "HTTP/1.1 200 OK\nContent-Length: 0\r\n\r\n"),
    V("CR alone within a value", 0, "HTTP/1.1 200 OK\r\nA: b\rc\r\nContent-Length: 0\r\n\r\n"),
    V("a folded value", 0, "HTTP/1.1 200 OK\r\nA: b\r\n c\r\nContent-Length: 0\r\n\r\n"),
    V("chunk size 0x1", 0, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0x1\r\na\r\n0\r\n\r\n"),
    V("LF after a chunk size", 0, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\na\r\n0\r\n\r\n"),
    V("cut off within the head", 0, "HTTP/1.1 200 OK\r\nContent-Le"),
    V("cut off within a body of known length", 0, "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nabc"),
    V("cut off between chunks", 0, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n"),
    V("cut off before the last line of a chunked body", 0,
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n"),
};

static bool is_refused(const struct vector *v, enum codec_side side) {
        bool bad = false;

        for (size_t first = 0; first < v->bytes.len; first++) {
                struct buf log = {0};
                size_t step = first == 0 ? 1 : v->bytes.len;
                char expected[64];
                int messages = codec_run(&log, side, &codec_limits, v->bytes, first, step);

                snprintf(expected, sizeof(expected), "ERROR %d status %d", -EPROTO, v->status);
                if (messages != 0 || !strstr(buf_cstr(&log), side == CODEC_REQUEST ? expected : "ERROR"))
                        print_error("%s, cut at %zu: %s", v->name, first, buf_cstr(&log)), bad = true;
                buf_free(&log);
        }
        return !bad;
}

static void no_request_with_doubtful_framing_is_accepted(void **state) {
        size_t refused = 0;

        for (size_t i = 0; i < COUNT(requests); i++)
                refused += is_refused(&requests[i], CODEC_REQUEST);
        assert_int_equal(refused, COUNT(requests));
}

static void no_response_with_doubtful_framing_is_accepted(void **state) {
        size_t refused = 0;

        for (size_t i = 0; i < COUNT(responses); i++)
                refused += is_refused(&responses[i], CODEC_RESPONSE);
        assert_int_equal(refused, COUNT(responses));
}

int main(void) {
        const struct CMUnitTest tests[] = {
            cmocka_unit_test(no_request_with_doubtful_framing_is_accepted),
            cmocka_unit_test(no_response_with_doubtful_framing_is_accepted),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
