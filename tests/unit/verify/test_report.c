/* test_report.c - the report for people: the picture of the pings fits a terminal and shows where, and the page needs nothing
 * else and holds no markup of a machine's. */
#include "recorded.h"
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>

#include <cmocka.h>

/* The report holds the lines `wanted`, and its picture is not wider than a terminal. */
static void expect_picture(const char *cluster, const char *fault, const char *wanted) {
        struct recorded *r = recorded_open(cluster, fault, NULL);
        struct arena arena = {0};
        struct facts facts;
        struct verify_findings f;
        struct buf b = {0};
        struct slice rest, line;

        recorded_judge(r, &arena, &facts, &f);
        verify_write_text(&facts, &f, false, &b);
        if (!strstr(buf_cstr(&b), wanted))
                fail_msg("%s", buf_cstr(&b));
        rest = slice_str(strstr(buf_cstr(&b), "interconnect"));
        while (slice_split(&rest, '\n', &line) && !slice_starts(line, SLICE_LIT("  error")) &&
               !slice_starts(line, SLICE_LIT("  warning")))
                assert_true(slice_characters(line) <= 80);
        buf_free(&b);
        arena_free(&arena);
        recorded_close(r);
}

static void the_picture_shows_where_and_rows_alike_are_one(void **state) {
        (void)state;
        expect_picture("a2-4node", NULL,
            "interconnect  ping, who asks to the left, who is asked above, by NPU:\n"
            "              768 good (.); median 87.7 µs, slowest 97.0 µs\n"
            "         p0       p1       d0       d1\n"
            "  p0 0-7 -------- ........ ........ ........\n"
            "  p1 0-7 ........ -------- ........ ........\n"
            "  d0 0-7 ........ ........ -------- ........\n"
            "  d1 0-7 ........ ........ ........ --------\n");
        expect_picture("a2-4node", "roce-ping-partial-loss",
            "767 good (.), 1 packets lost (+); median 87.7 µs, slowest 97.0 µs\n"
            "         p0       p1       d0       d1\n"
            "  p0 0   -------- ........ ........ ......+.\n"
            "  p0 1-7 -------- ........ ........ ........\n");
        expect_picture("a3-4node", "hccs-ping-device-lost",
            "2976 good (.), 96 lost (X); median 10.6 µs, slowest 11.6 µs\n"
            "           p0               p1               d0               d1\n"
            "  p0 0-15  ---------------- ................ ................ ........X.......\n"
            "  p1 0-15  ................ ---------------- ................ ........X.......\n"
            "  d0 0-15  ................ ................ ---------------- ........X.......\n"
            "  d1 0-7   ................ ................ ................ ----------------\n"
            "  d1 8     XXXXXXXXXXXXXXXX XXXXXXXXXXXXXXXX XXXXXXXXXXXXXXXX ----------------\n"
            "  d1 9-15  ................ ................ ................ ----------------\n");
        expect_picture("a3-4node", "hccs-slow-pair", "3071 good (.), 1 slow (s)");
        expect_picture("a3-4node", "busy-always", "not known (?)");
}

/* Twelve nodes of eight are too wide by NPU: by node then, and a node's worst pair counts. */
static void many_nodes_are_shown_by_node(void **state) {
        struct arena arena = {0};
        struct node_facts nodes[12] = {0};
        struct npu_facts npus[8] = {0};
        struct probe probes[] = {{0, 1, 11, 2,
                                     {.out = SLICE_LIT("device 0 PING x\n3 packets transmitted, 0 received, "
                                                       "100.00% packet loss\n")}},
            {0, 2, 11, 2,
                {.out = SLICE_LIT("device 0 PING x\nrecv seq=0,time=0.1ms\n1 packets transmitted, 1 received, "
                                  "0.00% packet loss\n")}}};
        struct facts facts = {
            .platform = PLATFORM_ASCEND_A2, .nodes = nodes, .node_count = 12, .probes = probes, .probe_count = 2};
        struct verify_findings f = {.arena = &arena};
        struct buf b = {0};

        (void)state;
        for (unsigned i = 0; i < 12; i++)
                nodes[i] = (struct node_facts){
                    .name = slice_str(arena_printf(&arena, "node-with-a-name-%u", i)), .npus = npus, .npu_count = 8};
        verify_write_text(&facts, &f, false, &b);
        assert_non_null(strstr(buf_cstr(&b), "by node:\n              1 good (.), 1 lost (X); median 100.0 µs"));
        assert_non_null(strstr(buf_cstr(&b), "  node-with- -------- ---X\n"));
        buf_free(&b);
        arena_free(&arena);
}

static void the_page_needs_nothing_and_holds_no_foreign_markup(void **state) {
        struct recorded *r = recorded_open("a2-4node", "roce-ping-partial-loss", NULL);
        struct arena arena = {0};
        struct facts facts;
        struct verify_findings f;
        struct buf b = {0};
        static const char *const never[] = {
            "<script", "<b>evil", "http:", "https:", "url(", "@import", "<link", "<img"};

        (void)state;
        recorded_judge(r, &arena, &facts, &f);
        facts.nodes[0].name = SLICE_LIT("<b>evil\"&\1");
        facts.nodes[1].ip = SLICE_LIT("<script>alert(1)</script>");
        f.items[0].cause = f.items[0].cure = "<script src=x>";
        verify_write_html(&facts, &f, "<b>evil</b>", "<script>", &b);
        for (size_t i = 0; i < sizeof(never) / sizeof(*never); i++)
                assert_null(strstr(buf_cstr(&b), never[i]));
        assert_non_null(strstr(buf_cstr(&b), "&lt;b&gt;evil&quot;&amp;?"));
        assert_non_null(strstr(buf_cstr(&b), "default-src 'none'"));
        assert_non_null(strstr(buf_cstr(&b), "npu 0 → d1 npu 6: packets lost, 33.33 % lost"));
        assert_non_null(strstr(buf_cstr(&b), "767 of 768</b>pings good"));
        assert_non_null(strstr(buf_cstr(&b), "1 of 64 bad, 0.52 % lost"));
        buf_free(&b);
        arena_free(&arena);
        recorded_close(r);
}

int main(void) {
        const struct CMUnitTest tests[] = {
            cmocka_unit_test(the_picture_shows_where_and_rows_alike_are_one),
            cmocka_unit_test(many_nodes_are_shown_by_node),
            cmocka_unit_test(the_page_needs_nothing_and_holds_no_foreign_markup),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
