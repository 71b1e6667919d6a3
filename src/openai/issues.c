/* issues.c - see issues.h. */
#include "openai/issues.h"
#include <errno.h>
#include <stdio.h>

/* Of a wrong value this much is repeated to its sender: enough to recognise it. */
#define INPUT_BYTES_MAX 256

/* ---- Python's way of writing values --------------------------------------------------------------------------------------- */

/* A string as repr() writes it; non-ASCII letters stay. */
static void add_repr(struct buf *b, struct slice s) {
        bool cut = s.len > INPUT_BYTES_MAX;
        char quote;

        if (cut) {
                s.len = INPUT_BYTES_MAX;
                while (s.len && ((unsigned char)s.ptr[s.len] & 0xc0) == 0x80)
                        s.len--;
        }
        quote = slice_find(s, '\'', 0) < s.len && slice_find(s, '"', 0) == s.len ? '"' : '\'';
        buf_add_char(b, quote);
        for (size_t i = 0; i < s.len; i++) {
                unsigned char c = (unsigned char)s.ptr[i];

                if (c == '\n')
                        buf_add_str(b, "\\n");
                else if (c == '\r')
                        buf_add_str(b, "\\r");
                else if (c == '\t')
                        buf_add_str(b, "\\t");
                else if (c < 0x20 || c == 0x7f)
                        buf_printf(b, "\\x%02x", c);
                else {
                        if (c == '\\' || c == (unsigned char)quote)
                                buf_add_char(b, '\\');
                        buf_add_char(b, (char)c);
                }
        }
        buf_add_str(b, cut ? "..." : "");
        buf_add_char(b, quote);
}

/* What stands for a value in 'input': str() of a scalar, the size of the others. */
static void add_input(struct buf *b, yyjson_val *v) {
        struct buf text = {0};

        if (yyjson_is_str(v)) {
                add_repr(b, json_slice(v));
                return;
        }
        if (!v || yyjson_is_null(v))
                buf_add_str(&text, "None");
        else if (yyjson_is_bool(v))
                buf_add_str(&text, yyjson_get_bool(v) ? "True" : "False");
        else if (yyjson_is_obj(v))
                buf_printf(&text, "<dict of %zu items>", yyjson_obj_size(v));
        else if (yyjson_is_arr(v))
                buf_printf(&text, "<list of %zu items>", yyjson_arr_size(v));
        else if (yyjson_is_raw(v))
                buf_add(&text, slice_of(yyjson_get_raw(v), yyjson_get_len(v)));
        else
                json_add_value(&text, v);
        add_repr(b, buf_slice(&text));
        if (!buf_ok(&text))
                b->failed = true;
        buf_free(&text);
}

/* ---- gathering ------------------------------------------------------------------------------------------------------------ */

void issue_add(
    struct issues *s, const char *type, const char *loc, const char *message, yyjson_val *input, const char *more) {
        struct buf *b = &s->text;

        if (s->count++ == 0)
                snprintf(s->param, sizeof(s->param), "body%s%s", *loc ? "." : "", loc);
        if (s->count > ISSUES_TOLD_MAX)
                return;
        buf_printf(b, "\n  {'type': '%s', 'loc': 'body%s%s', 'msg': ", type, *loc ? "." : "", loc);
        add_repr(b, slice_str(message));
        buf_add_str(b, ", 'input': ");
        add_input(b, input);
        buf_add_str(b, more ? more : "");
        buf_add_char(b, '}');
}

void issue_missing(struct issues *s, const char *loc, yyjson_val *object) {
        issue_add(s, "missing", loc, "Field required", object, NULL);
}

void issue_not_integer(struct issues *s, const char *loc, yyjson_val *input) {
        if (yyjson_is_str(input))
                issue_add(s, "int_parsing", loc,
                    "Input should be a valid integer, unable to parse string as an integer", input, NULL);
        else if (yyjson_is_num(input))
                issue_add(s, "int_from_float", loc,
                    "Input should be a valid integer, got a number with a fractional part", input, NULL);
        else
                issue_add(s, "int_type", loc, "Input should be a valid integer", input, NULL);
}

void issue_not_number(struct issues *s, const char *loc, yyjson_val *input) {
        if (yyjson_is_str(input))
                issue_add(s, "float_parsing", loc, "Input should be a valid number, unable to parse string as a number",
                    input, NULL);
        else
                issue_add(s, "float_type", loc, "Input should be a valid number", input, NULL);
}

void issue_not_boolean(struct issues *s, const char *loc, yyjson_val *input) {
        if (yyjson_is_str(input) || yyjson_is_num(input))
                issue_add(
                    s, "bool_parsing", loc, "Input should be a valid boolean, unable to interpret input", input, NULL);
        else
                issue_add(s, "bool_type", loc, "Input should be a valid boolean", input, NULL);
}

void issue_not_string(struct issues *s, const char *loc, yyjson_val *input) {
        issue_add(s, "string_type", loc, "Input should be a valid string", input, NULL);
}

void issue_not_list(struct issues *s, const char *loc, yyjson_val *input) {
        issue_add(s, "list_type", loc, "Input should be a valid list", input, NULL);
}

void issue_not_object(struct issues *s, const char *loc, yyjson_val *input) {
        issue_add(s, "dict_type", loc, "Input should be a valid dictionary", input, NULL);
}

int issues_end(struct issues *s, struct openai_error *ret_err) {
        int r = 0;

        if (!buf_ok(&s->text))
                r = -ENOMEM;
        else if (s->count) {
                r = openai_fail(ret_err, 400, "Bad Request", s->param, "%u validation error%s:%.*s", s->count,
                    s->count == 1 ? "" : "s", SLICE_ARG(buf_slice(&s->text)));
                if (s->count > ISSUES_TOLD_MAX) {
                        size_t at = strlen(ret_err->message);

                        snprintf(ret_err->message + at, sizeof(ret_err->message) - at, "\n  ...and %u more errors",
                            s->count - ISSUES_TOLD_MAX);
                }
        }
        buf_free(&s->text);
        return r;
}

/* ---- what is wrong with JSON, in Python's words --------------------------------------------------------------------------- */

struct reader {
        struct slice text;
        size_t at;
        const char *why; /* NULL: nothing yet */
};

static bool wrong(struct reader *r, const char *why, size_t at) {
        r->why = why;
        r->at = at;
        return false;
}

static char peek(const struct reader *r) {
        return r->at < r->text.len ? r->text.ptr[r->at] : 0;
}

static void skip_space(struct reader *r) {
        while (r->at < r->text.len && memchr(" \t\n\r", r->text.ptr[r->at], 4))
                r->at++;
}

static bool is_hex(const struct reader *r, size_t at) {
        return at < r->text.len && strchr("0123456789abcdefABCDEF", r->text.ptr[at]) && r->text.ptr[at];
}

/* At an opening quote. */
static bool read_string(struct reader *r) {
        size_t begin = r->at++;

        for (;; r->at++) {
                unsigned char c = (unsigned char)peek(r);

                if (r->at >= r->text.len)
                        return wrong(r, "Unterminated string starting at", begin);
                if (c == '"') {
                        r->at++;
                        return true;
                }
                if (c < 0x20)
                        return wrong(r, "Invalid control character at", r->at);
                if (c != '\\')
                        continue;
                c = (unsigned char)(r->at++, peek(r));
                if (r->at >= r->text.len)
                        return wrong(r, "Unterminated string starting at", begin);
                if (c == 'u') {
                        for (size_t i = 1; i <= 4; i++)
                                if (!is_hex(r, r->at + i))
                                        return wrong(r, "Invalid \\uXXXX escape", r->at);
                        r->at += 4;
                } else if (!memchr("\"\\/bfnrt", c, 8))
                        return wrong(r, "Invalid \\escape", r->at - 1);
        }
}

static bool take_word(struct reader *r, const char *word) {
        struct slice rest = slice_sub(r->text, r->at, r->text.len);

        if (!slice_starts(rest, slice_str(word)))
                return false;
        r->at += strlen(word);
        return true;
}

static bool read_number(struct reader *r) {
        size_t at = r->at, digits;

        at += at < r->text.len && r->text.ptr[at] == '-';
        digits = at;
        while (at < r->text.len && r->text.ptr[at] >= '0' && r->text.ptr[at] <= '9' &&
               !(at > digits && r->text.ptr[digits] == '0'))
                at++;
        if (at == digits)
                return wrong(r, "Expecting value", r->at);
        if (at + 1 < r->text.len && r->text.ptr[at] == '.' && r->text.ptr[at + 1] >= '0' && r->text.ptr[at + 1] <= '9')
                for (at++; at < r->text.len && r->text.ptr[at] >= '0' && r->text.ptr[at] <= '9';)
                        at++;
        if (at < r->text.len && (r->text.ptr[at] | 32) == 'e') {
                size_t e = at + 1;

                e += e < r->text.len && memchr("+-", r->text.ptr[e], 2);
                if (e < r->text.len && r->text.ptr[e] >= '0' && r->text.ptr[e] <= '9')
                        for (at = e; at < r->text.len && r->text.ptr[at] >= '0' && r->text.ptr[at] <= '9';)
                                at++;
        }
        r->at = at;
        return true;
}

static bool read_scalar(struct reader *r) {
        static const char *const words[] = {"null", "true", "false", "NaN", "Infinity", "-Infinity"};

        if (peek(r) == '"')
                return read_string(r);
        for (size_t i = 0; i < sizeof(words) / sizeof(*words); i++)
                if (take_word(r, words[i]))
                        return true;
        return read_number(r);
}

static bool read_key(struct reader *r) {
        skip_space(r);
        if (peek(r) != '"')
                return wrong(r, "Expecting property name enclosed in double quotes", r->at);
        if (!read_string(r))
                return false;
        skip_space(r);
        if (peek(r) != ':')
                return wrong(r, "Expecting ':' delimiter", r->at);
        r->at++;
        return true;
}

static void read_document(struct reader *r) {
        char open[JSON_DEPTH_MAX];
        unsigned depth = 0;

        for (;;) {
                char c;

                skip_space(r);
                c = peek(r);
                if (c == '{' || c == '[') {
                        if (depth == sizeof(open)) {
                                wrong(r, "Nested too deep", r->at);
                                return;
                        }
                        open[depth++] = c;
                        r->at++;
                        skip_space(r);
                        if (peek(r) != (c == '{' ? '}' : ']')) {
                                if (c == '{' && !read_key(r))
                                        return;
                                continue;
                        }
                        r->at++;
                        depth--;
                } else if (!read_scalar(r))
                        return;
                for (;;) {
                        skip_space(r);
                        if (depth == 0) {
                                if (r->at < r->text.len)
                                        wrong(r, "Extra data", r->at);
                                return;
                        }
                        c = peek(r);
                        if (c == ',') {
                                r->at++;
                                if (open[depth - 1] == '{' && !read_key(r))
                                        return;
                                break;
                        }
                        if (c != (open[depth - 1] == '{' ? '}' : ']')) {
                                wrong(r, "Expecting ',' delimiter", r->at);
                                return;
                        }
                        r->at++;
                        depth--;
                }
        }
}

int issue_bad_json(struct slice body, struct openai_error *ret_err) {
        struct reader r = {.text = body};
        char where[32];

        read_document(&r);
        if (!r.why) /* Python would read it, our parser would not: broken UTF-8 */
                return openai_fail(ret_err, 400, "Bad Request", NULL, "There was an error parsing the body");
        snprintf(where, sizeof(where), "body.%zu", slice_characters(slice_sub(body, 0, r.at)));
        return openai_fail(ret_err, 400, "Bad Request", where,
            "1 validation error:\n  {'type': 'json_invalid', 'loc': '%s', 'msg': 'JSON decode error', "
            "'input': '<dict of 0 items>', 'ctx': {'error': %c%s%c}}",
            where, strchr(r.why, '\'') ? '"' : '\'', r.why, strchr(r.why, '\'') ? '"' : '\'');
}
