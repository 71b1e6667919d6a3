/* connector.c - the list of connectors, and what they share. */
#include "gateway/connector.h"
#include <assert.h>
#include <errno.h>

static const struct connector *const connectors[] = {
    &connector_pull, &connector_push, &connector_mooncake, &connector_sglang, &connector_plain};

const struct connector *connector_find(const char *name) {
        for (size_t i = 0; i < sizeof(connectors) / sizeof(*connectors); i++) {
                if (slice_is_name(slice_str(connectors[i]->name), name))
                        return connectors[i];
                for (const char *const *alias = connectors[i]->aliases; *alias; alias++)
                        if (slice_is_name(slice_str(*alias), name))
                                return connectors[i];
        }
        return NULL;
}

const char *connector_names(void) {
        return "pull (LLMDataDistCMgrConnector, MooncakeConnectorV1, MooncakeHybridConnector, NixlConnector), push "
               "(MooncakeLayerwiseConnector, SfaRemoteD2HConnector), mooncake (MooncakeConnector of vLLM), sglang, "
               "plain";
}

void edits_set(struct edits *e, const char *key, struct slice value) {
        for (size_t i = 0; i < e->count; i++)
                if (!strcmp(e->items[i].key, key)) {
                        e->items[i].value = value;
                        return;
                }
        assert(e->count < EDITS_MAX);
        e->items[e->count++] = (struct openai_edit){key, value};
}

/* The source's own edits first; those of the connector take their place where they meet. */
static void begin_edits(const struct source *s, struct edits *e) {
        e->count = 0;
        for (size_t i = 0; s->edits && i < s->edits->count; i++)
                e->items[e->count++] = s->edits->items[i];
}

static int finish_body(const struct source *s, const struct edits *e, struct arena *arena, struct body *ret_body) {
        struct body b;
        int r = openai_edit(s->text, s->members, s->count, e->items, e->count, arena, &b.parts, &b.count, &b.bytes);

        if (r == 0)
                *ret_body = b;
        return r;
}

int connector_prefill_body(
    const struct connector *c, const struct source *s, struct arena *arena, struct body *ret_body) {
        struct edits e;
        int r;

        begin_edits(s, &e);
        r = c->edit_prefill(s, arena, &e);

        return r < 0 ? r : finish_body(s, &e, arena, ret_body);
}

int connector_decode_body(const struct connector *c, const struct source *s, const struct handoff *h,
    enum decode_purpose purpose, bool want_token_ids, struct arena *arena, struct body *ret_body) {
        struct edits e;
        int r;

        begin_edits(s, &e);
        if (want_token_ids)
                edits_set(&e, "return_token_ids", SLICE_LIT("true"));
        r = c->edit_decode(s, h, purpose, arena, &e);
        return r < 0 ? r : finish_body(s, &e, arena, ret_body);
}

const char *connector_refusal(const struct connector *c, const struct facts *f) {
        if (c->order != ORDER_ONE && f->beam_search)
                return "use_beam_search makes many requests of one prompt inside an engine, which a prefill/decode "
                       "split "
                       "cannot hand over";
        return NULL;
}

/* ---- what connectors share ------------------------------------------------------------------------------------------ */

/* Does the limit hold what the engine would accept? If not the prefiller gets it as it is and refuses the request in its
 * own words, before any KV is committed. */
static bool limits_are_fine(const struct source *s) {
        const struct facts *f = s->facts;

        if (!f->max_understood || !f->min_understood)
                return false;
        if (f->max_tokens >= 0 && f->min_tokens > f->max_tokens)
                return false;
        return s->max_model_len <= 0 || f->max_tokens <= s->max_model_len;
}

static bool has(const struct source *s, const char *key) {
        return openai_find(s->members, s->count, key).ptr != NULL;
}

void edits_for_prefill(const struct source *s, struct edits *e) {
        /* Answers that nobody reads: computed and sent for nothing. stop is among them because a prefill that ends by
         * anything but its length gives no parameters with some engines. */
        static const char *const unread[] = {"stream_options", "logprobs", "top_logprobs", "prompt_logprobs", "echo",
            "stop", "best_of", "return_token_ids", "return_tokens_as_token_ids", "include_stop_str_in_output",
            "min_completion_tokens"};

        edits_set(e, "stream", SLICE_LIT("false"));
        for (size_t i = 0; i < sizeof(unread) / sizeof(*unread); i++)
                edits_set(e, unread[i], SLICE_NONE);
        if (!limits_are_fine(s))
                return;
        edits_set(e, "max_tokens", SLICE_LIT("1"));
        if (has(s, "max_completion_tokens"))
                edits_set(e, "max_completion_tokens", SLICE_LIT("1"));
        /* Keeps an end-of-text first token from ending the prefill as "stop". */
        edits_set(e, "min_tokens", SLICE_LIT("1"));
}

static int64_t number_in(struct slice object, const char *key) {
        struct openai_member m[32];
        size_t n, at;
        int64_t value;

        if (openai_scan(object, m, 32, &n, &at) < 0 || facts_integer(openai_find(m, n, key), &value) < 0)
                return -1;
        return value;
}

void handoff_count(struct handoff *h, struct slice usage) {
        struct openai_member m[32];
        size_t n, at;

        h->prompt_tokens = number_in(usage, "prompt_tokens");
        h->cached_tokens = -1;
        if (openai_scan(usage, m, 32, &n, &at) == 0)
                h->cached_tokens = number_in(openai_find(m, n, "prompt_tokens_details"), "cached_tokens");
}

int connector_take_counts(struct slice answer, struct arena *arena, struct handoff *ret_handoff, struct error *e) {
        struct openai_member m[OPENAI_MEMBERS_MAX];
        struct handoff h = {0};
        size_t n, at;

        if (openai_scan(answer, m, OPENAI_MEMBERS_MAX, &n, &at) < 0)
                return error_set(e, -EINVAL, "the answer is not a JSON object (at byte %zu)", at);
        handoff_count(&h, openai_find(m, n, "usage"));
        *ret_handoff = h;
        return 0;
}
