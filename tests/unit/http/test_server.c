/* test_server.c - the server over loopback sockets: answers, limits, and what happens when either side misbehaves. How it
 * listens and drains is in test_listen.c. */
#include "server_fixture.h"

/* ---- answers -------------------------------------------------------------------------------------------------- */

static void a_request_is_answered_and_the_connection_kept(void **state) {
        struct fixture f;
        struct peer *p;

        open_plain(&f);
        p = peer_connect(&f.net, f.app.port);
        peer_say(p, GET("/hello"));
        UNTIL(&f.net, peer_got(p, "\r\n\r\nhello"));
        assert_true(peer_got(p, "HTTP/1.1 200 OK\r\n"));
        assert_true(peer_got(p, "Content-Length: 5\r\n"));
        assert_true(peer_got(p, "Date: "));
        peer_say(p, GET("/nothing"));
        UNTIL(&f.net, peer_got(p, "nothing here"));
        assert_true(peer_got(p, "HTTP/1.1 404 Not Found\r\n"));
        assert_int_equal(f.app.requests, 2);
        assert_int_equal(f.app.ended, 2);
        assert_int_equal(f.app.last_end, HTTP_END_DONE);
        assert_false(peer_ended(p));
        peer_leave(&f.net, p, false);
        close_all(&f);
}

static void pipelined_requests_are_answered_in_order(void **state) {
        struct fixture f;
        struct peer *p;

        open_plain(&f);
        p = peer_connect(&f.net, f.app.port);
        peer_say(p,
            POST("/echo") "Content-Length: 3\r\n\r\none" POST("/echo") "Transfer-Encoding: chunked\r\n\r\n"
                                                                       "2\r\ntw\r\n1\r\no\r\n0\r\n\r\n" GET("/hello"));
        UNTIL(&f.net, peer_got(p, "hello"));
        assert_true(peer_got(p, "\r\n\r\none"));
        assert_true(peer_got(p, "\r\n\r\ntwo"));
        assert_true(slice_find_slice(buf_slice(&p->in), SLICE_LIT("one"), 0) <
                    slice_find_slice(buf_slice(&p->in), SLICE_LIT("two"), 0));
        peer_leave(&f.net, p, false);
        close_all(&f);
}

static void a_pipelined_request_waits_for_the_answer_before_it(void **state) {
        struct fixture f;
        struct peer *p;

        open_plain(&f);
        p = peer_connect(&f.net, f.app.port);
        peer_say(p, GET("/park"));
        UNTIL(&f.net, f.app.x);
        peer_say(p, GET("/hello"));
        UNTIL(&f.net, p->stream.write_queue_size == 0);
        for (int i = 0; i < 10; i++)
                uv_run(&f.net.loop, UV_RUN_NOWAIT);
        assert_int_equal(f.app.requests, 1);
        http_respond(f.app.x, 200, (struct http_fields){0}, SLICE_LIT("first"));
        UNTIL(&f.net, peer_got(p, "hello"));
        assert_true(slice_find_slice(buf_slice(&p->in), SLICE_LIT("first"), 0) <
                    slice_find_slice(buf_slice(&p->in), SLICE_LIT("hello"), 0));
        peer_leave(&f.net, p, false);
        close_all(&f);
}

static void too_much_pipelined_closes_after_the_current_answer(void **state) {
        struct fixture f;
        struct peer *p;

        open_with(&f, (struct http_limits){.pipeline_bytes = 1000});
        p = peer_connect(&f.net, f.app.port);
        peer_say(p, GET("/park"));
        UNTIL(&f.net, f.app.x);
        peer_send(p, many(100000));
        UNTIL(&f.net, p->stream.write_queue_size == 0);
        http_respond(f.app.x, 200, (struct http_fields){0}, SLICE_LIT("last"));
        UNTIL(&f.net, peer_ended(p));
        assert_true(p->eof);
        assert_true(peer_got(p, "last"));
        assert_int_equal(f.app.requests, 1);
        peer_leave(&f.net, p, false);
        close_all(&f);
}

static void head_has_the_fields_of_get_and_no_body(void **state) {
        struct fixture f;
        struct peer *p;

        open_plain(&f);
        p = peer_connect(&f.net, f.app.port);
        peer_say(p, "HEAD /hello HTTP/1.1\r\nHost: a\r\n\r\n" GET("/nothing"));
        UNTIL(&f.net, peer_got(p, "nothing here"));
        assert_true(peer_got(p, "Content-Length: 5\r\n\r\nHTTP/1.1 404"));
        peer_leave(&f.net, p, false);
        p = peer_connect(&f.net, f.app.port);
        peer_say(p, "HEAD /park HTTP/1.1\r\nHost: a\r\n\r\n");
        UNTIL(&f.net, f.app.x);
        assert_int_equal(http_begin(f.app.x, 200, (struct http_fields){0}, HTTP_LENGTH_CHUNKED), 0);
        assert_int_equal(http_send(f.app.x, &SLICE_LIT("body"), 1), 0);
        assert_int_equal(http_finish(f.app.x), 0);
        peer_say(p, GET("/hello"));
        UNTIL(&f.net, peer_got(p, "hello"));
        assert_true(peer_got(p, "Transfer-Encoding: chunked\r\n\r\nHTTP/1.1 200"));
        peer_leave(&f.net, p, false);
        close_all(&f);
}

static void http10_is_closed_unless_it_asks_to_be_kept(void **state) {
        struct fixture f;
        struct peer *p;

        open_plain(&f);
        p = peer_connect(&f.net, f.app.port);
        peer_say(p, "GET /hello HTTP/1.0\r\nConnection: keep-alive\r\n\r\n");
        UNTIL(&f.net, peer_got(p, "hello"));
        assert_true(peer_got(p, "Connection: keep-alive\r\n"));
        peer_say(p, "GET /nothing HTTP/1.0\r\n\r\n");
        UNTIL(&f.net, peer_ended(p));
        assert_true(p->eof);
        assert_true(peer_got(p, "nothing here"));
        assert_true(peer_got(p, "Connection: close\r\n"));
        peer_leave(&f.net, p, false);
        close_all(&f);
}

static void a_stream_to_http10_ends_with_the_connection(void **state) {
        struct fixture f;
        struct peer *p;

        open_plain(&f);
        p = peer_connect(&f.net, f.app.port);
        peer_say(p, "GET /park HTTP/1.0\r\nConnection: keep-alive\r\n\r\n");
        UNTIL(&f.net, f.app.x);
        http_begin(f.app.x, 200, (struct http_fields){0}, HTTP_LENGTH_CHUNKED);
        http_send(f.app.x, &SLICE_LIT("part"), 1);
        http_finish(f.app.x);
        UNTIL(&f.net, peer_ended(p));
        assert_true(p->eof);
        assert_true(peer_got(p, "Connection: close\r\n\r\npart"));
        assert_false(peer_got(p, "chunked"));
        assert_int_equal(f.app.last_end, HTTP_END_DONE);
        peer_leave(&f.net, p, false);
        close_all(&f);
}

static void a_head_leaves_with_the_first_bytes_of_its_body(void **state) {
        struct fixture f;
        struct peer *p;
        struct slice parts[2] = {SLICE_LIT("data: a"), SLICE_LIT("\n\n")};

        open_plain(&f);
        p = peer_connect(&f.net, f.app.port);
        peer_say(p, GET("/park"));
        UNTIL(&f.net, f.app.x);
        assert_int_equal(http_begin(f.app.x, 200, (struct http_fields){0}, HTTP_LENGTH_CHUNKED), 0);
        assert_int_equal(http_begin(f.app.x, 200, (struct http_fields){0}, HTTP_LENGTH_CHUNKED), -EALREADY);
        for (int i = 0; i < 5; i++)
                uv_run(&f.net.loop, UV_RUN_NOWAIT);
        assert_int_equal(p->in.len, 0);
        assert_int_equal(http_send(f.app.x, parts, 2), 0);
        UNTIL(&f.net, p->in.len);
        assert_true(peer_got(p, "\r\n\r\n9\r\ndata: a\n\n\r\n"));
        assert_int_equal(http_finish(f.app.x), 0);
        UNTIL(&f.net, peer_got(p, "\r\n0\r\n\r\n"));
        UNTIL(&f.net, f.app.ended);
        peer_leave(&f.net, p, false);
        close_all(&f);
}

static void a_body_shorter_than_promised_is_not_passed_off_as_whole(void **state) {
        struct fixture f;
        struct peer *p;

        open_plain(&f);
        p = peer_connect(&f.net, f.app.port);
        peer_say(p, GET("/park"));
        UNTIL(&f.net, f.app.x);
        assert_int_equal(http_begin(f.app.x, 200, (struct http_fields){0}, 10), 0);
        assert_int_equal(http_send(f.app.x, &SLICE_LIT("12345678901"), 1), -EINVAL);
        assert_int_equal(http_send(f.app.x, &SLICE_LIT("12345"), 1), 0);
        assert_int_equal(http_finish(f.app.x), -EINVAL);
        UNTIL(&f.net, f.app.ended);
        assert_int_equal(f.app.last_end, HTTP_END_ABORTED);
        UNTIL(&f.net, peer_ended(p));
        assert_true(peer_got(p, "Content-Length: 10\r\n\r\n12345"));
        peer_leave(&f.net, p, false);
        close_all(&f);
}

static void unsafe_fields_and_statuses_are_refused(void **state) {
        struct http_field bad[] = {{SLICE_LIT("A"), SLICE_LIT("b\r\nC: d")}, {SLICE_LIT("A B"), SLICE_LIT("c")},
            {SLICE_LIT(""), SLICE_LIT("c")}, {SLICE_LIT("A"), SLICE_LIT("\x7f")}};
        struct fixture f;
        struct peer *p;

        open_plain(&f);
        p = peer_connect(&f.net, f.app.port);
        peer_say(p, GET("/park"));
        UNTIL(&f.net, f.app.x);
        for (size_t i = 0; i < 4; i++) {
                assert_int_equal(http_respond(f.app.x, 200, (struct http_fields){&bad[i], 1}, SLICE_NONE), -EINVAL);
                assert_int_equal(http_begin(f.app.x, 200, (struct http_fields){&bad[i], 1}, 0), -EINVAL);
        }
        assert_int_equal(http_respond(f.app.x, 99, (struct http_fields){0}, SLICE_NONE), -EINVAL);
        assert_int_equal(http_respond(f.app.x, 1000, (struct http_fields){0}, SLICE_NONE), -EINVAL);
        assert_int_equal(http_respond(f.app.x, 204, (struct http_fields){0}, SLICE_NONE), 0);
        UNTIL(&f.net, peer_got(p, "\r\n\r\n"));
        assert_false(peer_got(p, "Content-Length"));
        UNTIL(&f.net, f.app.ended);
        peer_leave(&f.net, p, false);
        close_all(&f);
}

static void framing_fields_of_a_relayed_answer_are_left_out(void **state) {
        struct http_field fields[] = {{SLICE_LIT("Transfer-Encoding"), SLICE_LIT("chunked")},
            {SLICE_LIT("content-length"), SLICE_LIT("7")}, {SLICE_LIT("Connection"), SLICE_LIT("close")},
            {SLICE_LIT("X-Kept"), SLICE_LIT("yes")}, {SLICE_LIT("Date"), SLICE_LIT("then")}};
        struct fixture f;
        struct peer *p;

        open_plain(&f);
        p = peer_connect(&f.net, f.app.port);
        peer_say(p, GET("/park"));
        UNTIL(&f.net, f.app.x);
        http_respond(f.app.x, 200, (struct http_fields){fields, 5}, SLICE_LIT("four"));
        UNTIL(&f.net, peer_got(p, "four"));
        assert_true(peer_got(p, "HTTP/1.1 200 OK\r\nX-Kept: yes\r\nDate: then\r\nContent-Length: 4\r\n\r\nfour"));
        UNTIL(&f.net, f.app.ended);
        peer_leave(&f.net, p, false);
        close_all(&f);
}

/* ---- limits --------------------------------------------------------------------------------------------------- */

/* Send these bytes on a fresh connection and wait for its orderly end; the answer must have that status. */
static void expect_status(struct fixture *f, struct slice bytes, const char *status) {
        struct peer *p = peer_connect(&f->net, f->app.port);

        peer_send(p, bytes);
        UNTIL(&f->net, peer_ended(p));
        if (!p->eof || !peer_got(p, status) || !peer_got(p, "Connection: close\r\n") ||
            peer_count(p, "\r\nDate: ") != 1)
                fail_msg("%s wanted, got %s (error %d)", status, buf_cstr(&p->in), p->error);
        peer_leave(&f->net, p, false);
}

static void each_limit_is_answered_with_its_status(void **state) {
        struct http_limits limits = {.head_bytes = 1000, .head_fields = 5, .body_bytes = 100};
        struct buf b = {0};
        struct fixture f;

        open_with(&f, limits);
        buf_printf(&b, "GET /%.*s HTTP/1.1\r\nHost: a\r\n\r\n", 2000, many(2000).ptr);
        expect_status(&f, buf_slice(&b), "HTTP/1.1 414 URI Too Long\r\n");
        buf_reset(&b);
        buf_printf(&b, "GET / HTTP/1.1\r\nHost: a\r\nX: %.*s\r\n\r\n", 2000, many(2000).ptr);
        expect_status(&f, buf_slice(&b), "HTTP/1.1 431 ");
        expect_status(&f, SLICE_LIT("GET / HTTP/1.1\r\nHost: a\r\nA: 1\r\nB: 2\r\nC: 3\r\nD: 4\r\nE: 5\r\n\r\n"),
            "HTTP/1.1 431 ");
        expect_status(&f, SLICE_LIT(POST("/park") "Content-Length: 101\r\n\r\n"), "HTTP/1.1 413 ");
        assert_int_equal(f.app.requests, 0);
        buf_reset(&b);
        buf_printf(&b, POST("/echo") "Transfer-Encoding: chunked\r\n\r\n50\r\n%.80s\r\n15\r\n", many(80).ptr);
        expect_status(&f, buf_slice(&b), "HTTP/1.1 413 ");
        assert_int_equal(f.app.last_end, HTTP_END_BAD_BODY);
        expect_status(&f, SLICE_LIT(POST("/echo") "Transfer-Encoding: chunked\r\n\r\n2\r\nabc\r\n"), "HTTP/1.1 400 ");
        assert_int_equal(f.app.last_end, HTTP_END_BAD_BODY);
        assert_int_equal(f.app.ended, 2);
        expect_status(&f, SLICE_LIT("GET / HTTP/2.0\r\nHost: a\r\n\r\n"), "HTTP/1.1 505 ");
        expect_status(&f, SLICE_LIT(POST("/") "Expect: the-unexpected\r\nContent-Length: 1\r\n\r\n"), "HTTP/1.1 417 ");
        expect_status(&f, SLICE_LIT("BREW / HTTP/1.1\r\nHost: a\r\n\r\n"), "HTTP/1.1 400 ");
        buf_free(&b);
        close_all(&f);
}

static void a_refused_upload_still_gets_its_status(void **state) {
        struct buf b = {0};
        struct fixture f;

        open_with(&f, (struct http_limits){.body_bytes = 1000});
        buf_add_str(&b, POST("/park") "Content-Length: 4000000\r\n\r\n");
        buf_add(&b, many(4000000));
        expect_status(&f, buf_slice(&b), "HTTP/1.1 413 ");
        buf_free(&b);
        close_all(&f);
}

static void a_slow_head_is_timed_from_its_first_byte_to_its_end(void **state) {
        struct fixture f;
        struct peer *p;

        open_with(&f, (struct http_limits){.head_ms = 50, .idle_ms = 10000});
        p = peer_connect(&f.net, f.app.port);
        peer_say(p, "GET / HTTP/1.1\r\n");
        while (!peer_ended(p)) {
                /* Drip: each byte would push an idle deadline. */
                peer_say(p, "a");
                net_turn(&f.net, "the end of a slow head");
        }
        assert_true(peer_got(p, "HTTP/1.1 408 "));
        peer_leave(&f.net, p, false);
        close_all(&f);
}

static void a_body_that_stops_is_answered_with_408(void **state) {
        struct fixture f;

        open_with(&f, (struct http_limits){.body_idle_ms = 20});
        expect_status(&f, SLICE_LIT(POST("/echo") "Content-Length: 10\r\n\r\nabc"), "HTTP/1.1 408 ");
        assert_int_equal(f.app.ended, 1);
        assert_int_equal(f.app.last_end, HTTP_END_STALLED);
        close_all(&f);
}

static void on_drip(uv_timer_t *timer) {
        struct peer *p = timer->data;

        if (!peer_ended(p))
                peer_say(p, "x");
}

static void a_dripping_body_is_not_waited_for(void **state) {
        uv_timer_t drip;
        struct fixture f;
        struct peer *p;

        open_with(&f, (struct http_limits){.body_idle_ms = 50});
        p = peer_connect(&f.net, f.app.port);
        peer_say(p, POST("/echo") "Content-Length: 1000000\r\n\r\n");
        uv_timer_init(&f.net.loop, &drip);
        drip.data = p;
        uv_timer_start(&drip, on_drip, 1, 5);
        UNTIL(&f.net, peer_ended(p));
        uv_close((uv_handle_t *)&drip, NULL);
        assert_true(peer_got(p, "HTTP/1.1 408 "));
        assert_int_equal(f.app.last_end, HTTP_END_STALLED);
        peer_leave(&f.net, p, false);
        close_all(&f);
}

static void an_idle_connection_is_closed_without_a_word(void **state) {
        struct fixture f;
        struct peer *p, *q;

        open_with(&f, (struct http_limits){.idle_ms = 20});
        p = peer_connect(&f.net, f.app.port);
        q = peer_connect(&f.net, f.app.port);
        peer_say(q, GET("/hello"));
        UNTIL(&f.net, peer_ended(p) && peer_ended(q));
        assert_true(p->eof && q->eof);
        assert_int_equal(p->in.len, 0);
        assert_int_equal(peer_count(q, "HTTP/1.1 "), 1);
        peer_leave(&f.net, p, false);
        peer_leave(&f.net, q, false);
        close_all(&f);
}

static void a_request_in_work_has_no_deadline_of_ours(void **state) {
        struct fixture f;
        struct peer *p, *q;

        open_with(&f, (struct http_limits){.idle_ms = 20, .head_ms = 20, .body_idle_ms = 20, .stall_ms = 20});
        p = peer_connect(&f.net, f.app.port);
        peer_say(p, GET("/park"));
        UNTIL(&f.net, f.app.x);
        /* Another connection idles out three times meanwhile. */
        for (int i = 0; i < 3; i++) {
                q = peer_connect(&f.net, f.app.port);
                UNTIL(&f.net, peer_ended(q));
                peer_leave(&f.net, q, false);
        }
        assert_int_equal(f.app.ended, 0);
        http_respond(f.app.x, 200, (struct http_fields){0}, SLICE_LIT("late"));
        UNTIL(&f.net, peer_got(p, "late"));
        peer_leave(&f.net, p, false);
        close_all(&f);
}

/* ---- Expect --------------------------------------------------------------------------------------------------- */

static void continue_is_said_when_the_body_is_wanted(void **state) {
        struct fixture f;
        struct peer *p;

        open_plain(&f);
        p = peer_connect(&f.net, f.app.port);
        peer_say(p, POST("/echo") "Expect: 100-continue\r\nContent-Length: 4\r\n\r\n");
        UNTIL(&f.net, peer_got(p, "HTTP/1.1 100 Continue\r\n\r\n"));
        peer_say(p, "body");
        UNTIL(&f.net, peer_got(p, "\r\n\r\nbody"));
        peer_say(p, GET("/hello"));
        UNTIL(&f.net, peer_got(p, "hello"));
        peer_leave(&f.net, p, false);
        close_all(&f);
}

static void continue_is_not_said_when_the_answer_is_there(void **state) {
        struct fixture f;

        open_plain(&f);
        expect_status(
            &f, SLICE_LIT(POST("/hello") "Expect: 100-continue\r\nContent-Length: 4\r\n\r\n"), "HTTP/1.1 200 OK\r\n");
        close_all(&f);
}

static void continue_waits_until_the_handler_wants_the_body(void **state) {
        struct http_exchange_callbacks callbacks = {
            .on_body = app_on_body, .on_body_end = app_on_body_end, .on_end = app_on_end};
        struct fixture f;
        struct peer *p;

        open_plain(&f);
        p = peer_connect(&f.net, f.app.port);
        peer_say(p, POST("/ignore") "Expect: 100-continue\r\nContent-Length: 4\r\n\r\n");
        UNTIL(&f.net, f.app.x);
        for (int i = 0; i < 5; i++)
                uv_run(&f.net.loop, UV_RUN_NOWAIT);
        assert_int_equal(p->in.len, 0);
        http_exchange_watch(f.app.x, &callbacks, &f.app);
        UNTIL(&f.net, peer_got(p, "HTTP/1.1 100 Continue\r\n\r\n"));
        peer_say(p, "body");
        UNTIL(&f.net, f.app.body_ends);
        http_respond(f.app.x, 200, (struct http_fields){0}, SLICE_LIT("done"));
        UNTIL(&f.net, peer_got(p, "done"));
        peer_leave(&f.net, p, false);
        close_all(&f);
}

static void a_body_that_is_asked_for_late_has_its_deadline(void **state) {
        struct fixture f;
        struct peer *p;

        open_with(&f, (struct http_limits){.body_idle_ms = 20});
        p = peer_connect(&f.net, f.app.port);
        peer_say(p, POST("/ignore") "Expect: 100-continue\r\nContent-Length: 4\r\n\r\n");
        UNTIL(&f.net, f.app.x);
        http_exchange_collect(f.app.x, app_on_all);
        UNTIL(&f.net, peer_got(p, "HTTP/1.1 100 Continue\r\n\r\n"));
        UNTIL(&f.net, peer_got(p, "HTTP/1.1 408 "));
        assert_int_equal(f.app.last_end, HTTP_END_STALLED);
        peer_leave(&f.net, p, false);
        close_all(&f);
}

static void an_unwanted_short_body_is_dropped_and_the_connection_kept(void **state) {
        struct fixture f;
        struct peer *p;

        open_plain(&f);
        p = peer_connect(&f.net, f.app.port);
        peer_say(p, POST("/nothing") "Content-Length: 10\r\n\r\n12345");
        UNTIL(&f.net, peer_got(p, "nothing here"));
        peer_say(p, "67890" GET("/hello"));
        UNTIL(&f.net, peer_got(p, "hello"));
        assert_false(peer_got(p, "Connection: close"));
        peer_leave(&f.net, p, false);
        close_all(&f);
}

/* ---- disconnects ---------------------------------------------------------------------------------------------- */

/* Bring a connection into a state, then leave by FIN or by RST. Every exchange that began must end, once. */
static void leave_in(const char *bytes, bool parks, bool answers, bool pauses, bool reset) {
        struct fixture f;
        struct peer *p;

        open_plain(&f);
        p = peer_connect(&f.net, f.app.port);
        if (*bytes)
                peer_say(p, bytes);
        UNTIL(&f.net, http_server_connections(f.app.server) == 1 && p->stream.write_queue_size == 0);
        if (parks)
                UNTIL(&f.net, f.app.x);
        if (answers) {
                http_begin(f.app.x, 200, (struct http_fields){0}, HTTP_LENGTH_CHUNKED);
                http_send(f.app.x, &SLICE_LIT("part"), 1);
                UNTIL(&f.net, peer_got(p, "part"));
        }
        if (pauses) {
                http_exchange_pause(f.app.x);
                uv_run(&f.net.loop, UV_RUN_NOWAIT);
        }
        peer_leave(&f.net, p, reset);
        UNTIL(&f.net, http_server_connections(f.app.server) == 0);
        assert_int_equal(f.app.ended, f.app.requests);
        assert_int_equal(f.app.requests, parks);
        if (parks)
                assert_int_equal(f.app.last_end, HTTP_END_CLIENT_GONE);
        close_all(&f);
}

static void a_client_that_leaves_is_noticed_in_every_state(void **state) {
        for (int reset = 0; reset < 2; reset++) {
                leave_in("", false, false, false, reset);
                leave_in("GET / HT", false, false, false, reset);
                leave_in(GET("/park"), true, false, false, reset);
                leave_in(GET("/park"), true, false, true, reset);
                leave_in(GET("/park"), true, true, false, reset);
                leave_in(GET("/park"), true, true, true, reset);
                leave_in(GET("/park") GET("/hello"), true, false, false, reset);
                leave_in(POST("/park") "Content-Length: 9\r\n\r\nabc", true, false, false, reset);
                leave_in(POST("/park") "Content-Length: 9\r\n\r\nabc", true, false, true, reset);
                leave_in(POST("/park") "Content-Length: 9\r\n\r\nabc", true, true, false, reset);
                leave_in(POST("/park") "Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n", true, true, false, reset);
                leave_in(
                    POST("/ignore") "Expect: 100-continue\r\nContent-Length: 9\r\n\r\n", true, false, false, reset);
        }
}

static void writing_to_a_client_that_left_says_so_and_ends_once(void **state) {
        struct fixture f;
        struct peer *p;
        int r = 0;

        open_plain(&f);
        p = peer_connect(&f.net, f.app.port);
        peer_say(p, GET("/park"));
        UNTIL(&f.net, f.app.x);
        http_begin(f.app.x, 200, (struct http_fields){0}, HTTP_LENGTH_CHUNKED);
        uv_tcp_close_reset(&p->tcp, peer_on_closed);
        /* The reset is in the socket, but the loop has not turned. */
        while (r >= 0)
                r = http_send(f.app.x, &SLICE_LIT("part"), 1);
        assert_int_equal(r, -EPIPE);
        assert_int_equal(f.app.ended, 0);
        assert_int_equal(http_finish(f.app.x), -EPIPE);
        UNTIL(&f.net, f.app.ended && p->closed);
        assert_int_equal(f.app.last_end, HTTP_END_CLIENT_GONE);
        UNTIL(&f.net, http_server_connections(f.app.server) == 0);
        assert_int_equal(f.app.ended, 1);
        free(p);
        close_all(&f);
}

static void an_abort_shows_the_client_that_something_is_missing(void **state) {
        struct fixture f;
        struct peer *p;

        open_plain(&f);
        p = peer_connect(&f.net, f.app.port);
        peer_say(p, "GET /park HTTP/1.0\r\n\r\n");
        UNTIL(&f.net, f.app.x);
        http_begin(f.app.x, 200, (struct http_fields){0}, HTTP_LENGTH_CHUNKED);
        http_send(f.app.x, &SLICE_LIT("part"), 1);
        UNTIL(&f.net, peer_got(p, "part"));
        http_exchange_abort(f.app.x);
        assert_int_equal(f.app.ended, 0);
        UNTIL(&f.net, f.app.ended && peer_ended(p));
        assert_int_equal(f.app.last_end, HTTP_END_ABORTED);
        assert_int_equal(p->error, UV_ECONNRESET);
        peer_leave(&f.net, p, false);
        close_all(&f);
}

/* ---- back-pressure -------------------------------------------------------------------------------------------- */

static void a_reader_that_stalls_stops_the_writer(void **state) {
        struct http_limits limits = {.write_high = 64 << 10, .write_low = 16 << 10};
        struct slice piece = many(16 << 10);
        size_t written = 0, total;
        struct fixture f;
        struct peer *p;
        int r = 0;

        open_with(&f, limits);
        p = peer_connect(&f.net, f.app.port);
        peer_say(p, GET("/park"));
        UNTIL(&f.net, f.app.x);
        peer_stop_reading(p);
        http_begin(f.app.x, 200, (struct http_fields){0}, HTTP_LENGTH_CHUNKED);
        while (r == 0) {
                r = http_send(f.app.x, &piece, 1);
                written += piece.len;
                uv_run(&f.net.loop, UV_RUN_NOWAIT);
        }
        assert_int_equal(r, 1);
        /* What the kernel took, and the high mark, and one piece. */
        total = written;
        assert_int_equal(f.app.writables, 0);
        peer_read(p);
        UNTIL(&f.net, f.app.writables == 1);
        http_finish(f.app.x);
        UNTIL(&f.net, f.app.ended && peer_got(p, "\r\n0\r\n\r\n"));
        assert_int_equal(peer_count(p, "4000\r\nxxxx"), total / piece.len);
        peer_leave(&f.net, p, false);
        close_all(&f);
}

static void a_client_that_takes_nothing_is_given_up(void **state) {
        struct slice piece = many(64 << 10);
        struct fixture f;
        struct peer *p;

        open_with(&f, (struct http_limits){.stall_ms = 30});
        p = peer_connect(&f.net, f.app.port);
        peer_say(p, GET("/park"));
        UNTIL(&f.net, f.app.x);
        peer_stop_reading(p);
        http_begin(f.app.x, 200, (struct http_fields){0}, HTTP_LENGTH_CHUNKED);
        while (http_send(f.app.x, &piece, 1) == 0)
                ;
        UNTIL(&f.net, f.app.ended);
        assert_int_equal(f.app.last_end, HTTP_END_STALLED);
        UNTIL(&f.net, http_server_connections(f.app.server) == 0);
        peer_leave(&f.net, p, false);
        close_all(&f);
}

static void a_paused_handler_stops_the_sender_and_loses_nothing(void **state) {
        size_t total = 16u << 20, before;
        struct fixture f;
        struct peer *p;
        char head[128];

        open_plain(&f);
        p = peer_connect(&f.net, f.app.port);
        snprintf(head, sizeof(head), POST("/park") "Content-Length: %zu\r\n\r\n", total);
        peer_say(p, head);
        UNTIL(&f.net, f.app.x);
        http_exchange_pause(f.app.x);
        peer_send(p, many(total));
        for (int i = 0; i < 50; i++)
                uv_run(&f.net.loop, UV_RUN_NOWAIT);
        /* The sender is stuck: the kernel's buffers are full and nobody reads. */
        assert_int_equal(f.app.body.len, 0);
        assert_true(p->stream.write_queue_size > 0);
        http_exchange_resume(f.app.x);
        UNTIL(&f.net, f.app.body.len > 1u << 20);
        http_exchange_pause(f.app.x);
        uv_run(&f.net.loop, UV_RUN_NOWAIT);
        before = f.app.body.len;
        for (int i = 0; i < 20; i++)
                uv_run(&f.net.loop, UV_RUN_NOWAIT);
        assert_int_equal(f.app.body.len, before);
        http_exchange_resume(f.app.x);
        UNTIL(&f.net, f.app.body_ends);
        assert_int_equal(f.app.body.len, total);
        http_respond(f.app.x, 200, (struct http_fields){0}, SLICE_LIT("done"));
        UNTIL(&f.net, peer_got(p, "done"));
        peer_leave(&f.net, p, false);
        close_all(&f);
}

int main(void) {
        const struct CMUnitTest tests[] = {
            cmocka_unit_test(a_request_is_answered_and_the_connection_kept),
            cmocka_unit_test(pipelined_requests_are_answered_in_order),
            cmocka_unit_test(a_pipelined_request_waits_for_the_answer_before_it),
            cmocka_unit_test(too_much_pipelined_closes_after_the_current_answer),
            cmocka_unit_test(head_has_the_fields_of_get_and_no_body),
            cmocka_unit_test(http10_is_closed_unless_it_asks_to_be_kept),
            cmocka_unit_test(a_stream_to_http10_ends_with_the_connection),
            cmocka_unit_test(a_head_leaves_with_the_first_bytes_of_its_body),
            cmocka_unit_test(a_body_shorter_than_promised_is_not_passed_off_as_whole),
            cmocka_unit_test(unsafe_fields_and_statuses_are_refused),
            cmocka_unit_test(framing_fields_of_a_relayed_answer_are_left_out),
            cmocka_unit_test(each_limit_is_answered_with_its_status),
            cmocka_unit_test(a_refused_upload_still_gets_its_status),
            cmocka_unit_test(a_slow_head_is_timed_from_its_first_byte_to_its_end),
            cmocka_unit_test(a_body_that_stops_is_answered_with_408),
            cmocka_unit_test(a_dripping_body_is_not_waited_for),
            cmocka_unit_test(an_idle_connection_is_closed_without_a_word),
            cmocka_unit_test(a_request_in_work_has_no_deadline_of_ours),
            cmocka_unit_test(continue_is_said_when_the_body_is_wanted),
            cmocka_unit_test(continue_is_not_said_when_the_answer_is_there),
            cmocka_unit_test(continue_waits_until_the_handler_wants_the_body),
            cmocka_unit_test(a_body_that_is_asked_for_late_has_its_deadline),
            cmocka_unit_test(an_unwanted_short_body_is_dropped_and_the_connection_kept),
            cmocka_unit_test(a_client_that_leaves_is_noticed_in_every_state),
            cmocka_unit_test(writing_to_a_client_that_left_says_so_and_ends_once),
            cmocka_unit_test(an_abort_shows_the_client_that_something_is_missing),
            cmocka_unit_test(a_reader_that_stalls_stops_the_writer),
            cmocka_unit_test(a_client_that_takes_nothing_is_given_up),
            cmocka_unit_test(a_paused_handler_stops_the_sender_and_loses_nothing),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
