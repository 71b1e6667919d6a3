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
        int status;         /* HTTP */
        const char *type;   /* "BadRequestError", "NotFoundError", … constant text */
        char message[3072]; /* vLLM's list of ten validation errors has 2.3 KB */
        char param[128];    /* empty: null */
};
/* Fill and return -EINVAL, so that a parser can `return openai_fail(err, 400, "BadRequestError", "n", "…")`. */
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
        float temperature, top_p, min_p;                               /* 1, 1, 0 */
        int32_t top_k;                                                 /* 0 or -1: off */
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
        struct slice content; /* text parts of a list are joined by newlines, as vLLM joins them */
        struct slice reasoning, name, tool_call_id;
        const struct openai_tool_call *tool_calls;
        size_t tool_call_count;
        bool prefix; /* DeepSeek's assistant prefix completion */
};

enum openai_kind {
        OPENAI_COMPLETION, /* POST /v1/completions */
        OPENAI_CHAT,       /* POST /v1/chat/completions */
        OPENAI_TOKENIZE,   /* POST /tokenize: one prompt, or messages */
        OPENAI_DETOKENIZE, /* POST /detokenize: ids in prompts[0] */
};

struct openai_prompt {
        bool is_ids;
        struct slice text;
        const uint32_t *ids;
        size_t count;
};

enum tool_choice { TOOL_CHOICE_AUTO, TOOL_CHOICE_NONE };

struct openai_request {
        enum openai_kind kind;
        struct slice model; /* empty: the server's own */
        struct sampling_params sampling;
        bool has_max_tokens; /* sampling.max_tokens is what was asked; openai_fit_tokens() makes it what is meant */
        uint32_t n;
        bool stream, include_usage, continuous_usage, echo;
        bool skip_special, add_special;
        bool return_token_ids, return_tokens_as_ids, return_token_strs;
        int32_t priority;
        struct slice cache_salt, request_id, user;
        int64_t truncate_prompt_tokens;  /* keep the last so many; 0: off, -1: max_model_len */
        struct slice kv_transfer_params; /* the value as compact JSON, an object; empty when absent or null */

        const struct openai_prompt *prompts; /* completion, tokenize, detokenize */
        size_t prompt_count;

        const struct openai_message *messages; /* chat; tokenize when not NULL */
        size_t message_count;
        yyjson_val *tools; /* array or NULL; belongs to `document` */
        enum tool_choice tool_choice;
        bool add_generation_prompt, continue_final_message;
        int thinking;        /* chat_template_kwargs.thinking: -1 not given, 0, 1 */
        int enable_thinking; /* likewise */
        bool include_reasoning;

        yyjson_doc *document; /* freed by openai_request_done */
};

/* A server's own rules, and what it adds where the client is silent. */
struct openai_defaults {
        float temperature, top_p, min_p, repetition_penalty; /* generation_config.json, else 1, 1, 0, 1 */
        int32_t top_k;
        uint32_t vocab; /* ids beyond are refused */
        uint32_t max_model_len;
        int32_t max_logprobs; /* 20; -1: the vocabulary */
        int thinking;         /* where chat_template_kwargs is silent: -1 nothing, 0, 1 */
        bool return_tokens_as_ids;
        bool auto_tools;    /* --enable-auto-tool-choice */
        bool tool_parser;   /* --tool-call-parser */
        struct slice model; /* the served name, for messages that say it */
};

/* What one request may hold, beyond the size of its body. Each is far above what clients send and low enough that the
 * work it causes is small beside that of the tokens. */
#define OPENAI_N_MAX        128   /* answers per prompt */
#define OPENAI_PROMPTS_MAX  2048  /* prompts in a list; also prompts times n */
#define OPENAI_MESSAGES_MAX 65536 /* one token each at least: no context window holds more */
#define OPENAI_STOPS_MAX    128   /* stop strings: each is looked for in every piece of text */
#define OPENAI_STOP_BYTES   4096  /* of one stop string: so much text is held back at most */
#define OPENAI_WORDS_MAX    1024  /* bad_words: each is tokenized twice */
#define OPENAI_SALT_BYTES   1024  /* of cache_salt: a name of a tenant, hashed once for every sequence */

/* Parse and check a body as vLLM would, down to its leniency (integers may be "2", 2.0 or true; the last of duplicate
 * members counts; unknown members are ignored). Everything lives in `arena` and in the request's document. Returns 0,
 * -EINVAL with *ret_err filled (status and vLLM's words), -ENOMEM. On success free with openai_request_done(). Any
 * thread: nothing is shared. */
int openai_parse(enum openai_kind kind, struct slice body, const struct openai_defaults *defaults, struct arena *arena,
    struct openai_request *ret_request, struct openai_error *ret_err);
void openai_request_done(struct openai_request *r); /* zeroed is fine */
/* The prompt was made: let go of the document, which is as long as the body was. What the answer needs (stop strings, salt,
 * names) lives on in `arena`; prompts' texts, messages, tools and bad words are gone. 0, or -ENOMEM: the
 * document stays, and all is as good as before. */
int openai_request_settle(struct openai_request *r, struct arena *arena);

/* Now that the prompt's length is known: refuse what is too long for the model, and set sampling.max_tokens to what may be
 * generated. `of_text`: the prompt came as text, whose length vLLM does not count to its end in the message. max_tokens 0
 * with echo generates one token that is not shown. Returns 0 or -EINVAL. */
int openai_fit_tokens(const struct openai_request *r, size_t prompt_tokens, bool of_text, uint32_t max_model_len,
    uint32_t *ret_max_tokens, struct openai_error *ret_err);
/* That refusal. Returns -EINVAL. */
int openai_too_long(size_t prompt_tokens, bool of_text, uint32_t max_model_len, struct openai_error *ret_err);
/* max_tokens was 0: the answer is the prompt alone. */
bool openai_is_echo_only(const struct openai_request *r);

/* ---- answers -------------------------------------------------------------------------------------------------------- */

struct openai_logprob {
        uint32_t id;
        float logprob; /* natural log; -inf is written as -9999 */
        uint32_t rank;
};

/* A token as it is told to people: the text it stands for where it stands (a part of a character has none yet). */
struct openai_token_text {
        uint32_t id;
        float logprob;
        uint32_t rank;
        struct slice text;
};

/* Log-probabilities gathered token by token, in the shape of the kind. Zeroed but for `kind` is empty. */
struct openai_logprobs {
        enum openai_kind kind; /* OPENAI_COMPLETION or OPENAI_CHAT */
        bool as_ids;           /* "token_id:9" in place of text */
        uint32_t count;
        size_t offset;      /* text_offset of the next token, in characters */
        struct buf list[4]; /* completion: tokens, token_logprobs, top_logprobs, text_offset; chat: content */
        struct buf names;   /* for the names that one object has */
};
/* The token that was taken, then the likeliest ones (which may hold it as well, and hold it once in the answer), at most
 * `top` of them. `known` false: the first token of a prompt, which has no probability. */
struct openai_token_logprobs {
        struct openai_token_text taken;
        bool known;
        const struct openai_token_text *best;
        size_t best_count;
        size_t top;
};
void openai_logprobs_add(struct openai_logprobs *l, const struct openai_token_logprobs *t);
void openai_logprobs_clear(struct openai_logprobs *l); /* keeps offset and memory: the next chunk */
void openai_logprobs_free(struct openai_logprobs *l);
/* One position of `prompt_logprobs`: {"416":{"logprob":…,"rank":…,"decoded_token":…},…}, or null. */
void openai_write_prompt_logprobs(struct buf *b, const struct openai_token_logprobs *t);

struct openai_answer { /* what all chunks of an answer, or its one body, have in common */
        enum openai_kind kind;
        struct slice id, model, fingerprint;
        int64_t created; /* seconds since the epoch */
};

struct openai_usage {
        uint64_t prompt, completion;
        bool has_cached;
        uint64_t cached; /* --enable-prompt-tokens-details */
};

struct openai_stop { /* stop_reason */
        enum { OPENAI_STOP_NULL, OPENAI_STOP_ID, OPENAI_STOP_TEXT } kind;
        int64_t id;
        struct slice text;
};

struct openai_ids {
        const uint32_t *ids; /* NULL: written as null */
        size_t count;
};

struct openai_choice {
        uint32_t index;
        struct slice role;                /* chat; empty: assistant */
        struct slice text;                /* the completion's text, or the message's content; ptr NULL in chat: null */
        struct slice reasoning;           /* ptr NULL: null */
        struct slice tool_calls;          /* JSON array items as openai_write_tool_call() makes them; empty: none */
        struct openai_logprobs *logprobs; /* NULL: null */
        const char *finish_reason;        /* NULL: null */
        struct openai_stop stop;
        struct openai_ids token_ids;
        /* completion: of this choice; chat: of the whole answer, taken from the first choice */
        struct openai_ids prompt_ids;
        struct slice prompt_logprobs; /* JSON; empty: null */
};

/* The one body of an answer that is not streamed. */
void openai_write_answer(struct buf *b, const struct openai_answer *a, const struct openai_choice *choices,
    size_t count, const struct openai_usage *usage, struct slice kv_transfer_params);
/* {"id":…,"type":"function","function":{"name":…,"arguments":…}}, with a comma before it when b is not empty. */
void openai_write_tool_call(struct buf *b, const struct openai_tool_call *call);

/* A piece of a stream, as one SSE event with its blank line. */
struct openai_chunk {
        uint32_t index;
        enum {
                OPENAI_CHUNK_ROLE,  /* chat: the first of a choice */
                OPENAI_CHUNK_ECHO,  /* chat: the last message again */
                OPENAI_CHUNK_DELTA, /* text, of either kind */
                OPENAI_CHUNK_USAGE, /* the last one, without choices */
        } what;
        struct slice role;       /* empty: assistant */
        struct slice text;       /* ptr NULL in chat: no content in this delta */
        struct slice reasoning;  /* chat; ptr NULL: none in this delta */
        struct slice tool_calls; /* chat: array items as openai_write_tool_delta() makes them */
        struct openai_logprobs *logprobs;
        const char *finish_reason;
        struct openai_stop stop;
        struct openai_ids token_ids, prompt_ids;
        const struct openai_usage *usage; /* NULL: not in this chunk */
        bool fingerprint;                 /* on the last chunk that carries data */
};
void openai_write_chunk(struct buf *b, const struct openai_answer *a, const struct openai_chunk *c);
/* The begin of a call (name given, with its id) or a fragment of its arguments. Comma as above. */
void openai_write_tool_delta(
    struct buf *b, unsigned index, struct slice id, struct slice name, struct slice arguments_fragment);
/* data: {"error":…} */
void openai_write_error_event(struct buf *b, const struct openai_error *err);
#define OPENAI_DONE SLICE_LIT("data: [DONE]\n\n")

struct openai_model_card {
        struct slice id, root;
        int64_t created;
        uint32_t max_model_len;
};
void openai_write_models(struct buf *b, const struct openai_model_card *cards, size_t count);

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

/* The members of the object that `text` holds (white space around it is fine), in order, with their slices in `text`.
 * Returns 0, -EINVAL (not JSON, or no object: *ret_at is where), -E2BIG (more than `max` members, or deeper than JSON_DEPTH_MAX). On
 * failure the members are undefined. */
int openai_scan(struct slice text, struct openai_member *members, size_t max, size_t *ret_count, size_t *ret_at);
/* Take the next item off an array whose syntax was checked by a scan around it: *rest is the array at first (with its
 * brackets), then what is left. False at the end. */
bool openai_next_item(struct slice *rest, struct slice *ret_item);
size_t openai_count_items(struct slice array);

/* Is the key (as it stands, perhaps with escapes) this name? */
bool openai_key_matches(struct slice key, const char *name);
static inline bool openai_key_is(struct slice key, const char *name) {
        return key.len > 0 && (key.ptr[0] == name[0] || key.ptr[0] == '\\') && openai_key_matches(key, name);
}
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
