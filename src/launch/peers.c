/* peers.c - see peers.h. */
#include "launch/peers.h"
#include "base/clock.h"
#include <errno.h>
#include <stdlib.h>

#define PEER_TIMEOUT_MS 2000u

int peers_find(struct supervisor *s, struct error *e) {
        const struct plan *whole = s->options->whole;
        uint32_t world = s->count ? s->processes[0].world : 0; /* a node has ranks of one group */
        int r = 0;

        if (!whole || !world)
                return 0;
        s->peers = calloc(whole->rank_count, sizeof(*s->peers));
        if (!s->peers)
                return error_set(e, -ENOMEM, "out of memory");
        for (size_t i = 0; r == 0 && i < whole->rank_count; i++) {
                const struct plan_rank *rank = &whole->ranks[i];
                struct peer *p = &s->peers[s->peer_count];

                if (process_world(whole, rank) != world || rank->node == s->options->plan->ranks[0].node)
                        continue;
                *p = (struct peer){.supervisor = s, .name = rank->name, .world = world};
                r = http_endpoint_parse(&s->arena, rank->url, &p->endpoint, NULL, e);
                s->peer_count++;
        }
        return r;
}

/* Since when all of this supervisor's ranks are ready; 0: they are not. */
static uint64_t ready_since(const struct supervisor *s, uint32_t world) {
        uint64_t since = 0;

        for (size_t i = 0; i < s->count; i++) {
                const struct process *p = &s->processes[i];

                if (p->world != world)
                        continue;
                if (p->state != PROCESS_READY && p->state != PROCESS_SILENT)
                        return 0;
                since = p->ready_ns > since ? p->ready_ns : since;
        }
        return since;
}

static void on_head(struct http_call *call, const struct http_response_head *head, void *user) {
        (void)call;
        ((struct peer *)user)->status = head->status;
}

static void on_end(struct http_call *call, enum http_failure failure, const char *why, void *user) {
        struct peer *p = user;

        (void)call;
        p->probe = NULL;
        if (failure == HTTP_OK && p->status == 200) {
                p->refusals = 0;
                p->seen |= ready_since(p->supervisor, p->world) != 0;
        } else if (failure == HTTP_FAIL_CONNECT && why && strstr(why, "refused"))
                p->refusals++; /* busy or hanging it would be connected to; a network that is away says nothing of it */
}

static void begin_probe(struct peer *p) {
        static const struct http_call_callbacks callbacks = {.on_head = on_head, .on_end = on_end};
        struct http_request request = {.method = HTTP_METHOD_GET,
            .target = SLICE_LIT("/health"),
            .deadlines = {.connect_ms = PEER_TIMEOUT_MS, .total_ms = PEER_TIMEOUT_MS},
            .retry_stale = true};

        p->status = 0;
        if (http_call_start(p->supervisor->client, &p->endpoint, &request, &callbacks, p, &p->probe) < 0)
                p->probe = NULL;
}

static void begin_anew(struct supervisor *s, const struct peer *gone, uint64_t now) {
        log_warn(s->options->log, "%.*s of another node has ended: this node's ranks of its group begin anew",
            SLICE_ARG(gone->name));
        supervisor_world_lost(s, gone->world, NULL, now);
        for (size_t i = 0; i < s->peer_count; i++)
                s->peers[i].seen = false;
}

void peers_tick(struct supervisor *s, uint64_t now) {
        for (size_t i = 0; i < s->peer_count; i++) {
                struct peer *p = &s->peers[i];
                uint64_t since = ready_since(s, p->world);

                if (!since)
                        p->seen = false;
                if (!p->probe && now >= p->next_ns) {
                        p->next_ns = now + PEER_PROBE_NS;
                        begin_probe(p);
                }
                if (p->seen && p->refusals >= PEER_REFUSALS && now - since >= PEER_STEADY_NS) {
                        begin_anew(s, p, now);
                        return;
                }
        }
}
