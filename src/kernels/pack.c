/* pack.c - from checkpoint rows to panels (layout.h). */
#include "kernels/compute.h"
#include "kernels/layout.h"
#include <assert.h>
#include <errno.h>
#include <math.h>
#include <stdatomic.h>
#include <string.h>

/* A row of activations is staged in a worker's scratch as floats. */
#define K_MAX ((size_t)1 << 18)
/* Scales beyond this are no model's; below it no step of the decoding overflows. */
#define SCALE_MAX 1e30f

static size_t element_bytes(enum weight_type type) {
        switch (type) {
        case WEIGHT_F32:
                return 4;
        case WEIGHT_F16:
        case WEIGHT_BF16:
                return 2;
        default:
                return 1;
        }
}

/* Does a panel of this weight cross a border between rows of scale blocks? */
static bool crosses_block_rows(const struct weight_source *s) {
        if (s->type != WEIGHT_FP8 || s->block_n == 0)
                return false;
        for (size_t r = 0; r < s->n; r += PANEL) {
                size_t last = r + PANEL < s->n ? r + PANEL - 1 : s->n - 1;

                if ((s->first_row + r) / s->block_n != (s->first_row + last) / s->block_n)
                        return true;
        }
        return false;
}

/* The linear without its memory. */
static struct linear shape_of(const struct weight_source *s) {
        struct linear l = {
            .type = s->type,
            .n = s->n,
            .k = s->k,
            .panels = ceil_div(s->n, PANEL),
            .input_scale_inv = s->input_scale_inv,
            .input_offset = s->input_offset,
        };

        if (s->type == WEIGHT_FP8) {
                l.first_run = s->block_k > 0 ? s->block_k - s->first_col % s->block_k : s->k; /* 0 is refused later */
                if (l.first_run > s->k)
                        l.first_run = s->k;
                l.block_k = s->block_k;
                l.lane_scales = crosses_block_rows(s);
        }
        return l;
}

static struct linear shape_of_two(const struct weight_source *gate, const struct weight_source *up) {
        struct linear l = shape_of(gate);

        l.n *= 2;
        l.panels *= 2;
        l.lane_scales |= crosses_block_rows(up);
        return l;
}

static size_t scale_bytes(const struct linear *l) {
        if (l->type == WEIGHT_FP8)
                return align64(l->panels * linear_runs(l) * (l->lane_scales ? PANEL : 1) * sizeof(float));
        return is_int8(l->type) ? l->panels * PANEL * sizeof(float) : 0;
}

static size_t bytes_of(const struct linear *l) {
        size_t bytes = l->panels * panel_offset(l->type, l->k) + scale_bytes(l);

        if (is_int8(l->type))
                bytes += 2 * l->panels * PANEL * sizeof(int32_t);
        return bytes;
}

static void place(struct linear *l, void *memory) {
        char *at = memory;

        assert((uintptr_t)memory % 64 == 0);
        l->packed = at;
        at += l->panels * panel_offset(l->type, l->k);
        l->scales = (float *)at;
        at += scale_bytes(l);
        if (is_int8(l->type)) {
                l->bias = (int32_t *)at;
                l->sums = l->bias + l->panels * PANEL;
        }
}

static int check_source(const struct weight_source *s, struct error *e) {
        if (s->n == 0 || s->k == 0 || s->k > K_MAX)
                return error_set(e, -EINVAL, "a weight of %zu rows of %zu columns; at most %zu columns are possible",
                    s->n, s->k, K_MAX);
        if (is_int8(s->type) && s->k > INT8_K_MAX)
                return error_set(
                    e, -EINVAL, "an int8 weight of %zu columns; sums are exact up to %d", s->k, INT8_K_MAX);
        if (s->type != WEIGHT_FP8)
                return 0;
        if (s->block_n == 0 || s->block_k == 0 || s->block_k % 2 != 0)
                return error_set(
                    e, -EINVAL, "fp8 scale blocks of %zu x %zu; the second must be even", s->block_n, s->block_k);
        if (s->block_k > FP8_BLOCK_K_MAX)
                return error_set(
                    e, -EINVAL, "fp8 scale blocks of %zu columns are more than %d", s->block_k, FP8_BLOCK_K_MAX);
        if (s->first_col % 2 != 0)
                return error_set(e, -EINVAL, "an fp8 weight cut at the odd column %zu", s->first_col);
        return 0;
}

/* One source into every `stride`-th panel from `first_panel` on. */
struct packing {
        const struct weight_source *s;
        const struct linear *l;
        size_t first_panel, stride;
        struct compute *c;
        _Atomic size_t next[WORKER_GROUPS_MAX]; /* by group: panels of the source in its share that were taken */
        _Atomic size_t bad_row;                 /* 1 + a row with a NaN weight, or 0 */
        _Atomic size_t bad_scale;               /* 1 + a row with an impossible scale, or 0 */
};

/* Columns are copied in strips so that what is written scattered stays in the first-level cache. */
#define STRIP_GROUPS 64

static inline __attribute__((always_inline)) void pack_rows(
    const struct packing *p, size_t row, size_t rows, char *to, const size_t group_bytes) {
        const struct weight_source *s = p->s;
        const size_t size = element_bytes(s->type), row_bytes = s->k * size;
        const size_t groups = ceil_div(row_bytes, group_bytes), whole = row_bytes / group_bytes;

        for (size_t from = 0; from < groups; from += STRIP_GROUPS) {
                size_t end = from + STRIP_GROUPS < groups ? from + STRIP_GROUPS : groups;

                for (size_t lane = 0; lane < PANEL; lane++) {
                        const char *source = (const char *)s->data + (row + lane) * s->row_stride * size;
                        char *at = to + lane * group_bytes;

                        for (size_t g = from; g < end; g++) {
                                char *group = at + g * PANEL * group_bytes;

                                if (lane < rows && g < whole) {
                                        memcpy(group, source + g * group_bytes, group_bytes);
                                        continue;
                                }
                                memset(group, 0, group_bytes);
                                if (lane < rows)
                                        memcpy(group, source + whole * group_bytes, row_bytes - whole * group_bytes);
                        }
                }
        }
}

static bool has_nan(const uint8_t *fp8, size_t n) {
        unsigned found = 0;

        for (size_t i = 0; i < n; i++)
                found |= (fp8[i] & 0x7f) == 0x7f;
        return found != 0;
}

static void pack_fp8_extras(struct packing *p, size_t row, size_t rows, size_t panel) {
        const struct weight_source *s = p->s;

        for (size_t r = row; r < row + rows; r++)
                if (has_nan((const uint8_t *)s->data + r * s->row_stride, s->k))
                        atomic_store(&p->bad_row, r + 1);
        for (size_t run = 0; run < linear_runs(p->l); run++) {
                float *to = (float *)linear_scales(p->l, panel, run);

                for (size_t lane = 0; lane < (p->l->lane_scales ? PANEL : 1); lane++) {
                        size_t r = lane < rows ? row + lane : row;

                        to[lane] = s->scale[(s->first_row + r) / s->block_n * s->scale_stride +
                                            s->first_col / s->block_k + run];
                        if (!(fabsf(to[lane]) <= SCALE_MAX))
                                atomic_store(&p->bad_scale, r + 1);
                }
        }
}

static void pack_int8_extras(struct packing *p, size_t row, size_t rows, size_t panel) {
        const struct weight_source *s = p->s;
        const size_t at = panel * PANEL;
        float *scales = (float *)p->l->scales;
        int32_t *bias = (int32_t *)p->l->bias, *sums = (int32_t *)p->l->sums;

        for (size_t lane = 0; lane < PANEL; lane++) {
                const int8_t *w = (const int8_t *)s->data + (row + lane) * s->row_stride;
                int32_t sum = 0;

                scales[at + lane] = 0;
                bias[at + lane] = sums[at + lane] = 0;
                if (lane >= rows)
                        continue;
                for (size_t i = 0; i < s->k; i++)
                        sum += w[i];
                sums[at + lane] = -128 * sum;
                scales[at + lane] = s->type == WEIGHT_INT8_STATIC ? s->deq_scale[row + lane] : s->row_scale[row + lane];
                if (s->type == WEIGHT_INT8_STATIC && s->quant_bias)
                        bias[at + lane] = s->quant_bias[row + lane];
        }
}

/* A group's workers pack its share: who first touches memory decides of which node it is. */
static bool take_panel(struct packing *p, unsigned worker, size_t *ret_panel) {
        const unsigned group = workers_group_of(p->c->workers, worker), groups = compute_groups(p->c);
        const size_t from = group_panel(p->l->panels, group, groups) / p->stride;
        const size_t end = group_panel(p->l->panels, group + 1, groups) / p->stride;

        *ret_panel = from + atomic_fetch_add_explicit(&p->next[group], 1, memory_order_relaxed);
        return *ret_panel < end;
}

static void pack_task(void *context, unsigned worker, unsigned workers) {
        struct packing *p = context;

        for (size_t i; take_panel(p, worker, &i);) {
                size_t row = i * PANEL, rows = p->s->n - row < PANEL ? p->s->n - row : PANEL;
                size_t panel = p->first_panel + i * p->stride;
                char *to = (char *)linear_panel(p->l, panel, 0);

                if (p->s->type == WEIGHT_F16 || p->s->type == WEIGHT_FP8)
                        pack_rows(p, row, rows, to, 2);
                else
                        pack_rows(p, row, rows, to, 4);
                if (p->s->type == WEIGHT_FP8)
                        pack_fp8_extras(p, row, rows, panel);
                else if (is_int8(p->s->type))
                        pack_int8_extras(p, row, rows, panel);
        }
}

static int pack_into(struct compute *c, const struct weight_source *s, const struct linear *l, size_t first_panel,
    size_t stride, struct error *e) {
        struct packing p = {.s = s, .l = l, .first_panel = first_panel, .stride = stride, .c = c};
        size_t row;

        (compute_groups(c) > 1 ? workers_run : workers_share)(c->workers, pack_task, &p);
        if ((row = atomic_load(&p.bad_row)) > 0)
                return error_set(e, -EINVAL, "row %zu of an fp8 weight holds a NaN: the file is damaged", row - 1);
        if ((row = atomic_load(&p.bad_scale)) > 0)
                return error_set(e, -EINVAL, "row %zu of an fp8 weight has a scale beyond %g: the file is damaged",
                    row - 1, (double)SCALE_MAX);
        return 0;
}

size_t linear_bytes(const struct weight_source *source) {
        struct linear l = shape_of(source);

        return bytes_of(&l);
}

int linear_pack(
    struct compute *c, const struct weight_source *source, void *memory, struct linear *ret_linear, struct error *e) {
        struct linear l;
        int r = check_source(source, e);

        if (r < 0)
                return r;
        l = shape_of(source);
        place(&l, memory);
        r = pack_into(c, source, &l, 0, 1, e);
        if (r < 0)
                return r;
        *ret_linear = l;
        return 0;
}

size_t mlp_bytes(const struct weight_source *gate, const struct weight_source *up, const struct weight_source *down) {
        struct linear both = shape_of_two(gate, up), last = shape_of(down);

        return bytes_of(&both) + bytes_of(&last);
}

static int check_mlp(const struct weight_source *gate, const struct weight_source *up, const struct weight_source *down,
    struct error *e) {
        int r = check_source(gate, e);

        if (r == 0)
                r = check_source(up, e);
        if (r == 0)
                r = check_source(down, e);
        if (r < 0)
                return r;
        if (gate->n != up->n || gate->k != up->k || down->k != gate->n)
                return error_set(e, -EINVAL, "gate %zu x %zu, up %zu x %zu and down %zu x %zu do not make an MLP",
                    gate->n, gate->k, up->n, up->k, down->n, down->k);
        if (gate->type != up->type ||
            (gate->type == WEIGHT_FP8 &&
                (gate->block_k != up->block_k || gate->first_col % gate->block_k != up->first_col % up->block_k)) ||
            (gate->type == WEIGHT_INT8_STATIC &&
                (gate->input_scale_inv != up->input_scale_inv || gate->input_offset != up->input_offset)))
                return error_set(e, -EINVAL, "gate and up of an MLP differ in format, scale blocks or input scale");
        return 0;
}

int mlp_pack(struct compute *c, const struct weight_source *gate, const struct weight_source *up,
    const struct weight_source *down, void *memory, struct mlp *ret_mlp, struct error *e) {
        struct mlp p = {.width = gate->n};
        int r = check_mlp(gate, up, down, e);

        if (r < 0)
                return r;
        p.gate_up = shape_of_two(gate, up);
        place(&p.gate_up, memory);
        r = pack_into(c, gate, &p.gate_up, 0, 2, e);
        if (r == 0)
                r = pack_into(c, up, &p.gate_up, 1, 2, e);
        if (r == 0)
                r = linear_pack(c, down, (char *)memory + bytes_of(&p.gate_up), &p.down, e);
        if (r < 0)
                return r;
        *ret_mlp = p;
        return 0;
}

size_t head_linear_bytes(enum weight_type type, unsigned heads, size_t n, size_t k) {
        return heads * ceil_div(n, PANEL) * panel_offset(type, k);
}

struct head_packing {
        const float *data;
        size_t head_stride, row_stride, col_stride;
        const struct head_linear *l;
        struct compute *c;
        _Atomic size_t next[WORKER_GROUPS_MAX]; /* by group: panels of its share of each head that were taken */
};

static bool take_head_panel(struct head_packing *p, unsigned worker, size_t *ret_panel) {
        const unsigned group = workers_group_of(p->c->workers, worker), groups = compute_groups(p->c);
        const size_t panels = ceil_div(p->l->n, PANEL), from = group_panel(panels, group, groups);
        const size_t each = group_panel(panels, group + 1, groups) - from;
        const size_t at = atomic_fetch_add_explicit(&p->next[group], 1, memory_order_relaxed);

        if (at >= each * p->l->heads)
                return false;
        *ret_panel = at / each * panels + from + at % each;
        return true;
}

static void head_pack_task(void *context, unsigned worker, unsigned workers) {
        struct head_packing *p = context;
        const struct head_linear *l = p->l;
        const size_t per_head = ceil_div(l->n, PANEL), group = l->type == WEIGHT_BF16 ? 2 : 1;

        for (size_t i; take_head_panel(p, worker, &i);) {
                size_t row = i % per_head * PANEL;
                const float *from = p->data + i / per_head * p->head_stride + row * p->row_stride;
                char *to = (char *)l->packed + i * panel_offset(l->type, l->k);

                for (size_t k = 0; k < ceil_div(l->k, group) * group; k++)
                        for (size_t lane = 0; lane < PANEL; lane++) {
                                bool inside = row + lane < l->n && k < l->k;
                                float w = inside ? from[lane * p->row_stride + k * p->col_stride] : 0;

                                if (l->type == WEIGHT_F32)
                                        ((float *)to)[k * PANEL + lane] = w;
                                else
                                        ((uint16_t *)to)[(k / 2 * PANEL + lane) * 2 + k % 2] = float_to_bf16(w);
                        }
        }
}

int head_linear_pack(struct compute *c, enum weight_type type, const float *data, size_t head_stride, size_t row_stride,
    size_t col_stride, unsigned heads, size_t n, size_t k, void *memory, struct head_linear *ret_linear,
    struct error *e) {
        struct head_linear l = {.heads = heads, .n = n, .k = k, .packed = memory, .type = type};
        struct head_packing p = {.data = data,
            .head_stride = head_stride,
            .row_stride = row_stride,
            .col_stride = col_stride,
            .l = &l,
            .c = c};

        if (type != WEIGHT_F32 && type != WEIGHT_BF16)
                return error_set(e, -EINVAL, "products per head are kept as f32 or bf16 only");
        if (heads == 0 || n == 0 || k == 0 || k > K_MAX)
                return error_set(e, -EINVAL, "%u heads of %zu x %zu", heads, n, k);
        assert((uintptr_t)memory % 64 == 0);
        l.head_stride = ceil_div(n, PANEL) * panel_offset(type, k);
        (compute_groups(c) > 1 ? workers_run : workers_share)(c->workers, head_pack_task, &p);
        *ret_linear = l;
        return 0;
}
