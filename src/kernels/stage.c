/* stage.c - cutting products into tasks, and the loops of one task. */
#include "kernels/stage.h"
#include <assert.h>
#include <stdalign.h>
#include <string.h>

/* Rows of one task at most: a tile of results has so many rows of 32. A multiple of every table's block. */
#define TILE_ROWS 192
/* Expanded weights of one pass, [k][32] words: 32 KiB, so that they and a block of activations stay in L1 or close. */
#define PASS_UNITS 256
static_assert(PASS_UNITS >= FP8_BLOCK_K_MAX / 2, "a run of fp8 as bf16 pairs fits");
/* Activations of so many words are packed by the caller: less than what waking the workers for it costs. */
#define PACK_ALONE_WORDS 16384

/* A worker's scratch. */
struct bench {
        alignas(64) uint32_t expanded[PASS_UNITS * PANEL];
        alignas(64) float tile[2][TILE_ROWS * PANEL];
        alignas(64) int32_t sums[TILE_ROWS * PANEL];
        alignas(64) uint8_t row[]; /* one converted row: 2 * K_MAX bytes and a pair more */
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

static size_t form_units(enum form form, size_t k) {
        switch (form) {
        case FORM_F32:
                return k;
        case FORM_BF16:
                return ceil_div(k, 2);
        default:
                return ceil_div(k, 4);
        }
}

static bool form_is_int8(enum form form) {
        return form == FORM_INT8_DYNAMIC || form == FORM_INT8_STATIC;
}

/* ---- activations ------------------------------------------------------------------------------------------------- */

size_t activations_bytes(const struct compute *c, enum form form, size_t k, size_t rows) {
        return align64(rows * form_units(form, k) * 4) + align64(rows * sizeof(float));
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
        a->units = form_units(a->form, a->k);
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
        const uint8_t flip = t->unsigned_activations ? 0x80 : 0;
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
                        float scale = t->row_largest(x, a->k) / 127;

                        a->row_scale[first + r] = scale;
                        t->row_to_int8(x, a->k, scale, flip, converted);
                        break;
                }
                case FORM_INT8_STATIC:
                        t->row_to_int8_static(x, a->k, a->scale_inv, a->offset, flip, converted);
                        break;
                }
                for (size_t u = 0; u < a->units; u++)
                        memcpy(to + (u * rows + r) * 4, words + u * 4, 4);
        }
        if (rounds(c, a))
                t->round_bf16((float *)to, rows * a->units);
}

static size_t stage_find_activations(const struct stage *s, size_t block, const struct activations **ret_a) {
        for (const struct activations *a = s->a;; a++) {
                if (block < a->blocks) {
                        *ret_a = a;
                        return block;
                }
                block -= a->blocks;
        }
}

static void pack_nth_block(const struct compute *c, const struct stage *s, size_t nth, struct bench *bench) {
        const struct activations *a;
        size_t block = stage_find_activations(s, nth, &a);

        pack_block(c, a, block, bench->row);
}

/* ---- tasks ------------------------------------------------------------------------------------------------------- */

/* Chunks of rows: their activations take at most half of a core's cache, the other half is for weights passing by. */
static size_t chunk_count(const struct compute *c, const struct activations *a) {
        size_t rows = c->cache_bytes / 2 / (a->units * 4), most_blocks, block;

        block = ceil_div(a->rows, a->blocks);
        if (rows > TILE_ROWS)
                rows = TILE_ROWS;
        most_blocks = rows / block > 0 ? rows / block : 1;
        return ceil_div(a->blocks, most_blocks);
}

void stage_prepare(struct compute *c, struct stage *s, bool later) {
        const size_t threads = compute_threads(c);
        size_t words = 0, blocks = 0, tasks = 0;

        for (size_t i = 0; i < s->a_count; i++) {
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
                p->unit_panels = 2;
                /* Two panels at once hide latencies better, but a small layer must still reach every worker. */
                if (p->epilogue == EPILOGUE_STORE && p->l.panels * p->chunks * s->part_count < 8 * threads)
                        p->unit_panels = 1;
                p->units = ceil_div(p->l.panels, p->unit_panels);
                p->first_task = tasks;
                tasks += p->units * p->chunks;
        }
        step_begin(&s->packing, blocks);
        step_begin(&s->tasks, tasks);
}

/* Blocks [from, to) of the activations times one panel, into tile rows. */
struct product {
        const struct compute *c;
        const struct part *p;
        size_t panel;
        size_t from, to; /* blocks */
        struct bench *bench;
};

static const void *block_at(const struct activations *a, size_t block, size_t unit) {
        return (const char *)a->packed + (block_first(a, block) * a->units + unit * block_rows(a, block)) * 4;
}

/* Call for each block of a pass: `a`, `rows` and `offset` (of the block's first row in the tile) are set. */
#define FOR_BLOCKS(pr)                                                                                                 \
        for (size_t block = (pr)->from, rows = block_rows((pr)->p->a, block), offset = 0; block < (pr)->to;            \
             offset += rows * PANEL, block++, rows = block < (pr)->to ? block_rows((pr)->p->a, block) : 0)

static void product_f32(const struct product *pr, float *tile) {
        const struct kernel_table *t = pr->c->table;
        const struct linear *l = &pr->p->l;

        for (size_t k = 0, step; k < l->k; k += step) {
                const float *scale = NULL, *b = linear_panel(l, pr->panel, k);

                step = l->k - k < PASS_UNITS ? l->k - k : PASS_UNITS;
                if (l->type == WEIGHT_FP8) {
                        size_t run = linear_run_of(l, k), end = linear_run_end(l, run);

                        scale = linear_scales(l, pr->panel, run);
                        step = end - k < step ? end - k : step;
                }
                if (t->expand[l->type]) {
                        t->expand[l->type](b, step, scale, l->lane_scales, (float *)pr->bench->expanded);
                        b = (const float *)pr->bench->expanded;
                }
                FOR_BLOCKS(pr)
                t->gemm(block_at(pr->p->a, block, k), rows, 1, b, step, (unsigned)rows, PANEL, tile + offset);
        }
}

static void product_bf16(const struct product *pr, float *tile) {
        const struct kernel_table *t = pr->c->table;
        const struct linear *l = &pr->p->l;
        const size_t units = pr->p->a->units;

        for (size_t u = 0, step; u < units; u += step) {
                const uint32_t *b = linear_panel(l, pr->panel, 2 * u);
                const float *scale = NULL;

                step = units - u < PASS_UNITS ? units - u : PASS_UNITS;
                if (l->type == WEIGHT_FP8) {
                        /* A whole run at a time: its sum is scaled once, at its end. */
                        size_t run = linear_run_of(l, 2 * u), end = ceil_div(linear_run_end(l, run), 2);

                        scale = linear_scales(l, pr->panel, run);
                        step = end - u;
                        t->expand_fp8_bf16(b, step, pr->bench->expanded);
                        b = pr->bench->expanded;
                }
                FOR_BLOCKS(pr)
                t->gemm_bf16(block_at(pr->p->a, block, u), rows, 1, b, step, (unsigned)rows, scale, l->lane_scales,
                    tile + offset);
        }
}

static void product_int8(const struct product *pr, size_t row, size_t tile_rows, float *tile) {
        const struct kernel_table *t = pr->c->table;
        const struct linear *l = &pr->p->l;
        const struct activations *a = pr->p->a;
        int32_t *sums = pr->bench->sums;

        for (size_t r = 0; r < tile_rows; r++)
                if (t->unsigned_activations)
                        memcpy(sums + r * PANEL, l->sums + pr->panel * PANEL, PANEL * sizeof(*sums));
                else
                        memset(sums + r * PANEL, 0, PANEL * sizeof(*sums));
        for (size_t u = 0, step; u < a->units; u += step) {
                step = a->units - u < PASS_UNITS ? a->units - u : PASS_UNITS;
                FOR_BLOCKS(pr)
                t->gemm_int8(block_at(a, block, u), rows, 1, linear_panel(l, pr->panel, 4 * u), step, (unsigned)rows,
                    sums + offset);
        }
        t->int8_to_float(sums, (unsigned)tile_rows, l->type == WEIGHT_INT8_STATIC ? l->bias + pr->panel * PANEL : NULL,
            a->row_scale ? a->row_scale + row : NULL, l->scales + pr->panel * PANEL, tile);
}

/* One row: weights are used as they stream by, two panels at once. */
static void product_of_row(
    const struct compute *c, const struct part *p, size_t panel, unsigned panels, float *tile0, float *tile1) {
        const struct kernel_table *t = c->table;
        const struct linear *l = &p->l;
        const char *x = p->a->packed;
        const bool pairs = p->a->form == FORM_BF16;

        for (size_t k = 0, end; k < l->k; k = end) {
                const void *w[2] = {linear_panel(l, panel, k), panels == 2 ? linear_panel(l, panel + 1, k) : NULL};
                const float *scale[2] = {NULL, NULL};
                const void *xk = x + (pairs ? k / 2 : k) * 4;

                end = l->k;
                if (l->type == WEIGHT_FP8) {
                        size_t run = linear_run_of(l, k);

                        end = linear_run_end(l, run);
                        scale[0] = linear_scales(l, panel, run);
                        scale[1] = panels == 2 ? linear_scales(l, panel + 1, run) : NULL;
                }
                if (!pairs)
                        t->gemv[l->type](xk, w[0], w[1], end - k, scale[0], scale[1], l->lane_scales, tile0, tile1);
                else if (l->type == WEIGHT_FP8)
                        t->gemv_bf16_fp8(
                            xk, w[0], w[1], ceil_div(end - k, 2), scale[0], scale[1], l->lane_scales, tile0, tile1);
                else
                        t->gemv_bf16(xk, w[0], w[1], ceil_div(end - k, 2), tile0, tile1);
        }
}

static void store_tile(const struct part *p, const float *tile, size_t panel, size_t row, size_t rows) {
        size_t columns = p->l.n - panel * PANEL < PANEL ? p->l.n - panel * PANEL : PANEL;

        for (size_t r = 0; r < rows; r++)
                memcpy(p->y + (row + r) * p->ldy + panel * PANEL, tile + r * PANEL, columns * sizeof(float));
}

static void run_task(struct compute *c, const struct part *p, size_t task, struct bench *bench) {
        const struct activations *a = p->a;
        const size_t chunk = task / p->units, panel = task % p->units * p->unit_panels;
        const size_t from = chunk * a->blocks / p->chunks, to = (chunk + 1) * a->blocks / p->chunks;
        const size_t row = block_first(a, from), rows = block_first(a, to) - row;
        const unsigned panels = p->l.panels - panel < p->unit_panels ? 1 : p->unit_panels;

        assert(rows <= TILE_ROWS);
        if (!form_is_int8(a->form))
                for (unsigned i = 0; i < panels; i++)
                        memset(bench->tile[i], 0, rows * PANEL * sizeof(float));
        if (a->rows == 1 && !form_is_int8(a->form)) {
                product_of_row(c, p, panel, panels, bench->tile[0], bench->tile[1]);
        } else {
                for (unsigned i = 0; i < panels; i++) {
                        struct product pr = {c, p, panel + i, from, to, bench};

                        if (a->form == FORM_F32)
                                product_f32(&pr, bench->tile[i]);
                        else if (a->form == FORM_BF16)
                                product_bf16(&pr, bench->tile[i]);
                        else
                                product_int8(&pr, row, rows, bench->tile[i]);
                }
        }
        if (p->epilogue == EPILOGUE_SWIGLU) {
                size_t width = p->l.n / 2, column = panel / 2 * PANEL;

                c->table->swiglu(bench->tile[0], bench->tile[1], rows, width - column < PANEL ? width - column : PANEL,
                    p->y + row * p->ldy + column, p->ldy);
                return;
        }
        for (unsigned i = 0; i < panels; i++)
                store_tile(p, bench->tile[i], panel + i, row, rows);
}

static const struct part *find_part(const struct stage *s, size_t task) {
        size_t low = 0, high = s->part_count;

        while (high - low > 1) {
                size_t middle = (low + high) / 2;

                if (s->parts[middle].first_task <= task)
                        low = middle;
                else
                        high = middle;
        }
        return &s->parts[low];
}

void stage_work(struct compute *c, struct stage *s, unsigned worker) {
        struct bench *bench = scratch_worker(c, worker);

        for (size_t i; step_take(&s->packing, &i); step_done(c->pool, &s->packing))
                pack_nth_block(c, s, i, bench);
        step_wait(c->pool, &s->packing);
        for (size_t i; step_take(&s->tasks, &i); step_done(c->pool, &s->tasks)) {
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

        pool_share(c->pool, stage_task, &r);
}
