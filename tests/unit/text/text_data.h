/* text_data.h - the data of tests/data/text for the tests of this room: files, lines of JSON, the recorded tokenizers. */
#pragma once
#include "base/arena.h"
#include "base/json.h"
#include "text/tokenizer.h"
#include <stdio.h>
#include <stdlib.h>

static inline const char *data_path(struct arena *a, const char *name) {
        return arena_printf(a, "%s/tests/data/text/%s", getenv("BATON_SOURCE"), name);
}

/* A whole file, unpacked when it is NAME.xz. */
static inline struct slice read_data(struct arena *a, const char *name) {
        const char *path = data_path(a, name);
        bool packed = slice_ends(slice_str(name), SLICE_LIT(".xz"));
        FILE *f = packed ? popen(arena_printf(a, "xz -dc '%s'", path), "r") : fopen(path, "r");
        struct buf b = {0};
        struct slice s;

        assert_non_null(f);
        for (;;) {
                size_t n = fread(buf_reserve(&b, 1 << 16), 1, 1 << 16, f);

                if (n == 0)
                        break;
                buf_commit(&b, n);
        }
        assert_int_equal(packed ? pclose(f) : fclose(f), 0);
        s = arena_copy(a, buf_slice(&b));
        buf_free(&b);
        return s;
}

/* The next line of JSON, or NULL at the end. Free it with yyjson_doc_free(). */
static inline yyjson_doc *next_line(struct slice *rest) {
        struct slice line;
        yyjson_doc *doc;

        do
                if (!slice_split(rest, '\n', &line))
                        return NULL;
        while (line.len == 0);
        assert_int_equal(json_parse(line, &doc, NULL), 0);
        return doc;
}

/* The recorded tokenizers: "tiny-v2", "tiny-v3", "deepseek-v2", "deepseek-v3", and those that are V3's with other added
 * tokens, "deepseek-r1", "deepseek-v3.1". */
static inline struct tokenizer *load_recorded(const char *name) {
        struct arena a = {0};
        bool tiny = slice_starts(slice_str(name), SLICE_LIT("tiny"));
        bool derived = strcmp(name, "deepseek-r1") == 0 || strcmp(name, "deepseek-v3.1") == 0;
        struct slice json =
            read_data(&a, arena_printf(&a, tiny ? "tokenizer/%s.tokenizer.json" : "tokenizer/%s.tokenizer.json.xz",
                              derived ? "deepseek-v3" : name));
        struct slice config = read_data(&a, arena_printf(&a, "tokenizer/%s.tokenizer_config.json",
                                                strcmp(name, "tiny-v2") == 0   ? "deepseek-v2"
                                                : strcmp(name, "tiny-v3") == 0 ? "deepseek-v3"
                                                                               : name));
        struct tokenizer *t = NULL;
        struct error e = {0};

        if (derived) {
                yyjson_doc *base = yyjson_read(json.ptr, json.len, 0), *change;
                yyjson_mut_doc *merged = yyjson_doc_mut_copy(base, NULL);
                struct slice text = read_data(&a, arena_printf(&a, "tokenizer/%s.added_tokens.json", name));
                size_t i, max, len;
                yyjson_val *v;
                char *written;

                assert_int_equal(json_parse(text, &change, NULL), 0);
                yyjson_arr_foreach(json_get(yyjson_doc_get_root(change), "replace_added_tokens_by_id"), i, max, v) {
                        yyjson_mut_val *list = yyjson_mut_obj_get(yyjson_mut_doc_get_root(merged), "added_tokens");
                        yyjson_mut_arr_iter iter;
                        yyjson_mut_val *old;

                        yyjson_mut_arr_iter_init(list, &iter);
                        while ((old = yyjson_mut_arr_iter_next(&iter)))
                                if (yyjson_mut_get_int(yyjson_mut_obj_get(old, "id")) ==
                                    yyjson_get_int(json_get(v, "id"))) {
                                        yyjson_mut_arr_iter_remove(&iter);
                                        yyjson_mut_arr_append(list, yyjson_val_mut_copy(merged, v));
                                        break;
                                }
                }
                written = yyjson_mut_write(merged, 0, &len);
                json = arena_copy(&a, slice_of(written, len));
                free(written);
                yyjson_mut_doc_free(merged);
                yyjson_doc_free(base);
                yyjson_doc_free(change);
        }
        if (tokenizer_parse(json, config, &t, &e) < 0)
                fail_msg("%s: %s", name, e.text);
        arena_free(&a);
        return t;
}
