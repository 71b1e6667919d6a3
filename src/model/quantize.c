/* quantize.c - a quantised copy of a checkpoint: what becomes of each tensor, file by file. */
#include "model/quantize.h"
#include "model/weights.h"
#include <errno.h>
#include <stdlib.h>

/* A config.json is some kilobytes. */
#define CONFIG_BYTES_MAX ((size_t)16 << 20)
/* Sums of int8 are exact up to so many columns (kernels.h). */
#define INT8_COLUMNS_MAX 131071
/* Of tensors that are only copied, at a time. */
#define COPY_BYTES ((size_t)16 << 20)

struct quantizer {
        const struct quantize_options *o;
        struct model_config config;
        struct weights w;
        struct layer_ranges *ranges; /* of the static formats */
        struct slab slab;
        struct new_folder folder;
        struct error *e;
};

/* ---- what becomes of a tensor --------------------------------------------------------------------------------------- */

enum fate { COPIED, LEFT_OUT, TO_BF16, TO_INT8_DYNAMIC, TO_INT8_STATIC, TO_INT8_MIX, TO_FP8 };

enum part { PART_OTHER, PART_ATTENTION, PART_KV_B, PART_MLP };

/* A weight by its name, as in "model.layers.3.mlp.experts.7.up_proj.weight". */
static enum part part_of(struct slice name, uint32_t *ret_layer, enum range_place *ret_place) {
        static const struct {
                const char *name;
                enum range_place place;
        } attention[] = {{"self_attn.q_proj", RANGE_HIDDEN}, {"self_attn.q_a_proj", RANGE_HIDDEN},
            {"self_attn.kv_a_proj_with_mqa", RANGE_HIDDEN}, {"self_attn.q_b_proj", RANGE_Q_B},
            {"self_attn.o_proj", RANGE_O}};
        const struct slice begin = SLICE_LIT("model.layers."), end = SLICE_LIT(".weight");
        struct slice number;
        uint64_t layer;

        if (!slice_starts(name, begin) || !slice_ends(name, end))
                return PART_OTHER;
        name = slice_sub(name, begin.len, name.len - end.len);
        if (!slice_split(&name, '.', &number) || slice_to_u64(number, &layer) < 0 || layer > UINT32_MAX)
                return PART_OTHER;
        *ret_layer = (uint32_t)layer;
        for (size_t i = 0; i < sizeof(attention) / sizeof(*attention); i++)
                if (slice_is(name, attention[i].name)) {
                        *ret_place = attention[i].place;
                        return PART_ATTENTION;
                }
        if (slice_is(name, "self_attn.kv_b_proj"))
                return PART_KV_B;
        return slice_starts(name, SLICE_LIT("mlp.")) &&
                       (slice_ends(name, SLICE_LIT(".gate_proj")) || slice_ends(name, SLICE_LIT(".up_proj")) ||
                           slice_ends(name, SLICE_LIT(".down_proj")))
                   ? PART_MLP
                   : PART_OTHER;
}

/* *ret_layer and *ret_place say where the range of static activations is. */
static enum fate fate_of(
    const struct quantizer *q, const struct tensor *t, uint32_t *ret_layer, enum range_place *ret_place) {
        enum part part = part_of(t->name, ret_layer, ret_place);

        /* Companions of an old weight go with it; the new one's are made. */
        if (slice_ends(t->name, SLICE_LIT(".weight_scale_inv")))
                return LEFT_OUT;
        if (q->o->format == QUANTIZE_FP8 && part != PART_OTHER)
                return TO_FP8;
        if (part == PART_OTHER || part == PART_KV_B)
                return t->dtype == DTYPE_F8_E4M3 ? TO_BF16 : COPIED;
        if (q->o->format == QUANTIZE_W8A8_DYNAMIC || part == PART_MLP || *ret_layer >= q->config.layers)
                return TO_INT8_DYNAMIC;
        return q->o->format == QUANTIZE_W8A8_MIX ? TO_INT8_MIX : TO_INT8_STATIC;
}

/* ---- planning ------------------------------------------------------------------------------------------------------- */

/* No tensor becomes more. */
#define BECOMES_MAX 7u

/* A tensor of the old checkpoint and its first in the new one. */
struct conversion {
        const struct tensor *from;
        enum fate fate;
        uint32_t layer;         /* TO_INT8_STATIC, TO_INT8_MIX */
        enum range_place place; /* likewise */
        struct new_tensor *to;
};

struct file_plan {
        struct arena arena;
        struct conversion *conversions;
        size_t conversion_count;
        struct new_tensor *tensors;
        size_t tensor_count;
};

/* "X.weight" with another end than ".weight". */
static struct slice sibling(struct arena *arena, struct slice weight, const char *end) {
        struct slice stem = slice_sub(weight, 0, weight.len - strlen(".weight"));

        return slice_str(arena_printf(arena, "%.*s%s", SLICE_ARG(stem), end));
}

static void add_tensor(struct file_plan *p, struct slice name, enum dtype dtype, const char *kind, unsigned rank,
    uint64_t rows, uint64_t columns) {
        p->tensors[p->tensor_count++] =
            (struct new_tensor){.name = name, .dtype = dtype, .rank = rank, .shape = {rows, columns}, .kind = kind};
}

/* Activations are scaled per token. */
static void plan_dynamic(struct file_plan *p, const struct tensor *t, const char *kind) {
        add_tensor(p, sibling(&p->arena, t->name, ".weight_scale"), DTYPE_F32, kind, 2, t->shape[0], 1);
        add_tensor(p, sibling(&p->arena, t->name, ".weight_offset"), DTYPE_F32, kind, 2, t->shape[0], 1);
}

/* They have one scale and offset. Engines of f16 models read the bits of a float in an int64. */
static void plan_static(struct file_plan *p, const struct tensor *t, const char *kind) {
        add_tensor(p, sibling(&p->arena, t->name, ".input_scale"), DTYPE_F32, kind, 1, 1, 0);
        add_tensor(p, sibling(&p->arena, t->name, ".input_offset"), DTYPE_F32, kind, 1, 1, 0);
        add_tensor(p, sibling(&p->arena, t->name, ".quant_bias"), DTYPE_I32, kind, 1, t->shape[0], 0);
        add_tensor(p, sibling(&p->arena, t->name, ".deq_scale"), t->dtype == DTYPE_F16 ? DTYPE_I64 : DTYPE_F32, kind, 1,
            t->shape[0], 0);
}

static void plan_tensor(struct file_plan *p, const struct conversion *c) {
        static const enum ascend_kind kinds[] = {[COPIED] = ASCEND_FLOAT,
            [TO_BF16] = ASCEND_FLOAT,
            [TO_FP8] = ASCEND_FLOAT,
            [TO_INT8_DYNAMIC] = ASCEND_DYNAMIC,
            [TO_INT8_STATIC] = ASCEND_STATIC,
            [TO_INT8_MIX] = ASCEND_MIX};
        const char *kind = ascend_kind_name(kinds[c->fate]);
        const struct tensor *t = c->from;
        const uint64_t n = t->shape[0], k = t->shape[1];

        switch (c->fate) {
        case COPIED:
                add_tensor(p, t->name, t->dtype, kind, t->rank, n, k);
                return;
        case LEFT_OUT:
                return;
        case TO_BF16:
                add_tensor(p, t->name, DTYPE_BF16, kind, 2, n, k);
                return;
        case TO_FP8:
                add_tensor(p, t->name, DTYPE_F8_E4M3, kind, 2, n, k);
                add_tensor(p, sibling(&p->arena, t->name, ".weight_scale_inv"), DTYPE_F32, kind, 2,
                    (n + QUANTIZE_BLOCK - 1) / QUANTIZE_BLOCK, (k + QUANTIZE_BLOCK - 1) / QUANTIZE_BLOCK);
                return;
        case TO_INT8_DYNAMIC:
        case TO_INT8_STATIC:
        case TO_INT8_MIX:
                add_tensor(p, t->name, DTYPE_I8, kind, 2, n, k);
                if (c->fate != TO_INT8_STATIC)
                        plan_dynamic(p, t, kind);
                if (c->fate != TO_INT8_DYNAMIC)
                        plan_static(p, t, kind);
                return;
        }
}

static bool is_int8(enum fate fate) {
        return fate == TO_INT8_DYNAMIC || fate == TO_INT8_STATIC || fate == TO_INT8_MIX;
}

static int check_tensor(const struct quantizer *q, const struct conversion *c) {
        const struct tensor *t = c->from;

        if (c->fate == COPIED && (t->rank > 2 || t->dtype == DTYPE_OTHER))
                return weights_blame(&q->w, t, q->e, "is no weight of this model: it cannot be copied");
        if (c->fate != COPIED && c->fate != LEFT_OUT && t->rank != 2)
                return weights_blame(&q->w, t, q->e, "has %u dimensions, a matrix is needed", t->rank);
        if (is_int8(c->fate) && t->shape[1] > INT8_COLUMNS_MAX)
                return weights_blame(&q->w, t, q->e, "has %llu columns, int8 takes %d", (unsigned long long)t->shape[1],
                    INT8_COLUMNS_MAX);
        return 0;
}

static int plan_file(struct quantizer *q, uint32_t file, struct file_plan *p) {
        const struct safetensors *files = &q->w.files;
        size_t count = 0;
        int r = 0;

        for (size_t i = 0; i < files->count; i++)
                count += files->tensors[i].file == file;
        p->conversions = arena_array(&p->arena, count, sizeof(*p->conversions));
        p->tensors = arena_array(&p->arena, count, BECOMES_MAX * sizeof(*p->tensors));
        if (!p->conversions || !p->tensors)
                return error_set(q->e, -ENOMEM, "out of memory");
        for (size_t i = 0; r == 0 && i < files->count; i++) {
                struct conversion *c = &p->conversions[p->conversion_count];

                if (files->tensors[i].file != file)
                        continue;
                *c = (struct conversion){.from = &files->tensors[i], .to = p->tensors + p->tensor_count};
                c->fate = fate_of(q, c->from, &c->layer, &c->place);
                r = check_tensor(q, c);
                if (r == 0)
                        plan_tensor(p, c);
                p->conversion_count++;
        }
        for (size_t i = 0; r == 0 && i < p->tensor_count; i++)
                if (!p->tensors[i].name.ptr)
                        r = error_set(q->e, -ENOMEM, "out of memory");
        return r;
}

/* ---- writing -------------------------------------------------------------------------------------------------------- */

static int copy(struct quantizer *q, const struct conversion *c, struct new_file *f) {
        const struct tensor *t = c->from;
        int r = 0;

        for (size_t at = 0; r == 0 && at < t->bytes; at += COPY_BYTES)
                r = new_file_write(
                    f, c->to->begin + at, t->data + at, t->bytes - at < COPY_BYTES ? t->bytes - at : COPY_BYTES, q->e);
        weights_drop(t);
        return r;
}

/* An item for each of rows [first, first + rows) of a tensor that has one for every row. */
static int write_column(
    struct quantizer *q, struct new_file *f, const struct new_tensor *t, const void *items, size_t first, size_t rows) {
        const size_t size = dtype_bytes(t->dtype);

        return new_file_write(f, t->begin + first * size, items, rows * size, q->e);
}

/* `to` as plan_static() added them. Spends the slab's scales and sums. */
static int write_static(struct quantizer *q, const struct conversion *c, const struct new_tensor *to,
    struct new_file *f, size_t first, size_t rows) {
        const struct input_scale input = input_scale_of(q->ranges[c->layer].at[c->place]);
        const struct new_tensor *scale = &to[0], *offset = &to[1], *bias = &to[2], *deq = &to[3];
        struct slab *s = &q->slab;
        int64_t wide[QUANTIZE_BLOCK] = {0};
        int r = new_file_write(f, scale->begin, &input.scale, sizeof(input.scale), q->e);

        if (r == 0)
                r = new_file_write(f, offset->begin, &input.offset, sizeof(input.offset), q->e);
        for (size_t i = 0; i < rows; i++) {
                s->sums[i] *= -(int32_t)input.offset;
                s->scales[i] *= input.scale;
                memcpy(&wide[i], &s->scales[i], sizeof(s->scales[i]));
        }
        if (r == 0)
                r = write_column(q, f, bias, s->sums, first, rows);
        return r < 0 ? r
                     : write_column(q, f, deq, deq->dtype == DTYPE_I64 ? (const void *)wide : s->scales, first, rows);
}

/* What stands beside the codes of rows [first, first + rows). Offsets of weights are zero, as the file is. */
static int write_companions(
    struct quantizer *q, const struct conversion *c, struct new_file *f, size_t first, size_t rows) {
        const struct new_tensor *to = &c->to[1];
        int r;

        switch (c->fate) {
        case TO_FP8:
                return new_file_write(f, to->begin + first / QUANTIZE_BLOCK * to->shape[1] * sizeof(float),
                    q->slab.block_scales, to->shape[1] * sizeof(float), q->e);
        case TO_INT8_DYNAMIC:
                return write_column(q, f, to, q->slab.scales, first, rows);
        case TO_INT8_STATIC:
                return write_static(q, c, to, f, first, rows);
        case TO_INT8_MIX:
                r = write_column(q, f, to, q->slab.scales, first, rows);
                return r < 0 ? r : write_static(q, c, to + 2, f, first, rows);
        default:
                return 0;
        }
}

int quantize_go_on(const struct quantize_options *o, struct error *e) {
        return o->stop && *o->stop ? error_set(e, -ECANCELED, "interrupted: %s is not there", o->to) : 0;
}

static int convert_rows(struct quantizer *q, const struct conversion *c, const struct weight_source *source,
    struct new_file *f, size_t first, size_t rows) {
        const size_t row_bytes = source->k * dtype_bytes(c->to->dtype);
        int r = quantize_go_on(q->o, q->e);

        if (r < 0)
                return r;
        r = c->fate == TO_FP8    ? slab_to_fp8(&q->slab, source, first, rows)
            : c->fate == TO_BF16 ? slab_to_bf16(&q->slab, source, first, rows)
                                 : slab_to_int8(&q->slab, source, first, rows);

        if (r < 0)
                return weights_blame(&q->w, c->from, q->e, "holds a value that is no number");
        r = new_file_write(f, c->to->begin + first * row_bytes, q->slab.codes, rows * row_bytes, q->e);
        return r < 0 ? r : write_companions(q, c, f, first, rows);
}

static int convert(struct quantizer *q, const struct conversion *c, struct new_file *f) {
        const struct tensor *t = c->from;
        const struct cut all = cut_none(t->shape[0], t->shape[1]);
        struct slice stem = slice_sub(t->name, 0, t->name.len - strlen(".weight"));
        struct weight_source source;
        char *name = slice_dup(stem);
        int r = name ? weights_source(&q->w, name, &all, &source, q->e) : error_set(q->e, -ENOMEM, "out of memory");

        for (size_t first = 0; r == 0 && first < all.n; first += QUANTIZE_BLOCK)
                r = convert_rows(
                    q, c, &source, f, first, all.n - first < QUANTIZE_BLOCK ? all.n - first : QUANTIZE_BLOCK);
        if (name)
                weights_done(&q->w, name);
        free(name);
        return r;
}

static int write_file(struct quantizer *q, uint32_t number) {
        struct file_plan p = {0};
        struct new_file f;
        int r = plan_file(q, number, &p);

        if (r == 0)
                r = new_file_open(&q->folder, number, p.tensors, p.tensor_count, &f, q->e);
        if (r == 0) {
                for (size_t i = 0; r == 0 && i < p.conversion_count; i++) {
                        const struct conversion *c = &p.conversions[i];

                        if (c->fate != LEFT_OUT)
                                r = c->fate == COPIED ? copy(q, c, &f) : convert(q, c, &f);
                }
                r = new_file_close(&f, r, q->e);
        }
        arena_free(&p.arena);
        if (r == 0 && q->o->progress)
                q->o->progress(q->o->context, "wrote file", number + 1, q->w.files.file_count);
        return r;
}

/* ---- config.json ---------------------------------------------------------------------------------------------------- */

static bool add_fp8(yyjson_mut_doc *doc, yyjson_mut_val *root) {
        yyjson_mut_val *q = yyjson_mut_obj_add_obj(doc, root, "quantization_config");
        yyjson_mut_val *size;

        if (!q || !yyjson_mut_obj_add_str(doc, q, "activation_scheme", "dynamic") ||
            !yyjson_mut_obj_add_str(doc, q, "fmt", "e4m3") || !yyjson_mut_obj_add_str(doc, q, "quant_method", "fp8"))
                return false;
        size = yyjson_mut_obj_add_arr(doc, q, "weight_block_size");
        return size && yyjson_mut_arr_add_int(doc, size, QUANTIZE_BLOCK) &&
               yyjson_mut_arr_add_int(doc, size, QUANTIZE_BLOCK);
}

/* As it was, but for what it says about the weights' format. */
static char *edit_config(yyjson_doc *old, bool fp8, size_t *ret_len) {
        yyjson_mut_doc *doc = yyjson_doc_mut_copy(old, NULL);
        yyjson_mut_val *root = yyjson_mut_doc_get_root(doc);
        char *text = NULL;

        if (root)
                yyjson_mut_obj_remove_key(root, "quantization_config");
        if (root && (!fp8 || add_fp8(doc, root)))
                text = yyjson_mut_write(doc, YYJSON_WRITE_PRETTY_TWO_SPACES, ret_len);
        yyjson_mut_doc_free(doc);
        return text;
}

static int write_config(struct quantizer *q) {
        char *path = arena_printf(&q->w.scratch, "%s/config.json", q->o->from), *text;
        yyjson_doc *doc = NULL;
        size_t len = 0;
        int r = path ? json_parse_file(path, CONFIG_BYTES_MAX, &doc, q->e) : error_set(q->e, -ENOMEM, "out of memory");

        if (r < 0)
                return r;
        text = edit_config(doc, q->o->format == QUANTIZE_FP8, &len);
        yyjson_doc_free(doc);
        if (!text)
                return error_set(q->e, -ENOMEM, "out of memory");
        r = new_folder_write(&q->folder, "config.json", slice_of(text, len), q->e);
        free(text);
        return r;
}

/* ---- the whole ------------------------------------------------------------------------------------------------------ */

static int open_old(struct quantizer *q) {
        const struct model_options m = {.dir = q->o->from, .compute = q->o->compute};
        int r = model_config_read(q->o->from, &q->config, q->e);

        if (r == 0)
                r = weights_open(&m, &q->config, &q->w, q->e);
        if (r == 0 && q->w.ascend)
                r = error_set(q->e, -EINVAL,
                    "%s is quantised already (quant_model_description*.json); quantise what it was made from",
                    q->o->from);
        if (r == 0 && q->config.fp8 && q->o->format == QUANTIZE_FP8)
                r = error_set(q->e, -EINVAL, "%s is fp8 already (quantization_config in config.json)", q->o->from);
        return r < 0 ? r : model_check(&m, q->e);
}

static int make_slab(struct quantizer *q) {
        size_t columns = 0;

        for (size_t i = 0; i < q->w.files.count; i++) {
                const struct tensor *t = &q->w.files.tensors[i];

                if (t->rank == 2 && t->shape[1] > columns)
                        columns = t->shape[1];
        }
        return slab_init(&q->slab, q->o->compute, columns) < 0
                   ? error_set(q->e, -ENOMEM, "out of memory for %u rows of %zu columns", QUANTIZE_BLOCK, columns)
                   : 0;
}

/* Hours of work are not begun for a disk that cannot hold them. */
static int check_space(struct quantizer *q) {
        uint64_t bytes = 0;
        int r = 0;

        for (uint32_t i = 0; r == 0 && i < q->w.files.file_count; i++) {
                struct file_plan p = {0};

                r = plan_file(q, i, &p);
                for (size_t k = 0; r == 0 && k < p.tensor_count; k++)
                        bytes += new_tensor_bytes(&p.tensors[k]);
                arena_free(&p.arena);
        }
        return r < 0 ? r : new_folder_check_space(&q->folder, bytes, q->e);
}

static int write_all(struct quantizer *q) {
        static const struct {
                const char *stem, *type;
        } formats[] = {
            [QUANTIZE_W8A8_DYNAMIC] = {"quant_model_weight_w8a8_dynamic", "W8A8_DYNAMIC"},
            [QUANTIZE_W8A8_STATIC] = {"quant_model_weight_w8a8", "W8A8"},
            [QUANTIZE_W8A8_MIX] = {"quant_model_weight_w8a8_mix", "W8A8_MIX"},
            [QUANTIZE_FP8] = {"model", NULL},
        };
        const char *type = formats[q->o->format].type;
        int r = new_folder_open(&q->folder, q->o->to, formats[q->o->format].stem, q->w.files.file_count, q->e);

        if (r == 0)
                r = check_space(q);
        if (r == 0 && (q->o->format == QUANTIZE_W8A8_STATIC || q->o->format == QUANTIZE_W8A8_MIX))
                r = calibrate(q->o, &q->ranges, q->e);
        if (r == 0)
                r = new_folder_copy_rest(&q->folder, q->o->from, q->e);
        if (r == 0)
                r = write_config(q);
        for (uint32_t i = 0; r == 0 && i < q->w.files.file_count; i++)
                r = write_file(q, i);
        if (r == 0)
                r = new_folder_write_index(&q->folder, q->e);
        if (r == 0 && type)
                r = new_folder_write_description(&q->folder, type, q->e);
        return r < 0 ? r : new_folder_finish(&q->folder, q->e);
}

int model_quantize(const struct quantize_options *options, struct error *e) {
        struct quantizer q = {.o = options, .e = e};
        int r = open_old(&q);

        if (r == 0)
                r = make_slab(&q);
        if (r == 0)
                r = write_all(&q);
        new_folder_close(&q.folder);
        slab_free(&q.slab);
        weights_close(&q.w);
        free(q.ranges);
        return r;
}
