/* split.h - the pre-tokenizer: a list of steps read from the file, each cutting every piece of the one before.
 *
 * Patterns are written for Oniguruma's Ruby syntax, in which the reference tokenizer reads them; what PCRE2 would read
 * differently is rewritten, and refused where that cannot be done. A splitter is constant after loading. */
#pragma once
#include "base/buf.h"
#include "base/error.h"
#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

/* The longest known list has 7 steps. */
#define SPLIT_STEPS_MAX 32u
/* Bytes; the longest known pattern has 1,104. */
#define SPLIT_PATTERN_MAX (1u << 14)
/* Backtracking steps of one match: this, and some for each byte of the piece. The known patterns need about one per byte
 * of a run of white space; a pattern that explodes stops here instead of running for hours. */
#define SPLIT_MATCH_LIMIT          1000000u
#define SPLIT_MATCH_LIMIT_PER_BYTE 8u
/* PCRE2 starts with 32 KiB of the machine's stack and goes on here. */
#define SPLIT_JIT_STACK_MAX (1u << 20)

/* What becomes of a match. */
enum split_behavior {
        SPLIT_ISOLATED,
        SPLIT_REMOVED,
        SPLIT_MERGED_WITH_PREVIOUS,
        SPLIT_MERGED_WITH_NEXT,
        SPLIT_CONTIGUOUS, /* one piece with the matches beside it */
};

struct split_step {
        pcre2_code *code; /* NULL: put a space in front of each piece that has none */
        enum split_behavior behavior;
        bool invert;
};

/* Zeroed: no steps, every text is one piece. */
struct splitter {
        struct split_step steps[SPLIT_STEPS_MAX];
        unsigned count;
};

/* 0, -EINVAL (e says what is wrong with the pattern), -E2BIG (too many steps), -ENOMEM. */
int splitter_add_regex(
    struct splitter *s, struct slice pattern, enum split_behavior behavior, bool invert, struct error *e);
int splitter_add_string(
    struct splitter *s, struct slice text, enum split_behavior behavior, bool invert, struct error *e);
int splitter_add_prefix_space(struct splitter *s, struct error *e); /* once in a list */
void splitter_free(struct splitter *s);

/* Memory of one splitting thread. */
struct split_run {
        pcre2_match_data *match;
        pcre2_match_context *context;
        pcre2_jit_stack *stack; /* NULL until a match needs it */
        struct buf prefixed;
};
int split_run_init(struct split_run *run); /* 0 or -ENOMEM */
void split_run_free(struct split_run *run);

/* Give the pieces of `text` (valid UTF-8) to `piece` from left to right; empty ones are left out. What `piece` returns
 * other than 0 ends it and is returned. Else 0, -ENOMEM, -E2BIG: a pattern would take too long on this text. */
typedef int split_piece_fn(void *context, struct slice piece);
int splitter_split(
    const struct splitter *s, struct split_run *run, struct slice text, split_piece_fn *piece, void *context);

/* What the steps are made of. */
int split_compile(struct slice pattern, pcre2_code **ret_code, struct error *e);
int split_compile_string(struct slice text, pcre2_code **ret_code, struct error *e);
/* The first match at or after `from`: 1, 0 (none), -ENOMEM, -E2BIG. */
int split_search(
    struct split_run *run, const pcre2_code *code, struct slice text, size_t from, size_t *ret_start, size_t *ret_end);
