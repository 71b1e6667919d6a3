/* fuzz_scan.c - the scanner against the parser: the same texts are objects, and edits of them stay objects. */
#include "base/json.h"
#include "openai/openai.h"
#include <errno.h>
#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
        static const struct openai_edit edits[] = {{"a", SLICE_LIT("1")}, {"b", SLICE_NONE}, {"n", SLICE_LIT("[2]")}};
        struct openai_member members[OPENAI_MEMBERS_MAX];
        struct slice text = slice_of(data, size), *parts;
        size_t count, at, part_count, bytes;
        struct arena arena = {0};
        struct buf out = {0};
        yyjson_doc *doc = NULL;
        bool is_object = json_parse(text, &doc, NULL) == 0 && yyjson_is_obj(yyjson_doc_get_root(doc));
        int r = openai_scan(text, members, OPENAI_MEMBERS_MAX, &count, &at);

        /* The parser also refuses what the scan leaves to the engine: invalid UTF-8, lone surrogates, huge numbers. */
        if (is_object && r < 0 && r != -E2BIG && !(size >= 3 && data[0] == 0xef))
                abort();
        if (r == 0) {
                if (openai_edit(text, members, count, edits, 3, &arena, &parts, &part_count, &bytes) < 0)
                        abort();
                for (size_t i = 0; i < part_count; i++)
                        buf_add(&out, parts[i]);
                if (out.len != bytes ||
                    openai_scan(buf_slice(&out), members, OPENAI_MEMBERS_MAX, &count, &at) == -EINVAL)
                        abort();
                for (size_t i = 0; i < count; i++)
                        openai_length(openai_inside(members[i].value));
        }
        yyjson_doc_free(doc);
        buf_free(&out);
        arena_free(&arena);
        return 0;
}
