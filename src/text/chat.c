/* chat.c - messages into the prompt that a model was trained on.
 *
 * One function per family, each printing what the release's template prints, turn by turn. What looks odd in them is the
 * template's: a model has seen exactly this. */
#include "text/marks.h"
#include "text/python_json.h"
#include "text/text.h"
#include <errno.h>

#define NOT_PRINTED SIZE_MAX

struct rendering {
        const struct chat_format *f;
        const struct openai_request *r;
        struct slice bos, eos;
        struct buf *out;
        bool thinking;
        size_t final_end; /* where the last message's content ends in out */
};

static void print(struct rendering *p, const char *text) {
        buf_add_str(p->out, text);
}

/* (Part of) a message's content; everything printed of a message comes through here. */
static void print_content(struct rendering *p, const struct openai_message *m, struct slice content) {
        buf_add(p->out, content);
        if (m == &p->r->messages[p->r->message_count - 1])
                p->final_end = p->out->len;
}

static bool is_role(const struct openai_message *m, const char *role) {
        return slice_is(m->role, role);
}

/* What stands behind the first, or the last, </think>; all of it when there is none. */
static struct slice behind_thinking(struct slice content, bool last) {
        size_t at = slice_find_slice(content, SLICE_LIT(MARK_THINK_END), 0), next;

        if (at == content.len)
                return content;
        at += strlen(MARK_THINK_END);
        while (last && (next = slice_find_slice(content, SLICE_LIT(MARK_THINK_END), at)) < content.len)
                at = next + strlen(MARK_THINK_END);
        return slice_sub(content, at, content.len);
}

/* ---- the system part ------------------------------------------------------------------------------------------------ */

/* All system messages, wherever they stand, come first. */
static bool print_system(struct rendering *p) {
        size_t begin = p->out->len;
        bool first = true;

        for (size_t i = 0; i < p->r->message_count; i++) {
                const struct openai_message *m = &p->r->messages[i];

                if (!is_role(m, "system"))
                        continue;
                if (p->f->compact ? p->out->len > begin : !first)
                        print(p, "\n\n");
                print_content(p, m, m->content);
                first = false;
        }
        return !first;
}

static void print_tools_short(struct rendering *p) {
        yyjson_val *tool;
        size_t i, n;

        print(p, "\n\n## Tools\nYou can call these tools:");
        yyjson_arr_foreach(p->r->tools, i, n, tool) {
                yyjson_val *function = json_get(tool, "function"), *parameters = json_get(function, "parameters");

                print(p, "\n\n### ");
                buf_add(p->out, json_get_slice(function, "name"));
                print(p, "\nDescription: ");
                buf_add(p->out, json_get_slice(function, "description"));
                print(p, "\nParameters: ");
                if (parameters)
                        python_json_add(p->out, parameters);
                else
                        print(p, "{}");
        }
        print(p, "\n\nTo call a tool, write: " MARK_CALLS_BEGIN MARK_CALL_BEGIN "NAME" MARK_SEPARATOR
                 "ARGUMENTS" MARK_CALL_END MARK_CALLS_END);
}

static void print_tools_card(struct rendering *p) {
        yyjson_val *tool;
        size_t i, n;

        print(p, "\n\n## Tools\nYou have access to the following tools:\n");
        yyjson_arr_foreach(p->r->tools, i, n, tool) {
                yyjson_val *function = json_get(tool, "function"), *parameters = json_get(function, "parameters");

                print(p, "\n### ");
                buf_add(p->out, json_get_slice(function, "name"));
                print(p, "\nDescription: ");
                buf_add(p->out, json_get_slice(function, "description"));
                print(p, "\n\nParameters: ");
                if (parameters)
                        python_json_add(p->out, parameters);
                else
                        print(p, "{}");
                print(p, "\n");
        }
        print(p, "\nIMPORTANT: ALWAYS adhere to this exact format for tool use:\n" MARK_CALLS_BEGIN MARK_CALL_BEGIN
                 "tool_call_name" MARK_SEPARATOR "tool_call_arguments" MARK_CALL_END
                 "{{additional_tool_calls}}" MARK_CALLS_END "\n\nWhere:\n\n"
                 "- `tool_call_name` must be an exact match to one of the available tools\n"
                 "- `tool_call_arguments` must be valid JSON that strictly follows the tool's Parameters Schema\n"
                 "- For multiple tool calls, chain them directly without separators or spaces\n");
}

/* Returns whether there was a system message. */
static bool print_head(struct rendering *p) {
        bool system;

        buf_add(p->out, p->bos);
        system = print_system(p);
        if (yyjson_arr_size(p->r->tools) > 0) {
                if (p->f->tools == CHAT_TOOLS_SHORT)
                        print_tools_short(p);
                else if (p->f->tools == CHAT_TOOLS_CARD)
                        print_tools_card(p);
        }
        return system;
}

/* ---- V2, and plain roles -------------------------------------------------------------------------------------------- */

static void render_v2(struct rendering *p) {
        buf_add(p->out, p->bos);
        for (size_t i = 0; i < p->r->message_count; i++) {
                const struct openai_message *m = &p->r->messages[i];
                bool user = is_role(m, "user"), assistant = is_role(m, "assistant");

                if (!user && !assistant && !is_role(m, "system"))
                        continue;
                print(p, user ? "User: " : assistant ? "Assistant: " : "");
                print_content(p, m, m->content);
                if (assistant)
                        buf_add(p->out, p->eos);
                else
                        print(p, "\n\n");
        }
        if (p->r->add_generation_prompt)
                print(p, "Assistant:");
}

static void render_roles(struct rendering *p) {
        buf_add(p->out, p->bos);
        for (size_t i = 0; i < p->r->message_count; i++) {
                const struct openai_message *m = &p->r->messages[i];

                print(p, "<|");
                buf_add(p->out, m->role);
                print(p, "|>");
                print_content(p, m, m->content);
                if (is_role(m, "assistant"))
                        buf_add(p->out, p->eos);
        }
        if (p->r->add_generation_prompt)
                print(p, "<|assistant|>");
}

/* ---- V3 and R1 ------------------------------------------------------------------------------------------------------ */

/* Both open the list of calls, and that of their outputs, once in a conversation. */
struct v3_state {
        bool calls_open, outputs_open, behind_output;
};

static void print_fenced_call(struct rendering *p, const struct openai_tool_call *call) {
        print(p, MARK_CALL_BEGIN "function" MARK_SEPARATOR);
        buf_add(p->out, call->name);
        print(p, MARK_FENCE_BEGIN);
        buf_add(p->out, call->arguments);
        print(p, MARK_FENCE_END MARK_CALL_END);
}

/* V3 closes the calls behind each but the first of a conversation. */
static void print_calls_v3(struct rendering *p, const struct openai_message *m, struct v3_state *s) {
        for (size_t i = 0; i < m->tool_call_count; i++) {
                print(p, s->calls_open ? "\n" : MARK_ASSISTANT MARK_CALLS_BEGIN);
                print_fenced_call(p, &m->tool_calls[i]);
                if (s->calls_open)
                        print(p, MARK_CALLS_END MARK_EOS);
                s->calls_open = true;
        }
}

/* R1 closes them once per message. Content is printed with the first call of the conversation only. */
static void print_calls_r1(struct rendering *p, const struct openai_message *m, struct v3_state *s) {
        for (size_t i = 0; i < m->tool_call_count; i++) {
                if (!s->calls_open) {
                        print(p, MARK_ASSISTANT);
                        print_content(p, m, m->content);
                        print(p, MARK_CALLS_BEGIN);
                } else
                        print(p, "\n");
                print_fenced_call(p, &m->tool_calls[i]);
                s->calls_open = true;
        }
        print(p, MARK_CALLS_END MARK_EOS);
}

static void print_answer_v3(struct rendering *p, const struct openai_message *m, struct v3_state *s) {
        bool cuts = p->f->family == CHAT_R1 || p->f->cuts_thinking;

        if (s->behind_output) {
                print(p, MARK_OUTPUTS_END);
                print_content(p, m, m->content);
        } else {
                print(p, MARK_ASSISTANT);
                print_content(p, m, cuts ? behind_thinking(m->content, true) : m->content);
        }
        print(p, MARK_EOS);
        s->behind_output = false;
}

static void print_output_v3(struct rendering *p, const struct openai_message *m, struct v3_state *s) {
        if (!s->outputs_open)
                print(p, MARK_OUTPUTS_BEGIN);
        else if (p->f->family == CHAT_V3)
                print(p, "\n");
        print(p, MARK_OUTPUT_BEGIN);
        print_content(p, m, m->content);
        print(p, MARK_OUTPUT_END);
        s->outputs_open = s->behind_output = true;
}

static void print_assistant_v3(struct rendering *p, const struct openai_message *m, struct v3_state *s) {
        /* V3 has calls or content, never both; for R1 a message with calls is one of calls. */
        bool calls = p->f->family == CHAT_R1 ? m->tool_calls != NULL : !m->has_content;

        if (!calls) {
                print_answer_v3(p, m, s);
                return;
        }
        s->behind_output = false;
        if (p->f->family == CHAT_R1)
                print_calls_r1(p, m, s);
        else
                print_calls_v3(p, m, s);
}

static void render_v3(struct rendering *p) {
        struct v3_state s = {0};

        print_head(p);
        for (size_t i = 0; i < p->r->message_count; i++) {
                const struct openai_message *m = &p->r->messages[i];

                if (is_role(m, "user")) {
                        s.behind_output = false;
                        print(p, MARK_USER);
                        print_content(p, m, m->content);
                } else if (is_role(m, "assistant"))
                        print_assistant_v3(p, m, &s);
                else if (is_role(m, "tool"))
                        print_output_v3(p, m, &s);
        }
        if (s.behind_output)
                print(p, MARK_OUTPUTS_END);
        else if (p->r->add_generation_prompt)
                print(p, p->f->opens_think ? MARK_ASSISTANT MARK_THINK_BEGIN "\n" : MARK_ASSISTANT);
}

/* ---- V3.1 ----------------------------------------------------------------------------------------------------------- */

/* The compact template differs from the release's in this: an empty system message is followed by no empty line, a turn of
 * calls opens reasoning where an answer would, an answer behind a tool's output is cut at </think> too, one with `prefix`
 * is not closed, and an empty list of calls is none. */
struct v31_state {
        bool behind_user, behind_output;
        bool only_system; /* no turn yet but system messages */
        bool prefix;      /* some answer was to be continued */
};

static void print_calls_v31(struct rendering *p, const struct openai_message *m, const struct v31_state *s) {
        bool thinks = p->f->compact && m->prefix && p->thinking;

        if (s->behind_user || (p->f->answers_anyone && s->only_system))
                print(p, thinks ? MARK_ASSISTANT MARK_THINK_BEGIN : MARK_ASSISTANT MARK_THINK_END);
        for (size_t i = 0; i < m->tool_call_count; i++) {
                if (i == 0) {
                        print_content(p, m, m->content);
                        print(p, MARK_CALLS_BEGIN);
                }
                print(p, MARK_CALL_BEGIN);
                buf_add(p->out, m->tool_calls[i].name);
                print(p, MARK_SEPARATOR);
                buf_add(p->out, m->tool_calls[i].arguments);
                print(p, MARK_CALL_END);
        }
        print(p, MARK_CALLS_END);
        buf_add(p->out, p->eos);
}

static void print_answer_v31(struct rendering *p, const struct openai_message *m, struct v31_state *s) {
        bool whole = s->behind_output && !p->f->compact;

        if (s->behind_user)
                print(p, m->prefix && p->thinking ? MARK_ASSISTANT MARK_THINK_BEGIN : MARK_ASSISTANT MARK_THINK_END);
        print_content(p, m, whole ? m->content : behind_thinking(m->content, false));
        if (!m->prefix || !p->f->compact)
                buf_add(p->out, p->eos);
        s->prefix = s->prefix || m->prefix;
}

static void render_v31(struct rendering *p) {
        struct v31_state s = {0};
        bool asks;

        s.only_system = print_head(p);
        for (size_t i = 0; i < p->r->message_count; i++) {
                const struct openai_message *m = &p->r->messages[i];
                bool user = is_role(m, "user"), tool = is_role(m, "tool"), assistant = is_role(m, "assistant");

                if (user) {
                        print(p, MARK_USER);
                        print_content(p, m, m->content);
                } else if (assistant && m->tool_calls && (m->tool_call_count > 0 || !p->f->compact))
                        print_calls_v31(p, m, &s);
                else if (assistant)
                        print_answer_v31(p, m, &s);
                else if (tool) {
                        print(p, MARK_OUTPUT_BEGIN);
                        print_content(p, m, m->content);
                        print(p, MARK_OUTPUT_END);
                }
                if (user || assistant || tool) {
                        s.behind_user = user;
                        s.behind_output = tool;
                }
                s.only_system = s.only_system && is_role(m, "system");
        }
        asks = p->f->answers_anyone ? s.behind_user || s.only_system || !s.prefix : s.behind_user;
        if (p->r->add_generation_prompt && asks && !s.behind_output)
                print(p, p->thinking ? MARK_ASSISTANT MARK_THINK_BEGIN : MARK_ASSISTANT MARK_THINK_END);
}

/* ---- all ------------------------------------------------------------------------------------------------------------ */

static struct slice token_text(const struct tokenizer *t, int64_t id) {
        return id >= 0 ? tokenizer_bytes(t, (uint32_t)id) : SLICE_NONE;
}

int chat_render(const struct chat_format *f, const struct tokenizer *t, const struct openai_request *r, struct buf *out,
    struct error *e) {
        struct rendering p = {.f = f,
            .r = r,
            .bos = token_text(t, tokenizer_bos(t)),
            .eos = token_text(t, tokenizer_eos(t)),
            .out = out,
            .thinking = r->thinking == 1 || (f->reads_enable_thinking && r->enable_thinking == 1),
            .final_end = NOT_PRINTED};

        switch (f->family) {
        case CHAT_V2:
                render_v2(&p);
                break;
        case CHAT_V3:
        case CHAT_R1:
                render_v3(&p);
                break;
        case CHAT_V31:
                render_v31(&p);
                break;
        case CHAT_ROLES:
                render_roles(&p);
                break;
        case CHAT_NONE:
                return error_set(e, -EINVAL, "the model has no chat template");
        }
        if (!buf_ok(out))
                return error_set(e, -ENOMEM, "out of memory");
        if (r->continue_final_message) {
                if (p.final_end == NOT_PRINTED)
                        return error_set(e, -EINVAL,
                            "continue_final_message is set but the final message does not appear in the chat after "
                            "applying "
                            "the chat template");
                out->len = p.final_end;
        }
        return 0;
}

enum chat_reasoning chat_prompt_reasoning(struct slice prompt) {
        prompt = slice_trim(prompt);
        if (slice_ends(prompt, SLICE_LIT(MARK_THINK_BEGIN)))
                return CHAT_REASONING_OPEN;
        return slice_ends(prompt, SLICE_LIT(MARK_THINK_END)) ? CHAT_REASONING_CLOSED : CHAT_REASONING_UNSAID;
}
