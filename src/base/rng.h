/* rng.h - random numbers: a small seeded generator for reproducible choices, the kernel's for ids and keys. */
#pragma once
#include <stddef.h>
#include <stdint.h>

/* xoshiro256** (Blackman and Vigna), seeded through splitmix64. Not for secrets. */
struct rng {
        uint64_t s[4];
};

void rng_seed(struct rng *r, uint64_t seed);
uint64_t rng_u64(struct rng *r);
double rng_unit(struct rng *r);                    /* [0, 1) with 53 bits */
uint64_t rng_below(struct rng *r, uint64_t bound); /* [0, bound) without bias; bound > 0 */

/* Bytes from getrandom(2); the process ends when the kernel has none, which does not happen after boot. */
void rng_secure(void *ret_bytes, size_t len);
/* 2*bytes lower-case hex digits and a NUL. */
void rng_hex(char *ret_text, size_t bytes);
