/* What a request holds on its way through the API, that its bounds are kept, and that all is given back. */
#include "api_rig.h"
#include "failmalloc.h"

static struct api_rig api;

static int set_up(void **state) {
        api_rig_load(&api);
        return 0;
}

static int tear_down(void **state) {
        api_rig_unload(&api);
        return 0;
}

/* ---- bounds ----------------------------------------------------------------------------------------------------------------- */

static void a_name_from_the_body_is_cut_as_one_from_the_header(void **state) {
        struct api_options o = api_rig_options(&api);
        struct buf body = {0};
        yyjson_doc *doc;
        struct slice id;

        api_rig_open(&api, &o);
        buf_add_str(&body, "{\"prompt\":\"x\",\"max_tokens\":1,\"request_id\":\"1");
        for (int i = 0; i < 200; i++)
                buf_add_str(&body, "é");
        buf_add_str(&body, "\"}");
        doc = ask(&api, "/v1/completions", buf_cstr(&body), 200);
        id = json_get_slice(yyjson_doc_get_root(doc), "id");
        assert_int_equal(id.len, strlen("cmpl-") + 255); /* no character is cut in two */
        assert_true(slice_ends(id, SLICE_LIT("é")));
        yyjson_doc_free(doc);
        buf_free(&body);
        api_rig_close(&api);
}

/* ---- long bodies ------------------------------------------------------------------------------------------------------------ */

/* Keeps libuv's only worker (main() sees to that) until it is told to go. */
struct blocker {
        uv_work_t work;
        uv_sem_t go;
        bool done;
};

static void block(uv_work_t *work) {
        uv_sem_wait(&((struct blocker *)work->data)->go);
}

static void on_blocked(uv_work_t *work, int status) {
        ((struct blocker *)work->data)->done = true;
}

static void blocker_start(struct blocker *b) {
        *b = (struct blocker){.work.data = b};
        assert_int_equal(uv_sem_init(&b->go, 0), 0);
        assert_int_equal(uv_queue_work(&api.net.loop, &b->work, block, on_blocked), 0);
}

static void blocker_end(struct blocker *b) {
        uv_sem_post(&b->go);
        UNTIL_ALL(&api, b->done);
        uv_sem_destroy(&b->go);
}

/* A body that is long enough for a worker. */
static struct buf long_body(const char *rest) {
        struct buf b = {0};

        buf_add_str(&b, "{\"metadata\":\"");
        buf_add(&b, many(100000));
        buf_printf(&b, "\",%s}", rest);
        return b;
}

static struct api_call *only_call(void) {
        assert_ptr_equal(api.api->calls.next, api.api->calls.prev);
        return list_empty(&api.api->calls) ? NULL : list_item(api.api->calls.next, struct api_call, link);
}

static void a_client_that_leaves_takes_its_waiting_body_along(void **state) {
        struct api_options o = api_rig_options(&api);
        struct buf body = long_body("\"prompt\":\"x\",\"max_tokens\":1");
        struct blocker blocker;

        for (int reset = 0; reset < 2; reset++) {
                struct peer *p;

                api_rig_open(&api, &o);
                blocker_start(&blocker);
                p = peer_connect(&api.net, api.port);
                peer_post(p, "/v1/completions", buf_slice(&body));
                UNTIL_ALL(&api, only_call() && only_call()->work.data);
                assert_non_null(only_call()->body.ptr);
                peer_leave(&api.net, p, reset);
                UNTIL_ALL(&api, list_empty(&api.api->calls)); /* and no worker has looked at it */
                blocker_end(&blocker);
                api_rig_close(&api);
        }
        buf_free(&body);
}

static void a_body_is_let_go_when_it_was_read(void **state) {
        struct api_options o = api_rig_options(&api);
        struct buf body = long_body("\"prompt\":\"x\",\"max_tokens\":200,\"ignore_eos\":true,\"stream\":true");
        struct peer *p;

        api_rig_open(&api, &o);
        p = peer_connect(&api.net, api.port);
        peer_post(p, "/v1/completions", buf_slice(&body));
        UNTIL_ALL(&api, peer_got(p, "data: "));
        assert_null(only_call()->body.ptr);
        assert_null(only_call()->prepared.request.document);
        assert_true(only_call()->arena.used < 50000);
        peer_leave(&api.net, p, true);
        buf_free(&body);
        api_rig_close(&api);
}

static void what_the_answer_needs_outlives_the_body(void **state) {
        static const char *const bodies[][2] = {
            {"/v1/completions", "{\"prompt\":\"The capital\",\"echo\":true,\"model\":\"tiny\",\"cache_salt\":\"salt\","
                                "\"request_id\":\"name\",\"user\":\"u\",\"stop\":[\"a\",\"e\",\"o\",\" \"],"
                                "\"bad_words\":[\"x\"],\"max_tokens\":200,\"ignore_eos\":true}"},
            {"/v1/chat/completions",
                "{\"messages\":[{\"role\":\"user\",\"content\":\"Where?\"},{\"role\":\"assistant\",\"content\":\"The "
                "capital\"}],\"echo\":true,\"add_generation_prompt\":false,\"continue_final_message\":true,"
                "\"request_id\":\"name\",\"stop\":[\"a\",\"e\",\"o\",\" \"],\"max_tokens\":200,\"ignore_eos\":true}"}};
        struct api_options o = api_rig_options(&api);

        api_rig_open(&api, &o);
        for (int chat = 0; chat < 2; chat++) {
                yyjson_doc *doc = ask(&api, bodies[chat][0], bodies[chat][1], 200);
                yyjson_val *root = yyjson_doc_get_root(doc), *choice = yyjson_arr_get_first(json_get(root, "choices"));
                struct slice text =
                    json_get_slice(chat ? json_get(choice, "message") : choice, chat ? "content" : "text");

                assert_true(slice_is(json_get_slice(root, "id"), chat ? "chatcmpl-name" : "cmpl-name"));
                assert_true(slice_is(json_get_slice(choice, "finish_reason"), "stop"));
                assert_int_equal(json_get_slice(choice, "stop_reason").len, 1);
                assert_true(slice_starts(text, SLICE_LIT("The capital")));
                yyjson_doc_free(doc);
        }
        api_rig_close(&api);
}

static void a_token_that_the_model_does_not_know_is_refused(void **state) {
        struct api_options o = api_rig_options(&api);
        yyjson_doc *doc;
        struct slice message;

        o.defaults.vocab = 300;
        api_rig_open(&api, &o);
        doc = ask(&api, "/v1/completions", "{\"prompt\":\"The capital of France\",\"max_tokens\":1}", 400);
        message = json_get_slice(json_get(yyjson_doc_get_root(doc), "error"), "message");
        assert_true(slice_find_slice(message, SLICE_LIT("ends at 299"), 0) < message.len);
        yyjson_doc_free(doc);
        yyjson_doc_free(ask(&api, "/tokenize", "{\"prompt\":\"The capital of France\"}", 200));
        api_rig_close(&api);
}

static void a_redirect_stays_with_its_scheme(void **state) {
        struct api_options o = api_rig_options(&api);

        for (int tls = 0; tls < 2; tls++) {
                struct peer *p;

                o.tls = tls;
                api_rig_open(&api, &o);
                p = peer_connect(&api.net, api.port);
                peer_say(p, "GET /v1/models/?x=1 HTTP/1.1\r\nHost: engine:1\r\nConnection: close\r\n\r\n");
                UNTIL_ALL(&api, peer_ended(p));
                assert_int_equal(peer_status(p), 307);
                assert_true(peer_got(p, tls ? "\r\nLocation: https://engine:1/v1/models?x=1\r\n"
                                            : "\r\nLocation: http://engine:1/v1/models?x=1\r\n"));
                peer_leave(&api.net, p, false);
                api_rig_close(&api);
        }
}

/* ---- long reports ----------------------------------------------------------------------------------------------------------- */

static struct peer *ask_for_report(void) {
        struct peer *p = peer_connect(&api.net, api.port);
        struct buf body = {0};

        buf_add_str(&body, "{\"prompt\":[5");
        for (int i = 1; i < 200; i++)
                buf_printf(&body, ",%d", 5 + i);
        buf_add_str(&body, "],\"max_tokens\":3,\"ignore_eos\":true,\"prompt_logprobs\":20,\"logprobs\":0}");
        peer_post(p, "/v1/completions", buf_slice(&body));
        buf_free(&body);
        return p;
}

static struct api_choice *held_choice(void) {
        struct api_call *call = only_call();

        return call && call->choice_count && call->choices[0].held ? &call->choices[0] : NULL;
}

static void a_long_report_is_written_by_a_worker(void **state) {
        struct api_options o = api_rig_options(&api);
        struct blocker blocker;
        yyjson_val *choice;
        yyjson_doc *doc;
        struct peer *p;

        api_rig_open(&api, &o);
        blocker_start(&blocker);
        p = ask_for_report();
        UNTIL_ALL(&api, held_choice() && held_choice()->held_last->finish != FINISH_NONE);
        assert_false(peer_ended(p));
        yyjson_doc_free(ask(&api, "/v1/completions", "{\"prompt\":\"x\",\"max_tokens\":2}", 200));
        assert_false(peer_ended(p));
        blocker_end(&blocker);
        UNTIL_ALL(&api, peer_ended(p));
        assert_int_equal(peer_status(p), 200);
        assert_int_equal(json_parse(peer_body(p), &doc, NULL), 0);
        choice = yyjson_arr_get_first(json_get(yyjson_doc_get_root(doc), "choices"));
        assert_int_equal(yyjson_arr_size(json_get(choice, "prompt_logprobs")), 200);
        assert_int_equal(yyjson_arr_size(json_get(json_get(choice, "logprobs"), "tokens")), 3);
        yyjson_doc_free(doc);
        peer_leave(&api.net, p, false);
        api_rig_close(&api);
}

static void a_client_that_leaves_takes_its_report_along(void **state) {
        struct api_options o = api_rig_options(&api);
        struct blocker blocker;
        struct peer *p;

        api_rig_open(&api, &o);
        blocker_start(&blocker);
        p = ask_for_report();
        UNTIL_ALL(&api, held_choice());
        peer_leave(&api.net, p, true);
        UNTIL_ALL(&api, list_empty(&api.api->calls));
        blocker_end(&blocker);
        api_rig_close(&api);
}

/* ---- memory ----------------------------------------------------------------------------------------------------------------- */

/* With a field that comes back, so that the answer's head needs memory of its own. */
static void post_from_afar(struct peer *p, const char *body) {
        struct buf b = {0};

        buf_add_str(&b, "POST /v1/completions HTTP/1.1\r\nHost: engine\r\nConnection: close\r\nOrigin: ");
        buf_add(&b, many(5000));
        buf_printf(&b, "\r\nContent-Type: application/json\r\nContent-Length: %zu\r\n\r\n%s", strlen(body), body);
        peer_send(p, buf_slice(&b));
        buf_free(&b);
}

/* Whatever cannot be had while outputs are told: the client gets an end, and nothing is left. */
static void an_answer_that_memory_runs_out_for_ends(void **state) {
        static const char *const bodies[] = {"{\"prompt\":\"x\",\"max_tokens\":2,\"ignore_eos\":true,\"stream\":true}",
            "{\"prompt\":\"x\",\"max_tokens\":2,\"ignore_eos\":true,\"logprobs\":2,\"echo\":true}"};
        static const char *const origins[] = {"*"};
        struct api_options o = api_rig_options(&api);

        o.allowed_origins = origins;
        o.allowed_origin_count = 1;
        o.allow_credentials = true;
        api_rig_open(&api, &o);
        for (size_t i = 0; i < 2; i++)
                for (long n = 0, failed = 1; failed; n++) {
                        struct peer *p = peer_connect(&api.net, api.port);

                        post_from_afar(p, bodies[i]);
                        while (!api.engine->mailbox.first)
                                net_turn(&api.net, "the request is with the engine");
                        while (engine_step(api.engine))
                                ;
                        failmalloc_from(n, 0);
                        api_take_outputs(api.api);
                        failmalloc_off();
                        failed = failmalloc_failed();
                        UNTIL_ALL(&api, peer_ended(p));
                        UNTIL_ALL(&api, list_empty(&api.api->calls));
                        peer_leave(&api.net, p, false);
                        assert_true(n > 0 || failed);
                }
        api_rig_close(&api);
}

/* ---- the prefix cache ------------------------------------------------------------------------------------------------------- */

static struct peer *ask_reset(void) {
        struct peer *p = peer_connect(&api.net, api.port);

        peer_post(p, "/reset_prefix_cache", SLICE_NONE);
        while (list_empty(&api.api->calls))
                net_turn(&api.net, "the reset came");
        return p;
}

static void a_reset_waits_for_the_engine_and_nobody_for_the_reset(void **state) {
        struct api_options o = api_rig_options(&api);
        struct peer *reset, *other;

        api_rig_open(&api, &o);
        reset = ask_reset();
        other = peer_connect(&api.net, api.port);
        peer_say(other, "GET /version HTTP/1.1\r\nHost: engine\r\nConnection: close\r\n\r\n");
        while (!peer_ended(other)) /* the engine does nothing yet */
                net_turn(&api.net, "the other answer");
        assert_false(peer_ended(reset));
        UNTIL_ALL(&api, peer_ended(reset));
        assert_int_equal(peer_status(reset), 200);
        peer_leave(&api.net, reset, false);
        peer_leave(&api.net, other, false);

        reset = ask_reset();
        peer_leave(&api.net, reset, true);
        UNTIL_ALL(&api, list_empty(&api.api->calls));
        api_rig_close(&api);
}

static void blocks_in_use_are_not_forgotten(void **state) {
        struct api_options o = api_rig_options(&api);
        struct peer *p, *reset;

        api_rig_open(&api, &o);
        p = peer_connect(&api.net, api.port);
        peer_post(p, "/v1/completions",
            SLICE_LIT("{\"prompt\":\"x\",\"max_tokens\":200,\"ignore_eos\":true,\"stream\":true}"));
        UNTIL_ALL(&api, peer_got(p, "data: "));
        reset = peer_connect(&api.net, api.port);
        peer_post(reset, "/reset_prefix_cache", SLICE_NONE);
        UNTIL_ALL(&api, peer_ended(reset));
        assert_int_equal(peer_status(reset), 503);
        peer_leave(&api.net, reset, false);
        peer_leave(&api.net, p, true);
        api_rig_close(&api);
}

/* ---- what the engine is asked for ------------------------------------------------------------------------------------------- */

static void a_stop_string_counts_as_a_stop(void **state) {
        struct api_options o = api_rig_options(&api);
        struct buf figures = {0};
        yyjson_doc *doc;

        api_rig_open(&api, &o);
        doc = ask(&api, "/v1/completions",
            "{\"prompt\":\"The capital of France is\",\"max_tokens\":200,\"ignore_eos\":true,"
            "\"stop\":[\"a\",\"e\",\"i\",\"o\",\" \"]}",
            200);
        yyjson_doc_free(doc);
        UNTIL_ALL(&api, list_empty(&api.api->calls));
        engine_metrics(api.engine, "", &figures);
        assert_non_null(strstr(buf_cstr(&figures), "finished_reason=\"stop\"} 1.0\n"));
        assert_non_null(strstr(buf_cstr(&figures), "finished_reason=\"abort\"} 0.0\n"));
        buf_free(&figures);
        api_rig_close(&api);
}

/* How many sequences of the only call are asked for log-probabilities of their prompts. */
static unsigned reports_for(const char *path, const char *body, unsigned choices) {
        struct api_options o = api_rig_options(&api);
        struct peer *p;
        unsigned count = 0, reports = 0;

        api_rig_open(&api, &o);
        p = peer_connect(&api.net, api.port);
        peer_post(p, path, slice_str(body));
        UNTIL_ALL(&api, api.engine->scheduler.running_count > 0);
        for (size_t i = 0; i < ID_BUCKETS; i++)
                for (struct request *q = api.engine->by_id[i]; q; q = q->next_in_bucket) {
                        count++;
                        reports += q->params.prompt_logprobs >= 0;
                }
        assert_int_equal(count, choices);
        peer_leave(&api.net, p, true);
        api_rig_close(&api);
        return reports;
}

static void log_probabilities_of_prompts_are_computed_where_they_are_told(void **state) {
#define LONG  "\"max_tokens\":100,\"ignore_eos\":true"
#define CHAT  "{\"messages\":[{\"role\":\"user\",\"content\":\"x\"}]," LONG
#define PLAIN "{\"prompt\":\"x\"," LONG
        assert_int_equal(reports_for("/v1/chat/completions", CHAT ",\"prompt_logprobs\":2,\"n\":3}", 3), 1);
        assert_int_equal(reports_for("/v1/chat/completions", CHAT ",\"prompt_logprobs\":0,\"stream\":true}", 1), 0);
        assert_int_equal(reports_for("/v1/completions", PLAIN ",\"prompt_logprobs\":2,\"n\":3}", 3), 3);
        assert_int_equal(reports_for("/v1/completions", PLAIN ",\"prompt_logprobs\":0,\"stream\":true}", 1), 0);
        assert_int_equal(reports_for("/v1/completions", PLAIN ",\"echo\":true,\"logprobs\":1,\"stream\":true}", 1), 1);
        assert_int_equal(reports_for("/v1/completions", PLAIN "}", 1), 0);
}

int main(void) {
        const struct CMUnitTest tests[] = {
            cmocka_unit_test(a_name_from_the_body_is_cut_as_one_from_the_header),
            cmocka_unit_test(a_client_that_leaves_takes_its_waiting_body_along),
            cmocka_unit_test(a_body_is_let_go_when_it_was_read),
            cmocka_unit_test(what_the_answer_needs_outlives_the_body),
            cmocka_unit_test(a_token_that_the_model_does_not_know_is_refused),
            cmocka_unit_test(a_redirect_stays_with_its_scheme),
            cmocka_unit_test(a_long_report_is_written_by_a_worker),
            cmocka_unit_test(a_client_that_leaves_takes_its_report_along),
            cmocka_unit_test(an_answer_that_memory_runs_out_for_ends),
            cmocka_unit_test(a_reset_waits_for_the_engine_and_nobody_for_the_reset),
            cmocka_unit_test(blocks_in_use_are_not_forgotten),
            cmocka_unit_test(a_stop_string_counts_as_a_stop),
            cmocka_unit_test(log_probabilities_of_prompts_are_computed_where_they_are_told),
        };

        setenv("UV_THREADPOOL_SIZE", "1", 1); /* before libuv's first use of it */
        return cmocka_run_group_tests(tests, set_up, tear_down);
}
