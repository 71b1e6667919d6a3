/* test_tokenizer.c - recorded tokenizers encode and decode as recorded; laws that hold for any text. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>
#include <pthread.h>

#include "base/rng.h"
#include "text/utf8.h"
#include "text_data.h"

static void assert_ids(const char *what, struct slice text, struct token_list got, yyjson_val *expected) {
        bool same = got.count == yyjson_arr_size(expected);
        struct buf b = {0};
        yyjson_val *v;
        size_t i, n;

        yyjson_arr_foreach(expected, i, n, v) same = same && yyjson_get_uint(v) == got.ids[i];
        if (same)
                return;
        for (i = 0; i < got.count; i++)
                buf_printf(&b, " %u", got.ids[i]);
        fail_msg("%s: \"%.*s\" gives%s", what, SLICE_ARG(text), buf_cstr(&b));
}

static void assert_decodes(
    const struct tokenizer *t, const uint32_t *ids, size_t count, bool skip, struct slice expected) {
        struct buf b = {0};

        tokenizer_decode(t, ids, count, skip, &b);
        if (!slice_eq(buf_slice(&b), expected))
                fail_msg("decoded \"%.*s\" instead of \"%.*s\"", SLICE_ARG(buf_slice(&b)), SLICE_ARG(expected));
        buf_free(&b);
}

static const char *const with_vectors[] = {"tiny-v2", "tiny-v3", "deepseek-v2", "deepseek-v3", "deepseek-v3.1"};
#define WITH_VECTORS (sizeof(with_vectors) / sizeof(*with_vectors))

static void check_encode_line(const struct tokenizer *t, const char *name, yyjson_val *line) {
        struct slice text = json_get_slice(line, "text");
        struct slice skipped =
            json_get(line, "decoded_skip_special") ? json_get_slice(line, "decoded_skip_special") : text;
        struct arena arena = {0};
        struct token_list list;

        assert_int_equal(tokenizer_encode(t, text, TOKENIZE_PLAIN, &arena, &list), 0);
        assert_ids(name, text, list, json_get(line, "ids"));
        assert_decodes(
            t, list.ids, list.count, false, json_get(line, "decoded") ? json_get_slice(line, "decoded") : text);
        assert_decodes(t, list.ids, list.count, true, skipped);
        assert_int_equal(tokenizer_encode(t, text, TOKENIZE_ADD_SPECIAL, &arena, &list), 0);
        if (json_get(line, "ids_special"))
                assert_ids(name, text, list, json_get(line, "ids_special"));
        assert_int_equal(list.ids[0], tokenizer_bos(t));
        arena_free(&arena);
}

static void recorded_texts_encode_as_recorded(void **state) {
        for (size_t i = 0; i < WITH_VECTORS; i++) {
                struct tokenizer *t = load_recorded(with_vectors[i]);
                struct arena a = {0};
                struct slice rest = read_data(&a, arena_printf(&a, "tokenizer/%s.encode.jsonl", with_vectors[i]));
                yyjson_doc *doc;

                while ((doc = next_line(&rest))) {
                        check_encode_line(t, with_vectors[i], yyjson_doc_get_root(doc));
                        yyjson_doc_free(doc);
                }
                arena_free(&a);
                tokenizer_free(t);
        }
}

static uint32_t *read_ids(yyjson_val *list, struct arena *a) {
        uint32_t *ids = arena_array(a, yyjson_arr_size(list), sizeof(*ids));
        yyjson_val *v;
        size_t i, n;

        yyjson_arr_foreach(list, i, n, v) ids[i] = (uint32_t)yyjson_get_uint(v);
        return ids;
}

static void recorded_ids_decode_as_recorded(void **state) {
        for (size_t i = 0; i < WITH_VECTORS; i++) {
                struct tokenizer *t = load_recorded(with_vectors[i]);
                struct arena a = {0};
                struct slice rest = read_data(&a, arena_printf(&a, "tokenizer/%s.decode.jsonl", with_vectors[i]));
                yyjson_doc *doc;

                while ((doc = next_line(&rest))) {
                        yyjson_val *line = yyjson_doc_get_root(doc), *list = json_get(line, "ids");
                        uint32_t *ids = read_ids(list, &a);

                        assert_decodes(t, ids, yyjson_arr_size(list), false, json_get_slice(line, "decoded"));
                        assert_decodes(
                            t, ids, yyjson_arr_size(list), true, json_get_slice(line, "decoded_skip_special"));
                        yyjson_doc_free(doc);
                }
                arena_free(&a);
                tokenizer_free(t);
        }
}

/* ---- any text ------------------------------------------------------------------------------------------------------- */

static uint32_t random_code_point(struct rng *r) {
        static const uint32_t ranges[][2] = {{0, 0x7f}, {0, 0x7f}, {0x20, 0x7e}, {0x80, 0x7ff}, {0x800, 0xd7ff},
            {0xe000, 0xffff}, {0x4e00, 0x9fff}, {0x10000, 0x10ffff}, {0x1f300, 0x1f6ff}};
        const uint32_t *range = ranges[rng_below(r, sizeof(ranges) / sizeof(*ranges))];

        return range[0] + (uint32_t)rng_below(r, range[1] - range[0] + 1);
}

static void add_code_point(struct buf *b, uint32_t c) {
        if (c < 0x80)
                buf_add_char(b, (char)c);
        else if (c < 0x800)
                buf_printf(b, "%c%c", 0xc0 | c >> 6, 0x80 | (c & 0x3f));
        else if (c < 0x10000)
                buf_printf(b, "%c%c%c", 0xe0 | c >> 12, 0x80 | (c >> 6 & 0x3f), 0x80 | (c & 0x3f));
        else
                buf_printf(
                    b, "%c%c%c%c", 0xf0 | c >> 18, 0x80 | (c >> 12 & 0x3f), 0x80 | (c >> 6 & 0x3f), 0x80 | (c & 0x3f));
}

static void any_text_comes_back(void **state) {
        static const char *const names[] = {
            "tiny-v2", "tiny-v3", "deepseek-v2", "deepseek-v3", "deepseek-r1", "deepseek-v3.1"};
        struct rng rng;

        rng_seed(&rng, 7);
        for (size_t i = 0; i < sizeof(names) / sizeof(*names); i++) {
                struct tokenizer *t = load_recorded(names[i]);

                for (int n = 0; n < 2000; n++) {
                        struct arena arena = {0};
                        struct token_list list;
                        struct buf b = {0};

                        for (size_t k = rng_below(&rng, n % 50 == 0 ? 2000 : 40); k > 0; k--)
                                add_code_point(&b, random_code_point(&rng));
                        assert_int_equal(utf8_valid_prefix(buf_slice(&b)), b.len);
                        assert_int_equal(tokenizer_encode(t, buf_slice(&b), TOKENIZE_PLAIN, &arena, &list), 0);
                        assert_decodes(t, list.ids, list.count, false, buf_slice(&b));
                        assert_true(list.count * tokenizer_longest(t) >= b.len);
                        buf_free(&b);
                        arena_free(&arena);
                }
                tokenizer_free(t);
        }
}

static void broken_utf8_reads_as_replacement_characters(void **state) {
        struct tokenizer *t = load_recorded("tiny-v3");
        struct rng rng;

        rng_seed(&rng, 8);
        for (int n = 0; n < 3000; n++) {
                struct arena arena = {0};
                struct token_list broken, mended;
                struct buf lossy = {0};
                char bytes[24];
                size_t len = rng_below(&rng, sizeof(bytes) + 1);

                for (size_t i = 0; i < len; i++)
                        bytes[i] = (char)(rng_below(&rng, 3) ? 0x80 + rng_below(&rng, 128) : 'a');
                utf8_add_lossy(&lossy, slice_of(bytes, len));
                assert_int_equal(utf8_valid_prefix(buf_slice(&lossy)), lossy.len);
                assert_int_equal(tokenizer_encode(t, slice_of(bytes, len), TOKENIZE_PLAIN, &arena, &broken), 0);
                assert_int_equal(tokenizer_encode(t, buf_slice(&lossy), TOKENIZE_PLAIN, &arena, &mended), 0);
                assert_int_equal(broken.count, mended.count);
                assert_memory_equal(broken.ids, mended.ids, broken.count * sizeof(*broken.ids));
                buf_free(&lossy);
                arena_free(&arena);
        }
        tokenizer_free(t);
}

/* ---- streaming ------------------------------------------------------------------------------------------------------ */

static void tokens_one_by_one_say_the_same_in_whole_characters(void **state) {
        for (size_t i = 0; i < WITH_VECTORS; i++) {
                struct tokenizer *t = load_recorded(with_vectors[i]);
                struct rng rng;

                rng_seed(&rng, 9 + i);
                for (int n = 0; n < 4000; n++) {
                        struct buf streamed = {0}, whole = {0}, bytes = {0}, lossy = {0};
                        bool skip = rng_below(&rng, 2);
                        struct detokenizer d;
                        uint32_t ids[40];
                        size_t count = rng_below(&rng, 41);

                        detokenizer_init(&d, t, skip);
                        for (size_t k = 0; k < count; k++) {
                                /* Single bytes, some of all tokens, and ids beyond the last. */
                                ids[k] = (uint32_t)rng_below(&rng, n % 2 ? 262 : tokenizer_size(t) + 50);
                                detokenizer_push(&d, ids[k], &streamed);
                                assert_int_equal(utf8_valid_prefix(buf_slice(&streamed)), streamed.len);
                                if (!skip || !tokenizer_is_special(t, ids[k]))
                                        buf_add(&bytes, tokenizer_bytes(t, ids[k]));
                        }
                        detokenizer_flush(&d, &streamed);
                        tokenizer_decode(t, ids, count, skip, &whole);
                        utf8_add_lossy(&lossy, buf_slice(&bytes));
                        assert_true(slice_eq(buf_slice(&streamed), buf_slice(&whole)));
                        assert_true(slice_eq(buf_slice(&streamed), buf_slice(&lossy)));
                        buf_free(&streamed);
                        buf_free(&whole);
                        buf_free(&bytes);
                        buf_free(&lossy);
                }
                tokenizer_free(t);
        }
}

/* ---- what it knows -------------------------------------------------------------------------------------------------- */

static void tokens_are_found_by_their_text(void **state) {
        struct tokenizer *t = load_recorded("deepseek-v3.1");

        assert_int_equal(tokenizer_size(t), 128815);
        assert_int_equal(tokenizer_bos(t), 0);
        assert_int_equal(tokenizer_eos(t), 1);
        assert_int_equal(tokenizer_find(t, SLICE_LIT("<think>")), 128798);
        assert_int_equal(tokenizer_find(t, SLICE_LIT("<｜tool▁calls▁begin｜>")), 128806);
        assert_int_equal(tokenizer_find(t, SLICE_LIT("<｜begin▁of▁sentence｜>")), 0);
        assert_int_equal(tokenizer_find(t, SLICE_LIT("no such token")), -1);
        assert_false(tokenizer_is_special(t, 128798));
        assert_true(tokenizer_is_special(t, 0));
        assert_true(tokenizer_is_special(t, 128805));
        assert_false(tokenizer_is_special(t, 4000000000u));
        assert_int_equal(tokenizer_bytes(t, 129000).len, 0);
        assert_int_equal(tokenizer_entry(t, UINT32_MAX).len, 0);
        for (uint32_t id = 0; id < tokenizer_size(t); id++)
                assert_int_equal(tokenizer_find(t, tokenizer_bytes(t, id)), id);
        assert_true(slice_is(tokenizer_bytes(t, (uint32_t)tokenizer_find(t, SLICE_LIT(" the"))), " the"));
        assert_true(slice_is(tokenizer_entry(t, (uint32_t)tokenizer_find(t, SLICE_LIT(" the"))), "Ġthe"));
        tokenizer_free(t);
}

/* ---- threads -------------------------------------------------------------------------------------------------------- */

struct worker {
        pthread_t thread;
        const struct tokenizer *t;
        struct slice lines;
        struct arena arena;
        struct token_list first, last;
};

static void *encode_twice(void *data) {
        struct worker *w = data;

        if (tokenizer_encode(w->t, w->lines, TOKENIZE_PLAIN, &w->arena, &w->first) < 0 ||
            tokenizer_encode(w->t, w->lines, TOKENIZE_PLAIN, &w->arena, &w->last) < 0)
                return w;
        return NULL;
}

static void several_threads_encode_the_same(void **state) {
        struct tokenizer *t = load_recorded("tiny-v3");
        struct worker workers[4] = {0};
        struct arena a = {0};
        struct slice text = read_data(&a, "tokenizer/tiny-v3.encode.jsonl");

        for (int i = 0; i < 4; i++) {
                workers[i].t = t;
                workers[i].lines = text;
                assert_int_equal(pthread_create(&workers[i].thread, NULL, encode_twice, &workers[i]), 0);
        }
        for (int i = 0; i < 4; i++) {
                void *failed;

                assert_int_equal(pthread_join(workers[i].thread, &failed), 0);
                assert_null(failed);
                assert_int_equal(workers[i].first.count, workers[0].first.count);
                assert_int_equal(workers[i].last.count, workers[0].first.count);
                assert_memory_equal(
                    workers[i].first.ids, workers[0].first.ids, workers[0].first.count * sizeof(uint32_t));
                assert_memory_equal(
                    workers[i].last.ids, workers[0].first.ids, workers[0].first.count * sizeof(uint32_t));
        }
        for (int i = 0; i < 4; i++)
                arena_free(&workers[i].arena);
        arena_free(&a);
        tokenizer_free(t);
}

/* ---- bounded work --------------------------------------------------------------------------------------------------- */

static int count_piece(void *context, struct slice piece) {
        size_t *pieces = context;

        ++*pieces;
        return 0;
}

static void a_line_of_one_letter_takes_steps_in_proportion(void **state) {
        enum { LENGTH = 5000000 };
        struct tokenizer *t = load_recorded("deepseek-v3");
        struct bpe_scratch scratch = {0};
        struct id_list ids = {0};
        struct split_run run;
        struct buf line = {0};
        size_t pieces = 0;

        memset(buf_reserve(&line, LENGTH), 'a', LENGTH);
        buf_commit(&line, LENGTH);
        assert_int_equal(split_run_init(&run), 0);
        assert_int_equal(splitter_split(&t->splitter, &run, buf_slice(&line), count_piece, &pieces), 0);
        assert_int_equal(pieces, 1);
        assert_int_equal(bpe_encode(&t->bpe, &scratch, buf_slice(&line), &ids), 0);
        /* Each join takes one pair off the heap and puts at most two on it: with those at the start, three per byte. */
        assert_true(scratch.steps <= 3 * (uint64_t)LENGTH);
        assert_true(ids.count < LENGTH / 4);
        free(ids.ids);
        bpe_scratch_free(&scratch);
        split_run_free(&run);
        buf_free(&line);
        tokenizer_free(t);
}

/* What each pattern of the lists looks at again and again when it is used without care. Quadratic work on these would not
 * end within the test's time limit by hours. */
static void long_runs_of_anything_come_back(void **state) {
        static const char *const units[] = {
            "a", " ", "7", "!", "\n", "中", "\xcc\x81", "\x01", "\t ", "<", "\xe3\x80\x80", "\r", "_1"};
        static const char *const names[] = {"deepseek-v2", "deepseek-v3"};

        for (size_t i = 0; i < 2; i++) {
                struct tokenizer *t = load_recorded(names[i]);

                for (size_t u = 0; u < sizeof(units) / sizeof(*units); u++) {
                        struct arena arena = {0};
                        struct token_list list;
                        struct buf b = {0};

                        buf_add_char(&b, '\n');
                        while (b.len < 1000000)
                                buf_add_str(&b, units[u]);
                        buf_add_char(&b, '5');
                        assert_int_equal(tokenizer_encode(t, buf_slice(&b), TOKENIZE_PLAIN, &arena, &list), 0);
                        assert_decodes(t, list.ids, list.count, false, buf_slice(&b));
                        buf_free(&b);
                        arena_free(&arena);
                }
                tokenizer_free(t);
        }
}

static void a_text_beyond_the_limit_is_refused(void **state) {
        struct tokenizer *t = load_recorded("tiny-v3");
        struct slice huge = slice_of("", TOKENIZER_TEXT_MAX + 1);
        struct arena arena = {0};
        struct token_list list;

        assert_int_equal(tokenizer_encode(t, huge, TOKENIZE_PLAIN, &arena, &list), -E2BIG);
        tokenizer_free(t);
}

int main(void) {
        const struct CMUnitTest tests[] = {
            cmocka_unit_test(recorded_texts_encode_as_recorded),
            cmocka_unit_test(recorded_ids_decode_as_recorded),
            cmocka_unit_test(any_text_comes_back),
            cmocka_unit_test(broken_utf8_reads_as_replacement_characters),
            cmocka_unit_test(tokens_one_by_one_say_the_same_in_whole_characters),
            cmocka_unit_test(tokens_are_found_by_their_text),
            cmocka_unit_test(several_threads_encode_the_same),
            cmocka_unit_test(a_line_of_one_letter_takes_steps_in_proportion),
            cmocka_unit_test(long_runs_of_anything_come_back),
            cmocka_unit_test(a_text_beyond_the_limit_is_refused),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
