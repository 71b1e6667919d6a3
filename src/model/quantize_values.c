/* quantize_values.c - the arithmetic of quantising: rows to int8, blocks to fp8. */
#include "model/quantize.h"
#include <errno.h>
#include <math.h>
#include <stdatomic.h>
#include <stdlib.h>

int slab_init(struct slab *s, struct compute *compute, size_t columns) {
        *s = (struct slab){.compute = compute,
            .columns = columns,
            .values = reallocarray(NULL, QUANTIZE_BLOCK * columns, sizeof(float)),
            .codes = reallocarray(NULL, QUANTIZE_BLOCK * columns, sizeof(uint16_t)),
            .block_scales = reallocarray(NULL, columns / QUANTIZE_BLOCK + 1, sizeof(float))};
        if (s->values && s->codes && s->block_scales)
                return 0;
        slab_free(s);
        return -ENOMEM;
}

void slab_free(struct slab *s) {
        free(s->values);
        free(s->codes);
        free(s->block_scales);
        *s = (struct slab){0};
}

/* ---- pieces that the workers take ----------------------------------------------------------------------------------- */

/* Of one slab, by rows or by column blocks. */
struct pieces {
        struct slab *slab;
        const struct weight_source *source;
        size_t first, rows, count;
        void (*quantise)(struct pieces *p, size_t piece);
        _Atomic size_t next;
        _Atomic bool damaged; /* a weight is no number */
};

static void run_pieces(void *context, unsigned worker, unsigned workers) {
        struct pieces *p = context;

        for (size_t i; (i = atomic_fetch_add_explicit(&p->next, 1, memory_order_relaxed)) < p->count;)
                p->quantise(p, i);
}

static int share(struct pieces *p, size_t count, void (*quantise)(struct pieces *p, size_t piece)) {
        p->count = count;
        p->quantise = quantise;
        atomic_store_explicit(&p->next, 0, memory_order_relaxed);
        compute_share(p->slab->compute, run_pieces, p);
        return atomic_load_explicit(&p->damaged, memory_order_relaxed) ? -EDOM : 0;
}

static float *values_of(const struct pieces *p, size_t row) {
        return p->slab->values + row * p->source->k;
}

static void read_row(struct pieces *p, size_t row) {
        weight_row(p->source, p->first + row, values_of(p, row));
}

/* The larger of `largest` and the magnitudes of x; what is no number is told. */
static float find_largest(struct pieces *p, const float *x, size_t n, float largest) {
        float sum = 0; /* not finite when one of them is not */

        for (size_t i = 0; i < n; i++) {
                largest = fmaxf(largest, fabsf(x[i]));
                sum += x[i] * 0;
        }
        if (sum != 0)
                atomic_store_explicit(&p->damaged, true, memory_order_relaxed);
        return largest;
}

static float scale_of(float largest, float largest_code) {
        float scale = largest / largest_code;

        return scale > 0 ? scale : 1;
}

/* ---- int8 ----------------------------------------------------------------------------------------------------------- */

static void row_to_int8(struct pieces *p, size_t row) {
        struct slab *s = p->slab;
        const size_t k = p->source->k;
        const float *x = values_of(p, row);
        int8_t *codes = (int8_t *)s->codes + row * k;
        int32_t sum = 0;

        read_row(p, row);
        s->scales[row] = scale_of(find_largest(p, x, k, 0), 127);
        for (size_t i = 0; i < k; i++) {
                codes[i] = (int8_t)fminf(fmaxf(rintf(x[i] / s->scales[row]), -127), 127);
                sum += codes[i];
        }
        s->sums[row] = sum;
}

int slab_to_int8(struct slab *s, const struct weight_source *source, size_t first, size_t rows) {
        struct pieces p = {.slab = s, .source = source, .first = first, .rows = rows};

        return share(&p, rows, row_to_int8);
}

/* ---- fp8 ------------------------------------------------------------------------------------------------------------ */

static void block_to_fp8(struct pieces *p, size_t block) {
        struct slab *s = p->slab;
        const size_t k = p->source->k, begin = block * QUANTIZE_BLOCK,
                     columns = k - begin < QUANTIZE_BLOCK ? k - begin : QUANTIZE_BLOCK;
        float largest = 0, scale;

        for (size_t r = 0; r < p->rows; r++)
                largest = find_largest(p, values_of(p, r) + begin, columns, largest);
        scale = s->block_scales[block] = scale_of(largest, 448);
        for (size_t r = 0; r < p->rows; r++)
                for (size_t i = begin; i < begin + columns; i++)
                        s->codes[r * k + i] = float_to_fp8_e4m3(values_of(p, r)[i] / scale);
}

int slab_to_fp8(struct slab *s, const struct weight_source *source, size_t first, size_t rows) {
        struct pieces p = {.slab = s, .source = source, .first = first, .rows = rows};
        int r = share(&p, rows, read_row);

        return r < 0 ? r : share(&p, (source->k + QUANTIZE_BLOCK - 1) / QUANTIZE_BLOCK, block_to_fp8);
}

/* ---- bf16 ----------------------------------------------------------------------------------------------------------- */

static void row_to_bf16(struct pieces *p, size_t row) {
        const size_t k = p->source->k;
        const float *x = values_of(p, row);
        unsigned char *to = p->slab->codes + row * k * sizeof(uint16_t);

        read_row(p, row);
        (void)find_largest(p, x, k, 0);
        for (size_t i = 0; i < k; i++) {
                uint16_t bits = float_to_bf16(x[i]);

                memcpy(to + i * sizeof(bits), &bits, sizeof(bits));
        }
}

int slab_to_bf16(struct slab *s, const struct weight_source *source, size_t first, size_t rows) {
        struct pieces p = {.slab = s, .source = source, .first = first, .rows = rows};

        return share(&p, rows, row_to_bf16);
}
