/* fuzz_chat.c - any request body in every chat format: printed or refused, within a bound of the body's size. The first
 * byte picks the format. */
#include "openai/openai.h"
#include "text/tokenizer.h"
#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static const struct chat_format formats[] = {{.family = CHAT_V2}, {.family = CHAT_V3},
    {.family = CHAT_V3, .cuts_thinking = true}, {.family = CHAT_R1, .opens_think = true},
    {.family = CHAT_V31, .reads_enable_thinking = true},
    {.family = CHAT_V31, .tools = CHAT_TOOLS_CARD, .answers_anyone = true},
    {.family = CHAT_V31, .tools = CHAT_TOOLS_SHORT, .compact = true}, {.family = CHAT_ROLES}, {.family = CHAT_NONE}};

static struct tokenizer *load(void) {
        static const char json[] =
            "{\"pre_tokenizer\":{\"type\":\"ByteLevel\"},\"model\":{\"vocab\":{\"a\":0,\"b\":1},\"merges\":[]}}";
        static const char config[] = "{\"bos_token\":\"a\",\"eos_token\":\"b\"}";
        struct tokenizer *t;

        if (tokenizer_parse(slice_str(json), slice_str(config), &t, NULL) < 0)
                abort();
        return t;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
        const struct openai_defaults defaults = {.vocab = 100,
            .max_model_len = 100,
            .temperature = 1,
            .top_p = 1,
            .repetition_penalty = 1,
            .auto_tools = true,
            .tool_parser = true};
        static struct tokenizer *t;
        struct openai_request r;
        struct openai_error err = {0};
        struct arena arena = {0};
        struct buf out = {0};
        struct error e = {0};

        if (size == 0)
                return 0;
        if (!t)
                t = load();
        if (openai_parse(OPENAI_CHAT, slice_of(data + 1, size - 1), &defaults, &arena, &r, &err) == 0) {
                int result = chat_render(&formats[data[0] % (sizeof(formats) / sizeof(*formats))], t, &r, &out, &e);

                /* Marks of up to 150 bytes stand around each message and call, which take 9 bytes or more. */
                if ((result < 0 && !e.text[0]) || out.len > 2000 + 40 * size)
                        abort();
                chat_prompt_reasoning(buf_slice(&out));
                openai_request_done(&r);
        }
        buf_free(&out);
        arena_free(&arena);
        return 0;
}
