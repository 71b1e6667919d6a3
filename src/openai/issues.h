/* issues.h - validation errors in the words of vLLM's front (pydantic in FastAPI), private to openai/.
 *
 * All errors of a body are gathered, the first ten are told, and the first one names `param`. */
#pragma once
#include "openai/openai.h"

#define ISSUES_TOLD_MAX 10

struct issues {
        struct buf text; /* the lines told so far */
        unsigned count;
        char param[128];
};

/* One line: {'type': TYPE, 'loc': 'body.LOC', 'msg': MSG, 'input': …}. `loc` empty: the body itself. `more` is appended
 * after the input as it is (", 'ctx': {…}"), NULL: nothing. */
void issue_add(
    struct issues *s, const char *type, const char *loc, const char *message, yyjson_val *input, const char *more);
/* The same for a required member of `object` that is not there. */
void issue_missing(struct issues *s, const char *loc, yyjson_val *object);
/* Type errors as pydantic words them. */
void issue_not_integer(struct issues *s, const char *loc, yyjson_val *input);
void issue_not_number(struct issues *s, const char *loc, yyjson_val *input);
void issue_not_boolean(struct issues *s, const char *loc, yyjson_val *input);
void issue_not_string(struct issues *s, const char *loc, yyjson_val *input);
void issue_not_list(struct issues *s, const char *loc, yyjson_val *input);
void issue_not_object(struct issues *s, const char *loc, yyjson_val *input);

/* 0 when there are none; else -EINVAL with *ret_err filled, or -ENOMEM. Frees the list. */
int issues_end(struct issues *s, struct openai_error *ret_err);

/* Why `body` is not JSON, as Python's json module tells it: fills *ret_err, returns -EINVAL. Only for bodies that a parser
 * has refused. */
int issue_bad_json(struct slice body, struct openai_error *ret_err);
