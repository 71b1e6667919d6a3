/* What KV events cost the gateway's thread: reading a batch and taking its blocks into the index, per block; finding who has a
 * prompt of 128k tokens among 100 instances; and making ids of text, with the tokenizer of the folder that is given. */
#include "gateway/kv_index.h"
#include "gateway/tokens.h"
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

enum { INSTANCES = 100, BLOCK = 64, BLOCKS = 2048, ROUNDS = 2000 };

static uint32_t tokens[BLOCKS * BLOCK + 1];

static double now_ns(void) {
        struct timespec t;

        clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
        return (double)t.tv_sec * 1e9 + (double)t.tv_nsec;
}

/* Every instance has a beginning of one prompt, in batches of 32 blocks. Returns ns per block. */
static double ingest(struct kv_index *x, struct kv_holder *holders) {
        struct event_writer w = {0};
        struct arena arena = {0};
        struct buf out = {0};
        double spent = 0;
        size_t blocks = 0;

        for (uint32_t i = 0; i < INSTANCES; i++) {
                size_t depth = (size_t)BLOCKS * (i + 1) / INSTANCES / 32 * 32;

                holders[i] = (struct kv_holder){.id = i + 1};
                for (size_t at = 0; at < depth; at += 32) {
                        uint64_t names[32];
                        struct event e = {.hashes = names,
                            .hash_count = 32,
                            .has_parent = at > 0,
                            .parent = at,
                            .tokens = tokens + at * BLOCK,
                            .token_count = 32 * BLOCK,
                            .block_tokens = BLOCK};
                        struct event_batch b;
                        double begin;

                        for (size_t k = 0; k < 32; k++)
                                names[k] = at + k + 1;
                        event_write_stored(&w, &e);
                        buf_reset(&out);
                        event_write_batch(&w, 1, 0, &out);
                        begin = now_ns();
                        if (event_batch_open(buf_slice(&out), &b) < 0)
                                abort();
                        arena_reset(&arena);
                        while (event_batch_next(&b, &arena, &e) == 1)
                                kv_index_apply(x, &holders[i], &e);
                        spent += now_ns() - begin;
                        blocks += 32;
                }
        }
        buf_free(&out);
        event_writer_free(&w);
        arena_free(&arena);
        return spent / (double)blocks;
}

static void find(const struct kv_index *x) {
        struct kv_prompt p = {.tokens = tokens, .count = BLOCKS * BLOCK + 1};
        struct kv_hit hits[KV_HITS_MAX];
        struct arena arena = {0};
        const uint64_t *keys;
        double begin, keyed, found;
        size_t count, n = 0;

        begin = now_ns();
        for (int i = 0; i < 50; i++) {
                arena_reset(&arena);
                if (kv_index_keys(x, &p, &arena, &keys, &count) < 0)
                        abort();
        }
        keyed = (now_ns() - begin) / 50;
        begin = now_ns();
        for (int i = 0; i < ROUNDS; i++)
                n += kv_index_match(x, keys, count, hits);
        found = (now_ns() - begin) / ROUNDS;
        printf("a prompt of %d tokens among %d instances: its keys %.0f us, who has it %.1f us (%zu found)\n",
            BLOCKS * BLOCK, INSTANCES, keyed / 1e3, found / 1e3, n / ROUNDS);
        arena_free(&arena);
}

static void tokenise(const char *dir, size_t bytes) {
        static const char prose[] =
            "The gateway reads a prompt once, as byte ranges, and sends it where its beginning is known. ";
        struct error e = {0}, no_chat = {0};
        struct tokens_reader reader;
        struct token_list list = {0};
        struct arena arena = {0};
        struct buf body = {0};
        struct openai_error refused;
        struct facts f;
        bool whole;
        double begin;

        if (tokens_reader_load(dir, NULL, &reader, &no_chat, &e) < 0) {
                fprintf(stderr, "%s\n", e.text);
                exit(1);
        }
        buf_add_str(&body, "{\"prompt\":\"");
        while (body.len < bytes)
                buf_add_str(&body, prose);
        buf_add_str(&body, "\"}");
        if (facts_read(API_COMPLETIONS, buf_slice(&body), &arena, &f, &refused) < 0)
                abort();
        begin = now_ns();
        if (tokens_of_prompt(&reader, &f, f.prompt, &arena, &list, &whole) < 0)
                abort();
        printf("text of %zu KiB: %zu tokens in %.2f ms\n", bytes >> 10, list.count, (now_ns() - begin) / 1e6);
        arena_free(&arena);
        buf_free(&body);
        tokens_reader_free(&reader);
}

int main(int argc, char **argv) {
        struct kv_holder holders[INSTANCES];
        struct kv_index *x;

        for (size_t i = 0; i < sizeof(tokens) / sizeof(*tokens); i++)
                tokens[i] = (uint32_t)(i * 2654435761u % 129280);
        if (kv_index_new(64 << 20, 1, &x) < 0)
                abort();
        printf("a block of %d tokens taken in: %.2f us\n", BLOCK, ingest(x, holders) / 1e3);
        find(x);
        for (int i = 1; i < argc; i++)
                for (size_t bytes = 1 << 10; bytes <= TOKENS_TEXT_MAX; bytes *= 16)
                        tokenise(argv[i], bytes);
        kv_index_free(x);
        return 0;
}
