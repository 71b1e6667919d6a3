/* write.c - the writers of heads and chunk lines. What goes out has our own framing; nothing of a peer's is repeated. */
#include "base/buf.h"
#include "http/codec.h"
#include <assert.h>
#include <errno.h>

/* Room for "HTTP/1.1 200 ", Content-Length with 20 digits, "Transfer-Encoding: chunked", "Connection: keep-alive" and the
 * blank line; the status text comes on top. */
#define HEAD_FIXED_MAX 160

static char *put(char *at, const void *bytes, size_t len) {
        memcpy(at, bytes, len);
        return at + len;
}

static char *put_slice(char *at, struct slice s) {
        return s.len ? put(at, s.ptr, s.len) : at;
}

#define PUT_LIT(at, text) put((at), (text), sizeof(text) - 1)

static size_t decimal(uint64_t value, char out[20]) {
        char reversed[20];
        size_t len = 0;

        do {
                reversed[len++] = (char)('0' + value % 10);
                value /= 10;
        } while (value);
        for (size_t i = 0; i < len; i++)
                out[i] = reversed[len - 1 - i];
        return len;
}

static bool field_is_writable(const struct http_field *f) {
        return http_is_token(f->name) && http_value_is_safe(f->value);
}

static char *put_field(char *at, const struct http_field *f) {
        at = put_slice(at, f->name);
        at = PUT_LIT(at, ": ");
        at = put_slice(at, f->value);
        return PUT_LIT(at, "\r\n");
}

static char *put_length(char *at, int64_t length) {
        char digits[20];

        if (length == HTTP_LENGTH_CHUNKED)
                return PUT_LIT(at, "Transfer-Encoding: chunked\r\n");
        if (length < 0)
                return at;
        at = PUT_LIT(at, "Content-Length: ");
        at = put(at, digits, decimal((uint64_t)length, digits));
        return PUT_LIT(at, "\r\n");
}

size_t http_answer_head_size(const struct http_answer *a) {
        size_t size = HEAD_FIXED_MAX + a->date.len;

        for (size_t i = 0; i < a->fields.count; i++)
                size += a->fields.items[i].name.len + a->fields.items[i].value.len + 4;
        return size;
}

static char *put_status_line(char *at, int status) {
        const char *text = http_status_text(status);

        if (status == 200)
                return PUT_LIT(at, "HTTP/1.1 200 OK\r\n");
        at = PUT_LIT(at, "HTTP/1.1 ");
        at += decimal((uint64_t)status, at);
        at = PUT_LIT(at, " ");
        at = put(at, text, strlen(text));
        return PUT_LIT(at, "\r\n");
}

ssize_t http_write_answer_head(const struct http_answer *a, char *out) {
        bool has_date = a->date.len == 0;
        char *at = out;

        if (a->status < 100 || a->status > 999)
                return -EINVAL;
        at = put_status_line(at, a->status);
        for (size_t i = 0; i < a->fields.count; i++) {
                const struct http_field *f = &a->fields.items[i];

                if (!field_is_writable(f))
                        return -EINVAL;
                if (http_field_is_framing(f->name))
                        continue;
                has_date |= f->name.len == 4 && slice_is_icase(f->name, "Date");
                at = put_field(at, f);
        }
        if (!has_date)
                at = put_slice(at, a->date);
        at = put_length(at, a->content_length);
        if (a->connection == HTTP_CONNECTION_CLOSE)
                at = PUT_LIT(at, "Connection: close\r\n");
        else if (a->connection == HTTP_CONNECTION_KEEP_ALIVE)
                at = PUT_LIT(at, "Connection: keep-alive\r\n");
        at = PUT_LIT(at, "\r\n");
        assert((size_t)(at - out) <= http_answer_head_size(a));
        return at - out;
}

int http_write_request_head(struct buf *out, struct slice method, struct slice target, struct slice host,
    struct http_fields fields, int64_t content_length) {
        size_t size = HEAD_FIXED_MAX + method.len + target.len + host.len;
        char *start, *at;

        if (!http_is_token(method) || !http_target_is_valid(target) || !http_value_is_safe(host))
                return -EINVAL;
        for (size_t i = 0; i < fields.count; i++) {
                if (!field_is_writable(&fields.items[i]))
                        return -EINVAL;
                size += fields.items[i].name.len + fields.items[i].value.len + 4;
        }
        start = at = buf_reserve(out, size);
        if (!at)
                return 0;
        at = put_slice(at, method);
        at = PUT_LIT(at, " ");
        at = put_slice(at, target);
        at = PUT_LIT(at, " HTTP/1.1\r\nHost: ");
        at = put_slice(at, host);
        at = PUT_LIT(at, "\r\n");
        for (size_t i = 0; i < fields.count; i++) {
                struct slice name = fields.items[i].name;

                if (!http_field_is_framing(name) && !(name.len == 4 && slice_is_icase(name, "Host")))
                        at = put_field(at, &fields.items[i]);
        }
        at = put_length(at, content_length);
        at = PUT_LIT(at, "\r\n");
        assert((size_t)(at - start) <= size);
        buf_commit(out, (size_t)(at - start));
        return 0;
}

size_t http_write_chunk_line(uint64_t len, char out[HTTP_CHUNK_LINE_MAX]) {
        static const char digits[] = "0123456789abcdef";
        int shift = 60;
        char *at = out;

        while (shift > 0 && !(len >> shift))
                shift -= 4;
        for (; shift >= 0; shift -= 4)
                *at++ = digits[(len >> shift) & 15];
        *at++ = '\r';
        *at++ = '\n';
        return (size_t)(at - out);
}
