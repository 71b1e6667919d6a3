/* talk.h - one streamed request after another to an OpenAI-compatible server, for `chat`, `complete` and `demo`. */
#pragma once
#include "cli/cli.h"

struct talk; /* a server at an URL, or one started here for a model folder and ended with this */

struct talk_options {
        const char *where;   /* "http://host:port", "unix:PATH", or a model folder */
        const char *api_key; /* NULL: none */
        const char *const
            *serve_args;     /* for a folder: further arguments of `baton serve`, NULL-terminated; may be NULL */
        unsigned timeout_ms; /* without a byte of the answer; 0: 300 s */
};

/* For a folder this returns when the server is ready, or with its last words when it cannot be. */
int talk_open(const struct talk_options *options, struct talk **ret_talk, struct error *e);
void talk_close(struct talk *t); /* NULL is fine */

enum talk_part { TALK_TEXT, TALK_REASONING, TALK_TOOL };

struct talk_result {
        struct buf text, reasoning;
        double ttft_ms, total_ms, gap_ms;             /* gap: mean time between the tokens after the first */
        int64_t prompt_tokens, tokens, cached_tokens; /* of the answer's usage; -1 when it has none */
        char finish[16], prefill[64], decode[64]; /* finish_reason, X-Baton-Prefill, X-Baton-Decode; empty: not told */
        bool interrupted;                         /* Ctrl-C */
};
void talk_result_free(struct talk_result *r);

/* POST `body` (JSON with "stream":true) and call on_part as text arrives. 0, -ECANCELED after Ctrl-C (the result holds what
 * came), or a negative errno with a text: the server's own error message when it gave one. *ret_result is set in every case
 * but -ENOMEM; free it. */
int talk_stream(struct talk *t, const char *path, struct slice body,
    void (*on_part)(void *context, enum talk_part part, struct slice text), void *context,
    struct talk_result *ret_result, struct error *e);
/* Like http_fetch_url against the same server. */
int talk_get(struct talk *t, const char *path, struct buf *body, struct error *e);
