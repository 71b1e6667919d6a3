/* names.c - open addressing with linear probing, at most half full. */
#include "model/names.h"
#include "base/hash.h"
#include <errno.h>
#include <stdlib.h>

struct names_slot {
        struct slice name; /* ptr NULL: free */
        uint32_t value;
};

void names_free(struct names *n) {
        free(n->slots);
        *n = (struct names){0};
}

static struct names_slot *probe(const struct names *n, struct slice name) {
        size_t i = hash64(name, n->seed) & (n->size - 1);

        while (n->slots[i].name.ptr && !slice_eq(n->slots[i].name, name))
                i = (i + 1) & (n->size - 1);
        return &n->slots[i];
}

static int grow(struct names *n) {
        struct names bigger = {.size = n->size ? n->size * 2 : 64, .count = n->count, .seed = n->seed};

        if (!n->size)
                bigger.seed = hash_seed();
        bigger.slots = calloc(bigger.size, sizeof(*bigger.slots));
        if (!bigger.slots)
                return -ENOMEM;
        for (size_t i = 0; i < n->size; i++)
                if (n->slots[i].name.ptr)
                        *probe(&bigger, n->slots[i].name) = n->slots[i];
        free(n->slots);
        *n = bigger;
        return 0;
}

int names_add(struct names *n, struct slice name, uint32_t value) {
        struct names_slot *slot;

        if (!name.ptr)
                name.ptr = "";
        if (n->count * 2 >= n->size && grow(n) < 0)
                return -ENOMEM;
        slot = probe(n, name);
        if (slot->name.ptr)
                return -EEXIST;
        *slot = (struct names_slot){name, value};
        n->count++;
        return 0;
}

bool names_find(const struct names *n, struct slice name, uint32_t *ret_value) {
        const struct names_slot *slot;

        if (!n->size)
                return false;
        slot = probe(n, name);
        if (!slot->name.ptr)
                return false;
        *ret_value = slot->value;
        return true;
}
