/* npus.c - see npus.h. */
#include "cli/npus.h"
#include "os/os.h"
#include <arpa/inet.h>
#include <errno.h>
#include <ifaddrs.h>
#include <netdb.h>
#include <stdio.h>
#include <unistd.h>

int cli_machines(const char *path, struct arena *arena, struct cluster **ret_cluster, struct facts *ret_facts) {
        struct findings findings = {.arena = arena};
        struct error e = {0};
        int r = cluster_read(path, arena, ret_cluster, &findings, &e);

        cli_say_findings(&findings, path);
        if (r < 0)
                return findings_count(&findings, SEVERITY_ERROR) ? EXIT_USAGE : cli_fail(r, &e);
        r = facts_of_cluster(*ret_cluster, arena, ret_facts);
        return r < 0 ? cli_fail(r, &e) : -1;
}

bool cli_has_npus(const struct cluster *c) {
        return c->platform == PLATFORM_ASCEND_A2 || c->platform == PLATFORM_ASCEND_A3 ||
               c->platform == PLATFORM_ASCEND_A5;
}

int cli_npu_cluster(const char *path, struct arena *arena, struct cluster **ret_cluster, struct facts *ret_facts) {
        int r = cli_machines(path, arena, ret_cluster, ret_facts);

        if (r >= 0 || cli_has_npus(*ret_cluster))
                return r;
        fprintf(stderr, "baton: %s: platform %s has no NPUs to ask; this is for ascend-a2, ascend-a3, ascend-a5\n",
            path, platform_name((*ret_cluster)->platform));
        return EXIT_USAGE;
}

bool cli_is_own_address(struct slice ip) {
        struct ifaddrs *all, *a;
        bool own = false;

        if (getifaddrs(&all) < 0)
                return false;
        for (a = all; a && !own; a = a->ifa_next) {
                char text[NI_MAXHOST];
                socklen_t size;

                if (!a->ifa_addr || (a->ifa_addr->sa_family != AF_INET && a->ifa_addr->sa_family != AF_INET6))
                        continue;
                size = a->ifa_addr->sa_family == AF_INET ? sizeof(struct sockaddr_in) : sizeof(struct sockaddr_in6);
                own = getnameinfo(a->ifa_addr, size, text, sizeof(text), NULL, 0, NI_NUMERICHOST) == 0 &&
                      slice_is(ip, text);
        }
        freeifaddrs(all);
        return own;
}

static struct slice ssh_destination(const struct cluster *c, struct slice ip) {
        for (size_t i = 0; c && i < c->node_count; i++)
                if (slice_eq(c->nodes[i].ip, ip) && c->nodes[i].ssh.len)
                        return c->nodes[i].ssh;
        return ip;
}

int cli_npu_agents(const struct cluster *c, const struct facts *facts, const char *remote_baton, struct arena *arena,
    struct agents **ret_agents) {
        struct agent_target *targets = arena_array(arena, facts->node_count, sizeof(*targets));

        if (!targets)
                return -ENOMEM;
        if (remote_baton && !os_ssh_plain_word(remote_baton)) {
                fprintf(stderr, "baton: --remote-baton %s: only letters, digits and /._- can be given to ssh\n",
                    remote_baton);
                return -EINVAL;
        }
        for (size_t i = 0; i < facts->node_count; i++) {
                const struct node_facts *n = &facts->nodes[i];
                struct slice ssh = ssh_destination(c, n->ip);

                targets[i] = (struct agent_target){.name = arena_copy(arena, n->name).ptr, .binary = remote_baton};
                if (!cli_is_own_address(n->ip))
                        targets[i].ssh = arena_copy(arena, ssh).ptr;
                if (!targets[i].name || (!targets[i].ssh && !cli_is_own_address(n->ip)))
                        return -ENOMEM;
        }
        return agents_new(cli_self(arena), targets, facts->node_count, ret_agents);
}

static void say_progress(void *context, const char *what, size_t done, size_t all, struct slice waiting) {
        (void)context;
        fprintf(stderr, "\r%-8s %zu of %zu%s%.*s\033[K", what, done, all, waiting.len ? ", waiting for " : "",
            SLICE_ARG(slice_sub(waiting, 0, 40)));
}

static void say_nothing(void *context, const char *what, size_t done, size_t all, struct slice waiting) {
        (void)context;
        (void)what;
        (void)done;
        (void)all;
        (void)waiting;
}

static bool shows_progress(bool quiet) {
        return !quiet && isatty(STDERR_FILENO) == 1;
}

struct progress cli_npu_progress(bool quiet) {
        return (struct progress){NULL, shows_progress(quiet) ? say_progress : say_nothing};
}

void cli_npu_progress_end(bool quiet) {
        if (shows_progress(quiet))
                fputs("\r\033[K", stderr);
}
