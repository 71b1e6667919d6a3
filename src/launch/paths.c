/* paths.c - where a supervisor keeps its things. */
#include "base/hash.h"
#include "launch/launch.h"
#include "os/os.h"
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

static int choose_dir(const struct cluster *c, struct slice node, char *ret_dir, size_t size, struct error *e) {
        const char *runtime = getenv("XDG_RUNTIME_DIR");
        char real[PATH_MAX];
        uint64_t hash;
        int n;

        if (!realpath(c->file, real))
                snprintf(real, sizeof(real), "%s", c->file);
        hash = hash64(slice_str(real), 0);
        if (c->supervise.state_dir.len)
                n = snprintf(ret_dir, size, "%.*s%s%.*s", SLICE_ARG(c->supervise.state_dir), node.len ? "/" : "",
                    SLICE_ARG(node));
        else if (runtime && runtime[0] == '/' && !node.len)
                n = snprintf(ret_dir, size, "%s/baton/%016llx", runtime, (unsigned long long)hash);
        else
                n = snprintf(ret_dir, size, "/tmp/baton-%u/%016llx%s%.*s", (unsigned)getuid(), (unsigned long long)hash,
                    node.len ? "/" : "", SLICE_ARG(node));
        if (n < 0 || (size_t)n + sizeof("/control.sock") > sizeof(((struct sockaddr_un *)0)->sun_path))
                return error_set(e, -ENAMETOOLONG,
                    "state directory %.80s… is too long for a unix socket: set supervise.state_dir", ret_dir);
        return 0;
}

/* In /tmp anybody may have made the directory first. */
static int check_owner(const char *dir, struct error *e) {
        struct stat st;

        if (lstat(dir, &st) < 0)
                return error_set(e, -errno, "cannot look at %s: %s", dir, strerror(errno));
        if (!S_ISDIR(st.st_mode) || st.st_uid != getuid())
                return error_set(e, -EPERM, "%s belongs to somebody else: set supervise.state_dir", dir);
        if (st.st_mode & 077 && chmod(dir, 0700) < 0)
                return error_set(e, -errno, "cannot make %s private: %s", dir, strerror(errno));
        return 0;
}

int launch_paths(
    const struct cluster *c, struct slice node, bool create, struct launch_paths *ret_paths, struct error *e) {
        struct launch_paths p;
        int r = choose_dir(c, node, p.dir, sizeof(p.dir), e);

        if (r < 0)
                return r;
        snprintf(p.lock, sizeof(p.lock), "%s/lock", p.dir);
        snprintf(p.socket, sizeof(p.socket), "%s/control.sock", p.dir);
        snprintf(p.journal, sizeof(p.journal), "%s/journal.json", p.dir);
        snprintf(p.supervisor_log, sizeof(p.supervisor_log), "%s/supervisor.log", p.dir);
        snprintf(p.logs, sizeof(p.logs), "%s/logs", p.dir);
        snprintf(p.copy, sizeof(p.copy), "%s/cluster.yaml", p.dir);
        if (create) {
                r = os_make_dirs(p.logs, 0700, e);
                if (r == 0)
                        r = check_owner(p.dir, e);
                if (r < 0)
                        return r;
        }
        *ret_paths = p;
        return 0;
}

unsigned launch_stop_ms(const struct cluster *c) {
        return (unsigned)(3 * c->supervise.stop_seconds + 10) * 1000;
}
