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
