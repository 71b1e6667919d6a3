/* test_tls.c - TLS on both sides, with certificates made here. */
#include "certificate.h"
#include "client_calls.h"
#include "http/tls.h"
#include <sys/stat.h>

static char dir[] = "/tmp/baton-test-tls-XXXXXX";
static char cert_path[64], key_path[64], other_cert_path[64], other_key_path[64];

static int make_files(void **state) {
        assert_non_null(mkdtemp(dir));
        snprintf(cert_path, sizeof(cert_path), "%s/cert.pem", dir);
        snprintf(key_path, sizeof(key_path), "%s/key.pem", dir);
        snprintf(other_cert_path, sizeof(other_cert_path), "%s/other.pem", dir);
        snprintf(other_key_path, sizeof(other_key_path), "%s/other-key.pem", dir);
        make_certificate(cert_path, key_path, "DNS:localhost,IP:127.0.0.1");
        make_certificate(other_cert_path, other_key_path, "DNS:elsewhere.example");
        return 0;
}

static int remove_files(void **state) {
        unlink(cert_path);
        unlink(key_path);
        unlink(other_cert_path);
        unlink(other_key_path);
        rmdir(dir);
        return 0;
}

struct fixture {
        struct net net;
        struct app app;
        struct http_client *client;
        struct arena arena;
        struct http_endpoint to;
        struct record r[3];
};

static void open_with(struct fixture *f, struct http_server_options server, struct http_client_options client) {
        memset(f, 0, sizeof(*f));
        net_open(&f->net);
        app_open(&f->app, &f->net, server, "127.0.0.1");
        assert_int_equal(http_client_new(&f->net.loop, &client, &f->client, NULL), 0);
        f->to = endpoint_of(&f->arena, "https://127.0.0.1:%u", f->app.port);
}

static void close_all(struct fixture *f) {
        client_close(&f->net, f->client);
        app_close(&f->app);
        for (size_t i = 0; i < 3; i++)
                record_free(&f->r[i]);
        arena_free(&f->arena);
        net_close(&f->net);
}

static struct http_server_options tls_server(void) {
        return (struct http_server_options){.tls = {.cert = cert_path, .key = key_path}};
}

static struct http_request get(const char *target) {
        return (struct http_request){.target = slice_str(target)};
}

/* TLS over a plain peer, for a side of the talk that says exactly what the test wants. */
struct tls_peer {
        struct peer *p;
        struct http_tls *tls; /* the peer's own */
        struct buf in;        /* decrypted */
        bool ready, ended;    /* handshake done; close_notify has come */
};

static void tls_peer_flush(struct tls_peer *t) {
        if (http_tls_pending(t->tls).len)
                peer_send(t->p, http_tls_pending(t->tls));
        http_tls_sent(t->tls);
}

/* Turn the loop once and take in what has come. */
static void tls_peer_turn(struct net *n, struct tls_peer *t, const char *wanted) {
        char bytes[4096];
        ssize_t got;

        net_turn(n, wanted);
        assert_int_equal(http_tls_put(t->tls, buf_slice(&t->p->in)), 0);
        buf_reset(&t->p->in);
        if (!t->ready)
                t->ready = http_tls_handshake(t->tls) == 1;
        while (t->ready && (got = http_tls_read(t->tls, bytes, sizeof(bytes))) != 0 && !t->ended) {
                t->ended = got == -EPIPE;
                assert_true(got > 0 || t->ended);
                if (got > 0)
                        buf_append(&t->in, bytes, (size_t)got);
        }
        tls_peer_flush(t);
}

#define TLS_UNTIL(net, peer, condition)                                                                                \
        do {                                                                                                           \
                while (!(condition))                                                                                   \
                        tls_peer_turn((net), (peer), #condition);                                                      \
        } while (0)

static void tls_peer_say(struct tls_peer *t, const char *text) {
        assert_int_equal(http_tls_write(t->tls, slice_str(text)), 0);
        tls_peer_flush(t);
}

static bool tls_peer_got(const struct tls_peer *t, const char *text) {
        return slice_find_slice(buf_slice(&t->in), slice_str(text), 0) < t->in.len;
}

static void tls_peer_free(struct tls_peer *t) {
        http_tls_free(t->tls);
        buf_free(&t->in);
}

static void bodies_pass_both_ways_and_the_connection_is_kept(void **state) {
        struct slice body = many(3 << 20);
        struct http_request echo = {
            .method = HTTP_METHOD_POST, .target = SLICE_LIT("/echo"), .body = &body, .body_parts = 1};
        struct fixture f;

        open_with(&f, tls_server(), (struct http_client_options){.tls_ca = cert_path});
        call_begin(f.client, &f.r[0], f.to, echo);
        UNTIL(&f.net, f.r[0].ends);
        assert_string_equal(f.r[0].why.ptr, "complete");
        assert_int_equal(f.r[0].body.len, body.len);
        assert_memory_equal(f.r[0].body.ptr, body.ptr, body.len);
        call_begin(f.client, &f.r[1], f.to, get("/hello"));
        UNTIL(&f.net, f.r[1].ends);
        assert_string_equal(buf_cstr(&f.r[1].body), "hello");
        assert_true(f.r[1].reused);
        assert_int_equal(http_server_connections(f.app.server), 1);
        close_all(&f);
}

static void a_name_is_checked_against_the_certificate(void **state) {
        struct fixture f;

        open_with(&f, tls_server(), (struct http_client_options){.tls_ca = cert_path});
        call_begin(f.client, &f.r[0], endpoint_of(&f.arena, "https://localhost:%u", f.app.port), get("/hello"));
        UNTIL(&f.net, f.r[0].ends);
        assert_string_equal(buf_cstr(&f.r[0].body), "hello");
        close_all(&f);
        open_with(&f, (struct http_server_options){.tls = {.cert = other_cert_path, .key = other_key_path}},
            (struct http_client_options){.tls_ca = other_cert_path});
        call_begin(f.client, &f.r[0], f.to, get("/hello"));
        call_begin(f.client, &f.r[1], endpoint_of(&f.arena, "https://localhost:%u", f.app.port), get("/hello"));
        UNTIL(&f.net, f.r[0].ends && f.r[1].ends);
        assert_int_equal(f.r[0].failure, HTTP_FAIL_CONNECT);
        assert_non_null(strstr(f.r[0].why.ptr, "IP address mismatch"));
        assert_int_equal(f.r[1].failure, HTTP_FAIL_CONNECT);
        assert_non_null(strcasestr(f.r[1].why.ptr, "hostname mismatch"));
        assert_int_equal(f.app.requests, 0);
        close_all(&f);
}

static void an_unknown_signer_is_refused_unless_verifying_is_off(void **state) {
        struct fixture f;

        open_with(&f, tls_server(), (struct http_client_options){0});
        call_begin(f.client, &f.r[0], f.to, get("/hello"));
        UNTIL(&f.net, f.r[0].ends);
        assert_int_equal(f.r[0].failure, HTTP_FAIL_CONNECT);
        assert_non_null(strstr(f.r[0].why.ptr, "certificate: self-signed certificate"));
        assert_int_equal(f.r[0].connected, 0);
        close_all(&f);
        open_with(&f, tls_server(), (struct http_client_options){.tls_verify_off = true});
        call_begin(f.client, &f.r[0], f.to, get("/hello"));
        UNTIL(&f.net, f.r[0].ends);
        assert_string_equal(buf_cstr(&f.r[0].body), "hello");
        close_all(&f);
}

static void a_client_without_the_certificate_that_is_asked_for_gets_nothing(void **state) {
        struct http_server_options options = tls_server();
        struct fixture f;

        options.tls.client_ca = other_cert_path;
        open_with(&f, options, (struct http_client_options){.tls_ca = cert_path});
        call_begin(f.client, &f.r[0], f.to, get("/hello"));
        UNTIL(&f.net, f.r[0].ends);
        assert_int_not_equal(f.r[0].failure, HTTP_OK);
        assert_int_equal(f.app.requests, 0);
        UNTIL(&f.net, http_server_connections(f.app.server) == 0);
        close_all(&f);
}

static void plain_and_tls_do_not_understand_each_other(void **state) {
        struct fixture f;
        struct peer *p;

        open_with(&f, tls_server(), (struct http_client_options){0});
        p = peer_connect(&f.net, f.app.port);
        peer_say(p, "GET / HTTP/1.1\r\nHost: a\r\n\r\n");
        UNTIL(&f.net, peer_ended(p));
        assert_false(peer_got(p, "HTTP/"));
        peer_leave(&f.net, p, false);
        close_all(&f);
        open_with(&f, (struct http_server_options){0}, (struct http_client_options){0});
        call_begin(f.client, &f.r[0], f.to, get("/hello"));
        UNTIL(&f.net, f.r[0].ends);
        assert_int_equal(f.r[0].failure, HTTP_FAIL_CONNECT);
        assert_non_null(strstr(f.r[0].why.ptr, "wrong version number"));
        close_all(&f);
}

static void a_handshake_that_does_not_come_is_not_waited_for(void **state) {
        struct http_server_options options = tls_server();
        struct http_request request = get("/");
        struct backend silent;
        struct fixture f;
        struct peer *p;

        options.limits.head_ms = 30;
        open_with(&f, options, (struct http_client_options){0});
        p = peer_connect(&f.net, f.app.port);
        UNTIL(&f.net, peer_ended(p));
        peer_leave(&f.net, p, false);
        backend_open(&f.net, &silent);
        request.deadlines.connect_ms = 30;
        call_begin(f.client, &f.r[0], endpoint_of(&f.arena, "https://127.0.0.1:%u", silent.port), request);
        UNTIL(&f.net, f.r[0].ends);
        assert_int_equal(f.r[0].failure, HTTP_FAIL_CONNECT);
        backend_close(&f.net, &silent);
        close_all(&f);
}

static void back_pressure_reaches_through_tls(void **state) {
        struct slice piece = many(64 << 10);
        size_t pieces = 0;
        struct fixture f;
        int r = 0;

        open_with(&f, tls_server(), (struct http_client_options){.tls_ca = cert_path});
        f.r[0].pause_at_head = true;
        call_begin(f.client, &f.r[0], f.to, get("/park"));
        UNTIL(&f.net, f.app.x);
        http_begin(f.app.x, 200, (struct http_fields){0}, HTTP_LENGTH_CHUNKED);
        while (r == 0) {
                r = http_send(f.app.x, &piece, 1);
                pieces++;
                uv_run(&f.net.loop, UV_RUN_NOWAIT);
        }
        assert_int_equal(r, 1);
        for (int i = 0; i < 20; i++)
                uv_run(&f.net.loop, UV_RUN_NOWAIT);
        assert_int_equal(f.app.writables, 0);
        assert_int_equal(f.r[0].body.len, 0);
        http_call_resume(f.r[0].call);
        UNTIL(&f.net, f.app.writables);
        http_finish(f.app.x);
        UNTIL(&f.net, f.r[0].ends);
        assert_int_equal(f.r[0].failure, HTTP_OK);
        assert_int_equal(f.r[0].body.len, pieces * piece.len);
        close_all(&f);
}

/* Answers whose end comes in one piece with their head, to a call that pauses there, and then perhaps at every piece. */
static void ends_while_paused(struct http_tls_context *context, const char *head, const char *body,
    enum http_failure failure, bool pause_at_body) {
        struct tls_peer t = {0};
        struct backend backend;
        struct fixture f;

        open_with(&f, (struct http_server_options){0}, (struct http_client_options){.tls_ca = cert_path});
        backend_open(&f.net, &backend);
        f.r[0].pause_at_head = true;
        f.r[0].pause_at_body = pause_at_body;
        call_begin(f.client, &f.r[0], endpoint_of(&f.arena, "https://127.0.0.1:%u", backend.port), get("/"));
        UNTIL(&f.net, backend.count == 1);
        t = (struct tls_peer){.p = backend.peers[0], .tls = http_tls_accept(context)};
        TLS_UNTIL(&f.net, &t, tls_peer_got(&t, "\r\n\r\n"));
        assert_int_equal(http_tls_write(t.tls, slice_str(head)), 0);
        assert_int_equal(http_tls_write(t.tls, slice_str(body)), 0);
        http_tls_shutdown(t.tls);
        tls_peer_flush(&t);
        backend_drop(&f.net, &backend, 0, false);
        UNTIL(&f.net, f.r[0].heads);
        for (int i = 0; i < 20; i++)
                uv_run(&f.net.loop, UV_RUN_NOWAIT);
        assert_int_equal(f.r[0].ends, 0);
        assert_int_equal(f.r[0].body.len, 0);
        while (!f.r[0].ends) {
                http_call_resume(f.r[0].call);
                net_turn(&f.net, "the end of a resumed call");
        }
        assert_int_equal(f.r[0].failure, failure);
        assert_string_equal(buf_cstr(&f.r[0].body), "body");
        tls_peer_free(&t);
        backend_close(&f.net, &backend);
        close_all(&f);
}

static void a_peer_that_ends_while_we_pause_has_said_everything(void **state) {
        static const struct {
                const char *head, *body;
                enum http_failure failure;
        } cases[] = {
            {"HTTP/1.1 200 OK\r\n\r\n", "body", HTTP_OK},
            {"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n", "body", HTTP_OK},
            {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", "2\r\nbo\r\n2\r\ndy\r\n0\r\n\r\n", HTTP_OK},
            {"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", "body", HTTP_FAIL_TRUNCATED},
            {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", "4\r\nbody\r\n", HTTP_FAIL_TRUNCATED},
        };
        struct http_tls_files files = {.cert = cert_path, .key = key_path};
        struct http_tls_context *context;

        assert_int_equal(http_tls_context_server(&files, &context, NULL), 0);
        for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++)
                for (int pause_at_body = 0; pause_at_body < 2; pause_at_body++)
                        ends_while_paused(context, cases[i].head, cases[i].body, cases[i].failure, pause_at_body);
        http_tls_context_free(context);
}

static void a_call_paused_before_it_is_connected_shakes_hands_all_the_same(void **state) {
        struct fixture f;

        open_with(&f, tls_server(), (struct http_client_options){.tls_ca = cert_path});
        call_begin(f.client, &f.r[0], f.to, get("/hello"));
        http_call_pause(f.r[0].call);
        UNTIL(&f.net, f.app.requests);
        for (int i = 0; i < 20; i++)
                uv_run(&f.net.loop, UV_RUN_NOWAIT);
        assert_int_equal(f.r[0].heads, 0);
        http_call_resume(f.r[0].call);
        UNTIL(&f.net, f.r[0].ends);
        assert_int_equal(f.r[0].failure, HTTP_OK);
        assert_string_equal(buf_cstr(&f.r[0].body), "hello");
        close_all(&f);
}

static void on_wait(uv_timer_t *timer) {
        *(bool *)timer->data = true;
}

/* Let the loop run for so long. */
static void wait_ms(struct net *n, unsigned ms) {
        uv_timer_t timer;
        bool over = false;

        uv_timer_init(&n->loop, &timer);
        timer.data = &over;
        uv_timer_start(&timer, on_wait, ms, 0);
        UNTIL(n, over);
        uv_close((uv_handle_t *)&timer, NULL);
        uv_run(&n->loop, UV_RUN_NOWAIT);
}

/* However long the kept connection took to die, such as behind a long prefill. */
static void a_retry_has_the_whole_time_to_connect(void **state) {
        static const char answer[] = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
        struct http_tls_files files = {.cert = cert_path, .key = key_path};
        struct http_request request = {
            .target = SLICE_LIT("/second"), .retry_stale = true, .deadlines.connect_ms = 2500};
        struct http_tls_context *context;
        struct tls_peer t[2] = {0};
        struct backend backend;
        struct fixture f;

        assert_int_equal(http_tls_context_server(&files, &context, NULL), 0);
        open_with(&f, (struct http_server_options){0}, (struct http_client_options){.tls_ca = cert_path});
        backend_open(&f.net, &backend);
        f.to = endpoint_of(&f.arena, "https://127.0.0.1:%u", backend.port);
        call_begin(f.client, &f.r[0], f.to, get("/"));
        UNTIL(&f.net, backend.count == 1);
        t[0] = (struct tls_peer){.p = backend.peers[0], .tls = http_tls_accept(context)};
        TLS_UNTIL(&f.net, &t[0], tls_peer_got(&t[0], "\r\n\r\n"));
        tls_peer_say(&t[0], answer);
        TLS_UNTIL(&f.net, &t[0], f.r[0].ends);
        call_begin(f.client, &f.r[1], f.to, request);
        TLS_UNTIL(&f.net, &t[0], tls_peer_got(&t[0], "/second"));
        wait_ms(&f.net, request.deadlines.connect_ms + 100);
        backend_drop(&f.net, &backend, 0, true);
        UNTIL(&f.net, backend.count == 2);
        /* The fresh connection's handshake may take a while, too. */
        wait_ms(&f.net, 20);
        assert_int_equal(f.r[1].ends, 0);
        t[1] = (struct tls_peer){.p = backend.peers[1], .tls = http_tls_accept(context)};
        TLS_UNTIL(&f.net, &t[1], tls_peer_got(&t[1], "/second"));
        tls_peer_say(&t[1], answer);
        TLS_UNTIL(&f.net, &t[1], f.r[1].ends);
        assert_int_equal(f.r[1].failure, HTTP_OK);
        for (int i = 0; i < 2; i++)
                tls_peer_free(&t[i]);
        backend_close(&f.net, &backend);
        close_all(&f);
        http_tls_context_free(context);
}

static void leaving_is_noticed_on_both_sides(void **state) {
        struct fixture f;

        open_with(&f, tls_server(), (struct http_client_options){.tls_ca = cert_path});
        call_begin(f.client, &f.r[0], f.to, get("/park"));
        UNTIL(&f.net, f.app.x);
        http_call_abort(f.r[0].call);
        UNTIL(&f.net, f.app.ended);
        assert_int_equal(f.app.last_end, HTTP_END_CLIENT_GONE);
        call_begin(f.client, &f.r[1], f.to, get("/park"));
        UNTIL(&f.net, f.app.x);
        http_begin(f.app.x, 200, (struct http_fields){0}, HTTP_LENGTH_CHUNKED);
        http_send(f.app.x, &SLICE_LIT("part"), 1);
        UNTIL(&f.net, f.r[1].body.len);
        http_exchange_abort(f.app.x);
        UNTIL(&f.net, f.r[1].ends);
        assert_int_equal(f.r[1].failure, HTTP_FAIL_TRUNCATED);
        close_all(&f);
}

/* A client that takes the end of the connection for the end of the body must know it from an attacker's (RFC 8446 6.1). */
static void a_stream_to_http10_ends_with_close_notify(void **state) {
        struct http_tls_context *context;
        struct tls_peer t = {0};
        struct fixture f;

        assert_int_equal(http_tls_context_client(NULL, true, &context, NULL), 0);
        open_with(&f, tls_server(), (struct http_client_options){0});
        t.p = peer_connect(&f.net, f.app.port);
        t.tls = http_tls_connect(context, SLICE_LIT("127.0.0.1"));
        assert_int_equal(http_tls_handshake(t.tls), 0);
        tls_peer_flush(&t);
        TLS_UNTIL(&f.net, &t, t.ready);
        tls_peer_say(&t, "GET /park HTTP/1.0\r\n\r\n");
        TLS_UNTIL(&f.net, &t, f.app.x);
        http_begin(f.app.x, 200, (struct http_fields){0}, HTTP_LENGTH_CHUNKED);
        http_send(f.app.x, &SLICE_LIT("part"), 1);
        http_finish(f.app.x);
        TLS_UNTIL(&f.net, &t, peer_ended(t.p));
        assert_true(tls_peer_got(&t, "Connection: close\r\n\r\npart"));
        assert_true(t.ended);
        peer_leave(&f.net, t.p, false);
        tls_peer_free(&t);
        close_all(&f);
        http_tls_context_free(context);
}

static void wrong_files_are_said_by_name(void **state) {
        struct http_tls_files files[] = {{.cert = "/nowhere.pem", .key = key_path},
            {.cert = cert_path, .key = "/nowhere.pem"}, {.cert = cert_path}, {.key = key_path},
            {.client_ca = cert_path}, {.cert = cert_path, .key = other_key_path},
            {.cert = cert_path, .key = key_path, .client_ca = "/nowhere.pem"}};
        struct http_client_options client = {.tls_ca = "/nowhere.pem"};
        struct http_client *c;
        struct error e = {0};
        struct net net;

        net_open(&net);
        for (size_t i = 0; i < sizeof(files) / sizeof(files[0]); i++) {
                struct http_server_options options = {.tls = files[i], .on_request = app_on_request};
                struct http_server *s;

                memset(&e, 0, sizeof(e));
                assert_int_equal(http_server_new(&net.loop, &options, &s, &e), -EINVAL);
                assert_non_null(strstr(e.text, "TLS: "));
        }
        assert_int_equal(http_client_new(&net.loop, &client, &c, &e), -EINVAL);
        assert_non_null(strstr(e.text, "/nowhere.pem"));
        net_close(&net);
}

int main(void) {
        const struct CMUnitTest tests[] = {
            cmocka_unit_test(bodies_pass_both_ways_and_the_connection_is_kept),
            cmocka_unit_test(a_name_is_checked_against_the_certificate),
            cmocka_unit_test(an_unknown_signer_is_refused_unless_verifying_is_off),
            cmocka_unit_test(a_client_without_the_certificate_that_is_asked_for_gets_nothing),
            cmocka_unit_test(plain_and_tls_do_not_understand_each_other),
            cmocka_unit_test(a_handshake_that_does_not_come_is_not_waited_for),
            cmocka_unit_test(back_pressure_reaches_through_tls),
            cmocka_unit_test(a_peer_that_ends_while_we_pause_has_said_everything),
            cmocka_unit_test(a_call_paused_before_it_is_connected_shakes_hands_all_the_same),
            cmocka_unit_test(a_retry_has_the_whole_time_to_connect),
            cmocka_unit_test(leaving_is_noticed_on_both_sides),
            cmocka_unit_test(a_stream_to_http10_ends_with_close_notify),
            cmocka_unit_test(wrong_files_are_said_by_name),
        };

        return cmocka_run_group_tests(tests, make_files, remove_files);
}
