/* Leases and fetches between two comms in this process, over real sockets. */
#include "rig.h"

static struct comm_source source_at(const struct side *p, const char *id) {
        return (struct comm_source){.host = SLICE_LIT("127.0.0.1"),
            .port = comm_port(p->comm),
            .engine_id = SLICE_LIT("p"),
            .id = slice_str(id)};
}

static struct comm_fetch *announce(struct side *d, const struct comm_source *from) {
        struct comm_fetch *f;

        assert_int_equal(comm_announce(d->comm, from, d, &f), 0);
        return f;
}

static void assert_released(struct side *p, int result) {
        struct comm_event *e = next_event(p);

        assert_int_equal(e->kind, COMM_RELEASED);
        assert_int_equal(e->result, result);
        comm_event_free(e);
}

static void assert_fetched(struct side *d, int result, const char *part) {
        struct comm_event *e = next_event(d);

        assert_int_equal(e->kind, COMM_FETCHED);
        assert_ptr_equal(e->user, d);
        if (e->result != result || (part && !strstr(e->text, part)))
                fail_msg("%d: %s", e->result, e->text);
        comm_event_free(e);
}

static void open_both(struct side *p, uint32_t p_tokens, struct side *d, uint32_t d_tokens) {
        struct comm_options o = side_options(p, "p", p_tokens);

        o.host = "127.0.0.1";
        side_open(p, &o);
        o = side_options(d, "d", d_tokens);
        side_open(d, &o);
}

/* ---- the way it should go ---------------------------------------------------------------------------------------------- */

static void any_tokens_arrive_whatever_the_block_sizes(void **state) {
        struct rng r;

        rng_seed(&r, 3);
        for (unsigned round = 0; round < 60; round++) {
                uint32_t p_tokens = 1 + (uint32_t)rng_below(&r, 9),
                         d_tokens = round % 3 ? 1 + (uint32_t)rng_below(&r, 9) : p_tokens;
                uint32_t most = BLOCKS * (p_tokens < d_tokens ? p_tokens : d_tokens);
                uint32_t end = 1 + (uint32_t)rng_below(&r, most);
                uint32_t first = (uint32_t)rng_below(&r, (end + d_tokens - 1) / d_tokens) * d_tokens;
                uint32_t from[BLOCKS], to[BLOCKS];
                struct comm_source source;
                struct side p, d;
                struct comm_options o = side_options(&p, "p", p_tokens);

                o.host = "127.0.0.1";
                o.way = round % 2 ? COMM_WAY_STREAM : COMM_WAY_BEST;
                side_open(&p, &o);
                o = side_options(&d, "d", d_tokens);
                o.checksum = round % 5 == 0;
                side_open(&d, &o);
                table_of(from, &r);
                table_of(to, &r);
                fill(&p, &r);
                assert_int_equal(comm_export(p.comm, SLICE_LIT("a"), from, BLOCKS, end, NULL), 0);
                source = source_at(&p, "a");
                comm_fetch(announce(&d, &source), to, BLOCKS, first, end);
                assert_fetched(&d, 0, NULL);
                assert_released(&p, 0);
                assert_moved(&p, from, &d, to, first, end);
                side_close(&d);
                side_close(&p);
        }
}

static void many_fetches_share_a_connection(void **state) {
        uint32_t from[BLOCKS], to[BLOCKS];
        struct side p, d;
        struct rng r;

        rng_seed(&r, 4);
        for (int stream = 0; stream < 2; stream++) {
                struct comm_options o = side_options(&p, "p", 4);
                char name[8];

                o.host = "127.0.0.1";
                o.way = stream ? COMM_WAY_STREAM : COMM_WAY_BEST;
                side_open(&p, &o);
                o = side_options(&d, "d", 2);
                side_open(&d, &o);
                table_of(from, &r);
                table_of(to, &r);
                fill(&p, &r);
                for (uint32_t i = 0; i < 16; i++) {
                        struct comm_source source;

                        snprintf(name, sizeof(name), "r%u", i);
                        assert_int_equal(comm_export(p.comm, slice_str(name), from + i, 1, 4, NULL), 0);
                        source = source_at(&p, name);
                        comm_fetch(announce(&d, &source), to + 2 * i, 2, 0, 4);
                }
                for (uint32_t i = 0; i < 16; i++)
                        assert_fetched(&d, 0, NULL);
                for (uint32_t i = 0; i < 16; i++)
                        assert_released(&p, 0);
                assert_moved(&p, from, &d, to, 0, 64);
                side_close(&d);
                side_close(&p);
        }
}

static void a_lease_that_is_announced_outlives_its_time(void **state) {
        const uint32_t blocks[] = {1};
        struct comm_source source;
        struct side p, d;
        struct comm_options o = side_options(&p, "p", 4);
        struct comm_fetch *f;

        o.host = "127.0.0.1";
        o.lease_ms = 1500;
        side_open(&p, &o);
        o = side_options(&d, "d", 4);
        o.lease_ms = 1500;
        side_open(&d, &o);
        source = source_at(&p, "a");
        assert_int_equal(comm_export(p.comm, SLICE_LIT("a"), blocks, 1, 4, NULL), 0);
        f = announce(&d, &source);
        assert_int_equal(comm_export(p.comm, SLICE_LIT("b"), blocks, 1, 4, NULL), 0);
        assert_int_equal(comm_export(p.comm, SLICE_LIT("c"), blocks, 1, 4, NULL), 0);
        assert_released(&p, -ETIMEDOUT); /* b and c, which nobody announced: one whole lease has passed */
        assert_released(&p, -ETIMEDOUT);
        comm_fetch(f, blocks, 1, 0, 4);
        assert_fetched(&d, 0, NULL);
        assert_released(&p, 0);
        side_close(&d);
        side_close(&p);
}

/* Through UCX, over whatever it finds on this machine. */
static void ucx_moves_the_same_bytes(void **state) {
        struct rng r;

        rng_seed(&r, 6);
        for (unsigned round = 0; round < 8; round++) {
                uint32_t p_tokens = 1 + (uint32_t)rng_below(&r, 9), d_tokens = 1 + (uint32_t)rng_below(&r, 9);
                uint32_t end = BLOCKS * (p_tokens < d_tokens ? p_tokens : d_tokens);
                uint32_t from[BLOCKS], to[BLOCKS];
                struct comm_source source;
                struct side p, d;
                struct comm_options o = side_options(&p, "p", p_tokens);

                o.host = "127.0.0.1";
                o.way = COMM_WAY_UCX;
                side_open(&p, &o);
                o = side_options(&d, "d", d_tokens);
                o.way = COMM_WAY_UCX;
                o.checksum = true;
                side_open(&d, &o);
                table_of(from, &r);
                table_of(to, &r);
                fill(&p, &r);
                for (uint32_t i = 0; i < 2; i++) {
                        assert_int_equal(comm_export(p.comm, SLICE_LIT("a"), from, BLOCKS, end, NULL), 0);
                        source = source_at(&p, "a");
                        comm_fetch(announce(&d, &source), to, BLOCKS, 0, end);
                        assert_fetched(&d, 0, NULL);
                        assert_released(&p, 0);
                }
                assert_moved(&p, from, &d, to, 0, end);
                side_close(&d);
                side_close(&p);
        }
}

/* One of them has UCX: they meet over TCP. */
static void one_side_with_ucx_is_no_obstacle(void **state) {
        const uint32_t blocks[] = {1};

        for (int which = 0; which < 2; which++) {
                struct comm_source source;
                struct side p, d;
                struct comm_options o = side_options(&p, "p", 4);

                o.host = "127.0.0.1";
                o.way = which ? COMM_WAY_UCX : COMM_WAY_STREAM;
                side_open(&p, &o);
                o = side_options(&d, "d", 4);
                o.way = which ? COMM_WAY_STREAM : COMM_WAY_UCX;
                side_open(&d, &o);
                source = source_at(&p, "a");
                assert_int_equal(comm_export(p.comm, SLICE_LIT("a"), blocks, 1, 4, NULL), 0);
                comm_fetch(announce(&d, &source), blocks, 1, 0, 4);
                assert_fetched(&d, 0, NULL);
                assert_released(&p, 0);
                side_close(&d);
                side_close(&p);
        }
}

/* ---- ends -------------------------------------------------------------------------------------------------------------- */

static void a_lease_serves_one_fetch(void **state) {
        const uint32_t blocks[] = {1};
        struct comm_source source;
        struct side p, d;

        open_both(&p, 4, &d, 4);
        source = source_at(&p, "a");
        assert_int_equal(comm_export(p.comm, SLICE_LIT("a"), blocks, 1, 4, NULL), 0);
        comm_fetch(announce(&d, &source), blocks, 1, 0, 4);
        assert_fetched(&d, 0, NULL);
        comm_fetch(announce(&d, &source), blocks, 1, 0, 4);
        assert_fetched(&d, -ENOENT, "ended");
        assert_released(&p, 0);
        side_close(&d);
        side_close(&p);
}

static void more_tokens_than_were_kept_are_refused(void **state) {
        const uint32_t blocks[] = {1, 2};
        struct comm_source source;
        struct side p, d;

        open_both(&p, 4, &d, 4);
        source = source_at(&p, "a");
        assert_int_equal(comm_export(p.comm, SLICE_LIT("a"), blocks, 2, 7, NULL), 0);
        comm_fetch(announce(&d, &source), blocks, 2, 0, 8);
        assert_fetched(&d, -ERANGE, "tokens");
        side_close(&d);
        side_close(&p); /* the lease is still held */
}

static void what_is_not_wanted_is_given_back(void **state) {
        const uint32_t blocks[] = {1};
        struct side p, d;

        open_both(&p, 4, &d, 4);
        for (int way = 0; way < 3; way++) {
                struct comm_source source = source_at(&p, "a");
                struct comm_fetch *f;

                assert_int_equal(comm_export(p.comm, SLICE_LIT("a"), blocks, 1, 4, NULL), 0);
                f = announce(&d, &source);
                if (way == 0) {
                        comm_fetch(f, blocks, 1, 4, 4); /* all of it was known */
                        assert_fetched(&d, 0, NULL);
                } else {
                        if (way == 1)
                                comm_drop(f);
                        else {
                                comm_fetch(f, blocks, 1, 0, 4);
                                comm_drop(f);
                        }
                        assert_fetched(&d, -ECANCELED, NULL);
                }
                if (way < 2)
                        assert_released(&p, -ECANCELED);
                else /* it may have been under way */
                        comm_event_free(next_event(&p));
        }
        side_close(&d);
        side_close(&p);
}

static void what_nobody_reads_can_be_withdrawn(void **state) {
        const uint32_t blocks[] = {1};
        struct comm_source source;
        struct side p, d;

        open_both(&p, 4, &d, 4);
        source = source_at(&p, "a");
        assert_int_equal(comm_export(p.comm, SLICE_LIT("a"), blocks, 1, 4, NULL), 0);
        comm_withdraw(p.comm, SLICE_LIT("a"));
        comm_withdraw(p.comm, SLICE_LIT("b")); /* there is none */
        assert_released(&p, -ECANCELED);
        comm_fetch(announce(&d, &source), blocks, 1, 0, 4);
        assert_fetched(&d, -ENOENT, NULL);
        side_close(&d);
        side_close(&p);
}

static void sides_that_do_not_fit_say_in_what(void **state) {
        const uint32_t blocks[] = {1};
        struct comm_source source;
        struct side p, d;
        struct comm_options o = side_options(&p, "p", 4);

        o.host = "127.0.0.1";
        side_open(&p, &o);
        o = side_options(&d, "d", 4);
        d.facts[0].value = "bfloat16";
        side_open(&d, &o);
        source = source_at(&p, "a");
        comm_fetch(announce(&d, &source), blocks, 1, 0, 4);
        assert_fetched(&d, -EPROTO, "kv_type is float32, here it is bfloat16");
        side_close(&d);
        o = side_options(&d, "d", 4);
        o.pool.row_bytes = ROW / 2;
        side_open(&d, &o);
        comm_fetch(announce(&d, &source), blocks, 1, 0, 4);
        assert_fetched(&d, -EPROTO, "kv_row_bytes is 40, here it is 20");
        side_close(&d);
        side_close(&p);
}

static void another_engine_at_the_address_is_noticed(void **state) {
        const uint32_t blocks[] = {1};
        struct comm_source source;
        struct side p, d;

        open_both(&p, 4, &d, 4);
        source = source_at(&p, "a");
        source.engine_id = SLICE_LIT("q");
        comm_fetch(announce(&d, &source), blocks, 1, 0, 4);
        assert_fetched(&d, -ESTALE, "another engine, p");
        side_close(&d);
        side_close(&p);
}

static void nobody_at_the_address_is_said_at_once(void **state) {
        const uint32_t blocks[] = {1};
        struct comm_source source;
        struct side p, d;

        open_both(&p, 4, &d, 4);
        source = source_at(&p, "a");
        comm_free(p.comm);
        p.comm = NULL;
        comm_fetch(announce(&d, &source), blocks, 1, 0, 4);
        assert_fetched(&d, -ECONNREFUSED, "cannot connect");
        side_close(&d);
        free(p.pool.base);
}

/* A listener that takes connections and says nothing, or what it is told. */
static int listen_somewhere(uint16_t *ret_port) {
        struct sockaddr_in at = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
        socklen_t bytes = sizeof(at);
        int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

        assert_true(fd >= 0);
        assert_int_equal(bind(fd, (struct sockaddr *)&at, sizeof(at)), 0);
        assert_int_equal(listen(fd, 8), 0);
        assert_int_equal(getsockname(fd, (struct sockaddr *)&at, &bytes), 0);
        *ret_port = ntohs(at.sin_port);
        return fd;
}

static void a_producer_that_says_nothing_is_given_up(void **state) {
        const uint32_t blocks[] = {1};
        struct comm_source source = {.host = SLICE_LIT("127.0.0.1"), .engine_id = SLICE_LIT("p"), .id = SLICE_LIT("a")};
        struct side d;
        struct comm_options o = side_options(&d, "d", 4);
        int fd = listen_somewhere(&source.port);

        o.silence_ms = 200;
        side_open(&d, &o);
        comm_fetch(announce(&d, &source), blocks, 1, 0, 4);
        assert_fetched(&d, -ETIMEDOUT, "no answer");
        close(fd);
        side_close(&d);
}

static void a_producer_that_talks_nonsense_is_given_up(void **state) {
        static const char nonsense[] = "HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n";
        const uint32_t blocks[] = {1};
        struct comm_source source = {.host = SLICE_LIT("127.0.0.1"), .engine_id = SLICE_LIT("p"), .id = SLICE_LIT("a")};
        struct side d;
        struct comm_options o = side_options(&d, "d", 4);
        int fd = listen_somewhere(&source.port), peer;

        side_open(&d, &o);
        comm_fetch(announce(&d, &source), blocks, 1, 0, 4);
        peer = accept(fd, NULL, NULL);
        assert_true(peer >= 0);
        assert_int_equal(write(peer, nonsense, sizeof(nonsense) - 1), sizeof(nonsense) - 1);
        assert_fetched(&d, -EPROTO, "does not speak");
        close(peer);
        close(fd);
        side_close(&d);
}

static void a_reader_that_vanishes_frees_the_lease(void **state) {
        const uint32_t blocks[] = {1};
        static const char hello[] = "\x08\0\0\0\1\0\0\0\0\0\0\0\0\0\0\0"
                                    "\1\0"
                                    "\2\0"
                                    "dd"
                                    "\0\0";
        static const char fetch[] = "\x11\0\0\0\5\0\0\0\1\0\0\0\0\0\0\0"
                                    "\1\0"
                                    "a"
                                    "\0\0\0\0"
                                    "\4\0\0\0"
                                    "\4\0\0\0"
                                    "\1\0";
        struct sockaddr_in at = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
        struct side p;
        struct comm_options o = side_options(&p, "p", 4);
        int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
        char answer[16];

        o.host = "127.0.0.1";
        side_open(&p, &o);
        assert_int_equal(comm_export(p.comm, SLICE_LIT("a"), blocks, 1, 4, NULL), 0);
        at.sin_port = htons(comm_port(p.comm));
        assert_int_equal(connect(fd, (struct sockaddr *)&at, sizeof(at)), 0);
        assert_int_equal(write(fd, hello, sizeof(hello) - 1), sizeof(hello) - 1);
        assert_int_equal(write(fd, fetch, sizeof(fetch) - 1), sizeof(fetch) - 1);
        assert_int_equal(recv(fd, answer, sizeof(answer), MSG_WAITALL), sizeof(answer));
        assert_int_equal(answer[4], 2); /* welcome */
        close(fd);
        assert_released(&p, -ECONNRESET);
        side_close(&p);
}

static void a_producer_that_ends_ends_its_fetches(void **state) {
        const uint32_t blocks[] = {1};
        struct comm_source source;
        struct side p, d;
        struct comm_fetch *f;

        open_both(&p, 4, &d, 4);
        source = source_at(&p, "a");
        assert_int_equal(comm_export(p.comm, SLICE_LIT("a"), blocks, 1, 4, NULL), 0);
        f = announce(&d, &source); /* connected or not */
        comm_free(p.comm);
        comm_fetch(f, blocks, 1, 0, 4);
        comm_event_free(next_event(&d));
        side_close(&d);
        free(p.pool.base);
}

/* Thirty megabytes take longer than it takes to leave, on most ways; either end is right, but there must be one. */
static void a_side_that_ends_in_the_middle_leaves_a_clean_end(void **state) {
        static const enum comm_way ways[] = {COMM_WAY_BEST, COMM_WAY_STREAM, COMM_WAY_UCX};
        uint32_t blocks[BLOCKS];

        for (uint32_t i = 0; i < BLOCKS; i++)
                blocks[i] = i;
        for (size_t i = 0; i < 6; i++) {
                struct comm_source source;
                struct side p, d;
                struct comm_options o = side_options(&p, "p", 4096);
                struct comm_event *e;

                o.host = "127.0.0.1";
                o.way = ways[i % 3];
                o.lease_ms = 500; /* it may be that nobody has come */
                side_open(&p, &o);
                o = side_options(&d, "d", 4096);
                o.way = ways[i % 3];
                side_open(&d, &o);
                source = source_at(&p, "a");
                assert_int_equal(comm_export(p.comm, SLICE_LIT("a"), blocks, BLOCKS, BLOCKS * 4096, NULL), 0);
                comm_fetch(announce(&d, &source), blocks, BLOCKS, 0, BLOCKS * 4096);
                if (i < 3) {
                        comm_free(p.comm);
                        p.comm = NULL;
                        e = next_event(&d);
                        if (e->result < 0)
                                assert_true(strlen(e->text) > 0);
                        comm_event_free(e);
                        side_close(&d);
                } else {
                        side_close(&d);
                        comm_event_free(next_event(&p));
                        comm_free(p.comm);
                }
                free(p.pool.base);
        }
}

static void a_port_that_is_taken_is_said(void **state) {
        struct side p, other;
        struct comm_options o = side_options(&p, "p", 4);
        struct error e = {0};

        o.host = "127.0.0.1";
        side_open(&p, &o);
        o = side_options(&other, "q", 4);
        o.host = "127.0.0.1";
        o.port = comm_port(p.comm);
        assert_int_equal(comm_new(&o, &other.comm, &e), -EADDRINUSE);
        assert_non_null(strstr(e.text, "127.0.0.1 port"));
        o.host = "localhost";
        assert_int_equal(comm_new(&o, &other.comm, &e), -EINVAL);
        free(other.pool.base);
        side_close(&p);
}

static void names_that_are_none_are_refused(void **state) {
        static char many[COMM_NAME_MAX + 2];
        const uint32_t blocks[] = {1};
        struct side p, d;
        struct comm_source source;
        struct comm_fetch *f = NULL;

        memset(many, 'x', sizeof(many) - 1);
        open_both(&p, 4, &d, 4);
        assert_int_equal(comm_export(p.comm, slice_str(many), blocks, 1, 4, NULL), -EINVAL);
        assert_int_equal(comm_export(p.comm, SLICE_LIT("a"), blocks, 1, 5, NULL), -EINVAL);
        source = source_at(&p, many);
        assert_int_equal(comm_announce(d.comm, &source, NULL, &f), -EINVAL);
        source = source_at(&p, "a");
        source.port = 0;
        assert_int_equal(comm_announce(d.comm, &source, NULL, &f), -EINVAL);
        side_close(&d);
        side_close(&p);
}

int main(void) {
        const struct CMUnitTest tests[] = {
            cmocka_unit_test(any_tokens_arrive_whatever_the_block_sizes),
            cmocka_unit_test(many_fetches_share_a_connection),
            cmocka_unit_test(ucx_moves_the_same_bytes),
            cmocka_unit_test(one_side_with_ucx_is_no_obstacle),
            cmocka_unit_test(a_lease_that_is_announced_outlives_its_time),
            cmocka_unit_test(a_lease_serves_one_fetch),
            cmocka_unit_test(more_tokens_than_were_kept_are_refused),
            cmocka_unit_test(what_is_not_wanted_is_given_back),
            cmocka_unit_test(what_nobody_reads_can_be_withdrawn),
            cmocka_unit_test(sides_that_do_not_fit_say_in_what),
            cmocka_unit_test(another_engine_at_the_address_is_noticed),
            cmocka_unit_test(nobody_at_the_address_is_said_at_once),
            cmocka_unit_test(a_producer_that_says_nothing_is_given_up),
            cmocka_unit_test(a_producer_that_talks_nonsense_is_given_up),
            cmocka_unit_test(a_reader_that_vanishes_frees_the_lease),
            cmocka_unit_test(a_producer_that_ends_ends_its_fetches),
            cmocka_unit_test(a_side_that_ends_in_the_middle_leaves_a_clean_end),
            cmocka_unit_test(a_port_that_is_taken_is_said),
            cmocka_unit_test(names_that_are_none_are_refused),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
