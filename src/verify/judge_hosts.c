/* judge_hosts.c - hosts besides their NPUs and ports: interfaces, proxies, limits, clocks, space, the model's files. */
#include "base/hash.h"
#include "verify/host.h"
#include "verify/judge.h"
#include <stdlib.h>

#define MIB (1ull << 20)

/* vLLM raises its own limit to 65,535 where it may. An embedded rank and a gateway take two descriptors a request. */
#define NOFILE_MIN     65535
#define NOFILE_MIN_CPU 4096
/* OpenMP, gloo, HCCL and the engine's own: some 200 threads were counted in one vLLM worker. */
#define THREADS_PER_RANK 512
/* vLLM's queue between the workers of a rank takes 240 MB for its ten messages of 24 MiB. */
#define SHM_FREE_MIN (1024 * MIB)
/* Compilers of kernels and sockets of supervisors live in /tmp. */
#define TMP_FREE_MIN (1024 * MIB)
/* Log lines half a second apart can no longer be ordered by hand; certificates and tickets allow five minutes. */
#define CLOCK_WARN_NS  500000000ll
#define CLOCK_ERROR_NS (300ll * 1000000000ll)

struct host {
        bool known; /* `told` may be read */
        struct host_told told;
        const struct host_nic *nic; /* that has the node's address; NULL: none, or not known */
        bool model_known;
        struct host_model model;
        uint64_t digest; /* of the model's files */
};

void say_host_trouble(struct judge *j, uint32_t node, const struct answer *a, const char *what) {
        struct slice said = slice_sub(slice_trim(a->err.len ? a->err : a->out), 0, 200);
        struct verify_finding *f;

        switch (a->state) {
        case ANSWER_NO_NODE:
                if (j->marks[node].gone)
                        return;
                j->marks[node].gone = true;
                f = say(j, SEVERITY_ERROR, CHECK_NODE, node, -1, "cannot be asked: %.*s", SLICE_ARG(said));
                cure(j, f, "the node must be reachable by ssh without a question, and have this baton in its PATH");
                break;
        case ANSWER_LATE:
                f = say(j, SEVERITY_ERROR, CHECK_HOST, node, -1, "%s: no answer within %u s", what,
                    ANSWER_DEADLINE_MS / 1000);
                cure(j, f, "a file system hangs (a network mount whose server is gone): `df` on this node shows where");
                break;
        default:
                f = say(j, SEVERITY_ERROR, CHECK_HOST, node, -1, "%s: %s", what,
                    a->status ? "the agent failed" : "the answer is not understood");
                cure(j, f, "is baton over there of this version? `baton --version` on both");
        }
        if (f)
                f->unknown = true;
}

/* ---- interfaces --------------------------------------------------------------------------------------------------------- */

static bool is_loopback(struct slice ip) {
        return slice_starts(ip, SLICE_LIT("127.")) || slice_is(ip, "::1");
}

static const struct host_nic *nic_named(const struct host_told *t, struct slice name) {
        for (size_t i = 0; i < t->nic_count; i++)
                if (slice_eq(t->nics[i].name, name))
                        return &t->nics[i];
        return NULL;
}

static void judge_nic(struct judge *j, uint32_t node, struct host *h) {
        const struct node_facts *n = &j->facts->nodes[node];
        const struct host_nic *has = host_nic_with(&h->told, n->ip), *planned = nic_named(&h->told, n->plan.nic);
        const struct host_nic *nic = planned ? planned : has;
        struct slice name = n->plan.nic;

        h->nic = nic;
        if (name.len && !planned && has)
                cure(j,
                    say(j, SEVERITY_ERROR, CHECK_NIC, node, -1, "there is no interface %.*s; %.*s has %.*s",
                        SLICE_ARG(name), SLICE_ARG(has->name), SLICE_ARG(n->ip)),
                    "nic: %.*s for this node in the cluster file", SLICE_ARG(has->name));
        else if (name.len && !planned)
                cure(j, say(j, SEVERITY_ERROR, CHECK_NIC, node, -1, "there is no interface %.*s", SLICE_ARG(name)),
                    "the name of the interface that has %.*s, as `ip -br addr` shows it", SLICE_ARG(n->ip));
        else if (!has && !is_loopback(n->ip))
                cure(j,
                    say(j, SEVERITY_ERROR, CHECK_NIC, node, -1, "no interface has the node's address %.*s",
                        SLICE_ARG(n->ip)),
                    "correct `ip` in the cluster file, or ip address add %.*s/PREFIX dev %.*s", SLICE_ARG(n->ip),
                    SLICE_ARG(name.len ? name : SLICE_LIT("INTERFACE")));
        else if (planned && has && planned != has)
                cure(j,
                    say(j, SEVERITY_ERROR, CHECK_NIC, node, -1, "%.*s is not on interface %.*s but on %.*s",
                        SLICE_ARG(n->ip), SLICE_ARG(name), SLICE_ARG(has->name)),
                    "nic: %.*s for this node in the cluster file, or the other one's address as `ip`",
                    SLICE_ARG(has->name));
        if (nic && !nic->up)
                cure(j, say(j, SEVERITY_ERROR, CHECK_NIC, node, -1, "interface %.*s is down", SLICE_ARG(nic->name)),
                    "ip link set %.*s up", SLICE_ARG(nic->name));
        else if (nic && !nic->carrier)
                cure(j,
                    say(j, SEVERITY_ERROR, CHECK_NIC, node, -1, "interface %.*s is up but has no carrier",
                        SLICE_ARG(nic->name)),
                    "follow its cable: the other end is unplugged, or its port is down");
}

/* Nodes whose interface has another MTU than most. */
static void judge_mtu(struct judge *j, const struct host *hosts) {
        size_t n = j->facts->node_count, most = 0, first = 0;

        for (size_t i = 0; i < n; i++) {
                size_t same = 0;

                for (size_t k = 0; k < n; k++)
                        same += hosts[i].nic && hosts[k].nic && hosts[k].nic->mtu == hosts[i].nic->mtu;
                if (same > most) {
                        most = same;
                        first = i;
                }
        }
        for (size_t i = 0; i < n; i++) {
                struct verify_finding *f;

                if (!hosts[i].nic || hosts[i].nic->mtu == hosts[first].nic->mtu)
                        continue;
                f = say(j, SEVERITY_WARNING, CHECK_MTU, (int64_t)i, -1, "the mtu of %.*s is %lld, %.*s's %.*s has %lld",
                    SLICE_ARG(hosts[i].nic->name), (long long)hosts[i].nic->mtu, SLICE_ARG(j->facts->nodes[first].name),
                    SLICE_ARG(hosts[first].nic->name), (long long)hosts[first].nic->mtu);
                peer(f, (int64_t)first, -1);
                cure(j, f, "ip link set %.*s mtu %lld, where the switch carries it", SLICE_ARG(hosts[i].nic->name),
                    (long long)hosts[first].nic->mtu);
        }
}

/* ---- ports that others may take, proxies, limits ---------------------------------------------------------------------------- */

static void judge_ephemeral(struct judge *j, uint32_t node, const struct host_told *t) {
        const struct host_plan *p = &j->facts->nodes[node].plan;
        struct buf runs = {0};
        const char *whose = NULL;

        for (size_t i = 0; i < p->port_count; i++) {
                uint16_t first = p->ports[i].port, last = first;

                if (first < t->ephemeral_first || first > t->ephemeral_last || host_port_in_list(t->reserved, first))
                        continue;
                whose = whose ? whose : p->ports[i].whose;
                while (i + 1 < p->port_count && p->ports[i + 1].port == last + 1 && last + 1u <= t->ephemeral_last &&
                       !host_port_in_list(t->reserved, (uint16_t)(last + 1))) {
                        last++;
                        i++;
                }
                buf_printf(&runs, runs.len ? ",%u" : "%u", first);
                if (last > first)
                        buf_printf(&runs, "-%u", last);
        }
        if (runs.len)
                cure(j,
                    say(j, SEVERITY_WARNING, CHECK_EPHEMERAL, node, -1,
                        "planned ports %s (the first: %s) lie in %u..%u, from which outgoing connections are served, "
                        "and "
                        "are not reserved",
                        buf_cstr(&runs), whose, t->ephemeral_first, t->ephemeral_last),
                    "sysctl -w net.ipv4.ip_local_reserved_ports=%.*s%s%s, and in /etc/sysctl.d to keep it",
                    SLICE_ARG(t->reserved), t->reserved.len ? "," : "", buf_cstr(&runs));
        buf_free(&runs);
}

/* Lists of addresses beyond this are left to the reader. */
#define LISTED_MAX 8

static void judge_proxy(struct judge *j, uint32_t node, const struct host_told *t) {
        const struct facts *f = j->facts;
        size_t caught = 0, first = 0;
        struct buf names = {0}, ips = {0};

        for (size_t i = 0; i < f->node_count; i++) {
                if (!host_proxy_catches(t->no_proxy, f->nodes[i].ip))
                        continue;
                if (!caught++)
                        first = i;
                if (caught <= LISTED_MAX)
                        buf_printf(&ips, "%s%.*s", ips.len ? "," : "", SLICE_ARG(f->nodes[i].ip));
        }
        for (size_t i = 0; i < t->proxy_count; i++)
                buf_printf(&names, "%s%.*s=%.*s", names.len ? ", " : "", SLICE_ARG(t->proxies[i].name),
                    SLICE_ARG(t->proxies[i].value));
        if (t->proxy_count && caught)
                cure(j,
                    say(j, f->hosts.planned && f->nodes[node].plan.inherits_proxy ? SEVERITY_ERROR : SEVERITY_WARNING,
                        CHECK_PROXY, node, -1, "%s would catch %zu of %zu node addresses (%.*s); no_proxy is \"%.*s\"",
                        buf_cstr(&names), caught, f->node_count, SLICE_ARG(f->nodes[first].ip), SLICE_ARG(t->no_proxy)),
                    "unset them for engines and for clients of the nodes, or add %s%s to no_proxy",
                    caught > LISTED_MAX ? "all node addresses, such as " : "", buf_cstr(&ips));
        buf_free(&names);
        buf_free(&ips);
}

static void judge_limits(struct judge *j, uint32_t node, const struct host_told *t) {
        const struct node_facts *n = &j->facts->nodes[node];
        int64_t threads = (int64_t)n->plan.ranks * THREADS_PER_RANK;
        int64_t files = j->facts->platform == PLATFORM_CPU ? NOFILE_MIN_CPU : NOFILE_MIN;

        if (t->nofile.hard >= 0 && t->nofile.hard < files)
                cure(j,
                    say(j, SEVERITY_WARNING, CHECK_LIMIT, node, -1,
                        "at most %lld files may be open (nofile), %lld are wanted", (long long)t->nofile.hard,
                        (long long)files),
                    "nofile 1048576 in /etc/security/limits.conf, LimitNOFILE= of the unit, or --ulimit nofile=1048576 "
                    "of the container");
        /* The kernel holds root to neither of the two. */
        if (t->root)
                return;
        if (j->facts->platform != PLATFORM_CPU && n->plan.ranks && t->memlock.soft >= 0)
                cure(j,
                    say(j, SEVERITY_WARNING, CHECK_LIMIT, node, -1,
                        "%lld KiB of memory may be locked (memlock): RDMA registers all of the KV cache",
                        (long long)t->memlock.soft / 1024),
                    "memlock unlimited in /etc/security/limits.conf, LimitMEMLOCK=infinity, or --ulimit memlock=-1");
        if (t->nproc.soft >= 0 && t->nproc.soft < threads)
                cure(j,
                    say(j, SEVERITY_WARNING, CHECK_LIMIT, node, -1,
                        "%lld threads and processes are allowed (nproc); %zu ranks may want %lld",
                        (long long)t->nproc.soft, n->plan.ranks, (long long)threads),
                    "nproc unlimited in /etc/security/limits.conf, or LimitNPROC=infinity");
}

/* ---- space -------------------------------------------------------------------------------------------------------------- */

static void judge_space(struct judge *j, uint32_t node, const struct host_told *t) {
        const struct facts *f = j->facts;
        uint64_t logs = (f->nodes[node].plan.ranks + 1) * f->hosts.log_bytes;

        for (size_t i = 0; i < t->space_count; i++) {
                const struct host_space *s = &t->spaces[i];
                bool shm = slice_is(s->use, "shm"), of_logs = slice_is(s->use, "logs");
                uint64_t wanted = shm ? SHM_FREE_MIN : of_logs ? logs : TMP_FREE_MIN;

                if (shm && (f->platform == PLATFORM_CPU || !f->nodes[node].plan.ranks))
                        continue;
                if (s->error.len) {
                        if (!slice_is(s->use, "model")) /* which the check of its files tells better */
                                cure(j,
                                    say(j, shm ? SEVERITY_WARNING : SEVERITY_ERROR, shm ? CHECK_SHM : CHECK_DISK, node,
                                        -1, "%.*s cannot be looked at: %.*s", SLICE_ARG(s->path), SLICE_ARG(s->error)),
                                    shm ? "mount -t tmpfs tmpfs /dev/shm" : "mend its file system or its permissions");
                        continue;
                }
                if (s->free >= wanted || (s->read_only && slice_is(s->use, "model")))
                        continue;
                if (shm)
                        cure(j,
                            say(j, SEVERITY_WARNING, CHECK_SHM, node, -1, "/dev/shm has %llu of %llu MiB free",
                                (unsigned long long)(s->free / MIB), (unsigned long long)(s->all / MIB)),
                            s->all < SHM_FREE_MIN ? "--shm-size=16g of the container (an emptyDir of medium Memory in "
                                                    "Kubernetes), or mount "
                                                    "-o remount,size=50%% /dev/shm"
                                                  : "remove what ended processes have left in /dev/shm");
                else
                        cure(j,
                            say(j, SEVERITY_WARNING, CHECK_DISK, node, -1, "%.*s has %llu MiB free, %s want %llu",
                                SLICE_ARG(s->path), (unsigned long long)(s->free / MIB),
                                of_logs ? "logs" : "temporary files", (unsigned long long)(wanted / MIB)),
                            "make room%s",
                            of_logs ? ", or set supervise.log_bytes, log_files or state_dir in the cluster file" : "");
        }
}

/* ---- clocks ------------------------------------------------------------------------------------------------------------- */

static int compare_i64(const void *a, const void *b) {
        int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;

        return (x > y) - (x < y);
}

/* The node with the middle clock: of two, the slower one. */
static int64_t middle_clock(struct judge *j) {
        const struct facts *f = j->facts;
        int64_t *ahead = arena_array(j->arena, f->node_count + 1, sizeof(*ahead));
        size_t n = 0;

        if (!ahead) {
                j->findings->failed = true;
                return -1;
        }
        for (size_t i = 0; i < f->node_count; i++)
                if (f->nodes[i].host.clock_known)
                        ahead[n++] = f->nodes[i].host.clock_ahead_ns;
        if (!n)
                return -1;
        qsort(ahead, n, sizeof(*ahead), compare_i64);
        for (size_t i = 0; i < f->node_count; i++)
                if (f->nodes[i].host.clock_known && f->nodes[i].host.clock_ahead_ns == ahead[(n - 1) / 2])
                        return (int64_t)i;
        return -1;
}

static void judge_clock(struct judge *j, uint32_t node, int64_t middle) {
        const struct host_facts *h = &j->facts->nodes[node].host, *m;
        int64_t ahead, bound;
        struct verify_finding *f;

        if (middle < 0 || node == middle)
                return;
        m = &j->facts->nodes[middle].host;
        ahead = h->clock_ahead_ns - m->clock_ahead_ns;
        bound = (int64_t)(h->clock_bound_ns + m->clock_bound_ns);
        if (!h->clock_known || bound > CLOCK_WARN_NS) {
                f = say(j, SEVERITY_WARNING, CHECK_CLOCK, node, -1, "its clock could not be compared: %s",
                    h->clock_known ? "the way there takes too long" : "it was not told");
                if (f)
                        f->unknown = true;
                return;
        }
        if (llabs(ahead) - bound <= CLOCK_WARN_NS)
                return;
        f = say(j, llabs(ahead) > CLOCK_ERROR_NS ? SEVERITY_ERROR : SEVERITY_WARNING, CHECK_CLOCK, node, -1,
            "its clock is %.1f s %s %.*s's (± %.1f ms)", (double)llabs(ahead) / 1e9, ahead > 0 ? "ahead of" : "behind",
            SLICE_ARG(j->facts->nodes[middle].name), (double)bound / 1e6);
        peer(f, middle, -1);
        cure(j, f, "`chronyc tracking` or `timedatectl` on both: let all nodes follow one time server");
}

/* ---- the model's files ---------------------------------------------------------------------------------------------------- */

static uint64_t model_digest(const struct host_model *m) {
        uint64_t digest = 0;

        for (size_t i = 0; i < m->count; i++) {
                digest = hash64(m->files[i].name, digest);
                digest = hash64(slice_of(&m->files[i].size, sizeof(m->files[i].size)), digest);
                digest = hash64(m->files[i].hash, digest);
        }
        return digest;
}

/* How two folders differ: the first few files by name. */
static const char *model_differences(
    struct judge *j, const struct host_model *m, const struct host_model *usual, struct slice of) {
        struct buf b = {0};
        size_t a = 0, k = 0, told = 0;
        const char *text;

        while (a < m->count || k < usual->count) {
                int order = a == m->count       ? 1
                            : k == usual->count ? -1
                                                : slice_cmp(m->files[a].name, usual->files[k].name);
                const struct host_file *mine = &m->files[a], *theirs = &usual->files[k];
                bool same = order == 0 && mine->size == theirs->size && slice_eq(mine->hash, theirs->hash);

                if (!same && told++ < 3) {
                        struct slice name = order > 0 ? theirs->name : mine->name;

                        buf_printf(&b, "%s%.*s ", b.len ? ", " : "", SLICE_ARG(name));
                        if (order > 0)
                                buf_add_str(&b, "is missing");
                        else if (order < 0)
                                buf_printf(&b, "is not on %.*s", SLICE_ARG(of));
                        else if (mine->size != theirs->size)
                                buf_printf(&b, "has %llu bytes, on %.*s %llu", (unsigned long long)mine->size,
                                    SLICE_ARG(of), (unsigned long long)theirs->size);
                        else
                                buf_printf(&b, "differs from %.*s's", SLICE_ARG(of));
                }
                a += order <= 0;
                k += order >= 0;
        }
        if (told > 3)
                buf_printf(&b, ", and %zu more", told - 3);
        text = arena_copy(j->arena, buf_slice(&b)).ptr;
        buf_free(&b);
        return text ? text : "";
}

static bool has_file(const struct host_model *m, const char *name) {
        for (size_t i = 0; i < m->count; i++)
                if (slice_is(m->files[i].name, name))
                        return true;
        return false;
}

/* Reads what a node told of its model; false when there is nothing to compare, which has been said. */
static bool judge_model_alone(struct judge *j, uint32_t node, struct host *h) {
        const struct node_facts *n = &j->facts->nodes[node];
        const struct host_model *m = &h->model;

        if (!*j->facts->hosts.model || !n->plan.ranks || n->host.facts.state == ANSWER_NO_NODE)
                return false;
        if (!host_answered(&n->host.model) || host_model_parse(n->host.model.out, j->arena, &h->model) < 0) {
                say_host_trouble(j, node, &n->host.model, "the files of the model");
                return false;
        }
        if (m->error.len) {
                cure(j,
                    say(j, SEVERITY_ERROR, CHECK_MODEL, node, -1, "%s: %.*s", j->facts->hosts.model,
                        SLICE_ARG(m->error)),
                    "copy or mount the model there: all nodes load it from the path of the cluster file");
                return false;
        }
        for (size_t i = 0; i < m->count; i++)
                if (m->files[i].error.len) {
                        cure(j,
                            say(j, SEVERITY_ERROR, CHECK_MODEL, node, -1, "%s/%.*s cannot be read: %.*s",
                                j->facts->hosts.model, SLICE_ARG(m->files[i].name), SLICE_ARG(m->files[i].error)),
                            "give the user of the engines the right to read it; a link that leads nowhere wants its "
                            "file");
                        return false;
                }
        if (!has_file(m, "config.json")) {
                cure(j, say(j, SEVERITY_ERROR, CHECK_MODEL, node, -1, "%s has no config.json", j->facts->hosts.model),
                    "is it the folder of a checkpoint? All of its files belong there");
                return false;
        }
        h->digest = model_digest(m);
        return true;
}

static void judge_models(struct judge *j, struct host *hosts) {
        const struct facts *f = j->facts;
        size_t most = 0, usual = 0;

        for (uint32_t i = 0; i < f->node_count; i++)
                hosts[i].model_known = judge_model_alone(j, i, &hosts[i]);
        for (size_t i = 0; i < f->node_count; i++) {
                size_t same = 0;

                for (size_t k = 0; k < f->node_count; k++)
                        same += hosts[i].model_known && hosts[k].model_known && hosts[k].digest == hosts[i].digest;
                if (same > most) {
                        most = same;
                        usual = i;
                }
        }
        for (size_t i = 0; i < f->node_count; i++) {
                struct verify_finding *v;

                if (!hosts[i].model_known || hosts[i].digest == hosts[usual].digest)
                        continue;
                v = say(j, SEVERITY_ERROR, CHECK_MODEL, (int64_t)i, -1, "%s: %s", f->hosts.model,
                    model_differences(j, &hosts[i].model, &hosts[usual].model, f->nodes[usual].name));
                peer(v, (int64_t)usual, -1);
                cure(j, v, "copy the folder anew from one place to all nodes (`rsync -a --delete`), then verify again");
        }
}

void judge_hosts(struct judge *j) {
        const struct facts *f = j->facts;
        struct host *hosts = arena_array(j->arena, f->node_count + 1, sizeof(*hosts));
        int64_t middle = middle_clock(j);

        if (!hosts) {
                j->findings->failed = true;
                return;
        }
        for (uint32_t i = 0; i < f->node_count; i++) {
                const struct answer *a = &f->nodes[i].host.facts;
                struct host *h = &hosts[i];

                h->known = host_answered(a) && host_told_parse(a->out, j->arena, &h->told) == 0;
                if (!h->known) {
                        say_host_trouble(j, i, a, "interfaces, limits and space");
                        continue;
                }
                judge_nic(j, i, h);
                judge_ephemeral(j, i, &h->told);
                judge_proxy(j, i, &h->told);
                judge_limits(j, i, &h->told);
                judge_space(j, i, &h->told);
                judge_clock(j, i, middle);
        }
        judge_mtu(j, hosts);
        judge_models(j, hosts);
}
