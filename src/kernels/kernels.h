/* kernels.h - the arithmetic of the model on CPUs: packed linear layers, experts, attention, norms, rope.
 *
 * The inner loops are written once over sixteen lanes and compiled for plain C, AVX2, AVX-512 and AVX-512 with BF16 and
 * VNNI; compute_new() picks at start. Two laws make every equivalence of the engine an equality:
 *  - The sum over K behind one output element runs in one order, whatever M, the batch, the number of threads or the
 *    neighbours are: row i of a product of M rows equals the product of row i alone.
 *  - Attention visits context in tiles cut at absolute positions, in ascending order, so that a query's result does not
 *    depend on chunking or on who computed the tiles.
 * With float activations (ACTIVATION_F32) and with int8 weights every instruction set gives the same bits. Dot products
 * of bf16 pairs (ACTIVATION_BF16 on a CPU that has them) differ from the others and are reproducible among themselves.
 *
 * The sums: float weights are one chain of fused multiply-adds over ascending k. fp8 weights are such a chain over the
 * codes under one scale, beginning at 0, and a chain of fused multiply-adds of these sums by their scales over that.
 * int8 sums are exact integers; then, in this order of operations,
 *   dynamic: s = max|x| / 127, q = clamp(round(x / s), -128, 127), 0 when s is 0; y = sum * s * row_scale
 *   static:  q = clamp(round(x * input_scale_inv + input_offset), -128, 127);     y = (sum + quant_bias) * deq_scale
 * with halves rounded to even.
 *
 * Activations are float arrays, row-major, with a leading dimension in elements. A struct compute and what was made with
 * it are used by one thread at a time; the pool's workers are inside. Functions that return nothing cannot fail. */
#pragma once
#include "base/error.h"
#include "os/os.h"
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* ---- compute: instruction set, worker pool, scratch memory ------------------------------------------------------ */

enum isa { ISA_SCALAR, ISA_AVX2, ISA_AVX512, ISA_AVX512_BF16 /* with VNNI */, ISA_BEST };

/* How activations enter a linear layer: as they are, or rounded to bf16 first (--dtype bfloat16). */
enum activation { ACTIVATION_F32, ACTIVATION_BF16 };

struct compute_options {
        enum isa isa;     /* ISA_BEST: the best this CPU runs; a better one than it has is -ENOTSUP */
        unsigned threads; /* including the caller's; 0: one per usable core */
        /* Workers spin so long for the next task before they sleep. 0 when cores are shared with other work. Whether a
         * worker wakes in time or not decides speed only: what it does not take the others do. */
        unsigned spin_us;
        enum activation activation;
        /* Thread groups (tensor parallelism within a process), 0: one. Each packs, holds in the memory of its node and reads
         * first of all its share of every weight's rows; who is through helps the others. At most as many as threads, and 16.
         * Only where the cores are of several memory nodes are groups bound to them. */
        unsigned groups;
        const struct os_cpu *cpus; /* NULL: those of this process; for tests */
        size_t cpu_count;
};

/* Opaque; owns the workers and a scratch area of fixed size (address space until it is touched): nothing that runs later
 * can fail for want of memory. */
struct compute;

int compute_new(const struct compute_options *options, struct compute **ret_compute, struct error *e);
void compute_free(struct compute *c);
enum isa compute_isa(const struct compute *c);
const char *isa_name(enum isa isa);
unsigned compute_threads(const struct compute *c);
enum activation compute_activation(const struct compute *c);
unsigned compute_groups(const struct compute *c);
/* Are groups bound to memory nodes? */
bool compute_is_bound(const struct compute *c);
/* The calling thread uses it from here on, or no longer: binds it with group 0 to that one's node, or frees it again. */
void compute_bind(struct compute *c);
void compute_unbind(struct compute *c);

/* Run task(context, worker, workers) on the caller, as worker 0, and on the workers that come before it is through: the
 * task takes pieces from a counter of its own until none is left. Returns when all that came are done. */
void compute_share(struct compute *c, void (*task)(void *context, unsigned worker, unsigned workers), void *context);
/* Run task(context, worker, workers) once on every worker, the caller being worker 0; returns when all are done. */
void compute_run(struct compute *c, void (*task)(void *context, unsigned worker, unsigned workers), void *context);

/* ---- linear layers ---------------------------------------------------------------------------------------------- */

enum weight_type {
        WEIGHT_F32,
        WEIGHT_F16,
        WEIGHT_BF16,
        WEIGHT_FP8,          /* e4m3fn with one multiplier per block of rows and columns */
        WEIGHT_INT8_DYNAMIC, /* int8, a scale per row; activations are quantised per token */
        WEIGHT_INT8_STATIC,  /* int8; activations are quantised with one scale and offset (Ascend W8A8) */
};

/* A weight [n][k] as it lies in a checkpoint: y[n] = sum over k of w[n][k] x[k]. Everything is borrowed during packing.
 * k is at most 262,144, and 131,071 for int8. */
struct weight_source {
        enum weight_type type;
        size_t n, k;
        const void *data;  /* row-major, at any address */
        size_t row_stride; /* elements between rows; k when contiguous */
        /* WEIGHT_FP8: scale[r / block_n][c / block_k] multiplies. `first_row`/`first_col` say where row 0 and column 0
         * lie inside the checkpoint's block grid, for slices that do not begin on a block border. block_k is even and at
         * most 256, first_col even; NaN weights and scales that are not finite are refused. */
        const float *scale;
        size_t scale_stride, block_n, block_k, first_row, first_col;
        /* WEIGHT_INT8_*: the formulas are above. */
        const float *row_scale;    /* dynamic: [n] */
        const float *deq_scale;    /* static: [n] */
        const int32_t *quant_bias; /* static: [n], NULL for zeros (all but TP rank 0 of a row-parallel layer) */
        float input_scale_inv;     /* static: 1/input_scale, taken in the dtype that the checkpoint stores */
        float input_offset;        /* static */
};

/* A packed weight. Plain data: may be copied, has no destructor; the packed bytes belong to whoever gave the memory. The
 * layout (kernels/layout.h) is the same for every instruction set, so packed weights may be kept on disk. */
struct linear {
        enum weight_type type;
        size_t n, k;
        size_t panels;       /* runs of 32 rows */
        const void *packed;  /* everything below lies in the same memory */
        const float *scales; /* fp8 block scales, int8 row scales */
        const int32_t *bias; /* static int8 */
        const int32_t *sums; /* int8: -128 times the sum of each row */
        size_t first_run;    /* fp8: columns before the first block border, then every block_k */
        size_t block_k;
        bool lane_scales; /* fp8: a scale for each row of a panel, not one for all */
        float input_scale_inv, input_offset;
};

/* Bytes that linear_pack() needs, a multiple of 64. */
size_t linear_bytes(const struct weight_source *source);
/* Pack into `memory` (64-byte aligned, linear_bytes() long). Uses the pool. Returns 0 or -EINVAL (shape, or data that the
 * format forbids) with a text. */
int linear_pack(
    struct compute *c, const struct weight_source *source, void *memory, struct linear *ret_linear, struct error *e);
/* y[m][n] = x[m][k] W^T. m may be 0. x and y do not overlap. */
void linear_run(struct compute *c, const struct linear *l, const float *x, size_t ldx, size_t m, float *y, size_t ldy);
/* Several layers over the same rows in one parallel region (q_a with kv_a; gate with up). */
struct linear_call {
        const struct linear *l;
        float *y;
        size_t ldy;
};
void linear_run_many(
    struct compute *c, const struct linear_call *calls, size_t count, const float *x, size_t ldx, size_t m);

/* ---- MLP and experts -------------------------------------------------------------------------------------------- */

/* down( silu(gate x) * up x ). gate_up holds gate's rows [0, width) and up's rows [width, 2 width), interleaved by the
 * packer as the kernels like it; pack it with mlp_pack(). */
struct mlp {
        struct linear gate_up, down;
        size_t width;
};
size_t mlp_bytes(const struct weight_source *gate, const struct weight_source *up, const struct weight_source *down);
int mlp_pack(struct compute *c, const struct weight_source *gate, const struct weight_source *up,
    const struct weight_source *down, void *memory, struct mlp *ret_mlp, struct error *e);
void mlp_run(struct compute *c, const struct mlp *p, const float *x, size_t ldx, size_t m, float *y, size_t ldy);

/* Many experts at once, each over its own gathered rows of x: y[i] = expert(x[rows[i]]), unweighted, for i < m. The
 * caller sums over experts in the order it wants. Work is spread over (expert, tile), so that one crowded expert or a
 * hundred nearly empty ones keep all workers busy. */
struct expert_call {
        const struct mlp *expert;
        const uint32_t *rows; /* [m] rows of x */
        size_t m;
        float *y; /* [m][ldy] */
        /* Rows of x are what rows_decode() makes of ROW_INT8, and these their scales, by number: for experts that
         * take_int8_rows(). NULL: rows are activations. */
        const float *scales;
};
void experts_run(
    struct compute *c, const struct expert_call *calls, size_t count, const float *x, size_t ldx, size_t ldy);

/* Would the expert quantise its rows as ROW_INT8 does? Then it may as well be given such rows: the result is the same. */
bool takes_int8_rows(const struct mlp *expert);

/* ---- rows on their way to another process ----------------------------------------------------------------------- */

enum row_type {
        ROW_F32,
        ROW_BF16, /* rounded to nearest even */
        ROW_INT8, /* a float, the row's scale, and codes: those that dynamic int8 weights make of their activations */
};

/* Bytes of an encoded row, a multiple of 4 but for ROW_BF16, where it is one of 2. */
size_t row_type_bytes(enum row_type type, size_t n);
/* x[m][n] into m encoded rows, one after the other, at any address that is a multiple of 4. */
void rows_encode(struct compute *c, enum row_type type, const float *x, size_t ldx, size_t m, size_t n, void *ret_rows);
/* Back into x[m][n]. ROW_INT8: with `scales` x becomes the codes as floats and scales[m] their scales; without, their
 * products. The bytes may be anything. */
void rows_decode(
    struct compute *c, enum row_type type, const void *rows, size_t m, size_t n, float *x, size_t ldx, float *scales);

/* ---- attention over the paged latent cache ---------------------------------------------------------------------- */

enum kv_type { KV_F32, KV_BF16 };

/* Where the latents of one layer lie: position p of a sequence is in block blocks[p / block_tokens], and inside it at
 * base + block*block_stride + (p % block_tokens)*width elements of `type`. A row is [rank latent | rope key, rotated]. */
struct kv_layer {
        enum kv_type type;
        void *base;                         /* of this layer inside block 0 */
        size_t block_stride;                /* elements from one block to the next */
        unsigned block_tokens, width, rank; /* width = rank + rope dims */
};
static inline size_t kv_type_bytes(enum kv_type t) {
        return t == KV_F32 ? 4 : 2;
}

/* Write rows of latents at positions first.. of a sequence. */
void kv_write(struct compute *c, const struct kv_layer *kv, const uint32_t *blocks, size_t first, const float *rows,
    size_t ldr, size_t count);

/* Queries of one sequence at consecutive positions; query i is at position first + i and sees positions 0..first+i, all
 * of which are in the cache. */
struct attention_span {
        const uint32_t *blocks;
        size_t first, count;
        const float *q; /* [count][ldq]; per head: naive [nope | rope], absorbed [rank | rope] */
        float *out;     /* [count][ldo]; per head: naive [v], absorbed [rank] */
};

/* Weight-absorbed (decode): scores and sums directly over latents. Width is at most 4096; rank 512 leaves room for
 * contexts of 400,000 positions. */
void attention_absorbed(struct compute *c, const struct kv_layer *kv, unsigned heads, float scale,
    const struct attention_span *spans, size_t count, size_t ldq, size_t ldo);

/* Naive (prefill): keys and values are expanded from the latents by kv_b (rows per head: [nope key | value]) tile by
 * tile, once per slab of a span's queries (as many as fit the scratch; 384 of DeepSeek-V3), and shared by them. */
struct attention_dims {
        unsigned heads, nope, rope, v;
};
void attention_naive(struct compute *c, const struct kv_layer *kv, const struct linear *kv_b,
    const struct attention_dims *dims, float scale, const struct attention_span *spans, size_t count, size_t ldq,
    size_t ldo);

/* The two halves of kv_b as small per-head products, for the absorbed form:
 *   absorb:  out[t][h][0..rank)  = sum over d<nope of q[t][h][d] W_UK[h][d][.]
 *   expand:  out[t][h][0..v)     = W_UV[h] u[t][h]
 * Packed from the same (dequantised) kv_b. */
struct head_linear {
        unsigned heads;
        size_t n, k; /* per head */
        const void *packed;
        size_t head_stride;    /* bytes */
        enum weight_type type; /* WEIGHT_F32 or WEIGHT_BF16 */
};
size_t head_linear_bytes(enum weight_type type, unsigned heads, size_t n, size_t k);
/* weight(h, row n, column k) = data[h*head_stride + n*row_stride + k*col_stride], floats. `type` is how they are kept:
 * WEIGHT_BF16 when the checkpoint's kv_b is bf16 (nothing is lost, half the bytes are read per step), else WEIGHT_F32. */
int head_linear_pack(struct compute *c, enum weight_type type, const float *data, size_t head_stride, size_t row_stride,
    size_t col_stride, unsigned heads, size_t n, size_t k, void *memory, struct head_linear *ret_linear,
    struct error *e);
/* out[t*ldo + h*out_head + n] = sum over k of w(h, n, k) x[t*ldx + h*x_head + k] */
void head_linear_run(struct compute *c, const struct head_linear *l, const float *x, size_t ldx, size_t x_head,
    size_t m, float *out, size_t ldo, size_t out_head);

/* ---- small operations ------------------------------------------------------------------------------------------- */

/* y = x / sqrt(mean(x^2) + eps) * weight (+ bias when not NULL); x and y may be the same. */
void rmsnorm(struct compute *c, const float *x, size_t ldx, const float *weight, const float *bias, float eps, size_t m,
    size_t n, float *y, size_t ldy);

/* cos and sin of position p and pair j at table[p*2*pairs + 2*j], [.. + 1]. Rotates pairs (2j, 2j+1) in place. */
void rope(struct compute *c, const float *table, unsigned pairs, const uint32_t *positions, size_t m, float *x,
    size_t ldx, unsigned heads, size_t head_stride);

/* y += x; and y = x rounded to bf16 and back (used between layers with ACTIVATION_BF16). */
void add_rows(struct compute *c, const float *x, size_t ldx, size_t m, size_t n, float *y, size_t ldy);
void round_bf16(struct compute *c, float *x, size_t ldx, size_t m, size_t n);

/* One row [k] of a weight as floats: f32, f16, bf16, fp8 and dynamic int8 with their scales. */
void weight_row(const struct weight_source *source, size_t row, float *ret_row);
float bf16_to_float(uint16_t bits);
uint16_t float_to_bf16(float value); /* round to nearest even, NaN stays NaN */
float f16_to_float(uint16_t bits);
float fp8_e4m3_to_float(uint8_t bits);
uint8_t float_to_fp8_e4m3(float value); /* round to nearest even; beyond 448 is 448, NaN stays NaN */
