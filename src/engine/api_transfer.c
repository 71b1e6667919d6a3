/* api_transfer.c - kv_transfer_params, as vLLM's connectors put them into requests and answers (NIXL's members, which the other
 * pull connectors share; MooncakeLayerwiseConnector's where KV is pushed).
 *
 * Asked with do_remote_decode, an answer that is not streamed tells where its prompt's KV is kept. Asked with
 * do_remote_prefill, a prompt's KV is fetched from there. Where KV is pushed: asked with do_remote_prefill and a metaserver, the
 * prefill is asked for there (api_push.c); asked with do_remote_decode, the prompt's KV is written to where the params say. Engines
 * that do neither ignore them, as vLLM does. */
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

static int refuse_list(struct api_call *call) {
        return openai_fail(&call->prepared.error, 400, "BadRequestError", "kv_transfer_params",
            "kv_transfer_params are of one prompt: send each prompt of a list as a request of its own.");
}

/* Who waits for this prompt's KV, as it has told the gateway. Without it a prefill here is for nobody. */
static int refuse_push(struct api_call *call, const char *what) {
        return openai_fail(&call->prepared.error, 400, "BadRequestError", "kv_transfer_params",
            "kv_transfer_params: %s. This engine writes KV to decoders that have asked for it: kv_transfer_params must "
            "be "
            "what the prompt's decoder has sent to the metaserver, unchanged (`baton gateway --connector push`).",
            what);
}

/* The names that say where. -EINVAL: `*ret_missing` says which one is none. */
static int read_names(struct api_call *call, yyjson_val *params, const char **ret_missing) {
        static const struct {
                const char *key, *missing;
        } names[] = {{"remote_host", "remote_host is missing, or no name"},
            {"remote_engine_id", "remote_engine_id is missing, or no name"},
            {"remote_request_id", "remote_request_id is missing, or no name"}};
        struct comm_source *source = &call->prepared.remote.source;
        struct slice *places[] = {&source->host, &source->engine_id, &source->id};
        int64_t port = number(json_get(params, "remote_port"));

        for (size_t i = 0; i < 3; i++) {
                struct slice text = json_get_slice(params, names[i].key);

                *ret_missing = names[i].missing;
                if (text.len == 0 || text.len > COMM_NAME_MAX)
                        return -EINVAL;
                *places[i] = arena_copy(&call->arena, text);
                if (!places[i]->ptr)
                        return -ENOMEM;
        }
        *ret_missing = "remote_port is missing, or no port";
        source->port = port < 1 || port > 65535 ? 0 : (uint16_t)port;
        return source->port ? 0 : -EINVAL;
}

static int read_source(struct api_call *call, yyjson_val *params) {
        struct api_prepared *p = &call->prepared;
        struct engine_remote *remote = &p->remote;
        int64_t tokens = number(json_get(params, "remote_num_tokens"));
        const char *missing;
        int r;

        if (p->prompt_count != 1)
                return refuse_list(call);
        r = read_names(call, params, &missing);
        if (r < 0)
                return r == -EINVAL ? refuse(call, missing) : r;
        if (tokens >= 0 && tokens != p->prompts[0].count)
                return refuse(call, "remote_num_tokens is not this prompt's number of tokens");
        remote->tokens = p->prompts[0].count;
        tokens = number(json_get(params, "remote_prefill_cached_tokens"));
        p->remote_cached = tokens > 0 && tokens <= remote->tokens ? (uint32_t)tokens : 0;
        p->fetches = true;
        return 0;
}

static int read_metaserver(struct api_call *call, yyjson_val *params) {
        struct api_prepared *p = &call->prepared;
        struct slice url = json_get_slice(params, "metaserver");
        int r;

        if (p->prompt_count != 1)
                return refuse_list(call);
        if (url.len == 0)
                return refuse(call, "metaserver is missing: this engine asks there for the prefill");
        r = api_read_metaserver(call, url);
        if (r < 0)
                return r == -EINVAL ? refuse(call, "metaserver is no URL") : r;
        p->expects = true;
        return 0;
}

static int read_target(struct api_call *call, yyjson_val *params) {
        struct api_prepared *p = &call->prepared;
        struct engine_remote *remote = &p->remote;
        int64_t tokens = number(json_get(params, "remote_num_tokens"));
        int64_t cached = number(json_get(params, "remote_cached_tokens"));
        const char *missing;
        int r;

        if (p->prompt_count != 1)
                return refuse_list(call);
        r = read_names(call, params, &missing);
        if (r < 0)
                return r == -EINVAL ? refuse_push(call, missing) : r;
        if (tokens != p->prompts[0].count)
                return refuse_push(call, "remote_num_tokens is not this prompt's number of tokens");
        if (cached < 0 || cached + 1 >= tokens)
                return refuse_push(call, "remote_cached_tokens is missing, or leaves nothing to be written");
        if (p->prompts[0].max_tokens != 1)
                return refuse_push(call, "max_tokens is not 1");
        remote->tokens = p->prompts[0].count;
        remote->cached = (uint32_t)cached;
        p->pushes = true;
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
        if (t->produces && json_get_bool(params, "do_remote_decode", false)) {
                if (t->pushes)
                        r = read_target(call, params);
                else
                        p->keeps = !p->request.stream;
        }
        if (r == 0 && t->consumes && json_get_bool(params, "do_remote_prefill", false))
                r = t->pushes ? read_metaserver(call, params) : read_source(call, params);
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
