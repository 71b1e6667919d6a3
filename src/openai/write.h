/* write.h - pieces that answers and chunks share (private to openai/). */
#pragma once
#include "base/json.h"
#include "openai/openai.h"

/* The start of an answer, or of a chunk of one, up to the opening of `choices`. */
void write_opening(struct json_writer *w, const struct openai_answer *a, bool chunk);
/* "KEY":[…] of items that are JSON with commas between them. */
void write_items(struct json_writer *w, const char *key, struct slice items);
/* Log-probabilities and how a choice ends. `l` NULL: null; where its buffers have run out of memory the writer's has too. `stop`
 * NULL: stop_reason is not told. */
void write_finish(
    struct json_writer *w, const struct openai_logprobs *l, const char *reason, const struct openai_stop *stop);
void write_ids(struct json_writer *w, struct openai_ids ids);
void write_raw(struct json_writer *w, struct slice json);  /* empty: null */
void write_text(struct json_writer *w, struct slice text); /* ptr NULL: null */
