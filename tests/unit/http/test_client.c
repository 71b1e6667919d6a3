/* test_client.c - the client against plain peers, which answer well and badly, and against our own server. */
#include "client_calls.h"
#include <fcntl.h>
#include <sys/un.h>

struct fixture {
        struct net net;
        struct backend backend;
        struct http_client *client;
        struct arena arena;
        struct http_endpoint to;
        struct record r[4];
};

static void open_with(struct fixture *f, struct http_client_options options) {
        memset(f, 0, sizeof(*f));
        net_open(&f->net);
        backend_open(&f->net, &f->backend);
        assert_int_equal(http_client_new(&f->net.loop, &options, &f->client, NULL), 0);
        f->to = endpoint_of(&f->arena, "127.0.0.1:%u", f->backend.port);
}

static void open_plain(struct fixture *f) {
        open_with(f, (struct http_client_options){0});
}

static void close_all(struct fixture *f) {
        client_close(&f->net, f->client);
        backend_close(&f->net, &f->backend);
        for (size_t i = 0; i < 4; i++)
                record_free(&f->r[i]);
        arena_free(&f->arena);
        net_close(&f->net);
}

static struct http_request get(const char *target) {
        return (struct http_request){.target = slice_str(target), .retry_stale = true};
}

/* A call that has reached the backend as its connection `i`. */
static struct peer *called(struct fixture *f, struct record *r, size_t i, struct http_request request) {
        call_begin(f->client, r, f->to, request);
        UNTIL(&f->net, f->backend.count > i && peer_got(f->backend.peers[i], "\r\n\r\n"));
        return f->backend.peers[i];
}

static void expect_end(struct fixture *f, struct record *r, enum http_failure failure, const char *why) {
        UNTIL(&f->net, r->ends);
        if (r->failure != (int)failure || !strstr(r->why.ptr, why))
                fail_msg("ended as %d (%s), not as %d (%s)", r->failure, r->why.ptr, failure, why);
        assert_int_equal(r->ends, 1);
}

/* ---- answers -------------------------------------------------------------------------------------------------- */

static void a_request_is_sent_with_our_framing_and_its_fields(void **state) {
        struct http_field fields[] = {{SLICE_LIT("X-A"), SLICE_LIT("b")}, {SLICE_LIT("Host"), SLICE_LIT("forged")},
            {SLICE_LIT("Content-Length"), SLICE_LIT("99")}, {SLICE_LIT("Transfer-Encoding"), SLICE_LIT("chunked")}};
        struct slice body[] = {SLICE_LIT("{\"a\":"), SLICE_LIT("1}")};
        struct http_request request = {.method = HTTP_METHOD_POST,
            .target = SLICE_LIT("/v1?x=1"),
            .fields = {fields, 4},
            .body = body,
            .body_parts = 2};
        struct fixture f;
        struct peer *p;
        char expected[200];

        open_plain(&f);
        p = called(&f, &f.r[0], 0, request);
        UNTIL(&f.net, peer_got(p, "1}"));
        snprintf(expected, sizeof(expected),
            "POST /v1?x=1 HTTP/1.1\r\nHost: 127.0.0.1:%u\r\nX-A: b\r\nContent-Length: 7\r\n\r\n{\"a\":1}",
            f.backend.port);
        assert_string_equal(buf_cstr(&p->in), expected);
        peer_say(p, "HTTP/1.1 201 Made\r\nContent-Length: 4\r\nX-Y: z\r\n\r\nbody");
        expect_end(&f, &f.r[0], HTTP_OK, "complete");
        assert_int_equal(f.r[0].status, 201);
        assert_int_equal(f.r[0].length, 4);
        assert_string_equal(buf_cstr(&f.r[0].fields), "Content-Length=4;X-Y=z;");
        assert_string_equal(buf_cstr(&f.r[0].body), "body");
        assert_int_equal(f.r[0].connected, 1);
        close_all(&f);
}

static void connections_are_reused_last_in_first_out(void **state) {
        static const char answer[] = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
        struct fixture f;

        open_plain(&f);
        for (int i = 0; i < 2; i++)
                called(&f, &f.r[i], i, get("/"));
        peer_say(f.backend.peers[1], answer);
        expect_end(&f, &f.r[1], HTTP_OK, "");
        peer_say(f.backend.peers[0], answer);
        expect_end(&f, &f.r[0], HTTP_OK, "");
        /* Connection 0 came back last. */
        call_begin(f.client, &f.r[2], f.to, get("/again"));
        UNTIL(&f.net, peer_got(f.backend.peers[0], "/again"));
        peer_say(f.backend.peers[0], answer);
        expect_end(&f, &f.r[2], HTTP_OK, "");
        assert_true(f.r[2].reused);
        assert_int_equal(f.r[2].connected, 1);
        assert_int_equal(f.backend.count, 2);
        close_all(&f);
}

static void a_call_started_from_on_end_takes_the_same_connection(void **state) {
        static const char answer[] = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
        struct fixture f;
        struct peer *p;

        open_plain(&f);
        f.r[0].again = f.client;
        f.r[0].to = f.to;
        f.r[0].next = &f.r[1];
        p = called(&f, &f.r[0], 0, get("/"));
        peer_say(p, answer);
        UNTIL(&f.net, peer_got(p, "/hello"));
        peer_say(p, answer);
        expect_end(&f, &f.r[1], HTTP_OK, "");
        assert_int_equal(f.backend.count, 1);
        close_all(&f);
}

static void a_connection_that_may_not_be_kept_is_closed(void **state) {
        static const char *const answers[] = {
            "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
            "HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\nmore than that",
        };

        for (size_t i = 0; i < 3; i++) {
                struct fixture f;
                struct peer *p;

                open_plain(&f);
                p = called(&f, &f.r[0], 0, get("/"));
                peer_say(p, answers[i]);
                expect_end(&f, &f.r[0], HTTP_OK, "");
                UNTIL(&f.net, peer_ended(p));
                close_all(&f);
        }
}

static void bodies_end_by_length_by_chunks_or_with_the_connection(void **state) {
        static const char *const answers[] = {
            "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nbody",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nbod\r\n1;ext=1\r\ny\r\n0\r\nTrailer: x\r\n\r\n",
            "HTTP/1.1 200 OK\r\n\r\nbody",
            "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.0 200 OK\r\n\r\nbody",
        };

        for (size_t i = 0; i < 4; i++) {
                struct fixture f;
                struct peer *p;

                open_plain(&f);
                p = called(&f, &f.r[0], 0, get("/"));
                peer_say(p, answers[i]);
                if (i >= 2) {
                        UNTIL(&f.net, f.r[0].body.len == 4);
                        assert_int_equal(f.r[0].ends, 0);
                        backend_drop(&f.net, &f.backend, 0, false);
                }
                expect_end(&f, &f.r[0], HTTP_OK, "");
                assert_string_equal(buf_cstr(&f.r[0].body), "body");
                assert_int_equal(f.r[0].heads, 1);
                assert_int_equal(f.r[0].status, 200);
                close_all(&f);
        }
}

static void answers_without_body_end_with_their_head(void **state) {
        static const struct {
                enum http_method method;
                const char *answer;
        } cases[] = {
            {HTTP_METHOD_HEAD, "HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n"},
            {HTTP_METHOD_HEAD, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"},
            {HTTP_METHOD_GET, "HTTP/1.1 204 No Content\r\n\r\n"},
            {HTTP_METHOD_GET, "HTTP/1.1 304 Not Modified\r\nContent-Length: 1000\r\n\r\n"},
            {HTTP_METHOD_GET, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"},
        };
        struct fixture f;

        open_plain(&f);
        for (size_t i = 0; i < 5; i++) {
                struct record r = {0};
                struct http_request request = {.method = cases[i].method, .target = SLICE_LIT("/")};

                call_begin(f.client, &r, f.to, request);
                UNTIL(&f.net, f.backend.count && peer_count(f.backend.peers[0], "\r\n\r\n") == i + 1);
                peer_say(f.backend.peers[0], cases[i].answer);
                expect_end(&f, &r, HTTP_OK, "");
                record_free(&r);
        }
        assert_int_equal(f.backend.count, 1);
        close_all(&f);
}

static void a_large_body_in_parts_is_sent_whole(void **state) {
        struct slice body[3] = {many(3 << 20), SLICE_LIT(""), SLICE_LIT("end")};
        struct http_request request = {
            .method = HTTP_METHOD_PUT, .target = SLICE_LIT("/big"), .body = body, .body_parts = 3};
        struct fixture f;
        struct peer *p;

        open_plain(&f);
        p = called(&f, &f.r[0], 0, request);
        UNTIL(&f.net, peer_got(p, "xend"));
        assert_true(peer_got(p, "Content-Length: 3145731\r\n"));
        assert_int_equal(p->in.len - slice_find_slice(buf_slice(&p->in), SLICE_LIT("\r\n\r\n"), 0), 3145731 + 4);
        peer_say(p, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
        expect_end(&f, &f.r[0], HTTP_OK, "");
        close_all(&f);
}

static void a_streamed_body_is_chunked_and_stops_at_the_mark(void **state) {
        struct slice first = SLICE_LIT("first"), piece = many(64 << 10);
        struct http_request request = {
            .method = HTTP_METHOD_POST, .target = SLICE_LIT("/"), .streamed = true, .body = &first, .body_parts = 1};
        struct fixture f;
        struct peer *p;
        size_t pieces = 0;
        int r = 0;

        open_plain(&f);
        call_begin(f.client, &f.r[0], f.to, request);
        /* Before there is a connection. */
        assert_int_equal(http_call_send(f.r[0].call, &SLICE_LIT("second"), 1), 0);
        UNTIL(&f.net, f.backend.count && peer_got(f.backend.peers[0], "\r\n5\r\nfirst\r\n6\r\nsecond\r\n"));
        p = f.backend.peers[0];
        peer_stop_reading(p);
        while (r == 0) {
                r = http_call_send(f.r[0].call, &piece, 1);
                pieces++;
                uv_run(&f.net.loop, UV_RUN_NOWAIT);
        }
        assert_int_equal(r, 1);
        assert_int_equal(f.r[0].writables, 0);
        peer_read(p);
        UNTIL(&f.net, f.r[0].writables);
        assert_int_equal(http_call_send_end(f.r[0].call), 0);
        assert_int_equal(http_call_send(f.r[0].call, &piece, 1), -EPIPE);
        UNTIL(&f.net, peer_got(p, "\r\n0\r\n\r\n"));
        assert_int_equal(peer_count(p, "10000\r\n"), pieces);
        peer_say(p, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
        expect_end(&f, &f.r[0], HTTP_OK, "");
        close_all(&f);
}

static void what_is_sent_before_there_is_a_connection_counts_for_the_mark(void **state) {
        struct slice body = many(300 << 10);
        struct http_request request = {.method = HTTP_METHOD_POST, .target = SLICE_LIT("/"), .streamed = true};
        struct fixture f;

        open_plain(&f);
        call_begin(f.client, &f.r[0], f.to, request);
        assert_int_equal(http_call_send(f.r[0].call, &body, 1), 1);
        UNTIL(&f.net, f.r[0].writables);
        assert_int_equal(http_call_send_end(f.r[0].call), 0);
        UNTIL(&f.net, f.backend.count && peer_got(f.backend.peers[0], "\r\n0\r\n\r\n"));
        peer_say(f.backend.peers[0], "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
        expect_end(&f, &f.r[0], HTTP_OK, "");
        assert_int_equal(f.r[0].writables, 1);
        close_all(&f);
}

static void an_early_answer_is_read_while_the_request_is_still_being_sent(void **state) {
        struct slice body = many(16 << 20);
        struct http_request request = {
            .method = HTTP_METHOD_POST, .target = SLICE_LIT("/"), .body = &body, .body_parts = 1};
        struct fixture f;
        struct peer *p;

        open_plain(&f);
        p = called(&f, &f.r[0], 0, request);
        peer_stop_reading(p);
        peer_say(p, "HTTP/1.1 413 Content Too Large\r\nContent-Length: 2\r\n\r\nno");
        expect_end(&f, &f.r[0], HTTP_OK, "");
        assert_int_equal(f.r[0].status, 413);
        /* The connection is not used again: half a request is in it. */
        peer_read(p);
        UNTIL(&f.net, peer_ended(p));
        close_all(&f);
}

static void a_paused_call_stops_the_peer_and_loses_nothing(void **state) {
        size_t total = 16u << 20, before;
        struct fixture f;
        struct peer *p;
        char head[100];

        open_plain(&f);
        f.r[0].pause_at_head = true;
        p = called(&f, &f.r[0], 0, get("/"));
        snprintf(head, sizeof(head), "HTTP/1.1 200 OK\r\nContent-Length: %zu\r\n\r\nstart", total + 5);
        peer_say(p, head);
        peer_send(p, many(total));
        UNTIL(&f.net, f.r[0].heads);
        for (int i = 0; i < 50; i++)
                uv_run(&f.net.loop, UV_RUN_NOWAIT);
        assert_int_equal(f.r[0].body.len, 0);
        assert_true(p->stream.write_queue_size > 0);
        http_call_resume(f.r[0].call);
        assert_int_equal(f.r[0].body.len, 0);
        UNTIL(&f.net, f.r[0].body.len > 1u << 20);
        http_call_pause(f.r[0].call);
        uv_run(&f.net.loop, UV_RUN_NOWAIT);
        before = f.r[0].body.len;
        for (int i = 0; i < 20; i++)
                uv_run(&f.net.loop, UV_RUN_NOWAIT);
        assert_int_equal(f.r[0].body.len, before);
        http_call_resume(f.r[0].call);
        expect_end(&f, &f.r[0], HTTP_OK, "");
        assert_int_equal(f.r[0].body.len, total + 5);
        close_all(&f);
}

/* Resumed at once, or when the request has been sent all the same. */
static void a_call_may_be_paused_before_it_is_connected(void **state) {
        for (int later = 0; later < 2; later++) {
                struct fixture f;

                open_plain(&f);
                call_begin(f.client, &f.r[0], f.to, get("/"));
                http_call_pause(f.r[0].call);
                if (!later)
                        http_call_resume(f.r[0].call);
                UNTIL(&f.net, f.backend.count && peer_got(f.backend.peers[0], "\r\n\r\n"));
                peer_say(f.backend.peers[0], "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nbody");
                if (later) {
                        for (int i = 0; i < 20; i++)
                                uv_run(&f.net.loop, UV_RUN_NOWAIT);
                        assert_int_equal(f.r[0].heads, 0);
                        http_call_resume(f.r[0].call);
                }
                expect_end(&f, &f.r[0], HTTP_OK, "");
                assert_string_equal(buf_cstr(&f.r[0].body), "body");
                close_all(&f);
        }
}

static void a_peer_that_ends_while_we_pause_has_said_everything(void **state) {
        struct fixture f;

        open_plain(&f);
        f.r[0].pause_at_head = true;
        peer_say(called(&f, &f.r[0], 0, get("/")), "HTTP/1.1 200 OK\r\n\r\nbody until close");
        UNTIL(&f.net, f.r[0].heads);
        backend_drop(&f.net, &f.backend, 0, false);
        for (int i = 0; i < 20; i++)
                uv_run(&f.net.loop, UV_RUN_NOWAIT);
        assert_int_equal(f.r[0].ends, 0);
        http_call_resume(f.r[0].call);
        expect_end(&f, &f.r[0], HTTP_OK, "");
        assert_string_equal(buf_cstr(&f.r[0].body), "body until close");
        close_all(&f);
}

/* ---- stale connections ---------------------------------------------------------------------------------------- */

/* A kept connection whose peer closes it just as the next request is on its way. */
static void stale(bool reset, struct http_request request, enum http_failure failure) {
        static const char answer[] = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
        struct fixture f;
        struct peer *p;

        open_plain(&f);
        p = called(&f, &f.r[0], 0, get("/"));
        peer_say(p, answer);
        expect_end(&f, &f.r[0], HTTP_OK, "");
        /* The client has taken the connection and written before it could see the end. */
        call_begin(f.client, &f.r[1], f.to, request);
        if (request.streamed)
                assert_int_equal(http_call_send_end(f.r[1].call), 0);
        UNTIL(&f.net, peer_count(p, "\r\n\r\n") >= 2);
        backend_drop(&f.net, &f.backend, 0, reset);
        if (failure == HTTP_OK) {
                UNTIL(&f.net, f.backend.count == 2 && peer_got(f.backend.peers[1], "\r\n\r\n"));
                peer_say(f.backend.peers[1], answer);
        }
        UNTIL(&f.net, f.r[1].ends);
        assert_int_equal(f.r[1].failure, failure);
        assert_int_equal(f.backend.count, failure == HTTP_OK ? 2 : 1);
        close_all(&f);
}

static void a_stale_connection_is_retried_once_when_that_is_safe(void **state) {
        struct http_request streamed = {
            .method = HTTP_METHOD_POST, .target = SLICE_LIT("/"), .streamed = true, .retry_stale = true};
        struct http_request once = {.target = SLICE_LIT("/")};

        stale(false, get("/second"), HTTP_OK);
        stale(true, get("/second"), HTTP_OK);
        stale(false, once, HTTP_FAIL_NO_RESPONSE);
        stale(true, once, HTTP_FAIL_NO_RESPONSE);
        stale(false, streamed, HTTP_FAIL_NO_RESPONSE);
}

static void a_second_loss_is_a_failure(void **state) {
        struct fixture f;
        struct peer *p;

        open_plain(&f);
        p = called(&f, &f.r[0], 0, get("/"));
        peer_say(p, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
        expect_end(&f, &f.r[0], HTTP_OK, "");
        call_begin(f.client, &f.r[1], f.to, get("/second"));
        backend_drop(&f.net, &f.backend, 0, false);
        UNTIL(&f.net, f.backend.count == 2 && peer_got(f.backend.peers[1], "/second"));
        backend_drop(&f.net, &f.backend, 1, false);
        expect_end(&f, &f.r[1], HTTP_FAIL_NO_RESPONSE, "closed by the peer");
        close_all(&f);
}

static void an_idle_connection_that_the_peer_closes_leaves_the_pool(void **state) {
        for (int reset = 0; reset < 2; reset++) {
                struct fixture f;

                open_plain(&f);
                peer_say(called(&f, &f.r[0], 0, get("/")), "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
                expect_end(&f, &f.r[0], HTTP_OK, "");
                backend_drop(&f.net, &f.backend, 0, reset);
                for (int i = 0; i < 5; i++)
                        uv_run(&f.net.loop, UV_RUN_NOWAIT);
                called(&f, &f.r[1], 1, get("/"));
                assert_false(f.r[1].reused);
                peer_say(f.backend.peers[1], "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
                expect_end(&f, &f.r[1], HTTP_OK, "");
                close_all(&f);
        }
}

static void idle_connections_are_bounded_and_time_out(void **state) {
        static const char answer[] = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
        struct fixture f;

        open_with(&f, (struct http_client_options){.idle_per_endpoint = 2, .idle_ms = 30});
        for (int i = 0; i < 3; i++)
                called(&f, &f.r[i], i, get("/"));
        for (int i = 0; i < 3; i++) {
                peer_say(f.backend.peers[i], answer);
                expect_end(&f, &f.r[i], HTTP_OK, "");
        }
        /* The oldest goes at once, the others after their time. */
        UNTIL(&f.net, peer_ended(f.backend.peers[0]));
        UNTIL(&f.net, peer_ended(f.backend.peers[1]) && peer_ended(f.backend.peers[2]));
        close_all(&f);
}

/* ---- failures ------------------------------------------------------------------------------------------------- */

static void a_refused_connection_is_said(void **state) {
        struct fixture f;

        open_plain(&f);
        /* Nobody listens on port 1. */
        call_begin(f.client, &f.r[0], endpoint_of(&f.arena, "127.0.0.1:%u", 1), get("/"));
        expect_end(&f, &f.r[0], HTTP_FAIL_CONNECT, "connect to http://127.0.0.1:1: Connection refused");
        call_begin(f.client, &f.r[1], endpoint_of(&f.arena, "unix:/nowhere/%u", 1), get("/"));
        expect_end(&f, &f.r[1], HTTP_FAIL_CONNECT, "unix:/nowhere/1: No such file");
        assert_int_equal(f.r[0].connected + f.r[1].connected, 0);
        close_all(&f);
}

static void a_name_that_is_not_there_is_said(void **state) {
        struct http_request request = get("/");
        struct fixture f;

        open_plain(&f);
        /* A resolver without a network may take its time. */
        request.deadlines.connect_ms = HANG_MS;
        call_begin(f.client, &f.r[0], endpoint_of(&f.arena, "http://no-such-host.invalid:%u", 80), request);
        UNTIL(&f.net, f.r[0].ends);
        assert_int_equal(f.r[0].failure, HTTP_FAIL_RESOLVE);
        assert_non_null(strstr(f.r[0].why.ptr, "no-such-host.invalid"));
        close_all(&f);
}

static void a_name_is_resolved_and_kept(void **state) {
        struct fixture f;
        struct http_endpoint to;

        open_plain(&f);
        to = endpoint_of(&f.arena, "localhost:%u", f.backend.port);
        for (int i = 0; i < 3; i++) {
                call_begin(f.client, &f.r[i], to, get("/"));
                UNTIL(&f.net, f.backend.count && peer_count(f.backend.peers[0], "\r\n\r\n") == (size_t)i + 1);
                peer_say(f.backend.peers[0], "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
                expect_end(&f, &f.r[i], HTTP_OK, "");
        }
        assert_true(peer_got(f.backend.peers[0], "Host: localhost:"));
        close_all(&f);
}

static void a_call_aborted_while_resolving_ends_once(void **state) {
        struct fixture f;

        open_plain(&f);
        call_begin(f.client, &f.r[0], endpoint_of(&f.arena, "http://no-such-host.invalid:%u", 80), get("/"));
        http_call_abort(f.r[0].call);
        expect_end(&f, &f.r[0], HTTP_FAIL_ABORTED, "aborted");
        close_all(&f);
}

/* A listener whose queue is full lets connections hang. */
static void a_connection_that_is_not_taken_times_out(void **state) {
        struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
        socklen_t len = sizeof(address);
        struct fixture f;
        int listener = socket(AF_INET, SOCK_STREAM, 0), fill[4];
        struct http_request request = get("/");

        open_plain(&f);
        bind(listener, (struct sockaddr *)&address, sizeof(address));
        listen(listener, 0);
        getsockname(listener, (struct sockaddr *)&address, &len);
        for (int i = 0; i < 4; i++) {
                fill[i] = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
                (void)!connect(fill[i], (struct sockaddr *)&address, sizeof(address));
        }
        request.deadlines.connect_ms = 50;
        call_begin(f.client, &f.r[0], endpoint_of(&f.arena, "127.0.0.1:%u", ntohs(address.sin_port)), request);
        expect_end(&f, &f.r[0], HTTP_FAIL_CONNECT, "no connection within 50 ms");
        for (int i = 0; i < 4; i++)
                close(fill[i]);
        close(listener);
        close_all(&f);
}

static void deadlines_name_what_did_not_come(void **state) {
        struct http_request request = get("/");
        struct slice body = many(32 << 20);
        struct fixture f;
        struct peer *p;

        open_plain(&f);
        request.deadlines.head_ms = 30;
        call_begin(f.client, &f.r[0], f.to, request);
        expect_end(&f, &f.r[0], HTTP_FAIL_TIMEOUT, "no answer within 30 ms");
        request.deadlines.head_ms = 0;
        request.deadlines.idle_ms = 30;
        p = called(&f, &f.r[1], 1, request);
        peer_say(p, "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc");
        expect_end(&f, &f.r[1], HTTP_FAIL_TIMEOUT, "no byte of the answer for 30 ms");
        UNTIL(&f.net, peer_ended(p));
        request.deadlines.idle_ms = 0;
        request.deadlines.total_ms = 40;
        p = called(&f, &f.r[2], 2, request);
        peer_say(p, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
        while (!f.r[2].ends) {
                peer_say(p, "1\r\na\r\n");
                net_turn(&f.net, "the end of a slow call");
        }
        expect_end(&f, &f.r[2], HTTP_FAIL_TIMEOUT, "no complete answer within 40 ms");
        /* A peer that does not read the request. */
        request = (struct http_request){.method = HTTP_METHOD_POST,
            .target = SLICE_LIT("/"),
            .body = &body,
            .body_parts = 1,
            .deadlines = {.head_ms = 50}};
        p = called(&f, &f.r[3], 3, request);
        peer_stop_reading(p);
        expect_end(&f, &f.r[3], HTTP_FAIL_TIMEOUT, "no byte of the request was taken for 50 ms");
        close_all(&f);
}

/* While a long request is still being sent. */
static void an_early_answer_has_the_deadline_of_an_answer(void **state) {
        struct slice body = many(16 << 20);
        struct http_request request = {.method = HTTP_METHOD_POST,
            .target = SLICE_LIT("/"),
            .body = &body,
            .body_parts = 1,
            .deadlines = {.head_ms = 2 * HANG_MS, .idle_ms = 300}};
        struct fixture f;
        struct peer *p;

        open_plain(&f);
        p = called(&f, &f.r[0], 0, request);
        peer_stop_reading(p);
        peer_say(p, "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc");
        UNTIL(&f.net, f.r[0].body.len);
        peer_read(p);
        expect_end(&f, &f.r[0], HTTP_FAIL_TIMEOUT, "no byte of the answer for 300 ms");
        close_all(&f);
}

static void what_breaks_off_is_classified(void **state) {
        static const struct {
                const char *answer;
                bool reset;
                enum http_failure failure;
                const char *why;
        } cases[] = {
            {"", false, HTTP_FAIL_NO_RESPONSE, "closed by the peer"},
            {"", true, HTTP_FAIL_NO_RESPONSE, "reset"},
            {"HTTP/1.1 200 OK\r\nConte", false, HTTP_FAIL_TRUNCATED, "cut off"},
            {"HTTP/1.1 100 Continue\r\n\r\n", false, HTTP_FAIL_TRUNCATED, "cut off"},
            {"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nabc", false, HTTP_FAIL_TRUNCATED, "closed by the peer"},
            {"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nabc", true, HTTP_FAIL_TRUNCATED, "reset"},
            {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n", false, HTTP_FAIL_TRUNCATED,
                "cut off"},
            {"HTTP/1.1 200 OK\r\n\r\nabc", true, HTTP_FAIL_TRUNCATED, "reset"},
            {"SSH-2.0-OpenSSH_9.2\r\n", false, HTTP_FAIL_PROTOCOL, "invalid answer"},
            {"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab", false, HTTP_FAIL_PROTOCOL,
                "invalid"},
            {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", false, HTTP_FAIL_PROTOCOL,
                "invalid answer"},
        };

        for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
                struct fixture f;
                struct peer *p;

                open_plain(&f);
                p = called(&f, &f.r[0], 0, get("/"));
                peer_say(p, cases[i].answer);
                UNTIL(&f.net, p->stream.write_queue_size == 0);
                /* What was written is read before a reset discards it. */
                for (int turn = 0; turn < 3; turn++)
                        uv_run(&f.net.loop, UV_RUN_NOWAIT);
                backend_drop(&f.net, &f.backend, 0, cases[i].reset);
                expect_end(&f, &f.r[0], cases[i].failure, cases[i].why);
                close_all(&f);
        }
}

static void a_reset_while_sending_is_a_failure_to_send(void **state) {
        struct slice body = many(32 << 20);
        struct http_request request = {
            .method = HTTP_METHOD_POST, .target = SLICE_LIT("/"), .body = &body, .body_parts = 1};
        struct fixture f;

        open_plain(&f);
        peer_stop_reading(called(&f, &f.r[0], 0, request));
        backend_drop(&f.net, &f.backend, 0, true);
        expect_end(&f, &f.r[0], HTTP_FAIL_SEND, "the request was not taken");
        close_all(&f);
}

static void a_reset_is_noticed_while_paused(void **state) {
        struct fixture f;

        open_plain(&f);
        f.r[0].pause_at_head = true;
        peer_say(called(&f, &f.r[0], 0, get("/")), "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nabc");
        UNTIL(&f.net, f.r[0].heads);
        backend_drop(&f.net, &f.backend, 0, true);
        expect_end(&f, &f.r[0], HTTP_FAIL_TRUNCATED, "reset");
        close_all(&f);
}

static void an_abort_closes_at_once_and_ends_later(void **state) {
        for (int when = 0; when < 4; when++) {
                struct fixture f;
                struct peer *p;

                open_plain(&f);
                f.r[0].abort_at_head = when == 2;
                f.r[0].abort_at_body = when == 3;
                if (when == 0) {
                        call_begin(f.client, &f.r[0], f.to, get("/"));
                        http_call_abort(f.r[0].call);
                        assert_int_equal(f.r[0].ends, 0);
                        http_call_abort(f.r[0].call);
                } else {
                        p = called(&f, &f.r[0], 0, get("/"));
                        if (when == 1)
                                http_call_abort(f.r[0].call);
                        else
                                peer_say(p, "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nabcde");
                        UNTIL(&f.net, peer_ended(p));
                }
                expect_end(&f, &f.r[0], HTTP_FAIL_ABORTED, "aborted");
                assert_int_equal(f.r[0].heads, when >= 2);
                assert_int_equal(f.r[0].body.len, when == 3 ? 5 : 0);
                close_all(&f);
        }
}

static void closing_the_client_ends_every_call(void **state) {
        struct fixture f;
        struct http_call *refused;
        struct http_request request = get("/");
        bool closed = false;

        open_plain(&f);
        called(&f, &f.r[0], 0, get("/"));
        call_begin(f.client, &f.r[1], f.to, get("/"));
        call_begin(f.client, &f.r[2], endpoint_of(&f.arena, "http://no-such-host.invalid:%u", 80), get("/"));
        http_client_close(f.client, on_client_closed, &closed);
        assert_int_equal(http_call_start(f.client, &f.to, &request, &record_callbacks, &f.r[3], &refused), -ESHUTDOWN);
        UNTIL(&f.net, closed);
        for (int i = 0; i < 3; i++)
                expect_end(&f, &f.r[i], HTTP_FAIL_ABORTED, "closing");
        http_client_free(f.client);
        backend_close(&f.net, &f.backend);
        for (size_t i = 0; i < 4; i++)
                record_free(&f.r[i]);
        arena_free(&f.arena);
        net_close(&f.net);
}

static void wrong_requests_are_refused_at_once(void **state) {
        struct http_field bad = {SLICE_LIT("A"), SLICE_LIT("b\r\nC: d")};
        struct http_request requests[] = {{.target = SLICE_LIT("/a b")}, {.target = SLICE_LIT("")},
            {.target = SLICE_LIT("/a\r\nB: c")}, {.target = SLICE_LIT("/"), .fields = {&bad, 1}},
            {.target = SLICE_LIT("/"), .method = HTTP_METHOD_OTHER}};
        struct http_call *call;
        struct fixture f;

        open_plain(&f);
        for (size_t i = 0; i < 5; i++)
                assert_int_equal(
                    http_call_start(f.client, &f.to, &requests[i], &record_callbacks, &f.r[0], &call), -EINVAL);
        assert_int_equal(f.r[0].ends, 0);
        close_all(&f);
}

/* ---- against our own server ----------------------------------------------------------------------------------- */

static void client_and_server_agree_over_every_kind_of_socket(void **state) {
        char dir[] = "/tmp/baton-test-http-XXXXXX", path[128];
        const char *hosts[3] = {"127.0.0.1", "::1", path}, *urls[3] = {"http://127.0.0.1:%u", "http://[::1]:%u", path};

        assert_non_null(mkdtemp(dir));
        snprintf(path, sizeof(path), "unix:%s/socket", dir);
        for (int i = 0; i < 3; i++) {
                struct http_client_options options = {0};
                struct slice body = many(1 << 20);
                struct http_request echo = {
                    .method = HTTP_METHOD_POST, .target = SLICE_LIT("/echo"), .body = &body, .body_parts = 1};
                struct http_client *client;
                struct arena arena = {0};
                struct http_endpoint to;
                struct record r[2] = {0};
                struct net net;
                struct app app;

                net_open(&net);
                app_open(&app, &net, (struct http_server_options){0}, hosts[i]);
                http_client_new(&net.loop, &options, &client, NULL);
                to = endpoint_of(&arena, urls[i], app.port);
                call_begin(client, &r[0], to, echo);
                UNTIL(&net, r[0].ends);
                assert_int_equal(r[0].failure, HTTP_OK);
                assert_int_equal(r[0].body.len, body.len);
                assert_memory_equal(r[0].body.ptr, body.ptr, body.len);
                call_begin(client, &r[1], to, get("/hello"));
                UNTIL(&net, r[1].ends);
                assert_string_equal(buf_cstr(&r[1].body), "hello");
                assert_int_equal(http_server_connections(app.server), 1);
                record_free(&r[0]);
                record_free(&r[1]);
                client_close(&net, client);
                app_close(&app);
                net_close(&net);
                arena_free(&arena);
        }
        rmdir(dir);
}

static void endpoints_are_parsed_into_one_canonical_form(void **state) {
        static const struct {
                const char *text, *key, *host, *path;
                unsigned port;
        } good[] = {
            {"http://a:8000", "http://a:8000", "a", "", 8000},
            {"a:8000", "http://a:8000", "a", "", 8000},
            {"HTTP://A.Example:8000/v1?x", "http://a.example:8000", "a.example", "/v1?x", 8000},
            {"http://a", "http://a:80", "a", "", 80},
            {"https://a/", "https://a:443", "a", "/", 443},
            {"https://a:8443", "https://a:8443", "a", "", 8443},
            {"http://[::1]:80/x", "http://[::1]:80", "::1", "/x", 80},
            {"[FE80::1%eth0]:9", "http://[fe80::1%eth0]:9", "fe80::1%eth0", "", 9},
            {"10.0.0.1:1", "http://10.0.0.1:1", "10.0.0.1", "", 1},
            {"unix:/run/x.sock", "unix:/run/x.sock", "/run/x.sock", "", 0},
        };
        static const char *const bad[] = {"", "http://", "http://:80", "a:", "a:0", "a:65536", "a:b", "a:1:2", "[::1",
            "[]:1", "[::1]x", "[::1]:", "http://u@a", "http://a b", "ftp://a:1", "unix:", "::1", "a\n:1",
            "http://a:80 "};
        struct arena arena = {0};

        for (size_t i = 0; i < sizeof(good) / sizeof(good[0]); i++) {
                struct http_endpoint to;
                struct slice path;

                assert_int_equal(http_endpoint_parse(&arena, slice_str(good[i].text), &to, &path, NULL), 0);
                assert_true(slice_is(to.key, good[i].key));
                assert_true(slice_is(to.host, good[i].host));
                assert_true(slice_is(path, good[i].path));
                assert_int_equal(to.port, good[i].port);
                assert_int_equal(to.tls, strncmp(good[i].key, "https", 5) == 0);
                assert_int_equal(to.is_unix, strncmp(good[i].key, "unix", 4) == 0);
        }
        for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
                struct http_endpoint to;
                struct error e = {0};

                if (http_endpoint_parse(&arena, slice_str(bad[i]), &to, NULL, &e) != -EINVAL || !*e.text)
                        fail_msg("\"%s\" was taken", bad[i]);
        }
        arena_free(&arena);
}

int main(void) {
        const struct CMUnitTest tests[] = {
            cmocka_unit_test(a_request_is_sent_with_our_framing_and_its_fields),
            cmocka_unit_test(connections_are_reused_last_in_first_out),
            cmocka_unit_test(a_call_started_from_on_end_takes_the_same_connection),
            cmocka_unit_test(a_connection_that_may_not_be_kept_is_closed),
            cmocka_unit_test(bodies_end_by_length_by_chunks_or_with_the_connection),
            cmocka_unit_test(answers_without_body_end_with_their_head),
            cmocka_unit_test(a_large_body_in_parts_is_sent_whole),
            cmocka_unit_test(a_streamed_body_is_chunked_and_stops_at_the_mark),
            cmocka_unit_test(what_is_sent_before_there_is_a_connection_counts_for_the_mark),
            cmocka_unit_test(an_early_answer_is_read_while_the_request_is_still_being_sent),
            cmocka_unit_test(a_paused_call_stops_the_peer_and_loses_nothing),
            cmocka_unit_test(a_call_may_be_paused_before_it_is_connected),
            cmocka_unit_test(a_peer_that_ends_while_we_pause_has_said_everything),
            cmocka_unit_test(a_stale_connection_is_retried_once_when_that_is_safe),
            cmocka_unit_test(a_second_loss_is_a_failure),
            cmocka_unit_test(an_idle_connection_that_the_peer_closes_leaves_the_pool),
            cmocka_unit_test(idle_connections_are_bounded_and_time_out),
            cmocka_unit_test(a_refused_connection_is_said),
            cmocka_unit_test(a_name_that_is_not_there_is_said),
            cmocka_unit_test(a_name_is_resolved_and_kept),
            cmocka_unit_test(a_call_aborted_while_resolving_ends_once),
            cmocka_unit_test(a_connection_that_is_not_taken_times_out),
            cmocka_unit_test(deadlines_name_what_did_not_come),
            cmocka_unit_test(an_early_answer_has_the_deadline_of_an_answer),
            cmocka_unit_test(what_breaks_off_is_classified),
            cmocka_unit_test(a_reset_while_sending_is_a_failure_to_send),
            cmocka_unit_test(a_reset_is_noticed_while_paused),
            cmocka_unit_test(an_abort_closes_at_once_and_ends_later),
            cmocka_unit_test(closing_the_client_ends_every_call),
            cmocka_unit_test(wrong_requests_are_refused_at_once),
            cmocka_unit_test(client_and_server_agree_over_every_kind_of_socket),
            cmocka_unit_test(endpoints_are_parsed_into_one_canonical_form),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
