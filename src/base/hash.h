/* hash.h - hashes over xxHash. Tables filled by strangers take a random seed (hash_seed) against chosen collisions. */
#pragma once
#include "base/slice.h"

struct hash128 {
        uint64_t lo, hi;
};

uint64_t hash64(struct slice s, uint64_t seed);
struct hash128 hash128(struct slice s, uint64_t seed);
static inline bool hash128_eq(struct hash128 a, struct hash128 b) {
        return a.lo == b.lo && a.hi == b.hi;
}
uint64_t hash_seed(void); /* from the kernel */
