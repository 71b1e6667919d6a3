/* continuation.c - see continuation.h. */
#include "gateway/continuation.h"
#include <errno.h>

/* vLLM's default for completions. */
#define COMPLETIONS_DEFAULT 16

int64_t continuation_limit(const struct facts *f, const struct relay *r, int64_t max_model_len) {
        int64_t room = max_model_len > 0 ? max_model_len - (int64_t)openai_count_items(buf_slice(&r->prompt_ids)) : -1;
        int64_t limit = f->max_tokens;

        if (limit < 0)
                limit = f->api == API_CHAT ? room : COMPLETIONS_DEFAULT;
        return limit > room && room >= 0 ? room : limit;
}

/* [prompt ids, output ids] as one list. */
static struct slice whole_prompt(const struct relay *r, struct arena *arena) {
        struct slice prompt = slice_trim(buf_slice(&r->prompt_ids));
        struct slice out = slice_sub(buf_slice(&r->ids), 0, r->sent_bytes);
        size_t len = prompt.len + out.len + 1;
        char *text = arena_alloc(arena, len);

        if (!text)
                return SLICE_NONE;
        memcpy(text, prompt.ptr, prompt.len - 1); /* without the bracket */
        text[prompt.len - 1] = ',';
        memcpy(text + prompt.len, out.ptr, out.len);
        text[len - 1] = ']';
        return slice_of(text, len);
}

int continuation_edits(
    const struct facts *f, const struct relay *r, int64_t left, struct arena *arena, struct edits *e) {
        /* What makes a chat's prompt, or shows a prompt, has done its work. */
        static const char *const spent[] = {"messages", "tools", "tool_choice", "parallel_tool_calls", "chat_template",
            "chat_template_kwargs", "add_generation_prompt", "continue_final_message", "documents", "reasoning_effort",
            "include_reasoning", "max_completion_tokens", "mm_processor_kwargs", "top_logprobs", "echo", "suffix",
            "prompt_logprobs", "truncate_prompt_tokens", "add_special_tokens", "response_format", "n", "best_of",
            "request_id"};
        struct slice prompt = whole_prompt(r, arena);
        char *left_text = arena_printf(arena, "%lld", (long long)left);
        char *min_text = NULL;

        if (f->min_tokens > r->ids_sent)
                min_text = arena_printf(arena, "%lld", (long long)f->min_tokens - r->ids_sent);
        if (!prompt.ptr || !left_text || (f->min_tokens > r->ids_sent && !min_text))
                return -ENOMEM;
        for (size_t i = 0; i < sizeof(spent) / sizeof(*spent); i++)
                edits_set(e, spent[i], SLICE_NONE);
        if (f->api == API_CHAT)
                edits_set(e, "logprobs", SLICE_NONE); /* a bool there, a number here */
        edits_set(e, "prompt", prompt);
        edits_set(e, "max_tokens", slice_str(left_text));
        edits_set(e, "min_tokens", slice_str(min_text)); /* NULL takes it out */
        return 0;
}
