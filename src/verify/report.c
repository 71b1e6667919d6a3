/* report.c - findings for people and for programs; the matrix of pings between nodes. */
#include "base/json.h"
#include "verify/core.h"
#include "verify/host.h"
#include <stdio.h>
#include <stdlib.h>

static size_t count_severity(const struct verify_findings *f, enum severity severity) {
        size_t n = 0;

        for (size_t i = 0; i < f->count; i++)
                n += f->items[i].severity == severity;
        return n;
}

/* ---- JSON ------------------------------------------------------------------------------------------------------------ */

static void write_place(struct json_writer *w, const struct facts *facts, const char *node_key, const char *device_key,
    int64_t node, int64_t device) {
        json_key(w, node_key);
        if (node < 0)
                json_null(w);
        else
                json_string(w, facts->nodes[node].name);
        json_key(w, device_key);
        if (device < 0)
                json_null(w);
        else
                json_i64(w, device);
}

void verify_write_json(const struct facts *facts, const struct verify_findings *f, struct buf *out) {
        struct json_writer w = {.out = out};

        json_open(&w, '{');
        json_key(&w, "platform");
        json_str(&w, platform_name(facts->platform));
        json_key(&w, "nodes");
        json_open(&w, '[');
        for (size_t i = 0; i < facts->node_count; i++) {
                json_open(&w, '{');
                json_key(&w, "node");
                json_string(&w, facts->nodes[i].name);
                json_key(&w, "ip");
                json_string(&w, facts->nodes[i].ip);
                json_key(&w, "npus");
                json_u64(&w, facts->nodes[i].npu_count);
                json_close(&w, '}');
        }
        json_close(&w, ']');
        json_key(&w, "pings");
        json_u64(&w, facts->probe_count);
        json_key(&w, "errors");
        json_u64(&w, count_severity(f, SEVERITY_ERROR));
        json_key(&w, "warnings");
        json_u64(&w, count_severity(f, SEVERITY_WARNING));
        json_key(&w, "findings");
        json_open(&w, '[');
        for (size_t i = 0; i < f->count; i++) {
                const struct verify_finding *v = &f->items[i];

                json_open(&w, '{');
                json_key(&w, "severity");
                json_str(&w, v->severity == SEVERITY_ERROR ? "error" : "warning");
                json_key(&w, "code");
                json_str(&w, v->code);
                json_key(&w, "check");
                json_str(&w, v->check);
                write_place(&w, facts, "node", "device", v->node, v->device);
                write_place(&w, facts, "peer_node", "peer_device", v->peer_node, v->peer_device);
                json_key(&w, "unknown");
                json_bool(&w, v->unknown);
                json_key(&w, "cause");
                json_str(&w, v->cause);
                json_key(&w, "cure");
                json_str(&w, v->cure);
                json_close(&w, '}');
        }
        json_close(&w, ']');
        json_close(&w, '}');
        buf_add_char(out, '\n');
}

/* ---- text ------------------------------------------------------------------------------------------------------------ */

/* What all probes from one node to another came to. */
struct cell {
        double *times; /* of the good ones */
        size_t good, bad, capacity;
};

static int compare_doubles(const void *a, const void *b) {
        double x = *(const double *)a, y = *(const double *)b;

        return (x > y) - (x < y);
}

static bool is_good(const struct answer *a, double *ret_us) {
        struct slice said;
        struct ping p;

        if (answer_trouble(a, &said) != TROUBLE_NONE || parse_ping(a->out, &p) < 0 || p.sent != p.received ||
            p.plane.len)
                return false;
        *ret_us = p.average_us;
        return true;
}

static bool cell_add(struct cell *c, double us) {
        if (c->good == c->capacity) {
                size_t capacity = c->capacity ? 2 * c->capacity : 64;
                double *times = realloc(c->times, capacity * sizeof(*times));

                if (!times)
                        return false;
                c->times = times;
                c->capacity = capacity;
        }
        c->times[c->good++] = us;
        return true;
}

/* A terminal shows so many columns of nodes; of more, only the rows with something wrong are of use, and they are findings. */
#define MATRIX_NODES_MAX 12

static void write_matrix(const struct facts *facts, struct buf *out) {
        size_t n = facts->node_count;
        struct cell *cells;

        if (!facts->probe_count || n > MATRIX_NODES_MAX)
                return;
        cells = calloc(n * n, sizeof(*cells));
        if (!cells)
                return;
        for (size_t i = 0; i < facts->probe_count; i++) {
                const struct probe *p = &facts->probes[i];
                struct cell *c = &cells[p->from_node * n + p->to_node];
                double us;

                if (!is_good(&p->answer, &us))
                        c->bad++;
                else if (!cell_add(c, us))
                        goto out;
        }
        buf_printf(out,
            "interconnect (%s, every NPU to every NPU of other nodes: median µs, then pings that failed)\n%12s",
            facts->platform == PLATFORM_ASCEND_A3 ? "hccs_ping" : "ping", "");
        for (size_t i = 0; i < n; i++)
                buf_printf(out, "%14.*s", SLICE_ARG(facts->nodes[i].name));
        buf_add_char(out, '\n');
        for (size_t i = 0; i < n; i++) {
                buf_printf(out, "%12.*s", SLICE_ARG(facts->nodes[i].name));
                for (size_t k = 0; k < n; k++) {
                        struct cell *c = &cells[i * n + k];
                        char text[40];

                        if (c->good)
                                qsort(c->times, c->good, sizeof(*c->times), compare_doubles);
                        if (c->good && c->bad)
                                snprintf(text, sizeof(text), "x%zu %.1f", c->bad, c->times[c->good / 2]);
                        else if (c->good)
                                snprintf(text, sizeof(text), "%.1f", c->times[c->good / 2]);
                        else
                                snprintf(text, sizeof(text), "%s", c->bad ? "all lost" : "-");
                        buf_printf(out, "%14s", text);
                }
                buf_add_char(out, '\n');
        }
out:
        for (size_t i = 0; i < n * n; i++)
                free(cells[i].times);
        free(cells);
}

/* "64 of 64" of what: nodes or NPUs without an error under one of the checks. */
static void write_summary(const struct facts *facts, const struct verify_findings *f, struct buf *out) {
        size_t there = 0, expected = 0, answered = 0, bad = 0, ports = 0;

        for (size_t i = 0; i < facts->node_count; i++) {
                const struct node_facts *n = &facts->nodes[i];
                size_t worst = 0;

                ports += n->plan.port_count;
                answered += n->npu_count > 0 || (facts->hosts.asked && host_answered(&n->host.facts));
                if (n->host_only)
                        continue;
                there += n->npu_count;
                expected += n->expected > 0 ? (size_t)n->expected : n->npu_count;
                for (size_t k = 0; k < n->npu_count; k++)
                        for (size_t v = 0; v < f->count; v++)
                                if (f->items[v].node == (int64_t)i && f->items[v].severity == SEVERITY_ERROR &&
                                    (f->items[v].device < 0 || f->items[v].device == n->npus[k].device)) {
                                        worst++;
                                        break;
                                }
                bad += worst;
        }
        buf_printf(out, "nodes         %zu of %zu answer\n", answered, facts->node_count);
        if (expected)
                buf_printf(out, "NPUs          %zu of %zu there, %zu without an error\n", there, expected, there - bad);
        if (facts->probe_count)
                buf_printf(out, "pings         %zu\n", facts->probe_count);
        if (ports)
                buf_printf(
                    out, "ports         %zu planned, tried over %zu pairs of nodes\n", ports, facts->hosts.try_count);
}

static void write_finding(const struct facts *facts, const struct verify_finding *v, bool color, struct buf *out) {
        bool error = v->severity == SEVERITY_ERROR;

        buf_printf(out, "  %s%s %s%s  %.*s", color ? (error ? "\033[31m" : "\033[33m") : "",
            error ? "error" : "warning", v->code, color ? "\033[0m" : "",
            SLICE_ARG(v->node < 0 ? SLICE_LIT("all") : facts->nodes[v->node].name));
        if (v->device >= 0)
                buf_printf(out, " npu %lld", (long long)v->device);
        buf_printf(out, " %s: %s\n", v->check, v->cause);
        if (v->cure)
                buf_printf(out, "      cure: %s\n", v->cure);
}

void verify_write_text(const struct facts *facts, const struct verify_findings *f, bool color, struct buf *out) {
        size_t errors = count_severity(f, SEVERITY_ERROR), warnings = f->count - errors;

        write_summary(facts, f, out);
        write_matrix(facts, out);
        for (size_t i = 0; i < f->count; i++)
                write_finding(facts, &f->items[i], color, out);
        if (f->count)
                buf_printf(out, "%zu error%s, %zu warning%s\n", errors, errors == 1 ? "" : "s", warnings,
                    warnings == 1 ? "" : "s");
        else
                buf_add_str(out, "no findings\n");
}
