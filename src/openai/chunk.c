/* chunk.c - the events of a stream; members in vLLM's order. */
#include "openai/write.h"

static void write_usage(struct json_writer *w, const struct openai_chunk *c, bool chat) {
        bool last = c->what == OPENAI_CHUNK_USAGE;

        json_key(w, "usage");
        json_open(w, '{');
        json_key(w, "prompt_tokens");
        json_u64(w, c->usage->prompt);
        json_key(w, "total_tokens");
        json_u64(w, c->usage->prompt + c->usage->completion);
        json_key(w, "completion_tokens");
        json_u64(w, c->usage->completion);
        if (last && c->usage->has_cached) {
                json_key(w, "prompt_tokens_details");
                json_open(w, '{');
                json_key(w, "cached_tokens");
                json_u64(w, c->usage->cached);
                if (chat) {
                        json_key(w, "created_cache_tokens");
                        json_u64(w, 0);
                }
                json_close(w, '}');
        }
        if (chat && !last) {
                json_key(w, "completion_tokens_details");
                json_null(w);
        }
        json_close(w, '}');
}

static void write_delta(struct json_writer *w, const struct openai_chunk *c) {
        json_key(w, "delta");
        json_open(w, '{');
        if (c->what == OPENAI_CHUNK_ROLE) {
                json_key(w, "role");
                json_string(w, c->role.len ? c->role : SLICE_LIT("assistant"));
                json_key(w, "content");
                json_str(w, "");
        } else if (c->text.ptr) {
                json_key(w, "content");
                json_string(w, c->text);
        }
        if (c->reasoning.ptr) {
                json_key(w, "reasoning");
                json_string(w, c->reasoning);
        }
        if (c->tool_calls.len)
                write_items(w, "tool_calls", c->tool_calls);
        json_close(w, '}');
}

static void write_chat_choice(struct json_writer *w, const struct openai_chunk *c) {
        json_open(w, '{');
        json_key(w, "index");
        json_u64(w, c->index);
        write_delta(w, c);
        write_finish(w, c->logprobs, c->finish_reason, c->finish_reason ? &c->stop : NULL);
        if (c->what == OPENAI_CHUNK_DELTA) {
                json_key(w, "token_ids");
                write_ids(w, c->token_ids);
        }
        json_close(w, '}');
}

static void write_completion_choice(struct json_writer *w, const struct openai_chunk *c) {
        json_open(w, '{');
        json_key(w, "index");
        json_u64(w, c->index);
        json_key(w, "text");
        json_string(w, c->text);
        write_finish(w, c->logprobs, c->finish_reason, &c->stop);
        json_key(w, "prompt_token_ids");
        write_ids(w, c->prompt_ids);
        json_key(w, "token_ids");
        write_ids(w, c->token_ids);
        json_close(w, '}');
}

void openai_write_chunk(struct buf *b, const struct openai_answer *a, const struct openai_chunk *c) {
        struct json_writer w = {.out = b};
        bool chat = a->kind == OPENAI_CHAT;

        buf_add_str(b, "data: ");
        write_opening(&w, a, true);
        if (c->what != OPENAI_CHUNK_USAGE) {
                if (chat)
                        write_chat_choice(&w, c);
                else
                        write_completion_choice(&w, c);
        }
        json_close(&w, ']');
        if (c->usage)
                write_usage(&w, c, chat);
        if (c->fingerprint) {
                json_key(&w, "system_fingerprint");
                json_string(&w, a->fingerprint);
        }
        if (c->what == OPENAI_CHUNK_ROLE) {
                json_key(&w, "prompt_token_ids");
                write_ids(&w, c->prompt_ids);
                json_key(&w, "prompt_text");
                json_null(&w);
        }
        json_close(&w, '}');
        buf_add_str(b, "\n\n");
}

void openai_write_tool_delta(
    struct buf *b, unsigned index, struct slice id, struct slice name, struct slice arguments_fragment) {
        struct json_writer w = {.out = b};

        if (b->len)
                buf_add_char(b, ',');
        json_open(&w, '{');
        if (name.ptr) {
                json_key(&w, "id");
                json_string(&w, id);
                json_key(&w, "type");
                json_str(&w, "function");
        }
        json_key(&w, "index");
        json_u64(&w, index);
        json_key(&w, "function");
        json_open(&w, '{');
        if (name.ptr) {
                json_key(&w, "name");
                json_string(&w, name);
        }
        json_key(&w, "arguments");
        json_string(&w, arguments_fragment);
        json_close(&w, '}');
        json_close(&w, '}');
}

void openai_write_error_event(struct buf *b, const struct openai_error *err) {
        buf_add_str(b, "data: ");
        openai_write_error(b, err);
        buf_add_str(b, "\n\n");
}
