/* openai.h - the OpenAI API as vLLM speaks it: requests in, answers and stream chunks out, error bodies, and the scanner
 * that lets a proxy edit a body without parsing and printing it. Shared by engine, gateway, cli and bench; does no I/O.
 *
 * Shapes follow vLLM 0.32 (recorded answers are replayed in the tests). Everything parsed lives in the arena given. */
#pragma once
#include "base/arena.h"
#include "base/buf.h"
#include "base/error.h"
#include "base/json.h"

/* ---- errors --------------------------------------------------------------------------------------------------------- */

struct openai_error {
        int status;          /* HTTP */
        const char *type;    /* "BadRequestError", "NotFoundError", … constant text */
        char message[1024];
        char param[64];      /* empty: null */
};
/* Fill and return -EINVAL, so that a parser can `return openai_fail(err, 400, "BadRequestError", "body.n", "…")`. */
int openai_fail(struct openai_error *err, int status, const char *type, const char *param, const char *format, ...)
    __attribute__((format(printf, 5, 6)));
/* {"error":{"message":…,"type":…,"param":…,"code":status}} */
void openai_write_error(struct buf *b, const struct openai_error *err);

/* ---- requests ------------------------------------------------------------------------------------------------------- */

struct openai_bias {
        uint32_t id;
        float bias;
};

/* How to sample, with vLLM's names, order and meaning (engine/sampler.c applies it). */
struct sampling_params {
        float temperature, top_p, min_p; /* 1, 1, 0 */
        int32_t top_k;                   /* 0 or -1: off */
        float presence_penalty, frequency_penalty, repetition_penalty; /* 0, 0, 1 */
        bool has_seed;
        int64_t seed;
        uint32_t max_tokens, min_tokens;
        bool ignore_eos;
        int32_t logprobs;        /* -1: none; else how many besides the sampled one */
        int32_t prompt_logprobs; /* likewise */
        const uint32_t *stop_ids;
        uint32_t stop_id_count;
        const struct slice *stop; /* strings: matched where text is made (engine/api), not in the engine */
        uint32_t stop_count;
        bool include_stop;
        const struct openai_bias *bias;
        uint32_t bias_count;
        const uint32_t *allowed_ids; /* NULL: all */
        uint32_t allowed_count;
        const struct slice *bad_words;
        uint32_t bad_word_count;
};

struct openai_tool_call {
        struct slice id, name, arguments; /* arguments as the string it was */
};

struct openai_message {
        struct slice role;
        bool has_content;     /* false: null or absent */
        struct slice content; /* text parts of a list are joined as vLLM joins them */
        struct slice reasoning, name, tool_call_id;
        const struct openai_tool_call *tool_calls;
        size_t tool_call_count;
        bool prefix; /* DeepSeek's assistant prefix completion */
};

enum openai_kind { OPENAI_COMPLETION, OPENAI_CHAT };

struct openai_prompt {
        bool is_ids;
        struct slice text;
        const uint32_t *ids;
        size_t count;
};

enum tool_choice { TOOL_CHOICE_AUTO, TOOL_CHOICE_NONE, TOOL_CHOICE_REQUIRED, TOOL_CHOICE_NAMED };

struct openai_request {
        enum openai_kind kind;
        struct slice model; /* empty: the server's own */
        struct sampling_params sampling;
        bool has_max_tokens; /* else the server's default for the kind */
        uint32_t n;
        bool stream, include_usage, continuous_usage, echo;
        bool skip_special, add_special, spaces_between_special;
        bool return_token_ids, return_tokens_as_ids;
        int32_t priority;
        struct slice cache_salt, request_id, user;
        int64_t truncate_prompt_tokens; /* 0: off, -1: to max_model_len */
        struct slice kv_transfer_params; /* the raw JSON value, empty when absent or null */

        const struct openai_prompt *prompts; /* completion */
        size_t prompt_count;

        const struct openai_message *messages; /* chat */
        size_t message_count;
        yyjson_val *tools; /* array or NULL; belongs to `document` */
        enum tool_choice tool_choice;
        struct slice tool_choice_name;
        bool add_generation_prompt, continue_final_message;
        int thinking;        /* chat_template_kwargs.thinking: -1 not given, 0, 1 */
        int enable_thinking; /* likewise */
        bool include_reasoning;

        yyjson_doc *document; /* freed by openai_request_done */
};

/* What the server adds where the client is silent. */
struct openai_defaults {
        float temperature, top_p, min_p, repetition_penalty; /* generation_config.json, else 1, 1, 0, 1 */
        int32_t top_k;
        uint32_t vocab;         /* ids beyond are refused */
        uint32_t max_model_len;
        int32_t max_logprobs;   /* 20; -1: the vocabulary */
};

/* Parse and check a body as vLLM would. Returns 0, -EINVAL with *ret_err filled (status and vLLM's words), -ENOMEM.
 * On success free with openai_request_done(). */
int openai_parse(enum openai_kind kind, struct slice body, const struct openai_defaults *defaults, struct arena *arena,
    struct openai_request *ret_request, struct openai_error *ret_err);
void openai_request_done(struct openai_request *r);

/* ---- answers -------------------------------------------------------------------------------------------------------- */

struct openai_logprob {
        uint32_t id;
        float logprob; /* natural log; -inf is written as -9999 */
        uint32_t rank;
};

/* ---- bodies as bytes ------------------------------------------------------------------------------------------------ */

/* A proxy changes a few members of a body that may be megabytes long. It scans the body once, checking JSON's syntax to
 * the bottom but building nothing, and sends slices of the client's own bytes with its values in between: what it does
 * not change is not printed again, so numbers, escapes, white space and unknown members arrive as they were sent. */

struct openai_member {
        struct slice key;   /* between the quotes, escapes as they stand */
        struct slice value; /* one JSON value without surrounding white space */
};

/* Bodies have 20 members, events 8; a request beyond this is refused. */
#define OPENAI_MEMBERS_MAX 192
/* Nesting as in base/json.h, for the same reason. */
#define OPENAI_DEPTH_MAX 128

/* The members of the object that `text` holds (white space around it is fine), in order, with their slices in `text`.
 * Returns 0, -EINVAL (not JSON, or no object: *ret_at is where), -E2BIG (more than `max` members, or too deep). On
 * failure the members are undefined. */
int openai_scan(struct slice text, struct openai_member *members, size_t max, size_t *ret_count, size_t *ret_at);
/* Take the next item off an array whose syntax was checked by a scan around it: *rest is the array at first (with its
 * brackets), then what is left. False at the end. */
bool openai_next_item(struct slice *rest, struct slice *ret_item);

/* Is the key (as it stands, perhaps with escapes) this name? */
bool openai_key_is(struct slice key, const char *name);
/* The value of the last member of that name, as readers take it, or SLICE_NONE. */
struct slice openai_find(const struct openai_member *members, size_t count, const char *name);
/* What a value is, by its first byte. */
static inline bool openai_is_string(struct slice v) {
        return v.len > 0 && v.ptr[0] == '"';
}
static inline bool openai_is_null(struct slice v) {
        return v.len == 0 || v.ptr[0] == 'n'; /* or absent */
}
/* Between the quotes of a string value. */
static inline struct slice openai_inside(struct slice v) {
        return openai_is_string(v) ? slice_of(v.ptr + 1, v.len - 2) : SLICE_NONE;
}
/* Append the text that the inside of a string stands for. Lone surrogates become U+FFFD. */
void openai_unescape(struct buf *out, struct slice inside);
/* How many characters (code points) the inside of a string stands for. */
size_t openai_length(struct slice inside);

struct openai_edit {
        const char *key;
        struct slice value; /* JSON; SLICE_NONE: take the member out */
};
/* The scanned object with the edits made, as slices of `text` and of the values, which must live as long as they. A
 * member that is there several times is replaced once and taken out elsewhere; one that is not there is appended. Edits
 * name different keys. Parts and their bytes between members live in `arena`. Returns 0 or -ENOMEM. */
int openai_edit(struct slice text, const struct openai_member *members, size_t count, const struct openai_edit *edits,
    size_t edit_count, struct arena *arena, struct slice **ret_parts, size_t *ret_part_count, size_t *ret_bytes);
