/* api_generate.c - the life of a completion or chat request: parse, tokenize, submit, stream, end.
 *
 * A request is one struct with one end (request_finish). Its children are the sequences in the engine: prompts x n. Events
 * that drive it: the body is here; outputs of the engine; the client has gone. */
#include "base/clock.h"
#include "base/rng.h"
#include "engine/api_internal.h"
#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#define CHILDREN_MAX 16384u

/* ---- the end ---------------------------------------------------------------------------------------------------------------- */

static void free_records(struct record *list, size_t count) {
        for (size_t i = 0; i < count; i++)
                free(list[i].top);
        free(list);
}

static void child_free(struct child *c) {
        if (c->id)
                engine_abort(c->request->api->options.engine, c->id, true);
        output_parser_free(c->parser);
        buf_free(&c->text);
        buf_free(&c->reasoning);
        buf_free(&c->content);
        for (size_t i = 0; i < c->tool_call_count; i++) {
                buf_free(&c->tool_calls[i].name);
                buf_free(&c->tool_calls[i].arguments);
        }
        free(c->tool_calls);
        free_records(c->records, c->record_count);
        free_records(c->prompt_records, c->prompt_record_count);
}

/* The exchange has ended: nothing refers to the request any more. */
void request_gone(struct request *r) {
        for (size_t i = 0; i < r->child_count; i++)
                child_free(&r->children[i]);
        free(r->children);
        if (r->has_parsed)
                openai_request_done(&r->parsed);
        r->api->in_flight--;
        free(r);
}

/* Stop computing for it; the exchange's end frees it. */
static void request_finish(struct request *r) {
        for (size_t i = 0; i < r->child_count; i++) {
                if (r->children[i].id)
                        engine_abort(r->api->options.engine, r->children[i].id, true);
                r->children[i].id = 0;
        }
        r->running = 0;
        r->finished = true;
}

static void refuse(struct request *r, const struct openai_error *err) {
        request_finish(r);
        api_fail(r->api, r->exchange, err);
}

static void refuse_with(struct request *r, int status, const char *type, const char *text) {
        struct openai_error err;

        openai_fail(&err, status, type, NULL, "%s", text);
        refuse(r, &err);
}

/* ---- text of a child -------------------------------------------------------------------------------------------------------- */

static size_t longest_stop(const struct request *r) {
        size_t most = 0;

        for (uint32_t i = 0; i < r->parsed.sampling.stop_count; i++)
                most = r->parsed.sampling.stop[i].len > most ? r->parsed.sampling.stop[i].len : most;
        return most;
}

/* The earliest stop string at or after c->check_from: cuts the text there and ends the child. */
static void find_stop(struct request *r, struct child *c) {
        const struct sampling_params *s = &r->parsed.sampling;
        size_t at = c->text.len, most = longest_stop(r);
        const struct slice *found = NULL;

        for (uint32_t i = 0; i < s->stop_count; i++) {
                size_t here = slice_find_slice(buf_slice(&c->text), s->stop[i], c->check_from);

                if (here < at) {
                        at = here;
                        found = &s->stop[i];
                }
        }
        if (!found) {
                /* The next one may begin in the last bytes of what is here. */
                size_t safe = c->text.len + 1 > most ? c->text.len + 1 - most : 0;

                if (safe > c->check_from)
                        c->check_from = safe;
                return;
        }
        c->text.len = at + (s->include_stop ? found->len : 0);
        c->stop_string = *found;
        c->finish = FINISH_STOP;
}

/* How much of the text may be told now: all at the end, else not what may turn out to be a stop string. */
static size_t tellable(const struct request *r, const struct child *c) {
        size_t most = longest_stop(r), end = c->text.len;

        if (c->finish != FINISH_NONE || most < 2)
                return end;
        end = end > most - 1 ? end - (most - 1) : 0;
        while (end > c->told && ((uint8_t)c->text.ptr[end] & 0xc0) == 0x80) /* no half character */
                end--;
        return end > c->told ? end : c->told;
}

/* ---- records ------------------------------------------------------------------------------------------------------------------ */

static bool copy_record(struct record *to, const struct engine_token *t) {
        *to = (struct record){.id = t->id, .logprob = t->logprob, .rank = t->rank, .top_count = t->top_count};
        if (!t->top_count)
                return true;
        to->top = malloc(t->top_count * sizeof(*to->top));
        if (!to->top) {
                to->top_count = 0;
                return false;
        }
        memcpy(to->top, t->top, t->top_count * sizeof(*to->top));
        return true;
}

static bool add_record(struct child *c, const struct engine_token *t) {
        if (c->record_count == c->record_capacity) {
                size_t capacity = c->record_capacity ? c->record_capacity * 2 : 32;
                struct record *grown = realloc(c->records, capacity * sizeof(*grown));

                if (!grown)
                        return false;
                c->records = grown;
                c->record_capacity = capacity;
        }
        return copy_record(&c->records[c->record_count++], t);
}

static bool take_prompt_records(struct child *c, const struct engine_output *o) {
        if (!o->prompt_token_count || c->prompt_records)
                return true;
        c->prompt_records = calloc(o->prompt_token_count, sizeof(*c->prompt_records));
        if (!c->prompt_records)
                return false;
        for (uint32_t i = 0; i < o->prompt_token_count; i++)
                if (!copy_record(&c->prompt_records[c->prompt_record_count++], &o->prompt_tokens[i]))
                        return false;
        return true;
}

/* ---- pieces: reasoning, content, tool calls --------------------------------------------------------------------------------- */

static bool note_piece(struct child *c, const struct output_piece *p) {
        switch (p->part) {
        case OUTPUT_REASONING:
                buf_add(&c->reasoning, p->text);
                return buf_ok(&c->reasoning);
        case OUTPUT_CONTENT:
                buf_add(&c->content, p->text);
                return buf_ok(&c->content);
        case OUTPUT_TOOL_NAME: {
                struct tool_call *grown = realloc(c->tool_calls, (p->tool_index + 1) * sizeof(*grown));

                if (!grown)
                        return false;
                c->tool_calls = grown;
                memset(&grown[c->tool_call_count], 0, (p->tool_index + 1 - c->tool_call_count) * sizeof(*grown));
                c->tool_call_count = p->tool_index + 1;
                memcpy(grown[p->tool_index].id, "chatcmpl-tool-", 14);
                rng_hex(grown[p->tool_index].id + 14, 8);
                buf_add(&grown[p->tool_index].name, p->text);
                return buf_ok(&grown[p->tool_index].name);
        }
        default:
                if (p->tool_index < c->tool_call_count)
                        buf_add(&c->tool_calls[p->tool_index].arguments, p->text);
                return true;
        }
}

/* What the new text of a chat choice is made of, told chunk by chunk. The last chunk carries the reason to end. */
static bool tell_pieces(
    struct request *r, struct child *c, struct slice text, bool last, bool closes, struct buf *out) {
        struct piece held = {OUTPUT_CONTENT, 0, SLICE_NONE};
        struct buf held_text = {0};
        bool has_held = false, told = false, ok = output_parser_feed(c->parser, text, last) >= 0;
        struct output_piece p;
        int n;

        while (ok && (n = output_parser_next(c->parser, &p)) == 1) {
                ok = note_piece(c, &p);
                if (!r->parsed.stream || (p.part == OUTPUT_REASONING && !r->parsed.include_reasoning))
                        continue;
                if (has_held) {
                        answer_chunk(r, c, &held, false, false, out);
                        told = true;
                }
                buf_reset(&held_text); /* the parser's text lives until its next call only */
                buf_add(&held_text, p.text);
                held = (struct piece){p.part, p.tool_index, buf_slice(&held_text)};
                has_held = true;
        }
        if (ok && r->parsed.stream &&
            (has_held || last || (!told && c->record_told < c->record_count && r->parsed.return_token_ids))) {
                if (!has_held)
                        held = (struct piece){OUTPUT_CONTENT, 0, SLICE_LIT("")};
                answer_chunk(r, c, &held, last, closes, out);
        }
        ok &= buf_ok(&held_text);
        buf_free(&held_text);
        return ok;
}

/* ---- streaming ---------------------------------------------------------------------------------------------------------------- */

static void begin_stream(struct request *r) {
        static const struct http_field type = {
            SLICE_LIT("Content-Type"), SLICE_LIT("text/event-stream; charset=utf-8")};
        struct http_field fields[2] = {type};
        size_t count = 1;
        const char *id = strchr(r->id, '-');

        if (r->api->options.request_id_headers && id)
                fields[count++] = (struct http_field){SLICE_LIT("X-Request-Id"), slice_str(id + 1)};
        r->started = true;
        r->api->http_requests[2]++;
        http_begin(r->exchange, 200, (struct http_fields){fields, count}, HTTP_LENGTH_CHUNKED);
}

static void end_stream(struct request *r, struct buf *out) {
        struct slice part;

        if (r->parsed.include_usage || r->api->options.force_include_usage)
                answer_usage_chunk(r, out);
        buf_add_str(out, "data: [DONE]\n\n");
        part = buf_slice(out);
        http_send(r->exchange, &part, 1);
        http_finish(r->exchange);
        request_finish(r);
}

static void break_stream(struct request *r, const char *text) {
        struct buf out = {0};
        struct openai_error err;
        struct slice part;

        openai_fail(&err, 500, "InternalServerError", NULL, "%s", text);
        buf_add_str(&out, "data: ");
        openai_write_error(&out, &err);
        buf_add_str(&out, "\n\ndata: [DONE]\n\n");
        part = buf_slice(&out);
        http_send(r->exchange, &part, 1);
        http_finish(r->exchange);
        buf_free(&out);
        request_finish(r);
}

static void finish_whole(struct request *r) {
        struct buf out = {0};

        answer_whole(r, &out);
        if (buf_ok(&out))
                api_respond(r->api, r->exchange, 200, "application/json", buf_slice(&out));
        else
                refuse_with(r, 500, "InternalServerError", "out of memory");
        buf_free(&out);
        request_finish(r);
}

/* ---- outputs of the engine ---------------------------------------------------------------------------------------------------- */

static bool take_tokens(struct request *r, struct child *c, const struct engine_output *o) {
        const struct sampling_params *s = &r->parsed.sampling;

        for (uint32_t i = 0; i < o->token_count && c->finish == FINISH_NONE; i++) {
                /* EOS and stop tokens are part of the ids, not of the text. */
                bool silent = o->finish == FINISH_STOP && i + 1 == o->token_count && !s->include_stop;

                if (!add_record(c, &o->tokens[i]))
                        return false;
                if (!silent)
                        detokenizer_push(&c->detokenizer, o->tokens[i].id, &c->text);
                if (i + 1 == o->token_count && o->finish != FINISH_NONE) {
                        detokenizer_flush(&c->detokenizer, &c->text);
                        c->finish = o->finish;
                        c->stop_id = o->stop_id;
                }
                if (c->record_count <= s->min_tokens)
                        c->check_from = c->text.len; /* stop strings count from here on */
                else if (s->stop_count)
                        find_stop(r, c);
        }
        if (o->finish != FINISH_NONE && c->finish == FINISH_NONE)
                c->finish = o->finish;
        return buf_ok(&c->text);
}

/* Tell what is new of a streamed choice. */
static bool tell(struct request *r, struct child *c, struct buf *out) {
        bool last = c->finish != FINISH_NONE, closes = last && r->running == 1;
        size_t end = tellable(r, c);
        struct slice text = slice_sub(buf_slice(&c->text), c->told, end);
        struct piece piece = {OUTPUT_CONTENT, 0, text.len ? text : SLICE_LIT("")};

        c->told = end;
        if (c->parser)
                return tell_pieces(r, c, text, last, closes, out);
        if (r->parsed.stream)
                answer_chunk(r, c, &piece, last, closes, out);
        return true;
}

void api_output(struct request *r, struct child *c, const struct engine_output *o) {
        struct buf out = {0};
        struct slice part;
        bool ok;

        if (r->finished || !c->id)
                return;
        if (o->finish == FINISH_ERROR) {
                if (r->started)
                        break_stream(r, o->error ? o->error : "Internal server error");
                else
                        refuse_with(r, 500, "InternalServerError", o->error ? o->error : "Internal server error");
                return;
        }
        c->cached = o->cached_tokens;
        ok = take_prompt_records(c, o) && take_tokens(r, c, o);
        if (ok && r->parsed.stream) {
                if (!r->started) {
                        begin_stream(r);
                        for (size_t i = 0; r->parsed.kind == OPENAI_CHAT && i < r->child_count; i++)
                                answer_role_chunk(r, &r->children[i], &out);
                }
        }
        if (ok)
                ok = tell(r, c, &out);
        if (!ok || !buf_ok(&out)) {
                buf_free(&out);
                if (r->started)
                        break_stream(r, "out of memory");
                else
                        refuse_with(r, 500, "InternalServerError", "out of memory");
                return;
        }
        if (c->finish != FINISH_NONE) {
                if (o->finish == FINISH_NONE) /* a stop string: the engine does not know yet */
                        engine_abort(r->api->options.engine, c->id, true);
                c->id = 0;
                r->running--;
        }
        if (r->running == 0) {
                if (r->started)
                        end_stream(r, &out);
                else
                        finish_whole(r);
        } else if (out.len) {
                part = buf_slice(&out);
                http_send(r->exchange, &part, 1);
        }
        buf_free(&out);
}

/* ---- prompts ------------------------------------------------------------------------------------------------------------------ */

static void too_long(struct request *r, size_t count, bool at_least) {
        struct openai_error err;

        openai_fail(&err, 400, "BadRequestError", "input_tokens",
            "This model's maximum context length is %u tokens. However, your prompt contains %s%zu input tokens, which "
            "exceeds this "
            "limit even without any output tokens. Please reduce the length of the input prompt. "
            "(parameter=input_tokens, value=%zu)",
            r->api->options.defaults.max_model_len, at_least ? "at least " : "", count, count);
        refuse(r, &err);
}

/* As ids, truncated from the left when asked. Returns false when the request was refused. */
static bool tokenize(struct request *r, struct slice text, bool special, struct openai_prompt *p) {
        struct api *a = r->api;
        uint32_t most = a->options.defaults.max_model_len;
        struct token_list list;
        int result = tokenizer_encode(a->options.tokenizer, text, special ? TOKENIZE_ADD_SPECIAL : TOKENIZE_PLAIN,
            http_exchange_arena(r->exchange), &list);

        if (result == -E2BIG) {
                too_long(r, most + 1, true);
                return false;
        }
        if (result < 0) {
                refuse_with(r, 500, "InternalServerError", "out of memory");
                return false;
        }
        *p = (struct openai_prompt){.is_ids = true, .ids = list.ids, .count = list.count};
        if (list.count > most && !r->parsed.truncate_prompt_tokens) {
                too_long(r, most + 1, true);
                return false;
        }
        return true;
}

static bool check_prompt(struct request *r, struct openai_prompt *p, bool of_text) {
        uint32_t most = r->api->options.defaults.max_model_len, max_tokens;
        int64_t keep = r->parsed.truncate_prompt_tokens;
        struct openai_error err;

        if (keep == -1)
                keep = most;
        if (keep > 0 && (size_t)keep < p->count) {
                p->ids += p->count - (size_t)keep;
                p->count = (size_t)keep;
        }
        if (p->count == 0) {
                refuse_with(r, 400, "BadRequestError", "The decoder prompt cannot be empty");
                return false;
        }
        if (openai_fit_tokens(&r->parsed, p->count, of_text, most, &max_tokens, &err) == 0)
                return true;
        refuse(r, &err);
        return false;
}

static bool render_chat(struct request *r, struct openai_prompt *p, bool *ret_in_reasoning) {
        struct buf text = {0};
        struct error e = {0};
        struct slice rendered;
        bool ok;

        if (r->api->options.chat.family == CHAT_NONE) {
                refuse_with(r, 400, "BadRequestError",
                    "As of transformers v4.44, default chat template is no longer allowed, so you must "
                    "provide a chat template if the tokenizer does not define one.");
                return false;
        }
        if (chat_render(&r->api->options.chat, r->api->options.tokenizer, &r->parsed, &text, &e) < 0) {
                refuse_with(r, 400, "BadRequestError", e.text);
                buf_free(&text);
                return false;
        }
        rendered = slice_trim(buf_slice(&text));
        *ret_in_reasoning = slice_ends(rendered, SLICE_LIT("<think>"));
        ok = tokenize(r, buf_slice(&text), r->parsed.add_special, p);
        buf_free(&text);
        return ok && check_prompt(r, p, true);
}

/* The request's prompts as ids, in the exchange's arena. */
static struct openai_prompt *make_prompts(struct request *r, size_t *ret_count, bool *ret_in_reasoning) {
        bool chat = r->parsed.kind == OPENAI_CHAT;
        size_t count = chat ? 1 : r->parsed.prompt_count;
        struct openai_prompt *list = arena_array(http_exchange_arena(r->exchange), count, sizeof(*list));

        if (!list) {
                refuse_with(r, 500, "InternalServerError", "out of memory");
                return NULL;
        }
        if (chat)
                return render_chat(r, &list[0], ret_in_reasoning) ? (*ret_count = 1, list) : NULL;
        for (size_t i = 0; i < count; i++) {
                const struct openai_prompt *from = &r->parsed.prompts[i];

                list[i] = *from;
                if (!from->is_ids && !tokenize(r, from->text, r->parsed.add_special, &list[i]))
                        return NULL;
                if (!check_prompt(r, &list[i], !from->is_ids))
                        return NULL;
        }
        *ret_count = count;
        return list;
}

/* ---- submission ----------------------------------------------------------------------------------------------------------------- */

/* bad_words as the engine takes them: each word as it stands and with a space in front. */
static const uint32_t *bad_sequences(struct request *r) {
        const struct sampling_params *s = &r->parsed.sampling;
        struct arena *arena = http_exchange_arena(r->exchange);
        struct buf ids = {0};
        uint32_t zero = 0;
        const uint32_t *copy;

        if (!s->bad_word_count)
                return NULL;
        for (uint32_t i = 0; i < 2 * s->bad_word_count; i++) {
                const char *word = arena_printf(arena, "%s%.*s", i % 2 ? " " : "", SLICE_ARG(s->bad_words[i / 2]));
                struct token_list list;

                if (!word ||
                    tokenizer_encode(r->api->options.tokenizer, slice_str(word), TOKENIZE_PLAIN, arena, &list) < 0 ||
                    !list.count)
                        continue;
                buf_append(&ids, &(uint32_t){(uint32_t)list.count}, sizeof(uint32_t));
                buf_append(&ids, list.ids, list.count * sizeof(uint32_t));
        }
        buf_append(&ids, &zero, sizeof(zero));
        copy = (const uint32_t *)arena_copy(arena, buf_slice(&ids)).ptr;
        buf_free(&ids);
        return copy;
}

static bool make_child(
    struct request *r, struct child *c, const struct openai_prompt *prompt, uint32_t index, bool in_reasoning) {
        const struct api_options *o = &r->api->options;
        struct output_parser_options parser = {.reasoning = o->reasoning,
            .tools = r->parsed.tools && r->parsed.tool_choice != TOOL_CHOICE_NONE ? o->tools : TOOLS_NONE,
            .starts_in_reasoning = in_reasoning,
            .thinking = r->parsed.thinking == 1 || r->parsed.enable_thinking == 1};

        *c = (struct child){.request = r, .index = index, .prompt = prompt, .stop_id = -1};
        openai_fit_tokens(
            &r->parsed, prompt->count, false, o->defaults.max_model_len, &c->max_tokens, &(struct openai_error){0});
        detokenizer_init(&c->detokenizer, o->tokenizer, r->parsed.skip_special);
        if (r->parsed.kind == OPENAI_CHAT && (parser.reasoning != REASONING_NONE || parser.tools != TOOLS_NONE)) {
                c->parser = output_parser_new(&parser);
                if (!c->parser)
                        return false;
        }
        if (r->parsed.echo && r->parsed.kind == OPENAI_COMPLETION)
                tokenizer_decode(o->tokenizer, prompt->ids, prompt->count, true, &c->text);
        else if (r->parsed.echo && !c->parser) {
                const struct openai_message *last = &r->parsed.messages[r->parsed.message_count - 1];

                /* Chat's echo: the answer begins with the message that it goes on with. */
                if (slice_is(last->role, "assistant"))
                        buf_add(&c->text, last->content);
        }
        c->check_from = c->text.len;
        return buf_ok(&c->text);
}

static int submit(struct request *r, struct child *c, const uint32_t *bad, uint32_t sibling) {
        const struct api_options *o = &r->api->options;
        struct engine_request q = {.prompt = c->prompt->ids,
            .prompt_count = (uint32_t)c->prompt->count,
            .sampling = r->parsed.sampling,
            .bad_sequences = bad,
            .eos = o->eos,
            .eos_count = o->eos_count,
            .cache_salt = r->parsed.cache_salt,
            .priority = r->parsed.priority,
            .arrival_ns = r->arrival_ns,
            .user = c};
        q.sampling.max_tokens = c->max_tokens;
        if (q.sampling.has_seed)
                q.sampling.seed += sibling;
        return engine_submit(o->engine, &q, &c->id);
}

static void submit_all(struct request *r) {
        const uint32_t *bad = bad_sequences(r);

        for (size_t i = 0; i < r->child_count; i++) {
                int result = submit(r, &r->children[i], bad, (uint32_t)i % r->parsed.n);

                if (result == 0) {
                        r->running++;
                        continue;
                }
                r->children[i].id = 0;
                if (result == -EAGAIN)
                        refuse_with(r, 503, "ServiceUnavailableError", "The engine's queue is full: try again later");
                else if (result == -ESHUTDOWN)
                        refuse_with(r, 503, "ServiceUnavailableError", "The server is shutting down");
                else
                        refuse_with(r, 500, "InternalServerError", "out of memory");
                return;
        }
}

static void start(struct request *r) {
        size_t prompts = 0;
        bool in_reasoning = false;
        struct openai_prompt *list = make_prompts(r, &prompts, &in_reasoning);

        if (!list)
                return;
        if (prompts * r->parsed.n > CHILDREN_MAX) {
                refuse_with(r, 400, "BadRequestError", "prompts x n is more than one request may ask for");
                return;
        }
        r->children = calloc(prompts * r->parsed.n, sizeof(*r->children));
        if (!r->children) {
                refuse_with(r, 500, "InternalServerError", "out of memory");
                return;
        }
        for (size_t i = 0; i < prompts; i++) {
                r->prompt_tokens += (uint32_t)list[i].count;
                for (uint32_t k = 0; k < r->parsed.n; k++)
                        if (!make_child(r, &r->children[r->child_count++], &list[i], (uint32_t)(i * r->parsed.n + k),
                                in_reasoning)) {
                                refuse_with(r, 500, "InternalServerError", "out of memory");
                                return;
                        }
        }
        submit_all(r);
}

/* ---- arrival ---------------------------------------------------------------------------------------------------------------------- */

static bool check_model(struct request *r) {
        const struct api_options *o = &r->api->options;
        struct buf names = {0};
        struct openai_error err;

        r->model = slice_str(o->served_names[0]);
        if (!r->parsed.model.len)
                return true;
        for (size_t i = 0; i < o->served_count; i++) {
                if (slice_is(r->parsed.model, o->served_names[i]))
                        return true;
                buf_printf(&names, "%s%s", i ? ", " : "", o->served_names[i]);
        }
        openai_fail(&err, 404, "NotFoundError", "model", "The model `%.*s` does not exist. Valid aliases: %s.",
            SLICE_ARG(slice_sub(r->parsed.model, 0, 200)), buf_cstr(&names));
        buf_free(&names);
        refuse(r, &err);
        return false;
}

/* X-Request-Id beats the body's request_id; without both a fresh one. */
static void choose_id(struct request *r) {
        const char *prefix = r->parsed.kind == OPENAI_CHAT ? "chatcmpl" : "cmpl";
        struct slice given = http_field_value(http_exchange_request(r->exchange)->fields, "X-Request-Id");
        char fresh[20];

        if (!given.len)
                given = r->parsed.request_id;
        if (!given.len) {
                rng_hex(fresh, 8);
                given = slice_str(fresh);
        }
        snprintf(r->id, sizeof(r->id), "%s-%.*s", prefix, SLICE_ARG(slice_sub(given, 0, 140)));
}

static void on_end(struct http_exchange *x, enum http_end end, void *user) {
        (void)x;
        (void)end;
        request_gone(user);
}

void api_generate(struct api *a, struct http_exchange *x, enum openai_kind kind, struct slice body) {
        static const struct http_exchange_callbacks callbacks = {.on_end = on_end};
        struct request *r = calloc(1, sizeof(*r));
        struct openai_error err;
        int result;

        if (!r) {
                openai_fail(&err, 500, "InternalServerError", NULL, "out of memory");
                api_fail(a, x, &err);
                return;
        }
        *r = (struct request){
            .api = a, .exchange = x, .created = (int64_t)(clock_wall_ns() / NS_PER_S), .arrival_ns = clock_mono_ns()};
        r->parsed.kind = kind;
        a->in_flight++;
        http_exchange_watch(x, &callbacks, r);
        result = openai_parse(kind, body, &a->options.defaults, http_exchange_arena(x), &r->parsed, &err);
        if (result == -ENOMEM)
                openai_fail(&err, 500, "InternalServerError", NULL, "out of memory");
        if (result < 0) {
                refuse(r, &err);
                return;
        }
        r->has_parsed = true;
        choose_id(r);
        if (check_model(r))
                start(r);
}
