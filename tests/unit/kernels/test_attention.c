/* Attention over the paged cache: both forms against double arithmetic and against each other, and their independence of
 * chunking, batching, threads, block size and instruction set. */
#include "common.h"

#define HEADS_MAX 48

/* A layer's cache with a sequence of random latents in scattered blocks, and everything an attention call needs. */
struct scene {
        struct kv_layer kv;
        uint32_t *blocks;
        struct attention_dims dims;
        size_t length;
        float scale;
        float *latents;     /* [length][width] as stored */
        struct weight kv_b; /* f32 */
        float *q;           /* [length][heads][nope + rope] */
        size_t ldq, ldo;
};

static struct scene new_scene(
    uint64_t seed, enum kv_type type, unsigned block_tokens, size_t length, unsigned rank, struct attention_dims dims) {
        struct scene s = {.dims = dims, .length = length, .scale = 0.3f};
        const size_t width = rank + dims.rope, count = (length + block_tokens - 1) / block_tokens;
        struct compute *c = new_compute(ISA_BEST, 1, ACTIVATION_F32);
        struct rng r;

        rng_seed(&r, seed);
        s.kv = (struct kv_layer){.type = type,
            .block_tokens = block_tokens,
            .width = (unsigned)width,
            .rank = rank,
            .block_stride = block_tokens * width + 8};
        s.kv.base = alloc((count * 2 + 1) * s.kv.block_stride * kv_type_bytes(type));
        memset(
            s.kv.base, 0xff, (count * 2 + 1) * s.kv.block_stride * kv_type_bytes(type)); /* NaN where none may look */
        s.blocks = alloc(count * sizeof(uint32_t));
        for (size_t i = 0; i < count; i++)
                s.blocks[i] = (uint32_t)(2 * (count - i));
        s.latents = random_floats(&r, length * width);
        kv_write(c, &s.kv, s.blocks, 0, s.latents, width, length);
        if (type == KV_BF16)
                for (size_t i = 0; i < length * width; i++)
                        s.latents[i] = bf16_to_float(float_to_bf16(s.latents[i]));
        s.kv_b = random_weight(&r, WEIGHT_F32, dims.heads * (dims.nope + dims.v), rank, 0, 0);
        for (size_t i = 0; i < s.kv_b.s.n * s.kv_b.s.row_stride; i++)
                ((float *)s.kv_b.data)[i] *= 0.2f;
        s.ldq = dims.heads * (dims.nope + dims.rope) + 3;
        s.ldo = dims.heads * dims.v + 1;
        s.q = random_floats(&r, length * s.ldq);
        compute_free(c);
        return s;
}

static void free_scene(struct scene *s) {
        free(s->kv.base);
        free(s->blocks);
        free(s->latents);
        free(s->q);
        free_weight(&s->kv_b);
}

/* Spans that cut the queries [first, length) at the given step. */
static size_t cut(const struct scene *s, size_t first, size_t step, const float *q, size_t ldq, float *out, size_t ldo,
    struct attention_span *ret_spans) {
        size_t count = 0;

        for (size_t at = first; at < s->length; at += step, count++)
                ret_spans[count] = (struct attention_span){.blocks = s->blocks,
                    .first = at,
                    .count = s->length - at < step ? s->length - at : step,
                    .q = q + at * ldq,
                    .out = out + at * ldo};
        return count;
}

/* out[length][ldo], rows before `first` untouched. */
static void run_naive(struct compute *c, const struct scene *s, size_t first, size_t step, float *out) {
        struct attention_span *spans = alloc(s->length * sizeof(*spans));
        size_t count = cut(s, first, step, s->q, s->ldq, out, s->ldo, spans);
        struct packed p = pack(c, &s->kv_b.s);

        attention_naive(c, &s->kv, &p.l, &s->dims, s->scale, spans, count, s->ldq, s->ldo);
        free(p.memory);
        free(spans);
}

static void run_absorbed(struct compute *c, const struct scene *s, size_t first, size_t step, float *out) {
        const struct attention_dims *d = &s->dims;
        const size_t rank = s->kv.rank, width = s->kv.width, each = d->nope + d->v, stride = s->kv_b.s.row_stride;
        const float *w = s->kv_b.data;
        struct attention_span *spans = alloc(s->length * sizeof(*spans));
        void *uk_memory = alloc(head_linear_bytes(WEIGHT_F32, d->heads, rank, d->nope));
        void *uv_memory = alloc(head_linear_bytes(WEIGHT_F32, d->heads, d->v, rank));
        float *q = alloc(s->length * d->heads * width * sizeof(float));
        float *u = alloc(s->length * d->heads * rank * sizeof(float));
        struct head_linear uk, uv;
        struct error e;
        size_t count;

        assert_int_equal(
            head_linear_pack(c, WEIGHT_F32, w, each * stride, 1, stride, d->heads, rank, d->nope, uk_memory, &uk, &e),
            0);
        assert_int_equal(head_linear_pack(c, WEIGHT_F32, w + d->nope * stride, each * stride, stride, 1, d->heads, d->v,
                             rank, uv_memory, &uv, &e),
            0);
        head_linear_run(c, &uk, s->q, s->ldq, d->nope + d->rope, s->length, q, d->heads * width, width);
        for (size_t t = 0; t < s->length; t++)
                for (size_t h = 0; h < d->heads; h++)
                        memcpy(q + (t * d->heads + h) * width + rank,
                            s->q + t * s->ldq + h * (d->nope + d->rope) + d->nope, d->rope * sizeof(float));
        count = cut(s, first, step, q, d->heads * width, u, d->heads * rank, spans);
        attention_absorbed(c, &s->kv, d->heads, s->scale, spans, count, d->heads * width, d->heads * rank);
        head_linear_run(c, &uv, u + first * d->heads * rank, d->heads * rank, rank, s->length - first,
            out + first * s->ldo, s->ldo, d->v);
        free(spans);
        free(uk_memory);
        free(uv_memory);
        free(q);
        free(u);
}

/* The definition, in double. */
static void run_plain(const struct scene *s, size_t first, float *out) {
        const struct attention_dims *d = &s->dims;
        const size_t width = s->kv.width, each = d->nope + d->v;
        double *kv = alloc(s->length * each * sizeof(double)), *p = alloc(s->length * sizeof(double));

        for (size_t h = 0; h < d->heads; h++) {
                for (size_t t = 0; t < s->length; t++)
                        for (size_t i = 0; i < each; i++) {
                                const float *w = (const float *)s->kv_b.data + (h * each + i) * s->kv_b.s.row_stride;

                                kv[t * each + i] = 0;
                                for (size_t r = 0; r < s->kv.rank; r++)
                                        kv[t * each + i] += (double)w[r] * (double)s->latents[t * width + r];
                        }
                for (size_t t = first; t < s->length; t++) {
                        const float *q = s->q + t * s->ldq + h * (d->nope + d->rope);
                        double largest = -INFINITY, sum = 0;

                        for (size_t j = 0; j <= t; j++) {
                                p[j] = 0;
                                for (size_t i = 0; i < d->nope; i++)
                                        p[j] += (double)q[i] * kv[j * each + i];
                                for (size_t i = 0; i < d->rope; i++)
                                        p[j] += (double)q[d->nope + i] * (double)s->latents[j * width + s->kv.rank + i];
                                p[j] *= (double)s->scale;
                                largest = fmax(largest, p[j]);
                        }
                        for (size_t j = 0; j <= t; j++)
                                sum += p[j] = exp(p[j] - largest);
                        for (size_t i = 0; i < d->v; i++) {
                                double o = 0;

                                for (size_t j = 0; j <= t; j++)
                                        o += p[j] / sum * kv[j * each + d->nope + i];
                                out[t * s->ldo + h * d->v + i] = (float)o;
                        }
                }
        }
        free(kv);
        free(p);
}

static void compare(const struct scene *s, size_t first, const float *a, const float *b, double tolerance) {
        for (size_t t = first; t < s->length; t++) {
                const size_t n = s->dims.heads * s->dims.v;

                if (tolerance == 0)
                        same_floats(a + t * s->ldo, b + t * s->ldo, n);
                else
                        near_floats(a + t * s->ldo, b + t * s->ldo, n, tolerance);
        }
}

/* Tile borders at 64, segments at 256; heads that fill panels and that do not. */
static const struct {
        enum kv_type type;
        unsigned block_tokens, rank;
        size_t length;
        struct attention_dims dims;
} scenes[] = {
    {KV_F32, 16, 32, 1, {4, 16, 16, 16}},
    {KV_F32, 16, 48, 64, {3, 16, 8, 24}},
    {KV_BF16, 16, 40, 65, {5, 24, 8, 8}},
    {KV_F32, 64, 32, 130, {20, 16, 16, 16}},
    {KV_F32, 128, 30, 257, {4, 16, 10, 16}},
    {KV_BF16, 1, 64, 300, {40, 8, 8, 24}},
    {KV_F32, 7, 20, 700, {1, 5, 2, 3}},
};
#define COUNT(a) (sizeof(a) / sizeof((a)[0]))

static struct scene scene_at(size_t i) {
        return new_scene(
            i + 1, scenes[i].type, scenes[i].block_tokens, scenes[i].length, scenes[i].rank, scenes[i].dims);
}

static void both_forms_are_the_definition(void **state) {
        for (size_t i = 0; i < COUNT(scenes); i++) {
                struct scene s = scene_at(i);
                const size_t first = s.length > 80 ? s.length - 70 : 0;
                float *plain = alloc(s.length * s.ldo * sizeof(float)), *got = alloc(s.length * s.ldo * sizeof(float));

                run_plain(&s, first, plain);
                for (enum isa isa = ISA_SCALAR; isa <= best(); isa++) {
                        struct compute *c = new_compute(isa, 1, ACTIVATION_F32);

                        run_naive(c, &s, first, s.length, got);
                        compare(&s, first, got, plain, 1e-5);
                        run_absorbed(c, &s, first, s.length, got);
                        compare(&s, first, got, plain, 1e-5);
                        compute_free(c);
                }
                free(plain);
                free(got);
                free_scene(&s);
        }
}

static void every_isa_gives_the_same_bits(void **state) {
        for (size_t i = 0; i < COUNT(scenes); i++) {
                struct scene s = scene_at(i);
                const size_t first = s.length > 80 ? s.length - 70 : 0;
                float *expected[2], *got = alloc(s.length * s.ldo * sizeof(float));

                for (enum isa isa = ISA_SCALAR; isa <= best(); isa++) {
                        struct compute *c = new_compute(isa, 1, ACTIVATION_F32);

                        for (int absorbed = 0; absorbed < 2; absorbed++) {
                                if (isa == ISA_SCALAR)
                                        expected[absorbed] = alloc(s.length * s.ldo * sizeof(float));
                                (absorbed ? run_absorbed : run_naive)(
                                    c, &s, first, s.length, isa == ISA_SCALAR ? expected[absorbed] : got);
                                if (isa != ISA_SCALAR)
                                        compare(&s, first, got, expected[absorbed], 0);
                        }
                        compute_free(c);
                }
                free(got);
                free(expected[0]);
                free(expected[1]);
                free_scene(&s);
        }
}

static void any_cut_and_any_number_of_threads_give_the_same_bits(void **state) {
        static const size_t steps[] = {1, 13, 64, 200};
        static const unsigned threads[] = {1, 2, 3, 5};

        for (size_t i = 0; i < COUNT(scenes); i++) {
                struct scene s = scene_at(i);
                float *whole = alloc(s.length * s.ldo * sizeof(float)), *got = alloc(s.length * s.ldo * sizeof(float));
                struct compute *one = new_compute(ISA_BEST, 1, ACTIVATION_F32);

                for (int absorbed = 0; absorbed < 2; absorbed++) {
                        (absorbed ? run_absorbed : run_naive)(one, &s, 0, s.length, whole);
                        for (size_t j = 0; j < 4; j++) {
                                struct compute *c = new_compute(ISA_BEST, threads[j], ACTIVATION_F32);

                                (absorbed ? run_absorbed : run_naive)(c, &s, 0, steps[(i + j) % 4], got);
                                compare(&s, 0, got, whole, 0);
                                compute_free(c);
                        }
                }
                compute_free(one);
                free(whole);
                free(got);
                free_scene(&s);
        }
}

static void the_form_of_the_cache_blocks_changes_no_bit(void **state) {
        static const unsigned sizes[] = {1, 5, 64, 512};
        const struct attention_dims d = {4, 16, 8, 16};
        float *expected = NULL;

        for (size_t i = 0; i < COUNT(sizes); i++) {
                struct scene s = new_scene(77, KV_F32, sizes[i], 333, 40, d);
                struct compute *c = new_compute(ISA_BEST, 2, ACTIVATION_F32);
                float *got = alloc(2 * s.length * s.ldo * sizeof(float));

                run_naive(c, &s, 0, s.length, got);
                run_absorbed(c, &s, 0, s.length, got + s.length * s.ldo);
                if (expected) {
                        compare(&s, 0, got, expected, 0);
                        compare(&s, 0, got + s.length * s.ldo, expected + s.length * s.ldo, 0);
                        free(got);
                } else {
                        expected = got;
                }
                compute_free(c);
                free_scene(&s);
        }
        free(expected);
}

static void large_scores_do_not_overflow(void **state) {
        struct scene s = new_scene(5, KV_F32, 16, 90, 16, (struct attention_dims){2, 8, 8, 8});
        float *plain = alloc(s.length * s.ldo * sizeof(float)), *got = alloc(s.length * s.ldo * sizeof(float));
        struct compute *c = new_compute(ISA_BEST, 1, ACTIVATION_F32);

        s.scale = 300; /* scores in the thousands, of both signs */
        run_plain(&s, 0, plain);
        run_naive(c, &s, 0, s.length, got);
        compare(&s, 0, got, plain, 1e-2);
        run_absorbed(c, &s, 0, s.length, got);
        compare(&s, 0, got, plain, 1e-2);
        compute_free(c);
        free(plain);
        free(got);
        free_scene(&s);
}

/* 33,000 positions: queries near the end, several segments per block, a slab and chunks that do not divide. */
static void long_contexts_are_merged(void **state) {
        struct scene s = new_scene(6, KV_BF16, 32, 9000, 24, (struct attention_dims){3, 8, 8, 8});
        float *plain = alloc(s.length * s.ldo * sizeof(float)), *got = alloc(s.length * s.ldo * sizeof(float));
        struct compute *c = new_compute(ISA_BEST, 2, ACTIVATION_F32);

        run_plain(&s, s.length - 3, plain);
        run_naive(c, &s, s.length - 3, 3, got);
        compare(&s, s.length - 3, got, plain, 1e-5);
        run_absorbed(c, &s, s.length - 3, 3, got);
        compare(&s, s.length - 3, got, plain, 1e-5);
        compute_free(c);
        free(plain);
        free(got);
        free_scene(&s);
}

static void bf16_weights_of_heads_are_kept_exactly(void **state) {
        struct compute *c = new_compute(ISA_BEST, 2, ACTIVATION_F32);
        const size_t heads = 3, n = 40, k = 21, m = 5;
        struct rng r;
        float *w, *x, *y[2];
        struct error e;

        rng_seed(&r, 8);
        w = random_floats(&r, heads * n * k);
        x = random_floats(&r, m * heads * k);
        for (size_t i = 0; i < heads * n * k; i++)
                w[i] = bf16_to_float(float_to_bf16(w[i]));
        for (int i = 0; i < 2; i++) {
                enum weight_type type = i ? WEIGHT_BF16 : WEIGHT_F32;
                void *memory = alloc(head_linear_bytes(type, heads, n, k));
                struct head_linear h;

                assert_int_equal(head_linear_pack(c, type, w, n * k, k, 1, heads, n, k, memory, &h, &e), 0);
                y[i] = alloc(m * heads * n * sizeof(float));
                head_linear_run(c, &h, x, heads * k, k, m, y[i], heads * n, n);
                free(memory);
        }
        same_floats(y[0], y[1], m * heads * n);
        free(w);
        free(x);
        free(y[0]);
        free(y[1]);
        compute_free(c);
}

int main(void) {
        const struct CMUnitTest tests[] = {
            cmocka_unit_test(both_forms_are_the_definition),
            cmocka_unit_test(every_isa_gives_the_same_bits),
            cmocka_unit_test(any_cut_and_any_number_of_threads_give_the_same_bits),
            cmocka_unit_test(the_form_of_the_cache_blocks_changes_no_bit),
            cmocka_unit_test(large_scores_do_not_overflow),
            cmocka_unit_test(long_contexts_are_merged),
            cmocka_unit_test(bf16_weights_of_heads_are_kept_exactly),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
