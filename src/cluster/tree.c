/* tree.c - YAML through libyaml's document interface; values become findings or fields, never half of each. */
#include "cluster/tree.h"
#include "base/json.h"
#include "base/options.h"
#include <errno.h>
#include <limits.h>

int tree_load(struct tree *t, struct slice text, struct findings *findings) {
        yaml_parser_t parser;
        int r = 0;

        *t = (struct tree){0};
        if (!yaml_parser_initialize(&parser))
                return -ENOMEM;
        yaml_parser_set_input_string(&parser, (const unsigned char *)text.ptr, text.len);
        if (yaml_parser_load(&parser, &t->document))
                t->loaded = true;
        else if (parser.error == YAML_MEMORY_ERROR)
                r = -ENOMEM;
        else {
                struct place at = {(uint32_t)parser.problem_mark.line + 1, (uint32_t)parser.problem_mark.column + 1};

                findings_add(findings, SEVERITY_ERROR, "Y01", at, "not YAML: %s%s%s",
                    parser.problem ? parser.problem : "unreadable", parser.context ? ", " : "",
                    parser.context ? parser.context : "");
                r = -EINVAL;
        }
        yaml_parser_delete(&parser);
        return r;
}

void tree_free(struct tree *t) {
        if (t->loaded)
                yaml_document_delete(&t->document);
        t->loaded = false;
}

yaml_node_t *tree_root(struct tree *t) {
        return t->loaded ? yaml_document_get_root_node(&t->document) : NULL;
}

yaml_node_t *tree_node(struct tree *t, int index) {
        return yaml_document_get_node(&t->document, index);
}

struct place node_place(const yaml_node_t *n) {
        return (struct place){(uint32_t)n->start_mark.line + 1, (uint32_t)n->start_mark.column + 1};
}

struct slice node_text(const yaml_node_t *n) {
        if (n->type != YAML_SCALAR_NODE)
                return SLICE_NONE;
        return slice_of(n->data.scalar.value, n->data.scalar.length);
}

static bool node_is_plain(const yaml_node_t *n) {
        return n->type == YAML_SCALAR_NODE && n->data.scalar.style == YAML_PLAIN_SCALAR_STYLE;
}

bool node_is_null(const yaml_node_t *n) {
        struct slice s = node_text(n);

        return node_is_plain(n) && (s.len == 0 || slice_is(s, "~") || slice_is_icase(s, "null"));
}

const char *node_kind_name(const yaml_node_t *n) {
        switch (n->type) {
        case YAML_MAPPING_NODE:
                return "a mapping";
        case YAML_SEQUENCE_NODE:
                return "a list";
        default:
                return node_is_null(n) ? "nothing" : "a single value";
        }
}

bool expect_kind(struct reader *r, yaml_node_t *n, yaml_node_type_t kind, const char *where) {
        static const char *const names[] = {"nothing", "a single value", "a list", "a mapping"};

        if (n->type == kind && !(kind == YAML_SCALAR_NODE && node_is_null(n)))
                return true;
        findings_add(r->findings, SEVERITY_ERROR, "Y04", node_place(n), "`%s` must be %s, this is %s", where,
            names[kind], node_kind_name(n));
        return false;
}

/* ---- settings ------------------------------------------------------------------------------------------------------- */

/* A YAML node as JSON: plain scalars that read as null, booleans or numbers keep that type, all others are strings.
 * Aliases may form a cycle, so the depth is bounded like that of JSON. */
static bool node_to_json(struct reader *r, yaml_node_t *n, struct json_writer *w, unsigned depth) {
        if (depth > 32)
                return false;
        if (n->type == YAML_MAPPING_NODE) {
                json_open(w, '{');
                for (yaml_node_pair_t *p = n->data.mapping.pairs.start; p < n->data.mapping.pairs.top; p++) {
                        json_key_slice(w, node_text(tree_node(r->tree, p->key)));
                        if (!node_to_json(r, tree_node(r->tree, p->value), w, depth + 1))
                                return false;
                }
                json_close(w, '}');
        } else if (n->type == YAML_SEQUENCE_NODE) {
                json_open(w, '[');
                for (yaml_node_item_t *i = n->data.sequence.items.start; i < n->data.sequence.items.top; i++)
                        if (!node_to_json(r, tree_node(r->tree, *i), w, depth + 1))
                                return false;
                json_close(w, ']');
        } else {
                struct slice s = node_text(n);
                double number;

                if (node_is_null(n))
                        json_null(w);
                else if (node_is_plain(n) && (slice_is(s, "true") || slice_is(s, "false")))
                        json_bool(w, slice_is(s, "true"));
                else if (node_is_plain(n) && slice_to_double(s, &number) == 0)
                        json_raw(w, s);
                else
                        json_string(w, s);
        }
        return w->out->len < CLUSTER_FILE_MAX;
}

static void read_setting(struct reader *r, yaml_node_t *key, yaml_node_t *value, const char *where, struct setting *s) {
        struct slice text = node_text(value);

        s->name = arena_copy(r->arena, node_text(key));
        s->at = node_place(key);
        s->value_at = node_place(value);
        if (!s->name.ptr) {
                r->findings->failed = true;
                return;
        }
        if (value->type != YAML_SCALAR_NODE) {
                struct buf json = {0};
                struct json_writer w = {.out = &json};

                if (value->type == YAML_MAPPING_NODE)
                        s->kind = SETTING_OBJECT;
                if (node_to_json(r, value, &w, 0))
                        s->value = arena_copy(r->arena, buf_slice(&json));
                else
                        findings_add(r->findings, SEVERITY_ERROR, "Y04", s->value_at,
                            "`%s.%.*s` is nested too deeply or refers to itself", where, SLICE_ARG(s->name));
                buf_free(&json);
        } else if (node_is_null(value))
                s->kind = SETTING_DROP;
        else if (node_is_plain(value) && slice_is(text, "true"))
                s->kind = SETTING_TRUE, s->value = SLICE_LIT("true");
        else if (node_is_plain(value) && slice_is(text, "false"))
                s->kind = SETTING_FALSE, s->value = SLICE_LIT("false");
        else
                s->value = arena_copy(r->arena, text);
        if (memchr(s->name.ptr, 0, s->name.len) || (s->value.ptr && memchr(s->value.ptr, 0, s->value.len)) ||
            slice_find(s->name, '=', 0) < s->name.len || s->name.len == 0)
                findings_add(r->findings, SEVERITY_ERROR, "Y04", s->at, "`%s.%.*s` is not a usable name or value",
                    where, SLICE_ARG(s->name));
}

void read_settings(struct reader *r, yaml_node_t *n, const char *where, struct settings *ret_settings) {
        struct setting *items;
        size_t count = 0;

        if (node_is_null(n) || !expect_kind(r, n, YAML_MAPPING_NODE, where))
                return;
        items = arena_array(
            r->arena, (size_t)(n->data.mapping.pairs.top - n->data.mapping.pairs.start) + 1, sizeof(*items));
        if (!items) {
                r->findings->failed = true;
                return;
        }
        for (yaml_node_pair_t *p = n->data.mapping.pairs.start; p < n->data.mapping.pairs.top; p++)
                read_setting(r, tree_node(r->tree, p->key), tree_node(r->tree, p->value), where, &items[count++]);
        ret_settings->items = items;
        ret_settings->count = count;
}

/* ---- fields --------------------------------------------------------------------------------------------------------- */

static const struct field *find_field(const struct field *fields, size_t count, struct slice key) {
        for (size_t i = 0; i < count; i++)
                if (slice_is(key, fields[i].key))
                        return &fields[i];
        return NULL;
}

static void unknown_key(
    struct reader *r, yaml_node_t *key, const char *where, const struct field *fields, size_t count) {
        const char *names[64];
        const char *nearest;

        for (size_t i = 0; i < count && i < 64; i++)
                names[i] = fields[i].key;
        nearest = text_nearest(node_text(key), names, count < 64 ? count : 64);
        if (nearest)
                findings_add(r->findings, SEVERITY_ERROR, "Y02", node_place(key),
                    "unknown key `%.*s` under `%s`, did you mean `%s`?", SLICE_ARG(node_text(key)), where, nearest);
        else
                findings_add(r->findings, SEVERITY_ERROR, "Y02", node_place(key), "unknown key `%.*s` under `%s`",
                    SLICE_ARG(node_text(key)), where);
}

static void read_integer(struct reader *r, yaml_node_t *value, const char *name, const struct field *f, int64_t *ret) {
        int64_t number;

        if (!expect_kind(r, value, YAML_SCALAR_NODE, name))
                return;
        if (slice_to_i64(node_text(value), &number) < 0)
                findings_add(r->findings, SEVERITY_ERROR, "Y04", node_place(value),
                    "`%s` must be a whole number, not `%.*s`", name, SLICE_ARG(node_text(value)));
        else if (number < f->min || number > f->max)
                findings_add(r->findings, SEVERITY_ERROR, "Y05", node_place(value),
                    "`%s` is %lld, it must lie in %lld..%lld", name, (long long)number, (long long)f->min,
                    (long long)f->max);
        else
                *ret = number;
}

static void read_choice(struct reader *r, yaml_node_t *value, const char *name, const struct field *f, int *ret) {
        struct buf known = {0};
        size_t count = 0;
        const char *nearest;

        if (!expect_kind(r, value, YAML_SCALAR_NODE, name))
                return;
        for (; f->choices[count]; count++) {
                if (slice_is(node_text(value), f->choices[count])) {
                        *ret = (int)count;
                        buf_free(&known);
                        return;
                }
                buf_printf(&known, "%s%s", count ? ", " : "", f->choices[count]);
        }
        nearest = text_nearest(node_text(value), f->choices, count);
        findings_add(r->findings, SEVERITY_ERROR, "Y05", node_place(value),
            "`%s` is `%.*s`, it must be one of %s%s%s%s", name, SLICE_ARG(node_text(value)), buf_cstr(&known),
            nearest ? "; did you mean `" : "", nearest ? nearest : "", nearest ? "`?" : "");
        buf_free(&known);
}

static void read_field(struct reader *r, yaml_node_t *value, const char *where, const struct field *f, char *target) {
        const char *name = *where ? arena_printf(r->arena, "%s.%s", where, f->key) : f->key;

        if (!name) {
                r->findings->failed = true;
                return;
        }
        if (f->place != SIZE_MAX)
                *(struct place *)(target + f->place) = node_place(value);
        switch (f->kind) {
        case FIELD_TEXT:
                if (expect_kind(r, value, YAML_SCALAR_NODE, name)) {
                        if (memchr(node_text(value).ptr, 0, node_text(value).len))
                                findings_add(r->findings, SEVERITY_ERROR, "Y04", node_place(value),
                                    "`%s` holds a NUL byte", name);
                        else
                                *(struct slice *)(target + f->offset) = arena_copy(r->arena, node_text(value));
                }
                break;
        case FIELD_INTEGER:
                read_integer(r, value, name, f, (int64_t *)(target + f->offset));
                break;
        case FIELD_CHOICE:
                read_choice(r, value, name, f, (int *)(target + f->offset));
                break;
        case FIELD_SETTINGS:
                read_settings(r, value, name, (struct settings *)(target + f->offset));
                break;
        case FIELD_CUSTOM:
                f->read(r, value, target);
                break;
        }
}

void read_mapping(
    struct reader *r, yaml_node_t *n, const char *where, const struct field *fields, size_t count, void *target) {
        const char *shown = *where ? where : "the file";
        uint64_t seen = 0;

        if (!expect_kind(r, n, YAML_MAPPING_NODE, shown))
                return;
        for (yaml_node_pair_t *p = n->data.mapping.pairs.start; p < n->data.mapping.pairs.top; p++) {
                yaml_node_t *key = tree_node(r->tree, p->key);
                const struct field *f = find_field(fields, count, node_text(key));

                if (!f)
                        unknown_key(r, key, shown, fields, count);
                else if (seen & 1ull << (f - fields)) {
                        findings_add(r->findings, SEVERITY_ERROR, "Y03", node_place(key),
                            "`%s` stands twice under `%s`", f->key, shown);
                } else {
                        seen |= 1ull << (f - fields);
                        read_field(r, tree_node(r->tree, p->value), where, f, target);
                }
        }
        for (size_t i = 0; i < count; i++)
                if (fields[i].required && !(seen & 1ull << i))
                        findings_add(r->findings, SEVERITY_ERROR, "Y06", node_place(n), "`%s` is missing under `%s`",
                            fields[i].key, shown);
}
