/* chat_format.c - which chat format a template is. */
#include "base/file.h"
#include "base/json.h"
#include "base/options.h"
#include "text/marks.h"
#include "text/text.h"
#include <errno.h>

/* The longest released template has 4 KB; some of other models are ten times that. */
#define TEMPLATE_MAX (1u << 20)
#define CONFIG_MAX   (8u << 20)

static const struct {
        const char *name;
        struct chat_format format;
} names[] = {
    {"deepseek-v2", {.family = CHAT_V2}},
    {"deepseek-v3", {.family = CHAT_V3}},
    {"deepseek-r1", {.family = CHAT_R1, .opens_think = true}},
    {"deepseek-v3.1", {.family = CHAT_V31}},
    {"deepseek-v3.1-tools", {.family = CHAT_V31, .tools = CHAT_TOOLS_CARD, .reads_enable_thinking = true}},
};
#define NAMES (sizeof(names) / sizeof(*names))

static bool has(struct slice template, const char *what) {
        return slice_find_slice(template, slice_str(what), 0) < template.len;
}

/* The templates are told apart by what makes them print what they print, not by their every letter: a copy with other
 * white space or quotes between its tags is the same format. */
bool chat_format_of(struct slice t, struct chat_format *ret_format) {
        struct chat_format f = {0};

        if (has(t, "<|{{ m['role'] }}|>{{ m['content'] }}"))
                f.family = CHAT_ROLES;
        else if (!has(t, MARK_USER)) {
                if (!has(t, "User: ") || !has(t, "Assistant: ") || !has(t, "'Assistant:'"))
                        return false;
                f.family = CHAT_V2;
        } else if (has(t, "thinking") && has(t, "</think>'")) {
                f.family = CHAT_V31;
                f.reads_enable_thinking = has(t, "enable_thinking");
                f.answers_anyone = has(t, "is_only_sys");
                f.compact = has(t, "You can call these tools:");
                f.tools = f.compact ? CHAT_TOOLS_SHORT : has(t, "in tools") ? CHAT_TOOLS_CARD : CHAT_TOOLS_UNSEEN;
        } else {
                f.family = has(t, "'tool_calls' in message") ? CHAT_R1 : CHAT_V3;
                f.cuts_thinking = has(t, "split('</think>')");
                f.opens_think = has(t, "<think>\\n");
        }
        *ret_format = f;
        return true;
}

/* The template's text: a file of its own, or a member of the config, which may be a list of named ones. */
static int read_template(const char *dir, struct buf *out, struct error *e) {
        struct arena arena = {0};
        const char *file = arena_printf(&arena, "%s/chat_template.jinja", dir);
        const char *config = arena_printf(&arena, "%s/tokenizer_config.json", dir);
        yyjson_doc *doc = NULL;
        yyjson_val *v, *one;
        size_t i, n;
        int r;

        if (!file || !config) {
                r = error_set(e, -ENOMEM, "out of memory");
                goto out;
        }
        r = file_read_whole(file, TEMPLATE_MAX, out, e);
        if (r != -ENOENT)
                goto out;
        r = json_parse_file(config, CONFIG_MAX, &doc, e);
        if (r < 0)
                goto out;
        v = json_get(yyjson_doc_get_root(doc), "chat_template");
        yyjson_arr_foreach(v, i, n, one) if (slice_is(json_get_slice(one, "name"), "default")) {
                v = json_get(one, "template");
                break;
        }
        buf_add(out, json_slice(v));
out:
        yyjson_doc_free(doc);
        arena_free(&arena);
        return r;
}

static int recognise(const struct buf *template, const char *where, struct chat_format *ret_format, struct error *e) {
        if (!buf_ok(template))
                return error_set(e, -ENOMEM, "out of memory");
        if (!chat_format_of(buf_slice(template), ret_format))
                return error_set(e, -EINVAL, "the chat template of %s is none of DeepSeek V2, V3, R1 and V3.1", where);
        return 0;
}

int chat_format_detect(const char *dir, struct chat_format *ret_format, struct error *e) {
        struct buf template = {0};
        int r = read_template(dir, &template, e);

        if (r == 0 && buf_ok(&template) && template.len == 0)
                r = error_set(e, -EINVAL, "%s has no chat template", dir);
        if (r == 0)
                r = recognise(&template, dir, ret_format, e);
        buf_free(&template);
        return r;
}

int chat_format_named(const char *name, struct chat_format *ret_format, struct error *e) {
        bool is_text = strchr(name, '{') != NULL;
        struct buf template = {0};
        int r = 0;

        if (is_text)
                buf_add_str(&template, name);
        else
                r = file_read_whole(name, TEMPLATE_MAX, &template, e);
        if (r == 0)
                r = recognise(&template, is_text ? "the option" : name, ret_format, e);
        buf_free(&template);
        return r;
}

int chat_format_parse(struct slice name, struct chat_format *ret_format, struct error *e) {
        const char *known[NAMES], *nearest;

        for (size_t i = 0; i < NAMES; i++) {
                known[i] = names[i].name;
                if (slice_is(name, names[i].name)) {
                        *ret_format = names[i].format;
                        return 0;
                }
        }
        nearest = text_nearest(name, known, NAMES);
        return error_set(e, -EINVAL, "unknown chat format '%.*s'; did you mean '%s'?",
            SLICE_ARG(slice_sub(name, 0, 64)), nearest ? nearest : "deepseek-v3.1");
}
