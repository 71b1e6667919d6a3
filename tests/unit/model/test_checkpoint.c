/* test_checkpoint.c - missing, cut and wrong files are refused before anything runs, with what is wrong and where. */
#include "folder.h"
#include "model/memory.h"

static const struct model_options plain = {.load_mtp = true};

/* One replacement in a text file, or in the header of a safetensors file, of a fixture. */
struct edit {
        const char *fixture, *file, *from, *to, *text;
        int code; /* 0: -EINVAL */
};
#define FINE 1

#define F32  "model.safetensors"
#define W8A8 "quant_model_weight_w8a8_dynamic-00001-of-00002.safetensors"

static const struct edit edits[] = {
    {"v3-f32", F32, "model.norm.weight", "model.norm.weighs",
        "tensor model.norm.weight is in none of the checkpoint's"},
    {"v3-f32", F32, "layers.1.mlp.experts.7.up_proj.weight", "layers.1.mlp.experts.7.uq_proj.weight",
        "tensor model.layers.1.mlp.experts.7.up_proj.weight is in none"},
    {"v3-f32", F32, "layers.2.mlp.gate.e_score_correction_bias", "layers.2.mlp.gate.e_score_correction_bins",
        "tensor model.layers.2.mlp.gate.e_score_correction_bias is in none"},
    {"v3-f32", F32, "layers.3.eh_proj.weight", "layers.3.eh_prog.weight", "layers.3.eh_proj.weight is in none"},
    /* Copies of the main embedding and head may be left out. */
    {"v3-f32", F32, "layers.3.embed_tokens.weight", "layers.3.embed_tokems.weight", NULL, FINE},
    {"v3-f32", F32, "layers.3.shared_head.head.weight", "layers.3.shared_head.heat.weight", NULL, FINE},
    {"v3-f32", F32, "\"model.norm.weight\":{\"dtype\":\"F32\"", "\"model.norm.weight\":{\"dtype\":\"I32\"",
        "tensor model.norm.weight is I32; f32, f16 or bf16 is needed"},
    {"v3-f32", F32, "\"lm_head.weight\":{\"dtype\":\"F32\"", "\"lm_head.weight\":{\"dtype\":\"I32\"",
        "tensor lm_head.weight is I32; weights may be f32"},
    {"v3-f32", F32, "\"lm_head.weight\":{\"dtype\":\"F32\",\"shape\":[520,80]",
        "\"lm_head.weight\":{\"dtype\":\"F32\",\"shape\":[80,520]",
        "tensor lm_head.weight has the shape [80, 520]; config.json asks for [520, 80]"},
    {"v3-f32", F32, "\"model.norm.weight\":{\"dtype\":\"F32\",\"shape\":[80]",
        "\"model.norm.weight\":{\"dtype\":\"F32\",\"shape\":[81]", "shape needs 324 bytes, data_offsets give 320"},
    {"v3-f32", "config.json", "\"hidden_size\": 80", "\"hidden_size\": 96",
        "model.embed_tokens.weight has the shape [520, 80]; config.json asks for [520, 96]"},
    {"v3-f32", "config.json", "\"q_lora_rank\": 48", "\"q_lora_rank\": null", "self_attn.q_proj.weight is in none"},
    {"v3-f32", "config.json", "\"num_nextn_predict_layers\": 1", "\"num_nextn_predict_layers\": 0",
        "has no multi-token-prediction module"},
    {"v3-fp8", F32, "layers.0.self_attn.o_proj.weight_scale_inv", "layers.0.self_attn.o_proj.weight_scale_inw",
        "o_proj.weight is F8_E4M3 but has no weight_scale_inv"},
    {"v3-fp8", "config.json", "[\n      128,\n      128\n    ]", "[64, 64]",
        "has not the shape [3, 3] of the weight's blocks"},
    {"v3-bf16", "model.safetensors.index.json", "model-00002-of-00003.safetensors", "model-00004-of-00003.safetensors",
        "model-00004-of-00003.safetensors: cannot be read: No such file", -ENOENT},
    {"v3-bf16", "model.safetensors.index.json", "model-00002-of-00003.safetensors", "../model-2.safetensors",
        "weight_map gives no plain file name"},
    {"v3-bf16", "model.safetensors.index.json", "\"model.norm.weight\"", "\"model.norm.weighs\"",
        "tensor model.norm.weighs is not in model-"},
    {"v3-bf16", "model.safetensors.index.json", "weight_map", "weight_maps", "no weight_map"},
    {"v3-bf16", "model.safetensors.index.json", "{", "[", "not JSON"},
    {"v3-w8a8", "quant_model_description.json", "\"model.layers.0.self_attn.o_proj.weight\": \"W8A8\"",
        "\"model.layers.0.self_attn.o_proj.weight\": \"W4A8_DYNAMIC\"",
        "layer model.layers.0.self_attn.o_proj is quantised as W4A8_DYNAMIC, which is not supported; supported are "
        "FLOAT, "
        "W8A8, W8A8_DYNAMIC and W8A8_MIX"},
    {"v3-w8a8", "quant_model_description.json", "\"model.layers.0.self_attn.o_proj.weight\": \"W8A8\"",
        "\"model.layers.0.self_attn.o_proj.weight\": \"FLOAT\"",
        "o_proj.weight is I8, which the quantisation description calls"},
    {"v3-w8a8", "quant_model_description.json", "\"model.layers.0.self_attn.kv_b_proj.weight\": \"FLOAT\"",
        "\"model.layers.0.self_attn.kv_b_proj.weight\": \"W8A8\"",
        "kv_b_proj.weight is BF16, which the quantisation description calls int8"},
    {"v3-w8a8", "quant_model_description.json", "\"lm_head.weight\": \"FLOAT\",", "", NULL,
        FINE}, /* unnamed is FLOAT */
    {"v3-w8a8", W8A8, "layers.0.self_attn.o_proj.deq_scale", "layers.0.self_attn.o_proj.deq_scali",
        "is not in quant_model_weight_w8a8_dynamic-00001-of-00002.safetensors, where the index has it"},
    {"v3-w8a8", W8A8, "\"model.layers.0.self_attn.o_proj.quant_bias\":{\"dtype\":\"I32\"",
        "\"model.layers.0.self_attn.o_proj.quant_bias\":{\"dtype\":\"F32\"", "o_proj.quant_bias is F32, I32 is needed"},
};

static void every_wrong_file_is_named(void **state) {
        for (size_t i = 0; i < sizeof(edits) / sizeof(*edits); i++) {
                const struct edit *t = &edits[i];
                struct folder d = folder_copy(t->fixture);
                const char *path = folder_file(&d, t->file);

                if (slice_ends(slice_str(t->file), SLICE_LIT(".safetensors")))
                        header_replace(path, slice_str(t->from), slice_str(t->to), SLICE_NONE);
                else
                        file_replace(path, slice_str(t->from), slice_str(t->to), ALL);
                if (t->code == FINE)
                        accepted(&d, plain);
                else
                        refused(&d, plain, t->code ? t->code : -EINVAL, t->text);
                folder_remove(&d);
        }
}

/* ---- whole files -------------------------------------------------------------------------------------------------------- */

static void a_cut_file_is_refused_wherever_it_is_cut(void **state) {
        struct buf whole = file_read(data_path("v3-f32", F32));
        const size_t header = 8 + tensor_file_header(&whole).len;
        const size_t cuts[] = {0, 7, 8, 100, header - 1, header, header + 1, header + 166400, whole.len - 1};

        for (size_t i = 0; i < sizeof(cuts) / sizeof(*cuts); i++) {
                struct folder d = folder_copy("v3-f32");

                file_write(folder_file(&d, F32), slice_sub(buf_slice(&whole), 0, cuts[i]));
                refused(&d, plain, -EINVAL, "model.safetensors: cut off");
                folder_remove(&d);
        }
        buf_free(&whole);
}

static void missing_files_are_named(void **state) {
        struct folder d = folder_copy("v3-f32");

        unlink(folder_file(&d, F32));
        refused(&d, plain, -ENOENT, "holds no *.safetensors file");
        folder_remove(&d);
        d = folder_copy("v3-bf16");
        unlink(folder_file(&d, "model-00003-of-00003.safetensors"));
        refused(&d, plain, -ENOENT, "model-00003-of-00003.safetensors: cannot be read");
        folder_remove(&d);
        snprintf(d.path, sizeof(d.path), "/nowhere/at/all");
        refused(&d, plain, -ENOENT, "/nowhere/at/all/config.json");
}

static void a_folder_with_two_indices_is_ambiguous(void **state) {
        struct folder d = folder_copy("v3-w8a8");

        file_write(folder_file(&d, "other.safetensors.index.json"), SLICE_LIT("{}"));
        refused(&d, plain, -EINVAL, "has 2 index files");
        folder_remove(&d);
}

static void the_quantization_asked_for_must_be_there(void **state) {
        static const struct {
                const char *fixture, *quantization, *text;
        } cases[] = {
            {"v3-f32", "ascend", "holds no quant_model_description*.json"},
            {"v3-f32", "fp8", "has no fp8 quantization_config"},
            {"v3-f32", "awq", "quantization awq is not supported; supported are ascend and fp8"},
            {"v3-w8a8", "ascend", NULL},
            {"v3-w8a8-int64", "ascend", NULL},
            {"v3-fp8", "fp8", NULL},
        };

        for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
                struct folder d = folder_copy(cases[i].fixture);
                struct model_options o = {.load_mtp = true, .quantization = cases[i].quantization};

                if (cases[i].text)
                        refused(&d, o, -EINVAL, cases[i].text);
                else
                        accepted(&d, o);
                folder_remove(&d);
        }
        {
                struct folder d = folder_copy("v3-w8a8");

                /* One of the plain name counts, wherever the others sort. */
                file_write(folder_file(&d, "quant_model_description-old.json"), SLICE_LIT("{}"));
                file_write(folder_file(&d, "quant_model_description_2.json"), SLICE_LIT("{}"));
                accepted(&d, plain);
                unlink(folder_file(&d, "quant_model_description.json"));
                refused(&d, plain, -EINVAL, "has 2 quantisation descriptions");
                unlink(folder_file(&d, "quant_model_description-old.json"));
                unlink(folder_file(&d, "quant_model_description_2.json"));
                refused(&d, plain, -EINVAL, "is I8, which needs a quant_model_description.json in the folder");
                folder_remove(&d);
        }
}

/* ---- headers ------------------------------------------------------------------------------------------------------------ */

static void hostile_headers_are_refused(void **state) {
        static const struct {
                const char *header, *text;
        } cases[] = {
            {"", "not JSON"},
            {"[]", "no JSON object"},
            {"{\"a\":1}", "tensor a: no dtype"},
            {"{\"a\":{\"dtype\":7}}", "tensor a: no dtype"},
            {"{\"a\":{\"dtype\":\"I8\",\"shape\":[1]}}", "data_offsets are no two whole numbers"},
            {"{\"a\":{\"dtype\":\"I8\",\"shape\":[1],\"data_offsets\":[0,1,2]}}", "data_offsets are no two"},
            {"{\"a\":{\"dtype\":\"I8\",\"shape\":[1],\"data_offsets\":[-1,0]}}", "data_offsets are no two"},
            {"{\"a\":{\"dtype\":\"I8\",\"shape\":[1],\"data_offsets\":[2,1]}}", "data_offsets are reversed"},
            {"{\"a\":{\"dtype\":\"I8\",\"shape\":[100],\"data_offsets\":[0,100]}}",
                "cut off: tensor a needs 84 more bytes"},
            {"{\"a\":{\"dtype\":\"I8\",\"shape\":7,\"data_offsets\":[0,1]}}", "shape is no list"},
            {"{\"a\":{\"dtype\":\"I8\",\"shape\":[1,1,1,1,1,1,1,1,1],\"data_offsets\":[0,1]}}", "shape is no list"},
            {"{\"a\":{\"dtype\":\"I8\",\"shape\":[-1],\"data_offsets\":[0,1]}}", "a size in shape is no whole number"},
            {"{\"a\":{\"dtype\":\"I8\",\"shape\":[2],\"data_offsets\":[0,1]}}", "shape needs 2 bytes"},
            {"{\"a\":{\"dtype\":\"F32\",\"shape\":[4611686018427387905,1],\"data_offsets\":[0,4]}}",
                "shape is too large"},
            {"{\"a\":{\"dtype\":\"I8\",\"shape\":[2],\"data_offsets\":[0,2]},\"b\":{\"dtype\":\"I8\",\"shape\":[2],"
             "\"data_offsets\":[1,3]}}",
                "tensors a and b overlap"},
            {"{\"a\":{\"dtype\":\"I8\",\"shape\":[1],\"data_offsets\":[0,1]},\"a\":{\"dtype\":\"I8\",\"shape\":[1],"
             "\"data_offsets\":[1,2]}}",
                "tensor a is there twice"},
        };
        struct folder d = folder_copy("v2-group");
        const char *path = folder_file(&d, "x");

        for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
                struct safetensors s = {0};
                struct error e = {{0}};
                int r;

                tensor_file_write(path, slice_str(cases[i].header), SLICE_LIT("0123456789abcdef"));
                r = safetensors_add_file(&s, path, &e);
                if (r != -EINVAL || !strstr(e.text, cases[i].text) || !strstr(e.text, path))
                        fail_msg("%s gives %d \"%s\"", cases[i].header, r, e.text);
                safetensors_close(&s);
        }
        folder_remove(&d);
}

static void tensors_of_unknown_types_do_no_harm(void **state) {
        struct folder d = folder_copy("v2-group");
        const char *path = folder_file(&d, "x");
        struct safetensors s = {0};
        struct error e = {{0}};

        tensor_file_write(path,
            SLICE_LIT(
                "{\"a\":{\"dtype\":\"F4\",\"shape\":[5],\"data_offsets\":[0,3]},\"b\":{\"dtype\":\"I16\",\"shape\":[],"
                "\"data_offsets\":[4,6]},\"none\":{\"dtype\":\"F32\",\"shape\":[0,7],\"data_offsets\":[0,0]}}"),
            SLICE_LIT("0123456789abcdef"));
        assert_int_equal(safetensors_add_file(&s, path, &e), 0);
        assert_int_equal(s.count, 3);
        assert_int_equal(safetensors_find(&s, SLICE_LIT("a"))->dtype, DTYPE_OTHER);
        assert_memory_equal(safetensors_find(&s, SLICE_LIT("b"))->data, "45", 2);
        assert_int_equal(safetensors_find(&s, SLICE_LIT("none"))->bytes, 0);
        assert_null(safetensors_find(&s, SLICE_LIT("c")));
        safetensors_close(&s);
        folder_remove(&d);
}

/* ---- values ------------------------------------------------------------------------------------------------------------- */

static void damaged_values_are_refused(void **state) {
        static const uint8_t nan8 = 0x7f;
        static const float nan32 = NAN, zero = 0, one = 1, half = 0.5f;
        struct folder d;

        d = folder_copy("v3-fp8");
        tensor_patch(folder_file(&d, F32), "model.layers.0.self_attn.o_proj.weight", 5, &nan8, 1);
        refused(&d, plain, -EINVAL, "layer model.layers.0.self_attn.o_proj: row 0 of an fp8 weight holds a NaN");
        folder_remove(&d);
        d = folder_copy("v3-w8a8");
        tensor_patch(folder_file(&d, W8A8), "model.layers.0.self_attn.o_proj.input_scale", 0, &zero, 4);
        refused(&d, plain, -EINVAL, "o_proj.input_scale is 0, no scale");
        folder_remove(&d);
        d = folder_copy("v3-w8a8");
        tensor_patch(folder_file(&d, W8A8), "model.layers.0.self_attn.o_proj.input_offset", 0, &half, 4);
        refused(&d, plain, -EINVAL, "o_proj.input_offset is 0.5, no int8");
        folder_remove(&d);
        d = folder_copy("v3-w8a8");
        tensor_patch(folder_file(&d, W8A8), "model.layers.0.self_attn.o_proj.deq_scale", 40, &nan32, 4);
        refused(&d, plain, -EINVAL, "o_proj.deq_scale holds a value that is no number");
        folder_remove(&d);
        d = folder_copy("v3-w8a8");
        tensor_patch(folder_file(&d, W8A8), "model.layers.0.mlp.up_proj.weight_offset", 8, &one, 4);
        refused(&d, plain, -EINVAL, "up_proj.weight_offset is not zero");
        folder_remove(&d);
        d = folder_copy("v3-f32");
        tensor_add(folder_file(&d, F32), "model.layers.0.self_attn.o_proj.bias", "F32", "[1]", SLICE_LIT("\0\0\0\1"));
        refused(&d, plain, -EINVAL, "o_proj.bias is not zero");
        folder_remove(&d);
        d = folder_copy("v3-f32");
        tensor_add(folder_file(&d, F32), "model.layers.0.self_attn.o_proj.bias", "F32", "[1]", SLICE_LIT("\0\0\0\0"));
        accepted(&d, plain);
        folder_remove(&d);
}

static void more_memory_than_there_is_is_refused_with_how_much_is_missing(void **state) {
        const struct fixture_options one = {.isa = ISA_BEST, .threads = 1};
        struct compute *c = fixture_compute(&one);
        struct model *m = fixture_model(data_path("v3-f32", ""), c, (struct model_shard){0});
        struct kv_cache kv = {0};
        struct error e = {{0}};
        void *memory = NULL;

        assert_int_equal(kv_cache_new(m, KV_F32, 1024, UINT32_MAX, &kv, &e), -ENOMEM);
        assert_non_null(strstr(e.text, "the KV cache: "));
        assert_non_null(strstr(e.text, "GiB are missing"));
        assert_null(kv.memory);
        assert_int_equal(kv_cache_new(m, KV_F32, UINT32_MAX, UINT32_MAX, &kv, &e), -ENOMEM);
        assert_int_equal(kv_cache_new(m, KV_F32, 0, 1, &kv, &e), -EINVAL);
        assert_int_equal(memory_map("the model's weights", (size_t)1 << 46, &memory, &e), -ENOMEM);
        assert_null(memory);
        assert_int_equal(memory_map("x", 5 << 20, &memory, &e), 0);
        assert_int_equal((uintptr_t)memory % (2 << 20), 0);
        memset(memory, 1, 6 << 20); /* whole pages */
        memory_unmap(memory, 5 << 20);
        model_free(m);
        compute_free(c);
}

/* ---- the same model in another shape ------------------------------------------------------------------------------------- */

/* Logits of a short prompt. */
static float *run_folder(const struct folder *d, bool static_quantization, char *ret_digest) {
        const struct fixture_options one = {.isa = ISA_BEST, .threads = 1};
        struct compute *c = fixture_compute(&one);
        struct model_options o = {.dir = d->path, .compute = c, .static_quantization = static_quantization};
        struct model *m = NULL;
        struct error e = {{0}};
        const uint32_t tokens[] = {1, 400, 3, 77, 12, 300}, rows[] = {0, 1, 2, 3, 4, 5};
        struct model_span span = {.rows = 6, .naive = 4};
        const struct model_step step = {
            .tokens = tokens, .rows = 6, .spans = &span, .span_count = 1, .logit_rows = rows, .logit_count = 6};
        struct kv_cache kv;
        uint32_t *blocks;
        float *logits;

        if (model_load(&o, &m, &e) < 0)
                fail_msg("%s", e.text);
        blocks = fixture_cache(m, KV_F32, FIXTURE_BLOCK, 16, &kv);
        span.blocks = blocks;
        logits = calloc((size_t)6 * model_config(m)->vocab, sizeof(*logits));
        assert_non_null(logits);
        assert_int_equal(model_forward(m, &kv, &step, logits, NULL), 0);
        snprintf(ret_digest, 33, "%s", model_digest(m));
        kv_cache_free(&kv);
        free(blocks);
        model_free(m);
        compute_free(c);
        return logits;
}

enum relation { SAME, OTHER };

static void compare_folders(const struct folder *a, bool static_a, const struct folder *b, bool static_b,
    enum relation logits, enum relation digests, const char *what) {
        char digest_a[33], digest_b[33];
        float *x = run_folder(a, static_a, digest_a), *y = run_folder(b, static_b, digest_b);

        if ((memcmp(x, y, 6 * 512 * sizeof(*x)) == 0) != (logits == SAME))
                fail_msg("%s: logits", what);
        if ((strcmp(digest_a, digest_b) == 0) != (digests == SAME))
                fail_msg("%s: digests", what);
        free(x);
        free(y);
}

static void data_that_is_not_aligned_is_read_all_the_same(void **state) {
        static const char *const names[] = {"v2-greedy", "v3-f32", "v3-fp8"};

        for (size_t i = 0; i < sizeof(names) / sizeof(*names); i++) {
                struct folder a = folder_copy(names[i]), b = folder_copy(names[i]);

                header_replace(folder_file(&b, F32), SLICE_LIT(HEADER_BEGIN), SLICE_LIT(HEADER_BEGIN " "), SLICE_NONE);
                compare_folders(&a, false, &b, false, SAME, SAME, names[i]);
                folder_remove(&a);
                folder_remove(&b);
        }
}

static void the_digest_tells_models_apart_and_not_files(void **state) {
        static const uint16_t other = 0x4000;
        struct folder a = folder_copy("v3-bf16"), b = folder_copy("v3-bf16");

        unlink(folder_file(&b, "model.safetensors.index.json"));
        unlink(folder_file(&b, "generation_config.json"));
        rename(folder_file(&b, "model-00001-of-00003.safetensors"), folder_file(&b, "z.safetensors"));
        compare_folders(&a, false, &b, false, SAME, SAME, "other file names");
        file_replace(folder_file(&b, "config.json"), SLICE_LIT("1e-06"), SLICE_LIT("1e-05"), ONE);
        compare_folders(&a, false, &b, false, OTHER, OTHER, "other epsilon");
        folder_remove(&b);
        b = folder_copy("v3-bf16");
        for (int i = 1; i <= 3; i++) {
                char name[64];
                struct safetensors s = {0};
                struct error e = {{0}};
                bool here;

                snprintf(name, sizeof(name), "model-0000%d-of-00003.safetensors", i);
                assert_int_equal(safetensors_add_file(&s, folder_file(&b, name), &e), 0);
                here = safetensors_find(&s, SLICE_LIT("model.layers.1.input_layernorm.weight"));
                safetensors_close(&s);
                if (here)
                        tensor_patch(folder_file(&b, name), "model.layers.1.input_layernorm.weight", 0, &other, 2);
        }
        compare_folders(&a, false, &b, false, OTHER, OTHER, "a fine-tune");
        folder_remove(&a);
        folder_remove(&b);
}

/* Smoothed exports have the norm that counts under another name. */
static void the_digest_tells_smoothed_exports_apart(void **state) {
        static const uint16_t other = 0x4000;
        struct folder a = folder_copy("v3-w8a8-int64"), b = folder_copy("v3-w8a8-int64");

        tensor_patch(folder_file(&b, "quant_model_weight_w8a8_dynamic-00002-of-00002.safetensors"),
            "model.layers.1.input_layernorm.module.weight", 0, &other, 2);
        compare_folders(&a, false, &b, false, OTHER, OTHER, "a smoothed fine-tune");
        folder_remove(&a);
        folder_remove(&b);
}

/* A layer with both kinds of scales is one of them, as the engine's role has it. */
static void mixed_layers_are_static_or_dynamic_by_role(void **state) {
        struct folder plain_folder = folder_copy("v3-w8a8"), mix = folder_copy("v3-w8a8"), dynamic;
        float scales[112];
        const char *layer = "\"model.layers.0.self_attn.o_proj.weight\": \"W8A8";
        char from[128], to[128];

        /* The index does not name the new tensor; it is found all the same. */
        for (int i = 0; i < 112; i++)
                scales[i] = 0.01f + 0.0001f * (float)i;
        tensor_add(folder_file(&mix, W8A8), "model.layers.0.self_attn.o_proj.weight_scale", "F32", "[112,1]",
            slice_of(scales, sizeof(scales)));
        snprintf(from, sizeof(from), "%s\"", layer);
        snprintf(to, sizeof(to), "%s_MIX\"", layer);
        file_replace(folder_file(&mix, "quant_model_description.json"), slice_str(from), slice_str(to), ONE);
        compare_folders(&plain_folder, false, &mix, true, SAME, OTHER, "static");
        compare_folders(&mix, false, &mix, true, OTHER, SAME, "the role");
        dynamic = folder_copy("v3-w8a8");
        tensor_add(folder_file(&dynamic, W8A8), "model.layers.0.self_attn.o_proj.weight_scale", "F32", "[112,1]",
            slice_of(scales, sizeof(scales)));
        snprintf(to, sizeof(to), "%s_DYNAMIC\"", layer);
        file_replace(folder_file(&dynamic, "quant_model_description.json"), slice_str(from), slice_str(to), ONE);
        compare_folders(&dynamic, true, &mix, false, SAME, SAME, "dynamic");
        folder_remove(&plain_folder);
        folder_remove(&mix);
        folder_remove(&dynamic);
}

static void tied_embeddings_are_the_head(void **state) {
        struct folder a = folder_copy("v3-f32"), b = folder_copy("v3-f32");
        struct buf file = file_read(folder_file(&a, F32));
        struct slice header = tensor_file_header(&file);

        /* The head gets the embedding's data, once as its own tensor and once by the setting. */
        memmove((char *)(uintptr_t)header.ptr + header.len, header.ptr + header.len + 166400, 166400);
        file_write(folder_file(&a, F32), buf_slice(&file));
        header_replace(folder_file(&b, F32), SLICE_LIT("\"lm_head.weight\""), SLICE_LIT("\"unused\""), SLICE_NONE);
        refused(&b, (struct model_options){0}, -EINVAL, "tensor lm_head.weight is in none");
        file_replace(folder_file(&b, "config.json"), SLICE_LIT("\"tie_word_embeddings\": false"),
            SLICE_LIT("\"tie_word_embeddings\": true"), ONE);
        compare_folders(&a, false, &b, false, SAME, OTHER, "tied");
        buf_free(&file);
        folder_remove(&a);
        folder_remove(&b);
}

int main(void) {
        const struct CMUnitTest tests[] = {
            cmocka_unit_test(every_wrong_file_is_named),
            cmocka_unit_test(a_cut_file_is_refused_wherever_it_is_cut),
            cmocka_unit_test(missing_files_are_named),
            cmocka_unit_test(a_folder_with_two_indices_is_ambiguous),
            cmocka_unit_test(the_quantization_asked_for_must_be_there),
            cmocka_unit_test(hostile_headers_are_refused),
            cmocka_unit_test(tensors_of_unknown_types_do_no_harm),
            cmocka_unit_test(damaged_values_are_refused),
            cmocka_unit_test(more_memory_than_there_is_is_refused_with_how_much_is_missing),
            cmocka_unit_test(data_that_is_not_aligned_is_read_all_the_same),
            cmocka_unit_test(the_digest_tells_models_apart_and_not_files),
            cmocka_unit_test(the_digest_tells_smoothed_exports_apart),
            cmocka_unit_test(mixed_layers_are_static_or_dynamic_by_role),
            cmocka_unit_test(tied_embeddings_are_the_head),
        };

        return cmocka_run_group_tests_name("checkpoint", tests, NULL, NULL);
}
