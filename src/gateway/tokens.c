/* tokens.c - see tokens.h. */
#include "gateway/tokens.h"
#include <errno.h>

int tokens_reader_load(const char *dir, const char *chat_format, struct tokens_reader *ret_reader,
    struct error *ret_no_chat, struct error *e) {
        struct tokens_reader reader = {0};
        int r = tokenizer_load(dir, &reader.tokenizer, e);

        if (r < 0)
                return r;
        if (chat_format)
                r = chat_format_parse(slice_str(chat_format), &reader.chat, e);
        else if (chat_format_detect(dir, &reader.chat, ret_no_chat) < 0)
                reader.chat.family = CHAT_NONE;
        if (r < 0)
                tokenizer_free(reader.tokenizer);
        else
                *ret_reader = reader;
        return r;
}

void tokens_reader_free(struct tokens_reader *r) {
        tokenizer_free(r->tokenizer);
}

/* ---- ids ------------------------------------------------------------------------------------------------------------ */

static int read_ids(struct slice prompt, uint64_t count, struct arena *arena, struct token_list *ret_list) {
        struct slice rest = prompt, item;
        uint32_t *ids = arena_array(arena, (size_t)count, sizeof(*ids));
        size_t n = 0;
        int64_t id;

        if (!ids)
                return -ENOMEM;
        while (openai_next_item(&rest, &item)) {
                if (n == count || facts_integer(item, &id) < 0 || id < 0 || id > UINT32_MAX)
                        return -ENOTSUP;
                ids[n++] = (uint32_t)id;
        }
        *ret_list = (struct token_list){ids, n};
        return 0;
}

/* ---- text ----------------------------------------------------------------------------------------------------------- */

/* Where a text is cut, the tokens of its last word are not those of the whole text: so many are not looked at. Words are
 * shorter than that, but for what no model was made for. */
#define CUT_TOKENS 64

static int encode(const struct tokens_reader *r, struct slice text, bool special, struct arena *arena,
    struct token_list *ret_list, bool *ret_whole) {
        bool cut = text.len > TOKENS_TEXT_MAX;
        struct token_list list;
        int result;

        if (cut) {
                text.len = TOKENS_TEXT_MAX;
                while (text.len > 0 && ((unsigned char)text.ptr[text.len] & 0xc0) == 0x80)
                        text.len--;
        }
        result = tokenizer_encode(r->tokenizer, text, special ? TOKENIZE_ADD_SPECIAL : TOKENIZE_PLAIN, arena, &list);
        if (result < 0)
                return result == -E2BIG ? -ENOTSUP : result;
        if (cut)
                list.count -= list.count < CUT_TOKENS ? list.count : CUT_TOKENS;
        *ret_list = list;
        *ret_whole = !cut;
        return 0;
}

static bool says_special(const struct facts *f, bool otherwise) {
        struct slice v = openai_find(f->members, f->member_count, "add_special_tokens");

        return openai_is_null(v) ? otherwise : facts_true(v);
}

static int read_text(const struct tokens_reader *r, const struct facts *f, struct slice prompt, struct arena *arena,
    struct token_list *ret_list, bool *ret_whole) {
        struct buf text = {0};
        int result;

        openai_unescape(&text, openai_inside(prompt));
        result =
            buf_ok(&text) ? encode(r, buf_slice(&text), says_special(f, true), arena, ret_list, ret_whole) : -ENOMEM;
        buf_free(&text);
        return result;
}

/* The whole body is parsed as the engine does it: what a template prints depends on much of it. */
static int read_chat(const struct tokens_reader *r, const struct facts *f, struct arena *arena,
    struct token_list *ret_list, bool *ret_whole) {
        static const struct openai_defaults any = {.temperature = 1,
            .top_p = 1,
            .repetition_penalty = 1,
            .vocab = UINT32_MAX,
            .max_model_len = UINT32_MAX,
            .max_logprobs = -1,
            .thinking = -1,
            .auto_tools = true,
            .tool_parser = true};
        struct openai_request request;
        struct openai_error refused;
        struct buf text = {0};
        struct error e = {0};
        int result;

        if (r->chat.family == CHAT_NONE)
                return -ENOTSUP;
        result = openai_parse(OPENAI_CHAT, f->body, &any, arena, &request, &refused);
        if (result < 0)
                return result == -EINVAL ? -ENOTSUP : result;
        result = chat_render(&r->chat, r->tokenizer, &request, &text, &e);
        if (result == -EINVAL)
                result = -ENOTSUP;
        if (result == 0 && !buf_ok(&text))
                result = -ENOMEM;
        if (result == 0)
                result = encode(r, buf_slice(&text), request.add_special, arena, ret_list, ret_whole);
        buf_free(&text);
        openai_request_done(&request);
        return result;
}

int tokens_of_prompt(const struct tokens_reader *r, const struct facts *f, struct slice prompt, struct arena *arena,
    struct token_list *ret_list, bool *ret_whole) {
        uint64_t ids = f->api == API_COMPLETIONS ? facts_count_ids(prompt) : 0;

        *ret_whole = true;
        if (!openai_is_null(openai_find(f->members, f->member_count, "truncate_prompt_tokens")))
                return -ENOTSUP;
        if (ids > 0)
                return read_ids(prompt, ids, arena, ret_list);
        if (!r->tokenizer)
                return -ENOTSUP;
        if (f->api == API_CHAT)
                return read_chat(r, f, arena, ret_list, ret_whole);
        return openai_is_string(prompt) ? read_text(r, f, prompt, arena, ret_list, ret_whole) : -ENOTSUP;
}
