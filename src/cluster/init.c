/* init.c - a commented cluster file for a topology that was asked for. */
#include "base/json.h"
#include "cluster/planner.h"
#include "cluster/recipes.h"
#include <errno.h>

/* What is to be written, all questions answered. */
struct draft {
        const char *engine, *platform, *model, *served_name, *version, *connector, *ranktable, *nic;
        int64_t max_len, drafts, gateway_port;
        const char *env;
        bool whole;
        enum engine_kind kind;
        enum platform machine;
        struct recipe_role roles[2];
        const struct init_role *asked;
};

static const char *first_text(const char *a, const char *b, const char *c) {
        return a ? a : b ? b : c;
}

static int64_t first_number(int64_t a, int64_t b, int64_t c) {
        return a > 0 ? a : b > 0 ? b : c;
}

/* ---- answering --------------------------------------------------------------------------------------------------------- */

static int find_kind(const char *name, enum engine_kind *ret, struct error *e) {
        for (int k = ENGINE_EMBEDDED; k <= ENGINE_VLLM; k++)
                if (!strcmp(name, engine_kind_name((enum engine_kind)k))) {
                        *ret = (enum engine_kind)k;
                        return 0;
                }
        return error_set(e, -EINVAL, "--engine: `%.60s` is none of embedded, vllm-ascend, vllm", name);
}

static int find_platform(const char *name, enum platform *ret, struct error *e) {
        for (int p = PLATFORM_CPU; p <= PLATFORM_CUDA; p++)
                if (!strcmp(name, platform_name((enum platform)p))) {
                        *ret = (enum platform)p;
                        return 0;
                }
        return error_set(e, -EINVAL, "--platform: `%.60s` is none of cpu, ascend-a2, ascend-a3, ascend-a5, cuda", name);
}

static const char *usual_engine(enum platform p) {
        return engine_kind_name(platform_is_ascend(p) ? ENGINE_VLLM_ASCEND
                                : p == PLATFORM_CUDA  ? ENGINE_VLLM
                                                      : ENGINE_EMBEDDED);
}

/* Nodes, groups and sizes of a role. Prefill wants few ranks of many devices, decode many ranks of few: a whole group's
 * devices are shared out so. */
static int answer_role(struct draft *d, enum role role, const struct recipe *recipe, struct error *e) {
        const struct init_role *o = &d->asked[role];
        const struct recipe_role *from = &recipe->roles[role];
        struct recipe_role *r = &d->roles[role];
        bool alone = d->kind == ENGINE_EMBEDDED;
        int64_t devices = platform_devices(d->machine);

        *r = *from;
        r->nodes = o->host_count ? (int64_t)o->host_count : first_number(o->nodes, from->nodes, 1);
        r->group_nodes = first_number(o->group_nodes, from->group_nodes < r->nodes ? from->group_nodes : r->nodes,
            role == ROLE_PREFILL || alone ? 1 : r->nodes);
        if (r->nodes % r->group_nodes)
                return error_set(e, -EINVAL, "%lld %s nodes do not divide into groups of %lld", (long long)r->nodes,
                    role_name(role), (long long)r->group_nodes);
        r->tp = first_number(o->tp, from->tp, role == ROLE_PREFILL && !alone ? 8 : 1);
        r->dp = o->dp;
        if (r->dp == 0 && from->dp && r->tp == from->tp)
                r->dp = from->dp * r->group_nodes / from->group_nodes;
        if (r->dp == 0)
                r->dp = alone || devices < 0 ? r->group_nodes : devices * r->group_nodes / r->tp;
        if (r->dp == 0)
                r->dp = 1; /* the check tells what does not fit */
        return 0;
}

static int answer(const struct init_options *o, struct draft *ret, struct error *e) {
        static const struct recipe none = {0};
        const struct recipe *recipe = o->recipe ? recipe_find(o->recipe) : &none;
        struct draft d = {.asked = o->roles, .whole = o->whole};
        int r;

        if (!recipe)
                return error_set(e, -EINVAL, "--recipe: there is none named `%.60s`; --recipes lists them", o->recipe);
        d.platform = first_text(o->platform, recipe->platform, "cpu");
        r = find_platform(d.platform, &d.machine, e);
        if (r < 0)
                return r;
        d.engine = first_text(o->engine, recipe->engine, usual_engine(d.machine));
        r = find_kind(d.engine, &d.kind, e);
        if (r < 0)
                return r;
        d.model = first_text(
            o->model, recipe->model, d.kind == ENGINE_EMBEDDED ? "models/baton-tiny" : "/models/DeepSeek-R1");
        d.served_name =
            first_text(o->served_name, recipe->served_name, d.kind == ENGINE_EMBEDDED ? "baton-tiny" : "deepseek_r1");
        d.version = first_text(o->version, recipe->version, NULL);
        d.connector = first_text(o->connector, recipe->connector, NULL);
        d.ranktable = first_text(o->ranktable, "/etc/ranktable.json", NULL);
        d.nic = first_text(o->nic, "eth0", NULL);
        d.max_len = first_number(o->max_len, recipe->max_len, d.kind == ENGINE_EMBEDDED ? 2048 : 17000);
        d.drafts = recipe->drafts;
        d.gateway_port = first_number(o->gateway_port, 8000, 0);
        d.env = recipe->env;
        for (int role = o->whole ? ROLE_DECODE : ROLE_PREFILL; r == 0 && role < 2; role++)
                r = answer_role(&d, (enum role)role, recipe, e);
        if (r == 0)
                *ret = d;
        return r;
}

/* ---- writing ------------------------------------------------------------------------------------------------------------ */

/* A scalar, quoted unless it is plainly a word or a path. */
static void add_text(struct buf *out, const char *text) {
        struct slice s = slice_str(text);
        bool plain = s.len && (text[0] == '/' || ((text[0] | 32) >= 'a' && (text[0] | 32) <= 'z')) &&
                     !slice_is_icase(s, "null") && !slice_is_icase(s, "true") && !slice_is_icase(s, "false");

        for (size_t i = 0; i < s.len; i++) {
                char c = text[i];

                plain &= ((c | 32) >= 'a' && (c | 32) <= 'z') || (c >= '0' && c <= '9') || c == '/' || c == '-' ||
                         c == '_' || c == '.';
        }
        if (plain)
                buf_add(out, s);
        else
                json_add_string(out, s);
}

static void add_lines(struct buf *out, const char *key, const char *indent, const char *lines) {
        struct slice rest = slice_str(lines), line;

        if (!lines)
                return;
        buf_printf(out, "%s%s:\n", indent, key);
        while (slice_split(&rest, '\n', &line))
                if (line.len)
                        buf_printf(out, "%s  %.*s\n", indent, SLICE_ARG(line));
}

static void write_model(const struct draft *d, struct buf *out) {
        buf_add_str(out, "model:\n  path: ");
        add_text(out, d->model);
        buf_add_str(out, "    # the same folder on every node\n  served_name: ");
        add_text(out, d->served_name);
        buf_printf(out, "\n  max_len: %lld    # tokens of a prompt and its answer\n", (long long)d->max_len);
        if (d->kind == ENGINE_VLLM_ASCEND)
                buf_add_str(out, "  quantization: ascend    # of W8A8 and W4A8 checkpoints; leave it out for others\n");
        if (d->drafts)
                buf_printf(
                    out, "  speculative: {tokens: %lld}    # MTP: drafts of a decode step\n", (long long)d->drafts);
}

static bool wants_ranktable(const struct draft *d) {
        uint32_t version;
        const struct connector_info *k;

        if (d->whole || d->kind != ENGINE_VLLM_ASCEND || version_parse(slice_str(d->version), &version) < 0)
                return false;
        k = connector_of(d->kind, version, slice_str(d->connector));
        return k && k->ranktable;
}

static void write_engine(const struct draft *d, struct buf *out) {
        buf_printf(out, "\nengine:\n  kind: %s\n", d->engine);
        if (d->version) {
                buf_add_str(out, "  version: ");
                json_add_string(out, slice_str(d->version));
                buf_add_str(out, "    # decides which options and connectors there are\n");
        } else if (d->kind == ENGINE_VLLM_ASCEND)
                buf_add_str(out,
                    "  # version: \"0.17.0\"    # decides which options and connectors there are; else the newest\n");
        if (d->connector) {
                buf_add_str(out, "  connector: ");
                add_text(out, d->connector);
                buf_add_char(out, '\n');
        }
        if (wants_ranktable(d)) {
                buf_add_str(out, "  ranktable: ");
                add_text(out, d->ranktable);
                buf_add_str(out, "    # equal on every node; `baton ranktable` writes it\n");
        }
        add_lines(out, "env", "  ", d->env);
        buf_printf(out, "\nplatform: %s\n", d->platform);
}

/* Without addresses the nodes get made-up ones, counted on over both roles; on CPUs all are this machine. */
static void write_nodes(const struct draft *d, struct buf *out) {
        unsigned made_up = 0;

        buf_add_str(
            out, "\nnodes:    # the names are yours; ip and nic are those over which the nodes reach each other\n");
        for (int role = d->whole ? ROLE_DECODE : ROLE_PREFILL; role < 2; role++)
                for (int64_t i = 0; i < d->roles[role].nodes; i++) {
                        buf_printf(out, "  %c%lld: {ip: ", role == ROLE_PREFILL ? 'p' : 'd', (long long)i);
                        if (d->asked[role].host_count)
                                json_add_string(out, slice_str(d->asked[role].hosts[i]));
                        else if (d->machine == PLATFORM_CPU)
                                buf_add_str(out, "127.0.0.1");
                        else
                                buf_printf(out, "192.0.%u.%u", made_up / 250, made_up % 250 + 1);
                        made_up++;
                        if (d->machine != PLATFORM_CPU) {
                                buf_add_str(out, ", nic: ");
                                add_text(out, d->nic);
                        }
                        buf_add_str(out, "}\n");
                }
}

static void write_role(const struct draft *d, enum role role, struct buf *out) {
        const struct recipe_role *r = &d->roles[role];
        char letter = role == ROLE_PREFILL ? 'p' : 'd';

        buf_printf(out, "\n%s:\n  groups: [", role_name(role));
        for (int64_t i = 0; i < r->nodes; i++)
                buf_printf(out, "%s%c%lld%s",
                    i % r->group_nodes ? ", "
                    : i                ? ", ["
                                       : "[",
                    letter, (long long)i, i % r->group_nodes == r->group_nodes - 1 ? "]" : "");
        buf_add_str(out, "]    # each list is one DP group; its first node is the master\n");
        if (d->kind != ENGINE_EMBEDDED)
                buf_printf(out,
                    "  dp: %lld    # ranks of a group, over all of its nodes\n  tp: %lld    # devices of a rank\n",
                    (long long)r->dp, (long long)r->tp);
        else if (r->dp > 1)
                buf_printf(out, "  dp: %lld    # ranks of a group, over all of its nodes: they share the experts\n",
                    (long long)r->dp);
        if (d->kind == ENGINE_EMBEDDED)
                buf_printf(out, "  api_port: %d    # of the first rank of a machine, counted up\n",
                    role == ROLE_PREFILL ? 9100 : 9200);
        else
                buf_add_str(out, "  api_port: 9000    # of the first rank of a machine, counted up\n");
        add_lines(out, "env", "  ", r->env);
        add_lines(out, "args", "  ", r->args);
}

int init_write(const struct init_options *o, struct buf *out, struct error *e) {
        struct draft d = {0};
        int r = answer(o, &d, e);

        if (r < 0)
                return r;
        if (o->recipe)
                buf_printf(out, "# %s.\n", recipe_find(o->recipe)->is.about);
        buf_add_str(out,
            "# `baton check` tells what is wrong with this file, `baton plan` what follows from it: devices, ports,\n"
            "# environment and options of every rank. `env` and `args` under engine, prefill, decode, a group, a\n"
            "# node or `ranks` add to what is derived, the later ones winning; null drops an option.\n\n");
        write_model(&d, out);
        write_engine(&d, out);
        write_nodes(&d, out);
        for (int role = d.whole ? ROLE_DECODE : ROLE_PREFILL; role < 2; role++)
                write_role(&d, (enum role)role, out);
        buf_printf(out, "\ngateway:\n  node: %s\n  port: %lld\n  policy: least_load\n", d.whole ? "d0" : "p0",
            (long long)d.gateway_port);
        return buf_ok(out) ? 0 : -ENOMEM;
}
