/* fixture.h - what the model tests share: a reference checkpoint loaded together with its expected values. */
#pragma once
#include "base/json.h"
#include "model/model.h"
#include "model/safetensors.h"
#include <errno.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

#define FIXTURE_BLOCK 16u
/* Rows of any step here, and positions of any sequence: every fixture has 256. */
#define FIXTURE_ROWS 256u

static const char *const fixture_names[] = {
    "v2-greedy", "v2-group", "v3-bf16", "v3-f32", "v3-fp8", "v3-fp8-ue8m0", "v3-mscale", "v3-w8a8", "v3-w8a8-int64"};
#define FIXTURES (sizeof(fixture_names) / sizeof(*fixture_names))

struct fixture {
        const char *name;
        struct compute *compute;
        struct model *model;
        struct kv_cache kv;
        struct safetensors expected;
        yyjson_doc *cases;
        uint32_t *blocks; /* a table over the whole cache, in an order that is not that of memory */
        float *logits, *hidden;
        uint32_t vocab, width; /* width: of hidden */
};

struct fixture_options {
        enum activation activation;
        enum isa isa; /* 0 is ISA_SCALAR: set it */
        unsigned threads;
        uint32_t block_tokens;
        enum kv_type kv_type;
};
#define FIXTURE_DEFAULTS .isa = ISA_BEST, .threads = 2, .block_tokens = FIXTURE_BLOCK

static inline const char *data_path(const char *name, const char *file) {
        static char paths[4][4096];
        static unsigned at;
        char *path = paths[at++ % 4];

        snprintf(path, 4096, "%s/tests/data/model/%s%s%s", getenv("BATON_SOURCE"), name, *file ? "/" : "", file);
        return path;
}

static inline struct compute *fixture_compute(const struct fixture_options *o) {
        struct compute_options co = {.isa = o->isa, .threads = o->threads, .activation = o->activation};
        struct compute *c = NULL;
        struct error e = {{0}};

        if (compute_new(&co, &c, &e) < 0)
                fail_msg("%s", e.text);
        return c;
}

static inline struct model *fixture_model(const char *dir, struct compute *c, struct model_shard shard) {
        struct model_options o = {.dir = dir, .compute = c, .shard = shard};
        struct model_config config;
        struct model *m = NULL;
        struct error e = {{0}};

        if (model_config_read(dir, &config, &e) < 0)
                fail_msg("%s", e.text);
        o.load_mtp = config.mtp_layers > 0;
        if (model_load(&o, &m, &e) < 0)
                fail_msg("%s", e.text);
        return m;
}

/* A cache for `positions` positions and a table over it that jumps. */
static inline uint32_t *fixture_cache(
    const struct model *m, enum kv_type type, uint32_t block_tokens, uint32_t positions, struct kv_cache *ret_kv) {
        uint32_t count = (positions + block_tokens - 1) / block_tokens;
        uint32_t *blocks = calloc(count, sizeof(*blocks));
        struct error e = {{0}};

        assert_non_null(blocks);
        if (kv_cache_new(m, type, block_tokens, count + 3, ret_kv, &e) < 0)
                fail_msg("%s", e.text);
        for (uint32_t i = 0; i < count; i++) /* odd ones from the front, even ones from the back */
                blocks[i] = i % 2 ? i / 2 : count + 2 - i / 2;
        return blocks;
}

static inline struct fixture fixture_open(const char *name, const struct fixture_options *o) {
        struct fixture f = {.name = name, .compute = fixture_compute(o)};
        struct error e = {{0}};

        f.model = fixture_model(data_path(name, ""), f.compute, (struct model_shard){0});
        f.vocab = model_config(f.model)->vocab;
        f.width = model_config(f.model)->hidden;
        f.blocks = fixture_cache(f.model, o->kv_type, o->block_tokens, FIXTURE_ROWS, &f.kv);
        if (safetensors_add_file(&f.expected, data_path(name, "expected/expected.safetensors"), &e) < 0 ||
            json_parse_file(data_path(name, "expected/cases.json"), 1 << 24, &f.cases, &e) < 0)
                fail_msg("%s", e.text);
        f.logits = calloc((size_t)f.vocab * FIXTURE_ROWS, sizeof(float));
        f.hidden = calloc((size_t)f.width * FIXTURE_ROWS, sizeof(float));
        assert_true(f.logits && f.hidden);
        return f;
}

static inline void fixture_close(struct fixture *f) {
        kv_cache_free(&f->kv);
        model_free(f->model);
        compute_free(f->compute);
        safetensors_close(&f->expected);
        yyjson_doc_free(f->cases);
        free(f->blocks);
        free(f->logits);
        free(f->hidden);
}

/* The tensor {kind}{i}.{what}, or NULL. */
static inline const struct tensor *expected(const struct fixture *f, const char *kind, int i, const char *what) {
        char name[64];

        snprintf(name, sizeof(name), "%s%d.%s", kind, i, what);
        return safetensors_find(&f->expected, slice_str(name));
}

/* Of cases.json: the i-th member of a list. */
static inline yyjson_val *case_info(const struct fixture *f, const char *list, int i) {
        return yyjson_arr_get(json_get(yyjson_doc_get_root(f->cases), list), (size_t)i);
}

static inline const uint32_t *tensor_ids(const struct tensor *t) {
        return (const uint32_t *)(const void *)t->data;
}

static inline const float *tensor_floats(const struct tensor *t) {
        return (const float *)(const void *)t->data;
}

/* The prompt of a case into `tokens`. Returns its length. */
static inline uint32_t load_prompt(const struct fixture *f, const char *kind, int i, uint32_t *tokens) {
        const struct tensor *t = expected(f, kind, i, "prompt");

        memcpy(tokens, t->data, t->bytes);
        return (uint32_t)t->shape[0];
}

static const uint32_t row_numbers_storage[1] = {0};
static inline const uint32_t *row_numbers(uint32_t *to, uint32_t n) {
        for (uint32_t i = 0; i < n; i++)
                to[i] = i;
        return n ? to : row_numbers_storage;
}

/* Run positions [first, first + rows) of a sequence, the first `naive` rows naively. All logits and hidden states. */
static inline void run_rows(struct fixture *f, const uint32_t *tokens, uint32_t first, uint32_t rows, uint32_t naive) {
        struct model_span span = {f->blocks, first, rows, naive};
        uint32_t all[FIXTURE_ROWS];
        struct model_step step = {.tokens = tokens + first,
            .rows = rows,
            .spans = &span,
            .span_count = 1,
            .logit_rows = row_numbers(all, rows),
            .logit_count = rows};

        assert_int_equal(model_forward(f->model, &f->kv, &step, f->logits, f->hidden), 0);
}

static inline uint32_t best_of(const float *x, uint32_t n) {
        uint32_t best = 0;

        for (uint32_t i = 1; i < n; i++)
                if (x[i] > x[best])
                        best = i;
        return best;
}

/* The worst |x - y| over a row, relative to the largest |y|; NaN counts as infinite. */
static inline double row_error(const float *x, const float *y, size_t n) {
        double worst = 0, largest = 0;

        for (size_t i = 0; i < n; i++) {
                double off = fabs((double)x[i] - (double)y[i]);

                if (isnan(off))
                        return INFINITY;
                worst = fmax(worst, off);
                largest = fmax(largest, fabs((double)y[i]));
        }
        return worst / largest;
}

static inline void same_bits(const float *a, const float *b, size_t n, const char *what) {
        for (size_t i = 0; i < n; i++)
                if (memcmp(&a[i], &b[i], sizeof(float)) != 0)
                        fail_msg("%s: value %zu is %.9g, not %.9g", what, i, (double)a[i], (double)b[i]);
}
