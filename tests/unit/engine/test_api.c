/* What a request holds on its way through the API, that its bounds are kept, and that all is given back. */
#include "api_rig.h"

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

int main(void) {
        const struct CMUnitTest tests[] = {
            cmocka_unit_test(a_name_from_the_body_is_cut_as_one_from_the_header),
        };

        return cmocka_run_group_tests(tests, set_up, tear_down);
}
