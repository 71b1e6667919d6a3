/* bench_kernels.c - the kernels beside what this machine can do: memory read bandwidth for decode, multiply-add peak for
 * batches, both measured in the same run, and OpenBLAS on the same shapes. Shapes are those of DeepSeek-V2-Lite.
 *
 *     bench_kernels [--threads N] [--isa scalar|avx2|avx512|avx512-bf16] [--quick] [decode|batch|prefill|attention]
 *
 * Prints Markdown tables. Every figure is the median of several rounds. */
#include "base/clock.h"
#include "base/rng.h"
#include "kernels/kernels.h"
#include <dlfcn.h>
#include <errno.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>

#define ROUNDS_MAX 64

struct reader {
        struct compute *c;
        const uint64_t *memory;
        size_t ahead; /* bytes of software prefetch, 0: none */
        size_t piece;
        _Atomic size_t next;
        _Atomic uint64_t sink;
};

struct spinner {
        struct compute *c;
        void (*task)(void *context, unsigned worker, unsigned workers);
};

/* What the machine can do, to be measured beside what the kernels do. */
struct yardstick {
        void (*run)(void *);
        void *context;
        double work; /* bytes or operations of one run */
};

struct bench {
        unsigned threads;
        bool quick;
        struct compute *c;   /* f32 activations */
        struct compute *c16; /* bf16 activations */
        struct reader reader;
        struct spinner spinners[3];
        struct yardstick read, peak[3]; /* by enum peak */
        void (*sgemm)(int order, int ta, int tb, int m, int n, int k, float alpha, const float *a, int lda,
            const float *b, int ldb, float beta, float *c, int ldc);
        const char *sgemm_name;
};

enum peak { PEAK_F32, PEAK_BF16, PEAK_INT8 };

static void die(const char *what, const struct error *e) {
        fprintf(stderr, "bench_kernels: %s: %s\n", what, e ? e->text : strerror(errno));
        exit(1);
}

/* ---- timing ------------------------------------------------------------------------------------------------------ */

static int by_value(const void *a, const void *b) {
        double x = *(const double *)a, y = *(const double *)b;

        return (x > y) - (x < y);
}

static double seconds_of(void (*run)(void *), void *context, size_t calls) {
        uint64_t start = clock_mono_ns();

        for (size_t i = 0; i < calls; i++)
                run(context);
        return (double)(clock_mono_ns() - start) * 1e-9;
}

struct figure {
        double rate;  /* work per second: bytes when there are no operations */
        double share; /* of the limit: the slower of reading the bytes and doing the operations */
        bool disturbed;
};

/* Work done by one call, and what bounds it. */
struct work {
        double bytes, operations;
        const struct yardstick *read, *peak; /* NULL: no bound */
        unsigned threads;                    /* that are busy all the time */
};

static double limit_seconds(double work, const struct yardstick *y) {
        return y ? work * seconds_of(y->run, y->context, 1) / y->work : 0;
}

static double cpu_seconds(void) { /* of all our threads; waiting ones spin */
        struct rusage u;

        getrusage(RUSAGE_SELF, &u);
        return (double)(u.ru_utime.tv_sec + u.ru_stime.tv_sec) +
               (double)(u.ru_utime.tv_usec + u.ru_stime.tv_usec) * 1e-6;
}

struct rounds {
        double rates[ROUNDS_MAX], shares[ROUNDS_MAX];
        size_t n;
};

static struct figure medians(struct rounds *r, bool disturbed) {
        qsort(r->rates, r->n, sizeof(*r->rates), by_value);
        qsort(r->shares, r->n, sizeof(*r->shares), by_value);
        return (struct figure){r->rates[r->n / 2], r->shares[r->n / 2], disturbed};
}

/* Rounds of at least `least` seconds, each beside a run of the yardsticks: a shared machine's speed wanders, and only
 * neighbours in time can be compared. Rounds in which somebody else had our cores are set aside as long as there are
 * others. Medians of both figures. */
static struct figure measure(const struct bench *b, void (*run)(void *), void *context, struct work w, double least) {
        const double budget = b->quick ? 0.15 : 0.6;
        struct rounds clean = {.n = 0}, all = {.n = 0};
        double begin, once;
        size_t calls;

        run(context);
        once = seconds_of(run, context, 1);
        calls = once < least ? (size_t)(least / (once + 1e-9)) + 1 : 1;
        begin = (double)clock_mono_ns() * 1e-9;
        for (;;) {
                double now = (double)clock_mono_ns() * 1e-9, cpu = cpu_seconds();
                double read = limit_seconds(w.bytes, w.read), compute = limit_seconds(w.operations, w.peak);
                double seconds = seconds_of(run, context, calls) / (double)calls;
                double rate = (w.operations > 0 ? w.operations : w.bytes) / seconds;
                double share = (read > compute ? read : compute) / seconds;
                double wall = (double)clock_mono_ns() * 1e-9 - now, past = now + wall - begin;

                if (all.n < ROUNDS_MAX) {
                        all.rates[all.n] = rate;
                        all.shares[all.n++] = share;
                }
                if (cpu_seconds() - cpu > 0.9 * wall * w.threads && clean.n < ROUNDS_MAX) {
                        clean.rates[clean.n] = rate;
                        clean.shares[clean.n++] = share;
                }
                if (past > budget && clean.n >= 5)
                        return medians(&clean, false);
                if (past > 6 * budget && all.n >= 5)
                        return clean.n >= 3 ? medians(&clean, false) : medians(&all, true);
        }
}

/* Percent of the limit, and the rate; a tilde when the machine was never ours alone. */
static void print_cell(struct figure f, int decimals) {
        printf(" %s%.0f %% (%.*f) |", f.disturbed ? "~" : "", 100 * f.share, decimals, f.rate * 1e-9);
        fflush(stdout);
}

/* ---- memory ------------------------------------------------------------------------------------------------------ */

static void *pages(size_t bytes) {
        void *p;

        bytes = (bytes + ((size_t)2 << 20) - 1) & ~(((size_t)2 << 20) - 1);
        p = mmap(NULL, bytes + ((size_t)2 << 20), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (p == MAP_FAILED)
                die("memory", NULL);
        p = (void *)(((uintptr_t)p + ((size_t)2 << 20) - 1) & ~(((uintptr_t)2 << 20) - 1));
        (void)madvise(p, bytes, MADV_HUGEPAGE);
        return p;
}

static float *random_floats(size_t n) {
        float *x = pages(n * sizeof(float));
        struct rng r;

        rng_seed(&r, n);
        for (size_t i = 0; i < n; i++)
                x[i] = (float)(rng_unit(&r) - 0.5);
        return x;
}

/* ---- the machine ------------------------------------------------------------------------------------------------- */

/* Also what the layers of a decode measurement add up to: many times any cache. */
#define READ_BYTES ((size_t)384 << 20)

#if defined(__x86_64__)
#define WIDEST __attribute__((target("avx2")))
#else
#define WIDEST
#endif

/* Workers take pieces in order, as they take panels: neighbours in time are neighbours in memory. */
static WIDEST void read_task(void *context, unsigned worker, unsigned workers) {
        struct reader *r = context;
        typedef uint64_t wide __attribute__((vector_size(32)));
        wide sum[4] = {{0}};

        for (size_t piece; (piece = atomic_fetch_add(&r->next, r->piece)) < READ_BYTES;) {
                const wide *at = (const wide *)((const char *)r->memory + piece);

                for (size_t i = 0; i < r->piece / sizeof(wide); i += 4) {
                        if (r->ahead) {
                                __builtin_prefetch((const char *)(at + i) + r->ahead);
                                __builtin_prefetch((const char *)(at + i + 2) + r->ahead);
                        }
                        for (size_t j = 0; j < 4; j++)
                                sum[j] ^= at[i + j];
                }
        }
        for (int j = 1; j < 4; j++)
                sum[0] ^= sum[j];
        atomic_fetch_xor(&r->sink, sum[0][0] ^ sum[0][1] ^ sum[0][2] ^ sum[0][3]);
}

static void run_reader(void *context) {
        struct reader *r = context;

        atomic_store(&r->next, 0);
        compute_run(r->c, read_task, r);
}

/* The best way of reading that we know is the yardstick. */
static struct figure make_reader(const struct bench *b, struct reader *r, struct compute *c) {
        static const struct {
                size_t ahead;
                size_t piece;
        } ways[] = {{0, 128 << 10}, {4096, 128 << 10}, {0, 512 << 10}, {4096, 512 << 10}};
        static uint64_t *memory;
        struct figure best = {0};
        size_t chosen = 0;

        if (!memory) {
                memory = pages(READ_BYTES);
                for (size_t i = 0; i < READ_BYTES / 8; i++)
                        memory[i] = i * 0x9e3779b97f4a7c15u;
        }
        r->c = c;
        r->memory = memory;
        for (size_t i = 0; i < sizeof(ways) / sizeof(*ways); i++) {
                struct figure f;

                r->ahead = ways[i].ahead;
                r->piece = ways[i].piece;
                f = measure(b, run_reader, r, (struct work){.bytes = READ_BYTES, .threads = compute_threads(c)}, 0);
                if (f.rate > best.rate) {
                        best = f;
                        chosen = i;
                }
        }
        r->ahead = ways[chosen].ahead;
        r->piece = ways[chosen].piece;
        return best;
}

#define PEAK_LOOPS 200000

#if defined(__x86_64__)
#define TWELVE(op, reg)                                                                                                \
        op " %%" reg "0, %%" reg "1, %%" reg "2\n\t" op " %%" reg "0, %%" reg "1, %%" reg "3\n\t" op " %%" reg         \
           "0, %%" reg "1, %%" reg "4\n\t" op " %%" reg "0, %%" reg "1, %%" reg "5\n\t" op " %%" reg "0, %%" reg       \
           "1, %%" reg "6\n\t" op " %%" reg "0, %%" reg "1, %%" reg "7\n\t" op " %%" reg "0, %%" reg "1, %%" reg       \
           "8\n\t" op " %%" reg "0, %%" reg "1, %%" reg "9\n\t" op " %%" reg "0, %%" reg "1, %%" reg "10\n\t" op       \
           " %%" reg "0, %%" reg "1, %%" reg "11\n\t" op " %%" reg "0, %%" reg "1, %%" reg "12\n\t" op " %%" reg       \
           "0, %%" reg "1, %%" reg "13\n\t"
#define PEAK_TASK(name, clear, op, reg)                                                                                \
        static void name(void *context, unsigned worker, unsigned workers) {                                           \
                long n = PEAK_LOOPS;                                                                                   \
                __asm__ volatile(clear "1:\n\t" TWELVE(op, reg) "dec %0\n\tjnz 1b\n\tvzeroupper"                       \
                                 : "+r"(n)::"memory", "cc", "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6",    \
                                 "xmm7", "xmm8", "xmm9", "xmm10", "xmm11", "xmm12", "xmm13");                          \
        }
#define CLEAR "vzeroall\n\t"
PEAK_TASK(fma256, CLEAR, "vfmadd231ps", "ymm")
PEAK_TASK(fma512, CLEAR, "vfmadd231ps", "zmm")
PEAK_TASK(dot512, CLEAR, "vdpbf16ps", "zmm")
PEAK_TASK(int512, CLEAR, "vpdpbusd", "zmm")
PEAK_TASK(madd256, CLEAR, "vpmaddwd", "ymm")
PEAK_TASK(madd512, CLEAR, "vpmaddwd", "zmm")
#endif

static void run_spinner(void *context) {
        struct spinner *s = context;

        compute_run(s->c, s->task, NULL);
}

static void make_spinners(struct bench *b) {
#if defined(__x86_64__)
        const bool wide = compute_isa(b->c) >= ISA_AVX512, dots = compute_isa(b->c) == ISA_AVX512_BF16;
        const struct {
                void (*task)(void *context, unsigned worker, unsigned workers);
                double operations; /* of one instruction */
        } rows[3] = {
            {wide ? fma512 : fma256, wide ? 32 : 16},
            {dots      ? dot512
                : wide ? fma512
                       : fma256,
                dots   ? 64
                : wide ? 32
                       : 16},
            {dots      ? int512
                : wide ? madd512
                       : madd256,
                dots   ? 128
                : wide ? 64
                       : 32},
        };

        for (int i = 0; i < 3; i++) {
                b->spinners[i] = (struct spinner){b->c, rows[i].task};
                b->peak[i] =
                    (struct yardstick){run_spinner, &b->spinners[i], rows[i].operations * 12 * PEAK_LOOPS * b->threads};
        }
#endif
}

static void load_openblas(struct bench *b) {
        void *lib;
        char *(*core)(void);
        void (*set_threads)(int);

        /* Environments that pin an old core type, and releases that do not know this CPU, would make a weak peer. */
        unsetenv("OPENBLAS_CORETYPE");
        if (compute_isa(b->c) >= ISA_AVX512)
                setenv("OPENBLAS_CORETYPE", "SkylakeX", 1);
        lib = dlopen("libopenblas.so.0", RTLD_NOW);
        if (!lib)
                return;
        *(void **)&core = dlsym(lib, "openblas_get_corename");
        *(void **)&set_threads = dlsym(lib, "openblas_set_num_threads");
        *(void **)&b->sgemm = dlsym(lib, "cblas_sgemm");
        if (set_threads)
                set_threads((int)b->threads);
        b->sgemm_name = core ? core() : "unknown core";
}

static double peak_rate(const struct bench *b, enum peak p) {
        const struct yardstick *y = &b->peak[p];

        return y->run
                   ? measure(b, y->run, y->context, (struct work){.operations = y->work, .threads = b->threads}, 0).rate
                   : 0;
}

static void section_machine(struct bench *b) {
        struct compute_options o = {.isa = ISA_BEST, .threads = 1};
        struct reader alone;
        struct compute *one;
        struct figure all, single;
        struct error e;

        if (compute_new(&o, &one, &e) < 0)
                die("compute_new", &e);
        single = make_reader(b, &alone, one);
        all = make_reader(b, &b->reader, b->c);
        b->read = (struct yardstick){run_reader, &b->reader, READ_BYTES};
        make_spinners(b);
        printf(
            "\n### Machine\n\nInstruction set %s, %u threads. Read bandwidth %.1f GB/s (1 thread %.1f). Peak: f32 %.0f "
            "GFLOP/s, bf16 dot %.0f GFLOP/s, int8 %.0f Gop/s. OpenBLAS: %s.\n",
            isa_name(compute_isa(b->c)), b->threads, all.rate * 1e-9, single.rate * 1e-9, peak_rate(b, PEAK_F32) * 1e-9,
            peak_rate(b, PEAK_BF16) * 1e-9, peak_rate(b, PEAK_INT8) * 1e-9, b->sgemm ? b->sgemm_name : "not installed");
        compute_free(one);
}

/* ---- layers ------------------------------------------------------------------------------------------------------ */

struct format {
        const char *name;
        enum weight_type type;
        bool bf16_activations;
        enum peak peak;
};

static const struct format formats[] = {
    {"f32", WEIGHT_F32, false, PEAK_F32},
    {"bf16", WEIGHT_BF16, false, PEAK_F32},
    {"bf16, dot", WEIGHT_BF16, true, PEAK_BF16},
    {"fp8", WEIGHT_FP8, false, PEAK_F32},
    {"fp8, dot", WEIGHT_FP8, true, PEAK_BF16},
    {"int8", WEIGHT_INT8_DYNAMIC, false, PEAK_INT8},
};

/* Random bytes that are valid in every format: one buffer serves all sources. */
#define SOURCE_BYTES ((size_t)10944 * 2048 * 4)

static struct weight_source source_of(enum weight_type type, size_t n, size_t k) {
        static uint8_t *data;
        static float *scales;

        if (!data) {
                struct rng r;

                data = pages(SOURCE_BYTES);
                scales = pages(SOURCE_BYTES / 64);
                rng_seed(&r, 1);
                for (size_t i = 0; i < SOURCE_BYTES; i++) /* small exponents, no NaN: bytes of 0x00..0x3d */
                        data[i] = (uint8_t)(rng_u64(&r) % 0x3e);
                for (size_t i = 0; i < SOURCE_BYTES / 256; i++)
                        scales[i] = 0.01f;
        }
        return (struct weight_source){.type = type,
            .n = n,
            .k = k,
            .data = data,
            .row_stride = k,
            .scale = scales,
            .scale_stride = (k + 127) / 128,
            .block_n = 128,
            .block_k = 128,
            .row_scale = scales};
}

/* Copies of a layer or of MLPs that together do not fit any cache; one call runs one copy. */
#define COPIES_MAX 512

struct layer {
        struct compute *c;
        struct linear linear[COPIES_MAX];
        struct mlp mlp[COPIES_MAX];
        size_t copies, at, bytes; /* bytes of one copy */
        const float *x;
        float *y;
        size_t n, k, m;
        /* experts: each call takes the next `top` MLPs (m rows each), or spreads m rows over all copies */
        size_t top;
        const uint32_t *rows;
        struct expert_call calls[COPIES_MAX];
        size_t call_count;
        const struct bench *bench;
        const float *blas_w;
};

static void run_linear(void *context) {
        struct layer *l = context;

        linear_run(l->c, &l->linear[l->at], l->x, l->k, l->m, l->y, l->n);
        l->at = (l->at + 1) % l->copies;
}

static void run_experts(void *context) {
        struct layer *l = context;

        for (size_t i = 0; i < l->top; i++)
                l->calls[i].expert = &l->mlp[(l->at + i) % l->copies];
        experts_run(l->c, l->calls, l->call_count, l->x, l->k, l->k);
        l->at = (l->at + l->top) % l->copies;
}

static void run_blas(void *context) {
        struct layer *l = context;

        /* row major: y[m][n] = x[m][k] w[n][k]^T */
        l->bench->sgemm(101, 111, 112, (int)l->m, (int)l->n, (int)l->k, 1, l->x, (int)l->k, l->blas_w, (int)l->k, 0,
            l->y, (int)l->n);
}

static void *packed_memory(size_t bytes) {
        static char *memory;
        static size_t size;

        if (size < bytes) {
                memory = pages(bytes);
                size = bytes;
        }
        return memory;
}

static void make_linears(struct layer *l, struct compute *c, enum weight_type type, size_t n, size_t k, size_t total) {
        struct weight_source s = source_of(type, n, k);
        struct error e;
        char *memory;

        *l = (struct layer){.c = c, .n = n, .k = k, .bytes = linear_bytes(&s)};
        l->copies = total / l->bytes + 1 < COPIES_MAX ? total / l->bytes + 1 : COPIES_MAX;
        memory = packed_memory(l->copies * l->bytes);
        for (size_t i = 0; i < l->copies; i++)
                if (linear_pack(c, &s, memory + i * l->bytes, &l->linear[i], &e) < 0)
                        die("linear_pack", &e);
}

static void make_mlps(
    struct layer *l, struct compute *c, enum weight_type type, size_t hidden, size_t width, size_t copies) {
        struct weight_source up = source_of(type, width, hidden), down = source_of(type, hidden, width);
        struct error e;
        char *memory;

        *l = (struct layer){.c = c, .n = hidden, .k = hidden, .bytes = mlp_bytes(&up, &up, &down), .copies = copies};
        memory = packed_memory(copies * l->bytes);
        for (size_t i = 0; i < copies; i++)
                if (mlp_pack(c, &up, &up, &down, memory + i * l->bytes, &l->mlp[i], &e) < 0)
                        die("mlp_pack", &e);
}

static const struct {
        const char *name;
        size_t n, k;
} shapes[] = {
    {"q 3072x2048", 3072, 2048},
    {"kv_a 576x2048", 576, 2048},
    {"kv_b 4096x512", 4096, 512},
    {"o 2048x2048", 2048, 2048},
    {"dense up 10944x2048", 10944, 2048},
};
#define COUNT(a) (sizeof(a) / sizeof((a)[0]))

static bool runs_as_named(const struct bench *b, const struct format *f) {
        return f->peak != PEAK_BF16 || compute_isa(b->c) == ISA_AVX512_BF16;
}

static struct compute *compute_for(const struct bench *b, const struct format *f) {
        return f->bf16_activations ? b->c16 : b->c;
}

static void section_decode(struct bench *b) {
        float *x = random_floats(16384), *y = random_floats(64 * 2048);
        static const uint32_t row0;
        static struct layer l;

        printf("\n### Decode: one row, percent of read bandwidth (and GB/s)\n\n| layer |");
        for (size_t f = 0; f < COUNT(formats); f++)
                printf(" %s |", formats[f].name);
        printf("\n|---|---|---|---|---|---|---|\n");
        for (size_t s = 0; s < COUNT(shapes) + 2; s++) {
                if (s < COUNT(shapes))
                        printf("| %s |", shapes[s].name);
                else
                        printf("| %s |", s == COUNT(shapes) ? "6 experts of 1408" : "shared experts of 2816");
                for (size_t f = 0; f < COUNT(formats); f++) {
                        struct compute *c = compute_for(b, &formats[f]);
                        struct figure got;

                        if (!runs_as_named(b, &formats[f])) {
                                printf(" - |");
                                continue;
                        }
                        if (s < COUNT(shapes)) {
                                make_linears(&l, c, formats[f].type, shapes[s].n, shapes[s].k, READ_BYTES);
                                l.x = x;
                                l.y = y;
                                l.m = 1;
                                got = measure(b, run_linear, &l,
                                    (struct work){.bytes = (double)l.bytes, .read = &b->read, .threads = b->threads},
                                    4e-3);
                        } else {
                                l.top = s == COUNT(shapes) ? 6 : 1;
                                size_t each = l.top, width = each == 6 ? 1408 : 2816;

                                make_mlps(&l, c, formats[f].type, 2048, width, 48);
                                l.top = l.call_count = each;
                                l.x = x;
                                for (size_t i = 0; i < each; i++)
                                        l.calls[i] = (struct expert_call){&l.mlp[i], &row0, 1, y + i * 2048};
                                got = measure(b, run_experts, &l,
                                    (struct work){
                                        .bytes = (double)(l.bytes * each), .read = &b->read, .threads = b->threads},
                                    4e-3);
                        }
                        print_cell(got, 1);
                }
                printf("\n");
        }
}

/* The limit is the slower of the format's multiply-add peak and reading the weights once. `m` rows over every shape and over 64 experts, top 6. */
static void section_rows(struct bench *b, const char *title, size_t m) {
        float *x = random_floats(m * 2048), *y = random_floats(m * 10944), *z = random_floats(m * 6 * 2048);
        float *w = random_floats((size_t)10944 * 2048);
        uint32_t *rows = pages(m * 6 * sizeof(uint32_t));
        static struct layer l;

        printf("\n### %s: %zu rows, percent of the limit (and Gop/s)\n\n| layer |", title, m);
        for (size_t f = 0; f < COUNT(formats); f++)
                printf(" %s |", formats[f].name);
        printf(" OpenBLAS f32 |\n|---|---|---|---|---|---|---|---|\n");
        for (size_t s = 0; s < COUNT(shapes) + 1; s++) {
                const bool experts = s == COUNT(shapes);
                double operations = 0;

                printf("| %s |", experts ? "64 experts, top 6" : shapes[s].name);
                for (size_t f = 0; f < COUNT(formats); f++) {
                        struct compute *c = compute_for(b, &formats[f]);
                        const struct yardstick *peak = &b->peak[formats[f].peak];
                        struct figure got;

                        if (!runs_as_named(b, &formats[f])) {
                                printf(" - |");
                                continue;
                        }
                        if (!experts) {
                                make_linears(&l, c, formats[f].type, shapes[s].n, shapes[s].k, (size_t)64 << 20);
                                l.x = x;
                                l.y = y;
                                l.m = m;
                                operations = 2.0 * (double)m * (double)shapes[s].n * (double)shapes[s].k;
                                got = measure(b, run_linear, &l,
                                    (struct work){(double)l.bytes, operations, &b->read, peak, b->threads}, 2e-3);
                        } else {
                                /* f32 experts of a layer are 2.2 GB: half of them are enough to see */
                                const size_t count = formats[f].type == WEIGHT_F32 ? 32 : 64;

                                make_mlps(&l, c, formats[f].type, 2048, 1408, count);
                                l.x = x;
                                for (size_t i = 0, at = 0; i < count; i++) {
                                        size_t mine = (i + 1) * m * 6 / count - i * m * 6 / count;

                                        for (size_t j = 0; j < mine; j++)
                                                rows[at + j] = (uint32_t)((at + j) * 7919 % m);
                                        l.calls[i] = (struct expert_call){&l.mlp[i], rows + at, mine, z + at * 2048};
                                        at += mine;
                                }
                                l.call_count = count;
                                operations = 2.0 * (double)m * 6 * 3 * 2048 * 1408;
                                got = measure(b, run_experts, &l,
                                    (struct work){(double)(l.bytes * count), operations, &b->read, peak, b->threads},
                                    2e-3);
                        }
                        print_cell(got, 0);
                }
                if (b->sgemm && !experts) {
                        struct figure got;

                        l.bench = b;
                        l.blas_w = w;
                        l.n = shapes[s].n;
                        l.k = shapes[s].k;
                        got = measure(b, run_blas, &l,
                            (struct work){
                                (double)l.n * (double)l.k * 4, operations, &b->read, &b->peak[PEAK_F32], b->threads},
                            2e-3);
                        print_cell(got, 0);
                        printf("\n");
                } else {
                        printf(" - |\n");
                }
        }
}

/* ---- attention --------------------------------------------------------------------------------------------------- */

struct scene {
        struct compute *c;
        struct kv_layer kv;
        struct linear kv_b;
        struct attention_dims dims;
        struct attention_span spans[64];
        size_t count, ldq, ldo;
        bool absorbed;
};

static void run_attention(void *context) {
        struct scene *s = context;

        if (s->absorbed)
                attention_absorbed(s->c, &s->kv, s->dims.heads, 0.1f, s->spans, s->count, s->ldq, s->ldo);
        else
                attention_naive(s->c, &s->kv, &s->kv_b, &s->dims, 0.1f, s->spans, s->count, s->ldq, s->ldo);
}

static void attention_row(struct bench *b, const char *name, bool absorbed, unsigned heads, enum kv_type type,
    size_t sequences, size_t first, size_t count) {
        struct scene s = {.c = b->c, .absorbed = absorbed, .dims = {heads, 128, 64, 128}};
        const size_t length = first + count, blocks = (length + 63) / 64, rank = 512, width = 576;
        struct weight_source w = source_of(WEIGHT_BF16, heads * 256, rank);
        uint32_t *table = pages(blocks * sequences * sizeof(uint32_t));
        double operations = 0;
        struct figure got;
        struct error e;
        float *q, *out;

        s.kv = (struct kv_layer){.type = type,
            .base = pages(blocks * sequences * 64 * width * 4),
            .block_tokens = 64,
            .block_stride = 64 * width,
            .width = (unsigned)width,
            .rank = (unsigned)rank};
        for (size_t i = 0; i < blocks * sequences; i++)
                table[i] = (uint32_t)i;
        if (linear_pack(b->c, &w, pages(linear_bytes(&w)), &s.kv_b, &e) < 0)
                die("linear_pack", &e);
        s.ldq = heads * (absorbed ? width : 192);
        s.ldo = heads * (absorbed ? rank : 128);
        q = random_floats(sequences * count * s.ldq);
        out = random_floats(sequences * count * s.ldo);
        s.count = sequences;
        for (size_t i = 0; i < sequences; i++) {
                float *rows = random_floats(length * width);

                kv_write(b->c, &s.kv, table + i * blocks, 0, rows, width, length);
                s.spans[i] = (struct attention_span){
                    table + i * blocks, first, count, q + i * count * s.ldq, out + i * count * s.ldo};
                for (size_t t = 0; t < count; t++)
                        operations += 2.0 * heads * (absorbed ? 1088 : 320) * (double)(first + t + 1);
                if (!absorbed)
                        operations += 2.0 * (double)length * heads * 256 * (double)rank;
                munmap(rows, length * width * sizeof(float));
        }
        got = measure(b, run_attention, &s,
            (struct work){.operations = operations, .peak = &b->peak[PEAK_F32], .threads = b->threads}, 2e-3);
        printf("| %s | %.2f ms |", name, operations / got.rate * 1e3);
        print_cell(got, 0);
        printf("\n");
}

static void section_attention(struct bench *b) {
        printf("\n### Attention: percent of the f32 peak (and GFLOP/s)\n\n| case | time | |\n|---|---|---|\n");
        attention_row(b, "absorbed, 16 heads, 1 query at 1,024", true, 16, KV_F32, 1, 1023, 1);
        attention_row(b, "absorbed, 16 heads, 1 query at 8,192", true, 16, KV_F32, 1, 8191, 1);
        attention_row(b, "absorbed, 16 heads, 32 sequences at 1,024", true, 16, KV_F32, 32, 1023, 1);
        attention_row(b, "the same, cache in bf16", true, 16, KV_BF16, 32, 1023, 1);
        attention_row(b, "absorbed, 128 heads, 1 query at 4,096", true, 128, KV_BF16, 1, 4095, 1);
        attention_row(b, "naive, 16 heads, 512 queries from 0", false, 16, KV_F32, 1, 0, 512);
        attention_row(b, "naive, 16 heads, 512 queries from 3,584", false, 16, KV_F32, 1, 3584, 512);
        attention_row(b, "naive, 128 heads, 256 queries from 0", false, 128, KV_BF16, 1, 0, 256);
}

static enum isa isa_by_name(const char *name) {
        for (enum isa isa = ISA_SCALAR; isa < ISA_BEST; isa++)
                if (strcmp(name, isa_name(isa)) == 0)
                        return isa;
        return ISA_BEST;
}

int main(int argc, char **argv) {
        struct bench b = {0};
        struct compute_options o = {.isa = ISA_BEST, .spin_us = 200};
        struct error e;
        const char *names = "";

        for (int i = 1; i < argc; i++)
                if (strcmp(argv[i], "--threads") == 0 && i + 1 < argc)
                        o.threads = (unsigned)atoi(argv[++i]);
                else if (strcmp(argv[i], "--isa") == 0 && i + 1 < argc)
                        o.isa = isa_by_name(argv[++i]);
                else if (strcmp(argv[i], "--quick") == 0)
                        b.quick = true;
                else
                        names = argv[i];
        if (compute_new(&o, &b.c, &e) < 0)
                die("compute_new", &e);
        o.activation = ACTIVATION_BF16;
        if (compute_new(&o, &b.c16, &e) < 0)
                die("compute_new", &e);
        b.threads = compute_threads(b.c);
        load_openblas(&b);
        section_machine(&b);
        if (!*names || strstr(names, "decode"))
                section_decode(&b);
        if (!*names || strstr(names, "batch"))
                section_rows(&b, "Batch", 32);
        if (!*names || strstr(names, "prefill"))
                section_rows(&b, "Prefill", 512);
        if (!*names || strstr(names, "attention"))
                section_attention(&b);
        compute_free(b.c);
        compute_free(b.c16);
        return 0;
}
