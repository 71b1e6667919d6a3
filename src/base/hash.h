/* hash.h - hashes over xxHash. Tables filled by strangers take a random seed (hash_seed) against chosen collisions. */
#pragma once
#include "base/slice.h"

struct hash128 {
        uint64_t lo, hi;
};

uint64_t hash64(struct slice s, uint64_t seed);
struct hash128 hash128(struct slice s, uint64_t seed);
/* SipHash-2-4 with 128 bits (Aumasson and Bernstein): who does not know the key can neither predict values nor choose inputs
 * that collide. For what keeps strangers' data apart. */
struct hash128 siphash128(struct slice s, const uint8_t key[16]);
static inline bool hash128_eq(struct hash128 a, struct hash128 b) {
        return a.lo == b.lo && a.hi == b.hi;
}
uint64_t hash_seed(void); /* from the kernel */
