/* core.h - the gateway's inside, shared by its files: the gateway itself, requests, their parts, and legs.
 *
 * A request is a client's exchange and what it takes to answer it. It has one part for each choice that must be computed
 * on its own (a prompt of a list, one of n): almost always one. A part runs through one state machine (part.c), in which
 * it has at most one prefill leg and one decode leg at a time (leg.c). The request puts the parts' answers together
 * (request.c) and has one exit, request_settle(). */
#pragma once
#include "base/json.h"
#include "base/list.h"
#include "gateway/access.h"
#include "gateway/connector.h"
#include "gateway/continuation.h"
#include "gateway/gateway.h"
#include "gateway/history.h"
#include "gateway/join.h"
#include "gateway/queue.h"
#include "gateway/relay.h"
#include "gateway/stats.h"
#include "gateway/tokens.h"
#include "http/sse.h"

#define ASKING_BUCKETS 1024 /* thousands of decoders' reservations at once make a few in each */

/* Requests that may not begin yet, and how many have (admission.c). */
struct admission {
        struct queue queue;
        struct list arrivals; /* the same requests by age: the first is given up first */
        uint64_t admitted;
        uint64_t last_wait; /* of the last one let in, ns */
        uint64_t seed;      /* of tenants' hashes: nobody can choose a name that is another's */
};

struct gateway {
        uv_loop_t *loop;
        struct gateway_options options;
        const struct connector *connector;
        const struct log *log;
        struct http_server *server;
        struct http_server *admin_server; /* NULL: admin routes are at `server` */
        struct http_client *client;
        struct pool *pool;
        struct events_hub *events; /* NULL: nobody's KV events are followed */
        struct tokens_reader tokens;
        struct stats stats;
        struct access access;
        struct history history;
        struct http_field key_field;   /* "Authorization: Bearer API_KEY" */
        struct http_fields key_fields; /* it, or none */
        struct list requests;
        uint64_t request_count, stream_count, leg_count;
        size_t body_bytes, max_body_bytes; /* of what clients have sent and is still needed */
        struct list waiting[ROLE_COUNT];   /* parts that need an instance of the role or a moment, oldest first */
        size_t waiting_count;              /* with those of the admission */
        struct admission admission;
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
        uint64_t periodic_at, silence_at, sample_at;
        unsigned open_handles;
        struct list calls; /* of call.c: probes and the like */
        /* Of a push connector: where decoders ask for their prefills, and the parts whose decoder may, by request id. */
        struct slice metaserver;
        struct list asking[ASKING_BUCKETS];
        /* The end, in this order. */
        bool draining, abort_now, stopped, closing;
        unsigned servers_open; /* that listen, or still have exchanges */
        uint64_t drain_deadline;
        void (*on_drained)(void *context);
        void *drained_context;
};

uint64_t gateway_now(const struct gateway *g); /* ns, monotonic */
/* A part waits: look at it at `due`, or earlier. */
void gateway_wake_at(struct gateway *g, uint64_t due);
/* An instance may take a leg that could not before: those that wait for one try again, the oldest first. */
void gateway_wake_waiting(struct gateway *g, enum role role);
/* There may be room for those that wait to be let in. */
void gateway_wake_admission(struct gateway *g);
/* The role that takes a request's first leg. */
enum role gateway_first_role(const struct gateway *g);
/* The oldest part that waits for an instance (not for a moment). NULL: none. */
struct part *gateway_first_in_need(struct gateway *g, enum role role);
/* Bodies are kept until their request is answered: all of them together are bounded (--max-bodies-size). Adds `data` to
 * one; false: there is no room (`body` is as it was), or it has failed for want of memory. */
bool gateway_keep_body(struct gateway *g, struct buf *body, struct slice data);
void gateway_drop_body(struct gateway *g, struct buf *body); /* frees it */
void gateway_respond_full(struct http_exchange *x);          /* 503: there was no room */
void gateway_request_gone(struct gateway *g);                /* a request was freed: a drain may be over */

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
/* End it: part_leg_end follows with `as`, LEG_ABORTED (nobody wants its answer), LEG_BROKEN (it shows no life), LEG_TIMEOUT
 * (it does not get on) or LEG_ERROR (what it says is wrong). Nothing when it is not in flight or stopped already. */
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
        PART_RESERVE,     /* push: a decode leg whose decoder has not asked for its prefill yet */
        PART_NEED_PUSH,   /* it has; a prefiller is waited for */
        PART_BOTH,        /* prefill and decode leg at once; of a push, the decoder has asked */
        PART_CLEAR,       /* a leg of an attempt that has failed is being cut: the next one begins when it is gone */
        PART_DECODE,      /* nothing of its answer has gone to the client */
        PART_RELAY,       /* something has */
        PART_LET_PREFILL, /* the client has left while the prefill answer was arriving */
        PART_LET_BOTH,    /* the client has left with both legs under way */
        PART_LET_FETCH,   /* the client has left while the decode leg may not have fetched yet */
        PART_NEED_SETTLE,
        PART_SETTLE, /* a decode leg for nobody, so that the prefiller lets go of the KV */
        PART_END,
        PART_STATES,
};
const char *part_state_name(enum part_state s);

enum part_event {
        PART_TRY, /* an instance may be there, a pause is over */
        PART_WAITED_TOO_LONG,
        PART_ASKED,          /* the decoder asks for its prefill */
        PART_PREFILLED,      /* params are here */
        PART_PREFILL_FAILED, /* may be tried elsewhere */
        PART_PREFILL_REFUSED,
        PART_DECODE_BEGAN, /* bytes of an answer */
        PART_DECODED,      /* the answer is complete */
        PART_DECODE_FAILED,
        PART_DECODE_REFUSED,
        PART_CLEARED, /* a leg that was cut is gone */
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
        struct prompt prompt;   /* without keys where no policy wants them */
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
        struct list asking;      /* in gateway.asking, by request_id, while the decoder may ask */
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
/* A decode leg is under way, and nothing of its answer has gone to the client. */
static inline bool part_is_decoding(const struct part *p) {
        return p->state == PART_RESERVE || p->state == PART_NEED_PUSH || p->state == PART_BOTH ||
               p->state == PART_DECODE;
}
/* part_leg.c, called by leg.c. */
void part_leg_data(struct leg *l, struct slice data);
/* An answer that HTTP calls good is here whole: is it one? LEG_DONE, or LEG_ERROR or LEG_BROKEN with the reason said. */
enum leg_end part_leg_judge(struct leg *l);
void part_leg_end(struct leg *l, enum leg_end end);
void part_pause(struct part *p);  /* the client takes no more for now */
void part_resume(struct part *p); /* it does again */
/* The decoder asks for the prefill of the part with this id, with `asked` (JSON) for the prefiller. 0, also when it has asked
 * before; -ENOENT: no decoder is to ask under that id (any more); -ENOMEM. */
int part_ask(struct gateway *g, struct slice request_id, struct slice asked);
/* Give up on a decoder that does not ask for so long. */
void part_tick_reserve(struct part *p, uint64_t now);
/* Of a waiting part: when a moment comes, or waiting will have been too long. */
uint64_t part_due(const struct part *p);
void part_tick(struct part *p, uint64_t now); /* what of it is so now */

/* Where a prefiller is met: as given, or where those of vLLM (VLLM_MOONCAKE_BOOTSTRAP_PORT) and SGLang are unless told
 * otherwise. */
static inline uint16_t gateway_bootstrap_port(const struct instance *i) {
        return i->bootstrap_port ? i->bootstrap_port : 8998;
}

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
        uint64_t session;          /* a hash of --session-header's value, 0: it was not sent */
        /* Admission. */
        struct queue_entry place;
        struct list arrival;
        int64_t priority;
        uint64_t tenant, queued_at, queued; /* ns; queued_at 0: it does not wait */
        bool admitted;
        struct slice trace; /* traceparent, the client's or our own */
        const char *peer;
        struct part *parts;
        size_t part_count, started, over, done; /* parts begun, in PART_END, answered */
        struct list settlers;                   /* parts with `settler` set, by `link` */
        enum answer_state answer;
        int status;
        bool stream, gone, failed;
        bool wants_notes; /* comments in its stream that tell where it is continued */
        uint64_t begun, first, ended;
        uint64_t last_sent; /* to the client, ns; only with --keepalive-secs */
        uint64_t bytes_out;
        unsigned retries, continued;
        const char *end; /* for the access log */
};

/* The on_request of inference routes. */
void request_new(struct gateway *g, struct http_exchange *x, enum api api);
void request_settle(struct request *r); /* see whether it is over; the request may be gone after it */
/* Abort everything (drain past its deadline). The request may be gone after it. */
void request_stop(struct request *r);

/* Called by admission.c. */
void request_start(struct request *r);
/* Answer it before it has begun. `retry_after` in seconds, 0: not said. */
void request_refuse(struct request *r, const struct openai_error *e, unsigned retry_after);

/* Called by part.c. */
/* 128 bits from the kernel as hex digits: nobody can guess an id. SLICE_NONE: no memory. */
struct slice request_random_id(struct request *r);
/* The first bytes of a stream are here: send the head. False: the client is not there any more. */
bool request_begin_stream(struct request *r, struct part *p);
/* Have memory for bytes at hand in r->pending. */
void request_take_buffer(struct request *r);
/* Bytes were added to r->pending: they leave at the end of this turn of the loop, together with what else comes. */
void request_send_pending(struct request *r);
/* With --keepalive-secs: a comment, when the client of a stream has got nothing for so long. The status 200 leaves with it;
 * what fails from then on is an error event. */
void request_keep_alive(struct request *r, uint64_t now);
/* Send them now; called once per turn for each request of gateway.unsent. */
void request_flush(struct request *r);
/* A part's answer is complete (whole in part->answer, or relayed). */
void request_part_done(struct request *r, struct part *p);
/* A part has reached PART_END, for whatever reason. */
void request_part_over(struct request *r, struct part *p);
/* A part cannot be answered. Before the first byte the client gets the status (the upstream's own answer when
 * part->answer_status says so), after it an SSE error event. */
void request_part_failed(struct request *r, struct part *p, int status, const char *type, const char *message);

/* ---- admission ------------------------------------------------------------------------------------------------------ */

void admission_read(struct request *r, struct http_fields fields); /* what the client's fields say of its place */
/* The request is read: it begins at once, waits, or is answered 429 (it, or another that it takes the place of). */
void admission_enter(struct request *r);
void admission_leave(struct request *r); /* it is over; nothing when it was not in */
/* Let in those that there is room for, and send away those that have waited too long. */
void admission_tick(struct gateway *g, uint64_t now);

/* ---- small calls: probes, models, resets ---------------------------------------------------------------------------- */

struct call;
typedef void (*call_done)(void *context, int status, struct http_fields fields, struct slice body, const char *why);
/* One request to an instance, its answer gathered (at most 16 MiB). `done` is called once, with status 0 and a reason when
 * there was no whole answer. The instance may go meanwhile: who needs it then holds a reference, as a probe does. NULL
 * when the call could not be started (`done` is not called). */
struct call_request {
        enum http_method method;
        const char *target;
        uint16_t port; /* of the instance's host; 0: its own */
        struct http_fields fields;
        struct slice body; /* copied */
        unsigned timeout_ms;
};
struct call *call_start(
    struct gateway *g, const struct instance *i, const struct call_request *request, call_done done, void *context);
void call_abort_all(struct gateway *g);

/* ---- header fields (fields.c) ---------------------------------------------------------------------------------------- */

/* Copies in `arena` of the end-to-end fields of an instance's answer, less those that our framing sets; or of a client's
 * request, less those named in `without` (ended by NULL), with --api-key where it has no Authorization, and with `more`
 * behind them (borrowed). 0 or -ENOMEM. */
int fields_of_answer(struct http_fields from, struct arena *arena, struct http_fields *ret_fields);
int fields_of_client(const struct gateway *g, struct http_fields from, const char *const *without,
    struct http_fields more, struct arena *arena, struct http_fields *ret_fields);
/* The one valid traceparent among `fields` (W3C Trace Context, level 1, 3.2), or SLICE_NONE. */
struct slice fields_trace(struct http_fields fields);

/* ---- KV events (events.c) ------------------------------------------------------------------------------------------- */

int events_check(const struct gateway_options *o, struct error *e); /* of --kv-events: 0, or -EINVAL with a text */
int events_start(struct gateway *g, struct error *e);               /* 0 or -ENOMEM: follow those that are here */
void events_follow(struct gateway *g, struct instance *i);          /* nothing where it is not to be followed */
void events_unfollow(struct instance *i);
void events_stop(struct gateway *g); /* all of them */

/* ---- the rest ------------------------------------------------------------------------------------------------------- */

bool health_probe(struct gateway *g); /* start probes that are due; true: there are more of them */
/* admin.c: finds who answers. The admin routes are at a listener of their own, where there is one. */
enum listener { LISTENER_ALL, LISTENER_CLIENTS, LISTENER_ADMIN };
void route_request(struct gateway *g, struct http_exchange *x, enum listener at);
void metaserver_post(struct gateway *g, struct http_exchange *x); /* metaserver.c */
/* errand.c: pass an exchange to one instance as it is, trying others when one fails; or send it to all of them. */
void errand_forward(struct gateway *g, struct http_exchange *x);
void errand_broadcast(struct gateway *g, struct http_exchange *x);
/* debug.c: what can be seen of it, as JSON: the requests in flight (the oldest DEBUG_ROWS_MAX); or instances, gauges and
 * the last minutes. */
#define DEBUG_ROWS_MAX 1000
void debug_write_requests(const struct gateway *g, struct json_writer *w);
void debug_write_load(const struct gateway *g, struct json_writer *w);
void get_ui(struct gateway *g, struct http_exchange *x); /* ui.c: GET /ui */
struct stats_now gateway_measure(const struct gateway *g);
bool gateway_is_ready(const struct gateway *g);
int gateway_add_member(struct gateway *g, const struct gateway_member *m, bool later, struct error *e);
/* admin.c: what /instances/add and /instances/remove do with one address. 0 (also for one that is there already), -ENOENT,
 * -EINVAL or -ENOMEM, with a text. */
enum change { CHANGE_ADD, CHANGE_REMOVE };
int gateway_change_member(struct gateway *g, const struct gateway_member *m, enum change change, struct error *e);
/* workers.c: vllm-router's routes for membership. */
void workers_add(struct gateway *g, struct http_exchange *x);
void workers_remove(struct gateway *g, struct http_exchange *x);
void workers_list(struct gateway *g, struct http_exchange *x);
void workers_get(struct gateway *g, struct http_exchange *x);
void workers_post(struct gateway *g, struct http_exchange *x);
void workers_get_one(struct gateway *g, struct http_exchange *x);
void workers_delete(struct gateway *g, struct http_exchange *x);
/* options.c: ranks behind an address of the role, by the options; 0: it is not said. */
unsigned gateway_ranks_of(const struct gateway_options *o, bool prefill);
/* options.c; also for /instances/add. */
int gateway_member_parse(struct slice text, struct gateway_member *ret_member, struct error *e);
void gateway_member_free(struct gateway_member *m); /* what it points to */
/* "host:port[@rank]" of a member: its key. In `arena`. */
int gateway_member_key(struct arena *arena, const struct gateway_member *m, struct http_endpoint *ret_endpoint,
    const char **ret_key, struct error *e);
/* An error in vLLM's shape. */
void gateway_respond_error(struct http_exchange *x, int status, const char *type, const char *message);
