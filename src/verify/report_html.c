/* report_html.c - the report as one HTML page: nothing is fetched, nothing runs, every text of a machine is escaped. */
#include "verify/grid.h"
#include "verify/host.h"
#include "verify/judge.h"

static void add_text(struct buf *out, struct slice text) {
        for (size_t i = 0; i < text.len; i++) {
                unsigned char c = (unsigned char)text.ptr[i];

                if (c == '&')
                        buf_add_str(out, "&amp;");
                else if (c == '<')
                        buf_add_str(out, "&lt;");
                else if (c == '>')
                        buf_add_str(out, "&gt;");
                else if (c == '"')
                        buf_add_str(out, "&quot;");
                else if (c < ' ' && c != '\n' && c != '\t')
                        buf_add_char(out, '?');
                else
                        buf_add_char(out, (char)c);
        }
}

static void add_str(struct buf *out, const char *text) {
        add_text(out, slice_str(text));
}

static struct slice node_name(const struct facts *facts, int64_t node) {
        return node < 0 ? SLICE_LIT("all nodes") : facts->nodes[node].name;
}

/* ---- head -------------------------------------------------------------------------------------------------------------- */

static const char style[] =
    ":root{color-scheme:light dark;--bg:#fcfcfb;--fg:#1d1f21;--soft:#666a6f;--line:#dcdcd8;--card:#fff;--red:#b3261e;"
    "--amber:#8a5a00;--green:#1d6f42;--violet:#6b3fa0;--g0:#c9e7d3;--g1:#8fd0a8;--g2:#e7dc94;--g3:#e9bd6c;--none:#"
    "ececea}"
    "@media(prefers-color-scheme:dark){:root{--bg:#16181a;--fg:#e6e6e3;--soft:#9a9ea3;--line:#34383c;--card:#1d2023;"
    "--red:#ff8a80;--amber:#ffc466;--green:#7fd6a2;--violet:#c6a5f5;--g0:#1f4d33;--g1:#2f7a50;--g2:#6f6722;--g3:#"
    "8a5d1a;"
    "--none:#25282b}}"
    "body{margin:0;background:var(--bg);color:var(--fg);font:15px/1.5 system-ui,sans-serif}"
    "main{max-width:70rem;margin:0 auto;padding:2rem 1.25rem 4rem}h1{font-size:1.4rem;margin:0}"
    "h2{font-size:1.05rem;margin:2.2rem 0 .6rem}.soft{color:var(--soft)}"
    ".tiles{display:flex;flex-wrap:wrap;gap:.75rem;margin:1.2rem 0 0;padding:0;list-style:none}"
    ".tiles li{background:var(--card);border:1px solid var(--line);border-radius:8px;padding:.6rem "
    ".9rem;min-width:8rem}"
    ".tiles b{display:block;font-size:1.35rem;font-variant-numeric:tabular-nums}"
    "table{border-collapse:collapse;width:100%;background:var(--card);border:1px solid var(--line)}"
    "th,td{text-align:left;vertical-align:top;padding:.4rem .7rem;border-top:1px solid var(--line)}"
    "th{font-weight:600;color:var(--soft);font-size:.85rem}td.n{font-variant-numeric:tabular-nums;white-space:nowrap}"
    ".error{color:var(--red);font-weight:600}.warning{color:var(--amber);font-weight:600}.fine{color:var(--green);"
    "font-weight:600}.unknown{color:var(--violet);font-weight:600}.wide{overflow-x:auto}"
    "svg{display:block;font:11px system-ui,sans-serif}svg text{fill:var(--fg)}.c0{fill:var(--none)}.c1{fill:var(--g0)}"
    ".c2{fill:var(--g3)}.c3{fill:var(--violet)}.c4{fill:var(--amber)}.c5{fill:var(--red)}.m1{fill:var(--g1)}"
    ".m2{fill:var(--g2)}.x{stroke:var(--bg);stroke-width:1.5;fill:none}"
    ".key{display:flex;flex-wrap:wrap;gap:1.1rem;margin:.2rem 0 .8rem}.key svg{display:inline;vertical-align:-1px;"
    "margin-right:.35rem}";

static size_t count_of(const struct verify_findings *f, enum severity severity, int64_t node) {
        size_t n = 0;

        for (size_t i = 0; i < f->count; i++)
                n += f->items[i].severity == severity && (node < 0 || f->items[i].node == node);
        return n;
}

static void write_verdict(const struct verify_findings *f, struct buf *out) {
        size_t errors = count_of(f, SEVERITY_ERROR, -1), warnings = count_of(f, SEVERITY_WARNING, -1);
        int code = verify_exit_code(f);

        buf_printf(out, "<p class=\"%s\">%s</p>",
            code == 1   ? "error"
            : code == 3 ? "unknown"
            : f->count  ? "warning"
                        : "fine",
            code == 1   ? "Something is broken."
            : code == 3 ? "Nothing is known to be broken, but something could not be found out."
            : f->count  ? "Nothing is broken; there are warnings."
                        : "Nothing was found wrong.");
        buf_printf(out, "<ul class=\"tiles\"><li><b>%zu</b>error%s<li><b>%zu</b>warning%s", errors,
            errors == 1 ? "" : "s", warnings, warnings == 1 ? "" : "s");
}

static void write_head(const struct facts *facts, const struct verify_findings *f, const char *title, const char *when,
    const struct grid *grid, struct buf *out) {
        size_t npus = 0;

        buf_add_str(out, "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\"><meta "
                         "http-equiv=\"Content-Security-Policy\" "
                         "content=\"default-src 'none'; style-src 'unsafe-inline'\"><meta name=\"viewport\" "
                         "content=\"width=device-width\"><title>baton verify: ");
        add_str(out, title);
        buf_printf(out, "</title><style>%s</style></head><body><main><h1>", style);
        add_str(out, title);
        buf_add_str(out, "</h1><p class=\"soft\">baton verify, ");
        add_str(out, platform_name(facts->platform));
        buf_add_str(out, ", ");
        add_str(out, when);
        buf_add_str(out, "</p>");
        write_verdict(f, out);
        for (size_t i = 0; i < facts->node_count; i++)
                npus += facts->nodes[i].npu_count;
        buf_printf(out, "<li><b>%zu</b>node%s", facts->node_count, facts->node_count == 1 ? "" : "s");
        if (npus)
                buf_printf(out, "<li><b>%zu</b>NPU%s", npus, npus == 1 ? "" : "s");
        if (grid) {
                size_t good = grid->kinds[CELL_GOOD] + grid->kinds[CELL_SLOW];

                buf_printf(out, "<li><b>%zu of %zu</b>pings good", good, grid->pairs);
                if (grid->median_us > 0)
                        buf_printf(out, "<li><b>%.1f µs</b>median, slowest %.1f", grid->median_us, grid->slowest_us);
        }
        buf_add_str(out, "</ul>");
}

/* ---- findings, nodes -------------------------------------------------------------------------------------------------------- */

static void write_findings(const struct facts *facts, const struct verify_findings *f, struct buf *out) {
        buf_add_str(out, "<h2>Findings</h2>");
        if (!f->count) {
                buf_add_str(out, "<p>None.</p>");
                return;
        }
        buf_add_str(out, "<div class=\"wide\"><table><tr><th>Severity<th>Code<th>Where<th>Cause and cure");
        for (size_t i = 0; i < f->count; i++) {
                const struct verify_finding *v = &f->items[i];
                const char *word = v->severity == SEVERITY_ERROR ? "error" : "warning";

                buf_printf(out, "<tr><td class=\"%s\">%s%s<td class=\"n\">", v->unknown ? "unknown" : word, word,
                    v->unknown ? " (not known)" : "");
                add_str(out, v->code);
                buf_add_str(out, "<br><span class=\"soft\">");
                add_str(out, v->check);
                buf_add_str(out, "</span><td class=\"n\">");
                add_text(out, node_name(facts, v->node));
                if (v->device >= 0)
                        buf_printf(out, " npu %lld", (long long)v->device);
                buf_add_str(out, "<td>");
                add_str(out, v->cause);
                if (v->cure) {
                        buf_add_str(out, "<br><span class=\"soft\">Cure: ");
                        add_str(out, v->cure);
                        buf_add_str(out, "</span>");
                }
        }
        buf_add_str(out, "</table></div>");
}

/* Interface, MTU and clock as the node told them; what is not known is a dash. */
static void write_host(const struct facts *facts, size_t node, struct buf *out) {
        const struct node_facts *n = &facts->nodes[node];
        struct arena arena = {0};
        struct host_told told;
        const struct host_nic *nic = NULL;

        if (host_answered(&n->host.facts) && host_told_parse(n->host.facts.out, &arena, &told) == 0)
                nic = host_nic_with(&told, n->ip);
        buf_add_str(out, "<td class=\"n\">");
        if (nic) {
                add_text(out, nic->name);
                buf_printf(out, ", %lld", (long long)nic->mtu);
        } else
                buf_add_str(out, "–");
        buf_printf(out, "<td class=\"n\">%zu<td class=\"n\">", n->plan.port_count);
        if (n->host.clock_known)
                buf_printf(
                    out, "%+.1f ± %.1f ms", (double)n->host.clock_ahead_ns / 1e6, (double)n->host.clock_bound_ns / 1e6);
        else
                buf_add_str(out, "–");
        arena_free(&arena);
}

static void write_nodes(const struct facts *facts, const struct verify_findings *f, struct buf *out) {
        buf_add_str(
            out, "<h2>Nodes</h2><div class=\"wide\"><table><tr><th>Node<th>Address<th>NPUs<th>Errors<th>Warnings");
        if (facts->hosts.asked)
                buf_add_str(out, "<th>Interface, MTU<th>Ports<th>Clock, to this machine's");
        for (size_t i = 0; i < facts->node_count; i++) {
                const struct node_facts *n = &facts->nodes[i];
                size_t errors = count_of(f, SEVERITY_ERROR, (int64_t)i),
                       warnings = count_of(f, SEVERITY_WARNING, (int64_t)i);

                buf_add_str(out, "<tr><td class=\"n\">");
                add_text(out, n->name);
                buf_add_str(out, "<td class=\"n\">");
                add_text(out, n->ip);
                if (n->host_only)
                        buf_add_str(out, "<td class=\"n\">–");
                else if (n->expected > 0)
                        buf_printf(out, "<td class=\"n\">%zu of %lld", n->npu_count, (long long)n->expected);
                else
                        buf_printf(out, "<td class=\"n\">%zu", n->npu_count);
                buf_printf(out, "<td class=\"n%s\">%zu<td class=\"n%s\">%zu", errors ? " error" : "", errors,
                    warnings ? " warning" : "", warnings);
                if (facts->hosts.asked)
                        write_host(facts, i, out);
        }
        buf_add_str(out, "</table></div>");
}

/* ---- the picture -------------------------------------------------------------------------------------------------------------- */

/* By NPU up to this side: 16,384 cells of some 130 bytes. Beyond that by node. */
#define DRAWN_NPUS_MAX 128u
/* Numbers beside the picture for so many nodes. */
#define LISTED_NODES_MAX 16u
#define GAP              5u

/* Good ones in three shades by latency. */
static const char *class_of(const struct grid *g, const struct cell *c) {
        static const char *const classes[CELL_KINDS] = {"c0", "c1", "c2", "c3", "c4", "c5"};

        if (c->kind == CELL_GOOD && c->us > 3 * g->median_us)
                return "m2";
        if (c->kind == CELL_GOOD && c->us > 1.5 * g->median_us)
                return "m1";
        return classes[c->kind];
}

static void add_end(const struct facts *facts, const struct grid *g, size_t at, struct buf *out) {
        const struct node_facts *n = &facts->nodes[g->ends[at].node];

        add_text(out, n->name);
        if (g->level == GRID_NPUS)
                buf_printf(out, " npu %u", n->npus[g->ends[at].npu].device);
}

static void add_tip(const struct facts *facts, const struct grid *g, size_t from, size_t to, struct buf *out) {
        const struct cell *c = &g->cells[from * g->side + to];

        add_end(facts, g, from, out);
        buf_add_str(out, " → ");
        add_end(facts, g, to, out);
        buf_printf(out, ": %s", cell_words[c->kind]);
        if (c->sent)
                buf_printf(out, ", %.2f %% lost", 100.0 * (double)(c->sent - c->received) / (double)c->sent);
        if (c->us > 0)
                buf_printf(out, ", %.1f µs", c->us);
}

/* Where a column or row begins: nodes stand apart. */
static size_t offset_of(const struct grid *g, size_t at, size_t cell) {
        return at * cell + (g->level == GRID_NPUS ? g->ends[at].node * GAP : 0);
}

static void draw_labels(
    const struct facts *facts, const struct grid *g, size_t left, size_t top, size_t cell, struct buf *out) {
        for (size_t i = 0; i < g->side; i++) {
                struct slice name = facts->nodes[g->ends[i].node].name;

                if (i && g->ends[i - 1].node == g->ends[i].node)
                        continue;
                name = slice_sub(name, 0, 14);
                buf_printf(out, "<text x=\"%zu\" y=\"%zu\" text-anchor=\"end\">", left - 6,
                    top + offset_of(g, i, cell) + (cell > 10 ? cell - 3 : 10));
                add_text(out, name);
                buf_printf(out, "</text><text transform=\"translate(%zu,%zu) rotate(-45)\">",
                    left + offset_of(g, i, cell) + 8, top - 5);
                add_text(out, name);
                buf_add_str(out, "</text>");
        }
}

static void draw_cells(
    const struct facts *facts, const struct grid *g, size_t left, size_t top, size_t cell, struct buf *out) {
        for (size_t i = 0; i < g->side; i++)
                for (size_t k = 0; k < g->side; k++) {
                        const struct cell *c = &g->cells[i * g->side + k];
                        size_t x = left + offset_of(g, k, cell), y = top + offset_of(g, i, cell), size = cell - 1;

                        buf_printf(out, "<rect class=\"%s\" x=\"%zu\" y=\"%zu\" width=\"%zu\" height=\"%zu\">",
                            class_of(g, c), x, y, size, size);
                        if (c->kind != CELL_NONE) {
                                buf_add_str(out, "<title>");
                                add_tip(facts, g, i, k, out);
                                buf_add_str(out, "</title>");
                        }
                        buf_add_str(out, "</rect>");
                        if (c->kind == CELL_LOST) /* not by colour alone */
                                buf_printf(out, "<path class=\"x\" d=\"M%zu %zul%zu %zum0 -%zul-%zu %zu\"/>", x + 2,
                                    y + 2, size - 4, size - 4, size - 4, size - 4, size - 4);
                }
}

static void draw_key(const struct grid *g, struct buf *out) {
        buf_add_str(out, "<div class=\"key\">");
        for (int k = CELL_NONE; k < CELL_KINDS; k++) {
                if (k != CELL_NONE && !g->kinds[k])
                        continue;
                buf_printf(out,
                    "<span><svg width=\"12\" height=\"12\" aria-hidden=\"true\"><rect class=\"c%d\" width=\"12\" "
                    "height=\"12\"/></svg>%s",
                    k, cell_words[k]);
                if (k != CELL_NONE)
                        buf_printf(out, " (%zu)", g->kinds[k]);
                buf_add_str(out, "</span>");
                if (k == CELL_GOOD)
                        buf_add_str(out,
                            "<span><svg width=\"12\" height=\"12\" aria-hidden=\"true\"><rect class=\"m1\" "
                            "width=\"12\" "
                            "height=\"12\"/></svg>beyond 1.5 × median</span><span><svg width=\"12\" height=\"12\" "
                            "aria-hidden=\"true\"><rect class=\"m2\" width=\"12\" height=\"12\"/></svg>beyond 3 "
                            "×</span>");
        }
        buf_add_str(out, "</div>");
}

static void write_picture(const struct facts *facts, const struct grid *g, struct buf *out) {
        size_t left = 96, top = 74, cell = g->side <= 40 ? 14 : g->side <= 80 ? 10 : 8;
        size_t last = offset_of(g, g->side - 1, cell) + cell;

        buf_printf(out,
            "<h2>Interconnect (%s)</h2><p class=\"soft\">Every %s asks every %s of other nodes: who asks to the "
            "left, who is asked above.</p>",
            facts->platform == PLATFORM_ASCEND_A3 ? "hccs_ping" : "ping", g->level == GRID_NPUS ? "NPU" : "node",
            g->level == GRID_NPUS ? "NPU" : "node");
        draw_key(g, out);
        buf_printf(out,
            "<div class=\"wide\"><svg width=\"%zu\" height=\"%zu\" role=\"img\" aria-label=\"matrix of pings\">",
            left + last + 60, top + last + 4);
        draw_labels(facts, g, left, top, cell, out);
        draw_cells(facts, g, left, top, cell, out);
        buf_add_str(out, "</svg></div>");
}

/* Loss and latency between nodes as numbers. */
static void write_numbers(const struct facts *facts, const struct grid *nodes, struct buf *out) {
        buf_add_str(out,
            "<h2>Between nodes</h2><p class=\"soft\">Mean latency of pings that lost nothing; packets lost, where "
            "any were.</p><div class=\"wide\"><table><tr><th>from \\ to");
        for (size_t k = 0; k < nodes->side; k++) {
                buf_add_str(out, "<th>");
                add_text(out, facts->nodes[k].name);
        }
        for (size_t i = 0; i < nodes->side; i++) {
                buf_add_str(out, "<tr><td class=\"n\">");
                add_text(out, facts->nodes[i].name);
                for (size_t k = 0; k < nodes->side; k++) {
                        const struct cell *c = &nodes->cells[i * nodes->side + k];

                        buf_add_str(out, "<td class=\"n\">");
                        if (!c->pairs)
                                buf_add_str(out, "<span class=\"soft\">–</span>");
                        if (c->pairs > c->bad)
                                buf_printf(out, "%.1f µs", c->us);
                        if (c->bad)
                                buf_printf(out, "%s<span class=\"%s\">%u of %u bad", c->pairs > c->bad ? ", " : "",
                                    c->kind == CELL_UNKNOWN ? "unknown" : "error", c->bad, c->pairs);
                        if (c->bad && c->sent > c->received)
                                buf_printf(
                                    out, ", %.2f %% lost", 100.0 * (double)(c->sent - c->received) / (double)c->sent);
                        if (c->bad)
                                buf_add_str(out, "</span>");
                }
        }
        buf_add_str(out, "</table></div>");
}

void verify_write_html(
    const struct facts *facts, const struct verify_findings *f, const char *title, const char *when, struct buf *out) {
        struct arena arena = {0};
        struct grid npus, nodes;
        bool by_node = facts->probe_count && grid_make(facts, GRID_NODES, &arena, &nodes) == 0;
        bool by_npu = by_node && grid_make(facts, GRID_NPUS, &arena, &npus) == 0 && npus.side <= DRAWN_NPUS_MAX;

        write_head(facts, f, title, when, by_node ? &nodes : NULL, out);
        write_findings(facts, f, out);
        write_nodes(facts, f, out);
        if (by_node && (by_npu || nodes.side <= DRAWN_NPUS_MAX))
                write_picture(facts, by_npu ? &npus : &nodes, out);
        if (by_node && nodes.side <= LISTED_NODES_MAX)
                write_numbers(facts, &nodes, out);
        buf_add_str(out, "</main></body></html>\n");
        arena_free(&arena);
}
