/* test_config.c - config.json is read as transformers means it, and refused with the field's name. */
#include "folder.h"

static void values_are_those_of_the_file(void **state) {
        struct model_config c;
        struct error e = {{0}};

        assert_int_equal(model_config_read(data_path("v3-fp8", ""), &c, &e), 0);
        assert_string_equal(c.architecture, "DeepseekV3ForCausalLM");
        assert_true(c.is_v3);
        assert_int_equal(c.vocab, 520);
        assert_int_equal(c.hidden, 144);
        assert_int_equal(c.layers, 2);
        assert_int_equal(c.heads, 3);
        assert_int_equal(c.q_lora, 136);
        assert_int_equal(c.experts, 6);
        assert_int_equal(c.gate, GATE_SIGMOID_NOAUX);
        assert_true(c.norm_topk && c.fp8);
        assert_int_equal(c.fp8_block_n, 128);
        assert_int_equal(c.mtp_layers, 1);
        assert_true(fabsf(c.routed_scale - 2.5f) == 0);
        assert_int_equal(c.bos, 0);
        assert_int_equal(c.eos_count, 1);
        assert_int_equal(c.eos[0], 1);
        assert_int_equal(model_config_read(data_path("v2-greedy", ""), &c, &e), 0);
        assert_false(c.is_v3 || c.norm_topk);
        assert_int_equal(c.q_lora, 0);
        assert_int_equal(c.gate, GATE_SOFTMAX_GREEDY);
        assert_int_equal(model_config_read(data_path("v2-group", ""), &c, &e), 0);
        assert_int_equal(c.gate, GATE_SOFTMAX_GROUPS);
}

static void layers_are_dense_or_moe_by_the_two_fields(void **state) {
        const struct model_config c = {.experts = 8, .dense_layers = 3, .moe_freq = 2};
        const struct model_config none = {.moe_freq = 1};

        assert_false(model_layer_is_moe(&c, 2));
        assert_false(model_layer_is_moe(&c, 3));
        assert_true(model_layer_is_moe(&c, 4));
        assert_false(model_layer_is_moe(&none, 4));
}

/* The released V3: 192^-0.5 * (0.1 ln 40 + 1)^2. */
static void the_softmax_scale_has_mscale_squared(void **state) {
        struct folder d = folder_copy("v3-f32");
        struct model_config c;
        struct error e = {{0}};
        const char *path = folder_file(&d, "config.json");

        file_replace(path, SLICE_LIT("\"qk_nope_head_dim\": 16"), SLICE_LIT("\"qk_nope_head_dim\": 128"), ONE);
        file_replace(path, SLICE_LIT("\"qk_rope_head_dim\": 16"), SLICE_LIT("\"qk_rope_head_dim\": 64"), ONE);
        file_replace(path, SLICE_LIT("\"factor\": 8"), SLICE_LIT("\"factor\": 40"), ONE);
        assert_int_equal(model_config_read(d.path, &c, &e), 0);
        assert_true(fabs((double)c.softmax_scale - 0.135234) < 1e-6);
        folder_remove(&d);
}

/* One replacement in v3-f32's config.json. `text` NULL: still fine. */
struct edit {
        const char *from, *to, *text;
};

static const struct edit edits[] = {
    {" \"DeepseekV3ForCausalLM\"", " \"LlamaForCausalLM\"",
        "architecture LlamaForCausalLM is not supported; supported are DeepseekV2ForCausalLM and "
        "DeepseekV3ForCausalLM"},
    {"\"architectures\": [", "\"no_architectures\": [", NULL}, /* model_type tells */
    {"\"hidden_size\": 80", "\"hidden_size\": \"80\"",
        "hidden_size must be a whole number from 1 to 262144, is \"80\""},
    {"\"hidden_size\": 80", "\"hidden_size\": 80.0", NULL},
    {"\"hidden_size\": 80", "\"hidden_size\": 80.5", "hidden_size must be a whole number"},
    {"\"hidden_size\": 80", "\"hidden_size\": -1", "hidden_size must be a whole number"},
    {"\"hidden_size\": 80", "\"hidden_size\": 1e300", "hidden_size must be a whole number"},
    {"\"hidden_size\": 80", "\"hidden_sizes\": 80", "hidden_size is missing"},
    {"\"hidden_size\": 80", "\"hidden_size\": null", "hidden_size is missing"},
    {"\"vocab_size\": 520", "\"vocab_size\": 0", "vocab_size must be"},
    {"\"vocab_size\": 520", "\"vocab_size\": 4000000000", "vocab_size must be"},
    {"\"num_hidden_layers\": 3", "\"num_hidden_layers\": 100000", "num_hidden_layers must be"},
    {"\"q_lora_rank\": 48", "\"q_lora_rank\": null", NULL},
    {"\"q_lora_rank\": 48", "\"q_lora_rank\": true", "q_lora_rank must be"},
    {"\"kv_lora_rank\": 32", "\"kv_lora_rank\": 4090", "together more than 4096"},
    {"\"qk_rope_head_dim\": 16", "\"qk_rope_head_dim\": 15", "qk_rope_head_dim 15 is odd"},
    {"\"num_experts_per_tok\": 4", "\"num_experts_per_tok\": 13", "is more than n_routed_experts 12"},
    {"\"num_experts_per_tok\": 4", "\"num_experts_per_tok\": 7", "more than the 6 experts of topk_group 2 groups"},
    {"\"n_group\": 4", "\"n_group\": 5", "do not divide into n_group 5"},
    {"\"n_group\": 4", "\"n_group\": 12", "fewer than two experts"},
    {"\"topk_group\": 2", "\"topk_group\": 5", "topk_group 5 is more than n_group 4"},
    {"\"n_routed_experts\": 12", "\"n_routed_experts\": null", NULL},
    {"\"topk_method\": \"noaux_tc\"", "\"topk_method\": \"greedy\"", "topk_method must be \"noaux_tc\" in a V3 model"},
    {"\"topk_method\": \"noaux_tc\"", "\"topk_method\": null", NULL},
    {"\"scoring_func\": \"sigmoid\"", "\"scoring_func\": \"softmax\"", "scoring_func must be \"sigmoid\""},
    {"\"norm_topk_prob\": true", "\"norm_topk_prob\": 1", "norm_topk_prob must be true or false, is 1"},
    {"\"routed_scaling_factor\": 2.5", "\"routed_scaling_factor\": 0",
        "routed_scaling_factor must be a number above 0"},
    {"\"routed_scaling_factor\": 2.5", "\"routed_scaling_factor\": 1e300", "routed_scaling_factor must be"},
    {"\"rms_norm_eps\": 1e-06", "\"rms_norm_eps\": \"x\"", "rms_norm_eps must be"},
    {"\"hidden_act\": \"silu\"", "\"hidden_act\": \"gelu\"", "hidden_act must be \"silu\", is \"gelu\""},
    {"\"attention_bias\": false", "\"attention_bias\": true", "attention_bias is true"},
    {"\"rope_theta\": 10000", "\"rope_thetas\": 10000", "rope_theta is missing"},
    {"\"type\": \"yarn\"", "\"type\": \"linear\"",
        "the type of rope_scaling must be \"yarn\" or \"default\", is \"linear\""},
    {"\"type\": \"yarn\"", "\"rope_type\": \"yarn\"", NULL},
    {"\"type\": \"yarn\"", "\"type\": \"default\"", NULL},
    {"\"type\": \"yarn\"", "\"type\": \"yarn\", \"attention_factor\": 1.2", "attention_factor"},
    {"\"factor\": 8", "\"factor\": -8", "factor must be a number above 0"},
    {"\"original_max_position_embeddings\": 32", "\"original\": 32", "original_max_position_embeddings is missing"},
    {"\"mscale_all_dim\": 1.0", "\"mscale_all_dim\": []", "mscale_all_dim must be"},
    {"\"max_position_embeddings\": 256", "\"max_position_embeddings\": 1e9", "max_position_embeddings must be"},
    /* Of several members with one name the last counts. */
    {"\"vocab_size\": 520", "\"vocab_size\": 520, \"max_position_embeddings\": 4194304, \"qk_rope_head_dim\": 64",
        "max_position_embeddings 4194304 times qk_rope_head_dim 64 is more than"},
    /* Shapes that the attention kernels' scratch memory cannot hold: prompts would end the process. */
    {"\"vocab_size\": 520", "\"vocab_size\": 520, \"num_attention_heads\": 1024, \"qk_nope_head_dim\": 192",
        "num_attention_heads 1024 times the 192 + 16 + 24"},
    {"\"vocab_size\": 520", "\"vocab_size\": 520, \"max_position_embeddings\": 65536, \"kv_lora_rank\": 4000",
        "max_position_embeddings 65536 times kv_lora_rank 4000 is more than"},
    {"\"eos_token_id\": 1", "\"eos_token_id\": [1, 2, 1]", NULL},
    {"\"eos_token_id\": 1", "\"eos_token_id\": []", NULL},
    {"\"eos_token_id\": 1", "\"eos_token_id\": [1, []]", "eos_token_id must be an id below vocab_size"},
    {"\"eos_token_id\": 1", "\"eos_token_id\": 520", "eos_token_id must be an id below vocab_size"},
    {"\"eos_token_id\": 1", "\"eos_token_id\": [1,2,3,4,5,6,7,8,9]", "more than 8 ids"},
    {"\"bos_token_id\": 0", "\"bos_token_id\": null", NULL},
    {"\"bos_token_id\": 0", "\"bos_token_id\": \"<s>\"", "bos_token_id must be"},
    {"\"torch_dtype\"", "\"quantization_config\": 8, \"torch_dtype\"", "quantization_config must be an object"},
    {"\"torch_dtype\"", "\"quantization_config\": {\"quant_method\": \"awq\"}, \"torch_dtype\"",
        "quant_method must be \"fp8\" or \"ascend\", is \"awq\""},
    {"\"torch_dtype\"", "\"quantization_config\": {\"quant_method\": \"fp8\"}, \"torch_dtype\"",
        "weight_block_size is missing"},
    {"\"torch_dtype\"",
        "\"quantization_config\": {\"quant_method\": \"fp8\", \"weight_block_size\": [128, 0]}, \"torch_dtype\"",
        "weight_block_size must be two whole numbers"},
    {"\"torch_dtype\"",
        "\"quantization_config\": {\"quant_method\": \"fp8\", \"fmt\": \"e5m2\", \"weight_block_size\": [128, 128]}, "
        "\"torch_dtype\"",
        "fmt must be \"e4m3\""},
    {"\"torch_dtype\"", "torch_dtype", "not JSON"},
};

static void every_wrong_field_is_named(void **state) {
        for (size_t i = 0; i < sizeof(edits) / sizeof(*edits); i++) {
                struct folder d = folder_copy("v3-f32");
                struct model_config c;
                struct error e = {{0}};
                int r;

                file_replace(folder_file(&d, "config.json"), slice_str(edits[i].from), slice_str(edits[i].to), ONE);
                r = model_config_read(d.path, &c, &e);
                if (!edits[i].text ? r != 0 : r != -EINVAL || !strstr(e.text, edits[i].text) || !strstr(e.text, d.path))
                        fail_msg("%s instead of %s gives %d \"%s\"", edits[i].to, edits[i].from, r, e.text);
                folder_remove(&d);
        }
}

static void both_forms_of_rope_settings_are_the_same(void **state) {
        struct folder d = folder_copy("v3-mscale");
        struct model_config old, new;
        struct error e = {{0}};
        const char *path = folder_file(&d, "config.json");

        assert_int_equal(model_config_read(d.path, &old, &e), 0);
        file_replace(path, SLICE_LIT("\"rope_theta\": 10000,"), SLICE_LIT(""), ONE);
        file_replace(
            path, SLICE_LIT("\"rope_scaling\": {"), SLICE_LIT("\"rope_parameters\": {\"rope_theta\": 10000,"), ONE);
        file_replace(path, SLICE_LIT("\"type\": \"yarn\""), SLICE_LIT("\"rope_type\": \"yarn\""), ONE);
        assert_int_equal(model_config_read(d.path, &new, &e), 0);
        assert_memory_equal(&new.rope_scaling, &old.rope_scaling, sizeof(old.rope_scaling));
        assert_true(old.rope_scaling.yarn);
        folder_remove(&d);
}

static void ends_of_the_generation_config_count_too(void **state) {
        struct folder d = folder_copy("v3-f32");
        struct model_config c;
        struct error e = {{0}};

        file_write(folder_file(&d, "generation_config.json"), SLICE_LIT("{\"eos_token_id\": [1, 7]}"));
        assert_int_equal(model_config_read(d.path, &c, &e), 0);
        assert_int_equal(c.eos_count, 2);
        assert_int_equal(c.eos[1], 7);
        file_write(folder_file(&d, "generation_config.json"), SLICE_LIT("{\"eos_token_id\": \"x\"}"));
        assert_int_equal(model_config_read(d.path, &c, &e), -EINVAL);
        assert_non_null(strstr(e.text, "generation_config.json"));
        unlink(folder_file(&d, "generation_config.json"));
        assert_int_equal(model_config_read(d.path, &c, &e), 0);
        assert_int_equal(c.eos_count, 1);
        folder_remove(&d);
}

static void a_folder_without_config_is_no_model(void **state) {
        struct folder d = folder_copy("v3-f32");
        struct model_config c;
        struct error e = {{0}};

        unlink(folder_file(&d, "config.json"));
        assert_int_equal(model_config_read(d.path, &c, &e), -ENOENT);
        assert_non_null(strstr(e.text, "config.json"));
        assert_int_equal(model_config_read("/nowhere/at/all", &c, &e), -ENOENT);
        folder_remove(&d);
}

int main(void) {
        const struct CMUnitTest tests[] = {
            cmocka_unit_test(values_are_those_of_the_file),
            cmocka_unit_test(layers_are_dense_or_moe_by_the_two_fields),
            cmocka_unit_test(the_softmax_scale_has_mscale_squared),
            cmocka_unit_test(every_wrong_field_is_named),
            cmocka_unit_test(both_forms_of_rope_settings_are_the_same),
            cmocka_unit_test(ends_of_the_generation_config_count_too),
            cmocka_unit_test(a_folder_without_config_is_no_model),
        };

        return cmocka_run_group_tests_name("config", tests, NULL, NULL);
}
