/* machine.h - the parts of machine.c that read /proc and /sys below any root, so that tests can make up a machine (private
 * to os/). `root` is "" for the real one. */
#pragma once
#include "os/os.h"

/* How many cores' worth of time the cgroups grant, the smallest of all levels; 0 when there is no quota. */
double machine_cpu_quota(const char *root);
/* As os_memory_total(), os_memory_available(), os_cpu_model(). */
uint64_t machine_memory_total(const char *root);
uint64_t machine_memory_available(const char *root);
/* Fill in the nodes of cores whose numbers are set, and sort them as os_cpus() gives them. */
void machine_cpu_nodes(const char *root, struct os_cpu *cpus, size_t count);
void machine_cpu_model(const char *root, char *ret_text, size_t size);
