/* test_relay.c - events of recorded vLLM streams through the relay: what passes unchanged, what is replaced, and that
 * what a client has seen always ends where a token's text ends. */
#include "recordings.h"

#include "gateway/continuation.h"
#include "gateway/join.h"
#include "gateway/relay.h"
#include <dirent.h>
#include <errno.h>
#include <string.h>

struct play {
        yyjson_doc *doc;
        struct arena arena;
        struct facts facts;
        struct relay relay;
        yyjson_val *chunks;
        struct buf raw; /* everything but [DONE] */
};

static void open_play(struct play *p, const char *name) {
        yyjson_val *root, *request, *chunk;
        struct openai_error e;
        struct slice path;
        size_t i, max;

        *p = (struct play){.doc = read_recording(name)};
        root = yyjson_doc_get_root(p->doc);
        if (json_get(root, "steps"))
                root = yyjson_arr_get_last(json_get(root, "steps"));
        request = json_get(root, "request");
        path = json_get_slice(request, "path");
        if (facts_read(slice_find_slice(path, SLICE_LIT("chat"), 0) < path.len ? API_CHAT : API_COMPLETIONS,
                json_get_slice(request, "body"), &p->arena, &p->facts, &e) < 0)
                fail_msg("%s: %s", name, e.message);
        relay_init(&p->relay, &p->facts);
        p->chunks = json_get(json_get(root, "response"), "chunks");
        yyjson_arr_foreach(p->chunks, i, max, chunk) {
                if (!slice_starts(json_slice(chunk), SLICE_LIT("data: [DONE]")))
                        buf_add(&p->raw, json_slice(chunk));
        }
}

static void close_play(struct play *p) {
        relay_free(&p->relay);
        arena_free(&p->arena);
        buf_free(&p->raw);
        yyjson_doc_free(p->doc);
}

static enum relay_verdict run(struct play *p, struct buf *out) {
        enum relay_verdict v = RELAY_MORE;
        yyjson_val *chunk;
        size_t i, max;

        yyjson_arr_foreach(p->chunks, i, max, chunk) {
                v = relay_event(&p->relay, json_slice(chunk), out);
                if (v != RELAY_MORE)
                        break;
        }
        return v;
}

static bool each_stream(void (*check)(const char *name)) {
        static const char *const folder = "tests/data/gateway/vllm";
        char path[512], name[300];
        struct dirent *entry;
        DIR *dir;
        int n = 0;

        snprintf(path, sizeof(path), "%s/%s", getenv("BATON_SOURCE") ? getenv("BATON_SOURCE") : ".", folder);
        dir = opendir(path);
        assert_non_null(dir);
        while ((entry = readdir(dir))) {
                yyjson_doc *doc;
                yyjson_val *root;

                if (!strstr(entry->d_name, ".json"))
                        continue;
                snprintf(name, sizeof(name), "vllm/%s", entry->d_name);
                doc = read_recording(name);
                root = yyjson_doc_get_root(doc);
                if (json_get(root, "steps"))
                        root = yyjson_arr_get_last(json_get(root, "steps"));
                if (json_get(json_get(root, "response"), "chunks")) {
                        check(name);
                        n++;
                }
                yyjson_doc_free(doc);
        }
        closedir(dir);
        return n > 15;
}

static void check_unchanged(const char *name) {
        struct buf out = {0};
        struct play p;

        open_play(&p, name);
        assert_int_equal(run(&p, &out), RELAY_DONE);
        if (!slice_eq(buf_slice(&out), buf_slice(&p.raw)))
                fail_msg("%s changed: %s", name, buf_cstr(&out));
        assert_true(p.relay.finished);
        buf_free(&out);
        close_play(&p);
}

static void a_stream_that_needs_nothing_passes_byte_for_byte(void **state) {
        assert_true(each_stream(check_unchanged));
}

/* Streams recorded with return_token_ids, which the gateway had asked for and the client not. */
static void token_ids_that_nobody_asked_for_become_null(void **state) {
        static const char *const names[] = {
            "vllm/chat-return-token-ids-stream.json", "vllm/comp-return-token-ids-stream.json"};

        for (size_t i = 0; i < 2; i++) {
                struct buf out = {0};
                struct play p;

                open_play(&p, names[i]);
                p.facts.return_token_ids = false;
                p.relay.track = true;
                assert_int_equal(run(&p, &out), RELAY_DONE);
                assert_null(strstr(buf_cstr(&out), "ids\":["));
                assert_non_null(strstr(out.ptr, "\"token_ids\":null"));
                assert_int_equal(p.relay.ids_sent, 3);
                assert_true(slice_is(buf_slice(&p.relay.prompt_ids), i ? "[0,416,17,435,6]" : "[0,3,416,17,435,6,4]"));
                assert_null(relay_obstacle(&p.relay));
                buf_free(&out);
                close_play(&p);
                /* Asked for, they pass. */
                open_play(&p, names[i]);
                p.relay.track = true;
                assert_int_equal(run(&p, &out), RELAY_DONE);
                assert_true(slice_eq(buf_slice(&out), buf_slice(&p.raw)));
                buf_free(&out);
                close_play(&p);
        }
}

static enum relay_verdict feed(struct relay *r, struct buf *out, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
static enum relay_verdict feed(struct relay *r, struct buf *out, const char *format, ...) {
        struct buf event = {0};
        enum relay_verdict v;
        va_list args;

        buf_add_str(&event, "data: ");
        va_start(args, format);
        buf_vprintf(&event, format, args);
        va_end(args);
        buf_add_str(&event, "\n\n");
        v = relay_event(r, buf_slice(&event), out);
        buf_free(&event);
        return v;
}

#define COMPLETION                                                                                                     \
        "{\"id\":\"cmpl-1\",\"object\":\"text_completion\",\"created\":7,\"model\":\"m\",\"choices\":[{\"index\":0,"   \
        "\"text\":\"%s\",\"logprobs\":%s,\"finish_reason\":%s,\"stop_reason\":%s,\"prompt_token_ids\":%s,"             \
        "\"token_ids\":[%s]}]%s}"

static void begin(struct facts *f, struct arena *arena, struct relay *r, enum api api, const char *body) {
        struct openai_error e;

        assert_int_equal(facts_read(api, slice_str(body), arena, f, &e), 0);
        relay_init(r, f);
        r->track = true;
}

static void events_without_text_wait_for_it(void **state) {
        struct arena arena = {0};
        struct buf out = {0};
        struct facts f;
        struct relay r;

        begin(&f, &arena, &r, API_COMPLETIONS, "{\"prompt\":\"x\",\"stream\":true}");
        feed(&r, &out, COMPLETION, "a", "null", "null", "null", "[1,2]", "11", "");
        assert_int_equal(r.ids_sent, 1);
        out.len = 0;
        feed(&r, &out, COMPLETION, "", "null", "null", "null", "null", "12", "");
        feed(&r, &out, COMPLETION, "", "null", "null", "null", "null", "13,14", "");
        assert_int_equal(out.len, 0);
        assert_int_equal(r.ids_sent, 1);
        assert_int_equal(r.ids_seen, 4);
        feed(&r, &out, COMPLETION, "\\u4f60", "null", "null", "null", "null", "15", "");
        assert_int_equal(r.ids_sent, 5);
        assert_int_equal(r.chars_sent, 2);
        assert_non_null(strstr(buf_cstr(&out), "\\u4f60"));
        /* An end is never held. */
        feed(&r, &out, COMPLETION, "", "null", "\"length\"", "null", "null", "16", "");
        assert_int_equal(r.ids_sent, 6);
        assert_true(r.finished);
        relay_free(&r);
        buf_free(&out);
        arena_free(&arena);
}

static void silence_has_a_bound(void **state) {
        struct arena arena = {0};
        struct buf out = {0};
        struct facts f;
        struct relay r;
        size_t held = 0;

        begin(&f, &arena, &r, API_COMPLETIONS, "{\"prompt\":\"x\",\"stream\":true}");
        for (int i = 0; i < 1000; i++) {
                feed(&r, &out, COMPLETION, "", "null", "null", "null", i ? "null" : "[1]", "12", "");
                held = r.held.len > held ? r.held.len : held;
        }
        assert_in_range(held, RELAY_HELD_MAX, RELAY_HELD_MAX + 1000);
        assert_true(out.len > 100000);
        relay_free(&r);
        buf_free(&out);
        arena_free(&arena);
}

static void assert_edit(const struct edits *e, const char *key, const char *want) {
        for (size_t i = 0; i < e->count; i++)
                if (!strcmp(e->items[i].key, key)) {
                        if (!want)
                                assert_null(e->items[i].value.ptr);
                        else
                                assert_true(slice_is(e->items[i].value, want));
                        return;
                }
        fail_msg("no edit of %s", key);
}

static void a_chat_goes_on_in_its_own_frame(void **state) {
        struct arena arena = {0};
        struct edits edits = {0};
        struct buf out = {0};
        struct facts f;
        struct relay r;

        begin(&f, &arena, &r, API_CHAT,
            "{\"messages\":[],\"stream\":true,\"max_tokens\":9,\"min_tokens\":5,\"stream_options\":{\"include_usage\":"
            "true}}");
        feed(&r, &out,
            "{\"id\":\"chatcmpl-1\",\"object\":\"chat.completion.chunk\",\"created\":7,\"model\":\"m\","
            "\"choices\":[{\"index\":0,\"delta\":{\"role\":\"assistant\",\"content\":\"\"}}],"
            "\"prompt_token_ids\":[1,2]}");
        assert_null(relay_obstacle(&r)); /* nothing is out: begin anew */
        feed(&r, &out,
            "{\"id\":\"chatcmpl-1\",\"object\":\"chat.completion.chunk\",\"created\":7,\"model\":\"m\","
            "\"choices\":[{\"index\":0,\"delta\":{\"content\":\"ab\"},\"finish_reason\":null,\"token_ids\":[5,6]}]}");
        feed(&r, &out,
            "{\"id\":\"chatcmpl-1\",\"object\":\"chat.completion.chunk\",\"created\":7,\"model\":\"m\","
            "\"choices\":[{\"index\":0,\"delta\":{\"content\":\"\"},\"finish_reason\":null,\"token_ids\":[77]}]}");
        assert_int_equal(
            feed(&r, &out,
                "{\"id\":\"chatcmpl-1\",\"created\":7,\"model\":\"m\",\"choices\":[{\"index\":0,\"delta\":{"
                "\"content\":\"\"},\"finish_reason\":\"stop\",\"stop_reason\":\"recomputed\",\"token_ids\":[]}]}"),
            RELAY_RECOMPUTED);
        assert_null(relay_obstacle(&r));
        assert_int_equal(continuation_limit(&f, &r, 0), 9);
        assert_int_equal(continuation_limit(&f, &r, 8), 6);
        assert_int_equal(continuation_edits(&f, &r, 7, &arena, &edits), 0);
        assert_edit(&edits, "prompt", "[1,2,5,6]");
        assert_edit(&edits, "max_tokens", "7");
        assert_edit(&edits, "min_tokens", "3");
        assert_edit(&edits, "messages", NULL);
        relay_restart(&r, true);
        out.len = 0;
        feed(&r, &out, COMPLETION, "c\\n", "null", "null", "null", "[1,2,5,6]", "8", "");
        assert_string_equal(buf_cstr(&out),
            "data: "
            "{\"id\":\"chatcmpl-1\",\"object\":\"chat.completion.chunk\",\"created\":7,\"model\":\"m\",\"choices\":[{"
            "\"index\":0,\"delta\":{\"content\":\"c\\n\"},\"logprobs\":null,\"finish_reason\":null,\"token_ids\":null}]"
            "}\n\n");
        feed(&r, &out, COMPLETION, "", "null", "\"length\"", "null", "null", "9", "");
        out.len = 0;
        feed(&r, &out,
            "{\"id\":\"cmpl-1\",\"created\":8,\"model\":\"m\",\"choices\":[],\"usage\":{\"prompt_tokens\":4,"
            "\"total_tokens\":6,\"completion_tokens\":2}}");
        assert_non_null(strstr(buf_cstr(&out),
            "\"choices\":[],\"usage\":{\"prompt_tokens\":2,\"total_tokens\":6,\"completion_tokens\":4}"));
        relay_free(&r);
        buf_free(&out);
        arena_free(&arena);
}

static void offsets_and_usage_count_from_the_begin(void **state) {
        struct arena arena = {0};
        struct buf out = {0};
        struct facts f;
        struct relay r;

        begin(&f, &arena, &r, API_COMPLETIONS, "{\"prompt\":[1],\"stream\":true,\"logprobs\":1}");
        feed(&r, &out, COMPLETION, "\\u00e9a", "{\"text_offset\":[0],\"tokens\":[\"x\"]}", "null", "null", "[1]", "4",
            ",\"usage\":{\"prompt_tokens\":1,\"total_tokens\":2,\"completion_tokens\":1}");
        relay_restart(&r, false);
        out.len = 0;
        feed(&r, &out, COMPLETION, "bc", "{\"text_offset\":[0,1],\"tokens\":[\"b\",\"c\"]}", "null", "null", "[1,4]",
            "5,6", ",\"usage\":{\"prompt_tokens\":2,\"total_tokens\":4,\"completion_tokens\":2}");
        assert_non_null(strstr(buf_cstr(&out), "\"text_offset\":[2,3]"));
        assert_non_null(strstr(out.ptr, "\"usage\":{\"prompt_tokens\":1,\"total_tokens\":4,\"completion_tokens\":3}"));
        relay_free(&r);
        buf_free(&out);
        arena_free(&arena);
}

/* With the engines' word, or our own count, or not at all when there is neither or no frame for it. */
static void the_closing_usage_is_written_once(void **state) {
        static const char *const request =
            "{\"prompt\":\"x\",\"stream\":true,\"stream_options\":{\"include_usage\":true}}";
        static const char *const usage = "\"usage\":{\"prompt_tokens\":2,\"total_tokens\":3,\"completion_tokens\":1}";
        struct arena arena = {0};
        struct buf out = {0};
        struct facts f;
        struct relay r;

        begin(&f, &arena, &r, API_COMPLETIONS, request);
        feed(&r, &out, COMPLETION, "a", "null", "\"length\"", "null", "[1,2]", "11", "");
        out.len = 0;
        relay_end_usage(&r, 7, &out);
        assert_non_null(strstr(buf_cstr(&out), usage));
        out.len = 0;
        relay_end_usage(&r, 7, &out);
        assert_int_equal(out.len, 0);
        relay_free(&r);

        begin(&f, &arena, &r, API_COMPLETIONS, request);
        feed(&r, &out, COMPLETION, "a", "null", "\"length\"", "null", "[1,2]", "11", "");
        feed(&r, &out, "{\"id\":\"cmpl-1\",\"created\":7,\"model\":\"m\",\"choices\":[],%s}", usage);
        out.len = 0;
        relay_end_usage(&r, 7, &out);
        assert_int_equal(out.len, 0);
        relay_free(&r);

        begin(&f, &arena, &r, API_COMPLETIONS, request);
        feed(&r, &out,
            "{\"choices\":[{\"index\":0,\"text\":\"a\",\"finish_reason\":\"stop\",\"token_ids\":[1],"
            "\"prompt_token_ids\":[2]}]}");
        assert_non_null(relay_obstacle(&r));
        out.len = 0;
        relay_end_usage(&r, 7, &out);
        assert_int_equal(out.len, 0);
        relay_free(&r);
        buf_free(&out);
        arena_free(&arena);
}

static void what_another_engine_cannot_take_up_is_an_obstacle(void **state) {
        static const char *const bodies[] = {"{\"messages\":[],\"tools\":[{}]}",
            "{\"messages\":[],\"response_format\":{\"type\":\"json_object\"}}",
            "{\"messages\":[],\"presence_penalty\":0.1}", "{\"messages\":[],\"structured_outputs\":{\"regex\":\"a\"}}",
            "{\"messages\":[],\"logprobs\":true}"};
        static const char *const free_bodies[] = {"{\"messages\":[],\"tools\":[],\"presence_penalty\":0}",
            "{\"messages\":[],\"tools\":[{}],\"tool_choice\":\"none\",\"response_format\":{\"type\":\"text\"}}",
            "{\"messages\":[],\"logprobs\":false,\"frequency_penalty\":null}"};
        const char *chunk =
            "{\"id\":\"c\",\"created\":7,\"model\":\"m\",\"choices\":[{\"index\":0,\"delta\":{\"content\":\"a\"},"
            "\"token_ids\":[5]}],\"prompt_token_ids\":[1]}";

        for (size_t i = 0; i < 5 + 3; i++) {
                struct arena arena = {0};
                struct buf out = {0};
                struct facts f;
                struct relay r;

                begin(&f, &arena, &r, API_CHAT, i < 5 ? bodies[i] : free_bodies[i - 5]);
                feed(&r, &out, "%s", chunk);
                assert_int_equal(relay_obstacle(&r) != NULL, i < 5);
                relay_free(&r);
                buf_free(&out);
                arena_free(&arena);
        }
}

static void reasoning_and_tool_calls_are_an_obstacle(void **state) {
        static const char *const deltas[] = {
            "\"reasoning\":\"hm\"", "\"reasoning_content\":\"hm\"", "\"tool_calls\":[{\"index\":0}]"};

        for (size_t i = 0; i < 3; i++) {
                struct arena arena = {0};
                struct buf out = {0};
                struct facts f;
                struct relay r;

                begin(&f, &arena, &r, API_CHAT, "{\"messages\":[]}");
                feed(&r, &out,
                    "{\"id\":\"c\",\"created\":7,\"model\":\"m\",\"choices\":[{\"index\":0,\"delta\":{%s},"
                    "\"token_ids\":[5]}],\"prompt_token_ids\":[1]}",
                    deltas[i]);
                assert_non_null(relay_obstacle(&r));
                assert_true(out.len > 0);
                relay_free(&r);
                buf_free(&out);
                arena_free(&arena);
        }
}

static void errors_and_strange_events_are_told_apart(void **state) {
        struct arena arena = {0};
        struct buf out = {0};
        struct facts f;
        struct relay r;

        begin(&f, &arena, &r, API_COMPLETIONS, "{\"prompt\":\"x\"}");
        assert_int_equal(feed(&r, &out, "{\"error\": {\"message\": \"Internal server error\"}}"), RELAY_ERROR);
        assert_int_equal(out.len, 0);
        assert_int_equal(relay_event(&r, SLICE_LIT(": ping\n\n"), &out), RELAY_MORE);
        assert_string_equal(buf_cstr(&out), ": ping\n\n");
        assert_null(relay_obstacle(&r));
        assert_int_equal(feed(&r, &out, "not json"), RELAY_MORE);
        assert_non_null(relay_obstacle(&r));
        assert_int_equal(relay_event(&r, SLICE_LIT("data: {\"choices\":\ndata: []}\n\n"), &out), RELAY_MORE);
        assert_non_null(strstr(buf_cstr(&out), "data: {\"choices\": []}\n\n"));
        relay_free(&r);
        buf_free(&out);
        arena_free(&arena);
}

/* ---- whole answers ---------------------------------------------------------------------------------------------------- */

static struct slice recorded_answer(yyjson_doc *doc) {
        return json_get_slice(json_get(yyjson_doc_get_root(doc), "response"), "body");
}

/* vLLM's own answer to two prompts, taken apart and joined again, is that answer. */
static void answers_joined_are_vllms_own(void **state) {
        static const char *const names[] = {"vllm/comp-two-prompts.json", "vllm/comp-n2.json", "vllm/chat-n2.json"};

        for (size_t i = 0; i < 3; i++) {
                yyjson_doc *doc = read_recording(names[i]), *got;
                struct slice whole = recorded_answer(doc), choices, choice, id;
                struct openai_member m[48];
                struct join_part parts[2] = {0};
                struct buf halves[2] = {{0}}, out = {0};
                struct whole answer, answers[2];
                size_t n, at;

                assert_int_equal(openai_scan(whole, m, 48, &n, &at), 0);
                assert_int_equal(whole_read(whole, &answer), 0);
                choices = openai_find(m, n, "choices");
                id = openai_find(m, n, "id");
                for (int k = 0; k < 2; k++) {
                        struct cuts cuts = {0};
                        struct slice rest = choices;
                        struct buf one = {0}, usage = {0};
                        struct join_usage u = join_read_usage(&answer);

                        for (int x = 0; x <= k; x++)
                                assert_true(openai_next_item(&rest, &choice));
                        buf_printf(&one, "[%.*s]", SLICE_ARG(choice));
                        /* Two prompts share the prompt tokens; n=2 counts the prompt once. */
                        buf_printf(&usage, "{\"prompt_tokens\":%lld,\"completion_tokens\":%lld}",
                            (long long)(i == 0 ? (k ? u.prompt - 2 : 2) : u.prompt), (long long)u.completion / 2);
                        cuts_add(&cuts, choices, buf_slice(&one));
                        cuts_add(&cuts, openai_find(m, n, "usage"), buf_slice(&usage));
                        cuts_add(&cuts, id, SLICE_LIT("\"other\""));
                        cuts_write(&cuts, whole, &halves[k]);
                        assert_int_equal(whole_read(buf_slice(&halves[k]), &answers[k]), 0);
                        parts[k] = (struct join_part){&answers[k], (uint32_t)k, i == 0 || k == 0, -1};
                        buf_free(&one);
                        buf_free(&usage);
                }
                assert_int_equal(join_many(parts, 2, id, &out), 0);
                got = parse_text(buf_slice(&out));
                {
                        yyjson_doc *want = parse_text(whole);
                        yyjson_val *a = yyjson_doc_get_root(got), *b = yyjson_doc_get_root(want);
                        static const char *const same[] = {"id", "object", "model", "choices", "system_fingerprint"};

                        for (size_t k = 0; k < 5; k++)
                                assert_true(yyjson_equals(json_get(a, same[k]), json_get(b, same[k])));
                        static const char *const counts[] = {"prompt_tokens", "total_tokens", "completion_tokens"};
                        for (size_t k = 0; k < 3; k++)
                                assert_int_equal(json_get_i64(json_get(a, "usage"), counts[k], -1),
                                    json_get_i64(json_get(b, "usage"), counts[k], -2));
                        yyjson_doc_free(want);
                }
                yyjson_doc_free(got);
                yyjson_doc_free(doc);
                buf_free(&halves[0]);
                buf_free(&halves[1]);
                buf_free(&out);
        }
}

static void assert_joined(const char *text, const char *want) {
        struct whole answer;
        struct buf out = {0};

        assert_int_equal(whole_read(slice_str(text), &answer), 0);
        join_one(&answer, 4, &out);
        assert_string_equal(buf_cstr(&out), want);
        buf_free(&out);
}

static void cached_tokens_are_the_prefillers(void **state) {
        assert_joined("{\"a\":1, \"usage\":{\"prompt_tokens\":9,\"prompt_tokens_details\":{\"cached_tokens\": 9}} }",
            "{\"a\":1, \"usage\":{\"prompt_tokens\":9,\"prompt_tokens_details\":{\"cached_tokens\": 4}} }");
        assert_joined("{\"usage\":{\"prompt_tokens_details\":null}}", "{\"usage\":{\"prompt_tokens_details\":null}}");
        assert_joined("{}", "{}");
}

/* Anything but an object is no answer; whether it was given up stands in any of its choices. */
static void whole_answers_are_taken_apart(void **state) {
        static const char *const none[] = {"", " ", "x", "[]", "\"a\"", "{", "{\"a\":}"};
        struct whole w = {0};

        for (size_t i = 0; i < sizeof(none) / sizeof(*none); i++)
                assert_int_equal(whole_read(slice_str(none[i]), &w), -EINVAL);
        assert_null(w.text.ptr);
        assert_int_equal(whole_read(SLICE_LIT("{\"id\":\"x\",\"choices\":[{\"stop_reason\":null},{}]}"), &w), 0);
        assert_true(slice_is(w.id, "\"x\""));
        assert_false(whole_is_recomputed(&w));
        assert_int_equal(
            whole_read(SLICE_LIT("{\"choices\":[{\"stop_reason\":7},{\"stop_reason\":\"recomputed\"}]}"), &w), 0);
        assert_true(whole_is_recomputed(&w));
        assert_null(w.usage.ptr);
}

int main(void) {
        const struct CMUnitTest tests[] = {
            cmocka_unit_test(a_stream_that_needs_nothing_passes_byte_for_byte),
            cmocka_unit_test(token_ids_that_nobody_asked_for_become_null),
            cmocka_unit_test(events_without_text_wait_for_it),
            cmocka_unit_test(silence_has_a_bound),
            cmocka_unit_test(a_chat_goes_on_in_its_own_frame),
            cmocka_unit_test(offsets_and_usage_count_from_the_begin),
            cmocka_unit_test(the_closing_usage_is_written_once),
            cmocka_unit_test(what_another_engine_cannot_take_up_is_an_obstacle),
            cmocka_unit_test(reasoning_and_tool_calls_are_an_obstacle),
            cmocka_unit_test(errors_and_strange_events_are_told_apart),
            cmocka_unit_test(answers_joined_are_vllms_own),
            cmocka_unit_test(cached_tokens_are_the_prefillers),
            cmocka_unit_test(whole_answers_are_taken_apart),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
