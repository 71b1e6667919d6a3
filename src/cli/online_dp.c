/* online_dp.c - see online_dp.h. */
#include "cli/online_dp.h"
#include "base/json.h"
#include "os/os.h"
#include <errno.h>
#include <netdb.h>
#include <stdio.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#define TEMPLATE "./run_dp_template.sh"
/* More ranks and devices than any machine has; what is told to be wrong is then the number, not its product. */
#define NUMBER_MAX 65535

static int refuse(const char *why) {
        fprintf(stderr, "baton up: %s\n", why);
        return EXIT_USAGE;
}

/* What the script starts though it cannot work, or means nothing, is refused. */
static int check(const struct online_dp *o) {
        int64_t local = o->dp_size_local == -1 ? o->dp_size : o->dp_size_local;

        if (!o->dp_address)
                return refuse("--dp-size wants --dp-address, the address of the node with rank 0");
        if (o->dp_size < 1 || o->dp_size > NUMBER_MAX || o->tp_size < 1 || o->tp_size > NUMBER_MAX)
                return refuse("--dp-size and --tp-size are 1 to 65535");
        if (local < 1 || o->dp_rank_start < 0 || o->dp_rank_start > o->dp_size)
                return refuse("--dp-size-local is -1 (all) or at least 1, --dp-rank-start at least 0");
        if (o->dp_rank_start + local > o->dp_size)
                return refuse("--dp-rank-start and --dp-size-local go past the last rank of --dp-size");
        if (o->dp_size % local || o->dp_rank_start % local)
                return refuse(
                    "--dp-size-local does not divide --dp-size and --dp-rank-start: nodes with different numbers of "
                    "ranks are not planned\n"
                    "    cure: --dp-size-local: the same on all nodes, --dp-rank-start: a multiple of it");
        if (access(TEMPLATE, R_OK) < 0) {
                fprintf(stderr, "baton up: there is no %s here: %s\n", TEMPLATE, strerror(errno));
                return EXIT_NOT_FINE;
        }
        return -1;
}

/* By which address this machine reaches another: what its ranks tell the others, too. */
static int own_address(const char *other, char ret_address[NI_MAXHOST], struct error *e) {
        struct addrinfo hints = {.ai_socktype = SOCK_DGRAM}, *found = NULL;
        struct sockaddr_storage own;
        socklen_t size = sizeof(own);
        int r = getaddrinfo(other, "9", &hints, &found), fd = -1;

        if (r != 0)
                return error_set(e, -EINVAL, "--dp-address %s: %s", other, gai_strerror(r));
        fd = socket(found->ai_family, SOCK_DGRAM | SOCK_CLOEXEC, 0);
        r = 0;
        /* Nothing is sent: connecting a datagram socket only finds the way. */
        if (fd < 0 || connect(fd, found->ai_addr, found->ai_addrlen) < 0 ||
            getsockname(fd, (struct sockaddr *)&own, &size) < 0 ||
            getnameinfo((struct sockaddr *)&own, size, ret_address, NI_MAXHOST, NULL, 0, NI_NUMERICHOST) != 0)
                r = error_set(
                    e, -EHOSTUNREACH, "no way leads from here to --dp-address %s: %s", other, strerror(errno));
        if (fd >= 0)
                close(fd);
        freeaddrinfo(found);
        return r;
}

/* One node for each start of the script. Where the others live the flags do not say, and this node's supervisor does not need:
 * they get addresses that are nobody's (RFC 5737). */
static void write_file(const struct online_dp *o, const char *own, struct buf *out) {
        int64_t local = o->dp_size_local == -1 ? o->dp_size : o->dp_size_local, nodes = o->dp_size / local;

        buf_printf(out,
            "# Made by `baton up --dp-size %lld …` in the place of launch_online_dp.py, anew each time.\n"
            "model: {path: " TEMPLATE "}\n"
            "engine: {kind: template, template: " TEMPLATE ", launcher: launch_online_dp}\n"
            "platform: ascend-a3\nnodes:\n",
            (long long)o->dp_size);
        for (int64_t n = 0; n < nodes; n++) {
                buf_printf(out, "  n%lld: {devices: %lld, ip: ", (long long)n, (long long)(local * o->tp_size));
                if (n == 0)
                        json_add_string(out, slice_str(o->dp_address));
                else if (n == o->dp_rank_start / local)
                        json_add_string(out, slice_str(own));
                else
                        buf_printf(out, "198.51.%lld.%lld", (long long)(100 + n / 250), (long long)(1 + n % 250));
                buf_add_str(out, "}\n");
        }
        buf_printf(out, "decode: {dp: %lld, tp: %lld, api_port: %lld, dp_port: %lld, groups: [[", (long long)o->dp_size,
            (long long)o->tp_size, (long long)o->vllm_start_port, (long long)o->dp_rpc_port);
        for (int64_t n = 0; n < nodes; n++)
                buf_printf(out, "%sn%lld", n ? ", " : "", (long long)n);
        buf_add_str(out, "]]}\n");
}

/* In /tmp anybody may have made the directory first. */
static int own_directory(const char *path, struct error *e) {
        struct stat st;
        int r = os_make_dirs(path, 0700, e);

        if (r == 0 && (lstat(path, &st) < 0 || !S_ISDIR(st.st_mode) || st.st_uid != getuid()))
                r = error_set(e, -EPERM, "%s belongs to somebody else", path);
        return r;
}

int online_dp_file(const struct online_dp *o, struct arena *arena, const char **ret_path, const char **ret_node) {
        char own[NI_MAXHOST] = "";
        char *folder = arena_printf(arena, "/tmp/baton-%u", (unsigned)getuid()), *path, *node;
        struct error e = {0};
        struct buf text = {0};
        int r = check(o);

        if (r >= 0)
                return r;
        path = arena_printf(arena, "%s/online-dp-%lld.yaml", folder ? folder : "", (long long)o->vllm_start_port);
        node =
            arena_printf(arena, "n%lld", (long long)(o->dp_size_local == -1 ? 0 : o->dp_rank_start / o->dp_size_local));
        r = folder && path && node ? own_address(o->dp_address, own, &e) : -ENOMEM;
        if (r == 0)
                r = own_directory(folder, &e);
        if (r == 0) {
                write_file(o, own, &text);
                r = buf_ok(&text) ? os_write_file_atomic(path, buf_slice(&text), 0600, &e) : -ENOMEM;
        }
        buf_free(&text);
        if (r < 0)
                return cli_fail(r, &e);
        *ret_path = path;
        *ret_node = node;
        return -1;
}
