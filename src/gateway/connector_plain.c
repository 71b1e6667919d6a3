/* connector_plain.c - no prefill/decode split: one leg on a whole engine, the client's body as it is.
 *
 * Only kv_transfer_params are taken out: they would make an engine fetch from an address of the client's choice. */
#include "gateway/connector.h"
#include <errno.h>

static int edit_decode(const struct source *s, const struct handoff *h, enum decode_purpose purpose,
    struct arena *arena, struct edits *e) {
        edits_set(e, "kv_transfer_params", SLICE_NONE);
        return 0;
}

static const char *const aliases[] = {"none", "null", NULL};

const struct connector connector_plain = {
    .name = "plain",
    .aliases = aliases,
    .order = ORDER_ONE,
    .edit_decode = edit_decode,
};
