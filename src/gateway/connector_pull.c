/* connector_pull.c - prefill first, then the decoder pulls: LLMDataDistCMgrConnector, MooncakeConnectorV1 and Hybrid of
 * vLLM-Ascend, NixlConnector of vLLM, and the embedded engine.
 *
 * The prefill leg asks for one token and for the KV to be kept (do_remote_decode); its answer names the blocks
 * (kv_transfer_params); the decode leg is the client's request with that object, copied byte for byte: it holds numbers
 * that a double would change, and belongs to the engines. The object may be used once. A decoder believes it: with
 * blocks that are missing, empty or another prompt's it dies or answers with wrong text (seen on vLLM 0.32 with NIXL), so
 * what is needed is checked here, and what a client sent under that name never passes. */
#include "gateway/connector.h"
#include <errno.h>

/* ---- the prefill leg ------------------------------------------------------------------------------------------------ */

static int edit_prefill(const struct source *s, struct arena *arena, struct edits *e) {
        edits_for_prefill(s, e);
        edits_set(e, "kv_transfer_params",
            SLICE_LIT("{\"do_remote_decode\":true,\"do_remote_prefill\":false,\"remote_engine_id\":null,"
                      "\"remote_block_ids\":null,\"remote_host\":null,\"remote_port\":null}"));
        return 0;
}

/* ---- its answer ----------------------------------------------------------------------------------------------------- */

static bool is_filled_string(struct slice v) {
        return openai_inside(v).len > 0;
}

/* A list that names at least one block: flat, or one list for each cache group. */
static bool names_blocks(struct slice v) {
        struct slice inner;
        bool any = false;

        if (v.len == 0 || v.ptr[0] != '[')
                return false;
        for (struct slice item; openai_next_item(&v, &item);) {
                inner = item;
                any |= item.ptr[0] != '[' || openai_next_item(&inner, &item);
        }
        return any;
}

/* What a decoder needs to find there, by connector (ascend.md C.1): all have engine, host, port and blocks; Mooncake and
 * NIXL also the request's id at the prefiller, which LLMDataDist does without (it is known by remote_tp_size). */
static int check_params(struct slice params, struct error *e) {
        struct openai_member m[OPENAI_MEMBERS_MAX];
        size_t n, at;
        int64_t port;

        if (openai_scan(params, m, OPENAI_MEMBERS_MAX, &n, &at) < 0)
                return error_set(e, -ENODATA, "kv_transfer_params is not an object");
        if (!facts_true(openai_find(m, n, "do_remote_prefill")))
                return error_set(e, -ENODATA, "kv_transfer_params lacks do_remote_prefill");
        if (!is_filled_string(openai_find(m, n, "remote_engine_id")))
                return error_set(e, -ENODATA, "kv_transfer_params lacks remote_engine_id");
        if (!names_blocks(openai_find(m, n, "remote_block_ids")))
                return error_set(e, -ENODATA, "kv_transfer_params has no remote_block_ids");
        if (!is_filled_string(openai_find(m, n, "remote_host")))
                return error_set(e, -ENODATA, "kv_transfer_params lacks remote_host");
        if (facts_integer(openai_find(m, n, "remote_port"), &port) < 0)
                return error_set(e, -ENODATA, "kv_transfer_params lacks remote_port");
        if (!is_filled_string(openai_find(m, n, "remote_request_id")) && !openai_find(m, n, "remote_tp_size").ptr)
                return error_set(e, -ENODATA, "kv_transfer_params lacks remote_request_id");
        return 0;
}

static struct slice finish_reason(struct slice choices) {
        struct openai_member m[32];
        struct slice choice;
        size_t n, at;

        if (!openai_next_item(&choices, &choice) || openai_scan(choice, m, 32, &n, &at) < 0)
                return SLICE_NONE;
        return openai_find(m, n, "finish_reason");
}

static int take(struct slice answer, struct arena *arena, struct handoff *ret_handoff, struct error *e) {
        struct openai_member m[OPENAI_MEMBERS_MAX];
        struct handoff h = {0};
        struct slice reason;
        size_t n, at;
        int r;

        if (openai_scan(answer, m, OPENAI_MEMBERS_MAX, &n, &at) < 0)
                return error_set(e, -EINVAL, "the answer is not a JSON object (at byte %zu)", at);
        h.params = openai_find(m, n, "kv_transfer_params");
        if (openai_is_null(h.params)) {
                reason = finish_reason(openai_find(m, n, "choices"));
                return error_set(e, -ENODATA,
                    "the answer has no kv_transfer_params (finish_reason %.*s); is the engine "
                    "started with --kv-transfer-config?",
                    SLICE_ARG(slice_sub(reason, 0, 40)));
        }
        r = check_params(h.params, e);
        if (r < 0)
                return r;
        handoff_count(&h, openai_find(m, n, "usage"));
        h.params = arena_copy(arena, h.params);
        if (!h.params.ptr)
                return -ENOMEM;
        *ret_handoff = h;
        return 0;
}

/* ---- the decode leg ------------------------------------------------------------------------------------------------- */

static void edit_settle(const struct source *s, struct edits *e) {
        static const char *const unread[] = {"stream_options", "logprobs", "top_logprobs", "prompt_logprobs", "echo",
            "stop", "best_of", "return_token_ids", "min_completion_tokens", "max_completion_tokens", "min_tokens",
            "temperature", "top_p", "top_k", "min_p", "seed", "presence_penalty", "frequency_penalty",
            "repetition_penalty", "logit_bias", "stop_token_ids", "bad_words"};

        edits_set(e, "stream", SLICE_LIT("false"));
        edits_set(e, "n", SLICE_NONE);
        for (size_t i = 0; i < sizeof(unread) / sizeof(*unread); i++)
                edits_set(e, unread[i], SLICE_NONE);
        edits_set(e, "max_tokens", SLICE_LIT("1"));
}

static int edit_decode(const struct source *s, const struct handoff *h, enum decode_purpose purpose,
    struct arena *arena, struct edits *e) {
        edits_set(e, "kv_transfer_params", h->params);
        if (purpose == DECODE_SETTLE)
                edit_settle(s, e);
        return 0;
}

static const char *const aliases[] = {"nixl", "llmdatadist", "LLMDataDistCMgrConnector", "MooncakeConnectorV1",
    "MooncakeHybridConnector", "NixlConnector", "MultiConnector", NULL};

const struct connector connector_pull = {
    .name = "pull",
    .aliases = aliases,
    .order = ORDER_PREFILL_FIRST,
    .edit_prefill = edit_prefill,
    .edit_decode = edit_decode,
    .take = take,
};
