/* test_follow.c - the sequence of a publisher, without sockets: a publisher, a lossy way and a follower are played here, and
 * what the follower takes for the publisher's cache is held against what it is. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "base/rng.h"
#include "events/events.h"
#include <stdio.h>
#include <stdlib.h>

/* A publisher's batch n stores block n (in this life of it). What is known is the set of blocks. */
#define BATCHES 400

struct world {
        struct follow f;
        struct rng rng;
        unsigned life;              /* of the publisher */
        uint64_t published, oldest; /* batches; those before `oldest` are not replayed */
        bool known[BATCHES];
        unsigned known_life[BATCHES];
};

static struct slice payload(unsigned life, uint64_t n, char text[64]) {
        snprintf(text, 64, "life %u batch %llu", life, (unsigned long long)n);
        return slice_str(text);
}

static void obey(struct world *w, enum follow_verdict v, unsigned life, uint64_t n) {
        if (v == FOLLOW_CLEAR || v == FOLLOW_CLEAR_APPLY)
                memset(w->known, 0, sizeof(w->known));
        if (v == FOLLOW_APPLY || v == FOLLOW_CLEAR_APPLY) {
                w->known[n] = true;
                w->known_life[n] = life;
        }
}

static void live(struct world *w, uint64_t n) {
        char text[64];

        obey(w, follow_live(&w->f, n, payload(w->life, n, text)), w->life, n);
}

/* Answer the replay that was asked for, if one was. */
static void replay(struct world *w) {
        char text[64];

        while (w->f.ask) {
                uint64_t from = w->f.ask_from;

                w->f.ask = false;
                for (uint64_t n = from > w->oldest ? from : w->oldest; n < w->published; n++)
                        obey(w, follow_replayed(&w->f, n, payload(w->life, n, text)), w->life, n);
                obey(w, follow_replay_end(&w->f, true), w->life, 0);
        }
}

static void expect(struct world *w, enum follow_state state, uint64_t from, uint64_t to) {
        assert_string_equal(follow_state_name(follow_state(&w->f)), follow_state_name(state));
        for (uint64_t n = 0; n < BATCHES; n++) {
                assert_int_equal(w->known[n], n >= from && n < to);
                assert_true(!w->known[n] || w->known_life[n] == w->life);
        }
}

static void begin(struct world *w, bool can_replay) {
        *w = (struct world){0};
        follow_init(&w->f, can_replay);
        expect(w, FOLLOW_LOST, 0, 0);
}

static void what_was_before_is_replayed(void **state) {
        struct world w;

        begin(&w, true);
        w.published = 7;
        follow_connected(&w.f);
        assert_true(w.f.ask && w.f.ask_from == 0);
        expect(&w, FOLLOW_CATCHING, 0, 0);
        replay(&w);
        expect(&w, FOLLOW_LIVE, 0, 7);
        /* Live ones that were in the replay come once more. */
        live(&w, 5);
        live(&w, 6);
        expect(&w, FOLLOW_LIVE, 0, 7);
        w.published = 8;
        live(&w, 7);
        expect(&w, FOLLOW_LIVE, 0, 8);
        assert_int_equal(w.f.gaps, 0);
}

static void a_publisher_that_has_said_nothing_is_known(void **state) {
        struct world w;

        begin(&w, true);
        follow_connected(&w.f);
        replay(&w);
        expect(&w, FOLLOW_LIVE, 0, 0);
        w.published = 1;
        live(&w, 0);
        expect(&w, FOLLOW_LIVE, 0, 1);
}

static void a_gap_is_replayed(void **state) {
        struct world w;

        begin(&w, true);
        follow_connected(&w.f);
        replay(&w);
        for (w.published = 1; w.published < 10; w.published++)
                if (w.published < 4 || w.published > 6)
                        live(&w, w.published - 1), replay(&w);
        w.published--;
        expect(&w, FOLLOW_LIVE, 0, 9);
        assert_int_equal(w.f.gaps, 1);
}

static void a_gap_that_cannot_be_replayed_leaves_what_came_after(void **state) {
        struct world w;

        begin(&w, true);
        follow_connected(&w.f);
        replay(&w);
        live(&w, 0);
        w.published = 10;
        w.oldest = 8; /* of the buffer */
        live(&w, 9);
        replay(&w);
        expect(&w, FOLLOW_PARTIAL, 8, 10);
        /* Until the publisher has nothing of before. */
        follow_cleared(&w.f);
        expect(&w, FOLLOW_LIVE, 8, 10);
}

static void without_replays_a_gap_leaves_what_came_after(void **state) {
        struct world w;

        begin(&w, false);
        follow_connected(&w.f);
        expect(&w, FOLLOW_CATCHING, 0, 0);
        live(&w, 3);
        live(&w, 4);
        expect(&w, FOLLOW_PARTIAL, 3, 5);
        live(&w, 8);
        expect(&w, FOLLOW_PARTIAL, 8, 9);
        begin(&w, false);
        follow_connected(&w.f);
        live(&w, 0);
        expect(&w, FOLLOW_LIVE, 0, 1);
}

static void the_same_publisher_is_known_again(void **state) {
        struct world w;

        begin(&w, true);
        w.published = 5;
        follow_connected(&w.f);
        replay(&w);
        follow_lost(&w.f);
        expect(&w, FOLLOW_LOST, 0, 5);
        w.published = 9;
        follow_connected(&w.f);
        assert_int_equal(w.f.ask_from, 4);
        replay(&w);
        expect(&w, FOLLOW_LIVE, 0, 9);
        assert_int_equal(w.f.restarts, 0);
}

/* Whether it has published less, as much or more than the one before. */
static void a_publisher_that_was_started_again_is_told_from_that(void **state) {
        for (uint64_t published = 0; published < 12; published++) {
                struct world w;

                begin(&w, true);
                w.published = 5;
                follow_connected(&w.f);
                replay(&w);
                follow_lost(&w.f);
                w.life++;
                w.published = published;
                follow_connected(&w.f);
                replay(&w);
                expect(&w, FOLLOW_LIVE, 0, published);
                assert_int_equal(w.f.restarts, 1);
                live(&w, w.published++);
                expect(&w, FOLLOW_LIVE, 0, published + 1);
        }
}

/* Without replays, and without the connection's end having been seen, numbers tell. */
static void numbers_that_begin_anew_are_a_restart(void **state) {
        struct world w;

        begin(&w, false);
        follow_connected(&w.f);
        live(&w, 0);
        live(&w, 1);
        w.life++;
        live(&w, 0);
        expect(&w, FOLLOW_LIVE, 0, 1);
        assert_int_equal(w.f.restarts, 1);
}

static void replays_without_an_answer_are_given_up(void **state) {
        struct world w;

        begin(&w, true);
        follow_connected(&w.f);
        w.f.ask = false;
        obey(&w, follow_replay_end(&w.f, false), 0, 0);
        expect(&w, FOLLOW_CATCHING, 0, 0);
        live(&w, 5);
        assert_false(w.f.ask);
        expect(&w, FOLLOW_PARTIAL, 5, 6);
        /* A later gap is asked for again. */
        live(&w, 9);
        assert_true(w.f.ask && w.f.ask_from == 6);
}

/* A live batch that a replay does not bring is of the publisher before this one, or really lost: the second one decides. */
static void a_replay_that_does_not_help_is_not_asked_for_again_and_again(void **state) {
        struct world w;

        begin(&w, true);
        w.published = 3;
        follow_connected(&w.f);
        replay(&w);
        live(&w, 7);
        replay(&w);
        expect(&w, FOLLOW_LIVE, 0, 3);
        live(&w, 8);
        assert_false(w.f.ask);
        expect(&w, FOLLOW_PARTIAL, 8, 9);
}

/* The last batch is not followed by one that would show its loss. */
static void silence_is_looked_into(void **state) {
        struct world w;

        begin(&w, true);
        w.published = 3;
        follow_connected(&w.f);
        replay(&w);
        w.published = 5;
        follow_check(&w.f);
        assert_true(w.f.ask);
        expect(&w, FOLLOW_LIVE, 0, 3); /* meanwhile nothing is doubted */
        replay(&w);
        expect(&w, FOLLOW_LIVE, 0, 5);
        assert_int_equal(w.f.replays, 1);
        /* No answer: it is not believed until it gives one; nothing is forgotten. */
        follow_check(&w.f);
        w.f.ask = false;
        obey(&w, follow_replay_end(&w.f, false), 0, 0);
        expect(&w, FOLLOW_CATCHING, 0, 5);
        follow_check(&w.f);
        replay(&w);
        expect(&w, FOLLOW_LIVE, 0, 5);
        /* It is another one by now, whose connection was not seen to end. */
        w.life++;
        w.published = 2;
        follow_check(&w.f);
        replay(&w);
        expect(&w, FOLLOW_LIVE, 0, 2);
        assert_int_equal(w.f.restarts, 1);
}

/* Losses, lost connections, restarts and short buffers at random: whatever is told as complete is the publisher's cache, when
 * nothing is on the way; what is told as partial is part of it. */
static void what_is_said_to_be_complete_is_it(void **state) {
        unsigned complete = 0, partial = 0;

        for (uint64_t seed = 0; seed < 3000; seed++) {
                struct world w;

                begin(&w, seed % 4 != 0);
                rng_seed(&w.rng, seed);
                follow_connected(&w.f);
                replay(&w);
                for (int step = 0; step < 60; step++) {
                        uint64_t dice = rng_below(&w.rng, 20);

                        if (dice < 14) {
                                w.published++;
                                if (rng_below(&w.rng, 6) > 0 && w.f.connected)
                                        live(&w, w.published - 1);
                        } else if (dice < 16) {
                                w.oldest = w.published - rng_below(&w.rng, w.published + 1);
                        } else if (dice < 18 && w.f.connected) {
                                follow_lost(&w.f);
                                if (rng_below(&w.rng, 2)) {
                                        w.life++;
                                        w.published = rng_below(&w.rng, 5);
                                        w.oldest = 0;
                                }
                        } else if (!w.f.connected) {
                                follow_connected(&w.f);
                        } else {
                                follow_check(&w.f);
                        }
                        if (w.f.can_replay)
                                replay(&w);
                        assert_false(w.f.connected && w.f.asking);
                }
                /* One more that arrives tells the last loss. Without replays a restart is seen when the numbers go back. */
                if (!w.f.connected)
                        follow_connected(&w.f);
                replay(&w);
                live(&w, w.published++);
                replay(&w);
                if (!w.f.can_replay)
                        continue;
                for (uint64_t n = 0; n < BATCHES; n++) {
                        assert_true(!w.known[n] || (w.known_life[n] == w.life && n < w.published));
                        if (follow_state(&w.f) == FOLLOW_LIVE)
                                assert_int_equal(w.known[n], n < w.published);
                }
                complete += follow_state(&w.f) == FOLLOW_LIVE;
                partial += follow_state(&w.f) == FOLLOW_PARTIAL;
        }
        assert_true(complete > 100 && partial > 100);
}

int main(void) {
        const struct CMUnitTest tests[] = {
            cmocka_unit_test(what_was_before_is_replayed),
            cmocka_unit_test(a_publisher_that_has_said_nothing_is_known),
            cmocka_unit_test(a_gap_is_replayed),
            cmocka_unit_test(a_gap_that_cannot_be_replayed_leaves_what_came_after),
            cmocka_unit_test(without_replays_a_gap_leaves_what_came_after),
            cmocka_unit_test(the_same_publisher_is_known_again),
            cmocka_unit_test(a_publisher_that_was_started_again_is_told_from_that),
            cmocka_unit_test(numbers_that_begin_anew_are_a_restart),
            cmocka_unit_test(replays_without_an_answer_are_given_up),
            cmocka_unit_test(a_replay_that_does_not_help_is_not_asked_for_again_and_again),
            cmocka_unit_test(silence_is_looked_into),
            cmocka_unit_test(what_is_said_to_be_complete_is_it),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
