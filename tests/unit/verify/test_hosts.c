/* test_hosts.c - the host plane, collected from agents that answer as told and judged: each fault is told once, with place and
 * cause, and nothing that is cut, lacking or not understood passes for a host without faults. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "verify/host.h"
#include <stdio.h>
#include <stdlib.h>

#define NODES 4
#define FACTS                                                                                                          \
        "{\"nics\":[{\"name\":\"lo\",\"up\":true,\"carrier\":true,\"mtu\":65536,\"addresses\":[\"127.0.0.1\"]},"       \
        "{\"name\":\"eth0\",\"up\":true,\"carrier\":true,\"mtu\":9000,\"addresses\":[\"10.0.0.%u\",\"fe80::1\"]},"     \
        "{\"name\":\"eth1\",\"up\":true,\"carrier\":true,\"mtu\":1500,\"addresses\":[]}],"                             \
        "\"ephemeral\":\"32768\\t60999\",\"reserved\":\"\",\"proxies\":[],\"no_proxy\":\"\",\"root\":false,"           \
        "\"limits\":{\"nofile\":[1024,1048576],\"memlock\":[-1,-1],\"nproc\":[-1,-1]},\"space\":["                     \
        "{\"use\":\"shm\",\"path\":\"/dev/shm\",\"free\":68719476736,\"all\":68719476736,\"read_only\":false},"        \
        "{\"use\":\"tmp\",\"path\":\"/tmp\",\"free\":68719476736,\"all\":68719476736,\"read_only\":false},"            \
        "{\"use\":\"model\",\"path\":\"/m\",\"free\":0,\"all\":68719476736,\"read_only\":true},"                       \
        "{\"use\":\"logs\",\"path\":\"/var/log/"                                                                       \
        "baton\",\"free\":68719476736,\"all\":68719476736,\"read_only\":false}]}"
#define MODEL                                                                                                          \
        "{\"files\":[{\"name\":\"config.json\",\"size\":10,\"hash\":\"aa\"},"                                          \
        "{\"name\":\"model.safetensors.index.json\",\"size\":20,\"hash\":\"bb\"},"                                     \
        "{\"name\":\"model-1.safetensors\",\"size\":4000000000}]}"

/* A change to what a node answers to a question: `old` becomes `new`; or the whole answer is `state`. */
struct change {
        int node; /* -1: all */
        const char *question, *old, *new;
        enum answer_state state;
};
/* From one node (-1: any) to another, ports from first to last answer with an error. */
struct closed {
        int from, to;
        uint16_t first, last;
        const char *error;
};
struct site {
        struct change changes[4];
        struct closed closed[4];
        int64_t ahead_ns[NODES];
        const char *nft; /* of every node */
        size_t cut;      /* > 0: answers to `cut_question` of node 1 end after cut - 1 bytes */
        const char *cut_question;
        size_t tried, most_at_once; /* noted */
};

static struct slice replaced(struct arena *arena, struct slice text, const char *old, const char *new) {
        size_t at = slice_find_slice(text, slice_str(old), 0);

        assert_true(at < text.len); /* or the test tests nothing */
        return slice_str(arena_printf(arena, "%.*s%s%.*s", SLICE_ARG(slice_sub(text, 0, at)), new,
            SLICE_ARG(slice_sub(text, at + strlen(old), text.len))));
}

static const char *error_at(const struct site *s, int from, int to, uint16_t port) {
        for (size_t i = 0; i < 4 && s->closed[i].error; i++)
                if ((s->closed[i].from < 0 || s->closed[i].from == from) &&
                    (s->closed[i].to < 0 || s->closed[i].to == to) && port >= s->closed[i].first &&
                    port <= s->closed[i].last)
                        return s->closed[i].error;
        return NULL;
}

/* `from` -1: opened, not tried. */
static struct slice doors(const struct site *s, int from, int to, const char *spec, struct arena *arena) {
        struct slice rest = slice_str(spec), run, first, all;
        struct buf b = {0};

        buf_add_str(&b, "{\"ports\":[");
        while (slice_split(&rest, ',', &run)) {
                uint64_t low, high;

                slice_split(&run, '-', &first);
                assert_int_equal(slice_to_u64(first, &low), 0);
                high = low;
                if (run.ptr)
                        assert_int_equal(slice_to_u64(run, &high), 0);
                for (; low <= high; low++) {
                        const char *error = from < 0 ? NULL : error_at(s, from, to, (uint16_t)low);

                        buf_printf(&b, "%s{\"port\":%llu,\"error\":%s%s%s}", buf_cstr(&b)[b.len - 1] == '[' ? "" : ",",
                            (unsigned long long)low, error ? "\"" : "", error ? error : "null", error ? "\"" : "");
                }
        }
        buf_add_str(&b, "]}");
        all = arena_copy(arena, buf_slice(&b));
        buf_free(&b);
        return all;
}

static struct slice said(struct site *s, int node, const char *const *words, struct arena *arena) {
        if (!strcmp(words[0], "nft"))
                return slice_str(s->nft);
        if (!strcmp(words[0], "iptables"))
                return SLICE_LIT("-P INPUT ACCEPT\n");
        assert_string_equal(words[0], "host");
        if (!strcmp(words[1], "facts"))
                return slice_str(arena_printf(arena, FACTS, (unsigned)node + 1));
        if (!strcmp(words[1], "model"))
                return SLICE_LIT(MODEL);
        if (!strcmp(words[1], "open"))
                return doors(s, -1, node, words[3], arena);
        if (!strcmp(words[1], "try")) {
                s->tried++;
                return doors(s, node, words[2][strlen(words[2]) - 1] - '1', words[3], arena);
        }
        return SLICE_LIT("");
}

static void answer_one(struct site *s, struct batch *b, size_t i, struct arena *arena) {
        const char *const *words = b->questions[i].words;
        struct answer a = {.out = said(s, (int)b->node, words, arena)};

        if (words[1] && !strcmp(words[1], "clock"))
                a.out = slice_str(
                    arena_printf(arena, "%lld", (long long)b->sent_ns + 100000 + (long long)s->ahead_ns[b->node]));
        for (size_t k = 0; k < 4 && s->changes[k].question; k++) {
                const struct change *c = &s->changes[k];

                if (!words[1] || strcmp(words[1], c->question) != 0 || (c->node >= 0 && (uint32_t)c->node != b->node))
                        continue;
                if (c->old)
                        a.out = replaced(arena, a.out, c->old, c->new);
                else
                        a = (struct answer){.state = c->state, .err = slice_str(c->new)};
        }
        if (s->cut && b->node == 1 && words[1] && !strcmp(words[1], s->cut_question))
                a.out = slice_sub(a.out, 0, s->cut - 1);
        b->answers[i] = a;
}

static void ask(
    void *context, struct batch *batches, size_t count, const struct listener *listener, struct arena *arena) {
        struct site *s = context;
        size_t visited[NODES] = {0};

        for (size_t i = 0; i < count; i++) {
                batches[i].sent_ns = 1700000000000000000ull;
                batches[i].back_ns = batches[i].sent_ns + 200000;
                for (size_t k = 0; k < batches[i].count; k++) {
                        const struct question *q = &batches[i].questions[k];

                        answer_one(s, &batches[i], k, arena);
                        if (q->words[1] && !strcmp(q->words[1], "try")) {
                                size_t *at = &visited[q->words[2][strlen(q->words[2]) - 1] - '1'];

                                if (++*at > s->most_at_once)
                                        s->most_at_once = *at;
                        }
                }
                if (listener)
                        listener->answered(listener->context, batches[i].count, -1);
        }
}

static void judge_site(struct site *s, struct arena *arena, struct facts *f, struct verify_findings *ret) {
        static const struct host_port ports[] = {
            {9000, "API port of x.0"}, {9001, "API port of x.1"}, {9002, "DP port"}, {20000, "KV port of x.0"}};
        struct asker asker = {s, ask};

        *f = (struct facts){.platform = PLATFORM_CUDA, .nodes = arena_array(arena, NODES, sizeof(*f->nodes))};
        f->node_count = NODES;
        f->hosts.planned = true;
        f->hosts.model = "/m";
        f->hosts.state_dir = "/var/log/baton";
        f->hosts.log_bytes = 1 << 20;
        for (unsigned i = 0; i < NODES; i++) {
                struct host_port *own = arena_array(arena, 4, sizeof(*own));

                memcpy(own, ports, sizeof(ports));
                f->nodes[i] = (struct node_facts){.name = slice_str(arena_printf(arena, "n%u", i)),
                    .ip = slice_str(arena_printf(arena, "10.0.0.%u", i + 1)),
                    .host_only = true,
                    .plan = {.nic = SLICE_LIT("eth0"), .ports = own, .port_count = 4, .ranks = 2}};
        }
        *ret = (struct verify_findings){.arena = arena};
        assert_int_equal(collect_hosts(f, &asker, NULL, arena), 0);
        assert_int_equal(judge(f, ret), 0);
}

static void print_findings(size_t row, const struct facts *f, const struct verify_findings *findings) {
        struct buf b = {0};

        verify_write_text(f, findings, false, &b);
        print_error("row %zu:\n%s", row, buf_cstr(&b));
        buf_free(&b);
}

static void a_healthy_site_has_no_findings_and_a_node_is_tried_by_one_at_a_time(void **state) {
        struct site s = {0};
        struct arena arena = {0};
        struct facts f;
        struct verify_findings findings;

        (void)state;
        judge_site(&s, &arena, &f, &findings);
        if (findings.count)
                print_findings(0, &f, &findings);
        assert_int_equal(findings.count, 0);
        assert_int_equal(s.tried, NODES * (NODES - 1));
        assert_int_equal(s.most_at_once, 1);
        arena_free(&arena);
}

/* A site with one fault, and the one finding that it must have. */
static const struct {
        struct site site;
        const char *code;
        int node;
        bool error, unknown;
        const char *words, *cure;
} faults[] = {
    {{.changes = {{1, "facts", "\"eth0\",\"up\":true", "\"eth0\",\"up\":false", 0}}}, "V28", 1, true, false,
        "interface eth0 is down", "ip link set eth0 up"},
    {{.changes = {{1, "facts", "\"eth0\",\"up\":true,\"carrier\":true", "\"eth0\",\"up\":true,\"carrier\":false", 0}}},
        "V28", 1, true, false, "eth0 is up but has no carrier", "cable"},
    {{.changes = {{2, "facts", "\"eth0\"", "\"bond0\"", 0}}}, "V28", 2, true, false,
        "there is no interface eth0; bond0 has 10.0.0.3", "nic: bond0"},
    {{.changes = {{2, "facts", "10.0.0.3", "10.0.0.9", 0}}}, "V28", 2, true, false,
        "no interface has the node's address 10.0.0.3", "ip address add 10.0.0.3"},
    {{.changes = {{2, "facts", "\"10.0.0.3\",", "", 0},
          {2, "facts", "\"addresses\":[]", "\"addresses\":[\"10.0.0.3\"]", 0}}},
        "V28", 2, true, false, "10.0.0.3 is not on interface eth0 but on eth1", "nic: eth1"},
    {{.changes = {{3, "facts", "9000", "1500", 0}}}, "V29", 3, false, false,
        "the mtu of eth0 is 1500, n0's eth0 has 9000", "mtu 9000"},
    {{.changes = {{0, "open", "\"port\":9001,\"error\":null",
          "\"port\":9001,\"error\":\"EADDRINUSE\",\"holder\":\"vllm (pid 7)\"", 0}}},
        "V30", 0, true, false, "port 9001 (API port of x.1): vllm (pid 7) listens there already", "end it"},
    {{.changes = {{0, "open", "9000,\"error\":null", "9000,\"error\":\"EACCES\"", 0}}}, "V30", 0, true, false,
        "port 9000 (API port of x.0) cannot be listened on: EACCES", "root"},
    {{.closed = {{-1, 2, 9000, 9001, "ETIMEDOUT"}}, .nft = "table inet firewalld {\n chain in {\n  reject\n }\n}\n"},
        "V31", 2, true, false,
        "ports 9000-9001 (API port of x.0 first): not reached from any of the 3 nodes that tried: no answer",
        "nft table inet firewalld on n2"},
    {{.closed = {{-1, 2, 1, 65535, "ECONNREFUSED"}}}, "V31", 2, true, false, "refused, though baton listens there",
        "ip neigh"},
    {{.closed = {{1, 3, 20000, 20000, "EHOSTUNREACH"}}}, "V31", 3, true, false,
        "port 20000 (KV port of x.0): not reached from n1: unreachable", "ip route get 10.0.0.4"},
    {{.closed = {{1, -1, 1, 65535, "ETIMEDOUT"}}}, "V31", 1, true, false,
        "reaches no planned port of the 3 other nodes: no answer within 2.5 s", "firewall"},
    {{.changes = {{1, "facts", "32768", "9001", 0}}}, "V32", 1, false, false,
        "planned ports 9001-9002,20000 (the first: API port of x.1) lie in 9001..60999",
        "ip_local_reserved_ports=9001-9002,20000"},
    {{.changes = {{1, "facts", "32768", "9001", 0},
          {1, "facts", "\"reserved\":\"\"", "\"reserved\":\"80,9001-9002\"", 0}}},
        "V32", 1, false, false, "planned ports 20000", "ip_local_reserved_ports=80,9001-9002,20000"},
    {{.changes = {{1, "facts", "\"proxies\":[]", "\"proxies\":[{\"name\":\"http_proxy\",\"value\":\"p:1\"}]", 0},
          {1, "facts", "\"no_proxy\":\"\"", "\"no_proxy\":\"10.0.0.1, 10.0.0.3,localhost\"", 0}}},
        "V33", 1, false, false, "would catch 2 of 4 node addresses (10.0.0.2)", "10.0.0.2,10.0.0.4"},
    {{.changes = {{1, "facts", "1048576", "4096", 0}}}, "V34", 1, false, false, "at most 4096 files may be open",
        "nofile"},
    {{.changes = {{1, "facts", "\"memlock\":[-1", "\"memlock\":[65536", 0}}}, "V34", 1, false, false, "64 KiB",
        "memlock"},
    {{.changes = {{1, "facts", "\"nproc\":[-1", "\"nproc\":[600", 0}}}, "V34", 1, false, false, "2 ranks may want 1024",
        "nproc"},
    {{.ahead_ns = {0, 0, 2000000000, 0}}, "V35", 2, false, false, "its clock is 2.0 s ahead of n0's (± 0.2 ms)",
        "time server"},
    {{.ahead_ns = {0, -400000000000, 0, 0}}, "V35", 1, true, false, "its clock is 400.0 s behind n0's", "time server"},
    {{.changes = {{1, "clock", "17", "x", 0}}}, "V35", 1, false, true, "could not be compared", NULL},
    {{.changes = {{1, "facts", "/var/log/baton\",\"free\":68719476736", "/var/log/baton\",\"free\":1048576", 0}}},
        "V36", 1, false, false, "/var/log/baton has 1 MiB free, logs want 3", "log_bytes"},
    {{.changes = {{1, "facts", "\"/tmp\",\"free\":68719476736", "\"/tmp\",\"free\":0", 0}}}, "V36", 1, false, false,
        "/tmp has 0 MiB free, temporary files want 1024", "room"},
    {{.changes = {{1, "facts", "\"free\":68719476736,\"all\":68719476736", "\"free\":67108864,\"all\":67108864", 0}}},
        "V37", 1, false, false, "/dev/shm has 64 of 64 MiB free", "--shm-size"},
    {{.changes = {{1, "model", "bb", "cc", 0}}}, "V38", 1, true, false,
        "model.safetensors.index.json differs from n0's", "rsync"},
    {{.changes = {{1, "model", "4000000000", "3999999999", 0}}}, "V38", 1, true, false,
        "model-1.safetensors has 3999999999 bytes, on n0 4000000000", "rsync"},
    {{.changes = {{1, "model", "config.json", "conf.json", 0}}}, "V38", 1, true, false, "/m has no config.json",
        "checkpoint"},
    {{.changes = {{1, "model", MODEL, "{\"error\":\"No such file or directory\"}", 0}}}, "V38", 1, true, false,
        "/m: No such file", "copy or mount"},
    {{.changes = {{1, "model", "\"size\":10,\"hash\":\"aa\"", "\"error\":\"Permission denied\"", 0}}}, "V38", 1, true,
        false, "/m/config.json cannot be read: Permission denied", "right to read"},
    {{.changes = {{1, "facts", NULL, NULL, ANSWER_LATE}}}, "V27", 1, true, true, "no answer within 10 s",
        "file system hangs"},
};

static void each_fault_is_told_once_with_place_and_cause(void **state) {
        size_t bad = 0;

        (void)state;
        for (size_t i = 0; i < sizeof(faults) / sizeof(*faults); i++) {
                struct site s = faults[i].site;
                struct arena arena = {0};
                struct facts f;
                struct verify_findings findings;
                const struct verify_finding *v;

                judge_site(&s, &arena, &f, &findings);
                v = findings.items;
                if (findings.count != 1 || strcmp(v->code, faults[i].code) || v->node != faults[i].node ||
                    (v->severity == SEVERITY_ERROR) != faults[i].error || v->unknown != faults[i].unknown ||
                    !strstr(v->cause, faults[i].words) ||
                    (faults[i].cure && (!v->cure || !strstr(v->cure, faults[i].cure)))) {
                        print_findings(i, &f, &findings);
                        bad++;
                }
                assert_non_null(verify_rule_find(slice_str(faults[i].code)));
                arena_free(&arena);
        }
        assert_int_equal(bad, 0);
}

static void what_is_cut_anywhere_is_never_well(void **state) {
        static const char *const questions[] = {"facts", "model", "open", "try"};

        (void)state;
        for (size_t q = 0; q < 4; q++)
                for (size_t cut = 1;; cut++) {
                        struct site s = {.cut = cut, .cut_question = questions[q]};
                        struct arena arena = {0};
                        struct facts f;
                        struct verify_findings findings;
                        bool whole;

                        judge_site(&s, &arena, &f, &findings);
                        whole = findings.count == 0;
                        if (whole) { /* only when nothing was cut off */
                                struct slice out = q == 0   ? f.nodes[1].host.facts.out
                                                   : q == 1 ? f.nodes[1].host.model.out
                                                   : q == 2 ? f.nodes[1].host.opened.out
                                                            : f.hosts.tries[1].answer.out;

                                assert_true(out.len > 50 && cut > out.len);
                        } else
                                assert_int_equal(verify_exit_code(&findings), 3);
                        arena_free(&arena);
                        if (whole)
                                break;
                }
}

/* A member that is not told is nowhere taken for one that is well. */
static void every_member_of_an_answer_is_needed(void **state) {
        static const struct {
                const char *question, *key;
        } members[] = {{"facts", "nics"}, {"facts", "up"}, {"facts", "carrier"}, {"facts", "mtu"},
            {"facts", "addresses"}, {"facts", "ephemeral"}, {"facts", "reserved"}, {"facts", "proxies"},
            {"facts", "no_proxy"}, {"facts", "root"}, {"facts", "limits"}, {"facts", "nofile"}, {"facts", "memlock"},
            {"facts", "nproc"}, {"facts", "space"}, {"facts", "use"}, {"facts", "path"}, {"facts", "free"},
            {"facts", "all"}, {"facts", "read_only"}, {"model", "files"}, {"model", "name"}, {"model", "size"},
            {"open", "ports"}, {"open", "port"}, {"open", "error"}, {"try", "ports"}, {"try", "port"},
            {"try", "error"}};

        (void)state;
        for (size_t i = 0; i < sizeof(members) / sizeof(*members); i++) {
                struct arena arena = {0};
                const char *old = arena_printf(&arena, "\"%s\":", members[i].key),
                           *new = arena_printf(&arena, "\"_%s\":", members[i].key);
                struct site s = {.changes = {{1, members[i].question, old, new, ANSWER_GIVEN}}};
                struct facts f;
                struct verify_findings findings;

                judge_site(&s, &arena, &f, &findings);
                if (verify_exit_code(&findings) != 3)
                        fail_msg("%s without %s is understood", members[i].question, members[i].key);
                arena_free(&arena);
        }
}

/* A dead node is one finding, and its ports are not said to be closed. */
static void a_node_that_is_gone_is_one_finding(void **state) {
        struct site s = {.changes = {{1, "facts", NULL, "ssh: no route", ANSWER_NO_NODE}}};
        struct arena arena = {0};
        struct facts f;
        struct verify_findings findings;

        (void)state;
        judge_site(&s, &arena, &f, &findings);
        assert_int_equal(findings.count, 1);
        assert_string_equal(findings.items[0].code, "V01");
        assert_non_null(strstr(findings.items[0].cause, "ssh: no route"));
        assert_int_equal(verify_exit_code(&findings), 3);
        arena_free(&arena);
}

static void no_proxy_is_read_as_clients_do(void **state) {
        static const struct {
                const char *no_proxy, *ip;
                bool caught;
        } rows[] = {{"", "10.0.0.1", true}, {"*", "10.0.0.1", false}, {"10.0.0.1", "10.0.0.1", false},
            {"10.0.0.1", "10.0.0.11", true}, {"a, 10.0.0.1 ,b", "10.0.0.1", false}, {"10.0.0.0/30", "10.0.0.3", false},
            {"10.0.0.0/30", "10.0.0.4", true}, {"10.0.0.0/99", "10.0.0.1", true}, {"10.", "10.0.0.1", true},
            {".0.0.1", "10.0.0.1", false}, {"0.0.0.0/0", "10.0.0.1", false}};

        (void)state;
        for (size_t i = 0; i < sizeof(rows) / sizeof(*rows); i++)
                assert_int_equal(
                    host_proxy_catches(slice_str(rows[i].no_proxy), slice_str(rows[i].ip)), rows[i].caught);
}

int main(void) {
        const struct CMUnitTest tests[] = {
            cmocka_unit_test(a_healthy_site_has_no_findings_and_a_node_is_tried_by_one_at_a_time),
            cmocka_unit_test(each_fault_is_told_once_with_place_and_cause),
            cmocka_unit_test(what_is_cut_anywhere_is_never_well),
            cmocka_unit_test(every_member_of_an_answer_is_needed),
            cmocka_unit_test(a_node_that_is_gone_is_one_finding),
            cmocka_unit_test(no_proxy_is_read_as_clients_do),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
