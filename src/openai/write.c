/* write.c - answers that are not streamed, and the model list; members in vLLM's order. */
#include "openai/write.h"

void write_ids(struct json_writer *w, struct openai_ids ids) {
        if (!ids.ids) {
                json_null(w);
                return;
        }
        json_open(w, '[');
        for (size_t i = 0; i < ids.count; i++)
                json_u64(w, ids.ids[i]);
        json_close(w, ']');
}

static void write_stop(struct json_writer *w, const struct openai_stop *stop) {
        if (stop->kind == OPENAI_STOP_ID)
                json_i64(w, stop->id);
        else if (stop->kind == OPENAI_STOP_TEXT)
                json_string(w, stop->text);
        else
                json_null(w);
}

void write_raw(struct json_writer *w, struct slice json) {
        if (json.len)
                json_raw(w, json);
        else
                json_null(w);
}

void write_text(struct json_writer *w, struct slice text) {
        if (text.ptr)
                json_string(w, text);
        else
                json_null(w);
}

void write_items(struct json_writer *w, const char *key, struct slice items) {
        json_key(w, key);
        json_raw(w, SLICE_LIT("["));
        buf_add(w->out, items);
        buf_add_char(w->out, ']');
}

static void write_list(struct json_writer *w, const char *key, const struct buf *items) {
        write_items(w, key, buf_slice(items));
        if (!buf_ok(items))
                w->out->failed = true;
}

static void write_logprobs(struct json_writer *w, const struct openai_logprobs *l) {
        if (!l) {
                json_null(w);
                return;
        }
        json_open(w, '{');
        if (l->kind == OPENAI_CHAT)
                write_list(w, "content", &l->list[0]);
        else {
                write_list(w, "text_offset", &l->list[3]);
                write_list(w, "token_logprobs", &l->list[1]);
                write_list(w, "tokens", &l->list[0]);
                write_list(w, "top_logprobs", &l->list[2]);
        }
        json_close(w, '}');
}

void write_finish(
    struct json_writer *w, const struct openai_logprobs *l, const char *reason, const struct openai_stop *stop) {
        json_key(w, "logprobs");
        write_logprobs(w, l);
        json_key(w, "finish_reason");
        json_str(w, reason);
        if (stop) {
                json_key(w, "stop_reason");
                write_stop(w, stop);
        }
}

/* ---- choices -------------------------------------------------------------------------------------------------------------- */

static void null_member(struct json_writer *w, const char *key) {
        json_key(w, key);
        json_null(w);
}

static void write_end(struct json_writer *w, const struct openai_choice *c) {
        write_finish(w, c->logprobs, c->finish_reason, &c->stop);
        json_key(w, "token_ids");
        write_ids(w, c->token_ids);
}

static void write_completion_choice(struct json_writer *w, const struct openai_choice *c) {
        json_open(w, '{');
        json_key(w, "index");
        json_u64(w, c->index);
        json_key(w, "text");
        json_string(w, c->text);
        write_end(w, c);
        json_key(w, "prompt_logprobs");
        write_raw(w, c->prompt_logprobs);
        json_key(w, "prompt_token_ids");
        write_ids(w, c->prompt_ids);
        null_member(w, "routed_experts");
        json_close(w, '}');
}

static void write_message(struct json_writer *w, const struct openai_choice *c) {
        json_key(w, "message");
        json_open(w, '{');
        json_key(w, "role");
        json_string(w, c->role.len ? c->role : SLICE_LIT("assistant"));
        json_key(w, "content");
        write_text(w, c->text);
        null_member(w, "refusal");
        null_member(w, "annotations");
        null_member(w, "audio");
        null_member(w, "function_call");
        if (c->tool_calls.len)
                write_items(w, "tool_calls", c->tool_calls);
        json_key(w, "reasoning");
        write_text(w, c->reasoning);
        json_close(w, '}');
}

static void write_chat_choice(struct json_writer *w, const struct openai_choice *c) {
        json_open(w, '{');
        json_key(w, "index");
        json_u64(w, c->index);
        write_message(w, c);
        write_end(w, c);
        null_member(w, "routed_experts");
        json_close(w, '}');
}

static void write_usage(struct json_writer *w, const struct openai_usage *u, bool chat) {
        json_key(w, "usage");
        json_open(w, '{');
        json_key(w, "prompt_tokens");
        json_u64(w, u->prompt);
        json_key(w, "total_tokens");
        json_u64(w, u->prompt + u->completion);
        json_key(w, "completion_tokens");
        json_u64(w, u->completion);
        json_key(w, "prompt_tokens_details");
        if (u->has_cached) {
                json_open(w, '{');
                json_key(w, "cached_tokens");
                json_u64(w, u->cached);
                json_key(w, "created_cache_tokens");
                if (chat)
                        json_u64(w, 0);
                else
                        json_null(w);
                null_member(w, "multimodal_tokens");
                json_close(w, '}');
        } else
                json_null(w);
        null_member(w, "completion_tokens_details");
        json_close(w, '}');
}

void write_opening(struct json_writer *w, const struct openai_answer *a, bool chunk) {
        const char *chat = chunk ? "chat.completion.chunk" : "chat.completion";

        json_open(w, '{');
        json_key(w, "id");
        json_string(w, a->id);
        json_key(w, "object");
        json_str(w, a->kind == OPENAI_CHAT ? chat : "text_completion");
        json_key(w, "created");
        json_i64(w, a->created);
        json_key(w, "model");
        json_string(w, a->model);
        json_key(w, "choices");
        json_open(w, '[');
}

void openai_write_answer(struct buf *b, const struct openai_answer *a, const struct openai_choice *choices,
    size_t count, const struct openai_usage *usage, struct slice kv_transfer_params) {
        struct json_writer w = {.out = b};
        bool chat = a->kind == OPENAI_CHAT;

        write_opening(&w, a, false);
        for (size_t i = 0; i < count; i++)
                if (chat)
                        write_chat_choice(&w, &choices[i]);
                else
                        write_completion_choice(&w, &choices[i]);
        json_close(&w, ']');
        null_member(&w, "service_tier");
        json_key(&w, "system_fingerprint");
        json_string(&w, a->fingerprint);
        write_usage(&w, usage, chat);
        if (chat) {
                json_key(&w, "prompt_logprobs");
                write_raw(&w, count ? choices[0].prompt_logprobs : SLICE_NONE);
                json_key(&w, "prompt_token_ids");
                write_ids(&w, count ? choices[0].prompt_ids : (struct openai_ids){0});
                null_member(&w, "prompt_text");
        }
        json_key(&w, "kv_transfer_params");
        write_raw(&w, kv_transfer_params);
        null_member(&w, "ec_transfer_params");
        null_member(&w, "metrics");
        json_close(&w, '}');
}

void openai_write_tool_call(struct buf *b, const struct openai_tool_call *call) {
        struct json_writer w = {.out = b};

        if (b->len)
                buf_add_char(b, ',');
        json_open(&w, '{');
        json_key(&w, "id");
        json_string(&w, call->id);
        json_key(&w, "type");
        json_str(&w, "function");
        json_key(&w, "function");
        json_open(&w, '{');
        json_key(&w, "name");
        json_string(&w, call->name);
        json_key(&w, "arguments");
        json_string(&w, call->arguments);
        json_close(&w, '}');
        json_close(&w, '}');
}

/* ---- models --------------------------------------------------------------------------------------------------------------- */

static void write_permission(struct json_writer *w, const struct openai_model_card *card) {
        static const struct {
                const char *name;
                bool value;
        } rights[] = {{"allow_create_engine", false}, {"allow_sampling", true}, {"allow_logprobs", true},
            {"allow_search_indices", false}, {"allow_view", true}, {"allow_fine_tuning", false}};
        struct buf id = {0};

        buf_printf(&id, "modelperm-%.*s", SLICE_ARG(card->id));
        json_key(w, "permission");
        json_open(w, '[');
        json_open(w, '{');
        json_key(w, "id");
        json_string(w, buf_slice(&id));
        json_key(w, "object");
        json_str(w, "model_permission");
        json_key(w, "created");
        json_i64(w, card->created);
        for (size_t i = 0; i < sizeof(rights) / sizeof(*rights); i++) {
                json_key(w, rights[i].name);
                json_bool(w, rights[i].value);
        }
        json_key(w, "organization");
        json_str(w, "*");
        null_member(w, "group");
        json_key(w, "is_blocking");
        json_bool(w, false);
        json_close(w, '}');
        json_close(w, ']');
        if (!buf_ok(&id))
                w->out->failed = true;
        buf_free(&id);
}

void openai_write_models(struct buf *b, const struct openai_model_card *cards, size_t count) {
        struct json_writer w = {.out = b};

        json_open(&w, '{');
        json_key(&w, "object");
        json_str(&w, "list");
        json_key(&w, "data");
        json_open(&w, '[');
        for (size_t i = 0; i < count; i++) {
                json_open(&w, '{');
                json_key(&w, "id");
                json_string(&w, cards[i].id);
                json_key(&w, "object");
                json_str(&w, "model");
                json_key(&w, "created");
                json_i64(&w, cards[i].created);
                json_key(&w, "owned_by");
                json_str(&w, "vllm");
                json_key(&w, "root");
                json_string(&w, cards[i].root);
                null_member(&w, "parent");
                json_key(&w, "max_model_len");
                json_u64(&w, cards[i].max_model_len);
                write_permission(&w, &cards[i]);
                json_close(&w, '}');
        }
        json_close(&w, ']');
        json_close(&w, '}');
}
