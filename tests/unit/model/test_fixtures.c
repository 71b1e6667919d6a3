/* test_fixtures.c - every reference checkpoint: logits within its tolerance, greedy texts token for token, drafts. */
#include "fixture.h"

static const struct fixture_options plain = {FIXTURE_DEFAULTS};
static const struct fixture_options rounded = {.activation = ACTIVATION_BF16, FIXTURE_DEFAULTS};

static double tolerance(const struct fixture *f) {
        return json_get_double(json_get(yyjson_doc_get_root(f->cases), "tolerance"), "logits_rel", 0);
}

/* Errors of all rows of a checkpoint. */
struct errors {
        double worst;
        double each[4096];
        size_t count;
};

static int compare_doubles(const void *a, const void *b) {
        double x = *(const double *)a, y = *(const double *)b;

        return (x > y) - (x < y);
}

/* Compare row `row` of f->logits, which is for position `position` of `count`, where a row is expected for it. */
static void check_row(const struct fixture *f, const char *kind, int i, uint32_t position, uint32_t count, uint32_t row,
    double margin, struct errors *errors) {
        const struct tensor *logits = expected(f, kind, i, "logits"), *best = expected(f, kind, i, "argmax");
        const uint32_t rows = (uint32_t)logits->shape[0];
        const float *got = f->logits + (size_t)row * f->vocab, *want;
        double off;

        if (position + rows < count)
                return;
        want = tensor_floats(logits) + (size_t)(position + rows - count) * f->vocab;
        off = row_error(got, want, f->vocab);
        errors->worst = fmax(errors->worst, off);
        if (errors->count < sizeof(errors->each) / sizeof(*errors->each))
                errors->each[errors->count++] = off;
        if (margin > 0 && best_of(got, f->vocab) != tensor_ids(best)[position])
                fail_msg("%s %s%d: the best token after position %u is %u, not %u", f->name, kind, i, position,
                    best_of(got, f->vocab), tensor_ids(best)[position]);
}

/* The margin between the two best where it is larger than twice the error allowed, else 0. */
static double usable_margin(const struct fixture *f, yyjson_val *info, const char *key) {
        double margin = json_get_double(info, key, 0);

        return margin > 0.005 && tolerance(f) <= 0.001 ? margin : 0;
}

enum way { ONE_STEP, TOKEN_BY_TOKEN };

/* Returns the row of f->logits that predicts the first new token. */
static uint32_t run_prompt(struct fixture *f, const char *kind, int i, const uint32_t *tokens, uint32_t count,
    enum way way, struct errors *errors) {
        double margin = usable_margin(f, case_info(f, kind[0] == 'm' ? "mtp" : "cases", i), "min_argmax_top2_margin");

        if (way == TOKEN_BY_TOKEN) {
                for (uint32_t p = 0; p < count; p++) {
                        run_rows(f, tokens, p, 1, 0);
                        check_row(f, kind, i, p, count, 0, margin, errors);
                }
                return 0;
        }
        run_rows(f, tokens, 0, count, count - 1);
        for (uint32_t p = 0; p < count; p++)
                check_row(f, kind, i, p, count, p, margin, errors);
        return count - 1;
}

static void check_greedy(struct fixture *f, int i, uint32_t *tokens, uint32_t count, uint32_t row) {
        const struct tensor *greedy = expected(f, "case", i, "greedy");

        for (uint32_t n = 0; n < greedy->shape[0]; n++, row = 0) {
                uint32_t token = best_of(f->logits + (size_t)row * f->vocab, f->vocab);

                if (token != tensor_ids(greedy)[n])
                        fail_msg(
                            "%s case %d: greedy token %u is %u, not %u", f->name, i, n, token, tensor_ids(greedy)[n]);
                tokens[count + n] = token;
                if (n + 1 < greedy->shape[0])
                        run_rows(f, tokens, count + n, 1, 0);
        }
}

static void check_fixture(const char *name, enum way way) {
        struct fixture f = fixture_open(name, &plain);
        yyjson_val *info;
        struct errors errors = {0};
        double median_allowed =
            json_get_double(json_get(yyjson_doc_get_root(f.cases), "tolerance"), "logits_rel_median", 0);

        assert_non_null(case_info(&f, "cases", 0));
        for (int i = 0; (info = case_info(&f, "cases", i)); i++) {
                uint32_t tokens[FIXTURE_ROWS + 1], count = load_prompt(&f, "case", i, tokens);
                uint32_t row = run_prompt(&f, "case", i, tokens, count, way, &errors);

                if (!(errors.worst <= tolerance(&f)))
                        fail_msg(
                            "%s case %d: logits are off by %g, allowed is %g", name, i, errors.worst, tolerance(&f));
                if (json_get_bool(info, "greedy_same_under_noise", true))
                        check_greedy(&f, i, tokens, count, row);
        }
        qsort(errors.each, errors.count, sizeof(double), compare_doubles);
        if (median_allowed > 0 && !(errors.each[errors.count / 2] <= median_allowed))
                fail_msg(
                    "%s: the median error is %g, allowed is %g", name, errors.each[errors.count / 2], median_allowed);
        print_message("# %s: worst error %.3g, median %.3g\n", name, errors.worst, errors.each[errors.count / 2]);
        fixture_close(&f);
}

static void logits_and_greedy_texts_are_the_reference(void **state) {
        for (size_t i = 0; i < FIXTURES; i++)
                check_fixture(fixture_names[i], ONE_STEP);
}

static void token_by_token_through_the_absorbed_form_gives_the_same(void **state) {
        for (size_t i = 0; i < FIXTURES; i++)
                check_fixture(fixture_names[i], TOKEN_BY_TOKEN);
}

/* What lies in the cache is part of the protocol between engines: the normed latent, then the rotated key, pairs interleaved. */
static void the_cache_holds_normed_latents_and_rotated_keys(void **state) {
        struct fixture f = fixture_open("v3-f32", &plain);
        const struct model_config *c = model_config(f.model);
        struct safetensors layers = {0};
        struct error e = {{0}};
        uint32_t tokens[FIXTURE_ROWS], count = load_prompt(&f, "case", 2, tokens);

        if (safetensors_add_file(&layers, data_path("v3-f32", "expected/layers.safetensors"), &e) < 0)
                fail_msg("%s", e.text);
        run_rows(&f, tokens, 0, count, count - 1);
        for (uint32_t i = 0; i < c->layers; i++) {
                const struct kv_layer kv = kv_cache_layer(&f.kv, i);
                const struct tensor *latents, *keys;
                char name[64];

                snprintf(name, sizeof(name), "layer%u.latent_c", i);
                latents = safetensors_find(&layers, slice_str(name));
                snprintf(name, sizeof(name), "layer%u.k_pe", i);
                keys = safetensors_find(&layers, slice_str(name));
                for (uint32_t p = 0; p < count; p++) {
                        const float *row = (const float *)kv.base + f.blocks[p / FIXTURE_BLOCK] * kv.block_stride +
                                           (size_t)(p % FIXTURE_BLOCK) * kv.width;

                        assert_true(row_error(row, tensor_floats(latents) + p * c->kv_rank, c->kv_rank) < 1e-5);
                        assert_true(row_error(row + c->kv_rank, tensor_floats(keys) + p * c->rope, c->rope) < 1e-5);
                }
        }
        for (uint32_t p = 0; p < count; p++)
                assert_true(row_error(f.hidden + (size_t)p * f.width,
                                tensor_floats(safetensors_find(&layers, SLICE_LIT("final_norm"))) + (size_t)p * f.width,
                                f.width) < 1e-5);
        safetensors_close(&layers);
        fixture_close(&f);
}

/* ---- rounded to bf16 ---------------------------------------------------------------------------------------------------- */

static void bf16_activations_stay_within_their_wider_tolerance(void **state) {
        for (size_t k = 0; k < FIXTURES; k++) {
                struct fixture f = fixture_open(fixture_names[k], &rounded);
                double allowed = json_get_double(
                    json_get(json_get(yyjson_doc_get_root(f.cases), "tolerance"), "bf16_activations"), "logits_rel", 0);
                struct errors errors = {0};

                for (int i = 0; case_info(&f, "cases", i); i++) {
                        uint32_t tokens[FIXTURE_ROWS], count = load_prompt(&f, "case", i, tokens);

                        run_rows(&f, tokens, 0, count, count - 1);
                        for (uint32_t p = 0; p < count; p++)
                                check_row(&f, "case", i, p, count, p, 0, &errors);
                }
                print_message(
                    "# %s: worst error with bf16 activations %.3g, allowed %.3g\n", f.name, errors.worst, allowed);
                if (!(errors.worst <= allowed))
                        fail_msg("%s: bf16 logits are off by %g, allowed is %g", f.name, errors.worst, allowed);
                fixture_close(&f);
        }
}

/* ---- the draft module --------------------------------------------------------------------------------------------------- */

/* Run the module over rows of a sequence whose hidden states are in `hidden`: its logits into f->logits. */
static void draft_rows(struct fixture *f, const uint32_t *following, uint32_t first, uint32_t rows, uint32_t naive,
    const float *hidden, float *hidden_out) {
        struct model_span span = {f->blocks, first, rows, naive};
        uint32_t all[FIXTURE_ROWS];
        struct model_step step = {.tokens = following,
            .rows = rows,
            .spans = &span,
            .span_count = 1,
            .logit_rows = row_numbers(all, rows),
            .logit_count = rows};

        assert_int_equal(model_draft(f->model, &f->kv, &step, hidden, f->logits, hidden_out), 0);
}

static void the_draft_modules_logits_are_the_reference(void **state) {
        for (size_t k = 0; k < FIXTURES; k++) {
                struct fixture f = fixture_open(fixture_names[k], &plain);
                struct errors errors = {0};

                for (int i = 0; expected(&f, "mtp", i, "prompt"); i++) {
                        uint32_t tokens[FIXTURE_ROWS], count = load_prompt(&f, "mtp", i, tokens);

                        tokens[count] = tensor_ids(expected(&f, "mtp", i, "greedy"))[0];
                        run_rows(&f, tokens, 0, count, count - 1);
                        draft_rows(&f, tokens + 1, 0, count, count - 1, f.hidden, NULL);
                        for (uint32_t p = 0; p < count; p++)
                                check_row(&f, "mtp", i, p, count, p,
                                    usable_margin(&f, case_info(&f, "mtp", i), "min_draft_top2_margin"), &errors);
                }
                if (!(errors.worst <= tolerance(&f)))
                        fail_msg("%s: draft logits are off by %g, allowed is %g", f.name, errors.worst, tolerance(&f));
                fixture_close(&f);
        }
}

/* A sequence being decoded with drafts, as an engine does it. */
struct speculation {
        struct fixture *f;
        uint32_t tokens[FIXTURE_ROWS + 8];
        uint32_t count;    /* known tokens; drafts lie behind them */
        uint32_t computed; /* positions whose latents are in the cache */
        uint32_t drafts;
};

/* From hidden states of positions [first, count - 1): up to `k` drafts. */
static void propose(struct speculation *s, uint32_t first, uint32_t naive, uint32_t k) {
        struct fixture *f = s->f;
        const uint32_t rows = s->count - 1 - first;
        float *states = calloc((size_t)FIXTURE_ROWS * f->width, sizeof(*states));

        assert_non_null(states);
        draft_rows(f, s->tokens + first + 1, first, rows, naive, f->hidden, states);
        s->drafts = 0;
        for (uint32_t row = rows - 1;; row = 0) {
                s->tokens[s->count + s->drafts] = best_of(f->logits + (size_t)row * f->vocab, f->vocab);
                s->drafts++;
                if (s->drafts == k || s->count + s->drafts >= FIXTURE_ROWS)
                        break;
                memmove(states, states + (size_t)row * f->width, f->width * sizeof(*states));
                draft_rows(f, s->tokens + s->count + s->drafts - 1, s->count - 2 + s->drafts, 1, 0, states, states);
        }
        free(states);
}

/* Run last token and drafts, keep those that the model agrees with. Returns how many. */
static uint32_t verify(struct speculation *s) {
        struct fixture *f = s->f;
        const uint32_t first = s->count - 1, drafts = s->drafts;
        uint32_t accepted = 0;

        run_rows(f, s->tokens, first, drafts + 1, 0);
        for (;; accepted++) {
                uint32_t token = best_of(f->logits + (size_t)accepted * f->vocab, f->vocab);
                bool same = accepted < drafts && s->tokens[s->count] == token;

                s->tokens[s->count++] = token;
                if (!same)
                        return accepted;
        }
}

static void check_acceptance(struct fixture *f, int i, uint32_t k, const char *name) {
        const struct tensor *want = expected(f, "mtp", i, name), *greedy = expected(f, "mtp", i, "greedy");
        struct speculation s = {.f = f};
        const uint32_t prompt = load_prompt(f, "mtp", i, s.tokens), steps = (uint32_t)want->shape[0];

        run_rows(f, s.tokens, 0, prompt, prompt - 1);
        s.tokens[prompt] = best_of(f->logits + (size_t)(prompt - 1) * f->vocab, f->vocab);
        s.count = prompt + 1;
        propose(&s, 0, prompt - 1, k);
        for (uint32_t step = 0; step < steps; step++) {
                uint32_t first = s.count - 1, accepted = verify(&s);

                if (accepted != tensor_ids(want)[step])
                        fail_msg("%s mtp%d, %u drafts: step %u accepts %u, not %u", f->name, i, k, step, accepted,
                            tensor_ids(want)[step]);
                propose(&s, first, 0, k);
        }
        for (uint32_t n = 0; n < greedy->shape[0]; n++)
                if (s.tokens[prompt + n] != tensor_ids(greedy)[n])
                        fail_msg("%s mtp%d, %u drafts: token %u is %u, not %u", f->name, i, k, n, s.tokens[prompt + n],
                            tensor_ids(greedy)[n]);
}

static void as_many_drafts_are_accepted_as_in_the_reference(void **state) {
        for (size_t j = 0; j < FIXTURES; j++) {
                struct fixture f = fixture_open(fixture_names[j], &plain);
                yyjson_val *info;

                for (int i = 0; (info = case_info(&f, "mtp", i)); i++) {
                        yyjson_val *same = json_get(info, "accepted_same_under_noise");

                        if (!json_get_bool(info, "greedy_same_under_noise", true))
                                continue;
                        if (json_get_bool(same, "k1", true))
                                check_acceptance(&f, i, 1, "accepted_k1");
                        if (json_get_bool(same, "k2", true))
                                check_acceptance(&f, i, 2, "accepted_k2");
                }
                fixture_close(&f);
        }
}

int main(void) {
        const struct CMUnitTest tests[] = {
            cmocka_unit_test(logits_and_greedy_texts_are_the_reference),
            cmocka_unit_test(token_by_token_through_the_absorbed_form_gives_the_same),
            cmocka_unit_test(the_cache_holds_normed_latents_and_rotated_keys),
            cmocka_unit_test(bf16_activations_stay_within_their_wider_tolerance),
            cmocka_unit_test(the_draft_modules_logits_are_the_reference),
            cmocka_unit_test(as_many_drafts_are_accepted_as_in_the_reference),
        };

        return cmocka_run_group_tests_name("fixtures", tests, NULL, NULL);
}
