/* ascend.c - int8 weights as msModelSlim writes them and vLLM-Ascend reads them.
 *
 * quant_model_description*.json maps every tensor's name to a kind; X.weight's entry is the layer's.
 *   W8A8_DYNAMIC  X.weight_scale [n]; activations are scaled per token.
 *   W8A8 (static) X.input_scale, X.input_offset, X.quant_bias [n] (the offset is folded into it), X.deq_scale [n] as f32,
 *                 or as int64 with the f32's bits in the low half.
 *   W8A8_MIX      both sets: engines that only decode take the static one.
 *   FLOAT         not quantised; so are layers that the description does not name. */
#include "base/json.h"
#include "model/weights.h"
#include <errno.h>
#include <math.h>

/* A description of the largest released checkpoint has 20 MB. */
#define DESCRIPTION_BYTES_MAX ((size_t)256 << 20)

static const char *const kinds[] = {
    [ASCEND_FLOAT] = "FLOAT",
    [ASCEND_STATIC] = "W8A8",
    [ASCEND_DYNAMIC] = "W8A8_DYNAMIC",
    [ASCEND_MIX] = "W8A8_MIX",
};
#define KIND_COUNT (sizeof(kinds) / sizeof(*kinds))

const char *ascend_kind_name(enum ascend_kind kind) {
        return kinds[kind];
}

/* ---- the description ------------------------------------------------------------------------------------------------ */

/* Kinds that no code here computes matter only for layers that are used: they are refused when looked up. */
static int other_kind(struct weights *w, struct slice kind, uint32_t *ret_number) {
        uint32_t i = 0;

        while (i < w->other_kind_count && !slice_eq(w->other_kinds[i], kind))
                i++;
        if (i == ASCEND_OTHER_KINDS_MAX)
                i--;
        else if (i == w->other_kind_count) {
                w->other_kinds[i] = arena_copy(&w->kind_names, kind);
                if (!w->other_kinds[i].ptr)
                        return -ENOMEM;
                w->other_kind_count++;
        }
        *ret_number = KIND_COUNT + i;
        return 0;
}

static int add_kind(struct weights *w, struct slice tensor, struct slice kind) {
        struct slice name = arena_copy(&w->kind_names, tensor);
        uint32_t number = 0;
        int r = 0;

        while (number < KIND_COUNT && !slice_is(kind, kinds[number]))
                number++;
        if (number == KIND_COUNT)
                r = other_kind(w, kind, &number);
        if (r < 0 || !name.ptr)
                return -ENOMEM;
        r = names_add(&w->kinds, name, number);
        return r == -EEXIST ? 0 : r;
}

static int read_description(struct weights *w, yyjson_val *root, struct error *e) {
        yyjson_obj_iter iter;
        yyjson_val *key;

        if (!yyjson_is_obj(root))
                return error_set(e, -EINVAL, "not a JSON object");
        yyjson_obj_iter_init(root, &iter);
        while ((key = yyjson_obj_iter_next(&iter))) {
                struct slice kind = json_slice(yyjson_obj_iter_get_val(key));

                /* Other keys are "version", "metadata", scales, … */
                if (kind.ptr && slice_ends(json_slice(key), SLICE_LIT(".weight")) &&
                    add_kind(w, json_slice(key), kind) < 0)
                        return error_set(e, -ENOMEM, "out of memory");
        }
        return 0;
}

int ascend_open(struct weights *w, const char *dir, struct error *e) {
        const char *plain = "quant_model_description.json";
        yyjson_doc *doc;
        char **names, *path;
        int count = folder_list(dir, "quant_model_description", ".json", &w->kind_names, &names), r;

        if (count < 0)
                return error_set(e, count, "cannot read the folder %s: %s", dir, strerror(-count));
        if (count == 0)
                return 0;
        if (count > 1 && !folder_listed(names, count, plain))
                return error_set(e, -EINVAL, "%s has %d quantisation descriptions (%s, %s, …): which one counts?", dir,
                    count, names[0], names[1]);
        path = arena_printf(&w->kind_names, "%s/%s", dir, count > 1 ? plain : names[0]);
        if (!path)
                return error_set(e, -ENOMEM, "out of memory");
        r = json_parse_file(path, DESCRIPTION_BYTES_MAX, &doc, e);
        if (r < 0)
                return r == -ENOMEM ? r : -EINVAL;
        r = read_description(w, yyjson_doc_get_root(doc), e);
        if (r < 0)
                error_prefix(e, r, "%s", path);
        yyjson_doc_free(doc);
        w->ascend = true;
        return r;
}

int ascend_kind_of(const struct weights *w, const char *name, enum ascend_kind *ret_kind, struct error *e) {
        const struct tensor *t = weights_find(w, name, ".weight");
        uint32_t number = ASCEND_FLOAT;

        if (w->ascend)
                (void)names_find(&w->kinds, t->name, &number); /* not named: FLOAT */
        if (number >= KIND_COUNT)
                return error_set(e, -EINVAL,
                    "layer %s is quantised as %.*s, which is not supported; supported are %s, %s, %s and %s", name,
                    SLICE_ARG(w->other_kinds[number - KIND_COUNT]), kinds[0], kinds[1], kinds[2], kinds[3]);
        *ret_kind = number;
        return 0;
}

/* ---- a layer's companions ------------------------------------------------------------------------------------------- */

/* X.SUFFIX of [n] or [n][1]. */
static int need_column(const struct weights *w, const char *name, const char *suffix, size_t n,
    const struct tensor **ret_tensor, struct error *e) {
        const struct tensor *t = NULL;
        int r = weights_need(w, name, suffix, &t, e);

        if (r < 0)
                return r;
        if (t->rank < 1 || t->rank > 2 || t->shape[0] != n || (t->rank == 2 && t->shape[1] != 1))
                return weights_blame(w, t, e, "has not the shape [%zu] or [%zu, 1]", n, n);
        *ret_tensor = t;
        return 0;
}

/* Rows of a column of floats. */
static int read_column(struct weights *w, const char *name, const char *suffix, const struct cut *cut,
    const float **ret_column, struct error *e) {
        const struct tensor *t = NULL;
        float *to;
        int r = need_column(w, name, suffix, cut->n, &t, e);

        if (r == 0 && w->measuring)
                return weights_check_floats(w, t, e);
        if (r < 0)
                return r;
        to = weights_scratch(w, cut->rows, sizeof(*to), e);
        if (!to)
                return -ENOMEM;
        r = weights_floats(w, t, cut->first_row, cut->rows, to, e);
        *ret_column = to;
        return r;
}

static int check_scales(
    const struct weights *w, const char *name, const char *suffix, const float *scales, size_t n, struct error *e) {
        for (size_t i = 0; !w->measuring && i < n; i++)
                if (!isfinite(scales[i]))
                        return weights_blame(w, weights_find(w, name, suffix), e, "holds a value that is no number");
        return 0;
}

static int dynamic_source(
    struct weights *w, const char *name, const struct cut *cut, struct weight_source *s, struct error *e) {
        const float *offsets = NULL;
        int r = read_column(w, name, ".weight_scale", cut, &s->row_scale, e);

        s->type = WEIGHT_INT8_DYNAMIC;
        if (r == 0)
                r = check_scales(w, name, ".weight_scale", s->row_scale, cut->rows, e);
        if (r == 0 && weights_find(w, name, ".weight_offset"))
                r = read_column(w, name, ".weight_offset", cut, &offsets, e);
        for (size_t i = 0; r == 0 && offsets && i < cut->rows; i++)
                if (offsets[i] != 0)
                        r = weights_blame(w, weights_find(w, name, ".weight_offset"), e,
                            "is not zero: only symmetric weights are supported");
        return r;
}

/* Round to the nearest f16, ties to even. */
static float round_f16(float value) {
        int exponent;
        float unit;

        if (value == 0 || !isfinite(value))
                return value;
        (void)frexpf(value, &exponent);
        unit = ldexpf(1, (exponent < -13 ? -13 : exponent) - 11);
        value = rintf(value / unit) * unit;
        return fabsf(value) > 65504 ? copysignf(INFINITY, value) : value;
}

/* vLLM-Ascend multiplies by the reciprocal, which it takes in the type that the file has. */
static float reciprocal(float scale, enum dtype dtype) {
        float inverse = 1 / scale;

        if (dtype == DTYPE_BF16)
                return bf16_to_float(float_to_bf16(inverse));
        return dtype == DTYPE_F16 ? round_f16(inverse) : inverse;
}

/* X.SUFFIX of one element: a float, or an int8. */
static int read_single(const struct weights *w, const char *name, const char *suffix, const struct tensor **ret_tensor,
    float *to, struct error *e) {
        int r = need_column(w, name, suffix, 1, ret_tensor, e);

        if (r < 0)
                return r;
        if ((*ret_tensor)->dtype == DTYPE_I8) {
                *to = w->measuring ? *to : (float)(int8_t)(*ret_tensor)->data[0];
                return 0;
        }
        if (w->measuring)
                return weights_check_floats(w, *ret_tensor, e);
        return weights_floats(w, *ret_tensor, 0, 1, to, e);
}

static int read_input_scale(struct weights *w, const char *name, struct weight_source *s, struct error *e) {
        const struct tensor *scale = NULL, *offset = NULL;
        float value = 1;
        int r = read_single(w, name, ".input_scale", &scale, &value, e);

        if (r < 0)
                return r;
        if (!(value > 0) || !isfinite(value))
                return weights_blame(w, scale, e, "is %g, no scale", (double)value);
        s->input_scale_inv = reciprocal(value, scale->dtype);
        r = read_single(w, name, ".input_offset", &offset, &s->input_offset, e);
        if (r == 0 && (s->input_offset != rintf(s->input_offset) || fabsf(s->input_offset) > 128))
                r = weights_blame(w, offset, e, "is %g, no int8", (double)s->input_offset);
        return r;
}

/* f32 bits in the low half of an int64. */
static int read_deq_scale(
    struct weights *w, const char *name, const struct cut *cut, struct weight_source *s, struct error *e) {
        const struct tensor *t = NULL;
        float *to;
        int r = need_column(w, name, ".deq_scale", cut->n, &t, e);

        if (r < 0)
                return r;
        if (t->dtype != DTYPE_I64)
                return read_column(w, name, ".deq_scale", cut, &s->deq_scale, e);
        if (w->measuring)
                return 0;
        to = weights_scratch(w, cut->rows, sizeof(*to), e);
        if (!to)
                return -ENOMEM;
        for (size_t i = 0; i < cut->rows; i++)
                memcpy(&to[i], t->data + (cut->first_row + i) * 8, sizeof(float));
        s->deq_scale = to;
        return 0;
}

static int read_quant_bias(
    struct weights *w, const char *name, const struct cut *cut, struct weight_source *s, struct error *e) {
        const struct tensor *t = NULL;
        int32_t *to;
        int r = need_column(w, name, ".quant_bias", cut->n, &t, e);

        if (r < 0)
                return r;
        if (t->dtype != DTYPE_I32)
                return weights_blame(w, t, e, "is %s, I32 is needed", dtype_name(t->dtype));
        /* Partial sums over columns: the first rank alone adds it. */
        if (w->measuring || cut->first_col > 0)
                return 0;
        to = weights_scratch(w, cut->rows, sizeof(*to), e);
        if (!to)
                return -ENOMEM;
        memcpy(to, t->data + cut->first_row * sizeof(*to), cut->rows * sizeof(*to));
        s->quant_bias = to;
        return 0;
}

static int static_source(
    struct weights *w, const char *name, const struct cut *cut, struct weight_source *s, struct error *e) {
        int r = read_input_scale(w, name, s, e);

        s->type = WEIGHT_INT8_STATIC;
        if (r == 0)
                r = read_deq_scale(w, name, cut, s, e);
        if (r == 0)
                r = check_scales(w, name, ".deq_scale", s->deq_scale, cut->rows, e);
        return r < 0 ? r : read_quant_bias(w, name, cut, s, e);
}

int ascend_source(struct weights *w, const char *name, enum ascend_kind kind, const struct cut *cut,
    struct weight_source *s, struct error *e) {
        if (kind == ASCEND_STATIC || (kind == ASCEND_MIX && w->static_quantization))
                return static_source(w, name, cut, s, e);
        return dynamic_source(w, name, cut, s, e);
}
