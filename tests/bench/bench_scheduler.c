/* What composing a step costs: nanoseconds per step with 0 and with 10,000 requests queued, for several numbers of running
 * sequences. Nothing may depend on how many wait, and per running sequence the cost must not grow. */
#include "base/clock.h"
#include "engine/scheduler.h"
#include <stdio.h>
#include <stdlib.h>

enum { PROMPT = 32, OUTPUT = 96, BLOCK_TOKENS = 64, STEPS = 20000 };

static struct sequence *new_sequence(size_t number) {
        struct sequence *q = calloc(1, sizeof(*q));

        if (!q || !(q->tokens = calloc(PROMPT + OUTPUT + 1, sizeof(*q->tokens))) ||
            block_table_reserve(&q->table, BLOCK_TOKENS, PROMPT + OUTPUT + 1) < 0)
                abort();
        q->prompt = q->count = PROMPT;
        q->tokens[0] = (uint32_t)number;
        return q;
}

static void free_sequence(struct scheduler *s, struct sequence *q) {
        scheduler_remove(s, q);
        block_table_free(&q->table);
        free(q->tokens);
        free(q);
}

/* Whoever ends is replaced by a new arrival, so that the queue keeps its length. */
static double nanoseconds_per_step(uint32_t running, size_t queued, uint32_t blocks_each) {
        static const uint8_t key[16];
        struct scheduler_options o = {.max_seqs = running,
            .max_batched_tokens = 2048 + running,
            .max_model_len = PROMPT + OUTPUT,
            .chunked_prefill = true};
        struct blocks *blocks = blocks_new(running * blocks_each + 4, BLOCK_TOKENS, PREFIX_EXACT, key);
        struct scheduler s;
        size_t arrived = 0, planned = 0;
        uint64_t begin, spent = 0;

        if (!blocks || scheduler_init(&s, &o, blocks) < 0)
                abort();
        for (; arrived < running + queued; arrived++)
                if (scheduler_add(&s, new_sequence(arrived)) < 0)
                        abort();
        for (int step = 0; step < STEPS; step++) {
                begin = clock_mono_ns();
                scheduler_plan(&s);
                planned = s.plan_count;
                for (size_t i = 0; i < planned; i++) {
                        struct sequence *q = s.plan[i].sequence;

                        scheduler_advance(&s, q, s.plan[i].rows);
                        if (q->computed == q->count && ++q->count == PROMPT + OUTPUT) {
                                free_sequence(&s, q);
                                if (scheduler_add(&s, new_sequence(arrived++)) < 0)
                                        abort();
                        }
                }
                spent += clock_mono_ns() - begin;
        }
        while (s.waiting_count)
                free_sequence(&s, s.waiting[0]);
        for (size_t i = 0; i < s.running_slots; i++)
                if (s.running[i])
                        free_sequence(&s, s.running[i]);
        scheduler_free(&s);
        blocks_free(blocks);
        return (double)spent / STEPS;
}

int main(void) {
        printf("%8s %8s %14s %14s\n", "running", "queued", "ns/step", "ns/step/running");
        for (uint32_t running = 1; running <= 1024; running *= 4)
                for (size_t queued = 0; queued <= 10000; queued += 10000) {
                        double ns = nanoseconds_per_step(running, queued, 2);

                        printf("%8u %8zu %14.0f %14.1f\n", running, queued, ns, ns / running);
                }
        printf("with one block for every two wanted (preemption all the time):\n");
        for (uint32_t running = 4; running <= 1024; running *= 4) {
                double ns = nanoseconds_per_step(running, 10000, 1);

                printf("%8u %8d %14.0f %14.1f\n", running, 10000, ns, ns / running);
        }
        return 0;
}
