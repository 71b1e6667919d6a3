/* facts.h - what the gateway must know of a request's body, read once as byte ranges.
 *
 * Values are understood as vLLM's server reads them (5, 5.0 and "5" are the integer 5; true, 1 and "yes" are true).
 * What is not understood is left alone, for the engine to refuse in its own words: nothing here answers 400 but for
 * bodies that are no JSON objects. */
#pragma once
#include "gateway/prefix.h"
#include "openai/openai.h"

enum api { API_COMPLETIONS, API_CHAT };

struct facts {
        enum api api;
        struct slice body; /* the object's text, without a byte order mark */
        const struct openai_member *members;
        size_t member_count;

        struct slice model; /* between the quotes, for logs; empty when absent */
        bool stream, include_usage, return_token_ids, echo;
        /* Prompts of their own when the prompt is a list of strings or of id lists (one item for each), else one part
         * whose prompt is what the body says. */
        struct slice prompt;         /* as it stands in the body: messages, text, ids, or a list of prompts */
        const struct slice *prompts; /* NULL: not a list */
        size_t prompt_count;         /* 1 when not a list */
        uint32_t n;                  /* choices per prompt, 1 when absent or not understood */
        int64_t max_tokens;          /* the limit that holds, -1: none given */
        int64_t min_tokens;          /* 0 when absent */
        bool has_seed;
        int64_t seed;
        bool max_understood, min_understood; /* absent counts as understood */
        struct slice stop;                   /* raw, SLICE_NONE when absent, null or empty */
        bool beam_search;
        /* Something that a second engine could not take up in the middle of an answer: tools or structured output
         * (parser and grammar have a state), penalties over the output, chat logprobs (with their bytes). */
        const char *bound; /* NULL, or what it is */

        uint64_t prompt_tokens; /* an estimate, at least 1 */
        uint64_t output_tokens; /* likewise of what will come for one choice */
};

/* Read a body. Everything lives in `arena` and in `body`. Returns 0, -EINVAL with vLLM's error shape in *ret_err (also
 * when the body has too many members), or -ENOMEM. */
int facts_read(
    enum api api, struct slice body, struct arena *arena, struct facts *ret_facts, struct openai_error *ret_err);

/* Tokens of a prompt (a string, id list, or messages), estimated; at least 1. */
uint64_t facts_estimate(struct slice prompt);
/* The tokens of a prompt that is a list of ids; 0: it is something else, whose tokens only the engine can count. */
uint64_t facts_count_ids(struct slice prompt);
/* One of the body's prompts, as the index of prompts sees it (prefix.h): its text as it stands in the body, under what else
 * an engine puts before it or keeps apart (model, tools, cache_salt). Keys live in `arena`. 0 or -ENOMEM. */
int facts_prompt(const struct facts *f, struct slice prompt, struct arena *arena, struct prompt *ret_prompt);
/* A JSON value as an integer, as vLLM reads it. 0 or -EINVAL. */
int facts_integer(struct slice value, int64_t *ret_value);
bool facts_true(struct slice value);
