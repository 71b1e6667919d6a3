/* test_fixtures.c - every reference checkpoint: logits within its tolerance, greedy texts token for token, MTP. */
#include "fixture.h"

static const char *const names[] = {
    "v2-greedy", "v2-group", "v3-bf16", "v3-f32", "v3-fp8", "v3-fp8-ue8m0", "v3-mscale", "v3-w8a8", "v3-w8a8-int64"};
#define NAMES (sizeof(names) / sizeof(*names))

static double worse(double a, double b) {
        return b <= a ? a : b;
}

static double tolerance(const struct fixture *f) {
        return json_get_double(json_get(yyjson_doc_get_root(f->cases), "tolerance"), "logits_rel", 0);
}

/* Expected rows are all, or the last ones, of a prompt. Returns the worst error. */
static double check_logits(const struct fixture *f, const struct tensor *t, uint32_t prompt) {
        uint32_t rows = (uint32_t)t->shape[0];
        double worst = 0;

        for (uint32_t i = 0; i < rows; i++)
                worst = worse(worst, row_error(f->logits + (size_t)(prompt - rows + i) * f->vocab,
                                         (const float *)t->data + (size_t)i * f->vocab, f->vocab));
        return worst;
}

static void check_case(struct fixture *f, const char *name, int i, yyjson_val *info, bool by_token) {
        const struct tensor *prompt = expected(f, "case", i, "prompt"), *logits = expected(f, "case", i, "logits");
        const struct tensor *greedy = expected(f, "case", i, "greedy");
        uint32_t tokens[600], count = (uint32_t)prompt->shape[0], rows = (uint32_t)logits->shape[0];
        double worst = 0;

        memcpy(tokens, prompt->data, count * sizeof(*tokens));
        if (by_token)
                for (uint32_t p = 0; p < count; p++) {
                        run_rows(f, tokens, p, 1, 0);
                        if (p + rows >= count)
                                worst = fmax(worst,
                                    row_error(f->logits,
                                        (const float *)logits->data + (size_t)(p + rows - count) * f->vocab, f->vocab));
                }
        else {
                run_rows(f, tokens, 0, count, count - 1);
                worst = check_logits(f, logits, count);
        }
        if (!(worst <= tolerance(f)))
                fail_msg("%s case %d (%s)%s: logits are off by %g, allowed is %g", name, i,
                    yyjson_get_str(json_get(info, "name")), by_token ? " by token" : "", worst, tolerance(f));
        if (!json_get_bool(info, "greedy_same_under_noise", true))
                return;
        for (uint32_t n = 0; n < greedy->shape[0]; n++) {
                uint32_t token = best_of(f->logits + (by_token || n ? 0 : (size_t)(count - 1) * f->vocab), f->vocab);

                if (token != ((const uint32_t *)greedy->data)[n])
                        fail_msg("%s case %d: greedy token %u is %u, not %u", name, i, n, token,
                            ((const uint32_t *)greedy->data)[n]);
                tokens[count + n] = token;
                if (n + 1 < greedy->shape[0])
                        run_rows(f, tokens, count + n, 1, 0);
        }
}

static void check_fixture(const char *name, bool by_token) {
        struct fixture f = fixture_open(name, ACTIVATION_F32, 2, FIXTURE_BLOCK);
        yyjson_val *list = json_get(yyjson_doc_get_root(f.cases), "cases"), *info;
        size_t i, n;

        assert_true(yyjson_arr_size(list) > 0);
        yyjson_arr_foreach(list, i, n, info) check_case(&f, name, (int)i, info, by_token);
        fixture_close(&f);
}

static void logits_and_greedy_texts_are_the_reference(void **state) {
        (void)state;
        for (size_t i = 0; i < NAMES; i++)
                check_fixture(names[i], false);
}

static void token_by_token_through_the_absorbed_form_gives_the_same(void **state) {
        (void)state;
        for (size_t i = 0; i < NAMES; i++)
                check_fixture(names[i], true);
}

/* Prompts through the MTP module: its logits at every position. */
static void the_draft_module_gives_the_reference(void **state) {
        (void)state;
        for (size_t k = 0; k < NAMES; k++) {
                struct fixture f = fixture_open(names[k], ACTIVATION_F32, 2, FIXTURE_BLOCK);

                for (int i = 0; expected(&f, "mtp", i, "prompt"); i++) {
                        const struct tensor *prompt = expected(&f, "mtp", i, "prompt"),
                                            *logits = expected(&f, "mtp", i, "logits");
                        const struct tensor *greedy = expected(&f, "mtp", i, "greedy");
                        uint32_t tokens[300], count = (uint32_t)prompt->shape[0], all[300];
                        struct model_span span = {f.blocks, 0, count, count - 1};
                        struct model_step step = {tokens + 1, count, &span, 1, all, count};
                        double worst;

                        memcpy(tokens, prompt->data, count * sizeof(*tokens));
                        tokens[count] = ((const uint32_t *)greedy->data)[0];
                        for (uint32_t r = 0; r < count; r++)
                                all[r] = r;
                        run_rows(&f, tokens, 0, count, count - 1);
                        assert_int_equal(model_draft(f.model, &f.kv, &step, f.hidden, f.logits, NULL), 0);
                        worst = check_logits(&f, logits, count);
                        if (!(worst <= tolerance(&f)))
                                fail_msg("%s mtp %d: logits are off by %g, allowed is %g", names[k], i, worst,
                                    tolerance(&f));
                }
                fixture_close(&f);
        }
}

static void bf16_activations_stay_within_their_wider_tolerance(void **state) {
        (void)state;
        for (size_t k = 0; k < NAMES; k++) {
                struct fixture f = fixture_open(names[k], ACTIVATION_BF16, 2, FIXTURE_BLOCK);
                yyjson_val *root = yyjson_doc_get_root(f.cases), *list = json_get(root, "cases"), *info;
                double allowed =
                    json_get_double(json_get(json_get(root, "tolerance"), "bf16_activations"), "logits_rel", 0);
                size_t i, n;

                yyjson_arr_foreach(list, i, n, info) {
                        const struct tensor *prompt = expected(&f, "case", (int)i, "prompt"),
                                            *logits = expected(&f, "case", (int)i, "logits");
                        uint32_t tokens[300], count = (uint32_t)prompt->shape[0];
                        double worst;

                        memcpy(tokens, prompt->data, count * sizeof(*tokens));
                        run_rows(&f, tokens, 0, count, count - 1);
                        worst = check_logits(&f, logits, count);
                        if (!(worst <= allowed))
                                fail_msg("%s case %zu: bf16 logits are off by %g, allowed is %g", names[k], i, worst,
                                    allowed);
                }
                fixture_close(&f);
        }
}

int main(void) {
        const struct CMUnitTest tests[] = {
            cmocka_unit_test(logits_and_greedy_texts_are_the_reference),
            cmocka_unit_test(token_by_token_through_the_absorbed_form_gives_the_same),
            cmocka_unit_test(the_draft_module_gives_the_reference),
            cmocka_unit_test(bf16_activations_stay_within_their_wider_tolerance),
        };

        return cmocka_run_group_tests_name("fixtures", tests, NULL, NULL);
}
