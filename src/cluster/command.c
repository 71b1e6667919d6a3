/* command.c - see command.h. */
#include "cluster/command.h"

static char fold(char c) {
        return c == '_' ? '-' : c;
}

static bool same_name(struct slice a, struct slice b) {
        if (a.len != b.len)
                return false;
        for (size_t i = 0; i < a.len; i++)
                if (fold(a.ptr[i]) != fold(b.ptr[i]))
                        return false;
        return true;
}

static void put(struct command *c, struct slice name, struct slice value, int kind) {
        if (slice_starts(name, SLICE_LIT("--"))) /* `--max-num-seqs: 8` is meant as well as `max-num-seqs: 8` */
                name = slice_sub(name, 2, name.len);
        for (size_t i = 0; i < c->count; i++)
                if (same_name(c->items[i].name, name)) {
                        c->items[i].value = value;
                        c->items[i].kind = kind;
                        return;
                }
        if (c->count == c->capacity) {
                size_t capacity = c->capacity ? c->capacity * 2 : 24;
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
        c->items[c->count++] = (struct command_entry){name, value, kind};
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
        put(c, slice_str(name), value, SETTING_VALUE);
}

void command_switch(struct command *c, const char *name) {
        put(c, slice_str(name), SLICE_NONE, SETTING_TRUE);
}

void command_apply(struct command *c, const struct settings *s) {
        for (size_t i = 0; i < s->count; i++)
                put(c, s->items[i].name, s->items[i].value, s->items[i].kind);
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
                if (e->kind == SETTING_VALUE) {
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
        size_t n = 0;

        if (!env || c->failed)
                return NULL;
        for (size_t i = 0; i < c->count; i++) {
                const struct command_entry *e = &c->items[i];

                if (e->kind == SETTING_DROP)
                        continue;
                env[n] = arena_printf(c->arena, "%.*s=%.*s", SLICE_ARG(e->name), SLICE_ARG(e->value));
                if (!env[n++])
                        return NULL;
        }
        env[n] = NULL;
        return env;
}
