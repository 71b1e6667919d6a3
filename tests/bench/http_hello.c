/* http_hello.c - the smallest server on http/: every GET is answered with the same bytes. For tests/bench/http.sh.
 *
 *   http_hello PORT BYTES [CERT KEY] */
#include "http/http.h"
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>

struct hello {
        struct http_server *server;
        struct slice body;
};

static void on_request(void *context, struct http_exchange *x) {
        struct hello *h = context;
        struct http_field type = {SLICE_LIT("Content-Type"), SLICE_LIT("application/octet-stream")};

        http_respond(x, 200, (struct http_fields){&type, 1}, h->body);
}

static void on_signal(uv_signal_t *signal, int number) {
        struct hello *h = signal->data;

        uv_close((uv_handle_t *)signal, NULL);
        http_server_drain(h->server, 1000, NULL, NULL);
}

int main(int argc, char **argv) {
        struct http_listen at = {.host = "127.0.0.1"};
        struct http_server_options options = {.on_request = on_request};
        struct hello hello = {0};
        struct error e = {0};
        size_t size;
        char *bytes;
        uv_signal_t terminate;
        uv_loop_t loop;

        if (argc != 3 && argc != 5) {
                fprintf(stderr, "usage: http_hello PORT BYTES [CERT KEY]\n");
                return 2;
        }
        at.port = (uint16_t)atoi(argv[1]);
        size = strtoul(argv[2], NULL, 10);
        bytes = malloc(size + 1);
        if (!bytes)
                return 1;
        memset(bytes, 'x', size);
        hello.body = slice_of(bytes, size);
        if (argc == 5)
                options.tls = (struct http_tls_files){.cert = argv[3], .key = argv[4]};
        options.context = &hello;
        uv_loop_init(&loop);
        if (http_server_new(&loop, &options, &hello.server, &e) < 0 ||
            http_server_listen(hello.server, &at, NULL, &e) < 0) {
                fprintf(stderr, "http_hello: %s\n", e.text);
                return 1;
        }
        uv_signal_init(&loop, &terminate);
        terminate.data = &hello;
        uv_signal_start(&terminate, on_signal, SIGTERM);
        uv_run(&loop, UV_RUN_DEFAULT);
        http_server_free(hello.server);
        uv_loop_close(&loop);
        free(bytes);
        return 0;
}
