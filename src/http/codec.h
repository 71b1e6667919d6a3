/* codec.h - HTTP/1.1 messages as bytes: parsers for requests and responses over llhttp, and writers for heads and chunks.
 *
 * Sans-I/O: bytes in, events out, in any cut; the same bytes give the same events however they are cut. What llhttp
 * leaves open is closed here: versions other than 1.0 and 1.1, Host, Transfer-Encoding in 1.0, targets, and every size.
 * llhttp's lenient flags stay off. Private to http/, its tests and its fuzz targets. */
#pragma once
#include "base/arena.h"
#include "http/http.h"
#include <llhttp.h>

/* ---- parser --------------------------------------------------------------------------------------------------- */

enum http_event_kind {
        HTTP_EVENT_MORE, /* the input is used up and more is needed */
        HTTP_EVENT_HEAD, /* parser.head is filled in */
        HTTP_EVENT_BODY, /* a piece of the body, a view into the input */
        HTTP_EVENT_END,  /* the message is complete; bytes left in the input belong to the next one */
};

struct http_event {
        enum http_event_kind kind;
        struct slice body;
};

struct http_parser_limits {
        size_t head_bytes, head_fields;
        uint64_t body_bytes; /* UINT64_MAX: none */
};

/* Bytes of chunk extensions in one message. Nobody we know sends any; unbounded they let a peer make work without a body
 * (CVE-2024-22019 of another server). */
#define HTTP_CHUNK_EXTENSION_MAX 4096
/* Informational answers before the final one. 100 and 103 come once each; a flood of them is hostile. */
#define HTTP_INFORMATIONAL_MAX 8

struct http_span {
        uint32_t at, len; /* relative to the first byte of the head */
};
struct http_field_span {
        struct http_span name, value;
};

/* All members but those named as results are the parser's own. */
struct http_parser {
        /* Results, valid from HTTP_EVENT_HEAD on; the head's bytes live in the message's arena. */
        union {
                struct http_request_head request;
                struct http_response_head response;
        } head;
        bool keep_alive;      /* the peer allows another message on this connection */
        bool expect_continue; /* a request with "Expect: 100-continue" and a body */
        bool until_close;     /* a response whose body ends with the connection */
        uint64_t body_seen;   /* body bytes handed out */
        /* Results after -EPROTO: the status that answers it (requests), and a constant text that says what is wrong. */
        int status;
        const char *reason;

        llhttp_t ll;
        struct http_parser_limits limits;
        struct arena *arena;
        const char *origin; /* where byte 0 of the head lies while a head is parsed */
        char *kept;         /* the head so far, when it came in pieces */
        struct http_field_span *spans;
        struct http_span target;
        size_t kept_size, head_seen, gap, extension_bytes;
        uint32_t count_spans, size_spans;
        uint8_t phase, informational;
        bool started, name_open, over_fields, target_done, message_done, to_head, out_of_memory;
        struct slice body;
};

void http_parser_init_request(struct http_parser *p, const struct http_parser_limits *limits);
void http_parser_init_response(struct http_parser *p, const struct http_parser_limits *limits);
/* Make ready for the next message, whose head will live in `arena`. to_head: the response answers a HEAD request. */
void http_parser_begin(struct http_parser *p, struct arena *arena);
void http_parser_begin_response(struct http_parser *p, struct arena *arena, bool to_head);

/* Take the next event out of `in`, which is advanced past what was used. After HTTP_EVENT_END the parser wants
 * http_parser_begin(). Call until HTTP_EVENT_MORE or HTTP_EVENT_END: an event may come without any input left.
 *
 * Returns 0, -EPROTO (status and reason say why; the parser is spent), or -ENOMEM (the arena is out of memory). */
int http_parser_next(struct http_parser *p, struct slice *in, struct http_event *ret_event);
/* The peer has closed. Returns 0 when that ends the message (a body until close), else -EPROTO. */
int http_parser_eof(struct http_parser *p);
/* Whether a byte of a message was seen since http_parser_begin(). */
bool http_parser_started(const struct http_parser *p);

/* ---- writers -------------------------------------------------------------------------------------------------- */

enum http_connection {
        HTTP_CONNECTION_DEFAULT, /* say nothing: HTTP/1.1 keeps alive */
        HTTP_CONNECTION_CLOSE,
        HTTP_CONNECTION_KEEP_ALIVE, /* say so, for an HTTP/1.0 client */
};

struct http_answer {
        int status;
        struct http_fields fields; /* framing fields and other hop-by-hop ones among them are left out */
        int64_t content_length;    /* or HTTP_LENGTH_* */
        enum http_connection connection;
        struct slice date; /* a whole "Date: …\r\n" line, or empty; left out when `fields` has a Date */
};

/* As content_length of an answer: a body that ends with the connection, for an HTTP/1.0 client. */
#define HTTP_LENGTH_UNTIL_CLOSE (-3)

/* Bytes that http_write_answer_head may need at most. */
size_t http_answer_head_size(const struct http_answer *a);
/* Write the head into `out`, which has room for http_answer_head_size() bytes. Returns its length, or -EINVAL for a status
 * outside 100..999 or a field whose name is no token or whose value is not safe. */
ssize_t http_write_answer_head(const struct http_answer *a, char *out);

/* Append a request head to `out` (check buf_ok). Returns 0 or -EINVAL (target or field). `host` is the Host field's value.
 * content_length may be HTTP_LENGTH_*. */
struct buf;
int http_write_request_head(struct buf *out, struct slice method, struct slice target, struct slice host,
    struct http_fields fields, int64_t content_length);

/* The line before a chunk's data: hex length and CRLF. Returns its length, at most HTTP_CHUNK_LINE_MAX. */
#define HTTP_CHUNK_LINE_MAX 18
size_t http_write_chunk_line(uint64_t len, char out[HTTP_CHUNK_LINE_MAX]);

bool http_status_has_no_body(int status); /* RFC 9112 6.3: an answer that ends with its head */
const char *http_status_text(int status); /* "Not Found"; "Unknown" for those without a name */
struct slice http_method_text(enum http_method m);
bool http_is_token(struct slice s);         /* RFC 9110 5.6.2 */
bool http_target_is_valid(struct slice s);  /* visible ASCII without '#', not empty */
bool http_field_is_framing(struct slice s); /* fields that only this room sets: framing and hop-by-hop */
