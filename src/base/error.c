/* error.c - see error.h. */
#include "base/error.h"
#include <stdio.h>
#include <string.h>

int error_set(struct error *e, int code, const char *format, ...) {
        struct error made;
        va_list args;

        if (!e)
                return code;
        va_start(args, format);
        vsnprintf(made.text, sizeof(made.text), format, args);
        va_end(args);
        strcpy(e->text, made.text);
        return code;
}

int error_prefix(struct error *e, int code, const char *format, ...) {
        struct error context, whole;
        va_list args;

        if (!e)
                return code;
        va_start(args, format);
        vsnprintf(context.text, sizeof(context.text), format, args);
        va_end(args);
        snprintf(whole.text, sizeof(whole.text), "%.400s: %.600s", context.text, error_text(e, code));
        *e = whole;
        return code;
}

const char *error_text(const struct error *e, int code) {
        if (e && e->text[0])
                return e->text;
        return strerror(code < 0 ? -code : code);
}
