/* test_queue.c - order, shares and bound of the queue. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "base/rng.h"
#include "gateway/queue.h"
#include <errno.h>
#include <string.h>

struct item {
        struct queue_entry entry; /* first */
        struct queue_who who;
        uint64_t number;
};

static struct item item_of(int64_t priority, uint64_t tenant, uint64_t work) {
        return (struct item){.who = {priority, tenant, work}};
}

static struct item *take(struct queue *q) {
        return (struct item *)queue_take(q);
}

static void add(struct queue *q, struct item *i) {
        struct queue_entry *dropped;

        assert_int_equal(queue_add(q, &i->who, &i->entry, &dropped), 0);
        assert_null(dropped);
}

static void the_more_urgent_go_first_and_each_in_order(void **state) {
        struct item items[300];
        int64_t last_priority = -10;
        uint64_t last_number[3] = {0};
        struct queue q;
        struct rng rng;

        rng_seed(&rng, 1);
        queue_init(&q, 300);
        for (uint64_t k = 0; k < 300; k++) {
                items[k] = item_of((int64_t)rng_below(&rng, 5) - 2, rng_below(&rng, 3), rng_below(&rng, 100));
                items[k].number = k + 1;
                add(&q, &items[k]);
        }
        for (int k = 0; k < 300; k++) {
                struct item *i = take(&q);

                assert_true(i->who.priority >= last_priority);
                if (i->who.priority > last_priority)
                        memset(last_number, 0, sizeof(last_number));
                assert_true(i->number > last_number[i->who.tenant]);
                last_number[i->who.tenant] = i->number;
                last_priority = i->who.priority;
        }
        assert_null(take(&q));
        queue_free(&q);
}

/* While all of them wait, no tenant gets more work done than another by more than one request of each: however many
 * requests it sends, and however large they are. */
static void tenants_share_by_work(void **state) {
        enum { TENANTS = 4, EACH = 200, LARGEST = 1000 };
        static struct item items[TENANTS][EACH];
        uint64_t done[TENANTS] = {0};
        struct queue q;
        struct rng rng;

        rng_seed(&rng, 2);
        queue_init(&q, TENANTS * EACH);
        for (uint64_t t = 0; t < TENANTS; t++)
                for (int k = 0; k < EACH; k++) {
                        /* One has small requests, one large ones, two mixed ones. */
                        uint64_t work = t == 0 ? 500 : t == 1 ? LARGEST : 500 + rng_below(&rng, LARGEST - 500 + 1);

                        items[t][k] = item_of(0, t, work);
                        add(&q, &items[t][k]);
                }
        for (int k = 0; k < EACH; k++) {
                struct item *i = take(&q);

                done[i->who.tenant] += i->who.work;
                for (int a = 0; a < TENANTS; a++)
                        for (int b = 0; b < TENANTS; b++)
                                assert_true(done[a] <= done[b] + 2 * LARGEST);
        }
        while (take(&q))
                ;
        queue_free(&q);
}

/* Who has one request at a time, each a large one, gets no more than those who have many small ones waiting. */
static void one_at_a_time_is_no_way_around_the_shares(void **state) {
        static struct item small[1000], large;
        uint64_t done[2] = {0};
        struct queue q;

        queue_init(&q, 1001);
        for (int k = 0; k < 1000; k++) {
                small[k] = item_of(0, 0, 10);
                add(&q, &small[k]);
        }
        large = item_of(0, 1, 1000);
        add(&q, &large);
        for (int k = 0; k < 500; k++) {
                struct item *i = take(&q);

                done[i->who.tenant] += i->who.work;
                if (i == &large)
                        add(&q, &large);
        }
        assert_in_range(done[1], 1000, done[0] + 1000);
        while (take(&q))
                ;
        queue_free(&q);
}

static void a_full_queue_drops_from_whoever_has_most(void **state) {
        struct item flood[5], other[3], urgent, late;
        struct queue_entry *dropped;
        struct queue q;

        queue_init(&q, 4);
        for (int k = 0; k < 4; k++) {
                flood[k] = item_of(0, 1, 10);
                add(&q, &flood[k]);
        }
        flood[4] = item_of(0, 1, 10);
        assert_int_equal(queue_add(&q, &flood[4].who, &flood[4].entry, &dropped), -ENOBUFS);
        for (int k = 0; k < 2; k++) {
                other[k] = item_of(0, 2, 10);
                assert_int_equal(queue_add(&q, &other[k].who, &other[k].entry, &dropped), 0);
                assert_ptr_equal(dropped, &flood[3 - k]);
        }
        other[2] = item_of(0, 2, 10); /* it has its half */
        assert_int_equal(queue_add(&q, &other[2].who, &other[2].entry, &dropped), -ENOBUFS);
        late = item_of(1, 3, 10);
        assert_int_equal(queue_add(&q, &late.who, &late.entry, &dropped), -ENOBUFS);
        urgent = item_of(-1, 1, 10);
        assert_int_equal(queue_add(&q, &urgent.who, &urgent.entry, &dropped), 0);
        assert_non_null(dropped);
        assert_int_equal(q.count, 4);
        assert_ptr_equal(take(&q), &urgent);
        while (take(&q))
                ;
        queue_free(&q);
}

static void an_empty_queue_remembers_nobody(void **state) {
        static struct item items[5000];
        struct queue_entry *dropped;
        struct queue q;
        struct rng rng;

        rng_seed(&rng, 3);
        queue_init(&q, 0);
        items[0] = item_of(0, 0, 1);
        assert_int_equal(queue_add(&q, &items[0].who, &items[0].entry, &dropped), -ENOBUFS);
        queue_init(&q, 50);
        for (int k = 0; k < 5000; k++) { /* each of a tenant of its own */
                items[k] = item_of(0, (uint64_t)k, 1 + rng_below(&rng, 100));
                add(&q, &items[k]);
                if (q.count > 40)
                        take(&q);
                assert_true(q.flow_count <= 1024 + 50 + 1);
        }
        queue_remove(&q, &items[4999].entry);
        queue_remove(&q, &items[4999].entry); /* twice is harmless */
        while (take(&q))
                ;
        assert_int_equal(q.flow_count, 0);
        queue_free(&q);
}

int main(void) {
        const struct CMUnitTest tests[] = {
            cmocka_unit_test(the_more_urgent_go_first_and_each_in_order),
            cmocka_unit_test(tenants_share_by_work),
            cmocka_unit_test(one_at_a_time_is_no_way_around_the_shares),
            cmocka_unit_test(a_full_queue_drops_from_whoever_has_most),
            cmocka_unit_test(an_empty_queue_remembers_nobody),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
