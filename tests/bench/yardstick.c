/* yardstick.c - see yardstick.h. */
#include "yardstick.h"
#include "base/clock.h"
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>

#define ROUNDS_MAX 64

void die(const char *what, const struct error *e) {
        fprintf(stderr, "bench: %s: %s\n", what, e ? e->text : strerror(errno));
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

static double limit_seconds(double work, const struct yardstick *y) {
        return y ? work * seconds_of(y->run, y->context, 1) / y->work : 0;
}

double cpu_seconds(void) {
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
struct figure measure(const struct machine *m, void (*run)(void *), void *context, struct work w, double least) {
        const double budget = m->quick ? 0.15 : 0.6;
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

/* ---- memory ------------------------------------------------------------------------------------------------------ */

void *pages(size_t bytes) {
        void *p;

        bytes = (bytes + ((size_t)2 << 20) - 1) & ~(((size_t)2 << 20) - 1);
        p = mmap(NULL, bytes + ((size_t)2 << 20), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (p == MAP_FAILED)
                die("memory", NULL);
        p = (void *)(((uintptr_t)p + ((size_t)2 << 20) - 1) & ~(((uintptr_t)2 << 20) - 1));
        (void)madvise(p, bytes, MADV_HUGEPAGE);
        return p;
}

/* ---- the machine ------------------------------------------------------------------------------------------------- */

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
static struct figure make_reader(const struct machine *m, struct reader *r, struct compute *c) {
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
                f = measure(m, run_reader, r, (struct work){.bytes = READ_BYTES, .threads = compute_threads(c)}, 0);
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

static void make_spinners(struct machine *m) {
#if defined(__x86_64__)
        const bool wide = compute_isa(m->c) >= ISA_AVX512, dots = compute_isa(m->c) == ISA_AVX512_BF16;
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
                m->spinners[i] = (struct spinner){m->c, rows[i].task};
                m->peak[i] =
                    (struct yardstick){run_spinner, &m->spinners[i], rows[i].operations * 12 * PEAK_LOOPS * m->threads};
        }
#endif
}
static double peak_rate(const struct machine *m, enum peak p) {
        const struct yardstick *y = &m->peak[p];

        return y->run
                   ? measure(m, y->run, y->context, (struct work){.operations = y->work, .threads = m->threads}, 0).rate
                   : 0;
}
void measure_machine(struct machine *m, const char *blas) {
        struct compute_options o = {.isa = ISA_BEST, .threads = 1};
        struct reader alone;
        struct compute *one;
        struct figure all, single;
        struct error e;

        if (compute_new(&o, &one, &e) < 0)
                die("compute_new", &e);
        single = make_reader(m, &alone, one);
        all = make_reader(m, &m->reader, m->c);
        m->read = (struct yardstick){run_reader, &m->reader, READ_BYTES};
        make_spinners(m);
        printf(
            "\n### Machine\n\nInstruction set %s, %u threads. Read bandwidth %.1f GB/s (1 thread %.1f). Peak: f32 %.0f "
            "GFLOP/s, bf16 dot %.0f GFLOP/s, int8 %.0f Gop/s. OpenBLAS: %s.\n",
            isa_name(compute_isa(m->c)), m->threads, all.rate * 1e-9, single.rate * 1e-9, peak_rate(m, PEAK_F32) * 1e-9,
            peak_rate(m, PEAK_BF16) * 1e-9, peak_rate(m, PEAK_INT8) * 1e-9, blas);
        compute_free(one);
}
