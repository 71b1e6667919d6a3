/* fuzz_verify.c - what hccn_tool and npu-smi print, what agents tell of hosts, and parts of ranktables, from hostile machines:
 * every parser, and the judgement of a node whose every answer is the input. What is judged well must have said so. */
#include "base/json.h"
#include "verify/host.h"
#include "verify/parse.h"
#include <assert.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void judge_all_alike(struct slice out, struct arena *arena) {
        struct answer a = {.out = out};
        struct npu_facts npus[2] = {{.device = 0}, {.device = 1, .card = 1}};
        struct node_facts nodes[2] = {{.name = SLICE_LIT("p0"), .ip = SLICE_LIT("10.0.0.1"), .expected = 1},
            {.name = SLICE_LIT("d0"), .ip = SLICE_LIT("10.0.0.2"), .expected = 1}};
        struct probe probes[2] = {{0, 0, 1, 0, a}, {1, 0, 0, 0, a}};
        struct facts facts = {.platform = PLATFORM_ASCEND_A3,
            .nodes = nodes,
            .node_count = 2,
            .probes = probes,
            .probe_count = 2,
            .table_asked = true};
        struct verify_findings f = {.arena = arena};
        struct buf b = {0};

        for (int i = 0; i < 2; i++) {
                npus[i].asked = TOPICS_ALL;
                for (unsigned t = 0; t < TOPIC_COUNT; t++)
                        npus[i].answers[t] = a;
                nodes[i].list = nodes[i].map = nodes[i].table = nodes[i].conf = a;
                nodes[i].npus = &npus[i];
                nodes[i].npu_count = 1;
        }
        assert(judge(&facts, &f) == 0);
        assert(f.count > 0); /* no text answers all of these questions */
        verify_write_text(&facts, &f, true, &b);
        verify_write_json(&facts, &f, &b);
        verify_write_html(&facts, &f, "f.yaml", "now", &b);
        buf_free(&b);
}

/* Hosts of which every answer is the input. */
static void judge_hosts_alike(struct slice out, struct arena *arena) {
        struct answer a = {.out = out};
        struct host_port port = {9000, "API port of p0.0"};
        struct node_facts nodes[2] = {{.name = SLICE_LIT("p0"), .ip = SLICE_LIT("10.0.0.1"), .host_only = true},
            {.name = SLICE_LIT("d0"), .ip = SLICE_LIT("10.0.0.2"), .host_only = true}};
        struct host_try tries[2] = {{0, 1, a}, {1, 0, a}};
        struct facts facts = {.platform = PLATFORM_CUDA, .nodes = nodes, .node_count = 2};
        struct verify_findings f = {.arena = arena};
        struct buf b = {0};

        facts.hosts.asked = facts.hosts.planned = true;
        facts.hosts.model = facts.hosts.state_dir = "/m";
        facts.hosts.tries = tries;
        facts.hosts.try_count = 2;
        for (int i = 0; i < 2; i++) {
                nodes[i].plan =
                    (struct host_plan){.nic = SLICE_LIT("eth0"), .ports = &port, .port_count = 1, .ranks = 1};
                nodes[i].host = (struct host_facts){
                    .facts = a, .model = a, .opened = a, .nft = a, .iptables = a, .firewall_asked = true};
        }
        assert(judge(&facts, &f) == 0);
        assert(f.count > 0); /* no text answers all of these questions */
        verify_write_html(&facts, &f, "f.yaml", "now", &b);
        buf_free(&b);
}

static void parse_all(struct slice out) {
        struct map_row rows[MAP_ROWS_MAX];
        struct table_reader reader = {out, 0, false};
        struct table_row row;
        struct npu_address address;
        struct lldp lldp;
        struct ping ping;
        struct slice text, rest = out;
        uint64_t number;
        unsigned small;
        size_t count;

        parse_value(out, "link status", &text);
        parse_number(out, "SDID", &number);
        parse_conf(out, "address_0", &text);
        if (parse_ipv4(out, &small) == 0)
                assert(out.len >= 7 && out.len <= 15);
        if (parse_address(out, "ipaddr", "netmask", &address, &text) == 0)
                assert(address.known && address.address && address.text[0]);
        if (parse_map(out, rows, &count) == 0)
                assert(count > 0 && count <= MAP_ROWS_MAX);
        if (parse_lldp(out, &lldp) == 0)
                assert(lldp.port.len);
        if (parse_tls(out, &small) == 0)
                assert(small <= 1);
        if (parse_ping(out, &ping) == 0)
                assert(ping.sent > 0);
        parse_link_stat(out, 24, &small);
        while (parse_counter(&rest, &text, &number)) {
        }
        while (parse_table(&reader, &row)) {
        }
        parse_ports(out, &count, &text);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
        struct slice out = slice_of(data, size);
        struct arena arena = {0};
        struct node_facts node = {.ip = SLICE_LIT("10.20.0.11")};
        struct facts facts = {.nodes = &node, .node_count = 1};

        parse_all(out);
        judge_all_alike(out, &arena);
        judge_hosts_alike(out, &arena);
        host_port_in_list(out, 9000);
        host_proxy_catches(out, SLICE_LIT("10.0.0.1"));
        part_read(&facts, out, &arena, NULL);
        arena_free(&arena);
        return 0;
}
