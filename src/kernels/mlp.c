/* mlp.c - MLPs and experts: gate and up with SwiGLU as one stage over all of them, down as the next, in one region. */
#include "kernels/stage.h"
#include <assert.h>

struct mlp_region {
        struct compute *c;
        struct stage up, down;
};

static void mlp_task(void *context, unsigned worker, unsigned workers) {
        struct mlp_region *r = context;

        stage_work(r->c, &r->up, worker);
        step_wait(r->c->workers, &r->up.tasks);
        stage_work(r->c, &r->down, worker);
}

/* Scratch that one row of an expert needs: its input, what lies between up and down, and that packed. */
static size_t row_bytes(const struct compute *c, const struct mlp *p) {
        return activations_bytes(c, form_for(c, p->gate_up.type), p->gate_up.k, 1) + align64(p->width * sizeof(float)) +
               activations_bytes(c, form_for(c, p->down.type), p->down.k, 1);
}

/* Fixed cost of a call in scratch: its entries and the rounding of four arrays to cache lines. */
#define CALL_BYTES (2 * (sizeof(struct activations) + sizeof(struct part)) + 5 * 64)

static void prepare_activations(struct compute *c, struct activations *a, const struct linear *l, const float *x,
    size_t ldx, const uint32_t *index, size_t rows) {
        *a = (struct activations){.x = x,
            .ldx = ldx,
            .index = index,
            .rows = rows,
            .k = l->k,
            .form = form_for(c, l->type),
            .scale_inv = l->input_scale_inv,
            .offset = l->input_offset};
        activations_prepare(c, a);
}

static void add_call(struct mlp_region *r, const struct expert_call *call, size_t from, size_t rows, const float *x,
    size_t ldx, size_t ldy) {
        const struct mlp *p = call->expert;
        const size_t i = r->up.part_count;
        float *between = scratch_take(r->c, rows * p->width * sizeof(float));
        const float *first = call->rows ? x : x + from * ldx;

        prepare_activations(r->c, &r->up.a[i], &p->gate_up, first, ldx, call->rows ? call->rows + from : NULL, rows);
        assert(!call->scales || (call->rows && takes_int8_rows(p)));
        r->up.a[i].scales = call->scales;
        prepare_activations(r->c, &r->down.a[i], &p->down, between, p->width, NULL, rows);
        r->up.parts[i] = (struct part){
            .l = p->gate_up, .a = &r->up.a[i], .epilogue = EPILOGUE_SWIGLU, .y = between, .ldy = p->width};
        r->down.parts[i] = (struct part){
            .l = p->down, .a = &r->down.a[i], .epilogue = EPILOGUE_STORE, .y = call->y + from * ldy, .ldy = ldy};
        r->up.a_count = r->up.part_count = r->down.a_count = r->down.part_count = i + 1;
}

bool takes_int8_rows(const struct mlp *expert) {
        return expert->gate_up.type == WEIGHT_INT8_DYNAMIC;
}

/* As many calls, or rows of a call, from (*call, *row) on as fit in the scratch. Returns false when none is left. */
static bool fill_region(struct mlp_region *r, const struct expert_call *calls, size_t count, const float *x, size_t ldx,
    size_t ldy, size_t *call, size_t *row) {
        struct compute *c = r->c;
        size_t entries = count - *call;

        if (entries > SCRATCH_SHARED_BYTES / 4 / CALL_BYTES)
                entries = SCRATCH_SHARED_BYTES / 4 / CALL_BYTES;
        scratch_reset(c);
        r->up = r->down = (struct stage){0};
        r->up.a = scratch_take(c, entries * sizeof(*r->up.a));
        r->up.parts = scratch_take(c, entries * sizeof(*r->up.parts));
        r->down.a = scratch_take(c, entries * sizeof(*r->down.a));
        r->down.parts = scratch_take(c, entries * sizeof(*r->down.parts));
        for (; *call < count && r->up.part_count < entries; (*call)++, *row = 0) {
                size_t rows = calls[*call].m - *row, fit;

                if (rows == 0)
                        continue;
                fit = (scratch_left(c) - 5 * 64) / row_bytes(c, calls[*call].expert);
                assert(fit > 0 || r->up.part_count > 0);
                if (fit < rows) {
                        if (fit > 0)
                                add_call(r, &calls[*call], *row, fit, x, ldx, ldy);
                        *row += fit;
                        return true;
                }
                add_call(r, &calls[*call], *row, rows, x, ldx, ldy);
        }
        return r->up.part_count > 0;
}

void experts_run(
    struct compute *c, const struct expert_call *calls, size_t count, const float *x, size_t ldx, size_t ldy) {
        struct mlp_region r = {.c = c};
        size_t call = 0, row = 0;

        while (fill_region(&r, calls, count, x, ldx, ldy, &call, &row)) {
                stage_prepare(c, &r.up, false);
                stage_prepare(c, &r.down, true);
                workers_share(c->workers, mlp_task, &r);
        }
}

void mlp_run(struct compute *c, const struct mlp *p, const float *x, size_t ldx, size_t m, float *y, size_t ldy) {
        struct expert_call call = {.expert = p, .m = m, .y = y};

        experts_run(c, &call, 1, x, ldx, ldy);
}
