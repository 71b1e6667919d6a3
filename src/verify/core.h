/* core.h - what collecting and judging share. */
#pragma once
#include "verify/parse.h"

/* How a topic is asked, by generation of the tools, and under which check it is reported. In `words` D stands for the
 * physical id, L for the logic id, C for the card, H for the chip. */
struct topic_row {
        const char *check;
        const char *words[QUESTION_WORDS];    /* A2, A3 */
        const char *words_a5[QUESTION_WORDS]; /* first NULL: not asked there */
        bool a3_only;
        bool first_chip; /* asked once a card; the card's other chips share the answer */
};
extern const struct topic_row topic_rows[TOPIC_COUNT];

/* The command line as a person would type it. */
const char *question_text(
    const struct facts *facts, const struct npu_facts *npu, enum topic topic, struct arena *arena);

/* Questions of a node that are about no NPU. */
#define LANE_OF_NODE 1u

/* What collecting carries along. */
struct collector {
        struct facts *facts;
        const struct asker *asker;
        const struct progress *progress;
        struct arena *arena;
        const char *what; /* is asked just now */
        size_t done, all;
        bool failed; /* memory was out */
};
/* Room for `capacity` questions; false when memory is out. */
bool batch_init(struct collector *c, struct batch *b, uint32_t node, size_t capacity);
/* Put all batches, what is busy again and again after a while, and tell of the progress. */
void collector_ask(struct collector *c, struct batch *batches, size_t count, const char *what);
