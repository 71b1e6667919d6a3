/* api_rig.h - the API over a real model, with plain clients, and an engine that the test's own thread steps: what comes in
 * which order is the test's choice. */
#pragma once
#include "../http/net.h"
#include "engine/api_call.h"
#include "rig.h"

struct api_rig {
        struct rig rig;
        struct tokenizer *tokenizer;
        struct net net;
        struct api *api;
        struct engine *engine;
        struct http_server *server;
        uint16_t port;
        bool drained, closed;
};

static inline void api_rig_load(struct api_rig *a) {
        struct error e = {{0}};
        char dir[4096];

        *a = (struct api_rig){.rig = rig_new("../../../models/baton-tiny", 1, false)};
        snprintf(dir, sizeof(dir), "%s/models/baton-tiny", getenv("BATON_SOURCE"));
        if (tokenizer_load(dir, &a->tokenizer, &e) < 0)
                fail_msg("%s", e.text);
}

static inline void api_rig_unload(struct api_rig *a) {
        tokenizer_free(a->tokenizer);
        rig_free(&a->rig);
}

static inline struct api_options api_rig_options(const struct api_rig *a) {
        static const char *const names[] = {"tiny"};
        const struct model_config *c = model_config(a->rig.model);

        return (struct api_options){.tokenizer = a->tokenizer,
            .chat = {.family = CHAT_V31},
            .defaults = {.temperature = 1,
                .top_p = 1,
                .repetition_penalty = 1,
                .vocab = c->vocab,
                .max_model_len = 256,
                .max_logprobs = 20,
                .thinking = -1},
            .eos = c->eos,
            .eos_count = c->eos_count,
            .served_names = names,
            .served_count = 1,
            .model_path = "/models/tiny",
            .fingerprint = "f"};
}

static inline void api_rig_open(struct api_rig *a, const struct api_options *options) {
        struct engine_options o = rig_options(&a->rig);
        struct http_server_options http = {.on_request = api_request};
        struct http_listen at = {.host = "127.0.0.1"};
        struct error e = {{0}};

        net_open(&a->net);
        a->drained = a->closed = false;
        assert_int_equal(api_new(&a->net.loop, options, &a->api, &e), 0);
        o.wake = api_wake;
        o.wake_context = a->api;
        o.prefix_caching = true;
        a->engine = engine_of(&o);
        a->engine->mailbox.started = true; /* for those who ask: the test is the engine's thread */
        api_set_engine(a->api, a->engine);
        http.context = a->api;
        assert_int_equal(http_server_new(&a->net.loop, &http, &a->server, &e), 0);
        assert_int_equal(http_server_listen(a->server, &at, &a->port, &e), 0);
}

/* Let the engine compute what there is and the loop handle what came of it, or wait for the network. */
static inline void api_rig_turn(struct api_rig *a, const char *wanted) {
        if (engine_step(a->engine))
                uv_run(&a->net.loop, UV_RUN_NOWAIT);
        else
                net_turn(&a->net, wanted);
}

#define UNTIL_ALL(rig, condition)                                                                                      \
        do {                                                                                                           \
                while (!(condition))                                                                                   \
                        api_rig_turn((rig), #condition);                                                               \
        } while (0)

static inline void api_rig_on_drained(void *context) {
        ((struct api_rig *)context)->drained = true;
}

static inline void api_rig_on_closed(void *context) {
        ((struct api_rig *)context)->closed = true;
}

/* Nothing may be left of any request. */
static inline void api_rig_close(struct api_rig *a) {
        http_server_drain(a->server, 0, api_rig_on_drained, a);
        UNTIL_ALL(a, a->drained);
        api_close(a->api, api_rig_on_closed, a);
        UNTIL_ALL(a, a->closed);
        assert_int_equal(api_in_flight(a->api), 0);
        assert_at_rest(a->engine);
        http_server_free(a->server);
        api_free(a->api);
        engine_free(a->engine);
        net_close(&a->net);
}

/* ---- clients -------------------------------------------------------------------------------------------------------------- */

static inline void peer_post(struct peer *p, const char *path, struct slice body) {
        struct buf b = {0};

        buf_printf(&b,
            "POST %s HTTP/1.1\r\nHost: engine\r\nConnection: close\r\nContent-Type: application/json\r\n"
            "Content-Length: %zu\r\n\r\n",
            path, body.len);
        buf_add(&b, body);
        peer_send(p, buf_slice(&b));
        buf_free(&b);
}

/* The status of an answer that has come whole, and its body. */
static inline int peer_status(const struct peer *p) {
        int status = 0;

        assert_int_equal(sscanf(p->in.ptr ? p->in.ptr : "", "HTTP/1.1 %d", &status), 1);
        return status;
}

static inline struct slice peer_body(const struct peer *p) {
        struct slice in = buf_slice(&p->in);
        size_t at = slice_find_slice(in, SLICE_LIT("\r\n\r\n"), 0);

        return slice_sub(in, at + 4, in.len);
}

/* Ask and wait for the end of the answer. Free the document with yyjson_doc_free(). */
static inline yyjson_doc *ask(struct api_rig *a, const char *path, const char *body, int status) {
        struct peer *p = peer_connect(&a->net, a->port);
        yyjson_doc *doc = NULL;

        peer_post(p, path, slice_str(body));
        UNTIL_ALL(a, peer_ended(p));
        if (peer_status(p) != status)
                fail_msg("%d: %.*s", peer_status(p), SLICE_ARG(peer_body(p)));
        assert_int_equal(json_parse(peer_body(p), &doc, NULL), 0);
        peer_leave(&a->net, p, false);
        return doc;
}
