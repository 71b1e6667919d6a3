/* error.h - the text of an error, made once at the edge where all facts are known.
 *
 * Functions return 0 or a negative errno; those that can fail in ways a person must understand also take a
 * struct error *. The text says what happened, where, and what to do; the caller may put its own words in front. */
#pragma once
#include <stdarg.h>
#include <stddef.h>

struct error {
        char text[1024]; /* NUL-terminated; empty when nothing was said */
};

/* Set the text and return `code`, so that a failing function can `return error_set(e, -EINVAL, "…")`. e may be NULL; the
 * arguments may include the text that e holds. Beyond the room in e the text is cut. */
int error_set(struct error *e, int code, const char *format, ...) __attribute__((format(printf, 3, 4)));
/* Put "context: " in front of the text that is there, and return `code`. */
int error_prefix(struct error *e, int code, const char *format, ...) __attribute__((format(printf, 3, 4)));
/* The text, or the system's word for `code` when nothing was said. */
const char *error_text(const struct error *e, int code);
