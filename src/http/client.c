/* client.c - the client as a whole: made, closed and freed. Its calls are in call.c, its connections in pool.c. */
#include "http/client.h"
#include <assert.h>
#include <errno.h>
#include <stdlib.h>

int http_client_make_tls(struct http_client *c) {
        struct error e = {0};
        int r;

        if (c->tls)
                return 0;
        r = http_tls_context_client(c->options.tls_ca, c->options.tls_verify_off, &c->tls, &e);
        if (r < 0)
                log_error(c->options.log, "%s", error_text(&e, r));
        return r;
}

static void on_closed_task(struct http_task *task);

int http_client_new(
    uv_loop_t *loop, const struct http_client_options *options, struct http_client **ret_client, struct error *e) {
        struct http_client *c = calloc(1, sizeof(*c));
        int r = -ENOMEM;

        if (!c)
                return -ENOMEM;
        c->options = *options;
        if (!c->options.idle_per_endpoint)
                c->options.idle_per_endpoint = 64;
        if (!c->options.idle_ms)
                c->options.idle_ms = 50000;
        if (!c->options.head_bytes)
                c->options.head_bytes = 64u << 10;
        list_init(&c->calls);
        list_init(&c->upstreams);
        list_init(&c->spare_calls);
        list_init(&c->spare_upstreams);
        http_task_init(&c->closed_task, on_closed_task);
        r = http_pool_init(&c->pool);
        if (r < 0)
                goto fail;
        r = http_io_init(&c->io, loop, true);
        if (r < 0)
                goto fail_pool;
        /* A CA file that is given is read now, so that a wrong one is said at the start. */
        if (c->options.tls_ca) {
                r = http_tls_context_client(c->options.tls_ca, c->options.tls_verify_off, &c->tls, e);
                if (r < 0)
                        goto fail_io;
        }
        http_io_start(&c->io);
        *ret_client = c;
        return 0;
fail_io:
        http_io_free(&c->io);
fail_pool:
        http_pool_free(&c->pool);
fail:
        free(c);
        return r;
}

static void on_io_closed(struct http_io *io) {
        struct http_client *c = list_item(io, struct http_client, io);

        c->closed = true;
        if (c->on_closed)
                c->on_closed(c->closed_context);
}

static void on_closed_task(struct http_task *task) {
        struct http_client *c = list_item(task, struct http_client, closed_task);

        http_io_close(&c->io, on_io_closed);
}

void http_client_check_closed(struct http_client *c) {
        if (c->closing && list_empty(&c->calls) && list_empty(&c->upstreams) && c->resolving == 0)
                http_io_defer(&c->io, &c->closed_task);
}

void http_client_close(struct http_client *c, void (*on_closed_)(void *context), void *context) {
        assert(!c->closing);
        c->closing = true;
        c->on_closed = on_closed_;
        c->closed_context = context;
        list_for_each (at, &c->calls) {
                http_call_close(at);
        }
        http_pool_close_idle(c);
        http_client_check_closed(c);
}

void http_client_free(struct http_client *c) {
        struct list *link;

        if (!c)
                return;
        assert(c->closed);
        while ((link = list_pop_front(&c->spare_calls)))
                http_call_free_spare(link);
        while ((link = list_pop_front(&c->spare_upstreams)))
                free(list_item(link, struct http_upstream, link));
        http_tls_context_free(c->tls);
        http_pool_free(&c->pool);
        http_io_free(&c->io);
        free(c);
}
