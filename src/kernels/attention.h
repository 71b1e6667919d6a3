/* attention.h - what the two forms of attention share. A lane is a query of one head; sixteen or thirty-two lanes are
 * computed at once, keys and values being the rows of a product: scores S[position][lane] and sums O[value][lane]. */
#pragma once
#include "kernels/compute.h"
#include "kernels/layout.h"

/* Context is visited in tiles cut at multiples of this position. */
#define TILE_POSITIONS 64

/* Rows of latents that one worker holds as floats at once must fit its scratch. */
#define KV_WIDTH_MAX 4096

static inline size_t kv_row(const struct kv_layer *kv, const uint32_t *blocks, size_t position) {
        return blocks[position / kv->block_tokens] * kv->block_stride + position % kv->block_tokens * kv->width;
}

/* Rows [first, first + count) of a sequence's latents as floats. */
void kv_read_rows(const struct compute *c, const struct kv_layer *kv, const uint32_t *blocks, size_t first,
    size_t count, float *ret_rows);

/* Latents that will be read soon; count may be 0. */
struct upcoming {
        const struct kv_layer *kv;
        const uint32_t *blocks;
        size_t first, count;
};

/* One tile of positions for one group of lanes. */
struct tile {
        const struct kernel_table *table;
        unsigned lanes;   /* 16 or 32 */
        size_t positions; /* of this tile */
        float scale;
        const int32_t *visible;   /* [lanes] how many of the positions each lane sees; may be negative or large */
        float *scores;            /* [positions][lanes] */
        float *out;               /* [values][lanes] */
        float *max, *sum;         /* [lanes] */
        struct upcoming upcoming; /* fetched during tile_scores */
};
/* scores += keys q, for keys [position][key_stride] and q [width][lanes]. */
void tile_scores(const struct tile *t, const float *keys, size_t key_stride, const float *q, size_t width);
/* Softmax of the scores, and out += their weights times values [position][value_stride]. */
void tile_values(const struct tile *t, const float *values, size_t value_stride, size_t count);
