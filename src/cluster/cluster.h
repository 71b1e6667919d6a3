/* cluster.h - the cluster file, what is wrong with it, and the plan that follows from it.
 *
 * Pure: reads one file and does nothing else; time, network and processes play no part. Everything found wrong is a
 * struct finding with a stable code, the place in the file, the cause and the cure; nothing is printed here. Whatever the
 * reader returns lives in the arena given, and keeps the place (line and column) where it was written, so that later
 * rooms can point at the file too.
 *
 * Words: a node is a machine by a name of the user's; nodes may share an address (then they share its ports). A group is
 * the ranks of one DP x TP world; a rank is one engine process with its own API port, written NODE.LOCAL ("d0.3"). */
#pragma once
#include "base/arena.h"
#include "base/buf.h"
#include "base/error.h"

/* ---- findings ------------------------------------------------------------------------------------------------------- */

enum severity { SEVERITY_WARNING, SEVERITY_ERROR };

/* 1-based; line 0: no place in the file. */
struct place {
        uint32_t line, column;
};

struct finding {
        enum severity severity;
        const char
            *code; /* "Y02": Y the file's form, N nodes, D devices and ranks, P ports, M model and engine options, K the
                             connector between engines, R what the engine's version no longer reads */
        struct place at;
        const char *cause; /* one line; more lines give the evidence */
        const char *cure;  /* NULL: the cause says it */
};

struct findings {
        struct arena *arena;
        struct finding *items;
        size_t count, capacity;
        bool failed; /* memory was out: the list is not complete */
};

/* Beyond this many the file is something else than a cluster file; one last finding says so. */
#define FINDINGS_MAX 500

struct finding *findings_add(struct findings *f, enum severity severity, const char *code, struct place at,
    const char *format, ...) __attribute__((format(printf, 5, 6)));
void finding_cure(struct findings *f, struct finding *of, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
size_t findings_count(const struct findings *f, enum severity severity);
/* By place, then code. */
void findings_sort(struct findings *f);
/* "FILE:LINE:COLUMN: error Y02: …" with the cure indented below, one block per finding, and the closing count. */
void findings_write_text(const struct findings *f, const char *file, bool color, struct buf *out);
/* {"file":…,"errors":N,"warnings":N,"findings":[{severity,code,line,column,cause,cure}]} */
void findings_write_json(const struct findings *f, const char *file, struct buf *out);

/* The rule behind a code for `baton explain`: title, why it holds, source. NULL: no such code. */
struct rule {
        const char *code, *title, *why;
};
const struct rule *rule_find(struct slice code);
const struct rule *rule_list(size_t *ret_count);

/* ---- the file ------------------------------------------------------------------------------------------------------- */

enum engine_kind { ENGINE_EMBEDDED, ENGINE_VLLM_ASCEND, ENGINE_VLLM, ENGINE_TEMPLATE };
enum platform { PLATFORM_CPU, PLATFORM_ASCEND_A2, PLATFORM_ASCEND_A3, PLATFORM_ASCEND_A5, PLATFORM_CUDA };
enum role { ROLE_PREFILL, ROLE_DECODE };
/* In which order a template takes its arguments: that of vLLM-Ascend's launch_online_dp.py (devices, port, dp size, dp
 * rank, dp address, dp port, tp size) or of 0.9.1's launch_dp_program.py (dp size, dp address, dp port, local rank, dp
 * rank, port, local dp size). */
enum launcher { LAUNCH_ONLINE_DP, LAUNCH_DP_PROGRAM };
const char *role_name(enum role r);
const char *engine_kind_name(enum engine_kind k);
const char *platform_name(enum platform p);

/* One environment variable or engine option written by the user: `max-num-seqs: 8`, `enforce-eager: true`,
 * `additional-config: {…}` (given on as JSON, merged into what an earlier layer says, RFC 7386; as quoted text it takes its
 * place), `no-such: null` (drops a derived one). */
enum setting_kind { SETTING_VALUE, SETTING_TRUE, SETTING_FALSE, SETTING_DROP, SETTING_OBJECT };
struct setting {
        struct slice name, value;
        enum setting_kind kind;
        struct place at, value_at;
};
struct settings {
        const struct setting *items;
        size_t count;
};

struct cluster_node {
        struct slice name, ip, nic, ssh; /* ssh: what to give to ssh(1), empty: the ip */
        int64_t devices;                 /* NPUs or GPUs; -1: the platform's own number */
        int64_t first_device;            /* `devices: 8-15` is 8 devices from 8 on */
        int platform;                    /* enum platform, -1: the file's */
        struct settings env, args;
        struct place at, ip_at, devices_at, platform_at;
};

struct cluster_group {
        const uint32_t *nodes; /* indices into cluster.nodes; the first is the DP master */
        size_t count;
        int64_t api_port, dp_port, kv_port; /* -1: what follows from the role's */
        struct settings env, args;
        struct place at, api_port_at, dp_port_at, kv_port_at;
};

/* Settings of one rank, by its name. */
struct cluster_rank {
        struct slice name;
        struct settings env, args;
        struct place at;
};

struct cluster_role {
        enum role role;
        bool present;
        const struct cluster_group *groups;
        size_t group_count;
        int64_t dp, tp, pp, pcp;            /* data, tensor, pipeline and prefill context parallel sizes */
        int64_t api_port, dp_port, kv_port; /* kv_port -1: the connector's own */
        int64_t events_port;                /* of KV events, 0: none are published */
        struct slice host;                  /* address the API listens on */
        struct settings env, args;
        const struct cluster_rank *ranks; /* in the file's order */
        size_t rank_count;
        struct place at, dp_at, tp_at, pp_at, pcp_at, api_port_at, dp_port_at, kv_port_at, events_port_at;
};

struct cluster {
        const char *file;
        struct {
                struct slice path, served_name, quantization, dtype;
                int64_t max_len; /* -1: the model's own */
                struct slice speculative_method;
                int64_t speculative_tokens; /* 0: off */
                struct place at, path_at;
        } model;
        struct {
                enum engine_kind kind;
                struct slice version; /* empty: the newest */
                struct slice template_path, connector;
                struct slice binary;    /* empty: this program (embedded), `vllm` */
                struct slice ranktable; /* where the nodes find it, for connectors that read one */
                int launcher;           /* enum launcher, -1: by version */
                struct settings env, args;
                struct place at, kind_at, version_at, connector_at;
        } engine;
        enum platform platform;
        const struct cluster_node *nodes;
        size_t node_count;
        struct cluster_role roles[2]; /* by enum role */
        struct {
                bool present;
                int64_t node; /* index */
                struct slice host;
                int64_t port;
                struct slice policy, prefill_policy, decode_policy;
                struct slice connector; /* empty: the engine's */
                struct settings args;
                struct place at, node_at, port_at, connector_at;
        } gateway;
        struct {
                struct slice state_dir;       /* logs, sockets, journal; empty: see launch/ */
                int64_t ready_seconds;        /* a rank not ready by then has failed */
                int64_t stop_seconds;         /* from SIGTERM to SIGKILL */
                int64_t restarts;             /* in a row before a rank is given up; 0: never restart */
                int64_t log_bytes, log_files; /* rotation, per rank */
                struct slice baton; /* this program on nodes reached over ssh; empty: `baton` in the PATH there */
        } supervise;
};

#define CLUSTER_FILE_MAX  (4u << 20) /* 1,024 nodes take 60 KB */
#define CLUSTER_NODES_MAX 16384u
#define CLUSTER_RANKS_MAX 262144u
#define DEVICES_MAX       1024 /* of a node */

/* Read and check the form of `text` (the file's contents; `file` is its name for messages). Returns 0 with a cluster that
 * is complete enough to plan, or -EINVAL when findings hold an error; -ENOMEM. */
int cluster_parse(
    const char *file, struct slice text, struct arena *arena, struct cluster **ret_cluster, struct findings *findings);
/* cluster_parse of a file. -ENOENT, -EACCES, -EFBIG with a text. */
int cluster_read(
    const char *path, struct arena *arena, struct cluster **ret_cluster, struct findings *findings, struct error *e);

/* ---- the plan ------------------------------------------------------------------------------------------------------- */

struct plan_rank {
        struct slice name; /* "d0.3" */
        enum role role;
        uint32_t node;  /* index into cluster.nodes */
        uint32_t group; /* within the role */
        uint32_t local, local_count, dp_rank, dp_size, tp_size;
        uint16_t api_port;
        uint32_t kv_port; /* the first one this rank listens on, 0: none */
        uint32_t kv_base; /* of its group: what the engine is told where it counts up itself */
        uint32_t dp_port;
        uint32_t events_port; /* KV events, the next one their replays; 0: none */
        struct slice dp_address;
        uint32_t first_device, device_count; /* tp x pp x pcp devices */
        const char *const *argv;             /* NULL-terminated; argv[0] is the program */
        const char *const *env; /* NULL-terminated "NAME=value", put over the supervisor's own; "NAME" alone removes */
        struct slice url;       /* "http://127.0.0.1:9000" */
};

/* Ports in a row that something of the plan listens on at an address. */
struct plan_port {
        struct slice ip;
        uint16_t first, count;
        const char *whose; /* "API port of d0.3" */
};

struct plan {
        const struct cluster *cluster;
        const struct plan_rank *ranks; /* prefill first, in group and rank order */
        size_t rank_count;
        const struct plan_port *ports; /* by address, then port */
        size_t port_count;
        struct slice gateway_url;        /* empty: none */
        const char *const *gateway_argv; /* NULL: none */
        const char *connector; /* by which every prefill rank hands over to every decode rank; NULL: none planned */
        uint64_t digest;       /* of everything above: equal plans are equal */
};

/* Derive ports, ranks, argv and env, checking every rule that must hold. Returns 0 with a plan, or -EINVAL when findings
 * hold an error; -ENOMEM. `program` is what runs an embedded rank and the gateway (this baton). */
int plan_make(const struct cluster *c, const char *program, struct arena *arena, struct plan **ret_plan,
    struct findings *findings);
/* The same rules without a plan, for those who only ask: 1,024 nodes of 16 ranks in a few hundredths of a second. */
int plan_check(const struct cluster *c, struct arena *arena, struct findings *findings);

/* Whether all ranks are for one address, or for loopback ones: a supervisor starts the ranks of its own machine only. */
bool plan_on_one_machine(const struct plan *p);

/* Whether a rank cannot go on, nor come back, without all others of its group: so it is with vLLM's data parallelism. Ranks of
 * the embedded engine meet again by themselves. */
bool plan_rank_needs_world(const struct plan *p, const struct plan_rank *r);
/* The part of a plan that is for one node (an index): its ranks, and the gateway if it lives there. A view of `p`. */
struct plan plan_of_node(const struct plan *p, uint32_t node);
/* Index of the node of that name; -1: none. */
int64_t cluster_find_node(const struct cluster *c, struct slice name);

/* Columns for people; and JSON with a stable shape. */
void plan_write_table(const struct plan *p, struct buf *out);
void plan_write_json(const struct plan *p, struct buf *out);

/* ---- for other launchers ---------------------------------------------------------------------------------------------- */

enum export_format {
        EXPORT_SHELL,   /* a bash script per node that starts its ranks and stands alone */
        EXPORT_SYSTEMD, /* a unit per rank, a target per node */
        EXPORT_DOCKER,  /* a bash script of `docker run` lines per node */
        EXPORT_K8S,     /* a manifest: a LeaderWorkerSet per DP group, scripts as ConfigMaps, the gateway */
        EXPORT_SLURM,   /* one batch script */
};

struct export_file {
        const char *name;  /* relative: "p0.sh", "p0/baton-p0.0.service" */
        struct slice node; /* whose it is; empty: the whole cluster's */
        struct slice text;
        bool executable;
};

/* The plan as files that need no baton (but for the gateway and embedded ranks), every value quoted for where it stands.
 * `image` NULL: the engine's usual one. Returns 0 with a list in the arena, -EINVAL with a text (a value that the format
 * cannot hold), -ENOMEM. */
int plan_export(const struct plan *p, enum export_format format, const char *image, struct arena *arena,
    const struct export_file **ret_files, size_t *ret_count, struct error *e);

/* ---- a new file ------------------------------------------------------------------------------------------------------- */

/* What `baton init` was asked for. Texts NULL, numbers 0: what the recipe has, or what follows from the platform. */
struct init_role {
        const char *const *hosts; /* addresses of the role's nodes; none: `nodes` made-up ones */
        size_t host_count;
        int64_t nodes, group_nodes; /* group_nodes: nodes of a DP group */
        int64_t dp, tp;
};
struct init_options {
        const char *recipe; /* documented settings for a model on a machine, see init_recipe() */
        const char *engine, *platform, *model, *served_name, *version, *connector, *ranktable, *nic;
        int64_t max_len, gateway_port;
        bool whole; /* no prefill role: every rank does both */
        struct init_role roles[2];
};

/* Write a commented cluster file. Returns 0, -EINVAL with a text (no such recipe, engine, platform; a group size that does
 * not divide the nodes), -ENOMEM. What is written may still break a rule: plan_check() tells. */
int init_write(const struct init_options *o, struct buf *out, struct error *e);

/* The recipes by number, for lists; NULL beyond the last. */
struct init_recipe {
        const char *name, *about;
};
const struct init_recipe *init_recipe(size_t index);
