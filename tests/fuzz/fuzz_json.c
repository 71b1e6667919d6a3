/* fuzz_json.c - what json_add_string writes reads back as the same text, and any bytes parse or fail cleanly. */
#include "base/json.h"
#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
        struct slice input = slice_of(data, size), read;
        struct buf once = {0}, twice = {0};
        yyjson_doc *doc = NULL;

        if (json_parse(input, &doc, NULL) == 0)
                yyjson_doc_free(doc);
        json_add_string(&once, input);
        if (json_parse(buf_slice(&once), &doc, NULL) != 0)
                abort(); /* what we write is JSON, whatever the bytes */
        read = json_slice(yyjson_doc_get_root(doc));
        json_add_string(&twice, read);
        if (!slice_eq(buf_slice(&once), buf_slice(&twice)))
                abort();
        yyjson_doc_free(doc);
        buf_free(&once);
        buf_free(&twice);
        return 0;
}
