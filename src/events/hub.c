/* hub.c - ZeroMQ on a libuv loop: a context, sockets with the names of their errors, endpoints. */
#include "events/hub.h"
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <zmq.h>

/* Three sockets for each publisher that is followed; the pool's bound on instances, rounded. */
#define SOCKETS_MAX 65535

int events_hub_new(uv_loop_t *loop, const struct log *log, struct events_hub **ret_hub) {
        struct events_hub *h = calloc(1, sizeof(*h));

        if (!h)
                return -ENOMEM;
        *h = (struct events_hub){.loop = loop, .log = log, .context = zmq_ctx_new()};
        if (!h->context || zmq_ctx_set(h->context, ZMQ_MAX_SOCKETS, SOCKETS_MAX) < 0) {
                events_hub_free(h);
                return -ENOMEM;
        }
        *ret_hub = h;
        return 0;
}

void events_hub_free(struct events_hub *h) {
        if (!h)
                return;
        if (h->context)
                zmq_ctx_term(h->context);
        free(h);
}

int events_zmq_error(struct error *e, const char *what, const char *endpoint) {
        int code = zmq_errno();

        return error_set(e,
            code == EADDRINUSE ? -EADDRINUSE
            : code == EMFILE   ? -EMFILE
                               : -EINVAL,
            "%s %s: %s", what, endpoint, zmq_strerror(code));
}

void events_zmq_set(void *socket, int option, int value) {
        zmq_setsockopt(socket, option, &value, sizeof(value));
}

uint64_t events_number(struct slice frame) {
        uint64_t n = 0;

        for (size_t i = 0; i < frame.len; i++)
                n = n << 8 | (unsigned char)frame.ptr[i];
        return n;
}

void events_put_number(uint64_t n, char ret_bytes[8]) {
        for (int i = 0; i < 8; i++)
                ret_bytes[i] = (char)(n >> 8 * (7 - i));
}

int events_endpoint(struct arena *arena, const char *endpoint, const char *host, unsigned rank, const char **ret_text,
    struct error *e) {
        struct slice text = slice_str(endpoint), address, port;
        size_t colon = text.len;
        uint64_t number;
        char *out;

        if (slice_starts(text, SLICE_LIT("ipc://"))) {
                if (rank > 0)
                        return error_set(
                            e, -EINVAL, "`%.200s` is one path, for rank 0: several ranks need tcp", endpoint);
                *ret_text = arena_copy(arena, text).ptr;
                return *ret_text ? 0 : -ENOMEM;
        }
        if (!slice_starts(text, SLICE_LIT("tcp://")))
                return error_set(
                    e, -EINVAL, "`%.200s` is no endpoint: tcp://HOST:PORT or ipc://PATH is wanted", endpoint);
        while (colon > 6 && text.ptr[colon - 1] != ':')
                colon--;
        address = slice_sub(text, 6, colon > 6 ? colon - 1 : 6);
        port = slice_sub(text, colon, text.len);
        if (address.len == 0 || slice_to_u64(port, &number) < 0 || number == 0 || number + rank > 65535)
                return error_set(e, -EINVAL,
                    "`%.200s` is no endpoint: tcp://HOST:PORT is wanted, and PORT%s to be at most 65535", endpoint,
                    rank ? " with the rank added" : "");
        if (slice_is(address, "*") || slice_is(address, "0.0.0.0") || slice_is(address, "::") ||
            slice_is(address, "[::]"))
                address = slice_str(host);
        out = slice_find(address, ':', 0) < address.len && address.ptr[0] != '['
                  ? arena_printf(arena, "tcp://[%.*s]:%llu", SLICE_ARG(address), (unsigned long long)number + rank)
                  : arena_printf(arena, "tcp://%.*s:%llu", SLICE_ARG(address), (unsigned long long)number + rank);
        if (!out)
                return -ENOMEM;
        *ret_text = out;
        return 0;
}
