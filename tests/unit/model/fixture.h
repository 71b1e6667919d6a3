/* fixture.h - a reference checkpoint loaded together with its expected values. */
#pragma once
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "base/json.h"
#include "model/model.h"
#include "model/safetensors.h"
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

struct fixture {
        struct compute *compute;
        struct model *model;
        struct kv_cache kv;
        struct checkpoint *expected;
        yyjson_doc *cases;
        uint32_t *blocks; /* a table over the whole cache, in an order that is not that of memory */
        float *logits, *hidden;
        uint32_t vocab;
};

#define FIXTURE_BLOCK 16

static inline const char *data_path(const char *name) {
        static char path[4096];

        snprintf(path, sizeof(path), "%s/tests/data/model/%s", getenv("BATON_SOURCE"), name);
        return path;
}

static inline struct fixture fixture_open(
    const char *name, enum activation activation, unsigned threads, uint32_t block_tokens) {
        struct compute_options co = {.isa = ISA_BEST, .threads = threads, .activation = activation};
        struct model_options mo = {0};
        struct fixture f = {0};
        struct error e = {0};
        char path[4200];
        const char *dir = data_path(name);

        assert_int_equal(compute_new(&co, &f.compute, &e), 0);
        mo.dir = dir;
        mo.compute = f.compute;
        snprintf(path, sizeof(path), "%s", dir);
        {
                struct model_config c;

                assert_int_equal(model_config_read(dir, &c, &e), 0);
                mo.load_mtp = c.mtp_layers > 0;
        }
        if (model_load(&mo, &f.model, &e) < 0)
                fail_msg("%s: %s", name, e.text);
        f.vocab = model_config(f.model)->vocab;
        assert_int_equal(kv_cache_new(f.model, KV_F32, block_tokens, 256 / block_tokens + 2, &f.kv, &e), 0);
        f.blocks = calloc(f.kv.blocks, sizeof(*f.blocks));
        for (uint32_t i = 0; i < f.kv.blocks; i++)
                f.blocks[i] = (i * 5 + 1) % f.kv.blocks;
        if (f.kv.blocks % 5 == 0)
                for (uint32_t i = 0; i < f.kv.blocks; i++)
                        f.blocks[i] = f.kv.blocks - 1 - i;
        snprintf(path, sizeof(path), "%s/expected", dir);
        if (checkpoint_open(path, "expected", &f.expected, &e) < 0)
                fail_msg("%s", e.text);
        snprintf(path, sizeof(path), "%s/expected/cases.json", dir);
        assert_int_equal(json_parse_file(path, 1 << 24, &f.cases, &e), 0);
        f.logits = calloc((size_t)f.vocab * 300, sizeof(float));
        f.hidden = calloc((size_t)model_config(f.model)->hidden * 300, sizeof(float));
        return f;
}

static inline void fixture_close(struct fixture *f) {
        kv_cache_free(&f->kv);
        model_free(f->model);
        compute_free(f->compute);
        checkpoint_close(f->expected);
        yyjson_doc_free(f->cases);
        free(f->blocks);
        free(f->logits);
        free(f->hidden);
}

static inline const struct tensor *expected(const struct fixture *f, const char *kind, int i, const char *what) {
        char name[64];

        snprintf(name, sizeof(name), "%s%d.%s", kind, i, what);
        return checkpoint_find(f->expected, name);
}

/* Run positions [first, first+rows) of `tokens`; the first `naive` rows naively. Logits of all rows into f->logits. */
static inline void run_rows(struct fixture *f, const uint32_t *tokens, uint32_t first, uint32_t rows, uint32_t naive) {
        struct model_span span = {f->blocks, first, rows, naive};
        uint32_t all[300];
        struct model_step step = {tokens + first, rows, &span, 1, all, rows};

        for (uint32_t i = 0; i < rows; i++)
                all[i] = i;
        assert_int_equal(model_forward(f->model, &f->kv, &step, f->logits, f->hidden), 0);
}

static inline uint32_t best_of(const float *x, uint32_t n) {
        uint32_t best = 0;

        for (uint32_t i = 1; i < n; i++)
                if (x[i] > x[best])
                        best = i;
        return best;
}

/* The worst |x - y| over a row, relative to the largest |y|. */
static inline double row_error(const float *x, const float *y, uint32_t n) {
        double worst = 0, largest = 0;

        for (uint32_t i = 0; i < n; i++) {
                double off = fabs((double)x[i] - y[i]);

                if (!(off <= worst)) /* NaN counts as the worst */
                        worst = off;
                largest = fmax(largest, fabs(y[i]));
        }
        return worst / largest;
}
