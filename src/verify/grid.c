/* grid.c - see grid.h. */
#include "verify/grid.h"
#include "verify/parse.h"
#include <errno.h>
#include <stdlib.h>

const char cell_marks[CELL_KINDS] = {'-', '.', 's', '?', '+', 'X'};
const char *const cell_words[CELL_KINDS] = {"not tried", "good", "slow", "not known", "packets lost", "lost"};

static int compare_doubles(const void *a, const void *b) {
        double x = *(const double *)a, y = *(const double *)b;

        return (x > y) - (x < y);
}

static struct cell cell_of(const struct answer *a) {
        struct slice said;
        struct ping p;
        struct cell c = {.kind = CELL_UNKNOWN, .pairs = 1, .bad = 1};

        switch (answer_trouble(a, &said)) {
        case TROUBLE_NONE:
                break;
        case TROUBLE_FAILED:
        case TROUBLE_LINK_DOWN:
        case TROUBLE_HEALTH:
                c.kind = CELL_LOST;
                return c;
        default:
                return c;
        }
        if (parse_ping(a->out, &p) < 0)
                return c;
        c.sent = p.sent;
        c.received = p.received;
        if (!p.received)
                c.kind = CELL_LOST;
        else if (p.received != p.sent || p.plane.len)
                c.kind = CELL_LOSSY;
        else {
                c.kind = CELL_GOOD;
                c.bad = 0;
                c.us = p.average_us;
        }
        return c;
}

static void add(struct cell *to, const struct cell *c) {
        uint32_t good = to->pairs - to->bad;

        if (!c->bad)
                to->us = (to->us * good + c->us) / (good + 1);
        if (c->kind > to->kind)
                to->kind = c->kind;
        to->pairs += c->pairs;
        to->bad += c->bad;
        to->sent += c->sent;
        to->received += c->received;
}

/* Where the NPUs of each node begin; `ends` filled. */
static size_t *list_ends(const struct facts *f, struct arena *arena, struct grid *g) {
        size_t *begin = arena_array(arena, f->node_count + 1, sizeof(*begin));

        g->side = 0;
        for (size_t i = 0; begin && i < f->node_count; i++) {
                begin[i] = g->side;
                g->side += g->level == GRID_NODES ? 1 : f->nodes[i].npu_count;
        }
        g->ends = begin && g->side <= GRID_SIDE_MAX ? arena_array(arena, g->side + 1, sizeof(*g->ends)) : NULL;
        for (uint32_t i = 0; g->ends && i < f->node_count; i++)
                for (uint32_t k = 0; k < (g->level == GRID_NODES ? 1 : f->nodes[i].npu_count); k++) {
                        g->ends[begin[i] + k].node = i;
                        g->ends[begin[i] + k].npu = k;
                }
        return begin;
}

int grid_make(const struct facts *facts, enum grid_level level, struct arena *arena, struct grid *ret) {
        struct grid g = {.level = level, .pairs = facts->probe_count};
        size_t *begin = list_ends(facts, arena, &g), good = 0;
        struct cell *all;
        double *times;

        if (begin && g.side > GRID_SIDE_MAX)
                return -E2BIG;
        all = arena_array(arena, facts->probe_count + 1, sizeof(*all));
        times = arena_array(arena, facts->probe_count + 1, sizeof(*times));
        g.cells = arena_array(arena, g.side * g.side + 1, sizeof(*g.cells));
        if (!begin || !all || !times || !g.ends || !g.cells)
                return -ENOMEM;
        for (size_t i = 0; i < facts->probe_count; i++) {
                all[i] = cell_of(&facts->probes[i].answer);
                if (!all[i].bad)
                        times[good++] = all[i].us;
        }
        if (good) {
                qsort(times, good, sizeof(*times), compare_doubles);
                g.median_us = times[good / 2];
                g.slowest_us = times[good - 1];
        }
        for (size_t i = 0; i < facts->probe_count; i++) {
                const struct probe *p = &facts->probes[i];
                size_t from = begin[p->from_node] + (level == GRID_NPUS ? p->from_npu : 0),
                       to = begin[p->to_node] + (level == GRID_NPUS ? p->to_npu : 0);

                if (all[i].kind == CELL_GOOD && all[i].us > SLOW_FACTOR * g.median_us)
                        all[i].kind = CELL_SLOW;
                g.kinds[all[i].kind]++;
                add(&g.cells[from * g.side + to], &all[i]);
        }
        *ret = g;
        return 0;
}
