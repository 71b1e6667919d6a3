/* test_log.c - a line of log is whole, valid, bounded and cannot be forged. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "base/buf.h"
#include "base/json.h"
#include "base/log.h"
#include "failmalloc.h"
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

/* A log into a file without a name, and what it holds. */
struct sink {
        struct log log;
        struct buf text;
};

static void sink_open(struct sink *s, enum log_format format) {
        FILE *f = tmpfile();

        assert_non_null(f);
        *s = (struct sink){.log = log_to_fd(fcntl(fileno(f), F_DUPFD_CLOEXEC, 3), LOG_INFO, "part")};
        fclose(f);
        assert_true(s->log.fd >= 0);
        assert_int_equal(s->log.format, LOG_JSON); /* a file is no terminal */
        assert_false(s->log.color);
        s->log.format = format;
}

static struct slice sink_text(struct sink *s) {
        ssize_t n;

        buf_reset(&s->text);
        do {
                n = pread(s->log.fd, buf_reserve(&s->text, 65536), 65536, (off_t)s->text.len);
                assert_true(n >= 0);
                buf_commit(&s->text, (size_t)n);
        } while (n > 0);
        return buf_slice(&s->text);
}

static void sink_close(struct sink *s) {
        close(s->log.fd);
        buf_free(&s->text);
}

/* The message of one JSON line, which must be whole and within its bound; copied into `ret`. */
static void message_of(struct slice line, char ret[LOG_LINE_MAX]) {
        yyjson_doc *doc;
        struct slice message;

        assert_true(line.len < LOG_LINE_MAX); /* with its newline at most that */
        assert_int_equal(json_parse(line, &doc, NULL), 0);
        message = json_get_slice(yyjson_doc_get_root(doc), "message");
        assert_non_null(message.ptr);
        assert_int_equal(json_get_slice(yyjson_doc_get_root(doc), "time").len, 24);
        assert_true(slice_is(json_get_slice(yyjson_doc_get_root(doc), "component"), "part"));
        snprintf(ret, LOG_LINE_MAX, "%.*s", SLICE_ARG(message));
        yyjson_doc_free(doc);
}

static void one_event_is_one_json_object_on_one_line(void **state) {
        struct sink s;
        struct slice rest, line;
        char message[LOG_LINE_MAX];

        sink_open(&s, LOG_JSON);
        log_debug(&s.log, "below the level");
        log_info(&s.log, "said \"%s\"", "a\\b");
        log_error(&s.log, "%d", 42);
        rest = sink_text(&s);
        assert_true(slice_split(&rest, '\n', &line));
        assert_true(slice_find_slice(line, SLICE_LIT("\"level\":\"info\""), 0) < line.len);
        message_of(line, message);
        assert_string_equal(message, "said \"a\\b\"");
        assert_true(slice_split(&rest, '\n', &line));
        assert_true(slice_find_slice(line, SLICE_LIT("\"level\":\"error\""), 0) < line.len);
        message_of(line, message);
        assert_string_equal(message, "42");
        assert_int_equal(rest.len, 0);
        sink_close(&s);
}

static void a_peers_text_forges_no_line_and_drives_no_terminal(void **state) {
        static const enum log_format formats[] = {LOG_HUMAN, LOG_JSON};

        for (int f = 0; f < 2; f++) {
                struct sink s;
                struct slice text;

                sink_open(&s, formats[f]);
                for (int c = 1; c < 256; c++) {
                        char bad[4] = {(char)(c < 0x80 ? ' ' : 0xc2), (char)c, 'x', 0};

                        log_info(&s.log, "name is %s", bad);
                }
                text = sink_text(&s);
                for (size_t i = 0, lines = 0; i < text.len; i++) {
                        unsigned char c = (unsigned char)text.ptr[i];

                        lines += c == '\n';
                        assert_true(c == '\n' || (c >= 0x20 && c != 0x7f));
                        if (c == 0xc2)
                                assert_false((text.ptr[i + 1] & 0xe0) == 0x80);
                        if (i + 1 == text.len)
                                assert_int_equal(lines, 255);
                }
                sink_close(&s);
        }
}

static void lines_too_long_are_cut_between_characters(void **state) {
        static const char *const units[] = {"a", "é", "€", "😀", "\"", "\\", "\xff"};
        static const enum log_format formats[] = {LOG_HUMAN, LOG_JSON};

        for (int f = 0; f < 2; f++)
                for (size_t u = 0; u < sizeof(units) / sizeof(*units); u++)
                        for (size_t len = LOG_LINE_MAX - 160; len < LOG_LINE_MAX + 8; len += 1 + u % 3) {
                                struct buf long_text = {0};
                                char message[LOG_LINE_MAX];
                                struct sink s;
                                struct slice line;
                                bool cut;

                                while (long_text.len < len)
                                        buf_add_str(&long_text, units[u]);
                                sink_open(&s, formats[f]);
                                log_warn(&s.log, "%s", buf_cstr(&long_text));
                                line = sink_text(&s);
                                assert_true(line.len <= LOG_LINE_MAX);
                                assert_int_equal(line.ptr[line.len - 1], '\n');
                                line.len--;
                                if (formats[f] == LOG_JSON)
                                        message_of(line, message);
                                else {
                                        line = slice_sub(
                                            line, slice_find_slice(line, SLICE_LIT("warning: "), 0) + 9, line.len);
                                        snprintf(message, sizeof(message), "%.*s", SLICE_ARG(line));
                                }
                                cut = slice_ends(slice_str(message), SLICE_LIT("…"));
                                if (cut)
                                        message[strlen(message) - strlen("…")] = 0;
                                if (*units[u] != '\xff') { /* which JSON writes as U+FFFD */
                                        assert_true(strlen(message) % strlen(units[u]) == 0);
                                        assert_true(slice_starts(buf_slice(&long_text), slice_str(message)));
                                        assert_int_equal(cut, strlen(message) < long_text.len);
                                }
                                sink_close(&s);
                                buf_free(&long_text);
                        }
}

static void a_human_line_says_the_level_only_from_warning_on(void **state) {
        struct sink s;
        struct slice text;

        sink_open(&s, LOG_HUMAN);
        log_info(&s.log, "begun");
        log_warn(&s.log, "slow");
        text = sink_text(&s);
        assert_true(slice_ends(text, SLICE_LIT(" part: warning: slow\n")));
        assert_true(slice_find_slice(text, SLICE_LIT(" part: begun\n"), 0) < text.len);
        assert_int_equal(slice_find_slice(text, SLICE_LIT("info"), 0), text.len);
        s.log.color = true;
        s.log.component = NULL;
        log_error(&s.log, "red");
        text = sink_text(&s);
        assert_true(slice_ends(text, SLICE_LIT(" error: red\033[0m\n")));
        sink_close(&s);
}

static void nobody_listens_to_a_silent_log(void **state) {
        struct log silent = log_to_fd(-1, LOG_DEBUG, NULL);

        log_error(NULL, "nothing %s", "here");
        log_error(&silent, "nothing %s", "here");
}

static void levels_are_read_in_either_case(void **state) {
        static const struct {
                const char *text;
                enum log_level level;
        } cases[] = {{"debug", LOG_DEBUG}, {"INFO", LOG_INFO}, {"Warning", LOG_WARN}, {"warn", LOG_WARN},
            {"ERROR", LOG_ERROR}, {"critical", LOG_ERROR}};
        enum log_level level;

        for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
                assert_int_equal(log_level_parse(slice_str(cases[i].text), &level), 0);
                assert_int_equal(level, cases[i].level);
        }
        level = LOG_WARN;
        assert_int_equal(log_level_parse(SLICE_LIT("trace"), &level), -EINVAL);
        assert_int_equal(log_level_parse(SLICE_NONE, &level), -EINVAL);
        assert_int_equal(level, LOG_WARN);
}

static void the_message_is_written_even_without_memory(void **state) {
        struct sink s;
        struct slice text;

        sink_open(&s, LOG_JSON);
        failmalloc_from(0, 1000);
        log_error(&s.log, "out of %s", "memory");
        failmalloc_off();
        assert_true(failmalloc_failed());
        text = sink_text(&s);
        assert_true(slice_is(text, "out of memory\n"));
        sink_close(&s);
}

#define THREADS          4
#define LINES_PER_THREAD 500

static void *write_lines(void *log) {
        for (int i = 0; i < LINES_PER_THREAD; i++)
                log_info(log, "line %d %0*d", i, i % 200, 0);
        return NULL;
}

static void lines_of_several_threads_do_not_mix(void **state) {
        pthread_t threads[THREADS];
        struct sink s;
        struct slice rest, line;
        int lines = 0;

        sink_open(&s, LOG_JSON);
        fcntl(s.log.fd, F_SETFL, O_APPEND);
        for (int i = 0; i < THREADS; i++)
                assert_int_equal(pthread_create(&threads[i], NULL, write_lines, &s.log), 0);
        for (int i = 0; i < THREADS; i++)
                pthread_join(threads[i], NULL);
        rest = sink_text(&s);
        while (slice_split(&rest, '\n', &line) && line.len) {
                char message[LOG_LINE_MAX];

                message_of(line, message);
                lines++;
        }
        assert_int_equal(lines, THREADS * LINES_PER_THREAD);
        sink_close(&s);
}

int main(void) {
        const struct CMUnitTest tests[] = {
            cmocka_unit_test(one_event_is_one_json_object_on_one_line),
            cmocka_unit_test(a_peers_text_forges_no_line_and_drives_no_terminal),
            cmocka_unit_test(lines_too_long_are_cut_between_characters),
            cmocka_unit_test(a_human_line_says_the_level_only_from_warning_on),
            cmocka_unit_test(nobody_listens_to_a_silent_log),
            cmocka_unit_test(levels_are_read_in_either_case),
            cmocka_unit_test(the_message_is_written_even_without_memory),
            cmocka_unit_test(lines_of_several_threads_do_not_mix),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
