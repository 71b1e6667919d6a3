/* tree.h - a YAML file as a tree with places, and the table-driven reading of its mappings (private to cluster/). */
#pragma once
#include "cluster/cluster.h"
#include <yaml.h>

struct tree {
        yaml_document_t document;
        bool loaded;
};

/* Returns 0, or -EINVAL with a finding (Y01) that names place and problem; -ENOMEM. Free with tree_free in any case. */
int tree_load(struct tree *t, struct slice text, struct findings *findings);
void tree_free(struct tree *t);
yaml_node_t *tree_root(struct tree *t); /* NULL for an empty file */
yaml_node_t *tree_node(struct tree *t, int index);

struct place node_place(const yaml_node_t *n);
struct slice node_text(const yaml_node_t *n); /* of a scalar, else SLICE_NONE; valid while the tree lives */
bool node_is_null(const yaml_node_t *n);      /* null, ~ or nothing, unquoted */
const char *node_kind_name(const yaml_node_t *n);

/* ---- reading a mapping by a table ----------------------------------------------------------------------------------- */

enum field_kind {
        FIELD_TEXT,     /* struct slice, copied into the arena */
        FIELD_INTEGER,  /* int64_t within [min, max] */
        FIELD_CHOICE,   /* int (an enum): index into `choices` */
        FIELD_SETTINGS, /* struct settings */
        FIELD_CUSTOM,   /* read() does it */
};

struct reader {
        struct tree *tree;
        struct arena *arena;
        struct findings *findings;
        struct cluster *cluster;
};

struct field {
        const char *key;
        enum field_kind kind;
        size_t offset; /* of the value in the target */
        size_t place;  /* of its struct place in the target, SIZE_MAX: not kept */
        bool required;
        int64_t min, max;
        const char *const *choices; /* NULL-terminated */
        void (*read)(struct reader *r, yaml_node_t *value, void *target);
};

/* Fill `target` from the mapping `n`. Unknown keys (Y02), double keys (Y03), wrong kinds (Y04), values out of range (Y05)
 * and missing required keys (Y06) become findings; `where` names the mapping for them ("model", "prefill"). */
void read_mapping(
    struct reader *r, yaml_node_t *n, const char *where, const struct field *fields, size_t count, void *target);
/* A mapping of settings, as for FIELD_SETTINGS. */
void read_settings(struct reader *r, yaml_node_t *n, const char *where, struct settings *ret_settings);
bool expect_kind(struct reader *r, yaml_node_t *n, yaml_node_type_t kind, const char *where);
