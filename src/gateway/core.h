/* core.h - the gateway's inside, shared by its files: the gateway itself, requests, their parts, and legs.
 *
 * A request is a client's exchange and what it takes to answer it. It has one part for each choice that must be computed
 * on its own (a prompt of a list, one of n): almost always one. A part runs through one state machine (part.c), in which
 * it has at most one prefill leg and one decode leg at a time (leg.c). The request puts the parts' answers together
 * (request.c) and has one exit, request_settle(). */
#pragma once
#include "base/list.h"
#include "gateway/access.h"
#include "gateway/connector.h"
#include "gateway/continuation.h"
#include "gateway/gateway.h"
#include "gateway/join.h"
#include "gateway/relay.h"
#include "gateway/stats.h"
#include "http/sse.h"

struct gateway {
        uv_loop_t *loop;
        struct gateway_options options;
        const struct connector *connector;
        const struct log *log;
        struct http_server *server;
        struct http_client *client;
        struct pool *pool;
        struct stats stats;
        struct access access;
        struct http_field key_field;   /* "Authorization: Bearer API_KEY" */
        struct http_fields key_fields; /* it, or none */
        struct list requests;
        uint64_t request_count, leg_count;
        struct list waiting[ROLE_COUNT]; /* parts that need an instance of the role or a moment, oldest first */
        size_t waiting_count;
        uint64_t waiting_at;    /* when one of them is due, UINT64_MAX: none waits */
        bool freed[ROLE_COUNT]; /* an instance may take a leg that could not before: the oldest's, on the next turn */
        struct list unsent;     /* requests with bytes for their clients */
        unsigned char random[1024]; /* for ids, not used yet: the first random_left bytes */
        size_t random_left;
        struct arena spare_arenas[16]; /* of requests that have ended */
        size_t spare_arena_count;
        struct buf spare[16]; /* buffers that streams have emptied, for the next ones */
        size_t spare_count;
        uv_check_t flush; /* sends them once per turn of the loop, whatever came in during it */
        uv_timer_t timer; /* waiting parts, and what is done again and again, each at its own time */
        bool timer_open, listening;
        uint64_t periodic_at, silence_at;
        unsigned open_handles;
        struct list calls; /* of call.c: probes and the like */
        /* The end, in this order. */
        bool draining, abort_now, stopped, server_drained, closing;
        uint64_t drain_deadline;
        void (*on_drained)(void *context);
        void *drained_context;
};

uint64_t gateway_now(const struct gateway *g); /* ns, monotonic */
/* A part waits: look at it at `due`, or earlier. */
void gateway_wake_at(struct gateway *g, uint64_t due);
/* An instance may take a leg that could not before: those that wait for one try again, the oldest first. */
void gateway_wake_waiting(struct gateway *g, enum role role);
void gateway_request_gone(struct gateway *g); /* a request was freed: a drain may be over */

/* ---- legs ----------------------------------------------------------------------------------------------------------- */

struct leg_times {
        uint64_t begun, head, first, ended; /* ns, 0: not */
};

struct part;

struct leg {
        struct part *part;
        enum role role;
        struct instance *at; /* while in flight */
        struct load load;
        struct http_call *call; /* NULL: not in flight */
        struct buf body;        /* the answer, as far as it is gathered */
        struct leg_times times;
        int status;                /* of the answer, 0: no head */
        struct http_fields fields; /* end-to-end fields of the answer */
        bool event_stream;
        enum leg_end stopped_as; /* by leg_stop; LEG_DONE: not */
        uint64_t last_byte;
        const char *name; /* the instance's, in the request's arena */
        uint32_t instance_id;
        char why[256];
};

struct leg_request {
        const char *path;
        struct http_fields fields;
        struct body body;
        struct http_deadlines deadlines;
        uint64_t tokens; /* load */
        bool only_once;  /* never sent a second time, not even over a connection that may have been stale */
};

void leg_init(struct leg *l, struct part *part, enum role role);
/* Take the instance's load and start the call. 0, or a negative errno and nothing is taken. The answer comes in part_leg_data
 * (streams) and part_leg_end, the last one exactly once. Not while the leg is in flight. */
int leg_start(struct leg *l, struct instance *i, const struct leg_request *request);
static inline bool leg_in_flight(const struct leg *l) {
        return l->call != NULL;
}
/* End it: part_leg_end follows with `as`, LEG_ABORTED (nobody wants its answer), LEG_BROKEN (it shows no life) or LEG_ERROR
 * (what it says is wrong). Nothing when it is not in flight or stopped already. */
void leg_stop(struct leg *l, enum leg_end as);
void leg_free(struct leg *l);
/* Why it failed, for people; cut to fit. */
void leg_say(struct leg *l, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* ---- parts ---------------------------------------------------------------------------------------------------------- */

enum part_state {
        PART_IDLE,
        PART_NEED_PREFILL, /* waits for an instance or a moment */
        PART_PREFILL,
        PART_NEED_DECODE,
        PART_DECODE,      /* nothing of its answer has gone to the client */
        PART_RELAY,       /* something has */
        PART_LET_PREFILL, /* the client has left while the prefill answer was arriving */
        PART_LET_FETCH,   /* the client has left while the decode leg may not have fetched yet */
        PART_NEED_SETTLE,
        PART_SETTLE, /* a decode leg for nobody, so that the prefiller lets go of the KV */
        PART_END,
        PART_STATES,
};

enum part_event {
        PART_TRY, /* an instance may be there, a pause is over */
        PART_WAITED_TOO_LONG,
        PART_PREFILLED,      /* params are here */
        PART_PREFILL_FAILED, /* may be tried elsewhere */
        PART_PREFILL_REFUSED,
        PART_DECODE_BEGAN, /* bytes of an answer */
        PART_DECODED,      /* the answer is complete */
        PART_DECODE_FAILED,
        PART_DECODE_REFUSED,
        PART_GRACE_OVER,
        PART_STOP, /* the client has left, or the request has ended for another reason */
        PART_EVENTS,
};

#define PART_AVOID_MAX 16

struct part {
        struct request *request;
        enum part_state state;
        uint32_t index; /* of the choice in the client's answer */
        struct source source;
        const char *path;
        uint64_t prompt_tokens; /* estimate, for load */
        struct relay relay;
        struct sse *sse;
        struct leg prefill, decode;
        struct handoff handoff;
        uint64_t handoff_at;
        int64_t handoff_tokens; /* of the prompt, as the prefiller counted; -1: not known */
        bool handoff_used;      /* a decode leg with the params has reached an instance */
        struct load held;
        /* Attempts. */
        unsigned serial;            /* of the X-Request-Id */
        unsigned tries[ROLE_COUNT]; /* legs that failed, since one of that role last did its work */
        unsigned rounds, continuations;
        uint32_t avoid[PART_AVOID_MAX];
        size_t avoid_count;
        enum leg_end last_end;
        struct list link;        /* of settlers */
        bool bare;               /* the prefiller gave no params, and the decoder may compute the prompt itself */
        bool settler;            /* not a choice of the answer: frees the KV of a handoff that is not used */
        bool recomputed;         /* so the decoder said: it gave the request up for want of memory */
        bool moved;              /* its stream was cut, and no event of the leg that goes on has come yet */
        struct slice request_id; /* of the attempt, the same on both legs */
        /* Waiting: in gateway.waiting. */
        struct list waiting;
        bool is_waiting, client_is_slow;            /* the leg is paused until the client takes bytes */
        uint64_t due, deadline, wait_begun, waited; /* ns */
        /* The last whole answer of an instance, good or bad: what the client gets when nothing better comes. */
        struct buf answer;
        struct whole whole; /* a good one, taken apart */
        int answer_status;  /* 0: none */
        struct http_fields answer_fields;
        int64_t completion_tokens, prompt_counted; /* -1: not known */
};

void part_init(struct part *p, struct request *r, uint32_t index);
void part_free(struct part *p);
/* Every step of a part goes through here. */
void part_step(struct part *p, enum part_event event);
static inline bool part_is_over(const struct part *p) {
        return p->state == PART_END && !leg_in_flight(&p->prefill) && !leg_in_flight(&p->decode);
}
/* Called by leg.c. */
void part_leg_data(struct leg *l, struct slice data);
/* An answer that HTTP calls good is here whole: is it one? LEG_DONE, or LEG_ERROR or LEG_BROKEN with the reason said. */
enum leg_end part_leg_judge(struct leg *l);
void part_leg_end(struct leg *l, enum leg_end end);
void part_pause(struct part *p);  /* the client takes no more for now */
void part_resume(struct part *p); /* it does again */
/* Of a waiting part: when a moment comes, or waiting will have been too long. */
uint64_t part_due(const struct part *p);
void part_tick(struct part *p, uint64_t now); /* what of it is so now */

/* ---- requests ------------------------------------------------------------------------------------------------------- */

enum answer_state { ANSWER_NONE, ANSWER_BEGUN, ANSWER_ENDED };

struct request {
        struct gateway *g;
        struct list link;
        struct http_exchange *x; /* NULL when the exchange has ended */
        struct buf pending;      /* stream bytes of this turn of the loop */
        struct list unsent;      /* in gateway.unsent while there are some */
        struct arena arena;
        struct buf body;
        struct facts facts;
        struct http_fields fields; /* end-to-end fields of the client, less those that each leg sets */
        struct slice id;           /* X-Request-Id of the first attempt */
        const char *peer;
        struct part *parts;
        size_t part_count, started, over, done; /* parts begun, in PART_END, answered */
        struct list settlers;                   /* parts with `settler` set, by `link` */
        enum answer_state answer;
        int status;
        bool stream, gone, failed;
        bool wants_notes; /* comments in its stream that tell where it is continued */
        uint64_t begun, first, ended;
        uint64_t bytes_out;
        unsigned retries, continued;
        const char *end; /* for the access log */
};

/* The on_request of inference routes. */
void request_new(struct gateway *g, struct http_exchange *x, enum api api);
void request_settle(struct request *r); /* see whether it is over; the request may be gone after it */
/* Abort everything (drain past its deadline). The request may be gone after it. */
void request_stop(struct request *r);

/* Called by part.c. */
/* The first bytes of a stream are here: send the head. False: the client is not there any more. */
bool request_begin_stream(struct request *r, struct part *p);
/* Have memory for bytes at hand in r->pending. */
void request_take_buffer(struct request *r);
/* Bytes were added to r->pending: they leave at the end of this turn of the loop, together with what else comes. */
void request_send_pending(struct request *r);
/* Send them now; called once per turn for each request of gateway.unsent. */
void request_flush(struct request *r);
/* A part's answer is complete (whole in part->answer, or relayed). */
void request_part_done(struct request *r, struct part *p);
/* A part has reached PART_END, for whatever reason. */
void request_part_over(struct request *r, struct part *p);
/* A part cannot be answered. Before the first byte the client gets the status (the upstream's own answer when
 * part->answer_status says so), after it an SSE error event. */
void request_part_failed(struct request *r, struct part *p, int status, const char *type, const char *message);

/* ---- small calls: probes, models, resets ---------------------------------------------------------------------------- */

struct call;
typedef void (*call_done)(void *context, int status, struct http_fields fields, struct slice body, const char *why);
/* One request to an instance, its answer gathered (at most 16 MiB). `done` is called once, with status 0 and a reason when
 * there was no whole answer. The instance may go meanwhile: who needs it then holds a reference, as a probe does. NULL
 * when the call could not be started (`done` is not called). */
struct call_request {
        enum http_method method;
        const char *target;
        struct http_fields fields;
        struct slice body; /* copied */
        unsigned timeout_ms;
};
struct call *call_start(
    struct gateway *g, const struct instance *i, const struct call_request *request, call_done done, void *context);
void call_abort_all(struct gateway *g);

/* ---- header fields (fields.c) ---------------------------------------------------------------------------------------- */

/* Copies in `arena` of the end-to-end fields of an instance's answer, less those that our framing sets; or of a client's
 * request, less those named in `without` (ended by NULL), with --api-key where it has no Authorization. 0 or -ENOMEM. */
int fields_of_answer(struct http_fields from, struct arena *arena, struct http_fields *ret_fields);
int fields_of_client(const struct gateway *g, struct http_fields from, const char *const *without, struct arena *arena,
    struct http_fields *ret_fields);

/* ---- the rest ------------------------------------------------------------------------------------------------------- */

bool health_probe(struct gateway *g); /* start probes that are due; true: there are more of them */
void route_request(struct gateway *g, struct http_exchange *x); /* admin.c: finds who answers */
/* errand.c: pass an exchange to one instance as it is, trying others when one fails; or send it to all of them. */
void errand_forward(struct gateway *g, struct http_exchange *x);
void errand_broadcast(struct gateway *g, struct http_exchange *x);
bool gateway_is_ready(const struct gateway *g);
int gateway_add_member(struct gateway *g, const struct gateway_member *m, bool later, struct error *e);
/* options.c; also for /instances/add. */
int gateway_member_parse(struct slice text, struct gateway_member *ret_member, struct error *e);
/* "host:port[@rank]" of a member: its key. In `arena`. */
int gateway_member_key(struct arena *arena, const struct gateway_member *m, struct http_endpoint *ret_endpoint,
    const char **ret_key, struct error *e);
/* An error in vLLM's shape. */
void gateway_respond_error(struct http_exchange *x, int status, const char *type, const char *message);
