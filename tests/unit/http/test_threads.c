/* test_threads.c - one loop per thread on one address: they share nothing. For ThreadSanitizer. */
#include "client_calls.h"
#include <pthread.h>

#define THREADS 2
#define CALLS   60

struct worker {
        pthread_t thread;
        uint16_t port;
        struct net net;
        struct app app;
        uv_async_t stop;
        unsigned requests;
};

static void on_stop(uv_async_t *stop) {
        struct worker *w = stop->data;

        uv_close((uv_handle_t *)stop, NULL);
        http_server_drain(w->app.server, 0, app_on_drained, &w->app);
}

static void *serve(void *argument) {
        struct worker *w = argument;

        while (!w->app.drained)
                uv_run(&w->net.loop, UV_RUN_ONCE);
        w->requests = w->app.requests;
        http_server_free(w->app.server);
        net_close(&w->net);
        return NULL;
}

static void loops_on_one_address_share_the_work_and_nothing_else(void **state) {
        struct worker workers[THREADS] = {0};
        struct http_client_options options = {0};
        struct http_client *client;
        struct arena arena = {0};
        struct http_endpoint to;
        unsigned served = 0;
        uint16_t port = 0;
        struct net net;

        for (int i = 0; i < THREADS; i++) {
                struct worker *w = &workers[i];
                struct http_server_options server = {.on_request = app_on_request, .context = &w->app};
                struct http_listen at = {.host = "127.0.0.1", .port = port, .reuse_port = true};

                net_open(&w->net);
                w->app = (struct app){.net = &w->net};
                uv_async_init(&w->net.loop, &w->stop, on_stop);
                w->stop.data = w;
                assert_int_equal(http_server_new(&w->net.loop, &server, &w->app.server, NULL), 0);
                assert_int_equal(http_server_listen(w->app.server, &at, &port, NULL), 0);
        }
        for (int i = 0; i < THREADS; i++)
                assert_int_equal(pthread_create(&workers[i].thread, NULL, serve, &workers[i]), 0);
        net_open(&net);
        http_client_new(&net.loop, &options, &client, NULL);
        to = endpoint_of(&arena, "127.0.0.1:%u", port);
        for (int i = 0; i < CALLS; i++) {
                struct record r[4] = {0};

                /* Some at once, so that several connections are made and kept. */
                for (int k = 0; k < 4; k++)
                        call_begin(client, &r[k], to, (struct http_request){.target = SLICE_LIT("/hello")});
                for (int k = 0; k < 4; k++) {
                        UNTIL(&net, r[k].ends);
                        assert_int_equal(r[k].failure, HTTP_OK);
                        record_free(&r[k]);
                }
        }
        client_close(&net, client);
        for (int i = 0; i < THREADS; i++)
                uv_async_send(&workers[i].stop);
        for (int i = 0; i < THREADS; i++) {
                pthread_join(workers[i].thread, NULL);
                served += workers[i].requests;
        }
        assert_int_equal(served, 4 * CALLS);
        arena_free(&arena);
        net_close(&net);
}

int main(void) {
        const struct CMUnitTest tests[] = {
            cmocka_unit_test(loops_on_one_address_share_the_work_and_nothing_else),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
