/* export.c - a plan for launchers other than baton's own: what all formats share, and the shell script per node. */
#include "cluster/export.h"
#include <errno.h>

/* ---- nodes --------------------------------------------------------------------------------------------------------------- */

size_t export_ranks(const struct exporter *x, uint32_t node, const struct plan_rank **ret_first) {
        const struct plan *p = x->plan;
        size_t first = x->first_rank[node], n = 0;

        if (first == UINT32_MAX)
                return 0;
        *ret_first = &p->ranks[first];
        while (first + n < p->rank_count && p->ranks[first + n].node == node)
                n++;
        return n;
}

bool export_has_gateway(const struct exporter *x, uint32_t node) {
        return x->plan->gateway_argv && x->c->gateway.node == node;
}

bool export_has_work(const struct exporter *x, uint32_t node) {
        return x->first_rank[node] != UINT32_MAX || export_has_gateway(x, node);
}

void export_add(struct exporter *x, const char *name, struct slice node, struct buf *b, bool executable) {
        struct slice text = arena_copy(x->arena, buf_slice(b));

        if (!name || !text.ptr || !buf_ok(b))
                x->failed = true;
        else
                x->files[x->count++] = (struct export_file){name, node, text, executable};
        buf_free(b);
}

void export_describe(const struct exporter *x, const struct plan_rank *r, struct buf *out) {
        buf_printf(out, "%.*s: %s group %u, dp rank %u of %u", SLICE_ARG(r->name), role_name(r->role), r->group,
            r->dp_rank, r->dp_size);
        if (x->c->platform != PLATFORM_CPU && r->device_count == 1)
                buf_printf(out, ", device %u", r->first_device);
        else if (x->c->platform != PLATFORM_CPU)
                buf_printf(out, ", devices %u-%u", r->first_device, r->first_device + r->device_count - 1);
        buf_printf(out, ", %.*s", SLICE_ARG(r->url));
}

/* ---- shell ----------------------------------------------------------------------------------------------------------------- */

void export_shell_word(struct buf *out, const char *word) {
        static const char plain[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-./:=,+@%";

        if (*word && word[strspn(word, plain)] == 0) {
                buf_add_str(out, word);
                return;
        }
        buf_add_char(out, '\'');
        for (; *word; word++)
                if (*word == '\'')
                        buf_add_str(out, "'\\''");
                else
                        buf_add_char(out, *word);
        buf_add_char(out, '\'');
}

void export_shell_command(struct buf *out, const char *const *env, const char *const *argv) {
        if (env && *env)
                buf_add_str(out, " env");
        for (const char *const *e = env; e && *e; e++)
                if (!strchr(*e, '=')) {
                        buf_add_str(out, " -u ");
                        export_shell_word(out, *e);
                }
        for (const char *const *e = env; e && *e; e++)
                if (strchr(*e, '=')) {
                        buf_add_str(out, " \\\n    ");
                        export_shell_word(out, *e);
                }
        for (const char *const *a = argv; *a; a++) {
                buf_add_str(out, (*a)[0] == '-' || (a == argv && env && *env) ? " \\\n    " : " ");
                export_shell_word(out, *a);
        }
}

void export_node_body(const struct exporter *x, uint32_t node, enum export_body what, struct buf *out) {
        const struct plan_rank *first;
        size_t ranks = export_ranks(x, node, &first);

        buf_add_str(out, "mkdir -p \"$logs\" || exit 2\n"
                         "ulimit -n 65535 2>/dev/null || true\n"
                         "pids=()\n"
                         "start() { # NAME COMMAND...\n"
                         "  local name=$1; shift\n"
                         "  \"$@\" >>\"$logs/$name.log\" 2>&1 </dev/null &\n"
                         "  pids+=($!)\n"
                         "}\n"
                         "stop() { # STATUS\n"
                         "  trap - TERM INT\n"
                         "  kill -TERM \"${pids[@]}\" 2>/dev/null\n"
                         "  wait\n"
                         "  exit \"$1\"\n"
                         "}\n"
                         "trap 'stop 143' TERM\n"
                         "trap 'stop 130' INT\n");
        for (size_t i = 0; i < ranks; i++) {
                buf_add_str(out, "\n# ");
                export_describe(x, &first[i], out);
                buf_printf(out, "\nstart %.*s", SLICE_ARG(first[i].name));
                export_shell_command(out, first[i].env, first[i].argv);
                buf_add_char(out, '\n');
        }
        if (what == BODY_ALL && export_has_gateway(x, node)) {
                buf_printf(out, "\n# the gateway, %.*s\nstart gateway", SLICE_ARG(x->plan->gateway_url));
                export_shell_command(out, NULL, x->plan->gateway_argv);
                buf_add_char(out, '\n');
        }
        buf_add_str(out, "\n# A rank that is alone waits for its group for ever: when one ends, all do.\n"
                         "wait -n\n"
                         "code=$?\n"
                         "echo \"a process ended with status $code, see $logs; stopping the others\" >&2\n"
                         "stop $code\n");
}

void export_shell(struct exporter *x) {
        for (uint32_t n = 0; n < x->c->node_count; n++) {
                const struct cluster_node *node = &x->c->nodes[n];
                struct buf b = {0};

                if (!export_has_work(x, n))
                        continue;
                buf_printf(&b,
                    "#!/bin/bash\n"
                    "# What runs on %.*s (%.*s), planned by baton. Starts it and stays; logs go to ./logs or the "
                    "folder given.\n"
                    "#   ./%.*s.sh [LOGS]\n"
                    "set -u\n"
                    "logs=${1:-logs}\n",
                    SLICE_ARG(node->name), SLICE_ARG(node->ip), SLICE_ARG(node->name));
                export_node_body(x, n, BODY_ALL, &b);
                export_add(x, arena_printf(x->arena, "%.*s.sh", SLICE_ARG(node->name)), node->name, &b, true);
        }
}

/* ---- all formats ----------------------------------------------------------------------------------------------------------- */

/* Addresses stand in comments, patterns and names of files. */
static bool is_host(struct slice s) {
        for (size_t i = 0; i < s.len; i++) {
                char c = s.ptr[i];

                if (!((c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '.' ||
                        c == ':' || c == '-' || c == '_' || c == '%'))
                        return false;
        }
        return s.len > 0;
}

/* A manifest is YAML, which has no control characters but line breaks and tabs. */
static const char *control_character(const char *const *list) {
        for (; list && *list; list++)
                for (const char *c = *list; *c; c++)
                        if ((unsigned char)*c < 32 && *c != '\n' && *c != '\t')
                                return *list;
        return NULL;
}

static int check_values(const struct plan *p, enum export_format format, struct error *e) {
        for (size_t i = 0; i < p->cluster->node_count; i++)
                if (!is_host(p->cluster->nodes[i].ip))
                        return error_set(
                            e, -EINVAL, "the ip of node %.*s is not an address", SLICE_ARG(p->cluster->nodes[i].name));
        for (size_t i = 0; format == EXPORT_K8S && i < p->rank_count; i++) {
                const char *bad = control_character(p->ranks[i].argv);

                bad = bad ? bad : control_character(p->ranks[i].env);
                if (bad)
                        return error_set(e, -EINVAL, "%.*s: a manifest cannot hold the control characters of `%.60s`",
                            SLICE_ARG(p->ranks[i].name), bad);
        }
        return 0;
}

static const char *usual_image(struct exporter *x) {
        const struct cluster *c = x->c;
        const char *of_machine = c->platform == PLATFORM_ASCEND_A3 ? "-a3" : "";
        bool v = c->engine.version.len && c->engine.version.ptr[0] != 'v';
        struct slice tag = c->engine.version.len ? c->engine.version : SLICE_LIT("main");
        const char *image;

        if (c->engine.kind == ENGINE_VLLM)
                image = arena_printf(x->arena, "vllm/vllm-openai:%s%.*s", v ? "v" : "",
                    SLICE_ARG(c->engine.version.len ? tag : SLICE_LIT("latest")));
        else if (c->engine.kind == ENGINE_EMBEDDED)
                image = "baton:latest";
        else
                image = arena_printf(
                    x->arena, "quay.io/ascend/vllm-ascend:%s%.*s%s", v ? "v" : "", SLICE_ARG(tag), of_machine);
        if (!image)
                x->failed = true;
        return image ? image : "";
}

int plan_export(const struct plan *p, enum export_format format, const char *image, struct arena *arena,
    const struct export_file **ret_files, size_t *ret_count, struct error *e) {
        static void (*const writers[])(struct exporter *) = {[EXPORT_SHELL] = export_shell,
            [EXPORT_SYSTEMD] = export_systemd,
            [EXPORT_DOCKER] = export_docker,
            [EXPORT_K8S] = export_k8s,
            [EXPORT_SLURM] = export_slurm};
        const struct cluster *c = p->cluster;
        struct exporter x = {.plan = p, .c = c, .arena = arena};
        uint32_t *first = arena_array(arena, c->node_count + 1, sizeof(*first));

        x.files = arena_array(arena, p->rank_count + 2 * c->node_count + 2, sizeof(*x.files));
        if (!first || !x.files)
                return -ENOMEM;
        if (check_values(p, format, e) < 0)
                return -EINVAL;
        x.first_rank = first;
        for (size_t i = 0; i < c->node_count; i++)
                first[i] = UINT32_MAX;
        for (size_t i = p->rank_count; i-- > 0;)
                first[p->ranks[i].node] = (uint32_t)i;
        x.image = image ? image : usual_image(&x);
        writers[format](&x);
        if (x.failed)
                return -ENOMEM;
        *ret_files = x.files;
        *ret_count = x.count;
        return 0;
}
