/* verify.h - machines asked: NPUs through their own tools, hosts by themselves; whether they are well, and the ranktable.
 *
 * Three steps that know nothing of one another's means. An asker puts questions (command lines of hccn_tool and npu-smi) to
 * nodes and brings answers: agents over pipes or ssh in life, recordings in tests. Collecting decides what to ask and keeps
 * the answers as facts. Judging is pure: facts in, findings out, each with code, severity, node, device, cause and cure.
 * The ranktable is made of the same facts and refused by the same findings.
 *
 * What a tool prints is hostile until parsed: bounded, perhaps not text, perhaps an error with exit status 0. Nothing that is
 * not understood counts as success. All memory is the arena's that the caller gives; nothing here is thread-safe. */
#pragma once
#include "base/arena.h"
#include "base/buf.h"
#include "base/error.h"
#include "cluster/cluster.h"

/* ---- questions and answers ------------------------------------------------------------------------------------------ */

/* A tool that says nothing for so long is hung; npu-smi takes up to 3 s on a busy machine. */
#define ANSWER_DEADLINE_MS 10000u
/* The longest honest answer (-optical, npu-smi info with 16 chips) takes 8 KiB; what comes after is dropped. */
#define ANSWER_BYTES_MAX (64u << 10)
#define QUESTION_WORDS   10

enum answer_state {
        ANSWER_GIVEN,   /* the tool ended: status, out and err are its */
        ANSWER_LATE,    /* it was ended after ANSWER_DEADLINE_MS */
        ANSWER_NO_TOOL, /* there is no such program (or file) */
        ANSWER_NO_NODE, /* the node could not be asked; err says why */
};
struct answer {
        enum answer_state state;
        int status;            /* exit status; 128 + signal when it was killed */
        struct slice out, err; /* at most ANSWER_BYTES_MAX each */
};

/* The first word is "hccn_tool", "npu-smi", "hccn.conf" alone (the contents of /etc/hccn.conf), "host" (agent.h says what
 * the agent answers itself), or one of two lists of firewall rules. */
struct question {
        const char *words[QUESTION_WORDS + 1]; /* NULL-terminated */
        uint32_t lane;    /* questions of one lane are put one after the other, lanes side by side */
        uint32_t wait_ms; /* before it is put */
};

struct batch {
        uint32_t node;
        struct question *questions;
        struct answer *answers; /* as many; filled by the asker */
        size_t count;
        uint64_t sent_ns, back_ns; /* by the asker's wall clock; filled by it */
};
/* What an asker tells while it waits. NULL is fine. */
struct listener {
        void *context;
        /* A batch was answered; `waiting` is the node of one that was not yet, -1: none. */
        void (*answered)(void *context, size_t questions, int64_t waiting);
};
struct asker {
        void *context;
        /* Put all questions of all batches and fill every answer, with text from `arena`. What cannot be asked is answered
         * with ANSWER_NO_NODE. */
        void (*ask)(
            void *context, struct batch *batches, size_t count, const struct listener *listener, struct arena *arena);
};

/* Agents: one process per node, this program with `verify --agent`, started here or through the system's ssh, fed one batch
 * a line as JSON and kept until the end. */
struct agent_target {
        const char *name;
        const char *ssh;    /* destination for ssh(1); NULL: this machine */
        const char *binary; /* baton over there; NULL: "baton" in its PATH. It may not hold what a shell reads */
};
struct agents;
/* 0 or -ENOMEM. Nothing is started before the first question. `self` is this program's path. */
int agents_new(const char *self, const struct agent_target *targets, size_t count, struct agents **ret_agents);
struct asker agents_asker(struct agents *a);
void agents_free(struct agents *a); /* ends the processes; NULL is fine */
/* What the agent has answered by a process of its own: see agent.h. Returns the exit status. */
int host_answer(const char *const *words, size_t count, int out);
/* The other end: read batches from `in`, answer to `out`, until `in` ends. Returns 0, -EINVAL on what is no batch, or the
 * error of reading or writing. */
int agent_serve(int in, int out);

/* ---- facts ---------------------------------------------------------------------------------------------------------- */

enum topic {
        TOPIC_HEALTH, /* npu-smi */
        TOPIC_BOARD,
        TOPIC_SPOD,
        TOPIC_LINK, /* hccn_tool */
        TOPIC_NET_HEALTH,
        TOPIC_NETDETECT,
        TOPIC_GATEWAY,
        TOPIC_IP,
        TOPIC_VNIC,
        TOPIC_TLS,
        TOPIC_OPTICAL,
        TOPIC_LLDP,
        TOPIC_SPEED,
        TOPIC_LINK_STAT,
        TOPIC_STAT,
        TOPIC_STAT_LATER, /* the same again at the end: what has grown meanwhile */
        TOPIC_COUNT
};
#define TOPICS_ALL ((1u << TOPIC_COUNT) - 1)
/* What a ranktable is made of and what it must not be made without. */
#define TOPICS_RANKTABLE (1u << TOPIC_HEALTH | 1u << TOPIC_SPOD | 1u << TOPIC_LINK | 1u << TOPIC_IP | 1u << TOPIC_VNIC)

struct npu_address {
        bool known;             /* an IPv4 that is not 0.0.0.0; the rest is unset otherwise */
        uint32_t address, mask; /* host byte order; mask 0: not told */
        char text[16];
};
struct npu_facts {
        uint32_t device; /* physical id: N of /dev/davinciN and of hccn_tool -i N */
        uint32_t card, chip, logic;
        uint32_t asked; /* bit per topic */
        struct answer answers[TOPIC_COUNT];
        struct npu_address ip, vnic;
        struct {
                bool known, has_sdid;
                uint64_t sdid, pod, server;
        } spod;
};
/* A port that the plan fixes on a node. */
struct host_port {
        uint16_t port;
        const char *whose; /* "API port of d0.3" */
};
/* What a node is to carry, by the plan. */
struct host_plan {
        struct slice nic;        /* empty: not told */
        struct host_port *ports; /* by number, each once */
        size_t port_count;
        size_t ranks;
        bool inherits_proxy; /* a rank of it keeps the proxy variables of its surroundings */
};
/* What the node answered. */
struct host_facts {
        struct answer facts, model, opened, nft, iptables;
        bool firewall_asked;
        bool clock_known;
        int64_t clock_ahead_ns;  /* of the asker's */
        uint64_t clock_bound_ns; /* at most so wrong: half of the quickest round trip */
};
struct node_facts {
        struct slice name, ip;
        bool host_only; /* it has no NPUs to ask */
        struct host_plan plan;
        struct host_facts host;
        int64_t expected; /* devices that should be there; -1: not known */
        struct answer list, map, table, conf;
        struct npu_facts *npus;
        size_t npu_count;
        bool from_part; /* read from a part: addresses only, no answers */
        bool platform_known;
        enum platform platform; /* as the node itself tells */
};
struct probe {
        uint32_t from_node, from_npu, to_node, to_npu; /* indices, not device ids */
        struct answer answer;
};
/* One node tried the planned ports of another that could be opened there. */
struct host_try {
        uint32_t from, to; /* nodes */
        struct answer answer;
};
struct facts {
        enum platform platform; /* what the nodes should be */
        struct node_facts *nodes;
        size_t node_count;
        struct probe *probes;
        size_t probe_count;
        uint32_t topics;
        bool table_asked;
        struct {
                bool asked;
                bool planned;          /* false: the file breaks rules, so that its ports are not known */
                const char *model;     /* path of the model's folder, "": not one */
                const char *state_dir; /* of supervisors, "": the default under /tmp or /run */
                uint64_t log_bytes;    /* that the logs of one rank may take */
                struct host_try *tries;
                size_t try_count;
        } hosts;
};

/* How far it is, for people who wait: called as answers come with questions answered so far and all that are known of, and
 * a node whose answers are still to come (an empty name: none). */
struct progress {
        void *context;
        void (*say)(void *context, const char *what, size_t done, size_t all, struct slice waiting);
};

/* Ask every node of `facts` (names, addresses, expected and platform are set) for `topics` of every NPU. Returns 0 or
 * -ENOMEM; trouble of nodes and tools is in the answers. */
int collect(struct facts *facts, uint32_t topics, const struct asker *asker, const struct progress *progress,
    struct arena *arena);
/* Then every NPU to every NPU of other nodes (hccs_ping on A3, RoCE ping elsewhere), never two probes at one NPU at a time;
 * and the second sample of the counters. */
int collect_pings(struct facts *facts, const struct asker *asker, const struct progress *progress, struct arena *arena);

/* The host plane: ask every node about itself, compare its clock, open the planned ports of all nodes and try them from one
 * another (each node is tried by one other at a time, by at most DOOR_VISITS_MAX). Where that fails, ask for firewalls. */
int collect_hosts(struct facts *facts, const struct asker *asker, const struct progress *progress, struct arena *arena);

/* ---- findings ------------------------------------------------------------------------------------------------------- */

struct verify_finding {
        enum severity severity;
        const char *code;               /* "V10" */
        const char *check;              /* "link" */
        int64_t node;                   /* index; -1: all of them */
        int64_t device;                 /* physical id; -1: the node as a whole */
        int64_t peer_node, peer_device; /* -1: none */
        bool unknown;                   /* nothing is known to be broken: it could not be found out */
        const char *cause, *cure;
};
struct verify_findings {
        struct arena *arena;
        struct verify_finding *items;
        size_t count, capacity;
        bool failed; /* memory was out: the list is not complete */
};

/* All findings about the facts, by node and device. 0 or -ENOMEM. */
int judge(const struct facts *facts, struct verify_findings *ret_findings);
/* 0 fine (warnings too), 1 an error, 3 errors only of the kind that something could not be found out. */
int verify_exit_code(const struct verify_findings *f);

const struct rule *verify_rule_find(struct slice code);
/* By number from 0; NULL after the last. */
const struct rule *verify_rule_at(size_t index);

/* The summary, the matrix of pings between nodes, and the findings with cause and cure. */
void verify_write_text(const struct facts *facts, const struct verify_findings *f, bool color, struct buf *out);
/* One HTML page that needs nothing else: summary, findings, nodes, and the pings as a picture. `title` and `when` stand at its
 * head. */
void verify_write_html(
    const struct facts *facts, const struct verify_findings *f, const char *title, const char *when, struct buf *out);
/* {"platform","nodes":[…],"interconnect":[…],"errors","warnings","findings":[{severity,code,check,node,device,…}]} */
void verify_write_json(const struct facts *facts, const struct verify_findings *f, struct buf *out);

/* ---- ranktable ------------------------------------------------------------------------------------------------------ */

/* A run of NPUs of one node that serve one role, by place among the node's NPUs. */
struct ranktable_share {
        uint32_t node;
        size_t first, count;
        enum role role;
};
enum ranktable_format {
        RANKTABLE_PAGE,   /* prefill_device_list and decode_device_list, as gen_ranktable.py writes it, byte for byte */
        RANKTABLE_HCCL10, /* HCCL's RANK_TABLE_FILE, version 1.0 (A2) */
        RANKTABLE_HCCL12, /* version 1.2 (A3: super_device_id, super_pod_list) */
};

/* The machines that a cluster file uses, prefill first, in the order of the groups: an address is one machine, whatever names
 * it has. 0 or -ENOMEM. */
int facts_of_cluster(const struct cluster *c, struct arena *arena, struct facts *ret_facts);
/* For the host plane: what each machine carries by the plan, and the gateway's machine if it is none of them. `plan` NULL:
 * the file breaks rules; then only what the file itself says. -ENOMEM. */
int facts_plan_hosts(struct facts *facts, const struct cluster *c, const struct plan *plan, struct arena *arena);
/* Leave of every node only the NPUs with the given physical ids, in their order (gen_ranktable's --local-device-ids); before
 * judge(), which then expects no others. -EINVAL names the id that a node has not. */
int facts_choose(struct facts *facts, const uint32_t *ids, size_t count, struct arena *arena, struct error *e);
/* Shares by the cluster file: all NPUs of a node for its role; names that share an address share its NPUs in order. */
int ranktable_shares(const struct cluster *c, const struct facts *facts, struct arena *arena,
    struct ranktable_share **ret_shares, size_t *ret_count, struct error *e);
/* Shares by gen_ranktable's counts over all NPUs in the order of the nodes. What is odd about them goes to `findings` as
 * warnings; more NPUs asked for than there are is -EINVAL. */
int ranktable_shares_by_count(const struct facts *facts, uint64_t prefill, uint64_t decode, struct arena *arena,
    struct ranktable_share **ret_shares, size_t *ret_count, struct verify_findings *findings, struct error *e);
/* The file's bytes. -EINVAL with a text when an NPU of the shares lacks an address or id, or on A5, for which no engine reads
 * a table; -ENOMEM. */
int ranktable_write(const struct facts *facts, const struct ranktable_share *shares, size_t count,
    enum ranktable_format format, struct buf *out, struct error *e);
/* Whether a table must not be made because of this finding: an address, an id or a node is missing, double or foreign. */
bool ranktable_refuses(const struct verify_finding *f);

/* A node's part, for sites where nodes are not reached over ssh: one JSON object with its addresses and ids. */
void part_write(const struct facts *facts, size_t node, struct buf *out);
/* Read a part into the node of `facts` that it names. -EINVAL (not a part, another version, no such node, given twice). */
int part_read(struct facts *facts, struct slice text, struct arena *arena, struct error *e);
