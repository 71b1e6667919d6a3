/* write.h - pieces that answers and chunks share (private to openai/). */
#pragma once
#include "base/json.h"
#include "openai/openai.h"

/* The start of an answer, or of a chunk of one, up to the opening of `choices`. */
void write_opening(struct json_writer *w, const struct openai_answer *a, bool chunk);
/* The value, or null when the list is NULL; its buffers may have run out of memory, then so has the writer's. */
void write_logprobs(struct json_writer *w, const struct openai_logprobs *l);
void write_ids(struct json_writer *w, struct openai_ids ids);
void write_stop(struct json_writer *w, const struct openai_stop *stop);
void write_raw(struct json_writer *w, struct slice json);  /* empty: null */
void write_text(struct json_writer *w, struct slice text); /* ptr NULL: null */
