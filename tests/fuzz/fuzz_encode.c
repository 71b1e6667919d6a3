/* fuzz_encode.c - any bytes as text: what was encoded decodes to the same text, in one go and token by token. */
#include "text/tokenizer.h"
#include "text/utf8.h"
#include <stdio.h>
#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static struct tokenizer *load(void) {
        const char *source = getenv("BATON_SOURCE");
        struct arena arena = {0};
        struct tokenizer *t;
        struct error e = {0};

        if (tokenizer_load(arena_printf(&arena, "%s/models/baton-tiny", source ? source : "."), &t, &e) < 0) {
                fprintf(stderr, "%s\n", e.text);
                abort();
        }
        arena_free(&arena);
        return t;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
        static struct tokenizer *t;
        struct arena arena = {0};
        struct buf lossy = {0}, out = {0}, streamed = {0};
        struct detokenizer d;
        struct token_list list;

        if (!t)
                t = load();
        utf8_add_lossy(&lossy, slice_of(data, size));
        if (tokenizer_encode(t, slice_of(data, size), TOKENIZE_PLAIN, &arena, &list) < 0)
                abort();
        tokenizer_decode(t, list.ids, list.count, false, &out);
        detokenizer_init(&d, t, false);
        for (size_t i = 0; i < list.count; i++) {
                detokenizer_push(&d, list.ids[i], &streamed);
                if (utf8_valid_prefix(buf_slice(&streamed)) < streamed.len)
                        abort();
        }
        detokenizer_flush(&d, &streamed);
        if (!slice_eq(buf_slice(&out), buf_slice(&lossy)) || !slice_eq(buf_slice(&out), buf_slice(&streamed)))
                abort();
        buf_free(&lossy);
        buf_free(&out);
        buf_free(&streamed);
        arena_free(&arena);
        return 0;
}
