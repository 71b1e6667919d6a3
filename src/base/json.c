/* json.c - see json.h. */
#include "base/json.h"
#include "base/file.h"
#include <assert.h>
#include <errno.h>
#include <math.h>
#include <stdlib.h>

/* ---- reading -------------------------------------------------------------------------------------------------------- */

/* yyjson recurses nowhere and so has no depth limit of its own, but those who walk its values recurse. */
static bool too_deep(struct slice text) {
        unsigned depth = 0;
        bool in_string = false;

        for (size_t i = 0; i < text.len; i++) {
                char c = text.ptr[i];

                if (in_string) {
                        if (c == '\\')
                                i++;
                        else if (c == '"')
                                in_string = false;
                } else if (c == '"')
                        in_string = true;
                else if (c == '{' || c == '[') {
                        if (++depth > JSON_DEPTH_MAX)
                                return true;
                } else if ((c == '}' || c == ']') && depth)
                        depth--;
        }
        return false;
}

int json_parse(struct slice text, yyjson_doc **ret_doc, struct error *e) {
        return json_parse_flags(text, YYJSON_READ_NOFLAG, ret_doc, e);
}

int json_parse_flags(struct slice text, yyjson_read_flag flags, yyjson_doc **ret_doc, struct error *e) {
        yyjson_read_err err = {0};
        yyjson_doc *doc;
        size_t skipped = 0;

        if (slice_starts(text, SLICE_LIT("\xef\xbb\xbf"))) {
                skipped = 3;
                slice_take(&text, 3);
        }
        if (text.len == 0)
                return error_set(e, -EINVAL, "not JSON: empty");
        if (too_deep(text))
                return error_set(e, -E2BIG, "JSON is nested deeper than %d levels", JSON_DEPTH_MAX);
        /* Without YYJSON_READ_INSITU the input is only read. */
        doc = yyjson_read_opts((char *)(uintptr_t)text.ptr, text.len, flags, NULL, &err);
        if (!doc && err.code == YYJSON_READ_ERROR_MEMORY_ALLOCATION)
                return error_set(e, -ENOMEM, "out of memory");
        if (!doc)
                return error_set(
                    e, -EINVAL, "not JSON: %s at byte %zu", err.msg ? err.msg : "unreadable", err.pos + skipped);
        *ret_doc = doc;
        return 0;
}

int json_parse_file(const char *path, size_t max_bytes, yyjson_doc **ret_doc, struct error *e) {
        struct buf b = {0};
        int r = file_read_whole(path, max_bytes, &b, e);

        if (r == 0) {
                r = json_parse(buf_slice(&b), ret_doc, e);
                if (r < 0)
                        error_prefix(e, r, "%s", path);
        }
        buf_free(&b);
        return r;
}

yyjson_val *json_get(yyjson_val *object, const char *key) {
        yyjson_obj_iter iter;
        yyjson_val *found = NULL, *k;
        size_t len = strlen(key);

        if (!yyjson_is_obj(object))
                return NULL;
        yyjson_obj_iter_init(object, &iter);
        while ((k = yyjson_obj_iter_next(&iter)))
                if (yyjson_get_len(k) == len && memcmp(yyjson_get_str(k), key, len) == 0)
                        found = yyjson_obj_iter_get_val(k);
        return found;
}

struct slice json_slice(yyjson_val *v) {
        return yyjson_is_str(v) ? slice_of(yyjson_get_str(v), yyjson_get_len(v)) : SLICE_NONE;
}

int json_to_i64(yyjson_val *v, int64_t *ret_value) {
        if (yyjson_is_sint(v)) {
                *ret_value = yyjson_get_sint(v);
                return 0;
        }
        if (yyjson_is_uint(v)) {
                if (yyjson_get_uint(v) > INT64_MAX)
                        return -ERANGE;
                *ret_value = (int64_t)yyjson_get_uint(v);
                return 0;
        }
        if (yyjson_is_real(v)) {
                double d = yyjson_get_real(v);

                if (d != floor(d))
                        return -EINVAL;
                if (d < -0x1p63 || d >= 0x1p63)
                        return -ERANGE;
                *ret_value = (int64_t)d;
                return 0;
        }
        return -EINVAL;
}

int json_to_double(yyjson_val *v, double *ret_value) {
        if (!yyjson_is_num(v))
                return -EINVAL;
        *ret_value = yyjson_get_num(v);
        return 0;
}

int64_t json_get_i64(yyjson_val *object, const char *key, int64_t otherwise) {
        int64_t value;

        return json_to_i64(json_get(object, key), &value) == 0 ? value : otherwise;
}

double json_get_double(yyjson_val *object, const char *key, double otherwise) {
        double value;

        return json_to_double(json_get(object, key), &value) == 0 ? value : otherwise;
}

bool json_get_bool(yyjson_val *object, const char *key, bool otherwise) {
        yyjson_val *v = json_get(object, key);

        return yyjson_is_bool(v) ? yyjson_get_bool(v) : otherwise;
}

struct slice json_get_slice(yyjson_val *object, const char *key) {
        return json_slice(json_get(object, key));
}

/* ---- writing -------------------------------------------------------------------------------------------------------- */

/* Length of the valid UTF-8 sequence at s[i], 0 when it is none (RFC 3629: no overlong forms, no surrogates). */
static size_t utf8_len(struct slice s, size_t i) {
        const unsigned char *p = (const unsigned char *)s.ptr + i;
        size_t left = s.len - i;

        if (p[0] < 0x80)
                return 1;
        if (p[0] >= 0xc2 && p[0] <= 0xdf)
                return left >= 2 && (p[1] & 0xc0) == 0x80 ? 2 : 0;
        if (p[0] >= 0xe0 && p[0] <= 0xef) {
                if (left < 3 || (p[1] & 0xc0) != 0x80 || (p[2] & 0xc0) != 0x80)
                        return 0;
                if ((p[0] == 0xe0 && p[1] < 0xa0) || (p[0] == 0xed && p[1] > 0x9f))
                        return 0;
                return 3;
        }
        if (p[0] >= 0xf0 && p[0] <= 0xf4) {
                if (left < 4 || (p[1] & 0xc0) != 0x80 || (p[2] & 0xc0) != 0x80 || (p[3] & 0xc0) != 0x80)
                        return 0;
                if ((p[0] == 0xf0 && p[1] < 0x90) || (p[0] == 0xf4 && p[1] > 0x8f))
                        return 0;
                return 4;
        }
        return 0;
}

static void add_escaped(struct buf *b, unsigned char c) {
        static const char *const shorts[] = {
            ['\b'] = "\\b", ['\t'] = "\\t", ['\n'] = "\\n", ['\f'] = "\\f", ['\r'] = "\\r"};

        if (c == '"' || c == '\\') {
                buf_add_char(b, '\\');
                buf_add_char(b, (char)c);
        } else if (c < sizeof(shorts) / sizeof(*shorts) && shorts[c])
                buf_add_str(b, shorts[c]);
        else
                buf_printf(b, "\\u%04x", c);
}

void json_add_string(struct buf *b, struct slice s) {
        size_t begin = 0, i = 0;

        buf_add_char(b, '"');
        while (i < s.len) {
                unsigned char c = (unsigned char)s.ptr[i];
                size_t n = 1;

                if (c >= 0x20 && c < 0x80 && c != '"' && c != '\\') {
                        i++;
                        continue;
                }
                if (c >= 0x80 && (n = utf8_len(s, i))) {
                        i += n;
                        continue;
                }
                buf_append(b, s.ptr + begin, i - begin);
                if (c >= 0x80)
                        buf_add_str(b, "\xef\xbf\xbd");
                else
                        add_escaped(b, c);
                begin = ++i;
        }
        if (s.len)
                buf_append(b, s.ptr + begin, s.len - begin);
        buf_add_char(b, '"');
}

void json_add_value(struct buf *b, yyjson_val *v) {
        size_t len;
        char *text;

        if (!v) {
                buf_add_str(b, "null");
                return;
        }
        text = yyjson_val_write(v, YYJSON_WRITE_INF_AND_NAN_AS_NULL, &len);
        if (text)
                buf_append(b, text, len);
        else
                b->failed = true;
        free(text);
}

static bool in_object(const struct json_writer *w) {
        return w->is_object >> w->depth & 1;
}

/* The comma before the next item of the container that is open. Outside of any there are none. */
static void before_item(struct json_writer *w) {
        uint64_t bit = 1ull << w->depth;

        if (w->depth && w->has_items & bit)
                buf_add_char(w->out, ',');
        w->has_items |= bit;
}

static void before_value(struct json_writer *w) {
        assert(w->after_key == in_object(w)); /* a member has a key, an element has none */
        if (!w->after_key)
                before_item(w);
        w->after_key = false;
}

void json_open(struct json_writer *w, char bracket) {
        assert(w->depth < 63 && (bracket == '{' || bracket == '['));
        before_value(w);
        buf_add_char(w->out, bracket);
        w->depth++;
        w->has_items &= ~(1ull << w->depth);
        w->is_object &= ~(1ull << w->depth);
        w->is_object |= (uint64_t)(bracket == '{') << w->depth;
}

void json_close(struct json_writer *w, char bracket) {
        assert(w->depth > 0 && !w->after_key && bracket == (in_object(w) ? '}' : ']'));
        w->depth--;
        buf_add_char(w->out, bracket);
}

void json_key_slice(struct json_writer *w, struct slice key) {
        assert(w->depth > 0 && !w->after_key && in_object(w));
        before_item(w);
        json_add_string(w->out, key);
        buf_add_char(w->out, ':');
        w->after_key = true;
}

void json_key(struct json_writer *w, const char *key) {
        json_key_slice(w, slice_str(key));
}

void json_string(struct json_writer *w, struct slice s) {
        before_value(w);
        json_add_string(w->out, s);
}

void json_str(struct json_writer *w, const char *text) {
        if (text)
                json_string(w, slice_str(text));
        else
                json_null(w);
}

void json_i64(struct json_writer *w, int64_t value) {
        before_value(w);
        buf_add_i64(w->out, value);
}

void json_u64(struct json_writer *w, uint64_t value) {
        before_value(w);
        buf_add_u64(w->out, value);
}

void json_double(struct json_writer *w, double value) {
        before_value(w);
        buf_add_double(w->out, value);
}

void json_bool(struct json_writer *w, bool value) {
        before_value(w);
        buf_add_str(w->out, value ? "true" : "false");
}

void json_null(struct json_writer *w) {
        before_value(w);
        buf_add_str(w->out, "null");
}

void json_raw(struct json_writer *w, struct slice json) {
        before_value(w);
        buf_add(w->out, json);
}
