/* connector.c - the list of connectors, and what they share. */
#include "gateway/connector.h"
#include <assert.h>
#include <errno.h>

static const struct connector *const connectors[] = {&connector_pull, &connector_plain};

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
        return "pull (LLMDataDistCMgrConnector, MooncakeConnectorV1, MooncakeHybridConnector, NixlConnector), plain";
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
        r = c->edit_prefill(s, &e);

        return r < 0 ? r : finish_body(s, &e, arena, ret_body);
}

int connector_decode_body(const struct connector *c, const struct source *s, const struct handoff *h,
    enum decode_purpose purpose, bool want_token_ids, struct arena *arena, struct body *ret_body) {
        struct edits e;
        int r;

        begin_edits(s, &e);
        if (want_token_ids)
                edits_set(&e, "return_token_ids", SLICE_LIT("true"));
        r = c->edit_decode(s, h, purpose, &e);
        return r < 0 ? r : finish_body(s, &e, arena, ret_body);
}

const char *connector_refusal(const struct connector *c, const struct facts *f) {
        if (c->order != ORDER_ONE && f->beam_search)
                return "use_beam_search makes many requests of one prompt inside an engine, which a prefill/decode "
                       "split "
                       "cannot hand over";
        return NULL;
}
