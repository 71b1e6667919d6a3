/* test_shards.c - a model cut over ranks is the same model: experts spread, heads and columns divided. */
#include "fixture.h"
#include <pthread.h>

#define RANKS_MAX 5u
#define CASE      5 /* 129 tokens */

static const struct fixture_options plain = {FIXTURE_DEFAULTS};

/* ---- experts over ranks ------------------------------------------------------------------------------------------------- */

struct spread {
        struct model *ranks[RANKS_MAX];
        uint32_t count;
        struct compute *compute;
        uint32_t hidden, top_k;
        uint32_t used[RANKS_MAX]; /* tokens that went to each */
};

/* Token by token, each expert where it lives: the plainest reading of experts_interface. */
static int run_spread(void *context, uint32_t layer, const float *x, const uint32_t *ids, const float *weights,
    size_t tokens, float *out, void (*overlap)(void *overlap_context), void *overlap_context) {
        struct spread *s = context;
        float *y = calloc(s->hidden, sizeof(*y));

        assert_non_null(y);
        for (size_t t = 0; t < tokens; t++)
                for (uint32_t k = 0; k < s->top_k; k++) {
                        const uint32_t expert = ids[t * s->top_k + k], row = (uint32_t)t;
                        uint32_t holders = 0;

                        for (uint32_t rank = 0; rank < s->count; rank++) {
                                const struct mlp *here = model_expert(s->ranks[rank], layer, expert);
                                const struct expert_call call = {.expert = here, .rows = &row, .m = 1, .y = y};

                                if (!here)
                                        continue;
                                holders++;
                                s->used[rank]++;
                                /* Not with the other rank's compute, which may be busy in its own thread. */
                                experts_run(s->compute, &call, 1, x, s->hidden, s->hidden);
                        }
                        assert_int_equal(holders, 1);
                        for (uint32_t j = 0; j < s->hidden; j++)
                                out[t * s->hidden + j] += weights[t * s->top_k + k] * y[j];
                }
        free(y);
        if (overlap)
                overlap(overlap_context);
        return 0;
}

static void experts_may_live_anywhere(void **state) {
        static const char *const names[] = {"v2-greedy", "v3-bf16", "v3-fp8", "v3-w8a8"};

        for (size_t i = 0; i < sizeof(names) / sizeof(*names); i++) {
                struct fixture f = fixture_open(names[i], &plain);
                const struct model_config *c = model_config(f.model);
                uint32_t tokens[FIXTURE_ROWS], count = load_prompt(&f, "case", CASE, tokens);
                float *one = calloc((size_t)count * f.vocab, sizeof(*one));

                assert_non_null(one);
                run_rows(&f, tokens, 0, count, count - 1);
                memcpy(one, f.logits, (size_t)count * f.vocab * sizeof(*one));
                for (uint32_t ranks = 1; ranks <= RANKS_MAX; ranks++) { /* 6, 12 and 16 experts do not divide by 5 */
                        struct spread s = {
                            .count = ranks, .compute = f.compute, .hidden = c->hidden, .top_k = c->top_k};
                        const struct experts_interface experts = {run_spread, &s};
                        struct model *whole = f.model;
                        size_t bytes = 0;

                        for (uint32_t r = 0; r < ranks; r++) {
                                s.ranks[r] = fixture_model(data_path(names[i], ""), f.compute,
                                    (struct model_shard){.ep_rank = r, .ep_size = ranks});
                                assert_string_equal(model_digest(s.ranks[r]), model_digest(whole));
                                if (ranks > 1)
                                        assert_true(model_bytes(s.ranks[r]) < model_bytes(whole));
                                bytes += model_bytes(s.ranks[r]);
                        }
                        assert_true(bytes >= model_bytes(whole));
                        for (uint32_t r = 0; r < ranks; r++) {
                                model_set_experts(s.ranks[r], &experts);
                                f.model = s.ranks[r];
                                run_rows(&f, tokens, 0, count, count - 1);
                                same_bits(f.logits, one, (size_t)count * f.vocab, f.name);
                        }
                        f.model = whole;
                        for (uint32_t r = 0; r < ranks; r++) {
                                assert_true(s.used[r] > 0);
                                model_free(s.ranks[r]);
                        }
                }
                free(one);
                fixture_close(&f);
        }
}

static void a_held_expert_can_be_run_by_whoever_has_its_rows(void **state) {
        struct fixture f = fixture_open("v3-f32", &plain);
        const struct model_config *c = model_config(f.model);
        const uint32_t rows[] = {2, 0};
        float x[3 * 80], y[2 * 80], alone[80];
        struct expert_call call = {.expert = model_expert(f.model, 1, 7), .rows = rows, .m = 2, .y = y};

        assert_int_equal(c->hidden, 80);
        assert_non_null(call.expert);
        assert_null(model_expert(f.model, 0, 7)); /* a dense layer */
        for (int i = 0; i < 3 * 80; i++)
                x[i] = (float)(i % 17) / 8 - 1;
        experts_run(f.compute, &call, 1, x, 80, 80);
        mlp_run(f.compute, call.expert, x + 160, 80, 1, alone, 80);
        same_bits(y, alone, 80, "row 2");
        mlp_run(f.compute, call.expert, x, 80, 1, alone, 80);
        same_bits(y + 80, alone, 80, "row 0");
        fixture_close(&f);
}

/* Every expert of a layer comes and goes, some at a time: always the bits of the whole model's, never more memory than before and
 * what is on its way. */
static void experts_that_move_stay_what_they_are(void **state) {
        static const char *const names[] = {"v2-greedy", "v3-bf16", "v3-fp8", "v3-w8a8"};

        for (size_t i = 0; i < sizeof(names) / sizeof(*names); i++) {
                struct fixture f = fixture_open(names[i], &plain);
                const struct model_config *c = model_config(f.model);
                struct model_options o = {.dir = data_path(names[i], ""),
                    .compute = f.compute,
                    .movable_experts = true,
                    .shard = {.ep_rank = 1, .ep_size = 3}};
                uint32_t experts[8], slots = c->experts / 3, hidden = c->hidden, row = 0, layer = c->layers - 1;
                float *x = calloc(hidden, sizeof(*x)), *y = calloc(hidden, sizeof(*y)),
                      *want = calloc(hidden, sizeof(*want));
                struct error e = {{0}};
                struct model *m;
                size_t bytes;

                assert_true(x && y && want && slots <= 8);
                for (uint32_t k = 0; k < hidden; k++)
                        x[k] = (float)(k % 17) / 8 - 1;
                if (model_load(&o, &m, &e) < 0)
                        fail_msg("%s", e.text);
                bytes = model_bytes(m);
                for (uint32_t first = 0; first < 2 * c->experts; first++) {
                        struct expert_batch *batch;

                        for (uint32_t k = 0; k < slots; k++)
                                experts[k] = (first * (k % 2 ? 3 : 1) + k) % c->experts;
                        if (model_fetch_experts(m, layer, experts, slots, NULL, &batch, &e) < 0)
                                fail_msg("%s", e.text);
                        if (first % 3 == 2) { /* not adopted after all */
                                expert_batch_free(batch);
                                continue;
                        }
                        model_adopt_experts(m, layer, experts, slots, batch);
                        for (uint32_t n = 0, k = 0; n < c->experts; n++, k = 0) {
                                struct expert_call call = {
                                    .expert = model_expert(f.model, layer, n), .rows = &row, .m = 1, .y = want};

                                while (k < slots && experts[k] != n)
                                        k++;
                                assert_true((model_expert(m, layer, n) != NULL) == (k < slots));
                                if (k == slots)
                                        continue;
                                experts_run(f.compute, &call, 1, x, hidden, hidden);
                                call.expert = model_expert(m, layer, n);
                                call.y = y;
                                experts_run(f.compute, &call, 1, x, hidden, hidden);
                                same_bits(y, want, hidden, names[i]);
                        }
                        assert_true(model_bytes(m) <= bytes);
                }
                model_free(m);
                free(x);
                free(y);
                free(want);
                fixture_close(&f);
        }
}

/* ---- tensor parallelism ------------------------------------------------------------------------------------------------- */

struct group {
        pthread_barrier_t barrier;
        float *data[RANKS_MAX];
        float *sum;
        uint32_t ranks;
        size_t count;
};

struct rank {
        struct group *group;
        uint32_t number;
        struct compute *compute;
        struct model *model;
        struct kv_cache kv;
        uint32_t *blocks;
        const uint32_t *tokens;
        uint32_t count;
        struct spread spread;
        float *logits, *hidden, *drafts;
        int result;
};

/* Everybody shows its data, the first adds it up in rank order, everybody copies. */
static int reduce_in_threads(void *context, float *data, size_t count) {
        struct rank *r = context;
        struct group *g = r->group;

        g->data[r->number] = data;
        pthread_barrier_wait(&g->barrier);
        if (r->number == 0) {
                g->sum = calloc(count, sizeof(*g->sum));
                for (uint32_t k = 0; k < g->ranks; k++)
                        for (size_t i = 0; i < count; i++)
                                g->sum[i] += g->data[k][i];
        }
        pthread_barrier_wait(&g->barrier);
        memcpy(data, g->sum, count * sizeof(*data));
        pthread_barrier_wait(&g->barrier);
        if (r->number == 0)
                free(g->sum);
        return 0;
}

static void *rank_thread(void *context) {
        struct rank *r = context;
        uint32_t all[FIXTURE_ROWS];
        struct model_span span = {r->blocks, 0, r->count, r->count / 2};
        struct model_step step = {.tokens = r->tokens,
            .rows = r->count,
            .spans = &span,
            .span_count = 1,
            .logit_rows = row_numbers(all, r->count),
            .logit_count = r->count};

        r->result = model_forward(r->model, &r->kv, &step, r->logits, r->hidden);
        step.tokens++;
        if (r->result == 0 && model_config(r->model)->mtp_layers)
                r->result = model_draft(r->model, &r->kv, &step, r->hidden, r->drafts, NULL);
        return NULL;
}

static void run_ranks(const char *name, struct rank *ranks, uint32_t count, bool spread_experts) {
        struct group group = {.ranks = count};
        pthread_t threads[RANKS_MAX];

        assert_int_equal(pthread_barrier_init(&group.barrier, NULL, count), 0);
        for (uint32_t i = 0; i < count; i++) {
                struct rank *r = &ranks[i];
                const struct fixture_options o = {.isa = ISA_BEST, .threads = 1};
                const struct reduce_interface reduce = {reduce_in_threads, r};
                struct model_shard shard = {.tp_rank = i, .tp_size = count};

                if (spread_experts) {
                        shard.ep_rank = i;
                        shard.ep_size = count;
                }
                r->group = &group;
                r->number = i;
                r->compute = fixture_compute(&o);
                r->model = fixture_model(data_path(name, ""), r->compute, shard);
                r->blocks = fixture_cache(r->model, KV_F32, FIXTURE_BLOCK, FIXTURE_ROWS, &r->kv);
                r->logits = calloc((size_t)r->count * model_config(r->model)->vocab, sizeof(float));
                r->drafts = calloc((size_t)r->count * model_config(r->model)->vocab, sizeof(float));
                r->hidden = calloc((size_t)r->count * model_config(r->model)->hidden, sizeof(float));
                assert_true(r->logits && r->drafts && r->hidden);
                model_set_reduce(r->model, &reduce);
        }
        for (uint32_t i = 0; i < count && spread_experts; i++) {
                struct rank *r = &ranks[i];
                const struct experts_interface experts = {run_spread, &r->spread};

                r->spread = (struct spread){.count = count,
                    .compute = r->compute,
                    .hidden = model_config(r->model)->hidden,
                    .top_k = model_config(r->model)->top_k};
                for (uint32_t k = 0; k < count; k++)
                        r->spread.ranks[k] = ranks[k].model;
                model_set_experts(r->model, &experts);
        }
        for (uint32_t i = 0; i < count; i++)
                assert_int_equal(pthread_create(&threads[i], NULL, rank_thread, &ranks[i]), 0);
        for (uint32_t i = 0; i < count; i++) {
                pthread_join(threads[i], NULL);
                assert_int_equal(ranks[i].result, 0);
        }
        pthread_barrier_destroy(&group.barrier);
}

static void free_ranks(struct rank *ranks, uint32_t count) {
        for (uint32_t i = 0; i < count; i++) {
                kv_cache_free(&ranks[i].kv);
                model_free(ranks[i].model);
                compute_free(ranks[i].compute);
                free(ranks[i].blocks);
                free(ranks[i].logits);
                free(ranks[i].drafts);
                free(ranks[i].hidden);
        }
}

struct allowed {
        double median, worst;
};
static const struct allowed floats = {1e-5, 1e-5};
/* Each rank quantises its own columns with scales of its own, which now and then chooses another expert. */
static const struct allowed int8 = {0.05, 1};

static int compare_doubles(const void *a, const void *b) {
        double x = *(const double *)a, y = *(const double *)b;

        return (x > y) - (x < y);
}

static void check_ranks(const char *name, uint32_t count, bool spread_experts, struct allowed allowed) {
        double off[FIXTURE_ROWS];
        struct fixture f = fixture_open(name, &plain);
        struct rank ranks[RANKS_MAX] = {0};
        uint32_t tokens[FIXTURE_ROWS + 1], rows = load_prompt(&f, "case", CASE, tokens);
        size_t wide;

        tokens[rows] = 1;
        for (uint32_t i = 0; i < count; i++) {
                ranks[i].tokens = tokens;
                ranks[i].count = rows;
        }
        run_ranks(name, ranks, count, spread_experts);
        run_rows(&f, tokens, 0, rows, rows / 2);
        wide = (size_t)rows * f.vocab;
        for (uint32_t i = 0; i < count; i++) {
                assert_true(model_bytes(ranks[i].model) < model_bytes(f.model));
                assert_string_equal(model_digest(ranks[i].model), model_digest(f.model));
                /* Ranks agree to the bit, as they must: each of them decides by its own copy. */
                same_bits(ranks[i].logits, ranks[0].logits, wide, name);
                same_bits(ranks[i].drafts, ranks[0].drafts, wide, name);
        }
        for (uint32_t p = 0; p < rows; p++)
                off[p] = row_error(ranks[0].logits + (size_t)p * f.vocab, f.logits + (size_t)p * f.vocab, f.vocab);
        qsort(off, rows, sizeof(*off), compare_doubles);
        print_message("# %s over %u ranks: median %.2g, worst %.2g\n", name, count, off[rows / 2], off[rows - 1]);
        if (!(off[rows / 2] <= allowed.median) || !(off[rows - 1] <= allowed.worst))
                fail_msg("%s over %u ranks: logits differ by %g, half of them by %g", name, count, off[rows - 1],
                    off[rows / 2]);
        free_ranks(ranks, count);
        fixture_close(&f);
}

static void heads_columns_and_vocabulary_divide(void **state) {
        check_ranks("v2-greedy", 2, false, floats);
        check_ranks("v2-greedy", 4, false, floats);
        check_ranks("v2-group", 4, false, floats);
        check_ranks("v3-bf16", 2, false, floats);
        check_ranks("v3-f32", 2, false, floats);
        check_ranks("v3-mscale", 4, false, floats);
}

/* Slices of fp8 weights begin and end inside scale blocks. */
static void fp8_blocks_may_be_cut_anywhere(void **state) {
        check_ranks("v3-fp8-ue8m0", 2, false, floats);
        check_ranks("v3-fp8-ue8m0", 4, false, floats);
}

static void int8_layers_divide(void **state) {
        check_ranks("v3-w8a8", 2, false, int8);
        check_ranks("v3-w8a8-int64", 2, false, int8);
}

static void experts_spread_over_tensor_parallel_ranks(void **state) {
        check_ranks("v2-greedy", 2, true, floats);
        check_ranks("v3-f32", 4, true, floats);
        check_ranks("v3-w8a8", 2, true, int8);
}

static void what_does_not_divide_is_refused(void **state) {
        static const struct {
                const char *name;
                struct model_shard shard;
                const char *text;
        } cases[] = {
            {"v3-fp8", {.tp_rank = 0, .tp_size = 2}, "num_attention_heads 3 does not divide by 2"},
            {"v3-fp8", {.tp_rank = 2, .tp_size = 3}, "does not divide by 3 tensor-parallel ranks"},
            {"v3-f32", {.tp_rank = 2, .tp_size = 2}, "tensor-parallel rank 2 of 2"},
            {"v3-f32", {.ep_rank = 3, .ep_size = 3}, "expert-parallel rank 3 of 3"},
            {"v3-f32", {.ep_rank = 0, .ep_size = 13}, "13 expert-parallel ranks for 12 experts"},
        };
        struct compute *c = fixture_compute(&plain);

        for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
                struct model_options o = {.dir = data_path(cases[i].name, ""), .compute = c, .shard = cases[i].shard};
                struct model *m = NULL;
                struct error e = {{0}};

                assert_int_equal(model_load(&o, &m, &e), -EINVAL);
                assert_null(m);
                if (!strstr(e.text, cases[i].text))
                        fail_msg("\"%s\" does not say \"%s\"", e.text, cases[i].text);
        }
        compute_free(c);
}

int main(void) {
        const struct CMUnitTest tests[] = {
            cmocka_unit_test(experts_may_live_anywhere),
            cmocka_unit_test(experts_that_move_stay_what_they_are),
            cmocka_unit_test(a_held_expert_can_be_run_by_whoever_has_its_rows),
            cmocka_unit_test(heads_columns_and_vocabulary_divide),
            cmocka_unit_test(fp8_blocks_may_be_cut_anywhere),
            cmocka_unit_test(int8_layers_divide),
            cmocka_unit_test(experts_spread_over_tensor_parallel_ranks),
            cmocka_unit_test(what_does_not_divide_is_refused),
        };

        return cmocka_run_group_tests_name("shards", tests, NULL, NULL);
}
