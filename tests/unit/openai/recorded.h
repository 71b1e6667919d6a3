/* recorded.h - exchanges recorded from a real server (tests/data/vllm-http), one after the other. */
#pragma once
#include "base/json.h"
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

struct recorded {
        yyjson_doc *document;
        struct slice name, method, path, body, response;
        int64_t status;
};

struct recording {
        struct buf text;
        struct slice rest;
};

static inline void recording_open(struct recording *r, const char *name) {
        char path[4096];
        FILE *f;
        size_t n;

        *r = (struct recording){0};
        snprintf(path, sizeof(path), "%s/tests/data/vllm-http/%s.jsonl", getenv("BATON_SOURCE"), name);
        f = fopen(path, "r");
        assert_non_null(f);
        do {
                n = fread(buf_reserve(&r->text, 65536), 1, 65536, f);
                buf_commit(&r->text, n);
        } while (n > 0);
        fclose(f);
        r->rest = buf_slice(&r->text);
}

/* Free the document of each. */
static inline bool recording_next(struct recording *r, struct recorded *ret) {
        struct slice line;
        yyjson_val *root;

        if (!slice_split(&r->rest, '\n', &line) || line.len == 0)
                return false;
        assert_int_equal(json_parse(line, &ret->document, NULL), 0);
        root = yyjson_doc_get_root(ret->document);
        ret->name = json_get_slice(root, "name");
        ret->method = json_get_slice(root, "method");
        ret->path = json_get_slice(root, "path");
        ret->body = json_get_slice(root, "body");
        ret->response = json_get_slice(root, "response");
        ret->status = json_get_i64(root, "status", 0);
        return true;
}

static inline void recording_close(struct recording *r) {
        buf_free(&r->text);
}

static inline bool is_one_of(struct slice name, const char *const *names) {
        for (; *names; names++)
                if (slice_is(name, *names))
                        return true;
        return false;
}
