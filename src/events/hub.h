/* hub.h - what the two ends have in common (private to events/). */
#pragma once
#include "events/events.h"

struct events_hub {
        uv_loop_t *loop;
        const struct log *log;
        void *context;
};

/* Say what ZeroMQ's errno is; returns it, negative. */
int events_zmq_error(struct error *e, const char *what, const char *endpoint);
void events_zmq_set(void *socket, int option, int value);
uint64_t events_number(struct slice frame); /* big endian, of at most 8 bytes */
void events_put_number(uint64_t n, char ret_bytes[8]);

/* The number that ends a replay. */
#define EVENTS_END UINT64_MAX
