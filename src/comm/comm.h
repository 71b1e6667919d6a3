/* comm.h - the hand-off of KV between ranks: a prefiller keeps the cache of a finished prompt under a lease, a decoder
 * fetches it.
 *
 *     prefiller                                          decoder
 *     comm_export(id, blocks) ── params, by the client's way ──> comm_announce(host, port, id)
 *          <────────────── BEAT: the lease is wanted ───────────      (it waits for blocks of its own)
 *          <────────────── FETCH id, tokens ────────────────────  comm_fetch(blocks)
 *          ─── the bytes, or where they lie in this host's memory ──>
 *          <────────────── CLOSE ───────────────────────────────
 *     COMM_RELEASED ────── CLOSED: it was valid to the end ─────> COMM_FETCHED
 *
 * A lease serves one fetch, and ends when that is closed, when its reader is gone, when it is given up, or when nobody has
 * asked for it in time. The name of a lease is the right to read it: names must not be guessable. A fetch counts only when
 * the producer has said, after the last byte, that the lease still held: what was read is never what somebody else wrote
 * there meanwhile.
 *
 * Or, in the other order, a prefiller writes a prompt's KV into a decoder's blocks while it computes:
 *
 *     decoder                                            prefiller
 *     comm_expect(id, blocks) ── id, by the gateway's way ──> comm_push(host, port, id)
 *          <────────────── PUSH id ─────────────────────────────
 *          <────────────── ROWS of a layer, as they are there ──  comm_push_rows()
 *          ─────────────── CLOSE: all is here ──────────────────>
 *     COMM_RECEIVED <───── CLOSED: it was valid to the end ─────  COMM_PUSHED
 *
 * Nobody writes into a decoder's cache but its own thread: it takes bytes out of the connection, or copies them out of the
 * prefiller's memory when told that they are there, into the blocks that the id stands for, and into no others. So blocks that were
 * given up are never written again, whatever the prefiller does. An id serves one push, on a connection of its own; where that ends
 * the push ends on both sides.
 *
 * The two sides may differ in block size, but not in what a row of the cache is: both introduce themselves by facts, and
 * the first that differs ends the fetch with a text that names it.
 *
 * Each rank has one thread of its own for this. Bytes go by the shortest way: out of the producer's memory when both are
 * processes of one host that may read one another (process_vm_readv), by RDMA where both hosts have it (UCX), else over TCP. Functions
 * may be called from any thread; what is done to one fetch, one thing after the other. */
#pragma once
#include "base/error.h"
#include "base/log.h"
#include "base/slice.h"

struct comm;

/* A KV cache as a reader of its memory must know it: blocks side by side, each [layers][block_tokens] rows. */
struct kv_pool {
        char *base;
        size_t row_bytes; /* of one token in one layer */
        uint32_t layers, block_tokens, blocks;
};

struct comm_fact {
        const char *name, *value; /* short texts; borrowed for the life of the comm */
};

/* How bytes come. */
enum comm_way {
        COMM_WAY_BEST,   /* of the same host out of the other's memory, else by RDMA where there is any, else by TCP */
        COMM_WAY_STREAM, /* by TCP */
        COMM_WAY_UCX     /* by UCX, whatever its transport (UCX_TLS, UCX_NET_DEVICES) */
};

struct comm_options {
        struct kv_pool pool;           /* its memory outlives the comm */
        const char *engine_id;         /* this process's; at most COMM_NAME_MAX bytes, as all names here */
        const struct comm_fact *facts; /* what must be equal on both sides */
        size_t fact_count;
        const char *host; /* to listen on, numeric; NULL: this rank exports and expects nothing */
        uint16_t port;    /* 0: any, see comm_port() */
        enum comm_way way;
        bool checksum;     /* fetches and what is expected: compare a checksum of the bytes with the producer's */
        unsigned lease_ms; /* how long a lease holds without a sign of its reader; 0: COMM_LEASE_MS */
        unsigned
            silence_ms; /* connecting, a fetch without a byte, a push without a sign fails after it; 0: COMM_SILENCE_MS */
        const struct log *log;
        void (*wake)(void *context); /* comm_take() has something; called on comm's thread, must not block */
        void *wake_context;
};

#define COMM_NAME_MAX   256u   /* bytes of a lease's or an engine's name */
#define COMM_LEASE_MS   30000u /* as NIXL's */
#define COMM_SILENCE_MS 5000u

/* Listens (with a host), and starts the thread. Returns 0, or with a text -EADDRINUSE, -EACCES, -EINVAL (no numeric host),
 * -ENODEV (no UCX, with COMM_WAY_UCX), -ENOMEM … */
int comm_new(const struct comm_options *options, struct comm **ret_comm, struct error *e);
/* Ends the thread: whatever is under way is cut. What was told and not taken is freed. NULL is fine. */
void comm_free(struct comm *c);
uint16_t comm_port(const struct comm *c); /* where it listens; 0: nowhere */

/* ---- producer --------------------------------------------------------------------------------------------------------- */

/* Keep `tokens` tokens in `count` blocks for whoever names `id`. The caller holds the blocks until COMM_RELEASED. Returns 0,
 * -EINVAL (a name too long, or blocks and tokens that do not fit), -ENOMEM. */
int comm_export(struct comm *c, struct slice id, const uint32_t *blocks, size_t count, uint32_t tokens, void *user);
/* Give up a lease, unless somebody is reading it or it has ended. Without memory it is left to its time. */
void comm_withdraw(struct comm *c, struct slice id);

/* ---- consumer --------------------------------------------------------------------------------------------------------- */

struct comm_source {
        struct slice host; /* a name or an address; at most COMM_NAME_MAX bytes */
        uint16_t port;
        struct slice engine_id, id; /* the producer's, and the lease's */
};

struct comm_fetch;

/* Somebody will want this lease: it is kept alive until then. Ends in exactly one COMM_FETCHED, after comm_fetch() or
 * comm_drop(). 0, -EINVAL (a name too long or empty) or -ENOMEM. */
int comm_announce(struct comm *c, const struct comm_source *from, void *user, struct comm_fetch **ret_fetch);
/* Fetch tokens [first, end) of a lease of `end` tokens or more into the block table `blocks` of whole own blocks, first on
 * a block border. The table is copied; the blocks are written until COMM_FETCHED. With first == end nothing is read, and
 * the lease is freed. Once per fetch. */
void comm_fetch(struct comm_fetch *f, const uint32_t *blocks, size_t count, uint32_t first, uint32_t end);
/* It is not wanted any more: COMM_FETCHED comes soon, with -ECANCELED unless it was complete already, and the producer is
 * told that nobody will read. After COMM_FETCHED was taken, f is gone. */
void comm_drop(struct comm_fetch *f);

/* ---- push: the producer writes while it computes ------------------------------------------------------------------------ */

struct comm_receipt;

/* Consumer: let whoever names `id` write tokens [first, end), first < end, into the block table `blocks` of whole own blocks.
 * The caller holds the blocks until COMM_RECEIVED, which comes once: with -ETIMEDOUT when nobody has begun within lease_ms, or
 * who had begun gave no sign for silence_ms. 0, -EINVAL (a name too long, blocks and tokens that do not fit), -ENOMEM. */
int comm_expect(struct comm *c, struct slice id, const uint32_t *blocks, size_t count, uint32_t first, uint32_t end,
    void *user, struct comm_receipt **ret_receipt);
/* It is not wanted any more: COMM_RECEIVED comes soon, with -ECANCELED unless it was complete already, and who writes is cut
 * off. After COMM_RECEIVED was taken, r is gone. */
void comm_refuse(struct comm_receipt *r);

struct comm_push;

/* Producer: tokens [first, end), first < end, of a prompt are to be written to `to`. Ends in exactly one COMM_PUSHED, after
 * comm_push_open() or comm_push_drop(). 0, -EINVAL (a name too long or empty, no tokens), -ENOMEM. */
int comm_push(struct comm *c, const struct comm_source *to, uint32_t first, uint32_t end, void *user,
    struct comm_push **ret_push);
/* Connect, and keep the consumer waiting. COMM_PUSHED comes soon after it has confirmed or refused, or the connection has
 * failed. */
void comm_push_open(struct comm_push *p);
/* Where the prompt lies: once, before the first comm_push_rows(). The table is copied; the blocks are held by the caller until
 * COMM_PUSHED. 0, or -ENOMEM: then only comm_push_drop() is left. */
int comm_push_blocks(struct comm_push *p, const uint32_t *blocks, size_t count);
/* Tokens [first, end) of this layer are in the cache and will not change. Of each layer every token once, in order. Takes no
 * longer than a wake. */
void comm_push_rows(struct comm_push *p, uint32_t layer, uint32_t first, uint32_t end);
/* It will not be completed, or not even be opened: COMM_PUSHED comes soon, with -ECANCELED unless it was complete already. */
void comm_push_drop(struct comm_push *p);

/* ---- what happened ---------------------------------------------------------------------------------------------------- */

struct comm_event {
        enum { COMM_RELEASED, COMM_FETCHED, COMM_RECEIVED, COMM_PUSHED } kind;
        void *user;
        /* COMM_FETCHED, COMM_RECEIVED, COMM_PUSHED: 0 or why not. COMM_RELEASED: 0 it was read, -ECANCELED nobody will read it, -ETIMEDOUT nobody
         * did, -ECONNRESET its reader vanished. */
        int result;
        const char *text;       /* for people, when result < 0; else "" */
        const uint32_t *blocks; /* as given to comm_export(), comm_fetch(), comm_expect() or comm_push_blocks() */
        size_t block_count;
        /* With 0: how much came in what time since comm_fetch() or comm_expect(); COMM_PUSHED: since the last rows were there. */
        uint64_t bytes, ns;
        struct comm_event *next;
};

/* All events since the last call, oldest first, or NULL. Free each with comm_event_free(). */
struct comm_event *comm_take(struct comm *c);
void comm_event_free(struct comm_event *event);
