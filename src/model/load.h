/* load.h - the walk from a checkpoint's tensors to packed weights (private to model/). */
#pragma once
#include "model/core.h"
#include "model/weights.h"

struct loader {
        struct model *m;
        struct compute *compute; /* that packs */
        struct region *to;       /* where packed weights go */
        struct weights w;
        struct error *e;
        char prefix[64];          /* of the layer being loaded, with its dot */
        bool own_embed, own_head; /* of the MTP module */
};

/* Names of tensors are of this layer from now on. */
void loader_layer(struct loader *l, uint32_t number);
/* One routed expert, where it lies told. Measuring: *to stays as it is. */
int loader_expert(struct loader *l, uint32_t expert, struct mlp *to, struct held *ret_held);

/* ---- moving.c ------------------------------------------------------------------------------------------------------- */

/* The loader's checkpoint stays open for experts to come; it is the model's now, on failure, too. 0 or -ENOMEM. */
int moving_keep(struct loader *l);
void moving_free(struct model *m);
