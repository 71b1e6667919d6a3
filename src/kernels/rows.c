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
