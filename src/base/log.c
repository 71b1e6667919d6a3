/* log.c - see log.h. */
#include "base/log.h"
#include "base/buf.h"
#include "base/clock.h"
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

static void write_whole(int fd, const char *text, size_t len) {
        while (len) {
                ssize_t n = write(fd, text, len);

                if (n < 0 && errno == EINTR)
                        continue;
                if (n <= 0)
                        return; /* nowhere to say that logging failed */
                text += n;
                len -= (size_t)n;
        }
}

/* Control characters would let a peer's text forge lines or drive the terminal. */
static void make_printable(char *text) {
        for (; *text; text++)
                if ((unsigned char)*text < 0x20 || *text == 0x7f)
                        *text = ' ';
}

static void format_human(struct buf *line, const struct log *l, enum log_level level, const char *message) {
        static const char *const colors[] = {"\033[2m", "", "\033[33m", "\033[31m"};
        time_t now = time(NULL);
        struct tm t;
        char clock[16];

        localtime_r(&now, &t);
        strftime(clock, sizeof(clock), "%H:%M:%S", &t);
        buf_printf(line, "%s%s %s%s%s%s%s\n", l->color ? colors[level] : "", clock, l->component ? l->component : "",
            l->component ? ": " : "",
            level == LOG_INFO    ? ""
            : level == LOG_DEBUG ? ""
                                 : names[level],
            level >= LOG_WARN ? ": " : "", message);
        if (l->color && *colors[level]) {
                line->len--;
                buf_add_str(line, "\033[0m\n");
        }
}

static void format_json(struct buf *line, const struct log *l, enum log_level level, const char *message) {
        struct json_writer w = {.out = line};
        char clock[CLOCK_TEXT_MAX];

        clock_text(clock_wall_ns(), clock);
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

void log_write(const struct log *l, enum log_level level, const char *format, ...) {
        char message[LOG_LINE_MAX];
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
                strcpy(message + sizeof(message) - sizeof("…"), "…");
        make_printable(message);
        if (l->format == LOG_HUMAN)
                format_human(&line, l, level, message);
        else
                format_json(&line, l, level, message);
        if (buf_ok(&line))
                write_whole(l->fd, line.ptr, line.len);
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
