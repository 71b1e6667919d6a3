/* api_transfer.c - kv_transfer_params, as vLLM's connectors put them into requests and answers (NIXL's members, which the other
 * pull connectors share).
 *
 * Asked with do_remote_decode, an answer that is not streamed tells where its prompt's KV is kept. Asked with
 * do_remote_prefill, a prompt's KV is fetched from there. Engines that do neither ignore them, as vLLM does. */
#include "base/json.h"
#include "engine/api_call.h"
#include <errno.h>

/* Params that name no KV: to fetch nothing and compute all is what --kv-transfer-config may ask for. */
static int refuse(struct api_call *call, const char *what) {
        if (call->api->options.transfer->recompute) {
                log_warn(call->api->options.log, "kv_transfer_params: %s; the prompt is computed here", what);
                return 0;
        }
        return openai_fail(&call->prepared.error, 400, "BadRequestError", "kv_transfer_params",
            "kv_transfer_params: %s. They must come from the prefill of this very prompt, unchanged.", what);
}

/* An integer, or one in a string, as some connectors write it. -1: none. */
static int64_t number(yyjson_val *v) {
        struct slice text = json_slice(v);
        int64_t n = 0;

        if (json_to_i64(v, &n) == 0)
                return n;
        if (text.len == 0 || text.len > 9)
                return -1;
        for (size_t i = 0; i < text.len; i++) {
                if (text.ptr[i] < '0' || text.ptr[i] > '9')
                        return -1;
                n = n * 10 + (text.ptr[i] - '0');
        }
        return n;
}

static int read_source(struct api_call *call, yyjson_val *params) {
        static const struct {
                const char *key, *missing;
        } names[] = {{"remote_host", "remote_host is missing, or no name"},
            {"remote_engine_id", "remote_engine_id is missing, or no name"},
            {"remote_request_id", "remote_request_id is missing, or no name"}};
        struct api_prepared *p = &call->prepared;
        struct engine_remote *remote = &p->remote;
        struct slice *places[] = {&remote->source.host, &remote->source.engine_id, &remote->source.id};
        int64_t port = number(json_get(params, "remote_port"));
        int64_t tokens = number(json_get(params, "remote_num_tokens"));

        if (p->prompt_count != 1)
                return openai_fail(&p->error, 400, "BadRequestError", "kv_transfer_params",
                    "kv_transfer_params name the KV of one prompt: send each prompt of a list as a request of its "
                    "own.");
        for (size_t i = 0; i < 3; i++) {
                struct slice text = json_get_slice(params, names[i].key);

                if (text.len == 0 || text.len > COMM_NAME_MAX)
                        return refuse(call, names[i].missing);
                *places[i] = arena_copy(&call->arena, text);
                if (!places[i]->ptr)
                        return -ENOMEM;
        }
        if (port < 1 || port > 65535)
                return refuse(call, "remote_port is missing, or no port");
        if (tokens >= 0 && tokens != p->prompts[0].count)
                return refuse(call, "remote_num_tokens is not this prompt's number of tokens");
        remote->source.port = (uint16_t)port;
        remote->tokens = p->prompts[0].count;
        tokens = number(json_get(params, "remote_prefill_cached_tokens"));
        p->remote_cached = tokens > 0 && tokens <= remote->tokens ? (uint32_t)tokens : 0;
        p->fetches = true;
        return 0;
}

int api_read_transfer(struct api_call *call) {
        const struct api_transfer *t = call->api->options.transfer;
        struct api_prepared *p = &call->prepared;
        yyjson_doc *doc;
        yyjson_val *params;
        int r = 0;

        if (!t || !p->request.kv_transfer_params.len)
                return 0;
        if (json_parse(p->request.kv_transfer_params, &doc, NULL) < 0) /* it was an object a moment ago */
                return -ENOMEM;
        params = yyjson_doc_get_root(doc);
        p->keeps = t->produces && json_get_bool(params, "do_remote_decode", false) && !p->request.stream;
        if (t->consumes && json_get_bool(params, "do_remote_prefill", false))
                r = read_source(call, params);
        yyjson_doc_free(doc);
        return r;
}

int api_write_transfer(const struct api_call *call, const struct engine_output *output, struct buf *out) {
        const struct api_transfer *t = call->api->options.transfer;
        const struct engine_kept *kept = output->kept;
        struct json_writer w = {.out = out};

        json_open(&w, '{');
        json_key(&w, "do_remote_prefill");
        json_bool(&w, true);
        json_key(&w, "do_remote_decode");
        json_bool(&w, false);
        json_key(&w, "remote_block_ids"); /* by group of layers: there is one */
        json_open(&w, '[');
        json_open(&w, '[');
        for (uint32_t i = 0; i < kept->block_count; i++)
                json_u64(&w, kept->blocks[i]);
        json_close(&w, ']');
        json_close(&w, ']');
        json_key(&w, "remote_engine_id");
        json_string(&w, slice_str(t->engine_id));
        json_key(&w, "remote_request_id");
        json_string(&w, slice_str(kept->id));
        json_key(&w, "remote_host");
        json_string(&w, slice_str(t->host));
        json_key(&w, "remote_port");
        json_u64(&w, engine_transfer_port(call->api->engine));
        json_key(&w, "tp_size");
        json_u64(&w, 1);
        json_key(&w, "remote_block_size");
        json_u64(&w, t->block_tokens);
        json_key(&w, "remote_num_tokens");
        json_u64(&w, kept->tokens);
        json_key(&w, "remote_prefill_cached_tokens");
        json_u64(&w, output->cached_tokens);
        json_key(&w, "transfer_mode");
        json_string(&w, SLICE_LIT("pull"));
        json_close(&w, '}');
        return buf_ok(out) ? 0 : -ENOMEM;
}
