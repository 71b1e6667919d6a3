/* scan.c - JSON as byte ranges: the members of an object, and edits among them, without building a tree. */
#include "openai/openai.h"
#include <assert.h>
#include <errno.h>
#include <string.h>
#ifdef __SSE2__
#include <emmintrin.h>
#endif

struct cursor {
        const char *at, *end;
};

static void skip_space(struct cursor *c) {
        while (c->at < c->end && (*c->at == ' ' || *c->at == '\n' || *c->at == '\r' || *c->at == '\t'))
                c->at++;
}

static bool is_digit(const struct cursor *c) {
        return c->at < c->end && *c->at >= '0' && *c->at <= '9';
}

/* ---- strings: most of a body's bytes -------------------------------------------------------------------------------- */

/* The first quote, backslash or control character from `at` on, or `end`. */
static const char *find_special(const char *at, const char *end) {
#ifdef __SSE2__
        const __m128i quote = _mm_set1_epi8('"'), backslash = _mm_set1_epi8('\\'), control = _mm_set1_epi8(0x1f);

        for (; end - at >= 16; at += 16) {
                __m128i v = _mm_loadu_si128((const __m128i *)at);
                __m128i hit = _mm_or_si128(_mm_or_si128(_mm_cmpeq_epi8(v, quote), _mm_cmpeq_epi8(v, backslash)),
                    _mm_cmpeq_epi8(_mm_min_epu8(v, control), v));
                int mask = _mm_movemask_epi8(hit);

                if (mask)
                        return at + __builtin_ctz((unsigned)mask);
        }
#endif
        while (at < end && *at != '"' && *at != '\\' && (unsigned char)*at >= 0x20)
                at++;
        return at;
}

static int hex_value(char c) {
        if (c >= '0' && c <= '9')
                return c - '0';
        if (c >= 'a' && c <= 'f')
                return c - 'a' + 10;
        return c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
}

/* Past the closing quote; the cursor stands behind the opening one. */
static bool skip_string(struct cursor *c) {
        for (;;) {
                c->at = find_special(c->at, c->end);
                if (c->at == c->end)
                        return false;
                if (*c->at == '"') {
                        c->at++;
                        return true;
                }
                if (*c->at != '\\' || c->end - c->at < 2)
                        return false;
                if (c->at[1] == 'u') {
                        if (c->end - c->at < 6)
                                return false;
                        for (int i = 2; i < 6; i++)
                                if (hex_value(c->at[i]) < 0)
                                        return false;
                        c->at += 6;
                } else {
                        if (!memchr("\"\\/bfnrt", c->at[1], 8))
                                return false;
                        c->at += 2;
                }
        }
}

/* ---- the other values ----------------------------------------------------------------------------------------------- */

static bool skip_number(struct cursor *c) {
        if (c->at < c->end && *c->at == '-')
                c->at++;
        if (!is_digit(c))
                return false;
        if (*c->at == '0')
                c->at++;
        else
                while (is_digit(c))
                        c->at++;
        if (c->at < c->end && *c->at == '.') {
                c->at++;
                if (!is_digit(c))
                        return false;
                while (is_digit(c))
                        c->at++;
        }
        if (c->at < c->end && (*c->at == 'e' || *c->at == 'E')) {
                c->at++;
                if (c->at < c->end && (*c->at == '+' || *c->at == '-'))
                        c->at++;
                if (!is_digit(c))
                        return false;
                while (is_digit(c))
                        c->at++;
        }
        return true;
}

static bool skip_word(struct cursor *c, struct slice word) {
        if ((size_t)(c->end - c->at) < word.len || memcmp(c->at, word.ptr, word.len) != 0)
                return false;
        c->at += word.len;
        return true;
}

static bool skip_scalar(struct cursor *c) {
        switch (*c->at) {
        case '"':
                c->at++;
                return skip_string(c);
        case 't':
                return skip_word(c, SLICE_LIT("true"));
        case 'f':
                return skip_word(c, SLICE_LIT("false"));
        case 'n':
                return skip_word(c, SLICE_LIT("null"));
        default:
                return skip_number(c);
        }
}

static bool skip_key(struct cursor *c) {
        skip_space(c);
        if (c->at == c->end || *c->at != '"')
                return false;
        c->at++;
        if (!skip_string(c))
                return false;
        skip_space(c);
        if (c->at == c->end || *c->at != ':')
                return false;
        c->at++;
        return true;
}

/* Past one value of any depth, without recursion: bit d of `is_object` says what stands at depth d. Returns 0, -EINVAL,
 * -E2BIG. */
static int skip_value(struct cursor *c) {
        uint64_t is_object[JSON_DEPTH_MAX / 64 + 1] = {0};
        unsigned depth = 0;

        for (;;) {
                bool object;

                skip_space(c);
                if (c->at == c->end)
                        return -EINVAL;
                object = *c->at == '{';
                if (object || *c->at == '[') {
                        if (depth == JSON_DEPTH_MAX)
                                return -E2BIG;
                        c->at++;
                        is_object[depth / 64] &= ~(1ull << (depth % 64));
                        is_object[depth / 64] |= (uint64_t)object << (depth % 64);
                        depth++;
                        skip_space(c);
                        if (c->at == c->end)
                                return -EINVAL;
                        if (*c->at != (object ? '}' : ']')) {
                                if (object && !skip_key(c))
                                        return -EINVAL;
                                continue;
                        }
                        c->at++;
                        depth--;
                } else if (!skip_scalar(c)) {
                        return -EINVAL;
                }
                /* Behind a value: close what ends here, or go on to the next item. */
                for (;;) {
                        if (depth == 0)
                                return 0;
                        object = is_object[(depth - 1) / 64] >> ((depth - 1) % 64) & 1;
                        skip_space(c);
                        if (c->at == c->end)
                                return -EINVAL;
                        if (*c->at == ',') {
                                c->at++;
                                if (object && !skip_key(c))
                                        return -EINVAL;
                                break;
                        }
                        if (*c->at != (object ? '}' : ']'))
                                return -EINVAL;
                        c->at++;
                        depth--;
                }
        }
}

/* ---- objects and arrays --------------------------------------------------------------------------------------------- */

static int scan_members(struct cursor *c, struct openai_member *members, size_t max, size_t *ret_count) {
        size_t n = 0;

        skip_space(c);
        if (c->at == c->end || *c->at != '{')
                return -EINVAL;
        c->at++;
        skip_space(c);
        if (c->at < c->end && *c->at == '}') {
                c->at++;
                *ret_count = 0;
                return 0;
        }
        for (;;) {
                const char *key;
                int r;

                if (n == max)
                        return -E2BIG;
                skip_space(c);
                key = c->at;
                if (!skip_key(c))
                        return -EINVAL;
                members[n].key.ptr = key + 1;
                members[n].key.len = (const char *)memrchr(key, '"', (size_t)(c->at - key)) - key - 1;
                skip_space(c);
                members[n].value.ptr = c->at;
                r = skip_value(c);
                if (r < 0)
                        return r;
                members[n].value.len = (size_t)(c->at - members[n].value.ptr);
                n++;
                skip_space(c);
                if (c->at == c->end || (*c->at != ',' && *c->at != '}'))
                        return -EINVAL;
                if (*c->at++ == '}') {
                        *ret_count = n;
                        return 0;
                }
        }
}

int openai_scan(struct slice text, struct openai_member *members, size_t max, size_t *ret_count, size_t *ret_at) {
        struct cursor c = {text.ptr, text.ptr + text.len};
        size_t count;
        int r = text.len == 0 ? -EINVAL : scan_members(&c, members, max, &count);

        if (r == 0) {
                skip_space(&c);
                if (c.at != c.end)
                        r = -EINVAL;
        }
        if (r < 0) {
                if (ret_at)
                        *ret_at = text.len == 0 ? 0 : (size_t)(c.at - text.ptr);
                return r;
        }
        *ret_count = count;
        return 0;
}

bool openai_next_item(struct slice *rest, struct slice *ret_item) {
        struct cursor c = {rest->ptr, rest->ptr + rest->len};

        skip_space(&c);
        if (c.at == c.end || *c.at == ']')
                return false;
        c.at++; /* the opening bracket, or the comma behind the last item */
        skip_space(&c);
        ret_item->ptr = c.at;
        if (c.at == c.end || *c.at == ']' || skip_value(&c) < 0)
                return false;
        ret_item->len = (size_t)(c.at - ret_item->ptr);
        *rest = slice_of(c.at, (size_t)(c.end - c.at));
        return true;
}

size_t openai_count_items(struct slice array) {
        struct slice item;
        size_t n = 0;

        while (openai_next_item(&array, &item))
                n++;
        return n;
}

/* ---- text ----------------------------------------------------------------------------------------------------------- */

static uint32_t hex4(const char *at) {
        uint32_t v = 0;

        for (int i = 0; i < 4; i++)
                v = v << 4 | (uint32_t)(hex_value(at[i]) & 15);
        return v;
}

/* The code point of \uXXXX (and of the low half that follows a high one) at the front of *s. */
static uint32_t take_unicode(struct slice *s) {
        uint32_t c = s->len >= 6 ? hex4(s->ptr + 2) : 0xfffd, low;

        slice_take(s, 6);
        if (c >= 0xd800 && c < 0xdc00 && s->len >= 6 && s->ptr[0] == '\\' && s->ptr[1] == 'u') {
                low = hex4(s->ptr + 2);
                if (low >= 0xdc00 && low < 0xe000) {
                        slice_take(s, 6);
                        return 0x10000 + ((c - 0xd800) << 10) + (low - 0xdc00);
                }
        }
        return c >= 0xd800 && c < 0xe000 ? 0xfffd : c;
}

static size_t put_utf8(char *out, uint32_t c) {
        if (c < 0x80) {
                out[0] = (char)c;
                return 1;
        }
        if (c < 0x800) {
                out[0] = (char)(0xc0 | c >> 6);
                out[1] = (char)(0x80 | (c & 63));
                return 2;
        }
        if (c < 0x10000) {
                out[0] = (char)(0xe0 | c >> 12);
                out[1] = (char)(0x80 | (c >> 6 & 63));
                out[2] = (char)(0x80 | (c & 63));
                return 3;
        }
        out[0] = (char)(0xf0 | c >> 18);
        out[1] = (char)(0x80 | (c >> 12 & 63));
        out[2] = (char)(0x80 | (c >> 6 & 63));
        out[3] = (char)(0x80 | (c & 63));
        return 4;
}

/* Take the escape at the front of *s. Returns how many bytes it stands for. */
static size_t take_escape(struct slice *s, char out[4]) {
        static const char from[] = "bfnrt", to[] = "\b\f\n\r\t";
        const char *known;

        if (s->ptr[1] == 'u')
                return put_utf8(out, take_unicode(s));
        known = memchr(from, s->ptr[1], sizeof(from) - 1);
        *out = known ? to[known - from] : s->ptr[1];
        slice_take(s, 2);
        return 1;
}

void openai_unescape(struct buf *out, struct slice inside) {
        while (inside.len > 0) {
                size_t plain = slice_find(inside, '\\', 0);
                char text[4];

                buf_add(out, slice_take(&inside, plain));
                if (inside.len < 2)
                        return;
                buf_append(out, text, take_escape(&inside, text));
        }
}

size_t openai_length(struct slice inside) {
        size_t n = 0;

        while (inside.len > 0) {
                if (inside.ptr[0] == '\\' && inside.len >= 2) {
                        if (inside.ptr[1] == 'u')
                                take_unicode(&inside);
                        else
                                slice_take(&inside, 2);
                        n++;
                        continue;
                }
                n += ((unsigned char)inside.ptr[0] & 0xc0) != 0x80;
                slice_take(&inside, 1);
        }
        return n;
}

bool openai_key_matches(struct slice key, const char *name) {
        struct slice rest = slice_str(name);
        size_t len = rest.len;

        if (key.len == len)
                return memcmp(key.ptr, name, len) == 0;
        /* A key that was written with escapes is longer than what it stands for: six bytes for one at most. */
        if (key.len < len || key.len > len * 6 || !memchr(key.ptr, '\\', key.len))
                return false;
        while (key.len > 0) {
                bool escaped = key.ptr[0] == '\\' && key.len >= 2;
                char text[4];
                struct slice piece = escaped ? slice_of(text, take_escape(&key, text)) : slice_take(&key, 1);

                if (!slice_starts(rest, piece))
                        return false;
                slice_take(&rest, piece.len);
        }
        return rest.len == 0;
}

struct slice openai_find(const struct openai_member *members, size_t count, const char *name) {
        for (size_t i = count; i-- > 0;)
                if (openai_key_is(members[i].key, name))
                        return members[i].value;
        return SLICE_NONE;
}

/* ---- edits ---------------------------------------------------------------------------------------------------------- */

static const struct openai_edit *edit_of(const struct openai_edit *edits, size_t count, struct slice key) {
        for (size_t i = 0; i < count; i++)
                if (openai_key_is(key, edits[i].key))
                        return &edits[i];
        return NULL;
}

struct writer {
        struct slice *parts;
        size_t count, bytes;
        bool any; /* a member is out: the next one needs a comma */
};

static void put(struct writer *w, struct slice s) {
        struct slice *last = w->count ? &w->parts[w->count - 1] : NULL;

        if (s.len == 0)
                return;
        w->bytes += s.len;
        if (last && last->ptr + last->len == s.ptr)
                last->len += s.len;
        else
                w->parts[w->count++] = s;
}

static const char *member_begin(const struct openai_member *m) {
        return m->key.ptr - 1;
}

static const char *member_end(const struct openai_member *m) {
        return m->value.ptr + m->value.len;
}

/* What separates member i from the one before, as the client wrote it. */
static struct slice gap_before(const struct openai_member *members, size_t i) {
        const char *from = member_end(&members[i - 1]);

        return slice_of(from, (size_t)(member_begin(&members[i]) - from));
}

static void separate(struct writer *w, const struct openai_member *members, size_t i, bool kept_before) {
        if (w->any)
                put(w, i > 0 && kept_before ? gap_before(members, i) : SLICE_LIT(","));
        w->any = true;
}

static bool is_last_of_name(const struct openai_member *members, size_t count, size_t i, const char *name) {
        for (size_t k = i + 1; k < count; k++)
                if (openai_key_is(members[k].key, name))
                        return false;
        return true;
}

int openai_edit(struct slice text, const struct openai_member *members, size_t count, const struct openai_edit *edits,
    size_t edit_count, struct arena *arena, struct slice **ret_parts, size_t *ret_part_count, size_t *ret_bytes) {
        /* Per member at most a gap, its front and a new value; per appended edit a comma, a key and a value; the ends. */
        struct writer w = {.parts = arena_array(arena, count * 3 + edit_count * 3 + 2, sizeof(struct slice))};
        const char *open = memchr(text.ptr, '{', text.len), *end = text.ptr + text.len;
        const char *rest = count ? member_end(&members[count - 1]) : open + 1;
        bool kept = false;

        if (!w.parts)
                return -ENOMEM;
        assert(open);
        put(&w, slice_of(text.ptr, (size_t)((count ? member_begin(&members[0]) : open + 1) - text.ptr)));
        for (size_t i = 0; i < count; i++) {
                const struct openai_edit *e = edit_of(edits, edit_count, members[i].key);
                bool keep = !e || (e->value.ptr && is_last_of_name(members, count, i, e->key));

                if (keep) {
                        separate(&w, members, i, kept);
                        put(&w, slice_of(member_begin(&members[i]),
                                    (size_t)(members[i].value.ptr - member_begin(&members[i]))));
                        put(&w, e ? e->value : members[i].value);
                }
                kept = keep;
        }
        for (size_t k = 0; k < edit_count; k++) {
                char *key;

                if (!edits[k].value.ptr || openai_find(members, count, edits[k].key).ptr)
                        continue;
                separate(&w, members, 0, false);
                key = arena_printf(arena, "\"%s\":", edits[k].key);
                if (!key)
                        return -ENOMEM;
                put(&w, slice_str(key));
                put(&w, edits[k].value);
        }
        put(&w, slice_of(rest, (size_t)(end - rest)));
        *ret_parts = w.parts;
        *ret_part_count = w.count;
        *ret_bytes = w.bytes;
        return 0;
}
