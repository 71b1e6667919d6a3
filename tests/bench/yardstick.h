/* yardstick.h - what this machine can do, measured beside what is judged by it: the bandwidth of reading memory and the peak of
 * multiplying and adding. A shared machine's speed wanders: only neighbours in time are compared, and figures are medians. */
#pragma once
#include "kernels/kernels.h"
#include <stdatomic.h>

/* What one round of the yardstick for reading reads: many times any cache. */
#define READ_BYTES ((size_t)384 << 20)

struct reader {
        struct compute *c;
        const uint64_t *memory;
        size_t ahead; /* bytes of software prefetch, 0: none */
        size_t piece;
        _Atomic size_t next;
        _Atomic uint64_t sink;
};

struct spinner {
        struct compute *c;
        void (*task)(void *context, unsigned worker, unsigned workers);
};

/* What the machine can do, to be measured beside what the kernels do. */
struct yardstick {
        void (*run)(void *);
        void *context;
        double work; /* bytes or operations of one run */
};

enum peak { PEAK_F32, PEAK_BF16, PEAK_INT8 };

struct machine {
        unsigned threads;
        bool quick; /* fewer rounds */
        struct compute *c;
        struct reader reader;
        struct spinner spinners[3];
        struct yardstick read, peak[3]; /* by enum peak */
};

struct figure {
        double rate;  /* work per second: bytes when there are no operations */
        double share; /* of the limit: the slower of reading the bytes and doing the operations */
        bool disturbed;
};

/* Work done by one call, and what bounds it. */
struct work {
        double bytes, operations;
        const struct yardstick *read, *peak; /* NULL: no bound */
        unsigned threads;                    /* that are busy all the time */
};

void die(const char *what, const struct error *e);
double cpu_seconds(void); /* of all our threads so far; waiting ones spin */
/* Medians of rounds of at least `least` seconds, each beside a run of the yardsticks. */
struct figure measure(const struct machine *m, void (*run)(void *), void *context, struct work w, double least);
/* Measure the machine with `threads` workers of `c`: fills m->read and m->peak. Prints a line. */
void measure_machine(struct machine *m, const char *blas);
void *pages(size_t bytes); /* huge ones where they are to be had; never freed */
