/* vectors.h - tests/data/kernels/quant.safetensors: quantisation vectors of an independent implementation. */
#pragma once
#include "base/json.h"
#include "common.h"
#include <stdio.h>

struct vectors {
        char *file;
        yyjson_doc *doc;
        const char *data;
};

static inline struct vectors open_vectors(void) {
        const char *source = getenv("BATON_SOURCE");
        char path[4096];
        struct vectors v;
        struct error e;
        uint64_t header;
        FILE *f;

        snprintf(path, sizeof(path), "%s/tests/data/kernels/quant.safetensors", source ? source : ".");
        f = fopen(path, "rb");
        if (!f)
                fail_msg("cannot open %s", path);
        v.file = alloc(1 << 20);
        assert_true(fread(v.file, 1, 1 << 20, f) > 8);
        fclose(f);
        memcpy(&header, v.file, 8);
        assert_int_equal(json_parse((struct slice){v.file + 8, header}, &v.doc, &e), 0);
        v.data = v.file + 8 + header;
        return v;
}

static inline void close_vectors(struct vectors *v) {
        yyjson_doc_free(v->doc);
        free(v->file);
}

/* A tensor's elements, aligned; free it. */
static inline void *tensor(const struct vectors *v, const char *name, size_t *ret_bytes) {
        yyjson_val *t = json_get(yyjson_doc_get_root(v->doc), name), *offsets = json_get(t, "data_offsets");
        int64_t from, to;
        void *copy;

        if (!t)
                fail_msg("no tensor %s", name);
        assert_int_equal(json_to_i64(yyjson_arr_get(offsets, 0), &from), 0);
        assert_int_equal(json_to_i64(yyjson_arr_get(offsets, 1), &to), 0);
        copy = alloc((size_t)(to - from));
        memcpy(copy, v->data + from, (size_t)(to - from));
        if (ret_bytes)
                *ret_bytes = (size_t)(to - from);
        return copy;
}
