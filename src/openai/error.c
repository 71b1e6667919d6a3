/* error.c - error bodies in vLLM's shape. */
#include "base/json.h"
#include "openai/openai.h"
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>

int openai_fail(struct openai_error *err, int status, const char *type, const char *param, const char *format, ...) {
        va_list args;

        err->status = status;
        err->type = type;
        snprintf(err->param, sizeof(err->param), "%s", param ? param : "");
        va_start(args, format);
        vsnprintf(err->message, sizeof(err->message), format, args);
        va_end(args);
        return -EINVAL;
}

void openai_write_error(struct buf *b, const struct openai_error *err) {
        struct json_writer w = {.out = b};

        json_open(&w, '{');
        json_key(&w, "error");
        json_open(&w, '{');
        json_key(&w, "message");
        json_str(&w, err->message);
        json_key(&w, "type");
        json_str(&w, err->type);
        json_key(&w, "param");
        json_str(&w, err->param[0] ? err->param : NULL);
        json_key(&w, "code");
        json_i64(&w, err->status);
        json_close(&w, '}');
        json_close(&w, '}');
}
