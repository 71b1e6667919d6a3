/* fuzz_output_parser.c - any generated text, fed at once and in cuts: the same parts, and no text is lost but markers. The
 * first byte picks the parsers, the second the cuts. */
#include "base/buf.h"
#include "text/text.h"
#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* Parts in order, each with its kind and call in front, joined where they go on. */
static void run(const struct output_parser_options *options, struct slice text, size_t step, struct buf *log) {
        struct output_parser *p = output_parser_new(options);
        int last = -1;
        bool ended = false;

        if (!p)
                abort();
        for (size_t n = step; !ended; n = n % 13 + step) {
                struct slice piece = slice_take(&text, n);
                struct output_piece out;

                ended = text.len == 0;
                if (output_parser_feed(p, piece, ended) < 0)
                        abort();
                while (output_parser_next(p, &out) == 1) {
                        int kind = (int)(out.part | out.tool_index << 2);

                        if (out.text.len == 0)
                                abort();
                        if (kind != last || out.part == OUTPUT_TOOL_NAME)
                                buf_printf(log, "[%d]", kind);
                        buf_add(log, out.text);
                        last = kind;
                }
        }
        output_parser_free(p);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
        struct output_parser_options options;
        struct buf whole = {0}, cut = {0};

        if (size < 2)
                return 0;
        options = (struct output_parser_options){.reasoning = (enum reasoning_parser)(data[0] % 3),
            .tools = (enum tool_parser)(data[0] / 3 % 3),
            .prompt = (enum chat_reasoning)(data[0] / 9 % 3),
            .thinking = data[0] & 0x80};
        run(&options, slice_of(data + 2, size - 2), SIZE_MAX / 2, &whole);
        run(&options, slice_of(data + 2, size - 2), data[1] % 40 + 1u, &cut);
        if (!slice_eq(buf_slice(&whole), buf_slice(&cut)))
                abort();
        buf_free(&whole);
        buf_free(&cut);
        return 0;
}
