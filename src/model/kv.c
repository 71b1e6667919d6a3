/* kv.c - the memory of the latent cache. */
#include "model/core.h"
#include "model/memory.h"
#include <errno.h>

static uint32_t width_of(const struct model *m) {
        return m->config.kv_rank + m->config.rope;
}

size_t kv_cache_block_bytes(const struct model *m, enum kv_type type, uint32_t block_tokens) {
        return (size_t)m->layer_count * block_tokens * width_of(m) * kv_type_bytes(type);
}

int kv_cache_new(const struct model *m, enum kv_type type, uint32_t block_tokens, uint32_t blocks,
    struct kv_cache *ret_cache, struct error *e) {
        struct kv_cache kv = {.type = type,
            .blocks = blocks,
            .block_tokens = block_tokens,
            .layers = m->layer_count,
            .width = width_of(m),
            .rank = m->config.kv_rank,
            .block_bytes = kv_cache_block_bytes(m, type, block_tokens)};
        int r;

        if (block_tokens == 0 || blocks == 0)
                return error_set(e, -EINVAL, "a KV cache of %u blocks of %u tokens", blocks, block_tokens);
        if (__builtin_mul_overflow(kv.block_bytes, blocks, &kv.bytes))
                return error_set(e, -ENOMEM, "a KV cache of %u blocks is larger than the address space", blocks);
        r = memory_map("the KV cache", kv.bytes, &kv.memory, e);
        if (r == 0)
                *ret_cache = kv;
        return r;
}

void kv_cache_free(struct kv_cache *kv) {
        if (!kv)
                return;
        memory_unmap(kv->memory, kv->bytes);
        *kv = (struct kv_cache){0};
}

struct kv_layer kv_cache_layer(const struct kv_cache *kv, uint32_t layer) {
        return (struct kv_layer){.type = kv->type,
            .base = (char *)kv->memory + (size_t)layer * kv->block_tokens * kv->width * kv_type_bytes(kv->type),
            .block_stride = kv->block_bytes / kv_type_bytes(kv->type),
            .block_tokens = kv->block_tokens,
            .width = kv->width,
            .rank = kv->rank};
}
