/* api.h - the engine's second face: vLLM's HTTP endpoints in front of a struct engine.
 *
 * One struct api serves one engine on one event loop. It is the on_request of an http_server; outputs of the engine reach
 * it through api_wake(), which may be called from any thread. A request lives from its head to its last chunk in one struct
 * with one end, which gives back everything it took, whatever happened. */
#pragma once
#include "engine/engine.h"
#include "http/http.h"
#include "text/text.h"

struct api;

struct api_options {
        struct engine *engine; /* borrowed; may be set after api_new with api_set_engine() */
        const struct tokenizer *tokenizer;
        struct chat_format chat; /* family CHAT_NONE: /v1/chat/completions answers 400 */
        struct openai_defaults defaults;
        const int64_t *eos;
        uint32_t eos_count;
        const char *const *served_names; /* the first is told in answers */
        size_t served_count;
        const char *model_path; /* "root" of /v1/models */
        const char *api_key;    /* NULL: none */
        enum reasoning_parser reasoning;
        enum tool_parser tools;
        bool auto_tool_choice, prompt_tokens_details, request_id_headers, force_include_usage;
        const struct log *log;
};

int api_new(uv_loop_t *loop, const struct api_options *options, struct api **ret_api, struct error *e);
/* When no request is in flight any more (the server has drained). Closes its handle on the loop, then calls back. */
void api_close(struct api *a, void (*on_closed)(void *context), void *context);
void api_free(struct api *a); /* after on_closed */

/* The engine wants the api's api_wake() before it exists, the api wants the engine: made in that order, joined here. */
void api_set_engine(struct api *a, struct engine *engine);
/* http_server_options.on_request, with the api as context. */
void api_request(void *api, struct http_exchange *x);
/* engine_options.wake, with the api as context: thread-safe, coalescing. */
void api_wake(void *api);
size_t api_in_flight(const struct api *a);
/* Answer /health with 503 from now on: the server is draining. */
void api_begin_drain(struct api *a);
