/* serve_switches.c - what the guides of vLLM-Ascend switch on for NPUs: --additional-config, --compilation-config, and
 * variables of the environment. What has a meaning on a CPU is taken, the rest is named (docs/switches.md). */
#include "base/json.h"
#include "cli/serve.h"
#include <errno.h>
#include <stdlib.h>
#include <unistd.h>

/* ---- words for the log ------------------------------------------------------------------------------------------------ */

static void add_word(struct buf *words, const char *group, struct slice name) {
        buf_printf(words, "%s%s%s%.*s", words->len ? ", " : "", group, *group ? "." : "", SLICE_ARG(name));
}

/* Switches for what this engine does in any case. */
static const struct {
        const char *name, *because;
} always[] = {
    {"enable_weight_nz_layout", "weights lie as the kernels read them"},
    {"weight_nz_mode", "weights lie as the kernels read them"},
    {"enable_multistream_moe", "shared experts run while rows are under way to other ranks"},
    {"multistream_overlap_shared_expert", "shared experts run while rows are under way to other ranks"},
    {"enable_multistream_mla", "q_a_proj and kv_a_proj are one pass over all cores"},
    {"enable_prefill_optimizations", "prompts take attention's unabsorbed form"},
};

/* Name one that is always so. False: `key` is none. */
static bool name_always(struct serve_switches *s, const char *group, struct slice key, yyjson_val *value) {
        const bool off = yyjson_is_false(value) || (yyjson_is_int(value) && yyjson_get_int(value) == 0);
        size_t i = 0;

        while (i < sizeof(always) / sizeof(*always) && !slice_is(key, always[i].name))
                i++;
        if (i == sizeof(always) / sizeof(*always))
                return false;
        add_word(off ? &s->stays : &s->always, group, key);
        buf_printf(off ? &s->stays : &s->always, " (%s)", always[i].because);
        return true;
}

/* Name every member of an object that is in no list of those that are read. */
static void name_rest(struct serve_switches *s, const char *group, yyjson_val *object, const char *const *read) {
        yyjson_obj_iter iter;
        yyjson_val *key;

        if (!yyjson_is_obj(object))
                return;
        yyjson_obj_iter_init(object, &iter);
        while ((key = yyjson_obj_iter_next(&iter))) {
                const char *const *known = read;

                while (*known && !slice_is(json_slice(key), *known))
                        known++;
                if (!*known && !name_always(s, group, json_slice(key), yyjson_obj_iter_get_val(key)))
                        add_word(&s->unused, group, json_slice(key));
        }
}

/* ---- batch sizes whose steps are prepared ------------------------------------------------------------------------------- */

static int add_size(struct serve_switches *s, const char *where, int64_t size, struct error *e) {
        if (size < 1 || size > 65536)
                return error_set(e, -EINVAL, "%s: %lld is no number of sequences", where, (long long)size);
        if (s->size_count == SERVE_SIZES_MAX)
                return error_set(e, -EINVAL, "%s: more than %u batch sizes", where, SERVE_SIZES_MAX);
        s->sizes[s->size_count++] = (uint32_t)size;
        return 0;
}

static int read_sizes(struct serve_switches *s, const char *where, yyjson_val *list, struct error *e) {
        yyjson_val *v;
        size_t i, n;
        int r = 0;

        if (list && !yyjson_is_arr(list))
                return error_set(e, -EINVAL, "%s: no list of batch sizes", where);
        yyjson_arr_foreach(list, i, n, v) {
                int64_t size = 0;

                if (r == 0)
                        r = json_to_i64(v, &size) < 0 ? error_set(e, -EINVAL, "%s: no list of whole numbers", where)
                                                      : add_size(s, where, size, e);
        }
        return r;
}

/* As torchair does by itself: powers of two up to what one step takes. */
static int choose_sizes(struct serve_switches *s, int64_t most, struct error *e) {
        int r = 0;

        for (int64_t size = 1; r == 0 && size <= most; size *= 2)
                r = add_size(s, "torchair_graph_config", size, e);
        return r;
}

/* ---- --additional-config ------------------------------------------------------------------------------------------------ */

static int read_scheduler(struct serve_switches *s, yyjson_val *scheduler, struct error *e) {
        static const char *const read[] = {
            "enabled", "chunked_prefill_enabled", "enable_chunked_prefill", "long_prefill_token_threshold", NULL};

        if (!json_get_bool(scheduler, "enabled", false))
                return 0; /* the engine's own rules are meant */
        s->chunked_prefill = json_get_bool(
            scheduler, "chunked_prefill_enabled", json_get_bool(scheduler, "enable_chunked_prefill", false));
        s->prefill_first = !s->chunked_prefill;
        if (s->chunked_prefill)
                s->long_prefill = json_get_i64(scheduler, "long_prefill_token_threshold", s->long_prefill);
        name_rest(s, "ascend_scheduler_config", scheduler, read);
        return s->long_prefill < 0 || s->long_prefill > 1 << 24
                   ? error_set(e, -EINVAL, "long_prefill_token_threshold must lie in 0 to %d", 1 << 24)
                   : 0;
}

static int read_graph(struct serve_switches *s, yyjson_val *graph, int64_t max_seqs, struct error *e) {
        static const char *const read[] = {"enabled", "graph_batch_sizes", "graph_batch_sizes_init", NULL};
        yyjson_val *sizes = json_get(graph, "graph_batch_sizes");

        name_rest(s, "torchair_graph_config", graph, read);
        if (!json_get_bool(graph, "enabled", false))
                return 0;
        return yyjson_arr_size(sizes) || (sizes && !yyjson_is_arr(sizes))
                   ? read_sizes(s, "torchair_graph_config.graph_batch_sizes", sizes, e)
                   : choose_sizes(s, max_seqs, e);
}

static int read_additional(struct serve_switches *s, const struct serve_options *o, struct error *e) {
        static const char *const read[] = {
            "ascend_scheduler_config", "recompute_scheduler_enable", "torchair_graph_config", NULL};
        yyjson_doc *doc;
        yyjson_val *root;
        int r = json_parse(slice_str(o->additional), &doc, e);

        if (r == 0) {
                root = yyjson_doc_get_root(doc);
                s->recompute = json_get_bool(root, "recompute_scheduler_enable", false);
                name_rest(s, "", root, read);
                r = yyjson_is_obj(root) ? read_scheduler(s, json_get(root, "ascend_scheduler_config"), e)
                                        : error_set(e, -EINVAL, "not a JSON object: %.100s", o->additional);
                if (r == 0)
                        r = read_graph(s, json_get(root, "torchair_graph_config"), o->max_num_seqs, e);
                yyjson_doc_free(doc);
        }
        return r < 0 ? error_prefix(e, r, "--additional-config") : 0;
}

/* ---- --compilation-config, --cudagraph-capture-sizes -------------------------------------------------------------------- */

static int read_compilation(struct serve_switches *s, const char *text, struct error *e) {
        static const char *const read[] = {"cudagraph_capture_sizes", "cudagraph_mode", NULL};
        yyjson_doc *doc;
        yyjson_val *root;
        int r = json_parse(slice_str(text), &doc, e);

        if (r == 0) {
                root = yyjson_doc_get_root(doc);
                s->eager |= slice_is_icase(json_get_slice(root, "cudagraph_mode"), "NONE");
                name_rest(s, "compilation-config", root, read);
                if (yyjson_is_int(root)) /* a level of optimisation */
                        add_word(&s->unused, "", SLICE_LIT("compilation-config"));
                else if (!yyjson_is_obj(root))
                        r = error_set(e, -EINVAL, "neither a JSON object nor a level: %.100s", text);
                if (r == 0)
                        r = read_sizes(s, "cudagraph_capture_sizes", json_get(root, "cudagraph_capture_sizes"), e);
                yyjson_doc_free(doc);
        }
        return r < 0 ? error_prefix(e, r, "--compilation-config") : 0;
}

static int read_captured(struct serve_switches *s, const struct option_list *list, struct error *e) {
        int r = 0;

        for (size_t i = 0; r == 0 && i < list->count; i++) {
                int64_t size = 0;

                r = slice_to_i64(slice_str(list->items[i]), &size) < 0
                        ? error_set(e, -EINVAL, "--cudagraph-capture-sizes: `%s` is no number", list->items[i])
                        : add_size(s, "--cudagraph-capture-sizes", size, e);
        }
        return r;
}

int serve_read_switches(const struct serve_options *o, struct serve_switches *ret_switches, struct error *e) {
        struct serve_switches s = {
            .chunked_prefill = o->chunked_prefill, .long_prefill = o->long_prefill, .eager = o->enforce_eager};
        int r = o->additional ? read_additional(&s, o, e) : 0;

        if (r == 0 && o->compilation)
                r = read_compilation(&s, o->compilation, e);
        if (r == 0)
                r = read_captured(&s, &o->capture_sizes, e);
        *ret_switches = s;
        return r;
}

void serve_switches_free(struct serve_switches *s) {
        buf_free(&s->always);
        buf_free(&s->stays);
        buf_free(&s->unused);
}

/* ---- the environment ------------------------------------------------------------------------------------------------------ */

/* Set by hand in start scripts for NPUs. What the toolkit's own set_env.sh sets (ASCEND_HOME_PATH, …) says nothing about the
 * engine, and is not named. */
void serve_name_environment(struct buf *out) {
        static const char *const variables[] = {"PYTORCH_NPU_ALLOC_CONF=", "TASK_QUEUE_ENABLE=", "CPU_AFFINITY_CONF=",
            "ASCEND_RT_VISIBLE_DEVICES=", "ASCEND_AGGREGATE_ENABLE=", "ASCEND_TRANSPORT_PRINT=", "ASCEND_BUFFER_POOL=",
            "ASCEND_CONNECT_TIMEOUT=", "ASCEND_TRANSFER_TIMEOUT=", "ACL_OP_INIT_MODE=", "HCCL_", "VLLM_ASCEND_",
            "GLOO_SOCKET_IFNAME=", "TP_SOCKET_IFNAME=", "OMP_PROC_BIND=", "OMP_NUM_THREADS="};

        for (char **v = environ; *v; v++)
                for (size_t i = 0; i < sizeof(variables) / sizeof(*variables); i++)
                        if (slice_starts(slice_str(*v), slice_str(variables[i]))) {
                                struct slice name, rest = slice_str(*v);

                                slice_split(&rest, '=', &name);
                                add_word(out, "", name);
                        }
}
