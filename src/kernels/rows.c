/* rows.c - operations on each row by itself, spread over the workers when there is enough to do. */
#include "kernels/attention.h"
#include <string.h>

/* Below so many floats waking the workers costs more than it saves. */
#define ALONE_FLOATS 32768
/* Otherwise workers take about so many at a time. */
#define PIECE_FLOATS 8192

struct rows_job {
        const struct compute *c;
        size_t m, n;
        const float *x;
        size_t ldx;
        float *y;
        size_t ldy;
        const float *weight, *bias; /* rmsnorm */
        float eps;
        const float *table; /* rope */
        const uint32_t *positions;
        unsigned pairs, heads;
        size_t head_stride;
        const struct kv_layer *kv;
        const uint32_t *blocks;
        size_t first;
        char *encoded;        /* rows_encode, rows_decode */
        size_t encoded_bytes; /* of a row */
        float *scales;
        void (*row)(const struct rows_job *job, size_t row);
        struct step pieces;
};

static void some_rows(const struct rows_job *job, size_t from, size_t to) {
        for (size_t r = from; r < to; r++)
                job->row(job, r);
}

static void rows_task(void *context, unsigned worker, unsigned workers) {
        struct rows_job *job = context;

        for (size_t i; step_take(&job->pieces, &i);)
                some_rows(job, i * job->m / job->pieces.total, (i + 1) * job->m / job->pieces.total);
}

static void rows_run(struct compute *c, struct rows_job *job) {
        job->c = c;
        if (job->m * job->n <= ALONE_FLOATS) {
                some_rows(job, 0, job->m);
                return;
        }
        step_begin(&job->pieces, job->m * job->n / PIECE_FLOATS < job->m ? job->m * job->n / PIECE_FLOATS : job->m);
        workers_share(c->workers, rows_task, job);
}

static void rmsnorm_row(const struct rows_job *j, size_t r) {
        j->c->table->rmsnorm(j->x + r * j->ldx, j->weight, j->bias, j->eps, j->n, j->y + r * j->ldy);
}

void rmsnorm(struct compute *c, const float *x, size_t ldx, const float *weight, const float *bias, float eps, size_t m,
    size_t n, float *y, size_t ldy) {
        struct rows_job job = {.m = m,
            .n = n,
            .x = x,
            .ldx = ldx,
            .y = y,
            .ldy = ldy,
            .weight = weight,
            .bias = bias,
            .eps = eps,
            .row = rmsnorm_row};

        rows_run(c, &job);
}

static void rope_row(const struct rows_job *j, size_t r) {
        for (unsigned h = 0; h < j->heads; h++)
                j->c->table->rope(j->table + (size_t)j->positions[r] * j->pairs * 2, j->pairs,
                    j->y + r * j->ldy + h * j->head_stride);
}

void rope(struct compute *c, const float *table, unsigned pairs, const uint32_t *positions, size_t m, float *x,
    size_t ldx, unsigned heads, size_t head_stride) {
        struct rows_job job = {.m = m,
            .n = (size_t)heads * pairs * 2,
            .y = x,
            .ldy = ldx,
            .table = table,
            .pairs = pairs,
            .positions = positions,
            .heads = heads,
            .head_stride = head_stride,
            .row = rope_row};

        rows_run(c, &job);
}

static void add_row(const struct rows_job *j, size_t r) {
        j->c->table->add(j->x + r * j->ldx, j->n, j->y + r * j->ldy);
}

void add_rows(struct compute *c, const float *x, size_t ldx, size_t m, size_t n, float *y, size_t ldy) {
        struct rows_job job = {.m = m, .n = n, .x = x, .ldx = ldx, .y = y, .ldy = ldy, .row = add_row};

        rows_run(c, &job);
}

static void round_row(const struct rows_job *j, size_t r) {
        j->c->table->round_bf16(j->y + r * j->ldy, j->n);
}

void round_bf16(struct compute *c, float *x, size_t ldx, size_t m, size_t n) {
        struct rows_job job = {.m = m, .n = n, .y = x, .ldy = ldx, .row = round_row};

        rows_run(c, &job);
}

static void write_row(const struct rows_job *j, size_t r) {
        const struct kv_layer *kv = j->kv;
        const size_t at = kv_row(kv, j->blocks, j->first + r);
        const float *x = j->x + r * j->ldx;

        if (kv->type == KV_F32)
                memcpy((float *)kv->base + at, x, kv->width * sizeof(float));
        else
                j->c->table->to_bf16(x, kv->width, (uint16_t *)kv->base + at);
}

void kv_write(struct compute *c, const struct kv_layer *kv, const uint32_t *blocks, size_t first, const float *rows,
    size_t ldr, size_t count) {
        struct rows_job job = {.m = count,
            .n = kv->width,
            .x = rows,
            .ldx = ldr,
            .kv = kv,
            .blocks = blocks,
            .first = first,
            .row = write_row};

        rows_run(c, &job);
}

/* ---- rows for another process --------------------------------------------------------------------------------------- */

size_t row_type_bytes(enum row_type type, size_t n) {
        switch (type) {
        case ROW_F32:
                return n * sizeof(float);
        case ROW_BF16:
                return n * sizeof(uint16_t);
        case ROW_INT8:
                return sizeof(float) + (n + 3) / 4 * 4;
        }
        return 0;
}

/* So many codes are taken out of the form that products want at once. */
#define CODES 256

static void encode_int8(const struct kernel_table *t, const float *x, size_t n, char *to) {
        const float scale = t->row_largest(x, n) / 127;
        int8_t *codes = (int8_t *)to + sizeof(scale);
        int16_t words[CODES];

        memcpy(to, &scale, sizeof(scale));
        for (size_t i = 0; i < n; i += CODES) {
                const size_t count = n - i < CODES ? n - i : CODES;

                t->row_to_int8(x + i, count, scale, words);
                for (size_t j = 0; j < count; j++)
                        codes[i + j] = (int8_t)(t->expand_int8 ? words[j] : ((const uint8_t *)words)[j] ^ 0x80);
        }
        for (size_t i = n; i % 4; i++)
                codes[i] = 0;
}

static void encode_row_bf16(const struct rows_job *j, size_t r) {
        j->c->table->to_bf16(j->x + r * j->ldx, j->n, (uint16_t *)(j->encoded + r * j->encoded_bytes));
}

static void encode_row_int8(const struct rows_job *j, size_t r) {
        encode_int8(j->c->table, j->x + r * j->ldx, j->n, j->encoded + r * j->encoded_bytes);
}

static void encode_row_f32(const struct rows_job *j, size_t r) {
        memcpy(j->encoded + r * j->encoded_bytes, j->x + r * j->ldx, j->encoded_bytes);
}

void rows_encode(
    struct compute *c, enum row_type type, const float *x, size_t ldx, size_t m, size_t n, void *ret_rows) {
        struct rows_job job = {.m = m,
            .n = n,
            .x = x,
            .ldx = ldx,
            .encoded = ret_rows,
            .encoded_bytes = row_type_bytes(type, n),
            .row = type == ROW_INT8   ? encode_row_int8
                   : type == ROW_BF16 ? encode_row_bf16
                                      : encode_row_f32};

        rows_run(c, &job);
}

static void decode_row_bf16(const struct rows_job *j, size_t r) {
        j->c->table->from_bf16((const uint16_t *)(j->encoded + r * j->encoded_bytes), j->n, j->y + r * j->ldy);
}

static void decode_row_int8(const struct rows_job *j, size_t r) {
        const char *from = j->encoded + r * j->encoded_bytes;
        const int8_t *codes = (const int8_t *)from + sizeof(float);
        float *y = j->y + r * j->ldy, scale, factor;

        memcpy(&scale, from, sizeof(scale));
        factor = j->scales ? 1 : scale;
        for (size_t i = 0; i < j->n; i++)
                y[i] = (float)codes[i] * factor;
        if (j->scales)
                j->scales[r] = scale;
}

static void decode_row_f32(const struct rows_job *j, size_t r) {
        memcpy(j->y + r * j->ldy, j->encoded + r * j->encoded_bytes, j->encoded_bytes);
}

void rows_decode(
    struct compute *c, enum row_type type, const void *rows, size_t m, size_t n, float *x, size_t ldx, float *scales) {
        struct rows_job job = {.m = m,
            .n = n,
            .y = x,
            .ldy = ldx,
            .encoded = (char *)(uintptr_t)rows,
            .encoded_bytes = row_type_bytes(type, n),
            .scales = scales,
            .row = type == ROW_INT8   ? decode_row_int8
                   : type == ROW_BF16 ? decode_row_bf16
                                      : decode_row_f32};

        rows_run(c, &job);
}
