/* The scheduler: each rule a case, then random loads against invariants, with a cache whose contents are checked. */
#include "base/rng.h"
#include "engine/form.h"
#include "engine/scheduler.h"
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static const uint8_t key[16] = "only for a test";

enum { MAX_SEQUENCES = 64, TOKENS_MAX = 256, BLOCK_TOKENS = 4 };

struct sim {
        struct scheduler s;
        struct blocks *blocks;
        struct sequence q[MAX_SEQUENCES];
        size_t count;
};

static struct scheduler_options common(void) {
        return (struct scheduler_options){
            .max_seqs = 8, .max_batched_tokens = 32, .max_model_len = 128, .chunked_prefill = true};
}

static struct sim *new_sim(const struct scheduler_options *o, uint32_t blocks, enum prefix_caching caching) {
        struct sim *m = calloc(1, sizeof(*m));

        assert_non_null(m);
        m->blocks = blocks_new(blocks, BLOCK_TOKENS, caching, key);
        assert_non_null(m->blocks);
        assert_int_equal(scheduler_init(&m->s, o, m->blocks), 0);
        return m;
}

/* Counters at zero, all blocks back. */
static void free_sim(struct sim *m) {
        for (size_t i = 0; i < m->count; i++) {
                if (m->q[i].state != SEQUENCE_IDLE)
                        scheduler_remove(&m->s, &m->q[i]);
                block_table_free(&m->q[i].table);
                free(m->q[i].tokens);
        }
        assert_int_equal(m->s.running_count, 0);
        assert_int_equal(m->s.waiting_count, 0);
        assert_int_equal(blocks_available(m->blocks), blocks_total(m->blocks));
        scheduler_free(&m->s);
        blocks_free(m->blocks);
        free(m);
}

/* A sequence with tokens first, first + 1, … */
static struct sequence *make(struct sim *m, uint32_t prompt, uint32_t first) {
        struct sequence *q = &m->q[m->count++];

        assert_true(m->count <= MAX_SEQUENCES);
        q->tokens = calloc(TOKENS_MAX, sizeof(*q->tokens));
        for (uint32_t i = 0; i < prompt; i++)
                q->tokens[i] = first + i;
        q->prompt = q->count = prompt;
        assert_int_equal(block_table_reserve(&q->table, BLOCK_TOKENS, TOKENS_MAX), 0);
        return q;
}

static struct sequence *add(struct sim *m, uint32_t prompt) {
        struct sequence *q = make(m, prompt, 1000 * (uint32_t)m->count);

        assert_int_equal(scheduler_add(&m->s, q), 0);
        return q;
}

/* What the engine does after a step: count rows, and give a token to whoever reached its end. */
static void finish_step(struct sim *m) {
        for (size_t i = 0; i < m->s.plan_count; i++) {
                struct scheduled *p = &m->s.plan[i];
                struct sequence *q = p->sequence;

                if (p->first + p->rows == q->count) {
                        q->tokens[q->count] = 7;
                        scheduler_advance(&m->s, q, p->rows);
                        q->count++;
                } else
                        scheduler_advance(&m->s, q, p->rows);
        }
}

static uint32_t rows_of(const struct sim *m, const struct sequence *q) {
        for (size_t i = 0; i < m->s.plan_count; i++)
                if (m->s.plan[i].sequence == q)
                        return m->s.plan[i].rows;
        return 0;
}

static void plan(struct sim *m) {
        scheduler_plan(&m->s);
}

static void step(struct sim *m) {
        plan(m);
        finish_step(m);
}

/* ---- the rules ----------------------------------------------------------------------------------------------------------------- */

static void running_ones_come_first_and_share_one_budget_with_waiting_ones(void **state) {
        struct scheduler_options o = common();
        struct sim *m = new_sim(&o, 100, PREFIX_OFF);
        struct sequence *a = add(m, 10), *b = add(m, 12), *c;

        step(m);
        c = add(m, 40);
        plan(m);
        assert_int_equal(rows_of(m, a), 1);
        assert_int_equal(rows_of(m, b), 1);
        assert_int_equal(rows_of(m, c), 30);
        assert_int_equal(m->s.plan_rows, 32);
        assert_ptr_equal(m->s.plan[0].sequence, a);
        assert_ptr_equal(m->s.plan[2].sequence, c);
        free_sim(m);
}

static void a_long_prompt_is_cut_to_the_budget_and_goes_on_before_new_ones(void **state) {
        struct scheduler_options o = common();
        struct sim *m = new_sim(&o, 100, PREFIX_OFF);
        struct sequence *a = add(m, 70), *b = add(m, 5);

        step(m);
        assert_int_equal(a->computed, 32);
        assert_int_equal(b->state, SEQUENCE_WAITING);
        step(m);
        assert_int_equal(a->computed, 64);
        plan(m);
        assert_int_equal(rows_of(m, a), 6);
        assert_int_equal(rows_of(m, b), 5);
        free_sim(m);
}

static void the_long_prefill_threshold_leaves_room_for_others(void **state) {
        struct scheduler_options o = common();
        struct sim *m;
        struct sequence *a, *b;

        o.long_prefill_tokens = 10;
        m = new_sim(&o, 100, PREFIX_OFF);
        a = add(m, 70);
        b = add(m, 15);
        step(m);
        assert_int_equal(a->computed, 10);
        assert_int_equal(b->computed, 10);
        plan(m);
        assert_int_equal(rows_of(m, a), 10);
        assert_int_equal(rows_of(m, b), 5);
        free_sim(m);
}

static void without_chunks_a_prompt_waits_for_a_budget_that_holds_it_and_nobody_overtakes(void **state) {
        struct scheduler_options o = common();
        struct sim *m;
        struct sequence *a, *b, *c;

        o.chunked_prefill = false;
        m = new_sim(&o, 100, PREFIX_OFF);
        a = add(m, 20);
        b = add(m, 13);
        c = add(m, 2);
        plan(m);
        assert_int_equal(rows_of(m, a), 20);
        assert_int_equal(m->s.plan_count, 1);
        finish_step(m);
        plan(m);
        assert_int_equal(rows_of(m, a), 1);
        assert_int_equal(rows_of(m, b), 13);
        assert_int_equal(rows_of(m, c), 2);
        free_sim(m);
}

static void never_more_than_max_seqs_run(void **state) {
        struct scheduler_options o = common();
        struct sim *m;

        o.max_seqs = 3;
        m = new_sim(&o, 100, PREFIX_OFF);
        for (int i = 0; i < 5; i++)
                add(m, 2);
        step(m);
        assert_int_equal(m->s.running_count, 3);
        assert_int_equal(m->s.waiting_count, 2);
        scheduler_remove(&m->s, &m->q[1]);
        step(m);
        assert_int_equal(m->q[3].state, SEQUENCE_RUNNING);
        assert_int_equal(m->q[4].state, SEQUENCE_WAITING);
        free_sim(m);
}

static void a_sequence_without_blocks_is_not_overtaken(void **state) {
        struct scheduler_options o = common();
        struct sim *m = new_sim(&o, 4, PREFIX_OFF);
        struct sequence *a = add(m, 9), *b = add(m, 8), *c = add(m, 1);

        step(m);
        assert_int_equal(a->state, SEQUENCE_RUNNING);
        assert_int_equal(b->state, SEQUENCE_WAITING);
        assert_int_equal(c->state, SEQUENCE_WAITING);
        assert_int_equal(b->table.count, 0);
        free_sim(m);
}

/* Three sequences of a full block each; the cache holds one block more. */
static struct sim *crowded(const struct scheduler_options *o) {
        struct sim *m = new_sim(o, 4, PREFIX_OFF);

        for (int i = 0; i < 3; i++)
                add(m, 4);
        for (int i = 0; i < 3; i++)
                m->q[i].priority = i == 0 ? 5 : i;
        step(m);
        return m;
}

static void the_last_running_one_is_preempted_and_waits_in_front(void **state) {
        struct scheduler_options o = common();
        struct sim *m = crowded(&o);
        struct sequence *a = &m->q[0], *b = &m->q[1], *c = &m->q[2], *d = add(m, 1);

        plan(m); /* a takes the free block, b needs c's */
        assert_int_equal(rows_of(m, a), 1);
        assert_int_equal(rows_of(m, b), 1);
        assert_int_equal(m->s.plan_count, 2);
        assert_int_equal(c->state, SEQUENCE_WAITING);
        assert_int_equal(c->computed, 0);
        assert_int_equal(c->count, 5);
        assert_int_equal(c->preemptions, 1);
        assert_int_equal(m->s.preemptions, 1);
        assert_ptr_equal(m->s.waiting[0], c);
        assert_int_equal(d->state, SEQUENCE_WAITING); /* nothing is admitted in a step that preempted */
        finish_step(m);
        scheduler_remove(&m->s, a);
        plan(m);
        assert_int_equal(rows_of(m, c), 5); /* prompt and output as one prefill */
        assert_int_equal(rows_of(m, d), 0); /* no block is left */
        free_sim(m);
}

static void a_sequence_that_is_the_last_itself_steps_back(void **state) {
        struct scheduler_options o = common();
        struct sim *m = new_sim(&o, 2, PREFIX_OFF);
        struct sequence *a = add(m, 3), *b = add(m, 4);

        step(m);
        plan(m);
        assert_int_equal(rows_of(m, a), 1);
        assert_int_equal(b->state, SEQUENCE_WAITING);
        assert_int_equal(m->s.plan_count, 1);
        finish_step(m);
        for (int i = 0; i < 4; i++)
                step(m); /* a alone takes both blocks */
        assert_int_equal(a->count, 9);
        scheduler_remove(&m->s, a);
        step(m);
        assert_int_equal(b->count, 6);
        free_sim(m);
}

static void by_priority_the_worst_goes_and_gives_its_rows_back(void **state) {
        struct scheduler_options o = common();
        struct sim *m;
        struct sequence *a, *b, *c;

        o.by_priority = true;
        m = crowded(&o);
        a = &m->q[0];
        b = &m->q[1];
        c = &m->q[2];
        /* Admitted in order of arrival, when priorities were equal; now a is the worst, and was granted its row already. */
        plan(m);
        assert_int_equal(a->state, SEQUENCE_WAITING);
        assert_int_equal(rows_of(m, b), 1);
        assert_int_equal(rows_of(m, c), 1);
        assert_int_equal(m->s.plan_count, 2);
        assert_int_equal(m->s.plan_rows, 2);
        assert_int_equal(b->plan_at, 0);
        assert_int_equal(c->plan_at, 1);
        free_sim(m);
}

static void by_priority_the_best_waiting_one_is_admitted_first(void **state) {
        struct scheduler_options o = common();
        struct sim *m;
        struct sequence *a, *b, *c;

        o.by_priority = true;
        o.max_seqs = 1;
        m = new_sim(&o, 100, PREFIX_OFF);
        a = make(m, 4, 0);
        b = make(m, 4, 0);
        c = make(m, 4, 0);
        a->priority = 2;
        b->priority = c->priority = -1;
        assert_int_equal(scheduler_add(&m->s, a), 0);
        assert_int_equal(scheduler_add(&m->s, b), 0);
        assert_int_equal(scheduler_add(&m->s, c), 0);
        step(m);
        assert_int_equal(b->state, SEQUENCE_RUNNING);
        scheduler_remove(&m->s, b);
        step(m);
        assert_int_equal(c->state, SEQUENCE_RUNNING);
        free_sim(m);
}

static void a_prefix_spares_its_rows_and_is_counted_once(void **state) {
        struct scheduler_options o = common();
        struct sim *m = new_sim(&o, 8, PREFIX_SHARED);
        struct sequence *a = make(m, 13, 500), *b = make(m, 13, 500);

        assert_int_equal(scheduler_add(&m->s, a), 0);
        step(m);
        assert_int_equal(scheduler_add(&m->s, b), 0);
        plan(m);
        assert_int_equal(rows_of(m, a), 1);
        assert_int_equal(rows_of(m, b), 1);
        assert_int_equal(b->cached, 12);
        assert_int_equal(m->s.prefix_queries, 26);
        assert_int_equal(m->s.prefix_hits, 12);
        assert_int_equal(blocks_available(m->blocks), 3);
        free_sim(m);
}

static void a_resumed_sequence_finds_its_own_blocks_again(void **state) {
        struct scheduler_options o = common();
        struct sim *m = new_sim(&o, 7, PREFIX_SHARED);
        struct sequence *a = add(m, 12), *b = add(m, 12);
        uint64_t queries;

        step(m);
        plan(m); /* a takes the last block, b goes */
        assert_int_equal(b->preemptions, 1);
        queries = m->s.prefix_queries;
        finish_step(m);
        scheduler_remove(&m->s, a);
        plan(m);
        assert_int_equal(rows_of(m, b), 1); /* 12 of its 13 tokens were still there */
        assert_int_equal(m->s.prefix_queries, queries);
        assert_int_equal(b->cached, 0); /* as it was told at the first admission */
        free_sim(m);
}

static void prefill_first_decodes_only_when_no_prompt_was_taken(void **state) {
        struct scheduler_options o = common();
        struct sim *m;
        struct sequence *a, *b;

        o.prefill_first = true;
        o.chunked_prefill = false;
        m = new_sim(&o, 100, PREFIX_OFF);
        a = add(m, 10);
        step(m);
        b = add(m, 10);
        plan(m);
        assert_int_equal(rows_of(m, a), 0);
        assert_int_equal(rows_of(m, b), 10);
        finish_step(m);
        plan(m);
        assert_int_equal(rows_of(m, a), 1);
        assert_int_equal(rows_of(m, b), 1);
        free_sim(m);
}

static void drafts_are_rows_and_those_that_do_not_fit_are_given_up(void **state) {
        struct scheduler_options o = common();
        struct sim *m;
        struct sequence *a, *b, *c;

        o.max_batched_tokens = 6;
        o.lookahead = 3;
        m = new_sim(&o, 100, PREFIX_OFF);
        a = add(m, 2);
        b = add(m, 2);
        c = add(m, 2);
        step(m);
        a->drafts = b->drafts = c->drafts = 3;
        plan(m);
        assert_int_equal(rows_of(m, a), 4);
        assert_int_equal(a->drafts, 3);
        assert_int_equal(rows_of(m, b), 2);
        assert_int_equal(b->drafts, 1);
        assert_int_equal(rows_of(m, c), 0);
        assert_int_equal(c->drafts, 3);
        finish_step(m);
        free_sim(m);
}

static void rejected_drafts_are_computed_again(void **state) {
        struct scheduler_options o = common();
        struct sim *m;
        struct sequence *a;

        o.lookahead = 2;
        m = new_sim(&o, 100, PREFIX_SHARED);
        a = add(m, 6);
        step(m);
        a->drafts = 2;
        plan(m);
        assert_int_equal(rows_of(m, a), 3);
        scheduler_advance(&m->s, a, 1); /* both rejected */
        a->count++;
        a->drafts = 0;
        plan(m);
        assert_int_equal(m->s.plan[0].first, 7);
        assert_int_equal(rows_of(m, a), 1);
        free_sim(m);
}

static void no_row_goes_beyond_the_model_length(void **state) {
        struct scheduler_options o = common();
        struct sim *m;
        struct sequence *a;

        o.lookahead = 3;
        o.max_model_len = 10;
        m = new_sim(&o, 100, PREFIX_OFF);
        a = add(m, 7);
        step(m);
        a->drafts = 3; /* 8 tokens and 3 drafts: the last position that is ever computed is 8 */
        plan(m);
        assert_int_equal(rows_of(m, a), 2);
        assert_int_equal(a->drafts, 1);
        free_sim(m);
}

static void slots_for_drafts_are_kept_and_the_last_block_of_a_prefix_is_computed_again(void **state) {
        struct scheduler_options o = common();
        struct sim *m;
        struct sequence *a, *b;

        o.lookahead = 1;
        m = new_sim(&o, 100, PREFIX_SHARED);
        a = make(m, 12, 500);
        assert_int_equal(scheduler_add(&m->s, a), 0);
        step(m);
        assert_int_equal(a->table.count, 4); /* 12 rows and one slot */
        b = make(m, 13, 500);
        assert_int_equal(scheduler_add(&m->s, b), 0);
        plan(m);
        assert_int_equal(rows_of(m, b), 5);
        assert_int_equal(b->cached, 8);
        free_sim(m);
}

static void prompts_with_all_rows_go_in_small_chunks_and_read_no_prefix(void **state) {
        struct scheduler_options o = common();
        struct sim *m;
        struct sequence *a, *b, *c;

        o.max_batched_tokens = 2000;
        o.max_model_len = 1000;
        m = new_sim(&o, 300, PREFIX_SHARED);
        a = make(m, 200, 0);
        b = make(m, 200, 0);
        c = make(m, 3, 900);
        a->all_prompt_rows = b->all_prompt_rows = true;
        assert_int_equal(scheduler_add(&m->s, a), 0);
        assert_int_equal(scheduler_add(&m->s, b), 0);
        assert_int_equal(scheduler_add(&m->s, c), 0);
        plan(m);
        assert_int_equal(rows_of(m, a), 200);
        assert_int_equal(rows_of(m, b), ALL_ROWS_PER_STEP - 200);
        assert_int_equal(rows_of(m, c), 3);
        assert_int_equal(m->s.prefix_queries, 3);
        finish_step(m);
        plan(m);
        assert_int_equal(rows_of(m, b), 200 - (ALL_ROWS_PER_STEP - 200));
        free_sim(m);
}

static void removing_frees_at_once_in_every_state(void **state) {
        struct scheduler_options o = common();
        struct sim *m = new_sim(&o, 100, PREFIX_SHARED);
        struct sequence *a = add(m, 40), *b = add(m, 4);

        step(m); /* a in the middle of its prompt, b waits */
        assert_int_equal(b->state, SEQUENCE_WAITING);
        scheduler_remove(&m->s, b);
        scheduler_remove(&m->s, a);
        assert_int_equal(blocks_available(m->blocks), 100);
        assert_int_equal(m->s.running_count + m->s.waiting_count, 0);
        plan(m);
        assert_int_equal(m->s.plan_count, 0);
        free_sim(m);
}

static void any_cut_gives_every_row_the_same_form(void **state) {
        for (uint32_t prompt = 1; prompt < 12; prompt++)
                for (uint32_t first = 0; first < 16; first++)
                        for (uint32_t rows = 1; rows < 16; rows++) {
                                uint32_t naive = naive_rows(prompt, first, rows);

                                assert_true(naive <= rows);
                                for (uint32_t i = 0; i < rows; i++)
                                        assert_int_equal(i < naive, naive_rows(prompt, first + i, 1));
                        }
        assert_int_equal(naive_rows(5, 0, 9), 4);
}

/* ---- random loads ------------------------------------------------------------------------------------------------------------------ */

struct load {
        struct rng rng;
        struct sim *m;
        uint64_t *kv; /* what lies at [block][slot]: a digest of all tokens up to there, and the form of its row */
        uint32_t target[MAX_SEQUENCES];
        unsigned ended;
};

static uint64_t digest(uint64_t before, uint32_t token, bool naive) {
        return (before ^ (token * 2 + naive + 1)) * 0x9e3779b97f4a7c15ull + 1;
}

static uint64_t *slot(struct load *l, const struct sequence *q, uint32_t position) {
        assert_true(position / BLOCK_TOKENS < q->table.count);
        return &l->kv[q->table.ids[position / BLOCK_TOKENS] * BLOCK_TOKENS + position % BLOCK_TOKENS];
}

/* Compute planned rows as a model would: everything before them must be in the cache, and be this sequence's. */
static void compute(struct load *l, const struct scheduled *p, bool exact) {
        struct sequence *q = p->sequence;
        uint64_t d = 0;

        for (uint32_t i = 0; i < p->first + p->rows; i++) {
                d = digest(d, q->tokens[i], exact && naive_rows(q->prompt, i, 1));
                if (i < p->first)
                        assert_true(*slot(l, q, i) == d);
                else
                        *slot(l, q, i) = d;
        }
}

static void check_plan(const struct load *l) {
        const struct scheduler *s = &l->m->s;
        uint32_t rows = 0;

        assert_true(s->running_count <= s->options.max_seqs);
        assert_true(s->plan_count <= s->running_count);
        assert_true(s->plan_rows <= s->options.max_batched_tokens);
        for (size_t i = 0; i < s->plan_count; i++) {
                const struct scheduled *p = &s->plan[i];
                const struct sequence *q = p->sequence;

                assert_int_equal(q->state, SEQUENCE_RUNNING);
                assert_int_equal(q->plan_at, i);
                assert_ptr_equal(s->running[q->queue_at], q);
                assert_int_equal(p->first, q->computed);
                assert_true(p->rows > 0 && p->first + p->rows <= q->count + q->drafts);
                assert_true(p->first + p->rows < s->options.max_model_len);
                assert_true(q->table.count * BLOCK_TOKENS >= p->first + p->rows + s->options.lookahead);
                if (!s->options.chunked_prefill && q->computed == q->cached && q->preemptions == 0)
                        assert_int_equal(p->first + p->rows, q->count + q->drafts);
                rows += p->rows;
        }
        assert_int_equal(rows, s->plan_rows);
        /* Someone always gets on, if only by preemption: the first running one needs at most the whole cache. */
        if (s->running_count + s->waiting_count)
                assert_true(s->plan_count > 0);
}

static void arrive(struct load *l) {
        uint32_t longest = l->m->s.options.max_model_len - 1, kind = (uint32_t)rng_below(&l->rng, 4);
        struct sequence *q = make(l->m, 1 + (uint32_t)rng_below(&l->rng, longest), kind * 1000);
        uint32_t more;

        q->priority = (int32_t)rng_below(&l->rng, 3);
        if (rng_below(&l->rng, 8) == 0)
                q->tokens[rng_below(&l->rng, q->prompt)] = 1;
        q->all_prompt_rows = rng_below(&l->rng, 10) == 0;
        q->salt = rng_below(&l->rng, 3) ? SLICE_LIT("x") : SLICE_NONE;
        more = l->m->s.options.max_model_len - q->prompt;
        l->target[q - l->m->q] = q->prompt + 1 + (uint32_t)rng_below(&l->rng, more);
        assert_int_equal(scheduler_add(&l->m->s, q), 0);
}

static void end_sequence(struct load *l, struct sequence *q) {
        scheduler_remove(&l->m->s, q);
        l->ended++;
}

static void take_results(struct load *l) {
        struct scheduler *s = &l->m->s;

        for (size_t i = 0; i < s->plan_count; i++) {
                struct scheduled p = s->plan[i];
                struct sequence *q = p.sequence;
                uint32_t accepted, limit;

                if (p.first + p.rows < q->count) {
                        scheduler_advance(s, q, p.rows);
                        continue;
                }
                assert_int_equal(p.first + p.rows, q->count + q->drafts);
                accepted = (uint32_t)rng_below(&l->rng, q->drafts + 1);
                /* Accepted drafts stay, then comes a token that is the target's own. */
                q->count += accepted;
                q->tokens[q->count] = 5000 + (uint32_t)rng_below(&l->rng, 2);
                scheduler_advance(s, q, p.rows - q->drafts + accepted);
                q->count++;
                limit = l->target[q - l->m->q];
                q->drafts = 0;
                if (q->count >= limit)
                        end_sequence(l, q);
                else
                        for (uint32_t k = 0; k < s->options.lookahead && q->count + k + 1 < limit; k++)
                                q->tokens[q->count + q->drafts++] = 6000 + (uint32_t)rng_below(&l->rng, 2);
        }
}

static struct scheduler_options random_options(struct rng *r) {
        struct scheduler_options o = {.max_seqs = 1 + (uint32_t)rng_below(r, 6),
            .max_model_len = 8 + (uint32_t)rng_below(r, 40),
            .chunked_prefill = rng_below(r, 3) > 0,
            .by_priority = rng_below(r, 2),
            .lookahead = rng_below(r, 2) ? 0 : 1 + (uint32_t)rng_below(r, 3)};

        o.max_batched_tokens =
            o.chunked_prefill ? o.max_seqs + (uint32_t)rng_below(r, 30) : o.max_model_len + (uint32_t)rng_below(r, 30);
        o.long_prefill_tokens = o.chunked_prefill && rng_below(r, 3) == 0 ? 1 + (uint32_t)rng_below(r, 9) : 0;
        o.prefill_first = !o.chunked_prefill && rng_below(r, 2);
        return o;
}

static void random_loads_keep_every_invariant_and_end(void **state) {
        uint64_t preemptions = 0, hits = 0, all_steps = 0;

        for (uint64_t seed = 0; seed < 400; seed++) {
                struct load l = {0};
                struct scheduler_options o;
                enum prefix_caching caching = (enum prefix_caching)(seed % 3);
                uint32_t least, blocks;
                unsigned steps = 0;

                rng_seed(&l.rng, seed);
                o = random_options(&l.rng);
                least = (o.max_model_len + o.lookahead + BLOCK_TOKENS - 1) / BLOCK_TOKENS;
                blocks = least + (uint32_t)rng_below(&l.rng, 2 * least);
                l.m = new_sim(&o, blocks, caching);
                l.kv = calloc((size_t)blocks * BLOCK_TOKENS, sizeof(*l.kv));
                while (l.ended < 40) {
                        while (l.m->count < 40 && rng_below(&l.rng, 3) == 0)
                                arrive(&l);
                        if (l.m->count && rng_below(&l.rng, 30) == 0) { /* an abort, in whatever state */
                                struct sequence *q = &l.m->q[rng_below(&l.rng, l.m->count)];

                                if (q->state != SEQUENCE_IDLE)
                                        end_sequence(&l, q);
                        }
                        plan(l.m);
                        check_plan(&l);
                        for (size_t i = 0; i < l.m->s.plan_count; i++)
                                compute(&l, &l.m->s.plan[i], caching == PREFIX_EXACT);
                        take_results(&l);
                        assert_true(++steps < 100000); /* no starvation: all end */
                }
                preemptions += l.m->s.preemptions;
                hits += l.m->s.prefix_hits;
                all_steps += steps;
                free(l.kv);
                free_sim(l.m);
        }
        assert_true(preemptions > 1000 && hits > 10000 && all_steps > 50000); /* it was a load */
}

int main(void) {
        const struct CMUnitTest tests[] = {
            cmocka_unit_test(running_ones_come_first_and_share_one_budget_with_waiting_ones),
            cmocka_unit_test(a_long_prompt_is_cut_to_the_budget_and_goes_on_before_new_ones),
            cmocka_unit_test(the_long_prefill_threshold_leaves_room_for_others),
            cmocka_unit_test(without_chunks_a_prompt_waits_for_a_budget_that_holds_it_and_nobody_overtakes),
            cmocka_unit_test(never_more_than_max_seqs_run),
            cmocka_unit_test(a_sequence_without_blocks_is_not_overtaken),
            cmocka_unit_test(the_last_running_one_is_preempted_and_waits_in_front),
            cmocka_unit_test(a_sequence_that_is_the_last_itself_steps_back),
            cmocka_unit_test(by_priority_the_worst_goes_and_gives_its_rows_back),
            cmocka_unit_test(by_priority_the_best_waiting_one_is_admitted_first),
            cmocka_unit_test(a_prefix_spares_its_rows_and_is_counted_once),
            cmocka_unit_test(a_resumed_sequence_finds_its_own_blocks_again),
            cmocka_unit_test(prefill_first_decodes_only_when_no_prompt_was_taken),
            cmocka_unit_test(drafts_are_rows_and_those_that_do_not_fit_are_given_up),
            cmocka_unit_test(rejected_drafts_are_computed_again),
            cmocka_unit_test(no_row_goes_beyond_the_model_length),
            cmocka_unit_test(slots_for_drafts_are_kept_and_the_last_block_of_a_prefix_is_computed_again),
            cmocka_unit_test(prompts_with_all_rows_go_in_small_chunks_and_read_no_prefix),
            cmocka_unit_test(removing_frees_at_once_in_every_state),
            cmocka_unit_test(any_cut_gives_every_row_the_same_form),
            cmocka_unit_test(random_loads_keep_every_invariant_and_end),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
