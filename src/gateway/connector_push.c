/* connector_push.c - decode first, then the prefiller pushes: MooncakeLayerwiseConnector and SfaRemoteD2HConnector of
 * vLLM-Ascend.
 *
 * The decode leg is the client's request with the URL of a metaserver. When the decoder has room for the prompt it posts
 * there what a prefiller needs to write into its blocks (metaserver.c); the prefill leg is the client's request for one
 * token with that object, byte for byte. The KV is written while it is computed, so nothing is held for anybody
 * afterwards, and the prefill leg's answer says nothing that the decoder needs. */
#include "gateway/connector.h"
#include <errno.h>

static int edit_prefill(const struct source *s, struct arena *arena, struct edits *e) {
        edits_for_prefill(s, e);
        edits_set(e, "kv_transfer_params", s->meeting.asked);
        return 0;
}

static int edit_decode(const struct source *s, const struct handoff *h, enum decode_purpose purpose,
    struct arena *arena, struct edits *e) {
        const char *params =
            arena_printf(arena, "{\"do_remote_decode\":false,\"do_remote_prefill\":true,\"metaserver\":\"%.*s\"}",
                SLICE_ARG(s->meeting.metaserver));

        if (!params)
                return -ENOMEM;
        edits_set(e, "kv_transfer_params", slice_str(params));
        return 0;
}

static const char *const aliases[] = {"layerwise", "MooncakeLayerwiseConnector", "SfaRemoteD2HConnector", NULL};

const struct connector connector_push = {
    .name = "push",
    .aliases = aliases,
    .order = ORDER_DECODE_FIRST,
    .edit_prefill = edit_prefill,
    .edit_decode = edit_decode,
    .take = connector_take_counts,
};
