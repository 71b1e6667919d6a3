/* Bytes between ranks of one host: all arrive in order, whatever the cut; lies and deaths of peers are told, and never fault. */
#include "base/buf.h"
#include "base/rng.h"
#include "comm/links.h"
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

enum { RANKS = 2, TOTAL = 5 << 20 };

/* Two ranks of this process. */
struct pair {
        struct inbox *box[2];
        struct near_link *link[2];
        int fd[2];
};

static struct slice offer_of(const struct inbox *b, char text[NEAR_OFFER_MAX]) {
        inbox_offer(b, text);
        return slice_str(text);
}

static struct pair pair_new(void) {
        struct pair p;
        char text[NEAR_OFFER_MAX];

        assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, p.fd), 0);
        for (uint32_t i = 0; i < 2; i++)
                assert_int_equal(inbox_new(RANKS, &p.box[i]), 0);
        for (uint32_t i = 0; i < 2; i++)
                assert_int_equal(near_open(p.box[i], i, 1 - i, offer_of(p.box[1 - i], text), &p.link[i]), 0);
        assert_true(near_is_mutual(p.link[0]) && near_is_mutual(p.link[1]));
        return p;
}

static void pair_free(struct pair *p) {
        for (int i = 0; i < 2; i++)
                near_close(p->link[i]);
        for (int i = 0; i < 2; i++) {
                inbox_free(p->box[i]);
                close(p->fd[i]);
        }
}

static char *noise(void) {
        char *bytes = malloc(TOTAL);
        struct rng r;

        assert_non_null(bytes);
        rng_seed(&r, 3);
        for (size_t i = 0; i < TOTAL; i += 8) {
                uint64_t word = rng_u64(&r);

                memcpy(bytes + i, &word, 8);
        }
        return bytes;
}

static void any_cut_gives_the_same_bytes(void **state) {
        struct pair p = pair_new();
        char *sent = noise(), *got = calloc(1, TOTAL);
        size_t out = 0, in = 0;
        struct rng r;

        rng_seed(&r, 4);
        while (in < TOTAL) {
                size_t most = (size_t)1 << rng_below(&r, 22), want = 1 + (size_t)rng_below(&r, most);
                ssize_t n;

                if (rng_below(&r, 2)) {
                        n = near_write(p.link[0], p.fd[0], sent + out, want < TOTAL - out ? want : TOTAL - out);
                        assert_true(n >= 0);
                        out += (size_t)n;
                        assert_int_equal(near_has_bytes(p.link[1]), out > in);
                } else {
                        n = near_read(p.link[1], p.fd[1], got + in, want < TOTAL - in ? want : TOTAL - in);
                        assert_true(n >= 0);
                        in += (size_t)n;
                }
        }
        assert_memory_equal(sent, got, TOTAL);
        free(sent);
        free(got);
        pair_free(&p);
}

static void who_dozes_is_told_once(void **state) {
        struct pair p = pair_new();
        char byte;

        assert_int_equal(near_write(p.link[0], p.fd[0], "a", 1), 1);
        assert_int_equal(recv(p.fd[1], &byte, 1, 0), -1); /* it was awake */
        inbox_doze(p.box[1]);
        assert_int_equal(near_write(p.link[0], p.fd[0], "b", 1), 1);
        assert_int_equal(near_write(p.link[0], p.fd[0], "c", 1), 1);
        assert_int_equal(recv(p.fd[1], &byte, 1, 0), 1);
        assert_int_equal(recv(p.fd[1], &byte, 1, 0), -1);
        assert_int_equal(near_drain(p.fd[1]), 0);
        close(p.fd[0]);
        p.fd[0] = -1;
        assert_int_equal(near_drain(p.fd[1]), -ECONNRESET);
        pair_free(&p);
}

/* ---- lies --------------------------------------------------------------------------------------------------------------- */

static void refused(struct inbox *own, int error, const char *format, ...) {
        struct near_link *l;
        char text[256];
        va_list args;

        va_start(args, format);
        vsnprintf(text, sizeof(text), format, args);
        va_end(args);
        assert_int_equal(near_open(own, 0, 1, slice_str(text), &l), error);
}

static void offers_that_lie_are_refused(void **state) {
        struct inbox *own, *theirs, *larger;
        char text[NEAR_OFFER_MAX], copy[NEAR_OFFER_MAX], zeros[33];
        struct stat st;
        int pid, fd, file = open("/dev/zero", O_RDWR | O_CLOEXEC), loose;
        const char *secret;

        memset(zeros, '0', 32);
        zeros[32] = '\0';
        assert_int_equal(inbox_new(RANKS, &own), 0);
        assert_int_equal(inbox_new(RANKS, &theirs), 0);
        assert_int_equal(inbox_new(RANKS + 1, &larger), 0);
        inbox_offer(theirs, text);
        assert_int_equal(sscanf(text, "%d %d", &pid, &fd), 2);
        secret = strrchr(text, ' ') + 1;
        refused(own, -EPROTO, "%s", "");
        refused(own, -EPROTO, "%d %d", pid, fd);
        refused(own, -EPROTO, "%d %d %s0", pid, fd, secret);
        refused(own, -EPROTO, "-1 %d %s", fd, secret);
        refused(own, -EPROTO, "99999999999999999999 %d %s", fd, secret);
        refused(own, -EREMOTE, "%d %d %s", pid, fd, zeros);
        refused(own, -EREMOTE, "%d %d %s", pid, file, secret);
        refused(own, -EREMOTE, "%d %d %s", pid, 1 << 20, secret);
        refused(own, -EREMOTE, "%d %d %s", INT32_MAX, fd, secret);
        inbox_offer(larger, copy);
        refused(own, -EREMOTE, "%s", copy); /* of a group of another size */

        /* The same name, size and secret, but it could be cut while we read it. */
        assert_int_equal(fstat(fd, &st), 0);
        loose = memfd_create("baton-inbox", MFD_CLOEXEC | MFD_ALLOW_SEALING);
        assert_int_equal(ftruncate(loose, st.st_size), 0);
        for (int i = 0; i < 16; i++) {
                unsigned byte;

                assert_int_equal(sscanf(secret + 2 * i, "%2x", &byte), 1);
                assert_int_equal(pwrite(loose, &(char){(char)byte}, 1, i), 1);
        }
        refused(own, -EREMOTE, "%d %d %s", pid, loose, secret);
        close(loose);
        close(file);
        inbox_free(own);
        inbox_free(theirs);
        inbox_free(larger);
}

static void *map_offer(const struct inbox *b, size_t *ret_bytes) {
        char text[NEAR_OFFER_MAX];
        struct stat st;
        int pid, fd;
        void *at;

        inbox_offer(b, text);
        assert_int_equal(sscanf(text, "%d %d", &pid, &fd), 2);
        assert_int_equal(fstat(fd, &st), 0);
        assert_int_equal(ftruncate(fd, 0), -1); /* sealed */
        at = mmap(NULL, (size_t)st.st_size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
        assert_ptr_not_equal(at, MAP_FAILED);
        *ret_bytes = (size_t)st.st_size;
        return at;
}

/* Whatever a peer writes over all of the memory: an error, or bytes that are no more than there is room for. */
static void positions_that_lie_are_told(void **state) {
        for (int fill = 1; fill < 256; fill += 127) {
                struct pair p = pair_new();
                char *bytes = calloc(1, TOTAL);
                ssize_t n;

                for (int i = 0; i < 2; i++) {
                        size_t size;
                        void *at = map_offer(p.box[i], &size);

                        memset(at, fill, size);
                        munmap(at, size);
                }
                assert_int_equal(near_read(p.link[1], p.fd[1], bytes, TOTAL), -EPROTO);
                n = near_write(p.link[0], p.fd[0], bytes, TOTAL);
                assert_true(n == -EPROTO || (n >= 0 && (size_t)n <= NEAR_RING_BYTES));
                free(bytes);
                pair_free(&p);
        }
}

/* ---- exchanges ---------------------------------------------------------------------------------------------------------- */

/* Both ways at once, more than a ring holds; the other rank is a process that may die on its way. */
static void exchange_with(size_t bytes_it_sends, int expected) {
        struct pair p = pair_new();
        char *sent = noise(), *got = calloc(1, TOTAL);
        struct link_job job = {.fd = p.fd[0],
            .near = p.link[0],
            .out = sent,
            .out_bytes = TOTAL / 2,
            .more = sent + TOTAL / 2,
            .more_bytes = TOTAL / 2,
            .in = got,
            .in_bytes = TOTAL};
        pid_t child = fork();
        size_t at = 99;

        if (child == 0) {
                struct link_job other = {.fd = p.fd[1],
                    .near = p.link[1],
                    .out = sent,
                    .out_bytes = bytes_it_sends,
                    .in = got,
                    .in_bytes = bytes_it_sends};

                close(p.fd[0]);
                if (links_exchange(&other, 1, p.box[1], 20000, false, &at) != 0 || memcmp(sent, got, bytes_it_sends))
                        _exit(1);
                kill(getpid(), SIGKILL);
        }
        assert_true(child > 0);
        close(p.fd[1]);
        p.fd[1] = -1;
        assert_int_equal(links_exchange(&job, 1, p.box[0], 60000, false, &at), expected);
        if (expected == 0)
                assert_memory_equal(sent, got, TOTAL);
        else
                assert_int_equal(at, 0);
        assert_int_equal(waitpid(child, NULL, 0), child);
        free(sent);
        free(got);
        pair_free(&p);
}

static void more_than_a_ring_holds_goes_both_ways(void **state) {
        exchange_with(TOTAL, 0); /* all of it, though the peer is gone by then */
}

static void a_peer_that_is_killed_is_noticed(void **state) {
        exchange_with(TOTAL / 3, -ECONNRESET);
        exchange_with(NEAR_RING_BYTES / 2, -ECONNRESET);
}

static void a_peer_that_says_nothing_is_noticed(void **state) {
        struct pair p = pair_new();
        char byte;
        struct link_job job = {.fd = p.fd[0], .near = p.link[0], .in = &byte, .in_bytes = 1};
        size_t at = 99;

        assert_int_equal(links_exchange(&job, 1, p.box[0], 50, false, &at), -ETIMEDOUT);
        assert_int_equal(at, 0);
        pair_free(&p);
}

/* Who has said all of an exchange may go before others have spoken: that is the next exchange's trouble. */
static void a_peer_that_has_said_all_may_go(void **state) {
        struct pair p = pair_new();
        char bytes[2];
        size_t at = 99;
        int slow[2];

        assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, slow), 0);
        assert_int_equal(near_write(p.link[1], p.fd[1], "a", 1), 1);
        close(p.fd[1]);
        p.fd[1] = -1;
        for (int i = 0; i < 2; i++) {
                struct link_job jobs[2] = {{.fd = p.fd[0], .near = p.link[0], .in = bytes, .in_bytes = 1 + (size_t)i},
                    {.fd = slow[0], .in = bytes + 1, .in_bytes = 1}};

                /* Of two bytes one is missing, and never comes. */
                assert_int_equal(links_exchange(jobs, 2, p.box[0], 50, false, &at), i ? -ECONNRESET : -ETIMEDOUT);
                assert_int_equal(at, i ? 0 : 1);
        }
        close(slow[0]);
        close(slow[1]);
        pair_free(&p);
}

int main(void) {
        const struct CMUnitTest tests[] = {
            cmocka_unit_test(any_cut_gives_the_same_bytes),
            cmocka_unit_test(who_dozes_is_told_once),
            cmocka_unit_test(offers_that_lie_are_refused),
            cmocka_unit_test(positions_that_lie_are_told),
            cmocka_unit_test(more_than_a_ring_holds_goes_both_ways),
            cmocka_unit_test(a_peer_that_is_killed_is_noticed),
            cmocka_unit_test(a_peer_that_says_nothing_is_noticed),
            cmocka_unit_test(a_peer_that_has_said_all_may_go),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
