/* health.c - probing instances: GET /health, and once per life GET /v1/models for the model's length. */
#include "base/clock.h"
#include "base/json.h"
#include "gateway/core.h"
#include <errno.h>
#include <stdlib.h>

/* Probes started at once: ten thousand instances at start are no burst of connections. */
#define PROBES_AT_ONCE 64

struct probe {
        struct gateway *g;
        struct instance *i;
        enum health_event seen;
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
                log_warn(p->g->log, "prefill %s: its bootstrap server at port %u: %s", p->i->name, p->i->bootstrap_port,
                    e.text);
        }
        end(p);
}

/* What is left to be known of one that is well. */
static void finish(struct probe *p) {
        const char *path = p->g->connector->bootstrap_path;

        if (p->seen == HEALTH_PROBE_OK && path && p->i->role == ROLE_PREFILL &&
            start(p, p->i->bootstrap_port, path, on_bootstrap))
                return;
        end(p);
}

/* The model's length, from the first of the list that says one. An engine that does not answer here is as healthy. */
static void on_models(void *context, int status, struct http_fields fields, struct slice body, const char *why) {
        struct probe *p = context;
        yyjson_doc *doc;
        yyjson_val *model;
        size_t at, max;

        if (status == 200 && json_parse(body, &doc, NULL) == 0) {
                yyjson_arr_foreach(json_get(yyjson_doc_get_root(doc), "data"), at, max, model) {
                        p->i->max_model_len = json_get_i64(model, "max_model_len", 0);
                        if (p->i->max_model_len > 0)
                                break;
                }
                yyjson_doc_free(doc);
        }
        finish(p);
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
                if (!start(p, 0, "/health", on_health))
                        finish(p);
        }
        return true;
}
