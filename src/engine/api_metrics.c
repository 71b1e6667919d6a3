/* api_metrics.c - see api_metrics.h. */
#include "engine/api_metrics.h"
#include <errno.h>

/* As the exporter in front of vLLM has them. */
static const double fine_bounds[] = {
    0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 1.5, 2, 2.5, 3, 3.5, 4, 4.5, 5, 7.5, 10, 30, 60};
static const double coarse_bounds[] = {0.1, 0.5, 1};

static const char *const method_names[API_METHODS] = {[HTTP_METHOD_GET] = "GET",
    [HTTP_METHOD_HEAD] = "HEAD",
    [HTTP_METHOD_POST] = "POST",
    [HTTP_METHOD_PUT] = "PUT",
    [HTTP_METHOD_DELETE] = "DELETE",
    [HTTP_METHOD_OPTIONS] = "OPTIONS",
    [HTTP_METHOD_PATCH] = "PATCH",
    [HTTP_METHOD_OTHER] = "OTHER"};

#define COUNT(list) (sizeof(list) / sizeof(*(list)))

int api_figures_init(struct api_figures *f) {
        if (histogram_init(&f->seconds, fine_bounds, COUNT(fine_bounds)) < 0)
                return -ENOMEM;
        for (size_t i = 0; i < API_ROUTES_MAX; i++)
                for (size_t m = 0; m < API_METHODS; m++)
                        if (histogram_init(&f->routes[i].seconds[m], coarse_bounds, COUNT(coarse_bounds)) < 0)
                                return -ENOMEM;
        return 0;
}

void api_figures_free(struct api_figures *f) {
        histogram_free(&f->seconds);
        for (size_t i = 0; i < API_ROUTES_MAX; i++)
                for (size_t m = 0; m < API_METHODS; m++)
                        histogram_free(&f->routes[i].seconds[m]);
}

void api_figures_add(struct api_figures *f, size_t route, enum http_method method, int status, double seconds,
    size_t request_bytes, size_t response_bytes) {
        struct api_route_figures *r = &f->routes[route];
        int class = status / 100;

        r->by_status[method][class >= 1 && class <= 5 ? class : 5]++;
        r->count++;
        r->request_bytes += request_bytes;
        r->response_bytes += response_bytes;
        histogram_add(&r->seconds[method], seconds);
        histogram_add(&f->seconds, seconds);
}

/* ---- text ----------------------------------------------------------------------------------------------------------------- */

static const char *labels_of(struct buf *b, const char *handler, const char *method, const char *status) {
        buf_reset(b);
        metrics_label(b, "handler", slice_str(handler));
        if (method)
                metrics_label(b, "method", slice_str(method));
        if (status)
                metrics_label(b, "status", slice_str(status));
        return buf_cstr(b);
}

static void write_sizes(const struct api_figures *f, const char *const *names, size_t count, const char *name,
    const char *help, size_t offset, struct buf *labels, struct buf *out) {
        /* The exporter calls them summaries, without quantiles. */
        buf_printf(out, "# HELP %s %s\n# TYPE %s summary\n", name, help, name);
        for (size_t i = 0; i < count; i++) {
                const struct api_route_figures *r = &f->routes[i];
                uint64_t bytes;

                if (!r->count)
                        continue;
                memcpy(&bytes, (const char *)r + offset, sizeof(bytes));
                buf_printf(out, "%s_count{%s} %llu\n", name, labels_of(labels, names[i], NULL, NULL),
                    (unsigned long long)r->count);
                buf_printf(out, "%s_sum{%s} %llu\n", name, buf_cstr(labels), (unsigned long long)bytes);
        }
}

void api_figures_write(const struct api_figures *f, const char *const *names, size_t count, struct buf *out) {
        static const char *const classes[] = {"", "1xx", "2xx", "3xx", "4xx", "5xx"};
        struct buf labels = {0};

        metrics_describe(
            out, "http_requests_total", METRIC_COUNTER, "Total number of requests by method, status and handler.");
        for (size_t i = 0; i < count; i++)
                for (size_t m = 0; m < API_METHODS; m++)
                        for (int s = 1; s < 6; s++)
                                if (f->routes[i].by_status[m][s])
                                        metrics_sample(out, "http_requests_total",
                                            labels_of(&labels, names[i], method_names[m], classes[s]),
                                            (double)f->routes[i].by_status[m][s]);
        write_sizes(f, names, count, "http_request_size_bytes", "Content length of incoming requests by handler.",
            offsetof(struct api_route_figures, request_bytes), &labels, out);
        write_sizes(f, names, count, "http_response_size_bytes", "Content length of outgoing responses by handler.",
            offsetof(struct api_route_figures, response_bytes), &labels, out);
        metrics_describe(out, "http_request_duration_highr_seconds", METRIC_HISTOGRAM,
            "Latency with many buckets but no API specific labels.");
        metrics_histogram(out, "http_request_duration_highr_seconds", "", &f->seconds);
        metrics_describe(
            out, "http_request_duration_seconds", METRIC_HISTOGRAM, "Latency with only few buckets by handler.");
        for (size_t i = 0; i < count; i++)
                for (size_t m = 0; m < API_METHODS; m++)
                        if (f->routes[i].seconds[m].total)
                                metrics_histogram(out, "http_request_duration_seconds",
                                    labels_of(&labels, names[i], method_names[m], NULL), &f->routes[i].seconds[m]);
        if (!buf_ok(&labels))
                out->failed = true;
        buf_free(&labels);
}
