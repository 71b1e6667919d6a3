/* publish.c - batches to whoever follows: a thread of its own with a PUB socket, a ROUTER for replays, and the batches of the
 * recent past. Who publishes hands a batch over under a lock that is held for list operations alone. */
#include "events/hub.h"
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <unistd.h>
#include <zmq.h>

/* What batches of the past may hold besides their count: a prompt of 100,000 tokens is half a MB. */
#define PAST_BYTES_MAX (256u << 20)
/* Likewise those that wait to be sent. The thread has nothing else to do, so that they wait for milliseconds. */
#define WAITING_BYTES_MAX (64u << 20)

struct batch {
        uint64_t number;
        struct batch *next;
        struct buf payload;
};

struct batches { /* a queue */
        struct batch *first, *last;
        uint32_t count;
        size_t bytes;
};

struct publisher {
        struct publisher_options options;
        char *topic;
        void *context, *pub, *router;
        int wake; /* eventfd */
        pthread_t thread;
        bool started;
        uint64_t next; /* the publisher's thread: number of the next batch */
        _Atomic uint64_t dropped;
        pthread_mutex_t lock;
        struct batches waiting; /* under the lock */
        bool ending;            /* likewise */
        struct batches past;    /* this thread's own */
};

/* ---- queues --------------------------------------------------------------------------------------------------------- */

static void push(struct batches *q, struct batch *b) {
        b->next = NULL;
        if (q->last)
                q->last->next = b;
        else
                q->first = b;
        q->last = b;
        q->count++;
        q->bytes += b->payload.len;
}

static struct batch *pop(struct batches *q) {
        struct batch *b = q->first;

        if (!b)
                return NULL;
        q->first = b->next;
        if (!q->first)
                q->last = NULL;
        q->count--;
        q->bytes -= b->payload.len;
        return b;
}

static void batch_free(struct batch *b) {
        if (b)
                buf_free(&b->payload);
        free(b);
}

/* ---- the thread ----------------------------------------------------------------------------------------------------- */

/* A PUB or ROUTER socket does not wait: what a follower has no room for is lost to it, and it sees that. */
static void send_frames(void *socket, struct slice head, bool framed, uint64_t number, struct slice payload) {
        char bytes[8];

        events_put_number(number, bytes);
        if (zmq_send(socket, head.ptr, head.len, ZMQ_SNDMORE | ZMQ_DONTWAIT) < 0)
                return;
        if (framed)
                zmq_send(socket, "", 0, ZMQ_SNDMORE | ZMQ_DONTWAIT);
        zmq_send(socket, bytes, sizeof(bytes), ZMQ_SNDMORE | ZMQ_DONTWAIT);
        zmq_send(socket, payload.len ? payload.ptr : "", payload.len, ZMQ_DONTWAIT);
}

static void send_waiting(struct publisher *p) {
        struct batches take;
        struct batch *b;

        pthread_mutex_lock(&p->lock);
        take = p->waiting;
        p->waiting = (struct batches){0};
        pthread_mutex_unlock(&p->lock);
        while ((b = pop(&take))) {
                send_frames(p->pub, slice_str(p->topic), false, b->number, buf_slice(&b->payload));
                push(&p->past, b);
                while (p->past.count > p->options.buffer_steps || p->past.bytes > PAST_BYTES_MAX)
                        batch_free(pop(&p->past));
        }
}

/* [identity, "", first number]: all from there on, then the end. Anything else is not answered. */
static void answer(struct publisher *p, zmq_msg_t *frames, size_t n) {
        struct slice identity = slice_of(zmq_msg_data(&frames[0]), zmq_msg_size(&frames[0])), number;

        if (n != 3 || zmq_msg_size(&frames[1]) != 0)
                return;
        number = slice_of(zmq_msg_data(&frames[2]), zmq_msg_size(&frames[2]));
        if (number.len != 8)
                return;
        for (const struct batch *b = p->past.first; b; b = b->next)
                if (b->number >= events_number(number))
                        send_frames(p->router, identity, true, b->number, buf_slice(&b->payload));
        send_frames(p->router, identity, true, EVENTS_END, SLICE_NONE);
}

static void answer_all(struct publisher *p) {
        zmq_msg_t frames[4];

        for (;;) {
                size_t n = 0;
                int more = 1;

                for (; more; n++) {
                        zmq_msg_t *frame = &frames[n < 3 ? n : 3];

                        if (n > 3)
                                zmq_msg_close(frame);
                        zmq_msg_init(frame);
                        if (zmq_msg_recv(frame, p->router, ZMQ_DONTWAIT) < 0) {
                                zmq_msg_close(frame);
                                break;
                        }
                        more = zmq_msg_more(frame);
                }
                if (n == 0)
                        return;
                answer(p, frames, n);
                for (size_t i = 0; i < (n < 4 ? n : 4); i++)
                        zmq_msg_close(&frames[i]);
        }
}

static void *run(void *context) {
        struct publisher *p = context;
        zmq_pollitem_t items[] = {{.fd = p->wake, .events = ZMQ_POLLIN}, {.socket = p->router, .events = ZMQ_POLLIN}};
        bool ending = false;

        while (!ending) {
                uint64_t wakes;

                if (zmq_poll(items, p->router ? 2 : 1, -1) < 0)
                        continue;
                if ((items[0].revents & ZMQ_POLLIN) && read(p->wake, &wakes, sizeof(wakes)) < 0)
                        continue;
                pthread_mutex_lock(&p->lock);
                ending = p->ending;
                pthread_mutex_unlock(&p->lock);
                send_waiting(p);
                if (p->router)
                        answer_all(p);
        }
        return NULL;
}

/* ---- life ----------------------------------------------------------------------------------------------------------- */

static int bind_socket(
    struct publisher *p, int type, int most, const char *endpoint, void **ret_socket, struct error *e) {
        void *socket = zmq_socket(p->context, type);

        if (!socket)
                return events_zmq_error(e, "a socket for", endpoint);
        *ret_socket = socket;
        events_zmq_set(socket, ZMQ_LINGER, 200); /* ms at the end, for what a follower has not taken yet */
        events_zmq_set(socket, ZMQ_SNDHWM, most);
        events_zmq_set(socket, ZMQ_IPV6, 1);
        /* What comes in is a subscription or a number. */
        zmq_setsockopt(socket, ZMQ_MAXMSGSIZE, &(int64_t){4096}, sizeof(int64_t));
        return zmq_bind(socket, endpoint) < 0 ? events_zmq_error(e, "KV events cannot be published at", endpoint) : 0;
}

int publisher_new(const struct publisher_options *options, struct publisher **ret_publisher, struct error *e) {
        struct publisher *p = calloc(1, sizeof(*p));
        int r = 0;

        if (!p)
                return error_set(e, -ENOMEM, "out of memory");
        p->options = *options;
        pthread_mutex_init(&p->lock, NULL);
        p->topic = slice_dup(slice_str(options->topic ? options->topic : ""));
        p->context = zmq_ctx_new();
        p->wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
        if (!p->topic || !p->context || p->wake < 0)
                r = error_set(e, -ENOMEM, "out of memory");
        if (r == 0)
                r = bind_socket(p, ZMQ_PUB, (int)options->queue_steps, options->endpoint, &p->pub, e);
        /* A replay is sent at once: all of it has to fit. */
        if (r == 0 && options->replay)
                r = bind_socket(p, ZMQ_ROUTER, (int)options->buffer_steps + 1, options->replay, &p->router, e);
        if (r == 0 && pthread_create(&p->thread, NULL, run, p) != 0)
                r = error_set(e, -EAGAIN, "no thread for KV events");
        p->started = r == 0;
        if (r < 0) {
                publisher_free(p);
                return r;
        }
        *ret_publisher = p;
        return 0;
}

static void wake(struct publisher *p) {
        ssize_t r = write(p->wake, &(uint64_t){1}, sizeof(uint64_t));

        (void)r; /* full: the thread is awake */
}

void publisher_send(struct publisher *p, struct buf *payload) {
        uint64_t number = p->next++;
        struct batch *b = buf_ok(payload) ? calloc(1, sizeof(*b)) : NULL;
        bool room = b != NULL;

        if (b) {
                *b = (struct batch){.number = number, .payload = *payload};
                *payload = (struct buf){0};
                pthread_mutex_lock(&p->lock);
                room =
                    p->waiting.count < p->options.queue_steps && p->waiting.bytes + b->payload.len <= WAITING_BYTES_MAX;
                if (room)
                        push(&p->waiting, b);
                pthread_mutex_unlock(&p->lock);
        }
        if (room) {
                wake(p);
                return;
        }
        batch_free(b);
        buf_reset(payload);
        atomic_fetch_add(&p->dropped, 1);
}

uint64_t publisher_dropped(const struct publisher *p) {
        return atomic_load(&((struct publisher *)p)->dropped);
}

void publisher_free(struct publisher *p) {
        if (!p)
                return;
        if (p->started) {
                pthread_mutex_lock(&p->lock);
                p->ending = true;
                pthread_mutex_unlock(&p->lock);
                wake(p);
                pthread_join(p->thread, NULL);
        }
        if (p->pub)
                zmq_close(p->pub);
        if (p->router)
                zmq_close(p->router);
        if (p->context)
                zmq_ctx_term(p->context);
        if (p->wake >= 0)
                close(p->wake);
        for (struct batch *b; (b = pop(&p->waiting));)
                batch_free(b);
        for (struct batch *b; (b = pop(&p->past));)
                batch_free(b);
        pthread_mutex_destroy(&p->lock);
        free(p->topic);
        free(p);
}
