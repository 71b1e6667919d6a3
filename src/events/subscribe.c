/* subscribe.c - a publisher followed: a SUB socket for its batches, a DEALER for what was missed, and a monitor that tells of
 * the connection. ZeroMQ's own thread moves the bytes; the loop is told by descriptors.
 *
 * Such a descriptor is readable when something has changed, once; what is there is asked from the socket (ZMQ_EVENTS), until
 * there is nothing. */
#include "events/hub.h"
#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <zmq.h>

/* Batches that wait in ZeroMQ's queue; more are a gap. They are a few KB each, and never more than EVENTS_PAYLOAD_MAX. */
#define QUEUE_MAX 256
/* Batches taken in one turn of the loop, which has streams to serve. */
#define TURN_MAX 64
/* A publisher that has not gone on with a replay for so long does not answer. It may be in a long step. */
#define REPLAY_MS_DEFAULT 5000
#define CHECK_MS_DEFAULT  5000
/* A connection that is dead without a word is seen after this. */
#define HEARTBEAT_MS 5000

enum which { LIVE, REPLAY, MONITOR, SOCKETS };

struct subscription {
        struct events_hub *hub;
        struct subscription_options options;
        char *endpoint, *replay, *topic, *name;
        void *sockets[SOCKETS];
        uv_poll_t polls[SOCKETS];
        bool polling[SOCKETS];
        uv_timer_t timer; /* a turn that was cut short, or a replay's deadline */
        bool closed;
        unsigned open; /* handles */
        struct follow follow;
        enum follow_state told;
        uint64_t replay_due; /* ms of the loop, while one is asked for */
        uint64_t heard;      /* likewise: when it last said something */
        uint64_t batches, bad;
        struct arena arena;
};

static void work(struct subscription *s);

/* ---- frames --------------------------------------------------------------------------------------------------------- */

#define FRAMES_MAX 4

/* Take one message off a socket. Returns its frames (those beyond FRAMES_MAX are dropped), 0: there is none. */
static size_t receive(void *socket, zmq_msg_t *frames) {
        size_t n = 0;
        int more = 1;

        while (more) {
                zmq_msg_t *frame = &frames[n < FRAMES_MAX ? n : FRAMES_MAX - 1];

                if (n >= FRAMES_MAX)
                        zmq_msg_close(frame);
                zmq_msg_init(frame);
                if (zmq_msg_recv(frame, socket, ZMQ_DONTWAIT) < 0) {
                        zmq_msg_close(frame);
                        break;
                }
                n++;
                more = zmq_msg_more(frame);
        }
        return n < FRAMES_MAX ? n : FRAMES_MAX;
}

static void release(zmq_msg_t *frames, size_t n) {
        while (n > 0)
                zmq_msg_close(&frames[--n]);
}

static struct slice frame_slice(zmq_msg_t *frame) {
        return slice_of(zmq_msg_data(frame), zmq_msg_size(frame));
}

/* ---- batches -------------------------------------------------------------------------------------------------------- */

static void apply_batch(struct subscription *s, struct slice payload) {
        struct event_batch batch;
        struct event e;
        int r = event_batch_open(payload, &batch);

        s->batches++;
        while (r >= 0) {
                arena_reset(&s->arena);
                r = event_batch_next(&batch, &s->arena, &e);
                if (r <= 0)
                        break;
                if (e.kind == EVENT_CLEARED)
                        follow_cleared(&s->follow);
                s->options.on_event(s->options.context, &e);
        }
        if (r < 0 && s->bad++ == 0)
                log_warn(s->hub->log,
                    "%s: a batch of KV events (%zu bytes) cannot be understood; it and those like it are left out",
                    s->name, payload.len);
}

static void obey(struct subscription *s, enum follow_verdict verdict, struct slice payload) {
        if (verdict == FOLLOW_CLEAR || verdict == FOLLOW_CLEAR_APPLY)
                s->options.on_clear(s->options.context);
        if (verdict == FOLLOW_APPLY || verdict == FOLLOW_CLEAR_APPLY)
                apply_batch(s, payload);
}

/* [topic, sequence, payload] */
static void take_live(struct subscription *s, zmq_msg_t *frames, size_t n) {
        struct slice number;

        if (n != 3 || (number = frame_slice(&frames[1])).len != 8) {
                s->bad++;
                return;
        }
        obey(s, follow_live(&s->follow, events_number(number), frame_slice(&frames[2])), frame_slice(&frames[2]));
}

/* ["", sequence, payload], or what some publishers send in place of the empty frame; the end has a number of its own. */
static void take_replayed(struct subscription *s, zmq_msg_t *frames, size_t n) {
        struct slice number, payload;

        if (n < 2 || n > 3 || (number = frame_slice(&frames[n - 2])).len != 8) {
                s->bad++;
                return;
        }
        payload = frame_slice(&frames[n - 1]);
        s->replay_due = uv_now(s->hub->loop) + s->options.replay_ms;
        if (events_number(number) == EVENTS_END)
                obey(s, follow_replay_end(&s->follow, true), SLICE_NONE);
        else
                obey(s, follow_replayed(&s->follow, events_number(number), payload), payload);
}

static void take_monitor(struct subscription *s, zmq_msg_t *frames, size_t n) {
        uint16_t what;

        if (n < 1 || zmq_msg_size(&frames[0]) < sizeof(what))
                return;
        memcpy(&what, zmq_msg_data(&frames[0]), sizeof(what));
        if (what == ZMQ_EVENT_HANDSHAKE_SUCCEEDED && !s->follow.connected)
                follow_connected(&s->follow);
        else if (what == ZMQ_EVENT_DISCONNECTED && s->follow.connected)
                follow_lost(&s->follow);
}

/* ---- sockets -------------------------------------------------------------------------------------------------------- */

static void on_poll(uv_poll_t *poll, int status, int events) {
        work(poll->data);
}

static void on_closed(uv_handle_t *handle) {
        struct subscription *s = handle->data;

        if (--s->open > 0)
                return;
        for (int i = 0; i < SOCKETS; i++)
                if (s->sockets[i])
                        zmq_close(s->sockets[i]);
        arena_free(&s->arena);
        free(s->endpoint);
        free(s->replay);
        free(s->topic);
        free(s->name);
        free(s);
}

static int watch(struct subscription *s, enum which which) {
        size_t size = sizeof(int);
        int fd;

        if (zmq_getsockopt(s->sockets[which], ZMQ_FD, &fd, &size) < 0 ||
            uv_poll_init(s->hub->loop, &s->polls[which], fd) < 0)
                return -EMFILE;
        s->polls[which].data = s;
        s->polling[which] = true;
        s->open++;
        uv_poll_start(&s->polls[which], UV_READABLE, on_poll);
        return 0;
}

static int open_socket(struct subscription *s, enum which which, int type, struct error *e) {
        void *socket = s->sockets[which] = zmq_socket(s->hub->context, type);

        if (!socket)
                return events_zmq_error(e, "a socket for", s->endpoint);
        events_zmq_set(socket, ZMQ_LINGER, 0);
        events_zmq_set(socket, ZMQ_IPV6, 1);
        events_zmq_set(socket, ZMQ_RCVHWM, QUEUE_MAX);
        events_zmq_set(socket, ZMQ_RECONNECT_IVL, 100);
        events_zmq_set(socket, ZMQ_RECONNECT_IVL_MAX, 2000);
        events_zmq_set(socket, ZMQ_HEARTBEAT_IVL, HEARTBEAT_MS);
        events_zmq_set(socket, ZMQ_HEARTBEAT_TIMEOUT, 2 * HEARTBEAT_MS);
        zmq_setsockopt(socket, ZMQ_MAXMSGSIZE, &(int64_t){EVENTS_PAYLOAD_MAX}, sizeof(int64_t));
        return 0;
}

/* The monitor is watched before the connection begins, or its first word would be missed. */
static int connect_live(struct subscription *s, struct error *e) {
        char monitor[64];
        int r = open_socket(s, LIVE, ZMQ_SUB, e);

        if (r < 0)
                return r;
        snprintf(monitor, sizeof(monitor), "inproc://monitor-%p", (void *)s);
        s->sockets[MONITOR] = zmq_socket(s->hub->context, ZMQ_PAIR);
        if (!s->sockets[MONITOR] ||
            zmq_socket_monitor(s->sockets[LIVE], monitor, ZMQ_EVENT_HANDSHAKE_SUCCEEDED | ZMQ_EVENT_DISCONNECTED) < 0 ||
            zmq_connect(s->sockets[MONITOR], monitor) < 0)
                return events_zmq_error(e, "a monitor for", s->endpoint);
        events_zmq_set(s->sockets[MONITOR], ZMQ_LINGER, 0);
        if (zmq_setsockopt(s->sockets[LIVE], ZMQ_SUBSCRIBE, s->topic, strlen(s->topic)) < 0 ||
            zmq_connect(s->sockets[LIVE], s->endpoint) < 0)
                return events_zmq_error(e, "KV events of", s->endpoint);
        r = watch(s, LIVE);
        return r < 0 ? r : watch(s, MONITOR);
}

static int connect_replay(struct subscription *s, struct error *e) {
        int r;

        if (!s->replay)
                return 0;
        r = open_socket(s, REPLAY, ZMQ_DEALER, e);
        if (r == 0 && zmq_connect(s->sockets[REPLAY], s->replay) < 0)
                r = events_zmq_error(e, "replays of", s->replay);
        return r < 0 ? r : watch(s, REPLAY);
}

/* What a publisher still sends of a replay that was given up must not be taken for the next one's: a new connection, without
 * what waits of the old one. */
static void reopen_replay(struct subscription *s) {
        zmq_msg_t frames[FRAMES_MAX];
        size_t n;

        zmq_disconnect(s->sockets[REPLAY], s->replay);
        while ((n = receive(s->sockets[REPLAY], frames)) > 0)
                release(frames, n);
        zmq_connect(s->sockets[REPLAY], s->replay);
}

static void send_ask(struct subscription *s) {
        char number[8];

        s->follow.ask = false;
        events_put_number(s->follow.ask_from, number);
        s->replay_due = uv_now(s->hub->loop) + s->options.replay_ms;
        if (zmq_send(s->sockets[REPLAY], "", 0, ZMQ_SNDMORE | ZMQ_DONTWAIT) < 0 ||
            zmq_send(s->sockets[REPLAY], number, sizeof(number), ZMQ_DONTWAIT) < 0)
                s->replay_due = 0; /* given up at the next look */
}

/* ---- the turn ------------------------------------------------------------------------------------------------------- */

static const struct {
        enum which which;
        void (*take)(struct subscription *s, zmq_msg_t *frames, size_t n);
} sources[] = {{MONITOR, take_monitor}, {REPLAY, take_replayed}, {LIVE, take_live}};

/* Take what there is of one socket. Live batches wait in ZeroMQ's queue while a replay runs. */
static size_t take_all(struct subscription *s, size_t source, size_t room) {
        void *socket = s->sockets[sources[source].which];
        zmq_msg_t frames[FRAMES_MAX];
        size_t taken = 0, n;

        while (socket && taken < room && !(sources[source].which == LIVE && s->follow.asking) &&
               (n = receive(socket, frames)) > 0) {
                sources[source].take(s, frames, n);
                release(frames, n);
                taken++;
        }
        return taken;
}

static void tell_state(struct subscription *s) {
        enum follow_state now = follow_state(&s->follow);

        if (now == s->told)
                return;
        s->told = now;
        s->options.on_state(s->options.context, now);
}

static void on_timer(uv_timer_t *timer) {
        work(timer->data);
}

/* What time alone brings: a replay that is given up, silence that is not trusted. */
static void look_at_clock(struct subscription *s, uint64_t now) {
        if (s->follow.asking && !s->follow.ask && now >= s->replay_due) {
                if (!s->follow.stale)
                        log_warn(
                            s->hub->log, "%s: %s does not answer: what is in its cache is guessed", s->name, s->replay);
                obey(s, follow_replay_end(&s->follow, false), SLICE_NONE);
                reopen_replay(s);
                s->heard = now;
        }
        if (now >= s->heard + s->options.check_ms) {
                follow_check(&s->follow);
                s->heard = now;
        }
}

/* In ms. */
static uint64_t next_look(const struct subscription *s, uint64_t now) {
        uint64_t due = s->follow.asking ? s->replay_due : s->heard + s->options.check_ms;

        return due > now ? due - now : 0;
}

static void work(struct subscription *s) {
        size_t taken = 0;
        bool any = true;

        if (s->closed)
                return;
        look_at_clock(s, uv_now(s->hub->loop));
        while (any && taken < TURN_MAX) {
                any = false;
                for (size_t k = 0; k < sizeof(sources) / sizeof(*sources); k++) {
                        size_t n = take_all(s, k, TURN_MAX - taken);

                        taken += n;
                        any |= n > 0;
                }
                if (s->follow.ask) {
                        send_ask(s);
                        any = true; /* sending may have swallowed the word that something has come */
                }
        }
        tell_state(s);
        if (taken > 0)
                s->heard = uv_now(s->hub->loop);
        uv_timer_start(&s->timer, on_timer, taken >= TURN_MAX ? 0 : next_look(s, uv_now(s->hub->loop)), 0);
}

/* ---- life ----------------------------------------------------------------------------------------------------------- */

int subscription_new(
    struct events_hub *h, const struct subscription_options *options, struct subscription **ret_s, struct error *e) {
        struct subscription *s = calloc(1, sizeof(*s));
        int r = 0;

        if (!s)
                return error_set(e, -ENOMEM, "out of memory");
        s->hub = h;
        s->options = *options;
        if (s->options.replay_ms == 0)
                s->options.replay_ms = REPLAY_MS_DEFAULT;
        if (s->options.check_ms == 0)
                s->options.check_ms = CHECK_MS_DEFAULT;
        uv_timer_init(h->loop, &s->timer);
        s->timer.data = s;
        s->open = 1;
        s->endpoint = slice_dup(slice_str(options->endpoint));
        s->replay = options->replay ? slice_dup(slice_str(options->replay)) : NULL;
        s->topic = slice_dup(slice_str(options->topic ? options->topic : ""));
        s->name = slice_dup(slice_str(options->name));
        if (!s->endpoint || !s->topic || !s->name || (options->replay && !s->replay))
                r = error_set(e, -ENOMEM, "out of memory");
        follow_init(&s->follow, options->replay != NULL);
        if (r == 0)
                r = connect_replay(s, e);
        if (r == 0)
                r = connect_live(s, e);
        if (r < 0) {
                subscription_close(s);
                return r;
        }
        s->heard = uv_now(h->loop);
        work(s);
        *ret_s = s;
        return 0;
}

enum follow_state subscription_state(const struct subscription *s) {
        return follow_state(&s->follow);
}

struct subscription_totals subscription_totals(const struct subscription *s) {
        const struct follow *f = &s->follow;

        return (struct subscription_totals){s->batches, s->bad, f->gaps, f->replays, f->restarts};
}

void subscription_close(struct subscription *s) {
        if (s->closed)
                return;
        s->closed = true;
        for (int i = 0; i < SOCKETS; i++)
                if (s->polling[i])
                        uv_close((uv_handle_t *)&s->polls[i], on_closed);
        uv_close((uv_handle_t *)&s->timer, on_closed);
}
