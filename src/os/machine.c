/* machine.c - how much of the machine this process may use. */
#include "os/os.h"
#include <ctype.h>
#include <errno.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <unistd.h>

static bool read_small(const char *path, char *to, size_t size) {
        FILE *f = fopen(path, "re");
        size_t n;

        if (!f)
                return false;
        n = fread(to, 1, size - 1, f);
        fclose(f);
        to[n] = 0;
        return n > 0;
}

/* Where this process stands in a cgroup hierarchy: the path after "0::" (v2) or after the controller's name (v1). */
static bool cgroup_path(const char *controller, char *ret_path, size_t size) {
        char text[8192], *line, *save;

        if (!read_small("/proc/self/cgroup", text, sizeof(text)))
                return false;
        for (line = strtok_r(text, "\n", &save); line; line = strtok_r(NULL, "\n", &save)) {
                char *first = strchr(line, ':'), *second = first ? strchr(first + 1, ':') : NULL;
                struct slice list, name;

                if (!second)
                        continue;
                list = slice_of(first + 1, (size_t)(second - first - 1));
                if (!controller && list.len == 0) {
                        snprintf(ret_path, size, "%s", second + 1);
                        return true;
                }
                while (controller && slice_split(&list, ',', &name))
                        if (slice_is(name, controller)) {
                                snprintf(ret_path, size, "%s", second + 1);
                                return true;
                        }
        }
        return false;
}

/* The smallest value of `file` from this cgroup up to the root; a container sees its own limits at the root. */
static bool cgroup_smallest(
    const char *controller, const char *file, double (*value)(const char *text), double *ret_value) {
        char path[2048], name[4096], text[256];
        bool found = false;

        if (!cgroup_path(controller, path, sizeof(path)))
                return false;
        for (;;) {
                char *slash;

                snprintf(name, sizeof(name), "/sys/fs/cgroup%s%s%s/%s", controller ? "/" : "",
                    controller ? controller : "", path[1] ? path : "", file);
                if (read_small(name, text, sizeof(text))) {
                        double v = value(text);

                        if (v >= 0 && (!found || v < *ret_value)) {
                                *ret_value = v;
                                found = true;
                        }
                }
                slash = strrchr(path, '/');
                if (!slash || !path[1])
                        return found;
                slash[slash == path] = 0;
        }
}

static double quota_of(const char *text) { /* "max 100000" or "150000 100000" */
        double quota, period;

        return sscanf(text, "%lf %lf", &quota, &period) == 2 && quota > 0 && period > 0 ? quota / period : -1;
}

static double number_of(const char *text) {
        double v;

        return sscanf(text, "%lf", &v) == 1 ? v : -1;
}

size_t os_cpu_list(unsigned *ret_cpus, size_t max) {
        cpu_set_t set;
        size_t n = 0;

        if (sched_getaffinity(0, sizeof(set), &set) < 0)
                return 0;
        for (unsigned i = 0; i < CPU_SETSIZE && n < max; i++)
                if (CPU_ISSET(i, &set))
                        ret_cpus[n++] = i;
        return n;
}

unsigned os_cpu_count(void) {
        unsigned list[CPU_SETSIZE];
        unsigned count = (unsigned)os_cpu_list(list, CPU_SETSIZE);
        double quota = 0, period = 0;

        if (count == 0)
                count = 1;
        if (!cgroup_smallest(NULL, "cpu.max", quota_of, &quota)) {
                if (!cgroup_smallest("cpu", "cpu.cfs_quota_us", number_of, &quota) || quota <= 0 ||
                    !cgroup_smallest("cpu", "cpu.cfs_period_us", number_of, &period) || period <= 0)
                        return count;
                quota /= period;
        }
        if (quota < count)
                count = quota <= 1 ? 1 : (unsigned)(quota + 0.999);
        return count;
}

void os_cpu_model(char *ret_text, size_t size) {
        char line[512];
        FILE *f = fopen("/proc/cpuinfo", "re");

        snprintf(ret_text, size, "unknown");
        while (f && fgets(line, sizeof(line), f)) {
                char *colon = strchr(line, ':');

                if (colon && !strncmp(line, "model name", 10)) {
                        struct slice name = slice_trim(slice_str(colon + 1));

                        snprintf(ret_text, size, "%.*s", SLICE_ARG(name));
                        break;
                }
        }
        if (f)
                fclose(f);
}

static uint64_t meminfo(const char *key) {
        char text[8192], *at;
        unsigned long long kib;

        if (!read_small("/proc/meminfo", text, sizeof(text)))
                return 0;
        at = strstr(text, key);
        return at && sscanf(at + strlen(key), ": %llu", &kib) == 1 ? kib << 10 : 0;
}

uint64_t os_memory_total(void) {
        uint64_t total = meminfo("MemTotal");
        double limit;

        if ((cgroup_smallest(NULL, "memory.max", number_of, &limit) ||
                cgroup_smallest("memory", "memory.limit_in_bytes", number_of, &limit)) &&
            limit < (double)total)
                total = (uint64_t)limit;
        return total;
}

static uint64_t cgroup_file_cache(void) {
        char path[2048], name[4096], text[8192], *at;
        unsigned long long inactive;

        if (!cgroup_path(NULL, path, sizeof(path)))
                return 0;
        snprintf(name, sizeof(name), "/sys/fs/cgroup%s/memory.stat", path[1] ? path : "");
        if (!read_small(name, text, sizeof(text)))
                return 0;
        at = strstr(text, "inactive_file ");
        return at && sscanf(at, "inactive_file %llu", &inactive) == 1 ? inactive : 0;
}

uint64_t os_memory_available(void) {
        uint64_t available = meminfo("MemAvailable");
        double limit, used;

        if (cgroup_smallest(NULL, "memory.max", number_of, &limit) &&
            cgroup_smallest(NULL, "memory.current", number_of, &used)) {
                double left = limit - used + (double)cgroup_file_cache();

                if (left < (double)available)
                        available = left > 0 ? (uint64_t)left : 0;
        }
        return available;
}

void os_boot_id(char ret_text[40]) {
        if (!read_small("/proc/sys/kernel/random/boot_id", ret_text, 40))
                ret_text[0] = 0;
        ret_text[strcspn(ret_text, "\n")] = 0;
}

uint64_t os_raise_file_limit(void) {
        struct rlimit limit;

        if (getrlimit(RLIMIT_NOFILE, &limit) < 0)
                return 1024;
        if (limit.rlim_cur < limit.rlim_max) {
                struct rlimit raised = {limit.rlim_max, limit.rlim_max};

                if (setrlimit(RLIMIT_NOFILE, &raised) == 0)
                        return raised.rlim_cur;
        }
        return limit.rlim_cur;
}
