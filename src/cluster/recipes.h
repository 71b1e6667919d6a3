/* recipes.h - what vLLM-Ascend's pages recommend per model and machine (private to cluster/). */
#pragma once
#include "cluster/cluster.h"

struct recipe_role {
        int64_t nodes, group_nodes, dp, tp;
        const char *env, *args; /* lines of YAML without indentation, NULL: none */
};

struct recipe {
        struct init_recipe is;
        const char *engine, *platform, *version, *connector, *model, *served_name;
        int64_t max_len, drafts; /* drafts: of decode; 0: no speculation */
        const char *env;         /* of all ranks */
        struct recipe_role roles[2];
};

const struct recipe *recipe_find(const char *name); /* NULL: none of that name */
