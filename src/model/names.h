/* names.h - a table from names to numbers, for the tensors of a checkpoint (private to model/). */
#pragma once
#include "base/slice.h"

/* A zeroed table is empty. Names are borrowed. Seeded: names come from files. */
struct names {
        struct names_slot *slots;
        size_t size, count; /* size: 0 or a power of two */
        uint64_t seed;
};

void names_free(struct names *n);
/* Returns 0, -EEXIST (unchanged), -ENOMEM. */
int names_add(struct names *n, struct slice name, uint32_t value);
bool names_find(const struct names *n, struct slice name, uint32_t *ret_value);
