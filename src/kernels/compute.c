/* compute.c - choosing the instruction set, and the life of a struct compute. */
#include "kernels/compute.h"
#include <errno.h>
#include <stdlib.h>

static enum isa best_isa(void) {
        return ISA_SCALAR;
}

const char *isa_name(enum isa isa) {
        static const char *const names[] = {
            [ISA_SCALAR] = "scalar",
            [ISA_AVX2] = "avx2",
            [ISA_AVX512] = "avx512",
            [ISA_AVX512_BF16] = "avx512-bf16",
            [ISA_BEST] = "best",
        };

        return names[isa];
}

int compute_new(const struct compute_options *options, struct compute **ret_compute, struct error *e) {
        enum isa best = best_isa(), isa = options->isa == ISA_BEST ? best : options->isa;
        struct compute *c;
        int r;

        if (isa > best)
                return error_set(
                    e, -ENOTSUP, "this CPU has no %s instructions, its best is %s", isa_name(isa), isa_name(best));
        c = calloc(1, sizeof(*c));
        if (!c)
                return error_set(e, -ENOMEM, "no memory for the compute object");
        c->isa = isa;
        c->activation = options->activation;
        r = pool_new(options->threads, options->pin, options->spin_us, &c->pool, e);
        if (r < 0) {
                compute_free(c);
                return r;
        }
        *ret_compute = c;
        return 0;
}

void compute_free(struct compute *c) {
        if (!c)
                return;
        pool_free(c->pool);
        free(c);
}

enum isa compute_isa(const struct compute *c) {
        return c->isa;
}

unsigned compute_threads(const struct compute *c) {
        return pool_threads(c->pool);
}

enum activation compute_activation(const struct compute *c) {
        return c->activation;
}

void compute_run(struct compute *c, void (*task)(void *context, unsigned worker, unsigned workers), void *context) {
        pool_run(c->pool, task, context);
}
