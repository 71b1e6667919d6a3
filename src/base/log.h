/* log.h - one line per event: a human line on a terminal, one JSON object per line in a file or pipe.
 *
 * A struct log is made by the command (cli/) and passed to whatever logs; rooms below never choose where lines go.
 * Lines are written whole with one write(2), so that threads and processes may share a descriptor. A peer's text cannot
 * forge lines or drive the terminal: control characters become spaces. Secrets are the
 * caller's duty: keys, tokens and prompts are never passed here. */
#pragma once
#include "base/slice.h"

/* A whole line at most, so that the kernel writes it to a pipe in one piece (PIPE_BUF). Messages that do not fit are cut
 * and end in "…". */
#define LOG_LINE_MAX 4096

enum log_level { LOG_DEBUG, LOG_INFO, LOG_WARN, LOG_ERROR };
enum log_format { LOG_HUMAN, LOG_JSON };

struct log {
        int fd; /* -1: silent */
        enum log_level level;
        enum log_format format;
        bool color;
        const char *component; /* short borrowed text such as "gateway" or "d0.3", printed with every line */
};

/* Format by what fd is: a terminal gives LOG_HUMAN (colour unless NO_COLOR is set), anything else LOG_JSON. */
struct log log_to_fd(int fd, enum log_level level, const char *component);

/* A NULL log is silent. Any thread. */
void log_write(const struct log *l, enum log_level level, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

#define log_debug(l, ...) log_write((l), LOG_DEBUG, __VA_ARGS__)
#define log_info(l, ...)  log_write((l), LOG_INFO, __VA_ARGS__)
#define log_warn(l, ...)  log_write((l), LOG_WARN, __VA_ARGS__)
#define log_error(l, ...) log_write((l), LOG_ERROR, __VA_ARGS__)

/* "debug", "info", "warning"/"warn", "error"/"critical" in any case. Returns 0 or -EINVAL. */
int log_level_parse(struct slice text, enum log_level *ret_level);
