/* scrape.h - what an engine says of its load in its metrics: vLLM's names, in Prometheus' text format. Pure. */
#pragma once
#include "base/slice.h"

struct scraped_load {
        uint64_t requests; /* running and waiting */
        double kv_usage;   /* 0..1; 0 when it is not said */
};

/* Read it for one data-parallel rank (the `engine` label), or for all of them together (-1; the fullest one's KV). Returns 0, or
 * -ENODATA when the text does not say how many requests run. */
int scrape_load(struct slice metrics, int dp_rank, struct scraped_load *ret_load);
