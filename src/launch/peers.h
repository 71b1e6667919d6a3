/* peers.h - ranks of a world that live on other nodes, watched from here (private to launch/).
 *
 * A rank of vLLM's data parallelism that is alone waits for the others for ever, and one that comes back is not taken in by
 * those that stayed. On its own node the supervisor stops and starts them together; those of other nodes it does not own, so it
 * asks their /health as it asks its own: one that was there while ours were all ready, and then refuses connections, has ended,
 * and ours begin anew to meet it. No supervisor talks to another. */
#pragma once
#include "launch/process.h"

/* Every peer is asked so often; so many refusals in a row are an end, one is perhaps a full queue of connections. */
#define PEER_PROBE_NS (1000ull * 1000000)
#define PEER_REFUSALS 2u
/* Ours must have been ready so long: the others of a world that began anew a moment ago may still be about to follow. */
#define PEER_STEADY_NS (10ull * 1000000000)
/* What has lost its world waits in a collective and will not end by being asked: no more than this before it is killed. */
#define PEER_STOP_NS (5ull * 1000000000)

struct peer {
        struct supervisor *supervisor;
        struct slice name;
        uint32_t world;
        struct http_endpoint endpoint;
        struct http_call *probe;
        int status;
        bool seen; /* it answered while all of ours were ready, in this life of ours */
        unsigned refusals;
        uint64_t next_ns;
};

/* Those of the whole plan that share a world with this supervisor's ranks. 0, -ENOMEM, -EINVAL with a text. */
int peers_find(struct supervisor *s, struct error *e);
/* Ask who is due, and begin a world anew whose peer is gone. */
void peers_tick(struct supervisor *s, uint64_t now);
