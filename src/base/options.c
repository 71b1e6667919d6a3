/* options.c - see options.h. */
#include "base/options.h"
#include "base/buf.h"
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

struct parser {
        const struct option_set *set;
        int argc, at;
        char **argv;
        char *target;
        struct options_result *result;
        struct error *e;
};

static char fold(char c) {
        return c == '_' ? '-' : c;
}

static bool name_is(struct slice given, const char *name) {
        if (strlen(name) != given.len)
                return false;
        for (size_t i = 0; i < given.len; i++)
                if (fold(given.ptr[i]) != fold(name[i]))
                        return false;
        return true;
}

/* The option of that name; *ret_negated for --no-NAME of a flag (unless a row has the whole name). */
static const struct option *find_option(const struct option_set *set, struct slice name, bool *ret_negated) {
        *ret_negated = false;
        for (size_t i = 0; i < set->count; i++)
                if (name_is(name, set->options[i].name))
                        return &set->options[i];
        if (name.len > 3 && name.ptr[0] == 'n' && name.ptr[1] == 'o' && fold(name.ptr[2]) == '-')
                for (size_t i = 0; i < set->count; i++)
                        if ((set->options[i].kind == OPTION_FLAG || set->options[i].kind == OPTION_IGNORED) &&
                            name_is(slice_sub(name, 3, name.len), set->options[i].name)) {
                                *ret_negated = true;
                                return &set->options[i];
                        }
        return NULL;
}

static int unknown(struct parser *p, struct slice name) {
        const char **names = calloc(p->set->count + 1, sizeof(*names));
        const char *nearest = NULL;

        if (names) {
                for (size_t i = 0; i < p->set->count; i++)
                        names[i] = p->set->options[i].name;
                nearest = text_nearest(name, names, p->set->count);
                free(names);
        }
        return error_set(p->e, -EINVAL, "unknown option --%.*s%s%s%s; see --help", SLICE_ARG(slice_sub(name, 0, 100)),
            nearest ? ", did you mean --" : "", nearest ? nearest : "", nearest ? "?" : "");
}

/* The next argument as a value. A word that begins with '-' is an option unless it is a number. */
static bool take_value(struct parser *p, const char **ret_value) {
        const char *next;
        double number;

        if (p->at + 1 >= p->argc)
                return false;
        next = p->argv[p->at + 1];
        if (next[0] == '-' && next[1] && slice_to_double(slice_str(next), &number) < 0)
                return false;
        p->at++;
        *ret_value = next;
        return true;
}

static int bad_value(struct parser *p, const struct option *o, const char *value, const char *wanted) {
        return error_set(p->e, -EINVAL, "--%s: `%.100s` is not %s", o->name, value, wanted);
}

static int parse_size(struct slice text, int64_t *ret_value) {
        static const struct {
                char letter;
                double factor;
        } units[] = {{'k', 1e3}, {'m', 1e6}, {'g', 1e9}, {'t', 1e12}, {'K', 0x1p10}, {'M', 0x1p20}, {'G', 0x1p30},
            {'T', 0x1p40}};
        double number, factor = 1;
        int r = slice_to_i64(text, ret_value);

        if (r == 0 || text.len < 2)
                return r;
        for (size_t i = 0; i < sizeof(units) / sizeof(*units); i++)
                if (text.ptr[text.len - 1] == units[i].letter)
                        factor = units[i].factor;
        if (factor == 1 || slice_to_double(slice_sub(text, 0, text.len - 1), &number) < 0)
                return -EINVAL;
        number *= factor;
        if (number < -0x1p62 || number > 0x1p62)
                return -ERANGE;
        *ret_value = (int64_t)round(number); /* 0.57k is 570, though the product is 569.99… */
        return 0;
}

static int store_integer(struct parser *p, const struct option *o, const char *value) {
        int64_t number;
        int r =
            o->kind == OPTION_SIZE ? parse_size(slice_str(value), &number) : slice_to_i64(slice_str(value), &number);

        if (r < 0)
                return bad_value(
                    p, o, value, o->kind == OPTION_SIZE ? "a number (such as 2048, 25.6k or 2K)" : "a whole number");
        if ((o->min || o->max) && (number < o->min || number > o->max))
                return error_set(p->e, -EINVAL, "--%s: %lld is out of range %lld..%lld", o->name, (long long)number,
                    (long long)o->min, (long long)o->max);
        memcpy(p->target + o->offset, &number, sizeof(number));
        return 0;
}

static int store_string(struct parser *p, const struct option *o, const char *value) {
        struct slice choices = slice_str(o->choices), choice;

        if (o->choices) {
                bool found = false;

                while (slice_split(&choices, '|', &choice))
                        found |= slice_is(choice, value);
                if (!found)
                        return error_set(p->e, -EINVAL, "--%s: `%.100s` is none of %s", o->name, value, o->choices);
        }
        memcpy(p->target + o->offset, &value, sizeof(value));
        return 0;
}

static int list_add(const char ***items, size_t *count, const char *item) {
        const char **grown = realloc(*items, (*count + 1) * sizeof(*grown));

        if (!grown)
                return -ENOMEM;
        grown[(*count)++] = item;
        *items = grown;
        return 0;
}

static int store_value(struct parser *p, const struct option *o, const char *value) {
        struct option_list *list = (struct option_list *)(p->target + o->offset);
        double number;

        switch (o->kind) {
        case OPTION_STRING:
                return store_string(p, o, value);
        case OPTION_INT:
        case OPTION_SIZE:
                return store_integer(p, o, value);
        case OPTION_DOUBLE:
                if (slice_to_double(slice_str(value), &number) < 0)
                        return bad_value(p, o, value, "a number");
                memcpy(p->target + o->offset, &number, sizeof(number));
                return 0;
        default:
                return list_add(&list->items, &list->count, value);
        }
}

static int parse_flag(struct parser *p, const struct option *o, const char *inline_value, bool negated) {
        bool value = !negated;

        if (inline_value) {
                if (negated || !(slice_is_icase(slice_str(inline_value), "true") ||
                                   slice_is_icase(slice_str(inline_value), "false")))
                        return bad_value(p, o, inline_value, "true or false");
                value = slice_is_icase(slice_str(inline_value), "true");
        }
        memcpy(p->target + o->offset, &value, sizeof(value));
        return 0;
}

static int parse_ignored(struct parser *p, const struct option *o, bool complete) {
        const char *dropped;

        while (o->value && !complete && take_value(p, &dropped))
                ;
        return list_add(&p->result->ignored, &p->result->count_ignored, o->name);
}

static int parse_option(struct parser *p, const struct option *o, const char *inline_value, bool negated) {
        const char *value;
        int r;

        if (o->kind == OPTION_FLAG)
                return parse_flag(p, o, inline_value, negated);
        if (o->kind == OPTION_IGNORED)
                return parse_ignored(p, o, inline_value || negated);
        if (inline_value)
                return store_value(p, o, inline_value);
        if (!take_value(p, &value))
                return error_set(
                    p->e, -EINVAL, "--%s needs a value%s%s", o->name, o->value ? ": " : "", o->value ? o->value : "");
        r = store_value(p, o, value);
        while (r == 0 && o->kind == OPTION_LIST && take_value(p, &value))
                r = store_value(p, o, value);
        return r;
}

static int add_positional(struct parser *p, const char *word) {
        if (p->result->count_positional == p->set->max_positional)
                return error_set(p->e, -EINVAL, "`%.100s` is one argument too many; usage: %s", word, p->set->usage);
        return list_add(&p->result->positional, &p->result->count_positional, word);
}

static int parse_word(struct parser *p, const char *word) {
        struct slice name, value_part;
        const char *inline_value = NULL;
        const struct option *o;
        bool negated = false;

        if (word[0] != '-' || !word[1])
                return add_positional(p, word);
        if (!strcmp(word, "-h") || !strcmp(word, "--help")) {
                p->result->help = true;
                return 0;
        }
        if (word[1] != '-') {
                for (size_t i = 0; i < p->set->count; i++)
                        if (p->set->options[i].letter && word[1] == p->set->options[i].letter)
                                return parse_option(p, &p->set->options[i], word[2] ? word + 2 : NULL, false);
                return error_set(p->e, -EINVAL, "unknown option %.100s; see --help", word);
        }
        value_part = slice_str(word + 2);
        slice_split(&value_part, '=', &name);
        if (value_part.ptr)
                inline_value = value_part.ptr;
        o = find_option(p->set, name, &negated);
        return o ? parse_option(p, o, inline_value, negated) : unknown(p, name);
}

int options_parse(const struct option_set *set, int argc, char **argv, void *target, struct options_result *ret_result,
    struct error *e) {
        struct options_result result = {0};
        struct parser p = {set, argc, 1, argv, target, &result, e};
        bool only_positional = false;
        int r = 0;

        for (; r == 0 && !result.help && p.at < argc; p.at++) {
                if (only_positional)
                        r = add_positional(&p, argv[p.at]);
                else if (!strcmp(argv[p.at], "--"))
                        only_positional = true;
                else
                        r = parse_word(&p, argv[p.at]);
        }
        if (r < 0) {
                options_result_free(&result);
                return r == -ENOMEM ? error_set(e, r, "out of memory") : r;
        }
        *ret_result = result;
        return 0;
}

void options_result_free(struct options_result *r) {
        free(r->positional);
        free(r->ignored);
        *r = (struct options_result){0};
}

void options_list_free(struct option_list *l) {
        free(l->items);
        *l = (struct option_list){0};
}

/* ---- help ----------------------------------------------------------------------------------------------------------- */

#define HELP_COLUMN 34u
#define HELP_WIDTH  100u

static void wrap(struct buf *out, const char *text, size_t column, size_t indent) {
        struct slice rest = slice_str(text), word;

        while (slice_split(&rest, ' ', &word)) {
                if (column + 1 + slice_characters(word) > HELP_WIDTH && column > indent) {
                        buf_printf(out, "\n%*s", (int)indent, "");
                        column = indent;
                } else if (column > indent) {
                        buf_add_char(out, ' ');
                        column++;
                }
                buf_add(out, word);
                column += slice_characters(word);
        }
        buf_add_char(out, '\n');
}

static const struct option help_option = {.name = "help", .letter = 'h', .kind = OPTION_FLAG, .help = "this text"};

void options_help(const struct option_set *set, struct buf *out) {
        buf_printf(out, "usage: %s\n\n", set->usage);
        if (set->about) {
                wrap(out, set->about, 0, 0);
                buf_add_char(out, '\n');
        }
        for (size_t i = 0; i < set->count + 1; i++) {
                const struct option *o = i < set->count ? &set->options[i] : &help_option;
                const char *value = o->value ? o->value : o->choices;
                size_t begin = out->len, column;

                if (!o->help)
                        continue;
                if (o->letter)
                        buf_printf(out, "  -%c, --%s", o->letter, o->name);
                else
                        buf_printf(out, "      --%s", o->name);
                if (o->kind != OPTION_FLAG && value)
                        buf_printf(out, " %s%s", value, o->kind == OPTION_LIST ? "…" : "");
                column = slice_characters(slice_sub(buf_slice(out), begin, out->len));
                if (column + 2 > HELP_COLUMN) {
                        buf_add_char(out, '\n');
                        column = 0;
                }
                buf_printf(out, "%*s", (int)(HELP_COLUMN - column), "");
                wrap(out, o->help, HELP_COLUMN, HELP_COLUMN);
        }
}

/* ---- nearest names ---------------------------------------------------------------------------------------------------- */

#define NAME_MAX_LEN 64u

size_t text_distance(struct slice a, struct slice b) {
        /* Damerau's distance with three rows: two edits of neighbours never overlap here. */
        size_t rows[3][NAME_MAX_LEN + 1];
        size_t *before = rows[0], *last = rows[1], *now = rows[2];

        if (a.len > NAME_MAX_LEN || b.len > NAME_MAX_LEN)
                return a.len > b.len ? a.len : b.len;
        for (size_t j = 0; j <= b.len; j++)
                last[j] = j;
        for (size_t i = 1; i <= a.len; i++) {
                size_t *spare;

                now[0] = i;
                for (size_t j = 1; j <= b.len; j++) {
                        bool same = fold(a.ptr[i - 1]) == fold(b.ptr[j - 1]);
                        size_t best = last[j - 1] + !same;

                        if (last[j] + 1 < best)
                                best = last[j] + 1;
                        if (now[j - 1] + 1 < best)
                                best = now[j - 1] + 1;
                        if (i > 1 && j > 1 && a.ptr[i - 1] == b.ptr[j - 2] && a.ptr[i - 2] == b.ptr[j - 1] &&
                            before[j - 2] + 1 < best)
                                best = before[j - 2] + 1;
                        now[j] = best;
                }
                spare = before;
                before = last;
                last = now;
                now = spare;
        }
        return last[b.len];
}

const char *text_nearest(struct slice given, const char *const *names, size_t count) {
        const char *nearest = NULL;
        size_t best = given.len / 3 + 2; /* more edits than that is another word */

        for (size_t i = 0; i < count; i++) {
                struct slice name = slice_str(names[i]);
                size_t distance = text_distance(given, name);

                /* A name that the given one begins is near too: --max-model for --max-model-len. */
                if (given.len >= 4 && slice_starts(name, given) && distance > 1)
                        distance = 1 + distance / 8;
                if (distance < best) {
                        best = distance;
                        nearest = names[i];
                }
        }
        return nearest;
}
