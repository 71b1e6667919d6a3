/* api_push.c - asking for a prefill: what a decoder of a push connector posts to the metaserver that its request names, in the
 * members of MooncakeLayerwiseConnector (vLLM-Ascend).
 *
 * Whoever answers may do so at once, or when the prefill is done; the KV is not waited for here. An answer that says no, or none at
 * all, ends that wait. The call lives as long as the request at most. */
#include "base/json.h"
#include "engine/api_call.h"
#include <errno.h>

int api_read_metaserver(struct api_call *call, struct slice url) {
        struct api_prepared *p = &call->prepared;
        struct error e = {0};
        int r = http_endpoint_parse(&call->arena, url, &p->metaserver, &p->metaserver_path, &e);

        if (r == 0 && p->metaserver_path.len == 0)
                p->metaserver_path = SLICE_LIT("/");
        return r;
}

/* vLLM's names: of a completion with the prompt's number behind it. */
static void write_id(struct api_call *call, struct json_writer *w) {
        const char *id = arena_printf(
            &call->arena, "%.*s%s", SLICE_ARG(call->answer.id), call->kind == OPENAI_COMPLETION ? "-0" : "");

        json_str(w, id);
}

static void write_question(struct api_call *call, const struct engine_expected *x, struct buf *out) {
        const struct api_transfer *t = call->api->options.transfer;
        static const char *const sizes[] = {"remote_tp_size", "remote_pcp_size", "remote_dcp_size"};
        struct json_writer w = {.out = out};

        json_open(&w, '{');
        json_key(&w, "token_ids");
        json_open(&w, '[');
        json_close(&w, ']');
        json_key(&w, "request_id");
        write_id(call, &w);
        json_key(&w, "do_remote_prefill");
        json_bool(&w, false);
        json_key(&w, "do_remote_decode");
        json_bool(&w, true);
        json_key(&w, "remote_block_ids"); /* by group of layers: there is one */
        json_open(&w, '[');
        json_open(&w, '[');
        for (uint32_t i = 0; i < x->block_count; i++)
                json_u64(&w, x->blocks[i]);
        json_close(&w, ']');
        json_close(&w, ']');
        json_key(&w, "remote_block_size");
        json_open(&w, '[');
        json_u64(&w, t->block_tokens);
        json_close(&w, ']');
        json_key(&w, "remote_engine_id");
        json_string(&w, slice_str(t->engine_id));
        json_key(&w, "remote_host");
        json_string(&w, slice_str(t->host));
        json_key(&w, "remote_port");
        json_u64(&w, engine_transfer_port(call->api->engine));
        for (size_t i = 0; i < 3; i++) {
                json_key(&w, sizes[i]);
                json_u64(&w, 1);
        }
        json_key(&w, "remote_cached_tokens");
        json_u64(&w, x->cached);
        /* This engine's own: the right to write, and the number that the prefiller must come to, too. */
        json_key(&w, "remote_request_id");
        json_string(&w, slice_str(x->id));
        json_key(&w, "remote_num_tokens");
        json_u64(&w, x->tokens);
        json_close(&w, '}');
}

static void give_up(struct api_call *call, const char *why) {
        const struct api_prepared *p = &call->prepared;

        log_warn(call->api->options.log, "request %.*s: no prefill from %.*s%.*s: %s", SLICE_ARG(call->answer.id),
            SLICE_ARG(p->metaserver.key), SLICE_ARG(p->metaserver_path), why);
        if (call->choices[0].in_engine)
                engine_unexpect(call->api->engine, call->choices[0].id);
}

static void on_head(struct http_call *asking, const struct http_response_head *head, void *user) {
        struct api_call *call = user;

        (void)asking;
        call->asked_status = head->status;
}

static void on_end(struct http_call *asking, enum http_failure failure, const char *why, void *user) {
        struct api_call *call = user;
        char said[64];

        (void)asking;
        call->asking = NULL;
        snprintf(said, sizeof(said), "it answered %d", call->asked_status);
        if (failure != HTTP_OK && failure != HTTP_FAIL_ABORTED)
                give_up(call, why);
        else if (failure == HTTP_OK && (call->asked_status < 200 || call->asked_status > 299))
                give_up(call, said);
        buf_free(&call->question);
        api_call_drop(call);
}

void api_ask_prefill(struct api_call *call, const struct engine_expected *expected) {
        static const struct http_call_callbacks callbacks = {.on_head = on_head, .on_end = on_end};
        struct http_field type = {SLICE_LIT("Content-Type"), SLICE_LIT("application/json")};
        struct http_request request = {.method = HTTP_METHOD_POST,
            .target = call->prepared.metaserver_path,
            .fields = {&type, 1},
            .body = &call->question_part,
            .body_parts = 1,
            .retry_stale = true};
        struct api *a = call->api;
        int r = 0;

        if (!a->client)
                r = http_client_new(a->loop, &(struct http_client_options){.log = a->options.log}, &a->client, NULL);
        write_question(call, expected, &call->question);
        call->question_part = buf_slice(&call->question);
        if (r == 0 && !buf_ok(&call->question))
                r = -ENOMEM;
        if (r == 0)
                r = http_call_start(a->client, &call->prepared.metaserver, &request, &callbacks, call, &call->asking);
        if (r < 0) {
                buf_free(&call->question);
                give_up(call, strerror(-r));
        } else
                api_call_hold(call);
}

void api_forget_prefill(struct api_call *call) {
        struct http_call *asking = call->asking;

        call->asking = NULL;
        if (asking)
                http_call_abort(asking); /* on_end() comes */
}
