/* fuzz_sse.c - event streams: any cut agrees, and the events and what is held are the stream. */
#include "base/buf.h"
#include "http/sse.h"
#include <stdio.h>
#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* Events and their data, each after its length; returns the bytes that went into events. */
static size_t split(struct buf *log, struct slice stream, size_t first, size_t step) {
        struct sse *s = sse_new();
        size_t at = 0, taken = 0;

        while (at < stream.len) {
                struct slice in = slice_sub(stream, at, at + (at == 0 && first ? first : step)), event;
                char *copy = malloc(in.len), *scratch;

                memcpy(copy, in.ptr, in.len);
                at += in.len;
                in.ptr = copy;
                while (sse_next(s, &in, &event) > 0) {
                        struct slice value;

                        taken += event.len;
                        scratch = malloc(event.len);
                        value = sse_data(event, scratch);
                        buf_printf(log, "%zu ", event.len);
                        buf_add(log, event);
                        buf_printf(log, "%d %zu ", value.ptr != NULL, value.len);
                        buf_add(log, value);
                        free(scratch);
                }
                free(copy);
        }
        taken += sse_held(s);
        sse_free(s);
        return taken;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
        struct buf whole = {0}, cut = {0};
        struct slice stream;
        size_t taken;

        if (size < 3)
                return 0;
        stream = slice_of(data + 2, size - 2);
        taken = split(&whole, stream, 0, stream.len);
        if (split(&cut, stream, data[0], 1 + data[1] % 64) != taken || !slice_eq(buf_slice(&whole), buf_slice(&cut)))
                abort();
        if (taken > stream.len)
                abort();
        buf_free(&whole);
        buf_free(&cut);
        return 0;
}
