/* api_internal.h - a request inside the API (private to engine/). */
#pragma once
#include "base/json.h"
#include "engine/api.h"

#define FINGERPRINT "baton-" BATON_VERSION

struct api {
        struct api_options options;
        uv_async_t wake;
        size_t in_flight;
        bool draining;
        uint64_t http_requests[6]; /* by status class */
        void (*on_closed)(void *context);
        void *closed_context;
};

struct record { /* a token of an answer, with what was asked about it */
        uint32_t id, top_count, rank;
        float logprob;
        struct openai_logprob *top; /* owned */
};

struct tool_call {
        char id[48];
        struct buf name, arguments;
};

/* One sequence of a request: choice `index`. */
struct child {
        struct request *request;
        uint32_t index;
        const struct openai_prompt *prompt; /* as token ids */
        engine_id id;                       /* 0: not running */
        uint32_t max_tokens;
        struct detokenizer detokenizer;
        struct output_parser *parser; /* NULL: all text is content */
        struct buf text;              /* everything generated, after stop strings */
        size_t told;                  /* of it, given out or to the parser */
        size_t check_from;            /* stop strings may begin here */
        struct record *records;       /* all tokens of the output */
        size_t record_count, record_capacity, record_told;
        struct record *prompt_records;
        size_t prompt_record_count;
        uint32_t cached;
        struct buf reasoning, content;
        struct tool_call *tool_calls;
        size_t tool_call_count, tools_told;
        enum finish_reason finish;
        int64_t stop_id;
        struct slice stop_string;
        bool role_told, echoed;
        size_t text_offset; /* of the next token in completion logprobs */
};

struct request {
        struct api *api;
        struct http_exchange *exchange;
        struct openai_request parsed;
        bool has_parsed;
        char id[160];
        struct slice model;
        int64_t created;
        uint64_t arrival_ns;
        struct child *children;
        size_t child_count, running;
        uint32_t prompt_tokens;
        bool started, finished;
};

/* api.c */
void api_fail(struct api *a, struct http_exchange *x, const struct openai_error *err);
void api_respond(struct api *a, struct http_exchange *x, int status, const char *type, struct slice body);

/* api_generate.c */
void api_generate(struct api *a, struct http_exchange *x, enum openai_kind kind, struct slice body);
void api_output(struct request *r, struct child *c, const struct engine_output *o);
void request_gone(struct request *r);

/* api_answer.c: JSON of answers. */
void answer_whole(struct request *r, struct buf *out);
void answer_role_chunk(struct request *r, struct child *c, struct buf *out);
/* What one step added to a choice: text (completion) or pieces (chat). `last`: with finish_reason. */
struct piece {
        enum output_part part;
        unsigned tool_index;
        struct slice text;
};
void answer_chunk(
    struct request *r, struct child *c, const struct piece *piece, bool last, bool closes, struct buf *out);
void answer_usage_chunk(struct request *r, struct buf *out);
uint32_t request_generated(const struct request *r);
