/* judge.h - what the parts of judging share: the list of checks, and saying a finding. */
#pragma once
#include "verify/core.h"

enum check {
        CHECK_NODE,
        CHECK_TOOLS,
        CHECK_PERMISSION,
        CHECK_PLATFORM,
        CHECK_NPU_LIST,
        CHECK_NPU_MAP,
        CHECK_NPU_HEALTH,
        CHECK_NPU_BOARD,
        CHECK_NPU_PROCESS,
        CHECK_LLDP,
        CHECK_LINK,
        CHECK_NET_HEALTH,
        CHECK_NETDETECT,
        CHECK_GATEWAY,
        CHECK_HCCN_CONF,
        CHECK_IP,
        CHECK_VNIC,
        CHECK_SPOD,
        CHECK_TLS,
        CHECK_OPTICAL,
        CHECK_STAT,
        CHECK_LINK_STAT,
        CHECK_SPEED,
        CHECK_PING,
        CHECK_HCCS_PING,
        CHECK_RANKTABLE,
        CHECK_HOST,
        CHECK_NIC,
        CHECK_MTU,
        CHECK_PORT,
        CHECK_REACH,
        CHECK_EPHEMERAL,
        CHECK_PROXY,
        CHECK_LIMIT,
        CHECK_CLOCK,
        CHECK_DISK,
        CHECK_SHM,
        CHECK_MODEL,
        CHECK_COUNT
};
struct check_row {
        struct rule rule; /* code, title, why */
        const char *name;
};
extern const struct check_row check_rows[CHECK_COUNT];
enum check check_of_topic(enum topic topic);

struct judge {
        const struct facts *facts;
        struct verify_findings *findings;
        struct arena *arena;
        /* Per node and per NPU: what has been said to be broken, so that its consequences are not. */
        struct node_marks {
                bool skip;       /* nothing more is said of this node's NPUs */
                bool gone;       /* it cannot be asked */
                bool no_tool[2]; /* hccn_tool, npu-smi */
                bool permission;
                struct npu_marks {
                        bool broken;    /* its driver's health check fails */
                        bool late;      /* a command hung */
                        bool link_down; /* its RoCE link */
                        bool no_netdetect;
                        bool doubled; /* another NPU has its address */
                } * npus;
        } * marks;
};

/* Add a finding and return it for its cure and peer, or NULL when memory is out. device -1: the node as a whole. */
struct verify_finding *say(struct judge *j, enum severity severity, enum check check, int64_t node, int64_t device,
    const char *format, ...) __attribute__((format(printf, 6, 7)));
/* Both take NULL. */
void cure(struct judge *j, struct verify_finding *of, const char *format, ...) __attribute__((format(printf, 3, 4)));
void peer(struct verify_finding *of, int64_t node, int64_t device);

/* Faults of the RoCE plane stop an A2 cluster; on A3 the data goes over HCCS, and the plane may even be unused. */
enum severity roce_severity(const struct facts *f);
/* The answer to a topic when there is one; otherwise its trouble is said (once per cause) and false returned. */
bool usable(struct judge *j, uint32_t node, uint32_t npu, enum topic topic);
/* The same for a caller that knows the trouble and some of whose forms are no trouble to it. */
void say_trouble(
    struct judge *j, uint32_t node, uint32_t npu, enum topic topic, enum trouble trouble, struct slice said);
/* The answer came and is not understood. */
void say_garbage(struct judge *j, uint32_t node, uint32_t npu, enum topic topic);
/* usable(), and the value of `key` in the answer; false when there is none, which has been said then. */
bool topic_value(
    struct judge *j, uint32_t node, uint32_t npu, enum topic topic, const char *key, struct slice *ret_value);

void judge_node(struct judge *j, uint32_t node); /* tools, platform, which NPUs */
void judge_npus(struct judge *j, uint32_t node); /* every topic of every NPU by itself */
void judge_addresses(struct judge *j);           /* double addresses and ids, super pods, gateways against subnets */
void judge_agreement(struct judge *j);           /* what must be alike: TLS, speed, driver */
void judge_probes(struct judge *j);

/* The host plane, when it was asked. */
void judge_hosts(struct judge *j);
void judge_ports(struct judge *j);
/* An answer of an agent about its host that cannot be read: says why, once per node where the node itself is the reason. */
void say_host_trouble(struct judge *j, uint32_t node, const struct answer *a, const char *what);
