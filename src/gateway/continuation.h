/* continuation.h - the request that goes on where a stream was cut: the prompt's and the output's exact token ids,
 * through the completions route, which takes ids. Pure. */
#pragma once
#include "gateway/connector.h"
#include "gateway/relay.h"

/* How many tokens the whole answer may have: what the client said, or what vLLM takes when it says nothing (16 for
 * completions, the rest of the model's length for a chat). -1: not known. */
int64_t continuation_limit(const struct facts *f, const struct relay *r, int64_t max_model_len);

/* Add the edits to a source's. `left`: tokens that may still come, at least 1. 0 or -ENOMEM. */
int continuation_edits(
    const struct facts *f, const struct relay *r, int64_t left, struct arena *arena, struct edits *e);
