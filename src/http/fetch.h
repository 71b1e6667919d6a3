/* fetch.h - one blocking exchange after another, for commands that have nothing else to do meanwhile.
 *
 * A thin loop of its own around the client of http.h. Not for servers. One thread. */
#pragma once
#include "base/buf.h"
#include "http/http.h"

struct http_fetcher; /* keeps connections between exchanges */

int http_fetcher_new(const struct http_client_options *options, struct http_fetcher **ret_fetcher, struct error *e);
void http_fetcher_free(struct http_fetcher *f); /* NULL is fine */

struct http_fetched {
        int status;
        enum http_failure failure;
        uint64_t head_ns, body_ns, end_ns; /* from the call to the answer's head, its first body byte, its end */
        char id[128];                      /* the answer's X-Request-Id, cut; empty when there is none */
};

/* Do the exchange and append the answer's body to `body` (at most max_body bytes, then -EFBIG). Returns 0 when an answer of
 * any status is here; else with a text -ECONNREFUSED (resolve, connect), -ETIMEDOUT, -EPROTO, -EPIPE, and when the exchange
 * could not even begin -EINVAL (URL, request) or -ENOMEM; then *ret_fetched is untouched, else it is set. Ctrl-C ends the process as usual: no signal is handled here. */
int http_fetch(struct http_fetcher *f, const struct http_endpoint *to, const struct http_request *request,
    size_t max_body, struct buf *body, struct http_fetched *ret_fetched, struct error *e);
/* The same with an URL in text ("http://host:port/path", "unix:PATH" with `target`), GET without body, or POST of JSON. */
int http_fetch_url(struct http_fetcher *f, const char *url, const char *target, struct slice json, const char *api_key,
    unsigned timeout_ms, struct buf *body, struct http_fetched *ret_fetched, struct error *e);
