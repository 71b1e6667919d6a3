/* test_alloc.c - memory may run out at any allocation: the call says so or the exchange ends, once; nothing leaks (as
 * AddressSanitizer sees), nothing hangs, and afterwards everything works again. */
#include "certificate.h"
#include "client_calls.h"
#include "codec_log.h"
#include "failmalloc.h"
#include "http/fetch.h"
#include "http/sse.h"
#include <dirent.h>
#include <pthread.h>
#include <stdatomic.h>

/* How many allocations after the first failing one fail too: one, a few, all that follow for a while. */
static const long runs[] = {0, 3, 50};

/* Of an exchange. */
#define CALLS         5
#define STREAM_PIECES 8

static int parse_all(enum codec_side side, struct slice bytes, size_t step) {
        struct http_parser_limits limits = codec_limits;
        struct arena arena = {0};
        struct http_parser p;
        struct http_event event = {HTTP_EVENT_MORE, SLICE_NONE};
        int r = 0;

        if (side == CODEC_REQUEST)
                http_parser_init_request(&p, &limits);
        else
                http_parser_init_response(&p, &limits);
        http_parser_begin(&p, &arena);
        for (size_t at = 0; r == 0 && at < bytes.len && event.kind != HTTP_EVENT_END; at += step) {
                struct slice in = slice_sub(bytes, at, at + step);

                do
                        r = http_parser_next(&p, &in, &event);
                while (r == 0 && event.kind != HTTP_EVENT_MORE && event.kind != HTTP_EVENT_END);
        }
        arena_free(&arena);
        return r == 0 && event.kind == HTTP_EVENT_END ? 1 : r;
}

static void a_parser_says_that_memory_is_out(void **state) {
        struct buf b = {0};

        buf_add_str(&b, "POST http://a?q HTTP/1.1\r\nHost: a\r\n");
        for (int i = 0; i < 60; i++)
                buf_printf(&b, "Field-%d: with a value of some length\r\n", i);
        buf_add_str(&b, "Content-Length: 4\r\n\r\nbody");
        for (size_t step = 100; step <= b.len; step += b.len - 100) {
                long n = 0;
                int r;

                do {
                        failmalloc_from(n++, 0);
                        r = parse_all(CODEC_REQUEST, buf_slice(&b), step);
                        failmalloc_off();
                        assert_int_equal(r, failmalloc_failed() ? -ENOMEM : 1);
                } while (failmalloc_failed());
                assert_true(n > 3);
        }
        buf_free(&b);
}

static void a_splitter_says_that_memory_is_out(void **state) {
        struct slice stream = SLICE_LIT("data: a\n\ndata: bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb"
                                        "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb\n\n");
        long n = 0;

        do {
                struct sse *s;
                int r = 0, events = 0;

                failmalloc_from(n++, 0);
                s = sse_new();
                for (size_t at = 0; s && r >= 0 && at < stream.len; at += 10) {
                        struct slice in = slice_sub(stream, at, at + 10), event;

                        while ((r = sse_next(s, &in, &event)) > 0)
                                events++;
                }
                failmalloc_off();
                assert_true(failmalloc_failed() ? !s || r == -ENOMEM : events == 2);
                sse_free(s);
        } while (failmalloc_failed());
        assert_true(n > 2);
}

/* An answer in pieces, more than sockets take. */
static void stream_back(struct http_exchange *x, struct slice body, void *user) {
        int r = http_begin(x, 200, (struct http_fields){0}, HTTP_LENGTH_CHUNKED);

        for (int i = 0; i < STREAM_PIECES && r >= 0; i++)
                r = http_send(x, &body, 1);
        if (r < 0 || http_finish(x) < 0)
                http_exchange_abort(x);
}

static void on_request(void *context, struct http_exchange *x) {
        struct app *a = context;
        struct http_exchange_callbacks callbacks = {.on_end = app_on_end};

        if (!slice_is(http_exchange_request(x)->path, "/stream")) {
                app_on_request(context, x);
                return;
        }
        a->requests++;
        http_exchange_watch(x, &callbacks, a);
        http_exchange_collect(x, stream_back);
}

/* A server and a client, all kinds of exchange between them, with the n-th allocation failing. Returns how many calls
 * came to their full answer. */
static int exchange(long n, long run, struct http_tls_files tls, struct slice big) {
        struct http_server_options server_options = {.on_request = on_request, .tls = tls};
        struct http_client_options client_options = {.tls_verify_off = true};
        struct http_listen at = {.host = "127.0.0.1"};
        struct http_request requests[] = {{.target = SLICE_LIT("/hello")},
            {.method = HTTP_METHOD_POST, .target = SLICE_LIT("/echo"), .body = &big, .body_parts = 1},
            {.method = HTTP_METHOD_POST, .target = SLICE_LIT("/echo"), .streamed = true, .body = &big, .body_parts = 1},
            {.target = SLICE_LIT("/peer"), .retry_stale = true},
            {.method = HTTP_METHOD_POST, .target = SLICE_LIT("/stream"), .body = &big, .body_parts = 1}};
        struct http_client *client = NULL;
        struct record r[CALLS] = {[CALLS - 1].pause_at_head = true};
        struct arena arena = {0};
        struct http_endpoint to;
        struct net net;
        struct app app = {.net = &net};
        int complete = 0;
        bool begun;

        net_open(&net);
        server_options.context = &app;
        failmalloc_from(n, run);
        begun = http_server_new(&net.loop, &server_options, &app.server, NULL) == 0 &&
                http_server_listen(app.server, &at, &app.port, NULL) == 0 &&
                http_client_new(&net.loop, &client_options, &client, NULL) == 0;
        if (begun) {
                char text[64];

                snprintf(text, sizeof(text), "%s://127.0.0.1:%u", tls.cert ? "https" : "http", app.port);
                begun = http_endpoint_parse(&arena, slice_str(text), &to, NULL, NULL) == 0;
        }
        for (int i = 0; begun && i < CALLS; i++) {
                r[i].failure = -1;
                r[i].inside = true;
                if (http_call_start(client, &to, &requests[i], &record_callbacks, &r[i], &r[i].call) < 0) {
                        r[i].inside = false;
                        continue;
                }
                r[i].inside = false;
                if (requests[i].streamed)
                        http_call_send_end(r[i].call);
                UNTIL(&net, r[i].ends || (r[i].heads && r[i].pause_at_head));
                if (!r[i].ends)
                        http_call_resume(r[i].call);
                UNTIL(&net, r[i].ends);
                complete += r[i].failure == HTTP_OK && r[i].status == 200;
        }
        failmalloc_off();
        if (client)
                client_close(&net, client);
        if (app.server)
                app_close(&app);
        assert_int_equal(app.ended, app.requests);
        for (int i = 0; i < CALLS; i++)
                record_free(&r[i]);
        arena_free(&arena);
        net_close(&net);
        return complete;
}

static size_t open_descriptors(void) {
        DIR *dir = opendir("/proc/self/fd");
        size_t count = 0;

        while (readdir(dir))
                count++;
        closedir(dir);
        return count;
}

static void fail_each_allocation(struct http_tls_files tls, struct slice big) {
        size_t descriptors;
        long n = 0;

        /* The libraries' own are opened once. */
        exchange(100000, 0, tls, big);
        descriptors = open_descriptors();
        for (size_t i = 0; i < sizeof(runs) / sizeof(runs[0]); i++) {
                n = 0;
                do
                        exchange(n++, runs[i], tls, big);
                while (failmalloc_failed());
                /* Without a failure all complete. */
                assert_int_equal(exchange(100000, 0, tls, big), CALLS);
        }
        assert_true(n > 20);
        assert_int_equal(open_descriptors(), descriptors);
}

static void an_exchange_survives_any_allocation_that_fails(void **state) {
        fail_each_allocation((struct http_tls_files){0}, many(600 << 10));
}

static void an_exchange_over_tls_survives_any_allocation_that_fails(void **state) {
        char dir[] = "/tmp/baton-test-alloc-XXXXXX", cert[64], key[64];

        assert_non_null(mkdtemp(dir));
        snprintf(cert, sizeof(cert), "%s/cert.pem", dir);
        snprintf(key, sizeof(key), "%s/key.pem", dir);
        make_certificate(cert, key, "IP:127.0.0.1");
        fail_each_allocation((struct http_tls_files){.cert = cert, .key = key}, many(60 << 10));
        unlink(cert);
        unlink(key);
        rmdir(dir);
}

/* ---- the fetcher ---------------------------------------------------------------------------------------------- */

struct keyed { /* a server in a thread of its own, which answers who brings a key */
        int fd;
        uint16_t port;
        pthread_t thread;
        atomic_bool ends;
        atomic_int keyless;
};

static void *answer_keyed(void *arg) {
        static const char answer[] = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok";
        struct keyed *k = arg;
        int fd;

        while ((fd = accept(k->fd, NULL, NULL)) >= 0 && !k->ends) {
                char bytes[16384] = {0};
                size_t len = 0;
                ssize_t n;

                while (!strstr(bytes, "\r\n\r\n{}") && (n = read(fd, bytes + len, sizeof(bytes) - 1 - len)) > 0)
                        len += (size_t)n;
                k->keyless += len && !strstr(bytes, "Authorization: Bearer xxxx");
                (void)!write(fd, answer, sizeof(answer) - 1);
                close(fd);
        }
        close(fd);
        return NULL;
}

static void keyed_open(struct keyed *k) {
        struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
        socklen_t len = sizeof(address);

        *k = (struct keyed){.fd = socket(AF_INET, SOCK_STREAM, 0)};
        assert_int_equal(bind(k->fd, (struct sockaddr *)&address, len), 0);
        assert_int_equal(listen(k->fd, 16), 0);
        getsockname(k->fd, (struct sockaddr *)&address, &len);
        k->port = ntohs(address.sin_port);
        assert_int_equal(pthread_create(&k->thread, NULL, answer_keyed, k), 0);
}

static void keyed_close(struct keyed *k) {
        k->ends = true;
        shutdown(k->fd, SHUT_RDWR);
        pthread_join(k->thread, NULL);
        close(k->fd);
}

static void a_fetch_never_goes_out_without_its_key(void **state) {
        struct slice key = many(5000);                /* has an allocation of its own */
        char url[64], *text = calloc(1, key.len + 1); /* strndup() looks one byte further than it copies */
        struct keyed server;
        long n = 0;

        assert_non_null(text);
        memcpy(text, key.ptr, key.len);
        keyed_open(&server);
        snprintf(url, sizeof(url), "http://127.0.0.1:%u", server.port);
        do {
                struct http_client_options options = {0};
                struct http_fetcher *fetcher = NULL;
                struct http_fetched fetched = {0};
                struct buf body = {0};
                int r;

                failmalloc_from(n++, 0);
                r = http_fetcher_new(&options, &fetcher, NULL);
                if (r == 0)
                        r = http_fetch_url(fetcher, url, "/x", SLICE_LIT("{}"), text, HANG_MS, &body, &fetched, NULL);
                failmalloc_off();
                assert_true(r == 0 ? fetched.status == 200 && slice_is(buf_slice(&body), "ok") : failmalloc_failed());
                http_fetcher_free(fetcher);
                buf_free(&body);
        } while (failmalloc_failed());
        assert_int_equal(server.keyless, 0);
        assert_true(n > 10);
        keyed_close(&server);
        free(text);
}

int main(void) {
        const struct CMUnitTest tests[] = {
            cmocka_unit_test(a_parser_says_that_memory_is_out),
            cmocka_unit_test(a_splitter_says_that_memory_is_out),
            cmocka_unit_test(an_exchange_survives_any_allocation_that_fails),
            cmocka_unit_test(an_exchange_over_tls_survives_any_allocation_that_fails),
            cmocka_unit_test(a_fetch_never_goes_out_without_its_key),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
