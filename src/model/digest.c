/* digest.c - two checkpoints are the same model: see model_digest(). */
#include "base/buf.h"
#include "base/hash.h"
#include "model/weights.h"
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

static int compare_tensors(const void *a, const void *b) {
        return slice_cmp((*(const struct tensor *const *)a)->name, (*(const struct tensor *const *)b)->name);
}

/* What the rows of the cache depend on, whatever the weights' format. */
static void add_arithmetic(struct buf *b, const struct model_config *c) {
        buf_printf(b, "%s %u %u %u %u %u %u %u %u %u %u %u %u %u %u %u %u %u %u %d %d %a %a %a %u\n", c->architecture,
            c->vocab, c->hidden, c->layers, c->heads, c->q_lora, c->kv_rank, c->nope, c->rope, c->v, c->dense_width,
            c->expert_width, c->dense_layers, c->moe_freq, c->experts, c->shared_experts, c->top_k, c->groups,
            c->top_groups, c->gate, c->norm_topk, (double)c->routed_scale, (double)c->eps, (double)c->softmax_scale,
            c->max_positions);
        buf_printf(b, "%d %a %a %a %a %a %a %u\n", c->rope_scaling.yarn, c->rope_scaling.theta, c->rope_scaling.factor,
            c->rope_scaling.beta_fast, c->rope_scaling.beta_slow, c->rope_scaling.mscale,
            c->rope_scaling.mscale_all_dim, c->rope_scaling.original);
}

static void write_digest(const struct buf *b, char ret_digest[33]) {
        struct hash128 h = hash128(buf_slice(b), 0);

        snprintf(ret_digest, 33, "%016llx%016llx", (unsigned long long)h.hi, (unsigned long long)h.lo);
}

int model_cache_digest(const struct model_config *config, char ret_digest[33]) {
        struct buf b = {0};
        bool ok;

        add_arithmetic(&b, config);
        ok = buf_ok(&b);
        if (ok)
                write_digest(&b, ret_digest);
        buf_free(&b);
        return ok ? 0 : -ENOMEM;
}

/* Small, held by every rank, and different in every fine-tune. */
static bool contents_count(const struct tensor *t) {
        return slice_ends(t->name, SLICE_LIT("norm.weight")) || slice_ends(t->name, SLICE_LIT("norm.module.weight"));
}

static void add_tensor(struct buf *b, const struct tensor *t) {
        buf_add(b, t->name);
        buf_printf(b, " %s", dtype_name(t->dtype));
        for (unsigned i = 0; i < t->rank; i++)
                buf_printf(b, " %llu", (unsigned long long)t->shape[i]);
        if (contents_count(t)) {
                struct hash128 h = hash128(slice_of(t->data, t->bytes), 0);

                buf_printf(b, " %016llx%016llx", (unsigned long long)h.hi, (unsigned long long)h.lo);
        }
        buf_add_char(b, '\n');
}

int digest_make(const struct model_config *config, const struct weights *w, char ret_digest[33], struct error *e) {
        const struct tensor **sorted = calloc(w->files.count + 1, sizeof(*sorted));
        struct buf b = {0};

        for (size_t i = 0; sorted && i < w->files.count; i++)
                sorted[i] = &w->files.tensors[i];
        if (sorted) {
                qsort(sorted, w->files.count, sizeof(*sorted), compare_tensors);
                add_arithmetic(&b, config);
                buf_printf(&b, "%d %u %u %d\n", config->fp8, config->fp8_block_n, config->fp8_block_k, config->tied);
                for (size_t i = 0; i < w->files.count; i++)
                        add_tensor(&b, sorted[i]);
        }
        if (!sorted || !buf_ok(&b)) {
                free(sorted);
                buf_free(&b);
                return error_set(e, -ENOMEM, "out of memory");
        }
        write_digest(&b, ret_digest);
        free(sorted);
        buf_free(&b);
        return 0;
}
