/* api_service.c - endpoints that need no prompt: health, models, metrics, the prefix cache. */
#include "base/json.h"
#include "engine/api_call.h"
#include <errno.h>
#include <stdlib.h>

bool api_is_ready(const struct api *a) {
        struct engine_load load;

        if (a->draining || !a->engine)
                return false;
        engine_load(a->engine, &load);
        return load.healthy;
}

void api_get_health(struct api_call *call, struct slice body) {
        (void)body;
        api_respond(call, api_is_ready(call->api) ? 200 : 503, NULL, SLICE_NONE);
}

void api_get_version(struct api_call *call, struct slice body) {
        (void)body;
        api_respond(call, 200, "application/json", SLICE_LIT("{\"version\":\"" BATON_VERSION "\"}"));
}

void api_get_load(struct api_call *call, struct slice body) {
        struct buf b = {0};

        (void)body;
        buf_printf(&b, "{\"server_load\":%zu}", call->api->in_flight);
        api_respond_buf(call, &b);
}

void api_get_models(struct api_call *call, struct slice body) {
        const struct api_options *o = &call->api->options;
        struct openai_model_card *cards = arena_array(&call->arena, o->served_count, sizeof(*cards));
        struct buf b = {0};

        (void)body;
        if (!cards) {
                api_refuse_text(call, 500, "InternalServerError", "out of memory");
                return;
        }
        for (size_t i = 0; i < o->served_count; i++)
                cards[i] = (struct openai_model_card){slice_str(o->served_names[i]), slice_str(o->model_path),
                    call->api->created, o->defaults.max_model_len};
        openai_write_models(&b, cards, o->served_count);
        api_respond_buf(call, &b);
}

void api_get_metrics(struct api_call *call, struct slice body) {
        const char *names[API_ROUTES_MAX];
        struct buf b = {0}, labels = {0};

        (void)body;
        metrics_label(&labels, "engine", SLICE_LIT("0"));
        metrics_label(&labels, "model_name", slice_str(call->api->options.served_names[0]));
        engine_metrics(call->api->engine, buf_cstr(&labels), &b);
        for (size_t i = 0; i < api_route_count; i++)
                names[i] = api_routes[i].path;
        names[api_route_count] = "none";
        api_figures_write(&call->api->figures, names, api_route_count + 1, &b);
        if (buf_ok(&b) && buf_ok(&labels))
                api_respond(call, 200, "text/plain; version=0.0.4; charset=utf-8", buf_slice(&b));
        else
                api_refuse_text(call, 500, "InternalServerError", "out of memory");
        buf_free(&b);
        buf_free(&labels);
}

void api_post_reset(struct api_call *call, struct slice body) {
        (void)body;
        switch (engine_reset_prefix_cache(call->api->engine, call)) {
        case 0: /* after the engine's step */
                api_call_hold(call);
                break;
        case -ESHUTDOWN:
                api_refuse_text(call, 503, "ServiceUnavailableError", "The server is shutting down");
                break;
        default:
                api_refuse_text(call, 500, "InternalServerError", "out of memory");
        }
}

void api_take_resets(struct api *a) {
        struct engine_reset *next;

        for (struct engine_reset *reset = engine_take_resets(a->engine); reset; reset = next) {
                struct api_call *call = reset->user;

                next = reset->next;
                if (reset->done)
                        api_respond(call, 200, NULL, SLICE_NONE);
                else
                        api_refuse_text(call, 503, "ServiceUnavailableError", "Some cached blocks are in use");
                api_call_drop(call);
                free(reset);
        }
}

void api_post_rebalance(struct api_call *call, struct slice body) {
        (void)body;
        switch (engine_rebalance_experts(call->api->engine)) {
        case 0:
                api_respond(call, 202, "application/json", SLICE_LIT("{\"status\":\"begun\"}"));
                break;
        case -EALREADY:
                api_refuse_text(call, 409, "ConflictError", "Experts are being rebalanced already");
                break;
        default:
                api_refuse_text(call, 400, "BadRequestError",
                    "This engine does not move experts: it takes --enable-expert-parallel and --enable-eplb");
        }
}

void api_get_experts(struct api_call *call, struct slice body) {
        struct buf b = {0};

        (void)body;
        if (engine_describe_experts(call->api->engine, &b))
                api_respond_buf(call, &b);
        else
                api_refuse_text(call, 404, "NotFoundError", "This engine shares no experts with others");
}

void api_post_scale_out(struct api_call *call, struct slice body) {
        (void)body;
        api_refuse_text(call, 403, "PermissionDeniedError", "Scale-out endpoints are not part of this server.");
}
