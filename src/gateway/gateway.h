/* gateway.h - the load-balancing proxy in front of prefillers and decoders.
 *
 * One gateway serves OpenAI's completions and chat completions from any number of instances that keep prefill and
 * decode apart (or from one pool of whole engines), on one libuv loop. A request runs through one state machine
 * (part.c): the prefill leg, the hand-off, the decode leg, the relay of its events; a leg is an instance, its load
 * and its upstream call, taken and given back as one (leg.c). A connector (connector.h) says what the bodies gain and
 * lose on the way, a policy (policy.h) says who takes a leg, the pool (pool.h) who may.
 *
 * What a caller may rely on:
 *  - Status 200 is promised only when an upstream's first event (or whole body) is here; a failure after that is an SSE
 *    error event and [DONE], unless the stream could be continued elsewhere with the exact tokens.
 *  - Whatever ends a request, load, legs and connections are given back exactly once: the gauges are zero again.
 *  - Once a prefill has committed its KV, its decode leg is issued: with one token when the client has left.
 *
 * Everything belongs to the loop's thread. */
#pragma once
#include "base/error.h"
#include "base/log.h"
#include "base/options.h"
#include "http/http.h"

struct buf;
struct gateway;

/* One instance as configured: a role and where it is. */
struct gateway_member {
        bool prefill;            /* else decode, or the one role when there is no prefill/decode split */
        const char *name;        /* for people; NULL: host:port */
        const char *url;         /* "http://host:port", owned */
        int dp_rank;             /* -1: none */
        uint16_t bootstrap_port; /* of a prefill instance's KV connector; 0: not given */
};

/* Filled by gateway_options_parse() or by hand from gateway_options_default(). Strings are borrowed for the gateway's
 * life, `members` is owned (gateway_options_free). Times in seconds, 0 where said. */
struct gateway_options {
        const char *host;
        int64_t port;
        const char *admin_host; /* with admin_port: where the admin routes listen; NULL: 127.0.0.1 */
        int64_t admin_port;     /* -1: the admin routes are at the one port */
        const char *connector;  /* connector_find() */
        bool connector_open;    /* nobody has said, and there were no members to tell: the first one that comes does */
        const char *metaserver_url; /* told to decoders of a push connector; NULL: where we listen */
        const char *policy, *prefill_policy, *decode_policy; /* the role's own, or `policy` */
        const char *session_header;          /* whose requests go to one instance under consistent_hash */
        int64_t prefix_bytes;                /* of each index of prompts (prefix_aware) */
        int64_t kv_bytes;                    /* of each index of KV events */
        struct option_list kv_events;        /* "[INSTANCE=]ENDPOINT[,REPLAY]" */
        const char *tokenizer, *chat_format; /* the model's folder; a name, or the folder's own. NULL: none */
        struct gateway_member *members;
        size_t member_count;

        int64_t max_retries;    /* attempts for a leg, the first one counted */
        double retry_delay;     /* before a leg goes to an instance that has just failed; doubles */
        double queue_timeout;   /* longest wait to be let in, then 408, or for an instance, then 503 */
        int64_t max_concurrent; /* requests at once, 0: any number */
        int64_t queue_size;     /* those that wait to be let in */
        const char *tenant_header, *priority_header; /* NULL: all are one tenant, equally urgent */
        double connect_timeout;                      /* to an instance */
        double prefill_timeout;                      /* from the request written out to the whole answer */
        double first_byte_timeout;                   /* of the decode leg, from the request written out; 0: none */
        double request_timeout;                      /* of a decode leg whose answer is not streamed; 0: none */
        double idle_timeout;                         /* between bytes of a stream; 0: none */
        double client_header_timeout, client_body_timeout; /* for a head, for each 4 KiB of a body */
        double params_max_age;     /* kv_transfer_params older than that are not used: prefill again */
        double abandon_grace;      /* a decode leg without its first byte is not cut within this time of its start */
        double drain_timeout;      /* of gateway_drain */
        double keepalive;          /* a stream that is silent for so long gets an SSE comment; 0: never */
        int64_t max_continuations; /* of one stream on other instances; 0: none */
        bool prefill_on_decode;    /* decode without kv_transfer_params when the prefiller gave none */

        double probe_interval, probe_timeout;
        double slow_start;      /* in which a new instance grows to its full share; 0: at once */
        double scrape_interval; /* of instances' metrics; 0: never */
        int64_t join_tries;     /* 0: for ever */
        double join_interval;
        int64_t instance_cap; /* legs at once per instance, 0: any number */

        int64_t max_body;       /* bytes of a request */
        int64_t max_bodies;     /* bytes of all requests in flight; 0: a quarter of the memory */
        int64_t max_prompts;    /* prompts times n of one request */
        const char *api_key;    /* sent upstream when the client sent no Authorization, and with probes; NULL: none */
        const char *admin_key;  /* wanted as a bearer token on admin routes; NULL: open */
        const char *access_log; /* a path, "-" for standard output, NULL: none */
        const char *log_level;
        struct http_tls_files tls;
        const char *health_path; /* what is probed */
        /* Known for compatibility. */
        bool vllm_pd, disable_retries;
        int64_t dp_size, prefill_dp_size, decode_dp_size; /* ranks behind each address; 0: not given */
        int64_t retry_delay_ms;                           /* -1: not given */
        struct option_list prefill_hosts, prefill_ports, prefill_hosts_num, prefill_ports_inc;
        struct option_list decode_hosts, decode_ports, decode_hosts_num, decode_ports_inc;
        struct option_list prefill_urls, decode_urls, worker_urls;
        struct option_list ignored; /* options that were given and have no effect here: names */
        const struct log *log;
};

void gateway_options_default(struct gateway_options *ret_options);
/* Fill from a command line (argv[0] is skipped). Returns 0, 1 when --help was asked for (print gateway_options_help),
 * or -EINVAL with a text. Free in each case. */
int gateway_options_parse(int argc, char **argv, struct gateway_options *options, struct error *e);
void gateway_options_help(struct buf *out);
void gateway_options_free(struct gateway_options *options);

/* A gateway that does not listen yet. Options are copied but for what they point to. 0, -ENOMEM, -EINVAL with a text.
 * What was made ends with gateway_drain() and gateway_free(), whether it was started or not. */
int gateway_new(uv_loop_t *loop, const struct gateway_options *options, struct gateway **ret_gateway, struct error *e);
/* Listen, and begin to probe. *ret_port (may be NULL) is the port that was bound. */
int gateway_start(struct gateway *g, uint16_t *ret_port, struct error *e);
/* The configured instances are these from now on: new ones join, those that are not among them end their legs and go; those
 * added by the admin routes stay. Members are copied. 0; or -EINVAL or -EEXIST with a text, and nothing has changed; or
 * -ENOMEM or -ENOSPC, when some may be missing. */
int gateway_set_members(struct gateway *g, const struct gateway_member *members, size_t count, struct error *e);
/* Stop accepting, let what is in flight end (at most drain_timeout), close everything, then call back, once. A second
 * call aborts what is left at once. */
void gateway_drain(struct gateway *g, void (*on_drained)(void *context), void *context);
void gateway_free(struct gateway *g); /* after on_drained; NULL is fine */
