/* api_metrics.h - figures of the HTTP side under the names that vLLM's exporter gives them (private to the API files). */
#pragma once
#include "base/metrics.h"
#include "http/http.h"

#define API_ROUTES_MAX 24 /* rows of the route table, and one for paths without a route */
#define API_METHODS    (HTTP_METHOD_OTHER + 1)

struct api_route_figures {
        uint64_t by_status[API_METHODS][6]; /* 1xx … 5xx at 1 … 5 */
        struct histogram seconds[API_METHODS];
        uint64_t count, request_bytes, response_bytes;
};

/* Event loop's thread only. */
struct api_figures {
        struct api_route_figures routes[API_ROUTES_MAX];
        struct histogram seconds;
};

int api_figures_init(struct api_figures *f); /* 0 or -ENOMEM; free in any case */
void api_figures_free(struct api_figures *f);
/* One exchange is over. `route` is its row, the last one for no route. */
void api_figures_add(struct api_figures *f, size_t route, enum http_method method, int status, double seconds,
    size_t request_bytes, size_t response_bytes);
/* `names` are the handlers of the rows. */
void api_figures_write(const struct api_figures *f, const char *const *names, size_t count, struct buf *out);
