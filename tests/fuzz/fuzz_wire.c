/* Messages between ranks: whatever comes, it is a message, or half of one, or none; and a message is written back as it was. */
#include "comm/wire.h"
#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
        struct wire_message m, again;
        struct buf b = {0};
        int n = wire_read(slice_of(data, size), WIRE_ANSWER_MAX, &m);

        if (n <= 0)
                return 0;
        if ((size_t)n > size)
                abort();
        for (uint32_t i = 0; (m.kind == WIRE_BLOCKS || m.kind == WIRE_ROWS) && i < m.table_count; i++)
                (void)wire_block(&m, i);
        wire_write(&b, &m);
        if (!buf_ok(&b) || wire_read(buf_slice(&b), WIRE_ANSWER_MAX, &again) != (int)b.len || again.kind != m.kind)
                abort();
        buf_free(&b);
        return 0;
}
