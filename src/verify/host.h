/* host.h - what agents answer about hosts, read without trust (private to verify/). Pure; all text lies in the arena given.
 *
 * Every member that a host must tell is required: an answer that lacks one, or was cut, is not understood, and never taken for
 * a host without faults. All return 0, -EINVAL or -ENOMEM. */
#pragma once
#include "verify/verify.h"

/* Whether there is an answer to read; agents tell trouble by status, not by text. */
static inline bool host_answered(const struct answer *a) {
        return a->state == ANSWER_GIVEN && a->status == 0;
}

struct host_door {
        uint16_t port;
        struct slice error;  /* "ECONNREFUSED"; empty: open */
        struct slice holder; /* "python3 (pid 12)", or empty */
};
struct host_doors {
        struct host_door *items; /* by port */
        size_t count, count_open, count_silent /* timed out */;
};
int host_doors_parse(struct slice out, struct arena *arena, struct host_doors *ret);
bool host_door_is_open(const struct host_doors *d, uint16_t port);
const struct host_door *host_door_find(const struct host_doors *d, uint16_t port); /* NULL: not told */

struct host_nic {
        struct slice name;
        bool up, carrier;
        int64_t mtu;
        struct slice *addresses;
        size_t address_count;
};
struct host_space {
        struct slice use, path, error; /* error empty: the rest is told */
        uint64_t free, all;
        bool read_only;
};
struct host_limit {
        int64_t soft, hard; /* -1: none */
};
struct host_told {
        struct host_nic *nics;
        size_t nic_count;
        uint32_t ephemeral_first, ephemeral_last;
        struct slice reserved; /* "8080,9148-9150", as the kernel writes it */
        struct {
                struct slice name, value;
        } * proxies;
        size_t proxy_count;
        struct slice no_proxy;
        bool root;
        struct host_limit nofile, memlock, nproc;
        struct host_space *spaces;
        size_t space_count;
};
int host_told_parse(struct slice out, struct arena *arena, struct host_told *ret);
const struct host_nic *host_nic_with(const struct host_told *t, struct slice ip); /* NULL: none has that address */

struct host_file {
        struct slice name, hash, error; /* hash empty: only the size is compared */
        uint64_t size;
};
struct host_model {
        struct slice error; /* of the folder; empty: its files are told */
        struct host_file *files;
        size_t count;
};
int host_model_parse(struct slice out, struct arena *arena, struct host_model *ret);

/* Whether a client that reads no_proxy as most do sends requests for `ip` to the proxy all the same. */
bool host_proxy_catches(struct slice no_proxy, struct slice ip);
/* Whether a port is in a list such as "8080,9148-9150". */
bool host_port_in_list(struct slice list, uint16_t port);
/* What of a firewall's rules would explain a port that is not reached, for the end of a sentence ("nft table firewalld,
 * iptables"); empty: nothing seen. `nft` and `iptables` are the answers to their lists of rules. */
const char *host_firewall_hint(const struct host_facts *h, struct arena *arena);
