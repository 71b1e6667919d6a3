/* chat.c - the chat formats of DeepSeek V2, V3, R1 and V3.1, printed as the releases' own templates print them.
 *
 * Where a template does something odd, so does this: V3 closes its tool calls only from the second call on and ignores them
 * when there is content; V3 and R1 open tool_calls and tool_outputs once a conversation. */
#include "base/json.h"
#include "text/text.h"
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#define TEMPLATE_MAX (4u << 20)

#define USER          "<｜User｜>"
#define ASSISTANT     "<｜Assistant｜>"
#define EOS           "<｜end▁of▁sentence｜>"
#define CALLS_BEGIN   "<｜tool▁calls▁begin｜>"
#define CALLS_END     "<｜tool▁calls▁end｜>"
#define CALL_BEGIN    "<｜tool▁call▁begin｜>"
#define CALL_END      "<｜tool▁call▁end｜>"
#define CALL_SEP      "<｜tool▁sep｜>"
#define OUTPUTS_BEGIN "<｜tool▁outputs▁begin｜>"
#define OUTPUTS_END   "<｜tool▁outputs▁end｜>"
#define OUTPUT_BEGIN  "<｜tool▁output▁begin｜>"
#define OUTPUT_END    "<｜tool▁output▁end｜>"

/* ---- which format ------------------------------------------------------------------------------------------------------------ */

static bool has(struct slice text, const char *what) {
        return slice_find_slice(text, slice_str(what), 0) < text.len;
}

static int recognise(struct slice t, struct chat_format *f) {
        *f = (struct chat_format){0};
        f->reads_enable_thinking = has(t, "enable_thinking");
        f->lists_tools = has(t, "You can call these tools:");
        f->cuts_after_tools = f->prefix_stays_open = f->lists_tools;
        if (has(t, USER) && has(t, "'</think>'") && has(t, "thinking"))
                f->family = CHAT_V31;
        else if (has(t, USER) && (has(t, ASSISTANT "<think>") || has(t, "split('</think>')"))) {
                f->family = CHAT_R1;
                f->r1_opens_think = has(t, ASSISTANT "<think>");
        } else if (has(t, USER))
                f->family = CHAT_V3;
        else if (has(t, "'User: '") && has(t, "'Assistant:"))
                f->family = CHAT_V2;
        return f->family == CHAT_NONE ? -EINVAL : 0;
}

/* The template is a string, or a list of named ones of which `default` counts. */
static struct slice template_of(yyjson_val *config) {
        yyjson_val *v = json_get(config, "chat_template"), *item;
        size_t i, n;

        if (!yyjson_is_arr(v))
                return json_slice(v);
        yyjson_arr_foreach(v, i, n, item) if (slice_is(json_get_slice(item, "name"), "default")) return json_get_slice(
            item, "template");
        return SLICE_NONE;
}

/* Newer folders keep the template in a file of its own. */
static int read_template_file(const char *dir, struct buf *text) {
        char path[4096];
        FILE *f;
        size_t n = 1;

        snprintf(path, sizeof(path), "%s/chat_template.jinja", dir);
        f = fopen(path, "re");
        if (!f)
                return -ENOENT;
        while (n > 0 && text->len < TEMPLATE_MAX) {
                char *to = buf_reserve(text, 65536);

                n = to ? fread(to, 1, 65536, f) : 0;
                if (to)
                        buf_commit(text, n);
        }
        fclose(f);
        return buf_ok(text) ? 0 : -ENOMEM;
}

int chat_format_detect(const char *dir, struct chat_format *ret_format, struct error *e) {
        struct buf text = {0};
        struct chat_format f;
        yyjson_doc *doc = NULL;
        char path[4096];
        struct slice found;
        int r;

        snprintf(path, sizeof(path), "%s/tokenizer_config.json", dir);
        if (json_parse_file(path, TEMPLATE_MAX * 4, &doc, NULL) < 0)
                doc = NULL;
        found = template_of(yyjson_doc_get_root(doc));
        if (!found.len && read_template_file(dir, &text) == 0)
                found = buf_slice(&text);
        if (!found.len)
                r = error_set(e, -EINVAL, "%s has no chat template", dir);
        else if (recognise(found, &f) < 0)
                r = error_set(e, -EINVAL, "%s has a chat template that is none of DeepSeek V2, V3, R1, V3.1", dir);
        else {
                *ret_format = f;
                r = 0;
        }
        yyjson_doc_free(doc);
        buf_free(&text);
        return r;
}

int chat_format_parse(struct slice name, struct chat_format *ret_format, struct error *e) {
        static const struct {
                const char *name;
                struct chat_format format;
        } known[] = {{"deepseek-v2", {.family = CHAT_V2}}, {"deepseek-v3", {.family = CHAT_V3}},
            {"deepseek-r1", {.family = CHAT_R1, .r1_opens_think = true}}, {"deepseek-v3.1", {.family = CHAT_V31}}};

        for (size_t i = 0; i < sizeof(known) / sizeof(*known); i++)
                if (slice_is_icase(name, known[i].name)) {
                        *ret_format = known[i].format;
                        return 0;
                }
        return error_set(e, -EINVAL,
            "chat format `%.*s` is not known: deepseek-v2, deepseek-v3, deepseek-r1 or deepseek-v3.1",
            SLICE_ARG(slice_sub(name, 0, 60)));
}

/* ---- pieces --------------------------------------------------------------------------------------------------------------------- */

static bool is_role(const struct openai_message *m, const char *role) {
        return slice_is(m->role, role);
}

/* System messages, wherever they stand, joined by an empty line. */
static void add_system(const struct openai_request *r, struct buf *out) {
        bool any = false;

        for (size_t i = 0; i < r->message_count; i++) {
                if (!is_role(&r->messages[i], "system"))
                        continue;
                if (any)
                        buf_add_str(out, "\n\n");
                buf_add(out, r->messages[i].content);
                any = true;
        }
}

static void add_bos(const struct tokenizer *t, struct buf *out) {
        if (tokenizer_bos(t) >= 0)
                buf_add(out, tokenizer_bytes(t, (uint32_t)tokenizer_bos(t)));
}

/* After the first or the last </think>, all of it when there is none. */
static struct slice without_reasoning(struct slice text, bool last) {
        struct slice mark = SLICE_LIT("</think>");
        size_t at = slice_find_slice(text, mark, 0);

        while (last && at < text.len && slice_find_slice(text, mark, at + 1) < text.len)
                at = slice_find_slice(text, mark, at + 1);
        return at < text.len ? slice_sub(text, at + mark.len, text.len) : text;
}

/* ---- V2 ------------------------------------------------------------------------------------------------------------------------- */

static void render_v2(const struct tokenizer *t, const struct openai_request *r, struct buf *out) {
        add_bos(t, out);
        for (size_t i = 0; i < r->message_count; i++) {
                const struct openai_message *m = &r->messages[i];

                if (is_role(m, "user"))
                        buf_printf(out, "User: %.*s\n\n", SLICE_ARG(m->content));
                else if (is_role(m, "assistant")) {
                        buf_printf(out, "Assistant: %.*s", SLICE_ARG(m->content));
                        if (tokenizer_eos(t) >= 0)
                                buf_add(out, tokenizer_bytes(t, (uint32_t)tokenizer_eos(t)));
                } else if (is_role(m, "system"))
                        buf_printf(out, "%.*s\n\n", SLICE_ARG(m->content));
        }
        if (r->add_generation_prompt)
                buf_add_str(out, "Assistant:");
}

/* ---- V3 and R1 --------------------------------------------------------------------------------------------------------------------- */

struct turns {
        bool calls_opened, after_tool, outputs_opened;
};

static void add_fenced_call(const struct openai_tool_call *c, struct buf *out) {
        buf_printf(out, CALL_BEGIN "function" CALL_SEP "%.*s\n```json\n%.*s\n```" CALL_END, SLICE_ARG(c->name),
            SLICE_ARG(c->arguments));
}

static void add_calls(const struct chat_format *f, const struct openai_message *m, struct turns *s, struct buf *out) {
        bool r1 = f->family == CHAT_R1;

        s->after_tool = false;
        for (size_t k = 0; k < m->tool_call_count; k++) {
                if (!s->calls_opened) {
                        buf_add_str(out, ASSISTANT);
                        if (r1 && m->has_content)
                                buf_add(out, m->content);
                        buf_add_str(out, CALLS_BEGIN);
                        add_fenced_call(&m->tool_calls[k], out);
                        s->calls_opened = true;
                        continue;
                }
                buf_add_char(out, '\n');
                add_fenced_call(&m->tool_calls[k], out);
                if (!r1)
                        buf_add_str(out, CALLS_END EOS);
        }
        if (r1)
                buf_add_str(out, CALLS_END EOS);
}

static void add_answer(const struct chat_format *f, const struct openai_message *m, struct turns *s, struct buf *out) {
        if (s->after_tool) {
                buf_printf(out, OUTPUTS_END "%.*s" EOS, SLICE_ARG(m->content));
                s->after_tool = false;
                return;
        }
        buf_add_str(out, ASSISTANT);
        buf_add(out, f->family == CHAT_R1 ? without_reasoning(m->content, true) : m->content);
        buf_add_str(out, EOS);
}

static void render_v3(
    const struct chat_format *f, const struct tokenizer *t, const struct openai_request *r, struct buf *out) {
        struct turns s = {0};
        bool r1 = f->family == CHAT_R1;

        add_bos(t, out);
        add_system(r, out);
        for (size_t i = 0; i < r->message_count; i++) {
                const struct openai_message *m = &r->messages[i];

                if (is_role(m, "user")) {
                        s.after_tool = false;
                        buf_printf(out, USER "%.*s", SLICE_ARG(m->content));
                } else if (is_role(m, "assistant") && m->tool_call_count && (r1 || !m->has_content))
                        add_calls(f, m, &s, out);
                else if (is_role(m, "assistant") && m->has_content)
                        add_answer(f, m, &s, out);
                else if (is_role(m, "assistant"))
                        s.after_tool = false;
                else if (is_role(m, "tool")) {
                        s.after_tool = true;
                        buf_add_str(out, !s.outputs_opened ? OUTPUTS_BEGIN : r1 ? "" : "\n");
                        buf_printf(out, OUTPUT_BEGIN "%.*s" OUTPUT_END, SLICE_ARG(m->content));
                        s.outputs_opened = true;
                }
        }
        if (s.after_tool)
                buf_add_str(out, OUTPUTS_END);
        else if (r->add_generation_prompt)
                buf_add_str(out, r1 && f->r1_opens_think ? ASSISTANT "<think>\n" : ASSISTANT);
}

/* ---- V3.1 --------------------------------------------------------------------------------------------------------------------------- */

/* JSON with Python's spacing, as the templates' tojson prints it. */
static void add_python_json(struct buf *out, yyjson_val *v) {
        if (yyjson_is_obj(v)) {
                yyjson_obj_iter iter;
                yyjson_val *key;
                bool any = false;

                yyjson_obj_iter_init(v, &iter);
                buf_add_char(out, '{');
                while ((key = yyjson_obj_iter_next(&iter))) {
                        buf_add_str(out, any ? ", " : "");
                        json_add_string(out, json_slice(key));
                        buf_add_str(out, ": ");
                        add_python_json(out, yyjson_obj_iter_get_val(key));
                        any = true;
                }
                buf_add_char(out, '}');
        } else if (yyjson_is_arr(v)) {
                yyjson_val *item;
                size_t i, n;

                buf_add_char(out, '[');
                yyjson_arr_foreach(v, i, n, item) {
                        buf_add_str(out, i ? ", " : "");
                        add_python_json(out, item);
                }
                buf_add_char(out, ']');
        } else if (yyjson_is_str(v))
                json_add_string(out, json_slice(v));
        else
                json_add_value(out, v);
}

static void add_tool_list(yyjson_val *tools, struct buf *out) {
        yyjson_val *tool;
        size_t i, n;

        buf_add_str(out, "\n\n## Tools\nYou can call these tools:");
        yyjson_arr_foreach(tools, i, n, tool) {
                yyjson_val *f = json_get(tool, "function");

                buf_printf(out, "\n\n### %.*s\nDescription: %.*s\nParameters: ", SLICE_ARG(json_get_slice(f, "name")),
                    SLICE_ARG(json_get_slice(f, "description")));
                if (json_get(f, "parameters"))
                        add_python_json(out, json_get(f, "parameters"));
        }
        buf_add_str(
            out, "\n\nTo call a tool, write: " CALLS_BEGIN CALL_BEGIN "NAME" CALL_SEP "ARGUMENTS" CALL_END CALLS_END);
}

static bool thinks(const struct chat_format *f, const struct openai_request *r) {
        return r->thinking == 1 || (r->thinking < 0 && f->reads_enable_thinking && r->enable_thinking == 1);
}

static void add_v31_calls(const struct openai_message *m, struct buf *out) {
        if (m->has_content)
                buf_add(out, m->content);
        buf_add_str(out, CALLS_BEGIN);
        for (size_t k = 0; k < m->tool_call_count; k++)
                buf_printf(out, CALL_BEGIN "%.*s" CALL_SEP "%.*s" CALL_END, SLICE_ARG(m->tool_calls[k].name),
                    SLICE_ARG(m->tool_calls[k].arguments));
        buf_add_str(out, CALLS_END EOS);
}

static void render_v31(
    const struct chat_format *f, const struct tokenizer *t, const struct openai_request *r, struct buf *out) {
        bool last_user = false, after_tool = false, thinking = thinks(f, r);

        add_bos(t, out);
        add_system(r, out);
        if (f->lists_tools && r->tools)
                add_tool_list(r->tools, out);
        for (size_t i = 0; i < r->message_count; i++) {
                const struct openai_message *m = &r->messages[i];

                if (is_role(m, "user")) {
                        buf_printf(out, USER "%.*s", SLICE_ARG(m->content));
                        last_user = true;
                        after_tool = false;
                } else if (is_role(m, "assistant")) {
                        bool opens = m->prefix && thinking && (!m->tool_call_count || f->prefix_stays_open);

                        if (last_user)
                                buf_add_str(out, opens ? ASSISTANT "<think>" : ASSISTANT "</think>");
                        if (m->tool_call_count)
                                add_v31_calls(m, out);
                        else {
                                buf_add(out, after_tool && !f->cuts_after_tools ? m->content
                                                                                : without_reasoning(m->content, false));
                                if (!(f->prefix_stays_open && m->prefix))
                                        buf_add_str(out, EOS);
                        }
                        last_user = after_tool = false;
                } else if (is_role(m, "tool")) {
                        buf_printf(out, OUTPUT_BEGIN "%.*s" OUTPUT_END, SLICE_ARG(m->content));
                        last_user = false;
                        after_tool = true;
                }
        }
        if (r->add_generation_prompt && last_user)
                buf_add_str(out, thinking ? ASSISTANT "<think>" : ASSISTANT "</think>");
}

/* ---- the whole -------------------------------------------------------------------------------------------------------------------- */

/* Cut the prompt right behind the last message's text, so that the model goes on with it (transformers'
 * continue_final_message). */
static int continue_final(const struct openai_request *r, struct buf *out, struct error *e) {
        struct slice text = r->messages[r->message_count - 1].content, trimmed = slice_trim(text),
                     rendered = buf_slice(out);
        size_t at = rendered.len, next = slice_find_slice(rendered, trimmed, 0);

        while (next < rendered.len) {
                at = next;
                next = slice_find_slice(rendered, trimmed, at + 1);
        }
        if (!trimmed.len || at == rendered.len)
                return error_set(e, -EINVAL,
                    "continue_final_message is set but the final message does not appear in the chat after applying "
                    "the chat template");
        while (text.len && (text.ptr[0] == ' ' || text.ptr[0] == '\t' || text.ptr[0] == '\n' || text.ptr[0] == '\r'))
                slice_take(&text, 1);
        if (slice_eq(slice_sub(rendered, at, at + text.len), text) &&
            slice_eq(text, r->messages[r->message_count - 1].content))
                out->len = at + text.len;
        else
                out->len = at + trimmed.len;
        return 0;
}

int chat_render(const struct chat_format *f, const struct tokenizer *t, const struct openai_request *r, struct buf *out,
    struct error *e) {
        switch (f->family) {
        case CHAT_NONE:
                return error_set(e, -EINVAL, "there is no chat template");
        case CHAT_V2:
                render_v2(t, r, out);
                break;
        case CHAT_V3:
        case CHAT_R1:
                render_v3(f, t, r, out);
                break;
        case CHAT_V31:
                render_v31(f, t, r, out);
                break;
        }
        if (!buf_ok(out))
                return error_set(e, -ENOMEM, "out of memory");
        return r->continue_final_message && r->message_count ? continue_final(r, out, e) : 0;
}
