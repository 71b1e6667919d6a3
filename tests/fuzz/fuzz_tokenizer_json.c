/* fuzz_tokenizer_json.c - any bytes as tokenizer.json and, behind a NUL byte, as tokenizer_config.json: refused, or a
 * tokenizer that encodes and decodes within bounds. */
#include "text/tokenizer.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
        const uint8_t *nul = size ? memchr(data, 0, size) : NULL;
        struct slice json = slice_of(data, nul ? (size_t)(nul - data) : size);
        struct slice config =
            nul ? slice_of(nul + 1, size - json.len - 1) : SLICE_LIT("{\"bos_token\":\"a\",\"add_bos_token\":true}");
        static const char text[] = "Hello, world! 123 <a> \xe4\xb8\xad\n\n\xff  aaaa";
        struct arena arena = {0};
        struct token_list list;
        struct tokenizer *t;
        struct error e = {0};
        struct buf out = {0};
        int r = tokenizer_parse(json, config, &t, &e);

        if (r < 0) {
                /* A refusal has a reason. */
                if (!e.text[0])
                        abort();
                return 0;
        }
        if (t->bos >= tokenizer_size(t) || t->eos >= tokenizer_size(t))
                abort();
        r = tokenizer_encode(t, slice_str(text), TOKENIZE_ADD_SPECIAL, &arena, &list);
        if (r == 0) {
                for (size_t i = 0; i < list.count; i++)
                        if (list.ids[i] >= tokenizer_size(t))
                                abort();
                tokenizer_decode(t, list.ids, list.count, true, &out);
        } else if (r != -E2BIG)
                abort();
        buf_free(&out);
        arena_free(&arena);
        tokenizer_free(t);
        return 0;
}
