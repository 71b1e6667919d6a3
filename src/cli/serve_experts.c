/* serve_experts.c - where experts are and whether they move: vLLM's --expert-placement-strategy, --enable-eplb and --eplb-config, and
 * the four flags that came before the last. */
#include "base/json.h"
#include "cli/serve.h"
#include <errno.h>

struct eplb {
        int64_t redundant, window, interval;
        bool tell;
};

/* Keys of --eplb-config. Those of vLLM that choose between ways of doing it are taken; there is one way here. */
static int read_key(struct eplb *c, struct slice key, yyjson_val *value, struct error *e) {
        static const char *const passed_over[] = {
            "use_async", "policy", "communicator", "log_balancedness_interval", "eplb_communicator"};
        int64_t *number = slice_is(key, "num_redundant_experts") ? &c->redundant
                          : slice_is(key, "window_size")         ? &c->window
                          : slice_is(key, "step_interval")       ? &c->interval
                                                                 : NULL;

        if (number) {
                if (json_to_i64(value, number) < 0 || *number < (number == &c->window) || *number > INT32_MAX)
                        return error_set(e, -EINVAL, "--eplb-config: %.*s is to be a number from %d on", SLICE_ARG(key),
                            number == &c->window);
                return 0;
        }
        if (slice_is(key, "log_balancedness")) {
                if (!yyjson_is_bool(value))
                        return error_set(e, -EINVAL, "--eplb-config: log_balancedness is to be true or false");
                c->tell = yyjson_get_bool(value);
                return 0;
        }
        for (size_t i = 0; i < sizeof(passed_over) / sizeof(*passed_over); i++)
                if (slice_is(key, passed_over[i]))
                        return 0;
        return error_set(e, -EINVAL,
            "--eplb-config: `%.*s` is no key of it; there are num_redundant_experts, window_size, step_interval and "
            "log_balancedness",
            SLICE_ARG(key));
}

static int read_config(const char *json, struct eplb *c, struct error *e) {
        yyjson_doc *doc;
        yyjson_val *key, *value;
        size_t i, n;
        int r = json_parse(slice_str(json), &doc, e);

        if (r < 0)
                return error_prefix(e, r, "--eplb-config");
        if (!yyjson_is_obj(yyjson_doc_get_root(doc)))
                r = error_set(e, -EINVAL, "--eplb-config is to be a JSON object");
        yyjson_obj_foreach(yyjson_doc_get_root(doc), i, n, key, value) {
                if (r == 0)
                        r = read_key(c, json_slice(key), value, e);
        }
        yyjson_doc_free(doc);
        return r;
}

static int read_eplb(const struct serve_options *o, struct eplb *ret_eplb, struct error *e) {
        struct eplb c = {0, GROUP_WINDOW_STEPS, GROUP_INTERVAL_STEPS, false};
        int r = o->eplb_config ? read_config(o->eplb_config, &c, e) : 0;

        if (o->redundant_experts >= 0)
                c.redundant = o->redundant_experts;
        if (o->eplb_window >= 0)
                c.window = o->eplb_window;
        if (o->eplb_interval >= 0)
                c.interval = o->eplb_interval;
        c.tell |= o->eplb_tell;
        if (r == 0 && c.redundant && !o->eplb)
                r = error_set(e, -EINVAL, "num_redundant_experts takes --enable-eplb");
        if (r == 0)
                *ret_eplb = c;
        return r;
}

/* vLLM wants as many slots on every rank, too. */
static int check_slots(const struct model_config *config, const struct eplb *c, uint32_t ranks, struct error *e) {
        uint32_t less = (uint32_t)((config->experts + (uint64_t)c->redundant) % ranks);

        if (c->redundant > (int64_t)config->experts * (ranks - 1))
                return error_set(e, -EINVAL,
                    "num_redundant_experts: with %lld every rank would hold an expert twice; "
                    "at most %u make sense",
                    (long long)c->redundant, config->experts * (ranks - 1));
        if (less)
                return error_set(e, -EINVAL,
                    "--enable-eplb: %u experts and %lld redundant ones do not divide by %u ranks: make "
                    "num_redundant_experts %lld",
                    config->experts, (long long)c->redundant, ranks, (long long)c->redundant + ranks - less);
        return 0;
}

int serve_read_experts(const struct serve_options *o, const struct model_config *config, uint32_t layers,
    struct engine_group *group, struct placement *ret_placement, struct error *e) {
        bool cards = o->expert_placement && !strcmp(o->expert_placement, "round_robin");
        struct eplb c = {0};
        int r = read_eplb(o, &c, e);

        if (r < 0 || !o->expert_parallel || group->size < 2)
                return r;
        if (o->eplb)
                r = check_slots(config, &c, group->size, e);
        if (r < 0)
                return r;
        r = placement_new(layers, config->experts, o->eplb ? (uint32_t)c.redundant : 0, group->size,
            cards ? PLACEMENT_ROUND_ROBIN : PLACEMENT_LINEAR, ret_placement);
        if (r == -EINVAL)
                return error_set(
                    e, r, "--data-parallel-size %u: the model has %u experts to share", group->size, config->experts);
        if (r < 0)
                return error_set(e, r, "out of memory");
        group->placement = ret_placement;
        group->balance = o->eplb;
        group->window_steps = (uint32_t)c.window;
        group->interval_steps = (uint32_t)c.interval;
        group->tell_balance = c.tell;
        return 0;
}
