/* Pushes between two comms in this process, over real sockets; and what a hostile writer can do, which is nothing. */
#include "comm/wire.h"
#include "rig.h"
#include <sys/uio.h>

static struct comm_source target_at(const struct side *d, const char *id) {
        return (struct comm_source){.host = SLICE_LIT("127.0.0.1"),
            .port = comm_port(d->comm),
            .engine_id = SLICE_LIT("d"),
            .id = slice_str(id)};
}

static void open_pair(struct side *p, uint32_t p_tokens, struct side *d, uint32_t d_tokens, enum comm_way way) {
        struct comm_options o = side_options(d, "d", d_tokens);

        o.host = "127.0.0.1";
        o.way = way;
        side_open(d, &o);
        o = side_options(p, "p", p_tokens);
        side_open(p, &o);
}

static struct comm_receipt *expect(
    struct side *d, const char *id, const uint32_t *blocks, size_t count, uint32_t first, uint32_t end) {
        struct comm_receipt *x;

        assert_int_equal(comm_expect(d->comm, slice_str(id), blocks, count, first, end, d, &x), 0);
        return x;
}

static struct comm_push *push(
    struct side *p, const struct comm_source *to, const uint32_t *blocks, size_t count, uint32_t first, uint32_t end) {
        struct comm_push *made;

        assert_int_equal(comm_push(p->comm, to, first, end, p, &made), 0);
        comm_push_open(made);
        assert_int_equal(comm_push_blocks(made, blocks, count), 0);
        return made;
}

static void all_rows(struct comm_push *made, uint32_t first, uint32_t end) {
        for (uint32_t layer = 0; layer < LAYERS; layer++)
                comm_push_rows(made, layer, first, end);
}

static void assert_told(struct side *s, int kind, int result, const char *part) {
        struct comm_event *e = next_event(s);

        assert_int_equal(e->kind, kind);
        assert_ptr_equal(e->user, s);
        if (e->result != result || (part && !strstr(e->text, part)))
                fail_msg("%d: %s", e->result, e->text);
        comm_event_free(e);
}

/* ---- the way it should go ---------------------------------------------------------------------------------------------- */

static void any_tokens_arrive_in_any_chunks_whatever_the_block_sizes(void **state) {
        struct rng r;

        rng_seed(&r, 3);
        for (unsigned round = 0; round < 60; round++) {
                uint32_t p_tokens = 1 + (uint32_t)rng_below(&r, 9),
                         d_tokens = round % 3 ? 1 + (uint32_t)rng_below(&r, 9) : p_tokens;
                uint32_t most = BLOCKS * (p_tokens < d_tokens ? p_tokens : d_tokens);
                uint32_t end = 1 + (uint32_t)rng_below(&r, most);
                uint32_t first = (uint32_t)rng_below(&r, (end + d_tokens - 1) / d_tokens) * d_tokens;
                uint32_t from[BLOCKS], to[BLOCKS], at, next;
                struct comm_source target;
                struct comm_push *made;
                struct comm_event *e;
                struct side p, d;
                struct comm_options o = side_options(&d, "d", d_tokens);

                o.host = "127.0.0.1";
                o.way = round % 2 ? COMM_WAY_STREAM : COMM_WAY_BEST;
                o.checksum = round % 5 == 0;
                side_open(&d, &o);
                o = side_options(&p, "p", p_tokens);
                side_open(&p, &o);
                table_of(from, &r);
                table_of(to, &r);
                fill(&p, &r);
                expect(&d, "a", to, BLOCKS, first, end);
                target = target_at(&d, "a");
                made = push(&p, &target, from, BLOCKS, first, end);
                for (at = first; at < end; at = next) { /* chunks, layer by layer each, as they are computed */
                        next = at + 1 + (uint32_t)rng_below(&r, end - at);
                        all_rows(made, at, next);
                        if (round % 4 == 0)
                                usleep(500);
                }
                e = next_event(&d);
                if (e->result < 0)
                        fail_msg("%s", e->text);
                assert_int_equal(e->kind, COMM_RECEIVED);
                assert_int_equal(e->bytes, (uint64_t)(end - first) * LAYERS * ROW);
                assert_int_equal(e->block_count, BLOCKS);
                comm_event_free(e);
                assert_told(&p, COMM_PUSHED, 0, NULL);
                assert_moved(&p, from, &d, to, first, end);
                side_close(&d);
                side_close(&p);
        }
}

static void long_runs_are_cut_and_arrive(void **state) {
        for (int stream = 0; stream < 2; stream++) {
                uint32_t blocks[BLOCKS];
                struct comm_source target;
                struct side p, d;
                struct rng r;

                rng_seed(&r, 8);
                open_pair(&p, 100, &d, 77, stream ? COMM_WAY_STREAM : COMM_WAY_BEST);
                table_of(blocks, &r);
                fill(&p, &r);
                expect(&d, "a", blocks, BLOCKS, 0, 4900);
                target = target_at(&d, "a");
                all_rows(push(&p, &target, blocks, BLOCKS, 0, 4900), 0, 4900);
                assert_told(&d, COMM_RECEIVED, 0, NULL);
                assert_told(&p, COMM_PUSHED, 0, NULL);
                assert_moved(&p, blocks, &d, blocks, 0, 4900);
                side_close(&d);
                side_close(&p);
        }
}

/* Seen by the kernel, which takes no side in what a thread may look at. */
static bool has_come(
    const struct side *p, const struct side *d, const uint32_t *blocks, uint32_t token, uint32_t layer) {
        char there[ROW];
        struct iovec to = {there, ROW}, from = {row(&d->pool, blocks, token, layer), ROW};

        assert_int_equal(process_vm_readv(getpid(), &to, 1, &from, 1, 0), ROW);
        return memcmp(there, row(&p->pool, blocks, token, layer), ROW) == 0;
}

static void rows_are_there_before_the_rest_is_computed(void **state) {
        for (int stream = 0; stream < 2; stream++) {
                uint32_t blocks[BLOCKS];
                struct comm_source target;
                struct comm_push *made;
                struct side p, d;
                struct rng r;

                rng_seed(&r, 9);
                open_pair(&p, 4, &d, 4, stream ? COMM_WAY_STREAM : COMM_WAY_BEST);
                table_of(blocks, &r);
                fill(&p, &r);
                expect(&d, "a", blocks, BLOCKS, 0, 20);
                target = target_at(&d, "a");
                made = push(&p, &target, blocks, BLOCKS, 0, 20);
                for (uint32_t i = 0; i < 2 * LAYERS; i++) {
                        uint32_t first = i / LAYERS * 10, layer = i % LAYERS;

                        comm_push_rows(made, layer, first, first + 10);
                        for (int k = 0; !has_come(&p, &d, blocks, first + 9, layer); k++) {
                                assert_true(k < HANG_S * 1000);
                                usleep(1000);
                        }
                        if (i + 1 < 2 * LAYERS)
                                assert_null(comm_take(d.comm)); /* not all is there */
                }
                assert_told(&d, COMM_RECEIVED, 0, NULL);
                assert_told(&p, COMM_PUSHED, 0, NULL);
                side_close(&d);
                side_close(&p);
        }
}

static void many_are_pushed_at_once(void **state) {
        uint32_t from[BLOCKS], to[BLOCKS];
        struct comm_push *made[16];
        struct side p, d;
        struct rng r;

        rng_seed(&r, 4);
        open_pair(&p, 4, &d, 2, COMM_WAY_BEST);
        table_of(from, &r);
        table_of(to, &r);
        fill(&p, &r);
        for (uint32_t i = 0; i < 16; i++) {
                struct comm_source target;
                char name[8];

                snprintf(name, sizeof(name), "r%u", i);
                target = target_at(&d, name);
                expect(&d, name, to + 2 * i, 2, 0, 4);
                made[i] = push(&p, &target, from + i, 1, 0, 4);
        }
        for (uint32_t layer = 0; layer < LAYERS; layer++)
                for (uint32_t i = 0; i < 16; i++)
                        comm_push_rows(made[i], layer, 0, 4);
        for (uint32_t i = 0; i < 16; i++)
                assert_told(&d, COMM_RECEIVED, 0, NULL);
        for (uint32_t i = 0; i < 16; i++)
                assert_told(&p, COMM_PUSHED, 0, NULL);
        assert_moved(&p, from, &d, to, 0, 64);
        side_close(&d);
        side_close(&p);
}

/* ---- who leaves, and when ------------------------------------------------------------------------------------------------ */

/* Once the decoder's end was told its blocks are somebody else's. */
static void what_was_given_up_is_never_written_again(void **state) {
        struct rng r;

        rng_seed(&r, 5);
        for (unsigned round = 0; round < 60; round++) {
                const size_t bytes = (size_t)BLOCKS * LAYERS * 64 * ROW;
                uint32_t blocks[BLOCKS];
                struct comm_source target;
                struct comm_receipt *x;
                struct comm_push *made;
                struct comm_event *e;
                struct side p, d;
                int result;

                open_pair(&p, 64, &d, 64, round % 2 ? COMM_WAY_STREAM : COMM_WAY_BEST);
                table_of(blocks, &r);
                fill(&p, &r);
                x = expect(&d, "a", blocks, BLOCKS, 0, BLOCKS * 64);
                target = target_at(&d, "a");
                made = push(&p, &target, blocks, BLOCKS, 0, BLOCKS * 64);
                for (uint32_t layer = 0; layer < LAYERS; layer++) {
                        comm_push_rows(made, layer, 0, BLOCKS * 64);
                        if (layer == round % LAYERS)
                                usleep((unsigned)rng_below(&r, 1500));
                        if (layer == round % LAYERS)
                                comm_refuse(x);
                }
                e = next_event(&d);
                assert_int_equal(e->kind, COMM_RECEIVED);
                result = e->result;
                assert_true(result == 0 || result == -ECANCELED);
                comm_event_free(e);
                memset(d.pool.base, 0x5a, bytes);
                e = next_event(&p);
                assert_int_equal(e->kind, COMM_PUSHED);
                if (result == 0)
                        assert_int_equal(e->result, 0);
                comm_event_free(e);
                side_close(&p);
                for (size_t i = 0; i < bytes; i++)
                        assert_int_equal(d.pool.base[i], 0x5a);
                side_close(&d);
        }
}

/* The prefiller's client has left, at any moment: its blocks are somebody else's then, and nobody decodes what those wrote. */
static void what_its_writer_gave_up_does_not_count(void **state) {
        const size_t bytes = (size_t)BLOCKS * LAYERS * 64 * ROW;
        char *kept = malloc(bytes);
        struct rng r;

        rng_seed(&r, 6);
        for (unsigned round = 0; round < 60; round++) {
                uint32_t blocks[BLOCKS];
                struct comm_event *at_d, *at_p;
                struct comm_source target;
                struct comm_push *made;
                struct side p, d;
                struct comm_options o = side_options(&d, "d", 64);

                o.host = "127.0.0.1";
                o.way = round % 2 ? COMM_WAY_STREAM : COMM_WAY_BEST;
                o.lease_ms = 200; /* the writer may not have come */
                side_open(&d, &o);
                o = side_options(&p, "p", 64);
                side_open(&p, &o);
                table_of(blocks, &r);
                fill(&p, &r);
                memcpy(kept, p.pool.base, bytes);
                expect(&d, "a", blocks, BLOCKS, 0, BLOCKS * 64);
                target = target_at(&d, "a");
                made = push(&p, &target, blocks, BLOCKS, 0, BLOCKS * 64);
                if (round % 3)
                        all_rows(made, 0, round % 3 == 1 ? BLOCKS * 32 : BLOCKS * 64);
                usleep((unsigned)rng_below(&r, 3000));
                comm_push_drop(made);
                at_p = next_event(&p);
                assert_int_equal(at_p->kind, COMM_PUSHED);
                assert_true(at_p->result == 0 || at_p->result == -ECANCELED);
                memset(p.pool.base, 0x5a, bytes); /* who reads now reads this */
                at_d = next_event(&d);
                assert_int_equal(at_d->kind, COMM_RECEIVED);
                assert_true((at_d->result == 0) == (at_p->result == 0));
                if (at_d->result == 0) {
                        memcpy(p.pool.base, kept, bytes);
                        assert_moved(&p, blocks, &d, blocks, 0, BLOCKS * 64);
                }
                comm_event_free(at_d);
                comm_event_free(at_p);
                side_close(&d);
                side_close(&p);
        }
        free(kept);
}

static void a_side_that_ends_in_the_middle_leaves_a_clean_end(void **state) {
        for (size_t i = 0; i < 8; i++) {
                uint32_t blocks[BLOCKS];
                struct comm_source target;
                struct comm_event *e;
                struct side p, d;
                struct comm_options o = side_options(&d, "d", 4096);
                struct rng r;

                rng_seed(&r, i);
                o.host = "127.0.0.1";
                o.way = i % 2 ? COMM_WAY_STREAM : COMM_WAY_BEST;
                o.lease_ms = 200;
                side_open(&d, &o);
                o = side_options(&p, "p", 4096);
                side_open(&p, &o);
                table_of(blocks, &r);
                expect(&d, "a", blocks, BLOCKS, 0, BLOCKS * 4096);
                target = target_at(&d, "a");
                all_rows(push(&p, &target, blocks, BLOCKS, 0, BLOCKS * 4096), 0, BLOCKS * 2048 * (1 + i % 4 / 2));
                usleep((unsigned)rng_below(&r, 2000));
                if (i < 4) {
                        comm_free(d.comm);
                        e = next_event(&p);
                        assert_int_equal(e->kind, COMM_PUSHED);
                        comm_event_free(e);
                        free(d.pool.base);
                        side_close(&p);
                } else {
                        comm_free(p.comm);
                        e = next_event(&d); /* cut off, or, when nobody had come, given up */
                        assert_int_equal(e->kind, COMM_RECEIVED);
                        comm_event_free(e);
                        free(p.pool.base);
                        side_close(&d);
                }
        }
}

static void nobody_comes_within_the_lease(void **state) {
        const uint32_t blocks[] = {1};
        struct side d;
        struct comm_options o = side_options(&d, "d", 4);

        o.host = "127.0.0.1";
        o.lease_ms = 200;
        side_open(&d, &o);
        expect(&d, "a", blocks, 1, 0, 4);
        assert_told(&d, COMM_RECEIVED, -ETIMEDOUT, "no prefiller came");
        side_close(&d);
}

/* It computes for longer than any silence may last, and beats meanwhile. */
static void a_writer_that_computes_is_waited_for(void **state) {
        const uint32_t blocks[] = {1};
        struct comm_source target;
        struct comm_push *made;
        struct side p, d;
        struct comm_options o = side_options(&d, "d", 4);

        o.host = "127.0.0.1";
        o.lease_ms = 1500;
        o.silence_ms = 1500;
        side_open(&d, &o);
        o = side_options(&p, "p", 4);
        o.silence_ms = 1500;
        side_open(&p, &o);
        expect(&d, "a", blocks, 1, 0, 4);
        target = target_at(&d, "a");
        made = push(&p, &target, blocks, 1, 0, 4);
        expect(&d, "b", blocks, 1, 0, 4);
        assert_told(&d, COMM_RECEIVED, -ETIMEDOUT, "no prefiller came"); /* b: one whole lease has passed */
        expect(&d, "c", blocks, 1, 0, 4);
        assert_told(&d, COMM_RECEIVED, -ETIMEDOUT, "no prefiller came");
        all_rows(made, 0, 4);
        assert_told(&d, COMM_RECEIVED, 0, NULL);
        assert_told(&p, COMM_PUSHED, 0, NULL);
        side_close(&d);
        side_close(&p);
}

/* ---- refusals ------------------------------------------------------------------------------------------------------------- */

static void what_is_not_waited_for_is_refused(void **state) {
        const uint32_t blocks[] = {1, 2};
        struct comm_source target;
        struct side p, d;

        open_pair(&p, 4, &d, 4, COMM_WAY_BEST);
        expect(&d, "a", blocks, 2, 0, 8);
        target = target_at(&d, "b");
        push(&p, &target, blocks, 2, 0, 8);
        assert_told(&p, COMM_PUSHED, -ENOENT, "not waited for");
        target = target_at(&d, "a");
        push(&p, &target, blocks, 2, 0, 7);
        assert_told(&p, COMM_PUSHED, -ERANGE, "other tokens");
        push(&p, &target, blocks, 2, 4, 8);
        assert_told(&p, COMM_PUSHED, -ERANGE, "other tokens");
        all_rows(push(&p, &target, blocks, 2, 0, 8), 0, 8); /* none of them has used it */
        assert_told(&d, COMM_RECEIVED, 0, NULL);
        assert_told(&p, COMM_PUSHED, 0, NULL);
        push(&p, &target, blocks, 2, 0, 8);
        assert_told(&p, COMM_PUSHED, -ENOENT, "not waited for"); /* it serves once */
        side_close(&d);
        side_close(&p);
}

static void sides_that_do_not_fit_say_in_what(void **state) {
        const uint32_t blocks[] = {1};
        struct comm_source target;
        struct side p, d;
        struct comm_options o = side_options(&d, "d", 4);

        o.host = "127.0.0.1";
        side_open(&d, &o);
        o = side_options(&p, "p", 4);
        p.facts[0].value = "bfloat16";
        side_open(&p, &o);
        target = target_at(&d, "a");
        push(&p, &target, blocks, 1, 0, 4);
        assert_told(&p, COMM_PUSHED, -EPROTO, "its kv_type is float32, here it is bfloat16");
        p.facts[0].value = "float32";
        target.engine_id = SLICE_LIT("q");
        push(&p, &target, blocks, 1, 0, 4);
        assert_told(&p, COMM_PUSHED, -ESTALE, "another engine, d");
        side_close(&p);
        comm_free(d.comm);
        free(d.pool.base);
}

static void a_decoder_that_is_not_there_or_says_nothing_is_given_up(void **state) {
        const uint32_t blocks[] = {1};
        struct comm_source target = {.host = SLICE_LIT("127.0.0.1"), .engine_id = SLICE_LIT("d"), .id = SLICE_LIT("a")};
        struct sockaddr_in at = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
        socklen_t bytes = sizeof(at);
        int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
        struct side p;
        struct comm_options o = side_options(&p, "p", 4);

        assert_int_equal(bind(fd, (struct sockaddr *)&at, sizeof(at)), 0);
        assert_int_equal(getsockname(fd, (struct sockaddr *)&at, &bytes), 0);
        target.port = ntohs(at.sin_port);
        o.silence_ms = 200;
        side_open(&p, &o);
        push(&p, &target, blocks, 1, 0, 4);
        assert_told(&p, COMM_PUSHED, -ECONNREFUSED, "cannot connect");
        assert_int_equal(listen(fd, 8), 0);
        push(&p, &target, blocks, 1, 0, 4);
        assert_told(&p, COMM_PUSHED, -ETIMEDOUT, "no answer");
        target.host = SLICE_LIT("no.such.host.invalid");
        push(&p, &target, blocks, 1, 0, 4);
        comm_event_free(next_event(&p));
        close(fd);
        side_close(&p);
}

/* ---- hostile writers ------------------------------------------------------------------------------------------------------ */

/* A connection of its own to a decoder's port, which speaks the protocol as far as it likes to. */
static int raw_connect(const struct side *d) {
        struct sockaddr_in at = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
        int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

        at.sin_port = htons(comm_port(d->comm));
        assert_int_equal(connect(fd, (struct sockaddr *)&at, sizeof(at)), 0);
        return fd;
}

static void raw_send(int fd, const struct wire_message *m) {
        struct buf b = {0};

        wire_write(&b, m);
        assert_int_equal(send(fd, b.ptr, b.len, MSG_NOSIGNAL), b.len);
        buf_free(&b);
}

static void raw_await(int fd, enum wire_kind kind) {
        char bytes[WIRE_REQUEST_MAX];
        uint32_t body;

        assert_int_equal(recv(fd, bytes, WIRE_HEAD_BYTES, MSG_WAITALL), WIRE_HEAD_BYTES);
        assert_int_equal(bytes[4], kind);
        memcpy(&body, bytes, sizeof(body));
        assert_true(body < sizeof(bytes));
        if (body)
                assert_int_equal(recv(fd, bytes, body, MSG_WAITALL), body);
}

static const struct wire_message hello = {.kind = WIRE_HELLO, .version = WIRE_VERSION, .engine = SLICE_LIT("evil")};

/* Up to the point where its rows are taken. */
static int raw_open(const struct side *d, uint32_t first, uint32_t end) {
        struct wire_message m = {.kind = WIRE_PUSH, .lease = SLICE_LIT("a"), .first = first, .end = end};
        int fd = raw_connect(d);

        raw_send(fd, &hello);
        raw_await(fd, WIRE_WELCOME);
        raw_send(fd, &m);
        raw_await(fd, WIRE_READY);
        return fd;
}

/* Nothing but tokens [8, 16) of its lease, whatever it says. */
static void a_writer_cannot_write_beyond_its_lease(void **state) {
        static const char table[4096];
        const struct wire_message bad[] = {
            {.kind = WIRE_ROWS, .layer = LAYERS, .first = 8, .end = 16},
            {.kind = WIRE_ROWS, .layer = UINT32_MAX, .first = 8, .end = 16},
            {.kind = WIRE_ROWS, .first = 0, .end = 16},  /* before it */
            {.kind = WIRE_ROWS, .first = 12, .end = 16}, /* out of order */
            {.kind = WIRE_ROWS, .first = 8, .end = 17},  /* behind it */
            {.kind = WIRE_ROWS, .first = 8, .end = UINT32_MAX},
            {.kind = WIRE_ROWS, .first = 8, .end = 8}, /* nothing */
            {.kind = WIRE_ROWS, .first = 16, .end = 8},
            {.kind = WIRE_ROWS,
                .first = 8,
                .end = 16,
                .table = {table, 8},
                .table_count = 2}, /* its memory is not read */
            {.kind = WIRE_COMPLETE},
            {.kind = WIRE_CLOSED, .valid = true},
            {.kind = WIRE_FETCH, .lease = SLICE_LIT("a"), .end = 4, .group = 4},
            {.kind = WIRE_PUSH, .lease = SLICE_LIT("a"), .first = 8, .end = 16},
            {.kind = WIRE_HELLO, .version = WIRE_VERSION},
            {.kind = WIRE_READY},
        };
        const uint32_t blocks[] = {5, 3, 7, 1};

        for (size_t i = 0; i < sizeof(bad) / sizeof(*bad); i++)
                for (int later = 0; later < 2; later++) {
                        struct wire_message rows = {.kind = WIRE_ROWS, .layer = 1, .first = 8, .end = 16};
                        static char junk[8 * ROW];
                        struct side d;
                        struct comm_options o = side_options(&d, "d", 4);
                        int fd;

                        memset(junk, 0x77, sizeof(junk));
                        o.host = "127.0.0.1";
                        side_open(&d, &o);
                        expect(&d, "a", blocks, 4, 8, 16);
                        fd = raw_open(&d, 8, 16);
                        if (later) {
                                raw_send(fd, &rows);
                                assert_int_equal(send(fd, junk, sizeof(junk), MSG_NOSIGNAL), sizeof(junk));
                        }
                        raw_send(fd, &bad[i]);
                        for (int k = 0; k < 50; k++)
                                if (send(fd, junk, sizeof(junk), MSG_NOSIGNAL) < 0)
                                        break;
                        assert_told(&d, COMM_RECEIVED, -EPROTO, "does not speak");
                        close(fd);
                        for (uint32_t b = 0; b < BLOCKS; b++) /* blocks 7 and 1 are the lease's */
                                for (size_t k = 0; b != 7 && b != 1 && k < LAYERS * 4 * ROW; k++)
                                        assert_int_equal(d.pool.base[b * LAYERS * 4 * ROW + k], 0);
                        side_close(&d);
                }
}

static void who_does_not_know_the_name_writes_nothing(void **state) {
        static const char junk[1000] = "xxxxxxxx";
        const uint32_t blocks[] = {5, 3};
        const char *const names[] = {"b", "", "A"};
        const size_t bytes = (size_t)BLOCKS * LAYERS * 4 * ROW;
        struct side d;
        struct comm_options o = side_options(&d, "d", 4);
        struct comm_receipt *x;

        o.host = "127.0.0.1";
        side_open(&d, &o);
        x = expect(&d, "a", blocks, 2, 0, 8);
        for (size_t i = 0; i < 3; i++) {
                struct wire_message m = {.kind = WIRE_PUSH, .lease = slice_str(names[i]), .end = 8};
                struct wire_message rows = {.kind = WIRE_ROWS, .end = 8};
                int fd = raw_connect(&d);

                if (i == 0) { /* not even introduced */
                        raw_send(fd, &m);
                        assert_int_equal(recv(fd, &(char){0}, 1, 0), 0);
                        close(fd);
                        fd = raw_connect(&d);
                }
                raw_send(fd, &hello);
                raw_await(fd, WIRE_WELCOME);
                raw_send(fd, &m);
                raw_await(fd, WIRE_REFUSED);
                raw_send(fd, &rows);
                send(fd, junk, sizeof(junk), MSG_NOSIGNAL);
                while (recv(fd, &(char){0}, 1, 0) > 0)
                        ;
                close(fd);
        }
        comm_refuse(x);
        assert_told(&d, COMM_RECEIVED, -ECANCELED, NULL);
        for (size_t i = 0; i < bytes; i++)
                assert_int_equal(d.pool.base[i], 0);
        side_close(&d);
}

/* What it says of its memory is believed only when it can be proved by reading there. */
static void a_claim_to_be_of_this_host_must_be_proved(void **state) {
        static uint8_t proof[16] = "not the secret!";
        const uint32_t blocks[] = {5, 3};
        struct wire_message claims[] = {
            {.kind = WIRE_PUSH,
                .lease = SLICE_LIT("a"),
                .end = 8,
                .block_tokens = 4,
                .blocks = 9,
                .pid = 1,
                .proof_at = 0x400000},
            {.kind = WIRE_PUSH, .lease = SLICE_LIT("a"), .end = 8, .block_tokens = 4, .blocks = 9, .pid = UINT64_MAX},
            {.kind = WIRE_PUSH,
                .lease = SLICE_LIT("a"),
                .end = 8,
                .block_tokens = 4,
                .blocks = 9,
                .pid = (uint64_t)getpid(),
                .proof_at = (uintptr_t)proof},
        };

        for (size_t i = 0; i < 3; i++) {
                struct side d;
                struct comm_options o = side_options(&d, "d", 4);
                char answer[WIRE_HEAD_BYTES + 2];
                int fd;

                o.host = "127.0.0.1";
                side_open(&d, &o);
                expect(&d, "a", blocks, 2, 0, 8);
                fd = raw_connect(&d);
                raw_send(fd, &hello);
                raw_await(fd, WIRE_WELCOME);
                raw_send(fd, &claims[i]);
                assert_int_equal(recv(fd, answer, sizeof(answer), MSG_WAITALL), sizeof(answer));
                assert_int_equal(answer[4], WIRE_READY);
                assert_int_equal(answer[WIRE_HEAD_BYTES], 0); /* not direct */
                close(fd);
                assert_told(&d, COMM_RECEIVED, -ECONNRESET, "ended the connection");
                side_close(&d);
        }
}

/* One that may be read, but names blocks and addresses at will: what cannot be read ends it. */
static void tables_of_blocks_that_are_none_end_it(void **state) {
        static uint8_t proof[16] = "this process is!";
        const uint32_t blocks[] = {5, 3}, tables[][2] = {{0, 9}, {UINT32_MAX, 0}, {0, 1}};

        for (size_t i = 0; i < 3; i++) {
                struct wire_message m = {.kind = WIRE_PUSH,
                    .lease = SLICE_LIT("a"),
                    .end = 8,
                    .block_tokens = 4,
                    .blocks = 9,
                    .base = 64, /* nothing is there */
                    .pid = (uint64_t)getpid(),
                    .proof_at = (uintptr_t)proof};
                struct wire_message rows = {.kind = WIRE_ROWS,
                    .end = 8,
                    .table = {(const char *)tables[i], sizeof(tables[i])},
                    .table_count = 2};
                struct side d;
                struct comm_options o = side_options(&d, "d", 4);
                int fd;

                memcpy(m.proof, proof, sizeof(m.proof));
                o.host = "127.0.0.1";
                side_open(&d, &o);
                expect(&d, "a", blocks, 2, 0, 8);
                fd = raw_connect(&d);
                raw_send(fd, &hello);
                raw_await(fd, WIRE_WELCOME);
                raw_send(fd, &m);
                raw_await(fd, WIRE_READY);
                raw_send(fd, &rows);
                assert_told(&d, COMM_RECEIVED, i == 2 ? -EFAULT : -EPROTO, NULL);
                close(fd);
                side_close(&d);
        }
}

/* All was sent; but it does not say that it was the prompt's, or says that it was not. */
static void only_the_writers_last_word_makes_it_count(void **state) {
        static const char junk[8 * ROW];
        const uint32_t blocks[] = {5, 3};

        for (int way = 0; way < 4; way++) {
                struct wire_message complete = {.kind = WIRE_COMPLETE}, closed = {.kind = WIRE_CLOSED};
                struct side d;
                struct comm_options o = side_options(&d, "d", 4);
                int fd;

                o.host = "127.0.0.1";
                o.checksum = way == 3;
                o.silence_ms = way == 2 ? 200 : 0;
                side_open(&d, &o);
                expect(&d, "a", blocks, 2, 0, 8);
                fd = raw_open(&d, 0, 8);
                for (uint32_t layer = 0; layer < LAYERS; layer++) {
                        struct wire_message rows = {.kind = WIRE_ROWS, .layer = layer, .end = 8};

                        raw_send(fd, &rows);
                        assert_int_equal(send(fd, junk, sizeof(junk), MSG_NOSIGNAL), sizeof(junk));
                }
                raw_send(fd, &complete);
                if (way == 3) {
                        assert_told(&d, COMM_RECEIVED, -EBADMSG, "checksum");
                } else {
                        raw_await(fd, WIRE_CLOSE);
                        assert_null(comm_take(d.comm));
                        if (way == 0) {
                                raw_send(fd, &closed);
                                assert_told(&d, COMM_RECEIVED, -ESTALE, "let go");
                        } else if (way == 1) {
                                close(fd);
                                assert_told(&d, COMM_RECEIVED, -ECONNRESET, "ended the connection");
                        } else
                                assert_told(&d, COMM_RECEIVED, -ETIMEDOUT, "no sign");
                }
                if (way != 1)
                        close(fd);
                side_close(&d);
        }
}

static void a_second_writer_is_refused_and_disturbs_nobody(void **state) {
        static const char junk[8 * ROW];
        const uint32_t blocks[] = {5, 3};
        struct wire_message push_again = {.kind = WIRE_PUSH, .lease = SLICE_LIT("a"), .end = 8};
        struct wire_message complete = {.kind = WIRE_COMPLETE}, closed = {.kind = WIRE_CLOSED, .valid = true};
        struct side d;
        struct comm_options o = side_options(&d, "d", 4);
        int fd, second;

        o.host = "127.0.0.1";
        side_open(&d, &o);
        expect(&d, "a", blocks, 2, 0, 8);
        fd = raw_open(&d, 0, 8);
        second = raw_connect(&d);
        raw_send(second, &hello);
        raw_await(second, WIRE_WELCOME);
        raw_send(second, &push_again);
        raw_await(second, WIRE_REFUSED);
        close(second);
        for (uint32_t layer = 0; layer < LAYERS; layer++) {
                struct wire_message rows = {.kind = WIRE_ROWS, .layer = layer, .end = 8};

                raw_send(fd, &rows);
                assert_int_equal(send(fd, junk, sizeof(junk), MSG_NOSIGNAL), sizeof(junk));
        }
        raw_send(fd, &complete);
        raw_await(fd, WIRE_CLOSE);
        raw_send(fd, &closed);
        assert_told(&d, COMM_RECEIVED, 0, NULL);
        close(fd);
        side_close(&d);
}

static void names_and_tokens_that_are_none_are_refused(void **state) {
        static char many[COMM_NAME_MAX + 2];
        const uint32_t blocks[] = {1};
        struct comm_source target;
        struct comm_receipt *x = NULL;
        struct comm_push *made = NULL;
        struct side p, d;

        memset(many, 'x', sizeof(many) - 1);
        open_pair(&p, 4, &d, 4, COMM_WAY_BEST);
        assert_int_equal(comm_expect(d.comm, slice_str(many), blocks, 1, 0, 4, NULL, &x), -EINVAL);
        assert_int_equal(comm_expect(d.comm, SLICE_LIT("a"), blocks, 1, 0, 5, NULL, &x), -EINVAL);
        assert_int_equal(comm_expect(d.comm, SLICE_LIT("a"), blocks, 1, 4, 4, NULL, &x), -EINVAL);
        target = target_at(&d, many);
        assert_int_equal(comm_push(p.comm, &target, 0, 4, NULL, &made), -EINVAL);
        target = target_at(&d, "a");
        assert_int_equal(comm_push(p.comm, &target, 4, 4, NULL, &made), -EINVAL);
        target.port = 0;
        assert_int_equal(comm_push(p.comm, &target, 0, 4, NULL, &made), -EINVAL);
        side_close(&d);
        side_close(&p);
}

int main(void) {
        const struct CMUnitTest tests[] = {
            cmocka_unit_test(any_tokens_arrive_in_any_chunks_whatever_the_block_sizes),
            cmocka_unit_test(long_runs_are_cut_and_arrive),
            cmocka_unit_test(rows_are_there_before_the_rest_is_computed),
            cmocka_unit_test(many_are_pushed_at_once),
            cmocka_unit_test(what_was_given_up_is_never_written_again),
            cmocka_unit_test(what_its_writer_gave_up_does_not_count),
            cmocka_unit_test(a_side_that_ends_in_the_middle_leaves_a_clean_end),
            cmocka_unit_test(nobody_comes_within_the_lease),
            cmocka_unit_test(a_writer_that_computes_is_waited_for),
            cmocka_unit_test(what_is_not_waited_for_is_refused),
            cmocka_unit_test(sides_that_do_not_fit_say_in_what),
            cmocka_unit_test(a_decoder_that_is_not_there_or_says_nothing_is_given_up),
            cmocka_unit_test(a_writer_cannot_write_beyond_its_lease),
            cmocka_unit_test(who_does_not_know_the_name_writes_nothing),
            cmocka_unit_test(a_claim_to_be_of_this_host_must_be_proved),
            cmocka_unit_test(tables_of_blocks_that_are_none_end_it),
            cmocka_unit_test(only_the_writers_last_word_makes_it_count),
            cmocka_unit_test(a_second_writer_is_refused_and_disturbs_nobody),
            cmocka_unit_test(names_and_tokens_that_are_none_are_refused),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
