/* stage.c - cutting products into tasks, and the loops of one task. */
#include "kernels/stage.h"
#include <assert.h>
#include <stdalign.h>
#include <string.h>

/* Rows of one task at most: a tile of results has so many rows of 32. A multiple of every table's block. */
#define TILE_ROWS 192
/* Expanded weights of one pass, [k][32] words: 32 KiB, so that they and a block of activations stay in L1 or close. */
#define PASS_UNITS 256
static_assert(PASS_UNITS >= FP8_BLOCK_K_MAX, "the columns of one fp8 scale fit");
/* The same of int8 weights, which need no expanding: they come from L2 as fast as they are used. */
#define PASS_UNITS_INT8 256
/* Activations of so many words are packed by the caller: less than what waking the workers for it costs. */
#define PACK_ALONE_WORDS 16384
/* Weights of one task at least, if there are enough for everybody: memory is read fastest in long runs. */
#define TASK_BYTES ((size_t)256 << 10)
/* Tasks per worker at least, so that an uneven start or a late worker evens out. */
#define TASKS_PER_WORKER 4

/* A worker's scratch. */
struct bench {
        alignas(64) uint32_t expanded[PASS_UNITS * PANEL];
        alignas(64) float tile[2][TILE_ROWS * PANEL];    /* results that do not go to y as they are */
        alignas(64) uint32_t partial[TILE_ROWS * PANEL]; /* sums between two passes */
        alignas(64) uint8_t row[];                       /* one converted row: 2 * K_MAX bytes and a pair more */
};
static_assert(sizeof(struct bench) + ((size_t)1 << 19) + 64 <= SCRATCH_WORKER_BYTES, "a row of 2^18 bf16 fits");

enum form form_for(const struct compute *c, enum weight_type type) {
        if (type == WEIGHT_INT8_DYNAMIC)
                return FORM_INT8_DYNAMIC;
        if (type == WEIGHT_INT8_STATIC)
                return FORM_INT8_STATIC;
        if (c->activation == ACTIVATION_BF16 && c->table->gemm_bf16 && (type == WEIGHT_BF16 || type == WEIGHT_FP8))
                return FORM_BF16;
        return FORM_F32;
}

static bool form_is_int8(enum form form) {
        return form == FORM_INT8_DYNAMIC || form == FORM_INT8_STATIC;
}

/* Columns in a word of activations. */
static size_t word_columns(const struct compute *c, enum form form) {
        if (form_is_int8(form))
                return c->table->expand_int8 ? 2 : 4;
        return form == FORM_BF16 ? 2 : 1;
}

static size_t form_units(const struct compute *c, enum form form, size_t k) {
        /* int8 weights come in fours. */
        return form_is_int8(form) ? ceil_div(k, 4) * 4 / word_columns(c, form) : ceil_div(k, word_columns(c, form));
}

/* ---- activations ------------------------------------------------------------------------------------------------- */

size_t activations_bytes(const struct compute *c, enum form form, size_t k, size_t rows) {
        return align64(rows * form_units(c, form, k) * 4) + align64(rows * sizeof(float));
}

static const float *activation_row(const struct activations *a, size_t row) {
        return a->x + (a->index ? a->index[row] : row) * a->ldx;
}

static size_t block_first(const struct activations *a, size_t block) {
        size_t each = a->rows / a->blocks, more = a->rows % a->blocks;

        return block * each + (block < more ? block : more);
}

static unsigned block_rows(const struct activations *a, size_t block) {
        return (unsigned)(block_first(a, block + 1) - block_first(a, block));
}

/* Rounding to bf16 where weights take f32: on CPUs without bf16 products, and for f32 and f16 weights. */
static bool rounds(const struct compute *c, const struct activations *a) {
        return c->activation == ACTIVATION_BF16 && a->form == FORM_F32;
}

/* One row of floats needs no packing. */
static bool is_direct(const struct activations *a) {
        return a->packed == (const void *)activation_row(a, 0);
}

void activations_prepare(struct compute *c, struct activations *a) {
        const struct kernel_table *t = c->table;

        assert(a->rows > 0);
        a->units = form_units(c, a->form, a->k);
        a->blocks = ceil_div(a->rows, form_is_int8(a->form) ? t->block_rows_int8 : t->block_rows);
        a->row_scale = NULL;
        if (a->form == FORM_INT8_DYNAMIC)
                a->row_scale = scratch_take(c, a->rows * sizeof(float));
        if (a->form == FORM_F32 && a->rows == 1 && !rounds(c, a))
                a->packed = activation_row(a, 0);
        else
                a->packed = scratch_take(c, a->rows * a->units * 4);
}

static void pack_block(const struct compute *c, const struct activations *a, size_t block, uint8_t *converted) {
        const struct kernel_table *t = c->table;
        const size_t first = block_first(a, block), rows = block_rows(a, block);
        char *to = (char *)a->packed + first * a->units * 4;

        if (is_direct(a))
                return;
        for (size_t r = 0; r < rows; r++) {
                const float *x = activation_row(a, first + r);
                const char *words = (const char *)converted;

                switch (a->form) {
                case FORM_F32:
                        words = (const char *)x;
                        break;
                case FORM_BF16:
                        t->row_to_bf16(x, a->k, (uint16_t *)converted);
                        break;
                case FORM_INT8_DYNAMIC: {
                        const size_t row = a->index ? a->index[first + r] : first + r;
                        float scale = a->scales ? a->scales[row] : t->row_largest(x, a->k) / 127;

                        a->row_scale[first + r] = scale;
                        t->row_to_int8(x, a->k, a->scales ? 1 : scale, converted);
                        break;
                }
                case FORM_INT8_STATIC:
                        t->row_to_int8_static(x, a->k, a->scale_inv, a->offset, converted);
                        break;
                }
                for (size_t u = 0; u < a->units; u++)
                        memcpy(to + (u * rows + r) * 4, words + u * 4, 4);
        }
        if (rounds(c, a))
                t->round_bf16((float *)to, rows * a->units);
}

static void pack_nth_block(const struct compute *c, const struct stage *s, size_t nth, struct bench *bench) {
        struct activations *a = &s->a[entry_of(&s->a->first_block, sizeof(*s->a), s->a_count, nth)];

        pack_block(c, a, nth - a->first_block, bench->row);
}

/* ---- tasks ------------------------------------------------------------------------------------------------------- */

/* Chunks of rows: their activations take at most a core's second-level cache. */
static size_t chunk_count(const struct compute *c, const struct activations *a) {
        size_t rows = c->cache_bytes / (a->units * 4), most_blocks, block;

        block = ceil_div(a->rows, a->blocks);
        if (rows > TILE_ROWS)
                rows = TILE_ROWS;
        most_blocks = rows / block > 0 ? rows / block : 1;
        return ceil_div(a->blocks, most_blocks);
}

/* Panels per task, so that at least `tasks` come out. An even number, which hides latencies better, unless a small layer
 * could then not reach every worker. */
static size_t unit_panels(const struct linear *l, enum epilogue epilogue, size_t tasks) {
        const size_t most = l->panels / tasks, want = ceil_div(TASK_BYTES, panel_offset(l->type, l->k));
        const size_t panels = want < most ? want : most;

        if (panels < 2)
                return epilogue == EPILOGUE_SWIGLU ? 2 : 1;
        return panels / 2 * 2;
}

void stage_prepare(struct compute *c, struct stage *s, bool later) {
        const size_t threads = compute_threads(c), groups = compute_groups(c);
        size_t words = 0, blocks = 0, tasks = 0;

        for (size_t i = 0; i < s->a_count; i++) {
                s->a[i].first_block = blocks;
                blocks += s->a[i].blocks;
                if (!is_direct(&s->a[i]))
                        words += s->a[i].rows * s->a[i].units;
        }
        if (words == 0)
                blocks = 0;
        if (!later && words <= PACK_ALONE_WORDS) {
                for (size_t i = 0; i < blocks; i++)
                        pack_nth_block(c, s, i, scratch_worker(c, 0));
                blocks = 0;
        }
        for (size_t i = 0; i < s->part_count; i++) {
                struct part *p = &s->parts[i];

                p->chunks = chunk_count(c, p->a);
                p->unit_panels =
                    unit_panels(&p->l, p->epilogue, TASKS_PER_WORKER * threads / s->part_count / p->chunks + 1);
                p->units = ceil_div(ceil_div(p->l.panels, p->unit_panels), groups) * groups;
                p->first_task = tasks;
                tasks += p->units * p->chunks;
        }
        step_begin(&s->packing, blocks);
        step_begin(&s->tasks, tasks);
        for (size_t g = 0; groups > 1 && g < groups; g++)
                atomic_store_explicit(&s->shares[g].next, 0, memory_order_relaxed);
}

/* The rows of a task, in blocks and by number. */
struct task_rows {
        size_t from, to; /* blocks */
        size_t row, rows;
};

/* Rows of activations times one panel. */
struct product {
        const struct compute *c;
        const struct part *p;
        size_t panel;
        bool last; /* no panel of this task follows */
        struct task_rows rows;
        float *out; /* row r's results go to out[r * ldo + lane] */
        size_t ldo;
        struct bench *bench;
};

/* A pass: units [unit, unit + count) of one panel, decoded or as they are, met by block after block of activations. While
 * the blocks are computed the next pass's weights are fetched, a share with each block. */
struct pass {
        const struct product *pr;
        struct operands o;
        size_t unit;
        bool last;
        size_t block, row; /* the next block; the current one's first row among the product's */
        size_t share;      /* bytes to fetch per block */
};

static struct pass pass_begin(const struct product *pr, size_t unit, size_t count, const void *b) {
        const struct linear *l = &pr->p->l;
        const size_t each = word_columns(pr->c, pr->p->a->form);
        const size_t blocks = pr->rows.to - pr->rows.from;
        struct pass p = {.pr = pr,
            .unit = unit,
            .last = unit + count >= pr->p->a->units,
            .block = pr->rows.from,
            .o = {.row_step = 1, .b = b, .k = count, .next = b}};

        if (blocks == 1 && b != pr->bench->expanded) {
                /* The weights are read here, once: a steady distance ahead of the sums. */
                p.o.next = (const char *)b + PREFETCH_BYTES;
                p.o.ahead = PANEL * 4;
                return p;
        }
        if (p.last && pr->last)
                return p;
        /* Passes are of the same size, and the next panel begins where this one ends. */
        p.o.next = linear_panel(l, pr->panel, p.last ? l->k : (unit + count) * each);
        p.share = ceil_div(panel_offset(l->type, count * each), blocks);
        p.o.ahead = ceil_div(p.share, count);
        return p;
}

static bool pass_step(struct pass *p) {
        const struct product *pr = p->pr;
        const struct activations *a = pr->p->a;
        uint32_t *partial;

        if (p->block > pr->rows.from) {
                p->row += p->o.rows;
                p->o.next += p->share;
        }
        if (p->block == pr->rows.to)
                return false;
        p->o.rows = block_rows(a, p->block);
        p->o.step = p->o.rows;
        p->o.a = (const char *)a->packed + ((pr->rows.row + p->row) * a->units + p->unit * p->o.rows) * 4;
        partial = pr->bench->partial + p->row * PANEL;
        p->o.c = p->unit > 0 ? partial : NULL;
        p->o.out = p->last ? (void *)(pr->out + p->row * pr->ldo) : partial;
        p->o.ldo = p->last ? pr->ldo : PANEL;
        p->block++;
        return true;
}

/* The pass from column k on: until the end of its fp8 scale, or as long as the weights fit the first-level cache. */
static size_t pass_columns(const struct linear *l, size_t k, size_t most) {
        if (l->type == WEIGHT_FP8)
                return linear_run_end(l, linear_run_of(l, k)) - k;
        return l->k - k < most ? l->k - k : most;
}

static void gemm_f32(const struct kernel_table *t, const struct operands *o) {
        t->gemm(o, PANEL);
}

static void gemm_bf16(const struct kernel_table *t, const struct operands *o) {
        t->gemm_bf16(o);
}

static void run_pass(struct pass *p, size_t k, void (*gemm)(const struct kernel_table *t, const struct operands *o)) {
        const struct linear *l = &p->pr->p->l;

        if (l->type == WEIGHT_FP8) {
                p->o.scale = linear_scales(l, p->pr->panel, linear_run_of(l, k));
                p->o.lane_scales = l->lane_scales;
        }
        while (pass_step(p))
                gemm(p->pr->c->table, &p->o);
}

static void product_f32(const struct product *pr) {
        const struct kernel_table *t = pr->c->table;
        const struct linear *l = &pr->p->l;

        for (size_t k = 0, columns; k < l->k; k += columns) {
                const void *b = linear_panel(l, pr->panel, k);
                struct pass p;

                columns = pass_columns(l, k, PASS_UNITS);
                if (t->expand[l->type]) {
                        t->expand[l->type](b, columns, (float *)pr->bench->expanded);
                        b = pr->bench->expanded;
                }
                p = pass_begin(pr, k, columns, b);
                run_pass(&p, k, gemm_f32);
        }
}

static void product_bf16(const struct product *pr) {
        const struct linear *l = &pr->p->l;

        for (size_t k = 0, columns; k < l->k; k += columns) {
                const void *b = linear_panel(l, pr->panel, k);
                struct pass p;

                columns = pass_columns(l, k, 2 * PASS_UNITS);
                if (l->type == WEIGHT_FP8) {
                        pr->c->table->expand_fp8_bf16(b, ceil_div(columns, 2), pr->bench->expanded);
                        b = pr->bench->expanded;
                }
                p = pass_begin(pr, k / 2, ceil_div(columns, 2), b);
                run_pass(&p, k, gemm_bf16);
        }
}

static void product_int8(const struct product *pr) {
        static const int32_t zeros[PANEL];
        const struct kernel_table *t = pr->c->table;
        const struct linear *l = &pr->p->l;
        const struct activations *a = pr->p->a;
        const size_t first = pr->panel * PANEL, most = t->expand_int8 ? PASS_UNITS : PASS_UNITS_INT8;
        struct int8_ends ends = {.begin = t->expand_int8 ? zeros : l->sums + first,
            .bias = l->type == WEIGHT_INT8_STATIC ? l->bias + first : NULL,
            .scale = l->scales + first};

        for (size_t u = 0, count; u < a->units; u += count) {
                const void *b = linear_panel(l, pr->panel, u * word_columns(pr->c, a->form));
                struct pass p;

                count = a->units - u < most ? a->units - u : most;
                if (t->expand_int8 && pr->rows.rows > 1) {
                        t->expand_int8(b, count, pr->bench->expanded);
                        b = pr->bench->expanded;
                }
                p = pass_begin(pr, u, count, b);
                p.o.ends = &ends;
                ends.complete = p.last;
                while (pass_step(&p)) {
                        ends.row_scale = a->row_scale ? a->row_scale + pr->rows.row + p.row : NULL;
                        (pr->rows.rows == 1 && t->row_int8 ? t->row_int8 : t->gemm_int8)(&p.o);
                }
        }
}

/* Columns of few rows from k on: until the end of an fp8 scale, or until what is fetched ahead lies in another panel. */
static size_t few_columns(const struct linear *l, size_t k) {
        const size_t tail = 2 * PREFETCH_BYTES / panel_offset(l->type, 2);

        return pass_columns(l, k, l->k > tail && k < (l->k - tail) / 2 * 2 ? (l->k - tail) / 2 * 2 - k : l->k);
}

/* How far ahead of column k weights are fetched: past the end of a panel lies, of two read at once, the other one; the next to
 * be read comes after that. */
static size_t few_ahead(const struct linear *l, size_t k, unsigned panels) {
        const size_t bytes = panel_offset(l->type, l->k), ahead = PREFETCH_BYTES;

        return panel_offset(l->type, k) + ahead < bytes ? ahead : ahead + (panels - 1) * bytes;
}

/* Few rows: weights are used as they stream by, and two panels at once when the rows are very few. */
static void product_of_few(
    const struct compute *c, const struct part *p, size_t panel, unsigned panels, float *tile0, float *tile1) {
        const struct linear *l = &p->l;
        const bool pairs = p->a->form == FORM_BF16;
        struct few_operands o = {.rows = (unsigned)p->a->rows, .lane_scales = l->lane_scales, .c = {tile0, tile1}};

        if (panels == 2 && o.rows > c->table->few_rows_paired) {
                product_of_few(c, p, panel, 1, tile0, NULL);
                product_of_few(c, p, panel + 1, 1, tile1, NULL);
                return;
        }
        for (size_t k = 0, columns; k < l->k; k += columns) {
                columns = few_columns(l, k);
                o.ahead = few_ahead(l, k, panels);
                o.x = (const char *)p->a->packed + (pairs ? k / 2 : k) * o.rows * 4;
                o.k = pairs ? ceil_div(columns, 2) : columns;
                for (unsigned i = 0; i < panels; i++) {
                        o.panel[i] = linear_panel(l, panel + i, k);
                        if (l->type == WEIGHT_FP8)
                                o.scale[i] = linear_scales(l, panel + i, linear_run_of(l, k));
                }
                (pairs ? c->table->few_bf16 : c->table->few)[l->type](&o);
        }
}

static void store_tile(const struct part *p, const float *tile, size_t panel, size_t row, size_t rows) {
        size_t columns = p->l.n - panel * PANEL < PANEL ? p->l.n - panel * PANEL : PANEL;

        for (size_t r = 0; r < rows; r++)
                memcpy(p->y + (row + r) * p->ldy + panel * PANEL, tile + r * PANEL, columns * sizeof(float));
}

/* With fewer rows a block's sums would wait for y's lines to come from memory: they are stored in one sweep at the end. */
#define DIRECT_ROWS 64

/* Do results of this panel go to y as they are? */
static bool is_stored_direct(const struct part *p, size_t panel) {
        return p->epilogue == EPILOGUE_STORE && p->a->rows >= DIRECT_ROWS && (panel + 1) * PANEL <= p->l.n;
}

static void product_of_many(struct product pr) {
        const struct part *p = pr.p;

        if (is_stored_direct(p, pr.panel)) {
                pr.out = p->y + pr.rows.row * p->ldy + pr.panel * PANEL;
                pr.ldo = p->ldy;
        }
        if (p->a->form == FORM_F32)
                product_f32(&pr);
        else if (p->a->form == FORM_BF16)
                product_bf16(&pr);
        else
                product_int8(&pr);
}

/* One or two panels. */
static void run_panels(
    struct compute *c, const struct part *p, size_t panel, unsigned panels, struct task_rows t, struct bench *bench) {
        const bool few = p->a->rows <= c->table->few_rows && !form_is_int8(p->a->form);

        if (few) {
                for (unsigned i = 0; i < panels; i++)
                        memset(bench->tile[i], 0, t.rows * PANEL * sizeof(float));
                product_of_few(c, p, panel, panels, bench->tile[0], bench->tile[1]);
        } else {
                for (unsigned i = 0; i < panels; i++)
                        product_of_many(
                            (struct product){c, p, panel + i, i + 1 == panels, t, bench->tile[i], PANEL, bench});
        }
        if (p->epilogue == EPILOGUE_SWIGLU) {
                size_t width = p->l.n / 2, column = panel / 2 * PANEL;

                c->table->swiglu(bench->tile[0], bench->tile[1], t.rows,
                    width - column < PANEL ? width - column : PANEL, p->y + t.row * p->ldy + column, p->ldy);
                return;
        }
        for (unsigned i = 0; i < panels; i++)
                if (few || !is_stored_direct(p, panel + i))
                        store_tile(p, bench->tile[i], panel + i, t.row, t.rows);
}

/* The first panel of a unit of a group's share. */
static size_t unit_begin(const struct compute *c, const struct part *p, size_t group, size_t unit) {
        const size_t groups = compute_groups(c), each = p->units / groups;
        size_t from, share;

        if (groups == 1)
                return unit * p->unit_panels < p->l.panels ? unit * p->unit_panels : p->l.panels;
        from = group_panel(p->l.panels, group, groups);
        share = group_panel(p->l.panels, group + 1, groups) - from;
        return from + (unit == each ? share : share / 2 * unit / each * 2);
}

static void run_task(struct compute *c, const struct part *p, size_t task, struct bench *bench) {
        const struct activations *a = p->a;
        const size_t groups = compute_groups(c), each = p->units / groups, group = task % groups;
        const size_t chunk = task / groups / each, unit = task / groups % each;
        const size_t first = unit_begin(c, p, group, unit), end = unit_begin(c, p, group, unit + 1);
        struct task_rows t = {.from = chunk * a->blocks / p->chunks, .to = (chunk + 1) * a->blocks / p->chunks};

        t.row = block_first(a, t.from);
        t.rows = block_first(a, t.to) - t.row;
        assert(t.rows <= TILE_ROWS);
        for (size_t panel = first; panel < end; panel += 2)
                run_panels(c, p, panel, end - panel < 2 ? 1 : 2, t, bench);
}

static const struct part *find_part(const struct stage *s, size_t task) {
        return &s->parts[entry_of(&s->parts->first_task, sizeof(*s->parts), s->part_count, task)];
}

/* With groups a task's number is that in its group's share times their number, plus the group's: a worker takes those of its own
 * group, whose weights are near, and then what other groups have left. */
static bool take_task(struct compute *c, struct stage *s, unsigned worker, size_t *ret_task) {
        const size_t groups = compute_groups(c), each = s->tasks.total / groups;
        const size_t own = workers_group_of(c->workers, worker);

        if (groups == 1)
                return step_take(&s->tasks, ret_task);
        for (size_t i = 0; i < groups; i++) {
                const size_t group = (own + i) % groups;
                size_t at;

                if (atomic_load_explicit(&s->shares[group].next, memory_order_relaxed) >= each)
                        continue;
                at = atomic_fetch_add_explicit(&s->shares[group].next, 1, memory_order_relaxed);
                if (at < each) {
                        *ret_task = at * groups + group;
                        return true;
                }
        }
        return false;
}

void stage_work(struct compute *c, struct stage *s, unsigned worker) {
        struct bench *bench = scratch_worker(c, worker);

        for (size_t i; step_take(&s->packing, &i); step_done(c->workers, &s->packing))
                pack_nth_block(c, s, i, bench);
        step_wait(c->workers, &s->packing);
        for (size_t i; take_task(c, s, worker, &i); step_done(c->workers, &s->tasks)) {
                const struct part *p = find_part(s, i);

                run_task(c, p, i - p->first_task, bench);
        }
}

struct region {
        struct compute *c;
        struct stage *s;
};

static void stage_task(void *context, unsigned worker, unsigned workers) {
        struct region *r = context;

        stage_work(r->c, r->s, worker);
}

void stage_run(struct compute *c, struct stage *s) {
        struct region r = {c, s};

        workers_share(c->workers, stage_task, &r);
}
