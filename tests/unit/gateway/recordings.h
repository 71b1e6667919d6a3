/* recordings.h - reading tests/data/gateway for the tests of this folder. */
#pragma once
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "base/json.h"
#include <stdio.h>
#include <stdlib.h>

static inline yyjson_doc *read_recording(const char *name) {
        const char *source = getenv("BATON_SOURCE");
        struct error e = {0};
        yyjson_doc *doc;
        char path[512];

        snprintf(path, sizeof(path), "%s/tests/data/gateway/%s", source ? source : ".", name);
        if (json_parse_file(path, 8 << 20, &doc, &e) < 0)
                fail_msg("%s", e.text);
        return doc;
}

static inline yyjson_doc *parse_text(struct slice text) {
        struct error e = {0};
        yyjson_doc *doc;

        if (json_parse(text, &doc, &e) < 0)
                fail_msg("%s in %.*s", e.text, SLICE_ARG(text));
        return doc;
}
