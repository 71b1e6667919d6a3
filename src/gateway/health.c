/* health.c - probing instances: GET /health; once per life GET /v1/models for the model's length; and at a slower pace GET
 * /metrics for what others have with them. */
#include "base/clock.h"
#include "base/json.h"
#include "gateway/core.h"
#include "gateway/scrape.h"
#include <errno.h>
#include <stdlib.h>

/* Probes started at once: ten thousand instances at start are no burst of connections. */
#define PROBES_AT_ONCE 64

struct probe {
        struct gateway *g;
        struct instance *i;
        enum health_event seen;
        uint32_t own; /* our requests there when its metrics were asked for */
};

static void end(struct probe *p) {
        pool_probe_done(p->i, p->seen, gateway_now(p->g));
        free(p);
}

static bool start(struct probe *p, uint16_t port, const char *target, call_done done) {
        const struct call_request request = {.method = HTTP_METHOD_GET,
            .target = target,
            .port = port,
            .fields = p->g->key_fields,
            .timeout_ms = (unsigned)(p->g->options.probe_timeout * 1000)};

        return call_start(p->g, p->i, &request, done, p) != NULL;
}

/* A process that was started again is another engine: its id is read at every probe. */
static void on_bootstrap(void *context, int status, struct http_fields fields, struct slice body, const char *why) {
        struct probe *p = context;
        struct error e = {0};
        struct slice id;

        if (status != 200)
                error_set(&e, -EIO, "%s", why ? why : "it does not answer with 200");
        else if (p->g->connector->take_engine(body, p->i->dp_rank, &id, &e) == 0 &&
                 (!p->i->engine_id || !slice_is(id, p->i->engine_id))) {
                free(p->i->engine_id);
                p->i->engine_id = slice_dup(id);
        }
        if (e.text[0]) {
                p->seen = HEALTH_PROBE_SLOW;
                log_warn(p->g->log, "prefill %s: its bootstrap server at port %u: %s", p->i->name,
                    gateway_bootstrap_port(p->i), e.text);
        }
        end(p);
}

/* What is left to be known of one that is well. */
static void finish(struct probe *p) {
        const char *path = p->g->connector->bootstrap_path;

        if (p->seen == HEALTH_PROBE_OK && path && p->i->role == ROLE_PREFILL &&
            start(p, gateway_bootstrap_port(p->i), path, on_bootstrap))
                return;
        end(p);
}

/* The model's length, from the first of the list that says one. An engine that does not answer here is as healthy. */
static void on_models(void *context, int status, struct http_fields fields, struct slice body, const char *why) {
        struct probe *p = context;
        int64_t length = 0;
        yyjson_doc *doc;
        yyjson_val *model;
        size_t at, max;

        if (status == 200 && json_parse(body, &doc, NULL) == 0) {
                yyjson_arr_foreach(json_get(yyjson_doc_get_root(doc), "data"), at, max, model) {
                        length = json_get_i64(model, "max_model_len", 0);
                        if (length > 0)
                                break;
                }
                yyjson_doc_free(doc);
        }
        pool_learn_length(p->i, length);
        finish(p);
}

/* A scrape counts for this many intervals: one may be lost. */
#define SCRAPES_FRESH 2.5

static void on_metrics(void *context, int status, struct http_fields fields, struct slice body, const char *why) {
        struct probe *p = context;
        uint64_t fresh = (uint64_t)(p->g->options.scrape_interval * SCRAPES_FRESH * (double)NS_PER_S);
        struct scraped_load load;

        /* Of our own there were as many as before or after: the larger, so that none of them is taken for a stranger's. */
        if (status == 200 && scrape_load(body, p->i->dp_rank, &load) == 0)
                pool_report_load(p->i, load.requests, p->own > p->i->requests ? p->own : p->i->requests, load.kv_usage,
                    gateway_now(p->g) + fresh);
        finish(p);
}

/* True: its metrics are asked for, on_metrics ends the probe. */
static bool scrape(struct probe *p) {
        uint64_t now = gateway_now(p->g);
        double interval = p->g->options.scrape_interval;

        if (interval <= 0 || p->i->next_scrape > now)
                return false;
        p->i->next_scrape = now + (uint64_t)(interval * (double)NS_PER_S);
        p->own = p->i->requests;
        return start(p, 0, "/metrics", on_metrics);
}

static void on_health(void *context, int status, struct http_fields fields, struct slice body, const char *why) {
        struct probe *p = context;

        if (status == 200)
                p->seen = HEALTH_PROBE_OK;
        else if (status == 503 || (status == 0 && p->i->state != INSTANCE_JOINING && strstr(why, "refused")))
                p->seen = HEALTH_PROBE_DEAD;
        else
                p->seen = HEALTH_PROBE_SLOW;
        /* A new process may serve another model. */
        if (p->seen == HEALTH_PROBE_OK && (p->i->state == INSTANCE_JOINING || p->i->state == INSTANCE_EJECTED) &&
            start(p, 0, "/v1/models", on_models))
                return;
        if (p->seen == HEALTH_PROBE_OK && scrape(p))
                return;
        finish(p);
}

bool health_probe(struct gateway *g) {
        uint64_t now = gateway_now(g);
        struct instance *i;

        pool_tick(g->pool, now);
        for (int n = 0; n < PROBES_AT_ONCE; n++) {
                struct probe *p;

                i = pool_take_probe(g->pool, now);
                if (!i)
                        return false;
                p = calloc(1, sizeof(*p));
                if (!p) {
                        pool_probe_done(i, HEALTH_PROBE_SLOW, now);
                        return false;
                }
                *p = (struct probe){.g = g, .i = i, .seen = HEALTH_PROBE_SLOW};
                if (!start(p, 0, g->options.health_path, on_health))
                        finish(p);
        }
        return true;
}
