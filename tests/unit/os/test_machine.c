/* test_machine.c - how much of a machine may be used, on made-up machines: containers, quotas, both cgroup versions. */
#include "os/machine.h"
#include "test_dir.h"
#include <errno.h>
#include <sched.h>
#include <string.h>
#include <sys/resource.h>

#define GIB (1ull << 30)

/* Files of a made-up machine: pairs of path and contents. */
struct fake {
        const char *path, *text;
};

static const char *machine(const char *name, const struct fake *files, size_t count) {
        static char root[256];

        snprintf(root, sizeof(root), "%s", test_path(name));
        for (size_t i = 0; i < count; i++) {
                char path[512], *slash;
                struct error e = {0};

                snprintf(path, sizeof(path), "%s/%s", root, files[i].path);
                slash = strrchr(path, '/');
                *slash = 0;
                if (os_make_dirs(path, 0700, &e) < 0)
                        fail_msg("%s", e.text);
                *slash = '/';
                if (os_write_file_atomic(path, slice_str(files[i].text), 0600, &e) < 0)
                        fail_msg("%s", e.text);
        }
        return root;
}

#define MACHINE(name, ...)                                                                                             \
        machine(name, (const struct fake[]){__VA_ARGS__},                                                              \
            sizeof((const struct fake[]){__VA_ARGS__}) / sizeof(struct fake))

#define MEMINFO "MemTotal:       16777216 kB\nMemFree:          100 kB\nMemAvailable:    8388608 kB\nBuffers: 5 kB\n"

static void a_machine_without_cgroups_is_whole(void **state) {
        const char *root = MACHINE("plain", {"proc/meminfo", MEMINFO});

        assert_true(machine_cpu_quota(root) == 0);
        assert_true(machine_memory_total(root) == 16 * GIB);
        assert_true(machine_memory_available(root) == 8 * GIB);
}

static void cores_lie_by_their_nodes(void **state) {
        const char *root = MACHINE("nodes", {"sys/devices/system/node/node0/cpulist", "0-1,8\n"},
            {"sys/devices/system/node/node1/cpulist", "2-7,10-4095\n"}, {"sys/devices/system/node/node2/cpulist", "\n"},
            {"sys/devices/system/node/nodes_of_another_kind/cpulist", "0-99\n"},
            {"sys/devices/system/node/possible", "0-1\n"});
        static const unsigned numbers[] = {0, 1, 2, 8, 10}, nodes[] = {0, 0, 0, 1, 1}, order[] = {0, 1, 8, 2, 10};
        struct os_cpu cpus[5];

        for (int i = 0; i < 5; i++)
                cpus[i].number = numbers[i];
        machine_cpu_nodes(root, cpus, 5);
        for (int i = 0; i < 5; i++) {
                assert_int_equal(cpus[i].number, order[i]);
                assert_int_equal(cpus[i].node, nodes[i]);
        }
        machine_cpu_nodes(MACHINE("no-nodes", {"proc/meminfo", MEMINFO}), cpus, 5);
        for (int i = 0; i < 5; i++) {
                assert_int_equal(cpus[i].number, numbers[i]);
                assert_int_equal(cpus[i].node, 0);
        }
}

static void the_cores_are_those_of_the_affinity_mask(void **state) {
        struct os_cpu cpus[4096];
        size_t count = os_cpus(cpus, 4096);
        cpu_set_t set;

        assert_int_equal(sched_getaffinity(0, sizeof(set), &set), 0);
        assert_int_equal(count, CPU_COUNT(&set));
        for (size_t i = 0; i < count; i++)
                assert_true(CPU_ISSET(cpus[i].number, &set));
}

static void the_smallest_quota_of_all_levels_counts(void **state) {
        const char *root = MACHINE("v2", {"proc/meminfo", MEMINFO}, {"proc/self/cgroup", "0::/a.slice/b.scope\n"},
            {"sys/fs/cgroup/cgroup.controllers", "cpu memory\n"}, {"sys/fs/cgroup/a.slice/cpu.max", "150000 100000\n"},
            {"sys/fs/cgroup/a.slice/b.scope/cpu.max", "800000 200000\n"},
            {"sys/fs/cgroup/a.slice/memory.max", "4294967296\n"},
            {"sys/fs/cgroup/a.slice/memory.current", "3221225472\n"},
            {"sys/fs/cgroup/a.slice/memory.stat", "anon 5\nfile 7\nactive_file 999\ninactive_file 1073741824\n"},
            {"sys/fs/cgroup/a.slice/b.scope/memory.max", "max\n"},
            {"sys/fs/cgroup/a.slice/b.scope/memory.current", "1\n"});

        assert_true(machine_cpu_quota(root) == 1.5);
        assert_true(machine_memory_total(root) == 4 * GIB);
        assert_true(machine_memory_available(root) == 2 * GIB); /* limit 4, used 3 of which 1 can be dropped */
}

static void limits_of_different_levels_are_not_mixed(void **state) {
        /* The outer level has much room left, the inner one a lower limit and little use: neither the inner limit less the
         * outer use nor the outer limit less the inner use is right. */
        const char *root = MACHINE("levels", {"proc/meminfo", MEMINFO}, {"proc/self/cgroup", "0::/a/b\n"},
            {"sys/fs/cgroup/cgroup.controllers", "memory\n"}, {"sys/fs/cgroup/a/memory.max", "8589934592\n"},
            {"sys/fs/cgroup/a/memory.current", "3221225472\n"}, {"sys/fs/cgroup/a/b/memory.max", "2147483648\n"},
            {"sys/fs/cgroup/a/b/memory.current", "1073741824\n"});

        assert_true(machine_memory_total(root) == 2 * GIB);
        assert_true(machine_memory_available(root) == 1 * GIB);
}

static void a_container_sees_its_limits_at_the_mounts_root(void **state) {
        /* Without a cgroup namespace the path is the host's, and the mount shows only the container's own cgroup. */
        const char *root = MACHINE("container", {"proc/meminfo", MEMINFO}, {"proc/self/cgroup", "0::/docker/0123abc\n"},
            {"sys/fs/cgroup/cgroup.controllers", "cpu memory\n"}, {"sys/fs/cgroup/cpu.max", "50000 100000\n"},
            {"sys/fs/cgroup/memory.max", "1073741824\n"}, {"sys/fs/cgroup/memory.current", "2147483648\n"});

        assert_true(machine_cpu_quota(root) == 0.5);
        assert_true(machine_memory_total(root) == GIB);
        assert_true(machine_memory_available(root) == 0); /* over its limit, never below nothing */
}

static void a_path_outside_of_the_namespace_is_not_followed(void **state) {
        const char *root = MACHINE("outside", {"proc/meminfo", MEMINFO}, {"proc/self/cgroup", "0::/../../other\n"},
            {"sys/fs/cgroup/cgroup.controllers", "cpu\n"}, {"sys/fs/cgroup/cpu.max", "200000 100000\n"},
            {"sys/other/cpu.max", "100000 100000\n"});

        assert_true(machine_cpu_quota(root) == 2);
}

static void soft_memory_limits_count_too(void **state) {
        const char *root = MACHINE("high", {"proc/meminfo", MEMINFO}, {"proc/self/cgroup", "0::/\n"},
            {"sys/fs/cgroup/cgroup.controllers", "memory\n"}, {"sys/fs/cgroup/memory.max", "max\n"},
            {"sys/fs/cgroup/memory.high", "2147483648\n"}, {"sys/fs/cgroup/memory.current", "1073741824\n"});

        assert_true(machine_memory_total(root) == 2 * GIB);
        assert_true(machine_memory_available(root) == GIB);
}

static void the_first_version_of_cgroups_is_read(void **state) {
        const char *root = MACHINE("v1", {"proc/meminfo", MEMINFO},
            {"proc/self/cgroup", "12:cpuset:/x\n4:cpu,cpuacct:/a/b\n3:memory:/m\n0::/unified\n"},
            {"sys/fs/cgroup/unified/cgroup.controllers", ""}, {"sys/fs/cgroup/cpu/a/b/cpu.cfs_quota_us", "-1\n"},
            {"sys/fs/cgroup/cpu/a/b/cpu.cfs_period_us", "50000\n"},
            {"sys/fs/cgroup/cpu/a/cpu.cfs_quota_us", "250000\n"}, {"sys/fs/cgroup/cpu/a/cpu.cfs_period_us", "100000\n"},
            {"sys/fs/cgroup/memory/m/memory.limit_in_bytes", "3221225472\n"},
            {"sys/fs/cgroup/memory/m/memory.usage_in_bytes", "2147483648\n"},
            {"sys/fs/cgroup/memory/m/memory.stat", "inactive_file 5\ntotal_inactive_file 1073741824\n"},
            {"sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n"},
            {"sys/fs/cgroup/memory/memory.usage_in_bytes", "9000000000\n"});

        assert_true(machine_cpu_quota(root) == 2.5);
        assert_true(machine_memory_total(root) == 3 * GIB);
        assert_true(machine_memory_available(root) == 2 * GIB);
}

static void strange_files_limit_nothing(void **state) {
        static const char *const strange[] = {
            "", "\n", "max", "-5 100000", "100000", "100000 0", "x y", "0 100000", "1e999 1"};

        for (size_t i = 0; i < sizeof(strange) / sizeof(*strange); i++) {
                const char *root = MACHINE("strange", {"proc/meminfo", MEMINFO},
                    {"proc/self/cgroup", "garbage\n0::/a\n:\n"}, {"sys/fs/cgroup/cgroup.controllers", "cpu\n"},
                    {"sys/fs/cgroup/a/cpu.max", strange[i]}, {"sys/fs/cgroup/a/memory.max", strange[i]});
                double quota = machine_cpu_quota(root);

                assert_true(quota == 0 || quota > 1e100);
                if (strcmp(strange[i], "100000") != 0) /* which is a limit of memory */
                        assert_true(machine_memory_available(root) == 8 * GIB);
        }
}

static void the_processor_is_named(void **state) {
        char text[64], small[8];
        const char *root =
            MACHINE("model", {"proc/cpuinfo", "processor\t: 0\nmodel\t\t: 1\nmodel name\t: Some CPU @ 3 GHz \n"});

        machine_cpu_model(root, text, sizeof(text));
        assert_string_equal(text, "Some CPU @ 3 GHz");
        machine_cpu_model(root, small, sizeof(small));
        assert_string_equal(small, "Some CP");
        machine_cpu_model(test_path("nowhere"), text, sizeof(text));
        assert_string_equal(text, "unknown");
}

static void this_machine_has_a_size(void **state) {
        unsigned cpus[1024], count = os_cpu_count();
        size_t listed = os_cpu_list(cpus, 1024);
        char text[256], boot[40];

        assert_true(count >= 1 && count <= listed);
        for (size_t i = 1; i < listed; i++)
                assert_true(cpus[i] > cpus[i - 1]);
        assert_int_equal(os_cpu_list(cpus, 1), 1);
        assert_true(os_memory_total() >= os_memory_available());
        assert_true(os_memory_available() > 1 << 20);
        os_cpu_model(text, sizeof(text));
        assert_true(text[0]);
        os_boot_id(boot);
        assert_int_equal(strlen(boot), 36);
}

static void the_affinity_mask_is_what_may_be_used(void **state) {
        cpu_set_t before, one;
        unsigned cpus[1024];
        size_t listed = os_cpu_list(cpus, 1024);
        unsigned last = cpus[listed - 1];

        assert_int_equal(sched_getaffinity(0, sizeof(before), &before), 0);
        CPU_ZERO(&one);
        CPU_SET(last, &one);
        assert_int_equal(sched_setaffinity(0, sizeof(one), &one), 0);
        assert_int_equal(os_cpu_count(), 1);
        assert_int_equal(os_cpu_list(cpus, 1024), 1);
        assert_int_equal(cpus[0], last);
        assert_int_equal(sched_setaffinity(0, sizeof(before), &before), 0);
}

static void the_limit_of_open_files_is_raised(void **state) {
        struct rlimit before, now;

        assert_int_equal(getrlimit(RLIMIT_NOFILE, &before), 0);
        now = before;
        now.rlim_cur = before.rlim_max > 64 ? 64 : before.rlim_max;
        assert_int_equal(setrlimit(RLIMIT_NOFILE, &now), 0);
        assert_true(os_raise_file_limit() == before.rlim_max);
        assert_true(os_raise_file_limit() == before.rlim_max);
        assert_int_equal(getrlimit(RLIMIT_NOFILE, &now), 0);
        assert_true(now.rlim_cur == before.rlim_max);
        setrlimit(RLIMIT_NOFILE, &before);
}

int main(void) {
        const struct CMUnitTest tests[] = {
            cmocka_unit_test(a_machine_without_cgroups_is_whole),
            cmocka_unit_test(cores_lie_by_their_nodes),
            cmocka_unit_test(the_cores_are_those_of_the_affinity_mask),
            cmocka_unit_test(the_smallest_quota_of_all_levels_counts),
            cmocka_unit_test(limits_of_different_levels_are_not_mixed),
            cmocka_unit_test(a_container_sees_its_limits_at_the_mounts_root),
            cmocka_unit_test(a_path_outside_of_the_namespace_is_not_followed),
            cmocka_unit_test(soft_memory_limits_count_too),
            cmocka_unit_test(the_first_version_of_cgroups_is_read),
            cmocka_unit_test(strange_files_limit_nothing),
            cmocka_unit_test(the_processor_is_named),
            cmocka_unit_test(this_machine_has_a_size),
            cmocka_unit_test(the_affinity_mask_is_what_may_be_used),
            cmocka_unit_test(the_limit_of_open_files_is_raised),
        };

        return cmocka_run_group_tests(tests, test_dir_make, test_dir_drop);
}
