/* connector_mooncake.c - prefill and decode at once: MooncakeConnector of vLLM (not of vLLM-Ascend, whose MooncakeConnectorV1
 * pulls).
 *
 * Both legs carry one transfer_id. The decoder is told the prefiller's bootstrap server and the id of its engine, and fetches
 * the KV when the prefiller has it; GET /query of the bootstrap server names the engines by data-parallel rank. */
#include "gateway/connector.h"
#include <errno.h>

static int edit_prefill(const struct source *s, struct arena *arena, struct edits *e) {
        const char *params =
            arena_printf(arena, "{\"do_remote_decode\":true,\"do_remote_prefill\":false,\"transfer_id\":\"%.*s\"}",
                SLICE_ARG(s->meeting.request_id));

        if (!params)
                return -ENOMEM;
        edits_for_prefill(s, e);
        edits_set(e, "kv_transfer_params", slice_str(params));
        return 0;
}

static int edit_decode(const struct source *s, const struct handoff *h, enum decode_purpose purpose,
    struct arena *arena, struct edits *e) {
        const struct meeting *m = &s->meeting;
        const char *params = arena_printf(arena,
            "{\"do_remote_decode\":false,\"do_remote_prefill\":true,\"transfer_id\":\"%.*s\",\"remote_bootstrap_addr\":"
            "\"http://%.*s:%u\",\"remote_engine_id\":\"%.*s\",\"remote_dp_rank\":%d}",
            SLICE_ARG(m->request_id), SLICE_ARG(m->host), m->port, SLICE_ARG(m->engine_id),
            m->dp_rank < 0 ? 0 : m->dp_rank);

        if (!params)
                return -ENOMEM;
        edits_set(e, "kv_transfer_params", slice_str(params));
        return 0;
}

/* {"0": {"engine_id": "…", …}, …}; earlier {"ENGINE ID": {"0": …, …}}. */
static int take_engine(struct slice answer, int dp_rank, struct slice *ret_id, struct error *e) {
        struct openai_member m[OPENAI_MEMBERS_MAX], inner[OPENAI_MEMBERS_MAX];
        struct slice id, found = SLICE_NONE;
        size_t n, k, at;
        uint64_t rank;
        int ranks = 0;

        if (openai_scan(answer, m, OPENAI_MEMBERS_MAX, &n, &at) < 0)
                return error_set(e, -EINVAL, "the answer is not a JSON object");
        for (size_t i = 0; i < n; i++) {
                if (openai_scan(m[i].value, inner, OPENAI_MEMBERS_MAX, &k, &at) < 0)
                        return error_set(e, -EINVAL, "the answer has a member that is not an object");
                id = openai_inside(openai_find(inner, k, "engine_id"));
                if (id.len > 0) {
                        ranks++;
                        if (slice_to_u64(m[i].key, &rank) == 0 && (int64_t)rank == (dp_rank < 0 ? 0 : dp_rank))
                                found = id;
                        continue;
                }
                for (size_t j = 0; j < k; j++) {
                        ranks++;
                        if (slice_to_u64(inner[j].key, &rank) == 0 && (int64_t)rank == (dp_rank < 0 ? 0 : dp_rank))
                                found = m[i].key;
                }
        }
        if (dp_rank < 0 && ranks > 1)
                return error_set(e, -EINVAL, "it has %d data-parallel ranks: name each, such as host:port@0", ranks);
        if (found.len == 0)
                return error_set(e, -EINVAL, "it names no engine for rank %d", dp_rank < 0 ? 0 : dp_rank);
        *ret_id = found;
        return 0;
}

static const char *const aliases[] = {"MooncakeConnector", NULL};

const struct connector connector_mooncake = {
    .name = "mooncake",
    .aliases = aliases,
    .order = ORDER_TOGETHER,
    .edit_prefill = edit_prefill,
    .edit_decode = edit_decode,
    .take = connector_take_counts,
    .bootstrap_path = "/query",
    .take_engine = take_engine,
};
