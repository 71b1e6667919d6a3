/* prompt.c - `prompt`: a text, token ids, or a list of either. */
#include "openai/parse.h"

static bool read_id(struct parser *p, const char *loc, yyjson_val *v, uint32_t *ret_id) {
        int64_t id;

        if (yyjson_is_uint(v))
                id = yyjson_get_uint(v) > INT64_MAX ? INT64_MAX : (int64_t)yyjson_get_uint(v);
        else if (!parser_integer(p, loc, v, &id))
                return false;
        if (id < 0) {
                issue_add(&p->issues, "greater_than_equal", loc, "Input should be greater than or equal to 0", v,
                    ", 'ctx': {'ge': 0}");
                return false;
        }
        if (id >= p->defaults->vocab && p->r->kind != OPENAI_DETOKENIZE)
                parser_refuse(p, NULL, "Token id %lld is out of vocabulary", (long long)id);
        *ret_id = id > UINT32_MAX ? UINT32_MAX : (uint32_t)id;
        return true;
}

/* All of `list` as ids, telling what is wrong with each. */
static bool read_ids(struct parser *p, const char *loc, yyjson_val *list, struct openai_prompt *ret_prompt) {
        size_t count = yyjson_arr_size(list), i = 0;
        uint32_t *ids = parser_array(p, count ? count : 1, sizeof(*ids));
        bool fine = ids != NULL;
        yyjson_arr_iter iter;
        yyjson_val *item;

        if (!ids)
                return false;
        for (yyjson_arr_iter_init(list, &iter); (item = yyjson_arr_iter_next(&iter)); i++) {
                bool plain = yyjson_is_uint(item) && yyjson_get_uint(item) < p->defaults->vocab;

                if (plain)
                        ids[i] = (uint32_t)yyjson_get_uint(item);
                else
                        fine &= read_id(p, parser_loc(p, "%s.%zu", loc, i), item, &ids[i]);
        }
        *ret_prompt = (struct openai_prompt){.is_ids = true, .ids = ids, .count = count};
        return fine;
}

/* Nothing that `prompt` may be fits: tell it as pydantic tells a union, alternative by alternative: ids, lists of ids, a
 * text, a list of texts. */
static void explain(struct parser *p, yyjson_val *v) {
        struct openai_prompt unused;
        yyjson_val *item;
        yyjson_arr_iter iter;
        size_t i = 0;

        if (!yyjson_is_arr(v)) {
                issue_not_list(&p->issues, "prompt", v);
                issue_not_list(&p->issues, "prompt", v);
                issue_not_string(&p->issues, "prompt", v);
                issue_not_list(&p->issues, "prompt", v);
                return;
        }
        read_ids(p, "prompt", v, &unused);
        for (yyjson_arr_iter_init(v, &iter); (item = yyjson_arr_iter_next(&iter)); i++) {
                const char *loc = parser_loc(p, "prompt.%zu", i);

                if (yyjson_is_arr(item))
                        read_ids(p, loc, item, &unused);
                else
                        issue_not_list(&p->issues, loc, item);
        }
        issue_not_string(&p->issues, "prompt", v);
        for (i = 0, yyjson_arr_iter_init(v, &iter); (item = yyjson_arr_iter_next(&iter)); i++)
                if (!yyjson_is_str(item))
                        issue_not_string(&p->issues, parser_loc(p, "prompt.%zu", i), item);
}

static bool all_are(yyjson_val *list, bool (*is)(yyjson_val *)) {
        yyjson_arr_iter iter;
        yyjson_val *item;

        for (yyjson_arr_iter_init(list, &iter); (item = yyjson_arr_iter_next(&iter));)
                if (!is(item))
                        return false;
        return true;
}

static bool is_string(yyjson_val *v) {
        return yyjson_is_str(v);
}

static bool is_list(yyjson_val *v) {
        return yyjson_is_arr(v);
}

static bool is_number(yyjson_val *v) {
        return yyjson_is_num(v) || yyjson_is_bool(v) || yyjson_is_raw(v);
}

static void read_list(struct parser *p, yyjson_val *v) {
        size_t count = yyjson_arr_size(v), i = 0;
        struct openai_prompt *prompts;
        yyjson_arr_iter iter;
        yyjson_val *item;

        if (count > OPENAI_PROMPTS_MAX) {
                parser_refuse(p, "prompt", "A list may have at most %d prompts (parameter=prompt)", OPENAI_PROMPTS_MAX);
                return;
        }
        prompts = parser_array(p, count, sizeof(*prompts));
        if (!prompts)
                return;
        for (yyjson_arr_iter_init(v, &iter); (item = yyjson_arr_iter_next(&iter)); i++) {
                if (yyjson_is_str(item))
                        prompts[i].text = json_slice(item);
                else
                        read_ids(p, parser_loc(p, "prompt.%zu", i), item, &prompts[i]);
                if (prompts[i].text.len == 0 && prompts[i].count == 0)
                        parser_refuse(p, "prompt",
                            "Either prompt or prompt_embeds must be provided and non-empty. (parameter=prompt)");
        }
        p->r->prompts = prompts;
        p->r->prompt_count = count;
}

/* /tokenize knows texts only. */
static void read_text(struct parser *p, yyjson_val *v) {
        struct openai_prompt *one = parser_array(p, 1, sizeof(*one));

        if (!one || !parser_string(p, "prompt", v, &one->text))
                return;
        p->r->prompts = one;
        p->r->prompt_count = 1;
}

void parse_prompt(struct parser *p, yyjson_val *v) {
        struct openai_prompt *one;

        if (p->r->kind == OPENAI_TOKENIZE) {
                if (v) {
                        read_text(p, v);
                        return;
                }
                issue_missing(&p->issues, "prompt", p->root);
                issue_missing(&p->issues, "messages", p->root);
                return;
        }
        if (!v || (yyjson_is_str(v) && yyjson_get_len(v) == 0)) {
                parser_refuse(
                    p, "prompt", "Either prompt or prompt_embeds must be provided and non-empty. (parameter=prompt)");
                return;
        }
        if (yyjson_is_arr(v) && yyjson_arr_size(v) == 0) {
                parser_refuse(p, NULL, "You must pass at least one prompt");
                return;
        }
        if (yyjson_is_arr(v) && (all_are(v, is_string) || all_are(v, is_list))) {
                read_list(p, v);
                return;
        }
        one = parser_array(p, 1, sizeof(*one));
        if (!one)
                return;
        if (yyjson_is_str(v))
                one->text = json_slice(v);
        else if (yyjson_is_arr(v) && all_are(v, is_number)) {
                struct issues before = p->issues;

                if (!read_ids(p, "prompt", v, one) && p->issues.count > before.count) {
                        /* Told again among the alternatives. */
                        p->issues.count = before.count;
                        p->issues.text.len = before.text.len;
                        explain(p, v);
                }
        } else
                explain(p, v);
        p->r->prompts = one;
        p->r->prompt_count = 1;
}

void parse_tokens(struct parser *p, yyjson_val *v) {
        struct openai_prompt *one = parser_array(p, 1, sizeof(*one));

        if (!one)
                return;
        if (!v)
                issue_missing(&p->issues, "tokens", p->root);
        else if (!yyjson_is_arr(v))
                issue_not_list(&p->issues, "tokens", v);
        else
                read_ids(p, "tokens", v, one);
        p->r->prompts = one;
        p->r->prompt_count = 1;
}
