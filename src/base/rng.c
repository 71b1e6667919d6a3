/* rng.c - see rng.h. */
#include "base/rng.h"
#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <sys/random.h>

static uint64_t splitmix(uint64_t *state) {
        uint64_t z = *state += 0x9e3779b97f4a7c15ull;

        z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
        z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
        return z ^ (z >> 31);
}

void rng_seed(struct rng *r, uint64_t seed) {
        for (int i = 0; i < 4; i++)
                r->s[i] = splitmix(&seed);
}

static uint64_t rotate(uint64_t x, int k) {
        return x << k | x >> (64 - k);
}

uint64_t rng_u64(struct rng *r) {
        uint64_t result = rotate(r->s[1] * 5, 7) * 9, t = r->s[1] << 17;

        r->s[2] ^= r->s[0];
        r->s[3] ^= r->s[1];
        r->s[1] ^= r->s[2];
        r->s[0] ^= r->s[3];
        r->s[2] ^= t;
        r->s[3] = rotate(r->s[3], 45);
        return result;
}

double rng_unit(struct rng *r) {
        return (double)(rng_u64(r) >> 11) * 0x1p-53;
}

uint64_t rng_below(struct rng *r, uint64_t bound) {
        uint64_t limit, x;

        assert(bound > 0);
        limit = UINT64_MAX - (UINT64_MAX % bound + 1) % bound; /* the last of a whole number of rounds */
        do
                x = rng_u64(r);
        while (x > limit);
        return x % bound;
}

void rng_secure(void *ret_bytes, size_t len) {
        char *to = ret_bytes;

        while (len) {
                ssize_t n = getrandom(to, len, 0);

                if (n < 0 && errno != EINTR)
                        abort();
                if (n > 0) {
                        to += n;
                        len -= (size_t)n;
                }
        }
}

void rng_hex(char *ret_text, size_t bytes) {
        static const char digits[] = "0123456789abcdef";
        unsigned char chunk[64];

        for (size_t done = 0; done < bytes;) {
                size_t n = bytes - done < sizeof(chunk) ? bytes - done : sizeof(chunk);

                rng_secure(chunk, n);
                for (size_t i = 0; i < n; i++, done++) {
                        ret_text[2 * done] = digits[chunk[i] >> 4];
                        ret_text[2 * done + 1] = digits[chunk[i] & 15];
                }
        }
        ret_text[2 * bytes] = 0;
}
