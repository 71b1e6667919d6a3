/* talk.h - one streamed request after another to an OpenAI-compatible server, for `chat` and `complete`.
 *
 * From talk_open to talk_close SIGINT, SIGTERM and SIGHUP are blocked and looked for where this waits, so that a server of
 * our own leaves nothing behind. One talk at a time, before the program has threads. */
#pragma once
#include "cli/cli.h"

struct talk; /* a server at an URL, or one started here for a model folder and ended with this */

struct talk_options {
        const char *where;   /* "http://host:port", "unix:PATH", or a model folder */
        const char *api_key; /* NULL: none */
        /* For a folder: further arguments of `baton serve`, NULL-terminated; may be NULL. */
        const char *const *serve_args;
};

/* For a folder this returns when the server is ready, or with its last words when it cannot be. Returns 0,
 * -ECANCELED when a signal came first, or a negative errno with a text. `options` is needed no longer then. */
int talk_open(const struct talk_options *options, struct talk **ret_talk, struct error *e);
void talk_close(struct talk *t); /* NULL is fine */

enum talk_part { TALK_TEXT, TALK_REASONING, TALK_TOOL };

struct talk_result {
        struct buf text, reasoning;
        double ttft_ms, total_ms;
        double gap_ms; /* between tokens, on average; 0: there was one */
        /* Of an answer that came through baton's gateway, else "": who served it, ", continued on …" for each further one. */
        char route[512];
        uint64_t kv_bytes; /* X-Baton-KV; 0: none was handed over */
        double kv_ms;
        int64_t prompt_tokens, tokens, cached_tokens; /* of the answer's usage; -1 when it has none */
};
void talk_result_free(struct talk_result *r);

/* POST `body` (JSON with "stream":true) and call on_part as text arrives. 0, -ECANCELED after Ctrl-C (the result holds what
 * came), or a negative errno with a text: the server's own error message when it gave one. *ret_result is to be
 * zeroed before and freed after, whatever is returned. */
int talk_stream(struct talk *t, const char *path, struct slice body,
    void (*on_part)(void *context, enum talk_part part, struct slice text), void *context,
    struct talk_result *ret_result, struct error *e);
/* Wait until `fd` can be read, as long as that takes. 0, -ECANCELED for Ctrl-C or a signal to end, also one that came
 * during the stream before, or a negative errno. */
int talk_wait(struct talk *t, int fd);
