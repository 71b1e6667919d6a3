/* machine.c - how much of the machine this process may use.
 *
 * Limits of cgroups count at every level from the process's own up to the root that is mounted here. Inside a container
 * /proc/self/cgroup may name a path that its mount does not show; then only the mount's root is there to be read, which is
 * the container's own cgroup. */
#include "os/machine.h"
#include <dirent.h>
#include <errno.h>
#include <limits.h>
#include <math.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <unistd.h>

/* The largest file read here is memory.stat with some 3 KB; /proc/cpuinfo is read by the line. */
#define TEXT_MAX 16384

/* Reads "DIR/NAME" as text; false when there is nothing to read. */
static bool read_small(const char *dir, const char *name, char *to, size_t size) {
        char path[PATH_MAX];
        size_t n;
        FILE *f;

        if ((size_t)snprintf(path, sizeof(path), "%s/%s", dir, name) >= sizeof(path))
                return false;
        f = fopen(path, "re");
        if (!f)
                return false;
        n = fread(to, 1, size - 1, f);
        fclose(f);
        to[n] = 0;
        return n > 0;
}

static bool read_number(const char *dir, const char *name, uint64_t *ret_value) {
        char text[64];

        return read_small(dir, name, text, sizeof(text)) &&
               slice_to_u64(slice_trim(slice_str(text)), ret_value) == 0; /* "max" and "-1" are none */
}

/* The number after `key` on the line that begins with it; 0 when there is none. */
static uint64_t number_after(const char *text, const char *key) {
        struct slice rest = slice_str(text), line;
        size_t len = strlen(key);

        while (slice_split(&rest, '\n', &line))
                if (slice_starts(line, slice_of(key, len)) && line.len > len)
                        return strtoull(line.ptr + len, NULL, 10);
        return 0;
}

/* ---- cgroups -------------------------------------------------------------------------------------------------------- */

struct cgroup {
        char dir[PATH_MAX]; /* of the level looked at */
        size_t mount_len;   /* of its part that is the mount point */
};

/* The process's cgroup in the hierarchy of a v1 controller, or in the unified one (controller NULL). */
static bool cgroup_find(const char *root, const char *controller, struct cgroup *ret) {
        char text[TEXT_MAX];
        struct slice rest, line;

        if (!read_small(root, "proc/self/cgroup", text, sizeof(text)))
                return false;
        ret->mount_len = (size_t)snprintf(ret->dir, sizeof(ret->dir), "%s/sys/fs/cgroup%s%s", root,
            controller ? "/" : "", controller ? controller : "");
        rest = slice_str(text);
        while (slice_split(&rest, '\n', &line)) { /* ID:CONTROLLERS:PATH */
                struct slice id, list, name;
                bool ours = false;

                if (!slice_split(&line, ':', &id) || !slice_split(&line, ':', &list) || !line.ptr)
                        continue;
                if (!controller)
                        ours = list.len == 0;
                while (controller && slice_split(&list, ',', &name))
                        ours |= slice_is(name, controller);
                if (!ours)
                        continue;
                /* A path with ".." lies outside of what this namespace shows. */
                if (slice_find_slice(line, SLICE_LIT("/.."), 0) < line.len || line.len <= 1)
                        line = SLICE_NONE;
                return (size_t)snprintf(ret->dir + ret->mount_len, sizeof(ret->dir) - ret->mount_len, "%.*s",
                           SLICE_ARG(line)) < sizeof(ret->dir) - ret->mount_len;
        }
        return false;
}

/* One level up. False at the mount's root. */
static bool cgroup_up(struct cgroup *g) {
        size_t len = strlen(g->dir);

        if (len <= g->mount_len)
                return false;
        while (g->dir[len] != '/')
                len--;
        g->dir[len] = 0;
        return len >= g->mount_len;
}

static bool unified(const char *root) {
        char text[TEXT_MAX];

        return read_small(root, "sys/fs/cgroup/cgroup.controllers", text, sizeof(text));
}

static double level_quota(const char *dir, bool v2) {
        char text[64];
        double quota, period;
        uint64_t q, p;

        if (v2) /* "max 100000" or "150000 100000" */
                return read_small(dir, "cpu.max", text, sizeof(text)) &&
                               sscanf(text, "%lf %lf", &quota, &period) == 2 && quota > 0 && period > 0
                           ? quota / period
                           : 0;
        return read_number(dir, "cpu.cfs_quota_us", &q) && read_number(dir, "cpu.cfs_period_us", &p) && q && p
                   ? (double)q / (double)p
                   : 0;
}

double machine_cpu_quota(const char *root) {
        bool v2 = unified(root);
        struct cgroup g;
        double least = 0;

        if (!cgroup_find(root, v2 ? NULL : "cpu", &g))
                return 0;
        do {
                double quota = level_quota(g.dir, v2);

                if (quota > 0 && (least == 0 || quota < least))
                        least = quota;
        } while (cgroup_up(&g));
        return least;
}

/* The limit of one level and what it leaves: what counts against it, less file pages that are dropped first. A level
 * without a limit leaves UINT64_MAX. */
static void level_memory(const char *dir, bool v2, uint64_t *ret_limit, uint64_t *ret_left) {
        char stat[TEXT_MAX];
        uint64_t limit = UINT64_MAX, high = UINT64_MAX, used, droppable = 0;

        read_number(dir, v2 ? "memory.max" : "memory.limit_in_bytes", &limit);
        if (v2 && read_number(dir, "memory.high", &high) && high < limit)
                limit = high; /* beyond it the kernel stalls whoever allocates */
        *ret_limit = *ret_left = limit;
        if (limit == UINT64_MAX || !read_number(dir, v2 ? "memory.current" : "memory.usage_in_bytes", &used))
                return;
        if (read_small(dir, "memory.stat", stat, sizeof(stat)))
                droppable = number_after(stat, v2 ? "inactive_file " : "total_inactive_file ");
        used = used > droppable ? used - droppable : 0;
        *ret_left = limit > used ? limit - used : 0;
}

static void least_memory(const char *root, uint64_t *ret_limit, uint64_t *ret_left) {
        bool v2 = unified(root);
        struct cgroup g;

        *ret_limit = *ret_left = UINT64_MAX;
        if (!cgroup_find(root, v2 ? NULL : "memory", &g))
                return;
        do {
                uint64_t limit, left;

                level_memory(g.dir, v2, &limit, &left);
                if (limit < *ret_limit)
                        *ret_limit = limit;
                if (left < *ret_left)
                        *ret_left = left;
        } while (cgroup_up(&g));
}

/* ---- the machine ---------------------------------------------------------------------------------------------------- */

static uint64_t meminfo(const char *root, const char *key) {
        char text[TEXT_MAX];

        return read_small(root, "proc/meminfo", text, sizeof(text)) ? number_after(text, key) << 10 : 0;
}

uint64_t machine_memory_total(const char *root) {
        uint64_t total = meminfo(root, "MemTotal:"), limit, left;

        least_memory(root, &limit, &left);
        return limit < total ? limit : total;
}

uint64_t machine_memory_available(const char *root) {
        uint64_t available = meminfo(root, "MemAvailable:"), limit, left;

        least_memory(root, &limit, &left);
        return left < available ? left : available;
}

void machine_cpu_model(const char *root, char *ret_text, size_t size) {
        char path[PATH_MAX], line[512];
        FILE *f;

        snprintf(ret_text, size, "unknown");
        if ((size_t)snprintf(path, sizeof(path), "%s/proc/cpuinfo", root) >= sizeof(path))
                return;
        f = fopen(path, "re");
        while (f && fgets(line, sizeof(line), f)) {
                char *colon = strchr(line, ':');
                struct slice name = colon ? slice_trim(slice_str(colon + 1)) : SLICE_NONE;

                if (name.len && slice_starts(slice_str(line), SLICE_LIT("model name"))) {
                        snprintf(ret_text, size, "%.*s", SLICE_ARG(name));
                        break;
                }
        }
        if (f)
                fclose(f);
}

uint64_t os_memory_total(void) {
        return machine_memory_total("");
}

uint64_t os_memory_available(void) {
        return machine_memory_available("");
}

void os_cpu_model(char *ret_text, size_t size) {
        machine_cpu_model("", ret_text, size);
}

/* As many as the kernel can be built for. */
#define CPUS_MAX 8192

size_t os_cpu_list(unsigned *ret_cpus, size_t max) {
        cpu_set_t set[CPUS_MAX / CPU_SETSIZE];
        size_t n = 0;

        CPU_ZERO_S(sizeof(set), set);
        if (sched_getaffinity(0, sizeof(set), set) < 0)
                return 0;
        for (unsigned i = 0; i < CPUS_MAX && n < max; i++)
                if (CPU_ISSET_S(i, sizeof(set), set))
                        ret_cpus[n++] = i;
        return n;
}

/* Is a number in a list such as "0-3,8"? */
static bool list_has(struct slice list, unsigned number) {
        struct slice range;

        while (slice_split(&list, ',', &range)) {
                struct slice first = SLICE_NONE, last;
                uint64_t from, to;

                slice_split(&range, '-', &first);
                last = range.len ? range : first;
                if (slice_to_u64(first, &from) == 0 && slice_to_u64(last, &to) == 0 && number >= from && number <= to)
                        return true;
        }
        return false;
}

static int by_node(const void *a, const void *b) {
        const struct os_cpu *x = a, *y = b;

        return x->node != y->node ? (x->node > y->node) - (x->node < y->node)
                                  : (x->number > y->number) - (x->number < y->number);
}

void machine_cpu_nodes(const char *root, struct os_cpu *cpus, size_t count) {
        char path[PATH_MAX], text[TEXT_MAX];
        struct dirent *at;
        DIR *dir;

        for (size_t i = 0; i < count; i++)
                cpus[i].node = 0;
        snprintf(path, sizeof(path), "%s/sys/devices/system/node", root);
        dir = opendir(path);
        while (dir && (at = readdir(dir))) {
                char name[320];
                unsigned node;
                int end = 0;

                if (sscanf(at->d_name, "node%5u%n", &node, &end) != 1 || at->d_name[end])
                        continue;
                snprintf(name, sizeof(name), "%s/cpulist", at->d_name);
                if (!read_small(path, name, text, sizeof(text)))
                        continue;
                for (size_t i = 0; i < count; i++)
                        if (list_has(slice_trim(slice_str(text)), cpus[i].number))
                                cpus[i].node = node;
        }
        if (dir)
                closedir(dir);
        qsort(cpus, count, sizeof(*cpus), by_node);
}

size_t os_cpus(struct os_cpu *ret_cpus, size_t max) {
        unsigned list[CPUS_MAX];
        size_t count = os_cpu_list(list, max < CPUS_MAX ? max : CPUS_MAX);

        for (size_t i = 0; i < count; i++)
                ret_cpus[i].number = list[i];
        machine_cpu_nodes("", ret_cpus, count);
        return count;
}

unsigned os_cpu_count(void) {
        unsigned list[CPUS_MAX], count = (unsigned)os_cpu_list(list, CPUS_MAX);
        double quota = machine_cpu_quota("");

        if (count == 0)
                count = 1;
        return quota > 0 && quota < count ? (unsigned)ceil(quota) : count;
}

void os_boot_id(char ret_text[40]) {
        if (!read_small("/proc/sys/kernel/random", "boot_id", ret_text, 40))
                ret_text[0] = 0;
        ret_text[strcspn(ret_text, "\n")] = 0;
}

uint64_t os_raise_file_limit(void) {
        struct rlimit limit, raised;

        if (getrlimit(RLIMIT_NOFILE, &limit) < 0)
                return 1024;
        raised = (struct rlimit){limit.rlim_max, limit.rlim_max};
        if (limit.rlim_cur < limit.rlim_max && setrlimit(RLIMIT_NOFILE, &raised) == 0)
                return raised.rlim_cur;
        return limit.rlim_cur;
}
