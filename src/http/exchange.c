/* exchange.c - one connection of the server: read a request, hand it out, write the answer, go on.
 *
 * exchange_turn() is the one place where a connection moves from state to state; it runs when bytes have come, when bytes
 * have left, when a deadline has passed, and, on the next turn of the loop, after the handler has called into this file
 * from elsewhere. So no callback is ever made from inside a call of the handler's. Each exchange ends in end_exchange(). */
#include "http/server.h"
#include <arpa/inet.h>
#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <unistd.h>

static void exchange_turn(struct http_exchange *x, struct slice in);
static const struct http_conn_ops conn_ops;

static const struct http_limits *limits_of(const struct http_exchange *x) {
        return &x->server->options.limits;
}

static uint64_t from_now(const struct http_exchange *x, unsigned ms) {
        return http_io_now(x->conn.io) + ms;
}

/* ---- ending --------------------------------------------------------------------------------------------------- */

/* The exchange is over: tell the handler, and give back everything that belonged to the request. */
static void end_exchange(struct http_exchange *x, enum http_end end) {
        struct http_exchange_callbacks callbacks = x->callbacks;

        assert(x->phase == PHASE_REQUEST);
        x->phase = PHASE_LINGER;
        x->ending = NOT_ENDING;
        x->callbacks = (struct http_exchange_callbacks){0};
        x->on_all = NULL;
        if (callbacks.on_end)
                callbacks.on_end(x, end, x->user);
        buf_free(&x->body);
        x->head_out = SLICE_NONE;
        x->user = NULL;
        x->paused = x->wants_writable = false;
}

static void release_request(struct http_exchange *x) {
        http_io_arena_free(x->conn.io, &x->arena);
}

static void linger(struct http_exchange *x) {
        x->phase = PHASE_LINGER;
        x->lingered = 0;
        buf_free(&x->held);
        release_request(x);
        http_conn_set_reading(&x->conn, true);
}

/* The end after a whole answer. A body may end with the connection: TLS wants that said. */
static void close_in_order(struct http_exchange *x) {
        http_conn_shutdown(&x->conn);
        http_conn_close(&x->conn);
}

/* Wait for the next request, if there may be one. */
static void go_idle(struct http_exchange *x) {
        release_request(x);
        if (http_server_is_draining(x->server)) {
                close_in_order(x);
                return;
        }
        x->phase = PHASE_IDLE;
        x->read_deadline = from_now(x, limits_of(x)->idle_ms);
        http_conn_set_reading(&x->conn, true);
}

bool http_exchange_body_is_short(const struct http_exchange *x) {
        int64_t length = x->parser.head.request.content_length;

        return length >= 0 && (uint64_t)length - x->parser.body_seen <= HTTP_DISCARD_BYTES;
}

/* The answer has left. `unread`: bytes of the peer are there that nobody will read. */
static void finish_exchange(struct http_exchange *x, bool unread) {
        bool body_done = x->body_done,
             keep = x->keep && !x->overflowed && (body_done || http_exchange_body_is_short(x));

        end_exchange(x, HTTP_END_DONE);
        if (x->conn.closing)
                return;
        if (http_server_is_draining(x->server))
                keep = false;
        if (keep && body_done) {
                go_idle(x);
        } else if (keep) {
                x->phase = PHASE_DISCARD;
                x->read_deadline = from_now(x, limits_of(x)->body_idle_ms);
        } else if (body_done && !unread && !x->overflowed) {
                close_in_order(x);
        } else {
                linger(x);
        }
        http_conn_set_reading(&x->conn, true);
}

/* End without a complete answer. */
static void break_exchange(struct http_exchange *x, enum http_end end) {
        bool begun = x->answer != ANSWER_NONE;

        end_exchange(x, end);
        release_request(x);
        /* An answer that ends with the connection would look complete after a FIN. */
        if (begun && end != HTTP_END_CLIENT_GONE)
                http_conn_reset(&x->conn);
        else
                http_conn_close(&x->conn);
}

/* ---- answers of our own --------------------------------------------------------------------------------------- */

int http_exchange_write(struct http_exchange *x, struct iovec *parts, int count) {
        int r = http_conn_write(&x->conn, parts, count);

        if (x->conn.out_bytes && x->write_deadline == WHEEL_NEVER)
                x->write_deadline = from_now(x, limits_of(x)->stall_ms);
        return r;
}

/* A request that is not handed out, or whose body breaks a rule: say why, and close when the client has had the time to
 * read it. */
static void refuse(struct http_exchange *x, int status, const char *reason) {
        char body[256], head[512];
        int len = snprintf(body, sizeof(body), "%d %s: %s\n", status, http_status_text(status), reason);
        struct http_field type = {SLICE_LIT("Content-Type"), SLICE_LIT("text/plain; charset=utf-8")};
        struct http_answer a = {.status = status,
            .fields = {&type, 1},
            .content_length = len < (int)sizeof(body) ? len : (int)sizeof(body) - 1,
            .connection = HTTP_CONNECTION_CLOSE,
            .date = http_io_date(x->conn.io)};
        struct iovec parts[2];

        parts[0] = (struct iovec){head, (size_t)http_write_answer_head(&a, head)};
        parts[1] = (struct iovec){body, (size_t)a.content_length};
        log_debug(x->server->options.log, "%s: refused with %d: %s", http_exchange_peer(x), status, reason);
        if (http_exchange_write(x, parts, x->is_head ? 1 : 2) < 0) {
                http_conn_close(&x->conn);
                return;
        }
        linger(x);
}

/* The body broke framing, a limit, or its deadline. */
static void refuse_body(struct http_exchange *x, enum http_end end, int status, const char *reason) {
        if (x->answer == ANSWER_NONE) {
                end_exchange(x, end);
                refuse(x, status, reason);
        } else if (x->answer == ANSWER_DONE) {
                /* Answered already; what is left is to write it out. */
                x->keep = false;
                x->body_done = x->overflowed = true;
        } else {
                break_exchange(x, end);
        }
}

/* ---- reading -------------------------------------------------------------------------------------------------- */

bool http_exchange_wants_body(const struct http_exchange *x) {
        return (x->callbacks.on_body || x->on_all) && !x->paused;
}

/* RFC 9110 10.1.1: the client waits for a word before it sends the body. It is given when the handler wants the body, and
 * not when the answer is there already. */
static void send_continue(struct http_exchange *x) {
        struct iovec part = {(char *)"HTTP/1.1 100 Continue\r\n\r\n", 25};

        if (!x->parser.expect_continue || x->continue_sent || x->body_done || !http_exchange_wants_body(x) ||
            x->answer != ANSWER_NONE || x->parser.body_seen)
                return;
        x->continue_sent = true;
        http_exchange_write(x, &part, 1);
}

static bool body_is_due(const struct http_exchange *x) {
        return !x->body_done && !x->paused && (!x->parser.expect_continue || x->continue_sent || x->parser.body_seen);
}

static void take_body(struct http_exchange *x, struct slice piece) {
        if (x->phase != PHASE_REQUEST)
                return;
        if (x->on_all) {
                buf_add(&x->body, piece);
                if (!buf_ok(&x->body))
                        x->ending = HTTP_END_ABORTED;
        } else if (x->callbacks.on_body) {
                x->callbacks.on_body(x, piece, x->user);
        }
}

static void take_body_end(struct http_exchange *x) {
        x->body_done = true;
        if (x->phase == PHASE_DISCARD)
                go_idle(x);
        else if (x->on_all)
                x->on_all(x, buf_slice(&x->body), x->user);
        else if (x->callbacks.on_body_end)
                x->callbacks.on_body_end(x, x->user);
}

static void begin_request(struct http_exchange *x) {
        const struct http_request_head *head = &x->parser.head.request;

        x->phase = PHASE_REQUEST;
        x->answer = ANSWER_NONE;
        x->ending = NOT_ENDING;
        x->keep = x->parser.keep_alive;
        x->is_head = head->method == HTTP_METHOD_HEAD;
        x->body_done = head->content_length == HTTP_LENGTH_NONE || head->content_length == 0;
        x->continue_sent = false;
        x->read_deadline = WHEEL_NEVER;
}

static void hand_out(struct http_exchange *x, struct slice *in) {
        struct http_event event;
        bool bodyless;

        begin_request(x);
        bodyless = x->body_done;
        /* A head without body ends the message at once, without using a byte. */
        if (bodyless)
                http_parser_next(&x->parser, in, &event);
        x->server->options.on_request(x->server->options.context, x);
        if (bodyless)
                take_body_end(x);
}

/* One step of parsing. Returns false when it needs bytes that are not there. */
static bool parse(struct http_exchange *x, struct slice *in) {
        struct http_event event;
        int r;

        if (x->phase == PHASE_IDLE) {
                if (in->len == 0)
                        return false;
                x->phase = PHASE_HEAD;
                x->read_deadline = from_now(x, limits_of(x)->head_ms);
                x->is_head = false;
                x->arena = http_io_arena(x->conn.io);
                http_parser_begin(&x->parser, &x->arena);
        }
        r = http_parser_next(&x->parser, in, &event);
        if (r < 0) {
                int status = r == -EPROTO ? x->parser.status : 503;
                const char *reason = r == -EPROTO ? x->parser.reason : "out of memory";

                if (x->phase == PHASE_REQUEST)
                        refuse_body(x, HTTP_END_BAD_BODY, status, reason);
                else if (x->phase == PHASE_DISCARD)
                        linger(x);
                else
                        refuse(x, status, reason);
                return true;
        }
        switch (event.kind) {
        case HTTP_EVENT_MORE:
                return false;
        case HTTP_EVENT_HEAD:
                hand_out(x, in);
                return true;
        case HTTP_EVENT_BODY:
                take_body(x, event.body);
                return true;
        case HTTP_EVENT_END:
                take_body_end(x);
                return true;
        }
        return false;
}

/* Input that cannot be parsed yet: the handler has paused, or the answer to the request before it is not written. */
static void hold(struct http_exchange *x, struct slice in) {
        bool pipelined = x->body_done;

        if (in.len == 0 || x->overflowed)
                return;
        if (pipelined && x->held.len + in.len > limits_of(x)->pipeline_bytes) {
                /* Too much: the answer that is due is given, then the connection is closed. */
                x->overflowed = true;
                buf_free(&x->held);
                return;
        }
        buf_add(&x->held, in);
        if (!buf_ok(&x->held))
                x->ending = HTTP_END_ABORTED;
}

/* ---- the turn ------------------------------------------------------------------------------------------------- */

/* Move as far as input, handler and socket allow. */
static void advance(struct http_exchange *x, struct slice *in) {
        while (!x->conn.closing) {
                switch (x->phase) {
                case PHASE_REQUEST:
                        if (x->ending != NOT_ENDING) {
                                break_exchange(x, (enum http_end)x->ending);
                                return;
                        }
                        if (x->answer == ANSWER_DONE && x->conn.out_bytes == 0) {
                                finish_exchange(x, in->len > 0);
                                break;
                        }
                        if (x->body_done || x->paused || !parse(x, in))
                                return;
                        break;
                case PHASE_LINGER:
                        x->lingered += in->len;
                        *in = SLICE_NONE;
                        if (x->lingered > HTTP_LINGER_BYTES)
                                http_conn_close(&x->conn);
                        return;
                default:
                        if (!parse(x, in))
                                return;
                }
        }
}

/* What to wait for, and how long. */
void http_exchange_settle(struct http_exchange *x) {
        bool lingering = x->phase == PHASE_LINGER;
        uint64_t at;

        if (lingering && x->conn.out_bytes == 0 && !x->shut) {
                x->shut = true;
                http_conn_shutdown(&x->conn);
                x->read_deadline = from_now(x, HTTP_LINGER_MS);
        }
        if (x->phase == PHASE_REQUEST) {
                send_continue(x);
                if (!body_is_due(x))
                        x->read_deadline = WHEEL_NEVER;
                else if (x->read_deadline == WHEEL_NEVER) {
                        x->pace = 0;
                        x->read_deadline = from_now(x, limits_of(x)->body_idle_ms);
                }
                http_conn_set_reading(&x->conn, !x->paused);
        }
        if (x->conn.out_bytes == 0)
                x->write_deadline = WHEEL_NEVER;
        at = x->read_deadline;
        if (lingering && !x->shut)
                at = WHEEL_NEVER;
        if (x->write_deadline < at)
                at = x->write_deadline;
        http_io_deadline(x->conn.io, &x->timer, at);
}

static void exchange_turn(struct http_exchange *x, struct slice in) {
        struct buf held = {0};

        x->busy = true;
        if (x->held.len && in.len == 0) {
                held = x->held;
                x->held = (struct buf){0};
                in = buf_slice(&held);
        }
        if (x->held.len == 0)
                advance(x, &in);
        if (!x->conn.closing && in.len && in.ptr == held.ptr) {
                /* Nothing was used: it goes on waiting. */
                x->held = held;
                held = (struct buf){0};
        } else if (!x->conn.closing && in.len) {
                hold(x, in);
        }
        if (!x->conn.closing && x->phase == PHASE_REQUEST && x->ending != NOT_ENDING)
                break_exchange(x, (enum http_end)x->ending);
        buf_free(&held);
        x->busy = false;
        if (!x->conn.closing)
                http_exchange_settle(x);
}

/* The handler has changed something: act on it here if a turn is running, else in the next one. */
void http_exchange_wake(struct http_exchange *x) {
        if (!x->busy)
                http_io_defer(x->conn.io, &x->task);
}

static void on_task(struct http_task *task) {
        struct http_exchange *x = list_item(task, struct http_exchange, task);

        if (!x->conn.closing)
                exchange_turn(x, SLICE_NONE);
}

/* ---- events of the connection --------------------------------------------------------------------------------- */

static struct http_exchange *of_conn(struct http_conn *c) {
        return list_item(c, struct http_exchange, conn);
}

static void on_data(struct http_conn *c, struct slice data) {
        struct http_exchange *x = of_conn(c);

        if ((x->phase == PHASE_REQUEST || x->phase == PHASE_DISCARD) && x->read_deadline != WHEEL_NEVER) {
                x->pace += data.len;
                if (x->pace >= HTTP_BODY_PACE_BYTES) {
                        x->pace = 0;
                        x->read_deadline = from_now(x, limits_of(x)->body_idle_ms);
                }
        }
        exchange_turn(x, data);
}

static void gone(struct http_exchange *x) {
        if (x->phase == PHASE_REQUEST) {
                x->ending = HTTP_END_CLIENT_GONE;
                exchange_turn(x, SLICE_NONE);
        } else {
                http_conn_close(&x->conn);
        }
}

static void on_eof(struct http_conn *c, int error) {
        gone(of_conn(c));
}

static void on_sent(struct http_conn *c) {
        struct http_exchange *x = of_conn(c);

        x->write_deadline = c->out_bytes ? from_now(x, limits_of(x)->stall_ms) : WHEEL_NEVER;
        if (x->phase == PHASE_REQUEST && x->wants_writable && c->out_bytes <= limits_of(x)->write_low) {
                x->wants_writable = false;
                x->busy = true;
                if (x->callbacks.on_writable)
                        x->callbacks.on_writable(x, x->user);
        }
        exchange_turn(x, SLICE_NONE);
}

static void on_closed(struct http_conn *c) {
        struct http_exchange *x = of_conn(c);

        wheel_stop(&x->timer);
        http_task_cancel(&x->task);
        buf_free(&x->held);
        release_request(x);
        http_server_forget(x);
}

static const struct http_conn_ops conn_ops = {
    .on_data = on_data,
    .on_eof = on_eof,
    .on_hangup = on_eof,
    .on_sent = on_sent,
    .on_write_error = on_eof,
    .on_closed = on_closed,
};

static void on_deadline(struct wheel_timer *timer) {
        struct http_exchange *x = list_item(timer, struct http_exchange, timer);
        bool stalled = http_io_now(x->conn.io) >= x->write_deadline;

        if (x->conn.closing)
                return;
        switch (x->phase) {
        case PHASE_HEAD:
                if (stalled)
                        http_conn_close(&x->conn);
                else
                        refuse(x, 408, "the request head did not come in time");
                break;
        case PHASE_REQUEST:
                if (stalled)
                        x->ending = HTTP_END_STALLED;
                else
                        refuse_body(x, HTTP_END_STALLED, 408, "the request body did not come in time");
                break;
        default:
                http_conn_close(&x->conn);
        }
        if (!x->conn.closing)
                exchange_turn(x, SLICE_NONE);
}

int http_exchange_open(struct http_server *s, struct http_exchange *x, int fd, const struct sockaddr *peer) {
        struct http_tls *tls = NULL;
        int r;

        if (s->tls) {
                tls = http_tls_accept(s->tls);
                if (!tls) {
                        close(fd);
                        return -ENOMEM;
                }
        }
        *x = (struct http_exchange){.server = s, .phase = PHASE_IDLE, .ending = NOT_ENDING};
        r = http_conn_init(&x->conn, &s->io, &conn_ops, fd, tls);
        if (r < 0)
                return r;
        list_init(&x->link);
        wheel_timer_init(&x->timer, on_deadline);
        http_task_init(&x->task, on_task);
        http_parser_init_request(&x->parser, &s->parser_limits);
        if (peer->sa_family == AF_INET)
                memcpy(&x->peer.v4, peer, sizeof(x->peer.v4));
        else if (peer->sa_family == AF_INET6)
                memcpy(&x->peer.v6, peer, sizeof(x->peer.v6));
        /* A TLS handshake counts as part of the first head. */
        x->read_deadline = from_now(x, s->tls ? limits_of(x)->head_ms : limits_of(x)->idle_ms);
        x->write_deadline = WHEEL_NEVER;
        http_exchange_settle(x);
        return 0;
}

void http_exchange_close_if_idle(struct http_exchange *x) {
        if (x->phase == PHASE_IDLE && x->held.len == 0)
                http_conn_close(&x->conn);
}

void http_exchange_break(struct http_exchange *x) {
        if (x->phase == PHASE_REQUEST)
                break_exchange(x, HTTP_END_ABORTED);
        else
                http_conn_close(&x->conn);
}

/* ---- the handler's side: the request -------------------------------------------------------------------------- */

const struct http_request_head *http_exchange_request(const struct http_exchange *x) {
        return &x->parser.head.request;
}

const char *http_exchange_peer(const struct http_exchange *x) {
        char address[INET6_ADDRSTRLEN];
        struct arena *arena = (struct arena *)&x->arena;
        const char *text = NULL;

        if (x->peer.any.sa_family == AF_INET && inet_ntop(AF_INET, &x->peer.v4.sin_addr, address, sizeof(address)))
                text = arena_printf(arena, "%s:%u", address, ntohs(x->peer.v4.sin_port));
        else if (x->peer.any.sa_family == AF_INET6 &&
                 inet_ntop(AF_INET6, &x->peer.v6.sin6_addr, address, sizeof(address)))
                text = arena_printf(arena, "[%s]:%u", address, ntohs(x->peer.v6.sin6_port));
        return text ? text : "unix";
}

uv_loop_t *http_exchange_loop(const struct http_exchange *x) {
        return x->conn.io->loop;
}

void http_exchange_watch(struct http_exchange *x, const struct http_exchange_callbacks *callbacks, void *user) {
        x->callbacks = *callbacks;
        x->user = user;
        http_exchange_wake(x);
}

void http_exchange_collect(
    struct http_exchange *x, void (*on_all)(struct http_exchange *x, struct slice body, void *user)) {
        x->on_all = on_all;
        http_exchange_wake(x);
}

struct buf http_exchange_take_body(struct http_exchange *x) {
        struct buf body = x->body;

        x->body = (struct buf){0};
        return body;
}

void http_exchange_pause(struct http_exchange *x) {
        x->paused = true;
        http_exchange_wake(x);
}

void http_exchange_resume(struct http_exchange *x) {
        if (!x->paused)
                return;
        x->paused = false;
        http_exchange_wake(x);
}
