/* scrape.c - see scrape.h. */
#include "gateway/scrape.h"
#include <errno.h>
#include <stdio.h>

struct sample {
        struct slice name, labels;
        double value;
};

/* "name{labels} value" or "name value", perhaps with a time behind it. False: a comment, or something else. */
static bool read_sample(struct slice line, struct sample *ret_sample) {
        size_t name = 0, close;
        struct sample s = {0};

        while (name < line.len && line.ptr[name] != '{' && line.ptr[name] != ' ')
                name++;
        s.name = slice_take(&line, name);
        if (line.len > 0 && line.ptr[0] == '{') {
                close = line.len; /* values may hold braces: the last one closes */
                while (close > 1 && line.ptr[close - 1] != '}')
                        close--;
                s.labels = slice_sub(line, 1, close - 1);
                slice_take(&line, close);
        }
        line = slice_trim(line);
        if (slice_to_double(slice_sub(line, 0, slice_find(line, ' ', 0)), &s.value) < 0)
                return false;
        *ret_sample = s;
        return true;
}

/* Does it count for this rank? Engines without data parallelism say "0", older ones nothing. */
static bool is_of_rank(struct slice labels, int dp_rank) {
        char wanted[32];

        if (dp_rank < 0 || slice_find_slice(labels, SLICE_LIT("engine=\""), 0) == labels.len)
                return true;
        snprintf(wanted, sizeof(wanted), "engine=\"%d\"", dp_rank);
        return slice_find_slice(labels, slice_str(wanted), 0) < labels.len;
}

int scrape_load(struct slice metrics, int dp_rank, struct scraped_load *ret_load) {
        struct scraped_load load = {0};
        double requests = 0;
        bool any = false;

        for (struct slice line; slice_split(&metrics, '\n', &line);) {
                struct sample s;

                if (!slice_starts(line, SLICE_LIT("vllm:")) || !read_sample(line, &s) || !is_of_rank(s.labels, dp_rank))
                        continue;
                if (slice_is(s.name, "vllm:num_requests_running") || slice_is(s.name, "vllm:num_requests_waiting")) {
                        any = true;
                        requests += s.value > 0 ? s.value : 0;
                } else if (slice_is(s.name, "vllm:kv_cache_usage_perc") ||
                           slice_is(s.name, "vllm:gpu_cache_usage_perc")) {
                        if (s.value > load.kv_usage)
                                load.kv_usage = s.value > 1 ? 1 : s.value;
                }
        }
        if (!any || !(requests < 1e9))
                return -ENODATA;
        load.requests = (uint64_t)requests;
        *ret_load = load;
        return 0;
}
