/* events.c - following what instances say of their caches: which endpoint is whose, and what comes goes into the pool. */
#include "gateway/core.h"
#include <errno.h>
#include <stdlib.h>

/* "[INSTANCE=]ENDPOINT[,REPLAY]", as --kv-events has it. */
struct source_row {
        struct slice instance, endpoint, replay;
};

static struct source_row split(const char *text) {
        struct slice rest = slice_str(text), first;
        struct source_row row = {0};
        size_t equals = slice_find(rest, '=', 0);

        if (equals < slice_find_slice(rest, SLICE_LIT("://"), 0)) {
                row.instance = slice_take(&rest, equals);
                slice_take(&rest, 1);
        }
        slice_split(&rest, ',', &first);
        row.endpoint = first;
        row.replay = rest;
        return row;
}

int events_check(const struct gateway_options *o, struct error *e) {
        for (size_t i = 0; i < o->kv_events.count; i++) {
                struct source_row row = split(o->kv_events.items[i]);
                struct arena arena = {0};
                const char *text;
                int r = events_endpoint(&arena, arena_copy(&arena, row.endpoint).ptr, "host", 0, &text, e);

                if (r == 0 && row.replay.len > 0)
                        r = events_endpoint(&arena, arena_copy(&arena, row.replay).ptr, "host", 0, &text, e);
                arena_free(&arena);
                if (r < 0)
                        return error_prefix(e, r, "--kv-events");
        }
        return 0;
}

/* The row that names the instance, else the one that holds for all. */
static const char *find_row(const struct gateway_options *o, const struct instance *i) {
        const char *all = NULL;

        for (size_t k = 0; k < o->kv_events.count; k++) {
                struct slice named = split(o->kv_events.items[k]).instance;

                if (named.len == 0)
                        all = o->kv_events.items[k];
                else if (slice_is(named, i->name) || slice_is(named, i->key))
                        return o->kv_events.items[k];
        }
        return all;
}

static void on_clear(void *context) {
        pool_forget_events(context);
}

static void on_event(void *context, const struct event *e) {
        pool_note_event(context, e);
}

/* How each state is told, once per change. */
static void on_state(void *context, enum follow_state s) {
        static const char *const words[FOLLOW_STATES] = {
            [FOLLOW_LOST] = "its KV events are not to be had: its cache is guessed",
            [FOLLOW_CATCHING] = "asking for KV events that were missed",
            [FOLLOW_PARTIAL] = "following its KV events; what it cached before is not known",
            [FOLLOW_LIVE] = "following its KV events",
        };
        struct instance *i = context;
        const struct gateway *g = pool_user(i->pool);

        log_write(
            g->log, s == FOLLOW_LOST ? LOG_WARN : LOG_INFO, "%s %s: %s", pool_role_name(i->role), i->name, words[s]);
        i->events_state = s;
}

static int follow(
    struct gateway *g, struct instance *i, const struct source_row *row, struct arena *arena, struct error *e) {
        const struct http_endpoint *at = i->endpoint;
        const char *host = arena_copy(arena, at->host).ptr;
        unsigned rank = i->dp_rank > 0 ? (unsigned)i->dp_rank : 0;
        struct subscription_options options = {
            .name = i->name, .on_clear = on_clear, .on_event = on_event, .on_state = on_state, .context = i};
        int r = events_endpoint(arena, arena_copy(arena, row->endpoint).ptr, host, rank, &options.endpoint, e);

        if (r == 0 && row->replay.len > 0)
                r = events_endpoint(arena, arena_copy(arena, row->replay).ptr, host, rank, &options.replay, e);
        return r < 0 ? r : subscription_new(g->events, &options, &i->events, e);
}

void events_follow(struct gateway *g, struct instance *i) {
        const char *text = find_row(&g->options, i);
        struct arena arena = {0};
        struct error e = {0};
        struct source_row row;
        int r;

        if (!g->events || i->events || !text || !pool_wants_events(g->pool, i->role))
                return;
        row = split(text);
        r = follow(g, i, &row, &arena, &e);
        if (r < 0)
                log_warn(g->log, "%s %s: KV events cannot be followed: %s", pool_role_name(i->role), i->name,
                    error_text(&e, r));
        arena_free(&arena);
}

void events_unfollow(struct instance *i) {
        if (i->events)
                subscription_close(i->events);
        i->events = NULL;
        i->events_state = FOLLOW_LOST;
}

static void each(struct gateway *g, bool begin) {
        for (int role = 0; role < ROLE_COUNT; role++)
                for (size_t k = 0; k < pool_count(g->pool, (enum role)role); k++) {
                        struct instance *i = pool_at(g->pool, (enum role)role, k);

                        if (begin)
                                events_follow(g, i);
                        else
                                events_unfollow(i);
                }
}

int events_start(struct gateway *g, struct error *e) {
        bool wanted = pool_wants_events(g->pool, ROLE_PREFILL) || pool_wants_events(g->pool, ROLE_DECODE);

        if (g->options.kv_events.count == 0)
                return 0;
        if (!wanted) {
                log_warn(g->log, "--kv-events is without effect: no policy is prefix_aware");
                return 0;
        }
        if (!g->tokens.tokenizer)
                log_warn(g->log,
                    "--kv-events without --tokenizer: prompts of token ids are matched exactly, texts are guessed");
        if (events_hub_new(g->loop, g->log, &g->events) < 0)
                return error_set(e, -ENOMEM, "out of memory");
        each(g, true);
        return 0;
}

void events_stop(struct gateway *g) {
        each(g, false);
}
