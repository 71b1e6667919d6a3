/* test_options.c - the command line: every spelling means the same, wrong words are named with the nearest right one. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "base/buf.h"
#include "base/options.h"
#include "base/rng.h"
#include "failmalloc.h"
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

struct target {
        bool flag, no_start;
        const char *text, *choice;
        int64_t number, any, size;
        double real;
        struct option_list list;
};

#define AT(member) offsetof(struct target, member)

static const struct option rows[] = {
    {"enable-flag", 'f', OPTION_FLAG, AT(flag), NULL, "switch it on"},
    {"no-start", 0, OPTION_FLAG, AT(no_start), NULL, "a flag whose own name begins with no-"},
    {"text", 't', OPTION_STRING, AT(text), "TEXT", "any text"},
    {"words", 0, OPTION_STRING, AT(text), NULL, NULL},
    {"choice", 0, OPTION_STRING, AT(choice), NULL, "one of three", 0, 0, "auto|on|off"},
    {"max-model-len", 'n', OPTION_SIZE, AT(size), "N", "a size with letters", 1, 1 << 30},
    {"number", 0, OPTION_INT, AT(number), "N", "a number from -5 to 5", -5, 5},
    {"any-number", 0, OPTION_INT, AT(any), "N", "any number"},
    {"real", 0, OPTION_DOUBLE, AT(real), "X",
        "a real number, with a help that is so long that it must be wrapped once or twice before it ends, whatever the "
        "width of the terminal may be"},
    {"list", 'l', OPTION_LIST, AT(list), "A", "some words"},
    {"an-option-whose-name-is-rather-long", 0, OPTION_FLAG, AT(flag), NULL, "its help begins on the next line"},
    {"gpu-memory-utilization", 0, OPTION_IGNORED, 0, "X", NULL},
    {"enforce-eager", 0, OPTION_IGNORED, 0, NULL, NULL},
};
static const struct option_set set = {
    "baton test MODEL [options]", "A command that tests.", rows, sizeof(rows) / sizeof(*rows), 2};

#define ARGV_MAX 12

struct parsed {
        struct target target;
        struct options_result result;
        struct error e;
        int r;
};

/* Parses words that are separated by spaces. */
static struct parsed parse(const char *line) {
        static char text[512];
        char *argv[ARGV_MAX + 1] = {"test"}, *save;
        struct parsed p = {.target = {.size = -7, .real = -7}};
        int argc = 1;

        assert_true(strlen(line) < sizeof(text));
        strcpy(text, line);
        for (char *word = strtok_r(text, " ", &save); word; word = strtok_r(NULL, " ", &save)) {
                assert_true(argc < ARGV_MAX);
                argv[argc++] = word;
        }
        p.r = options_parse(&set, argc, argv, &p.target, &p.result, &p.e);
        assert_true(p.r == 0 || p.r == -EINVAL);
        assert_int_equal(p.r == 0, p.e.text[0] == 0);
        return p;
}

static void done(struct parsed *p) {
        options_list_free(&p->target.list);
        if (p->r == 0)
                options_result_free(&p->result);
}

static void refused(const char *line, const char *say) {
        struct parsed p = parse(line);

        assert_int_equal(p.r, -EINVAL);
        if (!strstr(p.e.text, say))
                fail_msg("%s: %s", line, p.e.text);
        done(&p);
}

static void every_spelling_means_the_same(void **state) {
        static const char *const lines[] = {"--max-model-len 2048", "--max_model_len 2048", "--max-model_len=2048",
            "-n 2048", "-n2048", "--max-model-len 2K", "--max-model-len=2.048k",
            "--max-model-len 1 --max-model-len 2048"};

        for (size_t i = 0; i < sizeof(lines) / sizeof(*lines); i++) {
                struct parsed p = parse(lines[i]);

                assert_int_equal(p.r, 0);
                assert_int_equal(p.target.size, 2048);
                done(&p);
        }
}

static void flags_are_set_and_cleared(void **state) {
        static const struct {
                const char *line;
                bool flag, no_start;
        } cases[] = {{"", false, false}, {"--enable-flag", true, false}, {"--enable_flag=TRUE", true, false},
            {"-f", true, false}, {"--enable-flag --no-enable-flag", false, false},
            {"--no_enable_flag --enable-flag", true, false}, {"--enable-flag=false", false, false},
            {"--no-start", false, true}, {"--no-start --no-no-start", false, false}};

        for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
                struct parsed p = parse(cases[i].line);

                assert_int_equal(p.r, 0);
                assert_int_equal(p.target.flag, cases[i].flag);
                assert_int_equal(p.target.no_start, cases[i].no_start);
                done(&p);
        }
        refused("--enable-flag=yes", "true or false");
        refused("--no-enable-flag=true", "true or false");
        refused("--no-text", "unknown option --no-text");
}

static void sizes_take_letters(void **state) {
        static const struct {
                const char *line;
                int64_t size;
        } cases[] = {{"-n 1", 1}, {"-n 1k", 1000}, {"-n 1K", 1024}, {"-n 25.6k", 25600}, {"-n 0.57k", 570},
            {"-n 1m", 1000000}, {"-n 1M", 1 << 20}, {"-n 1g", 1000000000}, {"-n 1G", 1 << 30}, {"-n 1e3k", 1000000}};

        for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
                struct parsed p = parse(cases[i].line);

                assert_int_equal(p.r, 0);
                assert_int_equal(p.target.size, cases[i].size);
                done(&p);
        }
        refused("-n 0", "out of range 1..1073741824");
        refused("-n 2G", "out of range");
        refused("-n 99999999999999999999", "not a number");
        refused("-n 99999999T", "not a number");
        refused("-n 1.5", "not a number");
        refused("-n k", "not a number");
        refused("-n 1kk", "not a number");
        refused("-n 1x", "`1x` is not a number");
        refused("-n infk", "not a number");
}

static void numbers_keep_their_range(void **state) {
        struct parsed p = parse("--number -5 --any-number -9223372036854775808 --real -1.5e-3");

        assert_int_equal(p.r, 0);
        assert_int_equal(p.target.number, -5);
        assert_true(p.target.any == INT64_MIN);
        assert_true(p.target.real == -1.5e-3);
        done(&p);
        refused("--number 6", "--number: 6 is out of range -5..5");
        refused("--number -6", "out of range");
        refused("--number 1k", "not a whole number");
        refused("--number 1.0", "not a whole number");
        refused("--real nan", "`nan` is not a number");
        refused("--real", "--real needs a value: X");
        refused("--real --text x", "--real needs a value");
        refused("--number=", "`` is not a whole number");
}

static void texts_and_choices_are_kept_as_they_are(void **state) {
        struct parsed p = parse("--text=--x=y --choice off");

        assert_int_equal(p.r, 0);
        assert_string_equal(p.target.text, "--x=y");
        assert_string_equal(p.target.choice, "off");
        done(&p);
        p = parse("--words a -tb");
        assert_string_equal(p.target.text, "b");
        done(&p);
        p = parse("--text -"); /* a lone dash is a word */
        assert_string_equal(p.target.text, "-");
        done(&p);
        p = parse("--text=");
        assert_string_equal(p.target.text, "");
        done(&p);
        refused("--choice of", "`of` is none of auto|on|off");
        refused("--choice auto|on", "is none of");
        refused("--text -x", "--text needs a value");
}

static void lists_gather_words(void **state) {
        struct parsed p = parse("--list a b -l c --text t --list=d model");

        assert_int_equal(p.r, 0);
        assert_int_equal(p.target.list.count, 4);
        for (size_t i = 0; i < 4; i++)
                assert_int_equal(p.target.list.items[i][0], "abcd"[i]);
        assert_int_equal(p.result.count_positional, 1);
        assert_string_equal(p.result.positional[0], "model");
        done(&p);
        refused("--list", "--list needs a value");
}

static void words_without_a_dash_are_positional(void **state) {
        struct parsed p = parse("one --enable-flag - --");

        assert_int_equal(p.result.count_positional, 2);
        assert_string_equal(p.result.positional[0], "one");
        assert_string_equal(p.result.positional[1], "-");
        done(&p);
        p = parse("-- --text -f");
        assert_int_equal(p.result.count_positional, 2);
        assert_string_equal(p.result.positional[1], "-f");
        assert_false(p.target.flag);
        done(&p);
        refused("a b c", "`c` is one argument too many; usage: baton test MODEL [options]");
        refused("-- a b c", "`c` is one argument too many");
}

static void ignored_options_are_counted_and_take_their_words(void **state) {
        struct parsed p =
            parse("--enforce-eager model --gpu-memory-utilization 0.9 --no-enforce-eager --enforce_eager=1");

        assert_int_equal(p.r, 0);
        assert_int_equal(p.result.count_positional, 1); /* --enforce-eager takes no word */
        assert_int_equal(p.result.count_ignored, 4);
        assert_string_equal(p.result.ignored[0], "enforce-eager");
        assert_string_equal(p.result.ignored[1], "gpu-memory-utilization");
        done(&p);
}

static void help_ends_the_reading(void **state) {
        struct parsed p = parse("--number 3 --help --no-such-option");

        assert_int_equal(p.r, 0);
        assert_true(p.result.help);
        assert_int_equal(p.target.number, 3);
        done(&p);
        p = parse("-h");
        assert_true(p.result.help);
        done(&p);
        p = parse("-- -h");
        assert_false(p.result.help);
        done(&p);
}

static void wrong_names_are_answered_with_the_nearest(void **state) {
        refused("--max-modl-len 5", "unknown option --max-modl-len, did you mean --max-model-len?");
        refused("--max-model 5", "did you mean --max-model-len?");
        refused("--MAX-MODEL-LEN 5", "unknown option --MAX-MODEL-LEN");
        refused("--enforce-eagre", "did you mean --enforce-eager?");
        refused("--xyzzy", "unknown option --xyzzy; see --help");
        refused("--=x", "unknown option --");
        refused("-z", "unknown option -z");
}

static void any_words_parse_or_fail_with_a_text(void **state) {
        static const char *const words[] = {"--", "-", "--text", "--list", "-l", "-f", "--enable-flag=true", "--number",
            "-3", "5", "--no-enable-flag", "--real=", "--gpu-memory-utilization", "1k", "x", "--=", "---", "-n",
            "--max_model_len", "-\xff", "--\xff\xfe", "--no-", "--no", "--choice=on"};
        struct rng r;

        rng_seed(&r, 1);
        for (int i = 0; i < 30000; i++) {
                char line[400] = "";
                struct parsed p;

                for (uint64_t n = rng_below(&r, ARGV_MAX); n; n--) {
                        strcat(line, words[rng_below(&r, sizeof(words) / sizeof(*words))]);
                        strcat(line, " ");
                }
                p = parse(line);
                done(&p);
        }
}

static void the_help_shows_each_option_once_and_fits(void **state) {
        struct buf out = {0};
        struct slice rest, line;

        options_help(&set, &out);
        rest = buf_slice(&out);
        while (slice_split(&rest, '\n', &line)) {
                size_t columns = 0;

                for (size_t i = 0; i < line.len; i++)
                        columns += (line.ptr[i] & 0xc0) != 0x80;
                assert_true(columns <= 100);
        }
        rest = buf_slice(&out);
        for (size_t i = 0; i < set.count; i++) {
                char name[64];
                size_t at;

                snprintf(name, sizeof(name), "--%s%s", rows[i].name, rows[i].kind == OPTION_FLAG ? "\n" : " ");
                if (rows[i].kind == OPTION_FLAG && strlen(rows[i].name) < 30)
                        name[strlen(name) - 1] = ' ';
                at = slice_find_slice(rest, slice_str(name), 0);
                assert_int_equal(at < rest.len, rows[i].help != NULL);
                if (rows[i].help) {
                        assert_int_equal(slice_find_slice(rest, slice_str(name), at + 1), rest.len);
                        assert_true(slice_find_slice(rest, slice_sub(slice_str(rows[i].help), 0, 20), at) < rest.len);
                }
        }
        assert_true(slice_find_slice(rest, SLICE_LIT("--help"), 0) < rest.len);
        assert_true(slice_find_slice(rest, SLICE_LIT("auto|on|off"), 0) < rest.len);
        buf_free(&out);
}

static void distance_is_the_number_of_edits(void **state) {
        static const struct {
                const char *a, *b;
                size_t distance;
        } cases[] = {{"", "", 0}, {"", "abc", 3}, {"abc", "abc", 0}, {"abc", "acb", 1}, {"abc", "ab", 1},
            {"abc", "xbc", 1}, {"abc", "abxc", 1}, {"kitten", "sitting", 3}, {"a_b", "a-b", 0}};
        struct rng r;

        for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++)
                assert_int_equal(text_distance(slice_str(cases[i].a), slice_str(cases[i].b)), cases[i].distance);
        rng_seed(&r, 2);
        for (int i = 0; i < 5000; i++) {
                char a[80], b[80];
                size_t la = rng_below(&r, 70), lb = rng_below(&r, 70), d;

                for (size_t j = 0; j < la; j++)
                        a[j] = (char)('a' + rng_below(&r, 3));
                for (size_t j = 0; j < lb; j++)
                        b[j] = (char)('a' + rng_below(&r, 3));
                d = text_distance(slice_of(a, la), slice_of(b, lb));
                assert_int_equal(d, text_distance(slice_of(b, lb), slice_of(a, la)));
                assert_true(d <= (la > lb ? la : lb) && d >= (la > lb ? la - lb : lb - la));
        }
}

static void the_nearest_name_is_near(void **state) {
        static const char *const names[] = {"serve", "gateway", "status", "version"};

        assert_string_equal(text_nearest(SLICE_LIT("sevre"), names, 4), "serve");
        assert_string_equal(text_nearest(SLICE_LIT("stat"), names, 4), "status");
        assert_null(text_nearest(SLICE_LIT("explode"), names, 4));
        assert_null(text_nearest(SLICE_LIT("x"), names, 4));
        assert_null(text_nearest(SLICE_LIT("serve"), names, 0));
}

static void out_of_memory_is_said(void **state) {
        char *argv[] = {"test", "one", "--list", "a", "b", "--enforce-eager", NULL};
        long n = 0;
        int r;

        do {
                struct target t = {0};
                struct options_result result = {0};
                struct error e = {0};

                failmalloc_from(n++, 0);
                r = options_parse(&set, 6, argv, &t, &result, &e);
                failmalloc_off();
                assert_int_equal(r, failmalloc_failed() ? -ENOMEM : 0);
                assert_int_equal(e.text[0] != 0, failmalloc_failed());
                options_list_free(&t.list);
                options_result_free(&result);
        } while (failmalloc_failed());
        assert_true(n > 3);
}

int main(void) {
        const struct CMUnitTest tests[] = {
            cmocka_unit_test(every_spelling_means_the_same),
            cmocka_unit_test(flags_are_set_and_cleared),
            cmocka_unit_test(sizes_take_letters),
            cmocka_unit_test(numbers_keep_their_range),
            cmocka_unit_test(texts_and_choices_are_kept_as_they_are),
            cmocka_unit_test(lists_gather_words),
            cmocka_unit_test(words_without_a_dash_are_positional),
            cmocka_unit_test(ignored_options_are_counted_and_take_their_words),
            cmocka_unit_test(help_ends_the_reading),
            cmocka_unit_test(wrong_names_are_answered_with_the_nearest),
            cmocka_unit_test(any_words_parse_or_fail_with_a_text),
            cmocka_unit_test(the_help_shows_each_option_once_and_fits),
            cmocka_unit_test(distance_is_the_number_of_edits),
            cmocka_unit_test(the_nearest_name_is_near),
            cmocka_unit_test(out_of_memory_is_said),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
