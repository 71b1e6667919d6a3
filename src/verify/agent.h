/* agent.h - what both ends of an agent's pipe agree on: one batch a line, and how long it may take. */
#pragma once
#include "base/clock.h"
#include "verify/verify.h"

/* So many tools run at once on a node: they are short, and the driver serialises much of it anyway. */
#define RUNNING_MAX 32
/* After so many commands without an answer the rest of a lane is not asked: the NPU hangs, and waiting for each of its
 * commands would take minutes. */
#define LANE_PATIENCE 2
/* A batch of 64 NPUs with 14 questions each takes 100 KiB, its answers, at their largest, 2 * 900 * 64 KiB; honest ones 1 MiB. */
#define BATCH_LINE_MAX (256u << 20)
/* What a host tells about itself: 1,024 ports or 2,048 files of a model take 200 KiB. */
#define HOST_BYTES_MAX (1u << 20)

/* ---- what an agent answers by itself: the words behind "host" --------------------------------------------------------- */

/* A node's fixed ports: 16 ranks with an API port and a span of 16 for KV each, and room. */
#define DOORS_MAX 1024u
/* A handshake takes a round trip; so long a host that answers at all takes to do so, one SYN lost and sent again (1 s). */
#define DOOR_DEADLINE_MS 2500u

/* Listeners, held until they are shut or the agent ends. Nobody accepts: the kernel shakes hands for them, as many as fit its
 * queue, which is why a port is tried from at most DOOR_VISITS_MAX nodes (the queue is 128 long on old kernels). */
#define DOOR_VISITS_MAX 100u
struct doors {
        int *fds;
        size_t count;
};
/* Listen on all ports of `spec` ("9000-9015,30000") where engines would: on all addresses, on a loopback `ip` on that alone.
 * What was open before is shut. Writes {"ports":[{"port","error","holder"}]}: error null, or its name ("EADDRINUSE").
 * 0 or -EINVAL (no such spec), -ENOMEM. */
int doors_open(struct doors *d, const char *ip, const char *spec, struct buf *out);
void doors_shut(struct doors *d);
/* Connect to all ports of `spec` at `ip`, some at a time, and hang up. The same form of answer. */
int doors_try(const char *ip, const char *spec, struct buf *out);

/* The answers that may hang on a sick file system are made by host_answer() in a process of its own, "verify --agent-answer
 * -- WORDS": "facts" MODEL STATE_DIR: interfaces, port ranges, proxies, limits, space; "model" PATH: its files, the small ones
 * hashed. Its status is 2 for words that are none. */

static inline uint64_t now_ms(void) {
        return clock_mono_ns() / NS_PER_MS;
}
