/* test_pool.c - membership, health and load, with time as an argument. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "base/clock.h"
#include "gateway/pool.h"
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

static int gone;

static void on_change(void *context, struct instance *i, enum instance_state before, bool is_gone) {
        gone += is_gone;
}

static struct pool *new_pool(uint32_t cap) {
        const struct pool_options options = {.cap = cap, .seed = 1, .on_change = on_change, .join_tries = 2};
        struct pool *p;

        gone = 0;
        assert_int_equal(pool_new(&options, &p), 0);
        return p;
}

static struct instance *add(struct pool *p, enum role role, const char *key) {
        const struct instance_spec spec = {.role = role, .key = key, .dp_rank = -1};
        struct instance *i;

        assert_int_equal(pool_add(p, &spec, 0, &i), 0);
        return i;
}

static struct instance *healthy(struct pool *p, enum role role, const char *key) {
        struct instance *i = add(p, role, key);

        pool_report(i, HEALTH_PROBE_OK, 0);
        assert_int_equal(i->state, INSTANCE_HEALTHY);
        return i;
}

static struct instance *pick(struct pool *p, enum role role) {
        const struct policy_facts facts = {0};
        bool room = pool_has_room(p, role);
        struct instance *i = pool_pick(p, role, &facts, NULL);

        assert_int_equal(room, i != NULL);
        return i;
}

/* Send probes as a loop would, all seeing the same, until `until`. Returns how many of `i` there were. */
static int probe(struct pool *p, const struct instance *i, enum health_event what, uint64_t from, uint64_t until) {
        int n = 0;

        for (uint64_t now = from; now <= until; now += 10 * NS_PER_MS) {
                struct instance *due;

                while ((due = pool_take_probe(p, now))) {
                        n += due == i;
                        pool_probe_done(due, what, now);
                }
        }
        return n;
}

static void one_that_joins_is_chosen_once_it_answers(void **state) {
        struct pool *p = new_pool(0);
        struct instance *i = add(p, ROLE_DECODE, "d0:1");

        assert_null(pick(p, ROLE_DECODE));
        assert_ptr_equal(pool_take_probe(p, 0), i);
        assert_null(pool_take_probe(p, 0));
        pool_probe_done(i, HEALTH_PROBE_SLOW, 0);
        assert_null(pick(p, ROLE_DECODE));
        assert_in_range(probe(p, i, HEALTH_PROBE_OK, 0, NS_PER_S), 1, 2);
        assert_ptr_equal(pick(p, ROLE_DECODE), i);
        assert_null(pick(p, ROLE_PREFILL));
        pool_free(p);
}

static void trouble_makes_suspect_and_probes_decide(void **state) {
        struct pool *p = new_pool(0);
        struct instance *a = healthy(p, ROLE_DECODE, "a:1"), *b = healthy(p, ROLE_DECODE, "b:1");

        pool_report(a, HEALTH_LEG_BROKEN, 5);
        assert_int_equal(a->state, INSTANCE_SUSPECT);
        for (int n = 0; n < 4; n++)
                assert_ptr_equal(pick(p, ROLE_DECODE), b); /* the healthy first */
        assert_ptr_equal(pool_take_probe(p, 5), a);        /* at once */
        pool_probe_done(a, HEALTH_PROBE_OK, 6);
        assert_int_equal(a->state, INSTANCE_HEALTHY);
        pool_report(a, HEALTH_LEG_BROKEN, 7);
        assert_ptr_equal(pool_take_probe(p, 7), a);
        pool_probe_done(a, HEALTH_PROBE_DEAD, 8);
        assert_int_equal(a->state, INSTANCE_EJECTED);
        pool_free(p);
}

static void an_ejected_one_comes_back_after_two_good_probes(void **state) {
        struct pool *p = new_pool(0);
        struct instance *a = healthy(p, ROLE_DECODE, "a:1");
        int slow;

        healthy(p, ROLE_DECODE, "b:1");
        pool_report(a, HEALTH_PROBE_DEAD, 0);
        pool_report(a, HEALTH_PROBE_DEAD, 0);
        assert_int_equal(a->state, INSTANCE_EJECTED);
        /* The pauses grow: ten minutes of death cost some 150 probes, not thousands. */
        slow = probe(p, a, HEALTH_PROBE_SLOW, 0, 600 * NS_PER_S);
        assert_in_range(slow, 100, 200);
        assert_int_equal(a->state, INSTANCE_EJECTED);
        assert_in_range(probe(p, a, HEALTH_PROBE_OK, 600 * NS_PER_S, 606 * NS_PER_S), 2, 4);
        assert_int_equal(a->state, INSTANCE_HEALTHY);
        pool_free(p);
}

static void the_last_one_is_not_ejected_for_being_slow(void **state) {
        struct pool *p = new_pool(0);
        struct instance *a = healthy(p, ROLE_DECODE, "a:1"), *b = healthy(p, ROLE_DECODE, "b:1");

        probe(p, a, HEALTH_PROBE_SLOW, 6 * NS_PER_S, 60 * NS_PER_S);
        assert_int_equal((a->state == INSTANCE_EJECTED) + (b->state == INSTANCE_EJECTED), 1);
        assert_int_equal(pool_routable(p, ROLE_DECODE), 1);
        assert_non_null(pick(p, ROLE_DECODE));
        /* When its process is gone there is nothing to hope for. */
        probe(p, a, HEALTH_PROBE_DEAD, 60 * NS_PER_S, 90 * NS_PER_S);
        assert_int_equal(pool_routable(p, ROLE_DECODE), 0);
        pool_free(p);
}

/* When most of them are slow it is the load or the network: shutting them out would give it all to the last. Those that are
 * gone are shut out, however many. */
static void no_more_than_half_are_ejected_for_being_slow(void **state) {
        struct pool *p = new_pool(0);
        struct instance *all[6];
        char key[8];

        for (int k = 0; k < 6; k++) {
                snprintf(key, sizeof(key), "i%d:1", k);
                all[k] = healthy(p, ROLE_DECODE, key);
        }
        for (uint64_t s = 1; s <= 20; s++)
                probe(p, all[0], HEALTH_PROBE_SLOW, s * NS_PER_S, s * NS_PER_S + NS_PER_S / 2);
        assert_int_equal(pool_in_state(p, ROLE_DECODE, INSTANCE_EJECTED), 3);
        assert_int_equal(pool_routable(p, ROLE_DECODE), 3);
        probe(p, all[0], HEALTH_PROBE_DEAD, 30 * NS_PER_S, 40 * NS_PER_S);
        assert_int_equal(pool_routable(p, ROLE_DECODE), 0);
        pool_free(p);
}

static void single_errors_and_refusals_change_nothing(void **state) {
        struct pool *p = new_pool(0);
        struct instance *a = healthy(p, ROLE_DECODE, "a:1");

        for (int n = 0; n < 10; n++) {
                pool_report(a, HEALTH_LEG_ERROR, 0);
                pool_report(a, HEALTH_LEG_ERROR, 0);
                pool_report(a, HEALTH_LEG_OK, 0);
                assert_int_equal(a->state, INSTANCE_HEALTHY);
        }
        for (int n = 0; n < 3; n++)
                pool_report(a, HEALTH_LEG_ERROR, 0);
        assert_int_equal(a->state, INSTANCE_SUSPECT);
        pool_free(p);
}

static void overload_makes_it_stand_back_not_fall(void **state) {
        struct pool *p = new_pool(0);
        struct instance *a = healthy(p, ROLE_DECODE, "a:1"), *b = healthy(p, ROLE_DECODE, "b:1");

        pool_stand_back(a, NS_PER_S);
        assert_int_equal(a->state, INSTANCE_HEALTHY);
        for (int n = 0; n < 4; n++)
                assert_ptr_equal(pick(p, ROLE_DECODE), b);
        pool_stand_back(b, 2 * NS_PER_S);
        assert_non_null(pick(p, ROLE_DECODE)); /* better than none */
        pool_tick(p, NS_PER_S);
        for (int n = 0; n < 4; n++)
                assert_ptr_equal(pick(p, ROLE_DECODE), a);
        pool_free(p);
}

static void load_is_given_back_once(void **state) {
        struct pool *p = new_pool(1);
        struct instance *a = healthy(p, ROLE_PREFILL, "a:1");
        struct load leg = {0}, held = {0};

        pool_take(a, LOAD_LEG, 100, &leg);
        pool_take(a, LOAD_HELD, 100, &held);
        assert_int_equal(a->tokens, 100);
        assert_int_equal(a->held_tokens, 100);
        assert_null(pick(p, ROLE_PREFILL)); /* at its cap */
        for (int n = 0; n < 3; n++) {
                pool_give_back(&leg);
                pool_give_back(&held);
        }
        assert_int_equal(a->tokens + a->held_tokens + a->requests + a->held_requests, 0);
        assert_ptr_equal(pick(p, ROLE_PREFILL), a);
        pool_free(p);
}

static struct prompt prompt_of(const char *text, uint64_t keys[PREFIX_KEYS_MAX]) {
        struct slice s = slice_str(text);

        return (struct prompt){
            .keys = keys, .key_count = prefix_keys(s, 0, keys), .bytes = s.len, .tokens = s.len / 4 + 1};
}

/* Who was given a prompt is chosen for its continuation, while it may be; a new life begins with an empty cache. */
static void a_prompt_goes_where_its_beginning_went(void **state) {
        static const char first[] = "The quick brown fox jumps over the lazy dog, and the dog does not mind it at all.";
        static const char second[] =
            "The quick brown fox jumps over the lazy dog, and the dog does not mind it at all. Why would it?";
        const struct pool_options options = {
            .policy = {policy_find("prefix_aware")}, .seed = 1, .on_change = on_change};
        const struct policy_facts facts = {0};
        uint64_t keys[2][PREFIX_KEYS_MAX];
        struct prompt a = prompt_of(first, keys[0]), b = prompt_of(second, keys[1]);
        struct instance *i, *others[3];
        struct pool *p;

        assert_int_equal(pool_new(&options, &p), 0);
        assert_true(pool_wants_prompts(p));
        others[0] = healthy(p, ROLE_PREFILL, "a:1");
        i = healthy(p, ROLE_PREFILL, "b:1");
        others[1] = healthy(p, ROLE_PREFILL, "c:1");
        others[2] = healthy(p, ROLE_DECODE, "d:1");
        assert_int_equal(pool_note_prompt(i, &a), 0);
        assert_in_range(pool_note_prompt(i, &a), a.tokens / 2, a.tokens);
        assert_int_equal(pool_note_prompt(others[2], &a), 0); /* its policy does not look */
        for (int k = 0; k < 6; k++)
                assert_ptr_equal(pool_pick(p, ROLE_PREFILL, &facts, &b), i);
        /* One that came later stands elsewhere in the tables; whoever has left is not taken for another. */
        pool_remove(p, others[0]);
        assert_ptr_equal(pool_pick(p, ROLE_PREFILL, &facts, &b), i);
        pool_report(i, HEALTH_LEG_BROKEN, 0);
        assert_ptr_equal(pool_pick(p, ROLE_PREFILL, &facts, &b), others[1]);
        pool_report(i, HEALTH_PROBE_DEAD, 0);
        pool_report(i, HEALTH_PROBE_OK, 0);
        pool_report(i, HEALTH_PROBE_OK, 0);
        assert_int_equal(i->state, INSTANCE_HEALTHY);
        assert_int_equal(pool_note_prompt(i, &b), 0);
        /* The framing that prompts have in common is no reason. */
        a = prompt_of(
            "[{\"role\":\"user\", \"content\":\"What is it that the dog thinks of the fox, do you know?\"}]", keys[0]);
        b = prompt_of(
            "[{\"role\":\"user\", \"content\":\"And what would the fox itself say about all of this then?\"}]",
            keys[1]);
        pool_note_prompt(i, &a);
        assert_ptr_not_equal(pool_pick(p, ROLE_PREFILL, &facts, &b), pool_pick(p, ROLE_PREFILL, &facts, &b));
        pool_forget_prompts(p);
        assert_int_equal(pool_note_prompt(i, &b), 0);
        pool_free(p);
}

/* With its own words for it: three blocks of four tokens. */
static void tell(struct instance *i, const uint32_t *tokens) {
        static const uint64_t names[3] = {1, 2, 3};
        const struct event e = {.kind = EVENT_STORED,
            .counts = true,
            .hashes = names,
            .hash_count = 3,
            .tokens = tokens,
            .token_count = 12,
            .block_tokens = 4};

        pool_note_event(i, &e);
}

/* Events go before guesses where they are complete, and are not looked at where they are not to be had. */
static void what_an_instance_tells_of_its_cache_goes_before_guesses(void **state) {
        static const char text[] = "The quick brown fox jumps over the lazy dog, and the dog does not mind it at all.";
        static const uint32_t tokens[13] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13};
        const struct pool_options options = {
            .policy = {policy_find("prefix_aware")}, .seed = 1, .on_change = on_change, .kv_bytes = 1 << 16};
        const struct kv_prompt ids = {.tokens = tokens, .count = 13};
        const struct policy_facts facts = {0};
        uint64_t keys[PREFIX_KEYS_MAX];
        struct prompt prompt = prompt_of(text, keys);
        struct arena arena = {0};
        struct instance *a, *b;
        struct pool *p;

        assert_int_equal(pool_new(&options, &p), 0);
        assert_true(pool_wants_events(p, ROLE_PREFILL) && !pool_wants_events(p, ROLE_DECODE));
        a = healthy(p, ROLE_PREFILL, "a:1");
        b = healthy(p, ROLE_PREFILL, "b:1");
        assert_false(pool_knows_blocks(p));
        pool_tick(p, 1);
        pool_note_prompt(a, &prompt); /* guessed */
        tell(b, tokens);
        assert_true(pool_knows_blocks(p));
        prompt.tokens = 13;
        assert_int_equal(pool_find_blocks(p, &ids, &arena, &prompt), 0);

        /* Not connected: what was told is not believed, what was guessed is. */
        for (int k = 0; k < 4; k++)
                assert_ptr_equal(pool_pick(p, ROLE_PREFILL, &facts, &prompt), a);
        /* Complete: a, whose events are not followed, is guessed to have all of it; b has told of 12 tokens. Then a is busier
         * than that is worth. */
        a->events_state = b->events_state = FOLLOW_LIVE;
        for (int k = 0; k < 4; k++)
                assert_ptr_equal(pool_pick(p, ROLE_PREFILL, &facts, &prompt), b);
        /* What a is given now it will have, though it has not told yet; for a while. */
        pool_note_prompt(a, &prompt);
        {
                struct load load = {0};

                pool_take(b, LOAD_LEG, 5, &load);
                assert_ptr_equal(pool_pick(p, ROLE_PREFILL, &facts, &prompt), a);
                pool_tick(p, 5 * NS_PER_S + 1);
                assert_ptr_equal(pool_pick(p, ROLE_PREFILL, &facts, &prompt), a);
                pool_tick(p, 10 * NS_PER_S + 2);
                assert_ptr_equal(pool_pick(p, ROLE_PREFILL, &facts, &prompt), b);
                pool_give_back(&load);
        }
        assert_int_equal(pool_note_prompt(b, &prompt), 12);
        /* Gone with the instance. */
        pool_remove(p, b);
        assert_false(pool_knows_blocks(p));
        arena_free(&arena);
        pool_free(p);
}

/* Others' requests count while they are news; our own are not counted twice. */
static void what_others_have_with_it_is_load_while_it_is_news(void **state) {
        struct pool *p = new_pool(0);
        struct instance *a = healthy(p, ROLE_DECODE, "a:1"), *b = healthy(p, ROLE_DECODE, "b:1");
        struct load l = {0};

        pool_take(b, LOAD_LEG, 1500, &l);
        assert_ptr_equal(pick(p, ROLE_DECODE), a);
        pool_report_load(a, 2, 0, 0.5, NS_PER_S);
        pool_report_load(b, 1, 1, 0.5, NS_PER_S);
        for (int k = 0; k < 4; k++)
                assert_ptr_equal(pick(p, ROLE_DECODE), b);
        pool_tick(p, NS_PER_S - 1);
        assert_ptr_equal(pick(p, ROLE_DECODE), b);
        pool_tick(p, NS_PER_S);
        assert_ptr_equal(pick(p, ROLE_DECODE), a);
        pool_report_load(a, 3, 5, 0.5, 2 * NS_PER_S); /* some have ended meanwhile */
        assert_int_equal(a->foreign_requests, 0);
        pool_give_back(&l);
        pool_free(p);
}

/* One that comes back is not given all that comes at once: it has a tenth of the others' load first, and its full share at
 * the end. */
static void a_new_one_grows_to_its_share(void **state) {
        const struct pool_options options = {.seed = 1, .slow_start = 10 * NS_PER_S, .on_change = on_change};
        struct instance *a, *b;
        struct load loads[400] = {0};
        struct pool *p;
        size_t n = 0;

        assert_int_equal(pool_new(&options, &p), 0);
        a = healthy(p, ROLE_DECODE, "a:1");
        b = healthy(p, ROLE_DECODE, "b:1");
        pool_report(b, HEALTH_LEG_BROKEN, 0);
        pool_report(b, HEALTH_PROBE_DEAD, 0);
        pool_tick(p, 60 * NS_PER_S);
        for (; n < 100; n++)
                pool_take(pick(p, ROLE_DECODE), LOAD_LEG, 100, &loads[n]);
        assert_int_equal(a->requests, 100);
        pool_report(b, HEALTH_PROBE_OK, 100 * NS_PER_S);
        pool_report(b, HEALTH_PROBE_OK, 100 * NS_PER_S);
        for (; n < 200; n++)
                pool_take(pick(p, ROLE_DECODE), LOAD_LEG, 100, &loads[n]);
        assert_in_range(b->requests, 16, 20); /* a tenth of what the other has */
        for (uint64_t s = 100; s <= 105; s++)
                pool_tick(p, s * NS_PER_S);
        for (; n < 300; n++)
                pool_take(pick(p, ROLE_DECODE), LOAD_LEG, 100, &loads[n]);
        assert_in_range(b->requests, 90, 110); /* half of it */
        pool_tick(p, 110 * NS_PER_S);
        for (; n < 400; n++)
                pool_take(pick(p, ROLE_DECODE), LOAD_LEG, 100, &loads[n]);
        assert_in_range(b->requests, 190, 201);
        while (n > 0)
                pool_give_back(&loads[--n]);
        pool_free(p);
}

static void kv_that_waits_weighs_less_than_work(void **state) {
        struct pool *p = new_pool(0);
        struct instance *a = healthy(p, ROLE_PREFILL, "a:1"), *b = healthy(p, ROLE_PREFILL, "b:1");
        struct load held = {0}, leg = {0};

        pool_take(a, LOAD_HELD, 100, &held);
        pool_take(b, LOAD_LEG, 29, &leg);
        assert_ptr_equal(pick(p, ROLE_PREFILL), b);
        pool_give_back(&leg);
        pool_take(b, LOAD_LEG, 31, &leg);
        assert_ptr_equal(pick(p, ROLE_PREFILL), a);
        pool_give_back(&leg);
        pool_give_back(&held);
        pool_free(p);
}

static void one_that_leaves_ends_its_legs_first(void **state) {
        struct pool *p = new_pool(0);
        struct instance *a = healthy(p, ROLE_DECODE, "a:1"), *again;
        const struct instance_spec spec = {.role = ROLE_DECODE, .key = "a:1", .dp_rank = -1};
        struct load leg = {0};

        pool_take(a, LOAD_LEG, 1, &leg);
        pool_remove(p, a);
        assert_null(pick(p, ROLE_DECODE));
        assert_int_equal(gone, 0);
        /* Added again before it went: the same one, probed anew. */
        assert_int_equal(pool_add(p, &spec, 0, &again), 0);
        assert_ptr_equal(again, a);
        assert_int_equal(a->state, INSTANCE_JOINING);
        assert_int_equal(pool_add(p, &spec, 0, &again), -EEXIST);
        pool_remove(p, a);
        pool_give_back(&leg);
        assert_int_equal(gone, 1);
        assert_int_equal(pool_count(p, ROLE_DECODE), 0);
        pool_free(p);
}

static void one_that_is_probed_may_be_removed_meanwhile(void **state) {
        struct pool *p = new_pool(0);
        struct instance *a = add(p, ROLE_DECODE, "a:1");

        assert_ptr_equal(pool_take_probe(p, 0), a);
        pool_remove(p, a);
        assert_int_equal(gone, 0);
        pool_probe_done(a, HEALTH_PROBE_OK, 1);
        assert_int_equal(gone, 1);
        pool_free(p);
}

static void one_that_is_doubted_is_probed_at_once(void **state) {
        const struct pool_options options = {.seed = 1, .probe_interval = 1000 * NS_PER_S, .on_change = on_change};
        struct instance *a;
        struct pool *p;

        assert_int_equal(pool_new(&options, &p), 0);
        a = add(p, ROLE_PREFILL, "a:1");
        assert_ptr_equal(pool_take_probe(p, 0), a);
        pool_look_again(p, ROLE_PREFILL, a->id, 0); /* it is being probed */
        assert_null(pool_take_probe(p, 0));
        pool_probe_done(a, HEALTH_PROBE_OK, 0);
        assert_null(pool_take_probe(p, NS_PER_S));
        pool_look_again(p, ROLE_PREFILL, a->id + 1, NS_PER_S);
        pool_look_again(p, ROLE_DECODE, a->id, NS_PER_S);
        assert_null(pool_take_probe(p, NS_PER_S));
        pool_look_again(p, ROLE_PREFILL, a->id, NS_PER_S);
        assert_ptr_equal(pool_take_probe(p, NS_PER_S), a);
        pool_probe_done(a, HEALTH_PROBE_OK, NS_PER_S);
        assert_int_equal(a->state, INSTANCE_HEALTHY);
        pool_free(p);
}

static void one_added_later_that_never_answers_is_given_up(void **state) {
        struct pool *p = new_pool(0);
        struct instance_spec spec = {.role = ROLE_DECODE, .key = "a:1", .dp_rank = -1, .added_later = true};
        struct instance *a;

        add(p, ROLE_DECODE, "configured:1");
        assert_int_equal(pool_add(p, &spec, 0, &a), 0);
        probe(p, a, HEALTH_PROBE_DEAD, 0, 10 * NS_PER_S);
        assert_int_equal(gone, 1);
        assert_int_equal(pool_count(p, ROLE_DECODE), 1);
        pool_free(p);
}

#define HISTORY_CAP 3

/* Whoever is chosen may be, and is no stopgap while a healthy one has room. Its prompt is noted. */
static void pick_in_history(struct pool *p, struct rng *rng) {
        static const char text[] =
            "All who are chosen have room, and none that is ill is chosen while a healthy one has some.";
        const struct policy_facts facts = {.session = rng_below(rng, 4), .tokens = 25};
        uint64_t keys[PREFIX_KEYS_MAX];
        struct prompt prompt = prompt_of(text + rng_below(rng, 4), keys);
        bool room = pool_has_room(p, ROLE_DECODE);
        struct instance *chosen = pool_pick(p, ROLE_DECODE, &facts, &prompt);

        assert_int_equal(chosen != NULL, room);
        if (!chosen)
                return;
        assert_true(chosen->state == INSTANCE_HEALTHY || chosen->state == INSTANCE_SUSPECT);
        assert_true(chosen->requests < HISTORY_CAP);
        for (size_t n = 0; chosen->tier > 0 && n < pool_count(p, ROLE_DECODE); n++) {
                const struct instance *i = pool_at(p, ROLE_DECODE, n);

                assert_false(i->state == INSTANCE_HEALTHY && i->busy_until == 0 && i->requests < HISTORY_CAP);
        }
        pool_note_prompt(chosen, &prompt);
}

static void one_history(const struct policy *policy) {
        const struct pool_options options = {.cap = HISTORY_CAP,
            .seed = 1,
            .on_change = on_change,
            .join_tries = 2,
            .slow_start = NS_PER_S,
            .policy = {policy, policy}};
        struct pool *p;
        struct load loads[64] = {{0}};
        struct rng rng;
        uint64_t now = 0;

        assert_int_equal(pool_new(&options, &p), 0);
        rng_seed(&rng, 5);
        for (int step = 0; step < 50000; step++) {
                size_t count = pool_count(p, ROLE_DECODE), k = rng_below(&rng, 64);
                struct instance *i = count ? pool_at(p, ROLE_DECODE, rng_below(&rng, count)) : NULL, *probed;
                size_t healthy_count = 0, suspect_count = 0;
                char key[16];

                now += rng_below(&rng, 50) * NS_PER_MS;
                switch (rng_below(&rng, 8)) {
                case 0:
                        snprintf(key, sizeof(key), "i%u:1", (unsigned)rng_below(&rng, 12));
                        if (!pool_find(p, ROLE_DECODE, slice_str(key)))
                                add(p, ROLE_DECODE, key);
                        break;
                case 1:
                        if (i && rng_below(&rng, 8) == 0)
                                pool_remove(p, i);
                        break;
                case 2:
                        if (loads[k].at)
                                pool_give_back(&loads[k]);
                        else if (i && i->state != INSTANCE_LEAVING && i->requests < HISTORY_CAP)
                                pool_take(
                                    i, rng_below(&rng, 2) ? LOAD_LEG : LOAD_HELD, rng_below(&rng, 1000), &loads[k]);
                        break;
                case 3:
                        if (i)
                                pool_stand_back(i, now + rng_below(&rng, 1000) * NS_PER_MS);
                        break;
                case 4:
                        pool_tick(p, now);
                        if (i)
                                pool_report_load(i, rng_below(&rng, 9), rng_below(&rng, 9), 0, now + NS_PER_S);
                        break;
                case 5:
                        probed = pool_take_probe(p, now);
                        if (probed)
                                pool_probe_done(probed, (enum health_event)rng_below(&rng, 3), now);
                        break;
                case 6:
                        pick_in_history(p, &rng);
                        break;
                default:
                        if (i)
                                pool_report(i, (enum health_event)rng_below(&rng, HEALTH_EVENTS), now);
                        break;
                }
                for (size_t n = 0; n < pool_count(p, ROLE_DECODE); n++) {
                        i = pool_at(p, ROLE_DECODE, n);
                        healthy_count += i->state == INSTANCE_HEALTHY && i->busy_until == 0;
                        suspect_count +=
                            i->state == INSTANCE_SUSPECT || (i->state == INSTANCE_HEALTHY && i->busy_until > 0);
                        if (i->slot != SIZE_MAX)
                                assert_int_equal(i->tier == 0, i->state == INSTANCE_HEALTHY && i->busy_until == 0);
                }
                assert_int_equal(pool_routable(p, ROLE_DECODE), healthy_count + suspect_count);
        }
        for (int k = 0; k < 64; k++)
                pool_give_back(&loads[k]);
        for (size_t n = 0; n < pool_count(p, ROLE_DECODE); n++)
                assert_int_equal(pool_at(p, ROLE_DECODE, n)->tokens + pool_at(p, ROLE_DECODE, n)->held_tokens, 0);
        pool_free(p);
}

/* The table of those that may be chosen agrees with states and loads, whatever happens in whatever order, and whoever
 * chooses. */
static void any_history_keeps_the_books(void **state) {
        for (const struct policy *policy = policy_table; policy->name; policy++)
                one_history(policy);
}

int main(void) {
        const struct CMUnitTest tests[] = {
            cmocka_unit_test(one_that_joins_is_chosen_once_it_answers),
            cmocka_unit_test(trouble_makes_suspect_and_probes_decide),
            cmocka_unit_test(an_ejected_one_comes_back_after_two_good_probes),
            cmocka_unit_test(the_last_one_is_not_ejected_for_being_slow),
            cmocka_unit_test(no_more_than_half_are_ejected_for_being_slow),
            cmocka_unit_test(single_errors_and_refusals_change_nothing),
            cmocka_unit_test(overload_makes_it_stand_back_not_fall),
            cmocka_unit_test(load_is_given_back_once),
            cmocka_unit_test(a_prompt_goes_where_its_beginning_went),
            cmocka_unit_test(what_an_instance_tells_of_its_cache_goes_before_guesses),
            cmocka_unit_test(what_others_have_with_it_is_load_while_it_is_news),
            cmocka_unit_test(a_new_one_grows_to_its_share),
            cmocka_unit_test(kv_that_waits_weighs_less_than_work),
            cmocka_unit_test(one_that_leaves_ends_its_legs_first),
            cmocka_unit_test(one_that_is_probed_may_be_removed_meanwhile),
            cmocka_unit_test(one_that_is_doubted_is_probed_at_once),
            cmocka_unit_test(one_added_later_that_never_answers_is_given_up),
            cmocka_unit_test(any_history_keeps_the_books),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
