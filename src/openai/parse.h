/* parse.h - what the files that read requests share (private to openai/). */
#pragma once
#include "openai/issues.h"
#include <errno.h>

struct parser {
        struct arena *arena;
        const struct openai_defaults *defaults;
        struct openai_request *r;
        struct openai_error *err;
        struct issues issues; /* types and missing members: told together */
        yyjson_val *root;
        int failed; /* the first error that is not a type error: -EINVAL with *err filled, or -ENOMEM */
};

/* For what vLLM checks beyond types: the first one counts. `param` NULL: null. */
void parser_refuse(struct parser *p, const char *param, const char *format, ...) __attribute__((format(printf, 3, 4)));
static inline void parser_no_memory(struct parser *p) {
        p->failed = -ENOMEM;
}
void *parser_array(struct parser *p, size_t count, size_t size); /* NULL when memory is out (noted) */
/* A name for `loc`, such as "messages.3.role". Empty when memory is out (noted), or when enough issues are known. */
const char *parser_loc(struct parser *p, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* Values as pydantic reads them. False: an issue was added. Integers beyond 64 bits are clamped. */
bool parser_integer(struct parser *p, const char *loc, yyjson_val *v, int64_t *ret_value);
bool parser_number(struct parser *p, const char *loc, yyjson_val *v, double *ret_value);
bool parser_boolean(struct parser *p, const char *loc, yyjson_val *v, bool *ret_value);
bool parser_string(struct parser *p, const char *loc, yyjson_val *v, struct slice *ret_value);

/* prompt.c */
void parse_prompt(struct parser *p, yyjson_val *v);
void parse_tokens(struct parser *p, yyjson_val *v); /* /detokenize */
/* messages.c */
void parse_messages(struct parser *p, yyjson_val *v);
void parse_tools(struct parser *p, yyjson_val *tools, yyjson_val *choice);
