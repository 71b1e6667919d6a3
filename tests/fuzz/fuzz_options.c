/* fuzz_options.c - any command line parses or fails with a text. The input's lines are the words. */
#include "base/buf.h"
#include "base/options.h"
#include <errno.h>
#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define WORDS_MAX 64

struct target {
        bool flag;
        const char *text, *choice;
        int64_t number, size;
        double real;
        struct option_list list;
};

#define AT(member) offsetof(struct target, member)

static const struct option rows[] = {
    {"enable-prefix-caching", 'f', OPTION_FLAG, AT(flag), NULL, "a flag"},
    {"text", 't', OPTION_STRING, AT(text), "TEXT", "any text"},
    {"dtype", 0, OPTION_STRING, AT(choice), NULL, "one of some", 0, 0, "auto|float32|bfloat16"},
    {"max-model-len", 0, OPTION_SIZE, AT(size), "N", "a size", 1, 1 << 30},
    {"seed", 0, OPTION_INT, AT(number), "N", "a number"},
    {"temperature", 0, OPTION_DOUBLE, AT(real), "X", "a real number"},
    {"served-model-name", 'l', OPTION_LIST, AT(list), "NAME", "names"},
    {"gpu-memory-utilization", 0, OPTION_IGNORED, 0, "X", NULL},
    {"enforce-eager", 0, OPTION_IGNORED, 0, NULL, NULL},
};
static const struct option_set set = {"baton fuzz MODEL", NULL, rows, sizeof(rows) / sizeof(*rows), 2};

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
        struct slice rest = slice_of(data, size), word;
        char *argv[WORDS_MAX + 1] = {(char *)(uintptr_t) "fuzz"};
        struct target target = {.size = 1};
        struct options_result result = {0};
        struct error e = {0};
        int argc = 1, r;

        while (argc < WORDS_MAX && slice_split(&rest, '\n', &word)) {
                argv[argc] = slice_dup(word); /* a NUL inside ends the word, as it would in a real one */
                if (!argv[argc])
                        abort();
                argc++;
        }
        r = options_parse(&set, argc, argv, &target, &result, &e);
        if ((r != 0 && r != -EINVAL) || (r == 0) != (e.text[0] == 0))
                abort();
        if (r == 0 && (target.size < 1 || target.size > 1 << 30 || result.count_positional > 2))
                abort();
        options_list_free(&target.list);
        options_result_free(&result);
        while (--argc > 0)
                free(argv[argc]);
        return 0;
}
