/* test_write.c - answers, chunks and errors have the bytes that vLLM's have. */
#include "openai/openai.h"
#include "recorded.h"

/* ---- recorded answers, taken apart and written again ------------------------------------------------------------------ */

/* Memory of one rebuilt answer. */
struct rebuilt {
        struct arena arena;
        struct buf calls, prompt_logprobs;
        struct openai_logprobs logprobs[8];
};

static void rebuilt_free(struct rebuilt *b) {
        arena_free(&b->arena);
        buf_free(&b->calls);
        buf_free(&b->prompt_logprobs);
        for (size_t i = 0; i < 8; i++)
                openai_logprobs_free(&b->logprobs[i]);
}

static struct openai_ids ids_of(struct rebuilt *b, yyjson_val *v) {
        struct openai_ids ids = {0};
        uint32_t *copy;

        if (!yyjson_is_arr(v))
                return ids;
        copy = arena_array(&b->arena, yyjson_arr_size(v) + 1, sizeof(*copy));
        for (size_t i = 0; i < yyjson_arr_size(v); i++)
                copy[i] = (uint32_t)yyjson_get_uint(yyjson_arr_get(v, i));
        return (struct openai_ids){copy, yyjson_arr_size(v)};
}

static struct openai_stop stop_of(yyjson_val *v) {
        if (yyjson_is_str(v))
                return (struct openai_stop){OPENAI_STOP_TEXT, .text = json_slice(v)};
        if (yyjson_is_int(v))
                return (struct openai_stop){OPENAI_STOP_ID, .id = yyjson_get_sint(v)};
        return (struct openai_stop){0};
}

/* Ids are not in the answers: the text's place in the list tells tokens apart, the same text is the same token. */
static uint32_t made_up_id(const struct openai_token_text *list, size_t count, struct slice text) {
        for (size_t i = 0; i < count; i++)
                if (slice_eq(list[i].text, text))
                        return list[i].id;
        return (uint32_t)count + 1;
}

static uint32_t id_in_name(struct slice name, uint32_t otherwise) {
        uint64_t id;

        if (slice_starts(name, SLICE_LIT("token_id:")) && slice_to_u64(slice_sub(name, 9, name.len), &id) == 0)
                return (uint32_t)id;
        return otherwise;
}

static void rebuild_completion_logprobs(struct openai_logprobs *l, yyjson_val *v) {
        yyjson_val *tokens = json_get(v, "tokens"), *values = json_get(v, "token_logprobs"),
                   *tops = json_get(v, "top_logprobs");

        l->offset = (size_t)yyjson_get_uint(yyjson_arr_get_first(json_get(v, "text_offset")));
        for (size_t i = 0; i < yyjson_arr_size(tokens); i++) {
                struct openai_token_text best[32];
                struct openai_token_logprobs t = {.best = best, .top = 20};
                yyjson_val *top = yyjson_arr_get(tops, i), *key;
                yyjson_obj_iter iter;

                t.taken.text = json_slice(yyjson_arr_get(tokens, i));
                t.known = yyjson_is_num(yyjson_arr_get(values, i));
                t.taken.logprob = (float)yyjson_get_num(yyjson_arr_get(values, i));
                t.taken.id = id_in_name(t.taken.text, 1);
                l->as_ids = slice_starts(t.taken.text, SLICE_LIT("token_id:"));
                if (t.known)
                        for (yyjson_obj_iter_init(top, &iter); (key = yyjson_obj_iter_next(&iter));) {
                                struct openai_token_text *b = &best[t.best_count];

                                b->text = json_slice(key);
                                b->logprob = (float)yyjson_get_num(yyjson_obj_iter_get_val(key));
                                b->id = slice_eq(b->text, t.taken.text)
                                            ? t.taken.id
                                            : id_in_name(b->text, (uint32_t)t.best_count + 2);
                                t.best_count++;
                        }
                openai_logprobs_add(l, &t);
        }
}

static void rebuild_chat_logprobs(struct openai_logprobs *l, yyjson_val *v) {
        yyjson_val *content = json_get(v, "content");

        for (size_t i = 0; i < yyjson_arr_size(content); i++) {
                yyjson_val *item = yyjson_arr_get(content, i), *tops = json_get(item, "top_logprobs");
                struct openai_token_text best[32] = {0};
                struct openai_token_logprobs t = {.best = best, .known = true, .top = yyjson_arr_size(tops)};

                t.taken = (struct openai_token_text){.id = 1,
                    .text = json_get_slice(item, "token"),
                    .logprob = (float)json_get_double(item, "logprob", 0)};
                for (size_t k = 0; k < t.top; k++) {
                        yyjson_val *top = yyjson_arr_get(tops, k);
                        struct slice text = json_get_slice(top, "token");

                        best[k] = (struct openai_token_text){.id = made_up_id(best, k, text),
                            .text = text,
                            .logprob = (float)json_get_double(top, "logprob", 0)};
                        t.best_count++;
                }
                openai_logprobs_add(l, &t);
        }
}

static struct openai_logprobs *rebuild_logprobs(struct rebuilt *b, size_t i, enum openai_kind kind, yyjson_val *v) {
        struct openai_logprobs *l = &b->logprobs[i];

        if (!yyjson_is_obj(v))
                return NULL;
        openai_logprobs_free(l);
        *l = (struct openai_logprobs){.kind = kind};
        if (kind == OPENAI_CHAT)
                rebuild_chat_logprobs(l, v);
        else
                rebuild_completion_logprobs(l, v);
        return l;
}

static struct slice rebuild_prompt_logprobs(struct rebuilt *b, yyjson_val *v) {
        if (!yyjson_is_arr(v))
                return SLICE_NONE;
        buf_reset(&b->prompt_logprobs);
        buf_add_char(&b->prompt_logprobs, '[');
        for (size_t i = 0; i < yyjson_arr_size(v); i++) {
                yyjson_val *at = yyjson_arr_get(v, i), *key;
                struct openai_token_text list[32];
                struct openai_token_logprobs t = {.best = list + 1, .known = yyjson_is_obj(at)};
                yyjson_obj_iter iter;
                size_t n = 0;

                if (t.known) {
                        for (yyjson_obj_iter_init(at, &iter); (key = yyjson_obj_iter_next(&iter)); n++) {
                                yyjson_val *one = yyjson_obj_iter_get_val(key);

                                list[n] = (struct openai_token_text){.id = (uint32_t)atoi(yyjson_get_str(key)),
                                    .logprob = (float)json_get_double(one, "logprob", 0),
                                    .rank = (uint32_t)json_get_i64(one, "rank", 0),
                                    .text = json_get_slice(one, "decoded_token")};
                        }
                        t.taken = list[0];
                        t.best_count = n - 1;
                }
                if (i)
                        buf_add_char(&b->prompt_logprobs, ',');
                openai_write_prompt_logprobs(&b->prompt_logprobs, &t);
        }
        buf_add_char(&b->prompt_logprobs, ']');
        return buf_slice(&b->prompt_logprobs);
}

static struct openai_usage usage_of(yyjson_val *v) {
        yyjson_val *details = json_get(v, "prompt_tokens_details");

        return (struct openai_usage){.prompt = (uint64_t)json_get_i64(v, "prompt_tokens", 0),
            .completion = (uint64_t)json_get_i64(v, "completion_tokens", 0),
            .has_cached = yyjson_is_obj(details),
            .cached = (uint64_t)json_get_i64(details, "cached_tokens", 0)};
}

static struct openai_answer answer_of(yyjson_val *root, enum openai_kind kind) {
        struct slice print = json_get_slice(root, "system_fingerprint");

        return (struct openai_answer){.kind = kind,
            .id = json_get_slice(root, "id"),
            .model = json_get_slice(root, "model"),
            .created = json_get_i64(root, "created", 0),
            .fingerprint = print};
}

static void rewrite_answer(struct slice text, enum openai_kind kind, struct buf *out) {
        struct rebuilt b = {0};
        struct openai_choice choices[4] = {0};
        yyjson_doc *doc = NULL;
        yyjson_val *root, *list;
        struct openai_answer a;
        struct openai_usage usage;

        assert_int_equal(json_parse(text, &doc, NULL), 0);
        root = yyjson_doc_get_root(doc);
        list = json_get(root, "choices");
        a = answer_of(root, kind);
        usage = usage_of(json_get(root, "usage"));
        assert_in_range(yyjson_arr_size(list), 1, 4);
        for (size_t i = 0; i < yyjson_arr_size(list); i++) {
                yyjson_val *c = yyjson_arr_get(list, i), *of_prompt = kind == OPENAI_CHAT ? root : c;
                yyjson_val *message = json_get(c, "message");

                choices[i] = (struct openai_choice){.index = (uint32_t)json_get_i64(c, "index", 99),
                    .text = kind == OPENAI_CHAT ? json_get_slice(message, "content") : json_get_slice(c, "text"),
                    .reasoning = json_get_slice(message, "reasoning"),
                    .logprobs = rebuild_logprobs(&b, i, kind, json_get(c, "logprobs")),
                    .finish_reason = yyjson_get_str(json_get(c, "finish_reason")),
                    .stop = stop_of(json_get(c, "stop_reason")),
                    .token_ids = ids_of(&b, json_get(c, "token_ids")),
                    .prompt_ids = ids_of(&b, json_get(of_prompt, "prompt_token_ids")),
                    .prompt_logprobs = rebuild_prompt_logprobs(&b, json_get(of_prompt, "prompt_logprobs"))};
        }
        openai_write_answer(out, &a, choices, yyjson_arr_size(list), &usage, SLICE_NONE);
        rebuilt_free(&b);
        yyjson_doc_free(doc);
}

static void rewrite_chunk(struct slice event, enum openai_kind kind, struct buf *out) {
        struct rebuilt b = {0};
        yyjson_doc *doc = NULL;
        yyjson_val *root, *c, *delta, *usage;
        struct openai_answer a;
        struct openai_usage told;
        struct openai_chunk chunk;

        if (json_parse(slice_sub(event, 6, event.len), &doc, NULL) < 0)
                fail_msg("an event that is no JSON: %.*s", SLICE_ARG(event));
        root = yyjson_doc_get_root(doc);
        a = answer_of(root, kind);
        c = yyjson_arr_get_first(json_get(root, "choices"));
        delta = json_get(c, "delta");
        usage = json_get(root, "usage");
        told = usage_of(usage);
        chunk = (struct openai_chunk){.index = (uint32_t)json_get_i64(c, "index", 0),
            .what = !c                                   ? OPENAI_CHUNK_USAGE
                    : json_get(delta, "role")            ? OPENAI_CHUNK_ROLE
                    : delta && !json_get(c, "token_ids") ? OPENAI_CHUNK_ECHO
                                                         : OPENAI_CHUNK_DELTA,
            .text = kind == OPENAI_CHAT ? json_get_slice(delta, "content") : json_get_slice(c, "text"),
            .logprobs = rebuild_logprobs(&b, 0, kind, json_get(c, "logprobs")),
            .finish_reason = yyjson_get_str(json_get(c, "finish_reason")),
            .stop = stop_of(json_get(c, "stop_reason")),
            .token_ids = ids_of(&b, json_get(c, "token_ids")),
            .prompt_ids = ids_of(&b, json_get(kind == OPENAI_CHAT ? root : c, "prompt_token_ids")),
            .usage = usage ? &told : NULL,
            .fingerprint = a.fingerprint.ptr != NULL};
        /* The echo has no token_ids member at all; a delta has one that is null. */
        openai_write_chunk(out, &a, &chunk);
        rebuilt_free(&b);
        yyjson_doc_free(doc);
}

static void rewrite_stream(struct slice text, enum openai_kind kind, struct buf *out) {
        while (text.len) {
                struct slice event = slice_take(&text, slice_find_slice(text, SLICE_LIT("\n\n"), 0));

                slice_take(&text, 2);
                if (slice_is(event, "data: [DONE]"))
                        buf_add(out, OPENAI_DONE);
                else
                        rewrite_chunk(event, kind, out);
        }
}

static unsigned rewrite_all(const char *name) {
        struct recording recording;
        struct recorded x;
        unsigned count = 0;

        recording_open(&recording, name);
        while (recording_next(&recording, &x)) {
                bool chat = slice_starts(x.path, SLICE_LIT("/v1/chat/completions")),
                     completion = slice_starts(x.path, SLICE_LIT("/v1/completions"));
                bool render = slice_ends(x.path, SLICE_LIT("render"));
                struct buf out = {0};

                if (x.status == 200 && slice_is(x.method, "POST") && !render && (chat || completion)) {
                        enum openai_kind kind = chat ? OPENAI_CHAT : OPENAI_COMPLETION;

                        if (slice_starts(x.response, SLICE_LIT("data: ")))
                                rewrite_stream(x.response, kind, &out);
                        else
                                rewrite_answer(x.response, kind, &out);
                        if (!slice_eq(buf_slice(&out), x.response))
                                fail_msg(
                                    "%.*s:\n%s\nvLLM:\n%.*s", SLICE_ARG(x.name), buf_cstr(&out), SLICE_ARG(x.response));
                        count++;
                }
                buf_free(&out);
                yyjson_doc_free(x.document);
        }
        recording_close(&recording);
        return count;
}

static void recorded_answers_are_written_byte_for_byte(void **state) {
        (void)state;
        assert_in_range(rewrite_all("base"), 100, 200);
        assert_in_range(rewrite_all("flags"), 10, 40);
}

/* ---- what was not recorded -------------------------------------------------------------------------------------------- */

static const struct openai_answer chat = {OPENAI_CHAT, SLICE_LIT("chatcmpl-1"), SLICE_LIT("m"), SLICE_LIT("f"), 7};

static void calls_and_reasoning_have_their_places(void **state) {
        struct buf calls = {0}, out = {0};
        struct openai_tool_call a = {SLICE_LIT("c1"), SLICE_LIT("f"), SLICE_LIT("{\"x\": 1}")},
                                b = {SLICE_LIT("c2"), SLICE_LIT("g"), SLICE_LIT("")};
        struct openai_choice choice = {.finish_reason = "tool_calls", .reasoning = SLICE_LIT("why")};
        struct openai_usage usage = {.prompt = 1, .completion = 2};

        (void)state;
        openai_write_tool_call(&calls, &a);
        openai_write_tool_call(&calls, &b);
        choice.tool_calls = buf_slice(&calls);
        openai_write_answer(&out, &chat, &choice, 1, &usage, SLICE_LIT("{\"remote\":[1]}"));
        assert_string_equal(buf_cstr(&out),
            "{\"id\":\"chatcmpl-1\",\"object\":\"chat.completion\",\"created\":7,\"model\":\"m\",\"choices\":[{"
            "\"index\":0,"
            "\"message\":{\"role\":\"assistant\",\"content\":null,\"refusal\":null,\"annotations\":null,\"audio\":null,"
            "\"function_call\":null,\"tool_calls\":[{\"id\":\"c1\",\"type\":\"function\",\"function\":{\"name\":\"f\","
            "\"arguments\":\"{\\\"x\\\": 1}\"}},{\"id\":\"c2\",\"type\":\"function\",\"function\":{\"name\":\"g\","
            "\"arguments\":\"\"}}],\"reasoning\":\"why\"},\"logprobs\":null,\"finish_reason\":\"tool_calls\","
            "\"stop_reason\":null,\"token_ids\":null,\"routed_experts\":null}],\"service_tier\":null,"
            "\"system_fingerprint\":\"f\",\"usage\":{\"prompt_tokens\":1,\"total_tokens\":3,\"completion_tokens\":2,"
            "\"prompt_tokens_details\":null,\"completion_tokens_details\":null},\"prompt_logprobs\":null,"
            "\"prompt_token_ids\":null,\"prompt_text\":null,\"kv_transfer_params\":{\"remote\":[1]},"
            "\"ec_transfer_params\":null,\"metrics\":null}");
        buf_free(&calls);
        buf_free(&out);
}

static void streamed_calls_begin_with_a_name_and_go_on_with_fragments(void **state) {
        struct buf calls = {0}, out = {0};
        struct openai_chunk c = {.what = OPENAI_CHUNK_DELTA, .reasoning = SLICE_LIT("so")};

        (void)state;
        openai_write_tool_delta(&calls, 0, SLICE_LIT("c1"), SLICE_LIT("f"), SLICE_LIT(""));
        openai_write_tool_delta(&calls, 0, SLICE_NONE, SLICE_NONE, SLICE_LIT("{}"));
        c.tool_calls = buf_slice(&calls);
        openai_write_chunk(&out, &chat, &c);
        assert_string_equal(buf_cstr(&out),
            "data: "
            "{\"id\":\"chatcmpl-1\",\"object\":\"chat.completion.chunk\",\"created\":7,\"model\":\"m\",\"choices\":"
            "[{\"index\":0,\"delta\":{\"reasoning\":\"so\",\"tool_calls\":[{\"id\":\"c1\",\"type\":\"function\","
            "\"index\":0,"
            "\"function\":{\"name\":\"f\",\"arguments\":\"\"}},{\"index\":0,\"function\":{\"arguments\":\"{}\"}}]},"
            "\"logprobs\":null,\"finish_reason\":null,\"token_ids\":null}]}\n\n");
        buf_free(&calls);
        buf_free(&out);
}

static void no_infinity_gets_into_json(void **state) {
        struct openai_logprobs l = {.kind = OPENAI_COMPLETION};
        struct openai_token_logprobs t = {
            .taken = {.id = 1, .logprob = -__builtin_inff(), .text = SLICE_LIT("a")}, .known = true};
        struct buf out = {0};

        (void)state;
        openai_logprobs_add(&l, &t);
        assert_string_equal(buf_cstr(&l.list[1]), "-9999.0");
        openai_write_prompt_logprobs(&out, &t);
        assert_string_equal(buf_cstr(&out), "{\"1\":{\"logprob\":-9999.0,\"rank\":0,\"decoded_token\":\"a\"}}");
        openai_logprobs_free(&l);
        buf_free(&out);
}

/* Tokens without text share the empty one, but an object has each key once. */
static void alternatives_with_the_same_text_are_told_once(void **state) {
        struct openai_token_text best[] = {
            {9, -1, 1, SLICE_LIT("")}, {8, -2, 2, SLICE_LIT("")}, {7, -3, 3, SLICE_LIT("b")}};
        struct openai_token_logprobs t = {
            .taken = {7, -3, 3, SLICE_LIT("b")}, .known = true, .best = best, .best_count = 3, .top = 3};
        struct openai_logprobs l = {.kind = OPENAI_COMPLETION};

        (void)state;
        openai_logprobs_add(&l, &t);
        assert_string_equal(buf_cstr(&l.list[2]), "{\"b\":-3.0,\"\":-1.0}");
        openai_logprobs_free(&l);
}

/* As many as a vocabulary has, every name twice: what compares all with all does not come to an end here. */
static void a_whole_vocabulary_of_alternatives_is_told(void **state) {
        enum { COUNT = 200000 };
        struct openai_token_text *best = calloc(COUNT, sizeof(*best));
        struct openai_logprobs l = {.kind = OPENAI_COMPLETION};
        struct openai_token_logprobs t = {.taken = {.id = COUNT, .text = SLICE_LIT("taken")},
            .known = true,
            .best = best,
            .best_count = COUNT,
            .top = COUNT};
        struct arena names = {0};
        yyjson_doc *doc;

        for (uint32_t i = 0; i < COUNT; i++)
                best[i] = (struct openai_token_text){.id = i, .text = slice_str(arena_printf(&names, "%u", i / 2))};
        openai_logprobs_add(&l, &t);
        assert_int_equal(json_parse(buf_slice(&l.list[2]), &doc, NULL), 0);
        assert_int_equal(yyjson_obj_size(yyjson_doc_get_root(doc)), 1 + COUNT / 2);
        yyjson_doc_free(doc);
        openai_logprobs_free(&l);
        arena_free(&names);
        free(best);
}

static void chunks_of_logprobs_go_on_counting_characters(void **state) {
        struct openai_logprobs l = {.kind = OPENAI_COMPLETION};
        struct openai_token_logprobs t = {.taken = {1, -1, 1, SLICE_LIT("ä€")}, .known = true};

        (void)state;
        openai_logprobs_add(&l, &t);
        openai_logprobs_clear(&l);
        openai_logprobs_add(&l, &t);
        assert_string_equal(buf_cstr(&l.list[3]), "2");
        openai_logprobs_free(&l);
}

static void errors_and_models_have_vllms_members(void **state) {
        struct openai_error e;
        struct openai_model_card card = {SLICE_LIT("tiny-v3"), SLICE_LIT("models/tiny-v3"), 5, 512};
        struct buf out = {0};

        (void)state;
        openai_fail(&e, 404, "NotFoundError", "model", "The model `%s` does not exist.", "x");
        openai_write_error_event(&out, &e);
        assert_string_equal(buf_cstr(&out), "data: {\"error\":{\"message\":\"The model `x` does not "
                                            "exist.\",\"type\":\"NotFoundError\",\"param\":\"model\","
                                            "\"code\":404}}\n\n");
        buf_reset(&out);
        openai_write_models(&out, &card, 1);
        assert_string_equal(buf_cstr(&out),
            "{\"object\":\"list\",\"data\":[{\"id\":\"tiny-v3\",\"object\":\"model\",\"created\":5,\"owned_by\":"
            "\"vllm\","
            "\"root\":\"models/"
            "tiny-v3\",\"parent\":null,\"max_model_len\":512,\"permission\":[{\"id\":\"modelperm-tiny-v3\","
            "\"object\":\"model_permission\",\"created\":5,\"allow_create_engine\":false,\"allow_sampling\":true,"
            "\"allow_logprobs\":true,\"allow_search_indices\":false,\"allow_view\":true,\"allow_fine_tuning\":false,"
            "\"organization\":\"*\",\"group\":null,\"is_blocking\":false}]}]}");
        buf_free(&out);
}

int main(void) {
        const struct CMUnitTest tests[] = {
            cmocka_unit_test(recorded_answers_are_written_byte_for_byte),
            cmocka_unit_test(calls_and_reasoning_have_their_places),
            cmocka_unit_test(streamed_calls_begin_with_a_name_and_go_on_with_fragments),
            cmocka_unit_test(no_infinity_gets_into_json),
            cmocka_unit_test(alternatives_with_the_same_text_are_told_once),
            cmocka_unit_test(a_whole_vocabulary_of_alternatives_is_told),
            cmocka_unit_test(chunks_of_logprobs_go_on_counting_characters),
            cmocka_unit_test(errors_and_models_have_vllms_members),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
