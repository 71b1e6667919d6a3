/* memory.h - large zeroed regions, 2 MiB aligned, in huge pages where the kernel grants them (private to model/). */
#pragma once
#include "base/error.h"

/* Returns 0, or -ENOMEM with a text that says what needs how much and how much of it is missing. `what` begins a sentence. */
int memory_map(const char *what, size_t bytes, void **ret_memory, struct error *e);
void memory_unmap(void *memory, size_t bytes); /* NULL is fine */
