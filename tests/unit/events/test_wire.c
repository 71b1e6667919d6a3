/* test_wire.c - a publisher and those who follow it, over real sockets: batches in order, replays, a publisher that is started
 * again, one that is not there, and a queue that is full. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "base/clock.h"
#include "events/events.h"
#include <errno.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>
#include <zmq.h>

/* ThreadSanitizer does not see the atomics of ZeroMQ, which is not built with it, and takes its queues for races. Ours are
 * looked at all the same. */
const char *__tsan_default_suppressions(void);
const char *__tsan_default_suppressions(void) {
        return "called_from_lib:libzmq.so\nrace:libzmq.so\n";
}

static const struct log quiet = {.fd = -1};

struct side {
        uv_loop_t loop;
        struct events_hub *hub;
        struct subscription *s;
        enum follow_state state;
        uint64_t seen[4096]; /* names of blocks, as they came */
        size_t count, cleared;
        uv_timer_t deadline;
        bool late;
};

static void on_clear(void *context) {
        struct side *x = context;

        x->count = 0;
        x->cleared++;
}

static void on_event(void *context, const struct event *e) {
        struct side *x = context;

        if (e->kind == EVENT_STORED)
                for (size_t i = 0; i < e->hash_count && x->count < 4096; i++)
                        x->seen[x->count++] = e->hashes[i];
}

static void on_state(void *context, enum follow_state s) {
        ((struct side *)context)->state = s;
}

static void on_late(uv_timer_t *timer) {
        ((struct side *)timer->data)->late = true;
}

static unsigned free_port(void) {
        struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
        socklen_t len = sizeof(a);
        int fd = socket(AF_INET, SOCK_STREAM, 0);

        assert_int_equal(bind(fd, (struct sockaddr *)&a, sizeof(a)), 0);
        getsockname(fd, (struct sockaddr *)&a, &len);
        close(fd);
        return ntohs(a.sin_port);
}

struct ports {
        char live[64], replay[64];
};

static void choose(struct ports *p) {
        snprintf(p->live, sizeof(p->live), "tcp://127.0.0.1:%u", free_port());
        do
                snprintf(p->replay, sizeof(p->replay), "tcp://127.0.0.1:%u", free_port());
        while (!strcmp(p->live, p->replay));
}

static void open_side(struct side *x, const struct ports *p, unsigned replay_ms) {
        struct subscription_options o = {.endpoint = p->live,
            .replay = p->replay,
            .name = "publisher",
            .on_clear = on_clear,
            .on_event = on_event,
            .on_state = on_state,
            .context = x,
            .replay_ms = replay_ms,
            .check_ms = replay_ms};
        struct error e = {0};

        memset(x, 0, sizeof(*x));
        uv_loop_init(&x->loop);
        uv_timer_init(&x->loop, &x->deadline);
        x->deadline.data = x;
        assert_int_equal(events_hub_new(&x->loop, &quiet, &x->hub), 0);
        assert_int_equal(subscription_new(x->hub, &o, &x->s, &e), 0);
}

static void close_side(struct side *x) {
        subscription_close(x->s);
        uv_close((uv_handle_t *)&x->deadline, NULL);
        uv_run(&x->loop, UV_RUN_DEFAULT);
        assert_int_equal(uv_loop_close(&x->loop), 0);
        events_hub_free(x->hub);
}

/* Run the loop until it is so. */
#define UNTIL(x, condition)                                                                                            \
        do {                                                                                                           \
                uv_timer_start(&(x)->deadline, on_late, 60000, 0);                                                     \
                while (!(condition) && !(x)->late) {                                                                   \
                        uv_run(&(x)->loop, UV_RUN_NOWAIT);                                                             \
                        usleep(100);                                                                                   \
                }                                                                                                      \
                assert_false((x)->late);                                                                               \
                uv_timer_stop(&(x)->deadline);                                                                         \
        } while (0)

static struct publisher *publish(const struct ports *p, uint32_t buffer) {
        struct publisher_options o = {.endpoint = p->live,
            .replay = p->replay,
            .topic = "kv",
            .buffer_steps = buffer,
            .queue_steps = 4096,
            .log = &quiet};
        struct publisher *publisher;
        struct error e = {0};
        int r = publisher_new(&o, &publisher, &e);

        assert_string_equal(e.text, "");
        assert_int_equal(r, 0);
        return publisher;
}

/* A batch that stores one block. */
static void store(struct publisher *p, uint64_t name) {
        struct event e = {.kind = EVENT_STORED,
            .hashes = &name,
            .hash_count = 1,
            .tokens = (uint32_t[]){1},
            .token_count = 1,
            .block_tokens = 1};
        struct event_writer w = {0};
        struct buf b = {0};

        event_write_stored(&w, &e);
        event_write_batch(&w, 1, 0, &b);
        publisher_send(p, &b);
        event_writer_free(&w);
        buf_free(&b);
}

static void in_order(const struct side *x, uint64_t first, size_t count) {
        assert_int_equal(x->count, count);
        for (size_t i = 0; i < count; i++)
                assert_int_equal(x->seen[i], first + i);
}

static void batches_arrive_in_order_and_those_of_before_are_replayed(void **state) {
        static struct side x;
        struct ports ports;
        struct publisher *p;

        choose(&ports);
        p = publish(&ports, 1000);
        for (uint64_t n = 0; n < 300; n++) /* more than are taken in one turn */
                store(p, n);
        open_side(&x, &ports, 0);
        UNTIL(&x, x.state == FOLLOW_LIVE && x.count == 300);
        for (uint64_t n = 300; n < 1500; n++)
                store(p, n);
        UNTIL(&x, x.count == 1500);
        in_order(&x, 0, 1500);
        assert_int_equal(subscription_totals(x.s).batches, 1500);
        assert_int_equal(subscription_totals(x.s).bad, 0);
        close_side(&x);
        publisher_free(p);
}

static void what_the_buffer_has_lost_is_not_known(void **state) {
        static struct side x;
        struct ports ports;
        struct publisher *p;

        choose(&ports);
        p = publish(&ports, 10);
        for (uint64_t n = 0; n < 100; n++)
                store(p, n);
        open_side(&x, &ports, 0);
        UNTIL(&x, x.state == FOLLOW_PARTIAL && x.count > 0);
        store(p, 100);
        UNTIL(&x, x.seen[x.count - 1] == 100);
        in_order(&x, 100 - x.count + 1, x.count);
        assert_true(x.count <= 11);
        close_side(&x);
        publisher_free(p);
}

static void one_that_is_started_again_is_followed_from_its_start(void **state) {
        static struct side x;
        struct ports ports;
        struct publisher *p;

        choose(&ports);
        p = publish(&ports, 1000);
        for (uint64_t n = 0; n < 5; n++)
                store(p, n);
        open_side(&x, &ports, 0);
        UNTIL(&x, x.state == FOLLOW_LIVE && x.count == 5);
        publisher_free(p);
        UNTIL(&x, x.state == FOLLOW_LOST);
        p = publish(&ports, 1000);
        for (uint64_t n = 1000; n < 1009; n++)
                store(p, n);
        UNTIL(&x, x.state == FOLLOW_LIVE && x.count == 9);
        in_order(&x, 1000, 9);
        assert_int_equal(x.cleared, 1);
        assert_int_equal(subscription_totals(x.s).restarts, 1);
        close_side(&x);
        publisher_free(p);
}

static void one_that_comes_later_is_found(void **state) {
        static struct side x;
        struct ports ports;
        struct publisher *p;

        choose(&ports);
        open_side(&x, &ports, 0);
        uv_run(&x.loop, UV_RUN_NOWAIT);
        assert_int_equal(subscription_state(x.s), FOLLOW_LOST);
        p = publish(&ports, 10);
        store(p, 7);
        UNTIL(&x, x.state == FOLLOW_LIVE && x.count == 1);
        close_side(&x);
        publisher_free(p);
}

/* The replay endpoint of another program, or of nobody: what comes is followed all the same. */
static void a_replay_that_nobody_answers_is_done_without(void **state) {
        static struct side x;
        struct ports ports;
        struct publisher *p;

        choose(&ports);
        p = publish(&ports, 10);
        store(p, 1);
        snprintf(ports.replay, sizeof(ports.replay), "tcp://127.0.0.1:%u", free_port());
        open_side(&x, &ports, 50);
        UNTIL(&x, x.state == FOLLOW_CATCHING);
        for (uint64_t n = 2; x.state != FOLLOW_PARTIAL; n++) {
                store(p, n);
                uv_run(&x.loop, UV_RUN_ONCE);
        }
        assert_true(x.count > 0);
        close_side(&x);
        publisher_free(p);
}

/* A socket of our own, to answer as we like. */
static void *bind_raw(void *context, int type, const char *endpoint) {
        void *socket = zmq_socket(context, type);

        zmq_setsockopt(socket, ZMQ_LINGER, &(int){0}, sizeof(int));
        assert_int_equal(zmq_bind(socket, endpoint), 0);
        return socket;
}

/* Take a request for a replay, if there is one, and say that nothing was ever published. */
static bool answer_with_nothing(void *router) {
        char identity[256], rest[16];
        int n = zmq_recv(router, identity, sizeof(identity), ZMQ_DONTWAIT);

        if (n < 0)
                return false;
        zmq_recv(router, rest, sizeof(rest), 0);
        zmq_recv(router, rest, sizeof(rest), 0);
        zmq_send(router, identity, (size_t)n, ZMQ_SNDMORE);
        zmq_send(router, "", 0, ZMQ_SNDMORE);
        zmq_send(router, "\xff\xff\xff\xff\xff\xff\xff\xff", 8, ZMQ_SNDMORE);
        zmq_send(router, "", 0, 0);
        return true;
}

/* Connected, but silent for longer than is trusted, and without an answer: it is not believed until it answers again. */
static void one_that_hangs_is_not_believed(void **state) {
        void *context = zmq_ctx_new(), *pub, *router;
        static struct side x;
        struct ports ports;

        choose(&ports);
        pub = bind_raw(context, ZMQ_PUB, ports.live);
        router = bind_raw(context, ZMQ_ROUTER, ports.replay);
        open_side(&x, &ports, 50);
        UNTIL(&x, (answer_with_nothing(router), x.state == FOLLOW_LIVE));
        UNTIL(&x, x.state == FOLLOW_CATCHING);
        UNTIL(&x, (answer_with_nothing(router), x.state == FOLLOW_LIVE));
        close_side(&x);
        zmq_close(pub);
        zmq_close(router);
        zmq_ctx_term(context);
}

/* Batches that cannot be sent are left out, and their numbers with them: those who follow see a gap, and what is known again is
 * what came after. */
static void a_full_queue_drops_and_tells(void **state) {
        static struct side x;
        struct publisher_options o = {.topic = "", .buffer_steps = 1000, .queue_steps = 1, .log = &quiet};
        struct publisher *p;
        struct ports ports;
        struct error e;
        uint64_t n = 0;

        choose(&ports);
        o.endpoint = ports.live;
        o.replay = ports.replay;
        assert_int_equal(publisher_new(&o, &p, &e), 0);
        open_side(&x, &ports, 0);
        UNTIL(&x, x.state == FOLLOW_LIVE);
        while (publisher_dropped(p) == 0)
                for (int burst = 0; burst < 1000; burst++)
                        store(p, n++);
        while (x.state != FOLLOW_PARTIAL) {
                store(p, n++);
                uv_run(&x.loop, UV_RUN_NOWAIT);
        }
        assert_true(subscription_totals(x.s).gaps > 0);
        close_side(&x);
        publisher_free(p);
}

static void an_address_in_use_is_said(void **state) {
        struct publisher_options o = {.topic = "", .buffer_steps = 1, .queue_steps = 1, .log = &quiet};
        struct publisher *p, *q;
        struct ports ports;
        struct error e = {0};

        choose(&ports);
        p = publish(&ports, 1);
        o.endpoint = ports.live;
        assert_int_equal(publisher_new(&o, &q, &e), -EADDRINUSE);
        assert_non_null(strstr(e.text, ports.live));
        publisher_free(p);
        o.endpoint = "tcp://nowhere:0:0";
        assert_int_equal(publisher_new(&o, &q, &e), -EINVAL);
}

/* What is no request gets no answer, and does no harm. */
static void strange_requests_for_replays_are_not_answered(void **state) {
        void *context = zmq_ctx_new(), *socket = zmq_socket(context, ZMQ_DEALER);
        static struct side x;
        struct ports ports;
        struct publisher *p;

        choose(&ports);
        p = publish(&ports, 10);
        store(p, 1);
        zmq_setsockopt(socket, ZMQ_LINGER, &(int){0}, sizeof(int));
        assert_int_equal(zmq_connect(socket, ports.replay), 0);
        for (int i = 0; i < 20; i++) {
                zmq_send(socket, "abc", 3, i % 2 ? ZMQ_SNDMORE : 0);
                if (i % 2)
                        for (int k = 0; k <= i; k++)
                                zmq_send(socket, "12345678", 8, k < i ? ZMQ_SNDMORE : 0);
        }
        open_side(&x, &ports, 0);
        UNTIL(&x, x.state == FOLLOW_LIVE && x.count == 1);
        assert_int_equal(zmq_recv(socket, (char[8]){0}, 8, ZMQ_DONTWAIT), -1);
        zmq_close(socket);
        zmq_ctx_term(context);
        close_side(&x);
        publisher_free(p);
}

int main(void) {
        const struct CMUnitTest tests[] = {
            cmocka_unit_test(batches_arrive_in_order_and_those_of_before_are_replayed),
            cmocka_unit_test(what_the_buffer_has_lost_is_not_known),
            cmocka_unit_test(one_that_is_started_again_is_followed_from_its_start),
            cmocka_unit_test(one_that_comes_later_is_found),
            cmocka_unit_test(a_replay_that_nobody_answers_is_done_without),
            cmocka_unit_test(one_that_hangs_is_not_believed),
            cmocka_unit_test(a_full_queue_drops_and_tells),
            cmocka_unit_test(an_address_in_use_is_said),
            cmocka_unit_test(strange_requests_for_replays_are_not_answered),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
