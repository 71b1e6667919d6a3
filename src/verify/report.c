/* report.c - findings for people and for programs; the matrix of pings between nodes. */
#include "base/json.h"
#include "verify/core.h"
#include "verify/grid.h"
#include "verify/host.h"
#include <stdio.h>

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

/* By pair of nodes: what their NPUs' pings came to. */
static void write_interconnect(struct json_writer *w, const struct facts *facts) {
        struct arena arena = {0};
        struct grid g;

        if (facts->probe_count && grid_make(facts, GRID_NODES, &arena, &g) == 0) {
                json_key(w, "interconnect");
                json_open(w, '[');
                for (size_t i = 0; i < g.side * g.side; i++) {
                        const struct cell *c = &g.cells[i];

                        if (!c->pairs)
                                continue;
                        json_open(w, '{');
                        json_key(w, "from");
                        json_string(w, facts->nodes[i / g.side].name);
                        json_key(w, "to");
                        json_string(w, facts->nodes[i % g.side].name);
                        json_key(w, "pings");
                        json_u64(w, c->pairs);
                        json_key(w, "bad");
                        json_u64(w, c->bad);
                        json_key(w, "packets_sent");
                        json_u64(w, c->sent);
                        json_key(w, "packets_received");
                        json_u64(w, c->received);
                        json_key(w, "mean_us");
                        if (c->bad < c->pairs)
                                json_double(w, c->us);
                        else
                                json_null(w);
                        json_close(w, '}');
                }
                json_close(w, ']');
        }
        arena_free(&arena);
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
        write_interconnect(&w, facts);
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

#define COLUMNS 80
/* Of a node's name so much is shown in the picture. */
#define NAME_SHOWN 10

static const char *const colors[CELL_KINDS] = {"\033[2m", "", "\033[33m", "\033[35m", "\033[33m", "\033[31m"};

struct picture {
        const struct facts *facts;
        const struct grid *grid;
        struct buf *out;
        bool color;
        size_t label; /* width of what stands before a row */
};

/* Cells from..to of a row, in runs of one colour. */
static void draw_cells(const struct picture *p, size_t row, size_t from, size_t to) {
        enum cell_kind last = CELL_GOOD;

        for (size_t k = from; k < to; k++) {
                enum cell_kind kind = p->grid->cells[row * p->grid->side + k].kind;

                if (p->color && kind != last && *colors[last])
                        buf_add_str(p->out, "\033[0m");
                if (p->color && kind != last)
                        buf_add_str(p->out, colors[kind]);
                last = kind;
                buf_add_char(p->out, cell_marks[kind]);
        }
        if (p->color && *colors[last])
                buf_add_str(p->out, "\033[0m");
}

/* Where the block of columns that begins at `from` ends: NPUs of one node, or eight nodes. */
static size_t block_end(const struct grid *g, size_t from) {
        size_t to = from + 1;

        while (to < g->side && (g->level == GRID_NPUS ? g->ends[to].node == g->ends[from].node : to % 8 != 0))
                to++;
        return to;
}

static bool same_row(const struct grid *g, size_t a, size_t b) {
        for (size_t k = 0; k < g->side; k++)
                if (g->cells[a * g->side + k].kind != g->cells[b * g->side + k].kind)
                        return false;
        return g->level == GRID_NPUS && g->ends[a].node == g->ends[b].node;
}

/* Rows of one node that look alike are one: "p0 0-7". */
static void draw_rows(const struct picture *p) {
        const struct grid *g = p->grid;

        for (size_t i = 0, last; i < g->side; i = last + 1) {
                const struct node_facts *n = &p->facts->nodes[g->ends[i].node];
                struct slice name = slice_sub(n->name, 0, NAME_SHOWN);
                char range[32] = "";

                for (last = i; last + 1 < g->side && same_row(g, i, last + 1);)
                        last++;
                if (g->level == GRID_NPUS)
                        snprintf(range, sizeof(range), last > i ? " %u-%u" : " %u", n->npus[g->ends[i].npu].device,
                            n->npus[g->ends[last].npu].device);
                buf_printf(p->out, "  %.*s%-*s", SLICE_ARG(name), (int)(p->label - 2 - name.len), range);
                for (size_t k = 0, end; k < g->side; k = end) {
                        end = block_end(g, k);
                        buf_add_char(p->out, ' ');
                        draw_cells(p, i, k, end);
                }
                buf_add_char(p->out, '\n');
        }
}

static void draw_head(const struct picture *p) {
        const struct grid *g = p->grid;

        buf_printf(p->out, "%*s", (int)p->label, "");
        for (size_t k = 0, end; k < g->side; k = end) {
                struct slice name = p->facts->nodes[g->ends[k].node].name;

                end = block_end(g, k);
                name = slice_sub(name, 0, end - k);
                buf_printf(p->out, " %.*s", SLICE_ARG(name));
                if (end < g->side)
                        buf_printf(p->out, "%*s", (int)(end - k - name.len), "");
        }
        buf_add_char(p->out, '\n');
}

static size_t picture_width(const struct picture *p) {
        size_t width = p->label;

        for (size_t k = 0, end; k < p->grid->side; k = end) {
                end = block_end(p->grid, k);
                width += 1 + end - k;
        }
        return width;
}

static size_t label_width(const struct facts *facts, const struct grid *g) {
        size_t width = 0, range = sizeof(" 0-7") - 1;

        for (size_t i = 0; i < facts->node_count; i++) {
                const struct node_facts *n = &facts->nodes[i];
                size_t len = n->name.len;

                if (n->npu_count && n->npus[n->npu_count - 1].device > 9)
                        range = sizeof(" 10-15") - 1;

                len = len > NAME_SHOWN ? NAME_SHOWN : len;
                width = len > width ? len : width;
        }
        return 2 + width + (g->level == GRID_NPUS ? range : 0);
}

/* The pings as a square: who asks to the left, who is asked above. By NPU where that fits the width of a terminal, else by
 * node; of still more nodes only the findings are of use. */
static void draw_matrix(const struct facts *facts, bool color, struct buf *out) {
        struct arena arena = {0};
        struct grid grids[2];
        struct picture p = {facts, NULL, out, color, 0};

        for (int level = GRID_NPUS; facts->probe_count && level <= GRID_NODES && !p.grid; level++) {
                if (grid_make(facts, (enum grid_level)level, &arena, &grids[level]) < 0)
                        continue;
                p.grid = &grids[level];
                p.label = label_width(facts, p.grid);
                if (picture_width(&p) > COLUMNS)
                        p.grid = NULL;
        }
        if (!p.grid)
                goto out;
        buf_printf(out, "interconnect  %s, who asks to the left, who is asked above, by %s:\n             ",
            facts->platform == PLATFORM_ASCEND_A3 ? "hccs_ping" : "ping", p.grid->level == GRID_NPUS ? "NPU" : "node");
        for (int k = CELL_GOOD, told = 0; k < CELL_KINDS; k++)
                if (p.grid->kinds[k])
                        buf_printf(
                            out, "%s %zu %s (%c)", told++ ? "," : "", p.grid->kinds[k], cell_words[k], cell_marks[k]);
        if (p.grid->median_us > 0)
                buf_printf(out, "; median %.1f µs, slowest %.1f µs", p.grid->median_us, p.grid->slowest_us);
        buf_add_char(out, '\n');
        draw_head(&p);
        draw_rows(&p);
out:
        arena_free(&arena);
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
        draw_matrix(facts, color, out);
        for (size_t i = 0; i < f->count; i++)
                write_finding(facts, &f->items[i], color, out);
        if (f->count)
                buf_printf(out, "%zu error%s, %zu warning%s\n", errors, errors == 1 ? "" : "s", warnings,
                    warnings == 1 ? "" : "s");
        else
                buf_add_str(out, "no findings\n");
}
