/* metrics.h - histograms and the Prometheus text format (exposition format 0.0.4).
 *
 * Counters and gauges are plain numbers of their owner; this room only writes them out. */
#pragma once
#include "base/buf.h"

/* Cumulative buckets as Prometheus wants them. `bounds` is borrowed and ascending; +Inf is implied. */
struct histogram {
        const double *bounds;
        size_t count_bounds;
        uint64_t *counts; /* count_bounds + 1, owned */
        uint64_t total;
        double sum;
};

int histogram_init(struct histogram *h, const double *bounds, size_t count_bounds); /* 0 or -ENOMEM */
void histogram_free(struct histogram *h);
void histogram_copy(struct histogram *to, const struct histogram *from); /* of the same bounds; does not allocate */
void histogram_add(struct histogram *h, double value);                   /* NaN is no measurement and is dropped */

enum metric_type { METRIC_COUNTER, METRIC_GAUGE, METRIC_HISTOGRAM };

/* "# HELP" and "# TYPE" of one metric; write it once, before its samples. */
void metrics_describe(struct buf *b, const char *name, enum metric_type type, const char *help);
/* One sample. `labels` is ready text without braces such as `engine="0",model_name="x"` (see metrics_label), may be "". */
void metrics_sample(struct buf *b, const char *name, const char *labels, double value);
/* All samples of a histogram: name_bucket, name_sum, name_count. */
void metrics_histogram(struct buf *b, const char *name, const char *labels, const struct histogram *h);
/* Append key="value" to a label text with the escaping the format wants, and a comma before it when not the first. */
void metrics_label(struct buf *labels, const char *key, struct slice value);
