/* api_choice.c - one sequence on its way from tokens to what is told: characters, stop strings, reasoning and tool calls. */
#include "base/rng.h"
#include "engine/api_call.h"
#include <errno.h>
#include <stdlib.h>

/* ---- stop strings --------------------------------------------------------------------------------------------------------- */

/* How many bytes at the end of `held` may be the start of a stop string. */
static size_t possible_start(const struct stop_matcher *m) {
        struct slice held = buf_slice(&m->held);
        size_t most = 0;

        for (uint32_t i = 0; i < m->count; i++) {
                struct slice stop = m->stops[i];
                size_t at = held.len >= stop.len ? held.len - (stop.len - 1) : 0;

                for (at = slice_find(held, *stop.ptr, at); at < held.len; at = slice_find(held, *stop.ptr, at + 1)) {
                        size_t len = held.len - at;

                        if (len <= most)
                                break;
                        if (memcmp(held.ptr + at, stop.ptr, len) == 0) {
                                most = len;
                                break;
                        }
                }
        }
        return most;
}

const struct slice *stop_matcher_push(
    struct stop_matcher *m, struct slice text, bool checked, bool include, struct buf *out) {
        const struct slice *found = NULL;
        size_t at = 0, keep;

        if (m->count == 0) {
                buf_add(out, text);
                return NULL;
        }
        buf_add(&m->held, text);
        for (uint32_t i = 0; checked && i < m->count; i++) {
                const struct slice *stop = &m->stops[i];
                size_t from = m->exempt >= stop->len ? m->exempt - stop->len + 1 : 0;
                size_t here = slice_find_slice(buf_slice(&m->held), *stop, from);

                if (here < m->held.len && (!found || here < at)) {
                        found = stop;
                        at = here;
                }
        }
        if (found) {
                buf_append(out, m->held.ptr, at + (include ? found->len : 0));
                m->held.len = 0;
                return found;
        }
        keep = possible_start(m);
        buf_append(out, m->held.ptr, m->held.len - keep);
        buf_consume(&m->held, m->held.len - keep);
        /* What is still held was looked at: a match must end behind it. */
        m->exempt = keep;
        return NULL;
}

void stop_matcher_flush(struct stop_matcher *m, struct buf *out) {
        buf_add(out, buf_slice(&m->held));
        m->held.len = 0;
}

/* ---- reasoning and tool calls --------------------------------------------------------------------------------------------- */

static bool is_streaming(const struct api_choice *c) {
        return c->call->prepared.request.stream;
}

/* Not streamed: the call that was being written is complete. */
static void end_tool_call(struct api_choice *c) {
        if (!c->tool.name.ptr)
                return;
        c->tool.arguments = buf_slice(&c->tool_arguments);
        openai_write_tool_call(&c->tool_calls, &c->tool);
        if (!buf_ok(&c->tool_arguments))
                c->tool_calls.failed = true;
        buf_reset(&c->tool_arguments);
        c->tool.name = SLICE_NONE;
}

static int begin_tool_call(struct api_choice *c, const struct output_piece *piece) {
        char id[14 + 32 + 1] = "chatcmpl-tool-";

        rng_hex(id + 14, 16);
        c->tool_count++;
        if (is_streaming(c)) {
                openai_write_tool_delta(&c->tool_calls, piece->tool_index, slice_str(id), piece->text, SLICE_LIT(""));
                return 0;
        }
        end_tool_call(c);
        c->tool.id = arena_copy(&c->call->arena, slice_str(id));
        c->tool.name = arena_copy(&c->call->arena, piece->text);
        return c->tool.id.ptr && c->tool.name.ptr ? 0 : -ENOMEM;
}

static int take_piece(struct api_choice *c, const struct output_piece *piece) {
        switch (piece->part) {
        case OUTPUT_REASONING:
                if (c->call->prepared.request.include_reasoning)
                        buf_add(&c->reasoning, piece->text);
                return 0;
        case OUTPUT_CONTENT:
                buf_add(&c->text, piece->text);
                return 0;
        case OUTPUT_TOOL_NAME:
                return begin_tool_call(c, piece);
        case OUTPUT_TOOL_ARGUMENTS:
                if (is_streaming(c))
                        openai_write_tool_delta(&c->tool_calls, piece->tool_index, SLICE_NONE, SLICE_NONE, piece->text);
                else
                        buf_add(&c->tool_arguments, piece->text);
                return 0;
        }
        return 0;
}

/* Text that can be told goes through the parser where there is one. */
static int take_text(struct api_choice *c, struct slice text, bool last) {
        struct output_piece piece;
        int r;

        if (!c->parser) {
                buf_add(&c->text, text);
                return 0;
        }
        r = output_parser_feed(c->parser, text, last);
        while (r >= 0 && (r = output_parser_next(c->parser, &piece)) == 1)
                r = take_piece(c, &piece);
        if (r >= 0 && last)
                end_tool_call(c);
        return r < 0 ? r : 0;
}

/* ---- tokens --------------------------------------------------------------------------------------------------------------- */

static void end_with(struct api_choice *c, enum finish_reason reason, int64_t stop_id, const struct slice *stop) {
        c->done = true;
        c->finish = reason;
        if (stop)
                c->stop = (struct openai_stop){.kind = OPENAI_STOP_TEXT, .text = *stop};
        else if (reason == FINISH_RECOMPUTED) /* as vLLM-Ascend tells gateways */
                c->stop = (struct openai_stop){.kind = OPENAI_STOP_TEXT, .text = SLICE_LIT("recomputed")};
        else if (reason == FINISH_STOP && stop_id >= 0)
                c->stop = (struct openai_stop){.kind = OPENAI_STOP_ID, .id = stop_id};
}

/* One token at a time, so that how many come at once (speculation) changes nothing. `silent`: it ended the sequence and is
 * not part of the text. */
static int take_token(struct api_choice *c, const struct engine_token *token, bool silent) {
        const struct openai_request *r = &c->call->prepared.request;
        const struct slice *stop;
        int result = 0;

        c->tokens++;
        if (r->return_token_ids)
                buf_append(&c->ids, &token->id, sizeof(token->id));
        if (r->sampling.logprobs >= 0)
                result = api_logprobs_token(c, token);
        if (!silent && result == 0) {
                buf_reset(&c->characters);
                detokenizer_push(&c->detokenizer, token->id, &c->characters);
                stop = stop_matcher_push(&c->matcher, buf_slice(&c->characters), c->tokens > r->sampling.min_tokens,
                    r->sampling.include_stop, &c->tellable);
                if (stop)
                        end_with(c, FINISH_STOP, -1, stop);
        }
        if (!buf_ok(&c->characters) || !buf_ok(&c->ids) || !buf_ok(&c->matcher.held))
                result = -ENOMEM;
        return result;
}

int api_choice_take(struct api_choice *c, const struct engine_output *output) {
        const struct openai_request *r = &c->call->prepared.request;
        bool only_prompt = openai_is_echo_only(r);
        int result = 0;

        /* Of a prompt that was computed elsewhere counts what was found there. */
        c->cached = c->call->prepared.fetches ? c->call->prepared.remote_cached : output->cached_tokens;
        buf_reset(&c->tellable);
        for (uint32_t i = 0; result == 0 && !c->done && i < output->token_count; i++) {
                bool ends = output->finish == FINISH_STOP && i + 1 == output->token_count;

                if (only_prompt)
                        c->tokens++;
                else
                        result = take_token(c, &output->tokens[i], ends && !r->sampling.include_stop);
        }
        if (result == 0 && output->finish != FINISH_NONE && !c->done) {
                end_with(c, output->finish, output->stop_id, NULL);
                /* Bytes of a character that was not finished are dropped, as vLLM drops them. */
                stop_matcher_flush(&c->matcher, &c->tellable);
        }
        if (result == 0)
                result = take_text(c, buf_slice(&c->tellable), c->done);
        if (!buf_ok(&c->tellable) || !buf_ok(&c->text) || !buf_ok(&c->reasoning) || !buf_ok(&c->tool_calls))
                result = -ENOMEM;
        c->has_news |= output->token_count > 0 || c->done;
        return result;
}

/* ---- life ----------------------------------------------------------------------------------------------------------------- */

int api_choice_init(struct api_choice *c, struct api_call *call, uint32_t index, const struct api_prompt *prompt) {
        const struct api_options *o = &call->api->options;
        const struct openai_request *r = &call->prepared.request;
        struct output_parser_options parser = {.reasoning = o->reasoning,
            .tools = r->tool_choice == TOOL_CHOICE_AUTO ? o->tools : TOOLS_NONE,
            .prompt = call->prepared.reasoning,
            .thinking = r->thinking == 1 || r->enable_thinking == 1};

        *c = (struct api_choice){.call = call,
            .index = index,
            .prompt = prompt,
            .matcher = {.stops = r->sampling.stop, .count = r->sampling.stop_count},
            .logprobs = {.kind = call->kind, .as_ids = r->return_tokens_as_ids}};
        detokenizer_init(&c->detokenizer, o->tokenizer, r->skip_special);
        detokenizer_init(&c->context, o->tokenizer, false);
        if (call->kind == OPENAI_CHAT && (parser.reasoning != REASONING_NONE || parser.tools != TOOLS_NONE)) {
                c->parser = output_parser_new(&parser);
                if (!c->parser)
                        return -ENOMEM;
        }
        if (call->kind == OPENAI_COMPLETION && r->echo)
                buf_add(&c->text, prompt->text);
        else if (!r->stream)
                buf_add(&c->text, call->prepared.echo);
        return buf_ok(&c->text) ? 0 : -ENOMEM;
}

void api_choice_free(struct api_choice *c) {
        output_parser_free(c->parser);
        openai_logprobs_free(&c->logprobs);
        api_names_free(&c->names);
        buf_free(&c->matcher.held);
        buf_free(&c->characters);
        buf_free(&c->tellable);
        buf_free(&c->text);
        buf_free(&c->reasoning);
        buf_free(&c->tool_calls);
        buf_free(&c->tool_arguments);
        buf_free(&c->ids);
        buf_free(&c->prompt_logprobs);
}
