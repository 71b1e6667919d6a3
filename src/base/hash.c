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

static uint64_t load_le64(const void *at) {
        const uint8_t *b = at;
        uint64_t v = 0;

        for (int i = 7; i >= 0; i--)
                v = v << 8 | b[i];
        return v;
}

static inline uint64_t rotate(uint64_t x, int k) {
        return x << k | x >> (64 - k);
}

static void sip_rounds(uint64_t v[4], int rounds) {
        while (rounds--) {
                v[0] += v[1];
                v[2] += v[3];
                v[1] = rotate(v[1], 13) ^ v[0];
                v[3] = rotate(v[3], 16) ^ v[2];
                v[0] = rotate(v[0], 32);
                v[2] += v[1];
                v[0] += v[3];
                v[1] = rotate(v[1], 17) ^ v[2];
                v[3] = rotate(v[3], 21) ^ v[0];
                v[2] = rotate(v[2], 32);
        }
}

static void sip_word(uint64_t v[4], uint64_t word) {
        v[3] ^= word;
        sip_rounds(v, 2);
        v[0] ^= word;
}

struct hash128 siphash128(struct slice s, const uint8_t key[16]) {
        uint64_t k0 = load_le64(key), k1 = load_le64(key + 8), tail = (uint64_t)s.len << 56;
        uint64_t v[4] = {k0 ^ 0x736f6d6570736575ull, k1 ^ 0x646f72616e646f6dull ^ 0xee, k0 ^ 0x6c7967656e657261ull,
            k1 ^ 0x7465646279746573ull};
        struct hash128 h;
        size_t at = 0;

        for (; at + 8 <= s.len; at += 8)
                sip_word(v, load_le64(s.ptr + at));
        for (size_t i = 0; at + i < s.len; i++)
                tail |= (uint64_t)(uint8_t)s.ptr[at + i] << (8 * i);
        sip_word(v, tail);
        v[2] ^= 0xee;
        sip_rounds(v, 4);
        h.lo = v[0] ^ v[1] ^ v[2] ^ v[3];
        v[1] ^= 0xdd;
        sip_rounds(v, 4);
        h.hi = v[0] ^ v[1] ^ v[2] ^ v[3];
        return h;
}

uint64_t hash_seed(void) {
        uint64_t seed;

        rng_secure(&seed, sizeof(seed));
        return seed;
}
