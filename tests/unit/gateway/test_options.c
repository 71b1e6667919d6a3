/* test_options.c - command lines of ours and of the example proxies, and the members they name. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "gateway/gateway.h"
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define ARGS_MAX 64

/* Parse words separated by blanks. */
static int parse(const char *words, struct gateway_options *o, struct error *e) {
        static char text[4096];
        char *argv[ARGS_MAX], *at;
        int argc = 1, r;

        argv[0] = (char *)"gateway";
        snprintf(text, sizeof(text), "%s", words);
        for (at = strtok(text, " "); at && argc < ARGS_MAX; at = strtok(NULL, " "))
                argv[argc++] = at;
        gateway_options_default(o);
        r = gateway_options_parse(argc, argv, o, e);
        return r;
}

/* The members as "P http://…" lines. */
static void assert_members(const char *words, const char *want) {
        struct gateway_options o;
        struct error e = {0};
        char got[4096] = "";

        if (parse(words, &o, &e) != 0)
                fail_msg("%s: %s", words, e.text);
        for (size_t i = 0; i < o.member_count; i++) {
                const struct gateway_member *m = &o.members[i];
                char line[256];

                snprintf(line, sizeof(line), "%s%s%s%s", m->prefill ? "P" : "D", m->name ? m->name : "", " ", m->url);
                if (m->dp_rank >= 0)
                        snprintf(line + strlen(line), sizeof(line) - strlen(line), "@%d", m->dp_rank);
                strcat(strcat(got, line), ";");
        }
        assert_string_equal(got, want);
        gateway_options_free(&o);
}

static void assert_refused(const char *words, const char *word) {
        struct gateway_options o;
        struct error e = {0};

        assert_int_equal(parse(words, &o, &e), -EINVAL);
        if (!strstr(e.text, word))
                fail_msg("%s: `%s` does not say %s", words, e.text, word);
        gateway_options_free(&o);
}

static void hosts_and_ports_go_together_in_order(void **state) {
        assert_members("--prefiller-hosts a b --prefiller-ports 1 2 --decoder-hosts c --decoder-ports 3",
            "P http://a:1;P http://b:2;D http://c:3;");
        assert_members("--decoder-ports 3 --decoder-hosts c --prefiller-ports 1 2 --prefiller-hosts a b",
            "P http://a:1;P http://b:2;D http://c:3;");
}

/* As the large-EP page writes it: each host so often, each port counted up. */
static void the_expanders_of_0_9_1_repeat_hosts_and_count_ports(void **state) {
        assert_members("--prefiller-hosts a b --prefiller-hosts-num 2 2 --prefiller-ports 9000 9000 "
                       "--prefiller-ports-inc 2 2 --decoder-hosts c --decoder-hosts-num 3 --decoder-ports 7000 "
                       "--decoder-ports-inc 3",
            "P http://a:9000;P http://a:9001;P http://b:9000;P http://b:9001;D http://c:7000;D http://c:7001;"
            "D http://c:7002;");
        /* The counts before what they count; and a host repeated over ports that are written out. */
        assert_members("--decoder-ports-inc 3 --decoder-ports 7000 --decoder-hosts-num 3 --decoder-hosts c",
            "D http://c:7000;D http://c:7001;D http://c:7002;");
        assert_members(
            "--decoder-hosts c --decoder-hosts-num 2 --decoder-ports 7100 7105", "D http://c:7100;D http://c:7105;");
        assert_members(
            "--decoder-hosts c c --decoder-ports 7100 --decoder-ports-inc 2", "D http://c:7100;D http://c:7101;");
}

static void urls_may_have_names_and_ranks(void **state) {
        assert_members("--prefill p0=http://a:1 b:2@3 --prefill c:3 --decode d0.1=[::1]:4@1 unix:/run/x.sock",
            "Pp0 http://a:1;P b:2@3;P c:3;Dd0.1 [::1]:4@1;D unix:/run/x.sock;");
        assert_members("--worker-urls http://a:1 http://b:1@0", "D http://a:1;D http://b:1@0;");
        assert_members(
            "--prefiller-hosts ::1 [fe80::2] --prefiller-ports 1 2", "P http://[::1]:1;P http://[fe80::2]:2;");
}

/* As vllm-router's users write it. */
static void vllm_routers_command_lines_work(void **state) {
        struct gateway_options o;
        struct error e = {0};

        assert_members(
            "--vllm-pd-disaggregation --prefill http://a:1 none --prefill http://b:2 9000 --decode http://c:3 "
            "--decode http://d:4 --policy cache_aware --prefill-policy power_of_two",
            "P http://a:1;P http://b:2;D http://c:3;D http://d:4;");
        assert_members("--worker-urls http://a:1 x=b:2 c:3@7 --intra-node-data-parallel-size 2",
            "D http://a:1@0;D http://a:1@1;Dx@0 b:2@0;Dx@1 b:2@1;D c:3@7;");
        assert_members("--prefill a:1 --decode b:2 --prefill-data-parallel-size 2 --intra-node-data-parallel-size 1",
            "P a:1@0;P a:1@1;D b:2@0;");
        assert_int_equal(parse("--vllm-pd-disaggregation --prefill a:1 9000 --decode b:1 --retry-max-retries 0 "
                               "--retry-initial-backoff-ms 50 --retry-backoff-multiplier 1.5 --cb-failure-threshold 9 "
                               "--disable-circuit-breaker --prometheus-port 29000 --queue-size 0 --policy "
                               "rendezvous_hash --max-concurrent-requests 7 --health-check-endpoint /alive",
                             &o, &e),
            0);
        assert_int_equal(o.members[0].bootstrap_port, 9000);
        assert_true(o.prefill_on_decode && o.retry_delay == 0.05);
        assert_int_equal(o.max_retries, 1);
        assert_int_equal(o.queue_size, 0);
        assert_int_equal(o.max_concurrent, 7);
        assert_string_equal(o.connector, "pull");
        assert_int_equal(o.ignored.count, 4);
        assert_string_equal(o.ignored.items[2], "disable-circuit-breaker");
        gateway_options_free(&o);
        assert_int_equal(parse("--vllm-pd-disaggregation --disable-retries --max-retries 9", &o, &e), 0);
        assert_string_equal(o.connector, "pull");
        assert_int_equal(o.max_retries, 1);
        gateway_options_free(&o);
        assert_refused("--health-check-endpoint alive", "begin with /");
}

static void slips_are_named(void **state) {
        assert_refused("--prefiller-hosts a b --prefiller-ports 1", "2 hosts and 1 ports");
        assert_refused("--prefiller-hosts a b --prefiller-hosts-num 1 --prefiller-ports 1 2", "--prefiller-hosts-num");
        assert_refused(
            "--decoder-hosts a --decoder-ports 65535 --decoder-hosts-num 2 --decoder-ports-inc 2", "not a port");
        assert_refused("--decoder-hosts a --decoder-ports x", "not a port");
        assert_refused("--decoder-hosts a --decoder-hosts-num 0 --decoder-ports 1", "not a count");
        assert_refused("--decoder-hosts a --decoder-hosts-num 99999999 --decoder-ports 1", "not a count");
        assert_refused("--decode a:1@x", "rank");
        assert_refused("--decode x=", "not an address");
        assert_refused("--connector warp", "pull");
        assert_refused("--connector push --host ::", "--metaserver-url");
        assert_refused("--connector push --metaserver-url 10.0.0.1:80", "no URL");
        assert_refused("--connector push --metaserver-url http://a/\"", "quote");
        assert_refused("--policy best", "least_load");
        assert_refused("--idle-timeout -1", "--idle-timeout");
        assert_refused("--prefill a:1 --worker-urls b:1", "whole engines");
        assert_refused("--max-retries 0", "--max-retries");
        assert_refused("--decoder-host a", "did you mean --decoder-hosts");
}

static void a_prefiller_may_be_given_with_its_bootstrap_port(void **state) {
        struct gateway_options o;
        struct error e = {0};

        assert_int_equal(parse("--prefill a:1 9000 b:1 none c:1 --prefill d:1 9001 --decode e:1", &o, &e), 0);
        assert_int_equal(o.member_count, 5);
        assert_int_equal(o.members[0].bootstrap_port, 9000);
        assert_int_equal(o.members[1].bootstrap_port, 0);
        assert_int_equal(o.members[2].bootstrap_port, 0);
        assert_int_equal(o.members[3].bootstrap_port, 9001);
        gateway_options_free(&o);
}

static void the_connector_follows_from_the_members(void **state) {
        static const struct {
                const char *words, *want;
        } cases[] = {{"", "pull"}, {"--decode a:1", "plain"}, {"--prefill a:1 --decode b:1", "pull"},
            {"--worker-urls a:1", "plain"}, {"--decode a:1 --connector MooncakeConnectorV1", "MooncakeConnectorV1"}};

        for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
                struct gateway_options o;
                struct error e = {0};

                assert_int_equal(parse(cases[i].words, &o, &e), 0);
                assert_string_equal(o.connector, cases[i].want);
                gateway_options_free(&o);
        }
}

static void a_role_may_have_a_policy_of_its_own(void **state) {
        struct gateway_options o;
        struct error e = {0};

        assert_int_equal(parse("--policy random --decode-policy round_robin", &o, &e), 0);
        assert_string_equal(o.prefill_policy, "random");
        assert_string_equal(o.decode_policy, "round_robin");
        gateway_options_free(&o);
}

int main(void) {
        const struct CMUnitTest tests[] = {
            cmocka_unit_test(hosts_and_ports_go_together_in_order),
            cmocka_unit_test(the_expanders_of_0_9_1_repeat_hosts_and_count_ports),
            cmocka_unit_test(urls_may_have_names_and_ranks),
            cmocka_unit_test(vllm_routers_command_lines_work),
            cmocka_unit_test(slips_are_named),
            cmocka_unit_test(a_prefiller_may_be_given_with_its_bootstrap_port),
            cmocka_unit_test(the_connector_follows_from_the_members),
            cmocka_unit_test(a_role_may_have_a_policy_of_its_own),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
