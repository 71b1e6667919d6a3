/* log.c - see log.h. */
#include "base/log.h"
#include "base/buf.h"
#include "base/clock.h"
#include "base/file.h"
#include "base/json.h"
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

static const char *const names[] = {"debug", "info", "warning", "error"};

struct log log_to_fd(int fd, enum log_level level, const char *component) {
        bool terminal = isatty(fd) == 1;

        return (struct log){.fd = fd,
            .level = level,
            .format = terminal ? LOG_HUMAN : LOG_JSON,
            .color = terminal && !getenv("NO_COLOR"),
            .component = component};
}

/* Control characters would let a peer's text forge lines or drive the terminal; U+0080..U+009F do so too in UTF-8. */
static void make_printable(char *text) {
        for (unsigned char *c = (unsigned char *)text; *c; c++) {
                if (*c < 0x20 || *c == 0x7f)
                        *c = ' ';
                else if (*c == 0xc2 && c[1] >= 0x80 && c[1] <= 0x9f)
                        c[0] = c[1] = ' ';
        }
}

/* Shorten to at most `len` bytes, "…" included, at the border of a character. */
static void cut(char *text, size_t len) {
        len = len > sizeof("…") - 1 ? len - (sizeof("…") - 1) : 0;
        while (len && ((unsigned char)text[len] & 0xc0) == 0x80)
                len--;
        strcpy(text + len, "…");
}

static void format_human(struct buf *line, const struct log *l, enum log_level level, time_t now, const char *message) {
        static const char *const colors[] = {"\033[2m", "", "\033[33m", "\033[31m"};
        const char *color = l->color ? colors[level] : "";
        char clock[16] = "";
        struct tm t;

        if (localtime_r(&now, &t))
                strftime(clock, sizeof(clock), "%H:%M:%S ", &t);
        buf_add_str(line, color);
        buf_add_str(line, clock);
        if (l->component)
                buf_printf(line, "%s: ", l->component);
        if (level >= LOG_WARN)
                buf_printf(line, "%s: ", names[level]);
        buf_add_str(line, message);
        if (*color)
                buf_add_str(line, "\033[0m");
        buf_add_char(line, '\n');
}

static void format_json(
    struct buf *line, const struct log *l, enum log_level level, uint64_t wall_ns, const char *message) {
        struct json_writer w = {.out = line};
        char clock[CLOCK_TEXT_MAX];

        clock_text(wall_ns, clock);
        json_open(&w, '{');
        json_key(&w, "time");
        json_str(&w, clock);
        json_key(&w, "level");
        json_str(&w, names[level]);
        if (l->component) {
                json_key(&w, "component");
                json_str(&w, l->component);
        }
        json_key(&w, "message");
        json_str(&w, message);
        json_close(&w, '}');
        buf_add_char(line, '\n');
}

static void format_line(
    struct buf *line, const struct log *l, enum log_level level, uint64_t wall_ns, const char *message) {
        buf_reset(line);
        if (l->format == LOG_HUMAN)
                format_human(line, l, level, (time_t)(wall_ns / NS_PER_S), message);
        else
                format_json(line, l, level, wall_ns, message);
}

void log_write(const struct log *l, enum log_level level, const char *format, ...) {
        char message[LOG_LINE_MAX];
        uint64_t now;
        struct buf line = {0};
        va_list args;
        int n;

        if (!l || l->fd < 0 || level < l->level)
                return;
        va_start(args, format);
        n = vsnprintf(message, sizeof(message), format, args);
        va_end(args);
        if (n < 0)
                return;
        if ((size_t)n >= sizeof(message))
                cut(message, sizeof(message) - 1);
        make_printable(message);
        now = clock_wall_ns();
        format_line(&line, l, level, now, message);
        if (line.len > LOG_LINE_MAX) {
                /* Every byte of the message makes at least one of the line, so that this cuts enough. */
                size_t excess = line.len - LOG_LINE_MAX, len = strlen(message);

                cut(message, len > excess ? len - excess : 0);
                format_line(&line, l, level, now, message);
        }
        /* When it fails there is nowhere to say so. */
        if (buf_ok(&line))
                file_write_fd(l->fd, buf_slice(&line));
        else { /* out of memory, which is when a word matters: without its dress */
                size_t len = strlen(message);

                message[len] = '\n'; /* where the NUL was */
                file_write_fd(l->fd, slice_of(message, len + 1));
        }
        buf_free(&line);
}

int log_level_parse(struct slice text, enum log_level *ret_level) {
        if (slice_is_icase(text, "warn")) {
                *ret_level = LOG_WARN;
                return 0;
        }
        if (slice_is_icase(text, "critical")) { /* Python's word for what is above error */
                *ret_level = LOG_ERROR;
                return 0;
        }
        for (int i = 0; i < 4; i++)
                if (slice_is_icase(text, names[i])) {
                        *ret_level = (enum log_level)i;
                        return 0;
                }
        return -EINVAL;
}
