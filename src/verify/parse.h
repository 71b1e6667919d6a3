/* parse.h - what hccn_tool and npu-smi print, read without trust. Pure; slices point into the answer.
 *
 * Texts and fields are those of the tools of 910B (A2), 910C (A3) and 950 (A5). Parsers take the fields they know wherever
 * they stand, skip the rest, and return -EINVAL when what they are for is not there. */
#pragma once
#include "verify/verify.h"

enum trouble {
        TROUBLE_NONE,
        TROUBLE_NO_NODE,
        TROUBLE_NO_TOOL,
        TROUBLE_LATE,
        TROUBLE_PERMISSION,
        TROUBLE_BUSY,
        TROUBLE_HEALTH, /* the driver's health check in front of every query failed: the NPU, not the query */
        TROUBLE_UNSUPPORTED,
        TROUBLE_NO_DEVICE,
        TROUBLE_LINK_DOWN,
        TROUBLE_NOT_PRESET,
        TROUBLE_NOT_PRESENT, /* optical module */
        TROUBLE_STARTING,    /* optical module */
        TROUBLE_FAILED,      /* any other error text or exit status */
        TROUBLE_EMPTY,       /* exit status 0 and nothing printed */
};

/* What stood in the way of an answer, by its state, its text and its exit status: some errors come with status 0, some
 * statuses are ambiguous. *ret_said: the line that tells, or empty. */
enum trouble answer_trouble(const struct answer *a, struct slice *ret_said);

/* The value behind the first line "KEY : VALUE" (any blanks around key and colon, a "[devid N]" before it). */
int parse_value(struct slice out, const char *key, struct slice *ret_value);
int parse_number(struct slice out, const char *key, uint64_t *ret_value);
/* Dotted quad, nothing else. */
int parse_ipv4(struct slice text, uint32_t *ret_address);
/* Address and netmask behind two keys. -EINVAL: no line, no IPv4, or 0.0.0.0; *ret_text is then what stood there. */
int parse_address(
    struct slice out, const char *key, const char *mask_key, struct npu_address *ret_address, struct slice *ret_text);
/* Value of `key` in the form KEY=VALUE of hccn.conf. */
int parse_conf(struct slice conf, const char *key, struct slice *ret_value);

struct map_row {
        uint32_t card, chip, logic, device;
};
#define MAP_ROWS_MAX 64
/* `npu-smi info -m`; rows of management chips are left out; without a Phy-ID column the logic id is it. -EINVAL: no header,
 * no row, or an id twice. */
int parse_map(struct slice out, struct map_row rows[MAP_ROWS_MAX], size_t *ret_count);

struct lldp {
        struct slice port, system;
};
int parse_lldp(struct slice out, struct lldp *ret_lldp);
int parse_tls(struct slice out, unsigned *ret_switch);

struct ping {
        uint64_t sent, received;
        struct slice loss;  /* "33.33%" */
        struct slice plane; /* a plane check result other than 0x0; empty: none */
        double average_us;  /* over the packets that came back */
};
int parse_ping(struct slice out, struct ping *ret_ping);

/* LINK DOWN records within `hours` before the device's own current time. */
int parse_link_stat(struct slice out, unsigned hours, unsigned *ret_downs);

/* The next "name:number" line of `-stat`. False at the end. */
bool parse_counter(struct slice *out, struct slice *ret_name, uint64_t *ret_value);

/* The table of `npu-smi info`: used HBM per chip and processes. */
struct table_row {
        enum { TABLE_CHIP, TABLE_PROCESS } kind;
        uint32_t card, chip;
        uint64_t hbm_used_mb, hbm_all_mb; /* TABLE_CHIP */
        struct slice pid, name;           /* TABLE_PROCESS */
};
struct table_reader {
        struct slice rest;
        uint32_t card;
        bool card_known;
};
bool parse_table(struct table_reader *reader, struct table_row *ret_row);
/* Whether it says that no process runs on a card. */
bool table_tells_none(struct slice out, uint32_t card);

/* Ports of an A5 device (`-dev_info`): how many rows, and the first whose link is not UP (empty: none). */
int parse_ports(struct slice out, size_t *ret_count, struct slice *ret_down);
