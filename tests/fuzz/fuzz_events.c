/* fuzz_events.c - payloads of KV events: nothing is read beyond them, lists are as long as they say, an index that takes them in
 * keeps its bound and is empty when its holders are cleared. */
#include "gateway/kv_index.h"
#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check(const struct event *e) {
        volatile uint64_t sum = 0;

        for (size_t i = 0; i < e->hash_count; i++)
                sum += e->hashes[i] + (e->extras ? e->extras[i] : 0);
        for (size_t i = 0; i < e->token_count; i++)
                sum += e->tokens[i];
        if (e->kind == EVENT_STORED &&
            (e->block_tokens == 0 || (e->token_count > 0 && e->token_count / e->block_tokens < e->hash_count)))
                abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
        struct kv_holder holders[2] = {{.id = 1}, {.id = 2}};
        char *copy = malloc(size ? size : 1);
        struct arena arena = {0};
        struct event_batch b;
        struct kv_index *x;
        struct event e;
        int taken = 0;

        if (!copy || kv_index_new(4096, 1, &x) < 0)
                abort();
        memcpy(copy, data, size);
        if (event_batch_open(slice_of(copy, size), &b) == 0)
                while (event_batch_next(&b, &arena, &e) == 1) {
                        check(&e);
                        kv_index_apply(x, &holders[taken++ % 3 == 0], &e);
                        if (kv_index_count(x) > kv_index_limit(x) ||
                            kv_index_count(x) != (size_t)holders[0].count + holders[1].count)
                                abort();
                }
        kv_index_clear(x, &holders[0]);
        kv_index_clear(x, &holders[1]);
        if (kv_index_count(x) != 0)
                abort();
        kv_index_free(x);
        arena_free(&arena);
        free(copy);
        return 0;
}
