/* core.h - the inside of a struct engine (private to engine/).
 *
 * The front (one thread) and the engine thread meet in `mailbox` only: commands in, outputs out, behind one lock that is held
 * for list operations. Everything below `engine thread` is touched by that thread alone once it runs; while it samples, each
 * worker of the compute touches the requests of its own jobs. */
#pragma once
#include "engine/form.h"
#include "engine/metrics.h"
#include "engine/request.h"
#include "events/events.h"
#include <pthread.h>
#include <stdatomic.h>

#define DRAFTS_MAX 8u

struct command {
        enum { COMMAND_SUBMIT, COMMAND_ABORT, COMMAND_UNEXPECT, COMMAND_RESET_CACHE } kind;
        struct request *request; /* SUBMIT: handed over */
        engine_id id;            /* ABORT, UNEXPECT */
        enum finish_reason reason;
        struct engine_reset *reset; /* RESET_CACHE: handed over, and back */
        struct command *next;
};

struct mailbox {
        pthread_mutex_t lock;
        pthread_cond_t work;  /* for the engine thread: commands, stopping */
        pthread_cond_t reply; /* for the front: ended */
        struct command *first, *last;
        struct output *out_first, *out_last;
        struct engine_reset *resets;              /* done */
        uint32_t queued;                          /* submitted and not yet ended */
        bool started, stopping, abort_all, ended; /* the thread's life */
        bool moved;                               /* comm_take() has something */
};

#define ID_BUCKETS 4096u

/* One planned sequence in the second half of a step. */
struct job {
        struct request *request; /* NULL: it has ended */
        const float *logits;     /* of its first wanted row; NULL: none are wanted */
        uint32_t first, rows;    /* as planned; after sampling: as verified */
        uint32_t drafts;         /* among the rows */
        bool ends;               /* the rows reach the sequence's end: a token comes out */
        struct output *output;   /* new tokens */
        bool ending; /* the output is the last, but told only when the drafts' KV is there, too: it is kept */
};

/* Of this step, not yet published. */
struct engine_events {
        struct event_writer writer;
        uint64_t removed[256];
        size_t removed_count;
        struct buf batch;
        uint64_t told_dropped;
};

struct engine {
        struct engine_options options;
        const struct model_config *config;
        struct mailbox mailbox;
        struct engine_metrics metrics;
        pthread_t thread;
        bool started;      /* front thread: to be joined */
        engine_id last_id; /* front thread */

        /* engine thread */
        struct kv_cache kv;
        struct comm *comm; /* NULL: no transfer */
        char digest[33];   /* of the model, as its KV tells it */
        struct comm_fact facts[2];
        uint32_t kept;       /* prompts whose KV is held for others, or being pushed */
        struct group *group; /* NULL: alone */
        struct comm_fact group_facts[7];
        struct placement placement; /* of the group's options, when they bring none */
        char draft_text[12], slot_text[12];
        int wake_fd; /* with a group: an eventfd beside mailbox.work, which cannot be waited for with sockets */
        _Atomic bool complete; /* the group is; any thread */
        uint64_t told_ns;      /* when a person was last told that a rank does not fit */
        struct blocks *blocks;
        struct engine_events events;
        struct scheduler scheduler;
        struct request *by_id[ID_BUCKETS];
        struct output *outbox_first, *outbox_last; /* of this step, not yet in the mailbox */
        uint32_t outbox_ends;
        uint64_t seed;
        uint32_t *tokens, *logit_rows; /* of the step */
        struct model_span *spans;
        struct job *jobs;
        size_t job_count;
        float *logits, *hidden, *draft_hidden;
        size_t logits_capacity;          /* rows */
        struct sampler_scratch *scratch; /* for every worker */
        unsigned workers;
};

/* loop.c */
void *engine_thread(void *engine);
/* Take commands, compute one step if there is anything to compute, tell. False when nothing was done. The engine thread, or
 * a test that runs none. */
bool engine_step(struct engine *g);

/* Room for so many rows in g->logits. 0 or -ENOMEM. */
int reserve_logits(struct engine *g, size_t rows);

/* transfer.c: KV from and for other engines. */
int transfer_new(struct engine *g, struct error *e);
/* A new request wants KV from elsewhere: see that it is kept there. 0, -EINVAL or -ENOMEM. */
int transfer_announce(struct engine *g, struct request *q, const struct engine_remote *remote);
/* A new request's KV will be written by another engine. */
void transfer_expect(struct request *q);
/* A new request's KV is to go elsewhere. 0, -EINVAL or -ENOMEM. */
int transfer_push(struct engine *g, struct request *q, const struct engine_remote *remote);
/* It is admitted: let its decoder know. */
void transfer_admit(struct request *q);
/* After a plan: begin its fetches and pushes, and let go of what its rows make needless. */
void transfer_begin(struct engine *g);
/* model_step.on_rows of the step whose jobs and spans are g's: push what is there. */
void transfer_rows(void *engine, uint32_t layer);
/* Is anything pushed in this step? */
bool transfer_pushes(const struct engine *g);
/* The request has ended so, but its KV is not all pushed yet: the output is kept until then. False: it can be told. */
bool transfer_lingers(struct engine *g, struct request *q, struct output *o);
/* What the request waits for will not be written. */
void transfer_unexpect(struct engine *g, engine_id id);
/* The request ends: what it fetches, or pushes, is not wanted any more. */
void transfer_forget(struct engine *g, struct request *q);
/* Is its KV to be kept when it ends so? */
bool transfer_keeps(const struct engine *g, const struct request *q, enum finish_reason finish);
/* Keep it, and say so in the output. Without memory it is not kept. */
void transfer_keep(struct engine *g, const struct request *q, struct output *o);
/* Take what comm has told. True when there was any. */
bool transfer_take(struct engine *g);

/* events.c: KV events, where there is a publisher. events_watch: from now on; events_flush: the step is over. */
void events_watch(struct engine *g);
void events_flush(struct engine *g);
void events_free(struct engine *g);

/* engine.c: the mailbox has something for the engine thread; its lock is held. */
void wake_engine(struct engine *g);

/* loop.c: tell what is no end, or the end that was kept in q->pending. */
void tell_output(struct engine *g, const struct request *q, struct output *o);
void end_lingering(struct engine *g, struct request *q);
/* loop.c: end a request for a reason that is not its tokens'. `error` is static text or NULL. */
void end_request(struct engine *g, struct request *q, enum finish_reason finish, const char *error);
struct request *find_request(struct engine *g, engine_id id); /* NULL: none */

/* sample.c: tokens out of the step's logits, every job on some worker. */
void sample_step(struct engine *g);

/* draft.c: propose tokens for the next step from the hidden states of this one. 0 or what the model returned. */
int draft_step(struct engine *g);
