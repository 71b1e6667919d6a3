/* bench_kernels.c - the kernels beside what this machine can do: memory read bandwidth for decode, multiply-add peak for
 * batches, both measured in the same run, and OpenBLAS on the same shapes. Shapes are those of DeepSeek-V2-Lite.
 *
 *     bench_kernels [--threads N] [--isa scalar|avx2|avx512|avx512-bf16] [--quick] [decode|batch|prefill|attention]
 *
 * Prints Markdown tables. Every figure is the median of several rounds. */
#include "base/rng.h"
#include "yardstick.h"
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
struct bench {
        struct machine m;    /* f32 activations */
        struct compute *c16; /* bf16 activations */
        void (*sgemm)(int order, int ta, int tb, int m, int n, int k, float alpha, const float *a, int lda,
            const float *b, int ldb, float beta, float *c, int ldc);
        const char *sgemm_name;
};

/* Percent of the limit, and the rate; a tilde when the machine was never ours alone. */
static void print_cell(struct figure f, int decimals) {
        printf(" %s%.0f %% (%.*f) |", f.disturbed ? "~" : "", 100 * f.share, decimals, f.rate * 1e-9);
        fflush(stdout);
}
static float *random_floats(size_t n) {
        float *x = pages(n * sizeof(float));
        struct rng r;

        rng_seed(&r, n);
        for (size_t i = 0; i < n; i++)
                x[i] = (float)(rng_unit(&r) - 0.5);
        return x;
}

static void load_openblas(struct bench *b) {
        void *lib;
        char *(*core)(void);
        void (*set_threads)(int);

        /* Environments that pin an old core type, and releases that do not know this CPU, would make a weak peer. */
        unsetenv("OPENBLAS_CORETYPE");
        if (compute_isa(b->m.c) >= ISA_AVX512)
                setenv("OPENBLAS_CORETYPE", "SkylakeX", 1);
        lib = dlopen("libopenblas.so.0", RTLD_NOW);
        if (!lib)
                return;
        *(void **)&core = dlsym(lib, "openblas_get_corename");
        *(void **)&set_threads = dlsym(lib, "openblas_set_num_threads");
        *(void **)&b->sgemm = dlsym(lib, "cblas_sgemm");
        if (set_threads)
                set_threads((int)b->m.threads);
        b->sgemm_name = core ? core() : "unknown core";
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
        return f->peak != PEAK_BF16 || compute_isa(b->m.c) == ISA_AVX512_BF16;
}

static struct compute *compute_for(const struct bench *b, const struct format *f) {
        return f->bf16_activations ? b->c16 : b->m.c;
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
                                got = measure(&b->m, run_linear, &l,
                                    (struct work){
                                        .bytes = (double)l.bytes, .read = &b->m.read, .threads = b->m.threads},
                                    4e-3);
                        } else {
                                l.top = s == COUNT(shapes) ? 6 : 1;
                                size_t each = l.top, width = each == 6 ? 1408 : 2816;

                                make_mlps(&l, c, formats[f].type, 2048, width, 48);
                                l.top = l.call_count = each;
                                l.x = x;
                                for (size_t i = 0; i < each; i++)
                                        l.calls[i] = (struct expert_call){&l.mlp[i], &row0, 1, y + i * 2048};
                                got = measure(&b->m, run_experts, &l,
                                    (struct work){
                                        .bytes = (double)(l.bytes * each), .read = &b->m.read, .threads = b->m.threads},
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
                        const struct yardstick *peak = &b->m.peak[formats[f].peak];
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
                                got = measure(&b->m, run_linear, &l,
                                    (struct work){(double)l.bytes, operations, &b->m.read, peak, b->m.threads}, 2e-3);
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
                                got = measure(&b->m, run_experts, &l,
                                    (struct work){
                                        (double)(l.bytes * count), operations, &b->m.read, peak, b->m.threads},
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
                        got = measure(&b->m, run_blas, &l,
                            (struct work){(double)l.n * (double)l.k * 4, operations, &b->m.read, &b->m.peak[PEAK_F32],
                                b->m.threads},
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
        struct scene s = {.c = b->m.c, .absorbed = absorbed, .dims = {heads, 128, 64, 128}};
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
        if (linear_pack(b->m.c, &w, pages(linear_bytes(&w)), &s.kv_b, &e) < 0)
                die("linear_pack", &e);
        s.ldq = heads * (absorbed ? width : 192);
        s.ldo = heads * (absorbed ? rank : 128);
        q = random_floats(sequences * count * s.ldq);
        out = random_floats(sequences * count * s.ldo);
        s.count = sequences;
        for (size_t i = 0; i < sequences; i++) {
                float *rows = random_floats(length * width);

                kv_write(b->m.c, &s.kv, table + i * blocks, 0, rows, width, length);
                s.spans[i] = (struct attention_span){
                    table + i * blocks, first, count, q + i * count * s.ldq, out + i * count * s.ldo};
                for (size_t t = 0; t < count; t++)
                        operations += 2.0 * heads * (absorbed ? 1088 : 320) * (double)(first + t + 1);
                if (!absorbed)
                        operations += 2.0 * (double)length * heads * 256 * (double)rank;
                munmap(rows, length * width * sizeof(float));
        }
        got = measure(&b->m, run_attention, &s,
            (struct work){.operations = operations, .peak = &b->m.peak[PEAK_F32], .threads = b->m.threads}, 2e-3);
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
                        b.m.quick = true;
                else
                        names = argv[i];
        if (compute_new(&o, &b.m.c, &e) < 0)
                die("compute_new", &e);
        o.activation = ACTIVATION_BF16;
        if (compute_new(&o, &b.c16, &e) < 0)
                die("compute_new", &e);
        b.m.threads = compute_threads(b.m.c);
        load_openblas(&b);
        measure_machine(&b.m, b.sgemm ? b.sgemm_name : "not installed");
        if (!*names || strstr(names, "decode"))
                section_decode(&b);
        if (!*names || strstr(names, "batch"))
                section_rows(&b, "Batch", 32);
        if (!*names || strstr(names, "prefill"))
                section_rows(&b, "Prefill", 512);
        if (!*names || strstr(names, "attention"))
                section_attention(&b);
        compute_free(b.m.c);
        compute_free(b.c16);
        return 0;
}
