/* export_batch.c - a whole plan for Kubernetes (LeaderWorkerSets) and for Slurm. */
#include "base/json.h"
#include "cluster/export.h"

/* ---- Kubernetes ------------------------------------------------------------------------------------------------------------ *
 *
 * A DP group is a LeaderWorkerSet with a pod per node, restarted as a whole. All pods of a set share one template, so a pod
 * learns which node it is on from its host's address and runs that node's script out of a ConfigMap. Pods use the host's
 * network: the plan's addresses and ports are the nodes' own. */

/* Names of objects are DNS labels: a node's name in lower case, '_' as '-'. */
static void add_label(struct buf *out, struct slice name) {
        for (size_t i = 0; i < name.len; i++) {
                char c = name.ptr[i];

                buf_add_char(out, c == '_' ? '-' : c >= 'A' && c <= 'Z' ? (char)(c + 32) : c);
        }
}

/* Text as a YAML block scalar. */
static void add_block(struct buf *out, const char *indent, struct slice text) {
        struct slice line;

        while (slice_split(&text, '\n', &line))
                if (line.len)
                        buf_printf(out, "%s%.*s\n", indent, SLICE_ARG(line));
                else if (text.ptr)
                        buf_add_char(out, '\n');
}

/* A string that Kubernetes takes literally: it expands $(NAME) in commands. */
static void add_argument(struct buf *out, const char *text) {
        struct buf escaped = {0};

        for (; *text; text++) {
                if (text[0] == '$' && text[1] == '(')
                        buf_add_char(&escaped, '$');
                buf_add_char(&escaped, *text);
        }
        json_add_string(out, buf_slice(&escaped));
        buf_free(&escaped);
}

static void add_config_map(const struct exporter *x, uint32_t node, struct buf *out) {
        struct slice name = x->c->nodes[node].name;
        struct buf script = {0};

        buf_add_str(&script, "set -u\nlogs=${1:-/tmp/logs}\n");
        export_node_body(x, node, BODY_RANKS, &script);
        buf_add_str(out, "---\napiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: baton-");
        add_label(out, name);
        buf_printf(out, "\ndata:\n  %.*s.sh: |\n", SLICE_ARG(name));
        add_block(out, "    ", buf_slice(&script));
        buf_free(&script);
}

/* Where pods of `count` nodes may run. */
static void add_affinity(const struct exporter *x, const uint32_t *nodes, size_t count, struct buf *out) {
        buf_add_str(out, "        affinity:\n"
                         "          nodeAffinity:\n"
                         "            requiredDuringSchedulingIgnoredDuringExecution:\n"
                         "              nodeSelectorTerms:\n"
                         "              - matchExpressions:\n"
                         "                - {key: kubernetes.io/hostname, operator: In, values: [");
        for (size_t i = 0; i < count; i++) {
                buf_add_str(out, i ? ", " : "");
                json_add_string(out, x->c->nodes[nodes[i]].name);
        }
        buf_add_str(out, "]}\n");
}

static void add_command(const struct exporter *x, const struct cluster_group *group, struct buf *out) {
        struct buf script = {0};

        buf_add_str(&script, "case $NODE_IP in ");
        for (size_t i = 0; i < group->count; i++) {
                const struct cluster_node *n = &x->c->nodes[group->nodes[i]];

                buf_printf(&script, "%.*s) exec bash /baton/%.*s.sh;; ", SLICE_ARG(n->ip), SLICE_ARG(n->name));
        }
        buf_add_str(&script, "*) echo \"$NODE_IP is no node of this group\" >&2; exit 2;; esac");
        buf_add_str(out, "          command: [bash, -c, ");
        add_argument(out, buf_cstr(&script));
        buf_add_str(out, "]\n");
        buf_free(&script);
}

static void add_resources(
    const struct exporter *x, const struct cluster_node *node, uint32_t devices, struct buf *out) {
        enum platform p = node_platform(x->c, node);

        if (p != PLATFORM_CPU)
                buf_printf(out, "          resources: {limits: {%s: %u}}\n",
                    platform_is_ascend(p) ? "huawei.com/Ascend910" : "nvidia.com/gpu", devices);
}

struct host_file {
        const char *name;
        struct slice path;
};

/* Absolute paths that the ranks read are the host's. */
static size_t host_files(const struct exporter *x, struct host_file ret_files[4]) {
        const struct cluster *c = x->c;
        const struct host_file files[] = {{"model", c->model.path}, {"ranktable", c->engine.ranktable},
            {"template", c->engine.template_path},
            {"hccn", platform_is_ascend(c->platform) ? SLICE_LIT("/etc/hccn.conf") : SLICE_NONE}};
        size_t n = 0;

        for (size_t i = 0; i < 4; i++)
                if (files[i].path.len && files[i].path.ptr[0] == '/')
                        ret_files[n++] = files[i];
        return n;
}

static void add_volumes(const struct exporter *x, const struct cluster_group *group, struct buf *out) {
        struct host_file files[4];
        size_t count = host_files(x, files);

        buf_add_str(out, "          volumeMounts:\n          - {name: plan, mountPath: /baton}\n");
        for (size_t i = 0; i < count; i++) {
                buf_printf(out, "          - {name: %s, readOnly: true, mountPath: ", files[i].name);
                json_add_string(out, files[i].path);
                buf_add_str(out, "}\n");
        }
        buf_add_str(out, "        volumes:\n        - name: plan\n          projected:\n            sources:\n");
        for (size_t i = 0; i < group->count; i++) {
                buf_add_str(out, "            - configMap: {name: baton-");
                add_label(out, x->c->nodes[group->nodes[i]].name);
                buf_add_str(out, "}\n");
        }
        for (size_t i = 0; i < count; i++) {
                buf_printf(out, "        - name: %s\n          hostPath: {path: ", files[i].name);
                json_add_string(out, files[i].path);
                buf_add_str(out, "}\n");
        }
}

static void add_set(const struct exporter *x, const struct cluster_role *role, uint32_t index, struct buf *out) {
        const struct cluster_group *group = &role->groups[index];
        const struct plan_rank *first;
        size_t ranks = export_ranks(x, group->nodes[0], &first);

        if (ranks == 0)
                return;
        buf_printf(out,
            "---\napiVersion: leaderworkerset.x-k8s.io/v1\nkind: LeaderWorkerSet\nmetadata:\n  name: baton-%s-%u\n"
            "spec:\n  replicas: 1\n  leaderWorkerTemplate:\n    size: %zu\n"
            "    restartPolicy: RecreateGroupOnPodRestart # a rank that is alone waits for its group for ever\n"
            "    workerTemplate:\n      metadata:\n        labels: {app: baton, baton-group: %s-%u}\n      spec:\n"
            "        hostNetwork: true\n        hostIPC: true\n        dnsPolicy: ClusterFirstWithHostNet\n"
            "        terminationGracePeriodSeconds: %lld\n",
            role_name(role->role), index, group->count, role_name(role->role), index,
            (long long)x->c->supervise.stop_seconds + 10);
        add_affinity(x, group->nodes, group->count, out);
        buf_add_str(out, "        containers:\n        - name: ranks\n          image: ");
        json_add_string(out, slice_str(x->image));
        buf_add_char(out, '\n');
        add_command(x, group, out);
        buf_add_str(
            out, "          env:\n          - {name: NODE_IP, valueFrom: {fieldRef: {fieldPath: status.hostIP}}}\n");
        buf_printf(out,
            "          ports: # a host has each only once: one pod a node\n"
            "          - {containerPort: %u, hostPort: %u}\n"
            "          readinessProbe: {httpGet: {path: /health, port: %u}, periodSeconds: 10}\n",
            first->api_port, first->api_port, first->api_port);
        add_resources(x, &x->c->nodes[group->nodes[0]], (uint32_t)(ranks * first->device_count), out);
        add_volumes(x, group, out);
}

static void add_gateway(const struct exporter *x, struct buf *out) {
        uint32_t node = (uint32_t)x->c->gateway.node;
        long long port = x->c->gateway.port;

        if (!x->plan->gateway_argv)
                return;
        buf_add_str(out,
            "---\napiVersion: apps/v1\nkind: Deployment\nmetadata:\n  name: baton-gateway\nspec:\n  replicas: 1\n"
            "  strategy: {type: Recreate}\n  selector: {matchLabels: {app: baton-gateway}}\n  template:\n    "
            "metadata:\n"
            "      labels: {app: baton-gateway}\n    spec:\n      hostNetwork: true\n"
            "      dnsPolicy: ClusterFirstWithHostNet\n      nodeSelector: {kubernetes.io/hostname: ");
        json_add_string(out, x->c->nodes[node].name);
        buf_add_str(out,
            "}\n      containers:\n      - name: gateway\n        image: baton:latest # one that has baton\n"
            "        command:\n");
        for (const char *const *a = x->plan->gateway_argv; *a; a++) {
                buf_add_str(out, "        - ");
                add_argument(out, *a);
                buf_add_char(out, '\n');
        }
        buf_printf(out,
            "        ports:\n        - {containerPort: %lld, hostPort: %lld}\n"
            "        readinessProbe: {httpGet: {path: /health, port: %lld}, periodSeconds: 5}\n",
            port, port, port);
}

void export_k8s(struct exporter *x) {
        struct buf b = {0};

        buf_add_str(&b, "# Planned by baton for LeaderWorkerSet (sigs.k8s.io/lws). Kubernetes must know the nodes by "
                        "the names and addresses\n"
                        "# of the cluster file; a pod finds its node's script by its host's address.\n");
        for (uint32_t n = 0; n < x->c->node_count; n++)
                if (x->first_rank[n] != UINT32_MAX)
                        add_config_map(x, n, &b);
        for (int role = 0; role < 2; role++)
                for (uint32_t g = 0; g < x->c->roles[role].group_count; g++)
                        add_set(x, &x->c->roles[role], g, &b);
        add_gateway(x, &b);
        export_add(x, "baton.k8s.yaml", SLICE_NONE, &b, false);
}

/* ---- Slurm ------------------------------------------------------------------------------------------------------------------ */

void export_slurm(struct exporter *x) {
        struct buf b = {0};
        size_t nodes = 0;

        buf_add_str(&b,
            "#!/bin/bash\n# Planned by baton. Slurm must know the nodes by the names of the cluster file.\n"
            "#   sbatch baton.sbatch [LOGS]     LOGS: a folder that every node can write, default ./logs\n"
            "#SBATCH --job-name=baton\n#SBATCH --ntasks-per-node=1\n#SBATCH --exclusive\n#SBATCH --nodelist=");
        for (uint32_t n = 0; n < x->c->node_count; n++)
                if (export_has_work(x, n))
                        buf_printf(&b, "%s%.*s", nodes++ ? "," : "", SLICE_ARG(x->c->nodes[n].name));
        /* The mark must not stand in what it ends: it holds the plan's own hash. */
        buf_printf(&b,
            "\n#SBATCH --nodes=%zu\n\n"
            "# Every node gets all of this on its standard input and takes its own part.\n"
            "exec srun --kill-on-bad-exit=1 --ntasks-per-node=1 bash -s -- \"${1:-$PWD/logs}\" <<'BATON_%016llx'\n"
            "set -u\nlogs=$1\nnode=${SLURMD_NODENAME:-$(hostname)}\ncase ${node%%%%.*} in\n",
            nodes, (unsigned long long)x->plan->digest);
        for (uint32_t n = 0; n < x->c->node_count; n++)
                if (export_has_work(x, n)) {
                        buf_printf(&b, "%.*s)\n", SLICE_ARG(x->c->nodes[n].name));
                        export_node_body(x, n, BODY_ALL, &b);
                        buf_add_str(&b, ";;\n");
                }
        buf_printf(&b, "esac\necho \"no ranks are planned for $node\" >&2\nexit 2\nBATON_%016llx\n",
            (unsigned long long)x->plan->digest);
        export_add(x, "baton.sbatch", SLICE_NONE, &b, true);
}
