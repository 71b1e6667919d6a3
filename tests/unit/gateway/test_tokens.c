/* test_tokens.c - prompts as ids: those of a body, and those that the model's tokenizer and template make of text. The
 * embedded engine does the same with the same functions; that both agree is seen end to end (test_kv_events.py). */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "gateway/tokens.h"
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

static struct tokens_reader reader, none;

static int load(void **state) {
        struct error e = {0}, no_chat = {0};
        char dir[512];

        snprintf(dir, sizeof(dir), "%s/models/baton-tiny", getenv("BATON_SOURCE"));
        if (tokens_reader_load(dir, NULL, &reader, &no_chat, &e) == 0 && reader.chat.family != CHAT_NONE)
                return 0;
        print_error("%s %s\n", e.text, no_chat.text);
        return -1;
}

static int unload(void **state) {
        tokens_reader_free(&reader);
        return 0;
}

/* Returns how many ids the body's (first) prompt has, or the error. */
static int count(
    const struct tokens_reader *r, enum api api, const char *body, struct token_list *ret_list, bool *ret_whole) {
        static struct arena arena;
        struct openai_error refused;
        struct facts f;
        int result;

        arena_reset(&arena);
        assert_int_equal(facts_read(api, slice_str(body), &arena, &f, &refused), 0);
        result = tokens_of_prompt(r, &f, f.prompts ? f.prompts[0] : f.prompt, &arena, ret_list, ret_whole);
        return result < 0 ? result : (int)ret_list->count;
}

static void ids_are_taken_as_they_stand(void **state) {
        struct token_list l;
        bool whole;

        assert_int_equal(count(&none, API_COMPLETIONS, "{\"prompt\":[1, 2 ,70000]}", &l, &whole), 3);
        assert_true(whole && l.ids[0] == 1 && l.ids[1] == 2 && l.ids[2] == 70000);
        assert_int_equal(count(&none, API_COMPLETIONS, "{\"prompt\":[[5,6],[7]]}", &l, &whole), 2);
        assert_int_equal(count(&none, API_COMPLETIONS, "{\"prompt\":[1,-2]}", &l, &whole), -ENOTSUP);
        assert_int_equal(
            count(&none, API_COMPLETIONS, "{\"prompt\":[1,2],\"truncate_prompt_tokens\":1}", &l, &whole), -ENOTSUP);
}

static void text_wants_a_tokenizer(void **state) {
        struct token_list l;
        bool whole;

        assert_int_equal(count(&none, API_COMPLETIONS, "{\"prompt\":\"Once\"}", &l, &whole), -ENOTSUP);
        assert_int_equal(
            count(&none, API_CHAT, "{\"messages\":[{\"role\":\"user\",\"content\":\"a\"}]}", &l, &whole), -ENOTSUP);
}

static void text_is_what_the_tokenizer_makes_of_it(void **state) {
        static const char body[] = "{\"prompt\":\"Mia\\u0027s \\\"lantern\\\"\\n\"}";
        struct token_list l, expected;
        struct arena arena = {0};
        bool whole;

        assert_int_equal(tokenizer_encode(reader.tokenizer, SLICE_LIT("Mia's \"lantern\"\n"), TOKENIZE_ADD_SPECIAL,
                             &arena, &expected),
            0);
        assert_int_equal(count(&reader, API_COMPLETIONS, body, &l, &whole), expected.count);
        assert_memory_equal(l.ids, expected.ids, expected.count * sizeof(*l.ids));
        assert_true(whole);
        arena_free(&arena);
}

static void chat_is_rendered(void **state) {
        struct token_list l, longer;
        bool whole;
        int n = count(&reader, API_CHAT, "{\"messages\":[{\"role\":\"user\",\"content\":\"Hello\"}]}", &l, &whole);

        assert_true(n > 3 && whole);
        assert_true(count(&reader, API_CHAT,
                        "{\"messages\":[{\"role\":\"system\",\"content\":\"Be "
                        "kind.\"},{\"role\":\"user\",\"content\":\"Hello\"}]}",
                        &longer, &whole) > n);
        /* What the engine refuses is left to it. */
        assert_int_equal(count(&reader, API_CHAT, "{\"messages\":[{\"role\":5}]}", &l, &whole), -ENOTSUP);
        assert_int_equal(count(&reader, API_CHAT, "{\"messages\":\"x\"}", &l, &whole), -ENOTSUP);
}

/* Of a text that is too long to look at, the tokens of its beginning, each of them as in the whole text. */
static void a_long_text_is_read_in_part(void **state) {
        struct token_list l, all;
        struct arena arena = {0};
        struct buf body = {0};
        struct slice text;
        bool whole;
        int n;

        buf_add_str(&body, "{\"prompt\":\"");
        while (body.len < TOKENS_TEXT_MAX + 50000)
                buf_add_str(&body, "Mia had a lantern, \xc3\xa9t\xc3\xa9 und \xe4\xbd\xa0\xe5\xa5\xbd 12345 ");
        text = slice_sub(buf_slice(&body), 11, body.len);
        assert_int_equal(tokenizer_encode(reader.tokenizer, text, TOKENIZE_ADD_SPECIAL, &arena, &all), 0);
        buf_add_str(&body, "\"}");
        n = count(&reader, API_COMPLETIONS, buf_cstr(&body), &l, &whole);
        assert_false(whole);
        assert_true(n > 10000 && (size_t)n < all.count);
        assert_memory_equal(l.ids, all.ids, (size_t)n * sizeof(*l.ids));
        buf_free(&body);
        arena_free(&arena);
}

int main(void) {
        const struct CMUnitTest tests[] = {
            cmocka_unit_test(ids_are_taken_as_they_stand),
            cmocka_unit_test(text_wants_a_tokenizer),
            cmocka_unit_test(text_is_what_the_tokenizer_makes_of_it),
            cmocka_unit_test(chat_is_rendered),
            cmocka_unit_test(a_long_text_is_read_in_part),
        };

        return cmocka_run_group_tests(tests, load, unload);
}
