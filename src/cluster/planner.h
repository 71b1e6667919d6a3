/* planner.h - what the files that plan share (private to cluster/).
 *
 * plan.c lays out ranks on the nodes of nodes.c, ports.c their ports, profile.c says how an engine is started, rules.c checks what the options mean
 * together, retired.c what the engine's version still reads. Each rule's code stands in findings.c for `baton explain`. */
#pragma once
#include "cluster/command.h"

/* ---- engine versions and connectors ----------------------------------------------------------------------------------- */

#define VERSION(major, minor, patch) ((uint32_t)(major) << 20 | (uint32_t)(minor) << 10 | (uint32_t)(patch))
#define VERSION_NEWEST               UINT32_MAX

/* "0.9.1", "v0.12.0rc1" (counted as 0.12.0), "" (the newest). -EINVAL. */
int version_parse(struct slice text, uint32_t *ret_version);

/* Which leg of a request goes first: what a gateway must do in front of a connector. */
enum leg_order { LEGS_PREFILL_FIRST, LEGS_DECODE_FIRST };

/* On which ports the ranks of a group listen for their peers, W being tp x pp x pcp. */
enum kv_span {
        SPAN_NONE,
        SPAN_ONE,    /* one port a rank, told one by one */
        SPAN_LOCAL,  /* base + local rank x W and W - 1 more */
        SPAN_GLOBAL, /* base + dp rank x W and W - 1 more */
        SPAN_GROUP,  /* somewhere in base .. base + dp x W - 1, by version */
};

struct connector_info {
        const char *name;
        enum engine_kind engine;
        uint32_t from, until; /* versions [from, until) */
        enum leg_order order;
        enum kv_span span;
        uint16_t kv_ports[2];    /* where the ports begin unless the file says so, by role */
        bool ranktable;          /* reads DISAGGREGATED_PREFILL_RANK_TABLE_PATH */
        bool random_ports;       /* Mooncake's: data goes over ports drawn from 20000 + 1000 x NPUs */
        const char *port_env;    /* variable that tells the base, NULL: kv_port in the option */
        const char *module_path; /* NULL: registered by name */
};

/* NULL: this engine kind and version knows no connector of that name. An empty name finds the kind's usual one. */
const struct connector_info *connector_of(enum engine_kind engine, uint32_t version, struct slice name);
/* By name alone, of any engine and version. */
const struct connector_info *connector_named(struct slice name);
/* "MooncakeConnectorV1, …" for messages, in the arena. */
const char *connector_list(struct arena *arena, enum engine_kind engine, uint32_t version);

/* ---- the planner ------------------------------------------------------------------------------------------------------ */

struct port_use;

struct planner {
        const struct cluster *c;
        const char *program;
        struct arena *arena;
        struct findings *findings;
        uint32_t version;
        const struct connector_info *connector; /* NULL: no hand-off, or not known */
        struct plan_rank *ranks;
        const struct cluster_rank **rank_settings; /* by rank; NULL when no rank has any */
        size_t rank_count;
        const struct cluster_group **group_of; /* node -> the group it carries, NULL: none */
        uint32_t *host_of;                     /* node -> number of its address */
        uint32_t hosts;
        bool remote;               /* some node with ranks has an address that is not its own machine's alone */
        struct host_use *host_use; /* by host */
        struct port_use *ports;
        size_t port_count;
        bool failed;
};

/* What has been handed out at one address. */
struct host_use {
        uint32_t ranks[2];             /* of each role, numbered on from the role's own ports */
        uint32_t masters[2];           /* DP groups of each role mastered here */
        uint32_t events[2];            /* ranks of each role that publish KV events */
        uint32_t groups[2];            /* groups of each role with a rank here */
        uint32_t group_seen, in_group; /* the last group + 1 that came by, and its ranks here */
};

/* Whether P/D hand-off happens at all. */
static inline bool planner_disaggregated(const struct planner *p) {
        return p->c->roles[ROLE_PREFILL].present && p->c->roles[ROLE_DECODE].present;
}

/* Devices of one rank, which is how many workers it has. */
static inline int64_t role_width(const struct cluster_role *role) {
        return role->tp * role->pp * role->pcp;
}

static inline bool platform_is_ascend(enum platform p) {
        return p == PLATFORM_ASCEND_A2 || p == PLATFORM_ASCEND_A3 || p == PLATFORM_ASCEND_A5;
}

/* Text as a JSON string, quotes included. */
const char *planner_json(struct planner *p, struct slice text);
struct slice planner_format(struct planner *p, const char *format, ...) __attribute__((format(printf, 2, 3)));
const char *planner_cstr(struct planner *p, struct slice s);
/* As findings_add, but one mistake is told once: NULL (which finding_cure takes) when a finding of that code stands at that
 * place already. planner_find_each tells all that differ in their text. */
struct finding *planner_find(struct planner *p, enum severity severity, const char *code, struct place at,
    const char *format, ...) __attribute__((format(printf, 5, 6)));
struct finding *planner_find_each(struct planner *p, enum severity severity, const char *code, struct place at,
    const char *format, ...) __attribute__((format(printf, 5, 6)));

/* ---- nodes.c ---------------------------------------------------------------------------------------------------------- */

enum platform node_platform(const struct cluster *c, const struct cluster_node *n);
/* NPUs or GPUs that a machine of the platform has; -1: it is not counted in those. */
int64_t platform_devices(enum platform p);
int64_t node_devices(const struct cluster *c, const struct cluster_node *n); /* likewise */
bool ip_is_local_only(struct slice ip);
void nodes_group(struct planner *p); /* group_of; a node has one */
/* Number the addresses (host_of), and see that nodes which share one do not share its devices. */
void nodes_number(struct planner *p);
void nodes_check(struct planner *p);

/* ---- ports.c ---------------------------------------------------------------------------------------------------------- */

enum port_kind { PORT_API, PORT_DP, PORT_KV, PORT_EVENTS, PORT_GATEWAY };

/* Note `count` ports from `first` on at a host. `index` is the rank's (PORT_API, PORT_KV, PORT_EVENTS) or the group's (PORT_DP). */
void ports_use(struct planner *p, enum port_kind kind, enum role role, uint32_t index, uint32_t host, int64_t first,
    int64_t count, struct place at);
void ports_init(struct planner *p, size_t ranks); /* room for the notes of so many ranks */
void ports_check(struct planner *p);
void ports_list(struct planner *p, struct plan *plan); /* after ports_check */

/* ---- profile.c -------------------------------------------------------------------------------------------------------- */

struct rank_command {
        struct command argv, env;
        const char *head[4]; /* what precedes the options, NULL-terminated */
};
/* How a rank is started: what its engine kind derives, then the layers of the file. */
void profile_command(struct planner *p, const struct plan_rank *rank, struct rank_command *ret_command);
/* NULL when memory is out. */
const char *const *profile_argv(struct planner *p, const struct plan_rank *rank, struct rank_command *command);
/* The options of `args` that the plan derives from other keys: NULL, or the key to use instead. */
const char *profile_derives(const struct cluster *c, struct slice option);

/* ---- rules.c, retired.c ----------------------------------------------------------------------------------------------- */

/* Check the options of every set of layers that occurs. Ranks must be laid out. */
void rules_check(struct planner *p);

void retired_check(struct planner *p, const struct rank_command *command);
