/* options.h - command line options from a table: parsing, help, and the nearest name for a wrong one.
 *
 * A command declares a table of rows; options_parse() fills the targets. Both `--name value` and `--name=value` work,
 * '-' and '_' in names are the same (as vLLM's parser has it), booleans take `--name` and `--no-name`. A word after an
 * option that wants a value is taken as one unless it begins with '-' and is no number; `--name=-x` always works. After
 * `--` all words are positional. When an option is given twice the last one counts. */
#pragma once
#include "base/error.h"
#include "base/slice.h"

enum option_kind {
        OPTION_FLAG,   /* bool; --no-name clears it */
        OPTION_STRING, /* const char *, points into argv */
        OPTION_INT,    /* int64_t within [min, max] */
        OPTION_SIZE,   /* int64_t; accepts 1k, 2K, 25.6k, 1M (k: 1000, K: 1024), as vLLM's human-readable integers */
        OPTION_DOUBLE, /* double */
        OPTION_LIST,   /* struct option_list: one or more values until the next option; repeats add */
        OPTION_IGNORED, /* known, without effect here: counted for one warning. With a placeholder in `value` it takes the
                           words up to the next option, without one it is a flag */
};

struct option_list {
        const char **items; /* owned, freed by options_list_free */
        size_t count;
};

struct option {
        const char *name; /* without dashes; aliases follow as rows with the same target and no help */
        char letter;      /* short form, or 0 */
        enum option_kind kind;
        size_t offset;       /* of the target in the command's options struct */
        const char *value;   /* placeholder for the help, such as "N" or "PATH" */
        const char *help;    /* NULL: not shown in the help */
        int64_t min, max;    /* OPTION_INT, OPTION_SIZE; both 0: any */
        const char *choices; /* OPTION_STRING: "a|b|c", NULL: any */
};

struct option_set {
        const char *usage; /* "baton serve MODEL [options]" */
        const char *about; /* a paragraph for --help */
        const struct option *options;
        size_t count;
        size_t max_positional;
};

struct options_result {
        const char **positional; /* owned, freed by options_result_free; points into argv */
        size_t count_positional;
        const char **ignored; /* names of OPTION_IGNORED options that were given */
        size_t count_ignored;
        bool help; /* --help or -h was met, what follows is not looked at: print options_help and end with 0 */
};

/* Fill `target` (the command's struct, already holding its defaults) from argv[1..argc-1].
 * Returns 0, or -EINVAL with a text that names the option and the nearest known one, or -ENOMEM. On errors too `target` may
 * be filled in part, and its lists are the caller's to free. */
int options_parse(const struct option_set *set, int argc, char **argv, void *target, struct options_result *ret_result,
    struct error *e);
void options_result_free(struct options_result *r);
void options_list_free(struct option_list *l);

struct buf;
void options_help(const struct option_set *set, struct buf *out);

/* Edit distance (insert, delete, replace, swap of neighbours) between two short names. */
size_t text_distance(struct slice a, struct slice b);
/* The nearest of `names` to `given`, or NULL when none is near enough to be worth saying. */
const char *text_nearest(struct slice given, const char *const *names, size_t count);
