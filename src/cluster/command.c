/* command.c - see command.h. */
#include "cluster/command.h"
#include "base/json.h"
#include <stdlib.h>

static char fold(char c) {
        return c == '_' ? '-' : c;
}

static bool same_option(struct slice a, struct slice b) {
        if (a.len != b.len)
                return false;
        for (size_t i = 0; i < a.len; i++)
                if (fold(a.ptr[i]) != fold(b.ptr[i]))
                        return false;
        return true;
}

static struct command_entry *find(const struct command *c, struct slice name) {
        for (size_t i = 0; i < c->count; i++)
                if (c->exact ? slice_eq(c->items[i].name, name) : same_option(c->items[i].name, name))
                        return &c->items[i];
        return NULL;
}

/* `patch` merged into `base`, both JSON; SLICE_NONE when one of them is not an object. */
static struct slice merge(struct command *c, struct slice base, struct slice patch) {
        yyjson_doc *a = NULL, *b = NULL;
        yyjson_mut_doc *out = yyjson_mut_doc_new(NULL);
        struct slice merged = SLICE_NONE;

        if (json_parse(base, &a, NULL) == 0 && json_parse(patch, &b, NULL) == 0 && out &&
            yyjson_is_obj(yyjson_doc_get_root(a)) && yyjson_is_obj(yyjson_doc_get_root(b))) {
                size_t len;
                yyjson_mut_val *root = yyjson_merge_patch(out, yyjson_doc_get_root(a), yyjson_doc_get_root(b));
                char *text = root ? yyjson_mut_val_write(root, 0, &len) : NULL;

                if (text)
                        merged = arena_copy(c->arena, slice_of(text, len));
                if (!merged.ptr)
                        c->failed = true;
                free(text);
        }
        yyjson_doc_free(a);
        yyjson_doc_free(b);
        yyjson_mut_doc_free(out);
        return merged;
}

/* `--max-num-seqs: 8` is meant as well as `max-num-seqs: 8`, and `no-x: true` is `x: false`. */
static struct command_entry spell_option(struct command_entry e) {
        if (slice_starts(e.name, SLICE_LIT("--")))
                e.name = slice_sub(e.name, 2, e.name.len);
        if ((e.kind == SETTING_TRUE || e.kind == SETTING_FALSE) && slice_starts(e.name, SLICE_LIT("no-"))) {
                e.name = slice_sub(e.name, 3, e.name.len);
                e.kind = e.kind == SETTING_TRUE ? SETTING_FALSE : SETTING_TRUE;
        }
        return e;
}

static void put(struct command *c, struct command_entry e) {
        struct command_entry *old;

        if (!c->exact)
                e = spell_option(e);
        old = find(c, e.name);
        if (old) {
                if (e.kind == SETTING_OBJECT && (old->kind == SETTING_OBJECT || old->kind == SETTING_VALUE)) {
                        struct slice merged = merge(c, old->value, e.value);

                        if (merged.ptr)
                                e.value = merged;
                }
                e.name = old->name;
                *old = e;
                return;
        }
        if (c->count == c->capacity) {
                size_t capacity = c->capacity ? c->capacity * 2 : 32;
                struct command_entry *grown = arena_array(c->arena, capacity, sizeof(*grown));

                if (!grown) {
                        c->failed = true;
                        return;
                }
                if (c->count)
                        memcpy(grown, c->items, c->count * sizeof(*grown));
                c->items = grown;
                c->capacity = capacity;
        }
        c->items[c->count++] = e;
}

void command_set(struct command *c, const char *name, const char *format, ...) {
        struct buf text = {0};
        struct slice value;
        va_list args;

        va_start(args, format);
        buf_vprintf(&text, format, args);
        va_end(args);
        value = arena_copy(c->arena, buf_slice(&text));
        if (!value.ptr || !buf_ok(&text))
                c->failed = true;
        buf_free(&text);
        put(c, (struct command_entry){.name = slice_str(name), .value = value, .kind = SETTING_VALUE});
}

void command_switch(struct command *c, const char *name) {
        put(c, (struct command_entry){.name = slice_str(name), .kind = SETTING_TRUE});
}

void command_unset(struct command *c, const char *name) {
        put(c, (struct command_entry){.name = slice_str(name), .kind = SETTING_DROP});
}

void command_apply(struct command *c, const struct settings *s) {
        for (size_t i = 0; i < s->count; i++) {
                const struct setting *item = &s->items[i];

                put(c, (struct command_entry){item->name, item->value, item->kind, item->at});
        }
}

const struct command_entry *command_find(const struct command *c, const char *name) {
        const struct command_entry *e = find(c, slice_str(name));

        return e && e->kind != SETTING_DROP && e->kind != SETTING_FALSE ? e : NULL;
}

const char *const *command_argv(struct command *c, const char *const *head) {
        size_t heads = 0, n = 0;
        const char **argv;

        while (head[heads])
                heads++;
        argv = arena_array(c->arena, heads + 2 * c->count + 1, sizeof(*argv));
        if (!argv || c->failed)
                return NULL;
        for (; n < heads; n++)
                argv[n] = head[n];
        for (size_t i = 0; i < c->count; i++) {
                const struct command_entry *e = &c->items[i];

                if (e->kind == SETTING_DROP)
                        continue;
                argv[n] = arena_printf(c->arena, "--%s%.*s", e->kind == SETTING_FALSE ? "no-" : "", SLICE_ARG(e->name));
                if (!argv[n++])
                        return NULL;
                if (e->kind == SETTING_VALUE || e->kind == SETTING_OBJECT) {
                        argv[n] = arena_copy(c->arena, e->value).ptr;
                        if (!argv[n++])
                                return NULL;
                }
        }
        argv[n] = NULL;
        return argv;
}

const char *const *command_env(struct command *c) {
        const char **env = arena_array(c->arena, c->count + 1, sizeof(*env));

        if (!env || c->failed)
                return NULL;
        for (size_t i = 0; i < c->count; i++) {
                const struct command_entry *e = &c->items[i];

                env[i] = e->kind == SETTING_DROP
                             ? arena_printf(c->arena, "%.*s", SLICE_ARG(e->name))
                             : arena_printf(c->arena, "%.*s=%.*s", SLICE_ARG(e->name), SLICE_ARG(e->value));
                if (!env[i])
                        return NULL;
        }
        return env;
}
