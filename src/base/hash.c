/* hash.c - see hash.h. */
#include "base/hash.h"
#include "base/rng.h"
#include <xxhash.h>

uint64_t hash64(struct slice s, uint64_t seed) {
        return XXH3_64bits_withSeed(s.ptr, s.len, seed);
}

struct hash128 hash128(struct slice s, uint64_t seed) {
        XXH128_hash_t h = XXH3_128bits_withSeed(s.ptr, s.len, seed);

        return (struct hash128){h.low64, h.high64};
}

uint64_t hash_seed(void) {
        uint64_t seed;

        rng_secure(&seed, sizeof(seed));
        return seed;
}
