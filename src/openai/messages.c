/* messages.c - `messages`, `tools` and `tool_choice` of chat requests. */
#include "openai/parse.h"

/* Who speaks with content that is not null. */
static bool needs_content(struct slice role) {
        return slice_is(role, "user") || slice_is(role, "system") || slice_is(role, "developer");
}

static const char *kind_of_part(yyjson_val *part, yyjson_val **ret_text) {
        static const char *const texts[][2] = {{"text", "text"}, {"input_text", "text"}, {"output_text", "text"},
            {"refusal", "refusal"}, {"thinking", "thinking"}};
        struct slice type = json_get_slice(part, "type");

        *ret_text = NULL;
        for (size_t i = 0; i < sizeof(texts) / sizeof(*texts); i++)
                if (slice_is(type, texts[i][0])) {
                        *ret_text = json_get(part, texts[i][1]);
                        return texts[i][1];
                }
        if (!type.ptr && json_get(part, "text")) {
                *ret_text = json_get(part, "text");
                return "text";
        }
        return NULL;
}

/* A list of parts: its texts, joined by newlines. */
static void read_parts(struct parser *p, size_t at, yyjson_val *list, struct openai_message *m) {
        struct buf text = {0};
        yyjson_arr_iter iter;
        yyjson_val *part;
        size_t i = 0;

        for (yyjson_arr_iter_init(list, &iter); (part = yyjson_arr_iter_next(&iter)); i++) {
                yyjson_val *value = yyjson_is_str(part) ? part : NULL;
                const char *member = value ? "text" : kind_of_part(part, &value);

                if (!member && yyjson_is_obj(part) && json_get(part, "type")) {
                        parser_refuse(p, NULL, "%.*s is not a multimodal model", SLICE_ARG(p->defaults->model));
                        break;
                }
                if (!yyjson_is_str(value)) {
                        issue_not_string(&p->issues,
                            parser_loc(p, "messages.%zu.content.%zu.%s", at, i, member ? member : "text"), value);
                        break;
                }
                if (i)
                        buf_add_char(&text, '\n');
                buf_add(&text, json_slice(value));
        }
        m->content = arena_copy(p->arena, buf_slice(&text));
        if (!buf_ok(&text) || !m->content.ptr)
                parser_no_memory(p);
        buf_free(&text);
}

static void read_content(struct parser *p, size_t at, yyjson_val *v, bool is_there, struct openai_message *m) {
        m->has_content = v && !yyjson_is_null(v);
        if (yyjson_is_str(v))
                m->content = json_slice(v);
        else if (yyjson_is_arr(v))
                read_parts(p, at, v, m);
        else if (m->has_content || (is_there && needs_content(m->role))) {
                const char *loc = parser_loc(p, "messages.%zu.content", at);

                issue_not_string(&p->issues, loc, v);
                issue_add(&p->issues, "iterable_type", loc, "Input should be iterable", v, NULL);
        }
}

/* Arguments are a string of JSON; some clients send the object itself. */
static struct slice read_arguments(struct parser *p, yyjson_val *v) {
        struct buf text = {0};
        struct slice copy;

        if (!v || yyjson_is_null(v))
                return SLICE_LIT("");
        if (yyjson_is_str(v))
                return json_slice(v);
        json_add_value(&text, v);
        copy = arena_copy(p->arena, buf_slice(&text));
        if (!buf_ok(&text) || !copy.ptr)
                parser_no_memory(p);
        buf_free(&text);
        return copy;
}

static void read_calls(struct parser *p, size_t at, yyjson_val *list, struct openai_message *m) {
        size_t count = yyjson_arr_size(list), i = 0;
        struct openai_tool_call *calls;
        yyjson_arr_iter iter;
        yyjson_val *call;

        if (!list || yyjson_is_null(list))
                return;
        if (!yyjson_is_arr(list)) {
                issue_not_list(&p->issues, parser_loc(p, "messages.%zu.tool_calls", at), list);
                return;
        }
        calls = parser_array(p, count ? count : 1, sizeof(*calls));
        if (!calls)
                return;
        for (yyjson_arr_iter_init(list, &iter); (call = yyjson_arr_iter_next(&iter)); i++) {
                yyjson_val *function = json_get(call, "function"), *name = json_get(function, "name");

                calls[i].id = json_get_slice(call, "id");
                if (!function)
                        issue_missing(&p->issues, parser_loc(p, "messages.%zu.tool_calls.%zu.function", at, i), call);
                else if (!yyjson_is_str(name))
                        issue_not_string(
                            &p->issues, parser_loc(p, "messages.%zu.tool_calls.%zu.function.name", at, i), name);
                calls[i].name = json_slice(name);
                calls[i].arguments = read_arguments(p, json_get(function, "arguments"));
        }
        m->tool_calls = calls;
        m->tool_call_count = count;
}

static struct slice optional(struct parser *p, size_t at, yyjson_val *message, const char *name) {
        yyjson_val *v = json_get(message, name);
        struct slice text = SLICE_NONE;

        if (v && !yyjson_is_null(v))
                parser_string(p, parser_loc(p, "messages.%zu.%s", at, name), v, &text);
        return text;
}

static void read_message(struct parser *p, size_t at, yyjson_val *v, struct openai_message *m) {
        yyjson_val *role = json_get(v, "role"), *content = json_get(v, "content");

        if (!yyjson_is_obj(v)) {
                issue_not_object(&p->issues, parser_loc(p, "messages.%zu", at), v);
                return;
        }
        if (!role)
                issue_missing(&p->issues, parser_loc(p, "messages.%zu.role", at), v);
        else
                parser_string(p, parser_loc(p, "messages.%zu.role", at), role, &m->role);
        read_content(p, at, content, content != NULL, m);
        m->reasoning = optional(p, at, v, "reasoning");
        if (!m->reasoning.ptr)
                m->reasoning = optional(p, at, v, "reasoning_content");
        m->name = optional(p, at, v, "name");
        m->tool_call_id = optional(p, at, v, "tool_call_id");
        m->prefix = json_get_bool(v, "prefix", false);
        read_calls(p, at, json_get(v, "tool_calls"), m);
}

void parse_messages(struct parser *p, yyjson_val *v) {
        size_t count = yyjson_arr_size(v), i = 0;
        struct openai_message *messages;
        yyjson_arr_iter iter;
        yyjson_val *item;

        if (!v) {
                issue_missing(&p->issues, "messages", p->root);
                return;
        }
        if (!yyjson_is_arr(v)) {
                issue_not_list(&p->issues, "messages", v);
                return;
        }
        if (count == 0) {
                parser_refuse(
                    p, NULL, "Cannot apply chat template to an empty conversation. Provide at least one message.");
                return;
        }
        if (count > OPENAI_MESSAGES_MAX) {
                parser_refuse(
                    p, "messages", "At most %d messages are supported. (parameter=messages)", OPENAI_MESSAGES_MAX);
                return;
        }
        messages = parser_array(p, count, sizeof(*messages));
        if (!messages)
                return;
        for (yyjson_arr_iter_init(v, &iter); !p->failed && (item = yyjson_arr_iter_next(&iter)); i++)
                read_message(p, i, item, &messages[i]);
        p->r->messages = messages;
        p->r->message_count = count;
}

/* ---- tools ---------------------------------------------------------------------------------------------------------------- */

static void check_tools(struct parser *p, yyjson_val *tools) {
        yyjson_arr_iter iter;
        yyjson_val *tool;
        size_t i = 0;

        for (yyjson_arr_iter_init(tools, &iter); (tool = yyjson_arr_iter_next(&iter)); i++) {
                yyjson_val *function = json_get(tool, "function"), *name = json_get(function, "name");

                if (!yyjson_is_obj(tool))
                        issue_not_object(&p->issues, parser_loc(p, "tools.%zu", i), tool);
                else if (!function)
                        issue_missing(&p->issues, parser_loc(p, "tools.%zu.function", i), tool);
                else if (!name)
                        issue_missing(&p->issues, parser_loc(p, "tools.%zu.function.name", i), function);
                else if (!yyjson_is_str(name))
                        issue_not_string(&p->issues, parser_loc(p, "tools.%zu.function.name", i), name);
        }
}

static bool has_tool(yyjson_val *tools, struct slice name) {
        yyjson_arr_iter iter;
        yyjson_val *tool;

        for (yyjson_arr_iter_init(tools, &iter); (tool = yyjson_arr_iter_next(&iter));)
                if (slice_eq(json_get_slice(json_get(tool, "function"), "name"), name))
                        return true;
        return false;
}

/* Forcing a call needs constrained decoding. */
static void refuse_forced(struct parser *p, yyjson_val *tools, yyjson_val *choice) {
        struct slice name = json_get_slice(json_get(choice, "function"), "name");

        if (yyjson_is_obj(choice)) {
                if (!has_tool(tools, name))
                        parser_refuse(p, "tool_choice",
                            "The tool specified in `tool_choice` does not match any of the specified `tools` "
                            "(parameter=tool_choice)");
                if (!p->defaults->tool_parser)
                        parser_refuse(p, NULL, "tool_choice=function \"%.*s\" requires --tool-call-parser to be set",
                            SLICE_ARG(name));
        } else if (!p->defaults->tool_parser)
                parser_refuse(p, NULL, "tool_choice=\"required\" requires --tool-call-parser to be set");
        parser_refuse(p, "tool_choice",
            "A forced tool call needs constrained decoding, which this server does not have; use \"auto\" or \"none\" "
            "(parameter=tool_choice)");
}

void parse_tools(struct parser *p, yyjson_val *tools, yyjson_val *choice) {
        struct slice word = json_slice(choice);

        if (tools && !yyjson_is_arr(tools)) {
                issue_not_list(&p->issues, "tools", tools);
                return;
        }
        if (choice && !yyjson_is_obj(choice) && !slice_is(word, "none") && !slice_is(word, "auto") &&
            !slice_is(word, "required")) {
                issue_add(&p->issues, "literal_error", "tool_choice", "Input should be 'none', 'auto' or 'required'",
                    choice, ", 'ctx': {'expected': \"'none', 'auto' or 'required'\"}");
                return;
        }
        if (tools && yyjson_arr_size(tools) == 0) {
                parser_refuse(p, "tools",
                    "`tools` must not be an empty array. Either provide at least one tool or omit the field entirely. "
                    "(parameter=tools)");
                return;
        }
        p->r->tool_choice = TOOL_CHOICE_NONE;
        if (!tools) {
                if (choice && !slice_is(word, "none"))
                        parser_refuse(
                            p, "tool_choice", "When using `tool_choice`, `tools` must be set. (parameter=tool_choice)");
                return;
        }
        check_tools(p, tools);
        p->r->tools = tools;
        if (p->r->kind != OPENAI_CHAT || slice_is(word, "none"))
                return;
        if (choice && !slice_is(word, "auto")) {
                refuse_forced(p, tools, choice);
                return;
        }
        p->r->tool_choice = TOOL_CHOICE_AUTO;
        if (!p->defaults->auto_tools || !p->defaults->tool_parser)
                parser_refuse(p, NULL,
                    "\"auto\" tool choice requires --enable-auto-tool-choice and --tool-call-parser to be set");
}
