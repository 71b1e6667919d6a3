/* host.c - what a node tells about itself besides its NPUs, as one JSON object on stdout. It runs as a process of its own,
 * so that a file system that hangs takes no agent with it. Only reads. */
#include "base/file.h"
#include "base/hash.h"
#include "base/json.h"
#include "verify/agent.h"
#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <ifaddrs.h>
#include <limits.h>
#include <net/if.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

/* ---- interfaces ------------------------------------------------------------------------------------------------------- */

/* Asked of the socket: what is mounted at /sys may be another namespace's. -1 when it is not told. */
static int64_t mtu_of(int fd, const char *name) {
        struct ifreq request = {0};

        snprintf(request.ifr_name, sizeof(request.ifr_name), "%s", name);
        return ioctl(fd, SIOCGIFMTU, &request) < 0 ? -1 : request.ifr_mtu;
}

static void write_addresses(struct json_writer *w, const struct ifaddrs *all, const char *name) {
        json_open(w, '[');
        for (const struct ifaddrs *a = all; a; a = a->ifa_next) {
                char text[INET6_ADDRSTRLEN];
                const void *address;

                if (!a->ifa_addr || strcmp(a->ifa_name, name) != 0)
                        continue;
                if (a->ifa_addr->sa_family == AF_INET)
                        address = &((const struct sockaddr_in *)(const void *)a->ifa_addr)->sin_addr;
                else if (a->ifa_addr->sa_family == AF_INET6)
                        address = &((const struct sockaddr_in6 *)(const void *)a->ifa_addr)->sin6_addr;
                else
                        continue;
                if (inet_ntop(a->ifa_addr->sa_family, address, text, sizeof(text)))
                        json_str(w, text);
        }
        json_close(w, ']');
}

static void write_nics(struct json_writer *w) {
        struct ifaddrs *all = NULL;
        struct if_nameindex *names = if_nameindex();
        int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);

        json_key(w, "nics");
        json_open(w, '[');
        if (names && getifaddrs(&all) == 0)
                for (struct if_nameindex *n = names; n->if_name; n++) {
                        unsigned flags = 0;

                        for (struct ifaddrs *a = all; a; a = a->ifa_next)
                                if (!strcmp(a->ifa_name, n->if_name))
                                        flags |= a->ifa_flags;
                        json_open(w, '{');
                        json_key(w, "name");
                        json_str(w, n->if_name);
                        json_key(w, "up");
                        json_bool(w, flags & IFF_UP);
                        json_key(w, "carrier"); /* a cable and somebody at its other end */
                        json_bool(w, flags & IFF_RUNNING);
                        json_key(w, "mtu");
                        json_i64(w, mtu_of(fd, n->if_name));
                        json_key(w, "addresses");
                        write_addresses(w, all, n->if_name);
                        json_close(w, '}');
                }
        json_close(w, ']');
        if (fd >= 0)
                close(fd);
        if (all)
                freeifaddrs(all);
        if (names)
                if_freenameindex(names);
}

/* ---- ports, proxies, limits ------------------------------------------------------------------------------------------- */

static void write_text_of(struct json_writer *w, const char *key, const char *path) {
        struct buf text = {0};

        json_key(w, key);
        if (file_read_whole(path, ANSWER_BYTES_MAX / 2, &text, NULL) == 0)
                json_string(w, slice_trim(buf_slice(&text)));
        else
                json_null(w);
        buf_free(&text);
}

/* Without the user and password that may stand in it. */
static struct slice without_secret(struct slice url) {
        size_t scheme = slice_find_slice(url, SLICE_LIT("://"), 0), at;

        scheme = scheme < url.len ? scheme + 3 : 0;
        for (at = url.len; at > scheme && url.ptr[at - 1] != '@'; at--) {
        }
        return slice_sub(url, at, url.len);
}

static void write_proxies(struct json_writer *w) {
        static const char *const names[] = {
            "http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"};
        const char *no = getenv("no_proxy");

        json_key(w, "proxies");
        json_open(w, '[');
        for (size_t i = 0; i < sizeof(names) / sizeof(*names); i++) {
                const char *value = getenv(names[i]);

                if (!value || !*value)
                        continue;
                json_open(w, '{');
                json_key(w, "name");
                json_str(w, names[i]);
                json_key(w, "value");
                json_string(w, without_secret(slice_str(value)));
                json_close(w, '}');
        }
        json_close(w, ']');
        json_key(w, "no_proxy");
        json_str(w, no ? no : getenv("NO_PROXY") ? getenv("NO_PROXY") : "");
}

static void write_limit(struct json_writer *w, const char *name, int resource) {
        struct rlimit l = {0};

        getrlimit(resource, &l);
        json_key(w, name);
        json_open(w, '[');
        json_i64(w, l.rlim_cur == RLIM_INFINITY ? -1 : (int64_t)l.rlim_cur);
        json_i64(w, l.rlim_max == RLIM_INFINITY ? -1 : (int64_t)l.rlim_max);
        json_close(w, ']');
}

static void write_limits(struct json_writer *w) {
        json_key(w, "root");
        json_bool(w, geteuid() == 0);
        json_key(w, "limits"); /* soft, hard; -1: none */
        json_open(w, '{');
        write_limit(w, "nofile", RLIMIT_NOFILE);
        write_limit(w, "memlock", RLIMIT_MEMLOCK);
        write_limit(w, "nproc", RLIMIT_NPROC);
        json_close(w, '}');
}

/* ---- space ------------------------------------------------------------------------------------------------------------ */

/* Space where `path` is, or will be: at its nearest directory that exists. */
static void write_space(struct json_writer *w, const char *use, const char *path) {
        struct statvfs v;
        char part[PATH_MAX];
        int r;

        if (snprintf(part, sizeof(part), "%s", path) >= (int)sizeof(part))
                return;
        while ((r = statvfs(part, &v)) < 0 && errno == ENOENT) {
                char *slash = strrchr(part, '/');

                if (!slash)
                        snprintf(part, sizeof(part), ".");
                else if (slash == part)
                        part[1] = 0;
                else
                        *slash = 0;
        }
        json_open(w, '{');
        json_key(w, "use");
        json_str(w, use);
        json_key(w, "path");
        json_str(w, path);
        if (r < 0) {
                json_key(w, "error");
                json_str(w, strerror(errno));
        } else {
                json_key(w, "free"); /* bytes, for who asks */
                json_u64(w, (uint64_t)(geteuid() ? v.f_bavail : v.f_bfree) * v.f_frsize);
                json_key(w, "all");
                json_u64(w, (uint64_t)v.f_blocks * v.f_frsize);
                json_key(w, "read_only");
                json_bool(w, v.f_flag & ST_RDONLY);
        }
        json_close(w, '}');
}

static void write_facts(const char *model, const char *state_dir, struct buf *out) {
        struct json_writer w = {.out = out};

        json_open(&w, '{');
        write_nics(&w);
        write_text_of(&w, "ephemeral", "/proc/sys/net/ipv4/ip_local_port_range");
        write_text_of(&w, "reserved", "/proc/sys/net/ipv4/ip_local_reserved_ports");
        write_proxies(&w);
        write_limits(&w);
        json_key(&w, "space");
        json_open(&w, '[');
        write_space(&w, "shm", "/dev/shm");
        write_space(&w, "tmp", "/tmp");
        if (*model)
                write_space(&w, "model", model);
        if (*state_dir)
                write_space(&w, "logs", state_dir);
        json_close(&w, ']');
        json_close(&w, '}');
}

/* ---- the model's files ------------------------------------------------------------------------------------------------ */

/* The index of V3's 163 shards takes 9 MB, its tokenizer 8 MB. */
#define HASHED_BYTES_MAX (64u << 20)
#define MODEL_FILES_MAX  2048u

static bool ends_with(const char *name, const char *end) {
        return slice_ends(slice_str(name), slice_str(end));
}

/* What decides what is computed. Shards are too large to be read: their sizes must do, and the index names their tensors. */
static bool is_model_file(const char *name) {
        return name[0] != '.' &&
               (ends_with(name, ".json") || ends_with(name, ".safetensors") || ends_with(name, ".bin") ||
                   ends_with(name, ".py") || ends_with(name, ".model") || ends_with(name, ".jinja"));
}

static void write_file(struct json_writer *w, int dir, const char *name) {
        struct stat st;
        bool shard = ends_with(name, ".safetensors") || ends_with(name, ".bin");
        int fd = openat(dir, name, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
        struct buf text = {0};

        json_open(w, '{');
        json_key(w, "name");
        json_str(w, name);
        if (fd < 0 || fstat(fd, &st) < 0 || !S_ISREG(st.st_mode)) {
                json_key(w, "error");
                json_str(w, fd < 0 ? strerror(errno) : "no file");
        } else {
                json_key(w, "size");
                json_u64(w, (uint64_t)st.st_size);
                if (!shard && st.st_size <= HASHED_BYTES_MAX && file_read_fd(fd, HASHED_BYTES_MAX, &text) == 0) {
                        struct hash128 h = hash128(buf_slice(&text), 0);
                        char hex[33];

                        snprintf(
                            hex, sizeof(hex), "%016llx%016llx", (unsigned long long)h.hi, (unsigned long long)h.lo);
                        json_key(w, "hash");
                        json_str(w, hex);
                }
        }
        json_close(w, '}');
        buf_free(&text);
        if (fd >= 0)
                close(fd);
}

static int only_model_files(const struct dirent *d) {
        return is_model_file(d->d_name);
}

static void write_model(const char *path, struct buf *out) {
        struct json_writer w = {.out = out};
        struct dirent **list = NULL;
        int dir = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC), n = -1;

        if (dir >= 0)
                n = scandirat(dir, ".", &list, only_model_files, alphasort);
        json_open(&w, '{');
        if (n < 0) {
                json_key(&w, "error");
                json_str(&w, strerror(errno));
        } else {
                json_key(&w, "files");
                json_open(&w, '[');
                for (int i = 0; i < n; i++) {
                        if (i < (int)MODEL_FILES_MAX)
                                write_file(&w, dir, list[i]->d_name);
                        free(list[i]);
                }
                json_close(&w, ']');
        }
        json_close(&w, '}');
        free(list);
        if (dir >= 0)
                close(dir);
}

int host_answer(const char *const *words, size_t count, int out) {
        struct buf b = {0};
        int status = 2;

        if (count == 3 && !strcmp(words[0], "facts"))
                write_facts(words[1], words[2], &b);
        else if (count == 2 && !strcmp(words[0], "model"))
                write_model(words[1], &b);
        if (b.len && buf_ok(&b))
                status = file_write_fd(out, buf_slice(&b)) < 0 ? 1 : 0;
        buf_free(&b);
        return status;
}
