/* vector.h - the inner loops over sixteen lanes, written once. A file per instruction set includes its simd_*.h, defines
 * BLOCK_ROWS and FEW_ROWS (what its registers hold) and then includes this; table.h says what each function does. All
 * arithmetic is IEEE with explicit fused multiply-adds, so that every instruction set gives the same bits. */
#pragma once
#include "kernels/layout.h"
#include "kernels/table.h"
#include <float.h>
#include <math.h>
#include <string.h>

/* ---- products --------------------------------------------------------------------------------------------------- */

INLINE void prefetch_next(const struct operands *o, size_t i, unsigned lines) {
        const char *at = o->next + i * o->ahead;

        simd_prefetch(at);
        if (lines > 1 && o->ahead > 64)
                simd_prefetch(at + 64);
}

INLINE void load_scale(const float *scale, bool lane_scales, vf ret_scale[2]) {
        for (int half = 0; half < 2; half++) {
                ret_scale[half] = lane_scales ? vf_load(scale + half * LANES) : vf_set(scale[0]);
                ret_scale[half] = vf_mul(ret_scale[half], vf_set(FP8_FACTOR));
        }
}

/* Where the chain of a lane begins. */
INLINE vf sum_begin(const float *c, size_t at) {
        return c ? vf_load(c + at) : vf_set(0);
}

INLINE void gemm_block(const struct operands *operands, const unsigned rows, const unsigned wide, const bool scaled) {
        const struct operands o = *operands; /* nothing written below may change it */
        const float *a = o.a, *b = o.b, *c = o.c;
        float *out = o.out;
        vf sum[BLOCK_ROWS][2];

#pragma GCC unroll 16
        for (unsigned r = 0; r < rows; r++)
#pragma GCC unroll 2
                for (unsigned v = 0; v < wide; v++)
                        sum[r][v] = scaled ? vf_set(0) : sum_begin(c, (r * wide + v) * LANES);
        for (size_t i = 0; i < o.k; i++) {
                vf w[2];

                prefetch_next(&o, i, wide);
#pragma GCC unroll 2
                for (unsigned v = 0; v < wide; v++)
                        w[v] = vf_load(b + (i * wide + v) * LANES);
#pragma GCC unroll 16
                for (unsigned r = 0; r < rows; r++) {
                        vf x = vf_set(a[i * o.step + r * o.row_step]);

#pragma GCC unroll 2
                        for (unsigned v = 0; v < wide; v++)
                                sum[r][v] = vf_fma(x, w[v], sum[r][v]);
                }
        }
        if (scaled) {
                vf scale[2];

                load_scale(o.scale, o.lane_scales, scale);
#pragma GCC unroll 16
                for (unsigned r = 0; r < rows; r++)
#pragma GCC unroll 2
                        for (unsigned v = 0; v < wide; v++)
                                sum[r][v] = vf_fma(sum[r][v], scale[v], sum_begin(c, (r * wide + v) * LANES));
        }
#pragma GCC unroll 16
        for (unsigned r = 0; r < rows; r++)
#pragma GCC unroll 2
                for (unsigned v = 0; v < wide; v++)
                        vf_store(out + r * o.ldo + v * LANES, sum[r][v]);
}

/* The number of rows must be a constant for the sums to live in registers. */
#define ROWS_CASE(n, call)                                                                                             \
        case n:                                                                                                        \
                if (n <= BLOCK_ROWS)                                                                                   \
                        call;                                                                                          \
                break;
#define ROWS_SWITCH(rows, CALL)                                                                                        \
        switch (rows) {                                                                                                \
                ROWS_CASE(1, CALL(1))                                                                                  \
                ROWS_CASE(2, CALL(2))                                                                                  \
                ROWS_CASE(3, CALL(3))                                                                                  \
                ROWS_CASE(4, CALL(4))                                                                                  \
                ROWS_CASE(5, CALL(5))                                                                                  \
                ROWS_CASE(6, CALL(6))                                                                                  \
                ROWS_CASE(7, CALL(7))                                                                                  \
                ROWS_CASE(8, CALL(8))                                                                                  \
                ROWS_CASE(9, CALL(9))                                                                                  \
                ROWS_CASE(10, CALL(10))                                                                                \
                ROWS_CASE(11, CALL(11))                                                                                \
                ROWS_CASE(12, CALL(12))                                                                                \
        }

#define MIN_ROWS(n)    ((n) < BLOCK_ROWS ? (n) : BLOCK_ROWS)
#define GEMM_WIDE(n)   gemm_block(o, MIN_ROWS(n), 2, false)
#define GEMM_SCALED(n) gemm_block(o, MIN_ROWS(n), 2, true)
#define GEMM_HALF(n)   gemm_block(o, MIN_ROWS(n), 1, false)

static void gemm(const struct operands *o, unsigned lanes) {
        if (lanes != PANEL) {
                ROWS_SWITCH(o->rows, GEMM_HALF)
        } else if (o->scale) {
                ROWS_SWITCH(o->rows, GEMM_SCALED)
        } else {
                ROWS_SWITCH(o->rows, GEMM_WIDE)
        }
}

/* The weights of one group of k as floats: f32 and f16 one k, the others two. `w[k][half]`. */
struct group {
        vf w[2][2];
};

INLINE size_t group_size(enum weight_type type) {
        return type == WEIGHT_BF16 || type == WEIGHT_FP8 ? 2 : 1;
}

INLINE struct group load_group(enum weight_type type, const char *panel, size_t group) {
        struct group g;

        switch (type) {
        case WEIGHT_F32:
                g.w[0][0] = vf_load((const float *)panel + group * PANEL);
                g.w[0][1] = vf_load((const float *)panel + group * PANEL + LANES);
                break;
        case WEIGHT_F16:
                g.w[0][0] = vf_f16(panel + group * PANEL * 2);
                g.w[0][1] = vf_f16(panel + group * PANEL * 2 + LANES * 2);
                break;
        case WEIGHT_BF16:
                vf_bf16_pair(panel + group * PANEL * 4, &g.w[0][0], &g.w[1][0]);
                vf_bf16_pair(panel + group * PANEL * 4 + LANES * 4, &g.w[0][1], &g.w[1][1]);
                break;
        default:
                vf_fp8_pair(panel + group * PANEL * 2, g.w[0], g.w[1]);
        }
        return g;
}

INLINE void prefetch_at(const char *p, size_t bytes) {
        for (size_t line = 0; line < bytes; line += 64)
                simd_prefetch(p + line);
}

INLINE void prefetch_ahead(const void *p, size_t bytes) {
        prefetch_at((const char *)p + PREFETCH_BYTES, bytes);
}

/* The sums of few rows: [panel][row][half]. */
#define FEW_SUMS vf sum[2][FEW_ROWS][2]

/* Begin the chains: at c, or for fp8 at 0. */
INLINE void few_begin(
    enum weight_type type, const unsigned panels, const unsigned rows, const struct few_operands *o, FEW_SUMS) {
#pragma GCC unroll 2
        for (unsigned p = 0; p < panels; p++)
#pragma GCC unroll 8
                for (unsigned r = 0; r < rows; r++)
#pragma GCC unroll 2
                        for (unsigned half = 0; half < 2; half++)
                                sum[p][r][half] =
                                    type == WEIGHT_FP8 ? vf_set(0) : vf_load(o->c[p] + r * PANEL + half * LANES);
}

INLINE void few_end(
    enum weight_type type, const unsigned panels, const unsigned rows, const struct few_operands *o, FEW_SUMS) {
#pragma GCC unroll 2
        for (unsigned p = 0; p < panels; p++) {
                vf scale[2];

                if (type == WEIGHT_FP8)
                        load_scale(o->scale[p], o->lane_scales, scale);
#pragma GCC unroll 8
                for (unsigned r = 0; r < rows; r++)
#pragma GCC unroll 2
                        for (unsigned half = 0; half < 2; half++) {
                                float *c = o->c[p] + r * PANEL + half * LANES;
                                vf s = sum[p][r][half];

                                vf_store(c, type == WEIGHT_FP8 ? vf_fma(s, scale[half], vf_load(c)) : s);
                        }
        }
}

INLINE void few_add(const float *x, const vf w[2], const unsigned rows, vf sum[][2]) {
#pragma GCC unroll 8
        for (unsigned r = 0; r < rows; r++) {
                vf xr = vf_set(x[r]);

                sum[r][0] = vf_fma(xr, w[0], sum[r][0]);
                sum[r][1] = vf_fma(xr, w[1], sum[r][1]);
        }
}

INLINE void few_panels(
    enum weight_type type, const unsigned panels, const unsigned rows, const struct few_operands *o) {
        const size_t k = o->k, ahead = o->ahead, each = group_size(type), bytes = panel_offset(type, each);
        const char *panel[2] = {o->panel[0], o->panel[1]};
        const float *x = o->x;
        FEW_SUMS;

        few_begin(type, panels, rows, o, sum);
        for (size_t i = 0; i < k / each; i++) {
#pragma GCC unroll 2
                for (unsigned p = 0; p < panels; p++) {
                        struct group g = load_group(type, panel[p], i);

                        prefetch_at(panel[p] + i * bytes + ahead, bytes);
#pragma GCC unroll 2
                        for (unsigned j = 0; j < each; j++)
                                few_add(x + (i * each + j) * rows, g.w[j], rows, sum[p]);
                }
        }
        if (k % each != 0)
#pragma GCC unroll 2
                for (unsigned p = 0; p < panels; p++) {
                        struct group g = load_group(type, panel[p], k / each);

                        few_add(x + (k - 1) * rows, g.w[0], rows, sum[p]);
                }
        few_end(type, panels, rows, o, sum);
}

#define FEW_CASE(n, function, type)                                                                                    \
        case n:                                                                                                        \
                if (n <= FEW_ROWS)                                                                                     \
                        function(type, 1, n < FEW_ROWS ? n : FEW_ROWS, o);                                             \
                break;
#define FEW_CASE_PAIRED(n, function, type)                                                                             \
        case n:                                                                                                        \
                if (n <= FEW_ROWS_PAIRED)                                                                              \
                        function(type, 2, n < FEW_ROWS_PAIRED ? n : FEW_ROWS_PAIRED, o);                               \
                return;
/* The numbers of panels and rows as constants. */
#define FEW_SWITCH(function, type)                                                                                     \
        if (o->panel[1]) {                                                                                             \
                switch (o->rows) {                                                                                     \
                        FEW_CASE_PAIRED(1, function, type)                                                             \
                        FEW_CASE_PAIRED(2, function, type)                                                             \
                        FEW_CASE_PAIRED(3, function, type)                                                             \
                        FEW_CASE_PAIRED(4, function, type)                                                             \
                        FEW_CASE_PAIRED(5, function, type)                                                             \
                }                                                                                                      \
                return;                                                                                                \
        }                                                                                                              \
        switch (o->rows) {                                                                                             \
                FEW_CASE(1, function, type)                                                                            \
                FEW_CASE(2, function, type)                                                                            \
                FEW_CASE(3, function, type)                                                                            \
                FEW_CASE(4, function, type)                                                                            \
                FEW_CASE(5, function, type)                                                                            \
                FEW_CASE(6, function, type)                                                                            \
        }

INLINE void expand_panel(enum weight_type type, const char *panel, size_t k, float *b) {
        const size_t each = group_size(type), bytes = panel_offset(type, each);

        for (size_t i = 0; i < (k + each - 1) / each; i++) {
                struct group g = load_group(type, panel, i);

                prefetch_ahead(panel + i * bytes, bytes);
#pragma GCC unroll 2
                for (unsigned j = 0; j < each; j++) {
                        vf_store(b + (i * each + j) * PANEL, g.w[j][0]);
                        vf_store(b + (i * each + j) * PANEL + LANES, g.w[j][1]);
                }
        }
}

#define FLOAT_TYPE(name, type)                                                                                         \
        static void few_##name(const struct few_operands *o) {                                                         \
                FEW_SWITCH(few_panels, type)                                                                           \
        }                                                                                                              \
        static __attribute__((unused)) void expand_##name(const void *panel, size_t k, float *b) {                     \
                expand_panel(type, panel, k, b);                                                                       \
        }
FLOAT_TYPE(f32, WEIGHT_F32)
FLOAT_TYPE(f16, WEIGHT_F16)
FLOAT_TYPE(bf16, WEIGHT_BF16)
FLOAT_TYPE(fp8, WEIGHT_FP8)

/* ---- int8: as quads of bytes, or as pairs of int16 ---------------------------------------------------------------- */

#if !defined(INT8_AS_BYTES)
#define vi_dot vi_dot_pairs
#endif

INLINE vi int8_begin(const struct operands *o, unsigned r, unsigned half) {
        const int32_t *c = o->c;

        return vi_load(c ? c + r * PANEL + half * LANES : o->ends->begin + half * LANES);
}

INLINE void int8_end(const struct operands *o, unsigned r, unsigned half, vi sum) {
        const struct int8_ends *e = o->ends;
        const size_t at = r * o->ldo + half * LANES;
        vf v;

        if (!e->complete) {
                vi_store((int32_t *)o->out + at, sum);
                return;
        }
        v = vf_from_vi(e->bias ? vi_add(sum, vi_load(e->bias + half * LANES)) : sum);
        if (e->row_scale)
                v = vf_mul(v, vf_set(e->row_scale[r]));
        vf_store((float *)o->out + at, vf_mul(v, vf_load(e->scale + half * LANES)));
}

INLINE void int8_block(const struct operands *operands, const unsigned rows) {
        const struct operands o = *operands;
        const int32_t *a = o.a, *b = o.b;
        vi sum[BLOCK_ROWS_INT8][2];

#pragma GCC unroll 16
        for (unsigned r = 0; r < rows; r++) {
                sum[r][0] = int8_begin(&o, r, 0);
                sum[r][1] = int8_begin(&o, r, 1);
        }
        for (size_t i = 0; i < o.k; i++) {
                vi w0 = vi_load(b + i * PANEL), w1 = vi_load(b + i * PANEL + LANES);

                prefetch_next(&o, i, 2);
#pragma GCC unroll 16
                for (unsigned r = 0; r < rows; r++) {
                        vi x = vi_set(a[i * rows + r]);

                        sum[r][0] = vi_dot(sum[r][0], x, w0);
                        sum[r][1] = vi_dot(sum[r][1], x, w1);
                }
        }
#pragma GCC unroll 16
        for (unsigned r = 0; r < rows; r++) {
                int8_end(&o, r, 0, sum[r][0]);
                int8_end(&o, r, 1, sum[r][1]);
        }
}

static void gemm_int8(const struct operands *o) {
#define INT8_BLOCK(n) int8_block(o, (n) < BLOCK_ROWS_INT8 ? (n) : BLOCK_ROWS_INT8)
        ROWS_SWITCH(o->rows, INT8_BLOCK)
}

#if !defined(INT8_AS_BYTES)

/* The weights are the panel itself: quads. k counts words of two. */
static void row_int8(const struct operands *o) {
        const int32_t *x = o->a;
        vi sum[2] = {int8_begin(o, 0, 0), int8_begin(o, 0, 1)};

        for (size_t i = 0; i < o->k / 2; i++) {
                const char *at = (const char *)o->b + i * PANEL * 4;

                prefetch_ahead(at, PANEL * 4);
#pragma GCC unroll 2
                for (unsigned half = 0; half < 2; half++) {
                        vi first, second;

                        vi_int8_quads(at + half * LANES * 4, &first, &second);
                        sum[half] = vi_dot_pairs(sum[half], vi_set(x[2 * i]), first);
                        sum[half] = vi_dot_pairs(sum[half], vi_set(x[2 * i + 1]), second);
                }
        }
        int8_end(o, 0, 0, sum[0]);
        int8_end(o, 0, 1, sum[1]);
}

static void expand_int8(const void *panel, size_t words, uint32_t *b) {
        int32_t *to = (int32_t *)b;

        for (size_t i = 0; i < words / 2; i++) {
                const char *at = (const char *)panel + i * PANEL * 4;

                prefetch_ahead(at, PANEL * 4);
#pragma GCC unroll 2
                for (unsigned half = 0; half < 2; half++) {
                        vi first, second;

                        vi_int8_quads(at + half * LANES * 4, &first, &second);
                        vi_store(to + 2 * i * PANEL + half * LANES, first);
                        vi_store(to + (2 * i + 1) * PANEL + half * LANES, second);
                }
        }
}
#endif

/* ---- activations ------------------------------------------------------------------------------------------------- */

INLINE vf load_up_to(const float *x, size_t n) { /* 16 lanes or the n that are left */
        return n >= LANES ? vf_load(x) : vf_load_part(x, n);
}

INLINE void store_up_to(float *y, vf v, size_t n) {
        if (n >= LANES)
                vf_store(y, v);
        else
                vf_store_part(y, v, n);
}

INLINE float lanes_sum(vf v) { /* in a tree of halves, whatever the instruction set */
        float lane[LANES];

        vf_store(lane, v);
        for (unsigned half = LANES / 2; half > 0; half /= 2)
                for (unsigned i = 0; i < half; i++)
                        lane[i] += lane[i + half];
        return lane[0];
}

INLINE float lanes_largest(vf v) {
        float lane[LANES], largest;

        vf_store(lane, v);
        largest = lane[0];
        for (unsigned i = 1; i < LANES; i++)
                largest = lane[i] > largest ? lane[i] : largest;
        return largest;
}

static void to_bf16(const float *x, size_t n, uint16_t *y) {
        size_t i = 0;

        for (; i + LANES <= n; i += LANES)
                vf_to_bf16(vf_load(x + i), y + i);
        if (i < n) {
                uint16_t part[LANES];

                vf_to_bf16(vf_load_part(x + i, n - i), part);
                memcpy(y + i, part, (n - i) * sizeof(*y));
        }
}

static void from_bf16(const uint16_t *x, size_t n, float *y) {
        size_t i = 0;

        for (; i + LANES <= n; i += LANES)
                vf_store(y + i, vf_bf16(x + i));
        if (i < n) {
                uint16_t part[LANES] = {0};

                memcpy(part, x + i, (n - i) * sizeof(*x));
                vf_store_part(y + i, vf_bf16(part), n - i);
        }
}

static void round_to_bf16(float *x, size_t n) {
        for (size_t i = 0; i < n; i += LANES) {
                uint16_t part[LANES];

                vf_to_bf16(load_up_to(x + i, n - i), part);
                store_up_to(x + i, vf_bf16(part), n - i);
        }
}

static __attribute__((unused)) void row_to_bf16(const float *x, size_t k, uint16_t *ret_row) {
        to_bf16(x, k, ret_row);
        if (k % 2 != 0)
                ret_row[k] = 0;
}

static float row_largest(const float *x, size_t k) {
        vf largest[4] = {vf_set(0), vf_set(0), vf_set(0), vf_set(0)}; /* four chains hide the latency */
        size_t i = 0;

        for (; i + 4 * LANES <= k; i += 4 * LANES)
#pragma GCC unroll 4
                for (unsigned j = 0; j < 4; j++)
                        largest[j] = vf_max(vf_abs(vf_load(x + i + j * LANES)), largest[j]);
        for (; i < k; i += LANES)
                largest[0] = vf_max(vf_abs(load_up_to(x + i, k - i)), largest[0]);
        largest[0] = vf_max(vf_max(largest[0], largest[1]), vf_max(largest[2], largest[3]));
        return lanes_largest(largest[0]);
}

/* Activation i and those after it, of n in all, as int16 or as unsigned bytes plus 128. */
INLINE void store_int8(vf v, size_t i, size_t n, void *row) {
#if defined(INT8_AS_BYTES)
        uint8_t part[LANES], *to = (uint8_t *)row + i;
#define TO_INT8 vf_to_u8
#else
        int16_t part[LANES], *to = (int16_t *)row + i;
#define TO_INT8 vf_to_i16
#endif

        v = vf_min(vf_max(v, vf_set(-128)), vf_set(127));
        if (n - i >= LANES) {
                TO_INT8(v, to);
                return;
        }
        TO_INT8(v, part);
        memcpy(to, part, (n - i) * sizeof(*part));
}

/* x / s, rounded once, without the division's cost: `inverse` is 1 / s rounded, and two corrections of the quotient by its
 * exact remainder give the correctly rounded one (Markstein) where nothing overflows or underflows: for s within the bounds
 * below and |x| of at most a few hundred s. A quotient so small that its remainder underflows is one that rounds to 0. */
#define SCALE_SAFE_MIN 0x1p-60f
#define SCALE_SAFE_MAX 0x1p+60f

INLINE vf divide_by_scale(vf x, vf s, vf inverse) {
        vf minus = vf_sub(vf_set(0), s), q = vf_mul(x, inverse);

        q = vf_fma(vf_fma(minus, q, x), inverse, q);
        return vf_fma(vf_fma(minus, q, x), inverse, q);
}

INLINE void pad_int8(size_t k, void *row) {
#if defined(INT8_AS_BYTES)
        const size_t size = 1;
#else
        const size_t size = 2;
#endif
        memset((char *)row + k * size, 0, (4 - k % 4) % 4 * size);
}

static void row_to_int8(const float *x, size_t k, float scale, void *ret_row) {
        const vf s = vf_set(scale), inverse = vf_set(1 / scale);
        size_t i = 0;

        if (scale >= SCALE_SAFE_MIN && scale <= SCALE_SAFE_MAX)
                for (; i + LANES <= k; i += LANES)
                        store_int8(divide_by_scale(vf_load(x + i), s, inverse), i, k, ret_row);
        for (; i < k; i += LANES) {
                vf v = load_up_to(x + i, k - i);

                store_int8(scale > 0 ? vf_div(v, vf_set(scale)) : vf_set(0), i, k, ret_row);
        }
        pad_int8(k, ret_row);
}

static void row_to_int8_static(const float *x, size_t k, float scale_inv, float offset, void *ret_row) {
        for (size_t i = 0; i < k; i += LANES) {
                vf v = vf_add(vf_mul(load_up_to(x + i, k - i), vf_set(scale_inv)), vf_set(offset));

                store_int8(v, i, k, ret_row);
        }
        pad_int8(k, ret_row);
}

/* ---- after a product ---------------------------------------------------------------------------------------------- */

/* e^x within 2 ulp; 0 below -87.3, e^88.3 above. Range reduction by ln 2 in two parts and a polynomial of degree 6 for
 * [-ln 2 / 2, ln 2 / 2] (the coefficients are those of the Cephes library). A NaN stays one. */
INLINE vf vf_exp(vf x) {
        const vf least = vf_set(-87.3365447f);
        vf y = vf_min(vf_set(88.3762589f), vf_max(least, x));
        vf n = vf_round(vf_mul(y, vf_set(1.44269504f)));
        vf r = vf_fma(n, vf_set(2.12194440e-4f), vf_fma(n, vf_set(-0.693359375f), y));
        vf p = vf_set(1.9875691500e-4f);

        p = vf_fma(p, r, vf_set(1.3981999507e-3f));
        p = vf_fma(p, r, vf_set(8.3334519073e-3f));
        p = vf_fma(p, r, vf_set(4.1665795894e-2f));
        p = vf_fma(p, r, vf_set(1.6666665459e-1f));
        p = vf_fma(p, r, vf_set(5.0000001201e-1f));
        p = vf_add(vf_fma(p, vf_mul(r, r), r), vf_set(1));
        return vf_zero_below(vf_mul(p, vf_power_of_2(n)), x, least);
}

INLINE vf vf_silu(vf x) {
        return vf_div(x, vf_add(vf_set(1), vf_exp(vf_sub(vf_set(0), x))));
}

static void swiglu(const float *gate, const float *up, size_t rows, size_t width, float *out, size_t ldo) {
        for (size_t r = 0; r < rows; r++)
                for (size_t i = 0; i < width; i += LANES) {
                        const size_t at = r * PANEL + i;

                        store_up_to(
                            out + r * ldo + i, vf_mul(vf_silu(vf_load(gate + at)), vf_load(up + at)), width - i);
                }
}

/* ---- attention: a lane is a query --------------------------------------------------------------------------------- */

INLINE void softmax_lanes(float *s, size_t positions, unsigned lanes, float scale, const int32_t *visible, float *max,
    float *sum, float *keep) {
        vf old = vf_load(max), new = old, total = vf_set(0), factor;

        for (size_t p = 0; p < positions; p++) {
                vf v = vf_mul(vf_load(s + p * lanes), vf_set(scale));

                v = vf_keep_below(v, (int32_t)p, visible, -INFINITY);
                vf_store(s + p * lanes, v);
                new = vf_max(v, new);
        }
        /* A lane that has seen nothing yet keeps -inf as its maximum; what is subtracted must be finite. */
        vf_store(max, new);
        new = vf_max(new, vf_set(-FLT_MAX));
        for (size_t p = 0; p < positions; p++) {
                vf v = vf_exp(vf_sub(vf_load(s + p * lanes), new));

                vf_store(s + p * lanes, v);
                total = vf_add(total, v);
        }
        factor = vf_exp(vf_sub(old, new));
        vf_store(keep, factor);
        vf_store(sum, vf_fma(vf_load(sum), factor, total));
}

static void softmax(float *s, size_t positions, unsigned lanes, float scale, const int32_t *visible, float *max,
    float *sum, float *keep) {
        for (unsigned i = 0; i < lanes; i += LANES)
                softmax_lanes(s + i, positions, lanes, scale, visible + i, max + i, sum + i, keep + i);
}

static void scale_rows(float *o, size_t rows, unsigned lanes, const float *factor) {
        for (unsigned i = 0; i < lanes; i += LANES) {
                vf f = vf_load(factor + i);

                for (size_t r = 0; r < rows; r++)
                        vf_store(o + r * lanes + i, vf_mul(vf_load(o + r * lanes + i), f));
        }
}

static void merge(float *into_o, float *into_max, float *into_sum, const float *o, const float *max, const float *sum,
    size_t rows, unsigned lanes) {
        for (unsigned i = 0; i < lanes; i += LANES) {
                vf a = vf_load(into_max + i), b = vf_load(max + i), both = vf_max(a, b);
                vf finite = vf_max(both, vf_set(-FLT_MAX));
                vf keep = vf_exp(vf_sub(a, finite)), take = vf_exp(vf_sub(b, finite));

                vf_store(into_max + i, both);
                vf_store(into_sum + i, vf_fma(vf_load(sum + i), take, vf_mul(vf_load(into_sum + i), keep)));
                for (size_t r = 0; r < rows; r++) {
                        const size_t at = r * lanes + i;

                        vf_store(into_o + at, vf_fma(vf_load(o + at), take, vf_mul(vf_load(into_o + at), keep)));
                }
        }
}

static void finish(float *o, size_t rows, unsigned lanes, const float *sum) {
        for (unsigned i = 0; i < lanes; i += LANES) {
                vf total = vf_load(sum + i);

                /* The sign of a zero may depend on how many masked positions were added; adding 0 makes it positive. */
                for (size_t r = 0; r < rows; r++)
                        vf_store(o + r * lanes + i, vf_add(vf_div(vf_load(o + r * lanes + i), total), vf_set(0)));
        }
}

/* ---- rows --------------------------------------------------------------------------------------------------------- */

static void rmsnorm_row(const float *x, const float *weight, const float *bias, float eps, size_t n, float *y) {
        vf squares = vf_set(0), factor;

        for (size_t i = 0; i < n; i += LANES) {
                vf v = load_up_to(x + i, n - i);

                squares = vf_fma(v, v, squares);
        }
        factor = vf_set(1 / sqrtf(lanes_sum(squares) / (float)n + eps));
        for (size_t i = 0; i < n; i += LANES) {
                vf v = vf_mul(vf_mul(load_up_to(x + i, n - i), factor), load_up_to(weight + i, n - i));

                if (bias)
                        v = vf_add(v, load_up_to(bias + i, n - i));
                store_up_to(y + i, v, n - i);
        }
}

static void rope_row(const float *turns, size_t pairs, float *x) {
        for (size_t j = 0; j < pairs; j++) {
                float a = x[2 * j], b = x[2 * j + 1], cosine = turns[2 * j], sine = turns[2 * j + 1];

                x[2 * j] = a * cosine - b * sine;
                x[2 * j + 1] = a * sine + b * cosine;
        }
}

static void add_row(const float *x, size_t n, float *y) {
        for (size_t i = 0; i < n; i += LANES)
                store_up_to(y + i, vf_add(load_up_to(y + i, n - i), load_up_to(x + i, n - i)), n - i);
}

/* What all tables share; a table begins with this. */
#if defined(INT8_AS_BYTES)
#define TABLE_INT8
#else
#define TABLE_INT8 .row_int8 = row_int8, .expand_int8 = expand_int8,
#endif
#define TABLE_COMMON                                                                                                   \
        TABLE_INT8.block_rows_int8 = BLOCK_ROWS_INT8, .gemm_int8 = gemm_int8, .block_rows = BLOCK_ROWS, .gemm = gemm,  \
        .few_rows = FEW_ROWS, .few_rows_paired = FEW_ROWS_PAIRED, .few = {few_f32, few_f16, few_bf16, few_fp8},        \
        .expand = {NULL, expand_f16, expand_bf16, expand_fp8}, .row_largest = row_largest, .row_to_int8 = row_to_int8, \
        .row_to_int8_static = row_to_int8_static, .swiglu = swiglu, .softmax = softmax, .scale_rows = scale_rows,      \
        .merge = merge, .finish = finish, .rmsnorm = rmsnorm_row, .rope = rope_row, .add = add_row,                    \
        .to_bf16 = to_bf16, .from_bf16 = from_bf16, .round_bf16 = round_to_bf16
