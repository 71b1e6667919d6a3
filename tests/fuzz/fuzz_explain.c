/* fuzz_explain.c - what engines and ssh wrote: the line that is said to tell lies within it and is one line. */
#include "launch/launch.h"
#include "os/os.h"
#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
        char *copy = malloc(size);
        struct launch_cause c;
        struct slice words;

        if (!copy)
                return 0;
        memcpy(copy, data, size);
        words = slice_of(copy, size);
        c = launch_explain(words);
        if (c.line.len > LAUNCH_LINE_MAX || (c.cause == NULL) != (c.cure == NULL) || (c.cause && !c.line.len))
                abort();
        if (c.line.len &&
            (c.line.ptr < copy || c.line.ptr + c.line.len > copy + size || slice_find(c.line, '\n', 0) < c.line.len))
                abort();
        if (!os_ssh_trouble(words)->kind)
                abort();
        free(copy);
        return 0;
}
