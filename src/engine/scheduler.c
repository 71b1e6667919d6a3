/* scheduler.c - see scheduler.h. */
#include "engine/scheduler.h"
#include <assert.h>
#include <errno.h>
#include <stdlib.h>

int scheduler_init(struct scheduler *s, const struct scheduler_options *options, struct blocks *blocks) {
        *s = (struct scheduler){.options = *options, .blocks = blocks};
        s->running = calloc(options->max_seqs, sizeof(struct sequence *));
        s->plan = calloc(options->max_seqs, sizeof(*s->plan));
        if (s->running && s->plan)
                return 0;
        scheduler_free(s);
        return -ENOMEM;
}

void scheduler_free(struct scheduler *s) {
        free(s->running);
        free(s->waiting);
        free(s->plan);
        *s = (struct scheduler){0};
}

/* ---- waiting: a heap, so that ten thousand queued requests cost nothing per step ------------------------------------------ */

static bool before(const struct scheduler *s, const struct sequence *a, const struct sequence *b) {
        if (s->options.by_priority && a->priority != b->priority)
                return a->priority < b->priority;
        return a->order < b->order;
}

static void place(struct scheduler *s, struct sequence *q, size_t at) {
        s->waiting[at] = q;
        q->heap_at = at;
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

static int reserve_waiting(struct scheduler *s) {
        size_t capacity = s->waiting_capacity ? s->waiting_capacity * 2 : 64;
        struct sequence **grown;

        /* Every running sequence may be preempted: there is always room for all of them. */
        if (s->waiting_count + s->options.max_seqs + 1 <= s->waiting_capacity)
                return 0;
        while (capacity < s->waiting_count + s->options.max_seqs + 1)
                capacity *= 2;
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
        sift_up(s, q->heap_at);
}

static void remove_waiting(struct scheduler *s, struct sequence *q) {
        size_t at = q->heap_at;

        assert(at < s->waiting_count && s->waiting[at] == q);
        s->waiting_count--;
        if (at == s->waiting_count)
                return;
        place(s, s->waiting[s->waiting_count], at);
        sift_up(s, at);
        sift_down(s, s->waiting[at]->heap_at);
}

int scheduler_add(struct scheduler *s, struct sequence *q) {
        int r = reserve_waiting(s);

        if (r < 0)
                return r;
        q->order = s->next_order++;
        push_waiting(s, q);
        return 0;
}

/* ---- running --------------------------------------------------------------------------------------------------------------- */

static void remove_running(struct scheduler *s, const struct sequence *q) {
        size_t at = 0;

        while (s->running[at] != q)
                at++;
        s->running_count--;
        memmove(&s->running[at], &s->running[at + 1], (s->running_count - at) * sizeof(*s->running));
}

void scheduler_remove(struct scheduler *s, struct sequence *q) {
        switch (q->state) {
        case SEQUENCE_WAITING:
                remove_waiting(s, q);
                break;
        case SEQUENCE_RUNNING:
                remove_running(s, q);
                break;
        default:
                break;
        }
        blocks_release(s->blocks, &q->table);
        q->state = SEQUENCE_DONE;
}

/* The running sequence that matters least: the last admitted, or by priority the worst of them all. */
static struct sequence *choose_victim(struct scheduler *s) {
        struct sequence *victim = s->running[s->running_count - 1];

        if (s->options.by_priority)
                for (size_t i = 0; i < s->running_count; i++)
                        if (before(s, victim, s->running[i]))
                                victim = s->running[i];
        return victim;
}

/* What was granted to the victim in this step goes back to the budget. */
static uint32_t take_back(struct scheduler *s, const struct sequence *victim) {
        for (size_t i = 0; i < s->plan_count; i++)
                if (s->plan[i].sequence == victim) {
                        uint32_t rows = s->plan[i].rows;

                        s->plan_count--;
                        memmove(&s->plan[i], &s->plan[i + 1], (s->plan_count - i) * sizeof(*s->plan));
                        s->plan_rows -= rows;
                        return rows;
                }
        return 0;
}

static void preempt(struct scheduler *s, struct sequence *victim) {
        remove_running(s, victim);
        blocks_release(s->blocks, &victim->table);
        victim->computed = 0;
        victim->drafts = 0;
        victim->preemptions++;
        s->preemptions++;
        push_waiting(s, victim);
}

static void grant(struct scheduler *s, struct sequence *q, uint32_t rows) {
        s->plan[s->plan_count++] = (struct scheduled){q, q->computed, rows};
        s->plan_rows += rows;
}

/* Rows a sequence may take of the `rows` it needs. Prompt log-probabilities want the logits of every row, a vocabulary of
 * floats each: such prompts go in small chunks. */
static uint32_t cap(const struct scheduler *s, const struct sequence *q, uint32_t rows, uint32_t budget) {
        if (s->options.long_prefill_tokens && rows > s->options.long_prefill_tokens)
                rows = s->options.long_prefill_tokens;
        if (q->bypass_cache && rows > PROMPT_LOGPROB_ROWS)
                rows = PROMPT_LOGPROB_ROWS;
        return rows < budget ? rows : budget;
}

/* Give the running sequences their rows. Returns what is left of the budget; *ret_preempted tells whether one had to go. */
static uint32_t plan_running(struct scheduler *s, uint32_t budget, bool *ret_preempted) {
        for (size_t i = 0; i < s->running_count && budget > 0;) {
                struct sequence *q = s->running[i];
                uint32_t rows = cap(s, q, q->count + q->drafts - q->computed, budget);
                bool gone = false;

                if (rows == 0) {
                        i++;
                        continue;
                }
                while (blocks_grow(s->blocks, &q->table, (size_t)q->computed + rows + s->options.lookahead) < 0) {
                        struct sequence *victim = choose_victim(s);
                        size_t at = 0;

                        *ret_preempted = true;
                        while (s->running[at] != victim)
                                at++;
                        budget += take_back(s, victim);
                        preempt(s, victim);
                        if (at < i)
                                i--; /* q moved up by one */
                        if (victim == q) {
                                gone = true;
                                break;
                        }
                }
                if (gone)
                        continue; /* the next one stands at i now; with FCFS there is none */
                grant(s, q, rows);
                budget -= rows;
                i++;
        }
        return budget;
}

/* ---- admission ------------------------------------------------------------------------------------------------------------- */

/* Look for a prefix and hold blocks for the first rows. Returns the rows, 0 when the sequence must go on waiting. */
static uint32_t admit(struct scheduler *s, struct sequence *q, uint32_t budget) {
        int64_t found =
            q->bypass_cache && q->computed == 0 ? 0 : blocks_find(s->blocks, &q->table, q->tokens, q->count, q->salt);
        uint32_t computed = found > 0 ? (uint32_t)found : 0, needed = q->count - computed, rows;

        rows = s->options.long_prefill_tokens && needed > s->options.long_prefill_tokens
                   ? s->options.long_prefill_tokens
                   : needed;
        if (!s->options.chunked_prefill && rows > budget)
                rows = 0;
        if (rows > budget)
                rows = budget;
        if (rows == 0 || blocks_grow(s->blocks, &q->table, (size_t)computed + rows + s->options.lookahead) < 0) {
                blocks_release(s->blocks, &q->table);
                return 0;
        }
        if (!q->bypass_cache) {
                s->prefix_queries += q->count;
                s->prefix_hits += computed;
        }
        q->computed = computed;
        if (!q->admitted)
                q->cached = computed;
        q->admitted = true;
        return rows;
}

static void plan_waiting(struct scheduler *s, uint32_t budget) {
        while (s->waiting_count && s->running_count < s->options.max_seqs && budget > 0) {
                struct sequence *q = s->waiting[0];
                uint32_t rows = admit(s, q, budget);

                if (rows == 0)
                        return;
                remove_waiting(s, q);
                q->state = SEQUENCE_RUNNING;
                s->running[s->running_count++] = q;
                grant(s, q, rows);
                budget -= rows;
        }
}

void scheduler_plan(struct scheduler *s) {
        uint32_t budget = s->options.max_batched_tokens;
        bool preempted = false;

        s->plan_count = 0;
        s->plan_rows = 0;
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
        q->computed += rows;
        blocks_register(s->blocks, &q->table, q->tokens, q->computed, q->salt);
}
