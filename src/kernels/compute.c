/* compute.c - choosing the instruction set, and the life of a struct compute. */
#include "kernels/compute.h"
#include "kernels/layout.h"
#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

/* Assumed when the system does not say: smaller than any server core's. */
#define CACHE_BYTES_DEFAULT ((size_t)512 << 10)

static enum isa best_isa(void) {
#if defined(__x86_64__)
        /* These ask for the operating system's support of the registers too. */
        if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma"))
                return ISA_SCALAR;
        if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512bw") ||
            !__builtin_cpu_supports("avx512dq") || !__builtin_cpu_supports("avx512vl"))
                return ISA_AVX2;
        if (!__builtin_cpu_supports("avx512bf16") || !__builtin_cpu_supports("avx512vnni") ||
            !__builtin_cpu_supports("avx512vbmi"))
                return ISA_AVX512;
        return ISA_AVX512_BF16;
#else
        return ISA_SCALAR;
#endif
}

static const struct kernel_table *isa_table(enum isa isa) {
        switch (isa) {
#if defined(__x86_64__)
        case ISA_AVX2:
                return &kernels_avx2;
        case ISA_AVX512:
                return &kernels_avx512;
        case ISA_AVX512_BF16:
                return &kernels_avx512_bf16;
#endif
        default:
                return &kernels_scalar;
        }
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

static size_t scratch_bytes(const struct compute *c) {
        return SCRATCH_SHARED_BYTES + workers_count(c->workers) * SCRATCH_WORKER_BYTES;
}

#define CPUS_MAX 4096

static void divide(struct compute *c, const struct compute_options *o) {
        struct os_cpu *cpus = NULL;
        size_t count = o->cpu_count;

        if (o->groups < 2)
                return;
        if (!o->cpus && (cpus = calloc(CPUS_MAX, sizeof(*cpus))))
                count = os_cpus(cpus, CPUS_MAX);
        workers_divide(c->workers, o->groups, o->cpus ? o->cpus : cpus, count);
        free(cpus);
}

int compute_new(const struct compute_options *options, struct compute **ret_compute, struct error *e) {
        enum isa best = best_isa(), isa = options->isa == ISA_BEST ? best : options->isa;
        long cache = sysconf(_SC_LEVEL2_CACHE_SIZE);
        struct compute *c;
        int r;

        if (isa > best)
                return error_set(
                    e, -ENOTSUP, "this CPU has no %s instructions, its best is %s", isa_name(isa), isa_name(best));
        if (options->groups > WORKER_GROUPS_MAX ||
            (options->groups > 1 && options->threads && options->groups > options->threads))
                return error_set(e, -EINVAL, "%u thread groups of %u threads; each needs one, and there are at most %d",
                    options->groups, options->threads, WORKER_GROUPS_MAX);
        c = calloc(1, sizeof(*c));
        if (!c)
                return error_set(e, -ENOMEM, "no memory for the compute object");
        c->isa = isa;
        c->table = isa_table(isa);
        c->activation = options->activation;
        c->cache_bytes = cache > 0 ? (size_t)cache : CACHE_BYTES_DEFAULT;
        r = workers_new(options->threads, options->spin_us, &c->workers, e);
        if (r < 0)
                goto fail;
        divide(c, options);
        c->scratch =
            mmap(NULL, scratch_bytes(c), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (c->scratch == MAP_FAILED) {
                c->scratch = NULL;
                r = error_set(
                    e, -ENOMEM, "no %zu MiB of address space for the kernels' scratch area", scratch_bytes(c) >> 20);
                goto fail;
        }
        (void)madvise(c->scratch, scratch_bytes(c), MADV_HUGEPAGE); /* fewer TLB misses where the kernel grants it */
        *ret_compute = c;
        return 0;

fail:
        compute_free(c);
        return r;
}

void compute_free(struct compute *c) {
        if (!c)
                return;
        if (c->scratch)
                munmap(c->scratch, scratch_bytes(c));
        workers_free(c->workers);
        free(c);
}

enum isa compute_isa(const struct compute *c) {
        return c->isa;
}

unsigned compute_threads(const struct compute *c) {
        return workers_count(c->workers);
}

enum activation compute_activation(const struct compute *c) {
        return c->activation;
}

unsigned compute_groups(const struct compute *c) {
        return workers_groups(c->workers);
}

bool compute_is_bound(const struct compute *c) {
        return workers_are_bound(c->workers);
}

void compute_bind(struct compute *c) {
        workers_bind(c->workers);
}

void compute_unbind(struct compute *c) {
        workers_unbind(c->workers);
}

void compute_run(struct compute *c, void (*task)(void *context, unsigned worker, unsigned workers), void *context) {
        workers_run(c->workers, task, context);
}

void compute_share(struct compute *c, void (*task)(void *context, unsigned worker, unsigned workers), void *context) {
        workers_share(c->workers, task, context);
}

void *scratch_take(struct compute *c, size_t bytes) {
        void *p = c->scratch + c->used;

        assert(bytes <= scratch_left(c));
        c->used += align64(bytes);
        return p;
}
