/* test_drafts.c - sampling with drafts is distributed as the model says, whether drafts are taken or not.
 *
 * The exact distribution of the first three tokens comes from the model's logits alone; thousands of seeded requests are
 * counted against it. The first token has no draft, the second is verified against one, the third comes beside an accepted
 * draft or after a rejected one whose row is computed again. */
#include "rig.h"

enum { PROMPT = 9, TOP = 3, CELLS = TOP * TOP * TOP, REQUESTS = 4000, BLOCK = 16 };

static const uint32_t prompt[PROMPT] = {0, 17, 230, 4, 99, 310, 56, 7, 411};
static const float temperature = 1.5f;

/* ---- what is exact ---------------------------------------------------------------------------------------------------- */

/* The likeliest tokens after a beginning, and how likely each is among them. */
struct next {
        uint32_t ids[TOP];
        double p[TOP];
};

struct tree {
        struct next first, second[TOP], third[TOP][TOP];
};

static void find_next(struct model *m, struct kv_cache *kv, const uint32_t *tokens, uint32_t count, struct next *ret) {
        static const uint32_t blocks[1] = {0};
        const uint32_t vocab = model_config(m)->vocab, last = count - 1;
        const struct model_span span = {.blocks = blocks, .rows = count, .naive = PROMPT - 1};
        const struct model_step step = {
            .tokens = tokens, .rows = count, .spans = &span, .span_count = 1, .logit_rows = &last, .logit_count = 1};
        float *logits = calloc(vocab, sizeof(*logits));
        double sum = 0;

        assert_int_equal(model_forward(m, kv, &step, logits, NULL), 0);
        for (int k = 0; k < TOP; k++) {
                uint32_t best = 0;

                for (uint32_t i = 1; i < vocab; i++)
                        if (logits[i] > logits[best])
                                best = i;
                ret->ids[k] = best;
                ret->p[k] = exp((double)logits[best] / (double)temperature);
                sum += ret->p[k];
                logits[best] = -INFINITY;
        }
        for (int k = 0; k < TOP; k++)
                ret->p[k] /= sum;
        free(logits);
}

static void find_tree(struct model *m, struct tree *t) {
        struct kv_cache kv;
        struct error e = {{0}};
        uint32_t tokens[PROMPT + 2];

        memcpy(tokens, prompt, sizeof(prompt));
        assert_int_equal(kv_cache_new(m, KV_F32, BLOCK, 1, &kv, &e), 0);
        find_next(m, &kv, tokens, PROMPT, &t->first);
        for (int a = 0; a < TOP; a++) {
                tokens[PROMPT] = t->first.ids[a];
                find_next(m, &kv, tokens, PROMPT + 1, &t->second[a]);
                for (int b = 0; b < TOP; b++) {
                        tokens[PROMPT + 1] = t->second[a].ids[b];
                        find_next(m, &kv, tokens, PROMPT + 2, &t->third[a][b]);
                }
        }
        kv_cache_free(&kv);
}

static int place_of(const struct next *n, uint32_t id) {
        for (int k = 0; k < TOP; k++)
                if (n->ids[k] == id)
                        return k;
        fail_msg("token %u is none of the %d likeliest", id, TOP);
        return -1;
}

/* ---- what comes out ----------------------------------------------------------------------------------------------------- */

/* Which of the likely tokens becomes the draft of the second one; TOP: one that cannot come. */
static void force_drafts(struct engine *g, const struct tree *t, int choice) {
        for (size_t i = 0; i < g->scheduler.running_slots; i++) {
                struct sequence *s = g->scheduler.running[i];

                if (!s || s->count != PROMPT + 1 || !s->drafts)
                        continue;
                if (choice < TOP)
                        s->tokens[s->count] = t->second[place_of(&t->first, s->tokens[PROMPT])].ids[choice];
                else
                        s->tokens[s->count] = 1;
        }
}

/* Count the first three tokens of all requests. Returns how many drafts were accepted. */
static uint64_t count_cells(const struct rig *r, const struct tree *t, int choice, uint32_t cells[CELLS]) {
        struct engine_options o = rig_options(r);
        struct answer *answers = calloc(REQUESTS, sizeof(*answers));
        struct sampling_params p = plain_sampling();
        struct engine *g;
        uint64_t accepted;

        o.draft_tokens = 1;
        o.max_waiting = REQUESTS;
        g = engine_of(&o);
        p.temperature = temperature;
        p.top_k = TOP;
        p.max_tokens = 3;
        p.has_seed = true;
        for (int i = 0; i < REQUESTS; i++) {
                p.seed = i + choice * REQUESTS;
                submit(g, prompt, PROMPT, &p, &answers[i]);
        }
        while (engine_step(g)) {
                take_outputs(g);
                force_drafts(g, t, choice);
        }
        take_outputs(g);
        for (int i = 0; i < REQUESTS; i++) {
                const uint32_t *tokens = answers[i].tokens;
                int a = place_of(&t->first, tokens[0]), b = place_of(&t->second[a], tokens[1]);

                assert_int_equal(answers[i].count, 3);
                cells[(a * TOP + b) * TOP + place_of(&t->third[a][b], tokens[2])]++;
        }
        assert_int_equal(g->metrics.figures.draft_tokens, REQUESTS);
        accepted = g->metrics.figures.accepted_tokens;
        assert_at_rest(g);
        engine_free(g);
        free(answers);
        return accepted;
}

/* Pearson's statistic over cells of which at least five are expected each; the rest is one more. */
static double chi_square(const uint32_t cells[CELLS], const struct tree *t, int *ret_freedom) {
        double sum = 0, rest_expected = 0, rest = 0;
        int used = 0;

        for (int i = 0; i < CELLS; i++) {
                int a = i / (TOP * TOP), b = i / TOP % TOP, c = i % TOP;
                double expected = REQUESTS * t->first.p[a] * t->second[a].p[b] * t->third[a][b].p[c];

                if (expected < 5) {
                        rest_expected += expected;
                        rest += cells[i];
                        continue;
                }
                sum += (cells[i] - expected) * (cells[i] - expected) / expected;
                used++;
        }
        if (rest_expected >= 5) {
                sum += (rest - rest_expected) * (rest - rest_expected) / rest_expected;
                used++;
        }
        *ret_freedom = used - 1;
        return sum;
}

/* The 99.9 % quantile of chi-square, by Wilson and Hilferty. Seeds are fixed: what passes once passes always. */
static double quantile(int freedom) {
        double n = freedom, root = 1 - 2 / (9 * n) + 3.0902 * sqrt(2 / (9 * n));

        return n * root * root * root;
}

static void tokens_are_distributed_as_the_model_says(void **state) {
        struct rig r = rig_new("v3-f32", 2, true);
        struct tree t;

        find_tree(r.model, &t);
        for (int choice = 0; choice <= TOP; choice++) {
                uint32_t cells[CELLS] = {0};
                uint64_t accepted = count_cells(&r, &t, choice, cells);
                double probability = 0, expected, statistic;
                int freedom;

                statistic = chi_square(cells, &t, &freedom);
                assert_true(freedom >= 12);
                if (statistic > quantile(freedom))
                        fail_msg("draft %d: chi-square %.1f of %d, beyond %.1f", choice, statistic, freedom,
                            quantile(freedom));
                /* A draft is taken as often as the model would have said it. */
                for (int a = 0; choice < TOP && a < TOP; a++)
                        probability += t.first.p[a] * t.second[a].p[choice];
                expected = REQUESTS * probability;
                assert_true(fabs((double)accepted - expected) <= 3.3 * sqrt(expected * (1 - probability)));
                print_message("# draft %d: %llu of %d accepted, chi-square %.1f of %d\n", choice,
                    (unsigned long long)accepted, REQUESTS, statistic, freedom);
        }
        rig_free(&r);
}

/* The statistic would notice: the same counts against a slightly other distribution. */
static void another_distribution_is_noticed(void **state) {
        struct rig r = rig_new("v3-f32", 2, true);
        uint32_t cells[CELLS] = {0};
        struct tree t;
        int freedom;

        find_tree(r.model, &t);
        (void)count_cells(&r, &t, 0, cells);
        for (int a = 0; a < TOP; a++) { /* as if a draft were taken 5 % too rarely */
                double taken = t.second[a].p[0] * 0.05;

                t.second[a].p[0] -= taken;
                t.second[a].p[1] += taken;
        }
        assert_true(chi_square(cells, &t, &freedom) > quantile(freedom));
        rig_free(&r);
}

int main(void) {
        const struct CMUnitTest tests[] = {
            cmocka_unit_test(tokens_are_distributed_as_the_model_says),
            cmocka_unit_test(another_distribution_is_noticed),
        };

        return cmocka_run_group_tests_name("drafts", tests, NULL, NULL);
}
