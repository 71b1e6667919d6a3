/* api_call.h - one HTTP exchange inside the API, and the sequences it has in the engine (private to the API files).
 *
 * A call's memory has several holders: its exchange, a worker that prepares its prompt, a reset that the engine has not
 * looked at, and each sequence in the engine whose end was not taken. Whoever lets go last frees it (api_call_drop). So an output of the engine always finds its call, and a
 * client that leaves frees nothing that somebody still writes to. */
#pragma once
#include "base/list.h"
#include "engine/api.h"
#include "engine/api_metrics.h"

struct api_call;

/* An id is repeated in every event: longer ones are cut. Gateways send 40 characters. */
#define REQUEST_ID_MAX 256

/* A route: one row per path. */
struct api_route {
        const char *path;
        unsigned methods; /* bits of enum http_method; others get 405 */
        bool reads_json;  /* the body must say that it is JSON, and is gathered first */
        void (*run)(struct api_call *call, struct slice body);
        bool counted; /* in the http_* metrics */
};

struct api {
        struct api_options options;
        struct engine *engine;
        uv_loop_t *loop;
        uv_async_t wake;
        struct http_client *client; /* asks for prefills; NULL: there are none to be asked for */
        bool client_closing;
        struct list calls; /* all of them */
        struct list dirty; /* with events that are to be sent when the outputs at hand are done */
        size_t in_flight;
        bool draining, closing;
        int64_t created; /* seconds since the epoch, for /v1/models */
        struct api_figures figures;
        void (*on_closed)(void *context);
        void *closed_context;
};

/* A prompt as the engine takes it. */
struct api_prompt {
        const uint32_t *ids;
        uint32_t count;
        uint32_t max_tokens;
        struct slice text; /* for echo: as it came, or decoded */
};

/* What reading a body gives: made on a worker when the body is long, so it touches nothing but the call's own arena. */
struct api_prepared {
        struct openai_request request;
        struct openai_error error; /* status 0: none */
        struct api_prompt *prompts;
        size_t prompt_count;
        const uint32_t *bad_sequences;
        enum chat_reasoning reasoning;   /* what the prompt leaves open */
        struct slice echo;               /* chat: the last message's text, when it is to be told again */
        struct buf tokens;               /* /tokenize and /detokenize: the answer */
        bool keeps, fetches;             /* KV: for another engine, from another engine */
        bool expects, pushes;            /* with a push connector: KV will be written here, is to be written there */
        struct engine_remote remote;     /* fetches: where from; pushes: where to; in the arena */
        struct http_endpoint metaserver; /* expects: who is asked for the prefill */
        struct slice metaserver_path;
        uint32_t remote_cached; /* of the prompt, found there */
};

/* Text on its way from tokens to the client: stop strings are found here, what may be the start of one is held. */
struct stop_matcher {
        const struct slice *stops;
        uint32_t count;
        struct buf held;
        size_t exempt; /* a match must end behind this many bytes of `held`: they came before min_tokens */
};

/* For naming a token and its alternatives; the memory goes from one token to the next. */
struct api_names {
        struct buf bytes;  /* of all texts, one behind the other */
        struct buf ends;   /* size_t each: where a text ends in `bytes` */
        struct buf tokens; /* struct openai_token_text each: the alternatives */
};

/* One sequence: choice `index` of the answer. */
struct api_choice {
        struct api_call *call;
        uint32_t index;
        const struct api_prompt *prompt;
        engine_id id;
        bool in_engine; /* its last output has not come */
        bool done;      /* finish is set: outputs that still come are dropped */
        enum finish_reason finish;
        struct openai_stop stop;
        uint32_t tokens; /* generated */
        uint32_t cached;

        struct detokenizer detokenizer; /* of the text */
        struct detokenizer context;     /* of log-probabilities: all tokens, special ones too */
        struct api_names names;
        struct stop_matcher matcher;
        struct buf characters, tellable; /* of one token; behind the stop strings. Kept for their memory */
        struct output_parser *parser;    /* NULL: all text is content */
        unsigned tool_count;             /* calls begun */

        /* What is not told yet; all of the answer when it is not streamed. */
        struct buf text, reasoning, tool_calls;
        struct buf tool_arguments; /* not streamed: of the call that is being written */
        struct openai_tool_call tool;
        struct buf ids; /* uint32_t each */
        struct openai_logprobs logprobs;
        struct buf prompt_logprobs; /* JSON */
        /* While a worker writes them: what the engine told with them and since. */
        uv_work_t work;
        struct engine_output *held, *held_last;
        int held_result;
        bool has_news; /* an event is due */
        bool echoed;   /* the first event of a completion is out */
        bool end_told; /* finish_reason is out */
};

struct api_call {
        struct api *api;
        struct list link;
        struct list dirty_link;
        unsigned holders;
        struct http_exchange *exchange; /* NULL: it has ended */
        const struct api_route *route;  /* NULL: none */
        enum http_method method;
        int status; /* told; 0: nothing yet */
        uint64_t begun_ns;
        size_t request_bytes, response_bytes;
        struct slice header_id; /* X-Request-Id, in the arena */

        struct arena arena;
        struct buf body; /* for the worker, freed when it was read */
        uv_work_t work;  /* data: NULL unless it is under way */
        enum openai_kind kind;
        struct api_prepared prepared;
        bool counted; /* in api.in_flight */

        struct openai_answer answer;
        struct api_choice *choices;
        size_t choice_count, running;  /* choices that are not done */
        bool streaming, blocked, over; /* over: the whole answer was handed to http */
        bool roles_told;
        struct buf transfer; /* kv_transfer_params of the answer; empty: null */
        char fetched[48];    /* X-Baton-KV: what the prompt's KV from another engine was; "": none */
        struct buf out;      /* events */

        struct http_call *asking; /* for the prefill; NULL: not under way */
        struct buf question;
        struct slice question_part;
        int asked_status;
};

/* ---- api.c ---------------------------------------------------------------------------------------------------------------- */

void api_call_hold(struct api_call *call);
void api_call_drop(struct api_call *call);
/* Answer at once with the fields that every answer has. `type` NULL: no Content-Type. The client may be gone. */
void api_respond(struct api_call *call, int status, const char *type, struct slice body);
/* With one more field. */
void api_respond_with(
    struct api_call *call, int status, const char *type, const char *name, struct slice value, struct slice body);
void api_respond_buf(struct api_call *call, struct buf *json); /* 200; 500 when memory was out. Frees the buf */
void api_refuse(struct api_call *call, const struct openai_error *error);
void api_refuse_text(struct api_call *call, int status, const char *type, const char *text);
/* The head of a stream; then http_send and http_finish. */
void api_begin_stream(struct api_call *call);

extern const struct api_route api_routes[];
extern const size_t api_route_count;

/* ---- api_cors.c ----------------------------------------------------------------------------------------------------------- */

#define API_FIELDS_MAX 10
/* Add what a page of another origin must be told. Returns the new count. */
size_t api_cors_fields(const struct api_call *call, struct http_field fields[API_FIELDS_MAX], size_t count);
/* Answer a preflight. False: it is none. */
bool api_cors_preflight(struct api_call *call);

/* ---- api_prepare.c -------------------------------------------------------------------------------------------------------- */

/* Parse, render and tokenize into call->prepared; `call->kind` says what. Any thread. Returns 0 or -ENOMEM; a refusal is in
 * prepared.error. */
int api_prepare(struct api_call *call, struct slice body);

/* ---- api_transfer.c ------------------------------------------------------------------------------------------------------- */

/* What kv_transfer_params ask for, into call->prepared. As api_prepare(), -EINVAL after a refusal. */
int api_read_transfer(struct api_call *call);
/* The params for an output with `kept`. 0 or -ENOMEM. */
int api_write_transfer(const struct api_call *call, const struct engine_output *output, struct buf *out);

/* ---- api_push.c ----------------------------------------------------------------------------------------------------------- */

/* The metaserver's URL, into call->prepared. 0, -EINVAL (it is none) or -ENOMEM. */
int api_read_metaserver(struct api_call *call, struct slice url);
/* Ask there for the prefill. When nobody will do it, the engine is told. */
void api_ask_prefill(struct api_call *call, const struct engine_expected *expected);
/* The exchange has ended: who was asked needs not answer. */
void api_forget_prefill(struct api_call *call);

/* ---- api_request.c -------------------------------------------------------------------------------------------------------- */

/* Read the body, on a worker when it is long, and go on from there. `body` is that of the exchange, where it may be taken. */
void api_start(struct api_call *call, enum openai_kind kind, struct slice body);
void api_take_outputs(struct api *a);
void api_on_writable(struct api_call *call);
/* The exchange has ended: stop computing for it. */
void api_abandon(struct api_call *call);
void api_choices_free(struct api_call *call);

/* ---- api_choice.c: from tokens to text -------------------------------------------------------------------------------------- */

/* 0 or -ENOMEM. */
int api_choice_init(struct api_choice *choice, struct api_call *call, uint32_t index, const struct api_prompt *prompt);
void api_choice_free(struct api_choice *choice);
/* Take what the engine told but for the prompt (api_logprobs_prompt comes first); sets done, finish and stop. 0 or
 * -ENOMEM. */
int api_choice_take(struct api_choice *choice, const struct engine_output *output);

/* Text in, text that can be told appended to `out`. Returns the stop string that was found (nothing behind it is told), or
 * NULL. `checked` false: no stop string may end in this text. */
const struct slice *stop_matcher_push(
    struct stop_matcher *m, struct slice text, bool checked, bool include, struct buf *out);
/* No more text comes: what is held is told. */
void stop_matcher_flush(struct stop_matcher *m, struct buf *out);

/* ---- api_logprobs.c --------------------------------------------------------------------------------------------------------- */

/* What the output tells about the prompt, if anything. Touches this choice and its names alone: any thread. 0 or -ENOMEM. */
int api_logprobs_prompt(struct api_choice *choice, const struct engine_output *output);
/* 0 or -ENOMEM. */
int api_logprobs_token(struct api_choice *choice, const struct engine_token *token);
void api_names_free(struct api_names *names);

/* ---- api_tell.c: answers and events ------------------------------------------------------------------------------------------ */

/* Events for what is new, into call->out. */
void api_tell_events(struct api_call *call);
/* The last one, where it was asked for. */
void api_tell_usage(struct api_call *call);
void api_tell_answer(struct api_call *call);

/* ---- api_service.c: the other endpoints ----------------------------------------------------------------------------- */

bool api_is_ready(const struct api *a);
void api_get_health(struct api_call *call, struct slice body);
void api_get_models(struct api_call *call, struct slice body);
void api_get_version(struct api_call *call, struct slice body);
void api_get_load(struct api_call *call, struct slice body);
void api_get_metrics(struct api_call *call, struct slice body);
void api_post_reset(struct api_call *call, struct slice body);
void api_post_rebalance(struct api_call *call, struct slice body);
void api_get_experts(struct api_call *call, struct slice body);
/* Answer whose reset the engine has looked at. */
void api_take_resets(struct api *a);
void api_post_scale_out(struct api_call *call, struct slice body);
