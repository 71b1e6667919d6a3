/* gateway_engine.c - an engine that answers at once, for measuring what stands in front of it.
 *
 *     gateway_engine PORT [EVENTS [PACE_US]]
 *
 * A prefill leg gets kv_transfer_params; other requests get 1 KB of JSON, or EVENTS chunks when they ask for a stream,
 * all at once or one every PACE_US. */
#include "http/http.h"
#include <stdio.h>
#include <stdlib.h>

static unsigned events = 100, pace_us;
static struct slice prefill_answer, whole_answer, chunk, last_chunk;

struct streaming {
        struct http_exchange *x;
        uv_timer_t timer;
        unsigned sent;
};

static bool has(struct slice body, const char *word) {
        return memmem(body.ptr, body.len, word, strlen(word)) != NULL;
}

static void on_timer_closed(uv_handle_t *h) {
        free(h->data);
}

static void on_stream_end(struct http_exchange *x, enum http_end end, void *user) {
        struct streaming *s = user;

        if (s)
                uv_close((uv_handle_t *)&s->timer, on_timer_closed);
}

static void on_pace(uv_timer_t *t) {
        struct streaming *s = t->data;

        if (++s->sent < events) {
                http_send(s->x, &chunk, 1);
                return;
        }
        uv_timer_stop(t);
        http_send(s->x, &last_chunk, 1);
        http_finish(s->x);
}

static void stream(struct http_exchange *x) {
        static const struct http_field type = {
            SLICE_LIT("Content-Type"), SLICE_LIT("text/event-stream; charset=utf-8")};
        const struct http_exchange_callbacks callbacks = {.on_end = on_stream_end};
        struct streaming *s;

        http_begin(x, 200, (struct http_fields){&type, 1}, HTTP_LENGTH_CHUNKED);
        if (!pace_us) {
                for (unsigned i = 1; i < events; i++)
                        http_send(x, &chunk, 1);
                http_send(x, &last_chunk, 1);
                http_finish(x);
                return;
        }
        s = calloc(1, sizeof(*s));
        s->x = x;
        s->timer.data = s;
        uv_timer_init(http_exchange_loop(x), &s->timer);
        http_exchange_watch(x, &callbacks, s);
        uv_timer_start(&s->timer, on_pace, (pace_us + 999) / 1000, (pace_us + 999) / 1000);
}

static void on_all(struct http_exchange *x, struct slice body, void *user) {
        static const struct http_field type = {SLICE_LIT("Content-Type"), SLICE_LIT("application/json")};

        if (has(body, "\"do_remote_decode\":true"))
                http_respond(x, 200, (struct http_fields){&type, 1}, prefill_answer);
        else if (has(body, "\"stream\":true"))
                stream(x);
        else
                http_respond(x, 200, (struct http_fields){&type, 1}, whole_answer);
}

static void on_request(void *context, struct http_exchange *x) {
        static const struct http_exchange_callbacks none;

        http_exchange_watch(x, &none, NULL);
        http_exchange_collect(x, on_all);
}

static struct slice text(const char *format, int width) {
        char *out = NULL;
        int n = asprintf(&out, format, width, "x");

        return slice_of(out, (size_t)n);
}

int main(int argc, char **argv) {
        struct http_server_options options = {.on_request = on_request, .limits = {.body_bytes = 64u << 20}};
        struct http_listen at = {.host = "127.0.0.1"};
        struct http_server *server;
        struct error e = {0};
        uv_loop_t loop;

        if (argc < 2)
                return 2;
        at.port = (uint16_t)atoi(argv[1]);
        if (argc > 2)
                events = (unsigned)atoi(argv[2]);
        if (argc > 3)
                pace_us = (unsigned)atoi(argv[3]);
        prefill_answer = slice_str(
            "{\"id\":\"chatcmpl-p\",\"object\":\"chat.completion\",\"created\":1795501827,\"model\":\"m\",\"choices\":["
            "{"
            "\"index\":0,\"message\":{\"role\":\"assistant\",\"content\":\"\"},\"finish_reason\":\"length\"}],"
            "\"usage\":{"
            "\"prompt_tokens\":250,\"total_tokens\":251,\"completion_tokens\":1},\"kv_transfer_params\":{"
            "\"do_remote_prefill\":true,\"do_remote_decode\":false,\"remote_block_ids\":[[1,2,3,4,5,6,7,8]],"
            "\"remote_engine_id\":\"b51e6c67-9b51-4d69-aa98-9639c188cf74\",\"remote_request_id\":\"cmpl-9cf1d837\","
            "\"remote_host\":\"127.0.0.1\",\"remote_port\":5601,\"tp_size\":1}}");
        whole_answer =
            text("{\"id\":\"chatcmpl-d\",\"object\":\"chat.completion\",\"created\":1795501827,\"model\":\"m\","
                 "\"choices\":[{\"index\":0,\"message\":{\"role\":\"assistant\",\"content\":\"%*s\"},"
                 "\"logprobs\":null,\"finish_reason\":\"length\",\"stop_reason\":null}],\"usage\":{"
                 "\"prompt_tokens\":250,\"total_tokens\":450,\"completion_tokens\":200}}",
                700);
        chunk =
            slice_str("data: {\"id\":\"chatcmpl-a7dd6e97c170c808\",\"object\":\"chat.completion.chunk\",\"created\":"
                      "1795501628,\"model\":\"tiny-v3\",\"choices\":[{\"index\":0,\"delta\":{\"content\":\" word\"},"
                      "\"logprobs\":null,\"finish_reason\":null,\"token_ids\":[38154]}]}\n\n");
        last_chunk =
            slice_str("data: {\"id\":\"chatcmpl-a7dd6e97c170c808\",\"object\":\"chat.completion.chunk\",\"created\":"
                      "1795501628,\"model\":\"tiny-v3\",\"choices\":[{\"index\":0,\"delta\":{\"content\":\"\"},"
                      "\"logprobs\":null,\"finish_reason\":\"length\",\"stop_reason\":null,\"token_ids\":[164]}]}\n\n"
                      "data: [DONE]\n\n");
        uv_loop_init(&loop);
        if (http_server_new(&loop, &options, &server, &e) < 0 || http_server_listen(server, &at, NULL, &e) < 0) {
                fprintf(stderr, "gateway_engine: %s\n", e.text);
                return 1;
        }
        return uv_run(&loop, UV_RUN_DEFAULT);
}
