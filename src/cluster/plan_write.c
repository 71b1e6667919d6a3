/* plan_write.c - a plan as columns for people and as JSON for programs. */
#include "base/json.h"
#include "cluster/cluster.h"
#include <stdio.h>

void plan_write_table(const struct plan *p, struct buf *out) {
        size_t width = 4, prefill = 0;

        for (size_t i = 0; i < p->rank_count; i++)
                width = p->ranks[i].name.len > width ? p->ranks[i].name.len : width;
        buf_printf(out, "%-*s  role     group  dp rank  tp  devices  url\n", (int)width, "rank");
        for (size_t i = 0; i < p->rank_count; i++) {
                const struct plan_rank *r = &p->ranks[i];
                char devices[32] = "-";

                if (p->cluster->platform != PLATFORM_CPU && r->device_count == 1)
                        snprintf(devices, sizeof(devices), "%u", r->first_device);
                else if (p->cluster->platform != PLATFORM_CPU)
                        snprintf(
                            devices, sizeof(devices), "%u-%u", r->first_device, r->first_device + r->device_count - 1);
                buf_printf(out, "%-*.*s  %-7s  %5u  %3u/%-3u  %2u  %-7s  %.*s\n", (int)width, SLICE_ARG(r->name),
                    role_name(r->role), r->group, r->dp_rank, r->dp_size, r->tp_size, devices, SLICE_ARG(r->url));
        }
        for (size_t i = 0; i < p->rank_count; i++)
                prefill += p->ranks[i].role == ROLE_PREFILL;
        if (p->gateway_argv)
                buf_printf(out, "%-*s  gateway                              %.*s\n", (int)width, "",
                    SLICE_ARG(p->gateway_url));
        if (p->connector)
                buf_printf(out, "hand-off: %s, every prefill rank to every decode rank (%zu x %zu)\n", p->connector,
                    prefill, p->rank_count - prefill);
}

static void write_strings(struct json_writer *w, const char *key, const char *const *list) {
        json_key(w, key);
        json_open(w, '[');
        for (; list && *list; list++)
                json_str(w, *list);
        json_close(w, ']');
}

/* Files that must be there before a rank starts, the same on every node. */
static void write_files(struct json_writer *w, const struct cluster *c) {
        const struct {
                const char *what;
                struct slice path;
        } files[] = {
            {"model", c->model.path}, {"template", c->engine.template_path}, {"ranktable", c->engine.ranktable}};

        json_key(w, "files");
        json_open(w, '[');
        for (size_t i = 0; i < sizeof(files) / sizeof(*files); i++)
                if (files[i].path.len) {
                        json_open(w, '{');
                        json_key(w, "what");
                        json_str(w, files[i].what);
                        json_key(w, "path");
                        json_string(w, files[i].path);
                        json_close(w, '}');
                }
        json_close(w, ']');
}

void plan_write_json(const struct plan *p, struct buf *out) {
        struct json_writer w = {.out = out};

        json_open(&w, '{');
        json_key(&w, "ranks");
        json_open(&w, '[');
        for (size_t i = 0; i < p->rank_count; i++) {
                const struct plan_rank *r = &p->ranks[i];

                json_open(&w, '{');
                json_key(&w, "name");
                json_string(&w, r->name);
                json_key(&w, "role");
                json_str(&w, role_name(r->role));
                json_key(&w, "node");
                json_string(&w, p->cluster->nodes[r->node].name);
                json_key(&w, "group");
                json_u64(&w, r->group);
                json_key(&w, "local_rank");
                json_u64(&w, r->local);
                json_key(&w, "dp_rank");
                json_u64(&w, r->dp_rank);
                json_key(&w, "dp_size");
                json_u64(&w, r->dp_size);
                json_key(&w, "tp_size");
                json_u64(&w, r->tp_size);
                json_key(&w, "devices");
                json_open(&w, '[');
                for (uint32_t d = 0; p->cluster->platform != PLATFORM_CPU && d < r->device_count; d++)
                        json_u64(&w, r->first_device + d);
                json_close(&w, ']');
                json_key(&w, "url");
                json_string(&w, r->url);
                json_key(&w, "api_port");
                json_u64(&w, r->api_port);
                json_key(&w, "dp_address");
                json_string(&w, r->dp_address);
                json_key(&w, "dp_port");
                json_u64(&w, r->dp_port);
                json_key(&w, "kv_port");
                json_u64(&w, r->kv_port);
                write_strings(&w, "argv", r->argv);
                write_strings(&w, "env", r->env);
                json_close(&w, '}');
        }
        json_close(&w, ']');
        json_key(&w, "connector");
        json_str(&w, p->connector);
        write_files(&w, p->cluster);
        json_key(&w, "gateway");
        if (p->gateway_argv) {
                json_open(&w, '{');
                json_key(&w, "url");
                json_string(&w, p->gateway_url);
                write_strings(&w, "argv", p->gateway_argv);
                json_close(&w, '}');
        } else
                json_null(&w);
        json_close(&w, '}');
        buf_add_char(out, '\n');
}
