/* api_prepare.c - from a body to token ids. Runs on the loop's thread for short bodies and on a worker for long ones: it reads
 * what never changes (options, tokenizer, chat format) and writes into its own call alone. */
#include "base/json.h"
#include "engine/api_call.h"
#include <errno.h>

/* ---- refusals ------------------------------------------------------------------------------------------------------------- */

static int refuse(struct api_prepared *p, const char *param, const char *text) {
        return openai_fail(&p->error, 400, "BadRequestError", param, "%s", text);
}

static int check_model(struct api_call *call) {
        const struct api_options *o = &call->api->options;
        struct slice model = call->prepared.request.model;
        struct buf names = {0};
        int r;

        if (!model.len)
                return 0;
        for (size_t i = 0; i < o->served_count; i++) {
                if (slice_is(model, o->served_names[i]))
                        return 0;
                buf_printf(&names, "%s%s", i ? ", " : "", o->served_names[i]);
        }
        r = openai_fail(&call->prepared.error, 404, "NotFoundError", "model",
            "The model `%.*s` does not exist. Valid aliases: %s.", SLICE_ARG(slice_sub(model, 0, 256)),
            buf_cstr(&names));
        buf_free(&names);
        return r;
}

/* ---- prompts -------------------------------------------------------------------------------------------------------------- */

static int encode(struct api_call *call, struct slice text, bool special, struct api_prompt *prompt) {
        const struct api_options *o = &call->api->options;
        const struct openai_request *request = &call->prepared.request;
        uint32_t most = o->defaults.max_model_len, unused;
        struct token_list list;
        int r;

        /* So long a text cannot fit, whatever its tokens are: not worth finding them. */
        if (call->kind != OPENAI_TOKENIZE && !request->truncate_prompt_tokens &&
            text.len / tokenizer_longest(o->tokenizer) > most)
                return openai_fit_tokens(request, (size_t)most + 1, true, most, &unused, &call->prepared.error);
        r = tokenizer_encode(o->tokenizer, text, special ? TOKENIZE_ADD_SPECIAL : TOKENIZE_PLAIN, &call->arena, &list);
        if (r == -E2BIG)
                return refuse(&call->prepared, "prompt", "The prompt is too long to be tokenized (parameter=prompt)");
        if (r < 0)
                return r;
        prompt->ids = list.ids;
        prompt->count = (uint32_t)list.count;
        return 0;
}

/* Keep the last tokens where that was asked for. */
static int truncate_prompt(struct api_call *call, struct api_prompt *prompt) {
        int64_t keep = call->prepared.request.truncate_prompt_tokens;
        uint32_t most = call->api->options.defaults.max_model_len;

        if (keep < -1 || keep > most)
                return openai_fail(&call->prepared.error, 400, "BadRequestError", "truncate_prompt_tokens",
                    "truncate_prompt_tokens must lie between -1 and max_model_len=%u, got %lld. "
                    "(parameter=truncate_prompt_tokens, value=%lld)",
                    most, (long long)keep, (long long)keep);
        if (keep == -1)
                keep = most;
        if (keep > 0 && prompt->count > keep) {
                prompt->ids += prompt->count - keep;
                prompt->count = (uint32_t)keep;
        }
        return 0;
}

/* A tokenizer may know more tokens than the model that it came with. */
static int check_ids(struct api_call *call, const struct api_prompt *prompt) {
        const struct api_options *o = &call->api->options;

        for (uint32_t i = 0; i < prompt->count; i++)
                if (prompt->ids[i] >= o->defaults.vocab)
                        return openai_fail(&call->prepared.error, 400, "BadRequestError", "prompt",
                            "The prompt has the token \"%.*s\" (%u), which the model does not know: its vocabulary "
                            "ends at "
                            "%u. (parameter=prompt)",
                            SLICE_ARG(slice_sub(tokenizer_entry(o->tokenizer, prompt->ids[i]), 0, 64)), prompt->ids[i],
                            o->defaults.vocab - 1);
        return 0;
}

static int finish_prompt(struct api_call *call, struct api_prompt *prompt, bool of_text) {
        int r = truncate_prompt(call, prompt);

        if (r == 0)
                r = check_ids(call, prompt);
        if (r < 0)
                return r;
        if (prompt->count == 0)
                return refuse(&call->prepared, NULL, "The decoder prompt cannot be empty");
        return openai_fit_tokens(&call->prepared.request, prompt->count, of_text,
            call->api->options.defaults.max_model_len, &prompt->max_tokens, &call->prepared.error);
}

/* Beyond the life of the body. */
static int keep_text(struct api_call *call, struct slice *text) {
        *text = arena_copy(&call->arena, *text);
        return text->ptr ? 0 : -ENOMEM;
}

static int decode_for_echo(struct api_call *call, struct api_prompt *prompt) {
        struct buf text = {0};

        int r;

        tokenizer_decode(call->api->options.tokenizer, prompt->ids, prompt->count, true, &text);
        prompt->text = buf_slice(&text);
        r = buf_ok(&text) ? keep_text(call, &prompt->text) : -ENOMEM;
        buf_free(&text);
        return r;
}

static int prepare_completion(struct api_call *call) {
        struct api_prepared *p = &call->prepared;
        const struct openai_request *r = &p->request;

        p->prompts = arena_array(&call->arena, r->prompt_count, sizeof(*p->prompts));
        if (!p->prompts)
                return -ENOMEM;
        p->prompt_count = r->prompt_count;
        for (size_t i = 0; i < r->prompt_count; i++) {
                const struct openai_prompt *from = &r->prompts[i];
                struct api_prompt *to = &p->prompts[i];
                int result = 0;

                *to = (struct api_prompt){.ids = from->ids, .count = (uint32_t)from->count, .text = from->text};
                if (!from->is_ids)
                        result = encode(call, from->text, r->add_special, to);
                if (result == 0)
                        result = finish_prompt(call, to, !from->is_ids);
                if (result == 0 && r->echo)
                        result = from->is_ids ? decode_for_echo(call, to) : keep_text(call, &to->text);
                if (result < 0)
                        return result;
        }
        return 0;
}

static int render(struct api_call *call, struct buf *text) {
        const struct api_options *o = &call->api->options;
        struct error e = {0};
        int r;

        if (o->chat.family == CHAT_NONE)
                return refuse(&call->prepared, NULL,
                    "This model has no chat template that is known here; --chat-format names one");
        r = chat_render(&o->chat, o->tokenizer, &call->prepared.request, text, &e);
        return r == -EINVAL ? refuse(&call->prepared, NULL, e.text) : r;
}

/* The last message again, when it is one of the answer's side. */
static int choose_echo(struct api_call *call) {
        const struct openai_request *r = &call->prepared.request;
        const struct openai_message *last = &r->messages[r->message_count - 1];
        const char *role = call->api->options.response_role;

        if (!r->echo || !last->has_content || !slice_is(last->role, role ? role : "assistant"))
                return 0;
        call->prepared.echo = last->content;
        return keep_text(call, &call->prepared.echo);
}

static int prepare_chat(struct api_call *call) {
        struct api_prepared *p = &call->prepared;
        struct buf text = {0};
        int r;

        p->prompts = ARENA_NEW(&call->arena, struct api_prompt);
        if (!p->prompts)
                return -ENOMEM;
        p->prompt_count = 1;
        r = render(call, &text);
        if (r == 0) {
                p->reasoning = chat_prompt_reasoning(buf_slice(&text));
                r = encode(call, buf_slice(&text), p->request.add_special && call->kind == OPENAI_CHAT, &p->prompts[0]);
        }
        buf_free(&text);
        if (r < 0 || call->kind == OPENAI_TOKENIZE)
                return r;
        r = choose_echo(call);
        return r == 0 ? finish_prompt(call, &p->prompts[0], true) : r;
}

static int prepare_tokenize(struct api_call *call) {
        struct api_prepared *p = &call->prepared;

        if (p->request.messages)
                return prepare_chat(call);
        p->prompts = ARENA_NEW(&call->arena, struct api_prompt);
        if (!p->prompts)
                return -ENOMEM;
        p->prompt_count = 1;
        return encode(call, p->request.prompts[0].text, p->request.add_special, &p->prompts[0]);
}

/* Written here because it is as long as the body was. */
static int write_tokens(struct api_call *call) {
        struct api_prepared *p = &call->prepared;
        const struct api_prompt *prompt = &p->prompts[0];
        struct json_writer w = {.out = &p->tokens};

        json_open(&w, '{');
        json_key(&w, "count");
        json_u64(&w, prompt->count);
        json_key(&w, "max_model_len");
        json_u64(&w, call->api->options.defaults.max_model_len);
        json_key(&w, "tokens");
        json_open(&w, '[');
        for (uint32_t i = 0; i < prompt->count; i++)
                json_u64(&w, prompt->ids[i]);
        json_close(&w, ']');
        json_key(&w, "token_strs");
        if (p->request.return_token_strs) {
                json_open(&w, '[');
                for (uint32_t i = 0; i < prompt->count; i++)
                        json_string(&w, tokenizer_entry(call->api->options.tokenizer, prompt->ids[i]));
                json_close(&w, ']');
        } else
                json_null(&w);
        json_close(&w, '}');
        return buf_ok(&p->tokens) ? 0 : -ENOMEM;
}

static int prepare_detokenize(struct api_call *call) {
        const struct openai_prompt *ids = &call->prepared.request.prompts[0];
        struct json_writer w = {.out = &call->prepared.tokens};
        struct buf text = {0};
        int r = 0;

        tokenizer_decode(call->api->options.tokenizer, ids->ids, ids->count, false, &text);
        json_open(&w, '{');
        json_key(&w, "prompt");
        json_string(&w, buf_slice(&text));
        json_close(&w, '}');
        if (!buf_ok(&text) || !buf_ok(&call->prepared.tokens))
                r = -ENOMEM;
        buf_free(&text);
        return r;
}

/* ---- bad words ------------------------------------------------------------------------------------------------------------ */

/* Each word as it begins a text, and as it stands behind a space where that is one other token: what vLLM forbids. The
 * engine takes them as count, ids…, count, ids…, 0. */
static int prepare_bad_words(struct api_call *call) {
        const struct sampling_params *s = &call->prepared.request.sampling;
        const struct tokenizer *t = call->api->options.tokenizer;
        struct buf out = {0};
        uint32_t end = 0;
        int r = 0;

        for (uint32_t i = 0; r == 0 && i < s->bad_word_count; i++) {
                struct slice word = s->bad_words[i];
                struct token_list plain = {0}, spaced = {0};
                const char *behind_space;

                while (word.len && *word.ptr == ' ')
                        slice_take(&word, 1);
                behind_space = arena_printf(&call->arena, " %.*s", SLICE_ARG(word));
                if (!behind_space)
                        r = -ENOMEM;
                if (r == 0)
                        r = tokenizer_encode(t, word, TOKENIZE_PLAIN, &call->arena, &plain);
                if (r == 0)
                        r = tokenizer_encode(t, slice_str(behind_space), TOKENIZE_PLAIN, &call->arena, &spaced);
                for (int k = 0; r == 0 && k < 2; k++) {
                        const struct token_list *l = k ? &spaced : &plain;
                        uint32_t count = (uint32_t)l->count;

                        if (!count || (k && (count != plain.count || l->ids[0] == plain.ids[0])))
                                continue;
                        buf_append(&out, &count, sizeof(count));
                        buf_append(&out, l->ids, count * sizeof(*l->ids));
                }
        }
        buf_append(&out, &end, sizeof(end));
        if (r == 0) {
                call->prepared.bad_sequences =
                    (const uint32_t *)(const void *)arena_copy(&call->arena, buf_slice(&out)).ptr;
                if (!buf_ok(&out) || !call->prepared.bad_sequences)
                        r = -ENOMEM;
        } else if (r == -E2BIG)
                r = refuse(&call->prepared, "bad_words", "A bad word is too long (parameter=bad_words)");
        buf_free(&out);
        return r;
}

/* ---- all of it ------------------------------------------------------------------------------------------------------------ */

int api_prepare(struct api_call *call, struct slice body) {
        struct api_prepared *p = &call->prepared;
        int r = openai_parse(call->kind, body, &call->api->options.defaults, &call->arena, &p->request, &p->error);

        if (r == 0)
                r = check_model(call);
        if (r == 0)
                switch (call->kind) {
                case OPENAI_COMPLETION:
                        r = prepare_completion(call);
                        break;
                case OPENAI_CHAT:
                        r = prepare_chat(call);
                        break;
                case OPENAI_TOKENIZE:
                        r = prepare_tokenize(call);
                        if (r == 0)
                                r = write_tokens(call);
                        break;
                case OPENAI_DETOKENIZE:
                        r = prepare_detokenize(call);
                        break;
                }
        if (r == 0 && (call->kind == OPENAI_COMPLETION || call->kind == OPENAI_CHAT))
                r = api_read_transfer(call);
        if (r == 0 && p->request.sampling.bad_word_count)
                r = prepare_bad_words(call);
        if (r == 0)
                r = openai_request_settle(&p->request, &call->arena);
        return r == -ENOMEM ? r : 0;
}
