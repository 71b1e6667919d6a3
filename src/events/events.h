/* events.h - what an engine tells of its prefix cache: vLLM's KV events over ZeroMQ, both ends.
 *
 * An engine publishes a numbered batch for each step that changed its cache: blocks stored (with their tokens), blocks
 * removed, or all cleared. Whoever follows it knows which prompts it has cached. Three frames: topic, sequence number (8 bytes,
 * big endian, from 0 on for each publisher), and a msgpack payload. Batches may be lost on the way; a second socket gives
 * those of the recent past again.
 *
 * Payloads and sequences (event_batch, follow) are sans-I/O; a publisher has a thread of its own; a subscription belongs to
 * the thread of its loop. */
#pragma once
#include "base/arena.h"
#include "base/buf.h"
#include "base/error.h"
#include "base/log.h"
#include <uv.h>

/* ---- payloads ------------------------------------------------------------------------------------------------------- */

/* A prompt of a million tokens stored at once comes to 5 MB. Larger messages end their connection. */
#define EVENTS_PAYLOAD_MAX (8 << 20)

enum event_kind { EVENT_STORED, EVENT_REMOVED, EVENT_CLEARED };

/* An engine's name of a block is opaque: 64 bits, or more bytes, of which 64 bits are made here. */
struct event {
        enum event_kind kind;
        const uint64_t *hashes; /* stored, removed */
        size_t hash_count;
        bool counts; /* in the memory that prompts are computed from, as far as is said: not in a lower tier, not of a
                      * second group of layers (which cache other blocks) */
        /* Stored alone. */
        bool has_parent;
        uint64_t parent;        /* the block before the first one */
        const uint32_t *tokens; /* of all blocks, one after another: hash_count * block_tokens, or none */
        size_t token_count;
        uint32_t block_tokens;
        uint64_t adapter;  /* event_name() of the LoRA adapter, 0: none */
        struct slice salt; /* to be written: what the first block depends on (read, it is among the extras) */
        const uint64_t
            *extras; /* for each block, event_extra() of what else it depends on, 0: nothing; NULL: nothing */
};

/* Never 0. */
uint64_t event_name(struct slice name);
/* What a block depends on that is one text, such as a cache_salt. Never 0. */
uint64_t event_extra(struct slice text);

struct event_batch {
        double time;       /* seconds since the epoch */
        int64_t rank;      /* data-parallel; -1: not said */
        struct slice rest; /* of the events */
        size_t left;
};
/* Take a payload, in each of the encodings that vLLM has had: batch and events as arrays or as maps. All of it is checked here:
 * 0; -EINVAL (no msgpack, no batch, or deeper than any batch is) and *ret_batch is untouched. It is a view of `payload`. */
int event_batch_open(struct slice payload, struct event_batch *ret_batch);
/* The next event, of a kind that is known. Its lists live in `arena`. 1; 0 at the end; -EINVAL: it is not what it should be
 * (the batch is spent); -ENOMEM. */
int event_batch_next(struct event_batch *b, struct arena *arena, struct event *ret_event);

/* Write one: begin, add events, end. vLLM's first encoding (arrays), which every reader of events takes. Errors are the buf's. */
struct event_writer {
        struct buf events;
        uint32_t count;
};
void event_write_stored(struct event_writer *w, const struct event *e);
void event_write_removed(struct event_writer *w, const uint64_t *hashes, size_t count);
void event_write_cleared(struct event_writer *w);
/* The batch goes to `out`, and the writer is empty again (its memory stays). rank -1: not said. */
void event_write_batch(struct event_writer *w, double time, int64_t rank, struct buf *out);
void event_writer_free(struct event_writer *w);

/* ---- sequences ------------------------------------------------------------------------------------------------------ */

/* How much is known of a publisher's cache. */
enum follow_state {
        FOLLOW_LOST,     /* not connected: nothing is known any more */
        FOLLOW_CATCHING, /* connected; what was missed is asked for, or none has come yet, or it does not answer */
        FOLLOW_PARTIAL,  /* every batch from some time on: blocks of before are not known */
        FOLLOW_LIVE,     /* every batch since its cache was empty */
        FOLLOW_STATES,
};
const char *follow_state_name(enum follow_state s);

/* What to do with a batch. */
enum follow_verdict {
        FOLLOW_DROP,
        FOLLOW_APPLY,
        FOLLOW_CLEAR, /* forget all of this publisher, and drop the batch */
        FOLLOW_CLEAR_APPLY,
};

/* Follows the sequence of one publisher through gaps, replays, reconnections and restarts. A publisher that was started
 * again counts from 0 on: it is told from the same one by its last batch, asked for again, which has to be the same bytes. */
struct follow {
        bool can_replay, connected;
        bool begun;           /* a batch was taken, or it is known that there was none */
        bool complete;        /* nothing is missing */
        bool asking;          /* a replay is under way: no live batch is to be given */
        bool probing;         /* its first batch has to be the last one taken */
        bool checking;        /* it is asked for only to see that all is well */
        bool stale;           /* which it was not: no answer */
        bool from_start;      /* ask again, from 0 */
        bool wants;           /* it was asked for because of a live batch, with the number `wanted` */
        bool fruitless;       /* and did not bring that one */
        uint64_t next;        /* expected */
        uint64_t last_sum;    /* of the batch before it */
        uint64_t known_until; /* live batches before it were replayed, and come once more */
        uint64_t wanted, ask_from;
        bool ask; /* the caller is to ask for a replay from ask_from on (and then clears this) */
        uint64_t gaps, restarts, replays; /* totals */
};
void follow_init(struct follow *f, bool can_replay);
void follow_connected(struct follow *f);
void follow_lost(struct follow *f);
/* It has been silent for a while: see whether it has nothing to say. The last of what it said may have been lost, and a publisher
 * that hangs says nothing. */
void follow_check(struct follow *f);
enum follow_verdict follow_live(struct follow *f, uint64_t sequence, struct slice payload);
enum follow_verdict follow_replayed(struct follow *f, uint64_t sequence, struct slice payload);
/* The replay has ended, or, with `complete` false, has been given up: no answer. */
enum follow_verdict follow_replay_end(struct follow *f, bool answered);
void follow_cleared(struct follow *f); /* the batch that was applied said that all blocks are gone */
enum follow_state follow_state(const struct follow *f);

/* ---- subscriptions -------------------------------------------------------------------------------------------------- */

struct events_hub; /* a ZeroMQ context on a loop */
int events_hub_new(uv_loop_t *loop, const struct log *log, struct events_hub **ret_hub); /* 0, -ENOMEM */
void events_hub_free(struct events_hub *h); /* no subscription may be left; NULL is fine */

struct subscription;
struct subscription_options {
        const char *endpoint; /* "tcp://host:port" or "ipc://path" */
        const char *replay;   /* likewise; NULL: nothing can be asked for again */
        const char *topic;    /* what topics begin with; NULL: all */
        const char *name;     /* for logs; copied */
        unsigned replay_ms;   /* a replay that does not go on for so long is given up; 0: 5 s */
        unsigned check_ms; /* of silence, after which it is asked whether all is well (not without `replay`); 0: 5 s */
        /* Called from the loop. `on_batch` is given an opened batch. */
        void (*on_clear)(void *context);
        void (*on_event)(void *context, const struct event *e);
        void (*on_state)(void *context, enum follow_state s);
        void *context;
};
struct subscription_totals {
        uint64_t batches, bad, gaps, replays, restarts;
};
/* 0, -EINVAL (an endpoint that ZeroMQ does not take, with a text), -ENOMEM, -EMFILE. Texts are copied. */
int subscription_new(
    struct events_hub *h, const struct subscription_options *options, struct subscription **ret_s, struct error *e);
enum follow_state subscription_state(const struct subscription *s);
struct subscription_totals subscription_totals(const struct subscription *s);
/* No callback comes any more. Its memory goes when the loop has closed its handles. */
void subscription_close(struct subscription *s);
/* "tcp://HOST:PORT" with HOST `*` replaced by `host` and the port counted up by `rank`; ipc paths as they are. In `arena`. 0,
 * -EINVAL with a text, -ENOMEM. */
int events_endpoint(
    struct arena *arena, const char *endpoint, const char *host, unsigned rank, const char **ret_text, struct error *e);

/* ---- publishing ----------------------------------------------------------------------------------------------------- */

struct publisher;
struct publisher_options {
        const char *endpoint, *replay; /* to bind ("tcp://HOST:PORT", HOST may be *), replay NULL: none */
        const char *topic;
        uint32_t buffer_steps; /* batches kept for replays */
        uint32_t queue_steps;  /* batches that may wait to be sent */
        const struct log *log;
};
/* Bind, and begin to answer replays. 0, -ENOMEM, -EADDRINUSE or -EINVAL with a text. Texts are copied. */
int publisher_new(const struct publisher_options *options, struct publisher **ret_publisher, struct error *e);
void publisher_free(struct publisher *p); /* what was given is sent; NULL is fine */
/* Send a batch (its bytes are taken over, and `payload` is empty after it). Never waits: when too much waits already, the
 * batch is dropped and its number is left out, which those who follow see. One thread. */
void publisher_send(struct publisher *p, struct buf *payload);
uint64_t publisher_dropped(const struct publisher *p); /* any thread */
