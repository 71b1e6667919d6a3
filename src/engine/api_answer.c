/* api_answer.c - the JSON of answers and chunks, member for member in vLLM 0.32's order. */
#include "engine/api_internal.h"
#include <math.h>
#include <stdio.h>

static const char *const finish_names[] = {
    [FINISH_STOP] = "stop", [FINISH_LENGTH] = "length", [FINISH_ABORT] = "abort", [FINISH_ERROR] = "error"};

uint32_t request_generated(const struct request *r) {
        size_t n = 0;

        for (size_t i = 0; i < r->child_count; i++)
                n += r->children[i].record_count;
        return (uint32_t)n;
}

/* ---- small members -------------------------------------------------------------------------------------------------------- */

static void key_null(struct json_writer *w, const char *key) {
        json_key(w, key);
        json_null(w);
}

static void key_string(struct json_writer *w, const char *key, struct slice s) {
        json_key(w, key);
        json_string(w, s);
}

static void write_ids(struct json_writer *w, const char *key, const uint32_t *ids, size_t count) {
        json_key(w, key);
        json_open(w, '[');
        for (size_t i = 0; i < count; i++)
                json_u64(w, ids[i]);
        json_close(w, ']');
}

static void write_output_ids(struct json_writer *w, const struct child *c, size_t from, size_t to) {
        json_key(w, "token_ids");
        json_open(w, '[');
        for (size_t i = from; i < to; i++)
                json_u64(w, c->records[i].id);
        json_close(w, ']');
}

static const char *finish_name(const struct child *c) {
        bool tools = c->parser && output_parser_saw_tools(c->parser) && c->finish == FINISH_STOP;

        return tools ? "tool_calls" : finish_names[c->finish];
}

static void write_stop_reason(struct json_writer *w, const struct child *c) {
        json_key(w, "stop_reason");
        if (c->stop_string.ptr)
                json_string(w, c->stop_string);
        else if (c->finish == FINISH_STOP && c->stop_id >= 0)
                json_i64(w, c->stop_id);
        else
                json_null(w);
}

static float shown_logprob(float v) {
        return isinf(v) ? -9999.0f : v;
}

/* A token's text on its own; with return_tokens_as_token_ids its number. */
static void token_text(const struct request *r, uint32_t id, struct buf *out) {
        if (r->parsed.return_tokens_as_ids)
                buf_printf(out, "token_id:%u", id);
        else
                tokenizer_decode(r->api->options.tokenizer, &id, 1, false, out);
}

static void write_token(struct json_writer *w, const struct request *r, uint32_t id) {
        struct buf text = {0};

        token_text(r, id, &text);
        json_string(w, buf_slice(&text));
        buf_free(&text);
}

/* ---- log-probabilities ------------------------------------------------------------------------------------------------------ */

static void write_chat_entry(struct json_writer *w, const struct request *r, uint32_t id, float logprob) {
        struct slice bytes = tokenizer_bytes(r->api->options.tokenizer, id);

        json_key(w, "token");
        write_token(w, r, id);
        json_key(w, "logprob");
        json_double(w, shown_logprob(logprob));
        json_key(w, "bytes");
        json_open(w, '[');
        for (size_t i = 0; i < bytes.len; i++)
                json_u64(w, (uint8_t)bytes.ptr[i]);
        json_close(w, ']');
}

static void write_chat_logprobs(
    struct json_writer *w, const struct request *r, const struct child *c, size_t from, size_t to) {
        uint32_t wanted = (uint32_t)r->parsed.sampling.logprobs;

        json_open(w, '{');
        json_key(w, "content");
        json_open(w, '[');
        for (size_t i = from; i < to; i++) {
                const struct record *t = &c->records[i];

                json_open(w, '{');
                write_chat_entry(w, r, t->id, t->logprob);
                json_key(w, "top_logprobs");
                json_open(w, '[');
                for (uint32_t k = 0; k < t->top_count && k < wanted; k++) {
                        json_open(w, '{');
                        write_chat_entry(w, r, t->top[k].id, t->top[k].logprob);
                        json_close(w, '}');
                }
                json_close(w, ']');
                json_close(w, '}');
        }
        json_close(w, ']');
        json_close(w, '}');
}

/* The map of alternatives: the token itself first when it is not among the best. */
static void write_top_map(struct json_writer *w, const struct request *r, const struct record *t) {
        bool listed = false;

        json_open(w, '{');
        for (uint32_t k = 0; k < t->top_count; k++)
                listed |= t->top[k].id == t->id;
        if (!listed) {
                struct buf text = {0};

                token_text(r, t->id, &text);
                json_key_slice(w, buf_slice(&text));
                json_double(w, shown_logprob(t->logprob));
                buf_free(&text);
        }
        for (uint32_t k = 0; k < t->top_count; k++) {
                struct buf text = {0};

                token_text(r, t->top[k].id, &text);
                json_key_slice(w, buf_slice(&text));
                json_double(w, shown_logprob(t->top[k].logprob));
                buf_free(&text);
        }
        json_close(w, '}');
}

/* Characters of a token's text: offsets count them. */
static size_t token_length(const struct request *r, uint32_t id) {
        struct buf text = {0};
        size_t n = 0;

        token_text(r, id, &text);
        for (size_t i = 0; i < text.len; i++)
                n += ((uint8_t)text.ptr[i] & 0xc0) != 0x80;
        buf_free(&text);
        return n;
}

static void write_completion_logprobs(
    struct json_writer *w, const struct request *r, struct child *c, size_t from, size_t to, bool with_prompt) {
        size_t prompt = with_prompt ? c->prompt_record_count : 0, count = prompt + to - from;
#define RECORD(i) ((i) < prompt ? &c->prompt_records[i] : &c->records[from + (i)-prompt])

        json_open(w, '{');
        json_key(w, "text_offset");
        json_open(w, '[');
        for (size_t i = 0; i < count; i++) {
                json_u64(w, c->text_offset);
                c->text_offset += token_length(r, RECORD(i)->id);
        }
        json_close(w, ']');
        json_key(w, "token_logprobs");
        json_open(w, '[');
        for (size_t i = 0; i < count; i++)
                if (i == 0 && prompt)
                        json_null(w);
                else
                        json_double(w, shown_logprob(RECORD(i)->logprob));
        json_close(w, ']');
        json_key(w, "tokens");
        json_open(w, '[');
        for (size_t i = 0; i < count; i++)
                write_token(w, r, RECORD(i)->id);
        json_close(w, ']');
        json_key(w, "top_logprobs");
        json_open(w, '[');
        for (size_t i = 0; i < count; i++)
                if (i == 0 && prompt)
                        json_null(w);
                else
                        write_top_map(w, r, RECORD(i));
        json_close(w, ']');
        json_close(w, '}');
#undef RECORD
}

static void write_prompt_entry(
    struct json_writer *w, const struct request *r, uint32_t id, float logprob, uint32_t rank) {
        char key[16];
        struct buf text = {0};

        snprintf(key, sizeof(key), "%u", id);
        json_key(w, key);
        json_open(w, '{');
        json_key(w, "logprob");
        json_double(w, shown_logprob(logprob));
        json_key(w, "rank");
        json_u64(w, rank);
        json_key(w, "decoded_token");
        tokenizer_decode(r->api->options.tokenizer, &id, 1, false, &text);
        json_string(w, buf_slice(&text));
        buf_free(&text);
        json_close(w, '}');
}

static void write_prompt_logprobs(struct json_writer *w, const struct request *r, const struct child *c) {
        json_key(w, "prompt_logprobs");
        if (!c->prompt_record_count) {
                json_null(w);
                return;
        }
        json_open(w, '[');
        json_null(w);
        for (size_t i = 1; i < c->prompt_record_count; i++) {
                const struct record *t = &c->prompt_records[i];

                json_open(w, '{');
                write_prompt_entry(w, r, t->id, t->logprob, t->rank);
                for (uint32_t k = 0; k < t->top_count; k++)
                        if (t->top[k].id != t->id)
                                write_prompt_entry(w, r, t->top[k].id, t->top[k].logprob, t->top[k].rank);
                json_close(w, '}');
        }
        json_close(w, ']');
}

static void write_logprobs(
    struct json_writer *w, const struct request *r, struct child *c, size_t from, size_t to, bool with_prompt) {
        json_key(w, "logprobs");
        if (r->parsed.sampling.logprobs < 0 || (from == to && !with_prompt))
                json_null(w);
        else if (r->parsed.kind == OPENAI_CHAT)
                write_chat_logprobs(w, r, c, from, to);
        else
                write_completion_logprobs(w, r, c, from, to, with_prompt && r->parsed.echo);
}

/* ---- usage ------------------------------------------------------------------------------------------------------------------ */

static void write_cached(struct json_writer *w, const struct request *r) {
        json_key(w, "prompt_tokens_details");
        if (!r->api->options.prompt_tokens_details) {
                json_null(w);
                return;
        }
        json_open(w, '{');
        json_key(w, "audio_tokens");
        json_null(w);
        json_key(w, "cached_tokens");
        json_u64(w, r->child_count ? r->children[0].cached : 0);
        json_close(w, '}');
}

static void write_usage(struct json_writer *w, const struct request *r, uint32_t generated, bool whole) {
        json_key(w, "usage");
        json_open(w, '{');
        json_key(w, "prompt_tokens");
        json_u64(w, r->prompt_tokens);
        json_key(w, "total_tokens");
        json_u64(w, r->prompt_tokens + generated);
        json_key(w, "completion_tokens");
        json_u64(w, generated);
        if (whole || r->api->options.prompt_tokens_details)
                write_cached(w, r);
        if (whole)
                key_null(w, "completion_tokens_details");
        json_close(w, '}');
}

static void open_answer(struct json_writer *w, const struct request *r, const char *object) {
        json_open(w, '{');
        key_string(w, "id", slice_str(r->id));
        json_key(w, "object");
        json_str(w, object);
        json_key(w, "created");
        json_i64(w, r->created);
        key_string(w, "model", r->model);
        json_key(w, "choices");
        json_open(w, '[');
}

/* ---- whole answers ------------------------------------------------------------------------------------------------------------ */

static void write_tool_calls(struct json_writer *w, const struct child *c) {
        json_key(w, "tool_calls");
        json_open(w, '[');
        for (size_t i = 0; i < c->tool_call_count; i++) {
                json_open(w, '{');
                json_key(w, "id");
                json_str(w, c->tool_calls[i].id);
                json_key(w, "type");
                json_str(w, "function");
                json_key(w, "function");
                json_open(w, '{');
                key_string(w, "name", buf_slice(&c->tool_calls[i].name));
                key_string(w, "arguments", buf_slice(&c->tool_calls[i].arguments));
                json_close(w, '}');
                json_close(w, '}');
        }
        json_close(w, ']');
}

static void write_message(struct json_writer *w, const struct request *r, const struct child *c) {
        bool null_content = c->parser && c->content.len == 0 && (c->reasoning.len || c->tool_call_count);

        json_key(w, "message");
        json_open(w, '{');
        json_key(w, "role");
        json_str(w, "assistant");
        json_key(w, "content");
        if (null_content)
                json_null(w);
        else
                json_string(w, c->parser ? buf_slice(&c->content) : buf_slice(&c->text));
        key_null(w, "refusal");
        key_null(w, "annotations");
        key_null(w, "audio");
        key_null(w, "function_call");
        if (c->tool_call_count)
                write_tool_calls(w, c);
        json_key(w, "reasoning");
        if (c->reasoning.len && r->parsed.include_reasoning)
                json_string(w, buf_slice(&c->reasoning));
        else
                json_null(w);
        json_close(w, '}');
}

static void write_choice(struct json_writer *w, struct request *r, struct child *c) {
        bool chat = r->parsed.kind == OPENAI_CHAT;

        json_open(w, '{');
        json_key(w, "index");
        json_u64(w, c->index);
        if (chat)
                write_message(w, r, c);
        else
                key_string(w, "text", buf_slice(&c->text));
        write_logprobs(w, r, c, 0, c->record_count, true);
        json_key(w, "finish_reason");
        json_str(w, finish_name(c));
        write_stop_reason(w, c);
        if (r->parsed.return_token_ids)
                write_output_ids(w, c, 0, c->record_count);
        else
                key_null(w, "token_ids");
        if (!chat) {
                write_prompt_logprobs(w, r, c);
                if (r->parsed.return_token_ids)
                        write_ids(w, "prompt_token_ids", c->prompt->ids, c->prompt->count);
                else
                        key_null(w, "prompt_token_ids");
        }
        key_null(w, "routed_experts");
        json_close(w, '}');
}

void answer_whole(struct request *r, struct buf *out) {
        bool chat = r->parsed.kind == OPENAI_CHAT;
        struct json_writer w = {.out = out};

        open_answer(&w, r, chat ? "chat.completion" : "text_completion");
        for (size_t i = 0; i < r->child_count; i++)
                write_choice(&w, r, &r->children[i]);
        json_close(&w, ']');
        key_null(&w, "service_tier");
        json_key(&w, "system_fingerprint");
        json_str(&w, FINGERPRINT);
        write_usage(&w, r, request_generated(r), true);
        if (chat) {
                write_prompt_logprobs(&w, r, &r->children[0]);
                if (r->parsed.return_token_ids)
                        write_ids(&w, "prompt_token_ids", r->children[0].prompt->ids, r->children[0].prompt->count);
                else
                        key_null(&w, "prompt_token_ids");
                key_null(&w, "prompt_text");
        }
        key_null(&w, "kv_transfer_params");
        key_null(&w, "ec_transfer_params");
        key_null(&w, "metrics");
        json_close(&w, '}');
}

/* ---- chunks -------------------------------------------------------------------------------------------------------------------- */

static void begin_event(struct json_writer *w, struct request *r, struct buf *out) {
        buf_add_str(out, "data: ");
        *w = (struct json_writer){.out = out};
        open_answer(w, r, r->parsed.kind == OPENAI_CHAT ? "chat.completion.chunk" : "text_completion");
}

static void end_event(struct json_writer *w, struct buf *out) {
        json_close(w, '}');
        buf_add_str(out, "\n\n");
}

static void write_running_usage(struct json_writer *w, const struct request *r, const struct child *c) {
        struct request one = *r;

        if (!r->parsed.continuous_usage || !r->parsed.include_usage)
                return;
        one.prompt_tokens = (uint32_t)c->prompt->count;
        write_usage(w, &one, (uint32_t)c->record_count, true);
}

void answer_role_chunk(struct request *r, struct child *c, struct buf *out) {
        struct json_writer w;

        begin_event(&w, r, out);
        json_open(&w, '{');
        json_key(&w, "index");
        json_u64(&w, c->index);
        json_key(&w, "delta");
        json_raw(&w, SLICE_LIT("{\"role\":\"assistant\",\"content\":\"\"}"));
        key_null(&w, "logprobs");
        key_null(&w, "finish_reason");
        json_close(&w, '}');
        json_close(&w, ']');
        if (r->parsed.continuous_usage && r->parsed.include_usage) {
                struct request none = *r;

                write_usage(&w, &none, 0, true);
        }
        if (r->parsed.return_token_ids)
                write_ids(&w, "prompt_token_ids", c->prompt->ids, c->prompt->count);
        else
                key_null(&w, "prompt_token_ids");
        key_null(&w, "prompt_text");
        end_event(&w, out);
}

static void write_delta(struct json_writer *w, struct child *c, const struct piece *p) {
        json_key(w, "delta");
        json_open(w, '{');
        switch (p->part) {
        case OUTPUT_REASONING:
                key_string(w, "reasoning", p->text);
                break;
        case OUTPUT_CONTENT:
                key_string(w, "content", p->text);
                break;
        default:
                json_key(w, "tool_calls");
                json_open(w, '[');
                json_open(w, '{');
                if (p->part == OUTPUT_TOOL_NAME) {
                        json_key(w, "id");
                        json_str(w, p->tool_index < c->tool_call_count ? c->tool_calls[p->tool_index].id : NULL);
                        json_key(w, "type");
                        json_str(w, "function");
                }
                json_key(w, "index");
                json_u64(w, p->tool_index);
                json_key(w, "function");
                json_open(w, '{');
                key_string(w, p->part == OUTPUT_TOOL_NAME ? "name" : "arguments", p->text);
                json_close(w, '}');
                json_close(w, '}');
                json_close(w, ']');
        }
        json_close(w, '}');
}

void answer_chunk(
    struct request *r, struct child *c, const struct piece *piece, bool last, bool closes, struct buf *out) {
        bool chat = r->parsed.kind == OPENAI_CHAT;
        size_t from = c->record_told;
        struct json_writer w;

        c->record_told = c->record_count;
        begin_event(&w, r, out);
        json_open(&w, '{');
        json_key(&w, "index");
        json_u64(&w, c->index);
        if (chat)
                write_delta(&w, c, piece);
        else
                key_string(&w, "text", piece->text);
        write_logprobs(&w, r, c, from, c->record_count, !c->echoed);
        json_key(&w, "finish_reason");
        json_str(&w, last ? finish_name(c) : NULL);
        if (!chat || last)
                write_stop_reason(&w, c);
        if (!chat) {
                if (r->parsed.return_token_ids && !c->echoed)
                        write_ids(&w, "prompt_token_ids", c->prompt->ids, c->prompt->count);
                else
                        key_null(&w, "prompt_token_ids");
        }
        c->echoed = true;
        if (r->parsed.return_token_ids)
                write_output_ids(&w, c, from, c->record_count);
        else
                key_null(&w, "token_ids");
        json_close(&w, '}');
        json_close(&w, ']');
        write_running_usage(&w, r, c);
        if (closes) {
                json_key(&w, "system_fingerprint");
                json_str(&w, FINGERPRINT);
        }
        end_event(&w, out);
}

void answer_usage_chunk(struct request *r, struct buf *out) {
        struct json_writer w;

        begin_event(&w, r, out);
        json_close(&w, ']');
        write_usage(&w, r, request_generated(r), false);
        json_key(&w, "system_fingerprint");
        json_str(&w, FINGERPRINT);
        end_event(&w, out);
}
