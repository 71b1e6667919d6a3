/* grid.h - what pings came to, as a square of cells for pictures (private to verify/). Pure. */
#pragma once
#include "verify/verify.h"

/* Of more NPUs or nodes a picture shows nothing any more, and its cells would take gigabytes. */
#define GRID_SIDE_MAX 512u
/* A ping so much slower than the median of all is worth a word. A pair in one rack and one across differ by less than two. */
#define SLOW_FACTOR 10

/* From fine to grave: of a block of NPUs the gravest counts. */
enum cell_kind { CELL_NONE, CELL_GOOD, CELL_SLOW, CELL_UNKNOWN, CELL_LOSSY, CELL_LOST, CELL_KINDS };
extern const char cell_marks[CELL_KINDS]; /* in a terminal */
extern const char *const cell_words[CELL_KINDS];

struct cell {
        enum cell_kind kind;
        uint32_t pairs, bad;
        uint64_t sent, received;
        double us; /* mean over the pairs that lost nothing; 0: none */
};
enum grid_level { GRID_NPUS, GRID_NODES };
struct grid {
        enum grid_level level;
        size_t side;
        struct {
                uint32_t node, npu; /* indices; npu only at GRID_NPUS */
        } * ends;
        struct cell *cells; /* from * side + to */
        size_t pairs, kinds[CELL_KINDS];
        double median_us, slowest_us; /* over good pairs; 0: none */
};
/* 0; -E2BIG beyond GRID_SIDE_MAX; -ENOMEM. */
int grid_make(const struct facts *facts, enum grid_level level, struct arena *arena, struct grid *ret);
