/* call.c - calls: connect or take a connection, send, read the answer, end once.
 *
 * A call fails in one place, call_fail(), which notes why, lets go of the connection and leaves the final callback to the
 * next turn of the loop; so it may be used from inside the caller's own calls. A call succeeds in complete(). */
#include "http/client.h"
#include <assert.h>
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/un.h>

/* A request whose body is at most this is put behind its head: one send, and nothing borrowed. */
#define INLINE_BODY_MAX 2048
/* Marks of http_call_send(), as those of a server's answer. */
#define SEND_HIGH (256u << 10)
#define SEND_LOW  (64u << 10)
/* Parts per write. */
#define SEND_PARTS 16

enum call_state {
        CALL_RESOLVING,
        CALL_CONNECTING,
        CALL_SENDING, /* the request is being written; the answer may come meanwhile */
        CALL_HEAD,    /* the request is written; waiting for the answer's head */
        CALL_BODY,
        CALL_ENDING, /* the final callback is due */
};

struct http_call {
        struct http_client *client;
        struct http_target *target;
        struct http_upstream *up; /* NULL before connecting and after the end */
        struct list link;         /* in client->calls, or in its spares */
        struct list waiting;      /* in target->waiting */
        struct wheel_timer timer;
        struct http_task task;
        struct arena arena;  /* the answer's head, texts */
        struct buf head;     /* the request's head, small bodies, and streamed body that waits for a connection */
        struct buf held;     /* input that waits while the caller has paused */
        struct slice *parts; /* a copy of the caller's list; its bytes are borrowed */
        size_t count_parts, at_part, at_byte; /* part 0 is `head` */
        struct http_call_callbacks callbacks;
        void *user;
        struct http_deadlines deadlines;
        uint64_t phase_deadline, total_deadline, connect_deadline;
        enum http_failure failure;
        const char *why;
        unsigned attempts; /* addresses tried */
        uint8_t state;
        bool to_head, streamed, stream_ended, retry_stale, reused, sent, paused, got_head, wants_writable,
            say_connected;
        bool ended; /* the connection ended in order while the caller had paused: what is held comes first */
};

static void connect_fresh(struct http_call *call);
static void connect_next(struct http_call *call);
static void on_eof(struct http_conn *c, int error);

static uint64_t from_now(const struct http_call *call, unsigned ms) {
        return ms ? http_io_now(&call->client->io) + ms : WHEEL_NEVER;
}

static void arm(struct http_call *call) {
        uint64_t at = call->phase_deadline < call->total_deadline ? call->phase_deadline : call->total_deadline;

        http_io_deadline(&call->client->io, &call->timer, at);
}

/* ---- ending --------------------------------------------------------------------------------------------------- */

static void free_call(struct http_call *call) {
        struct http_client *c = call->client;

        wheel_stop(&call->timer);
        http_task_cancel(&call->task);
        list_remove(&call->waiting);
        list_remove(&call->link);
        http_target_put(call->target);
        http_io_arena_free(&c->io, &call->arena);
        buf_free(&call->head);
        buf_free(&call->held);
        free(call->parts);
        if (c->count_spare_calls >= HTTP_SPARE_CALLS || c->closing) {
                free(call);
        } else {
                list_push_front(&c->spare_calls, &call->link);
                c->count_spare_calls++;
        }
        http_client_check_closed(c);
}

/* The final callback, from the loop. */
static void end_call(struct http_call *call) {
        call->state = CALL_ENDING;
        if (call->callbacks.on_end)
                call->callbacks.on_end(call, call->failure, call->why, call->user);
        free_call(call);
}

static void drop_upstream(struct http_call *call) {
        if (!call->up)
                return;
        call->up->call = NULL;
        http_upstream_close(call->up);
        call->up = NULL;
}

__attribute__((format(printf, 3, 4))) static void call_fail(
    struct http_call *call, enum http_failure failure, const char *format, ...) {
        char text[256];
        struct slice copy;
        va_list args;

        if (call->state == CALL_ENDING)
                return;
        va_start(args, format);
        vsnprintf(text, sizeof(text), format, args);
        va_end(args);
        copy = arena_copy(&call->arena, slice_str(text));
        call->why = copy.ptr ? copy.ptr : http_failure_text(failure);
        call->failure = failure;
        call->state = CALL_ENDING;
        list_remove(&call->waiting);
        drop_upstream(call);
        wheel_stop(&call->timer);
        http_io_defer(&call->client->io, &call->task);
}

#define KEY(call) SLICE_ARG((call)->target->endpoint.key)

static const char *error_word(const struct http_call *call, int error) {
        const char *tls = call->up ? http_conn_tls_error(&call->up->conn) : "";

        if (*tls)
                return tls;
        return error == 0 ? "closed by the peer" : strerror(-error);
}

/* A connection of the pool died before any byte of the answer: once more on a fresh one. */
static bool retry(struct http_call *call) {
        if (!call->reused || !call->retry_stale || call->streamed || call->client->closing)
                return false;
        call->reused = call->say_connected = false;
        drop_upstream(call);
        call->at_part = call->at_byte = 0;
        call->sent = false;
        connect_fresh(call);
        return true;
}

/* The connection ended before the answer did. */
static void connection_lost(struct http_call *call, int error) {
        bool started = http_parser_started(&call->up->parser);

        if (call->state == CALL_CONNECTING) {
                if (!*http_conn_tls_error(&call->up->conn) && call->attempts < call->target->count_addresses) {
                        drop_upstream(call);
                        connect_next(call);
                        return;
                }
                call_fail(call, HTTP_FAIL_CONNECT, "connect to %.*s: %s", KEY(call), error_word(call, error));
        } else if (started) {
                call_fail(
                    call, HTTP_FAIL_TRUNCATED, "%.*s: the answer was cut off: %s", KEY(call), error_word(call, error));
        } else if (!retry(call)) {
                call_fail(call, call->sent ? HTTP_FAIL_NO_RESPONSE : HTTP_FAIL_SEND, "%.*s: %s: %s", KEY(call),
                    call->sent ? "no answer" : "the request was not taken", error_word(call, error));
        }
}

/* The whole answer is here. `unread`: the peer sent more than that. */
static void complete(struct http_call *call, bool unread) {
        struct http_upstream *u = call->up;
        bool whole_request = call->sent && (!call->streamed || call->stream_ended) && u->conn.out_bytes == 0;

        call->up = NULL;
        u->call = NULL;
        if (u->parser.keep_alive && whole_request && !unread && !u->conn.write_broken)
                http_pool_give(u);
        else
                http_upstream_close(u);
        call->failure = HTTP_OK;
        call->why = http_failure_text(HTTP_OK);
        end_call(call);
}

/* ---- sending -------------------------------------------------------------------------------------------------- */

static struct slice part_of(const struct http_call *call, size_t i) {
        return i == 0 ? buf_slice(&call->head) : call->parts[i - 1];
}

static void request_written(struct http_call *call) {
        call->sent = true;
        if (call->state != CALL_SENDING)
                return;
        call->state = CALL_HEAD;
        call->phase_deadline = from_now(call, call->deadlines.head_ms);
        arm(call);
}

/* A streamed body: the peer has to take what is queued, but what the caller has not sent yet is nobody's delay. */
static void watch_stream(struct http_call *call) {
        if (call->state != CALL_SENDING)
                return;
        call->phase_deadline = call->up->conn.out_bytes ? from_now(call, call->deadlines.head_ms) : WHEEL_NEVER;
        arm(call);
}

/* Write what the socket takes of head and body. */
static void send_request(struct http_call *call) {
        while (call->at_part <= call->count_parts) {
                struct iovec parts[SEND_PARTS];
                size_t len = 0;
                int count = 0;
                ssize_t n;

                for (size_t i = call->at_part; i <= call->count_parts && count < SEND_PARTS; i++) {
                        struct slice part = part_of(call, i);

                        if (i == call->at_part)
                                slice_take(&part, call->at_byte);
                        if (part.len)
                                parts[count++] = (struct iovec){(char *)part.ptr, part.len};
                        len += part.len;
                }
                n = count ? http_conn_try_write(&call->up->conn, parts, count) : 0;
                if (n < 0) {
                        /* An answer may be there all the same, such as 413: it is read before this is given up. The
                         * connection's end tells. */
                        return;
                }
                if (n == 0 && len) {
                        http_conn_want_sent(&call->up->conn);
                        return;
                }
                /* An answer that has begun has its own deadline. */
                if (n > 0 && call->state == CALL_SENDING) {
                        call->phase_deadline = from_now(call, call->deadlines.head_ms);
                        arm(call);
                }
                while (call->at_part <= call->count_parts) {
                        size_t rest = part_of(call, call->at_part).len - call->at_byte;

                        if ((size_t)n < rest) {
                                call->at_byte += (size_t)n;
                                break;
                        }
                        n -= (ssize_t)rest;
                        call->at_part++;
                        call->at_byte = 0;
                }
        }
        if (!call->streamed || call->stream_ended)
                request_written(call);
        else
                watch_stream(call);
}

static void start_sending(struct http_call *call) {
        struct http_upstream *u = call->up;

        call->state = CALL_SENDING;
        call->phase_deadline = from_now(call, call->deadlines.head_ms);
        arm(call);
        http_parser_begin_response(&u->parser, &call->arena, call->to_head);
        http_conn_set_reading(&u->conn, !call->paused);
        send_request(call);
}

/* ---- connecting ----------------------------------------------------------------------------------------------- */

static int connect_to(struct http_call *call, struct http_upstream *u, unsigned index) {
        struct http_target *t = call->target;
        struct sockaddr_un un = {.sun_family = AF_UNIX};
        const struct sockaddr *address = (const struct sockaddr *)&un;
        socklen_t len = sizeof(un);
        struct http_tls *tls = NULL;

        if (t->endpoint.is_unix) {
                if (t->endpoint.host.len >= sizeof(un.sun_path))
                        return -ENAMETOOLONG;
                memcpy(un.sun_path, t->endpoint.host.ptr, t->endpoint.host.len);
        } else {
                address = &t->addresses[index].any;
                len = address->sa_family == AF_INET ? sizeof(struct sockaddr_in) : sizeof(struct sockaddr_in6);
        }
        if (t->endpoint.tls) {
                tls = http_tls_connect(call->client->tls, t->endpoint.host);
                if (!tls)
                        return -ENOMEM;
        }
        return http_conn_connect(&u->conn, &call->client->io, &http_upstream_ops, address, len, tls);
}

/* Connect to the next address that has not been tried; the one that worked last comes first. The time that is left is shared
 * among the addresses that are, so that one that swallows packets does not use it up. */
static void connect_next(struct http_call *call) {
        struct http_target *t = call->target;
        unsigned count = t->endpoint.is_unix ? 1 : t->count_addresses, left;
        uint64_t now = http_io_now(&call->client->io);
        int r = -EADDRNOTAVAIL;

        call->state = CALL_CONNECTING;
        while (call->attempts < count) {
                unsigned index = (t->preferred + call->attempts++) % count;
                struct http_upstream *u = http_upstream_new(call->client);

                r = u ? connect_to(call, u, index) : -ENOMEM;
                if (r < 0) {
                        if (u)
                                http_upstream_free(u);
                        continue;
                }
                u->target = t;
                u->call = call;
                u->address = (uint8_t)index;
                t->references++;
                list_push_back(&call->client->upstreams, &u->link);
                call->up = u;
                left = count - call->attempts + 1;
                call->phase_deadline = call->connect_deadline > now ? now + (call->connect_deadline - now) / left : now;
                arm(call);
                return;
        }
        call_fail(call, HTTP_FAIL_CONNECT, "connect to %.*s: %s", KEY(call), strerror(-r));
}

struct http_call *http_call_of_waiting(struct list *link) {
        return list_item(link, struct http_call, waiting);
}

void http_call_resolved(struct http_call *call, int error) {
        if (error < 0)
                call_fail(call, HTTP_FAIL_RESOLVE, "%.*s: %s", KEY(call), uv_strerror(error));
        else
                connect_next(call);
}

/* Make a connection, with all the time that this may take. */
static void connect_fresh(struct http_call *call) {
        struct http_target *t = call->target;
        int r;

        call->attempts = 0;
        call->connect_deadline = call->phase_deadline = from_now(call, call->deadlines.connect_ms);
        arm(call);
        if (http_target_has_addresses(t)) {
                connect_next(call);
                return;
        }
        call->state = CALL_RESOLVING;
        list_push_back(&t->waiting, &call->waiting);
        r = http_target_resolve(t);
        if (r < 0)
                call_fail(call, HTTP_FAIL_RESOLVE, "%.*s: %s", KEY(call), uv_strerror(r));
}

/* Take a connection of the pool, or make one. */
static void begin(struct http_call *call) {
        call->up = http_pool_take(call->target);
        if (call->up) {
                call->up->call = call;
                call->reused = true;
                call->say_connected = call->callbacks.on_connected != NULL;
                if (call->say_connected)
                        http_io_defer(&call->client->io, &call->task);
                start_sending(call);
        } else {
                connect_fresh(call);
        }
}

static void on_deadline(struct wheel_timer *timer) {
        struct http_call *call = list_item(timer, struct http_call, timer);
        uint64_t now = http_io_now(&call->client->io);

        if (now >= call->total_deadline) {
                call_fail(call, HTTP_FAIL_TIMEOUT, "%.*s: no complete answer within %u ms", KEY(call),
                    call->deadlines.total_ms);
                return;
        }
        switch (call->state) {
        case CALL_RESOLVING:
                call_fail(call, HTTP_FAIL_CONNECT, "%.*s: the name was not resolved within %u ms", KEY(call),
                    call->deadlines.connect_ms);
                break;
        case CALL_CONNECTING:
                if (now < call->connect_deadline && call->attempts < call->target->count_addresses) {
                        drop_upstream(call);
                        connect_next(call);
                        break;
                }
                call_fail(call, HTTP_FAIL_CONNECT, "connect to %.*s: no connection within %u ms", KEY(call),
                    call->deadlines.connect_ms);
                break;
        case CALL_SENDING:
                call_fail(call, HTTP_FAIL_TIMEOUT, "%.*s: no byte of the request was taken for %u ms", KEY(call),
                    call->deadlines.head_ms);
                break;
        case CALL_HEAD:
                call_fail(call, HTTP_FAIL_TIMEOUT, "%.*s: no answer within %u ms", KEY(call), call->deadlines.head_ms);
                break;
        case CALL_BODY:
                call_fail(call, HTTP_FAIL_TIMEOUT, "%.*s: no byte of the answer for %u ms", KEY(call),
                    call->deadlines.idle_ms);
                break;
        }
}

/* ---- reading -------------------------------------------------------------------------------------------------- */

static void got_head(struct http_call *call) {
        call->got_head = true;
        call->state = CALL_BODY;
        /* The request cannot be sent again: its memory is not needed for the rest of a long stream. */
        if (call->sent)
                buf_free(&call->head);
        call->phase_deadline = from_now(call, call->deadlines.idle_ms);
        arm(call);
        if (call->callbacks.on_head)
                call->callbacks.on_head(call, &call->up->parser.head.response, call->user);
}

/* Parse as far as the caller wants. The call may be gone when this returns. */
static void pump(struct http_call *call, struct slice in) {
        struct http_upstream *u = call->up;
        struct http_event event;
        int r;

        while (!call->paused) {
                r = http_parser_next(&u->parser, &in, &event);
                if (r < 0) {
                        call_fail(call, HTTP_FAIL_PROTOCOL, "%.*s: invalid answer: %s", KEY(call),
                            r == -EPROTO ? u->parser.reason : strerror(-r));
                        return;
                }
                if (event.kind == HTTP_EVENT_MORE)
                        return;
                if (event.kind == HTTP_EVENT_END) {
                        complete(call, in.len > 0);
                        return;
                }
                if (event.kind == HTTP_EVENT_HEAD)
                        got_head(call);
                else if (call->callbacks.on_body)
                        call->callbacks.on_body(call, event.body, call->user);
                if (call->state == CALL_ENDING)
                        return;
        }
        buf_add(&call->held, in);
        if (!buf_ok(&call->held))
                call_fail(call, HTTP_FAIL_PROTOCOL, "%.*s: out of memory", KEY(call));
        else
                http_conn_set_reading(&u->conn, false);
}

/* The caller has resumed. The call may be gone when this returns. */
static void go_on(struct http_call *call) {
        struct http_upstream *u = call->up;
        struct buf held = call->held;

        call->held = (struct buf){0};
        if (call->state == CALL_BODY) {
                call->phase_deadline = from_now(call, call->deadlines.idle_ms);
                arm(call);
        }
        if (!call->ended)
                http_conn_set_reading(&u->conn, true);
        pump(call, buf_slice(&held));
        buf_free(&held);
        if (u->call == call && call->ended && !call->paused) {
                call->ended = false;
                on_eof(&u->conn, 0);
        }
}

static void on_task(struct http_task *task) {
        struct http_call *call = list_item(task, struct http_call, task);

        if (call->say_connected && call->up) {
                call->say_connected = false;
                call->callbacks.on_connected(call, call->reused, call->user);
        }
        if (call->state == CALL_ENDING) {
                http_task_cancel(task);
                end_call(call);
                return;
        }
        if (call->up && !call->paused && !call->up->conn.reading)
                go_on(call);
}

/* ---- events of the connection --------------------------------------------------------------------------------- */

static struct http_upstream *of_conn(struct http_conn *c) {
        return list_item(c, struct http_upstream, conn);
}

/* Tell a caller who was told to wait, when there is room again. From the loop. */
static void say_writable(struct http_call *call) {
        if (!call->wants_writable || call->up->conn.out_bytes > SEND_LOW || call->at_part <= call->count_parts)
                return;
        call->wants_writable = false;
        if (call->callbacks.on_writable)
                call->callbacks.on_writable(call, call->user);
}

static void on_ready(struct http_conn *c) {
        struct http_upstream *u = of_conn(c);
        struct http_call *call = u->call;

        u->target->preferred = u->address;
        start_sending(call);
        if (call->callbacks.on_connected)
                call->callbacks.on_connected(call, false, call->user);
        /* All that was queued before there was a connection may have gone at once. */
        if (call->state != CALL_ENDING)
                say_writable(call);
}

static void on_data(struct http_conn *c, struct slice data) {
        struct http_upstream *u = of_conn(c);
        struct http_call *call = u->call;

        /* Nobody asked: an idle connection that speaks is out of step. */
        if (!call) {
                http_upstream_close(u);
                return;
        }
        if (call->say_connected) {
                call->say_connected = false;
                call->callbacks.on_connected(call, call->reused, call->user);
                if (call->state == CALL_ENDING)
                        return;
        }
        if (call->state == CALL_BODY && call->deadlines.idle_ms) {
                call->phase_deadline = from_now(call, call->deadlines.idle_ms);
                arm(call);
        }
        pump(call, data);
}

static void on_eof(struct http_conn *c, int error) {
        struct http_upstream *u = of_conn(c);
        struct http_call *call = u->call;

        if (!call)
                http_upstream_close(u);
        else if (error == 0 && call->paused)
                call->ended = true;
        else if (error == 0 && call->got_head && http_parser_eof(&u->parser) == 0)
                complete(call, false);
        else
                connection_lost(call, error);
}

/* Paused: a FIN may come behind bytes that are still unread, so it waits; a reset does not. */
static void on_hangup(struct http_conn *c, int error) {
        struct http_upstream *u = of_conn(c);

        if (error < 0 && u->call)
                connection_lost(u->call, error);
}

static void on_sent(struct http_conn *c) {
        struct http_call *call = of_conn(c)->call;

        if (!call)
                return;
        if (call->at_part <= call->count_parts)
                send_request(call);
        else if (call->streamed && !call->sent)
                watch_stream(call);
        say_writable(call);
}

static void on_write_error(struct http_conn *c, int error) {
        /* As in send_request(): reading goes on until the connection's end. */
}

static void on_closed(struct http_conn *c) {
        struct http_upstream *u = of_conn(c);
        struct http_client *client = u->client;

        http_target_put(u->target);
        http_upstream_free(u);
        http_client_check_closed(client);
}

const struct http_conn_ops http_upstream_ops = {
    .on_ready = on_ready,
    .on_data = on_data,
    .on_eof = on_eof,
    .on_hangup = on_hangup,
    .on_sent = on_sent,
    .on_write_error = on_write_error,
    .on_closed = on_closed,
};

/* ---- the caller's side ---------------------------------------------------------------------------------------- */

static struct http_call *new_call(struct http_client *c) {
        struct list *link = list_pop_front(&c->spare_calls);
        struct http_call *call;

        if (link) {
                c->count_spare_calls--;
                call = list_item(link, struct http_call, link);
        } else {
                call = malloc(sizeof(*call));
                if (!call)
                        return NULL;
        }
        *call = (struct http_call){.client = c, .phase_deadline = WHEEL_NEVER};
        list_init(&call->link);
        list_init(&call->waiting);
        wheel_timer_init(&call->timer, on_deadline);
        http_task_init(&call->task, on_task);
        return call;
}

/* Head and body of the request as parts. Returns 0, -EINVAL, -ENOMEM. */
static int prepare(struct http_call *call, const struct http_request *request) {
        int64_t bytes = 0, length;
        int r;

        for (size_t i = 0; i < request->body_parts; i++)
                bytes += (int64_t)request->body[i].len;
        length = bytes;
        if (request->streamed)
                length = HTTP_LENGTH_CHUNKED;
        else if (length == 0 && request->method != HTTP_METHOD_POST && request->method != HTTP_METHOD_PUT &&
                 request->method != HTTP_METHOD_PATCH)
                length = HTTP_LENGTH_NONE;
        r = http_write_request_head(&call->head, http_method_text(request->method), request->target,
            call->target->host_field, request->fields, length);
        if (r < 0)
                return r;
        if (request->streamed && bytes > 0) {
                char line[HTTP_CHUNK_LINE_MAX];

                buf_append(&call->head, line, http_write_chunk_line((uint64_t)bytes, line));
                for (size_t i = 0; i < request->body_parts; i++)
                        buf_add(&call->head, request->body[i]);
                buf_add_str(&call->head, "\r\n");
        } else if (length > 0 && length <= INLINE_BODY_MAX) {
                for (size_t i = 0; i < request->body_parts; i++)
                        buf_add(&call->head, request->body[i]);
        } else if (length > 0) {
                call->parts = malloc(request->body_parts * sizeof(*call->parts));
                if (!call->parts)
                        return -ENOMEM;
                memcpy(call->parts, request->body, request->body_parts * sizeof(*call->parts));
                call->count_parts = request->body_parts;
        }
        return buf_ok(&call->head) ? 0 : -ENOMEM;
}

int http_call_start(struct http_client *c, const struct http_endpoint *to, const struct http_request *request,
    const struct http_call_callbacks *callbacks, void *user, struct http_call **ret_call) {
        struct http_call *call;
        int r;

        if (c->closing)
                return -ESHUTDOWN;
        if (to->tls) {
                r = http_client_make_tls(c);
                if (r < 0)
                        return r;
        }
        call = new_call(c);
        if (!call)
                return -ENOMEM;
        call->target = http_target_get(c, to);
        if (!call->target) {
                free(call);
                return -ENOMEM;
        }
        call->callbacks = *callbacks;
        call->user = user;
        call->deadlines = request->deadlines;
        if (!call->deadlines.connect_ms)
                call->deadlines.connect_ms = 5000;
        call->total_deadline = from_now(call, call->deadlines.total_ms);
        call->to_head = request->method == HTTP_METHOD_HEAD;
        call->streamed = request->streamed;
        call->retry_stale = request->retry_stale;
        call->arena = http_io_arena(&c->io);
        r = prepare(call, request);
        if (r < 0) {
                free_call(call);
                return r;
        }
        list_push_back(&c->calls, &call->link);
        begin(call);
        if (ret_call)
                *ret_call = call;
        return 0;
}

static bool may_send(const struct http_call *call) {
        return call->streamed && !call->stream_ended && call->state != CALL_ENDING &&
               !(call->up && call->up->conn.write_broken);
}

/* Framed bytes of a streamed body: straight to the connection when the head is out, else behind it. */
static int send_framed(struct http_call *call, struct iovec *parts, int count) {
        int r;

        if (call->up && call->at_part > call->count_parts) {
                r = http_conn_write(&call->up->conn, parts, count);
                if (call->phase_deadline == WHEEL_NEVER)
                        watch_stream(call);
                return r;
        }
        for (int i = 0; i < count; i++)
                buf_append(&call->head, parts[i].iov_base, parts[i].iov_len);
        return buf_ok(&call->head) ? 0 : -ENOMEM;
}

int http_call_send(struct http_call *call, const struct slice *parts, size_t count) {
        char line[HTTP_CHUNK_LINE_MAX];
        struct iovec framed[SEND_PARTS];
        size_t len = 0, queued;
        int n = 1, r = 0;

        if (!may_send(call))
                return -EPIPE;
        for (size_t i = 0; i < count; i++)
                len += parts[i].len;
        /* An empty chunk would end the body. */
        if (len) {
                framed[0] = (struct iovec){line, http_write_chunk_line(len, line)};
                for (size_t i = 0; i < count && r == 0; i++) {
                        framed[n++] = (struct iovec){(char *)parts[i].ptr, parts[i].len};
                        if (n == SEND_PARTS) {
                                r = send_framed(call, framed, n);
                                n = 0;
                        }
                }
                if (r == 0) {
                        framed[n++] = (struct iovec){(char *)"\r\n", 2};
                        r = send_framed(call, framed, n);
                }
        }
        if (r < 0)
                return r == -ENOMEM ? r : -EPIPE;
        queued = call->up ? call->up->conn.out_bytes : 0;
        if (call->at_part <= call->count_parts)
                queued += call->head.len;
        call->wants_writable = queued > SEND_HIGH;
        return call->wants_writable;
}

int http_call_send_end(struct http_call *call) {
        struct iovec last = {(char *)"0\r\n\r\n", 5};
        int r;

        if (!may_send(call))
                return -EPIPE;
        r = send_framed(call, &last, 1);
        if (r < 0)
                return r == -ENOMEM ? r : -EPIPE;
        call->stream_ended = true;
        if (call->up && call->at_part > call->count_parts)
                request_written(call);
        return 0;
}

void http_call_pause(struct http_call *call) {
        if (call->state == CALL_ENDING || call->paused)
                return;
        call->paused = true;
        /* The peer is not to blame for our pause. */
        if (call->state == CALL_BODY) {
                call->phase_deadline = WHEEL_NEVER;
                arm(call);
        }
        /* A connection that is being made reads on: TLS needs that. start_sending() sees to the pause. */
        if (call->up && call->state >= CALL_SENDING)
                http_conn_set_reading(&call->up->conn, false);
}

void http_call_resume(struct http_call *call) {
        if (!call->paused)
                return;
        call->paused = false;
        if (call->state != CALL_ENDING)
                http_io_defer(&call->client->io, &call->task);
}

void http_call_abort(struct http_call *call) {
        call_fail(call, HTTP_FAIL_ABORTED, "aborted");
}

void http_call_close(struct list *link) {
        call_fail(list_item(link, struct http_call, link), HTTP_FAIL_ABORTED, "the client is closing");
}

void http_call_free_spare(struct list *link) {
        free(list_item(link, struct http_call, link));
}
