/* fuzz_http.h - what the request and response targets share: the same bytes in one piece and in a cut that the first two
 * input bytes choose must give the same events. Small limits, so that they are reached. */
#pragma once
#include "../unit/http/codec_log.h"

static const struct http_parser_limits fuzz_limits = {.head_bytes = 600, .head_fields = 12, .body_bytes = 2000};

#define FUZZ_REQUIRE(condition)                                                                                        \
        do {                                                                                                           \
                if (!(condition)) {                                                                                    \
                        fprintf(stderr, "does not hold: %s\n", #condition);                                            \
                        abort();                                                                                       \
                }                                                                                                      \
        } while (0)

static inline void fuzz_cuts(enum codec_side side, const uint8_t *data, size_t size) {
        struct buf whole = {0}, cut = {0};
        struct slice bytes;

        if (size < 3)
                return;
        bytes = slice_of(data + 2, size - 2);
        codec_run(&whole, side, &fuzz_limits, bytes, 0, bytes.len);
        codec_run(&cut, side, &fuzz_limits, bytes, data[0], 1 + data[1] % 64);
        if (!slice_eq(buf_slice(&whole), buf_slice(&cut))) {
                fprintf(stderr, "whole: %s\ncut: %s\n", buf_cstr(&whole), buf_cstr(&cut));
                abort();
        }
        buf_free(&whole);
        buf_free(&cut);
}
