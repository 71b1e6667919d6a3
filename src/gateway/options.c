/* options.c - the gateway's command line: our own flags, those of vLLM-Ascend's example proxies (hosts and ports in two
 * lists, the expanders of 0.9.1), and how they become a list of members. */
#include "base/buf.h"
#include "gateway/core.h"
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#define TARGET(member) offsetof(struct gateway_options, member)

static const struct option rows[] = {
    {"host", 0, OPTION_STRING, TARGET(host), "ADDRESS", "where to listen (default 127.0.0.1; :: for everywhere)"},
    {"port", 0, OPTION_INT, TARGET(port), "N", "default 8000; 0 picks one", 0, 65535},
    {"admin-host", 0, OPTION_STRING, TARGET(admin_host), "ADDRESS",
        "with --admin-port: where the admin routes listen (default 127.0.0.1)"},
    {"admin-port", 0, OPTION_INT, TARGET(admin_port), "N",
        "a port of their own for the admin routes, which --port then does not serve; 0 picks one", 0, 65535},
    {"prefill", 0, OPTION_LIST, TARGET(prefill_urls), "[NAME=]URL [PORT]",
        "prefill instances: host:port, http://host:port, "
        "with @N behind it for one data-parallel rank; a number behind one is its bootstrap port (mooncake, sglang; "
        "default "
        "8998)"},
    {"decode", 0, OPTION_LIST, TARGET(decode_urls), "[NAME=]URL", "decode instances"},
    {"worker-urls", 0, OPTION_LIST, TARGET(worker_urls), "[NAME=]URL", "whole engines, without a prefill/decode split"},
    {"prefiller-hosts", 0, OPTION_LIST, TARGET(prefill_hosts), "HOST", "prefill instances, with --prefiller-ports"},
    {"prefiller-hosts-num", 0, OPTION_LIST, TARGET(prefill_hosts_num), "N", "how often each host is repeated"},
    {"prefiller-ports", 0, OPTION_LIST, TARGET(prefill_ports), "PORT", "one for each host"},
    {"prefiller-ports-inc", 0, OPTION_LIST, TARGET(prefill_ports_inc), "N", "how many ports from each port on"},
    {"decoder-hosts", 0, OPTION_LIST, TARGET(decode_hosts), "HOST", "decode instances, with --decoder-ports"},
    {"decoder-hosts-num", 0, OPTION_LIST, TARGET(decode_hosts_num), "N", "how often each host is repeated"},
    {"decoder-ports", 0, OPTION_LIST, TARGET(decode_ports), "PORT", "one for each host"},
    {"decoder-ports-inc", 0, OPTION_LIST, TARGET(decode_ports_inc), "N", "how many ports from each port on"},
    {"connector", 0, OPTION_STRING, TARGET(connector), "NAME",
        "how prefill and decode find each other: pull, push, mooncake (also by "
        "the engines' names, such as MooncakeConnectorV1), sglang, or plain"},
    {"kv-connector", 0, OPTION_STRING, TARGET(connector), "NAME", NULL},
    {"metaserver-url", 0, OPTION_STRING, TARGET(metaserver_url), "URL",
        "of this gateway's /v1/metaserver, as decoders reach it (push; default: where it listens)"},
    {"policy", 0, OPTION_STRING, TARGET(policy), POLICY_NAMES, "who takes a leg (default least_load)"},
    {"prefill-policy", 0, OPTION_STRING, TARGET(prefill_policy), POLICY_NAMES, "for prefill legs"},
    {"decode-policy", 0, OPTION_STRING, TARGET(decode_policy), POLICY_NAMES, "for decode legs"},
    {"session-header", 0, OPTION_STRING, TARGET(session_header), "NAME",
        "requests with the same value of this header go to "
        "one instance under consistent_hash (default X-Session-ID)"},
    {"prefix-index-size", 0, OPTION_SIZE, TARGET(prefix_bytes), "BYTES",
        "memory of prefix_aware for the prompts that each "
        "role has seen (default 64M)",
        1 << 16, 1ll << 36},
    {"kv-events", 0, OPTION_LIST, TARGET(kv_events), "[INSTANCE=]ENDPOINT[,REPLAY]",
        "where instances publish KV events, and give them again, for prefix_aware: tcp://HOST:PORT, HOST * is the "
        "instance's own, rank @N is at PORT+N; without INSTANCE for all"},
    {"kv-index-size", 0, OPTION_SIZE, TARGET(kv_bytes), "BYTES",
        "memory of each role's index of KV events (default 256M)", 1 << 16, 1ll << 36},
    {"tokenizer", 0, OPTION_STRING, TARGET(tokenizer), "DIR",
        "the model's folder: with --kv-events, texts are tokenised as the engine does it"},
    {"tokenizer-path", 0, OPTION_STRING, TARGET(tokenizer), "DIR", NULL},
    {"chat-format", 0, OPTION_STRING, TARGET(chat_format), "NAME",
        "of --tokenizer's model (default: by its template): deepseek-v3.1, …"},
    {"max-retries", 0, OPTION_INT, TARGET(max_retries), "N", "attempts for each leg (default 3)", 1, 100},
    {"retry-delay", 0, OPTION_DOUBLE, TARGET(retry_delay), "S",
        "before a leg is sent again to an instance that has "
        "just failed; doubles (default 0.001)"},
    {"queue-timeout-secs", 0, OPTION_DOUBLE, TARGET(queue_timeout), "S",
        "longest wait to be let in, then 408, or for an "
        "instance, then 503 (default 30)"},
    {"max-concurrent-requests", 0, OPTION_INT, TARGET(max_concurrent), "N",
        "requests at once; others wait (default 0: any "
        "number)",
        0, 10000000},
    {"queue-size", 0, OPTION_INT, TARGET(queue_size), "N",
        "requests that may wait to be let in; beyond it 429 (default 1024)", 0, 1000000},
    {"tenant-header", 0, OPTION_STRING, TARGET(tenant_header), "NAME",
        "those that wait share by the value of this header, "
        "each value the same amount of work (default: first come, first served)"},
    {"priority-header", 0, OPTION_STRING, TARGET(priority_header), "NAME",
        "of those that wait, the one with the smallest "
        "number in this header is let in first (default: none)"},
    {"connect-timeout", 0, OPTION_DOUBLE, TARGET(connect_timeout), "S", "to an instance (default 3)"},
    {"prefill-timeout", 0, OPTION_DOUBLE, TARGET(prefill_timeout), "S", "for a whole prefill leg (default 600)"},
    {"first-byte-timeout", 0, OPTION_DOUBLE, TARGET(first_byte_timeout), "S",
        "for the decode leg's answer to begin "
        "(default 600)"},
    {"request-timeout-secs", 0, OPTION_DOUBLE, TARGET(request_timeout), "S",
        "for the decode leg of an answer that is "
        "not streamed (default 3600)"},
    {"idle-timeout", 0, OPTION_DOUBLE, TARGET(idle_timeout), "S", "between bytes of a stream (default 120)"},
    {"client-header-timeout", 0, OPTION_DOUBLE, TARGET(client_header_timeout), "S",
        "for a whole head from a client, then 408 (default 10)"},
    {"client-body-timeout", 0, OPTION_DOUBLE, TARGET(client_body_timeout), "S",
        "for each 4 KiB of a body from a client, then 408 (default 30)"},
    {"kv-lease", 0, OPTION_DOUBLE, TARGET(params_max_age), "S",
        "kv_transfer_params older than this are not used: the "
        "prompt is prefilled again (default 20, vLLM's lease is 30)"},
    {"abandon-grace", 0, OPTION_DOUBLE, TARGET(abandon_grace), "S",
        "when the client leaves, a decode leg that has not "
        "answered yet is given so long from its start to fetch the KV (default 1)"},
    {"drain-timeout", 0, OPTION_DOUBLE, TARGET(drain_timeout), "S", "for requests in flight at SIGTERM (default 60)"},
    {"keepalive-secs", 0, OPTION_DOUBLE, TARGET(keepalive), "S",
        "a stream that has been silent for so long gets an "
        "SSE comment, also before its first event (default 0: never)"},
    {"max-continuations", 0, OPTION_INT, TARGET(max_continuations), "N",
        "how often a stream that was cut goes on with "
        "its exact tokens on other instances (default 8, 0: never)",
        0, 1000},
    {"prefill-on-decode", 0, OPTION_FLAG, TARGET(prefill_on_decode), NULL,
        "let a decoder compute the prompt when the "
        "prefiller gave no kv_transfer_params (default: an error)"},
    {"health-check-interval-secs", 0, OPTION_DOUBLE, TARGET(probe_interval), "S",
        "between probes of a healthy instance "
        "(default 5)"},
    {"health-check-timeout-secs", 0, OPTION_DOUBLE, TARGET(probe_timeout), "S", "for a probe's answer (default 3)"},
    {"slow-start-secs", 0, OPTION_DOUBLE, TARGET(slow_start), "S",
        "in which an instance that has come, or come back, grows from a "
        "tenth to its full share of the load (default 10, 0: at once)"},
    {"load-check-interval-secs", 0, OPTION_DOUBLE, TARGET(scrape_interval), "S",
        "between looks into instances' /metrics for the "
        "requests that others have with them (default 10, 0: never)"},
    {"waiting-retry-interval", 0, OPTION_DOUBLE, TARGET(join_interval), "S",
        "between probes of an instance that has "
        "not answered yet (default 0.5)"},
    {"max-waiting-retries", 0, OPTION_INT, TARGET(join_tries), "N",
        "probes after which an instance added at run time "
        "is given up (default 0: never)",
        0, 1000000},
    {"instance-cap", 0, OPTION_INT, TARGET(instance_cap), "N", "most legs at once per instance (default 0: any number)",
        0, 1000000},
    {"max-payload-size", 0, OPTION_SIZE, TARGET(max_body), "BYTES", "of a request, then 413 (default 64M)", 1,
        1ll << 40},
    {"max-bodies-size", 0, OPTION_SIZE, TARGET(max_bodies), "BYTES",
        "of all requests in flight together, then 503 "
        "(default: a quarter of the memory)",
        1, 1ll << 50},
    {"max-prompts", 0, OPTION_INT, TARGET(max_prompts), "N", "prompts times n in one request, then 400 (default 1024)",
        1, 1000000},
    {"api-key", 0, OPTION_STRING, TARGET(api_key), "KEY",
        "sent to instances when the client sent no Authorization, and "
        "with probes (default: OPENAI_API_KEY of the environment)"},
    {"admin-key", 0, OPTION_STRING, TARGET(admin_key), "KEY",
        "bearer token wanted by the admin routes (default: open)"},
    {"access-log", 0, OPTION_STRING, TARGET(access_log), "PATH", "one JSON line per request; - for standard output"},
    {"log-level", 0, OPTION_STRING, TARGET(log_level), "LEVEL", "debug, info, warning, error (default info)"},
    {"ssl-certfile", 0, OPTION_STRING, TARGET(tls.cert), "PATH", "serve TLS"},
    {"ssl-keyfile", 0, OPTION_STRING, TARGET(tls.key), "PATH", "its key"},
    {"ssl-ca-certs", 0, OPTION_STRING, TARGET(tls.client_ca), "PATH", "require client certificates signed by these"},
    {"health-check-endpoint", 0, OPTION_STRING, TARGET(health_path), "PATH", "what is probed (default /health)"},
    {"intra-node-data-parallel-size", 0, OPTION_INT, TARGET(dp_size), "N",
        "each address stands for N data-parallel ranks: URL@0 to URL@N-1", 1, 1024},
    {"prefill-data-parallel-size", 0, OPTION_INT, TARGET(prefill_dp_size), "N", "for prefill instances", 1, 1024},
    {"decode-data-parallel-size", 0, OPTION_INT, TARGET(decode_dp_size), "N", "for decode instances", 1, 1024},
    {"vllm-pd-disaggregation", 0, OPTION_FLAG, TARGET(vllm_pd), NULL,
        "as vllm-router: prefill and decode are kept apart, and "
        "--prefill-on-decode holds"},
    {"pd-disaggregation", 0, OPTION_FLAG, TARGET(vllm_pd), NULL, NULL},
    {"retry-max-retries", 0, OPTION_INT, TARGET(max_retries), "N", NULL, 0, 100},
    {"retry-initial-backoff-ms", 0, OPTION_INT, TARGET(retry_delay_ms), "N", NULL, 0, 1000000},
    {"disable-retries", 0, OPTION_FLAG, TARGET(disable_retries), NULL, NULL},
    {"worker-startup-check-interval", 0, OPTION_DOUBLE, TARGET(join_interval), "S", NULL},
    /* Known, without effect here: docs/gateway.md has the reasons. */
    {"workers", 0, OPTION_IGNORED, 0, "N", NULL},
    {"worker-startup-timeout-secs", 0, OPTION_IGNORED, 0, "N", NULL},
    {"retry-max-backoff-ms", 0, OPTION_IGNORED, 0, "N", NULL},
    {"retry-backoff-multiplier", 0, OPTION_IGNORED, 0, "N", NULL},
    {"retry-jitter-factor", 0, OPTION_IGNORED, 0, "N", NULL},
    {"cb-failure-threshold", 0, OPTION_IGNORED, 0, "N", NULL},
    {"cb-success-threshold", 0, OPTION_IGNORED, 0, "N", NULL},
    {"cb-timeout-duration-secs", 0, OPTION_IGNORED, 0, "N", NULL},
    {"cb-window-duration-secs", 0, OPTION_IGNORED, 0, "N", NULL},
    {"disable-circuit-breaker", 0, OPTION_IGNORED, 0, NULL, NULL},
    {"health-failure-threshold", 0, OPTION_IGNORED, 0, "N", NULL},
    {"health-success-threshold", 0, OPTION_IGNORED, 0, "N", NULL},
    {"cache-threshold", 0, OPTION_IGNORED, 0, "X", NULL},
    {"balance-abs-threshold", 0, OPTION_IGNORED, 0, "N", NULL},
    {"balance-rel-threshold", 0, OPTION_IGNORED, 0, "X", NULL},
    {"eviction-interval", 0, OPTION_IGNORED, 0, "N", NULL},
    {"eviction-interval-secs", 0, OPTION_IGNORED, 0, "N", NULL},
    {"max-tree-size", 0, OPTION_IGNORED, 0, "N", NULL},
    {"rate-limit-tokens-per-second", 0, OPTION_IGNORED, 0, "N", NULL},
    {"request-id-headers", 0, OPTION_IGNORED, 0, "NAME", NULL},
    {"cors-allowed-origins", 0, OPTION_IGNORED, 0, "URL", NULL},
    {"log-dir", 0, OPTION_IGNORED, 0, "PATH", NULL},
    {"prometheus-host", 0, OPTION_IGNORED, 0, "ADDRESS", NULL},
    {"prometheus-port", 0, OPTION_IGNORED, 0, "N", NULL},
};

static const struct option_set set = {
    .usage = "baton gateway [FILE] --prefill URL… --decode URL… [options]",
    .about = "Spread OpenAI requests over prefill and decode instances: prefill on one, hand the KV over, decode on "
             "another. The options of load_balance_proxy_server_example.py and of vllm-router work unchanged. With a "
             "cluster FILE its "
             "ranks are the instances; options given besides go before what the file says.",
    .options = rows,
    .count = sizeof(rows) / sizeof(*rows),
};

void gateway_options_default(struct gateway_options *ret_options) {
        *ret_options = (struct gateway_options){
            .host = "127.0.0.1",
            .port = 8000,
            .admin_port = -1,
            .policy = "least_load",
            .session_header = "X-Session-ID",
            .prefix_bytes = 64 << 20,
            .kv_bytes = 256 << 20,
            .max_retries = 3,
            .retry_delay = 0.001,
            .queue_timeout = 30,
            .queue_size = 1024,
            .connect_timeout = 3,
            .prefill_timeout = 600,
            .first_byte_timeout = 600,
            .request_timeout = 3600,
            .idle_timeout = 120,
            .client_header_timeout = 10,
            .client_body_timeout = 30,
            .params_max_age = 20,
            .abandon_grace = 1,
            .drain_timeout = 60,
            .max_continuations = 8,
            .probe_interval = 5,
            .probe_timeout = 3,
            .slow_start = 10,
            .scrape_interval = 10,
            .join_interval = 0.5,
            .health_path = "/health",
            .retry_delay_ms = -1,
            .max_body = 64 << 20,
            .max_prompts = 1024,
            .log_level = "info",
        };
}

void gateway_options_help(struct buf *out) {
        options_help(&set, out);
}

void gateway_member_free(struct gateway_member *m) {
        free((char *)m->url);
        free((char *)m->name);
}

void gateway_options_free(struct gateway_options *o) {
        struct option_list *const lists[] = {&o->prefill_hosts, &o->prefill_ports, &o->prefill_hosts_num,
            &o->prefill_ports_inc, &o->decode_hosts, &o->decode_ports, &o->decode_hosts_num, &o->decode_ports_inc,
            &o->prefill_urls, &o->decode_urls, &o->worker_urls, &o->ignored, &o->kv_events};

        for (size_t i = 0; i < sizeof(lists) / sizeof(*lists); i++)
                options_list_free(lists[i]);
        for (size_t i = 0; i < o->member_count; i++)
                gateway_member_free(&o->members[i]);
        free(o->members);
        o->members = NULL;
        o->member_count = 0;
}

/* ---- members ------------------------------------------------------------------------------------------------------ */

/* More than this in one list is a slip of the hand (a port in place of a count). */
#define LIST_MAX 65536

static int add_member(struct gateway_options *o, const struct gateway_member *m) {
        struct gateway_member *grown = realloc(o->members, (o->member_count + 1) * sizeof(*grown));

        if (!grown)
                return -ENOMEM;
        o->members = grown;
        grown[o->member_count++] = *m;
        return 0;
}

int gateway_member_parse(struct slice text, struct gateway_member *ret_member, struct error *e) {
        struct gateway_member m = {.dp_rank = -1};
        size_t equals = slice_find(text, '=', 0), slash = slice_find(text, '/', 0), at;
        struct slice name = SLICE_NONE, url = text;
        uint64_t rank;

        /* NAME=URL, where the '=' stands before any part of a URL. */
        if (equals < text.len && equals < slash) {
                name = slice_sub(text, 0, equals);
                url = slice_sub(text, equals + 1, text.len);
        }
        at = url.len;
        while (at > 0 && url.ptr[at - 1] != '@' && url.ptr[at - 1] != '/')
                at--;
        if (at > 0 && url.ptr[at - 1] == '@') {
                if (slice_to_u64(slice_sub(url, at, url.len), &rank) < 0 || rank > 65535)
                        return error_set(e, -EINVAL, "`%.*s`: behind the @ stands a data-parallel rank, such as @0",
                            SLICE_ARG(slice_sub(text, 0, 200)));
                m.dp_rank = (int)rank;
                url = slice_sub(url, 0, at - 1);
        }
        if (url.len == 0)
                return error_set(e, -EINVAL, "`%.*s` is not an address; wanted host:port or http://host:port",
                    SLICE_ARG(slice_sub(text, 0, 200)));
        /* Answers carry it in a field, and terminals show it. */
        if (!http_value_is_safe(name) || slice_find(name, '\t', 0) < name.len)
                return error_set(e, -EINVAL, "an instance's name has no control characters");
        m.url = slice_dup(url);
        if (name.len > 0)
                m.name = slice_dup(name);
        if (!m.url || (name.len > 0 && !m.name)) {
                free((char *)m.url);
                return -ENOMEM;
        }
        *ret_member = m;
        return 0;
}

unsigned gateway_ranks_of(const struct gateway_options *o, bool prefill) {
        int64_t own = prefill ? o->prefill_dp_size : o->decode_dp_size;

        return (unsigned)(own > 0 ? own : o->dp_size);
}

/* vllm-router's `--prefill URL PORT` or `--prefill URL none`. False: the word is another URL. */
static bool read_bootstrap_port(const char *word, uint16_t *ret_port) {
        uint64_t port;

        if (slice_is(slice_str(word), "none")) {
                *ret_port = 0;
                return true;
        }
        if (slice_to_u64(slice_str(word), &port) < 0 || port > 65535)
                return false;
        *ret_port = (uint16_t)port;
        return true;
}

static int add_rank(struct gateway_options *o, const struct gateway_member *m, int rank) {
        struct gateway_member one = *m;
        char *name = NULL;
        int r;

        if (m->name && asprintf(&name, "%s@%d", m->name, rank) < 0)
                return -ENOMEM;
        one.name = name;
        one.url = slice_dup(slice_str(m->url));
        one.dp_rank = rank;
        r = one.url ? add_member(o, &one) : -ENOMEM;
        if (r < 0)
                gateway_member_free(&one);
        return r;
}

/* The member, or one for each rank behind its address. Takes over what `m` points to. */
static int add_ranks(struct gateway_options *o, struct gateway_member *m) {
        unsigned ranks = m->dp_rank < 0 ? gateway_ranks_of(o, m->prefill) : 0;
        int r = 0;

        if (ranks == 0)
                r = add_member(o, m);
        for (unsigned rank = 0; r == 0 && rank < ranks; rank++)
                r = add_rank(o, m, (int)rank);
        if (ranks > 0 || r < 0)
                gateway_member_free(m);
        return r;
}

static int add_urls(struct gateway_options *o, bool prefill, const struct option_list *list, struct error *e) {
        for (size_t i = 0; i < list->count; i++) {
                struct gateway_member m;
                int r = gateway_member_parse(slice_str(list->items[i]), &m, e);

                if (r < 0)
                        return r;
                m.prefill = prefill;
                if (prefill && i + 1 < list->count && read_bootstrap_port(list->items[i + 1], &m.bootstrap_port))
                        i++;
                r = add_ranks(o, &m);
                if (r < 0)
                        return r;
        }
        return 0;
}

/* The options of one role in the example proxy's form, and their names for messages. */
struct lists {
        const char *role; /* "prefiller" */
        bool prefill;
        const struct option_list *hosts, *hosts_num, *ports, *ports_inc;
};

static int count_at(const struct lists *l, const char *what, const struct option_list *list, size_t i,
    uint64_t *ret_count, struct error *e) {
        if (list->count == 0) {
                *ret_count = 1;
                return 0;
        }
        if (slice_to_u64(slice_str(list->items[i]), ret_count) < 0 || *ret_count == 0 || *ret_count > LIST_MAX)
                return error_set(
                    e, -EINVAL, "--%s-%s: `%.100s` is not a count from 1 on", l->role, what, list->items[i]);
        return 0;
}

static int check_lists(const struct lists *l, struct error *e) {
        if (l->hosts_num->count > 0 && l->hosts_num->count != l->hosts->count)
                return error_set(e, -EINVAL, "--%s-hosts has %zu values, --%s-hosts-num %zu: one for each is wanted",
                    l->role, l->hosts->count, l->role, l->hosts_num->count);
        if (l->ports_inc->count > 0 && l->ports_inc->count != l->ports->count)
                return error_set(e, -EINVAL, "--%s-ports has %zu values, --%s-ports-inc %zu: one for each is wanted",
                    l->role, l->ports->count, l->role, l->ports_inc->count);
        return 0;
}

static int add_pair(struct gateway_options *o, const struct lists *l, const char *host, uint64_t port) {
        bool bare_v6 = strchr(host, ':') && host[0] != '[';
        struct gateway_member m = {.prefill = l->prefill, .dp_rank = -1};
        char *url = NULL;
        int r;

        if (asprintf(&url, bare_v6 ? "http://[%s]:%llu" : "http://%s:%llu", host, (unsigned long long)port) < 0)
                return -ENOMEM;
        m.url = url;
        r = add_member(o, &m);
        if (r < 0)
                free(url);
        return r;
}

/* Hosts repeated and ports counted up make two lists of one length: host i goes with port i. */
static int add_lists(struct gateway_options *o, const struct lists *l, struct error *e) {
        size_t port_at = 0;
        uint64_t port_step = 0, total_hosts = 0, total_ports = 0;
        int r = check_lists(l, e);

        for (size_t i = 0; r == 0 && i < l->hosts->count; i++) {
                uint64_t n;

                r = count_at(l, "hosts-num", l->hosts_num, i, &n, e);
                total_hosts += r == 0 ? n : 0;
        }
        for (size_t i = 0; r == 0 && i < l->ports->count; i++) {
                uint64_t n;

                r = count_at(l, "ports-inc", l->ports_inc, i, &n, e);
                total_ports += r == 0 ? n : 0;
        }
        if (r < 0)
                return r;
        if (total_hosts != total_ports)
                return error_set(e, -EINVAL, "%s: %llu hosts and %llu ports; one port for each host is wanted", l->role,
                    (unsigned long long)total_hosts, (unsigned long long)total_ports);
        if (total_hosts > LIST_MAX)
                return error_set(e, -EINVAL, "%s: %llu instances are more than %d", l->role,
                    (unsigned long long)total_hosts, LIST_MAX);
        for (size_t i = 0; i < l->hosts->count; i++) {
                uint64_t repeat, port, steps;

                count_at(l, "hosts-num", l->hosts_num, i, &repeat, NULL);
                for (uint64_t k = 0; k < repeat; k++) {
                        if (slice_to_u64(slice_str(l->ports->items[port_at]), &port) < 0 || port == 0 ||
                            port + port_step > 65535)
                                return error_set(e, -EINVAL, "--%s-ports: `%.100s` is not a port (counted up by %llu)",
                                    l->role, l->ports->items[port_at], (unsigned long long)port_step);
                        r = add_pair(o, l, l->hosts->items[i], port + port_step);
                        if (r < 0)
                                return r;
                        count_at(l, "ports-inc", l->ports_inc, port_at, &steps, NULL);
                        if (++port_step >= steps) {
                                port_step = 0;
                                port_at++;
                        }
                }
        }
        return 0;
}

static int collect_members(struct gateway_options *o, struct error *e) {
        const struct lists prefill = {
            "prefiller", true, &o->prefill_hosts, &o->prefill_hosts_num, &o->prefill_ports, &o->prefill_ports_inc};
        const struct lists decode = {
            "decoder", false, &o->decode_hosts, &o->decode_hosts_num, &o->decode_ports, &o->decode_ports_inc};
        int r = add_lists(o, &prefill, e);

        if (r == 0)
                r = add_lists(o, &decode, e);
        if (r == 0)
                r = add_urls(o, true, &o->prefill_urls, e);
        if (r == 0)
                r = add_urls(o, false, &o->decode_urls, e);
        if (r == 0)
                r = add_urls(o, false, &o->worker_urls, e);
        return r;
}

static int check_times(const struct gateway_options *o, struct error *e) {
        const struct {
                const char *name;
                double value, min;
        } times[] = {{"retry-delay", o->retry_delay, 0}, {"queue-timeout-secs", o->queue_timeout, 0},
            {"connect-timeout", o->connect_timeout, 0.001}, {"prefill-timeout", o->prefill_timeout, 0.001},
            {"first-byte-timeout", o->first_byte_timeout, 0}, {"request-timeout-secs", o->request_timeout, 0},
            {"idle-timeout", o->idle_timeout, 0}, {"client-header-timeout", o->client_header_timeout, 0.001},
            {"client-body-timeout", o->client_body_timeout, 0.001}, {"kv-lease", o->params_max_age, 0.001},
            {"abandon-grace", o->abandon_grace, 0}, {"drain-timeout", o->drain_timeout, 0},
            {"keepalive-secs", o->keepalive, 0}, {"health-check-interval-secs", o->probe_interval, 0.01},
            {"health-check-timeout-secs", o->probe_timeout, 0.01}, {"waiting-retry-interval", o->join_interval, 0.01},
            {"load-check-interval-secs", o->scrape_interval, 0}, {"slow-start-secs", o->slow_start, 0}};

        /* A million seconds: longer waits are no waits, and milliseconds fit 32 bits. */
        for (size_t i = 0; i < sizeof(times) / sizeof(*times); i++)
                if (!(times[i].value >= times[i].min && times[i].value <= 1e6))
                        return error_set(e, -EINVAL, "--%s: %g is out of range %g..1000000 seconds", times[i].name,
                            times[i].value, times[i].min);
        return 0;
}

/* With a push connector decoders call back: they are told an address that they can reach, in JSON as it is. */
static int check_metaserver(const struct gateway_options *o, struct error *e) {
        static const char *const everywhere[] = {"0.0.0.0", "::", "[::]", "*", ""};

        if (o->metaserver_url) {
                if (strncmp(o->metaserver_url, "http://", 7) && strncmp(o->metaserver_url, "https://", 8))
                        return error_set(e, -EINVAL,
                            "--metaserver-url: `%.200s` is no URL; wanted http://HOST:PORT/v1/metaserver",
                            o->metaserver_url);
                if (strpbrk(o->metaserver_url, "\"\\ "))
                        return error_set(e, -EINVAL, "--metaserver-url: `%.200s` has a quote, a backslash or a space",
                            o->metaserver_url);
                return 0;
        }
        if (!strncmp(o->host, "unix:", 5))
                return error_set(e, -EINVAL,
                    "decoders call a push gateway back, which they cannot at %.200s: give "
                    "--metaserver-url",
                    o->host);
        for (size_t i = 0; i < sizeof(everywhere) / sizeof(*everywhere); i++)
                if (!strcmp(o->host, everywhere[i]))
                        return error_set(e, -EINVAL,
                            "decoders call a push gateway back, and `%s` is no address to call: give --host ADDRESS, "
                            "or "
                            "--metaserver-url http://ADDRESS:%lld/v1/metaserver",
                            o->host, (long long)o->port);
        return 0;
}

static int check(struct gateway_options *o, struct error *e) {
        bool any_prefill = false;

        for (size_t i = 0; i < o->member_count; i++)
                any_prefill |= o->members[i].prefill;
        if (o->vllm_pd)
                o->prefill_on_decode = true;
        if (o->disable_retries || o->max_retries < 1)
                o->max_retries = 1;
        if (o->retry_delay_ms >= 0)
                o->retry_delay = (double)o->retry_delay_ms / 1000;
        if (o->admin_host && o->admin_port < 0)
                return error_set(e, -EINVAL, "--admin-host wants --admin-port: which port there?");
        if (o->admin_port > 0 && o->admin_port == o->port &&
            !strcmp(o->admin_host ? o->admin_host : "127.0.0.1", o->host))
                return error_set(
                    e, -EINVAL, "--admin-port %lld is --port: two listeners want two ports", (long long)o->admin_port);
        if (o->health_path[0] != '/')
                return error_set(e, -EINVAL, "--health-check-endpoint: `%.100s` does not begin with /", o->health_path);
        o->connector_open = !o->connector && !o->vllm_pd && o->member_count == 0;
        if (!o->connector)
                o->connector = any_prefill || o->vllm_pd || o->member_count == 0 ? "pull" : "plain";
        if (!connector_find(o->connector))
                return error_set(e, -EINVAL, "--connector: `%.100s` is none of %s", o->connector, connector_names());
        if (connector_find(o->connector)->order == ORDER_DECODE_FIRST) {
                int r = check_metaserver(o, e);

                if (r < 0)
                        return r;
        }
        if (any_prefill && o->worker_urls.count > 0)
                return error_set(
                    e, -EINVAL, "--worker-urls are whole engines: they cannot be mixed with prefill instances");
        if (events_check(o, e) < 0)
                return -EINVAL;
        if (!o->prefill_policy)
                o->prefill_policy = o->policy;
        if (!o->decode_policy)
                o->decode_policy = o->policy;
        if (!policy_find(o->prefill_policy) || !policy_find(o->decode_policy))
                return error_set(e, -EINVAL, "--policy: `%.100s` is none of %s",
                    policy_find(o->prefill_policy) ? o->decode_policy : o->prefill_policy, POLICY_NAMES);
        return check_times(o, e);
}

int gateway_options_parse(int argc, char **argv, struct gateway_options *options, struct error *e) {
        struct options_result result;
        bool help;
        int r = options_parse(&set, argc, argv, options, &result, e);

        if (r < 0)
                return r;
        help = result.help;
        options->ignored = (struct option_list){result.ignored, result.count_ignored};
        result.ignored = NULL;
        options_result_free(&result);
        if (help)
                return 1;
        if (!options->api_key && getenv("OPENAI_API_KEY") && getenv("OPENAI_API_KEY")[0])
                options->api_key = getenv("OPENAI_API_KEY");
        r = collect_members(options, e);
        return r < 0 ? r : check(options, e);
}
