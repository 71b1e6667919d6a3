/* split_pattern.c - from Oniguruma's Ruby syntax to PCRE2's. */
#include "text/split.h"
#include <errno.h>

/* What the classes mean in Oniguruma. PCRE2's own differ: its \s takes U+180E, its \w leaves out marks, its [:alpha:]
 * leaves out what is alphabetic without being a letter. A \w outside of a class also takes Latin-1's superscripts and
 * fractions. */
#define CLASS_SPACE "\\p{White_Space}"
#define CLASS_WORD  "\\p{Alphabetic}\\p{M}\\p{Nd}\\p{Pc}"
#define WORD_ALONE  CLASS_WORD "\\x{B2}\\x{B3}\\x{B9}\\x{BC}-\\x{BE}"

static const struct {
        const char *name, *members;
} named_classes[] = {
    {"alpha", "\\p{Alphabetic}"},
    {"alnum", "\\p{Alphabetic}\\p{Nd}"},
    {"digit", "\\p{Nd}"},
    {"lower", "\\p{Lowercase}"},
    {"punct", "\\p{P}\\p{S}"},
    {"space", CLASS_SPACE},
    {"upper", "\\p{Uppercase}"},
};

struct translation {
        struct slice in;
        struct buf out;
        bool in_class;
        struct error *e;
};

static int refuse(struct translation *t, size_t at, const char *what) {
        return error_set(t->e, -EINVAL, "pattern uses %s at byte %zu, which is not supported", what, at);
}

static bool is_hex(char c) {
        return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f') || (c >= 'A' && c <= 'F');
}

/* Of a backslash, the character behind it, and the braces that p, P and x may have. */
static size_t escape_length(struct slice in, size_t at) {
        size_t close;

        if (at + 2 >= in.len || in.ptr[at + 2] != '{' || !memchr("pPx", in.ptr[at + 1], 3))
                return 2;
        close = slice_find(in, '}', at);
        return close < in.len ? close + 1 - at : 2;
}

/* A backslash at `at` and what follows. Returns how many bytes it took. */
static int escape(struct translation *t, size_t at) {
        char c = at + 1 < t->in.len ? t->in.ptr[at + 1] : 0;
        size_t len;

        switch (c) {
        case 's':
                buf_add_str(&t->out, CLASS_SPACE);
                return 2;
        case 'S':
                buf_add_str(&t->out, "\\P{White_Space}");
                return 2;
        case 'd':
                buf_add_str(&t->out, "\\p{Nd}");
                return 2;
        case 'D':
                buf_add_str(&t->out, "\\P{Nd}");
                return 2;
        case 'w':
                buf_add_str(&t->out, t->in_class ? CLASS_WORD : "[" WORD_ALONE "]");
                return 2;
        case 'W':
                if (t->in_class)
                        return refuse(t, at, "\\W in a class");
                buf_add_str(&t->out, "[^" WORD_ALONE "]");
                return 2;
        case 'u': /* four hexadecimal digits */
                for (size_t i = at + 2; i < at + 6; i++)
                        if (i >= t->in.len || !is_hex(t->in.ptr[i]))
                                return refuse(t, at, "\\u without four digits");
                buf_printf(&t->out, "\\x{%.4s}", t->in.ptr + at + 2);
                return 6;
        case 'h':
        case 'H':
        case 'K':
        case 'R':
        case 'X':
        case 'G':
        case 'C':
        case 'Q':
        case 'E':
        case 'y':
        case 'Y':
        case 'O':
        case 'N':
        case 'M':
        case 0:
                return refuse(t, at, "an escape that means different things to different programs");
        default:
                len = escape_length(t->in, at);
                buf_append(&t->out, t->in.ptr + at, len);
                return (int)len;
        }
}

/* "[" within a class: a named one, or what only Oniguruma knows. */
static int inner_bracket(struct translation *t, size_t at) {
        struct slice rest = slice_sub(t->in, at, t->in.len);
        size_t end = slice_find_slice(rest, SLICE_LIT(":]"), 2);
        struct slice name = slice_sub(rest, 2, end);

        if (!slice_starts(rest, SLICE_LIT("[:")) || end == rest.len)
                return refuse(t, at, "a class within a class");
        for (size_t i = 0; i < sizeof(named_classes) / sizeof(*named_classes); i++)
                if (slice_is(name, named_classes[i].name)) {
                        buf_add_str(&t->out, named_classes[i].members);
                        return (int)(end + 2);
                }
        return refuse(t, at, "a named class other than alpha, alnum, digit, lower, punct, space and upper");
}

/* "(?flags": m means another thing to Ruby, a and u are unknown to PCRE2. */
static int group_flags(struct translation *t, size_t at) {
        size_t i = at + 2;

        if (i >= t->in.len || !(t->in.ptr[i] == '-' || (t->in.ptr[i] >= 'a' && t->in.ptr[i] <= 'z')))
                return 0;
        for (; i < t->in.len && t->in.ptr[i] != ')' && t->in.ptr[i] != ':'; i++)
                if (t->in.ptr[i] != 'i' && t->in.ptr[i] != '-')
                        return refuse(t, at, "option letters other than i");
        return 0;
}

/* One item that begins at `at`: returns its length, or an error. */
static int item(struct translation *t, size_t at) {
        char c = t->in.ptr[at], next = at + 1 < t->in.len ? t->in.ptr[at + 1] : 0;
        int r = 0;

        if (c == '\\')
                return escape(t, at);
        if (t->in_class) {
                if (c == '[')
                        return inner_bracket(t, at);
                if (c == '&' && next == '&')
                        return refuse(t, at, "&& in a class");
                if (c == ']')
                        t->in_class = false;
        } else if (c == '[') {
                t->in_class = true;
                if (next == '^') {
                        buf_add_str(&t->out, "[^");
                        return 2;
                }
        } else if (c == '(' && next == '?')
                r = group_flags(t, at);
        else if (c == '(' && next == '*')
                r = refuse(t, at, "(*");
        else if (c == '}' && next == '+')
                r = refuse(t, at, "}+");
        if (r < 0)
                return r;
        buf_add_char(&t->out, c);
        return 1;
}

static int translate(struct slice pattern, struct buf *ret_pattern, struct error *e) {
        struct translation t = {.in = pattern, .e = e};
        int r = 0;

        /* \s+$ would look at every byte of a run of white space once from each byte of it. A match can begin only where a
         * run begins: if none begins there, none begins within. */
        if (slice_is(pattern, "\\s+$"))
                buf_add_str(&t.out, "(?<!" CLASS_SPACE ")");
        for (size_t at = 0; r >= 0 && at < pattern.len; at += (size_t)(r > 0 ? r : 0))
                r = item(&t, at);
        if (r >= 0 && !buf_ok(&t.out))
                r = -ENOMEM;
        if (r < 0) {
                buf_free(&t.out);
                return r;
        }
        *ret_pattern = t.out;
        return 0;
}

static int compile(struct slice pattern, uint32_t options, pcre2_code **ret_code, struct error *e) {
        pcre2_code *code;
        PCRE2_SIZE at = 0;
        int error = 0;

        code = pcre2_compile(
            (PCRE2_SPTR)(pattern.len ? pattern.ptr : ""), pattern.len, PCRE2_UTF | options, &error, &at, NULL);
        if (!code) {
                PCRE2_UCHAR text[128] = "";

                if (error == PCRE2_ERROR_HEAP_FAILED)
                        return -ENOMEM;
                pcre2_get_error_message(error, text, sizeof(text));
                return error_set(e, -EINVAL, "pattern: %s at byte %zu", (const char *)text, (size_t)at);
        }
        /* Where the system forbids executable memory, PCRE2 interprets: slower, the same pieces. */
        (void)pcre2_jit_compile(code, PCRE2_JIT_COMPLETE);
        *ret_code = code;
        return 0;
}

int split_compile(struct slice pattern, pcre2_code **ret_code, struct error *e) {
        struct buf translated = {0};
        int r;

        if (pattern.len > SPLIT_PATTERN_MAX)
                return error_set(e, -EINVAL, "pattern of %zu bytes (at most %u)", pattern.len, SPLIT_PATTERN_MAX);
        r = translate(pattern, &translated, e);
        if (r < 0)
                return r;
        r = compile(buf_slice(&translated), PCRE2_UCP | PCRE2_MULTILINE | PCRE2_NEVER_BACKSLASH_C, ret_code, e);
        buf_free(&translated);
        return r;
}

int split_compile_string(struct slice text, pcre2_code **ret_code, struct error *e) {
        if (text.len > SPLIT_PATTERN_MAX)
                return error_set(e, -EINVAL, "pattern of %zu bytes (at most %u)", text.len, SPLIT_PATTERN_MAX);
        return compile(text, PCRE2_LITERAL, ret_code, e);
}
