/* fit.c - what a prompt's length leaves for the answer. */
#include "openai/openai.h"
#include <errno.h>

bool openai_is_echo_only(const struct openai_request *r) {
        return r->has_max_tokens && r->sampling.max_tokens == 0;
}

int openai_too_long(size_t tokens, bool of_text, uint32_t max_model_len, struct openai_error *err) {
        size_t told = of_text ? (size_t)max_model_len + 1 : tokens;

        return openai_fail(err, 400, "BadRequestError", "input_tokens",
            "This model's maximum context length is %u tokens. However, your prompt contains %s%zu input tokens, which "
            "exceeds this limit even without any output tokens. Please reduce the length of the input prompt. "
            "(parameter=input_tokens, value=%zu)",
            max_model_len, of_text ? "at least " : "", told, told);
}

int openai_fit_tokens(const struct openai_request *r, size_t prompt_tokens, bool of_text, uint32_t max_model_len,
    uint32_t *ret_max_tokens, struct openai_error *ret_err) {
        uint32_t asked = r->sampling.max_tokens, room;

        if (prompt_tokens > max_model_len)
                return openai_too_long(prompt_tokens, of_text, max_model_len, ret_err);
        room = max_model_len - (uint32_t)prompt_tokens;
        if (!r->has_max_tokens && r->kind == OPENAI_CHAT)
                asked = room;
        if (openai_is_echo_only(r))
                asked = 1;
        if (asked > room)
                asked = room;
        if (asked < 1)
                return openai_fail(ret_err, 400, "BadRequestError", "max_tokens",
                    "max_tokens must be at least 1, got 0. (parameter=max_tokens, value=0)");
        if (r->sampling.min_tokens > asked)
                return openai_fail(ret_err, 400, "BadRequestError", NULL,
                    "min_tokens must be less than or equal to max_tokens=%u, got %u.", asked, r->sampling.min_tokens);
        *ret_max_tokens = asked;
        return 0;
}
