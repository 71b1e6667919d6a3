/* fuzz_openai.c - request bodies of every kind: the first byte picks the kind, the rest is the body. What is accepted obeys
 * the limits and can be taken apart again; what is refused has a message that is JSON. */
#include "base/json.h"
#include "openai/openai.h"
#include <errno.h>
#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void demand(bool condition) {
        if (!condition)
                abort();
}

static void check(const struct openai_request *r) {
        demand(r->n >= 1 && r->n <= OPENAI_N_MAX && r->prompt_count * (size_t)r->n <= OPENAI_PROMPTS_MAX);
        demand(r->message_count <= OPENAI_MESSAGES_MAX && r->sampling.stop_count <= OPENAI_STOPS_MAX);
        demand(r->sampling.temperature >= 0 && r->sampling.temperature <= 2);
        demand(r->sampling.logprobs >= -1 && r->sampling.logprobs <= 20 && r->sampling.prompt_logprobs >= -1);
        for (uint32_t i = 0; i < r->sampling.stop_count; i++)
                demand(r->sampling.stop[i].len > 0);
        for (size_t i = 0; i < r->prompt_count; i++)
                for (size_t k = 0; r->kind != OPENAI_DETOKENIZE && k < r->prompts[i].count; k++)
                        demand(r->prompts[i].ids[k] < 512);
        if (r->kind == OPENAI_COMPLETION)
                demand(r->prompt_count > 0);
        if (r->kind == OPENAI_CHAT)
                demand(r->message_count > 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
        static const struct openai_defaults defaults = {.temperature = 1,
            .top_p = 1,
            .repetition_penalty = 1,
            .vocab = 512,
            .max_model_len = 512,
            .max_logprobs = 20,
            .thinking = -1,
            .auto_tools = true,
            .tool_parser = true,
            .model = SLICE_LIT("m")};
        struct arena arena = {0};
        struct openai_request r;
        struct openai_error e = {0};
        struct buf text = {0};
        yyjson_doc *doc = NULL;
        int result;

        if (size == 0)
                return 0;
        result = openai_parse((enum openai_kind)(data[0] % 4), slice_of(data + 1, size - 1), &defaults, &arena, &r, &e);
        if (result == 0) {
                check(&r);
                openai_request_done(&r);
        } else {
                demand(result == -EINVAL && e.status == 400);
                openai_write_error(&text, &e);
                demand(json_parse(buf_slice(&text), &doc, NULL) == 0);
                yyjson_doc_free(doc);
        }
        buf_free(&text);
        arena_free(&arena);
        return 0;
}
