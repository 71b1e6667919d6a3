/* test_connector.c - what legs get, against what the example proxies were recorded to send where that is as it should be,
 * and against the rules of the protocol everywhere else. */
#include "recordings.h"

#include "gateway/connector.h"
#include <errno.h>
#include <string.h>

struct made {
        struct arena arena;
        struct facts facts;
        struct source source;
        struct buf prefill, decode;
};

static void read_request(struct made *m, enum api api, struct slice body) {
        struct openai_error e;

        *m = (struct made){0};
        if (facts_read(api, body, &m->arena, &m->facts, &e) < 0)
                fail_msg("%s: %.*s", e.message, SLICE_ARG(body));
        m->source = (struct source){
            .facts = &m->facts, .text = m->facts.body, .members = m->facts.members, .count = m->facts.member_count};
}

static void gather(const struct body *b, struct buf *out) {
        for (size_t i = 0; i < b->count; i++)
                buf_add(out, b->parts[i]);
        assert_int_equal(out->len, b->bytes);
}

static void make_prefill(struct made *m) {
        struct body b;

        assert_int_equal(connector_prefill_body(&connector_pull, &m->source, &m->arena, &b), 0);
        gather(&b, &m->prefill);
}

static void make_decode(struct made *m, struct slice params, enum decode_purpose purpose) {
        const struct handoff h = {.params = params};
        struct body b;

        assert_int_equal(connector_decode_body(&connector_pull, &m->source, &h, purpose, false, &m->arena, &b), 0);
        gather(&b, &m->decode);
}

static void done(struct made *m) {
        buf_free(&m->prefill);
        buf_free(&m->decode);
        arena_free(&m->arena);
}

static enum api api_of(yyjson_val *c) {
        struct slice line = json_get_slice(json_get(c, "client_request"), "line");

        return slice_find_slice(line, SLICE_LIT("/chat/"), 0) < line.len ? API_CHAT : API_COMPLETIONS;
}

static struct slice client_body(yyjson_val *c) {
        return json_get_slice(json_get(c, "client_request"), "body");
}

static yyjson_val *leg(yyjson_val *c, const char *to) {
        yyjson_val *e;
        size_t i, max;

        yyjson_arr_foreach(json_get(c, "exchanges"), i, max, e) {
                if (slice_is(json_get_slice(e, "to"), to))
                        return e;
        }
        return NULL;
}

static bool is_right(yyjson_val *c) {
        yyjson_val *v;
        size_t i, max;

        yyjson_arr_foreach(json_get(c, "verdict"), i, max, v) {
                if (slice_is(json_slice(v), "as it should be"))
                        return true;
        }
        return false;
}

static void assert_same_json(struct slice got, struct slice want, const char *what) {
        yyjson_doc *a = parse_text(got), *b = parse_text(want);

        if (!yyjson_equals(yyjson_doc_get_root(a), yyjson_doc_get_root(b)))
                fail_msg("%s: got %.*s, recorded %.*s", what, SLICE_ARG(got), SLICE_ARG(want));
        yyjson_doc_free(a);
        yyjson_doc_free(b);
}

/* The first chunk of the recorded prefill answer is the whole of it. */
static struct slice answer_of(yyjson_val *e) {
        return json_slice(yyjson_arr_get_first(json_get(json_get(e, "response"), "chunks")));
}

static void legs_are_those_of_the_example_proxy_where_it_is_right(void **state) {
        yyjson_doc *doc = read_recording("proxy/head.json");
        yyjson_val *c;
        size_t i, max;
        int compared = 0;

        yyjson_arr_foreach(yyjson_doc_get_root(doc), i, max, c) {
                yyjson_val *prefill = leg(c, "prefill"), *decode = leg(c, "decode");
                struct handoff h;
                struct error e = {0};
                struct made m;

                if (!is_right(c) || !prefill || !decode)
                        continue;
                read_request(&m, api_of(c), client_body(c));
                make_prefill(&m);
                assert_same_json(
                    buf_slice(&m.prefill), json_get_slice(json_get(prefill, "request"), "body"), "prefill");
                /* Some answers are refusals that come first; the params are in the last prefill answer. */
                if (connector_pull.take(answer_of(prefill), &m.arena, &h, &e) == 0) {
                        make_decode(&m, h.params, DECODE_ANSWER);
                        assert_same_json(
                            buf_slice(&m.decode), json_get_slice(json_get(decode, "request"), "body"), "decode");
                        compared++;
                }
                done(&m);
        }
        assert_true(compared >= 6);
        yyjson_doc_free(doc);
}

static void pushed_legs_are_those_of_the_example_proxy_where_it_is_right(void **state) {
        yyjson_doc *doc = read_recording("proxy/layerwise.json");
        yyjson_val *c;
        size_t i, max;
        int compared = 0;

        yyjson_arr_foreach(yyjson_doc_get_root(doc), i, max, c) {
                yyjson_val *prefill = leg(c, "prefill"), *decode = leg(c, "decode"), *asked;
                char *text;
                struct body b;
                struct made m;

                if (!is_right(c) || !prefill || yyjson_arr_size(json_get(decode, "metaserver")) != 1)
                        continue;
                asked = json_get(yyjson_arr_get_first(json_get(decode, "metaserver")), "request");
                text = yyjson_val_write(asked, 0, NULL);
                read_request(&m, api_of(c), client_body(c));
                m.source.meeting = (struct meeting){
                    .metaserver = SLICE_LIT("http://127.0.0.1:18020/v1/metaserver"), .asked = slice_str(text)};
                assert_int_equal(connector_prefill_body(&connector_push, &m.source, &m.arena, &b), 0);
                gather(&b, &m.prefill);
                assert_same_json(
                    buf_slice(&m.prefill), json_get_slice(json_get(prefill, "request"), "body"), "prefill");
                assert_int_equal(connector_decode_body(&connector_push, &m.source, &(struct handoff){0}, DECODE_ANSWER,
                                     false, &m.arena, &b),
                    0);
                gather(&b, &m.decode);
                assert_same_json(buf_slice(&m.decode), json_get_slice(json_get(decode, "request"), "body"), "decode");
                compared++;
                free(text);
                done(&m);
        }
        assert_true(compared >= 7);
        yyjson_doc_free(doc);
}

/* Of all recorded requests, also those that the proxies got wrong. */
static void rules_of_the_protocol_hold_for_every_recorded_request(void **state) {
        static const char *const files[] = {"proxy/head.json", "proxy/v0.9.1.json"};
        int seen = 0;

        for (size_t f = 0; f < 2; f++) {
                yyjson_doc *doc = read_recording(files[f]);
                yyjson_val *c;
                size_t i, max;

                yyjson_arr_foreach(yyjson_doc_get_root(doc), i, max, c) {
                        struct slice body = client_body(c);
                        yyjson_doc *before, *prefill, *decode;
                        yyjson_val *p, *d, *key, *value;
                        size_t k, n;
                        struct made m;

                        if (!leg(c, "prefill"))
                                continue;
                        read_request(&m, api_of(c), body);
                        make_prefill(&m);
                        make_decode(&m, SLICE_LIT("{\"x\":1.50}"), DECODE_ANSWER);
                        before = parse_text(body);
                        prefill = parse_text(buf_slice(&m.prefill));
                        decode = parse_text(buf_slice(&m.decode));
                        p = yyjson_doc_get_root(prefill);
                        d = yyjson_doc_get_root(decode);
                        assert_int_equal(json_get_i64(p, "max_tokens", 0), 1);
                        assert_int_equal(json_get_i64(p, "min_tokens", 0), 1);
                        assert_int_equal(json_get_i64(p, "max_completion_tokens", 1), 1);
                        assert_false(json_get_bool(p, "stream", true));
                        assert_true(json_get_bool(json_get(p, "kv_transfer_params"), "do_remote_decode", false));
                        static const char *const dropped[] = {"stream_options", "logprobs", "echo", "best_of", "stop"};
                        for (size_t x = 0; x < sizeof(dropped) / sizeof(*dropped); x++)
                                assert_null(json_get(p, dropped[x]));
                        /* The decode leg is the client's request, but for the params. */
                        yyjson_obj_foreach(yyjson_doc_get_root(before), k, n, key, value) {
                                const char *name = yyjson_get_str(key);

                                if (strcmp(name, "kv_transfer_params"))
                                        assert_true(yyjson_equals(
                                            json_get(d, name), json_get(yyjson_doc_get_root(before), name)));
                        }
                        assert_non_null(strstr(buf_cstr(&m.decode), "{\"x\":1.50}"));
                        yyjson_doc_free(before);
                        yyjson_doc_free(prefill);
                        yyjson_doc_free(decode);
                        done(&m);
                        seen++;
                }
                yyjson_doc_free(doc);
        }
        assert_true(seen > 60);
}

static void params_of_a_real_vllm_are_taken_byte_for_byte(void **state) {
        static const char *const files[] = {
            "vllm/pd-chat.json", "vllm/pd-completion.json", "vllm/pd-prompt-200-tokens.json"};

        for (size_t f = 0; f < 3; f++) {
                yyjson_doc *doc = read_recording(files[f]);
                yyjson_val *step = yyjson_arr_get_first(json_get(yyjson_doc_get_root(doc), "steps"));
                struct slice answer = json_get_slice(json_get(step, "response"), "body");
                struct arena arena = {0};
                struct error e = {0};
                struct handoff h;
                size_t at;

                if (connector_pull.take(answer, &arena, &h, &e) < 0)
                        fail_msg("%s: %s", files[f], e.text);
                at = slice_find_slice(answer, h.params, 0);
                assert_true(at < answer.len && h.params.ptr[0] == '{' && h.params.ptr[h.params.len - 1] == '}');
                assert_true(h.prompt_tokens > 0);
                assert_int_equal(h.cached_tokens, -1);
                arena_free(&arena);
                yyjson_doc_free(doc);
        }
}

static void answers_that_commit_nothing_usable_are_told_apart(void **state) {
        static const struct {
                const char *answer;
                int want;
        } cases[] = {
            {"", -EINVAL},
            {"<html>", -EINVAL},
            {"[]", -EINVAL},
            {"{}", -ENODATA},
            {"{\"kv_transfer_params\":null,\"choices\":[{\"finish_reason\":\"stop\"}]}", -ENODATA},
            {"{\"kv_transfer_params\":{}}", -ENODATA},
            {"{\"kv_transfer_params\":[1]}", -ENODATA},
            /* LLMDataDist: no request id, remote_tp_size as a string, flat blocks. */
            {"{\"kv_transfer_params\":{\"do_remote_prefill\":true,\"do_remote_decode\":false,\"remote_block_ids\":[1,2]"
             ","
             "\"remote_engine_id\":\"e_dp0\",\"remote_host\":\"h\",\"remote_port\":5557,\"remote_tp_size\":\"8\"}}",
                0},
            {"{\"kv_transfer_params\":{\"do_remote_prefill\":true,\"remote_block_ids\":[1,2],"
             "\"remote_engine_id\":\"e\",\"remote_host\":\"h\",\"remote_port\":5557}}",
                -ENODATA},
            {"{\"kv_transfer_params\":{\"do_remote_prefill\":false,\"remote_block_ids\":[[1]],\"remote_engine_id\":"
             "\"e\","
             "\"remote_host\":\"h\",\"remote_port\":1,\"remote_request_id\":\"r\"}}",
                -ENODATA},
        };

        for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
                struct arena arena = {0};
                struct error e = {0};
                struct handoff h;

                assert_int_equal(connector_pull.take(slice_str(cases[i].answer), &arena, &h, &e), cases[i].want);
                assert_int_equal(e.text[0] != 0, cases[i].want != 0);
                arena_free(&arena);
        }
}

/* What an engine would refuse is left for the prefiller to refuse, in its own words and before any KV is committed. */
static void limits_that_an_engine_refuses_reach_the_prefiller(void **state) {
        static const char *const bodies[] = {"{\"prompt\":\"a\",\"max_tokens\":0}",
            "{\"prompt\":\"a\",\"max_tokens\":-1}", "{\"prompt\":\"a\",\"max_tokens\":\"many\"}",
            "{\"prompt\":\"a\",\"max_tokens\":1.5}", "{\"prompt\":\"a\",\"max_tokens\":4,\"min_tokens\":9}",
            "{\"prompt\":\"a\",\"min_tokens\":-1}", "{\"prompt\":\"a\",\"max_tokens\":5000}"};

        for (size_t i = 0; i < sizeof(bodies) / sizeof(*bodies); i++) {
                struct made m;
                struct openai_member members[32];
                size_t n, at;

                read_request(&m, API_COMPLETIONS, slice_str(bodies[i]));
                m.source.max_model_len = 512;
                make_prefill(&m);
                assert_int_equal(openai_scan(buf_slice(&m.prefill), members, 32, &n, &at), 0);
                assert_true(slice_eq(openai_find(members, n, "max_tokens"),
                    openai_find(m.facts.members, m.facts.member_count, "max_tokens")));
                assert_true(slice_eq(openai_find(members, n, "min_tokens"),
                    openai_find(m.facts.members, m.facts.member_count, "min_tokens")));
                done(&m);
        }
}

static void numbers_are_understood_as_vllm_does(void **state) {
        static const struct {
                const char *text;
                int64_t want; /* -1: not a number */
        } cases[] = {{"5", 5}, {"5.0", 5}, {"\"5\"", 5}, {"\" 7 \"", 7}, {"5e1", 50}, {"5.5", -1}, {"\"five\"", -1},
            {"true", -1}, {"null", -1}, {"[5]", -1}, {"", -1}, {"1e300", -1}};

        for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
                int64_t value = -1;

                facts_integer(slice_str(cases[i].text), &value);
                assert_int_equal(value, cases[i].want);
        }
}

static void a_settling_leg_asks_for_one_token_and_nothing_else(void **state) {
        struct made m;
        yyjson_doc *doc;

        read_request(&m, API_CHAT,
            SLICE_LIT(
                "{\"model\":\"m\",\"messages\":[],\"tools\":[1],\"max_completion_tokens\":9,\"n\":1,\"stream\":true,"
                "\"stream_options\":{\"include_usage\":true},\"temperature\":-1,\"logprobs\":true,\"top_k\":\"x\"}"));
        make_decode(&m, SLICE_LIT("{\"p\":1}"), DECODE_SETTLE);
        assert_same_json(buf_slice(&m.decode),
            SLICE_LIT("{\"model\":\"m\",\"messages\":[],\"tools\":[1],\"stream\":false,\"max_tokens\":1,"
                      "\"kv_transfer_params\":{\"p\":1}}"),
            "settle");
        doc = parse_text(buf_slice(&m.decode));
        yyjson_doc_free(doc);
        done(&m);
}

static void lists_of_prompts_are_seen(void **state) {
        static const struct {
                const char *prompt;
                size_t count;
                bool list;
        } cases[] = {{"\"a\"", 1, false}, {"[1,2]", 1, false}, {"[\"a\"]", 1, true}, {"[\"a\",\"b\"]", 2, true},
            {"[[1,2],[3]]", 2, true}, {"[]", 1, false}, {"[\"a\",1]", 1, false}, {"null", 1, false}, {"{}", 1, false}};

        for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
                char text[128];
                struct made m;

                snprintf(text, sizeof(text), "{\"prompt\":%s}", cases[i].prompt);
                read_request(&m, API_COMPLETIONS, slice_str(text));
                assert_int_equal(m.facts.prompt_count, cases[i].count);
                assert_int_equal(m.facts.prompts != NULL, cases[i].list);
                done(&m);
        }
}

static void an_engine_is_found_by_its_rank(void **state) {
        static const struct {
                const char *answer;
                int rank;
                const char *want; /* NULL: refused */
        } cases[] = {{"{\"0\":{\"engine_id\":\"a\"}}", -1, "a"},
            {"{\"0\":{\"engine_id\":\"a\"},\"1\":{\"engine_id\":\"b\"}}", 1, "b"},
            {"{\"a\":{\"0\":{}},\"b\":{\"1\":{}}}", 1, "b"}, {"{\"a\":{\"0\":{\"0\":\"x\"}}}", -1, "a"},
            {"{\"0\":{\"engine_id\":\"a\"},\"1\":{\"engine_id\":\"b\"}}", -1, NULL},
            {"{\"0\":{\"engine_id\":\"a\"}}", 1, NULL}, {"{\"0\":{\"engine_id\":5}}", -1, NULL}, {"{\"0\":5}", 0, NULL},
            {"{}", -1, NULL}, {"[]", -1, NULL}, {"", -1, NULL}};

        for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
                struct slice id = SLICE_NONE;
                struct error e = {0};
                int r = connector_mooncake.take_engine(slice_str(cases[i].answer), cases[i].rank, &id, &e);

                assert_int_equal(r, cases[i].want ? 0 : -EINVAL);
                assert_true(cases[i].want ? slice_is(id, cases[i].want) : e.text[0] != 0);
        }
}

static void connectors_are_known_by_the_engines_names(void **state) {
        static const char *const names[] = {"pull", "NixlConnector", "nixl", "MooncakeConnectorV1",
            "mooncakeconnectorv1", "LLMDataDistCMgrConnector", "MooncakeHybridConnector"};

        for (size_t i = 0; i < sizeof(names) / sizeof(*names); i++)
                assert_ptr_equal(connector_find(names[i]), &connector_pull);
        assert_ptr_equal(connector_find("MooncakeLayerwiseConnector"), &connector_push);
        assert_ptr_equal(connector_find("MooncakeConnector"), &connector_mooncake);
        assert_ptr_equal(connector_find("SGLang"), &connector_sglang);
        assert_ptr_equal(connector_find("plain"), &connector_plain);
        assert_null(connector_find("pul"));
}

int main(void) {
        const struct CMUnitTest tests[] = {
            cmocka_unit_test(legs_are_those_of_the_example_proxy_where_it_is_right),
            cmocka_unit_test(pushed_legs_are_those_of_the_example_proxy_where_it_is_right),
            cmocka_unit_test(rules_of_the_protocol_hold_for_every_recorded_request),
            cmocka_unit_test(params_of_a_real_vllm_are_taken_byte_for_byte),
            cmocka_unit_test(answers_that_commit_nothing_usable_are_told_apart),
            cmocka_unit_test(limits_that_an_engine_refuses_reach_the_prefiller),
            cmocka_unit_test(numbers_are_understood_as_vllm_does),
            cmocka_unit_test(a_settling_leg_asks_for_one_token_and_nothing_else),
            cmocka_unit_test(lists_of_prompts_are_seen),
            cmocka_unit_test(an_engine_is_found_by_its_rank),
            cmocka_unit_test(connectors_are_known_by_the_engines_names),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
