/* fuzz_http_request.c - requests: any cut agrees, and what is accepted keeps the rules and survives being written again. */
#include "fuzz_http.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static size_t count_of(struct http_fields fields, const char *name) {
        size_t count = 0;

        for (size_t i = 0; i < fields.count; i++)
                count += slice_is_icase(fields.items[i].name, name);
        return count;
}

/* RFC 9112 3.2, 6.1, 6.3 and the limits, on a head that was accepted. */
static void check_rules(const struct http_request_head *head) {
        size_t hosts = count_of(head->fields, "Host"), codings = count_of(head->fields, "Transfer-Encoding");
        size_t lengths = count_of(head->fields, "Content-Length");

        FUZZ_REQUIRE(hosts == 1 || (head->http10 && hosts == 0));
        FUZZ_REQUIRE(codings + lengths <= 1);
        FUZZ_REQUIRE(!(codings && head->http10));
        FUZZ_REQUIRE((codings == 1) == (head->content_length == HTTP_LENGTH_CHUNKED));
        FUZZ_REQUIRE((lengths == 1) == (head->content_length >= 0));
        FUZZ_REQUIRE(head->content_length <= (int64_t)fuzz_limits.body_bytes);
        FUZZ_REQUIRE(head->fields.count <= fuzz_limits.head_fields);
        FUZZ_REQUIRE(http_target_is_valid(head->target));
        FUZZ_REQUIRE(head->target.ptr[0] == '/' || slice_is(head->target, "*"));
        for (size_t i = 0; i < head->fields.count; i++) {
                FUZZ_REQUIRE(http_is_token(head->fields.items[i].name));
                FUZZ_REQUIRE(http_value_is_safe(head->fields.items[i].value));
        }
}

/* Written by us and read again it is the same request. */
static void check_round_trip(const struct http_request_head *head) {
        struct http_parser_limits wide = {.head_bytes = 1 << 20, .head_fields = 1000, .body_bytes = INT64_MAX};
        struct slice host = http_field_value(head->fields, "Host"), in;
        struct arena arena = {0};
        struct http_event event;
        struct http_parser p;
        struct buf out = {0};

        FUZZ_REQUIRE(http_write_request_head(
                         &out, head->method_text, head->target, host, head->fields, head->content_length) == 0);
        http_parser_init_request(&p, &wide);
        http_parser_begin(&p, &arena);
        in = buf_slice(&out);
        FUZZ_REQUIRE(http_parser_next(&p, &in, &event) == 0 && event.kind == HTTP_EVENT_HEAD && in.len == 0);
        FUZZ_REQUIRE(slice_eq(p.head.request.target, head->target));
        FUZZ_REQUIRE(p.head.request.content_length == head->content_length);
        FUZZ_REQUIRE(slice_eq(http_field_value(p.head.request.fields, "Host"), host));
        buf_free(&out);
        arena_free(&arena);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
        struct arena arena = {0};
        struct http_event event;
        struct http_parser p;
        struct slice in;

        fuzz_cuts(CODEC_REQUEST, data, size);
        if (size < 3)
                return 0;
        in = slice_of(data + 2, size - 2);
        http_parser_init_request(&p, &fuzz_limits);
        http_parser_begin(&p, &arena);
        if (http_parser_next(&p, &in, &event) == 0 && event.kind == HTTP_EVENT_HEAD) {
                check_rules(&p.head.request);
                /* An expectation means nothing in HTTP/1.0, and we write HTTP/1.1. */
                if (!p.head.request.http10 || count_of(p.head.request.fields, "Expect") == 0)
                        check_round_trip(&p.head.request);
        }
        arena_free(&arena);
        return 0;
}
