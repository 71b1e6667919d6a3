/* fuzz_model_config.c - any config.json is read or refused with a text; what is read has the shapes that loading relies on. */
#include "model/core.h"
#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check(const struct model_config *c) {
        if (!c->vocab || !c->hidden || !c->layers || !c->heads || !c->kv_rank || !c->rope || c->rope % 2 ||
            !c->max_positions)
                abort();
        if (c->experts && (!c->top_k || c->top_k > c->experts || !c->groups || c->experts % c->groups || !c->moe_freq ||
                              c->top_groups > c->groups || c->top_k > c->experts / c->groups * c->top_groups))
                abort();
        if ((uint64_t)c->heads * (c->nope + c->rope + c->v) > 1u << 17 ||
            (uint64_t)c->max_positions * (c->kv_rank + 2) > 200000000)
                abort();
        if (!(c->softmax_scale > 0) || c->eos_count > 8)
                abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
        struct model_config c = {0};
        struct error e = {{0}};
        yyjson_doc *doc;

        if (json_parse(slice_of(data, size), &doc, NULL) < 0)
                return 0;
        if (model_config_parse(yyjson_doc_get_root(doc), &c, &e) == 0)
                check(&c);
        else if (!e.text[0])
                abort();
        yyjson_doc_free(doc);
        return 0;
}
