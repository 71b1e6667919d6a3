/* core.h - the inside of a struct comm (private to comm/).
 *
 * The engine's thread and comm's meet behind `lock` only: what is asked for goes in as leases and fetches, ends come back as
 * events, which are part of them, so that no end is lost for want of memory. Everything else is comm's thread's. */
#pragma once
#include "base/list.h"
#include "comm/pieces.h"
#include "comm/ucx.h"
#include "comm/wire.h"
#include <pthread.h>
#include <uv.h>

/* How often expiries, silences and beats are looked at, while there is anything to look at. */
#define TICK_MS 100u
/* Bytes that go in one piece of work, so that other connections get their turn. */
#define TURN_BYTES  (4u << 20)
#define TURN_PIECES 64u
/* Readers at once, and what one may leave unread of answers other than payload. */
#define READERS_MAX 4096u
#define UNREAD_MAX  (4u << 20)

#define LEASE_BUCKETS 1024u

struct source; /* a connection to a prefiller: fetch.c */

/* An exported prompt. */
struct lease {
        struct comm_event event; /* first: it is what comm_event_free() frees */
        struct list ask_link;    /* in comm.asked_leases, under the lock */
        struct list link;        /* in comm.leases */
        struct lease *next_in_bucket;
        uint64_t expires; /* loop time, ms; also while it is read, when its reader says nothing */
        struct reader *reader;
        struct list reader_link; /* in reader.queue, until it is sent */
        uint64_t tag;
        uint32_t first, end, group; /* as asked for */
        bool checksum_wanted;
        uint32_t tokens;
        char *id;
        size_t id_bytes;
        uint32_t blocks[];
};

enum fetch_state {
        FETCH_ANNOUNCED, /* kept alive */
        FETCH_WANTED,    /* to be sent once connected */
        FETCH_LEFT,      /* to be released once connected */
        FETCH_SENT,
        FETCH_RECEIVING, /* payload comes */
        FETCH_COPYING,   /* out of the producer's memory */
        FETCH_DRAINING,  /* it has failed, but UCX still writes */
        FETCH_CLOSING,   /* all is here; does the lease still hold? */
        FETCH_ENDED
};

struct comm_fetch {
        struct comm_event event; /* first */
        struct comm *comm;
        struct list ask_link; /* in comm.asked_fetches, under the lock */
        bool asked_start, asked_drop, told;

        struct list link; /* in source.fetches */
        struct source *source;
        enum fetch_state state;
        bool dropped;
        uint64_t tag, next_beat, begun_ns;
        uint32_t first, end;
        uint32_t *blocks; /* owned */
        size_t block_count;
        struct pieces here, there;
        struct ucx_read read;
        uint64_t read_seen;     /* of read.ended */
        uint32_t *there_blocks; /* owned: the producer's table */
        struct iovec window;    /* where the next bytes of the payload go */
        uint64_t left;          /* of the payload */
        uint64_t checksum;
        struct slice host, engine_id, id; /* in `names` */
        uint16_t port;
        char text[256];
        char names[];
};

/* A connection from another rank: of a decoder that reads leases, or of a prefiller that writes. It sends one lease at a time,
 * in the order they were asked for. */
struct reader {
        struct comm *comm;
        struct list link;
        uv_tcp_t tcp;
        struct buf in;
        bool greeted, closing;
        uint64_t greet_by;
        bool same_host;
        struct list queue;   /* leases to be sent, the first is under way when `writing` */
        struct list reading; /* leases that were sent or told, until they are closed */
        uv_write_t write;
        bool writing;
        struct pieces pieces;
        struct comm_receipt *receipt; /* what it writes; NULL: it does not */
};

/* Blocks that another rank is to write. */
struct comm_receipt {
        struct comm_event event; /* first */
        struct comm *comm;
        struct list ask_link; /* in comm.asked_receipts, under the lock */
        bool asked_drop, told;

        struct list link; /* in comm.receipts */
        bool begun;       /* it is there */
        uint64_t expires; /* loop time, ms: without a sign until then it ends */
        uint64_t begun_ns;
        struct reader *writer; /* NULL: nobody yet */
        bool closing;          /* all is here; was it valid? */
        struct kv_pool there;  /* the writer's memory, pid 0: by its connection */
        uint64_t pid, tag;
        uint32_t first, end;
        struct pieces here; /* of the ROWS whose bytes come */
        struct iovec window;
        uint64_t left;
        uint32_t *done; /* of each layer: tokens up to here are written */
        char *id;
        size_t id_bytes;
        char text[256];
        uint32_t blocks[]; /* then `done`, then the id */
};

enum push_state {
        PUSH_NEW,
        PUSH_RESOLVING,
        PUSH_CONNECTING,
        PUSH_GREETING,
        PUSH_OPENING,    /* does the decoder expect it? */
        PUSH_WRITING,    /* rows go as they come */
        PUSH_COMPLETING, /* all is sent; has it come? */
        PUSH_ENDED
};

struct rows {
        uint32_t layer, first, end;
};

struct comm_push {
        struct comm_event event; /* first */
        struct comm *comm;
        /* Under the lock. */
        struct list ask_link; /* in comm.asked_pushes */
        bool asked_drop, told;
        struct buf added; /* struct rows each, not yet seen by comm's thread */
        uint64_t last_ns; /* when the newest were */
        uint32_t *blocks; /* owned; set once, before rows */

        struct list link; /* in comm.pushes */
        enum push_state state;
        struct writer *writer; /* its connection: push.c */
        struct buf rows;       /* struct rows each: to be sent, from rows_at on */
        size_t rows_at;
        uint64_t sent, total; /* bytes */
        uint32_t first, end;
        struct slice host, engine_id, id; /* in `names` */
        uint16_t port;
        char text[256];
        char names[];
};

struct comm {
        struct comm_options options;
        struct kv_pool pool;
        uint8_t proof[WIRE_PROOF_BYTES];
        uint16_t port;
        pthread_t thread;
        bool started;

        pthread_mutex_t lock;
        struct list asked_leases, asked_fetches, asked_receipts, asked_pushes;
        struct comm_event *first_event, *last_event;
        struct buf withdrawn; /* names of leases, each with a NUL */
        bool stopping;

        /* comm's thread */
        uv_loop_t loop;
        uv_async_t asked;
        uv_timer_t tick;
        uv_idle_t copy;
        struct ucx *ucx; /* NULL: none */
        uv_tcp_t listener;
        bool has_listener;
        struct list leases, readers, sources, receipts, pushes, writers;
        struct lease *by_id[LEASE_BUCKETS];
        size_t reader_count, lease_count, copying;
};

/* comm.c */
void comm_tell(struct comm *c, struct comm_event *event, int result, const char *text);
uint64_t comm_now(const struct comm *c);
/* Take in what was asked for since the last time: before a message is answered, so that an export made before its name went
 * out is known when somebody comes with the name. */
void comm_take_asked(struct comm *c);
void comm_need_ticks(struct comm *c); /* something has a deadline */
/* Write a message, or give up. The stream is closed by the caller when this returns < 0 (-ENOMEM, what libuv says). */
int comm_send(uv_stream_t *to, const struct wire_message *m);
void comm_introduce(const struct comm *c, struct wire_message *m, const char *own_facts[2]);
/* The first fact that a welcome says otherwise than this side, as a text; "" when there is none. */
void comm_compare(const struct comm *c, const struct wire_message *welcome, char *ret_text, size_t bytes);
/* Where this process's cache may be read from by another of this host. */
void comm_tell_memory(const struct comm *c, bool same_host, struct wire_message *m);
/* Do both ends of the connection have one address? Then they are of one host, or of one network namespace. */
bool comm_has_one_host(const uv_tcp_t *tcp);
/* A checksum of the pieces in their order. */
uint64_t comm_checksum(struct pieces p);

/* lease.c */
int leases_listen(struct comm *c, struct error *e);
void lease_begin(struct comm *c, struct lease *l);
/* These two: true while anything has a deadline. */
bool leases_tick(struct comm *c, uint64_t now);
void leases_withdraw(struct comm *c, struct slice names); /* each with a NUL */
void readers_close(struct comm *c);
/* Send, or close when that cannot be. */
void reader_send(struct reader *r, const struct wire_message *m);
void reader_refuse(struct reader *r, uint64_t tag, int error, const char *text);
void reader_close(struct reader *r, int error);

/* receive.c: what others write */
void receipt_asked(struct comm_receipt *x, bool drop);
void receipt_free(struct comm_receipt *x);
void receipt_open(struct reader *r, const struct wire_message *m); /* PUSH */
void receipt_take(struct reader *r, const struct wire_message *m); /* what comes then */
/* Where the writer's next bytes go; len 0: they are messages. */
struct iovec receipt_window(struct reader *r);
void receipt_pass(struct reader *r, size_t bytes); /* so many have come there */
/* The connection has ended. */
void receipt_cut(struct comm_receipt *x, int error);
bool receipts_tick(struct comm *c, uint64_t now); /* true while anything has a deadline */
void receipts_close(struct comm *c);

/* push.c: what is written to others */
void push_asked(struct comm_push *p, bool drop);
void push_free(struct comm_push *p);
bool pushes_tick(struct comm *c, uint64_t now); /* true while anything has a deadline */
void pushes_close(struct comm *c);

/* fetch.c */
/* It is new, or is to start, or is not wanted any more. */
void fetch_asked(struct comm_fetch *f, bool start, bool drop);
bool fetches_tick(struct comm *c, uint64_t now);
void sources_close(struct comm *c);
void sources_free(struct comm *c);

/* direct.c */
/* Can the process's memory be read, and is it the one that the message came from? */
bool direct_proves(const struct wire_message *welcome);
/* The pieces of the next turn: how many, at most TURN_PIECES, of TURN_BYTES together; 0 at the end. */
unsigned comm_turn(struct pieces *p, uv_buf_t *out);
/* Copy up to TURN_BYTES. Returns 1 when there is more, 0 at the end, or a negative errno. */
int direct_copy(uint64_t pid, struct pieces *here, struct pieces *there);
