/* fuzz_scrape.c - metrics of an engine: nothing is read beyond them, and what is said of a load makes sense. */
#include "gateway/scrape.h"
#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
        char *copy = malloc(size);
        struct scraped_load all, rank;
        int r;

        if (!copy)
                return 0;
        memcpy(copy, data, size);
        r = scrape_load(slice_of(copy, size), -1, &all);
        if (r == 0 && (all.requests > 1000000000 || !(all.kv_usage >= 0 && all.kv_usage <= 1)))
                abort();
        /* A rank has no more than all of them. */
        if (scrape_load(slice_of(copy, size), 1, &rank) == 0 && r == 0 &&
            (rank.requests > all.requests || rank.kv_usage > all.kv_usage))
                abort();
        free(copy);
        return 0;
}
