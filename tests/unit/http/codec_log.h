/* codec_log.h - run bytes through a parser in a given cut and write down what came out, for tests and fuzz targets.
 *
 * The log has one line per message part; pieces of a body are joined, so that logs of different cuts can be compared. */
#pragma once
#include "base/buf.h"
#include "http/codec.h"
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

enum codec_side { CODEC_REQUEST, CODEC_RESPONSE, CODEC_RESPONSE_TO_HEAD };

static inline void codec_log_fields(struct buf *log, struct http_fields fields) {
        for (size_t i = 0; i < fields.count; i++)
                buf_printf(log, " [%.*s=%.*s]", SLICE_ARG(fields.items[i].name), SLICE_ARG(fields.items[i].value));
}

static inline void codec_log_head(struct buf *log, const struct http_parser *p, enum codec_side side) {
        const struct http_request_head *q = &p->head.request;
        const struct http_response_head *a = &p->head.response;

        if (side == CODEC_REQUEST) {
                buf_printf(log, "HEAD %d %.*s %.*s %.*s ? %.*s length %lld http10 %d keep %d expect %d", q->method,
                    SLICE_ARG(q->method_text), SLICE_ARG(q->target), SLICE_ARG(q->path), SLICE_ARG(q->query),
                    (long long)q->content_length, q->http10, p->keep_alive, p->expect_continue);
                codec_log_fields(log, q->fields);
        } else {
                buf_printf(log, "HEAD %d length %lld keep %d close %d", a->status, (long long)a->content_length,
                    p->keep_alive, p->until_close);
                codec_log_fields(log, a->fields);
        }
        buf_add_str(log, "\nBODY ");
}

/* Feed pieces of `first` bytes once and then of `step` bytes. Stops at an error, or at the end of the bytes, which is then
 * also the end of the connection. Returns the number of complete messages. */
static inline int codec_run(struct buf *log, enum codec_side side, const struct http_parser_limits *limits,
    struct slice bytes, size_t first, size_t step) {
        struct arena arena = {0};
        struct http_parser p;
        struct http_event event;
        int messages = 0, r = 0;
        size_t at = 0;
        bool open = false;

        if (side == CODEC_REQUEST)
                http_parser_init_request(&p, limits);
        else
                http_parser_init_response(&p, limits);
        while (r == 0 && at < bytes.len) {
                size_t len = at == 0 && first ? first : step;
                struct slice all = slice_sub(bytes, at, at + len), in;
                /* A copy of the exact size: reading beyond it is an error that the sanitizer sees. */
                char *copy = malloc(all.len);

                memcpy(copy, all.ptr, all.len);
                in = slice_of(copy, all.len);
                at += all.len;
                for (;;) {
                        if (!open && in.len == 0)
                                break;
                        if (!open) {
                                arena_reset(&arena);
                                http_parser_begin_response(&p, &arena, side == CODEC_RESPONSE_TO_HEAD);
                                open = true;
                        }
                        r = http_parser_next(&p, &in, &event);
                        if (r < 0 || event.kind == HTTP_EVENT_MORE)
                                break;
                        if (event.kind == HTTP_EVENT_HEAD)
                                codec_log_head(log, &p, side);
                        if (event.kind == HTTP_EVENT_BODY)
                                buf_add(log, event.body);
                        if (event.kind == HTTP_EVENT_END) {
                                buf_add_str(log, "\nEND\n");
                                open = false;
                                messages++;
                        }
                }
                free(copy);
        }
        if (r == 0 && open) {
                r = http_parser_eof(&p);
                buf_add_str(log, r == 0 ? "\nCLOSED\n" : "");
                messages += r == 0;
        }
        if (r < 0)
                buf_printf(log, "\nERROR %d status %d: %s\n", r, r == -EPROTO ? p.status : 0,
                    r == -EPROTO && p.reason ? p.reason : "");
        arena_free(&arena);
        return messages;
}

static const struct http_parser_limits codec_limits = {
    .head_bytes = 32768, .head_fields = 100, .body_bytes = 64u << 20};
