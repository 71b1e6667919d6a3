/* memory.c - see memory.h. */
#include "model/memory.h"
#include "os/os.h"
#include <errno.h>
#include <stdint.h>
#include <sys/mman.h>

#define HUGE_PAGE ((size_t)2 << 20)

static size_t whole_pages(size_t bytes) {
        return (bytes + HUGE_PAGE - 1) / HUGE_PAGE * HUGE_PAGE;
}

static double gib(uint64_t bytes) {
        return (double)bytes / (1 << 30);
}

int memory_map(const char *what, size_t bytes, void **ret_memory, struct error *e) {
        const uint64_t available = os_memory_available();
        const size_t size = whole_pages(bytes);
        char *map, *memory;

        if (bytes > available)
                return error_set(e, -ENOMEM,
                    "%s: %.2f GiB of memory are needed and %.2f GiB available: %.2f GiB are missing", what, gib(bytes),
                    gib(available), gib(bytes - available));
        map = mmap(NULL, size + HUGE_PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (map == MAP_FAILED)
                return error_set(e, -ENOMEM, "%s: the system refuses %.2f GiB of memory", what, gib(bytes));
        /* Give back what alignment does not need. */
        memory = (char *)(((uintptr_t)map + HUGE_PAGE - 1) / HUGE_PAGE * HUGE_PAGE);
        if (memory > map)
                munmap(map, (size_t)(memory - map));
        if (memory < map + HUGE_PAGE)
                munmap(memory + size, (size_t)(map + HUGE_PAGE - memory));
        if (bytes >= HUGE_PAGE) /* or little would take much */
                (void)madvise(memory, size, MADV_HUGEPAGE);
        *ret_memory = memory;
        return 0;
}

void memory_unmap(void *memory, size_t bytes) {
        if (memory)
                munmap(memory, whole_pages(bytes));
}
