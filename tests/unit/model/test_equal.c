/* test_equal.c - what a step is made of changes no bit: chunks, neighbours, blocks, threads, instruction sets. */
#include "base/rng.h"
#include "fixture.h"

/* Of every weight format and attention form. */
static const char *const names[] = {"v2-greedy", "v2-group", "v3-bf16", "v3-f32", "v3-fp8", "v3-w8a8"};
#define NAMES (sizeof(names) / sizeof(*names))

static const struct fixture_options plain = {FIXTURE_DEFAULTS};

/* The engine's rule: all of a prompt but its last token is naive. */
static uint32_t naive_of(uint32_t prompt, uint32_t first, uint32_t rows) {
        uint32_t end = prompt - 1;

        return first >= end ? 0 : end - first < rows ? end - first : rows;
}

/* Logits, hidden states and draft logits of every position of a sequence. */
struct outcome {
        uint32_t count;
        float *logits, *hidden, *drafts;
};

static struct outcome outcome_new(const struct fixture *f, uint32_t count) {
        struct outcome o = {count, calloc((size_t)count * f->vocab, sizeof(float)),
            calloc((size_t)count * f->width, sizeof(float)), calloc((size_t)count * f->vocab, sizeof(float))};

        assert_true(o.logits && o.hidden && o.drafts);
        return o;
}

static void outcome_free(struct outcome *o) {
        free(o->logits);
        free(o->hidden);
        free(o->drafts);
}

static void same_outcome(const struct fixture *f, const struct outcome *a, const struct outcome *b, const char *what) {
        char text[128];

        assert_int_equal(a->count, b->count);
        snprintf(text, sizeof(text), "%s, hidden, %s", f->name, what);
        same_bits(a->hidden, b->hidden, (size_t)a->count * f->width, text);
        snprintf(text, sizeof(text), "%s, logits, %s", f->name, what);
        same_bits(a->logits, b->logits, (size_t)a->count * f->vocab, text);
        snprintf(text, sizeof(text), "%s, drafts, %s", f->name, what);
        same_bits(a->drafts, b->drafts, (size_t)a->count * f->vocab, text);
}

/* Several sequences, each with the rows that the next step computes of it. */
struct sequence {
        uint32_t tokens[FIXTURE_ROWS + 1], prompt, count; /* count: of tokens that are run; one more follows */
        uint32_t *blocks;
        uint32_t done, next; /* rows run, and of the next step */
        struct outcome o;
};

/* One step over the `next` rows of every sequence, model and draft module. */
static void run_step(struct fixture *f, struct kv_cache *kv, struct sequence *q, size_t n) {
        static uint32_t tokens[4096], following[4096], all[4096];
        struct model_span spans[16];
        struct model_step step = {.tokens = tokens, .spans = spans, .logit_rows = all};
        float *logits, *hidden;

        for (size_t i = 0; i < n; i++) {
                if (!q[i].next)
                        continue;
                spans[step.span_count++] =
                    (struct model_span){q[i].blocks, q[i].done, q[i].next, naive_of(q[i].prompt, q[i].done, q[i].next)};
                for (uint32_t r = 0; r < q[i].next; r++, step.rows++) {
                        tokens[step.rows] = q[i].tokens[q[i].done + r];
                        following[step.rows] = q[i].tokens[q[i].done + r + 1];
                        all[step.rows] = (uint32_t)step.rows;
                }
        }
        step.logit_count = step.rows;
        logits = calloc(step.rows * f->vocab, sizeof(float));
        hidden = calloc(step.rows * f->width, sizeof(float));
        assert_true(logits && hidden);
        assert_int_equal(model_forward(f->model, kv, &step, logits, hidden), 0);
        for (size_t i = 0, row = 0; i < n; row += q[i].next, i++) {
                memcpy(q[i].o.logits + (size_t)q[i].done * f->vocab, logits + row * f->vocab,
                    (size_t)q[i].next * f->vocab * sizeof(float));
                memcpy(q[i].o.hidden + (size_t)q[i].done * f->width, hidden + row * f->width,
                    (size_t)q[i].next * f->width * sizeof(float));
        }
        if (model_config(f->model)->mtp_layers) {
                step.tokens = following;
                assert_int_equal(model_draft(f->model, kv, &step, hidden, logits, NULL), 0);
                for (size_t i = 0, row = 0; i < n; row += q[i].next, i++)
                        memcpy(q[i].o.drafts + (size_t)q[i].done * f->vocab, logits + row * f->vocab,
                            (size_t)q[i].next * f->vocab * sizeof(float));
        }
        for (size_t i = 0; i < n; i++)
                q[i].done += q[i].next;
        free(logits);
        free(hidden);
}

/* A prompt of a fixture and its continuation. */
static struct sequence sequence_of(const struct fixture *f, int i, uint32_t *blocks) {
        struct sequence q = {.blocks = blocks};
        const struct tensor *greedy = expected(f, "case", i, "greedy");

        q.prompt = load_prompt(f, "case", i, q.tokens);
        q.count = q.prompt + (uint32_t)greedy->shape[0] - 1;
        if (q.count > FIXTURE_ROWS)
                q.count = FIXTURE_ROWS;
        memcpy(q.tokens + q.prompt, greedy->data, greedy->bytes);
        q.o = outcome_new(f, q.count);
        return q;
}

/* The prompt in one step, then token by token. */
static struct outcome run_alone(struct fixture *f, struct kv_cache *kv, uint32_t *blocks, int i) {
        struct sequence q = sequence_of(f, i, blocks);

        for (q.next = q.prompt; q.done < q.count; q.next = 1)
                run_step(f, kv, &q, 1);
        return q.o;
}

static struct outcome run_fixture(const char *name, const struct fixture_options *o, int i, struct fixture *ret) {
        *ret = fixture_open(name, o);
        return run_alone(ret, &ret->kv, ret->blocks, i);
}

#define LONG_CASE  5 /* 129 tokens */
#define SHORT_CASE 3 /* 37 tokens */

static void any_chunking_gives_the_same_bits(void **state) {
        struct rng rng;

        rng_seed(&rng, 1);
        for (size_t k = 0; k < NAMES; k++) {
                struct fixture f;
                struct outcome whole = run_fixture(names[k], &plain, LONG_CASE, &f);

                for (int round = 0; round < 6; round++) {
                        struct sequence q = sequence_of(&f, LONG_CASE, f.blocks);
                        uint32_t most = round == 0 ? 1 : round < 3 ? 7 : 100;

                        while (q.done < q.count) { /* decoding rows are chunked too, as when drafts are verified */
                                uint32_t left = q.count - q.done;

                                q.next = 1 + (uint32_t)rng_below(&rng, most);
                                q.next = q.next < left ? q.next : left;
                                run_step(&f, &f.kv, &q, 1);
                        }
                        same_outcome(&f, &q.o, &whole, "in chunks");
                        outcome_free(&q.o);
                }
                outcome_free(&whole);
                fixture_close(&f);
        }
}

static void a_batch_gives_what_its_sequences_give_alone(void **state) {
        struct rng rng;

        rng_seed(&rng, 2);
        for (size_t k = 0; k < NAMES; k++) {
                struct fixture f = fixture_open(names[k], &plain);
                struct sequence q[6];
                const size_t n = sizeof(q) / sizeof(*q);
                struct outcome alone[sizeof(q) / sizeof(*q)];
                const uint32_t each = FIXTURE_ROWS / FIXTURE_BLOCK;
                struct kv_cache kv;
                uint32_t *blocks = fixture_cache(f.model, KV_F32, FIXTURE_BLOCK, (uint32_t)n * FIXTURE_ROWS, &kv);
                bool more = true;

                for (size_t i = 0; i < n; i++) {
                        alone[i] = run_alone(&f, &f.kv, f.blocks, (int)i);
                        q[i] = sequence_of(&f, (int)i, blocks + i * each);
                }
                while (more) {
                        more = false;
                        for (size_t i = 0; i < n; i++) {
                                uint32_t left = q[i].count - q[i].done;
                                uint32_t want = q[i].done < q[i].prompt ? 1 + (uint32_t)rng_below(&rng, 60) : 1;

                                q[i].next = rng_below(&rng, 8) == 0 ? 0 : want < left ? want : left;
                                more |= left > 0;
                        }
                        if (more)
                                run_step(&f, &kv, q, n);
                }
                for (size_t i = 0; i < n; i++) {
                        same_outcome(&f, &q[i].o, &alone[i], "in a batch");
                        outcome_free(&q[i].o);
                        outcome_free(&alone[i]);
                }
                free(blocks);
                kv_cache_free(&kv);
                fixture_close(&f);
        }
}

/* The same with two sets of options. */
static void check_options(const struct fixture_options *a, const struct fixture_options *b, const char *what) {
        for (size_t k = 0; k < NAMES; k++) {
                struct fixture fa, fb;
                struct outcome oa = run_fixture(names[k], a, LONG_CASE, &fa);
                struct outcome ob = run_fixture(names[k], b, LONG_CASE, &fb);

                same_outcome(&fa, &oa, &ob, what);
                outcome_free(&oa);
                outcome_free(&ob);
                fixture_close(&fa);
                fixture_close(&fb);
        }
}

static void threads_change_no_bit(void **state) {
        const struct fixture_options one = {.isa = ISA_BEST, .threads = 1, .block_tokens = FIXTURE_BLOCK};
        const struct fixture_options three = {.isa = ISA_BEST, .threads = 3, .block_tokens = FIXTURE_BLOCK};

        check_options(&one, &three, "with three threads");
}

static void threads_change_no_bit_of_bf16_activations(void **state) {
        const struct fixture_options one = {.activation = ACTIVATION_BF16,
            .isa = ISA_BEST,
            .threads = 1,
            .block_tokens = FIXTURE_BLOCK,
            .kv_type = KV_BF16};
        const struct fixture_options three = {
            .activation = ACTIVATION_BF16, .isa = ISA_BEST, .threads = 3, .block_tokens = 32, .kv_type = KV_BF16};

        check_options(&one, &three, "with three threads and other blocks");
}

static void block_sizes_change_no_bit(void **state) {
        static const uint32_t sizes[] = {1, 8, 64, 256};
        static const enum kv_type types[] = {KV_F32, KV_BF16};

        for (size_t i = 0; i < sizeof(sizes) / sizeof(*sizes); i++)
                for (size_t t = 0; t < 2; t++) {
                        struct fixture_options a = {FIXTURE_DEFAULTS, .kv_type = types[t]}, b = a;

                        b.block_tokens = sizes[i];
                        check_options(&a, &b, "with other blocks");
                }
}

static void instruction_sets_change_no_bit(void **state) {
        const struct fixture_options scalar = {.isa = ISA_SCALAR, .threads = 2, .block_tokens = FIXTURE_BLOCK};

        check_options(&plain, &scalar, "in plain C");
}

static void the_naive_form_is_the_absorbed_one(void **state) {
        for (size_t k = 0; k < NAMES; k++) {
                struct fixture f = fixture_open(names[k], &plain);
                const bool int8 = strstr(names[k], "w8a8") != NULL;
                uint32_t tokens[FIXTURE_ROWS], count = load_prompt(&f, "case", LONG_CASE, tokens);
                float *naive = calloc((size_t)count * f.vocab, sizeof(*naive));

                assert_non_null(naive);
                run_rows(&f, tokens, 0, count, count);
                memcpy(naive, f.logits, (size_t)count * f.vocab * sizeof(*naive));
                run_rows(&f, tokens, 0, count, 0);
                for (uint32_t i = 0; i < count; i++) {
                        double off = row_error(naive + (size_t)i * f.vocab, f.logits + (size_t)i * f.vocab, f.vocab);

                        /* A last bit may move a quantised activation by one step. */
                        if (!(off <= (int8 ? 0.05 : 1e-5)))
                                fail_msg("%s: position %u differs by %g", f.name, i, off);
                }
                free(naive);
                fixture_close(&f);
        }
}

/* bf16 latents lose half of their bits: texts stay readable, logits near. */
static void bf16_latents_are_near_f32_latents(void **state) {
        const struct fixture_options half = {FIXTURE_DEFAULTS, .kv_type = KV_BF16};
        struct fixture fa, fb;
        struct outcome a = run_fixture("v2-greedy", &plain, LONG_CASE, &fa);
        struct outcome b = run_fixture("v2-greedy", &half, LONG_CASE, &fb);
        double worst = 0;

        for (uint32_t i = 0; i < a.count; i++)
                worst =
                    fmax(worst, row_error(b.logits + (size_t)i * fa.vocab, a.logits + (size_t)i * fa.vocab, fa.vocab));
        assert_true(worst > 0);
        if (!(worst < 0.05))
                fail_msg("logits differ by %g", worst);
        outcome_free(&a);
        outcome_free(&b);
        fixture_close(&fa);
        fixture_close(&fb);
}

/* Rows may be run again (after a preemption, or when a draft was refused): the later ones count. */
static void running_a_position_again_replaces_it(void **state) {
        struct fixture f;
        struct outcome whole = run_fixture("v3-f32", &plain, SHORT_CASE, &f);
        struct sequence q = sequence_of(&f, SHORT_CASE, f.blocks);
        uint32_t wrong[FIXTURE_ROWS + 8];

        for (q.next = q.prompt; q.done < q.count; q.next = 1) {
                run_step(&f, &f.kv, &q, 1);
                for (int i = 0; i < 4; i++)
                        wrong[q.done + (uint32_t)i] = (q.done * 7 + (uint32_t)i) % f.vocab;
                if (q.done + 4 <= FIXTURE_ROWS)
                        run_rows(&f, wrong, q.done, 4, 0);
        }
        same_outcome(&f, &q.o, &whole, "after refused drafts");
        outcome_free(&q.o);
        outcome_free(&whole);
        fixture_close(&f);
}

/* ---- a step without rows ------------------------------------------------------------------------------------------------ */

struct counting {
        uint32_t calls, tokens;
};

static int count_experts(void *context, uint32_t layer, const float *x, const uint32_t *ids, const float *weights,
    size_t tokens, float *out, void (*overlap)(void *overlap_context), void *overlap_context) {
        struct counting *c = context;

        c->calls++;
        c->tokens += (uint32_t)tokens;
        if (overlap)
                overlap(overlap_context);
        return c->calls < 100 ? 0 : -EPIPE;
}

static void a_step_without_rows_takes_part_in_every_moe_layer(void **state) {
        struct fixture f = fixture_open("v3-f32", &plain);
        struct counting c = {0};
        const struct experts_interface experts = {count_experts, &c};
        struct model_step step = {0};

        model_set_experts(f.model, &experts);
        assert_int_equal(model_forward(f.model, &f.kv, &step, f.logits, NULL), 0);
        assert_int_equal(c.calls, 2); /* the first of three layers is dense */
        assert_int_equal(model_draft(f.model, &f.kv, &step, f.hidden, f.logits, NULL), 0);
        assert_int_equal(c.calls, 3);
        assert_int_equal(c.tokens, 0);
        fixture_close(&f);
}

static void an_error_of_the_experts_ends_the_step(void **state) {
        struct fixture f = fixture_open("v3-f32", &plain);
        struct counting c = {.calls = 98};
        const struct experts_interface experts = {count_experts, &c};
        struct model_step step = {0};

        model_set_experts(f.model, &experts);
        assert_int_equal(model_forward(f.model, &f.kv, &step, f.logits, NULL), -EPIPE);
        assert_int_equal(c.calls, 100);
        fixture_close(&f);
}

int main(void) {
        const struct CMUnitTest tests[] = {
            cmocka_unit_test(any_chunking_gives_the_same_bits),
            cmocka_unit_test(a_batch_gives_what_its_sequences_give_alone),
            cmocka_unit_test(threads_change_no_bit),
            cmocka_unit_test(threads_change_no_bit_of_bf16_activations),
            cmocka_unit_test(block_sizes_change_no_bit),
            cmocka_unit_test(instruction_sets_change_no_bit),
            cmocka_unit_test(the_naive_form_is_the_absorbed_one),
            cmocka_unit_test(bf16_latents_are_near_f32_latents),
            cmocka_unit_test(running_a_position_again_replaces_it),
            cmocka_unit_test(a_step_without_rows_takes_part_in_every_moe_layer),
            cmocka_unit_test(an_error_of_the_experts_ends_the_step),
        };

        return cmocka_run_group_tests_name("equal", tests, NULL, NULL);
}
