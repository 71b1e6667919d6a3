/* export_host.c - a node's ranks as systemd units and as containers. */
#include "cluster/export.h"

/* ---- systemd --------------------------------------------------------------------------------------------------------------- */

/* One item of ExecStart or Environment: quoted, with specifiers (%) and, in commands, variables ($) taken literally
 * (systemd.service(5), COMMAND LINES). */
static void add_unit_word(struct buf *out, const char *word, bool command) {
        buf_add_char(out, '"');
        for (; *word; word++)
                switch (*word) {
                case '"':
                case '\\':
                        buf_printf(out, "\\%c", *word);
                        break;
                case '\n':
                        buf_add_str(out, "\\n");
                        break;
                case '%':
                        buf_add_str(out, "%%");
                        break;
                case '$':
                        buf_add_str(out, command ? "$$" : "$");
                        break;
                default:
                        if ((unsigned char)*word < 32)
                                buf_printf(out, "\\x%02x", (unsigned char)*word);
                        else
                                buf_add_char(out, *word);
                }
        buf_add_char(out, '"');
}

static void add_unit(struct exporter *x, uint32_t node, struct slice name, struct buf *about, const char *const *env,
    const char *const *argv) {
        struct slice node_name = x->c->nodes[node].name;
        struct buf b = {0};

        buf_printf(&b,
            "# Planned by baton.\n[Unit]\nDescription=%.*s\nAfter=network-online.target\nWants=network-online.target\n"
            "PartOf=baton-%.*s.target\n\n[Service]\n",
            SLICE_ARG(buf_slice(about)), SLICE_ARG(node_name));
        for (; env && *env; env++)
                if (strchr(*env, '=')) {
                        buf_add_str(&b, "Environment=");
                        add_unit_word(&b, *env, false);
                        buf_add_char(&b, '\n');
                } else {
                        buf_add_str(&b, "UnsetEnvironment=");
                        add_unit_word(&b, *env, false);
                        buf_add_char(&b, '\n');
                }
        /* env finds the program in PATH, which systemd itself does not. */
        buf_add_str(&b, "ExecStart=/usr/bin/env");
        for (; *argv; argv++) {
                buf_add_str(&b, " \\\n  ");
                add_unit_word(&b, *argv, true);
        }
        buf_printf(&b,
            "\nLimitNOFILE=65535\nLimitMEMLOCK=infinity\nTimeoutStopSec=%lld\nKillMode=mixed\nRestart=no\n\n[Install]\n"
            "WantedBy=baton-%.*s.target\n",
            (long long)x->c->supervise.stop_seconds, SLICE_ARG(node_name));
        export_add(x, arena_printf(x->arena, "%.*s/baton-%.*s.service", SLICE_ARG(node_name), SLICE_ARG(name)),
            node_name, &b, false);
        buf_free(about);
}

void export_systemd(struct exporter *x) {
        for (uint32_t n = 0; n < x->c->node_count; n++) {
                struct slice name = x->c->nodes[n].name;
                const struct plan_rank *first;
                size_t ranks = export_ranks(x, n, &first);
                struct buf b = {0};

                if (!export_has_work(x, n))
                        continue;
                buf_printf(&b,
                    "# Planned by baton. Copy this folder's files to /etc/systemd/system of %.*s, then:\n"
                    "#   systemctl daemon-reload && systemctl enable --now baton-%.*s.target baton-*.service\n"
                    "[Unit]\nDescription=What baton planned for %.*s\n\n[Install]\nWantedBy=multi-user.target\n",
                    SLICE_ARG(name), SLICE_ARG(name), SLICE_ARG(name));
                export_add(x, arena_printf(x->arena, "%.*s/baton-%.*s.target", SLICE_ARG(name), SLICE_ARG(name)), name,
                    &b, false);
                for (size_t i = 0; i < ranks; i++) {
                        struct buf about = {0};

                        export_describe(x, &first[i], &about);
                        add_unit(x, n, first[i].name, &about, first[i].env, first[i].argv);
                }
                if (export_has_gateway(x, n)) {
                        struct buf about = {0};

                        buf_printf(&about, "gateway, %.*s", SLICE_ARG(x->plan->gateway_url));
                        add_unit(x, n, SLICE_LIT("gateway"), &about, NULL, x->plan->gateway_argv);
                }
        }
}

/* ---- docker ---------------------------------------------------------------------------------------------------------------- */

static void add_mount(struct buf *b, const char *path, const char *mode) {
        struct buf text = {0};

        buf_printf(&text, "%s:%s%s", path, path, mode);
        buf_add_str(b, " \\\n    -v ");
        export_shell_word(b, buf_cstr(&text));
        buf_free(&text);
}

/* What an Ascend container needs from its host; without hccn.conf it starts, and its output is garbage. */
static void add_ascend_devices(const struct exporter *x, const struct cluster_node *node, struct buf *b) {
        static const char *const devices[] = {"/dev/davinci_manager", "/dev/devmm_svm", "/dev/hisi_hdc"};
        static const char *const mounts[] = {"/usr/local/dcmi", "/usr/local/Ascend/driver/tools/hccn_tool",
            "/usr/local/bin/npu-smi", "/usr/local/Ascend/driver/lib64", "/usr/local/Ascend/driver/version.info",
            "/etc/ascend_install.info", "/etc/hccn.conf"};
        int64_t count = node_devices(x->c, node);

        for (int64_t i = node->first_device; i < node->first_device + count; i++)
                buf_printf(b, "%s--device /dev/davinci%lld", i == node->first_device ? " \\\n    " : " ", (long long)i);
        buf_add_str(b, " \\\n   ");
        for (size_t i = 0; i < sizeof(devices) / sizeof(*devices); i++)
                buf_printf(b, " --device %s", devices[i]);
        for (size_t i = 0; i < sizeof(mounts) / sizeof(*mounts); i++)
                add_mount(b, mounts[i], "");
}

static void add_absolute_mount(const struct exporter *x, struct slice path, struct buf *b) {
        const char *text = path.len && path.ptr[0] == '/' ? arena_copy(x->arena, path).ptr : NULL;

        if (text)
                add_mount(b, text, ":ro");
}

static void add_container(const struct exporter *x, const struct plan_rank *r, struct buf *b) {
        const struct cluster *c = x->c;
        const struct cluster_node *node = &c->nodes[r->node];

        buf_add_str(b, "\n# ");
        export_describe(x, r, b);
        buf_printf(b,
            "\ndocker run -d --name baton-%.*s --network host --ipc host \\\n"
            "    --ulimit nofile=65535 --ulimit memlock=-1 --stop-timeout %lld",
            SLICE_ARG(r->name), (long long)c->supervise.stop_seconds);
        if (platform_is_ascend(node_platform(c, node)))
                add_ascend_devices(x, node, b);
        else if (node_platform(c, node) == PLATFORM_CUDA)
                buf_add_str(b, " --gpus all"); /* CUDA_VISIBLE_DEVICES picks among them */
        add_absolute_mount(x, c->model.path, b);
        add_absolute_mount(x, c->engine.ranktable, b);
        add_absolute_mount(x, c->engine.template_path, b);
        for (const char *const *env = r->env; *env; env++) {
                buf_add_str(b, " \\\n    -e ");
                export_shell_word(b, *env);
                if (!strchr(*env, '='))
                        buf_add_char(b, '='); /* docker hands proxies of its own configuration in */
        }
        buf_add_str(b, " \\\n    --entrypoint ");
        export_shell_word(b, r->argv[0]);
        buf_add_str(b, " \"$image\"");
        for (const char *const *a = r->argv + 1; *a; a++) {
                buf_add_str(b, (*a)[0] == '-' ? " \\\n    " : " ");
                export_shell_word(b, *a);
        }
        buf_add_char(b, '\n');
}

void export_docker(struct exporter *x) {
        for (uint32_t n = 0; n < x->c->node_count; n++) {
                const struct cluster_node *node = &x->c->nodes[n];
                const struct plan_rank *first;
                size_t ranks = export_ranks(x, n, &first);
                struct buf b = {0};

                if (!export_has_work(x, n))
                        continue;
                buf_printf(&b,
                    "#!/bin/bash\n# Containers of %.*s (%.*s), planned by baton: one a rank.\n"
                    "#   IMAGE=... ./%.*s.docker.sh          then: docker logs -f baton-%.*s.0\nset "
                    "-eu\nimage=${IMAGE:-",
                    SLICE_ARG(node->name), SLICE_ARG(node->ip), SLICE_ARG(node->name), SLICE_ARG(node->name));
                export_shell_word(&b, x->image);
                buf_add_str(&b, "}\n");
                for (size_t i = 0; i < ranks; i++)
                        add_container(x, &first[i], &b);
                if (export_has_gateway(x, n)) {
                        buf_printf(&b, "\n# the gateway, %.*s, which needs no container\nexec",
                            SLICE_ARG(x->plan->gateway_url));
                        export_shell_command(&b, NULL, x->plan->gateway_argv);
                        buf_add_char(&b, '\n');
                }
                export_add(x, arena_printf(x->arena, "%.*s.docker.sh", SLICE_ARG(node->name)), node->name, &b, true);
        }
}
