/* scheduler.c - see scheduler.h. */
#include "engine/scheduler.h"
#include <assert.h>
#include <errno.h>
#include <stdlib.h>

int scheduler_init(struct scheduler *s, const struct scheduler_options *options, struct blocks *blocks) {
        *s = (struct scheduler){.options = *options, .blocks = blocks};
        s->running = calloc(options->max_seqs, sizeof(struct sequence *));
        s->victims = calloc(options->max_seqs, sizeof(struct sequence *));
        s->plan = calloc(options->max_seqs, sizeof(*s->plan));
        s->fetches = calloc(options->max_seqs, sizeof(struct sequence *));
        s->given_up = calloc(options->max_seqs, sizeof(struct sequence *));
        if (s->running && s->victims && s->plan && s->fetches && s->given_up)
                return 0;
        scheduler_free(s);
        return -ENOMEM;
}

void scheduler_free(struct scheduler *s) {
        assert(s->running_count == 0 && s->waiting_count == 0);
        free(s->running);
        free(s->victims);
        free(s->waiting);
        free(s->plan);
        free(s->fetches);
        free(s->given_up);
        *s = (struct scheduler){0};
}

/* ---- waiting: a heap, so that ten thousand queued requests cost nothing per step ------------------------------------------ */

/* Who comes first. A preempted sequence keeps its order, which is lower than that of all who were never admitted: with
 * FCFS it stands in front. */
static bool before(const struct scheduler *s, const struct sequence *a, const struct sequence *b) {
        if (s->options.by_priority && a->priority != b->priority)
                return a->priority < b->priority;
        return a->order < b->order;
}

static void place(struct scheduler *s, struct sequence *q, size_t at) {
        s->waiting[at] = q;
        q->queue_at = at;
}

static void sift_up(struct scheduler *s, size_t at) {
        struct sequence *q = s->waiting[at];

        while (at > 0 && before(s, q, s->waiting[(at - 1) / 2])) {
                place(s, s->waiting[(at - 1) / 2], at);
                at = (at - 1) / 2;
        }
        place(s, q, at);
}

static void sift_down(struct scheduler *s, size_t at) {
        struct sequence *q = s->waiting[at];

        for (;;) {
                size_t child = 2 * at + 1;

                if (child >= s->waiting_count)
                        break;
                if (child + 1 < s->waiting_count && before(s, s->waiting[child + 1], s->waiting[child]))
                        child++;
                if (!before(s, s->waiting[child], q))
                        break;
                place(s, s->waiting[child], at);
                at = child;
        }
        place(s, q, at);
}

/* Every running sequence may be preempted: there is always room for all of them. */
static int reserve_waiting(struct scheduler *s) {
        size_t needed = s->waiting_count + s->options.max_seqs + 1;
        size_t capacity = s->waiting_capacity * 2 > needed ? s->waiting_capacity * 2 : needed;
        struct sequence **grown;

        if (needed <= s->waiting_capacity)
                return 0;
        grown = realloc(s->waiting, capacity * sizeof(struct sequence *));
        if (!grown)
                return -ENOMEM;
        s->waiting = grown;
        s->waiting_capacity = capacity;
        return 0;
}

static void push_waiting(struct scheduler *s, struct sequence *q) {
        assert(s->waiting_count < s->waiting_capacity);
        q->state = SEQUENCE_WAITING;
        place(s, q, s->waiting_count++);
        sift_up(s, q->queue_at);
}

static void remove_waiting(struct scheduler *s, struct sequence *q) {
        size_t at = q->queue_at;

        assert(at < s->waiting_count && s->waiting[at] == q);
        s->waiting_count--;
        if (at == s->waiting_count)
                return;
        place(s, s->waiting[s->waiting_count], at);
        sift_up(s, at);
        sift_down(s, s->waiting[at]->queue_at);
}

int scheduler_add(struct scheduler *s, struct sequence *q) {
        int r = reserve_waiting(s);

        assert(q->state == SEQUENCE_IDLE && q->prompt > 0 && q->count >= q->prompt);
        if (r < 0)
                return r;
        q->order = s->next_order++;
        q->plan_at = NOT_PLANNED;
        push_waiting(s, q);
        return 0;
}

void scheduler_remove(struct scheduler *s, struct sequence *q) {
        if (q->state == SEQUENCE_WAITING)
                remove_waiting(s, q);
        else if (q->state != SEQUENCE_IDLE) {
                assert(s->running[q->queue_at] == q);
                s->running[q->queue_at] = NULL;
                s->running_count--;
        }
        blocks_release(s->blocks, &q->table);
        q->state = SEQUENCE_IDLE;
}

/* ---- rows ----------------------------------------------------------------------------------------------------------------- */

static uint32_t at_most(uint32_t rows, uint32_t limit) {
        return rows < limit ? rows : limit;
}

static bool wants_all_rows(const struct sequence *q) {
        return q->all_prompt_rows && q->computed < q->prompt;
}

/* How many of the `rows` that it lacks a sequence may compute at once, whatever the budget. */
static uint32_t chunk(const struct scheduler *s, const struct sequence *q, uint32_t rows) {
        if (s->options.long_prefill_tokens)
                rows = at_most(rows, s->options.long_prefill_tokens);
        if (wants_all_rows(q))
                rows = at_most(rows, s->all_rows_left);
        return rows;
}

static void grant(struct scheduler *s, struct sequence *q, uint32_t rows) {
        uint32_t end = q->computed + rows;

        if (wants_all_rows(q))
                s->all_rows_left -= rows;
        if (end < q->count + q->drafts) /* drafts beyond the step are not verified: there are fewer then */
                q->drafts = end > q->count ? end - q->count : 0;
        q->plan_at = s->plan_count;
        s->plan[s->plan_count++] = (struct scheduled){q, q->computed, rows};
        s->plan_rows += rows;
}

/* ---- running --------------------------------------------------------------------------------------------------------------- */

/* Close the gaps that ends and preemptions left in the running sequences. */
static void compact_running(struct scheduler *s) {
        size_t kept = 0;

        for (size_t i = 0; i < s->running_slots; i++) {
                struct sequence *q = s->running[i];

                if (!q || (q->state != SEQUENCE_RUNNING && q->state != SEQUENCE_FETCHING))
                        continue;
                q->queue_at = kept;
                s->running[kept++] = q;
        }
        assert(kept == s->running_count);
        s->running_slots = kept;
}

static void compact_plan(struct scheduler *s) {
        size_t kept = 0;

        for (size_t i = 0; i < s->plan_count; i++)
                if (s->plan[i].sequence) {
                        s->plan[i].sequence->plan_at = kept;
                        s->plan[kept++] = s->plan[i];
                }
        s->plan_count = kept;
}

static int by_worth(const void *a, const void *b, void *scheduler) {
        return before(scheduler, *(struct sequence *const *)a, *(struct sequence *const *)b) ? -1 : 1;
}

/* Line up who may be preempted in this step; made once, when the first one must go. */
static void list_victims(struct scheduler *s) {
        assert(s->running_count == s->running_slots); /* nobody has gone yet */
        /* Others write to the blocks of those that fetch, and read the pinned ones. */
        for (size_t i = 0; i < s->running_slots; i++)
                if (s->running[i]->state == SEQUENCE_RUNNING && !s->running[i]->pinned)
                        s->victims[s->victim_count++] = s->running[i];
        if (s->options.by_priority)
                qsort_r(s->victims, s->victim_count, sizeof(*s->victims), by_worth, s);
}

/* Send a sequence back to wait, or to where its KV came from. Returns the rows that it had been granted in this step. */
static uint32_t preempt(struct scheduler *s, struct sequence *q) {
        bool give_up = s->options.give_up_preempted && q->external > 0;
        uint32_t granted = 0;

        if (q->plan_at != NOT_PLANNED) {
                granted = s->plan[q->plan_at].rows;
                s->plan[q->plan_at].sequence = NULL;
                s->plan_rows -= granted;
                q->plan_at = NOT_PLANNED;
        }
        blocks_release(s->blocks, &q->table);
        q->computed = 0;
        q->drafts = 0;
        q->external = 0;
        q->preemptions++;
        s->preemptions++;
        s->running_count--;
        if (give_up) {
                q->state = SEQUENCE_IDLE;
                s->given_up[s->given_up_count++] = q;
        } else
                push_waiting(s, q);
        return granted;
}

/* Blocks for `rows` more rows, at the cost of others, at last of q itself: then false. What others had been granted goes
 * back to the budget. */
static bool make_room(struct scheduler *s, struct sequence *q, uint32_t rows, uint32_t *budget) {
        while (blocks_grow(s->blocks, &q->table, (size_t)q->computed + rows + s->options.lookahead) < 0) {
                struct sequence *victim;

                if (s->victim_count == 0)
                        list_victims(s);
                victim = s->victims[--s->victim_count];
                *budget += preempt(s, victim);
                if (victim == q)
                        return false;
        }
        return true;
}

/* Give the running sequences their rows. Returns what is left of the budget; *ret_preempted tells whether one had to go. */
static uint32_t plan_running(struct scheduler *s, uint32_t budget, bool *ret_preempted) {
        uint64_t preemptions = s->preemptions;

        s->victim_count = 0;
        for (size_t i = 0; i < s->running_slots && budget > 0; i++) {
                struct sequence *q = s->running[i];
                uint32_t rows;

                if (q->state != SEQUENCE_RUNNING)
                        continue; /* fetching, or preempted a moment ago */
                rows = at_most(chunk(s, q, q->count + q->drafts - q->computed), budget);
                rows = at_most(rows, s->options.max_model_len - 1 - q->computed);
                if (rows == 0)
                        continue;
                if (!make_room(s, q, rows, &budget))
                        continue; /* by priority others come after it; vLLM ends the round here and may give an empty step */
                grant(s, q, rows);
                budget -= rows;
        }
        *ret_preempted = s->preemptions > preemptions;
        if (*ret_preempted) {
                compact_running(s);
                compact_plan(s);
        }
        return budget;
}

/* ---- admission ------------------------------------------------------------------------------------------------------------- */

/* Look for a prefix, and hold blocks for the first rows, or for all of the prompt when the rest of it can be fetched. False
 * when the sequence must go on waiting; *ret_rows 0: it fetches. */
static bool admit(struct scheduler *s, struct sequence *q, uint32_t budget, uint32_t *ret_rows) {
        struct block_source source = {q->tokens, q->prompt, q->salt};
        bool look = !q->all_prompt_rows, fetches, whole;
        uint32_t rows;

        if (look)
                q->computed =
                    (uint32_t)blocks_find(s->blocks, &q->table, &source, q->count, s->options.lookahead ? 1 : 0);
        fetches = q->external > q->computed;
        whole = fetches || q->pinned;
        rows = chunk(s, q, q->count - q->computed);
        if (rows > budget)
                rows = s->options.chunked_prefill ? budget : 0;
        if ((rows == 0 && !fetches) ||
            blocks_grow(s->blocks, &q->table, (whole ? q->count : (size_t)q->computed + rows) + s->options.lookahead) <
                0) {
                blocks_release(s->blocks, &q->table);
                q->computed = 0;
                return false;
        }
        if (!q->admitted) {
                q->cached = q->computed;
                s->prefix_queries += look ? q->count : 0;
                s->prefix_hits += q->computed;
        }
        q->admitted = true;
        *ret_rows = fetches ? 0 : rows;
        return true;
}

static void plan_waiting(struct scheduler *s, uint32_t budget) {
        while (s->waiting_count && s->running_count < s->options.max_seqs && budget > 0) {
                struct sequence *q = s->waiting[0];
                uint32_t rows;

                if (!admit(s, q, budget, &rows))
                        return;
                remove_waiting(s, q);
                q->queue_at = s->running_slots;
                s->running[s->running_slots++] = q;
                s->running_count++;
                if (rows == 0) {
                        q->state = SEQUENCE_FETCHING;
                        s->fetches[s->fetch_count++] = q;
                        continue;
                }
                q->state = SEQUENCE_RUNNING;
                grant(s, q, rows);
                budget -= rows;
        }
}

void scheduler_fetched(struct scheduler *s, struct sequence *q, bool arrived) {
        struct block_source source = {q->tokens, q->prompt, q->salt};

        assert(q->state == SEQUENCE_FETCHING);
        q->state = SEQUENCE_RUNNING;
        if (arrived) {
                q->computed = q->external;
                blocks_register(s->blocks, &q->table, &source, q->computed);
        } else
                q->external = 0;
}

void scheduler_plan(struct scheduler *s) {
        uint32_t budget = s->options.max_batched_tokens;
        bool preempted = false;

        compact_running(s);
        for (size_t i = 0; i < s->running_count; i++)
                s->running[i]->plan_at = NOT_PLANNED;
        s->plan_count = 0;
        s->plan_rows = 0;
        s->fetch_count = 0;
        s->given_up_count = 0;
        s->all_rows_left = ALL_ROWS_PER_STEP;
        if (s->options.prefill_first) {
                plan_waiting(s, budget);
                if (s->plan_count)
                        return;
        }
        budget = plan_running(s, budget, &preempted);
        if (!preempted && !s->options.prefill_first)
                plan_waiting(s, budget);
}

void scheduler_advance(struct scheduler *s, struct sequence *q, uint32_t rows) {
        struct block_source source = {q->tokens, q->prompt, q->salt};

        q->computed += rows;
        blocks_register(s->blocks, &q->table, &source, q->computed);
}
