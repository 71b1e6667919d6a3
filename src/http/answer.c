/* answer.c - the handler's side of an answer: at once, or in pieces. Nothing here makes a callback: what follows from a call
 * is left to the exchange's next turn (exchange.c). */
#include "http/server.h"
#include <errno.h>

/* May an answer begin? Returns 0 or what the caller returns. */
static int may_begin(const struct http_exchange *x) {
        if (x->phase != PHASE_REQUEST || x->ending != NOT_ENDING || x->conn.write_broken)
                return -EPIPE;
        return x->answer == ANSWER_NONE ? 0 : -EALREADY;
}

/* The head of an answer, with its framing and the decision whether the connection is kept. */
static struct http_answer answer_head(struct http_exchange *x, int status, struct http_fields fields, int64_t length) {
        bool http10 = x->parser.head.request.http10;
        struct http_answer a = {.status = status, .fields = fields, .content_length = length};

        if (http_status_has_no_body(status)) {
                a.content_length = HTTP_LENGTH_NONE;
        } else if (length == HTTP_LENGTH_NONE) {
                a.content_length = 0;
        } else if (length == HTTP_LENGTH_CHUNKED && http10) {
                a.content_length = HTTP_LENGTH_UNTIL_CLOSE;
                x->keep = x->keep && x->is_head;
        }
        /* A body that the client was not told to send, or that is long and unwanted, is not waited for. */
        if (!x->body_done && !http_exchange_wants_body(x) &&
            ((x->parser.expect_continue && !x->continue_sent) || !http_exchange_body_is_short(x)))
                x->keep = false;
        if (http_server_is_draining(x->server))
                x->keep = false;
        a.connection = !x->keep ? HTTP_CONNECTION_CLOSE : http10 ? HTTP_CONNECTION_KEEP_ALIVE : HTTP_CONNECTION_DEFAULT;
        a.date = http_io_date(x->conn.io);
        return a;
}

/* What a failed write means: the client is gone, or memory is out. The end follows in the next turn. */
static int write_failed(struct http_exchange *x, int r) {
        if (x->ending == NOT_ENDING)
                x->ending = r == -ENOMEM ? HTTP_END_ABORTED : HTTP_END_CLIENT_GONE;
        http_exchange_wake(x);
        return r == -ENOMEM ? r : -EPIPE;
}

int http_respond(struct http_exchange *x, int status, struct http_fields fields, struct slice body) {
        struct http_answer a;
        struct iovec parts[2];
        char *head = x->conn.io->scratch;
        size_t head_size;
        ssize_t head_len;
        int r = may_begin(x), count = 1;
        bool keep = x->keep;

        if (r < 0)
                return r;
        a = answer_head(x, status, fields, (int64_t)body.len);
        head_size = http_answer_head_size(&a);
        if (head_size > HTTP_IO_SCRATCH_BYTES)
                head = arena_alloc(&x->arena, head_size);
        if (!head)
                return -ENOMEM;
        head_len = http_write_answer_head(&a, head);
        if (head_len < 0) {
                x->keep = keep;
                return (int)head_len;
        }
        parts[0] = (struct iovec){head, (size_t)head_len};
        if (!x->is_head && a.content_length > 0) {
                /* A small body is copied behind the head: one plain send is cheaper than a gathering one. */
                if (head_size + body.len <= HTTP_IO_SCRATCH_BYTES) {
                        memcpy(head + head_len, body.ptr, body.len);
                        parts[0].iov_len += body.len;
                } else {
                        parts[count++] = (struct iovec){(char *)body.ptr, body.len};
                }
        }
        x->answer = ANSWER_DONE;
        r = http_exchange_write(x, parts, count);
        if (r < 0)
                return write_failed(x, r);
        http_exchange_wake(x);
        return 0;
}

int http_begin(struct http_exchange *x, int status, struct http_fields fields, int64_t content_length) {
        struct http_answer a;
        char *head;
        ssize_t len;
        int r = may_begin(x);
        bool keep = x->keep;

        if (r < 0)
                return r;
        if (content_length < HTTP_LENGTH_CHUNKED)
                return -EINVAL;
        a = answer_head(x, status, fields, content_length);
        head = arena_alloc(&x->arena, http_answer_head_size(&a));
        if (!head)
                return -ENOMEM;
        len = http_write_answer_head(&a, head);
        if (len < 0) {
                x->keep = keep;
                return (int)len;
        }
        x->head_out = slice_of(head, (size_t)len);
        x->answer = ANSWER_BEGUN;
        x->answer_left = a.content_length == HTTP_LENGTH_NONE ? 0 : a.content_length;
        return 0;
}

/* Parts of one http_send() per write; more than a caller has in practice. */
#define SEND_PARTS 32

/* May an answer go on? */
static int may_send(const struct http_exchange *x) {
        if (x->phase != PHASE_REQUEST || x->ending != NOT_ENDING || x->conn.write_broken)
                return -EPIPE;
        return x->answer == ANSWER_BEGUN ? 0 : x->answer == ANSWER_DONE ? -EALREADY : -EINVAL;
}

struct gather {
        struct http_exchange *x;
        struct iovec parts[SEND_PARTS];
        int count, error;
};

static void gather_flush(struct gather *g) {
        if (g->count && g->error == 0)
                g->error = http_exchange_write(g->x, g->parts, g->count);
        g->count = 0;
}

static void gather_add(struct gather *g, struct slice s) {
        if (s.len == 0)
                return;
        if (g->count == SEND_PARTS)
                gather_flush(g);
        g->parts[g->count++] = (struct iovec){(char *)s.ptr, s.len};
}

int http_send(struct http_exchange *x, const struct slice *parts, size_t count) {
        struct gather g = {.x = x};
        char line[HTTP_CHUNK_LINE_MAX];
        size_t len = 0;
        int r = may_send(x);
        bool chunked = x->answer_left == HTTP_LENGTH_CHUNKED;

        if (r < 0)
                return r;
        for (size_t i = 0; i < count; i++)
                len += parts[i].len;
        if (x->answer_left >= 0 && (uint64_t)x->answer_left < len)
                return -EINVAL;
        if (x->answer_left >= 0)
                x->answer_left -= (int64_t)len;
        gather_add(&g, x->head_out);
        x->head_out = SLICE_NONE;
        /* An empty chunk would end the body. */
        if (len && !x->is_head) {
                if (chunked)
                        gather_add(&g, slice_of(line, http_write_chunk_line(len, line)));
                for (size_t i = 0; i < count; i++)
                        gather_add(&g, parts[i]);
                if (chunked)
                        gather_add(&g, SLICE_LIT("\r\n"));
        }
        gather_flush(&g);
        if (g.error < 0)
                return write_failed(x, g.error);
        if (!x->busy)
                http_exchange_settle(x);
        if (x->conn.out_bytes <= x->server->options.limits.write_high)
                return 0;
        x->wants_writable = true;
        return 1;
}

int http_finish(struct http_exchange *x) {
        struct gather g = {.x = x};
        int r = may_send(x);

        if (r < 0)
                return r;
        /* Fewer bytes than promised: the client must not take it for the whole. */
        if (x->answer_left > 0 && !x->is_head) {
                http_exchange_abort(x);
                return -EINVAL;
        }
        gather_add(&g, x->head_out);
        x->head_out = SLICE_NONE;
        if (x->answer_left == HTTP_LENGTH_CHUNKED && !x->is_head)
                gather_add(&g, SLICE_LIT("0\r\n\r\n"));
        x->answer = ANSWER_DONE;
        gather_flush(&g);
        if (g.error < 0)
                return write_failed(x, g.error);
        http_exchange_wake(x);
        return 0;
}

void http_exchange_abort(struct http_exchange *x) {
        if (x->phase != PHASE_REQUEST || x->ending != NOT_ENDING)
                return;
        x->ending = HTTP_END_ABORTED;
        http_exchange_wake(x);
}
