/* api.h - the engine's second face: vLLM's HTTP endpoints in front of a struct engine.
 *
 * One struct api serves one engine on one event loop; everything here is called on that loop's thread but api_wake(). It is
 * the on_request of an http_server; outputs of the engine reach it through api_wake(). A request lives from its head to
 * its last byte in one struct, is held by its exchange, by a worker that reads its body, and by what the engine was given of
 * it, and ends when the last of them lets go: a client that leaves at any moment leaves nothing behind.
 *
 * Order of a life: api_new(), http_server_new() with api_request, engine_new() with api_wake, api_set_engine(),
 * engine_start(), http_server_listen(); then api_begin_drain(), http_server_drain(), api_close(), engine_stop(),
 * http_server_free(), api_free(), engine_free(). */
#pragma once
#include "engine/engine.h"
#include "http/http.h"
#include "text/text.h"

struct api;

/* KV for and from other engines, as it is told in kv_transfer_params. */
struct api_transfer {
        bool produces, consumes;
        bool pushes;           /* the order, as in struct engine_transfer */
        bool recompute;        /* params that name no KV: compute; else they are refused */
        const char *engine_id; /* this engine's */
        const char *host;      /* under which others reach it, where it listens */
        uint32_t block_tokens; /* this engine's */
};

struct api_options { /* all borrowed */
        const struct tokenizer *tokenizer;
        struct chat_format chat; /* family CHAT_NONE: /v1/chat/completions answers 400 */
        struct openai_defaults defaults;
        const int64_t *eos;
        uint32_t eos_count;
        const char *const *served_names; /* the first is told in answers */
        size_t served_count;
        const char *model_path;  /* "root" of /v1/models */
        const char *fingerprint; /* system_fingerprint */
        const char *const *api_keys;
        size_t api_key_count; /* 0: no key is asked for */
        const char *const *allowed_origins;
        size_t allowed_origin_count; /* of other sites' pages (CORS); "*" is any */
        bool allow_credentials;
        enum reasoning_parser reasoning;
        enum tool_parser tools;
        const char *response_role;           /* NULL: assistant */
        bool prompt_tokens_details;          /* cached tokens in usage */
        bool request_id_headers;             /* X-Request-Id in every answer */
        bool tls;                            /* the server's: absolute addresses begin with https */
        bool force_usage;                    /* as if every stream had asked for usage, in every chunk */
        const struct api_transfer *transfer; /* NULL: none */
        const struct log *log;
};

int api_new(uv_loop_t *loop, const struct api_options *options, struct api **ret_api, struct error *e);
/* The engine wants api_wake() before it exists, the api wants the engine: made in that order, joined here. Before the first
 * request. */
void api_set_engine(struct api *a, struct engine *engine);

/* http_server_options.on_request, with the api as context. */
void api_request(void *api, struct http_exchange *x);
/* engine_options.wake, with the api as context: any thread, coalescing, does not block. */
void api_wake(void *api);

/* From now on /health and new work are answered with 503; what is in flight goes on. */
void api_begin_drain(struct api *a);
/* Once no exchange is left (the server has drained): wait on the loop until the engine has let go of what it still had, close
 * the handle, then call back. The engine must still be running. */
void api_close(struct api *a, void (*on_closed)(void *context), void *context);
void api_free(struct api *a); /* after on_closed, or when the loop has never run; NULL is fine */

/* Requests that are not over yet: completions and chats as /load counts them. */
size_t api_in_flight(const struct api *a);
