/* api_tell.c - what the choices of a call have come to, as an answer or as events. */
#include "engine/api_call.h"

static const char *finish_name(const struct api_choice *c) {
        return c->finish == FINISH_STOP && c->tool_count
                   ? "tool_calls"
                   : finish_reason_name(c->finish == FINISH_RECOMPUTED ? FINISH_STOP : c->finish);
}

static struct slice not_null(const struct buf *b) {
        return b->len ? buf_slice(b) : SLICE_LIT("");
}

static struct slice role(const struct api_call *call) {
        return slice_str(call->api->options.response_role);
}

static struct openai_ids prompt_ids(const struct api_choice *c) {
        return (struct openai_ids){c->prompt->ids, c->prompt->count};
}

static struct openai_ids told_ids(const struct api_choice *c) {
        static const uint32_t none[1];

        if (!c->call->prepared.request.return_token_ids)
                return (struct openai_ids){0};
        return (struct openai_ids){
            c->ids.len ? (const uint32_t *)(const void *)c->ids.ptr : none, c->ids.len / sizeof(uint32_t)};
}

static bool has_logprobs(const struct api_choice *c) {
        return c->call->prepared.request.sampling.logprobs >= 0 && c->logprobs.count;
}

/* The whole call's: a prompt counts once however many answers it has. */
static struct openai_usage usage_of_call(const struct api_call *call) {
        struct openai_usage u = {.has_cached = call->api->options.prompt_tokens_details};

        for (size_t i = 0; i < call->choice_count; i++) {
                const struct api_choice *c = &call->choices[i];

                u.completion += c->tokens;
                if (i % call->prepared.request.n == 0) {
                        u.prompt += c->prompt->count;
                        u.cached += c->cached;
                }
        }
        return u;
}

static struct openai_usage usage_of_choice(const struct api_choice *c) {
        return (struct openai_usage){.prompt = c->prompt->count, .completion = c->tokens};
}

/* ---- one body ------------------------------------------------------------------------------------------------------------- */

static void fill_choice(struct api_choice *c, struct openai_choice *to) {
        const struct openai_request *r = &c->call->prepared.request;
        bool has_other = c->reasoning.len || c->tool_calls.len;

        *to = (struct openai_choice){.index = c->index,
            .role = role(c->call),
            .text = has_other && c->text.len == 0 ? SLICE_NONE : not_null(&c->text),
            .reasoning = c->reasoning.len ? buf_slice(&c->reasoning) : SLICE_NONE,
            .tool_calls = buf_slice(&c->tool_calls),
            .logprobs = has_logprobs(c) ? &c->logprobs : NULL,
            .finish_reason = finish_name(c),
            .stop = c->stop,
            .token_ids = told_ids(c),
            .prompt_ids = r->return_token_ids ? prompt_ids(c) : (struct openai_ids){0},
            .prompt_logprobs = buf_slice(&c->prompt_logprobs)};
}

void api_tell_answer(struct api_call *call) {
        struct openai_choice *choices = arena_array(&call->arena, call->choice_count, sizeof(*choices));
        struct openai_usage usage = usage_of_call(call);
        struct buf b = {0};

        if (!choices) {
                api_refuse_text(call, 500, "InternalServerError", "Internal server error");
                return;
        }
        for (size_t i = 0; i < call->choice_count; i++)
                fill_choice(&call->choices[i], &choices[i]);
        openai_write_answer(&b, &call->answer, choices, call->choice_count, &usage, buf_slice(&call->transfer));
        api_respond_buf(call, &b);
}

/* ---- events --------------------------------------------------------------------------------------------------------------- */

static bool tells_usage(const struct api_call *call) {
        return call->prepared.request.include_usage || call->api->options.force_usage;
}

static bool tells_usage_always(const struct api_call *call) {
        const struct openai_request *r = &call->prepared.request;

        return (r->include_usage && r->continuous_usage) || call->api->options.force_usage;
}

/* Before anything else a chat tells who speaks, for every choice, and what is continued. */
static void tell_roles(struct api_call *call) {
        bool ids = call->prepared.request.return_token_ids;

        call->roles_told = true;
        for (size_t i = 0; i < call->choice_count; i++) {
                struct api_choice *c = &call->choices[i];
                struct openai_usage usage = {.prompt = c->prompt->count};
                struct openai_chunk chunk = {.index = c->index,
                    .what = OPENAI_CHUNK_ROLE,
                    .role = role(call),
                    .prompt_ids = ids ? prompt_ids(c) : (struct openai_ids){0},
                    .usage = tells_usage_always(call) ? &usage : NULL};

                openai_write_chunk(&call->out, &call->answer, &chunk);
        }
        for (size_t i = 0; call->prepared.echo.len && i < call->choice_count; i++) {
                struct api_choice *c = &call->choices[i];
                struct openai_usage usage = {.prompt = c->prompt->count};
                struct openai_chunk chunk = {.index = c->index,
                    .what = OPENAI_CHUNK_ECHO,
                    .text = call->prepared.echo,
                    .usage = tells_usage_always(call) ? &usage : NULL};

                openai_write_chunk(&call->out, &call->answer, &chunk);
        }
}

/* Whether there is anything for a chat's delta. Without a parser every step of the engine makes an event, as in vLLM. */
static bool says_something(const struct api_choice *c) {
        return !c->parser || c->done || c->text.len || c->reasoning.len || c->tool_calls.len || c->ids.len ||
               has_logprobs(c);
}

static void tell_choice(struct api_call *call, struct api_choice *c) {
        const struct openai_request *r = &call->prepared.request;
        bool chat = call->kind == OPENAI_CHAT;
        bool bare = c->parser && (c->reasoning.len || c->tool_calls.len || !c->done);
        bool first = !chat && !c->echoed && (r->return_token_ids || r->echo);
        struct openai_usage usage = usage_of_choice(c);
        struct openai_chunk chunk = {.index = c->index,
            .what = OPENAI_CHUNK_DELTA,
            .text = c->text.len == 0 && bare ? SLICE_NONE : not_null(&c->text),
            .reasoning = c->reasoning.len ? buf_slice(&c->reasoning) : SLICE_NONE,
            .tool_calls = buf_slice(&c->tool_calls),
            .logprobs = has_logprobs(c) ? &c->logprobs : NULL,
            .finish_reason = c->done ? finish_name(c) : NULL,
            .stop = c->stop,
            .token_ids = told_ids(c),
            .prompt_ids = first ? prompt_ids(c) : (struct openai_ids){0},
            .usage = tells_usage_always(call) ? &usage : NULL,
            .fingerprint = c->done && !tells_usage(call)};

        openai_write_chunk(&call->out, &call->answer, &chunk);
        c->echoed = true;
        c->end_told = c->done;
        buf_reset(&c->text);
        buf_reset(&c->reasoning);
        buf_reset(&c->tool_calls);
        buf_reset(&c->ids);
        openai_logprobs_clear(&c->logprobs);
}

void api_tell_events(struct api_call *call) {
        if (call->kind == OPENAI_CHAT && !call->roles_told)
                tell_roles(call);
        for (size_t i = 0; i < call->choice_count; i++) {
                struct api_choice *c = &call->choices[i];

                if (c->has_news && !c->end_told && says_something(c))
                        tell_choice(call, c);
                c->has_news = false;
        }
}

void api_tell_usage(struct api_call *call) {
        struct openai_usage usage = usage_of_call(call);
        struct openai_chunk chunk = {.what = OPENAI_CHUNK_USAGE, .usage = &usage, .fingerprint = true};

        if (tells_usage(call))
                openai_write_chunk(&call->out, &call->answer, &chunk);
}
