/* join.h - whole answers on their way to the client: one as it came but for the prefiller's count of cached tokens, or
 * those of many parts as one. Pure. */
#pragma once
#include "gateway/relay.h"

/* An engine's whole answer, taken apart; slices of its text, SLICE_NONE where absent. */
struct whole {
        struct slice text, id, choices, usage;
};
/* 0, or -EINVAL when the text is not a JSON object. */
int whole_read(struct slice text, struct whole *ret_whole);
/* Did the decoder give it up for want of memory (stop_reason "recomputed")? */
bool whole_is_recomputed(const struct whole *w);

/* Append the answer with usage's cached_tokens as the prefiller said (-1: as it is). */
void join_one(const struct whole *answer, int64_t cached_tokens, struct buf *out);

struct join_part {
        const struct whole *answer;
        uint32_t index;     /* of its choice */
        bool counts_prompt; /* the first of the n choices of a prompt: usage counts each prompt once, as vLLM does */
        int64_t cached_tokens;
};
/* One answer: the first part's frame with `id` (raw JSON), the choices of all in order of `index`, usage added up.
 * 0, or -EINVAL when an answer is not one of an engine. */
int join_many(const struct join_part *parts, size_t count, struct slice id, struct buf *out);

/* Usage's numbers; -1 where absent. */
struct join_usage {
        int64_t prompt, completion, cached;
};
struct join_usage join_read_usage(const struct whole *answer);
