/* linear.c - linear layers and per-head products as stages. */
#include "kernels/stage.h"
#include <assert.h>

/* The activations that part `l` wants among those already listed, or a new entry for them. */
static struct activations *share_activations(struct compute *c, struct stage *s, const struct linear *l) {
        enum form form = form_for(c, l->type);
        struct activations *a;

        for (size_t i = 0; i < s->a_count; i++) {
                a = &s->a[i];
                if (a->form == form && a->k == l->k &&
                    (form != FORM_INT8_STATIC || (a->scale_inv == l->input_scale_inv && a->offset == l->input_offset)))
                        return a;
        }
        a = &s->a[s->a_count++];
        *a = (struct activations){.form = form, .k = l->k, .scale_inv = l->input_scale_inv, .offset = l->input_offset};
        return a;
}

/* How many rows fit in the scratch that is left. */
static size_t rows_that_fit(const struct compute *c, const struct stage *s) {
        size_t row = 0, spare = 0;

        for (size_t i = 0; i < s->a_count; i++) {
                row += activations_bytes(c, s->a[i].form, s->a[i].k, 1);
                spare += 128;
        }
        return (scratch_left(c) - spare) / row;
}

void linear_run_many(
    struct compute *c, const struct linear_call *calls, size_t count, const float *x, size_t ldx, size_t m) {
        struct stage s = {0};
        size_t most, mark;

        scratch_reset(c);
        s.a = scratch_take(c, count * sizeof(*s.a));
        s.parts = scratch_take(c, count * sizeof(*s.parts));
        s.part_count = count;
        for (size_t i = 0; i < count; i++) {
                assert(calls[i].l->k == calls[0].l->k);
                s.parts[i] = (struct part){.l = *calls[i].l,
                    .a = share_activations(c, &s, calls[i].l),
                    .epilogue = EPILOGUE_STORE,
                    .ldy = calls[i].ldy};
        }
        most = rows_that_fit(c, &s);
        assert(most > 0);
        mark = c->used;
        for (size_t row = 0, rows; row < m; row += rows) {
                rows = m - row < most ? m - row : most;
                c->used = mark;
                for (size_t i = 0; i < s.a_count; i++) {
                        s.a[i].x = x + row * ldx;
                        s.a[i].ldx = ldx;
                        s.a[i].rows = rows;
                        activations_prepare(c, &s.a[i]);
                }
                for (size_t i = 0; i < count; i++)
                        s.parts[i].y = calls[i].y + row * calls[i].ldy;
                stage_prepare(c, &s, false);
                stage_run(c, &s);
        }
}

void linear_run(struct compute *c, const struct linear *l, const float *x, size_t ldx, size_t m, float *y, size_t ldy) {
        struct linear_call call = {l, y, ldy};

        linear_run_many(c, &call, 1, x, ldx, m);
}

void head_linear_run(struct compute *c, const struct head_linear *h, const float *x, size_t ldx, size_t x_head,
    size_t m, float *out, size_t ldo, size_t out_head) {
        struct stage s = {0};
        size_t most, mark;

        scratch_reset(c);
        s.a = scratch_take(c, h->heads * sizeof(*s.a));
        s.parts = scratch_take(c, h->heads * sizeof(*s.parts));
        s.a_count = s.part_count = h->heads;
        for (size_t i = 0; i < h->heads; i++) {
                s.a[i] = (struct activations){.form = form_for(c, h->type), .k = h->k, .ldx = ldx};
                s.parts[i] = (struct part){
                    .l = {.type = h->type,
                        .n = h->n,
                        .k = h->k,
                        .panels = ceil_div(h->n, PANEL),
                        .packed = (const char *)h->packed + i * h->head_stride},
                    .a = &s.a[i],
                    .epilogue = EPILOGUE_STORE,
                    .ldy = ldo,
                };
        }
        most = rows_that_fit(c, &s);
        assert(most > 0);
        mark = c->used;
        for (size_t row = 0, rows; row < m; row += rows) {
                rows = m - row < most ? m - row : most;
                c->used = mark;
                for (size_t i = 0; i < h->heads; i++) {
                        s.a[i].x = x + row * ldx + i * x_head;
                        s.a[i].rows = rows;
                        activations_prepare(c, &s.a[i]);
                        s.parts[i].y = out + row * ldo + i * out_head;
                }
                stage_prepare(c, &s, false);
                stage_run(c, &s);
        }
}
