/* reference.c - every operation in plain C, one element at a time. */
#include "kernels/compute.h"
#include <assert.h>
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

static size_t round_up(size_t n, size_t to) {
        return (n + to - 1) / to * to;
}

static size_t element_bytes(enum weight_type t) {
        switch (t) {
        case WEIGHT_F32:
                return 4;
        case WEIGHT_F16:
        case WEIGHT_BF16:
                return 2;
        default:
                return 1;
        }
}

static size_t scale_count(const struct weight_source *s) {
        switch (s->type) {
        case WEIGHT_FP8: /* one per row and block of columns */
                return s->n * ((s->first_col % s->block_k + s->k + s->block_k - 1) / s->block_k);
        case WEIGHT_INT8_DYNAMIC:
        case WEIGHT_INT8_STATIC:
                return s->n;
        default:
                return 0;
        }
}

size_t linear_bytes(const struct compute *c, const struct weight_source *s) {
        return round_up(s->n * s->k * element_bytes(s->type), 64) + round_up(scale_count(s) * sizeof(float), 64) +
               round_up(s->n * sizeof(int32_t), 64);
}

int linear_pack(
    struct compute *c, const struct weight_source *s, void *memory, struct linear *ret_linear, struct error *e) {
        size_t size = element_bytes(s->type), row_bytes = s->k * size;
        char *packed = memory;
        float *scales = (float *)(packed + round_up(s->n * row_bytes, 64));
        int32_t *bias = (int32_t *)((char *)scales + round_up(scale_count(s) * sizeof(float), 64));
        struct linear l = {.type = s->type, .n = s->n, .k = s->k, .packed = packed, .scales = scales, .bias = bias};

        if (s->n == 0 || s->k == 0)
                return error_set(e, -EINVAL, "a weight of shape %zu x %zu", s->n, s->k);
        for (size_t r = 0; r < s->n; r++)
                memcpy(packed + r * row_bytes, (const char *)s->data + r * s->row_stride * size, row_bytes);
        if (s->type == WEIGHT_FP8) {
                size_t in_block = s->first_col % s->block_k, blocks = scale_count(s) / s->n;

                for (size_t r = 0; r < s->n; r++)
                        for (size_t b = 0; b < blocks; b++)
                                scales[r * blocks + b] = s->scale[(s->first_row + r) / s->block_n * s->scale_stride +
                                                                  s->first_col / s->block_k + b];
                l.scale_stride = blocks;
                l.block_k = s->block_k;
                l.flags = (unsigned)in_block;
        } else if (s->type == WEIGHT_INT8_DYNAMIC) {
                memcpy(scales, s->row_scale, s->n * sizeof(float));
        } else if (s->type == WEIGHT_INT8_STATIC) {
                memcpy(scales, s->deq_scale, s->n * sizeof(float));
                for (size_t r = 0; r < s->n; r++)
                        bias[r] = s->quant_bias ? s->quant_bias[r] : 0;
                l.input_scale_inv = s->input_scale_inv;
                l.input_offset = s->input_offset;
        }
        *ret_linear = l;
        return 0;
}

static float linear_weight(const struct linear *l, size_t r, size_t c) {
        size_t at = r * l->k + c;

        switch (l->type) {
        case WEIGHT_F32:
                return ((const float *)l->packed)[at];
        case WEIGHT_F16:
                return f16_to_float(((const uint16_t *)l->packed)[at]);
        case WEIGHT_BF16:
                return bf16_to_float(((const uint16_t *)l->packed)[at]);
        default:
                return fp8_e4m3_to_float(((const uint8_t *)l->packed)[at]) *
                       l->scales[r * l->scale_stride + (c + l->flags) / l->block_k];
        }
}

static float clamp_int8(float v) {
        return fminf(fmaxf(rintf(v), -128), 127);
}

static void linear_int8_row(const struct linear *l, const float *x, float *y) {
        float largest = 0, scale;

        for (size_t i = 0; i < l->k; i++)
                largest = fmaxf(largest, fabsf(x[i]));
        scale = largest / 127;
        for (size_t r = 0; r < l->n; r++) {
                const int8_t *w = (const int8_t *)l->packed + r * l->k;
                int32_t sum = 0;

                for (size_t i = 0; i < l->k; i++) {
                        float q;

                        if (l->type == WEIGHT_INT8_STATIC)
                                q = clamp_int8(x[i] * l->input_scale_inv + l->input_offset);
                        else
                                q = scale > 0 ? clamp_int8(x[i] / scale) : 0;
                        sum += (int32_t)q * w[i];
                }
                if (l->type == WEIGHT_INT8_STATIC)
                        y[r] = (float)(sum + l->bias[r]) * l->scales[r];
                else
                        y[r] = (float)sum * scale * l->scales[r];
        }
}

void linear_run(struct compute *c, const struct linear *l, const float *x, size_t ldx, size_t m, float *y, size_t ldy) {
        bool round = c->activation == ACTIVATION_BF16;

        for (size_t t = 0; t < m; t++, x += ldx, y += ldy) {
                if (l->type == WEIGHT_INT8_DYNAMIC || l->type == WEIGHT_INT8_STATIC) {
                        linear_int8_row(l, x, y);
                        continue;
                }
                for (size_t r = 0; r < l->n; r++) {
                        float sum = 0;

                        for (size_t i = 0; i < l->k; i++)
                                sum = fmaf(
                                    round ? bf16_to_float(float_to_bf16(x[i])) : x[i], linear_weight(l, r, i), sum);
                        y[r] = sum;
                }
        }
}

void linear_run_many(
    struct compute *c, const struct linear_call *calls, size_t count, const float *x, size_t ldx, size_t m) {
        for (size_t i = 0; i < count; i++)
                linear_run(c, calls[i].l, x, ldx, m, calls[i].y, calls[i].ldy);
}

/* Gate and up are two linears, one behind the other. */
struct gate_up {
        struct linear gate, up;
};

size_t mlp_bytes(const struct compute *c, const struct weight_source *gate, const struct weight_source *up,
    const struct weight_source *down) {
        return round_up(sizeof(struct gate_up), 64) + linear_bytes(c, gate) + linear_bytes(c, up) +
               linear_bytes(c, down);
}

int mlp_pack(struct compute *c, const struct weight_source *gate, const struct weight_source *up,
    const struct weight_source *down, void *memory, struct mlp *ret_mlp, struct error *e) {
        struct gate_up *g = memory;
        char *at = (char *)memory + round_up(sizeof(*g), 64);
        struct mlp p = {.gate_up = {.packed = g, .type = gate->type, .n = gate->n * 2, .k = gate->k}, .width = gate->n};
        int r;

        if (gate->n != up->n || gate->k != up->k || gate->type != up->type || down->k != gate->n)
                return error_set(e, -EINVAL, "gate %zu x %zu, up %zu x %zu and down %zu x %zu do not make an MLP",
                    gate->n, gate->k, up->n, up->k, down->n, down->k);
        r = linear_pack(c, gate, at, &g->gate, e);
        if (r < 0)
                return r;
        at += linear_bytes(c, gate);
        r = linear_pack(c, up, at, &g->up, e);
        if (r < 0)
                return r;
        r = linear_pack(c, down, at + linear_bytes(c, up), &p.down, e);
        if (r < 0)
                return r;
        *ret_mlp = p;
        return 0;
}

static void *reference_alloc(size_t count) {
        void *p = malloc(count * sizeof(float) + 64);

        if (!p)
                abort();
        return p;
}

void mlp_run(struct compute *c, const struct mlp *p, const float *x, size_t ldx, size_t m, float *y, size_t ldy) {
        const struct gate_up *g = p->gate_up.packed;
        float *gate = reference_alloc(p->width), *up = reference_alloc(p->width);

        for (size_t t = 0; t < m; t++) {
                linear_run(c, &g->gate, x + t * ldx, ldx, 1, gate, p->width);
                linear_run(c, &g->up, x + t * ldx, ldx, 1, up, p->width);
                for (size_t i = 0; i < p->width; i++)
                        gate[i] = gate[i] / (1 + expf(-gate[i])) * up[i];
                linear_run(c, &p->down, gate, p->width, 1, y + t * ldy, ldy);
        }
        free(gate);
        free(up);
}

void experts_run(
    struct compute *c, const struct expert_call *calls, size_t count, const float *x, size_t ldx, size_t ldy) {
        for (size_t i = 0; i < count; i++)
                for (size_t t = 0; t < calls[i].m; t++)
                        mlp_run(c, calls[i].expert, x + calls[i].rows[t] * ldx, ldx, 1, calls[i].y + t * ldy, ldy);
}

static size_t kv_at(const struct kv_layer *kv, const uint32_t *blocks, size_t position) {
        return blocks[position / kv->block_tokens] * kv->block_stride + position % kv->block_tokens * kv->width;
}

void kv_write(struct compute *c, const struct kv_layer *kv, const uint32_t *blocks, size_t first, const float *rows,
    size_t ldr, size_t count) {
        for (size_t t = 0; t < count; t++) {
                size_t at = kv_at(kv, blocks, first + t);

                for (size_t i = 0; i < kv->width; i++) {
                        float v = rows[t * ldr + i];

                        if (kv->type == KV_F32)
                                ((float *)kv->base)[at + i] = v;
                        else
                                ((uint16_t *)kv->base)[at + i] = float_to_bf16(v);
                }
        }
}

static void kv_read(const struct kv_layer *kv, const uint32_t *blocks, size_t position, float *ret_row) {
        size_t at = kv_at(kv, blocks, position);

        for (size_t i = 0; i < kv->width; i++)
                ret_row[i] = kv->type == KV_F32 ? ((const float *)kv->base)[at + i]
                                                : bf16_to_float(((const uint16_t *)kv->base)[at + i]);
}

/* out = sum over positions of softmax(scale q.key) value, with keys and values at fixed strides. */
static void attend(const float *q, size_t width, const float *keys, size_t key_stride, const float *values,
    size_t value_stride, size_t value_width, size_t positions, float scale, float *out) {
        float largest = -INFINITY, sum = 0;

        for (size_t v = 0; v < value_width; v++)
                out[v] = 0;
        for (size_t p = 0; p < positions; p++) {
                float score = 0, weight, correction;

                for (size_t i = 0; i < width; i++)
                        score = fmaf(q[i], keys[p * key_stride + i], score);
                score *= scale;
                correction = score > largest ? expf(largest - score) : 1;
                largest = fmaxf(largest, score);
                weight = expf(score - largest);
                sum = sum * correction + weight;
                for (size_t v = 0; v < value_width; v++)
                        out[v] = fmaf(weight, values[p * value_stride + v], out[v] * correction);
        }
        for (size_t v = 0; v < value_width; v++)
                out[v] /= sum;
}

void attention_absorbed(struct compute *c, const struct kv_layer *kv, unsigned heads, float scale,
    const struct attention_span *spans, size_t count, size_t ldq, size_t ldo) {
        for (size_t s = 0; s < count; s++) {
                size_t positions = spans[s].first + spans[s].count;
                float *latents = reference_alloc(positions * kv->width);

                for (size_t p = 0; p < positions; p++)
                        kv_read(kv, spans[s].blocks, p, latents + p * kv->width);
                for (size_t t = 0; t < spans[s].count; t++)
                        for (size_t h = 0; h < heads; h++)
                                attend(spans[s].q + t * ldq + h * kv->width, kv->width, latents, kv->width, latents,
                                    kv->width, kv->rank, spans[s].first + t + 1, scale,
                                    spans[s].out + t * ldo + h * kv->rank);
                free(latents);
        }
}

void attention_naive(struct compute *c, const struct kv_layer *kv, const struct linear *kv_b,
    const struct attention_dims *d, float scale, const struct attention_span *spans, size_t count, size_t ldq,
    size_t ldo) {
        size_t expanded = (size_t)d->heads * (d->nope + d->v), q_width = d->nope + d->rope;

        for (size_t s = 0; s < count; s++) {
                size_t positions = spans[s].first + spans[s].count;
                float *latents = reference_alloc(positions * kv->width), *kvs = reference_alloc(positions * expanded),
                      *keys = reference_alloc(positions * q_width);

                for (size_t p = 0; p < positions; p++)
                        kv_read(kv, spans[s].blocks, p, latents + p * kv->width);
                linear_run(c, kv_b, latents, kv->width, positions, kvs, expanded);
                for (size_t h = 0; h < d->heads; h++) {
                        const float *head = kvs + h * (d->nope + d->v);

                        for (size_t p = 0; p < positions; p++) {
                                memcpy(keys + p * q_width, head + p * expanded, d->nope * sizeof(float));
                                memcpy(keys + p * q_width + d->nope, latents + p * kv->width + kv->rank,
                                    d->rope * sizeof(float));
                        }
                        for (size_t t = 0; t < spans[s].count; t++)
                                attend(spans[s].q + t * ldq + h * q_width, q_width, keys, q_width, head + d->nope,
                                    expanded, d->v, spans[s].first + t + 1, scale, spans[s].out + t * ldo + h * d->v);
                }
                free(latents);
                free(kvs);
                free(keys);
        }
}

size_t head_linear_bytes(const struct compute *c, enum weight_type type, unsigned heads, size_t n, size_t k) {
        return round_up(heads * n * k * sizeof(float), 64);
}

int head_linear_pack(struct compute *c, enum weight_type type, const float *data, size_t head_stride, size_t row_stride,
    size_t col_stride, unsigned heads, size_t n, size_t k, void *memory, struct head_linear *ret_linear,
    struct error *e) {
        float *packed = memory;

        if (type != WEIGHT_F32 && type != WEIGHT_BF16)
                return error_set(e, -EINVAL, "per-head products are kept as f32 or bf16");
        for (size_t h = 0; h < heads; h++)
                for (size_t r = 0; r < n; r++)
                        for (size_t i = 0; i < k; i++) {
                                float w = data[h * head_stride + r * row_stride + i * col_stride];

                                *packed++ = type == WEIGHT_F32 ? w : bf16_to_float(float_to_bf16(w));
                        }
        *ret_linear = (struct head_linear){heads, n, k, memory, n * k, type};
        return 0;
}

void head_linear_run(struct compute *c, const struct head_linear *l, const float *x, size_t ldx, size_t x_head,
    size_t m, float *out, size_t ldo, size_t out_head) {
        for (size_t t = 0; t < m; t++)
                for (size_t h = 0; h < l->heads; h++)
                        for (size_t r = 0; r < l->n; r++) {
                                const float *w = (const float *)l->packed + h * l->head_stride + r * l->k;
                                float sum = 0;

                                for (size_t i = 0; i < l->k; i++)
                                        sum = fmaf(x[t * ldx + h * x_head + i], w[i], sum);
                                out[t * ldo + h * out_head + r] = sum;
                        }
}

void rmsnorm(struct compute *c, const float *x, size_t ldx, const float *weight, const float *bias, float eps, size_t m,
    size_t n, float *y, size_t ldy) {
        for (size_t t = 0; t < m; t++) {
                float sum = 0, factor;

                for (size_t i = 0; i < n; i++)
                        sum = fmaf(x[t * ldx + i], x[t * ldx + i], sum);
                factor = 1 / sqrtf(sum / (float)n + eps);
                for (size_t i = 0; i < n; i++)
                        y[t * ldy + i] = x[t * ldx + i] * factor * weight[i] + (bias ? bias[i] : 0);
        }
}

void rope(struct compute *c, const float *table, unsigned pairs, const uint32_t *positions, size_t m, float *x,
    size_t ldx, unsigned heads, size_t head_stride) {
        for (size_t t = 0; t < m; t++)
                for (size_t h = 0; h < heads; h++)
                        for (size_t j = 0; j < pairs; j++) {
                                const float *turn = table + ((size_t)positions[t] * pairs + j) * 2;
                                float *p = x + t * ldx + h * head_stride + 2 * j, a = p[0], b = p[1];

                                p[0] = a * turn[0] - b * turn[1];
                                p[1] = a * turn[1] + b * turn[0];
                        }
}

void add_rows(struct compute *c, const float *x, size_t ldx, size_t m, size_t n, float *y, size_t ldy) {
        for (size_t t = 0; t < m; t++)
                for (size_t i = 0; i < n; i++)
                        y[t * ldy + i] += x[t * ldx + i];
}

void round_bf16(struct compute *c, float *x, size_t ldx, size_t m, size_t n) {
        for (size_t t = 0; t < m; t++)
                for (size_t i = 0; i < n; i++)
                        x[t * ldx + i] = bf16_to_float(float_to_bf16(x[t * ldx + i]));
}
