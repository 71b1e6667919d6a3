/* test_listen.c - the server's listeners and connections as a whole: accepting, draining, kinds of addresses. */
#include "server_fixture.h"
#include <sys/resource.h>
#include <sys/un.h>

static void connections_beyond_the_limit_wait_until_one_leaves(void **state) {
        struct fixture f;
        struct peer *p[3];

        open_with(&f, (struct http_limits){.connections = 2});
        for (int i = 0; i < 3; i++) {
                p[i] = peer_connect(&f.net, f.app.port);
                peer_say(p[i], GET("/hello"));
        }
        UNTIL(&f.net, peer_got(p[0], "hello") && peer_got(p[1], "hello"));
        for (int i = 0; i < 10; i++)
                uv_run(&f.net.loop, UV_RUN_NOWAIT);
        assert_int_equal(http_server_connections(f.app.server), 2);
        assert_int_equal(p[2]->in.len, 0);
        peer_leave(&f.net, p[0], false);
        UNTIL(&f.net, peer_got(p[2], "hello"));
        peer_leave(&f.net, p[1], false);
        peer_leave(&f.net, p[2], false);
        close_all(&f);
}

static size_t count_in_file(FILE *file, const char *text) {
        struct peer said = {0};
        char bytes[4096];
        size_t n;

        rewind(file);
        while ((n = fread(bytes, 1, sizeof(bytes), file)) > 0)
                buf_append(&said.in, bytes, n);
        n = peer_count(&said, text);
        buf_free(&said.in);
        return n;
}

static void a_full_server_says_so_at_most_once_a_second(void **state) {
        FILE *said = tmpfile();
        struct log log = {.fd = fileno(said), .level = LOG_WARN};
        struct peer *p[10];
        struct fixture f;
        uint64_t began;

        net_open(&f.net);
        app_open(&f.app, &f.net, (struct http_server_options){.limits = {.connections = 1}, .log = &log}, "127.0.0.1");
        began = uv_now(&f.net.loop);
        for (int i = 0; i < 10; i++) {
                p[i] = peer_connect(&f.net, f.app.port);
                peer_say(p[i], GET("/hello"));
        }
        /* As each one leaves, the next is accepted and the limit is reached again. */
        for (int i = 0; i < 10; i++) {
                UNTIL(&f.net, peer_got(p[i], "hello"));
                peer_leave(&f.net, p[i], false);
        }
        assert_in_range(count_in_file(said, "accepting pauses"), 1, 1 + (uv_now(&f.net.loop) - began) / 1000);
        fclose(said);
        close_all(&f);
}

static void accepting_without_descriptors_waits_and_does_not_spin(void **state) {
        struct rlimit saved, tight;
        struct fixture f;
        struct peer *p;
        uint64_t turns, end;
        int probe;

        open_plain(&f);
        p = peer_connect(&f.net, f.app.port);
        UNTIL(&f.net, http_server_connections(f.app.server) == 1);
        peer_leave(&f.net, p, false);
        UNTIL(&f.net, http_server_connections(f.app.server) == 0);
        getrlimit(RLIMIT_NOFILE, &saved);
        p = peer_new();
        uv_tcp_init_ex(&f.net.loop, &p->tcp, AF_INET);
        probe = dup(0);
        close(probe);
        /* The next descriptor would be `probe`: from now on there is none. */
        tight = (struct rlimit){.rlim_cur = (rlim_t)probe, .rlim_max = saved.rlim_max};
        setrlimit(RLIMIT_NOFILE, &tight);
        p->stream.data = p->connect.data = p;
        {
                struct sockaddr_in address;

                uv_ip4_addr("127.0.0.1", f.app.port, &address);
                uv_tcp_connect(&p->connect, &p->tcp, (struct sockaddr *)&address, peer_on_connect);
        }
        UNTIL(&f.net, p->connected);
        peer_say(p, GET("/hello"));
        turns = f.net.turns;
        end = uv_hrtime() + 350000000;
        while (uv_hrtime() < end)
                net_turn(&f.net, "a wait without descriptors");
        assert_int_equal(http_server_connections(f.app.server), 0);
        assert_true(f.net.turns - turns < 50);
        setrlimit(RLIMIT_NOFILE, &saved);
        UNTIL(&f.net, peer_got(p, "hello"));
        peer_leave(&f.net, p, false);
        close_all(&f);
}

static void draining_finishes_what_is_in_flight_and_closes_the_rest(void **state) {
        struct fixture f;
        struct peer *idle, *busy, *begun;

        open_plain(&f);
        idle = peer_connect(&f.net, f.app.port);
        peer_say(idle, GET("/hello"));
        busy = peer_connect(&f.net, f.app.port);
        peer_say(busy, GET("/park"));
        UNTIL(&f.net, peer_got(idle, "hello") && f.app.x);
        begun = peer_connect(&f.net, f.app.port);
        peer_say(begun, "GET /hello HTTP/1.1\r\n");
        UNTIL(&f.net, http_server_connections(f.app.server) == 3 && begun->stream.write_queue_size == 0);
        for (int i = 0; i < 5; i++)
                uv_run(&f.net.loop, UV_RUN_NOWAIT);
        http_server_drain(f.app.server, 60000, app_on_drained, &f.app);
        UNTIL(&f.net, peer_ended(idle));
        assert_true(idle->eof);
        assert_false(f.app.drained);
        assert_false(peer_ended(busy));
        peer_say(begun, "Host: a\r\n\r\n");
        UNTIL(&f.net, peer_ended(begun));
        assert_true(peer_got(begun, "Connection: close\r\n\r\nhello"));
        http_respond(f.app.x, 200, (struct http_fields){0}, SLICE_LIT("last"));
        UNTIL(&f.net, peer_ended(busy) && f.app.drained);
        assert_true(peer_got(busy, "Connection: close\r\n\r\nlast"));
        assert_int_equal(f.app.last_end, HTTP_END_DONE);
        http_server_free(f.app.server);
        peer_leave(&f.net, idle, false);
        peer_leave(&f.net, busy, false);
        peer_leave(&f.net, begun, false);
        net_close(&f.net);
}

static void a_connection_that_falls_idle_while_draining_is_closed(void **state) {
        struct fixture f;
        struct peer *p;

        open_plain(&f);
        p = peer_connect(&f.net, f.app.port);
        peer_say(p, POST("/nothing") "Content-Length: 10\r\n\r\n12345");
        UNTIL(&f.net, peer_got(p, "nothing here"));
        http_server_drain(f.app.server, 2 * HANG_MS, app_on_drained, &f.app);
        peer_say(p, "67890");
        UNTIL(&f.net, f.app.drained && peer_ended(p));
        assert_true(p->eof);
        http_server_free(f.app.server);
        peer_leave(&f.net, p, false);
        net_close(&f.net);
}

static void a_drain_past_its_deadline_aborts(void **state) {
        struct fixture f;
        struct peer *p;

        open_plain(&f);
        p = peer_connect(&f.net, f.app.port);
        peer_say(p, GET("/park"));
        UNTIL(&f.net, f.app.x);
        http_server_drain(f.app.server, 20, app_on_drained, &f.app);
        UNTIL(&f.net, f.app.drained);
        assert_int_equal(f.app.ended, 1);
        assert_int_equal(f.app.last_end, HTTP_END_ABORTED);
        UNTIL(&f.net, peer_ended(p));
        http_server_free(f.app.server);
        peer_leave(&f.net, p, false);
        net_close(&f.net);
}

static void a_server_that_never_listened_is_freed_without_a_loop_turn(void **state) {
        struct http_server_options options = {.on_request = app_on_request};
        struct http_server *s;
        struct net net;

        net_open(&net);
        assert_int_equal(http_server_new(&net.loop, &options, &s, NULL), 0);
        http_server_free(s);
        net_close(&net);
}

static void a_server_whose_port_is_taken_is_freed_without_a_loop_turn(void **state) {
        struct http_server_options options = {.on_request = app_on_request};
        struct http_listen at = {.host = "127.0.0.1"};
        struct http_server *s;
        struct fixture f;

        open_plain(&f);
        at.port = f.app.port;
        assert_int_equal(http_server_new(&f.net.loop, &options, &s, NULL), 0);
        assert_int_equal(http_server_listen(s, &at, NULL, NULL), -EADDRINUSE);
        http_server_free(s);
        close_all(&f);
}

static void ipv6_is_served_and_named_with_brackets(void **state) {
        struct fixture f;
        struct sockaddr_in6 address;
        struct peer *p;

        net_open(&f.net);
        app_open(&f.app, &f.net, no_options(), "::1");
        p = peer_new();
        uv_ip6_addr("::1", f.app.port, &address);
        uv_tcp_init(&f.net.loop, &p->tcp);
        p->stream.data = p->connect.data = p;
        uv_tcp_connect(&p->connect, &p->tcp, (struct sockaddr *)&address, peer_on_connect);
        UNTIL(&f.net, p->connected || p->error);
        peer_say(p, GET("/peer"));
        UNTIL(&f.net, peer_got(p, "\r\n\r\n[::1]:"));
        peer_leave(&f.net, p, false);
        close_all(&f);
}

static void the_ipv6_wildcard_takes_ipv4_too(void **state) {
        struct fixture f;
        struct peer *p;

        net_open(&f.net);
        app_open(&f.app, &f.net, no_options(), "::");
        p = peer_connect(&f.net, f.app.port);
        peer_say(p, GET("/hello"));
        UNTIL(&f.net, peer_got(p, "hello"));
        peer_leave(&f.net, p, false);
        close_all(&f);
}

static void a_unix_socket_is_served_and_a_stale_file_replaced(void **state) {
        char dir[] = "/tmp/baton-test-http-XXXXXX", path[128], listen[160];
        struct sockaddr_un address = {.sun_family = AF_UNIX};
        struct http_listen at = {.host = listen};
        struct error e = {0};
        struct fixture f;
        struct peer *p;
        int stale;

        assert_non_null(mkdtemp(dir));
        snprintf(path, sizeof(path), "%s/socket", dir);
        snprintf(listen, sizeof(listen), "unix:%s", path);
        /* Left behind by a process that died: bound, never unlinked. */
        stale = socket(AF_UNIX, SOCK_STREAM, 0);
        memcpy(address.sun_path, path, strlen(path));
        assert_int_equal(bind(stale, (struct sockaddr *)&address, sizeof(address)), 0);
        close(stale);
        net_open(&f.net);
        app_open(&f.app, &f.net, no_options(), listen);
        /* A live one is not. */
        assert_int_equal(http_server_listen(f.app.server, &at, NULL, &e), -EADDRINUSE);
        assert_non_null(strstr(e.text, path));
        p = peer_new();
        uv_pipe_init(&f.net.loop, &p->pipe, 0);
        p->stream.data = p->connect.data = p;
        uv_pipe_connect(&p->connect, &p->pipe, path, peer_on_connect);
        UNTIL(&f.net, p->connected || p->error);
        peer_say(p, GET("/peer"));
        UNTIL(&f.net, peer_got(p, "\r\n\r\nunix"));
        peer_leave(&f.net, p, false);
        close_all(&f);
        assert_int_equal(access(path, F_OK), -1);
        rmdir(dir);
}

static void a_port_in_use_is_said_with_its_address(void **state) {
        struct http_listen at = {.host = "127.0.0.1"};
        struct error e = {0};
        struct fixture f;

        open_plain(&f);
        at.port = f.app.port;
        assert_int_equal(http_server_listen(f.app.server, &at, NULL, &e), -EADDRINUSE);
        assert_non_null(strstr(e.text, "127.0.0.1:"));
        at.host = "256.0.0.1";
        assert_int_equal(http_server_listen(f.app.server, &at, NULL, &e), -EINVAL);
        close_all(&f);
}

int main(void) {
        const struct CMUnitTest tests[] = {
            cmocka_unit_test(connections_beyond_the_limit_wait_until_one_leaves),
            cmocka_unit_test(a_full_server_says_so_at_most_once_a_second),
            cmocka_unit_test(accepting_without_descriptors_waits_and_does_not_spin),
            cmocka_unit_test(draining_finishes_what_is_in_flight_and_closes_the_rest),
            cmocka_unit_test(a_connection_that_falls_idle_while_draining_is_closed),
            cmocka_unit_test(a_drain_past_its_deadline_aborts),
            cmocka_unit_test(a_server_that_never_listened_is_freed_without_a_loop_turn),
            cmocka_unit_test(a_server_whose_port_is_taken_is_freed_without_a_loop_turn),
            cmocka_unit_test(ipv6_is_served_and_named_with_brackets),
            cmocka_unit_test(the_ipv6_wildcard_takes_ipv4_too),
            cmocka_unit_test(a_unix_socket_is_served_and_a_stale_file_replaced),
            cmocka_unit_test(a_port_in_use_is_said_with_its_address),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
