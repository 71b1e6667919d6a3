/* metrics.c - see metrics.h. */
#include "base/metrics.h"
#include <assert.h>
#include <errno.h>
#include <math.h>
#include <stdlib.h>

int histogram_init(struct histogram *h, const double *bounds, size_t count_bounds) {
        uint64_t *counts = calloc(count_bounds + 1, sizeof(*counts));

        if (!counts)
                return -ENOMEM;
        *h = (struct histogram){.bounds = bounds, .count_bounds = count_bounds, .counts = counts};
        return 0;
}

void histogram_free(struct histogram *h) {
        free(h->counts);
        *h = (struct histogram){0};
}

void histogram_copy(struct histogram *to, const struct histogram *from) {
        assert(to->bounds == from->bounds && to->count_bounds == from->count_bounds);
        memcpy(to->counts, from->counts, (from->count_bounds + 1) * sizeof(*from->counts));
        to->total = from->total;
        to->sum = from->sum;
}

void histogram_add(struct histogram *h, double value) {
        size_t low = 0, high = h->count_bounds;

        if (isnan(value))
                return;
        while (low < high) { /* the first bound that is not below the value */
                size_t middle = (low + high) / 2;

                if (h->bounds[middle] < value)
                        low = middle + 1;
                else
                        high = middle;
        }
        h->counts[low]++;
        h->total++;
        h->sum += value;
}

void metrics_describe(struct buf *b, const char *name, enum metric_type type, const char *help) {
        static const char *const types[] = {"counter", "gauge", "histogram"};

        buf_printf(b, "# HELP %s %s\n# TYPE %s %s\n", name, help, name, types[type]);
}

static void add_value(struct buf *b, double value) {
        if (isnan(value))
                buf_add_str(b, "NaN");
        else if (isinf(value))
                buf_add_str(b, value > 0 ? "+Inf" : "-Inf");
        else
                buf_add_double(b, value);
        buf_add_char(b, '\n');
}

void metrics_sample(struct buf *b, const char *name, const char *labels, double value) {
        buf_add_str(b, name);
        if (*labels) {
                buf_add_char(b, '{');
                buf_add_str(b, labels);
                buf_add_char(b, '}');
        }
        buf_add_char(b, ' ');
        add_value(b, value);
}

void metrics_histogram(struct buf *b, const char *name, const char *labels, const struct histogram *h) {
        const char *comma = *labels ? "," : "";
        uint64_t seen = 0;

        for (size_t i = 0; i < h->count_bounds; i++) {
                seen += h->counts[i];
                buf_printf(b, "%s_bucket{%s%sle=\"", name, labels, comma);
                buf_add_double(b, h->bounds[i]);
                buf_printf(b, "\"} %llu.0\n", (unsigned long long)seen);
        }
        buf_printf(b, "%s_bucket{%s%sle=\"+Inf\"} %llu.0\n", name, labels, comma, (unsigned long long)h->total);
        buf_printf(b, "%s_sum%s%s%s ", name, *labels ? "{" : "", labels, *labels ? "}" : "");
        add_value(b, h->sum);
        buf_printf(b, "%s_count%s%s%s %llu.0\n", name, *labels ? "{" : "", labels, *labels ? "}" : "",
            (unsigned long long)h->total);
}

void metrics_label(struct buf *labels, const char *key, struct slice value) {
        if (labels->len)
                buf_add_char(labels, ',');
        buf_printf(labels, "%s=\"", key);
        for (size_t i = 0; i < value.len; i++) {
                char c = value.ptr[i];

                if (c == '\n')
                        buf_add_str(labels, "\\n");
                else {
                        if (c == '"' || c == '\\')
                                buf_add_char(labels, '\\');
                        buf_add_char(labels, c);
                }
        }
        buf_add_char(labels, '"');
}
