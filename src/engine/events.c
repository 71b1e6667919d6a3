/* events.c - what becomes of the prefix cache, told to whoever follows (KV events, src/events). Blocks are told as they are
 * stored and removed; a step's events leave as one batch at its end. */
#include "base/clock.h"
#include "engine/core.h"
#include <errno.h>
#include <stdlib.h>

/* Removals are gathered, for they come one by one, many in a row. */
static void write_removals(struct engine_events *v) {
        if (v->removed_count > 0)
                event_write_removed(&v->writer, v->removed, v->removed_count);
        v->removed_count = 0;
}

/* Names are told by 64 of their bits, as vLLM does by default: enough to tell an engine's own blocks apart, and useless for
 * finding tokens, for the key of the hash stays here. */
static void on_stored(void *context, const struct hash128 *parent, const struct hash128 *hashes, size_t count,
    const uint32_t *tokens, struct slice salt) {
        struct engine *g = context;
        struct engine_events *v = &g->events;
        struct event e = {.kind = EVENT_STORED,
            .hash_count = count,
            .has_parent = parent != NULL,
            .parent = parent ? parent->lo : 0,
            .tokens = tokens,
            .token_count = count * g->options.block_tokens,
            .block_tokens = g->options.block_tokens,
            .salt = salt};
        uint64_t *names = malloc(count * sizeof(*names));

        write_removals(v);
        for (size_t i = 0; names && i < count; i++)
                names[i] = hashes[i].lo;
        e.hashes = names;
        if (names)
                event_write_stored(&v->writer, &e);
        free(names); /* without memory less is told, and nothing wrong */
}

static void on_removed(void *context, struct hash128 hash) {
        struct engine *g = context;
        struct engine_events *v = &g->events;

        if (v->removed_count == sizeof(v->removed) / sizeof(*v->removed))
                write_removals(v);
        v->removed[v->removed_count++] = hash.lo;
}

static void on_cleared(void *context) {
        struct engine *g = context;

        g->events.removed_count = 0;
        event_write_cleared(&g->events.writer);
}

void events_watch(struct engine *g) {
        const struct blocks_watch watch = {on_stored, on_removed, on_cleared, g};

        if (g->options.publisher)
                blocks_set_watch(g->blocks, &watch);
}

void events_flush(struct engine *g) {
        struct engine_events *v = &g->events;
        uint64_t dropped;

        write_removals(v);
        if (v->writer.count == 0)
                return;
        event_write_batch(&v->writer, (double)clock_wall_ns() / (double)NS_PER_S, g->options.publisher_rank, &v->batch);
        publisher_send(g->options.publisher, &v->batch);
        dropped = publisher_dropped(g->options.publisher);
        if (dropped > v->told_dropped * 2) {
                log_warn(g->options.log, "%llu batches of KV events were dropped: who follows them has gaps",
                    (unsigned long long)dropped);
                v->told_dropped = dropped;
        }
}

void events_free(struct engine *g) {
        event_writer_free(&g->events.writer);
        buf_free(&g->events.batch);
}
