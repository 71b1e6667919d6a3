/* test_quantize.c - quantised copies of checkpoints: the values, the files, what is refused. */
#include "folder.h"
#include "model/quantize.h"
#include "model/weights.h"
#include <signal.h>
#include <sys/resource.h>
#include <sys/statvfs.h>

static const struct fixture_options two_threads = {FIXTURE_DEFAULTS};
static const uint32_t prompt_tokens[] = {0, 5, 77, 130, 12, 300, 44, 9, 256, 31, 402, 18, 93, 7, 210, 65};
static const struct quantize_prompt prompts[] = {{prompt_tokens, 16}, {prompt_tokens + 3, 9}, {prompt_tokens, 1}};

/* ---- folders -------------------------------------------------------------------------------------------------------- */

/* A name that nothing has yet. */
static struct folder folder_to_be(void) {
        const char *tmp = getenv("TMPDIR");
        struct folder d;

        snprintf(d.path, sizeof(d.path), "%s/baton-model-XXXXXX", tmp ? tmp : "/tmp");
        assert_non_null(mkdtemp(d.path));
        assert_int_equal(rmdir(d.path), 0);
        return d;
}

static int quantise(const char *from, const char *to, enum quantize_format format, struct error *e) {
        struct quantize_options o = {.from = from,
            .to = to,
            .format = format,
            .compute = fixture_compute(&two_threads),
            .prompts = prompts,
            .prompt_count = format == QUANTIZE_W8A8_STATIC || format == QUANTIZE_W8A8_MIX ? 3 : 0};
        int r = model_quantize(&o, e);

        compute_free(o.compute);
        return r;
}

static struct folder quantised(const char *from, enum quantize_format format) {
        struct folder d = folder_to_be();
        struct error e = {{0}};

        if (quantise(from, d.path, format, &e) < 0)
                fail_msg("%s: %s", from, e.text);
        return d;
}

static struct safetensors tensors_of(const char *dir) {
        struct safetensors s = {0};
        struct error e = {{0}};

        if (safetensors_open_folder(dir, &s, &e) < 0)
                fail_msg("%s", e.text);
        return s;
}

static const struct tensor *tensor_with(const struct safetensors *s, const struct tensor *weight, const char *end) {
        char name[256];

        snprintf(name, sizeof(name), "%.*s%s", (int)(weight->name.len - strlen(".weight")), weight->name.ptr, end);
        return safetensors_find(s, slice_str(name));
}

/* ---- the checkpoint that a fixture was made from ---------------------------------------------------------------------- */

/* The float behind code `i` of row `row` of an int8 or fp8 weight. */
static float value_of(const struct safetensors *s, const struct tensor *t, size_t row, size_t column) {
        const struct tensor *scale = tensor_with(s, t, ".weight_scale"), *deq = tensor_with(s, t, ".deq_scale");
        const unsigned char code = t->data[row * t->shape[1] + column];
        float f, input;

        if (t->dtype == DTYPE_F8_E4M3) {
                scale = tensor_with(s, t, ".weight_scale_inv");
                memcpy(&f, scale->data + (row / 128 * scale->shape[1] + column / 128) * sizeof(f), sizeof(f));
                return fp8_e4m3_to_float(code) * f;
        }
        memcpy(&f, (scale ? scale : deq)->data + row * sizeof(f), sizeof(f));
        if (!scale) {
                memcpy(&input, tensor_with(s, t, ".input_scale")->data, sizeof(input));
                f /= input;
        }
        return (float)(int8_t)code * f;
}

static bool is_companion(struct slice name) {
        static const char *const ends[] = {".weight_scale_inv", ".weight_scale", ".weight_offset", ".input_scale",
            ".input_offset", ".quant_bias", ".deq_scale"};

        for (size_t i = 0; i < sizeof(ends) / sizeof(*ends); i++)
                if (slice_ends(name, slice_str(ends[i])))
                        return true;
        return false;
}

static void write_floats(const struct safetensors *s, const char *path) {
        struct buf header = {0}, data = {0};

        buf_add_str(&header, HEADER_BEGIN);
        for (size_t i = 0; i < s->count; i++) {
                const struct tensor *t = &s->tensors[i];
                bool coded = t->dtype == DTYPE_I8 || t->dtype == DTYPE_F8_E4M3;
                size_t begin = data.len;

                if (is_companion(t->name))
                        continue;
                if (!coded)
                        buf_append(&data, t->data, t->bytes);
                for (size_t k = 0; coded && k < t->bytes; k++) {
                        float f = value_of(s, t, k / t->shape[1], k % t->shape[1]);

                        buf_append(&data, &f, sizeof(f));
                }
                buf_printf(&header, "%s\"%.*s\":{\"dtype\":\"%s\",\"shape\":[%llu", i ? "," : "", SLICE_ARG(t->name),
                    coded ? "F32" : dtype_name(t->dtype), (unsigned long long)t->shape[0]);
                if (t->rank == 2)
                        buf_printf(&header, ",%llu", (unsigned long long)t->shape[1]);
                buf_printf(&header, "],\"data_offsets\":[%zu,%zu]}", begin, data.len);
        }
        buf_add_str(&header, "}");
        /* a companion that came first leaves its comma behind */
        for (size_t at; (at = slice_find_slice(buf_slice(&header), SLICE_LIT(",,"), 0)) < header.len;)
                memmove(header.ptr + at, header.ptr + at + 1, header.len-- - at - 1);
        tensor_file_write(path, buf_slice(&header), buf_slice(&data));
        buf_free(&header);
        buf_free(&data);
}

/* A fixture with floats for its codes. */
static struct folder dequantised(const char *fixture) {
        struct folder d = folder_copy(fixture);
        struct safetensors s = tensors_of(data_path(fixture, ""));
        DIR *dir = opendir(d.path);
        struct dirent *entry;
        struct buf config = file_read(folder_file(&d, "config.json"));

        while ((entry = readdir(dir)))
                if (slice_find_slice(slice_str(entry->d_name), SLICE_LIT("safetensors"), 0) < strlen(entry->d_name) ||
                    slice_starts(slice_str(entry->d_name), SLICE_LIT("quant_")))
                        unlink(folder_file(&d, entry->d_name));
        closedir(dir);
        if (slice_find_slice(buf_slice(&config), SLICE_LIT("quantization_config"), 0) < config.len)
                file_replace(
                    folder_file(&d, "config.json"), SLICE_LIT("\"quantization_config\""), SLICE_LIT("\"was\""), ONE);
        write_floats(&s, folder_file(&d, "model.safetensors"));
        buf_free(&config);
        safetensors_close(&s);
        return d;
}

/* ---- values ----------------------------------------------------------------------------------------------------------- */

static void same_tensor(const struct tensor *a, const struct tensor *b) {
        assert_non_null(b);
        if (a->dtype != b->dtype || a->rank != b->rank || a->bytes != b->bytes ||
            memcmp(a->shape, b->shape, sizeof(a->shape)) != 0 || memcmp(a->data, b->data, a->bytes) != 0)
                fail_msg("tensor %.*s is another", SLICE_ARG(a->name));
}

/* Scales that were divided out and multiplied in again may differ in their last bit. */
static void same_scales(const struct tensor *a, const struct tensor *b) {
        assert_non_null(a);
        assert_non_null(b);
        assert_int_equal(a->dtype, DTYPE_F32);
        assert_int_equal(b->dtype, DTYPE_F32);
        assert_int_equal(a->bytes, b->bytes);
        for (size_t i = 0; i < a->bytes; i += sizeof(float)) {
                float x, y;

                memcpy(&x, a->data + i, sizeof(x));
                memcpy(&y, b->data + i, sizeof(y));
                if (fabsf(x - y) > fabsf(x) * 0x1p-22f)
                        fail_msg("%.*s: %.9g and %.9g", SLICE_ARG(a->name), (double)x, (double)y);
        }
}

static void an_fp8_checkpoint_comes_out_of_its_values(void **state) {
        static const char *const fixtures[] = {"v3-fp8", "v3-fp8-ue8m0"};

        for (size_t f = 0; f < 2; f++) {
                struct folder floats = dequantised(fixtures[f]), made = quantised(floats.path, QUANTIZE_FP8);
                struct safetensors a = tensors_of(data_path(fixtures[f], "")), b = tensors_of(made.path);
                size_t coded = 0;

                assert_int_equal(a.count, b.count);
                for (size_t i = 0; i < a.count; i++)
                        if (f == 0 && slice_ends(a.tensors[i].name, SLICE_LIT(".weight_scale_inv")))
                                same_scales(&a.tensors[i], safetensors_find(&b, a.tensors[i].name));
                        else if (f == 0 || a.tensors[i].dtype != DTYPE_F8_E4M3) {
                                coded += a.tensors[i].dtype == DTYPE_F8_E4M3;
                                if (!slice_ends(a.tensors[i].name, SLICE_LIT(".weight_scale_inv")))
                                        same_tensor(&a.tensors[i], safetensors_find(&b, a.tensors[i].name));
                        }
                assert_true(f == 1 || coded > 20);
                safetensors_close(&a);
                safetensors_close(&b);
                folder_remove(&floats);
                folder_remove(&made);
        }
}

static void int8_codes_come_out_of_their_values(void **state) {
        struct folder floats = dequantised("v3-w8a8"), made = quantised(floats.path, QUANTIZE_W8A8_STATIC);
        struct safetensors a = tensors_of(data_path("v3-w8a8", "")), b = tensors_of(made.path);
        size_t dynamic = 0, fixed = 0;

        for (size_t i = 0; i < a.count; i++) {
                const struct tensor *t = &a.tensors[i], *other = safetensors_find(&b, t->name);

                if (t->dtype != DTYPE_I8)
                        continue;
                same_tensor(t, other);
                if (tensor_with(&a, t, ".weight_scale")) {
                        same_scales(tensor_with(&a, t, ".weight_scale"), tensor_with(&b, t, ".weight_scale"));
                        same_tensor(tensor_with(&a, t, ".weight_offset"), tensor_with(&b, t, ".weight_offset"));
                        dynamic++;
                } else {
                        assert_non_null(tensor_with(&b, t, ".deq_scale"));
                        fixed++;
                }
        }
        assert_true(dynamic > 30 && fixed == 8);
        safetensors_close(&a);
        safetensors_close(&b);
        folder_remove(&floats);
        folder_remove(&made);
}

static float float_at(const struct tensor *t, size_t i) {
        float f;

        memcpy(&f, t->data + i * sizeof(f), sizeof(f));
        return f;
}

/* The fixture's own constants obey it, too. */
static void static_layers_obey_their_formulas(void **state) {
        struct folder made = quantised(data_path("v3-f32", ""), QUANTIZE_W8A8_STATIC);
        const char *const dirs[] = {made.path, data_path("v3-w8a8", "")};
        struct safetensors floats = tensors_of(data_path("v3-f32", ""));

        for (int d = 0; d < 2; d++) {
                struct safetensors s = tensors_of(dirs[d]);
                size_t count = 0;

                for (size_t i = 0; i < s.count; i++) {
                        const struct tensor *t = &s.tensors[i], *bias = tensor_with(&s, t, ".quant_bias");
                        float scale, offset;

                        if (t->dtype != DTYPE_I8 || !bias)
                                continue;
                        scale = float_at(tensor_with(&s, t, ".input_scale"), 0);
                        offset = float_at(tensor_with(&s, t, ".input_offset"), 0);
                        assert_true(scale > 0 && offset == rintf(offset) && fabsf(offset) <= 128);
                        for (size_t row = 0; row < t->shape[0]; row++) {
                                const struct tensor *source = safetensors_find(&floats, t->name);
                                int32_t sum = 0, value;
                                float largest = 0;

                                for (size_t k = 0; k < t->shape[1]; k++) {
                                        sum += (int8_t)t->data[row * t->shape[1] + k];
                                        if (d == 0)
                                                largest =
                                                    fmaxf(largest, fabsf(float_at(source, row * t->shape[1] + k)));
                                }
                                memcpy(&value, bias->data + row * 4, 4);
                                assert_int_equal(value, -(int32_t)offset * sum);
                                if (d == 0)
                                        assert_true(
                                            float_at(tensor_with(&s, t, ".deq_scale"), row) == largest / 127 * scale);
                        }
                        count++;
                }
                assert_true(count >= 8);
                safetensors_close(&s);
        }
        safetensors_close(&floats);
        folder_remove(&made);
}

/* A mix is the dynamic and the static checkpoint in one. */
static void a_mix_has_both_sets(void **state) {
        struct folder made[3];
        struct safetensors s[3];
        size_t count = 0;

        for (enum quantize_format format = QUANTIZE_W8A8_DYNAMIC; format <= QUANTIZE_W8A8_MIX; format++) {
                made[format] = quantised(data_path("v3-f32", ""), format);
                s[format] = tensors_of(made[format].path);
        }
        for (size_t i = 0; i < s[QUANTIZE_W8A8_MIX].count; i++) {
                const struct tensor *t = &s[QUANTIZE_W8A8_MIX].tensors[i],
                                    *a = safetensors_find(&s[QUANTIZE_W8A8_DYNAMIC], t->name),
                                    *b = safetensors_find(&s[QUANTIZE_W8A8_STATIC], t->name);

                assert_true(a || b);
                if (a)
                        same_tensor(t, a);
                if (b)
                        same_tensor(t, b);
                count += a && !b;
        }
        assert_int_equal(count, 3 * 4 * 2); /* scales and offsets of attention's four in three layers */
        for (size_t i = 0; i < 3; i++) {
                safetensors_close(&s[i]);
                folder_remove(&made[i]);
        }
}

static void ranges_use_every_code_and_keep_zero(void **state) {
        static const struct range ranges[] = {{-1, 1}, {0, 6}, {-3, 0}, {-0.001f, 40}, {0, 0}, {-1e-30f, 1e-30f}};

        for (size_t i = 0; i < sizeof(ranges) / sizeof(*ranges); i++) {
                struct input_scale s = input_scale_of(ranges[i]);

                assert_true(s.scale > 0 && s.offset == rintf(s.offset) && s.offset >= -128 && s.offset <= 127);
                assert_true(fabsf(rintf(ranges[i].low / s.scale + s.offset) + 128) <= 1 || ranges[i].low == 0);
                assert_true(ranges[i].high / s.scale + s.offset < 128.5f);
        }
}

/* ---- models ----------------------------------------------------------------------------------------------------------- */

static float *logits_of(const char *dir, size_t *ret_vocab) {
        struct compute *c = fixture_compute(&two_threads);
        struct model *m = fixture_model(dir, c, (struct model_shard){0});
        struct fixture f = {.model = m, .vocab = model_config(m)->vocab};
        uint32_t tokens[FIXTURE_ROWS];

        f.blocks = fixture_cache(m, KV_F32, FIXTURE_BLOCK, FIXTURE_ROWS, &f.kv);
        f.logits = calloc((size_t)f.vocab * FIXTURE_ROWS, sizeof(float));
        f.hidden = calloc((size_t)model_config(m)->hidden * FIXTURE_ROWS, sizeof(float));
        memcpy(tokens, prompt_tokens, sizeof(prompt_tokens));
        run_rows(&f, tokens, 0, 16, 15);
        *ret_vocab = f.vocab;
        kv_cache_free(&f.kv);
        model_free(m);
        compute_free(c);
        free(f.blocks);
        free(f.hidden);
        return f.logits;
}

static int compare_doubles(const void *a, const void *b) {
        double x = *(const double *)a, y = *(const double *)b;

        return (x > y) - (x < y);
}

/* Every format of every float fixture loads, with its MTP module, and says nearly the same. */
static void a_quantised_model_says_nearly_the_same(void **state) {
        static const char *const fixtures[] = {"v3-f32", "v3-bf16", "v2-greedy", "v2-group", "v3-mscale"};
        static const double most[] = {0.06, 0.06, 0.06, 0.12};

        for (size_t i = 0; i < sizeof(fixtures) / sizeof(*fixtures); i++)
                for (enum quantize_format format = QUANTIZE_W8A8_DYNAMIC; format <= QUANTIZE_FP8; format++) {
                        struct folder made = quantised(data_path(fixtures[i], ""), format);
                        size_t vocab;
                        float *a = logits_of(data_path(fixtures[i], ""), &vocab), *b = logits_of(made.path, &vocab);
                        double off[16];

                        for (size_t row = 0; row < 16; row++)
                                off[row] = row_error(b + row * vocab, a + row * vocab, vocab);
                        qsort(off, 16, sizeof(*off), compare_doubles);
                        if (!(off[8] > 0 && off[8] < most[format]))
                                fail_msg("%s as format %d: logits are off by %.3f", fixtures[i], format, off[8]);
                        free(a);
                        free(b);
                        folder_remove(&made);
                }
}

/* The kinds that are asked for by name, and every part's type. */
static void the_parts_have_the_types_of_their_format(void **state) {
        static const struct {
                const char *name;
                enum dtype types[2]; /* W8A8, fp8 */
        } parts[] = {
            {"model.layers.1.self_attn.q_a_proj.weight", {DTYPE_I8, DTYPE_F8_E4M3}},
            {"model.layers.1.self_attn.kv_b_proj.weight", {DTYPE_F32, DTYPE_F8_E4M3}},
            {"model.layers.0.mlp.up_proj.weight", {DTYPE_I8, DTYPE_F8_E4M3}},
            {"model.layers.1.mlp.experts.0.down_proj.weight", {DTYPE_I8, DTYPE_F8_E4M3}},
            {"model.layers.1.mlp.shared_experts.gate_proj.weight", {DTYPE_I8, DTYPE_F8_E4M3}},
            {"model.layers.1.mlp.gate.weight", {DTYPE_F32, DTYPE_F32}},
            {"model.layers.3.self_attn.o_proj.weight", {DTYPE_I8, DTYPE_F8_E4M3}},
            {"model.layers.3.eh_proj.weight", {DTYPE_F32, DTYPE_F32}},
            {"model.layers.3.shared_head.head.weight", {DTYPE_F32, DTYPE_F32}},
            {"model.embed_tokens.weight", {DTYPE_F32, DTYPE_F32}},
            {"lm_head.weight", {DTYPE_F32, DTYPE_F32}},
        };

        for (enum quantize_format format = QUANTIZE_W8A8_DYNAMIC; format <= QUANTIZE_FP8; format++) {
                struct folder made = quantised(data_path("v3-f32", ""), format);
                struct safetensors s = tensors_of(made.path);
                struct model_options o = {.load_mtp = true, .quantization = format == QUANTIZE_FP8 ? "fp8" : "ascend"};
                struct stat st;

                for (size_t i = 0; i < sizeof(parts) / sizeof(*parts); i++)
                        assert_int_equal(safetensors_find(&s, slice_str(parts[i].name))->dtype,
                            parts[i].types[format == QUANTIZE_FP8]);
                /* Main layers alone are static, and all data is aligned. */
                assert_true((safetensors_find(&s, SLICE_LIT("model.layers.2.self_attn.o_proj.deq_scale")) != NULL) ==
                            (format == QUANTIZE_W8A8_STATIC || format == QUANTIZE_W8A8_MIX));
                assert_null(safetensors_find(&s, SLICE_LIT("model.layers.3.self_attn.o_proj.deq_scale")));
                for (size_t i = 0; i < s.count; i++)
                        assert_int_equal((uintptr_t)s.tensors[i].data % dtype_bytes(s.tensors[i].dtype), 0);
                accepted(&made, o);
                assert_int_equal(stat(folder_file(&made, "generation_config.json"), &st), 0); /* came along */
                safetensors_close(&s);
                folder_remove(&made);
        }
}

static void a_file_becomes_a_file(void **state) {
        struct folder made = quantised(data_path("v3-bf16", ""), QUANTIZE_W8A8_DYNAMIC);
        struct safetensors a = tensors_of(data_path("v3-bf16", "")), b = tensors_of(made.path);

        assert_int_equal(a.file_count, 3);
        assert_int_equal(b.file_count, 3);
        for (size_t i = 0; i < a.count; i++)
                assert_int_equal(safetensors_find(&b, a.tensors[i].name)->file, a.tensors[i].file);
        safetensors_close(&a);
        safetensors_close(&b);
        folder_remove(&made);
}

/* fp8 releases are what people have: int8 is made of them as of the floats that they stand for. */
static void fp8_is_quantised_by_its_values(void **state) {
        struct folder floats = dequantised("v3-fp8"), one = quantised(floats.path, QUANTIZE_W8A8_DYNAMIC),
                      two = quantised(data_path("v3-fp8", ""), QUANTIZE_W8A8_DYNAMIC);
        struct safetensors a = tensors_of(one.path), b = tensors_of(two.path);

        assert_int_equal(a.count, b.count);
        for (size_t i = 0; i < a.count; i++) {
                const struct tensor *other = safetensors_find(&b, a.tensors[i].name);

                if (slice_ends(a.tensors[i].name, SLICE_LIT("kv_b_proj.weight")))
                        assert_int_equal(other->dtype, DTYPE_BF16);
                else
                        same_tensor(&a.tensors[i], other);
        }
        accepted(&two, (struct model_options){.load_mtp = true, .quantization = "ascend"});
        safetensors_close(&a);
        safetensors_close(&b);
        folder_remove(&floats);
        folder_remove(&one);
        folder_remove(&two);
}

/* ---- refusals ----------------------------------------------------------------------------------------------------------- */

/* Fails with that text, and leaves nothing behind. */
static void not_quantised(const char *from, const char *to, enum quantize_format format, int code, const char *text) {
        struct error e = {{0}};
        struct stat st;
        char partial[512];
        int r = quantise(from, to, format, &e);

        if (r != code || !strstr(e.text, text))
                fail_msg("%s gives %d \"%s\", not %d \"…%s…\"", from, r, e.text, code, text);
        snprintf(partial, sizeof(partial), "%s.partial", to);
        assert_true(code == -EEXIST || (stat(to, &st) < 0 && stat(partial, &st) < 0));
}

static void what_cannot_be_quantised_is_refused(void **state) {
        struct folder to = folder_to_be(), damaged = folder_copy("v3-f32"), cut = folder_copy("v3-bf16");
        const float nan = NAN;
        char partial[300];

        not_quantised(data_path("v3-w8a8", ""), to.path, QUANTIZE_FP8, -EINVAL, "is quantised already");
        not_quantised(data_path("v3-fp8", ""), to.path, QUANTIZE_FP8, -EINVAL, "is fp8 already");
        not_quantised("/nowhere", to.path, QUANTIZE_FP8, -ENOENT, "/nowhere");
        not_quantised(data_path("v3-f32", ""), "/nowhere/x", QUANTIZE_FP8, -ENOENT, "cannot make the folder");

        tensor_patch(
            folder_file(&damaged, "model.safetensors"), "model.layers.2.mlp.experts.3.up_proj.weight", 400, &nan, 4);
        not_quantised(damaged.path, to.path, QUANTIZE_W8A8_DYNAMIC, -EINVAL,
            "experts.3.up_proj.weight holds a value that is no number");
        not_quantised(
            damaged.path, to.path, QUANTIZE_FP8, -EINVAL, "experts.3.up_proj.weight holds a value that is no number");

        unlink(folder_file(&cut, "model-00002-of-00003.safetensors"));
        not_quantised(cut.path, to.path, QUANTIZE_FP8, -ENOENT, "model-00002-of-00003.safetensors");

        not_quantised(data_path("v3-f32", ""), damaged.path, QUANTIZE_FP8, -EEXIST, "is there already; nothing is");
        snprintf(partial, sizeof(partial), "%s.partial", to.path);
        assert_int_equal(mkdir(partial, 0777), 0);
        not_quantised(data_path("v3-f32", ""), to.path, QUANTIZE_FP8, -EEXIST, "another run is writing it");
        assert_int_equal(rmdir(partial), 0); /* it is another's: still there, and empty */
        folder_remove(&damaged);
        folder_remove(&cut);
}

static void a_full_disk_leaves_nothing_behind(void **state) {
        struct folder to = folder_to_be();
        struct rlimit before, small;

        signal(SIGXFSZ, SIG_IGN);
        assert_int_equal(getrlimit(RLIMIT_FSIZE, &before), 0);
        small = before;
        small.rlim_cur = 100000; /* less than a file of tensors */
        assert_int_equal(setrlimit(RLIMIT_FSIZE, &small), 0);
        not_quantised(data_path("v3-f32", ""), to.path, QUANTIZE_W8A8_DYNAMIC, -EFBIG, "cannot write");
        assert_int_equal(setrlimit(RLIMIT_FSIZE, &before), 0);
}

static void too_small_a_disk_is_seen_before_the_work(void **state) {
        struct folder to = folder_to_be(), from = folder_copy("v3-f32");
        const char *path = folder_file(&from, "model.safetensors");
        struct buf file = file_read(path), header = {0}, data = {0};
        struct slice old = tensor_file_header(&file);
        const uint64_t begin = file.len - 8 - old.len;
        struct statvfs fs;
        uint64_t rows;

        /* One more tensor, of a terabyte more than there is; the file has a hole for it. */
        assert_int_equal(statvfs(from.path, &fs), 0);
        rows = ((uint64_t)fs.f_bavail * fs.f_frsize >> 20) + (1 << 20);
        buf_printf(&header,
            HEADER_BEGIN "\"huge\":{\"dtype\":\"U8\",\"shape\":[%llu,1048576],\"data_offsets\":[%llu,%llu]},",
            (unsigned long long)rows, (unsigned long long)begin, (unsigned long long)(begin + (rows << 20)));
        buf_add(&header, slice_sub(old, strlen(HEADER_BEGIN), old.len));
        buf_add(&data, slice_sub(buf_slice(&file), 8 + old.len, file.len));
        tensor_file_write(path, buf_slice(&header), buf_slice(&data));
        assert_int_equal(truncate(path, (off_t)(8 + header.len + begin + (rows << 20))), 0);

        not_quantised(from.path, to.path, QUANTIZE_W8A8_STATIC, -ENOSPC, "GB, and its file system has");
        buf_free(&file);
        buf_free(&header);
        buf_free(&data);
        folder_remove(&from);
}

static void an_end_that_is_wanted_leaves_nothing_behind(void **state) {
        static const volatile sig_atomic_t stop = 1;

        for (enum quantize_format format = QUANTIZE_W8A8_DYNAMIC; format <= QUANTIZE_FP8; format++) {
                struct folder to = folder_to_be();
                struct quantize_options o = {.from = data_path("v3-f32", ""),
                    .to = to.path,
                    .format = format,
                    .compute = fixture_compute(&two_threads),
                    .prompts = prompts,
                    .prompt_count = 3,
                    .stop = &stop};
                struct error e = {{0}};
                struct stat st;

                assert_int_equal(model_quantize(&o, &e), -ECANCELED);
                assert_true(stat(to.path, &st) < 0);
                strcat(to.path, ".partial");
                assert_true(stat(to.path, &st) < 0);
                compute_free(o.compute);
        }
}

static void calibration_wants_prompts_of_the_model(void **state) {
        static const uint32_t unknown[] = {0, 100000};
        const struct quantize_prompt wrong = {unknown, 2}, none = {unknown, 0};
        struct folder to = folder_to_be();
        struct quantize_options o = {.from = data_path("v3-f32", ""),
            .to = to.path,
            .format = QUANTIZE_W8A8_STATIC,
            .compute = fixture_compute(&two_threads),
            .prompts = &none,
            .prompt_count = 1};
        struct error e = {{0}};

        assert_int_equal(model_quantize(&o, &e), -EINVAL);
        assert_non_null(strstr(e.text, "there is none"));
        o.prompts = &wrong;
        assert_int_equal(model_quantize(&o, &e), -EINVAL);
        assert_non_null(strstr(e.text, "prompt 1 has token 100000, the model knows 520"));
        compute_free(o.compute);
}

int main(void) {
        const struct CMUnitTest tests[] = {
            cmocka_unit_test(an_fp8_checkpoint_comes_out_of_its_values),
            cmocka_unit_test(int8_codes_come_out_of_their_values),
            cmocka_unit_test(static_layers_obey_their_formulas),
            cmocka_unit_test(a_mix_has_both_sets),
            cmocka_unit_test(ranges_use_every_code_and_keep_zero),
            cmocka_unit_test(a_quantised_model_says_nearly_the_same),
            cmocka_unit_test(the_parts_have_the_types_of_their_format),
            cmocka_unit_test(a_file_becomes_a_file),
            cmocka_unit_test(fp8_is_quantised_by_its_values),
            cmocka_unit_test(what_cannot_be_quantised_is_refused),
            cmocka_unit_test(a_full_disk_leaves_nothing_behind),
            cmocka_unit_test(too_small_a_disk_is_seen_before_the_work),
            cmocka_unit_test(an_end_that_is_wanted_leaves_nothing_behind),
            cmocka_unit_test(calibration_wants_prompts_of_the_model),
        };

        return cmocka_run_group_tests_name("quantize", tests, NULL, NULL);
}
