/* connector_sglang.c - prefill and decode at once: SGLang. Both legs are the client's request with the prefiller's bootstrap
 * server and one random room, where they meet; the prefiller answers when it has handed its KV over, and is not listened to. */
#include "gateway/connector.h"
#include <errno.h>

static int meet(const struct source *s, struct arena *arena, struct edits *e) {
        const struct meeting *m = &s->meeting;
        const char *host = arena_printf(arena, "\"%.*s\"", SLICE_ARG(m->host)),
                   *port = arena_printf(arena, "%u", m->port),
                   *room = arena_printf(arena, "%llu", (unsigned long long)m->room),
                   *rid = arena_printf(arena, "\"%.*s\"", SLICE_ARG(m->request_id));

        if (!host || !port || !room || !rid)
                return -ENOMEM;
        edits_set(e, "kv_transfer_params", SLICE_NONE);
        edits_set(e, "bootstrap_host", slice_str(host));
        edits_set(e, "bootstrap_port", slice_str(port));
        edits_set(e, "bootstrap_room", slice_str(room));
        edits_set(e, "rid", slice_str(rid));
        return 0;
}

static int edit_prefill(const struct source *s, struct arena *arena, struct edits *e) {
        edits_set(e, "stream", SLICE_LIT("false"));
        edits_set(e, "stream_options", SLICE_NONE);
        return meet(s, arena, e);
}

static int edit_decode(const struct source *s, const struct handoff *h, enum decode_purpose purpose,
    struct arena *arena, struct edits *e) {
        return meet(s, arena, e);
}

static const char *const aliases[] = {NULL};

const struct connector connector_sglang = {
    .name = "sglang",
    .aliases = aliases,
    .order = ORDER_TOGETHER,
    .edit_prefill = edit_prefill,
    .edit_decode = edit_decode,
    .take = connector_take_counts,
};
