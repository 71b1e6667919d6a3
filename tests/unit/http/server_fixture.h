/* server_fixture.h - the small application of net.h on a server of its own loop. */
#pragma once
#include "net.h"

#define GET(path)  "GET " path " HTTP/1.1\r\nHost: a\r\n\r\n"
#define POST(path) "POST " path " HTTP/1.1\r\nHost: a\r\n"

struct fixture {
        struct net net;
        struct app app;
};

static inline struct http_server_options no_options(void) {
        return (struct http_server_options){0};
}

static inline void open_with(struct fixture *f, struct http_limits limits) {
        net_open(&f->net);
        app_open(&f->app, &f->net, (struct http_server_options){.limits = limits}, "127.0.0.1");
}

static inline void open_plain(struct fixture *f) {
        open_with(f, (struct http_limits){0});
}

static inline void close_all(struct fixture *f) {
        app_close(&f->app);
        net_close(&f->net);
}
